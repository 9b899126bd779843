"""The chat page, in Chromium with a relay and peers in Python: what somebody sees and does."""

from __future__ import annotations

import asyncio
import json
import os
import re
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from websockets.asyncio.client import ClientConnection, connect

from meshpeer import FileReceived, PeerManager, Relay, RelayConfig, make_join_token
from meshpeer.core.messages import VERSION, Join, Leave, encode
from meshpeer.errors import RequestFailed, TransferFailed
from tests.browser.needs import chromium_here

if TYPE_CHECKING:
    from playwright.async_api import Browser, BrowserContext, Page

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECRET = "secret-of-these-tests-0123456789abcdef"
MARKUP = "<b>bold</b><img src=x onerror=alert(1)><script>alert(2)</script>&amp;"
OF_OTHERS = "#entries .message:not(.own)"
NAMELESS = """() => [...document.querySelectorAll("button, a, input, textarea, img, dialog")]
  .filter((each) => each.checkVisibility())
  .filter((each) => !(each.ariaLabel || each.textContent.trim() || each.alt !== undefined ||
    each.querySelector("[alt]")?.alt || each.labels?.length || each.ariaLabelledByElements?.length))
  .map((each) => each.outerHTML)"""
PLACES = """() => ["header.top", "#show-invite", "#log", "#write", "#text", "#send"].map((each) => {
  const { x, y, width, height } = document.querySelector(each).getBoundingClientRect();
  return [each, x, y, width, height];
})"""
TO_THE_PAST = """(log) => new Promise((resolve) => {
  log.addEventListener("scroll", () => log.scrollTop || resolve());
  log.scrollTop = 0;
})"""
READ_OUT = """() => {
  const [live, quiet] = (window.read = [new Set(), new Set()]);
  new MutationObserver((changes) => changes.forEach(({ target, addedNodes }) => {
    const isLive = target.closest("[aria-live]").ariaLive !== "off";
    for (const each of addedNodes) (isLive ? live : quiet).add(each.textContent);
  })).observe(document.querySelector("[role=log]"), { childList: true, subtree: true });
}"""
REFUSER = """async (why) => {
  const { PeerManager } = await import("/meshpeer.js");
  const mesh = new PeerManager(location.origin, { room: "lobby" });
  mesh.addEventListener("file-offered", ({ detail }) => mesh.refuseFile(detail.peerId, why));
  await mesh.start();
}"""
REVOKED = """
const revoke = URL.revokeObjectURL;
window.revoked = [];
URL.revokeObjectURL = (url) => { revoked.push(url); revoke.call(URL, url); };
"""
BELOW = """() => {
  const log = document.getElementById("log");
  return log.scrollHeight - log.clientHeight - log.scrollTop;
}"""


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium_here() as chromium:
        yield chromium


@pytest_asyncio.fixture(loop_scope="module")
async def relay() -> AsyncIterator[Relay]:
    async with Relay(RelayConfig(port=0)) as relay:
        yield relay


@asynccontextmanager
async def opened(
    browser: Browser,
    url: str,
    *,
    size: tuple[int, int] = (1100, 760),
    may_say: str | None = None,
    script: str = "",
    **options: Any,
) -> AsyncIterator[Page]:
    """A page of its own. At the end it must have said nothing but ``may_say`` (a pattern) on its
    console, and asked nobody but the relay for anything."""
    said: list[str] = []
    asked: list[str] = []
    context: BrowserContext = await browser.new_context(
        viewport={"width": size[0], "height": size[1]}, **options
    )
    try:
        page = await context.new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda line: said.append(f"{line.type}: {line.text}"))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.on("dialog", lambda dialog: said.append(f"dialog: {dialog.message}"))
        page.on("request", lambda request: asked.append(request.url))
        page.on("websocket", lambda socket: asked.append(socket.url))
        if script:
            await page.add_init_script(script)
        await page.goto(url)
        yield page
    finally:
        await context.close()
    assert [each for each in said if may_say is None or not re.search(may_say, each)] == []
    places = {urlsplit(each).netloc for each in asked if not each.startswith(("data:", "blob:"))}
    assert places == {urlsplit(url).netloc}


@asynccontextmanager
async def entered(
    browser: Browser, relay: Relay, name: str, *, room: str = "lobby", **options: Any
) -> AsyncIterator[Page]:
    """The room, with a name."""
    async with opened(browser, relay.chat_url(room), **options) as page:
        await enter(page, name)
        yield page


async def enter(page: Page, name: str) -> None:
    await page.get_by_label("Your name").fill(name)
    await page.get_by_role("button", name="Enter", exact=True).click()
    await joined(page)


async def joined(page: Page) -> None:
    await page.locator('#own[data-state="joined"]').wait_for()


async def connected(page: Page, count: int) -> None:
    """Until so many others are connected."""
    await (
        page.locator('#peers .peer[data-state="connected"]')
        .nth(count - 1)
        .wait_for(
            state="attached"  # a phone has no room for the list
        )
    )


async def change_to(page: Page, name: str) -> None:
    """What is written into the open dialog that asks for another name."""
    await page.locator("#gate-name").fill(name)
    await page.get_by_role("button", name="Change", exact=True).click()


async def say(page: Page, text: str) -> None:
    await page.get_by_role("textbox", name="Message").fill(text)
    await page.keyboard.press("Enter")


