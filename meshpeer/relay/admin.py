"""What is the operator's: the dashboard, its live WebSocket, the admin API, the metrics.

All of it is behind HTTP Basic (RFC 7617), what is not there as well. The admin API answers JSON:

=============================  ====================================================================
``/api/admin/mesh-status``     `MeshStatus`
``/api/admin/rooms``           ``rooms``: `RoomInfo`, the largest first
``/api/admin/peers``           ``peers``: `PeerInfo`; ``?room=`` only those of one room
``/api/admin/activity``        ``activity``: `Activity`, the oldest first, and ``latest``, the
                               number of the last one; ``?after=`` only those after that number
``/api/admin/session``         ``ticket`` for the live WebSocket (`meshpeer.relay.live`), and
                               ``expiresIn``, the seconds for which it is good
=============================  ====================================================================

The first three are made in parts (`Answer.rest`), between which anything may happen.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import math
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl

import msgspec
from websockets.asyncio.server import ServerConnection

from meshpeer.config import RelayConfig
from meshpeer.core.limits import Buckets, address_key
from meshpeer.core.messages import Room
from meshpeer.core.rooms import Output, Rooms
from meshpeer.core.tracking import RoomTopology, Tracking
from meshpeer.log import Log
from meshpeer.relay.figures import RelayFigures
from meshpeer.relay.http import Answer
from meshpeer.relay.live import TICKET_LIFETIME, Live
from meshpeer.relay.pages import read_files

if TYPE_CHECKING:
    from meshpeer.relay.metrics import Exposition

__all__ = ["LIVE_PATH", "Admin", "RelayFigures"]

LIVE_PATH = "/api/admin/live"
"""The dashboard's WebSocket."""

_API: Final = "/api/admin"
_PAGE: Final = "/admin-analytics"
_METRICS: Final = "/metrics"
_ADDRESSES: Final = 10_000
"""Addresses that wrong passwords came from and that are remembered."""
_CHALLENGE: Final = ("WWW-Authenticate", 'Basic realm="meshpeer relay", charset="UTF-8"')

_log = Log(part="relay")


class _BadQuery(ValueError):
    """The text names the parameter."""


class Admin:
    """Answers what is the operator's, and nobody else's.

    ``apply`` carries out what `Rooms` wants done. ``now`` is the clock of `Rooms`, and the running
    event loop's.
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
        self._rooms = rooms
        self._figures = figures
        self._now = now
        self._password = config.admin_password or secrets.token_urlsafe(18)
        self._credentials = _digests(config.admin_user.encode(), self._password.encode())
        attempts = config.admin_attempts
        self._wrong = Buckets[str](attempts / 60, attempts, _ADDRESSES)
        self._live = Live(config, rooms, apply=apply, figures=figures, now=now)
        self._files: dict[str, Answer] | None = None
        self._exposition: Exposition | None = None

    @property
    def password(self) -> str:
        """The configured password, or the one that was made."""
        return self._password

    def answer(
        self, path: str, query: str, headers: Mapping[str, str], address: str
    ) -> Answer | None:
        """Answer a GET; None when nothing of the admin's is there. Anything but a matching
        ``Authorization`` gets 401, or 429 after too many wrong ones from ``address``.

        ``headers`` are looked up as they are written in RFC 9110.
        """
        if path != _METRICS and not f"{path}/".startswith((f"{_API}/", f"{_PAGE}/")):
            return None
        refusal = self._refuse(headers, address)
        if refusal is not None:
            return refusal
        if path == _METRICS:
            return self._metrics()
        if path == LIVE_PATH:
            return Answer(426, b"This is a WebSocket.\n", headers=(("Upgrade", "websocket"),))
        try:
            if path.startswith(f"{_API}/"):
                return self._api(path.removeprefix(f"{_API}/"), query)
        except _BadQuery as exc:
            return Answer(400, f"{exc}\n".encode())
        if self._files is None:
            self._files = _read_files()
        return self._files.get(path)

    async def live(self, socket: ServerConnection, address: str) -> None:
        """Serve the dashboard's WebSocket until it ends. Its first message has a ticket, which only
        somebody who may read the admin API can have."""
        await self._live.serve(socket, address)

    def changed(self) -> None:
        """Something may have happened: to be called after `Rooms` was told anything.

        Costs next to nothing, above all while no dashboard is open.
        """
        self._live.changed()

    def close(self) -> None:
        """The relay goes down: every dashboard is told so, and no more are let in."""
        self._live.close()

    # --- who is it -------------------------------------------------------------------------------

    def _refuse(self, headers: Mapping[str, str], address: str) -> Answer | None:
        try:
            given = headers["Authorization"]
        except LookupError:  # websockets raises its own where there are several
            return Answer(401, b"Who are you?\n", headers=(_CHALLENGE,))
        now, key = self._now(), address_key(address)
        if (wait := self._wrong.wait(key, now)) > 0:
            seconds = str(math.ceil(wait))
            self._count("admin_rate_limited", "too many wrong admin passwords", address)
            text = f"Too many wrong passwords came from your address. Try again in {seconds} s.\n"
            return Answer(429, text.encode(), headers=(("Retry-After", seconds),))
        # Both are compared, in full, whatever they are: by their digests, which are of one length.
        user, password = _digests(*_credentials(given))
        matches = hmac.compare_digest(user, self._credentials[0])
        if hmac.compare_digest(password, self._credentials[1]) and matches:
            return None
        self._wrong.take(key, now)
        self._count("admin_unauthorized", "a wrong admin password", address)
        _log.warning("wrong admin password", address=address)
        return Answer(401, b"That is not the user or not the password.\n", headers=(_CHALLENGE,))

    def _count(self, code: str, text: str, address: str) -> None:
        self._rooms.tracking.refused(code, f"{text} from {address}", self._now(), address=address)
        self._live.changed()

    # --- what is there ---------------------------------------------------------------------------

    def _api(self, name: str, query: str) -> Answer | None:
        tracking = self._rooms.tracking
        wall = time.time() - self._now()
        if name == "mesh-status":
            _parameters(query)
            return _json_parts(_status(tracking, wall))
        if name == "rooms":
            _parameters(query)
            return _json_parts(_listed(b"rooms", tracking.rooms_parts(wall)))
        if name == "peers":
            room = _parameters(query, "room").get("room")
            if room is not None:
                _check_room(room)
            return _json_parts(_listed(b"peers", tracking.peers_parts(wall, room)))
        if name == "activity":
            after = _number("after", _parameters(query, "after").get("after", "0"))
            activity = tracking.activity(wall, after)
            # Where nothing is new the last one is not above ``after``, and may be below: a relay
            # that was started again begins at 1.
            last = (activity or tracking.activity(wall))[-1:]
            return _json({"activity": activity, "latest": last[0].number if last else 0})
        if name == "session":
            _parameters(query)
            return _json({"ticket": self._live.ticket(), "expiresIn": TICKET_LIFETIME})
        return None

    def _metrics(self) -> Answer:
        if self._exposition is None:
            # Imported late: a relay starts without it.
            from meshpeer.relay.metrics import Exposition

            self._exposition = Exposition(self._rooms, self._figures, lambda: self._live.pages)
        return Answer(200, self._exposition.text(), self._exposition.content_type)


def _digests(user: bytes, password: bytes) -> tuple[bytes, bytes]:
    return hashlib.sha256(user).digest(), hashlib.sha256(password).digest()


def _credentials(header: str) -> tuple[bytes, bytes]:
    """User and password (RFC 7617, section 2); what is malformed is nobody's."""
    scheme, _, encoded = header.partition(" ")
    try:
        decoded = base64.b64decode(encoded.strip(" "), validate=True)
    except (binascii.Error, ValueError):
        decoded = b""
    if scheme.lower() != "basic":
        decoded = b""
    user, _, password = decoded.partition(b":")
    return user, password


