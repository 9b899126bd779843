"""Signalling within one process: the relay's own logic without sockets, with faults on demand.

The bytes of the real protocol pass between the real `Session` and the real `Rooms`, so what holds
here holds over a WebSocket too; that is why this module imports more of the core than others do.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import count
from random import Random
from types import TracebackType
from typing import Final, Self

from meshpeer.alarm import Alarm
from meshpeer.config import MeshConfig, RelayConfig
from meshpeer.core.messages import SignalOut
from meshpeer.core.rooms import Output, Rooms, Send, SendFrame, Shut
from meshpeer.errors import MeshError, SignalingUnavailable
from meshpeer.signaling.client import RelayTransport

__all__ = ["Fault", "MemoryHub", "MemoryTransport", "RandomFaults"]

Fault = Callable[[SignalOut], Iterable[float]]
"""What becomes of a signal: the delay, in seconds, of each copy that is sent.

``()`` loses it, ``(0,)`` sends it as it is, ``(0, 0.2)`` sends it twice, ``(0.2,)`` lets others
overtake it.
"""


@dataclass(frozen=True, slots=True)
class RandomFaults:
    """A `Fault` by chance: each signal is lost, doubled and delayed independently of the others.

    ``drop`` and ``duplicate`` are probabilities, ``delay`` the longest delay in seconds. The same
    ``random`` gives the same faults again.
    """

    random: Random
    drop: float = 0.0
    duplicate: float = 0.0
    delay: float = 0.0

    def __call__(self, signal: SignalOut) -> list[float]:  # noqa: ARG002 - the signature is Fault's
        """The delays of the copies of one signal."""
        if self.random.random() < self.drop:
            return []
        copies = 2 if self.random.random() < self.duplicate else 1
        return [self.random.uniform(0.0, self.delay) for _ in range(copies)]


_HIGH: Final = 256 * 1024
_LOW: Final = 64 * 1024


class _MemoryWire:
    """Both ends of one connection: the client calls it, the hub feeds it."""

    def __init__(
        self,
        *,
        say: Callable[[bytes], None],
        drop: Callable[[], None],
        drained: Callable[[], None],
        max_unread: int,
    ) -> None:
        self._say = say
        self._drop = drop
        self._drained = drained
        self._max_unread = max_unread
        self.full = False
        """More than `_HIGH` bytes are unread; until less than `_LOW` are."""
        self._unread: deque[bytes] = deque()
        self._unread_size = 0
        self._arrived = asyncio.Event()
        self._end: str | None = None

    async def send(self, data: bytes) -> None:
        if self._end is not None:
            raise SignalingUnavailable(self._end)
        self._say(data)

    async def recv(self) -> bytes:
        while not self._unread:
            if self._end is not None:
                raise SignalingUnavailable(self._end)
            self._arrived.clear()
            await self._arrived.wait()
        data = self._unread.popleft()
        self._unread_size -= len(data)
        if self.full and self._unread_size <= _LOW:
            self.full = False
            self._drained()
        return data

    @property
    def room(self) -> int:
        """Bytes of data that it takes until it is full."""
        return _HIGH + 1 - self._unread_size

    def moved(self) -> bool:
        return False

    async def check(self) -> None:
        pass  # what breaks it is told at once

    async def close(self) -> None:
        self._drop()

    async def abort(self) -> None:
        self._drop()

    def cut(self) -> None:
        self.end("the connection was cut", lose_unread=True)
        self._drop()

    def deliver(self, data: bytes) -> bool:
        """False when too much is unread already."""
        if self._unread_size > self._max_unread:
            return False
        self._unread.append(data)
        self._unread_size += len(data)
        self.full = self.full or self._unread_size > _HIGH
        self._arrived.set()
        return True

    def end(self, reason: str, *, lose_unread: bool) -> None:
        """The first reason stays."""
        if self._end is None:
            self._end = reason
        if lose_unread:
            self._unread.clear()
        self._arrived.set()


class MemoryTransport(RelayTransport):
    """A member's way to a `MemoryHub`, made by `MemoryHub.transport`."""

    def __init__(
        self, hub: MemoryHub, dial: Callable[[], _MemoryWire], config: MeshConfig | None
    ) -> None:
        super().__init__(config, service="the memory hub")
        self._hub = hub
        self._dial = dial
        self._wire: _MemoryWire | None = None
        self._blocked = False
        self._delayed: dict[int, asyncio.TimerHandle] = {}
        self._numbers = count()
        self.faults: Fault | None = None
        """What becomes of the signals sent here; None leaves it to `MemoryHub.faults`."""

    def cut(self) -> None:
        """Drop the connection now, as a network does. It is made again by itself."""
        if self._wire is not None:
            self._wire.cut()

    def block(self) -> None:
        """`cut`, and let no connection be made until `unblock`."""
        self._blocked = True
        self.cut()

    def unblock(self) -> None:
        """Let connections be made again; the next try is made when the backoff says so."""
        self._blocked = False

    def send(self, signal: SignalOut) -> None:
        """Send a signal, or what the faults make of it; see `SignalingTransport.send`."""
        faults = self.faults or self._hub.faults
        if faults is None:
            super().send(signal)
            return
        self._check_open()
        for delay in faults(signal):
            if delay <= 0:
                super().send(signal)
            elif len(self._delayed) < self._config.max_pending_signals:
                number = next(self._numbers)
                self._delayed[number] = asyncio.get_running_loop().call_later(
                    delay, self._send_delayed, number, signal
                )

    def _send_delayed(self, number: int, signal: SignalOut) -> None:
        del self._delayed[number]
        try:
            super().send(signal)
        except MeshError as exc:
            # Whoever sent it has its answer already; to lose a signal is what faults are for.
            self._log.debug("delayed signal lost", reason=str(exc))

    async def close(self) -> None:
        """Give the seat up and end; see `SignalingTransport.close`."""
        for handle in self._delayed.values():
            handle.cancel()
        self._delayed.clear()
        await super().close()

    async def _connect(self) -> _MemoryWire:
        if self._blocked or self._hub.blocked:
            raise SignalingUnavailable("no memory hub answers: it is blocked")
        self._wire = self._dial()
        return self._wire


