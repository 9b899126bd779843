"""A relay, as a process, ends and another one takes its place: nobody whom it served notices.

How long the way back took is printed (pytest ``-s`` shows it), and not asserted.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from time import perf_counter
from typing import Any

import pytest

from meshpeer import (
    Closed,
    ConnectionReport,
    Event,
    Joined,
    MeshState,
    Path,
    PeerJoined,
    PeerLeft,
    PeerManager,
    PeerState,
    PeerStateChanged,
    SignalingChanged,
)
from tests.cli.processes import starter

ROOMS = {"lobby": "abcd", "hall": "xy"}
UNSEEN = (PeerJoined, PeerLeft, PeerStateChanged, Closed)
"""What nobody may see because of a relay."""


class Rounds:
    """A room that talks: who has everybody's message of a round sends that of the next one.

    So each message must be the next one of its sender, and who is behind is waited for.
    """

    def __init__(self, members: list[PeerManager]) -> None:
        self.members = members
        self.done = dict.fromkeys((m.peer_id for m in members), 0)
        """Rounds that each member has had."""
        self.changed = asyncio.Condition()
        self.end: int | None = None

    async def take_part(self, manager: PeerManager) -> None:
        inbox = manager.messages()
        heard = dict.fromkeys(manager.peers, 0)
        while self.done[manager.peer_id] != self.end:
            number = self.done[manager.peer_id] + 1
            for peer in manager.peers.values():
                await peer.send(number)
            while min(heard.values()) < number:
                message = await anext(inbox)
                heard[message.sender.id] += 1
                assert message.data == heard[message.sender.id]
                assert message.path is Path.DIRECT
            async with self.changed:
                self.done[manager.peer_id] = number
                self.changed.notify_all()

    async def more(self, count: int) -> None:
        """Wait until everybody has had so many more rounds."""
        until = max(self.done.values()) + count
        async with self.changed:
            await self.changed.wait_for(lambda: min(self.done.values()) >= until)

    def finish(self) -> None:
        # Nobody is more than one round ahead of anybody.
        self.end = max(self.done.values()) + 2


class Witness:
    """Everything that a manager told from now on."""

    def __init__(self, manager: PeerManager) -> None:
        self.manager = manager
        self.before = self.identities()
        self.seen: list[Event] = []
        self.stream = manager.events()

    def identities(self) -> Any:
        """Who we are, and the peers: the objects too, which stand for one process each."""
        return (
            (self.manager.peer_id, self.manager.incarnation),
            [(p.id, p.incarnation, id(p)) for p in self.manager.peers.values()],
        )

    async def until(self, kind: type[Event], **fields: object) -> Any:
        async for event in self.stream:
            self.seen.append(event)
            if isinstance(event, kind) and all(getattr(event, k) == v for k, v in fields.items()):
                return event
        raise AssertionError(f"it ended before a {kind.__name__}")

    async def back(self) -> float:
        """Wait for the seat at the other relay; returns the time."""
        await self.until(SignalingChanged, state=MeshState.RECONNECTING)
        joined: Joined = await self.until(Joined)
        assert not joined.resumed
        assert joined.incarnation == self.manager.incarnation
        return perf_counter()

    def saw_nothing(self) -> None:
        assert [event for event in self.seen if isinstance(event, UNSEEN)] == []
        assert self.identities() == self.before
        for peer in self.manager.peers.values():
            assert (peer.state, peer.path) == (PeerState.CONNECTED, Path.DIRECT)
            stats = self.manager.stats().peers[peer.id]
            assert (stats.connections, stats.fallbacks) == (1, 0)


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
async def test_nobody_notices_a_relay_that_is_restarted(how: str) -> None:
    async with starter() as start, AsyncExitStack() as stack:
        old, url = await start.relay()
        rooms: dict[str, list[PeerManager]] = {
            room: [
                await stack.enter_async_context(PeerManager(url, room=room, peer_id=peer_id))
                for peer_id in peer_ids
            ]
            for room, peer_ids in ROOMS.items()
        }
        everybody = [m for members in rooms.values() for m in members]
        for members in rooms.values():
            for manager in members:
                for peer in await manager.wait_for_peers(len(members) - 1, timeout=30):
                    assert peer.path is Path.DIRECT
        witnesses = [Witness(manager) for manager in everybody]

        async with asyncio.TaskGroup() as group:
            talk = {room: Rounds(members) for room, members in rooms.items()}
            for rounds in talk.values():
                for manager in rounds.members:
                    group.create_task(rounds.take_part(manager))
            for rounds in talk.values():
                await rounds.more(2)

            returns = [group.create_task(witness.back()) for witness in witnesses]
            if how == "SIGTERM":
                old.process.terminate()
                status, said = await old.end()
                assert (status, "Traceback" in said) == (0, False)
            else:
                await old.kill()
            for rounds in talk.values():
                await rounds.more(2)  # without any relay

            _, again = await start.relay("--port", url.rpartition(":")[2])
            assert again == url
            accepting = perf_counter()
            took = [at - accepting for at in await asyncio.gather(*returns)]
            print(f"{how}: back after", ", ".join(f"{seconds:.2f}" for seconds in took), "s")
            for rounds in talk.values():
                await rounds.more(2)
                rounds.finish()

        # Whom it serves now can agree on another path, and who comes now meets everybody.
        a, b, *_ = rooms["lobby"]
        a.debug.force_ice_restart(b.peer_id)
        await witnesses[0].until(ConnectionReport, peer_id=b.peer_id, restarts=1)
        for witness in witnesses:
            witness.saw_nothing()
        for room, members in rooms.items():
            newcomer = PeerManager(url, room=room, peer_id="newcomer")
            async with newcomer:
                peers = await newcomer.wait_for_peers(len(members), timeout=30)
                assert {(p.id, p.incarnation) for p in peers} == {
                    (m.peer_id, m.incarnation) for m in members
                }
                for manager in members:
                    inbox = manager.messages()
                    await newcomer.peers[manager.peer_id].send("hello")
                    assert (await anext(inbox)).data == "hello"
        # That one left is what they see last, and of nobody else.
        for witness in witnesses:
            left = await witness.until(PeerLeft)
            assert (left.peer_id, left.reason) == ("newcomer", "left")