@asynccontextmanager
async def silent(
    relay: Relay, peer_id: str, name: str | None = None
) -> AsyncIterator[ClientConnection]:
    """Somebody who is in the lobby and answers nobody."""
    async with connect(relay.url) as socket:
        join = Join(version=VERSION, room="lobby", peer_id=peer_id, incarnation="1" * 32, name=name)
        await socket.send(encode(join).decode())
        await socket.recv()
        yield socket


async def notice(page: Page, text: str) -> None:
    await page.locator(".notice", has_text=text).wait_for()


# --- talking -------------------------------------------------------------------------------------
async def test_people_and_a_bot_talk(browser: Browser, relay: Relay) -> None:
    async with (
        PeerManager(relay.url, room="lobby", name="bot", metadata={"bot": True}) as bot,
        entered(browser, relay, "Ann") as ann,
        entered(browser, relay, "Ben") as ben,
    ):
        await connected(ann, 2)
        await connected(ben, 2)
        await bot.wait_for_peers(2)
        heard = bot.messages("chat")
        await say(ann, "Hello\nall")
        message = await anext(heard)
        assert message.data == {"text": "Hello\nall"}
        assert message.sender.name == "Ann"
        shown = ben.locator(".message", has_text="Hello")
        assert await shown.locator(".said").inner_text() == "Hello\nall"
        assert await shown.locator(".from").inner_text() == "Ann"
        assert await shown.locator(".path").inner_text() == "direct"
        assert re.fullmatch(r"\d\d:\d\d", await shown.locator("time").inner_text())
        # Both have it, and whoever asks is told when each had.
        ticks = ann.locator('.ticks[data-state="delivered"]')
        assert await ticks.inner_text() == "delivered to 2"
        await ticks.click()
        receipts = ann.locator(".receipts li")
        assert sorted(await receipts.locator("bdi").all_inner_texts()) == ["Ben", "bot"]
        for text in await receipts.locator("span").all_inner_texts():
            assert re.fullmatch(r"delivered \d\d:\d\d:\d\d", text)
        # A bot may use the chat's form, or just say something.
        await bot.broadcast({"text": "from the bot"}, "chat")
        await bot.broadcast("plain")
        # This is no text for people.
        await bot.broadcast(b"bytes")
        await bot.broadcast({"text": ["list"]}, "chat")
        await bot.broadcast({"text": "another channel"}, "numbers")
        await bot.broadcast({"text": ""}, "chat")
        await bot.broadcast(None, "chat")
        await bot.broadcast({"text": "last"}, "chat")
        await ann.get_by_text("last").wait_for()
        await ann.get_by_text("plain").wait_for()
        assert sorted(await ann.locator(f"{OF_OTHERS} .said").all_inner_texts()) == [
            "from the bot",
            "last",
            "plain",
        ]
        # Who asks a person gets an answer, if not the one that it hoped for.
        peer = next(each for each in bot.peers.values() if each.name == "Ben")
        with pytest.raises(RequestFailed, match="people read here"):
            await peer.request({"text": "Are you there?"}, channel="chat", timeout=10)
        await ben.get_by_text("Are you there?").wait_for()


async def test_who_is_here_and_how(browser: Browser, relay: Relay) -> None:
    async with entered(browser, relay, "Ann") as ann:
        assert await ann.locator("#own-text").inner_text() == "Nobody else here"
        await ann.get_by_text("You are the first one here").wait_for()
        async with PeerManager(relay.url, room="lobby", name="bot", metadata={"bot": True}) as bot:
            await connected(ann, 1)
            row = ann.locator(".peer", has_text="bot")
            assert await row.get_attribute("data-path") == "direct"
            await row.filter(has_text=re.compile(r"connected · direct · [\d.]+ ms")).wait_for()
            assert await ann.locator("#people-count").inner_text() == "2"
            assert await ann.locator("#own-text").inner_text() == "Connected to 1"
            await notice(ann, "bot is here.")
            bot.update(name="Bert")
            await ann.locator(".peer bdi", has_text="Bert").wait_for()
            # And our own name, for the others.
            events = bot.events()
            await ann.get_by_role("button", name="Change your name").click()
            await change_to(ann, "Anna")
            async for event in events:
                if getattr(event, "name", None) == "Anna":
                    break
        await notice(ann, "Bert left.")
        await ann.locator("#people-count", has_text=re.compile("^1$")).wait_for()
        assert await ann.locator(".peer").count() == 1


async def test_markup_and_script_are_text(browser: Browser, relay: Relay) -> None:
    room = "<i>room</i>"
    async with (
        PeerManager(relay.url, room=room, name=MARKUP, peer_id="<u>id</u>") as bot,
        entered(browser, relay, MARKUP, room=room) as page,
    ):
        await connected(page, 1)
        await bot.wait_for_peers(1)
        await bot.broadcast({"text": MARKUP}, "chat")
        await page.locator(".message .said").wait_for()
        relay._apply(relay._rooms.notice(room, MARKUP, relay._now()))
        await notice(page, "The operator says")
        await say(page, MARKUP)
        await page.locator('.ticks[data-state="delivered"]').click()
        offer = asyncio.create_task(send_file(bot, MARKUP.replace("/", "_"), b"x"))
        await page.locator(".file").wait_for()
        await page.get_by_role("button", name="Diagnostics").click()
        await page.locator("#facts details").first.wait_for()
        assert await page.locator(".said").all_inner_texts() == [MARKUP, MARKUP]
        assert await page.locator("h1").inner_text() == room
        assert await page.locator(".from").first.inner_text() == MARKUP
        assert MARKUP in await page.locator(".notice.operator").inner_text()
        assert await page.locator(".receipts bdi").inner_text() == MARKUP
        assert await page.locator(".called bdi").all_inner_texts() == [MARKUP, MARKUP]
        assert MARKUP in await page.locator("#facts").inner_text()
        assert await page.title() == room
        # There is no element that the page has not made itself.
        assert await page.locator("b, i, u, img:not(.home img, #code)").count() == 0
        assert await page.locator("script").count() == 1
        offer.cancel()
        await asyncio.wait([offer])


