"""The recovery ladder, rung by rung, in virtual time: one link, and what it does about trouble."""

from __future__ import annotations

import pytest

from meshpeer.config import MeshConfig
from meshpeer.core.events import CandidateInfo, CandidatePair
from meshpeer.core.link import (
    AcceptAnswer,
    AcceptOffer,
    AddCandidates,
    CloseConnection,
    Link,
    LinkOutput,
    LinkState,
    MakeOffer,
    Operate,
    PairSelected,
    Ping,
    Refuse,
    SendSignal,
    StateChanged,
)
from meshpeer.core.messages import Answer, Candidates, Dial, IceCandidate, Offer, Stale
from meshpeer.core.restart import RestartState
from meshpeer.errors import ConnectionFailed, ProtocolError
from tests.core.test_link import connected, make, offered, reason, state_of

S = LinkState
HOST = CandidateInfo("host", "192.0.2.1", 4000)
OVER = CandidateInfo("relay", "198.51.100.1", 5000, "turn:turn.example.org")
DIRECT = CandidatePair(HOST, HOST)
TURN = CandidatePair(HOST, OVER)
ONE = IceCandidate("candidate:1 1 udp 1 192.0.2.1 9 typ host", "0", 0)


def made(outputs: list[LinkOutput]) -> list[int]:
    """The ICE restarts that begin."""
    return [
        o.operation.generation
        for o in outputs
        if isinstance(o, Operate) and isinstance(o.operation, MakeOffer) and o.operation.generation
    ]


def run(
    link: Link, until: float, *, offers: bool = True, answers: bool = False, hears: bool = False
) -> list[tuple[float, LinkOutput]]:
    """Let time pass; what comes of it but pings. ``offers``: those of restarts are made at once;
    ``answers``: and answered; ``hears``: the other side is heard all the time."""
    seen: list[tuple[float, LinkOutput]] = []
    while (at := link.next_deadline()) is not None and at <= until:
        if hears:
            link.heard(link.epoch, at)
        queue = link.tick(at)
        while queue:
            output = queue.pop(0)
            match output:
                case Operate(epoch, MakeOffer(number)) if number and offers:
                    queue += link.offer_made(epoch, number, "o", at)
                case SendSignal(epoch, Offer(_, number)) if number and answers:
                    queue += link.message(epoch, Answer("a", number), at)
                    end = Candidates([], end=True, generation=number)
                    queue += link.message(epoch, end, at)
            if not isinstance(output, Ping):
                seen.append((at, output))
    return seen


def begins(seen: list[tuple[float, LinkOutput]]) -> list[float]:
    return [at for at, output in seen if made([output])]


def states(seen: list[tuple[float, LinkOutput]]) -> list[tuple[float, LinkState, str]]:
    return [(at, o.state, o.reason) for at, o in seen if isinstance(o, StateChanged)]


def checking(*, dials: bool) -> Link:
    """Both descriptions are exchanged since 0.0."""
    if dials:
        link = offered()
        link.message(1, Answer("a"), 0.0)
    else:
        link = make(dials=False)
        link.start(0.0)
        link.message(1, Offer("o"), 0.0)
        link.answer_made(1, 0, "a", 0.0)
    link.message(1, Candidates([], end=True), 0.0)
    assert link.state is S.CHECKING
    return link


# --- stuck in checking ----------------------------------------------------------------------------


def test_stuck_in_checking_the_side_that_dials_restarts_then_connects_anew_then_waits() -> None:
    link = checking(dials=True)
    seen = run(link, 16.0)
    assert begins(seen) == [8.0]
    assert states(seen) == [(16.0, S.OFFERING, "not connected within 16 s")]
    assert link.epoch == 2
    link.offer_made(2, 0, "o", 16.0)
    link.message(2, Answer("a"), 16.0)
    assert states(run(link, 32.0)) == [(32.0, S.FAILED, "not connected within 16 s")]


