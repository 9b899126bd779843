"""Files in the browser, in Chromium: the exchange is Python's, and large ones arrive whole."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from meshpeer import PeerManager, Relay, RelayConfig, TransferFailed
from tests.browser.filewalks import receiving_walk, sending_walk
from tests.browser.needs import chromium_here

if TYPE_CHECKING:
    from playwright.async_api import Page

pytestmark = pytest.mark.asyncio(loop_scope="module")

_ROOT = Path(__file__).parents[2]
_WALKS = 100
_LARGE = 20_000_000
"""Bytes. `make browser` has files of 100 MB."""


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def page() -> AsyncIterator[Page]:
    """A page with the client's names in ``client``, those of `page/files.js` in ``page``."""
    async with chromium_here() as chromium:
        from tests.browser.page import page_server

        with page_server("127.0.0.1", _ROOT) as origin:
            page = await chromium.new_page()
            await page.goto(f"{origin}/tests/browser/page/index.html")
            await page.evaluate(
                """async () => {
                  const part = (name) => import(`/meshpeer/relay/web/client/${name}.js`);
                  const parts = ["codec", "files", "manager"].map(part);
                  window.client = Object.assign({}, ...(await Promise.all(parts)));
                  window.page = await import("/tests/browser/page/files.js");
                }"""
            )
            yield page


# --- the sum --------------------------------------------------------------------------------------


async def test_the_sum_is_that_of_fips_180_4(page: Page) -> None:
    random = Random(1)
    data = random.randbytes(1000)
    ways = [
        [min(size - at, step) for at in range(0, size, step)]
        for size in range(300)
        for step in (1 + random.randrange(80), 1000)
    ]
    script = """([data, ways]) => {
      const bytes = Uint8Array.from(atob(data), (each) => each.charCodeAt(0));
      return ways.map((way) => {
        const sum = new client.Sha256();
        let at = 0;
        for (const size of way) {
          sum.update(bytes.subarray(at, (at += size)));
          sum.hex; // which changes nothing
        }
        return sum.hex;
      });
    }"""
    sums = await page.evaluate(script, [base64.b64encode(data).decode(), ways])
    assert sums == [hashlib.sha256(data[: sum(way)]).hexdigest() for way in ways]


async def test_a_sum_of_more_bits_than_a_word_counts(page: Page) -> None:
    script = """([times]) => {
      const sum = new client.Sha256();
      const piece = new Uint8Array(2 ** 20);
      for (let n = 0; n < times; n++) sum.update(piece);
      sum.update(piece.subarray(0, 3));
      return sum.hex;
    }"""
    expected, piece = hashlib.sha256(), bytes(2**20)
    for _ in range(513):
        expected.update(piece)
    expected.update(bytes(3))
    assert await page.evaluate(script, [513]) == expected.hexdigest()


# --- the exchange ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "walk"), [("receiving", receiving_walk), ("sending", sending_walk)]
)
async def test_the_exchange_is_that_of_python(
    page: Page, tmp_path: Path, kind: str, walk: Any
) -> None:
    walks = []
    for seed in range(_WALKS):
        folder = tmp_path / str(seed)
        folder.mkdir()
        walks.append(await walk(seed, folder))
    script = """async ([kind, walks]) => {
      const said = [];
      for (const [seed, steps] of walks.entries()) {
        const wrong = await page.repeat(client, kind, steps);
        if (wrong !== null) said.push(`${seed}: ${wrong}`);
      }
      return said;
    }"""
    assert (await page.evaluate(script, [kind, walks]))[:1] == []


# --- Blobs and sinks ------------------------------------------------------------------------------


async def run(page: Page, body: str) -> Any:
    """Run this with a new ``pair`` and ``both``, which waits for a transfer's two ends."""
    return await page.evaluate(
        f"""async () => {{
          const pair = new page.Pair(client);
          const {{ sending, receiving }} = pair;
          const {{ both }} = page.Pair;
          const stop = new AbortController();
          const {{ signal }} = stop;
          const send = (what, options) => pair.send(what, options);
          const receive = (options) => receiving.receive(options);
          const file = new File(["0123456789"], "digits.txt");
          {body}
        }}"""
    )


