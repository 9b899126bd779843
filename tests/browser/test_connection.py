"""The browser's connection: two of them in one page of Chromium, `page/connections.js`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.browser.needs import chromium_here

pytestmark = pytest.mark.asyncio(loop_scope="module")

_ROOT = Path(__file__).parents[2]
_WEB = _ROOT / "meshpeer" / "relay" / "web"

Run = Callable[[str], Awaitable[dict[str, Any]]]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def run() -> AsyncIterator[Run]:
    """Runs one of the page's scenarios, and returns what it found."""
    parts = sorted((_WEB / "client").glob("*.js"))
    paths = [f"/{path.relative_to(_ROOT).as_posix()}" for path in parts]
    async with chromium_here() as chromium:
        from tests.browser.page import page_server

        with page_server("127.0.0.1", _ROOT) as origin:
            page = await chromium.new_page()
            errors: list[str] = []
            page.on("pageerror", lambda error: errors.append(str(error)))
            await page.goto(f"{origin}/tests/browser/page/index.html")
            await page.evaluate(
                """async (paths) => {
                  const parts = await Promise.all(paths.map((path) => import(path)));
                  window.client = Object.assign({}, ...parts);
                  window.connections = await import("/tests/browser/page/connections.js");
                }""",
                paths,
            )

            async def run(name: str) -> dict[str, Any]:
                async with asyncio.timeout(30):
                    found: dict[str, Any] = await page.evaluate(
                        "(name) => connections.run(client, name)", name
                    )
                assert errors == []
                for side in (found.get("ann"), found.get("bob")):
                    if side is not None:
                        assert side["inside"] == []
                        assert side["refused"] == []
                        assert not side["early"], "a frame is told of before the connection is open"
                return found

            yield run


async def test_two_connect(run: Run) -> None:
    found = await run("connects")
    for side in (found["ann"], found["bob"]):
        assert side["ice"] == ["gathering", "checking", "connected"]
        assert (side["opened"], side["lost"], side["generations"]) == (1, [], [0])
        assert side["found"][-1] == [0, True]
    assert found["order"] == ["pairSelected", "connectionOpened"]
    assert found["chosen"]["local"]["type"] == "host"
    stats = found["stats"]
    assert stats["dtlsState"] == stats["iceConnectionState"] == "connected"
    assert stats["selectedPair"]["local"]["generation"] == 0
    assert len(stats["localCandidates"]) >= 1
    assert len(stats["remoteCandidates"]) >= 1
    assert stats["bytesSent"] > 0


async def test_ice_restarts_of_either_side_lose_nothing(run: Run) -> None:
    found = await run("restarts")
    assert found["whole"]
    for side in (found["ann"], found["bob"]):
        assert side["generations"] == [0, 1, 2]
        assert (side["opened"], side["lost"]) == (1, [])
        assert side["ice"] == ["gathering", "checking", "connected"]


async def test_an_offer_of_ours_gives_way_to_theirs(run: Run) -> None:
    found = await run("bothRestart")
    assert found["late"] is None  # the answer to an offer that was given up: ignored
    assert found["whole"]
    assert found["ann"]["generations"] == found["bob"]["generations"] == [0, 3, 4]


async def test_a_restart_that_is_not_answered_changes_nothing(run: Run) -> None:
    found = await run("unanswered")
    assert found["before"] == [[0], [0]]
    assert found["broken"]["code"] == "bad_sdp"
    assert found["ann"]["generations"] == found["bob"]["generations"] == [0, 7]
    assert found["ann"]["lost"] == found["bob"]["lost"] == []


async def test_candidates_that_overtake_the_answer_and_bad_ones(run: Run) -> None:
    found = await run("candidates")
    assert found["ann"]["opened"] == 1
    for ignored in ("again", "other", "plain", "empty", "over"):
        assert found[ignored] is None, ignored
    for refused, why in (("nonsense", "parse"), ("port", "port 70000"), ("section", "section 9")):
        assert found[refused]["code"] == "bad_candidate"
        assert why in found[refused]["text"]
        assert found[refused]["text"].startswith("1 of 2 ")


