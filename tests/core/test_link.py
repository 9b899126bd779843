"""The link's table: each path a user would name, and every pair of state and input."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import random
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshpeer.config import MeshConfig
from meshpeer.core.events import CandidateInfo, CandidatePair, PeerState
from meshpeer.core.link import (
    TABLE,
    AcceptAnswer,
    AcceptOffer,
    AddCandidates,
    CloseConnection,
    History,
    Input,
    Link,
    LinkOutput,
    LinkState,
    MakeOffer,
    Operate,
    PairSelected,
    Ping,
    Refuse,
    Row,
    SendSignal,
    StateChanged,
)
from meshpeer.core.messages import (
    MAX_CANDIDATES,
    Answer,
    Candidates,
    Dial,
    IceCandidate,
    LinkMessage,
    Offer,
    Stale,
)
from meshpeer.core.restart import Restart, RestartState
from meshpeer.core.timing import Backoff, Deadlines
from meshpeer.core.trickle import Trickle
from meshpeer.errors import ConnectionFailed, MeshError, ProtocolError, UnexpectedInput

S = LinkState
CONFIG = MeshConfig()
ONE = IceCandidate("candidate:1 1 udp 1 192.0.2.1 9 typ host", "0", 0)
END = Candidates([], end=True)
PAIR = CandidatePair(CandidateInfo("host", "192.0.2.1", 9), CandidateInfo("host", "192.0.2.2", 9))
OTHER = "other-incarnation"
MINE = "this-incarnation"


def half() -> float:
    return 0.5


def make(*, dials: bool, config: MeshConfig = CONFIG) -> Link:
    return Link(config, dials=dials, incarnation=MINE, random=half)


def state_of(link: Link) -> LinkState:
    """Its state; a call, since a type checker takes an attribute to stay as it was."""
    return link.state


def step(link: Link) -> tuple[float, list[LinkOutput]]:
    """Let time pass until the next deadline."""
    at = link.next_deadline()
    assert at is not None, link.state
    return at, link.tick(at)


def until(link: Link, state: LinkState) -> tuple[float, list[LinkOutput]]:
    """Let time pass until the link is in ``state``; the time, and what the last tick put out."""
    while True:
        at, outputs = step(link)
        if link.state is state:
            return at, outputs


def reason(outputs: list[LinkOutput]) -> str:
    (change,) = (o for o in outputs if isinstance(o, StateChanged))
    return change.reason


def changed(previous: LinkState, state: LinkState, why: str) -> StateChanged:
    return StateChanged(previous, state, why)


def offered(epoch: int = 1, config: MeshConfig = CONFIG) -> Link:
    link = make(dials=True, config=config)
    link.start(0.0)
    if epoch > 1:
        link.message(0, Stale(OTHER, epoch - 1), 0.0)
    link.offer_made(epoch, 0, "offer", 0.0)
    assert (link.state, link.epoch) == (S.OFFERED, epoch)
    return link


def connected(*, dials: bool, epoch: int = 1, config: MeshConfig = CONFIG) -> Link:
    """Connected since 0.0, to one that has said all its candidates."""
    if dials:
        link = offered(epoch, config)
        link.message(epoch, Answer("answer"), 0.0)
    else:
        link = make(dials=False, config=config)
        link.start(0.0)
        link.message(epoch, Offer("offer"), 0.0)
        link.answer_made(epoch, 0, "answer", 0.0)
    link.message(epoch, END, 0.0)
    link.opened(epoch, 0.0)
    assert link.state is S.CONNECTED
    return link


# --- the paths a user would name ------------------------------------------------------------------


def test_the_side_that_dials_connects() -> None:
    link = make(dials=True)
    assert state_of(link) is S.NEW
    assert link.start(10.0) == [
        Operate(1, MakeOffer()),
        changed(S.NEW, S.OFFERING, "dialling"),
    ]
    assert state_of(link) is S.OFFERING
    assert link.next_deadline() == 18.0
    assert link.offer_made(1, 0, "v=0 o", 10.1) == [
        SendSignal(1, Offer("v=0 o")),
        changed(S.OFFERING, S.OFFERED, "offer sent"),
    ]
    assert link.message(1, Answer("v=0 a"), 10.2) == [
        Operate(1, AcceptAnswer("v=0 a")),
        changed(S.OFFERED, S.CHECKING, "answered"),
    ]
    link.message(1, END, 10.2)
    assert link.next_deadline() == 18.0, "one deadline for the whole attempt"
    assert link.opened(1, 10.3) == [
        Ping(1, 1),
        changed(S.CHECKING, S.CONNECTED, "connected"),
    ]
    assert link.peer_state is PeerState.CONNECTED
    assert link.alive
    assert (link.history.attempts, link.history.connections, link.failures) == (1, 1, 0)
    assert link.history.connect_time == pytest.approx(0.3)
    assert link.pong(1, 1, 10.35) == []
    assert link.rtt == pytest.approx(0.05)


def test_the_side_that_waits_answers() -> None:
    link = make(dials=False)
    assert link.start(0.0) == [changed(S.NEW, S.WAITING, "waiting to be dialled")]
    assert link.peer_state is PeerState.NEW
    assert link.message(1, Offer("v=0 o"), 1.0) == [
        Operate(1, AcceptOffer("v=0 o")),
        changed(S.WAITING, S.ANSWERING, "dialled"),
    ]
    assert link.answer_made(1, 0, "v=0 a", 1.1) == [
        SendSignal(1, Answer("v=0 a")),
        changed(S.ANSWERING, S.CHECKING, "answer sent"),
    ]
    assert link.opened(1, 1.2)[-1] == changed(S.CHECKING, S.CONNECTED, "connected")
    assert link.message(1, Offer("v=0 o"), 1.3) == [], "the same offer again"


def test_candidates_that_come_before_their_offer_are_kept_for_it() -> None:
    link = make(dials=False)
    link.start(0.0)
    assert link.message(2, Candidates([ONE]), 0.0) == []
    assert link.message(2, Candidates([ONE], end=True), 0.0) == []
    assert link.message(1, Candidates([ONE, ONE, ONE]), 0.0) == [], "older than those kept"
    assert link.message(2, Offer("o"), 0.0) == [
        Operate(2, AcceptOffer("o")),
        Operate(2, AddCandidates((ONE, ONE), end=True)),
        changed(S.WAITING, S.ANSWERING, "dialled"),
    ]
    assert link.message(2, Candidates([ONE]), 0.0) == [
        Operate(2, AddCandidates((ONE,), end=False))
    ], "and those that come after it go straight on"


def too_many(outputs: list[LinkOutput]) -> bool:
    match outputs:
        case [Refuse(ProtocolError(code="too_many_candidates"))]:
            return True
    return False


def with_candidates(count: int) -> str:
    return "v=0\r\n" + "a=candidate:1 1 udp 1 10.0.0.1 9 typ host\r\n" * count


def test_candidates_kept_for_an_offer_have_a_bound_and_are_dropped_with_their_epoch() -> None:
    link = make(dials=False)
    link.start(0.0)
    assert link.message(2, Candidates([ONE] * (MAX_CANDIDATES - 10)), 0.0) == []
    assert too_many(link.message(2, Candidates([ONE] * 11), 0.0))
    assert too_many(link.message(2, Offer(with_candidates(11)), 0.0))
    assert link.state is S.WAITING
    (_, kept, _) = link.message(2, Offer(with_candidates(9)), 0.0)
    assert kept == Operate(2, AddCandidates((ONE,) * (MAX_CANDIDATES - 10), end=False))
    assert link.message(2, Candidates([ONE]), 0.0), "one more for those kept and those in the offer"
    assert too_many(link.message(2, Candidates([ONE]), 0.0))
    link.message(3, Candidates([ONE]), 0.0)
    for epoch in (4, 5):
        assert link.message(epoch, Offer("o"), 0.0) == [
            Operate(epoch - 2 if epoch == 4 else 4, CloseConnection()),
            Operate(epoch, AcceptOffer("o")),
        ]


def test_an_attempt_has_so_many_candidates_and_no_more() -> None:
    link = offered()
    for _ in range(MAX_CANDIDATES - 10):
        assert len(link.message(1, Candidates([ONE]), 0.0)) == 1
    assert too_many(link.message(1, Answer(with_candidates(11)), 0.0))
    assert state_of(link) is S.OFFERED
    link.message(1, Answer(with_candidates(10)), 0.0)
    assert state_of(link) is S.CHECKING
    for _ in range(3):
        assert too_many(link.message(1, Candidates([ONE], end=True), 0.0))
    link.message(9, Dial("the next attempt"), 0.0)
    link.offer_made(10, 0, "o", 0.0)
    assert link.message(10, Candidates([ONE] * MAX_CANDIDATES), 0.0), "has as many again"


def test_the_end_of_the_candidates_is_told_once() -> None:
    """Nor does a message without any have a cost of its own for the connection."""
    link = offered()
    assert link.message(1, Candidates([]), 0.0) == []
    assert link.message(1, Candidates([], end=True), 0.0) == [
        Operate(1, AddCandidates((), end=True))
    ]
    assert link.message(1, Candidates([], end=True), 0.0) == []
    assert len(link.message(1, Candidates([ONE]), 0.0)) == 1


def test_both_dial_and_ours_wins() -> None:
    link = offered()
    for epoch in (0, 1, 2):
        assert link.message(epoch, Offer("theirs"), 0.1) == []
    assert link.state is S.OFFERED
    # Connected, another offer says that the other side sees things differently: begin anew.
    link.message(1, Answer("a"), 0.2)
    link.opened(1, 0.3)
    assert link.message(7, Offer("theirs"), 1.0) == [
        Operate(1, CloseConnection()),
        Operate(8, MakeOffer()),
        changed(S.CONNECTED, S.OFFERING, "both dial: the smaller id dials again"),
    ]


def test_the_side_that_waits_tells_that_an_offer_is_behind_and_the_other_dials_past_it() -> None:
    waits = connected(dials=False, epoch=7)
    assert waits.message(1, Offer("o"), 1.0) == [SendSignal(7, Stale(MINE, 7))]
    assert waits.state is S.CONNECTED
    dials = offered(1)
    assert dials.message(0, Stale(OTHER, 7), 1.0) == [
        Operate(1, CloseConnection()),
        Operate(8, MakeOffer()),
        changed(S.OFFERED, S.OFFERING, "the other side is ahead of our offer"),
    ]
    assert [type(o) for o in waits.message(8, Offer("o"), 2.0)] == [Operate, Operate, StateChanged]


def test_a_late_stale_does_not_end_a_connection_of_its_epoch() -> None:
    link = connected(dials=True, epoch=3)
    assert link.message(0, Stale(OTHER, 3), 1.0) == []
    assert link.message(0, Stale(OTHER, 2), 1.0) == []
    assert link.state is S.CONNECTED


def test_a_late_answer_to_an_attempt_that_failed_is_no_fault_of_the_other_side() -> None:
    link = offered()
    link.tick(8.0)
    link.offer_made(2, 0, "o", 8.1)
    link.tick(16.0)
    assert link.state is S.FAILED
    assert link.message(2, Answer("late"), 16.1) == []


@pytest.mark.parametrize("dials", [True, False])
def test_a_lost_connection_is_replaced_at_once(dials: bool) -> None:
    link = connected(dials=dials)
    outputs = link.lost(1, "closed by the other side", 3.0)
    why = "connection lost: closed by the other side"
    if dials:
        assert outputs == [
            Operate(1, CloseConnection()),
            Operate(2, MakeOffer()),
            changed(S.CONNECTED, S.OFFERING, why),
        ]
    else:
        assert outputs == [
            Operate(1, CloseConnection()),
            SendSignal(1, Dial(why)),
            changed(S.CONNECTED, S.WAITING, why),
        ]
    assert link.peer_state is PeerState.DISCONNECTED, "it was connected, and comes back"
    assert link.lost(1, "again", 3.1) == [] or dials
    assert link.lost(0, "older", 3.1) == []


@pytest.mark.parametrize("dials", [True, False])
def test_silence_and_back(dials: bool) -> None:
    link = connected(dials=dials)
    link.heard(1, 1.0)
    outputs: list[LinkOutput] = []
    at = 0.0
    while link.state is S.CONNECTED:
        at, more = step(link)
        outputs += more
    assert at == 3.5, "2.5 s after the last that was heard"
    assert outputs[-2:] == [
        Operate(1, MakeOffer(1 if dials else 2)),
        changed(S.CONNECTED, S.DISCONNECTED, "nothing heard for 2.5 s"),
    ]
    assert len(outputs) > 2, "it was pinged first"
    assert all(isinstance(o, Ping) for o in outputs[:-2])
    assert link.alive
    assert link.peer_state is PeerState.DISCONNECTED
    assert link.heard(0, 3.6) == [], "an older connection proves nothing"
    assert link.heard(1, 4.0) == [changed(S.DISCONNECTED, S.CONNECTED, "heard again")]
    assert link.history.connections == 1
    assert state_of(link) is S.CONNECTED


def test_what_came_of_a_link_goes_on_with_the_next_one_of_the_same_two() -> None:
    link = connected(dials=True)
    link.lost(1, "cut", 3.0)
    link.offer_made(2, 0, "o", 3.0)
    link.message(2, Answer("a"), 3.0)
    link.opened(2, 5.0)
    assert link.history == History(
        attempts=2, connections=2, connect_time=2.0, failure="connection lost: cut"
    )
    assert link.failures == 0, "the first connected before it was lost"
    link.close("timeout", 6.0)
    again = Link(
        CONFIG,
        dials=True,
        incarnation=MINE,
        random=half,
        epoch=link.epoch,
        history=link.history,
    )
    again.start(10.0)
    again.close("left", 11.0)
    assert again.history.attempts == 3
    assert (again.history.connections, again.failures) == (2, 0), "that it left is no failure"


def test_silence_that_lasts_ends_the_connection() -> None:
    link = connected(dials=True)
    at, outputs = until(link, S.OFFERING)
    assert at == 17.5
    assert outputs[-3:] == [
        Operate(1, CloseConnection()),
        Operate(2, MakeOffer()),
        changed(S.DISCONNECTED, S.OFFERING, "did not come back within 15 s"),
    ]


def test_who_stood_still_asks_once_more_and_then_believes_the_silence() -> None:
    link = connected(dials=False)
    link.heard(1, 3.0)
    link.tick(3.1)
    now = 9.0  # it stood still since then
    while link.state is S.CONNECTED:
        link.tick(now)
        now = max(now, link.next_deadline() or 0.0)
        assert now <= 11.0, "it is called connected for ever"
    assert now == 9.75


def test_a_silent_path_is_asked_four_times_as_often_whether_it_is_back() -> None:
    link = connected(dials=True)
    until(link, S.DISCONNECTED)
    pinged, now = [], 2.5
    while now < 5.0:
        now = link.next_deadline() or 0.0
        pinged += [now for output in link.tick(now) if isinstance(output, Ping)]
    assert pinged[0] == 2.5
    assert all(b - a == 0.25 for a, b in pairwise(pinged))


def pings_within(seconds: float, config: MeshConfig, *, answers: bool) -> dict[bool, int]:
    """Two ends that hear each other's pings, and the answers too; how often each has pinged."""
    links = {dials: connected(dials=dials, config=config) for dials in (True, False)}
    pings = {True: 0, False: 0}
    now = 0.0
    while now < seconds:
        dials, now = min(
            ((dials, link.next_deadline() or 0.0) for dials, link in links.items()),
            key=lambda item: item[1],
        )
        for output in links[dials].tick(now):
            assert isinstance(output, Ping), output
            pings[dials] += 1
            links[not dials].heard(1, now)
            if answers:
                links[not dials].spoke(now)
                links[dials].heard(1, now)
    assert {link.state for link in links.values()} == {S.CONNECTED}
    return pings


