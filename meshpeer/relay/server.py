"""The relay's sockets: WebSocket and HTTP around `meshpeer.core.rooms`.

A message that comes is decided on by `Rooms` and written to whoever it concerns, at once. Writing
never waits: a member that does not read is cut off at ``max_unread`` bytes (and may come back and
resume), so that it can neither hold up the others nor the relay's memory. Whom a socket is, and
whether it may be here at all, is looked at when it comes (`connected`), when its request is there
(`_answer`), and when it joins (`_authenticate`).
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import json
import secrets
import socket as sockets
from collections import Counter, deque
from collections.abc import Awaitable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from types import TracebackType
from typing import Final, Self
from urllib.parse import quote

from websockets.asyncio.server import ServerConnection
from websockets.datastructures import MultipleValuesError
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response

from meshpeer.alarm import Alarm
from meshpeer.config import RelayConfig
from meshpeer.core.limits import address_key
from meshpeer.core.messages import Join
from meshpeer.core.rooms import (
    TRY_LATER,
    ConnId,
    Grant,
    Output,
    Pause,
    Rooms,
    Send,
    SendFrame,
    Shut,
)
from meshpeer.errors import (
    ConfigError,
    Forbidden,
    MeshClosed,
    NetworkError,
    Unauthorized,
    UsageError,
)
from meshpeer.log import Log
from meshpeer.relay.access import Authenticator, JoinRequest, JoinTokens
from meshpeer.relay.addresses import Origins, Proxies, is_loopback, plain_address
from meshpeer.relay.admin import LIVE_PATH, Admin, RelayFigures
from meshpeer.relay.door import Door
from meshpeer.relay.http import Answer, LastBlock, make_rest, to_response
from meshpeer.relay.keepalive import Keepalive
from meshpeer.relay.pages import Pages
from meshpeer.relay.sockets import Serving, Socket
from meshpeer.relay.tls import Certificate
from meshpeer.relay.turn import ice_servers_for

__all__ = ["Relay"]

_CLOSE_TIMEOUT: Final = 2.0
"""Seconds that a client has to answer a close before its connection is aborted."""
_HIGH: Final = 256 * 1024
"""Bytes unsent in a socket, at most, at which no more data is written to it. What is not data still
is; once a quarter of it is left, data follows."""
_REQUESTS: Final = 4
"""Requests that are answered before others have their turn."""
_ANSWERED: Final = 64
"""Connections over a limit that are told so. What is beyond them is shut unheard."""
_DETAILS: Final = frozenset({"message refused", "connection refused"})
"""What a stranger can cause as often as it likes, and no operator wants to read each time."""
_NOWHERE: Final = Answer(404, b"The relay is at / and /ws, its health at /healthz.\n")
_log = Log(part="relay")


def _note(event: str, **facts: object) -> None:
    (_log.debug if event in _DETAILS else _log.info)(event, **facts)


@dataclass(slots=True, eq=False)
class _Client:
    """A socket that `Rooms` knows. ``todo`` is done when its task has something to do: to
    authenticate a join, or to end."""

    socket: Socket
    todo: asyncio.Future[Join | None]
    gone: bool = False
    close: tuple[int, str] | None = None
    """The code and reason to close with, once `Rooms` has shut this socket."""
    checking: asyncio.Timeout | None = None
    """Around the question whether it may join; let expire to end that from elsewhere."""


class Relay:
    """A relay server. ``async with Relay(RelayConfig(port=0)) as relay: relay.url``.

    WebSocket (RFC 6455) on ``/`` and ``/ws``; one JSON text message a frame, binary frames are
    taken as well. People meet on its pages (`chat_url`), which other pages may take the client from
    (``/meshpeer.js``). ``GET /healthz`` answers with its figures, the dashboard is at
    ``admin_url``. All state is in memory.

    ``authenticator`` decides who may join; without one, it is `JoinTokens` where the config has a
    ``join_secret`` or a ``join_public_key``, and else everybody may. Raises `ConfigError` when that
    is so on an address that is not loopback, or behind a proxy, and ``open`` is not set, and for a
    certificate or a key that can't be used.
    """

    def __init__(
        self, config: RelayConfig | None = None, *, authenticator: Authenticator | None = None
    ) -> None:
        self._config = config = config or RelayConfig()
        self._authenticator = _authenticator(config, authenticator)
        self._certificate = Certificate.of(config)
        self._proxies = Proxies(config.trusted_proxies)
        self._origins = Origins(
            config.origins,
            tls=self._certificate is not None,
            loopback=is_loopback(config.host),
        )
        self._rooms = Rooms(
            config,
            new_token=lambda: secrets.token_urlsafe(24),
            note=_note,
            authenticate=self._authenticator is not None,
            ice_servers=ice_servers_for(config),
        )
        self._high = min(_HIGH, config.max_unread // 2)
        self._clients: dict[ConnId, _Client] = {}
        # Every connection, those that have not finished their handshakes as well.
        self._sockets: set[Socket] = set()
        self._serving = Serving(self._handle, lambda: not self._closing)
        self._asking: deque[Socket] = deque()
        self._making = asyncio.Lock()
        """Of answers that are made in parts, one at a time is."""
        self._from: Counter[str] = Counter()
        self._keepalive = Keepalive(config.keepalive_interval, self._now)
        self._ids = itertools.count(1)
        self._version = version("meshpeer")
        self._door = Door(
            self._admit,
            self._failed,
            tls=None if self._certificate is None else self._certificate.context,
            timeout=config.join_timeout,
        )
        self._started = False  # nor closed before it was
        self._closed = asyncio.Event()
        self._alarm = Alarm(self._tick)
        self._closing = False
        self._started_at = 0.0
        self._refused: Counter[str] = Counter()
        self._accepted = self._cut_off = 0
        self._messages_in = self._messages_out = self._bytes_in = self._bytes_out = 0
        self._pages = Pages(self._origins, now=self._now)
        self._admin = Admin(
            config, self._rooms, apply=self._apply, figures=self._figures, now=self._now
        )

    async def start(self) -> None:
        """Listen. Raises `NetworkError` when the address can't be had, `UsageError` a second time.

        Raises `MeshClosed` when `close` is called meanwhile. Cancelled or failed, it leaves nothing
        open, and the relay is closed.
        """
        if self._started:
            raise UsageError("a Relay is started once; make another one")
        self._started = True
        config = self._config
        self._loop = asyncio.get_running_loop()
        self._started_at = self._loop.time()
        try:
            await self._door.open(config.host, config.port)
        except OSError as exc:
            raise NetworkError(
                f"can't listen on {config.host} port {config.port}: {exc.strerror or exc}; "
                f"{_remedy(exc)}"
            ) from exc
        if self._closing:
            await self._door.close()
            raise MeshClosed("the relay was closed while it started")
        self._door.start()
        _note("relay listens", url=self.url)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def port(self) -> int:
        """The port it listens on. Raises `MeshClosed` unless it listens."""
        return self._address()[1]

    @property
    def url(self) -> str:
        """A URL for clients on this machine. Raises `MeshClosed` unless it listens."""
        host, port = self._address()
        # The wildcard addresses mean "all of mine" to a server, and nothing to a client.
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
        scheme = "ws" if self._certificate is None else "wss"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    def chat_url(self, room: str | None = None) -> str:
        """The page where people chat in ``room``; without one, the page that asks for it.

        Raises `MeshClosed` unless it listens.
        """
        where = "/" if room is None else f"/chat/{quote(room, safe='')}"
        return self.url.replace("ws", "http", 1) + where

    @property
    def admin_url(self) -> str:
        """Where the dashboard is. Raises `MeshClosed` unless it listens."""
        return f"{self.url.replace('ws', 'http', 1)}/admin-analytics"

    @property
    def admin_user(self) -> str:
        """Who may see the dashboard: ``RelayConfig.admin_user``."""
        return self._config.admin_user

    @property
    def admin_password(self) -> str:
        """``RelayConfig.admin_password``, or the one that was made for this relay."""
        return self._admin.password

    def reload_tls(self) -> None:
        """Read the certificate and its key anew, for connections that come from now on.

        Raises `ConfigError`, which names the file, when they can't be used; then those of before
        stay in use. Raises `UsageError` when the relay speaks no TLS.
        """
        if self._certificate is None:
            raise UsageError("this relay speaks no TLS: RelayConfig.tls_cert is not set")
        self._certificate.reload()

    async def serve_forever(self) -> None:
        """Wait until the relay is closed. Cancelling it leaves the relay as it is: `close` it."""
        self._address()
        await self._closed.wait()

    async def close(self) -> None:
        """Say goodbye to every client, with a time to come back, and end.

        Takes as long as the slowest client takes to answer, two seconds at most; then what is left
        is aborted. May be called at any time and more than once. When it is cancelled everything is
        aborted at once.
        """
        first = not self._closing
        self._started = self._closing = True
        if first and self._door.address is not None:
            try:
                await self._shut_down()
            finally:
                self._closed.set()
        elif self._door.address is None:
            self._closed.set()  # a `start` that is under way closes what it gets
        await self._closed.wait()
        await self._serving.wait()

    async def _shut_down(self) -> None:
        _note("relay closes", url=self.url)
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT):
                await self._door.close()
                self._apply(self._rooms.shut_down(self._loop.time()))
                self._admin.close()
                for socket in [socket for socket in self._sockets if socket.request is None]:
                    socket.transport.abort()  # it has said nothing, and gets no answer any more
                await self._serving.wait()
        except TimeoutError:
            self._abort()
            await self._serving.wait()
        except asyncio.CancelledError:
            self._abort()
            raise

    def _abort(self) -> None:
        for socket in list(self._sockets):
            socket.transport.abort()

    def _address(self) -> tuple[str, int]:
        address = self._door.address
        if address is None:
            raise MeshClosed("the relay does not listen: start it first")
        return address

    def _now(self) -> float:
        return self._loop.time()

    def _figures(self) -> RelayFigures:
        return RelayFigures(
            version=self._version,
            uptime=self._now() - self._started_at,
            connections=len(self._sockets),
            accepted=self._accepted,
            refused=dict(self._refused),
            messages_in=self._messages_in,
            messages_out=self._messages_out,
            bytes_in=self._bytes_in,
            bytes_out=self._bytes_out,
            cut_off=self._cut_off,
        )

    # --- a connection comes and goes -------------------------------------------------------------

    def _admit(self, address: str) -> Socket | None:
        """A connection comes from there: a socket for it, or None for one too many."""
        config = self._config
        address = plain_address(address)
        key = "" if self._proxies.trusts(address) else address_key(address)
        why = self._over(key, by=_ANSWERED - 1)
        if why is not None:
            self._refuse(why, address)
            return None
        socket = Socket(
            self,
            self._serving,
            address,
            max_size=config.max_message_size,
            write_limit=(self._high, self._high // 4),
            close_timeout=_CLOSE_TIMEOUT,
        )
        self._sockets.add(socket)
        self._count(socket, key)
        return socket

    def gone(self, socket: Socket) -> None:
        """See `Owner`. May be told twice."""
        if socket not in self._sockets:
            return
        self._sockets.remove(socket)
        self._keepalive.remove(socket)
        if socket.key:
            self._from[socket.key] -= 1
            if not self._from[socket.key]:
                del self._from[socket.key]
        if socket.bad:
            self._refuse("bad_request", socket.address)

    def _failed(self, socket: Socket, why: str | None) -> None:
        """A socket that was admitted never had a connection, or lost it in that moment."""
        if why is not None:
            self._refuse(why, socket.address)
        self.gone(socket)
        socket.abort()

    def _count(self, socket: Socket, key: str) -> None:
        socket.key = key
        if key:
            self._from[key] += 1

    def _over(self, key: str, by: int) -> str | None:
        """Which limit is exceeded by more than ``by`` connections."""
        config = self._config
        if len(self._sockets) > config.max_connections + by:
            return "max_connections"
        if key and self._from[key] > config.max_connections_per_address + by:
            return "max_connections_per_address"
        return None

    def _refuse(self, why: str, address: str) -> None:
        self._refused[why] += 1
        _note("connection refused", why=why, address=address)

    def asked(self, socket: Socket) -> None:
        """See `Owner`."""
        self._asking.append(socket)
        if len(self._asking) == 1:
            self._loop.call_soon(self._hear_requests)

    def _hear_requests(self) -> None:
        try:
            for _ in range(min(_REQUESTS, len(self._asking))):
                self._asking.popleft().answer()
        finally:
            # Whatever became of one of them: the others would not be heard any more.
            if self._asking:
                self._loop.call_soon(self._hear_requests)

    async def _handle(self, socket: Socket) -> None:
        """The task of a socket, from its TCP connection on."""
        try:
            try:
                async with asyncio.timeout(self._config.join_timeout) as limit:
                    respond = partial(self._respond, limit)
                    responded = partial(self._responded, limit)
                    await socket.handshake(respond, responded, server_header=None)
            except TimeoutError:
                if socket.request is None and socket.protocol.handshake_exc is None:
                    self._refuse("handshake_timeout", socket.address)
            except ConnectionClosed:
                pass
            if socket.is_open and not self._closing:
                async with socket:
                    await self._serve(socket)
        except Exception:  # noqa: BLE001 - one socket's, and nobody waits for its task
            _log.exception("a connection failed", address=socket.address)
        finally:
            socket.transport.abort()
            task = asyncio.current_task()
            assert task is not None
            self._serving.handler_tasks.discard(task)

    # --- HTTP ------------------------------------------------------------------------------------

    def _respond(
        self, limit: asyncio.Timeout, socket: ServerConnection, request: Request
    ) -> Response | Awaitable[Response] | None:
        """Answer plain HTTP; None lets the WebSocket handshake go on (RFC 6455, section 4.2)."""
        assert isinstance(socket, Socket)
        if not socket.key and socket in self._sockets:  # which it left if its connection is gone
            forwarded = request.headers.get_all("X-Forwarded-For")
            socket.address = self._proxies.client(socket.address, forwarded)
            self._count(socket, address_key(socket.address))
        path, _, query = request.path.partition("?")
        socket.path = path
        answer = self._answer(socket, request, path, query)
        if answer is None:
            return None
        if answer.rest is not None:
            limit.reschedule(None)  # the client has nothing more to do but to read
            return self._write(socket, answer, request.method)
        return to_response(answer, method=request.method)

    async def _write(self, socket: Socket, answer: Answer, method: str) -> Response:
        """Make an answer and write it, by turns with whatever else there is to do: all but the
        last of it, which is what websockets writes."""
        assert answer.rest is not None
        async with self._making:
            blocks = await make_rest(answer.rest)
        head = to_response(answer, method=method, more=sum(map(len, blocks)))
        if method == "HEAD":
            return head
        before = head.serialize()
        while blocks and not socket.transport.is_closing():
            socket.transport.write(before)
            await socket.until_taken(self._config.join_timeout)
            before = blocks.popleft()
        return LastBlock(head.status_code, head.reason_phrase, head.headers, before)

    def _responded(
        self,
        limit: asyncio.Timeout,
        socket: ServerConnection,
        request: Request,  # noqa: ARG002
        response: Response,
    ) -> None:
        assert isinstance(socket, Socket)
        if response.status_code != 101:
            # Who reads slowly has as long for it as it goes on reading.
            limit.reschedule(None)
            socket.close_timeout = None
            # After it is written.
            self._loop.call_soon(socket.finish, self._config.join_timeout)

    def _answer(self, socket: Socket, request: Request, path: str, query: str) -> Answer | None:
        if request.method not in ("GET", "HEAD"):
            return Answer(405, b"Use GET.\n", headers=(("Allow", "GET, HEAD"),))
        if request.method == "GET" and _wants_websocket(request):
            if path not in ("/", "/ws", LIVE_PATH):
                return _NOWHERE
            own = path == LIVE_PATH
            return self._refuse_too_many(socket) or self._refuse_origin(socket, request, own)
        if path == "/ws":
            return Answer(426, b"This is a WebSocket.\n", headers=(("Upgrade", "websocket"),))
        if path == "/healthz":
            return self._health()
        answer = self._pages.answer(path, query, request.headers)
        if answer is None:
            answer = self._admin.answer(path, query, request.headers, socket.address)
        return answer or _NOWHERE

    def _health(self) -> Answer:
        figures = {
            "status": "ok",
            "rooms": self._rooms.rooms,
            "members": self._rooms.members,
            "connections": self._rooms.connections,
            "version": self._version,
            "uptime": round(self._now() - self._started_at, 3),
        }
        return Answer(200, json.dumps(figures).encode() + b"\n", "application/json")

    def _refuse_too_many(self, socket: Socket) -> Answer | None:
        why = self._over(socket.key, by=0)
        if why is None:
            return None
        self._refuse(why, socket.address)
        limit = getattr(self._config, why)
        retry = (("Retry-After", f"{TRY_LATER:.0f}"),)
        if why == "max_connections":
            text = f"This relay has {limit} connections, which is its limit. Try again later.\n"
            return Answer(503, text.encode(), headers=retry)
        text = f"{limit} connections come from your address, which is the limit.\n"
        return Answer(429, text.encode(), headers=retry)

    def _refuse_origin(self, socket: Socket, request: Request, own: bool) -> Answer | None:
        """Browsers say what page they are, others say nothing (RFC 6455, section 10.2)."""
        try:
            socket.origin = request.headers.get("Origin")
            host = request.headers.get("Host", "")
        except MultipleValuesError:
            return Answer(400, b"There must be one Origin and one Host.\n")
        if socket.origin is None:
            return None
        why = self._origins.refusal(socket.origin, host, own=own)
        if why is None:
            return None
        self._refuse("origin", socket.address)
        return Answer(403, why.encode() + b"\n")

    # --- a WebSocket -----------------------------------------------------------------------------

    async def _serve(self, socket: Socket) -> None:
        self._accepted += 1
        self._keepalive.add(socket)
        if socket.path == LIVE_PATH:
            socket.begin()
            await self._admin.live(socket, socket.address)
            return
        socket.conn = conn = next(self._ids)
        client = self._clients[conn] = _Client(socket, self._loop.create_future())
        self._rooms.opened(conn, self._now(), socket.address)
        self._alarm.set(self._rooms.next_deadline())
        socket.listen()
        socket.begin()
        try:
            while not client.gone:
                join = await client.todo
                if join is not None and not client.gone:
                    client.todo = self._loop.create_future()
                    await self._authenticate(conn, client, join)
        finally:
            self.ended(socket)
        if client.close is not None:
            await socket.close(*client.close)

    async def _authenticate(self, conn: ConnId, client: _Client, join: Join) -> None:
        assert self._authenticator is not None
        request = JoinRequest(
            room=join.room,
            peer_id=join.peer_id,
            name=join.name,
            join_token=join.join_token,
            address=client.socket.address,
            origin=client.socket.origin,
        )
        code, text, retry_after = "unavailable", "nobody could say whether this is allowed", None
        try:
            try:
                async with asyncio.timeout(None) as client.checking:
                    grant = _checked(await self._authenticator.authenticate(request))
            finally:
                client.checking = None
        except (Unauthorized, Forbidden) as exc:
            code = "unauthorized" if isinstance(exc, Unauthorized) else "forbidden"
            text = str(exc)
        except (Exception, asyncio.CancelledError) as exc:
            task = asyncio.current_task()
            if isinstance(exc, asyncio.CancelledError) and task is not None and task.cancelling():
                raise
            if client.gone:
                return
            # Whatever went wrong with it: it is not ours, and the client can't help it.
            _log.exception("the authenticator failed", conn=conn, room=join.room)
            retry_after = TRY_LATER
        else:
            self._apply(self._rooms.granted(conn, grant, self._now()))
            return
        self._apply(self._rooms.denied(conn, code, text, self._now(), retry_after=retry_after))

    def heard(self, socket: Socket, data: bytes) -> None:
        """See `Owner`."""
        conn = socket.conn
        if conn in self._clients:
            self._messages_in += 1
            self._bytes_in += len(data)
            self._apply(self._rooms.received(conn, data, self._loop.time()))

    def ended(self, socket: Socket) -> None:
        """See `Owner`."""
        conn = socket.conn
        if conn in self._clients:
            self._forget(conn)
            self._apply(self._rooms.dropped(conn, self._loop.time()))

    def behind(self, socket: Socket) -> bool:
        """See `Owner`."""
        if socket.unsent <= self._config.max_unread:
            return False
        self._cut(socket)
        self.ended(socket)
        return True

    def flooded(self, socket: Socket) -> None:
        """See `Owner`."""
        self._refuse("too_many_frames", socket.address)

    def filled(self, socket: Socket, full: bool) -> None:
        """See `Owner`."""
        conn = socket.conn
        if full:
            self._rooms.full(conn)
            return
        now = self._loop.time()
        while conn in self._clients and not socket.full:
            room = self._high + 1 - socket.unsent
            if not (outputs := self._rooms.drained(conn, room, now)):
                break
            self._apply(outputs)

    def _forget(self, conn: ConnId, close: tuple[int, str] | None = None) -> None:
        """`Rooms` has no more to do with it: let its task end."""
        client = self._clients.pop(conn)
        client.gone = True
        client.close = close
        if not client.todo.done():
            client.todo.set_result(None)
        if client.checking is not None:
            client.checking.reschedule(self._loop.time())

    def _cut(self, socket: Socket) -> None:
        _note("cut off: does not read", conn=socket.conn, unread=socket.unsent)
        self._cut_off += 1
        socket.transport.abort()

    # --- what Rooms wants done -------------------------------------------------------------------

    def _apply(self, outputs: list[Output]) -> None:
        clients = self._clients
        data: bytes | None = None
        frame = b""
        for output in outputs:
            client = clients.get(output.conn)
            if client is None:
                continue  # cut off while these outputs were being carried out
            if isinstance(output, Send | SendFrame):
                if output.data is not data:  # the same often goes to a whole room
                    data = output.data
                    kind = Opcode.TEXT if isinstance(output, Send) else Opcode.BINARY
                    frame = Frame(kind, data).serialize(mask=False)
                socket = client.socket
                if socket.full and socket.unsent > self._config.max_unread:
                    self._forget(output.conn)
                    self._cut(socket)
                    # What follows from that joins the end of what is being carried out.
                    outputs += self._rooms.dropped(output.conn, self._loop.time())
                elif not socket.transport.is_closing():
                    # At once, whatever is unsent already; never waits.
                    socket.transport.write(frame)
                    self._messages_out += 1
                    self._bytes_out += len(data)
            elif isinstance(output, Shut):
                self._forget(output.conn, (output.code, output.reason))
            elif isinstance(output, Pause):
                client.socket.pause(min(output.seconds, self._config.keepalive_interval))
            elif not client.todo.done():
                client.todo.set_result(output.join)
        self._alarm.set(self._rooms.next_deadline())
        self._admin.changed()

    def _tick(self) -> None:
        self._apply(self._rooms.tick(self._loop.time()))


def _remedy(exc: OSError) -> str:
    """What helps where a port can't be had."""
    if isinstance(exc, sockets.gaierror) or exc.errno == errno.EADDRNOTAVAIL:
        return "choose an address of this machine, or 0.0.0.0 for all of them"
    if exc.errno in (errno.EACCES, errno.EPERM):
        return (
            "the system keeps this port: choose one above 1023, or give the process the right to "
            "have it (CAP_NET_BIND_SERVICE)"
        )
    return "stop what uses it, or choose another port (0 takes a free one)"


