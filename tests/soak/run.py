"""Runs it: eight homes in a lab, a process in each, what breaks between them, and what came of it.

Each host is behind a router of its own, so that whatever is dropped is dropped between them; a
direct path is told from the way to the relay by being UDP between two of the routers.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.network.lab import Lab, Nat, Node, Router
from tests.network.processes import PeerProgram, Program, Programs, programs
from tests.soak.schedule import Fault, Kind
from tests.soak.stream import Ledger

__all__ = ["RATE", "Pair", "Report", "judge", "names", "soak"]

names = ("a", "b", "c", "d", "e", "f", "g", "h")
"""Of the processes."""
RATE = 50.0
"""Messages a second from each to each, if nothing else is said."""

_EVERY = 10.0
"""Seconds between two lines about how it goes."""
_GRACE = 60.0
"""Seconds after the last fault in which everything must have arrived."""

Say = Callable[[str], None]
Results = dict[str, dict[str, Any]]
"""What each process reported, by its name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """What one process sent to another, on all channels."""

    sender: str
    receiver: str
    sent: int
    received: int
    paths: dict[str, int]
    """How many of the messages came over each."""
    pause: float
    """The longest time without a message, in seconds."""
    wrong: str
    """What is wrong with it, by channel; empty when nothing is."""


@dataclass(slots=True, kw_only=True)
class Report:
    """What came of a run."""

    pairs: list[Pair]
    wrong: list[str]
    """What must not have happened, besides what is wrong with the streams."""
    log: list[dict[str, Any]]
    """What all processes said, and what was broken, in order of time."""

    @property
    def good(self) -> bool:
        """Whether it is as it must be."""
        return not self.wrong and not any(pair.wrong for pair in self.pairs)


def judge(results: Results) -> list[Pair]:
    """Hold what the senders sent against what the receivers got."""
    return [
        _judge(results, sender, receiver)
        for sender in results
        for receiver in results
        if sender != receiver
    ]


def _judge(results: Results, sender: str, receiver: str) -> Pair:
    sent: dict[str, int] = results[sender]["sent"].get(receiver, {})
    result = results[receiver]
    ledgers = {
        channel: Ledger(**{**told, "missing": set(told["missing"])})
        for channel, told in result["got"].get(sender, {}).items()
    }
    wrong = [
        f"{channel}: {count} {what}"
        for channel in sorted({*sent, *ledgers})
        for what, count in ledgers.get(channel, Ledger()).faults(sent.get(channel, 0)).items()
    ]
    return Pair(
        sender=sender,
        receiver=receiver,
        sent=sum(sent.values()),
        received=sum(each.received for each in ledgers.values()),
        paths=result["paths"].get(sender, {}),
        pause=result["pauses"].get(sender, 0.0),
        # A pair that was never heard of is no success either.
        wrong="; ".join(wrong) if sent else "nothing was sent",
    )


@dataclass(slots=True)
class _Network:
    """The homes, and what is dropped between them now."""

    lab: Lab
    routers: dict[str, Router] = field(default_factory=dict)
    hosts: dict[str, Node] = field(default_factory=dict)
    cuts: Counter[tuple[str, str]] = field(default_factory=Counter)
    no_udp: Counter[str] = field(default_factory=Counter)
    offline: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        for name in names:
            router = self.lab.router(f"home-{name}", Nat.PORT_RESTRICTED)
            self.routers[name] = router
            self.hosts[name] = self.lab.host(name, router)

    def change(self, fault: Fault, by: int) -> None:
        """Break this, or mend it: one more or one less that drops it."""
        match fault.kind:
            case Kind.CUT:
                first, second = fault.who
                self.cuts[first, second] += by
                self.cuts[second, first] += by
                self._apply(first, second)
            case Kind.ONE_WAY:
                first, second = fault.who
                self.cuts[first, second] += by
                self._apply(first)
            case Kind.NO_UDP:
                self.no_udp[fault.who[0]] += by
                self._apply(*fault.who)
            case Kind.OFFLINE:
                self.offline[fault.who[0]] += by
                self._apply(*fault.who)
            case _:
                raise ValueError(f"the network does not break by {fault.kind}")

    def change_public_address(self, name: str) -> None:
        """Of this home; what is cut stays cut."""
        self.routers[name].change_public_address()
        self._apply(*(sender for sender, receiver in +self.cuts if receiver == name))

    def _apply(self, *changed: str) -> None:
        for name in changed:
            rules = [
                f"meta l4proto udp ip daddr {self.routers[receiver].address} drop"
                for sender, receiver in +self.cuts
                if sender == name
            ]
            if self.no_udp[name]:
                rules.append("meta l4proto udp drop")
            if self.offline[name]:
                rules.append("drop")
            self.routers[name].drop(*rules)


