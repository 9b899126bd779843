"""How `meshpeer chat` shows what happens: for people, or as JSON for programs."""

from __future__ import annotations

import base64
import json
import sys
import time
import zlib
from typing import Any, Protocol

from rich.console import Console
from rich.text import Text

from meshpeer.cli.common import printable
from meshpeer.core.events import (
    BadInput,
    Event,
    Joined,
    MeshState,
    NoticeReceived,
    PeerJoined,
    PeerLeft,
    PeerState,
    PeerStateChanged,
    PeerUpdated,
    SignalingChanged,
)
from meshpeer.peer import Message

__all__ = ["JsonView", "TextView", "View", "name_style"]

_COLOURS = ("cyan", "magenta", "yellow", "green", "blue", "red", "bright_cyan", "bright_magenta")


def name_style(peer_id: str) -> str:
    """The same colour for the same id, in every process."""
    return f"bold {_COLOURS[zlib.crc32(peer_id.encode()) % len(_COLOURS)]}"


class View(Protocol):
    """Where a chat goes."""

    def event(self, event: Event) -> None:
        """Something happened."""

    def message(self, message: Message) -> None:
        """Somebody said something."""

    def notice(self, text: str) -> None:
        """Something about our own lines, for the person who wrote them."""

    def closed(self, reason: str) -> None:
        """It is over."""


class JsonView:
    """One JSON object a line on standard output, in UTF-8, each flushed at once.

    bytes, which JSON has no word for, are shown as ``{"base64": "…"}``.
    """

    def _write(self, **values: Any) -> None:
        line = json.dumps(values, ensure_ascii=False) + "\n"
        sys.stdout.buffer.write(line.encode(errors="replace"))
        sys.stdout.buffer.flush()

    def event(self, event: Event) -> None:
        """Write the events that are promised."""
        match event:
            case Joined():
                self._write(event="joined", peer_id=event.peer_id, room=event.room)
            case PeerStateChanged():
                self._write(
                    event="peer_state",
                    peer_id=event.peer_id,
                    name=event.name,
                    state=event.state,
                    path=event.path,
                    reason=event.reason,
                )
            case NoticeReceived():
                self._write(event="notice", text=event.text)
            case _:
                pass

    def message(self, message: Message) -> None:
        """Write a message."""
        data = message.data
        if isinstance(data, bytes):
            data = {"base64": base64.b64encode(data).decode()}
        sender = message.sender
        self._write(
            event="message",
            **{"from": sender.id},
            name=sender.name,
            data=data,
            channel=message.channel,
            path=message.path,
        )

    def notice(self, text: str) -> None:
        """Write to standard error: standard output is for the objects."""
        print(f"meshpeer: {text}", file=sys.stderr, flush=True)

    def closed(self, reason: str) -> None:
        """Write the last object."""
        self._write(event="closed", reason=reason)


class TextView:
    """Readable lines: the time, who, by which path, what. Everything but messages is dim."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._away = False

    def _line(self, *parts: tuple[str, str], at: float | None = None) -> None:
        clock = time.strftime("%H:%M:%S ", time.localtime(at))
        self._console.print(Text.assemble((clock, "dim"), *parts))

    def _dim(self, text: str) -> None:
        self._line((printable(text), "dim"))

    def event(self, event: Event) -> None:
        """Show it, unless another line says the same."""
        match event:
            case Joined():
                back = "back " if self._away else ""
                self._away = False
                self._dim(f"You are {back}in {event.room} as {event.peer_id}.")
            case SignalingChanged(state=MeshState.RECONNECTING):
                if not self._away:
                    self._dim(f"The relay is away ({event.reason}). Direct connections go on.")
                self._away = True
            case PeerJoined():
                name = f" ({event.peer_id})" if event.name else ""
                self._dim(f"→ {event.name or event.peer_id}{name} is here")
            case PeerLeft() if event.reason != "closed":  # or it is we who leave
                self._dim(f"← {event.name or event.peer_id} is gone ({event.reason})")
            case PeerUpdated():
                self._dim(f"· {event.peer_id} is now called {event.name or event.peer_id}")
            case PeerStateChanged() if event.state is not PeerState.CLOSED:
                who = event.name or event.peer_id
                how = event.path or event.reason
                self._dim(f"· {who} {event.state} ({how})")
            case NoticeReceived():
                self._line(("The relay: ", "bold"), (printable(event.text), ""))
            case BadInput():
                self._dim(f"· refused from {event.peer_id or 'the relay'}: {event.error}")
            case _:
                pass

    def message(self, message: Message) -> None:
        """Show a message; what could steer the terminal is taken out."""
        sender = message.sender
        match message.data:
            case str() as text:
                pass
            case {"text": str() as text} if message.channel == "chat":
                pass  # from the chat page, or a bot
            case bytes() as data:
                text = f"<{len(data)} bytes>"
            case value:
                text = json.dumps(value, ensure_ascii=False)
        self._line(
            (printable(sender.name or sender.id), name_style(sender.id)),
            (f" [{message.path}] ", "green"),
            (printable(text).replace("\n", "\n" + " " * 9), ""),
            at=message.received_at,
        )

    def notice(self, text: str) -> None:
        """Show it like an event."""
        self._dim(text)

    def closed(self, reason: str) -> None:
        """Say so, when nothing else does: an error has a sentence of its own."""
        if reason == "closed":
            self._dim("You left.")
