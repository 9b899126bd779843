"""``python -m tests.browser.screenshots``: takes the pictures in docs/images anew.

The dashboard is shown with a scripted hour behind it (`tests.browser.scripted`), the same each time
but for the time of day. The chat has a relay, and peers in this process.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

from msgspec.structs import replace
from playwright.async_api import Browser, Locator, Page, async_playwright

from meshpeer import MeshConfig, PeerManager, Relay, RelayConfig
from tests.browser.hosts import CHROMIUM
from tests.browser.page import FLAGS
from tests.browser.scripted import PASSWORD, Site, link_report

_FOLDER = Path(__file__).parents[2] / "docs" / "images"
_HOUR = 3600
_STEP = 10
_NAMES = [
    "Ada",
    "Anton",
    "Ben",
    "Berta",
    "Carla",
    "Cleo",
    "David",
    "Dora",
    "Elif",
    "Emil",
    "Finn",
    "Fritz",
    "Gita",
    "Greta",
    "Hanna",
    "Hugo",
    "Igor",
    "Ines",
    "Jana",
    "Jon",
    "Karl",
    "Kaya",
    "Lena",
    "Liam",
    "Marek",
    "Mina",
    "Nils",
    "Noor",
    "Olga",
    "Omar",
    "Paul",
    "Pia",
    "Quin",
    "Ralf",
    "Rosa",
    "Sara",
    "Sven",
    "Tara",
    "Timo",
    "Ulla",
    "Uma",
    "Vera",
    "Vito",
    "Wanda",
    "Wim",
    "Xenia",
    "Yann",
    "Yuri",
    "Zoe",
    "Zora",
]
_ROOMS = {
    "conference": 50, "standup": 8, "design review": 7, "support": 6, "board games": 6,
    "radio amateurs": 5, "reading group": 5, "garden": 4, "chess": 2, "piano lesson": 2,
    "pair-programming": 2, "night shift": 1,
}  # fmt: skip
_LOST = "nothing heard for 2.5 s"
_NO_PATH = "no candidate pair worked"


class _Story:
    """An hour of a relay: members come, their links connect, and some of them have trouble."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._random = random.Random(5)
        self._there: dict[str, list[str]] = {room: [] for room in _ROOMS}
        self._links: dict[tuple[str, str, str], dict[str, Any]] = {}

    def tell(self) -> None:
        """All of it, up to now."""
        chance = self._random
        arrivals: dict[int, list[tuple[str, str]]] = {}
        for room, size in _ROOMS.items():
            for name in sorted(chance.sample(_NAMES, size)):
                ago = _HOUR - 10 if chance.random() < 0.5 else chance.randrange(400, _HOUR, _STEP)
                arrivals.setdefault(ago, []).append((room, name))
        for ago in range(_HOUR, 0, -_STEP):
            for room, name in arrivals.get(ago, []):
                self._arrive(room, name, ago)
            self._measure(ago)
            if ago == 400:
                self._trouble()
            self._site.tracking.tick(self._site.now(ago - 1))
        self._lately()

    def _arrive(self, room: str, name: str, ago: int) -> None:
        chance = self._random
        peer = f"{name.lower()}-{chance.randrange(16**4):04x}"
        self._site.join(room, peer, names={peer: name}, ago=ago)
        for other in self._there[room]:
            a, b = sorted((peer, other))
            rtt = chance.lognormvariate(-3.9, 0.5)
            attempts = 2 if chance.random() < 0.03 else 1
            kind = chance.random()
            facts: dict[str, Any] = {
                "attempts": attempts,
                "failures": attempts - 1,
                "successes": 1,
                "connect_time": rtt * 4 + chance.uniform(0.04, 0.25),
                "messages": chance.randrange(40, 900),
                "bytes_sent": chance.randrange(10_000, 900_000),
                "bytes_received": chance.randrange(10_000, 900_000),
                "rtt": rtt,
                "path": "turn" if kind < 0.06 else "direct",
            }
            if kind > 0.985:
                facts |= {"path": "relay", "fallbacks": 1, "failure": _NO_PATH, "rtt": rtt + 0.05}
            self._links[room, a, b] = facts
            self._site.link(room, a, b, **facts, ago=ago)
        self._there[room].append(peer)

    def _measure(self, ago: int) -> None:
        """Round trips grow for a while, half an hour ago."""
        slow = 1 + 0.6 * max(0.0, 1 - abs(ago - 1500) / 700)
        for (room, a, b), facts in self._links.items():
            if facts["rtt"] is not None and self._random.random() < 0.1:
                rtt = facts["rtt"] * slow * self._random.uniform(0.85, 1.2)
                self._site.link(room, a, b, **{**facts, "rtt": rtt}, ago=ago)

    def _say(self, room: str, one: str, two: str, *, ago: float, **facts: Any) -> None:
        """Both of these peers tell of their link from now on."""
        a, b = sorted((one, two))
        self._links[room, a, b] |= facts
        self._site.link(room, a, b, **self._links[room, a, b], ago=ago)

    def _trouble(self) -> None:
        """Some minutes ago: links that find no path but the relay."""
        peers = sorted(self._there["standup"])
        relayed: dict[str, Any] = {"path": "relay", "fallbacks": 1, "failure": _NO_PATH}
        for one, two in ((2, 6), (2, 5)):
            self._say(
                "standup", peers[one], peers[two], ago=400, **relayed, rtt=0.118,
                reason="no direct path for 3 s",
            )  # fmt: skip
        self._say("standup", peers[0], peers[6], ago=395, path="turn", rtt=0.064)
        hall = sorted(self._there["conference"])
        for a, b in self._random.sample(list(combinations(hall, 2)), 9):
            self._say("conference", a, b, ago=390, **relayed)

    def _lately(self) -> None:
        """In the last minute: a peer that nobody hears of, a link that does not come about."""
        site = self._site
        lost: dict[str, Any] = {
            "state": "disconnected", "ice_state": "disconnected", "path": None, "rtt": None,
            "reason": _LOST, "failure": _LOST,
        }  # fmt: skip
        hall = self._there["conference"]
        for peer in hall:
            if peer != hall[17]:
                self._say("conference", peer, hall[17], ago=62, **lost)
        peers = sorted(self._there["standup"])
        self._say(
            "standup", peers[1], peers[5], ago=41, state="failed", ice_state="failed", path=None,
            rtt=None, attempts=3, failures=3, successes=0, connect_time=None, failure=_NO_PATH,
            reason="no connection within 8 s; tried again after 4 s",
        )  # fmt: skip
        checking = {"state": "connecting", "ice_state": "checking", "path": None}
        tried: dict[str, Any] = {"attempts": 3, "failures": 2, "failure": "no answer to the offer"}
        site.report("standup", peers[5], [link_report(peers[1], **checking, **tried)], ago=33)
        for ago, code, text, count in (
            (30, "rate_limited", "too many joins from one address", 212),
            (26, "unauthorized", "the join token has expired", 31),
            (25, "room_full", "the room has 50 members", 4),
        ):
            for _ in range(count):
                site.tracking.refused(code, text, site.now(ago))
        site.tracking.acted("notice", site.now(21), room="chess", text="Back in five minutes.")
        garden = self._there["garden"]
        site.tracking.dropped("garden", garden[1], site.now(16))
        site.tracking.returned("garden", garden[1], site.now(14))
        site.join("night shift", "zora-77c1", names={"zora-77c1": "Zora"}, ago=9)
        site.tracking.dropped("garden", garden[0], site.now(6))
        self._say("standup", peers[0], peers[3], ago=4, **lost, restarts=1)
        site.figures = replace(
            site.figures, version="0.1.0", connections=99, accepted=1403, cut_off=2,
            refused={"origin": 6}, messages_in=212_408, messages_out=1_930_112,
            bytes_in=88_120_400, bytes_out=640_230_100,
        )  # fmt: skip
        site.began = site.now(3 * 86_400 + 7_200)


