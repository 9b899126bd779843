"""Asking STUN and TURN servers, each with an outcome of its own.

aioice asks one server of each kind, gives up all of them after the same five seconds, and keeps to
itself why one gave nothing. Here every server is asked by a call of its own, which raises what came
of it. aioice's protocols do the speaking; what is added to them is the end: a server that refuses,
hangs up or falls silent is noticed, and leaves no task, socket, timer or thread.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from ipaddress import ip_address
from typing import Any, Literal

from aioice import stun, turn
from aioice.ice import StunProtocol

from meshpeer.config import IceServer
from meshpeer.core.events import IceServerOutcome
from meshpeer.errors import ConfigError

__all__ = [
    "PRIVATE_PARTS",
    "Server",
    "ServerError",
    "abort",
    "allocate",
    "describe",
    "mapped_address",
    "parse_servers",
    "parse_stun",
    "release",
    "resolve",
]

PRIVATE_PARTS: tuple[tuple[object, str], ...] = (
    (turn, "DEFAULT_ALLOCATION_LIFETIME"),
    (turn, "DEFAULT_CHANNEL_REFRESH_TIME"),
    (turn, "UDP_SOCKET_BUFFER_SIZE"),
    (StunProtocol, "request"),
    (StunProtocol, "connection_lost"),
    (stun.Transaction, "_Transaction__future"),
    (turn.TurnClientMixin, "refresh"),
    (turn.TurnClientMixin, "refresh_task"),
    (turn.TurnClientMixin, "relayed_address"),
    (turn.TurnClientMixin, "request"),
    (turn.TurnClientMixin, "request_with_retry"),
    (turn.TurnClientMixin, "transactions"),
    (turn.TurnClientTcpProtocol, "_send"),
    (turn.TurnClientTcpProtocol, "data_received"),
    (turn.TurnClientUdpProtocol, "_send"),
    (turn.TurnTransport, "_connect"),
    (turn.TurnTransport, "_TurnTransport__send_tasks"),
)
"""What is used of aioice without being documented there: a module or a class, and a name that it
has or, for a class, that its ``__init__`` sets."""

_VERSIONS = {socket.AF_INET: 4, socket.AF_INET6: 6}
_FAMILIES = {version: family for family, version in _VERSIONS.items()}

_MAX_LOOKUPS = 32
"""Names that may be under way at once: one that hangs keeps its thread, and a relay names some."""


@dataclass(frozen=True, slots=True)
class Server:
    """One address of a STUN or TURN server. Two that mean the same are equal."""

    url: str = field(compare=False)
    """As it was given."""
    kind: Literal["stun", "turn"]
    host: str
    """A name, or an IP address without brackets."""
    port: int
    transport: Literal["udp", "tcp", "tls"]
    username: str | None = None
    credential: str | None = field(default=None, repr=False)
    ca_file: str | None = None
    ssl_context: ssl.SSLContext | None = field(default=None, repr=False)


class ServerError(Exception):
    """What came of asking a server, when it gave nothing. It stays inside `meshpeer.rtc`."""

    def __init__(self, outcome: IceServerOutcome, detail: str) -> None:
        super().__init__(f"{outcome}: {detail}" if detail else str(outcome))
        self.outcome = outcome
        self.detail = detail


# --- addresses ---

_URI = re.compile(
    r"(?P<scheme>stun|turns?):"
    r"(?:\[(?P<literal>[0-9A-Fa-f:.]+)\]|(?P<host>[^\s\[\]:/?#@%\\\0]+))"
    r"(?::(?P<port>[0-9]{1,5}))?"
    r"(?:\?transport=(?P<transport>[a-z]+))?",
    re.ASCII,
)


def parse_servers(servers: Sequence[IceServer]) -> tuple[Server, ...]:
    """Every address of ``servers`` in order, each once (RFC 7064, RFC 7065).

    Without a port: 3478, for ``turns:`` 5349. Raises `ConfigError`, which names the URL.
    """
    found: dict[Server, None] = {}
    for server in servers:
        for url in [server.urls] if isinstance(server.urls, str) else server.urls:
            found.setdefault(_parse(url, server))
    return tuple(found)


def _parse(url: str, server: IceServer) -> Server:
    def wrong(what: str) -> ConfigError:
        return ConfigError(f"IceServer.urls: {url!r} {what}")

    match = _URI.fullmatch(url)
    if match is None:
        raise wrong("is not stun:host[:port] or turn[s]:host[:port][?transport=udp|tcp]")
    scheme, literal, host, port, transport = match.groups()
    if literal is not None:
        try:
            address = ip_address(literal)
        except ValueError:
            address = None
        if address is None or address.version != 6:
            raise wrong("has something else than an IPv6 address in brackets")
        host = str(address)
    host = host.lower()
    number = int(port) if port else 5349 if scheme == "turns" else 3478
    if not 1 <= number <= 65535:
        raise wrong("has a port that is not between 1 and 65535")
    if scheme == "stun":
        if transport is not None:
            raise wrong("has a transport, which only turn: and turns: have")
        return Server(url, "stun", host, number, "udp")
    if transport not in (None, "udp", "tcp"):
        raise wrong("has a transport that is neither udp nor tcp")
    login = (server.username, server.credential)
    if scheme == "turn":
        return Server(url, "turn", host, number, "tcp" if transport == "tcp" else "udp", *login)
    if transport == "udp":
        raise wrong("asks for TURN over DTLS; turns: goes over TCP only")
    ca_file = None if server.ssl_context is not None else server.ca_file
    if ca_file is not None:
        try:
            _trusting(ca_file)
        except OSError as exc:  # ssl.SSLError is one
            raise wrong(f"has the ca_file {ca_file!r}, which can't be used: {_words(exc)}") from exc
    return Server(url, "turn", host, number, "tls", *login, ca_file, server.ssl_context)


def _trusting(ca_file: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=ca_file)


@cache
def _trusting_as_the_system() -> ssl.SSLContext:
    # Kept: reading the system's certificates takes tens of milliseconds.
    return ssl.create_default_context()


def _tls_settings(server: Server) -> ssl.SSLContext:
    if server.ssl_context is not None:
        return server.ssl_context
    return _trusting_as_the_system() if server.ca_file is None else _trusting(server.ca_file)


# --- names ---

_Answer = tuple[str | None, str]
"""An address, or None and the reason."""
_Waiter = tuple[asyncio.AbstractEventLoop, asyncio.Future[_Answer]]

_lookups: dict[tuple[str, int], list[_Waiter]] = {}
"""Who waits for the names that are being looked up."""
_lookups_lock = threading.Lock()


async def resolve(host: str, port: int, family: int) -> tuple[str, int]:
    """An address of ``host`` in an address family (``socket.AF_INET`` …), and the port.

    An IP address is returned at once. Raises `ServerError`. Has no deadline; cancelling it costs
    nothing: the thread that looks the name up is a daemon, and ends with the system's answer.
    """
    try:
        literal = ip_address(host)
    except ValueError:
        pass
    else:
        if family not in (socket.AF_UNSPEC, _FAMILIES[literal.version]):
            raise ServerError(
                IceServerOutcome.FAILED, f"{host} is not an IPv{10 - literal.version} address"
            )
        return str(literal), port
    loop = asyncio.get_running_loop()
    waiter: _Waiter = (loop, loop.create_future())
    with _lookups_lock:
        waiters = _lookups.get((host, family))
        if waiters is None:
            if len(_lookups) >= _MAX_LOOKUPS:
                raise ServerError(
                    IceServerOutcome.FAILED, f"{_MAX_LOOKUPS} names are being looked up already"
                )
            # Not the loop's executor: `asyncio.run` waits for its threads before it returns.
            threading.Thread(
                target=_look_up, args=(host, family), name=f"look up {host}", daemon=True
            ).start()
            waiters = _lookups[host, family] = []
        waiters.append(waiter)
    try:
        address, reason = await waiter[1]
    finally:
        with _lookups_lock:
            if waiter in waiters:
                waiters.remove(waiter)
    if address is None:
        raise ServerError(IceServerOutcome.NAME_NOT_FOUND, reason)
    return address, port


def _look_up(host: str, family: int) -> None:
    answer: _Answer
    try:
        found = socket.getaddrinfo(host, None, family, socket.SOCK_DGRAM)
        answer = (str(found[0][4][0]), "")
    except (OSError, ValueError) as exc:  # ValueError: it is no name at all (IDNA)
        answer = (None, f"{host}: {_words(exc)}")
    with _lookups_lock:
        waiters = _lookups.pop((host, family))
        for loop, future in waiters:
            with suppress(RuntimeError):  # the loop is closed, so nobody waits
                loop.call_soon_threadsafe(_answer, future, answer)


def _answer(future: asyncio.Future[_Answer], answer: _Answer) -> None:
    if not future.done():
        future.set_result(answer)


# --- what went wrong ---

_REFUSALS = {403, 437, 486, 508}
"""Forbidden, allocation mismatch, quota reached, insufficient capacity (RFC 8656, section 19)."""
_WRONG_CREDENTIALS = {401, 431, 441}
"""Unauthenticated after the credentials were given, integrity check failure, wrong credentials."""


def describe(exc: BaseException) -> tuple[IceServerOutcome, str]:
    """What ``exc``, raised when a server was asked, says about the server; the text may be empty.

    ``TimeoutError`` is the caller's deadline.
    """
    match exc:
        case ServerError():
            return exc.outcome, exc.detail
        case TimeoutError() | stun.TransactionTimeout():
            return IceServerOutcome.TIMED_OUT, ""
        case stun.TransactionFailed():
            code, reason = exc.response.attributes.get("ERROR-CODE", (0, "no error code"))
            # The server's words, within bounds; coturn's end with padding.
            reason = reason.rstrip("\0")
            words = f"{code} {reason}" if reason.isprintable() else f"{code} {reason!r}"
            if code in _WRONG_CREDENTIALS:
                return IceServerOutcome.WRONG_CREDENTIALS, words[:100]
            if code in _REFUSALS:
                return IceServerOutcome.REFUSED, words[:100]
            return IceServerOutcome.FAILED, f"the server answered {words[:100]}"
        case ssl.SSLCertVerificationError():
            return IceServerOutcome.UNTRUSTED_CERTIFICATE, exc.verify_message
        case ConnectionRefusedError():
            return IceServerOutcome.REFUSED, "nothing listens there"
        case socket.gaierror():
            return IceServerOutcome.NAME_NOT_FOUND, _words(exc)
        case _:
            return IceServerOutcome.FAILED, _words(exc)


def _words(exc: BaseException) -> str:
    if isinstance(exc, OSError) and not isinstance(exc, (ssl.SSLError, socket.gaierror)):
        # asyncio's text says which of its calls failed.
        return os.strerror(exc.errno) if exc.errno else str(exc) or type(exc).__name__
    if isinstance(exc, OSError) and exc.strerror:
        return exc.strerror
    return f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__


def _failed(exc: BaseException) -> ServerError:
    return ServerError(*describe(exc))


def _check_address(what: str, address: tuple[str, int], version: int | None = None) -> None:
    ip = ip_address(address[0])
    if version not in (None, ip.version) or ip.is_unspecified or ip.is_multicast or not address[1]:
        raise ServerError(
            IceServerOutcome.FAILED,
            f"the server answered with the {what} address {address[0]} port {address[1]}",
        )


# --- STUN ---


def parse_stun(data: bytes) -> stun.Message | None:
    """The STUN message that a datagram is, or None when it is none."""
    try:
        return stun.parse_message(data)
    except Exception:  # noqa: BLE001 - aioice's parser raises what comes, struct.error for one
        return None


async def mapped_address(server: Server, protocol: StunProtocol) -> tuple[str, int]:
    """The address and port of ``protocol``'s socket as ``server`` sees them (RFC 8489, section 5).

    Asked over that socket itself, and again as RFC 8489 (section 6.2.1) says, for 63 s if nobody
    answers. Raises `ServerError`. Cancel it before the socket is closed; that leaves nothing.
    """
    version = ip_address(protocol.local_candidate.host).version
    address = await resolve(server.host, server.port, _FAMILIES[version])
    request = stun.Message(message_method=stun.Method.BINDING, message_class=stun.Class.REQUEST)
    try:
        response, _ = await protocol.request(request, address)
    except (OSError, stun.TransactionError) as exc:
        raise _failed(exc) from exc
    mapped: tuple[str, int] | None = response.attributes.get("XOR-MAPPED-ADDRESS")
    if mapped is None or response.message_method is not stun.Method.BINDING:
        raise ServerError(IceServerOutcome.FAILED, "the server's answer has no mapped address")
    _check_address("mapped", mapped, version)
    return mapped


# --- TURN ---


class _Client(turn.TurnClientMixin):
    """A TURN client that knows when it is over, and then waits for nothing any more."""

    transport: asyncio.Transport | asyncio.DatagramTransport

    def __init__(self, server: Server, address: tuple[str, int]) -> None:
        super().__init__(
            address,
            server.username,
            server.credential,
            turn.DEFAULT_ALLOCATION_LIFETIME,
            turn.DEFAULT_CHANNEL_REFRESH_TIME,
        )
        self.ended = asyncio.get_running_loop().create_future()
        """Done when its socket is closed."""

    def connection_lost(self, exc: Exception | None) -> None:
        # aioice would go on: the refresh for ever, each request for a minute.
        if self.refresh_task is not None:
            self.refresh_task.cancel()
        self.fail(exc)
        if not self.ended.done():
            self.ended.set_result(None)
        super().connection_lost(exc)

    def fail(self, exc: Exception | None) -> None:
        """End the requests under way."""
        if not isinstance(exc, ConnectionError):  # which is what aioice expects
            reason = "the server closed the connection" if exc is None else _words(exc)
            exc = ConnectionResetError(reason)
        for transaction in self.transactions.values():
            future: asyncio.Future[Any] = getattr(transaction, "_Transaction__future")  # noqa: B009
            if not future.done():
                future.set_exception(exc)

    def datagram_received(self, data: bytes | str, addr: tuple[str, int]) -> None:
        # What aioice's parser raises, besides the ValueError that aioice handles, for an attribute
        # that is too short.
        with suppress(struct.error):
            super().datagram_received(data, addr)

    async def request(self, request: stun.Message) -> tuple[stun.Message, tuple[str, int]]:
        if self.ended.done():  # between an answer and what follows it
            raise ConnectionResetError("the connection is closed")
        return await super().request(request)

    async def request_with_retry(
        self, request: stun.Message
    ) -> tuple[stun.Message, tuple[str, int]]:
        response, addr = await super().request_with_retry(request)
        if request.attributes.get("LIFETIME") and response.attributes.get("LIFETIME") == 0:
            # It would be refreshed as fast as the server answers.
            raise ConnectionError("the server gave an allocation that lasts 0 seconds")
        if "XOR-RELAYED-ADDRESS" in response.attributes:
            _check_address("relayed", response.attributes["XOR-RELAYED-ADDRESS"])
        return response, addr

    async def refresh(self, time_to_expiry: int) -> None:
        await super().refresh(time_to_expiry)
        # It failed, so the allocation ends. aioice closes, which over TLS waits for the server.
        self.transport.abort()


class _UdpClient(_Client, turn.TurnClientUdpProtocol):
    transport: asyncio.DatagramTransport

    def error_received(self, exc: Exception) -> None:
        # An ICMP message. The one that nothing listens there means that the allocation is gone as
        # well; others may pass, but are the answer when nothing is allocated yet.
        if self.relayed_address is None or isinstance(exc, ConnectionRefusedError):
            self.fail(exc)
            self.transport.abort()


class _TcpClient(_Client, turn.TurnClientTcpProtocol):
    transport: asyncio.Transport

    def _send(self, data: bytes) -> None:
        # A full UDP socket drops as well. Those who send here judge the path by what arrives.
        if self.transport.get_write_buffer_size() < turn.UDP_SOCKET_BUFFER_SIZE:
            super()._send(data)


class _RelayedTransport(turn.TurnTransport):
    """An allocation as a datagram transport, which can be given up at once."""

    def __init__(self, client: _UdpClient | _TcpClient) -> None:
        super().__init__(client)
        self.client = client

    def abort(self) -> None:
        """Close the socket at once, whatever the server does."""
        self.client.transport.abort()

    def close(self) -> None:
        """What aioice calls. It does not wait for the server: `release` does."""
        self.abort()

    def is_closing(self) -> bool:
        return self.client.transport.is_closing()

    def tasks(self) -> set[asyncio.Task[None]]:
        """Those that wait to send, and the one that keeps the allocation."""
        tasks: set[asyncio.Task[None]] = set(getattr(self, "_TurnTransport__send_tasks"))  # noqa: B009
        if self.client.refresh_task is not None:
            tasks.add(self.client.refresh_task)
        return tasks


async def allocate(
    server: Server,
    make_protocol: Callable[[], StunProtocol],
    *,
    families: Sequence[socket.AddressFamily],
) -> StunProtocol:
    """A TURN allocation for UDP (RFC 8656), asked for over UDP, TCP or TLS.

    ``families``: the address families by which the server may be reached, in order; another is
    tried when one leads nowhere. Returns what ``make_protocol`` made, with the allocation as its
    ``transport`` (``get_extra_info``: ``sockname`` is the relayed address, ``related_address`` the
    mapped one). Its ``connection_lost`` is called when the allocation is over; `release` must be
    called in any case. Raises `ServerError`. Has no deadline; cancelling it leaves nothing here.
    """
    unresolved: ServerError | None = None
    failure: ServerError | None = None
    for family in families:
        try:
            address = await resolve(server.host, server.port, family)
        except ServerError as exc:
            unresolved = unresolved or exc
            continue
        try:
            return await _allocate(server, address, make_protocol)
        except ServerError as exc:
            failure = failure or exc
    raise (
        failure
        or unresolved
        or ServerError(IceServerOutcome.FAILED, "there is no address family to reach it by")
    )


async def _allocate(
    server: Server, address: tuple[str, int], make_protocol: Callable[[], StunProtocol]
) -> StunProtocol:
    tries = 3
    while True:
        tries -= 1
        try:
            return await _ask(server, address, make_protocol)
        except (OSError, stun.TransactionError) as exc:
            # Allocation mismatch: our port was somebody's before whom the server remembers, coturn
            # for a second after a release. Another socket has another (RFC 8656, section 7.4).
            mismatch = isinstance(exc, stun.TransactionFailed) and exc.response.error_code == 437
            if not mismatch or not tries:
                raise _failed(exc) from exc


async def _ask(
    server: Server, address: tuple[str, int], make_protocol: Callable[[], StunProtocol]
) -> StunProtocol:
    loop = asyncio.get_running_loop()
    inner: asyncio.Transport | asyncio.DatagramTransport | None = None
    client: _UdpClient | _TcpClient
    try:
        if server.transport == "udp":
            inner, client = await loop.create_datagram_endpoint(
                lambda: _UdpClient(server, address), remote_addr=address
            )
            inner.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_RCVBUF, turn.UDP_SOCKET_BUFFER_SIZE
            )
        else:
            inner, client = await loop.create_connection(
                lambda: _TcpClient(server, address), *address
            )
            if server.transport == "tls":
                # In two steps, so that there is something to abort in the middle of the handshake.
                tls = await loop.start_tls(
                    inner, client, _tls_settings(server), server_hostname=server.host
                )
                assert tls is not None
                client.connection_made(tls)
        protocol = make_protocol()
        transport = _RelayedTransport(client)
        await transport._connect(protocol)
    except BaseException:
        if inner is not None:
            inner.abort()
        raise
    return protocol


def abort(protocol: StunProtocol) -> None:
    """Give up at once what `allocate` returned. Its ``connection_lost`` is called soon after."""
    _transport(protocol).abort()


async def release(protocol: StunProtocol, timeout: float) -> None:
    """Give the allocation back to its server (RFC 8656, section 8), and leave nothing.

    The server's answer is waited for ``timeout`` seconds at most; without it the allocation ends by
    itself within ten minutes. Cancelling it leaves nothing either, and doesn't wait for the server.
    May be called more than once.
    """
    transport = _transport(protocol)
    try:
        if not transport.is_closing():
            request = stun.Message(
                message_method=stun.Method.REFRESH, message_class=stun.Class.REQUEST
            )
            request.attributes["LIFETIME"] = 0
            async with asyncio.timeout(timeout):
                await transport.client.request_with_retry(request)
    except (OSError, stun.TransactionError):
        pass  # no answer, or a no: either way nothing can be done (TimeoutError is an OSError)
    finally:
        transport.abort()
        await asyncio.wait({transport.client.ended, *transport.tasks()})


def _transport(protocol: StunProtocol) -> _RelayedTransport:
    transport: object = protocol.transport
    assert isinstance(transport, _RelayedTransport), "it is not from `allocate`"
    return transport
