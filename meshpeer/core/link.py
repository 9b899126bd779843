"""One local peer and one remote incarnation: how their connection comes about, and comes back.

A `Link` is fed inputs and returns outputs. What it does with an input is one row of `TABLE`, found
by (state, input, condition); there is no other place where the state changes. An input that the
table does not list raises `UnexpectedInput` when it is the shell's doing, and is refused with a
`ProtocolError` when it came from the other side; either way nothing changes.

The peer with the smaller id dials, the other waits (and may ask to be dialled). Each attempt has a
number, its epoch; every signal carries it, and so does everything the shell reports about a
connection. What belongs to an earlier epoch has rows of its own and changes nothing.

A connection lives through ICE restarts, whose own table is in `meshpeer.core.restart`: the link
says when one begins, hands on what is about one (a generation above 0), and when none of them helps
makes a new connection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from math import ceil
from typing import NamedTuple, TypeVar

from meshpeer.config import MeshConfig
from meshpeer.core.events import CandidatePair, Path, PeerState
from meshpeer.core.messages import (
    MAX_CANDIDATES,
    Answer,
    Candidates,
    Dial,
    IceCandidate,
    LinkMessage,
    Offer,
    Stale,
    count_candidates,
    printable,
)
from meshpeer.core.operations import (
    AcceptAnswer,
    AcceptOffer,
    AddCandidates,
    CloseConnection,
    MakeOffer,
    Operate,
    Operation,
    Refuse,
    SendSignal,
)
from meshpeer.core.restart import Restart, RestartOutput, RestartState
from meshpeer.core.timing import STALL, Backoff, Deadlines
from meshpeer.core.trickle import Trickle
from meshpeer.errors import MeshError, ProtocolError, UnexpectedInput

__all__ = [
    "TABLE",
    "AcceptAnswer",
    "AcceptOffer",
    "AddCandidates",
    "CloseConnection",
    "History",
    "Input",
    "Link",
    "LinkOutput",
    "LinkState",
    "MakeOffer",
    "Operate",
    "Operation",
    "PairSelected",
    "Ping",
    "Refuse",
    "Row",
    "SendSignal",
    "StateChanged",
]


class LinkState(StrEnum):
    """Where a link stands. `Link.peer_state` says it in the words of the public interface."""

    NEW = "new"
    WAITING = "waiting"
    """The other side is to dial."""
    OFFERING = "offering"
    """An offer is being made."""
    OFFERED = "offered"
    """The offer is sent, the answer has not come."""
    ANSWERING = "answering"
    """An answer is being made."""
    CHECKING = "checking"
    """Both descriptions are exchanged; ICE, DTLS and SCTP are at work."""
    CONNECTED = "connected"
    DISCONNECTED = "disconnected"
    """Nothing was heard for a while; the connection may still come back."""
    FAILED = "failed"
    """Attempts failed; another follows after a wait."""
    CLOSED = "closed"


class Input(StrEnum):
    """What can happen to a link."""

    START = "start"
    # From the other side.
    OFFER = "offer"
    ANSWER = "answer"
    CANDIDATES = "candidates"
    DIAL = "dial"
    STALE = "stale"
    RESTART_OFFER = "restart offer"
    """An offer with a generation above 0."""
    RESTART_REPLY = "restart reply"
    """An answer or candidates with a generation above 0."""
    # From the shell, about operations and the connection.
    OFFER_MADE = "offer made"
    ANSWER_MADE = "answer made"
    OPERATION_FAILED = "operation failed"
    OPENED = "opened"
    LOST = "lost"
    PATH_LOST = "path lost"
    HEARD = "heard"
    CANDIDATES_FOUND = "candidates found"
    SELECTED = "selected"
    RESTART_REPORT = "restart report"
    """What became of an operation with a generation above 0."""
    # Time.
    DEADLINE = "deadline"
    SILENCE = "silence"
    # From the mesh, and from the program.
    REACHABLE = "reachable"
    RESTART = "restart"
    """Something asks for an ICE restart."""
    CLOSE = "close"


class Row(NamedTuple):
    """In ``state``, on ``input`` under ``condition``: run ``actions``, be in ``next``."""

    state: LinkState
    input: Input
    condition: str
    next: LinkState
    actions: tuple[str, ...]
    reason: str
    """Why; shown to users when the state changes. ``{}`` takes the detail of the input."""


_S = LinkState
_DIALLING = (_S.OFFERING, _S.OFFERED, _S.CHECKING)
_ANSWERING = (_S.ANSWERING, _S.CHECKING)
_UP = (_S.CONNECTED, _S.DISCONNECTED)
_IDLE = (_S.WAITING, _S.FAILED)
_HAS_CONNECTION = frozenset((*_DIALLING, *_ANSWERING, *_UP))
_MAY_RESTART = (_S.CHECKING, *_UP)
_DESCRIBING = (_S.OFFERING, _S.OFFERED, _S.ANSWERING)
_DIALS = (*_DIALLING, *_UP, _S.FAILED)
_WAITS = (_S.WAITING, *_ANSWERING, *_UP, _S.FAILED)


# fmt: off
def _table() -> tuple[Row, ...]:
    rows: list[Row] = []

    def row(
        states: LinkState | Iterable[LinkState],
        on: Input,
        conditions: str | Iterable[str],
        to: LinkState | None,
        actions: tuple[str, ...],
        reason: str,
    ) -> None:
        rows.extend(
            Row(state, on, condition, to or state, actions, reason)
            for state in ([states] if isinstance(states, LinkState) else states)
            for condition in ([conditions] if isinstance(conditions, str) else conditions)
        )

    # Begin.
    row(_S.NEW, Input.START, "dials", _S.OFFERING, ("dial",), "dialling")
    row(_S.NEW, Input.START, "waits", _S.WAITING, (), "waiting to be dialled")

    # An offer, on the side that waits: the newest wins, whatever was before.
    row(_WAITS, Input.OFFER, "waits, newer", _S.ANSWERING, ("answer",), "dialled")
    row(_WAITS, Input.OFFER, "waits, current", None, (), "the same offer again")
    row(_WAITS, Input.OFFER, "waits, older", None, ("reply_stale",), "an epoch that is over")
    # An offer, on the side that dials: both dial. Ours wins while it is on its way.
    row(_DIALLING, Input.OFFER, ("dials, older", "dials, current", "dials, newer"), None, (),
        "both dial: the offer of the smaller id wins")
    row((*_UP, _S.FAILED), Input.OFFER, "dials, newer", _S.OFFERING, ("dial",),
        "both dial: the smaller id dials again")
    row((*_UP, _S.FAILED), Input.OFFER, ("dials, older", "dials, current"), None,
        ("reply_stale",), "an epoch that is over")

    # An answer. One that nobody asked for is not listed: it is refused.
    row(_S.OFFERED, Input.ANSWER, "dials, current", _S.CHECKING, ("accept_answer",), "answered")
    row(_DIALS, Input.ANSWER, "dials, older", None, (), "an epoch that is over")
    row((_S.CHECKING, *_UP), Input.ANSWER, "dials, current", None, (), "the same answer again")
    row(_S.FAILED, Input.ANSWER, "dials, current", None, (), "an attempt that failed")

    # Candidates may overtake the offer they belong to: they are kept for it.
    row((_S.OFFERED, _S.CHECKING, *_UP), Input.CANDIDATES, "dials, current", None,
        ("add_candidates",), "candidates")
    row((*_ANSWERING, *_UP), Input.CANDIDATES, "waits, current", None,
        ("add_candidates",), "candidates")
    row(_S.FAILED, Input.CANDIDATES, "dials, current", None, (), "an attempt that failed")
    row(_IDLE, Input.CANDIDATES, "waits, current", None, (), "an attempt that failed")
    row(_DIALS, Input.CANDIDATES, "dials, older", None, (), "an epoch that is over")
    row(_WAITS, Input.CANDIDATES, "waits, older", None, (), "an epoch that is over")
    row(_WAITS, Input.CANDIDATES, "waits, newer", None, ("hold_candidates",),
        "candidates before their offer")

    # An ICE restart of the other side's.
    row(_MAY_RESTART, Input.RESTART_OFFER, ("dials, current", "waits, current"), None,
        ("hand_on",), "an ICE restart")
    row(_MAY_RESTART, Input.RESTART_REPLY, ("dials, current", "waits, current"), None,
        ("hand_on",), "an ICE restart")
    row(_WAITS, Input.RESTART_OFFER, "waits, newer", None, ("disown",),
        "nothing is known of this connection")
    row(_IDLE, Input.RESTART_OFFER, "waits, current", None, ("disown",),
        "this connection is over")
    row(_WAITS, Input.RESTART_OFFER, "waits, older", None, ("reply_stale",),
        "an epoch that is over")
    row(_S.ANSWERING, Input.RESTART_OFFER, "waits, current", None, (), "before the answer")
    row(_S.OFFERED, Input.RESTART_OFFER, "dials, current", None, (), "before the answer")
    row(_DIALLING, Input.RESTART_OFFER, "dials, newer", None, (), "dialling already")
    row((*_UP, _S.FAILED), Input.RESTART_OFFER, "dials, newer", _S.OFFERING, ("dial",),
        "the other side is ahead")
    row(_DIALS, Input.RESTART_OFFER, "dials, older", None, (), "an epoch that is over")
    row(_S.FAILED, Input.RESTART_OFFER, "dials, current", None, (), "an attempt that failed")
    row(_DIALS, Input.RESTART_REPLY, ("dials, older", "dials, newer"), None, (),
        "not of this connection")
    row(_WAITS, Input.RESTART_REPLY, ("waits, older", "waits, newer"), None, (),
        "not of this connection")
    row((_S.OFFERED, _S.FAILED), Input.RESTART_REPLY, "dials, current", None, (),
        "not of this connection")
    row((_S.ANSWERING, *_IDLE), Input.RESTART_REPLY, "waits, current", None, (),
        "not of this connection")

    # The side that waits asks to be dialled. If it had our latest offer, that attempt has failed.
    row(_S.FAILED, Input.DIAL, ("dials, older", "dials, current", "dials, newer"), _S.OFFERING,
        ("dial",), "the other side asks: {}")
    row((*_DIALLING, *_UP), Input.DIAL, "dials, older", None, (), "dialling already")
    row((*_DIALLING, *_UP), Input.DIAL, "dials, newer", _S.OFFERING, ("dial",),
        "the other side is ahead: {}")
    row(_S.OFFERING, Input.DIAL, "dials, current", None, (), "dialling already")

    # The side that waits tells that our offer is behind what it knows. Once it has answered this
    # epoch, that was about an earlier offer, which came late or twice.
    row(_DIALS, Input.STALE, "dials, newer", _S.OFFERING, ("dial",),
        "the other side is ahead of our offer")
    row((_S.OFFERING, _S.OFFERED), Input.STALE, "dials, current", _S.OFFERING, ("dial",),
        "the other side is ahead of our offer")
    row((_S.CHECKING, *_UP), Input.STALE, "dials, current", None, (), "an offer that is over")
    row(_S.FAILED, Input.STALE, "dials, current", None, (), "an attempt that failed")
    row(_DIALS, Input.STALE, "dials, older", None, (), "an epoch that is over")
    # What we sent was for an incarnation that is over; the current one dials when it is ready.
    row(_WAITS, Input.STALE, ("waits, older", "waits, current", "waits, newer"), None, (),
        "the other side is to dial")

    # Operations and the connection.
    row(_S.OFFERING, Input.OFFER_MADE, "current", _S.OFFERED, ("send_offer",), "offer sent")
    row(_S.ANSWERING, Input.ANSWER_MADE, "current", _S.CHECKING, ("send_answer",), "answer sent")
    row(_S.CHECKING, Input.OPENED, "current", _S.CONNECTED, (), "connected")
    row(_S.DISCONNECTED, Input.HEARD, "current", _S.CONNECTED, (), "heard again")
    row((*_DESCRIBING, *_MAY_RESTART), Input.CANDIDATES_FOUND, "current", None, ("trickle",),
        "candidates")
    row((*_DESCRIBING, *_MAY_RESTART), Input.SELECTED, "current", None, ("select",),
        "a candidate pair was selected")
    row(_MAY_RESTART, Input.RESTART_REPORT, "current", None, ("hand_on",), "an ICE restart")
    for on in (Input.OFFER_MADE, Input.ANSWER_MADE, Input.OPENED, Input.LOST, Input.PATH_LOST,
               Input.OPERATION_FAILED, Input.CANDIDATES_FOUND, Input.SELECTED,
               Input.RESTART_REPORT):
        row([state for state in _S if state is not _S.NEW], on, "older", None, (),
            "a connection that is gone")
        row((*_IDLE, _S.CLOSED), on, "current", None, (), "a connection that is gone")

    # The path is bad, or may be: an ICE restart.
    row(_S.CONNECTED, Input.SILENCE, "", _S.DISCONNECTED, ("restart",), "nothing heard for {} s")
    row(_S.CONNECTED, Input.PATH_LOST, "current", _S.DISCONNECTED, ("restart",), "path lost: {}")
    row((_S.CHECKING, _S.DISCONNECTED), Input.PATH_LOST, "current", None, ("restart",),
        "path lost: {}")
    row(_DESCRIBING, Input.PATH_LOST, "current", None, (), "nothing goes over it yet")
    row(_MAY_RESTART, Input.RESTART, "", None, ("restart_anew",), "{}")
    row(_DESCRIBING, Input.RESTART, "", None, ("restart_later",), "{}")
    row((_S.NEW, *_IDLE, _S.CLOSED), Input.RESTART, "", None, (), "no connection to restart")
    row(_S.CHECKING, Input.DEADLINE, "dials, not restarted", None, ("extend", "restart"),
        "not connected within {} s")
    row(_S.CHECKING, Input.DEADLINE, "waits, not restarted", None, ("extend",),
        "not connected within {} s")

    # What fails once is tried again at once; what fails again waits first.
    for dialling, answering, on, reason in (
        (_DIALLING, _ANSWERING, Input.DEADLINE, "not connected within {} s"),
        (_S.DISCONNECTED, _S.DISCONNECTED, Input.DEADLINE, "did not come back within {} s"),
        ((*_DIALLING, *_UP), (*_ANSWERING, *_UP), Input.LOST, "connection lost: {}"),
        ((*_DIALLING, *_UP), (*_ANSWERING, *_UP), Input.OPERATION_FAILED, "{}"),
        ((_S.OFFERED, _S.CHECKING, *_UP), (), Input.DIAL, "the other side failed: {}"),
    ):
        row(dialling, on, "dials, first", _S.OFFERING, ("count_failure", "dial"), reason)
        row(dialling, on, "dials, again", _S.FAILED, ("count_failure", "drop"), reason)
        row(answering, on, "waits, first", _S.WAITING, ("count_failure", "drop", "ask"), reason)
        row(answering, on, "waits, again", _S.FAILED, ("count_failure", "drop"), reason)
    row(_S.WAITING, Input.DEADLINE, ("waits, first", "waits, again"), _S.FAILED,
        ("count_failure", "ask"), "not dialled within {} s")
    row(_S.FAILED, Input.DEADLINE, "dials, again", _S.OFFERING, ("dial",), "trying again")
    row(_S.FAILED, Input.DEADLINE, "waits, again", None, ("ask", "wait_more"), "asking again")
    row(_S.FAILED, Input.DEADLINE, "unreachable", None, ("wait_more",), "no signalling to the peer")

    # Signals get to the peer again.
    row(_S.FAILED, Input.REACHABLE, "dials", _S.OFFERING, ("dial",), "signalling is back")
    row(_IDLE, Input.REACHABLE, "waits", None, ("ask",), "signalling is back")
    row(_MAY_RESTART, Input.REACHABLE, ("dials", "waits"), None, ("restart_now",),
        "signalling is back")
    row((_S.OFFERING, _S.OFFERED), Input.REACHABLE, "dials", None, (), "nothing to mend")
    row(_S.ANSWERING, Input.REACHABLE, "waits", None, (), "nothing to mend")

    # The end.
    row(_S, Input.CLOSE, "", _S.CLOSED, ("drop",), "{}")
    return tuple(rows)
# fmt: on


TABLE: tuple[Row, ...] = _table()
_INDEX = {(row.state, row.input, row.condition): row for row in TABLE}
assert len(_INDEX) == len(TABLE), "two rows for the same state, input and condition"

_FROM_PEER = frozenset(
    {
        Input.OFFER,
        Input.ANSWER,
        Input.CANDIDATES,
        Input.DIAL,
        Input.STALE,
        Input.RESTART_OFFER,
        Input.RESTART_REPLY,
    }
)
_TAG: dict[type, Input] = {
    Offer: Input.OFFER,
    Answer: Input.ANSWER,
    Candidates: Input.CANDIDATES,
    Dial: Input.DIAL,
    Stale: Input.STALE,
}
_T = TypeVar("_T")

# Half of what the schema takes. The other side can't bring us beyond it, and the attempts of our
# own that are left then last for decades: so no two attempts ever have the same epoch.
_MAX_REMOTE_EPOCH = 2**30
# An attempt costs a connection; the other side can't make us begin more than these in a row, and
# one a second after that.
_BEGINS = frozenset({"dial", "answer"})
_BURST = 10.0
# What brings candidates of the other side, which are at most MAX_CANDIDATES in one attempt.
_ADDS = frozenset({"answer", "accept_answer", "add_candidates", "hold_candidates"})


# --- outputs -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ping:
    """Send a check over the connection of this epoch; report PONG when it is answered."""

    epoch: int
    nonce: int


@dataclass(frozen=True, slots=True)
class StateChanged:
    """The state has changed."""

    previous: LinkState
    state: LinkState
    reason: str


@dataclass(frozen=True, slots=True)
class PairSelected:
    """Another pair carries data, or another generation."""

    reason: str


LinkOutput = Operate | SendSignal | Ping | StateChanged | PairSelected | Refuse


@dataclass(slots=True)
class History:
    """What came of a link, from when its two incarnations first met."""

    attempts: int = 0
    """Connections that were begun."""
    connections: int = 0
    """How many of them connected."""
    withdrawn: int = 0
    """How many of them were under way when one of the two was gone."""
    connect_time: float = 0.0
    """Seconds from the beginning of an attempt to its success, of all together."""
    restarts: int = 0
    """ICE restarts that took over."""
    fallbacks: int = 0
    """How often data went over to the relay; kept by the node."""
    failure: str = ""
    """Why the latest attempt, ICE restart or path that failed did."""


class Link:
    """The state machine of one link. See the module for how it works.

    ``dials``: this side has the smaller id. ``random`` gives numbers in [0, 1) for the jitter.
    ``epoch`` and ``history``: where an earlier link between the same two incarnations ended.
    """

    __slots__ = (
        "_arg",
        "_asked_at",
        "_backoff",
        "_begins",
        "_begins_at",
        "_begun_at",
        "_config",
        "_deadlines",
        "_detail",
        "_disconnected_at",
        "_extended",
        "_failures",
        "_heard_at",
        "_held",
        "_incarnation",
        "_out",
        "_ping_nonce",
        "_pinged_at",
        "_random",
        "_recovering",
        "_restart",
        "_spoke_at",
        "_trickle",
        "_upgrade",
        "_wanted",
        "carried",
        "dials",
        "epoch",
        "generation",
        "history",
        "pair",
        "reachable",
        "rtt",
        "state",
    )

    def __init__(
        self,
        config: MeshConfig,
        *,
        dials: bool,
        incarnation: str,
        random: Callable[[], float],
        epoch: int = 0,
        history: History | None = None,
    ) -> None:
        self.state = LinkState.NEW
        self.dials = dials
        self.epoch = epoch
        self.reachable = True
        """Whether signals get to the peer; kept by the node."""
        self.carried = False
        """Whether the relay carries what this link does not; kept by the node."""
        self.rtt: float | None = None
        """The latest measured round trip in seconds."""
        self.history = history or History()
        self.pair: CandidatePair | None = None
        """What data goes over, as far as the connection of this epoch has said."""
        self.generation = 0
        """The ICE generation that carries data."""
        self._config = config
        self._incarnation = incarnation
        self._random = random
        self._deadlines: Deadlines[str] = Deadlines()
        self._backoff = Backoff(config.retry_first, config.retry_max, jitter=0.5)
        self._failures = 0
        self._recovering = False
        self._heard_at = 0.0
        self._spoke_at = 0.0
        self._ping_nonce = 0
        self._pinged_at: float | None = None
        # When it was pinged for the first time since it was heard.
        self._asked_at: float | None = None
        self._begins = _BURST
        self._begins_at = 0.0
        self._begun_at = 0.0
        self._upgrade = Backoff(config.upgrade_first, config.upgrade_max, jitter=0.0)
        self._disconnected_at = 0.0
        # Of this attempt: the candidates of its first generation, its restarts, why another one is
        # to begin as soon as it can, and whether it was given time for one.
        self._trickle = Trickle(epoch, 0, config.candidates_timeout)
        self._restart = self._new_restart()
        self._wanted: str | None = None
        self._extended = False
        self._held: tuple[int, list[IceCandidate], bool] | None = None
        self._out: list[LinkOutput] = []
        self._arg: object = None
        self._detail = ""

    # --- what the shell reads ---

    @property
    def peer_state(self) -> PeerState:
        """The state in the words of the public interface."""
        match self.state:
            case LinkState.NEW | LinkState.WAITING if not self._recovering:
                return PeerState.NEW if self.epoch == 0 else PeerState.CONNECTING
            case LinkState.CONNECTED:
                return PeerState.CONNECTED
            case LinkState.FAILED:
                return PeerState.FAILED
            case LinkState.CLOSED:
                return PeerState.CLOSED
            case _:
                return PeerState.DISCONNECTED if self._recovering else PeerState.CONNECTING

    @property
    def alive(self) -> bool:
        """Whether a direct path exists, or did until a moment ago."""
        return self.state in _UP

    @property
    def failures(self) -> int:
        """How many attempts failed, in all epochs."""
        history = self.history
        ended = history.attempts - self._is_attempting
        return ended - history.connections - history.withdrawn

    @property
    def _is_attempting(self) -> bool:
        return self.state in (*_DIALLING, *_ANSWERING)

    def next_deadline(self) -> float | None:
        """When `tick` is wanted next."""
        times = (self._deadlines.next(), self._trickle.complete_at, self._restart.next_deadline())
        return min((at for at in times if at is not None), default=None)

    # --- inputs ---

    def start(self, now: float) -> list[LinkOutput]:
        """Begin: dial, or wait to be dialled."""
        return self._feed(Input.START, self._role, now)

    def message(self, epoch: int, message: LinkMessage, now: float) -> list[LinkOutput]:
        """A signal of the remote incarnation arrived."""
        kind = _TAG[type(message)]
        if isinstance(message, Offer | Answer | Candidates) and message.generation:
            kind = Input.RESTART_OFFER if kind is Input.OFFER else Input.RESTART_REPLY
        if isinstance(message, Stale):
            epoch = message.epoch
        if isinstance(message, Dial):
            if (
                self.dials
                and epoch == self.epoch
                and self.state in _HAS_CONNECTION
                and self.state is not LinkState.OFFERING
            ):
                return self._failure(kind, epoch, message.reason, now)
            detail = message.reason
        else:
            detail = ""
        if epoch > _MAX_REMOTE_EPOCH:
            text = f"epoch {epoch} is beyond {_MAX_REMOTE_EPOCH}"
            return [Refuse(ProtocolError(text, code="bad_epoch", field="$.epoch"))]
        age = "older" if epoch < self.epoch else "current" if epoch == self.epoch else "newer"
        return self._feed(kind, f"{self._role}, {age}", now, arg=(epoch, message), detail=detail)

    def offer_made(self, epoch: int, generation: int, sdp: str, now: float) -> list[LinkOutput]:
        """`MakeOffer` is done."""
        if generation:
            return self._report(epoch, lambda it: it.offer_made(generation, sdp, now), now)
        return self._feed(Input.OFFER_MADE, self._age(epoch), now, arg=sdp)

    def answer_made(self, epoch: int, generation: int, sdp: str, now: float) -> list[LinkOutput]:
        """`AcceptOffer` is done."""
        if generation:
            return self._report(epoch, lambda it: it.answer_made(generation, sdp, now), now)
        return self._feed(Input.ANSWER_MADE, self._age(epoch), now, arg=sdp)

    def operation_failed(
        self, epoch: int, operation: Operation, error: MeshError, now: float
    ) -> list[LinkOutput]:
        """An operation did not succeed. Candidates that can't be used change nothing, and an ICE
        restart that failed ends that restart alone."""
        out: list[LinkOutput] = [Refuse(error)] if isinstance(error, ProtocolError) else []
        match operation:
            case AddCandidates():
                pass
            case MakeOffer(number) | AcceptOffer(_, number) | AcceptAnswer(_, number) if number:
                out += self._report(epoch, lambda it: it.operation_failed(number, now), now)
            case _:
                out += self._failure(Input.OPERATION_FAILED, epoch, str(error), now)
        return out

    def local_candidates(
        self,
        epoch: int,
        generation: int,
        candidates: tuple[IceCandidate, ...],
        *,
        end: bool,
        now: float,
    ) -> list[LinkOutput]:
        """The connection found candidates of its own. They follow their description."""
        found = (generation, candidates, end)
        return self._feed(Input.CANDIDATES_FOUND, self._age(epoch), now, arg=found)

    def selected(
        self, epoch: int, generation: int, pair: CandidatePair, now: float
    ) -> list[LinkOutput]:
        """Data goes over this pair from now on."""
        return self._feed(Input.SELECTED, self._age(epoch), now, arg=(generation, pair))

    def opened(self, epoch: int, now: float) -> list[LinkOutput]:
        """The message channel is open."""
        return self._feed(Input.OPENED, self._age(epoch), now)

    def lost(self, epoch: int, reason: str, now: float) -> list[LinkOutput]:
        """The connection is over."""
        return self._failure(Input.LOST, epoch, reason, now)

    def path_lost(self, epoch: int, reason: str, now: float) -> list[LinkOutput]:
        """What data went over has ended; the connection waits for another generation."""
        return self._feed(Input.PATH_LOST, self._age(epoch), now, detail=reason)

    def heard(self, epoch: int, now: float, *, answered: bool = False) -> list[LinkOutput]:
        """Something arrived over the connection. Called for every frame.

        ``answered``: the other side has heard of us as well.
        """
        if epoch != self.epoch:
            return []
        self._heard_at = now
        self._asked_at = None
        if answered:
            self._spoke_at = now
        if self.state is not LinkState.DISCONNECTED:
            return []
        return self._feed(Input.HEARD, "current", now)

    def spoke(self, now: float) -> None:
        """A frame was sent over the connection: no ping is needed for a while."""
        self._spoke_at = now

    def pong(self, epoch: int, nonce: int, now: float) -> list[LinkOutput]:
        """The answer to a ping arrived. It is a sign of life even if nobody waits for it."""
        if epoch == self.epoch and nonce == self._ping_nonce and self._pinged_at is not None:
            self.rtt = now - self._pinged_at
            self._pinged_at = None
        return self.heard(epoch, now)

    def ping(self, now: float) -> Ping:
        """Measure the round trip now."""
        self._ping_nonce = (self._ping_nonce + 1) & 0x7FFFFFFF
        self._pinged_at = self._spoke_at = now
        if self._asked_at is None:
            self._asked_at = now
        return Ping(self.epoch, self._ping_nonce)

    def set_reachable(self, reachable: bool, now: float) -> list[LinkOutput]:
        """Signals get to the peer, or don't."""
        self.reachable = reachable
        if not reachable or self.state in (LinkState.NEW, LinkState.CLOSED):
            return []
        return self._feed(Input.REACHABLE, self._role, now)

    def restart(self, reason: str, now: float) -> list[LinkOutput]:
        """Begin an ICE restart as soon as there is a connection for it.

        One that is under way is out of date then. Nothing happens while no attempt is under way:
        the next one has all that a restart would bring.
        """
        return self._feed(Input.RESTART, "", now, detail=reason)

    def close(self, reason: str, now: float) -> list[LinkOutput]:
        """End the link for good."""
        self.history.withdrawn += self._is_attempting
        return self._feed(Input.CLOSE, "", now, detail=reason)

    def tick(self, now: float) -> list[LinkOutput]:
        """Time has passed."""
        out: list[LinkOutput] = []
        for name, at in self._deadlines.due(now):
            match name:
                case "ping" if self.state in _UP:
                    out += self._ping_due(now)
                case "silence" if self.state is LinkState.CONNECTED:
                    out += self._silence_due(at, now)
                case "stable" if self.state is LinkState.CONNECTED:
                    # It has earned a new beginning; one that did not hold is the same trouble
                    # going on, however often it connected in between.
                    self._failures = 0
                    self._backoff.reset()
                case "again" if self.state is LinkState.DISCONNECTED:
                    out += self._begin_restart("still disconnected", now)
                case "upgrade" if self.state is LinkState.CONNECTED:
                    out += self._begin_restart("looking for a better path", now)
                    self._arm_upgrade(now)
                case "state" if self.state is LinkState.FAILED and not self.reachable:
                    out += self._feed(Input.DEADLINE, "unreachable", now)
                case "state" if self.state is LinkState.CHECKING and not self._extended:
                    detail = f"{self._config.connect_timeout:g}"
                    condition = f"{self._role}, not restarted"
                    out += self._feed(Input.DEADLINE, condition, now, detail=detail)
                case "state":
                    if self.state is LinkState.DISCONNECTED:
                        waited = now - self._disconnected_at
                    else:
                        waited = self._config.connect_timeout * (2 if self._extended else 1)
                    out += self._failure(Input.DEADLINE, self.epoch, f"{waited:.3g}", now)
                case _:
                    pass  # An earlier deadline of the same moment has ended that state.
        if (self._trickle.complete_at or now + 1) <= now:
            out += self._trickle.complete()
        if (self._restart.next_deadline() or now + 1) <= now:
            under_way = self._restart.state is not RestartState.IDLE
            out += self._to_restart(lambda it: it.tick(now), now)
            given_up = under_way and self._restart.state is RestartState.IDLE
            if given_up and self.state is LinkState.DISCONNECTED:
                out += self._begin_restart("still disconnected", now)
        return out

    # --- the machine ---

    @property
    def _role(self) -> str:
        return "dials" if self.dials else "waits"

    def _age(self, epoch: int) -> str:
        if epoch > self.epoch:
            raise UnexpectedInput(f"epoch {epoch} has not begun; the link is at {self.epoch}")
        return "current" if epoch == self.epoch else "older"

    def _failure(self, on: Input, epoch: int, detail: str, now: float) -> list[LinkOutput]:
        condition = self._age(epoch)
        if condition == "current" and not (
            self.state in (*_IDLE, LinkState.CLOSED) and on is not Input.DEADLINE
        ):
            condition = f"{self._role}, {'again' if self._failures else 'first'}"
        return self._feed(on, condition, now, detail=detail)

    def _feed(
        self, on: Input, condition: str, now: float, *, arg: object = None, detail: str = ""
    ) -> list[LinkOutput]:
        row = _INDEX.get((self.state, on, condition))
        if row is None:
            text = f"{on} ({condition or 'no condition'}) is not expected in state {self.state}"
            if on in _FROM_PEER:
                return [
                    Refuse(
                        ProtocolError(
                            text, code=f"unexpected_{on.replace(' ', '_')}", field="$.type"
                        )
                    )
                ]
            raise UnexpectedInput(text)
        if not _ADDS.isdisjoint(row.actions) and not self._fits(arg):
            text = f"{on} would bring the attempt to more than {MAX_CANDIDATES} candidates"
            return [Refuse(ProtocolError(text, code="too_many_candidates", field="$"))]
        if on in _FROM_PEER and not _BEGINS.isdisjoint(row.actions) and not self._may_begin(now):
            text = f"{on} would begin another attempt, after too many: one a second is taken"
            return [Refuse(ProtocolError(text, code="too_many_attempts", field="$.type"))]
        self._arg, self._detail = arg, row.reason.format(detail)
        self._out = []
        for action in row.actions:
            getattr(self, f"_do_{action}")(now)
        self._set_state(row, now)
        out, self._out = self._out, []
        self._arg = None
        return out

    def _set_state(self, row: Row, now: float) -> None:
        previous, self.state = self.state, row.next
        if previous is row.next:
            return
        match row.next:
            case LinkState.CONNECTED:
                self._deadlines.clear("state")
                self._deadlines.clear("again")
                if previous is LinkState.CHECKING:
                    self._heard_at = now
                    self._asked_at = None
                    self.history.connections += 1
                    self.history.connect_time += now - self._begun_at
                    self._recovering = True
                    # Measured at once, so that users see a round trip from the first moment.
                    self._out.append(self.ping(now))
                self._deadlines.set("silence", now + self._config.silence_timeout)
                self._deadlines.set("stable", now + self._config.stable_after)
                self._set_ping(self._spoke_at + self._ping_after)
                self._arm_upgrade(now)
            case LinkState.CHECKING if self._wanted is not None:
                self._out += self._begin_restart(self._wanted, now, urgent=True)
            case LinkState.DISCONNECTED:
                self.history.failure = self._detail
                self._disconnected_at = now
                self._deadlines.set("ping", now)
                self._deadlines.set("state", now + self._config.disconnected_timeout)
            case LinkState.WAITING:
                self._deadlines.set("state", now + self._config.connect_timeout)
            case LinkState.FAILED:
                self._recovering = False
                self._do_wait_more(now)
            case LinkState.CLOSED:
                self._deadlines.clear_all()
            case _:
                pass  # An attempt has one deadline for all its states; it was set when it began.
        if row.next is not LinkState.CONNECTED:
            self._deadlines.clear("silence")
            self._deadlines.clear("stable")
        if row.next not in _UP:
            self._deadlines.clear("ping")
        self._out.append(StateChanged(previous, row.next, self._detail))

    @property
    def _ping_after(self) -> float:
        # Who pings is the one who speaks first: with the answer the other side has spoken too, so
        # it waits a little longer, but never so long that it would be taken for gone.
        interval, silence = self._config.ping_interval, self._config.silence_timeout
        if self.state is LinkState.DISCONNECTED:
            return interval / 4  # a path that comes back is noticed soon, by both
        return interval if self.dials else min(1.5 * interval, (interval + silence) / 2)

    def _ping_due(self, now: float) -> list[LinkOutput]:
        # What was heard is no reason to be silent: the other side may send and send, and hear
        # nothing of us. Nor is what was said a reason not to ask: not all of it is answered.
        last = self._spoke_at if self._asked_at is not None else min(self._spoke_at, self._heard_at)
        at = last + self._ping_after
        if at > now:
            self._set_ping(at)
            return []
        self._set_ping(now + self._ping_after)
        return [self.ping(now)]

    @property
    def _grid(self) -> float:
        # All the links of a process wake it up together, and not one by one.
        interval, silence = self._config.ping_interval, self._config.silence_timeout
        return min(interval, silence - interval) / 4

    def _set_ping(self, at: float) -> None:
        grid, silence = self._grid, self._config.silence_timeout
        step = ceil(at / grid)
        if step * grid < at:  # by a rounding error, but then it would be due for ever
            step += 1
        self._deadlines.set("ping", at := step * grid)
        # Where something was heard lately, the next of these looks whether that is still so.
        silent_at = self._heard_at + silence
        watched = self._deadlines.get("silence") is not None
        if self.state is LinkState.CONNECTED and silent_at <= at and not watched:
            self._deadlines.set("silence", silent_at)

    def _silence_due(self, at: float, now: float) -> list[LinkOutput]:
        silent_at = self._heard_at + self._config.silence_timeout
        if silent_at > now:
            next_look = self._deadlines.get("ping")
            if next_look is None or silent_at <= next_look:
                self._deadlines.set("silence", silent_at)
            return []
        if now - at > STALL:
            self._asked_at = None
        asked_at = now if self._asked_at is None else self._asked_at
        # Who asks late, as a process that is slowed down, waits as long for the answer as others.
        answer_at = asked_at + self._config.silence_timeout - self._ping_after - self._grid
        if answer_at > now:
            self._deadlines.set("silence", answer_at)
            return [self.ping(now)] if self._asked_at is None else []
        return self._feed(Input.SILENCE, "", now, detail=f"{now - self._heard_at:.3g}")

    def _may_begin(self, now: float) -> bool:
        """Whether the other side may make us begin an attempt: a token bucket."""
        self._begins = min(_BURST, self._begins + (now - self._begins_at))
        self._begins_at = now
        if self._begins < 1:
            return False
        self._begins -= 1
        return True

    def _fits(self, arg: object) -> bool:
        """Whether the attempt that this message is for may have the candidates in it."""
        match arg:
            case (int() as epoch, Offer(sdp) | Answer(sdp)):
                more = count_candidates(sdp)
            case (int() as epoch, Candidates(candidates)):
                more = len(candidates)
            case _:
                raise AssertionError(f"the row needs a message with candidates, not {arg!r}")
        if epoch == self.epoch:
            return self._trickle.fits(more)
        if self._held is not None and self._held[0] == epoch:
            more += len(self._held[1])
        return more <= MAX_CANDIDATES

    # --- ICE restarts ---

    def _new_restart(self) -> Restart:
        return Restart(self._config, epoch=self.epoch, dials=self.dials, may_begin=self._may_begin)

    def _report(
        self, epoch: int, call: Callable[[Restart], list[RestartOutput]], now: float
    ) -> list[LinkOutput]:
        return self._feed(Input.RESTART_REPORT, self._age(epoch), now, arg=call)

    def _begin_restart(
        self, reason: str, now: float, *, urgent: bool = False
    ) -> list[RestartOutput]:
        if not self.reachable:
            # Its offer would only wait, and be out of date when it gets there.
            if urgent or self._restart.state is RestartState.IDLE:
                self._wanted = reason
            return []
        self._wanted = None
        return self._to_restart(lambda it: it.begin(reason, now, urgent=urgent), now)

    def _to_restart(
        self, call: Callable[[Restart], list[RestartOutput]], now: float
    ) -> list[RestartOutput]:
        restart, config = self._restart, self._config
        previous = restart.state
        out = call(restart)
        if restart.given_up:
            self.history.failure = f"ICE restart {restart.given_up}"
            restart.given_up = ""
        if self.state is LinkState.DISCONNECTED and restart.state is not previous:
            if restart.state is RestartState.CHECKING:
                # It was answered: it gets the time that it may take, if that is more; but only
                # once over, or restarts that are answered and lead nowhere could go on for ever.
                latest = self._disconnected_at + config.disconnected_timeout
                at = min(now, latest) + config.connect_timeout
                self._deadlines.set("state", max(at, self._deadlines.get("state") or at))
            elif restart.state is RestartState.IDLE:
                self._deadlines.set("again", now + config.restart_timeout)
        return out

    def _arm_upgrade(self, now: float) -> None:
        """A path over TURN is a reason to look for a better one, now and then."""
        if self.pair is None or self.pair.path is not Path.TURN:
            self._upgrade.reset()
            self._deadlines.clear("upgrade")
        elif (
            self.dials
            and self.state is LinkState.CONNECTED
            and self._config.ice_transport_policy == "all"
            and self._deadlines.get("upgrade") is None
        ):
            self._deadlines.set("upgrade", now + self._upgrade.next(0.0))

    # --- actions, named in the table ---

    def _begin(self, epoch: int, operation: Operation, now: float) -> None:
        self._do_drop(now)
        self.epoch = epoch
        self.history.attempts += 1
        self._begun_at = now
        self._forget()
        self._deadlines.set("state", now + self._config.connect_timeout)
        self._out.append(Operate(epoch, operation))

    def _forget(self) -> None:
        """What belonged to one attempt alone."""
        self._trickle = Trickle(self.epoch, 0, self._config.candidates_timeout)
        self._restart = self._new_restart()
        self._wanted = None
        self._extended = False
        self._pinged_at = None
        self.pair = None
        self.generation = 0
        for name in ("again", "upgrade"):
            self._deadlines.clear(name)

    def _do_dial(self, now: float) -> None:
        # Past whatever the other side has seen, so that it does not take the offer for an old one.
        seen = self._arg[0] if isinstance(self._arg, tuple) else 0
        self._begin(max(self.epoch, seen) + 1, MakeOffer(), now)

    def _do_answer(self, now: float) -> None:
        epoch, offer = self._message(Offer)
        held, self._held = self._held, None
        self._begin(epoch, AcceptOffer(offer.sdp), now)
        self._trickle.described(offer.sdp, now)
        if held is not None and held[0] == epoch:
            self._out += self._trickle.received(held[1], end=held[2], now=now)

    def _do_drop(self, now: float) -> None:  # noqa: ARG002
        if self.state in _HAS_CONNECTION:
            self._out.append(Operate(self.epoch, CloseConnection()))
            self._forget()

    def _do_send_offer(self, now: float) -> None:  # noqa: ARG002
        sdp = self._sdp()
        self._out += [SendSignal(self.epoch, Offer(sdp)), *self._trickle.sent(sdp)]

    def _do_send_answer(self, now: float) -> None:  # noqa: ARG002
        sdp = self._sdp()
        self._out += [SendSignal(self.epoch, Answer(sdp)), *self._trickle.sent(sdp)]

    def _do_accept_answer(self, now: float) -> None:
        _, answer = self._message(Answer)
        self._trickle.described(answer.sdp, now)
        self._out.append(Operate(self.epoch, AcceptAnswer(answer.sdp)))

    def _do_add_candidates(self, now: float) -> None:
        _, more = self._message(Candidates)
        self._out += self._trickle.received(more.candidates, end=more.end, now=now)

    def _do_trickle(self, now: float) -> None:
        assert isinstance(self._arg, tuple)
        generation, candidates, end = self._arg
        if generation:
            self._out += self._to_restart(
                lambda it: it.local_candidates(generation, candidates, end=end), now
            )
        else:
            self._out += self._trickle.found(candidates, end=end)

    def _do_select(self, now: float) -> None:
        assert isinstance(self._arg, tuple)
        generation, pair = self._arg
        self._out += self._to_restart(lambda it: it.selected(generation, now), now)
        if (generation, pair) == (self.generation, self.pair):
            return
        reason = self._detail
        if generation and generation != self.generation:
            self.history.restarts += 1
            reason = f"ICE restart took over: {self._restart.reason}"
        self.generation, self.pair = generation, pair
        self._out.append(PairSelected(reason))
        self._arm_upgrade(now)

    def _do_hand_on(self, now: float) -> None:
        match self._arg:
            case (int(), Offer() | Answer() | Candidates() as message):
                self._out += self._to_restart(lambda it: it.message(message, now), now)
            case call:
                assert callable(call)
                self._out += self._to_restart(call, now)

    def _do_disown(self, now: float) -> None:  # noqa: ARG002
        epoch, _ = self._message(Offer)
        self._out.append(SendSignal(epoch, Dial(self._detail)))

    def _do_restart(self, now: float) -> None:
        self._out += self._begin_restart(self._detail, now)

    def _do_restart_anew(self, now: float) -> None:
        self._out += self._begin_restart(self._detail, now, urgent=True)

    def _do_restart_later(self, now: float) -> None:  # noqa: ARG002
        self._wanted = self._detail

    def _do_restart_now(self, now: float) -> None:
        if self._wanted is not None:
            self._out += self._begin_restart(self._wanted, now, urgent=True)

    def _do_extend(self, now: float) -> None:
        self._extended = True
        self._deadlines.set("state", now + self._config.connect_timeout)

    def _do_hold_candidates(self, now: float) -> None:  # noqa: ARG002
        epoch, more = self._message(Candidates)
        if self._held is None or self._held[0] < epoch:
            self._held = (epoch, [], False)
        if self._held[0] == epoch:
            _, held, end = self._held
            held.extend(more.candidates)
            self._held = (epoch, held, end or more.end)

    def _do_ask(self, now: float) -> None:  # noqa: ARG002
        self._out.append(SendSignal(self.epoch, Dial(printable(self._detail, 200))))

    def _do_reply_stale(self, now: float) -> None:  # noqa: ARG002
        self._out.append(SendSignal(self.epoch, Stale(self._incarnation, self.epoch)))

    def _do_count_failure(self, now: float) -> None:  # noqa: ARG002
        self._failures += 1
        self.history.failure = self._detail

    def _do_wait_more(self, now: float) -> None:
        # While the relay carries data there is no hurry.
        backoff = self._upgrade if self.carried else self._backoff
        self._deadlines.set("state", now + backoff.next(self._random()))

    def _message(self, kind: type[_T]) -> tuple[int, _T]:
        match self._arg:
            case (int() as epoch, message) if isinstance(message, kind):
                return epoch, message
        raise AssertionError(f"the row needs a {kind.__name__}, not {self._arg!r}")

    def _sdp(self) -> str:
        match self._arg:
            case str() as sdp:
                return sdp
        raise AssertionError(f"the row needs a session description, not {self._arg!r}")
