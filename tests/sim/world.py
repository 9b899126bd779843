"""A world in virtual time: peers, a relay, and networks that fail. One seeded queue, no asyncio.

Each process is a real `Node` and a real `Session`; the relay is a real `Rooms`. What lies between
them is modelled here: sockets that drop (and whose ends notice at different times), paths between
hosts, and connections that behave as aiortc's do (see `Conn`). What must always hold is checked as
it happens, by `assert`; `World.check_settled` and `World.check_nothing_left` check the rest.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import math
import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from msgspec import Raw

from meshpeer.config import MeshConfig, OnConflict, RelayConfig
from meshpeer.core import frames, rooms, session
from meshpeer.core.delivery import Outgoing
from meshpeer.core.events import (
    BadInput,
    CandidateInfo,
    CandidatePair,
    ConnectionReport,
    Event,
    MessagesUndelivered,
    NoticeReceived,
    Path,
    PeerJoined,
    PeerLeft,
    PeerState,
    PeerStateChanged,
    PeerUpdated,
)
from meshpeer.core.forward import ForwardRoom, FrameIn
from meshpeer.core.link import (
    AcceptAnswer,
    AcceptOffer,
    AddCandidates,
    CloseConnection,
    LinkState,
    MakeOffer,
    Operation,
)
from meshpeer.core.messages import (
    VERSION,
    IceCandidate,
    Join,
    SignalIn,
    Welcome,
    decode_link,
)
from meshpeer.core.node import (
    RELAY as OVER_RELAY,
)
from meshpeer.core.node import (
    Deliver,
    Node,
    NodeOutput,
    Probe,
    Ready,
    ReportLinks,
    Run,
    SendFrame,
    Signal,
    Tell,
    UseServers,
)
from meshpeer.core.route import RouteState
from meshpeer.core.tracking import Metrics
from meshpeer.core.values import encode_value
from meshpeer.errors import (
    ConfigError,
    ConnectionFailed,
    IdentityReplaced,
    MeshError,
    PeerIdTaken,
    ProtocolError,
    Removed,
    SignalingBacklog,
)

__all__ = ["MESH", "OVER_RELAY", "RELAY", "Conn", "Process", "World"]

# Shorter waits than the defaults, so that a run has many of them.
MESH = MeshConfig(retry_max=8.0, signaling_retry_max=4.0, upgrade_max=8.0)
RELAY = RelayConfig(seat_timeout=10.0)
ROOM = "room"
NOTICE = "the relay restarts at noon"
HOST = CandidateInfo("host", "192.0.2.1", 4000)
OVER = CandidateInfo("relay", "198.51.100.1", 5000, "turn:turn.example.org")
DIRECT, TURN = CandidatePair(HOST, HOST), CandidatePair(OVER, HOST)
CANDIDATE = IceCandidate("candidate:1 1 udp 1 192.0.2.1 4000 typ host", "0", 0)

LinkStates = {
    LinkState.WAITING,
    LinkState.OFFERING,
    LinkState.OFFERED,
    LinkState.ANSWERING,
    LinkState.CHECKING,
    LinkState.CONNECTED,
    LinkState.DISCONNECTED,
    LinkState.FAILED,
}
# The longest that a peer is told nothing while an attempt follows another: a disconnection whose
# restart is answered at last, then both attempts of a side, each with a restart, and once more
# because the other side may begin one just before.
QUIET = MESH.disconnected_timeout + 9 * MESH.connect_timeout
# The longest that nothing is heard on a connection that is called connected, and a little more: it
# is looked at between events.
SILENT = MESH.silence_timeout + MESH.ping_interval + 0.5
# The states that may follow each other, as they are told. Over the relay a peer may be connected in
# each of them.
FOLLOWS = {
    PeerState.NEW: {PeerState.CONNECTING, PeerState.CONNECTED, PeerState.FAILED},
    PeerState.CONNECTING: {PeerState.CONNECTED, PeerState.FAILED},
    PeerState.CONNECTED: {PeerState.DISCONNECTED},
    PeerState.DISCONNECTED: {PeerState.CONNECTED, PeerState.FAILED},
    PeerState.FAILED: {PeerState.CONNECTING, PeerState.CONNECTED, PeerState.DISCONNECTED},
}
# Bytes that a socket takes before it is full, and that a connection has under way before it takes
# no more.
SOCKET_FULL = 100_000
BUFFER = 128 * 1024
# How often one side may begin to connect to another in how many seconds, however things fail.
ATTEMPTS = 10
ATTEMPTS_IN = 8.0


def _decodes(event: SignalIn) -> bool:
    try:
        decode_link(event.body)
    except ProtocolError:
        return False
    return True


def sdp(text: str) -> str:
    return (
        "v=0\r\nm=application 9\r\na=ice-ufrag:u\r\na=ice-pwd:p\r\na=fingerprint:f\r\n"
        f"a=sim:{text}\r\n"
    )


class Socket:
    """A connection between a session and the relay. Ordered; what is under way dies with it."""

    def __init__(self, number: int, process: Process) -> None:
        self.number = number
        self.process = process
        self.carries = True
        self.client_open = True
        self.relay_open = False
        self.to_relay_at = 0.0
        self.to_client_at = 0.0
        # Data goes behind signals.
        self.data_to_relay_at = 0.0
        self.data_to_client_at = 0.0
        self.unread = 0
        """Bytes of data that are on the way to the client."""
        self.full = False


class Conn:
    """One end of a peer connection, as honest as the real one.

    Operations take their time and may fail. It opens, each end by itself, when both have the
    descriptions of each other, one has a candidate of the other, and the path passes both ways.
    Frames are carried in order, again and again while the path is out, and never twice. The other
    end hears of a close when the path passes, else by consent that expires after 25 to 40 s; of a
    crash only so.

    An ICE restart exchanges another generation of descriptions. When its path passes both ways it
    takes over, each end by itself, and what was stuck goes out at once. A generation's path ends
    for good when the addresses it was made with do; a later restart replaces one that has not
    taken over.
    """

    def __init__(self, number: int, process: Process, peer_id: str, incarnation: str, epoch: int):
        self.number = number
        self.process = process
        self.peer_id = peer_id
        self.incarnation = incarnation
        self.epoch = epoch
        self.offer: int | None = None
        """The number of the end whose offer this one answers."""
        self.remote: Conn | None = None
        self.opened = False
        self.heard_at = 0.0
        self.closed = False
        self.arrive_at = 0.0
        self.buffered = 0
        """Bytes of frames that have not arrived."""
        self.stuck: deque[bytes] = deque()
        """Frames to the other end that wait for the path."""
        self.early: deque[bytes] = deque()
        """Frames that came before this end was told that it is open."""
        # ICE generations, by number.
        self.latest = 0
        """The newest that this end has begun or answered."""
        self.carrying = 0
        self.kept = {0}
        """Those over which this end still receives."""
        self.described: set[int] = set()
        """Those that this end has made a description for."""
        self.dead: set[int] = set()
        """Those whose path has ended for good at this end."""
        self.candidates: set[int] = set()
        """Those for which it has a candidate of the other end."""


@dataclass
class Known:
    """What an application was told of a peer."""

    incarnation: str
    state: PeerState = PeerState.NEW
    since: float = 0.0
    relay_heard_at: float = 0.0
    """When something came over the relay."""
    accepted: deque[tuple[str, int, tuple[int, int]]] = field(default_factory=deque)
    """Channel, number and place of each message that it has not acknowledged."""


@dataclass
class Host:
    """A machine that runs one process at a time, and keeps the resume token on its disk."""

    number: int
    peer_id: str
    process: Process | None = None
    token: str | None = None
    away_until: float = 0.0
    """Its way to the relay is out until then."""
    mesh: MeshConfig = MESH


class Process:
    """A node, its session, its connections, and a shell around them."""

    def __init__(
        self, world: World, host: Host, *, token: str | None, on_conflict: OnConflict = "reject"
    ) -> None:
        self.world = world
        self.host = host
        self.incarnation = f"incarnation-{world.number()}"
        self.session = session.Session(host.mesh, random=world.rng.random)
        self.node: Node | None = None
        self.socket: Socket | None = None
        self.alive = True
        self.error: MeshError | None = None
        self.stalled_until = 0.0
        self.phase: float | None = None
        """When in each second its timers ring, of a page in the background; and a page does not
        hear of the probes that it gets."""
        self.armed_session: float | None = None
        self.armed_node: float | None = None
        self.conns: dict[str, Conn] = {}
        self.operations: dict[str, deque[Run]] = {}
        self.known: dict[str, Known] = {}
        self.history: list[tuple[float, Event]] = []
        self.messages: list[tuple[float, str]] = []
        """When a message of whom came."""
        self.dialled: dict[tuple[str, bool], deque[float]] = {}
        self.sent = 0
        self.put: dict[tuple[str, str], list[int]] = {}
        """The numbers of the messages that were accepted, by incarnation and channel."""
        self.given_up: dict[tuple[str, str], set[int]] = {}
        """Those of them that were told to be undelivered."""
        self.got: dict[tuple[str, str], list[int]] = {}
        """The numbers of those that came from one."""
        self.came: dict[tuple[str, str], int] = {}
        """How many of what the other side has accepted came or were given up."""
        self.untaken: list[tuple[str, str, int, int]] = []
        """What `take` is to be called with, of messages that the application did not read."""
        world.processes[self.incarnation] = self
        self._join = Join(
            version=VERSION,
            room=ROOM,
            peer_id=host.peer_id,
            incarnation=self.incarnation,
            on_conflict=on_conflict,
            token=token,
        )

    # --- the session ---

    def start(self) -> None:
        self.session_said(self.session.open(self._join, self.world.now))

    def session_said(self, outputs: list[session.Output]) -> None:
        for output in outputs:
            match output:
                case session.Connect():
                    self.world.connect(self)
                case session.Transmit(data):
                    if self.socket is not None:
                        self.world.to_relay(self.socket, data)
                case session.TransmitFrame(data):
                    assert self.socket is not None
                    self.world.data_to_relay(self.socket, data)
                case session.Disconnect():
                    if self.socket is not None:
                        self.world.hang_up(self.socket)
                    self.socket = None
                case session.Lost():
                    if self.node is not None:
                        self.node_said(self.node.signaling_lost(self.world.now))
                case session.Fail(error):
                    self.failed(error)
                case session.Tell(event):
                    self.told(event)
        self.arm()

    def told(self, event: Any) -> None:
        world = self.world
        if isinstance(event, Welcome):
            self.host.token = event.token
            if self.node is None:
                self.node = Node(
                    self.host.mesh,
                    peer_id=event.peer_id,
                    incarnation=self.incarnation,
                    random=world.rng.random,
                )
                self.host.peer_id = event.peer_id  # under "rename" it is the relay that says it
            assert self.node._mesh.peer_id == event.peer_id, "one process, one id"
        assert self.node is not None, "the first thing told is a welcome"
        if isinstance(event, FrameIn):
            known = self.known.get(event.sender)
            if known is not None and known.incarnation == event.incarnation:
                known.relay_heard_at = world.now
            args = (event.sender, event.incarnation, event.data)
            self.node_said(self.node.forwarded(*args, world.now))
            return
        if isinstance(event, ForwardRoom):
            self.pump(event.peer_id)
            return
        if isinstance(event, SignalIn):
            world.signals_seen.append(event)
            for delay in world.signal_fate():
                if delay:
                    world.at(delay, self.signal, event)
                else:
                    self.signal(event)
            return
        self.node_said(self.node.signaling(event, world.now))

    def signal(self, event: SignalIn) -> None:
        if self.alive and self.node is not None:
            self.node_said(self.node.signaling(event, self.world.now))

    def failed(self, error: MeshError) -> None:
        assert isinstance(error, PeerIdTaken | IdentityReplaced | Removed), error
        self.error = error
        if self.node is not None:
            leaves = not isinstance(error, IdentityReplaced | Removed)
            self.node_said(self.node.close(self.world.now, leaves=leaves))
        self.alive = False
        self.host.process = None if self.host.process is self else self.host.process
        self.world.ended(self, error)

    # --- the node ---

    def node_said(self, outputs: list[NodeOutput]) -> None:
        for output in outputs:
            match output:
                case Signal(message):
                    with contextlib.suppress(SignalingBacklog):
                        self.session_said(self.session.send(message))
                case Run():
                    self.run(output)
                case SendFrame(peer_id, path, data):
                    self.send_frame(peer_id, path, data)
                case Ready(peer_id):
                    self.pump(peer_id)
                case Probe(peer_id, epoch, nonce):
                    conn = self.conns.get(peer_id)
                    if conn is not None and conn.epoch == epoch:
                        self.world.probe(conn, nonce)
                case UseServers():
                    pass
                case ReportLinks(links):
                    self.session_said(self.session.report(links))
                case Deliver():
                    self.deliver(output)
                case Tell(event):
                    self.hear(event)
        if self.alive:
            self.check()
            self.arm()

    def check(self) -> None:
        """What holds for every link after every input."""
        assert self.node is not None
        for peer_id, peer in self.node._peers.items():
            assert peer.link.state in LinkStates
            assert peer.link.next_deadline() is not None, f"{peer.link.state} lasts for ever"
            known = self.known[peer_id]
            assert known.incarnation == peer.member.incarnation
            assert known.state is self.node.state_of(peer_id)
            path = self.node.path_of(peer_id)
            assert (path is not None) == (known.state is PeerState.CONNECTED)
            if known.state not in (PeerState.CONNECTED, PeerState.FAILED):
                silent = self.world.now - max(known.since, self.stalled_until)
                assert silent <= QUIET, f"{known.state} for {silent} s"
        assert self.known.keys() == self.node._peers.keys()

    def check_heard(self) -> None:
        """A path on which nothing is heard is not called connected."""
        assert self.node is not None
        for peer_id, known in self.known.items():
            if known.state is PeerState.CONNECTED:
                heard = max(known.since, self.stalled_until)
                if self.node.path_of(peer_id) is Path.RELAY:
                    heard = max(heard, known.relay_heard_at)
                else:
                    heard = max(heard, self.conns[peer_id].heard_at)
                assert self.world.now - heard < SILENT

    def hear(self, event: Event) -> None:
        now = self.world.now
        self.history.append((now, event))
        match event:
            case PeerJoined(peer_id=peer_id, incarnation=incarnation):
                assert peer_id not in self.known, "one link a peer id"
                assert peer_id != self.host.peer_id or self._join.on_conflict == "rename"
                self.known[peer_id] = Known(incarnation, since=now)
            case PeerLeft(peer_id=peer_id, incarnation=incarnation, reason=reason):
                known = self.known.pop(peer_id)
                assert known.incarnation == incarnation
                assert known.state is PeerState.CLOSED
                assert reason
            case PeerStateChanged(peer_id=peer_id, reason=reason):
                known = self.known[peer_id]
                assert known.incarnation == event.incarnation
                assert known.state is event.previous
                assert event.state in FOLLOWS[event.previous] | {PeerState.CLOSED}
                assert (event.path is not None) == (event.state is PeerState.CONNECTED)
                assert reason
                known.state, known.since = event.state, now
                if event.state is PeerState.CONNECTED:
                    self.world.at(0.01, self.speak, peer_id)
            case PeerUpdated(peer_id=peer_id):
                assert self.known[peer_id].incarnation == event.incarnation
            case ConnectionReport(peer_id=peer_id):
                assert self.known[peer_id].state is event.state
                assert event.reason
                assert all(seconds >= 0 for seconds in event.seconds.values())
            case MessagesUndelivered():
                self.undelivered(event)
            case NoticeReceived(text=text):
                assert text == NOTICE
            case BadInput():
                assert self.world.bad_input_expected, event
            case _:
                raise AssertionError(event)

    def arm(self) -> None:
        world = self.world
        at = self.session.next_deadline()
        if at is not None and at != self.armed_session:
            self.armed_session = at
            world.push(self.rings(at), self.session_due, at)
        if self.node is None:
            return
        at = self.node.next_deadline()
        if at is not None and at != self.armed_node:
            self.armed_node = at
            world.push(self.rings(at), self.node_due, at)

    def rings(self, at: float) -> float:
        """When a timer that was set to then rings."""
        if self.phase is None:
            return at
        return math.ceil(at - self.phase) + self.phase + 0.003 * self.world.rng.random()

    def session_due(self, at: float) -> None:
        if self.alive and self.armed_session == at and self.awake(self.session_due, at):
            self.armed_session = None
            if self.session.state is not session.State.CLOSED:
                self.session_said(self.session.tick(self.world.now))

    def node_due(self, at: float) -> None:
        if self.alive and self.armed_node == at and self.awake(self.node_due, at):
            self.armed_node = None
            assert self.node is not None
            self.node_said(self.node.tick(self.world.now))

    def awake(self, again: Callable[..., None], *args: Any) -> bool:
        """False when the process stands still just now; then ``again`` is called when it moves."""
        if self.stalled_until <= self.world.now:
            return True
        self.world.push(self.stalled_until, again, *args)
        return False

    # --- messages ---

    def speak(self, peer_id: str, size: int = 0, channel: str = "c") -> None:
        """Send a message, as an application would, unless it would have to wait."""
        known = self.known.get(peer_id)
        if not self.alive or self.node is None or known is None:
            return
        delivery = self.node.delivery(peer_id)
        if not delivery.has_room(channel):
            return
        self.sent += 1
        kind, payload = encode_value([self.incarnation, self.sent, "x" * size])
        message = Outgoing(channel, len(payload), frames.encode_message(kind, payload))
        place = delivery.accept(message)
        self.put.setdefault((known.incarnation, channel), []).append(self.sent)
        known.accepted.append((channel, self.sent, place))
        self.pump(peer_id)

    def pump(self, peer_id: str) -> None:
        """Send what is ready, as far as the path takes it."""
        node, known = self.node, self.known.get(peer_id)
        if node is None or known is None or not self.alive:
            return
        delivery = node.delivery(peer_id)
        known.accepted = deque(each for each in known.accepted if not delivery.arrived((each[2],)))
        path = node.delivery(peer_id).out
        if path == OVER_RELAY:
            while (room := self.session.forward_room(peer_id)) > 0:
                if (data := node.delivery(peer_id).pull(room)) is None:
                    return
                self.session_said(self.session.forward(peer_id, known.incarnation, data))
        elif path is not None:
            conn = self.conns[peer_id]
            assert conn.epoch == path, "data for a connection that is gone"
            while conn.buffered <= BUFFER:
                if (data := node.delivery(peer_id).pull(65_536)) is None:
                    return
                node.spoke(peer_id, self.world.now)
                self.world.carry(conn, data)

    def deliver(self, output: Deliver) -> None:
        """Each is the next that the other side accepted, unless it gave up those between."""
        assert self.node is not None
        known = self.known[output.peer_id]
        sender = self.world.processes[known.incarnation]
        for message in output.messages:
            incarnation, number, _ = message.value()
            assert known.incarnation == incarnation, "a message of another incarnation"
            theirs = self.incarnation, message.channel
            ours = incarnation, message.channel
            put, given_up = sender.put[theirs], sender.given_up.get(theirs, ())
            at = self.came.get(ours, 0)
            assert number in put[at:], "twice, or out of order"
            while put[at] != number:
                assert put[at] in given_up, "one is missing"
                at += 1
            self.came[ours] = at + 1
            self.got.setdefault(ours, []).append(number)
            self.messages.append((self.world.now, output.peer_id))
            args = (output.peer_id, incarnation, message.number, message.charge)
            if self.world.read:
                self.world.at(self.world.rng.random(), self.take, *args)
            else:
                self.untaken.append(args)

    def take(self, peer_id: str, incarnation: str, channel: int, charge: int) -> None:
        if self.alive and self.node is not None:
            self.node_said(self.node.taken(peer_id, incarnation, channel, charge))

    def undelivered(self, event: MessagesUndelivered) -> None:
        """All that was not acknowledged, and nothing else."""
        known = self.known[event.peer_id]
        assert known.incarnation == event.incarnation
        told = sorted((each.channel, each.data[1]) for each in event.messages)
        assert told == sorted((channel, number) for channel, number, _ in known.accepted)
        known.accepted.clear()
        for channel, number in told:
            self.given_up.setdefault((event.incarnation, channel), set()).add(number)

    def missing(self, other: Process) -> int:
        """How many messages to another process have neither arrived nor been given up."""
        count = 0
        for (incarnation, channel), put in self.put.items():
            if incarnation == other.incarnation:
                came = other.came.get((self.incarnation, channel), 0)
                given_up = self.given_up.get((incarnation, channel), set())
                count += len(set(put[came:]) - given_up)
        return count

    def send_frame(self, peer_id: str, path: int, data: bytes) -> None:
        if path == OVER_RELAY:
            if self.session.state is session.State.SEATED:
                incarnation = self.known[peer_id].incarnation
                self.session_said(self.session.forward(peer_id, incarnation, data))
            return
        conn = self.conns.get(peer_id)
        assert conn is not None, "a frame for no connection"
        assert conn.epoch == path, "the old connection is closed before the new one speaks"
        self.world.carry(conn, data)

    # --- operations on connections, one after another for each peer ---

    def run(self, run: Run) -> None:
        queue = self.operations.setdefault(run.peer_id, deque())
        queue.append(run)
        if len(queue) == 1:
            self.begin(run)

    def begin(self, run: Run) -> None:
        world = self.world
        conn = self.conns.get(run.peer_id)
        match run.operation:
            case MakeOffer(0) | AcceptOffer(_, 0):
                assert conn is None, "the old connection is closed before the new one begins"
                self.dials(run)
                conn = Conn(world.number(), self, run.peer_id, run.incarnation, run.epoch)
                self.conns[run.peer_id] = conn
            case CloseConnection():
                assert conn is not None, "nothing to close"
                assert (conn.incarnation, conn.epoch) == (run.incarnation, run.epoch)
                world.close_conn(conn)
            case _:
                assert conn is not None
                assert (conn.incarnation, conn.epoch) == (run.incarnation, run.epoch)
                if isinstance(run.operation, MakeOffer):
                    self.dials(run)
        world.at(world.operation_time(run.operation), self.finish, run)

    def dials(self, run: Run) -> None:
        """An attempt or a restart begins; they may not follow each other without end or pause."""
        assert isinstance(run.operation, MakeOffer | AcceptOffer)
        which = run.peer_id, run.operation.generation > 0
        dialled = self.dialled.setdefault(which, deque(maxlen=ATTEMPTS))
        dialled.append(self.world.now)
        if len(dialled) == ATTEMPTS and not self.world.bad_input_expected:
            assert self.world.now - dialled[0] > ATTEMPTS_IN, "attempt after attempt"

    def finish(self, run: Run) -> None:
        if not self.operations or not self.awake(self.finish, run):
            return  # It crashed, or stands still.
        world = self.world
        if not self.alive and not isinstance(run.operation, CloseConnection):
            # The process has ended: its shell closes what there is, and reports nothing.
            self.next_operation(run)
            return
        conn = self.conns.get(run.peer_id)
        assert conn is not None
        if isinstance(run.operation, CloseConnection):
            del self.conns[run.peer_id]
            self.next_operation(run)
            return
        assert self.node is not None
        outputs: list[NodeOutput] = []
        args = (run.peer_id, run.incarnation, run.epoch)
        error = world.operation_error(conn, run.operation)
        if error is not None:
            outputs = self.node.operation_failed(*args, run.operation, error, world.now)
        elif isinstance(run.operation, MakeOffer | AcceptOffer):
            number = run.operation.generation
            text = f"offer {conn.number} {number}"
            if isinstance(run.operation, AcceptOffer):
                text = f"answer {conn.number} {conn.offer} {number}"
            outputs = self.node.operation_done(*args, run.operation, sdp(text), world.now)
            world.at(world.rng.uniform(0.0, 0.2), self.gathered, conn, number)
        self.next_operation(run)
        self.node_said(outputs)

    def gathered(self, conn: Conn, generation: int) -> None:
        """Its candidates are found."""
        if conn.closed or not self.alive or not self.awake(self.gathered, conn, generation):
            return
        assert self.node is not None
        args = (conn.peer_id, conn.incarnation, conn.epoch, generation)
        self.node_said(self.node.local_candidates(*args, (CANDIDATE,), True, self.world.now))

    def next_operation(self, run: Run) -> None:
        queue = self.operations[run.peer_id]
        assert queue.popleft() is run
        if queue:
            self.begin(queue[0])
        else:
            del self.operations[run.peer_id]

    # --- ends ---

    def leave(self) -> None:
        """Say goodbye to everybody."""
        if self.node is not None:
            self.node_said(self.node.close(self.world.now))
        self.session_said(self.session.close(self.world.now))
        self.alive = False
        self.host.process = None

    def crash(self) -> None:
        """No goodbye: every socket is gone, nobody is told."""
        self.alive = False
        self.host.process = None
        if self.socket is not None:
            self.world.cut(self.socket)
        self.operations.clear()
        for conn in self.conns.values():
            self.world.vanish(conn)
        self.conns.clear()


class World:
    """Everything, and the faults that can be put into it."""

    def __init__(
        self, hosts: int, seed: int, *, mesh: MeshConfig = MESH, relay: RelayConfig = RELAY
    ) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.relay_config = relay
        self.bad_input_expected = False
        """Whether somebody misbehaves in this run, so that bad input is told."""
        self.signals_seen: deque[SignalIn] = deque(maxlen=200)
        self.processes: dict[str, Process] = {}
        """All that ever were, by their incarnation."""
        self.outages: list[tuple[float, float, int, int]] = []
        """From, until, from host, to host: nothing passes."""
        self.operations_fail_until = 0.0
        self.operations_fail_rate = 0.3
        self.signals_fail_until = 0.0
        self.restart_refused = True
        self.refusals = 0.8
        """The share of connections that are refused where there is no relay; the others hang."""
        self.bytes_a_second = float("inf")
        """What a line carries, each way."""
        self.talks = True
        """Whether `speak` goes on."""
        self.read = True
        """Whether applications take the messages that they are given."""
        self.over_turn = False
        """Whether pairs that are selected go over TURN."""
        self.frames_carried = 0
        self.frames_forwarded = 0
        self.probes_sent = 0
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._number = 0
        self._sockets: dict[int, Socket] = {}
        self._opening: list[tuple[Conn, Conn]] = []
        self._ends: dict[int, Conn] = {}
        self.rooms: rooms.Rooms | None = self._new_rooms()
        self._armed_rooms: float | None = None
        # Ids in an order that is not the one in which they come.
        names = ["m", "d", "z", "a", "q", "k", "t", "g"]
        self.hosts = [Host(number, names[number], mesh=mesh) for number in range(hosts)]

    # --- the queue ---

    def number(self) -> int:
        self._number += 1
        return self._number

    def push(self, at: float, call: Callable[..., None], *args: Any) -> None:
        heapq.heappush(self._queue, (max(at, self.now), self.number(), call, args))

    def at(self, delay: float, call: Callable[..., None], *args: Any) -> None:
        self.push(self.now + delay, call, *args)

    def run(self, seconds: float) -> None:
        self.run_until(self.now + seconds)

    def run_until(self, end: float, *, stop: Callable[[], bool] | None = None) -> None:
        """Let time pass until ``end``, or until ``stop`` says so (asked once a second)."""
        asked = self.now
        queue = self._queue
        while queue and queue[0][0] <= end:
            at, _, call, args = heapq.heappop(queue)
            self.now = at
            call(*args)
            if stop is not None and at >= asked + 1.0:
                asked = at
                if stop():
                    return
        self.now = max(self.now, end)

    def _late(self) -> float:
        return self.rng.uniform(0.001, 0.04)

    # --- the relay ---

    def _new_rooms(self) -> rooms.Rooms:
        return rooms.Rooms(self.relay_config, new_token=lambda: f"token-number-{self.number():08}")

    def _relay_said(self, outputs: list[rooms.Output]) -> None:
        for output in outputs:
            socket = self._sockets[output.conn]
            match output:
                case rooms.Send(_, data):
                    socket.to_client_at = max(self.now + self._late(), socket.to_client_at)
                    self.push(socket.to_client_at, self._at_client, socket, data)
                case rooms.SendFrame(_, data):
                    arrive_at = max(socket.to_client_at, socket.data_to_client_at)
                    arrive_at = max(arrive_at, self.now + self._late())
                    socket.data_to_client_at = arrive_at
                    self.push(arrive_at, self._data_at_client, socket, data)
                    socket.unread += len(data)
                    if socket.unread > SOCKET_FULL and not socket.full:
                        assert self.rooms is not None
                        socket.full = True
                        self.rooms.full(socket.number)
                case rooms.Shut(_, code, reason):
                    socket.relay_open = False
                    socket.to_client_at = max(self.now + self._late(), socket.to_client_at)
                    self.push(socket.to_client_at, self._client_notices, socket, f"{code} {reason}")
        if self.rooms is None:
            return
        at = self.rooms.next_deadline()
        if at is not None and at != self._armed_rooms:
            self._armed_rooms = at
            self.push(at, self._rooms_due, self.rooms, at)

    def _rooms_due(self, which: rooms.Rooms, at: float) -> None:
        if self.rooms is which and self._armed_rooms == at:
            self._armed_rooms = None
            self._relay_said(which.tick(self.now))

    def kill_relay(self, seconds: float) -> None:
        """No goodbye; it forgets everything, and another is there after ``seconds``."""
        if self.rooms is None:
            return
        self.rooms = None
        for socket in self._sockets.values():
            if socket.relay_open:
                socket.relay_open = False
                self.at(self.rng.choice((0.01, 0.01, 8.0)), self._client_notices, socket, "reset")
        self.at(seconds, self._new_relay)

    def stop_relay(self, seconds: float) -> None:
        """It says goodbye, and another is there after ``seconds``."""
        if self.rooms is not None:
            self._relay_said(self.rooms.shut_down(self.now))
            self.kill_relay(seconds)

    def _new_relay(self) -> None:
        self.rooms = self._new_rooms()
        self._armed_rooms = None

    # --- its operator ---

    def operate(self, what: str, a: int, b: int) -> None:
        """The operator does something to a member, as far as it is there."""
        one, other = self.hosts[a].peer_id, self.hosts[b].peer_id
        if self.rooms is None:
            return
        with contextlib.suppress(ConfigError):
            match what:
                case "removed":
                    outputs = self.rooms.remove(ROOM, one, self.now)
                case "restart":
                    outputs = self.rooms.restart_ice(ROOM, one, other, self.now)
                case "restart all":
                    outputs = self.rooms.restart_ice(ROOM, one, None, self.now)
                case _:
                    outputs = self.rooms.notice(ROOM, NOTICE, self.now)
            self._relay_said(outputs)

    # --- sockets ---

    def connect(self, process: Process) -> None:
        socket = Socket(self.number(), process)
        process.socket = socket
        self._sockets[socket.number] = socket
        self.at(self._late(), self._connected, socket)

    def _connected(self, socket: Socket) -> None:
        process = socket.process
        if not socket.client_open or not process.alive:
            return
        if not process.awake(self._connected, socket):
            return
        if self.rooms is None or process.host.away_until > self.now:
            # Else it hangs, and the session gives up by itself.
            if self.rng.random() < self.refusals:
                socket.client_open = False
                process.socket = None
                process.session_said(process.session.connection_failed("unreachable", self.now))
            return
        socket.relay_open = True
        self.rooms.opened(socket.number, self.now)
        self._relay_said([])
        process.session_said(process.session.connected(self.now))

    def to_relay(self, socket: Socket, data: bytes) -> None:
        socket.to_relay_at = max(self.now + self._late(), socket.to_relay_at)
        self.push(socket.to_relay_at, self._at_relay, socket, data)

    def _at_relay(self, socket: Socket, data: bytes) -> None:
        if socket.carries and socket.relay_open:
            assert self.rooms is not None
            self._relay_said(self.rooms.received(socket.number, data, self.now))

    def data_to_relay(self, socket: Socket, data: bytes) -> None:
        at = max(self.now + self._late(), socket.to_relay_at, socket.data_to_relay_at)
        socket.data_to_relay_at = at
        self.frames_forwarded += 1
        self.push(at, self._at_relay, socket, data)

    def _data_at_client(self, socket: Socket, data: bytes) -> None:
        if socket.process.alive and not socket.process.awake(self._data_at_client, socket, data):
            return
        if socket.carries:
            socket.unread -= len(data)
        self._at_client(socket, data)
        while self.rooms is not None and socket.relay_open and socket.full:
            if socket.unread > SOCKET_FULL // 2:
                return
            socket.full = False
            room = SOCKET_FULL - socket.unread
            self._relay_said(self.rooms.drained(socket.number, room, self.now))

    def _at_client(self, socket: Socket, data: bytes) -> None:
        process = socket.process
        if not (socket.carries and socket.client_open and process.alive):
            return
        if process.awake(self._at_client, socket, data):
            process.session_said(process.session.received(data, self.now))

    def _client_notices(self, socket: Socket, reason: str) -> None:
        process = socket.process
        if not (socket.client_open and process.alive):
            return
        if not process.awake(self._client_notices, socket, reason):
            return
        socket.client_open = False
        process.socket = None
        if process.session.state is session.State.CONNECTING:
            process.session_said(process.session.connection_failed(reason, self.now))
        else:
            process.session_said(process.session.dropped(reason, self.now))

    def _relay_notices(self, socket: Socket) -> None:
        if socket.relay_open and self.rooms is not None:
            socket.relay_open = False
            self._relay_said(self.rooms.dropped(socket.number, self.now))

    def hang_up(self, socket: Socket) -> None:
        """The client closes it; the relay hears of it after what was sent before."""
        socket.client_open = False
        late = self._late() if socket.carries else self.rng.uniform(0.0, 15.0)
        self.push(max(socket.to_relay_at, self.now + late), self._relay_notices, socket)

    def cut(self, socket: Socket) -> None:
        """It carries nothing any more, and each end notices at a time of its own."""
        socket.carries = False
        self.at(self.rng.choice((0.0, 0.1, 3.0, 9.0)), self._client_notices, socket, "cut")
        self.at(self.rng.choice((0.0, 0.1, 4.0, 15.0)), self._relay_notices, socket)

    def signal_fate(self) -> list[float]:
        """After how many seconds a signal arrives, for each time that it does."""
        if self.now >= self.signals_fail_until:
            return [0.0]
        rng = self.rng
        match rng.randrange(6):
            case 0:
                return []
            case 1:
                return [0.0, rng.uniform(0.0, 5.0)]
            case 2 | 3:
                return [rng.uniform(0.0, 5.0)]
            case _:
                return [0.0]

    # --- paths and connections ---

    def passes(self, source: Host, target: Host) -> bool:
        return not any(
            begin <= self.now < end and (source.number, target.number) == (a, b)
            for begin, end, a, b in self.outages
        )

    def gets_through(self, conn: Conn, generation: int) -> bool:
        """Whether what this end sends over a generation gets to the other end."""
        remote = conn.remote
        assert remote is not None
        lives = generation not in conn.dead | remote.dead and generation in remote.kept
        return lives and self.passes(conn.process.host, remote.process.host)

    def _both_ways(self, one: Conn, other: Conn, generation: int) -> bool:
        return self.gets_through(one, generation) and self.gets_through(other, generation)

    def move(self, host: int, *, told: bool = True) -> None:
        """The host has other addresses: what was made with the old ones is over, for good.

        ``told``: it notices within a second; else it was its router's, say.
        """
        process = self.hosts[host].process
        if process is None:
            return
        for conn in process.conns.values():
            conn.dead |= conn.described
        if told:
            if process.socket is not None:
                self.cut(process.socket)
            self.at(self.rng.random(), self._moved, process)

    def _moved(self, process: Process) -> None:
        if process.alive and process.node is not None and process.awake(self._moved, process):
            process.node_said(process.node.addresses_changed(self.now))

    def outage(self, a: int, b: int, seconds: float, *, one_way: bool = False) -> None:
        """Nothing passes between two hosts, or from the first to the second."""
        self.outages.append((self.now, self.now + seconds, a, b))
        if not one_way:
            self.outages.append((self.now, self.now + seconds, b, a))

    def operation_time(self, operation: Operation) -> float:
        if self.now < self.operations_fail_until and self.rng.random() < 0.2:
            return self.rng.uniform(1.0, 12.0)
        return self.rng.uniform(0.0, 0.2)

    def operation_error(self, conn: Conn, operation: Operation) -> MeshError | None:
        """Do what the operation is for; why it could not be done."""
        if self.now < self.operations_fail_until and self.rng.random() < self.operations_fail_rate:
            return ConnectionFailed("no route")
        match operation:
            case MakeOffer(generation):
                self._ends[conn.number] = conn
                self._describe(conn, generation)
            case AcceptOffer(text, generation):
                conn.offer = self._described(text, "offer")[0]
                if conn.offer is None:
                    return ProtocolError("not an offer", code="bad_sdp")
                self._ends[conn.number] = conn
                self._describe(conn, generation)
                if not generation:
                    conn.remote = self._ends.get(conn.offer)
            case AcceptAnswer(text, generation):
                number, offer = self._described(text, "answer")
                if number is None:
                    return ProtocolError("not an answer", code="bad_sdp")
                remote = self._ends.get(number)
                # Descriptions that don't belong together are accepted, and lead nowhere.
                if remote is None or offer != conn.number or remote.remote is not conn:
                    return None
                conn.remote = remote
                check = self._check_restart if generation else self._check
                self.at(self.rng.uniform(0.02, 0.5), check, conn, remote, generation)
            case AddCandidates(candidates, _, generation):
                if candidates:
                    conn.candidates.add(generation)
            case CloseConnection():
                pass
        return None

    @staticmethod
    def _describe(conn: Conn, generation: int) -> None:
        """A generation begins at this end, in place of one that has not taken over."""
        if conn.latest != conn.carrying:
            conn.kept.discard(conn.latest)
        conn.latest = generation
        conn.kept.add(generation)
        conn.described.add(generation)

    @staticmethod
    def _described(text: str, kind: str) -> tuple[int | None, int | None]:
        words = text.rsplit("a=sim:", maxsplit=1)[-1].split()
        if not words or words[0] != kind:
            return None, None
        numbers = [int(word) for word in words[1:]]
        return numbers[0], numbers[-2]

    def _check(self, one: Conn, other: Conn, generation: int) -> None:
        """ICE: again and again until it works or an end is closed, or a restart has taken over."""
        if one.closed or other.closed or {one.carrying, other.carrying} != {generation}:
            return
        if not self._connects(one, other, generation):
            self.at(0.5, self._check, one, other, generation)
            return
        for conn in (one, other):
            self.at(self.rng.uniform(0.001, 0.1), self._open, conn)

    def _connects(self, one: Conn, other: Conn, generation: int) -> bool:
        known = generation in one.candidates | other.candidates
        return known and self._both_ways(one, other, generation)

    def _check_restart(self, one: Conn, other: Conn, generation: int) -> None:
        """The same beside what carries data, until a later restart replaces it."""
        if one.closed or other.closed or {one.latest, other.latest} != {generation}:
            return
        if not self._connects(one, other, generation):
            self.at(0.5, self._check_restart, one, other, generation)
            return
        for conn in (one, other):
            self.at(self.rng.uniform(0.001, 0.1), self._take_over, conn, generation)

    def _take_over(self, conn: Conn, generation: int) -> None:
        process = conn.process
        if conn.closed or not process.alive or conn.latest != generation:
            return
        if not process.awake(self._take_over, conn, generation):
            return
        conn.carrying = generation
        self._selected(conn, answered=True)
        self._flush(conn)
        self._open(conn)

    def _selected(self, conn: Conn, *, answered: bool) -> None:
        """A pair of this generation carries data; the check that showed it was heard."""
        process = conn.process
        assert process.node is not None
        args = (conn.peer_id, conn.incarnation, conn.epoch)
        pair = TURN if self.over_turn else DIRECT
        process.node_said(process.node.pair_selected(*args, conn.carrying, pair, self.now))
        self._heard(conn, answered=answered)

    def _heard(self, conn: Conn, *, answered: bool) -> None:
        process = conn.process
        if conn.closed or not process.alive:
            return
        conn.heard_at = self.now
        assert process.node is not None
        args = (conn.peer_id, conn.incarnation, conn.epoch)
        process.node_said(process.node.heard(*args, answered, self.now))

    def probe(self, conn: Conn, nonce: int) -> None:
        """A check over the selected pair, which the other end answers."""
        if not conn.closed and conn.remote is not None:
            self.probes_sent += 1
            self.at(self._late(), self._probed, conn, conn.carrying, nonce)

    def _probed(self, conn: Conn, generation: int, nonce: int) -> None:
        remote = conn.remote
        assert remote is not None
        if conn.closed or remote.closed or not remote.process.alive:
            return
        if not self.gets_through(conn, generation):
            return
        if not remote.process.awake(self._probed, conn, generation, nonce):
            return
        if remote.process.phase is None:
            self._heard(remote, answered=True)
        self.at(self._late(), self._ponged, conn, generation, nonce)

    def _ponged(self, conn: Conn, generation: int, nonce: int) -> None:
        remote, process = conn.remote, conn.process
        assert remote is not None
        if conn.closed or remote.closed or not process.alive:
            return
        if not self.gets_through(remote, generation):
            return
        if not process.awake(self._ponged, conn, generation, nonce):
            return
        conn.heard_at = self.now
        assert process.node is not None
        args = (conn.peer_id, conn.incarnation, conn.epoch)
        process.node_said(process.node.ponged(*args, nonce, self.now))

    def _open(self, conn: Conn) -> None:
        process = conn.process
        if conn.closed or conn.opened or not process.alive:
            return
        if not process.awake(self._open, conn):
            return
        remote = conn.remote
        assert remote is not None
        if not remote.opened and not self._both_ways(conn, remote, conn.carrying):
            self.at(0.5, self._open, conn)
            return
        if process.operations.get(conn.peer_id):
            # The operation that brought the descriptions is still being reported.
            self.at(0.05, self._open, conn)
            return
        conn.opened = True
        self._selected(conn, answered=False)
        assert process.node is not None
        args = (conn.peer_id, conn.incarnation, conn.epoch)
        process.node_said(process.node.connection_opened(*args, self.now))
        self.at(1.0, self._consent, conn, self.now, self.rng.uniform(25.0, 40.0))
        while conn.early and not conn.closed:
            self._frame(conn, conn.early.popleft())

    def _consent(self, conn: Conn, since: float, limit: float) -> None:
        """An end whose checks were not answered ``since`` so long is lost."""
        if conn.closed or not conn.process.alive:
            return
        remote = conn.remote
        assert remote is not None
        if not remote.closed and self._both_ways(conn, remote, conn.carrying):
            since = self.now
        if self.now - since > limit:
            self._lost(conn, "consent expired")
        else:
            self.at(1.0, self._consent, conn, since, limit)

    def _lost(self, conn: Conn, reason: str) -> None:
        process = conn.process
        if conn.closed or not process.alive or not process.awake(self._lost, conn, reason):
            return
        assert process.node is not None
        args = (conn.peer_id, conn.incarnation, conn.epoch)
        process.node_said(process.node.connection_lost(*args, reason, self.now))

    def carry(self, conn: Conn, data: bytes) -> None:
        """A frame from this end to the other."""
        if conn.closed or not conn.opened:
            return
        self.frames_carried += 1
        conn.buffered += len(data)
        conn.arrive_at = max(conn.arrive_at, self.now + self._late())
        conn.arrive_at += len(data) / self.bytes_a_second
        self.push(conn.arrive_at, self._arrive, conn, data)

    def _arrive(self, conn: Conn, data: bytes) -> None:
        remote = conn.remote
        assert remote is not None
        if remote.closed or (conn.closed and conn.stuck):
            return
        if conn.stuck or not self.gets_through(conn, conn.carrying):
            if not conn.stuck:
                self.at(1.0, self._retransmit, conn)
            conn.stuck.append(data)
            return
        self._passed(conn, remote, data)

    def _passed(self, conn: Conn, remote: Conn, data: bytes) -> None:
        """It arrives, and there is room for more."""
        conn.buffered -= len(data)
        self._frame(remote, data)
        if not conn.closed and conn.process.alive:
            self.at(0.0, self._drained, conn)

    def _drained(self, conn: Conn) -> None:
        process = conn.process
        if not conn.closed and process.alive and process.awake(self._drained, conn):
            process.pump(conn.peer_id)

    def _retransmit(self, conn: Conn) -> None:
        self._flush(conn)
        if conn.stuck:
            self.at(1.0, self._retransmit, conn)

    def _flush(self, conn: Conn) -> None:
        """What is stuck goes out, if it gets through."""
        remote = conn.remote
        assert remote is not None
        if conn.closed or remote.closed or not self.gets_through(conn, conn.carrying):
            return
        waiting, conn.stuck = conn.stuck, deque()
        for data in waiting:
            self._passed(conn, remote, data)

    def _frame(self, conn: Conn, data: bytes) -> None:
        process = conn.process
        if conn.closed or not process.alive or not process.awake(self._frame, conn, data):
            return
        if not conn.opened:
            conn.early.append(data)
            return
        conn.heard_at = self.now
        assert process.node is not None
        args = (conn.peer_id, conn.incarnation, conn.epoch)
        process.node_said(process.node.frame_received(*args, data, self.now))

    def close_conn(self, conn: Conn) -> None:
        self.vanish(conn)
        remote = conn.remote
        if remote is None or not conn.opened:
            return
        if self.gets_through(conn, conn.carrying):
            # After what was sent before it, as SCTP's shutdown does.
            at = max(conn.arrive_at, self.now + self._late())
            self.push(at, self._lost, remote, "closed by the other side")

    def vanish(self, conn: Conn) -> None:
        conn.closed = True
        self._ends.pop(conn.number, None)

    # --- processes ---

    def start(
        self, host: int, *, with_token: bool = True, on_conflict: OnConflict = "reject"
    ) -> Process:
        """A new process on a host that has none."""
        machine = self.hosts[host]
        token = machine.token if with_token else None
        process = Process(self, machine, token=token, on_conflict=on_conflict)
        machine.process = process
        process.start()
        return process

    def start_again(self, host: int, with_token: bool) -> None:
        if self.hosts[host].process is None:
            self.start(host, with_token=with_token)

    def ended(self, process: Process, error: MeshError) -> None:
        """A process was refused, replaced or removed. People start it again, unless there is
        another already."""
        if self.restart_refused and isinstance(error, PeerIdTaken | Removed):
            self.at(2.0, self.start_again, process.host.number, False)

    def speak(self) -> None:
        """Every application sends something to everybody, again and again."""
        if not self.talks:
            return
        for process in self.live():
            if process.node is not None:
                process.check_heard()
            for peer_id in list(process.known):
                for _ in range(self.rng.randrange(1, 4)):
                    size = self.rng.choice((0, 0, 0, 100, 2000, 40_000))
                    process.speak(peer_id, size, self.rng.choice(("c", "d")))
        self.at(1.7, self.speak)

    def live(self) -> list[Process]:
        return [host.process for host in self.hosts if host.process is not None]

    # --- bad input ---

    def inject(self, target: int, source: int, kind: int) -> None:
        """A signal out of place: malformed, forged, or one from before. Other links stay."""
        process = self.hosts[target].process
        if process is None or process.node is None:
            return
        node, rng = process.node, self.rng
        sender = self.hosts[source].peer_id
        incarnation = "incarnation-of-nobody"
        known = process.known.get(sender)
        if known is not None and rng.random() < 0.8:
            incarnation = known.incarnation
        epoch = rng.randrange(8)
        to = process.incarnation
        bodies = (
            b"{}",
            b'{"type":"offer","sdp":1}',
            b'{"type":"stale","incarnation":"incarnation-x","epoch":%d}' % epoch,
            b'{"type":"dial"}',
            b'{"type":"answer","sdp":"v=0"}',
            b'{"type":"candidates","candidates":[],"end":true}',
        )
        event = SignalIn(sender, incarnation, to, epoch, Raw(bodies[kind % len(bodies)]))
        if kind >= len(bodies) and self.signals_seen:
            event = rng.choice(self.signals_seen)

        def snapshot() -> dict[str, tuple[object, ...]]:
            return {
                peer_id: (peer.link, peer.link.state, peer.link.epoch, peer.link.next_deadline())
                for peer_id, peer in node._peers.items()
            }

        before = snapshot()
        self.bad_input_expected = True
        outputs = node.signaling(event, self.now)
        after = snapshot()
        known = process.known.get(event.sender)
        if known is not None and known.incarnation == event.incarnation and _decodes(event):
            # It may change its own link, and no other.
            before.pop(event.sender)
            after.pop(event.sender)
        else:
            assert len(outputs) <= 1
            assert all(isinstance(output, Signal | Tell) for output in outputs)
        assert before == after
        attempts = [
            output
            for output in outputs
            if isinstance(output, Run) and not isinstance(output.operation, CloseConnection)
        ]
        assert len(attempts) <= 2, "one attempt, and its candidates"
        process.node_said(outputs)

    def inject_frame(
        self, source: int, target: int, data: bytes, *, forwarded: bool = False
    ) -> None:
        """Bytes that no peer would send, from one host to another."""
        process = self.hosts[source].process
        if process is None:
            return
        peer_id = self.hosts[target].peer_id
        known, conn = process.known.get(peer_id), process.conns.get(peer_id)
        self.bad_input_expected = True
        if not forwarded and conn is not None and conn.opened:
            self.carry(conn, data)
        elif forwarded and known is not None and process.session.state is session.State.SEATED:
            process.session_said(process.session.forward(peer_id, known.incarnation, data))

    # --- what must hold when all is quiet ---

    def end_faults(self) -> None:
        """From now on nothing fails."""
        self.outages = []
        self.operations_fail_until = self.signals_fail_until = 0.0
        for host in self.hosts:
            host.away_until = 0.0

    def settled(self) -> bool:
        """Whether everybody who lives is connected to everybody else who lives."""
        live = self.live()
        ids = {process.host.peer_id for process in live}
        if self.rooms is None or self.rooms.members != len(live):
            return False
        for process in live:
            if process.node is None or process.session.state is not session.State.SEATED:
                return False
            if process.node._peers.keys() != ids - {process.host.peer_id}:
                return False
            for peer in process.node._peers.values():
                if peer.link.state is not LinkState.CONNECTED:
                    return False
                delivery, epoch = peer.delivery, peer.link.epoch
                if not delivery.out == delivery.inbound == epoch:
                    return False
        return True

    def check_settled(self) -> None:
        live = self.live()
        by_id = {process.host.peer_id: process for process in live}
        assert self.rooms is not None
        assert self.rooms.members == len(live), "one seat for each"
        for process in live:
            assert process.node is not None, f"{process.host.peer_id} is not in the room"
            assert process.session.state is session.State.SEATED
            assert process.node._peers.keys() == by_id.keys() - {process.host.peer_id}
            for peer_id, peer in process.node._peers.items():
                other = by_id[peer_id]
                assert other.node is not None
                back = other.node.link(process.host.peer_id)
                assert peer.member.incarnation == other.incarnation
                assert (peer.link.state, back.state) == (LinkState.CONNECTED, LinkState.CONNECTED)
                assert peer.link.epoch == back.epoch
                mine, theirs = process.conns[peer_id], other.conns[process.host.peer_id]
                assert mine.remote is theirs
                assert theirs.remote is mine
                assert not mine.closed
                assert mine.epoch == peer.link.epoch
                assert peer.route.state is RouteState.DIRECT
                assert peer.delivery.out == peer.delivery.inbound == peer.link.epoch

    def settle(self, seconds: float) -> None:
        """Let it heal within ``seconds``, and see that it stays healed."""
        self.run_until(self.now + seconds, stop=self.settled)
        # What is settled may be about to be lost: a cut that an end is yet to notice.
        self.run(3.0)
        self.run_until(self.now + seconds, stop=self.settled)
        self.check_settled()

    def check_all_arrived(self) -> None:
        """Nobody says anything any more; soon nothing is under way, and nothing was lost."""
        self.talks = False
        self.run(4.0)
        for process in self.live():
            assert process.node is not None
            for other in self.live():
                missing = process.missing(other)
                assert not missing, f"{missing} did not arrive"
            for peer_id, peer in process.node._peers.items():
                assert not peer.delivery.unsent, peer_id
                assert peer.delivery.unacknowledged == 0
                if self.read:
                    assert peer.delivery.unread == 0
                assert not process.known[peer_id].accepted

    def check_picture(self, within: float) -> None:
        """The relay's operator sees what there is ``within`` so many seconds, and what each has
        counted if that is long enough for it."""
        self.run(within)
        self.check_settled()
        assert self.rooms is not None
        live = {process.host.peer_id: process for process in self.live()}
        topology = self.rooms.tracking.room(ROOM, 0.0)
        assert (topology is not None) == bool(live)
        if topology is None:
            return
        assert {m.peer_id: (m.incarnation, m.presence) for m in topology.members} == {
            peer_id: (process.incarnation, "present") for peer_id, process in live.items()
        }
        seen = {(link.a, link.b): link for link in topology.links}
        assert seen.keys() == set(itertools.combinations(sorted(live), 2))
        for (a, b), link in seen.items():
            for me, other, side in ((a, b, link.a_side), (b, a, link.b_side)):
                node = live[me].node
                assert node is not None
                assert side is not None, f"{me} has not told of {other}"
                path, delivery = node.path_of(other), node.delivery(other)
                history = node.link(other).history
                assert (side.state, side.path) == (node.state_of(other), path)
                assert side.ice_state == node.ice_state_of(other)
                assert side.restarts == history.restarts
                assert side.fallbacks == history.fallbacks
                assert side.failure == history.failure
                counts = side.attempts, side.successes, side.failures
                assert counts == (history.attempts, history.connections, node.link(other).failures)
                if within < self.relay_config.report_interval:
                    continue
                assert side.messages == delivery.messages_direct
                assert side.bytes_sent == delivery.bytes_sent
                assert side.bytes_received == delivery.bytes_received
            assert (link.state, link.path) == ("connected", "direct")
        metrics = self.rooms.tracking.metrics()
        assert metrics.active_p2p_connections == len(seen)
        assert metrics.mesh_upgrade_rate == (1.0 if seen else None)
        self._check_sums(metrics, told=within >= self.relay_config.report_interval)

    def _check_sums(self, metrics: Metrics, *, told: bool) -> None:
        """The sums are what all that ever lived have counted, and each of it once.

        Of a pair of which an end is gone the last may be missing: it told of it as it went, or
        told a relay before this one. Of those that live nothing is. ``told``: figures are as well.
        """
        ever = sum((self._counted(process) for process in self.processes.values()), Counter())
        live = sum((self._counted(process, live=True) for process in self.live()), Counter())
        sums = {
            "attempts": metrics.total_p2p_attempts,
            "successes": metrics.successful_p2p_connections,
            "failures": metrics.failed_p2p_connections,
            "fallbacks": metrics.fallback_count,
            "messages": metrics.p2p_message_count,
        }
        for name, count in sums.items():
            least = live[name] if told or name != "messages" else 0
            assert least <= count <= ever[name], name

    def _counted(self, process: Process, *, live: bool = False) -> Counter[str]:
        """What a process has counted of its links: with whom it ever met, or with whom it is
        linked. What happens once for a pair is the word of the end that dials."""
        counts: Counter[str] = Counter()
        node = process.node
        if node is None:
            return counts
        met = [
            (peer_id, peer.link.history, peer.link.failures, peer.delivery)
            for peer_id, peer in node._peers.items()
        ]
        if not live:
            for (peer_id, _), (_, history, delivery) in node._ended.items():
                failures = history.attempts - history.connections
                met.append((peer_id, history, failures, delivery))
        for peer_id, history, failures, delivery in met:
            counts["messages"] += delivery.messages_direct
            if node._mesh.peer_id < peer_id:
                counts["attempts"] += history.attempts
                counts["successes"] += history.connections
                counts["failures"] += failures
                counts["fallbacks"] += history.fallbacks
        return counts

    def check_nothing_left(self) -> None:
        """Everybody leaves, and nothing stays."""
        processes = self.live()
        for process in processes:
            process.leave()
        self.run(120.0)
        assert self.rooms is not None
        assert (self.rooms.rooms, self.rooms.members, self.rooms.connections) == (0, 0, 0)
        assert self.rooms.next_deadline() is None
        for process in processes:
            assert process.session.next_deadline() is None
            assert process.conns == {}
            assert process.operations == {}
            if process.node is not None:
                assert process.node._peers == {}
                assert process.node.next_deadline() is None
                assert process.known == {}
        assert all(not conn.process.alive or conn.closed for conn in self._ends.values())
