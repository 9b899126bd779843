"""Who may join: tokens that are good, forged, stolen or for something else; and an authenticator of
an embedding program, with the relay around it."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import subprocess
import sys
import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from meshpeer.config import RelayConfig
from meshpeer.errors import ConfigError, Forbidden, Unauthorized
from meshpeer.relay import Grant, JoinRequest, JoinTokens, Relay, make_join_token

SECRET = "a secret that only these tests have" * 2
OTHER = "a secret that somebody else has, too" * 2


def pems(key: Any) -> tuple[str, str]:
    """The private key, and the public one."""
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return private.decode(), public.decode()


PRIVATE, PUBLIC = pems(Ed25519PrivateKey.generate())


def request(token: str | None, room: str = "lobby", peer_id: str = "ann") -> JoinRequest:
    return JoinRequest(
        room=room, peer_id=peer_id, name="Ann", join_token=token, address="192.0.2.1", origin=None
    )


async def ask(token: str | None, config: RelayConfig | None = None, **fields: str) -> Grant:
    tokens = JoinTokens(config or RelayConfig(join_secret=SECRET))
    return await tokens.authenticate(request(token, **fields))


def signed(claims: dict[str, Any] | str, *, alg: Any = "HS256", secret: str = SECRET) -> str:
    """A token by hand: whatever it says of itself, it is signed with HMAC and SHA-256."""

    def part(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    body = claims if isinstance(claims, str) else json.dumps(claims)
    head = json.dumps({"alg": alg, "typ": "JWT"})
    text = f"{part(head.encode())}.{part(body.encode())}"
    return f"{text}.{part(hmac.digest(secret.encode(), text.encode(), hashlib.sha256))}"


def claims(**more: Any) -> dict[str, Any]:
    return {"sub": "ann@example.org", "exp": int(time.time()) + 600, **more}


# --- tokens that are good ------------------------------------------------------------------------
@pytest.mark.parametrize("key", [Ed25519PrivateKey, Ed448PrivateKey, None])
async def test_a_token_lets_in_whom_it_names(key: Any) -> None:
    if key is None:
        how: dict[str, Any] = {"secret": SECRET}
        config = RelayConfig(join_secret=SECRET)
    else:
        private, public = pems(key.generate())
        config, how = RelayConfig(join_public_key=public), {"private_key": private}
    token = make_join_token(subject="ann@example.org", name="Ann B.", **how)
    assert await ask(token, config) == Grant(subject="ann@example.org", name="Ann B.")
    token = make_join_token(subject="ann@example.org", **how)
    assert await ask(token, config) == Grant(subject="ann@example.org", name=None)


@pytest.mark.parametrize(
    ("pattern", "rooms", "not_rooms"),
    [
        ("*", ["lobby", "a/b", "*"], []),
        ("lobby", ["lobby"], ["lobby2", "a lobby", "Lobby", "lobby\u00e4"]),
        ("team-*", ["team-", "team-a", "team-a/b"], ["team", "a team-a"]),
        ("?[ab]", ["xa", "xb"], ["xc", "a", "xab"]),
        ("[[]a]", ["[a]"], ["a"]),
    ],
)
async def test_a_token_is_for_its_rooms(
    pattern: str, rooms: list[str], not_rooms: list[str]
) -> None:
    token = make_join_token(secret=SECRET, subject="ann", room=pattern)
    for room in rooms:
        await ask(token, room=room)
    for room in not_rooms:
        with pytest.raises(Forbidden, match="other rooms") as caught:
            await ask(token, room=room)
        assert room not in str(caught.value)


async def test_a_token_may_be_for_one_peer_id() -> None:
    token = make_join_token(secret=SECRET, subject="ann", peer_id="ann-1")
    # Kept to it by `Rooms`, which would rename it otherwise where it is taken.
    assert (await ask(token, peer_id="ann-1")).peer_id == "ann-1"
    with pytest.raises(Forbidden, match="another peer id"):
        await ask(token, peer_id="ann")


async def test_clocks_may_differ_a_little() -> None:
    now = int(time.time())
    await ask(signed(claims(exp=now - 2, iat=now + 3, nbf=now + 3)))
    with pytest.raises(Unauthorized, match="expired"):
        await ask(signed(claims(exp=now - 6)))
    for claim in ("iat", "nbf"):
        with pytest.raises(Unauthorized, match="not valid yet"):
            await ask(signed(claims(**{claim: now + 60})))


# --- tokens that are not -------------------------------------------------------------------------
async def test_without_a_token_nobody_gets_in() -> None:
    with pytest.raises(Unauthorized, match="none was given"):
        await ask(None)


async def test_it_is_not_taken_unsigned_or_signed_otherwise() -> None:
    """RFC 8725, sections 2.1 and 3.1: the algorithm is the relay's choice, not the token's."""
    good = make_join_token(secret=SECRET, subject="ann")
    head, body, signature = good.split(".")
    none = base64.urlsafe_b64encode(b'{"alg":"none","typ":"JWT"}').rstrip(b"=").decode()
    flipped = ("A" if signature[0] != "A" else "B") + signature[1:]
    other_body = signed(claims(sub="eve")).split(".")[1]
    for token in (
        f"{none}.{body}.",
        f"{none}.{body}.{signature}",
        f"{head}.{body}.",
        f"{head}.{body}.{flipped}",
        f"{head}.{other_body}.{signature}",
        signed(claims(), secret=OTHER),
        signed(claims(), alg="none"),
        signed(claims(), alg="None"),
        signed(claims(), alg="HS512"),
        signed(claims(), alg="EdDSA"),
        signed(claims(), alg=["HS256"]),
        signed(claims(), alg=None),
        jwt.encode(claims(), SECRET, algorithm="HS384"),
        make_join_token(private_key=PRIVATE, subject="ann"),
    ):
        with pytest.raises(Unauthorized, match=r"not signed by whom|malformed"):
            await ask(token)
    await ask(good)


async def test_the_public_key_is_no_secret_to_sign_with() -> None:
    """RFC 8725, section 2.1: HMAC with the public key, which everybody may know."""
    config = RelayConfig(join_public_key=PUBLIC)
    for secret in (PUBLIC, PUBLIC.strip()):
        with pytest.raises(Unauthorized, match="not signed by whom"):
            await ask(signed(claims(), secret=secret), config)
        with pytest.raises(Unauthorized, match="not signed by whom"):
            await ask(signed(claims(), secret=secret, alg="EdDSA"), config)
    with pytest.raises(Unauthorized, match="not signed by whom"):
        await ask(
            make_join_token(private_key=pems(Ed25519PrivateKey.generate())[0], subject="ann"),
            config,
        )


@pytest.mark.parametrize("missing", ["sub", "exp"])
async def test_what_it_must_have(missing: str) -> None:
    without = claims()
    del without[missing]
    with pytest.raises(Unauthorized, match=f"without '{missing}'"):
        await ask(signed(without))


@pytest.mark.parametrize(
    "more",
    [
        {"sub": ""},
        {"sub": 7},
        {"sub": "a\nb"},
        {"sub": "x" * 129},
        {"sub": "\ud800"},
        {"room": 7},
        {"room": ""},
        {"room": ["lobby"]},
        {"name": "a\u202eb"},
        {"name": ""},
        {"peer_id": " ann"},
        {"exp": "soon"},
        {"exp": str(10**10)},
        {"exp": float("inf")},
        {"exp": [1]},
        {"nbf": "1"},
        {"iat": {}},
    ],
)
async def test_claims_that_are_malformed(more: dict[str, Any]) -> None:
    with pytest.raises(Unauthorized, match="malformed"):
        await ask(signed(claims(**more)))


async def test_a_token_for_somebody_else_is_not_taken() -> None:
    with pytest.raises(Unauthorized, match="somebody else"):
        await ask(signed(claims(aud="https://other.example.org")))


@pytest.mark.parametrize(
    "token",
    [
        "",
        ".",
        "..",
        "a.b.c",
        "x" * 4096,
        signed("[]"),
        signed("7"),
        signed("{"),
        signed("[" * 2000),
        base64.urlsafe_b64encode(b"[" * 2000).decode() + ".e30.",
        base64.urlsafe_b64encode(b'{"alg":"HS256","b64":false,"crit":["b64"]}').decode() + "..",
        base64.urlsafe_b64encode(b'{"alg":"HS256","kid":7}').decode() + ".e30.",
    ],
)
async def test_what_is_no_token(token: str) -> None:
    with pytest.raises(Unauthorized) as caught:
        await ask(token)
    assert not token or token not in str(caught.value)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
_NAMES = st.sampled_from(
    ["sub", "exp", "nbf", "iat", "room", "name", "peer_id", "aud", "iss", "jti"]
)


@given(claims=st.dictionaries(_NAMES, _JSON), alg=_JSON | st.just("HS256"))
def test_claims_of_any_kind_are_taken_or_refused(claims: dict[str, Any], alg: Any) -> None:
    try:
        grant = asyncio.run(ask(signed(claims, alg=alg)))
    except (Unauthorized, Forbidden):
        return
    assert alg == "HS256"
    assert grant.subject == claims["sub"]


@given(
    token=st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126), max_size=200)
    | st.lists(
        st.binary(max_size=30).map(lambda part: base64.urlsafe_b64encode(part).decode()),
        min_size=3,
        max_size=3,
    ).map(".".join)
)
def test_text_of_any_kind_is_refused(token: str) -> None:
    with pytest.raises(Unauthorized):
        asyncio.run(ask(token))


# --- making them ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"subject": ""}, "subject"),
        ({"subject": "a\nb"}, "subject"),
        ({"subject": "x" * 129}, "subject"),
        ({"subject": 7}, "subject"),
        ({"subject": "\ud800"}, "subject"),
        ({"room": ""}, "room"),
        ({"name": "\u202e"}, "name"),
        ({"peer_id": " "}, "peer_id"),
        ({"lifetime": 0}, "lifetime"),
        ({"lifetime": float("nan")}, "lifetime"),
        ({"lifetime": float("inf")}, "lifetime"),
        ({"lifetime": "1"}, "lifetime"),
        ({"secret": "short"}, "secret"),
        ({"secret": None}, "secret or with private_key"),
        ({"private_key": PRIVATE}, "secret or with private_key"),
        ({"secret": None, "private_key": PUBLIC}, "public key"),
        ({"secret": None, "private_key": "nonsense"}, "private_key"),
        ({"secret": None, "private_key": PRIVATE[:60]}, "private_key"),
        (
            {"secret": None, "private_key": pems(generate_private_key(SECP256R1()))[0]},
            "private_key",
        ),
        (
            {
                "name": "\u00e4" * 128,
                "subject": "\u00e4" * 128,
                "room": "\u00e4" * 128,
                "peer_id": "\u00e4" * 128,
            },
            "shorter",
        ),
    ],
)
def test_arguments_that_make_no_token(arguments: dict[str, Any], named: str) -> None:
    good: dict[str, Any] = {"secret": SECRET, "subject": "ann"}
    with pytest.raises(ConfigError, match=named) as caught:
        make_join_token(**{**good, **arguments})
    assert SECRET not in str(caught.value)
    assert PRIVATE[30:50] not in str(caught.value)


@pytest.mark.parametrize(
    ("pem", "named"),
    [
        (PRIVATE, "private key"),
        ("nonsense", "public key"),
        (PUBLIC[:50], "public key"),
        (pems(generate_private_key(SECP256R1()))[1], "public key"),
        (
            Ed25519PrivateKey.generate()
            .private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
            .decode(),
            "public key",
        ),
    ],
)
def test_keys_that_a_relay_does_not_start_with(pem: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        Relay(RelayConfig(port=0, join_public_key=pem))
    assert pem not in str(caught.value)


def test_a_config_without_a_key_makes_no_tokens() -> None:
    with pytest.raises(ConfigError, match="join_secret or"):
        JoinTokens(RelayConfig())


def test_nothing_of_it_is_imported_before_it_is_needed() -> None:
    code = "import meshpeer.relay, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    loaded = set(done.stdout.decode().split())
    assert not loaded & {"jwt", "cryptography", "prometheus_client", "aiortc", "av"}


# --- who must show one ---------------------------------------------------------------------------
class Everybody:
    async def authenticate(self, request: JoinRequest) -> Grant:
        return Grant()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "relay.example.org"])
def test_where_others_come_it_does_not_start_open_by_itself(host: str) -> None:
    with pytest.raises(ConfigError, match=r"--open") as caught:
        Relay(RelayConfig(host=host))
    assert host in str(caught.value)
    Relay(RelayConfig(host=host, open=True))
    Relay(RelayConfig(host=host, join_secret=SECRET))
    Relay(RelayConfig(host=host, join_public_key=PUBLIC))
    Relay(RelayConfig(host=host), authenticator=Everybody())


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_on_this_machine_it_does(host: str) -> None:
    Relay(RelayConfig(host=host))


@pytest.mark.parametrize(
    "config",
    [
        RelayConfig(open=True),
        RelayConfig(join_secret=SECRET),
        RelayConfig(join_public_key=PUBLIC),
    ],
)
def test_an_authenticator_is_alone(config: RelayConfig) -> None:
    with pytest.raises(ConfigError, match="neither"):
        Relay(config, authenticator=Everybody())
