"""Connections on real aiortc, without signalling or managers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import Any

import pytest

from meshpeer.config import IceServer, MeshConfig
from meshpeer.core.events import CandidatePair, IceServerReport
from meshpeer.errors import ConfigError, ConnectionFailed, ProtocolError
from meshpeer.rtc.base import Candidate, RawChannel
from meshpeer.rtc.connection import AiortcConnection, connection_factory


class End:
    """An observer that keeps what it is told, and its connection."""

    def __init__(self, config: MeshConfig) -> None:
        self.told: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        self.found: asyncio.Queue[tuple[int, list[Candidate], bool]] = asyncio.Queue()
        """Local candidates to trickle."""
        self.servers = config.ice_servers
        self.connection = AiortcConnection(self, config)

    async def next(self, kind: str) -> Any:
        while True:
            found, value = await self.told.get()
            if found == kind:
                return value

    def connection_opened(self) -> None:
        self.told.put_nowait(("opened", None))

    def connection_lost(self, reason: str) -> None:
        self.told.put_nowait(("lost", reason))

    def frame_received(self, data: bytes) -> None:
        self.told.put_nowait(("frame", data))

    def buffer_low(self) -> None:
        self.told.put_nowait(("low", None))

    def channel_opened(self, channel: RawChannel) -> None:
        self.told.put_nowait(("channel", channel))

    def ice_state_changed(self, state: str) -> None:
        self.told.put_nowait(("ice", state))

    def ice_servers(self) -> Sequence[IceServer]:
        return self.servers

    def candidates_found(self, generation: int, candidates: Sequence[Candidate], end: bool) -> None:
        self.found.put_nowait((generation, list(candidates), end))

    def server_reported(self, report: IceServerReport) -> None:
        self.told.put_nowait(("server", report))

    def pair_selected(self, generation: int, pair: CandidatePair) -> None:
        self.told.put_nowait(("pair", (generation, pair)))

    def heard(self, answered: bool) -> None:
        self.told.put_nowait(("heard", answered))

    def ponged(self, nonce: int) -> None:
        self.told.put_nowait(("pong", nonce))

    def path_lost(self, reason: str) -> None:
        self.told.put_nowait(("path lost", reason))


@pytest.fixture
async def ends() -> AsyncIterator[tuple[End, End]]:
    config = MeshConfig(send_buffer=64 * 1024)
    a, b = End(config), End(config)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(b.connection.close)
        stack.push_async_callback(a.connection.close)
        yield a, b


async def connect(a: End, b: End) -> None:
    answer = await b.connection.accept_offer(0, await a.connection.create_offer(0))
    await a.connection.accept_answer(0, answer)
    await a.next("opened")
    await b.next("opened")


async def test_frames_go_both_ways_in_order(ends: tuple[End, End]) -> None:
    a, b = ends
    await connect(a, b)
    frames = [bytes([n]) * (n * 300 + 1) for n in range(100)]
    for frame in frames:
        a.connection.send_frame(frame)
        b.connection.send_frame(frame)
    assert [await b.next("frame") for _ in frames] == frames
    assert [await a.next("frame") for _ in frames] == frames


async def test_the_largest_frame_fits(ends: tuple[End, End]) -> None:
    a, b = ends
    await connect(a, b)
    a.connection.send_frame(b"x" * 65_536)
    assert len(await b.next("frame")) == 65_536


async def test_the_buffer_is_told_when_it_has_room_again(ends: tuple[End, End]) -> None:
    a, b = ends
    await connect(a, b)
    for _ in range(20):
        a.connection.send_frame(b"x" * 10_000)
    assert a.connection.buffered_amount > 64 * 1024
    await a.next("low")
    assert a.connection.buffered_amount <= 32 * 1024


async def test_closing_is_noticed_at_once_on_the_other_side_and_told_once(
    ends: tuple[End, End],
) -> None:
    a, b = ends
    await connect(a, b)
    await a.connection.close()
    await a.connection.close()
    assert await b.next("lost")
    await b.connection.close()
    assert [kind for kind, _ in left(b) if kind == "lost"] == []
    assert [kind for kind, _ in left(a) if kind == "lost"] == []
    a.connection.send_frame(b"dropped")


def left(end: End) -> list[tuple[str, Any]]:
    return [end.told.get_nowait() for _ in range(end.told.qsize())]


async def test_the_ice_states_are_those_of_the_standard(ends: tuple[End, End]) -> None:
    a, b = ends
    await connect(a, b)
    await a.connection.close()
    await b.next("lost")


@pytest.mark.parametrize(
    ("options", "lossy"),
    [
        ({}, False),
        ({"ordered": False}, False),
        ({"max_retransmits": 0}, True),
        ({"ordered": False, "max_packet_life_time": 100}, True),
    ],
)
async def test_plain_channels_carry_their_options(
    ends: tuple[End, End], options: dict[str, Any], lossy: bool
) -> None:
    a, b = ends
    await connect(a, b)
    chosen = {"ordered": True, "max_retransmits": None, "max_packet_life_time": None} | options
    here = a.connection.open_channel("plain", **chosen)
    there: RawChannel = await b.next("channel")
    assert (there.label, here.lossy, there.lossy) == ("plain", lossy, lossy)
    raw = there._channel  # type: ignore[attr-defined]
    assert {
        "ordered": raw.ordered,
        "max_retransmits": raw.maxRetransmits,
        "max_packet_life_time": raw.maxPacketLifeTime,
    } == chosen


async def offer_of(end: End) -> str:
    return await end.connection.create_offer(0)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("a=setup:actpass", "a=setup:nonsense"),
        ("a=setup:actpass", "a=nothing"),
        ("m=application", "m=application 9 9 9\r\nm=application"),
        ("a=sctp-port:5000", "a=sctp-port:five"),
        ("m=application", "m=audio 9 UDP/TLS/RTP/SAVPF 0\r\nm=application"),
        ("a=candidate:", "a=candidate:x "),
    ],
)
async def test_an_offer_that_does_not_parse_is_the_other_sides_fault(
    ends: tuple[End, End], old: str, new: str
) -> None:
    a, b = ends
    sdp = await offer_of(a)
    assert old in sdp
    with pytest.raises(ProtocolError) as caught:
        await b.connection.accept_offer(0, sdp.replace(old, new, 1))
    assert (caught.value.code, caught.value.field) == ("bad_sdp", "$.sdp")


async def test_an_answer_to_nothing_is_refused(ends: tuple[End, End]) -> None:
    a, b = ends
    answer = await b.connection.accept_offer(0, await offer_of(a))
    c = End(MeshConfig())
    try:
        with pytest.raises(ConnectionFailed, match="does not fit the state"):
            await c.connection.accept_answer(0, answer)
    finally:
        await c.connection.close()


async def test_candidates_may_come_separately_and_bad_ones_cost_nothing(
    ends: tuple[End, End],
) -> None:
    a, b = ends
    offer = await offer_of(a)
    lines = offer.splitlines(keepends=True)
    bare = "".join(line for line in lines if not line.startswith(("a=candidate", "a=end-of")))
    mid = next(line for line in lines if line.startswith("a=mid:")).strip().removeprefix("a=mid:")
    answer = await b.connection.accept_offer(0, bare)
    await a.connection.accept_answer(0, answer)
    candidates = [
        (line.strip().removeprefix("a="), mid, 0) for line in lines if "candidate:" in line
    ]
    with pytest.raises(ProtocolError, match=r"1 of .* can't be used") as caught:
        await b.connection.add_candidates(0, [("nonsense", mid, 0), *candidates], True)
    assert caught.value.code == "bad_candidate"
    await a.next("opened")
    await b.next("opened")


async def test_a_connection_that_never_got_anywhere_closes_clean(ends: tuple[End, End]) -> None:
    a, b = ends
    await offer_of(a)
    closing = asyncio.create_task(b.connection.close())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing])


@pytest.mark.parametrize("closing_steps", [0, 1, 2, 5])
async def test_nothing_is_left_of_one_that_is_given_up_at_any_step(closing_steps: int) -> None:
    """Neither the offer nor the closing is let finish: `no_leaks` looks at what stays open."""
    for steps in range(25):
        end = End(MeshConfig())
        offering = asyncio.create_task(end.connection.create_offer(0))
        for _ in range(steps):
            await asyncio.sleep(0)
        offering.cancel()
        closing = asyncio.create_task(end.connection.close())
        for _ in range(closing_steps):
            await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait([offering, closing])
        await end.connection.close()


async def test_an_ice_server_that_can_not_be_used_is_a_wrong_setting() -> None:
    with pytest.raises(ConfigError, match="stun:"):
        connection_factory(MeshConfig(ice_servers=(IceServer(urls="stun:"),)))
