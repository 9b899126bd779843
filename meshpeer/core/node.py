"""A whole peer without its I/O: the mesh, its links and their data, put together.

The shell (`meshpeer.manager`) and the simulation (tests/sim) drive the same `Node`, so what holds
in one holds in the other. It is fed what happened and returns what is to be done.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from msgspec import Raw

from meshpeer.config import IceServer, MeshConfig
from meshpeer.core import frames, route
from meshpeer.core.delivery import RELAY, Delivery, Received
from meshpeer.core.events import (
    BadInput,
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
    UndeliveredMessage,
)
from meshpeer.core.link import (
    AcceptOffer,
    CloseConnection,
    History,
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
    LinkReport,
    Member,
    MemberJoined,
    MemberLeft,
    MemberUpdated,
    Notice,
    Refused,
    RestartIce,
    SignalIn,
    SignalOut,
    Stale,
    Welcome,
    brief,
    decode_link,
    encode,
)
from meshpeer.core.reports import Reports
from meshpeer.core.route import Route, RouteState
from meshpeer.errors import ConfigError, MeshError, ProtocolError

__all__ = [
    "RELAY",
    "Deliver",
    "Node",
    "NodeOutput",
    "Ponged",
    "Probe",
    "Ready",
    "ReportLinks",
    "RequestsRefused",
    "Run",
    "SendFrame",
    "Signal",
    "Tell",
    "UseServers",
]


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
    """Send this on a path: the epoch of a connection, or `RELAY`. It may be lost with the path."""

    peer_id: str
    path: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Ready:
    """This peer's `Node.delivery` may have something to pull, or room for more messages."""

    peer_id: str


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
    """Messages for the application."""

    peer_id: str
    path: Path
    messages: list[Received]


@dataclass(frozen=True, slots=True)
class Ponged:
    """The other side answered a ping of the shell's."""

    peer_id: str
    nonce: int


@dataclass(frozen=True, slots=True)
class RequestsRefused:
    """These requests were accepted before it was known that the other side does not take them: they
    are larger than it takes, or on one channel more."""

    peer_id: str
    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Tell:
    """Tell the application."""

    event: Event


@dataclass(frozen=True, slots=True)
class UseServers:
    """The STUN and TURN servers that the signalling service names, from now on."""

    servers: tuple[IceServer, ...]


@dataclass(frozen=True, slots=True)
class ReportLinks:
    """Tell the signalling service how these links stand."""

    links: tuple[LinkReport, ...]


NodeOutput = (
    Signal
    | Run
    | SendFrame
    | Ready
    | Probe
    | Deliver
    | Ponged
    | RequestsRefused
    | UseServers
    | ReportLinks
    | Tell
)


_UP = (LinkState.CONNECTED, LinkState.DISCONNECTED)
_COMPLAIN_EVERY = 1.0
"""Seconds between two `BadInput` events about what a peer sends over the relay."""
_PINGS = 2**31
"""Nonces of ping frames from here on are the shell's, for `Ponged`."""
# Only a service that forwards very late could need an older one than these.
_MAX_ENDED = 1000


@dataclass(slots=True)
class _Peer:
    member: Member
    link: Link
    delivery: Delivery
    route: Route
    told: PeerState = PeerState.NEW
    """The state that the application knows."""
    told_path: Path | None = None
    complained: float = float("-inf")
    """When the latest `BadInput` about what comes over the relay was told."""
    relayed: bool = False
    """Whether data comes over the relay, as the rest of the node knows it."""
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


class _Ended(NamedTuple):
    """What is kept of a link to an incarnation that is gone."""

    epoch: int
    history: History
    delivery: Delivery


