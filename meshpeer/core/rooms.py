"""The relay's logic, without its sockets: who sits where, what goes to whom, what is refused.

A *seat* is a peer id's place in a room. It outlives the socket of its member by ``seat_timeout``
and keeps meanwhile what the member misses. A socket is in one of two states: it has yet to join,
or it has a seat. Which messages each state takes is in the two tables at the end of `Rooms`.

Data passes beside that (`meshpeer.core.forward`). A *flow* is what one member's socket sends to one
other member: it waits here only while the receiver's socket is full, in a queue of its own, within
``forward_window``; what waits for one receiver takes turns. Signals and presence never wait for
data. When a socket ends, what waits to it and from it is dropped: of what passes between two
sockets, nothing is missing as long as both live, and nothing comes later than they do.

Everything a stranger may cost has a bound in `RelayConfig`. A message or a frame costs O(1), a
join, a leave, a drop and an update O(members of that room); nothing costs O(everything).
"""

from __future__ import annotations

import hmac
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, ClassVar, Final, Protocol, TypeVar

from meshpeer.config import RelayConfig
from meshpeer.core.forward import (
    FORWARD_SLACK,
    MARK,
    MAX_FORWARD,
    MAX_HEAD,
    forward_head,
    head_size,
    names,
)
from meshpeer.core.messages import (
    VERSION,
    Ack,
    ClientMessage,
    Forwarded,
    Goodbye,
    Join,
    Leave,
    Member,
    MemberJoined,
    MemberLeft,
    MemberUpdated,
    Metadata,
    Refused,
    SignalIn,
    SignalOut,
    Update,
    Welcome,
    decode_client,
    encode,
    printable,
)
from meshpeer.errors import ProtocolError

__all__ = [
    "CLOSE_BAD_REQUEST",
    "CLOSE_BEHIND",
    "CLOSE_FLOOD",
    "CLOSE_LEFT",
    "CLOSE_NOT_JOINED",
    "CLOSE_REFUSED",
    "CLOSE_REMOVED",
    "CLOSE_REPLACED",
    "CLOSE_RESTART",
    "CLOSE_SUPERSEDED",
    "Authenticate",
    "ConnId",
    "Grant",
    "Note",
    "Output",
    "Pause",
    "Rooms",
    "Send",
    "SendFrame",
    "Shut",
]

# RFC 6455, section 7.4: 1xxx have a meaning of their own, 4000-4999 are for applications.
CLOSE_LEFT: Final = 1000
CLOSE_FLOOD: Final = 1008
CLOSE_RESTART: Final = 1012
CLOSE_BAD_REQUEST: Final = 4000
"""The first message was not a join that this relay understands."""
CLOSE_REPLACED: Final = 4001
"""A newer incarnation has the seat: do not come back."""
CLOSE_SUPERSEDED: Final = 4002
"""The same incarnation has come back on another socket."""
CLOSE_REFUSED: Final = 4003
"""The join was understood and refused; a `Refused` said why."""
CLOSE_NOT_JOINED: Final = 4004
"""No join within ``join_timeout``."""
CLOSE_BEHIND: Final = 4005
"""It does not read, and more than ``max_forwarded`` waits for it. It may come back and resume."""

CLOSE_REMOVED: Final = 4006
"""The operator took the seat away: do not come back."""

_ACK_EVERY: Final = 32
_PAST: Final = 8
_UPDATE_REACH: Final = 50
"""An update counts for one message more for each so many others that it goes to."""
_MAX_ID: Final = 128
_TURN: Final = 64 * 1024
"""Bytes of data that a sender may have written, before others who send to the same member may."""
_WARN_EVERY: Final = 1.0
_DAY: Final = 86400.0

ConnId = int
Key = TypeVar("Key")


@dataclass(frozen=True, slots=True)
class Send:
    """Write one message to a socket. ``data`` is UTF-8, and may be shared by many outputs."""

    conn: ConnId
    data: bytes


@dataclass(frozen=True, slots=True)
class SendFrame:
    """Write one message with data to a socket, as a binary one."""

    conn: ConnId
    data: bytes


@dataclass(frozen=True, slots=True)
class Shut:
    """Close a socket with a WebSocket close code. Its `Rooms.dropped` is not waited for."""

    conn: ConnId
    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class Pause:
    """Read nothing from a socket for so many seconds: it sent more than its share."""

    conn: ConnId
    seconds: float


