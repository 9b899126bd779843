"""A route: every row of its table, every other pair of state and input, and its times."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from meshpeer.config import MeshConfig
from meshpeer.core.route import TABLE, Attach, Input, Output, Ping, Route, RouteState, Row

CONFIG = MeshConfig()
S = RouteState


def route(*, relay: bool = True, relay_after: float | None = 3.0) -> Route:
    made = Route(MeshConfig(relay_after=relay_after))
    made.start(0.0)
    if relay:
        assert made.relay(0.0, up=True) == []
    return made


def until(made: Route, state: RouteState) -> list[Output]:
    """Let time pass until it is in this state; what it put out with the last step."""
    for _ in range(100):
        at = made.next_deadline()
        assert at is not None
        out = made.tick(at)
        if made.state is state:
            return out
    raise AssertionError(f"never {state}")


def in_state(state: RouteState) -> Route:
    made = route()
    match state:
        case S.DIRECT:
            made.link(0.0, up=True)
        case S.ASKING:
            until(made, S.ASKING)
        case S.RELAY:
            made.asked(0.0, relay=True, ask=True)
        case S.NONE:
            pass
    assert made.state is state
    return made


FEED: dict[Input, Callable[[Route, float], list[Output]]] = {
    Input.LINK_UP: lambda r, now: r.link(now, up=True),
    Input.LINK_DOWN: lambda r, now: r.link(now, up=False),
    Input.RELAY_DOWN: lambda r, now: r.relay(now, up=False),
    Input.ASKED_DIRECT: lambda r, now: r.asked(now, relay=False, ask=True),
    Input.ASKED_RELAY: lambda r, now: r.asked(now, relay=True, ask=True),
    Input.ANSWERED_RELAY: lambda r, now: r.asked(now, relay=True, ask=False),
    Input.FAULT: lambda r, now: r.fault(now),
}
"""The inputs that come from outside, but for the relay that is there again."""

OUTPUTS: dict[str, list[Output]] = {
    "attach_direct": [Attach(relay=False, ask=True)],
    "answer_direct": [Attach(relay=False, ask=False)],
    "attach_relay": [Attach(relay=True, ask=True)],
    "answer_relay": [Attach(relay=True, ask=False)],
}


@pytest.mark.parametrize("state", S)
@pytest.mark.parametrize("on", FEED)
def test_every_pair_of_state_and_input(state: RouteState, on: Input) -> None:
    made = in_state(state)
    row = next((row for row in TABLE if (row.state, row.input) == (state, on)), None)
    reason = made.reason
    out = FEED[on](made, 1.0)
    if row is None:
        assert (made.state, made.reason, out) == (state, reason, [])
        return
    assert made.state is row.next
    assert out == [output for action in row.actions for output in OUTPUTS.get(action, [])]
    if row.next is not state:
        assert made.reason == row.reason.format("3")


def test_there_is_no_other_row() -> None:
    others = {
        (row.state, row.input, row.next, row.actions) for row in TABLE if row.input not in FEED
    }
    assert others == {
        (S.NONE, Input.PATIENCE, S.ASKING, ("attach_relay",)),
        (S.ASKING, Input.AGAIN, S.ASKING, ("attach_relay",)),
        (S.RELAY, Input.SILENCE, S.ASKING, ("attach_relay",)),
        (S.NONE, Input.RELAY_UP, S.NONE, ("retry",)),
    }


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row.state}-{row.input}")
def test_every_row_can_be_done(row: Row) -> None:
    assert row.reason
    for action in row.actions:
        assert callable(getattr(Route, f"_do_{action}"))


# --- how long there is no direct path -------------------------------------------------------------


def test_the_relay_is_asked_for_after_a_while_without_a_direct_path() -> None:
    made = route()
    assert made.next_deadline() == 3.0
    assert made.tick(2.999) == []
    assert made.tick(3.0) == [Attach(relay=True, ask=True)]
    assert (made.state, made.reason) == (S.ASKING, "no direct path for 3 s")
    assert made.asked(3.1, relay=True, ask=False) == []
    assert (made.state, made.reason) == (S.RELAY, "no direct path for 3 s")


def test_from_the_first_moment() -> None:
    made = route(relay_after=0.0)
    assert made.next_deadline() == 0.0
    assert made.tick(0.0) == [Attach(relay=True, ask=True)]


def test_never() -> None:
    made = route(relay=False, relay_after=None)
    assert made.relay(0.0, up=True) == []
    assert made.next_deadline() is None
    assert made.asked(1.0, relay=True, ask=True) == []
    assert made.link(1.0, up=True) == [Attach(relay=False, ask=True)]
    assert made.link(2.0, up=False) == []
    assert made.next_deadline() is None
    assert made.state is S.NONE


def test_the_patience_begins_with_the_end_of_the_direct_path() -> None:
    made = in_state(S.DIRECT)
    assert made.next_deadline() is None
    made.link(100.0, up=False)
    assert made.next_deadline() == 103.0
    assert made.link(102.0, up=True) == [Attach(relay=False, ask=True)]
    assert made.next_deadline() is None


def test_a_relay_that_comes_late_is_asked_at_once() -> None:
    made = route(relay=False)
    assert made.tick(3.0) == []
    assert made.next_deadline() is None
    assert made.relay(10.0, up=True) == []
    assert made.next_deadline() == 10.0
    assert made.tick(10.0) == [Attach(relay=True, ask=True)]


def test_a_relay_that_comes_early_waits_for_the_rest_of_the_time() -> None:
    made = route(relay=False)
    made.relay(1.0, up=True)
    assert made.next_deadline() == 3.0


def test_a_relay_that_was_gone_is_asked_again_at_once() -> None:
    made = in_state(S.ASKING)
    made.relay(5.0, up=False)
    assert made.relay(5.1, up=True) == []
    assert made.next_deadline() == 5.1
    assert made.tick(5.1) == [Attach(relay=True, ask=True)]


def test_a_direct_path_meanwhile_takes_the_patience_back() -> None:
    made = in_state(S.ASKING)
    made.link(5.0, up=True)
    made.link(6.0, up=False)
    made.relay(6.5, up=False)
    made.relay(7.0, up=True)
    assert made.next_deadline() == 9.0


def test_who_only_went_along_asks_as_well_when_the_relay_was_gone() -> None:
    """The other side may not come back with it."""
    made = in_state(S.RELAY)
    made.relay(1.0, up=False)
    made.relay(1.5, up=True)
    assert made.next_deadline() == 4.0
    assert made.tick(4.0) == [Attach(relay=True, ask=True)]


def test_the_same_said_again_of_the_relay_is_nothing_new() -> None:
    made = in_state(S.RELAY)
    assert made.relay(1.0, up=True) == []
    assert made.state is S.RELAY


# --- asking ---------------------------------------------------------------------------------------


def test_the_relay_is_asked_again_and_again_until_it_answers() -> None:
    made = route()
    asked = []
    while (at := made.next_deadline()) is not None and at < 20:
        assert made.tick(at) == [Attach(relay=True, ask=True)]
        asked.append(at)
    assert asked == [3.0, 4.0, 6.0, 10.0, 14.0, 18.0]
    made.asked(20.0, relay=True, ask=False)
    assert made.state is S.RELAY


@pytest.mark.parametrize("between", [Input.LINK_UP, Input.ASKED_RELAY, Input.RELAY_DOWN])
def test_the_next_time_it_is_asked_as_often(between: Input) -> None:
    made = route()
    for at in (3.0, 4.0, 6.0):
        made.tick(at)
    FEED[between](made, 7.0)
    made.link(7.0, up=False)
    made.relay(8.0, up=False)
    made.relay(8.0, up=True)
    until(made, S.ASKING)
    first = made.next_deadline()
    made.tick(first or 0.0)
    assert made.next_deadline() == (first or 0.0) + 2.0


def test_what_is_asked_over_a_relay_that_we_cannot_reach_is_not_answered() -> None:
    made = route(relay=False)
    assert made.asked(1.0, relay=True, ask=True) == []
    assert made.state is S.NONE


def test_an_answer_that_nobody_waits_for_changes_nothing() -> None:
    made = in_state(S.DIRECT)
    assert made.asked(1.0, relay=True, ask=False) == []
    assert made.state is S.DIRECT


def test_an_answer_on_the_direct_path_says_that_it_is_there() -> None:
    """We had asked for it, and went along to the relay before the answer came."""
    made = in_state(S.DIRECT)
    assert made.asked(1.0, relay=True, ask=True) == [Attach(relay=True, ask=False)]
    assert made.asked(1.1, relay=False, ask=False) == [Attach(relay=False, ask=False)]
    assert made.state is S.DIRECT


# --- a direct path of our own ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("on", "out"),
    [
        (Input.RELAY_DOWN, [Attach(relay=False, ask=True)]),
        (Input.FAULT, [Attach(relay=False, ask=True)]),
    ],
)
def test_who_went_along_goes_back_when_the_relay_fails(on: Input, out: list[Output]) -> None:
    made = in_state(S.DIRECT)
    assert made.asked(1.0, relay=True, ask=True) == [Attach(relay=True, ask=False)]
    assert FEED[on](made, 2.0) == out
    assert made.state is S.DIRECT
    assert made.next_deadline() is None


def test_who_went_along_goes_back_when_nothing_is_heard() -> None:
    made = in_state(S.DIRECT)
    made.asked(1.0, relay=True, ask=True)
    out = until(made, S.DIRECT)
    assert out[-1] == Attach(relay=False, ask=True)


def test_a_link_that_ends_meanwhile_is_no_way_back() -> None:
    made = in_state(S.DIRECT)
    made.asked(1.0, relay=True, ask=True)
    assert made.link(2.0, up=False) == []
    made.fault(3.0)
    assert made.state is S.NONE


# --- is it there? ---------------------------------------------------------------------------------


def test_silence_over_the_relay() -> None:
    made = in_state(S.RELAY)
    pings = []
    at, out = 0.0, list[Output]()
    while made.state is S.RELAY:
        at = made.next_deadline() or 0.0
        out = made.tick(at)
        pings += [(at, output.nonce) for output in out if isinstance(output, Ping)]
    assert pings == [(0.0, 1), (1.0, 2), (2.0, 3)]
    assert at == CONFIG.silence_timeout
    assert out == [Attach(relay=True, ask=True)]
    assert made.reason == "nothing heard over the relay for 2.5 s"
    assert made.next_deadline() == at + 1.0


def test_the_silence_begins_with_the_state() -> None:
    made = in_state(S.NONE)
    made.asked(100.0, relay=True, ask=True)
    assert made.next_deadline() == 100.0
    assert made.tick(100.0) == [Ping(1)]


def test_a_process_that_stood_still_asks_before_it_believes_the_silence() -> None:
    made = in_state(S.RELAY)
    made.tick(0.0)
    made.heard(0.1)
    made.tick(1.1)
    assert made.tick(9.0) == [Ping(3)], "what came meanwhile has not been read"
    until(made, S.ASKING)
    assert made.next_deadline() == 10.5 + 1.0


def test_who_asks_late_waits_as_long_for_the_answer_as_others() -> None:
    """As a tab in the background, whose timers come once a second."""
    made = in_state(S.RELAY)
    made.tick(0.0)
    made.heard(0.1)
    made.tick(2.0)
    made.tick(2.6)
    assert made.state is S.RELAY
    until(made, S.ASKING)
    assert made.next_deadline() == 3.5 + 1.0


def test_one_ping_at_a_time() -> None:
    made = in_state(S.RELAY)
    for now in (0.0, 1.0, 2.0):
        assert len(made.tick(now)) == 1
    made.heard(2.2)
    assert made.tick(2.5) == [], "the last is half a second old"
    assert made.tick(3.5) == [Ping(4)]


def test_who_is_heard_is_not_silent() -> None:
    made = in_state(S.RELAY)
    now = 0.0
    for _ in range(50):
        now = made.next_deadline() or 0.0
        for output in made.tick(now):
            assert isinstance(output, Ping)
            made.ponged(output.nonce, now)
            made.heard(now)
    assert made.state is S.RELAY
    assert now >= 40.0


def test_who_says_something_anyway_is_not_pinged() -> None:
    made = in_state(S.RELAY)
    (ping,) = made.tick(0.0)
    assert isinstance(ping, Ping)
    made.ponged(ping.nonce, 0.25)
    assert made.rtt == 0.25
    while (at := made.next_deadline() or 0.0) < 30:
        made.heard(at - 0.1)
        assert made.tick(at) == []


def test_the_round_trip_is_that_of_the_latest_ping() -> None:
    made = in_state(S.RELAY)
    first = made.tick(0.0)[0]
    assert isinstance(first, Ping)
    made.heard(0.0)
    second = made.tick(1.0)[0]
    assert isinstance(second, Ping)
    made.ponged(first.nonce, 1.5)
    round_trips = [made.rtt]
    for at in (1.5, 9.0):
        made.ponged(second.nonce, at)
        round_trips.append(made.rtt)
    assert round_trips == [None, 0.5, 0.5]


@pytest.mark.parametrize("heard", [0.1, 0.3, 1.1, 1e6 + 0.1])
def test_a_look_is_never_at_the_moment_of_the_one_before(heard: float) -> None:
    made = in_state(S.RELAY)
    made.heard(heard)
    at = heard
    while made.state is S.RELAY:
        made.tick(at)
        at, before = made.next_deadline() or 0.0, at
        assert at > before


# --- faults ---------------------------------------------------------------------------------------


def test_after_a_fault_the_relay_is_asked_after_growing_waits() -> None:
    made = route()
    made.tick(3.0)
    now, waits = 3.0, []
    for _ in range(7):
        made.fault(now)
        assert made.state is S.NONE
        at = made.next_deadline() or 0.0
        waits.append(at - now)
        assert made.tick(at) == [Attach(relay=True, ask=True)]
        now = at
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    made.link(now, up=True)
    made.link(now, up=False)
    until(made, S.ASKING)
    now = 200.0
    made.fault(now)
    assert made.next_deadline() == 201.0, "a direct path was there meanwhile"


# --- at random ------------------------------------------------------------------------------------


def test_two_that_hear_each_other_over_the_relay_never_stay_apart() -> None:
    """Whatever happened before: with the relay there, and no direct path, both use it in time."""
    for seed in range(200):
        rng = random.Random(seed)
        sides = [route(relay=False, relay_after=rng.choice((0.0, 1.0, 3.0))) for _ in range(2)]
        wires: list[list[Attach]] = [[], []]
        now = 0.0

        def said(of: int, out: list[Output], wires: list[list[Attach]] = wires) -> None:
            wires[of] += [each for each in out if isinstance(each, Attach) and each.relay]

        def advance(
            to: float,
            sides: list[Route] = sides,
            wires: list[list[Attach]] = wires,
            say: Callable[[int, list[Output]], None] = said,
        ) -> None:
            for of in (0, 1):
                while (at := sides[of].next_deadline()) is not None and at <= to:
                    say(of, sides[of].tick(at))
            for of in (0, 1):
                other = sides[1 - of]
                while wires[of]:
                    ask = wires[of].pop(0).ask
                    other.heard(to)
                    say(1 - of, other.asked(to, relay=True, ask=ask))

        for _ in range(60):
            now += rng.choice((0.0, 0.1, 1.0))
            of = rng.randrange(2)
            side = sides[of]
            match rng.randrange(6):
                case 0:
                    said(of, side.link(now, up=True))
                case 1:
                    said(of, side.link(now, up=False))
                case 2:
                    said(of, side.relay(now, up=True))
                case 3:
                    wires[of].clear()
                    said(of, side.relay(now, up=False))
                case 4:
                    said(of, side.fault(now))
                case _:
                    advance(now)
        for of in (0, 1):
            said(of, sides[of].link(now, up=False))
            said(of, sides[of].relay(now, up=True))
        # Where one was content, it was with a path that is gone: it notices by itself.
        for _ in range(70):
            now += 1.0
            advance(now)
            for each in sides:
                each.heard(now)
        assert [side.state for side in sides] == [S.RELAY, S.RELAY], seed
