"""The dashboard's live WebSocket: one JSON text message a frame, the kind of each in ``type``.

The page's first message is ``hello`` with a ticket from ``/api/admin/session``, within five
seconds. A ticket is good once, for thirty seconds. It stands in for the password, which browsers
send with a WebSocket or don't, each in its own way, and for pages of other sites too.

==========  =================================================================================
``hello``   ``ticket``
``watch``   ``room``: which room to tell of, or null
``act``     ``id``, ``action``: ``restart_ice`` (``room``, ``peerId``, and ``otherPeerId`` or null
            for all of its links), ``remove`` (``room``, ``peerId``), ``notice`` (``room``,
            ``text``). Answered with ``done``
==========  =================================================================================

The relay says everything once after the hello (all but ``room``), then what changed: the first
change after a quiet time at once, and no more than twice a second.

============  ===============================================================================
``overview``  ``now`` (Unix time), ``relay`` (`RelayFigures`), ``metrics`` (`Metrics`), ``rooms``
              (the 200 largest, `RoomInfo`), ``roomCount``, ``refused`` (how often each code).
              Every five seconds at least
``room``      ``roomId``, ``room`` (`RoomTopology`; null: there is none of that name). After each
              ``watch``, and when something changed in that room. Has 1500 links at most, those
              that are not connected first, then those over the relay
``activity``  ``entries`` (`Activity`) since the last ones, the latest 200 at most
``history``   ``samples`` (`Sample`) since the last ones
``done``      ``id``, ``ok``, ``text``: what became of an action, for people
============  ===============================================================================

Close codes (RFC 6455, section 7.4.2): 4400 it said something malformed or out of place; 4401 no
ticket that is good; 4429 twenty pages are open already; 1012 the relay goes down.

Each message is of one moment, and each of its own. A page that does not read is told nothing
meanwhile, and cut off after half a minute. Telling what changed takes a tenth of the relay's time
at most, a few milliseconds at once, and nothing while no page is open.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import secrets
import socket as sockets
import time
from bisect import bisect
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct
from websockets.asyncio.server import ServerConnection, broadcast
from websockets.exceptions import ConnectionClosed

from meshpeer.alarm import Alarm
from meshpeer.config import RelayConfig
from meshpeer.core.messages import PeerId, Room, printable
from meshpeer.core.rooms import CLOSE_RESTART, Output, Rooms
from meshpeer.core.tracking import (
    Activity,
    Metrics,
    RoomInfo,
    RoomTopology,
    Sample,
)
from meshpeer.errors import ConfigError
from meshpeer.log import Log
from meshpeer.relay.figures import RelayFigures

__all__ = ["CLOSE_MALFORMED", "CLOSE_TICKET", "CLOSE_TOO_MANY", "TICKET_LIFETIME", "Live"]

CLOSE_MALFORMED: Final = 4400
CLOSE_TICKET: Final = 4401
CLOSE_TOO_MANY: Final = 4429
TICKET_LIFETIME: Final = 30.0
"""Seconds."""

_MAX_TICKETS: Final = 100
_MAX_PAGES: Final = 20
_MAX_SIZE: Final = 8 * 1024
"""Bytes of a message from the page."""
_HELLO: Final = 5.0
"""Seconds that it has to say hello."""
_SOON: Final = 0.02
"""Seconds after a change in which what belongs to it arrives as well."""
_PAUSE: Final = 0.5
"""Seconds between one telling and the next, at least."""
_SHARE: Final = 10
"""What telling took, times this, is the pause after it where that is longer."""
_IDLE: Final = 5.0
"""Seconds between one telling and the next, at most."""
_UNSENT: Final = 64 * 1024
"""Bytes that wait for a page, beyond which it is behind."""
_KERNEL: Final = 256 * 1024
"""Bytes that may wait in its socket. By itself a system takes megabytes: a page on a slow line
would see what was true a minute ago."""
_BEHIND: Final = 30.0
"""Seconds that it may be behind."""
_MAX_ROOMS: Final = 200
_MAX_LINKS: Final = 1_500
"""All of a room of 55 members."""
_MAX_ENTRIES: Final = 200

_log = Log(part="relay")


# --- what is said ----------------------------------------------------------------------------


class _Hello(Struct, frozen=True, tag="hello", rename="camel", forbid_unknown_fields=True):
    ticket: Annotated[str, Meta(max_length=100)]

    def __repr__(self) -> str:
        return "_Hello()"  # a ticket is a secret


class _Watch(Struct, frozen=True, tag="watch", rename="camel", forbid_unknown_fields=True):
    room: Room | None


class _Act(Struct, frozen=True, tag="act", rename="camel", forbid_unknown_fields=True):
    id: Annotated[int, Meta(ge=0, le=2**53)]
    action: Literal["restart_ice", "remove", "notice"]
    room: Room
    peer_id: PeerId | None = None
    other_peer_id: PeerId | None = None
    text: str | None = None


class _Overview(Struct, frozen=True, tag="overview", rename="camel"):
    now: float
    relay: RelayFigures
    metrics: Metrics
    rooms: list[RoomInfo]
    room_count: int
    refused: dict[str, int]


class _Room(Struct, frozen=True, tag="room", rename="camel"):
    room_id: str
    room: RoomTopology | None


class _Activity(Struct, frozen=True, tag="activity", rename="camel"):
    entries: list[Activity]


class _History(Struct, frozen=True, tag="history", rename="camel"):
    samples: list[Sample]


class _Done(Struct, frozen=True, tag="done", rename="camel"):
    id: int
    ok: bool
    text: str


_decoder: Final[msgspec.json.Decoder[_Hello | _Watch | _Act]] = msgspec.json.Decoder(
    _Hello | _Watch | _Act
)


class _End(Exception):
    """Close the page's socket, with a code and a reason."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        # RFC 6455, section 5.5: 125 bytes, two of which are the code.
        self.reason = reason.encode()[:123].decode(errors="ignore")


