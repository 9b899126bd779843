"""What is found of a network: by a real coturn, and by STUN servers that see what a NAT would show
them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import cast

import pytest
from aioice import stun

from meshpeer.config import IceServer, MeshConfig
from meshpeer.core.events import IceServerOutcome
from meshpeer.errors import ConfigError
from meshpeer.rtc import probe
from meshpeer.rtc.probe import FoundCandidate, Mapping, Nat, mapping_of, probe_network
from tests.coturn import Coturn, run_coturn

Address = tuple[str, int]

OWN = ("10.0.0.2", 5000)
OUT = ("203.0.113.7", 6000)


@pytest.fixture(autouse=True)
def _loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    ours(monkeypatch, "127.0.0.1")


def ours(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Set the addresses to ask from."""
    monkeypatch.setattr(probe, "local_addresses", lambda config: addresses)


@pytest.fixture(scope="module")
def coturn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Coturn]:
    with run_coturn(tmp_path_factory.mktemp("coturn")) as running:
        yield running


def config(*servers: IceServer | str, timeout: float = 5.0) -> MeshConfig:
    return MeshConfig(
        ice_servers=tuple(IceServer(urls=s) if isinstance(s, str) else s for s in servers),
        ice_server_timeout=timeout,
    )


# --- a STUN server of the test's own --------------------------------------------------------------


@dataclass
class StunServer(asyncio.DatagramProtocol):
    """Answers that it sees ``mapped``; by default the truth."""

    mapped: Address | None = None
    other: Address | None = None
    before: list[bytes] = field(default_factory=list)
    """Datagrams that are sent before each answer."""
    silent: bool = False
    asked: list[Address] = field(default_factory=list)
    first: asyncio.Event = field(default_factory=asyncio.Event)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: Address) -> None:
        self.asked.append(addr)
        self.first.set()
        if self.silent:
            return
        request = stun.parse_message(data)
        answer = stun.Message(
            stun.Method.BINDING,
            stun.Class.RESPONSE,
            request.transaction_id,
            {"XOR-MAPPED-ADDRESS": self.mapped or addr},
        )
        if self.other is not None:
            answer.attributes["OTHER-ADDRESS"] = self.other
        for each in (*self.before, bytes(answer)):
            self.transport.sendto(each, addr)

    @property
    def address(self) -> Address:
        host, port = self.transport.get_extra_info("sockname")
        return host, port

    @property
    def url(self) -> str:
        return "stun:{}:{}".format(*self.address)


@asynccontextmanager
async def serving(*servers: StunServer) -> AsyncIterator[None]:
    """Run them at 127.0.0.1, 127.0.0.2 and so on."""
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        for number, server in enumerate(servers, 1):
            try:
                transport, _ = await loop.create_datagram_endpoint(
                    lambda server=server: server,  # type: ignore[misc]
                    local_addr=(f"127.0.0.{number}", 0),
                )
            except OSError:
                pytest.skip("127.0.0.2 is not an address of this machine")
            stack.callback(transport.abort)
        yield


# --- the NAT --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        pytest.param([], Mapping.NONE, id="nobody saw anything else"),
        pytest.param([("a", OWN)], Mapping.NONE, id="one saw the address itself"),
        pytest.param([("a", OUT)], Mapping.UNKNOWN, id="one saw another one"),
        pytest.param([("a", OUT), ("a", OUT)], Mapping.UNKNOWN, id="the same one twice"),
        pytest.param([("a", OUT), ("b", OUT)], Mapping.INDEPENDENT, id="two saw the same"),
        pytest.param([("a", OUT), ("b", (OUT[0], 1))], Mapping.DEPENDENT, id="two saw two ports"),
        pytest.param(
            [("a", OUT), ("b", ("198.51.100.1", OUT[1]))], Mapping.DEPENDENT, id="two IPs"
        ),
        pytest.param([("a", OUT), ("a", (OUT[0], 1))], Mapping.DEPENDENT, id="by port only"),
        pytest.param([("a", OWN), ("b", OUT)], Mapping.UNKNOWN, id="one is on our side"),
        pytest.param(
            [("a", OWN), ("b", OUT), ("c", OUT)], Mapping.INDEPENDENT, id="one of three is"
        ),
    ],
)
def test_the_mapping_follows_from_what_was_seen(
    seen: list[tuple[str, Address]], expected: Mapping
) -> None:
    assert mapping_of(OWN, seen) is expected


