"""The relay with real sockets on loopback: what `Rooms` decides reaches whom it should."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import http
import json
import logging
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import structlog
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, InvalidStatus

from meshpeer.config import RelayConfig
from meshpeer.core.forward import FrameIn, decode_forward, encode_forward
from meshpeer.core.messages import (
    VERSION,
    ClientMessage,
    Forwarded,
    Goodbye,
    Join,
    Leave,
    MemberJoined,
    MemberLeft,
    Refused,
    RelayMessage,
    SignalIn,
    SignalOut,
    Welcome,
    decode_relay,
    encode,
)
from meshpeer.errors import MeshClosed, NetworkError, UsageError
from meshpeer.relay import Relay


class Peer:
    """One socket to the relay, and the messages over it."""

    def __init__(self, ws: ClientConnection) -> None:
        self.ws = ws

    async def say(self, message: ClientMessage | bytes | str) -> None:
        data = message if isinstance(message, bytes | str) else encode(message)
        await self.ws.send(data, text=True)

    async def hear(self) -> RelayMessage:
        data = await self.ws.recv()
        assert isinstance(data, str), "the relay writes text messages"
        return decode_relay(data)

    async def join(self, peer_id: str, **fields: Any) -> Welcome:
        await self.say(join(peer_id, **fields))
        welcome = await self.hear()
        assert isinstance(welcome, Welcome)
        return welcome

    async def until_closed(self) -> tuple[list[RelayMessage], ConnectionClosed]:
        """What is heard until the socket is closed, and how it was closed."""
        heard = []
        while True:
            try:
                heard.append(await self.hear())
            except ConnectionClosed as exc:
                return heard, exc


def join(peer_id: str, **fields: Any) -> Join:
    defaults = {"version": VERSION, "room": "lobby", "incarnation": f"incarnation-{peer_id}"}
    return msgspec.convert({**defaults, "peer_id": peer_id, **fields}, Join)


def signal(to: str, body: bytes) -> SignalOut:
    return SignalOut(to=to, to_incarnation=f"incarnation-{to}", epoch=1, body=msgspec.Raw(body))


def comeback(welcome: Welcome, received: int) -> dict[str, Any]:
    return {"token": welcome.token, "session": welcome.session, "received": received}


@contextlib.asynccontextmanager
async def peer(relay: Relay, path: str = "", buffer: int = 0) -> AsyncIterator[Peer]:
    """``buffer``: bytes that the kernel may hold for this socket to read; 0 is its own choice."""
    async with connect(relay.url + path, compression=None) as ws:
        if buffer:
            sock = ws.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        yield Peer(ws)


def close_of(exc: ConnectionClosed) -> tuple[int, str]:
    assert exc.rcvd is not None
    return exc.rcvd.code, exc.rcvd.reason


async def get(relay: Relay, request: str) -> tuple[int, dict[str, str], bytes]:
    """One plain HTTP exchange: status, headers, body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
    try:
        writer.write(request.encode() + b" HTTP/1.1\r\nHost: relay\r\n\r\n")
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    finally:
        writer.close()
        await writer.wait_closed()
    status, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return int(status.split()[1]), headers, body


# --- the ordinary case ---------------------------------------------------------------------------
@pytest.mark.parametrize("path", ["", "/", "/ws", "/ws?x=1"])
async def test_join_roster_signal_leave(relay: Relay, path: str) -> None:
    async with peer(relay, path) as ann, peer(relay, path) as bob:
        assert (await ann.join("ann")).members == []
        assert [m.peer_id for m in (await bob.join("bob", name="Bob")).members] == ["ann"]
        joined = await ann.hear()
        assert isinstance(joined, MemberJoined)
        assert (joined.member.peer_id, joined.member.name) == ("bob", "Bob")
        await bob.say(signal("ann", b'{"hello":"\xc3\xa4"}'))
        got = await ann.hear()
        assert isinstance(got, SignalIn)
        assert (got.sender, bytes(got.body)) == ("bob", b'{"hello":"\xc3\xa4"}')
        await bob.say(Leave())
        assert await ann.hear() == MemberLeft("bob", "incarnation-bob", "left")
        _, closed = await bob.until_closed()
        assert close_of(closed)[0] == 1000


