"""Who may join: what is asked before, as whom, how often, and which seat is whose."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshpeer.config import RelayConfig
from meshpeer.core.forward import encode_forward
from meshpeer.core.messages import (
    Ack,
    Goodbye,
    Leave,
    Member,
    MemberJoined,
    MemberUpdated,
    Ping,
    Refused,
    RelayMessage,
    Report,
    Update,
    Welcome,
    encode,
)
from meshpeer.core.rooms import ConnId, Grant
from meshpeer.errors import ConfigError
from tests.core.test_rooms import INC_A, INC_B, INC_C, Bench, comeback, join, signal

T1, T2 = "token-of-the-first-process", "token-of-the-second-process"


class Door(Bench):
    """A relay that asks who may join."""

    def __init__(self, config: RelayConfig | None = None) -> None:
        self.served: list[tuple[str, str | None]] = []
        super().__init__(config, authenticate=True, ice_servers=self._serve)

    def _serve(self, peer_id: str, subject: str | None) -> None:
        self.served.append((peer_id, subject))

    def knock(self, peer_id: str, **fields: object) -> ConnId:
        conn = self.socket()
        assert self.say(conn, join(peer_id, **fields)) == []
        assert self.asked[-1] == (conn, join(peer_id, **fields))
        return conn

    def grant(self, conn: ConnId, **fields: Any) -> list[RelayMessage]:
        before = len(self.got[conn])
        self.apply(self.rooms.granted(conn, Grant(**fields), self.now))
        return self.got[conn][before:]

    def let_in(
        self, peer_id: str, subject: str | None = None, **fields: Any
    ) -> tuple[ConnId, RelayMessage]:
        conn = self.knock(peer_id, **fields)
        return conn, self.grant(conn, subject=subject)[0]

    def seated(
        self, peer_id: str, subject: str | None = None, **fields: Any
    ) -> tuple[ConnId, Welcome]:
        conn, answer = self.let_in(peer_id, subject, **fields)
        assert isinstance(answer, Welcome)
        return conn, answer


@pytest.fixture
def door() -> Door:
    return Door()


# --- asking --------------------------------------------------------------------------------------


def test_nothing_is_said_and_no_seat_is_taken_until_it_is_granted(door: Door) -> None:
    bob, _ = door.seated("bob")
    conn = door.knock("ann", incarnation=INC_B)
    door.take(bob)
    assert (door.rooms.members, door.rooms.connections) == (1, 2)
    [welcome] = door.grant(conn, subject="ann@example.org")
    assert isinstance(welcome, Welcome)
    assert [m.peer_id for m in welcome.members] == ["bob"]
    assert door.take(bob) == [MemberJoined(Member("ann", INC_B))]
    assert (door.rooms.members, door.rooms.connections) == (2, 2)


def test_what_is_decided_is_decided_by_what_holds_then(door: Door) -> None:
    """Two wait at the same time for an id that only one of them can have."""
    first, second = door.knock("ann"), door.knock("ann", incarnation=INC_B)
    assert isinstance(door.grant(second)[0], Welcome)
    [refused] = door.grant(first)
    assert isinstance(refused, Refused)
    assert (refused.code, door.shut[first]) == ("peer_id_taken", 4003)
    assert second not in door.shut


@pytest.mark.parametrize("code", ["unauthorized", "forbidden", "unavailable"])
def test_who_is_denied_is_told_why_and_shut(door: Door, code: str) -> None:
    conn = door.knock("ann")
    door.apply(door.rooms.denied(conn, code, "the token\nexpired", door.now, retry_after=2))
    [refused] = door.take(conn)
    assert refused == Refused(code=code, text="the token\ufffdexpired", retry_after=2)
    assert door.shut[conn] == 4003
    assert door.rooms.members == 0
    assert door.told.take() == [("refused", code, "the token\ufffdexpired", 0.0, "lobby", "ann")]


@pytest.mark.parametrize(
    "data",
    [
        encode(join("ann")),
        signal("bob"),
        encode(Update(name="x")),
        encode(Ack(received=0)),
        encode(Report([])),
        encode_forward("bob", INC_A, b"data"),
    ],
)
def test_what_comes_while_a_join_is_checked_is_out_of_place(door: Door, data: bytes) -> None:
    conn = door.knock("ann")
    [refused] = door.say(conn, data)
    assert isinstance(refused, Refused)
    assert (refused.code, door.shut[conn]) == ("not_joined", 4000)
    assert refused.text.startswith("after a join")
    assert door.grant(conn) == []
    assert (door.rooms.members, door.rooms.connections) == (0, 0)


def test_what_does_not_decode_is_refused_with_its_field_meanwhile(door: Door) -> None:
    conn = door.knock("ann")
    [refused] = door.say(conn, b'{"type":"update","name":7}')
    assert isinstance(refused, Refused)
    assert (refused.code, refused.field, door.shut[conn]) == ("malformed", "$.name", 4000)


def test_a_join_that_is_withdrawn_is_no_offence(door: Door) -> None:
    conn = door.knock("ann")
    assert door.say(conn, Leave()) == []
    assert door.shut[conn] == 1000
    assert door.told.take() == []
    assert door.rooms.connections == 0


@pytest.mark.parametrize("state", ["opened", "seated", "dropped", "never there"])
def test_a_late_or_wrong_decision_changes_nothing(door: Door, state: str) -> None:
    door.seated("bob")
    match state:
        case "opened":
            conn = door.socket()
        case "seated":
            conn, _ = door.seated("ann", incarnation=INC_B)
        case "dropped":
            conn = door.knock("ann", incarnation=INC_B)
            door.drop(conn)
        case _:
            conn = 99
    before = (door.rooms.members, door.rooms.connections)
    assert door.rooms.granted(conn, Grant(), door.now) == []
    assert door.rooms.denied(conn, "forbidden", "no", door.now) == []
    assert (door.rooms.members, door.rooms.connections) == before


def test_the_time_to_join_runs_on_while_it_is_checked() -> None:
    door = Door(RelayConfig(join_timeout=10))
    conn = door.socket()
    door.tick(9)
    assert door.say(conn, join("ann")) == []
    assert door.rooms.next_deadline() == 10
    door.tick(0.5)
    assert conn not in door.shut
    door.tick(0.5)
    [refused] = door.take(conn)
    assert isinstance(refused, Refused)
    assert (refused.code, refused.retry_after, door.shut[conn]) == ("unavailable", 5, 4003)
    assert "10 s" in refused.text
    assert door.grant(conn) == []
    assert door.rooms.next_deadline() is None


def test_who_comes_back_is_asked_for_again(door: Door) -> None:
    conn, welcome = door.seated("ann", "a")
    door.drop(conn)
    back = door.knock("ann", **comeback(welcome, 0))
    door.apply(door.rooms.denied(back, "unauthorized", "expired", door.now))
    assert door.shut[back] == 4003
    again, answer = door.let_in("ann", "a", **comeback(welcome, 0))
    assert isinstance(answer, Welcome)
    assert answer.resumed
    assert again not in door.shut


# --- as whom -------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["subject", "name", "peer_id"])
@pytest.mark.parametrize("value", ["", "x" * 129, "a\nb", " a", "\u202eb", "\ud800", 7, b"ann"])
def test_a_grant_is_checked_when_it_is_made(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"Grant\.{field} must be"):
        Grant(**{field: value})  # type: ignore[arg-type]
    Grant(**{field: "x" * 128})


def test_a_name_that_is_granted_is_the_name(door: Door) -> None:
    bob, _ = door.seated("bob", incarnation=INC_B)
    conn = door.knock("ann", name="Mallory", metadata={"x": 1})
    door.take(bob)
    [welcome] = door.grant(conn, name="Ann")
    assert isinstance(welcome, Welcome)
    assert welcome.name == "Ann"
    door.take(conn)
    assert door.take(bob) == [MemberJoined(Member("ann", INC_A, "Ann", {"x": 1}))]
    assert ("joined", "lobby", "ann", INC_A, "Ann", 0.0, "192.0.2.1", None) in door.told.take()
    [refused] = door.say(conn, Update(name="Mallory", metadata={"x": 2}))
    assert isinstance(refused, Refused)
    assert (refused.code, refused.field, refused.message) == ("name_fixed", "$.name", 1)
    assert door.take(bob) == []
    # Metadata is its own, and a name that stays the same is no change.
    door.take(conn)
    assert door.say(conn, Update(name="Ann", metadata={"x": 3})) == []
    assert door.take(bob) == [MemberUpdated("ann", INC_A, "Ann", {"x": 3})]


def test_a_name_that_is_not_granted_is_its_own(door: Door) -> None:
    bob, _ = door.seated("bob", incarnation=INC_B)
    conn, welcome = door.seated("ann", name="Ann")
    assert welcome.name is None
    door.take(bob)
    assert door.say(conn, Update(name="Anne")) == []
    assert door.take(bob) == [MemberUpdated("ann", INC_A, "Anne", {})]


@pytest.mark.parametrize("resumed", [True, False])
def test_what_is_granted_at_a_return_counts_from_then_on(door: Door, resumed: bool) -> None:
    bob, _ = door.seated("bob", incarnation=INC_B)
    conn, welcome = door.seated("ann", name="Ann")
    door.drop(conn)
    door.take(bob)
    door.told.take()
    back = door.knock("ann", **comeback(welcome, 0 if resumed else 99, name="Ann"))
    [answer] = door.grant(back, name="Dr. Ann")
    assert isinstance(answer, Welcome)
    assert answer.resumed == resumed
    assert answer.name == "Dr. Ann"
    assert door.take(bob) == [MemberUpdated("ann", INC_A, "Dr. Ann", {})]
    assert [call[:4] for call in door.told.take()] == [
        ("returned", "lobby", "ann", 0.0),
        ("updated", "lobby", "ann", "Dr. Ann"),
    ]
    [refused] = door.say(back, Update(name="Ann"))
    assert isinstance(refused, Refused)
    assert refused.code == "name_fixed"
    # And no more when it is not granted another time.
    door.drop(back)
    last, welcome = door.seated("ann", **comeback(answer, 1, name="Ann"))
    assert welcome.resumed
    assert welcome.name is None
    assert door.take(bob) == [MemberUpdated("ann", INC_A, "Ann", {})]
    door.say(last, Update(name="Anne"))
    assert door.take(bob)[-1] == MemberUpdated("ann", INC_A, "Anne", {})


def test_a_subject_is_shown_to_the_operator_and_gets_its_own_ice_servers(door: Door) -> None:
    door.seated("ann", "a@example.org")
    assert door.served == [("ann", "a@example.org")]
    assert door.told.take()[0][-1] == "a@example.org"


def test_a_process_that_takes_over_has_the_name_that_it_was_granted(door: Door) -> None:
    bob, _ = door.seated("bob", incarnation=INC_B)
    door.seated("ann", "a", token=T1, name="Ann")
    door.take(bob)
    conn = door.knock("ann", token=T1, incarnation=INC_C, name="Mallory")
    door.grant(conn, subject="a", name="Dr. Ann")
    assert door.take(bob) == [MemberJoined(Member("ann", INC_C, "Dr. Ann"))]


def test_a_peer_id_that_is_granted_is_the_only_one(door: Door) -> None:
    conn = door.knock("bob")
    [refused] = door.grant(conn, peer_id="ann")
    assert isinstance(refused, Refused)
    assert (refused.code, refused.field, door.shut[conn]) == ("forbidden", "$.peer_id", 4003)
    conn = door.knock("ann")
    assert isinstance(door.grant(conn, peer_id="ann")[0], Welcome)
    other = door.knock("ann", incarnation=INC_B, on_conflict="rename")
    [refused] = door.grant(other, peer_id="ann")
    assert isinstance(refused, Refused)
    assert refused.code == "peer_id_taken"
    assert refused.text.endswith("it is the only one that you may have")
    assert door.rooms.members == 1


def owns(token: str | None, subject: str | None, policy: str) -> str:
    """What becomes of a second process, when the seat is of `T1` and of the subject ``a``."""
    if token == T1:
        return "takes over" if subject == "a" else "forbidden"
    if policy == "takeover" and subject == "a":
        return "takes over"
    return "renamed" if policy == "rename" else "taken"


@pytest.mark.parametrize("policy", ["reject", "takeover", "rename"])
@pytest.mark.parametrize("subject", [None, "a", "b"])
@pytest.mark.parametrize("token", [None, T1, T2])
@pytest.mark.parametrize("alive", [True, False])
@pytest.mark.parametrize("incarnation", [INC_A, INC_B])
def test_whose_seat_it_is(
    door: Door, policy: str, subject: str | None, token: str | None, alive: bool, incarnation: str
) -> None:
    old, _ = door.seated("ann", "a", token=T1)
    if not alive:
        door.drop(old)
    door.take(old)
    conn, answer = door.let_in(
        "ann", subject, token=token, on_conflict=policy, incarnation=incarnation
    )
    expected = owns(token, subject, policy)
    if expected == "takes over":
        assert isinstance(answer, Welcome)
        assert answer.peer_id == "ann"
        assert door.rooms.members == 1
        if alive:
            assert door.shut[old] == (4002 if incarnation == INC_A else 4001)
            said = [] if incarnation == INC_A else [Goodbye(reason="replaced")]
            assert door.take(old) == said
    else:
        assert door.take(old) == (
            [MemberJoined(Member("ann-2", incarnation))]
            if (expected == "renamed" and alive)
            else []
        )
        assert old not in door.shut
        if expected == "renamed":
            assert isinstance(answer, Welcome)
            assert answer.peer_id == "ann-2"
        else:
            assert isinstance(answer, Refused)
            code = "forbidden" if expected == "forbidden" else "peer_id_taken"
            assert (answer.code, door.shut[conn]) == (code, 4003)


def test_nobody_is_not_a_subject(door: Door) -> None:
    """Where the authenticator tells no subjects, `takeover` needs the token as without one."""
    old, welcome = door.seated("ann", token=T1)
    _, answer = door.let_in("ann", incarnation=INC_B, on_conflict="takeover", token=T2)
    assert isinstance(answer, Refused)
    assert answer.code == "peer_id_taken"
    _, answer = door.let_in("ann", incarnation=INC_B, token=welcome.token)
    assert isinstance(answer, Welcome)
    assert door.shut[old] == 4001


@pytest.mark.parametrize("brought", [T2, None])
def test_who_takes_over_by_its_subject_has_a_token_of_its_own(
    door: Door, brought: str | None
) -> None:
    door.seated("ann", "a", token=T1)
    new, welcome = door.seated("ann", "a", incarnation=INC_B, on_conflict="takeover", token=brought)
    assert welcome.token != T1
    assert brought in (None, welcome.token)
    # The one that was replaced can't use its own any more, as itself or as another.
    _, answer = door.let_in("ann", "a", token=T1)
    assert answer == Goodbye(reason="replaced")
    _, answer = door.let_in("ann", "a", token=T1, incarnation=INC_C)
    assert isinstance(answer, Refused)
    assert answer.code == "peer_id_taken"
    door.drop(new)
    _, again = door.seated("ann", "a", **comeback(welcome, 0))
    assert again.resumed


def test_a_subject_may_not_resume_with_the_token_of_another(door: Door) -> None:
    old, welcome = door.seated("ann", "a")
    door.seated("ann-2", "b", incarnation=INC_C, token=T2)
    door.drop(old)
    conn, refused = door.let_in("ann", "b", **comeback(welcome, 0))
    assert isinstance(refused, Refused)
    assert (refused.code, refused.field, door.shut[conn]) == ("forbidden", "$.token", 4003)
    # Nor by being renamed to it.
    _, refused = door.let_in("ann", "a", token=T2, incarnation=INC_B, on_conflict="rename")
    assert isinstance(refused, Refused)
    assert refused.code == "forbidden"
    _, again = door.seated("ann", "a", **comeback(welcome, 0))
    assert again.resumed


def test_a_late_join_of_the_same_subject_does_not_win(door: Door) -> None:
    live, _ = door.seated("ann", "a", token=T1, attempt=3)
    late, refused = door.let_in("ann", "a", token=T1, attempt=2)
    assert isinstance(refused, Refused)
    assert (refused.code, door.shut[late]) == ("stale_join", 4002)
    assert live not in door.shut


# --- how often -----------------------------------------------------------------------------------


def test_joins_from_one_address_are_limited() -> None:
    bench = Bench(RelayConfig(join_rate=0.5, join_burst=3))
    for number in range(3):
        bench.member(f"peer-{number}")
    conn, refused = bench.refused("late")
    assert (refused.code, refused.retry_after) == ("rate_limited", 2)
    assert "0.5 joins a second" in refused.text
    assert "3 at once" in refused.text
    assert bench.shut[conn] == 4003
    assert bench.told.take()[-1] == ("refused", "rate_limited", refused.text, 0.0, "lobby", "late")
    # Nothing was taken for it, and another address is not touched.
    other = bench.socket("192.0.2.2")
    assert isinstance(bench.say(other, join("other"))[0], Welcome)
    bench.now = 2
    bench.member("late")
    bench.refused("later")


def test_of_ipv6_a_network_is_limited() -> None:
    bench = Bench(RelayConfig(join_rate=0.5, join_burst=1))
    answers = [
        bench.say(bench.socket(address), join(f"peer-{number}"))[0]
        for number, address in enumerate(("2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"))
    ]
    assert [type(answer) for answer in answers] == [Welcome, Refused, Welcome]


def test_the_limit_on_joins_comes_before_they_are_checked() -> None:
    door = Door(RelayConfig(join_burst=1, join_rate=0.1))
    door.knock("ann")
    conn = door.socket()
    [refused] = door.say(conn, join("bob"))
    assert isinstance(refused, Refused)
    assert refused.code == "rate_limited"
    assert len(door.asked) == 1


def test_the_slowest_rate_of_joins_gives_a_time_that_a_client_can_decode() -> None:
    bench = Bench(RelayConfig(join_rate=0.1, join_burst=1))
    bench.member("ann")
    _, refused = bench.refused("bob")
    assert refused.retry_after == 10


def test_what_is_no_join_takes_nothing_from_the_limit() -> None:
    bench = Bench(RelayConfig(join_rate=0.1, join_burst=1))
    for data in (b"{", encode(Leave()), signal("ann")):
        bench.say(bench.socket(), data)
    bench.member("ann")


def test_the_table_of_addresses_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshpeer.core.rooms._MAX_ADDRESSES", 10)
    bench = Bench()
    for number in range(100):
        bench.say(bench.socket(f"192.0.2.{number}"), join(f"peer-{number}"))
    assert len(bench.rooms._joins) == 10


# --- all states, all inputs ----------------------------------------------------------------------

_MESSAGES: dict[str, bytes] = {
    "join": encode(join("ann", token=T1)),
    "other join": encode(join("ann", incarnation=INC_B, on_conflict="takeover")),
    "rename": encode(join("ann", incarnation=INC_C, on_conflict="rename")),
    "signal": signal("ann"),
    "update": encode(Update(name="x")),
    "leave": encode(Leave()),
    "ack": encode(Ack(received=0)),
    "report": encode(Report([])),
    "ping": encode(Ping()),
    "junk": b"{",
    "frame": encode_forward("ann", INC_A, b"data"),
    "bad frame": b"\x01",
}
_STEPS = ["open", "drop", "grant", "grant named", "deny", "wait", "remove", *_MESSAGES]


def _next(state: str, step: str, *, asks: bool) -> set[str]:
    """The states that a socket may be in after a step of its own."""
    match state, step:
        case _, "drop":
            return {"gone"}
        case "joining", "join" | "other join" | "rename":
            return {"checking"} if asks else {"seated", "gone"}
        case "joining", "grant" | "grant named" | "deny":
            return {"joining"}
        case "checking", "grant" | "grant named":
            return {"seated", "gone"}
        case "joining" | "checking", "wait":
            return {state, "gone"}
        case "joining" | "checking", _:
            return {"gone"}
        case "seated", "leave" | "remove":
            return {"gone"}
        case "seated", _:
            return {"seated"}
    return {"gone"}


@given(
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from(_STEPS)), min_size=1, max_size=60),
)
def test_every_state_takes_every_input(asks: bool, steps: list[tuple[int, str]]) -> None:
    bench = Bench(RelayConfig(join_timeout=10), authenticate=asks)
    slots: dict[int, ConnId] = {}
    states: dict[ConnId, str] = {}

    def actual(conn: ConnId) -> str:
        if (stranger := bench.rooms._strangers.get(conn)) is not None:
            return "joining" if stranger.join is None else "checking"
        return "seated" if conn in bench.rooms._seated else "gone"

    for slot, step in steps:
        if step == "open" or slot not in slots:
            slots[slot] = bench.socket()
            states[slots[slot]] = "joining"
            continue
        conn = slots[slot]
        if step == "remove" and states[conn] != "seated":
            continue
        match step:
            case "drop":
                bench.drop(conn)
            case "grant" | "grant named":
                granted = Grant(subject="a", name="Ann" if step == "grant named" else None)
                bench.apply(bench.rooms.granted(conn, granted, bench.now))
            case "deny":
                bench.apply(bench.rooms.denied(conn, "forbidden", "no", bench.now))
            case "wait":
                bench.tick(3)
            case "remove":
                seat = bench.rooms._seated[conn]
                bench.apply(bench.rooms.remove(seat.room, seat.peer_id, bench.now))
            case _:
                bench.say(conn, _MESSAGES[step])
        assert actual(conn) in _next(states[conn], step, asks=asks), (states[conn], step)
        for each, state in states.items():
            now = actual(each)
            # What another socket does can only end this one: by taking its seat over.
            assert each == conn or step == "wait" or now in (state, "gone")
            assert (now == "gone") == (each not in bench.open)
            states[each] = now
        status = bench.told.status(0.0)
        assert len(status.connections) == bench.rooms.members
        assert {(m.peer_id, m.presence) for room in status.topology for m in room.members} == {
            (seat.peer_id, "away" if seat.conn is None else "present")
            for members in bench.rooms._rooms.values()
            for seat in members.values()
        }
        at = bench.rooms.next_deadline()
        assert at is None or at > bench.now or step != "wait"