def test_stuck_in_checking_the_side_that_waits_gives_it_as_long() -> None:
    link = checking(dials=False)
    assert run(link, 15.9) == []
    (closed, asked, change) = (output for _, output in run(link, 16.0))
    assert closed == Operate(1, CloseConnection())
    assert asked == SendSignal(1, Dial("not connected within 16 s"))
    assert isinstance(change, StateChanged)
    assert change.state is S.WAITING


def test_an_attempt_that_is_not_answered_has_no_restart() -> None:
    link = offered()
    assert states(run(link, 8.0)) == [(8.0, S.OFFERING, "not connected within 8 s")]
    assert link.epoch == 2


def test_a_restart_while_checking_opens_the_connection() -> None:
    link = checking(dials=True)
    run(link, 8.5, answers=True)
    assert made(link.selected(1, 1, DIRECT, 8.6)) == []
    link.opened(1, 8.7)
    assert (state_of(link), link.epoch, link.generation) == (S.CONNECTED, 1, 1)
    assert link.history.restarts == 1


# --- silence --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dials", [True, False])
def test_a_restart_that_is_not_answered_is_begun_again_until_a_new_connection(dials: bool) -> None:
    link = connected(dials=dials)
    seen = run(link, 17.5)
    assert [at for at in begins(seen) if at < 17.5] == [2.5, 7.5, 12.5]
    assert states(seen) == [
        (2.5, S.DISCONNECTED, "nothing heard for 2.5 s"),
        (17.5, S.OFFERING if dials else S.WAITING, "did not come back within 15 s"),
    ]
    assert link.epoch == (2 if dials else 1)


def test_what_failed_last_is_known() -> None:
    link = connected(dials=True)
    assert link.history.failure == ""
    run(link, 3.0)
    assert link.history.failure == "nothing heard for 2.5 s"
    run(link, 7.5)
    assert link.history.failure == "ICE restart given up: it was not answered"
    run(link, 8.0, answers=True)
    fault = ConnectionFailed("no route")
    link.operation_failed(1, AcceptAnswer("a", link._restart.generation), fault, 8.1)
    assert link.history.failure == "ICE restart given up: it failed"
    run(link, 17.5)
    assert link.history.failure == "did not come back within 15 s"
    link.operation_failed(2, MakeOffer(), fault, 18.0)
    assert link.history.failure == "no route"
    link.close("left", 19.0)
    assert link.history.failure == "no route", "to leave is no failure"


def test_a_restart_that_is_replaced_by_another_has_not_failed() -> None:
    link = connected(dials=True)
    link.restart("asked for", 0.5)
    link.offer_made(1, 1, "o", 0.5)
    link.restart("asked for", 0.6)
    link.operation_failed(1, MakeOffer(1), ConnectionFailed("no route"), 0.7)
    assert link.history.failure == ""


def test_a_restart_that_takes_over_and_is_heard_ends_the_silence() -> None:
    link = connected(dials=True)
    run(link, 3.0, answers=True)
    assert link.selected(1, 1, DIRECT, 3.1) == [
        PairSelected("ICE restart took over: nothing heard for 2.5 s")
    ]
    assert state_of(link) is S.DISCONNECTED, "nothing was heard yet"
    assert reason(link.heard(1, 3.2)) == "heard again"
    assert begins(run(link, 30.0, hears=True)) == []
    assert (state_of(link), link.epoch, link.history.restarts) == (S.CONNECTED, 1, 1)


def test_a_restart_that_took_over_and_on_which_nothing_is_heard_is_followed_by_another() -> None:
    link = connected(dials=True)
    run(link, 3.0, answers=True)
    link.selected(1, 1, DIRECT, 3.0)
    assert begins(run(link, 8.0)) == [8.0]