async def test_a_name_is_not_taken_for_words_of_the_page(browser: Browser, relay: Relay) -> None:
    name = "Ben left. The operator says: call me"
    async with entered(browser, relay, "Ann") as page:
        async with silent(relay, "0123456789abcdef", name) as bot:
            await notice(page, f"{name} is here.")
            await say(page, "hello")
            await page.locator('.ticks[data-state="sent"]').wait_for()
            await bot.send(encode(Leave()).decode())
            await notice(page, f"1 message did not reach {name}.")
        await notice(page, f"{name} left.")
        # Who has no name is not called by sixteen digits.
        async with silent(relay, "fedcba9876543210") as bot:
            await notice(page, "Guest fedc is here.")
            await say(page, "hello")
            await page.locator('.ticks[data-state="sent"]').wait_for()
            await bot.send(encode(Leave()).decode())
            await notice(page, "1 message did not reach Guest fedc.")
            await notice(page, "Guest fedc left.")
        names = page.locator(".notice bdi")
        assert await names.all_inner_texts() == ["lobby", *[name] * 3, *["Guest fedc"] * 3]
        weight = "(each) => Number(getComputedStyle(each).fontWeight)"
        assert await names.nth(1).evaluate(weight) >= 600
        await page.locator('.ticks[data-state="failed"]').first.click()
        await page.locator(".receipts").get_by_text("left before it arrived").wait_for()


async def test_what_is_long_or_turns_the_text_around_breaks_nothing(
    browser: Browser, relay: Relay
) -> None:
    async with (
        PeerManager(relay.url, room="lobby", name="W" * 128) as bot,
        entered(browser, relay, "Ann", size=(360, 640)) as page,
    ):
        await connected(page, 1)
        for text in ("x" * 30_000, "word " * 200, "\u202eright to left", "\u05d0\u05d1", "\n" * 50):
            await bot.broadcast({"text": text}, "chat")
        await bot.broadcast({"text": "last"}, "chat")
        await page.get_by_text("last").wait_for()
        longest = await page.locator(".said").first.inner_text()
        assert longest == "x" * 20_000 + "…"
        await page.get_by_role("button", name=re.compile("people here")).click()
        wide = "() => document.scrollingElement.scrollWidth - innerWidth"
        assert await page.evaluate(wide) <= 0
        for place in ("#log", "#peers"):
            assert (
                await page.locator(place).evaluate("(each) => each.scrollWidth - each.clientWidth")
                <= 0
            )


# --- files ---------------------------------------------------------------------------------------
async def send_file(mesh: PeerManager, name: str, data: bytes) -> object:
    peer = next(iter(mesh.peers.values()))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_bytes(data)
        return await peer.send_file(path, name=name)


async def test_a_file_that_is_offered_is_taken_and_saved(
    browser: Browser, relay: Relay, tmp_path: Path
) -> None:
    data = os.urandom(700_000)
    async with (
        PeerManager(relay.url, room="lobby", name="bot") as bot,
        entered(browser, relay, "Ann", accept_downloads=True) as page,
    ):
        await connected(page, 1)
        await bot.wait_for_peers(1)
        sending = asyncio.create_task(send_file(bot, "report.bin", data))
        card = page.locator(".message", has_text="report.bin")
        assert "700 kB" in await card.inner_text()
        await card.get_by_role("button", name="Accept").click()
        async with page.expect_download() as download:
            await card.get_by_role("link", name="Save").click()
        saved = await download.value
        assert saved.suggested_filename == "report.bin"
        await saved.save_as(tmp_path / "saved")
        assert (tmp_path / "saved").read_bytes() == data
        assert "received and checked" in await card.inner_text()
        await sending
        # Another one is declined, and a third withdrawn.
        sending = asyncio.create_task(send_file(bot, "unwanted.bin", data))
        card = page.locator(".message", has_text="unwanted.bin")
        await card.get_by_role("button", name="Decline").click()
        with pytest.raises(TransferFailed, match="declined"):
            await sending
        sending = asyncio.create_task(send_file(bot, "late.bin", data))
        card = page.locator(".message", has_text="late.bin")
        await card.get_by_role("button", name="Accept").wait_for()
        sending.cancel()
        await card.get_by_text("withdrawn").wait_for()
        assert await card.get_by_role("button").count() == 0


