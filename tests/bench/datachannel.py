"""What is measured of libdatachannel (C++) through its Python binding.

Its threads call back whenever they like, and its send buffer has no limit that could be seen. The
process ends without taking anything down: to close a connection while its threads wait for the
interpreter can block for ever, and not to close it gets the process aborted when it ends as usual.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable

from pylibdatachannel import (
    Configuration,
    DataChannel,
    Description,
    DescriptionType,
    GatheringState,
    PeerConnection,
)

from tests.bench.worker import Control

__all__ = ["receive_stream", "send_stream"]


class _End:
    """A connection, and what its threads tell of it as events of this loop."""

    def __init__(self) -> None:
        self.connection = PeerConnection(Configuration([]))
        self._loop = asyncio.get_running_loop()
        self._gathered = asyncio.Event()
        self.connection.on_gathering_state_change(
            lambda state: (
                self.call(self._gathered.set) if state == GatheringState.COMPLETE else None
            )
        )

    def call(self, function: Callable[[], object]) -> None:
        """From any thread."""
        self._loop.call_soon_threadsafe(function)

    async def description(self) -> str:
        """Of this side, with all its candidates."""
        await self._gathered.wait()
        return str(self.connection.local_description)


async def send_stream(control: Control, *, size: int, count: int) -> None:
    """Send ``count`` messages of ``size`` bytes."""
    end = _End()
    opened = asyncio.Event()
    channel = end.connection.create_data_channel("bench")
    channel.on_open(lambda: end.call(opened.set))
    control.tell(await end.description())
    end.connection.set_remote_description(
        Description(await control.receive(), DescriptionType.ANSWER)
    )
    await opened.wait()
    data = bytes(size)
    for _ in range(count):
        channel.send(data)
    await control.receive()
    os._exit(0)


async def receive_stream(control: Control, *, size: int, count: int, skip: int) -> None:
    """Bytes a second in which all messages after the first ``skip`` arrive."""
    end = _End()
    done = asyncio.Event()
    arrived = 0
    began = ended = 0.0
    channels: list[DataChannel] = []

    def on_message(_: str | bytes) -> None:
        nonlocal arrived, began, ended
        arrived += 1
        if arrived == skip:
            began = time.perf_counter()
        elif arrived == count:
            ended = time.perf_counter()
            end.call(done.set)

    def on_channel(channel: DataChannel) -> None:
        channels.append(channel)  # a channel that nobody holds is closed
        channel.on_message(on_message)

    end.connection.on_data_channel(on_channel)
    end.connection.set_remote_description(
        Description(await control.receive(), DescriptionType.OFFER)
    )
    control.tell(await end.description())
    await done.wait()
    control.tell((count - skip) * size / (ended - began))
    await control.receive()
    os._exit(0)
