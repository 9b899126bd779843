"""What the users of a `PeerManager` see happen: states and events.

Events are told after the state has changed, in the order in which things happened.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from meshpeer.errors import MeshError, ProtocolError

__all__ = [
    "BadInput",
    "Closed",
    "Event",
    "Joined",
    "MeshState",
    "Path",
    "PeerJoined",
    "PeerLeft",
    "PeerState",
    "PeerStateChanged",
    "PeerUpdated",
    "Replaced",
    "SignalingChanged",
]


class PeerState(StrEnum):
    """How it stands between us and one peer."""

    NEW = "new"
    CONNECTING = "connecting"
    CONNECTED = "connected"
    DISCONNECTED = "disconnected"
    """Was connected, is being connected again."""
    FAILED = "failed"
    """Could not be connected; another attempt follows."""
    CLOSED = "closed"
    """For good: the peer left, or a new incarnation took its place."""


class MeshState(StrEnum):
    """How it stands between a manager and its signalling service."""

    NEW = "new"
    JOINING = "joining"
    JOINED = "joined"
    RECONNECTING = "reconnecting"
    """The service can't be reached. Direct links live on meanwhile."""
    CLOSED = "closed"


class Path(StrEnum):
    """How data flows."""

    DIRECT = "direct"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Base of everything that `PeerManager.events` yields."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined(Event):
    """We have a seat in the room; ``peer_id`` may differ from the wish under ``rename``."""

    peer_id: str
    room: str
    incarnation: str
    resumed: bool
    """True when it is the seat we had, and nothing was missed meanwhile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalingChanged(Event):
    """The way to the signalling service changed."""

    state: MeshState
    reason: str
    retry_in: float | None = None
    """Seconds to the next try, when one is planned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerJoined(Event):
    """Somebody is in the room with us."""

    peer_id: str
    incarnation: str
    name: str | None
    metadata: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerUpdated(Event):
    """A peer changed its name or metadata; both as they are now."""

    peer_id: str
    incarnation: str
    name: str | None
    metadata: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerLeft(Event):
    """A peer is gone.

    ``reason``: ``left`` (it said so), ``timeout`` (its seat ran out and no direct path was alive),
    ``superseded`` (a new incarnation has its id), ``closed`` (we closed).
    """

    peer_id: str
    incarnation: str
    name: str | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerStateChanged(Event):
    """The state of the link to a peer changed."""

    peer_id: str
    incarnation: str
    name: str | None
    previous: PeerState
    state: PeerState
    path: Path | None
    reason: str
    epoch: int
    """The number of the connection attempt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BadInput(Event):
    """Something malformed, forged or out of place arrived. It was refused; nothing else changed."""

    peer_id: str | None
    """Who sent it; None for the signalling service."""
    error: ProtocolError


@dataclass(frozen=True, slots=True, kw_only=True)
class Replaced(Event):
    """A newer process took our peer id over. This manager closes and does not come back."""

    peer_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed(Event):
    """The last event: the manager is closed. ``error`` is what ended it, None after `close`."""

    reason: str
    error: MeshError | None = None