async def test_binary_frames_are_taken_too(relay: Relay) -> None:
    async with peer(relay) as ann:
        await ann.ws.send(encode(join("ann")))
        assert isinstance(await ann.hear(), Welcome)


async def test_a_newer_incarnation_shuts_the_socket_of_the_older(relay: Relay) -> None:
    async with peer(relay) as old, peer(relay) as new:
        welcome = await old.join("ann")
        await new.join("ann", incarnation="another-one", token=welcome.token)
        heard, closed = await old.until_closed()
        assert heard == [Goodbye(reason="replaced")]
        assert close_of(closed)[0] == 4001
        # The newer one is not touched by the end of the older.
        await new.say(signal("nobody", b"1"))
        assert isinstance(await new.hear(), Refused)


# --- HTTP ----------------------------------------------------------------------------------------
async def test_healthz(relay: Relay) -> None:
    async with peer(relay) as ann, peer(relay):
        await ann.join("ann")
        status, headers, body = await get(relay, "GET /healthz?verbose")
    assert status == http.HTTPStatus.OK
    assert headers["content-type"] == "application/json"
    figures = json.loads(body)
    assert figures.pop("uptime") >= 0
    assert figures.pop("version").startswith("0.")
    # The second socket may not have been handed over to the handler yet.
    assert figures.pop("connections") in (1, 2)
    assert figures == {"status": "ok", "rooms": 1, "members": 1}


@pytest.mark.parametrize(
    ("request_line", "status"),
    [("GET /nothing", 404), ("POST /healthz", 405), ("GET /", 200), ("GET /ws", 426)],
)
async def test_other_plain_http(relay: Relay, request_line: str, status: int) -> None:
    assert (await get(relay, request_line))[0] == status


@pytest.mark.parametrize("path", ["/nothing", "/chat", "/chat/lobby", "/meshpeer.js", "/healthz"])
async def test_a_websocket_elsewhere_is_not_found(relay: Relay, path: str) -> None:
    with pytest.raises(InvalidStatus) as caught:
        await connect(relay.url + path)
    assert caught.value.response.status_code == http.HTTPStatus.NOT_FOUND


async def test_over_its_connections_it_refuses_before_the_handshake() -> None:
    async with Relay(RelayConfig(port=0, max_connections=2)) as relay, peer(relay) as ann:
        await ann.join("ann")
        before = set(relay._sockets)
        async with peer(relay):  # which has not joined
            (idle,) = relay._sockets - before
            with pytest.raises(InvalidStatus) as caught:
                await connect(relay.url)
            response = caught.value.response
            assert response.status_code == http.HTTPStatus.SERVICE_UNAVAILABLE
            assert b"2 connections" in response.body
            assert (await get(relay, "GET /healthz"))[0] == http.HTTPStatus.OK
            await ann.say(signal("nobody", b"1"))
            assert isinstance(await ann.hear(), Refused)
        # One that has gone makes room for another.
        await idle.wait_closed()
        async with peer(relay) as bob:
            await bob.join("bob")


