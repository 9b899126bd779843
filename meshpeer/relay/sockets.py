"""One connection to the relay: websockets' own, with turns for what is read.

websockets reads as much as the system has, parses all of it at once, and puts the messages in a
queue that a task takes them from without ever waiting. Whoever sends without a pause would hold up
everybody else so. Here a socket has *turns*: some frames, or some bytes of a large one, and then it
is the others' turn. Nothing more is read from the system before all that came had its turn.

What a member sends is told to the relay from there, without a queue and a task in between.

How many messages there may be, `meshpeer.core.rooms` says. Frames that are none by themselves
(pings, small fragments) never get there, and cost as much to read: they have a limit here.
"""

from __future__ import annotations

import asyncio
import logging
import socket as sockets
import struct
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Final, Protocol, cast

from websockets.asyncio.server import Server, ServerConnection
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import Event, State
from websockets.server import ServerProtocol

from meshpeer.core.limits import Bucket
from meshpeer.relay.http import Answer, to_response
from meshpeer.thin import keep_waits_short

__all__ = ["MAX_HEAD", "Owner", "Serving", "Socket"]

MAX_HEAD: Final = 32 * 1024
"""Bytes of a request. websockets takes a line of 8 KiB, and 128 of them."""
_TURN_FRAMES: Final = 8
"""Frames that are read in one turn."""
_TURN_BYTES: Final = 64 * 1024
"""Bytes that are read in one turn."""
_FRAME_RATE: Final = 20.0
"""Frames a second that are no whole message, on average; what is over that is read later."""
_FRAME_BURST: Final = 100
"""Such frames at once."""
_EARLY_FRAMES: Final = 32
"""Such frames before the first message: who sends more wants none."""
_LARGE: Final = 4 * 1024
"""Bytes of a frame that is not counted so: those of its message are."""
_WHOLE: Final = frozenset({0x81, 0x82})
"""How a frame begins that is a whole message (RFC 6455, section 5.2): text and binary, the last."""

_BYTES_ACKED: Final = 120
"""Where that is in Linux's ``struct tcp_info`` (tcp(7))."""
_MESSAGE: Final = frozenset({Opcode.TEXT, Opcode.BINARY, Opcode.CONT})
"""What a message is made of."""
_PING: Final = Frame(Opcode.PING, b"").serialize(mask=False)
_PONG: Final = b"\x8a\x80"
"""How the answer to that begins: a client's frame, and empty."""
_ANSWER: Final = _PONG[0]

# At DEBUG websockets logs what it reads and writes, and that has tokens in it; at INFO a line or
# two for each connection, which `Rooms` says better.
_log = logging.getLogger("meshpeer.relay.sockets")
_log.setLevel(logging.WARNING)

# Why nothing is read from a socket now.
_HANDSHAKE: Final = 1
_TURN: Final = 2
_PAUSE: Final = 4
_QUEUE: Final = 8
_END: Final = 16


class Owner(Protocol):
    """What a socket tells."""

    def gone(self, socket: Socket) -> None:
        """Its TCP connection is closed."""

    def asked(self, socket: Socket) -> None:
        """Its request is there: `Socket.answer` it."""

    def heard(self, socket: Socket, data: bytes) -> None:
        """A message came, after `Socket.listen`. ``data`` is UTF-8, if it was text."""

    def ended(self, socket: Socket) -> None:
        """No more messages come, after `Socket.listen`. May be told more than once."""

    def filled(self, socket: Socket, full: bool) -> None:
        """More, or no more, is unsent than should be, after `Socket.listen`."""

    def behind(self, socket: Socket) -> bool:
        """Whether so much is unsent that the socket was cut off."""

    def flooded(self, socket: Socket) -> None:
        """Too many frames came, and no message: it is being shut."""


class Serving:
    """The tasks that serve sockets. It stands where websockets has its server, of which a
    connection wants no more than this."""

    def __init__(
        self, handler: Callable[[Socket], Coroutine[Any, Any, None]], is_serving: Callable[[], bool]
    ) -> None:
        self.handler = handler
        self.is_serving = is_serving
        self.handler_tasks: set[asyncio.Task[None]] = set()

    async def wait(self) -> None:
        """Until all of them have ended."""
        if self.handler_tasks:
            await asyncio.wait(self.handler_tasks)


