"""The relay's logic, one input at a time: who sits where, what goes to whom, what is refused."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshpeer.config import RelayConfig
from meshpeer.core.forward import encode_forward
from meshpeer.core.messages import (
    MAX_MEMBER,
    MAX_METADATA,
    VERSION,
    Ack,
    ClientMessage,
    Goodbye,
    IceServerInfo,
    IceServers,
    Join,
    Leave,
    LinkReport,
    Member,
    MemberJoined,
    MemberLeft,
    MemberUpdated,
    Ping,
    Pong,
    Refused,
    RelayMessage,
    Report,
    SignalIn,
    SignalOut,
    Update,
    Welcome,
    decode_relay,
    encode,
)
from meshpeer.core.rooms import (
    Authenticate,
    ConnId,
    Grant,
    Output,
    Pause,
    Rooms,
    Send,
    SendFrame,
    Shut,
)
from meshpeer.core.tracking import Tracking

INC_A = "incarnation-a"
INC_B = "incarnation-b"
INC_C = "incarnation-c"


# Of all benches: two relays give no token twice.
_tokens = itertools.count()


class Told(Tracking):
    """Tracking that keeps what it was told, and wants no `tick`."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[object, ...]] = []

    def take(self) -> list[tuple[object, ...]]:
        """What it was told since this was asked for the last time."""
        calls, self.calls = self.calls, []
        return calls

    def joined(
        self,
        room: str,
        peer_id: str,
        incarnation: str,
        name: str | None,
        now: float,
        *,
        address: str | None = None,
        subject: str | None = None,
    ) -> None:
        self.calls.append(("joined", room, peer_id, incarnation, name, now, address, subject))
        super().joined(room, peer_id, incarnation, name, now, address=address, subject=subject)

    def dropped(self, room: str, peer_id: str, now: float) -> None:
        self.calls.append(("dropped", room, peer_id, now))
        super().dropped(room, peer_id, now)

    def returned(self, room: str, peer_id: str, now: float, *, address: str | None = None) -> None:
        self.calls.append(("returned", room, peer_id, now, address))
        super().returned(room, peer_id, now, address=address)

    def updated(self, room: str, peer_id: str, name: str | None, now: float) -> None:
        self.calls.append(("updated", room, peer_id, name, now))
        super().updated(room, peer_id, name, now)

    def left(self, room: str, peer_id: str, reason: str, now: float) -> None:
        self.calls.append(("left", room, peer_id, reason, now))
        super().left(room, peer_id, reason, now)

    def reported(self, room: str, peer_id: str, links: list[LinkReport], now: float) -> None:
        self.calls.append(("reported", room, peer_id, links, now))
        super().reported(room, peer_id, links, now)

    def refused(
        self,
        code: str,
        text: str,
        now: float,
        *,
        room: str | None = None,
        peer_id: str | None = None,
        address: str | None = None,
    ) -> None:
        self.calls.append(("refused", code, text, now, room, peer_id))
        super().refused(code, text, now, room=room, peer_id=peer_id, address=address)

    def acted(
        self,
        kind: str,
        now: float,
        *,
        room: str,
        peer_id: str | None = None,
        other: str | None = None,
        text: str = "",
    ) -> None:
        self.calls.append(("acted", kind, now, room, peer_id, other, text))
        super().acted(kind, now, room=room, peer_id=peer_id, other=other, text=text)

    def next_deadline(self) -> float | None:
        return None

    def tick(self, now: float) -> None:
        pass


class Bench:
    """Rooms, and what every socket was sent. ``now`` is moved by hand."""

    def __init__(
        self,
        config: RelayConfig | None = None,
        *,
        authenticate: bool = False,
        ice_servers: Callable[[str, str | None], IceServers | None] | None = None,
    ) -> None:
        self.notes: list[str] = []
        self.told = Told()
        self.rooms = Rooms(
            config or RelayConfig(),
            new_token=lambda: f"token-{next(_tokens):012}",
            note=lambda event, **facts: self.notes.append(f"{event} {facts}"),
            authenticate=authenticate,
            ice_servers=ice_servers,
            tracking=self.told,
        )
        self.now = 0.0
        self.conns = itertools.count(1)
        self.open: set[ConnId] = set()
        self.got: dict[ConnId, list[RelayMessage]] = defaultdict(list)
        self.raw: dict[ConnId, list[bytes]] = defaultdict(list)
        self.shut: dict[ConnId, int] = {}
        self.asked: list[tuple[ConnId, Join]] = []
        self.pauses: list[tuple[ConnId, float]] = []

    def apply(self, outputs: list[Output]) -> None:
        for output in outputs:
            assert output.conn in self.open, f"{output} is for a socket that is not open"
            match output:
                case Send(conn, data):
                    self.raw[conn].append(data)
                    self.got[conn].append(decode_relay(data))
                case Shut(conn, code, reason):
                    assert len(reason.encode()) <= 123  # RFC 6455, section 5.5
                    self.shut[conn] = code
                    self.open.discard(conn)
                case Authenticate(conn, join):
                    self.asked.append((conn, join))
                case Pause(conn, seconds):
                    self.pauses.append((conn, seconds))
                case _:
                    raise AssertionError(f"{output} is not for these tests")

    def socket(self, address: str = "192.0.2.1") -> ConnId:
        conn = next(self.conns)
        self.open.add(conn)
        self.rooms.opened(conn, self.now, address)
        return conn

    def say(self, conn: ConnId, message: ClientMessage | bytes | str) -> list[RelayMessage]:
        """Let a client say something; what it was sent in turn."""
        data = message if isinstance(message, bytes | str) else encode(message)
        before = len(self.got[conn])
        self.apply(self.rooms.received(conn, data, self.now))
        return self.got[conn][before:]

    def drop(self, conn: ConnId) -> None:
        self.open.discard(conn)
        self.apply(self.rooms.dropped(conn, self.now))

    def tick(self, by: float = 0) -> None:
        self.now += by
        self.apply(self.rooms.tick(self.now))

    def join(self, peer_id: str, **fields: object) -> tuple[ConnId, RelayMessage]:
        conn = self.socket()
        said = self.say(conn, join(peer_id, **fields))
        return conn, said[0]

    def member(self, peer_id: str, **fields: object) -> tuple[ConnId, Welcome]:
        conn, answer = self.join(peer_id, **fields)
        assert isinstance(answer, Welcome)
        return conn, answer

    def refused(self, peer_id: str, **fields: object) -> tuple[ConnId, Refused]:
        conn, answer = self.join(peer_id, **fields)
        assert isinstance(answer, Refused)
        assert conn in self.shut
        return conn, answer

    def take(self, conn: ConnId) -> list[RelayMessage]:
        """What a socket was sent since this was asked for the last time."""
        got, self.got[conn] = self.got[conn], []
        return got


