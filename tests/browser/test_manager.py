"""The browser's `PeerManager`, in Chromium, with a relay and Python's: the same rules and words."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import fields
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from meshpeer import (
    Channel,
    ChannelClosed,
    ChannelOpened,
    ConfigError,
    Event,
    IdentityReplaced,
    MeshConfig,
    Message,
    MessagesUndelivered,
    Peer,
    PeerIdTaken,
    PeerLeft,
    PeerManager,
    PeerUpdated,
    Relay,
    RelayConfig,
    RequestFailed,
    TransferFailed,
    make_join_token,
)
from tests.browser.needs import chromium_here
from tests.browser.tables import NO_SETTINGS, camel

if TYPE_CHECKING:
    from playwright.async_api import Browser, BrowserContext, Page

pytestmark = pytest.mark.asyncio(loop_scope="module")

_LONGEST = 15.0
"""Seconds that a step may take before the test is taken for stuck."""
_BEFORE = """
globalThis.connections = new Set();
globalThis.RTCPeerConnection = class extends RTCPeerConnection {
  constructor(...args) { super(...args); connections.add(this); }
};
"""
_SETTING = """
async () => {
  globalThis.client = await import("/meshpeer.js");
  globalThis.thrown = async (call) => {
    try {
      return { value: await call() };
    } catch (error) {
      const { name, message, reason, code, messages } = error;
      return { name, message, reason, code, messages, isError: error instanceof client.MeshError };
    }
  };
  globalThis.isEqual = (a, b) => {
    if (a instanceof Uint8Array) {
      if (!(b instanceof Uint8Array)) return false;
      return a.length === b.length && a.every((each, i) => each === b[i]);
    }
    return JSON.stringify(a) === JSON.stringify(b);
  };
  /** Collects what comes of an iterator or of an event, for who waits for it. */
  globalThis.Collected = class {
    all = [];
    #waiting = [];
    put(item) {
      this.all.push(item);
      for (const wake of this.#waiting.splice(0)) wake();
    }
    async until(found) {
      while (!found(this.all)) await new Promise((wake) => this.#waiting.push(wake));
      return this.all;
    }
    async first(is) {
      await this.until((all) => all.some(is));
      return this.all.find(is);
    }
    static of(iterator, end = () => {}) {
      const self = new this();
      (async () => { for await (const item of iterator) self.put(item); })().catch(end);
      return self;
    }
    static heard(target, type) {
      const self = new this();
      target.addEventListener(type, (event) => self.put(event.detail));
      return self;
    }
  };
}
"""


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium_here("--js-flags=--expose-gc") as chromium:
        yield chromium


@pytest_asyncio.fixture(loop_scope="module")
async def relay() -> AsyncIterator[Relay]:
    async with Relay(RelayConfig(port=0, seat_timeout=2)) as relay:
        yield relay


@pytest_asyncio.fixture(loop_scope="module")
async def origin() -> AsyncIterator[str]:
    """Where the repository's files are."""
    from tests.browser.page import page_server

    with page_server("127.0.0.1", Path(__file__).parents[2]) as origin:
        yield origin


class Tab:
    """A page of the relay, where scripts find ``client`` (meshpeer.js) and ``url``."""

    def __init__(self, page: Page, relay: Relay, errors: list[str]) -> None:
        self.page = page
        self._relay = relay
        self.errors = errors
        """What the page reported as uncaught."""

    @classmethod
    async def open(cls, context: BrowserContext, relay: Relay) -> Tab:
        page = await context.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        self = cls(page, relay, errors)
        await self.load()
        return self

    async def close(self) -> None:
        await self.page.close()

    async def load(self) -> None:
        await self.page.goto(f"http{self._relay.url.removeprefix('ws')}/meshpeer.js")
        await self.page.evaluate(_SETTING)

    async def run(self, script: str, **values: Any) -> Any:
        """Run the body of an asynchronous function, which has these values by their names."""
        values = {"url": self._relay.url, **values}
        names = ", ".join(values)
        async with asyncio.timeout(_LONGEST):
            return await self.page.evaluate(f"async ({{{names}}}) => {{ {script} }}", values)

    async def enter(self, room: str, **options: Any) -> None:
        """Be ``mesh`` in the room, as "a-tab" if nothing else is said."""
        given = {"peerId": "a-tab", **options, "room": room}
        await self.run(
            "globalThis.mesh = new client.PeerManager(url, given);await mesh.start();", given=given
        )

    async def meet(self, peer_id: str = "m-py") -> None:
        """Have ``peer``, connected."""
        await self.run("globalThis.peer = await mesh.waitForPeer(peerId);", peerId=peer_id)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def context(browser: Browser) -> AsyncIterator[BrowserContext]:
    context = await browser.new_context()
    await context.add_init_script(_BEFORE)
    yield context
    await context.close()


@pytest_asyncio.fixture(loop_scope="module")
async def tab(context: BrowserContext, relay: Relay) -> AsyncIterator[Tab]:
    tab = await Tab.open(context, relay)
    yield tab
    await tab.close()
    assert tab.errors == []


_rooms = count()


@pytest.fixture
def room() -> str:
    return f"room {next(_rooms)}"


Enter = Callable[..., Any]


@pytest_asyncio.fixture(loop_scope="module")
async def python(relay: Relay, room: str) -> AsyncIterator[Enter]:
    """Enters the test's room as Python's."""
    async with AsyncExitStack() as stack:

        async def enter(peer_id: str = "m-py", **options: Any) -> PeerManager:
            options = {"peer_id": peer_id, "room": room, **options}
            return await stack.enter_async_context(PeerManager(relay.url, **options))

        yield enter


async def _first(mesh: PeerManager, events: AsyncIterator[Event], kind: type[Any]) -> Any:
    async with asyncio.timeout(_LONGEST):
        async for event in events:
            if isinstance(event, kind):
                return event
    raise AssertionError(f"{mesh} told no {kind.__name__}")


async def _next(messages: AsyncIterator[Message]) -> Message:
    async with asyncio.timeout(_LONGEST):
        return await anext(messages)


async def _peer(mesh: PeerManager) -> Peer:
    return await mesh.wait_for_peer("a-tab", timeout=_LONGEST)


# --- messages -------------------------------------------------------------------------------------


async def test_messages_of_all_kinds_and_sizes_go_both_ways(
    tab: Tab, room: str, python: Enter
) -> None:
    mesh = await python()
    messages = mesh.messages()
    await tab.enter(room)
    await tab.meet()
    sizes = [0, 1, 127, 128, 16_383, 16_384, 16_385, 65_536, 3_000_000]
    await tab.run(
        """
        globalThis.values = [
          "", "hello", "é漢🎈\\u0000", null, true, 0, -1.5, [], {}, {a: [1, {b: null}], "é": "🎈"},
          ...sizes.map((size) => Uint8Array.from({length: size}, (_, i) => i * 7 % 256)),
          ...sizes.map((size) => "x".repeat(size)),
        ];
        globalThis.came = Collected.of(mesh.messages("back"));
        globalThis.sending = (async () => {
          for (const value of values) await peer.send(value, "there");
        })();
        """,
        sizes=sizes,
    )
    expected: list[Any] = ["", "hello", "é漢🎈\0", None, True, 0, -1.5, [], {}]
    expected += [{"a": [1, {"b": None}], "é": "🎈"}]
    expected += [bytes(i * 7 % 256 for i in range(size)) for size in sizes]
    expected += ["x" * size for size in sizes]
    for value in expected:
        message = await _next(messages)
        assert (message.data, message.channel) == (value, "there")
        assert type(message.data) is type(value)
        await message.sender.send(message.data, "back")
    assert await tab.run(
        """
        await sending;
        const all = await came.until(({length}) => length === values.length);
        const wrong = all.filter(({data}, i) => !isEqual(data, values[i]));
        const {sender, channel, path, receivedAt, wantsReply} = all[0];
        return [
          wrong.length, sender === peer, channel, path, receivedAt instanceof Date,
          Math.abs(receivedAt - Date.now()) < 60_000, wantsReply,
        ];
        """
    ) == [0, True, "back", "direct", True, True, False]


async def test_an_array_buffer_and_a_view_are_bytes_and_are_copied(
    tab: Tab, room: str, python: Enter
) -> None:
    mesh = await python()
    messages = mesh.messages()
    await tab.enter(room)
    await tab.meet()
    await tab.run(
        """
        const bytes = Uint8Array.of(1, 2, 3, 4);
        const sent = [peer.send(bytes), peer.send(bytes.buffer), peer.send(bytes.subarray(1, 3))];
        bytes.fill(9);
        await Promise.all(sent);
        """
    )
    data = [(await _next(messages)).data for _ in range(3)]
    assert data == [b"\1\2\3\4", b"\1\2\3\4", b"\2\3"]


async def test_a_broadcast_reaches_all_who_take_it(tab: Tab, room: str, python: Enter) -> None:
    one = await python("m-one")
    other = await python("n-other", config=MeshConfig(max_message_size=2_000))
    await tab.enter(room)
    await tab.run("await mesh.waitForPeers(2);")
    for mesh in (one, other):
        await _peer(mesh)
    # Until it is known what each takes, a message for all is accepted for all.
    await tab.run(
        "for (const peer of mesh.peers.values()) { await peer.send('?'); await peer.flush(); }"
    )
    ids = "(await mesh.broadcast(data, channel)).map(({id}) => id).sort()"
    assert await tab.run(f"return {ids};", data="x" * 1_000, channel="news") == [
        one.peer_id,
        other.peer_id,
    ]
    assert await tab.run(f"return {ids};", data="x" * 3_000, channel="news") == [one.peer_id]
    for mesh, sizes in ((one, [1_000, 3_000]), (other, [1_000])):
        messages = mesh.messages("news")
        for size in sizes:
            assert len((await _next(messages)).data) == size
    assert (await tab.run("return thrown(() => mesh.broadcast('', 'meshpeer.x'));"))[
        "name"
    ] == "ConfigError"


async def test_a_request_is_answered_either_way(tab: Tab, room: str, python: Enter) -> None:
    mesh = await python()
    messages = mesh.messages()
    await tab.enter(room)
    await tab.meet()

    async def answer() -> None:
        async for message in messages:
            match message.data:
                case "wrong":
                    await message.reply_error("that is wrong")
                case "silence":
                    pass
                case data:
                    await message.reply({"got": data})

    task = asyncio.create_task(answer())
    assert await tab.run(
        """
        const read = Collected.of(mesh.messages()); // no answers
        const outcomes = [
          await peer.request({a: [1]}, {timeout: 10}),
          await Promise.all([1, 2, 3].map((n) => peer.request(n, {channel: `c${n}`}))),
          await thrown(() => peer.request("wrong")),
          await thrown(() => peer.request("silence", {timeout: 0.05})),
        ];
        const stop = new AbortController();
        const given = thrown(() => peer.request("silence", {signal: stop.signal}));
        stop.abort(new Error("enough"));
        const errors = [...outcomes.splice(2), await given];
        if (read.all.length) throw new Error("an answer is no message");
        return [...outcomes, ...errors.map(({name, message}) => [name, message])];
        """
    ) == [
        {"got": {"a": [1]}},
        [{"got": n} for n in (1, 2, 3)],
        ["RequestFailed", "that is wrong"],
        ["MeshTimeout", "'m-py' did not answer within 0.05 s"],
        ["Error", "enough"],
    ]
    task.cancel()
    await tab.run(
        """
        mesh.addEventListener("message", async ({detail: message}) => {
          if (!message.wantsReply) {
            globalThis.refused = (await thrown(() => message.reply("?"))).name;
          } else if (message.data === "wrong") {
            globalThis.noText = (await thrown(() => message.replyError(404))).name;
            await message.replyError("no");
          } else {
            await message.reply([message.data, message.channel]);
          }
        });
        """
    )
    peer = await _peer(mesh)
    assert await peer.request(b"x".decode(), channel="c", timeout=_LONGEST) == ["x", "c"]
    with pytest.raises(RequestFailed, match=r"^no$"):
        await peer.request("wrong", timeout=_LONGEST)
    await peer.send("no question")
    assert await peer.request(1, timeout=_LONGEST) == [1, "default"]
    assert await tab.run("return refused;") == "UsageError"
    assert await tab.run("return noText;") == "InvalidData"


async def _answer_syncs(mesh: PeerManager) -> None:
    async for message in mesh.messages("sync"):
        await message.reply(None)


async def test_what_nobody_reads_holds_the_sender_back_within_the_windows(
    tab: Tab, room: str, python: Enter
) -> None:
    mesh = await python(config=MeshConfig(send_window=64 * 1024))
    answering = asyncio.create_task(_answer_syncs(mesh))
    await tab.enter(room, config={"channelWindow": 64 * 1024})
    await tab.meet()
    peer = await _peer(mesh)
    accepted = 0
    full = asyncio.Event()

    async def send() -> None:
        nonlocal accepted
        for number in range(100):
            await peer.send({"number": number, "filling": "x" * 10_000})
            accepted += 1
            if accepted == 12:
                full.set()

    sending = asyncio.create_task(send())
    await asyncio.wait_for(full.wait(), _LONGEST)
    # What the window lets through has come when the page has had an answer twice.
    sync = "for (const n of [1, 2]) await peer.request(n, {channel: 'sync'});"
    received = await tab.run(f"{sync} return mesh.stats().peers['m-py'].bytesReceived;")
    assert received <= 64 * 1024
    assert accepted <= 14
    numbers = await tab.run(
        """
        const numbers = [];
        for await (const {data} of mesh.messages("default")) {
          numbers.push(data.number);
          if (numbers.length === 100) return numbers;
        }
        """
    )
    assert numbers == list(range(100))
    await sending
    answering.cancel()


async def test_a_send_waits_for_room_and_one_that_is_aborted_was_not_accepted(
    tab: Tab, room: str, python: Enter
) -> None:
    mesh = await python(config=MeshConfig(channel_window=64 * 1024))
    answering = asyncio.create_task(_answer_syncs(mesh))
    await tab.enter(room, config={"sendWindow": 64 * 1024})
    await tab.meet()
    assert await tab.run(
        """
        globalThis.accepted = [];
        globalThis.sends = [];
        globalThis.stop = new AbortController();
        for (let n = 0; n < 40; n++) {
          const signal = n % 2 && n > 20 ? stop.signal : null;
          const sent = peer.send(`${n} ${"x".repeat(10_000)}`, "c", {signal});
          sends.push(thrown(() => sent.then(() => accepted.push(n))));
        }
        for (const n of [1, 2]) await peer.request(n, {channel: "sync"});
        const before = accepted.length;
        stop.abort();
        const stopped = await Promise.all(sends.filter((_, n) => n % 2 && n > 20));
        const names = stopped.map(({name}) => name);
        const late = await thrown(() => peer.send("late", "c", {signal: stop.signal}));
        const inTurn = accepted.every((n, i) => n === i);
        // Another channel has its own window; who waits there is the first in the line.
        for (let n = 0; n < 13; n++) await peer.send("x".repeat(10_000), "d");
        const first = new AbortController();
        const head = thrown(() => peer.send("y".repeat(10_000), "d", {signal: first.signal}));
        await peer.request(3, {channel: "sync"});
        first.abort(new Error("the first"));
        names.push((await head).message);
        return [before >= 7 && before <= 14, inTurn, [...new Set(names)], late.name];
        """
    ) == [True, True, ["AbortError", "the first"], "AbortError"]
    messages = mesh.messages("c")
    numbers = [int((await _next(messages)).data.split()[0]) for _ in range(30)]
    assert numbers == [n for n in range(40) if not (n % 2 and n > 20)]
    await tab.run("await Promise.all(sends);")
    answering.cancel()


async def test_a_loop_that_only_sends_lets_others_have_their_turn(
    tab: Tab, room: str, python: Enter
) -> None:
    await python()
    await tab.enter(room)
    await tab.meet()
    assert await tab.run(
        """
        const { port1, port2 } = new MessageChannel();
        let turns = 0;
        port1.onmessage = () => { turns++; port2.postMessage(null); };
        port2.postMessage(null);
        for (let n = 0; n < 200; n++) await peer.send("x".repeat(2_000));
        port1.close();
        return turns >= 3;
        """
    )


async def test_flush_waits_for_what_was_accepted(tab: Tab, room: str, python: Enter) -> None:
    mesh = await python(config=MeshConfig(channel_window=64 * 1024))
    await tab.enter(room)
    await tab.meet()
    assert await tab.run(
        """
        await peer.send("x".repeat(1000));
        await peer.flush(10);
        for (let n = 0; n < 20; n++) await peer.send("x".repeat(10_000), "c");
        const late = await thrown(() => peer.flush(0.05));
        const stop = new AbortController();
        const given = thrown(() => peer.flush(null, {signal: stop.signal}));
        stop.abort();
        globalThis.flushed = peer.flush();
        return [late.name, late.message, (await given).name];
        """
    ) == [
        "MeshTimeout",
        "'m-py' did not confirm within 0.05 s that everything has arrived",
        "AbortError",
    ]
    messages = mesh.messages("c")
    for _ in range(20):
        await _next(messages)
    await tab.run("await flushed;")


async def test_every_reader_gets_every_message_its_own_copy(
    tab: Tab, room: str, python: Enter
) -> None:
    mesh = await python()
    await tab.enter(room)
    await tab.meet()
    peer = await _peer(mesh)
    for number in range(3):
        await peer.send({"n": number})
    await peer.flush(_LONGEST)
    assert await tab.run(
        """
        globalThis.took = async (messages, count) => {
          const all = [];
          while (all.length < count) all.push((await messages.next()).value.data);
          return all;
        };
        // What came before anybody asked is for the first who does.
        globalThis.first = mesh.messages();
        globalThis.readers = [first, mesh.messages(), mesh.messages("c")];
        return took(first, 3);
        """
    ) == [{"n": 0}, {"n": 1}, {"n": 2}]
    await peer.send({"n": 3})
    await peer.send(b"bytes", "c")
    assert await tab.run(
        """
        const [a, b] = await Promise.all([took(readers[0], 2), took(readers[1], 2)]);
        const [c] = await took(readers[2], 1);
        const bytes = new TextEncoder().encode("bytes");
        const isShared = a[0] === b[0] || new Set([a[1].buffer, b[1].buffer, c.buffer]).size < 3;
        return [a[0], b[0], [a[1], b[1], c].every((each) => isEqual(each, bytes)), isShared];
        """
    ) == [{"n": 3}, {"n": 3}, True, False]


@pytest.mark.parametrize(
    "leave",
    [
        "for await (const _ of idle.reader) break;",
        "await idle.reader.return();",
        "idle.reader = null; await gc({type: 'major', execution: 'async'});",
    ],
    ids=["break", "return", "forgotten"],
)
async def test_a_reader_that_stops_holds_nobody_back(
    tab: Tab, room: str, python: Enter, leave: str
) -> None:
    mesh = await python(config=MeshConfig(send_window=16 * 1024))
    await tab.enter(room, config={"channelWindow": 64 * 1024})
    await tab.meet()
    await tab.run(
        """
        globalThis.idle = {reader: mesh.messages()};
        globalThis.came = Collected.of(mesh.messages());
        """
    )
    peer = await _peer(mesh)
    sending = asyncio.gather(*(peer.send("x" * 10_000) for _ in range(30)))
    await tab.run("await came.until(({length}) => length >= 6);")
    assert not sending.done()
    await tab.run(leave)
    await tab.run("await came.until(({length}) => length === 30);")
    await sending


async def test_a_listener_takes_messages_while_it_is_there(
    tab: Tab, room: str, python: Enter
) -> None:
    mesh = await python()
    await tab.enter(room)
    await tab.meet()
    peer = await _peer(mesh)
    for number in range(6):
        await peer.send(number)
    await peer.flush(_LONGEST)
    assert await tab.run(
        """
        const got = {once: [], object: [], both: [], signal: []};
        const all = new Collected();
        const take = (where) => ({detail: {data}}) => { got[where].push(data); all.put(data); };
        mesh.addEventListener("message", take("once"), {once: true});
        await all.until(({length}) => length === 1);
        const object = {
          handleEvent(event) {
            take("object")(event);
            if (got.object.length === 2) mesh.removeEventListener("message", object);
          },
        };
        mesh.addEventListener("message", object);
        mesh.addEventListener("message", object); // a second time is none
        await all.until(({length}) => length === 3);
        const stop = new AbortController();
        const both = take("both");
        mesh.addEventListener("message", take("signal"), {signal: stop.signal});
        mesh.addEventListener("message", both, null);
        mesh.addEventListener("peer-left", both, null);
        mesh.removeEventListener("peer-left", both, null);
        await all.until(({length}) => length === 9);
        stop.abort();
        Object.assign(globalThis, {got, all, both});
        return got;
        """
    ) == {"once": [0], "object": [1, 2], "both": [3, 4, 5], "signal": [3, 4, 5]}
    await peer.send(6)
    assert await tab.run(
        """
        await all.until(({length}) => length === 10);
        mesh.removeEventListener("message", both, null);
        globalThis.kept = mesh.messages();
        return got.both;
        """
    ) == [3, 4, 5, 6]
    await peer.send(7)
    assert await tab.run(
        """
        const {value} = await kept.next();
        await peer.flush();
        return [value.data, all.all.length];
        """
    ) == [7, 10]


async def test_what_a_listener_throws_is_reported_and_disturbs_nobody(
    context: BrowserContext, relay: Relay, room: str, python: Enter
) -> None:
    tab = await Tab.open(context, relay)
    mesh = await python()
    messages = mesh.messages()
    await tab.run(
        """
        globalThis.mesh = new client.PeerManager(url, {room, peerId: "a-tab"});
        for (const type of ["joined", "peer-joined", "peer-state-changed", "message", "closed"]) {
          mesh.addEventListener(type, () => { throw new Error(`thrown at ${type}`); });
        }
        globalThis.came = Collected.heard(mesh, "message");
        globalThis.ended = Collected.heard(mesh, "closed");
        await mesh.start();
        """,
        room=room,
    )
    await tab.meet()
    peer = await _peer(mesh)
    await peer.send("one")
    await peer.send("two")
    await tab.run("await came.until(({length}) => length === 2); await peer.send('still here');")
    assert (await _next(messages)).data == "still here"
    await tab.run("await mesh.close(); await ended.until(({length}) => length);")
    await tab.close()
    said = [error.removeprefix("thrown at ") for error in tab.errors]
    assert set(said) == {"joined", "peer-joined", "peer-state-changed", "message", "closed"}
    assert said.count("message") == 2


# --- plain channels -------------------------------------------------------------------------------


async def test_plain_channels_carry_text_and_bytes_both_ways(
    tab: Tab, room: str, python: Enter
) -> None:
    mesh = await python()
    events = mesh.events()
    await tab.enter(room)
    await tab.run("globalThis.opened = Collected.heard(mesh, 'channel-opened');")
    await tab.meet()
    await tab.run(
        """
        globalThis.channel = await peer.openChannel("from the page");
        for (const data of ["é", Uint8Array.of(1, 2), new ArrayBuffer(3), "x".repeat(65536)]) {
          await channel.send(data);
        }
        """
    )
    theirs = (await _first(mesh, events, ChannelOpened)).channel
    assert (theirs.label, theirs.peer.id) == ("from the page", "a-tab")
    got = [await asyncio.wait_for(anext(aiter(theirs)), _LONGEST) for _ in range(4)]
    assert got == ["é", b"\1\2", bytes(3), "x" * 65536]
    await theirs.send("to you")
    await theirs.send(b"\7")
    await theirs.close()
    assert await tab.run(
        """
        const got = [];
        for await (const data of channel) got.push(data);
        const late = await thrown(() => channel.send("late"));
        return [got[0], isEqual(got[1], Uint8Array.of(7)), channel.state, channel.label, late.name];
        """
    ) == ["to you", True, "closed", "from the page", "ChannelClosed"]
    ours = await (await _peer(mesh)).open_channel("from Python", max_retransmits=0)
    await ours.send("hello")
    assert await tab.run(
        """
        const isFromPython = ({channel}) => channel.label === "from Python";
        const {peerId, channel} = await opened.first(isFromPython);
        for await (const data of channel) {
          channel.close();
          return [peerId, data, channel.peer === peer, channel.state];
        }
        """
    ) == ["m-py", "hello", True, "closed"]
    with pytest.raises(ChannelClosed):
        await _send_on(ours)


async def test_plain_messages_keep_their_order_and_loops_share_a_channel(
    tab: Tab, room: str, python: Enter
) -> None:
    mesh = await python()
    events = mesh.events()
    await tab.enter(room, config={"sendBuffer": 65_536})
    await tab.meet()
    await tab.run(
        """
        globalThis.channel = await peer.openChannel("many");
        const sending = [];
        for (let number = 0; number < 400; number++) {
          sending.push(channel.send(`${number} ${"x".repeat(2_000)}`));
          if (number % 20 === 0) await new Promise((resolve) => setTimeout(resolve));
        }
        await Promise.all(sending);
        """
    )
    theirs = (await _first(mesh, events, ChannelOpened)).channel
    async with asyncio.timeout(_LONGEST):
        got = [(await anext(aiter(theirs))) for _ in range(400)]
    assert [int(str(each).split()[0]) for each in got] == list(range(400))
    for data in ("head", "one", "two", "three"):
        await theirs.send(data)
    await theirs.close()
    assert await tab.run(
        """
        const got = [];
        for await (const data of channel) { got.push(data); break; }
        for await (const data of channel) { got.push(data); if (data === "two") break; }
        for await (const data of channel) got.push(data);
        return got;
        """
    ) == ["head", "one", "two", "three"]


async def _send_on(channel: Channel) -> None:
    async with asyncio.timeout(_LONGEST):
        while True:
            await channel.send("x" * 2_000)
            await asyncio.sleep(0.001)  # at the pace at which the page takes it


async def test_a_plain_channel_that_is_not_read_is_bounded(
    tab: Tab, room: str, python: Enter
) -> None:
    mesh = await python()
    await tab.enter(room, config={"receiveWindow": 65_536, "maxMessageSize": 1_024})
    await tab.run("globalThis.opened = Collected.heard(mesh, 'channel-opened');")
    await tab.meet()
    peer = await _peer(mesh)
    lossy = await peer.open_channel("lossy", max_retransmits=65_535)
    for number in range(100):
        await lossy.send(f"{number} {'x' * 2_000}")
    await lossy.send("last")
    numbers = await tab.run(
        """
        const {channel} = await opened.first(({channel}) => channel.label === "lossy");
        globalThis.numbers = [];
        // Read when all has come, or it would not be too much.
        await peer.request("all?", {channel: "sync", timeout: 1}).catch(() => {});
        for await (const data of channel) {
          if (data === "last") return numbers;
          numbers.push(Number(data.split(" ")[0]));
        }
        """
    )
    assert numbers == sorted(numbers)
    assert numbers[-1] == 99
    assert len(numbers) <= 65_536 // 2_128
    reliable = await peer.open_channel("reliable")
    with pytest.raises(ChannelClosed):
        await _send_on(reliable)
    state = await tab.run(
        """
        const {channel} = await opened.first(({channel}) => channel.label === "reliable");
        let count = 0;
        for await (const data of channel) count++;
        return [channel.state, count <= 31 && count >= 28];
        """
    )
    assert state == ["closed", True]


async def test_options_of_channels_that_can_not_be_are_refused(
    tab: Tab, room: str, python: Enter
) -> None:
    await python()
    await tab.enter(room)
    await tab.meet()
    assert await tab.run(
        """
        const stop = AbortSignal.abort();
        const channel = await peer.openChannel("é", {ordered: false, maxPacketLifeTime: 100});
        const all = await Promise.all([
          thrown(() => peer.openChannel("")),
          thrown(() => peer.openChannel("meshpeer.x")),
          thrown(() => peer.openChannel("x".repeat(256))),
          thrown(() => peer.openChannel(7)),
          thrown(() => peer.openChannel("x", {maxRetransmits: 1, maxPacketLifeTime: 1})),
          thrown(() => peer.openChannel("x", {maxRetransmits: -1})),
          thrown(() => peer.openChannel("x", {maxPacketLifeTime: 65536})),
          thrown(() => peer.openChannel("x", {signal: stop})),
          thrown(() => channel.send({})),
          thrown(() => channel.send("x".repeat(65537))),
          thrown(() => channel.send("x", {signal: stop})),
        ]);
        return all.map(({name}) => name);
        """
    ) == [*["ConfigError"] * 7, "AbortError", "InvalidData", "MessageTooLarge", "AbortError"]


# --- errors ---------------------------------------------------------------------------------------


async def test_what_can_not_be_sent_is_refused(tab: Tab, room: str, python: Enter) -> None:
    await python("m-py", config=MeshConfig(max_message_size=2_000, max_channels=2))
    await tab.enter(room, config={"maxMessageSize": 3_000})
    await tab.meet()
    assert await tab.run(
        """
        await peer.send("first");
        await peer.flush(10);
        const circle = {};
        circle.circle = circle;
        const all = [];
        for (const [data, channel] of [
          [undefined], [() => {}], [new Map()], [circle], ["\\ud800"], [10n],
          ["x".repeat(2_001)], ["x".repeat(3_001)],
          ["", ""], ["", "meshpeer.file"], ["", "é".repeat(128)], ["", "\\ud800"], ["", 7],
        ]) {
          all.push(await thrown(() => peer.send(data, channel)));
          all.push(await thrown(() => peer.request(data, {channel})));
        }
        await peer.send("", "second");
        all.push(await thrown(() => peer.send("", "third")));
        return all.map(({name}) => name);
        """
    ) == [
        *["InvalidData"] * 12,
        *["MessageTooLarge"] * 4,
        *["ConfigError"] * 10,
        "TooManyChannels",
    ]


async def test_requests_that_turn_out_not_to_be_taken_are_refused(
    tab: Tab, room: str, python: Enter
) -> None:
    await tab.enter(room)
    await tab.run("globalThis.met = Collected.heard(mesh, 'peer-joined');")
    mesh = await python(config=MeshConfig(max_message_size=2_000))
    events = mesh.events()
    assert await tab.run(
        """
        // Before anything is known of what it takes.
        const undelivered = Collected.heard(mesh, "messages-undelivered");
        await met.until(({length}) => length);
        const peer = mesh.peers.get("m-py");
        const [request] = await Promise.all([
          thrown(() => peer.request("x".repeat(2_001))),
          peer.send("y".repeat(2_001), "large"),
        ]);
        const [{messages, peerId}] = await undelivered.until(({length}) => length);
        return [request.name, peerId, messages[0].channel, messages[0].data.length];
        """
    ) == ["MessageTooLarge", "m-py", "large", 2_001]
    assert events is not None


async def test_arguments_that_can_not_be_right_are_refused(tab: Tab) -> None:
    for options, text in (
        ("{room: ''}", "room can't be '': "),
        ("{room: 'r', peerId: ' x'}", "peerId can't be ' x': "),
        ("{room: 'r', name: 'a\\nb'}", "name can't be 'a\\nb': "),
        ("{room: 'r', metadata: []}", "metadata must be JSON-able: "),
        ("{room: 'r', metadata: {x: new Map([[1, 2]])}}", "metadata must be JSON-able: "),
        ("{room: 'r', metadata: {x: 'y'.repeat(5000)}}", "metadata can't be "),
        ("{room: 'r', resumeToken: 'short'}", "resumeToken can't be that: "),
        ("{room: 'r', joinToken: 'two words'}", "joinToken "),
        ("{room: 'r', config: {relayafter: 0}}", "MeshConfig has no 'relayafter'"),
        ("{room: 'r', config: 5}", "the config must be an object"),
        ("{room: 7}", "room can't be 7: "),
    ):
        error = await tab.run(f"return thrown(() => new client.PeerManager(url, {options}));")
        assert (error["name"], error["isError"]) == ("ConfigError", True), options
        assert error["message"].startswith(text)


def _settings() -> list[tuple[str, Any]]:
    """Values at and beyond the limits of each setting, and of other types."""
    limits = [0, -1, 0.009, 0.01, 0.05, 0.1, 1, 2, 9, 10, 10.5, 60, 61, 99, 100, 200, 201, 1023]
    limits += [1024, 16 * 1024, 32 * 1024, 64 * 1024, 3600, 3601, 10_000_000, 10_000_001]
    limits += [2**30, 2**30 + 1, 2**32, 2**32 + 1]
    others = [True, "x", None, "reject", "rename", "takeover", "all", "relay", {}, {"a": "high"}]
    others += [{"a": "highest"}, []]
    names = [each.name for each in fields(MeshConfig) if each.name not in NO_SETTINGS]
    return [(name, value) for name in names if name != "ice_servers" for value in limits + others]


async def test_settings_are_those_of_python_and_have_the_same_limits(tab: Tab) -> None:
    cases = _settings()
    theirs = await tab.run(
        """
        return cases.map(([name, value]) => {
          try {
            new client.MeshConfig({[name]: value});
            return true;
          } catch (error) {
            return error.name;
          }
        });
        """,
        cases=[(camel(name), value) for name, value in cases],
    )
    for (name, value), they in zip(cases, theirs, strict=True):
        try:
            MeshConfig(**{name: value})
        except ConfigError:
            ours: Any = "ConfigError"
        else:
            ours = True
        assert they == ours, f"{name} = {value!r}"
    defaults = await tab.run("return {...new client.MeshConfig()};")
    for each in fields(MeshConfig):
        if each.name not in NO_SETTINGS:
            ours = getattr(MeshConfig(), each.name)
            assert defaults.pop(camel(each.name)) == (list(ours) if ours == () else ours)
    assert defaults == {}
    assert (
        await tab.run(
            "return thrown(() => new client.MeshConfig({iceServers: [{urls: 'turn:x'}]}));"
        )
    )["message"] == "MeshConfig.iceServers: username and credential must be given for 'turn:x'"


# --- life -----------------------------------------------------------------------------------------


async def test_nothing_is_left_after_close(tab: Tab, room: str, python: Enter) -> None:
    mesh = await python()
    events = mesh.events()
    messages = mesh.messages()
    await tab.enter(room)
    await tab.meet()
    assert await tab.run(
        """
        const told = Collected.of(mesh.events());
        const read = (async () => { for await (const _ of mesh.messages()); return "ended"; })();
        const waiting = thrown(() => mesh.waitForPeers(5));
        const asked = thrown(() => peer.request("?", {timeout: null}));
        const channel = await peer.openChannel("x");
        await peer.send("the last words");
        const closing = [mesh.close(), mesh.close()];
        const meanwhile = await thrown(() => peer.send("late"));
        await Promise.all(closing);
        const after = await Promise.all([
          () => mesh.start(), () => mesh.broadcast(""), () => mesh.waitForPeers(),
          () => mesh.update({name: "x"}), () => mesh.receiveFile(),
          () => mesh.debug.testP2PWithAllPeers(), () => mesh.debug.forceICERestart(),
          () => peer.request(""), () => peer.flush(), () => peer.openChannel("x"),
        ].map(thrown));
        const later = [];
        for await (const _ of mesh.events()) later.push(_);
        for await (const _ of mesh.messages()) later.push(_);
        return {
          state: mesh.state,
          peers: mesh.peers.size,
          connections: [...connections].filter((each) => each.connectionState !== "closed").length,
          meanwhile: [meanwhile.name, meanwhile.reason],
          waiting: [(await waiting).name, (await asked).name],
          after: [...new Set(after.map(({name}) => name))],
          read: await read,
          channel: channel.state,
          last: told.all.at(-1),
          later: later.length,
        };
        """
    ) == {
        "state": "closed",
        "peers": 0,
        "connections": 0,
        "meanwhile": ["MeshClosed", "closing"],
        "waiting": ["MeshClosed", "MeshClosed"],
        "after": ["MeshClosed"],
        "read": "ended",
        "channel": "closed",
        "last": {"kind": "Closed", "reason": "closed", "error": None},
        "later": 0,
    }
    assert [(await _next(messages)).data for _ in range(2)] == ["?", "the last words"]
    left = await _first(mesh, events, PeerLeft)
    assert (left.peer_id, left.reason) == ("a-tab", "left")


async def test_it_may_be_closed_from_a_listener_and_before_it_is_in(
    tab: Tab, room: str, python: Enter
) -> None:
    await python()
    assert await tab.run(
        """
        const enter = async (type, listener) => {
          const mesh = new client.PeerManager(url, {room, keepSeat: false});
          const ended = Collected.heard(mesh, "closed");
          const all = Collected.of(mesh.events());
          let calls = 0;
          mesh.addEventListener(type, () => { calls++; void mesh.close(); });
          const started = await thrown(() => mesh.start());
          await ended.until(({length}) => length);
          return [started.name ?? null, calls, mesh.state, all.all.at(-1).kind];
        };
        const never = new client.PeerManager(url, {room});
        await never.close();
        const entering = new client.PeerManager(url, {room});
        const started = thrown(() => entering.start());
        await entering.close();
        const aborted = new client.PeerManager(url, {room});
        const stop = new AbortController();
        const start = thrown(() => aborted.start({signal: stop.signal}));
        stop.abort();
        const before = new client.PeerManager(url, {room});
        return [
          await enter("joined"), await enter("peer-joined"), await enter("peer-state-changed"),
          [(await started).name, entering.state], [(await start).name, aborted.state],
          [(await thrown(() => never.start())).name, never.state],
          [(await thrown(() => before.broadcast(""))).name, before.state, before.resumeToken],
          [...connections].filter((each) => each.connectionState !== "closed").length,
        ];
        """,
        room=room,
    ) == [
        [None, 1, "closed", "Closed"],
        [None, 1, "closed", "Closed"],
        [None, 2, "closed", "Closed"],
        ["MeshClosed", "closed"],
        ["AbortError", "closed"],
        ["MeshClosed", "closed"],
        ["MeshClosed", "new", None],
        0,
    ]


async def test_who_waits_to_open_a_channel_is_told_of_our_end(
    context: BrowserContext, relay: Relay
) -> None:
    tab = await Tab.open(context, relay)
    assert await tab.run(
        _FAKES
        + """
        const {mesh} = fake();
        await mesh.start();
        const opening = thrown(() => mesh.peers.get("m-py").openChannel("x")); // there is no path
        await mesh.close();
        const {name, reason} = await opening;
        return [name, reason];
        """
    ) == ["MeshClosed", "closing"]
    await tab.close()
    assert tab.errors == []


async def test_a_start_that_is_given_up_leaves_its_seat_to_the_next(tab: Tab, room: str) -> None:
    assert await tab.run(
        """
        for (let n = 0; n < 3; n++) {
          const mesh = new client.PeerManager(url, {room});
          const started = thrown(() => mesh.start());
          await mesh.close();
          await started;
        }
        const mesh = new client.PeerManager(url, {room});
        await mesh.start();
        const seats = Object.keys(sessionStorage).filter((name) => name.endsWith(` ${room}`));
        await mesh.close();
        return seats.map((name) => name.startsWith("meshpeer seat ws"));
        """,
        room=room,
    ) == [True]


_SEATS = """
/** A manager with the seat "mine", and what becomes of that. */
globalThis.seated = (open, given = async (seat) => seat) => {
  const here = {told: [], ids: []};
  const transport = () => ({
    url: "fake:", state: "waiting", lastFailure: taken,
    open({peerId}) {
      here.ids.push(peerId === "mine" ? peerId : "another");
      return open(here.ids.length);
    },
    async close() {},
  });
  const seat = () => given({
    peerId: "mine", resumeToken: "t".repeat(16), keep() {},
    putDown: () => here.told.push("put down"), release: () => here.told.push("released"),
  });
  const config = {joinTimeout: 0.2};
  here.mesh = new client.PeerManager(url, {room: "r", config, parts: {transport, seat}});
  here.started = thrown(() => here.mesh.start()).then(({name}) => name);
  return here;
};
globalThis.taken = new client.PeerIdTaken("it is taken", {code: "peer_id_taken"});
globalThis.never = new Promise(() => {});
"""


async def test_a_seat_that_comes_when_the_start_was_given_up_is_put_down(tab: Tab) -> None:
    assert await tab.run(
        _SEATS
        + """
        let give;
        const {mesh, started, told, ids} = seated(
          () => never, (seat) => new Promise((resolve) => (give = () => resolve(seat))),
        );
        const closing = mesh.close();
        give();
        await closing;
        return [await started, told, ids];
        """
    ) == ["MeshClosed", ["put down"], []]


async def test_another_id_is_tried_within_the_same_time(tab: Tab) -> None:
    assert await tab.run(
        _SEATS
        + """
        const late = seated(() => never);
        const soon = seated((number) => (number === 1 ? Promise.reject(taken) : never));
        return [
          await late.started, late.ids, late.told, await soon.started, soon.ids, soon.told,
        ];
        """
    ) == [
        "PeerIdTaken",
        ["mine"],
        ["released"],
        "PeerIdTaken",
        ["mine", "another"],
        ["released", "released"],
    ]


async def test_a_relay_that_is_not_there_is_told(tab: Tab, room: str) -> None:
    error = await tab.run(
        """
        const mesh = new client.PeerManager("ws://127.0.0.1:9", {room, config: {joinTimeout: 0.2}});
        return thrown(() => mesh.start());
        """,
        room=room,
    )
    assert error["name"] == "SignalingUnavailable"
    assert error["message"].startswith(f"could not enter room '{room}' within 0.2 s: ")
    assert await tab.run(
        """
        const mesh = new client.PeerManager("ws://127.0.0.1:9", {room, config: {joinTimeout: 60}});
        const started = thrown(() => mesh.start());
        await new Promise(setTimeout);
        await mesh.close(); // at once
        return [(await started).name, mesh.state];
        """,
        room=room,
    ) == ["MeshClosed", "closed"]


async def test_closing_waits_for_what_was_sent_unless_it_is_aborted(
    tab: Tab, room: str, python: Enter
) -> None:
    mesh = await python(config=MeshConfig(channel_window=32 * 1024))
    messages = mesh.messages()
    await tab.enter(room, config={"closeTimeout": 60})
    await tab.meet()
    await tab.run(
        """
        for (let n = 0; n < 30; n++) await peer.send(`${n} ${"x".repeat(10_000)}`);
        globalThis.isClosed = false;
        const seen = ({name}) => [name, isClosed];
        const waiting = [
          thrown(() => mesh.waitForPeers(5)).then(seen), thrown(() => peer.flush()).then(seen),
        ];
        globalThis.closing = mesh.close().then(() => (isClosed = true));
        globalThis.told = Promise.race(waiting);
        """
    )
    # Who waits for something else is not kept waiting.
    assert await tab.run("return told;") == ["MeshClosed", False]
    for number in range(30):
        assert int((await _next(messages)).data.split()[0]) == number
    await tab.run("await closing;")
    await tab.enter(room, config={"closeTimeout": 60})
    await tab.meet()
    assert await tab.run(
        """
        for (let n = 0; n < 30; n++) await peer.send(`${n} ${"x".repeat(10_000)}`);
        const stop = new AbortController();
        const closing = thrown(() => mesh.close({signal: stop.signal}));
        stop.abort(new Error("in a hurry"));
        return [(await closing).message, mesh.state];
        """
    ) == ["in a hurry", "closed"]


# --- identity -------------------------------------------------------------------------------------


async def test_an_id_that_is_taken_is_refused_or_renamed(
    tab: Tab, room: str, python: Enter
) -> None:
    mesh = await python("same")
    error = await tab.run(
        "return thrown(() => new client.PeerManager(url, {room, peerId: 'same'}).start());",
        room=room,
    )
    assert (error["name"], error["code"]) == ("PeerIdTaken", "peer_id_taken")
    await tab.enter(room, peerId="same", config={"onConflict": "rename"})
    assert await tab.run("return [mesh.peerId, mesh.state];") == ["same-2", "joined"]
    assert (await mesh.wait_for_peer("same-2", timeout=_LONGEST)).id == "same-2"
    with pytest.raises(PeerIdTaken):
        await python("same-2")
    assert (await python("same-2", config=MeshConfig(on_conflict="rename"))).peer_id == "same-2-2"


async def test_a_newer_holder_of_the_token_takes_the_id_over(
    tab: Tab, room: str, relay: Relay, python: Enter
) -> None:
    mesh = await python("same")
    token = mesh.resume_token
    await tab.enter(room, peerId="same", resumeToken=token, config={"onConflict": "takeover"})
    with pytest.raises(IdentityReplaced):
        await _next(mesh.messages())
    ours = await tab.run(
        """
        globalThis.replaced = Collected.heard(mesh, "replaced");
        globalThis.ended = Collected.heard(mesh, "closed");
        globalThis.read = thrown(async () => { for await (const _ of mesh.messages()); });
        return mesh.resumeToken;
        """
    )
    again = await python("same", resume_token=ours, config=MeshConfig(on_conflict="takeover"))
    assert await tab.run(
        """
        const [{peerId}] = await replaced.until(({length}) => length);
        const [{reason, error}] = await ended.until(({length}) => length);
        const after = await thrown(() => mesh.broadcast(""));
        return [peerId, reason, error.name, (await read).name, after.name, mesh.state];
        """
    ) == ["same", "replaced", "IdentityReplaced", "IdentityReplaced", "IdentityReplaced", "closed"]
    assert not again.peers


async def test_a_name_that_is_given_while_it_joins_is_the_one_it_joins_with(
    tab: Tab, room: str, python: Enter
) -> None:
    mesh = await python()
    peer_id = await tab.run(
        """
        globalThis.mesh = new client.PeerManager(url, options);
        const starting = mesh.start();
        mesh.update({name: "Anna"});
        await starting;
        return mesh.peerId;
        """,
        options={"room": room, "name": "somebody"},
    )
    assert (await mesh.wait_for_peer(peer_id, timeout=_LONGEST)).name == "Anna"


async def test_a_page_that_is_loaded_anew_is_the_same_peer(
    tab: Tab, room: str, python: Enter
) -> None:
    mesh = await python()
    events = mesh.events()
    options = {"room": room, "name": "somebody"}
    enter = (
        "globalThis.mesh = new client.PeerManager(url, options); await mesh.start();"
        "return [mesh.peerId, mesh.incarnation];"
    )
    peer_id, incarnation = await tab.run(enter, options=options)
    await mesh.wait_for_peer(peer_id, timeout=_LONGEST)
    await tab.load()
    again, other = await tab.run(enter, options=options)
    assert again == peer_id
    assert other != incarnation
    left = await _first(mesh, events, PeerLeft)
    assert (left.peer_id, left.incarnation, left.reason) == (peer_id, incarnation, "superseded")
    assert (await mesh.wait_for_peer(peer_id, timeout=_LONGEST)).incarnation == other
    # Not without being asked to.
    await tab.load()
    stranger, _ = await tab.run(enter, options={**options, "keepSeat": False})
    assert stranger != peer_id


async def test_joins_that_need_a_token(context: BrowserContext, room: str) -> None:
    secret = "s" * 32
    async with Relay(RelayConfig(port=0, join_secret=secret)) as relay:
        tab = await Tab.open(context, relay)
        token = make_join_token(secret=secret, subject="somebody", room=room)
        assert await tab.run(
            """
            const enter = async (joinToken, where = room) => {
              const mesh = new client.PeerManager(url, {room: where, joinToken, keepSeat: false});
              const outcome = (await thrown(() => mesh.start())).name ?? mesh.state;
              await mesh.close();
              return outcome;
            };
            // Who is given a name knows it, and keeps it.
            const given = new client.PeerManager(
              url, {room, name: "Mallory", joinToken: named, keepSeat: false},
            );
            const names = [given.name];
            await given.start();
            names.push(given.name);
            given.update({name: "Eve"});
            names.push(given.name);
            await given.close();
            return [
              await enter(null), await enter("forged"), await enter(token),
              await enter(async () => token), await enter(token, "another room"), names,
            ];
            """,
            room=room,
            token=token,
            named=make_join_token(secret=secret, subject="somebody", name="Dr. Ann"),
        ) == [
            *("Unauthorized", "Unauthorized", "joined", "joined", "Forbidden"),
            ["Mallory", "Dr. Ann", "Dr. Ann"],
        ]
        await tab.close()
        assert tab.errors == []


async def test_the_seat_of_another_account_is_given_up(context: BrowserContext, room: str) -> None:
    secret = "s" * 32
    ann, bob = (
        make_join_token(secret=secret, subject=subject, room=room) for subject in ("ann", "bob")
    )
    async with Relay(RelayConfig(port=0, join_secret=secret)) as relay:
        tab = await Tab.open(context, relay)

        async def enter(join_token: str, **options: Any) -> Any:
            """In the same tab, after a reload. The state, our id, and how many seats are kept."""
            await tab.load()
            return await tab.run(
                """
                globalThis.mesh = new client.PeerManager(url, given);
                const {name = mesh.state} = await thrown(() => mesh.start());
                return [name, mesh.peerId, sessionStorage.length];
                """,
                given={"room": room, "joinToken": join_token, **options},
            )

        first = await enter(ann)
        assert await enter(ann) == first
        state, peer_id, kept = await enter(bob)
        assert (state, kept) == ("joined", 1)
        assert peer_id != first[1]
        # Who asks for an id gets that or none, and does not come with the other's seat again.
        assert await enter(ann, peerId="this") == ["joined", "this", 2]
        assert await enter(bob, peerId="this") == ["Forbidden", "this", 1]
        await tab.close()
        assert tab.errors == []


# --- events ---------------------------------------------------------------------------------------


async def test_what_happens_is_told_in_order_after_the_state_has_changed(
    tab: Tab, room: str, python: Enter
) -> None:
    await tab.run(
        """
        const options = {room, peerId: "a-tab", name: "Ann", metadata: {n: 1}};
        globalThis.mesh = new client.PeerManager(url, options);
        globalThis.heard = new Collected();
        for (const type of [
          "joined", "signaling-changed", "peer-joined", "peer-updated", "peer-state-changed",
          "peer-left", "closed",
        ]) {
          mesh.addEventListener(type, ({type, detail}) => {
            const {kind, peerId, state, name, metadata, reason, path} = detail;
            const there = mesh.peers.get(peerId);
            heard.put({
              type, kind, peerId, reason, name, metadata, path,
              state: [state, kind.startsWith("Peer") ? there?.state : mesh.state],
            });
          });
        }
        globalThis.iterated = Collected.of(mesh.events());
        await mesh.start();
        """,
        room=room,
    )
    mesh = await python(name="Bob", metadata={"m": [1]})
    events = mesh.events()
    peer = await _peer(mesh)
    assert (peer.name, peer.metadata) == ("Ann", {"n": 1})
    await tab.run("await mesh.waitForPeer('m-py');")
    mesh.update(name="Rob", metadata={"m": 2})
    await tab.run(
        """
        const {name, metadata} = await heard.first(({kind}) => kind === "PeerUpdated");
        const told = [name, metadata.m, mesh.peers.get("m-py").name].join();
        if (told !== "Rob,2,Rob") throw new Error(`told was ${told}`);
        mesh.update({name: "Anna"});
        mesh.update({metadata: {n: 2}});
        if (mesh.name !== "Anna" || mesh.metadata.n !== 2) throw new Error("not kept");
        """
    )
    await _first(mesh, events, PeerUpdated)
    updated = await _first(mesh, events, PeerUpdated)
    assert (updated.name, updated.metadata) == ("Anna", {"n": 2})
    error = await tab.run("return thrown(() => mesh.update({name: ' '}));")
    assert error["name"] == "ConfigError"
    await mesh.close()
    heard, iterated = await tab.run(
        """
        await heard.first(({kind}) => kind === "PeerLeft");
        await mesh.close();
        await iterated.first(({kind}) => kind === "Closed");
        return [heard.all, iterated.all.map(({kind}) => kind)];
        """
    )
    told = [(each["type"], each["state"][-1]) for each in heard]
    assert told == [
        ("signaling-changed", "joined"),
        ("joined", "joined"),
        ("peer-joined", "connecting"),
        ("peer-state-changed", "connecting"),
        ("peer-state-changed", "connected"),
        ("peer-updated", "connected"),
        ("peer-state-changed", None),
        ("peer-left", None),
        ("closed", "closed"),
    ]
    assert heard[2]["name"], heard[2]["metadata"] == ("Bob", {"m": [1]})
    assert heard[-2]["reason"] == "left"
    assert [kind for kind in iterated if kind != "ConnectionReport"] == [
        each["kind"] for each in heard
    ]


async def test_a_reader_of_events_that_is_too_slow_is_ended(
    tab: Tab, room: str, python: Enter
) -> None:
    mesh = await python()
    await tab.enter(room, config={"maxPendingEvents": 10})
    await tab.meet()
    await tab.run(
        "globalThis.slow = mesh.events();"
        "globalThis.updates = Collected.heard(mesh, 'peer-updated');"
    )
    for number in range(11):
        mesh.update(name=f"number {number}")
    assert await tab.run(
        """
        await updates.until((all) => all.at(-1)?.name === "number 10");
        let count = 0;
        const {name} = await thrown(async () => { for await (const _ of slow) count++; });
        return [name, count];
        """
    ) == ["SlowReader", 10]


async def test_a_notice_of_the_operator_and_a_removal_are_told(
    tab: Tab, room: str, relay: Relay
) -> None:
    await tab.enter(room)
    await tab.run(
        """
        globalThis.notices = Collected.heard(mesh, "notice-received");
        globalThis.ended = Collected.heard(mesh, "closed");
        """
    )
    relay._apply(relay._rooms.notice(room, "back at noon", relay._now()))
    assert await tab.run("return (await notices.first(() => true)).text;") == "back at noon"
    relay._apply(relay._rooms.remove(room, "a-tab", relay._now()))
    assert await tab.run(
        """
        const {reason, error} = await ended.first(() => true);
        return [reason, error.name, (await thrown(() => mesh.broadcast(""))).name];
        """
    ) == ["removed", "Removed", "Removed"]


# --- what did not arrive --------------------------------------------------------------------------


async def test_what_did_not_arrive_is_told_to_who_waits_and_to_all(
    tab: Tab, room: str, python: Enter
) -> None:
    mesh = await python(config=MeshConfig(channel_window=32 * 1024, close_timeout=0))
    await tab.enter(room, config={"sendWindow": 64 * 1024})
    await tab.meet()
    await tab.run(
        """
        globalThis.undelivered = Collected.heard(mesh, "messages-undelivered");
        globalThis.left = Collected.heard(mesh, "peer-left");
        globalThis.sends = [];
        const filling = "x".repeat(9_000);
        for (let n = 0; n < 20; n++) sends.push(thrown(() => peer.send({n, filling})));
        globalThis.flushed = thrown(() => peer.flush());
        globalThis.asked = thrown(() => peer.request("?", {channel: "other", timeout: null}));
        await sends[9];
        """
    )
    # As a process that dies: what it has not read does not count as arrived, or does it not know.
    await mesh.close()
    accepted, outcomes, told, flushed, asked, gone = await tab.run(
        """
        const outcomes = await Promise.all(sends);
        const [{peerId, messages}] = await undelivered.until(({length}) => length);
        await left.until(({length}) => length);
        const accepted = outcomes.filter(({name}) => name === undefined).length;
        const waited = outcomes.filter(({name}) => name !== undefined);
        return [
          accepted,
          [...new Set(waited.map(({name, reason}) => `${name} ${reason}`))],
          messages.map(({data, channel}) => [data.n, channel]),
          [(await flushed).name, (await flushed).messages.length, (await flushed).reason],
          (await asked).name,
          [peer.state, peer.closedReason, peer.path, (await thrown(() => peer.send(""))).name],
        ];
        """
    )
    assert 8 <= accepted < 20
    assert outcomes == ["Undelivered left"]
    numbers = [number for number, _ in told]
    assert numbers == list(range(numbers[0], accepted))
    assert 1 <= numbers[0] <= 4
    assert flushed == ["Undelivered", len(numbers), "left"]
    assert asked == "Undelivered"
    assert gone == ["closed", "left", None, "PeerClosed"]


async def test_what_python_sent_and_a_page_did_not_get_is_told_there(
    tab: Tab, room: str, python: Enter
) -> None:
    mesh = await python()
    events = mesh.events()
    await tab.enter(room, config={"channelWindow": 32 * 1024, "closeTimeout": 0})
    await tab.meet()
    peer = await _peer(mesh)
    for number in range(10):
        await peer.send({"n": number, "filling": "x" * 9_000})
    await tab.run("await mesh.close();")
    told: MessagesUndelivered = await _first(mesh, events, MessagesUndelivered)
    numbers = [message.data["n"] for message in told.messages]
    assert numbers == list(range(numbers[0], 10))
    assert 0 <= numbers[0] <= 4


# --- debugging ------------------------------------------------------------------------------------


async def test_the_tools_to_look_into_it(tab: Tab, room: str, python: Enter) -> None:
    mesh = await python()
    await tab.enter(room, metadata={"secret": "no"})
    await tab.meet()
    peer = await _peer(mesh)
    for number in range(300):
        mesh.update(name=f"number {number}")
    before = await tab.run(
        """
        const updates = Collected.heard(mesh, "peer-updated");
        await updates.until((all) => all.at(-1)?.name === "number 299");
        return {
          connections: mesh.debug.getConnections(),
          tests: await mesh.debug.testP2PWithAllPeers(),
          stats: mesh.debug.getStats(),
          signaling: mesh.debug.getSignalingStatus(),
          diagnostics: JSON.parse(JSON.stringify(await mesh.debug.getDiagnostics())),
          wrong: await thrown(() => mesh.debug.forceICERestart("nobody")),
          token: mesh.resumeToken,
        };
        """
    )
    (connection,) = before["connections"]
    assert (connection["kind"], connection["peerId"], connection["state"], connection["path"]) == (
        "ConnectionReport",
        "m-py",
        "connected",
        "direct",
    )
    (test,) = before["tests"]
    assert (test["peerId"], test["path"], test["error"]) == ("m-py", "direct", None)
    assert test["rtt"] > 0
    assert before["stats"]["paths"] == {"direct": 1}
    assert before["stats"]["peers"]["m-py"]["connections"] == 1
    assert (before["signaling"]["state"], before["signaling"]["room"]) == ("joined", room)
    assert before["wrong"]["name"] == "ConfigError"
    diagnostics = before["diagnostics"]
    assert len(diagnostics["events"]) == 200
    assert diagnostics["events"][-1]["event"]["kind"] in ("PeerUpdated", "ConnectionReport")
    assert diagnostics["peers"]["m-py"]["connection"]
    assert diagnostics["peers"]["m-py"]["counts"]["attempts"] == 1
    assert diagnostics["timers"]["nextDeadline"] is not None
    assert before["token"] not in json.dumps(diagnostics)
    restarts = await tab.run(
        """
        const reports = Collected.heard(mesh, "connection-report");
        globalThis.messages = Collected.of(mesh.messages());
        mesh.debug.forceICERestart("m-py");
        await peer.send("during");
        const {restarts, epoch, generation} = await reports.first(({restarts}) => restarts > 0);
        return [restarts, epoch, generation];
        """
    )
    assert restarts == [1, 1, 1]
    await peer.send("after")
    assert await tab.run("return (await messages.first(() => true)).data;") == "after"


async def test_the_diagnostics_have_nothing_of_what_was_said(
    tab: Tab, room: str, relay: Relay, python: Enter, tmp_path: Path
) -> None:
    mesh = await python(metadata={"mood": "gloomy"})
    await tab.enter(room, metadata={"mood": "sunny"})
    await tab.meet()
    await tab.run("globalThis.told = Collected.of(mesh.events());")
    mesh.update(metadata={"mood": "brooding"})
    path = tmp_path / "diary.txt"
    path.write_text("dear diary")
    sending = asyncio.create_task((await _peer(mesh)).send_file(path))
    await tab.run("await told.first(({kind}) => kind === 'FileOffered');")
    sending.cancel()
    await asyncio.wait([sending])
    relay._apply(relay._rooms.notice(room, "lunch is late", relay._now()))
    events, everything, offered = await tab.run(
        """
        for (const last of ["PeerUpdated", "FileWithdrawn", "NoticeReceived"]) {
          await told.first(({kind}) => kind === last);
        }
        const diagnostics = await mesh.debug.getDiagnostics();
        const {sha256} = await told.first(({kind}) => kind === "FileOffered");
        return [diagnostics.events.map(({event}) => event), JSON.stringify(diagnostics), sha256];
        """
    )
    kinds = {event["kind"] for event in events}
    assert {"PeerJoined", "PeerUpdated", "FileOffered", "FileWithdrawn"} <= kinds
    assert "NoticeReceived" in kinds
    for said in ("gloomy", "sunny", "brooding", "diary", "lunch", offered):
        assert said not in everything


async def test_what_the_page_hears_of_the_network_is_looked_into(
    tab: Tab, room: str, python: Enter
) -> None:
    await python()
    await tab.run(
        """
        const add = addEventListener;
        globalThis.watching = [];
        globalThis.addEventListener = (type, listener, options) => {
          watching.push(options?.signal);
          return add(type, listener, options);
        };
        """
    )
    await tab.enter(room, keepSeat=False)
    await tab.meet()
    assert await tab.run(
        """
        const reports = Collected.heard(mesh, "connection-report");
        dispatchEvent(new Event("online"));
        const {restarts} = await reports.first(({restarts}) => restarts > 0);
        dispatchEvent(new PageTransitionEvent("pageshow", {persisted: false}));
        dispatchEvent(new PageTransitionEvent("pageshow", {persisted: true}));
        const {restarts: again} = await reports.first(({restarts}) => restarts > 1);
        document.dispatchEvent(new Event("visibilitychange"));
        document.dispatchEvent(new Event("resume"));
        await peer.send("still here");
        await peer.flush(10);
        const {send} = RTCDataChannel.prototype;
        let asked = 0;
        RTCDataChannel.prototype.send = function (data) {
          asked++;
          send.call(this, data);
        };
        document.dispatchEvent(new Event("resume"));
        RTCDataChannel.prototype.send = send;
        await mesh.close();
        dispatchEvent(new Event("online")); // nobody is there to hear it
        return [restarts, again, asked > 0, mesh.state, watching.map((signal) => signal.aborted)];
        """
    ) == [1, 2, True, "closed", [True, True]]


async def test_files_go_both_ways(tab: Tab, room: str, python: Enter, tmp_path: Path) -> None:
    mesh = await python()
    await tab.enter(room)
    await tab.meet()
    peer = await _peer(mesh)
    receiving = asyncio.create_task(mesh.receive_file(tmp_path / "got", timeout=_LONGEST))
    sent = await tab.run(
        """
        const progress = [];
        const file = new File([new Uint8Array(700_000).fill(7)], "page.bin");
        const onProgress = ({done}) => progress.push(done);
        const {kind, name, size, sha256} = await peer.sendFile(file, {onProgress});
        return [kind, name, size, sha256, progress.at(-1)];
        """
    )
    received = await receiving
    assert received.path.read_bytes() == b"\7" * 700_000
    assert sent == ["FileSent", "page.bin", 700_000, received.sha256, 700_000]
    (tmp_path / "python.bin").write_bytes(b"\x08" * 500_000)
    await tab.run("globalThis.offers = Collected.heard(mesh, 'file-offered');")
    sending = asyncio.create_task(peer.send_file(tmp_path / "python.bin"))
    assert await tab.run(
        """
        const [{peerId, name, size}] = await offers.until(({length}) => length);
        const waiting = mesh.fileOffers.length;
        const {blob, sender, name: same} = await mesh.receiveFile({sender: peerId});
        const bytes = new Uint8Array(await blob.arrayBuffer());
        const isRight = bytes.length === size && bytes.every((each) => each === 8);
        return [name, size, waiting, same, sender === peer, isRight];
        """
    ) == ["python.bin", 500_000, 1, "python.bin", True, True]
    assert (await sending).size == 500_000
    refused = asyncio.create_task(peer.send_file(tmp_path / "python.bin"))
    await tab.run(
        "await offers.until(({length}) => length === 2); mesh.refuseFile('m-py', 'not now');"
    )
    with pytest.raises(TransferFailed, match="not now"):
        await refused


# --- faults ---------------------------------------------------------------------------------------

_FAKES = """
globalThis.welcome = {
  kind: "Welcome", version: 1, room: "r", peerId: "a-tab", token: "t".repeat(16), seatTimeout: 30,
  session: null, resumed: false, received: 0, forwardWindow: 0, reportInterval: 0, iceServers: null,
  name: null,
  members: [
    {kind: "Member", peerId: "m-py", incarnation: "i".repeat(16), name: "Bob", metadata: {}},
  ],
};
/** A manager in a room that is not there, with one other in it. */
globalThis.fake = ({
  onOpen = () => {}, connection = {}, config = {}, retryIn = () => null,
} = {}) => {
  const here = {offers: 0};
  const transport = (told) => ({
    url: "fake:", state: "seated", lastFailure: null, retryIn,
    async open({incarnation}) {
      here.say = told;
      onOpen(told);
      return {...welcome, incarnation};
    },
    send() {}, update() {}, forwardRoom: () => 0, forward() {}, report() {}, doubt() {},
    async close() {},
  });
  const never = () => new Promise(() => {});
  const unmade = {
    bufferedAmount: 0, createOffer: never, acceptOffer: never, acceptAnswer: never,
    addCandidates: never, ping() {}, sendFrame() {}, openChannel() {}, async stats() {},
    async close() {}, ...connection,
  };
  here.mesh = new client.PeerManager(url, {
    room: "r", peerId: "a-tab", config, keepSeat: false,
    parts: {transport, connection: () => (here.offers++, unmade)},
  });
  here.ended = Collected.heard(here.mesh, "closed");
  here.events = Collected.of(here.mesh.events());
  return here;
};
"""


async def test_faults_are_reported_and_end_no_more_than_they_must(
    context: BrowserContext, relay: Relay
) -> None:
    tab = await Tab.open(context, relay)
    assert await tab.run(
        _FAKES
        + """
        // A browser that throws what nobody expects: an attempt that failed.
        const odd = fake({
          connection: { async createOffer() { throw new TypeError("an odd browser"); } },
          config: {retryFirst: 0.01, connectTimeout: 0.05},
        });
        const states = Collected.heard(odd.mesh, "peer-state-changed");
        await odd.mesh.start();
        await states.first(({state}) => state === "failed");
        const still = odd.mesh.state;
        await odd.mesh.close();

        // A connection that does not close, of which an operation never ends.
        const hung = fake({
          connection: {close: () => new Promise(() => {})}, config: {closeTimeout: 0.05},
        });
        await hung.mesh.start();
        await hung.mesh.close();

        // What comes before it is known that we are in.
        const early = fake({
          onOpen: ({onEvent}) => queueMicrotask(() => onEvent({
            ...welcome.members[0], kind: "MemberUpdated", name: "Rob",
          })),
        });
        await early.mesh.start();
        const name = early.mesh.peers.get("m-py").name;
        await early.events.first(({kind}) => kind === "PeerUpdated");
        const kinds = early.events.all.map(({kind}) => kind).slice(0, 3);
        await early.mesh.close();

        // The loss is told once; what comes of the tries after it is the transport's to say.
        const away = fake({retryIn: () => 3.5});
        await away.mesh.start();
        const waits = [away.mesh.debug.getSignalingStatus().retryIn];
        away.say.onEvent({kind: "SignalingLost", reason: "gone", retryIn: 0.01});
        waits.push(away.mesh.debug.getSignalingStatus().retryIn);
        await away.mesh.close();
        const lost = fake({
          onOpen: ({onEnd}) => queueMicrotask(() => onEnd(new client.IdentityReplaced("gone"))),
        });
        const start = await thrown(() => lost.mesh.start());

        // What can't be: a fault of the code here.
        const broken = fake();
        await broken.mesh.start();
        const waiting = thrown(() => broken.mesh.waitForPeers(7));
        broken.say.onEvent({kind: "MemberJoined", member: null});
        const {reason, error} = await broken.ended.first(() => true);
        return [
          [still, odd.mesh.state, odd.offers > 1], hung.mesh.state, [name, kinds],
          [start.name, start.message, lost.mesh.state], waits,
          [reason, error.name, (await waiting).name, broken.mesh.state, broken.mesh.peers.size],
        ];
        """
    ) == [
        ["joined", "closed", True],
        "closed",
        ["Rob", ["SignalingChanged", "Joined", "PeerJoined"]],
        ["IdentityReplaced", "gone", "closed"],
        [None, 3.5],
        ["failed", "MeshClosed", "MeshClosed", "closed", 0],
    ]
    await tab.close()
    hung, broken = (error for error in tab.errors if error != "an odd browser")
    assert "an odd browser" in tab.errors
    assert hung == "a connection did not close within 0.05 s"
    assert "null" in broken


async def test_a_page_that_was_held_up_listens_before_it_takes_somebody_for_silent(
    tab: Tab, origin: str
) -> None:
    await tab.page.goto(f"{origin}/tests/browser/page/index.html")
    assert await tab.page.evaluate(
        """
        async () => {
          const { Alarm, Turns } = await import("/meshpeer/relay/web/client/streams.js");
          const told = [];
          let now = 0; // on a clock that jumps, as that of a page that was frozen
          const alarm = new Alarm(() => now, new Turns(), () => told.push(`rang at ${now}`));
          const channel = new MessageChannel();
          channel.port1.onmessage = () => {
            told.push("heard");
            now += 0.1;
          };
          const ring = async (at, seconds) => {
            alarm.set(at);
            channel.port2.postMessage(null);
            now += seconds;
            alarm.look();
            const before = told.length;
            while (told.length === before) await new Promise((resolve) => setTimeout(resolve));
          };
          await ring(1, 2.4); // as late as a tab in the background is
          await new Promise((resolve) => setTimeout(resolve));
          told.push("frozen");
          await ring(now + 1, 20);
          await new Promise((resolve) => setTimeout(resolve, 10));
          return told;
        }
        """
    ) == ["rang at 2.4", "heard", "frozen", "heard", "rang at 22.6"]
