"""The manager and its shell, in virtual time, over memory signalling and fake connections."""

from __future__ import annotations

import asyncio
import gc
import math
import secrets
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any, Self, cast

import pytest

from meshpeer.config import IceServer, MeshConfig, RelayConfig
from meshpeer.core import frames, values
from meshpeer.core.events import (
    BadInput,
    Closed,
    ConnectionReport,
    Event,
    Joined,
    MeshState,
    MessagesUndelivered,
    NoticeReceived,
    Path,
    PeerJoined,
    PeerLeft,
    PeerState,
    PeerStateChanged,
    PeerUpdated,
    Replaced,
    SignalingChanged,
)
from meshpeer.core.messages import IceServerInfo, IceServers
from meshpeer.core.rooms import Rooms
from meshpeer.errors import (
    ConfigError,
    IdentityReplaced,
    InvalidData,
    MeshClosed,
    MeshTimeout,
    MessageTooLarge,
    PeerClosed,
    PeerIdTaken,
    Removed,
    RequestFailed,
    RoomFull,
    SignalingUnavailable,
    SlowReader,
    TooManyChannels,
    Undelivered,
    UsageError,
)
from meshpeer.files import CHANNEL as FILES
from meshpeer.manager import PeerManager
from meshpeer.peer import ChannelOpened, Message, Peer, encoded
from meshpeer.rtc.base import ConnectionObserver, RawChannel
from meshpeer.signaling.memory import MemoryHub
from tests.fakes import DIRECT, TURN, FakeChannel, FakeConnection, FakeNetwork
from tests.virtual import virtual


class World:
    """A hub, a network, and the managers in them."""

    def __init__(self, relay: RelayConfig | None = None) -> None:
        self.hub = MemoryHub(relay)
        self.network = FakeNetwork()
        self.stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self.stack.enter_async_context(self.hub)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stack.aclose()
        assert self.network.open == [], "connections are left open"

    def manager(self, peer_id: str, **options: Any) -> PeerManager:
        # Without the relay as a path, unless a test is about it: what connections do shows.
        config = options.pop("config", None) or MeshConfig(relay_after=None)
        return PeerManager(
            self.hub.transport(config),
            room="room",
            peer_id=peer_id,
            config=config,
            connection_factory=self.network.factory,
            **options,
        )

    async def start(self, peer_id: str, **options: Any) -> PeerManager:
        manager = self.manager(peer_id, **options)
        return await self.stack.enter_async_context(manager)

    async def pair(self, **options: Any) -> tuple[PeerManager, PeerManager]:
        a, b = await self.start("a", **options), await self.start("b", **options)
        await a.wait_for_peer("b")
        await b.wait_for_peer("a")
        return a, b

    def connection_of(self, manager: PeerManager, peer_id: str) -> FakeConnection:
        connection = manager._shell._lanes[peer_id].connection
        assert isinstance(connection, FakeConnection)
        return connection


async def take(stream: Any, count: int) -> list[Any]:
    return [await anext(stream) for _ in range(count)]


async def event_of(stream: Any, kind: type[Event], **fields: object) -> Any:
    async for event in stream:
        if isinstance(event, kind) and all(getattr(event, k) == v for k, v in fields.items()):
            return event
    raise AssertionError(f"no {kind.__name__} came")


# --- meeting and talking ----------------------------------------------------------------------


@virtual
async def test_two_managers_meet_and_talk() -> None:
    async with World() as world:
        a, b = await world.pair()
        assert (a.state, b.state) == (MeshState.JOINED, MeshState.JOINED)
        assert list(a.peers) == ["b"]
        peer = a.peers["b"]
        assert (peer.state, peer.path, peer.closed_reason) == ("connected", "direct", None)
        got = b.messages()
        values = ["text", "", b"\x00bytes", b"", {"a": [1, None, "ü"]}, 5, None, True, [1.5]]
        for value in values:
            await peer.send(value)
        received = await take(got, len(values))
        assert [m.data for m in received] == values
        assert [type(m.data) for m in received] == [type(v) for v in values]
        first: Message = received[0]
        assert first.sender is b.peers["a"]
        assert (first.channel, first.path) == ("default", Path.DIRECT)


@virtual
async def test_messages_keep_their_order_whoever_sends_them() -> None:
    async with World() as world:
        a, b = await world.pair()
        got = b.messages()
        world.network.stalled = True  # so that some have to wait for room in the buffer
        big = "x" * 400_000

        async def send(index: int) -> None:
            await a.peers["b"].send(f"{index}:{big}")

        tasks = [asyncio.create_task(send(index)) for index in range(10)]
        await asyncio.sleep(1)
        world.network.run()
        assert [m.data.partition(":")[0] for m in await take(got, 10)] == [
            str(i) for i in range(10)
        ]
        await asyncio.gather(*tasks)


@virtual
async def test_every_reader_gets_every_message_of_its_channel() -> None:
    async with World() as world:
        a, b = await world.pair()
        everything, one = b.messages(), b.messages("one")
        for number in range(3):
            await a.peers["b"].send(number, channel="one")
            await a.peers["b"].send(-number, channel="two")
        received = await take(everything, 6)
        assert [m.data for m in received if m.channel == "one"] == [0, 1, 2]
        assert [m.data for m in received if m.channel == "two"] == [0, -1, -2]
        assert [m.data for m in await take(one, 3)] == [0, 1, 2]


@virtual
async def test_what_came_before_anybody_asked_is_kept_for_the_first_who_does() -> None:
    async with World() as world:
        a, b = await world.pair()
        await a.peers["b"].send("early", channel="one")
        await a.peers["b"].send("other", channel="two")
        await a.peers["b"].flush()
        assert (await anext(b.messages("two"))).data == "other"
        late = b.messages()
        assert (await anext(late)).data == "early"
        await a.peers["b"].send("now")
        assert (await anext(late)).data == "now"


@virtual
async def test_broadcast_reaches_all_that_are_connected() -> None:
    async with World() as world:
        a, b = await world.pair()
        c = await world.start("c")
        await asyncio.gather(a.wait_for_peers(2), b.wait_for_peers(2), c.wait_for_peers(2))
        streams = b.messages(), c.messages()
        sent = await a.broadcast({"to": "all"})
        assert {peer.id for peer in sent} == {"b", "c"}
        assert [(await anext(stream)).data for stream in streams] == [{"to": "all"}] * 2


@virtual
async def test_a_send_before_the_connection_waits_for_it() -> None:
    async with World() as world:
        b = await world.start("b")
        events = b.events()
        a = await world.start("a")
        await event_of(events, PeerJoined)
        got = a.messages()
        await b.peers["a"].send("at once")
        assert (await anext(got)).data == "at once"