def test_one_side_pings_as_long_as_the_other_answers() -> None:
    assert pings_within(60.0, MeshConfig(), answers=True) == {True: 60, False: 0}


@pytest.mark.parametrize(("interval", "silence"), [(1.0, 2.5), (2.4, 2.5), (0.1, 60.0)])
def test_each_side_speaks_before_the_other_would_call_it_silent(
    interval: float, silence: float
) -> None:
    """Even when all that it sends arrives and nothing of what it gets is an answer."""
    config = MeshConfig(ping_interval=interval, silence_timeout=silence)
    pings = pings_within(60.0, config, answers=False)
    # They are sent on a grid, a little later than each is due.
    assert pings[True] >= 60.0 / (1.25 * interval) - 1
    assert pings[False] >= 60.0 / (1.75 * interval) - 1


def test_who_hears_all_the_time_speaks_nevertheless() -> None:
    link = connected(dials=False)
    at, pinged = 0.0, []
    while at < 30.0:
        at += 0.1
        assert link.heard(1, at) == []
        pinged += [at for _ in link.tick(at)]
    assert len(pinged) >= 16
    link.spoke(30.0)
    assert link.tick(31.4) == [], "what was sent meanwhile is as good as a ping"
    assert len(link.tick(31.6)) == 1


def test_who_was_disconnected_does_not_begin_to_wait_again() -> None:
    link = connected(dials=True)
    until(link, S.DISCONNECTED)
    spoke = 2.0
    link.heard(1, 2.9)
    assert step(link) == (spoke + 1.0, [Ping(1, 4)])


