"""docs/browser.md in Chromium: the page that it shows is one, and its JavaScript says what it says.

The blocks of JavaScript are one module, in their order, but for the one that is for the console of
the chat page. What a ``text`` block says behind one is what that one writes to the console.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from meshpeer import PeerManager, Relay, RelayConfig, make_join_token
from meshpeer.cli import bot
from tests.browser.needs import chromium_here
from tests.cli.processes import starter
from tests.docs.blocks import blocks

if TYPE_CHECKING:
    from playwright.async_api import Browser

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECRET = "secret-of-these-tests-0123456789abcdef"
PAGE = "browser.md"
HTML = [block for block in blocks(PAGE) if block.kind == "html"]
SCRIPTS = [block for block in blocks(PAGE) if block.kind == "js"]
CONSOLE = [block for block in SCRIPTS if "MeshPeerDebug" in block.text]
SESSION = [block for block in SCRIPTS if block not in CONSOLE]
PYTHON = [block for block in blocks(PAGE) if block.kind == "python"]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium_here() as chromium:
        yield chromium


@contextmanager
def application(pages: dict[str, tuple[str, str]]) -> Iterator[str]:
    """The server of somebody's application, which is not the relay: its origin. ``pages`` has type
    and text by path, and may be filled later."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kind, text = pages.get(self.path, ("text/plain", ""))
            self.send_response(200 if self.path in pages else 404)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
            """Requests are not what a test is about."""

    with ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def here(text: str, relay: Relay) -> str:
    """A block with this relay in place of the one that it names."""
    for scheme in ("ws", "http"):
        text = text.replace(f"{scheme}://localhost:3001", relay.url.replace("ws", scheme, 1))
    return text


class Log:
    """What a page writes to its console, of one kind. Who waits fails by an error that nobody
    caught."""

    def __init__(self, page: Any, kind: str = "log") -> None:
        self.lines: asyncio.Queue[str | Exception] = asyncio.Queue()

        def wrote(said: Any) -> None:
            if said.type == kind:
                self.lines.put_nowait(said.text)

        page.on("console", wrote)
        page.on("pageerror", lambda error: self.lines.put_nowait(AssertionError(str(error))))

    async def next(self) -> str:
        match await self.lines.get():
            case Exception() as error:
                raise error
            case line:
                return line

    async def until(self, last: str) -> list[str]:
        """The lines before this one."""
        lines = []
        while (line := await self.next()) != last:
            lines.append(line)
        return lines


async def test_the_page_of_ten_lines(browser: Browser) -> None:
    (block,) = HTML
    assert len(block.text.splitlines()) == 10
    pages: dict[str, tuple[str, str]] = {}
    with application(pages) as origin:
        async with (
            asyncio.timeout(60),
            Relay(RelayConfig(port=0, origins=(origin,))) as relay,
            PeerManager(relay.url, room="lobby", peer_id="bot", name="<b>bot</b>") as mesh,
        ):
            pages["/"] = ("text/html; charset=utf-8", here(block.text, relay))
            context = await browser.new_context()
            page = await context.new_page()
            log = Log(page)
            messages = mesh.messages()
            await page.goto(origin)
            message = await anext(messages)
            assert (message.sender.name, message.data, message.path) == (
                "a page",
                "hello",
                "direct",
            )
            await message.sender.send("and <i>hello</i> to you")
            await page.get_by_text("<b>bot</b>: and <i>hello</i> to you (direct)").wait_for()
            # As the chat page says it.
            await message.sender.send({"text": "from the chat"}, "chat")
            await page.get_by_text("<b>bot</b>: from the chat (direct)").wait_for()
            assert await log.until("<b>bot</b> connected") == ["<b>bot</b> connecting"]
            await context.close()


async def test_a_page_of_another_origin_is_kept_out(browser: Browser) -> None:
    (block,) = HTML
    pages: dict[str, tuple[str, str]] = {}
    with application(pages) as origin:
        async with (
            asyncio.timeout(60),
            Relay(RelayConfig(port=0, origins=("https://app.example.org",))) as relay,
        ):
            pages["/"] = ("text/html; charset=utf-8", here(block.text, relay))
            context = await browser.new_context()
            page = await context.new_page()
            log = Log(page, "error")
            await page.goto(origin)
            while "blocked by CORS policy" not in await log.next():
                pass
            await context.close()


def module(relay: Relay, guarded: Relay) -> str:
    """The blocks as one module, with a line of the console behind each."""
    parts = []
    for number, block in enumerate(SESSION):
        text = here(block.text, relay).replace("wss://relay.example.org", guarded.url)
        parts.append(f"{text}\nconsole.log('end of block {number}');\n")
    return "".join(parts)


async def test_the_session(browser: Browser) -> None:
    pages: dict[str, tuple[str, str]] = {}
    with application(pages) as origin:
        async with (
            asyncio.timeout(100),
            Relay(RelayConfig(port=0, origins=(origin,))) as relay,
            Relay(RelayConfig(port=0, origins=(origin,), join_secret=SECRET)) as guarded,
        ):
            text = "<!doctype html><script type=module src=session.js></script>"
            pages["/"] = ("text/html; charset=utf-8", text)
            pages["/session.js"] = ("text/javascript; charset=utf-8", module(relay, guarded))
            pages["/token"] = ("text/plain", make_join_token(secret=SECRET, subject="ann"))
            context = await browser.new_context()
            page = await context.new_page()
            log = Log(page)
            await page.goto(origin)
            for number, block in enumerate(SESSION):
                said = await log.until(f"end of block {number}")
                assert said == (block.output or "").splitlines(), f"line {block.line}"
            await context.close()


