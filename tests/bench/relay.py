"""The relay and its clients: sockets and members, no WebRTC; and what they are compared with."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, suppress
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from meshpeer.cli.garbage import garbage_by_the_clock
from meshpeer.config import RelayConfig
from meshpeer.core.messages import VERSION, Join, Leave, Welcome, decode_relay, encode
from meshpeer.relay import Relay
from tests.bench.sockets import raise_limit
from tests.bench.worker import Control, rss

__all__ = [
    "members",
    "receive_stream",
    "run_bare",
    "run_forwarder",
    "run_relay",
    "send_stream",
]

_AT_ONCE = 50
"""Clients that connect at the same time: below the backlog of a listening socket."""


async def _answer(control: Control, url: str) -> None:
    """Tell the URL, and then what this process has used each time it is asked."""
    control.tell(url)
    while asked := await control.receive():
        used = {"cpu": time.process_time()}
        if asked == "figures":
            # Costs CPU time of its own, with many sockets.
            used["rss"] = rss()
        control.tell(used)


async def run_relay(control: Control, *, sockets: int = 0, **settings: Any) -> None:
    """A relay with these settings, for so many sockets, as the command runs one."""
    raise_limit(sockets)
    config = RelayConfig(port=0, **settings)
    async with garbage_by_the_clock(), Relay(config) as relay:
        await _answer(control, relay.url)


async def run_bare(control: Control, *, sockets: int = 0, **settings: Any) -> None:
    """What a relay stands on: a server of websockets with the same settings, that only answers."""
    raise_limit(sockets)
    config = RelayConfig(**settings)

    async def handler(socket: ServerConnection) -> None:
        with suppress(ConnectionClosed):
            async for data in socket:
                await socket.send(data)

    async with serve(
        handler,
        "127.0.0.1",
        0,
        compression=None,
        ping_interval=config.keepalive_interval,
        ping_timeout=config.keepalive_interval,
        max_size=config.max_message_size,
        write_limit=config.max_unread,
    ) as server:
        await _answer(control, f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}")


async def run_forwarder(control: Control) -> None:
    """The least that a relay of data does: what one socket sends is sent to the other.

    The first socket is the receiver's.
    """
    receivers: list[ServerConnection] = []

    async def handler(socket: ServerConnection) -> None:
        receivers.append(socket)
        with suppress(ConnectionClosed):
            async for data in socket:
                await receivers[0].send(data)

    async with serve(handler, "127.0.0.1", 0, compression=None, ping_interval=None) as server:
        await _answer(control, f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}")


async def receive_stream(control: Control, *, url: str, size: int, count: int, skip: int) -> None:
    """Bytes a second in which all messages after the first ``skip`` arrive."""
    async with connect(url, compression=None, ping_interval=None, proxy=None) as socket:
        control.tell("ready")
        for _ in range(skip):
            await socket.recv(decode=False)
        began = time.perf_counter()
        for _ in range(count - skip):
            await socket.recv(decode=False)
        control.tell((count - skip) * size / (time.perf_counter() - began))


async def send_stream(control: Control, *, url: str, size: int, count: int) -> None:
    """Send ``count`` messages of ``size`` bytes."""
    async with connect(url, compression=None, ping_interval=None, proxy=None) as socket:
        data = bytes(size)
        for _ in range(count):
            await socket.send(data)
        await control.receive()


class _Members:
    """Members that are there and read what they are told, each on a socket of its own."""

    def __init__(self, url: str, stack: AsyncExitStack, group: asyncio.TaskGroup) -> None:
        self._url = url
        self._stack = stack
        self._group = group

    async def _enter(self, room: str, peer_id: str) -> ClientConnection:
        socket = await connect(self._url, compression=None, ping_interval=None, proxy=None)
        join = Join(version=VERSION, room=room, peer_id=peer_id, incarnation=f"bench-{peer_id}")
        await socket.send(encode(join), text=True)
        # A bare server sends back what it was sent.
        answer = await socket.recv(decode=False)
        if answer != encode(join) and not isinstance(decode_relay(answer), Welcome):
            raise RuntimeError(f"{peer_id} did not get in: {answer!r}")
        return socket

    async def _stay(self, room: str, peer_id: str) -> None:
        socket = await self._enter(room, peer_id)
        self._stack.push_async_callback(socket.close)

        async def read() -> None:
            with suppress(ConnectionClosed):
                async for _ in socket:
                    pass

        self._group.create_task(read())

    async def fill(self, room: str, count: int, in_each: int) -> None:
        """``count`` members stay, ``in_each`` of them in a room."""
        for begin in range(0, count, _AT_ONCE):
            numbers = range(begin, min(begin + _AT_ONCE, count))
            async with asyncio.TaskGroup() as entering:
                for n in numbers:
                    entering.create_task(self._stay(f"{room} {n // in_each}", f"member{n}"))

    async def visit(self, room: str, times: int) -> None:
        """Connect, join and leave, again and again."""
        for number in range(times):
            socket = await self._enter(room, f"visitor{number}")
            # Without it the seat would be kept for the visitor to come back.
            await socket.send(encode(Leave()), text=True)
            await socket.close()


async def members(control: Control, *, url: str) -> None:
    """Clients; asked for by the harness as ``fill`` or ``visit`` with its arguments."""
    async with asyncio.TaskGroup() as group, AsyncExitStack() as stack:
        crowd = _Members(url, stack, group)
        while (call := await control.receive()) is not None:
            name, *arguments = call
            await getattr(crowd, name)(*arguments)
            control.tell("done")
