"""One bot of the demo, without its process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from meshpeer import Event, PeerJoined, PeerManager
from meshpeer.cli.bot import _Bot
from meshpeer.signaling.memory import MemoryHub


async def test_a_peer_that_left_before_its_coming_was_read_has_a_row(memory_hub: MemoryHub) -> None:
    """And nothing is sent to it: the demo then says that nothing was."""

    async def events() -> AsyncIterator[Event]:
        yield PeerJoined(peer_id="gone", incarnation="gone-one", name=None, metadata={})

    bot = _Bot(PeerManager(memory_hub.transport(), room="lobby"))
    bot._others = frozenset({"gone"})
    async with asyncio.TaskGroup() as group:
        await bot._watch(events(), group)
    assert list(bot._pairs) == ["gone"]
    assert not bot._senders
