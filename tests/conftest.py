"""What holds for every test: nothing is left behind."""

from __future__ import annotations

import gc

import pytest

pytest_plugins = ["pytester"]


def pytest_collection_finish() -> None:
    # `no_leaks` collects garbage after every test. What the imports made is never garbage; without
    # it a collection takes a millisecond instead of tens.
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _leave_nothing(no_leaks: None) -> None:
    """Every test, and first, so that it looks after every other fixture is gone."""
