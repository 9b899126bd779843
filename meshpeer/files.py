"""Files of any size between two peers: offered, accepted, sent, and checked by their SHA-256.

It needs two things of a peer: a request with one answer, and bytes that arrive in order. What a
transfer leaves behind when a process dies is the partial file, and the next offer of the same file
goes on from its end. docs/files.md has the exchange, message by message.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
import sys
import unicodedata
from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from io import FileIO
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeVar
from weakref import WeakKeyDictionary

import msgspec

from meshpeer.errors import (
    ConfigError,
    MeshClosed,
    MeshError,
    MeshTimeout,
    MessageTooLarge,
    PeerClosed,
    ProtocolError,
    RequestFailed,
    TooManyChannels,
    TransferFailed,
)
from meshpeer.streams import Bell

if TYPE_CHECKING:
    from meshpeer.peer import Peer

__all__ = [
    "CHANNEL",
    "CHUNK",
    "MAX_OFFERS",
    "Answer",
    "FileProgress",
    "FileReceived",
    "FileSent",
    "FileWire",
    "Files",
]

T = TypeVar("T")

CHANNEL = "meshpeer.file"
"""The channel of messages that transfers go over."""
CHUNK = 256 * 1024
"""Bytes of a file in one message, at most."""
MAX_OFFERS = 16
"""How many offers wait for a `Files.receive`; further ones are refused."""

_MAX_BROKEN = 1000
"""Transfers of peers that left, of which is known whom to answer when they are back."""
_HASH_STEP = 8 * 1024 * 1024
"""Bytes that a thread takes the sum of before a cancellation is looked at."""
_REPORT_EVERY = 0.1
"""Seconds between two reports of progress, at least."""
_DIRECTIONS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""They show "exe.fdp" for what ends in ".exe"."""
_MAX_NAME = 255
"""Bytes of UTF-8 in the name of a file: what common file systems take."""
_MAX_SUFFIX = 64
"""What is longer is no suffix, but a name with a dot in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileProgress:
    """How far a transfer is. The first report has where it begins, more than 0 when resumed."""

    peer: Peer
    """Who is at the other end."""
    name: str
    size: int
    """Bytes of the whole file."""
    done: int
    """Bytes accepted for sending, or stored at the receiving side, with those of an earlier
    transfer. Falls back to 0 when those were wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSent:
    """A file that the other side has stored and checked."""

    path: Path
    """Where it is here."""
    name: str
    """What it was offered as."""
    size: int
    """Bytes."""
    sha256: str
    """In lower-case hexadecimal."""
    resumed_from: int
    """How many bytes the other side had from an earlier transfer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileReceived:
    """A file that is stored and checked."""

    path: Path
    """Where it is. Its last part differs from ``name`` when a file of that name was there."""
    name: str
    """What it was offered as."""
    size: int
    """Bytes."""
    sha256: str
    """In lower-case hexadecimal."""
    sender: Peer
    resumed_from: int
    """How many bytes were here from an earlier transfer."""


class FileWire(Protocol):
    """One peer's `CHANNEL`, seen from the sending side. What it takes arrives in order."""

    async def request(self, data: Any) -> Any:
        """JSON-able there and back. Raises `RequestFailed`, `PeerClosed`, `MeshClosed`."""

    async def send(self, data: bytes) -> None:
        """Send bytes; waits for room. Raises `PeerClosed`, `MeshClosed`."""


class Answer(Protocol):
    """The answer to a request, given once, now or later. Too late, nothing comes of it."""

    def reply(self, data: Any) -> None:
        """Answer with something JSON-able."""

    def error(self, text: str) -> None:
        """Answer with an error: `RequestFailed` at the other side."""


# --- what is said ---------------------------------------------------------------------------------

_Size = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]


class _Offer(msgspec.Struct, tag_field="do", tag="offer", frozen=True):
    name: str
    size: _Size
    sha256: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]


class _Finish(msgspec.Struct, tag_field="do", tag="finish", frozen=True):
    """Answered when all has arrived and was checked, or when it failed."""


class _Stop(msgspec.Struct, tag_field="do", tag="stop", frozen=True):
    why: Annotated[str, msgspec.Meta(max_length=500)]


