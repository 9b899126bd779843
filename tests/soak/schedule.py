"""What is broken, when, and for how long: drawn from a seed, so that a run can be repeated."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["SHORTEST", "Fault", "Kind", "schedule"]


class Kind(StrEnum):
    """What breaks."""

    RELAY = "relay killed"
    CUT = "direct path cut"
    ONE_WAY = "direct path cut one way"
    NO_UDP = "UDP blocked"
    OFFLINE = "offline"
    STOPPED = "process stopped"
    ADDRESS = "address changed"
    PUBLIC_ADDRESS = "public address changed"


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that breaks. Times are seconds, ``start`` counts from the beginning."""

    start: float
    length: float
    kind: Kind
    who: tuple[str, ...]
    """Whom it concerns; for a path cut one way, the sender first."""

    @property
    def end(self) -> float:
        """When it is mended."""
        return self.start + self.length

    def __str__(self) -> str:
        lasts = f" for {self.length:.1f} s" if self.length else ""
        arrow = " → " if self.kind is Kind.ONE_WAY else " - "
        return f"{self.start:5.1f} s: {self.kind}, {arrow.join(self.who)}{lasts}"

    def clashes(self, other: Fault) -> bool:
        """Whether both would break the same thing at the same time."""
        return (
            self.kind is other.kind
            and set(self.who) == set(other.who)
            and self.start <= other.end + _PAUSE
            and other.start <= self.end + _PAUSE
        )


_PLAN = (
    # What, how often a minute, and the shortest and the longest time. After 2.5 s a peer is
    # `disconnected`, after 3 s more its data goes over the relay, after 15 s a new connection is
    # tried: the lengths lie before, between and behind those.
    (Kind.RELAY, 2, 0.0, 4.0),
    (Kind.CUT, 4, 3.0, 12.0),
    (Kind.CUT, 2, 20.0, 25.0),
    (Kind.ONE_WAY, 2, 3.0, 12.0),
    (Kind.ONE_WAY, 1, 20.0, 25.0),
    (Kind.NO_UDP, 1, 8.0, 25.0),
    (Kind.OFFLINE, 1, 3.0, 8.0),
    (Kind.STOPPED, 1, 10.0, 10.0),
    (Kind.ADDRESS, 1, 0.0, 0.0),
    (Kind.PUBLIC_ADDRESS, 1, 0.0, 0.0),
)
_QUIET = 3.0
"""Nothing breaks in the first seconds."""
_PAUSE = 3.0
"""Between two faults of the same kind in the same place: the relay, too, needs to start."""
SHORTEST = 45.0
"""Seconds that a schedule has at least: less has no room for all that must be in it."""


def schedule(seed: int, seconds: float, names: Sequence[str]) -> list[Fault]:
    """What breaks between the processes of these names, in order of time; all mended at the end."""
    draw = random.Random(seed)
    faults: list[Fault] = []
    for kind, often, shortest, longest in _PLAN:
        for _ in range(max(1, round(often * seconds / 60))):
            while True:
                fault = _draw(draw, kind, draw.uniform(shortest, longest), seconds, names)
                if not any(fault.clashes(other) for other in faults):
                    break
            faults.append(fault)
    return sorted(faults, key=lambda fault: fault.start)


def _draw(
    draw: random.Random, kind: Kind, length: float, seconds: float, names: Sequence[str]
) -> Fault:
    match kind:
        case Kind.RELAY:
            who = ["relay"]
        case Kind.CUT | Kind.ONE_WAY:
            who = draw.sample(names, 2)
        case _:
            who = draw.sample(names, 1)
    return Fault(draw.uniform(_QUIET, seconds - length), length, kind, tuple(who))