def _authenticator(config: RelayConfig, given: Authenticator | None) -> Authenticator | None:
    tokens = config.join_secret is not None or config.join_public_key is not None
    if given is not None:
        if tokens or config.open:
            raise ConfigError(
                "a Relay with an authenticator must have neither RelayConfig.open nor "
                "RelayConfig.join_secret nor RelayConfig.join_public_key"
            )
        return given
    if tokens:
        return JoinTokens(config)
    if config.open:
        return None
    where = ""
    if not is_loopback(config.host):
        where = f"on {config.host}, which others can reach,"
    elif config.trusted_proxies:
        where = "behind a proxy (RelayConfig.trusted_proxies), which others can reach,"
    if where:
        raise ConfigError(
            f"{where} anybody could join: give RelayConfig.join_secret or "
            "RelayConfig.join_public_key, so that joins need a token, or set RelayConfig.open"
        )
    return None


def _checked(grant: Grant) -> Grant:
    """What an authenticator returned. Raises `TypeError` for what is no grant."""
    granted: object = grant
    if not isinstance(granted, Grant):
        raise TypeError(f"authenticate() must return a Grant, not {granted!r}")
    return grant


def _wants_websocket(request: Request) -> bool:
    """RFC 9110, section 7.8: what is not known there is not looked at."""
    upgrades = ",".join(request.headers.get_all("Upgrade")).split(",")
    return any(each.strip().lower() == "websocket" for each in upgrades)
