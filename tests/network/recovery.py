"""Recovery: what breaks under two peers that talk, and how long until they talk again.

Both send a numbered message every 20 ms. The time is from the break (or from the return, where what
broke comes back) to the moment in which both have a message that was sent after it: everything
before that one has arrived then, since none may be missing.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from meshpeer.config import MeshConfig
from tests.network.case import Case, Outcome
from tests.network.lab import UDP_BLOCKED, Lab, Nat, Node, Router, from_and_to
from tests.network.matrix import homes, stun
from tests.network.meeting import Homes, Meeting, Network, ServerList, meeting
from tests.network.processes import Coturn, PeerProgram

__all__ = ["cases"]

Span = tuple[float, float]
"""When a command was given, and when it had been carried out."""
Break = Callable[[Meeting], Awaitable[Span]]

_PORT_RESTRICTED = homes(Nat.PORT_RESTRICTED, Nat.PORT_RESTRICTED)
_SYMMETRIC = homes(Nat.SYMMETRIC, Nat.SYMMETRIC)
_SEAT = 5.0
"""Seconds that the relay keeps the seat of a peer that was killed."""


def _timed(command: Callable[[], object]) -> Span:
    start = time.monotonic()
    command()
    return start, time.monotonic()


# --- networks and servers ---


def _second_interface(lab: Lab) -> Homes:
    """As between port-restricted homes; the left host has another router to go to."""
    left, right = _PORT_RESTRICTED(lab)
    left.attach(lab.router("mobile", Nat.PORT_RESTRICTED), interface="eth1", up=False)
    return left, right


def _turn(transport: str) -> ServerList:
    def servers(coturns: list[Coturn]) -> list[dict[str, Any]]:
        return [coturn.turn(transport) for coturn in coturns]

    return servers


# --- breaks ---


async def _change_address(pair: Meeting) -> Span:
    return _timed(pair.homes[0].change_address)


async def _switch_interface(pair: Meeting) -> Span:
    return _timed(lambda: pair.homes[0].switch("eth0", "eth1"))


async def _change_public_address(pair: Meeting) -> Span:
    return _timed(_router(pair).change_public_address)


def _outage(seconds: float, *, outgoing: bool, incoming: bool) -> Break:
    """Nothing of the left host gets through for a while, signalling included."""

    async def apply(pair: Meeting) -> Span:
        router = _router(pair)
        sent, received = from_and_to(pair.homes[0].address)
        router.drop(*([sent] if outgoing else []), *([received] if incoming else []))
        await asyncio.sleep(seconds)
        return _timed(router.drop)

    return apply


async def _restart_coturn(pair: Meeting) -> Span:
    """Of the two, the one that the data goes over."""
    reports = [peer.latest("report") for peer in pair.peers]
    ends = [end for report in reports if report is not None for end in report["pair"] or ()]
    relayed = {address for kind, address, _ in ends if kind == "relay"}
    used = next(each for each in pair.coturns if each.node.address in relayed)
    start = time.monotonic()
    await used.kill()
    end = time.monotonic()
    await used.start()
    return start, end


def _router(pair: Meeting) -> Router:
    return _router_of(pair.homes[0])


def _router_of(host: Node) -> Router:
    router = host.interfaces["eth0"]
    assert isinstance(router, Router)
    return router


def _allow_udp(pair: Meeting) -> None:
    for host in pair.homes:
        _router_of(host).drop()


# --- running them ---


async def _received(peer: PeerProgram, count: int) -> None:
    await peer.until(lambda: len(peer.got) >= count, f"{count} messages")


async def _flowing(pair: Meeting) -> None:
    """Wait until each has a second's worth of messages more than now."""
    await asyncio.gather(*(_received(peer, len(peer.got) + 50) for peer in pair.peers))


async def _all_arrived(receiver: PeerProgram, sender: PeerProgram) -> None:
    """Check the whole stream, which has ended."""
    count = (await sender.happens("sent"))["count"]
    with suppress(TimeoutError):  # what is missing is said below
        await _received(receiver, count)
    numbers = [got.number for got in receiver.got]
    lost = sorted(set(range(count)) - set(numbers))
    repeated = sorted(number for number, times in Counter(numbers).items() if times > 1)
    assert numbers == list(range(count)), (
        f"of {count} messages to {receiver.name}, lost: {lost}, repeated: {repeated}, "
        f"in order: {numbers == sorted(numbers)}"
    )


def _facts(pair: Meeting) -> list[tuple[int, str]]:
    """The epoch and the path, on both sides."""
    told = [peer.latest("state", "report") for peer in pair.peers]
    return [(each["epoch"], each["path"]) for each in told if each is not None]


