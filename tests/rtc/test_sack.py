"""SACKs for bursts, on an association that only counts what it sends."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiortc import RTCSctpTransport

from meshpeer.rtc.sack import MOST, SackBursts


class Association:
    """What `SackBursts` sees of an RTCSctpTransport."""

    def __init__(self) -> None:
        self._sack_misordered: set[int] = set()
        self._sack_duplicates: list[int] = []
        self._send_sack: Any
        self.sent = 0

    async def packets(self, count: int) -> None:
        for _ in range(count):
            await self._send_sack()


@pytest.fixture
def sctp(monkeypatch: pytest.MonkeyPatch) -> Association:
    async def send(self: Association) -> None:
        self.sent += 1

    monkeypatch.setattr(RTCSctpTransport, "_send_sack", send)
    association = Association()
    SackBursts(association)  # type: ignore[arg-type]
    return association


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_what_arrives_together_is_acknowledged_once(sctp: Association) -> None:
    await sctp.packets(4 * MOST + 1)
    assert sctp.sent == 4
    await turns(3)
    assert sctp.sent == 5
    await turns(10)
    assert sctp.sent == 5


async def test_a_single_packet_is_acknowledged_within_a_few_turns(sctp: Association) -> None:
    for number in range(5):
        await sctp.packets(1)
        await turns(3)
        assert sctp.sent == number + 1


async def test_a_stream_without_a_pause_is_acknowledged_all_the_same(sctp: Association) -> None:
    for _ in range(10 * MOST):
        await sctp.packets(1)
        await asyncio.sleep(0)
    assert 10 <= sctp.sent < 10 * MOST


@pytest.mark.parametrize("sign", ["_sack_misordered", "_sack_duplicates"])
async def test_a_gap_or_a_duplicate_is_told_at_once(sctp: Association, sign: str) -> None:
    await sctp.packets(1)
    setattr(sctp, sign, [7])
    await sctp.packets(1)
    assert sctp.sent == 1
    setattr(sctp, sign, [])
    await turns(5)
    assert sctp.sent == 1


async def test_after_the_end_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    async def send(self: Association) -> None:
        raise AssertionError("sent after the end")

    monkeypatch.setattr(RTCSctpTransport, "_send_sack", send)
    association = Association()
    bursts = SackBursts(association)  # type: ignore[arg-type]
    await association.packets(1)
    bursts.close()
    await turns(5)