def join(peer_id: str, **fields: object) -> Join:
    defaults: dict[str, object] = {"room": "lobby", "incarnation": INC_A, "version": VERSION}
    return msgspec.convert({**defaults, "peer_id": peer_id, **fields}, Join)


def signal(to: str, number: int = 1, incarnation: str = INC_A) -> bytes:
    body = msgspec.Raw(b'{"n":%d}' % number)
    return encode(SignalOut(to=to, to_incarnation=incarnation, epoch=7, body=body))


def comeback(welcome: Welcome, received: int, **fields: object) -> dict[str, Any]:
    return {
        "incarnation": welcome.incarnation,
        "token": welcome.token,
        "session": welcome.session,
        "received": received,
        **fields,
    }


@pytest.fixture
def bench() -> Bench:
    return Bench()


# --- joining -------------------------------------------------------------------------------------


def test_a_welcome_lists_the_others_and_they_are_told(bench: Bench) -> None:
    ann, first = bench.member("ann", name="Ann", metadata={"x": 1})
    assert first.members == []
    assert (first.peer_id, first.room, first.incarnation) == ("ann", "lobby", INC_A)
    assert first.seat_timeout == RelayConfig().seat_timeout
    _, second = bench.member("bob", incarnation=INC_B)
    assert second.members == [Member("ann", INC_A, "Ann", {"x": 1})]
    assert second.token != first.token
    assert bench.take(ann)[1:] == [MemberJoined(Member("bob", INC_B))]


def test_rooms_do_not_hear_of_each_other(bench: Bench) -> None:
    ann, _ = bench.member("ann")
    bob, welcome = bench.member("bob", room="other")
    assert welcome.members == []
    assert len(bench.take(ann)) == 1
    bench.take(bob)
    (refused,) = bench.say(bob, signal("ann"))
    assert isinstance(refused, Refused)
    assert refused.code == "no_such_peer"
    assert bench.rooms.rooms == 2


@pytest.mark.parametrize(
    ("data", "code", "field"),
    [
        (encode(Leave()), "not_joined", None),
        (signal("bob"), "not_joined", None),
        (encode(Update(name="x")), "not_joined", None),
        (encode(Ack(received=1)), "not_joined", None),
        (encode(Ping()), "not_joined", None),
        (encode(join("ann", version=2)), "unsupported_version", "$.version"),
        (b"nonsense", "not_json", "$"),
        (b"\xff\xfe", "not_json", "$"),
        ("\ud800", "not_json", "$"),
        (b'{"type":"dance"}', "malformed", "$.type"),
        (b'{"type":"join","version":1}', "malformed", "$.room"),
        (b" " * 300_000, "too_large", "$"),
    ],
)
def test_what_is_not_a_join_is_refused_and_shut(
    bench: Bench, data: bytes | str, code: str, field: str | None
) -> None:
    ann, _ = bench.member("ann")
    bench.take(ann)
    conn = bench.socket()
    (refused,) = bench.say(conn, data)
    assert isinstance(refused, Refused)
    assert (refused.code, refused.field, refused.message) == (code, field, 0)
    assert bench.shut[conn] == 4000
    assert bench.take(ann) == []
    assert (bench.rooms.members, bench.rooms.connections) == (1, 1)


def test_a_second_join_is_refused_and_changes_nothing(bench: Bench) -> None:
    ann, _ = bench.member("ann")
    bob, _ = bench.member("bob", incarnation=INC_B)
    bench.take(ann)
    bench.take(bob)
    (refused,) = bench.say(bob, join("bobby", room="elsewhere", incarnation=INC_C))
    assert isinstance(refused, Refused)
    assert refused.code == "already_joined"
    assert bob not in bench.shut
    assert bench.take(ann) == []
    assert (bench.rooms.rooms, bench.rooms.members) == (1, 2)


def test_who_never_joins_is_shut(bench: Bench) -> None:
    config = RelayConfig()
    conn = bench.socket()
    assert bench.rooms.next_deadline() == config.join_timeout
    bench.tick(config.join_timeout - 0.1)
    assert conn not in bench.shut
    bench.tick(0.1)
    (refused,) = bench.take(conn)
    assert isinstance(refused, Refused)
    assert refused.code == "not_joined"
    assert bench.shut[conn] == 4004
    assert bench.rooms.next_deadline() is None


def test_a_full_room_and_too_many_rooms() -> None:
    bench = Bench(RelayConfig(max_members=2, max_rooms=2))
    ann, ann_welcome = bench.member("ann")
    bench.member("bob", incarnation=INC_B)
    conn, refused = bench.refused("cat", incarnation=INC_C)
    assert refused.code == "room_full"
    assert "2 members" in refused.text
    assert bench.shut[conn] == 4003
    bench.member("cat", room="second")
    conn, refused = bench.refused("cat", room="third")
    assert refused.code == "too_many_rooms"
    assert bench.shut[conn] == 4003
    # Who has a seat has it in a full room too; and a room ends with its last member.
    bench.drop(ann)
    back, welcome = bench.member("ann", **comeback(ann_welcome, 1))
    assert welcome.resumed
    bench.say(back, Leave())
    bench.member("cat", incarnation=INC_C)


