"""A relay under load: what is measured, with how much of it, and the goals."""

from __future__ import annotations

import functools
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from tests.bench.harness import BenchError, Figure, Goal, Measurement, Process, Program, Scenario

__all__ = ["SCENARIOS"]

_CLIENTS_LOOP: Final = "uvloop"
"""The loop of the clients, whatever the relay's: what loads is not what is measured."""
_WITHOUT_LIMITS: Final = {
    "max_connections_per_address": 20_000,
    "join_rate": 1e6,
    "join_burst": 1_000_000,
    "message_rate": 1e7,
    "message_burst": 10_000_000,
    "byte_rate": 1 << 40,
    "byte_burst": 1 << 32,
}
"""Of a relay whose clients all have one address, and send more than people do."""
_WARM_UP: Final = 100
_PEERJS: Final = "peer@1.0.2"
_PEERJS_AT: Final = Path("build/peerjs")


@dataclass(frozen=True, slots=True)
class _Idle:
    members: int = 10_000
    settle: float = 15.0
    """Seconds after which every socket has had its first ping."""
    seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class _Joins:
    rate: int = 1_000
    seconds: float = 10.0
    warm_up: float = 1.0

    @property
    def sockets(self) -> int:
        return int(self.rate * (self.seconds + self.warm_up))


@dataclass(frozen=True, slots=True)
class _Signals:
    pairs: int = 50
    window: int = 8
    seconds: float = 5.0
    few: int = 10
    """Rooms."""
    many: int = 1_000
    steady: int = 5_000
    """Signals a second, of which the cost in few and in many rooms is compared."""


@dataclass(frozen=True, slots=True)
class _Return:
    few: int = 250
    many: int = 500
    times: int = 20


@dataclass(frozen=True, slots=True)
class _Flood:
    chatting: int = 50
    rate: float = 10.0
    """Messages a second of each."""
    seconds: float = 6.0


class _Server(Protocol):
    """A server that clients load."""

    url: str
    service: str

    def used(self, *, memory: bool = False) -> dict[str, float]:
        """Seconds of CPU time, and bytes of memory."""
        ...


class _Python:
    """A relay, or a bare server of websockets."""

    def __init__(self, process: Process, service: str) -> None:
        self._process = process
        self.service = service
        self.url: str = process.receive()

    def used(self, *, memory: bool = False) -> dict[str, float]:
        found: dict[str, float] = self._process.ask("figures" if memory else "cpu")
        return found


class _PeerJS:
    """The server of PeerJS."""

    service = "peerjs"

    def __init__(self, program: Program, port: int) -> None:
        self._program = program
        self.url = f"ws://127.0.0.1:{port}"

    def used(self, *, memory: bool = False) -> dict[str, float]:
        return self._program.used()


@contextmanager
def _relay(loop: str, **settings: Any) -> Iterator[_Server]:
    with Process("tests.bench.relay:run_relay", loop, **settings) as process:
        yield _Python(process, "meshpeer")


@contextmanager
def _bare(loop: str, **settings: Any) -> Iterator[_Server]:
    with Process("tests.bench.relay:run_bare", loop, **settings) as process:
        yield _Python(process, "bare")


@functools.cache
def _peerjs_program() -> str | None:
    """The server of PeerJS, from npm; None where there is none to be had."""
    program = _PEERJS_AT / "node_modules/.bin/peerjs"
    if not program.exists() and (npm := shutil.which("npm")):
        _PEERJS_AT.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [npm, "install", "--silent", "--prefix", str(_PEERJS_AT), _PEERJS],
            check=False,
            stdout=subprocess.DEVNULL,
        )
    return str(program) if program.exists() and shutil.which("node") else None


@contextmanager
def _peerjs(members: int) -> Iterator[_Server | None]:
    """None where it is not."""
    program = _peerjs_program()
    if program is None:
        yield None
        return
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    with Program(
        program, "--host", "127.0.0.1", "--port", str(port), "--concurrent_limit", str(members + 1)
    ) as running:
        running.wait_for("Started PeerServer")
        yield _PeerJS(running, port)


_NO_PEERJS: Final = "PeerJS server: not here, as there is no npm"


@contextmanager
def _clients(server: _Server, sockets: int) -> Iterator[Any]:
    """Call it with the name of a method of `tests.bench.relay_load`, and its arguments."""
    with Process(
        "tests.bench.relay_load:load",
        _CLIENTS_LOOP,
        url=server.url,
        service=server.service,
        sockets=sockets,
    ) as process:
        yield lambda name, **settings: process.ask([name, settings])


# --- idle ----------------------------------------------------------------------------------------


