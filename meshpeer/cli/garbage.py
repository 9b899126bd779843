"""Garbage collection for a process with very many objects that live long."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import perf_counter

__all__ = ["garbage_by_the_clock"]

_EVERY = 60.0
"""Seconds between two full collections."""
_SHARE = 200
"""How many times as long as one took the next is waited for, at least."""
_NEVER = 1 << 30


@asynccontextmanager
async def garbage_by_the_clock() -> AsyncIterator[None]:
    """While inside, full collections come by the clock and not by what is allocated.

    Of ten thousand members one takes 0.3 s, in which nobody is answered. Python begins one each
    time that a quarter more objects are there than at the last: while many join, every few seconds.
    What is dropped is freed without it, but for what refers to itself; a member leaves little of
    that.
    """
    young, middle, old = gc.get_threshold()
    gc.set_threshold(young, middle, _NEVER)
    collecting = asyncio.create_task(_collect(), name="garbage")
    try:
        yield
    finally:
        gc.set_threshold(young, middle, old)
        collecting.cancel()
        await asyncio.wait([collecting])
        if not collecting.cancelled():
            collecting.result()


async def _collect() -> None:
    wait = _EVERY
    while True:
        await asyncio.sleep(wait)
        began = perf_counter()
        gc.collect()
        wait = max(_EVERY, _SHARE * (perf_counter() - began))
