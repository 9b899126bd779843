"""The hub's faults on demand."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from random import Random

import pytest
from msgspec import Raw

from meshpeer.config import MeshConfig, RelayConfig
from meshpeer.core.messages import (
    VERSION,
    Join,
    MemberJoined,
    MemberLeft,
    MemberUpdated,
    SignalIn,
    SignalOut,
    Welcome,
)
from meshpeer.errors import MeshClosed, SignalingBacklog
from meshpeer.signaling.base import FrameIn, SignalingLost
from meshpeer.signaling.memory import MemoryHub, MemoryTransport, RandomFaults

QUICK = MeshConfig(signaling_retry_first=0.01, signaling_retry_max=0.02, max_pending_signals=100)


def join(peer_id: str) -> Join:
    return Join(version=VERSION, room="lobby", peer_id=peer_id, incarnation=f"{peer_id}-one-1")


def signal(number: int, to: str = "bob") -> SignalOut:
    return SignalOut(to=to, to_incarnation=f"{to}-one-1", epoch=number, body=Raw(b"{}"))


async def pair(hub: MemoryHub) -> tuple[MemoryTransport, MemoryTransport]:
    ann, bob = hub.transport(QUICK), hub.transport(QUICK)
    await ann.open(join("ann"))
    await bob.open(join("bob"))
    assert isinstance(await ann.receive(), MemberJoined)
    return ann, bob


async def heard(transport: MemoryTransport, count: int) -> list[int]:
    numbers = []
    for _ in range(count):
        event = await transport.receive()
        assert isinstance(event, SignalIn)
        numbers.append(event.epoch)
    return numbers


async def test_who_has_not_heard_of_a_loss_sends_nothing_on(memory_hub: MemoryHub) -> None:
    ann, bob = await pair(memory_hub)
    ann.forward("bob", "bob-one-1", b"before")
    assert isinstance(await bob.receive(), FrameIn)
    ann.cut()
    bob.send(signal(1, to="ann"))
    # It is back, as the signal that came since shows, but nobody has asked what happened.
    while not any(isinstance(event, SignalIn) for event in ann._events):
        await ann._arrived.wait()
        ann._arrived.clear()
        await asyncio.sleep(0)
    assert ann.forward_room("bob") == 0
    ann.forward("bob", "bob-one-1", b"as if nothing had happened")
    assert isinstance(await ann.receive(), SignalingLost)
    assert ann.forward_room("bob") == 0
    assert isinstance(await ann.receive(), Welcome)
    assert ann.forward_room("bob") > 0
    ann.forward("bob", "bob-one-1", b"after")
    event = await bob.receive()
    assert isinstance(event, FrameIn)
    assert event.data == b"after"
    await ann.close()
    await bob.close()


async def test_a_fault_says_what_becomes_of_each_signal(memory_hub: MemoryHub) -> None:
    ann, bob = await pair(memory_hub)
    plan: dict[int, Iterable[float]] = {1: (), 2: (0, 0), 3: (0.02,), 4: (0,)}
    ann.faults = lambda signal: plan[signal.epoch]
    for number in plan:
        ann.send(signal(number))
    assert await heard(bob, 4) == [2, 2, 4, 3]
    # Presence knows no faults, and the other transport has none.
    ann.faults = lambda signal: ()
    ann.send(signal(5))
    ann.update("Ann", None)
    assert isinstance(await bob.receive(), MemberUpdated)
    bob.send(signal(6, "ann"))
    assert await heard(ann, 1) == [6]
    await ann.close()
    await bob.close()


async def test_faults_of_the_hub_are_for_transports_without_their_own(
    memory_hub: MemoryHub,
) -> None:
    ann, bob = await pair(memory_hub)
    memory_hub.faults = lambda signal: (0, 0)
    ann.faults = lambda signal: (0,)
    ann.send(signal(1))
    ann.send(signal(2))
    bob.send(signal(3, "ann"))
    assert await heard(bob, 2) == [1, 2]
    assert await heard(ann, 2) == [3, 3]
    await ann.close()
    await bob.close()


async def test_delayed_signals_have_a_bound_and_end_with_the_transport(
    memory_hub: MemoryHub,
) -> None:
    ann, bob = await pair(memory_hub)
    ann.faults = lambda signal: (3600,)
    for number in range(2 * QUICK.max_pending_signals):
        ann.send(signal(number))
    assert len(ann._delayed) == QUICK.max_pending_signals
    handles = list(ann._delayed.values())
    await ann.close()
    assert all(handle.cancelled() for handle in handles)
    assert ann._delayed == {}
    with pytest.raises(MeshClosed):
        ann.send(signal(1))
    assert isinstance(await bob.receive(), MemberLeft)
    await bob.close()


async def test_a_delayed_signal_that_finds_no_room_is_lost(memory_hub: MemoryHub) -> None:
    ann, bob = await pair(memory_hub)
    ann.block()
    ann.faults = lambda signal: (0.001,)
    ann.send(signal(0))
    ann.faults = None
    limit = QUICK.max_pending_signals
    for number in range(1, limit + 1):
        ann.send(signal(number))
    with pytest.raises(SignalingBacklog):
        ann.send(signal(limit + 1))
    lost = asyncio.Event()
    asyncio.get_running_loop().call_later(0.002, lost.set)  # timers run in the order of their times
    await lost.wait()
    assert ann._delayed == {}
    ann.unblock()
    assert await heard(bob, limit) == list(range(1, limit + 1))
    await ann.close()
    await bob.close()


def test_random_faults_are_the_same_again() -> None:
    def plans() -> list[list[float]]:
        faults = RandomFaults(Random(3), drop=0.3, duplicate=0.3, delay=0.5)
        return [faults(signal(number)) for number in range(1000)]

    assert plans() == plans()
    counts = [len(plan) for plan in plans()]
    assert set(counts) == {0, 1, 2}
    assert 200 < counts.count(0) < 400
    assert 100 < counts.count(2) < 320
    delays = [delay for plan in plans() for delay in plan]
    assert min(delays) < 0.1
    assert 0.4 < max(delays) <= 0.5
    assert RandomFaults(Random(3))(signal(1)) == [0.0]


async def test_blocked_until_unblocked(memory_hub: MemoryHub) -> None:
    ann, bob = await pair(memory_hub)
    ann.block()
    lost = await ann.receive()
    assert isinstance(lost, SignalingLost)
    assert lost.reason == "the connection was cut"
    bob.send(signal(1, "ann"))
    ann.send(signal(2))
    late = memory_hub.transport(QUICK)
    late.block()
    opening = asyncio.create_task(late.open(join("eve")))
    ann.unblock()
    welcome = await ann.receive()
    assert isinstance(welcome, Welcome)
    assert welcome.resumed
    assert await heard(ann, 1) == [1]
    assert await heard(bob, 1) == [2]
    assert not opening.done()
    assert "blocked" in str(late.last_failure)
    late.unblock()
    assert {member.peer_id for member in (await opening).members} == {"ann", "bob"}
    for transport in (ann, bob, late):
        await transport.close()


async def test_the_whole_hub_is_cut_and_blocked(memory_hub: MemoryHub) -> None:
    ann, bob = await pair(memory_hub)
    memory_hub.block()
    memory_hub.unblock()
    memory_hub.cut()
    for transport in (ann, bob):
        assert isinstance(await transport.receive(), SignalingLost)
        welcome = await transport.receive()
        assert isinstance(welcome, Welcome)
        assert welcome.resumed
        await transport.close()


async def test_a_seat_runs_out() -> None:
    async with MemoryHub(RelayConfig(seat_timeout=0.01)) as hub:
        ann, bob = await pair(hub)
        bob.block()
        left = await ann.receive()
        assert isinstance(left, MemberLeft)
        assert left.reason == "timeout"
        bob.unblock()
        assert isinstance(await bob.receive(), SignalingLost)
        welcome = await bob.receive()
        assert isinstance(welcome, Welcome)
        assert not welcome.resumed
        assert [member.peer_id for member in welcome.members] == ["ann"]
        await ann.close()
        await bob.close()


async def test_a_member_that_leaves_too_much_unread_is_cut_off_and_comes_back() -> None:
    async with MemoryHub(RelayConfig(max_unread=4096, max_replay_bytes=1024)) as hub:
        ann, bob = await pair(hub)
        for number in range(100):  # delivered in one go, before bob has had a chance to read
            ann.send(signal(number))
        lost = await bob.receive()
        assert isinstance(lost, SignalingLost)
        assert lost.reason == "too much was left unread"
        welcome = await bob.receive()
        assert isinstance(welcome, Welcome)
        assert not welcome.resumed
        assert [member.peer_id for member in welcome.members] == ["ann"]
        ann.send(signal(100))
        assert await heard(bob, 1) == [100]
        await ann.close()
        await bob.close()


async def test_what_is_read_is_not_unread_any_more() -> None:
    async with MemoryHub(RelayConfig(max_unread=1024, max_replay_bytes=1024)) as hub:
        ann, bob = await pair(hub)
        for number in range(50):
            ann.send(signal(number))
            assert await heard(bob, 1) == [number]
        await ann.close()
        await bob.close()


async def test_a_hub_slows_nobody_down() -> None:
    slow = RelayConfig(byte_rate=1024, byte_burst=64 * 1024, keepalive_interval=3600)
    async with MemoryHub(slow) as hub:
        ann, bob = await pair(hub)
        for number in range(1000):  # minutes of that rate
            ann.send(signal(number))
            assert await heard(bob, 1) == [number]
        await ann.close()
        await bob.close()


async def test_a_closed_hub_has_said_goodbye_and_is_closed() -> None:
    hub = MemoryHub()
    ann, bob = await pair(hub)
    ann.cut()  # its seat is what the hub's timer waits for
    await hub.close()
    await hub.close()
    assert hub._alarm._handle is None
    lost = await bob.receive()
    assert isinstance(lost, SignalingLost)
    assert "goodbye (shutdown)" in lost.reason
    late = hub.transport(QUICK)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await late.open(join("eve"))
    for transport in (ann, bob, late):
        await transport.close()
