"""What the operator sees: the dashboard, its live WebSocket, the admin API, the metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from websockets.asyncio.server import ServerConnection

from meshpeer.config import RelayConfig
from meshpeer.core.rooms import Output, Rooms
from meshpeer.relay.http import Answer

__all__ = ["LIVE_PATH", "Admin", "RelayFigures"]

LIVE_PATH = "/api/admin/live"
"""The dashboard's WebSocket."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayFigures:
    """The relay's own figures, since it started."""

    version: str
    uptime: float
    connections: int
    """Sockets that are open, those that have not joined as well."""
    accepted: int
    """Sockets that were accepted."""
    refused: Mapping[str, int]
    """Sockets that were refused, by why."""
    messages_in: int
    messages_out: int
    bytes_in: int
    bytes_out: int
    cut_off: int
    """Sockets that were cut off because they did not read."""


class Admin:
    """Answers what is the operator's, and nobody else's.

    ``apply`` carries out what `Rooms` wants done. ``now`` is the clock of `Rooms`.
    """

    def __init__(
        self,
        config: RelayConfig,
        rooms: Rooms,
        *,
        apply: Callable[[list[Output]], None],
        figures: Callable[[], RelayFigures],
        now: Callable[[], float],
    ) -> None:
        self._config = config

    @property
    def password(self) -> str:
        """The configured password, or the one that was made."""
        raise NotImplementedError

    def answer(
        self, path: str, query: str, headers: Mapping[str, str], address: str
    ) -> Answer | None:
        """Answer a GET; None when nothing of the admin's is there. Anything but a matching
        ``Authorization`` gets 401, or 429 after too many wrong ones from ``address``."""
        return None

    async def live(self, socket: ServerConnection, address: str) -> None:
        """Serve the dashboard's WebSocket until it ends. Its first message has a ticket, which only
        somebody who may read the admin API can have."""
