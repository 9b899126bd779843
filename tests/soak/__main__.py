"""``python -m tests.soak --minutes 2``: everybody sends to everybody while everything breaks.

Eight processes in a room send numbered messages to each other on two channels. Meanwhile the relay
is killed and started again, direct paths are cut and restored, processes are stopped and continued,
and addresses change, as drawn from the seed. In the end nothing may be lost, repeated or out of
order. Exit status 0 when that is so. Needs root, and what `tests.network` needs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import sys
from collections import Counter
from pathlib import Path

from tests.soak.run import RATE, Pair, Report, names, soak
from tests.soak.schedule import SHORTEST, Fault, schedule

_LOG = Path("build/soak.jsonl")


def _say(line: str) -> None:
    print(line, flush=True)


def _table(pairs: list[Pair]) -> str:
    rows = [("from", "to", "sent", "received", "over", "longest pause", "")]
    for pair in pairs:
        over = ", ".join(f"{path} {count}" for path, count in sorted(pair.paths.items()))
        rows.append(
            (
                *(pair.sender, pair.receiver, str(pair.sent), str(pair.received)),
                *(over, f"{pair.pause:.1f} s", pair.wrong or "all right"),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def show(report: Report, faults: list[Fault]) -> str:
    """The whole run, for people."""
    kinds = Counter(fault.kind for fault in faults)
    paths: Counter[str] = Counter()
    for pair in report.pairs:
        paths.update(pair.paths)
    over = ", ".join(f"{path} {count}" for path, count in sorted(paths.items()))
    bad = [pair for pair in report.pairs if pair.wrong]
    return "\n".join(
        [
            _table(report.pairs),
            "",
            *(f"WRONG: {text}" for text in report.wrong),
            *(f"WRONG: {pair.sender} to {pair.receiver}: {pair.wrong}" for pair in bad),
            f"faults: {', '.join(f'{kind} {count}' for kind, count in kinds.items())}",
            f"{sum(pair.sent for pair in report.pairs)} messages sent, over {over}",
            "0 lost, 0 repeated, 0 out of order" if report.good else "FAILED",
        ]
    )


async def _run(seed: int, seconds: float, rate: float) -> Report:
    # What ends this program ends it in order: namespaces would outlive it.
    this = asyncio.current_task()
    assert this is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)
    return await soak(schedule(seed, seconds, names), seconds, rate, _say)


def main() -> int:
    """Run it; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seed", type=int, help="of what breaks; drawn when it is not given")
    parser.add_argument(
        "--rate", type=float, default=RATE, help="messages a second from each to each"
    )
    options = parser.parse_args()
    seconds = options.minutes * 60
    if seconds < SHORTEST:
        parser.error(f"--minutes {options.minutes:g}: at least {SHORTEST / 60:g}")
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    _say(f"--minutes {options.minutes:g} --seed {seed} --rate {options.rate:g}")
    faults = schedule(seed, seconds, names)
    for fault in faults:
        _say(f"  {fault}")
    try:
        report = asyncio.run(_run(seed, seconds, options.rate))
    except asyncio.CancelledError:
        return 128 + signal.SIGTERM
    _LOG.parent.mkdir(exist_ok=True)
    _LOG.write_text("".join(f"{json.dumps(said)}\n" for said in report.log), encoding="utf-8")
    _say(f"{show(report, faults)}\neverything that was said: {_LOG}")
    return 0 if report.good else 1


if __name__ == "__main__":
    sys.exit(main())
