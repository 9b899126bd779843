"""Who may join: the contract for programs that embed the relay, and signed tokens.

PyJWT is imported when it is needed: a relay that is open needs none.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Any, Final, Protocol

import msgspec
from msgspec import Meta, Struct

from meshpeer.config import RelayConfig
from meshpeer.core.messages import MAX_JOIN_TOKEN, DisplayName, PeerId, Room
from meshpeer.core.rooms import Grant
from meshpeer.errors import ConfigError, Forbidden, Unauthorized

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey, Ed448PublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

    _PublicKey = Ed25519PublicKey | Ed448PublicKey
    _PrivateKey = Ed25519PrivateKey | Ed448PrivateKey

__all__ = ["Authenticator", "JoinRequest", "JoinTokens", "make_join_token"]

_LEEWAY: Final = 5.0
"""Seconds that the clocks of who makes tokens and of the relay may differ."""
_LONGEST: Final = 10 * 366 * 86400.0
_REQUIRED: Final = ("sub", "exp")


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


class _Claims(Struct, frozen=True):
    """What a join token says (RFC 7519), besides its times."""

    sub: PeerId
    """Who it is."""
    room: Annotated[str, Meta(min_length=1, max_length=128)] = "*"
    """The rooms that it is for: a name, or a pattern with ``*``, ``?`` and ``[...]``."""
    name: DisplayName | None = None
    """The display name that it has there."""
    peer_id: PeerId | None = None
    """The only peer id that it may have there."""


class JoinTokens:
    """Takes tokens that `make_join_token` made (JWT, RFC 7519): signed with
    ``RelayConfig.join_secret`` (HS256) or the key of ``join_public_key`` (EdDSA), and with nothing
    else.

    Raises `ConfigError` when the config has neither, or the key is none.
    """

    def __init__(self, config: RelayConfig) -> None:
        # Now, and not at the first join, which would be a tenth of a second late.
        import jwt

        self._jwt = jwt
        self._key: str | _PublicKey
        if config.join_secret is not None:
            self._algorithm, self._key = "HS256", config.join_secret
        elif config.join_public_key is not None:
            self._algorithm, self._key = "EdDSA", _public_key(config.join_public_key)
        else:
            raise ConfigError(
                "JoinTokens needs RelayConfig.join_secret or RelayConfig.join_public_key"
            )

    async def authenticate(self, request: JoinRequest) -> Grant:
        """See `Authenticator.authenticate`."""
        if request.join_token is None:
            raise Unauthorized("this relay takes only who has a join token, and none was given")
        claims = self._claims(request.join_token)
        if not fnmatchcase(request.room, claims.room):
            raise Forbidden("the join token is for other rooms", field="$.room")
        if claims.peer_id not in (None, request.peer_id):
            raise Forbidden("the join token is for another peer id", field="$.peer_id")
        return Grant(subject=claims.sub, name=claims.name, peer_id=claims.peer_id)

    def _claims(self, token: str) -> _Claims:
        jwt = self._jwt
        try:
            claims = jwt.decode(
                token,
                self._key,
                algorithms=[self._algorithm],
                leeway=_LEEWAY,
                options={"require": list(_REQUIRED)},
            )
            # In JSON these are numbers; the library takes texts with digits in them as well.
            if any(isinstance(claims.get(time), str) for time in ("exp", "nbf", "iat")):
                raise _refusal("malformed")
            # Encoded first: JSON can have halves of characters, which nothing here can write.
            return msgspec.json.decode(msgspec.json.encode(claims), type=_Claims)
        # What it says of the token is for its maker, who has it: not for whoever forged it.
        except jwt.ExpiredSignatureError:
            raise _refusal("expired") from None
        except jwt.ImmatureSignatureError:
            raise _refusal("not valid yet") from None
        except (jwt.InvalidSignatureError, jwt.InvalidAlgorithmError):
            raise _refusal("not signed by whom this relay trusts") from None
        except jwt.InvalidAudienceError:
            raise _refusal("for somebody else (it has an audience)") from None
        except jwt.MissingRequiredClaimError as exc:
            raise _refusal(f"without {exc.claim!r}, which it must have") from None
        except (jwt.InvalidTokenError, jwt.InvalidKeyError, ValueError):
            raise _refusal("malformed") from None


def make_join_token(
    *,
    secret: str | None = None,
    private_key: str | None = None,
    subject: str,
    room: str = "*",
    name: str | None = None,
    peer_id: str | None = None,
    lifetime: float = 3600.0,
) -> str:
    """A token that lets its bearer into the rooms that match ``room``, for ``lifetime`` seconds.

    Signed with ``secret`` (``RelayConfig.join_secret``) or with ``private_key`` (Ed25519 or Ed448,
    PEM, of which the relay has the public one). ``room`` is a name, or a pattern in which ``*`` is
    any text, ``?`` any character and ``[ab]`` one of some. ``name`` is the display name that it
    has, ``peer_id`` the only peer id that it may have; None: what it chooses.

    Raises `ConfigError`, which names the argument.
    """
    import jwt

    claims: dict[str, Any] = {
        "sub": _argument("subject", subject, PeerId),
        "room": _argument("room", room, Room),
    }
    if name is not None:
        claims["name"] = _argument("name", name, DisplayName)
    if peer_id is not None:
        claims["peer_id"] = _argument("peer_id", peer_id, PeerId)
    seconds: object = lifetime  # a caller without a type checker passes anything
    if not isinstance(seconds, int | float) or not 1 <= seconds <= _LONGEST:
        raise ConfigError(
            f"lifetime must be a number of seconds from 1 to {_LONGEST:.0f}, not {lifetime!r}"
        )
    now = time.time()
    claims |= {"iat": math.floor(now), "exp": math.ceil(now + seconds)}
    both = "a join token is signed with secret or with private_key: give one of them"
    if secret is None:
        if private_key is None:
            raise ConfigError(both)
        token = jwt.encode(claims, _private_key(private_key), algorithm="EdDSA")
    else:
        if private_key is not None:
            raise ConfigError(both)
        # RFC 7518, section 3.2: as long as the hash.
        if len(secret.encode()) < 32:
            raise ConfigError("secret must be of 32 bytes or more")
        token = jwt.encode(claims, secret, algorithm="HS256")
    if len(token) > MAX_JOIN_TOKEN:
        raise ConfigError(
            f"the token has {len(token)} characters, and a relay takes {MAX_JOIN_TOKEN}: take "
            "shorter names"
        )
    return token


def _refusal(why: str) -> Unauthorized:
    return Unauthorized(f"the join token is {why}")


def _argument(name: str, value: str, kind: Any) -> str:
    try:
        return str(msgspec.json.decode(msgspec.json.encode(value), type=kind))
    except (ValueError, TypeError):
        raise ConfigError(
            f"{name} must be of 1 to 128 characters, without control characters and without white "
            f"space around it, not {value!r}"
        ) from None


def _public_key(pem: str) -> _PublicKey:
    from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    key = _key("RelayConfig.join_public_key", "a public", pem)
    if not isinstance(key, Ed25519PublicKey | Ed448PublicKey):
        raise ConfigError(
            "RelayConfig.join_public_key is a private key, which the relay must not have: give it "
            "the public one"
        )
    return key


def _private_key(pem: str) -> _PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = _key("private_key", "a private", pem)
    if not isinstance(key, Ed25519PrivateKey | Ed448PrivateKey):
        raise ConfigError("private_key is a public key; tokens are signed with the private one")
    return key


def _key(name: str, kind: str, pem: str) -> _PublicKey | _PrivateKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from jwt import InvalidKeyError
    from jwt.algorithms import OKPAlgorithm

    try:
        return OKPAlgorithm().prepare_key(pem.strip())
    except (ValueError, TypeError, InvalidKeyError, UnsupportedAlgorithm):
        # Without what was given, which may be a secret.
        raise ConfigError(
            f"{name} must be {kind} key for EdDSA (Ed25519 or Ed448) in PEM, without a password"
        ) from None
