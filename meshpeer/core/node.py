"""A whole peer without its I/O: the mesh, its links and their data, put together.

The shell (`meshpeer.manager`) and the simulation (tests/sim) drive the same `Node`, so what holds
in one holds in the other. It is fed what happened and returns what is to be done.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from msgspec import Raw

from meshpeer.config import IceServer, MeshConfig
from meshpeer.core import frames
from meshpeer.core.delivery import Delivery, Received
from meshpeer.core.events import (
    BadInput,
    CandidatePair,
    ConnectionReport,
    Event,
    Path,
    PeerJoined,
    PeerLeft,
    PeerState,
    PeerStateChanged,
    PeerUpdated,
)
from meshpeer.core.link import (
    AcceptOffer,
    Link,
    LinkOutput,
    LinkState,
    MakeOffer,
    Operate,
    Operation,
    PairSelected,
    Ping,
    Refuse,
    SendSignal,
    StateChanged,
)
from meshpeer.core.mesh import CloseLink, Mesh, MeshOutput, OpenLink, Reachable, Renamed
from meshpeer.core.messages import (
    IceCandidate,
    IceServers,
    LinkMessage,
    Member,
    MemberJoined,
    MemberLeft,
    MemberUpdated,
    Refused,
    SignalIn,
    SignalOut,
    Stale,
    Welcome,
    decode_link,
    encode,
)
from meshpeer.errors import ConfigError, MeshError, ProtocolError

__all__ = [
    "FLUSH",
    "Deliver",
    "Node",
    "NodeOutput",
    "Ponged",
    "Probe",
    "Run",
    "SendFrame",
    "Signal",
    "Tell",
    "UseServers",
    "path_of",
]

FLUSH = 0x8000_0000
"""Nonces of ping frames from here on are the shell's, for `Ponged`."""


@dataclass(frozen=True, slots=True)
class Signal:
    """Hand this to the signalling service."""

    message: SignalOut


@dataclass(frozen=True, slots=True)
class Run:
    """Run an operation on a connection, after those of the same peer that came before."""

    peer_id: str
    incarnation: str
    epoch: int
    operation: Operation


@dataclass(frozen=True, slots=True)
class SendFrame:
    """Put this into the peer's message channel.

    ``optional``: not while much waits there already. A later one will say the same.
    """

    peer_id: str
    epoch: int
    data: bytes
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Probe:
    """Send a check over the connection of this epoch, and report `Node.ponged` when it is answered.

    No frame: what waits in the message channel does not delay it, and it is not resent.
    """

    peer_id: str
    epoch: int
    nonce: int


@dataclass(slots=True)
class Deliver:
    """A message for the application."""

    peer_id: str
    epoch: int
    message: Received


@dataclass(frozen=True, slots=True)
class Ponged:
    """The other side answered a ping of the shell's: all that was sent before it has arrived."""

    peer_id: str
    nonce: int


@dataclass(frozen=True, slots=True)
class Tell:
    """Tell the application."""

    event: Event


@dataclass(frozen=True, slots=True)
class UseServers:
    """The STUN and TURN servers that the signalling service names, from now on."""

    servers: tuple[IceServer, ...]


NodeOutput = Signal | Run | SendFrame | Probe | Deliver | Ponged | UseServers | Tell


_UP = (LinkState.CONNECTED, LinkState.DISCONNECTED)
# Only a service that forwards very late could need an older one than these.
_MAX_ENDED = 1000


@dataclass(slots=True)
class _Peer:
    member: Member
    link: Link
    delivery: Delivery
    told: PeerState = PeerState.NEW
    """The state that the application knows."""
    armed: float | None = None
    """The deadline that is in the node's heap."""
    since: float = 0.0
    """When the state that the application knows began."""
    seconds: dict[PeerState, float] = field(default_factory=dict)
    """How long it was in each of the states before."""
    reason: str = "in the room"
    """Why it is as it is."""
    ice_state: tuple[int, str] = (0, "new")
    """What a connection said last, and its epoch."""


def path_of(link: Link) -> Path:
    """How data flows over a link that is up."""
    return Path.DIRECT if link.pair is None else link.pair.path


