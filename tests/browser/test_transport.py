"""The browser's signalling, in Chromium with a relay: seats, their way back, what a reload keeps.

The page is of a name that makes it no secure context, as a host of a local network is.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from meshpeer import Relay, RelayConfig
from tests.browser.needs import chromium_here

if TYPE_CHECKING:
    from playwright.async_api import Browser, BrowserContext, Page

pytestmark = pytest.mark.asyncio(loop_scope="module")

_ROOT = Path(__file__).parents[2]
_WEB = _ROOT / "meshpeer" / "relay" / "web"
_PARTS = [_WEB / "client" / f"{name}.js" for name in ("codec", "transport", "seat", "manager")]
_CLIENT = [path for path in _PARTS if path.exists()] or [_WEB / "meshpeer.js"]
_NAME = "lan.test"
_SETTING = """
async (paths) => {
  const parts = await Promise.all(paths.map((path) => import(path)));
  globalThis.client = Object.assign({}, ...parts);
  const { Station } = await import("/tests/browser/page/transport.js");
  globalThis.station = (...args) => new Station(client, ...args);
  globalThis.thrown = (call) => { try { call(); } catch (error) { return error; } };
}
"""


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium_here(f"--host-resolver-rules=MAP {_NAME} 127.0.0.1") as chromium:
        yield chromium


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def origin() -> AsyncIterator[str]:
    from tests.browser.page import page_server

    with page_server("127.0.0.1", _ROOT) as address:
        yield f"http://{_NAME}:{urlsplit(address).port}"


@pytest_asyncio.fixture(loop_scope="module")
async def relay(origin: str) -> AsyncIterator[Relay]:
    async with Relay(RelayConfig(port=0, origins=(origin,))) as relay:
        yield relay


class Tab:
    """A page with stations."""

    def __init__(self, page: Page, origin: str) -> None:
        self.page = page
        self._origin = origin

    @classmethod
    async def open(cls, context: BrowserContext, origin: str) -> Tab:
        page = await context.new_page()
        await page.goto(f"{origin}/tests/browser/page/mesh.html")
        return await cls(page, origin).prepare()

    async def prepare(self) -> Tab:
        self.page.set_default_timeout(10_000)
        await self.page.evaluate(_SETTING, [f"/{path.relative_to(_ROOT)}" for path in _CLIENT])
        return self

    async def run(self, script: str, *args: Any) -> Any:
        """Run a function of JavaScript, for ten seconds at most."""
        async with asyncio.timeout(10):
            return await self.page.evaluate(f"async (args) => ({script})(...args)", list(args))

    async def reload(self) -> None:
        await self.page.reload()
        await self.prepare()

    async def duplicate(self) -> Tab:
        """Another tab that begins with a copy of this one's storage."""
        async with self.page.expect_popup() as opened:
            await self.page.evaluate("window.open(location.href)")
        page = await opened.value
        await page.wait_for_load_state()
        return await Tab(page, self._origin).prepare()


@pytest_asyncio.fixture(loop_scope="module")
async def context(browser: Browser) -> AsyncIterator[BrowserContext]:
    errors: list[str] = []
    context = await browser.new_context()
    context.on("weberror", lambda error: errors.append(str(error.error)))
    yield context
    await context.close()
    assert errors == []


@pytest_asyncio.fixture(loop_scope="module")
async def tab(context: BrowserContext, origin: str) -> Tab:
    return await Tab.open(context, origin)


