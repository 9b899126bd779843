"""The operator's part of a live relay, over real sockets: one picture, however it is asked for."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import logging
import random
import socket
from collections.abc import AsyncIterator, Iterator, MutableMapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import structlog
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from meshpeer.config import RelayConfig
from meshpeer.core.messages import (
    Goodbye,
    LinkReport,
    MemberJoined,
    MemberLeft,
    Notice,
    Report,
    RestartIce,
    encode,
)
from meshpeer.relay import Relay, http, live
from meshpeer.relay.admin import LIVE_PATH
from meshpeer.relay.http import make_rest
from tests.relay.board import captured
from tests.relay.test_server import Peer, close_of, peer
from tests.relay.wires import client_frame, raw, until_gone

Heard = list[dict[str, Any]]


async def ask(
    relay: Relay, path: str, *, password: str | None = None, method: str = "GET", more: str = ""
) -> tuple[int, list[tuple[str, str]], bytes]:
    """Status, headers and body, as they were written."""
    password = relay.admin_password if password is None else password
    credentials = base64.b64encode(f"{relay.admin_user}:{password}".encode()).decode()
    reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
    try:
        writer.write(
            f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{relay.port}\r\n"
            f"Authorization: Basic {credentials}\r\n{more}\r\n".encode()
        )
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    finally:
        writer.close()
        await writer.wait_closed()
    status, *lines = head.decode().split("\r\n")
    headers = [(line.partition(": ")[0].lower(), line.partition(": ")[2]) for line in lines]
    return int(status.split()[1]), headers, body


async def api(relay: Relay, name: str) -> Any:
    status, headers, body = await ask(relay, f"/api/admin/{name}")
    assert status == 200
    assert ("content-type", "application/json") in headers
    return json.loads(body)


class Dashboard:
    def __init__(self, ws: ClientConnection) -> None:
        self.ws = ws

    async def say(self, **message: Any) -> None:
        await self.ws.send(json.dumps(message))

    async def hear(self) -> dict[str, Any]:
        message = json.loads(await self.ws.recv())
        assert isinstance(message, dict)
        return message

    async def until(self, kind: str, **fields: Any) -> dict[str, Any]:
        """The next message of this kind in which these fields are so."""
        while True:
            message = await self.hear()
            if message["type"] == kind and fields.items() <= message.items():
                return message

    async def activity(self, kind: str) -> dict[str, Any]:
        """The next entry of this kind."""
        while True:
            for entry in (await self.until("activity"))["entries"]:
                if entry["kind"] == kind:
                    assert isinstance(entry, dict)
                    return entry


def live_url(relay: Relay) -> str:
    return relay.url.rstrip("/") + LIVE_PATH


@asynccontextmanager
async def dashboard(relay: Relay, **options: Any) -> AsyncIterator[Dashboard]:
    ticket = (await api(relay, "session"))["ticket"]
    async with connect(live_url(relay), compression=None, **options) as ws:
        await ws.send(json.dumps({"type": "hello", "ticket": ticket}))
        yield Dashboard(ws)


def linked(other: str, **fields: Any) -> LinkReport:
    return LinkReport(
        peer_id=other,
        incarnation=f"incarnation-{other}",
        **{"state": "connected", "ice_state": "completed", "path": "direct", **fields},
    )


async def report(peer: Peer, *links: LinkReport) -> None:
    await peer.say(Report(list(links)))


# --- one picture ---------------------------------------------------------------------------------
async def test_the_picture_is_the_same_whichever_way_it_is_asked(relay: Relay) -> None:
    async with peer(relay) as ann, peer(relay) as bob, peer(relay) as eve:
        await ann.join("ann", name="Ann")
        await bob.join("bob")
        await eve.join("eve", room="hall")
        assert isinstance(await ann.hear(), MemberJoined)
        counts = {"attempts": 3, "successes": 2, "failures": 1, "connect_time": 0.5}
        await report(ann, linked("bob", rtt=0.02, messages=7, **counts))
        await report(bob, linked("ann", rtt=0.04, messages=5, path="turn", **counts))
        async with dashboard(relay) as page:
            await page.say(type="watch", room="lobby")
            while True:
                room = (await page.until("room"))["room"]
                if room["links"] and room["links"][0]["bSide"]:
                    break
        (link,) = room["links"]
        assert (link["a"], link["b"], link["state"]) == ("ann", "bob", "connected")
        assert (link["path"], link["rtt"]) == ("turn", pytest.approx(0.03))

        shown = await api(relay, "mesh-status")
        assert shown["metrics"] == {
            "totalP2PAttempts": 3,
            "successfulP2PConnections": 2,
            "failedP2PConnections": 1,
            "activeP2PConnections": 1,
            "averageConnectionTime": 0.25,
            "meshUpgradeRate": 1.0,
            "p2pMessageCount": 12,
            "fallbackCount": 0,
        }
        assert {c["peerId"]: c["p2pPeers"] for c in shown["connections"]} == {
            "ann": ["bob"],
            "bob": ["ann"],
            "eve": [],
        }
        lobby = next(r for r in shown["topology"] if r["roomId"] == "lobby")
        assert lobby["links"][0]["aSide"]["messages"] == room["links"][0]["aSide"]["messages"] == 7
        assert [m["address"] for m in lobby["members"]] == ["127.0.0.1"] * 2

        rooms = (await api(relay, "rooms"))["rooms"]
        assert [(r["roomId"], r["members"], r["turn"]) for r in rooms] == [
            ("lobby", 2, 1),
            ("hall", 1, 0),
        ]
        peers = (await api(relay, "peers?room=hall"))["peers"]
        assert [p["member"]["peerId"] for p in peers] == ["eve"]
        activity = await api(relay, "activity")
        kinds = [entry["kind"] for entry in activity["activity"]]
        assert kinds[:3] == ["joined"] * 3
        assert "link" in kinds
        assert (await api(relay, f"activity?after={activity['latest']}"))["activity"] == []

        status, headers, body = await ask(relay, "/metrics")
        assert status == 200
        assert dict(headers)["content-type"].startswith("text/plain; version=")
        lines = body.decode().splitlines()
        for line in (
            'meshpeer_mesh_pairs{path="turn"} 1.0',
            'meshpeer_mesh_members{presence="present"} 3.0',
            "meshpeer_mesh_rooms 2.0",
            "meshpeer_mesh_successes_total 2.0",
            "meshpeer_mesh_messages_total 12.0",
        ):
            assert line in lines


async def test_what_changes_is_told(relay: Relay) -> None:
    async with peer(relay) as ann, dashboard(relay) as page:
        first = await page.until("overview")
        assert (first["rooms"], first["relay"]["connections"] >= 2) == ([], True)
        await page.say(type="watch", room="lobby")
        assert (await page.until("room"))["room"] is None
        await ann.join("ann")
        told = await page.until("overview", roomCount=1)
        assert [r["roomId"] for r in told["rooms"]] == ["lobby"]
        entry = await page.activity("joined")
        assert entry["peerId"] == "ann"
        room = (await page.until("room"))["room"]
        assert [m["presence"] for m in room["members"]] == ["present"]
        async with peer(relay) as bob:
            await bob.join("bob")
            assert len((await page.until("room"))["room"]["members"]) == 2
            # It is killed: nothing is said any more.
            bob.ws.transport.abort()
            while True:
                members = (await page.until("room"))["room"]["members"]
                if [m["presence"] for m in members] == ["present", "away"]:
                    break
        # A refusal has nothing to do with a room.
        async with peer(relay) as nobody:
            await nobody.say(b"{}")
            told = await page.until("overview", refused={"malformed": 1})


# --- what the operator does ----------------------------------------------------------------------
async def test_actions_reach_whom_they_are_meant_for(relay: Relay) -> None:
    with captured() as log:
        async with peer(relay) as ann, peer(relay) as bob, dashboard(relay) as page:
            await ann.join("ann")
            await bob.join("bob")
            assert isinstance(await ann.hear(), MemberJoined)

            async def act(number: int, **fields: Any) -> dict[str, Any]:
                await page.say(type="act", id=number, **{"room": "lobby", **fields})
                return await page.until("done", id=number)

            done = await act(1, action="notice", text="Back at <b>noon</b>")
            assert done["ok"]
            assert await ann.hear() == await bob.hear() == Notice(text="Back at <b>noon</b>")
            assert (await page.activity("notice"))["text"] == "Back at <b>noon</b>"

            assert (await act(2, action="restart_ice", peerId="ann", otherPeerId="bob"))["ok"]
            assert await ann.hear() == RestartIce(peer_id="bob")
            assert (await act(3, action="restart_ice", peerId="bob"))["ok"]
            assert await bob.hear() == RestartIce(peer_id=None)

            assert (await act(4, action="remove", peerId="bob"))["ok"]
            heard, closed = await bob.until_closed()
            assert heard == [Goodbye(reason="removed")]
            assert close_of(closed)[0] == 4006
            assert await ann.hear() == MemberLeft("bob", "incarnation-bob", "removed")
            assert (await page.activity("removed"))["peerId"] == "bob"

            for number, (fields, word) in enumerate(
                [
                    ({"action": "remove", "peerId": "bob"}, "bob"),
                    ({"action": "remove", "peerId": "ann", "room": "hall"}, "hall"),
                    ({"action": "restart_ice", "peerId": "ann", "otherPeerId": "bob"}, "bob"),
                    ({"action": "notice", "room": "hall", "text": "x"}, "hall"),
                    ({"action": "notice", "text": ""}, "1 to"),
                    ({"action": "notice", "text": "x" * 1025}, "1024"),
                    ({"action": "notice", "text": "a\x1bb"}, "control"),
                ],
                5,
            ):
                done = await act(number, **fields)
                assert not done["ok"], fields
                assert word in done["text"], done
            # Nothing of that reached anybody.
            assert (await act(20, action="notice", text="the end"))["ok"]
            assert await ann.hear() == Notice(text="the end")
    acted = [(e["action"], e["ok"]) for e in log if e["event"] == "the operator acted"]
    assert acted.count(("notice", True)) == 2
    assert len(acted) == 12
    assert sum(ok for _, ok in acted) == 5


# --- strangers -----------------------------------------------------------------------------------
async def test_a_ticket_is_good_for_one_socket(relay: Relay) -> None:
    ticket = (await api(relay, "session"))["ticket"]
    hello = json.dumps({"type": "hello", "ticket": ticket})
    async with connect(live_url(relay)) as first, connect(live_url(relay)) as second:
        await first.send(hello)
        await first.recv()
        await second.send(hello)
        with pytest.raises(ConnectionClosed) as caught:
            await second.recv()
        assert close_of(caught.value)[0] == 4401
        assert json.loads(await first.recv())["type"] == "activity"


@pytest.mark.parametrize(
    ("limit", "status"), [("max_connections", 503), ("max_connections_per_address", 429)]
)
async def test_strangers_at_it_count_as_connections(limit: str, status: int) -> None:
    config: dict[str, Any] = {limit: 2}
    async with Relay(RelayConfig(port=0, **config)) as relay:
        async with connect(live_url(relay)) as one, connect(live_url(relay)) as other:
            for url in (live_url(relay), relay.url):
                with pytest.raises(InvalidStatus) as caught:
                    await connect(url)
                assert caught.value.response.status_code == status
                assert int(caught.value.response.headers["Retry-After"]) > 0
            assert relay._figures().refused == {limit: 2}
            # What the operator asks for without a WebSocket is answered all the same.
            assert (await ask(relay, "/api/admin/rooms"))[0] == 200
            for ws in (one, other):
                ws.transport.abort()
        await until_gone(relay)
        async with dashboard(relay) as page:
            await page.until("overview")


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1"])
async def test_a_page_of_another_site_gets_no_socket(relay: Relay, origin: str) -> None:
    with pytest.raises(InvalidStatus) as caught:
        await connect(live_url(relay), origin=origin)  # type: ignore[arg-type]
    assert caught.value.response.status_code == 403


async def test_its_own_page_does(relay: Relay) -> None:
    async with dashboard(relay, origin=relay.url.replace("ws", "http", 1)) as page:
        await page.until("overview")


@pytest.mark.parametrize(
    "junk",
    ["", "{", "\x00", b"\xff\xfe", b"{}", '{"type":"watch","room":null,"x":1}', "x" * 8193],
)
async def test_junk_costs_who_sends_it_its_socket(relay: Relay, junk: bytes | str) -> None:
    async with dashboard(relay) as other:
        await other.until("history")
        async with dashboard(relay) as page:
            await page.until("history")
            await page.ws.send(junk)
            with pytest.raises(ConnectionClosed) as caught:
                await page.until("nothing")
            assert close_of(caught.value)[0] == 4400
        await other.say(type="watch", room="lobby")
        await other.until("room", room=None)


async def test_more_than_the_relay_reads_at_all() -> None:
    async with (
        Relay(RelayConfig(port=0, max_message_size=64 * 1024)) as relay,
        dashboard(relay) as page,
    ):
        await page.until("history")
        await page.ws.send("x" * (64 * 1024 + 1))
        with pytest.raises(ConnectionClosed) as caught:
            await page.until("nothing")
        assert close_of(caught.value)[0] == 1009


async def test_attempts_are_counted_by_address(relay: Relay) -> None:
    for _ in range(10):
        assert (await ask(relay, "/metrics", password="wrong"))[0] == 401
    status, headers, _ = await ask(relay, "/metrics")
    assert status == 429
    assert int(dict(headers)["retry-after"]) <= 6
    assert (await ask(relay, "/healthz"))[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/api/admin/peers?room=%0d%0aSet-Cookie:%20a=b",
        "/api/admin/peers?room=x%0d%0a%0d%0a<script>",
        "/api/admin/%0d%0aSet-Cookie:%20a=b",
        "/admin-analytics/%2e%2e/%2e%2e/server.py",
        "/admin-analytics/../server.py",
    ],
)
async def test_nothing_of_a_request_is_in_the_answer(relay: Relay, path: str) -> None:
    status, headers, body = await ask(relay, path)
    assert status in (400, 404)
    assert not [value for name, value in headers if name == "set-cookie"]
    assert dict(headers)["content-type"].startswith("text/plain")
    assert b"script" not in body
    assert b"Cookie" not in body
    assert b"import" not in body


async def test_names_with_markup_are_data(relay: Relay) -> None:
    name = '</script><script>alert(1)</script>"&'
    async with peer(relay) as ann:
        await ann.join("ann", name=name, room=name)
        _, headers, body = await ask(relay, "/api/admin/rooms")
    assert json.loads(body)["rooms"][0]["roomId"] == name
    assert dict(headers)["content-type"] == "application/json"
    assert dict(headers)["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", ["/api/admin/rooms", "/admin-analytics", "/metrics"])
async def test_other_methods(relay: Relay, path: str) -> None:
    status, headers, body = await ask(relay, path, method="HEAD")
    assert (status, body) == (200, b"")
    assert int(dict(headers)["content-length"]) > 0
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert (await ask(relay, path, method=method))[0] == 405


async def test_answers_are_kept_by_nobody(relay: Relay) -> None:
    for path in ("/api/admin/rooms", "/admin-analytics", "/metrics", "/api/admin/session"):
        _, headers, _ = await ask(relay, path)
        assert dict(headers)["cache-control"] == "no-store"
        assert dict(headers)["referrer-policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in dict(headers)["content-security-policy"]
        names = [name for name, _ in headers]
        assert len(set(names)) == len(names)


# --- long answers --------------------------------------------------------------------------------
ROOMS = b"GET /api/admin/rooms HTTP/1.1\r\nHost: relay\r\nAuthorization: %b\r\n\r\n"


def answering(relay: Relay, *bodies: Iterator[bytes]) -> bytes:
    """The next answers of the relay's admin are these; a request for one."""
    left = list(bodies)
    admin: Any = relay._admin
    real = admin.answer

    def answer(*request: Any) -> Any:
        known = real(*request)
        return replace(known, rest=left.pop(0)) if left and known and known.rest else known

    admin.answer = answer
    credentials = base64.b64encode(f"{relay.admin_user}:{relay.admin_password}".encode())
    return ROOMS % (b"Basic " + credentials)


