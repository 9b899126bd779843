"""What `meshpeer doctor` tries: the relay, the servers, and two peers in this process."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import AsyncExitStack
from dataclasses import replace
from time import perf_counter
from typing import Any

import msgspec

from meshpeer.cli.common import Stop
from meshpeer.cli.diagnosis import Facts, Loopback, Relay
from meshpeer.config import IceServer, MeshConfig
from meshpeer.core.events import IceServerOutcome, IceServerReport
from meshpeer.core.messages import (
    VERSION,
    Dial,
    IceServerInfo,
    Join,
    SignalIn,
    SignalOut,
    Welcome,
    encode,
)
from meshpeer.errors import ConfigError, MeshError, RefusedError, SignalingUnavailable
from meshpeer.manager import PeerManager
from meshpeer.rtc.probe import Network, probe_network
from meshpeer.rtc.servers import parse_servers
from meshpeer.signaling.memory import MemoryHub
from meshpeer.signaling.websocket import WebSocketTransport, without_secrets

__all__ = ["check"]


async def check(
    config: MeshConfig, relay: str | None, timeout: float, *, join_token: str | None = None
) -> Facts:
    """Try everything, each part for ``timeout`` seconds and a few for the end at most.

    Servers that the relay names to its members are asked like those of ``config``. Raises
    `ConfigError`, before anything is asked, for a URL or a join token that can't be one. Cancelling
    it leaves nothing behind.
    """
    parse_servers(config.ice_servers)
    seats = None if relay is None else (_Seat(relay, join_token), _Seat(relay, join_token))
    # It takes a moment in which nothing else goes on, and nothing is to be measured.
    unusable = _load()
    async with asyncio.TaskGroup() as group:
        pair = group.create_task(_pair(timeout)) if unusable is None else None
        outside = group.create_task(_outside(config, seats, timeout))
    network, room = outside.result()
    return Facts(
        network=network,
        loopback=Loopback(unusable) if pair is None else pair.result(),
        relay=room,
    )


async def _outside(
    config: MeshConfig, seats: tuple[_Seat, _Seat] | None, timeout: float
) -> tuple[Network, Relay | None]:
    """First the relay, which may name servers; then those and our own."""
    if seats is None:
        return await _network(config, []), None
    came = await _enter(*seats, timeout)
    welcome = seats[0].welcome
    named = [] if welcome is None or welcome.ice_servers is None else welcome.ice_servers.servers
    servers = [(url, each) for each in named for url in each.urls]
    joined, round_trip = (None, None) if isinstance(came, Exception) else came
    relay = Relay(
        url=seats[0].shown,
        failure=str(came) if isinstance(came, Exception) else None,
        joined=joined,
        round_trip=round_trip,
        refusal=came.code if isinstance(came, RefusedError) else None,
        servers=tuple(dict.fromkeys(url for url, _ in servers)),
        carries_data=welcome is not None and welcome.forward_window > 0,
    )
    return await _network(config, servers), relay


async def _network(config: MeshConfig, named: list[tuple[str, IceServerInfo]]) -> Network:
    """Ask the servers of ``config``, and those that the relay named, each address by itself."""
    servers: list[IceServer] = []
    unusable: list[IceServerReport] = []
    for url, each in named:
        try:
            server = IceServer(urls=url, username=each.username, credential=each.credential)
            parse_servers([server])
        except ConfigError as exc:
            outcome, detail = IceServerOutcome.FAILED, str(exc)
            unusable.append(
                IceServerReport(url=url, outcome=outcome, detail=detail, address=None, took=0)
            )
        else:
            servers.append(server)
    network = await probe_network(replace(config, ice_servers=(*config.ice_servers, *servers)))
    return replace(network, servers=(*network.servers, *unusable))


def _load() -> str | None:
    """Import WebRTC; why that can't be done, or None."""
    try:
        import meshpeer.rtc.connection  # noqa: F401
    except ImportError as exc:
        return str(exc)
    return None


async def _pair(timeout: float) -> Loopback:
    """Two peers that connect to each other over this machine's own addresses."""
    connected = None
    try:
        async with AsyncExitStack() as stack, asyncio.timeout(timeout):
            hub = await stack.enter_async_context(MemoryHub())
            ann, bob = [
                await stack.enter_async_context(
                    PeerManager(hub.transport(), room="doctor", peer_id=peer_id)
                )
                for peer_id in ("ann", "bob")
            ]
            began = perf_counter()
            peer = await ann.wait_for_peer("bob")
            connected = perf_counter() - began
            began = perf_counter()
            await peer.send("there")
            message = await anext(bob.messages())
            await message.sender.send("and back")
            await anext(ann.messages())
            return Loopback(None, connected, perf_counter() - began)
    except TimeoutError:
        what = "they were not connected" if connected is None else "no message arrived"
        return Loopback(f"{what} within {timeout:g} s")
    except MeshError as exc:
        return Loopback(str(exc))


class _Seat(WebSocketTransport):
    """The relay's client; what it is to do goes on only until the relay can't be reached."""

    def __init__(self, url: str, join_token: str | None) -> None:
        super().__init__(url, join_token=join_token)
        self.shown = without_secrets(url)
        self.stop: Stop | None = None
        self.failure: str | None = None
        self.welcome: Welcome | None = None

    async def open(self, join: Join) -> Welcome:
        self.welcome = await super().open(join)
        return self.welcome

    async def _connect(self) -> Any:
        try:
            return await super()._connect()
        except SignalingUnavailable as exc:
            self.failure = str(exc)
            if self.stop is not None:
                self.stop.now()
            raise


async def _enter(first: _Seat, second: _Seat, timeout: float) -> tuple[float, float] | MeshError:
    """Take two seats in a room of a random name, and send a signal from one to the other.

    Returns the seconds that a seat and the signal took, or why it did not work.
    """
    room = f"doctor-{secrets.token_hex(8)}"
    here, there = (
        Join(version=VERSION, room=room, peer_id=peer_id, incarnation=secrets.token_urlsafe(16))
        for peer_id in ("here", "there")
    )
    async with AsyncExitStack() as stack:
        stack.push_async_callback(first.close)
        stack.push_async_callback(second.close)
        try:
            async with asyncio.timeout(timeout) as scope:
                first.stop = second.stop = Stop(scope)
                began = perf_counter()
                await first.open(here)
                joined = perf_counter() - began
                await second.open(there)
                began = perf_counter()
                first.send(
                    SignalOut(
                        to=there.peer_id,
                        to_incarnation=there.incarnation,
                        epoch=0,
                        body=msgspec.Raw(encode(Dial())),
                    )
                )
                while not isinstance(await second.receive(), SignalIn):
                    pass
                return joined, perf_counter() - began
        except TimeoutError:
            return SignalingUnavailable(
                first.failure or second.failure or f"it did not answer within {timeout:g} s"
            )
        except MeshError as exc:
            return exc
