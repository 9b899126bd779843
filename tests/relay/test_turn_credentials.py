"""TURN credentials: until when they are good, and who gets the same ones again.

How they are made, and whether coturn takes them, is in `test_turn`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from hypothesis import example, given
from hypothesis import strategies as st

from meshpeer.config import MeshConfig, RelayConfig
from meshpeer.core.messages import IceServers
from meshpeer.core.rooms import _RENEW_AFTER
from meshpeer.relay.turn import ice_servers_for
from tests.fakes import TURN
from tests.test_manager import World
from tests.virtual import virtual

URL = "turn:turn.example.org"
SECRET = "what the relay and coturn both know"
MIDNIGHT = 1_700_006_400.0
"""Unix time: a multiple of a day."""


def config(lifetime: float = 3600.0, secret: str = SECRET) -> RelayConfig:
    return RelayConfig(turn_urls=(URL,), turn_secret=secret, turn_lifetime=lifetime)


def given_at(
    wall: float, lifetime: float = 3600.0, peer_id: str = "ann", secret: str = SECRET
) -> IceServers:
    """By a relay that has only just started."""
    servers = ice_servers_for(config(lifetime, secret), wall=lambda: wall)(peer_id, None)
    assert servers is not None
    return servers


def expiry(servers: IceServers) -> int:
    """Unix time, as coturn reads it."""
    (server,) = servers.servers
    assert server.username is not None
    at, _, _ = server.username.partition(":")
    return int(at)


# --- until when ----------------------------------------------------------------------------------
def test_within_a_quarter_of_their_lifetime_a_member_gets_the_same_again() -> None:
    """From another process as well: a relay that was restarted, or one beside it."""
    quarter = [MIDNIGHT + offset for offset in (0.001, 1.0, 450.0, 899.9, 900.0)]
    assert {expiry(given_at(wall)) for wall in quarter} == {int(MIDNIGHT) + 4500}
    first = given_at(quarter[0])
    assert all(given_at(wall) == first for wall in quarter)
    # The first and the last moment of the quarters beside it.
    assert expiry(given_at(MIDNIGHT)) == MIDNIGHT + 3600
    assert expiry(given_at(MIDNIGHT + 900.001)) == MIDNIGHT + 5400
    # They are nobody else's.
    assert given_at(quarter[0], peer_id="bob") != first
    assert given_at(quarter[0], secret=SECRET + "!") != first


@given(wall=st.floats(0, 4e9), lifetime=st.floats(1, 86400))
@example(wall=MIDNIGHT, lifetime=1.0)
@example(wall=MIDNIGHT + 0.25, lifetime=1.0)
@example(wall=MIDNIGHT + 0.2500001, lifetime=1.0)
@example(wall=MIDNIGHT + 900.0, lifetime=3600.0)
def test_they_are_good_for_their_lifetime_and_a_quarter_more_at_most(
    wall: float, lifetime: float
) -> None:
    servers = given_at(wall, lifetime)
    assert servers.expires_in == lifetime
    # coturn has whole seconds.
    assert wall + lifetime - 1e-5 <= expiry(servers) < wall + 1.25 * lifetime + 1.001


@given(wall=st.floats(1.6e9, 2e9), lifetime=st.floats(1, 86400), late=st.floats(0, 0.2))
@example(wall=MIDNIGHT, lifetime=1.0, late=0.0)
@example(wall=MIDNIGHT, lifetime=4.0, late=0.0)
def test_those_that_follow_are_there_before_they_expire(
    wall: float, lifetime: float, late: float
) -> None:
    """Whenever a member came, as long as its relay is late by no more than a fifth of a lifetime;
    also where the next ones are the same, as may be when seconds are as long as lifetimes."""
    until = expiry(given_at(wall, lifetime))
    for _ in range(10):
        wall += (_RENEW_AFTER + late) * lifetime
        assert wall < until
        renewed = expiry(given_at(wall, lifetime))
        assert renewed >= until
        assert renewed > until or lifetime < 2
        until = renewed


# --- what it means for links ---------------------------------------------------------------------
def wall_of(hub_time: Callable[[], float]) -> Callable[[], float]:
    return lambda: MIDNIGHT + 1.0 + hub_time()


@virtual
async def test_a_link_over_turn_outlives_the_socket_without_an_ice_restart() -> None:
    """A return, also to a relay that was restarted, brings no other credentials with it."""
    async with World() as world:
        world.network.pair = TURN
        loop = asyncio.get_running_loop()
        lifetime = 86400.0
        quarter = lifetime / 4

        def servers() -> Callable[[str, str | None], IceServers | None]:
            return ice_servers_for(config(lifetime), wall=wall_of(loop.time))

        world.hub._rooms._ice_servers = servers()
        # So that nothing but the servers restarts anything.
        calm = MeshConfig(relay_after=None, upgrade_first=3600, upgrade_max=3600)
        a, b = await world.pair(config=calm)

        def restarts() -> list[int]:
            return [peer.restarts for m in (a, b) for peer in m.stats().peers.values()]

        await asyncio.sleep(20)
        before = restarts()
        for _ in range(5):
            world.hub._rooms._ice_servers = servers()
            world.hub.cut()
            await asyncio.sleep(60)
            assert restarts() == before
        assert [peer.path for peer in a.stats().peers.values()] == ["turn"]
        # In another quarter they are others; each end restarts for its own.
        await asyncio.sleep(quarter - loop.time() + 1)
        world.hub.cut()
        await asyncio.sleep(60)
        assert all(after > some for after, some in zip(restarts(), before, strict=True))