def test_what_is_heard_while_a_restart_is_under_way_connects_and_the_restart_goes_on() -> None:
    link = connected(dials=True)
    run(link, 3.0, answers=True)
    link.heard(1, 3.1)
    assert state_of(link) is S.CONNECTED
    assert link.selected(1, 1, DIRECT, 3.2) != []
    assert link.history.restarts == 1


def test_one_that_was_answered_has_the_time_for_its_checks_but_only_once_over() -> None:
    link = connected(dials=True)
    run(link, 12.6)
    link.message(1, Answer("a", 5), 17.0)
    link.message(1, Candidates([], end=True, generation=5), 17.0)
    assert states(run(link, 24.9)) == []
    assert states(run(link, 25.0)) == [(25.0, S.OFFERING, "did not come back within 22.5 s")]
    # All are answered at once, and none finds a path.
    link = connected(dials=True)
    changes = states(run(link, 60.0, answers=True))
    assert changes[1][0] <= 2.5 + 15.0 + 8.0


@pytest.mark.parametrize("error", [ConnectionFailed("no sockets"), ProtocolError("bad")])
def test_a_restart_that_fails_at_once_leaves_the_link_and_is_not_begun_in_a_loop(
    error: ConnectionFailed | ProtocolError,
) -> None:
    link = connected(dials=True)
    run(link, 2.5, offers=False)
    assert link._restart.state is RestartState.OFFERING
    out = link.operation_failed(1, MakeOffer(1), error, 2.5)
    assert out == ([Refuse(error)] if isinstance(error, ProtocolError) else [])
    assert (state_of(link), link.epoch) == (S.DISCONNECTED, 1)
    assert begins(run(link, 10.0, offers=False)) == [7.5]
    # And a connected link does not even notice.
    link = connected(dials=True)
    link.restart("asked for", 1.0)
    link.offer_made(1, 1, "o", 1.0)
    link.message(1, Answer("a", 1), 1.0)
    before = link.state, link.epoch
    link.operation_failed(1, MakeOffer(1), error, 1.0)
    assert (link.state, link.epoch) == before
    assert begins(run(link, 30.0, hears=True)) == []


def test_a_path_in_one_direction_only_heals_or_ends_in_a_new_connection() -> None:
    """We are heard, and hear nothing; the other side answers, and its checks do not arrive."""
    link = connected(dials=False)
    seen = run(link, 30.0, answers=True)
    assert begins(seen) == [2.5, 10.5]
    assert [state for _, state, _ in states(seen)] == [S.DISCONNECTED, S.WAITING, S.FAILED]
    # The one that hears stays connected, and answers whatever is begun.
    hears = connected(dials=True)
    assert hears.message(1, Offer("o", 2), 2.5) == [Operate(1, AcceptOffer("o", 2))]
    assert hears.answer_made(1, 2, "a", 2.6) == [SendSignal(1, Answer("a", 2))]
    hears.message(1, Candidates([], end=True, generation=2), 2.6)
    assert run(hears, 12.0, hears=True) == []
    assert state_of(hears) is S.CONNECTED


@pytest.mark.parametrize("dials", [True, False])
def test_flapping_every_few_seconds_keeps_the_connection(dials: bool) -> None:
    link = connected(dials=dials)
    at = 0.0
    for _ in range(20):
        run(link, at + 3.5)
        assert state_of(link) is S.DISCONNECTED
        link.heard(1, at + 3.5)
        run(link, at + 6.0, hears=True)
        at += 6.0
    assert (state_of(link), link.epoch) == (S.CONNECTED, 1)


def test_ten_restarts_in_a_row() -> None:
    link = connected(dials=True)
    for count in range(1, 11):
        number = 2 * count - 1
        assert made(link.restart("asked for", count)) == [number]
        link.offer_made(1, number, "o", count)
        link.message(1, Answer("a", number), count)
        link.selected(1, number, DIRECT, count)
        assert (link.history.restarts, link.generation, state_of(link)) == (
            count,
            number,
            S.CONNECTED,
        )


