"""TURN credentials that the relay makes, and a real coturn that takes them or does not.

Until when they are good is in `test_turn_credentials`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
import socket
from collections.abc import Iterator
from typing import Any, cast

import pytest
from aioice.ice import StunProtocol
from hypothesis import example, given
from hypothesis import strategies as st

from meshpeer import ConnectionReport, MeshConfig, PeerManager
from meshpeer.config import IceServer, RelayConfig
from meshpeer.core.events import IceServerOutcome
from meshpeer.core.messages import IceServerInfo, IceServers
from meshpeer.errors import ConfigError
from meshpeer.relay import Relay
from meshpeer.relay.turn import ice_servers_for, turn_credentials
from meshpeer.rtc.servers import ServerError, allocate, parse_servers, release
from tests.coturn import Coturn, run_coturn
from tests.relay.board import captured
from tests.relay.test_server import comeback, peer

SECRET = "a secret that a TURN server shares"
OTHER = "a secret that another TURN server has"
URL = "turn:turn.example.org"


# --- how they are made ---------------------------------------------------------------------------
def test_they_are_what_every_server_with_the_secret_finds_too() -> None:
    """draft-uberti-behave-turn-rest-00, section 2.2. The digest is openssl's."""
    made = turn_credentials("north", "ann", 1433895918)
    assert made == ("1433895918:ann", "zAlhH20kpuDJR8ZKdq5vyQV+Ung=")
    # Whole seconds are all that a username can say: not a moment less than was promised.
    assert turn_credentials("north", "ann", 1433895917.001) == made


@given(user=st.text(min_size=1, max_size=128), expires_at=st.floats(1, 2**40))
@example(user="\U0001f600" * 128, expires_at=1)
def test_any_name_makes_a_username_that_is_read_right(user: str, expires_at: float) -> None:
    username, password = turn_credentials(SECRET, user, expires_at)
    assert len(username.encode()) <= 508  # RFC 8489, section 14.3
    assert username.isascii()
    assert username.isprintable()
    when, name = username.split(":")
    assert 0 <= int(when) - expires_at < 1
    assert name
    digest = hmac.digest(SECRET.encode(), username.encode(), hashlib.sha1)
    assert base64.b64decode(password) == digest


def test_two_members_are_not_told_the_same() -> None:
    long = "x" * 120
    names = ["ann", "Ann", "a:nn", "a%3Ann", "\u00e4" * 127, "\u00e4" * 128, long, long + "y"]
    made = [turn_credentials(SECRET, name, 1) for name in names]
    assert len({username for username, _ in made}) == len(names)
    assert len({password for _, password in made}) == len(names)


def servers_of(**config: Any) -> IceServers | None:
    return ice_servers_for(RelayConfig(**config), wall=lambda: 1200.0)("ann", "ann@example.org")


def test_what_a_member_is_told() -> None:
    fixed = (
        IceServer(urls="stun:stun.example.org"),
        IceServer(urls=("turn:old.example.org",), username="user", credential="password"),
    )
    told = [
        IceServerInfo(urls=["stun:stun.example.org"]),
        IceServerInfo(urls=["turn:old.example.org"], username="user", credential="password"),
    ]
    urls = ("turn:turn.example.org?transport=udp", "turns:turn.example.org")
    username, credential = turn_credentials(SECRET, "ann", 1260)
    made = IceServerInfo(urls=list(urls), username=username, credential=credential)

    assert servers_of() is None
    # What is always the same is never renewed.
    assert servers_of(ice_servers=fixed) == IceServers(servers=told)
    ours: dict[str, Any] = {"turn_urls": urls, "turn_secret": SECRET, "turn_lifetime": 60}
    assert servers_of(**ours) == IceServers(servers=[made], expires_in=60)
    both = servers_of(ice_servers=fixed, **ours)
    assert both == IceServers(servers=[*told, made], expires_in=60)