# --- an id that is in use ------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["reject", "takeover"])
@pytest.mark.parametrize("token", [None, "x" * 24])
def test_a_live_id_is_refused_without_its_token(
    bench: Bench, policy: str, token: str | None
) -> None:
    ann, _ = bench.member("ann")
    bench.take(ann)
    conn, refused = bench.refused("ann", incarnation=INC_B, on_conflict=policy, token=token)
    assert refused.code == "peer_id_taken"
    assert refused.retry_after is None
    assert refused.text == "peer id 'ann' in room 'lobby' belongs to another process"
    assert bench.shut[conn] == 4003
    assert bench.take(ann) == []
    assert ann not in bench.shut


def test_the_same_incarnation_without_the_token_is_somebody_else(bench: Bench) -> None:
    bench.member("ann")
    _, refused = bench.refused("ann", incarnation=INC_A)
    assert refused.code == "peer_id_taken"


def test_an_id_whose_socket_is_down_says_when_to_try_again(bench: Bench) -> None:
    ann, _ = bench.member("ann")
    bench.drop(ann)
    bench.tick(10)
    _, refused = bench.refused("ann", incarnation=INC_B)
    assert (refused.code, refused.retry_after) == ("peer_id_taken", 20)
    assert refused.text.endswith("which lost its connection and has 20 s to come back")
    bench.tick(20)
    bench.member("ann", incarnation=INC_B)


def test_rename_takes_the_first_free_number(bench: Bench) -> None:
    bench.member("ann")
    bench.member("ann-3", incarnation=INC_B)
    names = [
        bench.member("ann", incarnation=f"incarnation-{n}", on_conflict="rename")[1].peer_id
        for n in range(3)
    ]
    assert names == ["ann-2", "ann-4", "ann-5"]


def test_rename_gives_the_owner_its_number_back(bench: Bench) -> None:
    bench.member("ann")
    conn, welcome = bench.member("ann", incarnation=INC_B, on_conflict="rename")
    assert welcome.peer_id == "ann-2"
    bench.drop(conn)
    _, again = bench.member("ann", **comeback(welcome, 0, on_conflict="rename"))
    assert (again.peer_id, again.resumed) == ("ann-2", True)
    assert bench.rooms.members == 2


def test_an_id_too_long_for_a_number_is_refused(bench: Bench) -> None:
    bench.member("x" * 127)
    _, refused = bench.refused("x" * 127, incarnation=INC_B, on_conflict="rename")
    assert refused.code == "peer_id_taken"
    assert "too long to have a number" in refused.text
    bench.member("y" * 126)
    _, welcome = bench.member("y" * 126, incarnation=INC_B, on_conflict="rename")
    assert len(welcome.peer_id) == 128


@pytest.mark.parametrize("policy", ["reject", "takeover", "rename"])
@pytest.mark.parametrize("alive", [True, False])
def test_a_new_process_with_the_token_takes_over(bench: Bench, policy: str, alive: bool) -> None:
    old, welcome = bench.member("ann", name="Old")
    bob, _ = bench.member("bob", incarnation=INC_C)
    if not alive:
        bench.drop(old)
    bench.take(old)
    bench.take(bob)
    _, new = bench.member(
        "ann", incarnation=INC_B, token=welcome.token, on_conflict=policy, name="New"
    )
    assert not new.resumed
    assert new.token == welcome.token
    assert [member.peer_id for member in new.members] == ["bob"]
    assert bench.take(bob) == [MemberJoined(Member("ann", INC_B, "New"))]
    if alive:
        assert bench.take(old) == [Goodbye(reason="replaced")]
        assert bench.shut[old] == 4001
    assert bench.rooms.members == 2


def test_who_was_replaced_does_not_come_back(bench: Bench) -> None:
    first, welcome = bench.member("ann")
    bench.drop(first)
    second, _ = bench.member("ann", incarnation=INC_B, token=welcome.token)
    for token in (welcome.token, None):
        conn, answer = bench.join("ann", incarnation=INC_A, token=token, on_conflict="rename")
        assert answer == Goodbye(reason="replaced")
        assert bench.shut[conn] == 4001
    assert second not in bench.shut
    assert bench.rooms.members == 1


def test_the_past_is_bounded(bench: Bench) -> None:
    _, welcome = bench.member("ann", incarnation="incarnation-0")
    for number in range(1, 11):
        bench.member("ann", incarnation=f"incarnation-{number}", token=welcome.token)
    _, answer = bench.join("ann", incarnation="incarnation-2", token=welcome.token)
    assert isinstance(answer, Goodbye)
    bench.member("ann", incarnation="incarnation-1", token=welcome.token)


def test_a_token_outlives_the_relay(bench: Bench) -> None:
    _, welcome = bench.member("ann", token="t" * 24)
    assert welcome.token == "t" * 24
    bench.member("ann", incarnation=INC_B, token="t" * 24)


# --- coming back ---------------------------------------------------------------------------------


def test_resume_replays_what_was_missed_and_nobody_hears_of_it(bench: Bench) -> None:
    ann, welcome = bench.member("ann")
    bob, _ = bench.member("bob", incarnation=INC_B)
    bench.say(ann, signal("bob"))
    bench.drop(ann)
    bench.take(bob)
    for number in range(3):
        bench.say(bob, signal("ann", number))
    back, again = bench.member("ann", **comeback(welcome, 1, name="ignored"))
    assert (again.resumed, again.received, again.members) == (True, 1, [])
    assert (again.session, again.token) == (welcome.session, welcome.token)
    missed = bench.take(back)[1:]
    assert [bytes(m.body) for m in missed if isinstance(m, SignalIn)] == [
        b'{"n":0}',
        b'{"n":1}',
        b'{"n":2}',
    ]
    assert bench.take(bob) == []
    bench.tick(100)
    assert bench.rooms.members == 2


