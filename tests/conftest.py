"""What holds for every test: nothing is left behind, and no time on the wall is asserted."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import HealthCheck, settings

# By itself Hypothesis fails an example that takes longer than 200 ms, or data that is slow to draw.
settings.register_profile("meshpeer", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("meshpeer")

pytest_plugins = ["pytester"]


def pytest_collection_finish() -> None:
    # `no_leaks` collects garbage after every test. What the imports made is never garbage; without
    # it a collection takes a millisecond instead of tens.
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _leave_nothing(no_leaks: None) -> None:
    """Every test, and first, so that it looks after every other fixture is gone."""


@pytest.fixture(autouse=True)
def _log_unconfigured() -> Iterator[None]:
    """A command configures structlog for the whole process; the next test finds it untouched."""
    yield
    structlog.reset_defaults()
