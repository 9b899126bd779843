"""People in Chromium's tabs, bots and a relay in a room: what `meshpeer.js` must show.

`python -m tests.browser.rooms SCENARIO RUNS HOST` runs one of `SCENARIOS` on Python's host, as
`tests.browser.launch` has it done, and writes each run as a line of JSON. Bots are of this process,
the relay is a process of its own, and each person has a browser context. Times are seconds on the
clock of `time.time`, which the pages read as well.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import itertools
import json
import math
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path as PathOfFile
from typing import Any, Self
from urllib.parse import urlencode, urlsplit

from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from playwright.async_api import Browser, CDPSession
from playwright.async_api import Error as PlaywrightError
from playwright.async_api import Page as ChromiumPage

from meshpeer import (
    Event,
    MessagesUndelivered,
    Path,
    PeerClosed,
    PeerLeft,
    PeerManager,
    PeerState,
    PeerStateChanged,
    SignalingChanged,
)
from meshpeer.core.events import MeshState
from tests.browser.firefox import BidiError, Context, Firefox, Page, firefox
from tests.browser.hosts import PYTHON_ADDRESS, Host
from tests.browser.launch import Shown
from tests.browser.numbers import Numbers
from tests.browser.page import chromium, page_server
from tests.browser.plain import PlainContext, PlainPage
from tests.cli.processes import Command, Start, starter
from tests.coturn import run_coturn

__all__ = ["SCENARIOS"]

_BOT = "m-bot"
_LONGEST = 60.0
"""Seconds that a run may take, unless its scenario says otherwise."""
_INTERVAL = 0.01
"""Seconds between two messages of a stream."""
_ARRIVAL = 20.0
"""Seconds after the end of a stream in which what is under way must have arrived."""


class Bot:
    """A `PeerManager`, and everything that it told."""

    def __init__(self, mesh: PeerManager, group: asyncio.TaskGroup) -> None:
        self.mesh = mesh
        self._group = group
        self.told: list[tuple[float, Event]] = []
        self.said: list[tuple[str, Any, Path | None, float]] = []
        self.numbers: dict[str, Numbers] = {}
        self._bell = asyncio.Condition()
        self._tasks: list[asyncio.Task[None]] = []
        self._streams: dict[str, tuple[asyncio.Event, asyncio.Task[Any]]] = {}

    @classmethod
    @asynccontextmanager
    async def enter(cls, url: str, room: str, peer_id: str) -> AsyncIterator[Self]:
        """In the room until the end."""
        async with asyncio.TaskGroup() as group:
            self = cls(PeerManager(url, room=room, peer_id=peer_id), group)
            self._tasks += [
                group.create_task(self._watch(self.mesh.events())),
                group.create_task(self._read(self.mesh.messages("chat"))),
                group.create_task(self._count(self.mesh.messages("numbers"))),
                group.create_task(self._count(self.mesh.messages("bulk"))),
            ]
            try:
                async with self.mesh:
                    try:
                        yield self
                    finally:
                        for _, sending in self._streams.values():
                            sending.cancel()
            finally:
                for task in self._tasks:
                    task.cancel()

    async def _watch(self, events: AsyncIterator[Event]) -> None:
        async for event in events:
            self.told.append((time.time(), event))
            await self._ring()

    async def _read(self, messages: AsyncIterator[Any]) -> None:
        async for message in messages:
            self.said.append((message.sender.id, message.data, message.path, time.time()))
            await self._ring()

    async def _count(self, messages: AsyncIterator[Any]) -> None:
        async for message in messages:
            number = int(message.data.partition(" ")[0])
            self.numbers.setdefault(message.sender.id, Numbers()).take(number)
            await self._ring()

    async def _ring(self) -> None:
        async with self._bell:
            self._bell.notify_all()

    async def until(self, wanted: Callable[[Event], bool], after: int = 0) -> float:
        """When it told the first such event from place ``after`` on, past or to come."""

        def found() -> float | None:
            return next((at for at, event in self.told[after:] if wanted(event)), None)

        async with self._bell:
            await self._bell.wait_for(lambda: found() is not None)
        return found() or 0.0

    async def connected(self, ids: Iterable[str], path: Path | None = None) -> float:
        """When it is connected to all of these, by this path if any."""
        ids = list(ids)

        def is_connected(peer_id: str) -> bool:
            peer = self.mesh.peers.get(peer_id)
            return (
                peer is not None
                and peer.state is PeerState.CONNECTED
                and (path is None or peer.path is path)
            )

        async with self._bell:
            await self._bell.wait_for(lambda: all(map(is_connected, ids)))
        return time.time()

    async def say(self, peer_id: str, data: Any) -> None:
        await self.mesh.peers[peer_id].send(data, "chat")

    async def heard(self, sender: str, data: Any) -> tuple[str, Any, Path | None, float]:
        """What was said by that one, past or to come."""

        def found() -> list[tuple[str, Any, Path | None, float]]:
            return [each for each in self.said if each[:2] == (sender, data)]

        async with self._bell:
            await self._bell.wait_for(found)
        return found()[0]

    def stream(self, peer_id: str) -> None:
        """Begin to send numbered messages."""
        self._begin(peer_id, self._numbered(peer_id))

    def keep_on(self, peer_id: str) -> None:
        """Begin to send numbers on "kept" to whoever has this id, and again what did not arrive."""
        self._begin(peer_id, self._kept(peer_id))

    def _begin(self, peer_id: str, sending: Any) -> None:
        self._streams[peer_id] = asyncio.Event(), self._group.create_task(sending)

    async def _numbered(self, peer_id: str) -> int:
        peer = self.mesh.peers[peer_id]
        sent = 0
        loop = asyncio.get_running_loop()
        due = loop.time()
        await asyncio.sleep(0)
        stopping, _ = self._streams[peer_id]
        while not stopping.is_set():
            await peer.send(str(sent), "numbers")
            sent += 1
            due += _INTERVAL
            await asyncio.sleep(due - loop.time())  # the pace of the stream
        return sent

    async def _kept(self, peer_id: str) -> dict[str, Any]:
        again: list[str] = []
        undelivered: list[int] = []

        def hand_on(event: MessagesUndelivered) -> None:
            again.extend(str(message.data) for message in event.messages)
            undelivered.extend(int(message.data) for message in event.messages)

        stop = self.mesh.on_undelivered(hand_on)
        await asyncio.sleep(0)
        stopping, _ = self._streams[peer_id]
        sent = 0
        while not stopping.is_set() or again:
            if again:
                data = again.pop(0)
            else:
                data = str(sent)
                sent += 1
            async with self._bell:
                await self._bell.wait_for(lambda: peer_id in self.mesh.peers)
            try:
                await self.mesh.peers[peer_id].send(data, "kept")
            except PeerClosed:
                again.insert(0, data)
            await asyncio.sleep(_INTERVAL)  # the pace of the stream
        await self.mesh.peers[peer_id].flush()
        stop()
        return {"sent": sent, "undelivered": undelivered}

    async def stop(self, peer_id: str) -> Any:
        """End a stream: how many there were, or more of it."""
        stopping, sending = self._streams[peer_id]
        stopping.set()
        return await sending

    async def reached(self, sender: str, count: int) -> None:
        """Wait until so many numbered messages have arrived."""
        async with self._bell:
            await self._bell.wait_for(
                lambda: sender in self.numbers and len(self.numbers[sender].arrivals) >= count
            )

    def report(self, sender: str) -> dict[str, Any]:
        """The same as a tab's."""
        return self.numbers.get(sender, Numbers()).report()