async def test_bad_descriptions_change_nothing(run: Run) -> None:
    answer = await run("badDescriptions")
    found = answer["found"]
    assert {name: each["code"] for name, each in found.items()} == {
        "sections": "bad_sdp",
        "setup": "bad_sdp",
        "port": "bad_sdp",
        "ufrag": "bad_sdp",
        "bundle": "bad_sdp",
        "size": "bad_sdp",
        "candidate": "bad_sdp",
        "fingerprint": "changed_fingerprint",
        "unchanged": "unchanged_credentials",
        "unbegun": None,
    }
    assert found["unbegun"]["name"] == "ConnectionFailed"
    assert answer["ann"]["lost"] == answer["bob"]["lost"] == []


async def test_plain_channels(run: Run) -> None:
    found = await run("plainChannels")
    assert found["got"] == ["text", [2, 3]]
    assert (found["label"], found["lossy"]) == ("loose", [True, False])
    assert found["told"] == ["closed", "second closed"]
    assert found["state"] == ["closed", "closed"]
    assert found["large"]["name"] == "MessageTooLarge"
    assert found["wrong"]["name"] == "UsageError"
    assert found["after"]["name"] == "ChannelClosed"
    assert found["heard"]


async def test_what_is_closed_is_closed(run: Run) -> None:
    found = await run("closes")
    assert (found["made"], found["open"]) == (3, 0)
    assert found["handlers"] == []
    assert found["told"] == []  # nothing after close
    assert found["heard"] == 1  # what was sent right before it
    assert len(found["bob"]["lost"]) == 1
    assert found["offered"]["name"] == "ConnectionFailed"
    assert [each["name"] for each in found["after"]] == ["ConnectionFailed"] * 2


async def test_where_webrtc_is_blocked_the_attempt_fails(run: Run) -> None:
    found = await run("blocked")
    absent, _, _, throws, buffered, stats = found["found"]
    assert absent["name"] == throws["name"] == "ConnectionFailed"
    assert "blocks" in absent["text"]
    assert "NotAllowedError" in throws["text"]
    assert (buffered, stats) == (0, {})
    assert found["ann"]["opened"] == 1  # as soon as it is there again


async def test_servers_that_a_browser_refuses_are_told(run: Run) -> None:
    found = await run("servers")
    assert found["ann"]["opened"] == 1
    failed = {each["url"]: each["detail"] for each in found["reports"]}
    assert "not a valid" in failed["http://nonsense"]
    assert "username" in failed["turn:127.0.0.1:9"]


async def test_the_browsers_own_checks_are_signs_of_life(run: Run) -> None:
    found = await run("checks")
    assert found["ann"]["lost"] == []
    assert found["asked"] < found["pinged"]  # they don't pile up where nobody answers


async def test_the_buffer_that_runs_low_is_told(run: Run) -> None:
    found = await run("fills")
    assert found["left"] <= found["low"]


async def test_a_buffer_that_stays_full_is_no_silence(run: Run) -> None:
    found = await run("stuck")
    assert found["asked"] == 0  # it would wait behind what is in there
    assert found["heard"] >= 2
    assert found["ann"]["lost"] == []


async def test_nothing_of_a_dead_path_is_taken_for_life(run: Run) -> None:
    found = await run("stuckAndDead")
    assert found["looks"] >= 3
    assert found["heard"] == 0


async def test_a_connection_keeps_nothing_of_what_it_asked_for(run: Run) -> None:
    found = await run("keeps")
    assert found["races"] == 1
    assert found["late"]["name"] == "ConnectionFailed"


async def test_a_generation_that_is_over_is_forgotten(run: Run) -> None:
    found = await run("forgets")
    assert found["ufrags"] == 3
    assert found["told"] == [2]


async def test_a_pair_that_only_statistics_tell_is_looked_for(run: Run) -> None:
    found = await run("quietPairs")
    assert found["ann"]["generations"] == [0]
    assert found["hidden"] >= 5
    # It changes later, without a restart.
    assert found["later"] == [0, "relay"]
    # And once more, while all pings are answered.
    assert found["last"] == "host"


async def test_during_a_restart_a_new_pair_of_before_is_not_the_restarts(run: Run) -> None:
    found = await run("quietRestart")
    assert found["meanwhile"] == [0, "relay"]
    assert found["ann"]["generations"] == [0, 1]
