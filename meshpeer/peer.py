"""The public faces of the others in the room: `Peer`, `Message` and `Channel`."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from os import PathLike
from typing import Any, NamedTuple, Protocol

from msgspec import Struct

from meshpeer.core.delivery import Outgoing
from meshpeer.core.events import Event, Path, PeerState, UndeliveredMessage
from meshpeer.core.frames import MAX_CHANNEL, OVERHEAD, RESERVED, Role, encode_message
from meshpeer.core.values import encode_value
from meshpeer.errors import (
    ChannelClosed,
    ConfigError,
    InvalidData,
    MessageTooLarge,
    PeerClosed,
    UsageError,
)
from meshpeer.files import FileProgress, FileSent
from meshpeer.rtc.base import RawChannel
from meshpeer.streams import Bell, Stream

__all__ = [
    "Budget",
    "Channel",
    "ChannelOpened",
    "Line",
    "LinkFacts",
    "Message",
    "PathTest",
    "Peer",
    "PeerHost",
    "PeerRecord",
    "check_label",
    "encoded",
]


class Message(Struct, frozen=True, eq=False):
    """Something a peer sent."""

    sender: Peer
    data: Any
    """What was given to `Peer.send`: str, bytes, or what JSON makes of the rest."""
    channel: str
    path: Path
    """How it came."""
    received_at: float
    """When it arrived here, in seconds since the epoch."""
    request: int = 0
    """The sender's number for it when it waits for an answer; 0 when it does not."""

    @property
    def wants_reply(self) -> bool:
        """Whether it was sent by `Peer.request`, and `reply` answers it."""
        return self.request > 0

    async def reply(self, data: Any) -> None:
        """Answer a request; returns when the answer is accepted, as `Peer.send` does.

        The first answer counts; one that comes too late is dropped over there. Raises `UsageError`
        when nobody asked, and what `Peer.send` raises.
        """
        await self._answer(data, Role.REPLY)

    async def reply_error(self, text: str) -> None:
        """Answer a request with an error: over there `Peer.request` raises `RequestFailed` with
        this text. Raises like `reply`, and `InvalidData` for anything but str."""
        if not isinstance(text, str):
            raise InvalidData(f"an error is text, not {type(text).__name__}")
        await self._answer(text, Role.ERROR)

    async def _answer(self, data: Any, role: Role) -> None:
        if not self.wants_reply:
            raise UsageError("nobody waits for an answer to this message: it was sent by Peer.send")
        host = self.sender._host  # noqa: SLF001 - of this module
        message = encoded(data, self.channel, host.max_message_size, role, self.request)
        await host.send(self.sender, message)


def encoded(
    data: Any, channel: str, limit: int, role: Role = Role.PLAIN, number: int = 0
) -> Outgoing:
    """``data`` ready to be sent. Raises `InvalidData`, `MessageTooLarge`."""
    kind, payload = encode_value(data)
    if len(payload) > limit:
        raise MessageTooLarge(
            f"the message has {len(payload)} bytes, the limit is {limit} "
            "(MeshConfig.max_message_size): send it in parts"
        )
    return Outgoing(channel, len(payload), encode_message(kind, payload, role, number))


def check_label(what: str, label: str) -> None:
    """Raise `ConfigError` unless it can name a channel."""
    try:
        size = len(label.encode())
    except UnicodeEncodeError as exc:
        raise ConfigError(f"{what} must be valid Unicode: {exc}") from None
    if not 0 < size <= MAX_CHANNEL:
        raise ConfigError(
            f"{what} must be a name of 1 to {MAX_CHANNEL} bytes of UTF-8, not {label!r}"
        )
    if label.startswith(RESERVED):
        raise ConfigError(f"{what} {label!r}: names that begin with {RESERVED!r} are reserved")


class LinkFacts(NamedTuple):
    """How it stands with a peer."""

    state: PeerState
    ice_state: str
    path: Path | None
    rtt: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PathTest:
    """A round trip to a peer over its direct path (or TURN), or why there was none."""

    peer_id: str
    path: Path | None
    rtt: float | None
    """Seconds there and back through the message channel; None when there was no answer."""
    error: str | None
    """What went wrong; None when nothing did."""


