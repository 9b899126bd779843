"""A node: presence, signals and frames in; links, messages and events out."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw
from msgspec.structs import replace

from meshpeer.config import IceServer, MeshConfig
from meshpeer.core import frames
from meshpeer.core.delivery import Outgoing, Received
from meshpeer.core.events import (
    BadInput,
    CandidateInfo,
    CandidatePair,
    ConnectionReport,
    MessagesUndelivered,
    NoticeReceived,
    Path,
    PeerJoined,
    PeerLeft,
    PeerState,
    PeerStateChanged,
    PeerUpdated,
    UndeliveredMessage,
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
    LinkReport,
    Member,
    MemberJoined,
    MemberLeft,
    MemberUpdated,
    Notice,
    Offer,
    Refused,
    RestartIce,
    SignalIn,
    Stale,
    Welcome,
    decode_client,
    decode_link,
    encode,
)
from meshpeer.core.node import (
    RELAY,
    Deliver,
    Node,
    NodeOutput,
    Ponged,
    Probe,
    Ready,
    ReportLinks,
    Run,
    SendFrame,
    Signal,
    Tell,
    UseServers,
)
from meshpeer.core.reports import DELAY
from meshpeer.core.values import Kind, encode_value
from meshpeer.errors import ConnectionFailed, ProtocolError, UnexpectedInput

MINE = "b-first-"
A1, A2 = Member("a", "a-first-"), Member("a", "a-second")
C1, C2 = Member("c", "c-first-", "Cee", {"x": 1}), Member("c", "c-second")
SDP = "v=0\r\nm=application 9\r\na=ice-ufrag:u\r\na=ice-pwd:p\r\na=fingerprint:f\r\n"


def welcome(
    *members: Member,
    resumed: bool = False,
    window: int = 0,
    reports: float = 0.0,
    servers: IceServers | None = None,
) -> Welcome:
    return Welcome(
        version=VERSION,
        room="room",
        peer_id="b",
        incarnation=MINE,
        token="token-of-b-0000000",
        seat_timeout=30.0,
        resumed=resumed,
        members=list(members),
        forward_window=window,
        report_interval=reports,
        ice_servers=servers,
    )


def make(
    *members: Member, window: int = 0, config: MeshConfig | None = None, reports: float = 0.0
) -> Node:
    """The node "b", in a room with these, on a service that forwards data within ``window``."""
    node = Node(config or MeshConfig(), peer_id="b", incarnation=MINE, random=lambda: 0.5)
    node.signaling(welcome(*members, window=window, reports=reports), 0.0)
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


def outgoing(data: Any, channel: str = "default") -> Outgoing:
    kind, payload = encode_value(data)
    return Outgoing(channel, len(payload), frames.encode_message(kind, payload))


def message(data: Any, seq: int = 0) -> bytes:
    """A frame with a message on channel 0."""
    ((part, _),) = outgoing(data).parts
    return frames.encode_parts((frames.run_head(0, seq, 1), part))


def resume(
    number: int, *, ask: bool = False, limits: tuple[frames.Limit, ...] = (), most: int = 1 << 24
) -> bytes:
    return frames.encode(frames.Resume(number, ask, most, 32, 1 << 19, limits))


def ours(number: int, *limits: frames.Limit, ask: bool) -> frames.Resume:
    """What the node says with the default configuration."""
    return frames.Resume(number, ask, 16 << 20, 32, 1 << 19, list(limits))


def start(number: int, *channels: frames.Channel) -> bytes:
    return frames.encode(frames.Start(number, channels or [frames.Channel(0, 0, 0, "default")]))


def pulled(node: Node, peer_id: str = "c") -> list[frames.Frame]:
    """All that it has to send now."""
    out = []
    while (data := node.delivery(peer_id).pull(65_536)) is not None:
        out.append(frames.decode(data))
    return out


def values(outputs: list[NodeOutput]) -> list[tuple[Path, Any]]:
    """What is delivered."""
    return [
        (output.path, each.value())
        for output in outputs
        if isinstance(output, Deliver)
        for each in output.messages
    ]


# --- presence -------------------------------------------------------------------------------------


def test_a_welcome_opens_links_and_the_smaller_id_dials() -> None:
    node = Node(MeshConfig(relay_after=None), peer_id="b", incarnation=MINE, random=lambda: 0.5)
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
    assert [o.path for o in out if isinstance(o, SendFrame)] == [1]
    assert sent(out) == [ours(1, ask=True)]
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
        node.frame_received("c", old, 1, message("late"), 1.1),
        node.forwarded("c", old, message("late"), 1.1),
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
    for incarnation, data in ((C1.incarnation, "old"), (C2.incarnation, "new")):
        node.frame_received("c", incarnation, 1, start(1), 1.1)
        out = node.frame_received("c", incarnation, 1, message(data), 1.1)
        assert values(out) == ([(Path.DIRECT, "new")] if data == "new" else [])


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


def test_what_is_half_there_of_those_that_left_is_kept_within_a_bound() -> None:
    config = MeshConfig(relay_after=0, receive_window=64 * 1024, max_message_size=64 * 1024)
    node = make(window=1 << 18, config=config)
    parts = frames.encode_message(Kind.BYTES, bytes(64 * 1024))[:3]
    data = frames.encode_parts([frames.run_head(0, 0, 3), *(part for part, _ in parts)])
    for number in range(20):
        who = Member("x", f"x-number-{number}")
        out = node.signaling(MemberJoined(who), 0.0) + node.tick(0.0)
        [resume] = [frames.decode(o.data) for o in out if isinstance(o, SendFrame)]
        assert isinstance(resume, frames.Resume)
        start = frames.Start(resume.round, [frames.Channel(0, 0, 0, "c")])
        for frame in (frames.encode(start), data):
            assert not events(node.forwarded("x", who.incarnation, frame, 0.0))
        assert node.delivery("x").half == 3 * frames.MAX_PART
        node.signaling(MemberLeft("x", who.incarnation, "left"), 0.0)
    assert sum(delivery.half for _, _, delivery in node._ended.values()) <= config.receive_window
    # The last to leave can still go on, and who was forgotten begins anew.
    for number, half in ((19, 3 * frames.MAX_PART), (0, 0)):
        who = Member("x", f"x-number-{number}")
        node.signaling(MemberJoined(who), 0.0)
        assert node.delivery("x").half == half
        assert node.taken("x", who.incarnation, 5, 1000) == []
        node.signaling(MemberLeft("x", who.incarnation, "left"), 0.0)


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
    out = node.frame_received("c", C1.incarnation, 1, frames.encode(frames.Bye()), 1.0)
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
        node.frame_received("c", C1.incarnation, 1, frames.encode(frames.Ping(1)), at)
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


def test_messages_are_delivered_and_acknowledged() -> None:
    node = make(C1)
    connect(node, C1)
    assert node.delivery("c").out is None, "nobody has asked us to send"
    out = node.frame_received("c", C1.incarnation, 1, resume(1, ask=True), 0.5)
    assert out == [Ready("c")]
    assert node.delivery("c").out == 1
    assert pulled(node) == [frames.Start(1, [])]
    node.frame_received("c", C1.incarnation, 1, start(1), 0.5)
    deliver, *rest = node.frame_received("c", C1.incarnation, 1, message({"a": 1}), 0.5)
    assert isinstance(deliver, Deliver)
    assert (deliver.peer_id, deliver.path, rest) == ("c", Path.DIRECT, [])
    (received,) = deliver.messages
    assert (received.value(), received.channel) == ({"a": 1}, "default")
    assert pulled(node) == []
    assert node.next_deadline() == 0.55, "the acknowledgement waits for more"
    assert Ready("c") in node.tick(0.55)
    assert pulled(node) == [frames.Ack([frames.Limit(0, 1, 1 << 19)])]
    assert node.taken("c", C1.incarnation, received.number, received.charge) == []
    assert node.taken("c", "c-before", received.number, received.charge) == []


def test_an_acknowledgement_is_armed_whatever_else_is_due() -> None:
    node = make(C1)
    connect(node, C1)
    node.frame_received("c", C1.incarnation, 1, resume(1), 0.1)
    node.frame_received("c", C1.incarnation, 1, start(1), 0.1)
    out = node.frame_received("c", C1.incarnation, 1, message(1), 0.1)
    assert Ready("c") in out, "the start is due"
    assert pulled(node) == [frames.Start(1, [])]
    assert node.next_deadline() == pytest.approx(0.15)


def test_what_is_taken_gives_credit() -> None:
    node = make(C1)
    connect(node, C1)
    node.frame_received("c", C1.incarnation, 1, resume(1), 1.0)
    node.frame_received("c", C1.incarnation, 1, start(1), 1.0)
    received: list[Received] = []
    for seq in range(10):
        for output in node.frame_received("c", C1.incarnation, 1, message(b"x" * 16_000, seq), 1.0):
            received += output.messages if isinstance(output, Deliver) else []
    assert len(received) == 10
    pulled(node)
    given = [node.taken("c", C1.incarnation, each.number, each.charge) for each in received]
    assert given[:4] == [[]] * 4
    assert given[4] == [Ready("c")], "an eighth of the window is worth a frame"
    (ack,) = pulled(node)
    assert ack == frames.Ack([frames.Limit(0, 10, (1 << 19) + 10 * 16_128)])


def test_pings_and_pongs() -> None:
    node = make(C1)
    connect(node, C1)
    out = node.frame_received("c", C1.incarnation, 1, frames.encode(frames.Ping(77)), 1.0)
    assert out == [Ready("c")]
    assert pulled(node) == [], "there is no path to send on"
    assert node.ping("c", 5) == []
    node.frame_received("c", C1.incarnation, 1, resume(1), 1.0)
    node.frame_received("c", C1.incarnation, 1, start(1), 1.0)
    node.frame_received("c", C1.incarnation, 1, message(1), 1.0)
    pulled(node)
    for nonce in (76, 77):
        node.frame_received("c", C1.incarnation, 1, frames.encode(frames.Ping(nonce)), 1.0)
    assert pulled(node) == [frames.Ack([frames.Limit(0, 1, 1 << 19)]), frames.Pong(77)]
    node.frame_received("c", C1.incarnation, 1, frames.encode(frames.Ping(0)), 1.0)
    assert pulled(node) == [], "nothing is waited for but acknowledgements"
    (ping,) = node.ping("c", 5)
    assert isinstance(ping, SendFrame)
    assert (ping.path, frames.decode(ping.data)) == (1, frames.Ping((1 << 31) + 5))
    assert node.frame_received("c", C1.incarnation, 1, frames.encode(frames.Pong(1)), 1.5) == []
    pong = frames.encode(frames.Pong((1 << 31) + 5))
    assert node.frame_received("c", C1.incarnation, 1, pong, 1.5) == [Ponged("c", 5)]
    assert node.link("c").rtt is None, "no probe was answered"
    assert node.ponged("c", C1.incarnation, 1, 2, 1.5) == []
    assert node.link("c").rtt is None, "nobody asked for that one"
    assert node.ponged("c", C1.incarnation, 1, 1, 1.5) == []
    assert node.link("c").rtt == 1.5


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
    out = node.frame_received("c", C1.incarnation, 1, frames.encode(frames.Pong(9)), 3.0)
    (change,) = events(out)
    assert (change.state, change.path) == (PeerState.CONNECTED, Path.DIRECT)
    assert sent(out) == [], "it is the same connection, and nothing of it was lost"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00",
        b"\xff",
        b"\x26",
        b"x" * 70_000,
        frames.encode(frames.Ping(1))[:-1],
        frames.encode(frames.Bye()) + b"x",
        frames.encode_parts((frames.run_head(9, 0, 1), b"\x03\x00")),
        message(1, seq=1),
        frames.encode_parts((frames.run_head(0, 0, 1), b"\x07\x01\xff")),
        frames.encode(frames.Ack([frames.Limit(0, 1, 1)])),
        frames.encode(frames.Open(5, "x")),
        resume(1, most=1),
    ],
    ids=repr,
)
def test_a_malformed_frame_ends_that_attempt_alone(data: bytes) -> None:
    node = make(A1, C1)
    connect(node, A1)
    connect(node, C1)
    node.frame_received("c", C1.incarnation, 1, start(1), 1.0)
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
    assert node.frame_received("c", C1.incarnation, 1, message("late"), 1.0) == []


def test_what_came_before_a_malformed_message_of_the_same_frame_is_delivered() -> None:
    node = make(C1)
    connect(node, C1)
    node.frame_received("c", C1.incarnation, 1, start(1), 1.0)
    data = frames.encode_parts((frames.run_head(0, 0, 2), b"\x07\x01a", b"\x07\x01\xff"))
    out = node.frame_received("c", C1.incarnation, 1, data, 1.0)
    assert values(out) == [(Path.DIRECT, "a")]
    assert isinstance(events(out)[0], BadInput)
    out = connect(node, C1, epoch=2, now=1.0)
    (again,) = sent(out)
    assert isinstance(again, frames.Resume)
    assert [limit.next for limit in again.limits] == [1]


def test_a_new_connection_goes_on_where_the_old_one_was() -> None:
    node = make(C1)
    connect(node, C1)
    node.delivery("c").accept(outgoing("mine"))
    node.frame_received("c", C1.incarnation, 1, resume(1), 1.0)
    node.frame_received("c", C1.incarnation, 1, start(1), 1.0)
    node.frame_received("c", C1.incarnation, 1, message("theirs"), 1.0)
    assert [type(frame) for frame in pulled(node)] == [frames.Start, frames.Parts, frames.Ping]
    node.connection_lost("c", C1.incarnation, 1, "cut", 2.0)
    assert node.delivery("c").out is None
    assert pulled(node) == []
    out = connect(node, C1, epoch=2, now=2.0)
    assert sent(out) == [ours(2, frames.Limit(0, 1, 1 << 19), ask=True)]
    assert node.frame_received("c", C1.incarnation, 1, message("late", 1), 2.0) == []
    node.frame_received("c", C1.incarnation, 2, resume(2), 2.0)
    again = pulled(node)
    assert again[0] == frames.Start(2, [frames.Channel(0, 0, 0, "default")])
    assert [type(frame) for frame in again[1:]] == [frames.Ack, frames.Parts, frames.Ping]
    node.frame_received("c", C1.incarnation, 2, start(2), 2.0)
    out = node.frame_received(
        "c", C1.incarnation, 2, message("again") + message("next", 1)[1:], 2.0
    )
    assert values(out) == [(Path.DIRECT, "next")]


def test_messages_are_kept_for_an_incarnation_that_comes_back() -> None:
    """And what the application has not taken of those before it went still counts."""
    node = make(C1)
    connect(node, C1)
    node.frame_received("c", C1.incarnation, 1, resume(1), 1.0)
    node.frame_received("c", C1.incarnation, 1, start(1), 1.0)
    out = node.frame_received("c", C1.incarnation, 1, message(b"x" * 10_000), 1.0)
    (received,) = next(output.messages for output in out if isinstance(output, Deliver))
    node.signaling(MemberLeft("c", C1.incarnation, "left"), 3.0)
    node.signaling(MemberJoined(C1), 4.0)
    out = connect(node, C1, epoch=node.link("c").epoch, now=4.0)
    (again,) = sent(out)
    assert isinstance(again, frames.Resume)
    assert (again.round, again.limits) == (2, [frames.Limit(0, 1, 1 << 19)])
    assert node.delivery("c").unread == received.charge
    node.signaling(MemberLeft("c", C1.incarnation, "left"), 5.0)
    assert node.taken("c", C1.incarnation, received.number, received.charge) == []
    node.signaling(MemberJoined(C1), 6.0)
    assert node.delivery("c").unread == 0


# --- the relay as a path --------------------------------------------------------------------------

WINDOW = 256 * 1024


def ticked(node: Node, to: float) -> list[NodeOutput]:
    """Time passes, moment by moment."""
    out: list[NodeOutput] = []
    while (at := node.next_deadline()) is not None and at <= to:
        out += node.tick(at)
    return out


def over_relay(outputs: list[NodeOutput]) -> list[frames.Frame]:
    return [
        frames.decode(output.data)
        for output in outputs
        if isinstance(output, SendFrame) and output.path == RELAY
    ]


def relayed(config: MeshConfig | None = None, member: Member = C1) -> Node:
    """With a path over the relay that was asked for, and answered."""
    node = make(member, window=WINDOW, config=config)
    ticked(node, 3.0)
    node.forwarded(member.peer_id, member.incarnation, resume(1), 3.0)
    assert node.path_of(member.peer_id) is Path.RELAY
    return node


def test_without_a_direct_path_data_flows_over_the_relay() -> None:
    node = make(C1, window=WINDOW)
    node.delivery("c").accept(outgoing("early"))
    assert over_relay(ticked(node, 2.9)) == []
    assert over_relay(ticked(node, 3.0)) == [ours(1, ask=True)]
    assert node.state_of("c") is PeerState.CONNECTING
    out = node.forwarded("c", C1.incarnation, resume(1), 3.1)
    (change,) = events(out)
    assert change == PeerStateChanged(
        peer_id="c",
        incarnation=C1.incarnation,
        name="Cee",
        previous=PeerState.CONNECTING,
        state=PeerState.CONNECTED,
        path=Path.RELAY,
        reason="no direct path for 3 s",
        epoch=1,
    )
    (report,) = reports(out)
    assert (report.state, report.path, report.ice_state) == (PeerState.CONNECTED, Path.RELAY, "new")
    assert out[-1] == Ready("c")
    assert (node.delivery("c").out, node.link("c").carried) == (RELAY, True)
    assert [type(frame) for frame in pulled(node)] == [frames.Start, frames.Parts, frames.Ping]
    node.forwarded("c", C1.incarnation, start(1), 3.2)
    out = node.forwarded("c", C1.incarnation, message("hello"), 3.2)
    assert values(out) == [(Path.RELAY, "hello")]


def test_who_is_asked_for_the_relay_goes_along() -> None:
    node = make(C1, window=WINDOW)
    out = node.forwarded("c", C1.incarnation, resume(1, ask=True), 1.0)
    assert node.delivery("c").out == RELAY
    assert pulled(node) == [ours(1, ask=False), frames.Start(1, [])]
    (change,) = events(out)
    assert (change.path, change.reason) == (Path.RELAY, "the other side asks for the relay")


def test_from_the_first_moment_over_the_relay() -> None:
    node = make(C1, window=WINDOW, config=MeshConfig(relay_after=0.0))
    assert node.next_deadline() == 0.0
    assert [type(frame) for frame in over_relay(node.tick(0.0))] == [frames.Resume]


@pytest.mark.parametrize(
    ("window", "relay_after"), [(0, 0.0), (WINDOW, None)], ids=["not forwarded", "not wanted"]
)
def test_never_over_the_relay(window: int, relay_after: float | None) -> None:
    node = make(C1, window=window, config=MeshConfig(relay_after=relay_after))
    out = ticked(node, 60.0)
    assert node.forwarded("c", C1.incarnation, resume(1, ask=True), 61.0) == []
    assert node.forwarded("c", C1.incarnation, b"", 61.0) == []
    assert over_relay(out) == []
    assert node.delivery("c").out is None
    assert node.path_of("c") is None


def test_the_direct_path_takes_over() -> None:
    node = relayed()
    node.delivery("c").accept(outgoing("begun over the relay"))
    pulled(node)
    out = connect(node, C1, now=4.0)
    assert [o.path for o in out if isinstance(o, SendFrame)] == [1]
    assert sent(out) == [ours(2, ask=True)]
    assert events(out) == [], "it is connected, as it was"
    assert [report.path for report in reports(out)] == [Path.DIRECT]
    assert node.delivery("c").out == RELAY, "until the other side wants it there"
    node.frame_received("c", C1.incarnation, 1, resume(2), 4.1)
    assert node.delivery("c").out == 1
    assert [type(frame) for frame in pulled(node)] == [frames.Start, frames.Parts, frames.Ping]
    assert not node.link("c").carried
    assert over_relay(ticked(node, 6.0)) == []


def test_a_link_that_falls_silent_gives_way_to_the_relay() -> None:
    node = make(C1, window=WINDOW)
    connect(node, C1)
    out = ticked(node, 2.5)
    (change,) = events(out)
    assert change.state is PeerState.DISCONNECTED
    node.forwarded("c", C1.incarnation, resume(1, ask=True), 2.6)
    assert node.state_of("c") is PeerState.CONNECTED
    assert node.path_of("c") is Path.RELAY
    assert node.ice_state_of("c") == "disconnected"
    # Heard again over the connection, whose messages may have come while we listened elsewhere.
    out = node.heard("c", C1.incarnation, 1, True, 2.7)
    assert sent(out) == [ours(3, ask=True)]
    assert [report.path for report in reports(out)] == [Path.DIRECT]


def test_an_answer_on_the_direct_path_that_we_receive_on_is_not_needed() -> None:
    node = make(C1, window=WINDOW)
    connect(node, C1)
    out = node.frame_received("c", C1.incarnation, 1, resume(1, ask=True), 0.1)
    assert sent(out) == []
    assert pulled(node) == [frames.Start(1, [])]
    node.forwarded("c", C1.incarnation, resume(2, ask=True), 0.2)
    assert pulled(node) == [ours(2, ask=False), frames.Start(2, [])]
    node.frame_received("c", C1.incarnation, 1, resume(3, ask=True), 0.3)
    assert pulled(node) == [ours(3, ask=False), frames.Start(3, [])]
    assert node.path_of("c") is Path.DIRECT


def test_silence_over_the_relay_is_disconnected_and_asked_again() -> None:
    node = relayed()
    out = ticked(node, 5.4)
    pings = [frame for frame in over_relay(out) if isinstance(frame, frames.Ping)]
    assert [ping.nonce for ping in pings] == [1, 2, 3]
    out = ticked(node, 5.5)
    (change,) = events(out)
    assert (change.state, change.path) == (PeerState.DISCONNECTED, None)
    assert change.reason == "nothing heard over the relay for 2.5 s"
    (again,) = over_relay(out)
    assert isinstance(again, frames.Resume)
    assert again.ask
    out = node.forwarded("c", C1.incarnation, resume(2), 6.0)
    (change,) = events(out)
    assert (change.state, change.path) == (PeerState.CONNECTED, Path.RELAY)


def test_the_round_trip_over_the_relay() -> None:
    node = relayed()
    assert node.rtt_of("c") is None
    (ping,) = over_relay(ticked(node, 3.0))
    assert isinstance(ping, frames.Ping)
    connect(node, C1, now=3.1)
    node.forwarded("c", C1.incarnation, resume(2, ask=True), 3.1)
    node.tick(3.1)
    pong = frames.encode(frames.Pong(ping.nonce + 1))
    node.frame_received("c", C1.incarnation, 1, pong, 3.2)
    assert node.rtt_of("c") is None, "that came another way"
    node.forwarded("c", C1.incarnation, pong, 3.35)
    assert node.rtt_of("c") == pytest.approx(0.25)
    pong = frames.encode(frames.Pong((1 << 31) + 7))
    assert node.forwarded("c", C1.incarnation, pong, 3.4) == [Ponged("c", 7)]
    pulled(node)
    node.forwarded("c", C1.incarnation, frames.encode(frames.Ping(9)), 3.5)
    assert pulled(node) == [frames.Pong(9)]
    (ours,) = node.ping("c", 1)
    assert isinstance(ours, SendFrame)
    assert ours.path == RELAY


def test_who_speaks_over_the_relay_is_heard() -> None:
    node = relayed()
    now = 3.1
    while now < 20.0:
        now += 1.0
        ticked(node, now)
        node.forwarded("c", C1.incarnation, frames.encode(frames.Pong(0)), now)
    assert node.path_of("c") is Path.RELAY


def test_signalling_that_is_lost_takes_the_relay_with_it_and_brings_it_back() -> None:
    node = relayed()
    pulled(node)
    out = node.signaling_lost(4.0)
    (change,) = events(out)
    assert (change.previous, change.state) == (PeerState.CONNECTED, PeerState.DISCONNECTED)
    assert (change.path, change.reason) == (None, "the relay can't be reached")
    assert node.delivery("c").out is None
    node.delivery("c").accept(outgoing("meanwhile"))
    assert pulled(node) == []
    assert node.forwarded("c", C1.incarnation, resume(9, ask=True), 4.5) == []
    node.signaling(welcome(resumed=True, window=WINDOW), 5.0)
    (again,) = over_relay(ticked(node, 5.0))
    assert isinstance(again, frames.Resume)
    assert (again.round, again.ask) == (2, True)
    node.forwarded("c", C1.incarnation, resume(2), 5.1)
    assert [type(frame) for frame in pulled(node)] == [frames.Start, frames.Parts, frames.Ping]
    assert node.state_of("c") is PeerState.CONNECTED


def test_a_member_that_the_service_misses_is_not_there_over_the_relay() -> None:
    node = relayed()
    out = node.signaling(welcome(window=WINDOW), 4.0)
    assert events(out)[0].state is PeerState.DISCONNECTED
    assert node.forwarded("c", C1.incarnation, resume(9, ask=True), 4.1) == []
    node.signaling(MemberJoined(C1), 5.0)
    assert [type(frame) for frame in over_relay(ticked(node, 5.0))] == [frames.Resume]


@pytest.mark.parametrize(
    "data",
    [b"", b"\x26", message("gap", 5), resume(9, most=1)],
    ids=["empty", "version", "gap", "limit"],
)
def test_a_malformed_frame_over_the_relay_ends_that_path_alone(data: bytes) -> None:
    node = relayed()
    node.forwarded("c", C1.incarnation, start(1), 3.2)
    out = node.forwarded("c", C1.incarnation, data, 4.0)
    told, change = events(out)
    assert isinstance(told, BadInput)
    assert (change.state, change.reason) == (PeerState.DISCONNECTED, "a fault over the relay")
    assert node.link("c").state is LinkState.OFFERING, "the link goes on by itself"
    assert node.delivery("c").out is None
    assert over_relay(ticked(node, 4.9)) == []
    assert len(over_relay(ticked(node, 5.0))) == 1, "it is asked again after a while"


def test_a_malformed_frame_over_the_relay_does_not_harm_a_direct_path() -> None:
    node = make(C1, window=WINDOW)
    connect(node, C1)
    node.frame_received("c", C1.incarnation, 1, resume(1), 0.1)
    out = node.forwarded("c", C1.incarnation, b"", 0.2)
    assert len(out) == 1
    assert isinstance(events(out)[0], BadInput)
    assert (node.delivery("c").out, node.path_of("c")) == (1, Path.DIRECT)


def test_who_sends_nothing_but_nonsense_over_the_relay_is_told_of_now_and_then() -> None:
    node = relayed()
    told = [
        any(
            isinstance(event, BadInput)
            for event in events(node.forwarded("c", C1.incarnation, b"", at))
        )
        for at in (3.0, 3.1, 3.9, 4.0, 4.5, 5.0)
    ]
    assert told == [True, False, False, True, False, True]


def test_who_was_connected_over_the_relay_is_never_new_again() -> None:
    """The side that is not dialled has no attempt that it could be connecting with."""
    node = relayed(member=A1)
    assert node.link("a").epoch == 0
    (change,) = events(node.signaling_lost(4.0))
    assert change.state is PeerState.DISCONNECTED


def test_a_link_that_fails_is_not_told_while_the_relay_carries() -> None:
    node = relayed()
    told: list[Any] = []
    now = 3.1
    while node.link("c").state is not LinkState.FAILED:
        now += 0.5
        told += events(ticked(node, now))
        node.forwarded("c", C1.incarnation, frames.encode(frames.Pong(0)), now)
    assert told == []
    assert node.state_of("c") is PeerState.CONNECTED
    (change,) = events(node.signaling_lost(now))
    assert change.state is PeerState.DISCONNECTED, "it is the relay that failed just now"


def test_a_goodbye_over_the_relay() -> None:
    node = relayed()
    out = node.forwarded("c", C1.incarnation, frames.encode(frames.Bye()), 4.0)
    change, left = events(out)
    assert (change.state, change.path) == (PeerState.CLOSED, None)
    assert isinstance(left, PeerLeft)
    assert left.reason == "left"
    assert node.next_deadline() is None


def test_our_goodbye_goes_where_data_goes() -> None:
    node = make(A1, C1, window=WINDOW)
    connect(node, A1)
    connect(node, C1)
    ticked(node, 2.6)  # both fall silent
    node.forwarded("c", C1.incarnation, resume(1, ask=True), 2.6)
    out = node.close(2.7)
    byes = [o for o in out if isinstance(o, SendFrame)]
    assert [(o.peer_id, o.path) for o in byes] == [("a", 1), ("c", RELAY)]
    assert {type(frame) for frame in sent(out)} == {frames.Bye}


def test_who_was_replaced_or_removed_says_no_goodbye() -> None:
    """The relay tells the others, and which of the two came first would be chance."""
    node = make(A1, C1, window=WINDOW)
    connect(node, A1)
    node.frame_received("a", A1.incarnation, 1, message("a"), 1.0)
    out = node.close(1.0, leaves=False)
    assert frames.Bye not in {type(each) for each in sent(out)}
    assert [event.reason for event in events(out) if isinstance(event, PeerLeft)] == ["closed"] * 2


# --- what did not arrive --------------------------------------------------------------------------


def test_what_was_not_acknowledged_is_told_before_the_peer_has_left() -> None:
    node = make(C1)
    connect(node, C1)
    node.frame_received("c", C1.incarnation, 1, resume(1), 1.0)
    for data in (1, "two", b"3"):
        node.delivery("c").accept(outgoing(data))
    pulled(node)
    ack = frames.encode(frames.Ack([frames.Limit(0, 1, 1 << 19)]))
    node.frame_received("c", C1.incarnation, 1, ack, 1.1)
    told = events(node.signaling(MemberJoined(C2), 2.0))
    assert told[0] == MessagesUndelivered(
        peer_id="c",
        incarnation=C1.incarnation,
        messages=(UndeliveredMessage("two", "default"), UndeliveredMessage(b"3", "default")),
    )
    assert [type(event) for event in told[1:3]] == [PeerStateChanged, PeerLeft]
    assert not node.delivery("c").unsent, "the new incarnation has a delivery of its own"


def test_when_all_was_acknowledged_nothing_is_told() -> None:
    node = make(C1)
    connect(node, C1)
    told = events(node.signaling(MemberLeft("c", C1.incarnation, "left"), 2.0))
    assert [type(event) for event in told] == [PeerStateChanged, PeerLeft]


def test_what_turns_out_to_be_too_large_for_the_other_side_is_told() -> None:
    node = make(C1)
    connect(node, C1)
    node.delivery("c").accept(outgoing(b"x" * 5000))
    node.delivery("c").accept(outgoing("fits"))
    out = node.frame_received("c", C1.incarnation, 1, resume(1, most=1024), 1.0)
    (told,) = events(out)
    assert isinstance(told, MessagesUndelivered)
    assert told.messages == (UndeliveredMessage(b"x" * 5000, "default"),)
    assert out[-1] == Ready("c")


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
    assert node.ice_state(*c1, "checking", 1.5) == []
    (report,) = reports(node.pair_selected(*c1, 0, TURN, 2.0))
    assert (report.state, report.ice_state) == (PeerState.CONNECTING, "checking")
    assert (report.pair, report.path) == (TURN, None), "nothing flows yet"
    assert report.reason == "a candidate pair was selected"
    assert node.ice_state(*c1, "connected", 2.5) == []
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
    assert node.ice_state(*c1, "closed", 7.0) == []
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


def named(*urls: str, password: str = "password", user: str = "user") -> IceServers:
    return IceServers([IceServerInfo(list(urls), user, password)], 600.0)


def over_turn() -> Node:
    """Connected to "a" directly, and to "c" over the server that was named."""
    node = make(A1, C1)
    assert isinstance(node.signaling(SERVERS, 0.0)[0], UseServers)
    for member, pair in ((A1, DIRECT), (C1, TURN)):
        connect(node, member)
        node.pair_selected(member.peer_id, member.incarnation, 1, 0, pair, 0.0)
    return node


def test_new_turn_credentials_restart_what_goes_over_turn() -> None:
    node = over_turn()
    use, run = node.signaling(named("turn:turn.example.org", password="new"), 1.0)
    assert use == UseServers(
        (IceServer(urls=["turn:turn.example.org"], username="user", credential="new"),)
    )
    assert run == Run("c", C1.incarnation, 1, MakeOffer(1))
    # What carries data goes on doing so until its successor takes over.
    assert (node.state_of("c"), node.path_of("c")) == (PeerState.CONNECTED, Path.TURN)
    assert signals(node.operation_done("c", C1.incarnation, 1, MakeOffer(1), SDP, 1.1))
    node.signaling(signal(C1, 1, Answer(SDP, 1)), 1.2)
    out = node.pair_selected("c", C1.incarnation, 1, 1, TURN, 1.3)
    assert events(out) == []
    assert [(r.state, r.path, r.generation) for r in reports(out)] == [
        (PeerState.CONNECTED, Path.TURN, 1)
    ]
    assert node.signaling(named("turn:turn.example.org", password="new"), 2.0) == []


@pytest.mark.parametrize(
    "servers",
    [
        SERVERS.servers,
        [*SERVERS.servers, IceServerInfo(["stun:stun.example.org"])],
        [*SERVERS.servers, IceServerInfo(["turn:other.example.org"], "new", "new")],
        [IceServerInfo(["turn:other.example.org", "turn:turn.example.org"], "user", "password")],
    ],
)
def test_servers_that_are_not_in_use_restart_nothing(servers: list[IceServerInfo]) -> None:
    node = over_turn()
    out = node.signaling(IceServers(servers, 300.0), 1.0)
    assert runs(out) == []
    assert bool(out) is (servers != SERVERS.servers), "but whoever connects next has them"


def test_a_server_that_is_not_named_any_more_is_left() -> None:
    node = over_turn()
    out = node.signaling(named("turn:other.example.org"), 1.0)
    assert runs(out) == [Run("c", C1.incarnation, 1, MakeOffer(1))]


def test_the_allocation_of_the_other_side_is_its_own_business() -> None:
    node = make(C1)
    node.signaling(SERVERS, 0.0)
    connect(node, C1)
    node.pair_selected("c", C1.incarnation, 1, 0, CandidatePair(HOST, OVER), 0.0)
    assert node.path_of("c") is Path.TURN
    assert runs(node.signaling(named("turn:turn.example.org", password="new"), 1.0)) == []


def test_servers_in_the_welcome_are_there_before_anybody_is_dialled() -> None:
    node = Node(MeshConfig(), peer_id="b", incarnation=MINE, random=lambda: 0.5)
    out = node.signaling(welcome(C1, servers=SERVERS), 0.0)
    kinds = [type(output) for output in out if isinstance(output, UseServers | Run)]
    assert kinds == [UseServers, Run]


@pytest.mark.parametrize("resumed", [True, False])
def test_new_credentials_in_a_later_welcome_restart_what_goes_over_turn(resumed: bool) -> None:
    node = over_turn()
    node.signaling_lost(1.0)
    out = node.signaling(welcome(A1, C1, resumed=resumed, servers=SERVERS), 2.0)
    assert runs(out) == [], "the same as before"
    node.signaling_lost(3.0)
    new = named("turn:turn.example.org", password="new")
    out = node.signaling(welcome(A1, C1, resumed=resumed, servers=new), 4.0)
    assert [type(output) for output in out if isinstance(output, UseServers | Run)] == [
        UseServers,
        Run,
    ]
    assert runs(out) == [Run("c", C1.incarnation, 1, MakeOffer(1))]
    assert node.signaling(welcome(A1, C1, resumed=True), 5.0) == [], "none is not: no more"


def test_a_notice_is_told() -> None:
    node = make(C1)
    told = node.signaling(Notice("a restart at noon"), 1.0)
    assert told == [Tell(NoticeReceived(text="a restart at noon"))]


def test_the_operator_may_ask_for_a_restart_with_one_or_with_all() -> None:
    node = make(A1, C1)
    for member in (A1, C1):
        connect(node, member)
    one = Run("c", C1.incarnation, 1, MakeOffer(1))
    assert runs(node.signaling(RestartIce("c"), 1.0)) == [one]
    assert node.signaling(RestartIce("nobody"), 1.0) == []
    assert runs(node.signaling(RestartIce(), 1.0)) == [Run("a", A1.incarnation, 1, MakeOffer(2))]
    node.operation_done("c", C1.incarnation, 1, MakeOffer(1), SDP, 1.1)
    node.signaling(signal(C1, 1, Answer(SDP, 1)), 1.2)
    (report,) = reports(node.pair_selected("c", C1.incarnation, 1, 1, DIRECT, 1.3))
    assert report.reason == "ICE restart took over: the operator of the relay asks for it"


# --- reports --------------------------------------------------------------------------------------


def link_reports(outputs: list[NodeOutput]) -> list[LinkReport]:
    return [link for output in outputs if isinstance(output, ReportLinks) for link in output.links]


def wait(node: Node, until: float) -> list[LinkReport]:
    """What is told to the service meanwhile."""
    out: list[LinkReport] = []
    while (at := node.next_deadline()) is not None and at <= until:
        out += link_reports(node.tick(at))
    return out


def test_what_is_reported_of_a_link_from_its_beginning_to_its_end() -> None:
    node = make(C1, reports=15.0)
    c1 = ("c", C1.incarnation)
    (first,) = wait(node, 1.0)
    assert first == LinkReport(
        peer_id="c",
        incarnation=C1.incarnation,
        state="connecting",
        ice_state="new",
        reason="dialling",
        attempts=1,
    )
    node.ice_state(*c1, 1, "checking", 1.0)
    (second,) = wait(node, 1.5)
    assert (second.ice_state, second.successes) == ("checking", 0)
    node.operation_failed(*c1, 1, MakeOffer(), ConnectionFailed("no\nroute"), 2.0)
    connect(node, C1, epoch=2, now=2.5)
    node.ponged(*c1, 2, 1, 2.5124)
    node.pair_selected(*c1, 2, 0, TURN, 2.6)
    (third,) = wait(node, 2.9)
    assert third == LinkReport(
        peer_id="c",
        incarnation=C1.incarnation,
        state="connected",
        ice_state="new",
        path="turn",
        rtt=0.012,
        reason="a candidate pair was selected",
        failure="no\ufffdroute",
        attempts=2,
        successes=1,
        failures=1,
        connect_time=0.5,
    )
    node.frame_received(*c1, 2, resume(1), 3.0)
    assert len(pulled(node)) > 0
    node.delivery("c").accept(outgoing("hello"))
    assert len(pulled(node)) == 2
    ack = frames.encode(frames.Ack([frames.Limit(0, 1, 1 << 19)]))
    node.frame_received(*c1, 2, ack, 3.1)
    node.frame_received(*c1, 2, start(1), 3.1)
    node.frame_received(*c1, 2, message("hi!"), 3.1)
    assert wait(node, 3.4) == [], "figures are told at the interval"
    node.signaling(MemberLeft("c", C1.incarnation, "left"), 4.0)
    (last,) = wait(node, 60.0)
    assert last == replace(
        third,
        state="closed",
        ice_state="closed",
        path=None,
        reason="left",
        messages=1,
        bytes_sent=5,
        bytes_received=3,
    )


def test_figures_are_reported_at_the_interval() -> None:
    node = make(C1, reports=15.0)
    connect(node, C1)
    wait(node, 1.0)
    node.frame_received("c", C1.incarnation, 1, resume(1), 1.0)
    node.delivery("c").accept(outgoing("hello"))
    while (at := node.next_deadline()) is not None and at < DELAY + 15.0:
        assert link_reports(node.tick(at)) == []
        node.heard("c", C1.incarnation, 1, True, at)
    (link,) = link_reports(node.tick(DELAY + 15.0))
    assert (link.bytes_sent, link.state) == (5, "connected")


def test_a_fall_back_to_the_relay_is_counted_and_the_next_one_too() -> None:
    node = make(C1, window=1 << 18, reports=15.0)
    seen: list[tuple[str, str | None, int, str]] = []

    def told(until: float) -> None:
        seen.extend((r.state, r.path, r.fallbacks, r.failure) for r in wait(node, until))

    told(3.5)
    node.forwarded("c", C1.incarnation, resume(1, ask=False), 3.5)
    told(3.9)
    told(6.5)
    node.forwarded("c", C1.incarnation, resume(2, ask=True), 6.5)
    told(6.9)
    assert seen == [
        ("connecting", None, 0, ""),
        ("connected", "relay", 1, ""),
        ("disconnected", None, 1, "nothing heard over the relay for 2.5 s"),
        ("connected", "relay", 2, "nothing heard over the relay for 2.5 s"),
    ]


def test_to_leave_the_relay_for_a_direct_path_is_no_failure() -> None:
    node = make(C1, window=1 << 18, reports=15.0)
    wait(node, 3.5)
    node.forwarded("c", C1.incarnation, resume(1, ask=False), 3.5)
    connect(node, C1, now=4.0)
    (link,) = wait(node, 4.4)
    assert (link.path, link.fallbacks, link.failure) == ("direct", 1, "")


@pytest.mark.parametrize("path", ["direct", "relay"])
def test_the_first_round_trip_is_told_soon_and_the_next_ones_at_the_interval(path: str) -> None:
    node = make(C1, window=1 << 18, reports=15.0)
    if path == "relay":
        wait(node, 3.5)
        node.forwarded("c", C1.incarnation, resume(1, ask=False), 3.5)
    else:
        connect(node, C1, now=3.5)
    (link,) = wait(node, 3.8)
    assert (link.path, link.rtt) == (path, None)
    nonce = 1
    for at, told in ((4.0, [0.5]), (4.5, [])):
        if path == "relay":
            data = frames.encode(frames.Pong(nonce))
            node.forwarded("c", C1.incarnation, data, at)
        else:
            node.ponged("c", C1.incarnation, 1, nonce, at)
            node.link("c").ping(at)
        nonce += 1
        assert [link.rtt for link in wait(node, at + DELAY)] == told


def test_no_reports_without_being_asked_and_none_while_the_service_is_away() -> None:
    node = make(C1)
    connect(node, C1)
    assert wait(node, 2.0) == []
    node = make(C1, reports=15.0)
    connect(node, C1)
    node.signaling_lost(0.1)
    assert wait(node, 2.0) == []
    node.signaling(welcome(C1, resumed=True, reports=15.0), 2.0)
    assert [link.peer_id for link in wait(node, 2.0 + DELAY)] == ["c"]


def test_what_is_counted_goes_on_when_the_same_incarnation_is_back() -> None:
    node = make(C1, reports=15.0)
    connect(node, C1)
    node.delivery("c").accept(outgoing("hello"))
    node.signaling(MemberLeft("c", C1.incarnation, "left"), 1.0)
    node.signaling(MemberJoined(C1), 1.1)
    connect(node, C1, epoch=2, now=1.1)
    (link,) = wait(node, 1.2)  # and not the end as well
    assert (link.state, link.attempts, link.successes, link.bytes_sent) == ("connected", 2, 2, 5)
    node.signaling(MemberJoined(C2), 2.0)
    ended, link = wait(node, 2.2)
    assert (ended.state, ended.attempts, ended.reason) == ("closed", 2, "superseded")
    assert (link.incarnation, link.attempts, link.bytes_sent) == (C2.incarnation, 1, 0)


def test_a_reason_in_a_report_is_of_as_many_bytes_as_it_may_have() -> None:
    node = make(C1, reports=15.0)
    connect(node, C1)
    node.connection_lost("c", C1.incarnation, 1, "\u20ac" * 300, 0.5)
    (link,) = wait(node, 0.5 + DELAY)
    assert link.reason == "connection lost: " + "\u20ac" * 61


def test_a_link_that_ends_by_itself_is_reported_and_no_more() -> None:
    """Its seat ran out while its path lived on; then that went as well."""
    node = make(A1, reports=15.0)
    connect(node, A1)
    node.signaling(MemberLeft("a", A1.incarnation, "timeout"), 0.5)
    seen = wait(node, 60.0)
    assert [link.state for link in seen] == ["connected", "disconnected", "closed"]
    assert seen[-1].reason == "timeout"
    assert "a" not in node._peers


@pytest.mark.parametrize(("rtt", "told"), [(0.00043219, 0.0004), (0.0123456, 0.012), (1.5, 1.5)])
def test_a_round_trip_is_told_as_fine_as_it_says_something(rtt: float, told: float) -> None:
    node = make(C1, reports=15.0)
    connect(node, C1)
    node.ponged("c", C1.incarnation, 1, 1, rtt)
    assert [link.rtt for link in wait(node, 2.0)][-1] == told


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
    assert node.ice_state(*old, "connected", 1.0) == []
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
    assert out[0] == SendFrame("c", 1, frames.encode(frames.Bye()))
    assert runs(out) == [Run("c", C1.incarnation, 1, CloseConnection())]
    left = [event for event in events(out) if isinstance(event, PeerLeft)]
    assert [(event.peer_id, event.reason) for event in left] == [("a", "closed"), ("c", "closed")]
    assert node.next_deadline() is None
    assert node.tick(100.0) == []
    assert node.close(100.0) == []


# --- deadlines ------------------------------------------------------------------------------------


def drawn(rng: random.Random, *, bye: bool = True) -> bytes:
    """Some frame."""
    number = rng.randrange(5)
    return rng.choice(
        (
            b"",
            frames.encode(frames.Ping(number)),
            frames.encode(frames.Pong(number)),
            frames.encode(frames.Bye()) if bye else b"",
            resume(number, ask=rng.random() < 0.5),
            start(number),
            message(number, number),
            message(0),
            frames.encode(frames.Ack([frames.Limit(0, number, 1 << 19)])),
        )
    )


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32))
def test_no_deadline_is_missed(seed: int) -> None:
    rng = random.Random(seed)
    node = Node(MeshConfig(), peer_id="m", incarnation=MINE, random=rng.random)
    everybody = [Member(name, f"{name}-first-{i}") for name in "akoz" for i in range(2)]
    now = 0.0

    def check() -> None:
        parts = [
            part.next_deadline()
            for peer in node._peers.values()
            for part in (peer.link, peer.route, peer.delivery)
        ]
        times = [at for at in (*parts, node._mesh.next_deadline()) if at is not None]
        # It may come too early, where a deadline has moved on; never too late.
        earliest = min(times, default=None)
        at = node.next_deadline()
        assert earliest is None or (at is not None and at <= earliest)

    for _ in range(80):
        member = rng.choice(everybody)
        peer = node._peers.get(member.peer_id)
        epoch = 0 if peer is None else max(0, peer.link.epoch + rng.choice((0, 0, 0, 1)))
        incarnation = member.incarnation
        match rng.randrange(13):
            case 0 | 1:
                node.signaling(MemberJoined(member), now)
            case 2:
                reason = rng.choice(("left", "timeout"))
                node.signaling(MemberLeft(member.peer_id, incarnation, reason), now)
            case 3:
                members = {m.peer_id: m for m in rng.sample(everybody, rng.randrange(4))}
                node.signaling(welcome(*members.values(), window=rng.choice((0, WINDOW))), now)
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
                node.frame_received(member.peer_id, peer.member.incarnation, epoch, drawn(rng), now)
            case 11 if peer is not None:
                node.forwarded(member.peer_id, peer.member.incarnation, drawn(rng), now)
                if member.peer_id in node._peers:
                    node.delivery(member.peer_id).pull(1000)
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
                    data = drawn(rng, bye=False)
                    said(node.frame_received(peer_id, incarnation, at, data, now))
                    said(node.forwarded(peer_id, incarnation, drawn(rng, bye=False), now))
            case _:
                said(node.tick(now))
