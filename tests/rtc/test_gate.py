"""Turns of connection attempts, under virtual time."""

from __future__ import annotations

import asyncio

from meshpeer.rtc import gate
from meshpeer.rtc.gate import Turn
from tests.virtual import virtual


async def _taken(count: int) -> list[Turn]:
    turns = [Turn() for _ in range(count)]
    for turn in turns:
        await turn.take()
    return turns


@virtual
async def test_so_many_at_once_and_the_next_when_one_is_over() -> None:
    turns = await _taken(gate._AT_ONCE)
    late = Turn()
    waiting = asyncio.create_task(late.take())
    await asyncio.sleep(0.1)
    assert not waiting.done()
    turns[3].over()
    turns[3].over()
    await waiting
    another = asyncio.create_task(Turn().take())
    await asyncio.sleep(0.1)
    assert not another.done(), "ending one twice makes room for one"
    another.cancel()
    await asyncio.wait([another])
    for turn in [*turns, late]:
        turn.over()
    assert not gate._gates, "nothing is kept of an event loop"


@virtual
async def test_what_takes_long_holds_nobody_up() -> None:
    await _taken(gate._AT_ONCE)
    late = Turn()
    began = asyncio.get_running_loop().time()
    await late.take()
    assert asyncio.get_running_loop().time() - began == gate._LONGEST
    late.over()


@virtual
async def test_who_is_cancelled_while_waiting_takes_none() -> None:
    turns = await _taken(gate._AT_ONCE)
    given_up = Turn()
    waiting = asyncio.create_task(given_up.take())
    await asyncio.sleep(0.1)
    waiting.cancel()
    await asyncio.wait([waiting])
    given_up.over()
    turns[0].over()
    await Turn().take()
    await asyncio.sleep(gate._LONGEST)
