"""The stream that comes out is the stream that went in, whatever happens to the paths.

What Hypothesis finds it makes small; the runs of the seeded driver are many.
"""

from __future__ import annotations

import os
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.sim.pair import CHANNELS, OPS, SIZES, Config, Pair, Step

SEEDED = int(os.environ.get("MESHPEER_SIM_RUNS", "9000"))
MESSAGES = int(os.environ.get("MESHPEER_SIM_MESSAGES", "1000000"))

configs = st.builds(
    Config,
    channel=st.sampled_from((32, 40, 100)),
    send=st.sampled_from((16, 64, 1000)),
    receive=st.sampled_from((64, 256)),
    message=st.sampled_from((1, 20, 64)),
)
steps = st.builds(
    Step, st.sampled_from(OPS), st.integers(0, 1), st.integers(0, 1000), st.integers(0, 1000)
)


@pytest.mark.timeout(300)
@settings(
    max_examples=1000,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(configs, configs, st.lists(steps, max_size=80))
def test_what_goes_in_comes_out(one: Config, other: Config, schedule: list[Step]) -> None:
    pair = Pair(one, other)
    pair.run(schedule)
    pair.settle()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(10))
def test_ten_thousand_runs(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(SEEDED // 10):
        configs = [
            Config(
                channel=rng.choice((32, 40, 100)),
                send=rng.choice((16, 64, 1000)),
                receive=(receive := rng.choice((64, 256))),
                message=rng.choice((1, 20, receive)),
            )
            for _ in range(2)
        ]
        pair = Pair(*configs)
        pair.run(
            Step(rng.choice(OPS), rng.randrange(2), rng.randrange(1000), rng.randrange(1000))
            for _ in range(rng.randrange(10, 150))
        )
        pair.settle()


@pytest.mark.timeout(600)
def test_a_million_messages_over_hundreds_of_paths() -> None:
    """Mostly small ones, some of them over a window."""
    rng = random.Random(1)
    pair = Pair(Config(), Config(channel=100, send=256))
    faults = [op for op in OPS if op not in ("send", "pull", "carry", "take", "give up")]
    while pair.delivered < MESSAGES:
        for at in range(2):
            for channel in CHANNELS:
                count = rng.randrange(100)
                while count and pair.accept(at, channel, 10 + count):
                    count -= 1
                if rng.random() < 0.01:
                    pair.accept(at, channel, rng.choice(SIZES))
            for number in range(len(pair.ends[at].lines)):
                pair.carry(at, number, 9)
            pair.pull(at, rng.randrange(3, 6), 9)
            for _ in range(rng.randrange(40)):
                pair.take(at, 0, 19)
        for _ in range(rng.randrange(6)):
            op = rng.choice(faults)
            pair.run([Step(op, rng.randrange(2), rng.randrange(1000), rng.randrange(1000))])
    pair.settle()
    assert pair.epochs > MESSAGES / 2000
