"""How many connection attempts of one event loop are under way at the same time.

An attempt costs milliseconds of computing on each side. Hundreds at once all take longer than their
deadline, fail together, and are all made again: nothing gets done. One after another, a
few at a time, they all succeed.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

__all__ = ["Turn"]

_AT_ONCE = 32
_LONGEST = 2.0
"""Seconds; an attempt that takes longer waits for somebody else, and holds nobody up any more."""


@dataclass(slots=True)
class _Gate:
    slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_ONCE))
    users: int = 0
    """Turns that wait or are taken. Without any the gate is forgotten, and its event loop too."""


_gates: dict[asyncio.AbstractEventLoop, _Gate] = {}


class Turn:
    """The turn of one attempt. Only who dials waits for one, so two sides never wait for each
    other."""

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop

    async def take(self) -> None:
        """Wait for it. Cancelling it takes none."""
        self._loop = asyncio.get_running_loop()
        gate = _gates.setdefault(self._loop, _Gate())
        gate.users += 1
        try:
            await gate.slots.acquire()
        except asyncio.CancelledError:
            self._leave(gate)
            raise
        self._timer = self._loop.call_later(_LONGEST, self.over)

    def over(self) -> None:
        """The next one may begin. May be called at any time, and more than once."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            gate = _gates[self._loop]
            gate.slots.release()
            self._leave(gate)

    def _leave(self, gate: _Gate) -> None:
        gate.users -= 1
        if not gate.users:
            del _gates[self._loop]