class MemoryHub:
    """A relay in memory, for members of one process and one event loop.

    ``async with`` closes it. Members resume by themselves after each of the faults below.
    """

    def __init__(self, config: RelayConfig | None = None) -> None:
        self._config = config or RelayConfig()
        self._rooms = self._new_rooms()
        self._wires: dict[int, _MemoryWire] = {}
        self._numbers = count(1)
        self._alarm = Alarm(self._tick)
        self._closed = False
        self.blocked = False
        """True while no connection can be made; see `block`."""
        self.faults: Fault | None = None
        """What becomes of the signals of members that have no faults of their own."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def transport(self, config: MeshConfig | None = None) -> MemoryTransport:
        """A transport for one manager."""
        return MemoryTransport(self, self._opened, config)

    def cut(self) -> None:
        """Drop every connection now; the seats are kept and resumed."""
        for wire in list(self._wires.values()):
            wire.cut()

    def block(self) -> None:
        """`cut`, and let no connection be made until `unblock`."""
        self.blocked = True
        self.cut()

    def unblock(self) -> None:
        """Let connections be made again."""
        self.blocked = False

    def restart(self) -> None:
        """Forget every seat without a word, as a relay does that is killed and started again."""
        wires, self._wires = self._wires, {}
        self._rooms = self._new_rooms()
        for wire in wires.values():
            wire.end("the memory hub was killed", lose_unread=True)
        self._alarm.set(self._rooms.next_deadline())

    async def close(self) -> None:
        """Say goodbye to all; no connection can be made from now on, and no timer is left."""
        if not self._closed:
            self._closed = self.blocked = True
            self._do(self._rooms.shut_down(asyncio.get_running_loop().time()))

    # --- the relay's shell, without sockets ----------------------------------------------------

    def _new_rooms(self) -> Rooms:
        return Rooms(self._config, new_token=lambda: secrets.token_urlsafe(32))

    def _opened(self) -> _MemoryWire:
        conn = next(self._numbers)
        wire = self._wires[conn] = _MemoryWire(
            say=partial(self._received, conn),
            drop=partial(self._dropped, conn),
            drained=partial(self._drained, conn),
            max_unread=self._config.max_unread,
        )
        self._rooms.opened(conn, asyncio.get_running_loop().time(), "memory")
        self._alarm.set(self._rooms.next_deadline())
        return wire

    def _received(self, conn: int, data: bytes) -> None:
        self._do(self._rooms.received(conn, data, asyncio.get_running_loop().time()))

    def _dropped(self, conn: int) -> None:
        if (wire := self._wires.pop(conn, None)) is not None:
            wire.end("the connection is closed", lose_unread=False)
            self._do(self._rooms.dropped(conn, asyncio.get_running_loop().time()))

    def _drained(self, conn: int) -> None:
        now = asyncio.get_running_loop().time()
        while (wire := self._wires.get(conn)) is not None and not wire.full:
            if not (outputs := self._rooms.drained(conn, wire.room, now)):
                break
            self._do(outputs)

    def _tick(self) -> None:
        self._do(self._rooms.tick(asyncio.get_running_loop().time()))

    def _do(self, outputs: list[Output]) -> None:
        for output in outputs:
            wire = self._wires.get(output.conn)
            if wire is None:
                continue  # cut off a moment ago for what it had left unread
            if isinstance(output, Shut):
                del self._wires[output.conn]
                wire.end(f"the memory hub shut the connection ({output.reason})", lose_unread=False)
            elif isinstance(output, Send | SendFrame):
                self._deliver(output.conn, wire, output.data, outputs)
            # The members of a hub are one process: a `Pause` would protect nobody.
        self._alarm.set(self._rooms.next_deadline())

    def _deliver(self, conn: int, wire: _MemoryWire, data: bytes, outputs: list[Output]) -> None:
        if wire.deliver(data):
            if wire.full:
                self._rooms.full(conn)
        else:
            wire.end("too much was left unread", lose_unread=True)
            del self._wires[conn]
            # What follows from that joins the end of what is being done.
            outputs += self._rooms.dropped(conn, asyncio.get_running_loop().time())
