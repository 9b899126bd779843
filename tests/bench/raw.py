"""What is measured of aiortc alone, which is what meshpeer is compared with."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from aiortc import RTCConfiguration, RTCDataChannel, RTCPeerConnection, RTCSessionDescription

from meshpeer.config import MeshConfig
from tests.bench.worker import Control, rss

__all__ = ["connect", "cpu", "memory", "receive_stream", "round_trip", "send_stream"]


@dataclass(slots=True)
class _Pair:
    left: RTCPeerConnection
    right: RTCPeerConnection
    left_channel: RTCDataChannel
    right_channel: RTCDataChannel
    seconds: float
    """From the offer until the channel was open on both sides."""

    async def close(self) -> None:
        await asyncio.gather(self.left.close(), self.right.close())


def _end() -> RTCPeerConnection:
    # Without a list aiortc asks a public STUN server; meshpeer asks nobody that was not named.
    return RTCPeerConnection(RTCConfiguration(iceServers=[]))


async def _pair() -> _Pair:
    """Two connected ends in this process, without signalling."""
    left, right = _end(), _end()
    left_channel = left.createDataChannel("bench")
    opened = asyncio.Event()
    arrived: asyncio.Future[RTCDataChannel] = asyncio.get_running_loop().create_future()
    left_channel.on("open", opened.set)
    right.on("datachannel", arrived.set_result)
    began = time.perf_counter()
    await left.setLocalDescription(await left.createOffer())
    await right.setRemoteDescription(left.localDescription)
    await right.setLocalDescription(await right.createAnswer())
    await left.setRemoteDescription(right.localDescription)
    right_channel = await arrived
    await opened.wait()
    return _Pair(left, right, left_channel, right_channel, time.perf_counter() - began)


async def _warm_up() -> None:
    await (await _pair()).close()


async def connect(control: Control, *, times: int) -> None:
    """Seconds from the offer to the open channel."""
    await _warm_up()
    found = []
    for _ in range(times):
        pair = await _pair()
        found.append(pair.seconds)
        await pair.close()
    control.tell(found)


async def round_trip(control: Control, *, times: int) -> None:
    """Seconds that a short message takes there and back."""
    pair = await _pair()
    pair.right_channel.on("message", pair.right_channel.send)
    back: asyncio.Queue[str] = asyncio.Queue()
    pair.left_channel.on("message", back.put_nowait)
    found = []
    for _ in range(times):
        began = time.perf_counter()
        pair.left_channel.send("ping")
        await back.get()
        found.append(time.perf_counter() - began)
    control.tell(found)
    await pair.close()


async def send_stream(control: Control, *, size: int, count: int) -> None:
    """Send ``count`` messages of ``size`` bytes; as much is buffered as meshpeer would."""
    pc = _end()
    channel = pc.createDataChannel("bench")
    limit = MeshConfig().send_buffer
    channel.bufferedAmountLowThreshold = limit // 2
    opened, room = asyncio.Event(), asyncio.Event()
    channel.on("open", opened.set)
    channel.on("bufferedamountlow", room.set)
    await pc.setLocalDescription(await pc.createOffer())
    control.tell(pc.localDescription.sdp)
    await pc.setRemoteDescription(RTCSessionDescription(await control.receive(), "answer"))
    await opened.wait()
    data = bytes(size)
    for _ in range(count):
        while channel.bufferedAmount > limit:
            room.clear()
            await room.wait()
        channel.send(data)
    await control.receive()
    await pc.close()


async def receive_stream(control: Control, *, size: int, count: int, skip: int) -> None:
    """Bytes a second in which all messages after the first ``skip`` arrive."""
    pc = _end()
    done = asyncio.Event()
    arrived = 0
    began = ended = 0.0

    def on_message(_: bytes) -> None:
        nonlocal arrived, began, ended
        arrived += 1
        if arrived == skip:
            began = time.perf_counter()
        elif arrived == count:
            ended = time.perf_counter()
            done.set()

    pc.on("datachannel", lambda channel: channel.on("message", on_message))
    await pc.setRemoteDescription(RTCSessionDescription(await control.receive(), "offer"))
    await pc.setLocalDescription(await pc.createAnswer())
    control.tell(pc.localDescription.sdp)
    await done.wait()
    control.tell((count - skip) * size / (ended - began))
    await pc.close()


async def _pairs(count: int) -> list[_Pair]:
    return await asyncio.gather(*(_pair() for _ in range(count)))


async def cpu(control: Control, *, pairs: int) -> None:
    """Seconds of CPU time until so many pairs, all begun at once, are connected."""
    await _warm_up()
    began = time.process_time()
    kept = await _pairs(pairs)
    control.tell(time.process_time() - began)
    await asyncio.gather(*(pair.close() for pair in kept))


async def idle(control: Control, *, ends: int, settle: float, seconds: float) -> None:
    """Per cent of a core that so many ends of connections take that say nothing."""
    kept = await _pairs(ends // 2)
    await asyncio.sleep(settle)
    began = time.process_time()
    await asyncio.sleep(seconds)
    control.tell(100 * (time.process_time() - began) / seconds)
    await asyncio.gather(*(pair.close() for pair in kept))


async def memory(control: Control, *, pairs: int) -> None:
    """Bytes that one end of a connected pair takes."""
    await _warm_up()
    before = rss()
    kept = await _pairs(pairs)
    control.tell((rss() - before) / (2 * pairs))
    await asyncio.gather(*(pair.close() for pair in kept))
