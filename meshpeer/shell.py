"""The asyncio shell around `core.node`: feeds it, does what it returns, keeps one timer.

What it owns it awaits: a runner task holds a task group with the reader of the signalling
transport, one worker for each peer whose connections have something to do, and one task for each
callback. Nothing else runs.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from os import PathLike
from typing import Any

from msgspec.structs import replace

from meshpeer.alarm import Alarm
from meshpeer.announcer import Announcer, Callback
from meshpeer.config import IceServer, MeshConfig
from meshpeer.core.delivery import Outgoing, Received
from meshpeer.core.events import (
    BadInput,
    CandidatePair,
    Closed,
    ConnectionReport,
    Event,
    IceServerOutcome,
    IceServerReport,
    Joined,
    MeshState,
    MessagesUndelivered,
    NoticeReceived,
    PeerJoined,
    PeerLeft,
    PeerState,
    PeerStateChanged,
    PeerUpdated,
    Replaced,
    SignalingChanged,
)
from meshpeer.core.frames import OVERHEAD, Role
from meshpeer.core.link import AcceptAnswer, AcceptOffer, AddCandidates, CloseConnection, MakeOffer
from meshpeer.core.messages import IceCandidate, Join, SignalOut, Welcome
from meshpeer.core.node import (
    RELAY,
    Deliver,
    Node,
    NodeOutput,
    Ponged,
    Probe,
    Ready,
    ReportLinks,
    RequestsRefused,
    Run,
    SendFrame,
    Signal,
    Tell,
    UseServers,
)
from meshpeer.core.values import Kind
from meshpeer.errors import (
    ChannelClosed,
    ClosedError,
    IdentityReplaced,
    MeshClosed,
    MeshError,
    MeshTimeout,
    MessageTooLarge,
    PeerClosed,
    ProtocolError,
    RefusedError,
    Removed,
    RequestFailed,
    SignalingBacklog,
    SignalingUnavailable,
    TooManyChannels,
    Undelivered,
)
from meshpeer.files import CHANNEL as FILES
from meshpeer.files import CHUNK, FileProgress, Files, FileSent
from meshpeer.inbox import Inbox
from meshpeer.log import Log
from meshpeer.peer import (
    Budget,
    Channel,
    ChannelOpened,
    Line,
    LinkFacts,
    Message,
    PathTest,
    Peer,
    PeerRecord,
    encoded,
)
from meshpeer.rtc.base import LOW_BUFFER, Candidate, Connection, ConnectionFactory, RawChannel
from meshpeer.signaling.base import (
    ForwardRoom,
    FrameIn,
    SignalingEvent,
    SignalingLost,
    SignalingTransport,
)
from meshpeer.streams import Bell, Stream

__all__ = ["Shell"]

_MAX_SERVERS = 100
"""ICE servers whose latest outcome is kept; the signalling service may name others each time."""
_FRAME = 32 * 1024
"""Bytes that a frame of messages may have: what follows waits for it on the path."""
_BURST = 64 * 1024
"""Bytes that a loop of `Peer.send` gets accepted before it lets others have their turn."""
_COMPLAIN_EVERY = 1.0
"""Seconds between two `BadInput` events about files and channels of a peer."""
_MAX_CHANNELS = 256
"""Plain data channels that one peer may have open."""


@dataclass(slots=True)
class _Lane:
    """The operations on one peer's connections, which run one after another."""

    queue: deque[Run] = field(default_factory=deque)
    connection: Connection | None = None
    key: tuple[str, int] | None = None
    """Incarnation and epoch of the connection, or of the one that is being made."""
    worker: asyncio.Task[None] | None = None
    scope: asyncio.Timeout | None = None
    """Around the operation that runs, to end it early when its connection is to be closed."""
    running: Run | None = None

    @property
    def idle(self) -> bool:
        """Whether nobody works on the queue."""
        return self.worker is None or self.worker.done()


class _Observer:
    """Brings what one connection tells to the shell, with the connection's name on it."""

    __slots__ = ("_epoch", "_incarnation", "_peer_id", "_shell")

    def __init__(self, shell: Shell, run: Run) -> None:
        self._shell = shell
        self._peer_id, self._incarnation, self._epoch = run.peer_id, run.incarnation, run.epoch

    def connection_opened(self) -> None:
        shell = self._shell
        shell.do(
            shell.node.connection_opened(self._peer_id, self._incarnation, self._epoch, shell.now())
        )

    def connection_lost(self, reason: str) -> None:
        shell = self._shell
        shell.do(
            shell.node.connection_lost(
                self._peer_id, self._incarnation, self._epoch, reason, shell.now()
            )
        )

    def frame_received(self, data: bytes) -> None:
        shell = self._shell
        outputs = shell.node.frame_received(
            self._peer_id, self._incarnation, self._epoch, data, shell.now()
        )
        shell.do(outputs)

    def buffer_low(self) -> None:
        self._shell.pump(self._peer_id)

    def channel_opened(self, channel: RawChannel) -> None:
        self._shell.channel_opened(self._peer_id, self._incarnation, channel)

    def ice_state_changed(self, state: str) -> None:
        self._do(self._shell.node.ice_state(*self._name, state, self._shell.now()))

    def ice_servers(self) -> Sequence[IceServer]:
        return self._shell.ice_servers

    def candidates_found(self, generation: int, candidates: Sequence[Candidate], end: bool) -> None:
        found = tuple(IceCandidate(*each) for each in candidates)
        node = self._shell.node
        self._do(node.local_candidates(*self._name, generation, found, end, self._shell.now()))

    def server_reported(self, report: IceServerReport) -> None:
        self._shell.server_reported(report)

    def pair_selected(self, generation: int, pair: CandidatePair) -> None:
        shell = self._shell
        self._do(shell.node.pair_selected(*self._name, generation, pair, shell.now()))

    def heard(self, answered: bool) -> None:
        self._do(self._shell.node.heard(*self._name, answered, self._shell.now()))

    def ponged(self, nonce: int) -> None:
        self._do(self._shell.node.ponged(*self._name, nonce, self._shell.now()))

    def path_lost(self, reason: str) -> None:
        self._do(self._shell.node.path_lost(*self._name, reason, self._shell.now()))

    @property
    def _name(self) -> tuple[str, str, int]:
        return self._peer_id, self._incarnation, self._epoch

    def _do(self, outputs: list[NodeOutput]) -> None:
        self._shell.do(outputs)


