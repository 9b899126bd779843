"""The dashboard's live WebSocket in virtual time: what a page is told and when, what it may do."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosedOK

from meshpeer.relay import live
from meshpeer.relay.admin import Admin
from tests.relay.board import Board, captured, meet
from tests.virtual import virtual

SOON = 0.05
"""Seconds within which the first change is told."""


class Page:
    """A socket, at the relay's end, and whoever is at the other."""

    def __init__(self, admin: Admin) -> None:
        self.heard: list[tuple[float, dict[str, Any]]] = []
        self.closed: tuple[int, str] | None = None
        self.unsent = 0
        self.aborted = False
        self.transport = SimpleNamespace(
            get_write_buffer_size=lambda: self.unsent,
            get_extra_info=lambda name: None,
            is_closing=lambda: self.aborted,
            abort=self.abort,
        )
        self._incoming: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.task = asyncio.create_task(admin.live(self, "192.0.2.1"))  # type: ignore[arg-type]

    # what the relay sees
    async def recv(self, decode: bool | None = None) -> bytes:
        assert decode is False
        data = await self._incoming.get()
        if data is None:
            raise ConnectionClosedOK(None, None)
        return data

    async def close(self, code: int, reason: str) -> None:
        assert len(reason.encode()) <= 123
        self.closed = (code, reason)

    def abort(self) -> None:
        self.aborted = True
        self._incoming.put_nowait(None)

    def write(self, data: bytes) -> None:
        self.heard.append((asyncio.get_running_loop().time(), json.loads(data)))

    # what the page does
    def say(self, message: dict[str, Any] | bytes) -> None:
        data = message if isinstance(message, bytes) else json.dumps(message).encode()
        self._incoming.put_nowait(data)

    def leave(self) -> None:
        self._incoming.put_nowait(None)

    def take(self, kind: str | None = None) -> list[Any]:
        """What was heard since the last time, of one kind or all."""
        heard = [m for _, m in self.heard if kind in (None, m["type"])]
        self.heard.clear()
        return heard


@pytest.fixture(autouse=True)
def _writes(monkeypatch: pytest.MonkeyPatch) -> None:
    def broadcast(pages: Iterable[Page], data: bytes, *, text: bool) -> None:
        assert text
        for page in pages:
            page.write(data)

    monkeypatch.setattr(live, "broadcast", broadcast)


def admin_of(board: Board) -> Admin:
    return board.admin(now=asyncio.get_running_loop().time)


def ticket_of(admin: Admin) -> str:
    ticket = admin._live.ticket()
    assert isinstance(ticket, str)
    return ticket


async def signed_in(admin: Admin) -> Page:
    page = Page(admin)
    page.say({"type": "hello", "ticket": ticket_of(admin)})
    await asyncio.sleep(0.001)
    assert page.closed is None
    assert [m["type"] for _, m in page.heard] == ["overview", "activity", "history"]
    return page


async def ended(*pages: Page) -> None:
    for page in pages:
        page.leave()
    await asyncio.gather(*(page.task for page in pages))


# --- who is let in -------------------------------------------------------------------------------
@virtual
async def test_everything_is_told_at_first() -> None:
    board = Board()
    board.now = 0.0
    board.join("lobby", "ann", name="Ann")
    board.join("lobby", "bob")
    board.tracking.tick(10.0)
    board.tracking.refused("room_full", "no", 11.0)
    page = await signed_in(admin_of(board))
    (overview, activity, history) = page.take()
    assert overview.keys() == {
        "type", "now", "relay", "metrics", "rooms", "roomCount", "refused",
    }  # fmt: skip
    assert overview["relay"] == {
        "version": "1.2.3",
        "uptime": 12.5,
        "connections": 3,
        "accepted": 5,
        "refused": {"too_many": 2},
        "messagesIn": 10,
        "messagesOut": 20,
        "bytesIn": 1000,
        "bytesOut": 2000,
        "cutOff": 1,
    }
    assert overview["metrics"]["totalP2PAttempts"] == 0
    assert [room["roomId"] for room in overview["rooms"]] == ["lobby"]
    assert overview["roomCount"] == 1
    assert overview["refused"] == {"room_full": 1}
    assert [entry["kind"] for entry in activity["entries"]] == ["joined", "joined", "refused"]
    assert [sample["members"] for sample in history["samples"]] == [2]
    # Unix time, in all of them.
    assert history["samples"][0]["at"] - activity["entries"][0]["at"] == pytest.approx(10.0)
    assert overview["now"] - activity["entries"][0]["at"] == pytest.approx(0.0, abs=0.01)
    await ended(page)


