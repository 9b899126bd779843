"""The ICE restarts of one connection: new credentials and candidates under the same DTLS.

A `Restart` belongs to one epoch of a link. Like the link it is one `TABLE`: an input that no row
lists raises `UnexpectedInput`, or is refused with a `ProtocolError` when it came from the other
side; either way nothing changes. A restart that is given up never harms the link either: what
carries data goes on carrying it, and the link's own deadlines decide about a new connection.

Each restart has a number, its generation (0 is the connection's first negotiation). Either side may
begin one. The side that dials takes odd numbers and the other even ones, each higher than all that
were seen or used before: so no number ever means two restarts, and whatever comes late, twice or
after both sides began at once can be told by its number alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from typing import NamedTuple

from meshpeer.config import MeshConfig
from meshpeer.core.messages import Answer, Candidates, IceCandidate, Offer, count_candidates
from meshpeer.core.operations import (
    AcceptAnswer,
    AcceptOffer,
    MakeOffer,
    Operate,
    Refuse,
    SendSignal,
)
from meshpeer.core.trickle import Trickle
from meshpeer.errors import ProtocolError, UnexpectedInput

__all__ = ["TABLE", "Restart", "RestartInput", "RestartOutput", "RestartState", "Row"]


class RestartState(StrEnum):
    """How far the latest restart of a connection is."""

    IDLE = "idle"
    """None is under way."""
    OFFERING = "offering"
    """An offer is being made."""
    OFFERED = "offered"
    """The offer is sent, the answer has not come."""
    ANSWERING = "answering"
    """An answer is being made."""
    CHECKING = "checking"
    """Both descriptions are exchanged; ICE is at work beside what carries data."""


class RestartInput(StrEnum):
    """What can happen to it."""

    BEGIN = "begin"
    # From the other side.
    OFFER = "offer"
    ANSWER = "answer"
    CANDIDATES = "candidates"
    # From the shell.
    OFFER_MADE = "offer made"
    ANSWER_MADE = "answer made"
    OPERATION_FAILED = "operation failed"
    SELECTED = "selected"
    # Time.
    DEADLINE = "deadline"


class Row(NamedTuple):
    """In ``state``, on ``input`` under ``condition``: run ``actions``, be in ``next``."""

    state: RestartState
    input: RestartInput
    condition: str
    next: RestartState
    actions: tuple[str, ...]
    reason: str


_S = RestartState
_I = RestartInput
_UNDER_WAY = (_S.OFFERING, _S.OFFERED, _S.ANSWERING, _S.CHECKING)
_OURS = (_S.OFFERING, _S.OFFERED)


# fmt: off
def _table() -> tuple[Row, ...]:
    rows: list[Row] = []

    def row(
        states: RestartState | Iterable[RestartState],
        on: RestartInput,
        conditions: str | Iterable[str],
        to: RestartState | None,
        actions: tuple[str, ...],
        reason: str,
    ) -> None:
        rows.extend(
            Row(state, on, condition, to or state, actions, reason)
            for state in ([states] if isinstance(states, RestartState) else states)
            for condition in ([conditions] if isinstance(conditions, str) else conditions)
        )

    # Begin. Urgent: what is under way knows less than a new one would, of our addresses say.
    row(_S.IDLE, _I.BEGIN, ("patient", "urgent"), _S.OFFERING, ("offer",), "begun here")
    row((_S.OFFERED, _S.CHECKING), _I.BEGIN, "urgent", _S.OFFERING, ("offer",),
        "what is under way is out of date")
    row((_S.OFFERING, _S.ANSWERING), _I.BEGIN, "urgent", None, ("remember",),
        "begun when this step is done")
    row(_UNDER_WAY, _I.BEGIN, "patient", None, (), "one is under way")

    # An offer. Who dials has the smaller id, whose restart wins when both begin one.
    row(_S.IDLE, _I.OFFER, ("dials, newer", "waits, newer"), _S.ANSWERING, ("answer",),
        "begun by the other side")
    row(_OURS, _I.OFFER, "dials, newer", None, ("pass",), "both began: the smaller id's wins")
    row(_OURS, _I.OFFER, "waits, newer", _S.ANSWERING, ("answer",),
        "both began: the smaller id's wins")
    row((_S.ANSWERING, _S.CHECKING), _I.OFFER, ("dials, newer", "waits, newer"), _S.ANSWERING,
        ("answer",), "the other side began another")
    row(_S, _I.OFFER, ("dials, older", "waits, older"), None, (), "a restart that is over")

    # An answer that nobody asked for is not listed: it is refused.
    row(_S.OFFERED, _I.ANSWER, "current", _S.CHECKING, ("accept_answer",), "answered")
    row(_S.CHECKING, _I.ANSWER, "current", None, (), "the same answer again")
    row(_S, _I.ANSWER, "older", None, (), "a restart that is over")

    row((_S.OFFERED, _S.ANSWERING, _S.CHECKING), _I.CANDIDATES, "current", None,
        ("add_candidates",), "candidates")
    row(_S, _I.CANDIDATES, "carries", None, ("add_to_carrying",), "candidates of what carries data")
    row(_S, _I.CANDIDATES, ("older", "unknown"), None, (), "not of a restart that is under way")

    # Operations.
    row(_S.OFFERING, _I.OFFER_MADE, "current", _S.OFFERED, ("send_offer",), "offer sent")
    row(_S.OFFERING, _I.OFFER_MADE, "again", None, ("offer",), "out of date before it was sent")
    row(_S.ANSWERING, _I.ANSWER_MADE, "current", _S.CHECKING, ("send_answer",), "answer sent")
    row(_S.ANSWERING, _I.ANSWER_MADE, "again", _S.OFFERING, ("send_answer", "offer"),
        "answer sent, and out of date")
    row(_S.ANSWERING, _I.ANSWER_MADE, "selected", _S.IDLE, ("send_answer",), "took over already")
    for on in (_I.OFFER_MADE, _I.ANSWER_MADE, _I.OPERATION_FAILED):
        row(_S, on, "older", None, (), "a restart that is over")

    # The end, the good one first.
    row((_S.OFFERED, _S.CHECKING), _I.SELECTED, "current", _S.IDLE, ("carry",), "took over")
    row(_S.ANSWERING, _I.SELECTED, "current", None, ("carry",), "took over before the answer left")
    row(_S, _I.SELECTED, "older", None, ("carry",), "an earlier generation carries data")
    row(_UNDER_WAY, _I.OPERATION_FAILED, "current", _S.IDLE, (), "given up: it failed")
    row(_S.OFFERING, _I.DEADLINE, "current", _S.IDLE, (), "given up: no offer was made")
    row(_S.OFFERED, _I.DEADLINE, "current", _S.IDLE, (), "given up: it was not answered")
    row(_S.ANSWERING, _I.DEADLINE, "current", _S.IDLE, (), "given up: no answer was made")
    row(_S.CHECKING, _I.DEADLINE, "current", _S.IDLE, (), "given up: it found no path")
    for on in (_I.OPERATION_FAILED, _I.DEADLINE):
        row((_S.OFFERING, _S.ANSWERING), on, "again", _S.OFFERING, ("offer",),
            "given up, and begun anew")
    return tuple(rows)
# fmt: on


TABLE: tuple[Row, ...] = _table()
_INDEX = {(row.state, row.input, row.condition): row for row in TABLE}
assert len(_INDEX) == len(TABLE), "two rows for the same state, input and condition"

_FROM_PEER = frozenset({_I.OFFER, _I.ANSWER, _I.CANDIDATES})
# What may find that another restart was asked for meanwhile.
_DONE = frozenset({_I.OFFER_MADE, _I.ANSWER_MADE, _I.OPERATION_FAILED, _I.DEADLINE})
_GIVES_UP = frozenset({_I.OPERATION_FAILED, _I.DEADLINE})
# Half of what the schema takes: the other side can't bring us beyond what we may use ourselves.
_MAX_REMOTE = 2**30

RestartOutput = Operate | SendSignal | Refuse


class Restart:
    """The restarts of the connection of ``epoch``. See the module for how it works.

    ``dials``: this side has the smaller id. ``may_begin`` says whether the other side may make us
    begin something now; asked for each of its offers that would.
    """

    __slots__ = (
        "_agreed",
        "_arg",
        "_carrying",
        "_config",
        "_current",
        "_deadline",
        "_dials",
        "_epoch",
        "_may_begin",
        "_out",
        "_remembered",
        "_seen",
        "_theirs",
        "carrying",
        "generation",
        "given_up",
        "reason",
        "state",
    )

    def __init__(
        self,
        config: MeshConfig,
        *,
        epoch: int,
        dials: bool,
        may_begin: Callable[[float], bool],
    ) -> None:
        self.state = RestartState.IDLE
        self.generation = 0
        """The number of the restart that is under way, or was the last."""
        self.carrying = 0
        """The generation that carries data."""
        self.reason = ""
        """What the latest restart was begun for."""
        self.given_up = ""
        """Why one was given up, until the link has read it."""
        self._config = config
        self._epoch = epoch
        self._dials = dials
        self._may_begin = may_begin
        self._deadline: float | None = None
        # The highest number that was seen or used, that was agreed on, and that they offered.
        self._seen = 0
        self._agreed = 0
        self._theirs = 0
        self._remembered: str | None = None
        self._current: Trickle | None = None
        self._carrying: Trickle | None = None
        self._arg: object = None
        self._out: list[RestartOutput] = []

    # --- what the link reads ---

    def next_deadline(self) -> float | None:
        """When `tick` is wanted next."""
        trickles = (self._current, self._carrying)
        times = [trickle.complete_at for trickle in trickles if trickle is not None]
        return min((at for at in (self._deadline, *times) if at is not None), default=None)

    # --- inputs ---

    def begin(self, reason: str, now: float, *, urgent: bool) -> list[RestartOutput]:
        """Begin one. Urgent: even if one is under way, which is then out of date."""
        return self._feed(_I.BEGIN, "urgent" if urgent else "patient", now, reason)

    def message(self, message: Offer | Answer | Candidates, now: float) -> list[RestartOutput]:
        """A signal with a generation above 0 arrived for this epoch."""
        number = message.generation
        text = None
        if number > _MAX_REMOTE:
            text = f"generation {number} is beyond {_MAX_REMOTE}"
        elif isinstance(message, Offer) and number % 2 == self._dials:
            kind = "odd" if self._dials else "even"
            text = f"generation {number} is not the other side's to offer: {kind} ones are ours"
        if text is not None:
            error = ProtocolError(text, code="bad_generation", field="$.generation")
            return [Refuse(error)]
        match message:
            case Offer():
                age = "newer" if number > max(self._agreed, self._theirs) else "older"
                condition = f"{'dials' if self._dials else 'waits'}, {age}"
                return self._feed(_I.OFFER, condition, now, message)
            case Answer():
                return self._feed(_I.ANSWER, self._which(number), now, message)
            case Candidates():
                which = self._which(number)
                if which == "older" and number == self.carrying:
                    which = "carries"
                return self._feed(_I.CANDIDATES, which, now, message)

    def offer_made(self, generation: int, sdp: str, now: float) -> list[RestartOutput]:
        """`MakeOffer` is done."""
        return self._feed(_I.OFFER_MADE, self._told(generation, _I.OFFER_MADE), now, sdp)

    def answer_made(self, generation: int, sdp: str, now: float) -> list[RestartOutput]:
        """`AcceptOffer` is done."""
        condition = self._told(generation, _I.ANSWER_MADE)
        if condition == "current" and self.carrying == generation:
            condition = "selected"
        return self._feed(_I.ANSWER_MADE, condition, now, sdp)

    def operation_failed(self, generation: int, now: float) -> list[RestartOutput]:
        """An operation for it, other than adding candidates, did not succeed."""
        return self._feed(
            _I.OPERATION_FAILED, self._told(generation, _I.OPERATION_FAILED), now, None
        )

    def selected(self, generation: int, now: float) -> list[RestartOutput]:
        """Data goes over a pair of this generation."""
        return self._feed(_I.SELECTED, self._told(generation, _I.SELECTED), now, generation)

    def local_candidates(
        self, generation: int, candidates: Sequence[IceCandidate], *, end: bool
    ) -> list[RestartOutput]:
        """Local candidates were found for a generation; those of one that is over are dropped."""
        trickle = None
        if self._told(generation, _I.CANDIDATES) == "current":
            trickle = self._current
        elif generation == self.carrying:
            trickle = self._carrying
        return [] if trickle is None else [*trickle.found(candidates, end=end)]

    def tick(self, now: float) -> list[RestartOutput]:
        """Time has passed."""
        out: list[RestartOutput] = []
        for trickle in (self._current, self._carrying):
            if trickle is not None and (trickle.complete_at or now + 1) <= now:
                out += trickle.complete()
        if (self._deadline or now + 1) <= now:
            out += self._feed(_I.DEADLINE, self._told(self.generation, _I.DEADLINE), now, None)
        return out

    # --- the machine ---

    def _which(self, number: int) -> str:
        if self.state is not RestartState.IDLE and number == self.generation:
            return "current"
        return "older" if number <= self._seen else "unknown"

    def _told(self, generation: int, on: RestartInput) -> str:
        which = self._which(generation)
        if which == "unknown":
            raise UnexpectedInput(f"generation {generation} of epoch {self._epoch} has not begun")
        if which == "current" and on in _DONE and self._remembered is not None:
            return "again"
        return which

    def _feed(
        self, on: RestartInput, condition: str, now: float, arg: object
    ) -> list[RestartOutput]:
        row = _INDEX.get((self.state, on, condition))
        if row is None:
            text = f"{on} ({condition}) of an ICE restart is not expected when it is {self.state}"
            if on in _FROM_PEER:
                error = ProtocolError(text, code=f"unexpected_{on}", field="$.generation")
                return [Refuse(error)]
            raise UnexpectedInput(text)
        if on in _FROM_PEER and (refused := self._refused(row, arg, now)) is not None:
            return [Refuse(refused)]
        self._arg, self._out = arg, []
        for action in row.actions:
            getattr(self, f"_do_{action}")(now)
        if on in _GIVES_UP and condition != "older":
            self.given_up = row.reason
        self._set_state(row, now)
        out, self._out = self._out, []
        self._arg = None
        return out

    def _set_state(self, row: Row, now: float) -> None:
        previous, self.state = self.state, row.next
        # Each restart that begins, and each that gets an answer, has a deadline of its own.
        match row.next:
            case RestartState.IDLE:
                self._deadline = None
                if previous is not row.next:
                    self._current = None
            case RestartState.OFFERING if "offer" in row.actions:
                self._deadline = now + self._config.restart_timeout
            case RestartState.OFFERED if previous is not row.next:
                self._deadline = now + self._config.restart_timeout
            case RestartState.ANSWERING if "answer" in row.actions:
                self._deadline = now + self._config.connect_timeout
            case RestartState.CHECKING if previous is not row.next:
                self._deadline = now + self._config.connect_timeout
            case _:
                pass

    def _refused(self, row: Row, message: object, now: float) -> ProtocolError | None:
        """Why a message that has its row is refused all the same."""
        match message:
            case Answer(sdp) if "accept_answer" in row.actions:
                assert self._current is not None
                fits = self._current.fits(count_candidates(sdp))
            case Candidates(candidates) if "add_candidates" in row.actions:
                assert self._current is not None
                fits = self._current.fits(len(candidates))
            case Candidates(candidates) if self._carrying is not None and row.actions:
                fits = self._carrying.fits(len(candidates))
            case Offer() if "answer" in row.actions and not self._may_begin(now):
                return ProtocolError(
                    "offer would begin another ICE restart, after too many: one a second is taken",
                    code="too_many_attempts",
                    field="$.type",
                )
            case _:
                fits = True
        if fits:
            return None
        return ProtocolError(
            f"{row.input} would bring the ICE restart to too many candidates",
            code="too_many_candidates",
            field="$",
        )

    # --- actions, named in the table ---

    def _begin(self, generation: int, reason: str) -> Trickle:
        self.generation = generation
        self.reason = reason
        self._seen = max(self._seen, generation)
        self._remembered = None
        self._current = Trickle(self._epoch, generation, self._config.candidates_timeout)
        return self._current

    def _do_offer(self, now: float) -> None:  # noqa: ARG002
        reason = self._remembered
        if reason is None:
            assert isinstance(self._arg, str)
            reason = self._arg
        number = self._seen + 1
        if number % 2 != self._dials:
            number += 1
        self._begin(number, reason)
        self._out.append(Operate(self._epoch, MakeOffer(number)))

    def _do_remember(self, now: float) -> None:  # noqa: ARG002
        assert isinstance(self._arg, str)
        self._remembered = self._arg

    def _do_pass(self, now: float) -> None:  # noqa: ARG002
        assert isinstance(self._arg, Offer)
        self._theirs = self._arg.generation
        self._seen = max(self._seen, self._theirs)

    def _do_answer(self, now: float) -> None:
        self._do_pass(now)
        assert isinstance(self._arg, Offer)
        sdp, generation = self._arg.sdp, self._arg.generation
        self._begin(generation, "the other side began it").described(sdp, now)
        self._out.append(Operate(self._epoch, AcceptOffer(sdp, generation)))

    def _do_send_offer(self, now: float) -> None:  # noqa: ARG002
        sdp = self._sdp()
        self._out.append(SendSignal(self._epoch, Offer(sdp, self.generation)))
        assert self._current is not None
        self._out += self._current.sent(sdp)

    def _do_send_answer(self, now: float) -> None:  # noqa: ARG002
        sdp = self._sdp()
        self._agreed = self.generation
        self._out.append(SendSignal(self._epoch, Answer(sdp, self.generation)))
        assert self._current is not None
        self._out += self._current.sent(sdp)

    def _do_accept_answer(self, now: float) -> None:
        assert isinstance(self._arg, Answer)
        assert self._current is not None
        self._agreed = self.generation
        self._current.described(self._arg.sdp, now)
        self._out.append(Operate(self._epoch, AcceptAnswer(self._arg.sdp, self.generation)))

    def _do_add_candidates(self, now: float) -> None:
        assert isinstance(self._arg, Candidates)
        assert self._current is not None
        self._out += self._current.received(self._arg.candidates, end=self._arg.end, now=now)

    def _do_add_to_carrying(self, now: float) -> None:
        assert isinstance(self._arg, Candidates)
        if self._carrying is not None:
            self._out += self._carrying.received(self._arg.candidates, end=self._arg.end, now=now)

    def _do_carry(self, now: float) -> None:  # noqa: ARG002
        assert isinstance(self._arg, int)
        if self._arg != self.carrying:
            current = self._arg == self.generation and self.state is not RestartState.IDLE
            self._carrying = self._current if current else None
            self.carrying = self._arg

    def _sdp(self) -> str:
        assert isinstance(self._arg, str)
        return self._arg
