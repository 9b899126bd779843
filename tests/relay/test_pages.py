"""The pages of the relay: what is there, for whom, and nothing else."""

from __future__ import annotations

import gzip
import re
from importlib.resources import files
from typing import Final
from urllib.parse import quote

import pytest

from meshpeer import Relay, RelayConfig
from meshpeer.relay import pages as module
from meshpeer.relay.addresses import Origins
from meshpeer.relay.http import Answer
from meshpeer.relay.pages import Pages
from tests.relay.wires import exchange

WEB: Final = files("meshpeer.relay") / "web"
POLICY: Final = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self'",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}
AT: Final = "at=http://relay:3001"


class Clock:
    """Stands still until it is told otherwise."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def pages(*allowed: str, clock: Clock | None = None) -> Pages:
    return Pages(Origins(allowed, tls=False, loopback=False), now=clock or Clock())


def ask(path: str, query: str = "", those: Pages | None = None, **headers: str) -> Answer | None:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return (those or pages()).answer(path, query, {"Host": "relay:3001", **names})


def got(path: str, query: str = "", those: Pages | None = None, **headers: str) -> Answer:
    answer = ask(path, query, those, **headers)
    assert answer is not None
    return answer


def header(answer: Answer, name: str) -> str | None:
    values = [value for key, value in answer.headers if key == name]
    assert len(values) <= 1
    return values[0] if values else None


# --- what is there -------------------------------------------------------------------------------
def test_every_file_of_the_pages_has_its_type_and_its_policy() -> None:
    types = {".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".svg": "image/"}
    those = pages()
    paths = {"/": WEB / "home" / "index.html", "/chat/lobby": WEB / "chat" / "index.html"}
    for folder in ("chat", "common", "home"):
        for file in (WEB / folder).iterdir():
            if file.name != "index.html":
                paths[f"/assets/{folder}/{file.name}"] = file
    paths["/meshpeer.js"] = WEB / "meshpeer.js"
    for path, file in paths.items():
        answer = got(path, "", those)
        assert (answer.status, answer.body) == (200, file.read_bytes())
        assert answer.content_type.startswith(types[file.name[file.name.rindex(".") :]])
        policy = header(answer, "Content-Security-Policy")
        assert policy is not None
        assert dict(rule.split(" ", 1) for rule in policy.split("; ")) == POLICY


def test_the_pages_name_only_files_that_there_are() -> None:
    those = pages()
    for path in ("/", "/chat/lobby"):
        text = got(path, "", those).body.decode()
        named = re.findall(r'(?:src|href)="(/[^"]+)"', text)
        assert len(named) > 3
        for each in named:
            # What is not among the pages is asked for at the relay.
            assert ask(each, "", those) is not None or each in ("/healthz", "/admin-analytics")


@pytest.mark.parametrize(
    "room", ["lobby", "%C3%A9t%C3%A9", "a%2Fb", "a%20b", "%3Cscript%3E", "qr.svg", "%F0%9F%90%88"]
)
def test_the_same_page_is_there_for_every_room(room: str) -> None:
    answer = got(f"/chat/{room}")
    assert answer == got("/chat/lobby")
    assert answer.status == 200


@pytest.mark.parametrize(
    "room",
    ["%00", "%0A", "a%E2%80%AEb", "%20a", "a%20", "%FF", "%ED%A0%80", "a" * 129, "", "%C3"],
)
def test_what_is_no_rooms_name_has_no_page(room: str) -> None:
    for rest in ("/x", "/qr.svg"):
        answer = got(f"/chat/{room}{rest}", AT)
        assert answer.status == 404
        assert room.encode() not in answer.body or not room


@pytest.mark.parametrize("path", ["/chat", "/chat/"])
def test_without_a_room_it_is_asked_for(path: str) -> None:
    answer = got(path)
    assert answer.status == 302
    assert header(answer, "Location") == "/"


@pytest.mark.parametrize(
    "path",
    [
        "//",
        "/index.html",
        "/chat/lobby/",
        "/chat/lobby/lobby",
        "/chat/lobby/app.js",
        "/chat/lobby/qr.svg/",
        "/chat//etc/passwd",
        "/assets",
        "/assets/",
        "/assets/chat",
        "/assets/chat/",
        "/assets/chat/index.html",
        "/assets/home/index.html",
        "/assets/admin/app.js",
        "/assets/chat/../admin/app.js",
        "/assets/chat/../../server.py",
        "/assets/chat/..%2f..%2fserver.py",
        "/assets/chat/%2e%2e/%2e%2e/server.py",
        "/assets/chat/..\\..\\server.py",
        "/assets/chat//etc/passwd",
        "/assets/chat/app.js/",
        "/assets/chat/./app.js",
        "/assets/chat/app.js\x00",
        "/assets/chat/APP.js",
        "/assets/client/codec.js",
        "/client/codec.js",
        "/admin/app.js",
        "/chat/app.js/x",
        "/common/dom.js",
        "/home/app.js",
        "/web/meshpeer.js",
        "/meshpeer.js/",
        "/pages.py",
        "/../pages.py",
        "/favicon.ico",
        "/" + "x" * 100_000,
    ],
)
def test_nothing_else_is_there(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    those = pages()
    assert got("/", "", those).status == 200
    # From here on nothing is read any more.
    monkeypatch.setattr(module, "files", None)
    answer = ask(path, "", those)
    assert answer is None or answer.status == 404


# --- what a browser keeps ------------------------------------------------------------------------
@pytest.mark.parametrize("path", ["/", "/chat/lobby", "/meshpeer.js", "/assets/chat/app.css"])
def test_who_has_it_already_gets_no_more_than_that(path: str) -> None:
    answer = got(path)
    tag = header(answer, "ETag")
    assert tag is not None
    assert header(answer, "Cache-Control") == "no-cache"
    for known in (tag, f"W/{tag}", f'"other", {tag}'):
        again = got(path, If_None_Match=known)
        assert (again.status, again.body) == (304, b"")
        assert again.headers == answer.headers
    for other in ('"other"', "", tag[1:-1]):
        assert got(path, If_None_Match=other) == answer


@pytest.mark.parametrize(
    ("accepts", "packed"),
    [
        ("gzip", True),
        ("gzip, deflate, br, zstd", True),
        ("br;q=1.0, GZIP ; q=0.5", True),
        ("gzip;q=0", False),
        ("gzip; q=0.00, *", False),
        ("br, x-gzip-not", False),
        ("", False),
    ],
)
def test_who_takes_gzip_gets_a_quarter_of_the_bytes(accepts: str, packed: bool) -> None:
    those = pages()
    plain = got("/meshpeer.js", "", those)
    answer = got("/meshpeer.js", "", those, Accept_Encoding=accepts)
    assert header(answer, "Vary") == header(plain, "Vary") == "Accept-Encoding, Origin"
    if not packed:
        assert answer == plain
        return
    assert header(answer, "Content-Encoding") == "gzip"
    assert gzip.decompress(answer.body) == plain.body
    assert len(answer.body) < 0.3 * len(plain.body)
    # It is another representation, with a tag of its own.
    tag = header(answer, "ETag") or ""
    assert tag != header(plain, "ETag")
    again = got("/meshpeer.js", "", those, Accept_Encoding=accepts, If_None_Match=tag)
    assert (again.status, again.body) == (304, b"")
    assert got("/meshpeer.js", "", those, If_None_Match=tag) == plain
    policy = "Content-Security-Policy"
    assert header(answer, policy) == header(plain, policy) is not None


# --- whose pages may import the client -----------------------------------------------------------
@pytest.mark.parametrize(
    ("origin", "allowed", "may"),
    [
        ("http://relay:3001", (), True),
        ("https://app.example.org", ("https://app.example.org",), True),
        ("https://app.example.org", ("*",), True),
        ("https://app.example.org", (), False),
        ("https://evil.example.org", ("https://app.example.org",), False),
        ("null", ("https://app.example.org",), False),
    ],
)
def test_pages_of_allowed_origins_may_import_the_client(
    origin: str, allowed: tuple[str, ...], may: bool
) -> None:
    for coding in ("identity", "gzip"):
        asks = {"Origin": origin, "Accept_Encoding": coding}
        answer = got("/meshpeer.js", "", pages(*allowed), **asks)
        assert answer.status == 200
        assert header(answer, "Access-Control-Allow-Origin") == (origin if may else None)
        assert header(answer, "Vary") == "Accept-Encoding, Origin"
        tag = header(answer, "ETag")
        assert tag is not None
        known = got("/meshpeer.js", "", pages(*allowed), If_None_Match=tag, **asks)
        assert known.status == 304
        assert header(known, "Access-Control-Allow-Origin") == (origin if may else None)
    # Nothing else is for others.
    for path in ("/", "/chat/lobby", "/assets/chat/app.js"):
        answer = got(path, "", pages("*"), Origin=origin)
        assert header(answer, "Access-Control-Allow-Origin") is None


def test_a_page_that_says_no_origin_is_told_none() -> None:
    answer = got("/meshpeer.js", "", pages("*"))
    assert header(answer, "Access-Control-Allow-Origin") is None
    assert header(answer, "Vary") == "Accept-Encoding, Origin"


# --- QR codes ------------------------------------------------------------------------------------
def test_a_code_is_an_image_that_runs_nothing() -> None:
    answer = got("/chat/lobby/qr.svg", AT)
    assert (answer.status, answer.content_type) == (200, "image/svg+xml")
    assert answer.body.startswith(b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ')
    assert set(re.findall(rb"<(\w+)", answer.body)) == {b"svg", b"path"}
    # Every other answer's policy: nothing is loaded from there.
    assert header(answer, "Content-Security-Policy") is None
    assert answer.body == got("/chat/lobby/qr.svg", "at=http%3A%2F%2Frelay%3A3001").body
    assert answer.body != got("/chat/lobby2/qr.svg", AT).body
    assert answer.body != got("/chat/lobby/qr.svg", "at=https://relay:3001").body


def test_a_code_is_of_the_link(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def make(text: str) -> bytes:
        made.append(text)
        return b""

    monkeypatch.setattr(module, "_make_code", make)
    those = pages()
    path = "/chat/caf%C3%A9%2F1/qr.svg"
    got(path, "at=https://relay.example.org", those, Host="relay.example.org")
    got(path, "at=https://[2001:db8::1]:3001", those, Host="[2001:db8::1]:3001")
    assert made == [
        "https://relay.example.org/chat/caf%C3%A9%2F1",
        "https://[2001:db8::1]:3001/chat/caf%C3%A9%2F1",
    ]


@pytest.mark.parametrize(
    ("origin", "host", "allowed", "may"),
    [
        ("http://relay:3001", "relay:3001", (), True),
        ("http://RELAY:3001", "relay:3001", (), True),
        # A proxy in front may speak TLS, and pass on the name that it has.
        ("https://relay.example.org", "relay.example.org", (), True),
        # Or ask for another one: then its own is listed.
        ("https://relay.example.org", "127.0.0.1:3001", ("https://relay.example.org",), True),
        ("https://relay.example.org", "127.0.0.1:3001", (), False),
        ("https://evil.example", "relay:3001", (), False),
        ("https://evil.example", "relay:3001", ("https://relay.example.org",), False),
        ("http://relay", "relay:3001", (), False),
        ("http://relay:3002", "relay:3001", (), False),
        ("http://relay:99999", "relay:3001", (), False),
        ("http://[", "relay:3001", (), False),
        ("http://relay:3001", "", (), False),
    ],
)
def test_a_code_leads_nowhere_but_to_this_relay(
    origin: str, host: str, allowed: tuple[str, ...], may: bool
) -> None:
    answer = got("/chat/lobby/qr.svg", f"at={origin}", pages(*allowed), Host=host)
    assert answer.status == (200 if may else 403)
    assert b"evil" not in answer.body


@pytest.mark.parametrize(
    "query",
    [
        "",
        "at=",
        "at",
        "x=1",
        "at=http://a&at=http://b",
        "at=http://a&x=1",
        "at=javascript:alert(1)",
        "at=http://a/b",
        "at=http://a%0A",
        "at=http://a@b",
        "at=http://needle?",
        "at=ftp://a",
        "at=%FF",
        "at=http://" + "a" * 300,
        "&" * 1000,
    ],
)
def test_a_code_is_of_nothing_but_a_link_to_a_room(query: str) -> None:
    answer = got("/chat/lobby/qr.svg", query)
    assert answer.status == 400
    assert b"needle" not in answer.body


def test_a_link_that_is_too_long_has_no_code() -> None:
    assert got(f"/chat/{'a' * 128}/qr.svg", AT).status == 200
    assert got(f"/chat/{quote('é' * 128)}/qr.svg", AT).status == 400


def test_a_flood_of_codes_is_held_up_and_what_is_kept_is_bounded() -> None:
    clock = Clock()
    those = pages(clock=clock)
    answers = [got(f"/chat/{n}/qr.svg", AT, those) for n in range(100)]
    assert [answer.status for answer in answers] == [200] * 30 + [429] * 70
    assert header(answers[-1], "Retry-After") == "1"
    assert got("/chat/0/qr.svg", AT, those) is answers[0]  # that one is there
    for n in range(1000):
        clock.now += 1
        assert got(f"/chat/{n}/qr.svg", AT, those).status == 200
        assert len(those._codes) <= 256
    # The one that was asked for longest ago went first.
    assert got("/chat/999/qr.svg", AT, those) is got("/chat/999/qr.svg", AT, those)


# --- the relay -----------------------------------------------------------------------------------
async def test_the_relay_serves_them() -> None:
    config = RelayConfig(port=0, origins=("https://app.example.org",))
    async with Relay(config) as relay:
        assert relay.chat_url() == f"http://127.0.0.1:{relay.port}/"
        assert relay.chat_url("a b/ü") == f"http://127.0.0.1:{relay.port}/chat/a%20b%2F%C3%BC"

        async def fetch(path: str, more: str = "") -> tuple[int, dict[str, str], bytes]:
            request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{relay.port}\r\n{more}\r\n"
            line, headers, body = await exchange(relay, request.encode())
            return int(line.split()[1]), headers, body

        for path in ("/", "/?x=1", "/chat/a%20b", "/meshpeer.js", "/assets/chat/app.js"):
            status, headers, body = await fetch(path)
            assert status == 200
            assert len(body) == int(headers["content-length"]) > 50
        origin = "Origin: https://app.example.org\r\n"
        _, headers, _ = await fetch("/meshpeer.js", origin)
        assert headers["access-control-allow-origin"] == "https://app.example.org"
        status, known, body = await fetch("/meshpeer.js", f"If-None-Match: {headers['etag']}\r\n")
        assert (status, body) == (304, b"")
        assert "content-length" not in known
        # Two of a header are none.
        twice = f"If-None-Match: {headers['etag']}\r\n" * 2 + origin * 2
        status, headers, _ = await fetch("/meshpeer.js", twice)
        assert status == 200
        assert "access-control-allow-origin" not in headers
        status, headers, _ = await fetch("/chat/")
        assert (status, headers["location"]) == (302, "/")
        status, headers, body = await fetch(f"/chat/lobby/qr.svg?at=http://127.0.0.1:{relay.port}")
        assert (status, headers["content-type"]) == (200, "image/svg+xml")
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert body.endswith((b"</svg>", b"</svg>\n"))
        for path in ("/assets/admin/app.js", "/chat/%00", "/assets/../server.py"):
            assert (await fetch(path))[0] == 404