class Tab:
    """A person's page (`page/mesh.js`)."""

    def __init__(self, page: ChromiumPage | Page | PlainPage) -> None:
        self.page = page
        self.wrong: list[str] = []
        page.on("pageerror", lambda error: self._says(str(error)))
        page.on("console", lambda said: self._says(said.text, said.type))

    def _says(self, text: str, kind: str = "error") -> None:
        # That a relay can't be reached is told by the browser itself.
        if kind == "error" and "ws://" not in text:
            self.wrong.append(text)

    async def run(self, script: str, *arguments: Any) -> Any:
        """Call a function of JavaScript with a list of arguments."""
        return await self.page.evaluate(script, list(arguments))

    async def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of its ``person``."""
        return await self.run(f"(given) => person.{method}(...given)", *arguments)

    async def entered(self) -> dict[str, Any]:
        """``peerId``, or ``error``, ``code`` and ``text``."""
        said: dict[str, Any] = await self.run("() => entered")
        return said

    async def until(self, what: str, detail: dict[str, Any], after: int = 0) -> float:
        """When it told the first such event from place ``after`` on, past or to come."""
        return float((await self.call("until", what, detail, after))["at"])

    async def told(self) -> list[dict[str, Any]]:
        """All of it so far."""
        told: list[dict[str, Any]] = await self.run("() => JSON.parse(JSON.stringify(person.told))")
        return told

    async def session(self) -> CDPSession | None:
        """For what only Chromium can."""
        if not isinstance(self.page, ChromiumPage):
            return None
        return await self.page.context.new_cdp_session(self.page)

    def check(self) -> None:
        assert not self.wrong, f"a page: {self.wrong}"


@dataclass
class Room:
    """One room of the relay, and who was put into it."""

    stage: Stage
    name: str
    stack: AsyncExitStack
    tabs: list[Tab] = field(default_factory=list)

    async def bot(self, peer_id: str = _BOT) -> Bot:
        return await self.stack.enter_async_context(Bot.enter(self.stage.url, self.name, peer_id))

    def address(self, peer_id: str | None, **options: Any) -> str:
        """Of a person's page."""
        options |= {"room": self.name}
        if peer_id is not None:
            options["peerId"] = peer_id
        http = self.stage.url.replace("ws", "http", 1)
        query = urlencode({"relay": http, "options": json.dumps(options)})
        return f"{self.stage.origin}/mesh.html?{query}"

    async def tab(
        self,
        peer_id: str | None,
        *,
        before: str = "",
        context: Context | PlainContext | None = None,
        **options: Any,
    ) -> Tab:
        """A person who is in the room, or was refused. ``before``: a script that runs first."""
        if context is None:
            own = await self.stage.browser.new_context()
            self.stack.push_async_callback(own.close)
            if before:
                await own.add_init_script(before)
            tab = Tab(await own.new_page())
        else:
            tab = Tab(await context.new_page())
        self.tabs.append(tab)
        await tab.page.goto(self.address(peer_id, **options))
        await tab.entered()
        return tab


