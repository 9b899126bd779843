"""Signalling over a WebSocket (RFC 6455) to the relay: the wire, and words for what went wrong."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import re
import socket
import ssl
from contextlib import suppress
from http import HTTPStatus
from urllib.parse import urlsplit, urlunsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import (
    ConnectionClosed,
    InvalidHandshake,
    InvalidProxy,
    InvalidStatus,
    InvalidURI,
    ProxyError,
    WebSocketException,
)
from websockets.uri import WebSocketURI, parse_uri

from meshpeer.config import MeshConfig
from meshpeer.core.forward import MARK
from meshpeer.errors import ConfigError, SignalingUnavailable
from meshpeer.signaling.client import (
    CHECK_TIMEOUT,
    CLOSE_TIMEOUT,
    JoinTokenSource,
    RelayTransport,
    Wire,
)
from meshpeer.thin import keep_waits_short

__all__ = ["KEEPALIVE", "MAX_SIZE", "WebSocketTransport", "without_secrets"]

KEEPALIVE = 10.0
"""Seconds between pings; a relay that does not answer one within as long is taken for gone."""
MAX_SIZE = 16 * 1024 * 1024
"""Bytes that a message from the relay may have: a welcome lists a room of thousands."""

_EXAMPLE = "a relay's URL looks like ws://localhost:3001 or wss://relay.example.org"


# At DEBUG websockets logs what it reads and writes, and that has tokens in it.
_socket_log = logging.getLogger("meshpeer.signaling.sockets")
_socket_log.setLevel(logging.INFO)


def without_secrets(url: str) -> str:
    """``url``, or what was meant to be one, without a user's password and without a query."""
    with suppress(ValueError):  # it does not parse, so where a password ends is not known
        parts = urlsplit(url)
        _ = parts.port  # this looks at it
        if parts.netloc and "@" not in parts.fragment:
            host = parts.netloc.rpartition("@")[2]
            return urlunsplit((parts.scheme, host, parts.path, "", parts.fragment))
    # To the last @, wherever it is: a password that is not percent-encoded may hold a / or a ?.
    return re.sub(r"^(.*?//)?.*@", r"\1", url, count=1, flags=re.DOTALL).partition("?")[0]


def _parse(url: str) -> WebSocketURI:
    if (fault := _fault(url)) is None:
        return parse_uri(url)
    if isinstance(url, str):
        # The fault is looked for again in what may be shown: its text quotes what it is about.
        url = without_secrets(url)
        fault = _fault(url) or (
            "what stands before its @ must be user:password, percent-encoded, and its query too"
        )
    raise ConfigError(f"{url!r} is not the URL of a relay: {fault}; {_EXAMPLE}")


def _fault(url: str) -> str | None:
    try:
        parse_uri(url).host.encode("idna")
    except InvalidURI as exc:
        return exc.msg
    except (ValueError, AttributeError, TypeError) as exc:
        # A port out of range, a bracket left open, a host name that can't be one, not a str.
        return str(exc)
    return None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


class _WebSocketWire:
    def __init__(self, websocket: ClientConnection, service: str) -> None:
        self._websocket = websocket
        self._service = service
        self._keepalive = websocket.keepalive_task  # it forgets it when it cancels it

    async def send(self, data: bytes) -> None:
        try:
            await self._websocket.send(data, text=data[:1] != MARK)
        except ConnectionClosed as exc:
            raise SignalingUnavailable(self._why(exc)) from exc

    async def recv(self) -> bytes:
        try:
            return await self._websocket.recv(decode=False)
        except ConnectionClosed as exc:
            raise SignalingUnavailable(self._why(exc)) from exc

    async def check(self) -> None:
        try:
            async with asyncio.timeout(CHECK_TIMEOUT):
                await (await self._websocket.ping())
        except (ConnectionClosed, TimeoutError) as exc:
            raise SignalingUnavailable(
                f"{self._service} did not answer within {CHECK_TIMEOUT:g} s"
            ) from exc

    def moved(self) -> bool:
        # Whether the system would take another address of this host for it.
        sock = self._websocket.transport.get_extra_info("socket")
        if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
            return False
        try:
            local, remote = sock.getsockname(), sock.getpeername()
            with socket.socket(sock.family, socket.SOCK_DGRAM) as probe:
                probe.connect(remote)
                found: str = probe.getsockname()[0]
        except OSError:  # it is gone, or there is no way at all
            return False
        here: str = local[0]
        return found != here

    async def close(self) -> None:
        await self._websocket.close()

    async def abort(self) -> None:
        self._websocket.transport.abort()
        await self._websocket.wait_closed()
        if self._keepalive is not None:
            await asyncio.wait({self._keepalive})

    def _why(self, exc: ConnectionClosed) -> str:
        if exc.rcvd is not None:
            reason = f" {exc.rcvd.reason}" if exc.rcvd.reason else ""
            return f"{self._service} closed the connection ({exc.rcvd.code}{reason})"
        if exc.sent is not None:
            reason = exc.sent.reason or f"code {exc.sent.code}"
            return f"the connection to {self._service} was given up ({reason})"
        return f"the connection to {self._service} broke"