@asynccontextmanager
async def _dashboard(
    browser: Browser, url: str, size: tuple[int, int], **options: Any
) -> AsyncIterator[Page]:
    context = await browser.new_context(
        http_credentials={"username": "admin", "password": PASSWORD},
        viewport={"width": size[0], "height": size[1]},
        timezone_id="UTC",
        **options,
    )
    page = await context.new_page()
    await page.goto(url)
    await page.locator(".links .link").nth(1).wait_for(state="attached")
    await page.locator(".curve .stroke").first.wait_for(state="attached")
    yield page
    await context.close()


async def _take(shown: Page | Locator, name: str) -> None:
    path = _FOLDER / f"{name}.png"
    await shown.screenshot(path=path)
    print(f"{path}: {path.stat().st_size // 1000} kB")


async def dashboard(browser: Browser) -> None:
    """A room with trouble, light and dark and on a phone, and a room of fifty."""
    async with Site.open(3001) as site:
        _Story(site).tell()
        url = f"{site.url}#room=standup"
        async with _dashboard(browser, url, (1440, 1530), color_scheme="light") as page:
            await page.locator("#detail-body .row").first.click()
            await page.mouse.move(5, 5)
            await _take(page, "dashboard-light")
        async with _dashboard(browser, url, (1440, 1530), color_scheme="dark") as page:
            await page.locator(".node .dot").nth(2).click()
            await page.locator("#detail-body .danger").wait_for()
            await page.mouse.move(5, 5)
            await _take(page, "dashboard-dark")
        phone = {"device_scale_factor": 2, "is_mobile": True, "has_touch": True}
        async with _dashboard(browser, url, (390, 844), color_scheme="light", **phone) as page:
            await page.locator("#mesh").evaluate("(each) => each.scrollIntoView()")
            await _take(page, "dashboard-phone")
        async with _dashboard(
            browser, f"{site.url}#room=conference", (1360, 760), color_scheme="light"
        ) as page:
            await page.locator("#detail-body .row").nth(8).wait_for()
            await _take(page.locator("#mesh"), "dashboard-50-peers")


