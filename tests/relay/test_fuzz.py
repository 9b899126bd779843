"""A hundred thousand messages to a live relay, few of which are right, and what is left of them.

Each session of a stranger is drawn from the seed and its own number, so what it sends does not
depend on what else happens. The seed is a new one each time, and in the text of a failure:
``MESHPEER_FUZZ_SEED`` brings it back.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import json
import logging
import math
import os
import random
import socket
import struct
import sys
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator, MutableMapping, Sequence
from typing import Any, Final, cast

import pytest
import structlog
from prometheus_client.parser import text_string_to_metric_families
from websockets.frames import Opcode

from meshpeer.config import RelayConfig
from meshpeer.core.forward import decode_forward, encode_forward
from meshpeer.core.messages import Goodbye, Refused, SignalIn, decode_relay
from meshpeer.core.tracking import MAX_ACTIVITY, MAX_SAMPLES
from meshpeer.errors import Forbidden, Unauthorized
from meshpeer.relay import Grant, JoinRequest, Relay
from meshpeer.relay.admin import LIVE_PATH
from tests.relay.test_admin_relay import Dashboard, api, ask, dashboard
from tests.relay.test_server import Peer, peer, signal
from tests.relay.wires import UPGRADE

MESSAGES: Final = 100_000
WARM: Final = 20_000
"""After these, whatever is made once is there: caches, tables that have a bound."""
AT_ONCE: Final = 24
"""Strangers."""
SLACK: Final = 8_000
"""Blocks of memory that may be more than before: a tenth of one for each message."""

_ROOMS: Final = ("lobby", "lobby", "hall", "a/b \u00fc")
_NAMES: Final = [f"peer-{n}" for n in range(16)]
_HONEST: Final = ("honest-1", "honest-2")
_IDS: Final = [*_NAMES, *_HONEST]
_ODD: Final = [
    *(b"null true false 0 -1 1 7 1.5 -0.0 1e308 1e-400 1e400 NaN Infinity 01 2147483648".split()),
    b"9007199254740993", b"9" * 30, b"9" * 5000, b"[]", b"{}", b"[[]]", b'{"a":{"b":[]}}',
    b"[" * 40, b"[" * 40 + b"]" * 40, b"[" * 33 + b"]" * 33, b"[" * 5000 + b"]" * 5000, b'""',
    b'"\\ud800"', b'"\\ud83d\\ude00"', b'"\\u202ex"', b'"\\u0000"', b'"a\\r\\nSet-Cookie: b"',
    b'"\\u001b[31m"', b'"<script>alert(1)</script>"', b'"__proto__"', b'"..\\/..\\/etc\\/passwd"',
    b'"' + b"x" * 128 + b'"', b'"' + b"x" * 129 + b'"', b'"' + b"x" * 9000 + b'"', b'"\xff"',
    b'"\xc3\xa4"', b'"\xed\xa0\x80"', b'"%s%d%n{0}{x!r}"', b'"honest-1"', b'"honest-2"',
    b'"join"', b'"takeover"', b'"rename"', b"\x00", b"",
]  # fmt: skip
_STATES: Final = ("new", "connecting", "connected", "disconnected", "failed", "closed")
_SMALL: Final = json.dumps({"sdp": "v=0\r\n" * 20, "list": [1, 2, {"a": None}]}).encode()
_ENDS: Final = ("leave", "close", "eof", "eof", "reset", "cut", "junk")

Fields = list[tuple[bytes, bytes]]


def quoted(text: str) -> bytes:
    return json.dumps(text).encode()


class Draw(random.Random):
    """Draws what a stranger sends."""

    links: Sequence[Sequence[bytes]] = ()
    """What reports are made of, some for each other end: to draw each anew would take longer than
    the relay takes for it."""

    def __init__(self, seed: str) -> None:
        super().__init__(seed)
        self.room = self.choice(_ROOMS)
        self.peer_id = self.choice(_NAMES)
        self.incarnation = f"incarnation-{self.randrange(3)}"

    def some_id(self) -> str:
        return self.choice(_IDS)

    def count(self) -> bytes:
        return b"%d" % self.choice((0, 0, 1, 2, self.getrandbits(7), self.getrandbits(53)))

    # --- messages that are right -----------------------------------------------------------------

    def join(self) -> Fields:
        peer_id = self.peer_id if self.random() < 0.95 else self.choice(_HONEST)
        fields = [
            (b"type", b'"join"'),
            (b"version", b"1"),
            (b"room", quoted(self.room)),
            (b"peer_id", quoted(peer_id)),
            (b"incarnation", quoted(self.incarnation)),
            (b"on_conflict", b'"%b"' % self.choice((b"reject", b"takeover", b"rename"))),
            (b"attempt", self.count()),
        ]
        if self.random() < 0.7:
            # Its owner's, which makes it come back or replace an earlier one; or somebody else's.
            whose = peer_id if self.random() < 0.8 and peer_id in _NAMES else self.choice(_NAMES)
            fields.append((b"token", b'"token-of-%b-0000"' % whose.encode()))
        if self.random() < 0.3:
            fields.append((b"name", quoted(f"{self.peer_id} <b>")))
        if self.random() < 0.3:
            fields.append((b"metadata", b'{"a":%d}' % self.randrange(3)))
        if self.random() < 0.3:
            fields += [(b"session", b'"%b"' % (b"s" * 32)), (b"received", self.count())]
        return fields

    def signal(self) -> Fields:
        return [
            (b"type", b'"signal"'),
            (b"to", quoted(self.some_id())),
            (b"to_incarnation", b'"incarnation-%d"' % self.randrange(3)),
            (b"epoch", b"%d" % self.randrange(3)),
            (b"body", self.choice((b"null", b'{"type":"dial"}', _SMALL))),
        ]

    def update(self) -> Fields:
        fields = [(b"type", b'"update"')]
        if self.random() < 0.7:
            fields.append((b"name", quoted(f"name {self.randrange(9)}")))
        if self.random() < 0.5:
            fields.append((b"metadata", b'{"n":[%d]}' % self.randrange(9)))
        return fields

    def ack(self) -> Fields:
        return [(b"type", b'"ack"'), (b"received", self.count())]

    def ping(self) -> Fields:
        return [(b"type", b'"ping"')]

    def report(self) -> Fields:
        # Nearly always about each end once.
        ends = self.sample(self.links, self.choice((0, 1, 2, 3, 30)))
        if ends and self.random() < 0.1:
            ends.append(ends[0])
        links = [self.choice(links) for links in ends]
        return [(b"type", b'"report"'), (b"links", b"[%b]" % b",".join(links))]

    def link(self, peer_id: str, incarnation: int) -> bytes:
        link = [
            quoted(peer_id),
            b'"incarnation-%d"' % incarnation,
            b'"%b"' % self.choice(_STATES).encode(),
            self.choice((b'"checking"', b'"completed"', b'"failed"', b'"made_up"')),
            self.choice((b'"direct"', b'"turn"', b'"relay"', b"null")),
            self.choice((b"null", b"0", b"0.03", b"86400", b"1e-300")),
            self.choice((b'""', b'"because"')),
            b'""',
            *(self.count() for _ in range(4)),
            self.choice((b"null", b"0.25", b"1e308")),
            *(self.count() for _ in range(4)),
        ]
        if self.random() < 0.02:
            link[self.randrange(len(link))] = self.choice(_ODD)
        return b"[%b]" % b",".join(link[: self.choice((4, 6, 17, 17))])

    # --- and those that are not ------------------------------------------------------------------

    def message(self) -> bytes:
        kind = self.random()
        if kind < 0.12:
            return self.data()
        if kind < 0.2:
            return self.junk()
        make = self.choice(
            (self.signal, self.signal, self.update, self.ack, self.report, self.ping, self.join)
        )
        fields = make()
        if kind < 0.45:
            self.spoil(fields)
        data = written(fields)
        return self.damaged(data) if kind > 0.9 else data

    def data(self) -> bytes:
        incarnation = f"incarnation-{self.randrange(3)}"
        size = self.choice((1, 10, 100, 3000))
        whole = encode_forward(self.some_id(), incarnation, self.randbytes(size))
        return self.damaged(whole) if self.random() < 0.4 else whole

    def junk(self) -> bytes:
        match self.randrange(4):
            case 0:
                return self.randbytes(self.randrange(200))
            case 1:
                return bytes(self.choices(b'{}[]",:\\ \n0e-tfn\xff', k=self.randrange(60)))
            case 2:
                return "".join(map(chr, self.choices(range(0xD800), k=self.randrange(50)))).encode()
        return self.choice(_ODD)

    def spoil(self, fields: Fields) -> None:
        """In one or two places."""
        for _ in range(self.randrange(1, 3)):
            at = self.randrange(len(fields))
            name, value = fields[at]
            match self.randrange(6):
                case 0 if len(fields) > 1:
                    del fields[at]
                case 1:
                    fields.insert(self.randrange(len(fields)), (name, self.choice(_ODD)))
                case 2:
                    fields.append((self.choice((b"x", b"from", b"\\u0000", b"__proto__")), value))
                case 3:
                    fields[at] = (name, self.choice(fields)[1])
                case _:
                    fields[at] = (name, self.choice(_ODD))

    def damaged(self, data: bytes) -> bytes:
        for _ in range(self.randrange(1, 4)):
            at = self.randrange(len(data) + 1)
            match self.randrange(4):
                case 0:
                    data = data[:at]
                case 1:
                    data = data[:at] + self.randbytes(self.randrange(1, 4)) + data[at:]
                case 2:
                    data = data[:at] + self.randbytes(1) + data[at + 1 :]
                case _:
                    data = data[:at] + data[self.randrange(len(data) + 1) :]
        return data

    # --- sessions --------------------------------------------------------------------------------

    def frames(self, data: bytes) -> bytes:
        """A message as frames; nearly always as the protocol wants it."""
        is_text = self.random() < 0.6 and (self.random() < 0.005 or is_utf8(data))
        opcode = Opcode.TEXT if is_text else Opcode.BINARY
        if self.random() < 0.95:
            return frame(opcode, data)
        at = self.randrange(len(data) + 1)
        return b"".join(
            (
                frame(opcode, data[:at], fin=False),
                frame(Opcode.PING, b"between"),
                frame(Opcode.CONT, b"", fin=False),
                frame(Opcode.CONT, data[at:]),
            )
        )

    def session(self) -> list[bytes]:
        """Bytes in pieces, each to be written by itself."""
        first = self.join() if self.random() < 0.9 else self.signal()
        if self.random() < 0.1:
            self.spoil(first)
        messages = [written(first)]
        if self.random() < 0.003:
            messages += [written(self.signal())] * 2_000  # a flood
        else:
            messages += [self.message() for _ in range(self.randrange(120))]
        frames = [self.frames(message) for message in messages]
        pieces = [UPGRADE + b"\r\n" + frames[0]]
        pieces += [b"".join(frames[at : at + 20]) for at in range(1, len(frames), 20)]
        return pieces

    def page(self, ticket: str) -> list[bytes]:
        """Bytes to the dashboard's socket."""
        hello = [(b"type", b'"hello"'), (b"ticket", quoted(ticket))]
        watch = [(b"type", b'"watch"'), (b"room", quoted(self.room))]
        act = [
            (b"type", b'"act"'),
            (b"id", self.count()),
            (b"action", b'"%b"' % self.choice((b"restart_ice", b"remove", b"notice"))),
            (b"room", quoted(self.room)),
            (b"peerId", quoted(self.choice(_NAMES))),
            (b"text", b'"hello"'),
        ]
        messages = [list(self.choice((watch, act))) for _ in range(self.randrange(5))]
        messages.insert(0 if self.random() < 0.9 else len(messages), hello)
        self.spoil(self.choice(messages))
        head = UPGRADE.replace(b"/ws", LIVE_PATH.encode()) + b"\r\n"
        # The pair is not to be removed.
        said = [written(fields).replace(b"honest", b"nobody") for fields in messages]
        return [head, b"".join(map(self.frames, said))]

    def request(self) -> list[bytes]:
        """Bytes of a request, which may be one."""
        paths = ("/", "/ws", "/healthz", "/metrics", "/admin-analytics", "/api/admin/peers")
        path = self.choice(paths).encode() + self.choice((b"", b"?room=%ff", b"/..", b"?after=1"))
        head = b"GET %b HTTP/1.1\r\nHost: relay\r\nAuthorization: Basic eDp5\r\n\r\n" % path
        return [self.damaged(head)]