def test_a_stalled_loop_is_not_silence_of_the_peer() -> None:
    link = connected(dials=True)
    outputs = link.tick(9.0)  # it was due at 2.5: this process stood still
    assert link.state is S.CONNECTED
    assert {type(o) for o in outputs} == {Ping}
    at, _ = until(link, S.DISCONNECTED)
    assert at == 10.25, "whoever is really gone is found out a little later"


def test_who_asks_late_waits_as_long_for_the_answer_as_others() -> None:
    """As a tab in the background, whose timers come once a second."""

    def asked_late() -> Link:
        link = connected(dials=True)
        link.heard(1, 0.1)
        assert link.tick(2.1) == [Ping(1, 2)], "it was due at 1.0"
        assert link.tick(2.7) == [], "half a second is nothing to go by"
        return link

    assert asked_late().heard(1, 3.2) == [], "it is still connected"
    at, outputs = until(asked_late(), S.DISCONNECTED)
    assert at == pytest.approx(2.1 + 1.25)
    assert reason(outputs) == "nothing heard for 3.25 s"


def test_an_acknowledgement_puts_no_question_off() -> None:
    link = connected(dials=True)
    link.heard(1, 0.25)
    link.spoke(0.25)
    assert link.tick(1.0) == []
    link.spoke(1.0)
    assert link.tick(2.0) == [Ping(1, 2)], "a second later nothing has been heard for 2.75 s"


