"""Plain channels over a connection that is a few lists."""

from __future__ import annotations

import asyncio
import gc
from types import SimpleNamespace
from typing import Any, cast

import pytest

from meshpeer.errors import ChannelClosed
from meshpeer.peer import Budget, Channel, Peer
from tests.fakes import FakeChannel


def channel(raw: FakeChannel, budget: Budget | None = None) -> Channel:
    peer = cast("Peer", SimpleNamespace(id="b"))
    made: Any = raw
    return Channel(
        made, peer, budget=budget or Budget(1000), send_buffer=100, closed=lambda _: None
    )


async def test_who_waits_for_room_is_not_overtaken() -> None:
    raw = FakeChannel()
    ours = channel(raw)
    raw.buffered_amount = 200
    first = asyncio.create_task(ours.send("first"))
    await asyncio.sleep(0)
    raw.buffered_amount = 90  # room for another, but not yet so little that it is told
    second = asyncio.create_task(ours.send("second"))
    await asyncio.sleep(0)
    raw.buffered_amount = 40
    raw.on["on_low"]()
    await asyncio.gather(first, second)
    assert raw.sent == ["first", "second"]


async def test_who_waits_behind_another_may_be_cancelled_and_is_told_of_the_end() -> None:
    raw = FakeChannel()
    ours = channel(raw)
    raw.buffered_amount = 200
    tasks = [asyncio.create_task(ours.send(f"{n}")) for n in range(3)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    await asyncio.wait([tasks[1]])
    assert tasks[1].cancelled()
    await ours.close()
    for task in (tasks[0], tasks[2]):
        with pytest.raises(ChannelClosed):
            await task
    assert raw.sent == []


def test_what_a_forgotten_channel_kept_is_given_back() -> None:
    budget = Budget(1000)
    for _ in range(20):
        raw = FakeChannel()
        ours = channel(raw, budget)
        for _ in range(3):
            raw.on["on_message"](b"x" * 100)
        raw.on["on_close"]()
        assert ours.state == "closed"
        assert 300 < budget.used < 1000
        del ours, raw
        gc.collect()
        assert budget.used == 0


async def test_what_a_closed_channel_kept_can_still_be_read() -> None:
    budget, raw = Budget(1000), FakeChannel()
    ours = channel(raw, budget)
    raw.on["on_message"]("a")
    raw.on["on_message"]("b")
    raw.on["on_close"]()
    reading = aiter(ours)
    assert await anext(reading) == "a"
    used = budget.used
    del ours, raw
    gc.collect()
    assert budget.used == used > 0, "it is still being read"
    assert [data async for data in reading] == ["b"]
    assert budget.used == 0