def written(fields: Fields) -> bytes:
    return b"{%b}" % b",".join(b'"%b":%b' % field for field in fields)


def is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def frame(opcode: int, data: bytes, *, fin: bool = True) -> bytes:
    """As a client writes it (RFC 6455, section 5.2), with a mask that changes nothing."""
    size = len(data)
    head = bytes([(0x80 if fin else 0) | opcode])
    if size < 126:
        head += bytes([0x80 | size])
    elif size < 65_536:
        head += struct.pack("!BH", 0x80 | 126, size)
    else:
        head += struct.pack("!BQ", 0x80 | 127, size)
    return head + bytes(4) + data


class Wire(asyncio.Protocol):
    """The stranger's end: reads whatever comes, and forgets it."""

    def __init__(self) -> None:
        self.lost = asyncio.Event()
        self.answered = asyncio.Event()
        """The join was."""
        self._room = asyncio.Event()
        self._room.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if not self.answered.is_set() and data.rfind(b'{"type":"') >= 0:
            self.answered.set()

    def pause_writing(self) -> None:
        self._room.clear()

    def resume_writing(self) -> None:
        self._room.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._room.set()
        self.answered.set()
        self.lost.set()

    async def run(self, pieces: list[bytes], end: str, *, patient: bool) -> None:
        """``patient``: what follows the first piece waits for an answer to that."""
        for piece in pieces:
            self.transport.write(piece)
            await self._room.wait()
            if patient:
                await self.answered.wait()
            if self.transport.is_closing():
                break  # the relay has had enough
        match end:
            case "leave":
                self.transport.write(frame(Opcode.TEXT, b'{"type":"leave"}'))
            case "close":
                self.transport.write(frame(Opcode.CLOSE, struct.pack("!H", 1000)))
            case "cut":
                self.transport.write(frame(Opcode.TEXT, b"x" * 1000)[:500])
            case "junk":
                self.transport.write(random.Random(str(pieces[-1])).randbytes(200))
        if end == "reset":
            self.transport.abort()
        elif not self.transport.is_closing():
            with contextlib.suppress(OSError):
                self.transport.write_eof()
        await self.lost.wait()


