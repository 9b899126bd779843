"""ICE as meshpeer wants it, on aioice: generations, trickle, every server at once, and a restart.

An aioice `Connection` is one ICE generation (RFC 8445): its sockets, candidates, checks and
selected pair. `Generation` makes it trickle (RFC 8838), ask all servers at the same time, and keep
a relayed pair waiting while a direct one may still come. `IceTransport` puts generations under one
DTLS transport: it receives from all that live, and sends over the newest that has a selected pair;
so an ICE restart is a generation more, and what goes over it never notices.

Whether the other side is still there is not decided here: the link pings and listens
(`meshpeer.core.link`), so aioice's own consent checks stay off.
"""

from __future__ import annotations

import asyncio
import random
import socket
import threading
from collections import OrderedDict
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any, Protocol, cast

import aioice.ice
from aioice import stun
from aioice.candidate import Candidate, candidate_foundation, candidate_priority
from aioice.ice import (
    CandidatePair as Pair,
)
from aioice.ice import (
    Connection,
    StunProtocol,
    TransportPolicy,
    candidate_pair_priority,
    unref_mdns_protocol,
)
from aioice.mdns import is_mdns_hostname
from aioice.utils import random_string
from aiortc import RTCIceGatherer, RTCIceTransport
from aiortc.rtcicetransport import (
    RTCIceCandidate,
    RTCIceParameters,
    candidate_from_aioice,
    candidate_to_aioice,
)
from aiortc.sdp import candidate_to_sdp

from meshpeer.config import MeshConfig
from meshpeer.core.events import CandidateInfo, CandidatePair, IceServerOutcome, IceServerReport
from meshpeer.log import Log
from meshpeer.rtc.interfaces import local_addresses
from meshpeer.rtc.servers import Server, allocate, describe, mapped_address, parse_stun
from meshpeer.rtc.servers import release as give_back

__all__ = ["Generation", "IceEvents", "IceGatherer", "IceTransport"]

_log = Log(part="ice")

_PACE = 0.005
"""Seconds between two checks (RFC 8445, section 14.2: not less than this)."""
_REPEAT = 0.05
"""Seconds between two checks that are sent again, of all that have no answer yet; at first."""
_REPEAT_GROWTH = 1.1
_REPEAT_MAX = 0.5
_LATE = 0.02
"""Seconds that a timer of an event loop which is not overloaded may be late."""
_RESEND = 0.25
"""Seconds after which the last flight of the DTLS handshake is sent again. OpenSSL waits 1 s, and
twice as long each time (RFC 6347, section 4.2.4.1)."""
_RESENDS = 30
_MAX_FLIGHT = 20
"""Datagrams of a flight."""
_APPLICATION_DATA = 23
_PROBE = 0.25
"""Seconds between two checks of a path on which SCTP waits for an acknowledgement."""
_PROBES = 100
_HOLD = 0.4
"""How long a relayed pair that works waits for a direct one. The first check of a direct pair is
often lost in a NAT that has not let anything out yet."""
_MAX_PAIRS = 100
"""RFC 8445, section 6.1.2.5."""
_MAX_REMOTE = 200
"""Remote candidates of a generation, signalled and learned."""
_MAX_RESOLVING = 20
"""mDNS names that are looked up at the same time."""
_MAX_ROLE_SWITCHES = 3
_MAX_PINGS = 16
"""Pings whose answers are waited for."""
_MAX_QUEUE = 4096
"""Datagrams that wait for DTLS; more are dropped, as a socket would."""
_RECEIVE_BUFFER = 262_144
_RELEASE = 1.0
"""Seconds that a TURN server has to confirm that an allocation is given back."""
_RETIRE = 10.0
"""Seconds that an earlier generation lives on when nothing arrives over its successor."""
_GRACE = 1.0
"""Seconds that it lives on when something does: what is on its way still comes."""
_MAX_RETIRING = 3
_TOLD_EVERY = 0.1
"""Seconds between two `IceEvents.heard`."""
_SILENCE = 1.0
"""Seconds without a word after which the first one is news to SCTP."""
_FAMILIES = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}
_DATA = range(20, 192)
"""The first byte of DTLS, SRTP and SRTCP (RFC 7983); STUN begins with 0 to 3."""


class IceEvents(Protocol):
    """What an `IceTransport` asks and tells; see `meshpeer.rtc.base.ConnectionObserver`."""

    def servers(self) -> Sequence[Server]: ...
    def candidates_found(self, generation: int, candidates: list[str], end: bool) -> None: ...
    def server_reported(self, report: IceServerReport) -> None: ...
    def pair_selected(self, generation: int, pair: CandidatePair) -> None: ...
    def heard(self, answered: bool) -> None: ...
    def ponged(self, nonce: int) -> None: ...
    def path_lost(self, reason: str) -> None: ...
    def path_changed(self) -> None:
        """What was sent before may be lost, and what is sent now arrives again."""

    def failed(self, error: BaseException) -> None:
        """A task ended with an error that it must not end with."""


