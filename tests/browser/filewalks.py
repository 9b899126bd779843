"""Random walks of `meshpeer.files.Files`, with all that came of each step, for files.js to repeat.

A walk is a list of steps ``[operation, what came of it]``; `page/files.js` does the same.
What came of one is sorted: within a step, who is told first is the event loop's affair.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, cast
from unittest.mock import patch

import msgspec

from meshpeer.errors import IdentityReplaced, MeshError, PeerClosed, RequestFailed
from meshpeer.files import FileProgress, Files, FileSent
from meshpeer.peer import Peer

__all__ = ["receiving_walk", "sending_walk"]

_CONTENT = b"x"
_STEPS = 20
_CHUNK = 4
_PEERS = ["ann", "bob"]


def _sum(size: int) -> str:
    return hashlib.sha256(_CONTENT * size).hexdigest()


@dataclass(eq=False)
class _Peer:
    """What of a `Peer` is looked at."""

    id: str
    incarnation: str
    closed_reason: str | None = None


async def _at_once(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


def _of_error(error: BaseException) -> list[Any]:
    if isinstance(error, asyncio.CancelledError):
        return ["cancelled"]
    text = re.sub(r"(malformed message about a file): .*", r"\1", str(error), flags=re.DOTALL)
    text = text.removesuffix("=")  # of an argument's name
    return [type(error).__name__, getattr(error, "code", None), text]


class _Answer:
    def __init__(self, log: list[Any], number: int) -> None:
        self._log = log
        self._number = number

    def reply(self, data: Any) -> None:
        self._log.append(["answer", self._number, "reply", data])

    def error(self, text: str) -> None:
        self._log.append(["answer", self._number, "error", text])


class _Walk(ABC):
    """What both kinds have in common."""

    def __init__(self, files: Files, seed: int) -> None:
        self.files = files
        self.random = Random(seed)
        self.log: list[Any] = []
        self.steps: list[list[Any]] = []
        self.tasks: list[asyncio.Task[Any]] = []
        self.peers: dict[str, _Peer] = {}
        for peer_id in _PEERS:
            self.join(peer_id, "first")

    def join(self, peer_id: str, incarnation: str) -> None:
        peer = self.peers[peer_id] = _Peer(peer_id, incarnation)
        self.files.peer_joined(cast("Peer", peer))

    def begin(self, work: Any, told: Callable[[Any], list[Any]]) -> None:
        """Run it; what comes of it is told in the log."""
        number = len(self.tasks)
        task = asyncio.create_task(work)
        self.tasks.append(task)

        def ended(task: asyncio.Task[Any]) -> None:
            if task.cancelled():
                self.log.append(["ended", number, "cancelled"])
            elif error := task.exception():
                self.log.append(["ended", number, *_of_error(error)])
            else:
                self.log.append(["ended", number, *told(task.result())])

        task.add_done_callback(ended)

    async def step(self, *operation: Any) -> None:
        """Do it, and note what comes of it."""
        try:
            getattr(self, f"do_{operation[0]}")(*operation[1:])
        except MeshError as error:
            self.log.append(["raised", *_of_error(error)])
        for _ in range(100):
            await asyncio.sleep(0)
        self.steps.append([list(operation), sorted(self.log, key=msgspec.json.encode)])
        self.log.clear()

    @abstractmethod
    def operation(self) -> tuple[Any, ...]:
        """What to do next."""

    def do_cancel(self, number: int) -> None:
        self.tasks[number].cancel()

    def do_end(self) -> None:
        self.files.end(IdentityReplaced("a newer process has the peer id"))

    def do_close(self) -> None:
        self.begin(self.files.close(), lambda _: [])


class _Receiving(_Walk):
    def __init__(self, seed: int, folder: Path) -> None:
        super().__init__(Files(chunk=_CHUNK), seed)
        self.folder = folder
        self.asked = 0

    def do_request(self, peer_id: str, data: Any) -> None:
        self.asked += 1
        self.files.request(
            cast("Peer", self.peers[peer_id]), data, _Answer(self.log, self.asked - 1)
        )

    def do_data(self, peer_id: str, size: int) -> None:
        taken = partial(self.log.append, ["taken", size])
        self.files.data(cast("Peer", self.peers[peer_id]), _CONTENT * size, taken)

    def do_left(self, peer_id: str) -> None:
        peer = self.peers.pop(peer_id)
        peer.closed_reason = "left"
        self.files.peer_left(cast("Peer", peer))

    def do_joined(self, peer_id: str, incarnation: str) -> None:
        self.join(peer_id, incarnation)

    def do_receive(self, sender: str | None, breaks: bool) -> None:
        def report(_progress: FileProgress) -> None:
            if breaks:
                raise LookupError("mine")

        receiving = self.files.receive(self.folder, sender=sender, on_progress=report)
        self.begin(
            receiving,
            lambda r: (
                [r.name, r.size, r.sha256, r.sender.id, r.resumed_from, r.path.stat().st_size]
            ),
        )

    def do_spoil(self, name: str, size: int, content: str) -> None:
        """As if an earlier process had left this of a file."""
        path = self.folder / f".{name}.{_sum(size)[:16]}.part"
        path.write_bytes(content.encode())

    def operation(self) -> tuple[Any, ...]:
        random = self.random
        peer_id = random.choice(_PEERS)
        if peer_id not in self.peers:
            return "joined", peer_id, random.choice(["first", "second"])
        kinds = ["offer"] * 7 + ["receive"] * 7 + ["data"] * 8 + ["finish"] * 5 + ["stop", "junk"]
        match random.choice([*kinds, "left", "cancel", "spoil"]):
            case "offer":
                name = random.choice(
                    [*["a.txt"] * 4, *["b"] * 12, "../c", ".d", "\u2028", "e\u202ef", "é" * 200]
                )
                size = random.choice([0, 5, 5, 5])
                sha256 = _sum(size) if random.random() < 0.9 else "0" * 64
                offer = {"do": "offer", "name": name, "size": size, "sha256": sha256}
                return "request", peer_id, offer
            case "receive" if not self.files._bell._waiters:  # or it is anybody's who gets it
                sender = random.choice([None, None, *_PEERS])
                return "receive", sender, random.random() < 0.1
            case "data":
                return "data", peer_id, random.choice([0, 1, 2, 2, 3, 3, 5, 5, 6])
            case "finish":
                return "request", peer_id, {"do": "finish", "more": 1}
            case "stop":
                return (
                    "request",
                    peer_id,
                    {"do": "stop", "why": random.choice(["bored", "x" * 501])},
                )
            case "junk":
                return "request", peer_id, random.choice(_JUNK)
            case "cancel" if self.tasks:
                return "cancel", random.randrange(len(self.tasks))
            case "spoil" if not any(not task.done() for task in self.tasks):
                return "spoil", "b", 5, random.choice(["x", "xxx", "yy", "xxxxx", "xxxxxx", ""])
            case _:
                return "left", peer_id


_OFFER = {"do": "offer", "name": "a", "size": 3, "sha256": "0" * 64}
_JUNK: list[Any] = [
    None,
    [],
    "offer",
    7,
    {},
    {"do": "dance"},
    {"do": 1},
    {"do": "offer"},
    _OFFER | {"name": 1},
    _OFFER | {"size": -1},
    _OFFER | {"size": 1.5},
    _OFFER | {"size": 2**53},
    _OFFER | {"size": True},
    _OFFER | {"size": None},
    _OFFER | {"sha256": "0" * 63},
    _OFFER | {"sha256": "0" * 64 + "\n"},
    _OFFER | {"sha256": "G" * 64},
    {"do": "stop"},
    {"do": "stop", "why": None},
]


class _Wire:
    """To one peer; answers when the walk says so."""

    def __init__(self, walk: _Sending, peer_id: str) -> None:
        self._walk = walk
        self._peer_id = peer_id
        self.is_gone = False
        self.may_send = asyncio.Event()
        self.may_send.set()

    def check(self) -> None:
        if self.is_gone:
            raise PeerClosed("the peer is gone", reason="left")

    async def request(self, data: Any) -> Any:
        self.check()
        walk = self._walk
        number = walk.asked
        walk.asked += 1
        walk.log.append(["request", self._peer_id, number, data])
        future = walk.pending[number] = asyncio.get_running_loop().create_future()
        walk.peer_of[number] = self._peer_id
        walk.words[number] = data["do"]
        try:
            return await future
        finally:
            del walk.pending[number]

    async def send(self, data: bytes) -> None:
        self.check()
        await self.may_send.wait()
        self.check()
        assert data == _CONTENT * len(data)
        self._walk.log.append(["bytes", self._peer_id, len(data)])


class _Sending(_Walk):
    def __init__(self, seed: int, folder: Path) -> None:
        super().__init__(Files(chunk=_CHUNK), seed)
        self.folder = folder
        self.asked = 0
        self.pending: dict[int, asyncio.Future[Any]] = {}
        self.peer_of: dict[int, str] = {}
        self.words: dict[int, str] = {}
        self.wires = {peer_id: _Wire(self, peer_id) for peer_id in _PEERS}
        self.sizes: list[int] = []

    def do_send(self, peer_id: str, name: str, size: int, breaks: bool) -> None:
        path = self.folder / f"{size}"
        path.write_bytes(_CONTENT * size)
        last = -1

        def report(progress: FileProgress) -> None:
            nonlocal last
            last = progress.done
            if breaks:
                raise LookupError("mine")

        def told(sent: FileSent) -> list[Any]:
            return [sent.name, sent.size, sent.sha256, sent.resumed_from, last]

        peer = cast("Peer", self.peers[peer_id])
        self.begin(self.files.send(peer, self.wires[peer_id], path, report, name=name), told)

    def do_reply(self, number: int, data: Any) -> None:
        self.pending[number].set_result(data)

    def do_fail(self, number: int, text: str) -> None:
        self.pending[number].set_exception(RequestFailed(text))

    def do_block(self, peer_id: str) -> None:
        self.wires[peer_id].may_send.clear()

    def do_unblock(self, peer_id: str) -> None:
        self.wires[peer_id].may_send.set()

    def do_gone(self, peer_id: str) -> None:
        wire = self.wires[peer_id]
        wire.is_gone = True
        wire.may_send.set()
        for number, future in self.pending.items():
            if self.peer_of[number] == peer_id:
                future.set_exception(PeerClosed("the peer is gone", reason="left"))

    def operation(self) -> tuple[Any, ...]:
        random = self.random
        peer_id = random.choice(_PEERS)
        choice = random.random()
        if self.pending and choice < 0.6:
            number = random.choice(list(self.pending))
            if random.random() < 0.1:
                return "fail", number, "no room"
            return "reply", number, self._answer(self.words[number])
        if choice < 0.85:
            name = random.choice([*["a"] * 20, "é", "", "..", "a/b", "x" * 256, "\x7f"])
            return "send", peer_id, name, random.choice([0, 3, 4, 9]), random.random() < 0.05
        if choice < 0.9 and self.tasks:
            return "cancel", random.randrange(len(self.tasks))
        if choice < 0.98:
            return random.choice(["block", "unblock"]), peer_id
        return "gone", peer_id

    def _answer(self, word: str) -> Any:
        if self.random.random() < 0.1:
            word = self.random.choice(["offer", "finish", "stop"])
        match word:
            case "offer":
                offsets = [*[0] * 8, 1, 1, 3, 3, 4, 10, -1, 1.5, True, None]
                chunks = [*[1, 2, 3, 4, 100] * 5, 0, -1, 2.5, None, "4"]
                offset, chunk = self.random.choice(offsets), self.random.choice(chunks)
                return {"offset": offset, "chunk": chunk, "more": []}
            case "finish":
                return {"again": self.random.choice([True, True, *[False] * 8, 1, None])}
            case _:
                return self.random.choice([{}, None, []])


async def _walked(walk: _Walk) -> list[list[Any]]:
    with patch("meshpeer.files._in_thread", _at_once):
        for _ in range(_STEPS):
            await walk.step(*walk.operation())
        if walk.random.random() < 0.5:
            await walk.step("end")
        await walk.step("close")
        for number, task in enumerate(walk.tasks):
            if not task.done():
                await walk.step("cancel", number)
    return walk.steps


async def receiving_walk(seed: int, folder: Path) -> list[list[Any]]:
    """Two peers offer, and somebody receives into ``folder``, which is empty."""
    return await _walked(_Receiving(seed, folder))


async def sending_walk(seed: int, folder: Path) -> list[list[Any]]:
    """Files go to two peers, which answer as they like. ``folder`` is for the files."""
    return await _walked(_Sending(seed, folder))
