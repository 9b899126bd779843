"""`meshpeer chat`: lines from standard input to everybody in a room, and theirs to the screen."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import typer

from meshpeer.cli.common import (
    CommandError,
    JoinTokenOption,
    LogJson,
    LogLevel,
    LogLevelOption,
    Stop,
    configure_logging,
    input_fd,
    read_lines,
    run,
    told_at_the_end,
    until_stopped,
)
from meshpeer.cli.seat import Seat
from meshpeer.cli.view import JsonView, TextView, View
from meshpeer.config import MeshConfig
from meshpeer.core.events import Closed, Event, Joined, PeerJoined, PeerLeft
from meshpeer.errors import (
    MeshClosed,
    MeshError,
    MeshTimeout,
    MessageTooLarge,
    PeerClosed,
)
from meshpeer.manager import PeerManager
from meshpeer.peer import Message, Peer
from meshpeer.signaling.websocket import without_secrets
from meshpeer.streams import Bell

__all__ = ["chat"]

PATIENCE = 15.0
"""Seconds in which who enters still hears a line, and that it waits for a connection."""
_MAX_WAITING = 100
"""Lines that wait for one peer, or while nobody is there; beyond it no more are read."""

_OnConflict = Literal["reject", "takeover", "rename"]


def chat(
    room: Annotated[str, typer.Argument(help="The room to enter.")],
    relay: Annotated[
        str, typer.Option(metavar="URL", help="The relay to meet at.")
    ] = "ws://127.0.0.1:3001",
    join_token: JoinTokenOption = None,
    name: Annotated[str | None, typer.Option(help="What the others read.")] = None,
    peer_id: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="The peer id; random by default.")
    ] = None,
    seat: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            dir_okay=False,
            help="Keep the id and its resume token here: the next start has the id back at once.",
        ),
    ] = None,
    on_conflict: Annotated[
        _OnConflict,
        typer.Option(help="When the id is in use: give up, take it over, or take another one."),
    ] = "reject",
    exit_after: Annotated[
        float | None,
        typer.Option(min=0, metavar="SECONDS", help="Leave so long after having entered."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write what happens as JSON, one object a line.")
    ] = False,
    log_level: LogLevelOption = LogLevel.WARNING,
    log_json: LogJson = False,
) -> None:
    """Talk to everybody in a room: each line of standard input is a message.

    A line goes to everybody who is in the room or enters it within 15 seconds; it waits as long for
    whoever is not connected yet.

    When the input ends, what was said is delivered and the room is left; with --exit-after it is
    left only then. Without any input (closed, or /dev/null) it listens. Ctrl-C and SIGTERM leave
    the room, with status 0.
    """
    configure_logging(log_level, log_json)
    view = JsonView() if as_json else TextView()

    async def main() -> int:
        with told_at_the_end(view.closed):
            kept = Seat.read(seat) if seat else None
            if kept is not None:
                _check_seat(kept, seat, room, relay, None if on_conflict == "rename" else peer_id)
            mesh = PeerManager(
                relay,
                room=room,
                peer_id=kept.peer_id if kept else peer_id,
                name=name,
                config=MeshConfig(on_conflict=on_conflict),
                resume_token=kept.resume_token if kept else None,
                join_token=join_token,
            )
            await _Chat(mesh, view, relay, seat).run(exit_after)
        return 0

    run(main)


def _check_seat(kept: Seat, path: Path | None, room: str, relay: str, peer_id: str | None) -> None:
    """Raise `CommandError` when it is another seat than is asked for."""
    for what, has, wanted in (
        ("room", kept.room, room),
        ("relay", kept.relay.rstrip("/"), relay.rstrip("/")),
        ("id", kept.peer_id, peer_id or kept.peer_id),
    ):
        if has != wanted:
            shown = without_secrets if what == "relay" else str
            raise CommandError(
                f"the seat in {path} is for the {what} {shown(has)!r}, not {shown(wanted)!r}: "
                "name another file, or remove it",
                reason="foreign_seat",
            )


@dataclass(frozen=True, slots=True)
class _Line:
    text: str
    until: float
    """When it has waited long enough, by the loop's clock."""
    given: set[str] = field(default_factory=set)
    """The peer ids whose outboxes it was put into: each once, whatever restarts."""


@dataclass(frozen=True, slots=True)
class _Outbox:
    """What is to go to one peer id, whichever incarnation holds it."""

    lines: asyncio.Queue[_Line]
    worker: asyncio.Task[None]


