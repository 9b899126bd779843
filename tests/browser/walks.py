"""What is recorded for the JavaScript client: the simulation, and random walks of single objects.

Each of these puts one scenario, or all of a kind, into the recordings; `record_all` has them all.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from contextlib import suppress
from random import Random
from typing import TYPE_CHECKING, Any
from unittest import mock

from msgspec import Raw
from msgspec.structs import replace

from meshpeer.config import MeshConfig
from meshpeer.core import frames, route, session
from meshpeer.core.delivery import Delivery, Outgoing
from meshpeer.core.forward import FORWARD_SLACK, MAX_FORWARD, encode_forward
from meshpeer.core.frames import Role
from meshpeer.core.link import Link
from meshpeer.core.mesh import CloseLink, Mesh, OpenLink
from meshpeer.core.messages import (
    MAX_CANDIDATES,
    MAX_REASON,
    MAX_REPORTS,
    Ack,
    Answer,
    Candidates,
    Dial,
    Forwarded,
    Goodbye,
    IceCandidate,
    LinkReport,
    Member,
    MemberLeft,
    MemberUpdated,
    Offer,
    Refused,
    Report,
    Stale,
    encode,
)
from meshpeer.core.reports import Reports
from meshpeer.core.restart import Restart
from meshpeer.core.route import Route
from meshpeer.core.session import Session
from meshpeer.core.timing import Backoff, Deadlines
from meshpeer.core.trickle import Trickle
from meshpeer.core.values import Kind
from meshpeer.errors import (
    MeshError,
    MessageTooLarge,
    ProtocolError,
    TooManyChannels,
    UnexpectedInput,
)
from tests.browser.chaos import Chaos, altered
from tests.core import test_link, test_restart, test_session
from tests.core import test_session_properties as two_sessions
from tests.sim import pair
from tests.sim.test_promises import FAULTS, HEALED, KINDS, RELAY_AFTER, Fault
from tests.sim.world import World

if TYPE_CHECKING:
    from tests.browser.traces import Recorder

__all__ = ["WORLDS", "record_all"]

WORLDS = 6
"""Runs of the simulation."""
_MOST_WALKS = 5000


def record_all(recorder: Recorder, seed: int, worlds: int) -> None:
    """All that is recorded by default."""
    first = seed * 1000
    for number in range(first, first + worlds):
        record_world(recorder, number)
    for number in range(first, first + 16):
        record_pair(recorder, number)
        record_altered(recorder, number)
        record_chaos(recorder, number)
        record_two_sessions(recorder, number)
        record_greedy(recorder, number)
        record_greedy_restart(recorder, number)
        record_restart(recorder, number)
        record_mesh(recorder, number)
        record_reports(recorder, number)
        record_trickle(recorder, number)
        record_timing(recorder, number)
    record_session_cases(recorder)
    record_restart_cases(recorder)
    record_link_cases(recorder)
    record_many_ends(recorder)
    for number in range(_MOST_WALKS):
        # After the first, until every row was taken.
        is_first, missing, at = number < 40, recorder.missing, first + number
        if is_first or "session" in missing:
            record_session(recorder, at)
        if is_first or "route" in missing:
            record_route(recorder, at)
        if is_first or ("link" in missing and recorder.is_new(functools.partial(_walk, at))):
            record_link(recorder, at)
        if not is_first and not missing:
            break


# --- the simulation ------------------------------------------------------------------------------


def record_world(recorder: Recorder, seed: int) -> None:
    """A room in which much fails, as tests/sim/test_promises.py has it."""
    rng = Random(seed)
    hosts = rng.choice((2, 2, 3, 3, 4))
    faults = [
        Fault(
            kind=rng.choice(KINDS),
            at=rng.uniform(0.0, FAULTS),
            host=rng.randrange(5),
            other=rng.randrange(4),
            seconds=rng.randint(1, 200) / 10,
        )
        for _ in range(rng.randrange(2, 12))
    ]
    after = rng.choice(RELAY_AFTER)
    with recorder.scenario(f"world {seed}"):
        world = World(hosts, seed)
        world.over_turn = rng.random() < 0.2
        for machine in world.hosts:
            relay_after = after[machine.number % len(after)]
            machine.mesh = dataclasses.replace(machine.mesh, relay_after=relay_after)
        for host in range(hosts):
            world.at(world.rng.random() * 2, world.start_again, host, False)
        world.at(1.0, world.speak)
        for fault in faults:
            world.push(fault.at, fault.strike, world)
        world.run_until(FAULTS)
        world.end_faults()
        world.settle(HEALED)
        world.check_all_arrived()
        world.check_nothing_left()


# Payloads that are like no other, and short in a trace.
_STRIPES = b"".join(bytes([number * 31 % 251]) * 512 for number in range(2048))


def record_pair(recorder: Recorder, seed: int) -> None:
    """Two deliveries, as tests/sim/test_delivery.py has them."""
    rng = Random(seed)
    configs = [
        pair.Config(
            channel=rng.choice((32, 40, 100)),
            send=rng.choice((16, 64, 1000)),
            receive=(receive := rng.choice((64, 256))),
            message=rng.choice((1, 20, receive)),
        )
        for _ in range(2)
    ]
    sizes = pair.SIZES if rng.random() < 0.5 else (*pair.SIZES[-6:], 20_000, 20_001, 64_000)
    with (
        recorder.scenario(f"pair {seed}", "delivery"),
        mock.patch.object(pair, "_NOISE", _STRIPES),
        mock.patch.object(pair, "SIZES", sizes),
    ):
        both = pair.Pair(*configs)
        both.run(
            pair.Step(
                rng.choice(pair.OPS), rng.randrange(2), rng.randrange(1000), rng.randrange(1000)
            )
            for _ in range(rng.randrange(10, 150))
        )
        both.settle()


def record_altered(recorder: Recorder, seed: int) -> None:
    """Two deliveries, and frames that are not quite what was sent."""
    rng = Random(seed)
    configs = [
        MeshConfig(
            channel_window=rng.choice((32, 40)) * 1024,
            receive_window=64 * 1024,
            max_message_size=rng.choice((1024, 20_000, 64 * 1024)),
            max_channels=rng.choice((2, 32)),
        )
        for _ in range(2)
    ]
    with recorder.scenario(f"altered {seed}", "delivery"):
        one, other = (Delivery(config) for config in configs)

        def feed(it: Delivery, data: bytes) -> None:
            with suppress(ProtocolError):
                match frame := frames.decode(data):
                    case frames.Resume():
                        it.resumed(1, frame)
                        it.refused()
                    case _:
                        it.received(1, frame, now, [])

        now = 0.0
        for number in range(150):
            now += 0.01
            if number % 15 == 0:
                # What was altered may have left them apart.
                feed(one, other.attach(1, ask=False))
                feed(other, one.attach(1, ask=False))
            sizes = (0, 3, 1000, 1100, 16_384, 16_385, 40_000)
            size, kind = rng.choice(sizes), rng.choice(list(Kind))
            payload = b'["%b"]' % (b"x" * size) if kind is Kind.JSON else b"x" * size
            role = rng.choice((Role.PLAIN, Role.REQUEST))
            parts = frames.encode_message(kind, payload, role, number + 1)
            with suppress(MessageTooLarge, TooManyChannels):
                one.accept(Outgoing(rng.choice("ab"), len(payload), parts))
            for it, to in ((one, other), (other, one)):
                while (data := it.pull(rng.choice((500, 20_000)))) is not None:
                    for _ in range(rng.choice((0, 0, 1, 2))):
                        feed(to, altered(rng, data))
                    if rng.random() < 0.95:
                        feed(to, data)
            for it in (one, other):
                it.tick(now)
                it.taken(rng.randrange(2), rng.choice((0, 100, 20_000)))


def record_chaos(recorder: Recorder, seed: int) -> None:
    """Nodes that are told anything."""
    with recorder.scenario(f"chaos {seed}"):
        Chaos(seed).run(400)


def record_two_sessions(recorder: Recorder, seed: int) -> None:
    """Two or three sessions at one relay, as tests/core/test_session_properties.py has them."""
    rng = Random(seed)
    with recorder.scenario(f"two sessions {seed}", "session"):
        world = two_sessions.World(seed, rng.choice(("ab", "abc")))
        actions = [*two_sessions.FAULTS]
        if rng.random() < 0.5:
            world.settle()
            actions += ["kill"] * rng.randrange(2)
        else:  # Not everybody is there yet, so nobody sends.
            actions = [action for action in actions if action != "send"]
        world.play([(rng.choice(actions), rng.randrange(21)) for _ in range(100)])
        world.settle()


# --- random walks --------------------------------------------------------------------------------


def record_link(recorder: Recorder, seed: int) -> None:
    with recorder.scenario(f"link {seed}", "link", "restart", "trickle"):
        _walk(seed)


def _walk(seed: int) -> None:
    for _ in test_link.walk(seed, 50 + seed % 200):
        pass


def _waits_again() -> Link:
    """One whose first attempt was lost."""
    it = test_link.make(dials=False)
    it.start(0.0)
    it.message(5, Offer("o"), 0.0)
    it.lost(5, "lost", 0.0)
    return it


def record_link_cases(recorder: Recorder) -> None:
    """Every input in every state, as far as it takes a row that was not taken yet."""
    makers: list[Callable[[], Link | None]] = [
        functools.partial(test_link.in_state, state, dials=dials, failed=failed)
        for state, dials, failed in test_link.CASES
    ]
    for make in (*makers, _waits_again):
        first = make()
        assert first is not None
        for on, condition, feed in test_link.feeds(first):

            def play(make: Callable[[], Link | None] = make, feed: test_link.Feed = feed) -> None:
                it = make()
                assert it is not None
                with suppress(UnexpectedInput):
                    feed(it)

            if recorder.is_new(play):
                where = f"{first.state}, {on}, {condition}"
                with recorder.scenario(where, "link", "restart", "trickle"):
                    play()


def record_greedy(recorder: Recorder, seed: int) -> None:
    """A link whose other side wants more than it may have."""
    rng = Random(seed)
    some = [IceCandidate("one", "0", 0)] * MAX_CANDIDATES
    with recorder.scenario(f"greedy {seed}", "link", "restart", "trickle"):
        it = Link(
            MeshConfig(), dials=rng.random() < 0.5, incarnation="incarnation", random=rng.random
        )
        now = rng.uniform(0.0, 10.0)
        it.start(now)
        for _ in range(120):
            if rng.random() < 0.1 and (at := it.next_deadline()) is not None:
                now = max(now, at)
            now += rng.choice((0.0, 0.0, 0.0, 0.05, 0.3))
            seen, trickle = it._restart._seen, it._restart._current or it._trickle
            more = max(0, MAX_CANDIDATES - trickle._theirs + rng.randrange(2))
            count = rng.choice((0, 1, 40, more, more))
            beyond = 2**30 + rng.randrange(2)
            epoch = rng.choice((*[it.epoch] * 6, it.epoch + 1, it.epoch + 1, beyond))
            number = rng.choice((0, 0, 0, seen, seen + 1, seen + 2, beyond))
            sdp = "v=0\r\n" + "a=candidate:1\r\n" * count
            if rng.random() < 0.05:
                # It makes us begin again and again.
                for _ in range(rng.randrange(30)):
                    now += rng.choice((0.0, 0.0, 0.25, 1.0))
                    newer = it.epoch + 1
                    bodies = (Offer(sdp), Dial("why"), Stale("incarnation", newer), Offer(sdp, 2))
                    it.message(newer, rng.choice(bodies), now)
            match rng.randrange(8):
                case 0:
                    it.message(epoch, Offer(sdp, number), now)
                case 1:
                    it.message(epoch, Answer(sdp, number), now)
                case 2 | 3:
                    end = rng.random() < 0.1
                    it.message(epoch, Candidates(some[:count], end, number), now)
                case 4:
                    with suppress(UnexpectedInput):
                        numbers = it._restart.generation, rng.choice((0, it._restart.carrying))
                        found = (it.epoch, rng.choice(numbers), tuple(some[:count]))
                        it.local_candidates(*found, end=rng.random() < 0.1, now=now)
                case _:
                    test_link.any_input(it, rng, now)


def record_greedy_restart(recorder: Recorder, seed: int) -> None:
    """The restarts of a connection whose other side wants more than it may have."""
    rng = Random(seed)
    some = [IceCandidate("one", "0", 0)] * MAX_CANDIDATES
    with recorder.scenario(f"greedy restart {seed}", "restart", "trickle"):
        it = Restart(
            MeshConfig(), epoch=2, dials=rng.random() < 0.5, may_begin=lambda _: rng.random() < 0.7
        )
        now = 0.0
        for _ in range(150):
            if rng.random() < 0.1 and (at := it.next_deadline()) is not None:
                now = max(now, at)
            now += rng.choice((0.0, 0.0, 0.1, 1.0))
            trickle = rng.choice((it._current, it._carrying))
            more = 30 if trickle is None else MAX_CANDIDATES - trickle._theirs + rng.randrange(2)
            count = rng.choice((0, 1, 1, 20, max(0, more)))
            known = (it.generation, it.generation, it.carrying, it._agreed, it._theirs, it._seen)
            number = rng.choice((*known, *known, it._seen + 1, it._seen + 2, 1, 2, 2**30 + 1))
            sdp = "v=0\r\n" + "a=candidate:1\r\n" * count
            end = rng.random() < 0.1
            with suppress(UnexpectedInput):
                match rng.choice("bboooaaaacccceeeeffffxssllllt"):
                    case "b":
                        it.begin("why", now, urgent=rng.random() < 0.5)
                    case "o":
                        it.message(Offer(sdp, number), now)
                    case "a":
                        it.message(Answer(sdp, number), now)
                    case "c":
                        it.message(Candidates(some[:count], end, number), now)
                    case "e":
                        it.offer_made(number, sdp, now)
                    case "f":
                        it.answer_made(number, sdp, now)
                    case "x":
                        it.operation_failed(number, now)
                        it.given_up = ""
                    case "s":
                        it.selected(number, now)
                    case "l":
                        it.local_candidates(number, some[:count], end=end)
                    case _:
                        it.tick(now)


def record_restart(recorder: Recorder, seed: int) -> None:
    rng = Random(seed)
    with recorder.scenario(f"two restarts {seed}", "restart", "trickle"):
        two = test_restart.Two()
        two.begin(rng.random() < 0.5)
        for _ in range(rng.randrange(60)):
            steps = two.steps()
            if rng.random() < 0.1:
                two.begin(rng.random() < 0.5, urgent=rng.random() < 0.5)
            elif rng.random() < 0.1:
                two.select()
            elif steps:
                two.step(*rng.choice(steps))
        two.settle(rng)
        for end in two.ends.values():
            end.tick(100.0)


def record_restart_cases(recorder: Recorder) -> None:
    """Every input in every state."""
    for state, dials, again, selected in test_restart.CASES:
        case = {"dials": dials, "again": again, "selected": selected}
        first = test_restart.in_state(state, **case)
        assert first is not None
        for on, condition, feed in test_restart.feeds(first):
            with recorder.scenario(f"{state}, {on}, {condition}", "restart"):
                restart = test_restart.in_state(state, **case)
                assert restart is not None
                with suppress(UnexpectedInput):
                    feed(restart)


def record_route(recorder: Recorder, seed: int) -> None:
    rng = Random(seed)
    config = MeshConfig(relay_after=rng.choice((0.0, 1.0, 3.0, 2.25, None)))
    with recorder.scenario(f"route {seed}", "route"):
        it = Route(config)
        now = rng.uniform(0.0, 10.0)
        it.start(now)
        if rng.random() < 0.8:
            it.relay(now, up=True)
        nonce = 0
        for _ in range(150):
            if rng.random() < 0.5 and (at := it.next_deadline()) is not None:
                now = max(now, at)
            else:
                now += rng.choice((0.0, 0.01, 0.3, 1.0))
            match rng.randrange(12):
                case 0:
                    it.link(now, up=rng.random() < 0.3)
                case 1:
                    it.relay(now, up=rng.random() < 0.8)
                case 2 | 3:
                    it.asked(now, relay=rng.random() < 0.8, ask=rng.random() < 0.5)
                case 4:
                    it.fault(now)
                case 5:
                    it.heard(now)
                case 6:
                    it.ponged(nonce, now)
                case _:
                    for output in it.tick(now):
                        if isinstance(output, route.Ping):
                            nonce = output.nonce


_SAID = [
    message
    for on, message in test_session.MESSAGES.items()
    if on not in (session.Input.WELCOME, session.Input.REFUSED, session.Input.GOODBYE)
]
_WELCOMES = [
    test_session.replaced(test_session.WELCOME, **changes)
    for changes in (
        *({"resumed": True}, {"resumed": True, "received": 2}, {"received": 1}),
        *({"version": 2}, {"room": "other"}, {"peer_id": "other"}, {"session": None}),
        *({"forward_window": 0}, {"report_interval": 0.0}, {"forward_window": 1000}),
        {"members": [test_session.BOB], "seat_timeout": 12.5},
    )
]
_BAD: list[Any] = [
    *(b"{", b"", b"\x01", b"\xff", b"[]"),
    *(Ack(received=1000), Forwarded(to="bob", size=1_000_000), test_session.WELCOME),
    *(Goodbye(reason=reason) for reason in ("replaced", "removed", "why_not")),
    *(Goodbye(reason="shutdown", retry_after=after) for after in (None, 0.0, 0.5, 3600.0)),
    *(Refused(code=code, text="no") for code in ("forbidden", "peer_id_taken", "something")),
    *(
        Refused(code=code, text="later", retry_after=after, field="$.peer_id")
        for code in ("peer_id_taken", "rate_limited", "unavailable", "room_full")
        for after in (None, 0.0, 0.3, 60.0)
    ),
]


def _reports(count: int, reason: str = "") -> list[LinkReport]:
    return [
        LinkReport(f"p{n}", "incarnation", "new", "new", reason=reason, failure=reason)
        for n in range(count)
    ]


def record_session(recorder: Recorder, seed: int) -> None:
    """Any call and any message in any state."""
    rng = Random(seed)
    config = MeshConfig(signaling_retry_first=0.5, signaling_retry_max=4.0, max_pending_signals=100)
    with recorder.scenario(f"session {seed}", "session"):
        it = Session(config, random=rng.random, service="the relay at the corner")
        now = rng.uniform(0.0, 1000.0)
        join = test_session.replaced(
            test_session.JOIN,
            on_conflict=rng.choice(("reject", "takeover", "rename")),
            name=rng.choice((None, *["Ann"] * 8, " ")),
        )
        signal = test_session.signal

        def hears(message: Any) -> object:
            return it.received(message if isinstance(message, bytes) else encode(message), now)

        def good() -> object:
            """What a relay says that works."""
            under_way = it._under_way.get("bob", 0)
            sizes = (rng.randint(0, under_way), under_way, max(0, under_way - it._window // 2))
            return hears(
                rng.choice(
                    (
                        Ack(received=rng.randint(it._acked, it._transmitted)),
                        Forwarded(to="bob", size=rng.choice(sizes)),
                        rng.choice(_SAID),
                        test_session.SIGNAL_IN,
                        test_session.SIGNAL_IN,
                    )
                )
            )

        def fill() -> object:
            """What just fits, or does not."""
            room = it._window + FORWARD_SLACK - it._under_way.get("bob", 0)
            head = len(encode_forward("bob", "bob-one-1", b"x")) - 1
            size = min(room - head + rng.randrange(2), MAX_FORWARD)
            return it.forward("bob", "bob-one-1", bytes(max(1, size)))

        calls: list[tuple[float, Callable[[], object]]] = [
            (0.5, lambda: it.open(join, now)),
            (1, lambda: it.connected(now)),
            (1, lambda: it.connection_failed("no way", now)),
            (0.5, lambda: it.dropped("cut", now)),
            (5, lambda: it.send(signal(rng.randrange(100)))),
            (0.5, lambda: it.send(test_session.replaced(signal(), to=" "))),
            (0.5, lambda: it.send(test_session.replaced(signal(), body=Raw('"é"'.encode())))),
            (0.5, lambda: [it.send(signal(n)) for n in range(30)]),
            (3, lambda: it.update(rng.choice((None, "Anna")), rng.choice((None, {"mood": 1})))),
            (0.5, lambda: it.update("\n", None)),
            (2, lambda: it.forward("bob", "bob-one-1", bytes(rng.choice((0, 1, 40_000, 65_537))))),
            (2, fill),
            (2, lambda: it.forward_room("bob")),
            (1, lambda: it.report(_reports(rng.choice((0, 1, 2, 99))))),
            (0.5, lambda: it.hurry(now)),
            (0.1, lambda: it.close(now)),
            (4, lambda: it.tick(now)),
            (1, lambda: hears(rng.choice(_BAD))),
            (16, good),
        ]
        functions, weights = [f for _, f in calls], [weight for weight, _ in calls]
        for _ in range(150):
            if rng.random() < 0.1 and (at := it.next_deadline()) is not None:
                now = max(now, at)
            else:
                now += rng.choice((0.0, 0.01, 0.3))
            forward = rng.random() < 0.6
            with suppress(MeshError):
                match it.state:
                    case session.State.NEW if forward:
                        it.close(now) if rng.random() < 0.05 else it.open(join, now)
                    case session.State.CONNECTING if forward:
                        it.connected(now, rng.choice((None, None, "a.b.c", "not printable: ä")))
                    case session.State.JOINING if forward:
                        welcomes = [*[test_session.WELCOME] * 8, *_WELCOMES]
                        hears(rng.choice([*welcomes, *_BAD[-10:]]))
                    case session.State.WAITING if forward:
                        now = max(now, it.next_deadline() or now)
                        it.tick(now)
                    case _:
                        rng.choices(functions, weights)[0]()
        with suppress(MeshError):
            it.close(now)
        with suppress(MeshError):
            it.hurry(now)


def record_session_cases(recorder: Recorder) -> None:
    """Every input in every state."""
    for state in session.State:
        for name, call in test_session.CALLS.items():
            with recorder.scenario(f"{state}, {name}", "session"), suppress(UnexpectedInput):
                call(test_session.Ann().reach(state))
    for state in (session.State.JOINING, session.State.SEATED):
        for message in (*test_session.MESSAGES.values(), *_WELCOMES, *_BAD):
            with recorder.scenario(f"{state}, a message", "session"):
                test_session.Ann().reach(state).hears(message)
    _session_limits(recorder)


def _session_limits(recorder: Recorder) -> None:
    """What is just at a limit, and just beyond it."""
    ann = test_session.Ann
    around = Raw(b'"%b"')
    most = session.MAX_SIGNAL - len(
        encode(test_session.replaced(test_session.signal(), body=around))
    )
    for size in (most + 2, most + 3):
        body = Raw(b'"%b"' % (b"x" * size))
        signal = test_session.replaced(test_session.signal(), body=body)
        with recorder.scenario("the largest signal", "session"), suppress(MeshError):
            ann().reach(session.State.SEATED).session.send(signal)
    with recorder.scenario("the largest reports", "session"):
        it = ann().reach(session.State.SEATED).session
        for count in (MAX_REPORTS, MAX_REPORTS + 1):
            it.report(_reports(count))
        links = [
            replace(link, peer_id=f"{n:04}" + 124 * "é", incarnation="i" * 64)
            for n, link in enumerate(_reports(MAX_REPORTS))
        ]
        rest = session.MAX_REPORT - len(encode(Report(links)))
        for size in (rest, rest + 1):
            each = -(-size // len(links))
            texts = [("x" * size)[n * each :][:each] for n in range(len(links))]
            it.report(
                [
                    replace(link, reason=text[:MAX_REASON], failure=text[MAX_REASON:])
                    for link, text in zip(links, texts, strict=True)
                ]
            )
    with recorder.scenario("a relay that took just too long to restart", "session"):
        waiting = ann().reach(session.State.SEATED)
        waiting.hears(Goodbye(reason="shutdown", retry_after=0.5))
        for seconds in (session.RESTART_PATIENCE - 1, session.RESTART_PATIENCE):
            waiting.now = 1000.0 + seconds
            waiting.session.hurry(waiting.now)
            waiting.session.connection_failed("no", waiting.now)
    with recorder.scenario("a relay that was there again, and is not", "session"):
        again = ann().reach(session.State.SEATED)
        again.hears(Goodbye(reason="shutdown", retry_after=0.5))
        again.waits()
        again.connected()
        again.dropped()
        again.waits()
        again.session.connection_failed("no", again.now)
    with recorder.scenario("as much as is kept, and one more", "session"):
        full = ann().reach(session.State.CONNECTING)
        for number in range(test_session.CONFIG.max_pending_signals):
            full.session.send(test_session.signal(number))
        for call in (full.session.send, lambda _: full.session.update("Anna", None)):
            with suppress(MeshError):
                call(test_session.signal())
    with recorder.scenario("an update before a join, and one after it", "session"):
        updating = ann().reach(session.State.SEATED)
        for number in range(3):
            updating.session.send(test_session.signal(number))
        updating.hears(Ack(received=2))
        updating.session.update("Anna", None)
        updating.dropped()
        updating.waits()
        updating.connected()
        updating.session.update("Anne", None)
        updating.session.send(test_session.signal())
        updating.hears(test_session.WELCOME)
    with recorder.scenario("acknowledgements around a drop", "session"):
        counting = ann().reach(session.State.SEATED)
        for count in (5, 14, 16, 3):
            for _ in range(count):
                counting.hears(test_session.SIGNAL_IN)
            counting.dropped()
            counting.comes_back()
    with recorder.scenario("a seat that lasted just as long as it was waited for", "session"):
        seated = ann().reach(session.State.SEATED)
        for _ in range(4):
            seated.session.dropped("cut", seated.now)
            seated.comes_back()
            seated.now += seated.session._wait


_METADATA: list[dict[str, Any]] = [
    *[{}] * 6,
    *({"a": 1, "b": [1]}, {"b": [1], "a": 1.0}, {"a": [], "b": {}}, {"a": {}, "b": []}),
    *({"a": None}, {"a": 0}, {"a": {}}, {"a": []}, {"b": None}, {"a": [1, 2]}, {"a": "1"}),
]


def record_mesh(recorder: Recorder, seed: int) -> None:
    rng = Random(seed)
    names = ["a", "b", "c", "ä", "\uffee", "\U0001f600", "B"]
    own = rng.choice(names)

    def member() -> Member:
        name = rng.choice((None, None, "Ann"))
        data = rng.choice(_METADATA)
        return Member(rng.choice(names), rng.choice(("first-one", "second-one")), name, data)

    with recorder.scenario(f"mesh {seed}", "mesh"):
        it = Mesh(own, "this-one-")
        now = 0.0
        there: set[str] = set()

        def say(outputs: Sequence[Any]) -> None:
            for output in outputs:
                if isinstance(output, OpenLink):
                    there.add(output.member.peer_id)
                elif isinstance(output, CloseLink):
                    there.discard(output.peer_id)

        for _ in range(100):
            now += rng.choice((0.0, 0.1, 1.0, 5.0))
            one = member()
            match rng.randrange(12):
                case 0:
                    members = {each.peer_id: each for each in (member() for _ in range(3))}
                    say(it.welcome(list(members.values()), rng.choice((5.0, 10.0)), now))
                case 1:
                    say(it.resumed(now))
                case 2:
                    say(it.signaling_lost())
                case 3 | 4 | 5:
                    say(it.joined(one))
                case 6 | 7:
                    reason = rng.choice(("left", "timeout", "timeout", "removed"))
                    say(it.left(MemberLeft(one.peer_id, one.incarnation, reason)))
                case 8:
                    data = rng.choice(_METADATA)
                    say(it.updated(MemberUpdated(one.peer_id, one.incarnation, "Bob", data)))
                case 9 if there:
                    say(it.link_alive(rng.choice(sorted(there)), rng.random() < 0.6))
                case 10:
                    say(it.departed(one.peer_id, one.incarnation))
                case _:
                    say(it.tick(now))
        say(it.close())


def record_reports(recorder: Recorder, seed: int) -> None:
    rng = Random(seed)
    names = ["a", "b", "c", "d"]
    links: dict[str, LinkReport] = {}
    with recorder.scenario(f"reports {seed}", "reports"):
        it = Reports()
        now = 100.0
        for _ in range(120):
            peer_id = rng.choice(names)
            match rng.randrange(10):
                case 0:
                    it.wanted(rng.choice((0.0, 0.1, 5.0, 15.0, 15.0)), now)
                case 1 if rng.random() < 0.3:
                    it.lost()
                case 2 if peer_id in links:
                    it.ended(links.pop(peer_id), now)
                case 3:
                    it.unknown(peer_id, now)
                case 4 | 5 | 6:
                    links[peer_id] = LinkReport(
                        peer_id,
                        rng.choice(("first-one", "first-one", "second-one")),
                        rng.choice(("new", "connected")),
                        "new",
                        rtt=rng.choice((None, 0.1, 0.2)),
                        messages=rng.randrange(2),
                    )
                    if rng.random() < 0.7:
                        it.changed(peer_id, now)
                case _:
                    at = it.next_deadline()
                    now = max(now, at) if at is not None and rng.random() < 0.8 else now + 0.1
                    it.due(now, dict(links), links.__getitem__)


def record_many_ends(recorder: Recorder) -> None:
    """More links that ended than are kept."""
    with recorder.scenario("many ends", "reports"):
        it = Reports()
        it.wanted(15.0, 0.0)
        last = LinkReport("p", "incarnation", "closed", "closed")
        for number in range(1002):
            it.ended(replace(last, peer_id=f"p{number}"), 0.0)
        it.due(1.0, (), {"": last}.__getitem__)


def record_trickle(recorder: Recorder, seed: int) -> None:
    rng = Random(seed)
    sdp = "v=0\r\n" + "a=candidate:1 1 udp 1 192.0.2.1 9 typ host\r\n" * rng.choice((0, 1, 40))
    with recorder.scenario(f"trickle {seed}", "trickle"):
        it = Trickle(rng.randrange(5), rng.randrange(3), 5.0)
        now = 0.0
        for _ in range(40):
            now += rng.random()
            some = [
                IceCandidate(f"candidate:{n} 1 udp 1 192.0.2.1 9 typ host", "0", 0)
                for n in range(rng.choice((0, 1, 1, 2, 30, MAX_CANDIDATES - it._theirs)))
            ]
            end = rng.random() < 0.1
            match rng.randrange(6):
                case 0:
                    it.found(some, end=end)
                case 1 if rng.random() < 0.2:
                    it.sent(sdp)
                case 2:
                    it.fits(len(some))
                case 3 if rng.random() < 0.3:
                    it.described(sdp, now)
                case 4:
                    if it.fits(len(some)):
                        it.received(some, end=end, now=now)
                case _:
                    if it.complete_at is not None and it.complete_at <= now:
                        it.complete()


def record_timing(recorder: Recorder, seed: int) -> None:
    rng = Random(seed)
    with recorder.scenario(f"timing {seed}", "deadlines", "backoff"):
        deadlines: Deadlines[str] = Deadlines()
        backoff = Backoff(rng.choice((0.1, 1.0)), rng.choice((3.0, 30.0)), rng.choice((0.0, 1.0)))
        now = 0.0
        for _ in range(60):
            now += rng.choice((0.0, 0.25, 1.0))
            name = rng.choice("abcd")
            match rng.randrange(8):
                case 0 | 1 | 2:
                    deadlines.set(name, now + rng.randrange(4) / 2)
                case 3:
                    deadlines.clear(name)
                case 4 if rng.random() < 0.1:
                    deadlines.clear_all()
                case 5:
                    deadlines.get(name)
                case 6:
                    backoff.next(rng.random())
                case 7 if rng.random() < 0.1:
                    backoff.reset()
                case _:
                    deadlines.due(now)
