"""A connection on aiortc: one RTCPeerConnection with the message channel and plain channels."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import aiortc
from aiortc import (
    RTCConfiguration,
    RTCDataChannel,
    RTCIceServer,
    RTCPeerConnection,
    RTCSessionDescription,
)
from aiortc.exceptions import InvalidStateError
from aiortc.sdp import SessionDescription, candidate_from_sdp

from meshpeer.config import MeshConfig
from meshpeer.errors import ChannelClosed, ConfigError, ConnectionFailed, ProtocolError, UsageError
from meshpeer.rtc.base import Candidate, ConnectionObserver, RawChannel

__all__ = ["AiortcConnection", "connection_factory"]

# The message channel is agreed on beforehand ("negotiated"), so it opens with SCTP itself and not a
# round trip later (RFC 8832 is what it saves).
_MESSAGE_CHANNEL = "meshpeer"
_MESSAGE_CHANNEL_ID = 0


def connection_factory(
    config: MeshConfig,
) -> Callable[[ConnectionObserver], AiortcConnection]:
    """What makes the connections of one manager."""

    def make(observer: ConnectionObserver) -> AiortcConnection:
        return AiortcConnection(observer, config)

    return make


def _configuration(config: MeshConfig) -> RTCConfiguration:
    return RTCConfiguration(
        iceServers=[
            RTCIceServer(
                urls=server.urls if isinstance(server.urls, str) else list(server.urls),
                username=server.username,
                credential=server.credential,
            )
            for server in config.ice_servers
        ]
    )


_connect: Callable[[RTCPeerConnection], Coroutine[Any, Any, None]] | None = getattr(
    RTCPeerConnection, "_RTCPeerConnection__connect", None
)
if _connect is None:
    raise ImportError(
        f"meshpeer does not work with aiortc {aiortc.__version__}: it needs 1.16 or a later 1.x"
    )


class _PeerConnection(RTCPeerConnection):
    """An RTCPeerConnection whose background task has an owner.

    aiortc starts ICE, DTLS and SCTP in a task that nobody awaits: an exception in it would leave
    the connection ``connecting`` for ever, and it outlives `close`.
    """

    def __init__(self, configuration: RTCConfiguration, failed: Callable[[str], None]) -> None:
        super().__init__(configuration)
        self._failed = failed
        self._connecting: set[asyncio.Task[None]] = set()
        self._closing: asyncio.Task[None] | None = None
        self._negotiating: asyncio.Future[None] | None = None

    def _RTCPeerConnection__connect(self) -> asyncio.Task[None]:  # noqa: N802 - aiortc's name
        assert _connect is not None
        task = asyncio.ensure_future(_connect(self))
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
            await self._end_negotiation()
            await self.close()
        finally:
            await self._end_negotiation()
            tasks = set(self._connecting)
            if self._closing is not None:
                tasks.add(self._closing)
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)
            # ICE that was completed in the same moment has begun to watch over itself again.
            watching = set()
            for transport in getattr(self, "_RTCPeerConnection__iceTransports"):  # noqa: B009
                watching.add(getattr(transport, "_RTCIceTransport__monitor_task"))  # noqa: B009
                watching.add(transport._connection._query_consent_task)  # noqa: SLF001
            watching.discard(None)
            for task in watching:
                task.cancel()
            if watching:
                await asyncio.wait(watching)
            for protocol in self._open_protocols():
                protocol.transport.abort()

    async def negotiate(self, operation: Coroutine[Any, Any, None]) -> None:
        """Run an operation that opens sockets. Cancelling this leaves it to `end`.

        aioice knows its sockets only when all of them are bound: cancelled before, it leaks them.
        """
        self._negotiating = asyncio.ensure_future(operation)
        await asyncio.shield(self._negotiating)

    async def _end_negotiation(self) -> None:
        negotiating = self._negotiating
        if negotiating is None:
            return
        while not negotiating.done() and self._is_binding():
            # aioice tells nobody when it has bound its sockets, which takes milliseconds; what it
            # waits for after that are servers.
            await asyncio.wait([negotiating], timeout=0.01)
        negotiating.cancel()
        await asyncio.wait([negotiating])

    def _is_binding(self) -> bool:
        connections = [
            transport._connection  # noqa: SLF001
            for transport in getattr(self, "_RTCPeerConnection__iceTransports")  # noqa: B009
        ]
        return any(
            each._local_candidates_start and not each._protocols  # noqa: SLF001
            for each in connections
        )

    def _open_protocols(self) -> list[Any]:
        """The sockets of aioice that are not closed."""
        return [
            protocol
            for transport in getattr(self, "_RTCPeerConnection__iceTransports")  # noqa: B009
            for protocol in transport._connection._protocols  # noqa: SLF001
            if hasattr(protocol.transport, "abort") and not protocol.transport.is_closing()
        ]


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
        try:
            self._pc = _PeerConnection(_configuration(config), self._on_lost)
            self._channel: RTCDataChannel = self._pc.createDataChannel(
                _MESSAGE_CHANNEL, negotiated=True, id=_MESSAGE_CHANNEL_ID
            )
        except ValueError as exc:
            raise ConfigError(f"MeshConfig.ice_servers is not usable: {exc}") from exc
        # Half of what `Peer.send` fills it to: low enough to wait for, high enough not to run dry.
        self._channel.bufferedAmountLowThreshold = config.send_buffer // 2
        self._channel.on("open", observer.connection_opened)
        self._channel.on("message", self._on_message)
        self._channel.on("bufferedamountlow", observer.buffer_low)
        self._channel.on("close", self._on_channel_close)
        self._pc.on("connectionstatechange", self._on_connection_state)
        self._pc.on("iceconnectionstatechange", self._on_ice_state)
        self._pc.on("datachannel", self._on_channel)

    # --- negotiation ---

    async def create_offer(self, generation: int) -> str:
        """The local offer, with every candidate that was found."""
        try:
            await self._pc.negotiate(self._set_local(self._pc.createOffer))
        except Exception as exc:  # aiortc raises what comes; this is the boundary
            raise ConnectionFailed(f"no offer could be made: {_describe(exc)}") from exc
        return self._local_sdp()

    async def accept_offer(self, generation: int, sdp: str) -> str:
        """The local answer to a remote offer."""
        _parse(sdp)
        try:
            await self._set_remote(sdp, "offer")
            await self._pc.negotiate(self._set_local(self._pc.createAnswer))
        except ProtocolError:
            raise
        except Exception as exc:
            raise ConnectionFailed(f"the offer could not be answered: {_describe(exc)}") from exc
        return self._local_sdp()

    async def accept_answer(self, generation: int, sdp: str) -> None:
        """Give the remote answer to the connection."""
        _parse(sdp)
        await self._set_remote(sdp, "answer")

    async def add_candidates(
        self, generation: int, candidates: Sequence[Candidate], end: bool
    ) -> None:
        """Give remote candidates to the connection; the good ones count even if others are bad."""
        bad: list[str] = []
        for line, mid, index in candidates:
            if not line:  # RFC 8838, section 8.1, by way of W3C: an empty one says "no more"
                end = True
                continue
            try:
                candidate = candidate_from_sdp(line.removeprefix("candidate:"))
                candidate.sdpMid = mid
                candidate.sdpMLineIndex = index if index is not None or mid is not None else 0
                await self._pc.addIceCandidate(candidate)
            except Exception as exc:  # noqa: BLE001 - whatever its parser raises
                bad.append(f"{line[:80]!r} ({_describe(exc)})")
        if end:
            await self._pc.addIceCandidate(None)
        if bad:
            raise ProtocolError(
                f"{len(bad)} of {len(candidates)} ICE candidates are malformed, first {bad[0]}",
                code="bad_candidate",
                field="$.candidates",
            )

    async def _set_local(
        self, create: Callable[[], Coroutine[Any, Any, RTCSessionDescription]]
    ) -> None:
        await self._pc.setLocalDescription(await create())

    async def _set_remote(self, sdp: str, kind: str) -> None:
        try:
            await self._pc.setRemoteDescription(RTCSessionDescription(sdp, kind))
        except InvalidStateError as exc:
            raise ConnectionFailed(f"the {kind} does not fit the state: {exc}") from exc
        except Exception as exc:  # what it can't use, however it finds out
            raise _bad_sdp(f"the {kind} can't be used: {_describe(exc)}") from exc

    def _local_sdp(self) -> str:
        return str(self._pc.localDescription.sdp)

    # --- data ---

    def ping(self, nonce: int) -> None:
        """Send a check over the selected pair."""

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

    def _on_ice_state(self) -> None:
        # To aiortc every connected transport is "completed"; the word for users is the common one.
        state = self._pc.iceConnectionState
        self._observer.ice_state_changed("connected" if state == "completed" else state)

    def _on_channel(self, channel: RTCDataChannel) -> None:
        if not self._closed:
            self._observer.channel_opened(_Channel(channel))


def _bad_sdp(text: str) -> ProtocolError:
    return ProtocolError(text, code="bad_sdp", field="$.sdp")


def _parse(sdp: str) -> None:
    try:
        media = SessionDescription.parse(sdp).media
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


def _describe(exc: BaseException) -> str:
    return f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
