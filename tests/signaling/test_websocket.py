"""What a WebSocket can do to a transport, and the words that a person gets for it."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.protocol import State as ConnectionState

from meshpeer import thin
from meshpeer.config import MeshConfig, RelayConfig
from meshpeer.core.messages import VERSION, Goodbye, Join, Leave, Welcome, decode_client, encode
from meshpeer.errors import ConfigError, RoomFull
from meshpeer.relay import Relay
from meshpeer.signaling.base import SignalingLost
from meshpeer.signaling.websocket import WebSocketTransport, _WebSocketWire, without_secrets

QUICK = MeshConfig(signaling_retry_first=0.01, signaling_retry_max=0.02)
JOIN = Join(version=VERSION, room="lobby", peer_id="ann", incarnation="ann-one-1")

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:3001",
        "localhost:3001",
        "ws://",
        "ws://localhost:99999",
        "ws://[::1",
        "ws://localhost:3001/#room",
        "ws://" + "a" * 70,
        "",
        None,
    ],
)
def test_a_url_that_can_not_be_a_relay_s(url: str) -> None:
    with pytest.raises(ConfigError, match="ws://localhost:3001") as raised:
        WebSocketTransport(url)
    assert repr(url) in str(raised.value)


class Watched(WebSocketTransport):
    """Tries once, and tells when that has failed."""

    def __init__(self, url: str) -> None:
        super().__init__(url, config=QUICK)
        self.failed = asyncio.Event()

    async def _connect(self):  # type: ignore[no-untyped-def]
        if self.last_failure is not None:
            self.failed.set()
            await asyncio.Event().wait()
        return await super()._connect()


async def failure(url: str) -> str:
    """Why nobody can be reached at ``url``, in the transport's words."""
    transport = Watched(url)
    opening = asyncio.create_task(transport.open(JOIN))
    await transport.failed.wait()
    text = str(transport.last_failure)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    await transport.close()
    assert text is not None
    return text


