"""The contract between a `PeerManager` and whatever carries its signals."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from meshpeer.core.forward import ForwardRoom, FrameIn
from meshpeer.core.messages import (
    IceServers,
    Join,
    LinkReport,
    MemberJoined,
    MemberLeft,
    MemberUpdated,
    Metadata,
    Notice,
    Refused,
    RestartIce,
    SignalIn,
    SignalOut,
    Welcome,
)
from meshpeer.errors import MeshError

__all__ = ["ForwardRoom", "FrameIn", "SignalingEvent", "SignalingLost", "SignalingTransport"]


@dataclass(frozen=True, slots=True)
class SignalingLost:
    """The service can't be reached; the transport tries again by itself."""

    reason: str
    retry_in: float | None = None
    """Seconds to the next try."""


SignalingEvent = (
    Welcome
    | MemberJoined
    | MemberLeft
    | MemberUpdated
    | SignalIn
    | Refused
    | IceServers
    | Notice
    | RestartIce
    | FrameIn
    | ForwardRoom
    | SignalingLost
)


class SignalingTransport(ABC):
    """Carries a member's presence and signals. Implement it to use another signalling service.

    What an implementation guarantees, and `meshpeer.testing.conformance` checks:

    1. **Presence.** The `Welcome` lists everybody else in the room. Every later change comes as
       `MemberJoined`, `MemberLeft` or `MemberUpdated`, in the order in which it happened, and
       before any signal of the member it is about.
    2. **Signals.** What one member sends to another arrives exactly once and in the order sent as
       long as both keep their seats, whatever happens to the connection meanwhile. When a seat is
       lost, what was on its way then may be lost, or sent again and so come twice.
    3. **Senders are stamped.** `SignalIn.sender` and `SignalIn.incarnation` come from the service.
    4. **Loss.** A lost connection is told (`SignalingLost`), and mended without being asked. Then
       comes a `Welcome`: ``resumed`` when nothing was missed, else with the whole room anew.
    5. **An end is an exception.** When the service refuses for good (`RefusedError`), a newer
       incarnation has the seat (`IdentityReplaced`), or the operator took it away (`Removed`),
       `receive` raises it, then and ever after.
    6. **Bounds.** Nothing queues without a bound.
    7. **Data** (optional; `Welcome.forward_window` is set where it is offered). Frames that one
       member forwards to another arrive in order, each at most once, and all of them as long as
       neither lost its connection to the service meanwhile. One that does not take its frames holds
       up nobody else's, and no signals.
    8. **Close.** After `close` no task, socket or timer of the transport is left.

    One transport serves one manager, once. The calls are made from one event loop.
    """

    @abstractmethod
    async def open(self, join: Join) -> Welcome:
        """Take a seat. Tries until it succeeds or is cancelled; the caller has the deadline.

        ``join.token`` is the resume token of an earlier process that had this id, or None.

        Raises `RefusedError` when the service refuses for good. A cancelled or failed call leaves
        the transport to be closed.
        """

    @property
    @abstractmethod
    def last_failure(self) -> MeshError | None:
        """Why the latest try to take a seat failed; None if none did.

        A `RefusedError` is a no that may yet become a yes, as when an id is still held for a
        process that lost its connection.
        """

    @abstractmethod
    def send(self, signal: SignalOut) -> None:
        """Send a signal; kept and sent later while the service is away.

        Raises `SignalingBacklog` when too many are kept, `MeshClosed` after `close`.
        """

    @abstractmethod
    def update(self, name: str | None, metadata: Metadata | None) -> None:
        """Tell the room a new name or metadata; None leaves it as it is. Raises like `send`."""

    def doubt(self, *, network_changed: bool) -> None:  # noqa: B027 - some have nothing to doubt
        """The network has changed, or a peer fell silent and maybe the network with it.

        Find out soon whether the connection still works, instead of waiting for its timeout; when
        the network has changed, also try at once what would be tried later. By default nothing is
        done.
        """

    def forward_room(self, to: str) -> int:  # noqa: ARG002 - most services carry no data
        """Bytes of frames that may be forwarded to this member now; 0 when the service is away.

        When it was less than was wanted, a `ForwardRoom` tells that there is more, or a `Welcome`
        that all of it is there. What a frame takes besides its bytes may be counted as well.
        """
        return 0

    def forward(self, to: str, to_incarnation: str, data: bytes) -> None:  # noqa: B027
        """Send a data frame of up to 64 KiB to a member, beyond `forward_room` if need be.

        Dropped while the service is away, when the member is not there or is another incarnation,
        and 64 KiB beyond the room; who needs to know asks the member. By default everything is
        dropped. Signals go first.

        Raises `InvalidData` for an empty frame, `MessageTooLarge` for more than 64 KiB.
        """

    def report(self, links: Sequence[LinkReport]) -> None:  # noqa: B027 - most ask for none
        """Tell the service how these links stand, where `Welcome.report_interval` is set.

        Dropped while the service is away; after its next `Welcome` all are told anew. By default
        everything is dropped.
        """

    @abstractmethod
    async def receive(self) -> SignalingEvent:
        """The next thing that happened, after the `Welcome` that `open` returned.

        Cancelling it loses nothing. Raises what ended the transport (5), and `MeshClosed` after
        `close`.
        """

    @abstractmethod
    async def close(self) -> None:
        """Give the seat up, as far as the service can be reached within a second, and end.

        May be called at any time and more than once. When it is cancelled the transport is closed
        all the same; only the goodbye may not have been said.
        """