@dataclass
class Stage:
    """A relay and pages on Python's host, a Chromium on the other, for many runs."""

    start: Start
    relay: Command
    url: str
    origin: str
    browser: Browser | Firefox
    host: Host
    """The browser's."""
    long: bool
    """Whether it takes as long, and is as much, as docs/browser.md says."""
    _rooms: itertools.count[int] = field(default_factory=itertools.count)

    @classmethod
    @asynccontextmanager
    async def set(cls, host: Host, *, long: bool, kind: str) -> AsyncIterator[Stage]:
        """Start them; ``host`` is the browser's, this process is on the other one."""
        flags = ["--enable-features=IntensiveWakeUpThrottling:grace_period_seconds/10"]
        # Chromium as people have it: what is in the background is slowed down.
        without = [
            "--disable-background-timer-throttling",
            "--disable-backgrounding-occluded-windows",
            "--disable-renderer-backgrounding",
        ]
        opening = firefox(host) if kind == "firefox" else chromium(host, *flags, without=without)
        with page_server(PYTHON_ADDRESS) as origin:
            async with starter() as start, opening as browser:
                relay, url = await _start_relay(start, origin, "0")
                yield cls(start, relay, url, origin, browser, host, long)

    async def restart_relay(self) -> None:
        """After it was killed, on the same port."""
        port = str(urlsplit(self.url).port)
        self.relay, self.url = await _start_relay(self.start, self.origin, port)

    @asynccontextmanager
    async def room(self, longest: float = _LONGEST) -> AsyncIterator[Room]:
        """A room of its own for one run, which must end in time."""
        async with AsyncExitStack() as stack:
            room = Room(self, f"room-{next(self._rooms)}", stack)
            try:
                async with asyncio.timeout(longest):
                    yield room
            except TimeoutError as exc:
                for tab in room.tabs:
                    try:
                        async with asyncio.timeout(5):
                            said = json.dumps((await tab.told())[-60:])
                    except (PlaywrightError, BidiError, TimeoutError) as error:
                        said = repr(error)
                    exc.add_note(f"a tab: {said}")
                    exc.add_note(f"its errors: {tab.wrong}")
                raise
            for tab in room.tabs:
                tab.check()


async def _start_relay(start: Start, origin: str, port: str) -> tuple[Command, str]:
    return await start.relay(
        *("--host", PYTHON_ADDRESS, "--port", port, "--open", "--origin", origin)
    )


def _counts(*reports: tuple[dict[str, Any], int]) -> Counter[str]:
    """What is wrong with streams: what arrived of each, and how many were sent."""
    wrong = Counter(lost=0, repeated=0, reordered=0)
    for report, sent in reports:
        wrong["lost"] += report["lost"] + sent - report["next"]
        wrong["repeated"] += report["repeated"]
        wrong["reordered"] += report["reordered"]
    return wrong


@asynccontextmanager
async def _streams(bot: Bot, tab: Tab, peer_id: str) -> AsyncIterator[Counter[str]]:
    """Numbered messages both ways, running when it begins; what was wrong is there at the end."""
    bot.stream(peer_id)
    await tab.call("stream", bot.mesh.peer_id, _INTERVAL)
    await asyncio.gather(tab.call("reached", bot.mesh.peer_id, 20), bot.reached(peer_id, 20))
    wrong: Counter[str] = Counter()
    yield wrong
    from_bot, from_tab = await bot.stop(peer_id), await tab.call("stop", bot.mesh.peer_id)
    with suppress(TimeoutError):  # what has not arrived by then is lost
        async with asyncio.timeout(_ARRIVAL):
            await asyncio.gather(
                tab.call("reached", bot.mesh.peer_id, from_bot), bot.reached(peer_id, from_tab)
            )
    there = await tab.call("report", bot.mesh.peer_id)
    wrong.update(_counts((there, from_bot), (bot.report(peer_id), from_tab)))


async def _more(bot: Bot, tab: Tab, peer_id: str, count: int = 20) -> None:
    """Wait until so many more have arrived both ways."""
    there = len((await tab.call("report", bot.mesh.peer_id))["arrivals"])
    here = len(bot.report(peer_id)["arrivals"])
    await asyncio.gather(
        tab.call("reached", bot.mesh.peer_id, there + count), bot.reached(peer_id, here + count)
    )


def _first_after(arrivals: Sequence[float], at: float) -> float:
    return next(each for each in arrivals if each > at)


# --- the scenarios -------------------------------------------------------------------------------


