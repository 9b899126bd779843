"""What comes instead of a WebSocket, which pages may open one, and who is behind a proxy."""

from __future__ import annotations

import asyncio
import contextlib
import http
import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from meshpeer.config import RelayConfig
from meshpeer.core.messages import encode
from meshpeer.errors import ConfigError
from meshpeer.relay import Relay
from meshpeer.relay.addresses import Origins, Proxies, is_loopback, plain_address
from meshpeer.relay.http import Answer
from meshpeer.relay.sockets import MAX_HEAD, Socket
from tests.relay.test_server import join, peer
from tests.relay.wires import UPGRADE, client_frame, exchange, raw, refused, until_gone


# --- how slow, and how much -----------------------------------------------------------------------
@pytest.mark.parametrize("start", [b"", b"G", b"GET / HTTP/1.1\r\nHost: rel", UPGRADE])
async def test_who_does_not_finish_its_request_is_shut(start: bytes) -> None:
    async with (
        Relay(RelayConfig(port=0, join_timeout=0.2)) as relay,
        raw(relay) as (reader, writer),
    ):
        writer.write(start)
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        await until_gone(relay)
        assert refused(relay) == {"handshake_timeout": 1}


async def test_who_stays_after_what_was_no_request_is_counted_once() -> None:
    async with (
        Relay(RelayConfig(port=0, join_timeout=0.2)) as relay,
        raw(relay) as (reader, writer),
    ):
        writer.write(b"GET\r\n\r\n")
        assert await reader.read() == b""
        await until_gone(relay)
        assert refused(relay) == {"bad_request": 1}


async def test_a_byte_now_and_then_holds_nothing_open_longer() -> None:
    async with (
        Relay(RelayConfig(port=0, join_timeout=0.2)) as relay,
        raw(relay) as (reader, writer),
    ):
        ended = asyncio.create_task(reader.read())
        for byte in itertools.cycle(b"X-Header: 1\r\n"):
            writer.write(bytes([byte]))
            done, _ = await asyncio.wait([ended], timeout=0.01)
            if done:
                break
        with contextlib.suppress(ConnectionError):
            assert await ended == b""
        await until_gone(relay)
        assert sum(refused(relay).values()) == 1


async def test_a_request_may_come_in_pieces(relay: Relay) -> None:
    """And what comes right behind it is not lost."""
    whole = len(UPGRADE) + 2
    for cut in (1, whole - 3, whole - 2, whole - 1, whole, whole + 1, whole + 9, 10_000):
        # Each its own: the seats of those before are kept.
        data = UPGRADE + b"\r\n" + client_frame(encode(join(f"ann-{cut}")))
        async with raw(relay) as (reader, writer):
            for piece in (data[:cut], data[cut:]):
                writer.write(piece)
                for _ in range(5):
                    await asyncio.sleep(0)
            head = await reader.readuntil(b"\r\n\r\n")
            assert b" 101 " in head
            assert b'"welcome"' in await reader.readuntil(b'"ann-%d"' % cut)
        await until_gone(relay)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\n\r\n", b"414"),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 9000 + b"\r\n\r\n", b"431"),
        (b"GET / HTTP/1.1\r\n" + b"X: 1\r\n" * 200 + b"\r\n", b"431"),
        (b"GET / HTTP/1.1\r\n" + (b"X: " + b"x" * 8000 + b"\r\n") * 10, b"431"),
    ],
)
async def test_requests_have_a_size(relay: Relay, request_: bytes, status: bytes) -> None:
    line, headers, _ = await exchange(relay, request_)
    assert line.split()[1] == status
    assert_safe(headers)
    await until_gone(relay)
    assert refused(relay) == {"bad_request": 1}


async def test_no_more_of_a_request_is_kept_than_its_size(relay: Relay) -> None:
    async with raw(relay) as (reader, writer):
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                writer.write(b"X: " + b"x" * 8000 + b"\r\n")
                await writer.drain()
                for held in relay._sockets:
                    assert len(held.protocol.reader.buffer) + len(held._input) <= MAX_HEAD
            await reader.read()