@asynccontextmanager
async def listening(answer: bytes) -> AsyncIterator[int]:
    """A server that is not a relay: it reads something, answers and closes."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_nobody_listens(host: str) -> None:
    url = f"ws://{host}:{free_port()}"
    assert await failure(url) == (
        f"no relay answers at {url} (connection refused): is it running? "
        "`meshpeer relay` starts one"
    )


@pytest.mark.parametrize("status", ["404 Not Found", "200 OK"])
async def test_something_else_that_speaks_http(status: str) -> None:
    answer = f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode()
    async with listening(answer) as port:
        text = await failure(f"ws://127.0.0.1:{port}/chat")
    assert text == (
        f"what answers at ws://127.0.0.1:{port}/chat is not a relay (HTTP status {status[:3]}): "
        "are the port and the path right?"
    )


async def test_something_else_that_does_not_speak_http() -> None:
    async with listening(b"220 mail.example.org ESMTP\r\n") as port:
        text = await failure(f"ws://127.0.0.1:{port}")
    assert text.startswith(f"what answers at ws://127.0.0.1:{port} is not a relay")


async def test_no_tls_where_tls_was_asked_for() -> None:
    async with listening(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        text = await failure(f"wss://127.0.0.1:{port}")
    assert text.startswith(f"no TLS at wss://127.0.0.1:{port}")
    assert text.endswith("does this relay speak ws:// only?")


async def test_a_name_that_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    async def getaddrinfo(*args: object, **kwargs: object) -> list[object]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    assert await failure("ws://no-such-relay.example:3001") == (
        "the name 'no-such-relay.example' can't be resolved (Name or service not known): is "
        "ws://no-such-relay.example:3001 spelt right, and is there a network?"
    )


@pytest.mark.parametrize(
    ("url", "shown", "fault"),
    [
        ("http://user:hunter2@host/?key=s3cret", "http://host/", "scheme"),
        ("ws://user:hunter2@[::1/?key=s3cret", "ws://[::1/", "IPv6"),
        ("ws://user:hunter2@host:99999", "ws://host:99999", "Port out of range"),
        ("ws://user:hunter2\u2100@host", "ws://host", "percent-encoded"),
        ("ws://user:hunter2/s3cret@host", "ws://host", "percent-encoded"),
        ("ws://user:hunter2?s3cret@host", "ws://host", "percent-encoded"),
        ("ws://hunter2@host", "ws://host", "user:password"),
        ("ws://user:hunter2%ff@host", "ws://host", "percent-encoded"),
    ],
)
def test_nor_in_a_url_that_is_none(url: str, shown: str, fault: str) -> None:
    with pytest.raises(ConfigError) as raised:
        WebSocketTransport(url)
    text = str(raised.value)
    assert text.startswith(f"{shown!r} is not the URL of a relay: ")
    assert fault in text
    assert "hunter2" not in text
    assert "s3cret" not in text


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("wss://relay.example/x?key=ab@cds3cret", "wss://relay.example/x"),
        ("wss://u:s3cret@relay.example:1/x@y?key=s3cret", "wss://relay.example:1/x@y"),
        ("wss://relay.example", "wss://relay.example"),
        ("ws://user:12#s3cret@host", "ws://host"),
        ("user:s3cret@host", "host"),
    ],
)
def test_an_at_sign_may_be_anywhere(url: str, shown: str) -> None:
    assert without_secrets(url) == shown


async def test_secrets_in_the_url_are_not_shown() -> None:
    port = free_port()
    text = await failure(f"ws://user:hunter2@127.0.0.1:{port}/ws?key=s3cret")
    assert f"ws://127.0.0.1:{port}/ws " in text
    assert "hunter2" not in text
    assert "s3cret" not in text


async def test_a_proxy_of_the_environment_is_not_asked_for_loopback(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "ws_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("no_proxy", raising=False)
    transport = WebSocketTransport(relay.url)
    await transport.open(JOIN)
    await transport.close()


async def test_a_proxy_that_is_down_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    async with listening(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n") as port:
        for name in ("http_proxy", "https_proxy", "ws_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
        monkeypatch.delenv("no_proxy", raising=False)
        text = await failure("ws://relay.example:3001")
    assert text.startswith("ws://relay.example:3001 can't be reached through the proxy")
    assert "403" in text


async def test_a_proxy_s_password_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "ws_proxy"):
        monkeypatch.setenv(name, "gopher://user:hunter2@proxy.example:1")
    monkeypatch.delenv("no_proxy", raising=False)
    text = await failure("ws://relay.example:3001")
    assert text.startswith("ws://relay.example:3001 can't be reached: the environment's proxy")
    assert "hunter2" not in text


async def test_a_relay_that_is_full_is_told_from_what_is_no_relay() -> None:
    async with Relay(RelayConfig(port=0, max_connections=1)) as relay:
        transport = WebSocketTransport(relay.url)
        await transport.open(JOIN)
        text = await failure(relay.url)
        assert text.startswith(f"{relay.url} takes no more connections now (HTTP status 503)")
        await transport.close()


async def test_too_many_connections_from_one_address_are_told_from_what_is_no_relay() -> None:
    answer = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n"
    async with listening(answer) as port:
        text = await failure(f"ws://127.0.0.1:{port}")
    assert text.startswith(f"ws://127.0.0.1:{port} takes no more connections from this address")


@pytest.mark.parametrize("token", ["", "two words", 7])
def test_what_can_not_be_a_join_token(token: Any) -> None:
    with pytest.raises(ConfigError, match="join_token"):
        WebSocketTransport("ws://localhost:3001", join_token=token)


async def test_the_relay_gets_the_join_token() -> None:
    async with said_hello() as (url, joins):
        transport = WebSocketTransport(url, join_token="a-join-token")
        opening = asyncio.create_task(transport.open(JOIN))
        assert (await joins.get()).join_token == "a-join-token"
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        await transport.close()


@asynccontextmanager
async def said_hello() -> AsyncIterator[tuple[str, asyncio.Queue[Join]]]:
    """A relay that says nothing, and the joins that came."""
    joins: asyncio.Queue[Join] = asyncio.Queue()

    async def handle(websocket: ServerConnection) -> None:
        join = decode_client(await websocket.recv())
        assert isinstance(join, Join)
        await joins.put(join)
        await websocket.wait_closed()

    async with serve(handle, "127.0.0.1", 0) as server:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}", joins


async def test_no_log_has_a_frame(relay: Relay, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever level the program has set: the library below logs them, tokens and all, at DEBUG."""
    caplog.set_level(logging.DEBUG)
    transport = WebSocketTransport(relay.url)
    await transport.open(JOIN)
    await transport.close()
    loud = [record for record in caplog.records if not record.name.startswith("asyncio")]
    assert {record.levelno for record in loud} <= {logging.INFO}


