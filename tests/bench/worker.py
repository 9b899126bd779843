"""The process that measures: one task, on one kind of event loop, and then it ends.

The harness starts ``python -m tests.bench.worker TASK LOOP SETTINGS`` and talks to it in lines of
JSON on standard input and output.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import json
import sys
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self

import psutil  # type: ignore[import-untyped]

__all__ = ["Control", "MemoryWatch", "Task", "rss"]

_LOOK_EVERY = 0.05
"""Seconds between two looks at the memory."""


class Control:
    """The line to the harness."""

    def __init__(self, lines: asyncio.StreamReader) -> None:
        self._lines = lines

    async def receive(self) -> Any:
        """What the harness says next; None when it wants this process to end."""
        line = await self._lines.readline()
        return json.loads(line) if line else None

    def tell(self, value: Any) -> None:
        """Say something to the harness."""
        print(json.dumps(value), flush=True)


Task = Callable[..., Awaitable[None]]
"""Called with a `Control` and the settings as keyword arguments."""


def rss() -> int:
    """Bytes of memory that this process holds, its garbage collected."""
    gc.collect()
    return int(psutil.Process().memory_info().rss)


class MemoryWatch:
    """How much more memory this process held at its highest than when the block began."""

    def __init__(self) -> None:
        self._before = self._most = rss()

    async def _watch(self) -> None:
        process = psutil.Process()
        while True:
            self._most = max(self._most, process.memory_info().rss)
            await asyncio.sleep(_LOOK_EVERY)

    @property
    def growth(self) -> int:
        """Bytes, so far."""
        return self._most - self._before

    async def __aenter__(self) -> Self:
        self._watching = asyncio.create_task(self._watch())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._watching.cancel()
        await asyncio.wait([self._watching])


async def _run(task: Task, settings: dict[str, Any]) -> None:
    lines = asyncio.StreamReader(limit=1 << 20)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
    )
    with contextlib.closing(transport):
        await task(Control(lines), **settings)


def _main(name: str, loop: str, settings: str) -> None:
    module, _, function = name.partition(":")
    task: Task = getattr(importlib.import_module(module), function)
    factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    if loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_run(task, json.loads(settings)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