@pytest.mark.parametrize(
    "request_",
    [
        b"\r\n\r\n",
        b"\x00\xff\xfe\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/2.0\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: \x01\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\nHost: relay\n\n\r\n\r\n",
        b"POST /healthz HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
async def test_what_is_no_request_that_it_takes_is_shut(
    request_: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """And not only when its time has run out."""
    async with Relay(RelayConfig(port=0, join_timeout=3600)) as relay:
        line, _, _ = await exchange(relay, request_)
        assert not line
        await until_gone(relay)
        assert refused(relay) == {"bad_request": 1}
    assert not caplog.records


@given(data=st.binary(max_size=300))
def test_anything_may_come_instead_of_a_request(data: bytes) -> None:
    async def send(prefix: bytes) -> None:
        async with Relay(RelayConfig(port=0)) as relay:
            async with raw(relay) as (reader, writer):
                writer.write(prefix + data)
                writer.write_eof()
                with contextlib.suppress(ConnectionError):
                    await reader.read()
            await until_gone(relay)
            async with peer(relay) as ann:
                await ann.join("ann")

    asyncio.run(send(b""))
    asyncio.run(send(b"GET / HTTP/1.1\r\n"))
    asyncio.run(send(UPGRADE + b"\r\n"))


# --- plain HTTP -----------------------------------------------------------------------------------
def assert_safe(headers: dict[str, str]) -> None:
    """What every answer has."""
    # A browser keeps what has a tag, and asks each time whether it is still so.
    assert headers["cache-control"] == ("no-cache" if "etag" in headers else "no-store")
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["content-security-policy"].startswith("default-src 'none'")
    assert headers["content-type"]
    assert headers["connection"] == "close"
    assert "server" not in headers


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\n", 200),
        (b"HEAD / HTTP/1.1\r\n", 200),
        (b"HEAD /healthz HTTP/1.1\r\n", 200),
        (b"GET /healthz?%00 HTTP/1.1\r\n", 200),
        (b"GET /ws HTTP/1.1\r\n", 426),
        (b"GET /ws HTTP/1.1\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n", 426),
        (b"GET / HTTP/1.1\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n", 200),
        (b"HEAD /ws HTTP/1.1\r\n" + UPGRADE.split(b"\r\n", 1)[1], 426),
        (b"POST / HTTP/1.1\r\nContent-Length: 0\r\n", 405),
        (b"DELETE /api/admin/rooms HTTP/1.1\r\n", 405),
        (b"OPTIONS * HTTP/1.1\r\n", 405),
        (b"POST /ws HTTP/1.1\r\n" + UPGRADE.split(b"\r\n", 1)[1], 405),
        (b"GET /needle HTTP/1.1\r\n", 404),
        (b"GET /..%2f..%2fetc/passwd HTTP/1.1\r\n", 404),
        (b"GET /../../etc/passwd HTTP/1.1\r\n", 404),
        (b"GET //healthz HTTP/1.1\r\n", 404),
        (b"GET http://relay/healthz HTTP/1.1\r\n", 404),
        (b"GET /needle<script> HTTP/1.1\r\n" + UPGRADE.split(b"\r\n", 1)[1], 404),
        (b"GET /api/admin/rooms HTTP/1.1\r\n", 401),
        (b"GET /admin-analytics HTTP/1.1\r\n", 401),
        (b"GET /metrics HTTP/1.1\r\n", 401),
        (b"GET /ws HTTP/1.1\r\nUpgrade: websocket\r\n", 426),
        (b"GET /ws HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n", 400),
        (UPGRADE.replace(b": 13", b": 12"), 400),
        (UPGRADE.replace(b"HTTP/1.1", b"HTTP/1.0"), 505),
        (UPGRADE + b"Origin: https://needle.example.org\r\n", 403),
        (UPGRADE + b"Origin: http://relay\r\nOrigin: http://relay\r\n", 400),
    ],
)
async def test_every_answer_is_safe_and_none_repeats_what_was_asked(
    relay: Relay, request_: bytes, status: int
) -> None:
    line, headers, body = await exchange(relay, request_ + b"\r\n")
    assert int(line.split()[1]) == status
    if status == 401:
        headers.setdefault("content-security-policy", "")
    assert_safe(headers)
    assert "needle" not in str(headers) + body.decode()
    if request_.startswith(b"HEAD"):
        assert body == b""
        assert int(headers["content-length"]) > 0
    else:
        assert len(body) == int(headers["content-length"])


async def test_a_larger_answer_comes_whole(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:

    body = random.Random(1).randbytes(3_000_000)
    monkeypatch.setattr(relay._admin, "answer", lambda *_: Answer(200, body, headers=(("A", "b"),)))
    _, headers, got = await exchange(relay, b"GET /large HTTP/1.1\r\n\r\n")
    assert headers["a"] == "b"
    assert got == body


async def test_it_says_where_things_are(relay: Relay) -> None:
    _, _, body = await exchange(relay, b"GET / HTTP/1.1\r\n\r\n")
    for path in ("/ws", "/healthz", "/admin-analytics"):
        assert path in body.decode()
    assert relay.admin_url == f"http://127.0.0.1:{relay.port}/admin-analytics"
    assert relay.admin_user == "admin"
    assert len(relay.admin_password) >= 20


# --- pages ----------------------------------------------------------------------------------------
def origins(*allowed: str, tls: bool = False, loopback: bool = False) -> Origins:
    return Origins(allowed, tls=tls, loopback=loopback)


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://relay.example.org", "relay.example.org"),
        ("http://relay.example.org", "relay.example.org:80"),
        ("http://relay.example.org:3001", "relay.example.org:3001"),
        ("HTTP://Relay.Example.ORG", "relay.EXAMPLE.org"),
        ("https://relay.example.org", "relay.example.org"),  # a proxy speaks TLS
        ("https://relay.example.org", "relay.example.org:443"),
        ("http://[2001:db8::1]:3001", "[2001:db8::1]:3001"),
        ("http://192.0.2.1:3001", "192.0.2.1:3001"),
    ],
)
def test_pages_of_this_host(origin: str, host: str) -> None:
    assert origins().refusal(origin, host) is None
    assert origins().refusal(origin, host, own=True) is None
    assert origins("https://other.example.org").refusal(origin, host) is None


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://evil.example.org", "relay.example.org"),
        ("http://relay.example.org.evil.org", "relay.example.org"),
        ("http://relay.example.org", "relay.example.org:3001"),
        ("http://relay.example.org:3002", "relay.example.org:3001"),
        ("http://relay.example.org:443", "relay.example.org"),
        ("ftp://relay.example.org", "relay.example.org"),
        ("chrome-extension://relay.example.org", "relay.example.org"),
        ("null", "relay.example.org"),
        ("null", "null"),
        ("", ""),
        ("http://", ""),
        ("http://relay", ""),
        ("http://relay:99999", "relay:99999"),
        ("http://[", "["),
        ("http://relay", "relay:x"),
        ("http://a@relay", "b@relay:81"),
    ],
)
def test_pages_of_others(origin: str, host: str) -> None:
    assert origins().refusal(origin, host) is not None
    assert origins().refusal(origin, host, own=True) is not None
    assert origins("*").refusal(origin, host) is None
    assert origins("*").refusal(origin, host, own=True) is not None
    assert origins("*", "https://relay").refusal(origin, host, own=True) is not None


