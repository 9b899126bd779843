"""Two peers connect through every network, over the path that it must be."""

from __future__ import annotations

import pytest

from tests.network.case import Case
from tests.network.matrix import CASES


@pytest.mark.parametrize("swapped", [False, True], ids=["left dials", "right dials"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_connects(case: Case, swapped: bool) -> None:
    await case.run(swapped)
