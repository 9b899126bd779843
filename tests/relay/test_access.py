"""Who may join: tokens that are good, forged, stolen or for something else; and an authenticator of
an embedding program, with the relay around it."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
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
from websockets.asyncio.client import connect
from websockets.frames import Opcode

from meshpeer.config import RelayConfig
from meshpeer.core.messages import (
    Goodbye,
    Join,
    Leave,
    MemberJoined,
    Refused,
    Welcome,
    decode_client,
    encode,
)
from meshpeer.errors import ConfigError, Forbidden, Unauthorized
from meshpeer.relay import Authenticator, Grant, JoinRequest, JoinTokens, Relay, make_join_token
from tests.relay.board import captured
from tests.relay.test_server import Peer, close_of, comeback, join, peer
from tests.relay.wires import UPGRADE, client_frame, exchange, refused, until_gone

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


def test_what_is_made_is_no_longer_than_what_a_join_may_carry() -> None:
    carried = refused = 0
    for length in range(64, 129):
        name = "\u00e4" * length
        names = dict.fromkeys(("subject", "room", "name", "peer_id"), name)
        try:
            token = make_join_token(secret=SECRET, **names)  # type: ignore[arg-type]
        except ConfigError:
            refused += 1
        else:
            carried += 1
            assert isinstance(decode_client(encode(join("ann", join_token=token))), Join)
    assert refused
    assert carried


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
    ids=["private", "no key", "a part of one", "another kind", "with a password"],
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
    with pytest.raises(ConfigError, match=r"RelayConfig\.open") as caught:
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


# --- an authenticator, with the relay around it --------------------------------------------------
class Desk:
    """Is asked by a relay, and answers what the test says, when it says so."""

    def __init__(self) -> None:
        self.requests: asyncio.Queue[JoinRequest] = asyncio.Queue()
        self.answer: asyncio.Future[Grant] = asyncio.get_running_loop().create_future()
        self.over = asyncio.Event()

    async def authenticate(self, request: JoinRequest) -> Grant:
        self.requests.put_nowait(request)
        try:
            return await asyncio.shield(self.answer)
        finally:
            self.over.set()

    def let_in(self, **grant: Any) -> None:
        self.answer.set_result(Grant(**grant))


def guarded(desk: Authenticator, **config: Any) -> Relay:
    return Relay(RelayConfig(port=0, **config), authenticator=desk)


async def refusal(one: Peer) -> tuple[Refused, int]:
    """What a socket is told last, and the code that it is closed with."""
    (refused,), closed = await one.until_closed()
    assert isinstance(refused, Refused)
    return refused, close_of(closed)[0]


async def test_it_is_told_who_asks() -> None:
    """The address as a proxy says it, where that is trusted, and nothing else that others say."""
    desk = Desk()
    desk.let_in()
    origins, token = ("https://app.example.org",), "a-token-that-is-secret"
    fields: dict[str, Any] = {"name": "Ann", "join_token": token}
    forwarded = [("X-Forwarded-For", "6.6.6.6"), ("X-Forwarded-For", "192.0.2.7")]
    async with guarded(desk, origins=origins, trusted_proxies=("127.0.0.1",)) as relay:
        headers = [*forwarded, ("X-Real-IP", "6.6.6.6"), ("Forwarded", "for=6.6.6.6")]
        origin: Any = origins[0]
        async with connect(relay.url, additional_headers=headers, origin=origin) as ws:
            await Peer(ws).join("ann", **fields)
        async with connect(relay.url) as ws:
            await Peer(ws).join("bob")
        async with connect(
            relay.url, additional_headers=forwarded, local_addr=("127.0.0.2", 0)
        ) as ws:
            await Peer(ws).join("eve")
    asked = [desk.requests.get_nowait() for _ in range(3)]
    assert asked == [
        JoinRequest(
            room="lobby",
            peer_id="ann",
            name="Ann",
            join_token=token,
            address="192.0.2.7",
            origin="https://app.example.org",
        ),
        JoinRequest(
            room="lobby",
            peer_id="bob",
            name=None,
            join_token=None,
            address="127.0.0.1",
            origin=None,
        ),
        JoinRequest(
            room="lobby",
            peer_id="eve",
            name=None,
            join_token=None,
            address="127.0.0.2",
            origin=None,
        ),
    ]
    assert token not in repr(asked)


async def test_it_is_asked_again_at_every_return_and_its_grant_is_what_counts() -> None:
    desk = Desk()
    desk.let_in(name="Ann B.", subject="ann@example.org")
    async with guarded(desk) as relay, peer(relay) as bob:
        await bob.join("bob")
        async with peer(relay) as ann:
            welcome = await ann.join("ann", name="the relay")
            joined = await bob.hear()
            assert isinstance(joined, MemberJoined)
            assert joined.member.name == "Ann B."
            ann.ws.transport.abort()
        async with peer(relay) as back:
            assert (await back.join("ann", **comeback(welcome, 0))).resumed
        desk.answer = asyncio.get_running_loop().create_future()
        desk.answer.set_exception(Unauthorized("your account is closed"))
        async with peer(relay) as back:
            await back.say(join("ann", **comeback(welcome, 0)))
            refused, code = await refusal(back)
            assert (refused.code, code) == ("unauthorized", 4003)
    assert desk.requests.qsize() == 4


@pytest.mark.parametrize("error", [Unauthorized, Forbidden])
async def test_who_is_not_let_in_is_told_why(error: type[Unauthorized]) -> None:
    desk = Desk()
    desk.answer.set_exception(error("not\ntoday"))
    with captured() as log:
        async with guarded(desk) as relay, peer(relay) as ann:
            await ann.say(join("ann"))
            refused, code = await refusal(ann)
            assert (refused.code, code) == (error.__name__.lower(), 4003)
            assert refused.text == "not\ufffdtoday"
            assert refused.retry_after is None
            assert relay._rooms.connections == 0
    assert not [entry for entry in log if entry["log_level"] == "error"]


class Broken:
    """Raises or returns what it is given."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    async def authenticate(self, request: JoinRequest) -> Grant:
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "answer",
    [
        ValueError("the database is at db.internal"),
        TimeoutError(),
        asyncio.CancelledError(),
        ConnectionResetError(),
        None,
        True,
        {"subject": "ann"},
    ],
)
async def test_an_authenticator_that_fails_is_the_operators_trouble(answer: Any) -> None:
    """The client is told to come back, and no more."""
    with captured() as log:
        async with guarded(Broken(answer)) as relay, peer(relay) as ann:
            await ann.say(join("ann", join_token="a-token-that-is-secret"))
            refused, code = await refusal(ann)
            assert (refused.code, code) == ("unavailable", 4003)
            assert refused.retry_after == 5
            assert refused.text == "nobody could say whether this is allowed"
    (error,) = [entry for entry in log if entry["log_level"] == "error"]
    assert error["event"] == "the authenticator failed"
    assert (error["room"], error["conn"]) == ("lobby", 1)
    assert error["exc_info"]
    assert "a-token-that-is-secret" not in str(log)


