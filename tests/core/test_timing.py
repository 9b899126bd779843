"""Deadlines come out in the order of time; waits double up to their maximum."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from meshpeer.core.timing import Backoff, Deadlines

_times = st.floats(min_value=0, max_value=1e9)
_names = st.sampled_from("abcdef")


@given(st.lists(st.tuples(_names, st.none() | _times)), _times)
def test_deadlines_against_a_dict(steps: list[tuple[str, float | None]], now: float) -> None:
    deadlines: Deadlines[str] = Deadlines()
    model: dict[str, float] = {}
    for name, at in steps:
        if at is None:
            deadlines.clear(name)
            model.pop(name, None)
        else:
            deadlines.set(name, at)
            model[name] = at
        assert deadlines.get(name) == model.get(name)
        assert deadlines.next() == min(model.values(), default=None)
    due = deadlines.due(now)
    assert dict(due) == {name: at for name, at in model.items() if at <= now}
    assert [at for _, at in due] == sorted(at for _, at in due)
    assert deadlines.due(now) == []
    assert deadlines.next() == min((at for at in model.values() if at > now), default=None)
    deadlines.clear_all()
    assert deadlines.next() is None
    assert deadlines.due(math.inf) == []


def test_a_deadline_is_due_at_its_time_and_only_once() -> None:
    deadlines: Deadlines[str] = Deadlines()
    deadlines.set("late", 2.0)
    deadlines.set("early", 1.0)
    assert deadlines.due(0.999) == []
    assert deadlines.due(2.0) == [("early", 1.0), ("late", 2.0)]
    assert deadlines.get("early") is None


def test_setting_again_moves() -> None:
    deadlines: Deadlines[str] = Deadlines()
    deadlines.set("a", 1.0)
    deadlines.set("a", 5.0)
    assert deadlines.due(4.0) == []
    assert deadlines.next() == 5.0


def test_waits_double_up_to_the_maximum_and_begin_again() -> None:
    backoff = Backoff(first=1.0, maximum=30.0)
    assert [backoff.next(0.0) for _ in range(7)] == [1, 2, 4, 8, 16, 30, 30]
    assert backoff.attempts == 7
    backoff.reset()
    assert backoff.next(0.0) == 1.0


@given(
    st.floats(min_value=0.01, max_value=3600),
    st.floats(min_value=0.01, max_value=3600),
    st.floats(min_value=0, max_value=1),
    st.floats(min_value=0, max_value=1, exclude_max=True),
    st.integers(min_value=0, max_value=1 << 40),
)
def test_a_wait_is_within_its_jitter(
    first: float, maximum: float, jitter: float, random: float, attempts: int
) -> None:
    backoff = Backoff(first=first, maximum=maximum, jitter=jitter)
    backoff.attempts = attempts
    whole = Backoff(first=first, maximum=maximum, jitter=0)
    whole.attempts = attempts
    most = whole.next(random)
    assert most <= maximum
    assert most * (1 - jitter) - 1e-9 <= backoff.next(random) <= most


def test_full_jitter_reaches_from_nothing_to_the_whole() -> None:
    assert Backoff(first=8.0, maximum=8.0).next(0.0) == 8.0
    assert Backoff(first=8.0, maximum=8.0).next(0.75) == 2.0
    assert Backoff(first=8.0, maximum=8.0, jitter=0.5).next(0.75) == 5.0