@virtual
async def test_data_that_can_not_be_sent_is_refused_before_anything_is() -> None:
    async with World() as world:
        a, b = await world.pair(config=MeshConfig(max_message_size=2000))
        peer = a.peers["b"]
        got = b.messages()
        with pytest.raises(InvalidData, match="object"):
            await peer.send(object())
        with pytest.raises(InvalidData, match="Unicode"):
            await peer.send("\ud800")
        with pytest.raises(MessageTooLarge, match="2001 bytes, the limit is 2000"):
            await peer.send("x" * 2001)
        with pytest.raises(ConfigError, match="1 to 255 bytes"):
            await peer.send("x", channel="")
        with pytest.raises(ConfigError, match="1 to 255 bytes"):
            await peer.send("x", channel="c" * 256)
        await peer.send("x" * 2000)
        assert (await anext(got)).data == "x" * 2000
        assert a.stats().peers["b"].messages_sent == 1


@virtual
async def test_a_message_over_the_other_sides_limit_is_refused_here() -> None:
    async with World() as world:
        a = await world.start("a")
        await world.start("b", config=MeshConfig(max_message_size=5000))
        peer = await a.wait_for_peer("b")
        await asyncio.sleep(0.1)
        with pytest.raises(MessageTooLarge, match="the other side takes 5000"):
            await peer.send("x" * 5001)


# --- back-pressure ----------------------------------------------------------------------------


@virtual
async def test_an_application_that_does_not_read_stops_its_sender() -> None:
    window = 64 * 1024
    config = MeshConfig(send_window=window, channel_window=window)
    async with World() as world:
        a, b = await world.pair(config=config)
        accepted = 0

        async def send_for_ever() -> None:
            nonlocal accepted
            while True:
                await a.peers["b"].send(b"x" * 1000)
                accepted += 1

        sender = asyncio.create_task(send_for_ever())
        await asyncio.sleep(60)
        stuck_at = accepted
        assert window < stuck_at * 1000 <= 2 * window  # here, and over there
        got = b.messages()
        await take(got, stuck_at)
        await asyncio.sleep(1)
        assert accepted > stuck_at
        sender.cancel()
        await asyncio.wait([sender])


@virtual
async def test_a_reader_that_went_away_holds_nobody_back() -> None:
    config = MeshConfig(send_window=64 * 1024, channel_window=64 * 1024)
    async with World() as world:
        a, b = await world.pair(config=config)
        kept, dropped, closed = b.messages(), b.messages(), b.messages()
        for round_ in range(4):
            for _ in range(50):
                await asyncio.wait_for(a.peers["b"].send(b"x" * 1000), 10)
            await take(kept, 50)
            if round_ == 0:
                del dropped
                gc.collect()
                await closed.aclose()  # type: ignore[attr-defined]


@virtual
async def test_send_waits_while_the_window_is_full() -> None:
    async with World() as world:
        a, b = await world.pair(config=MeshConfig(send_window=16 * 1024, relay_after=None))
        got = b.messages()
        world.network.stalled = True
        await a.peers["b"].send(b"x" * 20_000)
        waiting = asyncio.create_task(a.peers["b"].send("next"))
        await asyncio.sleep(0.5)
        assert not waiting.done()
        world.network.run()
        await waiting
        assert (await take(got, 2))[1].data == "next"


@virtual
async def test_a_cancelled_send_sent_nothing() -> None:
    async with World() as world:
        a, b = await world.pair(config=MeshConfig(send_window=16 * 1024, relay_after=None))
        got = b.messages()
        world.network.stalled = True
        await a.peers["b"].send(b"x" * 20_000)
        waiting = asyncio.create_task(a.peers["b"].send("never"))
        await asyncio.sleep(0.5)
        waiting.cancel()
        await asyncio.wait([waiting])
        world.network.run()
        await a.peers["b"].send("after")
        assert [m.data for m in await take(got, 2)] == [b"x" * 20_000, "after"]


# --- flush ------------------------------------------------------------------------------------


@virtual
async def test_flush_returns_when_all_has_arrived() -> None:
    async with World() as world:
        a, b = await world.pair()
        await a.peers["b"].flush()  # nothing was sent: nothing to wait for
        world.network.stalled = True
        await a.peers["b"].send("x")
        flushing = asyncio.create_task(a.peers["b"].flush())
        await asyncio.sleep(0.5)
        assert not flushing.done()
        assert b.stats().peers["a"].messages_received == 0
        world.network.run()
        await flushing
        assert b.stats().peers["a"].messages_received == 1


@virtual
async def test_what_a_broken_connection_lost_arrives_over_the_next() -> None:
    async with World() as world:
        a, b = await world.pair()
        got = b.messages()
        await a.peers["b"].send("before")
        await a.peers["b"].flush()
        world.network.stalled = True
        for number in range(100):
            await a.peers["b"].send(number)
        flushing = asyncio.create_task(a.peers["b"].flush())
        await asyncio.sleep(0.1)
        first = world.connection_of(a, "b")
        first.lose()
        await asyncio.sleep(0.1)
        assert not flushing.done()
        assert first.closed
        world.network.run()
        await flushing
        assert [m.data for m in await take(got, 101)] == ["before", *range(100)]
        assert a.stats().peers["b"].connections == 2


@virtual
async def test_what_a_peer_that_is_gone_did_not_get_is_told() -> None:
    async with World() as world:
        a, b = await world.pair(config=MeshConfig(send_window=16 * 1024, relay_after=None))
        told: list[MessagesUndelivered] = []
        a.on_undelivered(told.append)
        peer = a.peers["b"]
        await peer.send("arrives")
        await peer.flush()
        world.network.stalled = True
        lost: list[object] = [b"x" * 20_000, {"and": "this"}]
        await peer.send(lost[0])
        await peer.send(lost[1], channel="other")
        flushing = asyncio.create_task(peer.flush())
        waiting = asyncio.create_task(peer.send("not accepted"))
        await asyncio.sleep(0.1)
        await b.close()
        for task in (flushing, waiting):
            with pytest.raises(Undelivered, match=r"is gone .left., and 2 messages") as caught:
                await task
            assert [m.data for m in caught.value.messages] == lost
            assert [m.channel for m in caught.value.messages] == ["default", "other"]
        assert [[m.data for m in each.messages] for each in told] == [lost]
        assert (told[0].peer_id, told[0].incarnation) == ("b", peer.incarnation)
        with pytest.raises(PeerClosed):
            await peer.send("later")