def test_who_speaks_all_the_time_asks_nevertheless() -> None:
    """Not all that is said is answered, and silence counts only where something was asked."""
    link = connected(dials=True)
    link.heard(1, 0.1)
    at, asked = 0.1, list[float]()
    while link.state is S.CONNECTED:
        at = round(at + 0.05, 2)
        link.spoke(at)
        asked += [at for output in link.tick(at) if isinstance(output, Ping)]
    assert asked == [1.25]
    assert at == 2.6


def test_failing_twice_waits_and_the_wait_doubles() -> None:
    link = make(dials=True)
    link.start(0.0)
    waits = []
    began = 0.0
    for attempt in range(9):
        link.offer_made(link.epoch, 0, "o", began)
        failed_at, outputs = step(link)
        assert failed_at == began + CONFIG.connect_timeout
        if attempt == 0:
            assert reason(outputs) == "not connected within 8 s"
            assert state_of(link) is S.OFFERING, "the first failure is tried again at once"
            began = failed_at
            continue
        assert state_of(link) is S.FAILED
        assert link.peer_state is PeerState.FAILED
        assert outputs[0] == Operate(link.epoch, CloseConnection())
        began, outputs = step(link)
        waits.append(began - failed_at)
        assert reason(outputs) == "trying again"
    # random() is 0.5 and half of each wait is random.
    assert waits == [0.75 * wait for wait in (1, 2, 4, 8, 16, 30, 30, 30)]


def test_the_side_that_waits_asks_and_keeps_asking() -> None:
    link = make(dials=False)
    link.start(0.0)
    assert link.tick(8.0) == [
        SendSignal(0, Dial("not dialled within 8 s")),
        changed(S.WAITING, S.FAILED, "not dialled within 8 s"),
    ]
    for _ in range(10):
        _, outputs = step(link)
        assert outputs == [SendSignal(0, Dial("asking again"))]
    assert link.message(1, Offer("o"), 300.0)[-1] == changed(S.FAILED, S.ANSWERING, "dialled")


def test_a_connection_that_held_begins_anew_with_failures_and_waits() -> None:
    link = make(dials=True)
    link.start(0.0)
    until(link, S.FAILED)
    for held, expected in ((4.9, S.FAILED), (5.1, S.OFFERING)):
        now = 0.0
        while state_of(link) is not S.OFFERING:
            now, _ = step(link)
        link.offer_made(link.epoch, 0, "o", now)
        link.message(link.epoch, Answer("a"), now)
        link.message(link.epoch, END, now)
        link.opened(link.epoch, now)
        end = now + held
        while (at := link.next_deadline()) is not None and at <= end:
            link.heard(link.epoch, at)
            link.tick(at)
        link.lost(link.epoch, "lost", end)
        assert state_of(link) is expected, held
    # And so does the wait: the next failure waits as long as the very first.
    failed_at, _ = until(link, S.FAILED)
    assert link.next_deadline() == failed_at + 0.75


def test_a_connection_on_which_nothing_is_heard_has_not_held() -> None:
    link = make(dials=True)
    link.start(0.0)
    dialled = []
    now = 0.0
    while now < 135.0:
        if link.state is S.OFFERING:
            dialled.append(now)
            link.offer_made(link.epoch, 0, "o", now)
            link.message(link.epoch, Answer("a"), now)
            link.opened(link.epoch, now)
        now, _ = step(link)
    gaps = [b - a for a, b in itertools.pairwise(dialled)]
    assert gaps == [17.5 + wait for wait in (0, 0.75, 1.5, 3, 6, 12)]


def test_without_signalling_nothing_is_tried_and_with_it_at_once() -> None:
    for dials in (True, False):
        link = make(dials=dials)
        link.start(0.0)
        link.set_reachable(False, 0.0)
        until(link, S.FAILED)
        now = 0.0
        for _ in range(20):
            now, outputs = step(link)
            assert outputs == [], "no signal, no operation"
        outputs = link.set_reachable(True, now)
        if dials:
            assert isinstance(outputs[0], Operate)
            assert reason(outputs) == "signalling is back"
        else:
            assert outputs == [SendSignal(0, Dial("signalling is back"))]


def test_the_side_that_waits_reports_a_failure_and_the_other_dials_again() -> None:
    link = connected(dials=True)
    assert link.message(1, Dial("no route"), 1.0) == [
        Operate(1, CloseConnection()),
        Operate(2, MakeOffer()),
        changed(S.CONNECTED, S.OFFERING, "the other side failed: no route"),
    ]
    assert link.message(1, Dial("no route"), 1.0) == [], "it is dialling already"


