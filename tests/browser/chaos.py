"""Nodes that are told anything: what the simulation does not do to them, and what nobody would.

Three nodes talk to each other, and in between whatever a shell may call is called, and what they
say to each other is dropped, repeated and altered. Nothing is expected of it but an answer, which
is recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from random import Random
from typing import Any

from msgspec import Raw, structs

from meshpeer.config import MeshConfig
from meshpeer.core import frames
from meshpeer.core.delivery import Outgoing
from meshpeer.core.events import CandidateInfo, CandidatePair
from meshpeer.core.frames import Ack, Limit, Open, Part, Parts, Resume, Role, Start
from meshpeer.core.link import AcceptAnswer, AcceptOffer, MakeOffer
from meshpeer.core.messages import (
    IceCandidate,
    IceServerInfo,
    IceServers,
    Member,
    MemberJoined,
    MemberLeft,
    MemberUpdated,
    Notice,
    Refused,
    RestartIce,
    SignalIn,
    Welcome,
)
from meshpeer.core.node import (
    RELAY,
    Deliver,
    Node,
    NodeOutput,
    Probe,
    Ready,
    Run,
    SendFrame,
    Signal,
)
from meshpeer.core.values import Kind
from meshpeer.errors import (
    ConnectionFailed,
    MeshError,
    MessageTooLarge,
    ProtocolError,
    TooManyChannels,
    UnexpectedInput,
)
from tests.sim.world import sdp

__all__ = ["Chaos", "altered"]

NAMES = ("a", "b", "ä")
CANDIDATE = IceCandidate("candidate:1 1 udp 1 192.0.2.1 4000 typ host", "0", 0)
SERVERS = ("turn:one.example.org", "turn:two.example.org", "stun:three.example.org")
PAIRS = tuple(
    CandidatePair(CandidateInfo(kind, "192.0.2.1", 4000, server), CandidateInfo("host", "::1", 1))
    for kind, server in (("host", None), ("srflx", None), *(("relay", url) for url in SERVERS))
)
BODIES = (
    "{}",
    "[",
    "null",
    '{"type":"offer","sdp":1}',
    '{"type":"offer","sdp":"v=0"}',
    '{"type":"dial","reason":"\\u0007"}',
    '{"type":"answer","sdp":"v=0\\r\\nm=application 9\\r\\n","generation":-1}',
    '{"type":"candidates","candidates":[{"candidate":""}],"generation":1}',
    '{"type":"stale","incarnation":"x","epoch":1}',
    '{"type":"stale","incarnation":"incarnation","epoch":2147483647}',
    '{"type":"other"}',
)
CONFIGS = tuple(
    MeshConfig(
        relay_after=relay_after,
        max_message_size=size,
        max_channels=channels,
        channel_window=window,
        receive_window=64 * 1024,
        send_window=64 * 1024,
        retry_max=4.0,
        upgrade_first=2.0,
        channel_priorities={"b": "high"},
    )
    for relay_after, size, channels, window in (
        (0.0, 64 * 1024, 32, 512 * 1024),
        (3.0, 1024, 2, 32 * 1024),
        (3.0, 20_000, 32, 40 * 1024),
        (1.0, 64 * 1024, 2, 32 * 1024),
        (None, 20_000, 3, 32 * 1024),
    )
)


def _size(value: int) -> bytes:
    return frames.run_head(value, 0, 0)[:-2]


def _part(part: Part) -> bytes:
    """One part as bytes, whatever is in it."""
    flags, total, number, payload = part
    head = bytes((flags,))
    if flags & frames.FIRST:
        head += _size(total) * (not flags & frames.LAST) + _size(number) * (flags >> 4 > 0)
    return head + _size(len(payload)) + payload


def altered(rng: Random, data: bytes) -> bytes:
    """A frame that is like this one, but for something."""
    if rng.random() < 0.15:
        place = rng.randrange(len(data))
        return data[:place] + bytes([rng.randrange(256)]) * rng.randrange(3) + data[place + 1 :]
    if rng.random() < 0.1:
        return data[: rng.randrange(len(data))]

    def near(value: int) -> int:
        return max(0, value + rng.choice((-1, 0, 0, 1, 1, 1000)))

    match frame := frames.decode(data):
        case Parts(runs):
            pieces: list[bytes] = []
            for channel, seq, parts in runs:
                several = list(parts)
                at = rng.randrange(len(several))
                one = several[at]
                several[at] = rng.choice(
                    (
                        one,
                        one._replace(flags=one.flags ^ rng.choice((1, 2, 4, 8, 12, 16, 32))),
                        one._replace(total=near(one.total), number=near(one.number)),
                        one._replace(payload=one.payload[: rng.randrange(len(one.payload) + 1)]),
                        one._replace(payload=one.payload[:-1] + b"\xff"),
                    )
                )
                if rng.random() < 0.2:
                    several.insert(at, several[rng.randrange(len(several))])
                if rng.random() < 0.2 and len(several) > 1:
                    several.pop(at)
                which = channel if rng.random() < 0.8 else near(channel)
                number = seq if rng.random() < 0.7 else near(seq)
                pieces.append(frames.run_head(which, number, len(several)))
                pieces += map(_part, several)
            return frames.encode_parts(pieces)
        case Resume():
            changes: dict[str, Any] = {
                "round": near(frame.round),
                "max_message": rng.choice((frame.max_message, 1023, 1024, 2000)),
                "max_channels": rng.choice((frame.max_channels, 1, 2)),
                "window": rng.choice((frame.window, 32 * 1024, 32 * 1024 - 1)),
                "ask": rng.random() < 0.5,
                "limits": [_near_limit(each, near) for each in frame.limits],
            }
            kept = {name: each for name, each in changes.items() if rng.random() < 0.5}
            return frames.encode(structs.replace(frame, **kept))
        case Start(number, channels):
            names = [*(each.name for each in channels), "z", "c"]
            return frames.encode(
                Start(
                    rng.choice((number, near(number))),
                    [
                        frames.Channel(
                            rng.choice((each.channel, near(each.channel))),
                            near(each.seq),
                            rng.choice((each.offset, near(each.offset))),
                            rng.choice((each.name, rng.choice(names))),
                        )
                        for each in channels
                    ],
                )
            )
        case Open(channel, name):
            return frames.encode(Open(near(channel), rng.choice((name, name, "z"))))
        case Ack(limits):
            return frames.encode(Ack([_near_limit(each, near) for each in limits]))
    return data


def _near_limit(limit: Limit, near: Callable[[int], int]) -> Limit:
    return Limit(
        near(limit.channel) if limit.next % 5 == 0 else limit.channel, near(limit.next), limit.limit
    )


class Chaos:
    """The nodes, and what is under way between them."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = Random(seed)
        self.now = rng.uniform(0.0, 10.0)
        self.numbers = 0
        self.faults = rng.choice((0.0, 0.0, 0.03, 0.1))
        self.forged = rng.choice((0.0, 0.02, 0.1))
        self.under_way: list[Callable[[], object]] = []
        self.frames: list[bytes] = []
        self.incarnations = {name: f"incarnation-{name}" for name in ("a", "b")}
        self.incarnations["ä"] = "incarnation-c"
        self.nodes = {name: self.node(name) for name in NAMES}
        for name in NAMES:
            self.welcome(name)

    def node(self, name: str) -> Node:
        config = self.rng.choice(CONFIGS)
        return Node(
            replace(config, ack_delay=self.rng.choice((0.0, 0.05))),
            peer_id=name,
            incarnation=self.incarnations[name],
            random=self.rng.random,
        )

    # --- what they say ---

    def say(self, name: str, outputs: list[NodeOutput]) -> None:
        for output in outputs:
            match output:
                case Signal(message):
                    event = SignalIn(
                        name,
                        self.incarnations[name],
                        message.to_incarnation,
                        message.epoch,
                        message.body,
                    )
                    self.later(self.tell, message.to, event)
                case Run():
                    self.later(self.done, name, output)
                case SendFrame(peer_id, path, data):
                    self.carry(name, peer_id, path, data)
                case Ready(peer_id):
                    self.later(self.pump, name, peer_id)
                case Probe(peer_id, epoch, nonce):
                    self.later(self.probed, name, peer_id, epoch, nonce)
                case Deliver(peer_id, _, messages):
                    incarnation = self.incarnations[peer_id]
                    for each in messages:
                        args = (peer_id, incarnation, each.number, each.charge)
                        self.later(self.call, name, "taken", *args, timed=False)
                case _:
                    pass

    def later(self, call: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        self.under_way.append(lambda: call(*args, **kwargs))

    def call(self, name: str, method: str, *args: Any, timed: bool = True) -> None:
        """Call a method of a node, and do what it says."""
        function = getattr(self.nodes[name], method)
        with suppress(UnexpectedInput):
            self.say(name, function(*args, *([self.now] if timed else [])))

    def tell(self, name: str, event: Any) -> None:
        self.call(name, "signaling", event)

    def carry(self, name: str, to: str, path: int, data: bytes) -> None:
        self.frames.append(data)
        if self.rng.random() < self.faults:
            data = altered(self.rng, data)
        self.later(self.arrive, name, self.incarnations[name], to, path, data)

    def arrive(self, name: str, incarnation: str, to: str, path: int, data: bytes) -> None:
        if path == RELAY:
            self.call(to, "forwarded", name, incarnation, data)
        else:
            self.call(to, "frame_received", name, incarnation, path, data)

    def pump(self, name: str, peer_id: str) -> None:
        node = self.nodes[name]
        if peer_id not in node._peers:
            return
        delivery = node.delivery(peer_id)
        for _ in range(20):
            data = delivery.pull(self.rng.choice((100, 2000, 65_536)))
            if data is None:
                break
            assert delivery.out is not None
            node.spoke(peer_id, self.now)
            self.carry(name, peer_id, delivery.out, data)

    def probed(self, name: str, peer_id: str, epoch: int, nonce: int) -> None:
        self.call(peer_id, "heard", name, self.incarnations[name], epoch, True)
        self.call(name, "ponged", peer_id, self.incarnations[peer_id], epoch, nonce)

    def done(self, name: str, run: Run) -> None:
        args = (run.peer_id, run.incarnation, run.epoch)
        if self.rng.random() < self.faults:
            error = self.rng.choice(
                (ConnectionFailed("no route"), ProtocolError("not an offer", code="bad_sdp"))
            )
            self.call(name, "operation_failed", *args, run.operation, error)
            return
        match run.operation:
            case MakeOffer(number) | AcceptOffer(_, number):
                self.call(name, "operation_done", *args, run.operation, sdp(f"of {name}"))
                found = (number, (CANDIDATE,), self.rng.random() < 0.7)
                self.later(self.call, name, "local_candidates", *args, *found)
            case AcceptAnswer(_, number):
                pair = self.rng.choice(PAIRS)
                for one, other in ((name, run.peer_id), (run.peer_id, name)):
                    who = (other, self.incarnations[other], run.epoch)
                    self.later(self.call, one, "pair_selected", *who, number, pair)
                    if not number:
                        self.later(self.call, one, "connection_opened", *who)
            case _:
                pass

    # --- what is done to them ---

    def welcome(self, name: str, *, resumed: bool = False) -> None:
        rng = self.rng
        there = [each for each in NAMES if each != name and rng.random() < 0.9]
        self.tell(
            name,
            Welcome(
                1,
                "room",
                name,
                self.incarnations[name],
                "t" * 16,
                rng.choice((2.0, 10.0)),
                resumed=resumed,
                members=[] if resumed else [Member(e, self.incarnations[e]) for e in there],
                forward_window=rng.choice((0, 262_144, 262_144)),
                report_interval=rng.choice((0.0, 5.0, 15.0)),
                ice_servers=rng.choice((None, self.servers())),
            ),
        )

    def servers(self) -> IceServers:
        rng = self.rng
        return IceServers(
            [
                IceServerInfo(
                    [url], rng.choice(("ann", "bob", "bob")), rng.choice(("x", "x", None))
                )
                for url in rng.sample(SERVERS, rng.randrange(3))
            ],
            rng.choice((None, 600.0)),
        )

    def someone(self, name: str) -> str:
        """Another; mostly one that is there."""
        there = sorted(self.nodes[name]._peers)
        return self.rng.choice(there or [each for each in NAMES if each != name])

    def epoch(self, name: str, peer_id: str) -> int:
        """Of the link of one to another."""
        node = self.nodes[name]
        return node.link(peer_id).epoch if peer_id in node._peers else 1

    def send(self, name: str) -> None:
        peer_id, rng = self.someone(name), self.rng
        node = self.nodes[name]
        if peer_id not in node._peers:
            return
        delivery = node.delivery(peer_id)
        for _ in range(rng.randrange(1, 4)):
            self.numbers += 1
            size = rng.choice((0, 3, 100, 900, 1100, 5000, 17_000, 40_000))
            kind = rng.choice(list(Kind))
            payload = b'["%b"]' % (b"x" * size) if kind is Kind.JSON else b"x" * size
            role = rng.choice((Role.PLAIN, Role.PLAIN, Role.REQUEST, Role.REPLY, Role.ERROR))
            if kind is not Kind.TEXT and role is Role.ERROR:
                role = Role.REPLY
            channel = rng.choice(("a", "a", "b", "c", "meshpeer.file"))
            parts = frames.encode_message(kind, payload, role, self.numbers if role else 0)
            with suppress(MessageTooLarge, TooManyChannels):
                if delivery.has_room(channel):
                    place = delivery.accept(Outgoing(channel, len(payload), parts))
                    self.later(delivery.arrived, (place,))
        if rng.random() < 0.2:
            self.later(delivery.arrived, delivery.mark())
            delivery.ask()
        self.pump(name, peer_id)

    def strike(self) -> None:
        """Something happens to one of them."""
        rng = self.rng
        name = rng.choice(NAMES)
        node, peer_id = self.nodes[name], self.someone(name)
        incarnation = self.incarnations[peer_id]
        is_there = peer_id in node._peers
        epoch = self.epoch(name, peer_id)
        args = (peer_id, incarnation, max(0, epoch - (rng.random() < 0.2)))
        match rng.randrange(26):
            case 0:
                self.call(name, "addresses_changed")
            case 1:
                self.call(name, "force_restart", rng.choice((None, peer_id)) if is_there else None)
            case 2:
                self.call(name, "path_lost", *args, "no way")
            case 3:
                self.call(name, "connection_lost", *args, "gone")
            case 4 | 5:
                state = rng.choice(("new", "gathering", "checking", "connected", "disconnected"))
                self.call(name, "ice_state", *args, state)
            case 6 | 7 if is_there:
                self.call(name, "ping", peer_id, rng.randrange(100), timed=False)
            case 8 | 9 if is_there:
                node.report(peer_id, self.now)
            case 10:
                self.call(name, "signaling_lost")
                self.later(self.welcome, name, resumed=rng.random() < 0.5)
            case 11:
                self.tell(name, self.servers())
            case 12:
                self.tell(name, RestartIce(rng.choice((None, peer_id))))
            case 13:
                self.tell(name, Notice("hello"))
            case 14:
                self.tell(name, Refused("no_such_peer", "nobody"))
            case 15:
                reason = rng.choice(("left", "timeout", "removed"))
                self.tell(name, MemberLeft(peer_id, incarnation, reason))
                self.later(self.tell, name, MemberJoined(Member(peer_id, incarnation, "Ann")))
            case 16:
                self.tell(name, MemberUpdated(peer_id, incarnation, "Bob", {"mood": 1}))
            case 17 if rng.random() < 0.3:
                self.restart(name)
            case 18 | 19:
                body = Raw(rng.choice(BODIES).encode())
                who = rng.choice((incarnation, incarnation, incarnation, "incarnation-x"))
                to = rng.choice((node._incarnation, node._incarnation, "incarnation-y"))
                self.tell(
                    name, SignalIn(peer_id, who, to, max(0, epoch + rng.randrange(-1, 2)), body)
                )
            case 20 | 21 | 22 if rng.random() < 0.2:
                self.arrive(peer_id, incarnation, name, epoch, frames.encode(frames.Bye()))
            case 23:
                self.call(name, "heard", *args, rng.random() < 0.5)
            case _:
                self.now += rng.choice((0.5, 1.0, 3.0, 9.0))

    def restart(self, name: str) -> None:
        """A new process comes in the place of one."""
        self.call(name, "close")
        self.numbers += 1
        self.incarnations[name] = f"incarnation-{self.numbers}"
        self.nodes[name] = self.node(name)
        self.welcome(name)
        for other in NAMES:
            if other != name:
                member = Member(name, self.incarnations[name])
                self.later(self.tell, other, MemberJoined(member))

    def step(self) -> None:
        rng = self.rng
        choice = rng.random()
        if rng.random() < self.forged and self.frames:
            name = rng.choice(NAMES)
            peer_id = self.someone(name)
            path = rng.choice((RELAY, self.epoch(name, peer_id)))
            data = altered(rng, rng.choice(self.frames[-50:]))
            self.arrive(peer_id, self.incarnations[peer_id], name, path, data)
        elif choice < 0.75 and self.under_way:
            place = 0 if rng.random() > self.faults else rng.randrange(len(self.under_way))
            call = self.under_way.pop(place)
            if rng.random() >= self.faults:
                call()
            if rng.random() < self.faults:
                self.under_way.append(call)
        elif choice < 0.85:
            self.send(rng.choice(NAMES))
        elif choice < 0.89:
            self.strike()
        else:
            times = [at for node in self.nodes.values() if (at := node.next_deadline()) is not None]
            self.now = max(self.now, min(times, default=self.now))
            for name in NAMES:
                self.call(name, "tick")

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.step()
        for name in NAMES:
            with suppress(MeshError):
                self.call(name, "close")