async def _together(stage: Stage) -> Shown:
    """Two tabs and a bot: from the call of the last one's `start` to three direct connections."""
    async with stage.room(_LONGEST) as room:
        bot, ann = await room.bot(), await room.tab("a-tab")
        zoe = await room.tab("z-tab")
        everybody: dict[str, Bot | Tab] = {_BOT: bot, "a-tab": ann, "z-tab": zoe}

        async def direct(peer_id: str, each: Bot | Tab) -> float:
            others = sorted(everybody.keys() - {peer_id})
            if isinstance(each, Bot):
                return await each.connected(others, Path.DIRECT)
            return float(await each.call("connected", others, "direct"))

        await asyncio.gather(*(direct(*item) for item in everybody.items()))
        began = await zoe.until("starting", {})
        ends = [
            await zoe.until("peer-state-changed", {"peerId": other, "state": "connected"})
            for other in (_BOT, "a-tab")
        ]
        ends.append(
            await ann.until("peer-state-changed", {"peerId": "z-tab", "state": "connected"})
        )
        ends.append(
            await bot.until(
                lambda event: (
                    isinstance(event, PeerStateChanged)
                    and (event.peer_id, event.state) == ("z-tab", PeerState.CONNECTED)
                )
            )
        )
        paths = []
        for sender, one in everybody.items():
            for receiver, other in everybody.items():
                if one is other:
                    continue
                text = f"from {sender} to {receiver}"
                await (
                    one.say(receiver, text)
                    if isinstance(one, Bot)
                    else one.call("say", receiver, text)
                )
                if isinstance(other, Bot):
                    paths.append(str((await other.heard(sender, text))[2]))
                else:
                    paths.append((await other.call("heard", sender, text))["path"])
        return Shown(
            {"connected": max(ends) - began},
            {"not direct": sum(path != "direct" for path in paths)},
        )


async def _reload(stage: Stage) -> Shown:
    """F5 again and again in one tab, while a bot and another tab send to it."""
    async with stage.room(_LONGEST) as room:
        bot, zoe, ann = await room.bot(), await room.tab("z-tab"), await room.tab(None)
        me = (await ann.entered())["peerId"]
        await asyncio.gather(
            *(bot.connected([me]), zoe.call("connected", [me])),
            ann.call("connected", [_BOT, "z-tab"]),
        )
        ghosts = 0
        bot.keep_on(me)
        await zoe.call("keepOn", me, _INTERVAL)
        took = {}
        for number in range(10):
            here, there = len(bot.told), await zoe.run("() => person.told.length")
            began = time.time()
            await ann.page.reload()
            ends = await asyncio.gather(
                bot.until(
                    lambda event: (
                        isinstance(event, PeerStateChanged)
                        and (event.peer_id, event.state) == (me, PeerState.CONNECTED)
                    ),
                    here,
                ),
                zoe.until("peer-state-changed", {"peerId": me, "state": "connected"}, there),
                ann.call("connected", [_BOT, "z-tab"]),
            )
            took[f"reload {number + 1}"] = max(ends) - began
            ghosts += (await ann.entered()).get("peerId") != me
            ghosts += set(bot.mesh.peers) != {me, "z-tab"}
            ghosts += await zoe.run("() => person.mesh.peers.size") != 2
            ghosts += await ann.run("() => person.mesh.peers.size") != 2
        streams = await asyncio.gather(bot.stop(me), zoe.call("stop", me))
        wrong = Counter(ghosts=ghosts, lost=0, repeated=0)
        wrong["left otherwise"] = sum(
            isinstance(event, PeerLeft) and event.reason != "superseded" for _, event in bot.told
        )
        for sender, stream in zip((_BOT, "z-tab"), streams, strict=True):
            times = dict(await ann.call("kept", sender))
            again = Counter(stream["undelivered"])
            wrong["lost"] += sum(number not in times for number in range(stream["sent"]))
            wrong["repeated"] += sum(count > 1 + again[number] for number, count in times.items())
        return Shown(took, dict(wrong))


async def _offline(stage: Stage) -> Shown:
    """A tab is out of reach of all for ten seconds; from the end of that to data both ways."""
    async with stage.room(_LONGEST) as room:
        bot, ann = await room.bot(), await room.tab("a-tab")
        await asyncio.gather(bot.connected(["a-tab"]), ann.call("connected", [_BOT]))
        async with _streams(bot, ann, "a-tab") as wrong:
            stage.host.go_offline()
            try:
                await asyncio.sleep(10)
            finally:
                stage.host.go_online()
            back = time.time()
            await _more(bot, ann, "a-tab")
        there = (await ann.call("report", _BOT))["arrivals"]
        here = bot.report("a-tab")["arrivals"]
        return Shown(
            {
                "to the tab": _first_after(there, back) - back,
                "to the bot": _first_after(here, back) - back,
            },
            dict(wrong),
        )


_BLOCKED = """
globalThis.allowed = globalThis.RTCPeerConnection;
globalThis.RTCPeerConnection = class {
  constructor() {
    throw new DOMException("blocked by a policy", "NotAllowedError");
  }
};
"""


async def _blocked(stage: Stage) -> Shown:
    """WebRTC is blocked in one tab, and then allowed."""
    async with stage.room(120) as room:
        bot, ann = await room.bot(), await room.tab("a-tab", before=_BLOCKED)
        await asyncio.gather(
            bot.connected(["a-tab"], Path.RELAY), ann.call("connected", [_BOT], "relay")
        )
        began = await ann.until("joined", {})
        talking = await ann.until("peer-state-changed", {"peerId": _BOT, "state": "connected"})
        await bot.say("a-tab", "over the relay?")
        heard = await ann.call("heard", _BOT, "over the relay?")
        await ann.call("say", _BOT, "yes")
        here = await bot.heard("a-tab", "yes")
        unmarked = (heard["path"] != "relay") + (here[2] is not Path.RELAY)
        async with _streams(bot, ann, "a-tab") as wrong:
            allowed = time.time()
            await ann.run("() => { globalThis.RTCPeerConnection = globalThis.allowed }")
            moved = await asyncio.gather(
                bot.connected(["a-tab"], Path.DIRECT), ann.call("connected", [_BOT], "direct")
            )
            await _more(bot, ann, "a-tab")
        paths = (await ann.call("report", _BOT))["paths"]
        return Shown(
            {"over the relay": talking - began, "direct": max(moved) - allowed},
            {**wrong, "not marked": unmarked, "not over the relay": "relay" not in paths},
        )