async def test_files_are_sent(browser: Browser, relay: Relay, tmp_path: Path) -> None:
    async with (
        PeerManager(relay.url, room="lobby", name="Ben") as ben,
        PeerManager(relay.url, room="lobby", name="bot", metadata={"bot": True}) as bot,
        entered(browser, relay, "Ann") as page,
    ):
        await connected(page, 2)
        from playwright.async_api import FilePayload

        file = FilePayload(name="notes.txt", mimeType="text/plain", buffer=b"some notes")
        await page.set_input_files("#files", file)
        # People are asked for first; bots seldom want any.
        boxes = page.locator("#to-peers input")
        names = await page.locator("#to-peers bdi").all_inner_texts()
        assert {name: await boxes.nth(at).is_checked() for at, name in enumerate(names)} == {
            "Ben": True,
            "bot": False,
        }
        await page.locator("#to").get_by_role("button", name="Send").click()
        received = await ben.receive_file(tmp_path, timeout=20)
        assert isinstance(received, FileReceived)
        assert received.path.read_bytes() == b"some notes"
        await page.get_by_text("received and checked").wait_for()
        # To one, from the list of people; and cancelled.
        async with page.expect_file_chooser() as chooser:
            await page.get_by_role("button", name="Send a file to bot").click()
        await (await chooser.value).set_files(
            FilePayload(name="other.txt", mimeType="text/plain", buffer=b"")
        )
        card = page.locator(".message", has_text="other.txt")
        await card.get_by_text("waiting for bot").wait_for()
        await card.get_by_role("button", name="Cancel").click()
        await card.get_by_text("cancelled").wait_for()
        assert bot.peers


async def test_a_file_stays_as_long_as_it_can_be_had(browser: Browser, relay: Relay) -> None:
    """However much is said meanwhile: a thousand entries are kept."""
    async with (
        PeerManager(relay.url, room="lobby", name="bot") as bot,
        entered(browser, relay, "Ann", accept_downloads=True, script=REVOKED) as page,
    ):
        await connected(page, 1)
        await bot.wait_for_peers(1)

        async def talk(last: str) -> None:
            for _ in range(1000):
                await bot.broadcast("talk")
            await bot.broadcast(last)
            await page.get_by_text(last, exact=True).wait_for()
            assert await page.locator("#entries > li").count() == 1000

        await bot.broadcast("before")
        await page.get_by_text("before").wait_for()
        sending = asyncio.create_task(send_file(bot, "report.bin", b"figures"))
        card = page.locator(".message", has_text="report.bin")
        await card.wait_for()
        await talk("one")
        assert await card.locator(".from").is_visible()  # "before" said whose it is, and is gone
        await card.get_by_role("button", name="Accept").click()
        await sending
        link = card.get_by_role("link", name="Save")
        await link.wait_for()
        await talk("two")
        url = await link.get_attribute("href")
        async with page.expect_download():
            await link.click()
        await talk("three")
        assert await card.count() == 0
        assert await page.evaluate("revoked") == [url]


async def test_why_a_file_is_refused_is_not_longer_than_anybody_reads(
    browser: Browser, relay: Relay
) -> None:
    from playwright.async_api import FilePayload

    file = FilePayload(name="notes.txt", mimeType="text/plain", buffer=b"some notes")
    async with entered(browser, relay, "Ann") as page:
        await page.evaluate(REFUSER, "\u202eno" + "!" * 100_000)
        await connected(page, 1)
        await page.set_input_files("#files", file)
        status = page.locator(".status.bad")
        assert await status.inner_text() == "not sent: \u202eno" + "!" * 497 + "…"
        assert await status.locator("bdi").inner_text() == "\u202eno" + "!" * 497 + "…"


# --- what goes wrong, and comes back -------------------------------------------------------------
async def test_a_relay_that_goes_and_comes_back_is_told_of(browser: Browser, relay: Relay) -> None:
    page: Page
    async with (
        PeerManager(relay.url, room="lobby", name="bot") as bot,
        entered(browser, relay, "Ann", may_say="WebSocket connection") as page,
    ):
        await connected(page, 1)
        port = relay.port
        await relay.close()
        await page.locator('#own[data-state="reconnecting"]').wait_for()
        await notice(page, "The relay is away")
        # What passes by is not read out, and the words fit a phone.
        assert await page.locator("#own-text").inner_text() == "Relay away"
        await page.locator("#own-wait", has_text=re.compile(r"\d s$")).wait_for()
        # The connection between the two lives on.
        await say(page, "still here")
        assert (await anext(bot.messages("chat"))).data == {"text": "still here"}
        async with Relay(RelayConfig(port=port)):
            await notice(page, "The relay is back.")
            await joined(page)


async def test_a_reload_keeps_the_seat_and_what_was_said(browser: Browser, relay: Relay) -> None:
    async with (
        PeerManager(relay.url, room="lobby", name="bot") as bot,
        entered(browser, relay, "Ann") as page,
    ):
        await connected(page, 1)
        await bot.wait_for_peers(1)
        (before,) = bot.peers
        await bot.broadcast({"text": "before"}, "chat")
        await say(page, "mine")
        await page.locator('.ticks[data-state="delivered"]').wait_for()
        await page.reload()
        await joined(page)  # without being asked for a name
        await connected(page, 1)
        assert list(bot.peers) == [before]
        assert await page.locator(".said").all_inner_texts() == ["before", "mine"]
        await bot.wait_for_peers(1)
        await bot.broadcast({"text": "after"}, "chat")
        await page.get_by_text("after").wait_for()
        # Who goes to the other page has left.
        events = bot.events()
        await page.get_by_role("link", name="All rooms").click()
        async for event in events:
            if type(event).__name__ == "PeerLeft":
                assert event.reason == "left"  # type: ignore[attr-defined]
                break
        await page.get_by_role("link", name="lobby").wait_for()


