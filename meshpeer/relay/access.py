"""Who may join: the contract for programs that embed the relay, and signed tokens.

PyJWT is imported when the first token is made or looked at: a relay that is open needs none.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from meshpeer.config import RelayConfig
from meshpeer.core.rooms import Grant

__all__ = ["Authenticator", "JoinRequest", "JoinTokens", "make_join_token"]


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinRequest:
    """Somebody wants a seat. Asked at every join, those that come back to their seat as well."""

    room: str
    peer_id: str
    name: str | None
    join_token: str | None = field(repr=False)
    address: str
    """Where it comes from: an IP address."""
    origin: str | None
    """The page that it is, where it is a browser (RFC 6454)."""


class Authenticator(Protocol):
    """Decides who may join. Give one to `Relay`."""

    async def authenticate(self, request: JoinRequest) -> Grant:
        """Let it in, or raise `Unauthorized` or `Forbidden`, whose text the client is told.

        Is given ``RelayConfig.join_timeout`` and cancelled then, or when the socket ends. Another
        exception is logged, and the client told to come back later.
        """
        ...


class JoinTokens:
    """Takes tokens that `make_join_token` made (JWT, RFC 7519)."""

    def __init__(self, config: RelayConfig) -> None:
        raise NotImplementedError

    async def authenticate(self, request: JoinRequest) -> Grant:
        """See `Authenticator.authenticate`."""
        raise NotImplementedError


def make_join_token(
    *,
    secret: str | None = None,
    private_key: str | None = None,
    subject: str,
    room: str = "*",
    name: str | None = None,
    lifetime: float = 3600.0,
) -> str:
    """A token that lets its bearer into the rooms that match ``room``, for ``lifetime`` seconds."""
    raise NotImplementedError