async def _turn(stage: Stage) -> Shown:
    """A tab that has no path but TURN, over UDP and TCP; then the TURN server is killed."""
    wrong: Counter[str] = Counter()
    took: dict[str, float] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        run_coturn(PathOfFile(folder), host=PYTHON_ADDRESS) as coturn,
    ):
        for transport in ("tcp", "udp"):
            server = coturn.server(transport)
            config = {
                "iceServers": [
                    {
                        "urls": server.urls,
                        "username": server.username,
                        "credential": server.credential,
                    }
                ],
                "iceTransportPolicy": "relay",
            }
            async with stage.room(120) as room:
                bot, ann = await room.bot(), await room.tab("a-tab", config=config)
                await asyncio.gather(
                    bot.connected(["a-tab"], Path.TURN), ann.call("connected", [_BOT], "turn")
                )
                async with _streams(bot, ann, "a-tab") as counts:
                    if transport == "udp":
                        killed = time.time()
                        coturn.kill()
                        moved = await asyncio.gather(
                            bot.connected(["a-tab"], Path.RELAY),
                            ann.call("connected", [_BOT], "relay"),
                        )
                        took["over the relay"] = max(moved) - killed
                        await _more(bot, ann, "a-tab")
                wrong += counts
    return Shown(took, dict(wrong))


async def _relay_restart(stage: Stage) -> Shown:
    """The relay is killed under ten tabs and five bots, and comes back three seconds later."""
    tabs_count, bots_count = (10, 5) if stage.long else (4, 2)
    async with stage.room(180) as room:
        bots = {f"bot-{n}": await room.bot(f"bot-{n}") for n in range(bots_count)}
        tabs = {f"tab-{n}": await room.tab(f"tab-{n}") for n in range(tabs_count)}
        ids = {*bots, *tabs}

        async def direct() -> None:
            await asyncio.gather(
                *(bot.connected(ids - {own}, Path.DIRECT) for own, bot in bots.items()),
                *(
                    tab.call("connected", sorted(ids - {own}), "direct")
                    for own, tab in tabs.items()
                ),
            )

        async def all_say(text: str) -> None:
            await asyncio.gather(
                *(bot.mesh.broadcast(text, "chat") for bot in bots.values()),
                *(
                    tab.run("([text]) => person.mesh.broadcast(text, 'chat')", text)
                    for tab in tabs.values()
                ),
            )
            await asyncio.gather(
                *(bot.heard(other, text) for own, bot in bots.items() for other in ids - {own}),
                *(
                    tab.call("heard", other, text)
                    for own, tab in tabs.items()
                    for other in ids - {own}
                ),
            )

        await direct()
        await all_say("before")
        here = {own: len(bot.told) for own, bot in bots.items()}
        there = {own: await tab.run("() => person.told.length") for own, tab in tabs.items()}
        await stage.relay.kill()
        await asyncio.gather(
            *(
                bot.until(
                    lambda event: (
                        isinstance(event, SignalingChanged)
                        and event.state is MeshState.RECONNECTING
                    ),
                    here[own],
                )
                for own, bot in bots.items()
            ),
            *(
                tab.until("signaling-changed", {"state": "reconnecting"}, there[own])
                for own, tab in tabs.items()
            ),
        )
        await all_say("meanwhile")
        await asyncio.sleep(3)
        await stage.restart_relay()
        back = time.time()
        ends = await asyncio.gather(
            *(
                bot.until(
                    lambda event: (
                        isinstance(event, SignalingChanged) and event.state is MeshState.JOINED
                    ),
                    here[own],
                )
                for own, bot in bots.items()
            ),
            *(
                tab.until("signaling-changed", {"state": "joined"}, there[own])
                for own, tab in tabs.items()
            ),
        )
        await all_say("after")
        await direct()
        left = disturbed = 0
        for own, bot in bots.items():
            events = [event for _, event in bot.told[here[own] :]]
            left += sum(isinstance(event, PeerLeft) for event in events)
            disturbed += sum(isinstance(event, PeerStateChanged) for event in events)
        for own, tab in tabs.items():
            kinds = Counter(each["what"] for each in (await tab.told())[there[own] :])
            left += kinds["peer-left"]
            disturbed += kinds["peer-state-changed"]
        return Shown({"all are back": max(ends) - back}, {"left": left, "disturbed": disturbed})


