"""Every test of this folder needs real networks."""

from __future__ import annotations

import pytest

from tests.network.needs import require_lab


@pytest.fixture(autouse=True)
def _real_networks() -> None:
    require_lab()
