"""``python -m tests.network``: runs both tables of docs/recovery.md and writes them there.

Prints them as well. With ``--case`` only what matches is run, and nothing is written. Exit status
1 when a run did not end as it must (a time over its limit is only shown), 0 otherwise.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from tests.network import matrix, recovery
from tests.network.case import Case, Outcome

_FILE = Path("docs/recovery.md")
_BEGIN, _END = "<!-- network:begin -->", "<!-- network:end -->"


@dataclass(slots=True)
class Row:
    """A case, and what came of its runs."""

    case: Case
    outcomes: list[Outcome] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(each.seconds for each in self.outcomes)

    @property
    def p95(self) -> float:
        """Seconds; of ten runs, the longest."""
        ordered = sorted(each.seconds for each in self.outcomes)
        return ordered[math.ceil(0.95 * len(ordered)) - 1]

    async def run(self, swapped: bool) -> str:
        """Once more; returns what came of it, in words."""
        try:
            outcome = await self.case.run(swapped)
        except (AssertionError, TimeoutError) as exc:
            self.failures.append(str(exc))
            return "\n".join([f"FAILED: {exc}", *getattr(exc, "__notes__", ())])
        self.outcomes.append(outcome)
        return f"{outcome.seconds:.3f} s, {outcome.text}"

    def line(self, rows: dict[str, Row]) -> str:
        """As a line of a table."""
        case, runs = self.case, len(self.outcomes) + len(self.failures)
        texts = Counter(each.text for each in self.outcomes)
        outcome = ", ".join(texts) if not self.failures else f"failed {len(self.failures)} times"
        must = f"{case.of} ≤ {case.limit:g} s"
        base = None if case.beside is None else rows[case.beside]
        if base is not None:
            must += f" more than {base.case.name}"
        cells = [case.name, outcome, f"{len(self.outcomes)} of {runs}"]
        if not self.outcomes or (base is not None and not base.outcomes):
            return _cells(*cells, "", "", must, "no")
        over = 0 if base is None else getattr(base, case.of)
        met = not self.failures and getattr(self, case.of) - over <= case.limit
        figures = f"{self.median:.2f} s", f"{self.p95:.2f} s"
        return _cells(*cells, *figures, must, "yes" if met else "**no**")


def _cells(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _table(title: str, about: str, rows: list[Row]) -> str:
    by_name = {row.case.name: row for row in rows}
    return "\n".join(
        [
            f"### {title}\n\n{about}\n",
            _cells("case", "outcome", "runs", "median", "p95", "must", "met"),
            "|---|---|---|---:|---:|---|---|",
            *(row.line(by_name) for row in rows),
        ]
    )


def _versions() -> str:
    said = subprocess.run(["turnserver", "--version"], capture_output=True, text=True, check=False)
    kernel = platform.release().partition("-")[0]
    packages = ", ".join(f"{name} {version(name)}" for name in ("aiortc", "aioice"))
    return f"{packages}, coturn {said.stdout.split()[-1]}, Linux {kernel}"


def _report(connecting: list[Row], recovering: list[Row], runs: int) -> str:
    about = (
        f"Measured on {time.strftime('%Y-%m-%d')} by `python -m tests.network --runs {runs}` with "
        f"{_versions()}, {platform.machine()}. In half of the runs the other side dials. The p95 "
        "of ten runs is the longest."
    )
    parts = [about]
    if connecting:
        text = (
            "From the moment in which the side that dials knows of the other to that in which both "
            "are connected: from the offer on, with the signalling in between. The servers are "
            "those that the case names; otherwise none on the LAN, one for STUN where the path is "
            "direct, and the same for STUN and for TURN over UDP where it is not. Over the relay: "
            "until each has a message of the other, `relay_after` (3 s) included."
        )
        parts.append(_table("Networks", text, connecting))
    if recovering:
        text = (
            "From the break, or from when packets pass again, until each side has a message that "
            "was sent after it, and with it everything before. Both send one every 20 ms. A run "
            "fails when one is lost, repeated or reordered, or when there is a new connection (a "
            "new epoch) or another path at the end. Where UDP is blocked and there is no TURN "
            "server: until the messages come over the relay, or directly again. Of the peer that "
            "is killed: until the other one says `disconnected`."
        )
        parts.append(_table("Breaks", text, recovering))
    return "\n\n".join(parts) + "\n"


def _write(report: str) -> None:
    old = _FILE.read_text(encoding="utf-8") if _FILE.exists() else "# Recovery\n"
    if _BEGIN not in old:
        old += f"\n## On real networks\n\n{_BEGIN}\n{_END}\n"
    before, _, rest = old.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    _FILE.write_text(f"{before}{_BEGIN}\n{report}{_END}{after}", encoding="utf-8")


async def _run(rows: list[Row], runs: int) -> None:
    # What ends this program ends it in order: namespaces would outlive it.
    this = asyncio.current_task()
    assert this is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)
    # One run of each after the other, so that what else the machine does falls on all of them.
    for number in range(runs):
        for row in rows:
            said = await row.run(bool(number % 2))
            print(f"{number + 1}/{runs} {row.case.name}: {said}", file=sys.stderr, flush=True)


def _chosen(cases: list[Case], pattern: str) -> list[Row]:
    names = {case.name for case in cases if pattern in case.name}
    names |= {case.beside for case in cases if case.name in names and case.beside is not None}
    return [Row(case) for case in cases if case.name in names]


def main() -> int:
    """Run what was asked for; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.network", description=__doc__)
    parser.add_argument("--runs", type=int, default=10, help="how often each case is run")
    parser.add_argument("--case", metavar="PATTERN", help="only what has PATTERN in its name")
    options = parser.parse_args()
    pattern = options.case or ""
    connecting = _chosen(matrix.CASES, pattern)
    recovering = _chosen(recovery.cases(), pattern)
    rows = connecting + recovering
    if not rows:
        parser.error(f"--case {pattern}: no case has that in its name")
    try:
        asyncio.run(_run(rows, options.runs))
    except asyncio.CancelledError:
        return 128 + signal.SIGTERM
    report = _report(connecting, recovering, options.runs)
    print(report)
    if not pattern:
        _write(report)
    return 1 if any(row.failures for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
