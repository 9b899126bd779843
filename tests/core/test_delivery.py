"""Delivery: what was sent comes out, once and in order, whatever the paths do; and bad input."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshpeer.config import MeshConfig
from meshpeer.core import frames
from meshpeer.core.delivery import (
    ACK_EVERY,
    MIN_MAX_MESSAGE,
    MIN_WINDOW,
    RELAY,
    Delivery,
    Outgoing,
    Received,
)
from meshpeer.core.events import UndeliveredMessage
from meshpeer.core.frames import (
    FIRST,
    LAST,
    MAX_COUNT,
    MAX_FRAME,
    MAX_PART,
    MIN_PART,
    OVERHEAD,
    Ack,
    Bye,
    Channel,
    Frame,
    Limit,
    Open,
    Part,
    Parts,
    Ping,
    Pong,
    Resume,
    Role,
    Run,
    Start,
    decode,
    encode_message,
)
from meshpeer.core.values import Kind, encode_value
from meshpeer.errors import MessageTooLarge, ProtocolError, TooManyChannels

KIB = 1024
MIB = 1024 * KIB
SMALL = MeshConfig(
    send_window=64 * KIB,
    channel_window=64 * KIB,
    receive_window=256 * KIB,
    max_message_size=256 * KIB,
)


def outgoing(data: Any, channel: str = "c", role: Role = Role.PLAIN, number: int = 0) -> Outgoing:
    kind, payload = encode_value(data)
    return Outgoing(channel, len(payload), encode_message(kind, payload, role, number))


class Side:
    """One of two deliveries, its application and its half of the paths."""

    def __init__(self, config: MeshConfig) -> None:
        self.delivery = Delivery(config)
        self.inbox: deque[Received] = deque()
        self.taken: list[tuple[str, Any]] = []
        self.to_me: dict[int, deque[bytes]] = {}
        """What is on its way to this side, by path."""
        self.seen: list[Frame] = []
        """What has arrived."""
        self.now = 0.0

    def take(self, count: int = 1_000_000) -> None:
        """The application reads."""
        for _ in range(min(count, len(self.inbox))):
            message = self.inbox.popleft()
            self.taken.append((message.channel, message.value()))
            self.delivery.taken(message.number, message.charge)


class Pair:
    """Two sides, and paths that keep the order and lose nothing as long as they live."""

    def __init__(self, config: MeshConfig = SMALL, other: MeshConfig | None = None) -> None:
        self.a, self.b = Side(config), Side(other or config)

    def other(self, side: Side) -> Side:
        return self.b if side is self.a else self.a

    def attach(self, side: Side, path: int, *, ask: bool = True) -> None:
        frame = side.delivery.attach(path, ask=ask)
        self.other(side).to_me.setdefault(path, deque()).append(frame)

    def connect(self, path: int = 1) -> None:
        """Both use this path from now on."""
        self.attach(self.a, path)
        self.settle(take=False)
        assert self.a.delivery.out == self.b.delivery.out == path

    def lose(self, path: int) -> None:
        """With what is on its way."""
        for side in (self.a, self.b):
            side.to_me.pop(path, None)
            side.delivery.detach(path)

    def send(self, side: Side, size: int = MAX_FRAME) -> bool:
        """One frame begins its way."""
        if (data := side.delivery.pull(size)) is None:
            return False
        path = side.delivery.out
        assert path is not None
        assert len(data) <= max(size, MAX_PART + 64)
        self.other(side).to_me.setdefault(path, deque()).append(data)
        return True

    def carry(self, side: Side, path: int) -> None:
        """One frame ends it."""
        frame = decode(side.to_me[path].popleft())
        side.seen.append(frame)
        if isinstance(frame, Resume):
            if side.delivery.resumed(path, frame) and frame.ask and side.delivery.inbound != path:
                side.delivery.answer(path)
        else:
            messages: list[Received] = []
            side.delivery.received(path, frame, side.now, messages)
            side.inbox += messages

    def settle(self, *, take: bool = True, acks: bool = True) -> None:
        """Everything arrives; with ``acks`` those that are delayed as well."""
        moved = True
        while moved:
            moved = False
            for side in (self.a, self.b):
                while self.send(side):
                    moved = True
                for path, wire in list(side.to_me.items()):
                    while wire:
                        self.carry(side, path)
                        moved = True
                if take and side.inbox:
                    side.take()
                    moved = True
            if not moved and acks:
                for side in (self.a, self.b):
                    if (at := side.delivery.next_deadline()) is not None:
                        side.now = at
                        side.delivery.tick(at)
                        moved = side.delivery.out is not None


def connected(config: MeshConfig = SMALL, other: MeshConfig | None = None) -> Pair:
    pair = Pair(config, other)
    pair.connect()
    return pair


def of(side: Side, kind: type[Frame]) -> list[Any]:
    """What has arrived of this kind."""
    return [frame for frame in side.seen if isinstance(frame, kind)]


# --- there ----------------------------------------------------------------------------------------


def test_messages_arrive_once_and_in_order_on_each_channel() -> None:
    pair = connected()
    sent = [("c", n) for n in range(100)] + [("d", "x" * 100_000), ("d", b"y"), ("c", None)]
    for channel, data in sent:
        pair.a.delivery.accept(outgoing(data, channel))
    pair.settle()
    for channel in "cd":
        assert [m for m in pair.b.taken if m[0] == channel] == [m for m in sent if m[0] == channel]
    assert len(pair.b.taken) == len(sent)
    assert pair.a.delivery.unacknowledged == 0
    assert pair.b.delivery.unread == 0


def test_small_messages_travel_together() -> None:
    pair = connected()
    for number in range(100):
        pair.a.delivery.accept(outgoing(number))
    pair.settle()
    assert [len(run.parts) for frame in of(pair.b, Parts) for run in frame.runs] == [100]


def test_what_is_accepted_before_there_is_a_path_goes_out_with_the_first() -> None:
    pair = Pair()
    for number in range(3):
        pair.a.delivery.accept(outgoing(number))
    assert pair.a.delivery.pull(MAX_FRAME) is None
    pair.attach(pair.b, 1, ask=False)
    pair.settle()
    assert pair.b.taken == [("c", 0), ("c", 1), ("c", 2)]
    assert pair.b.seen[:1] == [Start(1, [Channel(0, 0, 0, "c")])]
    assert pair.a.delivery.inbound is None, "nobody asked it to receive there"


def test_a_channel_is_opened_once() -> None:
    pair = connected()
    for _ in range(3):
        pair.a.delivery.accept(outgoing(1, "one"))
        pair.a.delivery.accept(outgoing(2, "two"))
        pair.settle()
    assert of(pair.b, Open) == [Open(0, "one"), Open(1, "two")]


def test_both_directions_at_once() -> None:
    pair = connected()
    for number in range(500):
        pair.a.delivery.accept(outgoing(number))
        pair.b.delivery.accept(outgoing(-number))
    pair.settle()
    assert [data for _, data in pair.b.taken] == list(range(500))
    assert [data for _, data in pair.a.taken] == [-n for n in range(500)]


def test_role_and_number_of_a_request() -> None:
    pair = connected()
    pair.a.delivery.accept(outgoing("how?", "c", Role.REQUEST, 300))
    pair.a.delivery.accept(outgoing("x" * 40_000, "d", Role.ERROR, 301))
    pair.settle(take=False)
    assert [(m.channel, m.role, m.request) for m in pair.b.inbox] == [
        ("c", Role.REQUEST, 300),
        ("d", Role.ERROR, 301),
    ]


# --- acknowledgements -----------------------------------------------------------------------------


def test_an_acknowledgement_is_delayed_and_stands_for_many() -> None:
    pair = connected()
    for number in range(10):
        pair.a.delivery.accept(outgoing(number))
        pair.b.now = number / 1000
        pair.settle(acks=False)
    assert of(pair.a, Ack) == []
    assert pair.a.delivery.unacknowledged == 10 * (1 + OVERHEAD)
    deadline = pair.b.delivery.next_deadline()
    assert deadline == SMALL.ack_delay, "counted from the first"
    pair.b.delivery.tick(deadline - 0.001)
    assert not pair.send(pair.b)
    pair.b.delivery.tick(deadline)
    assert pair.b.delivery.due
    pair.settle(acks=False)
    assert of(pair.a, Ack) == [Ack([Limit(0, 10, 64 * KIB + 10 * (1 + OVERHEAD))])]
    assert pair.a.delivery.unacknowledged == 0
    assert pair.b.delivery.next_deadline() is None
    assert not pair.send(pair.b)


def test_much_is_acknowledged_without_delay() -> None:
    pair = connected(MeshConfig())
    size = ACK_EVERY // 4 - OVERHEAD
    for _ in range(3):
        pair.a.delivery.accept(outgoing(b"x" * size))
    pair.settle(take=False, acks=False)
    assert of(pair.a, Ack) == []
    pair.a.delivery.accept(outgoing(b"x" * size))
    pair.settle(take=False, acks=False)
    (ack,) = of(pair.a, Ack)
    assert ack.limits[0].next == 4


def test_who_waits_asks_once_behind_all_that_was_sent() -> None:
    pair = connected()
    pair.a.delivery.accept(outgoing(1))
    mark = pair.a.delivery.mark()
    assert not pair.a.delivery.arrived(mark)
    pair.a.delivery.ask()
    pair.settle(acks=False)
    assert [type(f) for f in pair.b.seen[-2:]] == [Parts, Ping]
    assert pair.b.seen[-1] == Ping(0)
    assert pair.a.delivery.arrived(mark)
    pair.a.delivery.ask()
    pair.settle(acks=False)
    assert len(of(pair.b, Ping)) == 1, "nothing is unacknowledged"
    assert len(of(pair.a, Ack)) == 1


def test_one_question_is_enough_for_the_same_mark() -> None:
    pair = connected()
    pair.a.delivery.accept(outgoing(1))
    for _ in range(3):
        pair.a.delivery.ask()
        while pair.send(pair.a):
            pass
    assert [decode(data) for data in pair.b.to_me[1]][1:] == [
        Parts([Run(0, 0, [Part(FIRST | LAST | Kind.JSON << 2, 0, 0, b"1")])]),
        Ping(0),
    ]
    pair.a.delivery.accept(outgoing(2))
    pair.a.delivery.ask()
    while pair.send(pair.a):
        pass
    assert [type(decode(data)) for data in pair.b.to_me[1]][3:] == [Parts, Ping]


def test_a_question_that_was_lost_with_its_path_is_asked_on_the_next() -> None:
    pair = connected()
    pair.a.delivery.accept(outgoing(1))
    pair.a.delivery.ask()
    while pair.send(pair.a):
        pass
    pair.lose(1)
    pair.connect(2)
    assert len(of(pair.b, Ping)) == 1
    assert pair.a.delivery.unacknowledged == 0


def test_a_question_waits_for_what_was_not_sent() -> None:
    pair = connected()
    pair.a.delivery.accept(outgoing(b"x" * 63 * KIB))
    pair.a.delivery.accept(outgoing(b"y" * 10 * KIB))
    pair.a.delivery.ask()
    pair.settle(take=False, acks=False)
    assert of(pair.b, Ping) == [], "there is no credit for the second"
    pair.settle(acks=False)
    assert len(of(pair.b, Ping)) == 1


def test_a_mark_is_what_was_accepted_before_it() -> None:
    pair = connected()
    delivery = pair.a.delivery
    assert delivery.arrived(delivery.mark()), "nothing was accepted"
    delivery.accept(outgoing(1, "c"))
    delivery.accept(outgoing(b"x" * 40_000, "d"))
    mark = delivery.mark()
    delivery.accept(outgoing(2, "c"))
    pair.send(pair.a)  # the two openings
    pair.send(pair.a)
    pair.send(pair.a, 64)  # the first of all
    for path, wire in pair.b.to_me.items():
        while wire:
            pair.carry(pair.b, path)
    pair.b.delivery.tick(1e9)
    pair.send(pair.b)
    while pair.a.to_me[1]:
        pair.carry(pair.a, 1)
    assert not delivery.arrived(mark)
    pair.settle()
    assert delivery.arrived(mark)
    assert delivery.arrived(delivery.mark())


# --- paths ----------------------------------------------------------------------------------------


def test_what_is_not_acknowledged_is_sent_again_over_the_next_path() -> None:
    pair = connected()
    for number in range(5):
        pair.a.delivery.accept(outgoing(number))
    pair.settle(acks=False)
    pair.a.delivery.accept(outgoing("lost"))
    while pair.send(pair.a):
        pass
    pair.lose(1)
    pair.a.delivery.accept(outgoing("accepted without a path"))
    assert pair.a.delivery.pull(MAX_FRAME) is None
    assert pair.a.delivery.out is None
    pair.connect(RELAY)
    pair.settle()
    assert [data for _, data in pair.b.taken] == [*range(5), "lost", "accepted without a path"]
    resume = [frame for frame in pair.a.seen if isinstance(frame, Resume)][-1]
    assert [(limit.channel, limit.next) for limit in resume.limits] == [(0, 5)]
    start = of(pair.b, Start)[-1]
    assert start.channels == [Channel(0, 5, 5 * (1 + OVERHEAD), "c")]


def test_a_large_message_goes_on_in_its_middle() -> None:
    pair = connected(MeshConfig())
    pair.a.delivery.accept(outgoing(b"x" * 10 * MAX_PART))
    for _ in range(4):
        pair.send(pair.a, MAX_PART)
    for _ in range(3):
        pair.carry(pair.b, 1)
    pair.lose(1)
    pair.connect(2)
    assert of(pair.b, Start)[-1].channels[0].seq == 2
    pair.settle()
    assert pair.b.taken == [("c", b"x" * 10 * MAX_PART)]


def test_a_path_that_is_left_alive_says_nothing_any_more() -> None:
    pair = connected()
    pair.a.delivery.accept(outgoing("over the old one"))
    while pair.send(pair.a):
        pass
    pair.attach(pair.b, 2, ask=False)
    pair.carry(pair.a, 2)
    while pair.send(pair.a):
        pass
    pair.carry(pair.b, 2)
    while pair.b.to_me[1]:
        pair.carry(pair.b, 1)
    assert not pair.b.inbox
    pair.settle()
    assert pair.b.taken == [("c", "over the old one")]


def test_an_acknowledgement_counts_on_whatever_path_it_comes() -> None:
    pair = connected()
    pair.a.delivery.accept(outgoing(1))
    pair.settle(acks=False)
    pair.b.delivery.tick(1e9)
    pair.send(pair.b)
    pair.attach(pair.b, 2, ask=False)
    pair.carry(pair.a, 2)
    while pair.a.to_me[1]:
        pair.carry(pair.a, 1)
    assert pair.a.delivery.unacknowledged == 0


def test_the_acknowledgement_of_what_was_to_be_sent_again() -> None:
    """It went over the path before: the other side has it, and its word for it comes late."""
    pair = connected(MeshConfig())
    for number in range(3):
        pair.a.delivery.accept(outgoing(number))
    pair.settle(acks=False)
    resume = decode(pair.b.delivery.attach(2, ask=False))
    assert isinstance(resume, Resume)
    stale = Resume(9, False, MIB, 32, MIB, [Limit(0, 1, 0)])
    assert pair.a.delivery.resumed(2, stale)
    pair.a.delivery.received(1, Ack([Limit(0, 2, 0)]), 0.0, [])
    start = decode(pair.a.delivery.pull(MAX_FRAME) or b"")
    assert start == Start(9, [Channel(0, 1, 1 + OVERHEAD, "c")])
    parts = decode(pair.a.delivery.pull(MAX_FRAME) or b"")
    assert isinstance(parts, Parts)
    assert [(run.channel, run.seq, len(run.parts)) for run in parts.runs] == [(0, 2, 1)]


# --- what is counted ------------------------------------------------------------------------------


def counted(side: Side) -> tuple[int, int, int]:
    return side.delivery.messages_sent, side.delivery.messages_direct, side.delivery.bytes_sent


def test_both_sides_count_the_same_messages_and_bytes() -> None:
    pair = connected(MeshConfig())
    values = ["x", b"y" * 100, b"z" * 3 * MAX_PART, None]
    for value in values:
        pair.a.delivery.accept(outgoing(value))
    pair.settle()
    size = sum(outgoing(value).size for value in values)
    assert counted(pair.a) == (4, 4, size)
    assert (pair.b.delivery.messages_received, pair.b.delivery.bytes_received) == (4, size)
    assert counted(pair.b) == (0, 0, 0)
    assert (pair.a.delivery.messages_received, pair.a.delivery.bytes_received) == (0, 0)


def test_a_message_counts_for_the_path_on_which_it_arrived() -> None:
    pair = connected(MeshConfig())
    for number in range(3):
        pair.a.delivery.accept(outgoing(number))
    pair.settle()
    pair.a.delivery.accept(outgoing(b"x" * 3 * MAX_PART))
    pair.a.delivery.accept(outgoing("arrived, and not acknowledged"))
    pair.settle(acks=False)
    pair.a.delivery.accept(outgoing("on its way"))
    while pair.send(pair.a):
        pass
    pair.lose(1)
    for number in range(4):
        pair.a.delivery.accept(outgoing(number))
    assert counted(pair.a)[:2] == (10, 3), "what is not acknowledged does not count yet"
    pair.connect(RELAY)
    pair.settle()
    assert counted(pair.a)[:2] == (10, 5)
    pair.connect(2)
    pair.a.delivery.accept(outgoing("direct again"))
    pair.settle()
    assert counted(pair.a)[:2] == (11, 6)
    assert pair.b.delivery.messages_received == 11, "each once, though some came twice"


def test_what_did_not_arrive_does_not_count_as_direct() -> None:
    pair = connected()
    pair.a.delivery.accept(outgoing("lost"))
    while pair.send(pair.a):
        pass
    pair.a.delivery.give_up()
    pair.lose(1)
    pair.connect(2)
    pair.a.delivery.accept(outgoing("there"))
    pair.settle()
    assert counted(pair.a)[:2] == (2, 1)


def test_an_acknowledgement_of_more_than_was_sent_again() -> None:
    pair = connected()
    for number in range(3):
        pair.a.delivery.accept(outgoing(bytes(1000) + bytes((number,))))
    while pair.send(pair.a):
        pass
    pair.attach(pair.b, 2, ask=False)
    pair.carry(pair.a, 2)
    pair.send(pair.a)  # the start
    pair.send(pair.a, 1)  # the first of the three
    pair.a.delivery.received(1, Ack([Limit(0, 3, 0)]), 0.0, [])
    assert pair.a.delivery.unacknowledged == 0


def test_a_stale_round_is_not_obeyed() -> None:
    pair = connected()
    pair.lose(1)
    first = decode(pair.b.delivery.attach(2, ask=True))
    second = decode(pair.b.delivery.attach(3, ask=True))
    assert isinstance(first, Resume)
    assert isinstance(second, Resume)
    assert second.round == first.round + 1
    assert pair.a.delivery.resumed(3, second)
    assert not pair.a.delivery.resumed(2, first)
    assert not pair.a.delivery.resumed(3, second), "the same again"
    assert pair.a.delivery.out == 3


def test_nothing_counts_before_the_start_of_this_round_on_this_path() -> None:
    delivery = Delivery(SMALL)
    delivery.attach(1, ask=False)
    delivery.attach(2, ask=False)
    messages: list[Received] = []
    part = Part(FIRST | LAST, 0, 0, b"x")
    early: list[tuple[int, Frame]] = [
        (2, Parts([Run(5, 7, [part])])),
        (2, Open(9, "nothing")),
        (2, Start(1, [Channel(0, 0, 0, "c")])),
        (2, Start(3, [Channel(0, 0, 0, "c")])),
        (1, Start(2, [Channel(0, 0, 0, "c")])),
        (2, Parts([Run(0, 0, [part])])),
    ]
    for path, frame in early:
        delivery.received(path, frame, 0.0, messages)
    assert messages == []
    delivery.received(2, Start(2, [Channel(0, 0, 0, "c")]), 0.0, messages)
    delivery.received(1, Parts([Run(0, 0, [part])]), 0.0, messages)
    delivery.received(RELAY, Parts([Run(0, 0, [part])]), 0.0, messages)
    assert messages == []
    delivery.received(2, Start(2, [Channel(9, 9, 9, "again")]), 0.0, messages)
    delivery.received(2, Parts([Run(0, 0, [part])]), 0.0, messages)
    assert len(messages) == 1
    delivery.received(2, Parts([Run(0, 0, [part, part])]), 0.0, messages)
    assert len(messages) == 2, "the first is known"


def test_an_answer_that_waits_is_not_lost_to_another_word_on_the_same_path() -> None:
    """Both ask at once: the answer of one meets the other's, and neither would hear the other."""
    pair = Pair()
    for side in (pair.a, pair.b):
        pair.attach(side, RELAY)
        side.delivery.accept(outgoing(1))
    pair.carry(pair.a, RELAY)
    resume = decode(pair.b.delivery.attach(RELAY, ask=False))
    assert isinstance(resume, Resume)
    assert pair.a.delivery.inbound == RELAY
    pair.a.delivery.answer(RELAY)
    assert pair.a.delivery.resumed(RELAY, resume)
    pair.carry(pair.b, RELAY)
    pair.settle()
    assert (pair.a.taken, pair.b.taken) == ([("c", 1)], [("c", 1)])