def test_a_failed_operation_ends_the_attempt_but_a_bad_candidate_does_not() -> None:
    for error in (ConnectionFailed("no route"), ProtocolError("bad sdp", code="bad_sdp")):
        link = offered()
        link.message(1, Answer("a"), 0.0)
        refused = [Refuse(error)] if isinstance(error, ProtocolError) else []
        candidates = AddCandidates((ONE,), end=False)
        assert link.operation_failed(1, candidates, error, 0.1) == refused
        assert state_of(link) is S.CHECKING
        outputs = link.operation_failed(1, AcceptAnswer("a"), error, 0.2)
        assert outputs[: len(refused)] == refused
        assert state_of(link) is S.OFFERING
        assert reason(outputs) == str(error)
        assert link.operation_failed(1, AcceptAnswer("a"), error, 0.3) == refused, "an older epoch"


@pytest.mark.parametrize(
    ("dials", "message"),
    [
        (True, Dial("x")),
        (True, Stale(OTHER, 2**30 + 1)),
        (True, Offer("o")),
        (False, Offer("o")),
        (False, Candidates([ONE])),
    ],
)
def test_an_epoch_that_leaves_no_room_for_ours_is_refused(
    dials: bool, message: LinkMessage
) -> None:
    link = connected(dials=dials)
    for epoch in (2**30 + 1, 2**31 - 1):
        if isinstance(message, Stale):
            message = Stale(OTHER, epoch)
        (refused,) = link.message(epoch, message, 1.0)
        assert isinstance(refused, Refuse)
        assert (refused.error.code, refused.error.field) == ("bad_epoch", "$.epoch")
        assert (link.state, link.epoch) == (S.CONNECTED, 1)


def test_no_two_attempts_have_the_same_epoch_however_far_ahead_the_other_side_is() -> None:
    link = offered()
    link.message(0, Stale(OTHER, 2**30), 0.0)
    assert link.epoch == 2**30 + 1
    epochs = [link.epoch]
    for _ in range(200):
        epochs += [
            output.epoch
            for output in step(link)[1]
            if isinstance(output, Operate) and output.operation == MakeOffer()
        ]
    assert epochs == sorted(set(epochs))
    assert len(epochs) > 50


# --- a connection that is lost right after each connect -------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_rapid_connects_and_losses_are_slowed_down(seed: int) -> None:
    rng = random.Random(seed)
    links = {
        dials: Link(CONFIG, dials=dials, incarnation=MINE, random=rng.random)
        for dials in (True, False)
    }
    dials: list[float] = []
    queue: list[tuple[bool, list[LinkOutput]]] = [
        (True, links[True].start(0.0)),
        (False, links[False].start(0.0)),
    ]
    now = 0.0
    while now <= 60.0:
        while queue:
            who, outputs = queue.pop(0)
            link, other = links[who], links[not who]
            for output in outputs:
                match output:
                    case Operate(epoch, MakeOffer()):
                        dials.append(now)
                        queue.append((who, link.offer_made(epoch, 0, "o", now)))
                    case Operate(epoch, AcceptOffer()):
                        queue.append((who, link.answer_made(epoch, 0, "a", now)))
                    case SendSignal(epoch, body):
                        queue.append((not who, other.message(epoch, body, now)))
                    case Operate(epoch, AcceptAnswer()):
                        for end in (True, False):
                            queue.append((end, links[end].opened(epoch, now)))
                            queue.append((end, links[end].lost(epoch, "cut", now)))
                    case Refuse(error):
                        raise AssertionError(error)
                    case _:
                        pass
        now = min(link.next_deadline() or 0.0 for link in links.values())
        for who, link in links.items():
            if (link.next_deadline() or 0.0) <= now:
                queue.append((who, link.tick(now)))
    # Both sides wait 0.5..1, 1..2, 2..4, 4..8, 8..16, 15..30 s, and either end of a wait dials.
    assert 4 <= len(dials) <= 16
    for begin in range(60):
        assert sum(begin <= at < begin + 1 for at in dials) <= 4


# --- all pairs of state and input -----------------------------------------------------------------

Feed = Callable[[Link], list[LinkOutput]]
NOW = 100.0
FAULT = ConnectionFailed("fault")


def in_state(state: LinkState, *, dials: bool, failed: bool) -> Link | None:
    """A link in ``state`` at epoch 5 (0 where there was no attempt), or None if there is none."""
    link = make(dials=dials)
    if state is S.NEW:
        return None if failed else link
    link.start(0.0)
    if failed or state is S.FAILED:
        until(link, S.FAILED)
    if state in (S.FAILED, S.WAITING):
        if state is S.WAITING and (dials or failed):
            return None
        if not dials and state is S.FAILED:
            link.message(5, Offer("o"), 0.0)
            link.lost(5, "lost", 0.0)
        elif dials:
            link.message(5, Dial(""), 0.0)
            link.lost(link.epoch, "lost", 0.0)
        return link
    if state is S.CLOSED:
        link.close("bye", 0.0)
        return link
    if dials:
        link.message(0, Stale(OTHER, 4), 0.0)
        steps: list[Feed] = [
            lambda link: link.offer_made(link.epoch, 0, "o", 0.0),
            lambda link: link.message(link.epoch, Answer("a"), 0.0),
        ]
    else:
        link.message(5, Offer("o"), 0.0)
        steps = [lambda link: link.answer_made(link.epoch, 0, "a", 0.0)]
    steps += [lambda link: link.opened(link.epoch, 0.0), lambda link: link.tick(2.5)]
    for feed in steps:
        if state_of(link) is state:
            break
        feed(link)
    if state_of(link) is not state:
        return None
    if link.state in MAY_RESTART:
        link.restart("so that there is one", 0.0)
    return link


MAY_RESTART = {S.CHECKING, S.CONNECTED, S.DISCONNECTED}


def has_answer_to_come(link: Link) -> bool:
    """Whether the other side may know of the attempt, and so have an opinion on it."""
    return link.state in (S.OFFERED, S.CHECKING, S.CONNECTED, S.DISCONNECTED)