class Socket(ServerConnection):
    """A connection from the first moment of its TCP connection to its last."""

    # With slots for what is here, the rest shares its keys with all others of its kind.
    __slots__ = (
        "_asked",
        "_connected",
        "_frames",
        "_head",
        "_input",
        "_member",
        "_owner",
        "_part",
        "_pause",
        "_reading",
        "_rest",
        "_size",
        "_spoke",
        "_stopped",
        "_tail",
        "_turn",
        "address",
        "bad",
        "conn",
        "full",
        "heard_at",
        "key",
        "origin",
        "path",
        "pinged",
    )

    def __init__(
        self,
        owner: Owner,
        serving: Serving,
        address: str,
        *,
        max_size: int,
        write_limit: tuple[int, int],
        close_timeout: float,
    ) -> None:
        protocol = ServerProtocol(max_size=max_size, logger=_log)
        # So that what websockets answers by itself has the same headers as everything else.
        protocol.reject = _reject  # type: ignore[method-assign]
        super().__init__(
            protocol,
            cast(Server, serving),
            ping_interval=None,  # `Keepalive` does that
            close_timeout=close_timeout,
            write_limit=write_limit,
        )
        self._owner = owner
        self.address = address
        """Who it is: an IP address."""
        self.key = ""
        """What it counts as, of all from one address."""
        self.conn = 0
        """What `Rooms` knows it by."""
        self.origin: str | None = None
        self.path = ""
        self.heard_at = self.loop.time()
        self.pinged = False
        """Nothing came since it was sent a ping."""
        self.full = False
        """More is unsent than should be."""
        self.bad = False
        """Once it is gone: what came was no request, or none that could be taken."""
        self._member = False
        self._head = self._tail = b""
        self._size = 0
        self._input = b""
        self._rest = 0
        self._part: bytearray | None = None
        self._asked = self._connected = self._spoke = False
        self._frames: Bucket | None = None
        self._stopped = 0
        self._reading = True
        self._turn: asyncio.Handle | None = None
        self._pause: asyncio.TimerHandle | None = None

    # --- what the relay does ---------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether messages can be written to it."""
        return self.protocol.state is State.OPEN and not self.transport.is_closing()

    @property
    def is_waiting(self) -> bool:
        """Whether something that came, or may have come, was not read yet, by our own choice."""
        return self._stopped != 0

    @property
    def unsent(self) -> int:
        """Bytes."""
        return self.transport.get_write_buffer_size()

    def listen(self) -> None:
        """Tell the owner of messages from now on, instead of keeping them for `recv`."""
        self._member = True
        # Nobody asks for them again, and they take more than all the rest.
        if self.request is not None and self.response is not None:
            self.request.headers.clear()
            self.response.headers.clear()

    def answer(self) -> None:
        """Read the request, which lets the task that serves this socket go on."""
        head, self._head = self._head, b""
        if head and not self.transport.is_closing():
            super().data_received(head)
            if self.request is None:
                self._go(_HANDSHAKE)  # it was none; only the end of the connection is waited for

    def begin(self) -> None:
        """The handshake is over, one way or the other: read what follows."""
        if not self._member:
            # The queue of `recv`. It asks for more in the middle of taking something out.
            self.recv_messages.pause = lambda: self._stop(_QUEUE)
            self.recv_messages.resume = lambda: self.loop.call_soon(self._go, _QUEUE)
        self._go(_HANDSHAKE)

    async def until_taken(self, patience: float) -> None:
        """Wait until there is room for more of an answer. Cut the client off as in `finish`."""
        if not self.full:
            return
        self._wait_on(patience, self._taken())
        try:
            with suppress(OSError):
                await self.drain()
        finally:
            assert self._pause is not None
            self._pause.cancel()

    def finish(self, patience: float) -> None:
        """An answer was written, and is the last: wait until the client has it and goes. Cut it off
        when it takes nothing of it for ``patience`` seconds."""
        self.begin()
        if not self.connection_lost_waiter.done():
            self._wait_on(patience, self._taken())

    def _wait_on(self, patience: float, before: int) -> None:
        def look() -> None:
            if (taken := self._taken()) > before:
                self._wait_on(patience, taken)
            else:
                self.transport.abort()

        self._pause = self.loop.call_later(patience, look)

    def _taken(self) -> int:
        """Rises when the other end takes something. Only Linux knows; elsewhere it is what was
        handed to the system, which takes much at once."""
        sock = self.transport.get_extra_info("socket")
        if sys.platform == "linux" and sock is not None:
            with suppress(OSError, ValueError, struct.error):  # closed meanwhile, or too old
                info = sock.getsockopt(sockets.IPPROTO_TCP, sockets.TCP_INFO, _BYTES_ACKED + 8)
                (acked,) = struct.unpack_from("=Q", info, _BYTES_ACKED)
                return int(acked)
        return -self.unsent

    def pause(self, seconds: float) -> None:
        """Read nothing for so long."""
        if self._pause is not None:
            self._pause.cancel()
        self._stop(_PAUSE)
        self._pause = self.loop.call_later(seconds, self._go, _PAUSE)

    def abort(self) -> None:
        """Cut it off, if it has a connection."""
        if self._connected:
            self.transport.abort()

    def ask(self) -> None:
        """Ask for a sign of life (RFC 6455, section 5.5.2)."""
        self.pinged = self._asked = True
        self.transport.write(_PING)

    # --- reading ---------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self.heard_at = self.loop.time()
        self.pinged = False
        self._input = self._input + data if self._input else data
        if not self._stopped:
            self._take_turn()

    def _take_turn(self) -> None:
        try:
            if self.request is None:
                self._read_head()
            else:
                self._read_frames()
        except BaseException:
            self.transport.abort()
            raise
        if not self._stopped and not self._reading and not self.transport.is_closing():
            self._reading = True
            self.transport.resume_reading()

    def _read_head(self) -> None:
        """Read a request up to its end, and not what is behind it: that is too early."""
        data = self._input
        end = (self._tail + data).find(b"\r\n\r\n")
        whole = end >= 0
        if whole:
            end += 4 - len(self._tail)
            data, self._input = data[:end], data[end:]
        else:
            self._tail, self._input = (self._tail + data)[-3:], b""
        self._size += len(data)
        if self._size > MAX_HEAD:
            # What was none from its first line on was answered then, and nothing can follow that.
            if self.protocol.handshake_exc is None:
                text = f"A request may have {MAX_HEAD} bytes.\n"
                self.protocol.handshake_exc = ValueError(text)
                self.transport.write(_reject(431, text).serialize())
            self.transport.close()
            return
        if not whole:
            super().data_received(data)
            return
        self._head = data
        self._stop(_HANDSHAKE)
        self._owner.asked(self)

    def _read_frames(self) -> None:
        data, at = self._input, 0
        frames = 0
        # Before what is in it is told, which may end the turn.
        self._input = b""
        if self.protocol.eof_sent:
            # Nothing is heard any more, but that it closes its connection.
            if self._bucket.take(1, self.heard_at) < 0:
                self.transport.abort()
            return
        while at < len(data) and not self.transport.is_closing():
            if self._stopped:
                break
            if frames >= _TURN_FRAMES or at >= _TURN_BYTES:
                self._stop(_TURN)
                self._turn = self.loop.call_soon(self._go, _TURN)
                break
            begins = self._rest == 0
            if begins:
                self._rest = _frame_size(data, at)
                if self._rest == 0:
                    break  # its head is not complete
                frames += 1
                if data[at] not in _WHOLE and self._rest < _LARGE and not self._charge(data[at]):
                    at = len(data)
                    break
            start, at = at, min(len(data), at + self._rest, _TURN_BYTES)
            self._rest -= at - start
            if begins and self._rest == 0 and data.startswith(_PONG, start):
                continue  # it says nothing but that something came
            super().data_received(data[start:at])
            if self.full and self._owner.behind(self):
                break
        self._input = data[at:]
        if self._member and self.protocol.state is not State.OPEN:
            self._owner.ended(self)

    @property
    def _bucket(self) -> Bucket:
        """What it may send besides whole messages. Most never need one."""
        if self._frames is None:
            rate, burst = (_FRAME_RATE, _FRAME_BURST) if self._spoke else (0.0, _EARLY_FRAMES)
            self._frames = Bucket(rate, burst, self.loop.time())
        return self._frames

    def _charge(self, head: int) -> bool:
        """A frame comes that is no whole message, and begins so. False: no more is read."""
        if head == _ANSWER and self._asked:
            self._asked = False
            return True
        owed = -self._bucket.take(1, self.loop.time())
        if owed <= 0:
            return True
        if self._spoke:
            # For long enough that a whole turn may follow.
            self.pause((owed + _TURN_FRAMES) / _FRAME_RATE)
            return True
        if self.protocol.state is State.OPEN:
            self._owner.flooded(self)
            self.protocol.fail(CloseCode.POLICY_VIOLATION, "too many frames before a message")
            self.send_data()
            # It is not read from any more, so its own end would not be seen.
            self._pause = self.loop.call_later(self.close_timeout or 0, self.transport.abort)
        self._stop(_END)
        return False

    def process_event(self, event: Event) -> None:
        if isinstance(event, Request):
            super().process_event(event)
            return
        frame = cast(Frame, event)
        if not self._spoke and frame.fin and frame.opcode in _MESSAGE:
            self._spoke = True
            self._frames = None
        if not self._member:
            super().process_event(event)
        elif frame.opcode is Opcode.TEXT or frame.opcode is Opcode.BINARY:
            if frame.fin:
                self._owner.heard(self, bytes(frame.data))
            else:
                self._part = bytearray(frame.data)
        elif frame.opcode is Opcode.CONT and self._part is not None:
            self._part += frame.data
            if frame.fin:
                data, self._part = bytes(self._part), None
                self._owner.heard(self, data)

    def _stop(self, why: int) -> None:
        self._stopped |= why
        if self._reading and not self.transport.is_closing():
            self._reading = False
            self.transport.pause_reading()

    def _go(self, why: int) -> None:
        self._stopped &= ~why
        if not self._stopped and not self.protocol.reader.eof:
            self._take_turn()

    # --- asyncio's calls -------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._connected = True
        super().connection_made(transport)
        keep_waits_short(transport)

    def eof_received(self) -> None:
        self._judge()
        super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        for handle in (self._turn, self._pause):
            if handle is not None:
                handle.cancel()
        self._input = b""
        self._judge()
        super().connection_lost(exc)
        if self._member:
            self._owner.ended(self)
        self._owner.gone(self)

    def _judge(self) -> None:
        # To websockets a request that ends too early is as bad as one that is none.
        if not self.protocol.reader.eof:
            self.bad = self.protocol.handshake_exc is not None

    def pause_writing(self) -> None:
        # For members websockets must not know: what it writes by itself would wait for room.
        self.full = True
        if self._member:
            self._owner.filled(self, True)
        else:
            super().pause_writing()

    def resume_writing(self) -> None:
        self.full = False
        if self._member:
            self._owner.filled(self, False)
        else:
            super().resume_writing()


def _reject(status: int, text: str) -> Any:
    return to_response(Answer(int(status), text.encode()))


def _frame_size(data: bytes, at: int) -> int:
    """Bytes of the frame that begins there (RFC 6455, section 5.2); 0 when that is not seen yet."""
    if len(data) < at + 2:
        return 0
    size = data[at + 1] & 0x7F
    mask = 4 if data[at + 1] & 0x80 else 0
    if size < 126:
        return 2 + mask + size
    if size == 126:
        return 4 + mask + struct.unpack_from("!H", data, at + 2)[0] if len(data) >= at + 4 else 0
    return 10 + mask + struct.unpack_from("!Q", data, at + 2)[0] if len(data) >= at + 10 else 0
