"""A page in Chromium and Python: they connect, and restart, and nothing is lost."""

from __future__ import annotations

import pytest

from tests.browser.hosts import missing
from tests.browser.launch import runs
from tests.browser.needs import need


@pytest.fixture(autouse=True)
def _can_run() -> None:
    need(missing())


@pytest.mark.parametrize(
    "scenario",
    [
        "python dials",
        "page dials",
        "python dials, page does not trickle",
        "page dials, page does not trickle",
        "restart by page",
        "restart by python",
        "restart by both",
        "ten restarts",
        "page offline",
    ],
)
def test_every_message_arrives_once_and_in_order(scenario: str) -> None:
    [run] = runs(scenario, 1)
    assert (run.lost, run.repeated, run.reordered) == (0, 0, 0)
    assert run.connections == 1, "it took another connection"


@pytest.mark.parametrize("dialler", ["python", "page"])
def test_nothing_is_lost_with_a_connection(dialler: str) -> None:
    [run] = runs(f"connections lost, {dialler} dials", 1)
    assert (run.lost, run.repeated, run.reordered) == (0, 0, 0)
    assert run.connections == 3