def test_a_resume_supersedes_a_socket_that_is_still_there(bench: Bench) -> None:
    ann, welcome = bench.member("ann")
    bob, _ = bench.member("bob", incarnation=INC_B)
    bench.take(ann)
    back, again = bench.member("ann", **comeback(welcome, 1))
    assert again.resumed
    assert bench.shut[ann] == 4002
    assert bench.take(ann) == []
    # What is still on its way from the old socket changes nothing.
    bench.take(bob)
    assert bench.say(ann, signal("bob")) == []
    bench.drop(ann)
    assert bench.take(bob) == []
    bench.say(bob, signal("ann"))
    assert isinstance(bench.take(back)[-1], SignalIn)


def test_a_join_that_was_overtaken_by_a_later_one_changes_nothing(bench: Bench) -> None:
    _, welcome = bench.member("ann")
    bob, _ = bench.member("bob", incarnation=INC_B)
    live, again = bench.member("ann", **comeback(welcome, 1, attempt=3))
    assert again.resumed
    late, refused = bench.join("ann", **comeback(welcome, 0, attempt=2))
    assert isinstance(refused, Refused)
    assert (refused.code, refused.field, bench.shut[late]) == ("stale_join", "$.attempt", 4002)
    bench.say(bob, signal("ann"))
    assert isinstance(bench.take(live)[-1], SignalIn)


def test_a_lost_welcome_is_not_resumed_from(bench: Bench) -> None:
    """The count of an earlier seat, or of none, must not be taken for one of this seat."""
    _, early = bench.member("ann")
    bench.member("bob", incarnation=INC_B)
    relay = Bench()
    lost, _ = relay.member("ann", **comeback(early, 1))
    relay.drop(lost)
    for number in range(3):
        relay.member(f"peer-{number}", incarnation=INC_B)
    _, welcome = relay.member("ann", **comeback(early, 1))
    assert not welcome.resumed
    assert len(welcome.members) == 3

    new, _ = bench.member("ann", incarnation=INC_C, token=early.token)
    bench.drop(new)
    _, welcome = bench.member("ann", incarnation=INC_C, token=early.token)
    assert not welcome.resumed
    assert [member.peer_id for member in welcome.members] == ["bob"]


@pytest.mark.parametrize("limit", [{"max_replay": 3}, {"max_replay_bytes": 1024}])
def test_what_fell_out_of_the_replay_can_not_be_resumed(limit: dict[str, int]) -> None:
    bench = Bench(RelayConfig(**limit))  # type: ignore[arg-type]
    ann, welcome = bench.member("ann")
    bob, _ = bench.member("bob", incarnation=INC_B)
    bench.say(ann, signal("bob"))
    bench.drop(ann)
    for number in range(20):
        bench.say(bob, signal("ann", number))
    back, again = bench.member("ann", **comeback(welcome, 1))
    assert not again.resumed
    assert [member.peer_id for member in again.members] == ["bob"]
    assert again.session != welcome.session
    # By the old count: so the client does not send again what has arrived.
    assert again.received == 1
    assert len(bench.take(back)) == 1
    # Both counts begin anew.
    bench.say(bob, signal("ann"))
    bench.drop(back)
    last, third = bench.member("ann", **comeback(again, 0))
    assert (third.resumed, third.received) == (True, 0)
    assert len(bench.take(last)) == 1 + 1


def test_a_count_from_the_future_is_not_resumed(bench: Bench) -> None:
    ann, welcome = bench.member("ann")
    bench.drop(ann)
    _, again = bench.member("ann", **comeback(welcome, 99))
    assert not again.resumed


def test_values_of_a_join_that_is_not_resumed_are_told(bench: Bench) -> None:
    ann, welcome = bench.member("ann", name="Ann", metadata={"x": 1})
    bob, _ = bench.member("bob", incarnation=INC_B)
    bench.drop(ann)
    bench.take(bob)
    back, _ = bench.member(
        "ann", **comeback(welcome, 99, name="Anne", metadata={}, session="s" * 20)
    )
    assert bench.take(bob) == [MemberUpdated("ann", INC_A, "Anne", {})]
    bench.drop(back)
    bench.member("ann", **comeback(welcome, 99, metadata={}, session="s" * 20))
    assert bench.take(bob) == [MemberUpdated("ann", INC_A, None, {})]


def test_a_seat_runs_out(bench: Bench) -> None:
    ann, welcome = bench.member("ann")
    bob, _ = bench.member("bob", incarnation=INC_B)
    bench.take(bob)
    bench.now = 5
    bench.drop(ann)
    assert bench.rooms.next_deadline() == 35
    bench.tick(29)
    assert bench.take(bob) == []
    bench.tick(1)
    assert bench.take(bob) == [MemberLeft("ann", INC_A, "timeout")]
    assert bench.rooms.next_deadline() is None
    _, again = bench.member("ann", **comeback(welcome, 1))
    assert (again.resumed, again.token) == (False, welcome.token)


def test_seats_run_out_in_order_and_only_those_that_stayed_away(bench: Bench) -> None:
    welcomes = {}
    conns = {}
    for name in ("ann", "bob", "cat"):
        conns[name], welcomes[name] = bench.member(name)
    for conn in conns.values():
        bench.drop(conn)
        bench.now += 1
    bench.member("ann", **comeback(welcomes["ann"], 2))
    assert bench.rooms.next_deadline() == 31
    bench.tick(28.5)
    assert bench.rooms.members == 2
    assert bench.rooms.next_deadline() == 32


# --- members -------------------------------------------------------------------------------------


def test_a_signal_is_stamped_and_its_body_passes_as_it_is(bench: Bench) -> None:
    ann, _ = bench.member("ann")
    bob, _ = bench.member("bob", incarnation=INC_B)
    bench.take(ann)
    body = b'{"from":"mallory","deep":[1,{"a":null}],"text":"\xc3\xa9\\u0041"}'
    bench.say(
        bob,
        b'{"type":"signal","to":"ann","to_incarnation":"whatever-it-is","epoch":3,'
        b'"from":"mallory","incarnation":"mallory-incarnation","body":' + body + b"}",
    )
    (got,) = bench.take(ann)
    assert isinstance(got, SignalIn)
    assert (got.sender, got.incarnation) == ("bob", INC_B)
    assert (got.to_incarnation, got.epoch) == ("whatever-it-is", 3)
    assert bytes(got.body) == body
    assert bench.take(bob)[1:] == []


