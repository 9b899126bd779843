"""What a stranger may cost: connections, bytes, and nonsense."""

from __future__ import annotations

import asyncio
import contextlib
import http
import itertools
import json
import random
import socket
from collections.abc import Iterable
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Opcode

from meshpeer.config import RelayConfig
from meshpeer.core.forward import encode_forward
from meshpeer.core.messages import Leave, MemberJoined, Refused, encode
from meshpeer.relay import Relay
from meshpeer.relay.server import _ANSWERED
from meshpeer.relay.sockets import Socket
from tests.relay.board import captured
from tests.relay.test_server import Peer, close_of, get, join, peer, signal
from tests.relay.wires import UPGRADE, client_frame, raw, refused, until_gone


# --- how many -------------------------------------------------------------------------------------
async def test_so_many_from_one_address_and_no_more() -> None:
    config = RelayConfig(port=0, max_connections_per_address=2)
    async with Relay(config) as relay, peer(relay) as ann, peer(relay):
        await ann.join("ann")
        with pytest.raises(InvalidStatus) as caught:
            await connect(relay.url)
        response = caught.value.response
        assert response.status_code == http.HTTPStatus.TOO_MANY_REQUESTS
        assert int(response.headers["Retry-After"]) > 0
        assert b"2 connections" in response.body
        assert refused(relay) == {"max_connections_per_address": 1}
        # From another one there is room, and the first has none of its neighbour's.
        async with connect(relay.url, local_addr=("127.0.0.2", 0)) as ws:
            await Peer(ws).join("bob")
        assert (await get(relay, "GET /healthz"))[0] == 200
        before = set(relay._sockets)
        await ann.say(Leave())
        await ann.until_closed()
        (gone,) = [each for each in before if each.address == "127.0.0.1" and each.conn == 1]
        await gone.wait_closed()
        async with peer(relay) as back:
            await back.join("ann")
    assert not relay._from


@pytest.mark.parametrize(
    "config",
    [
        RelayConfig(port=0, max_connections_per_address=3, join_timeout=60),
        RelayConfig(port=0, max_connections=3, join_timeout=60),
    ],
)
async def test_what_is_beyond_those_that_are_told_so_is_shut_at_once(config: RelayConfig) -> None:
    async with Relay(config) as relay, peer(relay) as ann, contextlib.AsyncExitStack() as stack:
        await ann.join("ann")
        readers = [
            (await stack.enter_async_context(raw(relay)))[0] for _ in range(2 + _ANSWERED + 20)
        ]
        ends = [asyncio.create_task(reader.read()) for reader in readers]
        for end in itertools.islice(asyncio.as_completed(ends), 20):
            with contextlib.suppress(ConnectionResetError):
                assert await end == b""
        for end in ends:
            end.cancel()
        done = await asyncio.gather(*ends, return_exceptions=True)
        assert sum(not isinstance(each, asyncio.CancelledError) for each in done) == 20
        assert len(relay._sockets) == 3 + _ANSWERED
        (count,) = refused(relay).values()
        assert count == 20
        await ann.say(signal("nobody", b"1"))
        assert isinstance(await ann.hear(), Refused)


