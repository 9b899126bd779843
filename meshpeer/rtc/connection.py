"""A connection on aiortc: one RTCPeerConnection with the message channel and plain channels."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from aiortc import (
    RTCConfiguration,
    RTCDataChannel,
    RTCDtlsTransport,
    RTCIceCandidate,
    RTCPeerConnection,
    RTCSctpTransport,
    RTCSessionDescription,
)
from aiortc.exceptions import InvalidStateError
from aiortc.rtcicetransport import candidate_to_aioice
from aiortc.sdp import MediaDescription, SessionDescription, candidate_from_sdp
from OpenSSL import SSL

from meshpeer.config import MeshConfig
from meshpeer.core.events import CandidatePair, IceServerOutcome, IceServerReport
from meshpeer.errors import ChannelClosed, ConfigError, ConnectionFailed, ProtocolError, UsageError
from meshpeer.rtc import parts
from meshpeer.rtc.base import LOW_BUFFER, Candidate, ConnectionObserver, RawChannel
from meshpeer.rtc.gate import Turn
from meshpeer.rtc.ice import IceEvents, IceTransport
from meshpeer.rtc.sack import DelayedSacks
from meshpeer.rtc.servers import Server, parse_servers

__all__ = ["AiortcConnection", "PeerConnection", "connection_factory"]

# The message channel is agreed on beforehand ("negotiated"), so it opens with SCTP itself and not a
# round trip later (RFC 8832 is what it saves).
_MESSAGE_CHANNEL = "meshpeer"
_MESSAGE_CHANNEL_ID = 0
_RTO_INITIAL = 0.5
"""Seconds. aiortc begins with 3, RFC 9260 (section 16) with 1, browsers with this."""
_RTO_MIN = 0.4
"""Seconds. aiortc and RFC 9260 have 1, browsers this: what is lost at the end of a burst, or with
the path, is sent again so much sooner."""
_RTO_MARGIN = 0.2
"""Seconds over the round trip at least: a steady one has next to no variance."""
_RTO_MAX = 10.0
_IN_FLIGHT = 0.2
"""What was sent this many seconds ago and is not acknowledged when the path changes is lost."""
_MAX_FRAME = 65_536
"""Bytes that the other side must take at once, as every endpoint does (RFC 8841)."""
_UFRAG = re.compile(r"\bufrag (\S+)")


def connection_factory(
    config: MeshConfig,
) -> Callable[[ConnectionObserver], AiortcConnection]:
    """What makes the connections of one manager. Raises `ConfigError` for unusable ICE servers."""
    parts.check()
    parse_servers(config.ice_servers)

    def make(observer: ConnectionObserver) -> AiortcConnection:
        return AiortcConnection(observer, config)

    return make


class _DtlsTransport(RTCDtlsTransport):
    async def _send_data(self, data: bytes) -> None:
        # SCTP's timers go on when DTLS has ended, in tasks that nobody awaits.
        with suppress(ConnectionError, SSL.Error):
            await super()._send_data(data)


class PeerConnection(RTCPeerConnection):
    """An RTCPeerConnection whose ICE can restart, and whose background tasks have an owner.

    aiortc starts ICE, DTLS and SCTP in a task that nobody awaits: an exception in it would leave
    the connection ``connecting`` for ever, and it outlives `close`.
    """

    def __init__(
        self, config: MeshConfig, events: IceEvents, failed: Callable[[str], None]
    ) -> None:
        super().__init__(RTCConfiguration(iceServers=[]))
        self._config = config
        self._ice_events = events
        self._failed = failed
        self._connecting: set[asyncio.Task[None]] = set()
        self._closing: asyncio.Task[None] | None = None

    @property
    def ice_transports(self) -> list[IceTransport]:
        """One, or one for each part that is not bundled."""
        return list(getattr(self, "_RTCPeerConnection__iceTransports"))  # noqa: B009

    def restart_ice(self, number: int) -> None:
        """Begin an ICE restart: what is described next has new credentials."""
        credentials: tuple[str, str] | None = None
        for transport in self.ice_transports:
            generation = transport.restart(number, credentials)
            credentials = generation.local_username, generation.local_password

    def give_up_restart(self, number: int) -> None:
        """End a restart that has not taken over, and what was offered for it."""
        self.roll_back()
        for transport in self.ice_transports:
            if (generation := transport.generation(number)) is not None:
                transport.give_up(generation)

    def roll_back(self) -> None:
        """Take back an offer, of either side, that has no answer (RFC 8829, section 4.1.10.2)."""
        if self.signalingState in ("have-local-offer", "have-remote-offer"):
            setattr(self, "_RTCPeerConnection__pendingLocalDescription", None)  # noqa: B010
            setattr(self, "_RTCPeerConnection__pendingRemoteDescription", None)  # noqa: B010
            getattr(self, "_RTCPeerConnection__setSignalingState")("stable")  # noqa: B009

    async def setLocalDescription(  # noqa: N802
        self,
        sessionDescription: RTCSessionDescription | None = None,  # noqa: N803
    ) -> None:
        """See aiortc. With an answer the generation that it is for begins its checks."""
        assert sessionDescription is not None
        await super().setLocalDescription(sessionDescription)
        if sessionDescription.type == "answer":
            self._begin_checks()

    async def setRemoteDescription(  # noqa: N802
        self,
        sessionDescription: RTCSessionDescription,  # noqa: N803
    ) -> None:
        """See aiortc. With an answer the generation that it is for begins its checks."""
        await super().setRemoteDescription(sessionDescription)
        if sessionDescription.type == "answer":
            self._begin_checks()

    def _begin_checks(self) -> None:
        remote = getattr(self, "_RTCPeerConnection__remoteIce")  # noqa: B009
        for part, parameters in remote.items():
            dtls = part.transport if isinstance(part, RTCSctpTransport) else part.receiver.transport
            ice = dtls.transport
            assert isinstance(ice, IceTransport)
            if not ice.newest.begun and ice.state != "closed":
                ice.newest.begin(parameters)

    def _RTCPeerConnection__createDtlsTransport(self) -> RTCDtlsTransport:  # noqa: N802
        existing = next(iter(self.ice_transports), None)
        credentials = None
        if existing is not None:
            # Browsers want one pair of credentials for all that may be bundled.
            newest = existing.newest
            credentials = newest.local_username, newest.local_password
        ice = IceTransport(self._config, self._ice_events, credentials)
        changed = getattr(self, "_RTCPeerConnection__updateConnectionState")  # noqa: B009
        ice_changed = getattr(self, "_RTCPeerConnection__updateIceConnectionState")  # noqa: B009
        gathering = getattr(self, "_RTCPeerConnection__updateIceGatheringState")  # noqa: B009
        ice.iceGatherer.on("statechange", gathering)
        ice.on("statechange", ice_changed)
        ice.on("statechange", changed)
        getattr(self, "_RTCPeerConnection__iceTransports").add(ice)  # noqa: B009
        certificates = getattr(self, "_RTCPeerConnection__certificates")  # noqa: B009
        dtls = _DtlsTransport(ice, certificates)
        dtls.on("statechange", changed)

        def on_state() -> None:
            if dtls.state == "connecting":
                ice.handshake_begins()

        dtls.on("statechange", on_state)
        getattr(self, "_RTCPeerConnection__dtlsTransports").add(dtls)  # noqa: B009
        for update in (gathering, ice_changed, changed):
            update()
        return dtls

    def _RTCPeerConnection__connect(self) -> asyncio.Task[None]:  # noqa: N802 - aiortc's name
        task: asyncio.Task[None] = asyncio.ensure_future(_connect(self))
        self._connecting.add(task)
        task.add_done_callback(self._connect_ended)
        return task

    def _connect_ended(self, task: asyncio.Task[None]) -> None:
        self._connecting.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            self._failed(f"it could not be set up: {_describe(exc)}")

    async def close(self) -> None:
        """Close once, whoever asks: aiortc does so too, when the other side has closed.

        aiortc's own second call waits on a future of the first: cancelling the one broke the other.
        """
        if self._closing is None:
            self._closing = asyncio.ensure_future(super().close())
        await asyncio.shield(self._closing)

    async def end(self) -> None:
        """Close, and leave no task and no socket behind.

        Cancelling it ends the closing where it is, and what is open is dropped.
        """
        try:
            await self.close()
        finally:
            tasks = set(self._connecting)
            if self._closing is not None:
                tasks.add(self._closing)
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)
            for transport in self.ice_transports:
                await transport.stop(release=0)


_connect = getattr(RTCPeerConnection, "_RTCPeerConnection__connect")  # noqa: B009


class _Channel:
    """`RawChannel` on an RTCDataChannel."""

    def __init__(self, channel: RTCDataChannel) -> None:
        self._channel = channel

    @property
    def label(self) -> str:
        return self._channel.label

    @property
    def state(self) -> str:
        return self._channel.readyState

    @property
    def buffered_amount(self) -> int:
        return self._channel.bufferedAmount

    @property
    def lossy(self) -> bool:
        channel = self._channel
        return channel.maxRetransmits is not None or channel.maxPacketLifeTime is not None

    def send(self, data: str | bytes) -> None:
        if self._channel.readyState != "open":
            raise ChannelClosed(f"channel {self.label!r} is {self.state}", reason=self.state)
        self._channel.send(data)

    def close(self) -> None:
        self._channel.close()

    def listen(
        self,
        *,
        on_open: Callable[[], None],
        on_message: Callable[[str | bytes], None],
        on_low: Callable[[], None],
        on_close: Callable[[], None],
        low: int,
    ) -> None:
        self._channel.bufferedAmountLowThreshold = low
        self._channel.on("open", on_open)
        self._channel.on("message", on_message)
        self._channel.on("bufferedamountlow", on_low)
        self._channel.on("close", on_close)


class AiortcConnection:
    """`Connection` on aiortc. See `meshpeer.rtc.base` for the contract."""

    def __init__(self, observer: ConnectionObserver, config: MeshConfig) -> None:
        self._observer = observer
        self._closed = False
        self._lost = False
        self._closing: asyncio.Future[None] | None = None
        self._cut_off = False
        self._ice_state = "new"
        self._turn = Turn()
        self._remote: MediaDescription | None = None
        """The data channel section of the latest remote description."""
        self._pc = PeerConnection(config, self, self._on_lost)
        self._channel: RTCDataChannel = self._pc.createDataChannel(
            _MESSAGE_CHANNEL, negotiated=True, id=_MESSAGE_CHANNEL_ID
        )
        assert self._pc.sctp is not None
        self._sctp: RTCSctpTransport = self._pc.sctp
        self._sctp._rto = _RTO_INITIAL
        # The only way to another minimum than aiortc's one second.
        setattr(self._sctp, "_update_rto", self._update_rto)  # noqa: B010
        setattr(self._sctp, "_t3_expired", self._t3_expired)  # noqa: B010
        self._sacks = DelayedSacks(self._sctp)
        ice = self._sctp.transport.transport
        assert isinstance(ice, IceTransport)
        self._ice = ice
        self._channel.bufferedAmountLowThreshold = LOW_BUFFER
        self._channel.on("open", self._on_open)
        self._channel.on("message", self._on_message)
        self._channel.on("bufferedamountlow", observer.buffer_low)
        self._channel.on("close", self._on_channel_close)
        self._pc.on("connectionstatechange", self._on_connection_state)
        self._pc.on("datachannel", self._on_channel)

    # --- negotiation ---

    async def create_offer(self, generation: int) -> str:
        """The local offer; with a generation above 0 that of an ICE restart."""
        if generation:
            self._pc.roll_back()
            self._pc.restart_ice(generation)

        else:
            await self._turn.take()

        async def create() -> None:
            await self._set_local(self._pc.createOffer())

        return await self._make(generation, "offer", create)

    async def accept_offer(self, generation: int, sdp: str) -> str:
        """The local answer to a remote offer; with a generation above 0 that of an ICE restart."""
        section = _parse(sdp)
        if generation:
            self._check_restart(section)
            self._pc.roll_back()
            self._pc.restart_ice(generation)

        async def create() -> None:
            await self._set_remote(sdp, "offer", section)
            await self._set_local(self._pc.createAnswer())

        return await self._make(generation, "answer", create)

    async def accept_answer(self, generation: int, sdp: str) -> None:
        """Give the remote answer to the connection."""
        section = _parse(sdp)
        if generation:
            if self._ice.newest.number != generation:
                return
            self._check_restart(section)
        await self._set_remote(sdp, "answer", section)
        self._ice_is("checking")

    async def add_candidates(
        self, generation: int, candidates: Sequence[Candidate], end: bool
    ) -> None:
        """Give remote candidates to the connection; the good ones count even if others are bad."""
        target = self._ice.generation(generation)
        if target is None:
            return
        bad: list[str] = []
        for line, mid, index in candidates:
            if not line:  # RFC 8838, section 8.1, by way of W3C: an empty one says "no more"
                end = True
                continue
            named = _UFRAG.search(line)
            # Before the answer, whose it is can't be told.
            if named is not None and target.remote_username not in (None, named[1]):
                continue
            try:
                candidate = candidate_from_sdp(line.removeprefix("candidate:"))
            except Exception as exc:  # noqa: BLE001 - whatever its parser raises
                bad.append(f"{line[:80]!r} ({_describe(exc)})")
                continue
            if (why := self._unfit(candidate, mid, index)) is not None:
                bad.append(f"{line[:80]!r} ({why})")
            else:
                target.add_remote(candidate_to_aioice(candidate))
        if end:
            target.end_remote()
        if bad:
            raise ProtocolError(
                f"{len(bad)} of {len(candidates)} ICE candidates can't be used, first {bad[0]}",
                code="bad_candidate",
                field="$.candidates",
            )

    def _unfit(self, candidate: RTCIceCandidate, mid: str | None, index: int | None) -> str | None:
        if not (mid == self._sctp.mid or (mid is None and index in (None, 0))):
            return f"no section {mid if mid is not None else index}"
        return _unfit(candidate)

    async def _make(self, generation: int, kind: str, create: Callable[[], Awaitable[None]]) -> str:
        self._ice_is("gathering")
        try:
            await create()
        except asyncio.CancelledError:
            raise
        except Exception as exc:  # aiortc raises what comes; this is the boundary
            if generation:
                self._pc.give_up_restart(generation)
            if isinstance(exc, ProtocolError | ConnectionFailed):
                raise
            raise ConnectionFailed(f"no {kind} could be made: {_describe(exc)}") from exc
        newest = self._ice.newest
        if not newest.local_candidates:
            if generation:
                self._pc.give_up_restart(generation)
            raise ConnectionFailed(
                f"no {kind} could be made: there is no address to be reached at (no network "
                "interface that may be used is up, and no TURN server gave one)"
            )
        if kind == "answer":
            self._ice_is("checking")
        sdp = str(self._pc.localDescription.sdp)
        newest.describe(sdp)
        return sdp

    def _check_restart(self, section: MediaDescription) -> None:
        """Refuse what is no restart of this connection (RFC 8445, section 9; RFC 8842, 5.4)."""
        remote = self._remote
        if remote is None:
            raise ConnectionFailed("an ICE restart before there is a connection to restart")
        assert section.ice is not None
        if section.ice == remote.ice:
            raise ProtocolError(
                "an ICE restart with the credentials unchanged (a=ice-ufrag and a=ice-pwd)",
                code="unchanged_credentials",
                field="$.sdp",
            )
        assert section.dtls is not None
        assert remote.dtls is not None
        if section.dtls.fingerprints != remote.dtls.fingerprints:
            raise ProtocolError(
                "an ICE restart with another DTLS fingerprint (a=fingerprint): that is another "
                "connection, and needs an offer of a new epoch",
                code="changed_fingerprint",
                field="$.sdp",
            )

    async def _set_local(self, create: Awaitable[RTCSessionDescription]) -> None:
        await self._pc.setLocalDescription(await create)

    async def _set_remote(self, sdp: str, kind: str, section: MediaDescription) -> None:
        try:
            await self._pc.setRemoteDescription(RTCSessionDescription(sdp, kind))
        except InvalidStateError as exc:
            raise ConnectionFailed(f"the {kind} does not fit the state: {exc}") from exc
        except Exception as exc:  # what it can't use, however it finds out
            raise _bad_sdp(f"the {kind} can't be used: {_describe(exc)}") from exc
        self._remote = section

    # --- ICE ---

    def ping(self, nonce: int) -> None:
        """Send a check over the selected pair."""
        self._ice.ping(nonce)

    def servers(self) -> Sequence[Server]:
        """The servers to ask for the generation that begins to gather."""
        servers: list[Server] = []
        for each in self._observer.ice_servers():
            try:
                servers += [one for one in parse_servers([each]) if one not in servers]
            except ConfigError as exc:  # the signalling service named it: the others still count
                self.server_reported(
                    IceServerReport(
                        url=str(each.urls),
                        outcome=IceServerOutcome.FAILED,
                        detail=str(exc),
                        address=None,
                        took=0.0,
                    )
                )
        return servers

    def candidates_found(self, generation: int, candidates: list[str], end: bool) -> None:
        """Local candidates that the description did not have."""
        if not self._closed:
            mid = self._sctp.mid
            self._observer.candidates_found(generation, [(c, mid, 0) for c in candidates], end)

    def server_reported(self, report: IceServerReport) -> None:
        """What came of asking a server."""
        if not self._closed:
            self._observer.server_reported(report)

    def pair_selected(self, generation: int, pair: CandidatePair) -> None:
        """Data goes over this pair from now on."""
        if not self._closed:
            self._ice_is("connected")
            self._observer.pair_selected(generation, pair)

    def heard(self, answered: bool) -> None:
        """Something arrived."""
        if not self._closed:
            self._observer.heard(answered)

    def ponged(self, nonce: int) -> None:
        """A ping was answered."""
        if not self._closed:
            self._observer.ponged(nonce)

    def path_lost(self, reason: str) -> None:
        """What the selected pair goes over has ended."""
        if not self._closed:
            self._observer.path_lost(reason)

    def path_changed(self) -> None:
        """Send what SCTP waits to send again now, not when its timer (doubled or not) expires."""
        sctp = self._sctp
        oldest = next(iter(sctp._sent_queue), None)
        if sctp._t3_handle is None or oldest is None:
            return
        round_trip = _RTO_INITIAL
        if sctp._srtt is not None and sctp._rttvar is not None:
            round_trip = sctp._srtt + max(4 * sctp._rttvar, _RTO_MARGIN)
        in_flight = max(_IN_FLIGHT, round_trip)
        if oldest._sent_time is None or time.time() - oldest._sent_time > in_flight:
            sctp._rto = max(_RTO_MIN, round_trip)
            sctp._t3_cancel()
            RTCSctpTransport._t3_expired(sctp)

    def _t3_expired(self) -> None:
        # aiortc does not back off (RFC 9260, section 6.3.3): with a wait below the round trip it
        # would send everything twice, and measure nothing, for ever.
        sctp = self._sctp
        sctp._rto = min(2 * sctp._rto, _RTO_MAX)
        RTCSctpTransport._t3_expired(sctp)
        # So that what waits goes out when the path is back, and not when it is its turn.
        self._ice.probe()

    def _update_rto(self, round_trip: float) -> None:
        sctp = self._sctp
        RTCSctpTransport._update_rto(sctp, round_trip)
        assert sctp._srtt is not None
        assert sctp._rttvar is not None
        rto = sctp._srtt + max(4 * sctp._rttvar, _RTO_MARGIN)
        sctp._rto = max(_RTO_MIN, rto)

    def failed(self, error: BaseException) -> None:
        """A task of ICE ended with an error that it must not end with."""
        self._on_lost(f"ICE failed: {_describe(error)}")

    _ORDER = ("new", "gathering", "checking", "connected")

    def _ice_is(self, state: str) -> None:
        # A restart does not begin anew: what carries data goes on.
        if self._ORDER.index(state) > self._ORDER.index(self._ice_state):
            self._ice_state = state
            self._observer.ice_state_changed(state)

    # --- data ---

    @property
    def buffered_amount(self) -> int:
        """Bytes that wait in the message channel."""
        return int(self._channel.bufferedAmount)

    def send_frame(self, data: bytes) -> None:
        """Put a frame into the message channel; dropped when it is not open."""
        if self._channel.readyState == "open":
            self._channel.send(data)

    def open_channel(
        self,
        label: str,
        *,
        ordered: bool,
        max_retransmits: int | None,
        max_packet_life_time: int | None,
    ) -> RawChannel:
        """Open a plain data channel (W3C WebRTC, createDataChannel)."""
        try:
            channel = self._pc.createDataChannel(
                label,
                ordered=ordered,
                maxRetransmits=max_retransmits,
                maxPacketLifeTime=max_packet_life_time,
            )
        except ValueError as exc:
            raise UsageError(f"channel {label!r} can't be opened: {exc}") from exc
        return _Channel(channel)

    # --- the end ---

    async def close(self) -> None:
        """Close the RTCPeerConnection, which tells the other side at once (DTLS close_notify).

        A call that is cancelled ends the closing where it is.
        """
        self._closed = True
        self._turn.over()
        self._sacks.close()
        if self._closing is None:
            # aiortc's own close can't be called again after it was cancelled: it would wait for
            # ever for the first call to finish. So there is one call, and everybody waits for it.
            self._closing = asyncio.ensure_future(self._pc.end())
        try:
            await asyncio.wait([self._closing])
        except asyncio.CancelledError:
            if not self._cut_off:  # a second time it would cut off the clearing up as well
                self._cut_off = True
                self._closing.cancel()
            await asyncio.wait([self._closing])
            raise
        if not self._closing.cancelled():  # by a call before this one
            self._closing.result()

    # --- from aiortc ---

    def _on_open(self) -> None:
        self._turn.over()
        self._observer.connection_opened()

    def _on_message(self, data: str | bytes) -> None:
        self._observer.frame_received(data.encode() if isinstance(data, str) else data)

    def _on_connection_state(self) -> None:
        if self._pc.connectionState in ("failed", "closed"):
            self._on_lost(f"the connection {self._pc.connectionState}")

    def _on_channel_close(self) -> None:
        self._on_lost("the message channel closed")

    def _on_lost(self, reason: str) -> None:
        if not self._closed and not self._lost:
            self._lost = True
            self._observer.connection_lost(reason)

    def _on_channel(self, channel: RTCDataChannel) -> None:
        if not self._closed:
            self._observer.channel_opened(_Channel(channel))


def _bad_sdp(text: str) -> ProtocolError:
    return ProtocolError(text, code="bad_sdp", field="$.sdp")


def _parse(sdp: str) -> MediaDescription:
    """The data channel section of a session description."""
    try:
        description = SessionDescription.parse(sdp)
        media = description.media
    except Exception as exc:  # its parser asserts, unpacks and indexes; all of it means "malformed"
        raise _bad_sdp(f"the session description does not parse: {_describe(exc)}") from exc
    kinds = [section.kind for section in media]
    if kinds != ["application"]:
        raise _bad_sdp(
            f"the session description has the sections {kinds}, expected one data channel section"
        )
    section = media[0]
    if section.dtls is None or not section.dtls.fingerprints or section.dtls.role is None:
        raise _bad_sdp("the session description has no usable a=fingerprint and a=setup")
    if section.sctp_port is None:
        raise _bad_sdp("the session description has no a=sctp-port")
    ice = section.ice
    if ice is None or not (
        4 <= len(ice.usernameFragment or "") <= 256 and 22 <= len(ice.password or "") <= 256
    ):
        raise _bad_sdp(
            "the session description has no usable ICE credentials: a=ice-ufrag has 4 to 256 "
            "characters, a=ice-pwd 22 to 256 (RFC 8839, section 5.4)"
        )
    for group in description.group:
        if group.semantic == "BUNDLE" and [str(item) for item in group.items] != [
            section.rtp.muxId
        ]:
            raise _bad_sdp("the session description bundles sections that it does not have")
    size = section.sctpCapabilities.maxMessageSize if section.sctpCapabilities else 0
    if 0 < size < _MAX_FRAME:
        raise _bad_sdp(
            f"a=max-message-size is {size}, and must be 0 (any) or at least {_MAX_FRAME}"
        )
    for candidate in section.ice_candidates:
        if (why := _unfit(candidate)) is not None:
            raise _bad_sdp(f"the session description has a candidate that can't be used: {why}")
    return section


def _unfit(candidate: RTCIceCandidate) -> str | None:
    """Why a candidate can't be used, or None. What is only of no use here is not unfit."""
    if not 0 <= candidate.port <= 65535:
        return f"port {candidate.port}"
    return None


def _describe(exc: BaseException) -> str:
    return f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
