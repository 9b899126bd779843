"""What this host's network lets ICE do: its candidates, each server's outcome, and the NAT.

`meshpeer doctor` shows it. Everything is asked at once, over sockets of its own, by the same code
that a connection uses; so what is found here is what a connection would find.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from time import perf_counter
from typing import Any, cast

from aioice import stun
from aioice.candidate import Candidate, candidate_priority
from aioice.ice import Connection, StunProtocol

from meshpeer.config import MeshConfig
from meshpeer.core.events import IceServerOutcome, IceServerReport
from meshpeer.rtc.interfaces import Interface, interfaces, local_addresses
from meshpeer.rtc.servers import (
    Server,
    ServerError,
    allocate,
    describe,
    mapped_address,
    parse_servers,
    parse_stun,
    release,
    resolve,
)

__all__ = ["FoundCandidate", "Mapping", "Nat", "Network", "mapping_of", "probe_network"]

_OTHER_TIMEOUT = 2.0
"""Seconds for a server's other address, which many announce and few can be reached at."""
_RELEASE = 1.0

_FAMILIES = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}

Address = tuple[str, int]


class Mapping(StrEnum):
    """How a NAT maps an address of ours (RFC 4787, section 4.1)."""

    NONE = "none"
    """Others see the address itself: there is no NAT."""
    INDEPENDENT = "endpoint-independent"
    """Others all see the same address, so what one of them saw can be told to the rest."""
    DEPENDENT = "address-dependent"
    """Each sees another one ("symmetric"): what one saw is of no use to the rest."""
    UNKNOWN = "unknown"
    """Only one server was there to ask."""


@dataclass(frozen=True, slots=True)
class FoundCandidate:
    """Something that others may reach us at."""

    type: str
    """``host``, ``srflx`` or ``relay`` (RFC 8445, section 5.1.1)."""
    address: str
    """host:port; for ``host`` without a port, which is another one for each connection."""
    via: str | None
    """For ``srflx`` our own address, for ``relay`` the URL of the server."""


@dataclass(frozen=True, slots=True)
class Nat:
    """What is between one of our addresses and the servers that answered."""

    address: str
    """Ours."""
    mapping: Mapping
    seen_as: tuple[str, ...]
    """What the servers saw (host:port), each once."""


@dataclass(frozen=True, slots=True)
class Network:
    """All that was found."""

    interfaces: tuple[Interface, ...]
    candidates: tuple[FoundCandidate, ...]
    servers: tuple[IceServerReport, ...]
    """One for each server that is configured, in that order."""
    nats: tuple[Nat, ...]
    """One for each of our addresses that a server answered over UDP."""


async def probe_network(config: MeshConfig) -> Network:
    """Ask every server of ``config.ice_servers`` from every address, all at the same time.

    Takes ``config.ice_server_timeout`` and a second at most. Raises `ConfigError` for a server that
    can't be one. Nothing is left behind, when it is cancelled neither.
    """
    servers = parse_servers(config.ice_servers)
    listed = interfaces(config)
    async with AsyncExitStack() as stack:
        sockets = [
            opened
            for address in local_addresses(config)
            if (opened := await stack.enter_async_context(_opened(address))) is not None
        ]
        async with asyncio.TaskGroup() as group:
            asked = [
                group.create_task(_ask(server, each, config.ice_server_timeout))
                # A TURN server is a STUN server too: one more to compare with.
                for server in servers
                if server.transport == "udp"
                for each in sockets
                if each.family in _families(server)
            ]
            allocating = {
                server: group.create_task(_try_allocation(server, config))
                for server in servers
                if server.kind == "turn"
            }
        answers = [task.result() for task in asked]
        nats = [nat for each in sockets if (nat := _nat(each.own, answers)) is not None]
    reports = {
        server: allocating[server].result()
        if server.kind == "turn"
        else _best(server, [answer.report for answer in answers if answer.server == server])
        for server in servers
    }
    return Network(
        interfaces=listed,
        candidates=(
            *(FoundCandidate("host", each.own[0], None) for each in sockets),
            *_reflexive(answers),
            *(
                FoundCandidate("relay", report.address, server.url)
                for server, report in reports.items()
                if server.kind == "turn" and report.address is not None
            ),
        ),
        servers=tuple(reports.values()),
        nats=tuple(nats),
    )