class _Accepted(msgspec.Struct, frozen=True):
    offset: _Size
    chunk: Annotated[int, msgspec.Meta(ge=1)]
    """The most bytes that may come in one message."""


class _Finished(msgspec.Struct, frozen=True):
    again: bool
    """The sum was wrong with what was there before: the whole file is wanted."""


def _decode(data: Any, kind: Any) -> Any:
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as exc:
        raise ProtocolError(f"malformed message about a file: {exc}", code="bad_file") from None


def _fault(name: str) -> str | None:
    """What makes a name unfit to be stored under; None when it is fit."""
    if name in ("", ".", "..") or "/" in name or "\\" in name:
        return "is not the plain name of a file"
    if name.startswith("."):
        # A home directory is read by programs that obey such files; nobody may plant them.
        return "begins with a dot, which hides a file"
    if any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in _DIRECTIONS for c in name):
        return "has control characters or half characters in it"
    if len(name.encode()) > _MAX_NAME:
        return f"has more than {_MAX_NAME} bytes of UTF-8"
    return None


# --- on the disk ----------------------------------------------------------------------------------


async def _in_thread(function: Callable[..., T], *args: Any) -> T:
    """`asyncio.to_thread` that is over when it ends: a cancellation waits for the thread.

    So nothing is closed or removed under a thread that works on it.
    """
    work = asyncio.ensure_future(asyncio.to_thread(function, *args))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        while not work.done():
            with suppress(asyncio.CancelledError):  # one is enough, and is raised below
                await asyncio.wait({work})
        if not work.cancelled():
            work.exception()  # the cancellation is what counts
        raise


