"""The relay's logic, without its sockets: who sits where, what goes to whom, what is refused.

A *seat* is a peer id's place in a room. It outlives the socket of its member by ``seat_timeout``
and keeps meanwhile what the member misses. A socket is in one of three states: it has yet to join,
or its join is being checked (where somebody has to authenticate it), or it has a seat. Which
messages each state takes is in the tables at the end of `Rooms`.

Data passes beside that (`meshpeer.core.forward`). A *flow* is what one member's socket sends to one
other member: it waits here only while the receiver's socket is full, in a queue of its own, within
``forward_window``; what waits for one receiver takes turns. Signals and presence never wait for
data. When a socket ends, what waits to it and from it is dropped: of what passes between two
sockets, nothing is missing as long as both live, and nothing comes later than they do.

Everything a stranger may cost has a bound in `RelayConfig`. A message or a frame costs O(1), a
join, a leave, a drop and an update O(members of that room); nothing costs O(everything).

Who is there, and what members report of their links, is told to `meshpeer.core.tracking`.
"""

from __future__ import annotations

import hmac
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice, takewhile
from typing import Any, ClassVar, Final, Protocol, TypeVar

import msgspec
from msgspec import Struct

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
from meshpeer.core.limits import Bucket, Buckets, Supply, address_key
from meshpeer.core.messages import (
    MAX_TEXT,
    VERSION,
    Ack,
    ClientMessage,
    Forwarded,
    Goodbye,
    IceServers,
    Join,
    Leave,
    Member,
    MemberJoined,
    MemberLeft,
    MemberUpdated,
    Metadata,
    Notice,
    PeerId,
    Ping,
    Pong,
    Refused,
    Report,
    RestartIce,
    SignalIn,
    SignalOut,
    Update,
    Welcome,
    decode_client,
    decode_relay,
    encode,
    printable,
)
from meshpeer.core.tracking import Tracking
from meshpeer.errors import ConfigError, ProtocolError

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
    "TRY_LATER",
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

TRY_LATER: Final = 5.0
"""Seconds after which to come back, where nobody could say whether a join is allowed."""

_ACK_EVERY: Final = 32
_PAST: Final = 8
_REACH: Final = 50
"""An update counts for one message more for each so many others that it goes to."""
_LINKS: Final = 2
"""A report counts for one message more for each so many links that it tells about."""
_PART: Final = 8 * 1024
"""A message counts for one more for each so many of its bytes."""
_MESSAGE_COST: Final = 1024
"""Bytes that a message or a frame costs besides its own."""
_MAX_ADDRESSES: Final = 65_536
"""Addresses of which it is kept how often they joined, and what those that left had sent."""
_HELD: Final = 64
"""All members together keep so many times ``max_replay_bytes``."""
_MAX_REMOVED: Final = 1_000
"""Incarnations of which it is kept that they were removed."""
_RENEW_AFTER: Final = 0.75
"""The share of the time that credentials are valid for, after which there are new ones."""
_AT_ONCE: Final = 100
"""Deadlines of a kind that one `Rooms.tick` serves. Of a crowd that came at the same moment the
rest is due at once: others get their turn between."""
_MAX_ID: Final = 128
_TURN: Final = 64 * 1024
"""Bytes of data that a sender may have written, before others who send to the same member may."""
_WARN_EVERY: Final = 1.0
_DAY: Final = 86400.0

_PONG: Final = encode(Pong())
_COUNTED: Final = frozenset({SignalOut, Update})
_WIDE: Final = frozenset({Update, Report})
"""Messages that count for more than one, even if they are short."""

ConnId = int
Key = TypeVar("Key")


# These are no dataclasses: one is made for each message to each member, in a fifth of the time.


class Send(Struct, frozen=True):
    """Write one message to a socket. ``data`` is UTF-8, and may be shared by many outputs."""

    conn: ConnId
    data: bytes

    def __repr__(self) -> str:  # a welcome has secrets in it
        return f"Send(conn={self.conn}, {len(self.data)} bytes)"


class SendFrame(Struct, frozen=True):
    """Write one message with data to a socket, as a binary one."""

    conn: ConnId
    data: bytes

    def __repr__(self) -> str:
        return f"SendFrame(conn={self.conn}, {len(self.data)} bytes)"


class Shut(Struct, frozen=True):
    """Close a socket with a WebSocket close code. Its `Rooms.dropped` is not waited for."""

    conn: ConnId
    code: int
    reason: str


class Pause(Struct, frozen=True):
    """Read nothing from a socket for so many seconds: it sent more than its share."""

    conn: ConnId
    seconds: float


class Authenticate(Struct, frozen=True):
    """Somebody wants to join: answer with `Rooms.granted` or `Rooms.denied`."""

    conn: ConnId
    join: Join


Output = Send | SendFrame | Shut | Pause | Authenticate


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """Whom an `Authenticator` lets in, and as whom.

    Raises `ConfigError` for a value that is no text of 1 to 128 characters without control
    characters and without white space around it.
    """

    subject: str | None = None
    """Who it is: may take over the ids of the same subject (``on_conflict="takeover"``)."""
    name: str | None = None
    """The display name that it has, whatever it says of itself; None: what it says."""
    peer_id: str | None = None
    """The only peer id that it may have; None: any. It is given no other in its place."""

    def __post_init__(self) -> None:
        for name in ("subject", "name", "peer_id"):
            value: object = getattr(self, name)
            try:
                if value is not None:
                    msgspec.convert(value, PeerId).encode()
            except (msgspec.ValidationError, UnicodeEncodeError):
                raise ConfigError(
                    f"Grant.{name} must be None or a text of 1 to 128 characters without control "
                    f"characters and without white space around it, not {value!r}"
                ) from None