@virtual
async def test_flush_times_out_and_can_be_cancelled() -> None:
    async with World() as world:
        a, _ = await world.pair()
        world.network.stalled = True
        await a.peers["b"].send("x")
        with pytest.raises(MeshTimeout, match=r"within 0\.5 s"):
            await a.peers["b"].flush(timeout=0.5)
        flushing = asyncio.create_task(a.peers["b"].flush())
        await asyncio.sleep(0.1)
        flushing.cancel()
        await asyncio.wait([flushing])
        world.network.run()
        await a.peers["b"].flush()


# --- requests ---------------------------------------------------------------------------------


@virtual
async def test_a_request_gets_its_answer_and_no_other() -> None:
    async with World() as world:
        a, b = await world.pair()
        asked = b.messages()
        requests = [asyncio.create_task(a.peers["b"].request(n, channel="sums")) for n in range(3)]
        messages = await take(asked, 3)
        assert [(m.data, m.channel, m.wants_reply) for m in messages] == [
            (n, "sums", True) for n in range(3)
        ]
        for message in reversed(messages):
            await message.reply({"twice": 2 * message.data})
        await messages[0].reply("only the first counts")
        assert await asyncio.gather(*requests) == [{"twice": 2 * n} for n in range(3)]
        await a.peers["b"].send("plain")
        plain = await anext(asked)
        assert not plain.wants_reply
        with pytest.raises(UsageError, match="nobody waits"):
            await plain.reply("x")


@virtual
async def test_a_request_fails_with_the_others_text_in_time_or_with_the_peer() -> None:
    async with World() as world:
        a, b = await world.pair()
        peer, asked = a.peers["b"], b.messages()
        refused = asyncio.create_task(peer.request("a"))
        asking = await anext(asked)
        with pytest.raises(InvalidData, match="an error is text, not int"):
            await asking.reply_error(404)  # type: ignore[arg-type]
        await asking.reply_error("no such letter")
        with pytest.raises(RequestFailed, match=r"\Ano such letter\Z"):
            await refused
        with pytest.raises(MeshTimeout, match="'b' did not answer within 2 s"):
            await peer.request("b", timeout=2)
        await (await anext(asked)).reply("too late")
        cancelled = asyncio.create_task(peer.request("c"))
        message = await anext(asked)
        cancelled.cancel()
        await asyncio.wait([cancelled])
        await message.reply("nobody waits any more")
        pending = asyncio.create_task(peer.request("d"))
        await anext(asked)
        await b.close()
        with pytest.raises(PeerClosed, match="left"):
            await pending
        assert a._shell._records == {}


@virtual
async def test_a_request_that_turns_out_to_be_too_large_over_there_fails() -> None:
    async with World() as world:
        a = await world.start("a")
        events = a.events()
        b = await world.start("b", config=MeshConfig(max_message_size=5000, relay_after=None))
        await event_of(events, PeerJoined)
        asked = b.messages()
        small = asyncio.create_task(a.peers["b"].request("small", timeout=None))
        with pytest.raises(MessageTooLarge, match="'b' does not take this request"):
            await a.peers["b"].request("x" * 5001, timeout=None)
        await (await anext(asked)).reply("yes")
        assert await small == "yes"


# --- the relay as a path ----------------------------------------------------------------------


@virtual
async def test_who_can_not_connect_talks_over_the_relay_and_moves_to_the_direct_path() -> None:
    async with World() as world:
        world.network.hang.add("accept_offer")
        a = await world.start("a", config=MeshConfig())
        b = await world.start("b", config=MeshConfig())
        events, got = a.events(), b.messages()
        began = asyncio.get_running_loop().time()
        await a.peers["b"].send("accepted before there is any path")
        up = await event_of(events, PeerStateChanged, state=PeerState.CONNECTED)
        assert (up.path, up.reason) == (Path.RELAY, "no direct path for 3 s")
        assert asyncio.get_running_loop().time() - began < 3.5
        first = await anext(got)
        assert (first.path, first.received_at > 0) == (Path.RELAY, True)
        assert (a.peers["b"].path, a.peers["b"].ice_state) == ("relay", "new")
        assert a.stats().paths == {Path.RELAY: 1}
        sending = asyncio.create_task(send_numbers(a.peers["b"], 500))
        await asyncio.sleep(1)
        assert a.peers["b"].rtt is not None
        world.network.hang.clear()
        report = await event_of(events, ConnectionReport, path=Path.DIRECT)
        assert report.state is PeerState.CONNECTED
        await sending
        messages = await take(got, 500)
        assert [m.data for m in messages] == list(range(500))
        assert [m.path for m in messages] == sorted(
            (m.path for m in messages), key=[Path.RELAY, Path.DIRECT].index
        )
        assert {m.path for m in messages} == {Path.RELAY, Path.DIRECT}


async def send_numbers(peer: Peer, count: int) -> None:
    for number in range(count):
        await peer.send(number)
        await asyncio.sleep(0.1)


@virtual
async def test_data_moves_to_the_relay_when_the_direct_path_falls_silent() -> None:
    async with World() as world:
        a, b = await world.pair(config=MeshConfig(relay_after=1.0))
        events, got = a.events(), b.messages()
        back = a.messages()
        world.network.stalled = True
        world.network.hang.add("create_offer")
        for number in range(10):
            await a.peers["b"].send(number)
            await b.peers["a"].send(-number)
        await event_of(events, PeerStateChanged, state=PeerState.DISCONNECTED)
        up = await event_of(events, PeerStateChanged)
        assert (up.state, up.path) == (PeerState.CONNECTED, Path.RELAY)
        assert [m.data for m in await take(got, 10)] == list(range(10))
        assert [m.data for m in await take(back, 10)] == [-number for number in range(10)]
        # Late, and in full, the old path brings it all again.
        world.network.hang.clear()
        world.network.run()
        await event_of(events, ConnectionReport, path=Path.DIRECT)
        await a.peers["b"].send("last")
        assert (await anext(got)).data == "last"


@virtual
async def test_from_the_first_moment_or_never() -> None:
    async with World() as world:
        world.network.hang.add("accept_offer")
        a = await world.start("a", config=MeshConfig(relay_after=0))
        await world.start("b", config=MeshConfig(relay_after=0))
        await world.start("c", config=MeshConfig(relay_after=None))
        began = asyncio.get_running_loop().time()
        peer = await a.wait_for_peer("b")
        assert peer.path is Path.RELAY
        assert asyncio.get_running_loop().time() - began < 0.5
        with pytest.raises(MeshTimeout):
            await a.wait_for_peer("c", timeout=30)