def feeds(link: Link) -> Iterator[tuple[Input, str, Feed]]:
    """Every input at every age of epoch, and the condition that the table should know it by."""
    role = "dials" if link.dials else "waits"
    nth = "again" if link._failures else "first"
    attempt = link.state not in (S.WAITING, S.FAILED, S.CLOSED)
    messages: list[tuple[Input, Callable[[int], LinkMessage]]] = [
        (Input.OFFER, lambda _: Offer("o")),
        (Input.ANSWER, lambda _: Answer("a")),
        (Input.CANDIDATES, lambda _: Candidates([ONE])),
        (Input.DIAL, lambda _: Dial("why")),
        (Input.STALE, lambda epoch: Stale(OTHER, epoch)),
        (Input.RESTART_OFFER, lambda _: Offer("o", 8 if link.dials else 7)),
        (Input.RESTART_REPLY, lambda _: Answer("a", 1)),
        (Input.RESTART_REPLY, lambda _: Candidates([ONE], generation=1)),
    ]
    made = MakeOffer(link._restart.generation or 1)
    shell: list[tuple[Input, Callable[[Link, int], list[LinkOutput]]]] = [
        (Input.OFFER_MADE, lambda link, epoch: link.offer_made(epoch, 0, "o", NOW)),
        (Input.ANSWER_MADE, lambda link, epoch: link.answer_made(epoch, 0, "a", NOW)),
        (Input.OPENED, lambda link, epoch: link.opened(epoch, NOW)),
        (Input.LOST, lambda link, epoch: link.lost(epoch, "cut", NOW)),
        (
            Input.OPERATION_FAILED,
            lambda link, epoch: link.operation_failed(epoch, MakeOffer(), FAULT, NOW),
        ),
        (Input.PATH_LOST, lambda link, epoch: link.path_lost(epoch, "cut", NOW)),
        (Input.SELECTED, lambda link, epoch: link.selected(epoch, 0, PAIR, NOW)),
        (
            Input.CANDIDATES_FOUND,
            lambda link, epoch: link.local_candidates(epoch, 0, (ONE,), end=False, now=NOW),
        ),
        (
            Input.RESTART_REPORT,
            lambda link, epoch: link.operation_failed(epoch, made, FAULT, NOW),
        ),
    ]
    for age, epoch in (("older", link.epoch - 1), ("current", link.epoch), ("newer", 9)):
        if epoch < 0:
            continue
        for on, message in messages:
            condition = f"{role}, {age}"
            if on is Input.DIAL and condition == "dials, current" and has_answer_to_come(link):
                condition = f"dials, {nth}"
            yield (
                on,
                condition,
                lambda link, e=epoch, m=message: link.message(e, m(e), NOW),  # type: ignore[misc]
            )
        for on, call in shell:
            condition = age
            if on in (Input.LOST, Input.OPERATION_FAILED) and age == "current" and attempt:
                condition = f"{role}, {nth}"
            yield on, condition, lambda link, e=epoch, c=call: c(link, e)  # type: ignore[misc]
    yield Input.START, role, lambda link: link.start(NOW)
    yield Input.RESTART, "", lambda link: link.restart("why", NOW)
    yield Input.CLOSE, "", lambda link: link.close("why", NOW)


# They belong to the input that is being looked at, or to the link as a whole.
PASSING = ("_arg", "_detail", "_out", "_may_begin")


def slots(link: Link) -> dict[str, Any]:
    """Everything that a link is, by value."""

    def value(thing: Any) -> Any:
        match thing:
            case Deadlines():
                return dict(thing._at)
            case Restart() | Trickle():
                names = (name for name in thing.__slots__ if name not in PASSING)
                return {name: value(getattr(thing, name)) for name in names}
            case Backoff():
                return thing.attempts
            case (int() as epoch, list() as held, end):
                return epoch, tuple(held), end
            case list():
                return tuple(thing)
            case _:
                return thing

    names = (name for name in Link.__slots__ if name not in PASSING)
    return {name: value(getattr(link, name)) for name in names}


ACTIONS: dict[str, Callable[[Link, Link, LinkOutput], bool]] = {
    # What an action must put out, given the link before, the link after, and the output.
    "dial": lambda old, new, o: o == Operate(new.epoch, MakeOffer()) and new.epoch > old.epoch,
    "answer": lambda old, new, o: o == Operate(9, AcceptOffer("o")) and new.epoch == 9,
    "reply_stale": lambda old, new, o: o == SendSignal(old.epoch, Stale(MINE, old.epoch)),
    "accept_answer": lambda old, new, o: o == Operate(old.epoch, AcceptAnswer("a")),
    "add_candidates": lambda old, new, o: o == Operate(old.epoch, AddCandidates((ONE,), False)),
    "send_offer": lambda old, new, o: o == SendSignal(old.epoch, Offer("o")),
    "send_answer": lambda old, new, o: o == SendSignal(old.epoch, Answer("a")),
    "disown": lambda old, new, o: (
        isinstance(o, SendSignal) and o.epoch in (5, 9, old.epoch) and isinstance(o.body, Dial)
    ),
    "ask": lambda old, new, o: isinstance(o, SendSignal) and isinstance(o.body, Dial),
    "close": lambda old, new, o: o == Operate(old.epoch, CloseConnection()),
}
SILENT = {"count_failure", "hold_candidates", "wait_more", "restart_later", "extend"}
# What these put out is the business of the tests of ICE restarts.
RESTARTS = {"hand_on", "restart", "restart_anew", "restart_now", "select", "trickle"}
HAS_CONNECTION = {S.OFFERING, S.OFFERED, S.ANSWERING, S.CHECKING, S.CONNECTED, S.DISCONNECTED}
FROM_PEER = {
    Input.OFFER,
    Input.ANSWER,
    Input.CANDIDATES,
    Input.DIAL,
    Input.STALE,
    Input.RESTART_OFFER,
    Input.RESTART_REPLY,
}
INDEX = {(row.state, row.input, row.condition): row for row in TABLE}


