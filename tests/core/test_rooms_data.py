"""Data through the relay, one input at a time: who gets it, what waits, what is told, what is
dropped."""

from __future__ import annotations

import itertools
from collections import defaultdict
from random import Random

import pytest

from meshpeer.config import RelayConfig
from meshpeer.core.forward import (
    FORWARD_SLACK,
    MAX_FORWARD,
    FrameIn,
    decode_forward,
    encode_forward,
)
from meshpeer.core.messages import (
    Forwarded,
    Goodbye,
    Leave,
    MemberLeft,
    Refused,
    RelayMessage,
    SignalIn,
    Welcome,
    decode_relay,
    encode,
)
from meshpeer.core.rooms import (
    CLOSE_BAD_REQUEST,
    CLOSE_BEHIND,
    ConnId,
    Output,
    Pause,
    Rooms,
    Send,
    SendFrame,
    Shut,
)
from tests.core.test_rooms import INC_A, INC_B, join
from tests.core.test_rooms import signal as signal_to

KIB = 1024
WINDOW = 128 * KIB
CONFIG = RelayConfig(forward_window=WINDOW, message_burst=1000)
FRAME = bytes(8 * KIB)
COST = len(encode_forward("bob", INC_A, FRAME))


class Relay:
    """Rooms, and what every socket was sent, messages and frames in one row."""

    def __init__(self, config: RelayConfig = CONFIG) -> None:
        tokens = itertools.count()
        self.rooms = Rooms(config, new_token=lambda: f"data-token-{next(tokens):08}")
        self.conns = itertools.count(1)
        self.got: dict[ConnId, list[RelayMessage | FrameIn]] = defaultdict(list)
        self.shut: dict[ConnId, int] = {}
        self.paused: list[Pause] = []
        self.passed: dict[tuple[ConnId, str], int] = defaultdict(int)

    def apply(self, outputs: list[Output]) -> None:
        for output in outputs:
            assert output.conn not in self.shut
            if isinstance(output, SendFrame):
                self.got[output.conn].append(decode_forward(output.data))
            elif isinstance(output, Send):
                message = decode_relay(output.data)
                self.got[output.conn].append(message)
                if isinstance(message, Forwarded):
                    self.passed[output.conn, message.to] += message.size
            elif isinstance(output, Shut):
                self.shut[output.conn] = output.code
            else:
                assert isinstance(output, Pause)
                self.paused.append(output)

    def say(self, conn: ConnId, data: bytes) -> None:
        self.apply(self.rooms.received(conn, data, 0))

    def forward(self, conn: ConnId, to: str, frame: bytes = FRAME, incarnation: str = INC_A) -> int:
        data = encode_forward(to, incarnation, frame)
        self.say(conn, data)
        return len(data)

    def socket(self) -> ConnId:
        conn = next(self.conns)
        self.rooms.opened(conn, 0)
        return conn

    def member(self, peer_id: str, **fields: object) -> ConnId:
        conn = self.socket()
        self.say(conn, encode(join(peer_id, **fields)))
        return conn

    def members(self, *peer_ids: str) -> list[ConnId]:
        conns = [self.member(peer_id) for peer_id in peer_ids]
        self.got.clear()
        return conns

    def drop(self, conn: ConnId) -> None:
        self.apply(self.rooms.dropped(conn, 0))

    def drain(self, conn: ConnId, room: int = 1 << 40) -> None:
        self.apply(self.rooms.drained(conn, room, 0))

    def welcome(self, conn: ConnId) -> Welcome:
        return next(m for m in self.got[conn] if isinstance(m, Welcome))

    def frames(self, conn: ConnId) -> list[FrameIn]:
        """What came since this was asked for the last time; nothing else may have come."""
        got, self.got[conn] = self.got[conn], []
        return [frame for frame in got if isinstance(frame, FrameIn)]


def test_a_frame_goes_to_whom_it_names_and_names_whom_it_comes_from() -> None:
    relay = Relay()
    ann, bob, eve = relay.members("ann", "bob", "eve")
    for number in range(3):
        relay.forward(ann, "bob", bytes([number]))
    assert relay.got[bob] == [FrameIn("ann", INC_A, bytes([n])) for n in range(3)]
    assert relay.got[ann] == relay.got[eve] == []


def test_the_welcome_says_the_window() -> None:
    relay = Relay()
    ann = relay.member("ann")
    assert relay.welcome(ann).forward_window == WINDOW
    relay.drop(ann)
    token, session = relay.welcome(ann).token, relay.welcome(ann).session
    again = relay.member("ann", token=token, session=session, received=0, attempt=1)
    assert relay.welcome(again).resumed
    assert relay.welcome(again).forward_window == WINDOW