async def test_what_is_not_http_harms_nobody(
    relay: Relay, capfd: pytest.CaptureFixture[str]
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
    writer.write(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
    await reader.read()
    writer.close()
    await writer.wait_closed()
    async with peer(relay) as ann:
        await ann.join("ann")
    assert capfd.readouterr().err == ""


# --- bad input -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("data", "code"),
    [("nonsense", "not_json"), ('{"type":"dance"}', "malformed"), (encode(Leave()), "not_joined")],
)
async def test_junk_before_the_join(relay: Relay, data: str | bytes, code: str) -> None:
    async with peer(relay) as ann:
        await ann.say(data)
        (refused,), closed = await ann.until_closed()
        assert isinstance(refused, Refused)
        assert refused.code == code
        assert close_of(closed)[0] == 4000


async def test_junk_after_the_join_changes_nothing(relay: Relay) -> None:
    async with peer(relay) as ann:
        await ann.join("ann")
        for data in ("nonsense", b"\xff\xfe", "[" * 100_000, '{"type":"signal","to":7}'):
            # As binary frames: in a text frame the client's library would not send some of it.
            await ann.ws.send(data.encode() if isinstance(data, str) else data)
            refused = await ann.hear()
            assert isinstance(refused, Refused)
            assert refused.code in ("not_json", "malformed")
        await ann.say(signal("nobody", b"1"))
        refused = await ann.hear()
        assert isinstance(refused, Refused)
        assert (refused.code, refused.message) == ("no_such_peer", 1)


async def test_an_oversized_message_closes_its_socket_and_says_why() -> None:
    async with (
        Relay(RelayConfig(port=0, max_message_size=2048)) as relay,
        peer(relay) as ann,
        peer(relay) as bob,
    ):
        welcome = await ann.join("ann")
        await bob.join("bob")
        await ann.hear()
        await ann.say(signal("bob", b'"%s"' % (b"x" * 2048)))
        _, closed = await ann.until_closed()
        code, reason = close_of(closed)
        assert code == 1009
        assert "2048" in reason
        async with peer(relay) as again:
            assert (await again.join("ann", **comeback(welcome, 1))).resumed
            await again.say(signal("bob", b'"small"'))
            got = await bob.hear()
            assert isinstance(got, SignalIn)
            assert bytes(got.body) == b'"small"'


async def test_ten_thousand_messages_cost_only_who_sends_them(relay: Relay) -> None:
    async with peer(relay) as flood, peer(relay) as ann, peer(relay) as bob:
        await ann.join("ann")
        await bob.join("bob")
        await flood.join("flood")
        data = encode(signal("nobody", b"1"))

        async def send_all() -> None:
            with contextlib.suppress(ConnectionClosed):
                for _ in range(10_000):
                    await flood.ws.send(data)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(send_all())
            heard, closed = await flood.until_closed()
        assert close_of(closed) == (1008, "too many messages")
        codes = [message.code for message in heard if isinstance(message, Refused)]
        assert codes[0] == "no_such_peer"
        assert codes[-1] == "rate_limited"
        assert 2 <= codes.count("rate_limited") < 10
        await ann.say(signal("bob", b"1"))
        while not isinstance(message := await bob.hear(), SignalIn):
            assert isinstance(message, MemberJoined)
        assert message.sender == "ann"


# --- sockets that fail ---------------------------------------------------------------------------
async def test_an_aborted_socket_resumes_and_gets_what_it_missed(relay: Relay) -> None:
    async with peer(relay) as ann, peer(relay) as bob:
        welcome = await ann.join("ann")
        await bob.join("bob")
        await ann.hear()
        ann.ws.transport.abort()
        for number in range(5):
            await bob.say(signal("ann", b"%d" % number))
        # This answer shows that the relay has taken all of them.
        await bob.say(signal("nobody", b"1"))
        await bob.hear()
        async with peer(relay) as back:
            again = await back.join("ann", **comeback(welcome, 1))
            assert again.resumed
            bodies = []
            for _ in range(5):
                message = await back.hear()
                assert isinstance(message, SignalIn)
                bodies.append(int(bytes(message.body)))
            assert bodies == list(range(5))


async def test_a_seat_runs_out() -> None:
    async with (
        Relay(RelayConfig(port=0, seat_timeout=0.05)) as relay,
        peer(relay) as ann,
        peer(relay) as bob,
    ):
        await ann.join("ann")
        await bob.join("bob")
        ann.ws.transport.abort()
        assert await bob.hear() == MemberLeft("ann", "incarnation-ann", "timeout")


async def test_who_does_not_join_is_shut() -> None:
    # The handshake has as long.
    async with Relay(RelayConfig(port=0, join_timeout=1)) as relay, peer(relay) as ann:
        (refused,), closed = await ann.until_closed()
        assert isinstance(refused, Refused)
        assert refused.code == "not_joined"
        assert close_of(closed)[0] == 4004


@pytest.mark.parametrize("unread", [0, 20])
async def test_who_does_not_answer_pings_is_dropped(
    monkeypatch: pytest.MonkeyPatch, unread: int
) -> None:
    """Also when the ping itself is behind more than the kernel takes."""
    monkeypatch.setattr("meshpeer.relay.server._CLOSE_TIMEOUT", 0.05)
    config = RelayConfig(port=0, keepalive_interval=1, seat_timeout=0, max_unread=1 << 30)
    async with Relay(config) as relay, peer(relay, buffer=4096) as ann, peer(relay) as bob:
        await ann.join("ann")
        await bob.join("bob")
        ann.ws.transport.pause_reading()
        for _ in range(unread):
            await bob.say(signal("ann", b'"%s"' % (b"x" * 200_000)))
        while not isinstance(message := await bob.hear(), MemberLeft):
            pass
        assert message == MemberLeft("ann", "incarnation-ann", "timeout")
        ann.ws.transport.abort()


async def test_a_slow_reader_is_cut_off_and_the_others_go_on() -> None:
    config = RelayConfig(
        port=0, max_unread=256 * 1024, max_replay_bytes=256 * 1024, message_rate=10_000
    )
    async with Relay(config) as relay, peer(relay) as fast, peer(relay) as slow:
        await fast.join("fast")
        welcome = await slow.join("slow")
        await fast.hear()
        slow.ws.transport.pause_reading()
        body = b'"%s"' % (b"x" * 200_000)
        async with peer(relay) as other:
            await other.join("other")
            await fast.hear()
            # More than the kernel holds for a socket.
            for _ in range(100):
                await fast.say(signal("slow", body))
                await fast.say(signal("other", body))
                while not isinstance(message := await other.hear(), SignalIn):
                    pass
                assert bytes(message.body) == body
        slow.ws.transport.resume_reading()
        heard, closed = await slow.until_closed()
        assert isinstance(closed, ConnectionClosedError)
        assert closed.rcvd is None
        assert 0 < len(heard) < 100
        async with peer(relay) as back:
            again = await back.join("slow", **comeback(welcome, len(heard)))
            assert not again.resumed
            await fast.say(signal("slow", b"1"))
            message = await back.hear()
            while not isinstance(message, SignalIn):
                message = await back.hear()
            assert bytes(message.body) == b"1"


# --- data ----------------------------------------------------------------------------------------
class Sender:
    """Forwards numbered frames, and knows what the relay has done with them."""

    def __init__(self, relay: Relay, peer: Peer, to: str) -> None:
        self._relay = relay
        self._peer = peer
        self._to = to
        self.sent = 0
        self.bytes = 0
        self.passed = 0

    async def frame(self, size: int = 65536) -> None:
        """Forward one, and wait until the relay has it."""
        frame = self.sent.to_bytes(4, "big") + bytes(size - 4)
        data = encode_forward(self._to, f"incarnation-{self._to}", frame)
        await self._peer.ws.send(data)
        self.sent += 1
        self.bytes += len(data)
        await self._peer.say(signal("nobody", b"1"))
        while not isinstance(message := await self._peer.hear(), Refused):
            if isinstance(message, Forwarded):
                self.passed += message.size
        assert message.code == "no_such_peer"

    async def fill(self) -> None:
        """Until frames wait in the relay, and three more."""
        while not any(seat.waiting for seat in self._relay._rooms._seated.values()):
            await self.frame()
        for _ in range(3):
            await self.frame()


async def test_a_frame_is_forwarded_as_a_binary_message(relay: Relay) -> None:
    async with peer(relay) as ann, peer(relay) as bob:
        assert (await ann.join("ann")).forward_window == RelayConfig().forward_window
        await bob.join("bob")
        await ann.ws.send(encode_forward("bob", "incarnation-bob", b"frame"))
        data = await bob.ws.recv()
        assert isinstance(data, bytes)
        assert decode_forward(data) == FrameIn("ann", "incarnation-ann", b"frame")


ROOMY = RelayConfig(port=0, forward_window=64 << 20, max_forwarded=64 << 20, message_rate=100_000)


async def test_who_does_not_read_its_frames_holds_up_nobody_and_gets_signals_first() -> None:
    async with (
        Relay(ROOMY) as relay,
        peer(relay) as slow,
        peer(relay) as ann,
        peer(relay) as eve,
    ):
        await slow.join("slow")
        await eve.join("eve")
        await ann.join("ann")
        slow.ws.transport.pause_reading()
        sender = Sender(relay, ann, "slow")
        await sender.fill()
        await ann.ws.send(encode_forward("eve", "incarnation-eve", b"frame"))
        while not isinstance(await eve.ws.recv(), bytes):
            pass
        await ann.say(signal("slow", b"1"))
        await sender.frame(100)
        slow.ws.transport.resume_reading()
        numbers: list[int] = []
        signalled_at = None
        while len(numbers) < sender.sent:
            data = await slow.ws.recv()
            if isinstance(data, bytes):
                numbers.append(int.from_bytes(decode_forward(data).data[:4], "big"))
            elif isinstance(decode_relay(data), SignalIn):
                signalled_at = len(numbers)
        assert numbers == list(range(sender.sent))
        assert signalled_at is not None
        assert signalled_at < sender.sent - 4, "what waited in the relay came after it"
        # All of it has left, and so the sender has been told all but what is not worth telling.
        await sender.frame(100)
        assert 0 <= sender.bytes - sender.passed < ROOMY.forward_window // 4


async def test_who_answers_no_pings_is_dropped_when_frames_wait_for_it_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("meshpeer.relay.server._CLOSE_TIMEOUT", 0.05)
    config = dataclasses.replace(ROOMY, keepalive_interval=1, seat_timeout=0)
    async with Relay(config) as relay, peer(relay) as slow, peer(relay) as ann:
        await slow.join("slow")
        await ann.join("ann")
        slow.ws.transport.pause_reading()
        sender = Sender(relay, ann, "slow")
        await sender.fill()
        while not isinstance(message := await ann.hear(), MemberLeft):
            if isinstance(message, Forwarded):
                sender.passed += message.size
        assert message == MemberLeft("slow", "incarnation-slow", "timeout")
        assert sender.passed == sender.bytes
        slow.ws.transport.abort()


async def test_who_lets_too_much_wait_is_shut_and_the_others_go_on() -> None:
    config = RelayConfig(port=0, forward_window=64 << 20, max_forwarded=256 * 1024)
    async with Relay(config) as relay, peer(relay) as slow, peer(relay) as ann:
        await slow.join("slow")
        await ann.join("ann")
        slow.ws.transport.pause_reading()
        sender = Sender(relay, ann, "slow")
        await sender.fill()
        while relay._rooms.connections == 2:
            await sender.frame()
        slow.ws.transport.resume_reading()
        numbers: list[int] = []
        with contextlib.suppress(ConnectionClosed):
            async for data in slow.ws:
                if isinstance(data, bytes):
                    frame = decode_forward(data)
                    numbers.append(int.from_bytes(frame.data[:4], "big"))
        assert slow.ws.close_code == 4005
        assert numbers == list(range(len(numbers)))
        assert len(numbers) < sender.sent
        await sender.frame()


async def test_data_before_the_join_is_out_of_place(relay: Relay) -> None:
    async with peer(relay) as stranger:
        await stranger.ws.send(encode_forward("ann", "incarnation-ann", b"frame"))
        (refused,), closed = await stranger.until_closed()
        assert isinstance(refused, Refused)
        assert refused.code == "not_joined"
        assert close_of(closed)[0] == 4000


# --- beginning and end ---------------------------------------------------------------------------
async def test_a_shutdown_says_goodbye() -> None:
    relay = Relay(RelayConfig(port=0, restart_delay=3))
    await relay.start()
    async with peer(relay) as ann, peer(relay) as idle:
        await ann.join("ann")
        await relay.close()
        assert not _timers_of(relay)
        for one in (ann, idle):
            heard, closed = await one.until_closed()
            assert heard == [Goodbye(reason="shutdown", retry_after=3)]
            assert close_of(closed)[0] == 1012
    await relay.close()
    with pytest.raises(MeshClosed):
        _ = relay.url
    with pytest.raises(UsageError):
        await relay.start()


def _timers_of(relay: Relay) -> list[asyncio.TimerHandle]:
    """Those of the event loop that would call ``relay``."""
    scheduled: list[asyncio.TimerHandle] = relay._loop._scheduled  # type: ignore[attr-defined]
    return [
        timer
        for timer in scheduled
        if timer._callback in (relay._alarm._rung, relay._keepalive._alarm._rung)  # type: ignore[attr-defined]
    ]


async def test_timers_do_not_heap_up_when_deadlines_come_and_go(relay: Relay) -> None:
    for _ in range(5):
        async with peer(relay) as ann:
            await ann.join("ann")
            await ann.say(Leave())
            await ann.until_closed()
    # One of each: for a sample of the mesh that has just gone, and for a socket that is closing.
    assert len(_timers_of(relay)) <= 2
    async with peer(relay) as ann, peer(relay):
        await ann.join("ann")
        assert len(_timers_of(relay)) <= 2


async def test_the_port_of_a_closed_relay_is_free() -> None:
    async with Relay(RelayConfig(port=0)) as relay:
        port = relay.port
        async with peer(relay) as ann:
            await ann.join("ann")
    async with Relay(RelayConfig(port=port)) as relay:
        assert relay.port == port


async def test_close_does_not_wait_for_a_connection_that_says_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("meshpeer.relay.server._CLOSE_TIMEOUT", 0.05)
    relay = Relay(RelayConfig(port=0, join_timeout=3600))
    await relay.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
    async with peer(relay) as ann:
        await ann.join("ann")  # so the connection before it was accepted
        await relay.close()
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()


async def test_a_cancelled_close_aborts_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshpeer.relay.server._CLOSE_TIMEOUT", 3600)
    relay = Relay(RelayConfig(port=0))
    await relay.start()
    async with peer(relay) as ann:
        await ann.join("ann")
        ann.ws.transport.pause_reading()  # it will not answer the close
        closing = asyncio.create_task(relay.close())
        forever = asyncio.create_task(relay.serve_forever())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0):
                await closing
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        await forever
        ann.ws.transport.resume_reading()
        await ann.ws.wait_closed()


