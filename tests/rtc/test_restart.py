"""ICE restarts on real aiortc: the path changes, and what goes over it never notices."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from meshpeer.config import MeshConfig
from meshpeer.core.link import LinkState
from meshpeer.errors import ConnectionFailed, ProtocolError
from meshpeer.manager import PeerManager
from meshpeer.signaling.memory import MemoryHub
from tests.rtc.test_connection import End, connect, left


@pytest.fixture
async def ends() -> AsyncIterator[tuple[End, End]]:
    a, b = End(MeshConfig()), End(MeshConfig())
    async with AsyncExitStack() as stack:
        stack.push_async_callback(b.connection.close)
        stack.push_async_callback(a.connection.close)
        await connect(a, b)
        left(a), left(b)
        yield a, b


def cut(*ends: End) -> None:
    """What goes over the sockets that are there now is lost, for ever."""
    for end in ends:
        for generation in end.connection._ice._generations:
            for sock in generation._sockets:
                sock.datagram_received = lambda data, addr: None  # type: ignore[method-assign]


async def restart(a: End, b: End, generation: int) -> None:
    answer = await b.connection.accept_offer(
        generation, await a.connection.create_offer(generation)
    )
    await a.connection.accept_answer(generation, answer)
    for end in (a, b):
        await taken_over(end, generation)


async def taken_over(end: End, generation: int) -> None:
    while (await end.next("pair"))[0] != generation:
        pass  # the pair of an earlier one, which became known better


async def frames(end: End, count: int) -> list[bytes]:
    return [await end.next("frame") for _ in range(count)]


def numbered(first: int, last: int) -> list[bytes]:
    return [n.to_bytes(4, "big") for n in range(first, last)]


@pytest.mark.parametrize("starter", [0, 1])
async def test_messages_survive_a_path_that_died(ends: tuple[End, End], starter: int) -> None:
    a, b = ends
    wanted = numbered(0, 300)
    for frame in wanted[:100]:
        a.connection.send_frame(frame)
        b.connection.send_frame(frame)
    cut(a, b)
    for frame in wanted[100:200]:
        a.connection.send_frame(frame)
        b.connection.send_frame(frame)
    first, second = (a, b) if starter == 0 else (b, a)
    # What else was told meanwhile is wanted as well.
    answer = await second.connection.accept_offer(1, await first.connection.create_offer(1))
    await first.connection.accept_answer(1, answer)
    for frame in wanted[200:]:
        a.connection.send_frame(frame)
        b.connection.send_frame(frame)
    assert await frames(a, 300) == wanted
    assert await frames(b, 300) == wanted


async def test_the_starter_may_change_and_ten_in_a_row_leave_two_generations(
    ends: tuple[End, End],
) -> None:
    a, b = ends
    for generation in range(1, 11):
        first, second = (a, b) if generation % 2 else (b, a)
        await restart(first, second, generation)
        a.connection.send_frame(generation.to_bytes(4, "big"))
        assert await frames(b, 1) == numbered(generation, generation + 1)
        b.connection.send_frame(generation.to_bytes(4, "big"))
        assert await frames(a, 1) == numbered(generation, generation + 1)
        assert [g.number for g in a.connection._ice._generations] == [generation]
    assert len(a.connection._ice._retiring) <= 10


async def test_both_at_once_is_resolved_by_who_gives_way(ends: tuple[End, End]) -> None:
    a, b = ends
    offer = await a.connection.create_offer(1)
    await b.connection.create_offer(1)
    answer = await b.connection.accept_offer(1, offer)  # b gives way
    await a.connection.accept_answer(1, answer)
    assert (await a.next("pair"))[0] == 1
    assert (await b.next("pair"))[0] == 1
    a.connection.send_frame(b"through")
    assert await frames(b, 1) == [b"through"]


async def test_one_that_is_not_answered_changes_nothing_and_the_next_works(
    ends: tuple[End, End],
) -> None:
    a, b = ends
    await a.connection.create_offer(1)
    a.connection.send_frame(b"still there")
    assert await frames(b, 1) == [b"still there"]
    await b.connection.create_offer(2)
    await restart(a, b, 3)


async def test_an_answer_of_another_generation_is_ignored(ends: tuple[End, End]) -> None:
    a, b = ends
    old = await b.connection.accept_offer(1, await a.connection.create_offer(1))
    offer = await a.connection.create_offer(2)
    await a.connection.accept_answer(1, old)
    await a.connection.accept_answer(2, await b.connection.accept_offer(2, offer))
    assert (await a.next("pair"))[0] == 2


async def test_unchanged_credentials_are_refused_and_cost_nothing(ends: tuple[End, End]) -> None:
    a, b = ends
    first = await a.connection.create_offer(1)
    remote = b.connection._remote
    assert remote is not None
    assert remote.ice is not None
    same = re.sub(r"a=ice-ufrag:.*?\r\n", f"a=ice-ufrag:{remote.ice.usernameFragment}\r\n", first)
    same = re.sub(r"a=ice-pwd:.*?\r\n", f"a=ice-pwd:{remote.ice.password}\r\n", same)
    with pytest.raises(ProtocolError) as caught:
        await b.connection.accept_offer(1, same)
    assert caught.value.code == "unchanged_credentials"
    a.connection.send_frame(b"still there")
    assert await frames(b, 1) == [b"still there"]
    await restart(a, b, 2)


async def test_another_fingerprint_is_refused(ends: tuple[End, End]) -> None:
    a, b = ends
    offer = await a.connection.create_offer(1)
    forged = re.sub(r"(a=fingerprint:sha-256 )..", r"\g<1>00", offer, count=1)
    forged = forged if forged != offer else offer.replace("sha-256 00", "sha-256 01", 1)
    with pytest.raises(ProtocolError) as caught:
        await b.connection.accept_offer(1, forged)
    assert caught.value.code == "changed_fingerprint"


async def test_candidates_of_another_ufrag_or_generation_are_ignored(
    ends: tuple[End, End],
) -> None:
    _, b = ends
    line = "candidate:1 1 udp 2130706431 192.0.2.1 9999 typ host"
    before = len(b.connection._ice.newest.remote_candidates)
    await b.connection.add_candidates(0, [(f"{line} ufrag nobody", "0", 0)], False)
    await b.connection.add_candidates(7, [(line, "0", 0)], True)
    assert len(b.connection._ice.newest.remote_candidates) == before
    named = b.connection._ice.newest.remote_username
    await b.connection.add_candidates(0, [(f"{line} ufrag {named}", "0", 0)], False)
    assert len(b.connection._ice.newest.remote_candidates) == before + 1


async def test_a_thousand_candidates_are_bounded(ends: tuple[End, End]) -> None:
    _, b = ends
    newest = b.connection._ice.newest
    many = [
        (f"candidate:{n} 1 udp 2130706431 192.0.2.1 {n} typ host", "0", 0)
        for n in range(1000, 2000)
    ]
    await b.connection.add_candidates(0, many, False)
    assert len(newest.remote_candidates) <= 200
    assert len(newest._check_list) <= 100


async def test_a_ping_is_answered_and_both_hear(ends: tuple[End, End]) -> None:
    a, b = ends
    b.connection._ice._told_answered_at = float("-inf")
    a.connection.ping(7)
    assert await a.next("pong") == 7
    assert await b.next("heard") is True


async def test_closing_in_the_middle_of_a_restart_leaves_nothing(ends: tuple[End, End]) -> None:
    a, b = ends
    offer = await a.connection.create_offer(1)
    accepting = asyncio.create_task(b.connection.accept_offer(1, offer))
    await asyncio.sleep(0)
    accepting.cancel()
    await asyncio.wait([accepting])
    await b.connection.close()
    await a.connection.close()


async def test_datagrams_that_are_nothing_cost_nothing(ends: tuple[End, End]) -> None:
    a, b = ends
    generation = b.connection._ice.newest
    pair = generation.selected
    assert pair is not None
    for data in (
        b"",
        b"\x00",
        b"\x16",
        b"\xff" * 40,
        b"\x00\x01\x00\x08" + b"\x21\x12\xa4\x42" * 5,
    ):
        pair.protocol.datagram_received(data, pair.remote_addr)
        pair.protocol.datagram_received(data, ("192.0.2.1", 9))
    a.connection.send_frame(b"still there")
    assert await frames(b, 1) == [b"still there"]


async def test_one_that_is_begun_right_behind_an_answer_has_its_own_credentials(
    ends: tuple[End, End],
) -> None:
    """The operations of a peer run one after another, with nothing in between."""
    a, b = ends
    answer = await b.connection.accept_offer(1, await a.connection.create_offer(1))
    await a.connection.accept_answer(1, answer)
    offer = await a.connection.create_offer(3)
    await a.connection.accept_answer(3, await b.connection.accept_offer(3, offer))
    for end in (a, b):
        await taken_over(end, 3)
    await restart(a, b, 5)


async def test_candidates_right_behind_their_description_are_taken(ends: tuple[End, End]) -> None:
    a, b = ends
    offer = await a.connection.create_offer(1)
    named = next(line for line in offer.splitlines() if "ice-ufrag" in line).partition(":")[2]
    await b.connection.accept_offer(1, offer)
    before = len(b.connection._ice.newest.remote_candidates)
    line = f"candidate:1 1 udp 2130706431 192.0.2.1 9999 typ host ufrag {named}"
    await b.connection.add_candidates(1, [(line, "0", 0)], False)
    assert len(b.connection._ice.newest.remote_candidates) == before + 1


async def test_an_offer_that_can_not_be_answered_does_not_bar_ours(ends: tuple[End, End]) -> None:
    a, b = ends
    offer = await a.connection.create_offer(1)
    without = "".join(
        line
        for line in offer.splitlines(keepends=True)
        if not line.startswith(("a=mid", "a=group"))
    )
    with pytest.raises((ProtocolError, ConnectionFailed)):
        await b.connection.accept_offer(1, without)
    await restart(b, a, 2)


async def test_a_pair_that_is_nominated_while_it_closes_leaves_nothing(
    ends: tuple[End, End],
) -> None:
    a, b = ends
    ice = a.connection._ice
    carrying = ice.newest
    pair = carrying.selected
    assert pair is not None
    newer = ice.restart(1)
    closing = asyncio.ensure_future(a.connection.close())
    while ice.state != "closed":  # noqa: ASYNC110 - the very next step is meant
        await asyncio.sleep(0)
    ice.nominated(newer, pair)
    await closing
    assert not ice._retiring
    await b.connection.close()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (r"a=ice-ufrag:.*?\r\n", "a=ice-ufrag:" + "u" * 300 + "\r\n"),
        (r"a=ice-pwd:.*?\r\n", "a=ice-pwd:short\r\n"),
        (r"a=group:BUNDLE 0", "a=group:BUNDLE x 0"),
        (r"a=max-message-size:\d+", "a=max-message-size:17"),
    ],
)
async def test_odd_descriptions_are_refused_and_cost_nothing(
    ends: tuple[End, End], old: str, new: str
) -> None:
    a, b = ends
    offer = await a.connection.create_offer(1)
    odd = re.sub(old, new, offer, count=1)
    assert odd != offer
    with pytest.raises(ProtocolError) as caught:
        await b.connection.accept_offer(1, odd)
    assert caught.value.code == "bad_sdp"
    await restart(b, a, 2)


async def test_an_address_that_changes_in_the_middle_of_dialling_delays_nothing() -> None:
    """Whatever step it is at: the first connection attempt opens, in its first epoch."""
    for state in (LinkState.OFFERING, LinkState.OFFERED, LinkState.CHECKING):
        async with MemoryHub() as hub:
            a = PeerManager(hub.transport(), room="room", peer_id="a")
            b = PeerManager(hub.transport(), room="room", peer_id="b")
            async with b, a:
                node = a._shell.node
                while node.link("b").state is not state:  # noqa: ASYNC110 - the same
                    await asyncio.sleep(0)
                a._shell.addresses_changed()
                await a.wait_for_peer("b", timeout=6)
                assert a.stats().peers["b"].epoch == 1


async def test_a_flight_of_the_handshake_is_sent_again_until_data_shows_that_it_arrived(
    ends: tuple[End, End], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, _ = ends
    ice = a.connection._ice
    sent: list[bytes] = []
    monkeypatch.setattr(ice.newest, "transmit", sent.append)
    now = asyncio.get_running_loop().time
    ice.handshake_begins()
    for flight in (b"\x16 first", b"\x16 second"):
        await ice._transmit(flight)
        ice._resend(now())
        assert sent[-2:] == [flight, flight]
        ice.packet_received(ice.newest, b"\x16 their answer")
    ice._resend(now() - 1.0)
    assert len(sent) == 4, "a process that is late has more to do than to repeat itself"
    ice.packet_received(ice.newest, b"\x17 data")
    assert ice._resending is None