def _parameters(query: str, *known: str) -> dict[str, str]:
    """The parameters of a query. Raises `_BadQuery` for others than ``known``, each once."""
    takes = f"this address takes {' and '.join(known) or 'no parameters'}"
    if not query:
        return {}
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True, errors="strict")
    except ValueError:
        raise _BadQuery(f"query: not parameters like name=value; {takes}") from None
    found: dict[str, str] = {}
    for name, value in pairs:
        if name not in known:
            raise _BadQuery(f"query: an unknown parameter; {takes}")
        if name in found:
            raise _BadQuery(f"{name}: given more than once")
        found[name] = value
    return found


def _check_room(name: str) -> None:
    try:
        msgspec.convert(name, Room)
    except msgspec.ValidationError:
        raise _BadQuery(
            "room: must be the name of a room: 1 to 128 characters, no control characters"
        ) from None


def _number(name: str, value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) <= 15):
        raise _BadQuery(f"{name}: must be a whole number, 0 or more, of 15 digits at most")
    return int(value)


def _json(data: object) -> Answer:
    return Answer(200, msgspec.json.encode(data) + b"\n", "application/json")


def _json_parts(parts: Iterator[bytes]) -> Answer:
    return Answer(200, b"", "application/json", rest=parts)


def _status(tracking: Tracking, wall: float) -> Iterator[bytes]:
    """`MeshStatus`, as `msgspec` would encode it all at once."""
    yield b'{"metrics":' + msgspec.json.encode(tracking.metrics()) + b',"connections":['
    # Made together with the connections, and written behind them.
    topology: list[bytes] = []
    links: list[bytes] = []
    for part in tracking.status_parts(wall):
        if part.first:
            if topology:
                topology += [b'],"links":[', *links, b"]},"]
                links.clear()
            head = msgspec.json.encode(RoomTopology(part.room.room_id, [], []))
            topology.append(head.removesuffix(b'],"links":[]}'))
            yield _items(part.connections, b"," if len(topology) > 1 else b"")
        else:
            topology.append(b",")
            yield _items(part.connections, b",")
        topology.append(_items(part.room.members))
        if part.room.links:
            links.append(_items(part.room.links, b"," if links else b""))
    yield b'],"topology":['
    yield from topology
    if topology:
        yield b'],"links":['
        yield from links
        yield b"]}"
    yield b"]}\n"


def _listed(name: bytes, parts: Iterable[list[Any]]) -> Iterator[bytes]:
    """An object with one list in it."""
    before = b'{"%b":[' % name
    for part in parts:
        if part:
            yield _items(part, before)
            before = b","
    yield b"]}\n" if before == b"," else before + b"]}\n"


def _items(items: list[Any], before: bytes = b"") -> bytes:
    """What stands between the brackets of a list in JSON."""
    return before + msgspec.json.encode(items)[1:-1]


def _read_files() -> dict[str, Answer]:
    """The dashboard: every file of it by its path."""
    found = read_files("admin", "common", at=_PAGE)
    # The page names its files by their whole paths, so it may be at either.
    found[_PAGE] = found[f"{_PAGE}/"] = found.pop(f"{_PAGE}/index.html")
    return found
