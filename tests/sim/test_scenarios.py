"""What people run into, one test each: who sees what, and how soon it is well again."""

from __future__ import annotations

from typing import TypeVar

import pytest
from msgspec import Raw

from meshpeer.core.events import Event, PeerJoined, PeerLeft, PeerState, PeerStateChanged
from meshpeer.core.link import LinkState
from meshpeer.core.messages import Offer, SignalIn, encode
from meshpeer.errors import IdentityReplaced, PeerIdTaken
from tests.sim.world import MESH, RELAY, Process, World, sdp

SEEDS = range(10)
E = TypeVar("E", bound=Event)


def together(hosts: int, seed: int) -> World:
    """A room in which all are connected."""
    world = World(hosts, seed)
    for host in range(hosts):
        world.start(host)
    world.at(1.0, world.speak)
    world.run(5.0)
    world.check_settled()
    return world


def process(world: World, host: int) -> Process:
    there = world.hosts[host].process
    assert there is not None
    return there


def told(who: Process, since: float, kind: type[E]) -> list[E]:
    return [event for at, event in who.history if at >= since and isinstance(event, kind)]


def connected_again(world: World, within: float) -> None:
    """All are connected ``within`` so many seconds, and stay so."""
    world.run_until(world.now + within, stop=world.settled)
    world.check_settled()
    world.run(20.0)
    world.check_settled()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_room_of_five_is_connected_in_a_second(seed: int) -> None:
    world = World(5, seed)
    for host in range(5):
        world.start(host)
    world.run(2.0)
    world.check_settled()
    for who in world.live():
        assert {change.epoch for change in told(who, 0.0, PeerStateChanged)} <= {0, 1}
    world.check_nothing_left()


@pytest.mark.parametrize("seed", SEEDS)
def test_glare_the_side_that_waits_dials_as_well(seed: int) -> None:
    """A peer of another make offers by itself: our own offer wins, and nothing is lost."""
    world = World(2, seed)
    world.start(0)  # "m", the one that waits
    world.start(1)  # "d", the one that dials
    while process(world, 1).node is None or not process(world, 1).known:
        world.run(0.005)
    dials, waits = process(world, 1), process(world, 0)
    assert dials.node is not None
    offer = SignalIn(
        "m", waits.incarnation, dials.incarnation, 1, Raw(encode(Offer(sdp("offer 0"))))
    )
    for _ in range(40):
        if dials.node.link("m").state is not LinkState.CONNECTED:
            dials.signal(offer)
        world.run(0.01)
    world.run(2.0)
    world.check_settled()
    assert dials.node.link("m").epoch == 1, "the attempt that was under way"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_crash_and_a_restart_with_the_token_is_one_peer(seed: int) -> None:
    world = together(3, seed)
    old = process(world, 0)
    since = world.now
    old.crash()
    world.run(0.5)
    world.start(0)
    connected_again(world, 4.0)
    for host in (1, 2):
        presence = [
            (type(event), event.incarnation, getattr(event, "reason", ""))
            for _, event in process(world, host).history
            if isinstance(event, PeerJoined | PeerLeft) and event.peer_id == "m"
        ]
        assert presence == [
            (PeerJoined, old.incarnation, ""),
            (PeerLeft, old.incarnation, "superseded"),
            (PeerJoined, process(world, 0).incarnation, ""),
        ]
        assert len(told(process(world, host), since, PeerLeft)) == 1
    world.check_nothing_left()


@pytest.mark.parametrize("seed", SEEDS)
def test_ghosts_after_a_reload_without_the_token(seed: int) -> None:
    """The old seat has to run out first; meanwhile nobody sees two of the same id."""
    world = together(3, seed)
    process(world, 0).crash()
    world.run(0.5)
    world.start(0, with_token=False)
    # The relay may take 15 s to notice, then keeps the seat for a while.
    connected_again(world, 15.0 + RELAY.seat_timeout + 5.0)
    for host in (1, 2):
        left = told(process(world, host), 5.0, PeerLeft)
        # By then the link has been given up, or is still tried.
        assert [event.reason for event in left] in (["timeout"], ["superseded"])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("goodbye", [True, False])