class Whim:
    """Lets most in, in the name of some, and takes its time about it."""

    async def authenticate(self, request: JoinRequest) -> Grant:
        if request.peer_id in _HONEST:
            return Grant(subject="honest" if request.name == "honest" else None)
        whim = zlib.crc32(f"{request.room}{request.peer_id}".encode())
        for _ in range(whim % 3):
            await asyncio.sleep(0)
        match whim % 10:
            case 0:
                return Grant(name="granted")
            case 1:
                return Grant(peer_id=request.peer_id)
            case 2 if request.name:
                raise Unauthorized("not with that name")
            case 3 if request.name:
                raise Forbidden("not with that name either")
        return Grant(subject="user" if whim & 1 else None)


class Pair:
    """Two members that keep to the protocol, and get all of what they send to each other, once and
    in order, whatever else they hear."""

    def __init__(self, one: Peer, other: Peer) -> None:
        self.exchanged = 0
        self.ends = (one, other)

    async def exchange(self) -> None:
        """A signal and a frame, each way."""
        number = self.exchanged
        for to, end in zip(reversed(_HONEST), self.ends, strict=True):
            await end.say(signal(to, b'{"number":%d}' % number))
            await end.ws.send(encode_forward(to, f"incarnation-{to}", b"%d" % number))
        for sender, end in zip(reversed(_HONEST), self.ends, strict=True):
            await self._hear(sender, end, number)
        self.exchanged += 1

    async def _hear(self, sender: str, end: Peer, number: int) -> None:
        signalled = framed = False
        while not (signalled and framed):
            data = await end.ws.recv()
            if isinstance(data, bytes):
                got = decode_forward(data)
                if got.sender == sender:
                    assert (framed, got.data) == (False, b"%d" % number)
                    framed = True
                continue
            message = decode_relay(data)
            assert not isinstance(message, Refused | Goodbye), message
            if isinstance(message, SignalIn) and message.sender == sender:
                assert (signalled, bytes(message.body)) == (False, b'{"number":%d}' % number)
                signalled = True


