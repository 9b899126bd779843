"""STUN and TURN servers: coturn on loopback, and small ones that misbehave."""

from __future__ import annotations

import asyncio
import itertools
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal, cast

import pytest
from aioice import Candidate, stun
from aioice.ice import StunProtocol

from meshpeer.config import IceServer
from meshpeer.core.events import IceServerOutcome
from meshpeer.errors import ConfigError
from meshpeer.rtc import servers
from meshpeer.rtc.servers import (
    Server,
    ServerError,
    abort,
    allocate,
    describe,
    mapped_address,
    parse_servers,
    release,
    resolve,
)
from tests.coturn import Coturn, run_coturn
from tests.needs import require

HOST = "127.0.0.1"
IPV4 = (socket.AF_INET,)
TRANSPORTS: list[Literal["udp", "tcp", "tls"]] = ["udp", "tcp", "tls"]
Answer = Callable[[stun.Message], bytes | None]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Coturn]:
    """A coturn for all tests that leave it as it is."""
    with run_coturn(tmp_path_factory.mktemp("coturn")) as coturn:
        yield coturn


@pytest.fixture
def coturn(tmp_path: Path) -> Iterator[Coturn]:
    """A coturn that a test may end."""
    with run_coturn(tmp_path) as coturn:
        yield coturn