class _Socket(StunProtocol):
    """A host's UDP socket, or a TURN allocation; tells data from STUN before parsing anything."""

    receiver: Generation
    closed = False
    url: str | None = None
    """For a TURN allocation: its server."""

    def datagram_received(self, data: bytes | str, addr: tuple[Any, ...]) -> None:
        assert isinstance(data, bytes)
        source = (addr[0], addr[1])
        if data and data[0] in _DATA:
            self.receiver.packet_received(self, data, source)
            return
        if (message := parse_stun(data)) is None:
            return
        match message.message_class:
            case stun.Class.REQUEST:
                self.receiver.request_received(message, source, self)
            case stun.Class.RESPONSE | stun.Class.ERROR:
                transaction = self.transactions.get(message.transaction_id)
                if transaction is not None:
                    transaction.response_received(message, source)
                elif message.message_class is stun.Class.RESPONSE:
                    self.receiver.ping_answered(message)
            case _:
                pass

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        super().connection_lost(exc)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self.closed:
            self.transport.abort()

    def drop(self) -> None:
        """Close it now, or as soon as it is open: uvloop opens it also for who was cancelled."""
        if not self.closed:
            self.closed = True
            if hasattr(self, "transport"):
                self.transport.abort()

    def send(self, data: bytes, addr: tuple[str, int]) -> None:
        """Send without ever waiting; what can't be sent is dropped."""
        if not self.closed:
            self.transport.sendto(data, addr)

    def send_stun(self, message: stun.Message, addr: tuple[str, int]) -> None:
        self.send(bytes(message), addr)

    @property
    def ended(self) -> asyncio.Future[bool]:
        """Done when it is closed."""
        future: asyncio.Future[bool] = getattr(self, "_StunProtocol__closed")  # noqa: B009
        return future

    @property
    def relayed(self) -> bool:
        return self.url is not None


