"""Real networks need root and what Debian's packages bring."""

from __future__ import annotations

import os

import pytest

from tests.coturn import require
from tests.network.lab import Lab, Nat


@pytest.fixture(scope="session")
def _namespaces() -> str | None:
    """Why no lab can be built here; None when one can."""
    try:
        with Lab() as lab:
            lab.router("home", Nat.FULL_CONE)
    except (OSError, RuntimeError) as exc:
        return f"no network namespaces can be made here, which takes root: {exc}"
    return None


@pytest.fixture(autouse=True)
def _real_networks(request: pytest.FixtureRequest) -> None:
    require("ip", "nft", "conntrack", "turnserver", "openssl")
    missing = request.getfixturevalue("_namespaces")
    if missing is not None:
        (pytest.fail if os.environ.get("MESHPEER_NO_SKIPS") else pytest.skip)(missing)