def test_an_answer_that_waits_is_dropped_when_another_path_is_wanted() -> None:
    pair = connected()
    pair.attach(pair.b, 2)
    pair.carry(pair.a, 2)
    assert pair.a.delivery.inbound == 2
    pair.attach(pair.b, 3, ask=False)
    pair.carry(pair.a, 3)
    pair.settle()
    assert 2 not in [frame.round for frame in of(pair.b, Resume)]


def test_a_path_that_is_gone_is_nothing_to_send_on() -> None:
    pair = connected()
    pair.a.delivery.accept(outgoing(1))
    assert pair.a.delivery.due is True, "the channel is to be opened"
    pair.a.delivery.detach(2)
    assert (pair.a.delivery.out, pair.a.delivery.inbound) == (1, 1)
    pair.a.delivery.detach(1)
    assert (pair.a.delivery.out, pair.a.delivery.inbound) == (None, None)
    assert pair.a.delivery.pull(MAX_FRAME) is None
    assert (pair.a.delivery.due, pair.a.delivery.unsent) == (False, True)


def test_what_was_said_on_the_path_before_is_said_again() -> None:
    """A limit that was lost with its path, with no other to follow, would stop the sender."""
    pair = connected()
    for number in range(20):
        pair.a.delivery.accept(outgoing(bytes(6000) + bytes((number,))))
    pair.settle(take=False)
    assert pair.a.delivery.unsent
    pair.attach(pair.b, 2, ask=False)
    pair.b.take()
    while pair.send(pair.b):
        pass
    pair.a.to_me.pop(1)
    pair.b.delivery.detach(1)
    pair.attach(pair.a, 2, ask=False)
    pair.settle()
    assert len(pair.b.taken) == 20


