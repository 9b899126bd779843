"""Starts the processes that measure, and makes results of what they say."""

from __future__ import annotations

import json
import signal
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

__all__ = ["LOOPS", "BenchError", "Benchmark", "Goal", "Process", "Result", "Samples", "alternate"]

LOOPS = ("asyncio", "uvloop")
_LONGEST = 300.0
"""Seconds that a process may take; one that hangs must not hang the run."""

Samples = Sequence[float]


class BenchError(Exception):
    """A benchmark could not run."""


class Process:
    """A `tests.bench.worker`, from the side of the harness. Ends with its ``with`` block."""

    def __init__(self, task: str, loop: str, **settings: Any) -> None:
        self._task = task
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.worker", task, loop, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._watchdog = threading.Timer(_LONGEST, self._process.kill)
        self._watchdog.start()

    def tell(self, value: Any) -> None:
        """Say something to the process. Raises `BenchError` when it is gone."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(value) + "\n")
            self._process.stdin.flush()
        except OSError as exc:
            raise self._gone() from exc

    def receive(self) -> Any:
        """What the process says next. Raises `BenchError` when it ends without saying anything."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._gone()
        return json.loads(line)

    def ask(self, value: Any) -> Any:
        """Say something and wait for the answer."""
        self.tell(value)
        return self.receive()

    def _gone(self) -> BenchError:
        status = self._process.wait()
        if status == -signal.SIGKILL:
            return BenchError(f"the process for {self._task} did not end within {_LONGEST:g} s")
        return BenchError(f"the process for {self._task} ended with status {status}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            self._process.kill()
        # Closes standard input, which tells it to end, and waits for it.
        self._process.communicate()
        self._watchdog.cancel()
        if error is None and self._process.returncode:
            raise self._gone()


@dataclass(frozen=True, slots=True)
class Goal:
    """What a figure should be."""

    limit: float
    of: str = "ratio"
    """``ratio`` to the reference, or ``value``."""
    at_least: bool = False

    def met(self, value: float, ratio: float) -> bool:
        """Whether it is."""
        figure = ratio if self.of == "ratio" else value
        return figure >= self.limit if self.at_least else figure <= self.limit

    def __str__(self) -> str:
        return f"{self.of} {'≥' if self.at_least else '≤'} {self.limit:g}"


@dataclass(frozen=True, slots=True)
class Result:
    """A row of the table."""

    name: str
    loop: str
    value: float
    unit: str
    reference: str
    reference_value: float
    goal: Goal
    n: int
    """How many values the median is of."""

    @property
    def ratio(self) -> float:
        """Ours through theirs."""
        return self.value / self.reference_value

    @property
    def met(self) -> bool:
        """Whether the goal is met."""
        return self.goal.met(self.value, self.ratio)

    def as_json(self) -> dict[str, object]:
        """As it stands in build/bench.json."""
        return {
            "name": self.name,
            "loop": self.loop,
            "value": self.value,
            "unit": self.unit,
            "reference": self.reference,
            "reference_value": self.reference_value,
            "ratio": self.ratio,
            "goal": str(self.goal),
            "met": self.met,
        }


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One thing that is measured."""

    name: str
    unit: str
    reference: str
    goal: Goal
    rounds: int
    """How often both sides are measured, alternately."""
    ours: Callable[[str], Samples]
    """Given the kind of event loop, starts the processes of one round and returns its values."""
    theirs: Callable[[str], Samples]
    loops: Sequence[str] = LOOPS
    """The kinds of event loop that it is measured on."""
    less: Callable[[str], Samples] | None = None
    """``ours`` with less to do, where a quick run would take long otherwise."""
    figures: Mapping[str, Callable[[Samples], float]] = field(
        default_factory=lambda: {"": statistics.median}
    )
    """What is made of our values: a row each, named by this after the name."""

    def run(self, loop: str, *, quick: bool) -> list[Result]:
        """Measure. Raises `BenchError`."""
        ours, theirs = alternate(
            min(2, self.rounds) if quick else self.rounds,
            self.less if quick and self.less else self.ours,
            self.theirs,
            loop,
        )
        return [
            Result(
                name=self.name + figure,
                loop=loop,
                value=of(ours),
                unit=self.unit,
                reference=self.reference,
                reference_value=statistics.median(theirs),
                goal=self.goal,
                n=min(len(ours), len(theirs)),
            )
            for figure, of in self.figures.items()
        ]


def alternate(
    rounds: int,
    ours: Callable[[str], Samples],
    theirs: Callable[[str], Samples],
    loop: str,
) -> tuple[list[float], list[float]]:
    """The values of both sides; each goes first in every other round, so that drift hits both."""
    values: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        sides = [(ours, values[0]), (theirs, values[1])]
        for measure, found in sides if number % 2 else reversed(sides):
            found.extend(measure(loop))
    return values