def test_pages_that_are_allowed() -> None:
    some = origins("https://app.example.org", "http://localhost:8080", "chrome-extension://abc")
    for origin in (
        "https://app.example.org",
        "https://APP.example.org:443",
        "http://localhost:8080",
        "chrome-extension://abc",
    ):
        assert some.refusal(origin, "relay.example.org") is None
        # Behind a proxy that does not pass the Host on, the operator's own page is one of these.
        assert some.refusal(origin, "127.0.0.1:3001", own=True) is None
    for origin in ("http://app.example.org", "https://app.example.org:8443", "http://localhost"):
        assert some.refusal(origin, "relay.example.org") is not None
        why = some.refusal(origin, "relay.example.org", own=True)
        assert why is not None
        assert "--origin; '*' does not count" in why


def test_where_the_relay_speaks_tls_so_does_the_page() -> None:
    assert origins(tls=True).refusal("http://relay.example.org", "relay.example.org") is not None
    assert origins(tls=True).refusal("http://relay:443", "relay:443") is not None
    assert origins(tls=True).refusal("https://relay.example.org", "relay.example.org") is None


def test_a_name_that_was_made_to_lead_to_this_machine_is_not_of_it() -> None:
    """DNS rebinding: the page's own name has its attacker's address first, and then ours."""
    here = origins("https://relay.example.org", loopback=True)
    for host in ("localhost:3001", "127.0.0.1:3001", "[::1]:3001", "app.localhost:3001"):
        assert here.refusal(f"http://{host}", host, own=True) is None
    assert here.refusal("http://evil.example.org:3001", "evil.example.org:3001") is not None
    assert here.refusal("http://127.0.0.1.evil.org", "127.0.0.1.evil.org") is not None
    # A proxy on this machine, whose name the operator has given.
    assert here.refusal("https://relay.example.org", "relay.example.org", own=True) is None