def _case(
    name: str,
    breaks: Break,
    limit: float,
    *,
    network: Network = _PORT_RESTRICTED,
    servers: ServerList = stun,
    coturns: int = 1,
    path: str = "direct",
) -> Case:
    async def run(swapped: bool) -> Outcome:
        async with meeting(network, servers, coturns=coturns, swapped=swapped) as pair:
            await pair.connect()
            for peer in pair.peers:
                peer.say("stream")
            await _flowing(pair)
            before = _facts(pair)
            assert pair.path == path, f"connected over {pair.path}, not {path}"
            start, end = await breaks(pair)
            arrived = await pair.arrives(end)
            await _end(pair)
            after = _facts(pair)
            assert after == before, f"epoch and path were {before}, are {after}"
            return Outcome(arrived - start, path)

    return Case(name=name, run=run, limit=limit)


async def _end(pair: Meeting) -> None:
    """End both streams, and check them."""
    await _flowing(pair)
    for peer in pair.peers:
        peer.say("stop")
    first, second = pair.peers
    await asyncio.gather(_all_arrived(first, second), _all_arrived(second, first))
    for peer in pair.peers:
        bad = peer.latest("bad input")
        assert bad is None, f"{peer.name} refused: {bad}"


def _relayed(name: str, limit: float, *, blocked: float, back: bool) -> Case:
    """UDP is blocked under a direct path for so many seconds, and there is no TURN server.

    The time is until data flows over the relay or, ``back``, until it flows directly again.
    """

    async def run(swapped: bool) -> Outcome:
        async with meeting(_PORT_RESTRICTED, stun, swapped=swapped) as pair:
            await pair.connect()
            for peer in pair.peers:
                peer.say("stream")
            await _flowing(pair)
            assert pair.path == "direct", f"connected over {pair.path}"
            start, end = _timed(lambda: _router(pair).drop(*UDP_BLOCKED))
            relayed = await pair.arrives(end, "relay") - start
            await asyncio.sleep(start + blocked - time.monotonic())
            assert pair.path == "relay", f"over {pair.path}, without UDP"
            start, end = _timed(_router(pair).drop)
            direct = await pair.arrives(end, "direct") - start
            await _end(pair)
            assert pair.path == "direct", f"over {pair.path} in the end"
            return Outcome(direct, "relay, then direct") if back else Outcome(relayed, "relay")

    return Case(name=name, run=run, limit=limit)


def _late(limit: float) -> Case:
    """UDP is blocked from the beginning, and passes when both have talked over the relay.

    The time is until data flows directly.
    """

    def blocked(lab: Lab) -> Homes:
        left, right = _PORT_RESTRICTED(lab)
        for host in (left, right):
            _router_of(host).drop(*UDP_BLOCKED)
        return left, right

    async def run(swapped: bool) -> Outcome:
        async with meeting(blocked, stun, swapped=swapped) as pair:
            begin = await pair.meet()
            for peer in pair.peers:
                peer.say("stream")
            await pair.arrives(begin, "relay")
            await _flowing(pair)
            start, end = _timed(lambda: _allow_udp(pair))
            direct = await pair.arrives(end, "direct") - start
            await _end(pair)
            assert pair.path == "direct", f"over {pair.path} in the end"
            return Outcome(direct, "relay, then direct")

    return Case(name="UDP blocked from the beginning, then not", run=run, limit=limit)


async def _kill(swapped: bool) -> Outcome:
    async with meeting(_PORT_RESTRICTED, stun, swapped=swapped, seat_timeout=_SEAT) as pair:
        await pair.connect()
        for peer in pair.peers:
            peer.say("stream")
        await _flowing(pair)
        start = time.monotonic()
        pair.right.kill()
        lost = await pair.left.happens("state", after=start, state="disconnected")
        gone = await pair.left.happens("state", after=start, state="closed")
        assert gone["reason"] == "timeout", gone
        assert gone["at"] - start >= _SEAT, "its seat was not gone yet"
        return Outcome(lost["at"] - start, "disconnected, then closed with its seat")


def cases(outage: float = 10) -> list[Case]:
    """The rows of the table, in its order; packets are dropped for so many seconds."""
    return [
        _case("local address changed", _change_address, 1.5),
        _case("interface down and another up", _switch_interface, 1.5, network=_second_interface),
        _case(
            "NAT mapping flushed and public address changed",
            _change_public_address,
            4.0,
        ),
        *(
            _case(
                f"all packets {which} dropped for {outage:g} s",
                _outage(outage, outgoing=outgoing, incoming=incoming),
                1.5,
            )
            for which, outgoing, incoming in (
                ("sent", True, False),
                ("received", False, True),
                ("both ways", True, True),
            )
        ),
        *(
            _case(
                f"coturn restarted under a TURN path over {transport.upper()}",
                _restart_coturn,
                4.0,
                network=_SYMMETRIC,
                servers=_turn(transport),
                coturns=2,
                path="turn",
            )
            for transport in ("udp", "tcp")
        ),
        _relayed("UDP blocked, no TURN: to the relay", 6.0, blocked=outage, back=False),
        _relayed(
            f"UDP passes again after {outage:g} s: back to direct",
            MeshConfig().upgrade_first,
            blocked=outage,
            back=True,
        ),
        _late(MeshConfig().upgrade_first),
        Case(name="peer killed with SIGKILL", run=_kill, limit=3.0),
    ]