class PeerHost(Protocol):
    """What a `Peer` needs of its manager."""

    @property
    def max_message_size(self) -> int: ...
    def check_running(self) -> None: ...
    def link_facts(self, peer: Peer) -> LinkFacts: ...
    async def send(self, peer: Peer, message: Outgoing) -> None: ...
    async def request(self, peer: Peer, data: Any, channel: str, timeout: float | None) -> Any: ...
    async def flush(self, peer: Peer, timeout: float | None) -> None: ...
    async def send_file(
        self,
        peer: Peer,
        path: str | PathLike[str],
        on_progress: Callable[[FileProgress], object] | None,
        name: str | None,
    ) -> FileSent: ...
    def open_channel(
        self,
        peer: Peer,
        label: str,
        *,
        ordered: bool,
        max_retransmits: int | None,
        max_packet_life_time: int | None,
    ) -> Channel: ...


@dataclass(eq=False, slots=True)
class Line:
    """Messages that wait until their channel has room, in the order in which they came."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by the message whose turn it is."""
    waiting: int = 0


@dataclass(eq=False, slots=True)
class PeerRecord:
    """What the manager keeps of a peer, out of the public interface."""

    name: str | None
    metadata: dict[str, Any]
    budget: Budget
    closed_reason: str | None = None
    bell: Bell = field(default_factory=Bell)
    """Rings when the state, the credit or the buffer has changed."""
    lines: dict[str, Line] = field(default_factory=dict)
    """Who waits to send, on each channel where somebody does."""
    burst: int = 0
    """What was accepted since others had their turn, in bytes."""
    requests: dict[int, asyncio.Future[Any]] = field(default_factory=dict)
    """The requests that wait for their answers."""
    undelivered: tuple[UndeliveredMessage, ...] = ()
    complained: float = float("-inf")
    """When the latest `BadInput` about its files was told."""
    channels: set[Channel] = field(default_factory=set)
    pings_sent: int = 0
    """Ping frames, and the number of the latest that was answered."""
    pings_answered: int = 0


