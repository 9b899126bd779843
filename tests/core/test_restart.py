"""The table of ICE restarts: every pair of state and input, and what goes wrong between two."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshpeer.config import MeshConfig
from meshpeer.core.messages import (
    MAX_CANDIDATES,
    Answer,
    Candidates,
    IceCandidate,
    Offer,
)
from meshpeer.core.operations import (
    AcceptAnswer,
    AcceptOffer,
    AddCandidates,
    MakeOffer,
    Operate,
    Refuse,
    SendSignal,
)
from meshpeer.core.restart import (
    TABLE,
    Restart,
    RestartInput,
    RestartOutput,
    RestartState,
    Row,
)
from meshpeer.core.trickle import Trickle
from meshpeer.errors import ProtocolError, UnexpectedInput

S = RestartState
I = RestartInput  # noqa: E741
CONFIG = MeshConfig()
ONE = IceCandidate("candidate:1 1 udp 1 192.0.2.1 9 typ host", "0", 0)


def make(*, dials: bool, may_begin: bool = True) -> Restart:
    return Restart(CONFIG, epoch=4, dials=dials, may_begin=lambda _: may_begin)


def begun(*, dials: bool = True, offered: bool = True) -> Restart:
    """One of ours is under way, begun at 0.0: 1 when we dial, else 2."""
    restart = make(dials=dials)
    number = 1 if dials else 2
    assert restart.begin("why", 0.0, urgent=False) == [Operate(4, MakeOffer(number))]
    if offered:
        assert restart.offer_made(number, "o", 0.0) == [SendSignal(4, Offer("o", number))]
    return restart


def state_of(restart: Restart) -> RestartState:
    """Its state; a call, since a type checker takes an attribute to stay as it was."""
    return restart.state


# --- one side -------------------------------------------------------------------------------------


def test_a_restart_of_ours() -> None:
    restart = begun()
    assert restart.next_deadline() == 5.0
    assert restart.message(Answer("a", 1), 1.0) == [Operate(4, AcceptAnswer("a", 1))]
    assert restart.state is S.CHECKING
    restart.message(Candidates([], end=True, generation=1), 1.0)
    assert restart.next_deadline() == 9.0
    assert restart.selected(1, 2.0) == []
    assert (state_of(restart), restart.carrying, restart.reason) == (S.IDLE, 1, "why")
    assert restart.next_deadline() is None


def test_a_restart_of_theirs() -> None:
    restart = make(dials=True)
    assert restart.message(Offer("o", 2), 0.0) == [Operate(4, AcceptOffer("o", 2))]
    restart.message(Candidates([ONE], end=True, generation=2), 0.0)
    assert restart.next_deadline() == 8.0
    assert restart.answer_made(2, "a", 1.0) == [SendSignal(4, Answer("a", 2))]
    assert (restart.state, restart.next_deadline()) == (S.CHECKING, 9.0)
    assert restart.message(Offer("o", 2), 1.0) == [], "the same offer again"
    restart.selected(2, 2.0)
    assert (state_of(restart), restart.carrying) == (S.IDLE, 2)
    assert restart.message(Offer("o", 2), 3.0) == [], "and late"


@pytest.mark.parametrize("dials", [True, False])
def test_ten_restarts_in_a_row(dials: bool) -> None:
    restart = make(dials=dials)
    numbers = []
    for _ in range(10):
        (output,) = restart.begin("why", 0.0, urgent=False)
        assert isinstance(output, Operate)
        assert isinstance(output.operation, MakeOffer)
        number = output.operation.generation
        numbers.append(number)
        restart.offer_made(number, "o", 0.0)
        restart.message(Answer("a", number), 0.0)
        restart.selected(number, 0.0)
        assert (restart.state, restart.carrying) == (S.IDLE, number)
    assert numbers == list(range(1 if dials else 2, 21, 2))


def test_what_is_given_up_is_over_at_its_deadline_and_nothing_else_changes() -> None:
    for state, until in ((S.OFFERING, 5.0), (S.OFFERED, 5.0), (S.CHECKING, 8.0)):
        restart = begun(offered=state is not S.OFFERING)
        if state is S.CHECKING:
            restart.message(Answer("a", 1), 0.0)
            restart.message(Candidates([], end=True, generation=1), 0.0)
        assert restart.next_deadline() == until
        assert restart.tick(until) == []
        assert (state_of(restart), restart.carrying) == (S.IDLE, 0)
        assert restart.next_deadline() is None
        # What comes of it later is no fault of anybody.
        late: list[list[RestartOutput]] = [
            restart.offer_made(1, "o", 9.0),
            restart.operation_failed(1, 9.0),
            restart.message(Answer("a", 1), 9.0),
            restart.message(Candidates([ONE], generation=1), 9.0),
            restart.local_candidates(1, [ONE], end=True),
        ]
        assert late == [[]] * len(late)
        assert restart.begin("again", 9.0, urgent=False) == [Operate(4, MakeOffer(3))]


def test_one_that_was_given_up_may_take_over_all_the_same() -> None:
    restart = begun()
    restart.tick(5.0)
    restart.selected(1, 6.0)
    assert (restart.state, restart.carrying) == (S.IDLE, 1)


def test_addresses_that_change_during_a_restart_begin_another() -> None:
    sent = begun()
    assert sent.begin("moved", 1.0, urgent=True) == [Operate(4, MakeOffer(3))]
    assert sent.message(Answer("a", 1), 1.0) == [], "to the one before"
    checking = begun()
    checking.message(Answer("a", 1), 1.0)
    assert checking.begin("moved", 1.0, urgent=True) == [Operate(4, MakeOffer(3))]

    making = begun(offered=False)
    assert making.begin("moved", 1.0, urgent=True) == []
    assert making.offer_made(1, "o", 1.0) == [Operate(4, MakeOffer(3))], "not sent any more"
    assert making.reason == "moved"
    assert making.next_deadline() == 6.0
    assert making.offer_made(3, "o", 1.0) == [SendSignal(4, Offer("o", 3))]

    answering = make(dials=True)
    answering.message(Offer("o", 2), 0.0)
    assert answering.begin("moved", 1.0, urgent=True) == []
    assert answering.answer_made(2, "a", 1.0) == [
        SendSignal(4, Answer("a", 2)),
        Operate(4, MakeOffer(3)),
    ]
    for failed in (begun(offered=False), begun(offered=False)):
        failed.begin("moved", 1.0, urgent=True)
        late = failed.next_deadline() == 5.0
        out = failed.tick(5.0) if late else failed.operation_failed(1, 1.0)
        assert out == [Operate(4, MakeOffer(3))]


def test_what_is_not_urgent_waits_for_what_is_under_way() -> None:
    for restart in (begun(), begun(offered=False), make(dials=True)):
        if state_of(restart) is S.IDLE:
            restart.message(Offer("o", 2), 0.0)
        before = restart.state, restart.next_deadline()
        assert restart.begin("silence", 1.0, urgent=False) == []
        assert (restart.state, restart.next_deadline()) == before


def test_a_restart_that_fails_is_over() -> None:
    restart = begun()
    restart.message(Answer("a", 1), 0.0)
    assert restart.operation_failed(1, 0.1) == []
    assert state_of(restart) is S.IDLE


def test_too_many_restarts_of_theirs_are_refused() -> None:
    restart = make(dials=True, may_begin=False)
    (refused,) = restart.message(Offer("o", 2), 0.0)
    assert isinstance(refused, Refuse)
    assert refused.error.code == "too_many_attempts"
    assert (state_of(restart), restart.next_deadline()) == (S.IDLE, None)


@pytest.mark.parametrize("message", [Offer("o", 2**30 + 2), Answer("a", 2**31 - 1)])
def test_a_number_that_leaves_no_room_for_ours_is_refused(message: Offer | Answer) -> None:
    restart = begun()
    (refused,) = restart.message(message, 0.0)
    assert isinstance(refused, Refuse)
    assert (refused.error.code, refused.error.field) == ("bad_generation", "$.generation")
    assert restart.message(Offer("o", 2**30), 0.0) == []
    restart.begin("why", 0.0, urgent=True)
    assert restart.generation == 2**30 + 1


@pytest.mark.parametrize("dials", [True, False])
def test_an_offer_with_a_number_of_ours_is_refused(dials: bool) -> None:
    """Or what we report of our own could be taken for theirs."""
    restart = begun(dials=dials, offered=False)
    number = restart.generation
    for ours in (number, number + 2, number + 4):
        (refused,) = restart.message(Offer("o", ours), 0.0)
        assert isinstance(refused, Refuse)
        assert (refused.error.code, refused.error.field) == ("bad_generation", "$.generation")
    assert restart.offer_made(number, "o", 0.0) == [SendSignal(4, Offer("o", number))]


# --- candidates -----------------------------------------------------------------------------------


def with_candidates(count: int) -> str:
    return "v=0\r\n" + "a=candidate:1 1 udp 1 10.0.0.1 9 typ host\r\n" * count


def too_many(outputs: list[RestartOutput]) -> bool:
    match outputs:
        case [Refuse(ProtocolError(code="too_many_candidates"))]:
            return True
    return False


def test_a_thousand_candidates_are_refused_beyond_the_limit() -> None:
    restart = begun()
    taken = sum(len(restart.message(Candidates([ONE], generation=1), 0.0)) for _ in range(40))
    assert taken == 40
    assert too_many(restart.message(Answer(with_candidates(61), 1), 0.0))
    assert state_of(restart) is S.OFFERED
    restart.message(Answer(with_candidates(10), 1), 0.0)
    outputs = [restart.message(Candidates([ONE], generation=1), 0.0) for _ in range(1000)]
    assert [too_many(out) for out in outputs] == [False] * 50 + [True] * 950
    # And they go on to count when it carries data, and begin anew with the next.
    restart.selected(1, 0.0)
    assert too_many(restart.message(Candidates([ONE], generation=1), 0.0))
    restart.message(Offer(with_candidates(MAX_CANDIDATES), 2), 0.0)
    assert too_many(restart.message(Candidates([ONE], generation=2), 0.0))
    restart.message(Offer("o", 4), 0.0)
    assert not too_many(restart.message(Candidates([ONE], generation=4), 0.0))


def test_candidates_of_a_generation_that_is_not_known_are_ignored() -> None:
    restart = begun()
    for number in (3, 2, 77):
        assert restart.message(Candidates([ONE], generation=number), 0.0) == []
    restart.message(Answer("a", 1), 0.0)
    restart.selected(1, 0.0)
    more = Candidates([ONE], generation=1)
    assert restart.message(more, 0.0) == [Operate(4, AddCandidates((ONE,), False, 1))], (
        "of what carries data"
    )
    restart.begin("why", 0.0, urgent=False)
    assert restart.message(more, 0.0) == [Operate(4, AddCandidates((ONE,), False, 1))]
    restart.offer_made(3, "o", 0.0)
    restart.message(Answer("a", 3), 0.0)
    restart.selected(3, 0.0)
    assert restart.message(more, 0.0) == [], "and no longer when it does not"


def test_candidates_of_ours_wait_for_their_description_and_have_a_bound() -> None:
    restart = begun(offered=False)
    assert restart.local_candidates(1, [ONE] * 30, end=False) == []
    assert restart.local_candidates(1, [ONE] * 300, end=True) == []
    _, more = restart.offer_made(1, with_candidates(20), 0.0)
    assert more == SendSignal(4, Candidates([ONE] * 80, end=True, generation=1))
    assert restart.local_candidates(1, [ONE], end=False) == [], "nobody would take it"
    assert restart.local_candidates(1, [], end=True) == [
        SendSignal(4, Candidates([], end=True, generation=1))
    ]
    answering = make(dials=True)
    answering.message(Offer("o", 2), 0.0)
    assert answering.local_candidates(2, [ONE], end=False) == []
    assert answering.answer_made(2, "a", 0.0) == [
        SendSignal(4, Answer("a", 2)),
        SendSignal(4, Candidates([ONE], generation=2)),
    ]
    answering.selected(2, 0.0)
    assert answering.local_candidates(2, [ONE], end=False), "of what carries data"


def test_an_end_that_does_not_come_is_told_by_ourselves_once() -> None:
    restart = begun()
    restart.message(Answer("a", 1), 1.0)
    assert restart.next_deadline() == 6.0
    restart.message(Candidates([ONE], generation=1), 3.0)
    assert restart.next_deadline() == 8.0, "so long after the latest"
    assert restart.tick(8.0) == [Operate(4, AddCandidates((), True, 1))]
    assert restart.next_deadline() == 9.0, "what is left is the restart's own"
    assert restart.message(Candidates([], end=True, generation=1), 8.0) == []
    restart.selected(1, 8.5)
    assert restart.next_deadline() is None


def test_the_end_is_told_even_when_it_took_over_meanwhile() -> None:
    restart = begun()
    restart.message(Answer("a", 1), 1.0)
    restart.selected(1, 2.0)
    assert restart.tick(6.0) == [Operate(4, AddCandidates((), True, 1))]
    assert restart.next_deadline() is None


# --- two sides ------------------------------------------------------------------------------------


class Two:
    """Two sides; what each does and says waits in order until somebody lets it happen.

    Each end carries data over the newest generation that both ends have described alike.
    """

    def __init__(self) -> None:
        self.ends = {dials: make(dials=dials) for dials in (True, False)}
        self.waiting: dict[tuple[bool, str], list[Any]] = {
            (dials, kind): [] for dials in (True, False) for kind in ("operations", "signals")
        }
        self.described: dict[bool, set[int]] = {True: set(), False: set()}
        self.now = 0.0

    def say(self, dials: bool, outputs: list[RestartOutput]) -> None:
        for output in outputs:
            match output:
                case Operate(_, operation):
                    self.waiting[dials, "operations"].append(operation)
                case SendSignal(_, body):
                    self.waiting[dials, "signals"].append(body)
                case Refuse(error):
                    raise AssertionError(error)

    def begin(self, dials: bool, *, urgent: bool = False) -> None:
        self.say(dials, self.ends[dials].begin("why", self.now, urgent=urgent))

    def step(self, dials: bool, kind: str) -> None:
        """Let the first of what waits happen."""
        first, now = self.waiting[dials, kind].pop(0), self.now
        end = self.ends[dials]
        if kind == "signals":
            self.say(not dials, self.ends[not dials].message(first, now))
            return
        match first:
            case MakeOffer(number):
                self.say(dials, end.offer_made(number, f"offer {number}", now))
            case AcceptOffer(sdp, number):
                assert sdp == f"offer {number}"
                self.described[dials].add(number)
                self.say(dials, end.answer_made(number, f"answer {number}", now))
            case AcceptAnswer(sdp, number):
                assert sdp == f"answer {number}"
                self.described[dials].add(number)

    def steps(self) -> list[tuple[bool, str]]:
        return [which for which, waits in self.waiting.items() if waits]

    def select(self) -> None:
        """Every generation that both have described connects."""
        for number in sorted(self.described[True] & self.described[False]):
            for dials, end in self.ends.items():
                self.say(dials, end.selected(number, self.now))

    def settle(self, rng: random.Random) -> None:
        while steps := self.steps():
            self.step(*rng.choice(steps))
        self.select()

    def agreed(self) -> bool:
        one, other = self.ends[True], self.ends[False]
        return one.carrying == other.carrying > 0 and one.state is other.state is S.IDLE


def orders(limit: int) -> Iterator[list[bool]]:
    """Every order in which the next few steps may be chosen."""
    for length in range(limit + 1):
        yield from (list(order) for order in itertools.product((True, False), repeat=length))


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("urgent", [True, False])
def test_both_begin_in_every_order_and_one_restart_comes_of_it(first: bool, urgent: bool) -> None:
    """Glare: whatever overtakes what, both end with the same restart, and wait for no deadline."""
    for order in orders(7):
        two = Two()
        two.begin(first, urgent=urgent)
        began = False
        for choice in order:
            steps = two.steps()
            if not began and (choice or not steps):
                two.begin(not first, urgent=urgent)
                began = True
            elif steps:
                two.step(*steps[0 if choice else -1])
        if not began:
            two.begin(not first, urgent=urgent)
        two.settle(random.Random(1))
        assert two.agreed(), order


@settings(max_examples=500, deadline=None)
@given(st.integers(0, 2**32))
def test_any_begins_on_both_sides_in_any_order_agree_in_the_end(seed: int) -> None:
    rng = random.Random(seed)
    two = Two()
    two.begin(rng.random() < 0.5)
    for _ in range(rng.randrange(60)):
        steps = two.steps()
        if rng.random() < 0.1:
            two.begin(rng.random() < 0.5, urgent=rng.random() < 0.5)
        elif rng.random() < 0.1:
            two.select()
        elif steps:
            two.step(*rng.choice(steps))
    for _ in range(5):
        # What is not agreed on when nothing moves any more is begun anew at its deadline.
        two.settle(rng)
        if two.agreed():
            break
        two.now += 8.0
        for dials, end in two.ends.items():
            two.say(dials, end.tick(two.now))
            if state_of(end) is S.IDLE:
                two.begin(dials)
    assert two.agreed()


def test_the_smaller_id_wins_when_both_offers_cross() -> None:
    two = Two()
    two.begin(True)
    two.begin(False)
    two.step(True, "operations")
    two.step(False, "operations")
    two.step(False, "signals")
    assert two.ends[True].state is S.OFFERED, "ours goes on"
    two.step(True, "signals")
    assert two.ends[False].state is S.ANSWERING, "theirs gives way"
    two.settle(random.Random(1))
    assert two.ends[True].carrying == two.ends[False].carrying == 1


def test_an_offer_that_lost_comes_again_much_later_and_is_ignored() -> None:
    two = Two()
    two.begin(True)
    two.begin(False)
    two.step(False, "operations")
    lost = two.waiting[False, "signals"][0]
    two.settle(random.Random(1))
    assert two.agreed()
    assert two.ends[True].message(lost, 1.0) == []


def test_an_offer_that_lost_and_comes_after_the_answer_is_ignored() -> None:
    """They gave it up when they answered ours."""
    restart = begun()
    restart.tick(5.0)
    restart.begin("again", 5.0, urgent=False)
    restart.offer_made(3, "o", 5.0)
    restart.message(Answer("a", 3), 5.1)
    restart.selected(3, 5.2)
    assert restart.message(Offer("o", 2), 5.3) == []
    assert state_of(restart) is S.IDLE
    assert restart.message(Offer("o", 4), 5.4) != []


# --- all pairs of state and input -----------------------------------------------------------------

Feed = Callable[[Restart], list[RestartOutput]]
NOW = 3.0


def theirs(*, dials: bool) -> tuple[int, int, int]:
    """The numbers of what the other side begins: the first, the second, and one to come."""
    return (2, 6, 8) if dials else (3, 7, 9)


def in_state(state: RestartState, *, dials: bool, again: bool, selected: bool) -> Restart | None:
    """A restart in ``state``, the second of its connection, or None if there is none."""
    restart = make(dials=dials)
    first, under_way, _ = theirs(dials=dials)
    restart.message(Offer("o", first), 0.0)
    restart.answer_made(first, "a", 0.0)
    restart.selected(first, 0.0)
    ours = 3 if dials else 4
    match state:
        case S.OFFERING | S.OFFERED:
            restart.begin("why", 0.0, urgent=False)
            if state is S.OFFERED:
                restart.offer_made(ours, "o", 0.0)
        case S.ANSWERING | S.CHECKING:
            restart.message(Offer("o", under_way), 0.0)
            if state is S.CHECKING:
                restart.answer_made(under_way, "a", 0.0)
    if again:
        if state not in (S.OFFERING, S.ANSWERING):
            return None
        restart.begin("moved", 0.0, urgent=True)
    if selected:
        if state is not S.ANSWERING or again:
            return None
        restart.selected(under_way, 0.0)
    assert restart.state is state
    return restart


def feeds(restart: Restart) -> Iterator[tuple[RestartInput, str, Feed]]:
    """Every input at every age of number, and the condition that the table should know it by."""
    role = "dials" if restart._dials else "waits"
    state = restart.state
    current = restart.generation
    first, _, newer = theirs(dials=restart._dials)
    again = restart._remembered is not None
    yield I.BEGIN, "patient", lambda it: it.begin("why", NOW, urgent=False)
    yield I.BEGIN, "urgent", lambda it: it.begin("why", NOW, urgent=True)
    yield I.OFFER, f"{role}, newer", lambda it: it.message(Offer("o", newer), NOW)
    yield I.OFFER, f"{role}, older", lambda it: it.message(Offer("o", first), NOW)
    numbers = [("older", 1), ("unknown", 99)]
    if state is not S.IDLE:
        numbers.append(("current", current))
    for which, number in numbers:
        yield I.ANSWER, which, lambda it, n=number: it.message(Answer("a", n), NOW)  # type: ignore[misc]
        yield (
            I.CANDIDATES,
            which,
            lambda it, n=number: it.message(Candidates([ONE], generation=n), NOW),  # type: ignore[misc]
        )
        done = "again" if which == "current" and again else which
        answered = "selected" if done == "current" and restart.carrying == current else done
        yield I.OFFER_MADE, done, lambda it, n=number: it.offer_made(n, "o", NOW)  # type: ignore[misc]
        yield I.ANSWER_MADE, answered, lambda it, n=number: it.answer_made(n, "a", NOW)  # type: ignore[misc]
        yield I.OPERATION_FAILED, done, lambda it, n=number: it.operation_failed(n, NOW)  # type: ignore[misc]
        yield I.SELECTED, which, lambda it, n=number: it.selected(n, NOW)  # type: ignore[misc]
    if state is S.IDLE or restart.carrying != current:
        yield (
            I.CANDIDATES,
            "carries",
            lambda it: it.message(Candidates([ONE], generation=first), NOW),
        )
    if state is not S.IDLE:
        done = "again" if again else "current"
        yield I.DEADLINE, done, lambda it: it.tick(8.0)


def slots(thing: Any) -> dict[str, Any]:
    """Everything that it is, by value."""

    def value(thing: Any) -> Any:
        match thing:
            case Restart() | Trickle():
                return slots(thing)
            case list():
                return tuple(thing)
        return thing

    names = (name for name in thing.__slots__ if name not in ("_arg", "_out", "_may_begin"))
    return {name: value(getattr(thing, name)) for name in names}


ACTIONS: dict[str, Callable[[Restart, Restart, RestartOutput], bool]] = {
    # What an action must put out, given the restart before, after, and the output.
    "offer": lambda old, new, o: (
        o == Operate(4, MakeOffer(new.generation))
        and new.generation > old._seen
        and new.generation % 2 == new._dials
    ),
    "answer": lambda old, new, o: (
        o == Operate(4, AcceptOffer("o", new.generation))
        and new.generation == theirs(dials=old._dials)[2]
    ),
    "accept_answer": lambda old, new, o: o == Operate(4, AcceptAnswer("a", old.generation)),
    "add_candidates": lambda old, new, o: (
        o == Operate(4, AddCandidates((ONE,), False, old.generation))
    ),
    "add_to_carrying": lambda old, new, o: (
        o == Operate(4, AddCandidates((ONE,), False, old.carrying))
    ),
    "send_offer": lambda old, new, o: o == SendSignal(4, Offer("o", old.generation)),
    "send_answer": lambda old, new, o: o == SendSignal(4, Answer("a", old.generation)),
}
SILENT = {"remember", "pass", "carry"}
FROM_PEER = {I.OFFER, I.ANSWER, I.CANDIDATES}
INDEX = {(row.state, row.input, row.condition): row for row in TABLE}
CASES = [
    (state, dials, again, selected)
    for state in S
    for dials in (True, False)
    for again in (False, True)
    for selected in (False, True)
    if in_state(state, dials=dials, again=again, selected=selected) is not None
]


def check_case(state: RestartState, *, dials: bool, again: bool, selected: bool) -> Iterator[Row]:
    """Feed every input to a restart in this state; the rows that were taken."""
    case = {"dials": dials, "again": again, "selected": selected}
    first = in_state(state, **case)
    assert first is not None
    for on, condition, feed in feeds(first):
        restart, before = (in_state(state, **case) for _ in range(2))
        assert restart is not None
        assert before is not None
        row = INDEX.get((state, on, condition))
        where = f"{state}, {on}, {condition}"
        if row is None:
            if on in FROM_PEER:
                (refused,) = feed(restart)
                assert isinstance(refused, Refuse), where
                assert refused.error.code == f"unexpected_{on}"
                assert on in str(refused.error)
            else:
                with pytest.raises(UnexpectedInput, match=r".+"):
                    feed(restart)
            assert slots(restart) == slots(before), where
            continue
        yield row
        outputs = [
            o
            for o in feed(restart)
            if on is not I.DEADLINE
            or not isinstance(o, Operate)
            or isinstance(o.operation, MakeOffer)
        ]
        assert restart.state is row.next, where
        names = [name for name in row.actions if name not in SILENT]
        assert len(outputs) == len(names), (where, outputs, names)
        for name, output in zip(names, outputs, strict=True):
            assert ACTIONS[name](before, restart, output), (where, name, output)
        if not row.actions and state is row.next:
            assert slots(restart) == slots(before), where
        if row.next is S.IDLE:
            assert restart._current is None
            assert restart._deadline is None
        else:
            assert restart._deadline is not None, "no state lasts for ever"


@pytest.mark.parametrize(("state", "dials", "again", "selected"), CASES)
def test_listed_rows_do_what_they_say_and_nothing_else_changes_anything(
    state: RestartState, dials: bool, again: bool, selected: bool
) -> None:
    assert list(check_case(state, dials=dials, again=again, selected=selected))


def test_every_row_of_the_table_can_be_reached() -> None:
    reached = {
        row
        for state, dials, again, selected in CASES
        for row in check_case(state, dials=dials, again=again, selected=selected)
    }
    # Roles and conditions that the cases above bring together with every state they occur in.
    assert {row for row in TABLE if row not in reached} == set()
