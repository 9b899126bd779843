"""What happens between a page in Chromium and Python, once each, and how long it took.

`SCENARIOS` are coroutines that are given a `Stage`. Times are seconds on the clock of `time.time`,
which the page reads as well.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from playwright.async_api import Browser

from meshpeer import (
    Event,
    MeshConfig,
    PeerManager,
    PeerState,
    PeerStateChanged,
    Relay,
    RelayConfig,
)
from meshpeer.core.events import ConnectionReport
from tests.browser.hosts import PYTHON_ADDRESS, Host
from tests.browser.launch import Run
from tests.browser.numbers import Arrived, Side, Streams
from tests.browser.page import PagePeer, chromium, page_server

__all__ = ["SCENARIOS", "Stage"]

OUTAGE = 10.0
"""Seconds that the page is offline."""
_LONGEST = 45.0
"""Seconds that a run may take."""
_PAGE = "m-page"


class Pair:
    """A page and a `PeerManager`, and everything that the latter told."""

    def __init__(self, page: PagePeer, mesh: PeerManager) -> None:
        self.page = page
        self.mesh = mesh
        self._told: list[tuple[float, Event]] = []
        self._bell = asyncio.Event()

    async def watch(self, events: AsyncIterator[Event]) -> None:
        """Keep what the manager tells, with the time."""
        async for event in events:
            self._told.append((time.time(), event))
            self._bell.set()

    async def until(self, wanted: Callable[[Event], bool]) -> float:
        """When the manager first told such an event, past or to come."""
        while True:
            for at, event in self._told:
                if wanted(event):
                    return at
            self._bell.clear()
            await self._bell.wait()

    async def opened(self) -> float:
        """When the message channel was open on both sides."""
        here = await self.until(
            lambda e: isinstance(e, PeerStateChanged) and e.state is PeerState.CONNECTED
        )
        there = await self.page.until("open")
        return max(here, float(there["at"]))

    @asynccontextmanager
    async def streams(self) -> AsyncIterator[Streams]:
        """Numbered messages both ways."""
        peer = await self.mesh.wait_for_peer(_PAGE)
        async with Streams.run(self.page, self.mesh, peer) as streams:
            yield streams

    async def restart(self, sides: set[Side]) -> Flow:
        """An ICE restart begun by these sides, done when both have its generation carry data."""
        [before] = self.mesh.debug.get_connections()
        began = time.time()
        if "python" in sides:
            self.mesh.debug.force_ice_restart(_PAGE)
        if "page" in sides:
            await self.page.restart_ice(self.mesh.peer_id)
        generation = before.generation + 1
        here = await self.until(
            lambda e: isinstance(e, ConnectionReport) and e.generation >= generation
        )
        there = await self.page.until("selected", generation=generation)
        return Flow(began, {"python": here, "page": there["at"]})

    def run(self, arrived: dict[Side, Arrived], took: dict[str, float]) -> Run:
        """What this run showed."""
        return Run(
            took,
            lost=sum(stream.lost for stream in arrived.values()),
            repeated=sum(stream.repeated for stream in arrived.values()),
            reordered=sum(stream.reordered for stream in arrived.values()),
            connections=sum(fact["what"] == "open" for fact in self.page.facts),
        )


class Flow(NamedTuple):
    """Something after which data has to flow on each side."""

    began: float
    over: dict[Side, float]
    """From when on what arrives counts."""

    def took(self, arrived: dict[Side, Arrived]) -> dict[str, float]:
        """From the beginning to the first message on each side."""
        return {
            f"to {side}": stream.first_after(self.over[side]) - self.began
            for side, stream in arrived.items()
        }


@dataclass
class Stage:
    """A relay and the page on Python's host, a Chromium on the other, for many runs."""

    relay: Relay
    origin: str
    browser: Browser
    chromium: Host
    _rooms: itertools.count[int] = field(default_factory=itertools.count)

    @classmethod
    @asynccontextmanager
    async def set(cls, host: Host) -> AsyncIterator[Stage]:
        """Start them; ``host`` is Chromium's, this process is on the other one."""
        with page_server(PYTHON_ADDRESS) as origin:
            # The page is another server's, and nobody is asked for a token.
            config = RelayConfig(host=PYTHON_ADDRESS, port=0, open=True, origins=(origin,))
            async with Relay(config) as relay, chromium(host) as browser:
                yield cls(relay, origin, browser, host)

    @asynccontextmanager
    async def page(self) -> AsyncIterator[PagePeer]:
        """A page, for a run that must end in time."""
        async with PagePeer.open(self.browser, self.origin) as page:
            try:
                async with asyncio.timeout(_LONGEST):
                    yield page
            except TimeoutError:
                raise AssertionError(
                    f"not done in {_LONGEST:g} s, the page: {page.facts}"
                ) from None

    @asynccontextmanager
    async def pair(self, dialler: Side, *, trickle: bool = True) -> AsyncIterator[Pair]:
        """A page and a `PeerManager` that begin to connect in a room of their own."""
        room = f"room-{next(self._rooms)}"
        # The smaller id dials.
        peer_id = "a-python" if dialler == "python" else "z-python"
        async with self.page() as page, asyncio.TaskGroup() as tasks:
            await page.join(self.relay.url, room, _PAGE, trickle=trickle)
            # The page receives no data through the relay, and the times are about the connection.
            config = MeshConfig(relay_after=None)
            mesh = PeerManager(self.relay.url, room=room, peer_id=peer_id, config=config)
            pair = Pair(page, mesh)
            tasks.create_task(pair.watch(mesh.events()))
            async with mesh:
                yield pair


