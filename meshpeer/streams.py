"""Async iterators that are fed from the event loop, and a bell to wait at."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Generic, TypeVar

__all__ = ["Bell", "Stream", "Waiting"]

T = TypeVar("T")
Waiting = deque[tuple[T, Callable[[], None] | None]]
"""The items of a stream, each with what is to be called when it leaves."""


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
    ``__anext__`` takes nothing. The bound is kept by who feeds it.
    """

    def __init__(self) -> None:
        self.waiting: Waiting[T] = deque()
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
                raise self._error
            if self._ended:
                raise StopAsyncIteration
            await self._bell.wait()
        return self.take()

    def take(self) -> T:
        """Take the next item out. IndexError when there is none."""
        item, taken = self.waiting.popleft()
        if taken is not None:
            taken()
        return item

    def put(self, item: T, taken: Callable[[], None] | None = None) -> None:
        """Add an item; ``taken`` is called when it leaves. Not to be called after the end."""
        self.waiting.append((item, taken))
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

    async def aclose(self) -> None:
        """Stop: nothing more is collected for this iterator, and what waits is dropped."""
        self.end()
        while self.waiting:
            self.take()