def expected(row: Row, before: Link) -> list[str]:
    names = []
    for action in row.actions:
        if action in ("dial", "answer", "drop") and before.state in HAS_CONNECTION:
            names.append("close")
        if action not in SILENT and action != "drop":
            names.append(action)
    return names


def of_a_restart(output: LinkOutput) -> bool:
    """Whether it leaves the connection as it is."""
    match output:
        case Operate(_, MakeOffer(number) | AcceptOffer(_, number) | AcceptAnswer(_, number)):
            return number > 0
        case Operate(_, AddCandidates()) | PairSelected() | Refuse():
            return True
        case SendSignal(_, Offer(_, number) | Answer(_, number)):
            return number > 0
        case SendSignal(_, Candidates()):
            return True
    return False


CASES = [
    (state, dials, failed)
    for state in S
    for dials in (True, False)
    for failed in (False, True)
    if in_state(state, dials=dials, failed=failed) is not None
]


@pytest.mark.parametrize(("state", "dials", "failed"), CASES)
def test_listed_rows_do_what_they_say_and_nothing_else_changes_anything(
    state: LinkState, dials: bool, failed: bool
) -> None:
    first = in_state(state, dials=dials, failed=failed)
    assert first is not None
    for on, condition, feed in feeds(first):
        link, before = (in_state(state, dials=dials, failed=failed) for _ in range(2))
        assert link is not None
        assert before is not None
        row = INDEX.get((state, on, condition))
        where = f"{state}, {on}, {condition}"
        if row is None:
            if on in FROM_PEER:
                (refused,) = feed(link)
                assert isinstance(refused, Refuse), where
                assert isinstance(refused.error, ProtocolError)
                assert refused.error.code == f"unexpected_{on.replace(' ', '_')}"
                assert on in str(refused.error)
            else:
                with pytest.raises(UnexpectedInput, match=r".+"):
                    feed(link)
            assert slots(link) == slots(before), where
            continue
        outputs = feed(link)
        assert link.state is row.next, where
        changes = [o for o in outputs if isinstance(o, StateChanged)]
        if state is row.next:
            assert not changes, where
        else:
            assert outputs[-1:] == changes, where
            assert (changes[0].previous, changes[0].state) == (state, row.next), where
            assert changes[0].reason, where
            assert "{" not in changes[0].reason, where
        said = [o for o in outputs if not isinstance(o, StateChanged | Ping)]
        if not RESTARTS.isdisjoint(row.actions):
            assert all(of_a_restart(o) for o in said), where
            continue
        names = expected(row, before)
        assert len(said) == len(names), (where, said, names)
        for name, output in zip(names, said, strict=True):
            assert ACTIONS[name](before, link, output), (where, name, output)
        if not row.actions and state is row.next:
            assert slots(link) == slots(before), where
        assert link._failures == before._failures + row.actions.count("count_failure"), where


# --- any sequence of inputs -----------------------------------------------------------------------


class Recorded(Link):
    """A link that remembers which rows it took."""

    def __init__(self, *, dials: bool, rng: random.Random) -> None:
        super().__init__(CONFIG, dials=dials, incarnation=MINE, random=rng.random)
        self.rows: set[Row] = set()

    def _set_state(self, row: Row, now: float) -> None:
        self.rows.add(row)
        super()._set_state(row, now)


def any_input(link: Link, rng: random.Random, now: float) -> list[LinkOutput]:
    epoch = max(0, link.epoch + rng.choice((-1, 0, 0, 0, 0, 1, 2)))
    own = max(0, link.epoch + rng.choice((-1, 0, 0)))
    error: MeshError = rng.choice((FAULT, ProtocolError("fault")))
    number = rng.choice((link._restart.generation, link._restart.generation, 0, 1, 2, 3))
    theirs = max(0, link._restart._seen + rng.choice((-1, 0, 1, 2)))
    operation = rng.choice((MakeOffer(), AddCandidates((), end=True), MakeOffer(number)))
    progress: dict[LinkState, Callable[[], list[LinkOutput]]] = {
        S.NEW: lambda: link.start(now),
        S.WAITING: lambda: link.message(epoch, Offer("o"), now),
        S.OFFERING: lambda: link.offer_made(link.epoch, 0, "o", now),
        S.OFFERED: lambda: link.message(link.epoch, Answer("a"), now),
        S.ANSWERING: lambda: link.answer_made(link.epoch, 0, "a", now),
        S.CHECKING: lambda: link.opened(link.epoch, now),
    }
    restarts: dict[RestartState, Callable[[], list[LinkOutput]]] = {
        RestartState.OFFERING: lambda: link.offer_made(link.epoch, number, "o", now),
        RestartState.OFFERED: lambda: link.message(link.epoch, Answer("a", number), now),
        RestartState.ANSWERING: lambda: link.answer_made(link.epoch, number, "a", now),
        RestartState.CHECKING: lambda: link.selected(link.epoch, number, PAIR, now),
    }
    if link.state in progress and rng.random() < 0.4:
        return progress[link.state]()
    if link._restart.state in restarts and rng.random() < 0.2:
        with contextlib.suppress(UnexpectedInput):
            return restarts[link._restart.state]()
    choices: list[tuple[int, Callable[[], list[LinkOutput]]]] = [
        (4, lambda: link.message(epoch, Offer("o"), now)),
        (4, lambda: link.message(epoch, Answer("a"), now)),
        (2, lambda: link.message(epoch, Candidates([ONE]), now)),
        (2, lambda: link.message(epoch, Dial("why"), now)),
        (2, lambda: link.message(epoch, Stale(OTHER, epoch), now)),
        (6, lambda: link.offer_made(own, 0, "o", now)),
        (6, lambda: link.answer_made(own, 0, "a", now)),
        (6, lambda: link.opened(own, now)),
        (1, lambda: link.lost(own, "cut", now)),
        (1, lambda: link.operation_failed(own, operation, error, now)),
        (1, lambda: link.heard(own, now)),
        (2, lambda: link.message(epoch, Offer("o", theirs), now)),
        (2, lambda: link.message(epoch, Answer("a", theirs), now)),
        (2, lambda: link.message(epoch, Candidates([ONE], generation=theirs), now)),
        (2, lambda: link.path_lost(own, "cut", now)),
        (1, lambda: link.selected(own, number, PAIR, now)),
        (1, lambda: link.local_candidates(own, number, (ONE,), end=False, now=now)),
        (1, lambda: link.restart("asked for", now)),
        (2, lambda: link.set_reachable(rng.random() < 0.5, now)),
        (3, lambda: link.tick(now)),
    ]
    (feed,) = rng.choices([f for _, f in choices], [weight for weight, _ in choices])
    try:
        return feed()
    except UnexpectedInput:
        return []


