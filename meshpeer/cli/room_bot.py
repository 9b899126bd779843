"""The bots of `meshpeer demo --stay`: they greet who comes, and answer what begins with a "!".

From `HELP` on it is examples/room_bot.py, which is there to be read; a test compares the two.
"""

from __future__ import annotations

import asyncio
import errno
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from time import monotonic

from meshpeer.core.events import Closed, Event, PeerJoined, PeerLeft
from meshpeer.errors import MeshClosed, MeshError, PeerClosed, TransferFailed
from meshpeer.files import FileProgress
from meshpeer.manager import PeerManager
from meshpeer.peer import Message, Peer

__all__ = ["RoomBot"]

HELP = "I know !ping, !who, !stats and !file."
MAX_WAITING = 20
"""Questions of one guest that wait for their answers; more are not heard."""
FILE_PATIENCE = 120.0
"""Seconds that a guest has to take a file."""
MAX_FILE = 16 * 1024 * 1024
"""Bytes of a file that a guest may send."""


@dataclass(slots=True, eq=False)
class Guest:
    """What the bot knows of one peer."""

    questions: asyncio.Queue[tuple[str, str]]
    """A command, and the channel that it came on."""
    worker: asyncio.Task[None] | None = None
    file: asyncio.Task[None] | None = None
    taker: asyncio.Task[None] | None = None