# --- credit ---------------------------------------------------------------------------------------


def test_an_application_that_does_not_read_stops_its_sender_on_that_channel_alone() -> None:
    pair = connected()
    for _ in range(1000):
        pair.a.delivery.accept(outgoing(b"x" * 1000))
    pair.settle(take=False)
    unread = pair.b.delivery.unread
    assert 64 * KIB - 1000 - OVERHEAD < unread <= 64 * KIB
    assert not pair.a.delivery.has_room("c")
    pair.a.delivery.accept(outgoing("urgent", "d"))
    pair.settle(take=False)
    assert pair.b.inbox[-1].value() == "urgent"
    pair.b.take(20)
    pair.settle(take=False)
    assert pair.b.delivery.unread > 64 * KIB - 9000, "and reading lets it go on"
    pair.settle()
    assert len(pair.b.taken) == 1001


def test_memory_of_a_sender_has_a_bound() -> None:
    pair = connected()
    accepted = 0
    while pair.a.delivery.has_room("c"):
        pair.a.delivery.accept(outgoing(b"x" * 1000))
        accepted += 1
    assert SMALL.send_window <= pair.a.delivery.unacknowledged < SMALL.send_window + 1128
    assert pair.a.delivery.has_room("d"), "another channel has a window of its own"
    pair.settle()
    assert pair.a.delivery.has_room("c")
    assert len(pair.b.taken) == accepted