async def _background(stage: Stage) -> Shown:
    """A tab is behind another one of its window."""
    seconds = 300 if stage.long else 12
    async with stage.room(seconds + _LONGEST) as room:
        context: PlainContext | Context
        if isinstance(stage.browser, Firefox):
            context = await stage.browser.new_context()
        else:
            context = await PlainContext.open(stage.browser)
        room.stack.push_async_callback(context.close)
        bot, ann = await room.bot(), await room.tab("a-tab", context=context)
        await asyncio.gather(bot.connected(["a-tab"]), ann.call("connected", [_BOT]))
        front = await context.new_page()
        await front.bring_to_front()
        await ann.run(
            """async () => {
              document.addEventListener("visibilitychange", () => person.bell.ring());
              await person.bell.until(() => document.visibilityState === "hidden");
              globalThis.slowest = 0;
              let before = Date.now();
              setInterval(() => {
                slowest = Math.max(slowest, (Date.now() - before) / 1000);
                before = Date.now();
              }, 50);
            }"""
        )
        here, there = len(bot.told), await ann.run("() => person.told.length")
        heard = 0
        ends = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < ends:
            await asyncio.sleep(5)
            heard += 1
            await bot.say("a-tab", f"are you there? {heard}")
            await ann.call("heard", _BOT, f"are you there? {heard}")
            await ann.call("say", _BOT, f"yes {heard}")
            await bot.heard("a-tab", f"yes {heard}")
        hidden = await ann.run("() => document.visibilityState === 'hidden'")
        await ann.page.bring_to_front()
        await bot.say("a-tab", "welcome back")
        await ann.call("heard", _BOT, "welcome back")
        # A busy machine may not let the tab run for some seconds: then it is disconnected, and soon
        # connected again.
        changes = [
            f"{event.state}: {event.reason}"
            for _, event in bot.told[here:]
            if isinstance(event, PeerStateChanged | SignalingChanged)
        ]
        names = ("peer-state-changed", "signaling-changed")
        changes += [
            f"{each['detail']['state']}: {each['detail']['reason']}, in the tab"
            for each in (await ann.told())[there:]
            if each["what"] in names
        ]
        for each in changes:
            print(each, file=sys.stderr)
        dead = sum(each.startswith(("failed", "closed", "reconnecting")) for each in changes)
        slowest = await ann.run("() => slowest")
        return Shown(
            {"slowest timer": slowest, "changes of state": len(changes)},
            {
                "taken for dead": dead,
                "not in the background": not hidden,
                "not slowed down": slowest < 0.9,
            },
        )


async def _duplicate(stage: Stage) -> Shown:
    """A tab is duplicated: the browser copies its storage, and the copy gets an id of its own."""
    async with stage.room(_LONGEST) as room:
        bot, ann = await room.bot(), await room.tab(None)
        me = (await ann.entered())["peerId"]
        await asyncio.gather(bot.connected([me]), ann.call("connected", [_BOT]))
        here = len(bot.told)
        assert isinstance(ann.page, ChromiumPage)
        async with ann.page.expect_popup() as opening:
            await ann.run("() => void window.open(location.href)")
        copy = Tab(await opening.value)
        await (await opening.value).wait_for_load_state()
        room.tabs.append(copy)
        other = (await copy.entered()).get("peerId")
        assert other not in (None, me), f"the copy is {other}"
        await asyncio.gather(
            bot.connected([me, other]),
            ann.call("connected", [_BOT, other]),
            copy.call("connected", [_BOT, me]),
        )
        left = sum(isinstance(event, PeerLeft) for _, event in bot.told[here:])
        # Each keeps its own from here on.
        for tab, own in ((copy, other), (ann, me)):
            await tab.page.reload()
            left += (await tab.entered()).get("peerId") != own
        return Shown({}, {"left": left})


async def _same_id(stage: Stage) -> Shown:
    """Two tabs that know nothing of each other have one id: with the same token, and without."""
    async with stage.room(_LONGEST) as room:
        bot, ann = await room.bot(), await room.tab("a-tab")
        await asyncio.gather(bot.connected(["a-tab"]), ann.call("connected", [_BOT]))
        stranger = await room.tab("a-tab")
        said = await stranger.entered()
        wrong = Counter(
            {
                "not refused": said.get("error") != "PeerIdTaken",
                "disturbed": any(isinstance(event, PeerLeft) for _, event in bot.told),
            }
        )
        storage = await ann.run("() => JSON.stringify({ ...sessionStorage })")
        before = f"if (location.protocol === 'http:') Object.assign(sessionStorage, {storage});"
        copy = await room.tab("a-tab", before=before)
        said = await copy.entered()
        wrong["not taken over"] = said.get("peerId") != "a-tab"
        await ann.until("replaced", {})
        await ann.until("closed", {})
        await asyncio.gather(bot.connected(["a-tab"]), copy.call("connected", [_BOT]))
        await copy.call("say", _BOT, "it is me now")
        await bot.heard("a-tab", "it is me now")
        wrong["came back"] = len(bot.mesh.peers) != 1
        return Shown({}, dict(wrong))


