"""One seat at the relay, as its client sees it: connect, join, resume, count. No I/O, no clock.

A dropped socket costs nothing as long as the seat lives: both ends count what they exchange
(`meshpeer.core.messages`), and what the other end has not got is sent again. `TABLE` is the whole
machine: which input is taken in which state, and which states may follow.

Data frames (`meshpeer.core.forward`) are not kept: they go out while there is a seat, and what of
them is on its way to each member is counted, by what the relay says has left it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from msgspec.structs import replace

from meshpeer.config import MeshConfig, OnConflict
from meshpeer.core.forward import (
    FORWARD_SLACK,
    MARK,
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
    IceServers,
    Join,
    Leave,
    LinkReport,
    MemberJoined,
    MemberLeft,
    MemberUpdated,
    Metadata,
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
    decode_relay,
    encode,
)
from meshpeer.core.timing import Backoff, Deadlines
from meshpeer.errors import (
    IdentityReplaced,
    InvalidData,
    MeshError,
    MessageTooLarge,
    ProtocolError,
    Removed,
    SignalingBacklog,
    SignalingUnavailable,
    UnexpectedInput,
    refusal,
)

__all__ = [
    "ACK_AFTER",
    "ACK_EVERY",
    "ANSWER_TIMEOUT",
    "MAX_REPORT",
    "MAX_SIGNAL",
    "RESTART_PATIENCE",
    "TABLE",
    "Connect",
    "Disconnect",
    "Fail",
    "Input",
    "Lost",
    "Output",
    "Session",
    "State",
    "Tell",
    "Transmit",
    "TransmitFrame",
]

ANSWER_TIMEOUT = 5.0
"""Seconds that a connection may take to be made, and then the welcome to come."""
ACK_EVERY = 16
"""Counted messages after which an acknowledgement is sent at once."""
ACK_AFTER = 5.0
"""Seconds that a counted message stays unacknowledged at most."""
MAX_SIGNAL = 192 * 1024
"""Bytes that a message to the relay may have: any session description fits, and the relay takes it.

A message that the relay shuts the socket for would be sent again after each resume, for ever.
"""
MAX_REPORT = 64 * 1024
"""Bytes that a report may have; what does not fit into one goes into several."""
RESTART_PATIENCE = 60.0
"""Seconds that a relay may take to start again, after it said that it would: until then it is tried
again and again soon."""

# What can be done about an id that is in use, by what was asked for.
_ADVICE: Mapping[OnConflict, str] = {
    "reject": 'choose another id, or join with on_conflict="rename"',
    "takeover": "to take it over, join with its resume token or a join token of its subject",
    "rename": "choose a shorter one",
}

# A waiting time that comes from the relay is held to these: nothing it says makes a client hammer.
_SHORTEST_WAIT = 0.1
_TAKEN_WAIT = 1.0
# Between two tries of a relay that is being restarted; half of it to one and a half. Of the second
# in which a client is to be back, that leaves 0.4 s for the handshakes (TCP, TLS, WebSocket, join).
_RESTART_WAIT = 0.4


class State(StrEnum):
    """Where the session stands."""

    NEW = "new"
    CONNECTING = "connecting"
    JOINING = "joining"
    """Connected, the join was sent, the welcome is awaited."""
    SEATED = "seated"
    """Has a deadline of the wire's own: the keepalive, whose failure is `Session.dropped`."""
    WAITING = "waiting"
    """For the time of the next try."""
    CLOSED = "closed"