@pytest.mark.parametrize("window", [MIN_WINDOW, MIN_WINDOW + 1, 100_000])
@pytest.mark.parametrize("before", [0, 1, 200, 3000, 15_000, 16_384])
def test_whatever_was_sent_before_the_largest_message_gets_through(
    window: int, before: int
) -> None:
    config = MeshConfig(channel_window=window, receive_window=64 * KIB, max_message_size=64 * KIB)
    pair = connected(config)
    for size in (before, 64 * KIB, 0, MAX_PART, before, 64 * KIB, MAX_PART + 1):
        # One after the other: a limit that waits for more to be taken would never come.
        pair.a.delivery.accept(outgoing(b"x" * size))
        pair.settle()
        assert pair.a.delivery.unacknowledged == 0, size


def test_a_limit_is_not_told_for_each_message() -> None:
    pair = connected(MeshConfig())
    for _ in range(5000):
        pair.a.delivery.accept(outgoing(b"x" * 64))
        pair.settle(acks=False)
    told = len(of(pair.a, Ack))
    assert told == pytest.approx(5000 * (64 + OVERHEAD) / ACK_EVERY, abs=3)


def test_room_for_large_messages_is_reserved_in_the_order_in_which_they_came() -> None:
    """None is given a part of what it needs: two could wait for each other's rest for ever."""
    pair = connected()
    large = b"x" * 200 * KIB
    for channel in "abc":
        pair.a.delivery.accept(outgoing(large, channel))
    pair.settle(take=False)
    assert [m.channel for m in pair.b.inbox] == ["a"], "136 KiB each beyond the window, of 256"
    assert pair.b.delivery.unread <= 200 * KIB + 2 * 64 * KIB + 3 * OVERHEAD
    pair.b.take(1)
    pair.settle(take=False)
    assert [m.channel for m in pair.b.inbox] == ["b"]
    pair.a.delivery.accept(outgoing(b"small", "d"))
    pair.settle(take=False)
    assert [m.channel for m in pair.b.inbox] == ["b", "d"]
    pair.settle()
    assert [channel for channel, _ in pair.b.taken] == ["a", "b", "d", "c"]


def test_what_all_channels_may_have_at_once_has_a_bound() -> None:
    pair = connected()
    for channel in "abcdef":
        for _ in range(3):
            pair.a.delivery.accept(outgoing(b"x" * 150 * KIB, channel))
    most = 0
    for _ in range(50):
        pair.settle(take=False)
        most = max(most, pair.b.delivery.unread)
        pair.b.take(1)
    assert 256 * KIB < most <= 256 * KIB + 6 * 64 * KIB
    pair.settle()
    assert len(pair.b.taken) == 18


def test_what_was_reserved_for_a_message_that_was_given_up_is_given_back() -> None:
    pair = connected()
    for _ in range(5):
        pair.a.delivery.accept(outgoing(b"x" * 256 * KIB, "a"))
        pair.a.delivery.accept(outgoing(b"y" * 256 * KIB, "b"))
        while pair.send(pair.a, 1):
            pass
        while pair.b.to_me[1]:
            pair.carry(pair.b, 1)
        pair.send(pair.b)
        pair.a.delivery.give_up()
        pair.lose(1)
        pair.connect(1)
        assert not pair.b.inbox
        assert pair.b.delivery.unread == 0
    pair.a.delivery.accept(outgoing(b"z" * 256 * KIB, "b"))
    pair.settle()
    assert [data[:1] for _, data in pair.b.taken] == [b"z"]


