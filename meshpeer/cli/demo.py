"""`meshpeer demo`: a relay and some bots, each a process of its own, and how they get on."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from itertools import combinations, permutations
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from meshpeer.cli.bot import Row
from meshpeer.cli.common import (
    CommandError,
    LogJson,
    LogLevel,
    LogLevelOption,
    configure_logging,
    run,
    until_stopped,
)
from meshpeer.config import RelayConfig
from meshpeer.core.events import Path, PeerState
from meshpeer.relay import Relay
from meshpeer.streams import Bell

__all__ = ["demo"]

_ROOM = "demo"
_TO_LOAD = 60.0
"""Seconds that a bot's process may take to be ready."""
_TO_ANSWER = 15.0
"""Seconds that a bot may take to finish, and to compare."""
_TO_LEAVE = 5.0
"""Seconds that a bot has to leave before it is killed."""


def demo(
    seconds: Annotated[float, typer.Option(min=1, help="How long the bots talk.")] = 10,
    bots: Annotated[int, typer.Option(min=2, max=20, help="How many there are.")] = 3,
    stay: Annotated[
        bool,
        typer.Option(help="Then keep the relay and the bots running, for people with a browser."),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write the result as one JSON object, and nothing else.")
    ] = False,
    log_level: LogLevelOption = LogLevel.WARNING,
    log_json: LogJson = False,
) -> None:
    """See it work: a relay on a free port, and bots that find each other and talk.

    Each bot is a process of its own. The status is 0 only if every pair was connected directly and
    every message arrived.

    With --stay it does not end there, if that went well: it names the page where you can join the
    bots in a browser, and the relay's dashboard. They stay until Ctrl-C or SIGTERM.
    """
    configure_logging(log_level, log_json)
    names = [f"bot-{n}" for n in range(1, bots + 1)]
    log = ["--log-level", log_level.value, *(["--log-json"] if log_json else [])]

    async def main() -> int:
        results = _Results(names)
        screen = _Screen(results, silent=as_json)
        told = False

        def tell(places: dict[str, str]) -> None:
            """Say how it went, and where it goes on."""
            nonlocal told
            told = True
            if as_json:
                print(json.dumps({**results.as_json(), **places}), flush=True)
            else:
                screen.end(places)

        with screen.live():
            await _Stage(results, screen).play(seconds, log, tell if stay else None)
        if not told:
            tell({})
        elif results.trouble:
            raise CommandError(results.trouble, reason="bot_failed")
        return 1 if results.faults() else 0

    run(main)


