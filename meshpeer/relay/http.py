"""Plain HTTP beside the WebSocket: what an answer is made of."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Answer"]


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP response (RFC 9110)."""

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()
    """Besides Content-Type, Content-Length, Connection and the ones that every answer has."""
