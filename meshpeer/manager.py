"""`PeerManager`: a room's peers, found, connected and kept connected."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from types import MappingProxyType, TracebackType
from typing import Any, Self, TypeVar

import msgspec

from meshpeer.announcer import Callback
from meshpeer.config import MeshConfig
from meshpeer.core.events import (
    ConnectionReport,
    Event,
    IceServerReport,
    MeshState,
    MessagesUndelivered,
    Path,
    PeerState,
)
from meshpeer.core.messages import VERSION, Join, Metadata, decode_client, encode
from meshpeer.errors import (
    ConfigError,
    MeshTimeout,
    MessageTooLarge,
    PeerClosed,
    ProtocolError,
    TooManyChannels,
)
from meshpeer.files import FileProgress, FileReceived
from meshpeer.peer import Message, PathTest, Peer, check_label, encoded
from meshpeer.rtc.base import ConnectionFactory
from meshpeer.shell import Shell
from meshpeer.signaling.base import SignalingTransport
from meshpeer.signaling.client import JoinTokenSource
from meshpeer.signaling.websocket import WebSocketTransport

__all__ = ["Debug", "MeshStats", "PeerManager", "PeerStats"]

E = TypeVar("E", bound=Event)
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerStats:
    """One peer in a `MeshStats`. Counts are of this incarnation, also from before it was away."""

    peer_id: str
    incarnation: str
    name: str | None
    state: PeerState
    ice_state: str
    path: Path | None
    rtt: float | None
    """Seconds."""
    epoch: int
    """The number of the latest connection attempt of either side."""
    attempts: int
    """Connections that were begun here."""
    connections: int
    """How many of them succeeded."""
    failures: int
    """How many of them failed. One that was under way when the peer left is none."""
    connect_time: float | None
    """Seconds from the beginning of an attempt to its success, of all successes together; None
    before the first."""
    generation: int
    """The ICE generation that carries data."""
    restarts: int
    """ICE restarts that took over."""
    fallbacks: int
    """How often data went over to the relay."""
    failure: str
    """Why the latest attempt, ICE restart or path that failed did; empty while none has."""
    messages_sent: int
    messages_direct: int
    """How many of them arrived over a direct path or TURN, as far as they are acknowledged."""
    messages_received: int
    bytes_sent: int
    """Of messages, without what frames add to them."""
    bytes_received: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshStats:
    """A snapshot of a `PeerManager`."""

    peer_id: str
    room: str
    state: MeshState
    peers: Mapping[str, PeerStats]
    paths: Mapping[Path, int]
    """How many peers are connected over each path."""
    ice_servers: Mapping[str, IceServerReport]
    """What came of asking each STUN and TURN server the last time, by its URL."""


class Debug:
    """Tools to look into a `PeerManager` that runs, as `PeerManager.debug`."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell

    def get_connections(self) -> list[ConnectionReport]:
        """How it stands with each peer."""
        return [self._shell.report(peer_id) for peer_id in self._shell.peers]

    def force_ice_restart(self, peer_id: str | None = None) -> None:
        """Begin an ICE restart (RFC 8445, section 9) with a peer, or with all.

        Returns at once; a `ConnectionReport` tells when it took over. Where there is no connection
        nothing happens. Raises `ConfigError` for a peer that is not there, `MeshClosed`.
        """
        self._shell.check_running()
        if peer_id is not None and peer_id not in self._shell.peers:
            raise ConfigError(f"peer {peer_id!r} is not in the room")
        self._shell.restart_ice(peer_id)

    async def test_p2p_with_all_peers(self, timeout: float = 5.0) -> list[PathTest]:
        """A round trip to every peer over its connection, all at the same time.

        ``timeout`` is in seconds. One that does not answer, or is not connected, is told with the
        reason. Raises `MeshClosed`. Cancelling it changes nothing.
        """
        self._shell.check_running()
        peers = list(self._shell.peers.values())
        async with asyncio.TaskGroup() as group:
            tests = [group.create_task(self._shell.test_path(peer, timeout)) for peer in peers]
        return [test.result() for test in tests]


