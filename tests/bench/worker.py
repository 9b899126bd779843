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
from typing import Any

import psutil  # type: ignore[import-untyped]

__all__ = ["Control", "Task", "rss"]


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