async def test_the_pieces_about_files(browser: Browser) -> None:
    # Of docs/files.md: each is a piece of a page that has what it speaks of.
    sending, *receiving = [block for block in blocks("files.md") if block.kind == "js"]
    assert len(receiving) == 3
    steps = [f"await Promise.all([bob.receiveFile(), piece{sending.line}()]);"] + [
        f"await Promise.all([peer.sendFile(file), piece{block.line}()]);" for block in receiving
    ]
    pieces = [
        f"const piece{block.line} = async () => {{\n{block.text}}};\n"
        for block in (sending, *receiving)
    ]
    pages: dict[str, tuple[str, str]] = {}
    with application(pages) as origin:
        async with asyncio.timeout(60), Relay(RelayConfig(port=0, origins=(origin,))) as relay:
            text = "<!doctype html><script type=module src=pieces.js></script>"
            pages["/"] = ("text/html; charset=utf-8", text)
            parts = (here(_AROUND_FILES, relay), *pieces, *steps, "console.log('end');")
            pages["/pieces.js"] = ("text/javascript; charset=utf-8", "\n".join(parts))
            context = await browser.new_context()
            page = await context.new_page()
            log = Log(page)
            await page.goto(origin)
            assert await log.until("end") == ["saved notes.txt 8", "saved 8"]
            await context.close()


_AROUND_FILES = """
import { BlobSink, PeerManager } from "http://localhost:3001/meshpeer.js";
const enter = (peerId) => new PeerManager("ws://localhost:3001", { room: "files", peerId });
const [mesh, bob] = [enter("ann"), enter("bob")];
await Promise.all([mesh.start(), bob.start()]);
await mesh.waitForPeer("bob");
const peer = await bob.waitForPeer("ann");
const file = new File(["buy milk"], "notes.txt");
const [input, bar] = [{ files: [file] }, {}];
const offer = { peerId: "bob", name: "notes.txt" };
const link = { set href(_url) {}, set download(name) { console.log("saved", name, file.size); } };
const showSaveFilePicker = async ({ suggestedName }) =>
  (await navigator.storage.getDirectory()).getFileHandle(suggestedName, { create: true });
const save = (blob) => console.log("saved", blob.size);
"""


async def test_a_person_is_among_the_bots(browser: Browser) -> None:
    async with asyncio.timeout(100), starter() as start:
        arguments = ("--seconds", "1", "--stay", "--json")
        demo = await start("demo", *arguments, stdin=asyncio.subprocess.DEVNULL)
        said = json.loads(await demo.line())
        context = await browser.new_context(accept_downloads=True)
        page = await context.new_page()
        await enter(page, said["chat"], "Ann")
        await page.get_by_text("Hello Ann! I know !ping, !who, !stats and !file.").wait_for()
        await page.get_by_role("textbox", name="Message").fill("!ping")
        await page.keyboard.press("Enter")
        for number in range(3):
            await page.get_by_text("Pong. The round trip to you is").nth(number).wait_for()
        await page.get_by_role("textbox", name="Message").fill("!file")
        await page.keyboard.press("Enter")
        await page.get_by_role("button", name="Accept").first.click()
        async with page.expect_download() as download:
            await page.get_by_role("link", name="Save").click()
        saved = await (await download.value).path()
        assert saved.read_text() == inspect.getsource(bot)
        await page.get_by_text("You have bot.py: ").wait_for()
        await context.close()


async def test_the_console_of_the_chat_page(browser: Browser) -> None:
    (block,) = CONSOLE
    async with (
        asyncio.timeout(60),
        Relay(RelayConfig(port=0)) as relay,
        PeerManager(relay.url, room="lobby", peer_id="bot-1", name="bot") as mesh,
    ):
        context = await browser.new_context()
        page = await context.new_page()
        await enter(page, relay.chat_url("lobby"), "Ann")
        (ann,) = await mesh.wait_for_peers()
        assert ann.name == "Ann"
        await page.wait_for_function("MeshPeerDebug.getConnections()[0]?.state === 'connected'")
        found = []
        for line in block.text.splitlines():
            call = line.partition("; //")[0].removeprefix("await ")
            found.append(await page.evaluate(f"async () => await {call}"))
        connections, nothing, tests, stats, signaling, everything = found
        assert [each["peerId"] for each in connections] == ["bot-1"]
        assert nothing is None
        assert [each["peerId"] for each in tests] == ["bot-1"]
        assert tests[0].keys() == {"kind", "peerId", "path", "rtt", "error"}
        assert stats["peers"]["bot-1"]["state"] == "connected"
        assert signaling["state"] == "joined"
        assert everything["peers"].keys() == {"bot-1"}
        await context.close()


async def enter(page: Any, url: str, name: str) -> None:
    """Go into a room by its chat page."""
    await page.goto(url)
    await page.get_by_label("Your name").fill(name)
    await page.keyboard.press("Enter")


async def test_there_are_no_other_blocks() -> None:
    # What an operator types is run with that of the other pages.
    assert {block.kind for block in blocks(PAGE)} == {"html", "js", "python", "console", "text"}
    outputs = [block for block in blocks(PAGE) if block.kind == "text"]
    assert len(outputs) == len([block for block in SESSION if block.output is not None])


async def test_the_python_of_the_page() -> None:
    (block,) = PYTHON
    async with (
        asyncio.timeout(60),
        Relay(RelayConfig(port=0)) as relay,
        PeerManager(relay.url, room="lobby") as mesh,
    ):
        messages = mesh.messages("chat")
        lines = here(block.text, relay).splitlines()
        names: dict[str, Any] = {}
        source = "async def main():\n" + "".join(f"    {line}\n" for line in lines)
        exec(compile(source, str(block.path), "exec"), names)
        await names["main"]()
        assert (await anext(messages)).data == {"text": "It is noon."}
