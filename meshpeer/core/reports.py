"""Which links the signalling service is told about, and when.

All of them after each welcome, as it may know nothing. Then each that has changed, soon after it
did and together with others; and at the interval that the service asks for, those whose figures
are others than it was told. A link that ended is told once more.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from meshpeer.core.messages import LinkReport

__all__ = ["DELAY", "Reports"]

DELAY = 0.2
"""Seconds from a change until it is told: what follows from it is told with it."""
# Of links that ended and were not told of. While the service is away nobody comes, so there are no
# more than members of the room; this holds whatever it does.
_MAX_ENDED = 1000


class Reports:
    """What of one node's links is to be told. Nothing is, until it is `wanted`."""

    __slots__ = ("_all", "_away", "_changed", "_due_at", "_ended", "_interval", "_soon_at", "_told")

    def __init__(self) -> None:
        self._interval = 0.0
        self._away = True
        self._told: dict[str, LinkReport] = {}
        self._ended: dict[tuple[str, str], LinkReport] = {}
        self._changed: dict[str, None] = {}
        self._all = False
        self._soon_at: float | None = None
        self._due_at: float | None = None

    # --- inputs ---

    def wanted(self, interval: float, now: float) -> None:
        """The service is there, and wants reports at least so often (seconds); 0: none."""
        self.lost()
        self._interval = interval
        if interval <= 0:
            self._ended.clear()
            return
        self._away, self._all = False, True
        self._soon_at, self._due_at = now + DELAY, now + interval

    def lost(self) -> None:
        """The service can't be reached."""
        self._away = True
        self._told.clear()
        self._soon_at = self._due_at = None

    def changed(self, peer_id: str, now: float) -> None:
        """Something happened to the link with this peer. Costs little, whatever it was."""
        if self._away:
            return
        self._changed[peer_id] = None
        if self._soon_at is None:
            self._soon_at = now + DELAY

    def unknown(self, peer_id: str, now: float) -> None:
        """This peer has a seat again: what was told of the link with it while it had none, or had
        lost it, the service may not know."""
        self._told.pop(peer_id, None)
        self.changed(peer_id, now)

    def ended(self, last: LinkReport, now: float) -> None:
        """A link is over; ``last`` is told instead of it."""
        self._told.pop(last.peer_id, None)
        self._changed.pop(last.peer_id, None)
        if self._interval <= 0:
            return
        self._ended[last.peer_id, last.incarnation] = last
        if len(self._ended) > _MAX_ENDED:
            del self._ended[next(iter(self._ended))]
        if not self._away and self._soon_at is None:
            self._soon_at = now + DELAY

    def next_deadline(self) -> float | None:
        """When `due` is wanted next."""
        return min((at for at in (self._soon_at, self._due_at) if at is not None), default=None)

    # --- what is to be told ---

    def due(
        self, now: float, peers: Collection[str], report: Callable[[str], LinkReport]
    ) -> list[LinkReport]:
        """What is to be told now, each incarnation once. ``peers`` are those that are there,
        ``report`` makes one's."""
        at = self.next_deadline()
        if at is None or at > now:
            return []
        figures = self._all or (self._due_at is not None and self._due_at <= now)
        out: list[LinkReport] = []
        for (peer_id, incarnation), last in self._ended.items():
            if peer_id in peers and report(peer_id).incarnation == incarnation:
                self._changed[peer_id] = None  # it is back, and counts on
            else:
                out.append(last)
        for peer_id in peers if figures else self._changed:
            if peer_id not in peers:
                continue  # it has left since
            before, link = self._told.get(peer_id), report(peer_id)
            if before is None or (link != before if figures else _facts(link) != _facts(before)):
                self._told[peer_id] = link
                out.append(link)
        self._ended.clear()
        self._changed.clear()
        self._all, self._soon_at = False, None
        if figures:
            self._due_at = now + self._interval
        return out


def _facts(link: LinkReport) -> tuple[object, ...]:
    """What is worth telling soon: all but the figures that change while all is well."""
    return (
        link.incarnation,
        link.state,
        link.ice_state,
        link.path,
        link.rtt is None,
        link.reason,
        link.failure,
        link.restarts,
        link.attempts,
        link.successes,
        link.failures,
        link.fallbacks,
    )
