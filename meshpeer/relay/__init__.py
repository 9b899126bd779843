"""The server that peers meet at. Imports neither aiortc nor av: a relay host needs no WebRTC."""

from __future__ import annotations

from meshpeer.core.rooms import Grant
from meshpeer.relay.access import Authenticator, JoinRequest, JoinTokens, make_join_token
from meshpeer.relay.server import Relay

__all__ = ["Authenticator", "Grant", "JoinRequest", "JoinTokens", "Relay", "make_join_token"]