class _Results:
    """What is known of the bots."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.rows = {(who, peer): Row(peer=peer) for who, peer in permutations(names, 2)}
        self.trouble: str | None = "it was stopped before the end"
        """What kept the demo from coming to its end."""

    def missing(self, who: str, peer: str) -> int:
        """How many of the messages from ``who`` to ``peer`` have not arrived."""
        return self.rows[who, peer].messages_sent - self.rows[peer, who].messages_received

    def faults(self) -> list[str]:
        """What was not as it should be, in words; empty when all was well."""
        if self.trouble:  # the rest is what it led to
            return [self.trouble]
        found = []
        for one, other in combinations(self.names, 2):
            for who, peer in ((one, other), (other, one)):
                row = self.rows[who, peer]
                if row.state != PeerState.CONNECTED:
                    found.append(f"{who} was not connected to {peer} ({row.state})")
                elif row.path != Path.DIRECT:
                    found.append(f"{who} was not connected to {peer} directly ({row.path})")
                if missing := self.missing(who, peer):
                    found.append(f"{missing} messages from {who} to {peer} did not arrive")
                elif not row.messages_sent:
                    found.append(f"{who} sent nothing to {peer}")
                if not row.in_order:
                    found.append(f"{who} got messages from {peer} out of order")
        return found

    def verdict(self) -> str:
        """One sentence."""
        if faults := self.faults():
            shown = "; ".join(faults[:4])
            more = f"; and {len(faults) - 4} faults more" if len(faults) > 4 else ""
            return f"This did not go well: {shown}{more}."
        pairs = len(self.rows) // 2
        sent = sum(row.messages_sent for row in self.rows.values())
        every = "The one pair was" if pairs == 1 else f"All {pairs} pairs were"
        return f"{every} connected directly, and all {sent} messages arrived, in order."

    def as_json(self) -> dict[str, Any]:
        """The table as an object."""
        return {
            "ok": not self.faults(),
            "verdict": self.verdict(),
            "connections": [{"who": who, **asdict(row)} for (who, _), row in self.rows.items()],
        }


class _BotFailed(Exception):
    """A bot ended, or did not answer; the text says which."""


@dataclass(slots=True, eq=False)
class _Bot:
    process: Process
    said: set[str] = field(default_factory=set)
    ended: str | None = None
    """How the process ended, when nobody had told it to."""

    def tell(self, **command: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command).encode() + b"\n")


class _Stage:
    """The processes, and what they are told."""

    def __init__(self, results: _Results, screen: _Screen) -> None:
        self._results = results
        self._screen = screen
        self._bots: dict[str, _Bot] = {}
        self._news = Bell()

    async def play(
        self, seconds: float, log: list[str], stay: Callable[[dict[str, str]], None] | None
    ) -> None:
        """From the first process to the end of the last; a signal brings that forward.

        With ``stay`` only a signal ends what went well. It is called before, with the places to
        visit.
        """
        async with (
            until_stopped(),
            Relay(RelayConfig(port=0)) as relay,
            asyncio.TaskGroup() as group,
        ):
            lives = [
                group.create_task(self._live(name, [*log, relay.url, _ROOM, name]))
                for name in self._results.names
            ]
            try:
                await self._direct(seconds, relay.url)
                self._results.trouble = None
                if stay is not None and not self._results.faults():
                    self._tell(do="stay")
                    stay(
                        {
                            "chat": relay.chat_url(_ROOM),
                            "dashboard": relay.admin_url,
                            "admin": f"{relay.admin_user}, password {relay.admin_password}",
                        }
                    )
                    await self._keep()
            except _BotFailed as exc:
                self._results.trouble = str(exc)
            finally:
                for life in lives:
                    life.cancel()

    async def _direct(self, seconds: float, url: str) -> None:
        self._screen.status(
            f"{len(self._results.names)} bots start as processes of their own, the relay is {url}"
        )
        await self._all_said("ready", _TO_LOAD)
        self._screen.status("They talk", seconds)
        self._tell(do="start", peers=self._results.names)
        await self._nobody_ends(seconds)
        self._screen.status("They finish, and compare what was sent with what arrived")
        self._tell(do="finish")
        await self._all_said("finished", _TO_ANSWER)
        for name, bot in self._bots.items():
            rows = self._results.rows
            sent = {who: rows[who, name].messages_sent for who in self._bots if who != name}
            bot.tell(do="compare", sent=sent)
        await self._all_said("result", _TO_ANSWER)

    def _tell(self, **command: Any) -> None:
        for bot in self._bots.values():
            bot.tell(**command)

    async def _all_said(self, word: str, seconds: float) -> None:
        """Wait until every bot has said this. Raises `_BotFailed`."""
        try:
            async with asyncio.timeout(seconds):
                while self._silent(word):
                    self._check()
                    await self._news.wait()
        except TimeoutError:
            names = " and ".join(self._silent(word))
            raise _BotFailed(f"{names} did not get {word} within {seconds:g} s") from None

    def _silent(self, word: str) -> list[str]:
        return [
            name
            for name in self._results.names
            if name not in self._bots or word not in self._bots[name].said
        ]

    async def _nobody_ends(self, seconds: float) -> None:
        """Wait so long. Raises `_BotFailed` as soon as a bot ends."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while True:
                    self._check()
                    await self._news.wait()

    async def _keep(self) -> None:
        """Wait until all bots have ended, and raise `_BotFailed` then; name each that does."""
        named: set[str] = set()
        while True:
            for name, bot in self._bots.items():
                if bot.ended and name not in named:
                    named.add(name)
                    self._screen.status(f"{name} {bot.ended}")
            if len(named) == len(self._bots):
                raise _BotFailed("all bots have ended")
            await self._news.wait()

    def _check(self) -> None:
        ended = [f"{name} {bot.ended}" for name, bot in self._bots.items() if bot.ended]
        if ended:
            raise _BotFailed(" and ".join(ended))

    async def _live(self, name: str, arguments: list[str]) -> None:
        """The life of one bot. However this ends, the process has ended."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "meshpeer.cli", "demo-bot", *arguments),
            stdin=PIPE,
            stdout=PIPE,
            # A terminal's Ctrl-C is for us. The bots hear of it, and of our death, by the end of
            # their input.
            start_new_session=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        bot = self._bots[name] = _Bot(process)
        try:
            async for line in process.stdout:
                self._heard(name, bot, json.loads(line))
            bot.ended = _how(process, await process.wait())
            self._news.ring()
        finally:
            process.stdin.close()
            try:
                async with asyncio.timeout(_TO_LEAVE):
                    status = await process.wait()
            except TimeoutError:
                process.kill()
                status = await process.wait()
            if status and bot.ended is None and self._results.trouble is None:
                self._results.trouble = f"{name} {_how(process, status)} when it should leave"

    def _heard(self, name: str, bot: _Bot, said: dict[str, Any]) -> None:
        bot.said.add(said["event"])
        for values in said["rows"]:
            row = Row(**values)
            before, self._results.rows[name, row.peer] = self._results.rows[name, row.peer], row
            self._screen.row(name, before, row)
        self._screen.refresh()
        self._news.ring()


def _how(process: Process, status: int) -> str:
    if status < 0:
        return f"(process {process.pid}) was ended by {signal.Signals(-status).name}"
    return f"(process {process.pid}) ended with status {status}"


class _Screen:
    """A table that lives on a terminal; lines elsewhere; nothing when it is to be silent."""

    def __init__(self, results: _Results, *, silent: bool) -> None:
        self._results = results
        self._console = Console(highlight=False, quiet=silent)
        self._live: Live | None = None
        self._status = ""
        self._until: float | None = None

    def live(self) -> AbstractContextManager[object]:
        """While this is entered, a terminal shows the table as it changes."""
        if not self._console.is_terminal or self._console.quiet:
            return nullcontext()
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        return self._live

    def status(self, text: str, seconds: float | None = None) -> None:
        """What goes on now, and how long it takes."""
        now = asyncio.get_running_loop().time()
        self._status, self._until = text, None if seconds is None else now + seconds
        if self._live is None:
            line = text if seconds is None else f"{text}, for {seconds:g} s"
            self._console.print(line, soft_wrap=True)
        self.refresh()

    def row(self, who: str, before: Row, row: Row) -> None:
        """One bot said how it stands with one peer."""
        if self._live is None and (before.state, before.path) != (row.state, row.path):
            facts = [row.state, row.path or ""]
            if row.state == PeerState.CONNECTED:
                facts.append(_time(row.time_to_connect))
            self._console.print(f"  {who} to {row.peer}: {' '.join(filter(None, facts))}")

    def refresh(self) -> None:
        """Draw the live table."""
        if self._live is not None:
            status = self._status
            if self._until is not None:
                left = max(0, self._until - asyncio.get_running_loop().time())
                status += f", {left:.0f} s more"
            self._live.update(Group(self._table(), Text(f"\n {status} …", "dim")), refresh=True)

    def end(self, places: dict[str, str]) -> None:
        """Print the table as it is at the end, the verdict, and where it goes on."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        ok = not self._results.faults()
        self._console.print(self._table())
        self._console.print(
            Text(f"\n {self._results.verdict()}", "bold green" if ok else "bold red"),
            soft_wrap=True,
        )
        if places:
            self._console.print("\n The bots stay. Join them in a browser:\n")
            for what, where in places.items():
                self._console.print(Text(f" {what:<10} {where}"), soft_wrap=True)
            self._console.print("\n Ctrl-C stops it.")

    def _table(self) -> Table:
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, header_style="bold")
        # Widths that hold what comes, so that the table does not jump, in 80 columns.
        for title, width in (("who", 5), ("peer", 5), ("state", 10), ("path", 6)):
            table.add_column(title, min_width=width, no_wrap=True)
        for title, width in (("connect", 7), ("round trip", 10), ("sent", 5), ("received", 8)):
            table.add_column(title, min_width=width, no_wrap=True, justify="right")
        names = self._results.names
        styles = {name: f"bold {_COLOURS[n % len(_COLOURS)]}" for n, name in enumerate(names)}
        for (who, peer), row in self._results.rows.items():
            first = peer == next(name for name in names if name != who)
            last = peer == next(name for name in reversed(names) if name != who)
            table.add_row(
                Text(who if first else "", styles[who]),
                Text(peer, styles[peer]),
                Text(row.state, _STATE_STYLES.get(row.state, "")),
                Text(row.path or "", "green" if row.path == Path.DIRECT else "yellow"),
                _time(row.time_to_connect),
                _time(row.round_trip),
                str(row.messages_sent),
                str(row.messages_received),
                end_section=last,
            )
        return table


_COLOURS = ("cyan", "magenta", "yellow", "blue")
_STATE_STYLES: dict[str, str] = {
    PeerState.NEW: "dim",
    PeerState.CONNECTING: "yellow",
    PeerState.CONNECTED: "green",
    PeerState.DISCONNECTED: "red",
    PeerState.FAILED: "red",
    PeerState.CLOSED: "red",
}


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds * 1000:.1f} ms" if seconds < 0.01 else f"{seconds * 1000:.0f} ms"
