"""What a row of a table is: something that is done a number of times, and how long it may take."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

__all__ = ["Case", "Outcome"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one run."""

    seconds: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A row."""

    name: str
    run: Callable[[bool], Awaitable[Outcome]]
    """Do it once, in a network of its own. True: the peers swap their ids, so that the one on the
    right dials. Raises AssertionError or TimeoutError when it does not end as it must, however
    long that takes."""
    limit: float
    """Seconds."""
    of: Literal["median", "p95"] = "p95"
    """What must be within the limit."""
    beside: str | None = None
    """The limit is for how much longer it takes than the case of this name."""
