"""The asyncio shell around `meshpeer.core.session`: one task, one timer, bounded queues.

A transport that speaks the relay's protocol is this class and a way to make a `Wire`.
"""

from __future__ import annotations

import asyncio
import secrets
from abc import abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from random import random
from typing import Protocol, TypeGuard

from msgspec import ValidationError, convert
from msgspec.structs import replace

from meshpeer.alarm import Alarm
from meshpeer.config import MeshConfig
from meshpeer.core.forward import FrameIn
from meshpeer.core.messages import Join, JoinToken, LinkReport, Metadata, SignalOut, Welcome
from meshpeer.core.session import (
    Connect,
    Disconnect,
    Fail,
    Lost,
    Output,
    Session,
    State,
    Tell,
    Transmit,
    TransmitFrame,
)
from meshpeer.errors import (
    ClosedError,
    ConfigError,
    MeshClosed,
    MeshError,
    SignalingUnavailable,
    UnexpectedInput,
)
from meshpeer.log import Log
from meshpeer.signaling.base import SignalingEvent, SignalingLost, SignalingTransport

__all__ = [
    "CHECK_TIMEOUT",
    "CLOSE_TIMEOUT",
    "MAX_EVENTS",
    "MAX_UNREAD",
    "JoinTokenSource",
    "RelayTransport",
    "Wire",
]

CHECK_TIMEOUT = 1.0
"""Seconds that a connection in doubt has to show that it works."""
CLOSE_TIMEOUT = 1.0
"""Seconds that the last words on a connection may take."""
MAX_EVENTS = 256
"""Events that wait to be received, and messages that wait to be sent, before reading pauses."""
MAX_UNREAD = 1024 * 1024
"""Bytes of data frames that wait to be received, before reading pauses."""

JoinTokenSource = str | Callable[[], Awaitable[str]]
"""A join token, or what gives one for each connection, as one that expires needs."""


class Wire(Protocol):
    """A connection to the relay that keeps message boundaries and order."""

    async def send(self, data: bytes) -> None:
        """Send a message, JSON or one with data (`meshpeer.core.forward`); the first byte tells.

        Waits while too much is buffered.

        Raises `SignalingUnavailable` when the connection is gone.
        """
        ...

    async def recv(self) -> bytes | str:
        """The next message. Raises `SignalingUnavailable`, with the reason, at the end."""
        ...

    async def close(self) -> None:
        """Send out what is buffered, then close. The caller has the deadline."""
        ...

    def moved(self) -> bool:
        """Whether a connection made now would take another way than this one does."""
        ...

    async def check(self) -> None:
        """Find out whether it works. Raises `SignalingUnavailable` within `CHECK_TIMEOUT`."""
        ...

    async def abort(self) -> None:
        """Close at once, whatever is buffered, and return when nothing is left of it.

        May be called when it is closed already.
        """
        ...


class _Line:
    """One connection from the session's `Connect` to its `Disconnect` or its end."""

    def __init__(self) -> None:
        self.outgoing: deque[bytes] = deque()
        self.frames: deque[bytes] = deque()
        """What goes out when nothing else does; the session's windows bound it."""
        self.wake = asyncio.Event()
        self.hung_up = False
        self.doubted = asyncio.Event()
        self.scope: asyncio.Timeout | None = None
        """What the line's reading half runs in; expired to make it stop."""

    def hang_up(self) -> None:
        self.hung_up = True
        self.wake.set()
        if self.scope is not None:
            self.scope.reschedule(asyncio.get_running_loop().time())