@pytest.mark.parametrize(
    "config", [RelayConfig(forward_window=0), RelayConfig(max_message_size=64 * KIB)]
)
def test_a_relay_that_forwards_none_says_so(config: RelayConfig) -> None:
    relay = Relay(config)
    ann = relay.member("ann")
    assert relay.welcome(ann).forward_window == 0
    [bob] = relay.members("bob")
    relay.forward(ann, "bob")
    assert relay.got[bob] == []
    [refused] = relay.got[ann]
    assert isinstance(refused, Refused)
    assert refused.code == "no_data"


def test_the_sender_is_told_each_quarter_of_the_window_that_has_left() -> None:
    relay = Relay()
    ann, _bob = relay.members("ann", "bob")
    sent = 0
    for _ in range(100):
        sent += relay.forward(ann, "bob")
        assert 0 <= sent - relay.passed[ann, "bob"] < WINDOW // 4
    assert sum(isinstance(m, Forwarded) for m in relay.got[ann]) == 25


def test_what_a_full_socket_does_not_take_waits_in_order() -> None:
    relay = Relay()
    ann, bob = relay.members("ann", "bob")
    relay.forward(ann, "bob", b"0")
    relay.rooms.full(bob)
    for number in b"1234":
        relay.forward(ann, "bob", bytes([number]))
    assert [f.data for f in relay.frames(bob)] == [b"0"]
    relay.drain(bob, 1)
    assert [f.data for f in relay.frames(bob)] == [b"1"]
    relay.forward(ann, "bob", b"5")  # there is something before it
    assert relay.frames(bob) == []
    relay.drain(bob)
    assert [f.data for f in relay.frames(bob)] == [b"2", b"3", b"4", b"5"]
    assert relay.rooms.drained(bob, 1, 0) == []
    relay.forward(ann, "bob", b"6")
    assert [f.data for f in relay.frames(bob)] == [b"6"]


def test_signals_and_presence_do_not_wait_for_data() -> None:
    relay = Relay()
    ann, bob = relay.members("ann", "bob")
    relay.rooms.full(bob)
    relay.forward(ann, "bob")
    relay.say(ann, signal_to("bob"))
    relay.say(ann, encode(Leave()))
    assert [type(m) for m in relay.got[bob]] == [SignalIn, MemberLeft]


def test_a_full_socket_holds_up_nobody_else() -> None:
    relay = Relay()
    ann, bob, eve = relay.members("ann", "bob", "eve")
    relay.rooms.full(bob)
    relay.forward(ann, "bob")
    relay.forward(ann, "eve", b"to eve")
    relay.forward(eve, "ann", b"to ann")
    assert relay.frames(eve) == [FrameIn("ann", INC_A, b"to eve")]
    assert relay.frames(ann) == [FrameIn("eve", INC_A, b"to ann")]
    assert relay.frames(bob) == []


def test_who_sends_to_the_same_member_takes_turns_by_bytes() -> None:
    relay = Relay(RelayConfig(forward_window=1 << 20))
    ann, bob, eve = relay.members("ann", "bob", "eve")
    relay.rooms.full(bob)
    for _ in range(64):
        relay.forward(ann, "bob", bytes(16 * KIB))
    for _ in range(1024):
        relay.forward(eve, "bob", bytes(KIB))
    got: dict[str, int] = defaultdict(int)
    for _ in range(12):
        relay.drain(bob, 128 * KIB)
        for frame in relay.frames(bob):
            got[frame.sender] += len(frame.data)
        assert abs(got["ann"] - got["eve"]) <= 100 * KIB
    assert relay.passed[ann, "bob"]
    assert relay.passed[eve, "bob"]


def test_beyond_the_window_and_the_slack_frames_are_dropped_and_refused_once() -> None:
    relay = Relay()
    ann, bob = relay.members("ann", "bob")
    relay.rooms.full(bob)
    fits = (WINDOW + FORWARD_SLACK) // COST
    sent = sum(relay.forward(ann, "bob") for _ in range(fits))
    assert relay.got[ann] == []
    sent += sum(relay.forward(ann, "bob") for _ in range(3))
    assert [m.code for m in relay.got[ann] if isinstance(m, Refused)] == ["over_window"]
    relay.drain(bob)
    assert len(relay.frames(bob)) == fits
    assert sent - relay.passed[ann, "bob"] < WINDOW // 4


