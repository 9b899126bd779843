"""What the operator sees, of meshes that are known: every number of it."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable, Generator, Iterator
from itertools import combinations, pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshpeer.core import tracking
from meshpeer.core.messages import LinkReport, Report, decode_client, encode
from meshpeer.core.tracking import (
    MAX_ACTIVITY,
    MAX_PART,
    MAX_SAMPLES,
    SAMPLE_INTERVAL,
    Activity,
    ConnectionInfo,
    LinkInfo,
    LinkSide,
    MemberInfo,
    MeshStatus,
    Metrics,
    PeerInfo,
    RoomInfo,
    RoomTopology,
    Sample,
    StatusPart,
    Sums,
    Tracking,
)

WALL = 1_700_000_000.0
"""What the core's clock lacks to Unix time."""


def incarnation(peer_id: str, number: int = 1) -> str:
    return f"{peer_id}-incarnation-{number}"


def about(peer_id: str, state: str = "connected", number: int = 1, **more: Any) -> LinkReport:
    """What somebody says of its link with ``peer_id``."""
    fields: dict[str, Any] = {"ice_state": "connected" if state == "connected" else "checking"}
    if state == "connected":
        fields |= {"path": "direct"}
    return LinkReport(
        peer_id=peer_id,
        incarnation=incarnation(peer_id, number),
        state=state,  # type: ignore[arg-type]
        **(fields | more),
    )


class Picture(Tracking):
    """With less to write."""

    def enter(self, room: str, *peer_ids: str, now: float = 0.0) -> None:
        for peer_id in peer_ids:
            self.joined(room, peer_id, incarnation(peer_id), None, now)

    def tell(self, peer_id: str, *links: LinkReport, now: float = 0.0, room: str = "r") -> None:
        self.reported(room, peer_id, list(links), now)

    def both(self, one: str, other: str, *, now: float = 0.0, room: str = "r", **more: Any) -> None:
        """Both ends of a link say the same."""
        self.tell(one, about(other, **more), now=now, room=room)
        self.tell(other, about(one, **more), now=now, room=room)

    def link(self, room: str = "r") -> LinkInfo:
        """The only one of the room."""
        topology = self.room(room, 0.0)
        assert topology is not None
        (link,) = topology.links
        return link

    def numbers(self, room: str = "r") -> tuple[int, int, int, int, int]:
        """links, direct, turn, relay, unconnected"""
        (info,) = (info for info in self.rooms(0.0) if info.room_id == room)
        assert info.links == info.direct + info.turn + info.relay + info.unconnected
        return info.links, info.direct, info.turn, info.relay, info.unconnected

    def texts(self, kind: str) -> list[str]:
        return [entry.text for entry in self.activity(0.0) if entry.kind == kind]


# --- a known mesh --------------------------------------------------------------------------------


def known_mesh() -> Picture:
    """Two rooms.

    lobby: ann-bob direct, ann-cid over TURN, ann-dan over the relay, bob-cid restarting, bob-dan
    told by one end only, cid-dan told by nobody; dan's socket is gone. annex: eve-fay failed.
    """
    mesh = Picture()
    mesh.joined("lobby", "ann", incarnation("ann"), "Ann", 1.0, address="192.0.2.1", subject="a@x")
    mesh.joined("lobby", "bob", incarnation("bob"), "Bob", 2.0, address="192.0.2.2")
    mesh.joined("lobby", "cid", incarnation("cid"), None, 3.0)
    mesh.joined("lobby", "dan", incarnation("dan"), None, 4.0)
    mesh.joined("annex", "eve", incarnation("eve"), None, 5.0)
    mesh.joined("annex", "fay", incarnation("fay"), None, 6.0)
    mesh.reported(
        "lobby",
        "ann",
        [
            LinkReport(
                peer_id="bob",
                incarnation=incarnation("bob"),
                state="connected",
                ice_state="connected",
                path="direct",
                rtt=0.025,
                reason="the pair was selected",
                failure="no answer",
                restarts=2,
                attempts=4,
                successes=3,
                failures=1,
                connect_time=1.5,
                fallbacks=1,
                messages=10,
                bytes_sent=1000,
                bytes_received=2000,
            ),
            about(
                "cid", path="turn", rtt=0.125, attempts=2, successes=1, failures=1, connect_time=0.5
            ),
            about(
                "dan",
                path="relay",
                rtt=0.25,
                attempts=3,
                failures=2,
                fallbacks=2,
                messages=5,
                ice_state="failed",
            ),
        ],
        10.0,
    )
    mesh.reported(
        "lobby",
        "bob",
        [
            about("ann", rtt=0.075, attempts=99, successes=99, failures=99, messages=7),
            about("cid", "disconnected", path="direct", reason="nothing heard for 2.5 s"),
            about("dan", "connecting", attempts=1),
        ],
        11.0,
    )
    mesh.reported(
        "lobby",
        "cid",
        [
            about("ann", path="turn", messages=3),
            about("bob", rtt=0.5, ice_state="completed"),
        ],
        12.0,
    )
    mesh.reported("lobby", "dan", [about("ann", path="relay", rtt=0.75)], 13.0)
    mesh.reported("annex", "eve", [about("fay", "failed", ice_state="failed")], 14.0)
    mesh.dropped("lobby", "dan", 15.0)
    return mesh


def side(updated: float, **more: Any) -> LinkSide:
    fields: dict[str, Any] = {
        "state": "connected",
        "ice_state": "connected",
        "path": "direct",
        "rtt": None,
        "reason": "",
        "failure": "",
        "restarts": 0,
        "attempts": 0,
        "successes": 0,
        "failures": 0,
        "connect_time": None,
        "fallbacks": 0,
        "messages": 0,
        "bytes_sent": 0,
        "bytes_received": 0,
        "since": WALL + updated,
        "updated": WALL + updated,
    }
    return LinkSide(**(fields | more))


def member(peer_id: str, joined: float, seen: float, **more: Any) -> MemberInfo:
    fields: dict[str, Any] = {
        "incarnation": incarnation(peer_id),
        "display_name": None,
        "subject": None,
        "presence": "present",
        "address": None,
    }
    return MemberInfo(
        peer_id=peer_id, joined=WALL + joined, last_seen=WALL + seen, **(fields | more)
    )


