"""What a test needs of a machine. Where that is missing it is skipped, saying so; it fails where
everything has to run (``MESHPEER_NO_SKIPS``)."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest

__all__ = ["lacking", "require"]


def lacking(reason: str) -> NoReturn:
    """Skip the test for this reason; fail it under MESHPEER_NO_SKIPS."""
    if os.environ.get("MESHPEER_NO_SKIPS"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def require(*binaries: str) -> None:
    """Go on only where these programs are installed."""
    missing = [each for each in binaries if shutil.which(each) is None]
    if missing:
        lacking(f"not installed here: {', '.join(missing)}")