@asynccontextmanager
async def scripted(
    handler: Callable[[ServerConnection], Awaitable[None]],
) -> AsyncIterator[str]:
    """A relay that does what the test says."""
    async with serve(handler, "127.0.0.1", 0, compression=None) as server:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def welcome() -> Welcome:
    return Welcome(
        version=VERSION,
        room="lobby",
        peer_id="ann",
        incarnation="ann-one-1",
        token="t" * 32,
        seat_timeout=30.0,
    )


async def test_text_frames_are_sent_and_a_close_is_explained() -> None:
    frames: list[object] = []

    async def handle(connection: ServerConnection) -> None:
        frames.append(await connection.recv())
        await connection.send(encode(welcome()))  # a binary frame is taken as well
        await connection.close(4002, "superseded connection")

    async with scripted(handle) as url:
        transport = WebSocketTransport(url, config=QUICK)
        await transport.open(JOIN)
        lost = await transport.receive()
        assert isinstance(lost, SignalingLost)
        assert (
            lost.reason == f"the relay at {url} closed the connection (4002 superseded connection)"
        )
        await transport.close()
    assert isinstance(frames[0], str)


@pytest.mark.parametrize("frame", [b"\xff\xfe", b"{}", b"", b"[" * 100_000, b'"\xed\xa0\x80"'])
async def test_junk_in_a_text_frame_costs_the_connection(frame: bytes) -> None:
    frames = iter([frame])

    async def handle(connection: ServerConnection) -> None:
        await connection.recv()
        await connection.send(next(frames, encode(welcome())), text=True)
        await connection.wait_closed()

    async with scripted(handle) as url:
        transport = WebSocketTransport(url, config=QUICK)
        assert await transport.open(JOIN) == welcome()
        await transport.close()


async def test_it_leaves_with_a_closing_handshake() -> None:
    closed = asyncio.Event()
    seen: list[object] = []

    async def handle(connection: ServerConnection) -> None:
        await connection.recv()
        await connection.send(encode(welcome()))
        seen.append(decode_client(await connection.recv()))
        await connection.wait_closed()
        seen.append(connection.close_code)
        closed.set()

    async with scripted(handle) as url:
        transport = WebSocketTransport(url, config=QUICK)
        await transport.open(JOIN)
        await transport.close()
        await closed.wait()
    assert seen == [Leave(), 1000]


async def test_an_aborted_wire_leaves_nothing(relay: Relay) -> None:
    transport = WebSocketTransport(relay.url)
    wire = await transport._connect()
    assert isinstance(wire, _WebSocketWire)
    keepalive = wire._websocket.keepalive_task
    assert keepalive is not None
    await wire.abort()
    assert wire._websocket.state is ConnectionState.CLOSED
    assert keepalive.done()
    await wire.abort()