_ANYBODY: Final = Grant()


class Note(Protocol):
    """Told what an operator may want to read in a log: an event and its facts, never a token."""

    def __call__(self, event: str, **facts: object) -> object: ...


def _quiet(event: str, **facts: object) -> None:
    pass


@dataclass(slots=True, eq=False, repr=False)
class _Seat:
    """A member. ``eq=False``: seats are compared and hashed by identity."""

    room: str
    peer_id: str
    incarnation: str
    name: str | None
    metadata: Metadata
    address: str
    """Where its latest socket comes from."""
    allowance: Bucket
    """Messages it may send; below zero it is over its rate."""
    volume: Bucket
    """Bytes it may send; below zero it is slowed down."""
    token: str = ""
    subject: str | None = None
    granted_name: str | None = None
    """`Grant.name`: then it has no other."""
    warned_at: float = float("-inf")
    conn: ConnId | None = None
    attempt: int = 0
    """The latest join of this incarnation."""
    session: str = ""
    received: int = 0
    """Counted messages that came from the member."""
    sent: int = 0
    """Counted messages that went to the member. ``replay`` holds the latest of them."""
    replay: deque[bytes] | None = None
    """None is an empty one, which most are: it would be a third of the memory of a seat."""
    replay_bytes: int = 0
    past: tuple[str, ...] = ()
    """The incarnations that were replaced, the latest last."""
    full: bool = False
    """Its socket takes no data now."""
    flows: dict[bytes, _Flow] = field(default_factory=dict)
    """What its socket sends, by the head of the addressee."""
    ring: OrderedDict[_Flow, None] | None = None
    """The flows to it that have something waiting; the first has the turn. None until one has."""
    waiting: int = 0
    """Bytes of data that wait for it."""

    def __repr__(self) -> str:  # it has secrets in it
        return f"_Seat(room={self.room!r}, peer_id={self.peer_id!r}, conn={self.conn})"

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

    def claimed_by(self, entry: _Entry) -> bool:
        """True when it comes from the owner of this seat, or from one that owned it."""
        join, subject = entry.join, entry.grant.subject
        return (
            join.incarnation in self.past
            or (join.token is not None and hmac.compare_digest(join.token, self.token))
            or (join.on_conflict == "takeover" and subject is not None and subject == self.subject)
        )

    def trim(self, received: int) -> int:
        """Forget what the member has: its first ``received`` messages. How many bytes that are."""
        if (replay := self.replay) is None:
            return 0
        before = self.replay_bytes
        while replay and self.sent - len(replay) < received:
            self.replay_bytes -= len(replay.popleft())
        if not replay:
            self.replay = None
        return before - self.replay_bytes