class RelayTransport(SignalingTransport):
    """Runs a `Session` over the wires that `_connect` makes.

    ``service`` names the other end in error texts. ``join_token`` shows that we may join, where the
    service asks for that; a callable is asked before each connection, within the time that it may
    take. What it raises makes that attempt fail. Raises `ConfigError` for what can't be a token.
    """

    def __init__(
        self,
        config: MeshConfig | None = None,
        *,
        service: str = "the relay",
        join_token: JoinTokenSource | None = None,
    ) -> None:
        self._config = config or MeshConfig()
        if not (join_token is None or callable(join_token) or _is_token(join_token)):
            raise ConfigError(_BAD_TOKEN.format("join_token"))
        self._join_token = join_token
        self._session = Session(self._config, random=random, service=service)
        self._log = Log(part="signaling", service=service)
        self._runner: asyncio.Task[None] | None = None
        self._alarm = Alarm(self._tick)
        self._line: _Line | None = None
        self._called = asyncio.Event()
        self._events: deque[SignalingEvent] = deque()
        self._unread = 0
        """Bytes of data among the events."""
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._end: Exception | None = None
        self._lost_unread = False
        """Who receives has yet to hear that the connection was lost, and is back: until then it
        would send on as if nothing had been lost."""
        self._closed = False
        self._hurried = False
        """The line was in doubt when it went down: there is another way now, or none."""

    @abstractmethod
    async def _connect(self) -> Wire:
        """Make a connection, or raise `SignalingUnavailable` with a text that a person can act on.

        The session has the deadline: it is cancelled after `ANSWER_TIMEOUT` seconds, and must
        leave nothing behind then.
        """

    # --- SignalingTransport --------------------------------------------------------------------

    async def open(self, join: Join) -> Welcome:
        """Take a seat; see `SignalingTransport.open`.

        A join without a token gets one of its own, so that a seat whose welcome was lost on the
        way is still ours.
        """
        self._check_open()
        if join.token is None:
            join = replace(join, token=secrets.token_urlsafe(32))
        loop = asyncio.get_running_loop()
        outputs = self._session.open(join, loop.time())
        self._log = self._log.bind(room=join.room, peer_id=join.peer_id)
        self._runner = loop.create_task(self._run(), name=f"meshpeer signaling {join.peer_id}")
        self._do(outputs)
        welcome = await self.receive()
        if not isinstance(welcome, Welcome):
            raise UnexpectedInput(
                f"open must be awaited before receive: it got a {type(welcome).__name__}"
            )
        return welcome

    @property
    def last_failure(self) -> MeshError | None:
        """Why the latest try to reach the relay failed; None after a success."""
        return self._session.last_failure

    def send(self, signal: SignalOut) -> None:
        """Send a signal; see `SignalingTransport.send` and `Session.send`."""
        self._check_open()
        self._do(self._session.send(signal))

    def update(self, name: str | None, metadata: Metadata | None) -> None:
        """Tell the room a new name or metadata; see `SignalingTransport.update`."""
        self._check_open()
        self._do(self._session.update(name, metadata))

    def forward_room(self, to: str) -> int:
        """Bytes of frames that may go to a member now; see `SignalingTransport.forward_room`."""
        if self._end is not None or self._lost_unread:
            return 0
        return self._session.forward_room(to)

    def forward(self, to: str, to_incarnation: str, data: bytes) -> None:
        """Send a data frame; see `SignalingTransport.forward`. After the end it is dropped too."""
        if self._end is None and not self._lost_unread and self._session.state is not State.NEW:
            self._do(self._session.forward(to, to_incarnation, data))

    def report(self, links: Sequence[LinkReport]) -> None:
        """Tell how links stand; see `SignalingTransport.report`. After the end it is dropped."""
        if self._end is None and self._session.state is not State.NEW:
            self._do(self._session.report(links))

    def doubt(self, *, network_changed: bool) -> None:
        """Check the connection now, or try at once to get one; see `SignalingTransport.doubt`."""
        if self._end is not None or self._session.state in (State.NEW, State.CLOSED):
            return
        if self._line is not None:
            self._line.doubted.set()
        if network_changed:
            self._do(self._session.hurry(asyncio.get_running_loop().time()))

    async def receive(self) -> SignalingEvent:
        """The next thing that happened; see `SignalingTransport.receive`."""
        while not self._events:
            if self._end is not None:
                raise self._end.with_traceback(None)
            if self._runner is None:
                raise UnexpectedInput("the transport is new: open it first")
            self._arrived.clear()
            await self._arrived.wait()
        event = self._events.popleft()
        if isinstance(event, FrameIn):
            self._unread -= len(event.data)
        elif isinstance(event, Welcome):
            self._lost_unread = any(isinstance(each, SignalingLost) for each in self._events)
        self._room.set()
        return event

    async def close(self) -> None:
        """Give the seat up and end; see `SignalingTransport.close`."""
        if not self._closed:
            self._closed = True
            self._events.clear()
            self._unread = 0
            self._finish(MeshClosed("the signalling transport is closed"))
            if self._session.state is not State.CLOSED:
                self._do(self._session.close(asyncio.get_running_loop().time()))
        if self._runner is None:
            return
        try:
            await asyncio.wait({self._runner})  # within CLOSE_TIMEOUT, as any Disconnect
        finally:
            self._runner.cancel()
            await asyncio.wait({self._runner})
        if not self._runner.cancelled():
            self._runner.result()

    # --- the session's outputs -----------------------------------------------------------------

    def _do(self, outputs: list[Output]) -> None:
        for output in outputs:
            match output:
                case Tell(event):
                    if isinstance(event, Welcome):
                        self._log.info("seated", resumed=event.resumed)
                    self._tell(event)
                case Transmit(data):
                    if self._line is not None:
                        self._line.outgoing.append(data)
                        self._line.wake.set()
                case TransmitFrame(data):
                    if self._line is not None:
                        self._line.frames.append(data)
                        self._line.wake.set()
                case Connect():
                    self._line = _Line()
                    self._called.set()
                case Disconnect():
                    if self._line is not None:
                        self._line.hang_up()
                        self._line = None
                case Lost(reason, retry_in):
                    self._log.info("signalling lost", reason=reason, retry_in=retry_in)
                    self._lost_unread = True
                    self._tell(SignalingLost(reason, retry_in))
                case Fail(error):
                    self._log.info("signalling ended", error=str(error))
                    self._finish(error)
        self._alarm.set(self._session.next_deadline())

    def _tell(self, event: SignalingEvent) -> None:
        self._events.append(event)
        if isinstance(event, FrameIn):
            self._unread += len(event.data)
        self._arrived.set()

    def _finish(self, error: Exception) -> None:
        if self._end is None:
            self._end = error
        self._arrived.set()
        self._called.set()

    def _tick(self) -> None:
        self._do(self._session.tick(asyncio.get_running_loop().time()))

    def _check_open(self) -> None:
        if isinstance(self._end, ClosedError):
            raise self._end.with_traceback(None)
        if self._end is not None:
            raise MeshClosed(f"the signalling transport has ended: {self._end}") from self._end

    # --- the task ------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            while self._session.state is not State.CLOSED:
                await self._called.wait()
                self._called.clear()
                if (line := self._line) is not None:
                    await self._converse(line)
        except Exception as exc:
            # A fault of the code here or of a wire: `receive` must not wait for ever because of it.
            self._finish(exc)
            raise

    async def _converse(self, line: _Line) -> None:
        """One connection, from the attempt to its end."""
        loop = asyncio.get_running_loop()
        wire: Wire | None = None
        token: str | None = None
        try:
            async with asyncio.timeout(None) as line.scope:
                token = await self._token()
                if not line.hung_up:
                    wire = await self._connect()
        except TimeoutError:
            if not line.hung_up:
                raise
        except SignalingUnavailable as exc:
            if not line.hung_up:
                self._log.debug("no connection", reason=str(exc))
                self._line = None
                self._do(self._session.connection_failed(str(exc), loop.time()))
        finally:
            line.scope = None
        if wire is None:
            return
        try:
            if line.hung_up:
                return
            self._do(self._session.connected(loop.time(), token))
            async with asyncio.TaskGroup() as group:
                writer = group.create_task(self._write(line, wire))
                watcher = group.create_task(self._watch(line, wire))
                if await self._read(line, wire):
                    with suppress(TimeoutError):
                        async with asyncio.timeout(CLOSE_TIMEOUT):
                            await writer
                            await wire.close()
                writer.cancel()
                watcher.cancel()
        finally:
            await wire.abort()

    async def _token(self) -> str | None:
        """The join token of this attempt."""
        source = self._join_token
        if source is None or isinstance(source, str):
            return source
        try:
            token: object = await source()
        except (Exception, asyncio.CancelledError) as exc:
            task = asyncio.current_task()
            if isinstance(exc, asyncio.CancelledError) and task is not None and task.cancelling():
                raise
            # Not its text, which may have a token or a password in it.
            why = f"no join token: join_token raised {type(exc).__name__}"
            raise SignalingUnavailable(why) from exc
        if not _is_token(token):
            raise SignalingUnavailable(_BAD_TOKEN.format("what join_token returned"))
        return token

    async def _watch(self, line: _Line, wire: Wire) -> None:
        """Look whether the wire works whenever that is doubted, and end it when it does not."""
        while True:
            await line.doubted.wait()
            line.doubted.clear()
            reason = await self._checked(line, wire)
            if reason is not None:
                self._log.info("the connection does not work any more", reason=reason)
                self._hurried = True
                await wire.abort()
                return

    async def _checked(self, line: _Line, wire: Wire) -> str | None:
        """What is wrong with a wire in doubt; None when it works."""
        checking = asyncio.ensure_future(wire.check())
        try:
            while not checking.done():
                if wire.moved():
                    return "the way to it has changed"
                doubted = asyncio.ensure_future(line.doubted.wait())
                try:
                    await asyncio.wait({checking, doubted}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    doubted.cancel()
                    await asyncio.wait({doubted})
                if not checking.done():  # else what came now is another doubt
                    line.doubted.clear()
        finally:
            checking.cancel()
            await asyncio.wait({checking})
        try:
            if not checking.cancelled():
                checking.result()
        except SignalingUnavailable as exc:
            return str(exc)
        return None

    async def _read(self, line: _Line, wire: Wire) -> bool:
        """Feed the session until the line is hung up (True) or the wire is gone (False)."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(None) as line.scope:
                while True:
                    while (
                        len(self._events) >= MAX_EVENTS
                        or self._unread >= MAX_UNREAD
                        or len(line.outgoing) >= MAX_EVENTS
                    ):
                        self._room.clear()
                        await self._room.wait()
                    data = await wire.recv()
                    if line.hung_up:
                        return True
                    self._do(self._session.received(data, loop.time()))
        except TimeoutError:
            if not line.hung_up:
                raise
        except SignalingUnavailable as exc:
            if not line.hung_up:
                self._line = None
                self._do(self._session.dropped(str(exc), loop.time()))
                if self._hurried:
                    self._hurried = False
                    self._do(self._session.hurry(loop.time()))
                return False
        finally:
            line.scope = None
        return True

    async def _write(self, line: _Line, wire: Wire) -> None:
        """Send what is to be sent; ends with the wire, or when all is said on a hung-up line."""
        while True:
            while line.outgoing or line.frames:
                # On a line that is hung up the last message is a goodbye.
                data_first = line.frames and (line.hung_up or not line.outgoing)
                queue = line.frames if data_first else line.outgoing
                try:
                    await wire.send(queue.popleft())
                except SignalingUnavailable:
                    # The reading half learns it too, and the session from that. Nothing piles up
                    # meanwhile, or that half might wait for room.
                    line.outgoing = line.frames = deque(maxlen=0)
                    self._room.set()
                    return
                self._room.set()
            if line.hung_up:
                return
            line.wake.clear()
            await line.wake.wait()


_BAD_TOKEN = "{} is no join token: it must be a str of 1 to 4096 printable ASCII characters"


def _is_token(token: object) -> TypeGuard[str]:
    try:
        convert(token, JoinToken)
    except ValidationError:
        return False
    return True
