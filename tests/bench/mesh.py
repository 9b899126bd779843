"""What is measured of meshpeer; the relay is in a process of its own."""

from __future__ import annotations

import asyncio
import os
import time
import zlib
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path as PathOfFile
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import meshpeer.rtc.connection  # noqa: F401 - what is imported late is imported before the clock starts
from meshpeer import MeshConfig, Path, PeerManager
from tests.bench.worker import Control, MemoryWatch, rss

if TYPE_CHECKING:
    from meshpeer.files import FileProgress

__all__ = [
    "answer",
    "connect",
    "cpu",
    "crowd",
    "idle",
    "memory",
    "receive_file",
    "receive_slowly",
    "receive_stream",
    "round_trip",
    "send_file",
    "send_much",
    "send_stream",
    "share",
    "talk",
]

_WARM_UP = 20
"""Round trips before those that count."""


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


def _config(path: Path) -> MeshConfig:
    """A mesh whose data goes this way; over the relay there is no other, for lack of addresses."""
    if path is Path.RELAY:
        return MeshConfig(relay_after=0, interfaces=("!*",))
    return MeshConfig()


async def send_stream(control: Control, *, relay: str, path: str, size: int, count: int) -> None:
    """Send ``count`` messages of ``size`` bytes."""
    config = _config(Path(path))
    async with PeerManager(relay, room="bench", peer_id="a", config=config) as mesh:
        peer = await mesh.wait_for_peer("b")
        data = bytes(size)
        for _ in range(count):
            await peer.send(data)
        await peer.flush()
        await control.receive()


async def receive_stream(
    control: Control, *, relay: str, path: str, size: int, count: int, skip: int
) -> None:
    """Bytes a second in which all messages after the first ``skip`` arrive, by ``path``."""
    config = _config(Path(path))
    async with PeerManager(relay, room="bench", peer_id="b", config=config) as mesh:
        arrived = 0
        began = 0.0
        async for message in mesh.messages():
            arrived += 1
            if arrived == skip:
                began = time.perf_counter()
            elif arrived == count:
                control.tell((count - skip) * size / (time.perf_counter() - began))
                if message.path != path:
                    raise RuntimeError(f"messages came by {message.path}, not by {path}")
                break
        await control.receive()


async def share(
    control: Control, *, relay: str, pairs: int, size: int, begin: int, seconds: float
) -> None:
    """Bytes that each of so many receivers gets in so many seconds over the relay.

    The clock starts when all have got ``begin`` messages. Their senders are those of `crowd`.
    """
    arrived = [0] * pairs
    begun = asyncio.Event()

    async def count(mesh: PeerManager, number: int) -> None:
        async for _ in mesh.messages():
            arrived[number] += 1
            if arrived[number] == begin and min(arrived) >= begin:
                begun.set()

    async with AsyncExitStack() as stack:
        meshes = await _one_in_each_room(stack, relay, "b", pairs)
        async with asyncio.TaskGroup() as group:
            counting = [group.create_task(count(mesh, n)) for n, mesh in enumerate(meshes)]
            await begun.wait()
            before = list(arrived)
            await asyncio.sleep(seconds)
            control.tell([(n - b) * size for n, b in zip(arrived, before, strict=True)])
            await control.receive()
            for task in counting:
                task.cancel()


async def crowd(control: Control, *, relay: str, pairs: int, size: int) -> None:
    """Senders that send, each to the receiver in its room, until this process is to end."""
    data = bytes(size)

    async def send(mesh: PeerManager) -> None:
        peer = await mesh.wait_for_peer("b")
        while True:
            await peer.send(data)

    async with AsyncExitStack() as stack:
        meshes = await _one_in_each_room(stack, relay, "a", pairs)
        async with asyncio.TaskGroup() as group:
            sending = [group.create_task(send(mesh)) for mesh in meshes]
            await control.receive()
            for task in sending:
                task.cancel()


async def _one_in_each_room(
    stack: AsyncExitStack, relay: str, peer_id: str, rooms: int
) -> list[PeerManager]:
    config = _config(Path.RELAY)
    return [
        await stack.enter_async_context(
            PeerManager(relay, room=f"pair {n}", peer_id=peer_id, config=config)
        )
        for n in range(rooms)
    ]