def test_who_waits_is_fed_when_the_one_before_is_given_up() -> None:
    def first(channel: int) -> Parts:
        return Parts([Run(channel, 0, [Part(FIRST, 256 * KIB, 0, b"x" * MAX_PART)])])

    delivery = Delivery(SMALL)
    delivery.resumed(1, Resume(1, False, MIB, 32, MIB))
    delivery.pull(MAX_FRAME)
    delivery.attach(1, ask=False)
    delivery.received(1, Start(1, [Channel(n, 0, 0, str(n)) for n in range(2)]), 0.0, [])
    delivery.received(1, first(0), 0.0, [])
    delivery.received(1, first(1), 0.0, [])
    ack = decode(delivery.pull(MAX_FRAME) or b"")
    assert ack == Ack([Limit(0, 1, 256 * KIB + OVERHEAD), Limit(1, 1, 64 * KIB)])
    delivery.attach(2, ask=False)
    delivery.received(2, Start(2, [Channel(0, 20, 1 << 20, "0"), Channel(1, 1, 0, "1")]), 0.0, [])
    ack = decode(delivery.pull(MAX_FRAME) or b"")
    assert isinstance(ack, Ack)
    assert ack.limits[1] == Limit(1, 1, 256 * KIB + OVERHEAD)


def test_a_limit_that_was_overtaken_does_not_lower_the_credit() -> None:
    pair = connected()
    pair.a.delivery.accept(outgoing(b"x" * 60_000))
    pair.a.delivery.received(1, Ack([Limit(0, 0, 0)]), 0.0, [])
    pair.settle()
    assert len(pair.b.taken) == 1


@pytest.mark.parametrize("limit", [MAX_COUNT, 2**53 - 2])
def test_a_limit_as_large_as_can_be(limit: int) -> None:
    pair = connected()
    pair.a.delivery.accept(outgoing(b"x" * 60_000))
    while pair.send(pair.a):
        pass
    pair.a.delivery.received(1, Ack([Limit(0, 1, limit)]), 0.0, [])
    pair.a.delivery.accept(outgoing(b"x" * 100_000))
    while pair.send(pair.a):
        pass
    assert not pair.a.delivery.unsent


# --- who goes first -------------------------------------------------------------------------------


def sent_by_channel(pair: Pair, frames_: int, size: int = 16 * KIB) -> dict[int, int]:
    """What each channel had of the next frames, by its bytes."""
    had: dict[int, int] = {}
    for _ in range(frames_):
        frame = decode(pair.a.delivery.pull(size) or b"")
        assert isinstance(frame, Parts)
        for run in frame.runs:
            had[run.channel] = had.get(run.channel, 0) + sum(len(p.payload) for p in run.parts)
    return had


WIDE = MeshConfig(
    channel_window=64 * MIB,
    receive_window=64 * MIB,
    max_message_size=64 * MIB,
    send_window=64 * MIB,
    channel_priorities={"high": "high", "medium": "medium", "very-low": "very-low"},
)


def test_channels_share_by_their_priorities() -> None:
    pair = connected(WIDE)
    for name in ("very-low", "other", "medium", "high"):
        for _ in range(4000):
            pair.a.delivery.accept(outgoing(b"x" * 1000, name))
    while pair.a.delivery.due:
        pair.a.delivery.pull(MAX_FRAME)
    had = sent_by_channel(pair, 200)
    least = had[0]
    assert [had[n] / least for n in range(4)] == pytest.approx([1, 2, 4, 8], rel=0.2)


def test_a_large_message_lets_others_pass() -> None:
    pair = connected(WIDE)
    pair.a.delivery.accept(outgoing(b"x" * 10 * MIB, "bulk"))
    pair.a.delivery.accept(outgoing(b"-", "small"))
    pair.settle()
    for _ in range(20):
        pair.a.delivery.accept(outgoing(b"x" * 100 * KIB, "bulk"))
    sent_by_channel(pair, 10)
    pair.a.delivery.accept(outgoing(b"now", "small"))
    assert sent_by_channel(pair, 2)[1] == 3


def test_who_had_no_credit_has_no_claim_to_what_others_had_meanwhile() -> None:
    pair = connected(
        MeshConfig(
            channel_window=MIB,
            receive_window=16 * MIB,
            send_window=64 * MIB,
        )
    )
    for _ in range(40):
        pair.a.delivery.accept(outgoing(b"x" * 100_000, "stuck"))
    pair.a.delivery.accept(outgoing(b"-", "other"))
    pair.settle(take=False)
    for _ in range(50):
        pair.a.delivery.accept(outgoing(b"y" * 100_000, "other"))
        pair.settle(take=False)
        for _ in range(len(pair.b.inbox)):
            message = pair.b.inbox.popleft()
            if message.channel == "other":
                pair.b.delivery.taken(message.number, message.charge)
            else:
                pair.b.inbox.append(message)
    pair.a.delivery.received(1, Ack([Limit(0, 0, 32 * MIB), Limit(1, 0, 32 * MIB)]), 0.0, [])
    for _ in range(40):
        pair.a.delivery.accept(outgoing(b"y" * 100_000, "other"))
    had = sent_by_channel(pair, 100)
    assert had[1] == pytest.approx(had[0], rel=0.2)


def test_who_had_no_path_shares_from_the_beginning() -> None:
    pair = connected(WIDE)
    pair.a.delivery.accept(outgoing(b"-", "first"))
    pair.settle()
    for _ in range(100):
        pair.a.delivery.accept(outgoing(b"x" * 100_000, "second"))
        pair.settle()
    for name in ("first", "second"):
        for _ in range(20):
            pair.a.delivery.accept(outgoing(b"x" * 100_000, name))
    had = sent_by_channel(pair, 100)
    assert had[0] == pytest.approx(had[1], rel=0.2)


# --- limits of the sender -------------------------------------------------------------------------


def test_a_message_over_the_limit_is_refused_before_anything_is_sent() -> None:
    pair = connected(MeshConfig(), SMALL)
    with pytest.raises(MessageTooLarge, match=r"262145 bytes, the other side takes 262144"):
        pair.a.delivery.accept(outgoing(b"x" * (256 * KIB + 1)))
    assert pair.a.delivery.mark() == ()
    assert not pair.a.delivery.due, "not even its channel is opened"
    pair.a.delivery.accept(outgoing(b"x" * 256 * KIB))
    pair.settle()
    assert len(pair.b.taken) == 1


