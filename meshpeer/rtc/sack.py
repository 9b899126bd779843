"""SCTP's acknowledgements, one for every second packet instead of one for each.

aiortc answers every packet of data with a SACK, and each costs the sender about as much as sending
a packet does. RFC 9260, section 6.2, asks for one for every second packet, and that is what is sent
here, without its wait of up to 200 ms for the second: a packet that no other follows within a turn
or two of the event loop is acknowledged alone. A gap or a duplicate is told at once, so that what
was lost is sent again as soon as before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from aiortc import RTCSctpTransport

__all__ = ["MOST", "SackBursts"]

MOST = 2
"""Packets of data that one SACK acknowledges at most. With more, aiortc's limit of four packets sent
for each SACK that comes (RFC 9260, section 6.1, Max.Burst) holds the sender up."""


class SackBursts:
    """Sends the SACKs of one association. `close` ends it."""

    def __init__(self, sctp: RTCSctpTransport) -> None:
        self._sctp = sctp
        self._waiting = 0
        """Packets that are not acknowledged."""
        self._seen = 0
        """How many of them there were a turn before."""
        self._turn: asyncio.Handle | None = None
        setattr(sctp, "_send_sack", self._wanted)  # noqa: B010 - aiortc has no other way to it

    async def _wanted(self) -> None:
        """Stands for `RTCSctpTransport._send_sack`, which is called for each packet of data."""
        sctp = self._sctp
        self._waiting += 1
        if self._waiting >= MOST or sctp._sack_misordered or sctp._sack_duplicates:
            await self._send()
        elif self._turn is None:
            self._turn = asyncio.get_running_loop().call_soon(self._look)

    def _look(self) -> None:
        self._turn = None
        if not self._waiting:
            return
        if self._waiting > self._seen:
            self._seen = self._waiting
            self._turn = asyncio.get_running_loop().call_soon(self._look)
            return
        _run(self._send())

    async def _send(self) -> None:
        self._waiting = self._seen = 0
        await RTCSctpTransport._send_sack(self._sctp)

    def close(self) -> None:
        """Send no more by itself."""
        if self._turn is not None:
            self._turn.cancel()


def _run(sending: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine that sends, which in aiortc never waits for anything."""
    try:
        sending.send(None)
    except StopIteration:
        return
    sending.close()
    raise AssertionError("sending a SACK waits for something")
