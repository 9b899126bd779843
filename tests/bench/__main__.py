"""``python -m tests.bench``: measures, prints a table, writes build/bench.json.

Exit status 0 whatever the figures are, 2 when something could not be measured.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench.harness import LOOPS, BenchError, Result
from tests.bench.measures import BENCHMARKS

_FILE = Path("build/bench.json")
_MET = {True: "ok", False: "missed", None: "no goal"}
_VERSIONS = ("meshpeer", "aiortc", "aioice", "websockets", "uvloop")


def _said(value: float | None, digits: str, unit: str = "") -> str:
    return "" if value is None else f"{value:{digits}} {unit}".rstrip()


def _table(results: list[Result]) -> Table:
    about = ", ".join(f"{name} {version(name)}" for name in _VERSIONS)
    table = Table(
        title=f"{time.strftime('%Y-%m-%d')}, Python {platform.python_version()}, {about}",
        title_justify="left",
    )
    table.add_column("what")
    table.add_column("loop")
    for column in ("value", "reference value", "ratio"):
        table.add_column(column, justify="right")
    table.add_column("reference")
    table.add_column("goal")
    table.add_column("met")
    table.add_column("n", justify="right")
    for result in results:
        table.add_row(
            result.name,
            result.loop,
            f"{result.value:.3g} {result.unit}",
            _said(result.reference_value, ".3g", result.unit),
            _said(result.ratio, ".2f"),
            result.reference,
            str(result.goal or ""),
            "[bold]no[/]" if result.met is False else "yes" if result.met else "",
            str(result.n),
        )
    return table


def main() -> int:
    """Run what was asked for; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--only", metavar="NAME", help="only what has NAME in its name")
    parser.add_argument("--loop", choices=LOOPS, help="only on this event loop")
    parser.add_argument("--quick", action="store_true", help="two rounds: to see that it runs")
    options = parser.parse_args()
    chosen = [b for b in BENCHMARKS if options.only is None or options.only in b.name]
    if not chosen:
        parser.error(f"--only {options.only}: there are {', '.join(b.name for b in BENCHMARKS)}")
    # Wide enough for the table, wherever it goes; notes go to standard error.
    out, notes = Console(width=140), Console(stderr=True)
    results: list[Result] = []
    failed = False
    for benchmark in chosen:
        for loop in benchmark.loops:
            if options.loop not in (None, loop):
                continue
            notes.print(f"{benchmark.name}, {loop} …", highlight=False)
            try:
                found = benchmark.run(loop, quick=options.quick)
            except BenchError as error:
                failed = True
                notes.print(f"  could not be measured: {error}", style="bold", highlight=False)
            else:
                results.extend(found)
                for result in found:
                    notes.print(
                        f"  {result.name}: {_said(result.value, '.3g', result.unit)}"
                        f", reference {_said(result.reference_value, '.3g', result.unit) or 'none'}"
                        f", {_MET[result.met]}",
                        highlight=False,
                    )
    out.print(_table(results))
    _FILE.parent.mkdir(exist_ok=True)
    _FILE.write_text(
        json.dumps([result.as_json() for result in results], indent=2, ensure_ascii=False) + "\n",
        encoding="utf-8",
    )
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
