"""The commands as real processes, whose lines are waited for, not polled."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Self

__all__ = ["Command", "Event", "Start", "starter"]

Event = dict[str, Any]


class Command:
    """One process. What it writes to standard output is kept in ``lines``."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.lines: list[str] = []

    @classmethod
    async def start(
        cls,
        *arguments: str,
        stdin: Any = PIPE,
        redirect: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> Self:
        """Run ``meshpeer`` with these arguments, a redirection in the shell's words, and these
        variables besides ours."""
        shell = ("sh", "-c", f'exec "$@" {redirect}', "sh") if redirect else ()
        process = await asyncio.create_subprocess_exec(
            *(*shell, sys.executable, "-m", "meshpeer.cli", *arguments),
            stdin=stdin,
            stdout=PIPE,
            stderr=PIPE,
            env={**os.environ, **(environment or {})},
        )
        return cls(process)

    async def line(self) -> str:
        """The next line of standard output; fails with what it said instead when it ended."""
        assert self.process.stdout is not None
        data = await self.process.stdout.readline()
        if not data:
            code, error = await self.end()
            raise AssertionError(f"it ended with {code}, saying {self.lines} and {error}")
        self.lines.append(data.decode().rstrip("\n"))
        return self.lines[-1]

    @property
    def events(self) -> list[Event]:
        """What it wrote so far, as the objects that it is."""
        return [json.loads(line) for line in self.lines]

    async def until(self, **values: Any) -> Event:
        """Read on to the next object that has these values; ``from_`` stands for ``from``."""
        wanted = {key.rstrip("_"): value for key, value in values.items()}
        while True:
            event: Event = json.loads(await self.line())
            if wanted.items() <= event.items():
                return event

    def say(self, *lines: str) -> None:
        """Write lines to its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write("".join(f"{line}\n" for line in lines).encode())

    async def end(self) -> tuple[int, str]:
        """Wait for its end: its status, and what it wrote to standard error."""
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        rest, error = await asyncio.gather(self.process.stdout.read(), self.process.stderr.read())
        self.lines += rest.decode().splitlines()
        status = await self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()
            with suppress(BrokenPipeError, ConnectionResetError):
                await self.process.stdin.wait_closed()
        return status, error.decode()

    async def kill(self) -> None:
        """SIGKILL, and wait until it is dead."""
        self.process.kill()
        await self.end()


class Start:
    """Starts processes; `starter` ends what is left of them."""

    def __init__(self) -> None:
        self.commands: list[Command] = []

    async def __call__(
        self,
        *arguments: str,
        stdin: Any = PIPE,
        redirect: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> Command:
        command = await Command.start(
            *arguments, stdin=stdin, redirect=redirect, environment=environment
        )
        self.commands.append(command)
        return command

    async def relay(
        self, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> tuple[Command, str]:
        """A relay, by default on a free port, and the URL that it printed."""
        command = await self(
            *("relay", *(arguments or ("--port", "0"))), stdin=DEVNULL, environment=environment
        )
        return command, (await command.line()).split()[1]

    async def chat(
        self, url: str, *arguments: str, stdin: Any = PIPE, redirect: str = ""
    ) -> Command:
        """A chat in the room ``lobby`` that writes JSON."""
        return await self(
            *("chat", "lobby", "--relay", url, "--json", *arguments), stdin=stdin, redirect=redirect
        )


@asynccontextmanager
async def starter() -> AsyncIterator[Start]:
    """Processes that are gone at the end."""
    start = Start()
    try:
        yield start
    finally:
        for command in start.commands:
            with suppress(ProcessLookupError):
                command.process.kill()
            await command.end()
