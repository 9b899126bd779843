"""Beginnings and ends that come at a bad moment, and what others do to one's memory."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from meshpeer.config import MeshConfig
from meshpeer.core import frames
from meshpeer.core.events import Closed, Event, MeshState, PeerLeft, Replaced
from meshpeer.errors import (
    ConfigError,
    MeshClosed,
    SlowReader,
)
from meshpeer.manager import PeerManager
from tests.test_manager import World, event_of, event_time, take
from tests.virtual import virtual

# --- close, at any time ----------------------------------------------------------------------


@virtual
async def test_close_may_be_called_from_a_callback() -> None:
    async with World() as world:
        a = world.manager("a")
        seen: list[str] = []

        async def close(event: Event) -> None:
            await a.close()
            seen.append("returned")

        a.on(PeerLeft, close)
        a.on(Closed, lambda _: seen.append("closed"))
        await a.start()
        b = await world.start("b")
        await a.wait_for_peer("b")
        await b.close()
        await a.close()
        assert a.state is MeshState.CLOSED
        assert seen == ["returned", "closed"]


@virtual
async def test_callbacks_hear_of_the_end_too_and_may_take_some_time_over_it() -> None:
    async with World() as world:
        a, b = await world.pair()
        heard: list[str] = []

        async def slowly(event: Event) -> None:
            await asyncio.sleep(0.5)
            heard.append(type(event).__name__)

        a.on(Replaced, slowly)
        a.on(Closed, slowly)
        await world.start("a", resume_token=a.resume_token)
        await a.close()
        # Each callback goes through its events on its own.
        assert sorted(heard) == ["Closed", "Replaced"]
        del b


@virtual
async def test_a_callback_that_never_returns_does_not_hold_up_the_end() -> None:
    async with World() as world:
        a = await world.start("a")
        cancelled = asyncio.Event()

        async def for_ever(event: Event) -> None:
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                cancelled.set()

        a.on(Closed, for_ever)
        before = event_time(a)
        await a.close()
        assert event_time(a) - before <= 2.0 + 1e-6
        assert cancelled.is_set()


@virtual
async def test_a_callback_that_lets_a_cancellation_escape_is_called_again() -> None:
    async with World() as world:
        a = await world.start("a")
        called = 0

        async def cancels(event: Event) -> None:
            nonlocal called
            called += 1
            raise asyncio.CancelledError

        a.on(PeerLeft, cancels)
        for name in ("b", "c"):
            other = await world.start(name)
            await a.wait_for_peer(name)
            await other.close()
            await asyncio.sleep(1)
        assert called == 2


@virtual
async def test_after_off_a_callback_is_not_called_for_what_waits_either() -> None:
    async with World() as world:
        a = await world.start("a")
        called: list[Event] = []

        def once(event: Event) -> None:
            called.append(event)
            off()

        off = a.on(Event, once)
        b = await world.start("b")
        await a.wait_for_peer("b")
        await b.close()
        await asyncio.sleep(1)
        assert len(called) == 1


@virtual
async def test_close_during_start_ends_the_start() -> None:
    async with World() as world:
        world.hub.block()
        a = world.manager("a")
        starting = asyncio.create_task(a.start())
        await asyncio.sleep(1)
        await a.close()
        assert a.state is MeshState.CLOSED
        with pytest.raises(MeshClosed, match="before it had entered"):
            await starting
        world.hub.unblock()
        await asyncio.sleep(60)


@virtual
async def test_a_close_at_any_step_of_a_start_leaves_nothing() -> None:
    """However far the start has come: it succeeds before the close, or raises."""
    async with World() as world:
        outcomes = set()
        for steps in range(60):
            a = world.manager("a")
            starting = asyncio.create_task(a.start())
            for _ in range(steps):
                await asyncio.sleep(0)
            await a.close()
            await asyncio.wait([starting])
            outcomes.add(type(starting.exception()))
            assert a.state is MeshState.CLOSED
            await asyncio.sleep(31)  # a seat that was not given back runs out
        assert outcomes == {MeshClosed, type(None)}


@virtual
async def test_a_close_that_is_cancelled_while_it_tears_down_raises_that() -> None:
    async with World() as world:
        a, _ = await world.pair()
        world.network.hang.add("close")
        closing = asyncio.create_task(a.close())
        await asyncio.sleep(0.5)
        closing.cancel()
        await asyncio.wait([closing])
        assert closing.cancelled()
        assert a.state is MeshState.CLOSED
        world.network.hang.clear()
        for connection in world.network.connections.values():
            await connection.close()


@virtual
async def test_a_connection_that_fails_to_close_is_done_with_all_the_same() -> None:
    async with World() as world:
        a, b = await world.pair()
        await asyncio.sleep(10)
        world.network.fail = ["close"]
        broken = world.connection_of(a, "b")
        broken.lose()
        await asyncio.sleep(1)
        assert (await a.wait_for_peer("b", 10)).state == "connected"
        assert (await b.wait_for_peer("a", 10)).state == "connected"
        broken.closed = True


@virtual
async def test_a_transport_that_breaks_the_contract_is_told_by_every_call() -> None:
    async with World() as world:
        a, b = await world.pair()
        events, messages = a.events(), a.messages()

        async def broken() -> Any:
            raise OSError("not of the error tree")

        a._shell._transport.receive = broken  # type: ignore[method-assign]
        a._shell._transport.cut()  # type: ignore[attr-defined]
        closed = await event_of(events, Closed)
        assert closed.reason == "failed"
        assert "not of the error tree" in str(closed.error)
        with pytest.raises(MeshClosed, match="not of the error tree"):
            await anext(messages)
        with pytest.raises(ExceptionGroup, match="unhandled"):
            await a.close()
        assert len(world.network.open) <= 1  # b's, which is told in a moment
        await b.close()
        world.stack.pop_all()
        await world.hub.close()


@virtual
async def test_while_it_closes_it_says_so() -> None:
    async with World() as world:
        a, _ = await world.pair()
        world.network.stalled = True
        await a.peers["b"].send("x")
        closing = asyncio.create_task(a.close())
        await asyncio.sleep(0.1)
        with pytest.raises(MeshClosed, match="is closing"):
            await a.broadcast("x")
        await closing
        world.network.run()


# --- flush -----------------------------------------------------------------------------------


async def fill(manager: PeerManager, peer_id: str) -> None:
    while True:
        await manager.peers[peer_id].send(b"x" * 10_000)


# --- broadcast -------------------------------------------------------------------------------


@virtual
async def test_one_peer_that_takes_less_does_not_stop_a_broadcast() -> None:
    async with World() as world:
        a, b = await world.pair()
        await world.start("c", config=MeshConfig(max_message_size=5000))
        await a.wait_for_peers(2)
        await asyncio.sleep(0.5)
        got = b.messages()
        assert [peer.id for peer in await a.broadcast(b"x" * 10_000)] == ["b"]
        assert (await anext(got)).data == b"x" * 10_000


@virtual
async def test_a_broadcast_that_the_end_interrupts_raises_what_it_promises() -> None:
    async with World() as world:
        a, _ = await world.pair(config=MeshConfig(send_window=16 * 1024))
        world.network.stalled = True
        await a.broadcast(b"x" * 20_000)
        waiting = asyncio.create_task(a.broadcast("y"))
        await asyncio.sleep(0.1)
        await a.close()
        with pytest.raises(MeshClosed):
            await waiting
        world.network.run()


# --- memory ----------------------------------------------------------------------------------


@virtual
async def test_what_peers_leave_behind_unread_has_a_bound_in_all() -> None:
    window = 64 * 1024
    config = MeshConfig(receive_window=window, max_message_size=window // 2)
    async with World() as world:
        a = await world.start("a", config=config)
        for number in range(20):
            b = await world.start(f"b{number}")
            await b.wait_for_peer("a")
            for _ in range(5):
                await b.peers["a"].send(b"x" * 10_000)
            await b.close()
            await asyncio.sleep(0.1)
        assert sum(arrived.received.charge for arrived in a._shell._inbox._unclaimed) <= window
        newest = a.messages()
        assert (await anext(newest)).sender.closed_reason == "left"


@virtual
async def test_a_reader_that_is_too_slow_for_peers_that_come_and_go_is_ended() -> None:
    window = 64 * 1024
    config = MeshConfig(receive_window=window, max_message_size=window // 2)
    async with World() as world:
        a = await world.start("a", config=config)
        slow = a.messages()
        for number in range(3):
            b = await world.start(f"b{number}")
            await b.wait_for_peer("a")
            for _ in range(5):
                await b.peers["a"].send(b"x" * 10_000)
            await b.close()
            await asyncio.sleep(0.1)
        with pytest.raises(SlowReader, match="peers that have left"):
            await take(slow, 100)
        assert a.state is MeshState.JOINED
        assert not a._shell._inbox._unread


@virtual
async def test_readers_do_not_share_what_they_get() -> None:
    async with World() as world:
        a, b = await world.pair()
        one, two = b.messages(), b.messages()
        await a.peers["b"].send({"list": []})
        first = (await anext(one)).data
        first["list"].append("mine")
        assert (await anext(two)).data == {"list": []}


@virtual
async def test_what_is_asked_and_not_read_does_not_pile_up() -> None:
    async with World() as world:
        a, _ = await world.pair()
        asked = world.connection_of(a, "b")
        world.network.stalled = True
        for number in range(10_000):
            asked.observer.frame_received(frames.encode(frames.Ping(number)))
            resume = frames.Resume(number, True, 65536, 10, 65536)
            asked.observer.frame_received(frames.encode(resume))
        assert 0 < asked.buffered_amount <= 80 * 1024
        world.network.run()


@virtual
async def test_a_name_that_is_not_unicode_is_refused() -> None:
    async with World() as world:
        a, _ = await world.pair()
        with pytest.raises(ConfigError, match="valid Unicode"):
            await a.peers["b"].send("x", channel="\ud800")


def test_a_token_is_not_shown() -> None:
    with pytest.raises(ConfigError) as caught:
        PeerManager("ws://localhost:1", room="r", resume_token="my secret!")
    assert "secret" not in str(caught.value)