@pytest.mark.parametrize(
    "config",
    [
        {"turn_urls": ("turn:" + "x" * 300,), "turn_secret": SECRET},
        {"turn_urls": ("turn:turn.example.org\n",), "turn_secret": SECRET},
        {"ice_servers": (IceServer(urls="stun:" + "x" * 300),)},
        {"ice_servers": (IceServer(urls=URL, username="user", credential=SECRET * 20),)},
        {"ice_servers": (IceServer(urls=[f"stun:{n}.example.org" for n in range(9)]),)},
    ],
)
def test_what_no_message_can_carry_does_not_start(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"ice_servers|turn_urls") as caught:
        Relay(RelayConfig(port=0, **config))
    assert SECRET not in str(caught.value)


# --- coturn takes them ---------------------------------------------------------------------------
@pytest.fixture(scope="module")
def coturn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Coturn]:
    folder = tmp_path_factory.mktemp("coturn")
    with run_coturn(folder, f"static-auth-secret={SECRET}", ephemeral=True) as running:
        yield running


def lending(coturn: Coturn, *transports: str, secret: str = SECRET, **config: Any) -> Relay:
    """A relay that has the secret of that TURN server."""
    urls = tuple(
        f"turns:127.0.0.1:{coturn.tls_port}"
        if transport == "tls"
        else f"turn:127.0.0.1:{coturn.port}?transport={transport}"
        for transport in transports or ("udp",)
    )
    return Relay(RelayConfig(port=0, turn_urls=urls, turn_secret=secret, **config))


class Allocation:
    """Has an allocation, in place of an ICE connection."""

    @classmethod
    def make(cls) -> StunProtocol:
        return StunProtocol(cast(Any, cls()))

    def data_received(self, data: bytes, component: int) -> None:
        pass

    def protocol_lost(self, protocol: StunProtocol) -> None:
        pass


async def use(coturn: Coturn, named: IceServerInfo) -> None:
    """Have an allocation over each address and give it back. Raises `ServerError`."""
    server = IceServer(
        urls=named.urls,
        username=named.username,
        credential=named.credential,
        ca_file=str(coturn.ca_file),
    )
    for each in parse_servers([server]):
        await release(await allocate(each, Allocation.make, families=(socket.AF_INET,)), 5)


def only(servers: IceServers | None) -> IceServerInfo:
    assert servers is not None
    (named,) = servers.servers
    return named


async def test_what_a_welcome_names_can_be_used(coturn: Coturn) -> None:
    async with (
        lending(coturn, "udp", "tcp", "tls", turn_lifetime=600) as relay,
        peer(relay) as ann,
        peer(relay) as bob,
    ):
        welcomes = [
            await ann.join("ann: the first", incarnation="incarnation-ann"),
            await bob.join("b\u00f6b", incarnation="incarnation-bob"),
        ]
        names = set()
        for welcome in welcomes:
            named = only(welcome.ice_servers)
            assert len(named.urls) == 3
            assert named.username is not None
            names.add(named.username.partition(":")[2])
            await use(coturn, named)
        assert names == {"ann%3A%20the%20first", "b%C3%B6b"}
        assert welcomes[0].ice_servers is not None
        assert welcomes[0].ice_servers.expires_in == 600


async def refused(coturn: Coturn, named: IceServerInfo) -> None:
    for url in named.urls:
        with pytest.raises(ServerError) as caught:
            await use(coturn, IceServerInfo([url], named.username, named.credential))
        assert caught.value.outcome is IceServerOutcome.WRONG_CREDENTIALS


async def test_those_of_another_secret_can_not(coturn: Coturn) -> None:
    async with lending(coturn, "udp", "tcp", "tls", secret=OTHER) as relay, peer(relay) as ann:
        await refused(coturn, only((await ann.join("ann")).ice_servers))


async def test_nor_those_that_have_run_out_or_were_changed(coturn: Coturn) -> None:
    url = f"turn:127.0.0.1:{coturn.port}"
    old = turn_credentials(SECRET, "ann", 1433895918)
    await refused(coturn, IceServerInfo([url], *old))
    async with lending(coturn) as relay, peer(relay) as ann:
        named = only((await ann.join("ann")).ice_servers)
    assert named.username is not None
    when, _, name = named.username.partition(":")
    for username in (f"{int(when) + 3600}:{name}", f"{when}:somebody-else"):
        await refused(coturn, IceServerInfo(named.urls, username, named.credential))


