"""What the users of a `PeerManager` see happen: states and events.

Events are told after the state has changed, in the order in which things happened.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from meshpeer.errors import MeshError, ProtocolError, UndeliveredMessage

__all__ = [
    "BadInput",
    "CandidateInfo",
    "CandidatePair",
    "Closed",
    "ConnectionReport",
    "Event",
    "IceServerOutcome",
    "IceServerReport",
    "Joined",
    "MeshState",
    "MessagesUndelivered",
    "NoticeReceived",
    "Path",
    "PeerJoined",
    "PeerLeft",
    "PeerState",
    "PeerStateChanged",
    "PeerUpdated",
    "Replaced",
    "SignalingChanged",
    "UndeliveredMessage",
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
    TURN = "turn"
    """Over a TURN server of either side."""
    RELAY = "relay"
    """Over the signalling service, as nothing better works."""


class IceServerOutcome(StrEnum):
    """What came of asking a STUN or TURN server for a candidate."""

    FOUND = "found"
    TIMED_OUT = "timed out"
    REFUSED = "refused"
    WRONG_CREDENTIALS = "wrong credentials"
    UNTRUSTED_CERTIFICATE = "untrusted certificate"
    NAME_NOT_FOUND = "name not found"
    FAILED = "failed"
    """Something else; `IceServerReport.detail` says what."""


@dataclass(frozen=True, slots=True)
class CandidateInfo:
    """One end of a candidate pair."""

    type: str
    """``host``, ``srflx``, ``prflx`` or ``relay`` (RFC 8445, section 5.1.1)."""
    address: str
    port: int
    server: str | None = None
    """For a local ``relay`` candidate: the URL of its TURN server."""


@dataclass(frozen=True, slots=True)
class CandidatePair:
    """Where data goes from and to (RFC 8445, section 4)."""

    local: CandidateInfo
    remote: CandidateInfo

    @property
    def path(self) -> Path:
        """How data flows over it."""
        relayed = "relay" in (self.local.type, self.remote.type)
        return Path.TURN if relayed else Path.DIRECT


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
    ``superseded`` (a new incarnation has its id), ``removed`` (by the operator of the relay),
    ``closed`` (we closed).
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
class ConnectionReport(Event):
    """How it stands with one peer. Told when the state, the path or the selected pair changes, and
    after an ICE restart; `PeerManager.debug` gives the same at any time."""

    peer_id: str
    incarnation: str
    name: str | None
    state: PeerState
    ice_state: str
    path: Path | None
    pair: CandidatePair | None
    """The selected candidate pair; None while there is none."""
    rtt: float | None
    """The latest round trip in seconds."""
    reason: str
    """Why it is in this state, or what has just happened."""
    epoch: int
    """The number of the connection attempt."""
    generation: int
    """The ICE generation that carries data."""
    restarts: int
    """ICE restarts that took over, in all connections with this incarnation."""
    seconds: dict[PeerState, float]
    """How long the link was in each state so far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MessagesUndelivered(Event):
    """A peer is gone for good, and these messages were accepted for it and not acknowledged.

    Told before its `PeerLeft`. Whether the last of them arrived before it went can't be known. What
    was accepted by `Peer.request` and `Peer.send_file` is not among them: those calls raise.
    """

    peer_id: str
    incarnation: str
    messages: tuple[UndeliveredMessage, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class IceServerReport(Event):
    """What came of asking a STUN or TURN server. Told when it is another than the last time."""

    url: str
    outcome: IceServerOutcome
    detail: str
    """More about it in words; empty when there is nothing to say."""
    address: str | None
    """The address that was found (host:port): ours as the server sees it, or the relayed one."""
    took: float
    """Seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BadInput(Event):
    """Something malformed, forged or out of place arrived. It was refused; nothing else changed."""

    peer_id: str | None
    """Who sent it; None for the signalling service."""
    error: ProtocolError


@dataclass(frozen=True, slots=True, kw_only=True)
class NoticeReceived(Event):
    """The operator of the relay says something to everybody in the room."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Replaced(Event):
    """A newer process took our peer id over. This manager closes and does not come back."""

    peer_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed(Event):
    """The last event: the manager is closed. ``error`` is what ended it, None after `close`."""

    reason: str
    error: MeshError | None = None
