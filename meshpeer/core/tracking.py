"""What the operator of a relay sees: who is there, how each link stands, and what happened.

Fed by `meshpeer.core.rooms` with presence and with the `Report`s of members, which are their word
and nothing else: a report changes only what is said of its sender's own links. Nothing is guessed:
a figure that nobody measured is None.

Each link has two ends, which both report. What happens once for a pair (attempts, successes,
failures, connection times, falls back to the relay) is taken from the end that dials, the smaller
id; what each end sends is added up.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, takewhile
from typing import Final, Literal, NamedTuple

import msgspec
from msgspec import Struct, structs

from meshpeer.core.limits import address_key
from meshpeer.core.messages import LinkReport

__all__ = [
    "FAIR_RTT",
    "MAX_ACTIVITY",
    "MAX_PART",
    "MAX_SAMPLES",
    "POOR_RTT",
    "SAMPLE_INTERVAL",
    "Activity",
    "ConnectionInfo",
    "LinkInfo",
    "LinkSide",
    "MemberInfo",
    "MeshStatus",
    "Metrics",
    "PeerInfo",
    "Presence",
    "RoomInfo",
    "RoomTopology",
    "Sample",
    "StatusPart",
    "Sums",
    "Tracking",
]

MAX_ACTIVITY: Final = 1_000
"""Events that are kept. When there are more, the oldest goes, or the oldest of the address that has
more than half of them: who comes and goes without end washes away what is its own."""

MAX_SAMPLES: Final = 360
"""Samples that are kept: an hour of them."""
SAMPLE_INTERVAL: Final = 10.0
"""Seconds between two samples."""
MAX_PART: Final = 1_000
"""Ends of links in a part of what is told in parts, at most, unless they are of one member; each
member counts as two more. A part takes a few milliseconds, with its encoding. A room of 31 members
that are all linked is one."""
_LOOKED_AT: Final = 10_000
"""Ends of links that one step looks at, where only some are told of."""
FAIR_RTT: Final = 0.15
"""Seconds of round trip from which on a link is no longer good."""
POOR_RTT: Final = 0.4
"""Seconds of round trip from which on a link is poor."""

# What one report can add to the sums at most, of one link: a lie is not to be seen for ever.
_MAX_EVENTS: Final = 10_000
_MAX_MESSAGES: Final = 10**9
_MAX_CONNECT_TIME: Final = 600.0
"""Seconds for each success."""
_MAX_ENDED: Final = 10_000
_LEAST_RTT: Final = 1e-6
_REFUSED_EVERY: Final = 1.0
# So much activity of one member's own making is told of at once, and so much more in a second:
# nobody can wash away what the operator wants to read.
_SAID_AT_ONCE: Final = 200
_SAID_A_SECOND: Final = 2.0

Quality = Literal["good", "fair", "poor"]
Presence = Literal["present", "away"]


# Of those of which there are many the garbage collector is told nothing (gc=False): they can't be
# part of a circle, and to look at everything else because they are so many takes it a tenth of a
# second in a large mesh.


class Metrics(Struct, frozen=True, rename="camel"):
    """The mesh in numbers. What is counted is so of all links that this relay was told of, from
    their beginning, those included that ended."""

    total_p2p_attempts: int = msgspec.field(name="totalP2PAttempts")
    successful_p2p_connections: int = msgspec.field(name="successfulP2PConnections")
    failed_p2p_connections: int = msgspec.field(name="failedP2PConnections")
    active_p2p_connections: int = msgspec.field(name="activeP2PConnections")
    """Pairs that are connected now, over a direct path or TURN."""
    average_connection_time: float | None
    """Seconds from the beginning of an attempt to its success, over all successes of which the
    time was told."""
    mesh_upgrade_rate: float | None
    """Of all pairs that can talk now (`RoomInfo.links` of all rooms), the share (0 to 1) that is
    connected over a direct path or TURN; None without a pair."""
    p2p_message_count: int = msgspec.field(name="p2pMessageCount")
    fallback_count: int
    """How often a pair went over to the relay."""


class ConnectionInfo(Struct, frozen=True, rename="camel"):
    """One member, as the admin API lists it."""

    peer_id: str
    display_name: str | None
    room_id: str
    p2p_peers: list[str] = msgspec.field(name="p2pPeers")
    """Whom it is connected to over a direct path or TURN."""
    ice_state: str | None
    """The worst of its links that are not closed; None without one."""
    path: str | None
    """The worst of its connected links: relay, turn, direct."""
    rtt: float | None
    """Seconds, the median of its connected links."""
    connection_quality: Quality | None
    """The worst of its links that are not closed."""
    is_p2p_active: bool = msgspec.field(name="isP2PActive")
    last_seen: float
    """Unix time."""


class LinkSide(Struct, frozen=True, rename="camel", gc=False):
    """A link as one end sees it; see `LinkReport`."""

    state: str
    ice_state: str
    path: str | None
    rtt: float | None
    reason: str
    failure: str
    restarts: int
    attempts: int
    successes: int
    failures: int
    connect_time: float | None
    fallbacks: int
    messages: int
    bytes_sent: int
    bytes_received: int
    since: float
    """Unix time at which it came into this state."""
    updated: float
    """Unix time of the latest report."""


class LinkInfo(Struct, frozen=True, rename="camel", gc=False):
    """A link between two members of a room: ``a`` is the smaller id, the one that dials.

    What both sides give is given of the sides whose members are present and have reported; when
    there is none, it is what was said last. The link is *connected*, and counted as such, when a
    member that is present has reported, all that have say ``connected``, and a path is named.
    """

    a: str
    b: str
    state: str
    """The worse of both sides: closed, failed, disconnected, connecting, new, connected."""
    path: str | None
    """The worse of both sides: relay, turn, direct."""
    rtt: float | None
    """Seconds, the mean of both sides."""
    quality: Quality | None
    """``poor`` when it is disconnected or failed, or takes 0.4 s; ``fair`` when it takes 0.15 s or
    goes over the relay; None when it is anything else than these and connected, or not measured."""
    since: float | None
    """Unix time at which it came into this state, as far as this relay was told."""
    a_side: LinkSide | None
    """None: it has reported nothing of it."""
    b_side: LinkSide | None


class MemberInfo(Struct, frozen=True, rename="camel", gc=False):
    """A member of a room."""

    peer_id: str
    incarnation: str
    display_name: str | None
    subject: str | None
    """Who the join token says it is."""
    presence: Presence
    """``away``: its socket is gone, and its seat kept."""
    address: str | None
    joined: float
    """Unix time."""
    last_seen: float


class RoomTopology(Struct, frozen=True, rename="camel"):
    """A room as a graph."""

    room_id: str
    members: list[MemberInfo]
    links: list[LinkInfo]


class RoomInfo(Struct, frozen=True, rename="camel", gc=False):
    """A room in numbers."""

    room_id: str
    members: int
    """Those that are away as well."""
    away: int
    links: int
    """Pairs that can talk: all of members that are present, n(n-1)/2, and those with a member that
    is away which are connected all the same. The next four add up to it."""
    direct: int
    turn: int
    relay: int
    unconnected: int
    since: float


class PeerInfo(Struct, frozen=True, rename="camel"):
    """A member with its links."""

    room_id: str
    member: MemberInfo
    links: list[LinkInfo]


class Activity(Struct, frozen=True, rename="camel", omit_defaults=True):
    """Something that happened."""

    number: int
    """Rises by one for each."""
    at: float
    """Unix time."""
    kind: str
    """``joined``, ``left``, ``dropped``, ``returned``, ``replaced``, ``updated``, ``link``,
    ``refused``, ``restarted_ice``, ``removed``, ``notice``."""
    room_id: str | None = None
    peer_id: str | None = None
    other_peer_id: str | None = None
    text: str = ""


class Sample(Struct, frozen=True, rename="camel"):
    """The mesh at one moment, for curves. Counts are of the time since the sample before."""

    at: float
    members: int
    direct: int
    turn: int
    relay: int
    unconnected: int
    attempts: int
    successes: int
    failures: int
    connection_time: float | None
    rtt: float | None
    """Seconds, the median of all connected links that measured it, to two digits."""


class MeshStatus(Struct, frozen=True, rename="camel"):
    """All of it, as ``/api/admin/mesh-status`` answers."""

    metrics: Metrics
    connections: list[ConnectionInfo]
    topology: list[RoomTopology]


class StatusPart(NamedTuple):
    """A room of `MeshStatus`, or the next part of one."""

    first: bool
    connections: list[ConnectionInfo]
    room: RoomTopology
    """Some members, each with its links to those that were told of before it."""


class Sums(NamedTuple):
    """All rooms in numbers; see `RoomInfo`."""

    rooms: int
    members: int
    away: int
    direct: int
    turn: int
    relay: int
    unconnected: int


# room, peer id and incarnation of the end that reported, peer id and incarnation of the other
_End = tuple[str, str, str, str, str]

# The higher, the worse.
_STATE_RANK: Final = {
    "connected": 0,
    "new": 1,
    "connecting": 2,
    "disconnected": 3,
    "failed": 4,
    "closed": 5,
}
_PATHS: Final = ("direct", "turn", "relay")
_PATH_RANK: Final[dict[str | None, int]] = {None: 0, "direct": 1, "turn": 2, "relay": 3}
_ICE_RANK: Final = {
    "connected": 0,
    "completed": 0,
    "closed": 2,
    "new": 3,
    "gathering": 4,
    "checking": 5,
    "disconnected": 6,
    "failed": 7,
}
"""(W3C WebRTC, RTCIceTransportState, and gathering.) A state that is not listed is 1."""
_QUALITY_RANK: Final[dict[Quality | None, int]] = {None: 0, "good": 1, "fair": 2, "poor": 3}


class _Member:
    """One incarnation with a seat. Compared and hashed by identity."""

    __slots__ = (
        "address",
        "away",
        "incarnation",
        "joined",
        "links",
        "name",
        "peer_id",
        "quiet_at",
        "seen",
        "source",
        "subject",
    )

    def __init__(
        self,
        peer_id: str,
        incarnation: str,
        name: str | None,
        address: str | None,
        subject: str | None,
        now: float,
    ) -> None:
        self.peer_id = peer_id
        self.incarnation = incarnation
        self.name = name
        self.address = address
        self.source = _source(address)
        """Who is behind what it does, in the activity."""
        self.subject = subject
        self.joined = now
        self.seen = now
        self.away = False
        self.links: dict[str, _Link] | None = None
        """By the peer id of the other end; made with the first."""
        self.quiet_at = now
        """When what it did is no longer held against it: see `_may_say`."""

    def info(self, wall: float) -> MemberInfo:
        return MemberInfo(
            peer_id=self.peer_id,
            incarnation=self.incarnation,
            display_name=self.name,
            subject=self.subject,
            presence="away" if self.away else "present",
            address=self.address,
            joined=self.joined + wall,
            last_seen=self.seen + wall,
        )


class _Side:
    """What one end of a link said last."""

    __slots__ = ("failure", "reason", "report", "since", "updated")

    def __init__(self, report: LinkReport, now: float) -> None:
        self.since = now
        self.take(report, now)

    def take(self, report: LinkReport, now: float) -> None:
        """It says this now."""
        self.report = _without_texts(report)
        # As UTF-8, of which they have a limit. A str of as many bytes may take four times as much.
        self.reason = report.reason.encode()
        self.failure = report.failure.encode()
        self.updated = now

    def info(self, wall: float) -> LinkSide:
        report = self.report
        # By position, as in `LinkSide`: by name it takes three times as long.
        return LinkSide(
            report.state,
            report.ice_state,
            report.path,
            report.rtt,
            self.reason.decode(),
            self.failure.decode(),
            report.restarts,
            report.attempts,
            report.successes,
            report.failures,
            report.connect_time,
            report.fallbacks,
            report.messages,
            report.bytes_sent,
            report.bytes_received,
            self.since + wall,
            self.updated + wall,
        )


class _Link:
    """What is said of a pair, and what follows from it: made with the first report of either."""

    __slots__ = (
        "a",
        "a_side",
        "b",
        "b_side",
        "beyond",
        "bucket",
        "counted",
        "path",
        "rtt",
        "since",
        "state",
    )

    def __init__(self, a: _Member, b: _Member, now: float) -> None:
        self.a = a
        self.b = b
        self.a_side: _Side | None = None
        self.b_side: _Side | None = None
        self.state = ""
        self.path: str | None = None
        self.rtt: float | None = None
        self.since = now
        self.counted: str | None = None
        """The path that it is counted for; None while it is not counted as connected."""
        self.beyond = False
        """It is counted, and one of its ends is away."""
        self.bucket: float | None = None
        """Under which of `Tracking._rtts` it is counted."""

    def sides(self) -> list[_Side]:
        """What the ends say that are present; when none of them says anything, what was said."""
        a, b = self.a_side, self.b_side
        sides = []
        if a is not None and not self.a.away:
            sides.append(a)
        if b is not None and not self.b.away:
            sides.append(b)
        return sides or [side for side in (a, b) if side is not None]

    @property
    def stands(self) -> bool:
        """Both of its ends still have their seats."""
        a, b = self.a, self.b
        return (a.links or {}).get(b.peer_id) is self is (b.links or {}).get(a.peer_id)

    @property
    def spoken_of(self) -> bool:
        """An end that is present has said something."""
        return (self.a_side is not None and not self.a.away) or (
            self.b_side is not None and not self.b.away
        )

    @property
    def quality(self) -> Quality | None:
        if self.state in ("disconnected", "failed"):
            return "poor"
        if self.counted is None or self.rtt is None:
            return None
        if self.rtt >= POOR_RTT:
            return "poor"
        return "fair" if self.rtt >= FAIR_RTT or self.path == "relay" else "good"

    def other(self, member: _Member) -> _Member:
        return self.b if member is self.a else self.a

    def seen_by(self, member: _Member) -> _Side:
        """What ``member`` says of it; where it says nothing, or is away, the other end."""
        own, theirs = self.a_side, self.b_side
        if member is self.b:
            own, theirs = theirs, own
        if own is None or (member.away and theirs is not None and not self.other(member).away):
            own = theirs
        assert own is not None
        return own

    def info(self, wall: float) -> LinkInfo:
        a_side, b_side = self.a_side, self.b_side
        return LinkInfo(
            self.a.peer_id,
            self.b.peer_id,
            self.state,
            self.path,
            self.rtt,
            self.quality,
            self.since + wall,
            None if a_side is None else a_side.info(wall),
            None if b_side is None else b_side.info(wall),
        )


class _Room:
    """The seats of a room, and how many of its pairs are connected over which path."""

    __slots__ = ("beyond", "members", "name", "paths", "present", "since", "version")

    def __init__(self, name: str, now: float) -> None:
        self.name = name
        self.members: dict[str, _Member] = {}
        self.present = 0
        self.paths = dict.fromkeys(_PATHS, 0)
        self.beyond = 0
        """Pairs that are connected with one end away."""
        self.since = now
        self.version = 0

    @property
    def pairs(self) -> int:
        """Pairs that can talk: `RoomInfo.links`."""
        return _pairs(self.present) + self.beyond

    def info(self, wall: float) -> RoomInfo:
        members, pairs, paths = len(self.members), self.pairs, self.paths
        direct, turn, relay = paths["direct"], paths["turn"], paths["relay"]
        return RoomInfo(
            self.name,
            members,
            members - self.present,
            pairs,
            direct,
            turn,
            relay,
            pairs - direct - turn - relay,
            self.since + wall,
        )

    def parts(self) -> Iterator[tuple[list[_Member], list[_Link]]]:
        """Members with `MAX_PART` ends of links together, and their links to those before them.

        Between two parts anything may happen: who leaves before its turn is in none, nor is who
        comes after the beginning.
        """
        members = list(self.members.values())
        told: set[_Member] = set()
        at = 0
        while at < len(members):
            some: list[_Member] = []
            links: list[_Link] = []
            ends = 0
            while at < len(members):
                member = members[at]
                if self.members.get(member.peer_id) is member:
                    ends += 2 + len(member.links or ())
                    if some and ends > MAX_PART:
                        break
                    some.append(member)
                    told.add(member)
                    links += [
                        link
                        for link in (member.links or {}).values()
                        if (link.b if link.a is member else link.a) in told
                    ]
                at += 1
            if some:
                yield some, links


@dataclass(slots=True)
class _Totals:
    """What happened on all links, as far as it was told."""

    attempts: int = 0
    successes: int = 0
    failures: int = 0
    fallbacks: int = 0
    messages: int = 0
    timed: int = 0
    """The successes of which the time was told."""
    connect_time: float = 0.0
    """Seconds that those took together."""

    def add(self, report: LinkReport, before: LinkReport, *, dials: bool) -> None:
        """What ``report`` tells more than the one ``before`` it, of the same end of the pair."""
        # Most of it is as it was, and this is done for every link of every report.
        if report.messages > before.messages:
            self.messages += min(report.messages - before.messages, _MAX_MESSAGES)
        if not dials:
            return
        if report.attempts > before.attempts:
            self.attempts += min(report.attempts - before.attempts, _MAX_EVENTS)
        if report.failures > before.failures:
            self.failures += min(report.failures - before.failures, _MAX_EVENTS)
        if report.fallbacks > before.fallbacks:
            self.fallbacks += min(report.fallbacks - before.fallbacks, _MAX_EVENTS)
        if report.successes <= before.successes:
            return
        successes = min(report.successes - before.successes, _MAX_EVENTS)
        self.successes += successes
        if report.connect_time is not None:
            took = max(report.connect_time - (before.connect_time or 0.0), 0.0)
            self.timed += successes
            self.connect_time += min(took, successes * _MAX_CONNECT_TIME)


def _without_texts(report: LinkReport) -> LinkReport:
    """All but whom it is about, which the link knows, and the reasons, which `_Side` keeps."""
    return LinkReport(
        "",
        "",
        report.state,
        _SHARED.get(report.ice_state, report.ice_state),
        report.path,
        report.rtt,
        "",
        "",
        report.restarts,
        report.attempts,
        report.successes,
        report.failures,
        report.connect_time,
        report.fallbacks,
        report.messages,
        report.bytes_sent,
        report.bytes_received,
    )


def _figures(report: LinkReport) -> LinkReport:
    """What counts on from it, and nothing else."""
    return LinkReport(
        peer_id="",
        incarnation="",
        state=report.state,
        ice_state="",
        attempts=report.attempts,
        successes=report.successes,
        failures=report.failures,
        connect_time=report.connect_time,
        fallbacks=report.fallbacks,
        messages=report.messages,
    )


_SHARED: Final = {state: state for state in _ICE_RANK}
_NOTHING: Final = LinkReport(peer_id="", incarnation="", state="closed", ice_state="")


def _two_digits(rtt: float) -> float:
    """Rounded, so that there are few different ones; below a microsecond it is 0."""
    return float(f"{rtt:.1e}") if rtt >= _LEAST_RTT else 0.0


def _pairs(members: int) -> int:
    return members * (members - 1) // 2


class _Entry(NamedTuple):
    at: float
    kind: str
    source: str | None
    """None: the operator, or nobody knows."""
    room: str | None
    peer_id: str | None
    other: str | None
    text: str


class Tracking:
    """The picture of every room. ``now`` is the core's clock; ``wall`` is what has to be added to
    it for Unix time, at the moment of asking.

    What it is told of rooms and members has to fit together, as `Rooms` tells it; what a report
    says may be anything. A join costs O(1), what happens to a member O(its links), a report O(the
    links that it tells of).
    """

    def __init__(self) -> None:
        self._rooms: dict[str, _Room] = {}
        self._members = 0
        self._version = 0
        # Sums over all rooms, for `metrics` and for samples.
        self._pairs = 0
        self._paths = dict.fromkeys(_PATHS, 0)
        self._rtts: dict[float, int] = {}
        """How many connected links have which round trip, of two digits: a thousand at most."""
        self._totals = _Totals()
        # What the ends of links that are gone had counted: for a last report that comes late, and
        # for a pair that meets again and goes on counting.
        self._ended: OrderedDict[_End, LinkReport] = OrderedDict()
        self._refusals: dict[str, int] = {}
        self._refused_at: dict[str, tuple[float, int]] = {}
        """By code: when it was activity last, and how many were refused by then."""
        self._activity: OrderedDict[int, _Entry] = OrderedDict()
        """By number. OrderedDict finds its first in O(1) even after many were taken out."""
        self._of_source: dict[str | None, deque[int]] = {}
        """Their numbers, by who is behind them."""
        self._most: str | None = None
        """Who had more than half of it last."""
        self._latest = 0
        self._samples: deque[Sample] = deque(maxlen=MAX_SAMPLES)
        """Of which ``at`` is in the core's time."""
        self._sampled = _Totals()
        """The totals at the latest sample."""
        self._sample_at: float | None = None

    # --- what happens ----------------------------------------------------------------------------

    def joined(
        self,
        room: str,
        peer_id: str,
        incarnation: str,
        name: str | None,
        now: float,
        *,
        address: str | None = None,
        subject: str | None = None,
    ) -> None:
        """A new seat, or a new incarnation in one (``replaced`` in the activity)."""
        where = self._rooms.get(room)
        if where is None:
            where = self._rooms[room] = _Room(room, now)
        earlier = where.members.get(peer_id)
        if earlier is not None:
            self._take_out(where, earlier)
        member = _Member(peer_id, incarnation, name, address, subject, now)
        where.members[peer_id] = member
        self._members += 1
        self._set_present(where, where.present + 1)
        if self._sample_at is None:
            self._sample_at = now + SAMPLE_INTERVAL
        kind = "joined" if earlier is None else "replaced"
        self._say(now, kind, member.source, room, peer_id, text=name or "")
        self._changed(where)

    def dropped(self, room: str, peer_id: str, now: float) -> None:
        """The socket of a member is gone; its seat is kept."""
        where, member = self._find(room, peer_id)
        member.seen = now
        self._say(now, "dropped", member.source, room, peer_id)
        self._set_away(where, member, True, now)
        self._changed(where)

    def returned(self, room: str, peer_id: str, now: float, *, address: str | None = None) -> None:
        """The same incarnation is back on another socket."""
        where, member = self._find(room, peer_id)
        member.seen = now
        member.address = address
        member.source = _source(address)
        self._say(now, "returned", member.source, room, peer_id)
        self._set_away(where, member, False, now)
        self._changed(where)

    def updated(self, room: str, peer_id: str, name: str | None, now: float) -> None:
        """Another display name."""
        where, member = self._find(room, peer_id)
        member.seen = now
        member.name = name
        if _may_say(member, now):
            self._say(now, "updated", member.source, room, peer_id, text=name or "")
        self._changed(where)

    def left(self, room: str, peer_id: str, reason: str, now: float) -> None:
        """The seat is gone: ``left``, ``timeout`` or ``removed``."""
        where, member = self._find(room, peer_id)
        self._take_out(where, member)
        if not where.members:
            del self._rooms[room]
        self._say(now, "left", member.source, room, peer_id, text=reason)
        self._changed(where)

    def reported(self, room: str, peer_id: str, links: list[LinkReport], now: float) -> None:
        """A member told how its links stand.

        Of what is about nobody in the room only the counts are looked at, and only of a link that
        ended lately.
        """
        where, member = self._find(room, peer_id)
        member.seen = now
        for report in links:
            other = where.members.get(report.peer_id)
            if other is member:
                continue
            if other is None or other.incarnation != report.incarnation:
                key = (room, peer_id, member.incarnation, report.peer_id, report.incarnation)
                self._count_ended(key, report)
                continue
            link = None if member.links is None else member.links.get(report.peer_id)
            if link is None:
                link = _new_link(member, other, now)
            self._take(where, link, member, report, now)
        self._changed(where)

    def refused(
        self,
        code: str,
        text: str,
        now: float,
        *,
        room: str | None = None,
        peer_id: str | None = None,
        address: str | None = None,
    ) -> None:
        """A join, a message or a connection, from ``address``, was refused: counted by code.

        It is activity as well, each code once a second at most; the text then says how many more
        there were.
        """
        count = self._refusals[code] = self._refusals.get(code, 0) + 1
        self._version += 1
        at, before = self._refused_at.get(code, (-math.inf, 0))
        if now - at >= _REFUSED_EVERY:
            self._refused_at[code] = (now, count)
            more = count - before - 1
            text = f"{code}: {text}" + (f" (and {more} more since the last)" if more else "")
            self._say(now, "refused", _source(address), room, peer_id, text=text)

    def acted(
        self,
        kind: str,
        now: float,
        *,
        room: str,
        peer_id: str | None = None,
        other: str | None = None,
        text: str = "",
    ) -> None:
        """The operator did something."""
        self._say(now, kind, None, room, peer_id, other, text)
        self._version += 1

    def next_deadline(self) -> float | None:
        """When `tick` is wanted: for the next sample; None while nobody is there."""
        return self._sample_at

    def tick(self, now: float) -> None:
        """Time has passed."""
        if self._sample_at is None or now < self._sample_at:
            return
        # After the last member has left there is one more sample, which says so.
        self._sample_at = now + SAMPLE_INTERVAL if self._members else None
        totals, before = self._totals, self._sampled
        self._sampled = replace(totals)
        timed = totals.timed - before.timed
        while self._samples and self._samples[0].at <= now - MAX_SAMPLES * SAMPLE_INTERVAL:
            self._samples.popleft()
        self._samples.append(
            Sample(
                at=now,
                members=self._members,
                direct=self._paths["direct"],
                turn=self._paths["turn"],
                relay=self._paths["relay"],
                unconnected=self._pairs - sum(self._paths.values()),
                attempts=totals.attempts - before.attempts,
                successes=totals.successes - before.successes,
                failures=totals.failures - before.failures,
                connection_time=(
                    (totals.connect_time - before.connect_time) / timed if timed else None
                ),
                rtt=_median(self._rtts),
            )
        )
        self._version += 1

    # --- what is asked ---------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """Rises with every change."""
        return self._version

    @property
    def refusals(self) -> dict[str, int]:
        """How often each code was refused."""
        return dict(self._refusals)

    @property
    def connection_times(self) -> tuple[float, int]:
        """Seconds that successes took, together, and of how many it was told."""
        return self._totals.connect_time, self._totals.timed

    def metrics(self) -> Metrics:
        """The mesh in numbers. Costs O(1)."""
        totals = self._totals
        active = self._paths["direct"] + self._paths["turn"]
        return Metrics(
            total_p2p_attempts=totals.attempts,
            successful_p2p_connections=totals.successes,
            failed_p2p_connections=totals.failures,
            active_p2p_connections=active,
            average_connection_time=totals.connect_time / totals.timed if totals.timed else None,
            mesh_upgrade_rate=active / self._pairs if self._pairs else None,
            p2p_message_count=totals.messages,
            fallback_count=totals.fallbacks,
        )

    def sums(self) -> Sums:
        """All rooms in numbers. Costs O(rooms), and little for each."""
        present = sum(room.present for room in self._rooms.values())
        paths = self._paths
        return Sums(
            rooms=len(self._rooms),
            members=self._members,
            away=self._members - present,
            direct=paths["direct"],
            turn=paths["turn"],
            relay=paths["relay"],
            unconnected=self._pairs - sum(paths.values()),
        )

    def status(self, wall: float) -> MeshStatus:
        """All of it, as of one moment."""
        parts = list(self.status_parts(wall))
        topology: list[RoomTopology] = []
        for part in parts:
            if part.first:
                topology.append(part.room)
            else:
                topology[-1].members.extend(part.room.members)
                topology[-1].links.extend(part.room.links)
        connections = chain.from_iterable(part.connections for part in parts)
        return MeshStatus(self.metrics(), list(connections), topology)

    def status_parts(self, wall: float) -> Iterator[StatusPart]:
        """The same, all but the sums, of `MAX_PART` ends of links at a time.

        Between two parts anything may happen. A room that is in one part is told of as of one
        moment. Of a larger one each member is told of as of the moment of its part, and each link
        as of that of the later of its ends.
        """
        for room in list(self._rooms.values()):
            first = True
            for members, links in room.parts():
                yield StatusPart(
                    first,
                    [_connection(room.name, member, wall) for member in members],
                    _topology(room, members, links, wall),
                )
                first = False

    def rooms(self, wall: float, limit: int | None = None) -> list[RoomInfo]:
        """Every room, the largest first; or the ``limit`` largest."""
        return [room.info(wall) for room in self._largest()[:limit]]

    def rooms_parts(self, wall: float) -> Iterator[list[RoomInfo]]:
        """The same, some at a time; each as of the moment of its part."""
        rooms = self._largest()
        for at in range(0, len(rooms), MAX_PART // 2):
            some = rooms[at : at + MAX_PART // 2]
            yield [room.info(wall) for room in some if room.members]

    def _largest(self) -> list[_Room]:
        return sorted(self._rooms.values(), key=lambda room: len(room.members), reverse=True)

    def room(self, room: str, wall: float) -> RoomTopology | None:
        """One room as a graph; None when there is none of that name."""
        where = self._rooms.get(room)
        if where is None:
            return None
        links = chain.from_iterable(links for _, links in where.parts())
        return _topology(where, where.members.values(), links, wall)

    def room_in_steps(
        self, room: str, wall: float, limit: int
    ) -> Generator[None, None, RoomTopology | None]:
        """The same, as of the moment of the last step, with ``limit`` links at most: those that are
        not connected, those over the relay, then others. Between two steps anything may happen;
        which links are told of was seen before."""
        while (where := self._rooms.get(room)) is not None:
            bad: list[_Link] = []
            relayed: list[_Link] = []
            good: list[_Link] = []
            ends = 0
            for member in list(where.members.values()):
                for link in (member.links or {}).values():
                    if link.a is member:
                        if link.counted is None:
                            bad.append(link)
                        elif link.counted == "relay":
                            relayed.append(link)
                        elif len(good) < limit:
                            good.append(link)
                if len(bad) >= limit:
                    break
                ends += len(member.links or ())
                if ends >= _LOOKED_AT:
                    ends = 0
                    yield
            yield
            if self._rooms.get(room) is where:
                links = [link for link in (bad + relayed + good)[:limit] if link.stands]
                return _topology(where, where.members.values(), links, wall)
        return None

    def room_version(self, room: str) -> int:
        """Rises with every change in this room; 0 when there is none of that name."""
        where = self._rooms.get(room)
        return 0 if where is None else where.version

    def peers(self, wall: float, room: str | None = None) -> list[PeerInfo]:
        """Every member of ``room``, or of all, with its links."""
        return list(chain.from_iterable(self.peers_parts(wall, room)))

    def peers_parts(self, wall: float, room: str | None = None) -> Iterator[list[PeerInfo]]:
        """The same, of `MAX_PART` ends of links at a time, each part as of one moment. Between two
        parts anything may happen."""
        if room is None:
            rooms = list(self._rooms.values())
        else:
            rooms = [self._rooms[room]] if room in self._rooms else []
        for where in rooms:
            for members, _ in where.parts():
                links: dict[_Link, LinkInfo] = {}
                peers = []
                for member in members:
                    mine = []
                    for link in (member.links or {}).values():
                        info = links.get(link)
                        if info is None:
                            info = links[link] = link.info(wall)
                        mine.append(info)
                    peers.append(PeerInfo(where.name, member.info(wall), mine))
                yield peers

    def activity(self, wall: float, after: int = 0) -> list[Activity]:
        """What happened after that number, the oldest first."""
        numbers = list(takewhile(lambda number: number > after, reversed(self._activity)))
        told = []
        for number in reversed(numbers):
            at, kind, _, room, peer_id, other, text = self._activity[number]
            told.append(Activity(number, at + wall, kind, room, peer_id, other, text))
        return told

    def history(self, wall: float) -> list[Sample]:
        """A sample for every ten seconds of the last hour, the oldest first."""
        return [structs.replace(sample, at=sample.at + wall) for sample in self._samples]

    # --- links -----------------------------------------------------------------------------------

    def _take(
        self, where: _Room, link: _Link, member: _Member, report: LinkReport, now: float
    ) -> None:
        """What ``member`` says of ``link`` from now on."""
        dials = member is link.a
        side = link.a_side if dials else link.b_side
        if side is None:
            # A pair that met before goes on counting where it stood.
            other = link.b if dials else link.a
            before = self._ended.pop(_end(where.name, member, other), _NOTHING)
            side = _Side(report, now)
            if dials:
                link.a_side = side
            else:
                link.b_side = side
            news, measured = True, None
        else:
            before = side.report
            measured = before.rtt
            news = report.state != before.state or report.path != before.path
            side.take(report, now)
            if report.state != before.state:
                side.since = now
        self._totals.add(report, before, dials=dials)
        if news:
            self._settle(where, link, member, now)
        elif report.rtt != measured:
            self._measure(link, link.sides())

    def _settle(self, where: _Room, link: _Link, by: _Member, now: float) -> None:
        """Say and count anew how a link stands, after ``by`` reported, went away or came back."""
        self._uncount(where, link)
        sides = link.sides()
        worst = sides[0]
        path = worst.report.path
        for side in sides[1:]:
            if _badness(side) > _badness(worst):
                worst = side
            if _PATH_RANK[side.report.path] > _PATH_RANK[path]:
                path = side.report.path
        state = worst.report.state
        news = state != link.state or (state == "connected" and path != link.path)
        if state != link.state:
            link.since = now
        link.state, link.path = state, path
        if news and _may_say(by, now):
            text = f"connected over {path}" if state == "connected" and path else state
            if worst.reason:
                text += f": {worst.reason.decode()}"
            self._say(now, "link", by.source, where.name, link.a.peer_id, link.b.peer_id, text)
        if state == "connected" and path is not None and link.spoken_of:
            self._count(where, link, path)
        self._measure(link, sides)

    def _measure(self, link: _Link, sides: list[_Side]) -> None:
        """The round trip of a link, and how it is counted."""
        rtts = [side.report.rtt for side in sides if side.report.rtt is not None]
        rtt = link.rtt = sum(rtts) / len(rtts) if rtts else None
        bucket = None
        if rtt is not None and link.counted is not None:
            bucket = _two_digits(rtt)
        if bucket == link.bucket:
            return
        counts = self._rtts
        if link.bucket is not None:
            counts[link.bucket] -= 1
            if not counts[link.bucket]:
                del counts[link.bucket]
        if bucket is not None:
            counts[bucket] = counts.get(bucket, 0) + 1
        link.bucket = bucket

    def _count(self, where: _Room, link: _Link, path: str) -> None:
        """The link is connected."""
        link.counted = path
        where.paths[path] += 1
        self._paths[path] += 1
        if link.a.away or link.b.away:
            link.beyond = True
            where.beyond += 1
            self._pairs += 1

    def _uncount(self, where: _Room, link: _Link) -> None:
        """The opposite; nothing happens when it is not counted. `_measure` is to follow."""
        if link.counted is None:
            return
        where.paths[link.counted] -= 1
        self._paths[link.counted] -= 1
        link.counted = None
        if link.beyond:
            link.beyond = False
            where.beyond -= 1
            self._pairs -= 1

    def _count_ended(self, key: _End, report: LinkReport) -> None:
        """A report of a link that ended, or of one that never was."""
        before = self._ended.get(key)
        if before is None:
            return
        _, peer_id, _, other_id, _ = key
        self._totals.add(report, before, dials=peer_id < other_id)
        self._ended[key] = _figures(report)

    # --- rooms -----------------------------------------------------------------------------------

    def _find(self, room: str, peer_id: str) -> tuple[_Room, _Member]:
        where = self._rooms[room]
        return where, where.members[peer_id]

    def _changed(self, where: _Room) -> None:
        self._version += 1
        where.version = self._version

    def _set_present(self, where: _Room, present: int) -> None:
        self._pairs += _pairs(present) - _pairs(where.present)
        where.present = present

    def _set_away(self, where: _Room, member: _Member, away: bool, now: float) -> None:
        if member.away == away:
            return
        member.away = away
        self._set_present(where, where.present + (-1 if away else 1))
        for link in (member.links or {}).values():
            self._settle(where, link, member, now)

    def _take_out(self, where: _Room, member: _Member) -> None:
        """An incarnation is gone, and its links with it."""
        for link in (member.links or {}).values():
            self._uncount(where, link)
            self._measure(link, [])
            for side, end, other in (
                (link.a_side, link.a, link.b),
                (link.b_side, link.b, link.a),
            ):
                if side is not None:
                    self._ended[_end(where.name, end, other)] = _figures(side.report)
            other = link.b if member is link.a else link.a
            assert other.links is not None
            del other.links[member.peer_id]
        while len(self._ended) > _MAX_ENDED:
            self._ended.popitem(last=False)
        del where.members[member.peer_id]
        self._members -= 1
        if not member.away:
            self._set_present(where, where.present - 1)

    def _say(
        self,
        now: float,
        kind: str,
        source: str | None,
        room: str | None,
        peer_id: str | None,
        other: str | None = None,
        text: str = "",
    ) -> None:
        self._latest += 1
        self._activity[self._latest] = _Entry(now, kind, source, room, peer_id, other, text)
        own = self._of_source.setdefault(source, deque())
        own.append(self._latest)
        if len(own) > MAX_ACTIVITY // 2:
            self._most = source
        if len(self._activity) <= MAX_ACTIVITY:
            return
        most = self._of_source.get(self._most, ())
        if len(most) > MAX_ACTIVITY // 2:
            source = self._most
        else:
            source = next(iter(self._activity.values())).source
        own = self._of_source[source]
        del self._activity[own.popleft()]
        if not own:
            del self._of_source[source]


def _source(address: str | None) -> str | None:
    return None if address is None else address_key(address)


def _may_say(member: _Member, now: float) -> bool:
    """True when what a member does is to be activity: it did not do too much of late."""
    quiet_at = max(member.quiet_at, now)
    if quiet_at - now > (_SAID_AT_ONCE - 1) / _SAID_A_SECOND:
        return False
    member.quiet_at = quiet_at + 1 / _SAID_A_SECOND
    return True


def _end(room: str, member: _Member, other: _Member) -> _End:
    return (room, member.peer_id, member.incarnation, other.peer_id, other.incarnation)


def _new_link(member: _Member, other: _Member, now: float) -> _Link:
    a, b = (member, other) if member.peer_id < other.peer_id else (other, member)
    link = _Link(a, b, now)
    for end, far in ((a, b), (b, a)):
        if end.links is None:
            end.links = {}
        end.links[far.peer_id] = link
    return link


def _badness(side: _Side) -> tuple[int, int]:
    return _STATE_RANK[side.report.state], _PATH_RANK[side.report.path]


def _topology(
    room: _Room, members: Iterable[_Member], links: Iterable[_Link], wall: float
) -> RoomTopology:
    return RoomTopology(
        room.name, [member.info(wall) for member in members], [link.info(wall) for link in links]
    )


def _connection(room: str, member: _Member, wall: float) -> ConnectionInfo:
    p2p: list[str] = []
    ice_state: str | None = None
    path: str | None = None
    quality: Quality | None = None
    worst = -1
    rtts: dict[float, int] = {}
    for other, link in (member.links or {}).items():
        if link.state == "closed":
            continue
        if link.counted is not None:
            if link.counted != "relay":
                p2p.append(other)
            if _PATH_RANK[link.counted] > _PATH_RANK[path]:
                path = link.counted
            if link.rtt is not None:
                rtts[link.rtt] = rtts.get(link.rtt, 0) + 1
        state = link.seen_by(member).report.ice_state
        if (rank := _ICE_RANK.get(state, 1)) > worst:
            ice_state, worst = state, rank
        if _QUALITY_RANK[its := link.quality] > _QUALITY_RANK[quality]:
            quality = its
    return ConnectionInfo(
        peer_id=member.peer_id,
        display_name=member.name,
        room_id=room,
        p2p_peers=sorted(p2p),
        ice_state=ice_state,
        path=path,
        rtt=_median(rtts),
        connection_quality=quality,
        is_p2p_active=bool(p2p),
        last_seen=member.seen + wall,
    )


def _median(counts: dict[float, int]) -> float | None:
    """Of values that occur so often each; None of none."""
    total = sum(counts.values())
    if not total:
        return None
    lower = None
    passed = 0
    for value in sorted(counts):
        passed += counts[value]
        if lower is None and passed * 2 >= total:
            lower = value
        if lower is not None and passed * 2 > total:
            return (lower + value) / 2
    raise AssertionError("not reached")
