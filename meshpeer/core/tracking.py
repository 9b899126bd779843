"""What the operator of a relay sees: who is there, how each link stands, and what happened.

Fed by `meshpeer.core.rooms` with presence and with the `Report`s of members, which are their word
and nothing else: a report changes only what is said of its sender's own links. Nothing is guessed:
a figure that nobody measured is None.

Each link has two ends, which both report. What happens once for a pair (attempts, successes,
failures, connection times, falls back to the relay) is taken from the end that dials, the smaller
id; what each end sends is added up.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec
from msgspec import Struct

from meshpeer.core.messages import LinkReport

__all__ = [
    "MAX_ACTIVITY",
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
    "Tracking",
]

MAX_ACTIVITY: Final = 1_000
"""Events that are kept; older ones go."""

Quality = Literal["good", "fair", "poor"]
Presence = Literal["present", "away"]


class Metrics(Struct, frozen=True, rename="camel"):
    """The mesh in numbers, since the relay started."""

    total_p2p_attempts: int = msgspec.field(name="totalP2PAttempts")
    successful_p2p_connections: int = msgspec.field(name="successfulP2PConnections")
    failed_p2p_connections: int = msgspec.field(name="failedP2PConnections")
    active_p2p_connections: int = msgspec.field(name="activeP2PConnections")
    """Pairs that are connected now, over a direct path or TURN."""
    average_connection_time: float | None
    """Seconds, over all successes."""
    mesh_upgrade_rate: float | None
    """Of all pairs of members that could talk now, the share (0 to 1) that is connected over a
    direct path or TURN; None without a pair."""
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
    """The worst of its links; None without one."""
    path: str | None
    """The worst of its connected links: relay, turn, direct."""
    rtt: float | None
    """Seconds, the median of its links."""
    connection_quality: Quality | None
    is_p2p_active: bool = msgspec.field(name="isP2PActive")
    last_seen: float
    """Unix time."""


class LinkSide(Struct, frozen=True, rename="camel"):
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


class LinkInfo(Struct, frozen=True, rename="camel"):
    """A link between two members of a room: ``a`` is the smaller id, the one that dials."""

    a: str
    b: str
    state: str
    """The worse of both sides."""
    path: str | None
    """The worse of both sides."""
    rtt: float | None
    quality: Quality | None
    since: float | None
    a_side: LinkSide | None
    """None: it has reported nothing of it."""
    b_side: LinkSide | None


class MemberInfo(Struct, frozen=True, rename="camel"):
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


class RoomInfo(Struct, frozen=True, rename="camel"):
    """A room in numbers."""

    room_id: str
    members: int
    away: int
    links: int
    """Pairs that could be linked: n(n-1)/2."""
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
    """Seconds, the median of all connected links that measured it."""


class MeshStatus(Struct, frozen=True, rename="camel"):
    """All of it, as ``/api/admin/mesh-status`` answers."""

    metrics: Metrics
    connections: list[ConnectionInfo]
    topology: list[RoomTopology]


class Tracking:
    """The picture of every room. ``now`` is the core's clock; ``wall`` is what has to be added to
    it for Unix time, at the moment of asking."""

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
        raise NotImplementedError

    def dropped(self, room: str, peer_id: str, now: float) -> None:
        """The socket of a member is gone; its seat is kept."""
        raise NotImplementedError

    def returned(self, room: str, peer_id: str, now: float, *, address: str | None = None) -> None:
        """The same incarnation is back on another socket."""
        raise NotImplementedError

    def updated(self, room: str, peer_id: str, name: str | None, now: float) -> None:
        """Another display name."""
        raise NotImplementedError

    def left(self, room: str, peer_id: str, reason: str, now: float) -> None:
        """The seat is gone: ``left``, ``timeout`` or ``removed``."""
        raise NotImplementedError

    def reported(self, room: str, peer_id: str, links: list[LinkReport], now: float) -> None:
        """A member told how its links stand. What is about nobody in the room is not looked at."""
        raise NotImplementedError

    def refused(
        self,
        code: str,
        text: str,
        now: float,
        *,
        room: str | None = None,
        peer_id: str | None = None,
    ) -> None:
        """A join, a message or a connection was refused: counted by code; joins are activity."""
        raise NotImplementedError

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
        raise NotImplementedError

    @property
    def version(self) -> int:
        """Rises with every change."""
        raise NotImplementedError

    @property
    def refusals(self) -> dict[str, int]:
        """How often each code was refused."""
        raise NotImplementedError

    def metrics(self) -> Metrics:
        """The mesh in numbers. Costs O(1)."""
        raise NotImplementedError

    def status(self, wall: float) -> MeshStatus:
        """All of it."""
        raise NotImplementedError

    def rooms(self, wall: float) -> list[RoomInfo]:
        """Every room, the largest first."""
        raise NotImplementedError

    def room(self, room: str, wall: float) -> RoomTopology | None:
        """One room as a graph; None when there is none of that name."""
        raise NotImplementedError

    def room_version(self, room: str) -> int:
        """Rises with every change in this room; 0 when there is none of that name."""
        raise NotImplementedError

    def peers(self, wall: float) -> list[PeerInfo]:
        """Every member with its links."""
        raise NotImplementedError

    def activity(self, wall: float, after: int = 0) -> list[Activity]:
        """What happened after that number, the oldest first."""
        raise NotImplementedError

    def history(self, wall: float) -> list[Sample]:
        """A sample for every ten seconds of the last hour, the oldest first."""
        raise NotImplementedError

    def next_deadline(self) -> float | None:
        """When `tick` is wanted: for the next sample; None while nobody is there."""
        raise NotImplementedError

    def tick(self, now: float) -> None:
        """Time has passed."""
        raise NotImplementedError