async def test_a_file_becomes_a_blob(page: Page) -> None:
    sent, received, text, unread, same = await run(
        page,
        """const [sent, received] = await both(send(file), receive());
           const { blob, sender, ...rest } = received;
           return [sent, rest, await blob.text(), pair.unread, sender === pair.ann];""",
    )
    digest = hashlib.sha256(b"0123456789").hexdigest()
    facts = {"name": "digits.txt", "size": 10, "sha256": digest, "resumedFrom": 0}
    assert sent == {"kind": "FileSent"} | facts
    assert received == {"kind": "FileReceived"} | facts
    assert (text, unread, same) == ("0123456789", 0, True)


@pytest.mark.parametrize("size", [0, 1, 5_000_001])
async def test_what_is_more_than_one_piece_is_put_together(page: Page, size: int) -> None:
    script = f"""
      const pair2 = new page.Pair(client, client.FILE_CHUNK);
      const bytes = new Uint8Array({size}).map((_, at) => at % 251);
      const coming = pair2.receiving.receive();
      const [sent, {{ blob }}] = await both(pair2.send(new File([bytes], "a")), coming);
      const there = new Uint8Array(await blob.arrayBuffer());
      return [sent.sha256, there.length, there.every((byte, at) => byte === bytes[at])];"""
    data = (bytes(range(251)) * (size // 251 + 1))[:size]
    assert await run(page, script) == [hashlib.sha256(data).hexdigest(), size, True]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ('"text", { name: "a" }', "is a File or a Blob"),
        ("null", "is a File or a Blob"),
        ("new Blob()", "has no name"),
        ('file, { name: "a/b" }', "'a/b' is not the plain name"),
    ],
)
async def test_what_can_not_be_sent_is_not_offered(page: Page, given: str, text: str) -> None:
    name, said, events = await run(
        page,
        f"""const error = await send({given}).catch((error) => error);
            return [error.name, error.message, pair.events];""",
    )
    assert (name, events) == ("ConfigError", [])
    assert text in said


async def test_a_stream_takes_it_and_is_closed(page: Page) -> None:
    assert await run(
        page,
        """const { readable, writable } = new TransformStream();
           const text = new Response(readable).text();
           const [, { blob, size }] = await both(send(file), receive({ sink: writable }));
           return [await text, blob, size];""",
    ) == ["0123456789", None, 10]


async def test_a_stream_is_aborted_when_the_sender_stops(page: Page) -> None:
    sent, received, reason = await run(
        page,
        """let reason;
           const sink = new WritableStream({
             write: () => stop.abort(new Error("enough")),
             abort: (why) => { reason = why; },
           });
           const results = await both(send(file, { signal }), receive({ sink }));
           return [...results, reason.name];""",
    )
    assert sent == ["Error", "enough"]
    assert received == ["TransferFailed", "the sender stopped"]
    assert reason == "TransferFailed"


async def test_a_slow_sink_holds_the_credit_back(page: Page) -> None:
    assert await run(
        page,
        """let written, go;
           const first = new Promise((resolve) => (written = resolve));
           const gate = new Promise((resolve) => (go = resolve));
           const sink = { write: () => (written(), gate) };
           const done = both(send(file), receive({ sink }));
           await first;
           for (let n = 0; n < 5; n++) await page.turn();
           const held = pair.unread;
           go();
           await done;
           return [held, pair.unread];""",
    ) == [10, 0]


@pytest.mark.parametrize(
    "made",
    [
        """{
          begin: () => { log.push("begun"); }, write() {}, abort: (why) => log.push(why.message),
        }""",
        "new WritableStream({ abort: (why) => { log.push(why.message); } })",
    ],
)
async def test_a_sink_that_comes_when_the_receiver_was_aborted_is_told(
    page: Page, made: str
) -> None:
    sent, received, log = await run(
        page,
        """const log = [];
           let give;
           const sink = () => {
             stop.abort(new Error("enough"));
             return new Promise((resolve) => (give = resolve));
           };
           const done = both(send(file), receive({ sink, signal }));
           while (!give) await page.turn();
           for (let n = 0; n < 5; n++) await page.turn();"""
        f"give({made});"
        "return [...(await done), log];",
    )
    assert sent == ["TransferFailed", "the receiver stopped"]
    assert received == ["Error", "enough"]
    assert log == ["enough"]