class Generation(Connection):
    """One set of ICE credentials (RFC 8445), trickled (RFC 8838)."""

    def __init__(
        self,
        number: int,
        transport: IceTransport,
        config: MeshConfig,
        events: IceEvents,
        *,
        controlling: bool,
        credentials: tuple[str, str] | None = None,
    ) -> None:
        username, password = credentials or (random_string(8), random_string(24))
        super().__init__(
            ice_controlling=controlling,
            local_username=username,
            local_password=password,
            transport_policy=(
                TransportPolicy.RELAY
                if config.ice_transport_policy == "relay"
                else TransportPolicy.ALL
            ),
        )
        self.number = number
        self.begun = False
        """Whether the remote credentials are known and checks are made."""
        self.may_end = asyncio.Event()
        """Set when the next one carries data."""
        self._ice = transport
        self._config = config
        self._events = events
        self._tasks: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._asking = 0
        self._first = asyncio.Event()
        """Set when there is a candidate, or none will come."""
        self._described = False
        """Whether there is a description, so that what it lacks is trickled."""
        self._requests: dict[Pair, stun.Message] = {}
        self._valid: list[Pair] = []
        self._holding = False
        self._resolving = 0
        self._remote_ended = False
        self._pings: OrderedDict[bytes, int] = OrderedDict()
        self._remote_addresses: set[tuple[str, int]] = set()
        self._refused = False

    # --- gathering ---

    async def gather_candidates(self) -> None:
        """Bind the host's sockets, and begin to ask the servers; returns before they answer.

        Under the relay policy, or on a host without an address, it returns with the first
        candidate of a server, as a description without any is of no use.
        """
        if self._local_candidates_start:
            return
        self._local_candidates_start = True
        hosts: list[_Socket] = []
        if self._transport_policy is TransportPolicy.ALL:
            bound = [await self._bind(address) for address in local_addresses(self._config)]
            hosts = [each for each in bound if each is not None]
        self._local_candidates_end = True
        # What a STUN server tells is of no use where only relayed candidates may be shown.
        servers = [
            server
            for server in self._events.servers()
            if server.kind == "turn" or self._transport_policy is TransportPolicy.ALL
        ]
        self._asking = len(servers)
        for server in servers:
            self._spawn(self._ask(server, hosts))
        if self._local_candidates or not servers:
            self._first.set()
        self._ice.gathering_changed()
        await self._first.wait()

    async def _bind(self, address: str) -> _Socket | None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_DGRAM)
        protocol = _Socket(self)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if not _bind_port(sock, address, self._config.port_range):
                sock.close()
                return None
            loop = asyncio.get_running_loop()
            await loop.create_datagram_endpoint(lambda: protocol, sock=sock)
        except BaseException:
            protocol.drop()
            sock.close()
            raise
        host, port = sock.getsockname()[:2]
        rank = len(self._local_candidates)
        protocol.local_candidate = _candidate("host", host, port, base=address, rank=rank)
        self._protocols.append(protocol)
        self._local_candidates.append(protocol.local_candidate)
        return protocol

    async def _ask(self, server: Server, hosts: list[_Socket]) -> None:
        """Ask one server for all it can give, and report what came of it."""
        loop = asyncio.get_running_loop()
        began, outcome, detail = loop.time(), IceServerOutcome.FOUND, ""
        found: list[str] = []
        try:
            async with asyncio.timeout(self._config.ice_server_timeout):
                if server.kind == "turn":
                    found.append(await self._allocate(server))
                else:
                    await self._reflect(server, hosts, found)
        except Exception as exc:  # noqa: BLE001 - whatever a server can bring about
            if not found:  # one socket that got no answer says nothing of the others
                outcome, detail = describe(exc)
        finally:
            self._asking -= 1
            if not self._asking:
                self._first.set()
        self._events.server_reported(
            IceServerReport(
                url=server.url,
                outcome=outcome,
                detail=detail,
                address=found[0] if found else None,
                took=loop.time() - began,
            )
        )
        if not self._asking:
            self._ice.gathering_changed()
            self._tell_candidates([])

    async def _reflect(self, server: Server, hosts: list[_Socket], found: list[str]) -> None:
        """Server-reflexive candidates (RFC 8445, section 5.1.1.2), one a socket."""
        if not hosts:
            raise OSError("there is no network interface to ask it from")
        results = await asyncio.gather(
            *(self._reflect_one(server, each, found) for each in hosts), return_exceptions=True
        )
        failures = [each for each in results if isinstance(each, BaseException)]
        if not found:
            # An IPv6 socket has nothing to say of an IPv4 server: what another one says counts.
            raise min(failures, key=lambda each: describe(each)[0] is IceServerOutcome.FAILED)

    async def _reflect_one(self, server: Server, protocol: _Socket, found: list[str]) -> None:
        host, port = await mapped_address(server, protocol)
        base = protocol.local_candidate
        # One that is there already is redundant (RFC 8445, section 5.1.3): no NAT, or two servers.
        if not any((c.host, c.port) == (host, port) for c in self._local_candidates):
            candidate = _candidate("srflx", host, port, base=base.host)
            candidate.related_address, candidate.related_port = base.host, base.port
            self._found(candidate)
        found.append(f"{host}:{port}")

    async def _allocate(self, server: Server) -> str:
        protocol = await allocate(
            server,
            lambda: _Socket(self),
            families=[_FAMILIES[each] for each in self._config.address_families],
        )
        assert isinstance(protocol, _Socket)
        protocol.url = server.url
        host, port = protocol.transport.get_extra_info("sockname")
        # Of two servers the one that answered first is preferred.
        rank = sum(each.relayed for each in self._sockets)
        candidate = _candidate("relay", host, port, base=host, rank=rank)
        related = protocol.transport.get_extra_info("related_address")
        if self._transport_policy is TransportPolicy.RELAY or related is None:
            # Not to show by the way what must not be shown (RFC 9429, section 3.5.3).
            related = ("::", 9) if ":" in host else ("0.0.0.0", 9)  # noqa: S104 - shown, not bound
        candidate.related_address, candidate.related_port = related
        protocol.local_candidate = candidate
        self._protocols.append(protocol)
        if self.begun:
            for remote in self._remote_candidates:
                self._pair_remote_candidate(remote)
            self.sort_check_list()
        self._found(candidate)
        return f"{host}:{port}"

    def _found(self, candidate: Candidate) -> None:
        self._local_candidates.append(candidate)
        self._first.set()
        self._tell_candidates([_line(candidate)])

    def describe(self, sdp: str) -> None:
        """The description that was made for this generation; what it lacks is trickled."""
        self._described = True
        lines = {
            line.removeprefix("a=") for line in sdp.splitlines() if line.startswith("a=candidate:")
        }
        missing = [_line(each) for each in self._local_candidates if _line(each) not in lines]
        complete = "a=end-of-candidates" in sdp
        if missing or not (complete or self.gathering):
            self._tell_candidates(missing)

    def _tell_candidates(self, lines: list[str]) -> None:
        if self._described and not self._closing:
            self._events.candidates_found(self.number, lines, not self.gathering)

    @property
    def gathering(self) -> bool:
        """Whether more local candidates may come."""
        return not self._local_candidates_end or self._asking > 0

    @property
    def _sockets(self) -> list[_Socket]:
        return [each for each in self._protocols if isinstance(each, _Socket)]

    # --- remote candidates ---

    def add_remote(self, candidate: Candidate) -> None:
        """Take a remote candidate; a name (mDNS) is looked up in the background."""
        if self._closing or candidate.transport.lower() != "udp" or candidate.component != 1:
            return
        if len(self._remote_candidates) >= _MAX_REMOTE:
            return
        if is_mdns_hostname(candidate.host):
            if self._resolving < _MAX_RESOLVING:
                self._resolving += 1
                self._spawn(self._resolve(candidate))
            return
        self._add_remote_candidate(candidate, candidate.host)
        self._ice.pair_known_better(self)

    def end_remote(self) -> None:
        """There are no more remote candidates."""
        self._remote_ended = True

    async def _resolve(self, candidate: Candidate) -> None:
        try:
            _use_mdns_here()
            await self.add_remote_candidate(candidate)
        except Exception as exc:  # noqa: BLE001 - no multicast here, or whatever: the candidate is of no use
            _log.debug("mDNS name not looked up", name=candidate.host, error=str(exc))
        finally:
            self._resolving -= 1

    def _pair_remote_candidate(self, remote_candidate: Candidate) -> None:
        self._remote_addresses.add((remote_candidate._network_host, remote_candidate.port))
        if len(self._check_list) < _MAX_PAIRS:
            super()._pair_remote_candidate(remote_candidate)
        self._wake.set()

    # --- checks ---

    def begin(self, remote: RTCIceParameters) -> None:
        """Make checks: the remote credentials are known."""
        self.begun = True
        self.remote_is_lite = remote.iceLite
        self.remote_username = remote.usernameFragment
        self.remote_password = remote.password
        for candidate in self._remote_candidates:
            self._pair_remote_candidate(candidate)
        self.sort_check_list()
        self._early_checks_done = True
        for early in list(self._early_checks):
            self.check_incoming(*early)
        self._early_checks.clear()
        self._spawn(self._pump())

    async def _pump(self) -> None:
        """Start the checks one after another (RFC 8445, section 6.1.4.2)."""
        waiting = (Pair.State.WAITING, Pair.State.FROZEN)
        clock, pause = asyncio.get_running_loop(), _REPEAT
        while not self._is_direct():
            pair = next(
                (
                    pair
                    for state in waiting
                    for pair in self._check_list
                    if pair.state is state and pair.task is None
                ),
                None,
            )
            if pair is not None:
                self.check_start_task(pair)
                await asyncio.sleep(_PACE)
                continue
            self._wake.clear()
            due = clock.time() + pause if self._requests else None
            with suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await self._wake.wait()
                    continue
            # Late: this process has more to do than it can, and the answer may be there already.
            if due is not None and clock.time() - due < _LATE:
                self._repeat()
            pause = min(pause * _REPEAT_GROWTH, _REPEAT_MAX)

    def _repeat(self) -> None:
        """Send again the check that waited longest: aioice's own wait doubles each time, which on a
        lossy path soon is longer than anybody is willing to wait."""
        if self._requests:
            pair, request = next(iter(self._requests.items()))
            self._requests[pair] = self._requests.pop(pair)
            pair.protocol.send_stun(request, pair.remote_addr)

    def _is_direct(self) -> bool:
        pair = self.selected
        return pair is not None and not _relayed(pair)

    def check_start_task(self, pair: Pair) -> None:
        """Start the check of a pair, unless it is under way."""
        if pair.task is None and not self._closing:
            pair.task = self._spawn(self.check_start(pair))
            self._wake.set()

    async def check_start(self, pair: Pair) -> None:
        """Check one pair. A direct one is nominated with its check, a relayed one later."""
        self.check_state(pair, Pair.State.IN_PROGRESS)
        for _ in range(_MAX_ROLE_SWITCHES):
            nominate = self.ice_controlling and not self.remote_is_lite and not _relayed(pair)
            request = self.build_request(pair, nominate=nominate)
            try:
                _, addr = await self._request(pair, request)
            except stun.TransactionError as exc:
                if exc.response is None or exc.response.error_code != 487:
                    break
                self.switch_role(ice_controlling="ICE-CONTROLLED" in request.attributes)
                continue
            if addr != pair.remote_addr:
                break  # RFC 8445, section 7.2.5.2.1
            self.check_state(pair, Pair.State.SUCCEEDED)
            if nominate or pair.remote_nominated:
                pair.nominated = True
            elif self.ice_controlling:
                self._valid.append(pair)
                if not self._holding:
                    self._holding = True
                    self._spawn(self._nominate_later())
            self.check_complete(pair)
            return
        self.check_state(pair, Pair.State.FAILED)
        self.check_complete(pair)

    async def _request(
        self, pair: Pair, request: stun.Message
    ) -> tuple[stun.Message, tuple[str, int]]:
        assert self.remote_password is not None
        self._requests[pair] = request
        try:
            return await pair.protocol.request(
                request, pair.remote_addr, integrity_key=self.remote_password.encode()
            )
        finally:
            self._requests.pop(pair, None)

    async def _nominate_later(self) -> None:
        """Regular nomination (RFC 8445, section 8.1.1) of what works, when nothing better did."""
        if self._may_come_direct():
            await asyncio.sleep(_HOLD)
        while self.selected is None and self._valid:
            pair = max(self._valid, key=self._priority)
            self._valid.remove(pair)
            try:
                await self._request(pair, self.build_request(pair, nominate=True))
            except stun.TransactionError:
                continue
            pair.nominated = True
            self.check_complete(pair)
        self._holding = False

    def _may_come_direct(self) -> bool:
        if self._transport_policy is TransportPolicy.RELAY:
            return False
        open_pairs = any(
            pair.state is not Pair.State.FAILED and not _relayed(pair) for pair in self._check_list
        )
        return open_pairs or self.gathering or self._resolving > 0 or not self._remote_ended

    def check_complete(self, pair: Pair) -> None:
        """A check has ended, or the other side has nominated the pair."""
        pair.task = None
        self._wake.set()
        if self._closing or pair.state is not Pair.State.SUCCEEDED:
            return
        if not pair.nominated or pair is (current := self.selected):
            return
        # Who controls decides; the other side follows what was nominated last.
        if (
            current is None
            or not self.ice_controlling
            or self._priority(pair) > self._priority(current)
            or self._ice.silent_for() > _SILENCE
        ):
            self._nominated[1] = pair
            self._ice.nominated(self, pair)

    def check_incoming(
        self, message: stun.Message, addr: tuple[str, int], protocol: StunProtocol
    ) -> None:
        """A check of the other side, which was answered already."""
        if "PRIORITY" not in message.attributes:
            return
        known = any((c._network_host, c.port) == addr for c in self._remote_candidates)
        if not known and len(self._remote_candidates) >= _MAX_REMOTE:
            return
        super().check_incoming(message, addr, protocol)
        self._remote_addresses.add(addr)
        for pair, request in self._requests.items():
            if pair.protocol is protocol and pair.remote_addr == addr:
                # The way there has just been opened from the other side: the check that is under
                # way was lost, or is about to be answered (RFC 8445, section 7.3.1.4).
                protocol.send_stun(request, addr)
                break

    def request_received(
        self, message: stun.Message, addr: tuple[str, int], protocol: StunProtocol
    ) -> None:
        """A check, or a ping, of the other side."""
        self._refused = False
        super().request_received(message, addr, protocol)
        if not self._refused and not self._closing:
            pair = self.selected
            if pair is not None and pair.protocol is protocol and pair.remote_addr == addr:
                self._ice.heard(self, answered=True)

    def respond_error(
        self,
        request: stun.Message,
        addr: tuple[str, int],
        protocol: StunProtocol,
        error_code: tuple[int, str],
    ) -> None:
        """Answer a request that is refused."""
        self._refused = True
        super().respond_error(request, addr, protocol, error_code)

    def _priority(self, pair: Pair) -> int:
        return candidate_pair_priority(
            pair.local_candidate, pair.remote_candidate, self.ice_controlling
        )

    @property
    def selected(self) -> Pair | None:
        """The pair that data goes over."""
        return self._nominated.get(1)

    # --- data ---

    def packet_received(self, protocol: _Socket, data: bytes, addr: tuple[str, int]) -> None:
        """DTLS or SRTP arrived; what comes from elsewhere than the other side is dropped."""
        if addr in self._remote_addresses or (protocol.relayed and self.begun):
            self._ice.packet_received(self, data)

    def transmit(self, data: bytes) -> None:
        """Send over the selected pair; dropped when there is none."""
        pair = self.selected
        if pair is not None:
            cast(_Socket, pair.protocol).send(data, pair.remote_addr)

    def protocol_lost(self, protocol: StunProtocol) -> None:
        """A socket or an allocation has ended by itself."""
        if self._closing:
            return
        pair = self.selected
        if pair is not None and pair.protocol is protocol:
            self._ice.protocol_lost(self)

    def ping(self, nonce: int) -> None:
        """Check the selected pair (RFC 7675), and tell the other side that it is selected."""
        pair = self.selected
        if pair is None or self.remote_password is None:
            return
        request = self.build_request(pair, nominate=True)
        request.add_message_integrity(self.remote_password.encode())
        self._pings[request.transaction_id] = nonce
        while len(self._pings) > _MAX_PINGS:
            self._pings.popitem(last=False)
        pair.protocol.send_stun(request, pair.remote_addr)

    def ping_answered(self, message: stun.Message) -> None:
        """A response that no check waits for."""
        assert self.remote_password is not None or not self._pings
        nonce = self._pings.get(message.transaction_id)
        if nonce is None or self.remote_password is None:
            return
        if message.check_message_integrity(self.remote_password.encode()):
            del self._pings[message.transaction_id]
            self._ice.ponged(self, nonce)

    # --- the end ---

    async def close(self, release: float = _RELEASE) -> None:
        """Give everything back, within ``release`` seconds whatever the servers do.

        Cancelling it drops what is still open; it may be called again.
        """
        self._closing = True
        self._first.set()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._nominated.clear()
        _use_mdns_here()
        await unref_mdns_protocol(self)
        sockets, self._protocols[:] = self._sockets, []
        relayed = [each for each in sockets if each.relayed]
        hosts = [each for each in sockets if not each.relayed]
        for each in hosts:
            each.drop()
        try:
            await asyncio.gather(*(give_back(each, release) for each in relayed))
        finally:
            for each in relayed:
                await give_back(each, 0)
            if hosts:
                await asyncio.wait([each.ended for each in hosts])

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            self._ice.failed(exc)


