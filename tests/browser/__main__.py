"""``python -m tests.browser``: measures against Chromium, and writes it into docs/.

What Chromium and Python do with each other goes into docs/recovery.md, what `meshpeer.js` shows in
rooms of people and bots into docs/browser.md. Exit status 0 whatever the figures are; a scenario
that fails ends it.
"""

from __future__ import annotations

import argparse
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from tests.browser.firefox import FIREFOX
from tests.browser.firefox import missing as firefox_missing
from tests.browser.hosts import CHROMIUM, missing
from tests.browser.launch import Run, Shown, runs, shown

_DOCS = Path(__file__).parents[2] / "docs"
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


class Measure(NamedTuple):
    """A line of the table of docs/browser.md."""

    scenario: str
    words: str
    must: str
    figure: str | None = None
    """Which figure of a run; None: the largest, where there is one."""
    most: float | None = None
    least: float | None = None
    unit: str = " s"
    runs: int = 10
    """How often at most."""


_TIMES = "\N{MULTIPLICATION SIGN}"


def _beside_bare(way: str, figure: str, words: str) -> Measure:
    must = f"≥ 0.9 {_TIMES} a bare `RTCDataChannel`"
    return Measure(way, words, must, figure, least=0.9, unit=f" {_TIMES}", runs=2)


MEASURES = [
    Measure(
        "two tabs and a bot",
        "two tabs and a Python bot in one room: three direct connections, messages all ways",
        "≤ 0.5 s from the last join",
        most=0.5,
    ),
    Measure(
        "reload",
        "F5 in one tab, ten times, until it is connected again",
        "≤ 0.7 s each; one peer throughout",
        most=0.7,
        runs=5,
    ),
    Measure(
        *("offline", "tab offline for 10 s, then data to the tab", "≤ 2 s", "to the tab"),
        most=2.0,
        runs=5,
    ),
    Measure(
        *("offline", "tab offline for 10 s, then data to the bot", "≤ 2 s", "to the bot"),
        most=2.0,
        runs=5,
    ),
    Measure(
        *("blocked", "WebRTC blocked in one tab, until it talks over the relay", "marked so"),
        "over the relay",
        runs=5,
    ),
    Measure("blocked", "WebRTC allowed again, until it is direct", "it moves", "direct", runs=5),
    Measure(
        "turn",
        "no path but TURN, and the server is killed: until they talk over the relay",
        "it moves",
        runs=2,
    ),
    Measure(
        "relay restart",
        "relay killed and restarted under ten tabs and five bots, until all are in it again",
        "no one leaves, links undisturbed",
        runs=2,
    ),
    Measure(
        "background",
        "a tab in the background for five minutes: changes of state",
        "none: still connected",
        "changes of state",
        most=0,
        unit="",
        runs=1,
    ),
    Measure("duplicated", "a tab duplicated by the browser", "gets an id of its own", runs=5),
    Measure(
        "same id",
        "two tabs with one id",
        "the later takes over with the token, is refused without; both told",
        runs=5,
    ),
    _beside_bare("much to the bot", "messages", "50 000 messages of 64 bytes to the bot"),
    _beside_bare("much to the tab", "messages", "50 000 messages of 64 bytes to the tab"),
    _beside_bare("much to the bot", "file", "a file of 100 MB to the bot"),
    _beside_bare("much to the tab", "file", "a file of 100 MB to the tab"),
    Measure("markup", "a name and a message with markup and script", "shown as text", runs=3),
    Measure(
        *("reconnects", "connections of a tab with two peers after 100 reconnects"),
        *("one a peer", "open"),
        most=2,
        unit="",
        runs=1,
    ),
]
_BACKGROUND = "background"
Behind = Mapping[str, Future[list[Shown]]]
"""By browser: five minutes in which next to nothing happens, and so beside what else does."""
_IN_FIREFOX = {
    *("two tabs and a bot", "reload", "offline", "blocked", "turn", "relay restart", "same id"),
    "background",
}
_FIREFOX_RUNS = 2
_MEASURED = ("what", "runs", "median", "p95", "must", "met", "lost, repeated, or otherwise wrong")
_ABOUT_MEASURES = """\
Each person is a browser context of one Chromium, on a host of its own (a network namespace); the
bots and the relay are on another one. The first line is timed from the call of `start` in the last
tab; F5 from the reload until both others, and the tab itself, are connected again; an outage from
its end. Of ratios, the p95 is the lowest. A stream of numbered messages runs meanwhile where
something is interrupted.
"""


def _measured(measure: Measure, done: list[Shown]) -> str:
    figures = [
        max(run.figures.values()) if measure.figure is None else run.figures[measure.figure]
        for run in done
        if run.figures
    ]
    cells = [measure.words, str(len(done)), "", ""]
    met = True
    if figures:
        # What must be large is bad where it is small.
        worst = min(figures) if measure.least is not None else _p95(figures)
        digits = 2 if measure.unit else 0
        cells[2:] = (
            f"{value:.{digits}f}{measure.unit}" for value in (statistics.median(figures), worst)
        )
        met = (measure.most is None or worst <= measure.most) and (
            measure.least is None or worst >= measure.least
        )
    wrong: dict[str, int] = {}
    for run in done:
        for what, count in run.wrong.items():
            wrong[what] = wrong.get(what, 0) + count
    told = ", ".join(f"{what}: {count}" for what, count in wrong.items() if count) or "nothing"
    met = met and told == "nothing"
    return _row([*cells, measure.must, "yes" if met else "**no**", told])


