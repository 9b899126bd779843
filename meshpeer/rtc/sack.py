"""SCTP's acknowledgements, one for every second packet instead of one for each.

aiortc answers every packet of data with a SACK, and each costs both sides about as much as another
packet does. RFC 9260, section 6.2, asks for one for every second packet, and for one within 200 ms
for a packet that no other follows. Here that is `DELAY`, long enough for an answer to go first. A
gap or a duplicate is told at once, so that what was lost is sent again as soon as before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from aiortc import RTCSctpTransport

__all__ = ["DELAY", "MOST", "DelayedSacks"]

MOST = 2
"""Packets of data that one SACK acknowledges at most. With more, aiortc's limit of four packets
sent for each SACK (RFC 9260, section 6.1, Max.Burst) would hold the sender up."""
DELAY = 0.002
"""Seconds that a packet waits for the next one."""


class DelayedSacks:
    """Sends the SACKs of one association. `close` ends it."""

    def __init__(self, sctp: RTCSctpTransport) -> None:
        self._sctp = sctp
        self._waiting = 0
        """Packets that are not acknowledged."""
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        setattr(sctp, "_send_sack", self._wanted)  # noqa: B010 - aiortc has no other way to it

    async def _wanted(self) -> None:
        """Stands for `RTCSctpTransport._send_sack`, which is called for each packet of data."""
        sctp = self._sctp
        self._waiting += 1
        at_once = self._closed or sctp._sack_misordered or sctp._sack_duplicates
        if at_once or self._waiting >= MOST:
            await self._send()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(DELAY, self._due)

    def _due(self) -> None:
        # It may have been set for a packet that is acknowledged: then this one has it sooner.
        self._timer = None
        if self._waiting:
            _run(self._send())

    async def _send(self) -> None:
        self._waiting = 0
        await RTCSctpTransport._send_sack(self._sctp)

    def close(self) -> None:
        """No packet waits any more: what still comes while SCTP ends is acknowledged at once."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()


def _run(sending: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine that sends, which in aiortc never waits for anything."""
    try:
        sending.send(None)
    except StopIteration:
        return
    sending.close()
    raise AssertionError("sending a SACK waits for something")
