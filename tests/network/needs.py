"""What tests in real networks need of a machine: root, and what Debian's packages bring."""

from __future__ import annotations

from functools import cache

from tests.needs import lacking, require
from tests.network.lab import Lab, Nat

__all__ = ["require_lab"]


@cache
def _missing() -> str | None:
    """Why no lab can be built here; None when one can."""
    try:
        with Lab() as lab:
            lab.router("home", Nat.FULL_CONE)
    except (OSError, RuntimeError) as exc:
        return f"no network namespaces can be made here, which takes root: {exc}"
    return None


def require_lab() -> None:
    """Skip the test, saying why, where no lab can be built; fail it under MESHPEER_NO_SKIPS."""
    require("ip", "nft", "conntrack", "turnserver", "openssl")
    missing = _missing()
    if missing is not None:
        lacking(missing)
