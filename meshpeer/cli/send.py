"""`meshpeer send`: one file to one peer, over breaks and restarts of its process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
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
    printable,
    reason_of,
    run,
    told_at_the_end,
    until_stopped,
)
from meshpeer.cli.transfer import Board, board
from meshpeer.core.events import Closed, PeerState, PeerStateChanged
from meshpeer.errors import MeshClosed, PeerClosed, TransferFailed
from meshpeer.files import FileSent
from meshpeer.manager import PeerManager
from meshpeer.peer import Peer

__all__ = ["send"]


def send(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="What to send.")
    ],
    peer: Annotated[
        str, typer.Argument(metavar="PEER", help="Who is to have it: a peer id or a display name.")
    ],
    room: Annotated[str, typer.Option(help="The room to meet in.")],
    relay: Annotated[
        str, typer.Option(metavar="URL", help="The relay to meet at.")
    ] = "ws://127.0.0.1:3001",
    join_token: JoinTokenOption = None,
    peer_id: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="Our peer id; random by default.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What the others read.")] = None,
    wait: Annotated[
        float,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="How long to wait for the peer, at first and whenever its process is gone.",
        ),
    ] = 60,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write what happens as JSON, one object a line.")
    ] = False,
    log_level: LogLevelOption = LogLevel.WARNING,
    log_json: LogJson = False,
) -> None:
    """Send a file to somebody who runs `meshpeer receive` in the same room.

    The status is 0 only if it is stored over there and its SHA-256 is right. When the receiving
    process is restarted meanwhile, this waits for it and goes on where it was. Ctrl-C gives up.
    """
    configure_logging(log_level, log_json)
    shown = board(as_json=as_json, sending=True)

    async def main() -> int:
        with told_at_the_end(shown.closed):
            mesh = PeerManager(relay, room=room, peer_id=peer_id, name=name, join_token=join_token)
            sent = False
            async with until_stopped(), mesh:
                shown.joined(mesh.peer_id, mesh.room)
                mesh.on(PeerStateChanged, lambda _: shown.refresh())
                with shown.live():
                    await _send(mesh, shown, file, peer, wait)
                sent = True
            if not sent:
                raise CommandError("stopped before the file was sent", reason="stopped")
        return 0

    run(main)


async def _send(mesh: PeerManager, shown: Board, file: Path, wanted: str, wait: float) -> None:
    """Until it is there; each process that holds the wanted id or name gets what is missing."""
    while True:
        peer = await _find(mesh, shown, wanted, wait)
        try:
            sent = await _to(peer, shown, file)
        except PeerClosed as exc:
            shown.notice(f"{wanted} is gone ({exc.reason}), and waited for, up to {wait:g} s.")
            continue
        except TransferFailed as exc:
            # Its words: they may be anything.
            raise CommandError(printable(str(exc)), reason=reason_of(exc)) from None
        except OSError as exc:
            raise CommandError(
                f"{file} can't be read: {exc.strerror}", reason="unreadable_file"
            ) from None
        shown.sent(sent, peer)
        return


async def _to(peer: Peer, shown: Board, file: Path) -> FileSent:
    try:
        return await peer.send_file(file, shown.progress)
    finally:
        shown.ended(peer)


async def _find(mesh: PeerManager, shown: Board, wanted: str, seconds: float) -> Peer:
    """The peer with this id, or with this name. Raises `CommandError`, `MeshClosed`."""
    events = mesh.events()
    scope = asyncio.timeout(seconds)
    try:
        async with scope:
            if (peer := _match(mesh.peers.values(), wanted)) is not None:
                return peer
            shown.notice(f"{wanted} is not here yet.")
            async for event in events:
                if (peer := _match(mesh.peers.values(), wanted)) is not None:
                    return peer
                if isinstance(event, Closed):
                    raise event.error or MeshClosed("the manager is closed")
    except TimeoutError:
        if not scope.expired():
            raise
        raise CommandError(
            f"{wanted!r} was not in the room within {seconds:g} s", reason="no_peer"
        ) from None
    raise AssertionError("the last event is Closed")


def _match(peers: Iterable[Peer], wanted: str) -> Peer | None:
    named = []
    for peer in peers:
        if peer.state is PeerState.CLOSED:
            continue
        if peer.id == wanted:
            return peer
        if peer.name == wanted:
            named.append(peer)
    if len(named) > 1:
        ids = ", ".join(sorted(peer.id for peer in named))
        raise CommandError(
            f"{len(named)} peers are called {wanted!r}: name one by its id ({ids})",
            reason="ambiguous_name",
        )
    return named[0] if named else None