async def test_a_sink_is_told_of_the_end_when_its_write_is_done(page: Page) -> None:
    assert await run(
        page,
        """const log = [];
           let go;
           const gate = new Promise((resolve) => (go = resolve));
           const sink = {
             async write() {
               stop.abort(new Error("enough"));
               await gate;
               log.push("written");
             },
             abort: () => log.push("aborted"),
           };
           const done = both(send(file), receive({ sink, signal }));
           while (!signal.aborted) await page.turn();
           for (let n = 0; n < 5; n++) await page.turn();
           go();
           await done;
           return log;""",
    ) == ["written", "aborted"]


async def test_a_stream_may_cut_its_write_short(page: Page) -> None:
    assert await run(
        page,
        """const log = [];
           const sink = new WritableStream({
             write: (_, { signal }) => new Promise((resolve) => {
               signal.addEventListener("abort", () => resolve(log.push("cut short")));
               stop.abort(new Error("enough"));
             }),
             abort: () => { log.push("aborted"); },
           });
           await both(send(file), receive({ sink, signal }));
           return log;""",
    ) == ["cut short", "aborted"]


async def test_a_receiver_that_is_aborted_waits_for_no_sink(page: Page) -> None:
    sent, received, unread = await run(
        page,
        """const hangs = new Promise(() => {});
           const sink = { write: () => (stop.abort(new Error("enough")), hangs) };
           const results = await both(send(file), receive({ sink, signal }));
           return [...results, pair.unread];""",
    )
    assert sent == ["TransferFailed", "the receiver stopped"]
    assert received == ["Error", "enough"]
    assert unread == 0


@pytest.mark.parametrize(
    "sink",
    [
        "() => { throw new RangeError('full'); }",
        "async () => { throw new RangeError('full'); }",
        "{ begin() { throw new RangeError('full'); }, write() {} }",
        "{ write() { throw new RangeError('full'); } }",
        "{ async write() { throw new RangeError('full'); } }",
        "{ write() {}, close() { throw new RangeError('full'); } }",
        "{ write() { throw new RangeError('full'); }, abort() { throw new Error('again'); } }",
        "new WritableStream({ write() { throw new RangeError('full'); } })",
    ],
)
async def test_a_sink_that_takes_no_more_ends_it(page: Page, sink: str) -> None:
    sent, received, unread = await run(
        page,
        f"""const results = await both(send(file), receive({{ sink: {sink} }}));
            return [...results, pair.unread];""",
    )
    assert sent == ["TransferFailed", "the receiver can't store it: RangeError"]
    assert received == ["RangeError", "full"]
    assert unread == 0


async def test_a_transfer_goes_on_in_the_same_sink(page: Page) -> None:
    assert await run(
        page,
        """const sink = new client.BlobSink();
           let sent = 0;
           pair.before = () => { if (sent++ === 2) stop.abort(); };
           const [, broken] = await both(send(file, { signal }), receive({ sink }));
           const kept = await sink.blob.text();
           pair.before = () => {};
           const [again, { resumedFrom }] = await both(send(file), receive({ sink }));
           const whole = await sink.blob.text();
           const other = new File(["abc"], "digits.txt");
           const [third] = await both(send(other), receive({ sink }));
           const from = [again.resumedFrom, resumedFrom, third.resumedFrom];
           return [broken[0], kept, ...from, whole, await sink.blob.text()];""",
    ) == ["TransferFailed", "01234567", 8, 8, 0, "0123456789", "abc"]


@pytest.mark.parametrize("has", ["012x", "012345678x", "0123456789x"])
async def test_what_a_sink_has_and_is_wrong_comes_anew(page: Page, has: str) -> None:
    assert await run(
        page,
        f"let has = new Blob(['{has}']);"
        """
           const sink = {
             begin: () => has,
             write: (bytes) => { has = new Blob([has, bytes]); },
             empty: () => { has = new Blob(); },
           };
           const [{ resumedFrom }] = await both(send(file), receive({ sink }));
           return [resumedFrom, await has.text()];""",
    ) == [0, "0123456789"]


