"""Bad input and attack: what the other tests leave out, against a live relay while a pair chats.

Where each item of the list is tested:

=================================  ================================================================
every endpoint with junk           here; `test_http`, `test_limits`, `test_admin_relay`
oversized requests and messages    here; `test_http`, `test_server`, `test_limits`
slow requests and messages         here; `test_http`, `test_server`
TLS: junk and silence              `test_tls`
path traversal                     here; `test_http`, `test_admin`, `test_admin_relay`
cross-site WebSockets              `test_http`, `test_admin_relay`
DNS rebinding                      `test_http`
forged, expired and other tokens   here; `test_access`
none of a token in a log           here; `test_access`, `test_server`
header and log injection           here; `test_admin`, `test_admin_relay`
names and texts with markup        here; `test_admin_relay`; in Chromium
                                   `tests.browser.test_dashboard`; in a terminal
                                   `tests.cli.test_chat`
resume with another's token        here; `tests.core.test_rooms`, `tests.core.test_rooms_access`
squatting and takeover of ids      here; `test_access`, `tests.core.test_rooms`,
                                   `tests.core.test_rooms_access`
reports that lie                   here; `tests.core.test_tracking`,
                                   `tests.core.test_rooms_operator`
wrong admin passwords, tickets     `test_admin`, `test_admin_live`, `test_admin_relay`
one that never reads               here; `test_server`, `test_limits`, `test_admin_relay`
one that sends a byte at a time    here; `test_http`
5 000 sockets of one address       here; `test_limits`
a flood while 50 chat              here; `test_server`, `test_turns`; how long theirs take is in
                                   `tests.bench`
100 000 generated messages         `test_fuzz`
=================================  ================================================================
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import math
import resource
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any, Final

import jwt
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from prometheus_client.parser import text_string_to_metric_families
from websockets.frames import Opcode

from meshpeer.config import RelayConfig
from meshpeer.core.forward import encode_forward
from meshpeer.core.messages import (
    MAX_REPORTS,
    Leave,
    MemberJoined,
    Refused,
    Report,
    SignalIn,
    Update,
    Welcome,
    encode,
)
from meshpeer.relay import Relay, live, make_join_token
from meshpeer.relay.admin import LIVE_PATH
from tests.relay.board import captured
from tests.relay.test_access import OTHER, SECRET, claims, pems, signed
from tests.relay.test_admin_relay import api, ask, dashboard, linked, report
from tests.relay.test_fuzz import Wire, frame, talking, watched_log
from tests.relay.test_http import assert_safe
from tests.relay.test_server import Peer, close_of, comeback, join, peer, signal
from tests.relay.wires import UPGRADE, client_frame, exchange, raw, refused, until_gone

ENDPOINTS: Final = (
    "/",
    "/ws",
    "/healthz",
    "/metrics",
    "/admin-analytics",
    "/admin-analytics/",
    "/admin-analytics/app.js",
    "/api/admin/mesh-status",
    "/api/admin/rooms",
    "/api/admin/peers",
    "/api/admin/activity",
    "/api/admin/session",
    "/api/admin/live",
    "/nothing",
)
PUBLIC: Final = ("/", "/healthz")


@contextlib.contextmanager
def clean(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing is logged but what is expected, and nothing that could steer a terminal."""
    with watched_log(logging.DEBUG) as bad:
        yield
    assert not bad
    assert not caplog.records


async def websocket(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str = "/ws"
) -> None:
    """Open one by hand."""
    writer.write(UPGRADE.replace(b"/ws", path.encode()) + b"\r\n")
    assert b" 101 " in await reader.readuntil(b"\r\n\r\n")