async def test_members_notice_nothing_of_a_crowd_at_the_door(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of those that wait at the door no more than a few come in before members have their turn."""
    config = RelayConfig(port=0, max_connections_per_address=1000, join_timeout=60)
    async with Relay(config) as relay, peer(relay) as ann:
        await ann.join("ann")
        order: list[str] = []
        inside = asyncio.Event()
        admit, received = relay._door._admit, relay._rooms.received
        sock = ann.ws.transport.get_extra_info("socket")

        def let_in(address: str) -> Socket | None:
            if not order:
                with socket.socket(fileno=socket.dup(sock.fileno())) as direct:
                    direct.send(client_frame(encode(signal("nobody", b"1"))))
            order.append("crowd")
            if order.count("crowd") == 300:
                inside.set()
            return admit(address)

        monkeypatch.setattr(relay._door, "_admit", let_in)

        def hear(*args: Any) -> Any:
            order.append("ann")
            return received(*args)

        monkeypatch.setattr(relay._rooms, "received", hear)
        with contextlib.ExitStack() as stack:
            # The loop does not run meanwhile: all of them are there when it does.
            for _ in range(300):
                stack.enter_context(socket.create_connection(("127.0.0.1", relay.port)))
            assert isinstance(await ann.hear(), Refused)
            assert 1 <= order.index("ann") <= 8
            await inside.wait()
        await until_gone(relay, keep=1)


async def test_requests_that_come_all_at_once_are_answered_by_turns(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with peer(relay) as ann:
        await ann.join("ann")
        order: list[str] = []
        inside = asyncio.Event()
        answer, received, handle = Socket.answer, relay._rooms.received, relay._serving.handler
        sock = ann.ws.transport.get_extra_info("socket")

        def serve(one: Socket) -> Any:
            if len(relay._sockets) == 101:
                inside.set()
            return handle(one)

        def read(one: Socket) -> None:
            if not order:
                with socket.socket(fileno=socket.dup(sock.fileno())) as direct:
                    direct.send(client_frame(encode(signal("nobody", b"1"))))
            order.append("crowd")
            answer(one)

        def hear(*args: Any) -> Any:
            order.append("ann")
            return received(*args)

        monkeypatch.setattr(relay._serving, "handler", serve)
        monkeypatch.setattr(Socket, "answer", read)
        monkeypatch.setattr(relay._rooms, "received", hear)
        with contextlib.ExitStack() as stack:
            crowd = [
                stack.enter_context(socket.create_connection(("127.0.0.1", relay.port)))
                for _ in range(100)
            ]
            await inside.wait()
            await ann.say(signal("nobody", b"1"))
            await ann.hear()  # and now their tasks wait for what they ask
            order.clear()
            for each in crowd:
                each.send(b"GET /healthz HTTP/1.1\r\n\r\n")
            assert isinstance(await ann.hear(), Refused)
            assert 1 <= order.index("ann") <= 20
        await until_gone(relay, keep=1)


async def test_where_no_more_files_can_be_opened_it_waits_and_goes_on(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshpeer.relay.door._OUT_OF_FILES", 0)
    loop = asyncio.get_running_loop()
    accept, failures = (
        loop.sock_accept,
        [OSError(24, "Too many open files"), ConnectionAbortedError()],
    )

    async def fail(listening: socket.socket) -> Any:
        if failures:
            raise failures.pop()
        return await accept(listening)

    monkeypatch.setattr(loop, "sock_accept", fail)
    for number in range(2):  # the accept that was under way is an ordinary one
        async with peer(relay) as ann:
            await ann.join(f"ann-{number}")
    assert not failures


async def test_one_that_fails_at_the_door_does_not_make_it_deaf(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    admit, fails = relay._door._admit, 3

    def fail(address: str) -> Socket | None:
        nonlocal fails
        fails -= 1
        if fails >= 0:
            raise ZeroDivisionError
        return admit(address)

    monkeypatch.setattr(relay._door, "_admit", fail)
    with captured() as log:
        for _ in range(3):
            async with raw(relay) as (reader, _):
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b""
        async with peer(relay) as ann:
            await ann.join("ann")
    errors = [entry["event"] for entry in log if entry["log_level"] == "error"]
    assert errors == ["a connection can't be let in"] * 3


# --- bytes ----------------------------------------------------------------------------------------
async def test_who_sends_more_than_its_bytes_is_slowed_down_and_loses_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = RelayConfig(port=0, byte_rate=4_000_000, byte_burst=64 * 1024, keepalive_interval=0.2)
    pauses: list[float] = []
    pause = Socket.pause

    def note(self: Socket, seconds: float) -> None:
        pauses.append(seconds)
        pause(self, seconds)

    monkeypatch.setattr(Socket, "pause", note)
    async with Relay(config) as relay, peer(relay) as ann, peer(relay) as bob:
        await ann.join("ann")
        await bob.join("bob")
        while not isinstance(await ann.hear(), MemberJoined):
            pass
        frames = [
            encode_forward("bob", "incarnation-bob", b"\1" + bytes(60_000 + n)) for n in range(20)
        ]
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_send_all(ann, frames))
            sizes = [len(await bob.ws.recv()) for _ in frames]
        assert sizes == sorted(sizes)
        assert len(pauses) >= 15
        assert max(pauses) <= config.keepalive_interval
        # It was not taken for dead while nothing was read from it.
        await ann.say(signal("nobody", b"1"))
        while not isinstance(await ann.hear(), Refused):
            pass


async def _send_all(one: Peer, frames: Iterable[bytes]) -> None:
    for frame in frames:
        await one.ws.send(frame)


async def test_who_sent_what_is_read_only_after_many_pauses_is_not_taken_for_dead() -> None:
    config = RelayConfig(
        port=0,
        byte_rate=700_000,
        byte_burst=64 * 1024,
        keepalive_interval=0.1,
        max_message_size=68_000,
        message_rate=10_000,
    )
    async with Relay(config) as relay, peer(relay) as ann, peer(relay) as bob:
        await ann.join("ann")
        await bob.join("bob")
        # Pauses of almost as long as a ping has, and all of it is read from the system at once.
        frames = [
            encode_forward("bob", "incarnation-bob", b"\1" + bytes(60_000 + n)) for n in range(7)
        ]
        ann.ws.transport.pause_reading()
        ann.ws.transport.write(b"".join(client_frame(frame, Opcode.BINARY) for frame in frames))
        sizes = [len(await bob.ws.recv()) for _ in frames]
        assert sizes == sorted(sizes)


async def test_who_pings_and_never_reads_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself that takes an hour, as pings have a rate."""
    monkeypatch.setattr("meshpeer.relay.sockets._FRAME_RATE", 1e9)
    monkeypatch.setattr("meshpeer.relay.sockets._FRAME_BURST", 1e9)
    config = RelayConfig(port=0, max_unread=64 * 1024, max_replay_bytes=64 * 1024)
    async with Relay(config) as relay, peer(relay) as ann, raw(relay) as (_, writer):
        await ann.join("ann")
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(UPGRADE + b"\r\n" + client_frame(encode(join("eve"))))
        pings = client_frame(bytes(125), Opcode.PING) * 500
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(pings)
                await writer.drain()
        assert relay._figures().cut_off == 1
        await ann.say(signal("nobody", b"1"))
        while not isinstance(await ann.hear(), Refused):
            pass


@pytest.mark.parametrize("path", ["/ws", "/api/admin/live"])
@pytest.mark.parametrize("what", ["pings", "empty fragments"])
async def test_who_sends_frames_and_no_message_is_shut_and_counted(what: str, path: str) -> None:
    async with (
        Relay(RelayConfig(port=0, join_timeout=3600)) as relay,
        peer(relay) as ann,
        raw(relay) as (reader, writer),
    ):
        await ann.join("ann")
        writer.write(UPGRADE.replace(b"/ws", path.encode()) + b"\r\n")
        await reader.readuntil(b"\r\n\r\n")
        if what == "pings":
            begin, more = b"", client_frame(b"", Opcode.PING)
        else:
            begin, more = client_frame(b"{", fin=False), client_frame(b"", Opcode.CONT, fin=False)
        writer.write(begin + more * 40)
        await reader.readuntil(b"too many frames before a message")
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        await until_gone(relay, keep=1)
        assert refused(relay) == {"too_many_frames": 1}
        assert not relay._admin._live._open
        await ann.say(signal("nobody", b"1"))
        assert isinstance(await ann.hear(), Refused)


async def test_who_goes_on_after_its_answer_is_cut_off(relay: Relay) -> None:
    async with raw(relay) as (_, writer):
        writer.write(b"GET /healthz HTTP/1.1\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(client_frame(b"", Opcode.PING) * 10_000)
                await writer.drain()
        await until_gone(relay)
    assert not relay._sockets


async def test_a_message_may_be_in_fragments_and_has_a_size_then_too() -> None:
    config = RelayConfig(port=0, max_message_size=2048)
    async with Relay(config) as relay, peer(relay) as ann:
        await ann.join("ann")
        text = encode(signal("nobody", b"1")).decode()
        pieces = [text[at : at + 5] for at in range(0, len(text), 5)]
        await ann.ws.send(pieces)
        refusal = await ann.hear()
        assert isinstance(refusal, Refused)
        assert refusal.code == "no_such_peer"
        await ann.ws.send(["", "", *pieces, "", ""])
        assert isinstance(await ann.hear(), Refused)
        with contextlib.suppress(ConnectionClosed):
            await ann.ws.send(["x" * 100] * 30)
        _, closed = await ann.until_closed()
        assert close_of(closed)[0] == 1009


# --- all of it ------------------------------------------------------------------------------------
class Nonsense:
    """Messages that are nearly right, from a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._samples = [
            json.loads(encode(message))
            for message in (
                join("ann"),
                signal("peer-1", b'{"a":[1,2,{}]}'),
                signal("nobody", b"null"),
            )
        ] + [
            {"type": "update", "name": "Ann", "metadata": {"a": 1}},
            {"type": "ack", "received": 1},
            {
                "type": "report",
                "links": [["peer-1", "incarnation-1", "connected", "connected", "direct", 0.01]],
            },
        ]

    def message(self) -> bytes:
        choose = self._random
        kind = choose.randrange(10)
        if kind == 0:
            return choose.randbytes(choose.randrange(200))
        if kind == 1:
            return encode_forward("peer-1", "incarnation-peer-1", b"\1" + choose.randbytes(20))
        if kind == 2:
            whole = encode_forward("peer-2", "incarnation-peer-2", choose.randbytes(20))
            return whole[: choose.randrange(len(whole))]
        sample = dict(choose.choice(self._samples))
        for _ in range(choose.randrange(3)):
            sample[choose.choice(list(sample))] = self._value()
        data = json.dumps(sample).encode()
        if kind == 3:
            at = choose.randrange(len(data))
            data = data[:at] + choose.randbytes(choose.randrange(3)) + data[at + 1 :]
        return data

    def _value(self) -> Any:
        choose = self._random
        return choose.choice(
            [
                None,
                True,
                choose.randrange(-(2**70), 2**70),
                choose.random(),
                "x" * choose.randrange(300),
                "\u202e\x00",
                [[]] * choose.randrange(5),
                {"a": {"b": []}},
                "peer-1",
                json.loads("[" * 40 + "]" * 40),
            ]
        )


async def test_a_hundred_thousand_messages_of_nonsense(caplog: pytest.LogCaptureFixture) -> None:
    """No crash, nothing in the log, and nothing kept."""
    config = RelayConfig(
        port=0, message_rate=1e6, message_burst=1_000_000, join_rate=1e6, seat_timeout=0
    )
    async with Relay(config) as relay:
        nonsense = Nonsense(7)

        async def talk(number: int, messages: int) -> None:
            while messages > 0:
                async with peer(relay) as one:
                    await one.join(f"peer-{number}")
                    reading = asyncio.create_task(_read_all(one.ws))
                    with contextlib.suppress(ConnectionClosed):
                        while messages > 0:
                            messages -= 1
                            data = nonsense.message()
                            # Text that is none, the library does not send.
                            await one.ws.send(data, text=messages % 3 == 0 and _is_text(data))
                    await one.ws.send(encode(Leave()))
                    await reading

        async with asyncio.TaskGroup() as tasks:
            for number in range(20):
                tasks.create_task(talk(number, 5_000))
        await until_gone(relay)
        assert relay._figures().messages_in >= 100_000
        assert not relay._clients
        assert not relay._from
        assert relay._rooms.rooms == relay._rooms.connections == 0
        assert not relay._keepalive._next
        async with peer(relay) as ann:
            await ann.join("ann")
    assert not caplog.records


async def _read_all(ws: ClientConnection) -> None:
    with contextlib.suppress(ConnectionClosed):
        async for _ in ws:
            pass


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
