"""Every limit and every timeout, in one place: frozen, documented, validated.

Times are seconds, sizes are bytes, unless a name says otherwise. A value out of its range raises
`ConfigError`, which names the field, the value and the range.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv6Network, ip_network
from typing import TYPE_CHECKING, Final, Literal, TypeGuard
from urllib.parse import urlsplit

from meshpeer.errors import ConfigError

if TYPE_CHECKING:
    from ssl import SSLContext

__all__ = ["PRIORITIES", "IceServer", "MeshConfig", "OnConflict", "Priority", "RelayConfig"]

# RFC 6454, section 4: a scheme, a host and maybe a port, and nothing of a user or a path.
_ORIGIN: Final = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@\\\s]+")

AddressFamily = Literal["ipv4", "ipv6"]

OnConflict = Literal["reject", "takeover", "rename"]
Priority = Literal["very-low", "low", "medium", "high"]
PRIORITIES: Mapping[str, int] = {"very-low": 1, "low": 2, "medium": 4, "high": 8}
"""The share that a channel of each priority gets (W3C WebRTC Priority Control, RTCPriorityType)."""


def _range(owner: object, name: str, low: float, high: float) -> None:
    value = getattr(owner, name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ConfigError(
            f"{type(owner).__name__}.{name} must be between {low} and {high}, not {value!r}"
        )


def _whole(owner: object, name: str, low: int, high: int) -> None:
    value = getattr(owner, name)
    if not isinstance(value, int):
        raise ConfigError(
            f"{type(owner).__name__}.{name} must be a whole number between {low} and {high}, "
            f"not {value!r}"
        )
    _range(owner, name, low, high)


def _is_text(value: object) -> TypeGuard[str]:
    """A str that UTF-8 can encode: one from the system may have halves of characters in it."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class IceServer:
    """One STUN or TURN server (W3C WebRTC, RTCIceServer; URIs as in RFC 7064 and RFC 7065)."""

    urls: str | Sequence[str]
    """One address, or several of the same server."""
    username: str | None = None
    """For TURN. Required there."""
    credential: str | None = field(default=None, repr=False)
    """The password for TURN. Required there; not shown by ``repr``."""
    ca_file: str | None = None
    """For ``turns:``: a file of certificates (PEM) to trust instead of the system's."""
    ssl_context: SSLContext | None = None
    """For ``turns:``: the TLS settings as a whole; then ``ca_file`` is not looked at."""

    def __post_init__(self) -> None:
        # Read as `object` here and below: a caller without a type checker passes anything.
        urls: object = [self.urls] if isinstance(self.urls, str) else self.urls
        if not isinstance(urls, Sequence) or not urls:
            raise ConfigError(f"IceServer.urls must be one address or several, not {urls!r}")
        for name in ("username", "credential"):
            value: object = getattr(self, name)
            if value is not None and not _is_text(value):
                # Not its value, which may be a secret.
                raise ConfigError(f"IceServer.{name} must be a str that UTF-8 can encode")
        for url in urls:
            if not _is_text(url) or not url.startswith(("stun:", "turn:", "turns:")):
                raise ConfigError(
                    f"IceServer.urls must begin with stun:, turn: or turns:, not {url!r}"
                )
            if url.startswith("turn") and None in (self.username, self.credential):
                raise ConfigError(
                    f"IceServer.username and IceServer.credential must be given for {url!r}"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshConfig:
    """How a `PeerManager` behaves."""

    on_conflict: OnConflict = "reject"
    """An id that is in use: refuse to start, take it over (same resume token), or rename."""

    ice_servers: tuple[IceServer, ...] = ()
    """STUN and TURN servers, besides those that the relay names. None by default: nothing is
    contacted that neither of them named."""

    ice_transport_policy: Literal["all", "relay"] = "all"
    """``relay``: only candidates of TURN servers are used, so that no address of ours is shown
    (W3C WebRTC, RTCIceTransportPolicy)."""
    ice_server_timeout: float = 5.0
    """How long a STUN or TURN server is waited for. Nothing else waits meanwhile."""
    interfaces: tuple[str, ...] = ("*",)
    """Names of the network interfaces to use, as patterns (``eth*``); with ``!`` before it, those
    that match are left out (``!docker*``). The last that matches a name counts."""
    address_families: tuple[AddressFamily, ...] = ("ipv4", "ipv6")
    """Which addresses to use, of this host's and of servers'."""
    port_range: tuple[int, int] | None = None
    """The first and the last UDP port that peers are to reach this host at; None: whichever the
    system gives. Sockets towards TURN servers are not concerned."""

    connect_timeout: float = 8.0
    """A connection attempt, and an ICE restart that was answered, that takes longer has failed."""
    candidates_timeout: float = 5.0
    """The other side is taken to have sent its last candidate this long after the latest."""
    restart_timeout: float = 5.0
    """An ICE restart that is not answered within this is given up, and begun again if need be."""
    upgrade_first: float = 5.0
    """The first wait before a better path than TURN is looked for; it doubles."""
    upgrade_max: float = 300.0
    """The longest wait between two such tries."""
    retry_first: float = 1.0
    """The first wait before another attempt, after two have failed; it doubles."""
    retry_max: float = 30.0
    """The longest wait between two attempts."""
    ping_interval: float = 1.0
    """A side that sent nothing for this long on a connected link pings, heard or not heard."""
    silence_timeout: float = 2.5
    """A connected link on which nothing was heard for this long is ``disconnected``."""
    disconnected_timeout: float = 15.0
    """A disconnected link that is not heard of for this long, in spite of ICE restarts, gets a new
    connection."""
    stable_after: float = 5.0
    """A connection that held for this long has earned a fresh start of failures and waits."""

    join_timeout: float = 10.0
    """How long `PeerManager.start` tries to enter the room before it raises."""
    signaling_retry_first: float = 0.5
    """The first wait before the signalling service is tried again (full jitter); it doubles."""
    signaling_retry_max: float = 30.0
    """The longest wait between two tries."""
    close_timeout: float = 2.0
    """The longest that `PeerManager.close` waits for others before it tears down."""

    max_message_size: int = 16 * 1024 * 1024
    """The largest message that is sent or accepted, in bytes after encoding."""
    send_window: int = 16 * 1024 * 1024
    """How much one channel to one peer may have that was accepted and not acknowledged, in bytes,
    before `Peer.send` waits. A message that begins within it may reach beyond it."""
    receive_window: int = 16 * 1024 * 1024
    """How much of its large messages a peer may send before the application has taken them, in
    bytes: what does not fit into ``channel_window``. Also how much of its plain channels is kept
    unread."""
    channel_window: int = 512 * 1024
    """How much a peer may send on each channel before the application has taken it, in bytes. Who
    does not read one channel, does not hold up another."""
    max_channels: int = 32
    """How many channels of messages a peer may use towards us.

    What is kept of what a peer sent and the application has not taken is at most ``receive_window``
    and ``max_channels`` times ``channel_window``.
    """
    channel_priorities: Mapping[str, Priority] = field(
        default_factory=lambda: {"meshpeer.file": "very-low"}
    )
    """How the channels share a path when all have something to send, by W3C WebRTC's
    RTCPriorityType: each step gets twice the share of the one below. ``low`` when not named."""
    ack_delay: float = 0.05
    """The longest that a received message waits for its acknowledgement, in seconds."""
    relay_after: float | None = 3.0
    """Data flows over the relay when there was no direct path for so long; 0: from the first
    moment, until there is one; None: never."""
    send_buffer: int = 1024 * 1024
    """How much `Channel.send` leaves in the buffer of its plain channel before it waits, in
    bytes."""
    max_pending_events: int = 10_000
    """How many events a slow reader of `PeerManager.events` may be behind before it is ended."""
    max_pending_signals: int = 1_000
    """How many signals are kept while the signalling service is away."""

    def __post_init__(self) -> None:
        if self.on_conflict not in ("reject", "takeover", "rename"):
            raise ConfigError(
                "MeshConfig.on_conflict must be 'reject', 'takeover' or 'rename', "
                f"not {self.on_conflict!r}"
            )
        servers: object = self.ice_servers
        if not isinstance(servers, tuple) or not all(isinstance(s, IceServer) for s in servers):
            # Not its repr: what stands here by mistake may hold a credential in the open.
            raise ConfigError(
                f"MeshConfig.ice_servers must be a tuple of IceServer, not {type(servers).__name__}"
            )
        if self.ice_transport_policy not in ("all", "relay"):
            raise ConfigError(
                "MeshConfig.ice_transport_policy must be 'all' or 'relay', "
                f"not {self.ice_transport_policy!r}"
            )
        self._check_addresses()
        for name in (
            "connect_timeout",
            "candidates_timeout",
            "restart_timeout",
            "upgrade_first",
            "upgrade_max",
            "ice_server_timeout",
            "ping_interval",
            "silence_timeout",
            "disconnected_timeout",
        ):
            _range(self, name, 0.05, 3600)
        for name in ("retry_first", "retry_max", "signaling_retry_first", "signaling_retry_max"):
            _range(self, name, 0.01, 3600)
        _range(self, "stable_after", 0, 3600)
        _range(self, "join_timeout", 0.1, 3600)
        _range(self, "close_timeout", 0, 60)
        _whole(self, "max_message_size", 1024, 1 << 30)
        _whole(self, "receive_window", 64 * 1024, 1 << 32)
        _whole(self, "send_window", 16 * 1024, 1 << 32)
        _whole(self, "channel_window", 32 * 1024, 1 << 30)
        _whole(self, "max_channels", 2, 200)
        _whole(self, "send_buffer", 16 * 1024, 1 << 30)
        _range(self, "ack_delay", 0, 10)
        if self.relay_after is not None:
            _range(self, "relay_after", 0, 3600)
        self._check_priorities()
        _whole(self, "max_pending_events", 10, 10_000_000)
        # The relay acknowledges every 32nd: fewer would wait for each other for ever.
        _whole(self, "max_pending_signals", 100, 1_000_000)
        if self.silence_timeout <= self.ping_interval:
            raise ConfigError(
                f"MeshConfig.silence_timeout ({self.silence_timeout}) must be longer than "
                f"ping_interval ({self.ping_interval}), or a quiet link is never connected"
            )
        if self.max_message_size > self.receive_window:
            raise ConfigError(
                f"MeshConfig.max_message_size ({self.max_message_size}) must fit into "
                f"receive_window ({self.receive_window})"
            )

    def _check_priorities(self) -> None:
        priorities: object = self.channel_priorities
        if not isinstance(priorities, Mapping):
            raise ConfigError(
                "MeshConfig.channel_priorities must map names of channels to priorities, "
                f"not {priorities!r}"
            )
        for channel, priority in priorities.items():
            if priority not in PRIORITIES:
                raise ConfigError(
                    f"MeshConfig.channel_priorities[{channel!r}] must be one of "
                    f"{', '.join(PRIORITIES)}, not {priority!r}"
                )

    def _check_addresses(self) -> None:
        patterns: object = self.interfaces
        if not isinstance(patterns, tuple) or not all(
            isinstance(each, str) and each.removeprefix("!") for each in patterns
        ):
            raise ConfigError(
                f"MeshConfig.interfaces must be a tuple of patterns like 'eth*', not {patterns!r}"
            )
        families: object = self.address_families
        if not isinstance(families, tuple) or not families or set(families) - {"ipv4", "ipv6"}:
            raise ConfigError(
                "MeshConfig.address_families must be a tuple of 'ipv4', 'ipv6' or both, "
                f"not {families!r}"
            )
        match ports := self.port_range:
            case None | (int(), int()) if ports is None or 1 <= ports[0] <= ports[1] <= 65535:
                pass
            case _:
                raise ConfigError(
                    "MeshConfig.port_range must be two ports between 1 and 65535, the lower first, "
                    f"not {ports!r}"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayConfig:
    """How the relay behaves, and what a stranger may cost it."""

    host: str = "127.0.0.1"
    """The address to listen on. Loopback by default."""
    port: int = 3001
    """The port to listen on; 0 takes a free one."""
    tls_cert: str | None = None
    """A file with the certificate and its chain (PEM): the relay speaks ``wss`` and ``https``."""
    tls_key: str | None = None
    """A file with its private key (PEM)."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses or networks (``10.0.0.0/8``) of proxies whose ``X-Forwarded-For`` is believed. From
    anybody else it is not looked at."""

    open: bool = False
    """Anybody who can reach the relay may join. On an address that is not loopback, or with
    ``trusted_proxies``, it does not start without this, ``join_secret``, ``join_public_key`` or an
    `Authenticator`."""
    join_secret: str | None = field(default=None, repr=False)
    """Joins need a token signed with this (JWT, HS256): 32 bytes or more."""
    join_public_key: str | None = None
    """Joins need a token signed with the key that belongs to this one (JWT, EdDSA; PEM)."""
    origins: tuple[str, ...] = ()
    """Pages that may open a WebSocket and import ``/meshpeer.js`` besides the relay's own:
    ``https://app.example.org``; ``*`` is every page (RFC 6454). Clients that are no browsers send
    no origin."""
    admin_user: str = "admin"
    """Who may see the dashboard, the admin API and the metrics (HTTP Basic, RFC 7617)."""
    admin_password: str | None = field(default=None, repr=False)
    """None: a random one is made at each start (`Relay.admin_password`)."""
    admin_attempts: int = 10
    """Wrong admin passwords from one address a minute, before it is refused unheard."""

    ice_servers: tuple[IceServer, ...] = ()
    """STUN and TURN servers that every member is told. TURN servers here have credentials that do
    not expire; for those that do see ``turn_secret``."""
    turn_urls: tuple[str, ...] = ()
    """TURN servers that share ``turn_secret`` with this relay: each member gets credentials of its
    own (coturn's ``use-auth-secret``)."""
    turn_secret: str | None = field(default=None, repr=False)
    """The secret that is shared with ``turn_urls``."""
    turn_lifetime: float = 3600.0
    """How long TURN credentials are valid, and up to a quarter longer: within a quarter a member
    gets the same ones again. New ones are sent when three quarters have passed."""

    seat_timeout: float = 30.0
    """How long a member whose socket dropped keeps its seat."""
    join_timeout: float = 10.0
    """How long a socket may be open without joining."""
    keepalive_interval: float = 10.0
    """Seconds between WebSocket pings; a socket that does not answer within as long is shut."""
    restart_delay: float = 0.5
    """What the relay tells its clients to wait for when it goes down."""
    report_interval: float = 15.0
    """Members tell how their links stand when that changes, and this often; 0: they don't, and the
    dashboard knows who is there and nothing of their links."""

    max_message_size: int = 256 * 1024
    """The largest message a client may send."""
    max_connections: int = 20_000
    """Sockets that may be open, joined or not; beyond it WebSockets are refused with HTTP 503."""
    max_connections_per_address: int = 1_000
    """The same from one address (of IPv6 from one /64), with HTTP 429. Behind a proxy that is not
    in ``trusted_proxies`` all come from one. So often one address may make the relay keep
    ``max_unread`` and ``max_forwarded``, 16 GB together by default, by not reading what it sends to
    itself: where there is less memory, or strangers may join, lower them."""
    join_rate: float = 100.0
    """Joins a second from one address, on average."""
    join_burst: int = 1_000
    """Joins from one address at once."""
    max_rooms: int = 10_000
    """Rooms with at least one seat."""
    max_members: int = 500
    """Seats in one room. What its members report of their links grows with the square of that: the
    relay keeps 140 MB for 500 of them, and twice as much if all fill their reports."""
    message_rate: float = 500.0
    """Messages a second that one member may send, on average. One that is large (each 8 KiB), goes
    to a whole room or tells of many links counts as several."""
    message_burst: int = 2_000
    """Messages that one member may send at once. Who joins a room sends up to four for each of the
    others."""
    byte_rate: float = 64 * 1024 * 1024
    """Bytes a second that one member may send, on average, data included; each message counts for
    1 KiB more. What is over that is read later, so the member is slowed down and loses nothing."""
    byte_burst: int = 8 * 1024 * 1024
    """Bytes that one member may send at once."""
    max_replay: int = 1_000
    """Messages kept for a member until it has acknowledged them; beyond it, it can't resume."""
    max_replay_bytes: int = 4 * 1024 * 1024
    """The same in bytes. All members together keep 64 times as much; beyond that nobody keeps more
    than an equal share of it."""
    max_unread: int = 8 * 1024 * 1024
    """Bytes a client may leave unread in its socket before it is cut off."""
    forward_window: int = 256 * 1024
    """Bytes of data that one member may have on its way to one other through the relay; 0: the
    relay forwards no data."""
    max_forwarded: int = 8 * 1024 * 1024
    """Bytes of data that may wait in the relay for one member that does not read, of all who
    send to it together; beyond it the member is cut off, and may come back. Each who sends has
    ``forward_window``, so rooms in which more than 32 send to one over the relay want more."""

    def __post_init__(self) -> None:
        host: object = self.host
        if not _is_text(host) or not host:
            # To asyncio the empty string means every interface: not what anybody means by it.
            raise ConfigError(f"RelayConfig.host must be an address or a name, not {host!r}")
        _whole(self, "port", 0, 65535)
        self._check_access()
        self._check_servers()
        _range(self, "seat_timeout", 0, 3600)
        _range(self, "report_interval", 0, 3600)
        for name in ("join_timeout", "keepalive_interval"):
            _range(self, name, 0.1, 3600)
        _range(self, "restart_delay", 0, 3600)
        _whole(self, "max_message_size", 1024, 1 << 30)
        for name in (
            "max_connections",
            "max_connections_per_address",
            "max_rooms",
            "max_members",
            "join_burst",
            "message_burst",
            "max_replay",
        ):
            _whole(self, name, 1, 10_000_000)
        _range(self, "join_rate", 0.1, 10_000_000)
        _range(self, "message_rate", 0.1, 10_000_000)
        _range(self, "byte_rate", 1024, 1 << 40)
        # Who sent too much is read again after one keepalive at the latest, or it would not be
        # noticed when it is gone. Each message counts for 1 KiB more.
        least = (self.max_message_size + 1024) / self.keepalive_interval
        if self.byte_rate < least:
            raise ConfigError(
                f"RelayConfig.byte_rate ({self.byte_rate}) must be at least {math.ceil(least)}, so "
                f"that one keepalive_interval ({self.keepalive_interval} s) makes up for the "
                f"largest message (max_message_size, {self.max_message_size})"
            )
        _whole(self, "byte_burst", 64 * 1024, 1 << 32)
        _whole(self, "max_replay_bytes", 1024, 1 << 32)
        _whole(self, "max_unread", 1024, 1 << 32)
        _whole(self, "forward_window", 0, 1 << 30)
        if 0 < self.forward_window < 128 * 1024:
            raise ConfigError(
                f"RelayConfig.forward_window must be 0 or at least {128 * 1024}, room for a frame "
                f"and what is said between, not {self.forward_window}"
            )
        _whole(self, "max_forwarded", 128 * 1024, 1 << 32)
        if self.max_replay_bytes > self.max_unread:
            raise ConfigError(
                f"RelayConfig.max_replay_bytes ({self.max_replay_bytes}) must fit into max_unread "
                f"({self.max_unread}), or a client that resumes is cut off for what it missed"
            )

    def _check_access(self) -> None:
        for name in ("tls_cert", "tls_key"):
            file: object = getattr(self, name)
            if file is not None and (not isinstance(file, str) or not file or "\0" in file):
                raise ConfigError(f"RelayConfig.{name} must be the name of a file, not {file!r}")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigError(
                "RelayConfig.tls_cert and RelayConfig.tls_key must be given together, "
                f"not only {'tls_key' if self.tls_cert is None else 'tls_cert'}"
            )
        proxies: object = self.trusted_proxies
        if not isinstance(proxies, tuple):
            raise ConfigError(
                f"RelayConfig.trusted_proxies must be a tuple of addresses, not {proxies!r}"
            )
        for proxy in proxies:
            try:
                if not isinstance(proxy, str):
                    raise ValueError("it is no str")
                network = ip_network(proxy)
                if isinstance(network, IPv6Network) and network.network_address.ipv4_mapped:
                    raise ValueError("an IPv4 address is to be written as one")
            except ValueError as exc:
                raise ConfigError(
                    "RelayConfig.trusted_proxies must be addresses or networks like 10.0.0.0/8, "
                    f"not {proxy!r}: {exc}"
                ) from None
        # Of the next ones not the value, which is a secret, or may be one by mistake.
        secret: object = self.join_secret
        if secret is not None and (not _is_text(secret) or len(secret.encode()) < 32):
            # RFC 7518, section 3.2: as long as the hash.
            raise ConfigError("RelayConfig.join_secret must be a str of 32 bytes or more")
        key: object = self.join_public_key
        if key is not None and not _is_text(key):
            raise ConfigError("RelayConfig.join_public_key must be a str, in PEM")
        if self.join_secret is not None and self.join_public_key is not None:
            raise ConfigError(
                "RelayConfig.join_secret and RelayConfig.join_public_key must not be given together"
            )
        if self.open and (self.join_secret is not None or self.join_public_key is not None):
            raise ConfigError("RelayConfig.open must not be set where joins need a token")
        origins: object = self.origins
        if not isinstance(origins, tuple):
            raise ConfigError(f"RelayConfig.origins must be a tuple of origins, not {origins!r}")
        for origin in origins:
            if not _is_origin(origin):
                raise ConfigError(
                    "RelayConfig.origins must be like https://app.example.org, without a path, "
                    f"or '*', not {origin!r}"
                )
        user: object = self.admin_user
        # RFC 7617, section 2.
        if not _is_text(user) or not user or not user.isprintable() or ":" in user:
            raise ConfigError(
                "RelayConfig.admin_user must be a name without ':' and control characters, "
                f"not {user!r}"
            )
        password: object = self.admin_password
        if password is not None and (not _is_text(password) or len(password) < 8):
            raise ConfigError(
                "RelayConfig.admin_password must be a str of 8 characters or more, that UTF-8 can "
                "encode"
            )
        _whole(self, "admin_attempts", 1, 1_000_000)

    def _check_servers(self) -> None:
        servers: object = self.ice_servers
        if not isinstance(servers, tuple) or not all(isinstance(s, IceServer) for s in servers):
            raise ConfigError(
                f"RelayConfig.ice_servers must be a tuple of IceServer, not "
                f"{type(servers).__name__}"
            )
        urls: object = self.turn_urls
        if not isinstance(urls, tuple) or not all(
            _is_text(url) and url.startswith(("turn:", "turns:")) for url in urls
        ):
            raise ConfigError(
                "RelayConfig.turn_urls must be a tuple of addresses that begin with turn: or "
                f"turns:, not {urls!r}"
            )
        secret: object = self.turn_secret
        if secret is not None and not _is_text(secret):
            # Not its value.
            raise ConfigError("RelayConfig.turn_secret must be a str that UTF-8 can encode")
        if bool(urls) != bool(secret):
            raise ConfigError(
                "RelayConfig.turn_urls and RelayConfig.turn_secret must be given together"
            )
        # What is sent has to fit the message: 16 servers of 8 addresses each.
        if len(servers) + bool(urls) > 16 or len(urls) > 8:
            raise ConfigError(
                "RelayConfig must name 16 servers at most in all, and 8 turn_urls, not "
                f"{len(servers)} and {len(urls)}"
            )
        _range(self, "turn_lifetime", 1, 86400)


def _is_origin(origin: object) -> bool:
    if not isinstance(origin, str) or not origin.isprintable():
        return False
    if origin == "*":
        return True
    try:
        # Of a port that is out of its range, or an address that is none, it raises.
        parts = urlsplit(origin)
        return _ORIGIN.fullmatch(origin) is not None and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
