"""Transfers of files over a wire that is made of a queue."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest

from meshpeer.config import MeshConfig
from meshpeer.core.messages import Member, MemberJoined, MemberLeft
from meshpeer.errors import (
    ConfigError,
    IdentityReplaced,
    MeshClosed,
    MeshTimeout,
    PeerClosed,
    ProtocolError,
    RequestFailed,
    TooManyChannels,
    TransferFailed,
)
from meshpeer.files import (
    CHUNK,
    FileProgress,
    FileReceived,
    Files,
    FileSent,
    _lock,
    _Partial,
    _Source,
)
from meshpeer.peer import Peer
from meshpeer.streams import Bell
from tests.test_manager import World

WINDOW = 2 * CHUNK


@dataclass(eq=False)
class FakePeer:
    """What of a `Peer` is looked at."""

    id: str
    closed_reason: str | None = None
    incarnation: str = "the first"


def fake(peer_id: str) -> Peer:
    return cast("Peer", FakePeer(peer_id))


@dataclass
class FakeAnswer:
    """The answer to one request; also the log of it, for requests made by hand."""

    future: asyncio.Future[Any] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    def reply(self, data: Any) -> None:
        if not self.future.done():
            self.future.set_result(data)

    def error(self, text: str) -> None:
        if not self.future.done():
            self.future.set_exception(RequestFailed(text))


class Wire:
    """One way between two: what is accepted arrives in order, as far as ``window`` allows."""

    def __init__(self, sender: Peer, to: Files) -> None:
        self.sender = sender
        self.to = to
        self.errors: list[ProtocolError] = []
        self.log: list[Any] = []
        """What arrived: requests, and the sizes of data."""
        self.mangle: Callable[[bytes], bytes] = lambda data: data
        self.before: Callable[[Any], None] = lambda item: None
        """Called with each item that is about to arrive."""
        self.held = False
        """Nothing arrives while this is set."""
        self._queue: list[tuple[Any, FakeAnswer | None]] = []
        self.bell = Bell()
        self._unread = 0
        self._gone = False
        self._waiting: set[asyncio.Future[Any]] = set()

    async def request(self, data: Any) -> Any:
        self._check()
        answer = FakeAnswer()
        self._queue.append((data, answer))
        self._waiting.add(answer.future)
        self.bell.ring()
        try:
            return await answer.future
        finally:
            self._waiting.discard(answer.future)

    async def send(self, data: bytes) -> None:
        self._check()
        while self._unread >= WINDOW:
            await self.bell.wait()
            self._check()
        self._unread += len(data)
        self._queue.append((data, None))
        self.bell.ring()

    def _check(self) -> None:
        if self._gone:
            raise PeerClosed("peer is gone", reason="left")

    def cut(self) -> None:
        """The process at the other end is gone, and so is this one to it."""
        self._gone = True
        self._queue.clear()
        for future in self._waiting:
            if not future.done():
                future.set_exception(PeerClosed("peer is gone", reason="left"))
        self.bell.ring()
        cast("FakePeer", self.sender).closed_reason = "left"
        self.to.peer_left(self.sender)

    async def run(self) -> None:
        while True:
            while not self._queue or self.held:
                await self.bell.wait()
            data, answer = self._queue.pop(0)
            self.before(data)
            if self._gone:
                continue
            self.log.append(len(data) if isinstance(data, bytes) else data)
            try:
                if answer is not None:
                    self.to.request(self.sender, data, answer)
                else:
                    self.to.data(self.sender, self.mangle(data), self._taken(len(data)))
            except ProtocolError as exc:
                self.errors.append(exc)
            self.bell.ring()
            await asyncio.sleep(0)

    async def something(self) -> None:
        """Wait until something has arrived."""
        while not self.log:
            await self.bell.wait()

    def _taken(self, size: int) -> Callable[[], None]:
        times = iter([size])

        def taken() -> None:
            self._unread -= next(times)  # StopIteration when it is called twice
            self.bell.ring()

        return taken

    @property
    def unread(self) -> int:
        """Bytes whose credit was not given back."""
        return self._unread


class Pair:
    """Ann sends, Bob receives."""

    def __init__(self, folder: Path) -> None:
        self.here = folder / "here"
        self.there = folder / "there"
        self.here.mkdir()
        self.there.mkdir()
        self.ann, self.bob = fake("ann"), fake("bob")
        self.sending, self.receiving = Files(), Files()
        self.wires: list[Wire] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self.wire = self.connect(self.ann)

    def connect(self, sender: Peer) -> Wire:
        """A wire from this sender to Bob."""
        wire = Wire(sender, self.receiving)
        self.wires.append(wire)
        self.tasks.add(asyncio.create_task(wire.run()))
        return wire

    def restart(self) -> None:
        """Both come back as other processes."""
        self.ann, self.bob = fake("ann"), fake("bob")
        self.sending, self.receiving = Files(), Files()
        self.wire = self.connect(self.ann)

    def file(self, size: int, name: str = "notes.txt") -> tuple[Path, bytes]:
        data = os.urandom(size)
        path = self.here / name
        path.write_bytes(data)
        return path, data

    def send(self, path: Path, **options: Any) -> asyncio.Task[FileSent]:
        return asyncio.create_task(self.sending.send(self.bob, self.wire, path, **options))

    def receive(self, **options: Any) -> asyncio.Task[FileReceived]:
        return asyncio.create_task(self.receiving.receive(self.there, **options))

    def stored(self) -> list[str]:
        return sorted(path.name for path in self.there.iterdir())

    def partial(self, path: Path) -> Path:
        """Where Bob keeps what he has of this file."""
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return self.there / f".{path.name}.{digest[:16]}.part"


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    pair = Pair(tmp_path)
    yield pair
    await pair.sending.close()
    await pair.receiving.close()
    for task in pair.tasks:
        task.cancel()
    for result in await asyncio.gather(*pair.tasks, return_exceptions=True):
        assert isinstance(result, asyncio.CancelledError), result
    for wire in pair.wires:
        assert wire.errors == []


@asynccontextmanager
async def arrived(wire: Wire, count: int) -> AsyncIterator[None]:
    """The body runs when so many chunks have arrived, and nothing arrives until it ends."""
    seen = asyncio.Event()

    def look(item: Any) -> None:
        if isinstance(item, bytes) and sum(isinstance(each, int) for each in wire.log) + 1 == count:
            wire.held = True
            seen.set()

    wire.before = look
    await seen.wait()
    yield
    wire.before = lambda item: None
    wire.held = False
    wire.bell.ring()


@pytest.mark.parametrize("size", [0, 1, CHUNK, CHUNK + 1, 10 * CHUNK + 7])
async def test_a_file_arrives_as_it_was(pair: Pair, size: int) -> None:
    path, data = pair.file(size)
    sending, receiving = pair.send(path), pair.receive()
    sent, received = await sending, await receiving
    digest = hashlib.sha256(data).hexdigest()
    assert sent == FileSent(path=path, name="notes.txt", size=size, sha256=digest, resumed_from=0)
    assert received == FileReceived(
        path=pair.there / "notes.txt",
        name="notes.txt",
        size=size,
        sha256=digest,
        sender=pair.ann,
        resumed_from=0,
    )
    assert received.path.read_bytes() == data
    assert pair.stored() == ["notes.txt"]
    assert pair.wire.unread == 0


@pytest.mark.parametrize(("ours", "theirs"), [(1000, CHUNK), (CHUNK, 1000)])
async def test_no_message_is_larger_than_both_sides_take(
    pair: Pair, ours: int, theirs: int
) -> None:
    path, data = pair.file(2500)
    pair.sending, pair.receiving = Files(chunk=ours), Files(chunk=theirs)
    pair.wire.to = pair.receiving
    sending, receiving = pair.send(path), pair.receive()
    await sending
    assert (await receiving).path.read_bytes() == data
    assert [item for item in pair.wire.log if isinstance(item, int)] == [1000, 1000, 500]


async def test_files_to_one_peer_go_one_after_the_other(pair: Pair) -> None:
    files = [pair.file(3 * CHUNK + n, f"{n}") for n in range(3)]
    sending = [pair.send(path) for path, _ in files]
    received = [await pair.receive() for _ in files]
    await asyncio.gather(*sending)
    assert [each.path.read_bytes() for each in received] == [data for _, data in files]
    assert [item["name"] for item in pair.wire.log if "name" in str(item)] == ["0", "1", "2"]


async def test_a_slow_disk_holds_the_sender_back_and_nobody_else(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The credit comes back when bytes are written, and the event loop runs on meanwhile."""
    slow = threading.Event()
    write = _Partial.write

    def blocked(part: _Partial, chunks: list[bytes]) -> None:
        slow.wait()
        write(part, chunks)

    monkeypatch.setattr(_Partial, "write", blocked)
    path, _ = pair.file(10 * CHUNK)
    sending, receiving = pair.send(path), pair.receive()
    try:
        while pair.wire.unread < WINDOW:
            await pair.wire.bell.wait()
        for _ in range(1000):
            await asyncio.sleep(0)
        assert pair.wire.unread == WINDOW
    finally:
        slow.set()
    await sending
    await receiving
    assert pair.wire.unread == 0