@pytest.mark.parametrize("to", ["nobody", "ann"])
def test_a_signal_to_nobody_else_is_refused_with_its_number(bench: Bench, to: str) -> None:
    ann, _ = bench.member("ann")
    bench.say(ann, Update(name="first"))
    (refused,) = bench.say(ann, signal(to))
    assert isinstance(refused, Refused)
    assert (refused.code, refused.to, refused.message) == ("no_such_peer", to, 2)
    assert refused.field == "$.to"


def test_a_ping_is_answered_behind_what_was_said_before(bench: Bench) -> None:
    ann, _ = bench.member("ann")
    bob, _ = bench.member("bob", incarnation=INC_B)
    bench.say(bob, signal("ann"))
    bench.say(ann, Ping())
    assert [type(each) for each in bench.take(ann)[1:]] == [MemberJoined, SignalIn, Pong]
    bench.say(ann, Update(name="Ann"))
    (refused,) = bench.say(ann, signal("nobody"))
    assert isinstance(refused, Refused)
    assert refused.message == 2, "a ping is not counted"
    assert bench.take(bob)[2:] == []


def test_pings_beyond_the_rate_are_not_answered() -> None:
    bench = Bench(RelayConfig(message_rate=10, message_burst=10))
    ann, _ = bench.member("ann")
    answers = [bench.say(ann, Ping()) for _ in range(12)]
    assert answers[:10] == [[Pong()]] * 10
    (refused,) = answers[10]
    assert isinstance(refused, Refused)
    assert refused.code == "rate_limited"
    assert answers[11] == []


def test_an_update_tells_all_values_as_they_are_now(bench: Bench) -> None:
    ann, _ = bench.member("ann", name="Ann", metadata={"x": 1})
    bob, _ = bench.member("bob", incarnation=INC_B)
    bench.take(ann)
    bench.take(bob)
    bench.say(ann, Update(metadata={"x": 2}))
    bench.say(ann, Update(name="Anne"))
    assert bench.take(bob) == [
        MemberUpdated("ann", INC_A, "Ann", {"x": 2}),
        MemberUpdated("ann", INC_A, "Anne", {"x": 2}),
    ]
    assert bench.take(ann) == []
    _, welcome = bench.member("cat", incarnation=INC_C)
    assert welcome.members[0] == Member("ann", INC_A, "Anne", {"x": 2})


def test_a_leave_ends_the_seat_at_once(bench: Bench) -> None:
    ann, welcome = bench.member("ann")
    bob, _ = bench.member("bob", incarnation=INC_B)
    bench.take(bob)
    bench.say(ann, Leave())
    assert bench.shut[ann] == 1000
    assert bench.take(bob) == [MemberLeft("ann", INC_A, "left")]
    assert bench.rooms.next_deadline() is None
    _, again = bench.member("ann", **comeback(welcome, 1))
    assert not again.resumed


def test_an_empty_room_is_gone(bench: Bench) -> None:
    ann, _ = bench.member("ann")
    bench.say(ann, Leave())
    assert (bench.rooms.rooms, bench.rooms.members, bench.rooms.connections) == (0, 0, 0)


@pytest.mark.parametrize(
    ("data", "code", "field"),
    [
        (b"nonsense", "not_json", "$"),
        (b"\xff", "not_json", "$"),
        ("\ud800", "not_json", "$"),
        (b'{"type":"dance"}', "malformed", "$.type"),
        (b'{"type":"' + b"x" * 5000 + b'"}', "malformed", "$.type"),
        (b'{"type":"signal","to":"ann"}', "malformed", "$.to_incarnation"),
        (b'{"type":"update","name":7}', "malformed", "$.name"),
        (encode(Update(metadata={"x": "y" * MAX_METADATA})), "too_large", "$.metadata"),
        (encode(Ack(received=5)), "bad_ack", "$.received"),
        (b" " * 300_000, "too_large", "$"),
    ],
)
def test_bad_input_from_a_member_is_refused_and_changes_nothing(
    bench: Bench, data: bytes | str, code: str, field: str
) -> None:
    ann, welcome = bench.member("ann")
    bob, _ = bench.member("bob", incarnation=INC_B)
    bench.take(bob)
    (refused,) = bench.say(ann, data)
    assert isinstance(refused, Refused)
    assert (refused.code, refused.field, refused.message) == (code, field, 0)
    assert ann not in bench.shut
    assert bench.take(bob) == []
    # It does not count as received, but its refusal counts as sent.
    bench.drop(ann)
    _, again = bench.member("ann", **comeback(welcome, 2))
    assert (again.resumed, again.received) == (True, 0)


def test_a_forged_utf8_body_does_not_reach_the_addressee(bench: Bench) -> None:
    ann, _ = bench.member("ann")
    bob, _ = bench.member("bob", incarnation=INC_B)
    bench.take(ann)
    data = signal("ann").replace(b'{"n":1}', b'"\xff"')
    (refused,) = bench.say(bob, data)[-1:]
    assert isinstance(refused, Refused)
    assert refused.code == "not_json"
    assert bench.take(ann) == []


# --- acknowledgements and bounds -----------------------------------------------------------------


def test_the_relay_acknowledges_every_32_counted_messages(bench: Bench) -> None:
    ann, _ = bench.member("ann")
    bench.member("bob", incarnation=INC_B)
    bench.take(ann)
    for number in range(64):
        bench.say(ann, signal("bob", number))
        bench.say(ann, Ack(received=0))
    assert bench.take(ann) == [Ack(received=32), Ack(received=64)]


