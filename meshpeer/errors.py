"""Everything meshpeer raises on purpose, in one tree. The class says whose fault it is.

::

    MeshError
    ├── UsageError                the calling program's: fix the call
    │   ├── ConfigError           a setting is out of its range            (also ValueError)
    │   ├── InvalidData           data that can't be sent                  (also TypeError)
    │   ├── MessageTooLarge       data over the limit                      (also ValueError)
    │   ├── TooManyChannels       more channels of messages than the peer takes    (also ValueError)
    │   ├── SlowReader            an iterator was not read and fell too far behind
    │   └── UnexpectedInput       a state machine was fed what its table does not list
    ├── ClosedError               what was called on is closed
    │   ├── MeshClosed            the manager
    │   │   ├── IdentityReplaced  a newer process took this peer id over
    │   │   └── Removed           the relay's operator took us out of the room
    │   ├── PeerClosed            the peer: it left, or a new incarnation took its place
    │   │   └── Undelivered       the same, and messages for it did not arrive
    │   └── ChannelClosed         the data channel
    ├── NetworkError              nobody's: try again
    │   ├── SignalingUnavailable  the relay can't be reached
    │   ├── SignalingBacklog      too many signals wait for the relay to come back
    │   ├── ConnectionFailed      a connection attempt to a peer did not succeed
    │   └── MeshTimeout           a deadline passed                        (also TimeoutError)
    ├── RefusedError              the relay's no, with its code
    │   ├── PeerIdTaken           the id belongs to another live process
    │   ├── RoomFull              the room has all the members it may have
    │   ├── TooManyRooms          the relay has all the rooms it may have
    │   ├── RateLimited           more messages than the relay takes
    │   ├── Unauthorized          no join token, or one that is not valid (any more)
    │   └── Forbidden             a valid join token, but not for this
    ├── RemoteError               the other application's no
    │   ├── RequestFailed         it answered a request with an error
    │   └── TransferFailed        it refused a file, or what arrived is not what was sent
    └── ProtocolError             the other side's: what it sent is malformed or out of place
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = [
    "ChannelClosed",
    "ClosedError",
    "ConfigError",
    "ConnectionFailed",
    "Forbidden",
    "IdentityReplaced",
    "InvalidData",
    "MeshClosed",
    "MeshError",
    "MeshTimeout",
    "MessageTooLarge",
    "NetworkError",
    "PeerClosed",
    "PeerIdTaken",
    "ProtocolError",
    "RateLimited",
    "RefusedError",
    "RemoteError",
    "Removed",
    "RequestFailed",
    "RoomFull",
    "SignalingBacklog",
    "SignalingUnavailable",
    "SlowReader",
    "TooManyChannels",
    "TooManyRooms",
    "TransferFailed",
    "Unauthorized",
    "Undelivered",
    "UnexpectedInput",
    "UsageError",
]


@dataclass(frozen=True, slots=True)
class UndeliveredMessage:
    """A message that was accepted and not acknowledged."""

    data: Any
    """What was given to `Peer.send`."""
    channel: str


class MeshError(Exception):
    """Base of every error that meshpeer raises on purpose."""


class UsageError(MeshError):
    """The calling program did something it should not; the text says what to do instead."""


class ConfigError(UsageError, ValueError):
    """A setting is out of its range; the text names the field, the value and the range."""


class InvalidData(UsageError, TypeError):
    """Data that is neither str, bytes nor JSON-able."""


class MessageTooLarge(UsageError, ValueError):
    """A message over ``max_message_size``; nothing of it was sent."""


class TooManyChannels(UsageError, ValueError):
    """More channels of messages than the peer takes; nothing of the message was sent."""


class SlowReader(UsageError):
    """An iterator was not read and fell too far behind; what it missed is lost to it."""


class UnexpectedInput(UsageError):
    """A state machine was fed an input that its table does not list; it has not changed."""


class ClosedError(MeshError):
    """What the call was made on is closed; ``reason`` says why."""

    def __init__(self, text: str, *, reason: str = "closed") -> None:
        super().__init__(text)
        self.reason = reason


class MeshClosed(ClosedError):
    """The manager is closed, or was not started."""


class IdentityReplaced(MeshClosed):
    """A newer process took this peer id over; this one does not come back."""


class Removed(MeshClosed):
    """The operator of the relay took us out of the room; this process does not come back."""


class PeerClosed(ClosedError):
    """The peer left, its seat ran out, or a new incarnation took its place."""


class Undelivered(PeerClosed):
    """The peer is gone, and has not acknowledged all that was sent to it.

    ``messages`` has those (`UndeliveredMessage`), in the order in which they were accepted. Whether
    the last of them arrived before it went can't be known.
    """

    def __init__(
        self, text: str, *, reason: str = "closed", messages: Sequence[UndeliveredMessage] = ()
    ) -> None:
        super().__init__(text, reason=reason)
        self.messages = tuple(messages)


class ChannelClosed(ClosedError):
    """The data channel is closed, on this side or the other."""


class NetworkError(MeshError):
    """Nobody's fault: something could not be reached in time. Trying again may help."""


class SignalingUnavailable(NetworkError):
    """The signalling service can't be reached; the text names its address and the cause."""


class SignalingBacklog(NetworkError):
    """Too many signals wait for the signalling service already; this one was not taken."""


class ConnectionFailed(NetworkError):
    """A connection attempt to a peer did not succeed."""


class MeshTimeout(NetworkError, TimeoutError):
    """A deadline given by the caller passed; the text says what had not happened."""


class RefusedError(MeshError):
    """The relay said no.

    ``code`` is the protocol's word for it (docs/protocol.md), ``field`` the offending field where
    there is one, ``retry_after`` the seconds after which another try may succeed, or None.
    """

    def __init__(
        self,
        text: str,
        *,
        code: str = "refused",
        field: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(text)
        self.code = code
        self.field = field
        self.retry_after = retry_after


class PeerIdTaken(RefusedError):
    """The peer id belongs to another live process in this room."""


class RoomFull(RefusedError):
    """The room has as many members as the relay allows."""


class TooManyRooms(RefusedError):
    """The relay has as many rooms as it allows."""


class RateLimited(RefusedError):
    """More messages in a second than the relay takes from one member."""


class Unauthorized(RefusedError):
    """The relay takes only who has a join token; there was none, or it is forged or expired."""


class Forbidden(RefusedError):
    """The join token is valid, but not for this room or this peer id."""


class RemoteError(MeshError):
    """The application at the other side said no; the text is its."""


class RequestFailed(RemoteError):
    """A request was answered with an error."""


class TransferFailed(RemoteError):
    """A file was refused, or what arrived is not what was sent."""


class ProtocolError(MeshError):
    """The other side sent something malformed, oversized, forged or out of place.

    It was refused and nothing else changed. ``code`` is one word for programs, ``field`` the path
    of the offending field (``"$"`` is the whole message).
    """

    def __init__(self, text: str, *, code: str = "malformed", field: str = "$") -> None:
        super().__init__(text)
        self.code = code
        self.field = field


_REFUSALS: dict[str, type[RefusedError]] = {
    "peer_id_taken": PeerIdTaken,
    "room_full": RoomFull,
    "too_many_rooms": TooManyRooms,
    "rate_limited": RateLimited,
    "unauthorized": Unauthorized,
    "forbidden": Forbidden,
}


def refusal(
    code: str, text: str, *, field: str | None = None, retry_after: float | None = None
) -> RefusedError:
    """The error class that stands for the relay's ``code``; an unknown code is a RefusedError."""
    return _REFUSALS.get(code, RefusedError)(text, code=code, field=field, retry_after=retry_after)