@given(origin=st.text(max_size=50), host=st.text(max_size=50), allowed=st.lists(st.text()))
def test_origins_may_be_anything(origin: str, host: str, allowed: list[str]) -> None:
    origins("*").refusal(origin, host)
    for tls in (False, True):
        why = origins(tls=tls, loopback=True).refusal(origin, host)
        assert why is None or origin not in why or len(origin) < 5


async def test_a_page_of_another_origin_is_refused_before_the_handshake() -> None:
    config = RelayConfig(port=0, origins=("https://app.example.org",))
    async with Relay(config) as relay:
        own = relay.url.replace("ws", "http")
        for origin in (own, "https://app.example.org", None):
            async with connect(relay.url, origin=origin):  # type: ignore[arg-type]
                pass
        for path in ("", "/ws", "/api/admin/live"):
            with pytest.raises(InvalidStatus) as caught:
                await connect(relay.url + path, origin="https://evil.example.org")  # type: ignore[arg-type]
            assert caught.value.response.status_code == http.HTTPStatus.FORBIDDEN
            assert b"--origin" in caught.value.response.body
        # It needs a ticket there besides.
        async with connect(relay.url + "/api/admin/live", origin="https://app.example.org"):  # type: ignore[arg-type]
            pass
        assert refused(relay) == {"origin": 3}
    async with Relay(RelayConfig(port=0, origins=("*",))) as relay:
        async with connect(relay.url, origin="https://evil.example.org"):  # type: ignore[arg-type]
            pass
        with pytest.raises(InvalidStatus):
            await connect(relay.url + "/api/admin/live", origin="https://evil.example.org")  # type: ignore[arg-type]
        assert refused(relay) == {"origin": 1}


# --- who is behind a proxy ------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        ([], "10.0.0.1"),
        (["192.0.2.7"], "192.0.2.7"),
        (["198.51.100.1, 192.0.2.7"], "192.0.2.7"),
        (["198.51.100.1", "192.0.2.7"], "192.0.2.7"),
        (["192.0.2.7, 10.0.0.9"], "192.0.2.7"),
        (["192.0.2.7,10.1.2.3 ,\t10.0.0.9"], "192.0.2.7"),
        (["10.0.0.7, 10.0.0.9"], "10.0.0.7"),
        (["192.0.2.7:4711"], "192.0.2.7"),
        (["2001:db8::7"], "2001:db8::7"),
        (["[2001:db8::7]"], "2001:db8::7"),
        (["[2001:DB8::0007]:4711"], "2001:db8::7"),
        (["::ffff:192.0.2.7"], "192.0.2.7"),
        (["192.0.2.7, ::ffff:10.0.0.9"], "192.0.2.7"),
        (["nonsense, 192.0.2.7"], "192.0.2.7"),
        # Of these nothing is known but the proxy.
        (["192.0.2.7, unknown"], "10.0.0.1"),
        (["192.0.2.7, "], "10.0.0.1"),
        ([""], "10.0.0.1"),
        (["_hidden"], "10.0.0.1"),
        (["192.0.2.7:port"], "10.0.0.1"),
        (["192.0.2.7:"], "10.0.0.1"),
        (["[2001:db8::7"], "10.0.0.1"),
        (["[2001:db8::7]x"], "10.0.0.1"),
        (["192.0.2.300"], "10.0.0.1"),
    ],
)
def test_a_proxy_that_is_trusted_says_who_it_is(forwarded: list[str], client: str) -> None:
    assert Proxies(["10.0.0.0/8"]).client("10.0.0.1", forwarded) == client


def test_nobody_else_is_believed() -> None:
    assert Proxies([]).client("10.0.0.1", ["192.0.2.7"]) == "10.0.0.1"
    assert Proxies(["10.0.0.2"]).client("10.0.0.1", ["192.0.2.7"]) == "10.0.0.1"
    some = Proxies(["10.0.0.2", "2001:db8:1::/48"])
    assert some.client("2001:db8:1::2", ["2001:db8:2::1"]) == "2001:db8:2::1"
    assert some.client("2001:db8:3::2", ["2001:db8:2::1"]) == "2001:db8:3::2"


