"""Tells events to those who iterate over them and to those who gave a callback."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

from meshpeer.core.events import Event
from meshpeer.errors import SlowReader
from meshpeer.log import Log
from meshpeer.streams import Stream

__all__ = ["Announcer", "Callback"]

Callback = Callable[[Any], object]


class Announcer:
    """Who wants to know, and what they have yet to be told: at most ``limit`` events each."""

    def __init__(self, limit: int, log: Log) -> None:
        self._limit = limit
        self._log = log
        self._watchers: WeakSet[Stream[Event]] = WeakSet()
        self._callbacks: dict[Stream[Event], tuple[type[Event], Callback]] = {}
        self._group: asyncio.TaskGroup | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended = False

    def tell(self, event: Event) -> None:
        """Tell everybody, in the order of the calls."""
        for stream, (kind, _) in self._callbacks.items():
            if isinstance(event, kind):
                self._offer(stream, event)
        for stream in list(self._watchers):
            self._offer(stream, event)

    def end(self) -> None:
        """There are no more events; what was told is still heard."""
        self._ended = True
        for stream in [*self._watchers, *self._callbacks]:
            stream.end()

    def events(self) -> Stream[Event]:
        """A stream of every event from now on."""
        stream: Stream[Event] = Stream()
        if self._ended:
            stream.end()
        else:
            self._watchers.add(stream)
        return stream

    def on(self, kind: type[Event], callback: Callback) -> Callable[[], None]:
        """Call ``callback`` with every event of this kind. Returns what ends it."""
        stream: Stream[Event] = Stream()
        if not self._ended:
            self._callbacks[stream] = (kind, callback)
            self._start(stream, callback)

        def off() -> None:
            self._callbacks.pop(stream, None)
            stream.drop()

        return off

    async def run(self, until: Callable[[asyncio.Timeout], Any]) -> None:
        """Call callbacks until ``until`` has returned and all are told.

        ``until`` is given a deadline to set for those that take their time at the end.
        """
        scope = asyncio.timeout(None)
        try:
            async with scope, asyncio.TaskGroup() as self._group:
                for stream, (_, callback) in self._callbacks.items():
                    self._start(stream, callback)
                await until(scope)
        except TimeoutError:
            if not scope.expired():
                raise
            self._log.warning("callbacks were cancelled: they did not return in time")
        finally:
            self._group = None

    def runs_here(self) -> bool:
        """Whether the current task is one that calls a callback."""
        return asyncio.current_task() in self._tasks

    def _start(self, stream: Stream[Event], callback: Callback) -> None:
        if self._group is not None:
            task = self._group.create_task(self._call(stream, callback))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _call(self, stream: Stream[Event], callback: Callback) -> None:
        try:
            async for event in stream:
                await self._call_once(callback, event)
        except SlowReader as exc:
            self._log.warning("a callback is not called any more", error=str(exc))

    async def _call_once(self, callback: Callback, event: Event) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            result = callback(event)
            if inspect.isawaitable(result):
                await result
        except asyncio.CancelledError:
            if task.cancelling():
                raise
            self._log.exception("a callback was cancelled", event_type=type(event).__name__)
        except Exception:  # noqa: BLE001 - the program's own; the mesh goes on
            self._log.exception("a callback raised", event_type=type(event).__name__)

    def _offer(self, stream: Stream[Event], event: Event) -> None:
        if stream.ended:
            return
        if len(stream) < self._limit:
            stream.put(event)
            return
        text = (
            f"{self._limit} events were not read (MeshConfig.max_pending_events); "
            "read faster, or ask for fewer"
        )
        stream.end(SlowReader(text))
        self._log.warning("a reader of events was ended", behind=self._limit)