async def test_parts_of_an_answer_are_made_by_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_TURN", 0)
    loop = asyncio.get_running_loop()
    order: list[str] = []

    def parts(size: int) -> Iterator[bytes]:
        for number in range(10):
            order.append("part")
            loop.call_soon(order.append, "others")
            yield b"%d" % number * size

    for size in (1, 30 * 1024, 64 * 1024, 100 * 1024):
        order.clear()
        blocks = await make_rest(parts(size))
        assert order == ["part", "others"] * 10
        assert b"".join(blocks) == b"".join(b"%d" % number * size for number in range(10))
        assert all(blocks)
        # Neither too many to write nor more to write at once than need be.
        assert all(64 * 1024 <= len(block) < 164 * 1024 for block in list(blocks)[:-1])
    assert not await make_rest(iter(()))


async def test_parts_that_take_no_time_are_made_in_one_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http, "_TURN", 3600)
    others: list[None] = []
    asyncio.get_running_loop().call_soon(others.append, None)
    assert await make_rest(b"%d" % number for number in range(10_000))
    assert not others


async def test_members_have_their_turn_while_an_answer_is_made(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "_TURN", 0)
    async with peer(relay) as ann, raw(relay) as (reader, writer):
        await ann.join("ann")
        sock = ann.ws.transport.get_extra_info("socket")
        handled: list[int] = []

        def parts() -> Iterator[bytes]:
            before = relay._figures().messages_in
            with socket.socket(fileno=socket.dup(sock.fileno())) as direct:
                direct.send(client_frame(encode(Report([]))))
            for _ in range(100):
                handled.append(relay._figures().messages_in - before)
                yield b"{}"

        writer.write(answering(relay, parts()))
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        assert b"Content-Length: 200\r\n" in head
        assert body == b"{}" * 100
        assert handled[0] == 0
        assert handled[-1] == 1


