"""Plain HTTP beside the WebSocket: what an answer is made of."""

from __future__ import annotations

import email.utils
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from websockets.datastructures import Headers
from websockets.http11 import Response

__all__ = ["Answer", "to_response"]

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


def to_response(answer: Answer, *, method: str = "GET") -> Response:
    """``answer`` as it is written; to HEAD without its body (RFC 9110, section 9.3.2)."""
    own = {name.lower() for name, _ in answer.headers}
    headers = Headers(
        [
            ("Date", email.utils.formatdate(usegmt=True)),
            ("Connection", "close"),
            ("Content-Length", str(len(answer.body))),
            ("Content-Type", answer.content_type),
            *answer.headers,
            *((name, value) for name, value in _ALWAYS if name.lower() not in own),
        ]
    )
    phrase = HTTPStatus(answer.status).phrase
    return Response(answer.status, phrase, headers, b"" if method == "HEAD" else answer.body)