class Peer:
    """Somebody in the room, as one incarnation: a process that restarts comes as another `Peer`."""

    __slots__ = ("__weakref__", "_host", "_id", "_incarnation", "_record")

    def __init__(self, host: PeerHost, peer_id: str, incarnation: str, record: PeerRecord) -> None:
        self._host = host
        self._id = peer_id
        self._incarnation = incarnation
        self._record = record

    @property
    def id(self) -> str:
        """The name the peer is addressed by, unique in the room."""
        return self._id

    @property
    def incarnation(self) -> str:
        """Random, and another one for every process that holds the id."""
        return self._incarnation

    @property
    def name(self) -> str | None:
        """What people read; not unique."""
        return self._record.name

    @property
    def metadata(self) -> dict[str, Any]:
        """What the peer's application tells of itself."""
        return self._record.metadata

    @property
    def state(self) -> PeerState:
        """``new → connecting → connected ⇄ disconnected → failed``, and ``closed``."""
        if self._record.closed_reason is not None:
            return PeerState.CLOSED
        return self._host.link_facts(self).state

    @property
    def ice_state(self) -> str:
        """``new → gathering → checking → connected ⇄ disconnected → failed``, and ``closed``: the
        current connection's, in W3C WebRTC's words. An ICE restart does not begin it anew."""
        if self._record.closed_reason is not None:
            return "closed"
        return self._host.link_facts(self).ice_state

    @property
    def path(self) -> Path | None:
        """How data flows now; None while it does not."""
        return None if self._record.closed_reason is not None else self._host.link_facts(self).path

    @property
    def closed_reason(self) -> str | None:
        """Why the peer is gone; None while it is there."""
        return self._record.closed_reason

    @property
    def rtt(self) -> float | None:
        """The latest round trip in seconds; None before the first."""
        return None if self._record.closed_reason is not None else self._host.link_facts(self).rtt

    async def send(self, data: Any, channel: str = "default") -> None:
        """Send str, bytes or JSON-able data; returns when it is accepted.

        What is accepted reaches the other application exactly once, and in the order in which it
        was accepted on its channel, whatever happens to the path, as long as both processes live.
        Otherwise `MessagesUndelivered` tells. Waits only while the channel has
        ``MeshConfig.send_window`` bytes that were not acknowledged; there need be no path yet.

        Raises `InvalidData`, `MessageTooLarge` (over ``MeshConfig.max_message_size`` or over the
        other side's limit), `ConfigError` for a name that no channel can have, `TooManyChannels`
        for one more than `MeshConfig.max_channels` over there, `PeerClosed` when the peer is gone
        (`Undelivered` when it went meanwhile), `MeshClosed`. When it is cancelled, the message was
        not accepted.
        """
        if channel != "default":
            check_label("channel", channel)
        host = self._host
        await host.send(self, encoded(data, channel, host.max_message_size))

    async def flush(self, timeout: float | None = None) -> None:
        """Wait until everything accepted so far has arrived over there, and is acknowledged.

        It has arrived when that process has it, read or not; but an application that does not read
        takes no more than its windows. ``timeout`` is in seconds, None for no
        limit. Raises `MeshTimeout`, `Undelivered` when the peer is gone and not all had arrived,
        `MeshClosed`. Cancelling it changes nothing of what was sent.
        """
        await self._host.flush(self, timeout)

    async def request(
        self, data: Any, timeout: float | None = 30.0, *, channel: str = "default"
    ) -> Any:
        """Send a message that wants an answer, and return the answer's data.

        Over there it is a `Message` like any other, and `Message.reply` answers it. ``timeout`` is
        in seconds, None for no limit. Raises `RequestFailed` with the other side's text when it
        answered with `Message.reply_error`, `MeshTimeout`, `PeerClosed` when the peer is gone, and
        what `send` raises. When it is cancelled, the request may arrive; its answer is dropped.
        """
        check_label("channel", channel)
        return await self._host.request(self, data, channel, timeout)

    async def send_file(
        self,
        path: str | PathLike[str],
        on_progress: Callable[[FileProgress], object] | None = None,
        *,
        name: str | None = None,
    ) -> FileSent:
        """Send a file; returns when the other side has stored it and found its SHA-256 right.

        Over there `PeerManager.receive_file` takes it, and is waited for. ``name`` is what the file
        is offered as, by default the last part of ``path``. A transfer that broke, even because a
        process ended, goes on where it was when the same file is sent again. Files to one peer go
        one after another. ``on_progress`` is called at the beginning, at the end, and at most ten
        times a second.

        Raises `TransferFailed` when the other side refuses it or can't store it, `PeerClosed` when
        the peer is gone, `OSError` when the file can't be read, `ConfigError` for a name that can't
        be, `MeshClosed`. When it is cancelled, the other side is told and keeps what it has.
        """
        return await self._host.send_file(self, path, on_progress, name)

    async def open_channel(
        self,
        label: str,
        *,
        ordered: bool = True,
        max_retransmits: int | None = None,
        max_packet_life_time: int | None = None,
    ) -> Channel:
        """Open a plain data channel on the current connection (W3C WebRTC, createDataChannel).

        Returns when it is open; the other side gets a `ChannelOpened` event. Unlike messages, a
        plain channel ends with its connection, and nothing holds the sender back but its buffer.
        ``max_retransmits`` (a number) or ``max_packet_life_time`` (milliseconds), not both, make it
        partially reliable (RFC 8831, section 6.4).

        Raises `PeerClosed` when the peer is gone, `ChannelClosed` when the connection ends first,
        `ConfigError` for wrong options, `MeshClosed`. Waits for a direct path, or one over TURN;
        the relay carries none of it. When it is cancelled, the channel is closed.
        """
        check_label("label", label)
        if max_retransmits is not None and max_packet_life_time is not None:
            raise ConfigError(
                "a channel has max_retransmits or max_packet_life_time, not both "
                f"(given {max_retransmits} and {max_packet_life_time})"
            )
        for name, value in (
            ("max_retransmits", max_retransmits),
            ("max_packet_life_time", max_packet_life_time),
        ):
            if value is not None and not 0 <= value <= 65535:
                raise ConfigError(f"{name} must be between 0 and 65535, not {value!r}")
        while self.path in (None, Path.RELAY):
            self._host.check_running()
            if self.state is PeerState.CLOSED:
                raise PeerClosed(
                    f"peer {self._id!r} is gone ({self._record.closed_reason})",
                    reason=self._record.closed_reason or "closed",
                )
            await self._record.bell.wait()
        channel = self._host.open_channel(
            self,
            label,
            ordered=ordered,
            max_retransmits=max_retransmits,
            max_packet_life_time=max_packet_life_time,
        )
        try:
            await channel.wait_open()
        except BaseException:
            await channel.close()
            raise
        return channel

    def __repr__(self) -> str:
        name = "" if self.name is None else f" {self.name!r}"
        return f"<Peer {self._id!r}{name} {self.state}>"


@dataclass(slots=True)
class Budget:
    """What the plain channels of one peer may keep unread, together. That of a channel which nobody
    has any more is given back."""

    limit: int
    used: int = 0

    @property
    def exhausted(self) -> bool:
        """Whether there is more than there may be."""
        return self.used > self.limit


def _cost(data: str | bytes) -> int:
    return OVERHEAD + (len(data.encode()) if isinstance(data, str) else len(data))