async def test_one_that_takes_long_holds_up_nobody_and_has_its_time() -> None:
    desk = Desk()
    with captured() as log:
        async with guarded(desk, join_timeout=0.3) as relay, peer(relay) as ann:
            await ann.say(join("ann"))
            await desk.requests.get()
            waiting, desk.answer = desk.answer, asyncio.get_running_loop().create_future()
            desk.let_in()
            async with peer(relay) as bob:
                await bob.join("bob")
            refused, code = await refusal(ann)
            assert (refused.code, code) == ("unavailable", 4003)
            assert "0.3 s" in refused.text
            assert refused.retry_after == 5
            await desk.over.wait()
            waiting.cancel()
            assert not relay._clients
    assert not [entry for entry in log if entry["log_level"] == "error"]


@pytest.mark.parametrize("how", ["aborts", "leaves", "says more", "relay closes"])
async def test_it_is_cancelled_with_the_socket_that_it_is_asked_about(how: str) -> None:
    desk = Desk()
    with captured() as log:
        async with guarded(desk, join_timeout=3600) as relay, peer(relay) as ann:
            await ann.say(join("ann"))
            await desk.requests.get()
            desk.over.clear()
            match how:
                case "aborts":
                    ann.ws.transport.abort()
                case "leaves":
                    await ann.say(Leave())
                case "says more":
                    await ann.say(join("ann"))
                case _:
                    await relay.close()
            await desk.over.wait()
            assert not desk.answer.done()
            await ann.ws.wait_closed()
            await until_gone(relay)
            assert not relay._clients
            assert relay._rooms.connections == 0
    assert not [entry for entry in log if entry["log_level"] == "error"]