async def test_serve_forever_ends_with_the_relay_and_can_be_cancelled() -> None:
    async with Relay(RelayConfig(port=0)) as relay:
        serving = asyncio.create_task(relay.serve_forever())
        async with peer(relay) as ann:
            await ann.join("ann")
            serving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await serving
            await ann.say(signal("nobody", b"1"))
            assert isinstance(await ann.hear(), Refused)
        serving = asyncio.create_task(relay.serve_forever())
    await serving


async def test_an_address_that_can_not_be_had_is_an_error_with_a_way_out() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        relay = Relay(RelayConfig(port=port))
        with pytest.raises(NetworkError, match=rf"127\.0\.0\.1 port {port}.*another port"):
            await relay.start()
        await relay.close()
    with pytest.raises(NetworkError, match=r"192\.0\.2\.1"):
        await Relay(RelayConfig(host="192.0.2.1", port=0, open=True)).start()


@pytest.mark.parametrize("how", ["close", "cancel"])
async def test_ended_while_it_starts_it_listens_nowhere(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it asks for the addresses of its name, which is all that it waits for."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    asked, answer = asyncio.Event(), asyncio.Event()

    async def getaddrinfo(*args: object, **kwargs: object) -> list[tuple[Any, ...]]:
        asked.set()
        await answer.wait()
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 0))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    relay = Relay(RelayConfig(host="localhost", port=port))
    starting = asyncio.create_task(relay.start())
    await asked.wait()
    if how == "close":
        await relay.close()
        answer.set()
        with pytest.raises(MeshClosed, match="closed while it started"):
            await starting
    else:
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
    with pytest.raises(MeshClosed):
        _ = relay.url
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", port))