def test_what_turns_out_to_be_too_large_is_told_and_the_rest_arrives() -> None:
    pair = Pair(MeshConfig(), SMALL)
    delivery = pair.a.delivery
    large = b"x" * (256 * KIB + 1)
    marks = []
    for data in (1, large, 2, large, large, 3):
        delivery.accept(outgoing(data))
        marks.append(delivery.mark())
    delivery.accept(outgoing(large, "d"))
    only_large = delivery.mark()
    delivery.accept(outgoing("how?" + "x" * 300_000, "e", Role.REQUEST, 1))
    assert not any(delivery.arrived(mark) for mark in (*marks, only_large))
    pair.attach(pair.b, 1, ask=False)
    pair.carry(pair.a, 1)
    assert delivery.refused()[0] == [
        UndeliveredMessage(large, "c"),
        UndeliveredMessage(large, "c"),
        UndeliveredMessage(large, "c"),
        UndeliveredMessage(large, "d"),
    ], "who made a request is told by the call"
    assert delivery.refused() == ([], [])
    assert not any(delivery.arrived(mark) for mark in marks)
    arrived: list[int] = []
    while pair.send(pair.a, 1):
        while pair.b.to_me[1]:
            pair.carry(pair.b, 1)
        pair.b.delivery.tick(1e9)
        frame = Ack([Limit(c.number, c.next, c.limit) for c in pair.b.delivery._incoming])
        delivery.received(1, frame, 0.0, [])
        arrived.append(sum(delivery.arrived(mark) for mark in marks))
    assert [n for n in dict.fromkeys(arrived) if n] == [2, 5, 6]
    assert delivery.arrived(only_large)
    pair.b.take()
    assert [data for _, data in pair.b.taken] == [1, 2, 3]
    assert delivery.unacknowledged == 0
    delivery.accept(outgoing(4))
    late = delivery.mark()
    pair.settle()
    assert not delivery.arrived(((0, late[0][1] + 1),))
    delivery.ask()
    pair.settle()
    assert [data for _, data in pair.b.taken] == [1, 2, 3, 4]


def test_more_channels_than_the_other_side_takes() -> None:
    few = MeshConfig(max_channels=2)
    pair = connected(MeshConfig(), few)
    pair.a.delivery.accept(outgoing(1, "one"))
    pair.a.delivery.accept(outgoing(2, "two"))
    with pytest.raises(TooManyChannels, match="'three' would be one more"):
        pair.a.delivery.accept(outgoing(3, "three"))
    pair.a.delivery.accept(outgoing(4, "two"))
    pair.settle()
    assert pair.b.taken == [("one", 1), ("two", 2), ("two", 4)]


def test_what_turns_out_to_be_on_a_channel_too_many_is_told_and_the_rest_arrives() -> None:
    pair = Pair(MeshConfig(), MeshConfig(max_channels=2))
    delivery = pair.a.delivery
    for number, name in enumerate(("one", "two", "three", "four", "one", "three")):
        delivery.accept(outgoing(number, name))
    mark = delivery.mark()
    pair.connect()
    assert delivery.refused()[0] == [
        UndeliveredMessage(2, "three"),
        UndeliveredMessage(5, "three"),
        UndeliveredMessage(3, "four"),
    ]
    pair.settle()
    assert pair.b.taken == [("one", 0), ("one", 4), ("two", 1)]
    assert delivery.arrived(mark)
    with pytest.raises(TooManyChannels):
        delivery.accept(outgoing(1, "three"))


def test_a_sender_uses_no_more_channels_than_a_start_can_name() -> None:
    delivery = Delivery(MeshConfig())
    delivery.resumed(1, Resume(1, False, MIB, MAX_COUNT, MIB))
    for number in range(frames.MAX_CHANNELS):
        delivery.accept(outgoing(0, f"{number:0255}"))
    with pytest.raises(TooManyChannels):
        delivery.accept(outgoing(0, "one more"))
    delivery.resumed(1, Resume(2, False, MIB, MAX_COUNT, MIB))
    start = decode(delivery.pull(MAX_FRAME) or b"")
    assert isinstance(start, Start)
    assert len(start.channels) == frames.MAX_CHANNELS


# --- the end --------------------------------------------------------------------------------------


def test_what_did_not_arrive_when_the_other_side_is_gone() -> None:
    pair = connected()
    delivery = pair.a.delivery
    delivery.accept(outgoing("arrived"))
    pair.settle()
    large = b"x" * 200 * KIB
    delivery.accept(outgoing(large))
    delivery.accept(outgoing({"a": [1]}, "d"))
    delivery.accept(outgoing("how?", "d", Role.REQUEST, 1))
    delivery.accept(outgoing("text"))
    for _ in range(4):
        pair.send(pair.a, MAX_PART)
    while pair.b.to_me[1]:
        pair.carry(pair.b, 1)
    pair.b.delivery.tick(1e9)
    pair.send(pair.b)
    pair.carry(pair.a, 1)
    assert 0 < delivery.unacknowledged < 200 * KIB, "a part of the first has arrived"
    mark = delivery.mark()
    undelivered = delivery.give_up()
    assert undelivered == [UndeliveredMessage(large, "c"), UndeliveredMessage("text", "c")]
    assert delivery.give_up() == []
    assert (delivery.unacknowledged, delivery.unsent) == (0, False)
    assert not delivery.arrived(mark), "it never will"
    delivery.accept(outgoing("later"))
    assert delivery.give_up() == [UndeliveredMessage("later", "c")]


def test_what_goes_on_under_the_surface_is_not_told_as_undelivered() -> None:
    """A piece of a file is no message of the application, which could not send it again."""
    pair = connected()
    pair.a.delivery.accept(outgoing(b"piece", "meshpeer.file"))
    pair.a.delivery.accept(outgoing("mine"))
    assert pair.a.delivery.give_up() == [UndeliveredMessage("mine", "c")]


def test_what_was_given_up_is_skipped_when_both_come_together_again() -> None:
    pair = connected()
    delivery = pair.a.delivery
    delivery.accept(outgoing("arrived"))
    pair.settle()
    delivery.accept(outgoing(b"x" * 200 * KIB, "d"))
    for _ in range(4):
        pair.send(pair.a, MAX_PART)
    while pair.b.to_me[1]:
        pair.carry(pair.b, 1)
    assert pair.b.delivery.unread > 30 * KIB
    pair.lose(1)
    assert [m.channel for m in delivery.give_up()] == ["d"]
    delivery.accept(outgoing("next", "d"))
    pair.connect(2)
    pair.settle()
    assert pair.b.taken == [("c", "arrived"), ("d", "next")]
    for size in (256 * KIB, 5):
        delivery.accept(outgoing(b"y" * size, "d"))
        pair.settle()
    assert len(pair.b.taken) == 4
    assert pair.b.delivery.unread == 0


# --- what a sender may not do ---------------------------------------------------------------------

PART = b"x" * MIN_PART
ONE = Part(FIRST | LAST, 0, 0, b"x")


def receiving(config: MeshConfig = SMALL) -> Delivery:
    """With channel 0 open, on path 1."""
    delivery = Delivery(config)
    delivery.attach(1, ask=False)
    delivery.received(1, Start(1, [Channel(0, 0, 0, "c")]), 0.0, [])
    return delivery


def run(*parts: Part, channel: int = 0, seq: int = 0) -> Parts:
    return Parts([Run(channel, seq, list(parts))])