class RoomBot:
    """Serves a room: ``mesh`` has entered it. ``file`` is what "!file" gives."""

    def __init__(self, mesh: PeerManager, file: Path) -> None:
        self._mesh = mesh
        self._file = file
        self._events, self._messages = mesh.events(), mesh.messages()
        self._guests: dict[Peer, Guest] = {}
        self._greeted: dict[str, None] = {}
        self._answers = 0
        self._began = monotonic()
        self._tasks: asyncio.TaskGroup
        self._folder: Path

    async def serve(self) -> MeshError | None:
        """Until the manager is closed; returns what ended it. Cancelling it ends it."""
        with TemporaryDirectory(prefix="room-bot-") as folder:
            self._folder = Path(folder)
            return await self._serve()

    async def _serve(self) -> MeshError | None:
        async with asyncio.TaskGroup() as self._tasks:
            listening = self._tasks.create_task(self._listen(self._messages))
            for peer in self._mesh.peers.values():
                self._meet(peer)
            error = await self._watch(self._events)
            listening.cancel()
            for peer in list(self._guests):
                self._part(peer)
        return error

    async def _watch(self, events: AsyncIterator[Event]) -> MeshError | None:
        async for event in events:
            match event:
                case PeerJoined(peer_id=peer_id) if peer_id in self._mesh.peers:
                    self._meet(self._mesh.peers[peer_id])
                case PeerLeft(incarnation=incarnation):
                    for peer in [each for each in self._guests if each.incarnation == incarnation]:
                        self._part(peer)
                case Closed(error=error):
                    return error
                case _:
                    pass
        raise AssertionError("the last event is Closed")

    async def _listen(self, messages: AsyncIterator[Message]) -> None:
        """Take every message, so that nobody waits for us, and keep the commands."""
        with suppress(MeshError):  # what ended the manager, which its last event has too
            async for message in messages:
                match message.channel, message.data:
                    case ("chat", {"text": str(text)}) | ("default", str(text)):
                        guest = self._meet(message.sender)
                        if guest is not None and text.startswith("!"):
                            with suppress(asyncio.QueueFull):
                                guest.questions.put_nowait((text.strip(), message.channel))

    def _meet(self, peer: Peer) -> Guest | None:
        """The guest that this peer is; None when it has left."""
        if peer.closed_reason is not None:
            return None
        guest = self._guests.get(peer)
        if guest is None:
            guest = self._guests[peer] = Guest(asyncio.Queue(MAX_WAITING))
            guest.worker = self._tasks.create_task(self._attend(peer, guest))
            guest.taker = self._tasks.create_task(self._take(peer))
        return guest

    def _part(self, peer: Peer) -> None:
        guest = self._guests.pop(peer)
        for task in (guest.worker, guest.file, guest.taker):
            if task is not None:
                task.cancel()

    async def _attend(self, peer: Peer, guest: Guest) -> None:
        """One guest, from the greeting on. When it does not read, this waits, and nobody else."""
        with suppress(PeerClosed, MeshClosed):
            if self._speaks() and not peer.metadata.get("bot") and peer.id not in self._greeted:
                self._greeted[peer.id] = None  # who reloads its page has heard it
                if len(self._greeted) > 1000:
                    del self._greeted[next(iter(self._greeted))]
                await self._say(peer, f"Hello {peer.name or peer.id}! {HELP}")
            while True:
                question, channel = await guest.questions.get()
                answer = self._answer(peer, guest, question)
                if answer is not None:
                    await self._say(peer, answer, channel)
                    self._answers += 1

    def _speaks(self) -> bool:
        """Whether it is us who says what one bot says for all: the one with the smallest id."""
        bots = (peer.id for peer in self._mesh.peers.values() if peer.metadata.get("bot"))
        return self._mesh.peer_id < min(bots, default="\U0010ffff")

    def _answer(self, peer: Peer, guest: Guest, question: str) -> str | None:
        match question:
            case "!ping":
                rtt = "not measured yet" if peer.rtt is None else f"{peer.rtt * 1000:.0f} ms"
                return f"Pong. The round trip to you is {rtt}, the path {peer.path or 'none'}."
            case "!stats":
                stats = self._mesh.stats()
                paths = Counter(peer.path for peer in stats.peers.values() if peer.path)
                ways = ", ".join(f"{count} {path}" for path, count in sorted(paths.items()))
                messages = sum(peer.messages_received for peer in stats.peers.values())
                minutes = (monotonic() - self._began) / 60
                return (
                    f"Peers: {ways or 'none connected'}. Received: {messages} messages. "
                    f"Answered: {self._answers} in {minutes:.0f} min."
                )
            case "!file" if guest.file is None or guest.file.done():
                guest.file = self._tasks.create_task(self._give(peer))
                return f"Here is {self._file.name}."
            case "!file":
                return "One file at a time: take the one that you are offered."
            case "!who" if self._speaks():
                others = ", ".join(
                    f"{other.name or other.id} ({other.path or other.state})"
                    for other in self._mesh.peers.values()
                )
                return f"I see {others}."
            case _ if self._speaks():
                return HELP
            case _:
                return None  # another bot says it

    async def _give(self, peer: Peer) -> None:
        with suppress(PeerClosed, MeshClosed):
            try:
                async with asyncio.timeout(FILE_PATIENCE):
                    sent = await peer.send_file(self._file)
            except (TransferFailed, OSError) as error:  # a timeout is an OSError
                await self._say(peer, f"No file for you: {str(error) or 'you did not take it'}.")
            else:
                await self._say(peer, f"You have {sent.name}: {sent.size} bytes, checked.")

    async def _take(self, peer: Peer) -> None:
        """Take what one guest sends, one file after the other, and keep none of them."""

        def look(progress: FileProgress) -> None:
            if progress.size > MAX_FILE:  # what this raises ends the transfer
                limit = f"a file for me has {MAX_FILE // 1024**2} MiB at most"
                raise OSError(errno.EFBIG, limit)

        folder = self._folder / peer.incarnation
        with suppress(PeerClosed, MeshClosed):
            while True:
                try:
                    came = await self._mesh.receive_file(folder, sender=peer.id, on_progress=look)
                    begin = came.sha256[:16]
                    text = f"I had {came.name}: {came.size} bytes, SHA-256 {begin}… It is gone now."
                except TransferFailed:
                    continue  # its sender knows why
                except OSError as error:
                    text = f"No file for me: {error.strerror}."
                finally:
                    rmtree(folder, ignore_errors=True)
                await self._say(peer, text)

    async def _say(self, peer: Peer, text: str, channel: str = "chat") -> None:
        await peer.send({"text": text} if channel == "chat" else text, channel)
