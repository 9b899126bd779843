"""Runs scenarios in a process of their own, on hosts of their own. Needs no playwright itself."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.browser.hosts import two_hosts

__all__ = ["Run", "runs"]

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


def runs(scenario: str, count: int) -> Iterator[Run]:
    """Run one of `tests.browser.scenarios` so many times.

    Raises `subprocess.CalledProcessError` when one fails; why is on standard error then. Nothing is
    left behind when the iterator is closed.
    """
    with two_hosts() as (python, chromium):
        command = python.command(
            *(sys.executable, "-m", "tests.browser.worker", scenario, str(count), chromium.name)
        )
        with subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    yield Run(**json.loads(line))
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
