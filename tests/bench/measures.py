"""What is measured, with how much of it, and the goals."""

from __future__ import annotations

from tests.bench.harness import Benchmark, Goal, Process, Samples

__all__ = ["BENCHMARKS"]

_CONNECTS = 4
_ROUND_TRIPS = 1_000
_STREAM = {"size": 16 * 1024, "count": 1_000}
_SKIP = 200
"""Messages that arrive before the clock starts: the congestion window has opened by then."""
_PEERS = 20
_PAIRS = _PEERS * (_PEERS - 1) // 2
_ROOMS_OF_TWO = 60
_QUIET = {"links": 50, "settle": 6, "seconds": 10}
_IDLE = 2_000
_ROOM = 10
_VISITS = 300


def _on_aiortc(task: str, loop: str, **settings: int) -> Samples:
    with Process(f"tests.bench.raw:{task}", loop, **settings) as process:
        return _as_samples(process.receive())


def _on_meshpeer(task: str, loop: str, **settings: int) -> Samples:
    with (
        Process("tests.bench.relay:run_relay", loop) as relay,
        Process(f"tests.bench.mesh:{task}", loop, relay=relay.receive(), **settings) as process,
    ):
        return _as_samples(process.receive())


def _as_samples(said: float | list[float]) -> Samples:
    return said if isinstance(said, list) else [said]


def _milliseconds(seconds: Samples) -> Samples:
    return [1e3 * value for value in seconds]


def _kilobytes(count: Samples) -> Samples:
    return [value / 1e3 for value in count]


def _stream_on_aiortc(loop: str) -> Samples:
    with (
        Process("tests.bench.raw:receive_stream", loop, **_STREAM, skip=_SKIP) as receiver,
        Process("tests.bench.raw:send_stream", loop, **_STREAM) as sender,
    ):
        sender.tell(receiver.ask(sender.receive()))
        return [receiver.receive() * 8 / 1e6]


def _stream_on_meshpeer(loop: str) -> Samples:
    with (
        Process("tests.bench.relay:run_relay", loop) as relay,
        Process(
            "tests.bench.mesh:receive_stream",
            loop,
            relay=(url := relay.receive()),
            **_STREAM,
            skip=_SKIP,
        ) as receiver,
        Process("tests.bench.mesh:send_stream", loop, relay=url, **_STREAM),
    ):
        return [receiver.receive() * 8 / 1e6]


def _idle_links(loop: str) -> Samples:
    """Per cent of a core, of the side that pings and of the other."""
    with (
        Process("tests.bench.relay:run_relay", loop) as relay,
        Process(
            "tests.bench.mesh:idle", loop, relay=(url := relay.receive()), peer_id="a", **_QUIET
        ) as dialling,
        Process("tests.bench.mesh:idle", loop, relay=url, peer_id="b", **_QUIET) as waiting,
    ):
        return [dialling.receive(), waiting.receive()]


def _idle(server: str, loop: str) -> Samples:
    """Kilobytes that a member takes who says nothing."""
    with (
        Process(f"tests.bench.relay:{server}", loop) as relay,
        Process("tests.bench.relay:members", loop, url=relay.receive()) as members,
    ):
        members.ask(["visit", "warm-up", _ROOM])
        before = relay.ask("figures")["rss"]
        members.ask(["fill", "room", _IDLE, _ROOM])
        return [(relay.ask("figures")["rss"] - before) / _IDLE / 1e3]


def _join(others: int, loop: str) -> Samples:
    """Milliseconds of the relay's CPU time for somebody who connects, joins and leaves."""
    with (
        Process("tests.bench.relay:run_relay", loop) as relay,
        Process("tests.bench.relay:members", loop, url=relay.receive()) as members,
    ):
        members.ask(["fill", "elsewhere", others, _ROOM])
        members.ask(["fill", "room", _ROOM, _ROOM])
        members.ask(["visit", "room 0", _ROOM])
        before = relay.ask("figures")["cpu"]
        members.ask(["visit", "room 0", _VISITS])
        return [(relay.ask("figures")["cpu"] - before) / _VISITS * 1e3]


