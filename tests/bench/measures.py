"""What is measured, with how much of it, and the goals."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass

from meshpeer.config import MeshConfig
from tests.bench.harness import BenchError, Benchmark, Goal, Measurement, Process, Samples
from tests.bench.relay_measures import SCENARIOS

__all__ = ["BENCHMARKS"]

_CONNECTS = 4
_ROUND_TRIPS = 1_000


@dataclass(frozen=True, slots=True)
class _Stream:
    """Messages one way."""

    size: int
    count: int
    skip: int
    """Messages that arrive before the clock starts: the congestion window has opened by then."""


_STREAM = _Stream(16 * 1024, 1_000, 200)
_BIG = _Stream(1024 * 1024, 24, 4)
_CHUNKS = _Stream(64 * 1024, 16 * _BIG.count, 16 * _BIG.skip)
"""The same bytes as `_BIG`, in the largest messages that every endpoint takes."""
_SHORT = 64
_SHORTS = _Stream(_SHORT, 120_000, 20_000)
_SHORTS_ON_AIORTC = _Stream(_SHORT, 12_000, 2_000)
"""Fewer, as they take long."""
_FILE = 40 * 1024 * 1024
_FILE_SKIP = 4 * 1024 * 1024
_CHAT = 1024
_CHATS = 500
_BULK = 100
"""Messages of a megabyte."""
_MEGABYTE = 1_000_000
_MUCH = 1_000
"""Megabytes."""
_SLOW_SECONDS = 30.0
_SLOW_RATE = 1e6
_WINDOWS = (MeshConfig().send_window + MeshConfig().receive_window) / 1e6
"""Megabytes that a sender may have taken and a receiver may not have handed on."""
_SHORTS_RELAYED = _Stream(_SHORT, 60_000, 10_000)
_STREAM_RELAYED = _Stream(16 * 1024, 6_000, 1_000)
_CROWD = {"pairs": 10, "size": 16 * 1024}
_SHARING = {"begin": 100, "seconds": 5}
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


def _megabits(bytes_per_second: float) -> Samples:
    return [bytes_per_second * 8 / 1e6]


def _thousands(bytes_per_second: float) -> Samples:
    """Thousands of short messages a second."""
    return [bytes_per_second / _SHORT / 1e3]


def _stream_on_reference(module: str, loop: str, stream: _Stream) -> float:
    """Bytes a second over a connection of another library, between two processes."""
    with (
        Process(f"tests.bench.{module}:receive_stream", loop, **asdict(stream)) as receiver,
        Process(
            f"tests.bench.{module}:send_stream", loop, size=stream.size, count=stream.count
        ) as sender,
    ):
        sender.tell(receiver.ask(sender.receive()))
        return float(receiver.receive())


def _stream_on_meshpeer(loop: str, stream: _Stream, path: str = "direct") -> float:
    """Bytes a second between two processes."""
    with (
        Process("tests.bench.relay:run_relay", loop) as relay,
        Process(
            "tests.bench.mesh:receive_stream",
            loop,
            relay=(url := relay.receive()),
            path=path,
            **asdict(stream),
        ) as receiver,
        Process(
            "tests.bench.mesh:send_stream",
            loop,
            relay=url,
            path=path,
            size=stream.size,
            count=stream.count,
        ),
    ):
        return float(receiver.receive())


def _stream_forwarded(loop: str, stream: _Stream) -> float:
    """Bytes a second between two bare WebSockets, by a server that hands them on."""
    with (
        Process("tests.bench.relay:run_forwarder", loop) as server,
        Process(
            "tests.bench.relay:receive_stream",
            loop,
            url=(url := server.receive()),
            **asdict(stream),
        ) as receiver,
    ):
        receiver.receive()  # that it is there, as the server wants it to be first
        with Process(
            "tests.bench.relay:send_stream", loop, url=url, size=stream.size, count=stream.count
        ):
            return float(receiver.receive())


def _file(loop: str) -> Samples:
    with (
        Process("tests.bench.relay:run_relay", loop) as relay,
        Process(
            "tests.bench.mesh:receive_file",
            loop,
            relay=(url := relay.receive()),
            size=_FILE,
            skip=_FILE_SKIP,
        ) as receiver,
        Process("tests.bench.mesh:send_file", loop, relay=url, size=_FILE),
    ):
        return _megabits(receiver.receive())


def _best_of_aiortc(loop: str) -> Samples:
    """What a program with a file would get of aiortc, if it knew the better size of a chunk."""
    return _megabits(
        max(_stream_on_reference("raw", loop, stream) for stream in (_STREAM, _CHUNKS))
    )


def _round_trips(loop: str, *, bulk: int) -> Samples:
    """Seconds."""
    with (
        Process("tests.bench.relay:run_relay", loop) as relay,
        Process("tests.bench.mesh:answer", loop, relay=(url := relay.receive())),
        Process(
            "tests.bench.mesh:talk",
            loop,
            relay=url,
            size=_CHAT,
            times=_CHATS,
            bulk=bulk,
            bulk_size=_BIG.size,
        ) as talking,
    ):
        return _as_samples(talking.receive())


def _slow_reader(loop: str, *, count: int, seconds: float) -> Samples:
    """Megabytes by which both processes together grew."""
    with (
        Process("tests.bench.relay:run_relay", loop) as relay,
        Process(
            "tests.bench.mesh:receive_slowly",
            loop,
            relay=(url := relay.receive()),
            count=count,
            rate=_SLOW_RATE,
            seconds=seconds,
        ) as receiver,
        Process(
            "tests.bench.mesh:send_much", loop, relay=url, size=_MEGABYTE, count=count
        ) as sender,
    ):
        received, sent = receiver.receive(), sender.receive()
    grown = received.pop("growth") + sent.pop("growth")
    if received != sent:
        raise BenchError(f"sent were {sent}, but received {received}")
    return [grown / 1e6]


def _shares(loop: str) -> Samples:
    """The most that one of the pairs got, through the least."""
    with (
        Process("tests.bench.relay:run_relay", loop) as relay,
        Process(
            "tests.bench.mesh:share", loop, relay=(url := relay.receive()), **_CROWD, **_SHARING
        ) as receivers,
        Process("tests.bench.mesh:crowd", loop, relay=url, **_CROWD),
    ):
        shares = receivers.receive()
    return [max(shares) / max(min(shares), 1)]


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


BENCHMARKS: list[Measurement] = [
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
        ours=lambda loop: _megabits(_stream_on_meshpeer(loop, _STREAM)),
        theirs=lambda loop: _megabits(_stream_on_reference("raw", loop, _STREAM)),
    ),
    Benchmark(
        name="throughput, 1 MB messages",
        unit="Mbit/s",
        reference="raw aiortc, 64 KB messages",
        goal=Goal(1.0, at_least=True),
        rounds=5,
        ours=lambda loop: _megabits(_stream_on_meshpeer(loop, _BIG)),
        theirs=lambda loop: _megabits(_stream_on_reference("raw", loop, _CHUNKS)),
    ),
    Benchmark(
        name="throughput, a file",
        unit="Mbit/s",
        reference="raw aiortc, better of 16 and 64 KB",
        goal=Goal(1.0, at_least=True),
        rounds=3,
        ours=_file,
        theirs=_best_of_aiortc,
    ),
    *(
        Benchmark(
            name=f"messages of {_SHORT} B",
            unit="k/s",
            reference=reference,
            goal=Goal(least, of="value", at_least=True),
            rounds=rounds,
            ours=lambda loop: _thousands(_stream_on_meshpeer(loop, _SHORTS)),
            theirs=theirs,
            loops=(only,),
        )
        for reference, rounds, theirs in (
            (
                "raw aiortc",
                5,
                lambda loop: _thousands(_stream_on_reference("raw", loop, _SHORTS_ON_AIORTC)),
            ),
            (
                "libdatachannel",
                3,
                lambda loop: _thousands(_stream_on_reference("datachannel", loop, _SHORTS)),
            ),
        )
        for only, least in (("asyncio", 60), ("uvloop", 100))
    ),
    Benchmark(
        name=f"{_CHAT // 1024} KB there and back in a transfer",
        unit="ms",
        reference="5 times an idle link's, and 50 ms",
        goal=Goal(1.0),
        rounds=3,
        ours=lambda loop: _milliseconds(_round_trips(loop, bulk=_BULK)),
        theirs=lambda loop: [5 * value + 50 for value in _milliseconds(_round_trips(loop, bulk=0))],
        figures={
            ", p50": statistics.median,
            ", p95": lambda values: statistics.quantiles(values, n=20)[-1],
        },
    ),
    Benchmark(
        name="memory, 1 GB to a slow reader",
        unit="MB",
        reference="the two windows",
        goal=Goal(round(_WINDOWS + 30, 1), of="value"),
        # Two minutes.
        rounds=1,
        ours=lambda loop: _slow_reader(loop, count=_MUCH, seconds=_SLOW_SECONDS),
        less=lambda loop: _slow_reader(loop, count=_MUCH // 20, seconds=_SLOW_SECONDS / 10),
        theirs=lambda _: [_WINDOWS],
        loops=("asyncio",),
    ),
    Benchmark(
        name=f"over the relay, messages of {_SHORT} B",
        unit="k/s",
        reference="bare websockets forwarder",
        goal=Goal(10, of="value", at_least=True),
        rounds=3,
        ours=lambda loop: _thousands(_stream_on_meshpeer(loop, _SHORTS_RELAYED, "relay")),
        theirs=lambda loop: _thousands(_stream_forwarded(loop, _SHORTS_RELAYED)),
    ),
    Benchmark(
        name="over the relay, 16 KB messages",
        unit="MB/s",
        reference="bare websockets forwarder",
        goal=Goal(30, of="value", at_least=True),
        rounds=3,
        ours=lambda loop: [_stream_on_meshpeer(loop, _STREAM_RELAYED, "relay") / 1e6],
        theirs=lambda loop: [_stream_forwarded(loop, _STREAM_RELAYED) / 1e6],
    ),
    Benchmark(
        name=f"over the relay, {_CROWD['pairs']} pairs, most through least",
        unit="",
        reference="even shares",
        goal=Goal(1.5),
        rounds=3,
        ours=_shares,
        theirs=lambda _: [1.0],
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
        rounds=5,
        ours=lambda loop: _kilobytes(_on_meshpeer("memory", loop, rooms=1, peers=_PEERS)),
        theirs=lambda loop: _kilobytes(_on_aiortc("memory", loop, pairs=_PAIRS)),
    ),
    Benchmark(
        name=f"memory an endpoint, {_ROOMS_OF_TWO} rooms of 2",
        unit="KB",
        reference=f"raw aiortc, {_ROOMS_OF_TWO} pairs",
        goal=Goal(1.5),
        rounds=5,
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
        name=f"relay, CPU of a join beside {_IDLE}",
        unit="ms",
        reference="beside 100",
        goal=Goal(1.5),
        # Ten seconds a round, each of them a mean of hundreds of joins.
        rounds=5,
        ours=lambda loop: _join(_IDLE, loop),
        theirs=lambda loop: _join(100, loop),
    ),
    *SCENARIOS,
]