@virtual
async def test_nothing_is_lost_when_the_relay_forgets_everything_under_a_relay_path() -> None:
    async with World() as world:
        world.network.hang.add("accept_offer")
        a = await world.start("a", config=MeshConfig())
        b = await world.start("b", config=MeshConfig())
        peer, got = await a.wait_for_peer("b"), b.messages()
        sending = asyncio.create_task(send_numbers(peer, 300))
        for _ in range(3):
            await asyncio.sleep(4)
            world.hub.restart()
        await sending
        await peer.flush()
        assert [m.data for m in await take(got, 300)] == list(range(300))


@virtual
async def test_undelivered_messages_can_be_handed_to_the_next_incarnation() -> None:
    async with World() as world:
        a, b = await world.pair()
        saved: list[object] = []
        a.on_undelivered(lambda event: saved.extend(m.data for m in event.messages))
        world.network.stalled = True
        for number in range(5):
            await a.peers["b"].send(number)
        await b.close()
        await asyncio.sleep(0.1)
        world.network.run()
        again = await world.start("b")
        got = again.messages()
        peer = await a.wait_for_peer("b")
        for data in saved:
            await peer.send(data)
        assert [m.data for m in await take(got, 5)] == list(range(5))


@virtual
async def test_one_channel_that_is_not_read_holds_up_no_other() -> None:
    config = MeshConfig(send_window=64 * 1024, channel_window=64 * 1024, relay_after=None)
    async with World() as world:
        a, b = await world.pair(config=config)
        read = b.messages("read")

        async def fill() -> None:
            while True:
                await a.peers["b"].send(b"x" * 1000, channel="not read")

        filling = asyncio.create_task(fill())
        await asyncio.sleep(1)
        for number in range(200):
            await asyncio.wait_for(a.peers["b"].send(number, channel="read"), 10)
            assert (await asyncio.wait_for(anext(read), 10)).data == number
        filling.cancel()
        await asyncio.wait([filling])


@virtual
async def test_a_channel_more_than_the_peer_takes_and_a_reserved_name_are_refused() -> None:
    async with World() as world:
        a, _ = await world.pair(config=MeshConfig(max_channels=2))
        await a.peers["b"].send("x", channel="one")
        await a.peers["b"].send("x", channel="two")
        with pytest.raises(TooManyChannels, match="'three' would be one more"):
            await a.peers["b"].send("x", channel="three")
        for call in (
            a.peers["b"].send("x", channel="meshpeer.x"),
            a.peers["b"].request("x", channel="meshpeer.x"),
            a.broadcast("x", channel="meshpeer.x"),
        ):
            with pytest.raises(ConfigError, match="reserved"):
                await call


@virtual
async def test_a_loop_that_only_sends_lets_others_have_their_turn() -> None:
    async with World() as world:
        a, b = await world.pair()
        got = b.messages()
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        counting = asyncio.create_task(count())
        for _ in range(10_000):
            await a.peers["b"].send(b"x" * 64)
        assert turns >= 10
        counting.cancel()
        await asyncio.wait([counting])
        await take(got, 10_000)


@virtual
async def test_pieces_of_files_that_nobody_offered_are_refused_and_told_now_and_then() -> None:
    async with World() as world:
        a, b = await world.pair()
        told: list[BadInput] = []
        b.on(BadInput, told.append)
        shell, peer = a._shell, a.peers["b"]
        for _ in range(10):
            await shell.send(peer, encoded(b"piece", FILES, 1000))
            await shell.send(peer, encoded("no piece", FILES, 1000))
        with pytest.raises(RequestFailed, match=r"(?i)nonsense|invalid|malformed"):
            await shell.request(peer, {"do": "nonsense"}, FILES, 5)
        await asyncio.sleep(0.5)
        assert [(each.peer_id, each.error.code) for each in told] == [("a", "bad_file")]
        await asyncio.sleep(1)
        await shell.send(peer, encoded(b"piece", FILES, 1000))
        await asyncio.sleep(0.1)
        assert len(told) == 2


# --- ICE restarts -----------------------------------------------------------------------------


@virtual
async def test_a_restart_is_told_and_its_candidates_go_to_its_generation() -> None:
    async with World() as world:
        a, b = await world.pair()
        events = a.events()
        a.debug.force_ice_restart("b")
        report = await event_of(events, ConnectionReport, restarts=1)
        assert (report.generation, report.state) == (1, "connected")
        assert report.pair == DIRECT
        found = [("candidate:1 1 udp 1 192.0.2.7 7 typ srflx", "0", 0)]
        world.connection_of(b, "a").observer.candidates_found(1, found, True)
        await asyncio.sleep(0.1)
        ours = world.connection_of(a, "b")
        assert (ours.candidates, ours.generations) == (found, [1])


@pytest.mark.parametrize("turns", range(12))
def test_an_operation_that_is_being_ended_may_be_ended_again(turns: int) -> None:
    @virtual
    async def run() -> None:
        async with World() as world:
            a, b = await world.pair()
            world.network.hang.add("accept_offer")
            a.debug.force_ice_restart("b")
            await asyncio.sleep(1)
            assert b._shell._lanes["a"].running is not None
            a.debug.force_ice_restart("b")
            for _ in range(turns):
                await asyncio.sleep(0)
            world.connection_of(b, "a").observer.connection_lost("just then")
            world.network.hang.clear()
            await a.wait_for_peer("b", timeout=60)
            assert b.state is MeshState.JOINED

    run()


@virtual
async def test_the_path_is_that_of_the_selected_pair() -> None:
    async with World() as world:
        a, b = await world.pair()
        messages = a.messages()
        assert a.peers["b"].path == "direct"
        world.connection_of(a, "b").observer.pair_selected(0, TURN)
        assert a.peers["b"].path == "turn"
        assert a.stats().paths == {Path.TURN: 1}
        await b.peers["a"].send("over turn")
        assert (await anext(messages)).path == "turn"


@virtual
async def test_every_peer_is_tried_and_who_does_not_answer_is_told_with_the_reason() -> None:
    async with World() as world:
        a, _ = await world.pair()
        (found,) = await a.debug.test_p2p_with_all_peers()
        assert (found.peer_id, found.path, found.error) == ("b", "direct", None)
        assert found.rtt is not None
        world.network.stalled = True
        (found,) = await a.debug.test_p2p_with_all_peers(timeout=1.0)
        assert (found.rtt, found.error) == (None, "no answer within 1 s")
        world.network.run()
        with pytest.raises(ConfigError, match="'nobody' is not in the room"):
            a.debug.force_ice_restart("nobody")


# --- events -----------------------------------------------------------------------------------


