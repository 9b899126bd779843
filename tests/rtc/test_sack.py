"""Delayed SACKs, on an association that only counts what it sends."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiortc import RTCSctpTransport

from meshpeer.rtc.sack import DELAY, MOST, DelayedSacks
from tests.virtual import virtual


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


@pytest.fixture(autouse=True)
def _counted(monkeypatch: pytest.MonkeyPatch) -> None:
    async def send(self: Association) -> None:
        self.sent += 1

    monkeypatch.setattr(RTCSctpTransport, "_send_sack", send)


def association() -> Association:
    sctp = Association()
    DelayedSacks(sctp)  # type: ignore[arg-type]
    return sctp


@virtual
async def test_every_second_packet_is_acknowledged_at_once() -> None:
    sctp = association()
    await sctp.packets(4 * MOST + 1)
    assert sctp.sent == 4
    await asyncio.sleep(DELAY)
    assert sctp.sent == 5
    await asyncio.sleep(10)
    assert sctp.sent == 5


@virtual
async def test_a_single_packet_waits_for_the_next_only_so_long() -> None:
    sctp = association()
    for number in range(5):
        await sctp.packets(1)
        assert sctp.sent == number
        await asyncio.sleep(DELAY)
        assert sctp.sent == number + 1


@pytest.mark.parametrize("sign", ["_sack_misordered", "_sack_duplicates"])
def test_a_gap_or_a_duplicate_is_told_at_once(sign: str) -> None:
    @virtual
    async def run() -> None:
        sctp = association()
        setattr(sctp, sign, [7])
        await sctp.packets(1)
        assert sctp.sent == 1
        setattr(sctp, sign, [])
        await asyncio.sleep(10)
        assert sctp.sent == 1

    run()


@virtual
async def test_after_the_end_nothing_waits() -> None:
    sctp = Association()
    sacks = DelayedSacks(sctp)  # type: ignore[arg-type]
    await sctp.packets(1)
    sacks.close()
    await asyncio.sleep(10)
    assert sctp.sent == 0
    await sctp.packets(1)
    assert sctp.sent == 1, "and no timer is set that would outlive it"