class Way:
    """What is between a page and the relay."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.writers: list[asyncio.StreamWriter] = []
        self._works = asyncio.Event()
        self._works.set()
        self.accepted = 0
        self.url = ""

    @classmethod
    @asynccontextmanager
    async def to(cls, relay: Relay) -> AsyncIterator[Way]:
        way = cls(urlsplit(relay.url).port or 0)
        async with asyncio.TaskGroup() as group:
            serve: Callable[..., Awaitable[None]] = way._serve

            def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                group.create_task(serve(reader, writer))  # type: ignore[arg-type]

            server = await asyncio.start_server(accept, "127.0.0.1", 0)
            way.url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            try:
                yield way
            finally:
                server.close()
                way.cut()

    def hold(self) -> None:
        """Let nothing through from now on."""
        self._works.clear()

    def release(self) -> None:
        """What was held back goes on."""
        self._works.set()

    def cut(self) -> None:
        """Drop every connection; new ones work."""
        self._works.set()
        for writer in self.writers:
            writer.transport.abort()
        self.writers.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
        self.writers += [writer, far_writer]
        await asyncio.gather(self._pass(reader, far_writer), self._pass(far_reader, writer))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                await self._works.wait()
                writer.write(data)
                await writer.drain()
        writer.close()


async def test_two_seats(tab: Tab, relay: Relay) -> None:
    assert not await tab.run("() => isSecureContext")
    told = await tab.run(
        """async (url, page) => {
          const ann = station(url), bob = station(page);
          const one = await ann.open({ peerId: "ann", name: "Ann" });
          const two = await bob.open({ peerId: "bob" });
          await ann.until("MemberJoined");
          for (let number = 0; number < 40; number++) ann.signal(two, number);
          bob.transport.update("Bob", { mood: "fine" });
          await bob.until("SignalIn", {}, 40);
          await ann.until("MemberUpdated", { name: "Bob" });
          ann.signal({ peerId: "cleo", incarnation: "cleo-one" }, 0);
          const [{ code }] = await ann.until("Refused");
          await bob.transport.close();
          await ann.until("MemberLeft", { peerId: "bob", reason: "left" });
          const failed = thrown(() => bob.transport.update("B", null)).name;
          await ann.transport.close();
          return { members: two.members, bodies: bob.bodies, token: one.token.length, code, failed,
            told: bob.told.map(({ kind }) => kind).filter((kind) => kind !== "SignalIn") };
        }""",
        relay.url,
        relay.url.replace("ws:", "http:") + "/chat/lobby?x=1#y",
    )
    assert [member["peerId"] for member in told["members"]] == ["ann"]
    assert told["bodies"] == list(range(40))
    assert told["token"] == 43
    assert (told["code"], told["failed"]) == ("no_such_peer", "MeshClosed")
    assert told["told"] == ["Welcome"]


async def test_a_dropped_socket_costs_nothing(tab: Tab, relay: Relay) -> None:
    async with Way.to(relay) as way:
        await tab.run(
            """async (url, way) => {
              const stations = globalThis.stations = [station(way), station(url)];
              const welcomes = globalThis.welcomes = [];
              welcomes.push(await stations[0].open({ peerId: "p0" }));
              welcomes.push(await stations[1].open({ peerId: "p1" }));
              await stations[0].until("MemberJoined");
            }""",
            relay.url,
            way.url,
        )
        way.cut()
        lost, resumed, bodies, room = await tab.run(
            """async () => {
              const [one, other] = stations;
              const [{ reason }] = await one.until("SignalingLost");
              const room = one.transport.forwardRoom("p1");
              for (let number = 0; number < 20; number++) {
                one.signal(welcomes[1], number);
                other.signal(welcomes[0], number);
              }
              const [, { resumed }] = await one.until("Welcome", {}, 2);
              await one.until("SignalIn", {}, 20);
              await other.until("SignalIn", {}, 20);
              const kinds = new Set(other.told.map(({ kind }) => kind));
              await Promise.all(stations.map(({ transport }) => transport.close()));
              return [reason, resumed, [one.bodies, other.bodies, [...kinds]], room];
            }"""
        )
    assert "broke" in lost
    assert resumed
    assert bodies == [list(range(20)), list(range(20)), ["Welcome", "SignalIn"]]
    assert room == 0


async def test_the_wait_for_each_try_is_known(tab: Tab, relay: Relay) -> None:
    assert await tab.run(
        """async (url) => {
          let tried;
          globalThis.WebSocket = class {
            static CLOSED = 3;
            readyState = 3;
            constructor() { tried(this); }
          };
          Math.random = () => 0.9;
          const one = station(url);
          const told = [one.transport.retryIn()];
          for (let number = 0; number < 3; number++) {
            const socket = new Promise((resolve) => { tried = resolve; });
            if (number === 0) one.open({ peerId: "ann" });
            const { onclose } = await socket.then((each) => new Promise((ready) => {
              setTimeout(() => ready(each));
            }));
            told.push(one.transport.retryIn());
            onclose({ code: 1006, reason: "" });
            const wait = one.transport.retryIn();
            told.push(wait > 0 && wait < 2);
          }
          await one.transport.close();
          return [...told, one.transport.retryIn()];
        }""",
        relay.url,
    ) == [None, *(None, True) * 3, None]


@pytest.mark.parametrize("network_changed", [False, True])
async def test_a_doubt_finds_out_that_the_relay_does_not_answer(
    tab: Tab, relay: Relay, network_changed: bool
) -> None:
    async with Way.to(relay) as way:
        await tab.run(
            """async (url) => {
              globalThis.one = station(url);
              await one.open({ peerId: "ann" });
            }""",
            way.url,
        )
        # It answers: nothing happens, however often it is doubted.
        await tab.run(
            """async (networkChanged) => {
              for (let time = 0; time < 50; time++) one.transport.doubt({ networkChanged });
              await new Promise((resolve) => setTimeout(resolve, 1200));
            }""",
            network_changed,
        )
        assert way.accepted == 1
        way.hold()
        reason = await tab.run(
            """async (networkChanged) => {
              one.transport.doubt({ networkChanged });
              const [{ reason }] = await one.until("SignalingLost");
              return reason;
            }""",
            network_changed,
        )
        assert reason.endswith("did not answer within 1 s")
        way.cut()
        assert await tab.run(
            """async () => {
              const [, { resumed }] = await one.until("Welcome", {}, 2);
              await one.transport.close();
              return resumed;
            }"""
        )


async def test_a_silent_relay_is_given_up_but_not_by_a_timer_that_is_late(
    tab: Tab, relay: Relay
) -> None:
    async with Way.to(relay) as way:
        clock = tab.page.clock
        await clock.install()
        await tab.run(
            """async (url) => {
              globalThis.one = station(url);
              await one.open({ peerId: "ann" });
            }""",
            way.url,
        )
        await clock.pause_at(datetime.now(UTC) + timedelta(hours=1))
        answered = """async () => {
          const { length } = one.told;
          one.signal({ peerId: "nobody", incarnation: "nobody-1" }, 0);
          await one.until("Refused", {}, length);
          return one.told.slice(1).every(({ kind }) => kind === "Refused");
        }"""
        # A tab that is asleep for an hour, and another one, finds its seat as it was.
        for _ in range(3):
            await clock.fast_forward(3600_000)
            assert await tab.run(answered)
        # And when the answer is there only after the time that it had.
        way.hold()
        await clock.fast_forward(3600_000)
        await clock.fast_forward(3600_000)
        way.release()
        assert await tab.run(answered)
        await clock.run_for(5_000)
        assert await tab.run(answered)
        way.hold()
        await clock.run_for(19_900)
        assert await tab.run("() => one.told.at(-1).kind") == "Refused"
        assert way.accepted == 1
        await clock.run_for(200)
        [lost] = await tab.run("() => one.until('SignalingLost')")
        assert lost["reason"].endswith("did not answer within 10 s")


async def test_data_goes_behind_signals_and_arrives_in_order(tab: Tab, relay: Relay) -> None:
    frames, late = await tab.run(
        """async (url) => {
          const ann = station(url), bob = station(url);
          await ann.open({ peerId: "ann" });
          const to = await bob.open({ peerId: "bob" });
          await ann.until("MemberJoined");
          const poured = ann.pour(to, 200, 30000);
          ann.signal(to, "first");
          await poured;
          await bob.until("FrameIn", {}, 200);
          const late = bob.told.findIndex(({ kind }) => kind === "SignalIn");
          await Promise.all([ann.transport.close(), bob.transport.close()]);
          return [bob.frames, late];
        }""",
        relay.url,
    )
    assert frames == list(range(200))
    assert late < 20


async def test_frames_are_sent_before_a_goodbye(tab: Tab, relay: Relay) -> None:
    frames = await tab.run(
        """async (url) => {
          const ann = station(url), bob = station(url);
          await ann.open({ peerId: "ann" });
          const { incarnation } = await bob.open({ peerId: "bob" });
          await ann.until("MemberJoined");
          for (let number = 0; number < 8; number++) {
            const frame = new Uint8Array(30000);
            frame[3] = number;
            ann.transport.forward("bob", incarnation, frame);
          }
          await ann.transport.close();
          await bob.until("MemberLeft");
          await bob.transport.close();
          return bob.frames;
        }""",
        relay.url,
    )
    assert frames == list(range(8))


async def test_who_can_not_come_in_is_told_why(tab: Tab, relay: Relay, origin: str) -> None:
    said = await tab.run(
        """async (url) => {
          const said = {};
          const ann = station(url);
          await ann.open({ peerId: "ann" });
          said.taken = await station(url).open({ peerId: "ann" });
          said.invalid = await station(url).open({ peerId: " ann" });
          const stopped = station("ws://127.0.0.1:9");
          const controller = new AbortController();
          const opening = stopped.open({ peerId: "ann" }, controller.signal);
          said.failure = await stopped.failure();
          controller.abort(new client.MeshTimeout("too long"));
          said.aborted = await opening;
          const joinToken = async () => { throw new RangeError("secret"); };
          const unlucky = station(url, { joinToken });
          const pending = unlucky.open({ peerId: "bob" });
          said.token = await unlucky.failure();
          await unlucky.transport.close();
          said.closed = await pending;
          const buggy = station(url, { onEvent: () => { throw new EvalError("a bug"); } });
          await buggy.open({ peerId: "cleo" });
          await station(url, { joinToken: async () => "not-asked-for" }).open({ peerId: "dora" });
          [said.bug] = await buggy.until("Ended");
          said.urls = ["", "lobby", "ftp://a", "ws://a/#b", "ws://u:pass@[a?token=1"]
            .map((url) => String(thrown(() => station(url))));
          const usual = await ann.open({ peerId: "ann" });
          said.twice = usual.name;
          return said;
        }""",
        relay.url,
    )
    assert said["taken"]["name"] == "PeerIdTaken"
    assert "choose another id" in said["taken"]["text"]
    assert said["invalid"]["name"] == "InvalidData"
    assert "the relay at ws://127.0.0.1:9 can't be reached" in said["failure"]
    assert origin in said["failure"]
    assert said["aborted"]["name"] == "MeshTimeout"
    assert said["token"] == "no join token: joinToken threw RangeError"
    assert said["closed"]["name"] == "MeshClosed"
    assert said["bug"]["name"] == "EvalError"
    assert all(each.startswith("ConfigError") for each in said["urls"])
    assert not any("pass" in each or "token" in each for each in said["urls"])
    assert said["twice"] == "UnexpectedInput"


async def test_secrets_are_not_shown_wherever_an_at_sign_is(tab: Tab) -> None:
    urls = {
        "wss://relay.example/x?key=ab@cds3cret": "wss://relay.example/x",
        "wss://u:s3cret@relay.example:1/x@y?key=s3cret": "wss://relay.example:1/x@y",
        "https://relay.example/chat/x#token=ab@s3cret": "https://relay.example/chat/x",
        "ws://user:s3cret/1@host": "ws://host",
        "ws://user:s3cret@[a?token=s3cret": "ws://[a",
        "user:s3cret@host": "host",
        "localhost:3001": "localhost:3001",
    }
    shown = await tab.run("(urls) => urls.map(client.urlWithoutSecrets)", list(urls))
    assert shown == list(urls.values())


async def test_a_reload_keeps_the_seat(tab: Tab, relay: Relay) -> None:
    watcher = await Tab.open(tab.page.context, tab._origin)
    await watcher.run(
        "async (url) => { globalThis.one = station(url); await one.open({ peerId: 'watcher' }); }",
        relay.url,
    )
    sit = """async (url) => {
      globalThis.one = station(url);
      const { peerId, token, incarnation } = await one.sit();
      return { peerId, token, incarnation, took: one.took };
    }"""
    first = await tab.run(sit, relay.url)
    for _ in range(3):
        await tab.reload()
        again = await tab.run(sit, relay.url)
        assert (again["peerId"], again["token"]) == (first["peerId"], first["token"])
        assert again["incarnation"] != first["incarnation"]
        assert again["took"] < 150, "nobody was asked whether he lives"
    told = await watcher.run("() => one.told.map(({ kind, member }) => [kind, member?.peerId])")
    assert told[1:] == [["MemberJoined", first["peerId"]]] * 4
    # Two in one page have a seat each.
    second = await tab.run(
        sit.replace("globalThis.one", "globalThis.two").replace("one.", "two."), relay.url
    )
    assert second["peerId"] != first["peerId"]
    await tab.reload()
    assert (await tab.run(sit, relay.url))["peerId"] == first["peerId"]
    # Who is done with it leaves it to a later one.
    await tab.run("async () => { one.seat.putDown(); await one.transport.close(); }")
    assert (await tab.run(sit, relay.url))["peerId"] == first["peerId"]
    # Who has given the seat up begins anew.
    await tab.run("async () => { one.seat.release(); await one.transport.close(); }")
    assert (await tab.run(sit, relay.url))["peerId"] != first["peerId"]


async def test_who_asks_for_an_id_keeps_the_one_that_he_was_given(tab: Tab, relay: Relay) -> None:
    """And several in one page have theirs, in whatever order they start."""
    watcher = await Tab.open(tab.page.context, tab._origin)
    enter = """async (url, ids) => {
      const config = { onConflict: "rename" };
      const made = (peerId) => new client.PeerManager(url, { room: "seats", peerId, config });
      const meshes = ids.map(made);
      const seats = {};
      for (const mesh of meshes) {
        const asked = mesh.peerId;
        await mesh.start();
        seats[asked] = [mesh.peerId, mesh.resumeToken];
      }
      globalThis.meshes = meshes;
      return seats;
    }"""
    assert (await watcher.run(enter, relay.url, ["ann"]))["ann"][0] == "ann"
    seats = await tab.run(enter, relay.url, ["ann", "bob", "cleo"])
    assert {asked: given for asked, (given, _) in seats.items()} == {
        "ann": "ann-2",
        "bob": "bob",
        "cleo": "cleo",
    }
    for order in (["bob", "cleo", "ann"], ["ann"], ["cleo", "ann", "bob"]):
        await tab.reload()
        again = await tab.run(enter, relay.url, order)
        assert again == {asked: seats[asked] for asked in order}
    there = await watcher.run("() => [...meshes[0].peers.keys()].sort()")
    assert there == ["ann-2", "bob", "cleo"]


async def test_a_duplicated_tab_has_an_id_of_its_own(tab: Tab, relay: Relay) -> None:
    sit = "async (url) => { globalThis.one = station(url); return (await one.sit()).peerId; }"
    first = await tab.run(sit, relay.url)
    double = await tab.duplicate()
    second = await double.run(sit, relay.url)
    assert second != first
    for each, peer_id in ((tab, first), (double, second)):
        await each.reload()
        assert await each.run(sit, relay.url) == peer_id
    # A tab that crashed had no time to take its mark off.
    left_marked = await tab.run("() => JSON.stringify(Object.entries(sessionStorage))")
    await tab.reload()
    await tab.run(
        "(items) => JSON.parse(items).forEach((item) => sessionStorage.setItem(...item))",
        left_marked,
    )
    assert await tab.run(sit, relay.url) == first
    assert await tab.run("() => one.took") >= 200


async def test_of_two_tabs_with_one_id_the_later_has_it(tab: Tab, relay: Relay) -> None:
    sit = """async (url) => {
      globalThis.one = station(url);
      return (await one.sit({}, "ann")).kind;
    }"""
    assert await tab.run(sit, relay.url) == "Welcome"
    double = await tab.duplicate()
    assert await double.run(sit, relay.url) == "Welcome"
    [ended] = await tab.run("() => one.until('Ended')")
    assert ended["name"] == "IdentityReplaced"
    stranger = await Tab.open(tab.page.context, tab._origin)
    refused = await stranger.run(
        "async (url) => await station(url).sit({}, 'ann')",
        relay.url,
    )
    assert refused["name"] == "PeerIdTaken"
    assert [each["kind"] for each in await double.run("() => one.told")] == ["Welcome"]


@pytest.mark.parametrize(
    "spoilt",
    [
        "Object.defineProperty(window, 'sessionStorage', { get() { throw new Error('no'); } })",
        "Storage.prototype.setItem = () => { throw new Error('full'); }",
        "Storage.prototype.getItem = () => '{\"peerId\": 5'",
        'Storage.prototype.getItem = () => \'{"peerId": "ann", "resumeToken": " "}\'',
        "delete window.BroadcastChannel",
    ],
)
async def test_without_storage_there_is_a_seat_all_the_same(
    tab: Tab, relay: Relay, spoilt: str
) -> None:
    kinds = await tab.run(
        f"""async (url) => {{
          {spoilt};
          const one = station(url);
          const welcome = await one.sit();
          one.seat.release();
          await one.transport.close();
          return welcome.kind;
        }}""",
        relay.url,
    )
    assert kinds == "Welcome"