class IceGatherer(RTCIceGatherer):
    """aiortc's gatherer over the newest generation."""

    def __init__(self) -> None:
        super().__init__(iceServers=[])

    def watch(self, generation: Generation) -> None:
        """Gather for this generation from now on."""
        self.generation = generation
        self._connection = generation
        self.set_state("new")

    async def gather(self) -> None:
        """Gather what this host has itself; see `Generation.gather_candidates`."""
        if self.state == "new":
            self.set_state("gathering")
        await self.generation.gather_candidates()

    def set_state(self, state: str) -> None:
        """Be in this state (W3C WebRTC, RTCIceGathererState)."""
        if state != self.state:
            getattr(self, "_RTCIceGatherer__setState")(state)  # noqa: B009


class IceTransport(RTCIceTransport):
    """What DTLS goes over, whichever generation carries it."""

    def __init__(
        self,
        config: MeshConfig,
        events: IceEvents,
        credentials: tuple[str, str] | None = None,
    ) -> None:
        gatherer = IceGatherer()
        self._config = config
        self._owner = events
        self._gatherer = gatherer
        self._clock = asyncio.get_running_loop()
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._generations: list[Generation] = []
        self._carrying: Generation | None = None
        self._ready = asyncio.Event()
        self._retiring: dict[Generation, asyncio.Task[None]] = {}
        """Earlier generations, and what closes them."""
        self._stopping = asyncio.Event()
        self._heard_at = self._told_at = self._told_answered_at = float("-inf")
        self._flight: list[bytes] = []
        """What DTLS sent last in its handshake."""
        self._flight_over = False
        self._resends = 0
        self._resending: asyncio.TimerHandle | None = None
        self._probes = 0
        self._probing: asyncio.TimerHandle | None = None
        self._told_pair: tuple[int, CandidatePair] | None = None
        first = Generation(0, self, config, events, controlling=False, credentials=credentials)
        gatherer.watch(first)
        super().__init__(gatherer)
        self._recv = self._receive
        self._send = self._transmit
        self._generations.append(first)

    # --- generations ---

    @property
    def newest(self) -> Generation:
        """The generation that was made last."""
        return self._generations[-1]

    def generation(self, number: int) -> Generation | None:
        """The generation of this number, if it lives."""
        return next((each for each in self._generations if each.number == number), None)

    def restart(self, number: int, credentials: tuple[str, str] | None = None) -> Generation:
        """Begin an ICE restart (RFC 8445, section 9). What carries data goes on carrying it; one
        that was under way is given up."""
        if self.newest is not self._carrying and self._carrying is not None:
            self.give_up(self.newest)
        generation = Generation(
            number,
            self,
            self._config,
            self._owner,
            # A restart keeps the roles (RFC 8839, section 4.4.1.1.1).
            controlling=self._connection.ice_controlling,
            credentials=credentials,
        )
        if self._carrying is None:
            # Nothing works yet: the earlier ones may still come about meanwhile.
            for earlier in self._generations[:-1]:
                self.give_up(earlier)
        self._generations.append(generation)
        self._point_at(generation)
        return generation

    def give_up(self, generation: Generation) -> None:
        """End a generation that does not carry data."""
        if generation is self._carrying or generation not in self._generations:
            return
        self._generations.remove(generation)
        if self._generations and self._connection is generation:
            self._point_at(self._generations[-1])
        self._retire(generation, at_once=True)

    def _point_at(self, generation: Generation) -> None:
        """Let aiortc see this generation."""
        self._connection = generation
        self._gatherer.watch(generation)
        self.gathering_changed()

    def gathering_changed(self) -> None:
        """Follow what the newest generation gathers."""
        generation = self._gatherer.generation
        if generation._local_candidates_start:
            self._gatherer.set_state("gathering" if generation.gathering else "completed")

    def nominated(self, generation: Generation, pair: Pair) -> None:
        """A generation has a selected pair, or another one."""
        carrying = self._carrying
        if generation not in self._generations or self.state == "closed":
            return
        self._carrying = generation
        if generation is not carrying:
            for earlier in [g for g in self._generations if g.number < generation.number]:
                self._generations.remove(earlier)
                self._retire(earlier, at_once=earlier is not carrying)
        self._tell_pair(pair)
        if not self._ready.is_set():
            self._ready.set()
            self._set_state("completed")
        else:
            self._owner.path_changed()

    def pair_known_better(self, generation: Generation) -> None:
        """A remote candidate that was met before it was signalled may have another type now."""
        if generation is self._carrying and generation.selected is not None:
            self._tell_pair(generation.selected)

    def _tell_pair(self, pair: Pair) -> None:
        assert self._carrying is not None
        told = (self._carrying.number, described := _described(pair))
        if told != self._told_pair:
            self._told_pair = told
            self._owner.pair_selected(self._carrying.number, described)

    def _retire(self, generation: Generation, *, at_once: bool) -> None:
        if at_once:
            generation.may_end.set()
        for earlier in list(self._retiring)[: 1 - _MAX_RETIRING]:
            earlier.may_end.set()
        task = asyncio.ensure_future(self._close_later(generation, at_once=at_once))
        self._retiring[generation] = task
        task.add_done_callback(lambda task: self._retirement_ended(generation, task))

    async def _close_later(self, generation: Generation, *, at_once: bool) -> None:
        if not at_once:
            await self._wait(generation.may_end, _RETIRE)
            await self._wait(self._stopping, _GRACE)
        await generation.close()

    async def _wait(self, event: asyncio.Event, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await event.wait()

    def _retirement_ended(self, generation: Generation, task: asyncio.Task[None]) -> None:
        self._retiring.pop(generation, None)
        if not task.cancelled() and (exc := task.exception()) is not None:
            self.failed(exc)

    # --- what the generations tell ---

    def packet_received(self, generation: Generation, data: bytes) -> None:
        """DTLS or SRTP, of whichever generation."""
        if generation is self._carrying:
            for earlier in self._retiring:
                earlier.may_end.set()
        if self._carrying is None or generation.number >= self._carrying.number:
            self._note(answered=False)
        if self._resending is not None:
            self._flight_over = True
            if data[0] == _APPLICATION_DATA:
                self._end_handshake()
        if self._queue.qsize() < _MAX_QUEUE:
            self._queue.put_nowait(data)

    def heard(self, generation: Generation, *, answered: bool) -> None:
        """The other side said something on the pair that carries data."""
        if generation is self._carrying:
            self._note(answered=answered)

    def ponged(self, generation: Generation, nonce: int) -> None:
        """A ping was answered."""
        if generation is not self._carrying:
            return
        self._note(answered=False)
        if self._probing is not None:
            # When it is not the first one that is answered, the path was out in between.
            if nonce < -1:
                self._owner.path_changed()
            self._end_probe()
        if nonce >= 0:
            self._owner.ponged(nonce)

    def probe(self) -> None:
        """Ask whether what is sent still arrives, until it does; `IceEvents.path_changed` tells."""
        if self._probing is None and self.state != "closed":
            self._probes = 0
            self._send_probe()

    def _send_probe(self) -> None:
        self._probes += 1
        self.ping(-self._probes)
        if self._probes < _PROBES:
            self._probing = self._clock.call_later(_PROBE, self._send_probe)
        else:
            self._probing = None

    def _end_probe(self) -> None:
        if self._probing is not None:
            self._probing.cancel()
            self._probing = None

    def protocol_lost(self, generation: Generation) -> None:
        """What the selected pair of a generation goes over has ended."""
        if generation is self._carrying:
            self._owner.path_lost("the TURN server ended the allocation")

    def failed(self, error: BaseException) -> None:
        """Something went wrong that must not."""
        self._owner.failed(error)

    def _note(self, *, answered: bool) -> None:
        now = self._clock.time()
        silent, self._heard_at = now - self._heard_at, now
        if silent > _SILENCE:
            self._owner.path_changed()
        if answered:
            if now - self._told_answered_at >= _TOLD_EVERY:
                self._told_at = self._told_answered_at = now
                self._owner.heard(True)
        elif now - self._told_at >= _TOLD_EVERY:
            self._told_at = now
            self._owner.heard(False)

    def silent_for(self) -> float:
        """Seconds since something was heard."""
        return self._clock.time() - self._heard_at

    # --- what DTLS and the connection ask for ---

    async def _receive(self) -> bytes:
        data = await self._queue.get()
        if data is None:
            self._queue.put_nowait(None)
            raise ConnectionError("ICE is closed")
        return data

    async def _transmit(self, data: bytes) -> None:
        # SCTP relies on it that this never yields; what can't be sent is lost, as on any network.
        if self._resending is not None:
            if self._flight_over:
                self._flight.clear()
                self._flight_over = False
            if len(self._flight) < _MAX_FLIGHT:
                self._flight.append(data)
        if self._carrying is not None:
            self._carrying.transmit(data)

    def handshake_begins(self) -> None:
        """DTLS is about to shake hands: send its flights again as long as they have no answer.

        To the other side that is a network that brings a datagram twice. Only that it has got the
        last flight, the data that it sends shows.
        """
        self._resends = _RESENDS
        self._resend_later()

    def _resend_later(self) -> None:
        due = self._clock.time() + _RESEND
        self._resending = self._clock.call_at(due, self._resend, due)

    def _resend(self, due: float) -> None:
        self._resends -= 1
        if self._carrying is not None and self._clock.time() - due < _LATE:
            for data in self._flight:
                self._carrying.transmit(data)
        if self._resends:
            self._resend_later()
        else:
            self._end_handshake()

    def _end_handshake(self) -> None:
        if self._resending is not None:
            self._resending.cancel()
            self._resending = None
        self._flight.clear()

    def ping(self, nonce: int) -> None:
        """Send a check over the selected pair."""
        if self._carrying is not None:
            self._carrying.ping(nonce)

    async def addRemoteCandidate(self, candidate: RTCIceCandidate | None) -> None:  # noqa: N802
        """Take a candidate of a remote description; None: there are no more."""
        if candidate is None:
            self.newest.end_remote()
        else:
            self.newest.add_remote(candidate_to_aioice(candidate))

    async def start(self, remoteParameters: RTCIceParameters) -> None:  # noqa: ARG002, N803
        """Wait until some generation has a selected pair. What begins one is `PeerConnection`, as
        soon as both its descriptions are there: aiortc calls this at any time, with what it knows.

        Raises ConnectionError when it is closed before.
        """
        if self.state == "new":
            self._set_state("checking")
        await self._ready.wait()
        if self.state == "closed":
            raise ConnectionError("ICE is closed")

    async def stop(self, release: float = _RELEASE) -> None:
        """Close every generation. Cancelling it drops at once what is open.

        ``release``: seconds that TURN servers have to confirm the end of their allocations.
        """
        if self.state == "closed":
            return
        self._set_state("closed")
        self._end_handshake()
        self._end_probe()
        self._ready.set()
        self._stopping.set()
        self._queue.put_nowait(None)
        for earlier in self._retiring:
            earlier.may_end.set()
        earlier_ones, retiring = list(self._retiring), list(self._retiring.values())
        closing = [asyncio.ensure_future(each.close(release)) for each in self._generations]
        try:
            await asyncio.gather(*closing, *retiring)
        except asyncio.CancelledError:
            tasks = closing + retiring
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)
            # A task that was cancelled before its first step has done nothing.
            for each in [*self._generations, *earlier_ones]:
                await each.close(0)
            raise

    def _set_state(self, state: str) -> None:
        getattr(self, "_RTCIceTransport__setState")(state)  # noqa: B009