def _idle_of(server: _Server, size: _Idle) -> tuple[float, float]:
    """Kilobytes a member, and per cent of a core of all."""
    with _clients(server, size.members) as tell:
        tell("fill", room="warm-up", count=min(_WARM_UP, size.members))
        tell("empty")
        before = server.used(memory=True)["rss"]
        tell("fill", room="room", count=size.members)
        tell("stay", seconds=size.settle)
        began, cpu = time.perf_counter(), server.used()["cpu"]
        tell("stay", seconds=size.seconds)
        seconds, cpu = time.perf_counter() - began, server.used()["cpu"] - cpu
        memory = server.used(memory=True)["rss"] - before
    return memory / size.members / 1e3, 100 * cpu / seconds


def _idle(loop: str, quick: bool) -> Sequence[Figure]:
    size = _Idle(members=500, settle=1, seconds=5) if quick else _Idle()
    room = {"sockets": size.members, **_WITHOUT_LIMITS}
    with _relay(loop, **room) as relay:
        memory, cpu = _idle_of(relay, size)
    with _bare(loop, **room) as bare:
        bare_memory, bare_cpu = _idle_of(bare, size)
    with _peerjs(size.members) as peerjs:
        their_memory, their_cpu = (None, None) if peerjs is None else _idle_of(peerjs, size)
    name = "PeerJS server" if peerjs else _NO_PEERJS
    few, little = Goal(25, of="value"), Goal(5, of="value")
    return [
        Figure("memory each", memory, "KB", few, "bare websockets server", bare_memory),
        Figure("memory each", memory, "KB", few, name, their_memory),
        Figure("CPU of all", cpu, "% of a core", little, "bare websockets server", bare_cpu),
        Figure("CPU of all", cpu, "% of a core", little, name, their_cpu),
    ]


# --- joins ---------------------------------------------------------------------------------------


def _joins_of(server: _Server, size: _Joins) -> dict[str, float]:
    with _clients(server, size.sockets) as tell:
        tell("join", room="warm-up", rate=size.rate / 2, seconds=size.warm_up)
        began, cpu = time.perf_counter(), server.used()["cpu"]
        said: dict[str, float] = tell("join", rate=size.rate, seconds=size.seconds)
        seconds, cpu = time.perf_counter() - began, server.used()["cpu"] - cpu
    return {**said, "cpu": cpu, "share": 100 * cpu / seconds}


def _joins(loop: str, quick: bool) -> Sequence[Figure]:
    size = _Joins(rate=200, seconds=2) if quick else _Joins()
    count = int(size.rate * size.seconds)
    room = {"sockets": size.sockets, **_WITHOUT_LIMITS}
    with _bare(loop, **room) as bare:
        theirs = _joins_of(bare, size)
    with _relay(loop, **room) as relay:
        ours = _joins_of(relay, size)
    name = "bare websockets server"
    return [
        Figure(
            "join to complete roster, p99",
            ours["p99"],
            "ms",
            Goal(50, of="value"),
            f"{name}, connect to echo",
            theirs["p99"],
        ),
        Figure(
            "done",
            ours["rate"],
            "/s",
            Goal(0.98 * size.rate, of="value", at_least=True),
            name,
            theirs["rate"],
        ),
        Figure(
            "CPU of a join",
            1e3 * ours["cpu"] / count,
            "ms",
            None,
            name,
            1e3 * theirs["cpu"] / count,
        ),
    ]


# --- signals -------------------------------------------------------------------------------------


def _cost_of_signals(loop: str, rooms: int, size: _Signals) -> float:
    """Microseconds of CPU time each, at a steady rate."""
    with (
        _relay(loop, sockets=10 * rooms, **_WITHOUT_LIMITS) as relay,
        _clients(relay, 10 * rooms) as tell,
    ):
        tell("fill", room="room", count=10 * rooms)
        steady = {"pairs": size.pairs, "rate": size.steady}
        tell("signals_at", **steady, seconds=size.seconds / 5)
        before = relay.used()["cpu"]
        said = tell("signals_at", **steady, seconds=size.seconds)
        return 1e6 * (relay.used()["cpu"] - before) / float(said["sent"])


def _most(server: _Server, size: _Signals) -> tuple[float, dict[str, float]]:
    """Signals a second at most, and the times that they take at half of it."""
    with _clients(server, 10 * size.few) as tell:
        tell("fill", room="room", count=10 * size.few)
        found = tell("most_signals", pairs=size.pairs, window=size.window, seconds=size.seconds)
        rate = found["rate"]
        return rate, tell("signals_at", pairs=size.pairs, rate=rate / 2, seconds=size.seconds)