class _Chat:
    """One stay in a room."""

    def __init__(self, mesh: PeerManager, view: View, relay: str, seat: Path | None) -> None:
        self._mesh = mesh
        self._view = view
        self._relay = relay
        self._seat = seat
        self._outboxes: dict[str, _Outbox] = {}
        self._recent: deque[_Line] = deque(maxlen=_MAX_WAITING)
        """What who enters now still hears."""
        self._came = Bell()
        self._tasks: asyncio.TaskGroup
        self._stop: Stop

    async def run(self, exit_after: float | None) -> None:
        """Enter, talk, leave. Raises what ended it early, alone or in a group."""
        events, messages = self._mesh.events(), self._mesh.messages()
        async with asyncio.TaskGroup() as self._tasks:
            # Both end with the manager, so what happens while it leaves is shown too.
            showing = self._tasks.create_task(self._show_events(events))
            self._tasks.create_task(self._show_messages(messages))
            async with until_stopped() as self._stop:
                try:
                    async with self._mesh:
                        if exit_after is not None:
                            self._stop.after(exit_after)
                        await self._talk(stay=exit_after is not None)
                except MeshError:
                    pass  # the last event has it too
        if error := showing.result():
            raise error

    # --- what happens ---

    async def _show_events(self, events: AsyncIterator[Event]) -> MeshError | None:
        """Until the last one; returns what ended the manager, None when we did."""
        async for event in events:
            self._view.event(event)
            match event:
                case Joined():
                    self._keep_seat(event)
                case PeerJoined(peer_id=peer_id):
                    self._welcome(peer_id)
                case PeerLeft(peer_id=peer_id, reason=reason) if reason != "superseded":
                    self._dismiss(peer_id)
                case Closed(error=error):
                    self._stop.now()
                    return error
                case _:
                    pass
        raise AssertionError("the last event is Closed")

    async def _show_messages(self, messages: AsyncIterator[Message]) -> None:
        with suppress(MeshError):  # what ended the manager; its last event has it too
            async for message in messages:
                self._view.message(message)

    def _keep_seat(self, joined: Joined) -> None:
        if self._seat is not None and self._mesh.resume_token is not None:
            Seat(
                peer_id=joined.peer_id,
                resume_token=self._mesh.resume_token,
                room=joined.room,
                relay=self._relay,
            ).write(self._seat)

    def _welcome(self, peer_id: str) -> None:
        if peer_id not in self._outboxes:
            lines: asyncio.Queue[_Line] = asyncio.Queue(_MAX_WAITING)
            now = asyncio.get_running_loop().time()
            for line in self._recent:
                if line.until > now and peer_id not in line.given:
                    line.given.add(peer_id)
                    lines.put_nowait(line)
            worker = self._tasks.create_task(self._deliver(peer_id, lines))
            self._outboxes[peer_id] = _Outbox(lines, worker)
        self._came.ring()

    def _dismiss(self, peer_id: str) -> None:
        outbox = self._outboxes.pop(peer_id)
        outbox.worker.cancel()
        # Nobody takes these any more; whoever waits for room, or for the last one, goes on.
        while not outbox.lines.empty():
            outbox.lines.get_nowait()
            outbox.lines.task_done()

    # --- what is said ---

    async def _talk(self, *, stay: bool) -> None:
        fd = input_fd()
        if fd is not None:
            try:
                async for text in read_lines(fd):
                    if text:
                        await self._say(text)
            except OSError as exc:
                raise CommandError(
                    f"standard input can't be read: {exc.strerror}", reason="bad_input"
                ) from None
            await self._all_said()
            if not stay:
                return
        await asyncio.get_running_loop().create_future()  # until stopped

    async def _say(self, text: str) -> None:
        now = asyncio.get_running_loop().time()
        line = _Line(text, now + PATIENCE)
        while self._recent and self._recent[0].until <= now:
            self._recent.popleft()
        if not self._outboxes:
            if not self._recent:
                self._view.notice(f"Nobody else is here. Who comes within {PATIENCE:g} s hears it.")
            elif len(self._recent) == _MAX_WAITING:
                await self._somebody(self._recent[0].until)
        self._recent.append(line)
        for peer_id, outbox in list(self._outboxes.items()):
            if peer_id not in line.given:  # who came while this waited for room has it
                line.given.add(peer_id)
                await outbox.lines.put(line)

    async def _somebody(self, until: float) -> None:
        """Wait until somebody is there, or it is ``until``."""
        with suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                while not self._outboxes:
                    await self._came.wait()

    async def _deliver(self, peer_id: str, lines: asyncio.Queue[_Line]) -> None:
        while True:
            line = await lines.get()
            try:
                await self._send(peer_id, line)
            finally:
                lines.task_done()

    async def _send(self, peer_id: str, line: _Line) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                peer = await self._mesh.wait_for_peer(peer_id, max(0, line.until - loop.time()))
                await peer.send(line.text)
            except PeerClosed:
                continue  # a new incarnation took its place; or it left, and this ends
            except MeshClosed:
                pass
            except (MeshTimeout, MessageTooLarge) as exc:
                self._view.notice(f"Not delivered: {exc}")
            return

    async def _all_said(self) -> None:
        """Wait until what was said has arrived, or has waited long enough."""
        if unheard := [line for line in self._recent if not line.given]:
            await self._somebody(unheard[-1].until)
            if not unheard[-1].given:
                self._view.notice(f"Nobody came. Lines not delivered: {len(unheard)}.")
        for outbox in list(self._outboxes.values()):
            await outbox.lines.join()
        async with asyncio.TaskGroup() as group:
            for peer in self._mesh.peers.values():
                group.create_task(self._flush(peer))

    async def _flush(self, peer: Peer) -> None:
        try:
            await peer.flush(PATIENCE)
        except (PeerClosed, MeshClosed):
            pass
        except MeshTimeout as exc:
            self._view.notice(f"Not sure that all arrived: {exc}")
