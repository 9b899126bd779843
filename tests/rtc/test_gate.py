"""Turns of connection attempts, under virtual time."""

from __future__ import annotations

import asyncio

from meshpeer.config import MeshConfig
from meshpeer.rtc import gate
from meshpeer.rtc.gate import Turn
from tests.rtc.test_connection import End
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


async def test_an_offer_waits_for_its_turn_and_an_open_connection_gives_it_up() -> None:
    turns = await _taken(gate._AT_ONCE)
    a, b = End(MeshConfig()), End(MeshConfig())
    try:
        offering = asyncio.create_task(a.connection.create_offer(0))
        done, _ = await asyncio.wait([offering], timeout=0.1)
        assert not done
        turns.pop().over()
        answer = await b.connection.accept_offer(0, await offering)
        await a.connection.accept_answer(0, answer)
        await a.next("opened")
        assert a.connection._turn._timer is None
    finally:
        await a.connection.close()
        await b.connection.close()
        for turn in turns:
            turn.over()
    assert not gate._gates