def _direct(link: Link) -> Path:
    """How data flows over a connection that is up."""
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
        self._ended: OrderedDict[tuple[str, str], _Ended] = OrderedDict()
        # The links' deadlines, earliest first. Entries that no longer hold are skipped when they
        # come up, so that what happens on one link costs nothing for the others.
        self._heap: list[tuple[float, str]] = []
        self._ice_servers: IceServers | None = None
        self._reports = Reports()
        self._forwards = False
        """Whether the signalling service forwards data, as far as it can be reached."""

    # --- what the shell reads ---

    def link(self, peer_id: str) -> Link:
        """The link to a peer that is there. KeyError when it is not."""
        return self._peers[peer_id].link

    def delivery(self, peer_id: str) -> Delivery:
        """All messages to and from a peer that is there. KeyError when it is not."""
        return self._peers[peer_id].delivery

    def state_of(self, peer_id: str) -> PeerState:
        """The state that the application knows. KeyError when the peer is not there."""
        return self._peers[peer_id].told

    def path_of(self, peer_id: str) -> Path | None:
        """How data flows now; None while it does not. KeyError when the peer is not there."""
        peer = self._peers[peer_id]
        if peer.route.state is RouteState.RELAY and peer.link.state is not LinkState.CLOSED:
            return Path.RELAY
        return _direct(peer.link) if peer.link.state is LinkState.CONNECTED else None

    def rtt_of(self, peer_id: str) -> float | None:
        """The latest round trip on the path in seconds. KeyError when the peer is not there."""
        peer = self._peers[peer_id]
        return peer.route.rtt if peer.route.state is RouteState.RELAY else peer.link.rtt

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
            path=self.path_of(peer_id),
            pair=link.pair,
            rtt=self.rtt_of(peer_id),
            reason=peer.reason,
            epoch=link.epoch,
            generation=link.generation,
            restarts=link.history.restarts,
            seconds=seconds,
        )

    def _link_report(self, peer_id: str) -> LinkReport:
        peer = self._peers[peer_id]
        link, history, delivery = peer.link, peer.link.history, peer.delivery
        path, rtt = self.path_of(peer_id), self.rtt_of(peer_id)
        return LinkReport(
            peer_id=peer_id,
            incarnation=peer.member.incarnation,
            state=peer.told.value,
            ice_state=self.ice_state_of(peer_id),
            path=path.value if path is not None else None,
            # So fine that it says something, and so coarse that it is often the same again.
            rtt=round(rtt, 3 if rtt >= 0.01 else 4) if rtt is not None else None,
            reason=brief(peer.reason),
            failure=brief(history.failure),
            restarts=history.restarts,
            attempts=history.attempts,
            successes=history.connections,
            failures=link.failures,
            connect_time=round(history.connect_time, 3) if history.connections else None,
            fallbacks=history.fallbacks,
            messages=delivery.messages_direct,
            bytes_sent=delivery.bytes_sent,
            bytes_received=delivery.bytes_received,
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
        times = (
            self._heap[0][0] if self._heap else None,
            self._mesh.next_deadline(),
            self._reports.next_deadline(),
        )
        return min((at for at in times if at is not None), default=None)

    # --- from the signalling service ---

    def signaling(
        self,
        event: Welcome
        | MemberJoined
        | MemberLeft
        | MemberUpdated
        | SignalIn
        | Refused
        | IceServers
        | Notice
        | RestartIce,
        now: float,
    ) -> list[NodeOutput]:
        """Something came from the signalling service."""
        match event:
            case SignalIn():
                return self._signal(event, now)
            case Welcome():
                self._forwards = event.forward_window > 0
                self._reports.wanted(event.report_interval, now)
                # First of all: whoever is dialled now is dialled with them.
                out: list[NodeOutput] = []
                if event.ice_servers is not None:
                    out += self._servers_named(event.ice_servers, now)
                said = (
                    self._mesh.resumed(now)
                    if event.resumed
                    else self._mesh.welcome(event.members, event.seat_timeout, now)
                )
                out += self._mesh_said(said, now)
                for peer_id in list(self._peers):
                    out += self._relay_changed(peer_id, now)
                return out
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
            case Notice(text):
                return [Tell(NoticeReceived(text=text))]
            case RestartIce(one):
                # One that is not there has left meanwhile.
                peers = [each for each in self._peers if one in (None, each)]
                return self._restart_all(peers, "the operator of the relay asks for it", now)

    def signaling_lost(self, now: float) -> list[NodeOutput]:
        """The signalling service can't be reached."""
        self._forwards = False
        self._reports.lost()
        out = self._mesh_said(self._mesh.signaling_lost(), now)
        for peer_id in list(self._peers):
            out += self._relay_changed(peer_id, now)
        return out

    def _servers_named(self, named: IceServers, now: float) -> list[NodeOutput]:
        before = self._ice_servers.servers if self._ice_servers is not None else []
        if self._ice_servers is not None and named.servers == before:
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
        # An allocation ends with the credentials that it was made with, and a path over it with it.
        # That of the other side is its own business.
        known = {url: (s.username, s.credential) for s in named.servers for url in s.urls}
        ending = {
            url
            for each in before
            for url in each.urls
            if known.get(url) != (each.username, each.credential)
        }
        over_them = [
            peer_id
            for peer_id, peer in self._peers.items()
            if peer.link.pair is not None and peer.link.pair.local.server in ending
        ]
        return [
            UseServers(servers),
            *self._restart_all(over_them, "new TURN credentials", now),
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
        if link is None:
            return []
        if link.rtt is None:
            self._reports.changed(peer_id, now)
        said = link.pong(epoch, nonce, now)
        out = self._link_said(peer_id, said, now) if said else []
        peer = self._peers[peer_id]
        if (
            peer.route.state is RouteState.RELAY
            and epoch == link.epoch
            and link.state is LinkState.CONNECTED
        ):
            # Both had asked for the relay before either heard that the connection is back. A check
            # that was answered says that it passes both ways, which its state alone does not.
            out += self._route_said(peer, peer.route.link(now, up=True), now)
        return out

    def ice_state(
        self, peer_id: str, incarnation: str, epoch: int, state: str, now: float
    ) -> list[NodeOutput]:
        """What the connection says of its ICE, in W3C WebRTC's words."""
        link = self._find(peer_id, incarnation)
        if link is not None and epoch == link.epoch:
            self._peers[peer_id].ice_state = epoch, state
            self._reports.changed(peer_id, now)
        return []

    def frame_received(
        self, peer_id: str, incarnation: str, epoch: int, data: bytes, now: float
    ) -> list[NodeOutput]:
        """A frame arrived over the connection."""
        link = self._find(peer_id, incarnation)
        if link is None or epoch != link.epoch or link.state not in _UP:
            return []
        said = link.heard(epoch, now)
        out = self._link_said(peer_id, said, now) if said else []
        try:
            self._frame(self._peers[peer_id], epoch, data, now, out)
        except ProtocolError as error:
            # What follows on this connection can't be trusted to be understood.
            out.append(self._bad(peer_id, error))
            out += self._link_said(peer_id, link.lost(epoch, str(error), now), now)
        return out

    def forwarded(
        self, peer_id: str, incarnation: str, data: bytes, now: float
    ) -> list[NodeOutput]:
        """A frame arrived over the relay, which says who sent it."""
        link = self._find(peer_id, incarnation)
        if link is None or not self._relays(link):
            return []
        peer = self._peers[peer_id]
        out: list[NodeOutput] = []
        try:
            self._frame(peer, RELAY, data, now, out)
        except ProtocolError as error:
            # Nothing ends that could keep such frames from coming: they are told now and then.
            if now - peer.complained >= _COMPLAIN_EVERY:
                peer.complained = now
                out.append(self._bad(peer_id, error))
            peer.delivery.detach(RELAY)
            out += self._route_said(peer, peer.route.fault(now), now)
        else:
            peer.route.heard(now)
        return out

    def _frame(
        self, peer: _Peer, path: int, data: bytes, now: float, out: list[NodeOutput]
    ) -> None:
        peer_id, delivery = peer.member.peer_id, peer.delivery
        match frame := frames.decode(data):
            case frames.Parts():
                messages: list[Received] = []
                try:
                    delivery.received(path, frame, now, messages)
                finally:
                    if messages:
                        how = Path.RELAY if path == RELAY else _direct(peer.link)
                        out.append(Deliver(peer_id, how, messages))
                if delivery.due:
                    out.append(Ready(peer_id))
                # All that can have moved here, where most that arrives passes through.
                if (at := delivery.next_deadline()) is not None and (
                    peer.armed is None or at < peer.armed
                ):
                    self._arm(peer)
            case frames.Resume():
                # An answer that waits for room on a path that the other side has just left can't be
                # sent any more: it is answered here instead.
                astray = delivery.answering and delivery.inbound != path
                if delivery.resumed(path, frame):
                    refused, requests = delivery.refused()
                    if refused:
                        out.append(self._undelivered(peer, refused))
                    if requests:
                        out.append(RequestsRefused(peer_id, tuple(requests)))
                    relay = path == RELAY
                    said = peer.route.asked(now, relay=relay, ask=frame.ask or astray)
                    out += self._route_said(peer, said, now)
                    out.append(Ready(peer_id))
            case frames.Ping(nonce):
                delivery.received(path, frame, now, [])
                if nonce:
                    delivery.pong(nonce)
                if path != RELAY:
                    peer.link.spoke(now)
                out.append(Ready(peer_id))
            case frames.Pong(nonce):
                if nonce >= _PINGS:
                    out.append(Ponged(peer_id, nonce - _PINGS))
                elif path == RELAY:
                    if peer.route.rtt is None:
                        self._reports.changed(peer_id, now)
                    peer.route.ponged(nonce, now)
            case frames.Bye():
                incarnation = peer.member.incarnation
                out += self._mesh_said(self._mesh.departed(peer_id, incarnation), now)
            case _:
                delivery.received(path, frame, now, [])
                out.append(Ready(peer_id))

    def ping(self, peer_id: str, nonce: int) -> list[NodeOutput]:
        """Send a ping frame behind what was sent before, for `Ponged`; none when there is no path.

        KeyError when the peer is not there.
        """
        path = self._peers[peer_id].delivery.out
        if path is None:
            return []
        return [SendFrame(peer_id, path, frames.encode(frames.Ping(_PINGS + nonce)))]

    def spoke(self, peer_id: str, now: float) -> None:
        """The shell sent data over the current connection. KeyError when the peer is not there."""
        self._peers[peer_id].link.spoke(now)

    def taken(self, peer_id: str, incarnation: str, channel: int, charge: int) -> list[NodeOutput]:
        """The application took a message of this channel."""
        if self._find(peer_id, incarnation) is None:
            if (ended := self._ended.get((peer_id, incarnation))) is not None:
                ended.delivery.taken(channel, charge)
            return []
        delivery = self._peers[peer_id].delivery
        delivery.taken(channel, charge)
        return [Ready(peer_id)] if delivery.due else []

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
                peer.delivery.tick(now)
                if peer.delivery.due:
                    out.append(Ready(peer_id))
                out += self._route_said(peer, peer.route.tick(now), now)
                if peer_id in self._peers:
                    out += self._link_said(peer_id, peer.link.tick(now), now)
        if links := self._reports.due(now, self._peers, self._link_report):
            out.append(ReportLinks(tuple(links)))
        return out

    def close(self, now: float, *, leaves: bool = True) -> list[NodeOutput]:
        """Every link ends. The peers are told that we leave, unless ``leaves`` is false: who was
        replaced or removed does not, and the signalling service says why it is gone."""
        bye = frames.encode(frames.Bye())
        out: list[NodeOutput] = []
        for peer_id, peer in self._peers.items():
            relayed = peer.route.state is RouteState.RELAY
            if peer.link.alive or relayed:
                path = RELAY if relayed else peer.link.epoch
                # Or what has arrived, and waits for its acknowledgement, is taken for lost.
                if (ack := peer.delivery.last_ack()) is not None:
                    out.append(SendFrame(peer_id, path, ack))
                if leaves:
                    out.append(SendFrame(peer_id, path, bye))
        out += self._mesh_said(self._mesh.close(), now)
        self._reports.lost()
        return out

    # --- putting outputs together ---

    def _find(self, peer_id: str, incarnation: str) -> Link | None:
        peer = self._peers.get(peer_id)
        if peer is None or peer.member.incarnation != incarnation:
            return None
        return peer.link

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
                    epoch, history, delivery = self._ended.pop(
                        (member.peer_id, member.incarnation),
                        _Ended(0, History(), Delivery(self._config)),
                    )
                    link = Link(
                        self._config,
                        dials=dials,
                        incarnation=self._incarnation,
                        random=self._random,
                        epoch=epoch,
                        history=history,
                    )
                    peer = _Peer(member, link, delivery, Route(self._config), since=now)
                    self._peers[member.peer_id] = peer
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
                    peer.route.start(now)
                    out += self._link_said(member.peer_id, link.start(now), now)
                    out += self._relay_changed(member.peer_id, now)
                case CloseLink(peer_id, incarnation, reason):
                    peer = self._peers[peer_id]
                    if lost := peer.delivery.give_up():
                        out.append(self._undelivered(peer, lost))
                    out += self._link_said(peer_id, peer.link.close(reason, now), now)
                    self._reports.ended(self._link_report(peer_id), now)
                    del self._peers[peer_id]
                    peer.delivery.detach(RELAY)
                    self._ended[peer_id, incarnation] = _Ended(
                        peer.link.epoch, peer.link.history, peer.delivery
                    )
                    if len(self._ended) > _MAX_ENDED:
                        self._ended.popitem(last=False)
                    if peer.delivery.half:
                        self._bound_ended()
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
                    if reachable:
                        self._reports.unknown(peer_id, now)
                    out += self._link_said(peer_id, link.set_reachable(reachable, now), now)
                    out += self._relay_changed(peer_id, now)
        return out

    def _bound_ended(self) -> None:
        """Forget the oldest of those that ended in the middle of a message, when all that is kept
        of such messages is too much. The latest is kept in any case."""
        halves = [
            (name, half) for name, ended in self._ended.items() if (half := ended.delivery.half)
        ]
        held = sum(half for _, half in halves)
        for name, half in halves[:-1]:
            if held <= self._config.receive_window:
                return
            del self._ended[name]
            held -= half

    def _relay_changed(self, peer_id: str, now: float) -> list[NodeOutput]:
        peer = self._peers[peer_id]
        up = self._relays(peer.link)
        if not up:
            peer.delivery.detach(RELAY)
        return self._route_said(peer, peer.route.relay(now, up=up), now)

    def _relays(self, link: Link) -> bool:
        """Whether the relay is a path to this peer."""
        return self._forwards and link.reachable and self._config.relay_after is not None

    def _undelivered(self, peer: _Peer, messages: list[UndeliveredMessage]) -> Tell:
        return Tell(
            MessagesUndelivered(
                peer_id=peer.member.peer_id,
                incarnation=peer.member.incarnation,
                messages=tuple(messages),
            )
        )

    def _route_said(self, peer: _Peer, outputs: list[route.Output], now: float) -> list[NodeOutput]:
        out: list[NodeOutput] = []
        peer_id, delivery = peer.member.peer_id, peer.delivery
        for output in outputs:
            match output:
                case route.Ping(nonce):
                    data = frames.encode(frames.Ping(nonce))
                    out.append(SendFrame(peer_id, RELAY, data))
                case route.Attach(relay, ask):
                    path = RELAY if relay else peer.link.epoch
                    # Where a connection was only silent for a while, nothing of it is lost.
                    if not relay and delivery.inbound == path:
                        continue
                    if ask:
                        out.append(SendFrame(peer_id, path, delivery.attach(path, ask=True)))
                    else:
                        delivery.answer(path)
                        out.append(Ready(peer_id))
        relayed = peer.route.state is RouteState.RELAY
        if relayed is not peer.relayed:
            peer.relayed = peer.link.carried = relayed
            if relayed:
                peer.link.history.fallbacks += 1
            elif peer.route.state is not RouteState.DIRECT:
                peer.link.history.failure = peer.route.reason
            out += self._tell_state(peer, peer.route.reason, now)
            self._reports.changed(peer_id, now)
        self._arm(peer)
        return out

    def _arm(self, peer: _Peer) -> None:
        """See to it that `tick` comes in time for this peer."""
        times = (
            peer.link.next_deadline(),
            peer.route.next_deadline(),
            peer.delivery.next_deadline(),
        )
        deadline = min((at for at in times if at is not None), default=None)
        if deadline is not None and (peer.armed is None or deadline < peer.armed):
            peer.armed = deadline
            heapq.heappush(self._heap, (deadline, peer.member.peer_id))

    def _link_said(self, peer_id: str, outputs: list[LinkOutput], now: float) -> list[NodeOutput]:
        peer = self._peers[peer_id]
        out: list[NodeOutput] = []
        for output in outputs:
            match output:
                case SendSignal(epoch, body):
                    out.append(self._signal_out(peer, epoch, body))
                case Operate(epoch, operation):
                    if isinstance(operation, CloseConnection):
                        peer.delivery.detach(epoch)
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
            if not isinstance(output, Ping):
                self._reports.changed(peer_id, now)
        self._arm(peer)
        return out

    def _state_changed(self, peer: _Peer, change: StateChanged, now: float) -> list[NodeOutput]:
        peer_id, link = peer.member.peer_id, peer.link
        up = link.state is LinkState.CONNECTED
        said = peer.route.link(now, up=up) if up or change.previous is LinkState.CONNECTED else []
        # Over the relay `connected` goes on, so the path is told even where the state is not.
        out = self._tell_state(peer, change.reason, now)
        out += self._route_said(peer, said, now)
        if change.state is not LinkState.CLOSED:
            out += self._mesh_said(self._mesh.link_alive(peer_id, alive=link.alive), now)
        return out

    def _tell_state(self, peer: _Peer, reason: str, now: float) -> list[NodeOutput]:
        peer_id, link = peer.member.peer_id, peer.link
        state, path = self._state(peer), self.path_of(peer_id)
        if (state, path) == (peer.told, peer.told_path):
            return []
        previous, peer.told, peer.told_path, peer.reason = peer.told, state, path, reason
        out: list[NodeOutput] = []
        if state is not previous:
            peer.seconds[previous] = peer.seconds.get(previous, 0.0) + now - peer.since
            peer.since = now
            out.append(
                Tell(
                    PeerStateChanged(
                        peer_id=peer_id,
                        incarnation=peer.member.incarnation,
                        name=peer.member.name,
                        previous=previous,
                        state=state,
                        path=path,
                        reason=reason,
                        epoch=link.epoch,
                    )
                )
            )
        out.append(Tell(self.report(peer_id, now)))
        return out

    @staticmethod
    def _state(peer: _Peer) -> PeerState:
        if peer.route.state is RouteState.RELAY and peer.link.state is not LinkState.CLOSED:
            return PeerState.CONNECTED
        state = peer.link.peer_state
        if state in (PeerState.NEW, PeerState.CONNECTING) and peer.told in (
            PeerState.CONNECTED,
            PeerState.DISCONNECTED,
        ):
            return PeerState.DISCONNECTED  # it was connected, over the relay
        if state is PeerState.FAILED and peer.told is PeerState.CONNECTED:
            return PeerState.DISCONNECTED  # the attempts failed before; none has since
        return state