def test_a_relay_restart_is_not_felt_by_those_connected(seed: int, goodbye: bool) -> None:
    world = together(3, seed)
    since = world.now
    (world.stop_relay if goodbye else world.kill_relay)(3.0)
    world.run(30.0)
    world.check_settled()
    for who in world.live():
        assert told(who, since, Event) == []
        assert {peer for at, peer in who.messages if at > since + 20} == who.known.keys()
    # And who comes now connects to all of them.
    world.hosts.append(type(world.hosts[0])(3, "b"))
    world.start(3)
    connected_again(world, 2.0)
    assert len(process(world, 3).known) == 3


@pytest.mark.parametrize("seed", SEEDS)
def test_without_signalling_for_ten_minutes_talk_goes_on(seed: int) -> None:
    world = together(3, seed)
    since = world.now
    for host in world.hosts:
        host.away_until = since + 600.0
        socket = process(world, host.number).socket
        assert socket is not None
        world.cut(socket)
    world.run(600.0)
    for who in world.live():
        assert told(who, since, Event) == []
        assert {peer for at, peer in who.messages if at > since + 590} == who.known.keys()
    world.run(3 * MESH.signaling_retry_max)
    world.check_settled()
    for who in world.live():
        assert told(who, since, Event) == []


@pytest.mark.parametrize("seed", SEEDS)
def test_one_without_signalling_keeps_its_links_though_its_seat_runs_out(seed: int) -> None:
    world = together(3, seed)
    since = world.now
    world.hosts[0].away_until = since + 100.0
    socket = process(world, 0).socket
    assert socket is not None
    world.cut(socket)
    world.run(100.0)
    for who in world.live():
        assert told(who, since, Event) == []
    connected_again(world, 3 * MESH.signaling_retry_max)
    for who in world.live():
        assert told(who, since, Event) == []


@pytest.mark.parametrize("seed", SEEDS)
def test_a_path_that_breaks_without_signalling_is_mended_when_signalling_is_back(seed: int) -> None:
    world = together(2, seed)
    since = world.now
    world.outage(0, 1, 90.0)
    for host in world.hosts:
        host.away_until = since + 100.0
        socket = process(world, host.number).socket
        assert socket is not None
        world.cut(socket)
    world.run(100.0)
    for who in world.live():
        assert told(who, since, PeerStateChanged)[0].state is PeerState.DISCONNECTED
        assert all(known.state is not PeerState.CONNECTED for known in who.known.values())
    # Not at the end of a wait that has grown: as soon as both have a seat.
    world.run_until(world.now + 30.0, stop=lambda: world.rooms is None or world.rooms.members == 2)
    connected_again(world, 2.5)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_second_process_with_the_same_id_is_refused(seed: int) -> None:
    world = together(3, seed)
    world.restart_refused = False
    since = world.now
    other = world.hosts[2].process
    assert other is not None
    other.leave()
    world.hosts[2].peer_id = "m"
    second = world.start(2, with_token=False)
    world.run(20.0)
    assert isinstance(second.error, PeerIdTaken)
    assert told(process(world, 0), since + 1.0, Event) == []
    world.check_settled()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_second_process_with_the_token_takes_over(seed: int) -> None:
    world = together(3, seed)
    first = process(world, 0)
    machine = world.hosts[0]
    world.hosts[0].process = None
    world.start(0, on_conflict="takeover")
    since = world.now
    world.run(10.0)
    assert isinstance(first.error, IdentityReplaced)
    assert first.conns == {}
    assert process(world, 0).host is machine
    world.check_settled()
    for host in (1, 2):
        reasons = [event.reason for event in told(process(world, host), since, PeerLeft)]
        assert len(reasons) == 1
        assert reasons[0] in ("superseded", "left")
    world.check_nothing_left()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_second_process_under_rename_gets_another_id(seed: int) -> None:
    world = World(3, seed)
    world.start(0)
    world.start(1)
    world.run(2.0)
    world.hosts[2].peer_id = "m"
    second = world.start(2, on_conflict="rename")
    world.run(5.0)
    assert second.host.peer_id == "m-2"
    assert second.known.keys() == {"m", "d"}
    world.check_settled()
    world.check_nothing_left()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_path_that_flaps_is_not_hammered_and_heals(seed: int) -> None:
    world = together(2, seed)
    since = world.now
    for _ in range(20):
        world.outage(0, 1, world.rng.uniform(1.0, 6.0))
        world.run(world.rng.uniform(5.0, 9.0))
    attempts = {change.epoch for change in told(process(world, 0), since, PeerStateChanged)}
    assert len(attempts) <= 25, "about one an outage"
    connected_again(world, 3 * MESH.retry_max)
    for who in world.live():
        assert {peer for at, peer in who.messages if at > world.now - 10} == who.known.keys()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("towards", [0, 1])
