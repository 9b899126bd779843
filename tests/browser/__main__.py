"""``python -m tests.browser``: measures against Chromium, and writes it into docs/recovery.md.

Exit status 0 whatever the figures are; a scenario that fails ends it.
"""

from __future__ import annotations

import argparse
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from tests.browser.hosts import CHROMIUM, missing
from tests.browser.launch import Run, runs

_PAGE = Path(__file__).parents[2] / "docs" / "recovery.md"
_BEGIN, _END = "<!-- browser:begin -->", "<!-- browser:end -->"


class Row(NamedTuple):
    """A line of the table."""

    scenario: str
    goal: float | None
    words: str
    only: str | None = None
    """Which of the times of a run; None: the longest."""

    def figure(self, run: Run) -> float:
        """The time that the line is about."""
        return max(run.took.values()) if self.only is None else run.took[self.only]


ROWS = [
    Row("python dials", 0.3, "open a channel, Python dials"),
    Row("page dials", 0.3, "open a channel, Chromium dials"),
    Row("python dials, page does not trickle", 0.3, "the same, all candidates in its answer"),
    Row("page dials, page does not trickle", 0.3, "the same, all candidates in its offer"),
    Row("raw aiortc offers", None, "the same with raw aiortc, which offers"),
    Row("raw aiortc answers", None, "the same with raw aiortc, which answers"),
    Row("restart by page", 2.0, "Chromium's `restartIce()`"),
    Row("restart by python", 2.0, "our ICE restart"),
    Row("restart by both", 2.0, "both restart at once"),
    Row("ten restarts", 2.0, "ten restarts in a row, by each side in turn; the last"),
    Row("page offline", 2.0, "page offline for 10 s, data to Chromium", "to page"),
    Row("page offline", 2.0, "page offline for 10 s, data to Python", "to python"),
]
_COLUMNS = (
    *("what", "runs", "median", "p95", "must", "met"),
    *("lost / repeated / reordered", "connections given up"),
)
_WORDS = """\
Opening is timed from the offer until the message channel is open on both sides; a restart from the
call until a message has arrived over the new generation on both sides; an outage from its end. A
stream of numbered messages runs both ways meanwhile, one every 10 ms.

After an outage, what Python had waiting goes out at once. What Chromium had waiting goes out when
its SCTP tries again: 1.2 s and 2.8 s after the path broke, and then every 3 s. That makes 1.8 s
after an outage of 10 s, and up to 3 s after one of another length.
"""


def _p95(values: list[float]) -> float:
    """The nearest rank: of ten, the largest."""
    return sorted(values)[math.ceil(0.95 * len(values)) - 1]


def _line(row: Row, done: list[Run]) -> str:
    figures = [row.figure(run) for run in done]
    p95 = _p95(figures)
    cells = [row.words, str(len(done)), f"{statistics.median(figures):.2f} s", f"{p95:.2f} s"]
    if row.goal is None:  # raw aiortc: nothing is asked of it, and no messages were sent
        return _row([*cells, "", "", "", ""])
    wrong = " / ".join(
        str(sum(getattr(run, name) for run in done)) for name in ("lost", "repeated", "reordered")
    )
    again = sum(run.connections - 1 for run in done)
    met = "yes" if p95 <= row.goal else "**no**"
    return _row([*cells, f"≤ {row.goal:g} s", met, wrong, str(again)])


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _about(count: int) -> str:
    said = subprocess.run([CHROMIUM, "--version"], check=True, text=True, capture_output=True)
    chromium = " ".join(said.stdout.split()[:2])
    packages = ", ".join(f"{name} {version(name)}" for name in ("meshpeer", "aiortc", "aioice"))
    return (
        f"Measured on {time.strftime('%Y-%m-%d')} with {chromium}, {packages}: "
        f"`python -m tests.browser --runs {count}`."
    )


def _write(text: str) -> None:
    page = _PAGE.read_text(encoding="utf-8") if _PAGE.exists() else "# Recovery\n"
    if _BEGIN not in page:
        page = f"{page.rstrip()}\n\n## With a browser\n\n{_BEGIN}\n{_END}\n"
    before, _, rest = page.partition(_BEGIN)
    after = rest.partition(_END)[2]
    _PAGE.write_text(f"{before}{_BEGIN}\n{text}{_END}{after}", encoding="utf-8")


def main() -> int:
    """Run what was asked for; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.browser", description=__doc__)
    parser.add_argument("--runs", type=int, default=10, metavar="N", help="of each (10)")
    parser.add_argument(
        "--only", metavar="TEXT", help="only what has TEXT in its name; not written"
    )
    options = parser.parse_args()
    if lacks := missing():
        parser.error(f"this machine lacks {', '.join(lacks)}")
    rows = [row for row in ROWS if options.only is None or options.only in row.scenario]
    done: dict[str, list[Run]] = {row.scenario: [] for row in rows}
    for scenario, shown in done.items():
        for run in runs(scenario, options.runs):
            print(f"{scenario}: {run}", file=sys.stderr)
            shown.append(run)
    lines = [_row(_COLUMNS), _row("---" for _ in _COLUMNS)]
    lines += [_line(row, done[row.scenario]) for row in rows]
    table = "\n".join(lines)
    print(table)
    if options.only is None:
        _write(f"{_about(options.runs)}\n\n{table}\n\n{_WORDS}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