class _Bare:
    """The same way without meshpeer: raw aiortc, and a bare data channel in the tab."""

    def __init__(self, tab: Tab) -> None:
        self._tab = tab
        self._pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self._channel = self._pc.createDataChannel("bare", negotiated=True, id=0)
        self._bell = asyncio.Event()
        self._count = 0

    @classmethod
    @asynccontextmanager
    async def open(cls, tab: Tab) -> AsyncIterator[Self]:
        self = cls(tab)
        opened = asyncio.Event()
        self._channel.on("open", opened.set)
        self._channel.on("message", self._take)
        self._channel.on("bufferedamountlow", self._bell.set)
        await self._pc.setLocalDescription(await self._pc.createOffer())
        answer = await tab.run(
            "async ([sdp]) => { globalThis.bare = new Bare(); return await bare.answer(sdp); }",
            self._pc.localDescription.sdp,
        )
        await self._pc.setRemoteDescription(RTCSessionDescription(answer, "answer"))
        await opened.wait()
        try:
            yield self
        finally:
            await tab.run("() => { bare.pc.close(); delete globalThis.bare; }")
            await self._pc.close()

    def _take(self, _: object) -> None:
        self._count += 1
        self._bell.set()

    async def to_bot(self, count: int, size: int, *, is_text: bool) -> float:
        """Seconds that so many messages take."""
        began, self._count = time.time(), 0
        await self._tab.run("(given) => bare.pour(...given)", count, size, is_text)
        while self._count < count:
            self._bell.clear()
            await self._bell.wait()
        return time.time() - began

    async def to_tab(self, count: int, size: int, *, is_text: bool) -> float:
        channel = self._channel
        channel.bufferedAmountLowThreshold = 512 * 1024
        began = time.time()
        await self._tab.run("() => { bare.count = 0 }")
        for number in range(count):
            while channel.bufferedAmount > 1024 * 1024:
                self._bell.clear()
                await self._bell.wait()
            channel.send(_numbered(number, size) if is_text else bytes(size))
        await self._tab.run("([count]) => bare.reached(count)", count)
        return time.time() - began


def _numbered(number: int, size: int) -> str:
    return f"{number} ".ljust(size, "x")


_CHUNK = 16 * 1024
"""Bytes in which a file goes over the bare channel: what meshpeer cuts messages into as well."""