def mapping_of(own: Address, seen: Iterable[tuple[str, Address]]) -> Mapping:
    """How ``own`` is mapped, from what servers saw: (a server's IP address, what it saw)."""
    # A server on our side of the NAT sees no mapping, and tells nothing about it.
    beyond = [(server, mapped) for server, mapped in seen if mapped != own]
    if not beyond:
        return Mapping.NONE
    if len({mapped for _, mapped in beyond}) > 1:
        return Mapping.DEPENDENT
    if len({server for server, _ in beyond}) > 1:
        return Mapping.INDEPENDENT
    return Mapping.UNKNOWN


# --- one socket -----------------------------------------------------------------------------------


class _Receiver:
    """What a `StunProtocol` reports to; there is no connection behind this one."""

    def protocol_lost(self, protocol: StunProtocol) -> None: ...


class _Socket(StunProtocol):
    """A UDP socket, or an allocation, that only answers to questions are read from."""

    def __init__(self) -> None:
        super().__init__(cast("Connection", _Receiver()))

    def datagram_received(self, data: bytes | str, addr: tuple[Any, ...]) -> None:
        assert isinstance(data, bytes)
        if (message := parse_stun(data)) is None:
            return
        transaction = self.transactions.get(message.transaction_id)
        if transaction is not None and message.message_class in (
            stun.Class.RESPONSE,
            stun.Class.ERROR,
        ):
            transaction.response_received(message, (addr[0], addr[1]))

    @property
    def own(self) -> Address:
        """Its own address."""
        host, port = self.transport.get_extra_info("sockname")[:2]
        return host, port

    @property
    def family(self) -> int:
        """The address family of its own address."""
        return socket.AF_INET6 if ":" in self.own[0] else socket.AF_INET


@asynccontextmanager
async def _opened(address: str) -> AsyncIterator[_Socket | None]:
    """A socket at ``address``; None when it is gone since it was listed."""
    loop = asyncio.get_running_loop()
    try:
        _, protocol = await loop.create_datagram_endpoint(_Socket, local_addr=(address, 0))
    except OSError:
        yield None
        return
    host, port = protocol.own
    protocol.local_candidate = Candidate(
        foundation="1",
        component=1,
        transport="udp",
        priority=candidate_priority(1, "host"),
        host=host,
        port=port,
        type="host",
    )
    try:
        yield protocol
    finally:
        protocol.transport.abort()
        await protocol.close()


# --- one server -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Answer:
    """What one server said to one socket."""

    server: Server
    own: Address
    report: IceServerReport
    seen: tuple[tuple[str, Address], ...] = ()
    """As `mapping_of` takes it."""


async def _ask(server: Server, protocol: _Socket, timeout: float) -> _Answer:
    """Ask a server, and its other address (RFC 5780, section 4.3), what it sees of a socket."""
    began, own = perf_counter(), protocol.own
    try:
        async with asyncio.timeout(timeout):
            host, port = await resolve(server.host, server.port, protocol.family)
            mapped = await mapped_address(replace(server, host=host, port=port), protocol)
    except Exception as exc:  # noqa: BLE001 - whatever a server can bring about
        return _Answer(server, own, _report(server, exc, perf_counter() - began))
    took = perf_counter() - began
    seen = [(host, mapped)]
    with suppress(TimeoutError, ServerError, stun.TransactionError):  # it was to know more
        async with asyncio.timeout(min(_OTHER_TIMEOUT, timeout - took)):
            other = await _other_address((host, port), protocol)
            if other is not None:
                at = replace(server, host=other[0], port=other[1])
                seen.append((other[0], await mapped_address(at, protocol)))
    return _Answer(server, own, _report(server, mapped, took), tuple(seen))