@given(forwarded=st.lists(st.text(), max_size=4))
def test_whatever_it_says_it_is_an_address(forwarded: list[str]) -> None:
    assert plain_address(Proxies(["10.0.0.0/8"]).client("10.0.0.1", forwarded))


def test_a_long_list_of_proxies_is_not_read_to_its_end() -> None:
    forwarded = ["192.0.2.7" + ", 10.0.0.9" * 1000]
    assert Proxies(["10.0.0.0/8"]).client("10.0.0.1", forwarded) == "10.0.0.9"


def test_addresses_and_names_of_this_machine() -> None:
    for host in ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "localhost", "a.localhost."):
        assert is_loopback(host)
    for host in ("0.0.0.0", "::", "192.0.2.1", "localhost.example.org", "mylocalhost", ""):
        assert not is_loopback(host)
    assert plain_address("fe80::1%eth0") == "fe80::1"


def test_behind_a_proxy_it_does_not_start_open_by_itself() -> None:
    """The proxy is on this machine, and lets the whole world in."""
    proxies = ("127.0.0.1",)
    with pytest.raises(ConfigError, match=r"RelayConfig\.trusted_proxies.*RelayConfig\.open"):
        Relay(RelayConfig(trusted_proxies=proxies))
    Relay(RelayConfig(trusted_proxies=proxies, open=True))
    Relay(RelayConfig(trusted_proxies=proxies, join_secret="x" * 32))
    Relay(RelayConfig())


async def test_behind_a_proxy_each_client_counts_for_itself() -> None:
    config = RelayConfig(
        port=0, open=True, trusted_proxies=("127.0.0.1",), max_connections_per_address=1
    )

    def come(address: str) -> connect:
        return connect(relay.url, additional_headers={"X-Forwarded-For": address})

    async with Relay(config) as relay, come("192.0.2.8"), come("192.0.2.7") as ann:
        for more in ("192.0.2.7", "192.0.2.8", "1.1.1.1, 192.0.2.7"):
            with pytest.raises(InvalidStatus) as caught:
                await come(more)
            assert caught.value.response.status_code == http.HTTPStatus.TOO_MANY_REQUESTS
        assert {each.address for each in relay._sockets} == {"192.0.2.7", "192.0.2.8"}
        await ann.close()
        await until_gone(relay, keep=1)
        # Who is no trusted proxy can say what it likes.
        local = ("127.0.0.2", 0)
        headers = {"X-Forwarded-For": "192.0.2.9"}
        async with connect(relay.url, additional_headers=headers, local_addr=local):
            with pytest.raises(InvalidStatus):
                await connect(relay.url, local_addr=local)
    assert not relay._from


@pytest.mark.parametrize("data", [b"GET /healthz HTTP/1.1\r\n", UPGRADE])
async def test_who_is_gone_before_its_request_is_answered_counts_no_more(
    data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RelayConfig(port=0, open=True, trusted_proxies=("127.0.0.1",))
    async with Relay(config) as relay:
        answer = Socket.answer

        def hear_and_lose(one: Socket) -> None:
            answer(one)
            one.transport.abort()  # its end is told before the task that serves it has its turn

        monkeypatch.setattr(Socket, "answer", hear_and_lose)
        async with raw(relay) as (reader, writer):
            writer.write(data + b"X-Forwarded-For: 192.0.2.7\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
        await relay._serving.wait()
        assert not relay._sockets
        assert not relay._from
        assert not refused(relay)


async def test_one_request_that_fails_does_not_make_it_deaf(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, failed = Socket.answer, asyncio.Event()

    def fail(one: Socket) -> None:
        if failed.is_set():
            answer(one)
            return
        failed.set()
        one.transport.abort()
        raise ZeroDivisionError

    monkeypatch.setattr(Socket, "answer", fail)
    told: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: told.append(context["exception"]))
    try:
        asked = [asyncio.create_task(exchange(relay, b"GET / HTTP/1.1\r\n\r\n")) for _ in range(9)]
        done = await asyncio.gather(*asked, return_exceptions=True)
    finally:
        loop.set_exception_handler(None)
    assert [type(each) for each in told] == [ZeroDivisionError]
    assert sum(isinstance(each, tuple) and b" 200 " in each[0] for each in done) == 8