# --- a path that ends -----------------------------------------------------------------------------


def test_a_path_that_is_lost_disconnects_and_restarts_at_once() -> None:
    link = connected(dials=True)
    assert link.path_lost(1, "the server hung up", 1.0) == [
        Operate(1, MakeOffer(1)),
        StateChanged(S.CONNECTED, S.DISCONNECTED, "path lost: the server hung up"),
    ]
    assert link.path_lost(1, "and again", 1.1) == [], "one is under way"
    assert link.path_lost(0, "an older one", 1.1) == []
    stuck = checking(dials=False)
    assert made(stuck.path_lost(1, "cut", 1.0)) == [2]
    assert state_of(stuck) is S.CHECKING


# --- local addresses ------------------------------------------------------------------------------


def test_local_addresses_that_change_restart_at_once_also_during_a_restart() -> None:
    link = connected(dials=False)
    assert made(link.restart("moved", 1.0)) == [2]
    assert made(link.restart("moved again", 1.1)) == []
    assert link.offer_made(1, 2, "o", 1.2) == [Operate(1, MakeOffer(4))], "the offer is old"
    link.offer_made(1, 4, "o", 1.3)
    assert made(link.restart("moved a third time", 1.4)) == [6]
    link.offer_made(1, 6, "o", 1.5)
    assert link.message(1, Answer("a", 4), 1.6) == [], "to an older one"
    assert len(link.message(1, Answer("a", 6), 1.6)) == 1
    out = link.selected(1, 6, DIRECT, 1.7)
    assert out == [PairSelected("ICE restart took over: moved a third time")]
    assert link.history.restarts == 1


def test_addresses_that_change_before_both_descriptions_are_there_wait_for_them() -> None:
    link = offered()
    assert link.restart("moved", 0.5) == []
    assert made(link.message(1, Answer("a"), 1.0)) == [1]
    link = make(dials=False)
    link.start(0.0)
    link.message(1, Offer("o"), 0.0)
    link.restart("moved", 0.0)
    out = link.answer_made(1, 0, "a", 0.0)
    assert out[:2] == [SendSignal(1, Answer("a")), Operate(1, MakeOffer(2))]
    # The next attempt has the new addresses anyway.
    link = offered()
    link.restart("moved", 0.5)
    link.lost(1, "cut", 1.0)
    link.offer_made(2, 0, "o", 1.0)
    assert made(link.message(2, Answer("a"), 1.0)) == []


def test_without_a_connection_there_is_nothing_to_restart() -> None:
    waiting = make(dials=False)
    waiting.start(0.0)
    assert waiting.restart("moved", 1.0) == []
    waiting.close("bye", 2.0)
    assert waiting.restart("moved", 3.0) == []


# --- signalling -----------------------------------------------------------------------------------


def test_without_signalling_no_restart_is_begun_and_with_it_at_once() -> None:
    link = connected(dials=True)
    link.set_reachable(False, 0.0)
    assert begins(run(link, 6.0)) == []
    assert state_of(link) is S.DISCONNECTED
    assert made(link.set_reachable(True, 6.0)) == [1]
    assert link.set_reachable(True, 6.1) == []
    # One that is being checked needs no signalling.
    link = connected(dials=True)
    run(link, 3.0, answers=True)
    link.set_reachable(False, 3.0)
    assert link.set_reachable(True, 4.0) == []
    # And addresses that changed meanwhile are not forgotten.
    link = connected(dials=True)
    link.set_reachable(False, 0.0)
    assert link.restart("moved", 1.0) == []
    assert made(link.set_reachable(True, 2.0)) == [1]


def test_a_restart_that_was_given_up_without_signalling_is_begun_when_it_is_back() -> None:
    link = connected(dials=True)
    run(link, 3.0)
    link.set_reachable(False, 3.0)
    assert begins(run(link, 10.0)) == []
    assert made(link.set_reachable(True, 10.0)) == [3]