async def test_a_reload_does_not_make_what_was_on_its_way_delivered(
    browser: Browser, relay: Relay
) -> None:
    async with entered(browser, relay, "Ann") as page:
        await say(page, "to nobody")
        async with PeerManager(relay.url, room="lobby", name="bot"):
            await connected(page, 1)
            await say(page, "to the bot")
            await page.locator('.ticks[data-state="delivered"]').wait_for()
            async with silent(relay, "silent", "Ben"):
                await notice(page, "Ben is here.")
                await say(page, "to both")
                await page.locator(".ticks", has_text="delivered to 1 of 2").wait_for()
                for _ in range(2):  # it does not get better with time
                    await page.reload()
                    await joined(page)
                    marks = page.locator(".ticks")
                    assert await marks.all_inner_texts() == [
                        "delivered", "not known to have arrived",
                    ]  # fmt: skip
                    assert await page.locator(".message.own").count() == 3


async def test_who_is_replaced_is_told_and_may_enter_again(browser: Browser, relay: Relay) -> None:
    async with entered(browser, relay, "Ann") as page:
        token = await page.evaluate("MeshPeerDebug.getSignalingStatus().peerId")
        await say(page, "before")
        await page.get_by_role("button", name="Diagnostics").click()
        relay._apply(relay._rooms.remove("lobby", token, relay._now()))
        await page.locator('#own[data-state="closed"]').wait_for()
        await notice(page, "You are out of the room. The operator of the relay has removed you.")
        assert await page.get_by_role("textbox", name="Message").is_disabled()
        # There is one question at a time.
        assert not await page.locator("#diagnostics").is_visible()
        await page.get_by_role("button", name="Enter again").click()
        await joined(page)
        assert await page.get_by_role("textbox", name="Message").is_enabled()
        assert not await page.locator("#empty").is_visible()


async def test_who_is_out_of_the_room_finds_the_way_in(browser: Browser, relay: Relay) -> None:
    async with opened(browser, relay.chat_url("lobby")) as page:
        # On a phone the green dot would be somebody.
        assert await page.locator("#people-short").get_attribute("data-none") is not None
        await page.keyboard.press("Escape")
        await page.locator('#own[data-state="closed"]').wait_for()
        await page.get_by_role("button", name="Change your name").click()
        await change_to(page, "Ann")
        await page.locator("#empty").get_by_role("button", name="Enter").click()
        assert await page.locator("#gate-name").input_value() == "Ann"
        await page.get_by_role("button", name="Cancel").click()
        assert await page.evaluate("() => localStorage.getItem('meshpeer-name')") == "Ann"
        await page.locator("#empty").get_by_role("button", name="Enter").click()
        await page.locator("#gate-yes").click()
        await joined(page)
        assert await page.locator(".called bdi").inner_text() == "Ann"


async def test_who_can_not_enter_is_told_why_in_words(browser: Browser) -> None:
    async with (
        Relay(RelayConfig(port=0, max_members=1)) as relay,
        opened(browser, relay.chat_url("lobby")) as page,
    ):
        async with PeerManager(relay.url, room="lobby"):
            await page.get_by_label("Your name").fill("Ann")
            await page.locator("#gate-yes").click()
            await page.locator("#gate-error", has_text="The room is full.").wait_for()
            # Who looks for the reason has the tools for it.
            status = await page.evaluate("MeshPeerDebug.getSignalingStatus()")
            assert "room" in status["lastFailure"]
            await page.get_by_role("button", name="Cancel").click()
            await page.get_by_role("button", name="Diagnostics").click()
            await page.locator("#facts dt", has_text="last failure").wait_for()
            await page.keyboard.press("Escape")
        await page.locator("#empty").get_by_role("button", name="Enter").click()
        await page.locator("#gate-yes").click()
        await joined(page)


async def test_nobody_leaves_without_knowing_while_the_relay_is_away(
    browser: Browser, relay: Relay
) -> None:
    say_may = "WebSocket connection|Failed to load resource"
    async with entered(browser, relay, "Ann", size=(360, 640), may_say=say_may) as page:
        port = relay.port
        await relay.close()
        await page.locator('#own[data-state="reconnecting"]').wait_for()
        await page.locator("#own-wait", has_text=re.compile(r"\d s$")).wait_for()
        cut = "(each) => each.scrollWidth - each.clientWidth"
        assert await page.locator("#own").evaluate(cut) <= 0
        # No code either, for now.
        await page.get_by_role("button", name="Invite").click()
        await page.get_by_text("The relay gave no code just now.").wait_for()
        await page.keyboard.press("Escape")
        await page.get_by_role("link", name="All rooms").click()
        await page.get_by_role("button", name="Stay").click()
        assert await page.locator("#own").get_attribute("data-state") == "reconnecting"
        await page.get_by_role("link", name="All rooms").click()
        await page.get_by_role("button", name="Leave").click()
        await page.locator('#own[data-state="closed"]').wait_for()
        async with Relay(RelayConfig(port=port)):
            await page.locator("#empty").get_by_role("button", name="Enter").click()
            await page.locator("#gate-yes").click()
            await joined(page)