@virtual
async def test_events_tell_the_whole_story_in_order() -> None:
    async with World() as world:
        a = world.manager("a")
        story = a.events()
        await a.start()
        b = await world.start("b", name="Bob", metadata={"k": 1})
        await a.wait_for_peer("b")
        b.update(name="Robert")
        await b.close()
        await a.close()
        events = [event async for event in story]
        # A report follows each change.
        events = [event for event in events if not isinstance(event, ConnectionReport)]
        kinds = [type(event).__name__ for event in events]
        assert kinds == [
            "SignalingChanged", "Joined", "PeerJoined", "PeerStateChanged", "PeerStateChanged",
            "PeerUpdated", "PeerStateChanged", "PeerLeft", "Closed",
        ]  # fmt: skip
        joined, updated = events[2], events[5]
        assert isinstance(joined, PeerJoined)
        assert (joined.peer_id, joined.name, joined.metadata) == ("b", "Bob", {"k": 1})
        assert isinstance(updated, PeerUpdated)
        assert (updated.name, updated.metadata) == ("Robert", {"k": 1})
        states = [e for e in events if isinstance(e, PeerStateChanged)]
        assert [e.state for e in states] == ["connecting", "connected", "closed"]
        assert [e.path for e in states] == [None, "direct", None]
        assert all(e.reason for e in states)
        left = events[7]
        assert isinstance(left, PeerLeft)
        assert left.reason == "left"


@virtual
async def test_callbacks_run_in_order_after_the_state_has_changed() -> None:
    async with World() as world:
        a = await world.start("a")
        seen: list[str] = []

        def on_state(event: PeerStateChanged) -> None:
            state = a.peers[event.peer_id].state if event.peer_id in a.peers else "gone"
            seen.append(f"{event.state} {state}")

        async def on_left(event: PeerLeft) -> None:
            await asyncio.sleep(5)
            seen.append(f"left {event.peer_id}")

        def raises(event: Event) -> None:
            raise RuntimeError("the program's own fault")

        off = a.on(PeerStateChanged, on_state)
        a.on(PeerLeft, on_left)
        a.on(Event, raises)
        b = await world.start("b")
        await a.wait_for_peer("b")
        await asyncio.sleep(0)
        assert seen[-1] == "connected connected"
        off()
        await b.close()
        await asyncio.sleep(6)
        assert seen == ["connecting connecting", "connected connected", "left b"]


@virtual
async def test_a_reader_of_events_that_falls_too_far_behind_is_ended() -> None:
    async with World() as world:
        a = await world.start("a", config=MeshConfig(max_pending_events=10))
        slow = a.events()
        for index in range(5):
            b = await world.start(f"b{index}")
            await a.wait_for_peer(b.peer_id)
            await b.close()
        assert len(await take(slow, 10)) == 10
        with pytest.raises(SlowReader, match="max_pending_events"):
            await anext(slow)
        assert a.state is MeshState.JOINED


# --- waiting ----------------------------------------------------------------------------------


@virtual
async def test_waiting_for_peers_has_a_deadline_that_says_what_was_missing() -> None:
    async with World() as world:
        a = await world.start("a")
        with pytest.raises(MeshTimeout, match=r"2 s for 1 connected peers .*none"):
            await a.wait_for_peers(timeout=2)
        with pytest.raises(MeshTimeout, match=r"'b' to be connected .it is not in the room"):
            await a.wait_for_peer("b", timeout=2)
        world.network.hang.add("accept_offer")
        await world.start("b")
        with pytest.raises(MeshTimeout, match="it is connecting"):
            await a.wait_for_peer("b", timeout=1)
        world.network.hang.clear()
        assert [p.id for p in await a.wait_for_peers(timeout=100)] == ["b"]


@virtual
async def test_waiting_ends_with_the_manager() -> None:
    async with World() as world:
        a, b = await world.pair(config=MeshConfig(send_window=16 * 1024, relay_after=None))
        world.network.stalled = True
        await a.peers["b"].send(b"x" * 20_000)
        peer = a.peers["b"]
        waits = [
            asyncio.create_task(coroutine)
            for coroutine in (a.wait_for_peers(5), a.wait_for_peer("z"), peer.send("x"))
        ]
        stream = a.messages()
        messages = asyncio.create_task(take(stream, 1))
        await asyncio.sleep(0.1)
        await a.close()
        for wait in waits:
            with pytest.raises(MeshClosed):
                await wait
        with pytest.raises(StopAsyncIteration):
            await messages
        for call in (a.wait_for_peers(), a.broadcast("x"), peer.send("x"), peer.flush()):
            with pytest.raises(MeshClosed):
                await call
        assert [e async for e in a.events()] == []
        assert [m async for m in a.messages()] == []
        assert b.state is MeshState.JOINED


@virtual
async def test_channels_beyond_the_limit_are_closed_and_told_now_and_then() -> None:
    async with World() as world:
        a, _ = await world.pair()
        events = a.events()
        opens = world.connection_of(a, "b").observer.channel_opened
        for _ in range(300):
            opens(cast("RawChannel", FakeChannel()))
        await asyncio.sleep(1.1)
        opens(cast("RawChannel", FakeChannel()))
        await a.close()
        told = Counter([type(event) async for event in events])
        assert (told[ChannelOpened], told[BadInput]) == (256, 2)


@virtual
async def test_who_waits_to_open_a_channel_is_told_of_our_end() -> None:
    async with World() as world:
        world.network.hang.add("accept_offer")
        a = await world.start("a")
        await world.start("b")
        peer = a.peers["b"]
        opening = asyncio.create_task(peer.open_channel("x"))
        await asyncio.sleep(0.1)
        await a.close()
        with pytest.raises(MeshClosed):
            await opening
        with pytest.raises(MeshClosed):
            await peer.open_channel("x")
        world.network.hang.clear()


# --- who is who -------------------------------------------------------------------------------


@virtual
async def test_an_id_that_is_in_use_is_refused() -> None:
    async with World() as world:
        a = await world.start("a")
        for on_conflict in ("reject", "takeover"):
            second = world.manager("a", config=MeshConfig(on_conflict=on_conflict))
            with pytest.raises(PeerIdTaken, match="'a'"):
                await second.start()
            assert second.state is MeshState.CLOSED
        assert a.state is MeshState.JOINED


@virtual
async def test_an_id_that_is_held_for_somebody_who_may_come_back_is_waited_for() -> None:
    async with World(RelayConfig(seat_timeout=30)) as world:
        a = await world.start("a")
        a._shell._transport.block()  # type: ignore[attr-defined]
        impatient = world.manager("a", config=MeshConfig(join_timeout=5))
        with pytest.raises(PeerIdTaken, match="lost its connection"):
            await impatient.start()
        patient = await world.start("a", config=MeshConfig(join_timeout=60))
        assert patient.state is MeshState.JOINED
        assert 30 <= event_time(patient) <= 32