async def send_file(control: Control, *, relay: str, size: int) -> None:
    """Send one file of ``size`` bytes."""
    with _directory() as directory:
        path = directory / "bench.bin"
        path.write_bytes(os.urandom(size))
        async with PeerManager(relay, room="bench", peer_id="a") as mesh:
            peer = await mesh.wait_for_peer("b")
            await peer.send_file(path)
            await control.receive()


async def receive_file(control: Control, *, relay: str, size: int, skip: int) -> None:
    """Bytes a second in which a file arrives, from ``skip`` bytes on until it has been checked."""
    began, before = 0.0, 0

    def on_progress(progress: FileProgress) -> None:
        nonlocal began, before
        if not before and progress.done >= skip:
            began, before = time.perf_counter(), progress.done

    with _directory() as directory:
        async with PeerManager(relay, room="bench", peer_id="b") as mesh:
            await mesh.wait_for_peer("a")
            await mesh.receive_file(directory, on_progress=on_progress)
            control.tell((size - before) / (time.perf_counter() - began))
            await control.receive()


@contextmanager
def _directory() -> Iterator[PathOfFile]:
    """In memory where the system has such a file system: the disk is not what is measured."""
    memory = PathOfFile("/dev/shm")
    with TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        yield PathOfFile(name)


async def answer(control: Control, *, relay: str) -> None:
    """The other end of `talk`: echoes what comes on "chat", and takes what comes on "bulk"."""
    async with (
        PeerManager(relay, room="bench", peer_id="b") as mesh,
        asyncio.TaskGroup() as group,
    ):

        async def echo() -> None:
            async for message in mesh.messages("chat"):
                await message.sender.send(message.data, channel="chat")

        async def take() -> None:
            async for _ in mesh.messages("bulk"):
                pass

        tasks = [group.create_task(echo()), group.create_task(take())]
        await control.receive()
        for task in tasks:
            task.cancel()


async def talk(
    control: Control, *, relay: str, size: int, times: int, bulk: int, bulk_size: int
) -> None:
    """Seconds that messages of ``size`` bytes take there and back, one after the other.

    Without ``bulk`` on a link that does nothing else, ``times`` messages; else for as long as
    ``bulk`` messages of ``bulk_size`` bytes take on another channel.
    """
    async with PeerManager(relay, room="bench", peer_id="a") as mesh:
        peer = await mesh.wait_for_peer("b")
        answers = mesh.messages("chat")
        data = bytes(size)

        async def round_trip() -> float:
            began = time.perf_counter()
            await peer.send(data, channel="chat")
            await anext(answers)
            return time.perf_counter() - began

        async def transfer() -> None:
            big = bytes(bulk_size)
            for _ in range(bulk):
                await peer.send(big, channel="bulk")
            await peer.flush()

        for _ in range(_WARM_UP):
            await round_trip()
        if bulk:
            found = []
            async with asyncio.TaskGroup() as group:
                transferring = group.create_task(transfer())
                while not transferring.done():
                    found.append(await round_trip())
        else:
            found = [await round_trip() for _ in range(times)]
        control.tell(found)
        await control.receive()


async def send_much(control: Control, *, relay: str, size: int, count: int) -> None:
    """Send ``count`` messages of ``size`` bytes, all different; what that takes and their sum."""
    async with PeerManager(relay, room="bench", peer_id="a") as mesh:
        peer = await mesh.wait_for_peer("b")
        checksum = 0
        async with MemoryWatch() as memory:
            for number in range(count):
                data = number.to_bytes(8, "big") * (size // 8)
                checksum = zlib.crc32(data, checksum)
                await peer.send(data)
            await peer.flush()
        control.tell({"growth": memory.growth, "count": count, "checksum": checksum})
        await control.receive()


async def receive_slowly(
    control: Control, *, relay: str, count: int, rate: float, seconds: float
) -> None:
    """Take ``rate`` bytes a second for so many seconds, then as much as there is."""
    async with PeerManager(relay, room="bench", peer_id="b") as mesh:
        arrived = checksum = 0
        free = time.monotonic() + seconds
        async with MemoryWatch() as memory:
            async for message in mesh.messages():
                arrived += 1
                checksum = zlib.crc32(message.data, checksum)
                if arrived == count:
                    break
                if time.monotonic() < free:
                    await asyncio.sleep(len(message.data) / rate)
        control.tell({"growth": memory.growth, "count": arrived, "checksum": checksum})
        await control.receive()


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
