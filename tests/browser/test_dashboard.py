"""The dashboard, in Chromium: it shows what the relay knows, and does what it was asked for.

The mesh is scripted (`tests.browser.scripted`), but for the last test, with a relay and processes.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import combinations
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import pytest
import pytest_asyncio
from msgspec.structs import replace

from meshpeer import Relay, RelayConfig
from tests.browser.needs import chromium_here
from tests.browser.scripted import PASSWORD, Site, link_report
from tests.cli.processes import starter

if TYPE_CHECKING:
    from playwright.async_api import Browser, Locator, Page

pytestmark = pytest.mark.asyncio(loop_scope="module")

NONE = "\N{EN DASH}"
FAILURE = "no candidate pair worked"


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium_here() as chromium:
        yield chromium


@pytest_asyncio.fixture(loop_scope="module")
async def site() -> AsyncIterator[Site]:
    """A mesh that nobody is in."""
    async with Site.open() as site:
        yield site


class Seen:
    """What a page told besides what it shows."""

    def __init__(self) -> None:
        self.console: list[str] = []
        self.requests: list[str] = []


@asynccontextmanager
async def opened(
    browser: Browser,
    url: str,
    *,
    password: str = PASSWORD,
    size: tuple[int, int] = (1440, 1000),
    may_say: str | None = None,
    **options: Any,
) -> AsyncIterator[Page]:
    """The dashboard, signed in. At the end it must have said nothing but ``may_say`` (a pattern) on
    its console, and asked nobody else for anything."""
    seen = Seen()
    context = await browser.new_context(
        http_credentials={"username": "admin", "password": password},
        viewport={"width": size[0], "height": size[1]},
        **options,
    )
    try:
        page = await context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda said: seen.console.append(f"{said.type}: {said.text}"))
        page.on("pageerror", lambda error: seen.console.append(f"error: {error}"))
        page.on("dialog", lambda dialog: seen.console.append(f"dialog: {dialog.message}"))
        page.on("request", lambda request: seen.requests.append(request.url))
        page.on("websocket", lambda socket: seen.requests.append(socket.url))
        await page.goto(url)
        yield page
    finally:
        await context.close()
    said = [each for each in seen.console if may_say is None or not re.search(may_say, each)]
    assert said == []
    port = urlsplit(url).port
    assert {(urlsplit(each).hostname, urlsplit(each).port) for each in seen.requests} == {
        ("127.0.0.1", port)
    }


def lobby(site: Site) -> None:
    """Four members: three links are well, one goes over TURN, one over the relay, one is down."""
    site.join("lobby", "ann", "ben", "cleo", "dora", names={"ann": "Ann", "ben": "Ben"}, ago=90)
    well: dict[str, Any] = {
        "attempts": 1,
        "successes": 1,
        "connect_time": 0.5,
        "messages": 10,
        "rtt": 0.02,
    }
    site.link("lobby", "ann", "ben", **well)
    site.link("lobby", "ann", "cleo", **{**well, "rtt": 0.04})
    site.link("lobby", "ann", "dora", **{**well, "path": "turn", "rtt": 0.06})
    site.link(
        "lobby", "ben", "cleo", path="relay", rtt=0.2, attempts=2, failures=1, fallbacks=1,
        failure=FAILURE,
    )  # fmt: skip
    site.link("lobby", "cleo", "dora", rtt=0.001)
    down: dict[str, Any] = {
        "state": "failed",
        "ice_state": "failed",
        "path": None,
        "attempts": 3,
        "failures": 3,
    }
    site.report("lobby", "ben", [link_report("dora", **down, reason="gave up", failure=FAILURE)])
    checking = {"state": "connecting", "ice_state": "checking", "path": None}
    site.report("lobby", "dora", [link_report("ben", **checking, bytes_sent=2_500_000)])


async def figures(page: Page) -> dict[str, tuple[str, str]]:
    """The key figures: value, and what is said of it."""
    found = {}
    for tile in await page.locator("#figures > div").all():
        value, about = tile.locator(".value"), tile.locator(".about")
        found[await tile.locator("dt").inner_text()] = (
            await value.inner_text(),
            await about.inner_text(),
        )
    return found


async def facts(within: Locator) -> dict[str, str]:
    """A definition list."""
    return {
        await row.locator("dt").inner_text(): await row.locator("dd").inner_text()
        for row in await within.locator("> div").all()
    }


def node(page: Page, name: str) -> Locator:
    return page.locator(".node").filter(has=page.locator(".label", has_text=re.compile(f"^{name}")))


async def middle(peer: Locator) -> tuple[float, float]:
    """Where a peer is."""
    box = await peer.locator(".dot").bounding_box()
    assert box is not None
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


async def live(page: Page) -> None:
    from playwright.async_api import expect

    await expect(page.locator("#connection")).to_have_text("Live")


# --- the true picture ----------------------------------------------------------------------------


async def test_it_shows_the_true_picture(browser: Browser, site: Site) -> None:
    from playwright.async_api import expect

    lobby(site)
    site.join("small", "ann", "zoe")
    site.tracking.refused("room_full", "there are 2", site.now())
    site.figures = replace(site.figures, refused={"too_many": 3})
    async with opened(browser, site.url) as page:
        await expect(page.locator(".node")).to_have_count(4)
        assert await figures(page) == {
            "Rooms": ("2", "2 not all connected"),
            "Members": ("6", ""),
            "Active P2P": ("4", "of 7 pairs"),
            "Upgrade rate": ("57 %", "of the pairs are P2P"),
            "Success rate": ("43 %", "4 failed of 8"),
            "Connection time": ("500 ms", "on average"),
            "P2P messages": ("60", "not over the relay"),
            "Fallbacks": ("1", "to the relay"),
        }
        rooms = page.locator("#rooms button")
        await expect(rooms).to_have_count(2)
        assert (await rooms.first.inner_text()).split("\n") == [
            "lobby",
            "4 members",
            "3 direct · 1 TURN · 1 relay · 1 unconnected",
        ]
        await expect(rooms.first).to_have_attribute("aria-current", "true")
        assert (await rooms.last.inner_text()).split("\n") == [
            "small",
            "2 members",
            "1 unconnected",
        ]

        labels = await page.locator(".node").evaluate_all(
            "all => all.map((each) => each.getAttribute('aria-label'))"
        )
        assert labels == [
            "Ann: well connected, 2 direct, 1 TURN",
            "Ben: 2 of 3 links in trouble, 1 direct, 1 relay, 1 down",
            "cleo: 1 of 3 links in trouble, 2 direct, 1 relay",
            "dora: 1 of 3 links in trouble, 1 direct, 1 TURN, 1 down",
        ]
        looks = await page.locator(".links .link").evaluate_all(
            "all => all.map((each) => each.getAttribute('class')).sort()"
        )
        assert looks == [
            "link bad failed trouble",
            "link direct connected",
            "link direct connected",
            "link direct connected",
            "link relay connected trouble",
            "link turn connected",
        ]
        shown = await facts(page.locator("#detail-body .pairs"))
        assert shown.pop("Open for") == "1 min"
        assert shown == {
            "Members": "4",
            "Pairs": "6",
            "Direct": "3",
            "TURN": "1",
            "Relay": "1",
            "Connecting": "0",
            "Down": "1",
            "Nothing reported": "0",
            "Round trip, median": "40 ms",
        }
        assert await page.locator("#detail-body .row").all_inner_texts() == [
            "Ben ↔ dora\nfailed",
            "Ben ↔ cleo\nrelay\n200 ms",
        ]
        assert (await facts(page.locator("#relay-figures")))["Messages out"] == "3,400 (7.8 MB)"
        assert await page.locator("#refusals li").all_inner_texts() == [
            "sockets: too many\n3",
            "room full\n1\n--max-members",
        ]
        newest = page.locator("#activity li").first
        await expect(newest.locator(".chip")).to_have_text("refused")
        await expect(newest.locator(".text")).to_have_text("room_full: there are 2")
        kinds = page.locator("#activity .chip")
        assert set(await kinds.all_inner_texts()) == {
            "refused", "failed", "direct", "relay", "TURN", "joined",
        }  # fmt: skip
        failed = page.locator("#activity li", has=page.locator(".chip.bad", has_text="failed"))
        await expect(failed.locator(".what")).to_have_text("Ben ↔ dora in lobbygave up")
        await expect(failed.locator(".names")).to_have_attribute("title", "ben ↔ dora")
        assert "version 1.2.3" in await page.locator(".facts").inner_text()


async def test_what_happens_shows_without_being_asked_for(browser: Browser, site: Site) -> None:
    from playwright.async_api import expect

    lobby(site)
    async with opened(browser, site.url) as page:
        await expect(page.locator(".node")).to_have_count(4)
        site.leave("lobby", "ben")
        await expect(page.locator(".node")).to_have_count(3)
        await expect(page.locator(".links .link")).to_have_count(3)
        site.drop("lobby", "dora")
        await expect(node(page, "dora")).to_have_class(re.compile("away"))
        await expect(page.locator(".links .direct.connected")).to_have_count(2)
        site.drop("lobby", "cleo")  # of their link nobody says anything any more
        await expect(page.locator(".links .idle.waiting")).to_have_count(1)
        site.tracking.returned("lobby", "cleo", site.now())
        site.changed()
        await expect(page.locator(".links .direct.connected")).to_have_count(2)
        site.link("lobby", "ann", "cleo", state="disconnected", path=None)
        await expect(page.locator(".links .bad.disconnected")).to_have_count(1)
        site.leave("lobby", "ann")
        site.leave("lobby", "cleo")
        site.leave("lobby", "dora", "timeout")
        await expect(page.locator("#mesh-empty p").first).to_have_text("Nobody is in this room.")
        await expect(page.locator("#rooms-note")).to_contain_text("There is none.")
        left = page.locator("#activity li", has=page.locator(".chip", has_text="left"))
        await expect(left.first.locator(".what")).to_have_text(
            "dora in lobbydid not come back in time"
        )
        site.join("lobby", "eve")
        await expect(page.locator(".node")).to_have_count(1)


async def test_what_nobody_measured_is_a_dash(browser: Browser, site: Site) -> None:
    from playwright.async_api import expect

    async with opened(browser, site.url) as page:
        await live(page)
        await expect(page.locator("#mesh-empty p").first).to_have_text("Nobody is at this relay.")
        how = f"meshpeer chat lobby --relay ws://127.0.0.1:{site.port}"
        await expect(page.locator("#mesh-empty code")).to_have_text(how)
        known = await figures(page)
        assert known["Rooms"] == ("0", "")
        assert known["Upgrade rate"][0] == known["Success rate"][0] == NONE
        assert known["Connection time"][0] == NONE
        await expect(page.locator(".chart output")).to_have_text([NONE] * 4)
        site.join("lobby", "ann", "ben")
        site.link("lobby", "ann", "ben", rtt=None)
        await page.locator(".links .link").wait_for(state="attached")
        await page.goto(f"{site.url}#room=lobby&link={json.dumps(['ann', 'ben'])}")
        await expect(page.locator("#detail-title")).to_have_text("ann ↔ ben")
        await expect(page.locator("#detail-body .pairs")).to_have_text(
            f"Round trip{NONE}Quality{NONE}"
        )
        sides = await page.locator(".sides tr").all_inner_texts()
        assert f"Connection time\t{NONE}\t{NONE}" in sides
        assert "ICE restarts\t0\t0" in sides


async def test_curves_have_no_line_where_nothing_was_measured(browser: Browser, site: Site) -> None:
    from playwright.async_api import expect

    tracking = site.tracking
    site.join("lobby", "ann", "ben", ago=500)
    for ago in (490, 480, 470):
        tracking.tick(site.now(ago))
    site.link(
        "lobby", "ann", "ben", ago=465,
        rtt=0.02, attempts=2, successes=1, failures=1, connect_time=0.3,
    )  # fmt: skip
    tracking.tick(site.now(460))
    tracking.tick(site.now(450))
    counts = {"attempts": 2, "successes": 1, "failures": 1, "connect_time": 0.3}
    site.link("lobby", "ann", "ben", state="disconnected", path=None, **counts, ago=445)
    tracking.tick(site.now(440))
    site.link("lobby", "ann", "ben", rtt=0.04, **counts, ago=435)
    tracking.tick(site.now(430))
    tracking.tick(site.now(300))  # as after a time in which nobody was there
    tracking.tick(site.now(290))
    async with opened(browser, site.url) as page:
        await live(page)
        charts = page.locator(".chart")
        await expect(charts.locator("output").first).to_have_text(re.compile("50 % at"))
        seen = {}
        for chart in await charts.all():
            seen[await chart.locator("h2").inner_text()] = (
                await chart.locator(".stroke").count(),
                await chart.locator(".curve circle").count(),
            )
        assert seen == {
            "Success rate": (0, 1),
            "Connection time": (0, 1),
            "Round trip, median": (2, 1),
            "Members": (2, 0),
        }
        tracking.tick(site.now())
        site.changed()
        await expect(charts.nth(3).locator(".curve circle")).to_have_count(1)
        await expect(charts.nth(3).locator(".stroke")).to_have_count(2)
        await charts.nth(2).focus()
        await page.keyboard.press("Home")
        await expect(charts.nth(2).locator("output")).to_have_text(re.compile("^20 ms at"))
        await page.keyboard.press("End")
        await expect(charts.nth(2).locator("output")).to_have_text(re.compile("^40 ms at"))


# --- choosing ------------------------------------------------------------------------------------


async def test_a_room_a_peer_and_a_link_can_be_chosen(browser: Browser, site: Site) -> None:
    from playwright.async_api import expect

    lobby(site)
    site.join("small", "ann", "zoe")
    async with opened(browser, site.url) as page:
        title = page.locator("#detail-title")
        await node(page, "Ben").locator(".dot").click()
        await expect(title).to_have_text("Ben")
        shown = await facts(page.locator("#detail-body .pairs"))
        assert shown["Links"] == "1 direct, 1 relay, 1 down"
        assert shown["Address"] == "192.0.2.2"
        assert await page.locator("#detail-body > .list .row").all_inner_texts() == [
            "dora\nfailed",
            "cleo\nrelay\n200 ms",
            "Ann\ndirect\n20 ms",
        ]
        await page.locator("#detail-body .row", has_text="dora").click()
        await expect(title).to_have_text("Ben ↔ dora")
        rows = {
            row[0]: row[1:]
            for row in [
                text.split("\t") for text in await page.locator(".sides tr").all_inner_texts()
            ]
        }
        assert rows["State"] == ["failed", "connecting"]
        assert rows["ICE"] == ["failed", "checking"]
        assert rows["Last failure"] == [FAILURE, NONE]
        assert rows["Reason"] == ["gave up", NONE]
        assert rows["Bytes sent"] == ["0 B", "2.5 MB"]
        assert await page.locator(".sides .differs th").all_inner_texts() == ["State", "ICE"]
        await expect(page.locator("#detail-body .entries")).to_have_text(
            re.compile("failedBen ↔ doragave up$")
        )

        await page.reload()
        await expect(title).to_have_text("Ben ↔ dora")
        await expect(page.locator(".front .chosen.bad")).to_have_count(1)
        await page.locator(".sides thead button").last.click()
        await expect(title).to_have_text("dora")
        await page.locator("#detail-back").click()
        await expect(title).to_have_text("lobby")

        await page.locator("#rooms button", has_text="small").click()
        await expect(title).to_have_text("small")
        await expect(page.locator(".node")).to_have_count(2)
        await expect(page.locator("#detail-body")).to_contain_text("No links were reported.")


async def test_a_link_is_found_under_the_pointer(browser: Browser, site: Site) -> None:
    from playwright.async_api import expect

    lobby(site)
    async with opened(browser, site.url) as page:
        (ax, ay), (bx, by) = [await middle(node(page, name)) for name in ("Ann", "Ben")]
        x, y = (ax + bx) / 2, (ay + by) / 2
        await page.mouse.move(x + 2, y)
        await expect(page.locator(".tip")).to_have_text("Ann ↔ Benconnected · direct · 20 ms")
        await page.mouse.click(x + 2, y)
        await expect(page.locator("#detail-title")).to_have_text("Ann ↔ Ben")
        await page.mouse.move(5, 5)
        await expect(page.locator(".tip")).to_be_hidden()


async def test_pointing_at_a_peer_shows_whose_links_are_its_own(
    browser: Browser, site: Site
) -> None:
    from playwright.async_api import expect

    lobby(site)
    async with opened(browser, site.url) as page:
        await node(page, "Ann").locator(".dot").hover()
        await expect(page.locator(".links .near")).to_have_count(3)
        await expect(page.locator(".tip")).to_have_text("Ann2 direct, 1 TURN")
        await page.mouse.move(5, 5)
        await expect(page.locator(".links .near")).to_have_count(0)


async def test_two_of_one_name_are_told_apart(browser: Browser, site: Site) -> None:
    from playwright.async_api import expect

    names = {"ann": "Ann", "x-1": "Ann", "ben": "Ben", "x-2": "ben"}
    site.join("lobby", *names, names=names)
    for a, b in combinations(names, 2):
        site.link("lobby", a, b, path="relay")
    async with opened(browser, site.url) as page:
        await expect(page.locator(".node .label")).to_have_text(
            ["Ann (ann)", "Ben", "Ann (x-1)", "ben (x-2)"]
        )
        rows = await page.locator("#detail-body > .list .who").all_inner_texts()
        assert "Ann (ann) ↔ Ann (x-1)" in rows
        assert "Ben ↔ ben (x-2)" in rows
        await expect(page.locator("#activity .names").first).to_have_text("Ben ↔ ben (x-2)")
        await node(page, "Ben").locator(".dot").click()
        await page.get_by_role("button", name="Remove…").click()
        # What can't be taken back says who it is, however unique the name.
        await expect(page.locator("#confirm-text")).to_contain_text("Ben (ben) loses its seat")


async def test_who_is_away_is_nobody_elses_trouble(browser: Browser, site: Site) -> None:
    from playwright.async_api import expect

    names = ("ann", "ben", "cleo", "dora", "eve")
    site.join("lobby", *names)
    for a, b in combinations(names, 2):
        site.link("lobby", a, b, rtt=0.02)
    site.drop("lobby", "eve")
    lost: dict[str, Any] = {"state": "disconnected", "path": None, "rtt": 0.02}
    for each in ("ann", "ben", "cleo"):  # dora's link to eve is alive
        site.report("lobby", each, [link_report("eve", **lost)])
    async with opened(browser, site.url) as page:
        await expect(node(page, "eve")).to_have_class(re.compile("away"))
        await expect(page.locator(".node.well")).to_have_count(4)
        shown = await facts(page.locator("#detail-body .pairs"))
        assert shown["Members"] == "5, 1 away"
        # As the admin API counts them: the six of those that are there, and one that outlives it.
        assert (shown["Pairs"], shown["Direct"], shown["Down"]) == ("7", "7", "0")
        assert shown["Links of who is away"] == "3"
        assert (await figures(page))["Active P2P"] == ("7", "of 7 pairs")
        attention = page.locator("#detail-body > .list .row")
        assert await attention.all_inner_texts() == ["eve\naway, its seat is kept"]
        await attention.click()
        await expect(page.locator("#detail-title")).to_have_text("eve")
        # A round trip of before is not one of now.
        assert await page.locator("#detail-body > .list .row").first.inner_text() == (
            "ann\ndisconnected"
        )


async def test_one_peer_that_nobody_reaches_is_one_thing(browser: Browser, site: Site) -> None:
    from playwright.async_api import expect

    fifty(site)
    site.link("hall", "00 with quite a long name", "01 with quite a long name", path="relay")
    async with opened(browser, site.url) as page:
        rows = page.locator("#detail-body > .list .row")
        await expect(rows).to_have_count(2)
        await expect(rows.first).to_have_text("49 with quite a long nameall 49 links down")
        await expect(rows.last.locator(".chip")).to_have_text("relay")
        await rows.first.click()
        await expect(page.locator("#detail-body .advice")).to_contain_text("likely to be its own")


async def test_what_is_wrong_is_explained(browser: Browser, site: Site) -> None:
    from playwright.async_api import expect

    lobby(site)
    site.join("small", "ann")
    site.drop("lobby", "dora")
    async with opened(browser, site.url + "#room=lobby") as page:
        await expect(page.locator(".node")).to_have_count(4)
        advice = page.locator("#detail-body .advice")

        async def choose(hash_: str) -> None:
            await page.evaluate("(hash) => { location.hash = hash }", hash_)

        await choose('#room=lobby&link=["ben","cleo"]')
        await expect(advice).to_contain_text("goes through this relay")
        await choose('#room=lobby&link=["ben","dora"]')
        await expect(advice).to_contain_text("dora has lost the relay as well")
        await choose("#room=lobby&peer=dora")
        await expect(advice).to_contain_text("Its seat is kept for a while")
        await choose('#room=lobby&link=["ann","ben"]')
        await expect(page.locator("#detail-title")).to_have_text("Ann ↔ Ben")
        await expect(advice).to_be_hidden()  # nothing is wrong
        site.link("lobby", "ann", "ben", state="disconnected", path=None)
        await expect(advice).to_contain_text("They restart ICE by themselves")
        site.link("lobby", "ann", "ben", state="failed", path=None)
        await expect(advice).to_contain_text("a TURN server helps")
        await choose("#room=small&peer=ann")
        await expect(advice).to_have_text("Nobody else is here.")


# --- acting --------------------------------------------------------------------------------------


async def test_each_action_asks_and_then_says_what_came_of_it(browser: Browser, site: Site) -> None:
    from playwright.async_api import expect

    lobby(site)
    async with opened(browser, site.url) as page:
        dialog, toast = page.locator("#confirm"), page.locator(".toast").last
        yes, no = page.locator("#confirm-yes"), page.locator("#confirm-no")

        await page.get_by_role("button", name="Send a notice…").click()
        await expect(dialog).to_contain_text("all 4 members")
        await expect(page.locator("#confirm-input")).to_be_focused()
        await yes.click()
        await expect(dialog).to_be_visible()  # it wants a text
        await page.keyboard.type("Back in <b>five</b> minutes")
        await page.keyboard.press("Enter")
        await expect(toast).to_have_text(re.compile("^Done: Notice to lobby"))

        await node(page, "Ann").locator(".dot").click()
        await page.get_by_role("button", name="Restart ICE…").click()
        await expect(dialog).to_contain_text("with everybody in the room (3 links)")
        await yes.click()
        await expect(toast).to_have_text(re.compile("^Done: Restart ICE: Ann"))

        await page.locator("#detail-body .row", has_text="cleo").click()
        await page.get_by_role("button", name="Restart ICE…").click()
        await expect(page.locator("#confirm-title")).to_have_text("Restart ICE: Ann ↔ cleo")
        await yes.click()
        await expect(toast).to_have_text(re.compile("^Done: Restart ICE: Ann ↔ cleo"))

        await node(page, "Ben").locator(".dot").click()
        await page.get_by_role("button", name="Remove…").click()
        await expect(no).to_be_focused()  # what can't be taken back is no slip of a key
        await page.keyboard.press("Enter")
        await expect(dialog).to_be_hidden()
        await page.get_by_role("button", name="Remove…").click()
        await page.keyboard.press("Escape")
        await expect(dialog).to_be_hidden()
        await expect(page.locator("#detail-title")).to_have_text("Ben")
        assert site.acts == [
            ("notice", "lobby", "Back in <b>five</b> minutes"),
            ("restart_ice", "lobby", "ann"),
            ("restart_ice", "lobby", "ann", "cleo"),
        ]
        await page.get_by_role("button", name="Remove…").click()
        await yes.click()
        await expect(toast).to_have_text(re.compile("^Done: Remove Ben"))
        await expect(page.locator("#detail-body")).to_contain_text("ben is not in this room")
        assert site.acts[3:] == [("remove", "lobby", "ben")]
        await page.locator("#activity-kind").select_option("operator")
        await expect(page.locator("#activity .chip")).to_have_text(
            ["removed", "ICE restart", "ICE restart", "notice"]
        )


async def test_an_action_that_fails_says_why(browser: Browser, site: Site) -> None:
    from playwright.async_api import expect

    lobby(site)
    async with opened(browser, site.url) as page:
        await node(page, "Ann").locator(".dot").click()
        await page.get_by_role("button", name="Remove…").click()
        site.leave("lobby", "ann")
        await expect(page.locator(".node")).to_have_count(3)
        await page.locator("#confirm-yes").click()
        await expect(page.locator(".toast.bad")).to_contain_text("there is no 'ann' in room")
        await page.get_by_role("button", name="Close").click()
        await expect(page.locator(".toast")).to_have_count(0)
        assert site.acts == []


async def test_an_action_without_an_answer_is_not_called_done(browser: Browser, site: Site) -> None:
    from playwright.async_api import expect

    lobby(site)
    site.on_act = site.drop_dashboards
    async with opened(browser, site.url + "#room=lobby&peer=ann") as page:
        await page.get_by_role("button", name="Restart ICE…").click()
        await page.locator("#confirm-yes").click()
        await expect(page.locator(".toast.bad")).to_contain_text("lost before the relay answered")


# --- strangers -----------------------------------------------------------------------------------

MARKUP = [
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(1)</script>",
    "\"'><svg onload=alert(1)>",
    "javascript:alert(1)",
    "{{7*7}} ${alert(1)}",
    "__proto__",
    "مرحبا bidi",
]


async def test_names_are_never_more_than_text(browser: Browser, site: Site) -> None:
    from playwright.async_api import expect

    room = MARKUP[0]
    site.join(room, *MARKUP, names={each: each for each in MARKUP})
    for a, b in combinations(MARKUP, 2):
        site.link(room, a, b, path="relay", reason=MARKUP[1], failure=MARKUP[2])
    site.tracking.refused("unauthorized", MARKUP[0], site.now(), room=room, peer_id=MARKUP[2])
    async with opened(browser, site.url) as page:
        await expect(page.locator(".node")).to_have_count(len(MARKUP))
        elements = page.locator("img, script, [onerror], [onload], a[href^='javascript']")
        before = await elements.count()
        await page.locator("#as-table").click()
        await expect(page.locator("caption")).to_have_count(2)
        await expect(page.locator("tbody button").filter(has_text=MARKUP[1])).not_to_have_count(0)
        for a, b in combinations(MARKUP, 2):
            await page.evaluate(
                "(hash) => { location.hash = hash }",
                "#" + await page.evaluate("(all) => new URLSearchParams(all).toString()",
                                          {"room": room, "link": json.dumps([a, b])}),
            )  # fmt: skip
            await expect(page.locator("#detail-title")).to_contain_text(" ↔ ")
        await expect(page.locator(".sides")).to_contain_text(MARKUP[1])
        await expect(page.locator(".sides")).to_contain_text(MARKUP[2])
        await page.locator(".sides thead button").first.click()
        for name in ("Restart ICE…", "Remove…"):
            await page.get_by_role("button", name=name).click()
            await page.locator("#confirm-yes").click()
        await expect(page.locator(".toast")).to_have_count(2)
        assert await elements.count() == before
        assert await page.evaluate("({}).polluted === undefined && window.alert.name") == "alert"


# --- lost and found ------------------------------------------------------------------------------


async def test_it_comes_back_when_its_socket_drops(browser: Browser, site: Site) -> None:
    from playwright.async_api import expect

    lobby(site)
    async with opened(browser, site.url + "#room=lobby&peer=ann", may_say="WebSocket") as page:
        await expect(page.locator(".node")).to_have_count(4)
        site.drop_dashboards()
        site.leave("lobby", "ben")
        await expect(page.locator(".node")).to_have_count(3)
        await live(page)
        await expect(page.locator("#detail-title")).to_have_text("Ann")


async def test_it_comes_back_when_the_relay_restarts(browser: Browser) -> None:
    from playwright.async_api import expect

    async with Site.open() as first:
        port = first.port
        lobby(first)
        async with opened(browser, first.url, may_say="ERR_CONNECTION|WebSocket") as page:
            await expect(page.locator("#activity li")).not_to_have_count(0)
            await first.close()
            await expect(page.locator(".connection")).to_have_attribute("data-state", "lost")
            await expect(page.locator("body")).to_have_class("stale")
            await expect(page.locator("#as-of")).to_have_text(re.compile(r"^as of \d\d:\d\d:\d\d$"))
            async with page.expect_request("**/session"):
                await page.locator("#again", has_text="Try now").click()
            await expect(page.locator(".node")).to_have_count(4)  # what was known is still there
            async with Site.open(port) as second:
                second.join("lobby", "eve")
                await page.evaluate("dispatchEvent(new Event('online'))")
                await live(page)
                await expect(page.locator(".node")).to_have_count(1)
                await expect(page.locator("#activity li")).to_have_count(1)
                await expect(page.locator("body")).not_to_have_class("stale")
                await expect(page.locator("#as-of")).to_be_hidden()


async def test_another_password_asks_to_sign_in_again(browser: Browser) -> None:
    from playwright.async_api import expect

    async with Site.open() as first:
        port = first.port
        said = "ERR_CONNECTION|WebSocket|401"
        async with opened(browser, first.url, may_say=said) as page:
            await page.clock.install()
            await page.reload()
            await live(page)
            await page.evaluate(
                "() => { window.asked = []; const real = fetch;"
                " window.fetch = (...all) => (asked.push(all[0]), real(...all)) }"
            )
            await first.close()
            async with Site.open(port, password="something else"):
                await expect(page.locator("#again")).to_have_text("Sign in again")
                await expect(page.locator("#connection")).to_contain_text("Signed out")
                # Not again by itself: there is a limit on attempts.
                asked = await page.evaluate("asked.length")
                await page.clock.run_for(60_000)
                assert await page.evaluate("asked.length") == asked > 0


async def test_a_relay_that_falls_silent_is_lost(browser: Browser, site: Site) -> None:
    from playwright.async_api import WebSocketRoute, expect

    lobby(site)
    silent = False

    def pass_on(route: WebSocketRoute) -> None:
        server = route.connect_to_server()
        server.on_message(lambda message: None if silent else route.send(message))

    async with opened(browser, site.url, may_say="WebSocket") as page:
        await page.clock.install()
        await page.route_web_socket(re.compile("/api/admin/live"), pass_on)
        await page.reload()
        await live(page)
        silent = True
        said = page.locator("#connection")
        for _ in range(80):
            await page.clock.run_for(200)
            if await said.inner_text() != "Live":
                break
        await expect(said).to_have_text("Nothing heard from the relay")
        silent = False
        await page.clock.run_for(2_000)
        await live(page)


async def test_an_address_with_the_password_in_it_works(browser: Browser, site: Site) -> None:
    from playwright.async_api import expect

    lobby(site)
    url = site.url.replace("//", f"//admin:{quote(PASSWORD)}@")
    async with opened(browser, url, password="none of its business") as page:
        await live(page)
        await expect(page.locator(".node")).to_have_count(4)


# --- keyboard, and what must not move ------------------------------------------------------------


async def test_everything_can_be_reached_by_keyboard(browser: Browser, site: Site) -> None:
    from playwright.async_api import expect

    lobby(site)
    site.join("small", "ann", "zoe")
    async with opened(browser, site.url) as page:
        await expect(page.locator(".node")).to_have_count(4)
        press, focused = page.keyboard.press, page.locator(":focus")
        await press("Tab")
        await expect(focused).to_have_text("Skip to the mesh")
        for _ in range(4):
            await press("Tab")
        await expect(focused).to_contain_text("lobby")
        await press("ArrowDown")
        await expect(focused).to_contain_text("small")
        await press("Home")
        await press("Tab")
        await expect(focused).to_have_text("Graph")
        await press("Tab")
        await press("Tab")
        await expect(focused).to_have_attribute("aria-label", re.compile("^Ann"))
        await expect(page.locator(".tip")).to_contain_text("Ann")
        await press("ArrowRight")
        await expect(focused).to_have_attribute("aria-label", re.compile("^Ben"))
        await press("Enter")
        await expect(page.locator("#detail-title")).to_have_text("Ben")
        await expect(focused).to_have_attribute("aria-pressed", "true")
        await press("Tab")
        await expect(focused).to_have_text("Back to the room")
        await press("Tab")
        await expect(focused).to_have_text("Restart ICE…")
        await press("Enter")
        await expect(focused).to_have_text("Restart ICE")
        await press("Enter")
        await expect(page.locator(".toast.ok")).to_have_count(1)
        await expect(focused).to_have_text("Restart ICE…")  # back where it was
        await press("Escape")
        await expect(page.locator("#detail-title")).to_have_text("lobby")
        assert site.acts == [("restart_ice", "lobby", "ben")]

        # What is chosen in the panel stays in the panel.
        panel = page.locator("#detail")
        await page.locator("#detail-body .row").first.focus()
        await press("Enter")
        await expect(page.locator("#detail-title")).to_have_text("Ben ↔ dora")
        await expect(panel).to_be_focused()
        await press("Tab")
        await expect(focused).to_have_text("Back to the room")
        await press("Enter")
        await expect(page.locator("#detail-title")).to_have_text("lobby")
        await expect(panel).to_be_focused()

        await page.locator("#as-table").focus()
        await press("Enter")
        await expect(page.locator("#tables")).to_be_visible()
        await press("Tab")
        await expect(focused).to_have_text("Name")


async def test_a_change_moves_neither_the_focus_nor_what_is_scrolled(
    browser: Browser, site: Site
) -> None:
    from playwright.async_api import expect

    peers = [f"peer-{number:02}" for number in range(30)]
    site.join("lobby", *peers)
    for other in peers[1:]:
        site.link("lobby", peers[0], other)
    async with opened(browser, site.url + "#room=lobby&peer=peer-00") as page:
        row = page.locator("#detail-body .row", has_text="peer-29")
        await row.focus()
        box = page.locator("#detail-body")
        scrolled = await box.evaluate("(each) => each.scrollTop")
        assert scrolled > 0
        site.link("lobby", "peer-00", "peer-05", rtt=0.123)
        await expect(page.locator("#detail-body .row", has_text="peer-05")).to_contain_text(
            "123 ms"
        )
        await expect(row).to_be_focused()
        assert await box.evaluate("(each) => each.scrollTop") == scrolled
        site.link("lobby", "peer-00", "peer-29", state="failed", path=None)  # goes to the top
        await expect(page.locator("#detail-body .row").first).to_contain_text("peer-29")
        await expect(row).to_be_focused()

        # Elements stay the same ones.
        await page.locator("#activity-room").focus()
        await page.locator(".node").first.evaluate("(each) => { each.mark = 'same' }")
        site.join("lobby", "zoe")
        await expect(page.locator(".node")).to_have_count(31)
        assert await page.locator(".node").first.evaluate("(each) => each.mark") == "same"
        await expect(page.locator("#activity-room")).to_be_focused()


# --- lists and tables ----------------------------------------------------------------------------


async def test_the_tables_say_the_same_as_the_graph(browser: Browser, site: Site) -> None:
    from playwright.async_api import expect

    lobby(site)
    async with opened(browser, site.url) as page:
        await page.locator("#as-table").click()
        await expect(page.locator("#graph")).to_be_hidden()
        members, links = page.locator("#tables table").first, page.locator("#tables table").last
        rows = [row.split("\t")[:7] for row in await members.locator("tbody tr").all_inner_texts()]
        assert rows == [
            ["Ann", "well connected", "2", "1", "0", "0", "40 ms"],
            ["Ben", "2 of 3 links in trouble", "1", "0", "1", "1", "110 ms"],
            ["cleo", "1 of 3 links in trouble", "2", "0", "1", "0", "40 ms"],
            ["dora", "1 of 3 links in trouble", "1", "1", "0", "1", "31 ms"],
        ]

        async def between() -> list[str]:
            return await links.locator("tbody th").all_inner_texts()

        worst_first = [
            "Ben ↔ dora", "Ben ↔ cleo", "Ann ↔ dora", "Ann ↔ Ben", "Ann ↔ cleo", "cleo ↔ dora",
        ]  # fmt: skip
        assert await between() == worst_first
        first = (await links.locator("tbody tr").first.inner_text()).split("\t")
        assert first[:5] == ["Ben ↔ dora", "failed", "no path", NONE, "poor"]
        assert first[7] == FAILURE
        await links.get_by_role("button", name="Round trip").click()
        assert (await between())[0] == "cleo ↔ dora"
        assert (await between())[-1] == "Ben ↔ dora"  # not measured
        await links.get_by_role("button", name="Round trip").click()
        await expect(links.locator("[aria-sort]")).to_have_attribute("aria-sort", "descending")
        assert (await between())[:2] == ["Ben ↔ dora", "Ben ↔ cleo"]
        await links.locator("tbody button", has_text="Ann ↔ Ben").click()
        await expect(page.locator("#detail-title")).to_have_text("Ann ↔ Ben")
        await expect(links.locator("[aria-current]")).to_have_count(1)
        await members.locator("tbody button", has_text="dora").click()
        await expect(page.locator("#detail-title")).to_have_text("dora")


async def test_the_activity_can_be_searched_and_paused(browser: Browser, site: Site) -> None:
    from playwright.async_api import expect

    site.join("lobby", "ann", "ben")
    site.join("small", "zoe")
    site.link("lobby", "ann", "ben")
    async with opened(browser, site.url + "#room=lobby") as page:
        entries = page.locator("#activity li")
        await expect(entries).to_have_count(4)
        await page.locator("#activity-kind").select_option("presence")
        await expect(entries).to_have_count(3)
        await page.locator("#activity-room").check()
        await expect(entries).to_have_count(2)
        await page.locator("#activity-filter").fill("BEN")
        await expect(entries).to_have_count(1)
        await page.locator("#activity-filter").fill("nobody")
        await expect(page.locator("#activity-empty")).to_have_text("Nothing of this kind.")
        await page.locator("#activity-filter").fill("")
        await page.locator("#activity-kind").select_option("")
        await page.locator("#activity-room").uncheck()
        await expect(entries).to_have_count(4)

        await page.locator("#activity-pause").click()
        site.join("lobby", "cleo")
        await expect(page.locator("#activity-count")).to_have_text("1 new")
        await expect(page.locator(".node")).to_have_count(3)
        await expect(entries).to_have_count(4)
        await page.locator("#activity-pause").click()
        await expect(entries).to_have_count(5)
        await expect(page.locator("#activity-count")).to_have_text("")
        await entries.filter(has_text="zoe").locator("button").click()
        await expect(page.locator("#detail-title")).to_have_text("zoe")
        await expect(page.locator("#mesh-title")).to_have_text("small")


async def test_two_hundred_rooms_and_more(browser: Browser, site: Site) -> None:
    from playwright.async_api import expect

    for number in range(230):
        site.join(f"room {number:03}", "ann", *(["ben"] if number < 200 else []))
    site.link("room 150", "ann", "ben", state="failed", path=None)
    site.link("room 149", "ann", "ben")
    async with opened(browser, site.url) as page:
        rooms = page.locator("#rooms button")
        await expect(rooms).to_have_count(200)
        await expect(page.locator("#room-count")).to_have_text("230")
        assert (await figures(page))["Rooms"] == ("230", "")
        assert (await figures(page))["Members"][0] == NONE  # of some rooms it is not told
        await expect(page.locator("#rooms-note")).to_contain_text("the 200 largest of 230")
        await page.locator("#room-order").select_option("name")
        await expect(rooms.first).to_contain_text("room 000")
        await page.locator("#room-filter").fill("149")
        await expect(rooms).to_have_count(1)
        await page.locator("#room-filter").press("Enter")
        await expect(page.locator("#mesh-title")).to_have_text("room 149")
        await page.locator("#room-filter").fill("room 229")
        await expect(rooms).to_have_count(0)
        await page.locator("#room-open").click()
        await expect(page.locator("#mesh-title")).to_have_text("room 229")
        await expect(page.locator(".node")).to_have_count(1)
        # One stop for Tab, however many there are.
        await page.locator("#room-filter").fill("")
        await expect(rooms).to_have_count(200)
        assert await page.locator("#rooms button[tabindex='0']").count() == 1


# --- how it looks --------------------------------------------------------------------------------


def fifty(site: Site) -> None:
    """All connected, but for the last, which nobody reaches."""
    peers = [f"{number:02} with quite a long name" for number in range(50)]
    site.join("hall", *peers)
    for a in peers:
        dead = {"state": "failed", "ice_state": "failed", "path": None}
        site.report(
            "hall",
            a,
            [
                link_report(b, rtt=0.02, **(dead if peers[49] in (a, b) else {}))
                for b in peers
                if b != a
            ],
        )


_CORNERS = """(labels) => labels.map((label) => {
  const { x, y, width, height } = label.getBBox(), matrix = label.getScreenCTM();
  const top = y + height / 8, bottom = y + height * 7 / 8; // the rest of a line is air
  return [[x, top], [x + width, top], [x + width, bottom], [x, bottom]]
    .map(([x, y]) => new DOMPoint(x, y).matrixTransform(matrix)).map(({ x, y }) => [x, y]);
})"""


def overlap(one: list[list[float]], two: list[list[float]]) -> bool:
    """Whether two rectangles share a point: no line between them along a side of either."""
    for shape in (one, two):
        for (ax, ay), (bx, by) in zip(shape, shape[1:] + shape[:1], strict=True):
            shadows = [[(by - ay) * x - (bx - ax) * y for x, y in each] for each in (one, two)]
            if max(shadows[0]) < min(shadows[1]) or max(shadows[1]) < min(shadows[0]):
                return False
    return True


@pytest.mark.parametrize("size", [(1440, 1000), (1024, 768), (360, 740)], ids=str)
async def test_fifty_peers_are_readable(
    browser: Browser, site: Site, size: tuple[int, int]
) -> None:
    from playwright.async_api import expect

    fifty(site)
    async with opened(browser, site.url, size=size) as page:
        await expect(page.locator(".links .link")).to_have_count(1225)
        labels = page.locator(".node .label:visible")
        await expect(labels).to_have_count(50)
        corners = await labels.evaluate_all(_CORNERS)
        assert not [
            pair for pair in combinations(range(50), 2) if overlap(*(corners[i] for i in pair))
        ]
        frame = await page.locator("#graph").bounding_box()
        assert frame is not None
        for x, y in (corner for shape in corners for corner in shape):
            assert frame["x"] <= x <= frame["x"] + frame["width"]
            assert frame["y"] <= y <= frame["y"] + frame["height"]
        # The one that nobody reaches stands out, not the 49 that do not reach it.
        await expect(page.locator(".node.bad")).to_have_count(1)
        await expect(page.locator(".links .trouble")).to_have_count(49)
        assert await page.evaluate("document.documentElement.scrollWidth") == size[0]


async def test_of_very_many_links_those_with_trouble_are_told(browser: Browser, site: Site) -> None:
    from playwright.async_api import expect

    peers = [f"{number:03}" for number in range(80)]
    site.join("hall", *peers)
    for a in peers:
        site.report("hall", a, [link_report(b) for b in peers if b != a])
    site.link("hall", "078", "079", path="relay")
    site.link("hall", "077", "079", state="failed")
    async with opened(browser, site.url) as page:
        await expect(page.locator("#mesh-note")).to_have_text(
            re.compile("^The relay tells of 1,500 links of this room")
        )
        await expect(page.locator("#mesh-count")).to_have_text("80 members, over 1,500 links")
        await expect(page.locator(".links .link")).to_have_count(1500)
        await expect(page.locator(".links .trouble")).to_have_count(2)
        await expect(page.locator(".links .bad")).to_have_count(1)
        # A room that is told of whole says nothing of the kind.
        for peer_id in peers[55:]:
            site.leave("hall", peer_id)
        await expect(page.locator(".links .link")).to_have_count(55 * 54 // 2)
        await expect(page.locator("#mesh-note")).to_be_hidden()


async def test_a_long_name_leaves_room_for_the_numbers(browser: Browser, site: Site) -> None:
    from playwright.async_api import expect

    site.join("a room with a very long name " * 4, "ann", "ben")
    async with opened(browser, site.url) as page:
        number = page.locator("#rooms .number")
        await expect(number).to_have_text("2 members")
        inner, outer = await number.bounding_box(), await page.locator("#rooms").bounding_box()
        assert inner is not None
        assert outer is not None
        assert inner["x"] + inner["width"] <= outer["x"] + outer["width"]


async def test_on_a_phone_nothing_is_cut_off(browser: Browser, site: Site) -> None:
    from playwright.async_api import expect

    lobby(site)
    long = "a-peer-id-that-is-" + "very-" * 20 + "long"
    site.join("lobby", long)
    site.link("lobby", "ann", long, path="relay", failure="x" * 200)
    async with opened(browser, site.url, size=(360, 740), has_touch=True) as page:
        await expect(page.locator(".node")).to_have_count(5)
        await node(page, "Ann").locator(".dot").tap()
        await expect(page.locator("#detail-title")).to_be_in_viewport()
        for where in ("peer=ann", f"peer={long}", f'link=["ann","{long}"]'):
            await page.evaluate("(hash) => { location.hash = hash }", f"#room=lobby&{where}")
            await expect(page.locator("#detail-body")).to_contain_text("relay")
            assert await page.evaluate("document.documentElement.scrollWidth") == 360
        await page.locator("#as-table").tap()
        assert await page.evaluate("document.documentElement.scrollWidth") == 360


@pytest.mark.parametrize("motion", ["no-preference", "reduce"])
async def test_what_changes_flashes_unless_motion_is_unwanted(
    browser: Browser, site: Site, motion: str
) -> None:
    from playwright.async_api import expect

    lobby(site)
    async with opened(browser, site.url, reduced_motion=motion) as page:
        await expect(page.locator(".links .link")).to_have_count(6)
        # It is gone after a second: what counts is that there was one.
        await page.evaluate(
            "() => { window.flashes = 0; new MutationObserver((all) => { for (const each of all)"
            " window.flashes += [...each.addedNodes].filter((e) => e.matches('.changed')).length"
            " }).observe(document.querySelector('.front'), { childList: true }) }"
        )
        site.link("lobby", "ann", "ben", state="failed", path=None)
        await expect(page.locator(".links .failed")).to_have_count(2)
        assert await page.evaluate("window.flashes") == (1 if motion == "no-preference" else 0)


async def test_light_and_dark(browser: Browser, site: Site) -> None:
    from playwright.async_api import expect

    async with opened(browser, site.url, color_scheme="dark") as page:
        await live(page)
        ground = "getComputedStyle(document.documentElement).backgroundColor"
        dark = await page.evaluate(ground)
        button = page.locator("#theme")
        await expect(button).to_have_text("Auto")
        await button.click()
        await expect(button).to_have_text("Light")
        light = await page.evaluate(ground)
        assert light != dark
        await page.reload()
        await expect(button).to_have_text("Light")
        assert await page.evaluate(ground) == light
        await button.click()
        assert await page.evaluate(ground) == dark


# --- all of it, for real -------------------------------------------------------------------------


async def test_three_bots_in_two_rooms(browser: Browser) -> None:
    from playwright.async_api import expect

    async with Relay(RelayConfig(port=0)) as relay, starter() as start:
        ann, ben, cleo = [
            await start("chat", room, "--relay", relay.url, "--json", "--id", peer_id)
            for room, peer_id in (("lobby", "ann"), ("lobby", "ben"), ("quiet", "cleo"))
        ]
        await ann.until(event="peer_state", peer_id="ben", state="connected")
        await cleo.until(event="joined")
        url = relay.admin_url + "#room=lobby"
        async with opened(browser, url, password=relay.admin_password) as page:
            await expect(page.locator(".links .direct.connected")).to_have_count(1)
            shown = await figures(page)
            api = relay.admin_url.replace("/admin-analytics", "/api/admin")
            status = await (await page.request.get(f"{api}/mesh-status")).json()
            metrics = status["metrics"]
            assert metrics["activeP2PConnections"] == 1
            assert shown["Rooms"][0] == "2"
            assert shown["Members"][0] == str(len(status["connections"])) == "3"
            assert shown["Active P2P"] == ("1", "of 1 pair")
            assert shown["Upgrade rate"][0] == "100 %"
            assert shown["Success rate"] == ("100 %", f"0 failed of {metrics['totalP2PAttempts']}")
            assert shown["Fallbacks"][0] == str(metrics["fallbackCount"])

            await page.locator("#rooms button", has_text="quiet").click()
            await node(page, "cleo").locator(".dot").click()
            await page.get_by_role("button", name="Remove…").click()
            await page.locator("#confirm-yes").click()
            await expect(page.locator(".toast.ok")).to_contain_text("Remove cleo")
            await expect(page.locator("#mesh-empty p").first).to_have_text(
                "Nobody is in this room."
            )
            await cleo.end()  # it is told so, and does not come back

            await page.locator("#rooms button", has_text="lobby").click()
            await expect(page.locator(".node")).to_have_count(2)
            await ben.kill()
            await expect(node(page, "ben")).to_have_class(re.compile("away"))
            await expect(page.locator(".links .bad")).to_have_count(1)
            await expect(page.locator("#activity li", has_text="ben").first).to_be_visible()
            ann.process.terminate()
            await ann.end()
