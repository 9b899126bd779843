"""``python -m tests.browser.worker SCENARIO RUNS HOST``: runs a scenario, on Python's host.

Writes each run as a line of JSON. In a process of its own, since a process is in one network
namespace, and so that nothing of what drives Chromium stays in the one that runs the tests.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict

from tests.browser.hosts import Host
from tests.browser.scenarios import SCENARIOS, Stage

__all__: list[str] = []


async def _main(scenario: str, runs: int, host: str) -> None:
    async with Stage.set(Host(host)) as stage:
        for _ in range(runs):
            print(json.dumps(asdict(await SCENARIOS[scenario](stage))), flush=True)


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