async def test_what_is_no_file_is_not_offered(pair: Pair) -> None:
    fifo = pair.here / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(ConfigError, match="regular file"):
        await pair.send(fifo)
    with pytest.raises(ConfigError, match="regular file"):
        await pair.send(pair.here)
    with pytest.raises(FileNotFoundError):
        await pair.send(pair.here / "missing")
    assert pair.wire.log == []


# --- names ----------------------------------------------------------------------------------------

HOSTILE = [
    "",
    ".",
    "..",
    "../up",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "..\\up",
    ".bashrc",
    "nul\0",
    "line\nbreak",
    "esc\x1b[2J",
    "\x7f",
    "\u2028",
    "fdp\u202eexe.pdf",
    "fdp\u2067exe.pdf",
    "\ud800",
    "x" * 256,
    "ü" * 128,
]


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_name_is_refused_to_its_sender(pair: Pair, name: str) -> None:
    receiving = pair.receive()
    offer = {"do": "offer", "name": name, "size": 1, "sha256": "0" * 64}
    with pytest.raises(RequestFailed, match="the name"):
        await pair.wire.request(offer)
    # The one who waits goes on waiting, and the next file comes.
    path, data = pair.file(10)
    await pair.send(path)
    assert (await receiving).path.read_bytes() == data
    assert pair.stored() == ["notes.txt"]


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_name_that_nobody_takes_is_not_offered(pair: Pair, name: str) -> None:
    path, _ = pair.file(1)
    with pytest.raises(ConfigError, match="the name"):
        await pair.send(path, name=name)
    assert pair.wire.log == []