async def test_who_is_let_in_may_still_be_refused() -> None:
    """Because another took the peer id while it was asked about."""
    desk = Desk()
    with captured() as log:
        async with guarded(desk) as relay, peer(relay) as ann, peer(relay) as eve:
            await ann.say(join("ann"))
            await desk.requests.get()
            await eve.say(join("ann", incarnation="another-one"))
            await desk.requests.get()
            desk.let_in()
            assert isinstance(await ann.hear(), Welcome)
            refused, code = await refusal(eve)
            assert (refused.code, code) == ("peer_id_taken", 4003)
    assert not [entry for entry in log if entry["log_level"] == "error"]


async def test_a_subject_takes_its_peer_id_over_and_another_does_not() -> None:
    desk = Desk()
    desk.let_in(subject="ann@example.org")
    async with guarded(desk) as relay, peer(relay) as old:
        await old.join("ann")
        async with peer(relay) as new:
            await new.join("ann", incarnation="the-new-one", on_conflict="takeover")
            heard, closed = await old.until_closed()
            assert heard == [Goodbye(reason="replaced")]
            assert close_of(closed)[0] == 4001
            desk.answer = asyncio.get_running_loop().create_future()
            desk.let_in(subject="eve@example.org")
            async with peer(relay) as eve:
                await eve.say(join("ann", incarnation="a-third-one", on_conflict="takeover"))
                refused, _ = await refusal(eve)
                assert refused.code == "peer_id_taken"


async def test_with_tokens_only_who_has_one_gets_in_and_no_log_has_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    good = make_join_token(secret=SECRET, subject="ann@example.org", room="lobby", name="Ann B.")
    tokens: dict[str, list[str | None]] = {
        "unauthorized": [
            None,
            make_join_token(secret=OTHER, subject="ann"),
            signed(claims(exp=int(time.time()) - 60)),
            signed(claims(), alg="none"),
        ],
        "forbidden": [make_join_token(secret=SECRET, subject="ann", room="other")],
    }
    with captured() as log:
        async with Relay(RelayConfig(port=0, join_secret=SECRET)) as relay:
            async with peer(relay) as bob, peer(relay) as ann:
                await bob.join("bob", join_token=good)
                await ann.join("ann", join_token=good, name="somebody else")
                joined = await bob.hear()
                assert isinstance(joined, MemberJoined)
                assert joined.member.name == "Ann B."
            for code, each in tokens.items():
                for token in each:
                    async with peer(relay) as eve:
                        await eve.say(join("eve", join_token=token))
                        refused, closed = await refusal(eve)
                        assert (refused.code, closed) == (code, 4003)
            assert relay._rooms.connections == 0
            assert SECRET not in repr(relay._config)
    said = str(log) + caplog.text
    for token in (good, *tokens["unauthorized"], *tokens["forbidden"]):
        assert token is None or token not in said
    assert SECRET not in said


# --- pages, and who is behind a proxy ------------------------------------------------------------
async def test_a_page_whose_name_was_made_to_lead_here_gets_nothing() -> None:
    """DNS rebinding: such a page is of the same origin as this relay, for its browser."""
    async with Relay(RelayConfig(port=0)) as relay:

        async def upgrade(host: str, path: str) -> int:
            host = f"{host}:{relay.port}"
            lines = UPGRADE.replace(b"Host: relay", f"Host: {host}".encode())
            lines = lines.replace(b"/ws", path.encode()) + f"Origin: http://{host}\r\n".encode()
            line, _, _ = await exchange(relay, lines + b"\r\n" + client_frame(b"", Opcode.CLOSE))
            return int(line.split()[1])

        for path in ("/ws", "/", "/api/admin/live"):
            assert await upgrade("rebound.example.org", path) == 403
            assert await upgrade("localhost.example.org", path) == 403
        for host in ("localhost", "127.0.0.1", "[::1]"):
            assert await upgrade(host, "/ws") == 101
        assert refused(relay) == {"origin": 6}


async def test_a_proxy_with_tls_in_front_has_pages_of_its_own_name() -> None:
    """It passes the Host on; and where it is on this machine, its name is listed."""
    public: Any = "https://relay.example.org"
    headers = {"Host": "relay.example.org"}
    for config, status in (
        (RelayConfig(port=0), 403),
        (RelayConfig(port=0, origins=(public,)), 101),
        (RelayConfig(port=0, host="0.0.0.0", open=True), 101),
    ):
        async with Relay(config) as relay:
            lines = UPGRADE.replace(b"Host: relay", b"Host: " + headers["Host"].encode())
            lines += f"Origin: {public}\r\n\r\n".encode() + client_frame(b"", Opcode.CLOSE)
            line, _, _ = await exchange(relay, lines)
            assert int(line.split()[1]) == status