async def test_of_long_answers_one_is_made_at_a_time(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "_TURN", 0)
    order: list[str] = []

    def parts(name: str) -> Iterator[bytes]:
        for _ in range(100):
            order.append(name)
            yield name.encode()

    async with raw(relay) as (reader, writer), raw(relay) as (other_reader, other_writer):
        request = answering(relay, parts("a"), parts("b"))
        writer.write(request)
        other_writer.write(request)
        answers = await asyncio.gather(reader.read(), other_reader.read())
    assert [name for name, _ in itertools.groupby(order)] == ["a", "b"]
    assert sorted(answer[-100:] for answer in answers) == [b"a" * 100, b"b" * 100]


async def test_a_long_answer_is_written_as_it_is_read() -> None:
    size = 8_000_000
    body = random.Random(1).randbytes(size)
    async with Relay(RelayConfig(port=0, join_timeout=60)) as relay:
        async with raw(relay) as (reader, writer):
            parts = (body[at : at + 300_000] for at in range(0, size, 300_000))
            writer.write(answering(relay, parts))
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"Content-Length: 8000000\r\n" in head
            got, waited = [b""], 0
            while sum(map(len, got)) < size:
                got.append(await reader.read(100_000))
                waited = max(waited, *(each.unsent for each in relay._sockets), 0)
            assert await reader.read() == b""
            assert b"".join(got) == body
            # What may wait in a socket before it is full, and a part.
            assert 0 < waited <= 256 * 1024 + 300_000
        await until_gone(relay)


