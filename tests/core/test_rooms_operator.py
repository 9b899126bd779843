"""What the operator of a relay does, gives and sees: through `Rooms`, one input at a time."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from fractions import Fraction
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshpeer.config import RelayConfig
from meshpeer.core.forward import encode_forward
from meshpeer.core.messages import (
    MAX_REPORTS,
    Ack,
    Goodbye,
    IceServerInfo,
    IceServers,
    Leave,
    LinkReport,
    MemberLeft,
    Notice,
    Refused,
    Report,
    RestartIce,
    SignalIn,
    Update,
    Welcome,
    encode,
)
from meshpeer.core.rooms import CLOSE_BEHIND, Pause, Rooms, SendFrame
from meshpeer.core.tracking import MAX_ACTIVITY
from meshpeer.errors import ConfigError
from tests.core.test_rooms import INC_A, INC_B, INC_C, Bench, Told, comeback, join, signal


def link(to: str, incarnation: str = INC_B, **fields: object) -> LinkReport:
    state: Literal["connected"] = "connected"
    return LinkReport(to, incarnation, state, "connected", "direct", **fields)  # type: ignore[arg-type]


@pytest.fixture
def bench() -> Bench:
    return Bench()


# --- removing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("alive", [True, False])
def test_who_is_removed_is_gone_at_once_and_does_not_come_back(bench: Bench, alive: bool) -> None:
    ann, welcome = bench.member("ann")
    bob, _ = bench.member("bob", incarnation=INC_B)
    if not alive:
        bench.drop(ann)
    bench.take(ann)
    bench.take(bob)
    bench.told.take()
    bench.now = 5
    bench.apply(bench.rooms.remove("lobby", "ann", bench.now))
    assert bench.take(bob) == [MemberLeft("ann", INC_A, "removed")]
    if alive:
        assert bench.take(ann) == [Goodbye(reason="removed")]
        assert bench.shut[ann] == 4006
    assert bench.told.take() == [
        ("acted", "removed", 5, "lobby", "ann", None, ""),
        ("left", "lobby", "ann", "removed", 5),
    ]
    assert bench.rooms.members == 1
    assert bench.rooms.next_deadline() is None
    # Neither with its token, nor as another, nor after its first goodbye was lost.
    for fields in (comeback(welcome, 2), {"on_conflict": "rename"}, {"peer_id": "anna"}):
        for _ in range(2):
            conn, answer = bench.join(**{"peer_id": "ann", **fields})
            assert answer == Goodbye(reason="removed")
            assert bench.shut[conn] == 4006
    assert bench.take(bob) == []
    # In another room, or as another process, it is as good as anybody.
    bench.member("ann", room="attic")
    bench.member("ann", incarnation=INC_C, token=welcome.token)


def test_it_is_told_so_for_as_long_as_a_seat_is_kept() -> None:
    bench = Bench(RelayConfig(seat_timeout=30))
    bench.member("ann")
    bench.apply(bench.rooms.remove("lobby", "ann", bench.now))
    bench.now = 29.9
    assert isinstance(bench.join("ann")[1], Goodbye)
    bench.now = 30
    assert isinstance(bench.join("ann")[1], Welcome)


def test_what_is_kept_of_those_who_were_removed_is_bounded(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshpeer.core.rooms._MAX_REMOVED", 10)
    for number in range(100):
        bench.member("ann", incarnation=f"incarnation-{number}")
        bench.apply(bench.rooms.remove("lobby", "ann", bench.now))
    assert len(bench.rooms._removed) == 10
    assert isinstance(bench.join("ann", incarnation="incarnation-90")[1], Goodbye)
    assert isinstance(bench.join("ann", incarnation="incarnation-89")[1], Welcome)


def test_who_is_removed_under_the_incarnation_of_another_harms_it_not(bench: Bench) -> None:
    ann, welcome = bench.member("ann")
    bench.member("eve", incarnation=INC_A)
    bench.apply(bench.rooms.remove("lobby", "eve", bench.now))
    assert isinstance(bench.join("eve")[1], Goodbye)
    bench.drop(ann)
    assert bench.member("ann", **comeback(welcome, 2))[1].resumed
    # Without what only ann has it is eve.
    assert isinstance(bench.join("ann")[1], Goodbye)


def test_data_on_its_way_to_and_from_who_is_removed_ends(bench: Bench) -> None:
    rooms = bench.rooms
    conns = [bench.member(peer_id)[0] for peer_id in ("ann", "bob", "eve")]
    ann, bob, eve = conns
    rooms.full(bob)
    rooms.full(eve)
    rooms.received(ann, encode_forward("bob", INC_A, b"to bob"), 0)
    rooms.received(bob, encode_forward("eve", INC_A, b"from bob"), 0)
    bench.take(ann)
    bench.apply(rooms.remove("lobby", "bob", 0))
    assert [type(message).__name__ for message in bench.take(ann)] == ["Forwarded", "MemberLeft"]
    assert rooms.drained(eve, 1000, 0) == []


# --- asking and telling --------------------------------------------------------------------------


@pytest.mark.parametrize("other", [None, "bob"])
def test_one_member_is_asked_to_restart_ice(bench: Bench, other: str | None) -> None:
    ann, welcome = bench.member("ann")
    bob, _ = bench.member("bob", incarnation=INC_B)
    bench.take(ann)
    bench.take(bob)
    bench.told.take()
    bench.apply(bench.rooms.restart_ice("lobby", "ann", other, 3))
    assert bench.take(ann) == [RestartIce(peer_id=other)]
    assert bench.take(bob) == []
    assert bench.told.take() == [("acted", "restarted_ice", 3, "lobby", "ann", other, "")]
    # It is counted, and so not lost with a socket.
    bench.drop(ann)
    bench.apply(bench.rooms.restart_ice("lobby", "ann", other, 3))
    back, again = bench.member("ann", **comeback(welcome, 2))
    assert again.resumed
    assert bench.take(back)[1:] == [RestartIce(peer_id=other)]


def test_a_notice_reaches_everybody_in_the_room(bench: Bench) -> None:
    ann, welcome = bench.member("ann")
    bob, _ = bench.member("bob", incarnation=INC_B)
    far, _ = bench.member("far", room="attic")
    bench.drop(ann)
    for conn in (bob, far):
        bench.take(conn)
    bench.told.take()
    text = "The relay restarts at noon \U0001f55b; \u3000再起動"
    bench.apply(bench.rooms.notice("lobby", text, 3))
    assert bench.take(bob) == [Notice(text)]
    assert bench.take(far) == []
    assert bench.told.take() == [("acted", "notice", 3, "lobby", None, None, text)]
    back, _ = bench.member("ann", **comeback(welcome, 1))
    assert bench.take(back)[1:] == [Notice(text)]


def test_a_notice_is_encoded_once(bench: Bench) -> None:
    conns = [bench.member(f"peer-{n}", incarnation=INC_B)[0] for n in range(5)]
    bench.apply(bench.rooms.notice("lobby", "hello", 0))
    assert len({id(bench.raw[conn][-1]) for conn in conns}) == 1


@pytest.mark.parametrize("text", ["", "x" * 1025, "a\nb", "a\x00b", "a\u202eb", "\ud800"])
def test_a_notice_that_a_client_could_not_take_is_an_error(bench: Bench, text: str) -> None:
    ann, _ = bench.member("ann")
    bench.take(ann)
    bench.told.take()
    with pytest.raises(ConfigError, match="a notice must have 1 to 1024 characters"):
        bench.rooms.notice("lobby", text, 0)
    assert bench.take(ann) == []
    assert bench.told.take() == []
    bench.apply(bench.rooms.notice("lobby", "x" * 1024, 0))


def test_what_is_not_there_is_named(bench: Bench) -> None:
    rooms = bench.rooms
    ann, _ = bench.member("ann")
    bench.member("bob", incarnation=INC_B)
    bench.take(ann)
    bench.told.take()
    with pytest.raises(ConfigError, match="no room 'attic'"):
        rooms.remove("attic", "ann", 0)
    with pytest.raises(ConfigError, match="no room 'attic'"):
        rooms.notice("attic", "hello", 0)
    with pytest.raises(ConfigError, match="room 'lobby' has the peer id 'eve'"):
        rooms.remove("lobby", "eve", 0)
    with pytest.raises(ConfigError, match="room 'lobby' has the peer id 'eve'"):
        rooms.restart_ice("lobby", "eve", None, 0)
    with pytest.raises(ConfigError, match="room 'lobby' has the peer id 'eve'"):
        rooms.restart_ice("lobby", "ann", "eve", 0)
    with pytest.raises(ConfigError, match="'ann' has no connection with itself"):
        rooms.restart_ice("lobby", "ann", "ann", 0)
    assert bench.take(ann) == []
    assert bench.told.take() == []


# --- ICE servers ---------------------------------------------------------------------------------


class Servers:
    """Credentials that are other ones each time."""

    def __init__(self, expires_in: float | None) -> None:
        self.expires_in = expires_in
        self.asked: list[tuple[str, str | None]] = []

    def __call__(self, peer_id: str, subject: str | None) -> IceServers | None:
        self.asked.append((peer_id, subject))
        info = IceServerInfo(["turn:turn.example.org"], f"{len(self.asked)}:{peer_id}", "secret")
        return IceServers([info], self.expires_in)


def user(message: object) -> str | None:
    servers = message.ice_servers if isinstance(message, Welcome) else message
    assert isinstance(servers, IceServers)
    return servers.servers[0].username


def test_each_welcome_has_the_servers_of_its_member() -> None:
    servers = Servers(None)
    bench = Bench(ice_servers=servers)
    ann, welcome = bench.member("ann")
    assert user(welcome) == "1:ann"
    _, other = bench.member("ann", incarnation=INC_B, on_conflict="rename")
    assert user(other) == "2:ann-2"
    bench.drop(ann)
    back, resumed = bench.member("ann", **comeback(welcome, 1))
    assert resumed.resumed
    assert user(resumed) == "3:ann"
    bench.drop(back)
    _, fresh = bench.member("ann", **comeback(welcome, 99))
    assert not fresh.resumed
    assert user(fresh) == "4:ann"
    assert servers.asked == [(p, None) for p in ("ann", "ann-2", "ann", "ann")]
    assert bench.rooms.next_deadline() is None, "these do not expire"


def test_without_servers_nothing_is_named() -> None:
    for bench in (Bench(), Bench(ice_servers=lambda peer_id, subject: None)):
        _, welcome = bench.member("ann")
        assert welcome.ice_servers is None
        assert bench.rooms.next_deadline() is None


def test_new_credentials_come_before_the_old_ones_expire() -> None:
    bench = Bench(ice_servers=Servers(100))
    ann, welcome = bench.member("ann")
    bench.now = 10
    bob, _ = bench.member("bob", incarnation=INC_B)
    bench.take(ann)
    bench.take(bob)
    assert bench.rooms.next_deadline() == 75
    bench.tick(64.9)
    assert bench.take(ann) == []
    bench.tick(0.1)
    [renewed] = bench.take(ann)
    assert (user(renewed), renewed.expires_in) == ("3:ann", 100)  # type: ignore[union-attr]
    assert bench.take(bob) == []
    assert bench.rooms.next_deadline() == 85
    bench.tick(75)
    assert [user(message) for message in bench.take(bob)] == ["4:bob"]
    assert [user(message) for message in bench.take(ann)] == ["5:ann"]
    # They are not counted: what is resumed from does not have them.
    bench.drop(ann)
    _, again = bench.member("ann", **comeback(welcome, 1))
    assert again.resumed


@pytest.mark.parametrize("how", ["drop", "leave", "remove", "shut down"])
def test_who_has_no_socket_gets_none(how: str) -> None:
    servers = Servers(100)
    bench = Bench(RelayConfig(seat_timeout=1000), ice_servers=servers)
    ann, welcome = bench.member("ann")
    match how:
        case "drop":
            bench.drop(ann)
        case "leave":
            bench.say(ann, Leave())
        case "remove":
            bench.apply(bench.rooms.remove("lobby", "ann", 0))
        case _:
            bench.apply(bench.rooms.shut_down(0))
    assert bench.rooms.next_deadline() == (1000 if how == "drop" else None)
    bench.tick(80)
    assert len(servers.asked) == 1
    if how == "drop":
        back, _ = bench.member("ann", **comeback(welcome, 0))
        bench.take(back)
        assert bench.rooms.next_deadline() == 155
        bench.tick(75)
        assert user(bench.take(back)[0]) == "3:ann"


def test_who_comes_back_gets_the_next_ones_by_its_latest_welcome() -> None:
    bench = Bench(ice_servers=Servers(100))
    _, welcome = bench.member("ann")
    bench.member("bob", incarnation=INC_B)
    bench.now = 50
    back, _ = bench.member("ann", **comeback(welcome, 1))  # its first socket was there still
    bench.take(back)
    bench.tick(25)
    assert bench.take(back) == []
    assert bench.rooms.next_deadline() == 125
    bench.tick(50)
    assert user(bench.take(back)[0]) == "5:ann"


def test_a_crowd_that_came_at_once_is_served_in_parts() -> None:
    bench = Bench(ice_servers=Servers(100))
    conns = [bench.member(f"peer-{n}", room=f"room {n // 10}")[0] for n in range(250)]
    bench.now = 75
    for parts in (100, 200, 250):
        assert bench.rooms.next_deadline() == 75
        bench.tick()
        renewed = [c for c in conns if isinstance(bench.got[c][-1], IceServers)]
        assert renewed == conns[:parts]
    assert bench.rooms.next_deadline() == 150
    for conn in conns:
        bench.drop(conn)
    bench.tick(30)
    assert bench.rooms.members == 150


# --- reports -------------------------------------------------------------------------------------


def test_each_welcome_says_how_often_reports_are_wanted() -> None:
    bench = Bench(RelayConfig(report_interval=7))
    ann, welcome = bench.member("ann")
    assert welcome.report_interval == 7
    bench.drop(ann)
    _, again = bench.member("ann", **comeback(welcome, 0))
    assert again.resumed
    assert again.report_interval == 7


def test_a_report_is_tracked_and_not_counted(bench: Bench) -> None:
    ann, welcome = bench.member("ann")
    bob, _ = bench.member("bob", incarnation=INC_B)
    bench.take(bob)
    bench.told.take()
    links = [link("bob", rtt=0.02), link("nobody")]
    bench.now = 4
    bench.take(ann)
    assert bench.say(ann, Report(links)) == []
    assert bench.told.take() == [("reported", "lobby", "ann", links, 4)]
    assert bench.take(bob) == []
    assert bench.told.metrics().active_p2p_connections == 1
    bench.drop(ann)
    _, again = bench.member("ann", **comeback(welcome, 1))
    assert (again.resumed, again.received) == (True, 0)


def test_where_no_reports_are_wanted_they_are_not_looked_at() -> None:
    bench = Bench(RelayConfig(report_interval=0, message_burst=3, message_rate=1))
    ann, welcome = bench.member("ann")
    assert welcome.report_interval == 0
    bench.told.take()
    for _ in range(3):
        assert bench.say(ann, Report([])) == []
    assert bench.told.take() == []
    [refused] = bench.say(ann, Report([]))
    assert isinstance(refused, Refused)
    assert refused.code == "rate_limited", "they cost what they cost"


@pytest.mark.parametrize(("links", "cost"), [(0, 1), (1, 1), (2, 2), (3, 2), (80, 41)])
def test_a_report_costs_what_there_is_to_look_at(links: int, cost: int) -> None:
    bench = Bench(RelayConfig(message_rate=10, message_burst=100))
    ann, _ = bench.member("ann")
    bench.take(ann)
    bench.told.take()
    report = Report([link(f"{n}", "inc-bob1") for n in range(links)])
    assert len(encode(report)) < 8 * KIB, "or it would count for its bytes as well"
    fit = 100 // cost
    for _ in range(fit):
        assert bench.say(ann, report) == []
    for _ in range(100 % cost):
        bench.say(ann, Ack(received=0))
    [refused] = bench.say(ann, report)
    assert isinstance(refused, Refused)
    assert (refused.code, refused.message) == ("rate_limited", 0)
    assert refused.retry_after == pytest.approx(2 * cost / 10)
    assert [call[0] for call in bench.told.take()] == ["reported"] * fit + ["refused"]


@pytest.mark.parametrize("bad", [link("eve", reason="\u20ac" * 67), link("bob")])
def test_a_report_that_is_no_good_is_refused_whole(bench: Bench, bad: LinkReport) -> None:
    ann, _ = bench.member("ann")
    bench.member("bob", incarnation=INC_B)
    bench.take(ann)
    bench.told.take()
    [refused] = bench.say(ann, Report([link("bob"), bad]))
    assert isinstance(refused, Refused)
    assert refused.code == "malformed"
    assert [call[0] for call in bench.told.take()] == ["refused"]
    assert bench.told.metrics().active_p2p_connections == 0


def test_a_report_before_the_join_is_out_of_place(bench: Bench) -> None:
    conn = bench.socket()
    [refused] = bench.say(conn, Report([link("bob")]))
    assert isinstance(refused, Refused)
    assert (refused.code, bench.shut[conn]) == ("not_joined", 4000)


def test_a_report_of_too_many_links_is_refused_whole(bench: Bench) -> None:
    ann, _ = bench.member("ann")
    bench.told.take()
    [refused] = bench.say(ann, Report([link(f"p{n}") for n in range(MAX_REPORTS + 1)]))
    assert isinstance(refused, Refused)
    assert (refused.code, refused.field) == ("malformed", "$.links")
    assert [call[0] for call in bench.told.take()] == ["refused"]


# --- what is tracked -----------------------------------------------------------------------------


def test_everything_that_happens_is_told_once(bench: Bench) -> None:
    ann, welcome = bench.member("ann", name="Ann")
    assert bench.told.take() == [("joined", "lobby", "ann", INC_A, "Ann", 0, "192.0.2.1", None)]
    bench.now = 1
    bench.say(ann, Update(metadata={"x": 1}))
    assert bench.told.take() == [], "the name is the same"
    bench.say(ann, Update(name="Anne"))
    assert bench.told.take() == [("updated", "lobby", "ann", "Anne", 1)]
    bench.drop(ann)
    assert bench.told.take() == [("dropped", "lobby", "ann", 1)]
    bench.now = 2
    conn = bench.socket("2001:db8::1")
    bench.say(conn, join("ann", **comeback(welcome, 0)))
    assert bench.told.take() == [("returned", "lobby", "ann", 2, "2001:db8::1")]
    conn, _ = bench.member("ann", **comeback(welcome, 0, attempt=1))
    assert bench.told.take() == [("returned", "lobby", "ann", 2, "192.0.2.1")]
    conn, _ = bench.member("ann", **comeback(welcome, 99, attempt=2, name="Ann"))
    assert bench.told.take() == [
        ("returned", "lobby", "ann", 2, "192.0.2.1"),
        ("updated", "lobby", "ann", "Ann", 2),
    ]
    conn, _ = bench.member("ann", incarnation=INC_B, token=welcome.token)
    assert bench.told.take() == [("joined", "lobby", "ann", INC_B, None, 2, "192.0.2.1", None)]
    bench.say(conn, b"{")
    bench.say(bench.socket(), b"{")
    bench.refused("ann", incarnation=INC_C)
    assert [(call[0], call[1], *call[3:]) for call in bench.told.take()] == [
        ("refused", "not_json", 2, "lobby", "ann"),
        ("refused", "not_json", 2, None, None),
        ("refused", "peer_id_taken", 2, "lobby", "ann"),
    ]
    bench.say(conn, Leave())
    assert bench.told.take() == [("left", "lobby", "ann", "left", 2)]
    conn, _ = bench.member("bob")
    bench.drop(conn)
    bench.told.take()
    bench.tick(30)
    assert bench.told.take() == [("left", "lobby", "bob", "timeout", 32)]


def test_who_is_cut_off_is_told_with_why() -> None:
    bench = Bench(RelayConfig(message_rate=1, message_burst=2))
    ann, _ = bench.member("ann")
    bench.told.take()
    for _ in range(4):
        bench.say(ann, signal("nobody"))
    assert bench.shut[ann] == 1008
    assert [call[:2] for call in bench.told.take()] == [
        ("refused", "no_such_peer"),
        ("refused", "no_such_peer"),
        ("refused", "rate_limited"),
        ("refused", "rate_limited"),
        ("refused", "flood"),
        ("dropped", "lobby"),
    ]


def test_who_does_not_take_its_data_is_told_with_why() -> None:
    told = Told()
    config = RelayConfig(forward_window=128 * 1024, max_forwarded=128 * 1024)
    rooms = Rooms(config, new_token=lambda: "secret-number-001", tracking=told)
    for conn, peer_id in ((1, "ann"), (2, "bob")):
        rooms.opened(conn, 0)
        rooms.received(conn, encode(join(peer_id)), 0)
    rooms.full(2)
    told.take()
    shut = 0
    for _ in range(3):
        for output in rooms.received(1, encode_forward("bob", INC_A, bytes(60_000)), 0):
            shut = getattr(output, "code", shut)
    assert shut == CLOSE_BEHIND
    assert [call[:2] for call in told.take()] == [("refused", "behind"), ("dropped", "lobby")]


def test_who_comes_and_goes_without_end_washes_away_what_is_its_own() -> None:
    """Whatever it does: joins, messages and whole members that are refused."""
    bench = Bench(RelayConfig(join_rate=1000, message_burst=10, message_rate=1))
    ann, _ = bench.member("ann")
    bench.say(ann, b"{")
    bench.apply(bench.rooms.notice("lobby", "all is well", 0.0))
    seen = bench.told.activity(0.0)
    assert [entry.kind for entry in seen] == ["joined", "refused", "notice"]
    for number in range(2000):
        bench.now += 1
        conn = bench.socket(f"2001:db8::{number:x}")
        if number % 3 == 0:
            bench.say(conn, b"{")  # no join
            continue
        bench.say(conn, join("eve", room="other"))
        for _ in range(21 if number % 3 == 1 else 1):
            bench.say(conn, b"{")
        bench.say(conn, Leave())
        bench.tick(30)
    kept = bench.told.activity(0.0)
    assert len(kept) == MAX_ACTIVITY
    assert kept[:3] == seen
    assert {entry.kind for entry in kept[3:]} == {"joined", "refused", "dropped", "left"}
    numbers = [entry.number for entry in kept]
    assert numbers == sorted(set(numbers))


def test_the_tracking_is_served_by_the_same_timer() -> None:
    rooms = Rooms(RelayConfig(), new_token=lambda: "secret-number-001")
    assert rooms.next_deadline() is None
    rooms.opened(1, 100.0)
    assert rooms.next_deadline() == 110
    rooms.received(1, encode(join("ann")), 101.0)
    assert rooms.next_deadline() == rooms.tracking.next_deadline() == 111
    rooms.tick(111.0)
    [sample] = rooms.tracking.history(0.0)
    assert (sample.at, sample.members) == (111, 1)
    assert rooms.next_deadline() == 121
    rooms.shut_down(112.0)
    assert rooms.next_deadline() is None
    assert rooms.tracking.rooms(0.0) == []


# --- bytes a second ------------------------------------------------------------------------------

KIB = 1024
RATE, BURST = 64 * KIB, 128 * KIB
SLOW = RelayConfig(byte_rate=RATE, byte_burst=BURST, forward_window=0)


def test_who_sends_more_bytes_than_its_share_is_read_later_and_loses_nothing() -> None:
    bench = Bench(SLOW)
    ann, _ = bench.member("ann")
    bob, _ = bench.member("bob", incarnation=INC_B)
    bench.take(bob)
    data = signal("bob") + b" " * (15 * KIB - len(signal("bob")))
    for _ in range(8):
        bench.say(ann, data)
    assert bench.pauses == []
    bench.say(ann, data)
    assert bench.pauses == [(ann, 16 / 64)]
    bench.now = 16 / 64
    bench.say(ann, data)
    assert bench.pauses[1:] == [(ann, 16 / 64)]
    assert [type(message) for message in bench.take(bob)] == [SignalIn] * 10
    bench.say(bob, signal("ann"))
    assert len(bench.pauses) == 2, "another member has its own share"
    assert ann not in bench.shut


def test_a_frame_counts_as_well_and_a_socket_does_not_begin_anew() -> None:
    config = RelayConfig(byte_rate=RATE, byte_burst=64 * KIB)
    rooms = Rooms(config, new_token=lambda: "secret-number-001", tracking=Told())
    for conn, peer_id in ((1, "ann"), (2, "bob")):
        rooms.opened(conn, 0)
        rooms.received(conn, encode(join(peer_id, token=f"token-of-{peer_id}-0000")), 0)
    frame = encode_forward("bob", INC_A, bytes(64 * KIB - 20))
    assert len(frame) == 64 * KIB
    pause, sent = rooms.received(1, frame, 0)[:2]
    assert pause == Pause(1, 1 / 64)
    assert isinstance(sent, SendFrame)
    rooms.dropped(1, 0)
    rooms.opened(3, 0)
    rooms.received(3, encode(join("ann", token="token-of-ann-0000", attempt=1)), 0)
    pause = rooms.received(3, frame, 0)[0]
    assert pause == Pause(3, 66 / 64)


def test_nothing_is_said_to_a_socket_after_it_was_shut_for_a_flood() -> None:
    slow = RelayConfig(byte_rate=1024, byte_burst=64 * KIB, keepalive_interval=3600)
    config = replace(slow, message_rate=0.1, message_burst=1)
    bench = Bench(config)
    ann, _ = bench.member("ann")
    for _ in range(2):
        bench.say(ann, b" " * (64 * KIB))
    assert bench.shut[ann] == 1008
    assert len(bench.pauses) == 2


@given(st.lists(st.tuples(st.integers(0, 16), st.sampled_from("ab"), st.integers(1, 70 * KIB))))
def test_pauses_against_fractions(steps: list[tuple[int, str, int]]) -> None:
    bench = Bench(SLOW)
    conns = {peer_id: bench.member(peer_id)[0] for peer_id in "ab"}
    levels: dict[str, Fraction] = defaultdict(lambda: Fraction(BURST))
    at: dict[str, Fraction] = defaultdict(Fraction)
    for eighths, peer_id, size in steps:
        bench.now += eighths / 8
        now = Fraction(bench.now)
        filled = levels[peer_id] + (now - at[peer_id]) * RATE
        levels[peer_id] = min(Fraction(BURST), filled) - size - KIB
        at[peer_id] = now
        bench.pauses.clear()
        bench.say(conns[peer_id], b" " * size)
        owed = -levels[peer_id] / RATE
        assert bench.pauses == ([(conns[peer_id], float(owed))] if owed > 0 else [])