class _Soak:
    def __init__(self, network: _Network, run: Programs, relay_host: Node, say: Say) -> None:
        self._network = network
        self._run = run
        self._relay_host = relay_host
        self._relay: Program | None = None
        self._peers: dict[str, PeerProgram] = {}
        self._say = say
        self._broken: list[Fault] = []
        self._started = 0.0
        self.log: list[dict[str, Any]] = []

    async def start(self, stun: str, rate: float) -> None:
        """Start everything; returns when everybody sends."""
        relay = f"ws://{self._relay_host.address}:443"
        for name in names:
            program = await self._run.run(
                *(self._network.hosts[name], sys.executable, "-m", "tests.soak.peer"),
                *("--relay", relay, "--id", name, "--stun", stun, "--rate", str(rate)),
                kind=PeerProgram,
                name=name,
            )
            assert isinstance(program, PeerProgram)
            self._peers[name] = program
        await self._start_relay()
        await self._all("ready")
        self._tell(f"join {len(names) - 1}")
        await self._all("connected")
        self._tell("send")
        self._started = time.monotonic()

    async def _start_relay(self) -> None:
        self._relay = await self._run.relay(self._relay_host)

    def _tell(self, line: str) -> None:
        for program in self._peers.values():
            program.say(line)

    async def _all(self, event: str) -> None:
        async with asyncio.TaskGroup() as group:
            for program in self._peers.values():
                group.create_task(program.happens(event, timeout=_GRACE))

    # --- what breaks ---

    async def break_and_mend(self, faults: list[Fault], seconds: float) -> None:
        """Do what the schedule says, and say how it goes, for so long."""
        async with asyncio.TaskGroup() as group:
            for fault in faults:
                group.create_task(self._fault(fault))
            group.create_task(self._progress(seconds))

    async def _until(self, moment: float) -> None:
        await asyncio.sleep(self._started + moment - time.monotonic())

    async def _fault(self, fault: Fault) -> None:
        await self._until(fault.start)
        self._note("breaks", fault)
        self._broken.append(fault)
        match fault.kind:
            case Kind.RELAY:
                assert self._relay is not None
                self._relay.kill()
                await self._relay.process.wait()
                await self._until(fault.end)
                await self._start_relay()
            case Kind.STOPPED:
                process = self._peers[fault.who[0]].process
                os.kill(process.pid, signal.SIGSTOP)
                await self._until(fault.end)
                os.kill(process.pid, signal.SIGCONT)
            case Kind.ADDRESS:
                self._network.hosts[fault.who[0]].change_address()
            case Kind.PUBLIC_ADDRESS:
                self._network.change_public_address(fault.who[0])
            case _:
                self._network.change(fault, +1)
                await self._until(fault.end)
                self._network.change(fault, -1)
        self._broken.remove(fault)
        self._note("mended", fault)

    def _note(self, event: str, fault: Fault) -> None:
        self.log.append({"at": time.monotonic(), "event": event, "fault": str(fault)})

    async def _progress(self, seconds: float) -> None:
        moment = 0.0
        while (moment := min(moment + _EVERY, seconds)) < seconds:
            await self._until(moment)
            self._say(self._how_it_goes(moment))
        await self._until(seconds)

    def _how_it_goes(self, moment: float) -> str:
        latest = [program.latest("count") for program in self._peers.values()]
        told = [each for each in latest if each is not None]
        sent = sum(each["sent"] for each in told)
        received = sum(each["received"] for each in told)
        paths: Counter[str] = Counter()
        for each in told:
            paths.update(each["paths"])
        ends = ", ".join(f"{path} {count}" for path, count in sorted(paths.items()))
        broken = "; ".join(f"{each.kind} {' '.join(each.who)}" for each in self._broken)
        wrong = len(self._wrong())
        return (
            f"{moment:4.0f} s: {sent} sent, {received} received, ends by path: {ends or 'none'}"
            f"{f', WRONG: {wrong}' if wrong else ''}; broken: {broken or 'nothing'}"
        )

    def _wrong(self) -> list[str]:
        return [
            f"{program.name}: {said['text']}"
            for program in self._peers.values()
            for said in program.events
            if said["event"] == "wrong"
        ]

    # --- the end ---

    async def finish(self) -> Report:
        """Let everything arrive, and ask everybody."""
        late = []
        self._tell("stop")
        try:
            async with asyncio.timeout(_GRACE):
                await self._all("flushed")
                for name, program in self._peers.items():
                    program.say(f"expect {json.dumps(self._sent_to(name))}")
                await self._all("complete")
        except* TimeoutError:
            late.append(f"not everything had arrived {_GRACE:g} s after the end of the faults")
        self._tell("report")
        await self._all("result")
        results: Results = {}
        for name, program in self._peers.items():
            result = program.latest("result")
            assert result is not None
            results[name] = result
            self.log += ({"by": name, **said} for said in program.events)
        self.log.sort(key=lambda said: float(said["at"]))
        return Report(pairs=judge(results), wrong=[*self._wrong(), *late], log=self.log)

    def _sent_to(self, receiver: str) -> dict[str, dict[str, int]]:
        told = {name: program.latest("flushed") for name, program in self._peers.items()}
        return {
            name: flushed["sent"][receiver]
            for name, flushed in told.items()
            if flushed is not None and receiver in flushed["sent"]
        }


async def soak(faults: list[Fault], seconds: float, rate: float, say: Say) -> Report:
    """Let eight processes talk for so long while this breaks; ``rate``: messages a second from each
    to each. Raises AssertionError or TimeoutError when it does not even begin, or a process ends.
    """
    with Lab() as lab:
        relay_host, stun_host = lab.host("relay"), lab.host("stun")
        network = _Network(lab)
        async with programs(lab) as run:
            coturn = await run.coturn(stun_host)
            lasting = _Soak(network, run, relay_host, say)
            await lasting.start(coturn.stun()["urls"], rate)
            await lasting.break_and_mend(faults, seconds)
            return await lasting.finish()
