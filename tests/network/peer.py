"""The program that runs on a host of a lab: one `PeerManager`, which says what happens to it.

``python -m tests.network.peer --relay URL --id ID --servers JSON`` writes one JSON object a line:
``at`` (CLOCK_MONOTONIC, the same for all processes of a machine), ``event``, and what belongs to
it. It reads words from standard input:

* ``join``: enter the room. Before that everything is imported, so that no time is lost later.
* ``stream``: send a numbered message every 20 ms, with the time at which it was given to `send`.
* ``stop``: end the stream, and say how many messages were sent.

It ends with its standard input.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from typing import Any

import meshpeer.rtc.connection  # noqa: F401 - it is imported late, and that would be measured
from meshpeer.config import IceServer, MeshConfig
from meshpeer.core.events import (
    BadInput,
    ConnectionReport,
    Event,
    IceServerReport,
    PeerJoined,
    PeerLeft,
    PeerStateChanged,
    SignalingChanged,
)
from meshpeer.errors import ClosedError
from meshpeer.manager import PeerManager

_EVERY = 0.02


def _say(event: str, **values: Any) -> None:
    line = {"at": time.monotonic(), "event": event, **values}
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def _describe(event: Event) -> None:
    match event:
        case PeerJoined(peer_id=peer):
            _say("known", peer=peer)
        case PeerLeft(peer_id=peer, reason=reason):
            _say("left", peer=peer, reason=reason)
        case PeerStateChanged():
            _say(
                "state",
                state=event.state,
                path=event.path,
                epoch=event.epoch,
                reason=event.reason,
            )
        case ConnectionReport():
            pair = event.pair
            _say(
                "report",
                state=event.state,
                path=event.path,
                epoch=event.epoch,
                generation=event.generation,
                restarts=event.restarts,
                reason=event.reason,
                pair=None
                if pair is None
                else [[end.type, end.address, end.port] for end in (pair.local, pair.remote)],
            )
        case IceServerReport():
            _say("server", url=event.url, outcome=event.outcome, detail=event.detail)
        case SignalingChanged(state=state, reason=reason):
            _say("signaling", state=state, reason=reason)
        case BadInput(error=error):
            _say("bad input", text=str(error))
        case _:
            pass


async def _events(mesh: PeerManager) -> None:
    async for event in mesh.events():
        _describe(event)


async def _messages(mesh: PeerManager) -> None:
    async for message in mesh.messages():
        number, sent = message.data
        _say("got", number=number, sent=sent, path=message.path)


async def _stream(mesh: PeerManager, stopped: asyncio.Event) -> None:
    peer = next(iter(mesh.peers.values()))
    count = 0
    try:
        while not stopped.is_set():
            await peer.send([count, time.monotonic()])
            count += 1
            await asyncio.sleep(_EVERY)
    except ClosedError as exc:
        _say("refused", text=str(exc))
    _say("sent", count=count)


async def _words() -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    return reader


async def _run(relay: str, peer_id: str, config: MeshConfig) -> None:
    words = await _words()
    stopped = asyncio.Event()
    _say("ready")
    await words.readline()
    mesh = PeerManager(relay, room="lab", peer_id=peer_id, config=config)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_events(mesh))
        tasks.create_task(_messages(mesh))
        async with mesh:
            _say("joined")
            async for word in words:
                if word == b"stream\n":
                    tasks.create_task(_stream(mesh, stopped))
                else:
                    stopped.set()


def main() -> None:
    """Run until standard input ends."""
    parser = argparse.ArgumentParser(prog="python -m tests.network.peer")
    parser.add_argument("--relay", required=True)
    parser.add_argument("--id", required=True)
    parser.add_argument("--servers", type=json.loads, required=True)
    parser.add_argument("--no-relay-path", action="store_true")
    options = parser.parse_args()
    config = MeshConfig(
        ice_servers=tuple(IceServer(**server) for server in options.servers),
        relay_after=None if options.no_relay_path else MeshConfig().relay_after,
    )
    asyncio.run(_run(options.relay, options.id, config))


if __name__ == "__main__":
    main()
