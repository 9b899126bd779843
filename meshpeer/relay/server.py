"""The relay's sockets: WebSocket and HTTP around `meshpeer.core.rooms`.

One task a socket reads, decides through `Rooms`, and writes to whoever it concerns. Writing never
waits: a member that does not read is cut off at ``max_unread`` bytes (and may come back and
resume), so that it can neither hold up the others nor the relay's memory.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from types import TracebackType
from typing import Any, Final, Self

from websockets.asyncio.server import Server, ServerConnection, broadcast, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from meshpeer.alarm import Alarm
from meshpeer.config import RelayConfig
from meshpeer.core.rooms import ConnId, Output, Rooms, Send, SendFrame, Shut
from meshpeer.errors import MeshClosed, NetworkError, UsageError
from meshpeer.log import Log
from meshpeer.relay.access import Authenticator
from meshpeer.relay.admin import LIVE_PATH, Admin, RelayFigures
from meshpeer.relay.http import Answer, to_response
from meshpeer.thin import keep_waits_short

__all__ = ["Relay"]

_CLOSE_TIMEOUT: Final = 2.0
"""Seconds that a client has to answer a close before its connection is aborted."""
_HIGH: Final = 256 * 1024
"""Bytes unsent in a socket, at most, at which no more data is written to it. What is not data still
is; once a quarter of it is left, data follows."""
_DETAILS: Final = frozenset({"message refused", "connection refused"})
"""What a stranger can cause as often as it likes, and no operator wants to read each time."""

_log = Log(part="relay")
# At DEBUG websockets logs what it reads and writes, and that has tokens in it.
_socket_log = logging.getLogger("meshpeer.relay.sockets")
_socket_log.setLevel(logging.INFO)


def _note(event: str, **facts: object) -> None:
    (_log.debug if event in _DETAILS else _log.info)(event, **facts)


class _Socket(ServerConnection):
    """Is in ``known`` from its TCP connection's first moment to its last.

    What websockets itself writes never waits for room in the buffer: a keepalive ping would,
    instead of finding that a client that does not read does not answer either.
    """

    def __init__(self, known: set[ServerConnection], *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._known = known
        self.full = False
        """Too much is unsent for data to be written."""
        self.on_full: Callable[[bool], None] | None = None

    def pause_writing(self) -> None:
        self.full = True
        if self.on_full is not None:
            self.on_full(True)

    def resume_writing(self) -> None:
        self.full = False
        if self.on_full is not None:
            self.on_full(False)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        keep_waits_short(transport)
        self._known.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._known.discard(self)
        super().connection_lost(exc)


@dataclass(slots=True, eq=False)
class _Client:
    socket: _Socket
    reading: asyncio.Timeout = field(default_factory=lambda: asyncio.timeout(None))
    """Around the reading of the socket; let expire to end it from elsewhere."""
    close: tuple[int, str] | None = None
    """The code and reason to close with, once `Rooms` has shut this socket."""


class Relay:
    """A relay server. ``async with Relay(RelayConfig(port=0)) as relay: relay.url``.

    WebSocket (RFC 6455) on ``/`` and ``/ws``; one JSON text message a frame, binary frames are
    taken as well. Over ``max_connections`` it answers 503 there (RFC 9110, section 15.6.4).
    ``GET /healthz`` answers with its figures. All state is in memory.
    """

    def __init__(
        self, config: RelayConfig | None = None, *, authenticator: Authenticator | None = None
    ) -> None:
        self._config = config or RelayConfig()
        self._authenticator = authenticator
        self._rooms = Rooms(self._config, new_token=lambda: secrets.token_urlsafe(24), note=_note)
        self._high = min(_HIGH, self._config.max_unread // 2)
        self._clients: dict[ConnId, _Client] = {}
        # Every connection, those that have not finished their handshake as well.
        self._sockets: set[ServerConnection] = set()
        self._ids = itertools.count(1)
        self._version = version("meshpeer")
        self._server: Server | None = None
        self._started = False  # nor closed before it was
        self._alarm = Alarm(self._tick)
        self._closing = False
        self._started_at = 0.0
        self._refused: Counter[str] = Counter()
        self._accepted = self._cut_off = 0
        self._messages_in = self._messages_out = self._bytes_in = self._bytes_out = 0
        self._admin = Admin(
            self._config,
            self._rooms,
            apply=self._apply,
            figures=self._figures,
            now=self._now,
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
        server = serve(
            self._serve,
            config.host,
            config.port,
            process_request=self._respond,
            compression=None,
            open_timeout=config.join_timeout,
            ping_interval=config.keepalive_interval,
            ping_timeout=config.keepalive_interval,
            close_timeout=_CLOSE_TIMEOUT,
            max_size=config.max_message_size,
            write_limit=(self._high, self._high // 4),
            logger=_socket_log,
            # A factory by its documentation, a class only by its annotation.
            create_connection=partial(_Socket, self._sockets),  # type: ignore[arg-type]
            # Whoever is cancelled while it begins to accept has nothing in hand to close.
            start_serving=False,
        )
        try:
            self._server = await server
        except OSError as exc:
            raise NetworkError(
                f"can't listen on {config.host} port {config.port}: {exc.strerror or exc}; "
                "stop what uses it, or choose another port (0 takes a free one)"
            ) from exc
        try:
            if not self._closing:
                await self._server.start_serving()
        except BaseException:
            await self.close()
            raise
        if self._closing:
            await self.close()
            raise MeshClosed("the relay was closed while it started")
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
        return f"ws://[{host}]:{port}" if ":" in host else f"ws://{host}:{port}"

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

    async def serve_forever(self) -> None:
        """Wait until the relay is closed. Cancelling it leaves the relay as it is: `close` it."""
        self._address()
        if self._server is not None:
            await self._server.wait_closed()

    async def close(self) -> None:
        """Say goodbye to every client, with a time to come back, and end.

        Takes as long as the slowest client takes to answer, two seconds at most; then what is left
        is aborted. May be called at any time and more than once. When it is cancelled everything is
        aborted at once.
        """
        first = not self._closing
        self._started = self._closing = True
        if self._server is None:
            return  # a `start` that is under way closes what it gets
        if first:
            _note("relay closes", url=self.url)
        self._server.close(close_connections=False)
        self._apply(self._rooms.shut_down(self._loop.time()))
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT):
                await self._server.wait_closed()
        except TimeoutError:
            self._abort()
            await self._server.wait_closed()
        except asyncio.CancelledError:
            self._abort()
            raise

    def _abort(self) -> None:
        for socket in list(self._sockets):
            socket.transport.abort()

    def _address(self) -> tuple[str, int]:
        if self._server is None or not self._server.sockets:
            raise MeshClosed("the relay does not listen: start it first")
        host, port = self._server.sockets[0].getsockname()[:2]
        return host, port

    # --- a socket --------------------------------------------------------------------------------

    def _respond(self, socket: ServerConnection, request: Request) -> Response | None:
        """Answer plain HTTP; None lets the WebSocket handshake go on (RFC 6455, section 4.2)."""
        answer = self._answer(socket, request)
        if answer is None:
            return None
        return to_response(answer, method=request.method)

    def _answer(self, socket: ServerConnection, request: Request) -> Answer | None:
        path, _, query = request.path.partition("?")
        if request.method not in ("GET", "HEAD"):
            return Answer(405, b"Use GET.\n", headers=(("Allow", "GET, HEAD"),))
        if path in ("/", "/ws"):
            return self._refuse_too_many()
        if path == LIVE_PATH and "Upgrade" in request.headers:
            return None
        if path == "/healthz":
            return self._health()
        answer = self._admin.answer(path, query, request.headers, self._address_of(socket))
        return answer or Answer(404, b"The relay is at / and /ws, its health at /healthz.\n")

    def _health(self) -> Answer:
        figures = {
            "status": "ok",
            "rooms": self._rooms.rooms,
            "members": self._rooms.members,
            "connections": self._rooms.connections,
            "version": self._version,
            "uptime": round(self._loop.time() - self._started_at, 3),
        }
        return Answer(200, json.dumps(figures).encode() + b"\n", "application/json")

    def _now(self) -> float:
        return self._loop.time()

    def _address_of(self, socket: ServerConnection) -> str:
        return str(socket.remote_address[0])

    def _refuse_too_many(self) -> Answer | None:
        limit = self._config.max_connections
        if len(self._sockets) <= limit:
            return None
        _note("connection refused", limit=limit)
        text = f"This relay has {limit} connections, which is its limit. Try again later.\n"
        return Answer(503, text.encode())

    def _figures(self) -> RelayFigures:
        return RelayFigures(
            version=self._version,
            uptime=self._loop.time() - self._started_at,
            connections=len(self._sockets),
            accepted=self._accepted,
            refused=self._refused,
            messages_in=self._messages_in,
            messages_out=self._messages_out,
            bytes_in=self._bytes_in,
            bytes_out=self._bytes_out,
            cut_off=self._cut_off,
        )

    async def _serve(self, socket: ServerConnection) -> None:
        if self._closing:
            return
        assert isinstance(socket, _Socket)
        assert socket.request is not None
        self._accepted += 1
        if socket.request.path.partition("?")[0] == LIVE_PATH:
            await self._admin.live(socket, self._address_of(socket))
            return
        conn = next(self._ids)
        client = self._clients[conn] = _Client(socket)
        socket.on_full = partial(self._filled, conn, client)
        self._rooms.opened(conn, self._loop.time())
        self._alarm.set(self._rooms.next_deadline())
        try:
            async with client.reading:
                while client.close is None:
                    data = await socket.recv(decode=False)
                    self._messages_in += 1
                    self._bytes_in += len(data)
                    self._apply(self._rooms.received(conn, data, self._loop.time()))
        except (ConnectionClosed, TimeoutError):
            pass  # it is gone, or it was shut; what follows is the same
        finally:
            socket.on_full = None
            if self._clients.pop(conn, None):
                self._apply(self._rooms.dropped(conn, self._loop.time()))
        if client.close is not None:
            await socket.close(*client.close)

    # --- what Rooms wants done -------------------------------------------------------------------

    def _apply(self, outputs: list[Output]) -> None:
        for output in outputs:
            client = self._clients.get(output.conn)
            if client is None:
                continue  # cut off while these outputs were being carried out
            if isinstance(output, Shut):
                del self._clients[output.conn]
                client.close = (output.code, output.reason)
                client.reading.reschedule(self._loop.time())
            elif isinstance(output, Send | SendFrame) and not self._write(
                output.conn, client, output.data, text=isinstance(output, Send)
            ):
                # What follows from that joins the end of what is being carried out.
                outputs += self._rooms.dropped(output.conn, self._loop.time())
        self._alarm.set(self._rooms.next_deadline())

    def _write(self, conn: ConnId, client: _Client, data: bytes, *, text: bool) -> bool:
        """Write to a socket, or cut it off: False."""
        transport = client.socket.transport
        unread = transport.get_write_buffer_size()
        if unread > self._config.max_unread:
            _note("cut off: does not read", conn=conn, unread=unread)
            del self._clients[conn]
            self._cut_off += 1
            transport.abort()
            return False
        # Writes to the transport at once, whatever its buffer holds; never waits.
        broadcast([client.socket], data, text=text)
        self._messages_out += 1
        self._bytes_out += len(data)
        return True

    def _filled(self, conn: ConnId, client: _Client, full: bool) -> None:
        if full:
            self._rooms.full(conn)
            return
        now = self._loop.time()
        while conn in self._clients and not client.socket.full:
            room = self._high + 1 - client.socket.transport.get_write_buffer_size()
            if not (outputs := self._rooms.drained(conn, room, now)):
                break
            self._apply(outputs)

    def _tick(self) -> None:
        self._apply(self._rooms.tick(self._loop.time()))