async def test_a_name_with_two_addresses_is_listened_on_at_one_port(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def getaddrinfo(*args: object, **kwargs: object) -> list[tuple[Any, ...]]:
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 0, "", (address, 0))
            for address in ("127.0.0.1", "127.0.0.2", "127.0.0.1")
        ]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    async with Relay(RelayConfig(host="localhost", port=0)) as relay:
        for address in ("127.0.0.1", "127.0.0.2"):
            async with connect(f"ws://{address}:{relay.port}"):
                pass


async def test_a_second_start_is_refused_while_the_first_is_under_way() -> None:
    relay = Relay(RelayConfig(host="localhost", port=0))
    starting = asyncio.create_task(relay.start())
    await asyncio.sleep(0)
    with pytest.raises(UsageError):
        await relay.start()
    await starting
    await relay.close()


async def test_not_started_it_has_no_address() -> None:
    relay = Relay()
    with pytest.raises(MeshClosed):
        _ = relay.port
    with pytest.raises(MeshClosed):
        await relay.serve_forever()
    await relay.close()


@pytest.mark.parametrize(
    ("host", "shown"), [("0.0.0.0", "127.0.0.1"), ("::1", "[::1]"), ("localhost", None)]
)
async def test_its_url_is_one_that_a_client_can_use(host: str, shown: str | None) -> None:
    if host == "::1" and not _has_ipv6():
        pytest.skip("this machine has no IPv6 loopback")
    async with Relay(RelayConfig(host=host, port=0, open=True)) as relay, peer(relay) as ann:
        await ann.join("ann")
        if shown:
            assert relay.url == f"ws://{shown}:{relay.port}"


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