@virtual
async def test_rename_gives_the_next_free_id() -> None:
    async with World() as world:
        await world.start("a")
        config = MeshConfig(on_conflict="rename")
        second = world.manager("a", config=config)
        events = second.events()
        async with second, world.manager("a", config=config) as third:
            assert (second.peer_id, third.peer_id) == ("a-2", "a-3")
            assert (await event_of(events, Joined)).peer_id == "a-2"
            assert {p.id for p in await third.wait_for_peers(2)} == {"a", "a-2"}


@virtual
async def test_a_new_process_with_the_token_takes_the_id_over_at_once() -> None:
    async with World() as world:
        a, b = await world.pair()
        old_events, b_events = a.events(), b.events()
        old_messages = a.messages()
        old_peer = b.peers["a"]
        second = await world.start("a", resume_token=a.resume_token)
        assert isinstance(await event_of(old_events, Replaced), Replaced)
        closed = await event_of(old_events, Closed)
        assert closed.reason == "replaced"
        assert isinstance(closed.error, IdentityReplaced)
        with pytest.raises(IdentityReplaced):
            await anext(old_messages)
        with pytest.raises(IdentityReplaced):
            await a.broadcast("x")
        left = await event_of(b_events, PeerLeft)
        assert (left.peer_id, left.reason) == ("a", "superseded")
        assert old_peer.closed_reason == "superseded"
        with pytest.raises(PeerClosed, match="superseded"):
            await old_peer.send("x")
        assert list(b.peers) == ["a"]
        peer = await b.wait_for_peer("a")
        assert peer.incarnation == second.incarnation
        got = second.messages()
        await peer.send("to the new one")
        assert (await anext(got)).data == "to the new one"


@virtual
async def test_the_old_connection_is_closed_before_the_new_one_speaks() -> None:
    async with World() as world:
        a, b = await world.pair()
        first = world.connection_of(b, "a").number
        second = await world.start("a", resume_token=a.resume_token)
        await b.wait_for_peer("a")
        await second.wait_for_peer("b")
        new = world.connection_of(b, "a").number
        log = world.network.log
        assert log.index(f"closed {first}") < log.index(f"made {new}") < log.index(f"spoke {new}")


@virtual
async def test_a_process_that_died_is_gone_when_its_seat_runs_out() -> None:
    async with World(RelayConfig(seat_timeout=30)) as world:
        a, b = await world.pair()
        events = b.events()
        # As SIGKILL does it: the socket breaks, the direct path goes silent, nobody says goodbye.
        transport = a._shell._transport
        transport.block()  # type: ignore[attr-defined]
        world.connection_of(a, "b").closed = True
        world.connection_of(a, "b").remote = None
        states = []
        async for event in events:
            if isinstance(event, PeerStateChanged):
                states.append((event.state, round(event_time(b))))
            if isinstance(event, PeerLeft):
                assert event.reason == "timeout"
                break
        assert states[0][0] is PeerState.DISCONNECTED
        assert states[0][1] <= 3
        assert states[-1][0] is PeerState.CLOSED
        assert 30 <= states[-1][1] <= 31


@virtual
async def test_a_process_that_was_given_up_and_comes_back_goes_on_where_it_was() -> None:
    config = MeshConfig(relay_after=None, channel_window=64 * 1024, send_window=64 * 1024)
    async with World(RelayConfig(seat_timeout=5)) as world:
        a, b = await world.pair(config=config)
        peer, events = a.peers["b"], b.events()

        async def send() -> None:
            for number in range(100):
                await peer.send(f"{number:2000}")

        sending = asyncio.create_task(send())
        await asyncio.sleep(1)
        # Cut off for longer than its seat is kept, and nobody reads: the window is full.
        transport: Any = a._shell._transport
        transport.block()
        world.network.hang.add("create_offer")
        world.connection_of(b, "a").lose()
        assert (await event_of(events, PeerLeft)).reason == "timeout"
        world.network.hang.clear()
        transport.unblock()
        await b.wait_for_peer("a", timeout=100)
        assert a.peers["b"] is peer, "it has not noticed"
        received = await take(b.messages(), 100)
        assert [int(m.data) for m in received] == list(range(100))
        await sending


def event_time(manager: PeerManager) -> float:
    return manager._shell.now()


# --- signalling comes and goes ----------------------------------------------------------------


@virtual
async def test_links_live_on_while_signalling_is_away() -> None:
    async with World() as world:
        a, b = await world.pair()
        events = a.events()
        got = b.messages()
        world.hub.block()
        lost = await event_of(events, SignalingChanged)
        assert (lost.state, a.state) == (MeshState.RECONNECTING, MeshState.RECONNECTING)
        assert lost.reason
        for number in range(5):
            await asyncio.sleep(60)
            await a.peers["b"].send(number)
        assert [m.data for m in await take(got, 5)] == list(range(5))
        world.hub.unblock()
        back = await event_of(events, Joined)
        assert (back.peer_id, back.incarnation) == ("a", a.incarnation)
        await asyncio.sleep(60)
        assert a.peers["b"].state is PeerState.CONNECTED
        assert len(world.network.connections) == 2, "the connection was made anew"
        left = [e for e in drain(events) if isinstance(e, PeerLeft | PeerStateChanged)]
        assert left == []


def drain(stream: Any) -> list[Event]:
    return [stream.take() for _ in range(len(stream))]


@virtual
async def test_a_relay_that_is_killed_and_restarted_is_hardly_noticed() -> None:
    async with World() as world:
        a, b = await world.pair()
        events = a.events()
        world.hub.restart()
        await event_of(events, Joined, resumed=False)
        await asyncio.sleep(120)
        c = await world.start("c")
        assert {p.id for p in await c.wait_for_peers(2, timeout=10)} == {"a", "b"}
        assert [e for e in drain(events) if isinstance(e, PeerLeft)] == []
        assert len(a.peers) == len(b.peers) == 2


@virtual
async def test_start_says_why_it_could_not_enter() -> None:
    async with World(RelayConfig(max_members=1)) as world:
        await world.start("a")
        with pytest.raises(RoomFull, match="room"):
            await world.manager("b").start()
        world.hub.block()
        unlucky = world.manager("c", config=MeshConfig(join_timeout=3))
        with pytest.raises(SignalingUnavailable, match=r"'room' within 3 s: .*blocked"):
            await unlucky.start()
        assert unlucky.state is MeshState.CLOSED
        with pytest.raises(MeshClosed, match="starts once"):
            await unlucky.start()


