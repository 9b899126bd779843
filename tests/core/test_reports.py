"""Which links are told about, and when: what the service knows is soon what there is."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from meshpeer.core.messages import LinkReport
from meshpeer.core.reports import DELAY, Reports

EVERY = 15.0


def link(peer_id: str, incarnation: str = "incarnation", **facts: Any) -> LinkReport:
    told = {"state": "connected", "ice_state": "connected"} | facts
    return LinkReport(peer_id=peer_id, incarnation=incarnation, **told)


class Bench:
    """A node's links, what they say, and what was told of them."""

    def __init__(self, *peers: str) -> None:
        self.reports = Reports()
        self.links = {peer_id: link(peer_id) for peer_id in peers}
        self.now = 100.0

    def seated(self, interval: float = EVERY) -> Bench:
        self.reports.wanted(interval, self.now)
        return self

    def changes(self, peer_id: str, **facts: Any) -> None:
        self.figures(peer_id, **facts)
        self.reports.changed(peer_id, self.now)

    def figures(self, peer_id: str, **facts: Any) -> None:
        self.links[peer_id] = replace(self.links.get(peer_id, link(peer_id)), **facts)

    def ends(self, peer_id: str) -> LinkReport:
        last = replace(self.links.pop(peer_id), state="closed", path=None)
        self.reports.ended(last, self.now)
        return last

    def due(self) -> list[LinkReport]:
        return self.reports.due(self.now, self.links, self.links.__getitem__)

    def waits(self) -> list[LinkReport]:
        """Until something is due; what is told then."""
        at = self.reports.next_deadline()
        assert at is not None
        self.now = at - 1e-6
        assert self.due() == []
        self.now = at
        return self.due()


def test_nothing_is_told_before_a_welcome_nor_where_it_is_not_wanted() -> None:
    for bench in (Bench("a"), Bench("a").seated(0.0)):
        bench.changes("a", state="failed")
        bench.ends("a")
        assert bench.reports.next_deadline() is None
        assert bench.due() == []


def test_all_are_told_after_each_welcome() -> None:
    bench = Bench("a", "b").seated()
    for _ in range(2):
        began = bench.now
        assert bench.waits() == [link("a"), link("b")]
        assert bench.now == began + DELAY
        bench.seated()


def test_what_changes_is_told_soon_and_together() -> None:
    bench = Bench("a", "b", "c").seated()
    bench.waits()
    began = bench.now
    bench.changes("a", state="disconnected")
    bench.now += DELAY / 2
    bench.changes("b", path="relay")
    bench.changes("a", state="failed")
    assert bench.waits() == [link("a", state="failed"), link("b", path="relay")]
    assert bench.now == pytest.approx(began + DELAY)
    assert bench.reports.next_deadline() == pytest.approx(100.0 + DELAY + EVERY)


@pytest.mark.parametrize(
    "facts",
    [
        {"state": "failed"},
        {"ice_state": "checking"},
        {"path": "turn"},
        {"rtt": 0.25},
        {"reason": "so"},
        {"failure": "so"},
        {"restarts": 1},
        {"attempts": 1},
        {"successes": 1},
        {"failures": 1},
        {"fallbacks": 1},
        {"incarnation": "another-one"},
    ],
    ids=str,
)
def test_what_is_worth_telling_soon(facts: dict[str, Any]) -> None:
    bench = Bench("a").seated()
    bench.waits()
    bench.changes("a", **facts)
    assert bench.waits() == [link("a", **facts)]


@pytest.mark.parametrize(
    "facts",
    [{"rtt": 0.5}, {"messages": 7}, {"bytes_sent": 7}, {"bytes_received": 7}, {"connect_time": 7}],
    ids=str,
)
def test_figures_are_told_at_the_interval_and_only_where_they_changed(
    facts: dict[str, Any],
) -> None:
    bench = Bench("b")
    bench.links["a"] = link("a", rtt=0.25)
    bench.seated()
    bench.waits()
    began = bench.now
    bench.changes("a", **facts)
    assert bench.waits() == [], "nothing that is worth telling soon"
    assert bench.waits() == [link("a", **({"rtt": 0.25} | facts))]
    assert bench.now == began + EVERY
    assert bench.waits() == []
    assert bench.now == began + 2 * EVERY


def test_a_link_that_ended_is_told_once() -> None:
    bench = Bench("a", "b").seated()
    bench.waits()
    bench.changes("a", messages=9)
    last = bench.ends("a")
    assert bench.waits() == [last]
    assert bench.waits() == []