class Node:
    """One peer of a room. ``random`` gives numbers in [0, 1)."""

    def __init__(
        self,
        config: MeshConfig,
        *,
        peer_id: str,
        incarnation: str,
        random: Callable[[], float],
    ) -> None:
        self._config = config
        self._random = random
        self._incarnation = incarnation
        self._mesh = Mesh(peer_id, incarnation)
        self._peers: dict[str, _Peer] = {}
        # The epoch at which the link to an incarnation ended: to tell late signals of it from those
        # of a stranger, and to go on from there if it comes back, so that no epoch is used twice.
        # With it what the application has not taken of its messages, which still counts then.
        self._ended: OrderedDict[tuple[str, str], tuple[int, Delivery]] = OrderedDict()
        # The links' deadlines, earliest first. Entries that no longer hold are skipped when they
        # come up, so that what happens on one link costs nothing for the others.
        self._heap: list[tuple[float, str]] = []
        self._ice_servers: IceServers | None = None

    # --- what the shell reads ---

    def link(self, peer_id: str) -> Link:
        """The link to a peer that is there. KeyError when it is not."""
        return self._peers[peer_id].link

    def delivery(self, peer_id: str) -> Delivery:
        """The data state of the current connection. KeyError when the peer is not there."""
        return self._peers[peer_id].delivery

    def report(self, peer_id: str, now: float) -> ConnectionReport:
        """How it stands with a peer that is there. KeyError when it is not."""
        peer = self._peers[peer_id]
        link, state = peer.link, peer.told
        seconds = peer.seconds | {state: peer.seconds.get(state, 0.0) + now - peer.since}
        return ConnectionReport(
            peer_id=peer_id,
            incarnation=peer.member.incarnation,
            name=peer.member.name,
            state=state,
            ice_state=self.ice_state_of(peer_id),
            path=self._path(link),
            pair=link.pair,
            rtt=link.rtt,
            reason=peer.reason,
            epoch=link.epoch,
            generation=link.generation,
            restarts=link.restarts,
            seconds=seconds,
        )

    def ice_state_of(self, peer_id: str) -> str:
        """The ICE state, as W3C WebRTC names it. KeyError when the peer is not there."""
        peer = self._peers[peer_id]
        epoch, said = peer.ice_state
        match state := peer.link.state:
            case LinkState.DISCONNECTED | LinkState.FAILED | LinkState.CLOSED:
                return str(state)
            case _:
                return said if epoch == peer.link.epoch else "new"

    def next_deadline(self) -> float | None:
        """When `tick` is wanted next."""
        while self._heap:
            at, peer_id = self._heap[0]
            peer = self._peers.get(peer_id)
            if peer is not None and peer.armed == at:
                break
            heapq.heappop(self._heap)
        times = [self._heap[0][0]] if self._heap else []
        if (grace := self._mesh.next_deadline()) is not None:
            times.append(grace)
        return min(times, default=None)

    # --- from the signalling service ---

    def signaling(
        self,
        event: Welcome
        | MemberJoined
        | MemberLeft
        | MemberUpdated
        | SignalIn
        | Refused
        | IceServers,
        now: float,
    ) -> list[NodeOutput]:
        """Something came from the signalling service."""
        match event:
            case SignalIn():
                return self._signal(event, now)
            case Welcome(resumed=True):
                return self._mesh_said(self._mesh.resumed(), now)
            case Welcome():
                return self._mesh_said(
                    self._mesh.welcome(event.members, event.seat_timeout, now), now
                )
            case MemberJoined():
                return self._mesh_said(self._mesh.joined(event.member), now)
            case MemberLeft():
                return self._mesh_said(self._mesh.left(event), now)
            case MemberUpdated():
                return self._mesh_said(self._mesh.updated(event), now)
            case Refused():
                # A signal to nobody: presence or a deadline settles it.
                return []
            case IceServers():
                return self._servers_named(event, now)

    def signaling_lost(self, now: float) -> list[NodeOutput]:
        """The signalling service can't be reached."""
        return self._mesh_said(self._mesh.signaling_lost(), now)

    def _servers_named(self, named: IceServers, now: float) -> list[NodeOutput]:
        if self._ice_servers is not None and named.servers == self._ice_servers.servers:
            return []
        try:
            servers = tuple(
                IceServer(urls=each.urls, username=each.username, credential=each.credential)
                for each in named.servers
            )
        except ConfigError as exc:
            error = ProtocolError(str(exc), code="bad_ice_server", field="$.servers")
            return [Tell(BadInput(peer_id=None, error=error))]
        self._ice_servers = named
        # The allocation that such a path goes over ends with the credentials it was made with.
        over_turn = [
            peer_id
            for peer_id, peer in self._peers.items()
            if peer.link.pair is not None and peer.link.pair.path is Path.TURN
        ]
        return [
            UseServers(servers),
            *self._restart_all(over_turn, "new TURN credentials", now),
        ]

    def _signal(self, signal: SignalIn, now: float) -> list[NodeOutput]:
        if self._find(signal.sender, signal.incarnation) is None:
            if (signal.sender, signal.incarnation) in self._ended:
                return []
            return [
                self._bad(
                    signal.sender,
                    ProtocolError(
                        f"a signal of incarnation {signal.incarnation} of {signal.sender!r}, "
                        "which is not in the room",
                        code="unknown_sender",
                        field="$.incarnation",
                    ),
                )
            ]
        peer = self._peers[signal.sender]
        if signal.to_incarnation != self._incarnation:
            return [self._signal_out(peer, 0, Stale(self._incarnation, peer.link.epoch))]
        try:
            message = decode_link(signal.body)
        except ProtocolError as error:
            return [self._bad(signal.sender, error)]
        return self._link_said(signal.sender, peer.link.message(signal.epoch, message, now), now)

    # --- from the connections ---

    def operation_done(
        self,
        peer_id: str,
        incarnation: str,
        epoch: int,
        operation: MakeOffer | AcceptOffer,
        sdp: str,
        now: float,
    ) -> list[NodeOutput]:
        """It made this description."""
        link = self._find(peer_id, incarnation)
        if link is None:
            return []
        done = link.offer_made if isinstance(operation, MakeOffer) else link.answer_made
        return self._link_said(peer_id, done(epoch, operation.generation, sdp, now), now)

    def operation_failed(
        self,
        peer_id: str,
        incarnation: str,
        epoch: int,
        operation: Operation,
        error: MeshError,
        now: float,
    ) -> list[NodeOutput]:
        """An operation did not succeed."""
        link = self._find(peer_id, incarnation)
        if link is None:
            return []
        return self._link_said(peer_id, link.operation_failed(epoch, operation, error, now), now)

    def connection_opened(
        self, peer_id: str, incarnation: str, epoch: int, now: float
    ) -> list[NodeOutput]:
        """The message channel is open."""
        link = self._find(peer_id, incarnation)
        return [] if link is None else self._link_said(peer_id, link.opened(epoch, now), now)

    def connection_lost(
        self, peer_id: str, incarnation: str, epoch: int, reason: str, now: float
    ) -> list[NodeOutput]:
        """The connection is over."""
        link = self._find(peer_id, incarnation)
        return [] if link is None else self._link_said(peer_id, link.lost(epoch, reason, now), now)

    def local_candidates(
        self,
        peer_id: str,
        incarnation: str,
        epoch: int,
        generation: int,
        candidates: tuple[IceCandidate, ...],
        end: bool,
        now: float,
    ) -> list[NodeOutput]:
        """The connection found candidates that its description did not have."""
        link = self._find(peer_id, incarnation)
        if link is None:
            return []
        said = link.local_candidates(epoch, generation, candidates, end=end, now=now)
        return self._link_said(peer_id, said, now)

    def pair_selected(
        self,
        peer_id: str,
        incarnation: str,
        epoch: int,
        generation: int,
        pair: CandidatePair,
        now: float,
    ) -> list[NodeOutput]:
        """Data goes over this pair from now on."""
        link = self._find(peer_id, incarnation)
        if link is None:
            return []
        return self._link_said(peer_id, link.selected(epoch, generation, pair, now), now)

    def path_lost(
        self, peer_id: str, incarnation: str, epoch: int, reason: str, now: float
    ) -> list[NodeOutput]:
        """What data went over has ended; the connection waits for another generation."""
        link = self._find(peer_id, incarnation)
        if link is None:
            return []
        return self._link_said(peer_id, link.path_lost(epoch, reason, now), now)

    def heard(
        self, peer_id: str, incarnation: str, epoch: int, answered: bool, now: float
    ) -> list[NodeOutput]:
        """Something of the other side arrived that is no frame, and was ``answered`` or not."""
        link = self._find(peer_id, incarnation)
        said = [] if link is None else link.heard(epoch, now, answered=answered)
        return self._link_said(peer_id, said, now) if said else []

    def ponged(
        self, peer_id: str, incarnation: str, epoch: int, nonce: int, now: float
    ) -> list[NodeOutput]:
        """The answer to a `Probe` arrived."""
        link = self._find(peer_id, incarnation)
        said = [] if link is None else link.pong(epoch, nonce, now)
        return self._link_said(peer_id, said, now) if said else []

    def ice_state(self, peer_id: str, incarnation: str, epoch: int, state: str) -> None:
        """What the connection says of its ICE, for `report`."""
        link = self._find(peer_id, incarnation)
        if link is not None and epoch == link.epoch:
            self._peers[peer_id].ice_state = epoch, state

    def frame_received(
        self, peer_id: str, incarnation: str, epoch: int, data: bytes, now: float
    ) -> list[NodeOutput]:
        """A frame arrived over the connection."""
        link = self._find(peer_id, incarnation)
        if link is None or epoch != link.epoch or link.state not in _UP:
            return []
        said = link.heard(epoch, now)
        out = self._link_said(peer_id, said, now) if said else []
        peer = self._peers[peer_id]
        try:
            match frame := frames.decode(data):
                case frames.Data() | frames.More():
                    message = peer.delivery.received(frame, len(data))
                    if message is not None:
                        out.append(Deliver(peer_id, epoch, message))
                case frames.Ping():
                    link.spoke(now)
                    out.append(
                        SendFrame(peer_id, epoch, frames.encode_pong(frame.nonce), optional=True)
                    )
                case frames.Pong():
                    if frame.nonce >= FLUSH:
                        out.append(Ponged(peer_id, frame.nonce))
                case frames.Credit():
                    peer.delivery.credited(frame)
                case frames.Bye():
                    out += self._mesh_said(self._mesh.departed(peer_id, incarnation), now)
        except ProtocolError as error:
            # What follows on this connection can't be trusted to be understood.
            out.append(self._bad(peer_id, error))
            out += self._link_said(peer_id, link.lost(epoch, str(error), now), now)
        return out

    def spoke(self, peer_id: str, now: float) -> None:
        """The shell sent data over the current connection. KeyError when the peer is not there."""
        self._peers[peer_id].link.spoke(now)

    def taken(self, peer_id: str, incarnation: str, epoch: int, charge: int) -> list[NodeOutput]:
        """The application took a message that came over this connection.

        What came over an earlier connection gives credit on the current one.
        """
        link = self._find(peer_id, incarnation)
        if link is None:
            if (ended := self._ended.get((peer_id, incarnation))) is not None:
                ended[1].taken(charge)
            return []
        if epoch > link.epoch:
            return []
        credit = self._peers[peer_id].delivery.taken(charge)
        if credit is None or link.state not in _UP:
            return []
        return [SendFrame(peer_id, link.epoch, credit)]

    # --- what the program and its machine say ---

    def addresses_changed(self, now: float) -> list[NodeOutput]:
        """The addresses of this machine changed: every path may be gone, or a better one there."""
        return self._restart_all(list(self._peers), "the local addresses changed", now)

    def force_restart(self, peer_id: str | None, now: float) -> list[NodeOutput]:
        """An ICE restart with a peer, or with all, where there is a connection.

        KeyError when the peer is not there.
        """
        peers = list(self._peers) if peer_id is None else [peer_id]
        return self._restart_all(peers, "asked for", now)

    def _restart_all(self, peers: list[str], reason: str, now: float) -> list[NodeOutput]:
        out: list[NodeOutput] = []
        for peer_id in peers:
            said = self._peers[peer_id].link.restart(reason, now)
            out += self._link_said(peer_id, said, now)
        return out

    # --- time and the end ---

    def tick(self, now: float) -> list[NodeOutput]:
        """Time has passed."""
        out = self._mesh_said(self._mesh.tick(now), now)
        while self._heap and self._heap[0][0] <= now:
            at, peer_id = heapq.heappop(self._heap)
            peer = self._peers.get(peer_id)
            if peer is not None and peer.armed == at:
                peer.armed = None
                out += self._link_said(peer_id, peer.link.tick(now), now)
        return out

    def close(self, now: float) -> list[NodeOutput]:
        """This peer leaves: every link ends."""
        out: list[NodeOutput] = [
            SendFrame(peer_id, peer.link.epoch, frames.encode_bye())
            for peer_id, peer in self._peers.items()
            if peer.link.alive
        ]
        return out + self._mesh_said(self._mesh.close(), now)

    # --- putting outputs together ---

    def _find(self, peer_id: str, incarnation: str) -> Link | None:
        peer = self._peers.get(peer_id)
        if peer is None or peer.member.incarnation != incarnation:
            return None
        return peer.link

    @staticmethod
    def _path(link: Link) -> Path | None:
        return path_of(link) if link.state is LinkState.CONNECTED else None

    def _bad(self, peer_id: str, error: ProtocolError) -> Tell:
        return Tell(BadInput(peer_id=peer_id, error=error))

    def _signal_out(self, peer: _Peer, epoch: int, body: LinkMessage) -> Signal:
        return Signal(
            SignalOut(peer.member.peer_id, peer.member.incarnation, epoch, Raw(encode(body)))
        )

    def _mesh_said(self, outputs: list[MeshOutput], now: float) -> list[NodeOutput]:
        out: list[NodeOutput] = []
        for output in outputs:
            match output:
                case OpenLink(member, dials):
                    epoch, delivery = self._ended.pop(
                        (member.peer_id, member.incarnation), (0, Delivery(self._config))
                    )
                    link = Link(
                        self._config,
                        dials=dials,
                        incarnation=self._incarnation,
                        random=self._random,
                        epoch=epoch,
                    )
                    self._peers[member.peer_id] = _Peer(member, link, delivery, since=now)
                    out.append(
                        Tell(
                            PeerJoined(
                                peer_id=member.peer_id,
                                incarnation=member.incarnation,
                                name=member.name,
                                metadata=member.metadata,
                            )
                        )
                    )
                    out += self._link_said(member.peer_id, link.start(now), now)
                case CloseLink(peer_id, incarnation, reason):
                    peer = self._peers[peer_id]
                    out += self._link_said(peer_id, peer.link.close(reason, now), now)
                    del self._peers[peer_id]
                    rest = Delivery(self._config, after=peer.delivery)
                    self._ended[peer_id, incarnation] = peer.link.epoch, rest
                    if len(self._ended) > _MAX_ENDED:
                        self._ended.popitem(last=False)
                    out.append(
                        Tell(
                            PeerLeft(
                                peer_id=peer_id,
                                incarnation=incarnation,
                                name=peer.member.name,
                                reason=reason,
                            )
                        )
                    )
                case Renamed(member):
                    self._peers[member.peer_id].member = member
                    out.append(
                        Tell(
                            PeerUpdated(
                                peer_id=member.peer_id,
                                incarnation=member.incarnation,
                                name=member.name,
                                metadata=member.metadata,
                            )
                        )
                    )
                case Reachable(peer_id, reachable):
                    link = self._peers[peer_id].link
                    out += self._link_said(peer_id, link.set_reachable(reachable, now), now)
        return out

    def _link_said(self, peer_id: str, outputs: list[LinkOutput], now: float) -> list[NodeOutput]:
        peer = self._peers[peer_id]
        out: list[NodeOutput] = []
        for output in outputs:
            match output:
                case SendSignal(epoch, body):
                    out.append(self._signal_out(peer, epoch, body))
                case Operate(epoch, operation):
                    out.append(Run(peer_id, peer.member.incarnation, epoch, operation))
                case Ping(epoch, nonce):
                    out.append(Probe(peer_id, epoch, nonce))
                case PairSelected(reason):
                    peer.reason = reason
                    out.append(Tell(self.report(peer_id, now)))
                case Refuse(error):
                    out.append(self._bad(peer_id, error))
                case StateChanged():
                    out += self._state_changed(peer, output, now)
        deadline = peer.link.next_deadline()
        if deadline is not None and deadline != peer.armed:
            peer.armed = deadline
            heapq.heappush(self._heap, (deadline, peer_id))
        return out

    def _state_changed(self, peer: _Peer, change: StateChanged, now: float) -> list[NodeOutput]:
        out: list[NodeOutput] = []
        peer_id, link = peer.member.peer_id, peer.link
        if change.previous is LinkState.CHECKING and change.state is LinkState.CONNECTED:
            peer.delivery = Delivery(self._config, after=peer.delivery)
            out.append(SendFrame(peer_id, link.epoch, peer.delivery.first_credit()))
        if link.peer_state is not peer.told:
            previous, peer.told = peer.told, link.peer_state
            peer.seconds[previous] = peer.seconds.get(previous, 0.0) + now - peer.since
            peer.since, peer.reason = now, change.reason
            out.append(
                Tell(
                    PeerStateChanged(
                        peer_id=peer_id,
                        incarnation=peer.member.incarnation,
                        name=peer.member.name,
                        previous=previous,
                        state=link.peer_state,
                        path=self._path(link),
                        reason=change.reason,
                        epoch=link.epoch,
                    )
                )
            )
            out.append(Tell(self.report(peer_id, now)))
        if change.state is not LinkState.CLOSED:
            out += self._mesh_said(self._mesh.link_alive(peer_id, alive=link.alive), now)
        return out