async def _other_address(server: Address, protocol: _Socket) -> Address | None:
    request = stun.Message(message_method=stun.Method.BINDING, message_class=stun.Class.REQUEST)
    response, _ = await protocol.request(request, server)
    other: Address | None = response.attributes.get("OTHER-ADDRESS")
    if other is None or other[0] == server[0] or not _askable(other, server):
        return None
    return other


def _askable(other: Address, server: Address) -> bool:
    """Whether a server may send us there: not to where it could not be itself."""
    there, here = ipaddress.ip_address(other[0]), ipaddress.ip_address(server[0])
    return (
        there.version == here.version
        and other[1] > 0
        and not (there.is_unspecified or there.is_multicast)
        and (here.is_loopback or not there.is_loopback)
        and (here.is_private or not there.is_private)
    )


async def _try_allocation(server: Server, config: MeshConfig) -> IceServerReport:
    """Get an allocation (RFC 8656, section 7), and give it back."""
    began = perf_counter()
    try:
        async with asyncio.timeout(config.ice_server_timeout):
            protocol = await allocate(
                server, _Socket, families=[_FAMILIES[each] for each in config.address_families]
            )
    except Exception as exc:  # noqa: BLE001 - whatever a server can bring about
        return _report(server, exc, perf_counter() - began)
    took = perf_counter() - began
    try:
        host, port = protocol.transport.get_extra_info("sockname")[:2]
    finally:
        await release(protocol, _RELEASE)
    return _report(server, (host, port), took)


def _report(server: Server, found: Address | Exception, took: float) -> IceServerReport:
    if isinstance(found, Exception):
        outcome, detail = describe(found)
        return IceServerReport(
            url=server.url, outcome=outcome, detail=detail, address=None, took=took
        )
    return IceServerReport(
        url=server.url,
        outcome=IceServerOutcome.FOUND,
        detail="",
        address=_shown(found),
        took=took,
    )


def _families(server: Server) -> list[int]:
    """The address families that it may be reached by."""
    try:
        version = ipaddress.ip_address(server.host).version
    except ValueError:
        return list(_FAMILIES.values())
    return [_FAMILIES[f"ipv{version}"]]


# --- what it comes to -----------------------------------------------------------------------------


_TELLING = [
    IceServerOutcome.FOUND,
    IceServerOutcome.FAILED,
    IceServerOutcome.REFUSED,
    IceServerOutcome.TIMED_OUT,
    # A name may have addresses of one family only.
    IceServerOutcome.NAME_NOT_FOUND,
]
"""What STUN comes to, and what says most about the server first: an address of ours may be one
from which there is no way to it."""


def _best(server: Server, reports: list[IceServerReport]) -> IceServerReport:
    """Of what the server said to each of our addresses."""
    if not reports:
        error = ServerError(IceServerOutcome.FAILED, "this host has no address to ask it from")
        return _report(server, error, 0.0)
    return min(reports, key=lambda each: (_TELLING.index(each.outcome), each.took))


def _nat(own: Address, answers: list[_Answer]) -> Nat | None:
    seen = [saw for answer in answers if answer.own == own for saw in answer.seen]
    if not seen:
        return None
    shown = dict.fromkeys(_shown(mapped) for _, mapped in seen)
    return Nat(address=own[0], mapping=mapping_of(own, seen), seen_as=tuple(shown))


def _reflexive(answers: list[_Answer]) -> Iterable[FoundCandidate]:
    """Without the redundant ones (RFC 8445, section 5.1.3)."""
    return dict.fromkeys(
        FoundCandidate("srflx", answer.report.address, answer.own[0])
        for answer in answers
        if answer.server.kind == "stun" and answer.report.address is not None
        if answer.report.address != _shown(answer.own)
    )


def _shown(address: Address) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
