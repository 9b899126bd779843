"""A connection without WebRTC, for tests of the layers above it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

from meshpeer.core.events import CandidateInfo, CandidatePair
from meshpeer.errors import ConnectionFailed, ProtocolError
from meshpeer.rtc.base import Candidate, ConnectionObserver, RawChannel

__all__ = ["DIRECT", "TURN", "FakeChannel", "FakeConnection", "FakeNetwork"]

_SDP = (
    "v=0\r\no=- {id} 0 IN IP4 0.0.0.0\r\nm=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\n"
    "a=ice-ufrag:u\r\na=ice-pwd:p\r\na=fingerprint:sha-256 00\r\n"
)


DIRECT = CandidatePair(
    CandidateInfo("host", "192.0.2.1", 1000), CandidateInfo("host", "192.0.2.2", 2000)
)
TURN = CandidatePair(
    CandidateInfo("relay", "192.0.2.9", 1000, "turn:turn.example.org"),
    CandidateInfo("host", "192.0.2.2", 2000),
)


class FakeNetwork:
    """Makes connections and joins the two ends of an offer and its answer."""

    def __init__(self) -> None:
        self.connections: dict[int, FakeConnection] = {}
        self.log: list[str] = []
        """``made N``, ``closed N``, ``spoke N`` (made an offer or an answer), in order."""
        self.pair = DIRECT
        """What every end selects."""
        self.stalled = False
        """While true nothing leaves the buffers."""
        self.hang: set[str] = set()
        """Operations that never end: ``create_offer``, ``accept_offer``, ``close`` …"""
        self.fail: list[str] = []
        """Operations that fail, each once."""
        self._ids = count(1)

    def factory(self, observer: ConnectionObserver) -> FakeConnection:
        number = next(self._ids)
        connection = self.connections[number] = FakeConnection(self, number, observer)
        self.log.append(f"made {number}")
        return connection

    @property
    def open(self) -> list[int]:
        return [c.number for c in self.connections.values() if not c.closed]

    def run(self) -> None:
        """Let the buffers go on."""
        self.stalled = False
        for connection in self.connections.values():
            connection.drain()

    async def operation(self, name: str) -> None:
        if name in self.fail:
            self.fail.remove(name)
            raise ConnectionFailed(f"{name} was told to fail")
        await asyncio.sleep(0)
        if name in self.hang:
            await asyncio.get_running_loop().create_future()


class FakeConnection:
    """One end."""

    def __init__(self, network: FakeNetwork, number: int, observer: ConnectionObserver) -> None:
        self.network = network
        self.number = number
        self.observer = observer
        self.remote: FakeConnection | None = None
        self.closed = False
        self.sent: list[bytes] = []
        self.candidates: list[Candidate] = []
        self.generations: list[int] = []
        """Those that candidates came for."""
        self._buffer: list[bytes] = []
        self._buffered = 0

    def _call(self, call: Callable[..., None], *args: Any) -> None:
        asyncio.get_running_loop().call_soon(call, *args)

    async def create_offer(self, generation: int) -> str:
        await self.network.operation("create_offer")
        if not generation:
            self.network.log.append(f"spoke {self.number}")
        return _SDP.format(id=self.number)

    async def accept_offer(self, generation: int, sdp: str) -> str:
        await self.network.operation("accept_offer")
        self.remote = self._other(sdp)
        if not generation:
            self.network.log.append(f"spoke {self.number}")
        return _SDP.format(id=self.number)

    async def accept_answer(self, generation: int, sdp: str) -> None:
        await self.network.operation("accept_answer")
        self.remote = other = self._other(sdp)
        if other.remote is self and not other.closed:
            for end in (self, other):
                self._call(end.observer.pair_selected, generation, self.network.pair)
                if not generation:
                    self._call(end.observer.connection_opened)

    def _other(self, sdp: str) -> FakeConnection:
        try:
            return self.network.connections[int(sdp.split()[2])]
        except (ValueError, IndexError, KeyError):
            raise ProtocolError("no fake description", code="bad_sdp", field="$.sdp") from None

    async def add_candidates(
        self, generation: int, candidates: Sequence[Candidate], end: bool
    ) -> None:
        await self.network.operation("add_candidates")
        self.candidates += candidates
        self.generations.append(generation)

    def ping(self, nonce: int) -> None:
        if self.remote is not None and not self.remote.closed and not self.network.stalled:
            self._call(self.remote.observer.heard, True)
            self._call(self.observer.ponged, nonce)

    @property
    def buffered_amount(self) -> int:
        return self._buffered

    def send_frame(self, data: bytes) -> None:
        self.sent.append(data)
        self._buffer.append(data)
        self._buffered += len(data)
        if not self.network.stalled:
            self.drain()

    def drain(self) -> None:
        buffer, self._buffer, self._buffered = self._buffer, [], 0
        if self.remote is not None and not self.remote.closed and not self.closed:
            for data in buffer:
                self._call(self.remote.receive, data)
        if buffer:
            self._call(self.observer.buffer_low)

    def receive(self, data: bytes) -> None:
        if not self.closed:
            self.observer.frame_received(data)

    def open_channel(
        self,
        label: str,
        *,
        ordered: bool,
        max_retransmits: int | None,
        max_packet_life_time: int | None,
    ) -> RawChannel:
        raise NotImplementedError("plain channels are tested with real connections")

    def lose(self, reason: str = "lost by the test") -> None:
        """End it as a network does."""
        self._call(self.observer.connection_lost, reason)

    async def close(self) -> None:
        await self.network.operation("close")
        if not self.closed:
            self.closed = True
            self.network.log.append(f"closed {self.number}")
            if self.remote is not None and not self.remote.closed:
                self.remote.lose("the other side closed it")


class FakeChannel:
    """A plain channel of a connection, which takes all that is sent."""

    label, state, lossy = "c", "open", False

    def __init__(self) -> None:
        self.buffered_amount = 0
        self.sent: list[str | bytes] = []
        self.on: dict[str, Callable[..., None]] = {}

    def listen(self, *, low: int, **on: Callable[..., None]) -> None:
        self.on = on
        self.low = low

    def send(self, data: str | bytes) -> None:
        self.sent.append(data)

    def close(self) -> None:
        self.on = {}
