"""What the manager asks of a connection, so that a fake can stand in. Imports no WebRTC."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from meshpeer.config import IceServer
from meshpeer.core.events import CandidatePair, IceServerReport

__all__ = [
    "LOW_BUFFER",
    "Candidate",
    "Connection",
    "ConnectionFactory",
    "ConnectionObserver",
    "RawChannel",
]

LOW_BUFFER = 16 * 1024
"""Bytes in the buffer of the message channel at which `ConnectionObserver.buffer_low` is told. So
little, because what is in there can't be overtaken."""

Candidate = tuple[str, str | None, int | None]
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
        """The message channel's buffer has fallen to `LOW_BUFFER`."""

    def channel_opened(self, channel: RawChannel) -> None:
        """The other side opened a plain data channel."""

    def ice_state_changed(self, state: str) -> None:
        """How far ICE has come: ``gathering``, ``checking`` or ``connected``. A restart does not
        begin it anew. That a path fell silent, or that ICE failed, the link says."""

    def ice_servers(self) -> Sequence[IceServer]:
        """The STUN and TURN servers to ask, read when a generation begins to gather."""
        ...

    def candidates_found(self, generation: int, candidates: Sequence[Candidate], end: bool) -> None:
        """Local candidates that the description of this generation did not have; ``end``: these
        are the last."""

    def server_reported(self, report: IceServerReport) -> None:
        """What came of asking a STUN or TURN server."""

    def pair_selected(self, generation: int, pair: CandidatePair) -> None:
        """Data goes over this pair from now on. The first time for a generation it has taken over;
        told again when its pair changes, or becomes known better."""

    def heard(self, answered: bool) -> None:
        """Something of the other side arrived, whatever it was; told at most ten times a second.
        ``answered``: it was a check, and was answered, so the other side hears of us as well."""

    def ponged(self, nonce: int) -> None:
        """The answer to `Connection.ping` arrived."""

    def path_lost(self, reason: str) -> None:
        """What the selected pair goes over has ended (a TURN server's TCP connection, say). The
        connection lives on, and waits for another generation."""


class Connection(Protocol):
    """One RTCPeerConnection with a message channel. Calls are made one after another.

    The coroutines raise `ProtocolError` for what the other side sent and `ConnectionFailed` for
    everything else.

    Generation 0 is the first negotiation; each higher number is an ICE restart (RFC 8445, section
    9) under the same DTLS association. A restart that does not succeed changes nothing: what
    carries data goes on carrying it. A later restart replaces one that has not taken over.
    """

    async def create_offer(self, generation: int) -> str:
        """An offer with the candidates of this host; others follow by `candidates_found`."""
        ...

    async def accept_offer(self, generation: int, sdp: str) -> str:
        """The answer to an offer, likewise. A restart of our own that waits for its answer is given
        up for it."""
        ...

    async def accept_answer(self, generation: int, sdp: str) -> None:
        """Take the answer to the latest `create_offer`; of another generation, it is ignored."""

    async def add_candidates(
        self, generation: int, candidates: Sequence[Candidate], end: bool
    ) -> None:
        """Take remote candidates. Those of a generation that is over are ignored, and so are those
        that name another ``ufrag``; the good ones count even if others are bad."""

    def ping(self, nonce: int) -> None:
        """Send a check over the selected pair (RFC 7675); dropped when there is none."""
        ...

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
