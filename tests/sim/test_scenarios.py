"""What people run into, one test each: who sees what, and how soon it is well again."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import pytest
from msgspec import Raw

from meshpeer.config import MeshConfig
from meshpeer.core.events import (
    ConnectionReport,
    Event,
    MessagesUndelivered,
    Path,
    PeerJoined,
    PeerLeft,
    PeerState,
    PeerStateChanged,
)
from meshpeer.core.link import Link, LinkState
from meshpeer.core.messages import IceServerInfo, IceServers, Offer, SignalIn, encode
from meshpeer.errors import IdentityReplaced, PeerIdTaken
from tests.sim.world import MESH, OVER_RELAY, RELAY, Process, World, sdp

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


@pytest.mark.parametrize("goodbye", [True, False])
@pytest.mark.parametrize("seed", SEEDS)
def test_the_operator_sees_the_mesh_a_second_after_all_are_back(seed: int, goodbye: bool) -> None:
    """Who is back first tells of links with those who are not: the relay knows nobody yet."""
    world = together(4, seed)
    world.check_picture(within=1.0)
    (world.stop_relay if goodbye else world.kill_relay)(3.0)
    while world.rooms is None or world.rooms.members < 4:
        world.run(0.05)
    world.check_picture(within=1.0)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_pair_that_gave_each_other_up_and_meets_again_is_summed_up_once(seed: int) -> None:
    world = together(3, seed)
    before = world.now
    lost = process(world, 0)
    assert lost.socket is not None
    world.cut(lost.socket)
    for other in (1, 2):
        world.outage(0, other, 80.0)
    world.hosts[0].away_until = world.now + 80.0
    world.run(80.0)
    connected_again(world, 20.0)
    assert {event.peer_id for event in told(process(world, 1), before, PeerLeft)} == {"m"}
    assert process(world, 0) is lost, "the same two incarnations"
    world.check_all_arrived()
    world.check_picture(within=16.0)
    world.check_nothing_left()


@pytest.mark.parametrize("seed", SEEDS)
def test_all_are_back_within_a_second_of_the_relay_s_return_from_a_restart(seed: int) -> None:
    world = together(5, seed)
    world.refusals = 1.0
    since = world.now
    world.stop_relay(world.rng.uniform(1.0, 40.0))
    while world.rooms is None:
        world.run(0.01)
    returned = world.now
    while world.rooms.members < 5:
        world.run(0.01)
    assert world.now - returned < 1.0
    assert all(told(who, since, Event) == [] for who in world.live())


@pytest.mark.parametrize("seed", range(3))
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
        assert reasons == ["superseded"]
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
    changes = told(deaf, since, PeerStateChanged)
    assert [(change.state, change.path) for change in changes[:2]] == [
        (PeerState.DISCONNECTED, None),
        (PeerState.CONNECTED, Path.RELAY),
    ]
    world.run(107.0)
    for who in world.live():
        assert who.node is not None
        assert all(who.node.path_of(peer_id) is Path.RELAY for peer_id in who.known)
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


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("pages", [(0,), (1,), (0, 1)])
def test_a_page_in_the_background_takes_nobody_for_gone(seed: int, pages: tuple[int, ...]) -> None:
    """Its timers ring once a second, and somebody speaks to it at every moment between them."""
    world = World(2, seed)
    for host in range(2):
        world.start(host)
    world.run(5.0)
    who, other = process(world, pages[0]), process(world, 1 - pages[0])
    for page in pages:
        process(world, page).phase = world.rng.random()
    since = world.now
    for _ in range(100):
        other.speak(who.host.peer_id)
        world.at(0.1, who.speak, other.host.peer_id)
        world.run(5.01)
        other.check_heard()
    assert told(who, since, PeerStateChanged) == told(other, since, PeerStateChanged) == []
    assert len(who.messages) >= 100


# --- ICE restarts ---------------------------------------------------------------------------------


class Talk:
    """Two that send each other numbered messages all the time, over one connection."""

    def __init__(self, seed: int) -> None:
        self.world = World(2, seed)
        for host in range(2):
            self.world.start(host)
        self.world.run(3.0)
        self.world.check_settled()
        self.since = self.world.now
        self.epoch = self.link(0).epoch
        self.speak()

    def link(self, host: int) -> Link:
        node = process(self.world, host).node
        assert node is not None
        return node.link(self.world.hosts[1 - host].peer_id)

    def speak(self) -> None:
        if not self.world.talks:
            return
        for who in self.world.live():
            for peer_id in list(who.known):
                who.speak(peer_id)
        self.world.at(0.05, self.speak)

    def back_within(self, seconds: float) -> None:
        """Both are connected and hear messages again within so many seconds."""
        end = self.world.now + seconds
        since = self.world.now
        while not all(
            self.link(host).state is LinkState.CONNECTED
            and any(at > since for at, _ in process(self.world, host).messages[-1:])
            for host in range(2)
        ):
            self.world.run(0.05)
            assert self.world.now < end, [self.link(host).state for host in range(2)]

    def check_one_connection_and_nothing_lost(self) -> None:
        """It is still the same connection, and all that it took has arrived, once and in order."""
        self.world.run(5.0)
        self.world.check_settled()
        assert {self.link(host).epoch for host in range(2)} == {self.epoch}
        one, other = process(self.world, 0), process(self.world, 1)
        self.world.read = True
        for sender, receiver in ((one, other), (other, one)):
            put = sender.put[receiver.incarnation, "c"]
            got = receiver.got[sender.incarnation, "c"]
            # What was sent in the last instant may be on its way.
            assert got == put[: len(got)]
            assert len(put) - len(got) <= 3
            assert len(put) > 20

    def changes(self, host: int) -> list[PeerState]:
        return [
            change.state for change in told(process(self.world, host), self.since, PeerStateChanged)
        ]

    def restarts(self) -> list[int]:
        return [self.link(host).history.restarts for host in range(2)]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("hosts", [(0,), (1,), (0, 1)])
def test_a_change_of_network_is_a_pause(seed: int, hosts: tuple[int, ...]) -> None:
    """Local addresses change, and with them the way to the relay: on one side or on both."""
    talk = Talk(seed)
    for host in hosts:
        talk.world.move(host)
    # It is noticed in a second; the signalling may take longer to come back.
    talk.back_within(1.0 + 9.0 + 3.0)
    talk.check_one_connection_and_nothing_lost()
    assert min(talk.restarts()) >= 1


@pytest.mark.parametrize("seed", SEEDS)
def test_a_change_of_network_with_signalling_at_hand_is_not_even_told(seed: int) -> None:
    talk = Talk(seed)
    for conn in process(talk.world, 0).conns.values():
        conn.dead |= conn.described
    node = process(talk.world, 0).node
    assert node is not None
    process(talk.world, 0).node_said(node.addresses_changed(talk.world.now))
    talk.back_within(1.5)
    talk.check_one_connection_and_nothing_lost()
    assert (talk.restarts(), talk.changes(0), talk.changes(1)) == ([1, 1], [], [])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("host", [0, 1])
def test_a_mapping_that_is_lost_is_noticed_by_silence(seed: int, host: int) -> None:
    """The router forgot it: nobody is told, nothing passes any more, new mappings work."""
    talk = Talk(seed)
    talk.world.move(host, told=False)
    talk.back_within(2.5 + 1.5)
    talk.check_one_connection_and_nothing_lost()
    assert min(talk.restarts()) >= 1


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("one_way", [None, 0, 1])
def test_a_path_that_is_out_for_ten_seconds_keeps_its_connection(
    seed: int, one_way: int | None
) -> None:
    talk = Talk(seed)
    if one_way is None:
        talk.world.outage(0, 1, 10.0)
    else:
        talk.world.outage(one_way, 1 - one_way, 10.0, one_way=True)
    talk.world.run(10.0)
    talk.back_within(1.5)
    talk.check_one_connection_and_nothing_lost()


@pytest.mark.parametrize("seed", SEEDS)
def test_flapping_every_few_seconds_keeps_the_connection(seed: int) -> None:
    talk = Talk(seed)
    for _ in range(10):
        talk.world.outage(0, 1, talk.world.rng.uniform(1.0, 4.0))
        talk.world.run(talk.world.rng.uniform(4.0, 7.0))
        if talk.world.rng.random() < 0.3:
            talk.world.move(talk.world.rng.randrange(2), told=False)
    talk.back_within(2.5 + 5.0 + 1.5)
    talk.check_one_connection_and_nothing_lost()


@pytest.mark.parametrize("seed", SEEDS)
def test_both_sides_restart_at_once_and_one_restart_comes_of_it(seed: int) -> None:
    talk = Talk(seed)
    for host in range(2):
        who = process(talk.world, host)
        assert who.node is not None
        who.node_said(who.node.force_restart(None, talk.world.now))
        talk.world.run(talk.world.rng.random() * 0.3)
    talk.world.run(3.0)
    talk.check_one_connection_and_nothing_lost()
    assert {talk.link(host).generation for host in range(2)} & {1, 2, 3}
    assert talk.link(0).generation == talk.link(1).generation
    assert (talk.changes(0), talk.changes(1)) == ([], [])


@pytest.mark.parametrize("seed", SEEDS)
def test_ten_restarts_in_a_row_are_not_felt(seed: int) -> None:
    talk = Talk(seed)
    for number in range(10):
        who = process(talk.world, number % 2)
        assert who.node is not None
        who.node_said(who.node.force_restart(None, talk.world.now))
        talk.world.run(1.5)
    talk.check_one_connection_and_nothing_lost()
    assert talk.restarts() == [10, 10]
    assert (talk.changes(0), talk.changes(1)) == ([], [])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("host", [0, 1])
def test_a_path_that_ends_while_signalling_is_away_waits_for_it(seed: int, host: int) -> None:
    talk = Talk(seed)
    talk.world.hosts[host].away_until = talk.world.now + 8.0
    socket = process(talk.world, host).socket
    assert socket is not None
    socket.carries = False
    talk.world._client_notices(socket, "cut")
    talk.world.move(host, told=False)
    talk.world.run(8.0)
    assert talk.link(0).state is talk.link(1).state is LinkState.DISCONNECTED
    # The wait for the next try of the signalling, and a restart that was lost on the way.
    talk.back_within(MESH.signaling_retry_max + 5.0)
    talk.check_one_connection_and_nothing_lost()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_path_over_turn_is_left_for_a_direct_one_when_there_is_one(seed: int) -> None:
    talk = Talk(seed)
    talk.world.over_turn = True
    for conn in talk.world.live()[0].conns.values():
        assert conn.remote is not None
        talk.world._selected(conn, answered=True)
        talk.world._selected(conn.remote, answered=True)
    talk.world.over_turn = False
    talk.world.run(MESH.upgrade_first + 1.5)
    reports = [told(process(talk.world, h), talk.since, ConnectionReport) for h in range(2)]
    for seen in reports:
        assert [report.path for report in seen] == [Path.TURN, Path.DIRECT]
    talk.check_one_connection_and_nothing_lost()


@pytest.mark.parametrize("seed", SEEDS)
def test_turn_credentials_that_expire_are_replaced_before_they_do(seed: int) -> None:
    """As soon as there are new ones; the path that there is carries data until another does."""
    talk = Talk(seed)
    talk.world.over_turn = True
    for password in ("password", "another"):
        servers = IceServers([IceServerInfo(["turn:turn.example.org"], "user", password)], 60.0)
        for who in talk.world.live():
            assert who.node is not None
            who.node_said(who.node.signaling(servers, talk.world.now))
        if password == "password":
            assert talk.restarts() == [0, 0]
            for conn in talk.world.live()[0].conns.values():
                assert conn.remote is not None
                talk.world._selected(conn, answered=True)
                talk.world._selected(conn.remote, answered=True)
    talk.world.run(2.0)
    assert min(talk.restarts()) >= 1
    talk.check_one_connection_and_nothing_lost()
    assert (talk.changes(0), talk.changes(1)) == ([], [])
    paths = {r.path for h in range(2) for r in told(process(talk.world, h), 0, ConnectionReport)}
    assert Path.RELAY not in paths


# --- the relay as a path --------------------------------------------------------------------------


class Blocked(Talk):
    """Two whose networks let nothing pass between them, for a while."""

    def __init__(self, seed: int, *, seconds: float, config: MeshConfig = MESH) -> None:
        self.world = World(2, seed, mesh=config)
        self.world.outage(0, 1, seconds)
        for host in range(2):
            self.world.start(host)
        self.since = 0.0
        self.speak()

    def paths(self) -> list[Path | None]:
        return [
            who.node.path_of(peer_id)
            for who in self.world.live()
            if who.node is not None
            for peer_id in who.known
        ]

    def until_path(self, path: Path, within: float) -> None:
        """Both have this path, and hear messages over it, within so many seconds."""
        end = self.world.now + within
        while self.paths() != [path, path]:
            self.world.run(0.05)
            assert self.world.now < end, self.paths()
        since = self.world.now
        while not all(who.messages[-1:] > [(since, "")] for who in self.world.live()):
            self.world.run(0.05)
            assert self.world.now < end + 0.2

    def check_nothing_lost(self) -> None:
        for who in self.world.live():
            assert who.given_up == {}
            assert sum(len(numbers) for numbers in who.put.values()) > 20
        self.world.check_all_arrived()


@pytest.mark.parametrize("seed", SEEDS)
def test_without_a_direct_path_the_relay_is_one_and_later_a_direct_path_is(seed: int) -> None:
    """Also what was sent before there was any path has arrived."""
    talk = Blocked(seed, seconds=60.0)
    talk.world.run(0.5)
    talk.until_path(Path.RELAY, MESH.relay_after or 0.0)
    talk.world.run_until(59.9)
    assert talk.paths() == [Path.RELAY, Path.RELAY]
    talk.until_path(Path.DIRECT, MESH.upgrade_max + 2 * MESH.connect_timeout)
    talk.check_nothing_lost()
    for host in range(2):
        assert talk.changes(host)[-1:] == [PeerState.CONNECTED]
        assert talk.changes(host).count(PeerState.CONNECTED) == 1, "the path changed, no more"


@pytest.mark.parametrize("seed", SEEDS)
def test_with_relay_after_0_talk_begins_before_there_is_a_direct_path(seed: int) -> None:
    talk = Blocked(seed, seconds=20.0, config=replace(MESH, relay_after=0.0))
    talk.until_path(Path.RELAY, 0.5)
    talk.world.run_until(20.0)
    talk.until_path(Path.DIRECT, MESH.upgrade_max + 2 * MESH.connect_timeout)
    talk.check_nothing_lost()


@pytest.mark.parametrize("seed", SEEDS)
def test_with_relay_after_none_nothing_goes_over_the_relay(seed: int) -> None:
    talk = Blocked(seed, seconds=30.0, config=replace(MESH, relay_after=None))
    talk.world.run(30.0)
    assert talk.paths() == [None, None]
    assert talk.world.frames_forwarded == 0
    talk.until_path(Path.DIRECT, MESH.retry_max + 2 * MESH.connect_timeout)
    talk.check_nothing_lost()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("fault", ["restart", "one socket", "both sockets"])
def test_the_relay_fails_while_it_is_the_path(seed: int, fault: str) -> None:
    talk = Blocked(seed, seconds=200.0)
    talk.world.run(5.0)
    for _ in range(4):
        talk.until_path(Path.RELAY, 10.0)
        if fault == "restart":
            talk.world.kill_relay(2.0)
        for host in range(1 + (fault == "both sockets")):
            socket = process(talk.world, host).socket
            if socket is not None and fault != "restart":
                talk.world.cut(socket)
        # Up to 15 s, until both ends of a socket have noticed; then a wait for the next try.
        talk.world.run(16.0 + MESH.signaling_retry_max)
    talk.until_path(Path.RELAY, 5.0)
    talk.check_nothing_lost()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_path_that_comes_and_goes_under_traffic_loses_nothing(seed: int) -> None:
    """Outages longer than `relay_after`, one way or both, while both send more than a little."""
    talk = Blocked(seed, seconds=1.0)
    world, rng = talk.world, talk.world.rng
    world.bytes_a_second = 300_000.0
    world.at(1.0, world.speak)
    for _ in range(12):
        world.run(rng.uniform(2.0, 12.0))
        a = rng.randrange(2)
        world.outage(a, 1 - a, rng.uniform(1.0, 25.0), one_way=rng.random() < 0.5)
        if rng.random() < 0.3:
            world.move(a, told=rng.random() < 0.5)
    world.run(25.0)
    talk.until_path(Path.DIRECT, MESH.upgrade_max + 3 * MESH.connect_timeout)
    talk.check_nothing_lost()
    assert {Path.RELAY, Path.DIRECT} <= {
        report.path for report in told(process(world, 0), 0.0, ConnectionReport)
    }


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("blocked", [0.0, 1000.0])
def test_who_does_not_read_stops_its_sender_on_any_path(seed: int, blocked: float) -> None:
    world = World(2, seed)
    world.read = False
    world.outage(0, 1, blocked)
    for host in range(2):
        world.start(host)
    world.run(6.0)
    source, reader = process(world, 0), process(world, 1)
    assert source.node is not None
    assert reader.node is not None
    for _ in range(2000):
        source.speak("d", 30_000)
        world.run(0.01)
    sent = source.sent
    delivery = source.node.delivery("d")
    assert MESH.send_window <= delivery.unacknowledged < MESH.send_window + 40_000
    assert 0 < reader.node.delivery("m").unread <= MESH.channel_window
    world.run(10.0)
    assert delivery.unacknowledged >= MESH.send_window
    # It reads what it was given, then goes on.
    world.read = True
    for who in (source, reader):
        for message in who.untaken:
            who.take(*message)
    world.run(60.0)  # about a second for each window that it reads
    assert len(reader.messages) == sent
    world.check_all_arrived()


@pytest.mark.parametrize("seed", SEEDS)
def test_what_a_crash_left_undelivered_is_told(seed: int) -> None:
    """`World` compares what is told with what was not acknowledged."""
    talk = Talk(seed)
    other = process(talk.world, 1)
    other.crash()
    talk.world.run(15.0 + RELAY.seat_timeout + 2.0)
    (undelivered,) = told(process(talk.world, 0), talk.since, MessagesUndelivered)
    assert len(undelivered.messages) > 100
    arrived = other.got[process(talk.world, 0).incarnation, "c"]
    numbers = [message.data[1] for message in undelivered.messages]
    # Of what had arrived the last few may not have been acknowledged.
    assert arrived[-1] + 1 - 5 <= numbers[0] <= arrived[-1] + 1
    assert numbers == list(range(numbers[0], numbers[-1] + 1))


@pytest.mark.parametrize("seed", SEEDS)
def test_both_ask_for_the_relay_just_as_the_connection_is_back(seed: int) -> None:
    """Each goes along with the other, and its own word for the connection comes too late."""
    talk = Blocked(seed, seconds=0.0)
    world = talk.world
    world.run(3.0)
    for _ in range(5):
        assert talk.paths() == [Path.DIRECT, Path.DIRECT]
        world.outage(0, 1, 0.3)  # too short to be noticed, but SCTP sends again only after a second
        for host, who in enumerate(world.live()):
            (peer_id,) = who.known
            assert who.node is not None
            delivery, epoch = who.node.delivery(peer_id), talk.link(host).epoch
            who.send_frame(peer_id, OVER_RELAY, delivery.attach(OVER_RELAY, ask=True))
            who.send_frame(peer_id, epoch, delivery.attach(epoch, ask=True))
        world.run(0.25)
        assert talk.paths() == [Path.RELAY, Path.RELAY]
        talk.until_path(Path.DIRECT, MESH.silence_timeout)
        world.run(1.0)
    talk.check_nothing_lost()
