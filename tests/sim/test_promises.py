"""The promises of the design, under faults that Hypothesis draws.

Each run has a few hosts, half a minute in which everything may fail, and then quiet: whoever lives
must be connected to everybody else who lives. `World` checks meanwhile what must hold at any time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshpeer.core import frames
from tests.sim.world import World

FAULTS = 30.0
"""Seconds in which faults begin."""
HEALED = 45.0
"""Seconds after the last fault in which everything must be well again: a relay takes up to 15 s to
notice that a socket is dead and keeps the seat for 10, and the waits of links are up to 8 s."""

KINDS = (
    "cut",
    "away",
    "relay killed",
    "relay stopped",
    "removed",
    "restart asked for",
    "notice",
    "crash",
    "crash without token",
    "crash for good",
    "leave",
    "leave for good",
    "outage",
    "one-way outage",
    "blocked",
    "addresses changed",
    "mapping lost",
    "stall",
    "signals fail",
    "operations fail",
    "nothing works",
    "bad signal",
    "bad frame",
    "bad frame forwarded",
)
BAD_FRAMES = (
    b"\x00",
    b"\x11\x82\x00[",
    b"\x12\x80",
    b"\x15" + bytes(16),
    frames.encode(frames.Ack([frames.Limit(0, 10**9, 0)])),
    frames.encode(frames.Ack([frames.Limit(100, 0, 0)])),
    frames.encode(frames.Resume(10**9, True, 1, 32, 2**20)),
)


# By host, in turns. Who waits for an hour asks for the relay never, and goes along.
RELAY_AFTER = ((3.0,), (3.0,), (0.0,), (None,), (3.0, None), (0.0, 3.0), (3.0, 3600.0))


@dataclass(frozen=True)
class Fault:
    """Something that happens: what, when, to whom, and for how long."""

    kind: str
    at: float
    host: int
    other: int
    seconds: float

    def strike(self, world: World) -> None:
        hosts = len(world.hosts)
        a = self.host % hosts
        b = (a + 1 + self.other % (hosts - 1)) % hosts
        host = world.hosts[a]
        process = host.process
        match self.kind:
            case "cut" if process is not None and process.socket is not None:
                world.cut(process.socket)
            case "away":
                host.away_until = world.now + self.seconds
                if process is not None and process.socket is not None:
                    world.cut(process.socket)
            case "relay killed":
                world.kill_relay(self.seconds / 4)
            case "relay stopped":
                world.stop_relay(self.seconds / 4)
            case "removed":
                world.operate("removed", a, b)
            case "restart asked for":
                world.operate("restart all" if self.seconds > 10 else "restart", a, b)
            case "notice":
                world.operate("notice", a, b)
            case "crash" | "crash without token" | "crash for good" if process is not None:
                process.crash()
                if self.kind != "crash for good":
                    world.at(self.seconds / 4, world.start_again, a, self.kind == "crash")
            case "leave" | "leave for good" if process is not None:
                process.leave()
                if self.kind == "leave":
                    world.at(self.seconds / 4, world.start_again, a, False)
            case "outage" | "one-way outage":
                world.outage(a, b, self.seconds, one_way=self.kind != "outage")
            case "blocked":
                world.outage(a, b, FAULTS)
            case "addresses changed" | "mapping lost":
                world.move(a, told=self.kind == "addresses changed")
            case "stall" if process is not None and process.stalled_until <= world.now:
                process.stalled_until = world.now + self.seconds / 4
            case "signals fail":
                world.bad_input_expected = True
                world.signals_fail_until = world.now + self.seconds
            case "operations fail" | "nothing works":
                world.operations_fail_rate = 0.3 if self.kind == "operations fail" else 1.0
                world.operations_fail_until = world.now + self.seconds
            case "bad signal":
                world.inject(a, b, int(self.seconds * 10))
            case "bad frame":
                world.inject_frame(a, b, BAD_FRAMES[int(self.seconds * 10) % len(BAD_FRAMES)])
            case "bad frame forwarded":
                data = BAD_FRAMES[int(self.seconds * 10) % len(BAD_FRAMES)]
                world.inject_frame(a, b, data, forwarded=True)
            case _:
                pass  # There is nobody whom it could happen to.


faults = st.builds(
    Fault,
    kind=st.sampled_from(KINDS),
    at=st.integers(0, int(FAULTS) * 10).map(lambda tenths: tenths / 10),
    host=st.integers(0, 4),
    other=st.integers(0, 3),
    seconds=st.integers(1, 200).map(lambda tenths: tenths / 10),
)


def run(
    hosts: int, schedule: list[Fault], seed: int, relay_after: tuple[float | None, ...] = (3.0,)
) -> World:
    world = World(hosts, seed)
    for machine in world.hosts:
        after = relay_after[machine.number % len(relay_after)]
        machine.mesh = replace(machine.mesh, relay_after=after)
    for host in range(hosts):
        world.at(world.rng.random() * 2, world.start_again, host, False)
    world.at(1.0, world.speak)
    for fault in schedule:
        world.push(fault.at, fault.strike, world)
    world.run_until(FAULTS)
    world.end_faults()
    world.settle(HEALED)
    world.check_all_arrived()
    world.check_picture(within=16.0)
    world.check_nothing_left()
    return world


@pytest.mark.timeout(900)  # 40 s of computing, which a machine that is busy may stretch
@settings(
    max_examples=350,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    hosts=st.sampled_from((2, 2, 2, 3, 3, 4, 5)),
    schedule=st.lists(faults, max_size=10),
    seed=st.integers(0, 2**32),
    relay_after=st.sampled_from(RELAY_AFTER),
)
def test_the_promises_hold(
    hosts: int, schedule: list[Fault], seed: int, relay_after: tuple[float | None, ...]
) -> None:
    run(hosts, schedule, seed, relay_after)