@dataclass(slots=True, eq=False)
class _Page:
    socket: ServerConnection
    address: str
    reading: asyncio.Timeout = field(default_factory=lambda: asyncio.timeout(_HELLO))
    """Around the reading of the socket; let expire to end it from elsewhere."""
    watches: str | None = None
    due: bool = False
    """It is to be told of the room that it watches, as far as that changed."""
    version: int | None = None
    """Of that room, as it was told last. None: not told of it."""
    number: int | None = None
    """Of the latest activity that it was told. None: it was told nothing yet."""
    sampled: float = -math.inf
    """The time of the latest sample that it was told, by the clock of `Rooms`."""
    behind: float | None = None
    """Since when too much waits for it."""


class _Telling:
    """What is true at one moment but for single rooms, encoded once for all pages."""

    def __init__(
        self, rooms: Rooms, figures: Callable[[], RelayFigures], now: float, wall: float
    ) -> None:
        self._known = rooms
        self._tracking = rooms.tracking
        self._figures = figures
        self.now = now
        self.wall = wall
        """What is added to times of `Rooms` for Unix time."""

    @cached_property
    def overview(self) -> bytes:
        return msgspec.json.encode(
            _Overview(
                now=self.now + self.wall,
                relay=self._figures(),
                metrics=self._tracking.metrics(),
                rooms=self._tracking.rooms(self.wall, _MAX_ROOMS),
                room_count=self._known.rooms,
                refused=self._tracking.refusals,
            )
        )

    def activity(self, after: int) -> list[Activity]:
        return self._tracking.activity(self.wall, after)[-_MAX_ENTRIES:]

    @cached_property
    def history(self) -> list[Sample]:
        return self._tracking.history(self.wall)