@virtual
async def test_a_ticket_is_good_once_and_for_thirty_seconds() -> None:
    admin = admin_of(Board())
    used, late, punctual = (ticket_of(admin) for _ in range(3))
    assert len({used, late, punctual}) == 3
    pages = [Page(admin), Page(admin)]
    for page in pages:
        page.say({"type": "hello", "ticket": used})
    await asyncio.sleep(29.9)
    pages.append(Page(admin))
    pages[-1].say({"type": "hello", "ticket": punctual})
    await asyncio.sleep(0.2)
    pages.append(Page(admin))
    pages[-1].say({"type": "hello", "ticket": late})
    for forged in ("", "x" * 32, used[:-1], "\u00e4"):
        pages.append(Page(admin))
        pages[-1].say({"type": "hello", "ticket": forged})
    await asyncio.sleep(0.001)
    codes = [page.closed and page.closed[0] for page in pages]
    assert codes == [None, 4401, None, 4401, 4401, 4401, 4401, 4401]
    assert all(not page.heard for page in pages if page.closed)
    assert "/api/admin/session" in pages[1].closed[1]  # type: ignore[index]
    await ended(*pages)


@virtual
async def test_there_are_never_more_than_a_hundred_tickets() -> None:
    admin = admin_of(Board())
    first = ticket_of(admin)
    rest = [ticket_of(admin) for _ in range(100)]
    assert len(admin._live._tickets) == 100
    pages = []
    for ticket in (first, rest[0], rest[-1]):
        pages.append(Page(admin))
        pages[-1].say({"type": "hello", "ticket": ticket})
    await asyncio.sleep(0.001)
    assert [page.closed and page.closed[0] for page in pages] == [4401, None, None]
    await asyncio.sleep(30)
    ticket_of(admin)
    assert len(admin._live._tickets) == 1  # those that expired are gone
    await ended(*pages)


@virtual
async def test_who_says_nothing_has_five_seconds() -> None:
    page = Page(admin_of(Board()))
    await asyncio.sleep(4.9)
    ends = [page.closed]
    await asyncio.sleep(0.2)
    ends.append(page.closed)
    assert ends == [None, (4401, "no hello came within 5 s")]
    await page.task


@virtual
async def test_whoever_is_in_may_be_silent() -> None:
    page = await signed_in(admin_of(Board()))
    await asyncio.sleep(1000)
    assert page.closed is None
    await ended(page)


@virtual
async def test_twenty_pages_and_strangers_take_no_place_of_theirs() -> None:
    admin = admin_of(Board())
    strangers = [Page(admin) for _ in range(30)]
    pages = [await signed_in(admin) for _ in range(20)]
    one_more = Page(admin)
    one_more.say({"type": "hello", "ticket": ticket_of(admin)})
    await asyncio.sleep(0.001)
    assert one_more.closed is not None
    assert one_more.closed[0] == 4429
    assert "20" in one_more.closed[1]
    await ended(pages.pop())
    pages.append(await signed_in(admin))
    await ended(*pages, *strangers)


# --- what is told when ---------------------------------------------------------------------------
def times(page: Page, kind: str) -> list[float]:
    return [at for at, message in page.heard if message["type"] == kind]


@virtual
async def test_the_first_change_is_told_at_once_and_then_two_a_second() -> None:
    loop = asyncio.get_running_loop()
    board = Board()
    admin = admin_of(board)
    page, other = await signed_in(admin), await signed_in(admin)
    await asyncio.sleep(3)
    page.take()
    other.take()
    began = loop.time()
    for number in range(2000):  # for two seconds
        board.now = loop.time()
        board.join("lobby", f"p{number}")
        admin.changed()
        if number == 60:
            assert [at - began for at in times(page, "overview")] == [pytest.approx(0.02, abs=0.03)]
        await asyncio.sleep(0.001)
    told = times(page, "overview")
    assert told[0] - began <= SOON
    assert 4 <= len(told) <= 5
    assert all(b - a >= 0.5 - 1e-6 for a, b in itertools.pairwise(told))
    assert times(other, "overview") == told
    # With the first change goes what belongs to it.
    first = next(m for _, m in page.heard if m["type"] == "overview")
    assert first["rooms"][0]["members"] >= 10
    # What came last is not forgotten.
    await asyncio.sleep(0.6)
    overviews = [m for _, m in page.heard if m["type"] == "overview"]
    assert overviews[-1]["rooms"][0]["members"] == 2000
    entries = [e for _, m in page.heard if m["type"] == "activity" for e in m["entries"]]
    assert entries[-1]["peerId"] == "p1999"
    # And it becomes quiet again.
    page.take()
    await asyncio.sleep(4)
    assert not page.heard
    await ended(page, other)


@virtual
async def test_without_a_change_there_is_an_overview_every_five_seconds() -> None:
    board = Board()
    admin = admin_of(board)
    page = await signed_in(admin)
    page.say({"type": "watch", "room": "lobby"})
    await asyncio.sleep(0.001)
    page.take()
    for _ in range(21):
        admin.changed()  # nothing did
        await asyncio.sleep(1)
    assert [m["type"] for _, m in page.heard] == ["overview"] * 4
    told = times(page, "overview")
    assert [b - a for a, b in itertools.pairwise(told)] == [pytest.approx(5.0)] * 3
    await ended(page)