@pytest.mark.parametrize("away", [False, True])
def test_a_pair_that_met_again_meanwhile_is_told_as_it_is(away: bool) -> None:
    bench = Bench("a").seated()
    bench.waits()
    if away:
        bench.reports.lost()
    bench.ends("a")
    bench.links["a"] = link("a")  # all is as it was told, and nothing has happened to it yet
    if away:
        bench.seated()
    assert bench.waits() == [link("a")]
    assert bench.waits() == []


def test_a_link_that_ended_while_the_service_was_away_is_told_when_it_is_back() -> None:
    bench = Bench("a", "b").seated()
    bench.waits()
    bench.reports.lost()
    last = bench.ends("a")
    assert bench.reports.next_deadline() is None
    bench.seated()
    assert bench.waits() == [last, link("b")]


def test_another_incarnation_is_told_after_the_end_of_the_one_before() -> None:
    """Even if all is as it was told."""
    bench = Bench("a").seated()
    bench.waits()
    last = bench.ends("a")
    bench.links["a"] = link("a", "another-one")
    bench.reports.changed("a", bench.now)
    assert bench.waits() == [last, link("a", "another-one")]


def test_a_link_that_changed_and_is_gone_is_not_asked_for() -> None:
    bench = Bench("a").seated()
    bench.waits()
    bench.ends("a")
    bench.reports.changed("a", bench.now)  # what it did last, told late
    assert [each.state for each in bench.waits()] == ["closed"]
    bench.reports.changed("a", bench.now)
    assert bench.waits() == []


def test_what_the_service_may_have_forgotten_is_told_again() -> None:
    """Who comes back to a relay that was restarted tells of links with those who are not yet."""
    bench = Bench("a", "b").seated()
    bench.waits()
    bench.reports.unknown("a", bench.now)
    assert bench.waits() == [link("a")]


def test_what_ended_and_was_not_told_has_a_bound() -> None:
    bench = Bench().seated()
    bench.reports.lost()
    for number in range(2500):
        bench.reports.ended(link(f"{number}", state="closed"), bench.now)
    bench.seated()
    assert [each.peer_id for each in bench.waits()] == [str(n) for n in range(1500, 2500)]


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(
            ("change", "change", "figures", "end", "forget", "welcome", "lost", "wait", "wait")
        ),
        st.sampled_from("abc"),
        st.integers(0, 30),
    ),
    min_size=20,
    max_size=80,
)


@settings(max_examples=150, deadline=None)
@given(ACTIONS)
def test_what_is_known_is_soon_what_there_is(actions: list[tuple[str, str, int]]) -> None:
    """A service that forgets all with each welcome, and each change and end told at most once."""
    bench = Bench()
    known: dict[str, LinkReport] = {}
    seated_at: float | None = None
    changed_at = figures_at = bench.now

    def until(end: float) -> None:
        while (at := bench.reports.next_deadline()) is not None and at <= end:
            assert at >= bench.now
            bench.now = at
            told = bench.due()
            pairs = {(each.peer_id, each.incarnation) for each in told}
            assert len(pairs) == len(told), "what one report says twice is refused"
            for each in told:
                if each.state == "closed":
                    known.pop(each.peer_id, None)
                else:
                    known[each.peer_id] = each
        bench.now = end

    for what, peer_id, number in actions:
        match what:
            case "change":
                bench.changes(peer_id, attempts=number, messages=number)
                changed_at = bench.now
            case "figures" if peer_id in bench.links:
                bench.figures(peer_id, bytes_sent=number, rtt=number / 10)
                figures_at = bench.now
            case "end" if peer_id in bench.links:
                bench.ends(peer_id)
                changed_at = bench.now
            case "forget":
                known.pop(peer_id, None)
                bench.reports.unknown(peer_id, bench.now)
                changed_at = bench.now
            case "welcome":
                known.clear()
                bench.seated()
                seated_at = bench.now
            case "lost":
                bench.reports.lost()
                seated_at = None
            case "wait":
                before = dict(known)
                until(bench.now + number / 2)
                if seated_at is None:
                    assert known == before, "nothing is told while the service is away"
        if seated_at is None:
            continue
        if bench.now > max(seated_at, changed_at) + DELAY:
            assert known.keys() == bench.links.keys()
            assert {p: k.attempts for p, k in known.items()} == {
                p: k.attempts for p, k in bench.links.items()
            }
        if bench.now > max(seated_at, changed_at, figures_at) + EVERY + DELAY:
            assert known == bench.links