@pytest.mark.parametrize("name", ["x" * 255, "ü" * 127, "a b", "…", "a", "a..b", "~", "-rf", "*"])
async def test_a_name_may_be_any_other(pair: Pair, name: str) -> None:
    path, data = pair.file(5)
    sending, receiving = pair.send(path, name=name), pair.receive()
    assert (await sending).name == name
    received = await receiving
    assert received.path == pair.there / name
    assert received.path.read_bytes() == data


@pytest.mark.parametrize(
    ("name", "second", "third"),
    [
        ("notes.txt", "notes (2).txt", "notes (3).txt"),
        ("notes", "notes (2)", "notes (3)"),
        ("x" * 251 + ".txt", "x" * 247 + " (2).txt", "x" * 247 + " (3).txt"),
        ("a." + "x" * 253, "a." + "x" * 249 + " (2)", "a." + "x" * 249 + " (3)"),
    ],
)
async def test_nothing_is_overwritten(pair: Pair, name: str, second: str, third: str) -> None:
    (pair.there / name).write_text("precious")
    (pair.there / second).symlink_to(pair.here / "elsewhere")
    path, data = pair.file(5)
    sending, receiving = pair.send(path, name=name), pair.receive()
    await sending
    assert (await receiving).path == pair.there / third
    assert (pair.there / name).read_text() == "precious"
    assert (pair.there / third).read_bytes() == data
    assert not (pair.here / "elsewhere").exists()
    assert len(pair.stored()) == 3


async def test_the_directory_is_made(pair: Pair) -> None:
    path, _ = pair.file(5)
    pair.there = pair.there / "one" / "two"
    sending, receiving = pair.send(path), pair.receive()
    await sending
    assert (await receiving).path == pair.there / "notes.txt"


# --- resumed --------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["sender", "receiver"])
async def test_a_transfer_goes_on_where_a_dead_process_left_it(pair: Pair, who: str) -> None:
    path, data = pair.file(10 * CHUNK + 5)
    sending, receiving = pair.send(path), pair.receive()
    async with arrived(pair.wire, 5):
        if who == "sender":
            pair.wire.cut()
            ended: type[Exception] = PeerClosed
        else:
            await pair.receiving.close()
            pair.wire.cut()
            ended = MeshClosed
    with pytest.raises(PeerClosed):
        await sending
    with pytest.raises(ended):
        await receiving
    pair.restart()
    assert pair.stored() == [pair.partial(path).name]
    kept = pair.partial(path).stat().st_size
    assert kept in (3 * CHUNK, 4 * CHUNK)

    progress: list[FileProgress] = []
    sending, receiving = pair.send(path, on_progress=progress.append), pair.receive()
    assert (await sending).resumed_from == kept
    received = await receiving
    assert received.resumed_from == kept
    assert received.path.read_bytes() == data
    assert sum(item for item in pair.wire.log if isinstance(item, int)) == len(data) - kept
    assert progress[0].done == kept
    assert pair.stored() == ["notes.txt"]


async def test_nothing_is_sent_of_what_is_all_there(pair: Pair) -> None:
    path, data = pair.file(3 * CHUNK)
    pair.partial(path).write_bytes(data)
    sending, receiving = pair.send(path), pair.receive()
    assert (await sending).resumed_from == len(data)
    assert (await receiving).path.read_bytes() == data
    assert not [item for item in pair.wire.log if isinstance(item, int)]


async def test_what_was_there_and_is_wrong_is_sent_anew(pair: Pair) -> None:
    path, data = pair.file(3 * CHUNK)
    pair.partial(path).write_bytes(b"x" + data[1 : 2 * CHUNK])
    sending, receiving = pair.send(path), pair.receive()
    assert (await sending).resumed_from == 0
    received = await receiving
    assert received.resumed_from == 0
    assert received.path.read_bytes() == data
    assert [item for item in pair.wire.log if isinstance(item, int)] == [CHUNK] * 4
    assert pair.stored() == ["notes.txt"]