BENCHMARKS = [
    Benchmark(
        name="connected",
        unit="ms",
        reference="raw aiortc, offer to open",
        goal=Goal(2.5),
        rounds=5,
        ours=lambda loop: _milliseconds(_on_meshpeer("connect", loop, times=_CONNECTS)),
        theirs=lambda loop: _milliseconds(_on_aiortc("connect", loop, times=_CONNECTS)),
    ),
    Benchmark(
        name="round trip p50",
        unit="ms",
        reference="raw aiortc",
        goal=Goal(1.3),
        rounds=5,
        ours=lambda loop: _milliseconds(_on_meshpeer("round_trip", loop, times=_ROUND_TRIPS)),
        theirs=lambda loop: _milliseconds(_on_aiortc("round_trip", loop, times=_ROUND_TRIPS)),
    ),
    Benchmark(
        name="throughput, 16 KB messages",
        unit="Mbit/s",
        reference="raw aiortc",
        goal=Goal(0.95, at_least=True),
        rounds=10,
        ours=_stream_on_meshpeer,
        theirs=_stream_on_aiortc,
    ),
    Benchmark(
        name=f"CPU, full mesh of {_PEERS}",
        unit="s",
        reference=f"raw aiortc, {_PAIRS} pairs",
        goal=Goal(1.5),
        rounds=10,
        ours=lambda loop: _on_meshpeer("cpu", loop, peers=_PEERS),
        theirs=lambda loop: _on_aiortc("cpu", loop, pairs=_PAIRS),
    ),
    Benchmark(
        name=f"memory an endpoint, full mesh of {_PEERS}",
        unit="KB",
        reference=f"raw aiortc, {_PAIRS} pairs",
        goal=Goal(1.5),
        rounds=10,
        ours=lambda loop: _kilobytes(_on_meshpeer("memory", loop, rooms=1, peers=_PEERS)),
        theirs=lambda loop: _kilobytes(_on_aiortc("memory", loop, pairs=_PAIRS)),
    ),
    Benchmark(
        name=f"memory an endpoint, {_ROOMS_OF_TWO} rooms of 2",
        unit="KB",
        reference=f"raw aiortc, {_ROOMS_OF_TWO} pairs",
        goal=Goal(1.5),
        rounds=10,
        ours=lambda loop: _kilobytes(_on_meshpeer("memory", loop, rooms=_ROOMS_OF_TWO, peers=2)),
        theirs=lambda loop: _kilobytes(_on_aiortc("memory", loop, pairs=_ROOMS_OF_TWO)),
    ),
    Benchmark(
        name=f"heartbeats, {_QUIET['links']} idle links",
        unit="% of a core",
        reference="raw aiortc, 50 ends",
        goal=Goal(1.0, of="value"),
        # Twenty seconds a round.
        rounds=5,
        ours=_idle_links,
        theirs=lambda loop: _on_aiortc(
            "idle", loop, ends=_QUIET["links"], settle=_QUIET["settle"], seconds=_QUIET["seconds"]
        ),
    ),
    Benchmark(
        name=f"relay, idle member at {_IDLE}",
        unit="KB",
        reference="bare websockets server",
        goal=Goal(40, of="value"),
        # Ten seconds a round, and the values differ by less than one in a hundred.
        rounds=5,
        ours=lambda loop: _idle("run_relay", loop),
        theirs=lambda loop: _idle("run_bare", loop),
    ),
    Benchmark(
        name=f"relay, CPU of a join beside {_IDLE}",
        unit="ms",
        reference="beside 100",
        goal=Goal(1.5),
        # Ten seconds a round, each of them a mean of hundreds of joins.
        rounds=5,
        ours=lambda loop: _join(_IDLE, loop),
        theirs=lambda loop: _join(100, loop),
    ),
]