async def test_who_reads_a_long_answer_slowly_gets_all_of_it() -> None:
    parts = [random.Random(number).randbytes(4_000_000) for number in range(3)]
    async with (
        Relay(RelayConfig(port=0, join_timeout=0.5)) as relay,
        raw(relay) as (reader, writer),
    ):
        # Or the system takes much of it for us, and the relay does not see that we read.
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 128 * 1024)
        writer.write(answering(relay, iter(parts)))
        await reader.readuntil(b"\r\n\r\n")
        got = []
        while data := await reader.read(50_000):
            got.append(data)
            # For longer than a join may take: over each part, and over all.
            await asyncio.wait([asyncio.get_running_loop().create_future()], timeout=0.01)
        assert b"".join(got) == b"".join(parts)


async def test_head_of_a_long_answer(relay: Relay) -> None:
    request = answering(relay, iter([b"{", b"}"] * 50_000))
    async with raw(relay) as (reader, writer):
        writer.write(request.replace(b"GET", b"HEAD"))
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Content-Length: 100000\r\n" in head
    assert body == b""


@pytest.mark.parametrize("how", ["goes", "does not read"])
async def test_who_wants_a_long_answer_no_more(how: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    made: list[int] = []

    def parts() -> Iterator[bytes]:
        for number in range(100):
            made.append(number)
            yield bytes(1_000_000)

    with captured() as log:
        async with Relay(RelayConfig(port=0, join_timeout=0.5)) as relay:
            async with raw(relay) as (reader, writer):
                writer.write(answering(relay, parts(), iter([b"{}"])))
                await reader.read(1)
                if how == "goes":
                    writer.transport.abort()
                await until_gone(relay)
            # Others are answered.
            assert (await ask(relay, "/api/admin/rooms"))[2] == b"{}"
    assert len(made) == 100
    assert not [entry for entry in log if entry["log_level"] not in ("info", "debug")]
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]


