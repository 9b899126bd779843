"""What the operator asks for over plain HTTP: who may, what is answered, what is refused."""

from __future__ import annotations

import base64
import hashlib
import hmac
import itertools
import json
import re
import subprocess
import sys
from dataclasses import replace
from importlib.resources import files
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.datastructures import Headers

from meshpeer.relay import admin as module
from meshpeer.relay import live, pages
from meshpeer.relay.admin import LIVE_PATH, Admin
from meshpeer.relay.http import Answer
from tests.relay.board import Board, captured, meet

API = ("mesh-status", "rooms", "peers", "activity", "session")
PATHS = (
    *(f"/api/admin/{name}" for name in API),
    "/api/admin",
    "/api/admin/",
    "/api/admin/nothing",
    "/api/admin/rooms/",
    LIVE_PATH,
    "/admin-analytics",
    "/admin-analytics/",
    "/admin-analytics/icon.svg",
    "/admin-analytics/../../secrets",
    "/metrics",
)
MINE = "198.51.100.7"


def basic(user: str = "admin", password: str = "open sesame", scheme: str = "Basic") -> str:
    return f"{scheme} {base64.b64encode(f'{user}:{password}'.encode()).decode()}"


def ask(
    admin: Admin,
    path: str,
    query: str = "",
    authorization: str | None = None,
    address: str = MINE,
) -> Answer | None:
    headers = Headers({} if authorization is None else {"authorization": authorization})
    answer = admin.answer(path, query, headers, address)
    if answer is None or answer.rest is None:
        return answer
    return replace(answer, body=answer.body + b"".join(answer.rest), rest=None)


def get(board: Board, path: str, query: str = "", admin: Admin | None = None) -> Answer | None:
    return ask(admin or board.admin(), path, query, basic())


def status(answer: Answer | None) -> int:
    return 404 if answer is None else answer.status


# --- who may -------------------------------------------------------------------------------------
@pytest.mark.parametrize("path", PATHS)
def test_nothing_is_answered_without_the_password_nor_told_apart(path: str) -> None:
    board = Board()
    answers = [ask(board.admin(), path, "room=lobby"), ask(board.admin(), path, "?\r\n")]
    for answer in answers:
        assert answer is not None
        assert answer == Answer(
            401,
            b"Who are you?\n",
            headers=(("WWW-Authenticate", 'Basic realm="meshpeer relay", charset="UTF-8"'),),
        )


@pytest.mark.parametrize(
    "path", ["/", "/ws", "/healthz", "/api", "/api/administrator", "/admin-analytics2", "/metrics/"]
)
@pytest.mark.parametrize("authorization", [None, basic(), basic(password="wrong")])
def test_what_is_not_the_admins_is_somebody_elses(path: str, authorization: str | None) -> None:
    assert ask(Board().admin(), path, authorization=authorization) is None


@pytest.mark.parametrize(
    ("config", "header"),
    [
        ({}, basic()),
        ({}, basic(scheme="basic")),
        ({}, basic(scheme="BASIC") + "  "),
        ({}, basic().replace(" ", "   ", 1)),
        ({"admin_user": "ann", "admin_password": "pass:word:"}, basic("ann", "pass:word:")),
        ({"admin_user": "Zoë", "admin_password": "пароль-пароль"}, basic("Zoë", "пароль-пароль")),
    ],
)
def test_the_operator_is_let_in(config: dict[str, Any], header: str) -> None:
    answer = ask(Board(**config).admin(), "/api/admin/rooms", authorization=header)
    assert answer == Answer(200, b'{"rooms":[]}\n', "application/json")


WRONG = [
    "",
    " ",
    "Basic",
    "Basic ",
    "Basic !!!",
    "Basic YWRtaW4",  # cut off
    "Basic " + base64.b64encode(b"admin").decode(),
    "Basic " + base64.b64encode(b"\xff\xfe:\xff").decode(),
    "Basic \u00e4\u00f6",
    "Basic " + "A" * 100_000,
    "admin:open sesame",
    basic(scheme="Bearer"),
    basic(scheme="Digest"),
    basic().removeprefix("Basic "),
    basic(user=""),
    basic(password=""),
    basic(user="Admin"),
    basic(password="open sesam"),
    basic(password="open sesame "),
    basic(password="Open sesame"),
    basic(user="open sesame", password="admin"),
    basic() + " x",
    basic() + ", " + basic(),
]