async def test_a_connection_that_breaks_is_explained() -> None:
    async def handle(connection: ServerConnection) -> None:
        await connection.recv()
        await connection.send(encode(welcome()))
        connection.transport.abort()

    async with scripted(handle) as url:
        transport = WebSocketTransport(url, config=QUICK)
        await transport.open(JOIN)
        lost = await transport.receive()
        assert isinstance(lost, SignalingLost)
        assert lost.reason == f"the connection to the relay at {url} broke"
        await transport.close()


async def test_a_message_of_any_size_that_a_relay_may_send() -> None:
    """And a larger one costs the connection."""
    sizes = iter([1024 * 1024, 17 * 1024 * 1024])
    tries = []

    async def handle(connection: ServerConnection) -> None:
        tries.append(await connection.recv())
        size = next(sizes, 0)
        await connection.send(encode(welcome())[:-1].decode() + ',"x":"' + "x" * size + '"}')
        await connection.wait_closed()

    async with scripted(handle) as url:
        transport = WebSocketTransport(url, config=QUICK)
        assert await transport.open(JOIN) == welcome()
        assert len(tries) == 1
        await transport.close()
        transport = WebSocketTransport(url, config=QUICK)
        assert await transport.open(JOIN) == welcome()
        assert len(tries) == 3
        await transport.close()


async def test_a_relay_that_goes_down_says_when_to_come_back() -> None:
    relay = Relay(RelayConfig(port=0, restart_delay=0.1))
    await relay.start()
    port = relay.port
    transport = WebSocketTransport(relay.url, config=QUICK)
    await transport.open(JOIN)
    await relay.close()
    lost = await transport.receive()
    assert isinstance(lost, SignalingLost)
    assert "said goodbye (shutdown)" in lost.reason
    async with Relay(RelayConfig(port=port)):
        back = await transport.receive()
        assert isinstance(back, Welcome)
        assert not back.resumed
        await transport.close()


async def test_a_full_room() -> None:
    async with Relay(RelayConfig(port=0, max_members=1)) as relay:
        transport = WebSocketTransport(relay.url)
        await transport.open(JOIN)
        late = WebSocketTransport(relay.url)
        with pytest.raises(RoomFull, match="room 'lobby' has 1 members"):
            await late.open(Join(version=VERSION, room="lobby", peer_id="b", incarnation="b" * 8))
        await late.close()
        await transport.close()


async def test_a_goodbye_is_heard_before_the_socket_closes() -> None:
    async def handle(connection: ServerConnection) -> None:
        await connection.recv()
        await connection.send(encode(Goodbye(reason="shutdown", retry_after=3600)), text=True)
        await connection.close(1012)

    async with scripted(handle) as url:
        transport = WebSocketTransport(url, config=QUICK)
        opening = asyncio.create_task(transport.open(JOIN))
        while transport.last_failure is None:  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0)
        assert str(transport.last_failure) == f"the relay at {url} said goodbye (shutdown)"
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        await transport.close()


async def test_a_signal_does_not_wait_for_the_one_before_it_on_both_sides(relay: Relay) -> None:
    transport = WebSocketTransport(relay.url)
    wire = await transport._connect()
    assert isinstance(wire, _WebSocketWire)
    try:
        (served,) = relay._sockets
        for connection in (wire._websocket, served):
            sock = connection.transport.get_extra_info("socket")
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    finally:
        await wire.abort()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has it")
async def test_lost_signals_are_sent_again_without_growing_waits_on_both_sides(
    relay: Relay,
) -> None:
    transport = WebSocketTransport(relay.url)
    wire = await transport._connect()
    assert isinstance(wire, _WebSocketWire)
    try:
        (served,) = relay._sockets
        for connection in (wire._websocket, served):
            sock = connection.transport.get_extra_info("socket")
            assert sock.getsockopt(socket.IPPROTO_TCP, thin._TCP_THIN_LINEAR_TIMEOUTS) == 1
    finally:
        await wire.abort()