async def test_a_sink_that_begins_must_be_able_to_empty(page: Page) -> None:
    sent, received = await run(
        page,
        """const sink = { begin: () => new Blob(["0"]), write() {} };
           return await both(send(file), receive({ sink }));""",
    )
    assert sent == ["TransferFailed", "the receiver stopped"]
    assert received[0] == "ConfigError"


async def test_what_is_no_sink_takes_no_offer(page: Page) -> None:
    assert await run(
        page,
        """const sent = send(file);
               const error = await receive({ sink: {} }).catch((error) => error);
               const [, { blob }] = await both(sent, receive());
               return [error.name, await blob.text()];""",
    ) == ["ConfigError", "0123456789"]


async def test_offers_are_told_and_may_be_refused(page: Page) -> None:
    refused, again, nobody, offers, events, withdrawn = await run(
        page,
        """const first = send(file).catch((error) => [error.name, error.message]);
           while (!receiving.offers.length) await page.turn();
           const offers = receiving.offers;
           const results = [receiving.refuse("ann", "not today"), receiving.refuse("ann")];
           const refused = await first;
           const second = send(file, { signal }).catch((error) => error);
           while (!receiving.offers.length) await page.turn();
           stop.abort();
           await second;
           while (receiving.offers.length) await page.turn();
           return [refused, ...results, offers, pair.events.slice(0, 2), pair.events.slice(2)];""",
    )
    offer = {
        "kind": "FileOffered",
        "peerId": "ann",
        "name": "digits.txt",
        "size": 10,
        "sha256": hashlib.sha256(b"0123456789").hexdigest(),
    }
    assert refused == ["TransferFailed", "not today"]
    assert (again, nobody) == (True, False)
    assert offers == [offer]
    assert events == [offer, offer]
    gone = {"kind": "FileWithdrawn", "peerId": "ann", "name": "digits.txt"}
    assert withdrawn == [gone | {"reason": "the sender stopped"}]


async def test_nobody_offers_in_time(page: Page) -> None:
    assert await run(
        page,
        """stop.abort(new Error("enough"));
           const results = [];
           for (const options of [{ timeout: 0 }, { timeout: 0, sender: "eve" }, { signal }]) {
             const error = await receive(options).catch((error) => error);
             results.push([error.name, error.message]);
           }
           return results;""",
    ) == [
        ["MeshTimeout", "waited 0 s for a file"],
        ["MeshTimeout", "waited 0 s for a file from 'eve'"],
        ["Error", "enough"],
    ]


# --- a page and a bot -----------------------------------------------------------------------------


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def bot(page: Page) -> AsyncIterator[PeerManager]:
    """A bot that is connected to ``mesh`` in the page, over a relay."""
    origin = await page.evaluate("location.origin")
    config = RelayConfig(port=0, origins=(origin,))
    async with Relay(config) as relay, PeerManager(relay.url, room="files", peer_id="bot") as bot:
        await page.evaluate(
            """async ([url]) => {
              window.mesh = new client.PeerManager(url, { room: "files", peerId: "page" });
              await mesh.start();
              window.bot = await mesh.waitForPeer("bot");
            }""",
            [relay.url],
        )
        await bot.wait_for_peer("page")
        yield bot
        await page.evaluate("mesh.close()")


ANSWERS = """
  window.answered = 0;
  window.longest = 0;
  let last = performance.now();
  window.answering = setInterval(() => {
    const now = performance.now();
    longest = Math.max(longest, now - last);
    last = now;
    answered++;
  }, 5);
"""


