"""Async iterators that are fed from the event loop, and a bell to wait at."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any, Generic, TypeVar

__all__ = ["Bell", "Stream"]

T = TypeVar("T")


class Bell:
    """Wakes everybody who waits. Who waits looks for himself what has changed."""

    __slots__ = ("_waiters",)

    def __init__(self) -> None:
        self._waiters: set[asyncio.Future[None]] = set()

    def ring(self) -> None:
        """Wake all that wait now."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self) -> None:
        """Wait for the next `ring`. Cancelling it leaves nothing behind."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)


class Stream(AsyncIterator[T], Generic[T]):
    """What `PeerManager.messages`, `PeerManager.events` and `Channel` iterate over.

    Every item that was put in since the stream was made comes out once, in order. A cancelled
    ``__anext__`` takes nothing. The bound is kept by who feeds it: ``taken(item)`` is called for
    each item that leaves, and makes of it what the reader gets.
    """

    def __init__(self, taken: Callable[[Any], T] | None = None) -> None:
        self.waiting: deque[Any] = deque()
        self._taken = taken
        self._bell = Bell()
        self._ended = False
        self._error: BaseException | None = None

    def __len__(self) -> int:
        """How many items wait."""
        return len(self.waiting)

    def __aiter__(self) -> Stream[T]:
        return self

    async def __anext__(self) -> T:
        while not self.waiting:
            if self._error is not None:
                raise self._error.with_traceback(None)
            if self._ended:
                raise StopAsyncIteration
            await self._bell.wait()
        return self.take()

    def take(self) -> T:
        """Take the next item out. IndexError when there is none."""
        item = self.waiting.popleft()
        value: T = item if self._taken is None else self._taken(item)
        return value

    def put(self, item: Any) -> None:
        """Add an item. Not to be called after the end."""
        self.waiting.append(item)
        self._bell.ring()

    @property
    def ended(self) -> bool:
        """Whether there will be no more items than those that wait."""
        return self._ended

    def end(self, error: BaseException | None = None) -> None:
        """No more items: iteration stops, or raises ``error``, after those that wait."""
        if not self._ended:
            self._ended, self._error = True, error
            self._bell.ring()

    def drop(self) -> None:
        """End at once: what waits is not read any more."""
        self.end()
        while self.waiting:
            self.take()

    async def aclose(self) -> None:
        """Stop: nothing more is collected for this iterator, and what waits is dropped."""
        self.drop()
