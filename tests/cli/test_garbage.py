"""Full collections by the clock."""

from __future__ import annotations

import asyncio
import gc

import pytest

from meshpeer.cli import garbage
from meshpeer.cli.garbage import garbage_by_the_clock


async def test_full_collections_come_by_the_clock_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before = gc.get_threshold()
    waits: list[float] = []
    took = iter([0.0, 0.01, 0.0, 0.5])
    done: list[None] = []
    third = asyncio.Event()

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            third.set()
            await asyncio.Event().wait()

    monkeypatch.setattr(garbage, "perf_counter", lambda: next(took))
    monkeypatch.setattr(gc, "collect", lambda: done.append(None))
    monkeypatch.setattr(asyncio, "sleep", sleep)
    async with garbage_by_the_clock():
        assert gc.get_threshold()[:2] == before[:2]
        assert gc.get_threshold()[2] > 1_000_000
        await third.wait()
        assert waits == [60.0, 60.0, 100.0]
        assert len(done) == 2
    assert gc.get_threshold() == before


async def test_a_collection_that_fails_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    before = gc.get_threshold()
    failed = asyncio.Event()

    async def sleep(seconds: float) -> None:
        failed.set()
        raise RuntimeError("broken")

    monkeypatch.setattr(asyncio, "sleep", sleep)
    with pytest.raises(RuntimeError, match="broken"):
        async with garbage_by_the_clock():
            await failed.wait()
    assert gc.get_threshold() == before