async def next_frame(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """What the relay says next, and how: the opcode."""
    opcode, size = await reader.readexactly(2)
    if size == 126:
        (size,) = struct.unpack("!H", await reader.readexactly(2))
    elif size == 127:
        (size,) = struct.unpack("!Q", await reader.readexactly(8))
    return opcode & 0x0F, await reader.readexactly(size)


async def close_code(reader: asyncio.StreamReader) -> int | None:
    """With which code the relay closes, after whatever it says; None where it just goes."""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            opcode, data = await next_frame(reader)
            if opcode == Opcode.CLOSE:
                return int.from_bytes(data[:2], "big")
    return None


# --- every endpoint -------------------------------------------------------------------------------
BAD_REQUESTS: Final = [
    # What is no request.
    "\x00\xff %s HTTP/1.1\r\n",
    "GET %s\r\n",
    "GET %s HTTP/9.9\r\n",
    "GET %s HTTP/1.1 \r\n",
    "GET  %s HTTP/1.1\r\n",
    "GET %s\x00 HTTP/1.1\r\n",
    "GET %s\xe4 HTTP/1.1\r\n",
    "GET %s HTTP/1.1\r\nno colon\r\n",
    "GET %s HTTP/1.1\r\nA b: c\r\n",
    "GET %s HTTP/1.1\r\nA: b\r\n folded\r\n",
    "GET %s HTTP/1.1\r\nA: b\rC: d\r\n",
    "GET %s HTTP/1.1\r\n: empty\r\n",
    # What is too much.
    "GET %s?" + "x" * 9_000 + " HTTP/1.1\r\n",
    "GET %s" + "/.." * 3_000 + " HTTP/1.1\r\n",
    "GET %s HTTP/1.1\r\nA: " + "x" * 9_000 + "\r\n",
    "GET %s HTTP/1.1\r\n" + "A: b\r\n" * 500,
    "GET %s HTTP/1.1\r\n" + ("A: " + "x" * 8_000 + "\r\n") * 8,
    "x" * 100_000 + " %s HTTP/1.1\r\n",
    # What has a body.
    "GET %s HTTP/1.1\r\nContent-Length: 99999999999999\r\n",
    "GET %s HTTP/1.1\r\nContent-Length: -1\r\n",
    "GET %s HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n",
    "GET %s HTTP/1.1\r\nTransfer-Encoding: chunked\r\n",
    "POST %s HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n",
    "POST %s HTTP/1.1\r\nExpect: 100-continue\r\n",
    # What nobody may do.
    "POST %s HTTP/1.1\r\n",
    "PUT %s HTTP/1.1\r\n",
    "DELETE %s HTTP/1.1\r\n",
    "TRACE %s HTTP/1.1\r\n",
    "CONNECT %s HTTP/1.1\r\n",
    "get %s HTTP/1.1\r\n",
    # What asks for a WebSocket, and not as it should.
    "GET %s HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: short\r\n",
    "GET %s HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 8\r\n",
    "GET %s HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nOrigin: \x7f\r\n",
]


@pytest.mark.parametrize("path", ENDPOINTS)
async def test_every_endpoint_takes_junk_and_too_much(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is answered with what is wrong, or just shut."""
    with clean(caplog):
        async with Relay(RelayConfig(port=0)) as relay, talking(relay) as pair:
            for text in BAD_REQUESTS:
                head = (text % path).encode("latin-1") + b"Host: relay\r\n\r\n"
                try:
                    line, headers, body = await exchange(relay, head + b"5\r\nhello\r\n0\r\n\r\n")
                except ConnectionError:  # it does not read on to the end
                    continue
                await pair.exchange()
                if not line:
                    continue
                status = int(line.split()[1])
                if status == 401:
                    assert headers["www-authenticate"].startswith("basic ")
                elif status == 200:
                    assert path in PUBLIC, text
                else:
                    assert 400 <= status < 500 or status == 505, text
                assert_safe(headers)
                assert len(body) == int(headers["content-length"])
            await until_gone(relay, keep=2)
            assert refused(relay)["bad_request"] >= 10


async def test_every_endpoint_ends_who_is_slow(caplog: pytest.LogCaptureFixture) -> None:
    """A byte now and then does not hold a connection open."""
    with clean(caplog):
        async with (
            Relay(RelayConfig(port=0, join_timeout=0.5)) as relay,
            talking(relay) as pair,
            contextlib.AsyncExitStack() as stack,
        ):
            heads = {}
            for path in ENDPOINTS:
                reader, writer = await stack.enter_async_context(raw(relay))
                text = f"GET {path} HTTP/1.1\r\nA: {'x' * 6_000}"
                heads[asyncio.create_task(reader.read())] = (writer, iter(text.encode()))
            pending = set(heads)
            while pending:
                for task in pending:
                    writer, rest = heads[task]
                    writer.write(bytes([next(rest)]))
                await pair.exchange()
                _, pending = await asyncio.wait(pending, timeout=0.001)
            for task in heads:
                with contextlib.suppress(ConnectionResetError):
                    assert await task == b""
            await until_gone(relay, keep=2)
            assert refused(relay) == {"handshake_timeout": len(ENDPOINTS)}


async def test_a_websocket_ends_who_is_slow(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A join or a hello that comes byte by byte does not come in time."""
    monkeypatch.setattr(live, "_HELLO", 0.3)
    hello = json.dumps({"type": "hello", "ticket": "x" * 90}).encode()
    config = RelayConfig(port=0, join_timeout=0.3, message_rate=1e6, message_burst=1_000_000)
    with clean(caplog):
        async with Relay(config) as relay, talking(relay) as pair:
            for path, message, code in (
                ("/ws", encode(join("eve", metadata={"a": "x" * 4_000})), 4004),
                (LIVE_PATH, hello * 80, 4401),
            ):
                async with raw(relay) as (reader, writer):
                    await websocket(reader, writer, path)
                    ended = asyncio.create_task(close_code(reader))
                    for byte in client_frame(message):
                        writer.write(bytes([byte]))
                        await pair.exchange()
                        if ended.done():
                            break
                    assert await ended == code


BAD_FRAMES: Final = {
    "unmasked": (b"\x81\x02{}", 1002),
    "reserved bit": (b"\xc1\x80\0\0\0\0", 1002),
    "unknown opcode": (frame(0x3, b"x"), 1002),
    "unknown control": (frame(0xB, b"x"), 1002),
    "long ping": (frame(Opcode.PING, bytes(126)), 1002),
    "ping in pieces": (frame(Opcode.PING, b"x", fin=False), 1002),
    "the middle of nothing": (frame(Opcode.CONT, b"x"), 1002),
    "a beginning in the middle": (frame(Opcode.TEXT, b"x", fin=False) * 2, 1002),
    "a size below zero": (b"\x82\xff" + b"\xff" * 8 + bytes(4), 1009),
    "a size beyond all": (b"\x82\xff\x7f" + b"\xff" * 7 + bytes(4), 1009),
    "too large": (frame(Opcode.BINARY, bytes(300_000)), 1009),
    "too large in pieces": (
        frame(Opcode.BINARY, bytes(200_000), fin=False) + frame(Opcode.CONT, bytes(200_000)),
        1009,
    ),
    "a close of one byte": (frame(Opcode.CLOSE, b"x"), 1002),
    "a close that is reserved": (frame(Opcode.CLOSE, b"\x03\xed"), 1002),
    "a close with no text": (frame(Opcode.CLOSE, b"\x03\xe8\xff\xff"), 1007),
}


@pytest.mark.parametrize("state", ["at first", "joined", "on the dashboard, at first", "signed in"])
async def test_every_websocket_ends_who_sends_no_frames(
    state: str, caplog: pytest.LogCaptureFixture
) -> None:
    """RFC 6455, sections 5 and 7.4.1."""
    path = LIVE_PATH if state in ("on the dashboard, at first", "signed in") else "/ws"
    with clean(caplog):
        async with Relay(RelayConfig(port=0)) as relay, talking(relay) as pair:
            for number, (what, (data, code)) in enumerate(BAD_FRAMES.items()):
                async with raw(relay) as (reader, writer):
                    await websocket(reader, writer, path)
                    first = b""
                    if state == "joined":
                        first = encode(join(f"eve-{number}"))
                    elif state == "signed in":
                        ticket = (await api(relay, "session"))["ticket"]
                        first = json.dumps({"type": "hello", "ticket": ticket}).encode()
                    if first:
                        writer.write(client_frame(first))
                        await next_frame(reader)
                    writer.write(data)
                    assert await close_code(reader) == code, what
                await pair.exchange()
            await until_gone(relay, keep=2)
            assert len(relay._clients) == 2
            assert not relay._admin._live._open


# --- files ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "path",
    [
        "/admin-analytics/../../etc/passwd",
        "/admin-analytics/../admin.py",
        "/admin-analytics/./app.js",
        "/admin-analytics//app.js",
        "/admin-analytics//etc/passwd",
        "/admin-analytics/app.js/../app.js",
        "/admin-analytics/%2e%2e/%2e%2e/admin.py",
        "/admin-analytics/..%2f..%2fadmin.py",
        "/admin-analytics/%252e%252e%252fadmin.py",
        "/admin-analytics/..%5c..%5cadmin.py",
        "/admin-analytics/..\\..\\admin.py",
        "/admin-analytics/%c0%ae%c0%ae/admin.py",
        "/admin-analytics/..;/admin.py",
        "/admin-analytics/app.js%00",
        "/admin-analytics/app.js\0.html",
        "/admin-analytics/index.html",
        "/admin-analytics/app%2ejs",
        "/admin-analytics/APP.JS",
        "/admin-analytics/~root",
        "/admin-analytics/C:\\Windows\\win.ini",
        "/admin-analytics/file:///etc/passwd",
        "/./admin-analytics/app.js",
        "/nothing/../admin-analytics/app.js",
        "//admin-analytics/app.js",
        "http://relay/admin-analytics/app.js",
        "file:///etc/passwd",
        "/../../../../../../etc/passwd",
        "../admin.py",
        "*",
        "",
    ],
)
async def test_only_the_files_of_the_dashboard_are_there(relay: Relay, path: str) -> None:
    """To who may see them. A path is looked up as it was written, and none is ever opened."""
    try:
        status, headers, body = await ask(relay, path)
    except (IndexError, ValueError):
        pass  # no request, and no answer
    else:
        assert status == 404
        assert ("content-type", "text/plain; charset=utf-8") in headers
        assert body == b"The relay is at / and /ws, its health at /healthz.\n"
    assert (await ask(relay, "/admin-analytics/app.js"))[0] == 200


# --- who may join ---------------------------------------------------------------------------------
PRIVATE, PUBLIC_KEY = pems(Ed25519PrivateKey.generate())


def part(data: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(data).encode()).rstrip(b"=").decode()


def bad_tokens(private: str, public: str | None) -> Iterator[tuple[str, str, str]]:
    """What is wrong with a token, the token, and the code that it is refused with."""
    now = int(time.time())

    def made(**more: Any) -> str:
        given = {name: value for name, value in claims(**more).items() if value is not None}
        if public is None:
            return signed(given)
        return jwt.encode(given, private, algorithm="EdDSA")

    good = made()
    head, body, signature = good.split(".")
    for alg in ("none", "None", "NONE", "nOnE", "", "null"):
        for end in ("", signature):
            yield f"alg {alg!r}", f"{part({'alg': alg, 'typ': 'JWT'})}.{body}.{end}", "unauthorized"
    yield "no alg", f"{part({'typ': 'JWT'})}.{body}.{signature}", "unauthorized"
    yield "no signature", f"{head}.{body}.", "unauthorized"
    yield "another's claims", f"{head}.{part(claims(sub='eve'))}.{signature}", "unauthorized"
    other = "A" if signature[0] != "A" else "B"
    yield "another signature", f"{head}.{body}.{other}{signature[1:]}", "unauthorized"
    yield "another secret", signed(claims(), secret=OTHER), "unauthorized"
    yield "an empty secret", signed(claims(), secret=""), "unauthorized"
    for key in filter(None, (public, public and public.strip())):
        for alg in ("HS256", "EdDSA", "HS512"):
            # RFC 8725, section 2.1: what everybody may know, as a secret.
            yield f"the public key, {alg}", signed(claims(), secret=key, alg=alg), "unauthorized"
    stranger = pems(Ed25519PrivateKey.generate())
    embedded = {"jwk": {"kty": "OKP"}, "jku": "http://evil.example", "x5u": "http://evil.example"}
    for name, value in embedded.items():
        token = jwt.encode(claims(), stranger[0], algorithm="EdDSA", headers={name: value})
        yield f"a key of its own, {name}", token, "unauthorized"
    yield "another key", make_join_token(private_key=stranger[0], subject="a"), "unauthorized"
    yield "expired", made(exp=now - 60), "unauthorized"
    yield "not valid yet", made(nbf=now + 600), "unauthorized"
    yield "of the future", made(iat=now + 600), "unauthorized"
    yield "for others", made(aud="somebody"), "unauthorized"
    yield "for ever and ever", made(exp=None), "unauthorized"
    yield "of nobody", made(sub=None), "unauthorized"
    yield "no text", made(sub=7), "unauthorized"
    yield "a subject that breaks lines", made(sub="ann\r\nadmin"), "unauthorized"
    yield "for ever", made(exp=float("inf")), "unauthorized"
    yield "another room", made(room="hall"), "forbidden"
    yield "a pattern of other rooms", made(room="lobby-*"), "forbidden"
    yield "another peer id", made(peer_id="ann"), "forbidden"
    yield "huge", made(x="y" * 5_000), "malformed"
    yield "no token", "x" * 4_096, "unauthorized"
    yield "dots", "." * 4_096, "unauthorized"
    yield "twice", good + good, "unauthorized"
    yield "with a line behind it", good + "\n", "malformed"
    yield "empty", "", "malformed"


@pytest.mark.parametrize("signs", ["HS256", "EdDSA"])
async def test_a_token_that_is_not_good_lets_nobody_in(
    signs: str, caplog: pytest.LogCaptureFixture
) -> None:
    """And is nowhere to be found afterwards."""
    caplog.set_level(logging.DEBUG)
    if signs == "HS256":
        config = RelayConfig(port=0, join_secret=SECRET)
        good = make_join_token(subject="honest", secret=SECRET)
        tokens = list(bad_tokens(PRIVATE, None))
    else:
        config = RelayConfig(port=0, join_public_key=PUBLIC_KEY)
        good = make_join_token(subject="honest", private_key=PRIVATE)
        tokens = list(bad_tokens(PRIVATE, PUBLIC_KEY))
    answers = ""
    with captured() as log:
        async with Relay(config) as relay, talking(relay, join_token=good) as pair:
            for what, token, code in tokens:
                async with peer(relay) as eve:
                    # As it is: `Join` would not take all of them.
                    fields = json.loads(encode(join("eve")))
                    await eve.say(json.dumps({**fields, "join_token": token}))
                    refusal = await eve.hear()
                    assert isinstance(refusal, Refused), what
                    _, closed = await eve.until_closed()
                assert refusal.code == code, what
                assert close_of(closed)[0] == (4000 if code == "malformed" else 4003), what
                answers += f"{refusal}{closed}"
                await pair.exchange()
            assert relay._rooms.members == 2
            for path in ("mesh-status", "rooms", "peers", "activity"):
                answers += json.dumps(await api(relay, path))
            answers += (await ask(relay, "/metrics"))[2].decode()
            assert sum(relay._rooms.tracking.refusals.values()) == len(tokens)
    for what, token, _ in [("good", good, ""), *tokens]:
        for piece in token.split("."):
            if len(piece) > 20:
                assert piece not in answers, what
                assert piece not in str(log), what
                assert piece not in caplog.text, what


# --- what strangers choose is nothing but text ----------------------------------------------------
STEERS: Final = (
    "a\r\nSet-Cookie: evil=1",
    "a\r\n\r\n<script>alert(1)</script>",
    "a\nlevel=error event='the operator acted'",
    "\x1b[2J\x1b[1;31mevil",
    "\x9b31mevil",
    "a\u2028b",
    "a\u202eb",
    "a\0b",
    "a\x7fb",
    " a",
)


async def test_nothing_that_a_stranger_says_steers_a_log_or_an_answer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Relay(RelayConfig(port=0)) as relay, talking(relay) as pair:
        with clean(caplog):
            for text in STEERS:
                fields = json.loads(encode(join("eve", metadata={"a": text})))
                for name in ("room", "peer_id", "name", "incarnation", "type", "on_conflict"):
                    async with peer(relay) as eve:
                        await eve.say(json.dumps({**fields, name: text}))
                        (refusal,), closed = await eve.until_closed()
                    assert isinstance(refusal, Refused)
                    assert (refusal.code, close_of(closed)[0]) == ("malformed", 4000)
                    assert refusal.text.isprintable()
                # In its metadata whatever it likes: nobody prints that.
                async with peer(relay) as eve:
                    await eve.say(json.dumps(fields))
                    assert isinstance(await eve.hear(), Welcome)
                    for message in (
                        {"type": "update", "name": text},
                        {"type": "signal", "to": text, "to_incarnation": "x" * 8, "epoch": 0,
                         "body": 0},
                        {"type": text},
                        {"type": "report", "links": [["a", "x" * 8, text, text]]},
                    ):  # fmt: skip
                        await eve.say(json.dumps(message))
                        refusal = await eve.hear()
                        assert isinstance(refusal, Refused)
                        assert refusal.text.isprintable()
                    await eve.say(Leave())
                    await eve.until_closed()
            # What bytes a header may have HTTP says; here are those that it lets through.
            for text in ("\t", "\xe4\x9b31m", "a: b", '"<b>', "%0d%0aA: b"):
                for name in ("Host", "Origin", "User-Agent", "Referer", "X-Forwarded-For",
                             "Sec-WebSocket-Protocol", "Authorization", "Evil"):  # fmt: skip
                    head = f"GET /ws HTTP/1.1\r\n{name}: {text}\r\n"
                    _, headers, _ = await exchange(relay, head.encode("latin-1") + b"\r\n")
                    assert_safe(headers)
                    assert headers.keys() <= {
                        "date", "connection", "content-length", "content-type", "cache-control",
                        "content-security-policy", "referrer-policy", "x-content-type-options",
                        "upgrade",
                    }  # fmt: skip
        await pair.exchange()
        activity = (await api(relay, "activity"))["activity"]
        assert len(activity) > len(STEERS)
        for entry in activity:
            for value in entry.values():
                assert not isinstance(value, str) or value.isprintable()


async def test_markup_is_data_wherever_the_operator_meets_it(relay: Relay) -> None:
    markup = "</script><img src=x onerror=alert(1)>'\"&"
    async with peer(relay) as eve, peer(relay) as ann, dashboard(relay) as page:
        await page.say(type="watch", room=markup)
        incarnation = "incarnation-x"
        await eve.join(markup, name=markup, room=markup, metadata={markup: markup},
                       incarnation=incarnation)  # fmt: skip
        await ann.join("ann", room=markup)
        link = linked("ann", state="failed", path=None, reason=markup, failure=markup)
        await report(eve, link)
        async with peer(relay) as twin:
            await twin.say(join(markup, room=markup, incarnation="another-one"))
            await twin.until_closed()
        while not (room := (await page.until("room"))["room"]) or not room["links"]:
            pass
        shown = next(each for each in room["links"][0].values() if isinstance(each, dict))
        assert shown["reason"] == shown["failure"] == markup
        assert {"peerId": markup, "displayName": markup}.items() <= room["members"][0].items()
        await page.say(type="act", id=1, action="notice", room=markup, text=markup)
        assert (await page.until("done"))["ok"]
        for path, found in (("rooms", 1), ("mesh-status", 8), ("peers", 9), ("activity", 9)):
            status, headers, body = await ask(relay, f"/api/admin/{path}")
            assert (status, dict(headers)["content-type"]) == (200, "application/json")
            assert dict(headers)["x-content-type-options"] == "nosniff"
            assert dict(headers)["content-security-policy"].startswith("default-src 'none'")
            text = json.dumps(json.loads(body))
            assert text.count(json.dumps(markup)[1:-1]) >= found, path
        _, headers, body = await ask(relay, "/metrics")
        assert dict(headers)["content-type"].startswith("text/plain; ")
        assert b"img" not in body


# --- whose seat it is -----------------------------------------------------------------------------
@pytest.mark.parametrize("alive", [True, False])
@pytest.mark.parametrize("policy", ["reject", "takeover", "rename"])
async def test_nobody_gets_the_seat_of_another(relay: Relay, policy: str, alive: bool) -> None:
    """Who knows all that others in the room know, and what it was given itself."""
    async with peer(relay) as ann, peer(relay) as bob, contextlib.AsyncExitStack() as stack:
        mine = await ann.join("ann")
        assert isinstance(await bob.join("bob"), Welcome)
        assert isinstance(await ann.hear(), MemberJoined)
        eve = await stack.enter_async_context(peer(relay))
        hers = await eve.join("eve", room="hall")
        other = await stack.enter_async_context(peer(relay))
        namesake = await other.join("ann", room="hall", incarnation="incarnation-x")
        if not alive:
            ann.ws.transport.abort()
            (held,) = [each for each in relay._sockets if each.conn == 1]
            await held.wait_closed()
        tokens = (
            None,
            hers.token,
            namesake.token,
            mine.token[:-1] + ("A" if mine.token[-1] != "A" else "B"),
            mine.token[:16],
            mine.token + "A",
        )
        for token in tokens:
            for incarnation in ("incarnation-ann", "another-one"):
                thief = await stack.enter_async_context(peer(relay))
                await thief.say(
                    join(
                        "ann",
                        incarnation=incarnation,
                        token=token,
                        session=hers.session,
                        received=0,
                        attempt=2**53,
                        on_conflict=policy,
                    )
                )
                answer = await thief.hear()
                if policy == "rename":
                    assert isinstance(answer, Welcome)
                    assert answer.peer_id.startswith("ann-")
                    assert not answer.resumed
                    await thief.say(Leave())
                else:
                    assert isinstance(answer, Refused)
                    assert answer.code == "peer_id_taken"
                    assert (answer.retry_after is None) == alive
                _, closed = await thief.until_closed()
                assert close_of(closed)[0] == (1000 if policy == "rename" else 4003)
        await bob.say(signal("ann", b'"for you"'))
        await bob.say(signal("nobody", b"1"))  # the answer shows that the relay has taken both
        while not isinstance(await bob.hear(), Refused):
            pass
        back = ann
        if not alive:
            back = await stack.enter_async_context(peer(relay))
            assert (await back.join("ann", **comeback(mine, 1))).resumed
        while not isinstance(message := await back.hear(), SignalIn):
            pass
        assert (message.sender, bytes(message.body)) == ("bob", b'"for you"')


async def test_data_goes_to_a_peer_id_and_not_to_who_took_its_incarnation(relay: Relay) -> None:
    """Everybody in a room knows the incarnations in it."""
    async with talking(relay) as pair, peer(relay) as eve:
        await eve.join("eve", incarnation="incarnation-honest-1")
        for _ in range(10):
            await pair.exchange()
        # And what she sends is stamped with what she is, whatever she says.
        said = json.loads(encode(signal("honest-1", b'{"number":99}')))
        await eve.say(json.dumps({**said, "from": "honest-2", "sender": "honest-2"}))
        for _ in range(10):
            await pair.exchange()
        await eve.say(Leave())
        heard, _ = await eve.until_closed()
        assert not heard


async def test_a_stolen_token_is_of_no_use_without_the_subject() -> None:
    """Nor is the subject of another; with its own, it has its seat back at once."""

    def bearer(subject: str) -> str:
        return make_join_token(secret=SECRET, subject=subject)

    async with (
        Relay(RelayConfig(port=0, join_secret=SECRET)) as relay,
        talking(relay, join_token=bearer("honest")) as pair,
        peer(relay) as ann,
    ):
        mine = await ann.join("ann", join_token=bearer("ann@example.org"))
        for policy in ("reject", "takeover"):
            for incarnation in ("incarnation-ann", "another-one"):
                async with peer(relay) as eve:
                    await eve.say(
                        join(
                            "ann",
                            join_token=bearer("eve@example.org"),
                            incarnation=incarnation,
                            on_conflict=policy,
                            attempt=9,
                            **comeback(mine, 0),
                        )
                    )
                    refusal = await eve.hear()
                    assert isinstance(refusal, Refused)
                    _, closed = await eve.until_closed()
                    assert (refusal.code, close_of(closed)[0]) == ("forbidden", 4003)
                    assert mine.token not in refusal.text
        await ann.say(signal("nobody", b"1"))
        assert isinstance(await ann.hear(), Refused)
        async with peer(relay) as again:
            own = bearer("ann@example.org")
            await again.join(
                "ann", join_token=own, incarnation="the-new-one", on_conflict="takeover"
            )
            _, closed = await ann.until_closed()
            assert close_of(closed)[0] == 4001
        await pair.exchange()


# --- reports that lie -----------------------------------------------------------------------------
async def test_reports_that_lie_are_about_their_sender_only(
    relay: Relay, caplog: pytest.LogCaptureFixture
) -> None:
    most = 2**53
    absurd: dict[str, Any] = {
        "rtt": 86_400.0, "restarts": most, "attempts": most, "successes": most, "failures": most,
        "connect_time": 1e308, "fallbacks": most, "messages": most, "bytes_sent": most,
        "bytes_received": most,
    }  # fmt: skip
    honest = {"attempts": 1, "successes": 1, "connect_time": 0.5, "rtt": 0.02, "messages": 3}
    with clean(caplog):
        async with talking(relay) as pair, peer(relay) as eve:
            one, other = pair.ends
            await report(one, linked("honest-2", **honest))
            await report(other, linked("honest-1", **honest))
            await pair.exchange()
            before = await api(relay, "mesh-status")
            await eve.join("eve")
            strangers = [linked(f"p{n}", **absurd) for n in range(MAX_REPORTS)]
            older = msgspec.structs.replace(linked("honest-1", **absurd), incarnation="older-one")
            lies = [
                [linked("eve"), linked("nobody", **absurd), *strangers[2:]],
                [linked("honest-1", reason="x" * 200, failure="y" * 200, **absurd)],
                [
                    linked("honest-2", state="failed", ice_state="made_up", path=None, **absurd),
                    older,
                ],
                *([linked("honest-1", state=("closed", "connected")[n % 2])] for n in range(50)),
            ]
            for links in lies:
                await report(eve, *links)
            await report(eve, *strangers, older)
            refusal = await eve.hear()
            assert isinstance(refusal, Refused)
            assert (refusal.code, refusal.field) == ("malformed", "$.links")
            await pair.exchange()

            after = await api(relay, "mesh-status")
            lobby = after["topology"][0]
            assert {(each["a"], each["b"]) for each in lobby["links"]} == {
                ("honest-1", "honest-2"), ("eve", "honest-1"), ("eve", "honest-2"),
            }  # fmt: skip
            (theirs,) = [each for each in lobby["links"] if each["a"] == "honest-1"]
            (as_it_was,) = before["topology"][0]["links"]
            assert timeless(theirs) == timeless(as_it_was)
            rates = {each["peerId"]: each["rtt"] for each in after["connections"]}
            assert rates["honest-2"] == pytest.approx(0.02)
            check_metrics(after["metrics"])
            # What she said is dropped with her, but for what she counted, which has a bound.
            await eve.say(Leave())
            await eve.until_closed()
            end = await api(relay, "mesh-status")
            (theirs,) = end["topology"][0]["links"]
            assert timeless(theirs) == timeless(as_it_was)
            assert end["metrics"]["activeP2PConnections"] == 1
            assert end["metrics"]["meshUpgradeRate"] == 1.0
            assert end["metrics"]["totalP2PAttempts"] <= 1 + 2 * 10_000
            assert end["metrics"]["averageConnectionTime"] <= 600
            check_metrics(end["metrics"])
            text = (await ask(relay, "/metrics"))[2].decode()
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    assert 0 <= sample.value < 1e15, sample


def timeless(link: dict[str, Any]) -> dict[str, Any]:
    """A link without its times: they are told in Unix time, which is another sum each time."""
    return {
        name: timeless(value) if isinstance(value, dict) else value
        for name, value in link.items()
        if name not in ("since", "updated")
    }


def check_metrics(metrics: dict[str, Any]) -> None:
    assert metrics["activeP2PConnections"] <= 3
    assert 0 <= metrics["meshUpgradeRate"] <= 1
    for name, value in metrics.items():
        assert 0 <= value < 2**53, name
        assert math.isfinite(value), name


# --- what costs the others nothing ----------------------------------------------------------------
SOCKETS: Final = 5_000


@pytest.fixture
def _many_files() -> Iterator[None]:
    """Both ends of each socket are in this process."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * SOCKETS + 500
    if limits[1] != resource.RLIM_INFINITY and limits[1] < wanted:
        pytest.skip(f"this test opens {wanted} files, and the system allows {limits[1]}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(wanted, limits[0]), limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.usefixtures("_many_files")
async def test_a_pair_notices_nothing_of_a_crowd_a_slow_writer_and_who_never_reads(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """All at once. What the pair sends arrives, each answered before the next is sent."""
    config = RelayConfig(
        port=0,
        max_connections_per_address=100,
        max_unread=256 * 1024,
        max_replay_bytes=256 * 1024,
        message_rate=10_000,
    )
    with clean(caplog):
        async with (
            Relay(config) as relay,
            talking(relay) as pair,
            raw(relay, "127.0.0.2") as (_, never_reads),
            raw(relay, "127.0.0.3") as (_, slow),
            peer(relay) as feeder,
        ):
            sock = never_reads.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            never_reads.transport.pause_reading()  # type: ignore[attr-defined]
            await feeder.join("feeder")
            for writer, peer_id in ((never_reads, "never-reads"), (slow, "slow")):
                writer.write(UPGRADE + b"\r\n" + client_frame(encode(join(peer_id))))
                while not isinstance(message := await feeder.hear(), MemberJoined):
                    pass
                assert message.member.peer_id == peer_id
            trickle = iter(client_frame(encode(signal("nobody", b'"%s"' % (b"x" * 200_000)))))
            # At most so many are let in, to be told that it is too many.
            let_in = config.max_connections_per_address + 100

            async def chat() -> None:
                while not relay._figures().cut_off or _many(relay) < SOCKETS - let_in:
                    await pair.exchange()
                    slow.write(bytes([next(trickle)]))
                    await feeder.say(signal("never-reads", b'"%s"' % (b"x" * 50_000)))

            wires = []

            async def come(number: int) -> None:
                loop = asyncio.get_running_loop()
                # Some of those who come are told that it is too many, the others are just shut.
                with contextlib.suppress(ConnectionError):
                    _, wire = await loop.create_connection(
                        Wire, "127.0.0.1", relay.port, local_addr=("127.0.0.4", 0)
                    )
                    wires.append(wire)
                    if number % 2:
                        wire.transport.write(UPGRADE + b"\r\n")

            async with asyncio.TaskGroup() as group:
                group.create_task(chat())
                for begin in range(0, SOCKETS, 100):
                    async with asyncio.TaskGroup() as crowd:
                        for number in range(begin, begin + 100):
                            crowd.create_task(come(number))
            assert relay._figures().cut_off == 1
            assert refused(relay).keys() == {"max_connections_per_address"}
            assert relay._from["127.0.0.4"] <= let_in
            assert pair.exchanged > 100
            for wire in wires:
                wire.transport.abort()
            for held in [each for each in relay._sockets if each.address == "127.0.0.4"]:
                await held.wait_closed()
            assert relay._from.keys() <= {"127.0.0.1", "127.0.0.2", "127.0.0.3"}
            await feeder.say(Leave())


def _many(relay: Relay) -> int:
    return refused(relay).get("max_connections_per_address", 0)


@pytest.mark.parametrize(
    "what", ["signals", "updates", "reports", "junk", "data", "joins", "pings"]
)
async def test_fifty_chat_while_one_floods(what: str, caplog: pytest.LogCaptureFixture) -> None:
    """Everything of theirs arrives, in order. How long it takes is measured elsewhere."""
    config = RelayConfig(
        port=0,
        join_rate=1,
        join_burst=100,
        byte_rate=8 << 20 if what == "data" else 64 << 20,
        byte_burst=1 << 17,
    )
    floods: dict[str, bytes] = {
        "signals": frame(Opcode.TEXT, encode(signal("p00", b'{"flood":1}'))),
        "updates": frame(Opcode.TEXT, encode(Update(name="flood", metadata={"a": "x" * 1_000}))),
        "reports": frame(Opcode.TEXT, encode(Report([linked(f"p{n:02}") for n in range(50)]))),
        "junk": frame(Opcode.BINARY, b"{" * 100),
        "data": frame(Opcode.BINARY, encode_forward("p00", "incarnation-p00", bytes(10_000))),
        "pings": frame(Opcode.PING, bytes(125)),
    }
    with clean(caplog):
        async with Relay(config) as relay, contextlib.AsyncExitStack() as stack:
            fifty = [await stack.enter_async_context(peer(relay)) for _ in range(50)]
            for number, one in enumerate(fifty):
                await one.join(f"p{number:02}")
            async with asyncio.TaskGroup() as group:
                if what == "joins":
                    flooding = group.create_task(join_flood(relay))
                else:
                    # Pings beyond the first hundred are read at 20 a second.
                    count = {"data": 1_000, "pings": 120}.get(what, 6_000)
                    flooding = group.create_task(flood(relay, floods[what], count))
                for number, one in enumerate(fifty):
                    group.create_task(chat_in_a_ring(one, number, 40))
                ended = await flooding
            refusals = relay._rooms.tracking.refusals
            if what in ("data", "pings"):
                assert ended == 1000
            elif what != "joins":
                assert ended == 1008
                assert refusals["flood"] == 1
                assert refusals["rate_limited"] >= 1
            else:
                assert ended == 4003
                assert refusals["rate_limited"] >= 1
            metrics = (await ask(relay, "/metrics"))[2].decode()
            for code, count in refusals.items():
                assert f'meshpeer_relay_refused_total{{code="{code}"}} {float(count)}' in metrics
            for one in fifty:  # who has not read all that came would wait for the end of its close
                one.ws.transport.abort()


async def chat_in_a_ring(one: Peer, number: int, count: int) -> None:
    """Send so many to the next, and hear as many from the one before."""
    after, before = (number + 1) % 50, (number - 1) % 50
    for n in range(count):
        await one.say(signal(f"p{after:02}", b"%d" % n))
        while True:
            data = await one.ws.recv(decode=False)
            if b'"from":"p%02d"' % before in data:
                assert b'"body":%d}' % n in data
                break


async def flood(relay: Relay, message: bytes, count: int) -> int | None:
    """How it is closed: by us, where the relay takes all that we send."""
    async with raw(relay, "127.0.0.2") as (reader, writer):
        await websocket(reader, writer)
        writer.write(client_frame(encode(join("flood"))))
        ended = asyncio.create_task(close_code(reader))
        with contextlib.suppress(ConnectionError):
            for _ in range(count // 100):
                writer.write(message * 100)
                await writer.drain()
            writer.write(frame(Opcode.CLOSE, b"\x03\xe8"))
        return await ended


async def join_flood(relay: Relay) -> int | None:
    """How the last of many is closed."""
    code = None
    for number in range(200):
        async with raw(relay, "127.0.0.2") as (reader, writer):
            await websocket(reader, writer)
            join_and_leave = (encode(join(f"flood-{number}")), encode(Leave()))
            writer.write(b"".join(map(client_frame, join_and_leave)))
            code = await close_code(reader)
    return code
