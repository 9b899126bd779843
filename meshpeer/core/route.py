"""Which path we want to receive on: the direct one while there is one, else the relay.

The two sides of a pair need not agree beforehand. Each says where it wants to receive
(`core.delivery` has the frames for it), asks the other to do the same, and goes along with what the
other asks for. Who hears nothing on a path is the one who knows, so its word counts; the latest
word does.

`TABLE` is the whole of it. An input that it does not list changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple

from meshpeer.config import MeshConfig
from meshpeer.core.timing import STALL, Backoff, Deadlines

__all__ = ["TABLE", "Attach", "Input", "Output", "Ping", "Route", "RouteState", "Row"]


class RouteState(StrEnum):
    """Where data comes from."""

    NONE = "none"
    """Nowhere; the relay is not asked yet, or can't be."""
    DIRECT = "direct"
    """Over the link's connection, through TURN or not."""
    ASKING = "asking"
    """The relay is asked for, and nothing has come over it."""
    RELAY = "relay"


class Input(StrEnum):
    """What can happen to a route."""

    LINK_UP = "link up"
    LINK_DOWN = "link down"
    RELAY_UP = "relay up"
    """The relay forwards to this peer."""
    RELAY_DOWN = "relay down"
    ASKED_DIRECT = "asked on the direct path"
    """The other side wants to receive there, and that we do as well."""
    ASKED_RELAY = "asked over the relay"
    ANSWERED_RELAY = "answered over the relay"
    """It wants to receive there, as we asked."""
    PATIENCE = "patience"
    """There was no direct path for `MeshConfig.relay_after`."""
    AGAIN = "again"
    """The relay was asked for a while ago."""
    SILENCE = "silence"
    """Nothing came over the relay for `MeshConfig.silence_timeout`."""
    FAULT = "fault"
    """What came over the relay can't be understood."""


class Row(NamedTuple):
    """In ``state``, on ``input``: do ``actions``, be in ``next``."""

    state: RouteState
    input: Input
    next: RouteState
    actions: tuple[str, ...]
    reason: str
    """Why; shown to users when the path changes."""


_S = RouteState


# fmt: off
def _table() -> tuple[Row, ...]:
    rows: list[Row] = []

    def row(states: Iterable[RouteState], on: Input, to: RouteState | None,
            actions: tuple[str, ...], reason: str) -> None:
        rows.extend(Row(state, on, to or state, actions, reason) for state in states)

    row((_S.NONE, _S.ASKING, _S.RELAY), Input.LINK_UP, _S.DIRECT, ("attach_direct",),
        "connected")
    row((_S.DIRECT,), Input.LINK_DOWN, _S.NONE, ("be_patient",), "no direct path")

    row((_S.NONE,), Input.PATIENCE, _S.ASKING, ("attach_relay",), "no direct path for {} s")
    row((_S.ASKING,), Input.AGAIN, None, ("attach_relay",), "no answer over the relay")
    row((_S.RELAY,), Input.SILENCE, _S.ASKING, ("attach_relay",),
        "nothing heard over the relay for {} s")

    # The other side has no direct path, or sees that ours is none. We go along.
    row((_S.NONE, _S.DIRECT, _S.RELAY), Input.ASKED_RELAY, _S.RELAY,
        ("answer_relay",), "the other side asks for the relay")
    row((_S.ASKING,), Input.ASKED_RELAY, _S.RELAY, ("answer_relay",), "no direct path for {} s")
    row((_S.ASKING,), Input.ANSWERED_RELAY, _S.RELAY, (), "no direct path for {} s")
    # Its direct path is back before ours was ever gone.
    row((_S.RELAY, _S.ASKING), Input.ASKED_DIRECT, _S.DIRECT, ("answer_direct",),
        "the direct path is back")
    row((_S.DIRECT,), Input.ASKED_DIRECT, None, ("answer_direct",), "connected")

    row((_S.NONE,), Input.RELAY_UP, None, ("retry",), "the relay is there")
    row((_S.ASKING, _S.RELAY), Input.RELAY_DOWN, _S.NONE, ("be_patient",),
        "the relay can't be reached")
    row((_S.ASKING, _S.RELAY), Input.FAULT, _S.NONE, ("wait_more",), "a fault over the relay")
    return tuple(rows)
# fmt: on


TABLE: tuple[Row, ...] = _table()
_INDEX = {(row.state, row.input): row for row in TABLE}
assert len(_INDEX) == len(TABLE), "two rows for the same state and input"


class Attach(NamedTuple):
    """Receive on this path from now on; ``ask`` the other side to do the same."""

    relay: bool
    ask: bool


class Ping(NamedTuple):
    """Ask over the relay whether the other side is there; `Route.heard` when it answers."""

    nonce: int


Output = Attach | Ping


