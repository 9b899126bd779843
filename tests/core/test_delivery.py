"""Messages in parts, and credit: never exceeded, always restored."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshpeer.config import MeshConfig
from meshpeer.core.delivery import (
    INITIAL_CREDIT,
    MIN_PART,
    OVERHEAD,
    RECONNECT_SLACK,
    Delivery,
    Received,
)
from meshpeer.core.frames import (
    MAX_FRAME,
    Credit,
    Data,
    Kind,
    More,
    decode,
    encode_message,
    encode_value,
)
from meshpeer.errors import MessageTooLarge, ProtocolError

KIB = 1024
SMALL = MeshConfig(receive_window=64 * KIB, max_message_size=64 * KIB)


class Pair:
    """Two deliveries, one direction: what `sender` is asked to send arrives at `receiver`."""

    def __init__(self, config: MeshConfig) -> None:
        self.config = config
        self.sender = Delivery(config)
        self.receiver = Delivery(config)
        self.wire: deque[bytes] = deque()
        self.credits: deque[bytes] = deque()
        self.inbox: deque[Received] = deque()
        self.taken: list[Any] = []
        self.credits.append(self.receiver.first_credit())
        self.kept = 0
        self.most_kept = 0

    def charge(self, data: Any, channel: str = "c") -> tuple[list[bytes], int]:
        kind, payload = encode_value(data)
        frames = list(encode_message(kind, channel, payload))
        charge = OVERHEAD + sum(map(len, frames))
        self.sender.check(charge, len(payload))
        return frames, charge

    def send(self, data: Any, channel: str = "c") -> bool:
        frames, charge = self.charge(data, channel)
        if not self.sender.may_send(charge):
            return False
        self.sender.sent(charge)
        self.wire.extend(frames)
        return True

    def carry(self) -> None:
        frame = decode(data := self.wire.popleft())
        assert isinstance(frame, Data | More)
        self.kept += len(data)
        self.most_kept = max(self.most_kept, self.kept)
        if (message := self.receiver.received(frame, len(data))) is not None:
            self.inbox.append(message)

    def give_credit(self) -> None:
        credit = decode(self.credits.popleft())
        assert isinstance(credit, Credit)
        self.sender.credited(credit)

    def take(self) -> None:
        message = self.inbox.popleft()
        self.taken.append((message.channel, message.value()))
        self.kept -= message.charge - OVERHEAD
        if (credit := self.receiver.taken(message.charge)) is not None:
            self.credits.append(credit)

    def settle(self) -> None:
        """Everything arrives and is taken."""
        while self.wire or self.inbox or self.credits:
            for queue, act in (
                (self.wire, self.carry),
                (self.inbox, self.take),
                (self.credits, self.give_credit),
            ):
                while queue:
                    act()


def test_before_the_first_credit_the_initial_one_holds() -> None:
    delivery = Delivery(MeshConfig())
    assert delivery.may_send(INITIAL_CREDIT)
    assert not delivery.may_send(INITIAL_CREDIT + 1)
    delivery.sent(INITIAL_CREDIT - 10)
    assert delivery.may_send(10)
    assert not delivery.may_send(11)


def test_an_application_that_does_not_read_stops_its_sender() -> None:
    pair = Pair(SMALL)
    pair.settle()
    sent = 0
    while pair.send(b"x" * 1000):
        sent += 1
    while pair.wire:
        pair.carry()
    assert not pair.credits
    assert 64 <= sent <= 72
    assert pair.most_kept <= SMALL.receive_window * 9 // 8, "memory stays within window and eighth"
    for _ in range(5):
        pair.take()
    pair.settle()
    assert pair.send(b"x" * 1000), "and reading lets it go on"


def test_credit_is_not_given_for_each_message() -> None:
    pair = Pair(MeshConfig())
    pair.settle()
    given = 0
    for _ in range(20_000):
        assert pair.send(b"x" * 64)
        pair.carry()
        pair.take()
        given += len(pair.credits)
        pair.settle()
    assert given == 20_000 * (64 + 4 + OVERHEAD) // KIB**2


@pytest.mark.parametrize("before", [0, 1, 1000, 60_000])
def test_a_message_as_large_as_the_window_can_always_be_sent_once_all_is_taken(
    before: int,
) -> None:
    """Whatever was sent before: a credit that waits for more to be taken would never come."""
    pair = Pair(SMALL)
    pair.settle()
    assert pair.send(b"x" * before)
    pair.settle()
    for _ in range(50):
        assert pair.send(b"y" * SMALL.max_message_size, "n" * 255)
        pair.settle()
        assert pair.send(b"z" * 777)
        pair.settle()


def test_a_message_over_the_limit_is_refused_before_anything_is_sent() -> None:
    pair = Pair(SMALL)
    pair.settle()
    with pytest.raises(MessageTooLarge, match=r"65537 bytes.* takes 65536"):
        pair.send(b"x" * (64 * KIB + 1))
    # A receiver of another make, whose window is smaller than its largest message.
    delivery = Delivery(MeshConfig())
    delivery.credited(Credit(100_000, 1_000_000))
    with pytest.raises(MessageTooLarge, match="window has 100000"):
        delivery.check(100_001, 100_000)
    delivery.check(100_000, 99_000)
    assert pair.send(b"x" * 64 * KIB)


def data(payload: bytes, *, last: bool) -> Data:
    return Data(Kind.BYTES, "c", payload, last)


PART = b"x" * MIN_PART


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        ([More(PART, last=True)], "unexpected_frame"),
        ([data(PART, last=False), data(PART, last=True)], "unexpected_frame"),
        ([data(PART, last=True), More(PART, last=True)], "unexpected_frame"),
        ([data(b"short", last=False)], "bad_frame"),
        ([data(PART, last=False), More(b"", last=False)], "bad_frame"),
        ([data(b"x" * 20_000, last=True)] * 4, "beyond_credit"),
        ([data(b"x" * 30_000, last=False)] + [More(b"x" * 20_000, last=False)] * 2, "too_large"),
        ([Data(Kind.TEXT, "c", b"\xff", last=True)], "bad_message"),
        ([Data(Kind.JSON, "c", b"{", last=True)], "bad_message"),
        ([Data(Kind.JSON, "c", b"[" * 60_000, last=True)], "too_deep"),
    ],
)
def test_what_a_sender_may_not_do(frames: list[Data | More], code: str) -> None:
    config = MeshConfig(receive_window=64 * KIB, max_message_size=60 * KIB)
    delivery = Delivery(config)

    def feed(frame: Data | More) -> None:
        delivery.received(frame, len(frame.payload) + 4)

    for frame in frames[:-1]:
        feed(frame)
    with pytest.raises(ProtocolError) as caught:
        feed(frames[-1])
    assert caught.value.code == code


def test_parts_without_an_end_are_refused_within_the_limit() -> None:
    delivery = Delivery(MeshConfig())
    delivery.received(data(PART, last=False), MIN_PART + 4)
    for _ in range(16 * KIB - 1):
        delivery.received(More(PART, last=False), MIN_PART + 2)
    with pytest.raises(ProtocolError) as caught:
        delivery.received(More(PART, last=False), MIN_PART + 2)
    assert caught.value.code == "too_large"


def test_credit_does_not_go_back() -> None:
    delivery = Delivery(MeshConfig())
    delivery.credited(Credit(1_000_000, 1024))
    delivery.credited(Credit(1_000_000, 1024))
    with pytest.raises(ProtocolError) as caught:
        delivery.credited(Credit(999_999, 1024))
    assert caught.value.code == "bad_credit"
    assert delivery.may_send(1_000_000), "nothing has changed"


@pytest.mark.parametrize(
    ("limit", "max_message", "field"),
    [(INITIAL_CREDIT - 1, 1024, "limit"), (0, 1024, "limit"), (1 << 30, 1023, "max_message")],
)
def test_credit_for_less_than_every_side_takes_is_refused(
    limit: int, max_message: int, field: str
) -> None:
    delivery = Delivery(MeshConfig())
    with pytest.raises(ProtocolError) as caught:
        delivery.credited(Credit(limit, max_message))
    assert (caught.value.code, caught.value.field) == ("bad_credit", field)
    delivery.check(1 << 20, 1 << 20)
    assert delivery.may_send(INITIAL_CREDIT)
    delivery.credited(Credit(INITIAL_CREDIT, 1024))


def test_what_is_unread_of_the_connection_before_counts_for_the_next() -> None:
    config = MeshConfig(receive_window=640 * KIB, max_message_size=64 * KIB)
    before = Delivery(config)
    charges = []
    for _ in range(9):
        message = before.received(data(b"x" * 60_000, last=True), 60_004)
        assert message is not None
        charges.append(message.charge)
    before.received(data(PART, last=False), MIN_PART + 4)
    now = Delivery(config, after=before)
    assert now.unread == sum(charges), "half a message is forgotten"
    first = decode(now.first_credit())
    assert first == Credit(720 * KIB - sum(charges), 64 * KIB)
    sender = Delivery(config)
    sender.credited(Credit(720 * KIB, 64 * KIB))
    sender = Delivery(config, after=sender)
    sender.credited(first)
    sender.check(700 * KIB, 64 * KIB)  # The window is known from the connection before.
    given = [frame for charge in charges if (frame := now.taken(charge)) is not None]
    assert given
    credit = decode(given[-1])
    assert isinstance(credit, Credit)
    assert credit.limit > 680 * KIB
    assert now.unread == 0
    now.taken(1 << 40)
    assert now.unread == 0, "no more is taken than came"


def test_what_is_unread_has_a_bound_however_often_it_is_connected_again() -> None:
    delivery = Delivery(SMALL)
    most = 0

    def connect_and_send() -> None:
        nonlocal delivery, most
        delivery = Delivery(SMALL, after=delivery)
        for _ in range(2):
            delivery.received(data(b"x" * 30_000, last=True), 30_004)
            most = delivery.unread

    def again_and_again() -> None:
        for _ in range(1000):
            connect_and_send()

    with pytest.raises(ProtocolError) as caught:
        again_and_again()
    assert caught.value.code == "beyond_credit"
    bound = SMALL.receive_window * 9 // 8 + RECONNECT_SLACK
    assert bound - 30_132 < most <= bound


def test_two_joined_over_any_order_of_events_deliver_what_was_sent() -> None:
    for seed in range(150):
        rng = random.Random(seed)
        window = rng.choice((64 * KIB, 100_000, 400_000))
        pair = Pair(MeshConfig(receive_window=window, max_message_size=rng.choice((1024, window))))
        sent: list[Any] = []
        waiting: tuple[str, Any] | None = None
        for _ in range(400):
            match rng.randrange(4):
                case 0:
                    size = rng.choice((0, 1, 50, 1000, 30_000, MAX_FRAME, window))
                    size = min(size, pair.config.max_message_size - 2)
                    waiting = waiting or (
                        rng.choice(("a", "ü" * 100)),
                        rng.choice((b"b" * size, "t" * size, ["j" * max(0, size - 4)])),
                    )
                    if pair.send(waiting[1], waiting[0]):
                        sent.append(waiting)
                        waiting = None
                case 1 if pair.wire:
                    pair.carry()
                case 2 if pair.inbox:
                    pair.take()
                case 3 if pair.credits:
                    pair.give_credit()
                case _:
                    pass
            assert pair.most_kept <= window * 9 // 8
        pair.settle()
        if waiting is not None:
            assert pair.send(waiting[1], waiting[0]), "what had to wait goes once all is taken"
            sent.append(waiting)
            pair.settle()
        assert pair.taken == sent


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.builds(
                Data,
                st.sampled_from(Kind),
                st.text(max_size=5),
                st.binary(max_size=3000),
                st.booleans(),
            ),
            st.builds(More, st.binary(max_size=3000), st.booleans()),
            st.builds(Credit, st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)),
        ),
        max_size=20,
    )
)
def test_any_frames_raise_nothing_but_protocol_errors(
    received: list[Data | More | Credit],
) -> None:
    delivery = Delivery(SMALL)
    for frame in received:
        try:
            if isinstance(frame, Credit):
                delivery.credited(frame)
            else:
                delivery.received(frame, len(frame.payload) + 5)
        except ProtocolError:
            return
