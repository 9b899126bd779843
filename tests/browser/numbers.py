"""Numbered messages both ways between a page and Python; the page's part is in `page/peer.js`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from meshpeer import Message, Peer, PeerManager
from tests.browser.page import PagePeer

__all__ = ["Arrived", "Numbers", "Side", "Streams"]

Side = Literal["python", "page"]

_INTERVAL = 0.01
"""Seconds between two messages."""
_LONGEST = 20.0
"""Seconds after the end of a stream in which what is under way must have arrived."""


@dataclass
class Arrived:
    """How a stream fared."""

    arrivals: list[float]
    """When each message arrived, in seconds since the epoch."""
    lost: int
    repeated: int
    reordered: int

    def first_after(self, at: float) -> float:
        """When the first arrived that did so after this."""
        return next(arrival for arrival in self.arrivals if arrival > at)


@dataclass
class Numbers:
    """What arrived of a stream of messages 0, 1, 2, …: exactly once and in order, or not."""

    arrivals: list[float] = field(default_factory=list)
    repeated: int = 0
    reordered: int = 0
    next: int = 0
    missing: set[int] = field(default_factory=set)

    def take(self, number: int) -> None:
        """A message arrived."""
        self.arrivals.append(time.time())
        if number >= self.next:
            self.missing.update(range(self.next, number))
            self.next = number + 1
        elif number in self.missing:
            self.missing.discard(number)
            self.reordered += 1
        else:
            self.repeated += 1

    def report(self) -> dict[str, Any]:
        """The same as the page's."""
        return {
            "arrivals": self.arrivals,
            "next": self.next,
            "lost": len(self.missing),
            "repeated": self.repeated,
            "reordered": self.reordered,
        }


class Streams:
    """One stream each way. `run` begins them, `end` ends them."""

    def __init__(self, page: PagePeer, mesh: PeerManager, peer: Peer) -> None:
        self._page = page
        self._own_id = mesh.peer_id
        self._peer = peer
        self._sent = 0
        self._numbers = Numbers()
        self._arrived = asyncio.Condition()
        self._stopping = asyncio.Event()
        self._sending: asyncio.Task[None]

    @classmethod
    @asynccontextmanager
    async def run(cls, page: PagePeer, mesh: PeerManager, peer: Peer) -> AsyncIterator[Streams]:
        """Both streams, from the moment when some messages have arrived on both sides."""
        self = cls(page, mesh, peer)
        async with asyncio.TaskGroup() as tasks:
            receiving = tasks.create_task(self._receive(mesh.messages()))
            self._sending = tasks.create_task(self._send())
            try:
                await page.stream(self._own_id, _INTERVAL)
                await self.more(20)
                yield self
            finally:
                receiving.cancel()
                self._sending.cancel()

    async def more(self, count: int) -> None:
        """Wait until so many more messages have arrived on both sides."""
        there = len((await self._page.numbers(self._own_id))["arrivals"])
        here = len(self._numbers.arrivals)
        await asyncio.gather(
            self._page.reached(self._own_id, there + count), self._reached(here + count)
        )

    async def end(self) -> dict[Side, Arrived]:
        """Stop both, and tell what arrived at Python (``python``) and at the page (``page``)."""
        from_page = await self._page.stop(self._own_id)
        self._stopping.set()
        await self._sending
        # What has not arrived by then is lost; the reports say so.
        with suppress(TimeoutError):
            async with asyncio.timeout(_LONGEST):
                await asyncio.gather(
                    self._page.reached(self._own_id, self._sent), self._reached(from_page)
                )
        here, there = self._numbers.report(), await self._page.numbers(self._own_id)
        here["lost"] += from_page - here.pop("next")
        there["lost"] += self._sent - there.pop("next")
        return {"python": Arrived(**here), "page": Arrived(**there)}

    async def _reached(self, count: int) -> None:
        async with self._arrived:
            await self._arrived.wait_for(lambda: len(self._numbers.arrivals) >= count)

    async def _send(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while not self._stopping.is_set():
            await self._peer.send(str(self._sent))
            self._sent += 1
            due += _INTERVAL
            await asyncio.sleep(due - loop.time())  # the pace of the stream

    async def _receive(self, messages: AsyncIterator[Message]) -> None:
        async for message in messages:
            async with self._arrived:
                self._numbers.take(int(message.data))
                self._arrived.notify_all()