@virtual
async def test_a_cancelled_start_leaves_nothing() -> None:
    async with World() as world:
        world.hub.block()
        a = world.manager("a")
        events = a.events()
        starting = asyncio.create_task(a.start())
        await asyncio.sleep(0.3)
        starting.cancel()
        await asyncio.wait([starting])
        assert starting.cancelled()
        assert a.state is MeshState.CLOSED
        assert isinstance((await take(events, 1))[0], Closed)
        await a.close()


# --- recovery ---------------------------------------------------------------------------------


@virtual
async def test_a_lost_connection_is_made_again() -> None:
    async with World() as world:
        a, b = await world.pair()
        events = a.events()
        await asyncio.sleep(10)
        world.connection_of(b, "a").lose()
        down = await event_of(events, PeerStateChanged)
        assert down.state is PeerState.DISCONNECTED
        up = await event_of(events, PeerStateChanged)
        assert (up.state, up.epoch) == (PeerState.CONNECTED, 2)
        assert len(world.network.open) == 2


@virtual
async def test_an_operation_that_hangs_is_given_up_at_the_deadline() -> None:
    async with World() as world:
        world.network.hang.add("create_offer")
        a = await world.start("a")
        await world.start("b")
        await asyncio.sleep(5)
        assert a.peers["b"].state is PeerState.CONNECTING
        world.network.hang.clear()
        await a.wait_for_peer("b", timeout=30)
        assert a.stats().peers["b"].epoch == 2


@pytest.mark.parametrize("operation", ["create_offer", "accept_offer", "accept_answer"])
def test_an_operation_that_fails_is_tried_again(operation: str) -> None:
    @virtual
    async def run() -> None:
        async with World() as world:
            world.network.fail = [operation] * 3
            a, b = await world.pair()
            assert world.network.fail == []
            assert a.stats().peers["b"].connections == 1
            assert b.peers["a"].state is PeerState.CONNECTED

    run()


@virtual
async def test_a_connection_that_does_not_close_does_not_hold_up_the_next() -> None:
    async with World() as world:
        a, _ = await world.pair()
        await asyncio.sleep(10)
        world.network.hang.add("close")
        world.connection_of(a, "b").lose()
        await asyncio.sleep(1)
        await a.wait_for_peer("b", timeout=20)
        world.network.hang.clear()
        for connection in world.network.connections.values():
            await connection.close()


@virtual
async def test_a_frame_that_does_not_decode_ends_that_connection_only() -> None:
    async with World() as world:
        a, b = await world.pair()
        c = await world.start("c")
        await asyncio.gather(a.wait_for_peers(2), b.wait_for_peers(2), c.wait_for_peers(2))
        events = b.events()
        await asyncio.sleep(10)
        world.connection_of(a, "b").send_frame(b"\xff nonsense")
        bad = await event_of(events, BadInput)
        assert (bad.peer_id, bad.error.code) == ("a", "bad_frame")
        assert (await event_of(events, PeerStateChanged)).peer_id == "a"
        await event_of(events, PeerStateChanged, state=PeerState.CONNECTED)
        assert a.stats().peers["c"].epoch == 1
        assert b.stats().peers["c"].epoch == 1


# --- the end ----------------------------------------------------------------------------------


@virtual
async def test_close_delivers_what_was_sent_and_says_goodbye() -> None:
    async with World() as world:
        a, b = await world.pair()
        events, got = b.events(), b.messages()
        for number in range(100):
            await a.peers["b"].send(number)
        await a.close()
        await a.close()
        assert [m.data for m in await take(got, 100)] == list(range(100))
        assert (await event_of(events, PeerLeft)).reason == "left"
        assert dict(b.peers) == {}


@virtual
async def test_the_goodbye_comes_over_the_direct_path_too() -> None:
    async with World() as world:
        a, b = await world.pair()
        events = b.events()
        world.hub.block()
        await a.close()
        assert (await event_of(events, PeerLeft)).reason == "left"
        assert b.state is MeshState.RECONNECTING


@virtual
async def test_who_closes_acknowledges_what_has_arrived() -> None:
    async with World() as world:
        a, b = await world.pair()
        told: list[MessagesUndelivered] = []
        a.on_undelivered(told.append)
        got, events = b.messages(), a.events()
        await a.peers["b"].send("first")
        assert (await anext(got)).data == "first"
        await a.peers["b"].flush()
        await a.peers["b"].send("the last")
        assert (await anext(got)).data == "the last"
        await b.close()  # before its acknowledgement is due
        await event_of(events, PeerLeft)
        assert told == []


@virtual
async def test_a_flush_whose_peer_left_says_whether_all_had_arrived() -> None:
    for arrived in range(3):
        async with World() as world:
            a, _ = await world.pair()
            peer, shell = a.peers["b"], a._shell
            world.network.stalled = True
            request = asyncio.create_task(peer.request("x"))
            await asyncio.sleep(0.1)
            flush = asyncio.create_task(peer.flush())
            await asyncio.sleep(0.1)
            await peer.send("after the flush")
            # The acknowledgement and the goodbye come in one turn of the event loop.
            for frame in (frames.Ack([frames.Limit(0, arrived, 100_000)]), frames.Bye()):
                data, epoch = frames.encode(frame), shell.node.link("b").epoch
                shell.do(shell.node.frame_received("b", peer.incarnation, epoch, data, shell.now()))
            if arrived:
                await flush
            else:
                with pytest.raises(Undelivered):
                    await flush
            with pytest.raises(PeerClosed):
                await request


@virtual
async def test_close_does_not_wait_for_ever() -> None:
    async with World() as world:
        a, _ = await world.pair()
        world.network.stalled = True
        await a.peers["b"].send("x")
        world.network.hang.add("close")
        before = event_time(a)
        await a.close()
        assert event_time(a) - before <= 3.0 + 1e-6
        assert a.state is MeshState.CLOSED
        world.network.hang.clear()
        for connection in world.network.connections.values():
            await connection.close()


@virtual
async def test_a_cancelled_close_tears_down_all_the_same() -> None:
    async with World() as world:
        a, _ = await world.pair()
        world.network.stalled = True
        await a.peers["b"].send("x")
        before = event_time(a)
        closing = asyncio.create_task(a.close())
        await asyncio.sleep(0.1)
        closing.cancel()
        await asyncio.wait([closing])
        assert closing.cancelled()
        assert a.state is MeshState.CLOSED
        assert event_time(a) - before == pytest.approx(0.1)


@virtual
async def test_close_before_start() -> None:
    async with World() as world:
        a = world.manager("a")
        with pytest.raises(MeshClosed):
            await a.broadcast("x")
        await a.close()
        assert a.state is MeshState.CLOSED
        with pytest.raises(MeshClosed):
            await a.start()


