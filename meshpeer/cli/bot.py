"""One bot of `meshpeer demo`, a process of its own that its parent leads by JSON lines.

It is told on standard input ``{"do": "start", "peers": [id, …]}``, ``{"do": "finish"}``, ``{"do":
"compare", "sent": {peer: number, …}}`` and perhaps ``{"do": "stay"}``, which makes it a bot that
people talk to; on standard output it says ``ready``, ``progress`` (five times a second),
``finished`` and ``result``, each with a row for each of the other bots. The end of its input, which
is also the end of its parent, ends it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Annotated, Any

import typer

from meshpeer.cli.common import (
    JoinTokenOption,
    LogJson,
    LogLevel,
    LogLevelOption,
    Stop,
    configure_logging,
    read_lines,
    run,
    until_stopped,
)
from meshpeer.cli.room_bot import RoomBot
from meshpeer.core.events import Event, PeerJoined, PeerState, PeerStateChanged
from meshpeer.errors import MeshClosed, MeshTimeout, PeerClosed
from meshpeer.manager import PeerManager
from meshpeer.peer import Message, Peer
from meshpeer.streams import Bell

__all__ = ["Row", "bot"]

_PAUSE = 0.02
"""Seconds between two messages to the same peer."""
_PROGRESS = 0.2
"""Seconds between two reports."""
_PATIENCE = 5.0
"""Seconds that a message may take."""


@dataclass(slots=True, kw_only=True)
class Row:
    """How it stands between one bot and one peer. Times are in seconds."""

    peer: str
    state: str = PeerState.NEW
    path: str | None = None
    time_to_connect: float | None = None
    """From the bot's `PeerManager.start` to the first connection."""
    round_trip: float | None = None
    """The median, from sending a message to the confirmation that it arrived."""
    messages_sent: int = 0
    messages_received: int = 0
    in_order: bool = True
    """Each message had the number after the one before."""


@dataclass(slots=True)
class _Pair:
    row: Row
    round_trips: deque[float] = field(default_factory=lambda: deque(maxlen=1000))


def bot(
    relay: str,
    room: str,
    peer_id: Annotated[str, typer.Argument()],
    join_token: JoinTokenOption = None,
    log_level: LogLevelOption = LogLevel.WARNING,
    log_json: LogJson = False,
) -> None:
    """One bot of the demo."""
    configure_logging(log_level, log_json)

    async def main() -> int:
        # What loads once is not what a connection costs.
        import_module("meshpeer.rtc.connection")
        mesh = PeerManager(
            relay, room=room, peer_id=peer_id, join_token=join_token, metadata={"bot": True}
        )
        await _Bot(mesh).run()
        return 0

    run(main)


class _Bot:
    def __init__(self, mesh: PeerManager) -> None:
        self._mesh = mesh
        self._pairs: dict[str, _Pair] = {}
        self._others: frozenset[str] = frozenset()
        self._start = asyncio.Event()
        self._finish = asyncio.Event()
        self._compare: asyncio.Future[dict[str, int]] = asyncio.Future()
        self._stay = asyncio.Event()
        self._received = Bell()
        self._senders: set[asyncio.Task[None]] = set()
        self._started_at = 0.0

    async def run(self) -> None:
        async with until_stopped() as stop, asyncio.TaskGroup() as group:
            group.create_task(self._obey(stop))
            self._say("ready")
            await self._start.wait()
            group.create_task(self._watch(self._mesh.events(), group))
            group.create_task(self._count(self._mesh.messages()))
            self._started_at = perf_counter()
            async with self._mesh:
                progress = group.create_task(self._progress())
                await self._finish.wait()
                if self._senders:
                    await asyncio.wait(self._senders, timeout=_PATIENCE)
                progress.cancel()
                self._say("finished")
                with suppress(TimeoutError):
                    sent = await self._compare
                    async with asyncio.timeout(_PATIENCE):
                        while any(
                            n != self._pair(p).row.messages_received for p, n in sent.items()
                        ):
                            await self._received.wait()
                self._say("result")
                await self._stay.wait()
                if error := await RoomBot(self._mesh, Path(__file__)).serve():
                    raise error

    async def _obey(self, stop: Stop) -> None:
        async for line in read_lines(sys.stdin.fileno()):
            match json.loads(line):
                case {"do": "start", "peers": list() as peers}:
                    self._others = frozenset(peers)
                    self._start.set()
                case {"do": "finish"}:
                    self._finish.set()
                case {"do": "compare", "sent": dict() as sent}:
                    self._compare.set_result(sent)
                case {"do": "stay"}:
                    self._stay.set()
                case other:
                    raise AssertionError(f"told {other!r}")
        stop.now()

    def _say(self, event: str) -> None:
        rows: list[dict[str, Any]] = []
        for peer_id, pair in self._pairs.items():
            if (peer := self._mesh.peers.get(peer_id)) is not None:
                pair.row.state, pair.row.path = peer.state, peer.path
            else:
                pair.row.state, pair.row.path = PeerState.CLOSED, None
            pair.row.round_trip = median(pair.round_trips) if pair.round_trips else None
            rows.append(asdict(pair.row))
        print(json.dumps({"event": event, "rows": rows}), flush=True)

    def _pair(self, peer_id: str) -> _Pair:
        return self._pairs.setdefault(peer_id, _Pair(Row(peer=peer_id)))

    async def _progress(self) -> None:
        while True:
            self._say("progress")
            await asyncio.sleep(_PROGRESS)

    async def _watch(self, events: AsyncIterator[Event], group: asyncio.TaskGroup) -> None:
        async for event in events:
            match event:
                case PeerJoined(peer_id=peer_id) if peer_id in self._others:
                    pair = self._pair(peer_id)
                    # It may have left since.
                    if (peer := self._mesh.peers.get(peer_id)) is not None:
                        self._senders.add(group.create_task(self._send(peer, pair)))
                case PeerStateChanged(peer_id=peer_id, state=PeerState.CONNECTED) if (
                    peer_id in self._others
                ):
                    row = self._pair(peer_id).row
                    if row.time_to_connect is None:
                        row.time_to_connect = perf_counter() - self._started_at
                case _:
                    pass

    async def _count(self, messages: AsyncIterator[Message]) -> None:
        async for message in messages:
            if message.sender.id not in self._others:
                continue  # a person, who came early
            row = self._pair(message.sender.id).row
            row.messages_received += 1
            row.in_order = row.in_order and message.data == row.messages_received
            self._received.ring()

    async def _send(self, peer: Peer, pair: _Pair) -> None:
        """Send numbers until it is time to finish, each when the one before has arrived."""
        with suppress(PeerClosed, MeshClosed):
            await self._mesh.wait_for_peer(peer.id)
            while not self._finish.is_set():
                sent_at = perf_counter()
                await peer.send(pair.row.messages_sent + 1)
                pair.row.messages_sent += 1
                with suppress(MeshTimeout):
                    await peer.flush(_PATIENCE)
                    pair.round_trips.append(perf_counter() - sent_at)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._finish.wait(), _PAUSE)