class PeerManager:
    """Enters a room, connects to everybody in it, and keeps it so.

    ``signaling`` is the URL of a relay (``ws://`` or ``wss://``) or a `SignalingTransport`.
    ``peer_id`` is random when it is not given. ``metadata`` is JSON-able and small (4096 bytes).
    ``resume_token`` is the `resume_token` of an earlier process with this ``peer_id``: it gets the
    id back at once, even if the relay has not noticed yet that the earlier one is dead.
    ``join_token`` shows to the relay at this URL that we may join, where it asks for that: a token,
    or an async callable that gives one for each connection, as one that expires needs. If that
    raises, the attempt has failed and another one follows.

    Raises `ConfigError` for arguments that can't be right. Nothing is contacted before `start`.
    """

    def __init__(
        self,
        signaling: str | SignalingTransport,
        *,
        room: str,
        peer_id: str | None = None,
        name: str | None = None,
        metadata: Metadata | None = None,
        config: MeshConfig | None = None,
        resume_token: str | None = None,
        join_token: JoinTokenSource | None = None,
        connection_factory: ConnectionFactory | None = None,
    ) -> None:
        config = config or MeshConfig()
        join = Join(
            version=VERSION,
            room=room,
            peer_id=secrets.token_hex(8) if peer_id is None else peer_id,
            incarnation=secrets.token_urlsafe(16),
            name=name,
            metadata=metadata or {},
            on_conflict=config.on_conflict,
            token=resume_token,
        )
        join = _checked(join)

        def factory() -> ConnectionFactory:
            if connection_factory is not None:
                return connection_factory
            # Late, so that importing meshpeer does not import aiortc and av.
            from meshpeer.rtc.connection import connection_factory as make

            return make(config)

        async def watch(config: MeshConfig, changed: Callable[[], None]) -> None:
            from meshpeer.rtc.interfaces import watch_addresses

            await watch_addresses(config, changed)

        transport: SignalingTransport
        if isinstance(signaling, str):
            transport = WebSocketTransport(signaling, config=config, join_token=join_token)
        elif join_token is not None:
            raise ConfigError(
                "join_token is for the relay at a URL; give it to the transport instead, as in "
                "WebSocketTransport(url, join_token=...)"
            )
        else:
            transport = signaling
        # Jitter, not a secret.
        self._shell = Shell(
            transport,
            join,
            config,
            factory,
            random.random,
            watch if connection_factory is None else None,
        )
        self._debug = Debug(self._shell)

    # --- life ---

    async def start(self) -> None:
        """Enter the room; returns when the relay has given us a seat.

        Raises `PeerIdTaken`, `RoomFull`, `Unauthorized`, `Forbidden` or another `RefusedError` when
        the relay says no. An id that is held for a process which lost its connection is waited for,
        as is a relay that can't be reached, up to ``MeshConfig.join_timeout``: then `PeerIdTaken`,
        or `SignalingUnavailable`, is raised. `MeshClosed` when it was started before. After an
        error, or when it is cancelled, the manager is closed and nothing is left behind.
        """
        await self._shell.start()

    async def close(self) -> None:
        """Leave the room: says goodbye, closes every connection, and leaves nothing behind.

        Waits up to half of ``MeshConfig.close_timeout`` for what was sent to arrive, up to
        ``close_timeout`` for connections that do not close, and as long for callbacks that have not
        returned. May be called more than once, at any time, and from a callback, where it returns
        at once and the end follows. When it is cancelled it waits for no arrivals, tears down, and
        then raises.
        """
        await self._shell.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self.close()

    # --- what it knows ---

    @property
    def peer_id(self) -> str:
        """Our id in the room. Under ``on_conflict="rename"`` it is final after `start`."""
        return self._shell.join.peer_id

    @property
    def incarnation(self) -> str:
        """Random, and another one for every `PeerManager`."""
        return self._shell.join.incarnation

    @property
    def name(self) -> str | None:
        """Our display name, as the others see it: where the relay gives one, that one, from `start`
        on."""
        return self._shell.name

    @property
    def room(self) -> str:
        """The room."""
        return self._shell.join.room

    @property
    def state(self) -> MeshState:
        """``new → joining → joined ⇄ reconnecting → closed``: how it stands with the relay."""
        return self._shell.state

    @property
    def resume_token(self) -> str | None:
        """The secret that lets a later process take over this peer id; None before `start`."""
        return self._shell.token

    @property
    def peers(self) -> Mapping[str, Peer]:
        """Everybody else in the room by id, connected or not: a live, read-only view."""
        return MappingProxyType(self._shell.peers)

    @property
    def debug(self) -> Debug:
        """Tools to look into it while it runs."""
        return self._debug

    def stats(self) -> MeshStats:
        """A snapshot: how each peer is connected, what went to and fro, and the ICE servers."""
        paths = Counter(p.path for p in self._shell.peers.values() if p.path is not None)
        return MeshStats(
            peer_id=self.peer_id,
            room=self.room,
            state=self.state,
            peers={
                peer_id: PeerStats(
                    peer_id=peer_id,
                    incarnation=peer.incarnation,
                    name=peer.name,
                    state=peer.state,
                    ice_state=peer.ice_state,
                    path=peer.path,
                    rtt=peer.rtt,
                    **self._shell.counts(peer_id),
                )
                for peer_id, peer in self._shell.peers.items()
            },
            paths=dict(paths),
            ice_servers=dict(self._shell.server_reports),
        )

    # --- waiting ---

    async def wait_for_peers(self, count: int = 1, timeout: float | None = None) -> list[Peer]:
        """Wait until at least ``count`` peers are connected, and return those that are.

        ``timeout`` is in seconds, None for no limit. Raises `MeshTimeout`, `MeshClosed`. Cancelling
        it changes nothing.
        """

        def connected() -> list[Peer] | None:
            peers = [p for p in self._shell.peers.values() if p.state is PeerState.CONNECTED]
            return peers if len(peers) >= count else None

        def missing() -> str:
            states = ", ".join(f"{p.id} {p.state}" for p in self._shell.peers.values())
            return f"{count} connected peers (there are: {states or 'none'})"

        return await self._wait_until(connected, timeout, missing)

    async def wait_for_peer(self, peer_id: str, timeout: float | None = None) -> Peer:
        """Wait until this peer is there and connected.

        ``timeout`` is in seconds, None for no limit. Raises `MeshTimeout`, `MeshClosed`. Cancelling
        it changes nothing.
        """

        def connected() -> Peer | None:
            peer = self._shell.peers.get(peer_id)
            return peer if peer is not None and peer.state is PeerState.CONNECTED else None

        def missing() -> str:
            peer = self._shell.peers.get(peer_id)
            state = "not in the room" if peer is None else str(peer.state)
            return f"peer {peer_id!r} to be connected (it is {state})"

        return await self._wait_until(connected, timeout, missing)

    async def _wait_until(
        self, found: Callable[[], T | None], timeout: float | None, missing: Callable[[], str]
    ) -> T:
        scope = asyncio.timeout(timeout)
        try:
            async with scope:
                while (value := found()) is None:
                    self._shell.check_running()
                    await self._shell.bell.wait()
                return value
        except TimeoutError:
            if not scope.expired():
                raise
            raise MeshTimeout(f"waited {timeout:g} s for {missing()}") from None

    # --- messages and events ---

    async def broadcast(self, data: Any, channel: str = "default") -> list[Peer]:
        """Send to everybody in the room, encoded once. Returns those who will get it.

        Returns when it is accepted for all, as in `Peer.send`: whoever is not connected yet gets it
        then. A peer that leaves meanwhile, or does not take messages of this size or one channel
        more, is left out. Raises `InvalidData`, `MessageTooLarge`, `ConfigError`, `MeshClosed`.
        When it is cancelled, it was accepted for some and not for others.
        """
        shell = self._shell
        shell.check_running()
        if channel != "default":
            check_label("channel", channel)
        message = encoded(data, channel, shell.max_message_size)
        peers = list(shell.peers.values())
        results = await asyncio.gather(
            *(shell.send(peer, message) for peer in peers), return_exceptions=True
        )
        for result in results:
            # What concerns one peer only, it has to itself: gone, or its limit is lower than ours.
            if isinstance(result, BaseException) and not isinstance(
                result, PeerClosed | MessageTooLarge | TooManyChannels
            ):
                raise result
        return [peer for peer, result in zip(peers, results, strict=True) if result is None]

    def messages(self, channel: str | None = None) -> AsyncIterator[Message]:
        """Iterate over the messages of all peers, or over those of one channel.

        Every caller gets every message from the moment of this call. What arrived before anybody
        asked is kept for the first who does. Who reads slowly slows the senders down: up to
        ``MeshConfig.channel_window`` bytes of a peer's channel wait here, and its large messages.
        The iterator ends with the manager; when something else than `close` ended it, it raises
        that.
        """
        return self._shell.messages(channel)

    async def receive_file(
        self,
        directory: str | PathLike[str],
        *,
        sender: str | None = None,
        timeout: float | None = None,
        on_progress: Callable[[FileProgress], object] | None = None,
    ) -> FileReceived:
        """Wait for the next file that a peer sends, and store it in ``directory``.

        ``sender`` is the id of the peer to take it from, any by default. ``timeout`` is how long to
        wait for one to be offered, in seconds, None for no limit. The directory is made when it is
        not there; a file that is there already is never touched: " (2)" and so on is added to the
        name. Until the file is complete and its SHA-256 is right it has a hidden name that ends in
        ``.part``, and a later transfer of the same file goes on from that.

        Raises `MeshTimeout`, `TransferFailed` when the sender gave up or what arrived is not what
        was offered, `PeerClosed` when the sender is gone, `OSError` when it can't be stored,
        `MeshClosed`. When it is cancelled, the sender is told; what has arrived is kept.
        """
        self._shell.check_running()
        return await self._shell.files.receive(
            directory, sender=sender, timeout=timeout, on_progress=on_progress
        )

    def events(self) -> AsyncIterator[Event]:
        """Iterate over everything that happens from the moment of this call.

        Ends after `Closed`. Raises `SlowReader` when more than ``MeshConfig.max_pending_events``
        were not read.
        """
        return self._shell.events()

    def on(self, kind: type[E], callback: Callable[[E], object]) -> Callable[[], None]:
        """Call ``callback(event)`` for each event of this kind; returns a function that ends it.

        Callbacks run in order, after the state has changed, each kind of callback in a task of its
        own; a coroutine function is awaited before the next event. What it raises is logged.
        """
        wanted: Callback = callback
        return self._shell.on(kind, wanted)

    def on_undelivered(
        self, callback: Callable[[MessagesUndelivered], object]
    ) -> Callable[[], None]:
        """Call ``callback`` with what a peer that is gone for good did not get, as `on` does.

        The place to hand it to the peer's next incarnation, or to somebody else.
        """
        return self.on(MessagesUndelivered, callback)

    def update(self, *, name: str | None = None, metadata: Metadata | None = None) -> None:
        """Tell the room a new display name or new metadata; None leaves it as it is.

        Raises `ConfigError` for values that can't be right, `MeshClosed`, and `SignalingBacklog`
        when the relay is away and too much waits for it.
        """
        join = self._shell.join
        changed = msgspec.structs.replace(
            join,
            name=join.name if name is None else name,
            metadata=join.metadata if metadata is None else metadata,
        )
        _checked(changed)
        self._shell.update(name, metadata)

    def __repr__(self) -> str:
        return f"<PeerManager {self.peer_id!r} in {self.room!r} {self.state}>"


def _checked(join: Join) -> Join:
    """What the relay would make of it, before it is asked. Raises `ConfigError`."""
    try:
        checked = decode_client(encode(join))
    except (TypeError, ValueError, RecursionError) as exc:
        raise ConfigError(f"metadata must be JSON-able: {exc}") from None
    except ProtocolError as exc:
        field = exc.field.removeprefix("$.")
        said = str(exc).removeprefix("malformed message from the client: ")
        if field == "token":
            raise ConfigError(f"resume_token can't be that: {said}") from None
        raise ConfigError(f"{field} can't be {getattr(join, field, None)!r:.80}: {said}") from None
    assert isinstance(checked, Join)
    return checked
