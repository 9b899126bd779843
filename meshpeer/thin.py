"""TCP connections that carry few and small messages, as signalling does.

When such a message is lost there is nothing behind it that would show it, so only TCP's timer sends
it again, after twice as long each time: on a line that loses every fifth packet an offer may take
ten seconds. Linux can be told to keep the wait as it is (tcp(7), thin streams).

And where two messages follow each other, the second one waits until the first is acknowledged (RFC
9293, section 3.7.4), for which the other end takes its time: 40 ms. Every system can be told not
to.
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
    """Let a connection send at once, and its first retransmissions follow each other without
    growing waits.

    Elsewhere than on Linux the latter is left out; where the system does not let it, nothing
    changes.
    """
    sock = transport.get_extra_info("socket")
    if sock is None:
        return
    with suppress(OSError):
        # By itself asyncio does so for connections that it has accepted or made.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if sys.platform == "linux":
        with suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, _TCP_THIN_LINEAR_TIMEOUTS, 1)
