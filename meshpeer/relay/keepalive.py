"""Which sockets still live: one timer for all of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from meshpeer.alarm import Alarm
from meshpeer.relay.sockets import Socket

__all__ = ["Keepalive"]

_AT_ONCE: Final = 100
"""Sockets that are looked at, before others have their turn."""


class Keepalive:
    """Pings sockets that say nothing for ``interval`` seconds, and cuts off those that then say
    nothing for as long again. It takes up to about a quarter of the interval longer to see it."""

    def __init__(self, interval: float, now: Callable[[], float]) -> None:
        self._interval = interval
        self._now = now
        # Each is looked at again after the same time, so the first is always the next.
        self._next: OrderedDict[Socket, float] = OrderedDict()
        self._alarm = Alarm(self._ring)

    def add(self, socket: Socket) -> None:
        """Look after it from now on."""
        self._next[socket] = self._now() + self._interval / 4
        if len(self._next) == 1:
            self._set()

    def remove(self, socket: Socket) -> None:
        """No more, if it was looked after."""
        # Whoever comes next has its time then; the alarm may ring for nobody.
        if self._next.pop(socket, None) is not None and not self._next:
            self._set()

    def _set(self) -> None:
        first = next(iter(self._next.values()), None)
        # Not for each by itself: of thousands, many are due a little later.
        self._alarm.set(None if first is None else first + self._interval / 100)

    def _ring(self) -> None:
        now = self._now()
        for _ in range(_AT_ONCE):
            socket, at = next(iter(self._next.items()), (None, now))
            if socket is None or at > now:
                break
            self._next[socket] = now + self._interval / 4
            self._next.move_to_end(socket)
            self._look_at(socket, now)
        self._set()

    def _look_at(self, socket: Socket, now: float) -> None:
        if socket.is_waiting:
            socket.heard_at = now  # it may have said something that we have not read
        silent = now - socket.heard_at
        if silent >= 2 * self._interval:
            socket.transport.abort()
        elif silent >= self._interval and not socket.pinged and socket.is_open:
            socket.ask()
