"""What thousands of clients do to a relay: fill it, join it, signal, chat, come back, flood it."""

from __future__ import annotations

import asyncio
import itertools
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final

from meshpeer.core.forward import encode_forward
from meshpeer.core.messages import (
    VERSION,
    Candidates,
    IceCandidate,
    Join,
    MemberJoined,
    MemberLeft,
    Welcome,
    decode_relay,
    encode,
)
from tests.bench.sockets import SERVICES, Client, Crowd, Hear, Service, frame, raise_limit
from tests.bench.worker import Control

__all__ = ["flood", "load"]

_AT_ONCE: Final = 50
"""Clients that connect at the same time: below the backlog of a listening socket."""
_ROOM: Final = 10
_WAIT: Final = 10.0
"""Seconds in which what is still on its way has to arrive."""
_PACE: Final = 0.001
"""Seconds between two looks at what is to be sent."""
_STAMP: Final = 17
"""Characters of a time."""


def _body(at: float = 0.0) -> bytes:
    """A signal as there are most of: a candidate. It ends with the time, that of being sent."""
    candidate = "candidate:1 1 udp 2130706431 192.168.178.33 54321 typ host generation 0 ufrag ab12"
    body = encode(Candidates([IceCandidate(candidate, sdp_mid="0", sdp_m_line_index=0)]))
    return body[:-1] + b',"at":"%0*.6f"}' % (_STAMP, at)


def _spread(values: Sequence[float]) -> dict[str, float]:
    """Milliseconds."""
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {"p50": 1e3 * cuts[49], "p99": 1e3 * cuts[98], "max": 1e3 * max(values)}


class _Signals:
    """Signals from one client to another, by pairs; the time that each took."""

    def __init__(self, service: Service, pairs: Sequence[tuple[Client, Client]]) -> None:
        self._pairs = pairs
        self.sent = 0
        self.taken: list[float] = []
        self.arrived = asyncio.Event()
        # A frame of which only the time differs, in front of what follows it.
        frames = [service.signal(to.peer_id, _body()) for _, to in pairs]
        ends = [data.rindex(b'"at":"') + 6 for data in frames]
        self._heads = [data[:end] for data, end in zip(frames, ends, strict=True)]
        self._tail = frames[0][ends[0] + _STAMP :]

    def send(self, number: int) -> None:
        """One signal, of the pair of that number."""
        which = number % len(self._pairs)
        stamp = b"%0*.6f" % (_STAMP, time.perf_counter())
        self._pairs[which][0].write(self._heads[which] + stamp + self._tail)
        self.sent += 1

    def heard(self, data: bytes) -> None:
        """A signal arrived."""
        at = data.rindex(b'"at":"') + 6
        self.taken.append(time.perf_counter() - float(data[at : at + _STAMP]))
        if len(self.taken) == self.sent:
            self.arrived.set()

    async def all_there(self) -> None:
        """Wait for the last. Raises `TimeoutError`."""
        async with asyncio.timeout(_WAIT):
            while len(self.taken) < self.sent:
                self.arrived.clear()
                await self.arrived.wait()