@dataclass(frozen=True, slots=True)
class Authenticate:
    """Somebody wants to join: answer with `Rooms.granted` or `Rooms.denied`."""

    conn: ConnId
    join: Join


Output = Send | SendFrame | Shut | Pause | Authenticate


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """Whom an `Authenticator` lets in, and as whom."""

    subject: str | None = None
    """Who it is: may take over the ids of the same subject (``on_conflict="takeover"``)."""
    name: str | None = None
    """The display name that it has, whatever it says of itself; None: what it says."""


class Note(Protocol):
    """Told what an operator may want to read in a log: an event and its facts, never a token."""

    def __call__(self, event: str, **facts: object) -> object: ...


def _quiet(event: str, **facts: object) -> None:
    pass


@dataclass(slots=True, eq=False)
class _Seat:
    """A member. ``eq=False``: seats are compared and hashed by identity."""

    room: str
    peer_id: str
    token: str
    incarnation: str
    name: str | None
    metadata: Metadata
    allowance: float
    """Messages it may send right now; below zero it is over its rate."""
    filled_at: float
    warned_at: float = float("-inf")
    conn: ConnId | None = None
    attempt: int = 0
    """The latest join of this incarnation."""
    session: str = ""
    received: int = 0
    """Counted messages that came from the member."""
    sent: int = 0
    """Counted messages that went to the member. ``replay`` holds the latest of them."""
    replay: deque[bytes] = field(default_factory=deque)
    replay_bytes: int = 0
    past: tuple[str, ...] = ()
    """The incarnations that were replaced, the latest last."""
    full: bool = False
    """Its socket takes no data now."""
    flows: dict[bytes, _Flow] = field(default_factory=dict)
    """What its socket sends, by the head of the addressee."""
    ring: OrderedDict[_Flow, None] = field(default_factory=OrderedDict)
    """The flows to it that have something waiting; the first has the turn."""
    waiting: int = 0
    """Bytes of data that wait for it."""

    @property
    def head(self) -> bytes:
        """What stands before a frame to it, and from it."""
        return forward_head(self.peer_id, self.incarnation)

    def member(self) -> Member:
        return Member(
            peer_id=self.peer_id,
            incarnation=self.incarnation,
            name=self.name,
            metadata=self.metadata,
        )

    def claimed_by(self, join: Join) -> bool:
        """True when ``join`` comes from the owner of this seat, or from one that owned it."""
        return join.incarnation in self.past or (
            join.token is not None and hmac.compare_digest(join.token, self.token)
        )

    def trim(self, received: int) -> None:
        """Forget what the member has: its first ``received`` messages."""
        while self.replay and self.sent - len(self.replay) < received:
            self.replay_bytes -= len(self.replay.popleft())


@dataclass(slots=True, eq=False)
class _Flow:
    """Data from one member's socket to one incarnation of another member."""

    sender: _Seat
    to: _Seat
    to_head: bytes
    head: bytes
    """The sender's, which replaces the addressee's."""
    queue: deque[bytes] = field(default_factory=deque)
    """Messages with the sender's head. Not empty: it is in ``to.ring``."""
    waiting: int = 0
    """Bytes in the queue, with the addressee's head, as the sender counts them."""
    passed: int = 0
    """Bytes that have left, one way or the other, since the sender was last told."""
    turn: int = 0
    """Bytes that it may have written yet; below zero what it had too many."""
    warned: bool = False
    """The sender was told that it went beyond its window."""


