"""How a socket is read: by turns, however its frames are cut."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from meshpeer.core.messages import MemberJoined, encode
from meshpeer.relay import Relay
from meshpeer.relay.sockets import Serving, Socket
from tests.relay.test_server import peer, signal
from tests.relay.wires import UPGRADE, client_frame


# --- turns ----------------------------------------------------------------------------------------
class Wire(asyncio.Transport):
    """What a socket writes, and whether it is read from."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.reading = True
        self.closed = False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        pass

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True

    def is_closing(self) -> bool:
        return self.closed

    def abort(self) -> None:
        self.closed = True

    close = abort


class Hall:
    """The owner of one socket: what it heard, in turns."""

    def __init__(self) -> None:
        self.turns: list[list[bytes]] = [[]]
        self.ends = 0
        self.floods: list[Socket] = []
        self.pause_after: int | None = None
        self.wire = Wire()
        self.socket = Socket(
            self,
            Serving(self._serve, lambda: True),
            "192.0.2.1",
            max_size=200_000,
            write_limit=(1000, 100),
            close_timeout=1,
        )

    async def _serve(self, socket_: Socket) -> None:
        await socket_.handshake()
        socket_.listen()
        socket_.begin()

    async def open(self) -> None:
        self.socket.connection_made(self.wire)
        self.socket.data_received(UPGRADE + b"\r\n")
        await self.socket.server.handler_tasks.copy().pop()
        assert b" 101 " in self.wire.written

    def close(self) -> None:
        self.socket.connection_lost(None)

    @property
    def messages(self) -> list[bytes]:
        return list(itertools.chain(*self.turns))

    def gone(self, socket: Socket) -> None:
        pass

    def asked(self, socket: Socket) -> None:
        socket.answer()

    def heard(self, socket: Socket, data: bytes) -> None:
        self.turns[-1].append(data)
        if len(self.messages) == self.pause_after:
            socket.pause(0)

    def ended(self, socket: Socket) -> None:
        self.ends += 1

    def filled(self, socket: Socket, full: bool) -> None:
        pass

    def behind(self, socket: Socket) -> bool:
        return False

    def flooded(self, socket: Socket) -> None:
        self.floods.append(socket)

    async def turn(self) -> None:
        """Let the loop go round once."""
        self.turns.append([])
        await asyncio.sleep(0)

    async def read_all(self) -> None:
        """Until more would be read from the system."""
        while not self.wire.reading:
            await self.turn()

    async def read_all_of_a_flood(self) -> None:
        """Until nothing more is going to be read."""
        while not self.wire.reading and not self.floods:
            await self.turn()


@contextlib.asynccontextmanager
async def hall() -> AsyncIterator[Hall]:
    one = Hall()
    await one.open()
    try:
        yield one
    finally:
        one.close()


async def test_many_small_messages_have_several_turns() -> None:
    async with hall() as one:
        sent = [b"%d" % number for number in range(100)]
        one.socket.data_received(b"".join(map(client_frame, sent)))
        assert len(one.messages) == 8
        assert not one.wire.reading, "more was read before all of that had its turn"
        await one.read_all()
        assert one.messages == sent
        assert max(map(len, one.turns)) == 8


async def test_control_frames_have_turns_too() -> None:
    async with hall() as one:
        one.socket.data_received(client_frame(b"first"))
        before = len(one.wire.written)
        one.socket.data_received(client_frame(b"", Opcode.PING) * 100)
        assert len(one.wire.written) - before == 8 * 2
        await one.read_all()
        assert len(one.wire.written) - before == 100 * 2
        assert not one.floods


async def test_a_large_message_has_several_turns() -> None:
    async with hall() as one:
        one.socket.data_received(client_frame(bytes(190_000)) + client_frame(b"small"))
        assert one.messages == []
        await one.read_all()
        assert one.messages == [bytes(190_000), b"small"]
        assert len(one.turns) >= 3


async def test_between_two_turns_it_can_be_paused() -> None:
    async with hall() as one:
        one.pause_after = 3
        one.socket.data_received(b"".join(client_frame(b"%d" % n) for n in range(20)))
        assert len(one.messages) == 3
        assert not one.wire.reading
        assert one.socket.is_waiting
        await one.read_all()
        assert one.messages == [b"%d" % n for n in range(20)]
        assert not one.socket.is_waiting