def first(total: int, payload: bytes = PART) -> Part:
    return Part(FIRST, total, 0, payload)


def more(payload: bytes = PART, *, last: bool = False) -> Part:
    return Part(LAST if last else 0, 0, 0, payload)


def typed(kind: Kind, payload: bytes) -> Part:
    return Part(FIRST | LAST | kind << 2, 0, 0, payload)


BAD: list[tuple[str, list[Frame], str, str]] = [
    ("a channel that is not open", [run(ONE, channel=1)], "bad_channel", "channel"),
    ("far ahead", [run(ONE, seq=1)], "bad_sequence", "seq"),
    ("very far ahead", [run(ONE, seq=MAX_COUNT)], "bad_sequence", "seq"),
    ("a gap", [run(ONE), run(ONE, seq=2)], "bad_sequence", "seq"),
    ("inside another", [run(first(2048), ONE)], "unexpected_frame", "flags"),
    ("of no message", [run(more(last=True))], "unexpected_frame", "flags"),
    ("behind the last", [run(ONE, more(last=True))], "unexpected_frame", "flags"),
    ("over the limit", [run(first(256 * KIB + 1))], "too_large", "total"),
    ("2**53 - 1 bytes", [run(first(MAX_COUNT))], "too_large", "total"),
    ("longer than it said", [run(first(1500), more(last=True))], "bad_frame", "total"),
    ("without an end", [run(first(2047), more())], "bad_frame", "total"),
    ("shorter than it said", [run(first(4096), more(last=True))], "bad_frame", "total"),
    (
        "beyond the credit",
        [run(*[typed(Kind.BYTES, b"x" * 16_000)] * 4), run(typed(Kind.BYTES, b"x" * 2000), seq=4)],
        "beyond_credit",
        "payload",
    ),
    (
        "empty messages beyond the credit",
        [run(*[typed(Kind.BYTES, b"")] * 512), run(typed(Kind.BYTES, b""), seq=512)],
        "beyond_credit",
        "payload",
    ),
    ("no text", [run(typed(Kind.TEXT, b"\xff"))], "bad_message", "payload"),
    ("no json", [run(typed(Kind.JSON, b"{"))], "bad_message", "payload"),
    ("deep json", [run(typed(Kind.JSON, b"[" * 10_000))], "too_deep", "payload"),
    (
        "no text in two parts",
        [run(Part(FIRST | Kind.TEXT << 2, 1025, 0, PART), more(b"\xff", last=True))],
        "bad_message",
        "payload",
    ),
    ("a channel too far", [Open(2, "e")], "bad_channel", "channel"),
    ("a name of another", [Open(0, "e")], "bad_channel", "channel"),
    ("a name twice", [Open(1, "c")], "bad_channel", "channel"),
    (
        "too many channels",
        [*(Open(n, str(n)) for n in range(1, 32)), Open(32, "32")],
        "too_many_channels",
        "channel",
    ),
    ("acknowledged, and never sent", [Ack([Limit(0, 0, 0)])], "bad_ack", "channel"),
]


@pytest.mark.parametrize(
    ("frames_", "code", "field"), [b[1:] for b in BAD], ids=[b[0] for b in BAD]
)
def test_what_a_sender_may_not_do(frames_: list[Frame], code: str, field: str) -> None:
    delivery = receiving()
    messages: list[Received] = []
    for frame in frames_[:-1]:
        delivery.received(1, frame, 0.0, messages)
    for _ in range(2):
        with pytest.raises(ProtocolError) as caught:
            delivery.received(1, frames_[-1], 0.0, messages)
        assert (caught.value.code, caught.value.field) == (code, field)
    # All before it counts, it does not, and who mends it goes on from there.
    before = delivery._incoming[0].next
    resume = decode(delivery.attach(2, ask=False))
    assert isinstance(resume, Resume)
    assert resume.limits[0].next == before
    assert delivery.unread <= delivery._incoming[0].limit


@pytest.mark.parametrize(
    ("start", "code"),
    [
        (Start(1, [Channel(1, 0, 0, "c")]), "bad_channel"),
        (Start(1, [Channel(0, 0, 0, "c"), Channel(1, 0, 0, "c")]), "bad_channel"),
        (Start(1, [Channel(0, 1, 0, "c")]), "bad_sequence"),
        (Start(1, [Channel(0, 0, 1, "c")]), "bad_sequence"),
        (Start(1, [Channel(n, 0, 0, str(n)) for n in range(33)]), "too_many_channels"),
    ],
)
def test_how_a_sender_may_not_start(start: Start, code: str) -> None:
    delivery = Delivery(SMALL)
    delivery.attach(1, ask=False)
    with pytest.raises(ProtocolError) as caught:
        delivery.received(1, start, 0.0, [])
    assert caught.value.code == code
    messages: list[Received] = []
    delivery.received(1, run(ONE), 0.0, messages)
    assert messages == [], "it has not started"


def test_parts_without_an_end_are_refused_within_what_the_message_said() -> None:
    delivery = receiving()
    delivery.received(1, run(first(256 * KIB)), 0.0, [])
    for seq in range(1, 255):
        delivery.received(1, run(more(), seq=seq), 0.0, [])
    delivery.received(1, run(more(), seq=255), 0.0, [])
    with pytest.raises(ProtocolError) as caught:
        delivery.received(1, run(more(), seq=256), 0.0, [])
    assert caught.value.code in ("bad_frame", "beyond_credit")
    assert delivery.unread <= 256 * KIB + OVERHEAD


@pytest.mark.parametrize("config", [MeshConfig(max_message_size=1024), SMALL])
def test_a_message_in_one_part_over_the_limit(config: MeshConfig) -> None:
    delivery = receiving(config)
    part = typed(Kind.BYTES, b"x" * 1025)
    if config is SMALL:
        delivery.received(1, run(part), 0.0, [])
        return
    with pytest.raises(ProtocolError) as caught:
        delivery.received(1, run(part), 0.0, [])
    assert (caught.value.code, caught.value.field) == ("too_large", "length")


@pytest.mark.parametrize(
    ("limit", "field"),
    [
        (Limit(1, 0, 0), "channel"),
        (Limit(MAX_COUNT, 0, 0), "channel"),
        (Limit(0, 3, 0), "next"),
        (Limit(0, MAX_COUNT, MAX_COUNT), "next"),
    ],
)
def test_an_acknowledgement_of_what_was_never_sent(limit: Limit, field: str) -> None:
    pair = connected()
    delivery = pair.a.delivery
    delivery.accept(outgoing(1))
    delivery.accept(outgoing(2))
    while pair.send(pair.a):
        pass
    delivery.accept(outgoing("not sent"))
    delivery.received(1, Ack([Limit(0, 1, 0)]), 0.0, [])
    for _ in range(2):
        with pytest.raises(ProtocolError) as caught:
            delivery.received(1, Ack([limit]), 0.0, [])
        assert (caught.value.code, caught.value.field) == ("bad_ack", field)
        with pytest.raises(ProtocolError) as caught:
            delivery.resumed(7, Resume(9, True, MIB, 32, MIB, [Limit(0, 2, 0), limit]))
        assert (caught.value.code, caught.value.field) == ("bad_ack", field)
        assert delivery.out == 1, "nothing has changed"
    pair.settle()
    assert [data for _, data in pair.b.taken] == [1, 2, "not sent"]