class _Share:
    """What one channel keeps of its peer's budget."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self._used = 0

    def add(self, cost: int) -> None:
        self._used += cost
        self.budget.used += cost

    def give_back(self) -> None:
        self.add(-self._used)


class Channel:
    """A plain data channel (RFC 8831). Iterate over it to read; str or bytes, as they were sent.

    What is not read is kept, up to ``MeshConfig.receive_window`` bytes of all channels with the
    peer. Beyond it a channel that may lose messages loses its oldest, and any other one that gets
    more is closed: WebRTC gives a receiver no way to hold the sender back.
    """

    def __init__(
        self,
        raw: RawChannel,
        peer: Peer,
        *,
        budget: Budget,
        send_buffer: int,
        closed: Callable[[Channel], None],
    ) -> None:
        self._raw = raw
        self._peer = peer
        self._share = _Share(budget)
        weakref.finalize(self, self._share.give_back).atexit = False
        # Who waits for room to send goes in the order of the calls.
        self._line = asyncio.Lock()
        self._send_buffer = send_buffer
        self._closed = closed
        self._bell = Bell()
        self._stream: Stream[str | bytes] = Stream(self._taken)
        self._closed_because: str | None = None
        raw.listen(
            on_open=self._bell.ring,
            on_message=self._on_message,
            on_low=self._bell.ring,
            on_close=self._on_close,
            low=send_buffer // 2,
        )

    @property
    def label(self) -> str:
        """The name given by the side that opened it; not unique."""
        return self._raw.label

    @property
    def peer(self) -> Peer:
        """The peer at the other end."""
        return self._peer

    @property
    def state(self) -> str:
        """``connecting → open → closing → closed``."""
        return "closed" if self._closed_because is not None else self._raw.state

    async def send(self, data: str | bytes) -> None:
        """Send one message; waits while more than ``MeshConfig.send_buffer`` bytes wait to go out.

        Raises `ChannelClosed`, `InvalidData` for anything but str and bytes, `MessageTooLarge` over
        65536 bytes. When it is cancelled, nothing was sent.
        """
        if not isinstance(data, str | bytes):
            raise InvalidData(f"a plain channel sends str or bytes, not {type(data).__name__}")
        size = len(data.encode()) if isinstance(data, str) else len(data)
        if size > MAX_PLAIN:
            raise MessageTooLarge(
                f"the message has {size} bytes, a plain channel takes {MAX_PLAIN}: "
                "use Peer.send, or send it in parts"
            )
        async with self._line:
            await self.wait_open()
            while self._raw.buffered_amount > self._send_buffer:
                await self._bell.wait()
                self._check_open()
            self._raw.send(data)

    async def wait_open(self) -> None:
        """Wait until it is open. Raises `ChannelClosed` when it closes first."""
        while True:
            self._check_open()
            if self._raw.state == "open":
                return
            await self._bell.wait()

    def _check_open(self) -> None:
        if self._closed_because is not None:
            raise ChannelClosed(
                f"channel {self.label!r} to {self._peer.id!r} is closed ({self._closed_because})",
                reason=self._closed_because,
            )

    async def close(self) -> None:
        """Close it on both sides. What was received can still be read."""
        self._end("closed here")

    def __aiter__(self) -> AsyncIterator[str | bytes]:
        return self._stream

    # --- from the connection ---

    def _on_message(self, data: str | bytes) -> None:
        if self._closed_because is not None:
            return
        budget = self._share.budget
        self._share.add(_cost(data))
        self._stream.put(data)
        while budget.exhausted and self._raw.lossy and len(self._stream):
            self._stream.take()
        if budget.exhausted:
            self._end(f"more than {budget.limit} bytes from this peer were not read")

    def _taken(self, data: str | bytes) -> str | bytes:
        # By this the stream holds the channel: whoever still reads has not forgotten it.
        self._share.add(-_cost(data))
        return data

    def _on_close(self) -> None:
        self._end("closed by the other side, or with its connection")

    def abandon(self, reason: str) -> None:
        """The peer is gone, and its channels with it. Called by the manager."""
        self._end(reason)

    def _end(self, reason: str) -> None:
        if self._closed_because is None:
            self._closed_because = reason
            self._closed(self)
            self._raw.close()
            self._stream.end()
            self._bell.ring()

    def __repr__(self) -> str:
        return f"<Channel {self.label!r} to {self._peer.id!r} {self.state}>"


MAX_PLAIN = 65_536
"""Bytes of the largest message on a plain channel: what every endpoint takes (RFC 8841)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelOpened(Event):
    """The other side opened a plain data channel."""

    peer_id: str
    channel: Channel