@virtual
async def test_with_no_page_open_nothing_is_looked_at() -> None:
    class Nothing:
        """What is looked at fails."""

    board = Board()
    admin = admin_of(board)
    tracking = board.tracking
    board.tracking = Nothing()  # type: ignore[assignment]
    admin.changed()
    board.tracking = tracking
    page = await signed_in(admin)
    board.join("lobby", "ann")
    admin.changed()
    await ended(page)
    board.tracking = Nothing()  # type: ignore[assignment]
    admin.changed()
    await asyncio.sleep(60)  # no timer is left either
    # A page that comes later is told of changes as the first one was.
    board.tracking = tracking
    page = await signed_in(admin)
    page.take()
    board.join("lobby", "bob")
    admin.changed()
    await asyncio.sleep(SOON)
    assert [m["type"] for m in page.take()] == ["overview", "activity"]
    await ended(page)


@virtual
async def test_only_what_is_new_is_told() -> None:
    board = Board()
    admin = admin_of(board)
    early = await signed_in(admin)
    early.take()
    board.now = 5.0
    board.join("lobby", "ann")
    admin.changed()
    await asyncio.sleep(1)
    assert [e["peerId"] for m in early.take("activity") for e in m["entries"]] == ["ann"]
    late = await signed_in(admin)
    assert [e["peerId"] for m in late.take("activity") for e in m["entries"]] == ["ann"]
    board.tracking.tick(15.0)
    admin.changed()
    await asyncio.sleep(1)
    for page in (early, late):
        (overview, history) = page.take()
        assert overview["type"] == "overview"
        assert [s["members"] for s in history["samples"]] == [1]
    board.join("lobby", "bob")
    board.tracking.tick(25.0)
    admin.changed()
    await asyncio.sleep(1)
    for page in (early, late):
        (overview, activity, history) = page.take()
        assert [e["peerId"] for e in activity["entries"]] == ["bob"]
        assert [s["members"] for s in history["samples"]] == [2]
    await ended(early, late)


@virtual
async def test_a_sample_is_told_once_when_the_clock_of_the_wall_is_set() -> None:
    board = Board()
    admin = admin_of(board)
    # Where floats become coarser as well: sums of them are not what they were.
    wall = [2.0**31]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(live, "time", SimpleNamespace(time=lambda: wall[0]))
        board.join("lobby", "ann")
        page = await signed_in(admin)
        page.take()
        members = 1
        for number in range(50):
            wall[0] += (-7200.0, 0.123456789, 7200.0, 3600.0, -3600.0)[number % 5]
            board.tracking.tick(1010.1 + 10.137 * number)
            members += 1
            board.join("lobby", f"p{number}")
            admin.changed()
            await asyncio.sleep(1)
            assert [s["members"] for m in page.take("history") for s in m["samples"]] == [
                members - 1
            ]
    await ended(page)


@virtual
async def test_a_wrong_password_is_seen_at_once() -> None:
    admin = admin_of(Board())
    page = await signed_in(admin)
    page.take()
    answer = admin.answer("/metrics", "", {"Authorization": "Basic x"}, "198.51.100.7")
    assert answer is not None
    assert answer.status == 401
    await asyncio.sleep(SOON)
    assert page.take("overview")[0]["refused"] == {"admin_unauthorized": 1}
    await ended(page)


@virtual
async def test_no_more_than_two_hundred_entries_at_once() -> None:
    board = Board()
    admin = admin_of(board)
    for number in range(300):
        board.join("lobby", f"p{number}")
    page = await signed_in(admin)
    (activity,) = page.take("activity")
    assert [e["number"] for e in activity["entries"]] == list(range(101, 301))
    for number in range(500):
        board.join("hall", f"p{number}")
    admin.changed()
    await asyncio.sleep(SOON)
    (activity,) = page.take("activity")
    assert [e["number"] for e in activity["entries"]] == list(range(601, 801))
    await ended(page)


@virtual
async def test_the_largest_rooms() -> None:
    board = Board()
    for number in range(250):
        board.join(f"room-{number}", "ann")
        if number >= 100:
            board.join(f"room-{number}", "bob")
    page = await signed_in(admin_of(board))
    (overview,) = page.take("overview")
    assert overview["roomCount"] == 250
    assert len(overview["rooms"]) == 200
    assert [room["members"] for room in overview["rooms"]] == [2] * 150 + [1] * 50
    await ended(page)