def test_a_member_that_lets_too_much_wait_is_shut_and_may_come_back() -> None:
    relay = Relay(RelayConfig(forward_window=WINDOW, max_forwarded=256 * KIB))
    ann, eve = relay.members("ann", "eve")
    bob = relay.member("bob")
    welcome = relay.welcome(bob)
    relay.rooms.full(bob)
    sent: dict[ConnId, int] = defaultdict(int)
    for conn in itertools.cycle((ann, eve)):
        sent[conn] += relay.forward(conn, "bob")
        if relay.shut:
            break
    assert relay.shut == {bob: CLOSE_BEHIND}
    assert 256 * KIB < sum(sent.values()) <= 256 * KIB + COST
    for conn in (ann, eve):
        assert sent[conn] - relay.passed[conn, "bob"] < WINDOW // 4
    again = relay.member("bob", token=welcome.token, session=welcome.session, received=0, attempt=1)
    assert relay.welcome(again).resumed
    assert relay.frames(again) == []
    relay.forward(ann, "bob", b"new")
    assert relay.frames(again) == [FrameIn("ann", INC_A, b"new")]


@pytest.mark.parametrize("to", ["nobody", "ann"])
def test_to_nobody_it_is_dropped_and_told_at_once(to: str) -> None:
    relay = Relay()
    ann, bob = relay.members("ann", "bob")
    size = relay.forward(ann, to)
    assert relay.got[ann] == [Forwarded(to=to, size=size)]
    size = relay.forward(ann, "bob", incarnation=INC_B)
    assert relay.got[ann][1:] == [Forwarded(to="bob", size=size)]
    assert relay.got[bob] == []


def test_while_a_member_is_away_it_is_dropped_and_counts_as_passed() -> None:
    relay = Relay()
    ann, bob = relay.members("ann", "bob")
    relay.drop(bob)
    sent = sum(relay.forward(ann, "bob") for _ in range(50))
    assert sent - relay.passed[ann, "bob"] < WINDOW // 4


def test_what_waits_for_a_socket_ends_with_it() -> None:
    relay = Relay()
    ann = relay.member("ann")
    bob = relay.member("bob")
    welcome = relay.welcome(bob)
    relay.rooms.full(bob)
    sent = sum(relay.forward(ann, "bob") for _ in range(15))
    relay.drop(bob)
    assert sent - relay.passed[ann, "bob"] < WINDOW // 4
    again = relay.member("bob", token=welcome.token, session=welcome.session, received=0, attempt=1)
    relay.forward(ann, "bob", b"new")
    assert [f.data for f in relay.frames(again)] == [b"new"]


def test_what_waits_from_a_socket_ends_with_it_and_its_count_begins_anew() -> None:
    relay = Relay()
    ann, bob = relay.member("ann"), relay.member("bob")
    welcome = relay.welcome(ann)
    relay.got.clear()
    relay.rooms.full(bob)
    for _ in range(15):
        relay.forward(ann, "bob")
    relay.drop(ann)
    again = relay.member("ann", token=welcome.token, session=welcome.session, received=1, attempt=1)
    relay.forward(again, "bob", b"new")
    relay.drain(bob)
    assert [f.data for f in relay.frames(bob)] == [b"new"]
    assert relay.passed[again, "bob"] == 0


def test_the_count_begins_anew_too_when_a_socket_takes_the_place_of_another() -> None:
    relay = Relay()
    ann, bob = relay.member("ann"), relay.member("bob")
    welcome = relay.welcome(ann)
    relay.rooms.full(bob)
    relay.forward(ann, "bob", b"old")
    again = relay.member("ann", token=welcome.token, session=welcome.session, received=1, attempt=1)
    relay.forward(ann, "bob", b"of a socket that was shut")
    relay.forward(again, "bob", b"new")
    relay.drain(bob)
    assert [f.data for f in relay.frames(bob)] == [b"new"]


def test_a_new_incarnation_gets_nothing_of_what_was_for_the_old() -> None:
    relay = Relay()
    ann, bob = relay.member("ann"), relay.member("bob")
    token = relay.welcome(bob).token
    relay.rooms.full(bob)
    sent = relay.forward(ann, "bob")
    new = relay.member("bob", incarnation=INC_B, token=token)
    assert Goodbye(reason="replaced") in relay.got[bob]
    assert relay.passed[ann, "bob"] == sent, "all of it is told: nothing is kept for who is gone"
    sent += relay.forward(ann, "bob")
    assert relay.passed[ann, "bob"] == sent
    relay.forward(ann, "bob", b"new", INC_B)
    assert [f.data for f in relay.frames(new)] == [b"new"]