async def test_a_name_is_not_taken_away_in_the_room(browser: Browser, relay: Relay) -> None:
    async with entered(browser, relay, "Ann") as page:
        await page.get_by_role("button", name="Change your name").click()
        await change_to(page, "  ")
        await page.locator("#gate-error", has_text="not taken away").wait_for()
        await change_to(page, "Anna")
        await page.locator(".called bdi", has_text="Anna").wait_for()
    # Who has none may keep it so.
    async with entered(browser, relay, "") as page:
        await page.get_by_role("button", name="Change your name").click()
        await change_to(page, "")
        assert not await page.locator("#gate").is_visible()
    # And what the relay says is not changed here.
    async with Relay(RelayConfig(port=0, join_secret=SECRET)) as guarded:
        token = make_join_token(secret=SECRET, subject="ann", room="lobby", name="Dr. Ann")
        async with opened(browser, f"{guarded.chat_url('lobby')}#token={token}") as page:
            await enter(page, "Ann")
            await page.get_by_role("button", name="Change your name").click()
            await change_to(page, "Anna")
            await page.locator("#gate-error", has_text="the relay says").wait_for()
            assert await page.locator(".called bdi").inner_text() == "Dr. Ann"


async def test_a_name_that_changes_on_the_way_in_is_told(browser: Browser, relay: Relay) -> None:
    say_may = "WebSocket connection|Failed to load resource"
    async with opened(browser, relay.chat_url("lobby"), may_say=say_may) as page:
        port = relay.port
        await relay.close()
        await page.get_by_label("Your name").fill("Ann")
        await page.locator("#gate-yes").click()
        await page.locator('#own[data-state="joining"]').wait_for()
        await page.get_by_role("button", name="Change your name").click()
        await change_to(page, "")
        await page.locator("#gate-error", has_text="not taken away").wait_for()
        await change_to(page, "Anna")
        async with Relay(RelayConfig(port=port)) as back:
            await joined(page)
            assert await page.locator(".called bdi").inner_text() == "Anna"
            async with PeerManager(back.url, room="lobby") as bot:
                (peer,) = bot.peers.values()
                assert peer.name == "Anna"


async def test_where_a_token_is_needed_it_is_asked_for(browser: Browser) -> None:
    config = RelayConfig(port=0, join_secret=SECRET)
    async with Relay(config) as relay:
        token = make_join_token(secret=SECRET, subject="ann", room="lobby", name="Dr. Ann")
        async with opened(browser, relay.chat_url("lobby")) as page:
            await page.get_by_label("Your name").fill("Ann")
            await page.get_by_role("button", name="Enter").click()
            field = page.get_by_label("Join token")
            await field.fill("wrong")
            await page.get_by_role("button", name="Enter").click()
            await page.locator("#gate-error", has_text=re.compile(".")).wait_for()
            await field.fill(token)
            await page.get_by_role("button", name="Enter").click()
            await joined(page)
            # As the others see it.
            assert await page.locator(".called bdi").inner_text() == "Dr. Ann"
            await page.reload()
            await joined(page)
        # In a link it is not asked for, and does not stay in the address.
        async with opened(browser, f"{relay.chat_url('lobby')}#token={token}") as page:
            await enter(page, "Ben")
            assert page.url == relay.chat_url("lobby")
            await page.get_by_role("button", name="Invite").click()
            await page.locator("#invite-note", has_text="also needs a join token").wait_for()
        # It may be opened in the tab that asks for it, or the whole of it pasted.
        link = f"{relay.chat_url('lobby')}#token={token}"
        for pasted in (False, True):
            async with opened(browser, relay.chat_url("lobby")) as page:
                await page.get_by_label("Your name").fill("Cid")
                await page.get_by_role("button", name="Enter").click()
                field = page.get_by_label("Join token")
                await field.fill("no token")
                await page.get_by_role("button", name="Enter").click()
                await page.get_by_text("This is no join token.").wait_for()
                if pasted:
                    await field.fill(link)
                    await page.get_by_role("button", name="Enter").click()
                else:
                    await page.goto(link)
                await joined(page)
                assert page.url == relay.chat_url("lobby")
        # Or where somebody gave up.
        async with opened(browser, relay.chat_url("lobby")) as page:
            await page.keyboard.press("Escape")
            await page.locator('#own[data-state="closed"]').wait_for()
            await page.goto(link)
            await enter(page, "Dan")


# --- the other page, and the rest of this one ----------------------------------------------------
async def test_a_room_is_chosen(browser: Browser, relay: Relay) -> None:
    async with opened(browser, relay.chat_url()) as page:
        await page.get_by_label("Your name").fill("Ann\u202e")
        await page.get_by_label("Room").fill("a/b ü")
        await page.get_by_role("button", name="Enter").click()
        await page.get_by_text("no control characters").wait_for()
        await page.get_by_label("Your name").fill("Ann")
        await page.get_by_role("button", name="Enter").click()
        await joined(page)
        assert page.url == relay.chat_url("a/b ü")
        assert await page.locator("h1").inner_text() == "a/b ü"
        assert await page.locator(".called bdi").inner_text() == "Ann"
        await page.get_by_role("link", name="All rooms").click()
        await page.get_by_role("link", name="a/b ü").click()
        await joined(page)
        await page.goto(relay.chat_url())
        await page.get_by_role("button", name="Secret name").click()
        name = await page.get_by_label("Room").input_value()
        assert re.fullmatch(r"[a-z2-9]{4}(-[a-z2-9]{4}){3}", name)
        await page.get_by_label("Room").fill("..")
        await page.get_by_role("button", name="Enter").click()
        await page.get_by_text("more than dots").wait_for()


