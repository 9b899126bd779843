"""Trickle, servers and the choice of the pair, on real sockets and a real coturn."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from meshpeer.config import IceServer, MeshConfig
from meshpeer.core.events import IceServerOutcome
from meshpeer.core.events import Path as DataPath
from meshpeer.errors import ConnectionFailed
from tests.coturn import Coturn, run_coturn
from tests.rtc.test_connection import End, left


@contextlib.asynccontextmanager
async def trickling(a: End, b: End) -> AsyncIterator[None]:
    """What one side finds later is told to the other."""

    async def bring(source: End, target: End) -> None:
        while True:
            generation, candidates, end = await source.found.get()
            await target.connection.add_candidates(generation, candidates, end)

    tasks = [asyncio.create_task(bring(a, b)), asyncio.create_task(bring(b, a))]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


@contextlib.asynccontextmanager
async def pair_of(a: MeshConfig, b: MeshConfig) -> AsyncIterator[tuple[End, End]]:
    ends = End(a), End(b)
    async with contextlib.AsyncExitStack() as stack:
        for end in ends:
            stack.push_async_callback(end.connection.close)
        await stack.enter_async_context(trickling(*ends))
        yield ends


async def negotiate(a: End, b: End, generation: int = 0) -> None:
    answer = await b.connection.accept_offer(
        generation, await a.connection.create_offer(generation)
    )
    await a.connection.accept_answer(generation, answer)


@pytest.fixture
def coturn(tmp_path: Path) -> Iterator[Coturn]:
    with run_coturn(tmp_path) as server:
        yield server


def relayed(server: IceServer, *others: IceServer) -> MeshConfig:
    return MeshConfig(ice_servers=(server, *others), ice_transport_policy="relay")


@pytest.mark.parametrize("transport", ["udp", "tcp", "tls"])
async def test_under_the_relay_policy_everything_goes_over_turn(
    coturn: Coturn, transport: str
) -> None:
    config = relayed(coturn.server(transport))
    async with pair_of(config, config) as (a, b):
        offer = await a.connection.create_offer(0)
        assert "typ host" not in offer
        assert "typ srflx" not in offer
        await a.connection.accept_answer(0, await b.connection.accept_offer(0, offer))
        await a.next("opened")
        await b.next("opened")
        selected = a.connection._ice._told_pair
        assert selected is not None
        assert selected[1].path is DataPath.TURN
        assert selected[1].local.server == config.ice_servers[0].urls
        a.connection.send_frame(b"over turn")
        assert await b.next("frame") == b"over turn"


async def test_one_relayed_side_is_enough_and_both_call_it_turn(coturn: Coturn) -> None:
    async with pair_of(relayed(coturn.server("udp")), MeshConfig(interfaces=("lo",))) as (a, b):
        await negotiate(a, b)
        for end in (a, b):
            await end.next("opened")
            assert end.connection._ice._told_pair is not None
            assert end.connection._ice._told_pair[1].path is DataPath.TURN


async def test_a_direct_pair_is_taken_though_turn_is_there(coturn: Coturn) -> None:
    config = MeshConfig(ice_servers=(coturn.server("udp"), coturn.server("stun")))
    async with pair_of(config, config) as (a, b):
        await negotiate(a, b)
        for end in (a, b):
            await end.next("opened")
            assert end.connection._ice._told_pair is not None
            assert end.connection._ice._told_pair[1].path is DataPath.DIRECT


async def test_every_server_has_its_own_outcome_and_none_delays_the_offer(coturn: Coturn) -> None:
    silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    mute = socket.create_server(("127.0.0.1", 0))
    with silent, mute:
        silent.bind(("127.0.0.1", 0))
        wrong = coturn.server("udp")
        servers = (
            IceServer(urls=f"stun:127.0.0.1:{silent.getsockname()[1]}"),
            IceServer(
                urls=f"turn:127.0.0.1:{mute.getsockname()[1]}?transport=tcp",
                username="u",
                credential="c",
            ),
            IceServer(urls=wrong.urls, username="user", credential="not the password"),
            IceServer(urls="stun:no-such-host.invalid"),
            coturn.server("tls", trusted=False),
            coturn.server("tcp"),
        )
        config = MeshConfig(ice_servers=servers, ice_server_timeout=0.5)
        async with pair_of(config, MeshConfig()) as (a, b):
            offer = await a.connection.create_offer(0)
            assert "typ host" in offer
            assert "end-of-candidates" not in offer
            await a.connection.accept_answer(0, await b.connection.accept_offer(0, offer))
            reports: dict[str, IceServerOutcome] = {}
            while len(reports) < len(servers):
                report = await a.next("server")
                reports[report.url] = report.outcome
            assert list(map(reports.get, (str(each.urls) for each in servers))) == [
                IceServerOutcome.TIMED_OUT,
                IceServerOutcome.TIMED_OUT,
                IceServerOutcome.WRONG_CREDENTIALS,
                IceServerOutcome.NAME_NOT_FOUND,
                IceServerOutcome.UNTRUSTED_CERTIFICATE,
                IceServerOutcome.FOUND,
            ]


async def test_without_any_candidate_there_is_no_offer() -> None:
    server = IceServer(urls="turn:127.0.0.1:9", username="u", credential="c")
    config = relayed(server)
    end = End(replace(config, ice_server_timeout=0.3))
    try:
        with pytest.raises(ConnectionFailed, match="no address to be reached at"):
            await end.connection.create_offer(0)
    finally:
        await end.connection.close()


async def test_end_of_candidates_is_told_with_the_last(coturn: Coturn) -> None:
    end = End(MeshConfig(ice_servers=(coturn.server("udp"),)))
    try:
        assert "end-of-candidates" not in await end.connection.create_offer(0)
        told = [await end.found.get()]
        while not told[-1][2]:
            told.append(await end.found.get())
        assert any("typ relay" in line for _, lines, _ in told for line, _, _ in lines)
        assert [done for _, _, done in told].count(True) == 1
    finally:
        await end.connection.close()


async def test_without_servers_the_offer_is_complete() -> None:
    end = End(MeshConfig())
    try:
        assert "a=end-of-candidates" in await end.connection.create_offer(0)
        assert end.found.empty()
    finally:
        await end.connection.close()


@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_a_restart_moves_away_from_a_turn_server_that_died(
    tmp_path: Path, coturn: Coturn, transport: str
) -> None:
    (tmp_path / "second").mkdir()
    with run_coturn(tmp_path / "second") as second:
        config = relayed(coturn.server(transport))
        async with pair_of(config, config) as (a, b):
            await negotiate(a, b)
            await a.next("opened")
            await b.next("opened")
            for number in range(50):
                a.connection.send_frame(bytes([number]))
            a.servers = b.servers = (coturn.server(transport), second.server(transport))
            coturn.kill()
            if transport == "tcp":
                assert await a.next("path lost")
            for number in range(50, 100):
                a.connection.send_frame(bytes([number]))
            await negotiate(a, b, 1)
            got = [await b.next("frame") for _ in range(100)]
            assert got == [bytes([number]) for number in range(100)]


async def test_closing_does_not_wait_for_servers_that_are_dead(coturn: Coturn) -> None:
    """`no_leaks` looks at what stays; that it ends at all shows that nobody is waited for."""
    config = relayed(coturn.server("udp"), coturn.server("tcp"), coturn.server("tls"))
    async with pair_of(config, config) as (a, b):
        await negotiate(a, b)
        await a.next("opened")
        coturn.freeze()
        async with asyncio.timeout(2):
            await asyncio.gather(a.connection.close(), b.connection.close())


async def test_a_name_that_nobody_answers_for_delays_nothing() -> None:
    async with pair_of(MeshConfig(), MeshConfig()) as (a, b):
        offer = await a.connection.create_offer(0)
        named = (
            "a=candidate:1 1 udp 2122260223 4f1e1a6c-0000-4000-8000-000000000000.local 9 typ host"
        )
        hidden = offer.replace("a=mid:", f"{named}\r\na=mid:", 1)
        answer = await b.connection.accept_offer(0, hidden)
        # The other side knows the way: it makes the first check.
        await a.connection.accept_answer(0, answer)
        await a.next("opened")
        await b.next("opened")


async def test_ports_are_of_the_range() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("", 0))
        first = probe.getsockname()[1]
    config = MeshConfig(port_range=(first, first + 20 if first < 65500 else first))
    end = End(config)
    try:
        lines = (await end.connection.create_offer(0)).splitlines()
        ports = {int(line.split()[5]) for line in lines if line.startswith("a=candidate")}
        assert ports <= set(range(first, first + 21))
        assert ports
    finally:
        await end.connection.close()


async def test_a_relayed_pair_that_is_known_better_later_is_called_so(coturn: Coturn) -> None:
    """The check comes over the TURN server before its candidate was signalled: `prflx` at first."""
    a, b = End(relayed(coturn.server("udp"))), End(MeshConfig(interfaces=("lo",)))
    try:
        offer = await a.connection.create_offer(0)
        hidden = "".join(
            line for line in offer.splitlines(keepends=True) if "a=candidate" not in line
        )
        await a.connection.accept_answer(0, await b.connection.accept_offer(0, hidden))
        await b.next("opened")
        assert b.connection._ice._told_pair is not None
        assert b.connection._ice._told_pair[1].remote.type == "prflx"
        left(b)
        line = next(line for line in offer.splitlines() if "a=candidate" in line)
        await b.connection.add_candidates(0, [(line.removeprefix("a="), "0", 0)], True)
        assert (await b.next("pair"))[1].path is DataPath.TURN
    finally:
        await a.connection.close()
        await b.connection.close()


async def test_a_server_that_can_not_be_one_is_told_and_the_others_are_asked(
    coturn: Coturn,
) -> None:
    """The signalling service may name anything."""
    end = End(MeshConfig())
    end.servers = (IceServer(urls="stun:example.org:99999"), coturn.server("udp"))
    try:
        await end.connection.create_offer(0)
        outcomes = [(await end.next("server")).outcome for _ in range(2)]
        assert outcomes == [IceServerOutcome.FAILED, IceServerOutcome.FOUND]
    finally:
        await end.connection.close()


async def test_a_path_that_was_out_is_news_to_sctp_when_something_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with pair_of(MeshConfig(), MeshConfig()) as (a, b):
        await negotiate(a, b)
        await a.next("opened")
        await b.next("opened")
        ice = a.connection._ice
        told: list[str] = []
        monkeypatch.setattr(a.connection, "path_changed", lambda: told.append("changed"))
        ice.heard(ice.newest, answered=True)
        assert told == []
        ice._heard_at -= 5
        ice.heard(ice.newest, answered=True)
        assert told == ["changed"]
        ice.probe()
        ice.ponged(ice.newest, -1)
        assert told == ["changed"], "the first check was answered: the path was there all the time"
        ice.probe()
        ice.ponged(ice.newest, -3)
        assert told == ["changed", "changed"]


async def test_sctp_waits_longer_each_time_and_asks_whether_the_path_works() -> None:
    async with pair_of(MeshConfig(), MeshConfig()) as (a, b):
        await negotiate(a, b)
        await a.next("opened")
        await b.next("opened")
        sctp, ice = a.connection._sctp, a.connection._ice
        sctp._rto = 0.5
        sctp._t3_expired()
        assert sctp._rto == 1.0
        assert ice._probing is not None
        a.connection.ping(7)  # behind the probe
        assert await a.next("pong") == 7
        probing: object = ice._probing
        assert probing is None
        sctp._rto = 8.0
        sctp._t3_expired()
        assert sctp._rto == 10.0