async def test_two_servers_that_see_the_same() -> None:
    servers = StunServer(mapped=OUT), StunServer(mapped=OUT)
    async with serving(*servers):
        network = await probe_network(config(*(each.url for each in servers)))
    assert network.nats == (Nat("127.0.0.1", Mapping.INDEPENDENT, ("203.0.113.7:6000",)),)
    assert network.candidates == (
        FoundCandidate("host", "127.0.0.1", None),
        FoundCandidate("srflx", "203.0.113.7:6000", "127.0.0.1"),
    )
    assert [each.address for each in network.servers] == ["203.0.113.7:6000"] * 2
    # The mapping is of a socket: they must have been asked over the same one.
    assert {*servers[0].asked, *servers[1].asked} == {servers[0].asked[0]}


async def test_two_servers_that_see_different_ports() -> None:
    servers = StunServer(mapped=OUT), StunServer(mapped=(OUT[0], 7000))
    async with serving(*servers):
        network = await probe_network(config(*(each.url for each in servers)))
    (nat,) = network.nats
    assert nat == Nat("127.0.0.1", Mapping.DEPENDENT, ("203.0.113.7:6000", "203.0.113.7:7000"))
    assert [each.type for each in network.candidates] == ["host", "srflx", "srflx"]


@pytest.mark.parametrize(
    ("second", "expected"), [(OUT, Mapping.INDEPENDENT), ((OUT[0], 7000), Mapping.DEPENDENT)]
)
async def test_one_server_with_another_address_is_enough(
    second: Address, expected: Mapping
) -> None:
    named, other = StunServer(mapped=OUT), StunServer(mapped=second)
    async with serving(named, other):
        named.other = other.address
        network = await probe_network(config(named.url))
    assert network.nats[0].mapping is expected
    # A connection does not ask the other one, and so has no candidate from it.
    assert [each.address for each in network.candidates if each.type == "srflx"] == [
        "203.0.113.7:6000"
    ]
    assert len(network.servers) == 1


async def test_another_address_that_can_not_be_reached_says_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probe, "_OTHER_TIMEOUT", 0.05)
    named, other = StunServer(mapped=OUT), StunServer(silent=True)
    async with serving(named, other):
        named.other = other.address
        network = await probe_network(config(named.url))
    assert other.asked
    assert network.nats[0].mapping is Mapping.UNKNOWN
    assert network.servers[0].outcome is IceServerOutcome.FOUND


@pytest.mark.parametrize(
    ("server", "other", "askable"),
    [
        ("198.51.100.1", "198.51.100.2", True),
        ("198.51.100.1", "127.0.0.1", False),
        ("198.51.100.1", "0.0.0.0", False),
        ("198.51.100.1", "224.0.0.1", False),
        ("9.9.9.9", "192.168.0.1", False),
        ("192.168.0.2", "192.168.0.1", True),
        ("198.51.100.1", "2001:db8::1", False),
    ],
)
def test_a_server_does_not_send_us_just_anywhere(server: str, other: str, askable: bool) -> None:
    assert probe._askable((other, 3478), (server, 3478)) is askable
    assert not probe._askable((other, 0), (server, 3478))


async def test_without_a_nat_there_is_no_reflexive_candidate() -> None:
    server = StunServer()
    async with serving(server):
        network = await probe_network(config(server.url))
    assert network.nats[0].mapping is Mapping.NONE
    assert [each.type for each in network.candidates] == ["host"]


async def test_what_is_no_stun_is_not_looked_at() -> None:
    short = stun.Message(stun.Method.BINDING, stun.Class.RESPONSE)
    lifetime = bytes(short)[:2] + b"\x00\x04" + bytes(short)[4:] + b"\x00\x0d\x00\x00"
    server = StunServer(mapped=OUT, before=[b"", b"\x00" * 20, b"nonsense", bytes(short), lifetime])
    async with serving(server):
        network = await probe_network(config(server.url))
    assert network.servers[0].outcome is IceServerOutcome.FOUND


