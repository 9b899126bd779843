"""Tabs of Chromium that playwright leaves alone: those that it holds are visible for ever."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable
from typing import Any

from playwright.async_api import Browser, CDPSession

__all__ = ["PlainContext", "PlainPage"]


class PlainContext:
    """Pages with storage of their own, in one window: one is in front, the others are hidden."""

    def __init__(self, session: CDPSession, context: str) -> None:
        self._session = session
        self._id = context

    @classmethod
    async def open(cls, browser: Browser) -> PlainContext:
        session = await browser.new_browser_cdp_session()
        made = await session.send("Target.createBrowserContext")
        return cls(session, made["browserContextId"])

    async def new_page(self) -> PlainPage:
        """A tab, in front of the others."""
        made = await self._session.send(
            "Target.createTarget", {"url": "about:blank", "browserContextId": self._id}
        )
        # Not flat: this session of playwright's could not address it.
        attached = await self._session.send(
            "Target.attachToTarget", {"targetId": made["targetId"], "flatten": False}
        )
        page = PlainPage(self._session, made["targetId"], attached["sessionId"])
        await page.call("Page.enable")
        await page.call("Runtime.enable")
        return page

    async def close(self) -> None:
        """With its pages."""
        await self._session.send("Target.disposeBrowserContext", {"browserContextId": self._id})
        await self._session.detach()


class PlainPage:
    """A tab, with as much of playwright's interface as rooms.py uses."""

    def __init__(self, session: CDPSession, target: str, own: str) -> None:
        self._session = session
        self._target = target
        self._own = own
        self._numbers = itertools.count()
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._loaded = asyncio.Event()
        self._listeners: dict[str, list[Callable[[Any], None]]] = {}
        session.on("Target.receivedMessageFromTarget", self._take)

    def on(self, what: str, listener: Callable[[Any], None]) -> None:
        """Listen to ``pageerror``; nothing else is told."""
        self._listeners.setdefault(what, []).append(listener)

    def _take(self, received: dict[str, Any]) -> None:
        if received["sessionId"] != self._own:
            return
        said = json.loads(received["message"])
        if said.get("method") == "Page.loadEventFired":
            self._loaded.set()
        elif said.get("method") == "Runtime.exceptionThrown":
            for listener in self._listeners.get("pageerror", []):
                listener(json.dumps(said["params"]["exceptionDetails"]))
        elif (asked := self._asked.pop(said.get("id", -1), None)) is not None and not asked.done():
            asked.set_result(said)

    async def call(self, method: str, **parameters: Any) -> Any:
        """One command, and its result."""
        number = next(self._numbers)
        asked = self._asked[number] = asyncio.get_running_loop().create_future()
        message = json.dumps({"id": number, "method": method, "params": parameters})
        await self._session.send(
            "Target.sendMessageToTarget", {"sessionId": self._own, "message": message}
        )
        said = await asked
        assert "error" not in said, f"{method}: {said['error']}"
        return said["result"]

    async def goto(self, url: str) -> None:
        """Load a page, wholly."""
        self._loaded.clear()
        await self.call("Page.navigate", url=url)
        await self._loaded.wait()

    async def reload(self) -> None:
        """Load it anew, wholly."""
        self._loaded.clear()
        await self.call("Page.reload")
        await self._loaded.wait()

    async def bring_to_front(self) -> None:
        """Before the other tabs of its window."""
        await self._session.send("Target.activateTarget", {"targetId": self._target})

    async def evaluate(self, script: str, argument: Any = None) -> Any:
        """Call a function of JavaScript; what it returns is JSON."""
        said = await self.call(
            "Runtime.evaluate",
            expression=f"({script})({json.dumps(argument)})",
            awaitPromise=True,
            returnByValue=True,
        )
        assert "exceptionDetails" not in said, said["exceptionDetails"]
        return said["result"].get("value")
