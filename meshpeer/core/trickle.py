"""The candidates of one ICE generation, both ways, as they are found (RFC 8838).

Ours wait until the description they belong to was sent. Theirs go to the connection as they come;
each side may have `MAX_CANDIDATES`, those in its description included. Who does not say that there
will be no others is taken to have said it some time after the latest (forced completion): without
an end ICE would never report that it failed.
"""

from __future__ import annotations

from collections.abc import Sequence

from meshpeer.core.messages import MAX_CANDIDATES, Candidates, IceCandidate, count_candidates
from meshpeer.core.operations import AddCandidates, Operate, SendSignal

__all__ = ["Trickle"]


class Trickle:
    """The candidates of one generation. ``timeout``: seconds to the forced completion."""

    __slots__ = (
        "_ended",
        "_epoch",
        "_generation",
        "_held",
        "_held_end",
        "_room",
        "_sent",
        "_theirs",
        "_timeout",
        "complete_at",
    )

    def __init__(self, epoch: int, generation: int, timeout: float) -> None:
        self._epoch = epoch
        self._generation = generation
        self._timeout = timeout
        # Ours: whether the description was sent, what waits for it, and how many more are taken.
        self._sent = False
        self._held: list[IceCandidate] = []
        self._held_end = False
        self._room = MAX_CANDIDATES
        # Theirs: how many came, and whether that was all.
        self._theirs = 0
        self._ended = False
        self.complete_at: float | None = None
        """When `complete` is wanted."""

    # --- ours ---

    def found(self, candidates: Sequence[IceCandidate], *, end: bool) -> list[SendSignal]:
        """Local candidates were found. More than the other side takes are not sent."""
        candidates = candidates[: self._room]
        if not self._sent:
            self._held += candidates[: self._room - len(self._held)]
            self._held_end = self._held_end or end
            return []
        self._room -= len(candidates)
        if not candidates and not end:
            return []
        more = Candidates(list(candidates), end, self._generation)
        return [SendSignal(self._epoch, more)]

    def sent(self, sdp: str) -> list[SendSignal]:
        """Our description was sent: what waited for it follows."""
        self._sent = True
        self._room = max(0, self._room - count_candidates(sdp))
        held, self._held = self._held, []
        return self.found(held, end=self._held_end)

    # --- theirs ---

    def fits(self, more: int) -> bool:
        """Whether the other side may have so many more."""
        return self._theirs + more <= MAX_CANDIDATES

    def described(self, sdp: str, now: float) -> None:
        """Their description came."""
        self._theirs += count_candidates(sdp)
        if not self._ended:
            self.complete_at = now + self._timeout

    def received(
        self, candidates: Sequence[IceCandidate], *, end: bool, now: float
    ) -> list[Operate]:
        """More of theirs came."""
        # Messages without candidates have no limit. All but the first that ends them say nothing.
        news = bool(candidates) or (end and not self._ended)
        self._theirs += len(candidates)
        self._ended = self._ended or end
        if self._ended:
            self.complete_at = None
        elif candidates and self.complete_at is not None:
            self.complete_at = now + self._timeout
        return [self._add(tuple(candidates), end=end)] if news else []

    def complete(self) -> list[Operate]:
        """Nothing came for a while: that was all."""
        self.complete_at = None
        self._ended = True
        return [self._add((), end=True)]

    def _add(self, candidates: tuple[IceCandidate, ...], *, end: bool) -> Operate:
        return Operate(self._epoch, AddCandidates(candidates, end, self._generation))