@dataclass(slots=True, eq=False)
class _Stranger:
    """A socket that has no seat."""

    until: float
    """When it is shut."""
    address: str
    join: Join | None = None
    """What it asked for: its join is being checked."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """A join that has passed what is checked before rooms and seats are looked at."""

    conn: ConnId
    address: str
    join: Join
    grant: Grant

    @property
    def name(self) -> str | None:
        return self.join.name if self.grant.name is None else self.grant.name


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

    Methods return what has to be done, in order; ``now`` is in seconds, of any clock that does not
    go back. Bytes from the network never make it raise. ``new_token`` gives secrets of 16 to 128
    letters, digits, - and _.

    The shell calls `opened` once for a socket, then `received` for what comes, then `dropped` when
    the socket is gone. After a `Shut` of a socket nothing more is sent to it; what still comes from
    it, and its `dropped`, change nothing.

    With ``authenticate`` each join asks the shell whether it may (`Authenticate`), and is answered
    when the shell has called `granted` or `denied`.

    ``ice_servers`` gives the servers that a member is to use, by its peer id and its subject. It is
    asked again when three quarters of their ``expires_in``, always the same one, have passed.

    For data the shell says besides when a socket takes no more (`full`) and when it does again
    (`drained`). Until the first `full` it takes everything.

    A message that can't be decoded is not counted, since it can't be told whether its sender
    counted it. A correct client never sends one, so the counts of both ends stay the same.
    """

    def __init__(
        self,
        config: RelayConfig,
        *,
        new_token: Callable[[], str],
        note: Note = _quiet,
        authenticate: bool = False,
        ice_servers: Callable[[str, str | None], IceServers | None] | None = None,
        tracking: Tracking | None = None,
    ) -> None:
        self._config = config
        self._new_token = new_token
        self._note = note
        self._authenticate = authenticate
        self._ice_servers = ice_servers
        self._tracking = tracking or Tracking()
        self._joins = Buckets[str](config.join_rate, config.join_burst, _MAX_ADDRESSES)
        self._allowances = Supply[str](config.message_rate, config.message_burst, _MAX_ADDRESSES)
        self._volumes = Supply[str](config.byte_rate, config.byte_burst, _MAX_ADDRESSES)
        self._held = 0
        """Bytes in the replays of all members; what they share is counted for each."""
        # Where the largest frame is too large for a message, none is forwarded.
        fits = config.max_message_size >= MAX_HEAD + MAX_FORWARD
        self._window = config.forward_window if fits else 0
        self._rooms: dict[str, dict[str, _Seat]] = {}
        self._members = 0
        # A socket is in one of these two.
        self._strangers: OrderedDict[ConnId, _Stranger] = OrderedDict()
        self._seated: dict[ConnId, _Seat] = {}
        # Each kind of delay is constant, so the order of insertion is the order of the deadlines;
        # and OrderedDict finds its first key in O(1) even after many were taken out, dict does not.
        self._away: OrderedDict[_Seat, float] = OrderedDict()
        self._expiring: OrderedDict[_Seat, float] = OrderedDict()
        """Members with a socket, and when they get new ICE servers."""
        self._removed: OrderedDict[tuple[str, str], float] = OrderedDict()
        """Room and incarnation of who was removed, and until when it is told so again."""

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
        return len(self._strangers) + len(self._seated)

    @property
    def tracking(self) -> Tracking:
        """What an operator sees of the rooms."""
        return self._tracking

    # --- inputs ----------------------------------------------------------------------------------

    def opened(self, conn: ConnId, now: float, address: str = "") -> None:
        """A socket is open, to this IP address. It has ``join_timeout`` to join."""
        self._strangers[conn] = _Stranger(now + self._config.join_timeout, address)

    def received(self, conn: ConnId, data: bytes | str, now: float) -> list[Output]:
        """A message came from a socket."""
        out: list[Output] = []
        if (seat := self._seated.get(conn)) is None:
            if (stranger := self._strangers.get(conn)) is not None:
                self._from_stranger(conn, stranger, data, now, out)
            return out
        owed = -seat.volume.take(len(data) + _MESSAGE_COST, now)
        if owed > 0:
            out.append(Pause(conn, owed / self._config.byte_rate))
        if isinstance(data, bytes) and data[:1] == MARK:
            self._frame(conn, seat, data, now, out)
        else:
            self._from_member(conn, seat, self._decode(data), len(data), now, out)
        return out

    def granted(self, conn: ConnId, grant: Grant, now: float) -> list[Output]:
        """The join of a socket is allowed. Changes nothing when that is not being checked."""
        out: list[Output] = []
        stranger = self._strangers.get(conn)
        if stranger is not None and stranger.join is not None:
            self._enter(_Entry(conn, stranger.address, stranger.join, grant), now, out)
        return out

    def denied(
        self, conn: ConnId, code: str, text: str, now: float, retry_after: float | None = None
    ) -> list[Output]:
        """The join of a socket is not allowed. Changes nothing when that is not being checked.

        ``code`` is ``unauthorized``, ``forbidden`` or ``unavailable``, ``retry_after`` 86400 at
        most.
        """
        out: list[Output] = []
        stranger = self._strangers.get(conn)
        if stranger is not None and stranger.join is not None:
            self._turn_away(conn, CLOSE_REFUSED, code, text, now, out, retry_after=retry_after)
        return out

    def dropped(self, conn: ConnId, now: float) -> list[Output]:
        """A socket is gone without a leave: its seat waits ``seat_timeout``."""
        out: list[Output] = []
        self._strangers.pop(conn, None)
        if seat := self._seated.get(conn):
            self._detach(seat, now, out)
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
            seat.ring = None
            seat.full = False
        return out

    def shut_down(self, now: float) -> list[Output]:  # noqa: ARG002 - all inputs have a time
        """Say goodbye to every socket, shut it, and forget everything."""
        goodbye = encode(Goodbye(reason="shutdown", retry_after=self._config.restart_delay))
        out: list[Output] = []
        for conn in (*self._strangers, *self._seated):
            out += (Send(conn, goodbye), Shut(conn, CLOSE_RESTART, "relay restarts"))
        self._strangers.clear()
        self._seated.clear()
        self._away.clear()
        self._expiring.clear()
        self._rooms.clear()
        self._members = self._held = 0
        self._tracking = Tracking()
        return out

    def remove(self, room: str, peer_id: str, now: float) -> list[Output]:
        """The operator takes a member's seat away. Its incarnation does not get another one.

        Raises `ConfigError` when it is not there.
        """
        seat = self._member(room, peer_id)
        self._tracking.acted("removed", now, room=room, peer_id=peer_id)
        out: list[Output] = []
        if seat.conn is not None:
            self._dismiss(seat.conn, out)
        self._part(seat, out)
        self._away.pop(seat, None)
        self._remove(seat, "removed", now, out)
        self._removed[room, seat.incarnation] = now + self._config.seat_timeout
        if len(self._removed) > _MAX_REMOVED:
            self._removed.popitem(last=False)
        return out

    def restart_ice(
        self, room: str, peer_id: str, other_id: str | None, now: float
    ) -> list[Output]:
        """The operator asks a member for an ICE restart with ``other_id``, or with all.

        Raises `ConfigError` when one of them is not there.
        """
        seat = self._member(room, peer_id)
        if other_id is not None and self._member(room, other_id) is seat:
            raise ConfigError(f"{peer_id!r} has no connection with itself: name another member")
        self._tracking.acted("restarted_ice", now, room=room, peer_id=peer_id, other=other_id)
        out: list[Output] = []
        self._push(seat, encode(RestartIce(peer_id=other_id)), out)
        return out

    def notice(self, room: str, text: str, now: float) -> list[Output]:
        """The operator says something to a room.

        Raises `ConfigError` when there is no such room, or for a text that is empty, has more than
        1024 characters or a control character.
        """
        members = self._room(room)
        data = _encoded_notice(text)
        self._tracking.acted("notice", now, room=room, text=text)
        out: list[Output] = []
        for seat in members.values():
            self._push(seat, data, out)
        return out

    def tick(self, now: float) -> list[Output]:
        """Time has passed: seats that ran out, sockets that never joined, credentials that will."""
        out: list[Output] = []
        timeout = self._config.join_timeout
        for conn in _due(((conn, s.until) for conn, s in self._strangers.items()), now):
            if self._strangers[conn].join is None:
                text = f"no join came within {timeout:g} s"
                self._turn_away(conn, CLOSE_NOT_JOINED, "not_joined", text, now, out)
            else:
                text = f"whether you may join was not found out within {timeout:g} s"
                self._turn_away(
                    conn, CLOSE_REFUSED, "unavailable", text, now, out, retry_after=TRY_LATER
                )
        for seat in _due(self._away.items(), now):
            del self._away[seat]
            self._remove(seat, "timeout", now, out)
        for seat in _due(self._expiring.items(), now):
            del self._expiring[seat]
            servers = self._servers(seat, now)
            if servers is not None and seat.conn is not None:
                out.append(Send(seat.conn, encode(servers)))
        self._tracking.tick(now)
        return out

    def next_deadline(self) -> float | None:
        """When `tick` has something to do, or None."""
        firsts = [next(iter(d.values())) for d in (self._away, self._expiring) if d]
        if self._strangers:
            firsts.append(next(iter(self._strangers.values())).until)
        if (at := self._tracking.next_deadline()) is not None:
            firsts.append(at)
        return min(firsts, default=None)

    def _room(self, room: str) -> dict[str, _Seat]:
        members = self._rooms.get(room)
        if members is None:
            raise ConfigError(f"this relay has no room {room!r}: nobody is in it")
        return members

    def _member(self, room: str, peer_id: str) -> _Seat:
        seat = self._room(room).get(peer_id)
        if seat is None:
            raise ConfigError(f"nobody in room {room!r} has the peer id {peer_id!r}")
        return seat

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

    # --- a socket that has no seat ---------------------------------------------------------------

    def _from_stranger(
        self, conn: ConnId, stranger: _Stranger, data: bytes | str, now: float, out: list[Output]
    ) -> None:
        if isinstance(data, bytes) and data[:1] == MARK:
            self._out_of_place(conn, stranger, None, now, out)
            return
        message = self._decode(data)
        if isinstance(message, ProtocolError):
            self._turn_away(
                conn,
                CLOSE_BAD_REQUEST,
                message.code,
                str(message),
                now,
                out,
                field=message.field,
            )
        else:
            table = self._JOINING if stranger.join is None else self._CHECKING
            table[type(message)](self, conn, stranger, message, now, out)

    def _join(
        self, conn: ConnId, stranger: _Stranger, join: Join, now: float, out: list[Output]
    ) -> None:
        stranger.join = join
        wait = self._joins.take(address_key(stranger.address), now)
        if wait > 0:
            text = (
                f"more than {self._config.join_rate:g} joins a second from your address, or "
                f"{self._config.join_burst} at once"
            )
            self._turn_away(
                conn, CLOSE_REFUSED, "rate_limited", text, now, out, retry_after=min(_DAY, wait)
            )
        elif self._authenticate:
            out.append(Authenticate(conn, join))
        else:
            self._enter(_Entry(conn, stranger.address, join, _ANYBODY), now, out)

    def _out_of_place(
        self,
        conn: ConnId,
        stranger: _Stranger,
        message: ClientMessage | None,  # noqa: ARG002 - a row of the tables; None: data
        now: float,
        out: list[Output],
    ) -> None:
        text = "the first message must be a join"
        if stranger.join is not None:
            text = "after a join nothing may come but a leave, until it is answered"
        self._turn_away(conn, CLOSE_BAD_REQUEST, "not_joined", text, now, out)

    def _join_withdrawn(
        self,
        conn: ConnId,
        stranger: _Stranger,  # noqa: ARG002
        leave: Leave,  # noqa: ARG002
        now: float,  # noqa: ARG002
        out: list[Output],
    ) -> None:
        del self._strangers[conn]
        out.append(Shut(conn, CLOSE_LEFT, "left"))

    def _enter(self, entry: _Entry, now: float, out: list[Output]) -> None:
        """Find the seat that a join is about, and what it is to it."""
        conn, join, grant = entry.conn, entry.join, entry.grant
        if grant.peer_id not in (None, join.peer_id):
            text = f"the peer id is to be {grant.peer_id!r}, not {join.peer_id!r}"
            self._turn_away(conn, CLOSE_REFUSED, "forbidden", text, now, out, field="$.peer_id")
            return
        room = self._rooms.get(join.room, {})
        peer_id = join.peer_id
        seat = room.get(peer_id)
        # Everybody in a room knows the incarnations in it, and may take one for its own. Whoever
        # does so and is removed takes nothing from the one who has it and a seat.
        returns = seat and seat.incarnation == join.incarnation and seat.claimed_by(entry)
        if not returns and self._removed.get((join.room, join.incarnation), now) > now:
            del self._strangers[conn]
            self._dismiss(conn, out)
            self._note("came back after it was removed", conn=conn, room=join.room)
            return
        may_rename = join.on_conflict == "rename" and grant.peer_id is None
        if seat and may_rename and not seat.claimed_by(entry):
            peer_id = _other_id(room, entry)
            seat = room.get(peer_id)
        if seat is None:
            self._new_seat(entry, peer_id, now, out)
        elif not seat.claimed_by(entry):
            self._refuse_taken(entry, seat, now, out)
        elif join.incarnation in seat.past:
            del self._strangers[conn]
            out.append(Send(conn, encode(Goodbye(reason="replaced"))))
            out.append(Shut(conn, CLOSE_REPLACED, "a newer incarnation has this peer id"))
            self._note("came back after it was replaced", conn=conn, **_facts(seat))
        elif grant.subject != seat.subject:
            text = f"peer id {peer_id!r} in room {join.room!r} belongs to another subject"
            self._turn_away(conn, CLOSE_REFUSED, "forbidden", text, now, out, field="$.token")
        elif join.incarnation == seat.incarnation and join.attempt < seat.attempt:
            # Its owner gave that socket up and has come back on another one since.
            text = f"join {join.attempt} of this incarnation came after join {seat.attempt}"
            self._turn_away(conn, CLOSE_SUPERSEDED, "stale_join", text, now, out, field="$.attempt")
        elif join.incarnation == seat.incarnation:
            self._return(entry, seat, now, out)
        else:
            self._take_over(entry, seat, now, out)

    def _new_seat(self, entry: _Entry, peer_id: str, now: float, out: list[Output]) -> None:
        config, conn, join = self._config, entry.conn, entry.join
        room = self._rooms.get(join.room)
        if room is None and len(self._rooms) >= config.max_rooms:
            text = f"this relay has {config.max_rooms} rooms, which is its limit; try another relay"
            self._turn_away(conn, CLOSE_REFUSED, "too_many_rooms", text, now, out)
            return
        if room is not None and len(room) >= config.max_members:
            text = f"room {join.room!r} has {config.max_members} members, which is its limit"
            self._turn_away(conn, CLOSE_REFUSED, "room_full", text, now, out)
            return
        seat = _Seat(
            room=join.room,
            peer_id=peer_id,
            incarnation=join.incarnation,
            name=entry.name,
            metadata=join.metadata,
            address=entry.address,
            allowance=self._allowances.give(address_key(entry.address), now),
            volume=self._volumes.give(address_key(entry.address), now),
        )
        self._rooms.setdefault(join.room, {})[peer_id] = seat
        self._members += 1
        self._note("member joined", conn=conn, address=entry.address, **_facts(seat))
        self._attach(entry, seat, out)
        self._begin(entry, seat, now, out)

    def _return(self, entry: _Entry, seat: _Seat, now: float, out: list[Output]) -> None:
        """The same incarnation is back on another socket: resume when nothing is missing."""
        conn, join, grant = entry.conn, entry.join, entry.grant
        named = grant.name is not None or seat.granted_name is not None
        if seat.conn is not None:
            out.append(Shut(seat.conn, CLOSE_SUPERSEDED, "superseded connection"))
        self._attach(entry, seat, out)
        self._tracking.returned(seat.room, seat.peer_id, now, address=entry.address)
        kept = len(seat.replay or ())
        if join.session == seat.session and 0 <= seat.sent - join.received <= kept:
            self._held -= seat.trim(join.received)
            missed = tuple(seat.replay or ())
            self._welcome(seat, conn, seat.received, now, out, resumed=True)
            out += (Send(conn, data) for data in missed)
            self._note("member resumed", conn=conn, missed=len(missed), **_facts(seat))
            # Its updates are counted: they have come, or follow. Those of a name that was granted
            # did not count, but the join has what it wants to be called.
            name, metadata = entry.name if named else seat.name, seat.metadata
        else:
            self._note("member returned", conn=conn, **_facts(seat))
            self._begin_session(entry, seat, now, out)
            # Updates of the old count may be lost; the join has the latest values.
            name, metadata = entry.name, join.metadata
        if (name, metadata) != (seat.name, seat.metadata):
            self._set_values(seat, name, metadata, now, out)

    def _take_over(self, entry: _Entry, seat: _Seat, now: float, out: list[Output]) -> None:
        """A new process of the owner: the one before it is gone, whether it knows or not."""
        if seat.conn is not None:
            out.append(Send(seat.conn, encode(Goodbye(reason="replaced"))))
            out.append(Shut(seat.conn, CLOSE_REPLACED, "a newer incarnation has this peer id"))
        self._attach(entry, seat, out)
        self._end_flows_to(seat, out)
        seat.past = (*seat.past, seat.incarnation)[-_PAST:]
        seat.incarnation = entry.join.incarnation
        seat.name = entry.name
        seat.metadata = entry.join.metadata
        self._note("member replaced", conn=entry.conn, address=entry.address, **_facts(seat))
        self._begin(entry, seat, now, out)

    def _attach(self, entry: _Entry, seat: _Seat, out: list[Output]) -> None:
        """The socket is the seat's from now on, and what was granted counts."""
        self._part(seat, out)
        self._away.pop(seat, None)
        del self._strangers[entry.conn]
        self._seated[entry.conn] = seat
        seat.conn = entry.conn
        seat.address = entry.address
        seat.attempt = entry.join.attempt
        # It is the seat's already, unless the seat is new, or claimed by its subject. A token
        # brought along to a new one is of a seat that ran out or that a relay before this one gave:
        # honouring it keeps it good, and nobody but its owner knows it.
        seat.token = entry.join.token or self._new_token()
        seat.subject = entry.grant.subject
        seat.granted_name = entry.grant.name

    def _begin(self, entry: _Entry, seat: _Seat, now: float, out: list[Output]) -> None:
        """An incarnation that was not there before: it is told of the room, and the room of it."""
        self._tracking.joined(
            seat.room,
            seat.peer_id,
            seat.incarnation,
            seat.name,
            now,
            address=entry.address,
            subject=seat.subject,
        )
        self._begin_session(entry, seat, now, out)
        self._tell(seat, MemberJoined(member=seat.member()), out)

    def _begin_session(self, entry: _Entry, seat: _Seat, now: float, out: list[Output]) -> None:
        """Begin the counts anew.

        What the relay has of the member's own messages is only known by the count of the session
        that the join shows.
        """
        received = seat.received if entry.join.session == seat.session else 0
        seat.session = self._new_token()
        seat.received = 0
        self._held -= seat.replay_bytes
        seat.sent = seat.replay_bytes = 0
        seat.replay = None
        self._welcome(seat, entry.conn, received, now, out)

    def _welcome(
        self,
        seat: _Seat,
        conn: ConnId,
        received: int,
        now: float,
        out: list[Output],
        *,
        resumed: bool = False,
    ) -> None:
        others = () if resumed else self._rooms[seat.room].values()
        welcome = Welcome(
            version=VERSION,
            room=seat.room,
            peer_id=seat.peer_id,
            incarnation=seat.incarnation,
            token=seat.token,
            seat_timeout=self._config.seat_timeout,
            session=seat.session,
            resumed=resumed,
            received=received,
            members=[other.member() for other in others if other is not seat],
            forward_window=self._window,
            report_interval=self._config.report_interval,
            ice_servers=self._servers(seat, now),
            name=seat.granted_name,
        )
        out.append(Send(conn, encode(welcome)))

    def _servers(self, seat: _Seat, now: float) -> IceServers | None:
        """The ICE servers for a member that has a socket; `tick` sends the next ones."""
        if self._ice_servers is None:
            return None
        servers = self._ice_servers(seat.peer_id, seat.subject)
        if servers is not None and servers.expires_in:
            self._expiring[seat] = now + _RENEW_AFTER * servers.expires_in
        return servers

    def _refuse_taken(self, entry: _Entry, seat: _Seat, now: float, out: list[Output]) -> None:
        conn, join = entry.conn, entry.join
        until = self._away.get(seat)
        text = f"peer id {join.peer_id!r} in room {join.room!r} belongs to another process"
        retry_after = None
        if until is not None:
            retry_after = max(0.0, until - now)
            text += f", which lost its connection and has {retry_after:.0f} s to come back"
        if join.on_conflict == "rename":
            why = "too long to have a number appended"
            if entry.grant.peer_id is not None:
                why = "the only one that you may have"
            text += f"; it is {why}"
        # What to do about it depends on what the client did before: it knows, this end does not.
        self._turn_away(
            conn, CLOSE_REFUSED, "peer_id_taken", text, now, out, retry_after=retry_after
        )

    def _dismiss(self, conn: ConnId, out: list[Output]) -> None:
        out.append(Send(conn, encode(Goodbye(reason="removed"))))
        out.append(Shut(conn, CLOSE_REMOVED, "removed by the operator of this relay"))

    def _turn_away(
        self,
        conn: ConnId,
        close: int,
        code: str,
        text: str,
        now: float,
        out: list[Output],
        *,
        field: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        """Refuse a socket that has no seat, and shut it."""
        stranger = self._strangers.pop(conn)
        join = stranger.join
        refused = Refused(code=code, text=printable(text), field=field, retry_after=retry_after)
        out += (Send(conn, encode(refused)), Shut(conn, close, code))
        self._tracking.refused(
            code,
            refused.text,
            now,
            room=None if join is None else join.room,
            peer_id=None if join is None else join.peer_id,
            address=stranger.address,
        )
        self._note(
            "join refused", conn=conn, address=stranger.address, code=code, text=refused.text
        )

    # --- a member --------------------------------------------------------------------------------

    def _from_member(
        self,
        conn: ConnId,
        seat: _Seat,
        message: ClientMessage | ProtocolError,
        size: int,
        now: float,
        out: list[Output],
    ) -> None:
        # By the type: this is on the way of every signal, and `isinstance` takes longer.
        cost = 1
        if size >= _PART or type(message) in _WIDE:
            cost = self._cost(seat, message, size)
        level = seat.allowance.take(cost, now)
        counted = type(message) in _COUNTED
        seat.received += counted
        if level < 0 and not isinstance(message, Leave):
            number = seat.received if counted else 0
            self._over_rate(conn, seat, number, cost, level, now, out)
        elif isinstance(message, ProtocolError):
            self._refuse(seat, message.code, str(message), now, out, field=message.field)
        else:
            self._SEATED[type(message)](self, seat, message, now, out)
        if counted and seat.received % _ACK_EVERY == 0 and seat.conn is not None:
            out.append(Send(seat.conn, encode(Ack(received=seat.received))))

    def _cost(self, seat: _Seat, message: object, size: int) -> int:
        """What a message takes from the allowance: all of it is read, an update is written to the
        whole room, and each link of a report is looked at.

        Never more than a member can have saved up, or it could not say it at all.
        """
        cost = 1 + size // _PART
        if isinstance(message, Report):
            cost += len(message.links) // _LINKS
        elif isinstance(message, Update):
            cost += -(-(len(self._rooms[seat.room]) - 1) // _REACH)
        return min(cost, self._config.message_burst)

    def _over_rate(
        self,
        conn: ConnId,
        seat: _Seat,
        number: int,
        cost: int,
        level: float,
        now: float,
        out: list[Output],
    ) -> None:
        config = self._config
        flood = level <= -config.message_burst
        if flood or now - seat.warned_at >= _WARN_EVERY:
            seat.warned_at = now
            text = (
                f"more than {config.message_rate:g} messages a second, or {config.message_burst} "
                "at once; what is over that is dropped"
            )
            if cost > 1:
                text += f" (this one counts as {cost})"
            self._refuse(
                seat,
                "rate_limited",
                text,
                now,
                out,
                message=number,
                retry_after=min(_DAY, (cost - level) / config.message_rate),
            )
        if flood:
            self._cut_off(conn, seat, CLOSE_FLOOD, "flood", "too many messages", now, out)

    def _already_joined(self, seat: _Seat, message: Join, now: float, out: list[Output]) -> None:  # noqa: ARG002
        text = f"this socket has joined room {seat.room!r} as {seat.peer_id!r} already"
        self._refuse(seat, "already_joined", text, now, out)

    def _signal(self, seat: _Seat, signal: SignalOut, now: float, out: list[Output]) -> None:
        to = self._rooms[seat.room].get(signal.to)
        if to is None or to is seat:
            text = f"nobody else in room {seat.room!r} has the peer id {signal.to!r}"
            self._refuse(
                seat,
                "no_such_peer",
                text,
                now,
                out,
                field="$.to",
                message=seat.received,
                to=signal.to,
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

    def _update(self, seat: _Seat, update: Update, now: float, out: list[Output]) -> None:
        name = seat.name if update.name is None else update.name
        metadata = seat.metadata if update.metadata is None else update.metadata
        if seat.granted_name is not None and name != seat.granted_name:
            text = f"your display name is {seat.name!r} here, and can't be changed"
            self._refuse(seat, "name_fixed", text, now, out, field="$.name", message=seat.received)
        else:
            self._set_values(seat, name, metadata, now, out)

    def _leave(self, seat: _Seat, leave: Leave, now: float, out: list[Output]) -> None:  # noqa: ARG002
        if seat.conn is not None:
            out.append(Shut(seat.conn, CLOSE_LEFT, "left"))
        self._part(seat, out)
        self._remove(seat, "left", now, out)

    def _ack(self, seat: _Seat, ack: Ack, now: float, out: list[Output]) -> None:
        if ack.received > seat.sent:
            text = f"{ack.received} messages acknowledged, but only {seat.sent} were sent"
            self._refuse(seat, "bad_ack", text, now, out, field="$.received")
        else:
            self._held -= seat.trim(ack.received)

    def _report(self, seat: _Seat, report: Report, now: float, out: list[Output]) -> None:  # noqa: ARG002
        if self._config.report_interval > 0:
            self._tracking.reported(seat.room, seat.peer_id, report.links, now)

    def _ping(self, seat: _Seat, ping: Ping, now: float, out: list[Output]) -> None:  # noqa: ARG002
        if seat.conn is not None:
            out.append(Send(seat.conn, _PONG))

    # --- data ------------------------------------------------------------------------------------

    def _frame(self, conn: ConnId, seat: _Seat, data: bytes, now: float, out: list[Output]) -> None:
        try:
            start = head_size(data)
            to_head = data[:start]
            flow = seat.flows.get(to_head) or self._new_flow(conn, seat, to_head, len(data), out)
        except ProtocolError as exc:
            self._from_member(conn, seat, exc, len(data), now, out)
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
            self._beyond_window(flow, now, out)
            self._pass(flow, size, out)
        elif to.waiting + size > self._config.max_forwarded:
            # It has to begin anew, as one that reads nothing.
            text = "too much data waits to be read"
            self._cut_off(to.conn, to, CLOSE_BEHIND, "behind", text, now, out)
            self._pass(flow, size, out)
        else:
            flow.queue.append(flow.head + data[start:])
            flow.waiting += size
            to.waiting += size
            if to.ring is None:
                to.ring = OrderedDict()
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

    def _beyond_window(self, flow: _Flow, now: float, out: list[Output]) -> None:
        if not flow.warned:
            flow.warned = True
            text = (
                f"more than {self._window} bytes of data on their way to "
                f"{flow.to.peer_id!r}; what is over that is dropped"
            )
            self._refuse(flow.sender, "over_window", text, now, out, to=flow.to.peer_id)

    def _drop_data(self, seat: _Seat, out: list[Output]) -> None:
        """The socket of a member has ended: nothing that was on its way to it or from it passes."""
        for flow in seat.ring or ():
            flow.queue.clear()
            dropped, flow.waiting, flow.turn = flow.waiting, 0, 0
            self._pass(flow, dropped, out)
        seat.ring = None
        seat.waiting = 0
        seat.full = False
        for flow in seat.flows.values():
            if flow.queue and flow.to.ring is not None:
                del flow.to.ring[flow]
                flow.to.waiting -= flow.waiting
        seat.flows.clear()

    def _end_flows_to(self, seat: _Seat, out: list[Output]) -> None:
        """An incarnation is gone, and its socket before it: tell the senders the rest."""
        for other in self._rooms[seat.room].values():
            if flow := other.flows.pop(seat.head, None):
                self._tell_passed(flow, out)

    # --- what all of them do ---------------------------------------------------------------------

    def _part(self, seat: _Seat, out: list[Output]) -> None:
        """The socket of a member, where it has one, is not its any more."""
        if seat.conn is None:
            return
        del self._seated[seat.conn]
        seat.conn = None
        self._expiring.pop(seat, None)
        self._drop_data(seat, out)

    def _detach(self, seat: _Seat, now: float, out: list[Output]) -> None:
        """It has none now, and ``seat_timeout`` to come back."""
        self._part(seat, out)
        self._away[seat] = now + self._config.seat_timeout
        self._tracking.dropped(seat.room, seat.peer_id, now)

    def _cut_off(
        self,
        conn: ConnId,
        seat: _Seat,
        close: int,
        code: str,
        text: str,
        now: float,
        out: list[Output],
    ) -> None:
        """Shut the socket of a member for what it does. The seat is kept."""
        self._refused(seat, code, text, now)
        self._detach(seat, now, out)
        out.append(Shut(conn, close, text))
        self._note("member cut off", conn=conn, code=code, text=text, **_facts(seat))

    def _set_values(
        self, seat: _Seat, name: str | None, metadata: Metadata, now: float, out: list[Output]
    ) -> None:
        if name != seat.name:
            self._tracking.updated(seat.room, seat.peer_id, name, now)
        seat.name = name
        seat.metadata = metadata
        updated = MemberUpdated(
            peer_id=seat.peer_id, incarnation=seat.incarnation, name=name, metadata=metadata
        )
        self._tell(seat, updated, out)

    def _remove(self, seat: _Seat, reason: str, now: float, out: list[Output]) -> None:
        self._end_flows_to(seat, out)
        room = self._rooms[seat.room]
        del room[seat.peer_id]
        if not room:
            del self._rooms[seat.room]
        self._members -= 1
        self._held -= seat.replay_bytes
        self._allowances.take_back(address_key(seat.address), seat.allowance, now)
        self._volumes.take_back(address_key(seat.address), seat.volume, now)
        self._tracking.left(seat.room, seat.peer_id, reason, now)
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
        now: float,
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
        self._refused(seat, code, refused.text, now)
        self._note("message refused", code=code, text=refused.text, **_facts(seat))

    def _refused(self, seat: _Seat, code: str, text: str, now: float) -> None:
        self._tracking.refused(
            code, text, now, room=seat.room, peer_id=seat.peer_id, address=seat.address
        )

    def _push(self, seat: _Seat, data: bytes, out: list[Output]) -> None:
        """Send a counted message, and keep it until it is acknowledged."""
        seat.sent += 1
        if (replay := seat.replay) is None:
            replay = seat.replay = deque()
        replay.append(data)
        size = len(data)
        seat.replay_bytes += size
        self._held += size
        config = self._config
        limit = config.max_replay_bytes
        if self._held > _HELD * limit:
            # Members that read nothing hold it; who has no more than its share loses nothing.
            limit = min(limit, _HELD * limit // self._members)
        while len(replay) > config.max_replay or seat.replay_bytes > limit:
            size = len(replay.popleft())
            seat.replay_bytes -= size
            self._held -= size
        if seat.conn is not None:
            out.append(Send(seat.conn, data))

    # --- the tables: socket state, message -> what is done ---------------------------------------

    _JOINING: ClassVar[dict[type[ClientMessage], _OnStranger]] = {
        Join: _join,
        SignalOut: _out_of_place,
        Update: _out_of_place,
        Leave: _out_of_place,
        Ack: _out_of_place,
        Report: _out_of_place,
        Ping: _out_of_place,
    }
    _CHECKING: ClassVar[dict[type[ClientMessage], _OnStranger]] = {
        Join: _out_of_place,
        SignalOut: _out_of_place,
        Update: _out_of_place,
        Leave: _join_withdrawn,
        Ack: _out_of_place,
        Report: _out_of_place,
        Ping: _out_of_place,
    }
    _SEATED: ClassVar[dict[type[ClientMessage], _OnSeated]] = {
        Join: _already_joined,
        SignalOut: _signal,
        Update: _update,
        Leave: _leave,
        Ack: _ack,
        Report: _report,
        Ping: _ping,
    }


_OnStranger = Callable[[Rooms, ConnId, _Stranger, Any, float, list[Output]], None]
_OnSeated = Callable[[Rooms, _Seat, Any, float, list[Output]], None]


def _due(deadlines: Iterable[tuple[Key, float]], now: float) -> list[Key]:
    """Whose deadline has passed: the first `_AT_ONCE` of them."""
    return [key for key, _ in islice(takewhile(lambda each: each[1] <= now, deadlines), _AT_ONCE)]


def _facts(seat: _Seat) -> dict[str, object]:
    return {"room": seat.room, "peer": seat.peer_id, "incarnation": seat.incarnation}


def _encoded_notice(text: str) -> bytes:
    try:
        data = encode(Notice(text=text))
        decode_relay(data)
    except (UnicodeEncodeError, ProtocolError):
        data = b""
    if not text or not data:
        raise ConfigError(
            f"a notice must have 1 to {MAX_TEXT} characters, no line break or other control "
            f"character among them, not {text[:MAX_TEXT]!r}"
        )
    return data


def _other_id(room: dict[str, _Seat], entry: _Entry) -> str:
    """The first of id-2, id-3, … that nobody has, or that is the joining process's own.

    One try for each seat is always enough. The id itself when it has no room for a number.
    """
    join = entry.join
    for number in range(2, len(room) + 2):
        peer_id = f"{join.peer_id}-{number}"
        if len(peer_id) > _MAX_ID:
            break
        seat = room.get(peer_id)
        if seat is None or seat.claimed_by(entry):
            return peer_id
    return join.peer_id
