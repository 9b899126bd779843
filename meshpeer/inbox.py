"""What has arrived and the application has yet to take: the last link of the credit."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterable
from functools import partial
from weakref import finalize, ref

from msgspec import Struct

from meshpeer.core.delivery import Received
from meshpeer.core.events import Path
from meshpeer.errors import MeshError, SlowReader
from meshpeer.peer import Message, Peer
from meshpeer.streams import Stream

__all__ = ["Arrived", "Inbox"]


class Arrived(Struct, eq=False):
    """A message on its way to the application."""

    peer: Peer
    received: Received
    path: Path
    at: float
    """Seconds since the epoch, by the clock on the wall."""
    readers: int = 0
    """How many have yet to take it."""


class Inbox:
    """Hands messages to their readers, and tells what all of them have taken.

    What nobody has taken counts against its sender's credit, so no peer that is there can make this
    grow. Of those that have left at most ``limit`` bytes are kept in all.
    """

    def __init__(self, limit: int, given_back: Callable[[Peer, Received], None]) -> None:
        self._limit = limit
        self._given_back = given_back
        self._readers: list[tuple[ref[Stream[Message]], str | None]] = []
        self._unclaimed: deque[Arrived] = deque()
        """What came before anybody asked for it."""
        self._unread: Counter[Peer] = Counter()
        """Bytes from each."""
        self._of_left = 0
        """Bytes from those that have left."""

    def reader(self, channel: str | None) -> Stream[Message]:
        """A stream of what nobody has asked for yet, then of everything from now on."""
        stream: Stream[Message] = Stream(self._taken)
        entry = (ref(stream), channel)
        self._readers.append(entry)
        # Who stops reading without a word must not hold the senders back.
        loop = asyncio.get_running_loop()
        gone = partial(self._abandoned, loop, entry, stream.waiting)
        finalize(stream, gone).atexit = False
        unclaimed, self._unclaimed = self._unclaimed, deque()
        for arrived in unclaimed:
            if channel in (None, arrived.received.channel):
                arrived.readers = 1
                stream.put(arrived)
            else:
                self._unclaimed.append(arrived)
        return stream

    def deliver(self, peer: Peer, path: Path, messages: Iterable[Received], at: float) -> None:
        """Hand messages of one peer to everybody who reads their channels."""
        channel: str | None = None
        readers: list[Stream[Message]] = []
        charges = 0
        for received in messages:
            if received.channel != channel:
                channel = received.channel
                readers = self._readers_of(channel)
            charges += received.charge
            arrived = Arrived(peer, received, path, at, len(readers))
            for stream in readers:
                stream.put(arrived)
            if not readers:
                self._unclaimed.append(arrived)
        self._unread[peer] += charges

    def _readers_of(self, channel: str) -> list[Stream[Message]]:
        return [
            stream
            for reader, wanted in self._readers
            if (wanted is None or wanted == channel)
            and (stream := reader()) is not None
            and not stream.ended
        ]

    def peer_left(self, peer: Peer) -> None:
        """Nothing more comes from this peer; what did can still be read, within the limit."""
        self._of_left += self._unread[peer]
        if self._of_left <= self._limit:
            return
        kept: deque[Arrived] = deque()
        for arrived in self._unclaimed:
            if self._of_left > self._limit and arrived.peer.closed_reason is not None:
                self._settle(arrived)
            else:
                kept.append(arrived)
        self._unclaimed = kept
        if self._of_left > self._limit:
            error = SlowReader(
                f"more than {self._limit} bytes from peers that have left were not read "
                "(MeshConfig.receive_window); read faster"
            )
            for stream in self._streams():
                if len(stream):
                    stream.end(error)

    def end(self, error: MeshError | None) -> None:
        """The manager is closed: every reader ends after what waits."""
        for stream in self._streams():
            stream.end(error)

    def _streams(self) -> list[Stream[Message]]:
        return [stream for reader, _ in self._readers if (stream := reader()) is not None]

    def _taken(self, arrived: Arrived) -> Message:
        self._release(arrived)
        received = arrived.received
        # Decoded for each reader, so that none shares its objects with another.
        return Message(
            arrived.peer,
            received.value(),
            received.channel,
            arrived.path,
            arrived.at,
            received.request,
        )

    def _release(self, arrived: Arrived) -> None:
        """One of its readers is done with it."""
        arrived.readers -= 1
        if arrived.readers <= 0:
            self._settle(arrived)

    def _settle(self, arrived: Arrived) -> None:
        peer, charge = arrived.peer, arrived.received.charge
        self._unread[peer] -= charge
        if not self._unread[peer]:
            del self._unread[peer]
        if peer.closed_reason is not None:
            self._of_left -= charge
        # Of one that has left as well: the same process may have come back, and go on.
        self._given_back(peer, arrived.received)

    def _abandoned(
        self,
        loop: asyncio.AbstractEventLoop,
        entry: tuple[ref[Stream[Message]], str | None],
        waiting: deque[Arrived],
    ) -> None:
        """The reader of a stream is gone: what waits counts as taken."""

        def settle() -> None:
            self._readers.remove(entry)
            for arrived in waiting:
                self._release(arrived)

        # Garbage collection may come at any moment, so this waits for its turn.
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle)