class _Load:
    """Clients; told by the harness what to do, by the names of the methods."""

    def __init__(self, crowd: Crowd) -> None:
        self._crowd = crowd
        self._service = crowd.service
        self._on: Callable[[Client, bytes], None] | None = None
        """What hears all that members are told."""
        self._all: list[Client] = []

    def _heard(self, client: Client, data: bytes) -> None:
        if self._on is not None:
            self._on(client, data)

    # --- members ---------------------------------------------------------------------------------

    async def fill(self, *, room: str, count: int, in_each: int = _ROOM) -> None:
        """``count`` members stay, ``in_each`` of them in a room."""
        for begin in range(0, count, _AT_ONCE):
            async with asyncio.TaskGroup() as entering:
                made = [
                    entering.create_task(
                        self._crowd.enter(f"{room} {n // in_each}", f"{room}{n}", self._heard)
                    )
                    for n in range(begin, min(begin + _AT_ONCE, count))
                ]
            self._all += (task.result()[0] for task in made)
        # What joined last is still being told; a client acknowledges the rest after a while.
        await asyncio.sleep(0.5)
        for client in self._all:
            self._service.acknowledge(client)
        self._crowd.check()

    async def empty(self) -> None:
        """Everybody leaves."""
        for begin in range(0, len(self._all), _AT_ONCE):
            async with asyncio.TaskGroup() as leaving:
                for client in self._all[begin : begin + _AT_ONCE]:
                    leaving.create_task(self._crowd.leave(client))
        self._all.clear()

    async def stay(self, *, seconds: float) -> None:
        """Say nothing for so long."""
        await asyncio.sleep(seconds)
        self._crowd.check()

    # --- joins -----------------------------------------------------------------------------------

    async def join(
        self, *, rate: float, seconds: float, room: str = "room", in_each: int = _ROOM
    ) -> dict[str, float]:
        """So many joins a second, whether or not those before are done.

        The time of a join is from the moment it was due until the member knows who else is there
        and all of them know it.
        """
        count = int(rate * seconds)
        loop = asyncio.get_running_loop()
        due: dict[str, float] = {}
        others: dict[str, int] = {}
        told: Counter[str] = Counter()
        taken: list[float] = []
        late: list[float] = []
        done = loop.create_future()

        def look(peer_id: str) -> None:
            if told[peer_id] == others.get(peer_id):
                taken.append(loop.time() - due[peer_id])
                if len(taken) == count:
                    done.set_result(None)

        def heard(client: Client, data: bytes) -> None:
            if data.startswith(b'{"type":"joined"'):
                message = decode_relay(data)
                assert isinstance(message, MemberJoined)
                told[message.member.peer_id] += 1
                look(message.member.peer_id)

        async def enter(number: int) -> None:
            peer_id = f"{room}{number}"
            client, answer = await self._crowd.enter(f"{room} {number // in_each}", peer_id, heard)
            self._all.append(client)
            others[peer_id] = 0
            if answer.startswith(b'{"type":"welcome"'):
                welcome = decode_relay(answer)
                assert isinstance(welcome, Welcome)
                others[peer_id] = len(welcome.members)
            look(peer_id)

        began = loop.time() + 0.01
        async with asyncio.TaskGroup() as entering:
            for number in range(count):
                at = due[f"{room}{number}"] = began + number / rate
                if (wait := at - loop.time()) > 0:
                    await asyncio.sleep(wait)
                late.append(loop.time() - at)
                entering.create_task(enter(number))
        async with asyncio.timeout(_WAIT):
            await done
        ended = loop.time()
        self._crowd.check()
        return {
            **_spread(taken),
            "rate": count / max(ended - began, seconds),
            "late": _spread(late)["p99"],
        }

    # --- signals ---------------------------------------------------------------------------------

    def _pairs(self, count: int) -> list[tuple[Client, Client]]:
        """Pairs of members, spread over all rooms."""
        rooms = len(self._all) // _ROOM
        found = []
        beside: Counter[int] = Counter()
        for number in range(count):
            room = number * rooms // count
            first = room * _ROOM + 2 * beside[room]
            beside[room] += 1
            found.append((self._all[first], self._all[first + 1]))
        return found

    def _listen(self, signals: _Signals) -> None:
        def heard(client: Client, data: bytes) -> None:
            if self._service.is_signal(data):
                signals.heard(data)

        self._on = heard

    async def most_signals(self, *, pairs: int, window: int, seconds: float) -> dict[str, float]:
        """As many as go through, with ``window`` of each pair on their way."""
        signals = _Signals(self._service, chosen := self._pairs(pairs))
        number = {to: which for which, (_, to) in enumerate(chosen)}
        going = True

        def heard(client: Client, data: bytes) -> None:
            if self._service.is_signal(data):
                signals.heard(data)
                if going:
                    signals.send(number[client])

        self._on = heard
        for which in range(pairs * window):
            signals.send(which)
        await asyncio.sleep(seconds / 5)
        before, began = len(signals.taken), time.perf_counter()
        await asyncio.sleep(seconds)
        rate = (len(signals.taken) - before) / (time.perf_counter() - began)
        going = False
        await signals.all_there()
        self._crowd.check()
        return {"rate": rate, "sent": signals.sent, **_spread(signals.taken[before:])}

    async def signals_at(self, *, pairs: int, rate: float, seconds: float) -> dict[str, float]:
        """So many a second, whatever arrives."""
        return await self._paced(_Signals(self._service, self._pairs(pairs)), rate, seconds)

    async def chat(self, *, rate: float, seconds: float) -> dict[str, float]:
        """Every member to the next one in its room, so many a second of each."""
        pairs: list[tuple[Client, Client]] = []
        for begin in range(0, len(self._all), _ROOM):
            room = self._all[begin : begin + _ROOM]
            pairs += zip(room, room[1:] + room[:1], strict=True)
        return await self._paced(_Signals(self._service, pairs), rate * len(pairs), seconds)

    async def _paced(self, signals: _Signals, rate: float, seconds: float) -> dict[str, float]:
        self._listen(signals)
        began = time.perf_counter()
        while (past := time.perf_counter() - began) < seconds:
            for number in range(signals.sent, int(past * rate)):
                signals.send(number)
            await asyncio.sleep(_PACE)
        await signals.all_there()
        self._crowd.check()
        return {"sent": signals.sent, **_spread(signals.taken)}

    # --- coming back -----------------------------------------------------------------------------

    async def come_back(self, *, times: int) -> dict[str, Any]:
        """The first member leaves its room, that of all, and comes back: seconds and messages."""
        loop = asyncio.get_running_loop()
        member = self._all[0]
        room = f"{member.peer_id.rstrip('0')} 0"
        told: Counter[type] = Counter()
        all_told = asyncio.Event()
        heard = 0

        def hear(client: Client, data: bytes) -> None:
            nonlocal heard
            heard += 1
            kind = type(decode_relay(data))
            told[kind] += 1
            if told[kind] == len(self._all) - 1:
                all_told.set()

        async def until_told(kind: type) -> None:
            async with asyncio.timeout(_WAIT):
                while told[kind] < len(self._all) - 1:
                    all_told.clear()
                    await all_told.wait()

        self._on = hear
        taken, messages = [], []
        for _ in range(times):
            told.clear()
            heard = 0
            began = loop.time()
            leaving = asyncio.create_task(self._crowd.leave(member))
            await until_told(MemberLeft)
            gone = loop.time() - began
            await leaving
            began = loop.time()
            member, answer = await self._crowd.enter(room, member.peer_id, self._heard)
            welcome = decode_relay(answer)
            assert isinstance(welcome, Welcome)
            assert len(welcome.members) == len(self._all) - 1
            await until_told(MemberJoined)
            taken.append(gone + loop.time() - began)
            messages.append(heard + 1)
        self._crowd.check()
        return {"seconds": taken, "messages": messages}