class Input(StrEnum):
    """What can happen to a session: calls of its methods, and messages by their tag."""

    OPEN = "open"
    CONNECTED = "connected"
    CONNECTION_FAILED = "connection_failed"
    DROPPED = "dropped"
    SEND = "send"
    UPDATE = "update"
    FORWARD = "forward"
    REPORT = "report"
    HURRY = "hurry"
    CLOSE = "close"
    TICK = "tick"
    RECEIVED = "received"
    """Any message, before it is looked at; one that is malformed or out of place ends here."""
    WELCOME = "message:welcome"
    JOINED = "message:joined"
    LEFT = "message:left"
    UPDATED = "message:updated"
    SIGNAL = "message:signal"
    REFUSED = "message:refused"
    ICE_SERVERS = "message:ice_servers"
    NOTICE = "message:notice"
    RESTART_ICE = "message:restart_ice"
    GOODBYE = "message:goodbye"
    PONG = "message:pong"
    ACK = "message:ack"
    FORWARDED = "message:forwarded"
    FRAME = "message:frame"


_N, _C, _J = State.NEW, State.CONNECTING, State.JOINING
_S, _W, _X = State.SEATED, State.WAITING, State.CLOSED

TABLE: Mapping[State, Mapping[Input, frozenset[State]]] = {
    _N: {
        Input.OPEN: frozenset({_C}),
        Input.CLOSE: frozenset({_X}),
    },
    _C: {
        Input.CONNECTED: frozenset({_J}),
        Input.CONNECTION_FAILED: frozenset({_W}),
        Input.SEND: frozenset({_C}),
        Input.UPDATE: frozenset({_C}),
        Input.FORWARD: frozenset({_C}),
        Input.REPORT: frozenset({_C}),
        Input.HURRY: frozenset({_C}),
        Input.TICK: frozenset({_C, _W}),
        Input.CLOSE: frozenset({_X}),
    },
    _J: {
        Input.DROPPED: frozenset({_W}),
        Input.SEND: frozenset({_J}),
        Input.UPDATE: frozenset({_J}),
        Input.FORWARD: frozenset({_J}),
        Input.REPORT: frozenset({_J}),
        Input.HURRY: frozenset({_J}),
        Input.TICK: frozenset({_J, _W}),
        Input.CLOSE: frozenset({_X}),
        Input.RECEIVED: frozenset({_W}),
        Input.WELCOME: frozenset({_S, _X}),
        Input.REFUSED: frozenset({_W, _X}),
        Input.GOODBYE: frozenset({_W, _X}),
    },
    _S: {
        Input.DROPPED: frozenset({_W}),
        Input.SEND: frozenset({_S}),
        Input.UPDATE: frozenset({_S}),
        Input.FORWARD: frozenset({_S}),
        Input.REPORT: frozenset({_S}),
        Input.HURRY: frozenset({_S}),
        Input.TICK: frozenset({_S}),
        Input.CLOSE: frozenset({_X}),
        Input.RECEIVED: frozenset({_W}),
        Input.JOINED: frozenset({_S}),
        Input.LEFT: frozenset({_S}),
        Input.UPDATED: frozenset({_S}),
        Input.SIGNAL: frozenset({_S}),
        Input.REFUSED: frozenset({_S}),
        Input.ICE_SERVERS: frozenset({_S}),
        Input.NOTICE: frozenset({_S}),
        Input.RESTART_ICE: frozenset({_S}),
        Input.GOODBYE: frozenset({_W, _X}),
        Input.PONG: frozenset({_S}),
        Input.ACK: frozenset({_S}),
        Input.FORWARDED: frozenset({_S}),
        Input.FRAME: frozenset({_S}),
    },
    _W: {
        Input.SEND: frozenset({_W}),
        Input.UPDATE: frozenset({_W}),
        Input.FORWARD: frozenset({_W}),
        Input.REPORT: frozenset({_W}),
        Input.HURRY: frozenset({_C}),
        Input.TICK: frozenset({_W, _C}),
        Input.CLOSE: frozenset({_X}),
    },
    _X: {},
}
"""For each state the inputs that are taken, and the states that may follow.

A call that is not listed raises `UnexpectedInput`; a message that is not listed is the relay's
error and treated like a malformed one. A state that is listed as its own successor may stay.
"""


@dataclass(frozen=True, slots=True)
class Connect:
    """Make a connection; answer with `Session.connected` or `Session.connection_failed`."""