@virtual
async def test_a_watched_room() -> None:
    board = Board()
    admin = admin_of(board)
    page, other = await signed_in(admin), await signed_in(admin)
    page.say({"type": "watch", "room": "lobby"})
    other.say({"type": "watch", "room": "hall"})
    await asyncio.sleep(0.001)
    assert page.take("room") == [{"type": "room", "roomId": "lobby", "room": None}]
    other.take()

    async def change() -> list[Any]:
        admin.changed()
        await asyncio.sleep(1)
        assert other.take("room") == []
        return page.take("room")

    board.join("lobby", "ann")
    board.join("lobby", "bob")
    (told,) = await change()
    assert told["roomId"] == told["room"]["roomId"] == "lobby"
    assert [m["peerId"] for m in told["room"]["members"]] == ["ann", "bob"]
    meet(board.tracking, "lobby", "ann", "bob", 0.0, rtt=0.05)
    (told,) = await change()
    assert [(k["a"], k["b"], k["path"], k["rtt"]) for k in told["room"]["links"]] == [
        ("ann", "bob", "direct", 0.05)
    ]
    board.join("elsewhere", "eve")
    assert await change() == []
    board.tracking.left("lobby", "ann", "left", 1.0)
    board.tracking.left("lobby", "bob", "left", 1.0)
    assert await change() == [{"type": "room", "roomId": "lobby", "room": None}]
    # Gone and back between two tellings, or the same again: told each time that it is asked.
    for _ in range(2):
        page.say({"type": "watch", "room": "elsewhere"})
        await asyncio.sleep(0.001)
        (told,) = page.take("room")
        assert [m["peerId"] for m in told["room"]["members"]] == ["eve"]
    page.say({"type": "watch", "room": None})
    board.join("elsewhere", "ann")
    assert await change() == []
    await ended(page, other)


@virtual
async def test_of_a_room_with_very_many_links_those_with_trouble_come_first() -> None:
    board = Board()
    members = [f"p{number:03}" for number in range(110)]
    for peer_id in members:
        board.join("lobby", peer_id)
    pairs = [(a, b) for i, a in enumerate(members) for b in members[i + 1 :]]
    for a, b in pairs:
        trouble = b == members[-1]
        meet(board.tracking, "lobby", a, b, 0.0, state="failed" if trouble else "connected")
    page = await signed_in(admin_of(board))
    page.say({"type": "watch", "room": "lobby"})
    await asyncio.sleep(0.001)
    (told,) = page.take("room")
    links = told["room"]["links"]
    assert len(links) == 1500 < len(pairs)
    assert [link["state"] for link in links[:109]] == ["failed"] * 109
    assert {link["state"] for link in links[109:]} == {"connected"}
    assert len({(link["a"], link["b"]) for link in links}) == 1500
    assert [member["peerId"] for member in told["room"]["members"]] == members
    await ended(page)


@virtual
async def test_what_many_watch_is_put_together_once() -> None:
    board = Board()
    admin = admin_of(board)
    pages = [await signed_in(admin) for _ in range(5)]
    for page in pages:
        page.say({"type": "watch", "room": "lobby"})
    await asyncio.sleep(0.001)
    asked = []
    for name in ("rooms", "room_in_steps", "history"):
        real = getattr(board.tracking, name)

        def counted(*args: Any, name: str = name, real: Any = real) -> Any:
            asked.append(name)
            return real(*args)

        setattr(board.tracking, name, counted)
    board.join("lobby", "ann")
    admin.changed()
    await asyncio.sleep(SOON)
    assert sorted(asked) == ["history", "room_in_steps", "rooms"]
    assert all(page.take("room")[-1]["room"] for page in pages)
    await ended(*pages)


# --- in steps ------------------------------------------------------------------------------------
class Slow:
    """A board with rooms that are looked at in so many steps, each of which is logged."""

    def __init__(self, patch: pytest.MonkeyPatch, **rooms: int) -> None:
        self.board = Board()
        self.steps: list[str] = []
        """The rooms that steps were made for, and whatever else a test puts here."""
        self.on_step: Callable[[str], Any] = lambda room: None
        real = self.board.tracking.room_in_steps

        def room_in_steps(room: str, wall: float, limit: int) -> Any:
            for _ in range(rooms[room]):
                self.steps.append(room)
                self.on_step(room)
                yield
            return (yield from real(room, wall, limit))

        patch.setattr(self.board.tracking, "room_in_steps", room_in_steps)
        for room in rooms:
            self.board.join(room, "ann")