ANN_BOB = LinkInfo(
    a="ann",
    b="bob",
    state="connected",
    path="direct",
    rtt=0.05,
    quality="good",
    since=WALL + 10,
    a_side=side(
        10,
        rtt=0.025,
        reason="the pair was selected",
        failure="no answer",
        restarts=2,
        attempts=4,
        successes=3,
        failures=1,
        connect_time=1.5,
        fallbacks=1,
        messages=10,
        bytes_sent=1000,
        bytes_received=2000,
    ),
    b_side=side(11, rtt=0.075, attempts=99, successes=99, failures=99, messages=7),
)
ANN_CID = LinkInfo(
    a="ann",
    b="cid",
    state="connected",
    path="turn",
    rtt=0.125,
    quality="good",
    since=WALL + 10,
    a_side=side(10, path="turn", rtt=0.125, attempts=2, successes=1, failures=1, connect_time=0.5),
    b_side=side(12, path="turn", messages=3),
)
ANN_DAN = LinkInfo(
    a="ann",
    b="dan",
    state="connected",
    path="relay",
    rtt=0.25,  # not the mean with what dan said, which is away
    quality="fair",
    since=WALL + 10,
    a_side=side(
        10,
        path="relay",
        rtt=0.25,
        attempts=3,
        failures=2,
        fallbacks=2,
        messages=5,
        ice_state="failed",
    ),
    b_side=side(13, path="relay", rtt=0.75),
)
BOB_CID = LinkInfo(
    a="bob",
    b="cid",
    state="disconnected",
    path="direct",
    rtt=0.5,
    quality="poor",
    since=WALL + 11,
    a_side=side(
        11,
        state="disconnected",
        ice_state="checking",
        reason="nothing heard for 2.5 s",
    ),
    b_side=side(12, rtt=0.5, ice_state="completed"),
)
BOB_DAN = LinkInfo(
    a="bob",
    b="dan",
    state="connecting",
    path=None,
    rtt=None,
    quality=None,
    since=WALL + 11,
    a_side=side(11, state="connecting", ice_state="checking", path=None, attempts=1),
    b_side=None,
)
EVE_FAY = LinkInfo(
    a="eve",
    b="fay",
    state="failed",
    path=None,
    rtt=None,
    quality="poor",
    since=WALL + 14,
    a_side=side(14, state="failed", ice_state="failed", path=None),
    b_side=None,
)
ANN = member("ann", 1, 10, display_name="Ann", address="192.0.2.1", subject="a@x")
BOB = member("bob", 2, 11, display_name="Bob", address="192.0.2.2")
CID = member("cid", 3, 12)
DAN = member("dan", 4, 15, presence="away")
EVE = member("eve", 5, 14)
FAY = member("fay", 6, 6)
LOBBY = RoomTopology(
    room_id="lobby",
    members=[ANN, BOB, CID, DAN],
    # Each member's to those before it.
    links=[ANN_BOB, ANN_CID, BOB_CID, ANN_DAN, BOB_DAN],
)
ANNEX = RoomTopology(room_id="annex", members=[EVE, FAY], links=[EVE_FAY])


def test_metrics() -> None:
    # What happens once for a pair is the word of ann, bob and eve, who dial. The pairs that can
    # talk are those of ann, bob and cid, eve and fay, and ann and dan as they are connected.
    assert known_mesh().metrics() == Metrics(
        total_p2p_attempts=4 + 2 + 3 + 0 + 1 + 0,
        successful_p2p_connections=3 + 1,
        failed_p2p_connections=1 + 1 + 2,
        active_p2p_connections=2,
        average_connection_time=(1.5 + 0.5) / 4,
        mesh_upgrade_rate=2 / 5,
        p2p_message_count=10 + 5 + 7 + 3,
        fallback_count=1 + 2,
    )


def test_connections() -> None:
    def connection(peer_id: str, seen: float, **more: Any) -> ConnectionInfo:
        fields: dict[str, Any] = {
            "display_name": None,
            "room_id": "lobby",
            "p2p_peers": [],
            "ice_state": None,
            "path": None,
            "rtt": None,
            "connection_quality": None,
            "is_p2p_active": False,
        }
        return ConnectionInfo(peer_id=peer_id, last_seen=WALL + seen, **(fields | more))

    assert known_mesh().status(WALL).connections == [
        connection(
            "ann",
            10,
            display_name="Ann",
            p2p_peers=["bob", "cid"],
            ice_state="failed",
            path="relay",
            rtt=0.125,
            connection_quality="fair",
            is_p2p_active=True,
        ),
        connection(
            "bob",
            11,
            display_name="Bob",
            p2p_peers=["ann"],
            ice_state="checking",
            path="direct",
            rtt=0.05,
            connection_quality="poor",
            is_p2p_active=True,
        ),
        connection(
            "cid",
            12,
            p2p_peers=["ann"],
            ice_state="connected",
            path="turn",
            rtt=0.125,
            connection_quality="poor",
            is_p2p_active=True,
        ),
        # Away: what ann and bob say of it.
        connection(
            "dan", 15, ice_state="failed", path="relay", rtt=0.25, connection_quality="fair"
        ),
        connection("eve", 14, room_id="annex", ice_state="failed", connection_quality="poor"),
        connection("fay", 6, room_id="annex", ice_state="failed", connection_quality="poor"),
    ]


def test_topology() -> None:
    mesh = known_mesh()
    assert mesh.status(WALL).topology == [LOBBY, ANNEX]
    assert mesh.room("lobby", WALL) == LOBBY
    assert mesh.room("annex", WALL) == ANNEX
    assert mesh.room("cellar", WALL) is None


def test_rooms() -> None:
    assert known_mesh().rooms(WALL) == [
        RoomInfo(
            room_id="lobby",
            members=4,
            away=1,
            links=4,
            direct=1,
            turn=1,
            relay=1,
            unconnected=1,
            since=WALL + 1,
        ),
        RoomInfo(
            room_id="annex",
            members=2,
            away=0,
            links=1,
            direct=0,
            turn=0,
            relay=0,
            unconnected=1,
            since=WALL + 5,
        ),
    ]


def test_the_largest_room_comes_first() -> None:
    mesh = Picture()
    mesh.enter("one", "a")
    mesh.enter("three", "a", "b", "c")
    mesh.enter("two", "a", "b")
    assert [room.room_id for room in mesh.rooms(WALL)] == ["three", "two", "one"]
    assert mesh.rooms(WALL, 2) == mesh.rooms(WALL)[:2]


def test_all_rooms_in_numbers() -> None:
    mesh = known_mesh()
    assert mesh.sums() == Sums(rooms=2, members=6, away=1, direct=1, turn=1, relay=1, unconnected=2)
    assert Picture().sums() == Sums(0, 0, 0, 0, 0, 0, 0)


def test_peers() -> None:
    lobby = [
        PeerInfo(room_id="lobby", member=ANN, links=[ANN_BOB, ANN_CID, ANN_DAN]),
        PeerInfo(room_id="lobby", member=BOB, links=[ANN_BOB, BOB_CID, BOB_DAN]),
        PeerInfo(room_id="lobby", member=CID, links=[ANN_CID, BOB_CID]),
        PeerInfo(room_id="lobby", member=DAN, links=[ANN_DAN, BOB_DAN]),
    ]
    annex = [
        PeerInfo(room_id="annex", member=EVE, links=[EVE_FAY]),
        PeerInfo(room_id="annex", member=FAY, links=[EVE_FAY]),
    ]
    mesh = known_mesh()
    assert mesh.peers(WALL) == lobby + annex
    assert mesh.peers(WALL, "annex") == annex
    assert mesh.peers(WALL, "cellar") == []


# --- in parts ------------------------------------------------------------------------------------
Steps = Generator[None, None, RoomTopology | None]


def last(steps: Steps, between: Callable[[], None] = lambda: None) -> RoomTopology | None:
    """What it comes to. ``between`` is called between the steps."""
    told = []

    def run() -> Iterator[None]:
        told.append((yield from steps))

    for _ in run():
        between()
    return told[0]


def full_mesh(*sizes: int) -> Picture:
    """The room r2 has two members, and so on; all are linked."""
    mesh = Picture()
    for size in sizes:
        room = f"r{size}"
        members = [f"p{number:03}" for number in range(size)]
        mesh.enter(room, *members)
        for one in members:
            mesh.tell(one, *(about(other) for other in members if other != one), room=room)
    return mesh


def ends_of(part: StatusPart) -> int:
    """`about` knows of no closed ones, so all links are somebody's."""
    return 2 * len(part.connections) + sum(len(c.p2p_peers) for c in part.connections)


def whole(parts: list[StatusPart]) -> list[RoomTopology]:
    rooms: list[RoomTopology] = []
    for part in parts:
        if part.first:
            rooms.append(RoomTopology(part.room.room_id, [], []))
        assert part.room.room_id == rooms[-1].room_id
        assert [m.peer_id for m in part.room.members] == [c.peer_id for c in part.connections]
        rooms[-1].members.extend(part.room.members)
        rooms[-1].links.extend(part.room.links)
    return rooms