# --- the other side knows nothing of it -----------------------------------------------------------


def test_a_restart_offer_for_a_connection_that_is_over_is_answered_with_dial() -> None:
    """From the side that dials; which then dials anew, instead of trying until its deadline."""
    gone = connected(dials=False)
    gone.lost(1, "cut", 1.0)
    assert state_of(gone) is S.WAITING
    asked = SendSignal(1, Dial("this connection is over"))
    assert gone.message(1, Offer("o", 1), 1.1) == [asked]
    failed = make(dials=False)
    failed.start(0.0)
    failed.tick(8.0)
    unknown = SendSignal(7, Dial("nothing is known of this connection"))
    assert failed.message(7, Offer("o", 1), 9.0) == [unknown]
    behind = connected(dials=False)
    assert behind.message(7, Offer("o", 1), 1.0) == [unknown]
    assert state_of(behind) is S.CONNECTED
    dialler = connected(dials=True)
    run(dialler, 2.6)
    assert state_of(dialler) is S.DISCONNECTED
    out = dialler.message(1, Dial("this connection is over"), 2.7)
    assert out[:2] == [Operate(1, CloseConnection()), Operate(2, MakeOffer())]


def test_a_restart_offer_for_an_older_epoch_is_told_the_current_one() -> None:
    waits = connected(dials=False, epoch=7)
    (said,) = waits.message(3, Offer("o", 1), 1.0)
    assert isinstance(said, SendSignal)
    assert said.body == Stale("this-incarnation", 7)
    behind = connected(dials=True, epoch=3)
    out = behind.message(0, Stale("other-incarnation", 7), 1.0)
    assert Operate(8, MakeOffer()) in out


def test_a_restart_offer_of_the_side_that_waits_never_ends_in_silence() -> None:
    # For an epoch that the dialling side has given up: its new offer is on its way already.
    dialling = connected(dials=True)
    dialling.lost(1, "cut", 1.0)
    assert dialling.message(1, Offer("o", 2), 1.1) == []
    assert state_of(dialling) is S.OFFERING
    # It has failed: it dials at the end of its wait.
    dialling.lost(2, "cut", 1.2)
    assert state_of(dialling) is S.FAILED
    assert dialling.message(1, Offer("o", 2), 1.3) == []
    assert dialling.message(2, Offer("o", 2), 1.3) == []
    assert states(run(dialling, 3.0))[0][1] is S.OFFERING
    # For one that it has never heard of: it dials past it.
    link = connected(dials=True)
    assert link.message(9, Offer("o", 2), 1.0)[:2] == [
        Operate(1, CloseConnection()),
        Operate(10, MakeOffer()),
    ]
    # And before the answer that it follows has come, it is too early.
    assert offered().message(1, Offer("o", 2), 0.0) == []


@pytest.mark.parametrize("dials", [True, False])
def test_what_answers_a_restart_of_another_connection_is_ignored(dials: bool) -> None:
    link = connected(dials=dials)
    link.lost(1, "cut", 1.0)
    for epoch in (0, 1, 2, 9) if not dials else (0, 1, 9):
        assert link.message(epoch, Answer("a", 1), 1.0) == []
        assert link.message(epoch, Candidates([ONE], generation=1), 1.0) == []


# --- over TURN ------------------------------------------------------------------------------------


def over_turn(*, dials: bool = True, config: MeshConfig | None = None) -> Link:
    link = connected(dials=dials, config=config or MeshConfig())
    link.selected(1, 0, TURN, 0.0)
    return link


def test_over_turn_a_better_path_is_looked_for_again_and_again() -> None:
    link = over_turn()
    seen = begins(run(link, 2000.0, hears=True, answers=True))
    waits = [at - before for before, at in zip([0.0, *seen], seen, strict=False)]
    assert waits == [5, 10, 20, 40, 80, 160, 300, 300, 300, 300, 300]
    assert link._restart.reason == "looking for a better path"


