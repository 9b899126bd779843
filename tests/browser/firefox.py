"""Firefox, driven over WebDriver BiDi (W3C): as much of playwright's interface as rooms.py uses.

Playwright drives only a Firefox of its own make; this one is the system's.
"""

from __future__ import annotations

import asyncio
import ctypes
import itertools
import json
import re
import shutil
import socket
import tempfile
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect

from tests.browser.hosts import Host

__all__ = ["FIREFOX", "BidiError", "Context", "Firefox", "Page", "firefox", "missing"]

FIREFOX = "/usr/bin/firefox-esr"
_CLONE_NEWNET = 0x40000000
_PREFERENCES = {
    "app.normandy.enabled": False,
    "app.update.disabledForTesting": True,
    "browser.safebrowsing.update.enabled": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "services.settings.server": "",
}


class BidiError(Exception):
    """The browser refuses a command, or a script throws."""


class Firefox:
    """A browser that runs."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._numbers = itertools.count()
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._pages: dict[str, Page] = {}

    async def read(self) -> None:
        """Take what comes, until the socket closes."""
        async for data in self._socket:
            said = json.loads(data)
            if said["type"] == "event":
                context = said["params"].get("source", {}).get("context")
                if said["method"] == "log.entryAdded" and context in self._pages:
                    self._pages[context].logged(said["params"])
                continue
            asked = self._asked.pop(said["id"])
            if asked.done():  # nobody waits for it any more
                continue
            if said["type"] == "error":
                asked.set_exception(BidiError(f"{said['error']}: {said['message']}"))
            else:
                asked.set_result(said["result"])

    async def call(self, method: str, **parameters: Any) -> Any:
        """One command, and its result."""
        number = next(self._numbers)
        self._asked[number] = asyncio.get_running_loop().create_future()
        command = {"id": number, "method": method, "params": parameters}
        await self._socket.send(json.dumps(command))
        return await self._asked[number]

    async def new_context(self) -> Context:
        """With storage of its own."""
        return Context(self, (await self.call("browser.createUserContext"))["userContext"])

    def opened(self, page: Page) -> None:
        """A page whose console is listened to."""
        self._pages[page.id] = page


class Context:
    """What pages share."""

    def __init__(self, browser: Firefox, user_context: str) -> None:
        self._browser = browser
        self._id = user_context

    async def add_init_script(self, script: str) -> None:
        """Run it before the scripts of each page."""
        declaration = f"() => {{ {script} }}"
        await self._browser.call(
            "script.addPreloadScript", functionDeclaration=declaration, userContexts=[self._id]
        )

    async def new_page(self) -> Page:
        """A tab."""
        made = await self._browser.call("browsingContext.create", type="tab", userContext=self._id)
        page = Page(self._browser, self, made["context"])
        self._browser.opened(page)
        return page

    async def close(self) -> None:
        """With its pages."""
        await self._browser.call("browser.removeUserContext", userContext=self._id)


class Page:
    """A tab."""

    def __init__(self, browser: Firefox, context: Context, page: str) -> None:
        self._browser = browser
        self._listeners: dict[str, list[Callable[[Any], None]]] = {}
        self.context = context
        self.id = page

    def on(self, what: str, listener: Callable[[Any], None]) -> None:
        """Listen to ``pageerror`` or ``console``."""
        self._listeners.setdefault(what, []).append(listener)

    def logged(self, entry: dict[str, Any]) -> None:
        """Something was written to its console, or thrown and not caught."""
        if entry["type"] == "javascript":
            what: str = "pageerror" if entry["level"] == "error" else "other"
            said: Any = entry["text"]
        else:
            what, said = "console", SimpleNamespace(type=entry["level"], text=entry["text"])
        for listener in self._listeners.get(what, []):
            listener(said)

    async def goto(self, url: str) -> None:
        """Load a page, wholly."""
        await self._browser.call(
            "browsingContext.navigate", context=self.id, url=url, wait="complete"
        )

    async def reload(self) -> None:
        """Load it anew, wholly."""
        await self._browser.call("browsingContext.reload", context=self.id, wait="complete")

    async def bring_to_front(self) -> None:
        """Before the other tabs of its window."""
        await self._browser.call("browsingContext.activate", context=self.id)

    async def evaluate(self, script: str, argument: Any = None) -> Any:
        """Call a function of JavaScript; what it returns is JSON."""
        said = await self._browser.call(
            "script.callFunction",
            functionDeclaration=f"""async (given) => {{
              const value = await ({script})(JSON.parse(given));
              return value === undefined ? "null" : JSON.stringify(value);
            }}""",
            arguments=[{"type": "string", "value": json.dumps(argument)}],
            target={"context": self.id},
            awaitPromise=True,
        )
        if said["type"] == "exception":
            raise BidiError(said["exceptionDetails"]["text"])
        return json.loads(said["result"]["value"])


@asynccontextmanager
async def firefox(host: Host) -> AsyncIterator[Firefox]:
    """A Firefox on that host. What drives it goes over that host's loopback, which no outage of the
    host reaches."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        preferences = (
            f"user_pref({json.dumps(name)}, {json.dumps(value)});\n"
            for name, value in _PREFERENCES.items()
        )
        await asyncio.to_thread((Path(folder) / "user.js").write_text, "".join(preferences))
        process = await asyncio.create_subprocess_exec(
            *host.command(FIREFOX, "--headless", "--no-remote", "--profile", folder),
            *("--remote-debugging-port", "0"),
            stdout=DEVNULL,
            stderr=PIPE,
        )
        assert process.stderr is not None
        try:
            url = None
            while url is None:
                line = (await process.stderr.readline()).decode()
                assert line, "Firefox ended"
                url = re.search(r"BiDi listening on (ws://\S+)", line)
            async with asyncio.TaskGroup() as group:
                group.create_task(process.stderr.read())  # and never fills its pipe
                address = urlsplit(url[1])
                assert address.hostname is not None
                assert address.port is not None
                reached = await asyncio.to_thread(
                    _connected, host.name, address.hostname, address.port
                )
                async with connect(f"{url[1]}/session", sock=reached, max_size=None) as socket:
                    browser = Firefox(socket)
                    reading = group.create_task(browser.read())
                    await browser.call("session.new", capabilities={})
                    await browser.call("session.subscribe", events=["log.entryAdded"])
                    try:
                        yield browser
                    finally:
                        reading.cancel()
                process.terminate()
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


def _connected(namespace: str, host: str, port: int) -> socket.socket:
    """A socket that was made in that network namespace, in which this thread is meanwhile."""
    libc = ctypes.CDLL(None, use_errno=True)

    def enter(place: TextIO) -> None:
        if libc.setns(place.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns of {namespace}")

    with (
        Path("/proc/thread-self/ns/net").open() as own,
        (Path("/run/netns") / namespace).open() as there,
    ):
        enter(there)
        try:
            return socket.create_connection((host, port))
        finally:
            enter(own)


def missing() -> list[str]:
    """What this machine lacks for it, in words."""
    return [] if shutil.which(FIREFOX) else [FIREFOX]
