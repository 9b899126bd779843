"""Two peers on the hosts of a lab, with the relay and the servers that they need."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from tests.network.lab import Lab, Node
from tests.network.processes import Coturn, Got, PeerProgram, programs

__all__ = ["Homes", "Meeting", "Network", "ServerList", "meeting"]

Homes = tuple[Node, Node]
Network = Callable[[Lab], Homes]
"""Builds a network, and returns the two hosts that peers run on."""
ServerList = Callable[[list[Coturn]], list[dict[str, Any]]]
"""What both peers are configured with, given the servers that there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """Two peers that are ready to join."""

    lab: Lab
    homes: Homes
    """Left and right."""
    left: PeerProgram
    right: PeerProgram
    coturns: list[Coturn]

    @property
    def peers(self) -> tuple[PeerProgram, PeerProgram]:
        """The one that dials, which is the one with the smaller id, and the other."""
        first, second = sorted((self.left, self.right), key=lambda peer: peer.name)
        return first, second

    async def connect(self) -> float:
        """Let them join and connect.

        Returns the seconds from the moment in which the one that dials knows of the other (it makes
        the offer then) to that in which both are connected: as raw aiortc is measured, from the
        offer to the open channel, and with the signalling in between.
        """
        known = await self.meet()
        both = await asyncio.gather(
            *(peer.happens("state", state="connected") for peer in self.peers)
        )
        seconds: float = max(event["at"] for event in both) - known
        return seconds

    async def meet(self) -> float:
        """Let them join; returns when the one that dials knows of the other."""
        dialling, other = self.peers
        other.say("join")
        await other.happens("joined")
        dialling.say("join")
        known = await dialling.happens("known")
        await other.happens("known")
        return float(known["at"])

    async def arrives(self, sent_after: float, path: str | None = None) -> float:
        """When both first had a message that was sent later than that, over this path if given."""
        return max(await asyncio.gather(*(_arrives(peer, sent_after, path) for peer in self.peers)))

    @property
    def path(self) -> str:
        """How data flows, as both say; both words where they do not agree."""
        paths = set()
        for peer in self.peers:
            told = peer.latest("state", "report")
            assert told is not None
            paths.add(str(told["path"]))
        return "/".join(sorted(paths))


async def _arrives(peer: PeerProgram, sent_after: float, path: str | None) -> float:
    def fits(got: Got) -> bool:
        return got.sent > sent_after and path in (None, got.path)

    await peer.until(
        lambda: bool(peer.got) and fits(peer.got[-1]),
        f"message sent since{f' over {path}' if path else ''}",
        timeout=60,
    )
    return next(got.at for got in peer.got if fits(got))


@asynccontextmanager
async def meeting(
    network: Network,
    servers: ServerList,
    *,
    coturns: int = 1,
    swapped: bool = False,
    seat_timeout: float = 30,
    relay_path: bool = True,
) -> AsyncIterator[Meeting]:
    """Two peers, ready to join, in a network of their own that is gone at the end.

    ``swapped``: the right one dials, not the left one. ``relay_path``: data may go over the relay.
    """
    with Lab() as lab:
        relay_host = lab.host("relay")
        turn_hosts = [lab.host(f"turn{number}") for number in range(coturns)]
        homes = network(lab)
        async with programs(lab) as run:
            running = await asyncio.gather(*(run.coturn(host) for host in turn_hosts))
            relay = f"ws://{relay_host.address}:443"
            ids = ("b", "a") if swapped else ("a", "b")
            # The relay last, so that all three load their modules at the same time.
            left, right = [
                await run.peer(host, peer_id, relay, servers(running), relay_path=relay_path)
                for host, peer_id in zip(homes, ids, strict=True)
            ]
            await run.relay(relay_host, seat_timeout=seat_timeout)
            await asyncio.gather(left.happens("ready"), right.happens("ready"))
            try:
                yield Meeting(lab=lab, homes=homes, left=left, right=right, coturns=running)
            except Exception as exc:
                for where, peer in (("left", left), ("right", right)):
                    exc.add_note("\n".join([f"{peer.name}, on the {where}:", *peer.lines]))
                raise