async def test_a_large_file_to_the_page(page: Page, bot: PeerManager, tmp_path: Path) -> None:
    path = tmp_path / "large.bin"
    path.write_bytes(Random(1).randbytes(_LARGE))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    script = f"""async () => {{
      {ANSWERS}
      const progress = [];
      const {{ name, size, sha256, blob, sender }} = await mesh.receiveFile({{
        sender: "bot",
        onProgress: ({{ done }}) => progress.push(done),
      }});
      clearInterval(answering);
      // The browser's own sum of what is there.
      const sum = new Uint8Array(await crypto.subtle.digest("SHA-256", await blob.arrayBuffer()));
      const hex = Array.from(sum, (byte) => byte.toString(16).padStart(2, "0")).join("");
      return {{ name, size, sha256, hex, sender: sender.id, progress, answered, longest }};
    }}"""
    receiving = asyncio.create_task(page.evaluate(script))
    sent = await bot.peers["page"].send_file(path)
    received = await receiving
    print(f"page answered {received['answered']} times, once after {received['longest']:.0f} ms")
    assert sent.sha256 == received["sha256"] == received["hex"] == digest
    assert (received["name"], received["size"]) == ("large.bin", _LARGE)
    assert received["sender"] == "bot"
    assert received["progress"][0] == 0
    assert received["progress"][-1] == _LARGE
    assert received["progress"] == sorted(received["progress"])
    assert received["answered"] > 20


async def test_a_large_file_from_the_page(page: Page, bot: PeerManager, tmp_path: Path) -> None:
    script = f"""async () => {{
      const pieces = [];
      for (let size = 0; size < {_LARGE}; size += 50_000) {{
        pieces.push(crypto.getRandomValues(new Uint8Array(50_000)));
      }}
      const blob = new Blob(pieces);
      {ANSWERS}
      const progress = [];
      const onProgress = ({{ done }}) => progress.push(done);
      const {{ size, sha256 }} = await bot.sendFile(blob, {{ name: "large.bin", onProgress }});
      clearInterval(answering);
      return {{ size, sha256, progress, answered, longest }};
    }}"""
    sending = asyncio.create_task(page.evaluate(script))
    received = await bot.receive_file(tmp_path)
    sent = await sending
    print(f"page answered {sent['answered']} times, once after {sent['longest']:.0f} ms")
    assert received.size == sent["size"] == _LARGE
    with received.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    assert received.sha256 == sent["sha256"] == digest
    assert (sent["progress"][0], sent["progress"][-1]) == (0, _LARGE)
    assert sent["progress"] == sorted(sent["progress"])
    assert sent["answered"] > 20


async def test_a_page_refuses_and_both_go_on(page: Page, bot: PeerManager, tmp_path: Path) -> None:
    path = tmp_path / "small.txt"
    path.write_text("small")
    await page.evaluate(
        """() => {
          window.refused = new Promise((resolve) => {
            const refuse = ({ detail: { peerId, name } }) =>
              resolve([peerId, name, mesh.refuseFile("bot", "no")]);
            mesh.addEventListener("file-offered", refuse, { once: true });
          });
        }"""
    )
    with pytest.raises(TransferFailed, match="no"):
        await bot.peers["page"].send_file(path)
    assert await page.evaluate("refused") == ["bot", "small.txt", True]
    receiving = asyncio.create_task(
        page.evaluate("mesh.receiveFile().then(({ blob }) => blob.text())")
    )
    await bot.peers["page"].send_file(path)
    assert await receiving == "small"


async def test_a_page_stops_and_both_go_on(page: Page, bot: PeerManager, tmp_path: Path) -> None:
    script = """async () => {
      const stop = new AbortController();
      const onProgress = ({ done }) => { if (done) stop.abort(new Error("enough")); };
      const file = new File([new Uint8Array(50_000_000)], "zeros.bin");
      const error = await bot.sendFile(file, { onProgress, signal: stop.signal })
        .catch((error) => error);
      return error.message;
    }"""
    stopping = asyncio.create_task(page.evaluate(script))
    with pytest.raises(TransferFailed, match="the sender stopped"):
        await bot.receive_file(tmp_path)
    assert await stopping == "enough"
    sending = asyncio.create_task(page.evaluate("bot.sendFile(new File(['x'], 'x.txt'))"))
    received = await bot.receive_file(tmp_path)
    await sending
    assert received.path.read_text() == "x"
