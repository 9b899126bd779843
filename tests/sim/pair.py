"""Two `Delivery` objects and the paths between them, driven step by step; no node, no time.

A path carries frames in order and completely while it lives, as SCTP and the relay do. When it
dies, of what is on its way to each end a part still arrives, as late as can be, and the rest never
does; each end is told at a time of its own. The relay (path 0) may besides lose what is on its way
when the socket of one end drops: that end knows, the other does not. Whatever was looked at may
arrive once more, much later.

What must hold is checked with every message that comes out: it is the next of its channel.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from meshpeer.config import MeshConfig
from meshpeer.core import frames
from meshpeer.core.delivery import RELAY, Delivery, Outgoing, Received
from meshpeer.core.values import Kind
from meshpeer.errors import MessageTooLarge

__all__ = ["OPS", "Config", "End", "Pair", "Step"]

_NOISE = random.Random(0).randbytes(1 << 20)
SIZES = (10, 10, 60, 60, 60, 1000, 16_000, 16_384, 16_385, 33_000, 70_000, 150_000, 250_000)
CHANNELS = ("a", "b", "c", "d")
PULL = (1, 40, 200, 2000, 17_000, 65_536)
OPS = (
    *("send",) * 8,
    *("pull",) * 8,
    *("carry",) * 8,
    *("take",) * 4,
    *("attach",) * 2,
    "tick",
    "ask",
    "die",
    "notice",
    "drop",
    "repeat",
    "give up",
)


class Step(NamedTuple):
    """What happens: ``op`` of `OPS`, at which end, and two numbers that say what and how much."""

    op: str
    end: int
    which: int
    much: int


class Config(NamedTuple):
    """The windows of one end, in KiB."""

    channel: int = 32
    send: int = 64
    receive: int = 256
    message: int = 256

    def mesh(self) -> MeshConfig:
        return MeshConfig(
            channel_window=self.channel * 1024,
            send_window=self.send * 1024,
            receive_window=self.receive * 1024,
            max_message_size=self.message * 1024,
            channel_priorities={"b": "high", "c": "medium"},
        )


@dataclass(eq=False)
class Line:
    """One path, or what the relay is between two drops."""

    path: int
    alive: bool = True
    ways: tuple[deque[bytes], deque[bytes]] = field(default_factory=lambda: (deque(), deque()))
    """What is on its way to each end."""


class End:
    """A delivery, and an application that notes what it accepts and what comes out."""

    def __init__(self, config: MeshConfig) -> None:
        self.config = config
        self.delivery = Delivery(config)
        self.lines: dict[int, Line] = {}
        """Those that it has not been told to be gone, by their path."""
        self.seen: deque[tuple[Line, bytes]] = deque(maxlen=1000)
        """The latest frames that came and were looked at."""
        self.accepted: dict[str, list[int]] = {name: [] for name in CHANNELS}
        """The size of each message."""
        self.given_up: dict[str, set[int]] = {name: set() for name in CHANNELS}
        """The numbers of those that were told to have not arrived."""
        self.places: deque[tuple[int, int]] = deque(maxlen=1000)
        """Those of the latest messages, by which it is asked whether they have arrived."""
        self.came: dict[str, int] = dict.fromkeys(CHANNELS, 0)
        """The number of the next message that may come."""
        self.unread: deque[Received] = deque()

    def live(self) -> list[Line]:
        return [line for line in self.lines.values() if line.alive]


def payload(channel: str, number: int, size: int) -> bytes:
    """A message of at least 10 bytes that is like no other."""
    at = (number * 7919 + ord(channel)) % 700_000
    return b"%s %08d" % (channel.encode(), number) + _NOISE[at : at + size - 10]


class Pair:
    """Both ends. `run` takes any steps; `settle` lets all arrive."""

    def __init__(self, one: Config, other: Config) -> None:
        self.ends = (End(one.mesh()), End(other.mesh()))
        self.epochs = 0
        self.now = 0.0
        self.delivered = 0
        self.ops = {
            "send": self.send,
            "pull": self.pull,
            "carry": self.carry,
            "take": self.take,
            "attach": self.attach,
            "tick": self.tick,
            "ask": self.ask,
            "die": self.die,
            "notice": self.notice,
            "drop": self.drop,
            "repeat": self.repeat,
            "give up": self.give_up,
        }

    def run(self, steps: Iterable[Step]) -> None:
        for step in steps:
            self.ops[step.op](step.end, step.which, step.much)

    # --- applications ---

    def send(self, at: int, which: int, much: int) -> None:
        for _ in range(1 + much % 5):
            if not self.accept(at, CHANNELS[which % len(CHANNELS)], SIZES[much % len(SIZES)]):
                return

    def accept(self, at: int, channel: str, size: int) -> bool:
        """The application sends one message, unless it would have to wait."""
        end = self.ends[at]
        if not end.delivery.has_room(channel):
            return False
        accepted = end.accepted[channel]
        parts = frames.encode_message(Kind.BYTES, payload(channel, len(accepted), size))
        try:
            place = end.delivery.accept(Outgoing(channel, size, parts))
        except MessageTooLarge:
            assert size > self.ends[1 - at].config.max_message_size, "it would take it"
            return False
        end.places.append(place)
        accepted.append(size)
        return True

    def take(self, at: int, which: int, much: int) -> None:
        end = self.ends[at]
        for _ in range(min(1 + much % 20, len(end.unread))):
            message = end.unread.popleft()
            end.delivery.taken(message.number, message.charge)

    def ask(self, at: int, which: int, much: int) -> None:
        self.ends[at].delivery.ask()

    def give_up(self, at: int, which: int, much: int) -> None:
        """The other side is taken for gone, though it is not; it happens seldom."""
        if which % 4:
            return
        end = self.ends[at]
        arrived = [place for place in end.places if end.delivery.arrived((place,))]
        self._forgo(at, [(each.channel, each.data) for each in end.delivery.give_up()])
        assert end.delivery.arrived(tuple(arrived)), "what had come true is taken back"
        end.places = deque(arrived, maxlen=1000)
        assert not end.delivery.unacknowledged
        for line in list(end.lines.values()):
            self._gone(at, line)

    def _forgo(self, at: int, messages: list[tuple[str, bytes]]) -> None:
        """These were told to have not arrived."""
        end = self.ends[at]
        for channel in CHANNELS:
            told = [data for name, data in messages if name == channel]
            accepted, given_up = end.accepted[channel], end.given_up[channel]
            number = 0
            for data in told:
                while number in given_up or data != payload(channel, number, accepted[number]):
                    number += 1
                given_up.add(number)
                number += 1

    def _came(self, at: int, message: Received) -> None:
        """It is the next, unless those between were given up."""
        end, sender = self.ends[at], self.ends[1 - at]
        accepted, number = sender.accepted[message.channel], end.came[message.channel]
        while True:
            assert number < len(accepted), "never sent, or twice"
            if message.payload == payload(message.channel, number, accepted[number]):
                break
            skipped = number in sender.given_up[message.channel]
            assert skipped, f"message {number} of {message.channel!r} was left out"
            number += 1
        end.came[message.channel] = number + 1
        self.delivered += 1

    # --- paths ---

    def attach(self, at: int, which: int, much: int) -> None:
        """Receive on a path that is there, or on a new one."""
        live = self.ends[at].live()
        theirs = [line for line in live if line.path == self.ends[1 - at].delivery.inbound]
        choice = which % (len(live) + 2)
        if theirs and much % 2:
            line = theirs[0]
        elif choice < len(live):
            line = live[choice]
        else:
            path = RELAY
            if choice > len(live):
                self.epochs += 1
                path = self.epochs
            elif RELAY in self.ends[at].lines or RELAY in self.ends[1 - at].lines:
                return
            line = Line(path)
            for end in self.ends:
                end.lines[path] = line
        self._attach(at, line, ask=much % 3 > 0)

    def _attach(self, at: int, line: Line, *, ask: bool) -> None:
        data = self.ends[at].delivery.attach(line.path, ask=ask)
        if line.alive:
            line.ways[1 - at].append(data)

    def _gone(self, at: int, line: Line) -> None:
        """This end is told; nothing of that path comes to it any more."""
        end = self.ends[at]
        if end.lines.get(line.path) is line:
            del end.lines[line.path]
            end.delivery.detach(line.path)
        line.alive = False
        line.ways[at].clear()

    def die(self, at: int, which: int, much: int) -> None:
        """A path ends; what is on its way arrives up to some frame, or not."""
        live = self.ends[at].live()
        if live:
            line = live[which % len(live)]
            line.alive = False
            for shift, way in enumerate(line.ways):
                keep = (much >> shift) % (len(way) + 1)
                while len(way) > keep:
                    way.pop()

    def notice(self, at: int, which: int, much: int) -> None:
        dead = [line for line in self.ends[at].lines.values() if not line.alive]
        if dead:
            self._gone(at, dead[which % len(dead)])

    def drop(self, at: int, which: int, much: int) -> None:
        """The socket of one end to the relay drops, and is back at once. The other knows nothing,
        and what it sends in ignorance arrives, behind a gap."""
        end = self.ends[at]
        line = end.lines.get(RELAY)
        if line is None or not line.alive:
            return
        for way in line.ways:
            way.clear()
        end.delivery.detach(RELAY)
        if which % 2:
            self._attach(at, line, ask=True)

    # --- frames ---

    def pull(self, at: int, which: int, much: int) -> None:
        end = self.ends[at]
        for _ in range(1 + much % 10):
            if (data := end.delivery.pull(PULL[which % len(PULL)])) is None:
                return
            assert end.delivery.out is not None
            line = end.lines[end.delivery.out]
            if line.alive:
                line.ways[1 - at].append(data)

    def carry(self, at: int, which: int, much: int) -> None:
        """To this end."""
        end = self.ends[at]
        if not end.lines:
            return
        line = list(end.lines.values())[which % len(end.lines)]
        way = line.ways[at]
        for _ in range(min(1 + much % 10, len(way))):
            data = way.popleft()
            looked_at = end.delivery.inbound == line.path and end.delivery._started
            if data[0] & 0x0F != 1 or looked_at:
                end.seen.append((line, data))
            self._feed(at, line, data)

    def repeat(self, at: int, which: int, much: int) -> None:
        """A frame comes once more."""
        end = self.ends[at]
        if end.seen:
            line, data = end.seen[(which * 1009 + much) % len(end.seen)]
            if end.lines.get(line.path) is line:
                self._feed(at, line, data)

    def _feed(self, at: int, line: Line, data: bytes) -> None:
        end = self.ends[at]
        delivery = end.delivery
        frame = frames.decode(data)
        if not isinstance(frame, frames.Resume):
            messages: list[Received] = []
            delivery.received(line.path, frame, self.now, messages)
            for message in messages:
                self._came(at, message)
            end.unread += messages
            self._check(end)
            return
        astray = delivery.answering and delivery.inbound != line.path
        if delivery.resumed(line.path, frame):
            refused, _ = delivery.refused()
            most = self.ends[1 - at].config.max_message_size
            assert all(len(each.data) > most for each in refused)
            self._forgo(at, [(each.channel, each.data) for each in refused])
            # As the node does: where a connection was only silent, nothing of it is lost.
            wanted = frame.ask or astray
            if wanted and (line.path == RELAY or delivery.inbound != line.path):
                delivery.answer(line.path)

    @staticmethod
    def _check(end: End) -> None:
        config = end.config
        most = config.receive_window + len(CHANNELS) * config.channel_window
        assert end.delivery.unread <= most

    def tick(self, at: int, which: int, much: int) -> None:
        self.now += (0.01, 0.06)[which % 2]
        self.ends[at].delivery.tick(self.now)

    # --- the end ---

    def settle(self) -> None:
        """All that is dead is noticed, each end has a path, and who has something moves it."""
        for at in range(2):
            for line in list(self.ends[at].lines.values()):
                if not line.alive:
                    self._gone(at, line)
        for at in range(2):
            # Who asked for the relay and got no answer asks again.
            delivery = self.ends[at].delivery
            if delivery.inbound is None or (delivery.inbound == RELAY and not delivery._started):
                self._reattach(at)
        for _ in range(1000):
            for at, end in enumerate(self.ends):
                self.take(at, 0, 19)
                for number in range(len(end.lines)):
                    self.carry(at, number, 9)
                self.tick(at, 1, 0)
                self.pull(at, 5, 9)
            busy = [
                end.unread or [w for w in end.lines.values() if any(w.ways)] for end in self.ends
            ]
            if not any(busy):
                # Who lost its way to send, since its own socket dropped, says so.
                lost = [at for at in range(2) if self.ends[at].delivery.out is None]
                if not lost:
                    break
                self._reattach(lost[0])
        self.check_quiet()

    def _reattach(self, at: int) -> None:
        live = [line for line in self.ends[at].live() if line in self.ends[1 - at].live()]
        theirs = [line for line in live if line.path == self.ends[1 - at].delivery.inbound]
        if live:
            # Where the other is already it need not answer.
            self._attach(at, (theirs or live)[-1], ask=True)
        else:
            self.attach(at, 1, 1)

    def check_quiet(self) -> None:
        for end, other in (self.ends, reversed(self.ends)):
            for channel, accepted in end.accepted.items():
                missing = set(range(other.came[channel], len(accepted))) - end.given_up[channel]
                assert not missing, f"{len(missing)} of {channel!r} did not arrive"
            delivery = end.delivery
            assert not delivery.unsent
            assert delivery.unacknowledged == 0
            assert delivery.unread == 0
            assert sum(map(delivery._beyond, delivery._incoming)) == 0
            assert not delivery._hungry
            assert delivery.pull(65_536) is None
            assert delivery.next_deadline() is None
            assert delivery.arrived(tuple(end.places))
