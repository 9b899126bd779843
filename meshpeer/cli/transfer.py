"""What `meshpeer send` and `meshpeer receive` show: bars on a terminal, lines elsewhere, or JSON.

Both only tell a `Board` what happens, so both look alike.
"""

from __future__ import annotations

import json
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from meshpeer.cli.common import printable
from meshpeer.core.events import PeerState
from meshpeer.files import FileProgress, FileReceived, FileSent
from meshpeer.peer import Peer

__all__ = ["Board", "JsonBoard", "TextBoard", "board"]

_LINES = 10
"""Lines about the progress of one file, where there is no terminal."""


class Board(Protocol):
    """Where transfers are shown."""

    def live(self) -> AbstractContextManager[object]:
        """While this is entered, bars can be drawn."""

    def joined(self, peer_id: str, room: str) -> None:
        """We are in the room."""

    def notice(self, text: str) -> None:
        """Something for the person at the terminal."""

    def progress(self, progress: FileProgress) -> None:
        """So far a file is."""

    def refresh(self) -> None:
        """A path or a state has changed."""

    def ended(self, peer: Peer) -> None:
        """Nothing more comes of the file to or from this peer."""

    def sent(self, sent: FileSent, peer: Peer) -> None:
        """A file is there, and checked."""

    def received(self, received: FileReceived) -> None:
        """A file is here, and checked."""

    def closed(self, reason: str) -> None:
        """It is over."""


def board(*, as_json: bool, sending: bool) -> Board:
    """The one that fits standard output."""
    return JsonBoard() if as_json else TextBoard(sending=sending)


class JsonBoard:
    """One JSON object a line on standard output, in UTF-8, each flushed at once."""

    def _write(self, **values: Any) -> None:
        line = json.dumps(values, ensure_ascii=False) + "\n"
        sys.stdout.buffer.write(line.encode(errors="replace"))
        sys.stdout.buffer.flush()

    def live(self) -> AbstractContextManager[object]:
        """Nothing is drawn."""
        return nullcontext()

    def joined(self, peer_id: str, room: str) -> None:
        """Write it."""
        self._write(event="joined", peer_id=peer_id, room=room)

    def notice(self, text: str) -> None:
        """Write to standard error: standard output is for the objects."""
        print(f"meshpeer: {printable(text)}", file=sys.stderr, flush=True)

    def progress(self, progress: FileProgress) -> None:
        """Write it."""
        peer = progress.peer
        self._write(
            event="progress",
            peer_id=peer.id,
            name=progress.name,
            size=progress.size,
            done=progress.done,
            path=peer.path,
        )

    def refresh(self) -> None:
        """The next object has it."""

    def ended(self, peer: Peer) -> None:
        """A notice says why."""

    def sent(self, sent: FileSent, peer: Peer) -> None:
        """Write it."""
        self._write(event="sent", peer_id=peer.id, **_facts(sent))

    def received(self, received: FileReceived) -> None:
        """Write it."""
        self._write(event="received", peer_id=received.sender.id, **_facts(received))

    def closed(self, reason: str) -> None:
        """Write the last object."""
        self._write(event="closed", reason=reason)


def _facts(file: FileSent | FileReceived) -> dict[str, Any]:
    return {
        "file": str(file.path),
        "name": file.name,
        "size": file.size,
        "sha256": file.sha256,
        "resumed_from": file.resumed_from,
    }


class TextBoard:
    """For people: a bar for each file while it travels, a line when it is there."""

    def __init__(self, *, sending: bool) -> None:
        self._sending = sending
        self._console = Console(highlight=False)
        self._bars: dict[Peer, TaskID] = {}
        self._shown: dict[Peer, int] = {}
        """Without a terminal: how many tenths of the file have been told."""
        self._drawn = Progress(
            TextColumn("{task.description}", markup=True),
            BarColumn(bar_width=None),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[how]}", markup=True),
            console=self._console,
            auto_refresh=False,
            transient=True,
            expand=True,
        )

    def live(self) -> AbstractContextManager[object]:
        """While this is entered, a terminal shows the bars."""
        return self._drawn if self._console.is_terminal else nullcontext()

    def joined(self, peer_id: str, room: str) -> None:
        """Say it."""
        self._dim(f"You are in {room} as {peer_id}.")

    def notice(self, text: str) -> None:
        """Say it."""
        self._dim(text)

    def progress(self, progress: FileProgress) -> None:
        """Draw it; without a terminal say it now and then."""
        peer = progress.peer
        if not self._console.is_terminal:
            self._tell(progress)
            return
        bar = self._bars.get(peer)
        if bar is None:
            # Begun at once with what was there: that is no speed.
            self._bars[peer] = self._drawn.add_task(
                escape(printable(progress.name)),
                total=progress.size,
                completed=progress.done,
                how=_how(peer),
            )
            if progress.done:
                self._resumed(progress)
        else:
            self._drawn.update(bar, completed=progress.done, how=_how(peer))
        self._drawn.refresh()

    def _tell(self, progress: FileProgress) -> None:
        peer = progress.peer
        if peer not in self._shown:
            to = "to" if self._sending else "from"
            size = decimal(progress.size)
            self._say(f"{progress.name} ({size}) {to} {_who(peer)} [{peer.path or peer.state}]")
            if progress.done:
                self._resumed(progress)
        tenths = progress.done * _LINES // max(progress.size, 1)
        if tenths > self._shown.get(peer, 0) and progress.done < progress.size:
            percent = 100 * progress.done // progress.size
            self._say(f"{progress.name} {percent} % [{peer.path or peer.state}]")
        self._shown[peer] = tenths

    def _resumed(self, progress: FileProgress) -> None:
        self._dim(f"{progress.name} goes on from {decimal(progress.done)}.")

    def refresh(self) -> None:
        """Draw the bars anew."""
        for peer, bar in self._bars.items():
            self._drawn.update(bar, how=_how(peer))
        self._drawn.refresh()

    def ended(self, peer: Peer) -> None:
        """Take its bar away."""
        self._shown.pop(peer, None)
        if (bar := self._bars.pop(peer, None)) is not None:
            self._drawn.remove_task(bar)
            self._drawn.refresh()

    def sent(self, sent: FileSent, peer: Peer) -> None:
        """Say it."""
        self.ended(peer)
        self._say(f"✓ {sent.name} ({decimal(sent.size)}) is with {_who(peer)}, and checked.")

    def received(self, received: FileReceived) -> None:
        """Say it."""
        self.ended(received.sender)
        whose = _who(received.sender)
        self._say(f"✓ {received.path} ({decimal(received.size)}) from {whose}, checked.")

    def closed(self, reason: str) -> None:
        """An error has a sentence of its own, and without one all was said."""

    def _say(self, text: str) -> None:
        self._console.print(printable(text), markup=False, soft_wrap=True)

    def _dim(self, text: str) -> None:
        self._console.print(printable(text), markup=False, soft_wrap=True, style="dim")


def _who(peer: Peer) -> str:
    return peer.name or peer.id


def _how(peer: Peer) -> str:
    if peer.state is PeerState.CONNECTED:
        return f"[green]{peer.path}[/]"
    return f"[yellow]{peer.state}[/]"