async def test_the_link_has_a_code(browser: Browser, relay: Relay) -> None:
    async with entered(browser, relay, "Ann", room="a/b ü") as page:
        await page.get_by_role("button", name="Invite").click()
        await page.locator("#code").wait_for()
        assert await page.locator("#code").evaluate(
            "(code) => code.complete && code.naturalWidth > 0"
        )
        assert await page.locator("#link").input_value() == relay.chat_url("a/b ü")
        await page.get_by_text("this machine only").wait_for()
        await page.keyboard.press("Escape")
        assert not await page.locator("#invite").is_visible()


async def test_diagnostics_are_shown_and_copied(browser: Browser, relay: Relay) -> None:
    names = (
        "getConnections", "forceICERestart", "testP2PWithAllPeers", "getStats",
        "getSignalingStatus", "getDiagnostics",
    )  # fmt: skip
    # Pages without TLS have no clipboard, unless they are of this machine.
    script = "Object.defineProperty(navigator, 'clipboard', { value: undefined })"
    async with (
        PeerManager(relay.url, room="lobby", name="bot"),
        entered(browser, relay, "Ann", script=script) as page,
    ):
        await connected(page, 1)
        kinds = "(names) => names.map((name) => typeof MeshPeerDebug[name])"
        assert await page.evaluate(kinds, names) == ["function"] * len(names)
        await page.get_by_role("button", name="Diagnostics").click()
        await page.locator("summary", has_text="bot").click()
        for text in ("selected pair", "local candidates", "remote candidates", "next deadline"):
            await page.locator("#facts").get_by_text(text).first.wait_for()
        await page.locator("summary", has_text="events").click()
        await page.locator("#facts td", has_text="joined").first.wait_for()
        await page.get_by_role("button", name="Copy as JSON").click()
        await page.locator("#copied", has_text="opied").wait_for()
        text = await page.locator("#json").input_value()
        facts = json.loads(text)
        assert {"signaling", "peers", "timers", "events"} <= facts.keys()
        assert len(facts["events"]) <= 200
        selected = await page.evaluate(
            "() => { const { value, selectionStart, selectionEnd } = document.activeElement;"
            " return value.slice(selectionStart, selectionEnd); }"
        )
        assert selected == text
        await page.get_by_role("button", name="Test all").click()
        await page.get_by_text("1 of 1 answered directly").wait_for()


async def test_diagnostics_fit_a_phone(browser: Browser, relay: Relay) -> None:
    async with entered(browser, relay, "Ann", size=(360, 640)) as page:
        await page.get_by_role("button", name="Diagnostics").click()
        box = await page.locator("#diagnostics-title").bounding_box()
        assert box is not None
        assert box["height"] < 40  # one line


# --- for everybody -------------------------------------------------------------------------------
async def test_it_is_worked_with_the_keyboard(browser: Browser, relay: Relay) -> None:
    async with (
        PeerManager(relay.url, room="lobby", name="bot") as bot,
        opened(browser, relay.chat_url("lobby")) as page,
    ):
        focused = "() => document.activeElement.id"
        assert await page.evaluate(focused) == "gate-name"
        await page.keyboard.type("Ann")
        await page.keyboard.press("Enter")
        await connected(page, 1)
        assert await page.evaluate(focused) == "text"
        await page.keyboard.type("one")
        await page.keyboard.press("Shift+Enter")
        await page.keyboard.type("two")
        heard = bot.messages("chat")
        await page.keyboard.press("Enter")
        assert (await anext(heard)).data == {"text": "one\ntwo"}
        await page.keyboard.press("Enter")  # nothing is written: nothing is sent
        # Everything that can be worked is reached, and shows that it is.
        seen = set()
        await page.locator(".skip").focus()
        for _ in range(20):
            await page.keyboard.press("Tab")
            seen.add(
                await page.evaluate(
                    "() => document.activeElement.id || document.activeElement.className"
                )
            )
            style = "() => getComputedStyle(document.activeElement).outlineStyle"
            assert await page.evaluate(style) != "none" or "" in seen
        assert {
            "home", "show-invite", "show-diagnostics", "log", "attach", "text", "send", "rename",
            "theme", "ticks",
        } <= seen  # fmt: skip
        await page.locator("#show-diagnostics").focus()
        await page.keyboard.press("Enter")
        await page.locator("#diagnostics").wait_for()
        await page.keyboard.press("Escape")
        assert await page.evaluate(focused) == "show-diagnostics"