@virtual
async def test_between_two_steps_it_is_the_others_turn() -> None:
    with pytest.MonkeyPatch.context() as patch:
        slow = Slow(patch, lobby=3, hall=2)
        admin = admin_of(slow.board)
        pages = [await signed_in(admin), await signed_in(admin)]
        for page, room in zip(pages, ("lobby", "hall"), strict=True):
            page.say({"type": "watch", "room": room})
        await asyncio.sleep(0.001)
        for page in pages:
            (told,) = page.take("room")
            assert told["room"]["members"]
        loop = asyncio.get_running_loop()
        slow.on_step = lambda _: loop.call_soon(slow.steps.append, "others")
        slow.steps.clear()
        for room in ("lobby", "hall"):
            slow.board.join(room, "bob")
        admin.changed()
        await asyncio.sleep(SOON)
        assert slow.steps[1::2] == ["others"] * 5
        assert sorted(slow.steps[::2]) == ["hall"] * 2 + ["lobby"] * 3
        for page in pages:
            assert len(page.take("room")[-1]["room"]["members"]) == 2
        await ended(*pages)


@virtual
async def test_what_happens_between_two_steps_is_told_as_well() -> None:
    loop = asyncio.get_running_loop()
    with pytest.MonkeyPatch.context() as patch:
        slow = Slow(patch, lobby=3, hall=1, attic=2)
        admin = admin_of(slow.board)
        page, other, late = [await signed_in(admin) for _ in range(3)]
        page.say({"type": "watch", "room": "lobby"})
        other.say({"type": "watch", "room": "hall"})
        await asyncio.sleep(1)
        for each in (page, other, late):
            each.take()

        def happen(room: str) -> None:
            if room == "lobby" and slow.steps.count("lobby") == 2:
                slow.board.join("attic", "bob")
                slow.board.join("lobby", "cid")
                slow.board.join("hall", "bob")
                loop.call_soon(admin.changed)
                late.say({"type": "watch", "room": "attic"})
                other.leave()

        slow.on_step = happen
        slow.steps.clear()
        began = loop.time()
        slow.board.join("lobby", "bob")
        admin.changed()
        await asyncio.sleep(SOON)
        # As it was when it was told of, and in the same telling whatever was asked for meanwhile.
        (told,) = page.take("room")
        assert [m["peerId"] for m in told["room"]["members"]] == ["ann", "bob", "cid"]
        (told,) = late.take("room")
        assert [m["peerId"] for m in told["room"]["members"]] == ["ann", "bob"]
        assert slow.steps == ["lobby"] * 3 + ["attic"] * 2
        # The rest after the pause, and not later. What happened meanwhile may not have been told.
        await asyncio.sleep(began + 0.6 - loop.time())
        assert [m["type"] for _, m in page.heard] == ["overview", "activity", "room"]
        assert [e["peerId"] for e in page.take("activity")[0]["entries"]] == ["bob", "cid", "bob"]
        assert slow.steps == ["lobby"] * 3 + ["attic"] * 2 + ["lobby"] * 3
        await ended(page, late)
        await other.task


@virtual
async def test_who_asked_is_not_told_the_same_again_with_the_others() -> None:
    board = Board()
    admin = admin_of(board)
    pages = [await signed_in(admin) for _ in range(12)]
    for page in pages:
        page.say({"type": "watch", "room": "lobby"})
    await asyncio.sleep(1)
    for page in pages:
        page.take()
    board.join("lobby", "ann")
    admin.changed()
    for page in pages[1:]:
        page.say({"type": "watch", "room": "lobby"})
    await asyncio.sleep(0.001)
    assert [len(page.take("room")) for page in pages] == [0] + [1] * 11
    await asyncio.sleep(1)
    assert [len(page.take("room")) for page in pages] == [1] + [0] * 11
    await ended(*pages)


@virtual
async def test_the_last_page_leaves_between_two_steps() -> None:
    with pytest.MonkeyPatch.context() as patch:
        slow = Slow(patch, lobby=5)
        admin = admin_of(slow.board)
        page = await signed_in(admin)
        slow.on_step = lambda _: page.leave() if len(slow.steps) == 2 else None
        page.say({"type": "watch", "room": "lobby"})
        await page.task
        tracking = slow.board.tracking
        slow.board.tracking = None  # type: ignore[assignment]
        await asyncio.sleep(60)
        assert len(slow.steps) < 5
        # Whoever comes next is told all of it.
        slow.board.tracking = tracking
        page = await signed_in(admin)
        page.say({"type": "watch", "room": "lobby"})
        await asyncio.sleep(0.001)
        assert page.take("room")
        await ended(page)


@virtual
async def test_who_asks_for_rooms_all_the_time_is_told_of_the_rest_too() -> None:
    board = Board()
    admin = admin_of(board)
    page = await signed_in(admin)
    board.join("lobby", "ann")
    page.take()
    for _ in range(16):
        page.say({"type": "watch", "room": "lobby"})
        await asyncio.sleep(1)
    assert len(times(page, "room")) == 16
    assert len(times(page, "overview")) == 3
    await ended(page)