_TALK = (
    ("Carla", "Morning! Is the new greenhouse schedule out?"),
    ("", "Nearly. I am adding the watering times, you have it in a minute."),
    ("Ben", "I can take Tuesday and Thursday."),
    ("Ben", "The hose at bed 4 leaks, by the way. Bring tape!"),
    ("", "!who"),
    ("room bot", "Here are Ada, Ben, Carla, Dora and I."),
    ("Dora", "Hello from the train: no direct way out of this network, but this works."),
    ("", "Good to hear from you, Dora. Here it is:"),
)
"""Who says what; what nobody says is typed into the page."""
_GARDEN = {"Ben": 4, "Carla": 0, "Dora": 9, "room bot": 4}
"""With a number for the id of each, on which the colour depends."""
_NOTICE = "The relay is updated at noon. Your connections stay."


async def _talk(page: Page, meshes: Mapping[str, PeerManager]) -> None:
    """Each line when the one before it has arrived."""
    said = page.locator("#entries .said")
    for number, (name, text) in enumerate(_TALK):
        if name:
            await meshes[name].broadcast({"text": text}, "chat")
        else:
            await page.locator("#text").fill(text)
            await page.keyboard.press("Enter")
        await said.nth(number).wait_for()
    await page.locator('.ticks[data-state="delivered"]').nth(2).wait_for()
    await (
        page.locator("#peers .words", has_text=re.compile(r" m?s$"))
        .nth(3)
        .wait_for(state="attached")
    )


async def _hand_out(page: Page, taker: PeerManager, folder: Path) -> None:
    """A file for everybody but the bot, of whom one takes it."""
    schedule = folder / "Greenhouse schedule.pdf"
    schedule.write_bytes(bytes(2_400_000))
    await page.set_input_files("#files", schedule)
    await page.locator("#to button.strong").click()
    await taker.receive_file(folder / "taken")
    await page.locator(".status", has_text="received").wait_for()