@dataclass(frozen=True, slots=True)
class Transmit:
    """Send this on the connection."""

    data: bytes = field(repr=False)  # a join has secrets in it


@dataclass(frozen=True, slots=True)
class TransmitFrame:
    """Send this on the connection; each `Transmit` that comes before it is sent goes first."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Close the connection, or give the attempt up. Nothing of it may be fed in from now on.

    What was to be transmitted before goes out first, as far as that takes no more than a second.
    """


@dataclass(frozen=True, slots=True)
class Tell:
    """Tell the user of the transport. The first thing told is the first `Welcome`."""

    event: (
        Welcome
        | MemberJoined
        | MemberLeft
        | MemberUpdated
        | SignalIn
        | Refused
        | IceServers
        | Notice
        | RestartIce
        | FrameIn
        | ForwardRoom
    )


@dataclass(frozen=True, slots=True)
class Lost:
    """Tell the user that a seat's connection is gone. Told once, until the next `Welcome`."""

    reason: str
    retry_in: float
    """Seconds to the next try."""


@dataclass(frozen=True, slots=True)
class Fail:
    """The session is over for good."""

    error: MeshError


Output = Connect | Transmit | TransmitFrame | Disconnect | Tell | Lost | Fail


class _Pending(NamedTuple):
    """A counted message that the relay has not acknowledged."""

    data: bytes
    is_update: bool