@virtual
async def test_a_step_that_fails_is_not_the_last() -> None:
    loop = asyncio.get_running_loop()
    failures: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        slow = Slow(patch, lobby=2)
        admin = admin_of(slow.board)
        page = await signed_in(admin)
        page.say({"type": "watch", "room": "lobby"})
        await asyncio.sleep(1)
        page.take()
        handler = loop.get_exception_handler()
        loop.set_exception_handler(lambda _, context: failures.append(context["exception"]))

        def fail(_: str) -> None:
            raise KeyError

        slow.on_step = fail
        slow.board.join("lobby", "bob")
        admin.changed()
        await asyncio.sleep(SOON)
        loop.set_exception_handler(handler)
        slow.on_step = lambda _: None
        assert [type(failure) for failure in failures] == [KeyError]
        assert not page.take("room")
        await asyncio.sleep(5)
        assert len(page.take("room")[0]["room"]["members"]) == 2
        await ended(page)


@virtual
async def test_a_telling_that_fails_is_not_the_last() -> None:
    loop = asyncio.get_running_loop()
    board = Board()
    admin = admin_of(board)
    page = await signed_in(admin)
    page.take()
    failures: list[Any] = []
    handler = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: failures.append(context["exception"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(board.tracking, "rooms", None)
        board.join("lobby", "ann")
        admin.changed()
        await asyncio.sleep(SOON)
    loop.set_exception_handler(handler)
    assert [type(failure) for failure in failures] == [TypeError]
    await asyncio.sleep(5)
    assert page.take("overview")[0]["rooms"][0]["members"] == 1
    await ended(page)


@virtual
async def test_telling_takes_a_tenth_of_the_time_at_most() -> None:
    loop = asyncio.get_running_loop()
    board = Board()
    slow = 0.0

    def now() -> float:
        return loop.time() + slow

    def rooms(wall: float, limit: int | None = None) -> list[Any]:
        nonlocal slow
        slow += 0.2  # as if it took so long
        return []

    board.tracking.rooms = rooms  # type: ignore[method-assign]
    admin = board.admin(now=now)
    page = await signed_in(admin)
    slow = 0.0
    page.take()
    for number in range(100):
        board.join("lobby", f"p{number}")
        admin.changed()
        await asyncio.sleep(0.1)
        slow = 0.0
    told = times(page, "overview")
    assert len(told) >= 3
    assert all(b - a >= 2.0 - 1e-6 for a, b in itertools.pairwise(told))
    await ended(page)


@virtual
async def test_of_a_telling_in_steps_each_step_counts() -> None:
    loop = asyncio.get_running_loop()
    took = 0.0

    def step(_: str) -> None:
        nonlocal took
        took += 0.1

    with pytest.MonkeyPatch.context() as patch:
        slow = Slow(patch, lobby=3)
        admin = slow.board.admin(now=lambda: loop.time() + took)
        page = await signed_in(admin)
        page.say({"type": "watch", "room": "lobby"})
        await asyncio.sleep(0.001)
        page.take()
        slow.on_step = step
        for number in range(120):
            slow.board.join("lobby", f"p{number}")
            admin.changed()
            await asyncio.sleep(0.1)
            took = 0.0
        told = times(page, "overview")
        assert len(told) >= 3
        assert all(b - a >= 3.0 - 1e-6 for a, b in itertools.pairwise(told))
        await ended(page)


# --- a page that does not read -------------------------------------------------------------------
@virtual
async def test_who_does_not_read_is_told_nothing_and_then_cut_off() -> None:
    loop = asyncio.get_running_loop()
    board = Board()
    admin = admin_of(board)
    slow, other = await signed_in(admin), await signed_in(admin)
    slow.say({"type": "watch", "room": "lobby"})
    await asyncio.sleep(0.001)
    slow.take()
    slow.unsent = 64 * 1024 + 1
    began = loop.time()
    with captured() as log:
        for number in range(290):
            board.join("lobby", f"p{number}")
            admin.changed()
            await asyncio.sleep(0.1)
            if number == 100:
                slow.say({"type": "watch", "room": "lobby"})  # asks for more and more
        assert not slow.heard
        assert not slow.aborted
        assert len(times(other, "overview")) > 50
        # It reads again: what it missed is told, within a second.
        slow.unsent = 64 * 1024
        await asyncio.sleep(0.6)
        heard = {m["type"]: m for m in slow.take()}
        assert heard.keys() == {"overview", "room", "activity"}
        assert len(heard["room"]["room"]["members"]) == 290
        assert [e["number"] for e in heard["activity"]["entries"]] == list(range(91, 291))
        # The same where nothing else happens.
        slow.unsent = 64 * 1024 + 1
        board.join("lobby", "more")
        admin.changed()
        await asyncio.sleep(2)
        slow.unsent = 0
        await asyncio.sleep(0.6)
        assert {m["type"] for m in slow.take()} == {"overview", "room", "activity"}
        # The half minute counts from when it stopped, not from the first time.
        slow.unsent = 64 * 1024 + 1
        await asyncio.sleep(29)
        aborted = [slow.aborted]
        assert not [entry for entry in log if "cut off" in entry["event"]]
        await asyncio.sleep(7)
        aborted.append(slow.aborted)
        assert aborted == [False, True]
        assert loop.time() - began > 60
        (entry,) = [entry for entry in log if "cut off" in entry["event"]]
        assert entry["address"] == "192.0.2.1"
    await slow.task
    assert not slow.heard
    # The others see nothing of it.
    other.take()
    board.join("lobby", "last")
    admin.changed()
    await asyncio.sleep(1)
    assert other.take("overview")
    await ended(other)


@virtual
async def test_to_a_page_that_is_gone_nothing_is_written() -> None:
    """What it said before is carried out all the same."""
    board = Board()
    admin = admin_of(board)
    page = await signed_in(admin)
    page.take()
    for number in range(10):
        page.say({"type": "act", "id": number, "action": "notice", "room": "lobby", "text": "x"})
        page.say({"type": "watch", "room": "lobby"})
    page.abort()
    await page.task
    assert not page.heard
    assert board.acted.count(("notice", "lobby", "x", 0.001)) == 10


@virtual
async def test_answers_are_not_kept_without_a_bound_either() -> None:
    board = Board(max_unread=100_000, max_replay_bytes=100_000)
    admin = admin_of(board)
    page = await signed_in(admin)
    page.take()
    act = {"type": "act", "action": "remove", "room": "lobby", "peerId": "ann"}
    page.unsent = 100_000
    page.say({**act, "id": 1})
    await asyncio.sleep(0.001)
    assert [m["id"] for m in page.take("done")] == [1]
    page.unsent = 100_001
    page.say({**act, "id": 2})
    await page.task
    assert page.aborted
    assert not page.heard


# --- what a page may ask for ---------------------------------------------------------------------
@virtual
async def test_actions_are_carried_out_answered_and_logged() -> None:
    board = Board()
    admin = admin_of(board)
    page = await signed_in(admin)
    page.take()
    lobby = {"type": "act", "room": "lobby"}
    with captured() as log:
        page.say({**lobby, "id": 1, "action": "remove", "peerId": "ann"})
        page.say({**lobby, "id": 2, "action": "restart_ice", "peerId": "ann"})
        page.say({**lobby, "id": 3, "action": "restart_ice", "peerId": "ann", "otherPeerId": "bob"})
        page.say({**lobby, "id": 4, "action": "notice", "text": "down\nat noon"})
        await asyncio.sleep(0.001)
    now = asyncio.get_running_loop().time()
    sent = board._act("x", "y")
    board.acted.pop()
    assert board.acted == [
        ("remove", "lobby", "ann", pytest.approx(now, abs=0.01)),
        sent,
        ("restart_ice", "lobby", "ann", None, pytest.approx(now, abs=0.01)),
        sent,
        ("restart_ice", "lobby", "ann", "bob", pytest.approx(now, abs=0.01)),
        sent,
        ("notice", "lobby", "down\nat noon", pytest.approx(now, abs=0.01)),
        sent,
    ]
    done = page.take("done")
    assert [(m["id"], m["ok"]) for m in done] == [(1, True), (2, True), (3, True), (4, True)]
    assert [m["text"] for m in done] == [
        "removed 'ann' from room 'lobby'",
        "asked 'ann' to restart ICE with everybody",
        "asked 'ann' to restart ICE with 'bob'",
        "sent to everybody in room 'lobby'",
    ]
    actions = [entry for entry in log if entry["event"] == "the operator acted"]
    assert [(e["action"], e["peer_id"], e["other"], e["ok"]) for e in actions] == [
        ("remove", "ann", None, True),
        ("restart_ice", "ann", None, True),
        ("restart_ice", "ann", "bob", True),
        ("notice", None, None, True),
    ]
    who = {(e["user"], e["address"], e["room"]) for e in actions}
    assert who == {("admin", "192.0.2.1", "lobby")}
    assert actions[-1]["text"] == "down\ufffdat noon"
    await ended(page)


@virtual
async def test_an_action_that_can_not_be_is_answered_too() -> None:
    board = Board()
    page = await signed_in(admin_of(board))
    page.take()
    act = {"type": "act", "room": "lobby"}
    with captured() as log:
        page.say({**act, "id": 1, "action": "remove", "room": "nowhere", "peerId": "ann"})
        page.say({**act, "id": 2, "action": "remove"})
        page.say({**act, "id": 3, "action": "restart_ice"})
        page.say({**act, "id": 4, "action": "notice"})
        await asyncio.sleep(0.001)
    assert [(m["id"], m["ok"], m["text"]) for m in page.take("done")] == [
        (1, False, "there is no room 'nowhere'"),
        (2, False, "the action remove needs a peerId"),
        (3, False, "the action restart_ice needs a peerId"),
        (4, False, "the action notice needs a text"),
    ]
    assert len(board.acted) == 1  # and nothing came of it
    assert [e["ok"] for e in log if e["event"] == "the operator acted"] == [False] * 4
    await ended(page)


ACT = {"type": "act", "id": 1, "action": "remove", "room": "lobby", "peerId": "ann"}
HELLO = {"type": "hello", "ticket": "x"}
JUNK: list[Any] = [
    b"",
    b"{",
    b"\xff",
    b"null",
    b"[]",
    b'"hello"',
    b"[" * 5000,
    b'{"type":"hello","ticket":"\\ud800"}',
    b'{"type":"hello"}',
    {"type": "nothing"},
    {"type": 1},
    {"ticket": "x"},
    {**HELLO, "more": 1},
    {**HELLO, "ticket": None},
    {**HELLO, "ticket": "x" * 101},
    {"type": "watch"},
    {"type": "watch", "room": ""},
    {"type": "watch", "room": "x" * 129},
    {"type": "watch", "room": "a\r\nb"},
    {"type": "watch", "room": 7},
    {"type": "watch", "room": "lobby", "more": 1},
    {**HELLO, "a\nb": 1},
    b'{"type":"watch","room":"\xff"}',
    b'{"x":' + b"[" * 5000,
    {**ACT, "id": -1},
    {**ACT, "id": 1.5},
    {**ACT, "id": 2**54},
    {**ACT, "id": None},
    {**ACT, "action": "shutdown"},
    {**ACT, "peerId": ""},
    {**ACT, "peerId": "a\nb"},
    {**ACT, "peer_id": "ann"},
    {**ACT, "otherPeerId": "\u202e"},
    {**ACT, "room": None},
    {**ACT, "text": 5},
    {**ACT, "text": "x" * 8192},
    {**HELLO, "ticket": "x" * 8192},
    b" " * 8192 + b"{}",
]


@virtual
async def test_junk_ends_the_socket_and_nothing_else() -> None:
    board = Board()
    admin = admin_of(board)
    witness = await signed_in(admin)
    for junk in JUNK:
        before, after = Page(admin), await signed_in(admin)
        for page in (before, after):
            page.say(junk)
            await page.task
            assert page.closed is not None, junk
            assert page.closed[0] == 4400, junk
            assert page.closed[1].isprintable(), junk
    assert not board.acted
    assert witness.closed is None
    witness.take()
    board.join("lobby", "ann")
    admin.changed()
    await asyncio.sleep(SOON)
    assert witness.take()
    await ended(witness)


@virtual
async def test_what_is_out_of_place_is_junk() -> None:
    board = Board()
    admin = admin_of(board)
    for message in (ACT, {"type": "watch", "room": None}):
        page = Page(admin)
        page.say(message)
        await page.task
        assert page.closed == (4400, "the first message must be a hello")
    page = await signed_in(admin)
    spare = ticket_of(admin)
    page.say({"type": "hello", "ticket": spare})
    await page.task
    assert page.closed == (4400, "a second hello")
    assert not board.acted
    assert len(admin._live._tickets) == 1  # which is still good


@given(data=st.binary(max_size=200), known=st.booleans())
def test_any_bytes(data: bytes, known: bool) -> None:
    @virtual
    async def run() -> None:
        admin = admin_of(Board())
        page = await signed_in(admin) if known else Page(admin)
        page.say(data)
        await page.task
        assert page.closed is not None
        assert page.closed[0] == 4400

    run()


# --- the end -------------------------------------------------------------------------------------
@virtual
async def test_the_relay_goes_down() -> None:
    board = Board()
    admin = admin_of(board)
    stranger, page = Page(admin), await signed_in(admin)
    admin.close()
    late = Page(admin)
    await asyncio.gather(stranger.task, page.task, late.task)
    for closed in (stranger.closed, page.closed, late.closed):
        assert closed == (1012, "the relay goes down")
    assert asyncio.get_running_loop().time() < 1
    admin.close()
    assert admin._live.pages == 0


@virtual
async def test_the_relay_goes_down_as_a_stranger_runs_out_of_time() -> None:
    admin = admin_of(Board())
    page = Page(admin)
    # In the same round of the loop, before the page hears of its time.
    asyncio.get_running_loop().call_at(5.0 + 5e-10, admin.close)
    await page.task
    assert page.closed == (1012, "the relay goes down")


@virtual
async def test_a_page_that_is_cancelled_leaves_nothing() -> None:
    board = Board()
    admin = admin_of(board)
    page = await signed_in(admin)
    page.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await page.task
    assert admin._live.pages == 0
    assert not admin._live._open
    board.tracking = None  # type: ignore[assignment]
    await asyncio.sleep(60)