class _FileWire:
    """What sending a file takes of a peer."""

    def __init__(self, shell: Shell, peer: Peer) -> None:
        self._shell = shell
        self._peer = peer

    async def request(self, data: Any) -> Any:
        return await self._shell.request(self._peer, data, FILES, None)

    async def send(self, data: bytes) -> None:
        shell = self._shell
        await shell.send(self._peer, encoded(data, FILES, shell.max_message_size))


class _FileAnswer:
    """The answer to a request about a file, given now or later."""

    def __init__(self, shell: Shell, peer: Peer, request: Received) -> None:
        self._shell = shell
        self._peer = peer
        self._request = request

    def reply(self, data: Any) -> None:
        self._shell.answer_file(self._peer, self._request, data, Role.REPLY)

    def error(self, text: str) -> None:
        self._shell.answer_file(self._peer, self._request, text, Role.ERROR)


AddressWatch = Callable[[MeshConfig, Callable[[], None]], Coroutine[Any, Any, None]]
"""Runs until it is cancelled, and calls when the addresses of this host have changed."""


def _overtakes(run: Run, running: Run) -> bool:
    """Whether an ICE restart makes the one that is being described pointless."""
    described = (MakeOffer, AcceptOffer)
    return (
        isinstance(run.operation, described)
        and isinstance(running.operation, described)
        and (run.incarnation, run.epoch) == (running.incarnation, running.epoch)
        and run.operation.generation != running.operation.generation > 0
    )


class _Finished(Exception):
    """Ends the runner's task group."""


