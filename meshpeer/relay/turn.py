"""ICE servers for members, with TURN credentials that expire.

The scheme is that of draft-uberti-behave-turn-rest-00, section 2.2: what coturn calls
``use-auth-secret``. The TURN server needs no list of users, only the secret.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import math
import time
from collections.abc import Callable
from typing import Final
from urllib.parse import quote

import msgspec

from meshpeer.config import IceServer, RelayConfig
from meshpeer.core.messages import IceServerInfo, IceServers
from meshpeer.errors import ConfigError

__all__ = ["ice_servers_for", "turn_credentials"]

_PERIODS: Final = 4
"""Parts of a lifetime: who asks again within one gets the same credentials. Every return to the
relay asks again, and other ones cost an ICE restart of every link over TURN."""
_MAX_USER: Final = 128
"""Characters of a name within a username, which STUN limits to 508 bytes (RFC 8489, 14.3)."""


def turn_credentials(secret: str, user: str, expires_at: float) -> tuple[str, str]:
    """A username and a password that are good until ``expires_at`` (Unix time).

    ``user`` is for the TURN server's log only.
    """
    # What comes first up to a colon is the time: no name may have one.
    name = quote(user, safe="")
    if len(name) > _MAX_USER:
        name = hashlib.sha256(user.encode()).hexdigest()
    username = f"{math.ceil(expires_at)}:{name}"
    digest = hmac.new(secret.encode(), username.encode(), hashlib.sha1).digest()
    return username, base64.b64encode(digest).decode()


def ice_servers_for(
    config: RelayConfig, *, wall: Callable[[], float] = time.time
) -> Callable[[str, str | None], IceServers | None]:
    """What each member is told: a function of its peer id and its subject.

    TURN credentials are good for ``RelayConfig.turn_lifetime``, which is their ``expires_in``, and
    up to a quarter longer: until the end of the quarter, as Unix time has them, in which that
    passes. So they depend on nothing but the time, and a relay that was restarted gives the same.
    ``wall`` is Unix time. Raises `ConfigError` for servers that no message can carry.
    """
    fixed = [_info(server) for server in config.ice_servers]
    urls = list(config.turn_urls)
    secret, lifetime = config.turn_secret, config.turn_lifetime
    period = lifetime / _PERIODS
    always = IceServers(servers=fixed) if fixed else None

    def servers(peer_id: str, subject: str | None) -> IceServers | None:  # noqa: ARG001
        if secret is None:
            return always
        expires_at = math.ceil((wall() + lifetime) / period) * period
        username, password = turn_credentials(secret, peer_id, expires_at)
        turn = IceServerInfo(urls=urls, username=username, credential=password)
        return IceServers(servers=[*fixed, turn], expires_in=lifetime)

    _check(servers("peer", None))
    return servers


def _info(server: IceServer) -> IceServerInfo:
    urls = [server.urls] if isinstance(server.urls, str) else list(server.urls)
    return IceServerInfo(urls=urls, username=server.username, credential=server.credential)


def _check(servers: IceServers | None) -> None:
    try:
        msgspec.convert(msgspec.to_builtins(servers), IceServers | None)
    except msgspec.ValidationError as exc:
        # The text names the place, and what is wrong with it without its value.
        raise ConfigError(
            f"RelayConfig.ice_servers and RelayConfig.turn_urls must be addresses of 256 "
            f"characters at most, and credentials of 512: {exc}"
        ) from None
