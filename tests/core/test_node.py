"""A node: presence, signals and frames in; links, messages and events out."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from meshpeer.config import IceServer, MeshConfig
from meshpeer.core import frames
from meshpeer.core.events import (
    BadInput,
    CandidateInfo,
    CandidatePair,
    ConnectionReport,
    Path,
    PeerJoined,
    PeerLeft,
    PeerState,
    PeerStateChanged,
    PeerUpdated,
)
from meshpeer.core.link import (
    AcceptAnswer,
    AcceptOffer,
    AddCandidates,
    CloseConnection,
    LinkState,
    MakeOffer,
)
from meshpeer.core.messages import (
    VERSION,
    Answer,
    Candidates,
    Dial,
    IceCandidate,
    IceServerInfo,
    IceServers,
    LinkMessage,
    Member,
    MemberJoined,
    MemberLeft,
    MemberUpdated,
    Offer,
    Refused,
    SignalIn,
    Stale,
    Welcome,
    decode_client,
    decode_link,
    encode,
)
from meshpeer.core.node import (
    Deliver,
    Node,
    NodeOutput,
    Ponged,
    Probe,
    Run,
    SendFrame,
    Signal,
    Tell,
    UseServers,
)
from meshpeer.errors import ConnectionFailed, ProtocolError, UnexpectedInput

MINE = "b-first-"
A1, A2 = Member("a", "a-first-"), Member("a", "a-second")
C1, C2 = Member("c", "c-first-", "Cee", {"x": 1}), Member("c", "c-second")
SDP = "v=0\r\nm=application 9\r\na=ice-ufrag:u\r\na=ice-pwd:p\r\na=fingerprint:f\r\n"


def welcome(*members: Member, resumed: bool = False) -> Welcome:
    return Welcome(
        version=VERSION,
        room="room",
        peer_id="b",
        incarnation=MINE,
        token="token-of-b-0000000",
        seat_timeout=30.0,
        resumed=resumed,
        members=list(members),
    )


def make(*members: Member) -> Node:
    """The node "b", in a room with these."""
    node = Node(MeshConfig(), peer_id="b", incarnation=MINE, random=lambda: 0.5)
    node.signaling(welcome(*members), 0.0)
    return node


def signal(
    sender: Member,
    epoch: int,
    body: LinkMessage | bytes,
    *,
    to: str = MINE,
    name: str | None = None,
) -> SignalIn:
    raw = body if isinstance(body, bytes) else encode(body)
    return SignalIn(name or sender.peer_id, sender.incarnation, to, epoch, Raw(raw))


def connect(node: Node, member: Member, *, epoch: int = 1, now: float = 0.0) -> list[NodeOutput]:
    """Bring the link to a member to `connected`; what the last step put out."""
    peer_id, incarnation = member.peer_id, member.incarnation
    if node.link(peer_id).dials:
        node.operation_done(peer_id, incarnation, epoch, MakeOffer(), SDP, now)
        node.signaling(signal(member, epoch, Answer(SDP)), now)
    else:
        node.signaling(signal(member, epoch, Offer(SDP)), now)
        node.operation_done(peer_id, incarnation, epoch, AcceptOffer(SDP), SDP, now)
    node.signaling(signal(member, epoch, Candidates([], end=True)), now)
    out = node.connection_opened(peer_id, incarnation, epoch, now)
    assert node.link(peer_id).state is LinkState.CONNECTED
    return out


def events(outputs: list[NodeOutput]) -> list[Any]:
    """What is told, without the reports; those are what `reports` is for."""
    told = [output.event for output in outputs if isinstance(output, Tell)]
    return [event for event in told if not isinstance(event, ConnectionReport)]


def reports(outputs: list[NodeOutput]) -> list[ConnectionReport]:
    told = [output.event for output in outputs if isinstance(output, Tell)]
    return [event for event in told if isinstance(event, ConnectionReport)]


def signals(outputs: list[NodeOutput]) -> list[tuple[str, str, int, LinkMessage]]:
    return [
        (o.message.to, o.message.to_incarnation, o.message.epoch, decode_link(o.message.body))
        for o in outputs
        if isinstance(o, Signal)
    ]


def runs(outputs: list[NodeOutput]) -> list[Run]:
    return [output for output in outputs if isinstance(output, Run)]


def sent(outputs: list[NodeOutput]) -> list[frames.Frame]:
    return [frames.decode(output.data) for output in outputs if isinstance(output, SendFrame)]


def message(data: Any, channel: str = "default") -> list[bytes]:
    kind, payload = frames.encode_value(data)
    return list(frames.encode_message(kind, channel, payload))


# --- presence -------------------------------------------------------------------------------------


def test_a_welcome_opens_links_and_the_smaller_id_dials() -> None:
    node = Node(MeshConfig(), peer_id="b", incarnation=MINE, random=lambda: 0.5)
    out = node.signaling(welcome(A1, C1), 0.0)
    assert runs(out) == [Run("c", C1.incarnation, 1, MakeOffer())]
    told = events(out)
    assert [type(event) for event in told] == [PeerJoined, PeerJoined, PeerStateChanged]
    assert told[1] == PeerJoined(
        peer_id="c", incarnation=C1.incarnation, name="Cee", metadata={"x": 1}
    )
    assert told[2] == PeerStateChanged(
        peer_id="c",
        incarnation=C1.incarnation,
        name="Cee",
        previous=PeerState.NEW,
        state=PeerState.CONNECTING,
        path=None,
        reason="dialling",
        epoch=1,
    )
    assert node.next_deadline() == 8.0


def test_a_link_from_the_offer_to_the_open_channel() -> None:
    node = make(C1)
    out = node.operation_done("c", C1.incarnation, 1, MakeOffer(), SDP, 0.1)
    assert signals(out) == [("c", C1.incarnation, 1, Offer(SDP))]
    out = node.signaling(signal(C1, 1, Answer(SDP)), 0.2)
    assert out == [Run("c", C1.incarnation, 1, AcceptAnswer(SDP))]
    out = node.connection_opened("c", C1.incarnation, 1, 0.3)
    assert Probe("c", 1, 1) in out
    assert sent(out) == [frames.Credit(18 * 1024 * 1024, 16 * 1024 * 1024)]
    (change,) = events(out)
    assert (change.previous, change.state) == (PeerState.CONNECTING, PeerState.CONNECTED)
    assert change.path is Path.DIRECT


def test_the_side_that_waits_answers() -> None:
    node = make(A1)
    out = node.signaling(signal(A1, 1, Offer(SDP)), 0.1)
    assert runs(out) == [Run("a", A1.incarnation, 1, AcceptOffer(SDP))]
    assert node.signaling(signal(A1, 1, Candidates([], end=True)), 0.1) == [
        Run("a", A1.incarnation, 1, AddCandidates((), end=True))
    ]
    out = node.operation_done("a", A1.incarnation, 1, AcceptOffer(SDP), SDP, 0.2)
    assert signals(out) == [("a", A1.incarnation, 1, Answer(SDP))]


def test_a_new_incarnation_closes_the_old_link_before_the_new_one_begins() -> None:
    node = make(C1)
    connect(node, C1)
    out = node.signaling(MemberJoined(C2), 1.0)
    assert runs(out) == [
        Run("c", C1.incarnation, 1, CloseConnection()),
        Run("c", C2.incarnation, 1, MakeOffer()),
    ]
    told = events(out)
    assert [type(event) for event in told] == [
        PeerStateChanged,
        PeerLeft,
        PeerJoined,
        PeerStateChanged,
    ]
    assert (told[0].state, told[0].reason) == (PeerState.CLOSED, "superseded")
    assert told[1] == PeerLeft(
        peer_id="c", incarnation=C1.incarnation, name="Cee", reason="superseded"
    )
    # What the shell still says of the old one changes nothing.
    before = node.link("c")
    old = C1.incarnation
    late: list[list[NodeOutput]] = [
        node.operation_done("c", old, 1, MakeOffer(), SDP, 1.1),
        node.operation_failed("c", old, 1, MakeOffer(), ConnectionFailed("x"), 1.1),
        node.connection_opened("c", old, 1, 1.1),
        node.connection_lost("c", old, 1, "x", 1.1),
        node.frame_received("c", old, 1, message("late")[0], 1.1),
        node.taken("c", old, 1, 1 << 30),
        node.signaling(signal(C1, 1, Answer(SDP)), 1.1),
    ]
    assert late == [[]] * len(late)
    assert node.link("c") is before
    assert before.state is LinkState.OFFERING


def test_a_message_of_a_superseded_incarnation_is_never_delivered() -> None:
    node = make(C1)
    connect(node, C1)
    node.signaling(MemberJoined(C2), 1.0)
    connect(node, C2, now=1.0)
    assert node.frame_received("c", C1.incarnation, 1, message("old")[0], 1.1) == []
    (delivered,) = node.frame_received("c", C2.incarnation, 1, message("new")[0], 1.1)
    assert isinstance(delivered, Deliver)
    assert delivered.message.value() == "new"


def test_an_incarnation_that_comes_back_goes_on_with_its_epochs() -> None:
    """Or a late answer to the first epoch of before would be taken for one to the new first."""
    node = make(C1)
    connect(node, C1)
    node.signaling(MemberLeft("c", C1.incarnation, "timeout"), 1.0)
    node.connection_lost("c", C1.incarnation, 1, "cut", 2.0)
    assert node.signaling(signal(C1, 2, Answer(SDP)), 3.0) == [], "late, and no fault of anybody"
    out = node.signaling(MemberJoined(C1), 4.0)
    assert runs(out) == [Run("c", C1.incarnation, 3, MakeOffer())]
    assert node.signaling(signal(C1, 1, Answer(SDP)), 5.0) == []
    # And a new incarnation begins at 1.
    assert runs(node.signaling(MemberJoined(C2), 6.0))[-1].epoch == 1


def test_incarnations_that_ended_are_remembered_within_a_bound() -> None:
    node = make()
    for number in range(1500):
        node.signaling(MemberJoined(Member("c", f"incarnation-{number}")), 0.0)
    ended = Member("c", "incarnation-1498")
    assert node.signaling(signal(ended, 1, Dial("x")), 0.0) == []
    forgotten = Member("c", "incarnation-1")
    assert bad(node.signaling(signal(forgotten, 1, Dial("x")), 0.0)).error.code == "unknown_sender"
    assert len(node._ended) == 1000


def test_a_goodbye_over_the_connection_ends_the_link() -> None:
    node = make(C1)
    connect(node, C1)
    out = node.frame_received("c", C1.incarnation, 1, frames.encode_bye(), 1.0)
    assert runs(out) == [Run("c", C1.incarnation, 1, CloseConnection())]
    assert events(out)[-1].reason == "left"
    with pytest.raises(KeyError):
        node.link("c")
    assert node.next_deadline() is None
    assert node.signaling(MemberLeft("c", C1.incarnation, "left"), 1.1) == []
    # Its last signals may come later than its goodbye.
    assert node.signaling(signal(C1, 1, Dial("x")), 1.1) == []


def test_a_seat_that_ran_out_ends_the_link_when_the_path_does() -> None:
    node = make(C1)
    connect(node, C1)
    assert events(node.signaling(MemberLeft("c", C1.incarnation, "timeout"), 1.0)) == []
    out = node.connection_lost("c", C1.incarnation, 1, "cut", 2.0)
    assert isinstance(events(out)[-1], PeerLeft)
    assert events(out)[-1].reason == "timeout"
    assert runs(out)[-1].operation == CloseConnection(), "nothing of it stays open"
    opened = {run.epoch for run in runs(out) if isinstance(run.operation, MakeOffer)}
    closed = {run.epoch for run in runs(out) if isinstance(run.operation, CloseConnection)}
    assert opened <= closed
    assert node.next_deadline() is None


def test_after_a_restart_of_the_service_the_missing_have_their_grace() -> None:
    node = make(A1, C1)
    connect(node, C1)
    assert events(node.signaling(welcome(), 10.0)) == []
    told = []
    while (at := node.next_deadline()) is not None and at <= 60.0:
        node.frame_received("c", C1.incarnation, 1, frames.encode_ping(1), at)
        told += events(node.tick(at))
    assert [(e.peer_id, e.reason) for e in told if isinstance(e, PeerLeft)] == [("a", "timeout")]
    assert node.link("c").state is LinkState.CONNECTED
    node.signaling(MemberJoined(C1), 61.0)
    assert node.link("c").reachable


def test_a_new_name_is_told_and_used() -> None:
    node = make(C1)
    assert events(node.signaling(MemberUpdated("c", C1.incarnation, "Sea", {}), 1.0)) == [
        PeerUpdated(peer_id="c", incarnation=C1.incarnation, name="Sea", metadata={})
    ]
    assert events(node.signaling(MemberLeft("c", C1.incarnation, "left"), 1.0))[-1].name == "Sea"


def test_without_signalling_links_stay_and_come_back() -> None:
    node = make(A1, C1)
    assert node.signaling_lost(1.0) == []
    assert not node.link("a").reachable
    out = node.signaling(welcome(resumed=True), 2.0)
    assert signals(out) == [("a", A1.incarnation, 0, Dial("signalling is back"))]
    assert len(out) == 1
    assert node.link("a").reachable


def test_a_refused_signal_is_left_to_presence() -> None:
    node = make(C1)
    assert node.signaling(Refused(code="no_such_peer", text="nobody", to="c"), 0.0) == []


# --- signals that are out of place ----------------------------------------------------------------


def bad(outputs: list[NodeOutput]) -> BadInput:
    (output,) = outputs
    assert isinstance(output, Tell)
    assert isinstance(output.event, BadInput)
    return output.event


@pytest.mark.parametrize(
    ("event", "code"),
    [
        (signal(A2, 1, Offer(SDP)), "unknown_sender"),
        (signal(Member("nobody", "incarnation"), 1, Offer(SDP)), "unknown_sender"),
        (signal(Member("b", MINE), 1, Offer(SDP)), "unknown_sender"),
        (signal(A1, 1, b"{"), "not_json"),
        (signal(A1, 1, b"[1]"), "malformed"),
        (signal(A1, 1, b'{"type":"offer"}'), "malformed"),
        (signal(A1, 1, b'{"type":"nonsense"}'), "malformed"),
        (signal(A1, 1, b'{"type":"offer","sdp":"v=0"}'), "bad_sdp"),
        (signal(A1, 1, Answer(SDP)), "unexpected_answer"),
        (signal(C1, 9, Answer(SDP)), "unexpected_answer"),
        (signal(C1, 9, Candidates([])), "unexpected_candidates"),
        (signal(A1, 1, Dial("x")), "unexpected_dial"),
    ],
)
def test_a_signal_out_of_place_is_told_and_changes_nothing(event: SignalIn, code: str) -> None:
    node = make(A1, C1)
    before = [(node.link(p).state, node.link(p).epoch, node.link(p).next_deadline()) for p in "ac"]
    told = bad(node.signaling(event, 0.0))
    assert told.error.code == code
    assert told.peer_id == event.sender
    after = [(node.link(p).state, node.link(p).epoch, node.link(p).next_deadline()) for p in "ac"]
    assert before == after


def test_a_signal_for_an_incarnation_that_is_over_is_answered_with_ours() -> None:
    node = make(C1)
    connect(node, C1, epoch=1)
    out = node.signaling(signal(C1, 5, Offer(SDP), to="b-before"), 1.0)
    assert signals(out) == [("c", C1.incarnation, 0, Stale(MINE, 1))]
    assert len(out) == 1
    assert node.link("c").state is LinkState.CONNECTED


def test_sdp_that_the_connection_refuses_is_the_other_sides_fault() -> None:
    node = make(A1, C1)
    connect(node, C1)
    node.signaling(signal(A1, 1, Offer(SDP)), 0.0)
    error = ProtocolError("no such thing", code="bad_sdp")
    out = node.operation_failed("a", A1.incarnation, 1, AcceptOffer(SDP), error, 0.1)
    assert events(out)[0] == BadInput(peer_id="a", error=error)
    assert node.link("a").state is LinkState.WAITING
    assert node.link("c").state is LinkState.CONNECTED


def test_a_report_about_an_epoch_that_has_not_begun_is_the_shells_fault() -> None:
    node = make(C1)
    with pytest.raises(UnexpectedInput):
        node.connection_opened("c", C1.incarnation, 2, 0.0)
    assert node.link("c").state is LinkState.OFFERING


# --- frames ---------------------------------------------------------------------------------------


def test_messages_are_delivered_and_credit_given_back() -> None:
    node = make(C1)
    connect(node, C1)
    out = node.frame_received("c", C1.incarnation, 1, message({"a": 1}, "chat")[0], 1.0)
    (deliver,) = out
    assert isinstance(deliver, Deliver)
    assert (deliver.peer_id, deliver.epoch) == ("c", 1)
    assert (deliver.message.value(), deliver.message.channel) == ({"a": 1}, "chat")
    assert node.taken("c", C1.incarnation, 1, deliver.message.charge) == []
    big = b"x" * 8_000_000
    outputs = [
        output
        for part in message(big)
        for output in node.frame_received("c", C1.incarnation, 1, part, 1.0)
    ]
    (deliver,) = outputs
    assert isinstance(deliver, Deliver)
    assert deliver.message.value() == big
    (credit,) = sent(node.taken("c", C1.incarnation, 1, deliver.message.charge))
    assert isinstance(credit, frames.Credit)
    assert credit.limit > 18 * 1024 * 1024 + 8_000_000
    assert node.taken("c", C1.incarnation, 2, 1 << 30) == [], "of another connection"


def test_ping_pong_and_credit() -> None:
    node = make(C1)
    connect(node, C1)
    out = node.frame_received("c", C1.incarnation, 1, frames.encode_ping(77), 1.0)
    assert sent(out) == [frames.Pong(77)]
    assert node.frame_received("c", C1.incarnation, 1, frames.encode_pong(1), 1.5) == []
    flush = frames.encode_pong(1 << 31)
    assert node.frame_received("c", C1.incarnation, 1, flush, 1.5) == [Ponged("c", 1 << 31)]
    assert node.link("c").rtt is None, "no probe was answered"
    assert node.ponged("c", C1.incarnation, 1, 2, 1.5) == []
    assert node.link("c").rtt is None, "nobody asked for that one"
    assert node.ponged("c", C1.incarnation, 1, 1, 1.5) == []
    assert node.link("c").rtt == 1.5
    frame = frames.encode_credit(1 << 30, 1 << 20)
    assert node.frame_received("c", C1.incarnation, 1, frame, 1.5) == []
    assert node.delivery("c").may_send(1 << 30)
    assert not node.delivery("c").may_send((1 << 30) + 1)


def test_a_ping_goes_over_the_connection_that_it_is_for() -> None:
    """Both its time and that of the connection may have come when a process stood still."""
    node = make(C1)
    connect(node, C1)
    while node.link("c").state is not LinkState.DISCONNECTED:
        node.tick(node.next_deadline() or 0.0)
    out = node.tick(60.0)
    assert node.link("c").epoch == 2
    assert {output.epoch for output in out if isinstance(output, Probe)} == {1}


def test_a_frame_that_is_heard_ends_the_silence() -> None:
    node = make(C1)
    connect(node, C1)
    out: list[NodeOutput] = []
    while node.link("c").state is not LinkState.DISCONNECTED:
        out = node.tick(node.next_deadline() or 0.0)
    (change,) = events(out)
    assert (change.state, change.path) == (PeerState.DISCONNECTED, None)
    out = node.frame_received("c", C1.incarnation, 1, frames.encode_pong(9), 3.0)
    (change,) = events(out)
    assert (change.state, change.path) == (PeerState.CONNECTED, Path.DIRECT)
    assert sent(out) == [], "it is the same connection, with its credit"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00",
        b"\xff",
        b"\x26",
        b"x" * 70_000,
        frames.encode_ping(1)[:-1],
        frames.encode_bye() + b"x",
        frames.encode_message(frames.Kind.TEXT, "c", b"\xff")[0],
        bytes((0x12, 0x80)),
    ],
    ids=repr,
)
def test_a_malformed_frame_ends_that_attempt_alone(data: bytes) -> None:
    node = make(A1, C1)
    connect(node, A1)
    connect(node, C1)
    out = node.frame_received("c", C1.incarnation, 1, data, 1.0)
    told = events(out)
    assert isinstance(told[0], BadInput)
    assert isinstance(told[1], PeerStateChanged)
    assert told[1].state is PeerState.DISCONNECTED
    assert len(told) == 2
    assert runs(out) == [
        Run("c", C1.incarnation, 1, CloseConnection()),
        Run("c", C1.incarnation, 2, MakeOffer()),
    ]
    assert node.link("a").state is LinkState.CONNECTED
    assert node.frame_received("c", C1.incarnation, 1, message("late")[0], 1.0) == []


def test_a_new_connection_begins_with_new_credit_and_no_half_message() -> None:
    node = make(C1)
    connect(node, C1)
    node.frame_received("c", C1.incarnation, 1, message(b"x" * 100_000)[0], 1.0)
    node.delivery("c").sent(1_000)
    node.connection_lost("c", C1.incarnation, 1, "cut", 2.0)
    out = connect(node, C1, epoch=2, now=2.0)
    assert frames.Credit(18 * 1024 * 1024, 16 * 1024 * 1024) in sent(out)
    (deliver,) = node.frame_received("c", C1.incarnation, 2, message("whole")[0], 2.0)
    assert isinstance(deliver, Deliver)
    assert deliver.message.value() == "whole"
    assert node.delivery("c").may_send(64 * 1024)
    assert node.frame_received("c", C1.incarnation, 1, message("late")[0], 2.0) == []
    assert node.taken("c", C1.incarnation, 1, 1 << 30) == []


def test_what_came_before_and_is_unread_counts_until_it_is_taken() -> None:
    """On the next connection, and when the same incarnation leaves and comes again."""
    node = make(C1)
    connect(node, C1)
    window = MeshConfig().receive_window
    charges: list[int] = []
    parts = message(b"x" * 8_000_000) + message(b"y" * 4_000_000) + message(b"z" * 2_000_000)
    for part in parts:
        for output in node.frame_received("c", C1.incarnation, 1, part, 1.0):
            assert isinstance(output, Deliver)
            charges.append(output.message.charge)
    node.connection_lost("c", C1.incarnation, 1, "cut", 2.0)
    taken = node.taken("c", C1.incarnation, 1, charges.pop())
    assert taken == [], "there is no connection to say it on"
    out = connect(node, C1, epoch=2, now=2.0)
    assert frames.Credit(window * 9 // 8 - sum(charges), window) in sent(out)
    node.signaling(MemberLeft("c", C1.incarnation, "left"), 3.0)
    assert node.taken("c", C1.incarnation, 1, charges[0]) == []
    node.signaling(MemberJoined(C1), 4.0)
    out = connect(node, C1, epoch=node.link("c").epoch, now=4.0)
    assert frames.Credit(window * 9 // 8 - charges[1], window) in sent(out)
    (credit,) = node.taken("c", C1.incarnation, 1, charges[1])
    assert isinstance(credit, SendFrame)
    assert credit.epoch == node.link("c").epoch
    assert frames.decode(credit.data) == frames.Credit(window * 9 // 8, window)


# --- ICE restarts, paths and reports --------------------------------------------------------------

HOST = CandidateInfo("host", "192.0.2.1", 4000)
OVER = CandidateInfo("relay", "198.51.100.1", 5000, "turn:turn.example.org")
DIRECT = CandidatePair(HOST, HOST)
TURN = CandidatePair(OVER, HOST)
ONE = IceCandidate("candidate:1 1 udp 1 192.0.2.1 9 typ host", "0", 0)
SERVERS = IceServers([IceServerInfo(["turn:turn.example.org"], "user", "password")], 600.0)


def test_what_is_told_of_a_connection() -> None:
    node = make(C1)
    c1 = ("c", C1.incarnation, 1)
    node.operation_done(*c1, MakeOffer(), SDP, 1.0)
    node.signaling(signal(C1, 1, Answer(SDP)), 1.0)
    node.ice_state(*c1, "checking")
    (report,) = reports(node.pair_selected(*c1, 0, TURN, 2.0))
    assert (report.state, report.ice_state) == (PeerState.CONNECTING, "checking")
    assert (report.pair, report.path) == (TURN, None), "nothing flows yet"
    assert report.reason == "a candidate pair was selected"
    node.ice_state(*c1, "connected")
    out = node.connection_opened(*c1, 3.0)
    (change,) = events(out)
    assert change.path is Path.TURN
    (report,) = reports(out)
    assert report == ConnectionReport(
        peer_id="c",
        incarnation=C1.incarnation,
        name="Cee",
        state=PeerState.CONNECTED,
        ice_state="connected",
        path=Path.TURN,
        pair=TURN,
        rtt=None,
        reason="connected",
        epoch=1,
        generation=0,
        restarts=0,
        seconds={PeerState.NEW: 0.0, PeerState.CONNECTING: 3.0, PeerState.CONNECTED: 0.0},
    )
    assert node.pair_selected(*c1, 0, TURN, 3.5) == [], "as it was"
    assert [r.path for r in reports(node.pair_selected(*c1, 0, DIRECT, 4.0))] == [Path.DIRECT]
    out = node.path_lost(*c1, "the server hung up", 5.0)
    (report,) = reports(out)
    assert (report.state, report.ice_state) == (PeerState.DISCONNECTED, "disconnected")
    assert report.reason == "path lost: the server hung up"
    assert report.seconds[PeerState.CONNECTED] == 2.0
    assert runs(out) == [Run(*c1, MakeOffer(1))]
    out = node.operation_done(*c1, MakeOffer(1), SDP, 5.1)
    assert signals(out) == [("c", C1.incarnation, 1, Offer(SDP, 1))]
    node.signaling(signal(C1, 1, Answer(SDP, 1)), 5.2)
    (report,) = reports(node.pair_selected(*c1, 1, DIRECT, 5.3))
    assert (report.generation, report.restarts) == (1, 1)
    assert report.reason == "ICE restart took over: path lost: the server hung up"
    (report,) = reports(node.heard(*c1, True, 5.4))
    assert (report.state, report.ice_state) == (PeerState.CONNECTED, "connected")
    assert report == node.report("c", 5.4)
    assert node.report("c", 6.4).seconds[PeerState.CONNECTED] == 3.0
    out = node.connection_lost(*c1, "cut", 7.0)
    (report,) = reports(out)
    assert (report.epoch, report.ice_state, report.pair) == (2, "new", None)
    assert (report.generation, report.restarts) == (0, 1)
    node.ice_state(*c1, "closed")
    assert node.report("c", 7.0).ice_state == "new", "that was another connection"
    (report,) = reports(node.signaling(MemberLeft("c", C1.incarnation, "left"), 8.0))
    assert (report.state, report.ice_state) == (PeerState.CLOSED, "closed")
    with pytest.raises(KeyError):
        node.report("c", 9.0)


def test_candidates_of_ours_follow_their_description() -> None:
    node = make(C1)
    c1 = ("c", C1.incarnation, 1)
    assert node.local_candidates(*c1, 0, (ONE,), False, 0.0) == []
    out = node.operation_done(*c1, MakeOffer(), SDP, 0.1)
    assert [body for *_, body in signals(out)] == [Offer(SDP), Candidates([ONE])]
    out = node.local_candidates(*c1, 0, (), True, 0.2)
    assert [body for *_, body in signals(out)] == [Candidates([], end=True)]


def test_a_probe_that_is_answered_is_a_sign_of_life() -> None:
    node = make(C1)
    connect(node, C1)
    while node.link("c").state is not LinkState.DISCONNECTED:
        node.tick(node.next_deadline() or 0.0)
    (change,) = events(node.ponged("c", C1.incarnation, 1, 99, 3.0))
    assert change.state is PeerState.CONNECTED
    assert node.heard("c", C1.incarnation, 1, False, 3.0) == []


def test_local_addresses_that_changed_restart_every_connection() -> None:
    node = make(A1, C1)
    for member in (A1, C1):
        connect(node, member)
    out = node.addresses_changed(1.0)
    assert runs(out) == [
        Run("a", A1.incarnation, 1, MakeOffer(2)),
        Run("c", C1.incarnation, 1, MakeOffer(1)),
    ]
    assert events(out) == []


def test_a_restart_can_be_asked_for() -> None:
    node = make(A1, C1)
    connect(node, C1)
    assert runs(node.force_restart("c", 1.0)) == [Run("c", C1.incarnation, 1, MakeOffer(1))]
    assert node.force_restart("a", 1.0) == [], "there is no connection to restart"
    node.operation_done("c", C1.incarnation, 1, MakeOffer(1), SDP, 1.0)
    assert runs(node.force_restart(None, 1.0)) == [Run("c", C1.incarnation, 1, MakeOffer(3))]
    with pytest.raises(KeyError):
        node.force_restart("nobody", 1.0)


def test_new_turn_credentials_restart_what_goes_over_turn() -> None:
    node = make(A1, C1)
    for member, pair in ((A1, DIRECT), (C1, TURN)):
        connect(node, member)
        node.pair_selected(member.peer_id, member.incarnation, 1, 0, pair, 0.0)
    use, run = node.signaling(SERVERS, 1.0)
    assert use == UseServers(
        (IceServer(urls=["turn:turn.example.org"], username="user", credential="password"),)
    )
    assert run == Run("c", C1.incarnation, 1, MakeOffer(1))
    assert node.signaling(IceServers(SERVERS.servers, 300.0), 2.0) == [], "the same again"
    assert node.link("a").state is LinkState.CONNECTED


def test_a_turn_server_without_credentials_is_refused() -> None:
    node = make(C1)
    server = IceServerInfo(["stun:stun.example.org", "turn:turn.example.org"], "user")
    told = bad(node.signaling(IceServers([server]), 1.0))
    assert (told.peer_id, told.error.code) == (None, "bad_ice_server")
    assert isinstance(node.signaling(SERVERS, 2.0)[0], UseServers)


def test_what_a_gone_incarnation_s_connection_says_of_its_ice_is_ignored() -> None:
    node = make(C1)
    connect(node, C1)
    node.signaling(MemberJoined(C2), 1.0)
    old = ("c", C1.incarnation, 1)
    node.ice_state(*old, "connected")
    late: list[list[NodeOutput]] = [
        node.local_candidates(*old, 0, (ONE,), True, 1.0),
        node.pair_selected(*old, 1, TURN, 1.0),
        node.path_lost(*old, "cut", 1.0),
        node.heard(*old, True, 1.0),
        node.ponged(*old, 1, 1.0),
    ]
    assert late == [[]] * len(late)
    assert node.report("c", 1.0).ice_state == "new"
    assert node.link("c").pair is None


# --- the end --------------------------------------------------------------------------------------


def test_close_says_goodbye_and_leaves_nothing() -> None:
    node = make(A1, C1)
    connect(node, C1)
    out = node.close(1.0)
    assert out[0] == SendFrame("c", 1, frames.encode_bye())
    assert runs(out) == [Run("c", C1.incarnation, 1, CloseConnection())]
    left = [event for event in events(out) if isinstance(event, PeerLeft)]
    assert [(event.peer_id, event.reason) for event in left] == [("a", "closed"), ("c", "closed")]
    assert node.next_deadline() is None
    assert node.tick(100.0) == []
    assert node.close(100.0) == []


# --- deadlines ------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32))
def test_the_next_deadline_is_the_earliest_of_all(seed: int) -> None:
    rng = random.Random(seed)
    node = Node(MeshConfig(), peer_id="m", incarnation=MINE, random=rng.random)
    everybody = [Member(name, f"{name}-first-{i}") for name in "akoz" for i in range(2)]
    now = 0.0

    def check() -> None:
        links = [peer.link.next_deadline() for peer in node._peers.values()]
        times = [at for at in (*links, node._mesh.next_deadline()) if at is not None]
        assert node.next_deadline() == min(times, default=None)

    for _ in range(80):
        member = rng.choice(everybody)
        peer = node._peers.get(member.peer_id)
        epoch = 0 if peer is None else max(0, peer.link.epoch + rng.choice((0, 0, 0, 1)))
        incarnation = member.incarnation
        match rng.randrange(12):
            case 0 | 1:
                node.signaling(MemberJoined(member), now)
            case 2:
                reason = rng.choice(("left", "timeout"))
                node.signaling(MemberLeft(member.peer_id, incarnation, reason), now)
            case 3:
                members = {m.peer_id: m for m in rng.sample(everybody, rng.randrange(4))}
                node.signaling(welcome(*members.values()), now)
            case 4:
                node.signaling_lost(now)
            case 5 | 6 | 7:
                body: LinkMessage = rng.choice((Offer(SDP), Answer(SDP), Dial("x")))
                node.signaling(signal(member, epoch, body), now)
            case 8 if peer is not None and peer.link.state in ("offering", "answering"):
                operation = MakeOffer() if peer.link.dials else AcceptOffer(SDP)
                node.operation_done(
                    member.peer_id, peer.member.incarnation, peer.link.epoch, operation, SDP, now
                )
            case 9 if peer is not None and peer.link.state == "checking":
                node.connection_opened(
                    member.peer_id, peer.member.incarnation, peer.link.epoch, now
                )
            case 10 if peer is not None and peer.link.alive:
                data = rng.choice((frames.encode_ping(1), b"", frames.encode_bye()))
                node.frame_received(member.peer_id, peer.member.incarnation, epoch, data, now)
            case _:
                now = max(now, node.next_deadline() or 0.0) if rng.random() < 0.8 else now + 0.1
                node.tick(now)
                assert (node.next_deadline() or now + 1.0) > now, "what was due is done"
        check()
    assert len(node._heap) < 200


# --- nothing from the other side raises -----------------------------------------------------------

EPOCHS = (0, 1, 2, 2**30 - 1, 2**30, 2**30 + 1, 2**31 - 2, 2**31 - 1)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32))
def test_no_signal_makes_an_honest_result_unexpected(seed: int) -> None:
    """Any signals and frames, between the honest results of the operations that they bring about.

    Each attempt has an epoch of its own, which the schema takes.
    """
    rng = random.Random(seed)
    node = Node(MeshConfig(), peer_id="b", incarnation=MINE, random=rng.random)
    sender = rng.choice((A1, C1))
    peer_id, incarnation = sender.peer_id, sender.incarnation
    running: list[Run] = []
    described: list[tuple[int, int]] = []
    begun: list[int] = []
    now = 0.0

    def said(outputs: list[NodeOutput]) -> None:
        for output in outputs:
            if isinstance(output, Signal):
                decode_client(encode(output.message))
            if not isinstance(output, Run):
                continue
            running.append(output)
            match output.operation:
                case MakeOffer(number) | AcceptOffer(_, number) if not number:
                    begun.append(output.epoch)
                    assert begun == sorted(set(begun))

    said(node.signaling(welcome(sender), now))
    for _ in range(120):
        now += rng.choice((0.0, 0.3, 2.0))
        link = node.link(peer_id)
        match rng.randrange(9):
            case 0 | 1 | 2 | 3:
                epoch = rng.choice((*EPOCHS, *(max(0, link.epoch + by) for by in (-1, 0, 0, 1))))
                bodies: list[LinkMessage] = [Offer(SDP), Answer(SDP), Dial("x")]
                bodies += [Stale("incarnation-x", epoch), Candidates([], end=True)]
                bodies += [Candidates([IceCandidate("c")] * 40)]
                number = rng.choice((*EPOCHS, *range(12)))
                bodies += [Offer(SDP, number), Answer(SDP, number)] * 3
                bodies += [Candidates([IceCandidate("c")] * 40, generation=number)]
                body = rng.choice(bodies)
                said(node.signaling(signal(sender, epoch, body), now))
            case 4 | 5 if running:
                run = running.pop(0)
                args = (peer_id, incarnation, run.epoch)
                if rng.random() < 0.2:
                    error = rng.choice((ConnectionFailed("no"), ProtocolError("no")))
                    if not isinstance(run.operation, CloseConnection):
                        said(node.operation_failed(*args, run.operation, error, now))
                elif isinstance(run.operation, MakeOffer | AcceptOffer):
                    said(node.operation_done(*args, run.operation, SDP, now))
                if isinstance(run.operation, AcceptAnswer | AcceptOffer):
                    described.append((run.epoch, run.operation.generation))
                if isinstance(run.operation, MakeOffer | AcceptOffer) and rng.random() < 0.5:
                    found = (run.operation.generation, (ONE,) * rng.randrange(200))
                    said(node.local_candidates(*args, *found, rng.random() < 0.5, now))
            case 6 if described:
                epoch, number = described.pop()
                if not number:
                    said(node.connection_opened(peer_id, incarnation, epoch, now))
                pair = rng.choice((DIRECT, TURN))
                said(node.pair_selected(peer_id, incarnation, epoch, number, pair, now))
            case 7 if begun:
                at = rng.choice(begun)
                said(node.heard(peer_id, incarnation, at, rng.random() < 0.5, now))
                if rng.random() < 0.3:
                    said(node.connection_lost(peer_id, incarnation, at, "cut", now))
                elif rng.random() < 0.3:
                    said(node.path_lost(peer_id, incarnation, at, "cut", now))
                elif rng.random() < 0.3:
                    said(node.addresses_changed(now))
                else:
                    data = rng.choice((b"", frames.encode_ping(1), frames.encode_credit(0, 0)))
                    said(node.frame_received(peer_id, incarnation, at, data, now))
            case _:
                said(node.tick(now))