# --- a page that does not read, and the end ------------------------------------------------------
async def test_a_page_that_does_not_read_is_cut_off(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_BEHIND", 0.2)
    monkeypatch.setattr(live, "_PAUSE", 0.01)
    cut = asyncio.Event()

    def notice(_: Any, __: str, event: MutableMapping[str, Any]) -> str:
        if "cut off" in event["event"]:
            cut.set()
        raise structlog.DropEvent

    ids = [f"p{number:02}" for number in range(30)]
    async with AsyncExitStack() as stack:
        members = [await stack.enter_async_context(peer(relay)) for _ in ids]
        for member, peer_id in zip(members, ids, strict=True):
            await member.join(peer_id)
            links = [linked(other, reason="x" * 200) for other in ids if other != peer_id]
            await report(member, *links)
        async with dashboard(relay) as other, dashboard(relay, max_queue=1) as page:
            structlog.configure(processors=[notice])
            sock = page.ws.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            await page.say(type="watch", room="lobby")
            rtt = 0.0
            while not cut.is_set():
                # Each change is told to the one that reads, however far behind the other is.
                rtt += 0.001
                await report(members[0], linked("p01", rtt=rtt))
                await other.until("overview")
            # Whoever has not read all that came would wait for the end of its closing handshake.
            for ws in (page.ws, *(member.ws for member in members)):
                ws.transport.abort()


async def test_a_relay_that_goes_down_says_so_and_waits_for_nobody() -> None:
    async with Relay(RelayConfig(port=0)) as relay, dashboard(relay) as page:
        await page.until("history")
        async with connect(live_url(relay)) as stranger:
            await relay.close()
            for ws in (page.ws, stranger):
                await ws.wait_closed()
                assert ws.close_code == 1012


async def test_a_relay_that_was_never_started_has_a_password_too() -> None:
    relay = Relay(RelayConfig(port=0))
    assert relay.admin_password
    assert relay.admin_password not in repr(relay)
    await relay.close()
