"""How `meshpeer doctor` shows what it found: for people, or as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from meshpeer.cli.common import printable
from meshpeer.cli.diagnosis import Diagnosis, Facts, Works
from meshpeer.core.events import IceServerOutcome

__all__ = ["as_object", "busy", "show"]

_NARROW = 72
"""Columns; with fewer there is no table, and each row takes as many lines as it needs."""
_STYLES = {
    Works.YES: "bold green",
    Works.MOSTLY: "bold yellow",
    Works.NO: "bold red",
    Works.UNKNOWN: "bold",
}


def as_object(facts: Facts, diagnosis: Diagnosis) -> str:
    """One JSON object: the diagnosis, then the facts. Times are in seconds."""
    return json.dumps({**asdict(diagnosis), **asdict(facts.network), **_rest(facts)})


def _rest(facts: Facts) -> dict[str, object]:
    return {
        "loopback": asdict(facts.loopback),
        "relay": None if facts.relay is None else asdict(facts.relay),
    }


def busy(*, silent: bool) -> AbstractContextManager[object]:
    """While this is entered, a terminal shows that something goes on."""
    console = Console(stderr=True)
    if silent or not console.is_terminal:
        return nullcontext()
    return console.status("Asking, connecting …")


def show(facts: Facts, diagnosis: Diagnosis) -> None:
    """Print what was found, and what follows from it."""
    console = Console(highlight=False)
    network = facts.network
    _section(
        console,
        "Interfaces",
        [
            (_text(each.name), _text("  ".join(each.addresses)), _text(_use(each.up, each.used)))
            for each in network.interfaces
            if each.addresses
        ],
    )
    _section(
        console,
        "Candidates",
        [
            (_text(each.type), _text(each.address), _text(_origin(each.type, each.via)))
            for each in network.candidates
        ],
    )
    _section(
        console,
        "Servers",
        [
            (
                Text(each.outcome, _outcome_style(each.outcome)),
                _text(each.url),
                _text(_time(each.took)),
                _text(each.detail or each.address or "", "dim"),
            )
            for each in network.servers
        ],
    )
    _section(
        console,
        "NAT",
        [
            (_text(each.address), _text(f"mapping: {each.mapping}"), _text(", ".join(each.seen_as)))
            for each in network.nats
        ],
    )
    tried = [("two peers here", _times(facts.loopback.connected, facts.loopback.round_trip))]
    if facts.relay is not None:
        tried.append((facts.relay.url, _times(facts.relay.joined, facts.relay.round_trip)))
    _section(console, "Tried", [(_text(what), _text(came)) for what, came in tried])
    _section(
        console,
        "What will work",
        [
            (_text(each.case), Text(each.works, _STYLES[each.works]), _text(each.text))
            for each in diagnosis.verdicts
        ],
    )
    _section(console, "What to change", [(_text(each),) for each in diagnosis.changes])
    console.print(_text(diagnosis.summary, "bold green" if diagnosis.ok else "bold red"))


def _section(console: Console, title: str, rows: list[tuple[Text, ...]]) -> None:
    if not rows:
        return
    console.print(Text(title, "bold"))
    if console.width < _NARROW:
        for row in rows:
            for number, line in enumerate(_flow(row, console.width - 4)):
                console.print(Padding(line, (0, 0, 0, 4 if number else 2)))
    else:
        table = Table.grid(padding=(0, 2, 0, 0))
        for _ in rows[0]:
            table.add_column(overflow="fold")
        for row in rows:
            table.add_row(*row)
        console.print(Padding(table, (0, 0, 0, 2)))
    console.print()


def _flow(cells: tuple[Text, ...], width: int) -> Iterator[Text]:
    """The cells on as few lines as hold them; what is longer than a line is wrapped later."""
    line = Text()
    for cell in filter(None, cells):
        joined = Text.assemble(line, "  ", cell) if line else cell
        if line and joined.cell_len > width:
            yield line
            line = cell
        else:
            line = joined
    yield line


def _text(text: str, style: str = "") -> Text:
    # Servers, and who names interfaces, may say anything.
    return Text(printable(text), style)


def _use(up: bool, used: bool) -> str:
    if not up:
        return "down"
    return "used" if used else "not used"


def _origin(kind: str, via: str | None) -> str:
    match kind:
        case "srflx":
            return f"{via} as seen from outside"
        case "relay":
            return f"at {via}"
        case _:
            return ""


def _outcome_style(outcome: IceServerOutcome) -> str:
    return "bold green" if outcome is IceServerOutcome.FOUND else "bold red"


def _times(until: float | None, round_trip: float | None) -> str:
    if until is None or round_trip is None:
        return "failed"
    return f"connected in {_time(until)}, round trip {_time(round_trip)}"


def _time(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 0.01 else f"{seconds * 1000:.0f} ms"
