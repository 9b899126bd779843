"""One node's view of the room: who is there, as which incarnation, and who dials whom.

The roster comes from the signalling service; the links and their state from the node. `Mesh` only
decides which links there are: at most one for each peer id, to its current incarnation.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from meshpeer.core.messages import Member, MemberLeft, MemberUpdated
from meshpeer.core.timing import Deadlines

__all__ = ["CloseLink", "Mesh", "MeshOutput", "OpenLink", "Reachable", "Renamed"]


@dataclass(frozen=True, slots=True)
class OpenLink:
    """Somebody is there: make a link. ``dials``: this side does."""

    member: Member
    dials: bool


@dataclass(frozen=True, slots=True)
class CloseLink:
    """Somebody is gone: end the link."""

    peer_id: str
    incarnation: str
    reason: str


@dataclass(frozen=True, slots=True)
class Renamed:
    """A member has another name or other metadata."""

    member: Member


@dataclass(frozen=True, slots=True)
class Reachable:
    """Signals get to this peer, or don't."""

    peer_id: str
    reachable: bool


MeshOutput = OpenLink | CloseLink | Renamed | Reachable


@dataclass(slots=True)
class _Entry:
    member: Member
    present: bool = True
    """Whether the signalling service knows it."""
    alive: bool = False
    """Whether a direct path to it is alive."""


class Mesh:
    """The roster of one node. ``peer_id`` and ``incarnation`` are its own."""

    def __init__(self, peer_id: str, incarnation: str) -> None:
        self.peer_id = peer_id
        self.incarnation = incarnation
        self._roster: dict[str, _Entry] = {}
        self._grace: Deadlines[str] = Deadlines()
        self._lost = False
        """Whether the signalling service can't be reached: nobody's absence can be seen then."""
        self._seat_timeout = 0.0

    def __contains__(self, peer_id: object) -> bool:
        return peer_id in self._roster

    def next_deadline(self) -> float | None:
        """When `tick` is wanted next."""
        return self._grace.next()

    # --- presence ---

    def welcome(
        self, members: Iterable[Member], seat_timeout: float, now: float
    ) -> list[MeshOutput]:
        """The whole room, after a join or a loss that was not resumed.

        Who is missing has ``seat_timeout`` seconds to come back: after a restart of the service
        everybody has to, and whoever does so first must not take the others for gone.
        """
        out: list[MeshOutput] = []
        self._seat_timeout = seat_timeout
        listed = {member.peer_id for member in members}
        for peer_id, entry in self._roster.items():
            if entry.present and peer_id not in listed:
                entry.present = False
                self._grace.set(peer_id, now + seat_timeout)
                out.append(Reachable(peer_id, reachable=False))
        self._look_again(now)
        for member in members:
            out += self.joined(member)
        return out

    def resumed(self, now: float) -> list[MeshOutput]:
        """The service is back, and nothing was missed."""
        self._look_again(now)
        return [
            Reachable(peer_id, reachable=True)
            for peer_id, entry in self._roster.items()
            if entry.present
        ]

    def signaling_lost(self) -> list[MeshOutput]:
        """The service can't be reached; the roster stays as it is, until it is back."""
        self._lost = True
        self._grace.clear_all()
        return [
            Reachable(peer_id, reachable=False)
            for peer_id, entry in self._roster.items()
            if entry.present
        ]

    def _look_again(self, now: float) -> None:
        """Who was absent may have come back meanwhile, or has as long as we had to do so."""
        if self._lost:
            self._lost = False
            for peer_id, entry in self._roster.items():
                if not entry.present:
                    self._grace.set(peer_id, now + self._seat_timeout)

    def joined(self, member: Member) -> list[MeshOutput]:
        """Somebody has a seat."""
        if member.peer_id == self.peer_id:
            return []  # Ids are unique in a room; a service that says otherwise is not believed.
        out: list[MeshOutput] = []
        entry = self._roster.get(member.peer_id)
        if entry is not None and entry.member.incarnation == member.incarnation:
            self._grace.clear(member.peer_id)
            entry.present = True
            if entry.member != member:
                entry.member = member
                out.append(Renamed(member))
            out.append(Reachable(member.peer_id, reachable=True))
            return out
        if entry is not None:
            out += self._forget(member.peer_id, "superseded")
        self._roster[member.peer_id] = _Entry(member)
        out.append(OpenLink(member, dials=self.peer_id < member.peer_id))
        return out

    def left(self, message: MemberLeft) -> list[MeshOutput]:
        """Somebody's seat is gone."""
        entry = self._roster.get(message.peer_id)
        if entry is None or entry.member.incarnation != message.incarnation:
            return []
        if message.reason == "timeout" and entry.alive:
            # Only its way to the service is dead. It has a seat again as soon as that is mended.
            entry.present = False
            self._grace.clear(message.peer_id)
            return [Reachable(message.peer_id, reachable=False)]
        return self._forget(message.peer_id, message.reason)

    def updated(self, message: MemberUpdated) -> list[MeshOutput]:
        """Somebody's name or metadata changed."""
        entry = self._roster.get(message.peer_id)
        if entry is None or entry.member.incarnation != message.incarnation:
            return []
        entry.member = Member(message.peer_id, message.incarnation, message.name, message.metadata)
        return [Renamed(entry.member)]

    # --- the links ---

    def link_alive(self, peer_id: str, alive: bool) -> list[MeshOutput]:
        """A direct path to the peer is alive, or no longer is."""
        entry = self._roster[peer_id]
        entry.alive = alive
        if alive or entry.present or self._lost or self._grace.get(peer_id) is not None:
            return []
        return self._forget(peer_id, "timeout")

    def departed(self, peer_id: str, incarnation: str) -> list[MeshOutput]:
        """The peer said goodbye over the direct path."""
        entry = self._roster.get(peer_id)
        if entry is None or entry.member.incarnation != incarnation:
            return []
        return self._forget(peer_id, "left")

    def tick(self, now: float) -> list[MeshOutput]:
        """Time has passed."""
        out: list[MeshOutput] = []
        for peer_id, _ in self._grace.due(now):
            if not self._roster[peer_id].alive:
                out += self._forget(peer_id, "timeout")
        return out

    def close(self) -> list[MeshOutput]:
        """This node leaves: nobody is there any more."""
        return [
            output for peer_id in list(self._roster) for output in self._forget(peer_id, "closed")
        ]

    def _forget(self, peer_id: str, reason: str) -> list[MeshOutput]:
        entry = self._roster.pop(peer_id)
        self._grace.clear(peer_id)
        return [CloseLink(peer_id, entry.member.incarnation, reason)]