class Live:
    """Every open page. ``apply``, ``figures`` and ``now`` are those of `Admin`."""

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
        self._rooms = rooms
        self._apply = apply
        self._figures = figures
        self._now = now
        # By hash, so that how long a look-up takes says nothing of the tickets there are; the
        # oldest first.
        self._tickets: OrderedDict[bytes, float] = OrderedDict()
        self._open: set[_Page] = set()
        """Those that have not shown a ticket as well. The relay bounds its sockets."""
        self._pages: set[_Page] = set()
        self._alarm = Alarm(self._ring)
        self._changed = False
        self._version = -1
        self._earliest = 0.0
        """When the pages may be told again."""
        self._next = 0.0
        """When they are."""
        self._steps: Iterator[None] | None = None
        """What is left to tell now. After each step it is the turn of the relay's other work."""
        self._took = 0.0
        """Seconds that the steps so far took."""
        self._closed = False

    @property
    def pages(self) -> int:
        """Pages that are open."""
        return len(self._pages)

    def ticket(self) -> str:
        """One ticket more. A hundred at most are good at a time: the oldest go."""
        now = self._now()
        while self._tickets:
            oldest, until = next(iter(self._tickets.items()))
            if len(self._tickets) < _MAX_TICKETS and now < until:
                break
            del self._tickets[oldest]
        ticket = secrets.token_urlsafe(24)
        self._tickets[_hash(ticket)] = now + TICKET_LIFETIME
        return ticket

    def changed(self) -> None:
        """See `Admin.changed`."""
        if self._pages and not self._changed and self._rooms.tracking.version != self._version:
            self._changed = True
            self._next = max(self._earliest, self._now() + _SOON)
            if self._steps is None:
                self._alarm.set(self._next)

    def close(self) -> None:
        """Close every page, and let none in any more."""
        self._closed = True
        for page in self._open:
            if not page.reading.expired():
                page.reading.reschedule(0)

    async def serve(self, socket: ServerConnection, address: str) -> None:
        """See `Admin.live`."""
        page = _Page(socket, address)
        self._open.add(page)
        end = None
        try:
            async with page.reading:
                if self._closed:
                    page.reading.reschedule(0)
                await self._read(page)
        except _End as exc:
            end = exc
        except TimeoutError:
            if self._closed:
                end = _End(CLOSE_RESTART, "the relay goes down")
            else:
                end = _End(CLOSE_TICKET, f"no hello came within {_HELLO:g} s")
        except ConnectionClosed:
            pass  # the page was closed, or cut off
        finally:
            self._open.discard(page)
            self._pages.discard(page)
            if not self._pages:
                self._steps = None
                self._alarm.set(None)
        if end is not None:
            await socket.close(end.code, end.reason)

    # --- from the page ---------------------------------------------------------------------------

    async def _read(self, page: _Page) -> None:
        hello = await self._hear(page)
        if not isinstance(hello, _Hello):
            raise _End(CLOSE_MALFORMED, "the first message must be a hello")
        if not self._tickets.pop(_hash(hello.ticket), 0.0) > self._now():
            raise _End(
                CLOSE_TICKET, "not a ticket, or used, or expired: get one at /api/admin/session"
            )
        if len(self._pages) >= _MAX_PAGES:
            raise _End(CLOSE_TOO_MANY, f"{_MAX_PAGES} dashboards are open, which is the limit")
        page.reading.reschedule(None)
        if (sock := page.socket.transport.get_extra_info("socket")) is not None:
            with suppress(OSError):
                sock.setsockopt(sockets.SOL_SOCKET, sockets.SO_SNDBUF, _KERNEL)
        _log.info("dashboard opened", address=page.address)
        if not self._pages:
            self._changed = False
            self._version = self._rooms.tracking.version
            self._next = self._now() + _IDLE
            self._alarm.set(self._next)
        self._pages.add(page)
        self._tell(page, self._telling())
        while True:
            message = await self._hear(page)
            if isinstance(message, _Watch):
                page.watches = message.room
                page.version = None
                page.due = True
                if self._steps is None:
                    self._steps, self._took = self._tell_rooms(), 0.0
                    self._alarm.set(self._now())
            elif isinstance(message, _Act):
                self._act(page, message)
            else:
                raise _End(CLOSE_MALFORMED, "a second hello")

    async def _hear(self, page: _Page) -> _Hello | _Watch | _Act:
        data = await page.socket.recv(decode=False)
        if len(data) > _MAX_SIZE:
            raise _End(CLOSE_MALFORMED, f"a message of more than {_MAX_SIZE} bytes")
        try:
            return _decoder.decode(data)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
            raise _End(CLOSE_MALFORMED, printable(str(exc))) from None

    def _act(self, page: _Page, act: _Act) -> None:
        try:
            outputs, text = self._decide(act)
        except ConfigError as exc:
            done = _Done(id=act.id, ok=False, text=str(exc))
        else:
            self._apply(outputs)
            done = _Done(id=act.id, ok=True, text=text)
        _log.info(
            "the operator acted",
            user=self._config.admin_user,
            address=page.address,
            action=act.action,
            room=act.room,
            peer_id=act.peer_id,
            other=act.other_peer_id,
            text=printable(act.text or ""),
            ok=done.ok,
        )
        self._say(page, msgspec.json.encode(done))

    def _decide(self, act: _Act) -> tuple[list[Output], str]:
        """What has to be done, and what to tell of it. Raises `ConfigError`."""
        rooms, now = self._rooms, self._now()
        if act.action == "notice":
            if act.text is None:
                raise ConfigError("the action notice needs a text")
            return rooms.notice(act.room, act.text, now), f"sent to everybody in room {act.room!r}"
        if act.peer_id is None:
            raise ConfigError(f"the action {act.action} needs a peerId")
        if act.action == "remove":
            outputs = rooms.remove(act.room, act.peer_id, now)
            return outputs, f"removed {act.peer_id!r} from room {act.room!r}"
        outputs = rooms.restart_ice(act.room, act.peer_id, act.other_peer_id, now)
        whom = "everybody" if act.other_peer_id is None else repr(act.other_peer_id)
        return outputs, f"asked {act.peer_id!r} to restart ICE with {whom}"

    # --- to the pages ----------------------------------------------------------------------------

    def _telling(self) -> _Telling:
        return _Telling(self._rooms, self._figures, self._now(), self._wall())

    def _wall(self) -> float:
        return time.time() - self._now()

    def _ring(self) -> None:
        began = self._now()
        # First, so that it goes on whatever happens below.
        self._alarm.set(began + _IDLE)
        steps, self._steps = self._steps, None
        if steps is None:
            steps, self._took = self._tell_all(began), 0.0
        try:
            next(steps)
        except StopIteration:
            pass
        else:
            self._steps = steps
        now = self._now()
        self._took += now - began
        if self._steps is not None:
            self._alarm.set(now)
            return
        self._earliest = max(self._earliest, now + self._took * _SHARE)
        if any(page.behind is not None for page in self._pages):
            self._next = self._earliest
        self._next = max(self._next, self._earliest)
        self._alarm.set(self._next)

    def _tell_all(self, now: float) -> Iterator[None]:
        self._changed = False
        self._version = self._rooms.tracking.version
        self._earliest = now + _PAUSE
        self._next = now + _IDLE
        telling = self._telling()
        for page in self._pages:
            page.due = self._tell(page, telling)
        yield
        yield from self._tell_rooms()

    def _tell(self, page: _Page, telling: _Telling) -> bool:
        """Say what it does not know yet but of its room. False: later, it is behind."""
        if self._behind(page, telling.now):
            return False
        self._say(page, telling.overview)
        first = page.number is None
        entries = telling.activity(page.number or 0)
        if entries or first:
            page.number = entries[-1].number if entries else 0
            self._say(page, msgspec.json.encode(_Activity(entries=entries)))
        # By the clock of `Rooms`: Unix time may be set back. Sums of floats are not exact.
        times = [sample.at - telling.wall for sample in telling.history]
        samples = telling.history[bisect(times, page.sampled + 0.001) :]
        if samples or first:
            page.sampled = max(times, default=page.sampled)
            self._say(page, msgspec.json.encode(_History(samples=samples)))
        return True

    def _tell_rooms(self) -> Iterator[None]:
        """Say what became of the rooms that are watched, to those who do not know it yet."""
        tracking = self._rooms.tracking
        while (page := next((page for page in self._pages if page.due), None)) is not None:
            name = page.watches
            if name is None or page.version == tracking.room_version(name):
                page.due = False
                continue
            # Of before: what happens meanwhile may not be in it.
            version = tracking.room_version(name)
            room = yield from tracking.room_in_steps(name, self._wall(), _MAX_LINKS)
            yield
            data = msgspec.json.encode(_Room(room_id=name, room=room))
            now = self._now()
            for page in self._pages:
                if page.due and page.watches == name:
                    page.due = False
                    if page.version != version and not self._behind(page, now):
                        page.version = version
                        self._say(page, data)
            yield

    def _behind(self, page: _Page, now: float) -> bool:
        """Whether too much waits for it; for too long, and it is cut off."""
        if page.socket.transport.get_write_buffer_size() <= _UNSENT:
            page.behind = None
            return False
        if page.behind is None:
            page.behind = now
        elif now - page.behind >= _BEHIND:
            self._cut_off(page)
        return True

    def _say(self, page: _Page, data: bytes) -> None:
        transport = page.socket.transport
        if transport.is_closing():
            return  # what it had said before is heard, and nobody listens any more
        if transport.get_write_buffer_size() > self._config.max_unread:
            self._cut_off(page)
        else:
            # Writes to the transport at once, whatever its buffer holds; never waits.
            broadcast([page.socket], data, text=True)

    def _cut_off(self, page: _Page) -> None:
        _log.info("dashboard cut off: does not read", address=page.address)
        page.socket.transport.abort()


def _hash(ticket: str) -> bytes:
    return hashlib.sha256(ticket.encode()).digest()
