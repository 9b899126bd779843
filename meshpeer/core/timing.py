"""Named deadlines and backoff. Neither reads a clock: ``now`` is an argument."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

__all__ = ["STALL", "Backoff", "Deadlines"]

STALL = 0.25
"""A deadline that is served so many seconds later than it was set for means that this process stood
still: what came in meanwhile has not been read yet, so silence proves nothing."""

Name = TypeVar("Name", bound=Hashable)


class Deadlines(Generic[Name]):
    """A few named points in time, and which of them comes next.

    Meant for the handful of deadlines that one object has; `next` looks at each.
    """

    __slots__ = ("_at",)

    def __init__(self) -> None:
        self._at: dict[Name, float] = {}

    def set(self, name: Name, at: float) -> None:
        """Set or move the deadline ``name``."""
        self._at[name] = at

    def clear(self, name: Name) -> None:
        """Forget the deadline ``name``; nothing happens when it is not set."""
        self._at.pop(name, None)

    def clear_all(self) -> None:
        """Forget every deadline."""
        self._at.clear()

    def get(self, name: Name) -> float | None:
        """The time of ``name``, or None when it is not set."""
        return self._at.get(name)

    def next(self) -> float | None:
        """The earliest time, or None when nothing is set."""
        return min(self._at.values()) if self._at else None

    def due(self, now: float) -> list[tuple[Name, float]]:
        """Take out and return what is due, earliest first, each with the time it was set for."""
        due = [(name, at) for name, at in self._at.items() if at <= now]
        for name, _ in due:
            del self._at[name]
        return sorted(due, key=lambda item: item[1])


@dataclass
class Backoff:
    """Waiting times that double from ``first`` to ``maximum`` seconds, with jitter.

    ``jitter`` is the share of each waiting time that is random: 0 for none, 1 for "full jitter",
    anything between zero and the whole.
    """

    first: float
    maximum: float
    jitter: float = 1.0
    attempts: int = field(default=0, init=False)

    def next(self, random: float) -> float:
        """The next waiting time; ``random`` is a number in [0, 1) from outside."""
        # The exponent is capped: 2.0**1024 is an OverflowError, and a link may retry for weeks.
        whole = min(self.maximum, self.first * 2.0 ** min(self.attempts, 64))
        self.attempts += 1
        return whole * (1.0 - self.jitter * random)

    def reset(self) -> None:
        """Begin again at ``first``."""
        self.attempts = 0