# --- and they are renewed ------------------------------------------------------------------------
async def test_there_are_new_ones_before_they_run_out_on_the_same_socket(coturn: Coturn) -> None:
    async with lending(coturn, turn_lifetime=4) as relay, peer(relay) as ann:
        first = only((await ann.join("ann")).ice_servers)
        message = await ann.hear()
        assert isinstance(message, IceServers)
        assert message.expires_in == 4
        second = only(message)
        await use(coturn, second)
        before, after = (
            int(each.username.partition(":")[0]) for each in (first, second) if each.username
        )
        assert before < after


async def test_who_comes_back_is_told_of_them_again(coturn: Coturn) -> None:
    async with lending(coturn) as relay:
        async with peer(relay) as ann:
            welcome = await ann.join("ann")
            ann.ws.transport.abort()
        async with peer(relay) as back:
            again = await back.join("ann", **comeback(welcome, 0))
            assert again.resumed
            await use(coturn, only(again.ice_servers))


async def test_peers_that_talk_over_turn_go_on_beyond_their_credentials(coturn: Coturn) -> None:
    """Nothing is lost, and it is no new connection."""
    # Nothing else begins an ICE restart meanwhile.
    config = MeshConfig(ice_transport_policy="relay", relay_after=None, upgrade_first=300)
    async with (
        lending(coturn, turn_lifetime=6) as relay,
        PeerManager(relay.url, room="lobby", peer_id="ann", config=config) as ann,
        PeerManager(relay.url, room="lobby", peer_id="bob", config=config) as bob,
    ):
        events, heard = [ann.events(), bob.events()], bob.messages()
        await ann.wait_for_peers(timeout=30)
        await ann.peers["bob"].send("before")
        reasons = []
        for each in events:
            async for report in each:
                if isinstance(report, ConnectionReport) and report.state == "connected":
                    assert (report.epoch, report.path) == (1, "turn")
                    if report.generation > 0:
                        reasons.append(report.reason)
                        break
        assert any("new TURN credentials" in reason for reason in reasons), reasons
        await ann.peers["bob"].send("after")
        assert [(await anext(heard)).data for _ in range(2)] == ["before", "after"]
        for mesh in (ann, bob):
            found = [each.outcome for each in mesh.stats().ice_servers.values()]
            assert found == [IceServerOutcome.FOUND]


# --- nothing of it is shown ----------------------------------------------------------------------
async def test_neither_the_secret_nor_what_is_made_of_it_is_shown(
    coturn: Coturn, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    hidden = {SECRET}
    with captured() as log:
        relay = lending(coturn, turn_lifetime=2)
        shown = [repr(relay), repr(relay._config), repr(vars(relay))]
        async with relay, peer(relay) as ann:
            welcome = await ann.join("ann")
            message = await ann.hear()
            assert isinstance(message, IceServers)
            for servers in (welcome.ice_servers, message):
                credential = only(servers).credential
                assert credential is not None
                hidden.add(credential)
                shown.append(repr(servers))
            await ann.say(b"junk")
            await ann.hear()
            shown.append(repr(relay._rooms.tracking.status(relay._now())))
    shown += [str(log), caplog.text]
    assert len(hidden) == 3
    for text in shown:
        for secret in hidden:
            assert secret not in text


@pytest.mark.parametrize(
    "config",
    [
        {"turn_secret": SECRET},
        {"turn_secret": SECRET, "turn_urls": ("stun:x",)},
        {"turn_secret": SECRET, "turn_urls": "turn:x"},
        {"turn_secret": SECRET.encode(), "turn_urls": (URL,)},
    ],
)
def test_the_error_of_a_config_has_no_secret_in_it(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"RelayConfig\.turn_") as caught:
        RelayConfig(**config)
    assert SECRET not in str(caught.value)
