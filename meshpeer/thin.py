"""TCP connections that carry few and small messages, as signalling does.

When such a message is lost there is nothing behind it that would show it, so only TCP's timer sends
it again, after twice as long each time: on a line that loses every fifth packet an offer may take
ten seconds. Linux can be told to keep the wait as it is (tcp(7), thin streams).
"""

from __future__ import annotations

import asyncio
import socket
import sys
from contextlib import suppress

__all__ = ["keep_waits_short"]

_TCP_THIN_LINEAR_TIMEOUTS = 16
"""linux/tcp.h; Python has no name for it."""


def keep_waits_short(transport: asyncio.BaseTransport) -> None:
    """Let a connection's first retransmissions follow each other without growing waits.

    Elsewhere than on Linux, and where the system does not let it, nothing changes.
    """
    sock = transport.get_extra_info("socket")
    if sys.platform == "linux" and sock is not None:
        with suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, _TCP_THIN_LINEAR_TIMEOUTS, 1)
