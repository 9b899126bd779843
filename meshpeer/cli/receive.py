"""`meshpeer receive`: files from whoever is in the room, until it is stopped."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from meshpeer.cli.common import (
    CommandError,
    JoinTokenOption,
    LogJson,
    LogLevel,
    LogLevelOption,
    configure_logging,
    run,
    told_at_the_end,
    until_stopped,
)
from meshpeer.cli.transfer import Board, board
from meshpeer.core.events import PeerStateChanged
from meshpeer.errors import MeshClosed, MeshTimeout, PeerClosed, TransferFailed
from meshpeer.files import FileProgress, FileReceived
from meshpeer.manager import PeerManager
from meshpeer.peer import Peer

__all__ = ["receive"]

_AT_ONCE = 4
"""Files that are received at the same time: one slow sender holds up nobody else."""
_TO_HEAR = 10.0
"""Seconds that a sender has to hear that all is well, before `--once` leaves."""


def receive(
    room: Annotated[str, typer.Option(help="The room to meet in.")],
    directory: Annotated[
        Path,
        typer.Option(file_okay=False, metavar="DIR", help="Where to; made when it is not there."),
    ] = Path(),
    relay: Annotated[
        str, typer.Option(metavar="URL", help="The relay to meet at.")
    ] = "ws://127.0.0.1:3001",
    join_token: JoinTokenOption = None,
    peer_id: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="Our peer id; random by default.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What the others read, and may send to.")] = None,
    sender: Annotated[
        str | None,
        typer.Option("--from", metavar="ID", help="Take files of this peer id only."),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Leave when one file has come.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write what happens as JSON, one object a line.")
    ] = False,
    log_level: LogLevelOption = LogLevel.WARNING,
    log_json: LogJson = False,
) -> None:
    """Store what others send with `meshpeer send`, from anybody in the room unless --from is given.

    No file that is there is ever overwritten: the new one gets another name. Ctrl-C leaves the
    room, with status 0, or 1 when --once was given and nothing came. What had come of a file stays,
    hidden; when the same file is sent again it goes on from there.
    """
    configure_logging(log_level, log_json)
    shown = board(as_json=as_json, sending=False)

    async def main() -> int:
        with told_at_the_end(shown.closed):
            mesh = PeerManager(relay, room=room, peer_id=peer_id, name=name, join_token=join_token)
            came = await _Receiver(mesh, shown, directory, sender).run(once=once)
            if once and not came:
                raise CommandError("stopped before a file came", reason="stopped")
        return 0

    run(main)


class _Receiver:
    """One stay in a room."""

    def __init__(
        self, mesh: PeerManager, shown: Board, directory: Path, sender: str | None
    ) -> None:
        self._mesh = mesh
        self._shown = shown
        self._directory = directory
        self._sender = sender
        self._came = 0
        self._leaving = False

    async def run(self, *, once: bool) -> int:
        """Until stopped, or for one file. Returns how many came. Raises what ended it early."""
        # The workers end with the manager, not before it: a sender then knows that this process is
        # gone, and waits for the next one, where a refusal would have been final.
        async with asyncio.TaskGroup() as workers, until_stopped(), self._mesh:
            self._shown.joined(self._mesh.peer_id, self._mesh.room)
            self._mesh.on(PeerStateChanged, lambda _: self._shown.refresh())
            receiving = [
                workers.create_task(self._receive(once=once))
                for _ in range(1 if once else _AT_ONCE)
            ]
            try:
                with self._shown.live():
                    await asyncio.wait(receiving)
            finally:
                self._leaving = True
        return self._came

    async def _receive(self, *, once: bool) -> None:
        """One file after the other, until the manager is closed."""
        while True:
            peers: set[Peer] = set()

            def progress(progress: FileProgress, peers: set[Peer] = peers) -> None:
                peers.add(progress.peer)
                self._shown.progress(progress)

            try:
                received = await self._mesh.receive_file(
                    self._directory, sender=self._sender, on_progress=progress
                )
            except (PeerClosed, TransferFailed) as exc:
                self._shown.notice(f"A file did not come: {exc}.")
                continue
            except MeshClosed:
                if self._leaving:
                    return
                raise
            except OSError as exc:
                raise CommandError(
                    f"files can't be stored in {self._directory}: {exc.strerror}",
                    reason="unwritable_directory",
                ) from None
            finally:
                for peer in peers:
                    self._shown.ended(peer)
            self._came += 1
            self._shown.received(received)
            if once:
                await self._heard(received)
                return

    async def _heard(self, received: FileReceived) -> None:
        """Wait until the sender knows: that is its last message of us."""
        try:
            await received.sender.flush(_TO_HEAR)
        except (PeerClosed, MeshClosed):
            pass
        except MeshTimeout as exc:
            self._shown.notice(f"Not sure that {received.sender.id} knows: {exc}")