def test_a_path_that_passes_one_way_only_is_told_and_heals(seed: int, towards: int) -> None:
    world = together(2, seed)
    since = world.now
    world.outage(1 - towards, towards, 120.0, one_way=True)
    world.run(12.0)
    deaf = process(world, towards)
    states = [change.state for change in told(deaf, since, PeerStateChanged)]
    assert states[0] is PeerState.DISCONNECTED
    world.run(107.0)
    for who in world.live():
        assert all(known.state is not PeerState.CONNECTED for known in who.known.values())
    epochs = {change.epoch for change in told(deaf, since, PeerStateChanged)}
    assert len(epochs) <= 120 / MESH.connect_timeout
    world.run(1.0)
    connected_again(world, 3 * MESH.retry_max)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_side_that_waits_alone_notices_a_loss_and_asks_at_once(seed: int) -> None:
    world = together(2, seed)
    waits = process(world, 0)
    conn = waits.conns["d"]
    # Its end is gone, and the close does not get through to the other.
    world.outage(0, 1, 0.5, one_way=True)
    assert waits.node is not None
    waits.node_said(
        waits.node.connection_lost("d", conn.incarnation, conn.epoch, "gone", world.now)
    )
    connected_again(world, 2.0)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_goodbye_reaches_who_has_no_signalling(seed: int) -> None:
    world = together(2, seed)
    since = world.now
    world.hosts[1].away_until = since + 60.0
    socket = process(world, 1).socket
    assert socket is not None
    world.cut(socket)
    process(world, 0).leave()
    world.run(0.5)
    (left,) = told(process(world, 1), since, PeerLeft)
    assert (left.peer_id, left.reason) == ("m", "left")
    world.run(80.0)
    world.check_settled()
    assert len(told(process(world, 1), since, PeerJoined)) == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_a_crash_is_noticed_in_seconds_and_told(seed: int) -> None:
    world = together(3, seed)
    since = world.now
    process(world, 0).crash()
    world.run(4.5)
    for who in world.live():
        changes = told(who, since, PeerStateChanged)
        assert [change.state for change in changes][:1] == [PeerState.DISCONNECTED]
        assert changes[0].reason == "nothing heard for 2.5 s"
    world.run(15.0 + RELAY.seat_timeout + 2.0)
    for who in world.live():
        assert [left.reason for left in told(who, since, PeerLeft)] == ["timeout"]
    world.check_settled()
    world.check_nothing_left()


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("sender", [0, 1])
@pytest.mark.parametrize("read", [True, False])
def test_large_messages_one_way_on_a_slow_line_do_not_end_it(
    seed: int, sender: int, read: bool
) -> None:
    """A message of 8 MiB takes 67 s, in which the receiver has nothing to say but that it lives."""
    world = World(2, seed)
    for host in range(2):
        world.start(host)
    world.run(2.0)
    world.check_settled()
    world.bytes_a_second = 125_000.0
    world.read = read
    since, source = world.now, process(world, sender)
    for _ in range(60):
        source.speak(world.hosts[1 - sender].peer_id, 8 * 1024 * 1024)
        world.run(5.0)
        for who in world.live():
            who.check_heard()
    assert source.sent > 1
    assert len(process(world, 1 - sender).messages) >= (3 if read else 2)
    for who in world.live():
        assert told(who, since, PeerStateChanged) == []
    world.check_settled()


@pytest.mark.parametrize("seed", SEEDS)
def test_an_idle_connection_costs_a_probe_a_second(seed: int) -> None:
    world = World(2, seed)
    for host in range(2):
        world.start(host)
    world.run(5.0)
    before = world.probes_sent, world.frames_carried
    world.run(60.0)
    assert 55 <= world.probes_sent - before[0] <= 61
    assert world.frames_carried == before[1]
    world.check_settled()
