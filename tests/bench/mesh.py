"""What is measured of meshpeer; the relay is in a process of its own."""

from __future__ import annotations

import asyncio
import time

import meshpeer.rtc.connection  # noqa: F401 - what is imported late is imported before the clock starts
from meshpeer import PeerManager
from tests.bench.worker import Control, rss

__all__ = ["connect", "cpu", "idle", "memory", "receive_stream", "round_trip", "send_stream"]


async def _connect(relay: str, room: str, *, dials: bool) -> float:
    """Seconds from the start of the second peer until its first message has been delivered."""
    ids = ("a", "b") if dials else ("b", "a")
    second = PeerManager(relay, room=room, peer_id=ids[0])
    async with PeerManager(relay, room=room, peer_id=ids[1]) as first:
        messages = first.messages()
        began = time.perf_counter()
        try:
            await second.start()
            peer = await second.wait_for_peer(ids[1])
            await peer.send("hello")
            await anext(messages)
            return time.perf_counter() - began
        finally:
            await second.close()


async def connect(control: Control, *, relay: str, times: int) -> None:
    """Seconds from `start` of the second peer to its first message; each dials half the time."""
    await _connect(relay, "warm-up", dials=True)
    control.tell(
        [await _connect(relay, f"room {number}", dials=bool(number % 2)) for number in range(times)]
    )


async def round_trip(control: Control, *, relay: str, times: int) -> None:
    """Seconds that a short message takes there and back."""
    found = []
    async with (
        PeerManager(relay, room="bench", peer_id="a") as left,
        PeerManager(relay, room="bench", peer_id="b") as right,
        asyncio.TaskGroup() as group,
    ):
        messages = left.messages()
        peer = await left.wait_for_peer("b")

        async def echo() -> None:
            async for message in right.messages():
                await message.sender.send(message.data)

        echoing = group.create_task(echo())
        for _ in range(times):
            began = time.perf_counter()
            await peer.send("ping")
            await anext(messages)
            found.append(time.perf_counter() - began)
        control.tell(found)
        echoing.cancel()


async def send_stream(control: Control, *, relay: str, size: int, count: int) -> None:
    """Send ``count`` messages of ``size`` bytes."""
    async with PeerManager(relay, room="bench", peer_id="a") as mesh:
        peer = await mesh.wait_for_peer("b")
        data = bytes(size)
        for _ in range(count):
            await peer.send(data)
        await control.receive()


async def receive_stream(control: Control, *, relay: str, size: int, count: int, skip: int) -> None:
    """Bytes a second in which all messages after the first ``skip`` arrive."""
    async with PeerManager(relay, room="bench", peer_id="b") as mesh:
        messages = mesh.messages()
        for _ in range(skip):
            await anext(messages)
        began = time.perf_counter()
        for _ in range(count - skip):
            await anext(messages)
        control.tell((count - skip) * size / (time.perf_counter() - began))


async def _full_mesh(relay: str, room: str, peers: int) -> list[PeerManager]:
    managers = [PeerManager(relay, room=room, peer_id=f"peer {n}") for n in range(peers)]
    await asyncio.gather(*(manager.start() for manager in managers))
    await asyncio.gather(*(manager.wait_for_peers(peers - 1) for manager in managers))
    return managers


async def cpu(control: Control, *, relay: str, peers: int) -> None:
    """Seconds of CPU time from the start of ``peers`` until all are connected with all."""
    await _connect(relay, "warm-up", dials=True)
    began = time.process_time()
    managers = await _full_mesh(relay, "mesh", peers)
    control.tell(time.process_time() - began)
    await asyncio.gather(*(manager.close() for manager in managers))


async def idle(
    control: Control, *, relay: str, peer_id: str, links: int, settle: float, seconds: float
) -> None:
    """Per cent of a core that one end of so many links takes that say nothing."""
    managers = [PeerManager(relay, room=f"room {n}", peer_id=peer_id) for n in range(links)]
    await asyncio.gather(*(manager.start() for manager in managers))
    await asyncio.gather(*(manager.wait_for_peers() for manager in managers))
    await asyncio.sleep(settle)
    began = time.process_time()
    await asyncio.sleep(seconds)
    control.tell(100 * (time.process_time() - began) / seconds)
    await control.receive()
    await asyncio.gather(*(manager.close() for manager in managers))


async def memory(control: Control, *, relay: str, rooms: int, peers: int) -> None:
    """Bytes that one end of a connected pair takes, its share of its manager included."""
    await _connect(relay, "warm-up", dials=True)
    before = rss()
    meshes = await asyncio.gather(
        *(_full_mesh(relay, f"room {number}", peers) for number in range(rooms))
    )
    control.tell((rss() - before) / (rooms * peers * (peers - 1)))
    await asyncio.gather(*(manager.close() for mesh in meshes for manager in mesh))