async def load(control: Control, *, url: str, service: str = "meshpeer", sockets: int = 0) -> None:
    """Clients, and what they are asked to do: lists of a name and settings."""
    raise_limit(sockets)
    crowd = _Load(Crowd(url, SERVICES[service]()))
    while (call := await control.receive()) is not None:
        name, settings = call
        control.tell(await getattr(crowd, name)(**settings))


# --- a flood -------------------------------------------------------------------------------------

_CHUNK: Final = 64 * 1024
"""Bytes that are written at once."""
_NICE: Final = 10


class _Flooder(Client):
    """Writes as much as goes out, the same again and again, until it is shut out or stopped."""

    def __init__(self, peer_id: str, request: bytes, first: bytes, hear: Hear) -> None:
        super().__init__(peer_id, request, first, hear)
        self._ready = asyncio.Event()
        self._ready.set()

    def start(self, chunk: bytes) -> None:
        """Begin."""
        self._chunk = chunk
        self.transport.set_write_buffer_limits(_CHUNK)
        self.writing = asyncio.create_task(self._write())

    async def _write(self) -> None:
        while not self.gone.done():
            await self._ready.wait()
            self.transport.write(self._chunk)
            await asyncio.sleep(0)

    def pause_writing(self) -> None:
        self._ready.clear()

    def resume_writing(self) -> None:
        self._ready.set()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._ready.set()


_SINK: Final = "sink"


def _signal_flood() -> bytes:
    return Service().signal(_SINK, b'{"type":"dial"}')


def _data_flood(size: int) -> bytes:
    return frame(encode_forward(_SINK, f"bench-{_SINK}", bytes(size)), 2)


_FLOODS: Final = {
    "signals": _signal_flood(),
    "short data": _data_flood(64),
    "long data": _data_flood(16 * 1024),
}


async def flood(control: Control, *, url: str, room: str, kind: str) -> None:
    """A member that sends another as much as it can, and comes back when it is shut out.

    Asked for by the harness: true begins, false ends and tells what came of it.
    """
    # It must not take the CPU of those who measure.
    os.nice(_NICE)
    one = _FLOODS[kind]
    chunk = one * max(1, _CHUNK // len(one))
    arrived = shut = 0

    def hear(client: Client, data: bytes) -> None:
        nonlocal arrived
        arrived += 1

    crowd = Crowd(url, Service())
    await crowd.enter(room, _SINK, hear)
    token: str | None = None
    attempts = itertools.count()

    async def again() -> None:
        nonlocal shut, token
        for attempt in attempts:
            join = Join(
                version=VERSION,
                room=room,
                peer_id="flooder",
                incarnation="bench-flooder",
                token=token,
                attempt=attempt,
            )
            flooder, answer = await crowd.enter(
                room, "flooder", first=frame(encode(join)), kind=_Flooder
            )
            welcome = decode_relay(answer)
            assert isinstance(welcome, Welcome)
            assert isinstance(flooder, _Flooder)
            token = welcome.token
            flooder.start(chunk)
            try:
                await flooder.writing
            finally:
                flooder.writing.cancel()
                flooder.transport.abort()
            shut += 1

    while (begin := await control.receive()) is not None:
        assert begin
        flooding = asyncio.create_task(again())
        control.tell("begun")
        stop = asyncio.create_task(control.receive())
        await asyncio.wait([flooding, stop], return_when=asyncio.FIRST_COMPLETED)
        if flooding.done():
            stop.cancel()
            await flooding  # raises
        flooding.cancel()
        await asyncio.wait([flooding])
        control.tell({"arrived": arrived, "shut": shut})
