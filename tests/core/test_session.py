"""The session alone: each row of its table, what it says when, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from meshpeer.config import MeshConfig
from meshpeer.core.forward import (
    FORWARD_SLACK,
    MAX_FORWARD,
    ForwardRoom,
    FrameIn,
    decode_forward,
    encode_forward,
)
from meshpeer.core.messages import (
    MAX_REPORTS,
    VERSION,
    Ack,
    Forwarded,
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
    Notice,
    Pong,
    Refused,
    RelayMessage,
    Report,
    RestartIce,
    SignalIn,
    SignalOut,
    Update,
    Welcome,
    decode_client,
    encode,
)
from meshpeer.core.session import (
    ACK_AFTER,
    ACK_EVERY,
    ANSWER_TIMEOUT,
    MAX_REPORT,
    MAX_SIGNAL,
    RESTART_PATIENCE,
    TABLE,
    Connect,
    Disconnect,
    Fail,
    Input,
    Lost,
    Output,
    Session,
    State,
    Tell,
    Transmit,
    TransmitFrame,
)
from meshpeer.errors import (
    Forbidden,
    IdentityReplaced,
    InvalidData,
    MessageTooLarge,
    PeerIdTaken,
    RefusedError,
    Removed,
    RoomFull,
    SignalingBacklog,
    Unauthorized,
    UnexpectedInput,
)

CONFIG = MeshConfig(signaling_retry_first=0.5, signaling_retry_max=30.0, max_pending_signals=100)
WINDOW = 256 * 1024
JOIN = Join(version=VERSION, room="lobby", peer_id="ann", incarnation="ann-one-1", name="Ann")
WELCOME = Welcome(
    version=VERSION,
    room="lobby",
    peer_id="ann",
    incarnation="ann-one-1",
    token="t" * 16,
    session="s" * 16,
    seat_timeout=30.0,
    forward_window=WINDOW,
    report_interval=15.0,
)
BOB = Member(peer_id="bob", incarnation="bob-one-1")
SIGNAL_IN = SignalIn(
    sender="bob", incarnation="bob-one-1", to_incarnation="ann-one-1", epoch=1, body=Raw(b"{}")
)
REPORT = LinkReport(peer_id="bob", incarnation="bob-one-1", state="connected", ice_state="new")


def signal(epoch: int = 1) -> SignalOut:
    return SignalOut(to="bob", to_incarnation="bob-one-1", epoch=epoch, body=Raw(b'{"x":1}'))


def replaced(message: Any, **changes: Any) -> Any:
    return type(message)(**{f: getattr(message, f) for f in message.__struct_fields__} | changes)


def said(outputs: list[Output]) -> list[Any]:
    """What is transmitted among the outputs, decoded. The number of a join is not looked at."""
    messages = [decode_client(output.data) for output in outputs if isinstance(output, Transmit)]
    return [replaced(m, attempt=0) if isinstance(m, Join) else m for m in messages]


class Ann:
    """A session and its clock."""

    def __init__(self, config: MeshConfig = CONFIG, *, random: float = 0.0) -> None:
        self.random = random
        self.session = Session(config, random=lambda: self.random)
        self.now = 1000.0

    @property
    def state(self) -> State:
        return self.session.state

    def open(self, join: Join = JOIN) -> list[Output]:
        return self.session.open(join, self.now)

    def connected(self) -> list[Output]:
        return self.session.connected(self.now)

    def hears(self, message: RelayMessage | bytes) -> list[Output]:
        data = message if isinstance(message, bytes) else encode(message)
        return self.session.received(data, self.now)

    def dropped(self) -> list[Output]:
        return self.session.dropped("cut", self.now)

    def waits(self) -> list[Output]:
        """Until the next deadline, which must be there."""
        deadline = self.session.next_deadline()
        assert deadline is not None
        assert self.session.tick(deadline - 0.001) == []
        self.now = deadline
        return self.session.tick(self.now)

    def reach(self, state: State) -> Ann:
        steps: dict[State, Callable[[], object]] = {
            State.NEW: lambda: None,
            State.CONNECTING: self.open,
            State.JOINING: lambda: (self.open(), self.connected()),
            State.SEATED: self.seat,
            State.WAITING: lambda: (self.open(), self.session.connection_failed("no", self.now)),
            State.CLOSED: lambda: self.session.close(self.now),
        }
        steps[state]()
        assert self.state is state
        return self

    def seat(self) -> list[Output]:
        self.open()
        self.connected()
        return self.hears(WELCOME)

    def comes_back(self, **welcome: Any) -> list[Output]:
        """After a drop: reconnect and hear a resumed welcome."""
        assert self.waits() == [Connect()]
        self.connected()
        return self.hears(replaced(WELCOME, **({"resumed": True} | welcome)))


# --- the table ----------------------------------------------------------------------------------

CALLS: dict[Input, Callable[[Ann], list[Output]]] = {
    Input.OPEN: lambda ann: ann.open(),
    Input.CONNECTED: lambda ann: ann.connected(),
    Input.CONNECTION_FAILED: lambda ann: ann.session.connection_failed("no", ann.now),
    Input.DROPPED: lambda ann: ann.dropped(),
    Input.SEND: lambda ann: ann.session.send(signal()),
    Input.UPDATE: lambda ann: ann.session.update("Anna", None),
    Input.FORWARD: lambda ann: ann.session.forward("bob", "bob-one-1", b"frame"),
    Input.REPORT: lambda ann: ann.session.report([REPORT]),
    Input.HURRY: lambda ann: ann.session.hurry(ann.now),
    Input.CLOSE: lambda ann: ann.session.close(ann.now),
    Input.TICK: lambda ann: ann.session.tick(ann.now + 100),
    Input.RECEIVED: lambda ann: ann.session.received(b"{", ann.now),
}
MESSAGES: dict[Input, RelayMessage | bytes] = {
    Input.WELCOME: WELCOME,
    Input.JOINED: MemberJoined(member=BOB),
    Input.LEFT: MemberLeft(peer_id="bob", incarnation="bob-one-1", reason="left"),
    Input.UPDATED: MemberUpdated(peer_id="bob", incarnation="bob-one-1"),
    Input.SIGNAL: SIGNAL_IN,
    Input.REFUSED: Refused(code="room_full", text="full"),
    Input.ICE_SERVERS: IceServers(servers=[IceServerInfo(urls=["stun:stun.example.org"])]),
    Input.NOTICE: Notice(text="a restart at noon"),
    Input.RESTART_ICE: RestartIce(),
    Input.GOODBYE: Goodbye(reason="shutdown"),
    Input.PONG: Pong(),
    Input.ACK: Ack(received=0),
    Input.FORWARDED: Forwarded(to="bob", size=0),
    Input.FRAME: encode_forward("bob", "bob-one-1", b"frame"),
}


def snapshot(session: Session) -> dict[str, Any]:
    state = dict(vars(session))
    del state["_input"]  # the one that is being taken: of no meaning afterwards
    state["_deadlines"] = session.next_deadline()
    state["_pending"] = list(session._pending)
    state["_backoff"] = session._backoff.attempts
    state["_under_way"] = dict(session._under_way)
    return state


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("state", State)
def test_every_call_in_every_state(state: State, name: Input) -> None:
    ann = Ann().reach(state)
    before = snapshot(ann.session)
    if name in TABLE[state]:
        CALLS[name](ann)
        assert ann.state in TABLE[state][name]
    else:
        with pytest.raises(UnexpectedInput, match=f"{state.value}.*{name.value}"):
            CALLS[name](ann)
        assert snapshot(ann.session) == before


@pytest.mark.parametrize("name", MESSAGES)
@pytest.mark.parametrize("state", [State.JOINING, State.SEATED])
def test_every_message_in_every_state(state: State, name: Input) -> None:
    ann = Ann().reach(state)
    outputs = ann.hears(MESSAGES[name])
    if name in TABLE[state]:
        assert ann.state in TABLE[state][name]
    else:
        assert ann.state is State.WAITING
        assert outputs[0] == Disconnect()
        tag = name.value.removeprefix("message:")
        assert f"{tag!r} to a client that is {state.value}" in str(ann.session.last_failure)


def test_every_input_is_in_the_tests_and_every_state_in_the_table() -> None:
    assert set(CALLS) | set(MESSAGES) == set(Input)
    assert set(TABLE) == set(State)
    reached = {state for row in TABLE.values() for states in row.values() for state in states}
    assert reached == set(State) - {State.NEW}


def test_hurry_tries_at_once_what_waits_and_leaves_a_seat_alone() -> None:
    ann = Ann().reach(State.WAITING)
    assert ann.session.hurry(ann.now) == [Connect()]
    assert ann.session.hurry(ann.now) == [Disconnect(), Connect()]
    seated = Ann().reach(State.SEATED)
    assert seated.session.hurry(seated.now) == []
    assert seated.state is State.SEATED


# --- the way to a seat ---------------------------------------------------------------------------


def test_a_seat_is_taken_in_three_steps() -> None:
    ann = Ann()
    assert ann.open() == [Connect()]
    assert said(ann.connected()) == [JOIN]
    assert ann.hears(WELCOME) == [Tell(WELCOME)]
    assert ann.state is State.SEATED
    assert ann.session.next_deadline() is None
    assert ann.session.last_failure is None


def test_what_a_caller_puts_into_the_counts_of_its_join_is_not_believed() -> None:
    ann = Ann()
    ann.open(replaced(JOIN, session="x" * 16, received=7))
    assert said(ann.connected()) == [JOIN]


def test_signals_and_updates_before_the_seat_follow_the_welcome() -> None:
    ann = Ann()
    ann.open()
    assert ann.session.send(signal(1)) == []
    assert ann.session.update("Anna", None) == []  # will be in the join
    assert said(ann.connected()) == [replaced(JOIN, name="Anna")]
    assert ann.session.update(None, {"mood": "fine"}) == []  # came too late for the join
    assert said(ann.hears(WELCOME)) == [signal(1), Update(metadata={"mood": "fine"})]


def test_a_pong_is_not_told_and_not_counted() -> None:
    ann = Ann().reach(State.SEATED)
    assert ann.hears(Pong()) == []
    assert ann.session.next_deadline() is None, "there is nothing to acknowledge"


def test_ice_servers_are_told_and_not_counted() -> None:
    ann = Ann().reach(State.SEATED)
    servers = IceServers(servers=[IceServerInfo(urls=["stun:stun.example.org"])])
    assert ann.hears(servers) == [Tell(servers)]
    assert ann.session.next_deadline() is None, "there is nothing to acknowledge"
    ann.dropped()
    ann.waits()
    assert said(ann.connected())[0].received == 0


@pytest.mark.parametrize("state", [State.CONNECTING, State.JOINING])
def test_no_answer_within_the_deadline(state: State) -> None:
    ann = Ann().reach(state)
    began = ann.now
    assert ann.waits() == [Disconnect()]
    assert ann.now == began + ANSWER_TIMEOUT
    assert ann.state is State.WAITING
    assert "within 5 seconds" in str(ann.session.last_failure)


def test_before_the_first_welcome_nothing_is_told_but_remembered() -> None:
    ann = Ann()
    ann.open()
    assert ann.session.connection_failed("connection refused", ann.now) == []
    assert str(ann.session.last_failure) == "connection refused"
    assert ann.waits() == [Connect()]
    ann.connected()
    assert ann.dropped() == []
    assert str(ann.session.last_failure) == "cut"
    ann.waits()
    ann.connected()
    assert ann.hears(WELCOME) == [Tell(WELCOME)]
    assert ann.session.last_failure is None


def test_waits_double_up_to_the_longest_and_are_random() -> None:
    ann = Ann(MeshConfig(signaling_retry_first=0.5, signaling_retry_max=3.0))
    ann.open()
    waits = []
    for _ in range(5):
        ann.session.connection_failed("no", ann.now)
        before = ann.now
        ann.waits()
        waits.append(ann.now - before)
    assert waits == [0.5, 1.0, 2.0, 3.0, 3.0]
    ann.random = 0.75
    ann.session.connection_failed("no", ann.now)
    assert ann.session.next_deadline() == ann.now + 0.75


def test_a_seat_that_does_not_last_does_not_reset_the_wait() -> None:
    ann = Ann().reach(State.SEATED)
    waits = []
    for stay in (0.0, 0.0, 0.0, 2.0, 0.0):
        ann.now += stay
        (lost,) = ann.dropped()
        assert isinstance(lost, Lost)
        waits.append(lost.retry_in)
        ann.comes_back()
    # The first seat had not been waited for, so that it did not last says nothing.
    assert waits == [0.5, 1.0, 2.0, 0.5, 1.0]


# --- a no ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("on_conflict", "advice"),
    [
        ("reject", 'choose another id, or join with on_conflict="rename"'),
        ("takeover", "to take it over, join with its resume token or a join token of its subject"),
        ("rename", "choose a shorter one"),
    ],
)
@pytest.mark.parametrize("retry_after", [None, 20.0])
def test_an_id_that_is_taken_comes_with_what_to_do(
    on_conflict: str, advice: str, retry_after: float | None
) -> None:
    ann = Ann()
    ann.open(replaced(JOIN, on_conflict=on_conflict))
    ann.connected()
    ann.hears(Refused(code="peer_id_taken", text="it is taken", retry_after=retry_after))
    assert str(ann.session.last_failure) == f"it is taken; {advice}"
    assert ann.state is (State.WAITING if retry_after else State.CLOSED)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("room_full", RoomFull),
        ("unsupported_version", RefusedError),
        ("something_new", RefusedError),
    ],
)
def test_refused_for_good(code: str, error: type[RefusedError]) -> None:
    ann = Ann().reach(State.JOINING)
    refused = Refused(code=code, text="because", field="$.room")
    disconnect, fail = ann.hears(refused)
    assert disconnect == Disconnect()
    assert isinstance(fail, Fail)
    assert type(fail.error) is error
    assert str(fail.error) == "because"
    assert (fail.error.code, fail.error.field) == (code, "$.room")
    assert ann.state is State.CLOSED
    assert ann.session.next_deadline() is None


@pytest.mark.parametrize(("retry_after", "wait"), [(25.0, 1.0), (0.4, 0.4), (0.0, 0.1)])
def test_an_id_whose_holder_is_away_is_tried_again_soon(retry_after: float, wait: float) -> None:
    ann = Ann().reach(State.JOINING)
    refused = Refused(code="peer_id_taken", text="ann is away", retry_after=retry_after)
    assert ann.hears(refused) == [Disconnect()]
    assert str(ann.session.last_failure) == (
        'ann is away; choose another id, or join with on_conflict="rename"'
    )
    assert ann.session.next_deadline() == ann.now + wait


@pytest.mark.parametrize("code", ["rate_limited", "unavailable"])
@pytest.mark.parametrize(
    ("retry_after", "wait"), [(None, 0.5), (2.0, 2.5), (3600.0, 30.5)], ids=["-", "2 s", "1 h"]
)
def test_a_no_for_now_waits_like_a_failure_after_what_the_relay_asks_for(
    code: str, retry_after: float | None, wait: float
) -> None:
    ann = Ann().reach(State.JOINING)
    refused = Refused(code=code, text="later", retry_after=retry_after)
    assert ann.hears(refused) == [Disconnect()]
    assert str(ann.session.last_failure) == "later"
    assert ann.session.next_deadline() == ann.now + wait
    ann.waits()
    ann.connected()
    ann.hears(refused)
    assert ann.session.next_deadline() == ann.now + wait + 0.5, "the wait grows"


@pytest.mark.parametrize(
    ("code", "error"), [("unauthorized", Unauthorized), ("forbidden", Forbidden)]
)
def test_who_may_not_join_does_not_come_back(code: str, error: type[RefusedError]) -> None:
    """At once, and at a later join too: the token has expired meanwhile."""
    first, later = Ann().reach(State.JOINING), Ann().reach(State.SEATED)
    later.dropped()
    later.waits()
    later.connected()
    for ann in (first, later):
        disconnect, fail = ann.hears(Refused(code=code, text="the join token has expired"))
        assert disconnect == Disconnect()
        assert isinstance(fail, Fail)
        assert type(fail.error) is error
        assert str(fail.error) == "the join token has expired"
        assert ann.session.next_deadline() is None


def test_a_join_token_is_of_one_join() -> None:
    ann = Ann()
    ann.open()
    (output,) = ann.session.connected(ann.now, "secret-token-1")
    assert said([output]) == [replaced(JOIN, join_token="secret-token-1")]
    assert "secret" not in repr(output)
    ann.hears(WELCOME)
    ann.dropped()
    ann.waits()
    second = replaced(JOIN, token="t" * 16, session="s" * 16)
    assert said(ann.session.connected(ann.now, "secret-token-2")) == [
        replaced(second, join_token="secret-token-2")
    ]
    ann.dropped()
    ann.waits()
    assert said(ann.connected()) == [second]


@pytest.mark.parametrize("token", ["", "a token", "x" * 4097, "töken", "new\nline"])
def test_what_can_not_be_a_join_token_is_not_sent(token: str) -> None:
    ann = Ann().reach(State.CONNECTING)
    before = snapshot(ann.session)
    with pytest.raises(InvalidData, match="join_token") as caught:
        ann.session.connected(ann.now, token)
    assert not token or token not in str(caught.value)
    assert snapshot(ann.session) == before


@pytest.mark.parametrize("on_conflict", ["reject", "takeover", "rename"])
def test_a_rejoin_that_is_refused_while_the_holder_lives_ends_the_session(on_conflict: str) -> None:
    """Without advice: whatever was asked for, nothing would bring the id back."""
    ann = Ann()
    ann.open(replaced(JOIN, on_conflict=on_conflict))
    ann.connected()
    ann.hears(WELCOME)
    ann.dropped()
    ann.waits()
    assert said(ann.connected())[0].on_conflict == "reject"
    _, fail = ann.hears(Refused(code="peer_id_taken", text="somebody took it"))
    assert isinstance(fail, Fail)
    assert isinstance(fail.error, PeerIdTaken)
    assert str(fail.error) == "somebody took it; this process lost it while it was away"


@pytest.mark.parametrize("state", [State.JOINING, State.SEATED])
def test_who_was_removed_does_not_come_back(state: State) -> None:
    ann = Ann().reach(state)
    disconnect, fail = ann.hears(Goodbye(reason="removed"))
    assert disconnect == Disconnect()
    assert isinstance(fail, Fail)
    assert isinstance(fail.error, Removed)
    assert fail.error.reason == "removed"
    assert "'ann'" in str(fail.error)
    assert ann.session.next_deadline() is None


@pytest.mark.parametrize("message", [Notice(text="a restart at noon"), RestartIce(peer_id="bob")])
def test_what_the_operator_says_is_told_and_counted(message: RelayMessage) -> None:
    ann = Ann().reach(State.SEATED)
    assert ann.hears(message) == [Tell(message)]  # type: ignore[arg-type]
    ann.dropped()
    ann.waits()
    assert said(ann.connected())[0].received == 1


@pytest.mark.parametrize("state", [State.JOINING, State.SEATED])
def test_replaced_does_not_come_back(state: State) -> None:
    ann = Ann().reach(state)
    disconnect, fail = ann.hears(Goodbye(reason="replaced"))
    assert disconnect == Disconnect()
    assert isinstance(fail, Fail)
    assert isinstance(fail.error, IdentityReplaced)
    assert fail.error.reason == "replaced"
    assert "'ann'" in str(fail.error)
    assert ann.session.next_deadline() is None


def test_a_refusal_in_the_seat_is_told_and_counted() -> None:
    ann = Ann().reach(State.SEATED)
    refused = Refused(code="no_such_peer", text="gone", message=1, to="bob")
    assert ann.hears(refused) == [Tell(refused)]
    ann.dropped()
    ann.waits()
    assert said(ann.connected())[0].received == 1


@pytest.mark.parametrize(
    ("retry_after", "random", "wait"),
    [(2.0, 0.0, 1.0), (2.0, 0.5, 2.0), (0.0, 0.0, 0.05), (3600.0, 0.0, 15.0), (None, 0.0, 0.5)],
)
def test_a_shutdown_says_when_to_come_back(
    retry_after: float | None, random: float, wait: float
) -> None:
    ann = Ann(random=random).reach(State.SEATED)
    goodbye = Goodbye(reason="shutdown", retry_after=retry_after)
    disconnect, lost = ann.hears(goodbye)
    assert disconnect == Disconnect()
    assert lost == Lost("the relay said goodbye (shutdown)", wait)
    assert ann.session.next_deadline() == ann.now + wait


def goes_down(ann: Ann, reason: str = "shutdown", retry_after: float | None = 0.5) -> None:
    ann.hears(Goodbye(reason=reason, retry_after=retry_after))
    ann.waits()


@pytest.mark.parametrize(("random", "wait"), [(0.0, 0.2), (0.5, 0.4), (0.999, 0.5996)])
def test_a_relay_that_restarts_is_tried_soon_until_it_is_there(random: float, wait: float) -> None:
    """The waits do not grow: within a second of its being there, everybody is back."""
    ann = Ann(random=random).reach(State.SEATED)
    goes_down(ann)
    began = ann.now
    while ann.now < began + RESTART_PATIENCE - 1:
        ann.session.connection_failed("connection refused", ann.now)
        assert ann.session.next_deadline() == pytest.approx(ann.now + wait)
        ann.waits()
    ann.connected()
    assert ann.hears(WELCOME) == [Tell(WELCOME)]


def test_a_relay_that_restarts_and_does_not_answer_is_tried_soon_too() -> None:
    ann = Ann().reach(State.SEATED)
    goes_down(ann)
    began = ann.now
    assert ann.waits() == [Disconnect()]
    assert ann.now == began + ANSWER_TIMEOUT
    assert ann.session.next_deadline() == ann.now + 0.2


def test_a_relay_that_does_not_come_back_from_a_restart_is_waited_for_like_any_other() -> None:
    ann = Ann().reach(State.SEATED)
    goes_down(ann)
    ann.now += RESTART_PATIENCE
    waits = []
    for _ in range(3):
        ann.session.connection_failed("connection refused", ann.now)
        before = ann.now
        ann.waits()
        waits.append(ann.now - before)
    assert waits == [0.5, 1.0, 2.0]


@pytest.mark.parametrize("accepts", ["drops", "refuses", "says nothing"])
def test_a_relay_that_accepts_after_a_restart_and_then_fails_is_not_hammered(accepts: str) -> None:
    ann = Ann().reach(State.SEATED)
    goes_down(ann)
    ann.connected()
    if accepts == "drops":
        ann.dropped()
    elif accepts == "refuses":
        ann.hears(Refused(code="rate_limited", text="slower"))
    else:
        assert ann.waits() == [Disconnect()]
    assert ann.session.next_deadline() == ann.now + 0.5
    ann.waits()
    ann.session.connection_failed("connection refused", ann.now)
    assert ann.session.next_deadline() == ann.now + 1.0


@pytest.mark.parametrize(("reason", "retry_after"), [("shutdown", None), ("maintenance", 0.5)])
def test_only_a_restart_that_was_announced_is_waited_for_so(
    reason: str, retry_after: float | None
) -> None:
    ann = Ann(random=0.5).reach(State.SEATED)
    goes_down(ann, reason, retry_after)
    waits = []
    for _ in range(3):
        ann.session.connection_failed("connection refused", ann.now)
        before = ann.now
        ann.waits()
        waits.append(ann.now - before)
    assert waits[1] == 2 * waits[0]


def test_the_longest_wait_holds_for_a_restart_as_well() -> None:
    ann = Ann(MeshConfig(signaling_retry_first=0.1, signaling_retry_max=0.1)).reach(State.SEATED)
    goes_down(ann)
    ann.session.connection_failed("connection refused", ann.now)
    assert ann.session.next_deadline() == ann.now + 0.1


# --- a loss, and what comes after -----------------------------------------------------------------


def test_a_loss_is_told_once() -> None:
    ann = Ann().reach(State.SEATED)
    assert ann.dropped() == [Lost("cut", 0.5)]
    ann.waits()
    assert ann.session.connection_failed("still down", ann.now) == []
    assert str(ann.session.last_failure) == "still down"
    ann.waits()
    ann.connected()
    resumed = replaced(WELCOME, resumed=True)
    assert ann.hears(resumed) == [Tell(resumed)]
    assert ann.dropped() == [Lost("cut", 2.0)]


def test_what_the_relay_has_not_got_is_sent_again_and_nothing_else() -> None:
    ann = Ann().reach(State.SEATED)
    for epoch in (1, 2, 3):
        assert said(ann.session.send(signal(epoch))) == [signal(epoch)]
    assert ann.hears(Ack(received=1)) == []
    assert ann.session.pending == 2
    ann.dropped()
    assert ann.session.send(signal(4)) == []
    ann.waits()
    assert said(ann.connected()) == [replaced(JOIN, token="t" * 16, session="s" * 16)]
    outputs = ann.hears(replaced(WELCOME, resumed=True, received=2))
    assert said(outputs) == [signal(3), signal(4)]
    assert isinstance(outputs[0], Tell)
    assert ann.hears(Ack(received=4)) == []
    assert ann.session.pending == 0


def test_a_new_seat_gets_the_signals_but_no_update_that_was_in_the_join() -> None:
    ann = Ann().reach(State.SEATED)
    for epoch in (9, 10, 11, 12):
        ann.session.send(signal(epoch))
    ann.hears(Ack(received=2))
    ann.session.update("Anna", {"n": 1})
    ann.dropped()
    ann.session.send(signal(3))
    ann.waits()
    assert said(ann.connected()) == [
        replaced(JOIN, name="Anna", metadata={"n": 1}, token="t" * 16, session="s" * 16)
    ]
    ann.session.update("Annie", None)
    # The relay still knows of the first of them, although it could not resume.
    anew = replaced(WELCOME, session="n" * 16, received=3)
    assert said(ann.hears(anew)) == [signal(12), signal(3), Update(name="Annie")]
    ann.hears(Ack(received=3))
    assert ann.session.pending == 0
    ann.dropped()
    ann.waits()
    (join,) = said(ann.connected())
    assert (join.session, join.received, join.name) == ("n" * 16, 0, "Annie")


def test_both_counts_begin_again_with_a_new_seat() -> None:
    ann = Ann().reach(State.SEATED)
    ann.session.send(signal(1))
    ann.hears(Ack(received=1))
    for _ in range(5):
        ann.hears(SIGNAL_IN)
    ann.dropped()
    ann.comes_back(resumed=False, session="n" * 16)
    ann.hears(SIGNAL_IN)
    ann.session.send(signal(2))
    ann.dropped()
    ann.waits()
    assert said(ann.connected())[0].received == 1
    assert said(ann.hears(replaced(WELCOME, session="n" * 16, resumed=True))) == [signal(2)]


def test_every_join_has_a_higher_number() -> None:
    ann = Ann()
    ann.open(replaced(JOIN, attempt=7))
    for attempt in (1, 2, 3):
        (output,) = ann.connected()
        assert isinstance(output, Transmit)
        join = decode_client(output.data)
        assert isinstance(join, Join)
        assert join.attempt == attempt
        ann.dropped()
        ann.waits()


def test_renamed_it_asks_for_the_name_it_got() -> None:
    ann = Ann()
    ann.open(replaced(JOIN, on_conflict="rename"))
    ann.connected()
    ann.hears(replaced(WELCOME, peer_id="ann-2"))
    ann.dropped()
    ann.waits()
    assert said(ann.connected())[0].peer_id == "ann-2"


# --- acknowledgements -----------------------------------------------------------------------------


def test_it_acknowledges_every_so_many_messages() -> None:
    ann = Ann().reach(State.SEATED)
    for count in range(1, 2 * ACK_EVERY + 1):
        expected = [Ack(received=count)] if count % ACK_EVERY == 0 else []
        assert said(ann.hears(SIGNAL_IN)) == expected
    assert ann.session.next_deadline() is None


def test_it_acknowledges_within_so_many_seconds() -> None:
    ann = Ann().reach(State.SEATED)
    ann.hears(SIGNAL_IN)
    first = ann.now
    ann.now += 1
    ann.hears(SIGNAL_IN)
    assert said(ann.waits()) == [Ack(received=2)]
    assert ann.now == first + ACK_AFTER
    assert ann.session.next_deadline() is None


def test_a_join_acknowledges_too() -> None:
    ann = Ann().reach(State.SEATED)
    for _ in range(ACK_EVERY - 1):
        ann.hears(SIGNAL_IN)
    ann.dropped()
    ann.comes_back()
    assert ann.session.next_deadline() is None
    assert said(ann.hears(SIGNAL_IN)) == []


# --- bounds and bad input -------------------------------------------------------------------------


@pytest.mark.parametrize("state", [State.WAITING, State.SEATED])
def test_a_backlog_has_a_bound(state: State) -> None:
    ann = Ann().reach(state)
    for epoch in range(CONFIG.max_pending_signals):
        ann.session.send(signal(epoch))
    before = snapshot(ann.session)
    with pytest.raises(SignalingBacklog, match="100 signals wait for the relay"):
        ann.session.send(signal(99))
    with pytest.raises(SignalingBacklog):
        ann.session.update("Anna", None)
    assert snapshot(ann.session) == before


def test_an_update_of_nothing_is_not_sent() -> None:
    ann = Ann().reach(State.SEATED)
    assert ann.session.update(None, None) == []
    assert ann.session.pending == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda session: session.update(" white space ", None),
        lambda session: session.update(None, {"x": object()}),
        lambda session: session.update(None, {"x": "y" * 5000}),
        lambda session: session.send(replaced(signal(), to="")),
    ],
)
def test_what_the_relay_could_not_decode_is_not_sent(call: Callable[[Session], object]) -> None:
    ann = Ann().reach(State.SEATED)
    before = snapshot(ann.session)
    with pytest.raises(InvalidData, match="can't be sent to the relay"):
        call(ann.session)
    assert snapshot(ann.session) == before


def test_a_join_that_does_not_fit_the_schema_raises() -> None:
    ann = Ann()
    with pytest.raises(InvalidData, match="peer_id"):
        ann.open(replaced(JOIN, peer_id=""))
    assert ann.state is State.NEW


def test_a_signal_that_the_relay_would_not_take_is_refused_here() -> None:
    ann = Ann().reach(State.SEATED)
    huge = replaced(signal(), body=Raw(b'"' + b"x" * MAX_SIGNAL + b'"'))
    with pytest.raises(MessageTooLarge, match=str(MAX_SIGNAL)):
        ann.session.send(huge)
    assert ann.session.pending == 0


BAD_WELCOMES: dict[str, dict[str, object]] = {
    "room": {"room": "another"},
    "incarnation": {"incarnation": "somebody-else"},
    "peer_id": {"peer_id": "bob"},
    "session": {"resumed": True},
    "received": {"received": 1},
}


@pytest.mark.parametrize("field", BAD_WELCOMES)
def test_a_welcome_for_somebody_else(field: str) -> None:
    ann = Ann().reach(State.JOINING)
    assert ann.hears(replaced(WELCOME, **BAD_WELCOMES[field])) == [Disconnect()]
    assert ann.state is State.WAITING
    ann.waits()
    assert said(ann.connected()) == [JOIN]
    assert ann.hears(WELCOME) == [Tell(WELCOME)]


def test_a_welcome_of_another_version() -> None:
    ann = Ann().reach(State.JOINING)
    _, fail = ann.hears(replaced(WELCOME, version=VERSION + 1))
    assert isinstance(fail, Fail)
    assert isinstance(fail.error, RefusedError)
    assert fail.error.code == "unsupported_version"


@pytest.mark.parametrize("received", [1, 4])
def test_an_acknowledgement_of_what_was_not_sent(received: int) -> None:
    ann = Ann().reach(State.SEATED)
    for epoch in range(3):
        ann.session.send(signal(epoch))
    ann.hears(Ack(received=2))
    disconnect, lost = ann.hears(Ack(received=received))
    assert disconnect == Disconnect()
    assert isinstance(lost, Lost)
    assert f"acknowledged {received} messages" in lost.reason
    assert ann.session.pending == 1


def test_a_resumed_welcome_that_has_what_was_never_sent() -> None:
    ann = Ann().reach(State.SEATED)
    ann.dropped()
    ann.session.send(signal())
    ann.waits()
    ann.connected()
    assert ann.hears(replaced(WELCOME, resumed=True, received=1)) == [Disconnect()]
    assert ann.session.pending == 1


@given(
    state=st.sampled_from([State.JOINING, State.SEATED]),
    data=st.one_of(st.binary(max_size=200), st.text(max_size=200)),
)
@settings(max_examples=200, deadline=None)
def test_junk_costs_a_reconnect_and_nothing_else(state: State, data: bytes | str) -> None:
    ann = Ann().reach(state)
    ann.session.send(signal())
    outputs = ann.session.received(data, ann.now)
    assert outputs[0] == Disconnect()
    assert [type(output) for output in outputs[1:]] == ([Lost] if state is State.SEATED else [])
    assert ann.state is State.WAITING
    assert ann.session.pending == 1


# --- the end --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "outputs"),
    [
        (State.NEW, []),
        (State.CONNECTING, [Disconnect()]),
        (State.JOINING, [Transmit(encode(Leave())), Disconnect()]),
        (State.SEATED, [Transmit(encode(Leave())), Disconnect()]),
        (State.WAITING, []),
    ],
)
def test_close(state: State, outputs: list[Output]) -> None:
    ann = Ann().reach(state)
    assert ann.session.close(ann.now) == outputs
    assert ann.state is State.CLOSED
    assert ann.session.next_deadline() is None


# --- data ----------------------------------------------------------------------------------------

FRAME = b"f" * 16384
COST = len(encode_forward("bob", "bob-one-1", FRAME))


def test_a_frame_goes_out_as_it_is_and_comes_in_with_its_sender() -> None:
    ann = Ann().reach(State.SEATED)
    [output] = ann.session.forward("bob", "bob-one-1", b"frame")
    assert isinstance(output, TransmitFrame)
    assert decode_forward(output.data) == FrameIn("bob", "bob-one-1", b"frame")
    frame = FrameIn("bob", "bob-one-1", b"back")
    assert ann.hears(encode_forward("bob", "bob-one-1", b"back")) == [Tell(frame)]
    assert ann.session.pending == 0
    assert ann.session.next_deadline() is None, "frames are not counted messages"


def test_room_is_what_is_left_of_the_window_of_each_member() -> None:
    ann = Ann().reach(State.SEATED)
    ann.session.forward("bob", "bob-one-1", FRAME)
    assert ann.session.forward_room("bob") == WINDOW - COST
    assert ann.session.forward_room("eve") == WINDOW
    assert ann.hears(Forwarded(to="bob", size=COST)) == []
    assert ann.session.forward_room("bob") == WINDOW
    assert ann.session._under_way == {}, "nothing is kept about who has nothing on its way"


def test_room_is_told_when_it_was_below_half_and_is_not_any_more() -> None:
    ann = Ann().reach(State.SEATED)
    while ann.session.forward_room("bob") >= COST:
        assert ann.session.forward("bob", "bob-one-1", FRAME)
    told = []
    while ann.session._under_way:
        before = ann.session.forward_room("bob")
        for output in ann.hears(Forwarded(to="bob", size=COST)):
            assert output == Tell(ForwardRoom("bob"))
            assert before < WINDOW / 2 <= ann.session.forward_room("bob")
            told.append(output)
    assert len(told) == 1


def test_frames_that_must_not_wait_go_a_little_beyond_the_window() -> None:
    ann = Ann().reach(State.SEATED)
    sent = 0
    while outputs := ann.session.forward("bob", "bob-one-1", FRAME):
        sent += sum(len(output.data) for output in outputs if isinstance(output, TransmitFrame))
    assert WINDOW + FORWARD_SLACK - COST < sent <= WINDOW + FORWARD_SLACK
    assert ann.session.forward_room("bob") == 0
    before = snapshot(ann.session)
    assert ann.session.forward("bob", "bob-one-1", FRAME) == []
    assert snapshot(ann.session) == before
    assert ann.session.forward("eve", "eve-one-1", FRAME)


@pytest.mark.parametrize("state", [State.CONNECTING, State.JOINING, State.WAITING])
def test_without_a_seat_there_is_no_room_and_frames_are_dropped(state: State) -> None:
    ann = Ann().reach(state)
    assert ann.session.forward_room("bob") == 0
    assert ann.session.forward("bob", "bob-one-1", FRAME) == []


def test_with_a_service_that_forwards_none_frames_are_dropped() -> None:
    ann = Ann()
    ann.open()
    ann.connected()
    ann.hears(replaced(WELCOME, forward_window=0))
    assert ann.session.forward_room("bob") == 0
    assert ann.session.forward("bob", "bob-one-1", FRAME) == []


@pytest.mark.parametrize("resumed", [True, False])
def test_on_another_connection_nothing_is_on_its_way(resumed: bool) -> None:
    ann = Ann().reach(State.SEATED)
    ann.session.forward("bob", "bob-one-1", FRAME)
    ann.dropped()
    assert ann.session.forward_room("bob") == 0
    ann.comes_back(resumed=resumed, forward_window=2 * WINDOW)
    assert ann.session.forward_room("bob") == 2 * WINDOW


def test_more_was_forwarded_than_was_sent() -> None:
    ann = Ann().reach(State.SEATED)
    ann.session.forward("bob", "bob-one-1", FRAME)
    outputs = ann.hears(Forwarded(to="bob", size=COST + 1))
    assert outputs[0] == Disconnect()
    assert ann.state is State.WAITING
    assert "'bob'" in str(ann.session.last_failure)


def test_a_frame_that_is_malformed_ends_the_connection() -> None:
    whole = encode_forward("bob", "bob-one-1", b"f")
    for size in range(1, len(whole)):
        ann = Ann().reach(State.SEATED)
        assert ann.hears(whole[:size])[0] == Disconnect()
        assert ann.state is State.WAITING


@pytest.mark.parametrize(
    ("frame", "error"), [(b"", InvalidData), (bytes(MAX_FORWARD + 1), MessageTooLarge)]
)
def test_a_frame_of_no_size_to_send_is_refused(frame: bytes, error: type[Exception]) -> None:
    ann = Ann().reach(State.SEATED)
    before = snapshot(ann.session)
    with pytest.raises(error):
        ann.session.forward("bob", "bob-one-1", frame)
    assert snapshot(ann.session) == before
    assert ann.session.forward("bob", "bob-one-1", bytes(MAX_FORWARD))


# --- reports --------------------------------------------------------------------------------------


def links(count: int, name: str = "peer", reason: str = "") -> list[LinkReport]:
    return [
        LinkReport(
            peer_id=f"{name} {number}",
            incarnation="incarnation",
            state="connected",
            ice_state="connected",
            reason=reason,
            failure=reason,
        )
        for number in range(count)
    ]


def test_a_report_is_sent_and_not_counted() -> None:
    ann = Ann().reach(State.SEATED)
    assert said(ann.session.report([REPORT])) == [Report([REPORT])]
    assert ann.session.pending == 0
    assert ann.session.report([]) == []
    ann.dropped()
    assert said(ann.comes_back()) == []


@pytest.mark.parametrize("state", [State.CONNECTING, State.JOINING, State.WAITING])
def test_a_report_without_a_seat_is_dropped(state: State) -> None:
    ann = Ann().reach(state)
    before = snapshot(ann.session)
    assert ann.session.report([REPORT]) == []
    assert snapshot(ann.session) == before


@pytest.mark.parametrize("first", [0.0, 15.0])
def test_whether_reports_are_wanted_the_latest_welcome_says(first: float) -> None:
    ann = Ann()
    ann.open()
    ann.connected()
    ann.hears(replaced(WELCOME, report_interval=first))
    assert bool(ann.session.report([REPORT])) is (first > 0)
    ann.dropped()
    ann.comes_back(report_interval=15.0 - first)
    assert bool(ann.session.report([REPORT])) is (first == 0)


@pytest.mark.parametrize(
    ("count", "name", "reason", "reports"),
    [
        (MAX_REPORTS, "peer", "", 1),
        (MAX_REPORTS + 1, "peer", "", 2),
        (499, "peer", "", 8),
        (MAX_REPORTS, "peer", "\u20ac" * 66, 1),
        (MAX_REPORTS, "\U0001f600" * 120, "\u20ac" * 66, 2),
    ],
)
def test_a_long_report_goes_in_parts(count: int, name: str, reason: str, reports: int) -> None:
    ann = Ann().reach(State.SEATED)
    outputs = ann.session.report(links(count, name, reason))
    sizes = [len(output.data) for output in outputs if isinstance(output, Transmit)]
    assert len(sizes) == len(outputs) == reports
    assert max(sizes) <= MAX_REPORT
    assert [link for report in said(outputs) for link in report.links] == links(count, name, reason)


def test_a_report_that_the_relay_could_not_decode_is_not_sent() -> None:
    ann = Ann().reach(State.SEATED)
    with pytest.raises(InvalidData, match="can't be sent to the relay"):
        ann.session.report([replaced(REPORT, reason="new\nline")])