# --- the servers ----------------------------------------------------------------------------------


async def test_every_way_to_a_server_that_works(coturn: Coturn) -> None:
    servers = [coturn.server(each) for each in ("stun", "udp", "tcp", "tls")]
    network = await probe_network(config(*servers))
    assert [each.outcome for each in network.servers] == [IceServerOutcome.FOUND] * 4
    assert [each.url for each in network.servers] == [each.urls for each in servers]
    relayed = [each for each in network.candidates if each.type == "relay"]
    assert [each.via for each in relayed] == [each.urls for each in servers[1:]]
    assert [each.address for each in relayed] == [each.address for each in network.servers[1:]]


async def test_every_server_has_an_outcome_of_its_own(coturn: Coturn) -> None:
    silent = StunServer(silent=True)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        async with serving(silent):
            network = await probe_network(
                config(
                    replace(coturn.server("udp"), credential="another"),
                    coturn.server("tls", trusted=False),
                    IceServer(
                        urls=f"turn:127.0.0.1:{closed.getsockname()[1]}?transport=tcp",
                        username="",
                        credential="",
                    ),
                    "stun:nowhere.invalid",
                    silent.url,
                    coturn.server("stun"),
                    timeout=1,
                )
            )
    assert [each.outcome for each in network.servers] == [
        IceServerOutcome.WRONG_CREDENTIALS,
        IceServerOutcome.UNTRUSTED_CERTIFICATE,
        IceServerOutcome.REFUSED,
        IceServerOutcome.NAME_NOT_FOUND,
        IceServerOutcome.TIMED_OUT,
        IceServerOutcome.FOUND,
    ]


async def test_a_turn_server_sees_the_mapping_too(coturn: Coturn) -> None:
    network = await probe_network(config(replace(coturn.server("udp"), credential="another")))
    assert [each.mapping for each in network.nats] == [Mapping.NONE]


async def test_a_server_is_asked_from_addresses_of_its_family_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours(monkeypatch, "::1", "127.0.0.1")
    server = StunServer(silent=True)
    async with serving(server):
        network = await probe_network(config(server.url, timeout=0.05))
    assert network.servers[0].outcome is IceServerOutcome.TIMED_OUT


async def test_the_address_that_got_an_answer_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    class Picky(StunServer):
        def datagram_received(self, data: bytes, addr: Address) -> None:
            if addr[0] == "127.0.0.1":
                super().datagram_received(data, addr)

    ours(monkeypatch, "127.0.0.2", "127.0.0.1")
    server = Picky(mapped=OUT)
    async with serving(server):
        network = await probe_network(config(server.url, timeout=0.2))
    assert network.servers[0].outcome is IceServerOutcome.FOUND
    assert [each.address for each in network.nats] == ["127.0.0.1"]


async def test_a_host_without_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    # One that went away since it was listed.
    ours(monkeypatch, "203.0.113.99")
    network = await probe_network(config("stun:127.0.0.1"))
    assert network.candidates == ()
    assert network.nats == ()
    assert network.servers[0].outcome is IceServerOutcome.FAILED
    assert "no address" in network.servers[0].detail


async def test_without_servers_nothing_is_asked() -> None:
    network = await probe_network(MeshConfig())
    assert network.servers == ()
    assert network.candidates == (FoundCandidate("host", "127.0.0.1", None),)
    assert {"lo", "lo0"} & {each.name for each in network.interfaces}


async def test_a_url_that_can_not_be_one_is_said_before_anything_is_asked() -> None:
    with pytest.raises(ConfigError, match="stun:"):
        await probe_network(config("stun:"))


async def test_cancelling_leaves_nothing(coturn: Coturn) -> None:
    server = StunServer(silent=True)
    async with serving(server):
        asking = asyncio.create_task(
            probe_network(config(server.url, coturn.server("tcp"), timeout=60))
        )
        await server.first.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