async def test_a_partial_file_that_is_too_long_is_no_beginning(pair: Pair) -> None:
    path, data = pair.file(CHUNK)
    pair.partial(path).write_bytes(data + b"x")
    sending, receiving = pair.send(path), pair.receive()
    assert (await sending).resumed_from == 0
    assert (await receiving).path.read_bytes() == data


@pytest.mark.parametrize("found", [False, True])
async def test_a_wrong_sum_fails_on_both_sides_and_leaves_nothing(pair: Pair, found: bool) -> None:
    path, data = pair.file(3 * CHUNK)
    if found:
        pair.partial(path).write_bytes(data[:CHUNK])
    pair.wire.mangle = lambda chunk: bytes(len(chunk))
    sending, receiving = pair.send(path), pair.receive()
    with pytest.raises(TransferFailed, match="not what was sent"):
        await sending
    with pytest.raises(TransferFailed, match="not what was sent"):
        await receiving
    assert pair.stored() == []
    assert len([item for item in pair.wire.log if isinstance(item, int)]) == (5 if found else 3)
    # The next one is not troubled.
    pair.wire.mangle = lambda chunk: chunk
    sending, receiving = pair.send(path), pair.receive()
    await sending
    assert (await receiving).path.read_bytes() == data


async def test_the_same_file_from_two_at_once(pair: Pair) -> None:
    path, data = pair.file(5 * CHUNK)
    cat = pair.connect(fake("cat"))
    sending, receiving = pair.send(path), pair.receive()
    async with arrived(pair.wire, 3):
        second = pair.receive(sender="cat")
        await pair.sending.send(fake("bob"), cat, path)
        assert (await second).path == pair.there / "notes.txt"
        # What the first has written is as it was.
        assert pair.stored() == sorted([pair.partial(path).name, "notes.txt"])
    assert (await sending).resumed_from == 0
    assert (await receiving).path == pair.there / "notes (2).txt"
    for stored in pair.stored():
        assert (pair.there / stored).read_bytes() == data


# --- stopped --------------------------------------------------------------------------------------


async def test_a_sender_that_is_cancelled_tells_the_receiver(pair: Pair) -> None:
    path, data = pair.file(10 * CHUNK)
    sending, receiving = pair.send(path), pair.receive()
    async with arrived(pair.wire, 5):
        sending.cancel()
        # At once, however long the other side takes to hear of it.
        with pytest.raises(asyncio.CancelledError):
            await sending
    with pytest.raises(TransferFailed, match="the sender stopped"):
        await receiving
    kept = pair.partial(path).stat().st_size
    assert kept % CHUNK == 0
    assert kept > 0
    sending, receiving = pair.send(path), pair.receive()
    assert (await sending).resumed_from == kept
    assert (await receiving).path.read_bytes() == data


async def test_a_receiver_that_is_cancelled_tells_the_sender(pair: Pair) -> None:
    path, data = pair.file(10 * CHUNK)
    sending, receiving = pair.send(path), pair.receive()
    async with arrived(pair.wire, 5):
        receiving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await receiving
    with pytest.raises(TransferFailed, match="the receiver stopped"):
        await sending
    kept = pair.partial(path).stat().st_size
    assert kept > 0
    # What was on its way is dropped, and the next one begins after it.
    sending, receiving = pair.send(path), pair.receive()
    assert (await sending).resumed_from == kept
    assert (await receiving).path.read_bytes() == data
    assert pair.wire.unread == 0


async def test_a_sender_that_is_cancelled_takes_its_offer_back(pair: Pair) -> None:
    path, _ = pair.file(CHUNK, "first")
    sending = pair.send(path)
    await pair.wire.something()
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    path, data = pair.file(CHUNK, "second")
    sending, receiving = pair.send(path), pair.receive()
    await sending
    received = await receiving
    assert (received.name, received.path.read_bytes()) == ("second", data)


async def test_who_waits_for_its_turn_may_be_cancelled(pair: Pair) -> None:
    first, _ = pair.file(CHUNK, "first")
    second, _ = pair.file(CHUNK, "second")
    sending = pair.send(first)
    await pair.wire.something()
    waiting = pair.send(second)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (await pair.receive()).name == "first"
    await sending
    assert [item.get("name") for item in pair.wire.log if isinstance(item, dict)] == ["first", None]


async def test_cancelled_while_it_waits_for_an_offer_it_takes_none(pair: Pair) -> None:
    receiving = pair.receive()
    await asyncio.sleep(0)
    receiving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await receiving
    path, data = pair.file(5)
    sending = pair.send(path)
    assert (await pair.receive()).path.read_bytes() == data
    await sending


