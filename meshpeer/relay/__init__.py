"""The server that peers meet at. Imports neither aiortc nor av: a relay host needs no WebRTC."""

from __future__ import annotations

from meshpeer.relay.server import Relay

__all__ = ["Relay"]