class Route:
    """One pair's. `start` comes first; then every method returns what is to be done."""

    __slots__ = (
        "_again",
        "_asked_at",
        "_config",
        "_deadlines",
        "_faults",
        "_heard_at",
        "_link",
        "_nonce",
        "_out",
        "_overdue",
        "_pinged_at",
        "_relay",
        "reason",
        "rtt",
        "state",
    )

    def __init__(self, config: MeshConfig) -> None:
        self._config = config
        self.state = RouteState.NONE
        self.reason = ""
        """Why it is in this state."""
        self.rtt: float | None = None
        """The latest round trip over the relay, in seconds."""
        self._deadlines: Deadlines[str] = Deadlines()
        self._again = Backoff(config.ping_interval, 4 * config.ping_interval, 0.0)
        self._faults = Backoff(config.retry_first, config.retry_max, 0.0)
        self._relay = False
        self._link = False
        self._overdue = False
        self._heard_at = 0.0
        self._nonce = 0
        self._pinged_at: float | None = None
        # When it was pinged for the first time since something was heard.
        self._asked_at: float | None = None
        self._out: list[Output] = []

    def next_deadline(self) -> float | None:
        """When `tick` is wanted next."""
        return self._deadlines.next()

    def start(self, now: float) -> None:
        """The peer is there."""
        self._do_be_patient(now)

    # --- inputs ---

    def link(self, now: float, *, up: bool) -> list[Output]:
        """The link's connection carries data, or no longer."""
        self._link = up
        return self._feed(Input.LINK_UP if up else Input.LINK_DOWN, now)

    def relay(self, now: float, *, up: bool) -> list[Output]:
        """The relay forwards to this peer, or no longer."""
        if self._config.relay_after is None or up is self._relay:
            return []
        self._relay = up
        return self._feed(Input.RELAY_UP if up else Input.RELAY_DOWN, now)

    def asked(self, now: float, *, relay: bool, ask: bool) -> list[Output]:
        """The other side wants to receive on this path, and what is its latest word."""
        if relay and not self._relay:
            return []
        if not relay:
            # Its answer as well says that it is there, if we went along to the relay meanwhile.
            return self._feed(Input.ASKED_DIRECT, now)
        return self._feed(Input.ASKED_RELAY if ask else Input.ANSWERED_RELAY, now)

    def heard(self, now: float) -> None:
        """Something came over the relay."""
        self._heard_at = now
        self._asked_at = None

    def ponged(self, nonce: int, now: float) -> None:
        """The answer to a `Ping` came."""
        if nonce == self._nonce and self._pinged_at is not None:
            self.rtt = now - self._pinged_at
            self._pinged_at = None

    def fault(self, now: float) -> list[Output]:
        """What came over the relay was refused: it is asked again only after a while."""
        return self._feed(Input.FAULT, now)

    def tick(self, now: float) -> list[Output]:
        """Time has passed."""
        out: list[Output] = []
        for name, at in self._deadlines.due(now):
            if name == "patience":
                self._overdue = True
                if self._relay:
                    out += self._feed(Input.PATIENCE, now)
            elif name == "again":
                out += self._feed(Input.AGAIN, now)
            else:
                out += self._look(at, now)
        return out

    # --- the machine ---

    def _feed(self, on: Input, now: float) -> list[Output]:
        row = _INDEX.get((self.state, on))
        if row is None:
            return []
        self._set_state(row, now)
        self._out = []
        for action in row.actions:
            getattr(self, f"_do_{action}")(now)
        out = self._out
        if self._link and self.state in (RouteState.NONE, RouteState.ASKING):
            # We had gone along with the other side; by ourselves we have a direct path.
            out += self._feed(Input.LINK_UP, now)
        return out

    def _set_state(self, row: Row, now: float) -> None:
        if row.next is self.state:
            return
        self.state = row.next
        config = self._config
        seconds = config.silence_timeout if row.input is Input.SILENCE else config.relay_after
        self.reason = row.reason.format(f"{seconds:g}" if seconds is not None else "")
        self._deadlines.clear_all()
        if row.next is not RouteState.ASKING:
            self._again.reset()
        match row.next:
            case RouteState.DIRECT:
                self._overdue = False
                self._faults.reset()
            case RouteState.RELAY:
                self._heard_at = now
                self._asked_at = self._pinged_at = None
                self._deadlines.set("look", now)
            case _:
                pass

    def _look(self, at: float, now: float) -> list[Output]:
        """Is the relay still a path? It is asked when nothing was heard for a while."""
        interval = self._config.ping_interval
        if now - at > STALL:
            self._asked_at = self._pinged_at = None
        if self._asked_at is not None and self._gone_at(self._asked_at) <= now:
            return self._feed(Input.SILENCE, now)
        ask_at = now if self.rtt is None else self._heard_at + interval
        if self._pinged_at is not None:
            ask_at = max(ask_at, self._pinged_at + interval)
        out: list[Output] = []
        if ask_at <= now:
            self._nonce += 1
            self._pinged_at = now
            self._asked_at = now if self._asked_at is None else self._asked_at
            out.append(Ping(self._nonce))
            ask_at = now + interval
        if self._asked_at is not None:
            ask_at = min(ask_at, self._gone_at(self._asked_at))
        self._deadlines.set("look", ask_at)
        return out

    def _gone_at(self, asked_at: float) -> float:
        # Who asks late, as a process that is slowed down, waits as long for the answer as others.
        interval, silence = self._config.ping_interval, self._config.silence_timeout
        return max(self._heard_at + silence, asked_at + silence - interval)

    def _do_be_patient(self, now: float) -> None:
        if self._config.relay_after is not None:
            self._deadlines.set("patience", now + self._config.relay_after)

    def _do_retry(self, now: float) -> None:
        if self._overdue:
            self._deadlines.set("patience", now)

    def _do_wait_more(self, now: float) -> None:
        self._deadlines.set("patience", now + self._faults.next(0.0))

    def _do_attach_direct(self, now: float) -> None:  # noqa: ARG002
        self._out.append(Attach(relay=False, ask=True))

    def _do_answer_direct(self, now: float) -> None:  # noqa: ARG002
        self._out.append(Attach(relay=False, ask=False))

    def _do_attach_relay(self, now: float) -> None:
        self._out.append(Attach(relay=True, ask=True))
        self._deadlines.set("again", now + self._again.next(0.0))

    def _do_answer_relay(self, now: float) -> None:  # noqa: ARG002
        self._out.append(Attach(relay=True, ask=False))