class WebSocketTransport(RelayTransport):
    """The relay's client. ``url`` is that of the relay: ``ws://`` or ``wss://``, host, port.

    ``join_token`` shows that we may join, where the relay asks for it: a token, or an async
    callable that gives one for each connection, as one that expires needs. If that raises, the
    attempt has failed and another one follows. Who has no token that is valid is refused for good,
    at a later connection as well: `Unauthorized`, `Forbidden`.

    Raises `ConfigError` when ``url`` or ``join_token`` can't be one. Proxies named in the
    environment are used, but not for a relay on this machine.
    """

    def __init__(
        self,
        url: str,
        *,
        config: MeshConfig | None = None,
        join_token: JoinTokenSource | None = None,
    ) -> None:
        self._uri = _parse(url)
        self._url = url
        # Without a user's password or a query, which may hold secrets.
        host = f"[{self._uri.host}]" if ":" in self._uri.host else self._uri.host
        scheme = "wss" if self._uri.secure else "ws"
        path = "" if self._uri.path == "/" else self._uri.path
        self._shown = f"{scheme}://{host}:{self._uri.port}{path}"
        super().__init__(config, service=f"the relay at {self._shown}", join_token=join_token)

    async def _connect(self) -> Wire:
        try:
            websocket = await connect(
                self._url,
                compression=None,
                max_size=MAX_SIZE,
                ping_interval=KEEPALIVE,
                ping_timeout=KEEPALIVE,
                open_timeout=None,
                close_timeout=CLOSE_TIMEOUT,
                logger=_socket_log,
                proxy=None if _is_loopback(self._uri.host) else True,
            )
        except (OSError, WebSocketException, ValueError, ImportError) as exc:
            raise SignalingUnavailable(self._why(exc)) from exc
        keep_waits_short(websocket.transport)
        return _WebSocketWire(websocket, f"the relay at {self._shown}")

    def _why(self, exc: Exception) -> str:
        """What went wrong, and what to try."""
        url = self._shown
        match exc:
            case InvalidStatus() if exc.response.status_code == HTTPStatus.SERVICE_UNAVAILABLE:
                return (
                    f"{url} takes no more connections now (HTTP status 503): the relay is full, "
                    "going down, or missing behind its proxy"
                )
            case InvalidStatus() if exc.response.status_code == HTTPStatus.TOO_MANY_REQUESTS:
                return (
                    f"{url} takes no more connections from this address now (HTTP status 429): "
                    "others here have them, or a proxy that the relay does not trust is between"
                )
            case InvalidStatus():
                return (
                    f"what answers at {url} is not a relay (HTTP status "
                    f"{exc.response.status_code}): are the port and the path right?"
                )
            case InvalidProxy():
                # Not its text, which has the proxy's password.
                return f"{url} can't be reached: the environment's proxy is not one ({exc.msg})"
            case ProxyError() | ImportError():
                return f"{url} can't be reached through the proxy of the environment: {exc}"
            case InvalidHandshake():
                return f"what answers at {url} is not a relay ({exc}): is the port right?"
            case ssl.SSLCertVerificationError():
                return f"the TLS certificate of {url} is not trusted: {exc.verify_message}"
            case ssl.SSLError():
                return f"no TLS at {url} ({exc.reason or exc}): does this relay speak ws:// only?"
            case socket.gaierror():
                return (
                    f"the name {self._uri.host!r} can't be resolved ({exc.strerror}): is "
                    f"{url} spelt right, and is there a network?"
                )
            case OSError():
                return (
                    f"no relay answers at {url} ({_cause(exc)}): is it running? "
                    "`meshpeer relay` starts one"
                )
            case _:
                return f"{url} can't be reached: {exc}"


def _cause(exc: OSError) -> str:
    # A name with several addresses fails with one error that has the others in its text only.
    numbers = [exc.errno] if exc.errno else re.findall(r"\[Errno (\d+)\]", str(exc))
    return ", ".join(sorted({os.strerror(int(n)).lower() for n in numbers})) or str(exc)