@pytest.mark.parametrize("side", ["sender", "receiver"])
async def test_what_reports_of_progress_raise_ends_it(pair: Pair, side: str) -> None:
    def broken(progress: FileProgress) -> None:
        raise LookupError("mine")

    path, _ = pair.file(3 * CHUNK)
    mine, none = {"on_progress": broken}, dict[str, Any]()
    sending = pair.send(path, **(mine if side == "sender" else none))
    receiving = pair.receive(**(mine if side == "receiver" else none))
    tasks = {"sender": sending, "receiver": receiving}
    with pytest.raises(LookupError, match="mine"):
        await tasks.pop(side)
    (other,) = tasks.values()
    with pytest.raises(TransferFailed, match=f"the {side} stopped"):
        await other


async def test_a_full_disk_is_told_to_both(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("meshpeer.files._Partial.write", full)
    path, _ = pair.file(3 * CHUNK)
    sending, receiving = pair.send(path), pair.receive()
    with pytest.raises(OSError, match="No space"):
        await receiving
    with pytest.raises(TransferFailed, match="can't store it: No space left on device"):
        await sending


async def test_a_file_that_gets_shorter_is_not_sent(pair: Pair) -> None:
    path, _ = pair.file(10 * CHUNK)
    sending, receiving = pair.send(path), pair.receive()
    async with arrived(pair.wire, 2):
        os.truncate(path, 3 * CHUNK)
    with pytest.raises(TransferFailed, match="became shorter"):
        await sending
    with pytest.raises(TransferFailed, match="the file changed"):
        await receiving


async def test_a_file_that_changes_fails_and_leaves_nothing(pair: Pair) -> None:
    path, _ = pair.file(10 * CHUNK)
    sending, receiving = pair.send(path), pair.receive()
    async with arrived(pair.wire, 2):
        with path.open("r+b") as file:
            file.seek(9 * CHUNK)
            file.write(b"changed")
    for side in (sending, receiving):
        with pytest.raises(TransferFailed, match="not what was sent"):
            await side
    assert pair.stored() == []


async def test_the_next_file_is_not_offered_before_the_last_is_said_to_be_over(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, data = pair.file(10 * CHUNK)
    late = asyncio.Event()
    request = pair.wire.request

    async def slow(message: Any) -> Any:
        if message["do"] == "stop":
            await late.wait()
        return await request(message)

    monkeypatch.setattr(pair.wire, "request", slow)
    sending, receiving = pair.send(path), pair.receive()
    async with arrived(pair.wire, 5):
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
    loop = asyncio.get_running_loop()
    sum_up = _Source.sum_up

    def then_go_on(turns: int) -> None:
        if turns:
            loop.call_soon(then_go_on, turns - 1)
        else:
            late.set()

    def summed(source: _Source) -> bool:
        # Some turns of the loop after the sum is known, in which it could be offered.
        loop.call_soon_threadsafe(then_go_on, 100)
        return sum_up(source)

    monkeypatch.setattr(_Source, "sum_up", summed)
    sending = pair.send(path)
    with pytest.raises(TransferFailed):
        await receiving
    assert (await pair.receive()).path.read_bytes() == data
    await sending
    does = [item["do"] for item in pair.wire.log if isinstance(item, dict)]
    assert does == ["offer", "finish", "stop", "offer", "finish"]


async def test_cancelled_while_what_was_there_is_summed_up(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, data = pair.file(3 * CHUNK)
    pair.partial(path).write_bytes(data[:CHUNK])
    begun, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def blocked(part: _Partial) -> bool:
        loop.call_soon_threadsafe(begun.set)
        go_on.wait()
        return False

    monkeypatch.setattr(_Partial, "sum_up", blocked)
    sending, receiving = pair.send(path), pair.receive()
    await begun.wait()
    receiving.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await receiving
    with pytest.raises(TransferFailed, match="the receiver stopped"):
        await sending
    assert pair.partial(path).read_bytes() == data[:CHUNK]


async def test_cancelled_when_all_is_done_it_is_done(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, data = pair.file(3 * CHUNK)
    begun, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    publish = _Partial.publish

    def blocked(part: _Partial) -> None:
        loop.call_soon_threadsafe(begun.set)
        go_on.wait()
        publish(part)

    monkeypatch.setattr(_Partial, "publish", blocked)
    sending, receiving = pair.send(path), pair.receive()
    await begun.wait()
    receiving.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await receiving
    assert (await sending).size == len(data)
    assert (pair.there / "notes.txt").read_bytes() == data


async def test_nothing_is_left_of_a_file_of_which_nothing_came(pair: Pair) -> None:
    offered = FakeAnswer()
    pair.receiving.request(pair.ann, OFFER, offered)
    receiving = pair.receive()
    await offered.future
    assert len(pair.stored()) == 1
    receiving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await receiving
    assert pair.stored() == []


async def test_a_file_that_can_not_get_its_name_is_kept(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*args: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    path, data = pair.file(3 * CHUNK)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", refused)
        sending, receiving = pair.send(path), pair.receive()
        with pytest.raises(PermissionError):
            await receiving
        with pytest.raises(TransferFailed, match="can't store it"):
            await sending
    assert pair.stored() == [pair.partial(path).name]
    sending, receiving = pair.send(path), pair.receive()
    assert (await sending).resumed_from == len(data)
    assert (await receiving).path.read_bytes() == data


async def test_a_partial_file_that_gets_its_name_before_it_is_locked_is_not_written_to(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, data = pair.file(3 * CHUNK)
    pair.partial(path).write_bytes(data[:CHUNK])
    lock = _lock

    def late(fd: int) -> bool:
        if not (pair.there / "notes.txt").exists():
            pair.partial(path).rename(pair.there / "notes.txt")
        return lock(fd)

    monkeypatch.setattr("meshpeer.files._lock", late)
    sending, receiving = pair.send(path), pair.receive()
    await sending
    received = await receiving
    assert (received.path.name, received.resumed_from) == ("notes (2).txt", 0)
    assert received.path.read_bytes() == data
    assert (pair.there / "notes.txt").read_bytes() == data[:CHUNK]


async def test_a_request_is_always_answered() -> None:
    bob, peer, offered = Files(), fake("ann"), FakeAnswer()
    bob.request(peer, OFFER, offered)
    bob.request(peer, {"do": "stop", "why": "bored"}, FakeAnswer())
    with pytest.raises(RequestFailed, match="stopped"):
        await offered.future
    await bob.close()
    late = FakeAnswer()
    bob.request(peer, OFFER, late)
    with pytest.raises(RequestFailed, match="closed"):
        await late.future


# --- ends -----------------------------------------------------------------------------------------


async def test_closing_ends_who_receives(pair: Pair) -> None:
    path, _ = pair.file(10 * CHUNK)
    sending, receiving = pair.send(path), pair.receive()
    waiting = pair.receive()
    async with arrived(pair.wire, 5):
        await pair.receiving.close()
    for each in (receiving, waiting):
        with pytest.raises(MeshClosed):
            await each
    assert pair.stored() == [pair.partial(path).name]
    with pytest.raises(MeshClosed):
        await pair.receive()
    gone = Files()
    waiting = asyncio.create_task(gone.receive(pair.there))
    await asyncio.sleep(0)
    gone.end(IdentityReplaced("a newer process has the peer id"))
    await gone.close()
    with pytest.raises(IdentityReplaced):
        await waiting
    pair.wire.cut()
    with pytest.raises(PeerClosed):
        await sending
    await pair.sending.close()
    with pytest.raises(MeshClosed):
        await pair.send(path)


async def test_closing_waits_for_no_farewell(pair: Pair) -> None:
    path, _ = pair.file(10 * CHUNK)
    sending, receiving = pair.send(path), pair.receive()
    async with arrived(pair.wire, 5):
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        await pair.sending.close()
    receiving.cancel()
    with suppress(asyncio.CancelledError):
        await receiving


async def test_an_offer_of_a_peer_that_left_is_gone(pair: Pair) -> None:
    path, _ = pair.file(5)
    sending = pair.send(path)
    await pair.wire.something()
    pair.wire.cut()
    with pytest.raises(PeerClosed):
        await sending
    with pytest.raises(MeshTimeout, match="waited 0 s for a file"):
        await pair.receive(timeout=0)


@pytest.mark.parametrize("accepted", [True, False])
async def test_who_was_given_up_and_did_not_notice_gets_its_answer(
    pair: Pair, accepted: bool
) -> None:
    path, data = pair.file(10 * CHUNK)
    sending = pair.send(path)
    if accepted:
        receiving = pair.receive()
        async with arrived(pair.wire, 5):
            pair.receiving.peer_left(pair.ann)
            with pytest.raises(PeerClosed):
                await receiving
    else:
        await pair.wire.something()
        pair.receiving.peer_left(pair.ann)
    pair.receiving.peer_joined(fake("eve"))
    pair.wire.sender = fake("ann")
    pair.receiving.peer_joined(pair.wire.sender)
    with pytest.raises(TransferFailed, match="given the sender up"):
        await sending
    receiving = pair.receive()
    again = await pair.send(path)
    assert (await receiving).path.read_bytes() == data
    assert (again.resumed_from > 0) is accepted


async def test_only_files_of_the_sender_asked_for(pair: Pair) -> None:
    path, data = pair.file(5)
    cat = pair.connect(fake("cat"))
    sending = pair.send(path)
    second = asyncio.create_task(pair.sending.send(fake("bob"), cat, path, name="hers"))
    received = await pair.receive(sender="cat")
    assert (received.sender.id, received.name) == ("cat", "hers")
    assert (await pair.receive(sender="ann")).path.read_bytes() == data
    with pytest.raises(MeshTimeout, match="from 'dan'"):
        await pair.receive(sender="dan", timeout=0)
    await sending
    await second


async def test_so_many_offers_wait_and_no_more(pair: Pair) -> None:
    path, _ = pair.file(5)
    wires = [pair.connect(fake(f"peer {n}")) for n in range(17)]
    to_bob = [fake("bob") for _ in wires]
    sending = [
        asyncio.create_task(pair.sending.send(bob, wire, path, name=wire.sender.id))
        for bob, wire in zip(to_bob, wires, strict=True)
    ]
    done, left = await asyncio.wait(sending, return_when=asyncio.FIRST_COMPLETED)
    (refused,) = done
    with pytest.raises(TransferFailed, match="16 files wait"):
        await refused
    names = {(await pair.receive()).name for _ in left}
    assert len(names) == 16
    await asyncio.gather(*left)


# --- progress -------------------------------------------------------------------------------------


async def test_progress_is_told_at_both_ends_and_not_too_often(pair: Pair) -> None:
    path, data = pair.file(100 * CHUNK)
    sent: list[FileProgress] = []
    stored: list[FileProgress] = []
    loop = asyncio.get_running_loop()
    began = loop.time()
    sending = pair.send(path, on_progress=sent.append)
    receiving = pair.receive(on_progress=stored.append)
    await sending
    await receiving
    most = (loop.time() - began) / 0.1 + 2
    for reports, peer in ((sent, pair.bob), (stored, pair.ann)):
        done = [report.done for report in reports]
        assert done[0] == 0
        assert done[-1] == len(data)
        assert done == sorted(done)
        assert len(done) <= most
        assert {(r.peer, r.name, r.size) for r in reports} == {(peer, "notes.txt", len(data))}


# --- bad input ------------------------------------------------------------------------------------

OFFER = {"do": "offer", "name": "a", "size": 3, "sha256": "0" * 64}
ACCEPTED: dict[str, Any] = {"offset": 0, "chunk": 4}


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        "offer",
        {},
        {"do": "dance"},
        {"do": "offer"},
        OFFER | {"name": 1},
        OFFER | {"size": -1},
        OFFER | {"size": 1.5},
        OFFER | {"size": 2**53},
        OFFER | {"size": True},
        OFFER | {"sha256": "0" * 63},
        OFFER | {"sha256": "0" * 64 + "\n"},
        OFFER | {"sha256": "G" * 64},
        {"do": "stop"},
        {"do": "stop", "why": "x" * 501},
        {"do": "finish"},
    ],
)
async def test_a_request_that_is_none_changes_nothing(data: Any) -> None:
    files, peer, answer = Files(), fake("ann"), FakeAnswer()
    with pytest.raises(ProtocolError):
        files.request(peer, data, answer)
    assert not answer.future.done()
    files.request(peer, OFFER, answer)
    with pytest.raises(ProtocolError):
        files.request(peer, data, FakeAnswer())
    assert not answer.future.done()
    await files.close()


async def test_bytes_out_of_place(tmp_path: Path) -> None:
    files, peer, offered = Files(), fake("ann"), FakeAnswer()
    taken: list[int] = []

    def data(payload: bytes) -> None:
        files.data(peer, payload, lambda: taken.append(len(payload)))

    with pytest.raises(ProtocolError, match="not offered"):
        data(b"x")
    files.request(peer, OFFER, offered)
    with pytest.raises(ProtocolError, match="not accepted"):
        data(b"x")
    with pytest.raises(ProtocolError, match="before the last"):
        files.request(peer, OFFER, FakeAnswer())
    receiving = asyncio.create_task(files.receive(tmp_path))
    assert await offered.future == {"offset": 0, "chunk": CHUNK}
    for payload in (b"", b"xxxx"):
        with pytest.raises(ProtocolError, match="bytes where 3"):
            data(payload)
    data(b"xx")
    with pytest.raises(ProtocolError, match="bytes where 1"):
        data(b"xx")
    finishing = FakeAnswer()
    files.request(peer, {"do": "finish"}, finishing)
    with pytest.raises(ProtocolError, match="out of turn"):
        files.request(peer, {"do": "finish"}, FakeAnswer())
    receiving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await receiving
    with pytest.raises(RequestFailed, match="the receiver stopped"):
        await finishing.future
    # It is over, but what was on its way still comes, and no more than was offered.
    data(b"x")
    with pytest.raises(ProtocolError, match="bytes where 0"):
        data(b"x")
    assert taken == [2, 1]
    stopped = FakeAnswer()
    files.request(peer, {"do": "stop", "why": "bored"}, stopped)
    assert await stopped.future == {}
    await files.close()


@dataclass
class Liar:
    """A wire whose other side answers what it likes, and takes everything."""

    answers: list[Any]
    asked: list[Any] = field(default_factory=list)
    sent: asyncio.Event = field(default_factory=asyncio.Event)
    stopped: asyncio.Event = field(default_factory=asyncio.Event)

    async def request(self, data: Any) -> Any:
        self.asked.append(data)
        if data["do"] == "stop":
            self.stopped.set()
            return {}
        if data["do"] == "finish":
            await self.sent.wait()
        return self.answers.pop(0)

    async def send(self, data: bytes) -> None:
        self.sent.set()


class _Full(Liar):
    """The other side takes no channel more."""

    async def request(self, data: Any) -> Any:
        self.asked.append(data)
        raise TooManyChannels("one more than the other side takes")


async def test_who_can_be_told_nothing_is_not_told_that_no_file_comes(tmp_path: Path) -> None:
    files, wire = Files(), _Full([])
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    with pytest.raises(TooManyChannels):
        await files.send(fake("bob"), wire, path)
    await files.close()
    assert [each["do"] for each in wire.asked] == ["offer"]


@pytest.mark.parametrize(
    "answers",
    [
        [None],
        [{}],
        [{"offset": 0}],
        [ACCEPTED | {"offset": -1}],
        [ACCEPTED | {"offset": 11}],
        [ACCEPTED | {"offset": "0"}],
        [ACCEPTED | {"chunk": 0}],
        [ACCEPTED, None],
        [ACCEPTED, {"again": 1}],
        [ACCEPTED, {"again": True}],
        [ACCEPTED | {"offset": 1}, {"again": True}, {"again": True}],
    ],
)
async def test_answers_that_are_none_end_it(tmp_path: Path, answers: list[Any]) -> None:
    files, wire = Files(), Liar(answers)
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    with pytest.raises(ProtocolError):
        await files.send(fake("bob"), wire, path)
    await wire.stopped.wait()
    assert wire.asked[-1] == {"do": "stop", "why": "the sender stopped"}
    await files.close()


# --- between managers -----------------------------------------------------------------------------


async def test_files_both_ways_at_once(tmp_path: Path) -> None:
    """Answers go the way of the bytes of the other file, and none is lost when that is full."""
    path = tmp_path / "file"
    path.write_bytes(os.urandom(4_000_000))
    config = MeshConfig(relay_after=None, send_window=32 * 1024)
    async with World() as world:
        a, b = await world.pair(config=config)
        async with asyncio.TaskGroup() as group:
            for mesh, peer in ((a, a.peers["b"]), (b, b.peers["a"])):
                for n in range(3):
                    group.create_task(peer.send_file(path, name=str(n)))
                    group.create_task(mesh.receive_file(tmp_path / mesh.peer_id))
    for peer_id in "ab":
        for n in range(3):
            assert (tmp_path / peer_id / str(n)).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("small", ["a", "b"])
async def test_files_where_messages_are_small(tmp_path: Path, small: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(100_000))
    config = MeshConfig(relay_after=None)
    async with World() as world:
        a, b = [
            await world.start(
                peer_id,
                config=replace(config, max_message_size=1024) if peer_id == small else config,
            )
            for peer_id in "ab"
        ]
        receiving = asyncio.create_task(b.receive_file(tmp_path / "there"))
        await (await a.wait_for_peer("b")).send_file(path)
        assert (await receiving).path.read_bytes() == path.read_bytes()


async def test_an_offer_to_who_gives_the_sender_up_and_finds_it_again(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(CHUNK))
    async with World() as world:
        a, b = await world.pair()
        sending = asyncio.create_task(a.peers["b"].send_file(path))
        shell = b._shell
        await shell.files._bell.wait()
        assert shell.files._offers
        # As when "a" was cut off for so long that its seat ran out, and only "b" saw it.
        for event in (
            MemberLeft("a", a.incarnation, "timeout"),
            MemberJoined(Member("a", a.incarnation)),
        ):
            world.connection_of(b, "a").lose()
            await asyncio.sleep(0)
            shell.do(shell.node.signaling(event, shell.now()))
        with pytest.raises(TransferFailed, match="given the sender up"):
            await sending


async def test_a_manager_that_closes_says_so_to_who_receives(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(CHUNK))
    begun, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    open_it = _Partial.open

    def blocked(part: _Partial) -> None:
        loop.call_soon_threadsafe(begun.set)
        go_on.wait()
        open_it(part)

    async with World() as world:
        a, b = await world.pair()
        with pytest.MonkeyPatch.context() as patch:
            # So the file is on its way when the manager closes.
            patch.setattr(_Partial, "open", blocked)
            sending = asyncio.create_task(a.peers["b"].send_file(path))
            receiving = asyncio.create_task(b.receive_file(tmp_path / "there"))
            await begun.wait()
            await b.close()
            go_on.set()
            with pytest.raises(MeshClosed):
                await receiving
        with pytest.raises(PeerClosed):
            await sending