@pytest.mark.parametrize("header", WRONG)
def test_anybody_else_is_not(header: str) -> None:
    admin = Board().admin()
    answer = ask(admin, "/api/admin/rooms", authorization=header)
    assert answer is not None
    assert answer.status == 401
    assert dict(answer.headers)["WWW-Authenticate"].startswith("Basic realm=")
    assert b"sesame" not in answer.body


@given(st.text() | st.binary().map(lambda data: f"Basic {base64.b64encode(data).decode()}"))
def test_any_header(header: str) -> None:
    answer = Board().admin().answer("/metrics", "", {"Authorization": header}, "anything")
    assert answer is not None
    assert answer.status == 401


def test_two_authorizations_are_none() -> None:
    headers = Headers()
    headers["Authorization"] = basic()
    headers["Authorization"] = basic()
    answer = Board().admin().answer("/api/admin/rooms", "", headers, MINE)
    assert answer is not None
    assert answer.status == 401


@pytest.mark.parametrize("header", [basic(), *WRONG])
def test_all_is_compared_whatever_it_is(header: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """How long it takes says nothing of what was right: both are compared, by digests."""
    compared = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return hmac.compare_digest(a, b)

    monkeypatch.setattr(module, "hmac", SimpleNamespace(compare_digest=compare))
    admin = Board().admin()
    ask(admin, "/api/admin/rooms", authorization=header)
    digests = [hashlib.sha256(text).digest() for text in (b"admin", b"open sesame")]
    assert [b for _, b in compared] == digests
    assert {len(a) for a, _ in compared} == {32}


def test_a_password_is_made_where_none_is_set() -> None:
    admins = [Board(admin_password=None).admin() for _ in range(2)]
    first, second = (admin.password for admin in admins)
    assert first != second
    assert all(re.fullmatch(r"[\w-]{24}", password) for password in (first, second))
    for admin in admins:
        expected = [200 if admin.password == p else 401 for p in (first, second)]
        headers = [basic(password=p) for p in (first, second)]
        assert [status(ask(admin, "/metrics", authorization=h)) for h in headers] == expected
    assert Board().admin().password == "open sesame"


def test_a_set_password_is_the_only_one() -> None:
    for guess in ("admin", "password", "", "None"):
        assert status(ask(Board().admin(), "/metrics", authorization=basic(password=guess))) == 401


# --- how often somebody may try ------------------------------------------------------------------
def test_wrong_passwords_of_an_address_have_a_limit() -> None:
    board = Board(admin_attempts=3)
    admin = board.admin()
    wrong, right = basic(password="wrong"), basic()

    def tried(header: str | None, address: str = MINE) -> int:
        return status(ask(admin, "/api/admin/rooms", authorization=header, address=address))

    # Neither right ones count, nor none at all.
    assert [tried(right) for _ in range(10)] == [200] * 10
    assert [tried(None) for _ in range(10)] == [401] * 10
    assert [tried(wrong) for _ in range(3)] == [401] * 3
    assert [tried(header) for header in (wrong, right, wrong, right)] == [429] * 4
    answer = ask(admin, "/api/admin/rooms", authorization=right)
    assert answer is not None
    assert dict(answer.headers) == {"Retry-After": "20"}
    assert b"20 s" in answer.body
    # Others are not concerned, and of IPv6 one /64 is one.
    assert tried(right, "198.51.100.8") == 200
    assert [tried(wrong, f"2001:db8::{n}") for n in range(1, 5)] == [401] * 3 + [429]
    assert tried(right, "2001:db8:0:0:ffff::1") == 429
    assert tried(right, "2001:db8:0:1::1") == 200
    board.now += 0.5
    answer = ask(admin, "/api/admin/rooms", authorization=right)
    assert answer is not None
    assert dict(answer.headers) == {"Retry-After": "20"}  # whole seconds, and not too early
    # As long as it said: being refused takes no time on top of it.
    board.now += 19.4
    assert tried(right) == 429
    board.now += 0.1
    assert tried(right) == 200
    assert tried(wrong) == 401
    assert tried(right) == 429
    board.now += 60
    assert [tried(wrong) for _ in range(4)] == [401] * 3 + [429]


def test_while_it_may_not_try_nothing_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    admin = Board(admin_attempts=1).admin()
    ask(admin, "/metrics", authorization=basic(password="wrong"))
    monkeypatch.setattr(module, "hmac", None)
    assert status(ask(admin, "/metrics", authorization=basic())) == 429


def test_so_many_addresses_are_remembered_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ADDRESSES", 50)
    admin = Board(admin_attempts=1).admin()
    for number in range(200):
        address = f"10.0.0.{number}"
        assert status(ask(admin, "/metrics", "", "Basic x", address)) == 401
        assert status(ask(admin, "/metrics", "", basic(), address)) == 429
    assert len(admin._wrong) == 50


def test_wrong_passwords_are_seen() -> None:
    board = Board(admin_attempts=2)
    admin = board.admin()
    with captured() as log:
        for _ in range(5):
            ask(admin, "/metrics", authorization=basic(password="wr0ng"))
        ask(admin, "/metrics")
    assert board.tracking.refusals == {"admin_unauthorized": 2, "admin_rate_limited": 3}
    seen = [entry.text for entry in board.tracking.activity(0.0)]
    assert seen == [
        f"admin_unauthorized: a wrong admin password from {MINE}",
        f"admin_rate_limited: too many wrong admin passwords from {MINE}",
    ]
    assert [(entry["event"], entry["address"]) for entry in log] == [
        ("wrong admin password", MINE),
        ("wrong admin password", MINE),
    ]
    assert "wr0ng" not in repr(log)


# --- the API -------------------------------------------------------------------------------------
@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> Board:
    """A mesh of two rooms. The wall's clock shows 1 700 000 000 at its second 1000."""
    monkeypatch.setattr(module, "time", SimpleNamespace(time=lambda: 1.7e9))
    board = Board()
    board.join("lobby", "ann", name="Ann <b>", address="203.0.113.1")
    board.join("lobby", "bob", subject="user-7")
    board.join("lobby", "cid")
    board.join("a hall/ü", "ann")
    meet(board.tracking, "lobby", "ann", "bob", 1000.0, rtt=0.05, attempts=1, successes=1)
    return board


def test_mesh_status(board: Board) -> None:
    answer = get(board, "/api/admin/mesh-status")
    assert answer is not None
    assert (answer.status, answer.content_type) == (200, "application/json")
    wall = 1.7e9 - 1000.0
    assert answer.body == msgspec.json.encode(board.tracking.status(wall)) + b"\n"
    shown = json.loads(answer.body)
    assert shown["metrics"]["totalP2PAttempts"] == 1
    assert {connection["lastSeen"] for connection in shown["connections"]} == {1.7e9}
    assert [room["roomId"] for room in shown["topology"]] == ["lobby", "a hall/ü"]


def test_rooms_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """The JSON is put together of parts, of which a large room has several."""
    monkeypatch.setattr(module, "time", SimpleNamespace(time=lambda: 1.7e9))
    board = Board()
    for size in (1, 40, 0, 3, 60, 2):
        ids = [f"p{number:02}" for number in range(size)]
        for peer_id in ids:
            board.join(f'],"links":[]}} {size}"', peer_id)
        for one, other in itertools.combinations(ids, 2):
            meet(board.tracking, f'],"links":[]}} {size}"', one, other, 1000.0)
    assert len(list(board.tracking.status_parts(0.0))) > 5
    wall = 1.7e9 - 1000.0
    status = get(board, "/api/admin/mesh-status")
    assert status is not None
    assert status.body == msgspec.json.encode(board.tracking.status(wall)) + b"\n"
    peers = get(board, "/api/admin/peers")
    assert peers is not None
    assert peers.body == msgspec.json.encode({"peers": board.tracking.peers(wall)}) + b"\n"
    rooms = get(board, "/api/admin/rooms")
    assert rooms is not None
    assert rooms.body == msgspec.json.encode({"rooms": board.tracking.rooms(wall)}) + b"\n"


@pytest.mark.parametrize("name", ["mesh-status", "peers", "rooms"])
def test_what_is_long_is_made_in_parts(name: str) -> None:
    board = Board()
    answer = board.admin().answer(f"/api/admin/{name}", "", {"Authorization": basic()}, MINE)
    assert answer is not None
    assert answer.rest is not None
    # Nothing is looked at before it is wanted.
    for number in range(1500):
        board.join(f"r{number}", "ann")
    parts = list(answer.rest)
    assert len(parts) > 3
    assert all(len(part) < 200_000 for part in parts)
    assert b"".join(parts).count(b'"roomId":"r1499"') in (1, 2)


def test_rooms(board: Board) -> None:
    answer = get(board, "/api/admin/rooms")
    assert answer is not None
    rooms = json.loads(answer.body)["rooms"]
    assert [(room["roomId"], room["members"], room["since"]) for room in rooms] == [
        ("lobby", 3, 1.7e9),
        ("a hall/ü", 1, 1.7e9),
    ]


@pytest.mark.parametrize(
    ("query", "peers"),
    [
        ("", [("lobby", "ann"), ("lobby", "bob"), ("lobby", "cid"), ("a hall/ü", "ann")]),
        ("room=lobby", [("lobby", "ann"), ("lobby", "bob"), ("lobby", "cid")]),
        ("room=a+hall%2F%C3%BC", [("a hall/ü", "ann")]),
        ("room=nowhere", []),
    ],
)
def test_peers(board: Board, query: str, peers: list[tuple[str, str]]) -> None:
    answer = get(board, "/api/admin/peers", query)
    assert answer is not None
    shown = json.loads(answer.body)["peers"]
    assert [(peer["roomId"], peer["member"]["peerId"]) for peer in shown] == peers
    for peer in shown:
        met = peer["roomId"] == "lobby" and peer["member"]["peerId"] in ("ann", "bob")
        assert len(peer["links"]) == met
        assert peer["member"]["joined"] == 1.7e9


@pytest.mark.parametrize(
    ("query", "numbers"),
    [("", [1, 2, 3, 4, 5]), ("after=0", [1, 2, 3, 4, 5]), ("after=3", [4, 5]), ("after=99", [])],
)
def test_activity(board: Board, query: str, numbers: list[int]) -> None:
    answer = get(board, "/api/admin/activity", query)
    assert answer is not None
    shown = json.loads(answer.body)
    assert [entry["number"] for entry in shown["activity"]] == numbers
    assert shown["latest"] == 5
    assert {entry["at"] for entry in shown["activity"]} <= {1.7e9}


def test_before_anything_happened() -> None:
    board = Board()
    for path, body in [
        (
            "/api/admin/mesh-status",
            {
                "metrics": msgspec.to_builtins(board.tracking.metrics()),
                "connections": [],
                "topology": [],
            },
        ),
        ("/api/admin/rooms", {"rooms": []}),
        ("/api/admin/peers", {"peers": []}),
        ("/api/admin/activity", {"activity": [], "latest": 0}),
    ]:
        answer = get(board, path)
        assert answer is not None
        assert json.loads(answer.body) == body


def test_session(board: Board) -> None:
    admin = board.admin()
    tickets = set()
    for _ in range(3):
        answer = get(board, "/api/admin/session", admin=admin)
        assert answer is not None
        shown = json.loads(answer.body)
        assert shown.keys() == {"ticket", "expiresIn"}
        assert shown["expiresIn"] == 30
        tickets.add(shown["ticket"])
    assert len(tickets) == 3
    assert "secret" not in repr(live._Hello(ticket="secret"))
    assert all(re.fullmatch(r"[\w-]{32}", ticket) for ticket in tickets)
    # They are not kept: who reads the relay's memory finds nothing to sign in with.
    assert all(isinstance(kept, bytes) for kept in admin._live._tickets)
    assert not {ticket.encode() for ticket in tickets} & admin._live._tickets.keys()


@pytest.mark.parametrize(
    ("path", "query", "field"),
    [
        ("peers", "room=", "room: "),
        ("peers", "room=" + "x" * 129, "room: "),
        ("peers", "room=%0d%0aSet-Cookie:x", "room: "),
        ("peers", "room=%ff", "query: "),
        ("peers", "room=%E2%80%AEx", "room: "),
        ("peers", "room", "query: "),
        ("peers", "room=a&room=b", "room: "),
        ("peers", "rooms=a", "query: "),
        ("peers", "after=1", "query: "),
        ("peers", "&", "query: "),
        ("peers", "room=lobby&&", "query: "),
        ("peers", "&".join(f"a{n}=1" for n in range(100)), "query: "),
        ("activity", "after=", "after: "),
        ("activity", "after=-1", "after: "),
        ("activity", "after=1.5", "after: "),
        ("activity", "after=1e3", "after: "),
        ("activity", "after=%D9%A3", "after: "),  # a digit, and not one of ours
        ("activity", "after=1_0", "after: "),
        ("activity", "after=" + "9" * 5000, "after: "),
        ("activity", "room=lobby", "query: "),
        ("rooms", "room=lobby", "query: "),
        ("mesh-status", "x=1", "query: "),
        ("session", "x=1", "query: "),
    ],
)
def test_a_bad_query_is_told_which_field(path: str, query: str, field: str) -> None:
    answer = get(Board(), f"/api/admin/{path}", query)
    assert answer is not None
    assert answer.status == 400
    assert answer.content_type.startswith("text/plain")
    assert answer.body.startswith(field.encode())
    assert answer.headers == ()
    assert b"Cookie" not in answer.body


@given(
    path=st.sampled_from(API),
    query=st.text(max_size=40)
    | st.text("=&%+roomafte0189\r\n;\x00é", max_size=40)
    | st.text(max_size=20).map(lambda text: f"room={text}")
    | st.text(max_size=20).map(lambda text: f"after={text}"),
)
def test_any_query(path: str, query: str) -> None:
    answer = get(Board(), f"/api/admin/{path}", query)
    assert answer is not None
    assert answer.status in (200, 400)
    assert answer.headers == ()


@pytest.mark.parametrize(
    "path", ["/api/admin", "/api/admin/", "/api/admin/nothing", "/api/admin/Rooms", "/api/admin//"]
)
def test_what_is_not_there(path: str) -> None:
    assert get(Board(), path) is None


def test_the_live_socket_is_no_page() -> None:
    answer = get(Board(), LIVE_PATH)
    assert answer is not None
    assert answer.status == 426
    assert ("Upgrade", "websocket") in answer.headers


def test_metrics_are_text() -> None:
    answer = get(Board(), "/metrics")
    assert answer is not None
    assert answer.content_type.startswith("text/plain; version=")
    assert b"\nmeshpeer_relay_connections 3.0\n" in answer.body


# --- the dashboard's files -----------------------------------------------------------------------
def test_the_dashboards_files_are_those_of_its_directory() -> None:
    admin = Board().admin()
    answers = {}
    web = files("meshpeer.relay") / "web"
    for file in (*(web / "admin").iterdir(), *(web / "common").iterdir()):
        path = "/admin-analytics" + ("" if file.name == "index.html" else f"/{file.name}")
        answer = ask(admin, path, "v=1", basic())
        assert answer is not None
        assert (answer.status, answer.body) == (200, file.read_bytes())
        answers[path] = answer
    assert ask(admin, "/admin-analytics/", "", basic()) == answers["/admin-analytics"]
    types = {
        "/admin-analytics": "text/html; charset=utf-8",
        "/admin-analytics/app.js": "text/javascript; charset=utf-8",
        "/admin-analytics/app.css": "text/css; charset=utf-8",
        "/admin-analytics/icon.svg": "image/svg+xml",
    }
    assert {path: answers[path].content_type for path in types} == types
    for answer in answers.values():
        policy = dict(answer.headers)["Content-Security-Policy"]
        rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
        assert rules == {
            "default-src": "'none'",
            "script-src": "'self'",
            "style-src": "'self'",
            "img-src": "'self'",
            "connect-src": "'self'",
            "base-uri": "'none'",
            "form-action": "'none'",
            "frame-ancestors": "'none'",
        }


@pytest.mark.parametrize(
    "name",
    [
        "/",
        "index.html",
        "..",
        "../admin.py",
        "../../admin.py",
        "..%2f..%2fadmin.py",
        "%2e%2e/%2e%2e/admin.py",
        "..\\..\\admin.py",
        "/etc/passwd",
        "//etc/passwd",
        "app.js/",
        "app.js\x00",
        "./app.js",
        "nothing.js",
        "x" * 100_000,
    ],
)
def test_no_other_file_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    admin = Board().admin()
    assert status(ask(admin, "/admin-analytics", "", basic())) == 200
    # From here on nothing is read any more.
    monkeypatch.setattr(pages, "files", None)
    assert ask(admin, f"/admin-analytics/{name}", "", basic()) is None


def test_what_few_need_is_imported_when_it_is_needed() -> None:
    late = "{'prometheus_client', 'segno'}"
    code = f"import sys, meshpeer.relay; print([m for m in sys.modules if m in {late}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
