"""What the tests of the command line share."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.cli.processes import Start, starter


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Start commands; what is left of them at the end is killed."""
    async with starter() as commands:
        yield commands
