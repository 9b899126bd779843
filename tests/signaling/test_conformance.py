"""Every transport of ours passes the suite that others can run on theirs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from meshpeer.config import MeshConfig, RelayConfig
from meshpeer.relay import Relay
from meshpeer.signaling.base import SignalingTransport
from meshpeer.signaling.client import Wire
from meshpeer.signaling.memory import MemoryHub, MemoryTransport
from meshpeer.signaling.websocket import WebSocketTransport
from meshpeer.testing.conformance import (
    CutConformance,
    DataConformance,
    RestartConformance,
    TransportConformance,
)

RELAY = RelayConfig(port=0, message_burst=1_000_000, restart_delay=0.1)


class MemoryService:
    def __init__(self, hub: MemoryHub) -> None:
        self._hub = hub

    def transport(self, config: MeshConfig) -> SignalingTransport:
        return self._hub.transport(config)

    def cut(self, transport: SignalingTransport) -> None:
        assert isinstance(transport, MemoryTransport)
        transport.cut()

    async def restart(self) -> None:
        self._hub.restart()


class TestMemory(TransportConformance, CutConformance, RestartConformance, DataConformance):
    @asynccontextmanager
    async def service(self) -> AsyncIterator[MemoryService]:
        async with MemoryHub(RELAY) as hub:
            yield MemoryService(hub)


class Cuttable(WebSocketTransport):
    wire: Wire | None = None

    async def _connect(self) -> Wire:
        self.wire = await super()._connect()
        return self.wire


class RelayService:
    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    def transport(self, config: MeshConfig) -> SignalingTransport:
        return Cuttable(self._relay.url, config=config)

    def cut(self, transport: SignalingTransport) -> None:
        assert isinstance(transport, Cuttable)
        if transport.wire is not None:
            transport.wire._websocket.transport.abort()  # type: ignore[attr-defined]

    async def restart(self) -> None:
        port = self._relay.port
        await self._relay.close()
        self._relay = Relay(
            RelayConfig(port=port, message_burst=RELAY.message_burst, restart_delay=0.1)
        )
        await self._relay.start()

    async def close(self) -> None:
        await self._relay.close()


class TestWebSocket(TransportConformance, CutConformance, RestartConformance, DataConformance):
    @asynccontextmanager
    async def service(self) -> AsyncIterator[RelayService]:
        relay = Relay(RELAY)
        await relay.start()
        service = RelayService(relay)
        try:
            yield service
        finally:
            await service.close()
