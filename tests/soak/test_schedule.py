"""The schedule breaks everything that is to be broken, and mends it in time."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from tests.soak.run import names
from tests.soak.schedule import SHORTEST, Kind, schedule

_SEEDS = st.integers(0, 10**6)
_SECONDS = st.sampled_from([SHORTEST, 60.0, 120.0, 600.0])


@given(_SEEDS, _SECONDS)
def test_everything_breaks_and_is_mended(seed: int, seconds: float) -> None:
    faults = schedule(seed, seconds, names)
    assert {fault.kind for fault in faults} == set(Kind)
    assert all(0 < fault.start <= fault.end <= seconds for fault in faults)
    assert faults == sorted(faults, key=lambda fault: fault.start)
    # Long enough for data to move to the relay and back.
    assert any(fault.kind is Kind.CUT and fault.length >= 20 for fault in faults)
    assert any(fault.kind is Kind.STOPPED and fault.length == 10 for fault in faults)


@given(_SEEDS, _SECONDS)
def test_nothing_breaks_that_is_broken_that_way(seed: int, seconds: float) -> None:
    for one, other in combinations(schedule(seed, seconds, names), 2):
        if one.kind is other.kind and set(one.who) == set(other.who):
            assert one.end < other.start


@given(_SEEDS)
def test_a_seed_makes_the_same_again(seed: int) -> None:
    assert schedule(seed, 60, names) == schedule(seed, 60, names)
    assert schedule(seed, 60, names) != schedule(seed + 1, 60, names)