@pytest.fixture
def lose_patience(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From then on a request that is not answered is given up soon."""

    def now() -> None:
        monkeypatch.setattr(stun, "RETRY_RTO", 0.001)
        monkeypatch.setattr(stun, "RETRY_MAX", 2)

    return now


class Owner:
    """What a StunProtocol tells, instead of an ICE connection."""

    def __init__(self) -> None:
        self.data: asyncio.Queue[bytes] = asyncio.Queue()
        self.lost = asyncio.Event()

    def make_protocol(self) -> StunProtocol:
        return StunProtocol(cast(Any, self))

    def data_received(self, data: bytes, component: int) -> None:
        self.data.put_nowait(data)

    def protocol_lost(self, protocol: StunProtocol) -> None:
        self.lost.set()

    async def received(self, expected: bytes) -> None:
        while await self.data.get() != expected:
            pass


def only(server: IceServer) -> Server:
    (found,) = parse_servers([server])
    return found


def turn(port: int, transport: str = "udp", host: str = HOST) -> Server:
    login: dict[str, Any] = {"username": "user", "credential": "secret"}
    if transport == "tls":
        return only(IceServer(urls=f"turns:{host}:{port}", **login))
    return only(IceServer(urls=f"turn:{host}:{port}?transport={transport}", **login))


def located(protocol: StunProtocol, address: tuple[str, int], kind: str) -> StunProtocol:
    protocol.local_candidate = Candidate("1", 1, "udp", 1, address[0], address[1], kind)
    return protocol


@asynccontextmanager
async def host_protocol() -> AsyncIterator[StunProtocol]:
    transport, protocol = await asyncio.get_running_loop().create_datagram_endpoint(
        Owner().make_protocol, local_addr=(HOST, 0)
    )
    try:
        yield located(protocol, transport.get_extra_info("sockname"), "host")
    finally:
        await protocol.close()


async def allocation(server: Server, owner: Owner) -> StunProtocol:
    protocol = await allocate(server, owner.make_protocol, families=IPV4)
    return located(protocol, protocol.transport.get_extra_info("sockname"), "relay")


async def outcome(asked: Awaitable[object]) -> tuple[IceServerOutcome, str]:
    with pytest.raises(ServerError) as caught:
        await asked
    assert describe(caught.value) == (caught.value.outcome, caught.value.detail)
    return caught.value.outcome, caught.value.detail


def failed(server: Server) -> Coroutine[Any, Any, tuple[IceServerOutcome, str]]:
    return outcome(allocate(server, Owner().make_protocol, families=IPV4))


# --- servers that misbehave ---


class UdpServer(asyncio.DatagramProtocol):
    def __init__(self, *answers: Answer) -> None:
        self.answers = answers
        self.asked = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        self.asked.set()
        for answer in self.answers:
            if (reply := answer(stun.parse_message(data))) is not None:
                self.transport.sendto(reply, addr)


@asynccontextmanager
async def udp_server(*answers: Answer) -> AsyncIterator[tuple[int, UdpServer]]:
    transport, server = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: UdpServer(*answers), local_addr=(HOST, 0)
    )
    try:
        yield transport.get_extra_info("sockname")[1], server
    finally:
        transport.close()


def reply(
    kind: stun.Class = stun.Class.RESPONSE,
    method: stun.Method | None = None,
    **attributes: Any,
) -> Answer:
    def answer(request: stun.Message) -> bytes:
        return bytes(
            stun.Message(
                method or request.message_method,
                kind,
                request.transaction_id,
                {name.replace("_", "-"): value for name, value in attributes.items()},
            )
        )

    return answer


def refuse(code: int, reason: str = "No", **attributes: Any) -> Answer:
    return reply(stun.Class.ERROR, ERROR_CODE=(code, reason), **attributes)


def short_lifetime(request: stun.Message) -> bytes:
    """A LIFETIME of two bytes instead of four, over which aioice's parser stumbles."""
    head = bytes(stun.Message(request.message_method, stun.Class.RESPONSE, request.transaction_id))
    return head[:2] + b"\x00\x08" + head[4:] + b"\x00\x0d\x00\x02\x00\x01\x00\x00"


ALLOCATED: dict[str, Any] = {
    "LIFETIME": 600,
    "XOR_MAPPED_ADDRESS": (HOST, 4000),
    "XOR_RELAYED_ADDRESS": (HOST, 4001),
}


@asynccontextmanager
async def tcp_server(first: bytes | None) -> AsyncIterator[tuple[int, asyncio.Event]]:
    """Accepts; then says nothing, or ``first`` and hangs up."""
    accepted = asyncio.Event()
    open_ones: set[asyncio.StreamWriter] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_ones.add(writer)
        accepted.set()
        if first is not None:
            writer.write(first)
            writer.close()

    server = await asyncio.start_server(accept, HOST, 0)
    try:
        yield server.sockets[0].getsockname()[1], accepted
    finally:
        server.close()
        for writer in open_ones:
            writer.transport.abort()
        await server.wait_closed()


def closed_port(kind: socket.SocketKind) -> int:
    with socket.socket(type=kind) as sock:
        sock.bind((HOST, 0))
        return int(sock.getsockname()[1])


# --- addresses ---


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("stun:stun.example", ("stun", "stun.example", 3478, "udp")),
        ("stun:Stun.Example:19302", ("stun", "stun.example", 19302, "udp")),
        ("stun:192.0.2.1", ("stun", "192.0.2.1", 3478, "udp")),
        ("stun:[2001:DB8::0:1]:5000", ("stun", "2001:db8::1", 5000, "udp")),
        ("turn:turn.example", ("turn", "turn.example", 3478, "udp")),
        ("turn:turn.example?transport=udp", ("turn", "turn.example", 3478, "udp")),
        ("turn:turn.example:80?transport=tcp", ("turn", "turn.example", 80, "tcp")),
        ("turn:[::1]?transport=tcp", ("turn", "::1", 3478, "tcp")),
        ("turns:turn.example", ("turn", "turn.example", 5349, "tls")),
        ("turns:turn.example:443?transport=tcp", ("turn", "turn.example", 443, "tls")),
    ],
)
def test_urls_are_read_as_their_rfcs_say(url: str, expected: tuple[str, str, int, str]) -> None:
    server = only(IceServer(urls=url, username="user", credential="secret"))
    assert server.url == url
    assert (server.kind, server.host, server.port, server.transport) == expected
    login = ("user", "secret") if server.kind == "turn" else (None, None)
    assert (server.username, server.credential) == login
    assert "secret" not in repr(server)


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("stun:", "is not stun:host"),
        ("stun://stun.example", "is not stun:host"),
        ("stun:user@stun.example", "is not stun:host"),
        ("stun:stun example", "is not stun:host"),
        ("stun:stun.example\n", "is not stun:host"),
        ("stun:stun.\0example", "is not stun:host"),
        ("stun:2001:db8::1", "is not stun:host"),
        ("stun:stun.example:", "is not stun:host"),
        ("stun:stun.example:\u0661", "is not stun:host"),
        ("turn:turn.example?transport=tcp&more=1", "is not stun:host"),
        ("stun:[192.0.2.1]", "IPv6 address in brackets"),
        ("stun:[1:2]", "IPv6 address in brackets"),
        ("stun:stun.example:0", "between 1 and 65535"),
        ("stun:stun.example:65536", "between 1 and 65535"),
        ("stun:stun.example?transport=udp", "only turn: and turns: have"),
        ("turn:turn.example?transport=sctp", "neither udp nor tcp"),
        ("turns:turn.example?transport=udp", "DTLS"),
    ],
)
def test_a_url_that_is_wrong_is_named_and_the_credential_is_not(url: str, what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_servers([IceServer(urls=url, username="user", credential="secret")])
    assert repr(url) in str(caught.value)
    assert what in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_server_that_is_named_twice_is_asked_once() -> None:
    login: dict[str, Any] = {"username": "user", "credential": "secret"}
    found = parse_servers(
        [
            IceServer(urls=["stun:a.example", "turn:a.example"], **login),
            IceServer(urls="stun:A.example:3478"),
            IceServer(urls="turn:a.example?transport=udp", **login),
            IceServer(urls="turn:a.example?transport=tcp", **login),
            IceServer(urls="turn:a.example", username="user", credential="another"),
        ]
    )
    assert [server.url for server in found] == [
        "stun:a.example",
        "turn:a.example",
        "turn:a.example?transport=tcp",
        "turn:a.example",
    ]


def test_a_ca_file_is_looked_at_before_it_is_needed(tmp_path: Path) -> None:
    login: dict[str, Any] = {"username": "user", "credential": "secret"}
    missing, empty = tmp_path / "missing.pem", tmp_path / "empty.pem"
    empty.write_text("nothing")
    for path in (missing, empty):
        with pytest.raises(ConfigError, match=r"'turns:a\.example' has the ca_file .*\.pem"):
            parse_servers([IceServer(urls="turns:a.example", ca_file=str(path), **login)])
    context = ssl.create_default_context()
    server = IceServer(urls="turns:a.example", ca_file=str(missing), ssl_context=context, **login)
    assert only(server).ssl_context is context


# --- names ---


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A resolver that answers nothing before the test is over; the names it was asked for."""
    over = threading.Event()
    asked: list[str] = []

    def getaddrinfo(host: str, *_: object) -> list[Any]:
        asked.append(host)
        over.wait()
        raise socket.gaierror(socket.EAI_AGAIN, "try again")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    yield asked
    over.set()


async def test_addresses_are_not_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "getaddrinfo")
    assert await resolve("192.0.2.1", 1, socket.AF_INET) == ("192.0.2.1", 1)
    assert await resolve("2001:db8::1", 2, socket.AF_INET6) == ("2001:db8::1", 2)
    assert await resolve("2001:db8::1", 2, socket.AF_UNSPEC) == ("2001:db8::1", 2)
    assert await outcome(resolve("192.0.2.1", 1, socket.AF_INET6)) == (
        IceServerOutcome.FAILED,
        "192.0.2.1 is not an IPv6 address",
    )


async def test_localhost_is_found() -> None:
    assert await resolve("localhost", 7, socket.AF_INET) == (HOST, 7)


async def test_a_name_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(*_: object) -> list[Any]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert await outcome(resolve("nowhere.example", 7, socket.AF_INET)) == (
        IceServerOutcome.NAME_NOT_FOUND,
        "nowhere.example: Name or service not known",
    )


async def test_a_name_that_can_not_exist() -> None:
    found, _ = await outcome(resolve("a" * 64 + ".example", 7, socket.AF_INET))
    assert found is IceServerOutcome.NAME_NOT_FOUND


async def test_a_name_is_looked_up_once_for_all_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    asked: list[tuple[object, ...]] = []

    def getaddrinfo(*args: object) -> list[Any]:
        asked.append(args)
        go.wait()
        return [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", ("192.0.2.7", 0))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    first, second, third = (
        asyncio.ensure_future(resolve("one.example", port, socket.AF_INET)) for port in (1, 2, 3)
    )
    await asyncio.sleep(0)  # all three have asked
    second.cancel()
    await asyncio.wait([second])
    go.set()
    assert await first == ("192.0.2.7", 1)
    assert await third == ("192.0.2.7", 3)
    assert len(asked) == 1
    assert await resolve("one.example", 4, socket.AF_INET) == ("192.0.2.7", 4)
    assert len(asked) == 2


def test_a_resolver_that_hangs_keeps_nobody(hanging: list[str]) -> None:
    async def give_up() -> None:
        asking = asyncio.ensure_future(resolve("slow.example", 1, socket.AF_INET))
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.wait([asking])
        assert asking.cancelled()

    asyncio.run(give_up())
    asyncio.run(give_up())
    assert hanging == ["slow.example"]
    assert servers._lookups == {("slow.example", socket.AF_INET): []}


def test_a_resolver_that_hangs_does_not_keep_the_program() -> None:
    program = """
import asyncio, socket, threading
from meshpeer.rtc.servers import resolve

socket.getaddrinfo = lambda *_: threading.Event().wait()

async def give_up():
    asking = asyncio.ensure_future(resolve("slow.example", 1, socket.AF_INET))
    await asyncio.sleep(0)
    asking.cancel()

asyncio.run(give_up())
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


async def test_resolvers_that_hang_are_not_without_number(hanging: list[str]) -> None:
    asking = [asyncio.ensure_future(resolve(f"{n}.example", 1, socket.AF_INET)) for n in range(32)]
    await asyncio.sleep(0)
    found, detail = await outcome(resolve("more.example", 1, socket.AF_INET))
    assert (found, detail) == (IceServerOutcome.FAILED, "32 names are being looked up already")
    for task in asking:
        task.cancel()
    await asyncio.wait(asking)


# --- what went wrong ---


def transaction_failed(code: int, reason: str = "why") -> stun.TransactionFailed:
    return stun.TransactionFailed(
        stun.Message(
            stun.Method.ALLOCATE, stun.Class.ERROR, attributes={"ERROR-CODE": (code, reason)}
        )
    )


@pytest.mark.parametrize(
    ("exc", "expected"),
    [
        (TimeoutError(), IceServerOutcome.TIMED_OUT),
        (stun.TransactionTimeout(), IceServerOutcome.TIMED_OUT),
        (ConnectionRefusedError(111, "x"), IceServerOutcome.REFUSED),
        (transaction_failed(403), IceServerOutcome.REFUSED),
        (transaction_failed(437), IceServerOutcome.REFUSED),
        (transaction_failed(486), IceServerOutcome.REFUSED),
        (transaction_failed(508), IceServerOutcome.REFUSED),
        (transaction_failed(401), IceServerOutcome.WRONG_CREDENTIALS),
        (transaction_failed(431), IceServerOutcome.WRONG_CREDENTIALS),
        (transaction_failed(441), IceServerOutcome.WRONG_CREDENTIALS),
        (transaction_failed(500), IceServerOutcome.FAILED),
        (socket.gaierror(-2, "no"), IceServerOutcome.NAME_NOT_FOUND),
        (OSError(101, "Connect call failed"), IceServerOutcome.FAILED),
        (ValueError("what is this"), IceServerOutcome.FAILED),
    ],
)
def test_what_was_raised_is_classified(exc: Exception, expected: IceServerOutcome) -> None:
    assert describe(exc)[0] is expected


def test_what_went_wrong_is_said_in_words() -> None:
    assert describe(OSError(101, "Connect call failed"))[1] == "Network is unreachable"
    assert describe(ValueError("what is this"))[1] == "ValueError: what is this"
    assert describe(transaction_failed(300, "Try"))[1] == "the server answered 300 Try"
    noise = describe(transaction_failed(500, "\x1b[31m\n" * 1000))[1]
    assert noise.isprintable()
    assert len(noise) < 150
    assert describe(transaction_failed(486, "Full\0\0"))[1] == "486 Full"
    silent = stun.TransactionFailed(stun.Message(stun.Method.BINDING, stun.Class.ERROR))
    assert describe(silent) == (
        IceServerOutcome.FAILED,
        "the server answered 0 no error code",
    )


# --- STUN ---


async def test_a_stun_server_tells_our_address(shared: Coturn) -> None:
    async with host_protocol() as protocol:
        found = await mapped_address(only(shared.server("stun")), protocol)
        assert found == (HOST, protocol.local_candidate.port)
        by_name = only(shared.server("stun", host="localhost"))
        assert await mapped_address(by_name, protocol) == found


@pytest.mark.parametrize(
    ("answer", "expected", "detail"),
    [
        (reply(), IceServerOutcome.FAILED, "no mapped address"),
        (reply(MAPPED_ADDRESS=(HOST, 1)), IceServerOutcome.FAILED, "no mapped address"),
        (reply(XOR_MAPPED_ADDRESS=("0.0.0.0", 1)), IceServerOutcome.FAILED, "0.0.0.0"),
        (reply(XOR_MAPPED_ADDRESS=("224.0.0.1", 1)), IceServerOutcome.FAILED, "224.0.0.1"),
        (reply(XOR_MAPPED_ADDRESS=("192.0.2.1", 0)), IceServerOutcome.FAILED, "port 0"),
        (reply(XOR_MAPPED_ADDRESS=("2001:db8::1", 1)), IceServerOutcome.FAILED, "2001:db8::1"),
        (
            reply(method=stun.Method.ALLOCATE, XOR_MAPPED_ADDRESS=(HOST, 1)),
            IceServerOutcome.FAILED,
            "no mapped address",
        ),
        (refuse(500, "Broken"), IceServerOutcome.FAILED, "500 Broken"),
        (refuse(403), IceServerOutcome.REFUSED, "403 No"),
        (refuse(401), IceServerOutcome.WRONG_CREDENTIALS, "401 No"),
    ],
)
async def test_a_stun_server_that_answers_nonsense_gives_nothing(
    answer: Answer, expected: IceServerOutcome, detail: str
) -> None:
    async with udp_server(answer) as (port, _), host_protocol() as protocol:
        server = only(IceServer(urls=f"stun:{HOST}:{port}"))
        found, words = await outcome(mapped_address(server, protocol))
        assert found is expected
        assert detail in words
        assert not protocol.transactions


async def test_a_stun_server_that_does_not_answer(lose_patience: Callable[[], None]) -> None:
    lose_patience()
    async with udp_server(lambda _: b"\x00noise") as (port, _), host_protocol() as protocol:
        server = only(IceServer(urls=f"stun:{HOST}:{port}"))
        assert await outcome(mapped_address(server, protocol)) == (IceServerOutcome.TIMED_OUT, "")


async def test_asking_a_stun_server_can_be_cancelled() -> None:
    async with udp_server() as (port, server), host_protocol() as protocol:
        asking = asyncio.ensure_future(
            mapped_address(only(IceServer(urls=f"stun:{HOST}:{port}")), protocol)
        )
        await server.asked.wait()
        asking.cancel()
        await asyncio.wait([asking])
        assert asking.cancelled()
        assert not protocol.transactions


# --- TURN: what comes of asking ---


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_data_goes_through_two_allocations(shared: Coturn, transport: str) -> None:
    a, b = Owner(), Owner()
    server = only(shared.server(transport))
    here = await allocation(server, a)
    there = await allocation(server, b)
    here_at, there_at = (
        (each.local_candidate.host, each.local_candidate.port) for each in (here, there)
    )
    assert here.transport.get_extra_info("related_address")[0] == HOST
    sending = cast(Any, here.transport)
    await here.send_data(b"a permission", there_at)
    await asyncio.wait(sending.tasks() - {sending.client.refresh_task})
    await there.send_data(b"there to here", here_at)
    await a.received(b"there to here")
    for n in range(20):
        await here.send_data(b"%d" % n * n * 7, there_at)
    for n in range(1, 20):
        await b.received(b"%d" % n * n * 7)
    await release(here, 5)
    await release(there, 5)
    assert a.lost.is_set()
    assert b.lost.is_set()


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_ephemeral_credentials(tmp_path: Path, transport: str) -> None:
    with run_coturn(tmp_path, ephemeral=True) as coturn:
        await release(await allocation(only(coturn.server(transport)), Owner()), 5)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_wrong_credentials(shared: Coturn, transport: str) -> None:
    shared_server = shared.server(transport)
    server = IceServer(
        urls=shared_server.urls,
        username=shared.username,
        credential="not it",
        ca_file=shared_server.ca_file,
    )
    assert await failed(only(server)) == (
        IceServerOutcome.WRONG_CREDENTIALS,
        "401 Unauthorized",
    )


async def test_an_untrusted_certificate(shared: Coturn) -> None:
    server = only(shared.server("tls", trusted=False))
    assert await failed(server) == (
        IceServerOutcome.UNTRUSTED_CERTIFICATE,
        "self-signed certificate",
    )


async def test_a_certificate_for_another_name(
    shared: Coturn, monkeypatch: pytest.MonkeyPatch
) -> None:
    def getaddrinfo(*_: object) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", (HOST, 0))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    found, detail = await failed(only(shared.server("tls", host="elsewhere.example")))
    assert found is IceServerOutcome.UNTRUSTED_CERTIFICATE
    assert "elsewhere.example" in detail


async def test_tls_settings_of_ones_own_are_used(shared: Coturn) -> None:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    server = IceServer(
        urls=f"turns:{HOST}:{shared.tls_port}",
        username=shared.username,
        credential=shared.credential,
        ssl_context=context,
    )
    await release(await allocation(only(server), Owner()), 5)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_closed_port(transport: str) -> None:
    kind = socket.SOCK_DGRAM if transport == "udp" else socket.SOCK_STREAM
    assert await failed(turn(closed_port(kind), transport)) == (
        IceServerOutcome.REFUSED,
        "nothing listens there",
    )


async def test_a_name_that_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(*_: object) -> list[Any]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    found, _ = await outcome(
        allocate(
            turn(1, host="nowhere.example"),
            Owner().make_protocol,
            families=(socket.AF_INET, socket.AF_INET6),
        )
    )
    assert found is IceServerOutcome.NAME_NOT_FOUND


async def test_a_server_that_does_not_answer(lose_patience: Callable[[], None]) -> None:
    lose_patience()
    async with udp_server() as (port, _):
        assert await failed(turn(port)) == (IceServerOutcome.TIMED_OUT, "")


@pytest.mark.parametrize(
    ("answer", "expected", "detail"),
    [
        (refuse(403), IceServerOutcome.REFUSED, "403 No"),
        (refuse(437), IceServerOutcome.REFUSED, "437 No"),
        (refuse(508), IceServerOutcome.REFUSED, "508 No"),
        (refuse(401), IceServerOutcome.WRONG_CREDENTIALS, "401 No"),
        (refuse(441), IceServerOutcome.WRONG_CREDENTIALS, "441 No"),
        (refuse(300), IceServerOutcome.FAILED, "300 No"),
        (reply(), IceServerOutcome.FAILED, "missing LIFETIME"),
        (
            reply(**{**ALLOCATED, "LIFETIME": 0}),
            IceServerOutcome.FAILED,
            "lasts 0 seconds",
        ),
        (
            reply(**{**ALLOCATED, "XOR_RELAYED_ADDRESS": ("0.0.0.0", 4001)}),
            IceServerOutcome.FAILED,
            "relayed address 0.0.0.0",
        ),
        (
            reply(**{**ALLOCATED, "XOR_RELAYED_ADDRESS": (HOST, 0)}),
            IceServerOutcome.FAILED,
            "port 0",
        ),
    ],
)
async def test_a_turn_server_that_answers_nonsense_gives_nothing(
    answer: Answer, expected: IceServerOutcome, detail: str
) -> None:
    async with udp_server(answer) as (port, _):
        owner = Owner()
        found, words = await outcome(allocate(turn(port), owner.make_protocol, families=IPV4))
        assert found is expected
        assert detail in words
        assert not owner.lost.is_set(), "it was never told that there was one"


async def test_a_port_that_the_server_remembers_is_not_used_again() -> None:
    answers = [refuse(437), refuse(437), reply(**ALLOCATED), reply(LIFETIME=0)]

    def answer(request: stun.Message) -> bytes | None:
        return answers.pop(0)(request)

    async with udp_server(answer) as (port, _):
        await release(await allocation(turn(port), Owner()), 5)
    assert not answers


async def test_noise_is_passed_over() -> None:
    noise: list[Answer] = [
        lambda _: b"x",
        lambda _: b"\x40\x00\x00\x09ab",
        lambda _: bytes(2000),
        short_lifetime,
    ]
    async with udp_server(*noise, reply(**ALLOCATED)) as (port, _):
        protocol = await allocation(turn(port), Owner())
        assert protocol.local_candidate.port == 4001
        await release(protocol, 5)


@pytest.mark.parametrize("first", [b"", b"\x01\x13\xff\xf0", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
async def test_a_server_that_hangs_up(first: bytes) -> None:
    async with tcp_server(first) as (port, _):
        found, detail = await failed(turn(port, "tcp"))
        assert found is IceServerOutcome.FAILED
        assert detail in ("the server closed the connection", "Connection reset by peer")


async def test_a_server_that_does_not_speak_tls() -> None:
    async with tcp_server(b"HTTP/1.1 400 Bad Request\r\n\r\n") as (port, _):
        found, _ = await failed(turn(port, "tls"))
        assert found is IceServerOutcome.FAILED


async def test_another_address_family_is_tried(shared: Coturn) -> None:
    # It listens on 127.0.0.1 alone.
    server = only(shared.server("tcp", host="localhost"))
    protocol = await allocate(
        server, Owner().make_protocol, families=(socket.AF_INET6, socket.AF_INET)
    )
    await release(protocol, 5)


async def test_the_first_address_says_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    async with udp_server(refuse(508)) as (port, _):

        async def addresses(host: str, number: int, family: int) -> tuple[str, int]:
            return HOST, port if family == socket.AF_INET else closed_port(socket.SOCK_DGRAM)

        monkeypatch.setattr(servers, "resolve", addresses)
        both = (socket.AF_INET, socket.AF_INET6)
        server = turn(1, host="two.example")
        _, detail = await outcome(allocate(server, Owner().make_protocol, families=both))
        assert detail == "508 No"


async def test_what_is_said_is_about_the_address_that_was_asked() -> None:
    server = turn(closed_port(socket.SOCK_DGRAM))
    both = (socket.AF_INET, socket.AF_INET6)
    for families in (both, both[::-1]):
        found, _ = await outcome(allocate(server, Owner().make_protocol, families=families))
        assert found is IceServerOutcome.REFUSED
    found, detail = await outcome(
        allocate(server, Owner().make_protocol, families=[socket.AF_INET6])
    )
    assert (found, detail) == (IceServerOutcome.FAILED, f"{HOST} is not an IPv6 address")


# --- TURN: the end ---


async def test_what_is_released_is_free_for_others(tmp_path: Path) -> None:
    with run_coturn(tmp_path, "user-quota=1") as coturn:
        server = only(coturn.server("tcp"))
        for _ in range(3):
            protocol = await allocation(server, Owner())
            assert await failed(server) == (
                IceServerOutcome.REFUSED,
                "486 Allocation Quota Reached",
            )
            await release(protocol, 5)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_release_may_be_called_again_and_ends_everything(
    shared: Coturn, transport: str
) -> None:
    owner = Owner()
    protocol = await allocation(only(shared.server(transport)), owner)
    await release(protocol, 5)
    assert owner.lost.is_set()
    await release(protocol, 5)
    abort(protocol)
    protocol.transport.sendto(b"ignored", (HOST, 9))
    assert all(task.done() for task in cast(Any, protocol.transport).tasks())
    await protocol.close()


@pytest.mark.parametrize("end", [Coturn.freeze, Coturn.kill])
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_release_ends_whatever_the_server_does(
    coturn: Coturn, transport: str, end: Callable[[Coturn], None]
) -> None:
    owner = Owner()
    protocol = await allocation(only(coturn.server(transport)), owner)
    end(coturn)
    await protocol.send_data(b"waits for a channel", (HOST, 9))
    await protocol.send_data(b"waits for it too", (HOST, 9))
    await release(protocol, 0.05)
    assert owner.lost.is_set()
    # What `no_leaks` sees later has to be so at once.
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_aborting_tells_the_owner_and_waits_for_nobody(
    coturn: Coturn, transport: str
) -> None:
    owner = Owner()
    protocol = await allocation(only(coturn.server(transport)), owner)
    coturn.freeze()
    abort(protocol)
    await owner.lost.wait()
    await release(protocol, 5)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_closing_by_aioice_waits_for_nobody(coturn: Coturn, transport: str) -> None:
    protocol = await allocation(only(coturn.server(transport)), Owner())
    coturn.freeze()
    await protocol.close()
    await release(protocol, 5)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_release_can_be_cancelled_at_every_step(coturn: Coturn, transport: str) -> None:
    protocols = [await allocation(only(coturn.server(transport)), Owner()) for _ in range(8)]
    coturn.freeze()
    for steps, protocol in enumerate(protocols, 1):
        await protocol.send_data(b"waits for a channel", (HOST, 9))
        releasing = asyncio.ensure_future(release(protocol, 600))
        for _ in range(steps):
            await asyncio.sleep(0)
        releasing.cancel()
        await asyncio.wait([releasing])
        assert releasing.cancelled()
        await release(protocol, 600)  # it is over, so this has nothing to wait for


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_allocating_can_be_cancelled_at_every_step(shared: Coturn, transport: str) -> None:
    server = only(shared.server(transport))
    for steps in itertools.count():
        owner = Owner()
        allocating = asyncio.ensure_future(allocation(server, owner))
        for _ in range(steps):
            await asyncio.sleep(0)
        if allocating.done():
            await release(await allocating, 5)
            break
        allocating.cancel()
        await asyncio.wait([allocating])
        assert allocating.cancelled()
        assert not owner.lost.is_set()
    assert steps > 5


@pytest.mark.parametrize("transport", ["tcp", "tls"])
async def test_a_server_that_accepts_and_says_nothing_takes_until_it_is_given_up(
    transport: str,
) -> None:
    async with tcp_server(None) as (port, accepted):
        asking = asyncio.ensure_future(failed(turn(port, transport)))
        await accepted.wait()
        asking.cancel()
        await asyncio.wait([asking])
        assert asking.cancelled()


@pytest.mark.parametrize("transport", ["tcp", "tls"])
async def test_a_server_that_goes_is_noticed_at_once(coturn: Coturn, transport: str) -> None:
    owner = Owner()
    protocol = await allocation(only(coturn.server(transport)), owner)
    coturn.kill()
    await owner.lost.wait()
    await asyncio.wait(cast(Any, protocol.transport).tasks())  # nothing goes on without a server
    await release(protocol, 5)


async def test_a_udp_server_that_goes_is_noticed_when_something_is_sent(coturn: Coturn) -> None:
    owner = Owner()
    protocol = await allocation(only(coturn.server("udp")), owner)
    coturn.kill()
    await protocol.send_data(b"is anybody there", (HOST, 9))
    await owner.lost.wait()
    await release(protocol, 5)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_refresh_that_fails_ends_the_allocation(
    coturn: Coturn, transport: str, lose_patience: Callable[[], None]
) -> None:
    owner = Owner()
    protocol = await allocation(only(coturn.server(transport)), owner)
    coturn.freeze()
    lose_patience()
    client = cast(Any, protocol.transport).client
    await client.refresh(0)
    await owner.lost.wait()
    await release(protocol, 5)


async def test_a_server_that_goes_with_its_answer_is_not_asked_again(coturn: Coturn) -> None:
    owner = Owner()
    protocol = await allocation(only(coturn.server("udp")), owner)
    coturn.freeze()
    await protocol.send_data(b"waits for a channel", (HOST, 9))
    await asyncio.sleep(0)  # it asks for one
    client = cast(Any, protocol.transport).client
    ((transaction_id, transaction),) = client.transactions.items()
    stale = refuse(438, "Stale nonce", NONCE=b"another")
    request = stun.Message(stun.Method.CHANNEL_BIND, stun.Class.REQUEST, transaction_id)
    abort(protocol)
    transaction.response_received(stun.parse_message(stale(request) or b""), (HOST, coturn.port))
    await owner.lost.wait()
    assert not client.transactions
    await release(protocol, 5)


async def test_an_allocation_that_is_refreshed_to_nothing_ends() -> None:
    def answer(request: stun.Message) -> bytes | None:
        if request.message_method is stun.Method.ALLOCATE:
            return reply(**ALLOCATED)(request)
        return reply(LIFETIME=0)(request)

    owner = Owner()
    async with udp_server(answer) as (port, _):
        protocol = await allocation(turn(port), owner)
        await cast(Any, protocol.transport).client.refresh(0)
        await owner.lost.wait()
        await release(protocol, 5)


@pytest.mark.parametrize("transport", ["tcp", "tls"])
async def test_what_a_slow_server_does_not_take_is_dropped(coturn: Coturn, transport: str) -> None:
    protocol = await allocation(only(coturn.server(transport)), Owner())
    relayed = cast(Any, protocol.transport)

    async def send(data: bytes) -> None:
        await protocol.send_data(data, (HOST, 9))
        await asyncio.wait(relayed.tasks() - {relayed.client.refresh_task})

    await send(b"binds a channel")
    coturn.freeze()
    sizes = []
    for _ in range(2000):
        await send(bytes(16_000))
        sizes.append(relayed.client.transport.get_write_buffer_size())
    assert 200_000 < max(sizes) < 400_000
    await release(protocol, 0.05)


def test_the_private_parts_are_there() -> None:
    for owner, name in servers.PRIVATE_PARTS:
        assert hasattr(owner, name) or (
            isinstance(owner, type) and name in owner.__init__.__code__.co_names  # type: ignore[misc]
        ), f"{owner!r} has no {name}"


def test_a_missing_program_skips_a_test_or_fails_it(monkeypatch: pytest.MonkeyPatch) -> None:
    require("openssl")
    monkeypatch.delenv("MESHPEER_NO_SKIPS", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no-such-program"):
        require("openssl", "no-such-program")
    monkeypatch.setenv("MESHPEER_NO_SKIPS", "1")
    with pytest.raises(pytest.fail.Exception, match="no-such-program"):
        require("openssl", "no-such-program")