async def _much(stage: Stage, *, to: str) -> Shown:
    """Many messages and a large file one way; the ratio of the bare channel's time to ours."""
    count, file = (50_000, 100_000_000) if stage.long else (3_000, 3_000_000)
    size = 64
    async with stage.room(900 if stage.long else _LONGEST) as room:
        bot, ann = await room.bot(), await room.tab("a-tab")
        await asyncio.gather(
            bot.connected(["a-tab"], Path.DIRECT), ann.call("connected", [_BOT], "direct")
        )
        async with _Bare.open(ann) as bare:
            way = bare.to_bot if to == "bot" else bare.to_tab
            bare_messages = await way(count, size, is_text=True)
            bare_file = await way(file // _CHUNK + 1, _CHUNK, is_text=False)
        peer = bot.mesh.peers["a-tab"]
        began = time.time()
        if to == "bot":
            await ann.call("pour", _BOT, count, size)
            await bot.reached("a-tab", count)
        else:
            for number in range(count):
                await peer.send(_numbered(number, size), "bulk")
            await ann.call("reached", _BOT, count, "bulk")
        messages = time.time() - began
        report = bot.report("a-tab") if to == "bot" else await ann.call("report", _BOT, "bulk")
        with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
            folder = PathOfFile(name)
            if to == "bot":
                receiving = asyncio.create_task(bot.mesh.receive_file(folder))
                began = time.time()
                sent = await ann.call("sendFile", _BOT, file)
                received = await receiving
                took = time.time() - began
                whole = received.path.read_bytes()
                is_same = received.sha256 == sent["sha256"]
            else:
                whole = os.urandom(file)
                path = folder / "file.bin"
                path.write_bytes(whole)
                taking = asyncio.create_task(ann.call("receiveFile"))
                began = time.time()
                await peer.send_file(path)
                said = await taking
                took = time.time() - began
                is_same = said["sha256"] == hashlib.sha256(whole).hexdigest()
                is_same = is_same and said["blob"] == file
        wrong = _counts((report, count))
        wrong["files not the same"] = not is_same or len(whole) != file
        return Shown(
            {
                "messages": bare_messages / messages,
                "messages a second": count / messages,
                "file": bare_file / took,
                "megabytes a second": file / took / 1e6,
            },
            dict(wrong),
        )


_COUNTED = """
globalThis.made = [];
globalThis.RTCPeerConnection = class extends RTCPeerConnection {
  constructor(...given) {
    super(...given);
    made.push(new WeakRef(this));
  }
};
globalThis.open = () =>
  made.map((ref) => ref.deref()).filter((each) => each && each.signalingState !== "closed");
"""


async def _in_memory(tab: Tab) -> float:
    """Connections that are no garbage; NaN where the browser can't say."""
    session = await tab.session()
    if session is None:
        return math.nan
    await session.send("HeapProfiler.enable")
    await session.send("HeapProfiler.collectGarbage")
    found = await session.send("Runtime.evaluate", {"expression": "RTCPeerConnection.prototype"})
    found = await session.send(
        "Runtime.queryObjects", {"prototypeObjectId": found["result"]["objectId"]}
    )
    count = await session.send(
        "Runtime.callFunctionOn",
        {
            "objectId": found["objects"]["objectId"],
            "functionDeclaration": "function () { return this.length }",
            "returnByValue": True,
        },
    )
    return float(count["result"]["value"])


async def _break(tab: Tab, ids: list[str]) -> None:
    """Its connections end, and it is not told; wait for new ones to all of these."""
    there = await tab.run("() => person.told.length")
    await tab.run("() => open().forEach((each) => each.close())")
    await asyncio.gather(
        *(
            tab.until("peer-state-changed", {"peerId": each, "state": "connected"}, there)
            for each in ids
        )
    )


async def _reconnects(stage: Stage) -> Shown:
    """Connections break, or the bot starts anew, again and again; at the end there is one each."""
    times = 100 if stage.long else 10
    async with stage.room(600 if stage.long else _LONGEST) as room:
        ann, zoe = await room.tab("a-tab", before=_COUNTED), await room.tab("z-tab")
        await asyncio.gather(
            ann.call("connected", ["z-tab"], "direct"), zoe.call("connected", ["a-tab"], "direct")
        )
        for number in range(times):
            # The smaller id dials: by turns the tab and the bot.
            async with Bot.enter(stage.url, room.name, "m-bot" if number % 2 else "0-bot") as bot:
                own = bot.mesh.peer_id
                await ann.call("connected", [own, "z-tab"], "direct")
                if number % (times // 5) == 0:
                    await _break(ann, [own, "z-tab"])
            await ann.run("([id]) => person.bell.until(() => !person.mesh.peers.has(id))", own)
        await room.bot()
        await ann.call("connected", [_BOT, "z-tab"], "direct")
        opened = await ann.run("() => open().length")
        figures = {"open": opened, "in memory": await _in_memory(ann)}
        made = await ann.run("() => made.length")
        return Shown(
            {**figures, "made": made},
            {"open beyond one a peer": opened - 2, "too few made": made < times},
        )


_MARKUP = "<img src=x onerror=pwned=1><script>pwned=2</script>"
_MADE = "#entries :is(img, script, i), #peers :is(img, script), h1 *, dialog[open] :is(img, script)"
"""What would be there if markup were not shown as text."""


async def _markup(stage: Stage) -> Shown:
    """A bot and a person have markup and script as names and say it, on the chat page."""
    async with stage.room(_LONGEST) as room:
        bot = PeerManager(stage.url, room=room.name, peer_id=_BOT, name=_MARKUP)
        said = bot.messages("chat")
        await room.stack.enter_async_context(bot)
        context = await stage.browser.new_context()
        room.stack.push_async_callback(context.close)
        page = await context.new_page()
        assert isinstance(page, ChromiumPage)
        tab = Tab(page)
        room.tabs.append(tab)
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        await page.goto(f"{stage.url.replace('ws', 'http', 1)}/chat/{room.name}")
        await page.locator("#gate-name").fill(_MARKUP)
        await page.locator("#gate-yes").click()
        [person] = await bot.wait_for_peers(1)
        await person.send({"text": f"1 {_MARKUP}<i>"}, "chat")
        await person.send(f"2 {_MARKUP}<i>")
        sending = asyncio.create_task(person.send_file(__file__, name="<img src=x>"))
        await page.locator("#text").fill(f"3 {_MARKUP}<i>")
        await page.locator("#text").press("Enter")
        message = await anext(said)
        for number in (1, 2, 3):
            text = page.locator("#entries").get_by_text(f"{number} {_MARKUP}<i>", exact=True)
            await text.wait_for()
        await page.locator("#entries").get_by_text("<img src=x>", exact=False).last.wait_for()
        await page.locator("#peers").get_by_text(_MARKUP).first.wait_for()
        sending.cancel()
        http = stage.url.replace("ws", "http", 1)
        return Shown(
            {},
            {
                "not as it was": (message.data, message.sender.name)
                != ({"text": f"3 {_MARKUP}<i>"}, _MARKUP),
                "made of it": await page.locator(_MADE).count(),
                "run": await tab.run("() => globalThis.pwned !== undefined"),
                "asked for": sum(
                    url.endswith("/x") or not url.startswith((http, "data:", "blob:"))
                    for url in asked
                ),
            },
        )


SCENARIOS: dict[str, Callable[[Stage], Awaitable[Shown]]] = {
    "two tabs and a bot": _together,
    "reload": _reload,
    "offline": _offline,
    "blocked": _blocked,
    "turn": _turn,
    "relay restart": _relay_restart,
    "background": _background,
    "duplicated": _duplicate,
    "same id": _same_id,
    "much to the bot": partial(_much, to="bot"),
    "much to the tab": partial(_much, to="tab"),
    "markup": _markup,
    "reconnects": _reconnects,
}


async def _main(scenario: str, runs: int, host: str, *, long: bool, kind: str) -> None:
    async with Stage.set(Host(host), long=long, kind=kind) as stage:
        for _ in range(runs):
            run = await SCENARIOS[scenario](stage)
            wrong = {what: int(count) for what, count in run.wrong.items()}
            print(json.dumps({"figures": run.figures, "wrong": wrong}), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.browser.rooms")
    parser.add_argument("scenario", choices=SCENARIOS)
    parser.add_argument("runs", type=int)
    parser.add_argument("host")
    parser.add_argument("--long", action="store_true", help="as much as docs/browser.md says")
    parser.add_argument("--browser", choices=["chromium", "firefox"], default="chromium")
    given = parser.parse_args()
    asyncio.run(_main(given.scenario, given.runs, given.host, long=given.long, kind=given.browser))