def test_an_acknowledgement_frees_the_replay() -> None:
    bench = Bench(RelayConfig(max_replay=10))
    ann, welcome = bench.member("ann")
    bob, _ = bench.member("bob", incarnation=INC_B)
    for number in range(10):
        bench.say(bob, signal("ann", number))
        bench.say(ann, Ack(received=number + 2))
        bench.say(ann, Ack(received=1))  # an old one takes nothing back
    bench.drop(ann)
    for number in range(10):
        bench.say(bob, signal("ann", number))
    back, again = bench.member("ann", **comeback(welcome, 13))
    assert again.resumed
    assert len(bench.take(back)) == 1 + 8
    bench.drop(back)
    _, other = bench.member("ann", **comeback(welcome, 12))
    assert not other.resumed  # 13 were acknowledged by the join


def test_members_that_read_nothing_share_what_all_of_them_may_make_the_relay_keep() -> None:
    bench = Bench(RelayConfig(max_replay_bytes=4096))
    ann, welcome = bench.member("ann")
    bob, _ = bench.member("bob", incarnation=INC_B)
    silent = [bench.member(f"silent-{n}", incarnation=INC_C)[1] for n in range(150)]
    heard = len(bench.take(ann)) - 1
    body = msgspec.Raw(b'"%s"' % (b"x" * 900))
    for last in (False,) * 5 + (True,):
        if last:
            bench.drop(ann)
        for number, other in enumerate(silent):
            to = SignalOut(to=other.peer_id, to_incarnation=INC_C, epoch=1, body=body)
            bench.say(bob, encode(to))
            if last and number % 11 == 0:
                bench.say(bob, signal("ann", number))
        bench.say(ann, Ack(received=heard))
        seats = bench.rooms._rooms["lobby"].values()
        held = sum(len(b"".join(seat.replay or ())) for seat in seats)
        assert 63 * 4096 <= held <= 2 * 64 * 4096
    # Who reads what comes can come back to what it missed; who does not has to begin anew.
    back, again = bench.member("ann", **comeback(welcome, heard))
    assert again.resumed
    assert [type(message) for message in bench.take(back)] == [Welcome, *[SignalIn] * 14]
    assert not bench.member("silent-0", **comeback(silent[0], 0))[1].resumed


def test_a_seat_that_waits_for_nothing_keeps_nothing(bench: Bench) -> None:
    """A thousand idle members take the memory of their seats alone."""
    ann, _ = bench.member("ann")
    bob, _ = bench.member("bob", incarnation=INC_B)
    bench.rooms.full(ann)
    bench.rooms.received(bob, encode_forward("ann", INC_A, b"data"), bench.now)
    assert len(bench.rooms.drained(ann, 1000, bench.now)) == 1
    bench.say(ann, Ack(received=1))
    for seat in bench.rooms._seated.values():
        assert (seat.replay, seat.ring) == (None, None)


def test_a_broadcast_is_encoded_once(bench: Bench) -> None:
    conns = [bench.member(f"peer-{n}", incarnation=INC_B)[0] for n in range(5)]
    bench.member("ann")
    assert len({id(bench.raw[conn][-1]) for conn in conns}) == 1


def test_over_its_rate_a_member_is_told_once_a_second_and_then_shut() -> None:
    bench = Bench(RelayConfig(message_rate=10, message_burst=20))
    ann, welcome = bench.member("ann")
    bob, _ = bench.member("bob", incarnation=INC_B)
    cat, _ = bench.member("cat", incarnation=INC_C)
    for conn in (ann, bob, cat):
        bench.take(conn)
    for number in range(39):
        bench.say(ann, signal("bob", number))
    assert len(bench.take(bob)) == 20
    refused, ack = bench.take(ann)
    assert isinstance(refused, Refused)
    assert (refused.code, refused.message) == ("rate_limited", 21)
    assert refused.retry_after == pytest.approx(0.2)
    assert ack == Ack(received=32)  # it is counted all the same
    # Another member is not touched by that.
    bench.say(cat, signal("bob"))
    assert len(bench.take(bob)) == 1
    bench.say(ann, signal("bob"))
    (refused,) = bench.take(ann)
    assert isinstance(refused, Refused)
    assert (refused.code, refused.message) == ("rate_limited", 40)
    assert bench.shut[ann] == 1008
    # It keeps its seat, and its empty bucket.
    _, again = bench.member("ann", **comeback(welcome, 4))
    assert (again.resumed, again.received) == (True, 40)


def test_time_fills_the_bucket_again() -> None:
    bench = Bench(RelayConfig(message_rate=10, message_burst=20))
    ann, _ = bench.member("ann")
    bob, _ = bench.member("bob", incarnation=INC_B)
    for _ in range(25):
        bench.say(ann, signal("bob"))
    bench.take(bob)
    bench.now = 1
    for _ in range(5):
        bench.say(ann, signal("bob"))
    assert len(bench.take(bob)) == 5
    bench.now = 1000
    bench.take(ann)
    for _ in range(20):
        bench.say(ann, signal("bob"))
    assert len(bench.take(bob)) == 20
    assert not any(isinstance(message, Refused) for message in bench.take(ann))