async def _opening(stage: Stage, dialler: Side, *, trickle: bool) -> Run:
    """From the offer to the message channel open on both sides."""
    async with stage.pair(dialler, trickle=trickle) as pair:
        offer = await pair.page.until("offered" if dialler == "page" else "offer")
        opened = await pair.opened()
        async with pair.streams() as streams:
            return pair.run(await streams.end(), {"open": opened - offer["at"]})


async def _raw(stage: Stage, dialler: Side) -> Run:
    """The same with nothing but aiortc, and descriptions that go from hand to hand."""
    async with stage.page() as page:
        pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        try:
            channel = pc.createDataChannel("raw", negotiated=True, id=0)
            opened: asyncio.Future[float] = asyncio.get_running_loop().create_future()
            channel.on("open", lambda: opened.set_result(time.time()))
            await page.run("() => { window.raw = new Raw() }")
            if dialler == "page":
                offer = await page.run("() => raw.offer()")
                began = offer["at"]
                await pc.setRemoteDescription(RTCSessionDescription(offer["sdp"], "offer"))
                await pc.setLocalDescription(await pc.createAnswer())
                await page.run("([sdp]) => raw.accept(sdp)", pc.localDescription.sdp)
            else:
                await pc.setLocalDescription(await pc.createOffer())
                began = time.time()
                answer = await page.run("([sdp]) => raw.answer(sdp)", pc.localDescription.sdp)
                await pc.setRemoteDescription(RTCSessionDescription(answer["sdp"], "answer"))
            there = await page.until("raw open")
            return Run({"open": max(await opened, there["at"]) - began})
        finally:
            await pc.close()


async def _restart(stage: Stage, dialler: Side, rounds: Sequence[set[Side]]) -> Run:
    """One restart after another; from the last one's beginning to data over its generation."""
    async with stage.pair(dialler) as pair, pair.streams() as streams:
        flows = [await pair.restart(sides) for sides in rounds]
        await streams.more(20)
        arrived = await streams.end()
        return pair.run(arrived, flows[-1].took(arrived))


async def _offline(stage: Stage) -> Run:
    """From the end of the outage to data in both directions."""
    async with stage.pair("python") as pair, pair.streams() as streams:
        stage.chromium.go_offline()
        try:
            await asyncio.sleep(OUTAGE)
        finally:
            stage.chromium.go_online()
        back = time.time()
        await streams.more(20)
        arrived = await streams.end()
        return pair.run(arrived, Flow(back, {"python": back, "page": back}).took(arrived))


async def _lost(stage: Stage, dialler: Side) -> Run:
    """One connection after another is closed by the page while messages are on their way."""
    async with stage.pair(dialler) as pair, pair.streams() as streams:
        for _ in range(2):
            await pair.page.lose_connection(pair.mesh.peer_id)
            await streams.more(20)
        return pair.run(await streams.end(), {})


SCENARIOS: dict[str, Callable[[Stage], Awaitable[Run]]] = {
    "python dials": partial(_opening, dialler="python", trickle=True),
    "page dials": partial(_opening, dialler="page", trickle=True),
    "python dials, page does not trickle": partial(_opening, dialler="python", trickle=False),
    "page dials, page does not trickle": partial(_opening, dialler="page", trickle=False),
    "raw aiortc offers": partial(_raw, dialler="python"),
    "raw aiortc answers": partial(_raw, dialler="page"),
    "restart by page": partial(_restart, dialler="python", rounds=[{"page"}]),
    "restart by python": partial(_restart, dialler="page", rounds=[{"python"}]),
    "restart by both": partial(_restart, dialler="page", rounds=[{"python", "page"}]),
    "ten restarts": partial(_restart, dialler="page", rounds=[{"python"}, {"page"}] * 5),
    "page offline": _offline,
    "connections lost, python dials": partial(_lost, dialler="python"),
    "connections lost, page dials": partial(_lost, dialler="page"),
}
