"""Bytes to a relay, without a client that minds what it sends."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator

from websockets.frames import Frame, Opcode

from meshpeer.relay import Relay

__all__ = ["UPGRADE", "client_frame", "exchange", "raw", "refused", "until_gone"]

UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: relay\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
)


@contextlib.asynccontextmanager
async def raw(
    relay: Relay, address: str | None = None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A TCP connection, from an address of this machine."""
    local = None if address is None else (address, 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", relay.port, local_addr=local)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def exchange(relay: Relay, data: bytes) -> tuple[bytes, dict[str, str], bytes]:
    """What a relay answers to these bytes until it closes: status line, headers, body."""
    async with raw(relay) as (reader, writer):
        writer.write(data)
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    status, *lines = head.split(b"\r\n")
    headers = dict(line.decode().lower().split(": ", 1) for line in lines)
    return status, headers, body


def client_frame(data: bytes, opcode: Opcode = Opcode.TEXT, *, fin: bool = True) -> bytes:
    return Frame(opcode, data, fin).serialize(mask=True)


def refused(relay: Relay) -> dict[str, int]:
    return relay._figures().refused


async def until_gone(relay: Relay, keep: int = 0) -> None:
    """Until the relay has noticed that connections are closed, but for the first members'."""
    for socket in sorted(relay._sockets, key=lambda socket: socket.conn or math.inf)[keep:]:
        await socket.wait_closed()