def walk(seed: int, steps: int) -> Iterator[tuple[Recorded, list[LinkOutput]]]:
    """Any inputs, in any order; then the end, and some more."""
    rng = random.Random(seed)
    link = Recorded(dials=rng.random() < 0.5, rng=rng)
    now = 0.0
    for _ in range(steps):
        if rng.random() < 0.3 and (at := link.next_deadline()) is not None:
            now = max(now, at)
            yield link, link.tick(now)
        elif rng.random() < (0.2 if link.state is S.DISCONNECTED else 0.02):
            now += 20.0
            yield link, link.tick(now)
        yield link, any_input(link, rng, now)
    yield link, link.close("bye", now)
    yield link, any_input(link, rng, now)
    yield link, link.close("bye", now)


def test_every_row_of_the_table_can_be_reached() -> None:
    missing = set(TABLE)
    for seed in range(5000):
        for link, _ in walk(seed, seed % 100):
            missing -= link.rows
        if not missing:
            return
    raise AssertionError(missing)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32))
def test_no_state_lasts_for_ever_and_no_connection_is_left_open(seed: int) -> None:
    link: Link | None = None
    open_epoch: int | None = None
    state = S.NEW
    for link, outputs in walk(seed, 200):
        for output in outputs:
            match output:
                case Operate(epoch, CloseConnection()):
                    assert epoch == open_epoch, "it closes what it has"
                    open_epoch = None
                case Operate(epoch, MakeOffer(0) | AcceptOffer(_, 0)):
                    assert open_epoch is None, "the old connection is closed first"
                    open_epoch = epoch
                case Operate(epoch, _):
                    assert epoch == open_epoch
                case StateChanged(previous, new, why):
                    assert previous is state
                    assert why
                    state = new
                case _:
                    pass
        assert link.state is state, "every change of state is told"
        assert (open_epoch is not None) == (link.state in HAS_CONNECTION)
        if link.state in (S.NEW, S.CLOSED):
            assert link.next_deadline() is None
        else:
            assert link.next_deadline() is not None, link.state
        if link.state is S.DISCONNECTED and link.reachable:
            waits = link._deadlines.get("again") is not None
            assert waits or link._restart.state is not RestartState.IDLE, "it tries to come back"
        elif link.state not in HAS_CONNECTION:
            assert link._restart.next_deadline() is None
    assert link is not None
    assert link.state is S.CLOSED


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
def test_every_attempt_counts_as_one_that_succeeded_or_failed_or_is_under_way(seed: int) -> None:
    begun = succeeded = failed = withdrawn = 0
    under_way = False
    for link, outputs in walk(seed, 200):
        for output in outputs:
            match output:
                case Operate(_, MakeOffer(0) | AcceptOffer(_, 0)):
                    begun += 1
                    failed += under_way
                    under_way = True
                case StateChanged(S.CHECKING, S.CONNECTED):
                    succeeded += 1
                    under_way = False
                case StateChanged(_, S.WAITING | S.FAILED):
                    failed += under_way
                    under_way = False
                case StateChanged(_, S.CLOSED):
                    # One of the two is gone: that is no failure.
                    withdrawn += under_way
                    under_way = False
                case _:
                    pass
        history = link.history
        assert (history.attempts, history.connections, link.failures) == (begun, succeeded, failed)
        assert begun == succeeded + failed + withdrawn + under_way
        assert (history.connect_time > 0) <= (succeeded > 0)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 150))
def test_left_alone_every_attempt_ends_in_time(seed: int, steps: int) -> None:
    rng = random.Random(seed)
    link = Recorded(dials=rng.random() < 0.5, rng=rng)
    link.start(0.0)
    now = 0.0
    for _ in range(steps):
        if rng.random() < 0.3 and (at := link.next_deadline()) is not None:
            now = max(now, at)
            link.tick(now)
        any_input(link, rng, now)
    while link.state is not S.FAILED:
        at, _ = step(link)
        # silence, its wait with a restart that was answered, and two attempts with a restart each;
        # or for who waits, one attempt and the wait for a dial
        assert at <= now + 2.5 + 15.0 + 8.0 + 16.0 + 16.0


def test_all_fields_of_outputs_are_values() -> None:
    """The outputs are compared by value above; an object that is compared by identity would lie."""
    for kind in (Operate, SendSignal, Ping, StateChanged, PairSelected, Refuse):
        assert dataclasses.fields(kind)
        assert kind.__eq__ is not object.__eq__


def test_the_other_side_can_not_make_us_dial_without_end() -> None:
    link = Link(MeshConfig(), dials=False, incarnation="us", random=lambda: 0.5)
    link.start(0)
    begun = refused = 0
    for number in range(1, 1001):
        outputs = link.message(number, Offer("sdp"), number / 100)
        begun += any(
            isinstance(o, Operate) and isinstance(o.operation, AcceptOffer) for o in outputs
        )
        refused += any(
            isinstance(o, Refuse) and o.error.code == "too_many_attempts" for o in outputs
        )
    # Ten at once, and one a second for the ten seconds that this took.
    assert begun == 19
    assert begun + refused == 1000
    assert any(isinstance(o, Operate) for o in link.message(2000, Offer("sdp"), 20))