@pytest.mark.parametrize("how", ["leave", "timeout"])
def test_when_a_member_is_gone_the_rest_is_told(how: str) -> None:
    relay = Relay()
    ann, bob = relay.members("ann", "bob")
    relay.rooms.full(bob)
    sent = sum(relay.forward(ann, "bob") for _ in range(10))
    if how == "leave":
        relay.say(bob, encode(Leave()))
    else:
        relay.drop(bob)
        relay.apply(relay.rooms.tick(1000))
    assert relay.passed[ann, "bob"] == sent


def test_before_the_join_it_is_out_of_place() -> None:
    relay = Relay()
    [bob] = relay.members("bob")
    stranger = relay.socket()
    relay.forward(stranger, "bob")
    [refused] = relay.got[stranger]
    assert isinstance(refused, Refused)
    assert (refused.code, relay.shut) == ("not_joined", {stranger: CLOSE_BAD_REQUEST})
    relay.forward(stranger, "bob")
    assert relay.got[bob] == []


def test_what_is_malformed_is_refused_and_changes_nothing() -> None:
    relay = Relay()
    ann, bob = relay.members("ann", "bob")
    whole = encode_forward("bob", INC_A, b"\0")
    bad = [whole[:size] for size in range(1, len(whole))]
    bad += [whole[:at] + b"\xff" + whole[at + 1 :] for at in (1, 2, 3, 6)]
    bad += [whole + bytes(MAX_FORWARD), encode_forward("b\nb", INC_A, b"\0")]
    bad += [encode_forward("bob", "short", b"\0")]
    for data in bad:
        relay.say(ann, data)
        [refused] = relay.got.pop(ann)
        assert isinstance(refused, Refused)
        assert refused.code == "bad_forward", data
    assert relay.got[bob] == []
    relay.say(ann, whole)
    assert relay.frames(bob) == [FrameIn("ann", INC_A, b"\0")]


def test_frames_are_no_messages_of_the_rate() -> None:
    relay = Relay(RelayConfig(message_rate=0.1, message_burst=1))
    ann, bob = relay.members("ann", "bob")
    for _ in range(100):
        relay.forward(ann, "bob", b"x")
    assert len(relay.frames(bob)) == 100
    for _ in range(5):
        relay.say(ann, b"\x01")
    assert ann in relay.shut, "malformed ones are"


def test_whatever_happens_what_arrives_is_in_order_and_all_that_is_sent_is_told() -> None:
    """Random members, sockets that drop, fill and drain; the senders keep to their windows."""
    random = Random(11)
    for _ in range(60):
        relay = Relay(RelayConfig(forward_window=WINDOW))
        ids = ["ann", "bob", "eve", "joe"]
        conns = {peer_id: relay.member(peer_id) for peer_id in ids}
        tokens = {peer_id: relay.welcome(conns[peer_id]).token for peer_id in ids}
        attempts = itertools.count(1)
        sent: dict[tuple[ConnId, str], int] = defaultdict(int)
        numbers = itertools.count(1)
        said: dict[tuple[ConnId, ConnId], list[int]] = defaultdict(list)
        for _ in range(400):
            who, to = random.sample(ids, 2)
            here, there = conns[who], conns[to]
            match random.choices(("say", "fill", "drain", "drop"), (80, 8, 10, 2))[0]:
                case "say":
                    if sent[here, to] - relay.passed[here, to] < WINDOW:
                        number = next(numbers)
                        frame = number.to_bytes(4, "big") + bytes(random.choice((0, 9000, 60000)))
                        sent[here, to] += relay.forward(here, to, frame)
                        said[here, there].append(number)
                case "fill":
                    relay.rooms.full(here)
                case "drain":
                    relay.drain(here, random.choice((1, 100_000, 1 << 30)))
                case _:
                    relay.drop(here)
                    conns[who] = relay.member(who, token=tokens[who], attempt=next(attempts))
        for conn in conns.values():
            relay.drain(conn)
        sockets = {conn: peer_id for peer_id, conn in conns.items()}
        got: dict[tuple[str, ConnId], list[int]] = defaultdict(list)
        for conn, messages in relay.got.items():
            for message in messages:
                if isinstance(message, FrameIn):
                    number = int.from_bytes(message.data[:4], "big")
                    got[message.sender, conn].append(number)
                assert not isinstance(message, Refused)
        for heard in got.values():
            assert heard == sorted(set(heard))
        for here, there in itertools.permutations(sockets, 2):
            # Of two sockets that live, nothing is missing.
            heard = got[sockets[here], there]
            assert set(said[here, there]) <= set(heard)
            assert sent[here, sockets[there]] - relay.passed[here, sockets[there]] < WINDOW // 4
        assert all(not seat.ring and not seat.waiting for seat in relay.rooms._seated.values())