@pytest.mark.parametrize(
    ("others", "cost"), [(0, 1), (1, 2), (50, 2), (51, 3), (100, 3), (499, 11)]
)
def test_an_update_counts_for_what_it_causes(others: int, cost: int) -> None:
    bench = Bench(RelayConfig(message_rate=10, message_burst=100, max_members=1000))
    ann, _ = bench.member("ann")
    for number in range(others):
        bench.member(f"peer-{number}", incarnation=INC_B)
    bench.member("far", room="attic", incarnation=INC_B)
    bench.take(ann)
    fit = 100 // cost
    for number in range(fit):
        bench.say(ann, Update(name=f"name {number}"))
    assert bench.take(ann) == [Ack(received=32 * n) for n in range(1, fit // 32 + 1)]
    for _ in range(100 % cost):
        bench.say(ann, Ack(received=0))
    bench.say(ann, Update(name="one too many"))
    (refused,) = bench.take(ann)
    assert isinstance(refused, Refused)
    assert (refused.code, refused.message) == ("rate_limited", fit + 1)
    assert refused.retry_after == pytest.approx(2 * cost / 10)
    assert (f"counts as {cost})" in refused.text) == (cost > 1)
    # After that time it is taken.
    bench.now = 2 * cost / 10
    bench.say(ann, Update(name="at last"))
    assert bench.take(ann) == []
    _, welcome = bench.member("zoe", incarnation=INC_C)
    assert next(m.name for m in welcome.members if m.peer_id == "ann") == "at last"


def test_an_update_never_costs_more_than_can_be_saved_up() -> None:
    bench = Bench(RelayConfig(message_rate=10, message_burst=1))
    ann, _ = bench.member("ann")
    bob, _ = bench.member("bob", incarnation=INC_B)
    bench.take(bob)
    bench.say(ann, Update(name="Ann"))
    (updated,) = bench.take(bob)
    assert isinstance(updated, MemberUpdated)


@pytest.mark.parametrize("what", ["signal", "update", "not JSON"])
@pytest.mark.parametrize(
    ("size", "cost"), [(8191, 1), (8192, 2), (16_383, 2), (16_384, 3), (256 * 1024, 33)]
)
def test_a_message_counts_for_its_bytes(what: str, size: int, cost: int) -> None:
    """All of it is read, whatever becomes of it."""
    bench = Bench(RelayConfig(message_rate=1, message_burst=100))
    ann, _ = bench.member("ann")
    bob, _ = bench.member("bob", incarnation=INC_B)
    cost += what == "update" and size <= MAX_MEMBER  # there is one to be told
    data = {"signal": signal("bob"), "update": encode(Update(metadata={})), "not JSON": b"{"}[what]
    data += b" " * (size - len(data))
    fit = 100 // cost
    for _ in range(fit):
        bench.say(ann, data)
    for _ in range(100 % cost):
        bench.say(ann, Ack(received=0))
    bench.take(ann)
    bench.take(bob)
    bench.say(ann, data)
    assert bench.take(bob) == []
    (refused,) = [each for each in bench.take(ann) if isinstance(each, Refused)]
    assert (refused.code, refused.retry_after) == ("rate_limited", 2 * cost)


def test_a_message_never_costs_more_for_its_bytes_than_can_be_saved_up() -> None:
    bench = Bench(RelayConfig(message_rate=10, message_burst=3))
    ann, _ = bench.member("ann")
    bob, _ = bench.member("bob", incarnation=INC_B)
    bench.take(bob)
    bench.say(ann, signal("bob") + b" " * 100_000)
    assert [type(message) for message in bench.take(bob)] == [SignalIn]


# What a client has to say in the first moment, in the largest room that there may be: an offer and
# candidates for each of the others, acknowledgements, and how all its links stand.
def _says_all(bench: Bench, conn: ConnId, others: int) -> None:
    offer = signal("peer-1") + b" " * 6000
    for _ in range(others):
        bench.say(conn, offer)
        bench.say(conn, signal("peer-1"))
    for first in range(0, others, 62):
        links = [
            LinkReport(f"peer-{n}", INC_B, "connecting", "checking")
            for n in range(first, min(first + 62, others))
        ]
        bench.say(conn, Report(links))


def test_who_joins_the_largest_room_may_call_everybody_and_do_so_again() -> None:
    bench = Bench()
    for number in range(499):
        bench.member(f"peer-{number}", incarnation=INC_B)
    for _ in range(5):  # a page that is loaded again and again
        ann, _ = bench.member("ann")
        _says_all(bench, ann, 499)
        said = bench.take(ann)
        assert [message for message in said if isinstance(message, Refused)] == []
        bench.say(ann, Leave())


@pytest.mark.parametrize("how", ["leave", "timeout"])
def test_who_leaves_and_joins_may_send_no_more_than_who_stays(how: str) -> None:
    config = RelayConfig(message_rate=10, message_burst=20, seat_timeout=0)
    bench = Bench(config)
    bob, _ = bench.member("bob", incarnation=INC_B)
    passed = 0
    for number in range(100):
        bench.take(bob)
        ann, _ = bench.member("ann", incarnation=f"incarnation-{number}")
        while not any(isinstance(said, Refused) for said in bench.say(ann, signal("bob"))):
            pass
        passed += sum(isinstance(message, SignalIn) for message in bench.take(bob))
        if how == "leave":
            bench.say(ann, Leave())
        else:
            bench.drop(ann)
            bench.tick()
        bench.now += 0.1
    # Ten are spared, one is its own, and so much was earned in ten seconds.
    assert 200 <= passed <= 11 * 20 + 10 * 10
    # From elsewhere, and to who is there already, it changes nothing.
    bench.take(bob)
    conn = bench.socket("192.0.2.2")
    bench.say(conn, join("eve", incarnation=INC_C))
    for _ in range(20):
        bench.say(conn, signal("bob"))
    assert sum(isinstance(message, SignalIn) for message in bench.take(bob)) == 20
    assert not any(isinstance(message, Refused) for message in bench.take(conn))
    # And after some time it is as it was.
    bench.now += 1000
    ann, _ = bench.member("ann")
    for _ in range(20):
        bench.say(ann, signal("bob"))
    assert not any(isinstance(message, Refused) for message in bench.take(ann))


def test_what_was_sent_is_held_against_where_its_sender_was_last() -> None:
    bench = Bench(RelayConfig(message_rate=1, message_burst=20))
    conns = []
    for number in range(12):
        conn = bench.socket("192.0.2.2")
        bench.say(conn, join(f"eve-{number}"))
        [welcome] = bench.take(conn)
        assert isinstance(welcome, Welcome)
        bench.drop(conn)
        conns.append(bench.member(f"eve-{number}", **comeback(welcome, 0))[0])
        for _ in range(20):
            bench.say(conns[-1], signal("nobody"))
    for conn in conns:
        bench.say(conn, Leave())
    for address, refused in (("192.0.2.2", False), ("192.0.2.1", True)):
        conn = bench.socket(address)
        bench.say(conn, join(f"from {address}"))
        [said] = bench.say(conn, signal("nobody"))
        assert isinstance(said, Refused)
        assert (said.code == "rate_limited") is refused


def test_who_leaves_and_joins_has_no_more_bytes_than_who_stays() -> None:
    bench = Bench(RelayConfig(byte_rate=64 * 1024, byte_burst=64 * 1024))
    data = signal("nobody") + b" " * (63 * 1024 - len(signal("nobody")))
    paused = []
    for _ in range(20):
        ann, _ = bench.member("ann")
        bench.pauses.clear()
        bench.say(ann, data)
        paused.append(bool(bench.pauses))
        bench.say(ann, data)
        bench.say(ann, Leave())
    assert paused[:4] == [False] * 4
    assert paused[-4:] == [True] * 4


def test_over_its_rate_a_member_may_still_leave() -> None:
    bench = Bench(RelayConfig(message_rate=1, message_burst=2))
    ann, _ = bench.member("ann")
    for _ in range(3):
        bench.say(ann, Update(name="x"))
    bench.say(ann, Leave())
    assert bench.shut[ann] == 1000
    assert bench.rooms.members == 0


def test_the_slowest_rate_gives_a_time_that_a_client_can_decode() -> None:
    bench = Bench(RelayConfig(message_rate=0.1, message_burst=10_000))
    ann, _ = bench.member("ann")
    for _ in range(20_000):
        bench.say(ann, b"{")
    assert bench.shut[ann] == 1008


# --- the end, and what the operator reads --------------------------------------------------------


def test_a_shutdown_says_when_to_come_back() -> None:
    bench = Bench(RelayConfig(restart_delay=3))
    ann, _ = bench.member("ann")
    bob, _ = bench.member("bob", incarnation=INC_B)
    bench.drop(bob)
    idle = bench.socket()
    bench.apply(bench.rooms.shut_down(bench.now))
    for conn in (ann, idle):
        assert bench.take(conn)[-1] == Goodbye(reason="shutdown", retry_after=3)
        assert bench.shut[conn] == 1012
    bench.drop(ann)
    assert bench.rooms.next_deadline() is None
    assert (bench.rooms.rooms, bench.rooms.members, bench.rooms.connections) == (0, 0, 0)


def test_notes_tell_what_happened_and_never_a_token(bench: Bench) -> None:
    ann, welcome = bench.member("ann", token="s" * 30)
    bench.drop(ann)
    bench.member("ann", **comeback(welcome, 0))
    bench.refused("ann", incarnation=INC_B, token="w" * 30)
    last, _ = bench.member("ann", incarnation=INC_B, token="s" * 30)
    bench.say(last, b"{")
    bench.say(last, Leave())
    events = [note.split(" {")[0] for note in bench.notes]
    assert events == [
        "member joined",
        "member dropped",
        "member resumed",
        "join refused",
        "member replaced",
        "message refused",
        "member left",
    ]
    for secret in ("s" * 30, "w" * 30, str(welcome.session)):
        assert secret not in "".join(bench.notes)


def test_no_secret_is_shown(bench: Bench) -> None:
    token = "secret-token-of-ann"
    servers = [IceServerInfo(["turn:a"], "user", "secret-of-the-server")]
    welcome = Welcome(
        version=VERSION,
        room="lobby",
        peer_id="ann",
        incarnation=INC_A,
        token=token,
        seat_timeout=30,
        session="secret-session-name",
        ice_servers=IceServers(servers),
    )
    conn = bench.socket()
    outputs = bench.rooms.received(conn, encode(join("ann", token=token)), 0.0)
    frame = SendFrame(conn, b"secret")
    seats = list(bench.rooms._seated.values())
    shown = repr([welcome, outputs, seats, frame])
    assert "secret" not in shown
    assert "peer_id='ann'" in repr(welcome)
    assert "peer_id='ann'" in repr(seats[0])
    assert repr(frame) == f"SendFrame(conn={conn}, 6 bytes)"
    assert repr(outputs[0]).startswith(f"Send(conn={conn}, ")


def test_the_tables_list_every_message() -> None:
    tables = (Rooms._JOINING, Rooms._CHECKING, Rooms._SEATED)
    assert all(set(table) == set(get_args(ClientMessage)) for table in tables)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
_keys = [
    "type", "version", "room", "peer_id", "incarnation", "name", "metadata", "on_conflict",
    "token", "session", "received", "to", "to_incarnation", "epoch", "body", "join_token", "links",
]  # fmt: skip
_likely = st.sampled_from(
    ["join", "signal", "update", "leave", "ack", "report", 1, 0, -1, "ann", INC_A, "rename",
     "t" * 20, {}, [], [["bob", INC_A, "new", "new"]]]
)  # fmt: skip
_soup = st.dictionaries(st.sampled_from(_keys), _likely | _json).map(
    lambda fields: msgspec.json.encode(fields) if _encodable(fields) else b"{"
)


def _encodable(value: object) -> bool:
    try:
        msgspec.json.encode(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


@given(
    st.lists(st.binary(max_size=50) | st.text(max_size=50) | _soup, max_size=10),
    st.sampled_from(["joining", "checking", "seated"]),
)
def test_no_bytes_make_it_raise_and_others_stay_as_they_are(
    inputs: list[bytes | str], state: str
) -> None:
    bench = Bench(authenticate=True)
    bob, conn = bench.socket(), bench.socket()
    bench.say(bob, join("bob", room="other", incarnation=INC_B))
    bench.apply(bench.rooms.granted(bob, Grant(), bench.now))
    bench.take(bob)
    if state != "joining":
        bench.say(conn, join("ann", room="mine"))
    if state == "seated":
        bench.apply(bench.rooms.granted(conn, Grant(), bench.now))
    for data in inputs:
        bench.say(conn, data)
    assert all(
        isinstance(message, MemberJoined | MemberLeft | MemberUpdated)
        for message in bench.take(bob)
    )
    assert bob not in bench.shut
