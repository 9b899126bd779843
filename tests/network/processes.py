"""The programs that run on the hosts of a lab: the relay, coturn, and peers that say what happens.

`Programs` owns them all: it reads what they write as it comes, and ends them with its block.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from tests.network.lab import Lab, Node

__all__ = [
    "USER",
    "Coturn",
    "Ended",
    "Got",
    "Happened",
    "PeerProgram",
    "Program",
    "Programs",
    "programs",
]

Happened = dict[str, Any]
"""What a peer said: ``at`` (seconds on the clock that all processes share), ``event``, and more."""

USER = {"username": "lab", "credential": "of no value"}
"""For the TURN servers, as an `IceServer` takes it."""


class Got(NamedTuple):
    """A message of the stream."""

    number: int
    sent: float
    """When it was given to `send`, on the clock that all processes share."""
    at: float
    """When it came."""
    path: str


class Ended(AssertionError):
    """A program ended that should not have; the text has what it said."""


class Program:
    """One process on a host. Its lines are kept in ``lines`` as they come."""

    def __init__(self, process: asyncio.subprocess.Process, name: str) -> None:
        self.process = process
        self.name = name
        self.lines: list[str] = []
        self._ended = False
        self._changed = asyncio.Condition()
        self._errors = b""

    async def read(self) -> None:
        """Read until it has ended; what waits is told of every line."""
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        errors = asyncio.ensure_future(self.process.stderr.read())
        try:
            async for line in self.process.stdout:
                async with self._changed:
                    self.heard(line.decode(errors="replace").rstrip("\n"))
                    self._changed.notify_all()
        finally:
            self._errors = await errors
            await self.process.wait()
            assert self.process.stdin is not None
            self.process.stdin.close()
            with suppress(BrokenPipeError, ConnectionResetError):
                await self.process.stdin.wait_closed()
            async with self._changed:
                self._ended = True
                self._changed.notify_all()

    def heard(self, line: str) -> None:
        """Take a line."""
        self.lines.append(line)

    async def until(self, true: Callable[[], bool], what: str, timeout: float = 30) -> None:
        """Wait until something it says makes this true.

        Raises `Ended` when the program has ended without, TimeoutError after ``timeout`` seconds.
        """
        try:
            async with asyncio.timeout(timeout), self._changed:
                while not true():
                    if self._ended:
                        raise Ended(f"{self.name} ended, waiting for {what}: {self._said()}")
                    await self._changed.wait()
        except TimeoutError:
            raise TimeoutError(f"{self.name}: no {what} within {timeout:g} s") from None

    def _said(self) -> str:
        return "\n".join([*self.lines[-5:], self._errors.decode(errors="replace")[-2000:]])

    def say(self, line: str) -> None:
        """Write a line to its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())

    def kill(self) -> None:
        """SIGKILL."""
        with suppress(ProcessLookupError):
            self.process.kill()


class PeerProgram(Program):
    """A `tests.network.peer`. What it said is in ``events``, and the stream it got in ``got``."""

    def __init__(self, process: asyncio.subprocess.Process, name: str) -> None:
        super().__init__(process, name)
        self.events: list[Happened] = []
        self.got: list[Got] = []

    def heard(self, line: str) -> None:
        """Take a line."""
        said = json.loads(line)
        if said["event"] == "got":
            self.got.append(Got(said["number"], said["sent"], said["at"], said["path"]))
        else:
            self.events.append(said)
            self.lines.append(line)

    def find(self, event: str, *, after: float = 0, **values: Any) -> Happened | None:
        """The first of these events that happened later than ``after``; None if none did yet."""
        for said in self.events:
            if said["event"] == event and said["at"] > after and values.items() <= said.items():
                return said
        return None

    def latest(self, *events: str) -> Happened | None:
        """The last event of these kinds."""
        return next((said for said in reversed(self.events) if said["event"] in events), None)

    async def happens(
        self, event: str, *, after: float = 0, timeout: float = 30, **values: Any
    ) -> Happened:
        """The first of these events later than ``after``; waits for it. Raises like `until`."""
        what = f"{event} {values or ''}".rstrip()
        await self.until(lambda: self.find(event, after=after, **values) is not None, what, timeout)
        found = self.find(event, after=after, **values)
        assert found is not None
        return found


