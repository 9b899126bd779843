"""Starts the processes that measure, and makes results of what they say."""

from __future__ import annotations

import json
import re
import signal
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self

import psutil  # type: ignore[import-untyped]

__all__ = [
    "LOOPS",
    "BenchError",
    "Benchmark",
    "Figure",
    "Goal",
    "Measurement",
    "Process",
    "Program",
    "Result",
    "Samples",
    "Scenario",
    "alternate",
]

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


class Program:
    """Another program, from the side of the harness. Ends with its ``with`` block."""

    def __init__(self, *command: str, errors: int | None = None) -> None:
        self._name = command[0]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        self._watchdog = threading.Timer(_LONGEST, self.process.kill)
        self._watchdog.start()
        self._reading: threading.Thread | None = None

    def wait_for(self, pattern: str) -> re.Match[str]:
        """What it writes on standard output that has this in it; what follows is not looked at.

        Raises `BenchError` when it ends without.
        """
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if match := re.search(pattern, line):
                # It may have much to say, and must not wait for somebody to read it.
                self._reading = threading.Thread(target=self.process.stdout.read)
                self._reading.start()
                return match
        raise BenchError(f"{self._name} ended with status {self.process.wait()}")

    def used(self) -> dict[str, float]:
        """Bytes of memory and seconds of CPU time."""
        process = psutil.Process(self.process.pid)
        cpu = process.cpu_times()
        return {"rss": process.memory_info().rss, "cpu": cpu.user + cpu.system}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.process.terminate()
        self.process.wait()
        if self._reading is not None:
            self._reading.join()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._watchdog.cancel()


@dataclass(frozen=True, slots=True)
class Goal:
    """What a figure should be."""

    limit: float
    of: str = "ratio"
    """``ratio`` to the reference, or ``value``."""
    at_least: bool = False

    def met(self, value: float, ratio: float | None) -> bool:
        """Whether it is."""
        figure = ratio if self.of == "ratio" else value
        assert figure is not None
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
    reference_value: float | None
    """None: there is nothing to compare with."""
    goal: Goal | None
    n: int
    """How many values the median is of."""

    @property
    def ratio(self) -> float | None:
        """Ours through theirs."""
        return self.value / self.reference_value if self.reference_value else None

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None without one."""
        return self.goal.met(self.value, self.ratio) if self.goal else None

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
            "goal": str(self.goal) if self.goal else None,
            "met": self.met,
        }


class Measurement(Protocol):
    """What `python -m tests.bench` runs."""

    @property
    def name(self) -> str:
        """What ``--only`` looks for."""
        ...

    @property
    def loops(self) -> Sequence[str]:
        """The kinds of event loop that it is measured on."""
        ...

    def run(self, loop: str, *, quick: bool) -> list[Result]:
        """Measure. Raises `BenchError`."""
        ...


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One thing that is measured, of ours and of what it is compared with."""

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


@dataclass(frozen=True, slots=True)
class Figure:
    """One of the figures of a `Scenario`, in one round."""

    name: str
    value: float
    unit: str
    goal: Goal | None = None
    reference: str = ""
    reference_value: float | None = None


@dataclass(frozen=True, slots=True)
class Scenario:
    """What has several figures, each with its goal. The value of each is the median."""

    name: str
    rounds: int
    measure: Callable[[str, bool], Sequence[Figure]]
    """Given the kind of event loop, and whether it is to be quick: one round, always of the same
    figures."""
    loops: Sequence[str] = LOOPS

    def run(self, loop: str, *, quick: bool) -> list[Result]:
        """Measure. Raises `BenchError`."""
        rounds = [self.measure(loop, quick) for _ in range(1 if quick else self.rounds)]
        return [
            Result(
                name=f"{self.name}: {figures[0].name}",
                loop=loop,
                value=statistics.median(figure.value for figure in figures),
                unit=figures[0].unit,
                reference=figures[0].reference,
                reference_value=statistics.median(values) if values else None,
                goal=figures[0].goal,
                n=len(rounds),
            )
            for figures in zip(*rounds, strict=True)
            for values in [[f.reference_value for f in figures if f.reference_value is not None]]
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