class _Source:
    """A file to send. Its methods block: they are for threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._file: FileIO | None = None
        self._sum = hashlib.sha256()
        self._summed = 0

    @property
    def sha256(self) -> str:
        """Of all that was summed up."""
        return self._sum.hexdigest()

    def open(self) -> None:
        # Before it is opened: that would wait for ever at a pipe.
        if not stat.S_ISREG(self.path.stat().st_mode):
            raise ConfigError(f"{str(self.path)!r} is not a regular file")
        self._file = FileIO(self.path)
        self.size = os.fstat(self._file.fileno()).st_size

    def sum_up(self) -> bool:
        """Take the sum of some more; False when that is all."""
        end = min(self.size, self._summed + _HASH_STEP)
        while self._summed < end:
            data = self.read(self._summed)
            self._sum.update(data)
            self._summed += len(data)
        return self._summed < self.size

    def read(self, position: int, most: int = CHUNK) -> bytes:
        """The next bytes from there. Raises `TransferFailed` when there are none."""
        assert self._file is not None
        self._file.seek(position)
        data = self._file.read(min(most, self.size - position))
        if not data:
            raise TransferFailed(f"{str(self.path)!r} became shorter while it was sent")
        return data

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class _Partial:
    """The hidden file that an incoming one is written to. Its methods block: for threads.

    It is locked while it is in use: the same file may come twice at once, here or to another
    process with the same directory, and then goes to a second partial file.
    """

    def __init__(self, folder: Path, offer: _Offer) -> None:
        self._folder = folder
        self._offer = offer
        self._path = folder
        self._file: FileIO | None = None
        self._sum = hashlib.sha256()
        self._found = 0
        self.length = 0
        """Bytes that are in the file and in the sum."""
        self.published: Path | None = None
        """The file at its end, under its own name."""

    @property
    def right(self) -> bool:
        """Whether the sum is that of the offer."""
        return self._sum.hexdigest() == self._offer.sha256

    def open(self) -> None:
        """Open what an earlier transfer left, or a new one."""
        self._folder.mkdir(parents=True, exist_ok=True)
        stem = f".{_shortened(self._offer.name, 200)}.{self._offer.sha256[:16]}"
        n = 1
        while self._file is None:
            self._path = self._folder / (f"{stem}.part" if n == 1 else f"{stem}.{n}.part")
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
            file = FileIO(fd, "r+")
            try:
                locked = _lock(fd)
                if locked and self._is_there(fd):
                    self._file = file
                elif not locked:
                    n += 1
            finally:
                if self._file is None:
                    file.close()
        self._found = os.fstat(self._file.fileno()).st_size
        if self._found > self._offer.size:
            self.empty()

    def _is_there(self, fd: int) -> bool:
        """False when its last owner was done with it, just before it was ours."""
        try:
            return os.path.samestat(os.fstat(fd), self._path.stat())
        except FileNotFoundError:
            return False

    def sum_up(self) -> bool:
        """Take the sum of some more of what was found; False when that is all."""
        assert self._file is not None
        end = min(self._found, self.length + _HASH_STEP)
        while self.length < end and (data := self._file.read(min(CHUNK, end - self.length))):
            self._sum.update(data)
            self.length += len(data)
        return self.length < self._found

    def write(self, chunks: list[bytes]) -> None:
        """Add to the end."""
        assert self._file is not None
        for chunk in chunks:
            rest = memoryview(chunk)
            while rest:
                rest = rest[self._file.write(rest) :]
            self._sum.update(chunk)
            self.length += len(chunk)

    def empty(self) -> None:
        """Begin anew."""
        assert self._file is not None
        self._file.seek(0)
        self._file.truncate()
        self._sum = hashlib.sha256()
        self._found = self.length = 0

    def publish(self) -> None:
        """Give it its name, or the first like it that is free."""
        assert self._file is not None
        if sys.platform == "win32":  # where an open file can't be renamed
            self._file.close()
        path = self._claim()
        try:
            self._path.replace(path)
        except OSError:
            path.unlink()
            raise
        self.published = path

    def _claim(self) -> Path:
        """A name in the folder that is ours from now on: an empty file, made by us."""
        name = self._offer.name
        suffix = Path(name).suffix
        if len(suffix.encode()) > _MAX_SUFFIX:
            suffix = ""
        for n in count(1):
            end = suffix if n == 1 else f" ({n}){suffix}"
            room = _MAX_NAME - len(end.encode())
            path = self._folder / (_shortened(name.removesuffix(suffix), room) + end)
            with suppress(FileExistsError):
                path.touch(exist_ok=False)
                return path
        raise AssertionError("counting ended")

    def close(self, *, remove: bool) -> None:
        """Let go of it. What holds nothing, or is not to be kept, is removed."""
        if self._file is not None:
            if (remove or not (self._found or self.length)) and self.published is None:
                if sys.platform == "win32":
                    self._file.close()
                self._path.unlink(missing_ok=True)
            self._file.close()


def _shortened(text: str, size: int) -> str:
    return text.encode()[:size].decode(errors="ignore")


if sys.platform == "win32":

    def _lock(_fd: int) -> bool:
        # Not there: two that write to it at once make a wrong sum, and nothing worse.
        return True

else:
    import fcntl

    def _lock(fd: int) -> bool:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


# --- progress -------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Meter:
    """Reports progress, but not too often."""

    report: Callable[[FileProgress], object] | None
    peer: Peer
    name: str
    size: int
    _next: float = float("-inf")

    def at(self, done: int) -> None:
        """So far it is; told when the last report is some time ago."""
        now = asyncio.get_running_loop().time()
        if now >= self._next:
            self._next = now + _REPORT_EVERY
            self.tell(done)

    def tell(self, done: int) -> None:
        """Tell it in any case."""
        if self.report is not None:
            self.report(
                FileProgress(peer=self.peer, name=self.name, size=self.size, done=done),
            )


# --- transfers ------------------------------------------------------------------------------------

_Outcome = _Finished | str
"""An answer to `_Finish`, or the text of an error."""


@dataclass(eq=False, slots=True)
class _Incoming:
    """A file that one peer offers or sends."""

    peer: Peer
    offer: _Offer
    offered: Answer
    """Takes the answer to the offer."""
    accepted: bool = False
    over: bool = False
    """Nothing is made of what still comes."""
    error: MeshError | None = None
    """What ended it from outside."""
    arrived: int = 0
    """Bytes of the file that the peer has sent, with those that were here."""
    chunks: deque[tuple[bytes, Callable[[], None]]] = field(default_factory=deque)
    bell: Bell = field(default_factory=Bell)
    finishing: Answer | None = None
    """Takes the outcome, once the peer has asked for it."""
    outcome: _Outcome | None = None
    """The outcome, until the peer asks for it."""

    def accept(self, offset: int, chunk: int) -> None:
        """Let it come from there on, in messages of so many bytes at most."""
        self.check()
        self.accepted = True
        self.arrived = offset
        self.offered.reply(msgspec.to_builtins(_Accepted(offset, chunk)))

    def check(self) -> None:
        """Raise what ended it from outside."""
        if self.error is not None:
            raise self.error.with_traceback(None)

    def unanswered(self) -> None:
        """The peer never noticed that it was given up, and waits for an answer."""
        why = "the receiver had given the sender up"
        if self.accepted:
            self._settle(why)
        else:
            self.offered.error(why)

    def again(self) -> None:
        """Let it come once more, from its beginning."""
        self.arrived = 0
        self._settle(_Finished(again=True))

    def finish(self) -> None:
        """All is well."""
        if not self.over:
            self.over = True
            self._settle(_Finished(again=False))

    def refuse(self, why: str) -> None:
        """No, or no more."""
        if self.over:
            return
        self.over = True
        self._drop()
        if self.accepted:
            self._settle(why)
        else:
            self.offered.error(why)

    def fail(self, error: MeshError) -> None:
        """It is over for a reason that is not ours."""
        self.over = True
        self._drop()
        if self.error is None:
            self.error = error
        self.bell.ring()

    def asked(self, answer: Answer) -> None:
        """The peer asks how it comes out."""
        if not self.accepted or self.finishing is not None:
            raise ProtocolError("asked for the end of a file out of turn", code="bad_file")
        self.finishing = answer
        if self.outcome is not None:
            self._settle(self.outcome)

    def _settle(self, outcome: _Outcome) -> None:
        answer, self.finishing = self.finishing, None
        self.outcome = outcome if answer is None else None
        match answer, outcome:
            case None, _:
                pass
            case _, _Finished():
                answer.reply(msgspec.to_builtins(outcome))
            case _, str():
                answer.error(outcome)

    def add(self, payload: bytes, taken: Callable[[], None]) -> None:
        """The next bytes of it."""
        if not self.accepted:
            raise ProtocolError("bytes of a file that was not accepted", code="bad_file")
        if not 0 < len(payload) <= self.offer.size - self.arrived:
            raise ProtocolError(
                f"{len(payload)} bytes where {self.offer.size - self.arrived} of the file are "
                "missing",
                code="bad_file",
            )
        self.arrived += len(payload)
        if self.over:
            taken()
        else:
            self.chunks.append((payload, taken))
            self.bell.ring()

    def _drop(self) -> None:
        while self.chunks:
            self.chunks.popleft()[1]()

    async def write_to(self, part: _Partial, meter: _Meter) -> None:
        """Write what comes, as it comes, until all is there. Raises what ended it early."""
        while part.length < self.offer.size:
            while not self.chunks:
                self.check()
                await self.bell.wait()
            batch = list(self.chunks)
            self.chunks.clear()
            try:
                await _in_thread(part.write, [payload for payload, _ in batch])
            finally:
                for _, taken in batch:
                    taken()
            meter.at(part.length)


class Files:
    """All transfers of one manager. `CHANNEL`'s messages go in by `request` and `data`.

    To each peer and from each peer one file travels at a time. ``max_offers`` is how many offers
    wait for `receive`, ``chunk`` the most bytes of a file that are sent and taken in one message.
    """

    def __init__(self, *, max_offers: int = MAX_OFFERS, chunk: int = CHUNK) -> None:
        self._max_offers = max_offers
        self._chunk = chunk
        self._closed: MeshError | None = None
        """What whoever asks for something gets, once it is closed."""
        self._turns: WeakKeyDictionary[Peer, asyncio.Lock] = WeakKeyDictionary()
        """Held by the file that is sent to the peer."""
        self._farewells: WeakKeyDictionary[Peer, asyncio.Task[None]] = WeakKeyDictionary()
        """Tell the peer that a file does not come. The next one is not offered before that."""
        self._incoming: dict[Peer, _Incoming] = {}
        """The latest of each peer."""
        self._broken: OrderedDict[tuple[str, str], _Incoming] = OrderedDict()
        """What was under way from those that left, by peer id and incarnation."""
        self._offers: list[_Incoming] = []
        """Those that nobody has taken yet."""
        self._bell = Bell()

    # --- sending ---

    async def send(
        self,
        peer: Peer,
        wire: FileWire,
        path: str | os.PathLike[str],
        on_progress: Callable[[FileProgress], object] | None = None,
        *,
        name: str | None = None,
    ) -> FileSent:
        """Send a file; returns when the other side has stored and checked it.

        ``name`` is what it is offered as, by default the last part of ``path``. Waits for its turn
        when other files go to this peer, and for the other side to accept it. ``on_progress`` is
        called at most ten times a second, and at the beginning and the end; what it raises ends the
        transfer.

        Raises `TransferFailed` when the other side refuses or stops it, or the file changes
        meanwhile, `PeerClosed` when the peer is gone, `MeshClosed`, `ConfigError` for a name that
        no receiver takes or what is no regular file, and OSError when it can't be read. When it is
        cancelled, the other side is told; what it has stored stays there, and the next transfer of
        the same file goes on from it.
        """
        source = _Source(Path(path))
        name = source.path.name if name is None else name
        if fault := _fault(name):
            raise ConfigError(f"the name {name!r} {fault}: give another as name=")
        self._check_open()
        async with self._turns.setdefault(peer, asyncio.Lock()):
            try:
                await _in_thread(source.open)
                while await _in_thread(source.sum_up):
                    pass
                offer = _Offer(name, source.size, source.sha256)
                meter = _Meter(on_progress, peer, name, source.size)
                resumed_from = await self._offer(peer, wire, source, offer, meter)
            finally:
                await _in_thread(source.close)
        return FileSent(
            path=source.path,
            name=name,
            size=offer.size,
            sha256=offer.sha256,
            resumed_from=resumed_from,
        )

    async def _offer(
        self, peer: Peer, wire: FileWire, source: _Source, offer: _Offer, meter: _Meter
    ) -> int:
        """Send it to its end, or see to it that the other side knows how it ended."""
        if (farewell := self._farewells.get(peer)) is not None:
            await asyncio.wait({farewell})
        self._check_open()
        try:
            return await _transfer(wire, source, offer, meter, self._chunk)
        except (PeerClosed, MeshClosed, TooManyChannels, MessageTooLarge):
            raise  # nobody to tell, or no way to
        except RequestFailed as exc:  # the other side has ended it
            raise TransferFailed(str(exc)) from None
        except BaseException as exc:
            if self._closed is None:
                # Not waited for here: the peer may be out of reach, and a cancellation is for now.
                self._farewells[peer] = asyncio.create_task(_farewell(wire, _why(exc)))
            raise

    # --- receiving ---

    async def receive(
        self,
        directory: str | os.PathLike[str],
        *,
        sender: str | None = None,
        timeout: float | None = None,
        on_progress: Callable[[FileProgress], object] | None = None,
    ) -> FileReceived:
        """Wait for the next file that a peer offers, and store it in ``directory``.

        ``sender`` is the id of the peer to take it from, any by default. ``timeout`` is how long to
        wait for an offer, in seconds, None for no limit. The directory is made when it is not
        there. A file that is there already is never touched: " (2)" and so on is added to the name.
        Until it is complete and its SHA-256 is right it has a hidden name that ends in ``.part``;
        a transfer of the same file goes on from that. ``on_progress`` is as in `Files.send`.

        Raises `MeshTimeout`, `TransferFailed` when the sender stops or what arrived is not what was
        sent, `PeerClosed` when the sender is gone, `MeshClosed`, and OSError when it can't be
        stored. When it is cancelled, the sender is told and the partial file stays.
        """
        incoming = await self._next_offer(sender, timeout)
        part = _Partial(Path(directory), incoming.offer)
        wrong = False
        try:
            await _in_thread(part.open)
            while await _in_thread(part.sum_up):
                pass
            resumed_from = await _fill(incoming, part, on_progress, self._chunk)
            if not part.right:
                wrong = True
                raise TransferFailed(
                    f"what arrived as {incoming.offer.name!r} is not what was sent: "
                    "its SHA-256 is another"
                )
            await _in_thread(part.publish)
            incoming.finish()
        except BaseException as exc:
            if part.published is None:
                incoming.refuse(str(exc) if wrong else _why(exc, "receiver"))
            else:  # cancelled when it was done
                incoming.finish()
            raise
        finally:
            await _in_thread(partial(part.close, remove=wrong))
        assert part.published is not None
        if on_progress is not None:
            _Meter(on_progress, incoming.peer, incoming.offer.name, part.length).tell(part.length)
        return FileReceived(
            path=part.published,
            name=incoming.offer.name,
            size=incoming.offer.size,
            sha256=incoming.offer.sha256,
            sender=incoming.peer,
            resumed_from=resumed_from,
        )

    async def _next_offer(self, sender: str | None, timeout: float | None) -> _Incoming:
        scope = asyncio.timeout(timeout)
        try:
            async with scope:
                while True:
                    self._check_open()
                    for incoming in self._offers:
                        if sender in (None, incoming.peer.id):
                            self._offers.remove(incoming)
                            return incoming
                    await self._bell.wait()
        except TimeoutError:
            if not scope.expired():
                raise
            whom = "" if sender is None else f" from {sender!r}"
            raise MeshTimeout(f"waited {timeout:g} s for a file{whom}") from None

    # --- from the shell ---

    def request(self, peer: Peer, data: Any, answer: Answer) -> None:
        """A request arrived on `CHANNEL`. Raises `ProtocolError`; then nothing has changed."""
        if self._closed is not None:
            answer.error("the receiver is closed")
            return
        message = _decode(data, _Offer | _Finish | _Stop)
        incoming = self._incoming.get(peer)
        match message:
            case _Offer():
                if incoming is not None and not incoming.over:
                    raise ProtocolError("a file was offered before the last", code="bad_file")
                self._offered(_Incoming(peer, message, answer))
            case _Finish():
                if incoming is None:
                    raise ProtocolError("the end of a file that was not offered", code="bad_file")
                incoming.asked(answer)
            case _Stop(why=why):
                # Nothing to stop is no fault: it may have ended here in the same moment.
                if incoming is not None:
                    incoming.refuse("it was stopped")
                    self._end(incoming, TransferFailed(why))
                answer.reply({})

    def data(self, peer: Peer, payload: bytes, taken: Callable[[], None]) -> None:
        """Bytes arrived on `CHANNEL`; ``taken`` is called once they are written, or dropped.

        That may be after `peer_left` and after `close`. Raises `ProtocolError`; then nothing has
        changed and ``taken`` is not called.
        """
        if self._closed is not None:
            taken()
            return
        incoming = self._incoming.get(peer)
        if incoming is None:
            raise ProtocolError("bytes of a file that was not offered", code="bad_file")
        incoming.add(payload, taken)

    def peer_joined(self, peer: Peer) -> None:
        """The peer is there. One that left as far as we knew, and did not notice, hears that what
        it sends came to its end here; what still comes of it is dropped."""
        incoming = self._broken.pop((peer.id, peer.incarnation), None)
        if incoming is not None:
            self._incoming[peer] = incoming
            incoming.unanswered()

    def peer_left(self, peer: Peer) -> None:
        """The peer is gone, and what it sent is over. Its partial file stays."""
        incoming = self._incoming.pop(peer, None)
        if incoming is not None:
            if not incoming.over:
                self._broken[peer.id, peer.incarnation] = incoming
                if len(self._broken) > _MAX_BROKEN:
                    self._broken.popitem(last=False)
            reason = peer.closed_reason or "closed"
            error = PeerClosed(f"peer {peer.id!r} is gone ({reason})", reason=reason)
            self._end(incoming, error)

    def end(self, error: MeshError | None = None) -> None:
        """The manager closes: whoever receives gets ``error``, or `MeshClosed`.

        To be called before the peers go, which would be told instead. Who sends hears it from its
        wire.
        """
        if self._closed is None:
            self._closed = error or MeshClosed("the manager is closed")
        for incoming in self._incoming.values():
            self._end(incoming, self._closed)
        self._incoming.clear()
        self._bell.ring()

    async def close(self) -> None:
        """`end` it, and leave no task. May be called more than once."""
        self.end()
        farewells = list(self._farewells.values())
        for farewell in farewells:
            farewell.cancel()
        await asyncio.gather(*farewells, return_exceptions=True)

    def _offered(self, incoming: _Incoming) -> None:
        name = incoming.offer.name
        if fault := _fault(name):
            incoming.refuse(f"the name {name[:40]!r} {fault}")
        elif len(self._offers) >= self._max_offers:
            incoming.refuse(f"{self._max_offers} files wait to be received already")
        else:
            self._offers.append(incoming)
            self._bell.ring()
        self._incoming[incoming.peer] = incoming

    def _end(self, incoming: _Incoming, error: MeshError) -> None:
        if incoming in self._offers:
            self._offers.remove(incoming)
        incoming.fail(error)

    def _check_open(self) -> None:
        if self._closed is not None:
            raise self._closed.with_traceback(None)


def _why(exc: BaseException, side: str = "sender") -> str:
    """What the other side reads of what ended a transfer on this side."""
    match exc:
        case OSError():
            verb = "store" if side == "receiver" else "read"
            # Not all of it: paths of this host are nobody's business.
            return f"the {side} can't {verb} it: {exc.strerror or type(exc).__name__}"
        case TransferFailed():
            return f"the file changed at the {side} while it was sent"
        case _:
            return f"the {side} stopped"


async def _fill(
    incoming: _Incoming,
    part: _Partial,
    on_progress: Callable[[FileProgress], object] | None,
    chunk: int,
) -> int:
    """Receive what is missing, and all of it when that does not fit what was there.

    Returns how much of what was there is in it.
    """
    offer = incoming.offer
    meter = _Meter(on_progress, incoming.peer, offer.name, offer.size)
    found = part.length
    incoming.accept(found, chunk)
    meter.at(found)
    await incoming.write_to(part, meter)
    if part.right or not found:
        return found
    await _in_thread(part.empty)
    incoming.again()
    await incoming.write_to(part, meter)
    return 0


async def _transfer(
    wire: FileWire, source: _Source, offer: _Offer, meter: _Meter, chunk: int
) -> int:
    """Offer it and send what is wanted of it. Returns how much the other side had."""
    answer = await wire.request(msgspec.to_builtins(offer))
    accepted: _Accepted = _decode(answer, _Accepted)
    offset, chunk = accepted.offset, min(chunk, accepted.chunk)
    if offset > offer.size:
        raise ProtocolError(f"offset {offset} in a file of {offer.size} bytes", code="bad_file")
    meter.at(offset)
    if (await _pass(wire, source, offset, meter, chunk)).again:
        if not offset:
            raise ProtocolError("a file that was sent whole is wanted again", code="bad_file")
        offset = 0
        if (await _pass(wire, source, offset, meter, chunk)).again:
            raise ProtocolError("a file that was sent whole is wanted again", code="bad_file")
    meter.tell(offer.size)
    return offset


async def _pass(
    wire: FileWire, source: _Source, offset: int, meter: _Meter, chunk: int
) -> _Finished:
    """Send everything from there. Returns what the other side makes of it."""
    # Asked for at once, so that the other side can end it at any time.
    finish = asyncio.ensure_future(wire.request(msgspec.to_builtins(_Finish())))
    pump = asyncio.ensure_future(_pump(wire, source, offset, meter, chunk))
    try:
        await asyncio.wait({finish, pump}, return_when=asyncio.FIRST_COMPLETED)
        if not finish.done():
            await pump
        finished: _Finished = _decode(await finish, _Finished)
        return finished
    finally:
        finish.cancel()
        pump.cancel()
        await asyncio.gather(finish, pump, return_exceptions=True)


async def _pump(wire: FileWire, source: _Source, offset: int, meter: _Meter, chunk: int) -> None:
    """Send everything from there, reading one chunk ahead."""
    if offset == source.size:
        return
    reading = asyncio.ensure_future(_in_thread(source.read, offset, chunk))
    try:
        while True:
            data = await reading
            offset += len(data)
            if offset < source.size:
                reading = asyncio.ensure_future(_in_thread(source.read, offset, chunk))
            await wire.send(data)
            meter.at(offset)
            if offset == source.size:
                return
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


async def _farewell(wire: FileWire, why: str) -> None:
    # Gone: then it knows. And what it says to it changes nothing.
    with suppress(PeerClosed, MeshClosed, RequestFailed):
        await wire.request(msgspec.to_builtins(_Stop(why)))
