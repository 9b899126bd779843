"""What tests with browsers need of a machine: Debian's browser, and playwright, which drives it."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

from tests.browser.hosts import CHROMIUM
from tests.needs import lacking

if TYPE_CHECKING:
    from playwright.async_api import Browser

__all__ = ["chromium_here", "need"]


def need(lacks: Sequence[str]) -> None:
    """Go on only where the machine lacks nothing of that, in words."""
    if lacks:
        lacking(f"this machine lacks {', '.join(lacks)}")


@asynccontextmanager
async def chromium_here(*flags: str) -> AsyncIterator[Browser]:
    """A Chromium on this host, with these flags as well. Skips the test where there is none."""
    lacks = [] if shutil.which(CHROMIUM) else [CHROMIUM]
    if find_spec("playwright") is None:
        lacks.append("the package playwright")
    need(lacks)
    from playwright.async_api import async_playwright

    from tests.browser.page import FLAGS

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, *flags])
        try:
            yield browser
        finally:
            await browser.close()
