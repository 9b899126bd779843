"""The dashboard of a scripted mesh: the relay's own `Admin` and `Tracking`, without a relay.

So a mesh of any size and with any trouble is there at once, with an hour behind it if need be.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Self, cast

from msgspec.structs import replace
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.http11 import Request, Response

from meshpeer.config import RelayConfig
from meshpeer.core.messages import LinkReport
from meshpeer.core.rooms import Output, Rooms
from meshpeer.core.tracking import Tracking
from meshpeer.errors import ConfigError
from meshpeer.relay.admin import LIVE_PATH, Admin, RelayFigures
from meshpeer.relay.http import Answer, to_response

__all__ = ["PASSWORD", "Site", "link_report"]

PASSWORD = "correct horse"


class _Rooms:
    """What `Admin` asks of `Rooms`. Keeps what the operator did in ``acts``."""

    def __init__(self) -> None:
        self.tracking = Tracking()
        self.acts: list[tuple[str, ...]] = []

    @property
    def rooms(self) -> int:
        return len(self.tracking.rooms(0))

    def _check(self, room: str, *peers: str | None) -> None:
        there = self.tracking.room(room, 0)
        ids = {member.peer_id for member in there.members} if there else set()
        for peer in peers:
            if peer is not None and peer not in ids:
                raise ConfigError(f"there is no {peer!r} in room {room!r}")

    def remove(self, room: str, peer_id: str, now: float) -> list[Output]:
        self._check(room, peer_id)
        self.acts.append(("remove", room, peer_id))
        self.tracking.acted("removed", now, room=room, peer_id=peer_id)
        self.tracking.left(room, peer_id, "removed", now)
        return []

    def restart_ice(self, room: str, peer_id: str, other: str | None, now: float) -> list[Output]:
        self._check(room, peer_id, other)
        self.acts.append(("restart_ice", room, peer_id, *([] if other is None else [other])))
        self.tracking.acted("restarted_ice", now, room=room, peer_id=peer_id, other=other)
        return []

    def notice(self, room: str, text: str, now: float) -> list[Output]:
        self._check(room)
        self.acts.append(("notice", room, text))
        self.tracking.acted("notice", now, room=room, text=text)
        return []


class Site:
    """A mesh to script, and the address of its dashboard. ``at`` is seconds ago, everywhere."""

    def __init__(self, config: RelayConfig) -> None:
        self._loop = asyncio.get_running_loop()
        self._server: Server | None = None
        self._port = 0
        self.began = self._loop.time()
        self.figures = RelayFigures(
            version="1.2.3",
            uptime=0,
            connections=3,
            accepted=7,
            refused={},
            messages_in=1200,
            messages_out=3400,
            bytes_in=56_000,
            bytes_out=7_800_000,
            cut_off=1,
        )
        """What the relay says of itself."""
        self.on_act: Callable[[], None] | None = None
        """Is called when the operator did something, before the page is told so."""
        self._rooms = _Rooms()
        self._admin = Admin(
            config,
            cast("Rooms", self._rooms),
            apply=self._apply,
            figures=self._figures,
            now=self._loop.time,
        )

    @classmethod
    @asynccontextmanager
    async def open(cls, port: int = 0, password: str = PASSWORD) -> AsyncIterator[Self]:
        """Serve it on 127.0.0.1."""
        self = cls(RelayConfig(port=port, admin_password=password))
        async with serve(
            self._serve, "127.0.0.1", port, process_request=self._respond, compression=None
        ) as server:
            self._server = server
            [sock] = server.sockets
            self._port = int(sock.getsockname()[1])
            yield self
            await self.close()

    async def close(self) -> None:
        """Stop serving, as a relay does that goes down."""
        assert self._server is not None
        self._admin.close()
        self._server.close()
        await self._server.wait_closed()

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._port

    @property
    def url(self) -> str:
        """The address of the dashboard."""
        return f"{self.origin}/admin-analytics"

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def tracking(self) -> Tracking:
        return self._rooms.tracking

    @property
    def acts(self) -> list[tuple[str, ...]]:
        """What the operator did."""
        return self._rooms.acts

    def drop_dashboards(self) -> None:
        """Cut every socket, as an outage does."""
        assert self._server is not None
        for connection in self._server.connections:
            connection.transport.abort()

    # --- the mesh --------------------------------------------------------------------------------

    def changed(self) -> None:
        self._admin.changed()

    def now(self, ago: float = 0) -> float:
        return self._loop.time() - ago

    def join(
        self, room: str, *peers: str, names: Mapping[str, str] | None = None, ago: float = 0
    ) -> None:
        """These get seats."""
        for number, peer_id in enumerate(peers):
            self.tracking.joined(
                room,
                peer_id,
                _incarnation(peer_id),
                (names or {}).get(peer_id),
                self.now(ago),
                address=f"192.0.2.{number + 1}",
            )
        self.changed()

    def leave(self, room: str, peer_id: str, reason: str = "left") -> None:
        """Its seat is gone."""
        self.tracking.left(room, peer_id, reason, self.now())
        self.changed()

    def drop(self, room: str, peer_id: str) -> None:
        """Its socket is gone."""
        self.tracking.dropped(room, peer_id, self.now())
        self.changed()

    def report(self, room: str, peer_id: str, links: Iterable[LinkReport], ago: float = 0) -> None:
        """It tells how its links stand."""
        self.tracking.reported(room, peer_id, list(links), self.now(ago))
        self.changed()

    def link(self, room: str, a: str, b: str, *, ago: float = 0, **facts: Any) -> None:
        """Both tell the same of their link."""
        self.report(room, a, [link_report(b, **facts)], ago)
        self.report(room, b, [link_report(a, **facts)], ago)

    # --- sockets ---------------------------------------------------------------------------------

    def _apply(self, outputs: list[Output]) -> None:
        assert outputs == []
        self.changed()
        if self.on_act is not None:
            self.on_act()

    def _figures(self) -> RelayFigures:
        return replace(self.figures, uptime=self._loop.time() - self.began)

    def _respond(self, socket: ServerConnection, request: Request) -> Response | None:
        path, _, query = request.path.partition("?")
        if path == LIVE_PATH and "Upgrade" in request.headers:
            return None
        answer = self._admin.answer(path, query, request.headers, "127.0.0.1")
        return to_response(answer or Answer(404, b"nothing\n"))

    async def _serve(self, socket: ServerConnection) -> None:
        await self._admin.live(socket, "127.0.0.1")


def link_report(peer_id: str, **facts: Any) -> LinkReport:
    """What somebody says of its link to ``peer_id``; unless told otherwise it is well."""
    facts = {"state": "connected", "ice_state": "connected", "path": "direct", **facts}
    return LinkReport(peer_id=peer_id, incarnation=_incarnation(peer_id), **facts)


def _incarnation(peer_id: str) -> str:
    return hashlib.sha256(peer_id.encode()).hexdigest()[:16]
