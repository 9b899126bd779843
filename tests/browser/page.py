"""A page in Chromium, as a peer: `page/peer.js` and what it tells."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingTCPServer
from threading import Thread
from typing import Any, Self

from playwright.async_api import Browser, Page, async_playwright

from tests.browser.hosts import CHROMIUM, Host

__all__ = ["Fact", "PagePeer", "chromium", "page_server"]

Fact = dict[str, Any]
"""``what`` happened, ``at`` which time (seconds since the epoch), and more about it."""

_FILES = Path(__file__).parent / "page"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


class _Files(SimpleHTTPRequestHandler):
    extensions_map = {**SimpleHTTPRequestHandler.extensions_map, ".js": "text/javascript"}  # noqa: RUF012 - as there

    def end_headers(self) -> None:
        self.send_header("Access-Control-Allow-Origin", "*")
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        """Requests are not what a test is about."""


@contextmanager
def page_server(address: str, folder: Path = _FILES) -> Iterator[str]:
    """The page on a free port of ``address``: its origin, which may then open sockets there.

    Anybody may read what is in ``folder``.
    """
    # Not an HTTPServer, which asks the DNS for its own name first.
    with ThreadingTCPServer((address, 0), partial(_Files, directory=str(folder))) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://{address}:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@asynccontextmanager
async def chromium(host: Host, *flags: str, without: Sequence[str] = ()) -> AsyncIterator[Browser]:
    """A Chromium on that host. It is driven over pipes, which no outage of the host reaches.

    ``without``: flags of playwright's that it is not given.
    """
    with tempfile.TemporaryDirectory() as folder:
        start = Path(folder) / "chromium"
        start.write_text(f'#!/bin/sh\nexec {" ".join(host.command(CHROMIUM))} "$@"\n')
        start.chmod(0o700)
        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch(
                executable_path=start, args=[*FLAGS, *flags], ignore_default_args=list(without)
            )
            try:
                yield browser
            finally:
                await browser.close()


class PagePeer:
    """One page, in a browser context of its own."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._bell = asyncio.Event()
        self.facts: list[Fact] = []

    @classmethod
    @asynccontextmanager
    async def open(cls, browser: Browser, origin: str) -> AsyncIterator[Self]:
        """Load the page from there."""
        context = await browser.new_context()
        try:
            page = await context.new_page()
            self = cls(page)
            page.on("pageerror", lambda error: self._tell({"what": "error", "text": str(error)}))
            await page.expose_function("tell", self._tell)
            await page.goto(f"{origin}/index.html")
            self._check()
            yield self
            self._check()
        finally:
            await context.close()

    def _tell(self, fact: Fact) -> None:
        self.facts.append(fact)
        self._bell.set()

    def _check(self) -> None:
        for fact in self.facts:
            assert fact["what"] != "error", f"the page: {fact['text']}"

    async def until(self, what: str, generation: int = 0) -> Fact:
        """The first fact of this kind, past or to come, about this ICE generation or a later one.

        Raises `AssertionError` when the page told of an error.
        """
        while True:
            self._check()
            for fact in self.facts:
                if fact["what"] == what and fact.get("generation", 0) >= generation:
                    return fact
            self._bell.clear()
            await self._bell.wait()

    async def join(self, url: str, room: str, peer_id: str, *, trickle: bool) -> None:
        """Take a seat in the room. Without ``trickle``, descriptions have every candidate."""
        script = "([url, room, id, trickle]) => { window.seat = new Seat(url, room, id, trickle) }"
        await self.run(script, url, room, peer_id, trickle)
        await self.until("welcome")

    async def stream(self, peer_id: str, interval: float) -> None:
        """Begin to send numbered messages, one every so many seconds."""
        await self.run("([id, ms]) => seat.links.get(id).stream(ms)", peer_id, interval * 1000)

    async def stop(self, peer_id: str) -> int:
        """End it; returns how many there were."""
        return int(await self.run("([id]) => seat.links.get(id).stop()", peer_id))

    async def reached(self, peer_id: str, count: int) -> None:
        """Wait until so many numbered messages have arrived."""
        await self.run("([id, count]) => seat.links.get(id).numbers.reached(count)", peer_id, count)

    async def numbers(self, peer_id: str) -> dict[str, Any]:
        """What arrived, as ``Numbers.report`` of `page/peer.js` tells it."""
        report: dict[str, Any] = await self.run(
            "([id]) => seat.links.get(id).numbers.report()", peer_id
        )
        return report

    async def restart_ice(self, peer_id: str) -> None:
        """Begin Chromium's own ICE restart."""
        await self.run("([id]) => seat.links.get(id).restart()", peer_id)

    async def lose_connection(self, peer_id: str) -> None:
        """Close the connection; its last ten frames to arrive are lost with it."""
        await self.run("([id]) => seat.links.get(id).connection.lose(10)", peer_id)

    async def run(self, script: str, *arguments: Any) -> Any:
        """Call a function of JavaScript with a list of arguments."""
        return await self._page.evaluate(script, list(arguments))
