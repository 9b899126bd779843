"""WebSocket clients (RFC 6455) that cost little: thousands of them in one process, as a load.

What loads a server must not be what is measured, so nothing here is general: frames are whole, and
come from a server that is trusted.
"""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable
from typing import Final, cast
from urllib.parse import urlsplit

from meshpeer.core.forward import MARK
from meshpeer.core.messages import VERSION, Ack, Join, Leave, encode

__all__ = ["SERVICES", "Client", "Crowd", "Hear", "Service", "frame", "raise_limit"]

_TEXT: Final = 1
_CLOSE: Final = 8
_PING: Final = 9
_PONG: Final = 10
_ACK_EVERY: Final = 16
"""As often as clients of meshpeer do."""
_BEATS: Final = 100
"""Parts of a crowd whose heartbeats are sent one after the other."""
_SPARE: Final = 500
_NOT_COUNTED: Final = (MARK, b'{"type":"ack"', b'{"type":"forwarded"', b'{"type":"ice_servers"')


def raise_limit(sockets: int) -> None:
    """Let this process have so many sockets. Raises `RuntimeError` where it may not."""
    wanted = sockets + _SPARE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise RuntimeError(f"{wanted} open files are needed, and the limit (ulimit -Hn) is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def frame(data: bytes, opcode: int = _TEXT) -> bytes:
    """A client's frame. Its mask is zero: nothing to do here, and the usual work over there."""
    size = len(data)
    if size < 126:
        head = bytes((0x80 | opcode, 0x80 | size))
    elif size < 1 << 16:
        head = bytes((0x80 | opcode, 0x80 | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((0x80 | opcode, 0x80 | 127)) + size.to_bytes(8, "big")
    return head + bytes(4) + data


class Client(asyncio.Protocol):
    """One WebSocket. ``hear`` is given each message after the first."""

    def __init__(self, peer_id: str, request: bytes, first: bytes, hear: Hear) -> None:
        self.peer_id = peer_id
        self.hear = hear
        self.heard = 0
        """Counted messages of the relay."""
        self.transport: asyncio.Transport
        self._request = request
        self._first = first
        self._rest = b""
        self._open = False
        loop = asyncio.get_running_loop()
        self.entered: asyncio.Future[bytes] = loop.create_future()
        """The first message."""
        self.gone: asyncio.Future[None] = loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self._request)

    def write(self, frames: bytes) -> None:
        """Send what `frame` made."""
        self.transport.write(frames)

    def data_received(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
        at, size = 0, len(data)
        if not self._open:
            end = data.find(b"\r\n\r\n")
            if end >= 0:
                if not data.startswith(b"HTTP/1.1 101 "):
                    self._fail(f"was answered {data.splitlines()[0]!r}")
                    return
                self._open = True
                at = end + 4
                if self._first:
                    self.transport.write(self._first)
        while self._open and size - at >= 2:
            first, length, begin = data[at], data[at + 1], at + 2
            if length >= 126:
                begin += 2 if length == 126 else 8
                length = int.from_bytes(data[at + 2 : begin], "big")
            if begin + length > size:
                break
            at = begin + length
            self._take(first & 0x0F, data[begin:at])
        self._rest = data[at:]

    def _take(self, opcode: int, data: bytes) -> None:
        if opcode == _PING:
            self.transport.write(frame(data, _PONG))
        elif opcode == _CLOSE:
            self.transport.write(frame(data, _CLOSE))
        elif self.entered.done():
            self.hear(self, data)
        else:
            self.entered.set_result(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail("was shut out")
        self.gone.set_result(None)

    def _fail(self, what: str) -> None:
        if not self.entered.done():
            self.entered.set_exception(RuntimeError(f"{self.peer_id} {what}"))
            self.transport.abort()


Hear = Callable[[Client, bytes], None]


class Service:
    """How one kind of server is talked to: here the relay."""

    beat: float | None = None
    """Seconds after which each client has to say that it is there."""
    heartbeat = b""
    leave = frame(encode(Leave()))

    def path(self, peer_id: str) -> str:
        """Where the WebSocket is."""
        return "/"

    def join(self, room: str, peer_id: str) -> bytes:
        """What a client sends first."""
        return frame(
            encode(
                Join(version=VERSION, room=room, peer_id=peer_id, incarnation=f"bench-{peer_id}")
            )
        )

    def is_in(self, answer: bytes) -> bool:
        """Whether the first message lets it in."""
        return answer.startswith(b'{"type":"welcome"')

    def signal(self, to: str, body: bytes) -> bytes:
        """A frame for another client. What arrives ends with ``body`` and one bracket."""
        return frame(
            b'{"type":"signal","to":"%b","to_incarnation":"bench-%b","epoch":1,"body":%b}'
            % (to.encode(), to.encode(), body)
        )

    def is_signal(self, data: bytes) -> bool:
        """Whether a message is what another client sent."""
        return data.startswith(b'{"type":"signal"')

    def heard(self, client: Client, data: bytes) -> None:
        """Acknowledge, as a client of this service does."""
        if not data.startswith(_NOT_COUNTED):
            client.heard += 1
            if not client.heard % _ACK_EVERY:
                self.acknowledge(client)

    def acknowledge(self, client: Client) -> None:
        """Say how much has arrived."""
        client.write(frame(encode(Ack(received=client.heard))))


class _Bare(Service):
    """A server that sends back what it is sent."""

    leave = b""

    def is_in(self, answer: bytes) -> bool:
        return answer.startswith(b'{"type":"join"')

    def heard(self, client: Client, data: bytes) -> None:
        pass

    def acknowledge(self, client: Client) -> None:
        pass


class _PeerJS(Service):
    """The server of PeerJS (npm: peer), as its own client talks to it."""

    beat = 5.0
    heartbeat = frame(b'{"type":"HEARTBEAT"}')
    leave = b""

    def path(self, peer_id: str) -> str:
        return f"/peerjs?key=peerjs&id={peer_id}&token=bench&version=1.5.5"

    def join(self, room: str, peer_id: str) -> bytes:
        return b""

    def is_in(self, answer: bytes) -> bool:
        return answer == b'{"type":"OPEN"}'

    def signal(self, to: str, body: bytes) -> bytes:
        return frame(b'{"type":"CANDIDATE","dst":"%b","payload":%b}' % (to.encode(), body))

    def is_signal(self, data: bytes) -> bool:
        return data.startswith(b'{"type":"CANDIDATE"')

    def heard(self, client: Client, data: bytes) -> None:
        pass

    def acknowledge(self, client: Client) -> None:
        pass


SERVICES: dict[str, type[Service]] = {"meshpeer": Service, "bare": _Bare, "peerjs": _PeerJS}


def _ignore(client: Client, data: bytes) -> None:
    pass


class Crowd:
    """Clients of one server. Their sockets end with the process, or one by one by `leave`."""

    def __init__(self, url: str, service: Service) -> None:
        parts = urlsplit(url)
        self.host, self.port = cast(str, parts.hostname), cast(int, parts.port)
        self.service = service
        self.clients: dict[str, Client] = {}
        self._part = 0
        if service.beat is not None:
            self._beat()

    async def enter(
        self,
        room: str,
        peer_id: str,
        hear: Hear = _ignore,
        *,
        first: bytes | None = None,
        kind: type[Client] = Client,
    ) -> tuple[Client, bytes]:
        """Connect, upgrade and join; returns what the server then says first."""
        service = self.service

        def heard(client: Client, data: bytes) -> None:
            service.heard(client, data)
            hear(client, data)

        request = (
            f"GET {service.path(peer_id)} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        join = service.join(room, peer_id) if first is None else first
        client = kind(peer_id, request.encode(), join, heard)
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: client, self.host, self.port)
        answer = await client.entered
        if not service.is_in(answer):
            raise RuntimeError(f"{peer_id} was not let in: {answer!r}")
        self.clients[peer_id] = client
        return client, answer

    async def leave(self, client: Client) -> None:
        """Give the seat up; returns when the socket is closed."""
        del self.clients[client.peer_id]
        if self.service.leave:
            client.write(self.service.leave)
        else:
            client.transport.close()
        await client.gone

    def check(self) -> None:
        """Raise `RuntimeError` unless everybody is still there."""
        if lost := [peer_id for peer_id, client in self.clients.items() if client.gone.done()]:
            raise RuntimeError(f"{len(lost)} clients were shut out, {lost[0]} among them")

    def _beat(self) -> None:
        assert self.service.beat is not None
        loop = asyncio.get_running_loop()
        loop.call_later(self.service.beat / _BEATS, self._beat)
        self._part = (self._part + 1) % _BEATS
        for client in list(self.clients.values())[self._part :: _BEATS]:
            client.write(self.service.heartbeat)
