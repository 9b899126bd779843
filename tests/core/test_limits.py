"""Token buckets take what is there, forget what is full, and stay within their bound."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshpeer.core.limits import Bucket, Buckets, Supply, address_key

# Eighths of a second, costs in halves, a rate of 4: floats are exact then.
RATE, BURST, LIMIT = 4.0, 10.0, 5
_steps = st.integers(0, 24).map(lambda eighths: eighths / 8)
_costs = st.integers(0, 20).map(lambda halves: halves / 2)


class Model:
    """A bucket as one would do it by hand, in fractions."""

    def __init__(self) -> None:
        self.level = Fraction(BURST)
        self.at = Fraction(0)

    def fill(self, now: float) -> Fraction:
        earned = (Fraction(now) - self.at) * Fraction(RATE)
        self.level = min(Fraction(BURST), self.level + earned)
        self.at = Fraction(now)
        return self.level


@given(st.lists(st.tuples(_steps, _costs)))
def test_a_bucket_against_fractions(steps: list[tuple[float, float]]) -> None:
    bucket, model, now = Bucket(RATE, BURST, 0.0), Model(), 0.0
    for step, cost in steps:
        now += step
        assert bucket.level(now) == model.fill(now)
        missing = Fraction(cost) - model.level
        assert bucket.wait(cost, now) == max(Fraction(0), missing / Fraction(RATE))
        model.level -= Fraction(cost)
        assert bucket.take(cost, now) == model.level
        assert bucket.level(now) == model.level


@given(st.lists(st.tuples(_steps, st.sampled_from("abcdefgh"), _costs), max_size=80))
def test_buckets_take_what_is_there_or_nothing(steps: list[tuple[float, str, float]]) -> None:
    buckets: Buckets[str] = Buckets(RATE, BURST, limit=100)
    models: dict[str, Model] = {}
    now = 0.0
    for step, key, cost in steps:
        now += step
        model = models.setdefault(key, Model())
        missing = Fraction(cost) - model.fill(now)
        wait = max(Fraction(0), missing / Fraction(RATE))
        size = len(buckets)
        assert buckets.wait(key, now, cost) == wait
        assert buckets.level(key, now) == model.level
        assert len(buckets) == size
        assert buckets.take(key, now, cost) == wait
        if not wait:
            model.level -= Fraction(cost)
        # Who is missing there is full; and who was used longest ago is not.
        unfilled = [name for name, each in models.items() if each.fill(now) < Fraction(BURST)]
        assert len(unfilled) <= len(buckets) <= len(models)
        if not unfilled:
            assert len(buckets) == 0


@given(st.lists(st.tuples(_steps, st.integers(0, 30), _costs), max_size=80))
def test_there_are_never_more_than_the_limit(steps: list[tuple[float, int, float]]) -> None:
    buckets: Buckets[int] = Buckets(RATE, BURST, LIMIT)
    now = 0.0
    for step, key, cost in steps:
        now += step
        buckets.take(key, now, cost)
        assert len(buckets) <= LIMIT


def test_what_is_charged_is_owed_and_may_be_given_back() -> None:
    buckets: Buckets[str] = Buckets(RATE, BURST, limit=10)
    buckets.charge("a", 0.0, 3 * BURST)
    assert buckets.level("a", 0.0) == -2 * BURST
    assert buckets.take("a", 0.0) == (2 * BURST + 1) / RATE
    buckets.charge("a", 0.0, -BURST)
    assert buckets.level("a", BURST / RATE) == 0.0
    buckets.charge("a", BURST / RATE, -2 * BURST)
    assert len(buckets) == 0, "it is full"


def test_after_the_time_it_was_told_it_is_there() -> None:
    buckets: Buckets[str] = Buckets(rate=0.3, burst=7, limit=10)
    assert [buckets.take("a", 1000.0) for _ in range(7)] == [0.0] * 7
    wait = buckets.take("a", 1000.0)
    assert wait == pytest.approx(1 / 0.3)
    assert buckets.take("a", 1000.0 + wait - 1e-6) > 0
    assert buckets.take("a", 1000.0 + wait + 1e-6) == 0.0
    assert buckets.take("b", 1000.0) == 0.0, "another key has a bucket of its own"


def test_beyond_the_limit_the_one_that_was_used_longest_ago_goes() -> None:
    buckets: Buckets[str] = Buckets(rate=1, burst=2, limit=2)
    for key in "abab":
        buckets.take(key, 0.0)
    assert buckets.take("a", 0.0) > 0  # this is a use as well
    buckets.take("c", 0.0)
    assert len(buckets) == 2
    assert buckets.wait("a", 0.0) > 0
    assert buckets.wait("b", 0.0) == 0.0


def test_what_is_full_again_is_forgotten_when_another_is_used() -> None:
    buckets: Buckets[int] = Buckets(rate=1, burst=10, limit=1_000_000)
    for key in range(1000):
        buckets.take(key, 0.0)
    assert len(buckets) == 1000
    buckets.take(-1, 0.5)
    assert len(buckets) == 1001
    buckets.take(-1, 1.0)
    assert len(buckets) == 1


# --- those who come and go -----------------------------------------------------------------------


def empty(bucket: Bucket, now: float) -> float:
    """Take all that is there."""
    there = max(bucket.level(now), 0.0)
    bucket.take(there, now)
    return there


def test_who_goes_and_comes_again_has_no_more_than_who_stays() -> None:
    supply: Supply[str] = Supply(RATE, BURST, limit=10)
    taken, now = [], 0.0
    for _ in range(40):
        bucket = supply.give("a", now)
        taken.append(empty(bucket, now))
        supply.take_back("a", bucket, now)
        now += 0.125
    assert taken[:11] == [BURST] * 11, "ten are spared"
    # After that it is what is filled in the meantime: once into the bucket that is there, and once
    # of what is forgotten.
    assert sum(taken) <= 11 * BURST + 2 * RATE * now
    assert max(taken[20:]) <= 2 * RATE * 0.125
    assert supply.give("b", now).level(now) == BURST
    # What one that came had to take over, the next one has not.
    supply.give("a", now)
    assert supply.give("a", now).level(now) == BURST
    now += 11 * BURST / RATE
    assert supply.give("a", now).level(now) == BURST


def test_who_comes_never_begins_with_less_than_nothing() -> None:
    supply: Supply[str] = Supply(RATE, BURST, limit=10)
    bucket = supply.give("a", 0.0)
    bucket.take(10 * BURST + 2.5 * BURST, 0.0)
    supply.take_back("a", bucket, 0.0)
    assert [supply.give("a", 0.0).level(0.0) for _ in range(4)] == [0.0, 0.0, BURST / 2, BURST]


@given(st.lists(st.tuples(_steps, st.booleans(), _costs), max_size=60))
def test_what_is_taken_of_a_supply_is_bounded_by_how_many_had_it_at_once(
    steps: list[tuple[float, bool, float]],
) -> None:
    supply: Supply[str] = Supply(RATE, BURST, limit=10)
    there: list[Bucket] = []
    taken = now = 0.0
    most = 0
    for step, comes, cost in steps:
        now += step
        if comes:
            there.append(supply.give("a", now))
            most = max(most, len(there))
            cost = min(cost, there[-1].level(now))  # noqa: PLW2901
            there[-1].take(cost, now)
            taken += cost
        elif there:
            supply.take_back("a", there.pop(0), now)
    assert taken <= (10 + most) * BURST + (most + 1) * RATE * now


def test_who_went_with_nothing_used_is_not_remembered() -> None:
    supply: Supply[int] = Supply(RATE, BURST, limit=5)
    for key in range(100):
        supply.take_back(key, supply.give(key, 0.0), 0.0)
    assert len(supply._used) == 0
    for key in range(100):
        bucket = supply.give(key, 0.0)
        empty(bucket, 0.0)
        supply.take_back(key, bucket, 0.0)
    assert len(supply._used) == 5


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:DB8:1:2::", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("::1", "::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("memory", "memory"),
        ("", ""),
    ],
)
def test_of_ipv6_a_whole_64_is_one(address: str, key: str) -> None:
    assert address_key(address) == key


@given(st.text(max_size=50))
def test_no_text_makes_it_raise(text: str) -> None:
    assert address_key(address_key(text)) == address_key(text)
