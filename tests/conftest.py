"""What holds for every test: nothing is left behind, and no time on the wall is asserted."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# By itself Hypothesis fails an example that takes longer than 200 ms, or data that is slow to draw.
settings.register_profile("meshpeer", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("meshpeer")

pytest_plugins = ["pytester"]


_TESTS = Path(__file__).parent
_WHOLE_MACHINE = ("network", "browser", "soak")


@pytest.hookimpl(tryfirst=True)  # before xdist looks at it
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where tests run in several processes, those that build networks or drive a browser run in one
    of them, one after another: they have the machine's namespaces and much of its processor."""
    for item in items:
        if item.path.is_relative_to(_TESTS):
            group = item.path.relative_to(_TESTS).parts[0]
            if group in _WHOLE_MACHINE:
                item.add_marker(pytest.mark.xdist_group("the whole machine"))


def pytest_collection_finish() -> None:
    # `no_leaks` collects garbage after every test. What the imports made is never garbage; without
    # it a collection takes a millisecond instead of tens.
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _leave_nothing(no_leaks: None) -> None:
    """Every test, and first, so that it looks after every other fixture is gone."""
