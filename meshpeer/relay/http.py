"""Plain HTTP beside the WebSocket: what an answer is made of."""

from __future__ import annotations

import asyncio
import email.utils
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from websockets.datastructures import Headers
from websockets.http11 import Response

__all__ = ["Answer", "LastBlock", "make_rest", "to_response"]

_TURN: Final = 0.001
"""Seconds that parts of an answer are made for, before others have their turn."""
_BLOCK: Final = 64 * 1024
"""Bytes that parts are put together to, at least."""

# What an answer has unless it says otherwise itself: nobody keeps it, takes it for what it is not,
# tells others where it was read, or lets it load anything.
_ALWAYS: Final = (
    ("Cache-Control", "no-store"),
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
)


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP response (RFC 9110)."""

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()
    """Besides Content-Type, Content-Length, Connection and the ones that every answer has."""
    rest: Iterator[bytes] | None = None
    """What follows ``body``, in parts. To make one takes a few milliseconds at most."""


class LastBlock(Response):
    """Of an answer, all else of which is written."""

    def serialize(self) -> bytes:
        return bytes(self.body)


async def make_rest(rest: Iterator[bytes]) -> deque[bytes]:
    """The parts of an answer, made. Between them others have their turn."""
    blocks: deque[bytes] = deque()
    block: list[bytes] = []
    size = 0
    until = time.perf_counter() + _TURN
    for part in rest:
        block.append(part)
        size += len(part)
        if size >= _BLOCK:
            blocks.append(b"".join(block))
            block.clear()
            size = 0
        if time.perf_counter() >= until:
            await asyncio.sleep(0)
            until = time.perf_counter() + _TURN
    if block:
        blocks.append(b"".join(block))
    return blocks


def to_response(answer: Answer, *, method: str = "GET", more: int = 0) -> Response:
    """``answer`` as it is written; to HEAD without its body (RFC 9110, section 9.3.2). ``more``
    bytes follow it. What is not modified has the length of what it is about, which nobody asked for
    (RFC 9110, section 8.6): none is given."""
    own = {name.lower() for name, _ in answer.headers}
    length = str(len(answer.body) + more)
    headers = Headers(
        [
            ("Date", email.utils.formatdate(usegmt=True)),
            ("Connection", "close"),
            *((("Content-Length", length),) if answer.status != HTTPStatus.NOT_MODIFIED else ()),
            ("Content-Type", answer.content_type),
            *answer.headers,
            *((name, value) for name, value in _ALWAYS if name.lower() not in own),
        ]
    )
    phrase = HTTPStatus(answer.status).phrase
    return Response(answer.status, phrase, headers, b"" if method == "HEAD" else answer.body)