def test_parts_are_small_and_come_to_all_of_it() -> None:
    mesh = full_mesh(2, 31, 32, 60)
    parts = list(mesh.status_parts(WALL))
    assert all(0 < ends_of(part) <= MAX_PART for part in parts)
    assert all(len(part.room.links) <= MAX_PART for part in parts)
    # A room that is not too large is in one part; a larger one is in few.
    sizes = [(part.room.room_id, part.first, len(part.connections)) for part in parts]
    assert sizes == [
        ("r2", True, 2),
        ("r31", True, 31),
        ("r32", True, 30),
        ("r32", False, 2),
        ("r60", True, 16),
        ("r60", False, 16),
        ("r60", False, 16),
        ("r60", False, 12),
    ]
    status = mesh.status(WALL)
    assert whole(parts) == status.topology
    assert [c for part in parts for c in part.connections] == status.connections
    assert [len(room.links) for room in status.topology] == [1, 465, 496, 1770]
    for room in status.topology:
        assert len({(link.a, link.b) for link in room.links}) == len(room.links)
    groups = list(mesh.peers_parts(WALL))
    assert [len(group) for group in groups] == [size for _, _, size in sizes]
    assert [peer for group in groups for peer in group] == mesh.peers(WALL)
    assert [len(group) for group in mesh.peers_parts(WALL, "r32")] == [30, 2]