async def test_its_end_is_told_when_it_says_so() -> None:
    """And not when the client closes its TCP connection, which it may never do."""
    for goodbye in (
        client_frame(b"\x03\xe8", Opcode.CLOSE),
        Frame(Opcode.TEXT, b"unmasked").serialize(mask=False),
        b"\xff\xff\xff\xff\xff\xff\xff\xff",
        client_frame(b"out of place", Opcode.CONT),
        client_frame(bytes(200_001)),
    ):
        async with hall() as one:
            one.socket.data_received(client_frame(b"last") + goodbye + client_frame(b"too late"))
            await one.read_all()
            assert one.ends >= 1
            assert one.messages == [b"last"]


async def test_closed_in_between_it_hears_no_more() -> None:
    async with hall() as one:
        one.socket.data_received(client_frame(b"x") * 20)
        one.wire.abort()
        one.socket.connection_lost(None)
        for _ in range(5):
            await one.turn()
        assert len(one.messages) == 8
        one.close = lambda: None  # type: ignore[method-assign]


# --- frames that are no messages -----------------------------------------------------------------
PING = client_frame(b"", Opcode.PING)
NO_MESSAGES = {
    "pings": (b"", PING),
    "pongs": (b"", client_frame(b"", Opcode.PONG)),
    "empty fragments": (
        client_frame(b"x", fin=False),
        client_frame(b"", Opcode.CONT, fin=False),
    ),
    "small fragments": (
        client_frame(b"x", fin=False),
        client_frame(b"x", Opcode.CONT, fin=False),
    ),
}


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long sockets were paused for; they are for no time at all."""
    lengths: list[float] = []
    pause = Socket.pause

    def note(self: Socket, seconds: float) -> None:
        lengths.append(seconds)
        pause(self, 0)

    monkeypatch.setattr(Socket, "pause", note)
    return lengths


@pytest.mark.parametrize("what", NO_MESSAGES)
async def test_frames_that_are_no_messages_are_read_more_slowly_and_not_lost(
    what: str, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshpeer.relay.sockets._FRAME_BURST", 20)
    begin, more = NO_MESSAGES[what]
    async with hall() as one:
        one.socket.data_received(client_frame(b"first") + begin + more * 60)
        await one.read_all()
        # About 41 more than it may at once, and the clock stands nearly still: each pause is for
        # all that is owed, and for a turn.
        assert len(pauses) >= 30
        assert pauses == sorted(pauses)
        assert 0.4 < pauses[0] < 0.5
        assert 2 < pauses[-1] < 2.5
        end = client_frame(b"end", Opcode.CONT) if begin else client_frame(b"end")
        one.socket.data_received(end)
        await one.read_all()
        assert one.messages[0] == b"first"
        assert one.messages[1].endswith(b"end")
        assert not one.floods


@pytest.mark.parametrize("what", NO_MESSAGES)
async def test_before_the_first_message_there_may_be_a_few(what: str) -> None:
    begin, more = NO_MESSAGES[what]
    async with hall() as one:
        one.socket.data_received(begin + more * 30)
        await one.read_all()
        assert not one.floods
        one.socket.data_received(more * 100_000)
        await one.read_all_of_a_flood()
        assert len(one.floods) == 1
        assert one.ends >= 1
        assert not one.messages
        # It is told why, and nothing more of it is read or kept.
        assert one.wire.written.endswith(
            Frame(Opcode.CLOSE, b"\x03\xf0too many frames before a message").serialize(mask=False)
        )
        assert not one.wire.reading
        assert one.socket.is_waiting
        assert not one.socket._input
        one.socket.data_received(more * 10)  # what a TLS transport had read already
        await one.turn()
        assert len(one.floods) == 1


async def test_who_was_shut_so_and_stays_is_cut_off() -> None:
    async with hall() as one:
        one.socket.close_timeout = 0
        one.socket.data_received(PING * 50)
        while not one.wire.closed:
            await one.turn()


async def test_messages_and_what_was_asked_for_do_not_count(pauses: list[float]) -> None:
    async with hall() as one:
        for number in range(300):
            one.socket.ask()
            one.socket.data_received(client_frame(b"%d" % number))
            one.socket.data_received(client_frame(b"", Opcode.PONG))
            # As browsers cut what is large.
            one.socket.data_received(client_frame(bytes(5000), Opcode.BINARY, fin=False))
            one.socket.data_received(client_frame(bytes(5000), Opcode.CONT))
            await one.read_all()
        assert len(one.messages) == 600
        assert not pauses
        assert not one.floods


async def test_a_first_message_in_fragments_is_one() -> None:
    async with hall() as one:
        for opcode, fin in ((Opcode.TEXT, False), (Opcode.CONT, False), (Opcode.CONT, True)):
            one.socket.data_received(client_frame(b"x", opcode, fin=fin))
        one.socket.data_received(PING * 90)
        await one.read_all()
        assert one.messages == [b"xxx"]
        assert not one.floods


async def test_after_the_end_nothing_is_heard_and_a_flood_is_cut_off() -> None:
    async with hall() as one:
        one.socket.data_received(client_frame(b"first") + client_frame(b"", Opcode.CLOSE))
        await one.read_all()
        for _ in range(50):
            one.socket.data_received(PING * 1000)
        assert not one.wire.is_closing()
        for _ in range(60):
            one.socket.data_received(PING * 1000)
        assert one.wire.is_closing()
        assert one.messages == [b"first"]


_MESSAGES = st.lists(
    st.tuples(
        st.binary(max_size=20)
        | st.integers(100, 140).map(bytes)
        | st.integers(65_500, 65_600).map(bytes),
        st.sampled_from([Opcode.TEXT, Opcode.BINARY]),
        st.integers(1, 4),
        st.booleans(),
    ),
    max_size=12,
)


@given(
    messages=_MESSAGES, cuts=st.lists(st.integers(0, 200_000), max_size=8), pause=st.integers(0, 5)
)
def test_frames_are_read_however_they_are_cut(
    messages: list[tuple[bytes, Opcode, int, bool]], cuts: list[int], pause: int
) -> None:
    """In fragments, with pings between them, and in whatever pieces the network makes of them."""
    data, pings = b"", 0
    for message, opcode, parts, pinged in messages:
        size = -(-len(message) // parts) or 1
        pieces = [message[at : at + size] for at in range(0, len(message), size)] or [b""]
        pieces += [b""] * (parts - len(pieces))
        for number, piece in enumerate(pieces):
            code = opcode if number == 0 else Opcode.CONT
            data += client_frame(piece, code, fin=number == len(pieces) - 1)
            if pinged:
                data += client_frame(b"%d" % pings, Opcode.PING)
                pings += 1
    ends = sorted({min(cut, len(data)) for cut in cuts} | {len(data)})

    async def play() -> None:
        async with hall() as one:
            one.pause_after = pause
            before = len(one.wire.written)
            start = 0
            for end in ends:
                one.socket.data_received(data[start:end])
                start = end
                await one.read_all()
            assert one.messages == [message for message, *_ in messages]
            pongs = b"".join(
                Frame(Opcode.PONG, b"%d" % number).serialize(mask=False) for number in range(pings)
            )
            assert one.wire.written[before:] == pongs

    asyncio.run(play())


async def test_one_that_sends_without_a_pause_has_no_more_turns_than_others(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with peer(relay) as flood, peer(relay) as ann:
        await flood.join("flood")
        await ann.join("ann")
        order: list[int] = []
        received = relay._rooms.received

        def hear(conn: int, data: bytes, now: float) -> Any:
            order.append(conn)
            return received(conn, data, now)

        monkeypatch.setattr(relay._rooms, "received", hear)
        # The loop does not run meanwhile: all of this is there when it does.
        for one, count in ((flood, 300), (ann, 1)):
            sock = one.ws.transport.get_extra_info("socket")
            with socket.socket(fileno=socket.dup(sock.fileno())) as direct:
                direct.send(client_frame(encode(signal("nobody", b"1"))) * count)
        while isinstance(await ann.hear(), MemberJoined):
            pass
        assert order.index(2) <= 16
        while len(order) < 301:
            await flood.hear()
        assert order.count(1) == 300