@virtual
async def test_a_mesh_of_ten_comes_and_goes() -> None:
    async with World() as world:
        names = [f"p{index}" for index in range(10)]
        managers = [await world.start(name) for name in names]
        await asyncio.gather(*(m.wait_for_peers(9, timeout=5) for m in managers))
        assert len(world.network.open) == 90
        await asyncio.gather(*(m.close() for m in managers[1:]))
        await asyncio.sleep(0.1)
        assert dict(managers[0].peers) == {}
        assert world.network.open == []


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"room": ""}, "room"),
        ({"room": "r", "peer_id": " a"}, "peer_id"),
        ({"room": "r", "peer_id": "a\n"}, "peer_id"),
        ({"room": "r", "peer_id": "a" * 129}, "peer_id"),
        ({"room": "r", "name": "a\x1b[0m"}, "name"),
        ({"room": "r", "metadata": {"x": "y" * 5000}}, "metadata"),
        ({"room": "r", "metadata": {"x": object()}}, "metadata"),
        ({"room": "r", "metadata": ["x"]}, "metadata"),
        ({"room": "r", "resume_token": "short"}, "resume_token"),
    ],
)
def test_arguments_that_can_not_be_right_are_refused_before_anything_is_contacted(
    options: dict[str, Any], field: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{field} "):
        PeerManager("ws://localhost:1", **options)
    with pytest.raises(ConfigError, match="ws://"):
        PeerManager("http://localhost", room="r")


# --- what the operator of the relay does ----------------------------------------------------------


@virtual
async def test_who_is_removed_closes_and_does_not_come_back() -> None:
    async with World() as world:
        a, b = await world.pair()
        seen, others = b.events(), a.events()
        waiting = asyncio.create_task(b.wait_for_peers(2))
        await asyncio.sleep(0)
        world.hub._do(world.hub._rooms.remove("room", "b", b._shell.now()))
        closed = await event_of(seen, Closed)
        assert closed.reason == "removed"
        assert isinstance(closed.error, Removed)
        assert b.state is MeshState.CLOSED
        with pytest.raises(Removed, match="removed 'b' from the room"):
            await waiting
        with pytest.raises(Removed):
            await b.broadcast("still there?")
        left = await event_of(others, PeerLeft)
        assert (left.peer_id, left.reason) == ("b", "removed")
        await asyncio.sleep(120)
        assert list(a.peers) == []


@virtual
async def test_a_notice_gets_to_everybody_in_the_room() -> None:
    async with World() as world:
        a, b = await world.pair()
        streams = a.events(), b.events()
        world.hub._do(world.hub._rooms.notice("room", "a restart at noon", a._shell.now()))
        for stream in streams:
            assert (await event_of(stream, NoticeReceived)).text == "a restart at noon"


@virtual
async def test_the_operator_asks_for_an_ice_restart() -> None:
    async with World() as world:
        a, b = await world.pair()
        events = a.events()
        world.hub._do(world.hub._rooms.restart_ice("room", "b", "a", b._shell.now()))
        report = await event_of(events, ConnectionReport)
        assert (report.generation, report.state) == (2, PeerState.CONNECTED)
        assert a.stats().peers["b"].restarts == b.stats().peers["a"].restarts == 1
        assert a.stats().peers["b"].connections == 1


@virtual
async def test_the_relay_names_the_ice_servers_before_anybody_is_dialled() -> None:
    async with World() as world:
        named = IceServers([IceServerInfo(["turn:turn.example.org"], "user", "password")])
        world.hub._rooms = Rooms(
            RelayConfig(),
            new_token=lambda: secrets.token_urlsafe(32),
            ice_servers=lambda _peer_id, _subject: named,
        )
        made: list[list[str]] = []

        def factory(observer: ConnectionObserver) -> FakeConnection:
            made.append([url for server in observer.ice_servers() for url in server.urls])
            return FakeNetwork.factory(world.network, observer)

        world.network.factory = factory  # type: ignore[method-assign]
        ours = MeshConfig(ice_servers=(IceServer(urls="stun:stun.example.org"),))
        await world.pair(config=ours)
        assert [urls[-1] for urls in made] == ["turn:turn.example.org"] * 2
        assert all(len(urls) > 1 for urls in made), "those of the configuration stay"


@virtual
async def test_the_relay_knows_how_the_links_stand() -> None:
    async with World(RelayConfig(report_interval=15.0)) as world:
        a, b = await world.pair()
        await a.peers["b"].send("x" * 100)
        await b.peers["a"].send("y")
        await b.peers["a"].send("y")
        await asyncio.sleep(20)
        (topology,) = world.hub._rooms.tracking.status(0.0).topology
        (link,) = topology.links
        assert (link.a, link.b, link.state, link.path) == ("a", "b", "connected", "direct")
        assert link.a_side is not None
        assert link.b_side is not None
        assert (link.a_side.messages, link.a_side.bytes_sent) == (1, 100)
        assert (link.b_side.messages, link.b_side.bytes_received) == (2, 100)
        stats = a.stats().peers["b"]
        assert (stats.attempts, stats.connections, stats.failures) == (1, 1, 0)
        assert (stats.messages_sent, stats.messages_direct, stats.messages_received) == (1, 1, 2)
        assert (stats.bytes_sent, stats.bytes_received) == (100, 2)
        assert (stats.fallbacks, stats.failure, stats.connect_time) == (0, "", 0.0)


@virtual
async def test_a_relay_that_asks_for_no_reports_gets_none() -> None:
    async with World(RelayConfig(report_interval=0)) as world:
        await world.pair()
        await asyncio.sleep(60)
        (topology,) = world.hub._rooms.tracking.status(0.0).topology
        assert topology.links == []


# --- join tokens ----------------------------------------------------------------------------------


def test_a_join_token_is_for_the_relay_at_a_url() -> None:
    with pytest.raises(ConfigError, match="give it to the transport"):
        PeerManager(MemoryHub().transport(), room="r", join_token="a-token")
    with pytest.raises(ConfigError, match="join_token") as caught:
        PeerManager("ws://localhost:1", room="r", join_token="not a token")
    assert "not a token" not in str(caught.value)


def test_what_is_given_to_update_is_checked_too() -> None:
    @virtual
    async def run() -> None:
        async with World() as world:
            a = await world.start("a")
            with pytest.raises(ConfigError, match=r"^name "):
                a.update(name="\x00")

    run()


def test_nan_becomes_null_as_json_has_no_word_for_it() -> None:
    assert values.encode_value(math.nan) == (values.Kind.JSON, b"null")
