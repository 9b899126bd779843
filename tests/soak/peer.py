"""The program that runs on each host: sends numbered messages to everybody, and keeps accounts.

``python -m tests.soak.peer --relay URL --id ID --stun URL --rate RATE`` writes one JSON object a
line, as `tests.network.peer` does. It reads from standard input:

* ``join PEERS``: enter the room, and say ``connected`` when so many are.
* ``send``: begin to send. Every second ``count`` says how it goes.
* ``stop``: send no more, wait until all is acknowledged, and say ``flushed`` with what was sent.
* ``expect JSON``: what each sender has sent on each channel; ``complete`` says it is all there.
* ``report``: say ``result``, whatever has come until now.

Whatever must not happen is said as ``wrong``. It ends with its standard input.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter, defaultdict
from typing import Any

import meshpeer.rtc.connection  # noqa: F401 - it is imported late, all eight at the same time
from meshpeer.config import IceServer, MeshConfig
from meshpeer.core.events import (
    BadInput,
    Closed,
    Event,
    MessagesUndelivered,
    PeerJoined,
    PeerLeft,
    PeerStateChanged,
    Replaced,
    SignalingChanged,
)
from meshpeer.errors import MeshError
from meshpeer.manager import PeerManager
from meshpeer.peer import Message, Peer
from meshpeer.streams import Bell
from tests.soak.stream import LARGE, Ledger, encode

__all__ = ["CHANNELS"]

CHANNELS = ("default", "side")


def _say(event: str, **values: Any) -> None:
    line = {"at": time.monotonic(), "event": event, **values}
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


class _Accounts:
    """What was sent to whom, and what came from whom."""

    def __init__(self) -> None:
        self.sent: dict[str, Counter[str]] = defaultdict(Counter)
        self.ledgers: dict[str, dict[str, Ledger]] = defaultdict(lambda: defaultdict(Ledger))
        self.paths: dict[str, Counter[str]] = defaultdict(Counter)
        self.pauses: dict[str, float] = defaultdict(float)
        """The longest time without a message, by sender."""
        self.bell = Bell()
        self._latest: dict[str, float] = {}

    def take(self, message: Message) -> None:
        sender, now = message.sender.id, time.monotonic()
        self.ledgers[sender][message.channel].take(message.data)
        self.paths[sender][message.path] += 1
        pause = now - self._latest.get(sender, now)
        self.pauses[sender] = max(self.pauses[sender], pause)
        self._latest[sender] = now
        self.bell.ring()

    async def complete(self, expected: dict[str, dict[str, int]]) -> None:
        """Wait until everything is there."""
        while any(
            self.ledgers[sender][channel].lost(count)
            for sender, channels in expected.items()
            for channel, count in channels.items()
        ):
            await self.bell.wait()

    def count(self) -> dict[str, Any]:
        ledgers = [each for channels in self.ledgers.values() for each in channels.values()]
        return {
            "sent": sum(channels.total() for channels in self.sent.values()),
            "received": sum(each.received for each in ledgers),
        }

    def result(self) -> dict[str, Any]:
        return {
            "sent": self.sent,
            "got": {
                sender: {
                    channel: {
                        "received": each.received,
                        "highest": each.highest,
                        "repeated": each.repeated,
                        "reordered": each.reordered,
                        "damaged": each.damaged,
                        "missing": sorted(each.missing),
                    }
                    for channel, each in channels.items()
                }
                for sender, channels in self.ledgers.items()
            },
            "paths": self.paths,
            "pauses": self.pauses,
        }


class _Soak:
    def __init__(self, mesh: PeerManager, rate: float, tasks: asyncio.TaskGroup) -> None:
        self._mesh = mesh
        self._rate = rate
        self._tasks = tasks
        self._accounts = _Accounts()
        self._stopped = asyncio.Event()
        self._sending: list[asyncio.Task[None]] = []
        self._incarnations: dict[str, str] = {}

    def hear(self, word: str, rest: str) -> None:
        """Do what standard input says."""
        start = self._tasks.create_task
        match word:
            case "join":
                start(self._connected(int(rest)))
            case "send":
                self._sending = [
                    start(self._send(peer, channel))
                    for peer in self._mesh.peers.values()
                    for channel in CHANNELS
                ]
                start(self._count())
            case "stop":
                self._stopped.set()
                start(self._flush())
            case "expect":
                start(self._complete(json.loads(rest)))
            case "report":
                _say("result", **self._accounts.result())

    async def messages(self) -> None:
        async for message in self._mesh.messages():
            self._accounts.take(message)

    async def events(self) -> None:
        async for event in self._mesh.events():
            self._event(event)

    def _event(self, event: Event) -> None:
        match event:
            case PeerJoined(peer_id=peer, incarnation=incarnation):
                first = self._incarnations.setdefault(peer, incarnation)
                if first != incarnation:
                    _say("wrong", text=f"{peer} came as another incarnation")
            case PeerLeft(peer_id=peer, reason=reason) if reason != "closed":
                _say("wrong", text=f"{peer} was taken for gone: {reason}")
            case MessagesUndelivered(peer_id=peer, messages=messages):
                _say("wrong", text=f"{len(messages)} messages to {peer} were given up")
            case BadInput(peer_id=peer, error=error):
                _say("wrong", text=f"refused what {peer or 'the relay'} sent: {error}")
            case Replaced():
                _say("wrong", text="replaced by another process")
            case Closed(reason=reason, error=error) if error is not None:
                _say("wrong", text=f"closed: {reason}: {error}")
            case PeerStateChanged(peer_id=peer, state=state, path=path, reason=reason):
                epoch = event.epoch
                _say("state", peer=peer, state=state, path=path, epoch=epoch, reason=reason)
            case SignalingChanged(state=state, reason=reason):
                _say("signaling", state=state, reason=reason)
            case _:
                pass

    async def _connected(self, count: int) -> None:
        await self._mesh.wait_for_peers(count)
        _say("connected")

    async def _send(self, peer: Peer, channel: str) -> None:
        sent = self._accounts.sent[peer.id]
        try:
            while not self._stopped.is_set():
                # Now and then several at once, which travel together.
                burst = 20 if random.random() < 0.02 else 1
                for _ in range(burst):
                    await peer.send(encode(sent[channel] + 1, _size()), channel)
                    sent[channel] += 1
                await asyncio.sleep(burst * random.uniform(0, 2) / self._rate)
        except MeshError as exc:
            _say("wrong", text=f"send to {peer.id}: {type(exc).__name__}: {exc}")

    async def _flush(self) -> None:
        await asyncio.gather(*self._sending)
        await asyncio.gather(*(self._flush_to(peer) for peer in self._mesh.peers.values()))
        _say("flushed", sent=self._accounts.sent)

    async def _flush_to(self, peer: Peer) -> None:
        try:
            await peer.flush()
        except MeshError as exc:
            _say("wrong", text=f"flush to {peer.id}: {type(exc).__name__}: {exc}")

    async def _complete(self, expected: dict[str, dict[str, int]]) -> None:
        await self._accounts.complete(expected)
        _say("complete")

    async def _count(self) -> None:
        while not self._stopped.is_set():
            paths = {str(path): count for path, count in self._mesh.stats().paths.items()}
            _say("count", **self._accounts.count(), paths=paths)
            await asyncio.sleep(1)


def _size() -> int:
    if random.random() < 0.003:
        return LARGE
    return int(20 * 100 ** random.random())  # 20 to 2000 bytes, the small ones more often


async def _words() -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    return reader


async def _run(relay: str, peer_id: str, rate: float, config: MeshConfig) -> None:
    words = await _words()
    _say("ready")
    first = (await words.readline()).decode()
    mesh = PeerManager(relay, room="soak", peer_id=peer_id, config=config)
    async with asyncio.TaskGroup() as tasks:
        # Half of the rate on each channel.
        soak = _Soak(mesh, rate / len(CHANNELS), tasks)
        reading = [tasks.create_task(soak.messages()), tasks.create_task(soak.events())]
        async with mesh:
            soak.hear(*first.split())
            async for line in words:
                word, _, rest = line.decode().strip().partition(" ")
                soak.hear(word, rest)
        await asyncio.gather(*reading)


def main() -> None:
    """Run until standard input ends."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.peer")
    parser.add_argument("--relay", required=True)
    parser.add_argument("--id", required=True)
    parser.add_argument("--stun", required=True)
    parser.add_argument("--rate", type=float, required=True)
    options = parser.parse_args()
    config = MeshConfig(ice_servers=(IceServer(urls=options.stun),))
    asyncio.run(_run(options.relay, options.id, options.rate, config))


if __name__ == "__main__":
    main()