class _MdnsOwner(threading.local):
    loop: asyncio.AbstractEventLoop | None = None


_mdns_owner = _MdnsOwner()


def _use_mdns_here() -> None:
    """aioice keeps one mDNS socket a thread, whichever event loop made it, ended or not."""
    loop = asyncio.get_running_loop()
    if _mdns_owner.loop is not loop:
        _mdns_owner.loop = loop
        aioice.ice._mdns.__dict__.clear()


def _relayed(pair: Pair) -> bool:
    return "relay" in (pair.local_candidate.type, pair.remote_candidate.type)


def _described(pair: Pair) -> CandidatePair:
    local, remote = pair.local_candidate, pair.remote_candidate
    url = pair.protocol.url if isinstance(pair.protocol, _Socket) else None
    return CandidatePair(
        CandidateInfo(local.type, local.host, local.port, url),
        CandidateInfo(remote.type, remote.host, remote.port),
    )


def _candidate(kind: str, host: str, port: int, *, base: str, rank: int = 0) -> Candidate:
    return Candidate(
        foundation=candidate_foundation(kind, "udp", base),
        component=1,
        transport="udp",
        priority=candidate_priority(1, kind, 65535 - rank),
        host=host,
        port=port,
        type=kind,
    )


def _line(candidate: Candidate) -> str:
    return f"candidate:{candidate_to_sdp(candidate_from_aioice(candidate))}"


def _bind_port(sock: socket.socket, address: str, ports: tuple[int, int] | None) -> bool:
    """Bind to a free port of the range; False when there is none, or the address is gone."""
    if ports is None:
        candidates = [0]
    else:
        candidates = list(range(ports[0], ports[1] + 1))
        random.shuffle(candidates)  # many processes share the range
    for port in candidates:
        with suppress(OSError):
            sock.bind((address, port))
            return True
    return False
