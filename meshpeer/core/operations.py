"""What a link asks the shell to do: the outputs that the link and its ICE restarts share."""

from __future__ import annotations

from dataclasses import dataclass

from meshpeer.core.messages import IceCandidate, LinkMessage
from meshpeer.errors import ProtocolError

__all__ = [
    "AcceptAnswer",
    "AcceptOffer",
    "AddCandidates",
    "CloseConnection",
    "MakeOffer",
    "Operate",
    "Operation",
    "Refuse",
    "SendSignal",
]


@dataclass(frozen=True, slots=True)
class MakeOffer:
    """Make an offer and report it. Generation 0 makes the connection first."""

    generation: int = 0


@dataclass(frozen=True, slots=True)
class AcceptOffer:
    """Make an answer to this offer and report it. Generation 0 makes the connection first."""

    sdp: str
    generation: int = 0


@dataclass(frozen=True, slots=True)
class AcceptAnswer:
    """Give the answer to the connection."""

    sdp: str
    generation: int = 0


@dataclass(frozen=True, slots=True)
class AddCandidates:
    """Give remote candidates to the connection."""

    candidates: tuple[IceCandidate, ...]
    end: bool
    generation: int = 0


@dataclass(frozen=True, slots=True)
class CloseConnection:
    """Close the connection; later operations wait until it is closed."""


Operation = MakeOffer | AcceptOffer | AcceptAnswer | AddCandidates | CloseConnection


@dataclass(frozen=True, slots=True)
class Operate:
    """Run an operation on the connection of this epoch, after those that came before it."""

    epoch: int
    operation: Operation


@dataclass(frozen=True, slots=True)
class SendSignal:
    """Send this to the remote incarnation."""

    epoch: int
    body: LinkMessage


@dataclass(frozen=True, slots=True)
class Refuse:
    """What the other side sent was refused."""

    error: ProtocolError
