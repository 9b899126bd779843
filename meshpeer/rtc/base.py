"""What the manager asks of a connection, so that a fake can stand in. Imports no WebRTC."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

__all__ = ["Connection", "ConnectionFactory", "ConnectionObserver", "RawChannel", "RemoteCandidate"]

RemoteCandidate = tuple[str, str | None, int | None]
"""candidate line, sdpMid, sdpMLineIndex: W3C WebRTC's RTCIceCandidateInit."""


class RawChannel(Protocol):
    """A data channel (W3C WebRTC, RTCDataChannel)."""

    @property
    def label(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def buffered_amount(self) -> int: ...
    @property
    def lossy(self) -> bool:
        """Whether it may lose messages (max_retransmits or max_packet_life_time is set)."""
        ...

    def send(self, data: str | bytes) -> None: ...
    def close(self) -> None: ...
    def listen(
        self,
        *,
        on_open: Callable[[], None],
        on_message: Callable[[str | bytes], None],
        on_low: Callable[[], None],
        on_close: Callable[[], None],
        low: int,
    ) -> None:
        """Set what is called; ``on_low`` when the buffer falls to ``low`` bytes."""
        ...


class ConnectionObserver(Protocol):
    """What a connection tells. Called from the event loop, never from inside a call to it."""

    def connection_opened(self) -> None:
        """The message channel is open."""

    def connection_lost(self, reason: str) -> None:
        """The connection is over, without `Connection.close` having been called."""

    def frame_received(self, data: bytes) -> None:
        """A frame arrived on the message channel."""

    def buffer_low(self) -> None:
        """The message channel's buffer has room again."""

    def channel_opened(self, channel: RawChannel) -> None:
        """The other side opened a plain data channel."""

    def ice_state_changed(self, state: str) -> None:
        """The ICE state, in W3C WebRTC's words."""


class Connection(Protocol):
    """One RTCPeerConnection with a message channel. Calls are made one after another.

    The coroutines raise `ProtocolError` for what the other side sent and `ConnectionFailed` for
    everything else.
    """

    async def create_offer(self) -> str: ...
    async def accept_offer(self, sdp: str) -> str: ...
    async def accept_answer(self, sdp: str) -> None: ...
    async def add_candidates(self, candidates: Sequence[RemoteCandidate], end: bool) -> None: ...
    @property
    def buffered_amount(self) -> int: ...
    def send_frame(self, data: bytes) -> None:
        """Put a frame into the buffer of the message channel. Dropped when it is not open."""
        ...

    def open_channel(
        self,
        label: str,
        *,
        ordered: bool,
        max_retransmits: int | None,
        max_packet_life_time: int | None,
    ) -> RawChannel: ...
    async def close(self) -> None:
        """End it; what is in the buffer may be lost. May be called more than once."""
        ...


ConnectionFactory = Callable[[ConnectionObserver], Connection]