def test_who_has_more_links_than_a_part_is_a_part() -> None:
    mesh = Picture()
    others = [f"p{number:04}" for number in range(MAX_PART + 1)]
    mesh.enter("r", "hub", *others)
    mesh.tell("hub", *(about(other) for other in others))
    parts = list(mesh.status_parts(WALL))
    assert [len(part.connections) for part in parts][:2] == [1, MAX_PART // 3]
    assert sum(len(part.room.links) for part in parts) == MAX_PART + 1
    assert all(len(part.room.links) <= MAX_PART for part in parts)


def test_rooms_without_a_link_are_not_all_in_one_part() -> None:
    mesh = Picture()
    for number in range(MAX_PART):
        mesh.enter(f"r{number}", "a", *(["b"] if number % 2 else []))
    groups = list(mesh.rooms_parts(WALL))
    assert [len(group) for group in groups] == [MAX_PART // 2] * 2
    assert [room for group in groups for room in group] == mesh.rooms(WALL)
    mesh.enter("many", *(f"p{number}" for number in range(MAX_PART)))
    assert [len(p.connections) for p in mesh.status_parts(WALL) if p.room.room_id == "many"] == [
        MAX_PART // 2
    ] * 2


def test_rooms_that_end_between_two_parts_are_in_none(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = full_mesh(2, 32, 3)
    status, peers = mesh.status_parts(WALL), mesh.peers_parts(WALL)
    assert [next(status).room.room_id for _ in range(2)] == ["r2", "r32"]
    assert [next(peers)[0].room_id for _ in range(2)] == ["r2", "r32"]
    mesh.enter("late", "a")
    for room, size in (("r32", 32), ("r3", 3)):
        for number in range(size):
            mesh.left(room, f"p{number:03}", "left", 1.0)
    assert list(status) == []
    assert list(peers) == []
    monkeypatch.setattr(tracking, "MAX_PART", 2)
    rooms = mesh.rooms_parts(WALL)
    assert [room.room_id for room in next(rooms)] == ["r2"]
    mesh.left("late", "a", "left", 1.0)
    assert [room for group in rooms for room in group] == []


CHANGE = st.tuples(
    st.sampled_from(["joined", "left", "dropped", "returned", "told"]),
    st.integers(0, 9),
    st.integers(0, 9),
)


@given(st.lists(CHANGE, max_size=30), st.lists(st.lists(CHANGE, max_size=8), max_size=12))
def test_whatever_happens_between_two_parts_each_room_is_a_graph(
    before: list[tuple[str, int, int]], between: list[list[tuple[str, int, int]]]
) -> None:
    mesh = Picture()
    ids = [f"p{number}" for number in range(10)]
    seats: dict[str, bool] = {}

    def change(what: str, one: int, other: int) -> None:
        me, far = ids[one], ids[other]
        if what == "joined":
            mesh.enter("r", me)
            seats[me] = True
        elif me not in seats:
            pass
        elif what == "left":
            mesh.left("r", me, "left", 1.0)
            del seats[me]
        elif what == "told" and far != me and seats[me]:
            mesh.tell(me, about(far))
        elif what == "dropped" and seats[me]:
            mesh.dropped("r", me, 1.0)
            seats[me] = False
        elif what == "returned" and not seats[me]:
            mesh.returned("r", me, 1.0)
            seats[me] = True

    turn = 0

    def next_turn() -> None:
        nonlocal turn
        for each in between[turn] if turn < len(between) else []:
            change(*each)
        turn += 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracking, "MAX_PART", 6)
        patch.setattr(tracking, "_LOOKED_AT", 3)
        for each in before:
            change(*each)
        for one, other in combinations(ids, 2):
            if seats.get(one) and seats.get(other):
                mesh.tell(one, about(other))
        parts = []
        for part in mesh.status_parts(WALL):
            parts.append(part)
            next_turn()
        for room in whole(parts):
            members = [member.peer_id for member in room.members]
            assert len(set(members)) == len(members)
            pairs = [(link.a, link.b) for link in room.links]
            assert len(set(pairs)) == len(pairs)
            assert {end for pair in pairs for end in pair} <= set(members)

        turn = 0
        told = last(mesh.room_in_steps("r", WALL, 12), next_turn)
        exact = mesh.room("r", WALL)
        if told is None or exact is None:
            assert told is exact
        else:
            # Some of what is so at the end.
            assert told.members == exact.members
            assert len(told.links) <= 12
            assert all(link in exact.links for link in told.links)


def test_of_a_large_room_what_is_not_connected_comes_first() -> None:
    mesh = known_mesh()
    some = [BOB_CID, BOB_DAN, ANN_DAN]
    assert last(mesh.room_in_steps("lobby", WALL, 3)) == msgspec.structs.replace(LOBBY, links=some)
    assert last(mesh.room_in_steps("lobby", WALL, 5)) == msgspec.structs.replace(
        LOBBY, links=[*some, ANN_BOB, ANN_CID]
    )
    only = msgspec.structs.replace(LOBBY, links=[BOB_CID])
    assert last(mesh.room_in_steps("lobby", WALL, 1)) == only
    assert last(mesh.room_in_steps("nowhere", WALL, 1)) is None


def test_a_step_looks_at_so_many_links_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = full_mesh(60)
    mesh.tell("p058", about("p059", "failed"), room="r60")
    monkeypatch.setattr(tracking, "_LOOKED_AT", 60 * 59 // 12)
    steps = list(mesh.room_in_steps("r60", WALL, 10))
    assert len(steps) == 12 + 1
    told = last(mesh.room_in_steps("r60", WALL, 10))
    assert told is not None
    assert [(link.a, link.b, link.state) for link in told.links][:2] == [
        ("p058", "p059", "failed"),
        ("p000", "p001", "connected"),
    ]
    assert (len(told.members), len(told.links)) == (60, 10)
    # With enough of what comes first it looks no further.
    for number in range(10):
        mesh.tell("p000", about(f"p{number + 40:03}", "failed"), room="r60")
    assert len(list(mesh.room_in_steps("r60", WALL, 10))) == 1


def test_a_room_that_ends_while_it_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "_LOOKED_AT", 1)
    mesh = full_mesh(3)

    def end() -> None:
        for peer_id in ("p000", "p001", "p002"):
            mesh.left("r3", peer_id, "left", 1.0)

    steps = mesh.room_in_steps("r3", WALL, 10)
    next(steps)
    end()
    assert last(steps) is None
    # Another one of its name is told of as it is.
    mesh = full_mesh(3)
    steps = mesh.room_in_steps("r3", WALL, 10)
    next(steps)
    end()
    mesh.enter("r3", "a", "b")
    mesh.both("a", "b", room="r3")
    assert last(steps) == mesh.room("r3", WALL)


def test_activity() -> None:
    def entry(number: int, at: float, kind: str, peer_id: str, **more: Any) -> Activity:
        fields: dict[str, Any] = {"room_id": "lobby"}
        return Activity(number=number, at=WALL + at, kind=kind, peer_id=peer_id, **(fields | more))

    expected = [
        entry(1, 1, "joined", "ann", text="Ann"),
        entry(2, 2, "joined", "bob", text="Bob"),
        entry(3, 3, "joined", "cid"),
        entry(4, 4, "joined", "dan"),
        entry(5, 5, "joined", "eve", room_id="annex"),
        entry(6, 6, "joined", "fay", room_id="annex"),
        entry(
            7,
            10,
            "link",
            "ann",
            other_peer_id="bob",
            text="connected over direct: the pair was selected",
        ),
        entry(8, 10, "link", "ann", other_peer_id="cid", text="connected over turn"),
        entry(9, 10, "link", "ann", other_peer_id="dan", text="connected over relay"),
        # Not one for bob and ann: what bob says changes nothing.
        entry(
            10,
            11,
            "link",
            "bob",
            other_peer_id="cid",
            text="disconnected: nothing heard for 2.5 s",
        ),
        entry(11, 11, "link", "bob", other_peer_id="dan", text="connecting"),
        entry(12, 14, "link", "eve", other_peer_id="fay", room_id="annex", text="failed"),
        entry(13, 15, "dropped", "dan"),
    ]
    mesh = known_mesh()
    assert mesh.activity(WALL) == expected
    assert mesh.activity(WALL, after=11) == expected[11:]
    assert mesh.activity(WALL, after=13) == []
    assert mesh.activity(WALL, after=1000) == []


def test_a_sample() -> None:
    mesh = known_mesh()
    assert mesh.next_deadline() == 1.0 + SAMPLE_INTERVAL
    mesh.tick(16.0)
    # Of the links that are connected: 0.05, 0.125 (0.12 with two digits), 0.25.
    assert mesh.history(WALL) == [
        Sample(
            at=WALL + 16,
            members=6,
            direct=1,
            turn=1,
            relay=1,
            unconnected=2,
            attempts=10,
            successes=4,
            failures=4,
            connection_time=0.5,
            rtt=0.12,
        )
    ]


def test_on_the_wire_it_is_json_with_these_names() -> None:
    status = known_mesh().status(WALL)
    data = msgspec.json.decode(msgspec.json.encode(status))
    assert set(data) == {"metrics", "connections", "topology"}
    assert set(data["metrics"]) == {
        "totalP2PAttempts",
        "successfulP2PConnections",
        "failedP2PConnections",
        "activeP2PConnections",
        "averageConnectionTime",
        "meshUpgradeRate",
        "p2pMessageCount",
        "fallbackCount",
    }
    assert set(data["connections"][0]) == {
        "peerId",
        "displayName",
        "roomId",
        "p2pPeers",
        "iceState",
        "path",
        "rtt",
        "connectionQuality",
        "isP2PActive",
        "lastSeen",
    }
    assert msgspec.json.decode(msgspec.json.encode(status), type=MeshStatus) == status
    entry = msgspec.json.decode(msgspec.json.encode(Activity(number=1, at=2.0, kind="refused")))
    assert entry == {"number": 1, "at": 2.0, "kind": "refused"}


def test_an_empty_relay() -> None:
    mesh = Tracking()
    assert mesh.metrics() == Metrics(
        total_p2p_attempts=0,
        successful_p2p_connections=0,
        failed_p2p_connections=0,
        active_p2p_connections=0,
        average_connection_time=None,
        mesh_upgrade_rate=None,
        p2p_message_count=0,
        fallback_count=0,
    )
    assert mesh.status(WALL).connections == []
    assert mesh.status(WALL).topology == []
    assert mesh.rooms(WALL) == []
    assert mesh.peers(WALL) == []
    assert mesh.activity(WALL) == []
    assert mesh.history(WALL) == []
    assert mesh.refusals == {}
    assert mesh.next_deadline() is None
    mesh.tick(1e6)
    assert mesh.history(WALL) == []


# --- how a link stands ---------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["a", "b"])
def test_the_worse_state_counts(first: str) -> None:
    order = ["connected", "new", "connecting", "disconnected", "failed", "closed"]
    for better, worse in pairwise(order):
        mesh = Picture()
        mesh.enter("r", "a", "b")
        second = "b" if first == "a" else "a"
        mesh.tell(first, about(second, better))
        mesh.tell(second, about(first, worse))
        assert mesh.link().state == worse
        mesh.tell(first, about(second, worse))
        mesh.tell(second, about(first, better))
        assert mesh.link().state == worse


def test_the_worse_path_counts() -> None:
    order = [None, "direct", "turn", "relay"]
    for better, worse in pairwise(order):
        mesh = Picture()
        mesh.enter("r", "a", "b")
        mesh.tell("a", about("b", path=better))
        mesh.tell("b", about("a", path=worse))
        assert mesh.link().path == worse


@pytest.mark.parametrize(
    ("more", "quality"),
    [
        ({"rtt": 0.149}, "good"),
        ({"rtt": 0.149, "path": "turn"}, "good"),
        ({"rtt": 0.149, "path": "relay"}, "fair"),
        ({"rtt": 0.15}, "fair"),
        ({"rtt": 0.399}, "fair"),
        ({"rtt": 0.4}, "poor"),
        ({"rtt": 0.4, "path": "relay"}, "poor"),
        ({"rtt": None}, None),
        ({"rtt": 0.01, "path": None}, None),
        ({"state": "new", "rtt": 0.01}, None),
        ({"state": "connecting", "rtt": 0.01}, None),
        ({"state": "disconnected", "rtt": 0.01}, "poor"),
        ({"state": "failed", "rtt": None}, "poor"),
        ({"state": "closed", "rtt": 0.01}, None),
    ],
)
def test_quality(more: dict[str, Any], quality: str | None) -> None:
    mesh = Picture()
    mesh.enter("r", "a", "b")
    mesh.both("a", "b", **more)
    assert mesh.link().quality == quality


def test_one_end_alone_is_believed_until_the_other_says_otherwise() -> None:
    mesh = Picture()
    mesh.enter("r", "a", "b")
    assert mesh.numbers() == (1, 0, 0, 0, 1)
    mesh.tell("b", about("a"), now=1.0)
    assert mesh.numbers() == (1, 1, 0, 0, 0)
    assert mesh.metrics().mesh_upgrade_rate == 1.0
    mesh.tell("a", about("b", "connecting"), now=2.0)
    assert mesh.numbers() == (1, 0, 0, 0, 1)
    assert mesh.link().since == 2.0
    mesh.tell("a", about("b", path="turn"), now=3.0)
    assert mesh.numbers() == (1, 0, 1, 0, 0)
    assert mesh.texts("link") == ["connected over direct", "connecting", "connected over turn"]


def test_those_that_one_is_connected_to_are_in_order() -> None:
    mesh = Picture()
    mesh.enter("r", "a", "b", "c", "d")
    mesh.tell("b", about("d"), about("a"), about("c", path="relay"))
    assert [c.p2p_peers for c in mesh.status(0.0).connections] == [["b"], ["a", "d"], [], ["b"]]


def test_another_path_of_a_connected_link() -> None:
    mesh = Picture()
    mesh.enter("r", "a", "b")
    mesh.both("a", "b")
    mesh.tell("b", about("a", path="relay", reason="no direct path for 3 s"))
    assert mesh.numbers() == (1, 0, 0, 1, 0)
    assert mesh.texts("link") == [
        "connected over direct",
        "connected over relay: no direct path for 3 s",
    ]


def test_a_path_that_nobody_named_is_no_connection() -> None:
    mesh = Picture()
    mesh.enter("r", "a", "b")
    mesh.both("a", "b", path=None)
    assert mesh.numbers() == (1, 0, 0, 0, 1)
    assert mesh.texts("link") == ["connected"]


def test_the_time_in_a_state_is_that_of_the_state_alone() -> None:
    mesh = Picture()
    mesh.enter("r", "a", "b")
    mesh.tell("a", about("b", rtt=0.1), now=1.0)
    mesh.tell("a", about("b", rtt=0.2, path="relay"), now=2.0)
    link = mesh.link()
    assert (link.since, link.rtt) == (1.0, 0.2)
    assert link.a_side is not None
    assert (link.a_side.since, link.a_side.updated) == (1.0, 2.0)
    mesh.tell("a", about("b", "disconnected"), now=3.0)
    link = mesh.link()
    assert link.since == 3.0
    assert link.a_side is not None
    assert link.a_side.since == 3.0


def test_a_round_trip_is_followed() -> None:
    mesh = Picture()
    mesh.enter("r", "a", "b")
    mesh.both("a", "b", rtt=0.1)
    mesh.tell("b", about("a", rtt=0.3))
    assert mesh.link().rtt == 0.2
    mesh.tell("b", about("a", rtt=None))
    assert mesh.link().rtt == 0.1
    mesh.tick(10.0)
    mesh.tell("a", about("b", rtt=None))
    assert mesh.link().rtt is None
    mesh.tick(20.0)
    assert [sample.rtt for sample in mesh.history(0.0)] == [0.1, None]


@pytest.mark.parametrize("kind", ["reported about itself", "a stranger", "an earlier process"])
def test_what_is_about_nobody_in_the_room_is_not_looked_at(kind: str) -> None:
    mesh = Picture()
    mesh.enter("r", "a", "b")
    mesh.enter("other", "c")
    report = {
        "reported about itself": about("a", attempts=5, messages=5),
        "a stranger": about("c", attempts=5, messages=5),
        "an earlier process": about("b", number=2, attempts=5, messages=5),
    }[kind]
    mesh.tell("a", report)
    assert mesh.metrics().total_p2p_attempts == mesh.metrics().p2p_message_count == 0
    assert mesh.room("r", 0.0) == msgspec.structs.replace(_room(mesh, "r"), links=[])
    assert mesh.numbers() == (1, 0, 0, 0, 1)


def _room(mesh: Tracking, room: str) -> RoomTopology:
    topology = mesh.room(room, 0.0)
    assert topology is not None
    return topology


# --- who is away ---------------------------------------------------------------------------------


def test_of_a_member_that_is_away_the_others_have_the_word() -> None:
    mesh = Picture()
    mesh.enter("r", "a", "b", "c")
    mesh.both("a", "b", rtt=0.1)
    mesh.both("a", "c")
    mesh.both("b", "c")
    mesh.dropped("r", "a", 1.0)
    # Direct paths outlive a socket.
    assert mesh.numbers() == (3, 3, 0, 0, 0)
    assert mesh.metrics().active_p2p_connections == 3
    mesh.tell("b", about("a", "disconnected"), now=3.0)
    # Nobody says any more that they can talk.
    assert mesh.numbers() == (2, 2, 0, 0, 0)
    assert mesh.metrics().mesh_upgrade_rate == 1.0
    mesh.tell("c", about("a", "disconnected"), now=3.0)
    assert mesh.numbers() == (1, 1, 0, 0, 0)
    mesh.returned("r", "a", 4.0, address="192.0.2.9")
    assert mesh.numbers() == (3, 1, 0, 0, 2)
    mesh.both("a", "b", now=5.0)
    mesh.both("a", "c", now=5.0)
    assert mesh.numbers() == (3, 3, 0, 0, 0)
    (a,) = (m for m in _room(mesh, "r").members if m.peer_id == "a")
    assert (a.presence, a.address, a.last_seen) == ("present", "192.0.2.9", 5.0)


def test_what_a_member_said_before_it_went_away_does_not_count() -> None:
    mesh = Picture()
    mesh.enter("r", "a", "b")
    mesh.tell("a", about("b", "disconnected", reason="silence", rtt=0.3), now=1.0)
    mesh.tell("b", about("a", rtt=0.1), now=2.0)
    assert mesh.link().state == "disconnected"
    mesh.dropped("r", "a", 3.0)
    link = mesh.link()
    assert (link.state, link.rtt, link.since) == ("connected", 0.1, 3.0)
    assert link.a_side is not None
    assert link.a_side.updated == 1.0
    assert mesh.status(0.0).connections[0].ice_state == "connected"
    mesh.returned("r", "a", 4.0)
    assert (mesh.link().state, mesh.link().since) == ("disconnected", 4.0)
    assert mesh.texts("link") == [
        "disconnected: silence",
        "connected over direct",
        "disconnected: silence",
    ]


def test_when_both_are_away_nothing_is_counted_and_what_was_said_last_is_shown() -> None:
    mesh = Picture()
    mesh.enter("r", "a", "b")
    mesh.both("a", "b", rtt=0.1)
    mesh.dropped("r", "a", 1.0)
    mesh.dropped("r", "b", 1.0)
    assert mesh.numbers() == (0, 0, 0, 0, 0)
    assert mesh.metrics().active_p2p_connections == 0
    assert mesh.metrics().mesh_upgrade_rate is None
    link = mesh.link()
    assert (link.state, link.path, link.rtt, link.quality) == ("connected", "direct", 0.1, None)
    mesh.tick(10.0)
    assert mesh.history(0.0)[0].rtt is None
    mesh.returned("r", "b", 11.0)
    assert mesh.numbers() == (1, 1, 0, 0, 0)


def test_a_member_that_is_present_and_has_not_reported_makes_no_connection() -> None:
    mesh = Picture()
    mesh.enter("r", "a", "b")
    mesh.tell("a", about("b"))
    mesh.dropped("r", "a", 1.0)
    assert mesh.numbers() == (0, 0, 0, 0, 0)


def test_a_socket_that_replaces_another_of_the_same_process_changes_no_number() -> None:
    mesh = Picture()
    mesh.enter("r", "a", "b")
    mesh.both("a", "b")
    mesh.returned("r", "a", 1.0)
    assert mesh.numbers() == (1, 1, 0, 0, 0)
    mesh.dropped("r", "a", 2.0)
    mesh.dropped("r", "a", 2.0)
    assert mesh.numbers() == (1, 1, 0, 0, 0)
    mesh.left("r", "b", "left", 3.0)
    assert mesh.numbers() == (0, 0, 0, 0, 0)


def test_a_member_that_goes_away_again_and_again() -> None:
    mesh = Picture()
    mesh.enter("r", "a", "b", "c")
    mesh.both("a", "b")
    for now in (1.0, 2.0, 3.0):
        mesh.dropped("r", "a", now)
        assert mesh.numbers() == (2, 1, 0, 0, 1)
        assert mesh.metrics().mesh_upgrade_rate == 1 / 2
        mesh.returned("r", "a", now)
        assert mesh.numbers() == (3, 1, 0, 0, 2)
        assert mesh.metrics().mesh_upgrade_rate == 1 / 3


def test_a_link_ends_with_either_incarnation() -> None:
    mesh = Picture()
    mesh.enter("r", "a", "b", "c")
    mesh.both("a", "b", rtt=0.1)
    mesh.both("a", "c")
    mesh.both("b", "c")
    mesh.joined("r", "b", incarnation("b", 2), "again", 1.0, address="192.0.2.7", subject="s")
    assert mesh.numbers() == (3, 1, 0, 0, 2)
    assert [(link.a, link.b) for link in _room(mesh, "r").links] == [("a", "c")]
    assert _room(mesh, "r").members[-1] == MemberInfo(
        peer_id="b",
        incarnation=incarnation("b", 2),
        display_name="again",
        subject="s",
        presence="present",
        address="192.0.2.7",
        joined=1.0,
        last_seen=1.0,
    )
    assert mesh.texts("replaced") == ["again"]
    mesh.left("r", "c", "left", 2.0)
    assert mesh.numbers() == (1, 0, 0, 0, 1)
    mesh.left("r", "b", "removed", 3.0)
    mesh.left("r", "a", "timeout", 4.0)
    assert mesh.rooms(0.0) == []
    assert mesh.texts("left") == ["left", "removed", "timeout"]


def test_another_name() -> None:
    mesh = Picture()
    mesh.enter("r", "a")
    mesh.updated("r", "a", "Ann", 1.0)
    assert [(m.display_name, m.last_seen) for m in _room(mesh, "r").members] == [("Ann", 1.0)]
    mesh.updated("r", "a", None, 2.0)
    assert [(m.display_name, m.last_seen) for m in _room(mesh, "r").members] == [(None, 2.0)]
    assert mesh.texts("updated") == ["Ann", ""]


# --- what is counted -----------------------------------------------------------------------------


def counted(mesh: Tracking) -> tuple[int, int, int, int, int]:
    """attempts, successes, failures, fallbacks, messages"""
    m = mesh.metrics()
    return (
        m.total_p2p_attempts,
        m.successful_p2p_connections,
        m.failed_p2p_connections,
        m.fallback_count,
        m.p2p_message_count,
    )


def counts(
    attempts: int, successes: int, failures: int, fallbacks: int, messages: int
) -> dict[str, Any]:
    return {
        "attempts": attempts,
        "successes": successes,
        "failures": failures,
        "fallbacks": fallbacks,
        "messages": messages,
    }


def test_differences_are_added_up() -> None:
    mesh = Picture()
    mesh.enter("r", "a", "b")
    mesh.tell("a", about("b", **counts(1, 1, 0, 0, 10)))
    mesh.tell("b", about("a", **counts(7, 7, 7, 7, 5)))
    assert counted(mesh) == (1, 1, 0, 0, 15)
    mesh.tell("a", about("b", **counts(4, 2, 1, 3, 12)))
    mesh.tell("a", about("b", **counts(4, 2, 1, 3, 12)))
    mesh.tell("b", about("a", **counts(9, 9, 9, 9, 6)))
    assert counted(mesh) == (4, 2, 1, 3, 18)


def test_what_goes_backwards_counts_from_where_it_went() -> None:
    mesh = Picture()
    mesh.enter("r", "a", "b")
    mesh.tell("a", about("b", connect_time=5.0, **counts(10, 10, 10, 10, 10)))
    mesh.tell("a", about("b", connect_time=1.0, **counts(3, 3, 3, 3, 3)))
    assert counted(mesh) == (10, 10, 10, 10, 10)
    mesh.tell("a", about("b", connect_time=2.0, **counts(5, 5, 5, 5, 5)))
    assert counted(mesh) == (12, 12, 12, 12, 12)
    assert mesh.metrics().average_connection_time == pytest.approx(6.0 / 12)
    mesh.tell("a", about("b", connect_time=0.0, **counts(6, 6, 6, 6, 6)))
    assert mesh.metrics().average_connection_time == pytest.approx(6.0 / 13)


def test_one_report_adds_no_more_than_can_be() -> None:
    mesh = Picture()
    mesh.enter("r", "a", "b")
    most = 2**53
    mesh.tell("a", about("b", connect_time=1e308, **counts(most, most, most, most, most)))
    assert counted(mesh) == (10_000, 10_000, 10_000, 10_000, 10**9)
    assert mesh.metrics().average_connection_time == 600.0


def test_a_time_that_was_not_told_is_not_in_the_mean() -> None:
    mesh = Picture()
    mesh.enter("r", "a", "b", "c")
    mesh.tell("a", about("b", attempts=1, successes=1))
    assert mesh.metrics().average_connection_time is None
    mesh.tell("a", about("c", attempts=1, successes=1, connect_time=0.5))
    assert mesh.metrics().average_connection_time == 0.5
    assert mesh.connection_times == (0.5, 1)
    # Time passes only with a success.
    mesh.tell("a", about("c", attempts=1, successes=1, connect_time=9.0))
    assert mesh.metrics().average_connection_time == 0.5


def test_a_pair_that_goes_on_after_its_link_was_closed_is_not_counted_twice() -> None:
    """Its ends count from the beginning of this pair of incarnations, however often it meets."""
    mesh = Picture()
    mesh.enter("r", "a", "b")
    mesh.tell("a", about("b", connect_time=1.0, **counts(3, 2, 1, 1, 10)))
    mesh.tell("a", about("b", "closed", connect_time=1.0, **counts(4, 2, 2, 1, 11)))
    mesh.tell("a", about("b", "closed", connect_time=1.0, **counts(4, 2, 2, 1, 11)))
    assert counted(mesh) == (4, 2, 2, 1, 11)
    assert mesh.numbers() == (1, 0, 0, 0, 1)
    mesh.tell("a", about("b", "connecting", connect_time=1.0, **counts(5, 2, 2, 1, 11)))
    mesh.tell("a", about("b", connect_time=1.5, **counts(5, 3, 2, 1, 12)))
    assert counted(mesh) == (5, 3, 2, 1, 12)
    assert mesh.metrics().average_connection_time == 1.5 / 3
    # Nor when the one that was told of the end had lost its seat.
    mesh.dropped("r", "b", 1.0)
    mesh.left("r", "b", "timeout", 2.0)
    mesh.tell("a", about("b", "closed", connect_time=1.5, **counts(6, 3, 3, 1, 13)))
    mesh.enter("r", "b", now=3.0)
    mesh.tell("a", about("b", "connecting", connect_time=1.5, **counts(7, 3, 3, 1, 13)))
    assert counted(mesh) == (7, 3, 3, 1, 13)


def test_a_closed_link_is_nothing_of_its_members() -> None:
    mesh = Picture()
    mesh.enter("r", "a", "b")
    mesh.both("a", "b", state="closed", ice_state="failed")
    assert mesh.link().state == "closed"
    assert {(c.ice_state, c.connection_quality) for c in mesh.status(0.0).connections} == {
        (None, None)
    }


def test_a_last_report_counts_when_the_other_has_left_already() -> None:
    mesh = Picture()
    mesh.enter("r", "a", "b", "c")
    mesh.both("a", "b", **counts(1, 1, 0, 0, 5))
    mesh.left("r", "b", "left", 1.0)
    mesh.tell("a", about("b", "closed", **counts(2, 1, 1, 0, 8)))
    assert counted(mesh) == (2, 1, 1, 0, 13)
    mesh.tell("a", about("b", "closed", **counts(2, 1, 1, 0, 8)))
    assert counted(mesh) == (2, 1, 1, 0, 13)
    # The end that waits has no word in what happens once for a pair.
    mesh.both("a", "c", **counts(1, 1, 0, 0, 1))
    mesh.left("r", "a", "left", 2.0)
    mesh.tell("c", about("a", "closed", **counts(50, 50, 50, 50, 4)))
    assert counted(mesh) == (3, 2, 1, 0, 18)
    assert _room(mesh, "r").links == []


def test_a_pair_that_meets_again_is_not_counted_twice() -> None:
    mesh = Picture()
    mesh.enter("r", "a", "b")
    mesh.both("a", "b", **counts(1, 1, 0, 0, 5))
    for peer_id in ("a", "b"):
        mesh.dropped("r", peer_id, 1.0)
        mesh.left("r", peer_id, "timeout", 31.0)
    mesh.enter("r", "a", "b", now=40.0)
    mesh.both("a", "b", **counts(1, 1, 0, 0, 7))
    assert counted(mesh) == (1, 1, 0, 0, 14)
    # In another room it is another link.
    mesh.enter("s", "a", "b")
    mesh.both("a", "b", room="s", **counts(1, 1, 0, 0, 7))
    assert counted(mesh) == (2, 2, 0, 0, 28)


# --- activity ------------------------------------------------------------------------------------


def test_the_latest_thousand_are_kept() -> None:
    mesh = Picture()
    mesh.enter("r", "a")
    for now in range(2 * MAX_ACTIVITY):
        mesh.dropped("r", "a", float(now))
        mesh.returned("r", "a", float(now))
    latest = 1 + 4 * MAX_ACTIVITY
    entries = mesh.activity(0.0)
    assert [e.number for e in entries] == list(range(latest - MAX_ACTIVITY + 1, latest + 1))
    assert [e.number for e in mesh.activity(0.0, latest - 2)] == [latest - 1, latest]
    assert mesh.activity(0.0, 5) == entries
    assert entries[-1].kind == "returned"
    assert entries[-1].at == 2 * MAX_ACTIVITY - 1


def test_one_address_has_half_of_what_is_kept_at_most_when_there_is_more() -> None:
    mesh = Picture()
    half = MAX_ACTIVITY // 2

    def come_and_go(address: str | None, times: int) -> None:
        for _ in range(times):
            mesh.joined("r", "x", incarnation("x"), None, 0.0, address=address)
            mesh.left("r", "x", "left", 0.0)

    def told(address: str) -> int:
        return sum(mesh._activity[entry.number].source == address for entry in mesh.activity(0.0))

    mesh.acted("notice", 0.0, room="r", text="first")
    come_and_go("192.0.2.1", 100)
    come_and_go("192.0.2.2", 5000)
    # What was there first stays, and the rest of the room is the flood's.
    assert (told("192.0.2.1"), told("192.0.2.2")) == (200, MAX_ACTIVITY - 201)
    assert mesh.texts("notice") == ["first"]
    # Others push it out, down to its half, and only then the oldest goes.
    come_and_go("192.0.2.3", 100)
    assert (told("192.0.2.1"), told("192.0.2.2")) == (200, half + 99)
    come_and_go("192.0.2.2", 5000)
    assert (told("192.0.2.1"), told("192.0.2.2"), told("192.0.2.3")) == (200, half + 99, 200)
    come_and_go("192.0.2.3", 50)
    assert (told("192.0.2.1"), told("192.0.2.2"), told("192.0.2.3")) == (200, half, 300)
    come_and_go("192.0.2.3", 50)
    assert (told("192.0.2.1"), told("192.0.2.2"), told("192.0.2.3")) == (100, half, 400)
    assert mesh.texts("notice") == []
    entries = mesh.activity(0.0)
    assert len(entries) == MAX_ACTIVITY
    assert [entry.number for entry in entries] == sorted({entry.number for entry in entries})
    latest = entries[-1].number
    assert mesh.activity(0.0, after=entries[-3].number) == entries[-2:]
    assert mesh.activity(0.0, after=latest) == []
    # An address that nobody hears of any more takes no memory.
    for number in range(2 * MAX_ACTIVITY):
        mesh.refused(f"code {number}", "text", 0.0, address=f"192.0.3.{number}")
    assert len(mesh._of_source) == MAX_ACTIVITY


@pytest.mark.parametrize("how", ["comes and goes", "reports"])
def test_all_that_one_address_does_counts_for_it(how: str) -> None:
    mesh = Picture()
    mesh.acted("notice", 0.0, room="r", text="first")
    for number in range(2 * MAX_ACTIVITY):
        now = number * 10.0
        a, b = f"2001:db8::{2 * number + 1:x}", f"2001:db8::{2 * number + 2:x}"
        mesh.joined("r", "a", incarnation("a", number), None, now, address=a)
        mesh.joined("r", "b", incarnation("b", number), None, now, address=b)
        if how == "comes and goes":
            mesh.dropped("r", "a", now)
            mesh.returned("r", "a", now, address=b)
            mesh.refused("malformed", "text", now, address=a)
            mesh.left("r", "b", "left", now)
        else:
            mesh.tell("a", about("b", number=number), now=now)
            mesh.updated("r", "b", "name", now)
    assert mesh.texts("notice") == ["first"]
    assert len(mesh.activity(0.0)) == MAX_ACTIVITY


def test_what_a_member_does_counts_for_where_it_is() -> None:
    mesh = Picture()
    mesh.joined("r", "a", incarnation("a"), None, 0.0, address="192.0.2.1")
    mesh.returned("r", "a", 1.0, address="192.0.2.2")
    mesh.left("r", "a", "left", 2.0)
    mesh.refused("code", "text", 3.0)
    sources = [entry.source for entry in mesh._activity.values()]
    assert sources == ["192.0.2.1", "192.0.2.2", "192.0.2.2", None]


def test_what_the_operator_did() -> None:
    mesh = Picture()
    before = mesh.version
    mesh.acted("restarted_ice", 1.0, room="r", peer_id="a", other="b")
    mesh.acted("notice", 2.0, room="r", text="closing at ten")
    assert mesh.version > before
    assert mesh.activity(0.0) == [
        Activity(
            number=1, at=1.0, kind="restarted_ice", room_id="r", peer_id="a", other_peer_id="b"
        ),
        Activity(number=2, at=2.0, kind="notice", room_id="r", text="closing at ten"),
    ]


def test_refusals_are_counted_and_told_once_a_second() -> None:
    mesh = Picture()
    mesh.refused("room_full", "no seat is free", 1.0, room="r", peer_id="a")
    for _ in range(5):
        mesh.refused("room_full", "no seat is free", 1.9)
    mesh.refused("unauthorized", "no token", 1.9)
    mesh.refused("room_full", "no seat is free", 2.0)
    mesh.refused("room_full", "no seat is free", 3.0)
    assert mesh.refusals == {"room_full": 8, "unauthorized": 1}
    assert mesh.texts("refused") == [
        "room_full: no seat is free",
        "unauthorized: no token",
        "room_full: no seat is free (and 5 more since the last)",
        "room_full: no seat is free",
    ]
    first = mesh.activity(0.0)[0]
    assert (first.room_id, first.peer_id) == ("r", "a")
    mesh.refusals.clear()
    assert mesh.refusals["room_full"] == 8


def test_one_member_does_not_wash_the_rest_away() -> None:
    mesh = Picture()
    mesh.enter("r", "a", "b", "c")
    for _ in range(MAX_ACTIVITY):
        mesh.tell("a", about("b", "connecting"), now=1.0)
        mesh.tell("a", about("b", "failed"), now=1.0)
        mesh.updated("r", "a", "x", 1.0)
    assert len(mesh.activity(0.0)) == 3 + 200
    assert mesh.link().state == "failed"
    # Another member is not held to it, and after some time it isn't either.
    mesh.tell("c", about("b", "connecting"), now=1.0)
    mesh.tell("a", about("b", "connecting"), now=1.0)
    assert len(mesh.activity(0.0)) == 3 + 201
    mesh.tell("a", about("b", "failed"), now=1.5)
    mesh.tell("a", about("b", "connecting"), now=1.5)
    assert len(mesh.activity(0.0)) == 3 + 202


# --- samples -------------------------------------------------------------------------------------


def test_samples_tell_what_came_since_the_one_before() -> None:
    mesh = Picture()
    mesh.enter("r", "a", "b", now=5.0)
    mesh.tell("a", about("b", attempts=2, successes=1, failures=1, connect_time=0.25), now=6.0)
    assert mesh.next_deadline() == 15.0
    mesh.tick(14.9)
    assert mesh.history(0.0) == []
    mesh.tick(15.5)
    assert mesh.next_deadline() == 25.5
    mesh.tell("a", about("b", attempts=3, successes=2, failures=1, connect_time=1.25), now=16.0)
    mesh.tick(25.5)
    mesh.tick(35.5)
    first, second, third = mesh.history(WALL)
    assert (first.at, second.at, third.at) == (WALL + 15.5, WALL + 25.5, WALL + 35.5)
    assert (first.attempts, first.successes, first.failures, first.connection_time) == (
        2,
        1,
        1,
        0.25,
    )
    assert (second.attempts, second.successes, second.failures, second.connection_time) == (
        1,
        1,
        0,
        1.0,
    )
    assert (third.attempts, third.successes, third.failures, third.connection_time) == (
        0,
        0,
        0,
        None,
    )


def test_samples_are_taken_while_somebody_is_there() -> None:
    mesh = Picture()
    mesh.enter("r", "a", now=0.0)
    mesh.tick(10.0)
    mesh.left("r", "a", "left", 12.0)
    mesh.tick(20.0)
    assert mesh.next_deadline() is None
    mesh.tick(1000.0)
    mesh.enter("r", "a", now=1000.0)
    mesh.left("r", "a", "left", 1001.0)
    assert mesh.next_deadline() == 1010.0
    mesh.tick(1010.0)
    assert mesh.next_deadline() is None
    assert [(s.at, s.members) for s in mesh.history(0.0)] == [(10.0, 1), (20.0, 0), (1010.0, 0)]


def test_samples_are_those_of_an_hour() -> None:
    mesh = Picture()
    mesh.enter("r", "a", now=0.0)
    for number in range(1, MAX_SAMPLES + 6):
        mesh.tick(number * SAMPLE_INTERVAL)
    samples = mesh.history(0.0)
    assert [s.at for s in samples] == [n * 10.0 for n in range(6, MAX_SAMPLES + 6)]
    mesh.tick(samples[0].at + 3600.0 + 5.0)
    assert mesh.history(0.0)[0].at == samples[1].at


@pytest.mark.parametrize(
    ("rtts", "median"),
    [
        ([], None),
        ([0.3], 0.3),
        ([0.3, 0.1], 0.2),
        ([0.1, 0.1, 0.5], 0.1),
        ([0.1, 0.5, 0.5], 0.5),
        ([0.1, 0.1, 0.5, 0.5], 0.3),
        ([0.1234], 0.12),
        ([0.0], 0.0),
        ([1e-300], 0.0),
        ([86400.0], 86000.0),
    ],
)
def test_the_median_of_round_trips(rtts: list[float], median: float | None) -> None:
    mesh = Picture()
    mesh.enter("r", "a", *(f"b{n}" for n in range(len(rtts))))
    for number, rtt in enumerate(rtts):
        mesh.both("a", f"b{number}", rtt=rtt)
    mesh.tick(10.0)
    assert mesh.history(0.0)[0].rtt == pytest.approx(median)


# --- versions ------------------------------------------------------------------------------------


def test_every_change_raises_the_version_and_that_of_its_room() -> None:
    mesh = Picture()
    mesh.enter("s", "z")
    changes: list[Callable[[], None]] = [
        lambda: mesh.joined("r", "a", incarnation("a"), None, 0.0),
        lambda: mesh.joined("r", "b", incarnation("b"), None, 0.0),
        lambda: mesh.updated("r", "a", "Ann", 0.0),
        lambda: mesh.tell("a", about("b")),
        lambda: mesh.tell("a", about("b", rtt=0.1)),
        lambda: mesh.dropped("r", "a", 0.0),
        lambda: mesh.returned("r", "a", 0.0),
        lambda: mesh.joined("r", "a", incarnation("a", 2), None, 0.0),
        lambda: mesh.left("r", "a", "left", 0.0),
    ]
    other = mesh.room_version("s")
    assert mesh.room_version("r") == 0
    for change in changes:
        version, room_version = mesh.version, mesh.room_version("r")
        change()
        assert mesh.version > version
        assert mesh.room_version("r") > room_version
        assert mesh.room_version("s") == other
    gone = mesh.room_version("r")
    mesh.left("r", "b", "left", 0.0)
    assert mesh.room_version("r") == 0
    mesh.enter("r", "b")
    assert mesh.room_version("r") > gone
    elsewhere: list[Callable[[], None]] = [
        lambda: mesh.refused("code", "text", 0.0),
        lambda: mesh.refused("code", "text", 0.0),
        lambda: mesh.tick(100.0),
    ]
    for change in elsewhere:
        version = mesh.version
        change()
        assert mesh.version > version


# --- what it takes -------------------------------------------------------------------------------


def test_memory_of_members_and_links() -> None:
    mesh = Picture()
    names = [f"peer-{number}" for number in range(10)]
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for room in range(200):
            mesh.enter(f"room-{room}", *names)
        idle, _ = tracemalloc.get_traced_memory()
        reports = [about(name, rtt=0.0123, messages=1000) for name in names]
        for room in range(200):
            for name in names:
                mesh.tell(name, *reports, room=f"room-{room}")
        linked, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (idle - before) / 2000 < 1024
    assert (linked - idle) / (2000 * 9) < 1024


def links_of(wire: bytes) -> list[LinkReport]:
    report = decode_client(wire)
    assert isinstance(report, Report)
    return report.links


def test_memory_of_reasons_is_that_of_their_bytes() -> None:
    """With one character of four bytes in it, a str takes four for all the others as well."""
    mesh = Picture()
    names = [f"peer-{number}" for number in range(100)]
    mesh.enter("r", *names)
    text = "\U0001f600" + "x" * 196
    wire = encode(Report([about(name, reason=text, failure=text) for name in names]))
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for name in names:
            mesh.reported("r", name, links_of(wire), 0.0)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (after - before) / (100 * 99) < 1024
    topology = mesh.room("r", 0.0)
    assert topology is not None
    sides = [side for link in topology.links for side in (link.a_side, link.b_side)]
    assert {(side.reason, side.failure) for side in sides if side} == {(text, text)}


def test_memory_does_not_grow_with_what_came_and_went() -> None:
    mesh = Picture()

    def round_(number: int) -> None:
        room = f"room-{number}"
        mesh.enter(room, "a", "b", "c")
        mesh.both("a", "b", room=room, rtt=number * 1e-7)
        mesh.both("b", "c", room=room)
        for peer_id in ("a", "b", "c"):
            mesh.left(room, peer_id, "timeout", 0.0)
        # Of nobody that is known: nothing is kept.
        mesh.enter(room, "d")
        mesh.tell("d", about("a"), about("b"), about("x"), room=room)
        mesh.left(room, "d", "left", 0.0)

    for number in range(3000):
        round_(number)
    assert len(mesh._ended) == 10_000
    assert not mesh._rooms
    assert not mesh._rtts
    assert sys.getsizeof(mesh._refused_at) < 1000


def test_there_are_few_different_round_trips() -> None:
    mesh = Picture()
    mesh.enter("r", "a", "b")
    mesh.enter("s", *(f"p{n:04}" for n in range(3000)))
    rtt = 1e-10
    for number in range(1, 3000):
        mesh.tell("p0000", about(f"p{number:04}", rtt=min(rtt, 86400.0)), room="s")
        rtt *= 1.012
    assert 500 < len(mesh._rtts) < 1000