class Session:
    """The client's end of one seat.

    ``random`` gives numbers in [0, 1), for the jitter of waiting times. ``service`` is what error
    texts call the other end. `open` comes first; every method returns what is to be done, in order.
    """

    def __init__(
        self, config: MeshConfig, *, random: Callable[[], float], service: str = "the relay"
    ) -> None:
        self._config = config
        self._random = random
        self._service = service
        self._state = State.NEW
        self._input = Input.OPEN
        self._deadlines: Deadlines[Input | State] = Deadlines()
        self._backoff = Backoff(config.signaling_retry_first, config.signaling_retry_max, 1.0)
        self._wait = 0.0
        self._seated_at = 0.0
        self._restarts_until = float("-inf")
        """Until when a relay that said that it restarts is tried again soon."""
        self._last_failure: MeshError | None = None
        self._join: Join  # set by `open`, which every other input needs
        self._welcomed = False
        self._loss_told = False
        # relay -> client
        self._received = 0
        self._received_acked = 0
        # client -> relay: pending[0] is number acked + 1; transmitted is the highest number that
        # was on a wire; the join that is under way has the updates up to number in_join in it.
        self._pending: deque[_Pending] = deque()
        self._acked = 0
        self._transmitted = 0
        self._in_join = 0
        # Data: what may be on its way to one member, and the bytes that are, by peer id.
        self._window = 0
        self._wants_reports = False
        self._under_way: dict[str, int] = {}

    @property
    def state(self) -> State:
        """Where the session stands."""
        return self._state

    @property
    def last_failure(self) -> MeshError | None:
        """Why the latest try failed; None after a success, or when none was made."""
        return self._last_failure

    @property
    def pending(self) -> int:
        """How many counted messages the relay has not acknowledged."""
        return len(self._pending)

    def next_deadline(self) -> float | None:
        """When to call `tick`, or None."""
        return self._deadlines.next()

    # --- what the user does --------------------------------------------------------------------

    def open(self, join: Join, now: float) -> list[Output]:
        """Begin to take a seat. ``join.session`` and ``join.received`` are the session's own.

        Raises `InvalidData` when ``join`` does not fit the schema.
        """
        self._take(Input.OPEN)
        join = replace(join, session=None, received=0, attempt=0)
        self._checked(join)
        self._join = join
        self._set_state(State.CONNECTING, now)
        return [Connect()]

    def send(self, signal: SignalOut) -> list[Output]:
        """Send a signal, or keep it until there is a seat.

        Raises, and changes nothing: `SignalingBacklog` when `MeshConfig.max_pending_signals` are
        unacknowledged, `InvalidData` when it does not fit the schema, `MessageTooLarge` when it has
        more than `MAX_SIGNAL` bytes.
        """
        self._take(Input.SEND)
        return self._enqueue(_Pending(self._checked(signal), is_update=False))

    def update(self, name: str | None, metadata: Metadata | None) -> list[Output]:
        """Change the name or the metadata; None leaves it as it is. Raises like `send`."""
        self._take(Input.UPDATE)
        if name is None and metadata is None:
            return []
        data = self._checked(Update(name=name, metadata=metadata))
        outputs = self._enqueue(_Pending(data, is_update=True))
        # A later join carries the newest values.
        self._join = replace(
            self._join,
            name=self._join.name if name is None else name,
            metadata=self._join.metadata if metadata is None else metadata,
        )
        return outputs

    def forward_room(self, to: str) -> int:
        """Bytes of data that may go to this member now; 0 without a seat.

        When it was below half of the window, a `ForwardRoom` is told once it is not any more. After
        each `Welcome` it is the whole window.
        """
        if self._state is not State.SEATED:
            return 0
        return max(0, self._window - self._under_way.get(to, 0))

    def forward(self, to: str, to_incarnation: str, frame: bytes) -> list[Output]:
        """Send a data frame; dropped without a seat, or `FORWARD_SLACK` beyond the window.

        Raises `InvalidData` when it is empty, `MessageTooLarge` for more than `MAX_FORWARD` bytes.
        """
        self._take(Input.FORWARD)
        data = encode_forward(to, to_incarnation, frame)
        under_way = self._under_way.get(to, 0) + len(data)
        if (
            self._state is not State.SEATED
            or not self._window
            or under_way > self._window + FORWARD_SLACK
        ):
            return []
        self._under_way[to] = under_way
        return [TransmitFrame(data)]

    def report(self, links: Sequence[LinkReport]) -> list[Output]:
        """Tell how these links stand; dropped without a seat, or where no reports are wanted.

        Raises `InvalidData` when one does not fit the schema.
        """
        self._take(Input.REPORT)
        if self._state is not State.SEATED or not self._wants_reports or not links:
            return []
        report = Report(list(links))
        if len(links) > MAX_REPORTS or (len(links) > 1 and len(encode(report)) > MAX_REPORT):
            half = len(links) // 2
            return self.report(links[:half]) + self.report(links[half:])
        return [Transmit(self._checked(report))]

    def hurry(self, now: float) -> list[Output]:
        """The network has changed: what waits is tried now, and what is being tried is begun anew.

        A connection that is there is left alone; whether it still works, its owner finds out.
        """
        self._take(Input.HURRY)
        if self._state not in (State.WAITING, State.CONNECTING):
            return []
        trying = self._state is State.CONNECTING
        self._set_state(State.CONNECTING, now)
        return [Disconnect(), Connect()] if trying else [Connect()]

    def close(self, now: float) -> list[Output]:
        """Give the seat up, as far as there is a connection to say so on."""
        self._take(Input.CLOSE)
        outputs: list[Output] = []
        if self._state in (State.JOINING, State.SEATED):
            outputs.append(Transmit(encode(Leave())))
        if self._state in (State.CONNECTING, State.JOINING, State.SEATED):
            outputs.append(Disconnect())
        self._set_state(State.CLOSED, now)
        return outputs

    # --- what the connection does --------------------------------------------------------------

    def connected(self, now: float, join_token: str | None = None) -> list[Output]:
        """The connection that `Connect` asked for is there; ``join_token`` is for this join alone.

        Raises `InvalidData`, and changes nothing, when the token can't be one.
        """
        self._take(Input.CONNECTED)
        join = replace(self._join, received=self._received, attempt=self._join.attempt + 1)
        data = self._checked(join if join_token is None else replace(join, join_token=join_token))
        self._join = join
        self._restarts_until = float("-inf")
        self._received_acked = self._received
        self._in_join = self._acked + len(self._pending)
        self._set_state(State.JOINING, now)
        return [Transmit(data)]

    def connection_failed(self, reason: str, now: float) -> list[Output]:
        """It can't be made; ``reason`` is a text that a person can act on."""
        self._take(Input.CONNECTION_FAILED)
        return self._lose(reason, now, wait=self._restart_wait(now))

    def dropped(self, reason: str, now: float) -> list[Output]:
        """The connection is gone."""
        self._take(Input.DROPPED)
        return self._lose(reason, now)

    def received(self, data: bytes | str, now: float) -> list[Output]:
        """The relay said something.

        What is malformed or out of place changes nothing but that this connection is given up and
        another one made, with a growing wait.
        """
        self._take(Input.RECEIVED)
        try:
            if isinstance(data, bytes) and data[:1] == MARK:
                return self._frame(data)
            return self._heard(decode_relay(data), now)
        except ProtocolError as exc:
            self._input = Input.RECEIVED
            return [Disconnect(), *self._lose(str(exc), now)]

    def tick(self, now: float) -> list[Output]:
        """Time has passed; call it at `next_deadline`, or at any other time."""
        self._take(Input.TICK)
        outputs: list[Output] = []
        for name, _ in self._deadlines.due(now):
            if name is State.WAITING:
                self._set_state(State.CONNECTING, now)
                outputs.append(Connect())
            elif name is Input.ACK:
                outputs.append(self._acknowledge())
            else:
                what = "accept a connection" if name is State.CONNECTING else "answer the join"
                reason = f"{self._service} did not {what} within {ANSWER_TIMEOUT:g} seconds"
                lost = self._lose(reason, now, wait=self._restart_wait(now))
                outputs += [Disconnect(), *lost]
        return outputs

    # --- the messages --------------------------------------------------------------------------

    def _place(self, kind: Input) -> None:
        if kind not in TABLE[self._state]:
            tag = kind.value.removeprefix("message:")
            raise ProtocolError(
                f"{self._service} sent {tag!r} to a client that is {self._state.value}",
                code="out_of_place",
            )
        self._input = kind

    def _frame(self, data: bytes) -> list[Output]:
        self._place(Input.FRAME)
        return [Tell(decode_forward(data))]

    def _heard(self, message: RelayMessage, now: float) -> list[Output]:
        self._place(Input(f"message:{type(message).__struct_config__.tag}"))
        match message:
            case Welcome():
                return self._welcome(message, now)
            case Refused() if self._state is State.JOINING:
                return self._refused(message, now)
            case (
                MemberJoined()
                | MemberLeft()
                | MemberUpdated()
                | SignalIn()
                | Refused()
                | Notice()
                | RestartIce()
            ):
                return self._counted(message, now)
            case IceServers():
                return [Tell(message)]
            case Ack(received=received):
                self._trim(received, "$.received")
                return []
            case Forwarded(to=to, size=size):
                return self._forwarded(to, size)
            case Goodbye():
                return self._goodbye(message, now)
            case Pong():
                return []

    def _welcome(self, welcome: Welcome, now: float) -> list[Output]:
        join = self._join
        if welcome.version != VERSION:
            return self._fail(
                refusal(
                    "unsupported_version",
                    f"{self._service} speaks version {welcome.version} of the protocol, "
                    f"this client {VERSION}",
                    field="$.version",
                ),
                now,
            )
        for name, is_ours in (
            ("room", welcome.room == join.room),
            ("incarnation", welcome.incarnation == join.incarnation),
            ("peer_id", welcome.peer_id == join.peer_id or join.on_conflict == "rename"),
            ("session", not welcome.resumed or welcome.session == join.session),
        ):
            if not is_ours:
                raise ProtocolError(
                    f"{self._service} welcomed somebody else: {name} is {getattr(welcome, name)!r}",
                    code="out_of_place",
                    field=f"$.{name}",
                )
        # Also when not resumed: how far the count before this one got, or 0 when that is unknown.
        if welcome.resumed or welcome.received:
            self._trim(welcome.received, "$.received")
        if not welcome.resumed:
            # The addressees of signals may well be there still, so those go on, even if one or the
            # other comes twice after a relay that lost its memory; an update is in the join.
            self._pending = deque(
                pending
                for number, pending in enumerate(self._pending, self._acked + 1)
                if number > self._in_join or not pending.is_update
            )
            self._acked = 0
            self._received = self._received_acked = 0
        self._transmitted = self._acked + len(self._pending)
        self._window = welcome.forward_window
        self._wants_reports = welcome.report_interval > 0
        self._under_way.clear()
        self._join = replace(
            join,
            peer_id=welcome.peer_id,
            # Who has an id keeps it or ends: nobody's links survive another one.
            on_conflict="reject",
            token=welcome.token,
            session=welcome.session,
        )
        self._welcomed = True
        self._loss_told = False
        self._last_failure = None
        self._seated_at = now
        self._set_state(State.SEATED, now)
        return [Tell(welcome), *(Transmit(pending.data) for pending in self._pending)]

    def _counted(
        self,
        message: MemberJoined
        | MemberLeft
        | MemberUpdated
        | SignalIn
        | Refused
        | Notice
        | RestartIce,
        now: float,
    ) -> list[Output]:
        self._received += 1
        outputs: list[Output] = [Tell(message)]
        if self._received - self._received_acked >= ACK_EVERY:
            outputs.append(self._acknowledge())
        elif self._deadlines.get(Input.ACK) is None:
            self._deadlines.set(Input.ACK, now + ACK_AFTER)
        return outputs

    def _forwarded(self, to: str, size: int) -> list[Output]:
        before = self._under_way.get(to, 0)
        after = before - size
        if after < 0:
            raise ProtocolError(
                f"{self._service} has forwarded {size} bytes to {to!r}, of {before} on their way",
                code="bad_forwarded",
                field="$.size",
            )
        if after:
            self._under_way[to] = after
        else:
            self._under_way.pop(to, None)
        # Room is what is left of the window: below half of it, now not any more.
        return [Tell(ForwardRoom(to))] if after <= self._window // 2 < before else []

    def _refused(self, refused: Refused, now: float) -> list[Output]:
        """The join was refused."""
        text = refused.text
        if refused.code == "peer_id_taken":
            # Who had it before joins with "reject" whatever was asked for, and can do nothing.
            advice = _ADVICE[self._join.on_conflict]
            text += "; this process lost it while it was away" if self._welcomed else f"; {advice}"
        error = refusal(refused.code, text, field=refused.field, retry_after=refused.retry_after)
        match refused.code, refused.retry_after:
            case "peer_id_taken", float(seconds):
                # The holder's socket is down: it comes back, or its seat runs out.
                wait = min(max(seconds, _SHORTEST_WAIT), _TAKEN_WAIT)
                return [Disconnect(), *self._lose(error, now, wait=wait)]
            case (("rate_limited" | "unavailable"), retry_after):
                return [Disconnect(), *self._lose(error, now, after=retry_after or 0.0)]
            case _:
                return self._fail(error, now)

    def _goodbye(self, goodbye: Goodbye, now: float) -> list[Output]:
        if goodbye.reason == "replaced":
            text = f"a newer process has the peer id {self._join.peer_id!r}"
            return self._fail(IdentityReplaced(text, reason="replaced"), now)
        if goodbye.reason == "removed":
            text = f"the operator of {self._service} removed {self._join.peer_id!r} from the room"
            return self._fail(Removed(text, reason="removed"), now)
        wait = None
        if goodbye.retry_after is not None:
            longest = self._config.signaling_retry_max
            whole = min(max(goodbye.retry_after, _SHORTEST_WAIT), longest)
            wait = whole * (0.5 + self._random())
            if goodbye.reason == "shutdown":
                self._restarts_until = now + RESTART_PATIENCE
        reason = f"{self._service} said goodbye ({goodbye.reason})"
        return [Disconnect(), *self._lose(reason, now, wait=wait)]

    # --- the parts -----------------------------------------------------------------------------

    def _take(self, name: Input) -> None:
        if name not in TABLE[self._state]:
            raise UnexpectedInput(f"the session is {self._state.value}: it takes no {name.value!r}")
        self._input = name

    def _set_state(self, state: State, now: float) -> None:
        if state not in TABLE[self._state][self._input]:
            raise AssertionError(f"{self._state} --{self._input}--> {state} is not in the table")
        self._state = state
        self._deadlines.clear_all()
        if state in (State.CONNECTING, State.JOINING):
            self._deadlines.set(state, now + ANSWER_TIMEOUT)

    def _restart_wait(self, now: float) -> float | None:
        """The wait before the next try of a relay that is being restarted; None when it is not."""
        if now >= self._restarts_until:
            return None
        return min(_RESTART_WAIT * (0.5 + self._random()), self._config.signaling_retry_max)

    def _lose(
        self,
        reason: str | MeshError,
        now: float,
        *,
        wait: float | None = None,
        after: float = 0.0,
    ) -> list[Output]:
        """There is no connection now; try again after ``wait``, by default the backoff's and
        ``after``, which comes from the relay."""
        # A seat that did not last as long as it was waited for is no success: the wait grows.
        if self._state is State.SEATED and now - self._seated_at >= self._wait:
            self._backoff.reset()
        if wait is None:
            wait = self._backoff.next(self._random()) + min(after, self._config.signaling_retry_max)
        self._wait = wait
        error = SignalingUnavailable(reason) if isinstance(reason, str) else reason
        self._last_failure = error
        self._set_state(State.WAITING, now)
        self._deadlines.set(State.WAITING, now + self._wait)
        if not self._welcomed or self._loss_told:
            return []
        self._loss_told = True
        return [Lost(str(error), self._wait)]

    def _fail(self, error: MeshError, now: float) -> list[Output]:
        self._last_failure = error
        self._set_state(State.CLOSED, now)
        return [Disconnect(), Fail(error)]

    def _checked(self, message: Join | SignalOut | Update | Report) -> bytes:
        """The bytes of ``message``, known to fit what the relay checks it with.

        What the relay can't decode it can't count, and the counts of both ends would differ.
        """
        try:
            data = encode(message)
            decode_client(data)
        except (TypeError, ValueError, ProtocolError) as exc:
            raise InvalidData(f"can't be sent to {self._service}: {exc}") from exc
        if len(data) > MAX_SIGNAL:
            raise MessageTooLarge(
                f"a message to {self._service} has {len(data)} bytes, the limit is {MAX_SIGNAL}"
            )
        return data

    def _enqueue(self, pending: _Pending) -> list[Output]:
        limit = self._config.max_pending_signals
        if len(self._pending) >= limit:
            raise SignalingBacklog(
                f"{limit} signals wait for {self._service} already "
                f"(MeshConfig.max_pending_signals); "
                f"{self._last_failure or 'it has not acknowledged them yet'}"
            )
        self._pending.append(pending)
        if self._state is not State.SEATED:
            return []
        self._transmitted += 1
        return [Transmit(pending.data)]

    def _trim(self, received: int, field: str) -> None:
        """The relay has the first ``received`` counted messages."""
        if not self._acked <= received <= self._transmitted:
            raise ProtocolError(
                f"{self._service} acknowledged {received} messages, which is not between "
                f"{self._acked} and {self._transmitted}",
                code="bad_ack",
                field=field,
            )
        for _ in range(received - self._acked):
            self._pending.popleft()
        self._acked = received

    def _acknowledge(self) -> Transmit:
        self._deadlines.clear(Input.ACK)
        self._received_acked = self._received
        return Transmit(encode(Ack(received=self._received)))