class Programs:
    """Starts programs on the hosts of a lab; `programs` ends them."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._running: dict[Program, asyncio.Task[None]] = {}

    async def run(
        self, node: Node, *arguments: str, kind: type[Program] = Program, name: str = ""
    ) -> Program:
        """Start a program on a host; it is named like the host if not otherwise."""
        # No host of a lab has a proxy.
        environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
        process = await asyncio.create_subprocess_exec(
            *(*node.command, *arguments),
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            env=environment,
            start_new_session=True,
        )
        program = kind(process, name or node.name)
        self._running[program] = asyncio.create_task(program.read())
        return program

    async def end(self) -> None:
        """SIGKILL to all of them, and wait until they are gone."""
        for program in self._running:
            program.kill()
        await asyncio.gather(*self._running.values())

    async def relay(self, node: Node, *, seat_timeout: float = 30) -> Program:
        """A relay. Its port, 443, is the one that every firewall lets through."""
        program = await self.run(
            *(node, sys.executable, "-m", "meshpeer.cli", "relay"),
            *("--host", node.address, "--port", "443", "--open"),
            *("--seat-timeout", str(seat_timeout)),
        )
        await program.until(lambda: len(program.lines) > 2, "relay")
        return program

    async def peer(
        self,
        node: Node,
        peer_id: str,
        relay: str,
        servers: list[dict[str, Any]],
        *,
        relay_path: bool = True,
    ) -> PeerProgram:
        """A peer that waits to be told to ``join``; without ``relay_path`` no data of it goes over
        the relay."""
        program = await self.run(
            *(node, sys.executable, "-m", "tests.network.peer"),
            *("--relay", relay, "--id", peer_id, "--servers", json.dumps(servers)),
            *(() if relay_path else ("--no-relay-path",)),
            kind=PeerProgram,
            name=peer_id,
        )
        assert isinstance(program, PeerProgram)
        return program

    async def coturn(self, node: Node) -> Coturn:
        """A STUN and TURN server."""
        server = Coturn(self, node, self._lab)
        await server.start()
        return server


class Coturn:
    """coturn on a host: UDP and TCP on port 3478, TLS on port 443 with a certificate of its own."""

    def __init__(self, programs: Programs, node: Node, lab: Lab) -> None:
        self._programs = programs
        self._program: Program | None = None
        self._files = lab.folder / node.name
        self.node = node
        _make_certificate(self._files, node.address)

    async def start(self) -> None:
        """Start it, the first time or again."""
        address, files = self.node.address, self._files
        user = f"--user={USER['username']}:{USER['credential']}"
        program = await self._programs.run(
            *(self.node, "turnserver", "-n", "--no-cli", "--lt-cred-mech", user, "--realm=lab"),
            *(f"--listening-ip={address}", f"--relay-ip={address}"),
            *("--listening-port=3478", "--tls-listening-port=443"),
            *(f"--cert={files / 'certificate.pem'}", f"--pkey={files / 'key.pem'}"),
            *(f"--userdb={files / 'users'}", f"--pidfile={files / 'pid'}"),
            *("--log-file=stdout", "--simple-log"),
        )
        # What it says when everything is listening.
        await program.until(
            lambda: any("Total General servers" in line for line in program.lines), "coturn"
        )
        self._program = program

    async def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        assert self._program is not None
        self._program.kill()
        await self._program.process.wait()

    def stun(self) -> dict[str, Any]:
        """As a STUN server, for a configuration."""
        return {"urls": f"stun:{self.node.address}"}

    def turn(self, transport: str = "udp") -> dict[str, Any]:
        """As a TURN server over ``udp``, ``tcp`` or ``tls``, for a configuration."""
        address = self.node.address
        if transport == "tls":
            certificate = str(self._files / "certificate.pem")
            return {"urls": f"turns:{address}:443", "ca_file": certificate, **USER}
        return {"urls": f"turn:{address}?transport={transport}", **USER}


def _make_certificate(folder: Path, address: str) -> None:
    folder.mkdir()
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=lab"),
            *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-keyout", folder / "key.pem", "-out", folder / "certificate.pem"),
            *("-addext", f"subjectAltName=IP:{address}"),
        ],
        check=True,
        capture_output=True,
    )


@asynccontextmanager
async def programs(lab: Lab) -> AsyncIterator[Programs]:
    """Programs on the hosts of this lab, which are gone at the end."""
    started = Programs(lab)
    try:
        yield started
    finally:
        await started.end()
