"""The relay's own figures: what the dashboard and the metrics say of it."""

from __future__ import annotations

from msgspec import Struct

__all__ = ["RelayFigures"]


class RelayFigures(Struct, frozen=True, kw_only=True, rename="camel"):
    """The relay's own figures, since it started."""

    version: str
    uptime: float
    """Seconds."""
    connections: int
    """Sockets that are open, those that have not joined as well."""
    accepted: int
    """Sockets that were accepted."""
    refused: dict[str, int]
    """Sockets that were refused, by why."""
    messages_in: int
    messages_out: int
    bytes_in: int
    bytes_out: int
    cut_off: int
    """Sockets that were cut off because they did not read."""
