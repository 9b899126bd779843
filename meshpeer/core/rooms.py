"""The relay's logic, without its sockets: who sits where, what goes to whom, what is refused.

A *seat* is a peer id's place in a room. It outlives the socket of its member by ``seat_timeout``
and keeps meanwhile what the member misses. A socket is in one of two states: it has yet to join,
or it has a seat. Which messages each state takes is in the two tables at the end of `Rooms`.

Everything a stranger may cost has a bound in `RelayConfig`. A message costs O(1), a join, a leave
and an update O(members of that room); nothing costs O(everything).
"""

from __future__ import annotations

import hmac
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, ClassVar, Final, Protocol, TypeVar

from meshpeer.config import RelayConfig
from meshpeer.core.messages import (
    VERSION,
    Ack,
    ClientMessage,
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
    "CLOSE_FLOOD",
    "CLOSE_LEFT",
    "CLOSE_NOT_JOINED",
    "CLOSE_REFUSED",
    "CLOSE_REPLACED",
    "CLOSE_RESTART",
    "CLOSE_SUPERSEDED",
    "ConnId",
    "Note",
    "Output",
    "Rooms",
    "Send",
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

_ACK_EVERY: Final = 32
_PAST: Final = 8
_UPDATE_REACH: Final = 50
"""An update counts for one message more for each so many others that it goes to."""
_MAX_ID: Final = 128
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
class Shut:
    """Close a socket with a WebSocket close code. Its `Rooms.dropped` is not waited for."""

    conn: ConnId
    code: int
    reason: str


Output = Send | Shut


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


class Rooms:
    """All rooms of one relay.

    Every method that takes ``now`` (seconds, any clock that does not go back) returns what has to
    be done, in order. Bytes from the network never make it raise. ``new_token`` gives secrets of 16
    to 128 letters, digits, - and _.

    The shell calls `opened` once for a socket, then `received` for what comes, then `dropped` when
    the socket is gone. After a `Shut` of a socket nothing more is sent to it; what still comes from
    it, and its `dropped`, change nothing.

    A message that can't be decoded is not counted, since it can't be told whether its sender
    counted it. A correct client never sends one, so the counts of both ends stay the same.
    """

    def __init__(
        self, config: RelayConfig, *, new_token: Callable[[], str], note: Note = _quiet
    ) -> None:
        self._config = config
        self._new_token = new_token
        self._note = note
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
        self._joining.pop(conn, None)
        if seat := self._seated.get(conn):
            self._detach(conn, seat, now)
            self._note("member dropped", **_facts(seat))
        return []

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
        message: ClientMessage,  # noqa: ARG002 - a row of the table
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
        self._attach(conn, seat, join)
        self._welcome(conn, seat, join, out)
        self._tell(seat, MemberJoined(member=seat.member()), out)

    def _return(self, conn: ConnId, seat: _Seat, join: Join, out: list[Output]) -> None:
        """The same incarnation is back on another socket: resume when nothing is missing."""
        if seat.conn is not None:
            out.append(Shut(seat.conn, CLOSE_SUPERSEDED, "superseded connection"))
        self._attach(conn, seat, join)
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
        self._attach(conn, seat, join)
        seat.past = (*seat.past, seat.incarnation)[-_PAST:]
        seat.incarnation = join.incarnation
        seat.name = join.name
        seat.metadata = join.metadata
        self._note("member replaced", conn=conn, **_facts(seat))
        self._welcome(conn, seat, join, out)
        self._tell(seat, MemberJoined(member=seat.member()), out)

    def _attach(self, conn: ConnId, seat: _Seat, join: Join) -> None:
        if seat.conn is not None:
            del self._seated[seat.conn]
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
            self._detach(conn, seat, now)
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
        self._remove(seat, "left", out)

    def _ack(self, conn: ConnId, seat: _Seat, ack: Ack, out: list[Output]) -> None:  # noqa: ARG002
        if ack.received > seat.sent:
            text = f"{ack.received} messages acknowledged, but only {seat.sent} were sent"
            self._refuse(seat, "bad_ack", text, out, field="$.received")
        else:
            seat.trim(ack.received)

    # --- what all of them do ---------------------------------------------------------------------

    def _detach(self, conn: ConnId, seat: _Seat, now: float) -> None:
        del self._seated[conn]
        seat.conn = None
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