@asynccontextmanager
async def _chat(
    browser: Browser, url: str, size: tuple[int, int], others: int, **options: Any
) -> AsyncIterator[Page]:
    """Ada's page, once it is connected with the others."""
    context = await browser.new_context(
        viewport={"width": size[0], "height": size[1]}, timezone_id="UTC", **options
    )
    page = await context.new_page()
    await page.goto(url)
    await page.locator("#gate-name").fill("Ada")
    await page.locator("#gate-yes").click()
    await page.locator("#own-text", has_text=f"Connected to {others}").wait_for()
    yield page
    await page.locator(".home").click()  # so that she leaves
    await page.locator("#enter").wait_for()
    await context.close()


@asynccontextmanager
async def _garden(relay: Relay) -> AsyncIterator[dict[str, PeerManager]]:
    """The others, one of whom has no way but the relay's."""
    relayed = MeshConfig(ice_transport_policy="relay", relay_after=0.0)
    meshes = {}
    async with AsyncExitStack() as stack:
        for name, number in _GARDEN.items():
            mesh = PeerManager(
                relay.url, room="garden", peer_id=f"{name.lower()}-{number}", name=name,
                metadata={"bot": True} if name == "room bot" else {},
                config=relayed if name == "Dora" else MeshConfig(),
            )  # fmt: skip
            meshes[name] = await stack.enter_async_context(mesh)
        yield meshes


async def chat(browser: Browser) -> None:
    """A room with people and a bot, light and dark and on a phone, and its diagnostics."""
    relay = Relay(RelayConfig(port=3001))
    with tempfile.TemporaryDirectory() as folder:
        async with relay, _garden(relay) as meshes:
            url = relay.chat_url("garden")
            desktop = (1200, 960)
            async with _chat(browser, url, desktop, 4, color_scheme="light") as page:
                await _talk(page, meshes)
                await _hand_out(page, meshes["Carla"], Path(folder))
                await page.mouse.move(5, 5)
                await _take(page, "chat-desktop")
                await page.locator("#show-diagnostics").click()
                await page.locator("summary", has_text="Ben").click()
                await page.locator("#facts summary", has_text="signaling").click()
                await page.locator("#facts table").first.wait_for(state="attached")
                await _take(page.locator("#diagnostics"), "chat-diagnostics")
                await page.keyboard.press("Escape")
            async with _chat(browser, url, desktop, 4, color_scheme="dark") as page:
                await _talk(page, meshes)
                relay._apply(relay._rooms.notice("garden", _NOTICE, relay._now()))
                await page.locator(".notice.operator").wait_for()
                await page.locator(".ticks").last.click()
                await page.mouse.move(5, 5)
                await _take(page, "chat-dark")
            phone = {"device_scale_factor": 2, "is_mobile": True, "has_touch": True}
            async with _chat(browser, url, (390, 844), 4, color_scheme="light", **phone) as page:
                await _talk(page, meshes)
                photo = Path(folder) / "Bed 4, the leak.jpg"
                photo.write_bytes(bytes(3_100_000))
                ada = next(peer for peer in meshes["Ben"].peers.values() if peer.name == "Ada")
                sending = asyncio.create_task(ada.send_file(photo))
                await page.locator(".file button").first.wait_for()
                await page.locator("#log").evaluate(
                    "(log) => { log.scrollTop = log.scrollHeight; }"
                )
                await _take(page, "chat-phone")
                sending.cancel()
                await asyncio.wait([sending])


PAGES: Mapping[str, Callable[[Browser], Awaitable[None]]] = {"dashboard": dashboard, "chat": chat}


async def _run(names: list[str]) -> None:
    _FOLDER.mkdir(exist_ok=True)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        for name in names:
            await PAGES[name](browser)
        await browser.close()


def main() -> int:
    """Take the pictures of the pages that were asked for, or of all."""
    parser = argparse.ArgumentParser(prog="python -m tests.browser.screenshots")
    parser.add_argument("pages", nargs="*", metavar="PAGE", help=f"of {', '.join(PAGES)}")
    names = parser.parse_args().pages or list(PAGES)
    if unknown := set(names) - PAGES.keys():
        parser.error(f"there is no page {', '.join(sorted(unknown))}")
    asyncio.run(_run(names))
    return 0


if __name__ == "__main__":
    sys.exit(main())
