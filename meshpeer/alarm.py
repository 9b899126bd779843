"""One timer on the event loop, for shells that serve the next deadline of their core."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

__all__ = ["Alarm"]


class Alarm:
    """Calls ``ring`` at the time it was last set to.

    The loop may ring early by its clock's resolution; the core then does nothing, and asks again.
    """

    __slots__ = ("_at", "_handle", "_ring")

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        # Kept here: uvloop's handle of a time that has passed can't be asked for it.
        self._at: float | None = None
        self._handle: asyncio.Handle | None = None

    def set(self, at: float | None) -> None:
        """Ring at ``at`` by the running loop's clock; None is never."""
        if at == self._at:
            return
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        self._at = at
        if at is not None:
            self._handle = asyncio.get_running_loop().call_at(at, self._rung)

    def _rung(self) -> None:
        self._at = self._handle = None
        self._ring()