def test_a_direct_path_ends_the_search_and_its_waits() -> None:
    link = over_turn()
    assert begins(run(link, 16.0, hears=True)) == [5.0, 15.0]
    link.selected(1, 3, DIRECT, 16.0)
    assert begins(run(link, 600.0, hears=True)) == []
    link.selected(1, 3, TURN, 600.0)
    assert begins(run(link, 606.0, hears=True)) == [605.0]


def test_who_waits_or_may_use_turn_alone_looks_for_nothing() -> None:
    assert begins(run(over_turn(dials=False), 600.0, hears=True)) == []
    relay = MeshConfig(ice_transport_policy="relay")
    assert begins(run(over_turn(config=relay), 600.0, hears=True)) == []


def test_turn_credentials_that_expire_are_used_no_more_by_a_restart_under_way() -> None:
    link = over_turn(dials=False)
    assert made(link.restart("new TURN credentials", 1.0)) == [2]
    link.offer_made(1, 2, "o", 1.0)
    assert made(link.restart("new TURN credentials", 1.1)) == [4], "that one had the old ones"


# --- candidates -----------------------------------------------------------------------------------


def test_the_end_of_the_candidates_is_forced_when_it_does_not_come() -> None:
    link = offered()
    assert link.next_deadline() == 8.0, "nothing to wait for before the answer"
    link.message(1, Answer("a"), 1.0)
    link.message(1, Candidates([ONE]), 2.0)
    assert link.next_deadline() == 7.0
    assert link.tick(7.0) == [Operate(1, AddCandidates((), end=True))]
    assert link.message(1, Candidates([], end=True), 7.1) == []
    assert link.next_deadline() == 8.0


def test_candidates_of_ours_follow_the_description_of_their_generation() -> None:
    link = make(dials=True)
    link.start(0.0)
    assert link.local_candidates(1, 0, (ONE,), end=False, now=0.0) == []
    out = link.offer_made(1, 0, "o", 0.0)
    assert out[:2] == [SendSignal(1, Offer("o")), SendSignal(1, Candidates([ONE]))]
    assert link.local_candidates(1, 0, (), end=True, now=0.0) == [
        SendSignal(1, Candidates([], end=True))
    ]
    link = connected(dials=True)
    link.restart("asked for", 0.0)
    assert link.local_candidates(1, 1, (ONE,), end=True, now=0.0) == []
    out = link.offer_made(1, 1, "o", 0.0)
    assert out[1] == SendSignal(1, Candidates([ONE], end=True, generation=1))
    link.lost(1, "cut", 1.0)
    assert link.local_candidates(1, 1, (ONE,), end=True, now=1.0) == []


# --- what the other side may not do ---------------------------------------------------------------


def test_restarts_of_the_other_side_cost_what_attempts_cost() -> None:
    link = connected(dials=True)
    begun = refused = 0
    for number in range(2, 2002, 2):
        for output in link.message(1, Offer("o", number), number / 200):
            begun += output == Operate(1, AcceptOffer("o", number))
            refused += isinstance(output, Refuse) and output.error.code == "too_many_attempts"
    # Ten at once, and one a second for the ten seconds that this took.
    assert (begun, refused) == (19, 981)
    assert state_of(link) is S.CONNECTED


def test_an_answer_that_nobody_asked_for_is_refused() -> None:
    link = connected(dials=True)
    (refused,) = link.message(1, Answer("a", 1), 1.0)
    assert isinstance(refused, Refuse)
    assert (refused.error.code, refused.error.field) == ("unexpected_answer", "$.generation")


def test_a_generation_before_there_is_a_connection_is_refused_or_ignored() -> None:
    link = make(dials=True)
    link.start(0.0)
    (refused,) = link.message(1, Offer("o", 2), 0.0)
    assert isinstance(refused, Refuse)
    assert refused.error.code == "unexpected_restart_offer"