def _version(browser: str) -> str:
    said = subprocess.run([browser, "--version"], check=True, text=True, capture_output=True)
    return " ".join(word for word in said.stdout.split()[:3] if word != "built")


def _about(count: int) -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("meshpeer", "aiortc", "aioice"))
    return (
        f"Measured on {time.strftime('%Y-%m-%d')} with {_version(CHROMIUM)}, {packages}: "
        f"`python -m tests.browser --runs {count}`."
    )


def _write(name: str, title: str, text: str) -> None:
    file = _DOCS / name
    page = file.read_text(encoding="utf-8") if file.exists() else f"# {title}\n"
    if _BEGIN not in page:
        page = f"{page.rstrip()}\n\n## Measured with Chromium\n\n{_BEGIN}\n{_END}\n"
    before, _, rest = page.partition(_BEGIN)
    after = rest.partition(_END)[2]
    file.write_text(f"{before}{_BEGIN}\n{text}{_END}{after}", encoding="utf-8")


def _recovery(options: argparse.Namespace) -> None:
    rows = [row for row in ROWS if options.only is None or options.only in row.scenario]
    done: dict[str, list[Run]] = {row.scenario: [] for row in rows}
    for scenario, found in done.items():
        for run in runs(scenario, options.runs):
            print(f"{scenario}: {run}", file=sys.stderr)
            found.append(run)
    lines = [_row(_COLUMNS), _row("---" for _ in _COLUMNS)]
    lines += [_line(row, done[row.scenario]) for row in rows]
    table = "\n".join(lines)
    print(table)
    if options.only is None:
        _write("recovery.md", "Recovery", f"{_about(options.runs)}\n\n{table}\n\n{_WORDS}")


def _shown(measure: Measure, options: argparse.Namespace, browser: str) -> list[Shown]:
    found = []
    count = min(options.runs, measure.runs)
    for run in shown(measure.scenario, count, long=not options.short, browser=browser):
        print(f"{browser}, {measure.scenario}: {run}", file=sys.stderr)
        found.append(run)
    return found


def _rooms(options: argparse.Namespace, browser: str, behind: Behind) -> str:
    """The table of one browser."""
    measures = [
        each
        for each in MEASURES
        if (options.only is None or options.only in each.scenario)
        and (browser == "chromium" or each.scenario in _IN_FIREFOX)
    ]
    done: dict[str, list[Shown]] = {}
    for measure in measures:
        if measure.scenario == _BACKGROUND and browser in behind:
            done[measure.scenario] = behind[browser].result()
        elif measure.scenario not in done:
            done[measure.scenario] = _shown(measure, options, browser)
    lines = [_row(_MEASURED), _row("---" for _ in _MEASURED)]
    lines += [_measured(each, done[each.scenario]) for each in measures]
    table = "\n".join(lines)
    print(table)
    return table


def _both_rooms(options: argparse.Namespace, behind: Behind) -> None:
    table = _rooms(options, "chromium", behind)
    text = f"{_about(options.runs)}\n\n{table}\n\n{_ABOUT_MEASURES}"
    if firefox_missing():
        print(f"not with Firefox: this machine lacks {', '.join(firefox_missing())}")
    else:
        options.runs = min(options.runs, _FIREFOX_RUNS)
        text += f"\nWith {_version(FIREFOX)}:\n\n{_rooms(options, 'firefox', behind)}\n"
    if options.only is None and not options.short:
        _write("browser.md", "In the browser", text)


def main() -> int:
    """Run what was asked for; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.browser", description=__doc__)
    parser.add_argument("--runs", type=int, default=10, metavar="N", help="of each (10)")
    parser.add_argument(
        "--only", metavar="TEXT", help="only what has TEXT in its name; not written"
    )
    parser.add_argument("--table", choices=["recovery", "rooms"], help="only this one")
    parser.add_argument(
        "--short", action="store_true", help="rooms as in the tests: less, not written"
    )
    options = parser.parse_args()
    if lacks := missing():
        parser.error(f"this machine lacks {', '.join(lacks)}")
    with ThreadPoolExecutor() as threads:
        behind: dict[str, Future[list[Shown]]] = {}
        if options.only is None and options.table != "recovery":
            [measure] = (each for each in MEASURES if each.scenario == _BACKGROUND)
            for browser in ["chromium"] if firefox_missing() else ["chromium", "firefox"]:
                behind[browser] = threads.submit(_shown, measure, options, browser)
        if options.table != "rooms":
            _recovery(options)
        if options.table != "recovery":
            _both_rooms(options, behind)
    return 0


if __name__ == "__main__":
    sys.exit(main())
