"""What the admin's part needs of a relay, without the relay: a picture, and actions kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import structlog
from structlog.testing import LogCapture

from meshpeer.config import RelayConfig
from meshpeer.core.messages import LinkReport
from meshpeer.core.rooms import Output, Rooms, Send
from meshpeer.core.tracking import Tracking
from meshpeer.errors import ConfigError
from meshpeer.relay.admin import Admin, RelayFigures

__all__ = ["FIGURES", "Board", "captured", "meet"]

FIGURES = RelayFigures(
    version="1.2.3",
    uptime=12.5,
    connections=3,
    accepted=5,
    refused={"too_many": 2},
    messages_in=10,
    messages_out=20,
    bytes_in=1000,
    bytes_out=2000,
    cut_off=1,
)


class Board:
    """Takes the place of `Rooms`. ``now`` is a clock that stands until it is moved."""

    def __init__(self, **config: Any) -> None:
        self.tracking = Tracking()
        self.now = 1000.0
        self.acted: list[tuple[Any, ...]] = []
        """Actions, and what they came to when it was carried out."""
        self.config = RelayConfig(**{"admin_password": "open sesame", **config})

    def admin(self, **more: Any) -> Admin:
        return Admin(
            self.config,
            cast(Rooms, self),
            apply=self.acted.append,  # type: ignore[arg-type]
            figures=lambda: FIGURES,
            **{"now": lambda: self.now, **more},
        )

    @property
    def rooms(self) -> int:
        return len(self.tracking._rooms)

    def join(self, room: str, peer_id: str, **more: Any) -> None:
        name = more.pop("name", None)
        self.tracking.joined(room, peer_id, f"incarnation-{peer_id}", name, self.now, **more)

    def remove(self, room: str, peer_id: str, now: float) -> list[Output]:
        return self._act("remove", room, peer_id, now)

    def restart_ice(
        self, room: str, peer_id: str, other_id: str | None, now: float
    ) -> list[Output]:
        return self._act("restart_ice", room, peer_id, other_id, now)

    def notice(self, room: str, text: str, now: float) -> list[Output]:
        return self._act("notice", room, text, now)

    def _act(self, *what: Any) -> list[Output]:
        self.acted.append(what)
        if what[1] == "nowhere":
            raise ConfigError("there is no room 'nowhere'")
        return [Send(1, b"something")]


def meet(tracking: Tracking, room: str, a: str, b: str, now: float, **fields: Any) -> None:
    """Both ends of a link report it."""
    for peer_id, other in ((a, b), (b, a)):
        report = LinkReport(
            peer_id=other,
            incarnation=f"incarnation-{other}",
            **{"state": "connected", "ice_state": "completed", "path": "direct", **fields},
        )
        tracking.reported(room, peer_id, [report], now)


@contextmanager
def captured() -> Iterator[list[Any]]:
    """What is logged meanwhile."""
    capture = LogCapture()
    structlog.configure(processors=[capture])
    try:
        yield capture.entries
    finally:
        structlog.reset_defaults()
