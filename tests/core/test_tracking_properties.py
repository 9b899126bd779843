"""Whatever happens in the rooms, and whatever their members say: what is added up as it happens is
what one gets who looks at everything again."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from msgspec import structs

from meshpeer.core.messages import LinkReport
from meshpeer.core.tracking import SAMPLE_INTERVAL, LinkInfo, Tracking

WALL = 1_000_000.0
ROOMS = ("r", "s")
PEERS = ("a", "b", "c")
INCARNATIONS = ("first-one", "second-one")
STATES = ("connected", "new", "connecting", "disconnected", "failed", "closed")
PATHS = (None, "direct", "turn", "relay")
ICE = ("connected", "closed", "new", "gathering", "checking", "disconnected", "failed")
QUALITIES = (None, "good", "fair", "poor")

Key = tuple[str, str, str]
"""Room and both ends of a link."""

reports = st.builds(
    LinkReport,
    peer_id=st.sampled_from((*PEERS, "nobody")),
    incarnation=st.sampled_from(INCARNATIONS),
    state=st.just("connected") | st.sampled_from(STATES),
    ice_state=st.sampled_from(ICE),
    path=st.just("direct") | st.sampled_from(PATHS),
    rtt=st.sampled_from((None, 0.0, 0.01, 0.0123, 0.0126, 0.2, 0.5, 1e-9, 86400.0)),
    reason=st.sampled_from(("", "why")),
    attempts=st.integers(0, 3) | st.just(2**53),
    successes=st.integers(0, 3) | st.just(2**53),
    failures=st.integers(0, 3),
    connect_time=st.sampled_from((None, 0.0, 0.5, 1.5, 1e300)),
    fallbacks=st.integers(0, 3),
    messages=st.integers(0, 9) | st.just(2**53),
    bytes_sent=st.integers(0, 9),
)


@dataclass
class Seat:
    incarnation: str
    away: bool = False
    heard: dict[str, LinkReport] = field(default_factory=dict)
    """By the other end: what it said last, while both are there."""


@dataclass
class Told:
    """All that was ever told of what happened: for each end of a pair, one report after another."""

    reports: list[LinkReport] = field(default_factory=list)
    dials: bool = False

    def sums(self) -> Counter[str]:
        sums: Counter[str] = Counter()
        before = None
        for report in self.reports:
            if before is None:
                base: Any = Counter()
                earlier = 0.0
            else:
                base = {name: getattr(before, name) for name in EVENTS}
                earlier = before.connect_time or 0.0
            rise = {
                name: min(max(0, getattr(report, name) - base[name]), EVENTS[name])
                for name in EVENTS
                if name == "messages" or self.dials
            }
            sums.update(rise)
            successes = rise.get("successes", 0)
            if successes and report.connect_time is not None:
                sums["timed"] += successes
                took = min(max(0.0, report.connect_time - earlier), 600.0 * successes)
                sums["microseconds"] += round(took * 1e6)
            before = report
        return sums


EVENTS = {
    "attempts": 10_000,
    "successes": 10_000,
    "failures": 10_000,
    "fallbacks": 10_000,
    "messages": 10**9,
}


class TrackingMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.tracking = Tracking()
        self.now = 0.0
        self.rooms: dict[str, dict[str, Seat]] = {room: {} for room in ROOMS}
        self.told: dict[tuple[str, ...], Told] = {}
        self.shown: dict[Key, tuple[str, str | None]] = {}
        """The state and the path that the activity told last of a link that there is."""
        self.steps: list[tuple[str, str, str, str]] = []
        """What it has yet to tell."""
        self.read = 0
        self.sampled: Counter[str] = Counter()

    def someone(self, data: st.DataObject, *, away: bool | None = None) -> tuple[str, str] | None:
        there = [
            (room, peer_id)
            for room, seats in self.rooms.items()
            for peer_id, seat in seats.items()
            if away is None or seat.away == away
        ]
        return data.draw(st.sampled_from(there)) if there else None

    def forget(self, room: str, peer_id: str) -> None:
        seats = self.rooms[room]
        del seats[peer_id]
        for seat in seats.values():
            seat.heard.pop(peer_id, None)
        self.shown = {
            key: value
            for key, value in self.shown.items()
            if key[0] != room or peer_id not in key[1:]
        }

    # --- what happens ----------------------------------------------------------------------------

    @initialize()
    def some_are_there(self) -> None:
        for room, peer_id in (("r", "a"), ("r", "b"), ("r", "c"), ("s", "b"), ("s", "a")):
            self.join(room, peer_id, INCARNATIONS[0])

    @rule(
        room=st.sampled_from(ROOMS),
        peer_id=st.sampled_from(PEERS),
        incarnation=st.sampled_from(INCARNATIONS),
    )
    def join(self, room: str, peer_id: str, incarnation: str) -> None:
        self.now += 1.0
        if peer_id in self.rooms[room]:
            self.forget(room, peer_id)
        self.rooms[room][peer_id] = Seat(incarnation)
        self.tracking.joined(room, peer_id, incarnation, None, self.now)

    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        if who := self.someone(data, away=False):
            room, peer_id = who
            self.rooms[room][peer_id].away = True
            self.tracking.dropped(room, peer_id, self.now)

    @rule(data=st.data())
    def come_back(self, data: st.DataObject) -> None:
        if who := self.someone(data):
            room, peer_id = who
            self.rooms[room][peer_id].away = False
            self.tracking.returned(room, peer_id, self.now)

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        if who := self.someone(data):
            room, peer_id = who
            self.forget(room, peer_id)
            self.tracking.left(room, peer_id, "left", self.now)

    @rule(data=st.data(), drawn=st.lists(reports, min_size=1, max_size=4), right=st.booleans())
    def report(self, data: st.DataObject, drawn: list[LinkReport], right: bool) -> None:
        if who := self.someone(data, away=False):
            room, peer_id = who
            me = self.rooms[room][peer_id]
            links = []
            for link in drawn:
                other = self.rooms[room].get(link.peer_id)
                if right and other is not None:
                    link = structs.replace(link, incarnation=other.incarnation)  # noqa: PLW2901
                links.append(link)
                key = (room, peer_id, me.incarnation, link.peer_id, link.incarnation)
                if link.peer_id == peer_id:
                    continue
                if other is not None and other.incarnation == link.incarnation:
                    me.heard[link.peer_id] = link
                    self.told.setdefault(key, Told(dials=peer_id < link.peer_id))
                if key in self.told:
                    self.told[key].reports.append(link)
                    # The activity has every step, also those within one report.
                    self.step()
            self.tracking.reported(room, peer_id, links, self.now)

    def step(self) -> None:
        """What the activity has to tell of links by now."""
        for (room, a, b), (state, path, _, reason) in self.links().items():
            before = self.shown.get((room, a, b))
            if before is None or before[0] != state or (state == "connected" and before[1] != path):
                text = f"connected over {path}" if state == "connected" and path else state
                self.steps.append((room, a, b, text + (f": {reason}" if reason else "")))
            self.shown[room, a, b] = (state, path)

    @precondition(lambda self: self.tracking.next_deadline() is not None)
    @rule(late=st.sampled_from((0.0, 0.5)))
    def sample(self, late: float) -> None:
        deadline = self.tracking.next_deadline()
        assert deadline is not None
        assert deadline <= self.now + SAMPLE_INTERVAL
        self.now = max(self.now, deadline + late)
        self.tracking.tick(self.now)
        sample = self.tracking.history(WALL)[-1]
        sums = self.sums()
        new = Counter({name: sums[name] - self.sampled[name] for name in sums})
        self.sampled = sums
        pairs, paths = self.counted()
        assert sample.at == WALL + self.now
        assert sample.members == sum(map(len, self.rooms.values()))
        assert (sample.direct, sample.turn, sample.relay) == (
            paths["direct"],
            paths["turn"],
            paths["relay"],
        )
        assert sample.unconnected == pairs - paths.total() >= 0
        assert (sample.attempts, sample.successes, sample.failures) == (
            new["attempts"],
            new["successes"],
            new["failures"],
        )
        assert min(new.values(), default=0) >= 0
        assert sample.connection_time == (
            pytest.approx(new["microseconds"] / new["timed"] / 1e6) if new["timed"] else None
        )
        rtts = [
            float(f"{rtt:.1e}") if rtt >= 1e-6 else 0.0
            for path, rtt in self.connected().values()
            if rtt is not None
        ]
        assert sample.rtt == (pytest.approx(statistics.median(rtts)) if rtts else None)

    # --- the picture, from what is known of everybody ---------------------------------------------

    def links(self) -> dict[Key, tuple[str, str | None, float | None, str]]:
        """State, path, round trip and reason of each that somebody spoke of."""
        found: dict[Key, tuple[str, str | None, float | None, str]] = {}
        for room, seats in self.rooms.items():
            for a, b in combinations(sorted(seats), 2):
                said = [
                    (seats[me].away, seats[me].heard[other])
                    for me, other in ((a, b), (b, a))
                    if other in seats[me].heard
                ]
                said = [each for each in said if not each[0]] or said
                if not said:
                    continue
                of = [each for _, each in said]
                worst = max(of, key=lambda r: (STATES.index(r.state), PATHS.index(r.path)))
                rtts = [each.rtt for each in of if each.rtt is not None]
                found[room, a, b] = (
                    worst.state,
                    max((each.path for each in of), key=PATHS.index),
                    statistics.fmean(rtts) if rtts else None,
                    worst.reason,
                )
        return found

    def connected(self) -> dict[Key, tuple[str, float | None]]:
        """Path and round trip of those that are."""
        return {
            (room, a, b): (path, rtt)
            for (room, a, b), (state, path, rtt, _) in self.links().items()
            if state == "connected"
            and path is not None
            and any(
                other in self.rooms[room][me].heard and not self.rooms[room][me].away
                for me, other in ((a, b), (b, a))
            )
        }

    def counted(self, *rooms: str) -> tuple[int, Counter[str]]:
        """How many pairs can talk, and how many do so over each path."""
        rooms = rooms or ROOMS
        connected = {key: value for key, value in self.connected().items() if key[0] in rooms}
        pairs = {
            (room, a, b)
            for room in rooms
            for a, b in combinations(sorted(self.rooms[room]), 2)
            if not self.rooms[room][a].away and not self.rooms[room][b].away
        } | connected.keys()
        return len(pairs), Counter(path for path, _ in connected.values())

    def sums(self) -> Counter[str]:
        sums: Counter[str] = Counter()
        for told in self.told.values():
            sums.update(told.sums())
        return sums

    # --- it is the same --------------------------------------------------------------------------

    @invariant()
    def metrics(self) -> None:
        metrics = self.tracking.metrics()
        sums = self.sums()
        pairs, paths = self.counted()
        assert metrics.total_p2p_attempts == sums["attempts"]
        assert metrics.successful_p2p_connections == sums["successes"]
        assert metrics.failed_p2p_connections == sums["failures"]
        assert metrics.fallback_count == sums["fallbacks"]
        assert metrics.p2p_message_count == sums["messages"]
        assert metrics.average_connection_time == (
            pytest.approx(sums["microseconds"] / sums["timed"] / 1e6) if sums["timed"] else None
        )
        assert metrics.active_p2p_connections == paths["direct"] + paths["turn"]
        assert metrics.mesh_upgrade_rate == (
            (paths["direct"] + paths["turn"]) / pairs if pairs else None
        )

    @invariant()
    def rooms_in_numbers(self) -> None:
        infos = {info.room_id: info for info in self.tracking.rooms(WALL)}
        assert infos.keys() == {room for room, seats in self.rooms.items() if seats}
        sizes = [info.members for info in self.tracking.rooms(WALL)]
        assert sizes == sorted(sizes, reverse=True)
        for room, info in infos.items():
            seats = self.rooms[room]
            pairs, paths = self.counted(room)
            assert (info.members, info.away) == (
                len(seats),
                sum(seat.away for seat in seats.values()),
            )
            assert (info.links, info.direct, info.turn, info.relay) == (
                pairs,
                paths["direct"],
                paths["turn"],
                paths["relay"],
            )
            assert info.unconnected == pairs - paths.total() >= 0

    @invariant()
    def graphs(self) -> None:
        links = self.links()
        connected = self.connected()
        status = self.tracking.status(WALL)
        assert {room.room_id for room in status.topology} == {r for r in ROOMS if self.rooms[r]}
        by_pair: dict[Key, LinkInfo] = {}
        for room in status.topology:
            seats = self.rooms[room.room_id]
            assert {m.peer_id: (m.incarnation, m.presence) for m in room.members} == {
                peer_id: (seat.incarnation, "away" if seat.away else "present")
                for peer_id, seat in seats.items()
            }
            for link in room.links:
                key = (room.room_id, link.a, link.b)
                assert key not in by_pair
                by_pair[key] = link
                for side, me, other in (
                    (link.a_side, link.a, link.b),
                    (link.b_side, link.b, link.a),
                ):
                    heard = seats[me].heard.get(other)
                    assert (side is None) == (heard is None)
                    if side is not None and heard is not None:
                        for name in set(LinkReport.__struct_fields__) - {"peer_id", "incarnation"}:
                            assert getattr(side, name) == getattr(heard, name)
                        assert side.since <= side.updated <= WALL + self.now
            assert self.tracking.room(room.room_id, WALL) == room
        assert by_pair.keys() == links.keys()
        for key, link in by_pair.items():
            state, path, rtt, _ = links[key]
            assert (link.state, link.path) == (state, path)
            assert link.rtt == (None if rtt is None else pytest.approx(rtt))
            assert link.quality == self.quality(key)
        for peer in self.tracking.peers(WALL):
            links_of = [
                link
                for (room, *ends), link in by_pair.items()
                if room == peer.room_id and peer.member.peer_id in ends
            ]
            assert sorted(peer.links, key=repr) == sorted(links_of, key=repr)
        for of in status.connections:
            mine = {
                key: value
                for key, value in connected.items()
                if key[0] == of.room_id and of.peer_id in key[1:]
            }
            p2p = sorted(
                next(end for end in key[1:] if end != of.peer_id)
                for key, (path, _) in mine.items()
                if path != "relay"
            )
            assert of.p2p_peers == p2p
            assert of.is_p2p_active == bool(p2p)
            assert of.path == max((p for p, _ in mine.values()), key=PATHS.index, default=None)
            rtts = [rtt for _, rtt in mine.values() if rtt is not None]
            assert of.rtt == (pytest.approx(statistics.median(rtts)) if rtts else None)
            open_ = [
                key
                for key, (state, *_) in links.items()
                if key[0] == of.room_id and of.peer_id in key[1:] and state != "closed"
            ]
            assert of.connection_quality == max(
                map(self.quality, open_), key=QUALITIES.index, default=None
            )
            assert of.ice_state == max(
                (self.ice_state(key, of.peer_id) for key in open_), key=ICE.index, default=None
            )
        assert len(status.connections) == sum(map(len, self.rooms.values()))

    def quality(self, key: Key) -> str | None:
        state, path, rtt, _ = self.links()[key]
        if state in ("disconnected", "failed"):
            return "poor"
        if key not in self.connected() or rtt is None:
            return None
        if rtt >= 0.4:
            return "poor"
        return "fair" if rtt >= 0.15 or path == "relay" else "good"

    def ice_state(self, key: Key, me: str) -> str:
        """Its own word if it is there, the other's if that one is, or else what it once said."""
        room, a, b = key
        other = b if me == a else a
        seats = self.rooms[room]
        words = [
            (seats[one].away, seats[one].heard[far].ice_state)
            for one, far in ((me, other), (other, me))
            if far in seats[one].heard
        ]
        return next((word for away, word in words if not away), words[0][1])

    @invariant()
    def what_happened(self) -> None:
        self.step()
        entries = self.tracking.activity(WALL, self.read)
        assert [e.number for e in entries] == list(
            range(self.read + 1, self.read + 1 + len(entries))
        )
        self.read += len(entries)
        told = [
            (e.room_id, e.peer_id, e.other_peer_id, e.text) for e in entries if e.kind == "link"
        ]
        assert sorted(map(repr, told)) == sorted(map(repr, self.steps))
        self.steps.clear()

    @invariant()
    def nothing_is_kept_of_what_is_gone(self) -> None:
        tracking = self.tracking
        assert tracking._members == sum(map(len, self.rooms.values()))
        assert sum(tracking._rtts.values()) == sum(
            rtt is not None for _, rtt in self.connected().values()
        )
        assert all(tracking._rtts.values())
        links = sum(
            len(member.links or {})
            for room in tracking._rooms.values()
            for member in room.members.values()
        )
        assert links == 2 * len(self.links())
        assert tracking._ended.keys() <= self.told.keys()


TestTracking = TrackingMachine.TestCase
TestTracking.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
