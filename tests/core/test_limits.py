"""Token buckets take what is there, forget what is full, and stay within their bound."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshpeer.core.limits import Bucket, Buckets, address_key

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