class Shell:
    """Everything of a `PeerManager` but its public face."""

    def __init__(
        self,
        transport: SignalingTransport,
        join: Join,
        config: MeshConfig,
        factory: Callable[[], ConnectionFactory],
        random: Callable[[], float],
        watch: AddressWatch | None = None,
    ) -> None:
        self.config = config
        self.join = join
        self.state = MeshState.NEW
        self.peers: dict[str, Peer] = {}
        self.error: MeshError | None = None
        """What ended it, when it was not `close`."""
        self.token: str | None = join.token
        self._given_name: str | None = None
        self.ice_servers: Sequence[IceServer] = config.ice_servers
        """Those of the configuration, and those that the signalling service named last."""
        self.server_reports: dict[str, IceServerReport] = {}
        """What came of asking each ICE server the last time, by its URL."""
        self.node: Node
        self.bell = Bell()
        """Rings when a peer came, went or changed its state, and at the end."""
        self.log = Log(room=join.room, peer_id=join.peer_id, incarnation=join.incarnation)
        self._transport = transport
        self._make_factory = factory
        self._factory: ConnectionFactory
        self._random = random
        self._watch = watch
        self._records: dict[str, PeerRecord] = {}
        self._lanes: dict[str, _Lane] = {}
        self._loop: asyncio.AbstractEventLoop
        self._tasks: asyncio.TaskGroup | None = None
        self._opening: asyncio.Task[Welcome] | None = None
        self._runner: asyncio.Task[None] | None = None
        self._running = asyncio.Event()
        self._closed = asyncio.Event()
        self._stop = asyncio.Event()
        self._alarm = Alarm(self._tick)
        self._inbox = Inbox(config.receive_window, self._taken)
        self._announcer = Announcer(config.max_pending_events, self.log)
        self.files = Files(chunk=min(CHUNK, config.max_message_size))
        self._confirming: asyncio.Timeout | None = None
        self._requests = count(1)
        self._corked: dict[str, bool] = {}
        """Peers that something was just sent to, and whether there is more since."""

    # --- life ---

    async def start(self) -> None:
        """Enter the room. See `PeerManager.start`."""
        if self.state is not MeshState.NEW:
            raise MeshClosed(
                f"a PeerManager starts once; this one is {self.state}", reason=str(self.state)
            )
        self.state = MeshState.JOINING
        self._loop = asyncio.get_running_loop()
        try:
            self._factory = self._make_factory()
            self._opening = asyncio.create_task(self._open())
            welcome = await self._opening
        except BaseException as exc:
            self.error = exc if isinstance(exc, MeshError) else None
            await self._transport.close()
            self._ended("not started")
            task = asyncio.current_task()
            if self._stop.is_set() and not (task and task.cancelling()):
                raise MeshClosed("it was closed before it had entered the room") from None
            raise
        self.node = Node(
            self.config,
            peer_id=welcome.peer_id,
            incarnation=self.join.incarnation,
            random=self._random,
        )
        self._runner = asyncio.create_task(self._run(welcome), name="meshpeer runner")
        try:
            await self._running.wait()
        except asyncio.CancelledError:
            await self.close()
            raise
        if self._stop.is_set():
            await self.close()
            raise self.closed_error()

    async def _open(self) -> Welcome:
        scope = asyncio.timeout(self.config.join_timeout)
        try:
            async with scope:
                return await self._transport.open(self.join)
        except TimeoutError:
            if not scope.expired():
                raise
        why = self._transport.last_failure or "no answer"
        if isinstance(why, RefusedError):
            raise why
        raise SignalingUnavailable(
            f"could not enter room {self.join.room!r} within {self.config.join_timeout:g} s: {why}"
        )

    async def close(self) -> None:
        """Leave the room. See `PeerManager.close`."""
        self._stop.set()
        if self.state is MeshState.NEW:
            await self._transport.close()
            self._ended("closed")
        if self._runner is None:
            if self._opening is not None:
                self._opening.cancel()
                await self._closed.wait()
            return
        for record in self._records.values():
            record.bell.ring()
        self.bell.ring()
        if self._announcer.runs_here():
            # Called from a callback, for which the end waits: it comes when the callback returns.
            return
        try:
            await asyncio.shield(self._runner)
        except asyncio.CancelledError:
            # Whoever cancels is in a hurry: nothing is waited for but the ends of what is open.
            if self._confirming is not None and not self._confirming.expired():
                self._confirming.reschedule(self.now())
            await asyncio.wait([self._runner])
            raise

    async def _run(self, welcome: Welcome) -> None:
        crash: list[Exception] = []

        async def live(callbacks: asyncio.Timeout) -> None:
            reason = "closed"
            try:
                await self._live(welcome)
            except Exception as exc:  # a fault of ours or of a transport: raised when all is closed
                crash.append(exc)
                self.error = MeshClosed(f"this PeerManager failed: {exc!r}", reason="failed")
                self.log.exception("failed")
            finally:
                if self.error is not None:
                    reason = getattr(self.error, "reason", "failed")
                self._running.set()
                self._tasks = None
                await self._tear_down(reason)
                callbacks.reschedule(self.now() + self.config.close_timeout)

        await self._announcer.run(live)
        if crash:
            raise crash[0]

    async def _live(self, welcome: Welcome) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                self._signaled(welcome)
                self._spawn(self._read_signaling())
                if self._watch is not None:
                    self._spawn(self._watch(self.config, self.addresses_changed))
                self._running.set()
                try:
                    await self._stop.wait()
                    if self.error is None:
                        await self._confirm_all()
                finally:
                    # The group takes no more tasks while it ends, and what arrives then is told.
                    self._tasks = None
                raise _Finished
        except* _Finished:
            pass

    async def _tear_down(self, reason: str) -> None:
        # Before the peers go: who receives a file is told of our end, not of theirs.
        self.files.end(self.error)
        leaves = not isinstance(self.error, IdentityReplaced | Removed)
        self.do(self.node.close(self.now(), leaves=leaves))
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._transport.close())
                group.create_task(self.files.close())
                for lane in self._lanes.values():
                    if lane.connection is not None:
                        group.create_task(self._close_connection(lane.connection))
        finally:
            self._ended(reason)

    def _ended(self, reason: str) -> None:
        self.state = MeshState.CLOSED
        self._tell(Closed(reason=reason, error=self.error))
        self._inbox.end(self.error)
        self._announcer.end()
        self.bell.ring()
        self._closed.set()

    def _fail(self, error: MeshError) -> None:
        """The signalling service ended us."""
        self.error = error
        if isinstance(error, IdentityReplaced):
            self._tell(Replaced(peer_id=self.join.peer_id))
        self.log.info("ended by the signalling service", error=str(error))
        self._stop.set()

    def closed_error(self) -> MeshError:
        """What a call on a closed manager raises."""
        if isinstance(self.error, ClosedError):
            return type(self.error)(str(self.error), reason=self.error.reason)
        state = "closing" if self._stop.is_set() and not self._closed.is_set() else str(self.state)
        why = f" ({self.error})" if self.error is not None else ""
        return MeshClosed(f"this PeerManager is {state}{why}", reason=state)

    def check_running(self) -> None:
        """Raise `MeshClosed` when it is not started, or is closed."""
        if self.state in (MeshState.NEW, MeshState.CLOSED) or self._stop.is_set():
            raise self.closed_error()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        assert self._tasks is not None
        return self._tasks.create_task(coroutine)

    @property
    def closed(self) -> bool:
        """Whether nothing more will happen."""
        return self._closed.is_set()

    # --- signalling ---

    async def _read_signaling(self) -> None:
        while True:
            try:
                event = await self._transport.receive()
            except MeshError as error:
                self._fail(error)
                return
            self._signaled(event)

    def _signaled(self, event: SignalingEvent) -> None:
        now = self.now()
        match event:
            case SignalingLost(reason, retry_in):
                self.log.info("signalling lost", reason=reason, retry_in=retry_in)
                self.state = MeshState.RECONNECTING
                self._tell(SignalingChanged(state=self.state, reason=reason, retry_in=retry_in))
                self.do(self.node.signaling_lost(now))
                return
            case Welcome():
                self.token = event.token
                self.join = replace(self.join, peer_id=event.peer_id)
                self._given_name = event.name
                self.log = self.log.bind(peer_id=event.peer_id)
                self.log.info("joined", resumed=event.resumed, members=len(event.members))
                self.state = MeshState.JOINED
                reason = "resumed" if event.resumed else "joined"
                self._tell(SignalingChanged(state=self.state, reason=reason))
                self._tell(
                    Joined(
                        peer_id=event.peer_id,
                        room=event.room,
                        incarnation=event.incarnation,
                        resumed=event.resumed,
                    )
                )
            case FrameIn(sender, incarnation, data):
                self.do(self.node.forwarded(sender, incarnation, data, now))
                return
            case ForwardRoom(peer_id):
                self.pump(peer_id)
                return
            case _:
                pass
        self.do(self.node.signaling(event, now))

    def update(self, name: str | None, metadata: dict[str, Any] | None) -> None:
        """Tell the room a new name or metadata."""
        self.check_running()
        self._transport.update(name, metadata)
        join = self.join
        self.join = replace(
            join,
            name=join.name if name is None else name,
            metadata=join.metadata if metadata is None else metadata,
        )

    @property
    def name(self) -> str | None:
        """Our display name, as the others see it."""
        return self.join.name if self._given_name is None else self._given_name

    # --- driving the node ---

    def now(self) -> float:
        """The event loop's clock."""
        return self._loop.time()

    def do(self, outputs: list[NodeOutput]) -> None:
        """Do what the node said."""
        for output in outputs:
            match output:
                case Deliver():
                    self.deliver(output)
                case Ready(peer_id):
                    self.pump(peer_id)
                    if (peer_record := self._records.get(peer_id)) is not None:
                        peer_record.bell.ring()
                case SendFrame(peer_id, path, data):
                    self._send_frame(peer_id, path, data)
                case Ponged(peer_id, nonce):
                    record = self._records[peer_id]
                    record.pings_answered = max(record.pings_answered, nonce)
                    record.bell.ring()
                case RequestsRefused(peer_id, numbers):
                    self._requests_refused(peer_id, numbers)
                case Tell(event):
                    self._told(event)
                case Signal(message):
                    self._send_signal(message)
                case Run():
                    self._enqueue(output)
                case Probe(peer_id, epoch, nonce):
                    if (connection := self._connection(peer_id, epoch)) is not None:
                        connection.ping(nonce)
                case UseServers(servers):
                    self.ice_servers = (*self.config.ice_servers, *servers)
                case ReportLinks(links):
                    self._transport.report(links)
        self._alarm.set(self.node.next_deadline())

    def _send_frame(self, peer_id: str, path: int, data: bytes) -> None:
        if path == RELAY:
            if (peer := self.peers.get(peer_id)) is not None:
                self._transport.forward(peer_id, peer.incarnation, data)
        elif (connection := self._connection(peer_id, path)) is not None:
            connection.send_frame(data)

    def _send_soon(self, peer_id: str) -> None:
        """Send what there is, or with the rest of what this turn of the event loop brings."""
        if peer_id in self._corked:
            self._corked[peer_id] = True
            return
        if not self._corked:
            self._loop.call_soon(self._uncork)
        self._corked[peer_id] = False
        self.pump(peer_id)

    def _uncork(self) -> None:
        # Who had more to say is likely to go on: what it says next is put together as well.
        self._corked = {peer_id: False for peer_id, more in self._corked.items() if more}
        if self._corked:
            self._loop.call_soon(self._uncork)
        for peer_id in self._corked:
            self.pump(peer_id)

    def pump(self, peer_id: str) -> None:
        """Send what is ready to a peer, as far as its path takes it."""
        if (peer := self.peers.get(peer_id)) is None:
            return
        delivery = self.node.delivery(peer_id)
        path = delivery.out
        if path is None:
            return
        if path == RELAY:
            transport = self._transport
            while (room := transport.forward_room(peer_id)) > 0:
                if (data := delivery.pull(min(room, _FRAME))) is None:
                    return
                transport.forward(peer_id, peer.incarnation, data)
        elif (connection := self._connection(peer_id, path)) is not None:
            data = None
            while connection.buffered_amount <= 2 * LOW_BUFFER:
                if (more := delivery.pull(_FRAME)) is None:
                    break
                connection.send_frame(data := more)
            if data is not None:
                self.node.spoke(peer_id, self._loop.time())

    def _connection(self, peer_id: str, epoch: int) -> Connection | None:
        lane = self._lanes.get(peer_id)
        return lane.connection if lane and lane.key and lane.key[1] == epoch else None

    def _send_signal(self, message: SignalOut) -> None:
        try:
            self._transport.send(message)
        except SignalingBacklog as exc:
            # The attempt it belongs to runs into its deadline, and is made again.
            self.log.warning("signal dropped", to=message.to, error=str(exc))
        except MeshClosed:
            pass  # The transport has ended; its reader says so.

    def addresses_changed(self) -> None:
        """The addresses of this host are others now."""
        self.log.info("the local addresses changed")
        self._transport.doubt(network_changed=True)
        self.do(self.node.addresses_changed(self.now()))

    def server_reported(self, report: IceServerReport) -> None:
        """An ICE server was asked by a connection."""
        before = self.server_reports.get(report.url)
        self.server_reports[report.url] = report
        if len(self.server_reports) > _MAX_SERVERS:
            del self.server_reports[next(iter(self.server_reports))]
        if before is None or (before.outcome, before.detail) != (report.outcome, report.detail):
            found = report.outcome is IceServerOutcome.FOUND
            (self.log.info if found else self.log.warning)(
                "ICE server", url=report.url, outcome=str(report.outcome), detail=report.detail
            )
            self._tell(report)

    def restart_ice(self, peer_id: str | None) -> None:
        """Begin an ICE restart with a peer, or with all."""
        self.do(self.node.force_restart(peer_id, self.now()))

    def _tick(self) -> None:
        self.do(self.node.tick(self.now()))

    def record(self, peer_id: str, incarnation: str) -> PeerRecord | None:
        """What is kept of this incarnation of a peer, while it is there."""
        peer = self.peers.get(peer_id)
        return self._records[peer_id] if peer and peer.incarnation == incarnation else None

    # --- operations on connections ---

    def _enqueue(self, run: Run) -> None:
        lane = self._lanes.get(run.peer_id)
        if lane is None:
            lane = self._lanes[run.peer_id] = _Lane()
        if isinstance(run.operation, CloseConnection):
            key = (run.incarnation, run.epoch)
            # What is still to be done for it is pointless now, and what is being done as well.
            for waiting in [r for r in lane.queue if (r.incarnation, r.epoch) == key]:
                lane.queue.remove(waiting)
            if lane.key == key:
                self._end_early(lane)
            if (record := self.record(run.peer_id, run.incarnation)) is not None:
                record.bell.ring()
        elif lane.running is not None and _overtakes(run, lane.running):
            self._end_early(lane)
        lane.queue.append(run)
        if lane.idle and self._tasks is not None:
            lane.worker = self._spawn(self._work(run.peer_id, lane))

    def _end_early(self, lane: _Lane) -> None:
        """End the operation that runs, if one does and was not told to end before."""
        if lane.scope is not None and not lane.scope.expired():
            lane.scope.reschedule(self.now())

    async def _work(self, peer_id: str, lane: _Lane) -> None:
        while lane.queue:
            run = lane.queue.popleft()
            if not isinstance(run.operation, CloseConnection):
                await self._operate(lane, run)
            elif lane.connection is not None and lane.key == (run.incarnation, run.epoch):
                # It stays in the lane until it is closed: whoever ends this task closes it.
                await self._close_connection(lane.connection)
                lane.connection = lane.key = None
        if lane.connection is None and peer_id not in self.peers:
            self._lanes.pop(peer_id, None)

    async def _operate(self, lane: _Lane, run: Run) -> None:
        log = self.log.bind(
            peer=run.peer_id, epoch=run.epoch, operation=type(run.operation).__name__
        )
        facts = (run.peer_id, run.incarnation, run.epoch)
        try:
            sdp = await self._run_operation(lane, run)
        except MeshError as error:
            log.info("operation failed", error=str(error))
            self.do(self.node.operation_failed(*facts, run.operation, error, self.now()))
        except TimeoutError:
            log.debug("operation given up")
        else:
            if isinstance(run.operation, MakeOffer | AcceptOffer) and sdp is not None:
                self.do(self.node.operation_done(*facts, run.operation, sdp, self.now()))

    async def _run_operation(self, lane: _Lane, run: Run) -> str | None:
        """The local description, when the operation makes one. TimeoutError when it is given up."""
        if isinstance(run.operation, MakeOffer | AcceptOffer) and not run.operation.generation:
            assert lane.connection is None, "the old connection is closed before the new one speaks"
            if self.record(run.peer_id, run.incarnation) is None:
                return None  # it left while this waited for its turn
            lane.connection = self._factory(_Observer(self, run))
            lane.key = (run.incarnation, run.epoch)
        connection = lane.connection
        if connection is None or lane.key != (run.incarnation, run.epoch):
            return None
        try:
            async with asyncio.timeout(None) as lane.scope:
                lane.running = run
                match run.operation:
                    case MakeOffer(generation):
                        return await connection.create_offer(generation)
                    case AcceptOffer(sdp, generation):
                        return await connection.accept_offer(generation, sdp)
                    case AcceptAnswer(sdp, generation):
                        await connection.accept_answer(generation, sdp)
                    case AddCandidates(candidates, end, generation):
                        await connection.add_candidates(
                            generation,
                            [(c.candidate, c.sdp_mid, c.sdp_m_line_index) for c in candidates],
                            end,
                        )
                    case CloseConnection():
                        raise AssertionError("the worker closes")
                return None
        finally:
            lane.scope = lane.running = None

    async def _close_connection(self, connection: Connection) -> None:
        scope = asyncio.timeout(self.config.close_timeout)
        try:
            async with scope:
                await connection.close()
        except TimeoutError:
            if not scope.expired():
                raise
            self.log.warning("a connection did not close", within=self.config.close_timeout)
        except Exception:  # whatever it is, the connection is done with
            self.log.exception("a connection failed to close")

    # --- events ---

    def _told(self, event: Event) -> None:
        match event:
            case PeerJoined():
                budget = Budget(self.config.receive_window)
                record = PeerRecord(event.name, event.metadata, budget)
                self._records[event.peer_id] = record
                peer = Peer(self, event.peer_id, event.incarnation, record)
                self.peers[event.peer_id] = peer
                self.files.peer_joined(peer)
            case PeerUpdated():
                record = self._records[event.peer_id]
                record.name, record.metadata = event.name, event.metadata
            case MessagesUndelivered():
                self.log.info("undelivered", peer=event.peer_id, messages=len(event.messages))
                record = self._records[event.peer_id]
                record.undelivered += event.messages
            case PeerLeft():
                peer = self.peers.pop(event.peer_id)
                record = self._records.pop(event.peer_id)
                record.closed_reason = event.reason
                for waiting in record.requests.values():
                    if not waiting.done():
                        waiting.set_exception(self._over(peer, record))
                self._inbox.peer_left(peer)
                self.files.peer_left(peer)
                for channel in list(record.channels):
                    channel.abandon(f"the peer is gone ({event.reason})")
                record.bell.ring()
                lane = self._lanes.get(event.peer_id)
                if lane is not None and lane.idle and lane.connection is None:
                    del self._lanes[event.peer_id]
            case PeerStateChanged():
                record = self._records[event.peer_id]
                record.bell.ring()
                if event.state is PeerState.DISCONNECTED:
                    # Was it that peer, or is it the network?
                    self._transport.doubt(network_changed=False)
                self.log.info(
                    "peer state",
                    peer=event.peer_id,
                    epoch=event.epoch,
                    state=str(event.state),
                    reason=event.reason,
                )
            case ConnectionReport():
                self._records[event.peer_id].bell.ring()
            case NoticeReceived(text=text):
                self.log.info("notice of the operator", text=text)
            case BadInput():
                self.log.warning("refused", peer=event.peer_id, error=str(event.error))
            case _:
                pass
        self._tell(event)

    def _tell(self, event: Event) -> None:
        self.bell.ring()
        self._announcer.tell(event)

    def events(self) -> Stream[Event]:
        """A stream of every event from now on."""
        return self._announcer.events()

    def on(self, kind: type[Event], callback: Callback) -> Callable[[], None]:
        """Call ``callback`` with every event of this kind. Returns what ends it."""
        return self._announcer.on(kind, callback)

    # --- messages ---

    def messages(self, channel: str | None) -> Stream[Message]:
        """A stream of messages: what nobody has asked for yet, then everything from now on."""
        stream = self._inbox.reader(channel)
        if self.closed:
            stream.end(self.error)
        return stream

    def deliver(self, output: Deliver) -> None:
        """Messages for the application."""
        record = self._records[output.peer_id]
        messages = output.messages
        peer = self.peers[output.peer_id]
        if len(messages) == 1 and not messages[0].role and messages[0].channel != FILES:
            self._inbox.deliver(peer, output.path, messages, time.time())
            return
        # Answers have somebody who waits for them, and files are written where they go.
        plain = [m for m in messages if m.role <= Role.REQUEST and m.channel != FILES]
        if len(plain) < len(messages):
            for message in messages:
                if message.role > Role.REQUEST:
                    self._answered_by(peer, record, message)
                elif message.channel == FILES:
                    self._of_a_file(peer, message)
        self._inbox.deliver(peer, output.path, plain, time.time())

    def _answered_by(self, peer: Peer, record: PeerRecord, answer: Received) -> None:
        waiting = record.requests.get(answer.request)
        if waiting is not None and not waiting.done():
            if answer.role is Role.REPLY:
                waiting.set_result(answer.value())
            else:
                waiting.set_exception(RequestFailed(answer.value()))
        self._taken(peer, answer)

    def _requests_refused(self, peer_id: str, numbers: tuple[int, ...]) -> None:
        record = self._records[peer_id]
        for number in numbers:
            waiting = record.requests.get(number)
            if waiting is not None and not waiting.done():
                waiting.set_exception(
                    MessageTooLarge(
                        f"{peer_id!r} does not take this request: it is larger than its limit, or "
                        "on one channel more than it has room for"
                    )
                )

    def _of_a_file(self, peer: Peer, message: Received) -> None:
        taken = partial(self._taken, peer, message)
        answer = _FileAnswer(self, peer, message) if message.role is Role.REQUEST else None
        try:
            if answer is not None:
                self.files.request(peer, message.value(), answer)
            elif message.kind is Kind.BYTES:
                self.files.data(peer, message.payload, taken)
            else:
                raise ProtocolError("a piece of a file is bytes", code="bad_file", field="payload")
        except ProtocolError as error:
            self._complain(peer.id, self._records[peer.id], error)
            if answer is not None:
                answer.error(str(error))
            else:
                taken()

    def answer_file(self, peer: Peer, request: Received, data: Any, role: Role) -> None:
        """Answer a request about a file; dropped when the peer is gone.

        The request counts as taken when its answer is accepted, which waits for room like all that
        goes to this peer: so no peer can have answers pile up that it does not read.
        """
        present = self.peers.get(peer.id)  # it may have left and come back meanwhile
        if self._tasks is not None and present and present.incarnation == peer.incarnation:
            answer = encoded(data, FILES, self.max_message_size, role, request.request)
            self._spawn(self._answer_file(present, request, answer))

    async def _answer_file(self, peer: Peer, request: Received, answer: Outgoing) -> None:
        try:
            await self.send(peer, answer)
        except (PeerClosed, MeshClosed):
            return
        except (MessageTooLarge, TooManyChannels) as exc:
            self.log.warning("a file is not answered for", peer=peer.id, error=str(exc))
        self._taken(peer, request)

    async def send_file(
        self,
        peer: Peer,
        path: str | PathLike[str],
        on_progress: Callable[[FileProgress], object] | None,
        name: str | None,
    ) -> FileSent:
        """Send a file. See `Peer.send_file`."""
        self._present(peer)
        return await self.files.send(peer, _FileWire(self, peer), path, on_progress, name=name)

    def _taken(self, peer: Peer, message: Received) -> None:
        outputs = self.node.taken(peer.id, peer.incarnation, message.number, message.charge)
        if outputs:
            self.do(outputs)

    # --- what a Peer asks for ---

    def report(self, peer_id: str) -> ConnectionReport:
        """How it stands with a peer that is there."""
        return self.node.report(peer_id, self.now())

    def counts(self, peer_id: str) -> dict[str, Any]:
        """The figures of a peer that is there, for the statistics."""
        link, delivery = self.node.link(peer_id), self.node.delivery(peer_id)
        history = link.history
        return {
            "epoch": link.epoch,
            "generation": link.generation,
            "attempts": history.attempts,
            "connections": history.connections,
            "failures": link.failures,
            "connect_time": history.connect_time if history.connections else None,
            "restarts": history.restarts,
            "fallbacks": history.fallbacks,
            "failure": history.failure,
            "messages_sent": delivery.messages_sent,
            "messages_direct": delivery.messages_direct,
            "messages_received": delivery.messages_received,
            "bytes_sent": delivery.bytes_sent,
            "bytes_received": delivery.bytes_received,
        }

    @property
    def max_message_size(self) -> int:
        """The largest message that may be sent, in bytes."""
        return self.config.max_message_size

    def link_facts(self, peer: Peer) -> LinkFacts:
        """How it stands with a peer that is there."""
        node, peer_id = self.node, peer.id
        return LinkFacts(
            node.state_of(peer_id),
            node.ice_state_of(peer_id),
            node.path_of(peer_id),
            node.rtt_of(peer_id),
        )

    async def send(self, peer: Peer, message: Outgoing) -> None:
        """Have a message accepted as soon as its channel has room. See `Peer.send`."""
        record = self._present(peer)
        channel = message.channel
        if (
            channel not in record.lines
            and record.burst < _BURST
            and self._accept(peer, record, message)
        ):
            return
        line = record.lines.setdefault(channel, Line())
        line.waiting += 1
        try:
            async with line.lock:
                if record.burst >= _BURST:
                    record.burst = 0
                    await asyncio.sleep(0)  # a loop that only sends would keep everybody else out
                while not self._accept(peer, self._still(peer, record), message):
                    await record.bell.wait()
        finally:
            line.waiting -= 1
            if not line.waiting:
                del record.lines[channel]

    def _accept(self, peer: Peer, record: PeerRecord, message: Outgoing) -> bool:
        """Take it on now, if there is room."""
        delivery = self.node.delivery(peer.id)
        if not delivery.has_room(message.channel):
            return False
        delivery.accept(message)
        record.burst += message.size + OVERHEAD
        self._send_soon(peer.id)
        return True

    def _still(self, peer: Peer, record: PeerRecord) -> PeerRecord:
        """Like `_present`, for somebody who has been waiting since the peer was."""
        if record.closed_reason is not None:
            raise self._over(peer, record)
        return self._present(peer)

    def _over(self, peer: Peer, record: PeerRecord) -> MeshError:
        """What those are told who have been waiting for a peer that is gone."""
        if self._stop.is_set():
            return self.closed_error()
        if not record.undelivered:
            return self._gone(peer)
        reason = record.closed_reason or "closed"
        return Undelivered(
            f"peer {peer.id!r} is gone ({reason}), and {len(record.undelivered)} messages to it "
            "were not acknowledged",
            reason=reason,
            messages=record.undelivered,
        )

    async def request(self, peer: Peer, data: Any, channel: str, timeout: float | None) -> Any:
        """Send a request, and wait for its answer. See `Peer.request`."""
        record = self._present(peer)
        # Not by peer: one that left may come back, and its late answers with it.
        number = next(self._requests)
        message = encoded(data, channel, self.max_message_size, Role.REQUEST, number)
        answer = record.requests[number] = self._loop.create_future()
        scope = asyncio.timeout(timeout)
        try:
            async with scope:
                await self.send(peer, message)
                return await answer
        except TimeoutError:
            if not scope.expired():
                raise
            raise MeshTimeout(f"{peer.id!r} did not answer within {timeout:g} s") from None
        finally:
            del record.requests[number]
            if not answer.cancel() and not answer.cancelled():
                answer.exception()  # nobody is to be told that it was not looked at

    def _present(self, peer: Peer) -> PeerRecord:
        if self._tasks is None or self._stop.is_set():
            self.check_running()
        if self.peers.get(peer.id) is not peer:
            raise self._gone(peer)
        return self._records[peer.id]

    def _gone(self, peer: Peer) -> PeerClosed:
        reason = peer.closed_reason or "closed"
        return PeerClosed(f"peer {peer.id!r} is gone ({reason})", reason=reason)

    async def flush(self, peer: Peer, timeout: float | None) -> None:
        """Wait until everything accepted so far has arrived."""
        self._present(peer)
        scope = asyncio.timeout(timeout)
        try:
            async with scope:
                await self._confirm(peer)
        except TimeoutError:
            if not scope.expired():
                raise
            raise MeshTimeout(
                f"{peer.id!r} did not confirm within {timeout:g} s that everything has arrived"
            ) from None

    async def _confirm(self, peer: Peer) -> None:
        """Wait until all that is accepted now has arrived."""
        record = self.record(peer.id, peer.incarnation)
        if record is None:
            raise self._gone(peer)
        delivery = self.node.delivery(peer.id)
        mark = delivery.mark()
        if not mark:
            return
        delivery.ask()
        self.pump(peer.id)
        while not delivery.arrived(mark):
            if record.closed_reason is not None:
                raise self._over(peer, record)
            await record.bell.wait()

    async def _answered(self, peer: Peer, record: PeerRecord) -> bool:
        """Send a ping on the path that messages take; True when it is answered, False when that
        path is gone."""
        record.pings_sent += 1
        nonce = record.pings_sent
        delivery = self.node.delivery(peer.id)
        path = delivery.out
        self.do(self.node.ping(peer.id, nonce))
        while record.pings_answered < nonce:
            if record.closed_reason is not None:
                raise self._gone(peer)
            if path is None or delivery.out != path:
                return False
            await record.bell.wait()
        return True

    async def test_path(self, peer: Peer, timeout: float) -> PathTest:
        """A round trip over the message channel; whatever goes wrong is in the result."""
        record = self.record(peer.id, peer.incarnation)
        path = error = None
        began = self.now()
        if record is None or (facts := self.link_facts(peer)).state is not PeerState.CONNECTED:
            error = f"the peer is {peer.state}"
        else:
            path = facts.path
            scope = asyncio.timeout(timeout)
            try:
                async with scope:
                    if not await self._answered(peer, record):
                        error = "the path changed meanwhile"
            except TimeoutError:
                if not scope.expired():
                    raise
                error = f"no answer within {timeout:g} s"
            except PeerClosed as exc:
                error = str(exc)
        rtt = self.now() - began if error is None else None
        return PathTest(peer_id=peer.id, path=path, rtt=rtt, error=error)

    async def _confirm_all(self) -> None:
        async def confirm(peer: Peer) -> None:
            with suppress(PeerClosed, MeshClosed):
                await self._confirm(peer)

        self._confirming = scope = asyncio.timeout(self.config.close_timeout / 2)
        try:
            async with scope, asyncio.TaskGroup() as group:
                for peer in self.peers.values():
                    group.create_task(confirm(peer))
        except TimeoutError:
            if not scope.expired():
                raise
        finally:
            self._confirming = None

    def open_channel(
        self,
        peer: Peer,
        label: str,
        *,
        ordered: bool,
        max_retransmits: int | None,
        max_packet_life_time: int | None,
    ) -> Channel:
        """Open a plain data channel to a connected peer."""
        record = self._present(peer)
        connection = self._lanes[peer.id].connection
        if connection is None:
            raise ChannelClosed(f"the connection to {peer.id!r} has just ended", reason="closed")
        raw = connection.open_channel(
            label,
            ordered=ordered,
            max_retransmits=max_retransmits,
            max_packet_life_time=max_packet_life_time,
        )
        return self._channel(peer, record, raw)

    def _complain(self, peer_id: str, record: PeerRecord, error: ProtocolError) -> None:
        # Nothing ends that could keep more of it from coming: it is told now and then.
        if self.now() - record.complained >= _COMPLAIN_EVERY:
            record.complained = self.now()
            self._told(BadInput(peer_id=peer_id, error=error))

    def channel_opened(self, peer_id: str, incarnation: str, raw: RawChannel) -> None:
        """The other side opened a plain data channel."""
        record = self.record(peer_id, incarnation)
        if record is None:
            raw.close()
            return
        if len(record.channels) >= _MAX_CHANNELS:
            raw.close()
            error = ProtocolError(
                f"{peer_id!r} has {_MAX_CHANNELS} channels open, the limit; one more was closed",
                code="too_many_channels",
                field="label",
            )
            self._complain(peer_id, record, error)
            return
        channel = self._channel(self.peers[peer_id], record, raw)
        self._told(ChannelOpened(peer_id=peer_id, channel=channel))

    def _channel(self, peer: Peer, record: PeerRecord, raw: RawChannel) -> Channel:
        channel = Channel(
            raw,
            peer,
            budget=record.budget,
            send_buffer=self.config.send_buffer,
            closed=record.channels.discard,
        )
        record.channels.add(channel)
        return channel