@contextlib.asynccontextmanager
async def talking(relay: Relay, **fields: Any) -> AsyncIterator[Pair]:
    """A pair in the lobby; ``fields`` are for its joins."""
    async with peer(relay) as one, peer(relay) as other:
        for end, peer_id in zip((one, other), _HONEST, strict=True):
            await end.join(peer_id, **fields)
        yield Pair(one, other)


@contextlib.contextmanager
def watched_log(level: int = logging.INFO) -> Iterator[list[Any]]:
    """What is logged that an operator would have to look at, or that could steer a terminal."""
    bad: list[Any] = []

    def look(_: Any, method: str, event: MutableMapping[str, Any]) -> Any:
        steers = any(isinstance(fact, str) and not fact.isprintable() for fact in event.values())
        # Wrong ones are among what strangers send.
        expected = event["event"] == "wrong admin password"
        if steers or (method not in ("debug", "info") and not expected):
            bad.append((method, dict(event), sys.exception()))
        raise structlog.DropEvent

    quiet = structlog.make_filtering_bound_logger(level)
    structlog.configure(processors=[look], wrapper_class=quiet)
    try:
        yield bad
    finally:
        structlog.reset_defaults()


class Run:
    """Strangers, so many at once, while a pair chats and an operator looks on."""

    def __init__(self, relay: Relay, seed: int, pair: Pair, page: Dashboard) -> None:
        self.relay = relay
        self.seed = seed
        self.pair = pair
        self.page = page
        self.sessions: Counter[str] = Counter()
        self._stay = {each for each in relay._sockets if each.conn or each.path == LIVE_PATH}
        self._numbers = itertools.count()
        self._turns = asyncio.Semaphore(0)
        draw = Draw(f"{seed}/links")
        self._links = [
            [draw.link(peer_id, incarnation) for _ in range(20)]
            for peer_id in _IDS
            for incarnation in range(3)
        ]
        self._told = asyncio.Event()

    async def watch(self) -> None:
        """Read what the dashboard is told."""
        while True:
            await self.page.hear()
            self._told.set()

    async def until(self, messages: int) -> None:
        """Until the relay has heard so many in all, and nobody but the pair is left."""
        finished = False

        async def strangers() -> None:
            while self.relay._figures().messages_in < messages:
                number = next(self._numbers)
                await self._one(number)
                if number % 4 == 0:  # the pair is not to be over its rate
                    self._turns.release()

        async def chat() -> None:
            while not finished:
                await self._turns.acquire()
                await self.pair.exchange()

        async with asyncio.TaskGroup() as group:
            group.create_task(chat())
            async with asyncio.TaskGroup() as others:
                for _ in range(AT_ONCE):
                    others.create_task(strangers())
            finished = True
            self._turns.release()  # once more, with nobody else there
        await self._settle()
        while self.relay._rooms.members > 2:
            self._told.clear()
            await self._told.wait()

    async def _settle(self) -> None:
        for held in self.relay._sockets - self._stay:
            await held.wait_closed()
        while len(tasks := self.relay._serving.handler_tasks) > 3:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)

    async def _one(self, number: int) -> None:
        draw = Draw(f"{self.seed}/{number}")
        draw.links = self._links
        kind = draw.choices(("member", "page", "request"), (90, 5, 5))[0]
        match kind:
            case "member":
                pieces = draw.session()
            case "page":
                pieces = draw.page(self.relay._admin._live.ticket())
            case _:
                pieces = draw.request()
        self.sessions[kind] += 1
        loop = asyncio.get_running_loop()
        address = (f"127.0.0.{draw.randrange(2, 12)}", 0)
        _, wire = await loop.create_connection(
            Wire, "127.0.0.1", self.relay.port, family=socket.AF_INET, local_addr=address
        )
        patient = kind == "member" and draw.random() < 0.95
        await wire.run(pieces, draw.choice(_ENDS), patient=patient)

    async def check(self) -> int:
        """That nothing is left of the strangers; the blocks of memory that are in use."""
        relay, rooms, tracking = self.relay, self.relay._rooms, self.relay._rooms.tracking
        assert (rooms.rooms, rooms.members, rooms.connections) == (1, 2, 2)
        assert not [*rooms._strangers, *rooms._away, *rooms._expiring]
        assert len(relay._clients) == 2
        assert len(relay._sockets) == len(relay._keepalive._next) == 3
        assert len(relay._serving.handler_tasks) == 3
        assert relay._from == {"127.0.0.1": 3}
        assert not relay._asking
        assert (relay._admin._live.pages, len(relay._admin._live._open)) == (1, 1)
        for seat in rooms._seated.values():
            assert (seat.waiting, seat.ring, len(seat.flows)) == (0, None, 1)

        assert (tracking._members, tracking._pairs, list(tracking._rooms)) == (2, 1, ["lobby"])
        assert not any(tracking._paths.values())
        assert not tracking._rtts
        status = await api(relay, "mesh-status")
        assert sorted(each["peerId"] for each in status["connections"]) == list(_HONEST)
        for name, value in status["metrics"].items():
            assert value is None or (value >= 0 and math.isfinite(value)), name
        text = (await ask(relay, "/metrics"))[2].decode()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                assert sample.value >= 0, sample
                assert math.isfinite(sample.value), sample

        # What is kept on purpose, up to a bound.
        assert len(tracking._ended) <= 10_000
        assert len(tracking._activity) <= MAX_ACTIVITY
        assert len(tracking._samples) <= MAX_SAMPLES
        assert len(rooms._removed) <= 1_000
        assert len(rooms._joins) <= 65_536
        assert len(rooms._allowances._used) + len(rooms._volumes._used) <= 2 * 65_536
        assert rooms._held == sum(seat.replay_bytes for seat in rooms._seated.values())
        activity = (tracking._activity, tracking._of_source)
        for kept in (tracking._ended, *activity, rooms._removed):
            kept.clear()
        await self._settle()
        gc.collect()
        return sys.getallocatedblocks()


async def test_a_hundred_thousand_messages_and_nothing_is_left_of_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    seed = int(os.environ.get("MESHPEER_FUZZ_SEED") or random.SystemRandom().randrange(10**9))
    print(f"MESHPEER_FUZZ_SEED={seed}")  # where it hangs, there is no exception to say so
    try:
        with watched_log() as bad:
            await run(seed)
        assert not bad
        assert not caplog.records
    except BaseException as exc:
        exc.add_note(f"MESHPEER_FUZZ_SEED={seed}")
        raise


async def run(seed: int) -> None:
    config = RelayConfig(
        port=0,
        seat_timeout=0.5,
        join_rate=1e6,
        join_burst=1_000_000,
        message_rate=300,
        message_burst=600,
    )
    async with (
        Relay(config, authenticator=Whim()) as relay,
        talking(relay, name="honest") as pair,
        dashboard(relay) as page,
        asyncio.TaskGroup() as group,
    ):
        await page.say(type="watch", room="lobby")
        strangers = Run(relay, seed, pair, page)
        watching = group.create_task(strangers.watch())
        await strangers.until(WARM)
        before = await strangers.check()
        await strangers.until(MESSAGES)
        after = await strangers.check()
        assert after - before < SLACK
        watching.cancel()
