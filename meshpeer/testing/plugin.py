"""The pytest plugin (entry point ``pytest11``): offers `meshpeer.testing.fixtures`.

pytest loads it in every run of an environment that has meshpeer in it. So it imports nothing, and
registers the fixtures only after pytest-asyncio, which they need, is known to be there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

__all__ = ["pytest_configure"]


def pytest_configure(config: pytest.Config) -> None:
    """Register the fixtures where pytest-asyncio runs."""
    if config.pluginmanager.hasplugin("asyncio"):
        from meshpeer.testing import fixtures

        config.pluginmanager.register(fixtures, "meshpeer-fixtures")