class Rooms:
    """All rooms of one relay.

    Every method that takes ``now`` (seconds, any clock that does not go back) returns what has to
    be done, in order. Bytes from the network never make it raise. ``new_token`` gives secrets of 16
    to 128 letters, digits, - and _.

    The shell calls `opened` once for a socket, then `received` for what comes, then `dropped` when
    the socket is gone. After a `Shut` of a socket nothing more is sent to it; what still comes from
    it, and its `dropped`, change nothing.

    For data the shell says besides when a socket takes no more (`full`) and when it does again
    (`drained`). Until the first `full` it takes everything.

    A message that can't be decoded is not counted, since it can't be told whether its sender
    counted it. A correct client never sends one, so the counts of both ends stay the same.
    """

    def __init__(
        self, config: RelayConfig, *, new_token: Callable[[], str], note: Note = _quiet
    ) -> None:
        self._config = config
        self._new_token = new_token
        self._note = note
        # Where the largest frame is too large for a message, none is forwarded.
        fits = config.max_message_size >= MAX_HEAD + MAX_FORWARD
        self._window = config.forward_window if fits else 0
        self._rooms: dict[str, dict[str, _Seat]] = {}
        self._members = 0
        # A socket is in one of these two: its state.
        self._joining: OrderedDict[ConnId, float] = OrderedDict()
        self._seated: dict[ConnId, _Seat] = {}
        # Both delays are constant, so the order of insertion is the order of the deadlines; and
        # OrderedDict finds its first key in O(1) even after many were taken out, dict does not.
        self._away: OrderedDict[_Seat, float] = OrderedDict()

    # --- figures ---------------------------------------------------------------------------------

    @property
    def rooms(self) -> int:
        """Rooms with at least one seat."""
        return len(self._rooms)

    @property
    def members(self) -> int:
        """Seats in all rooms, those of members whose socket dropped included."""
        return self._members

    @property
    def connections(self) -> int:
        """Sockets that are open."""
        return len(self._joining) + len(self._seated)

    # --- inputs ----------------------------------------------------------------------------------

    def opened(self, conn: ConnId, now: float) -> None:
        """A socket is open. It has ``join_timeout`` to join."""
        self._joining[conn] = now + self._config.join_timeout

    def received(self, conn: ConnId, data: bytes | str, now: float) -> list[Output]:
        """A message came from a socket."""
        out: list[Output] = []
        if isinstance(data, bytes) and data[:1] == MARK:
            if seat := self._seated.get(conn):
                self._frame(conn, seat, data, now, out)
            elif conn in self._joining:
                self._not_joined(conn, None, now, out)
            return out
        message = self._decode(data)
        if conn in self._joining:
            if isinstance(message, ProtocolError):
                self._turn_away(
                    conn, CLOSE_BAD_REQUEST, message.code, str(message), out, field=message.field
                )
            else:
                self._JOINING[type(message)](self, conn, message, now, out)
        elif seat := self._seated.get(conn):
            self._from_member(conn, seat, message, now, out)
        return out

    def dropped(self, conn: ConnId, now: float) -> list[Output]:
        """A socket is gone without a leave: its seat waits ``seat_timeout``."""
        out: list[Output] = []
        self._joining.pop(conn, None)
        if seat := self._seated.get(conn):
            self._detach(conn, seat, now, out)
            self._note("member dropped", **_facts(seat))
        return out

    def full(self, conn: ConnId) -> None:
        """A socket takes no more data until `drained`. Other messages are written all the same."""
        if seat := self._seated.get(conn):
            seat.full = True

    def drained(self, conn: ConnId, room: int, now: float) -> list[Output]:  # noqa: ARG002
        """A socket takes data again: about ``room`` bytes, more than 0.

        To be called until it returns nothing, which is when nothing waits, or until the socket is
        full again.
        """
        out: list[Output] = []
        seat = self._seated.get(conn)
        if seat is None:
            return out
        ring = seat.ring
        while ring and room > 0:
            flow = next(iter(ring))
            if flow.turn <= 0:
                flow.turn += _TURN
                if flow.turn <= 0:
                    ring.move_to_end(flow)
                    continue
            data = flow.queue.popleft()
            size = len(data) - len(flow.head) + len(flow.to_head)
            room -= size
            flow.turn -= size
            flow.waiting -= size
            seat.waiting -= size
            out.append(SendFrame(conn, data))
            if not flow.queue:
                del ring[flow]
                flow.turn = 0
            elif flow.turn <= 0:
                ring.move_to_end(flow)
            self._pass(flow, size, out)
        if not ring:
            seat.full = False
        return out

    def shut_down(self, now: float) -> list[Output]:  # noqa: ARG002 - all inputs have a time
        """Say goodbye to every socket, shut it, and forget everything."""
        goodbye = encode(Goodbye(reason="shutdown", retry_after=self._config.restart_delay))
        out: list[Output] = []
        for conn in (*self._joining, *self._seated):
            out += (Send(conn, goodbye), Shut(conn, CLOSE_RESTART, "relay restarts"))
        self._joining.clear()
        self._seated.clear()
        self._away.clear()
        self._rooms.clear()
        self._members = 0
        return out

    def tick(self, now: float) -> list[Output]:
        """Time has passed: seats that ran out, sockets that never joined."""
        out: list[Output] = []
        for conn in _due(self._joining, now):
            text = f"no join came within {self._config.join_timeout:g} s"
            self._turn_away(conn, CLOSE_NOT_JOINED, "not_joined", text, out)
        for seat in _due(self._away, now):
            del self._away[seat]
            self._remove(seat, "timeout", out)
        return out

    def next_deadline(self) -> float | None:
        """When `tick` has something to do, or None."""
        firsts = [next(iter(d.values())) for d in (self._joining, self._away) if d]
        return min(firsts, default=None)

    def _decode(self, data: bytes | str) -> ClientMessage | ProtocolError:
        limit = self._config.max_message_size
        # Of text these are characters, of which each is a byte at least: near enough for a limit
        # that only keeps the work for one message small.
        if len(data) > limit:
            return ProtocolError(f"the message has more than {limit} bytes", code="too_large")
        try:
            return decode_client(data)
        except ProtocolError as exc:
            return exc

    # --- a socket that has yet to join -----------------------------------------------------------

    def _join(self, conn: ConnId, join: Join, now: float, out: list[Output]) -> None:
        room = self._rooms.get(join.room, {})
        peer_id = join.peer_id
        seat = room.get(peer_id)
        if seat and join.on_conflict == "rename" and not seat.claimed_by(join):
            peer_id = _other_id(room, join)
            seat = room.get(peer_id)
        if seat is None:
            self._new_seat(conn, peer_id, join, now, out)
        elif not seat.claimed_by(join):
            self._refuse_taken(conn, seat, join, now, out)
        elif join.incarnation in seat.past:
            del self._joining[conn]
            out.append(Send(conn, encode(Goodbye(reason="replaced"))))
            out.append(Shut(conn, CLOSE_REPLACED, "a newer incarnation has this peer id"))
            self._note("came back after it was replaced", conn=conn, **_facts(seat))
        elif join.incarnation == seat.incarnation and join.attempt < seat.attempt:
            # Its owner gave that socket up and has come back on another one since.
            text = f"join {join.attempt} of this incarnation came after join {seat.attempt}"
            self._turn_away(conn, CLOSE_SUPERSEDED, "stale_join", text, out, field="$.attempt")
        elif join.incarnation == seat.incarnation:
            self._return(conn, seat, join, out)
        else:
            self._take_over(conn, seat, join, out)

    def _not_joined(
        self,
        conn: ConnId,
        message: ClientMessage | None,  # noqa: ARG002 - a row of the table; None: data
        now: float,  # noqa: ARG002
        out: list[Output],
    ) -> None:
        self._turn_away(
            conn, CLOSE_BAD_REQUEST, "not_joined", "the first message must be a join", out
        )

    def _new_seat(
        self, conn: ConnId, peer_id: str, join: Join, now: float, out: list[Output]
    ) -> None:
        config = self._config
        room = self._rooms.get(join.room)
        if room is None and len(self._rooms) >= config.max_rooms:
            text = f"this relay has {config.max_rooms} rooms, which is its limit; try another relay"
            self._turn_away(conn, CLOSE_REFUSED, "too_many_rooms", text, out)
            return
        if room is not None and len(room) >= config.max_members:
            text = f"room {join.room!r} has {config.max_members} members, which is its limit"
            self._turn_away(conn, CLOSE_REFUSED, "room_full", text, out)
            return
        seat = _Seat(
            room=join.room,
            peer_id=peer_id,
            # A token brought along is of a seat that ran out or that a relay before this one gave.
            # Honouring it keeps it good: nobody but its owner knows it.
            token=join.token or self._new_token(),
            incarnation=join.incarnation,
            name=join.name,
            metadata=join.metadata,
            allowance=config.message_burst,
            filled_at=now,
        )
        self._rooms.setdefault(join.room, {})[peer_id] = seat
        self._members += 1
        self._note("member joined", conn=conn, **_facts(seat))
        self._attach(conn, seat, join, out)
        self._welcome(conn, seat, join, out)
        self._tell(seat, MemberJoined(member=seat.member()), out)

    def _return(self, conn: ConnId, seat: _Seat, join: Join, out: list[Output]) -> None:
        """The same incarnation is back on another socket: resume when nothing is missing."""
        if seat.conn is not None:
            out.append(Shut(seat.conn, CLOSE_SUPERSEDED, "superseded connection"))
        self._attach(conn, seat, join, out)
        if join.session == seat.session and 0 <= seat.sent - join.received <= len(seat.replay):
            seat.trim(join.received)
            welcome = Welcome(
                version=VERSION,
                room=seat.room,
                peer_id=seat.peer_id,
                incarnation=seat.incarnation,
                token=seat.token,
                seat_timeout=self._config.seat_timeout,
                session=seat.session,
                resumed=True,
                received=seat.received,
                forward_window=self._window,
            )
            out.append(Send(conn, encode(welcome)))
            out += (Send(conn, data) for data in seat.replay)
            self._note("member resumed", conn=conn, missed=len(seat.replay), **_facts(seat))
            return
        self._note("member returned", conn=conn, **_facts(seat))
        self._welcome(conn, seat, join, out)
        # Updates of the old count may be lost; the join has the latest values.
        if (join.name, join.metadata) != (seat.name, seat.metadata):
            self._set_values(seat, join.name, join.metadata, out)

    def _take_over(self, conn: ConnId, seat: _Seat, join: Join, out: list[Output]) -> None:
        """A new process shows the token: the one before it is gone, whether it knows or not."""
        if seat.conn is not None:
            out.append(Send(seat.conn, encode(Goodbye(reason="replaced"))))
            out.append(Shut(seat.conn, CLOSE_REPLACED, "a newer incarnation has this peer id"))
        self._attach(conn, seat, join, out)
        self._end_flows_to(seat, out)
        seat.past = (*seat.past, seat.incarnation)[-_PAST:]
        seat.incarnation = join.incarnation
        seat.name = join.name
        seat.metadata = join.metadata
        self._note("member replaced", conn=conn, **_facts(seat))
        self._welcome(conn, seat, join, out)
        self._tell(seat, MemberJoined(member=seat.member()), out)

    def _attach(self, conn: ConnId, seat: _Seat, join: Join, out: list[Output]) -> None:
        if seat.conn is not None:
            del self._seated[seat.conn]
            self._drop_data(seat, out)
        self._away.pop(seat, None)
        del self._joining[conn]
        self._seated[conn] = seat
        seat.conn = conn
        seat.attempt = join.attempt

    def _welcome(self, conn: ConnId, seat: _Seat, join: Join, out: list[Output]) -> None:
        """Begin the counts anew.

        What the relay has of the member's own messages is only known by the count of the session
        that the join shows.
        """
        received = seat.received if join.session == seat.session else 0
        seat.session = self._new_token()
        seat.received = seat.sent = seat.replay_bytes = 0
        seat.replay.clear()
        room = self._rooms[seat.room]
        welcome = Welcome(
            version=VERSION,
            room=seat.room,
            peer_id=seat.peer_id,
            incarnation=seat.incarnation,
            token=seat.token,
            seat_timeout=self._config.seat_timeout,
            session=seat.session,
            received=received,
            members=[other.member() for other in room.values() if other is not seat],
            forward_window=self._window,
        )
        out.append(Send(conn, encode(welcome)))

    def _refuse_taken(
        self, conn: ConnId, seat: _Seat, join: Join, now: float, out: list[Output]
    ) -> None:
        until = self._away.get(seat)
        text = f"peer id {join.peer_id!r} in room {join.room!r} belongs to another process"
        retry_after = None
        if until is not None:
            retry_after = max(0.0, until - now)
            text += f", which lost its connection and has {retry_after:.0f} s to come back"
        if join.on_conflict == "rename":
            text += "; it is too long to have a number appended"
        # What to do about it depends on what the client did before: it knows, this end does not.
        self._turn_away(conn, CLOSE_REFUSED, "peer_id_taken", text, out, retry_after=retry_after)

    def _turn_away(
        self,
        conn: ConnId,
        close: int,
        code: str,
        text: str,
        out: list[Output],
        *,
        field: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        """Refuse a socket that has no seat, and shut it."""
        del self._joining[conn]
        refused = Refused(code=code, text=printable(text), field=field, retry_after=retry_after)
        out += (Send(conn, encode(refused)), Shut(conn, close, code))
        self._note("join refused", conn=conn, code=code, text=refused.text)

    # --- a member --------------------------------------------------------------------------------

    def _from_member(
        self,
        conn: ConnId,
        seat: _Seat,
        message: ClientMessage | ProtocolError,
        now: float,
        out: list[Output],
    ) -> None:
        config = self._config
        earned = (now - seat.filled_at) * config.message_rate
        cost = self._cost(seat, message)
        seat.allowance = min(config.message_burst, seat.allowance + earned) - cost
        seat.filled_at = now
        counted = isinstance(message, SignalOut | Update)
        seat.received += counted
        number = seat.received if counted else 0
        if seat.allowance < 0 and not isinstance(message, Leave):
            self._over_rate(conn, seat, number, cost, now, out)
        elif isinstance(message, ProtocolError):
            self._refuse(seat, message.code, str(message), out, field=message.field)
        else:
            self._SEATED[type(message)](self, conn, seat, message, out)
        if counted and seat.received % _ACK_EVERY == 0 and seat.conn is not None:
            out.append(Send(seat.conn, encode(Ack(received=seat.received))))

    def _cost(self, seat: _Seat, message: ClientMessage | ProtocolError) -> int:
        """What a message takes from the allowance: an update is written to the whole room.

        Never more than a member can have saved up, or it could make no update at all.
        """
        if not isinstance(message, Update):
            return 1
        others = len(self._rooms[seat.room]) - 1
        return min(1 + -(-others // _UPDATE_REACH), self._config.message_burst)

    def _over_rate(
        self, conn: ConnId, seat: _Seat, number: int, cost: int, now: float, out: list[Output]
    ) -> None:
        config = self._config
        flood = seat.allowance <= -config.message_burst
        if flood or now - seat.warned_at >= _WARN_EVERY:
            seat.warned_at = now
            text = (
                f"more than {config.message_rate:g} messages a second, or {config.message_burst} "
                "at once; what is over that is dropped"
            )
            if cost > 1:
                text += f" (an update of a member of this room counts as {cost})"
            self._refuse(
                seat,
                "rate_limited",
                text,
                out,
                message=number,
                retry_after=min(_DAY, (cost - seat.allowance) / config.message_rate),
            )
        if flood:
            self._detach(conn, seat, now, out)
            out.append(Shut(conn, CLOSE_FLOOD, "too many messages"))
            self._note("member shut for flooding", conn=conn, **_facts(seat))

    def _already_joined(self, conn: ConnId, seat: _Seat, message: Join, out: list[Output]) -> None:  # noqa: ARG002
        text = f"this socket has joined room {seat.room!r} as {seat.peer_id!r} already"
        self._refuse(seat, "already_joined", text, out)

    def _signal(self, conn: ConnId, seat: _Seat, signal: SignalOut, out: list[Output]) -> None:  # noqa: ARG002
        to = self._rooms[seat.room].get(signal.to)
        if to is None or to is seat:
            text = f"nobody else in room {seat.room!r} has the peer id {signal.to!r}"
            self._refuse(
                seat, "no_such_peer", text, out, field="$.to", message=seat.received, to=signal.to
            )
            return
        forwarded = SignalIn(
            sender=seat.peer_id,
            incarnation=seat.incarnation,
            to_incarnation=signal.to_incarnation,
            epoch=signal.epoch,
            body=signal.body,
        )
        self._push(to, encode(forwarded), out)

    def _update(self, conn: ConnId, seat: _Seat, update: Update, out: list[Output]) -> None:  # noqa: ARG002
        name = seat.name if update.name is None else update.name
        metadata = seat.metadata if update.metadata is None else update.metadata
        self._set_values(seat, name, metadata, out)

    def _leave(self, conn: ConnId, seat: _Seat, leave: Leave, out: list[Output]) -> None:  # noqa: ARG002
        out.append(Shut(conn, CLOSE_LEFT, "left"))
        del self._seated[conn]
        seat.conn = None
        self._drop_data(seat, out)
        self._remove(seat, "left", out)

    def _ack(self, conn: ConnId, seat: _Seat, ack: Ack, out: list[Output]) -> None:  # noqa: ARG002
        if ack.received > seat.sent:
            text = f"{ack.received} messages acknowledged, but only {seat.sent} were sent"
            self._refuse(seat, "bad_ack", text, out, field="$.received")
        else:
            seat.trim(ack.received)

    # --- data ------------------------------------------------------------------------------------

    def _frame(self, conn: ConnId, seat: _Seat, data: bytes, now: float, out: list[Output]) -> None:
        try:
            start = head_size(data)
            to_head = data[:start]
            flow = seat.flows.get(to_head) or self._new_flow(conn, seat, to_head, len(data), out)
        except ProtocolError as exc:
            self._from_member(conn, seat, exc, now, out)
            return
        if flow is None:
            return
        size = len(data)
        to = flow.to
        if to.conn is None:
            self._pass(flow, size, out)
        elif not to.full:
            out.append(SendFrame(to.conn, flow.head + data[start:]))
            self._pass(flow, size, out)
        elif flow.waiting + size > self._window + FORWARD_SLACK:
            self._beyond_window(flow, out)
            self._pass(flow, size, out)
        elif to.waiting + size > self._config.max_forwarded:
            self._shut_behind(to.conn, to, now, out)
            self._pass(flow, size, out)
        else:
            flow.queue.append(flow.head + data[start:])
            flow.waiting += size
            to.waiting += size
            to.ring[flow] = None

    def _new_flow(
        self, conn: ConnId, seat: _Seat, to_head: bytes, size: int, out: list[Output]
    ) -> _Flow | None:
        """A flow to whom ``to_head`` names; None when that is nobody. Raises `ProtocolError`."""
        if not self._window:
            raise ProtocolError("this relay forwards no data", code="no_data")
        peer_id, _ = names(to_head)
        to = self._rooms[seat.room].get(peer_id)
        if to is None or to is seat or to.head != to_head:
            # As good as passed. Nothing is kept for it, so it is told at once.
            out.append(Send(conn, encode(Forwarded(to=peer_id, size=size))))
            return None
        flow = seat.flows[to_head] = _Flow(seat, to, to_head, seat.head)
        return flow

    def _pass(self, flow: _Flow, size: int, out: list[Output]) -> None:
        """So much has left; the sender is told for each quarter of the window.

        So a sender of which nothing waits has three quarters of the window at least.
        """
        flow.passed += size
        if flow.passed >= self._window // 4:
            self._tell_passed(flow, out)

    def _tell_passed(self, flow: _Flow, out: list[Output]) -> None:
        if flow.passed and flow.sender.conn is not None:
            forwarded = Forwarded(to=flow.to.peer_id, size=flow.passed)
            out.append(Send(flow.sender.conn, encode(forwarded)))
            flow.passed = 0

    def _beyond_window(self, flow: _Flow, out: list[Output]) -> None:
        if not flow.warned:
            flow.warned = True
            text = (
                f"more than {self._window} bytes of data on their way to "
                f"{flow.to.peer_id!r}; what is over that is dropped"
            )
            self._refuse(flow.sender, "over_window", text, out, to=flow.to.peer_id)

    def _shut_behind(self, conn: ConnId, seat: _Seat, now: float, out: list[Output]) -> None:
        """More waits for a member than may: it has to begin anew, as one that reads nothing."""
        self._note("member shut for not reading", conn=conn, waiting=seat.waiting, **_facts(seat))
        self._detach(conn, seat, now, out)
        out.append(Shut(conn, CLOSE_BEHIND, "too much data waits to be read"))

    def _drop_data(self, seat: _Seat, out: list[Output]) -> None:
        """The socket of a member has ended: nothing that was on its way to it or from it passes."""
        for flow in seat.ring:
            flow.queue.clear()
            dropped, flow.waiting, flow.turn = flow.waiting, 0, 0
            self._pass(flow, dropped, out)
        seat.ring.clear()
        seat.waiting = 0
        seat.full = False
        for flow in seat.flows.values():
            if flow.queue:
                del flow.to.ring[flow]
                flow.to.waiting -= flow.waiting
        seat.flows.clear()

    def _end_flows_to(self, seat: _Seat, out: list[Output]) -> None:
        """An incarnation is gone, and its socket before it: tell the senders the rest."""
        for other in self._rooms[seat.room].values():
            if flow := other.flows.pop(seat.head, None):
                self._tell_passed(flow, out)

    # --- what all of them do ---------------------------------------------------------------------

    def _detach(self, conn: ConnId, seat: _Seat, now: float, out: list[Output]) -> None:
        del self._seated[conn]
        seat.conn = None
        self._drop_data(seat, out)
        self._away[seat] = now + self._config.seat_timeout

    def _set_values(
        self, seat: _Seat, name: str | None, metadata: Metadata, out: list[Output]
    ) -> None:
        seat.name = name
        seat.metadata = metadata
        updated = MemberUpdated(
            peer_id=seat.peer_id, incarnation=seat.incarnation, name=name, metadata=metadata
        )
        self._tell(seat, updated, out)

    def _remove(self, seat: _Seat, reason: str, out: list[Output]) -> None:
        self._end_flows_to(seat, out)
        room = self._rooms[seat.room]
        del room[seat.peer_id]
        if not room:
            del self._rooms[seat.room]
        self._members -= 1
        self._note("member left", reason=reason, **_facts(seat))
        left = MemberLeft(peer_id=seat.peer_id, incarnation=seat.incarnation, reason=reason)
        self._tell(seat, left, out)

    def _tell(
        self, about: _Seat, message: MemberJoined | MemberLeft | MemberUpdated, out: list[Output]
    ) -> None:
        """Tell everybody else in the room. Encoded once; all replay buffers share the bytes."""
        data = encode(message)
        for seat in self._rooms.get(about.room, {}).values():
            if seat is not about:
                self._push(seat, data, out)

    def _refuse(
        self,
        seat: _Seat,
        code: str,
        text: str,
        out: list[Output],
        *,
        field: str | None = None,
        message: int = 0,
        to: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        refused = Refused(
            code=code,
            text=printable(text),
            field=field,
            message=message,
            to=to,
            retry_after=retry_after,
        )
        self._push(seat, encode(refused), out)
        self._note("message refused", code=code, text=refused.text, **_facts(seat))

    def _push(self, seat: _Seat, data: bytes, out: list[Output]) -> None:
        """Send a counted message, and keep it until it is acknowledged."""
        seat.sent += 1
        seat.replay.append(data)
        seat.replay_bytes += len(data)
        while (
            len(seat.replay) > self._config.max_replay
            or seat.replay_bytes > self._config.max_replay_bytes
        ):
            seat.replay_bytes -= len(seat.replay.popleft())
        if seat.conn is not None:
            out.append(Send(seat.conn, data))

    # --- the tables: socket state, message -> what is done ---------------------------------------

    _JOINING: ClassVar[dict[type[ClientMessage], _OnJoining]] = {
        Join: _join,
        SignalOut: _not_joined,
        Update: _not_joined,
        Leave: _not_joined,
        Ack: _not_joined,
    }
    _SEATED: ClassVar[dict[type[ClientMessage], _OnSeated]] = {
        Join: _already_joined,
        SignalOut: _signal,
        Update: _update,
        Leave: _leave,
        Ack: _ack,
    }


_OnJoining = Callable[[Rooms, ConnId, Any, float, list[Output]], None]
_OnSeated = Callable[[Rooms, ConnId, _Seat, Any, list[Output]], None]


def _due(deadlines: OrderedDict[Key, float], now: float) -> list[Key]:
    return list(takewhile(lambda key: deadlines[key] <= now, deadlines))


def _facts(seat: _Seat) -> dict[str, object]:
    return {"room": seat.room, "peer": seat.peer_id, "incarnation": seat.incarnation}


def _other_id(room: dict[str, _Seat], join: Join) -> str:
    """The first of id-2, id-3, … that nobody has, or that is the joining process's own.

    One try for each seat is always enough. The id itself when it has no room for a number.
    """
    for number in range(2, len(room) + 2):
        peer_id = f"{join.peer_id}-{number}"
        if len(peer_id) > _MAX_ID:
            break
        seat = room.get(peer_id)
        if seat is None or seat.claimed_by(join):
            return peer_id
    return join.peer_id
