"""Runs scenarios in a process of their own, on hosts of their own. Needs no playwright itself."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.browser.hosts import two_hosts

__all__ = ["Run", "Shown", "runs", "shown"]

_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Run:
    """What one run of a scenario showed."""

    took: dict[str, float]
    """Seconds, each with what they are of."""
    lost: int = 0
    repeated: int = 0
    reordered: int = 0
    connections: int = 1
    """How many there were; more than one when a restart was not enough."""


@dataclass(frozen=True)
class Shown:
    """What one run of `tests.browser.rooms` showed."""

    figures: dict[str, float]
    """Seconds, or what else is measured, each with what it is of."""
    wrong: dict[str, int]
    """What must not be, and how often it was."""


def runs(scenario: str, count: int) -> Iterator[Run]:
    """Run one of `tests.browser.scenarios` so many times.

    Raises `subprocess.CalledProcessError` when one fails; why is on standard error then. Nothing is
    left behind when the iterator is closed.
    """
    for line in _lines("tests.browser.worker", scenario, count):
        yield Run(**line)


def shown(
    scenario: str, count: int, *, long: bool = False, browser: str = "chromium"
) -> Iterator[Shown]:
    """Run one of `tests.browser.rooms` so many times, as `runs` does.

    ``long``: it takes as long, and is as much, as docs/browser.md says. ``browser`` may be
    ``firefox``.
    """
    more = [f"--browser={browser}", *(["--long"] if long else [])]
    for line in _lines("tests.browser.rooms", scenario, count, *more):
        yield Shown(**line)


def _lines(module: str, scenario: str, count: int, *more: str) -> Iterator[dict[str, Any]]:
    with two_hosts() as (python, chromium):
        command = python.command(
            *(sys.executable, "-m", module, scenario, str(count), chromium.name, *more)
        )
        with subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    yield json.loads(line)
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
