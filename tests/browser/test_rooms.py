"""People in Chromium's tabs, bots and a relay: nothing is lost, repeated or left behind.

How long it takes is in docs/browser.md.
"""

from __future__ import annotations

import pytest

from tests.browser.firefox import missing as firefox_missing
from tests.browser.hosts import missing
from tests.browser.launch import shown
from tests.browser.needs import need
from tests.needs import require


@pytest.fixture(autouse=True)
def _can_run() -> None:
    need(missing())


IN_FIREFOX = ["two tabs and a bot", "reload", "blocked", "turn", "same id", "reconnects"]


def nothing_is_wrong(scenario: str, browser: str) -> None:
    if scenario == "turn":
        require("turnserver")
    [run] = shown(scenario, 1, browser=browser)
    assert {what: count for what, count in run.wrong.items() if count} == {}


@pytest.mark.parametrize(
    "scenario",
    [
        "two tabs and a bot",
        "reload",
        "offline",
        "blocked",
        "turn",
        "relay restart",
        "background",
        "duplicated",
        "same id",
        "much to the bot",
        "much to the tab",
        "markup",
        "reconnects",
    ],
)
def test_nothing_is_wrong(scenario: str) -> None:
    nothing_is_wrong(scenario, "chromium")


@pytest.mark.parametrize("scenario", IN_FIREFOX)
def test_nothing_is_wrong_in_firefox(scenario: str) -> None:
    need(firefox_missing())
    nothing_is_wrong(scenario, "firefox")