# --- what it brings along, and what it says ------------------------------------------------------
def test_a_relay_host_needs_no_webrtc() -> None:
    code = "import meshpeer.relay, sys; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    loaded = set(run.stdout.decode().split())
    assert "meshpeer.relay.server" in loaded
    assert not loaded & {"aiortc", "aioice", "av"}


async def test_it_logs_who_comes_and_goes_and_never_a_token(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    with structlog.testing.capture_logs() as entries:
        async with Relay(RelayConfig(port=0)) as relay, peer(relay) as ann:
            welcome = await ann.join("ann", token="s" * 40)
            await ann.say(b"junk")
            await ann.hear()
            await ann.say(Leave())
            await ann.until_closed()
    said = [(entry["event"], entry["log_level"]) for entry in entries]
    assert said == [
        ("relay listens", "info"),
        ("member joined", "info"),
        ("message refused", "debug"),
        ("member left", "info"),
        ("relay closes", "info"),
    ]
    assert entries[1]["room"] == "lobby"
    for secret in ("s" * 40, str(welcome.session)):
        assert secret not in str(entries)
    # The websockets library logs what it reads and writes.
    assert not [record for record in caplog.records if record.name.startswith("meshpeer")]


async def test_not_configured_it_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    async with Relay(RelayConfig(port=0)) as relay, peer(relay) as ann:
        await ann.join("ann")
        await ann.say(b"junk")
        await ann.hear()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("number", "helps"),
    [
        (errno.EADDRINUSE, "stop what uses it"),
        (errno.EACCES, "CAP_NET_BIND_SERVICE"),
        (errno.EADDRNOTAVAIL, "an address of this machine"),
    ],
)
async def test_it_says_what_helps_where_it_can_not_listen(
    number: int, helps: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr(socket, "create_server", fail)
    with pytest.raises(NetworkError, match=helps):
        await Relay(RelayConfig(port=443)).start()
