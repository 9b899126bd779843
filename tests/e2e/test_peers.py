"""Real managers, real aiortc, real sockets, in one process."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import AsyncExitStack
from typing import Any

import pytest
from msgspec import Raw

from meshpeer import (
    BadInput,
    Channel,
    ChannelClosed,
    ChannelOpened,
    ConfigError,
    InvalidData,
    MemoryHub,
    MeshConfig,
    MessageTooLarge,
    PeerClosed,
    PeerLeft,
    PeerManager,
    PeerState,
    PeerUpdated,
    Relay,
    RelayConfig,
    make_join_token,
)
from meshpeer.core.messages import VERSION, Answer, Join, Offer, SignalOut, Welcome, encode
from tests.test_manager import event_of, take


@pytest.fixture
async def pair(relay: Relay) -> Any:
    async with (
        PeerManager(relay.url, room="r", peer_id="a", name="A") as a,
        PeerManager(relay.url, room="r", peer_id="b") as b,
    ):
        await asyncio.gather(a.wait_for_peer("b", 20), b.wait_for_peer("a", 20))
        yield a, b


async def test_messages_of_every_size_arrive_whole_and_in_order(
    pair: tuple[PeerManager, PeerManager],
) -> None:
    a, b = pair
    got = b.messages()
    sent = [secrets.token_bytes(size) for size in (0, 1, 65_000, 65_536, 65_537, 1_000_000, 3)]
    for data in sent:
        await a.peers["b"].send(data)
    assert [m.data for m in await take(got, len(sent))] == sent
    await a.peers["b"].flush(timeout=20)
    assert a.peers["b"].rtt is not None
    assert a.peers["b"].ice_state == "connected"


async def test_a_full_window_does_not_stop_the_other_direction(
    pair: tuple[PeerManager, PeerManager],
) -> None:
    a, b = pair
    got = a.messages()
    filling = asyncio.create_task(fill(a, "b"))
    await asyncio.sleep(0)
    await b.peers["a"].send("still here")
    assert (await anext(got)).data == "still here"
    filling.cancel()
    await asyncio.wait([filling])


async def fill(manager: PeerManager, peer_id: str) -> None:
    while True:
        await manager.peers[peer_id].send(b"x" * 100_000)


async def open_channels(
    pair: tuple[PeerManager, PeerManager], **options: Any
) -> tuple[Channel, Channel]:
    a, b = pair
    events = b.events()
    here = await a.peers["b"].open_channel("plain", **options)
    there = await event_of(events, ChannelOpened)
    return here, there.channel


@pytest.mark.parametrize(
    "options",
    [{}, {"ordered": False}, {"max_retransmits": 0}, {"max_packet_life_time": 500}],
)
async def test_a_plain_channel(
    pair: tuple[PeerManager, PeerManager], options: dict[str, Any]
) -> None:
    here, there = await open_channels(pair, **options)
    assert (here.state, there.state, here.label, there.label) == ("open", "open", "plain", "plain")
    assert (here.peer, there.peer) == (pair[0].peers["b"], pair[1].peers["a"])
    await here.send("text")
    await there.send(b"bytes")
    assert await anext(aiter(there)) == "text"
    assert await anext(aiter(here)) == b"bytes"
    await here.send("last")
    await here.close()
    assert here.state == "closed"
    with pytest.raises(ChannelClosed, match="closed here"):
        await here.send("x")
    assert [data async for data in there] == ["last"]
    assert there.state == "closed"


async def test_a_plain_channel_waits_for_its_buffer(pair: tuple[PeerManager, PeerManager]) -> None:
    here, there = await open_channels(pair)
    received = 0

    async def read() -> None:
        nonlocal received
        async for data in there:
            received += len(data)

    reading = asyncio.create_task(read())
    for _ in range(200):
        await here.send(b"x" * 60_000)
        assert here._raw.buffered_amount <= 1024 * 1024 + 60_000
    await here.send("end")
    await here.close()
    await reading
    assert received == 200 * 60_000 + 3


async def test_a_plain_channel_that_nobody_reads_has_a_bound(relay: Relay) -> None:
    config = MeshConfig(receive_window=64 * 1024, max_message_size=1024)
    async with (
        PeerManager(relay.url, room="r", peer_id="a") as a,
        PeerManager(relay.url, room="r", peer_id="b", config=config) as b,
    ):
        await asyncio.gather(a.wait_for_peer("b", 20), b.wait_for_peer("a", 20))
        here, there = await open_channels((a, b))

        async def send_for_ever() -> None:
            while True:
                await here.send(b"x" * 10_000)
                await (await a.peers["b"].open_channel("a round trip")).close()

        with pytest.raises(ChannelClosed):
            await send_for_ever()
        assert there.state == "closed"
        assert sum([len(data) async for data in there]) <= 64 * 1024 + 10_000


async def test_a_plain_channel_refuses_what_it_can_not_carry(
    pair: tuple[PeerManager, PeerManager],
) -> None:
    here, _ = await open_channels(pair)
    with pytest.raises(InvalidData, match="dict"):
        await here.send({})  # type: ignore[arg-type]
    with pytest.raises(MessageTooLarge, match="65537 bytes"):
        await here.send(b"x" * 65_537)
    peer = pair[0].peers["b"]
    with pytest.raises(ConfigError, match="not both"):
        await peer.open_channel("x", max_retransmits=1, max_packet_life_time=1)
    with pytest.raises(ConfigError, match="max_retransmits"):
        await peer.open_channel("x", max_retransmits=-1)


async def test_plain_channels_end_with_their_peer(pair: tuple[PeerManager, PeerManager]) -> None:
    a, b = pair
    here, there = await open_channels(pair)
    peer = a.peers["b"]
    events = a.events()
    await b.close()
    await event_of(events, PeerLeft)
    assert (here.state, there.state) == ("closed", "closed")
    with pytest.raises(ChannelClosed):
        await here.send("x")
    with pytest.raises(PeerClosed, match="left"):
        await peer.open_channel("x")


async def test_a_cancelled_open_channel_closes_it(pair: tuple[PeerManager, PeerManager]) -> None:
    a, b = pair
    events = b.events()
    opening = asyncio.create_task(a.peers["b"].open_channel("never"))
    await asyncio.sleep(0)
    opening.cancel()
    await asyncio.wait([opening])
    assert opening.cancelled()
    kept = await a.peers["b"].open_channel("kept")
    while (await event_of(events, ChannelOpened)).channel.label != "kept":
        pass
    assert kept.state == "open"


async def test_five_peers_all_connect_to_each_other(relay: Relay) -> None:
    async with AsyncExitStack() as stack:
        mesh = [await stack.enter_async_context(PeerManager(relay.url, room="r")) for _ in range(5)]
        streams = [m.messages() for m in mesh]
        for peers in await asyncio.gather(*(m.wait_for_peers(4, timeout=30) for m in mesh)):
            assert {p.state for p in peers} == {PeerState.CONNECTED}
        await asyncio.gather(*(m.broadcast(m.peer_id) for m in mesh))
        for manager, stream in zip(mesh, streams, strict=True):
            senders = {m.data for m in await take(stream, 4)}
            assert senders == {m.peer_id for m in mesh} - {manager.peer_id}


class Stranger:
    """A member that speaks the protocol by hand."""

    def __init__(self, hub: MemoryHub, peer_id: str) -> None:
        self.transport = hub.transport()
        self.peer_id = peer_id
        self.welcome: Welcome

    async def __aenter__(self) -> Stranger:
        self.welcome = await self.transport.open(
            Join(VERSION, "r", self.peer_id, secrets.token_urlsafe(16))
        )
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.transport.close()

    def say(self, to: str, body: bytes, *, epoch: int = 1) -> None:
        incarnation = next(m.incarnation for m in self.welcome.members if m.peer_id == to)
        self.transport.send(SignalOut(to, incarnation, epoch, Raw(body)))


async def test_what_a_stranger_says_is_refused_with_a_reason_and_changes_nothing(
    memory_hub: MemoryHub,
) -> None:
    async with (
        PeerManager(memory_hub.transport(), room="r", peer_id="m") as m,
        PeerManager(memory_hub.transport(), room="r", peer_id="n") as n,
    ):
        await asyncio.gather(m.wait_for_peer("n", 20), n.wait_for_peer("m", 20))
        before = m.stats().peers["n"]
        events = m.events()
        async with Stranger(memory_hub, "a") as stranger:
            good = "v=0\r\nm=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\n"
            ice = "a=ice-ufrag:u\r\na=ice-pwd:p\r\na=fingerprint:sha-256 AA\r\n"
            for body, code, field in [
                (b"5", "malformed", "$"),
                (b'{"type":"nonsense"}', "malformed", "$.type"),
                (b'{"type":"offer","sdp":5}', "malformed", "$.sdp"),
                (encode(Offer("hello")), "bad_sdp", "$.sdp"),
                (encode(Offer(good)), "bad_sdp", "$.sdp"),
                (encode(Offer("v=0\r\n" + "a=x\r\n" * 20_000)), "too_large", "$.sdp"),
                (encode(Answer(good + ice)), "unexpected_answer", "$.type"),
                (b'{"type":"dial"}', "unexpected_dial", "$.type"),
            ]:
                stranger.say("m", body)
                bad = await event_of(events, BadInput)
                assert (bad.peer_id, bad.error.code, bad.error.field) == ("a", code, field)
            # One whose fault only aiortc can tell.
            stranger.say("m", encode(Offer(good + ice)))
            bad = await event_of(events, BadInput)
            assert (bad.peer_id, bad.error.code, bad.error.field) == ("a", "bad_sdp", "$.sdp")
        after = m.stats().peers["n"]
        assert (after.state, after.epoch, after.connections) == (before.state, 1, 1)


async def test_who_is_given_a_name_knows_it() -> None:
    secret = "s" * 32

    def token(name: str | None = None) -> str:
        return make_join_token(secret=secret, subject="somebody", name=name)

    async with (
        Relay(RelayConfig(port=0, join_secret=secret)) as relay,
        PeerManager(relay.url, room="r", peer_id="b", name="Bob", join_token=token()) as b,
    ):
        assert b.name == "Bob"
        a = PeerManager(
            relay.url, room="r", peer_id="a", name="Mallory", join_token=token("Dr. Ann")
        )
        assert a.name == "Mallory"
        async with a:
            assert a.name == "Dr. Ann"
            await asyncio.gather(a.wait_for_peer("b", 20), b.wait_for_peer("a", 20))
            assert b.peers["a"].name == a.name
            events = a.events()
            # What it wants to be called is refused, and changes nothing.
            a.update(name="Eve")
            assert a.name == "Dr. Ann"
            # Who has a name of its own may change that.
            b.update(name="Rob")
            b.update(metadata={"n": 1})
            assert b.name == "Rob"
            assert (await event_of(events, PeerUpdated)).name == "Rob"
            assert b.peers["a"].name == "Dr. Ann"