@pytest.mark.parametrize(
    ("resume", "field"),
    [
        (Resume(1, False, MIN_MAX_MESSAGE - 1, 2, MIN_WINDOW), "max_message"),
        (Resume(1, False, 0, 2, MIN_WINDOW), "max_message"),
        (Resume(1, False, MIN_MAX_MESSAGE, 2, MIN_WINDOW - 1), "window"),
        (Resume(1, False, MIN_MAX_MESSAGE, 2, 0), "window"),
    ],
)
def test_limits_below_what_every_side_takes(resume: Resume, field: str) -> None:
    delivery = Delivery(MeshConfig())
    delivery.accept(outgoing(b"x" * 5000))
    with pytest.raises(ProtocolError) as caught:
        delivery.resumed(1, resume)
    assert (caught.value.code, caught.value.field) == ("bad_limit", field)
    assert (delivery.out, delivery.refused()) == (None, ([], []))
    assert delivery.resumed(1, Resume(1, False, MIN_MAX_MESSAGE, 0, MIN_WINDOW, [Limit(0, 0, 9)]))


def test_the_least_that_a_side_may_take_is_what_a_setting_may_be() -> None:
    config = MeshConfig(max_message_size=MIN_MAX_MESSAGE, channel_window=MIN_WINDOW)
    assert Delivery(MeshConfig()).resumed(1, _resume(config))
    assert MIN_WINDOW - (MIN_WINDOW >> 3) >= MAX_PART + OVERHEAD
    assert MeshConfig(max_channels=frames.MAX_CHANNELS).max_channels == frames.MAX_CHANNELS


def _resume(config: MeshConfig) -> Resume:
    frame = decode(Delivery(config).attach(1, ask=False))
    assert isinstance(frame, Resume)
    return frame


# --- everything at random -------------------------------------------------------------------------


@pytest.mark.parametrize("block", range(4))
def test_the_stream_that_comes_out_is_the_one_that_went_in(block: int) -> None:
    for seed in range(block * 15, block * 15 + 15):
        _drawn(random.Random(seed))


def _drawn(rng: random.Random) -> None:
    configs = [
        MeshConfig(
            channel_window=rng.choice((MIN_WINDOW, 64 * KIB, MIB)),
            receive_window=rng.choice((256 * KIB, MIB)),
            max_message_size=256 * KIB,
            send_window=rng.choice((16 * KIB, MIB)),
            channel_priorities={"a": "high"},
        )
        for _ in range(2)
    ]
    pair = Pair(*configs)
    sent: dict[tuple[Side, str], list[Any]] = {}
    latest = 0
    for number in range(400):
        side = rng.choice((pair.a, pair.b))
        match rng.randrange(12):
            case 0 | 1 | 2:
                channel = rng.choice("abc")
                if side.delivery.has_room(channel):
                    size = rng.choice((0, 1, 100, 5000, MAX_PART, 40_000, 256 * KIB - 20))
                    data = [number, "x" * size]
                    side.delivery.accept(outgoing(data, channel))
                    sent.setdefault((side, channel), []).append(data)
            case 3 | 4:
                pair.send(side, rng.choice((1, 1000, MAX_FRAME)))
            case 5 | 6 | 7:
                if paths := [path for path, wire in side.to_me.items() if wire]:
                    pair.carry(side, rng.choice(paths))
            case 8:
                side.take(rng.randrange(4))
            case 9:
                side.now += rng.choice((0.01, 0.1))
                side.delivery.tick(side.now)
                if rng.random() < 0.3:
                    side.delivery.ask()
            case 10:
                if rng.random() < 0.4:
                    latest += 1
                    pair.attach(side, rng.choice((RELAY, latest)), ask=rng.random() < 0.8)
            case _:
                paths = list(side.to_me)
                if paths and rng.random() < 0.3:
                    pair.lose(rng.choice(paths))
        for each in (pair.a, pair.b):
            config = each.delivery._config
            bound = config.receive_window + 3 * config.channel_window
            assert each.delivery.unread <= bound
    pair.settle()
    pair.attach(pair.a, latest + 1)
    pair.attach(pair.b, latest + 1)
    pair.settle()
    for side in (pair.a, pair.b):
        other = pair.other(side)
        assert side.delivery.unacknowledged == 0
        assert side.delivery.arrived(side.delivery.mark())
        for channel in "abc":
            came = [data for name, data in other.taken if name == channel]
            assert came == sent.get((side, channel), [])


counts = st.integers(0, 4) | st.sampled_from((0, 1, 300, 70_000, 2**32, MAX_COUNT))
parts = st.builds(
    Part,
    st.sampled_from([flags | kind << 2 | role << 4 for flags in (1, 2, 3, 0) for kind in range(3)
                     for role in range(4)]),
    st.sampled_from((0, 1500, 2048, 3000, MAX_COUNT)),
    counts,
    st.sampled_from((b"", b"1", b"\xff", PART, b"1" * 1500)),
)  # fmt: skip
limits = st.lists(st.builds(Limit, counts, counts, counts), max_size=3)
any_frame: st.SearchStrategy[Frame] = st.one_of(
    st.builds(
        Parts,
        st.lists(
            st.builds(Run, counts, counts, st.lists(parts, min_size=1, max_size=3)),
            min_size=1,
            max_size=3,
        ),
    ),
    st.builds(Resume, counts, st.booleans(), counts, counts, counts, limits),
    st.builds(Start, counts, st.lists(st.builds(Channel, counts, counts, counts, st.text("ab")))),
    st.builds(Open, counts, st.text("ab")),
    st.builds(Ack, limits),
    st.builds(Ping, counts),
    st.builds(Pong, counts),
    st.just(Bye()),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from((0, 1, 2)), any_frame, st.integers(0, 9)), max_size=40))
def test_any_frames_raise_nothing_but_protocol_errors(
    frames_: list[tuple[int, Frame, int]],
) -> None:
    delivery = Delivery(SMALL)
    messages: list[Received] = []
    delivery.accept(outgoing(b"x" * 20_000))
    for path, frame, then in frames_:
        try:
            if isinstance(frame, Resume):
                delivery.resumed(path, frame)
            else:
                delivery.received(path, frame, 0.0, messages)
        except ProtocolError as error:
            assert error.code  # noqa: PT017
            assert error.field  # noqa: PT017
        match then:
            case 0:
                delivery.attach(path, ask=True)
            case 1:
                delivery.detach(path)
            case 2 if messages:
                message = messages.pop()
                message.value()
                delivery.taken(message.number, message.charge)
            case 3:
                delivery.tick(1.0)
            case 4 if delivery.has_room("d"):
                delivery.accept(outgoing(1, "c"))
            case _:
                while (data := delivery.pull(MAX_FRAME)) is not None:
                    decode(data)
