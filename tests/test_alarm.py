"""The one timer of a shell."""

from __future__ import annotations

import asyncio

from meshpeer.alarm import Alarm
from tests.virtual import virtual


@virtual
async def test_it_rings_at_the_time_it_was_last_set_to() -> None:
    rung: list[float] = []
    loop = asyncio.get_running_loop()
    alarm = Alarm(lambda: rung.append(loop.time()))
    alarm.set(5)
    alarm.set(3)
    alarm.set(3)
    await asyncio.sleep(10)
    assert rung == [3]
    alarm.set(3)  # in the past: at once
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert rung == [3, 10]


@virtual
async def test_it_can_be_set_again_from_its_own_ring_and_set_to_never() -> None:
    rung: list[float] = []
    loop = asyncio.get_running_loop()

    def ring() -> None:
        rung.append(loop.time())
        alarm.set(loop.time() + 1)

    alarm = Alarm(ring)
    alarm.set(1)
    await asyncio.sleep(3.5)
    alarm.set(None)
    await asyncio.sleep(10)
    assert rung == [1, 2, 3]
