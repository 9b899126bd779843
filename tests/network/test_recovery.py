"""A connection outlives what breaks under it: nothing lost, repeated or reordered, no new one."""

from __future__ import annotations

import pytest

from tests.network.case import Case
from tests.network.recovery import cases

# Long enough to be noticed (2.5 s), answered by a restart, and for that to get nowhere.
_CASES = cases(outage=5)


@pytest.mark.parametrize("swapped", [False, True], ids=["left dials", "right dials"])
@pytest.mark.parametrize("case", _CASES, ids=lambda case: case.name)
async def test_recovers(case: Case, swapped: bool) -> None:
    await case.run(swapped)