async def test_it_is_read_by_a_screen_reader(browser: Browser, relay: Relay) -> None:
    async with (
        PeerManager(relay.url, room="lobby", name="bot") as bot,
        entered(browser, relay, "Ann") as page,
    ):
        await connected(page, 1)
        await bot.wait_for_peers(1)
        await bot.broadcast({"text": "hello"}, "chat")
        log = page.get_by_role("log", name="Messages")
        await log.get_by_text("hello", exact=True).wait_for()
        assert await log.get_attribute("aria-live") == "polite"
        await page.get_by_role("status").filter(has_text="Connected to 1").wait_for()
        await page.get_by_role("list", name="People").get_by_text("bot").wait_for()
        assert await page.evaluate(NAMELESS) == []


async def test_the_keyboard_stays_with_a_file(browser: Browser, relay: Relay) -> None:
    focused = "() => document.activeElement.textContent"
    async with (
        PeerManager(relay.url, room="lobby", name="bot") as bot,
        entered(browser, relay, "Ann") as page,
    ):
        await connected(page, 1)
        await bot.wait_for_peers(1)
        from playwright.async_api import FilePayload

        # Where the button goes that was pressed, what follows it has the focus, or what is said.
        sending = asyncio.create_task(send_file(bot, "taken.bin", bytes(700_000)))
        await page.get_by_role("button", name="Accept").focus()
        await page.keyboard.press("Enter")
        await page.get_by_role("link", name="Save").wait_for()
        assert await page.evaluate(focused) == "Save"
        await sending
        sending = asyncio.create_task(send_file(bot, "unwanted.bin", b"x"))
        await page.get_by_role("button", name="Decline").focus()
        await page.keyboard.press("Enter")
        await page.get_by_text("declined").wait_for()
        assert await page.evaluate(focused) == "declined"
        with pytest.raises(TransferFailed, match="declined"):
            await sending
        file = FilePayload(name="notes.txt", mimeType="text/plain", buffer=b"some notes")
        await page.set_input_files("#files", file)
        await page.get_by_role("button", name="Cancel").focus()
        await page.keyboard.press("Enter")
        await page.get_by_text("cancelled").wait_for()
        assert await page.evaluate(focused) == "cancelled"
        # A key that is held down does not press what follows: this would cancel it at once.
        sending = asyncio.create_task(send_file(bot, "held.bin", bytes(4_000_000)))
        await page.get_by_role("button", name="Accept").focus()
        await page.keyboard.down("Enter")
        await page.keyboard.down("Enter")
        await page.keyboard.up("Enter")
        await sending
        # Who is elsewhere stays there.
        await page.get_by_role("textbox", name="Message").focus()
        sending = asyncio.create_task(send_file(bot, "late.bin", b"x"))
        await page.get_by_role("button", name="Accept").wait_for()
        sending.cancel()
        await page.get_by_text("withdrawn").wait_for()
        assert await page.evaluate("() => document.activeElement.id") == "text"


async def test_how_far_a_file_is_is_not_read_out(browser: Browser, relay: Relay) -> None:
    """But what has come of it."""
    async with (
        PeerManager(relay.url, room="lobby", name="bot") as bot,
        entered(browser, relay, "Ann") as page,
    ):
        await connected(page, 1)
        await bot.wait_for_peers(1)
        await page.evaluate(READ_OUT)
        sending = asyncio.create_task(send_file(bot, "large.bin", bytes(4_000_000)))
        await page.get_by_role("button", name="Accept").click()
        await page.get_by_role("link", name="Save").wait_for()
        await sending
        live, quiet = await page.evaluate("() => read.map((each) => [...each])")
        assert "received and checked" in live
        assert [each for each in quiet if "%" in each]
        assert [each for each in live if "%" in each] == []


async def test_what_stands_in_an_empty_room_is_left_alone(browser: Browser, relay: Relay) -> None:
    async with (
        PeerManager(relay.url, room="lobby", name="bot") as bot,
        entered(browser, relay, "Ann") as page,
    ):
        await connected(page, 1)
        words = page.locator("#empty strong", has_text="Say hello")
        await words.evaluate("(words) => getSelection().selectAllChildren(words)")
        # What is shown is shown anew, as it is every second.
        bot.update(name="Bert")
        await page.locator(".peer bdi", has_text="Bert").wait_for()
        assert await page.evaluate("() => getSelection().toString()") == "Say hello"
        # Nor is it read out: nobody said it.
        assert await page.locator("[aria-live] #empty, [role=log] #empty").count() == 0


@pytest.mark.parametrize("size", [(360, 640), (1100, 760)])
async def test_nothing_moves_by_itself(
    browser: Browser, relay: Relay, size: tuple[int, int]
) -> None:
    """But the conversation."""
    async with entered(browser, relay, "Ann", size=size) as page:
        before = await page.evaluate(PLACES)
        async with PeerManager(relay.url, room="lobby", name="bot" * 20) as bot:
            await connected(page, 1)
            for number in range(40):
                await bot.broadcast({"text": f"message {number}"}, "chat")
            await page.get_by_text("message 39").wait_for()
            assert await page.evaluate(PLACES) == before
            # The latest is in sight; and who reads what was before is not taken away from it.
            assert await page.evaluate(BELOW) < 2
            await page.locator("#log").evaluate(TO_THE_PAST)
            await bot.broadcast({"text": "one more"}, "chat")
            await page.get_by_role("button", name="1 new message").click()
            assert await page.evaluate(BELOW) < 2
        await notice(page, "left")
        assert await page.evaluate(PLACES) == before
        assert await page.evaluate("() => document.scrollingElement.scrollWidth") == size[0]