def _signals(loop: str, quick: bool) -> Sequence[Figure]:
    size = _Signals(seconds=1, many=50) if quick else _Signals()
    with _relay(loop, **_WITHOUT_LIMITS) as relay:
        rate, half = _most(relay, size)
    with _peerjs(10 * size.few) as peerjs:
        their_rate, their_half = (None, None) if peerjs is None else _most(peerjs, size)
    name = "PeerJS server" if peerjs else _NO_PEERJS
    return [
        Figure(
            "forwarded",
            rate,
            "/s",
            Goal(15_000, of="value", at_least=True),
            name,
            their_rate,
        ),
        Figure(
            "p99 at half that rate",
            half["p99"],
            "ms",
            Goal(20, of="value"),
            f"{name} at half of its own" if peerjs else name,
            their_half["p99"] if their_half else None,
        ),
        Figure(
            f"CPU of one, {size.many} rooms",
            _cost_of_signals(loop, size.many, size),
            "µs",
            Goal(1.25),
            f"{size.few} rooms",
            _cost_of_signals(loop, size.few, size),
        ),
    ]


# --- a member leaves a large room and comes back -------------------------------------------------


def _return(loop: str, quick: bool) -> Sequence[Figure]:
    size = _Return(few=20, many=40, times=3) if quick else _Return()
    found = {}
    for count in (size.few, size.many):
        with (
            _relay(loop, **_WITHOUT_LIMITS) as relay,
            _clients(relay, count) as tell,
        ):
            tell("fill", room="room", count=count, in_each=count)
            found[count] = tell("come_back", times=size.times)
    times = sorted(found[size.many]["seconds"])
    messages = {count: max(said["messages"]) for count, said in found.items()}
    return [
        Figure("until all know, median", 1e3 * times[len(times) // 2], "ms", Goal(100, of="value")),
        Figure("until all know, longest", 1e3 * times[-1], "ms", Goal(100, of="value")),
        Figure(
            "messages",
            messages[size.many],
            "",
            Goal(1.1 * size.many / size.few),
            f"{size.few} members",
            messages[size.few],
        ),
    ]


# --- start ---------------------------------------------------------------------------------------


def _until_accepting(relay: Program, began: float) -> float:
    match = relay.wait_for(r"wss?://\[?([^\]\s/]+)\]?:(\d+)")
    with socket.create_connection((match[1], int(match[2])), timeout=10):
        return time.perf_counter() - began


def _packages_of_a_relay() -> set[str]:
    """The packages that ``meshpeer relay`` has imported when it accepts."""
    verbose = [sys.executable, "-v", "-m", "meshpeer.cli", "relay", "--port", "0"]
    # It says much of what it imports.
    with (
        tempfile.TemporaryFile("w+") as said,
        Program(*verbose, errors=said.fileno()) as relay,
    ):
        _until_accepting(relay, 0)
        said.seek(0)
        return {
            name.partition(".")[0]
            for name in re.findall(r"^import '([\w.]+)'", said.read(), re.MULTILINE)
        }


def _start(loop: str, quick: bool) -> Sequence[Figure]:
    began = time.perf_counter()
    with Program(str(Path(sys.executable).parent / "meshpeer"), "relay", "--port", "0") as relay:
        taken = _until_accepting(relay, began)
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    nothing = time.perf_counter() - began
    needless = {"aiortc", "av"} & _packages_of_a_relay()
    return [
        Figure(
            "until it accepts",
            taken,
            "s",
            Goal(0.5, of="value"),
            "Python that does nothing",
            nothing,
        ),
        Figure("aiortc and av imported", len(needless), "", Goal(0, of="value")),
    ]


# --- a flood -------------------------------------------------------------------------------------


def _floods(loop: str, quick: bool) -> Sequence[Figure]:
    size = _Flood(chatting=20, seconds=1) if quick else _Flood()
    return [_flood(loop, kind, size) for kind in ("signals", "short data", "long data")]


def _flood(loop: str, kind: str, size: _Flood) -> Figure:
    # The limits are those of every relay: they are what helps.
    with (
        _relay(loop) as relay,
        _clients(relay, size.chatting) as tell,
        Process(
            "tests.bench.relay_load:flood", _CLIENTS_LOOP, url=relay.url, room="chat 0", kind=kind
        ) as flooder,
    ):
        tell("fill", room="chat", count=size.chatting)
        chat = {"rate": size.rate, "seconds": size.seconds}
        tell("chat", **chat)
        quiet, loud = [], []
        for _ in range(2):
            quiet.append(tell("chat", **chat)["p99"])
            flooder.ask(True)
            loud.append(tell("chat", **chat)["p99"])
            if not flooder.ask(False)["arrived"]:
                raise BenchError(f"of a flood of {kind} nothing arrived")
    return Figure(
        f"p99 of {size.chatting} who chat, a flood of {kind}",
        sum(loud) / len(loud),
        "ms",
        Goal(2),
        "no flood",
        sum(quiet) / len(quiet),
    )


SCENARIOS: list[Measurement] = [
    Scenario("relay, 10000 idle members", 1, _idle),
    Scenario("relay, 1000 joins a second", 3, _joins),
    Scenario("relay, signals", 3, _signals),
    Scenario("relay, back into a room of 500", 3, _return),
    Scenario("relay, start", 10, _start, loops=("uvloop",)),
    Scenario("relay, flood", 3, _floods),
]
