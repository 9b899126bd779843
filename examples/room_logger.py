"""Writes down who comes, who goes and what is said, as JSON lines.

Start a relay (``meshpeer relay``), then ``python examples/room_logger.py [relay-url] [room]``.
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import suppress
from datetime import UTC, datetime

from meshpeer import PeerJoined, PeerLeft, PeerManager, PeerStateChanged


def write(what: str, **facts: object) -> None:
    record = {"at": datetime.now(UTC).isoformat(timespec="milliseconds"), "what": what, **facts}
    print(json.dumps(record, default=repr), flush=True)


async def log_events(mesh: PeerManager) -> None:
    async for event in mesh.events():
        match event:
            case PeerJoined():
                write("joined", peer=event.peer_id, name=event.name)
            case PeerStateChanged():
                write("state", peer=event.peer_id, state=event.state, why=event.reason)
            case PeerLeft():
                write("left", peer=event.peer_id, why=event.reason)
            case _:
                pass


async def log_messages(mesh: PeerManager) -> None:
    async for message in mesh.messages():
        write("message", peer=message.sender.id, channel=message.channel, data=message.data)


async def main(relay: str = "ws://127.0.0.1:3001", room: str = "lobby") -> None:
    async with PeerManager(relay, room=room, name="logger") as mesh, asyncio.TaskGroup() as group:
        write("logging", room=mesh.room, as_peer=mesh.peer_id)
        group.create_task(log_events(mesh))
        group.create_task(log_messages(mesh))


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(main(*sys.argv[1:3]))
