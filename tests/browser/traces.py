"""Records what the objects of the core were asked and what they answered, for the JavaScript client
to answer alike: ``python -m tests.browser.traces --seed N --out DIR``.

The recordings come from the simulation (tests/sim) and from random walks, which go on until every
row of every table was taken. tests/browser/page/replay.js plays them to the classes of the same
names in JavaScript.

One file for each class, in lines of JSON. The first line says what it is. Then, before what uses
them, configurations: ``{"config": number, "value": {…}}``. Every other line is one object's life::

    {"number": 7, "from": "world 3", "args": […], "kwargs": {…}, "after": {…}, "calls": […]}

A call is ``[method, args, kwargs, result, raised, after, more]``; the last three are left out where
there is nothing to say. Only calls from outside are listed, not those that the object makes of
itself.

- ``args`` and ``kwargs`` are as the signature has them, defaults filled in: what is keyword-only is
  in ``kwargs``, all else in ``args``.
- ``after``: what can be read of the object then, as far as it has changed: properties and the
  methods without arguments that only tell something, `next_deadline` first of all. Of a `Node`
  also ``peers``: for each `state_of`, `path_of`, `rtt_of`, `ice_state_of`, the state and the epoch
  of its link, and `out` of its delivery.
- ``more.before``: what others wrote into the object since the call before.
- ``more.drew``: ``[name, args, result]`` of each function that it was given and has called
  meanwhile, in order.
- ``more.filled``: what was added to arguments that are lists, by their place.
- ``more.via``: the call was made on what this method of the object returned, as in
  ``["delivery", ["bob"]]``.

Values: names are in camelCase. Dataclasses, Structs and NamedTuples are objects with ``kind``, the
name of the class; a field that is itself named ``kind`` is ``valueKind``. Enums are their values.
Besides

- ``{"$bytes": base64}``, or ``{"$runs": [base64, [byte, count], …]}`` of those that repeat a lot;
- ``{"$raw": text}``: JSON inside of JSON, that nobody looks into (`msgspec.Raw`);
- ``{"$text": text}``: a whole message of JSON, which is bytes in Python and text in JavaScript;
- ``{"$config": number}``, ``{"$set": […]}``, ``{"$function": name}``;
- ``{"$raised": class, "text": …, "code": …, "field": …, "reason": …, "retryAfter": …}``: an error,
  raised or not, with what its class has.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import inspect
import re
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any, NamedTuple, Self
from unittest import mock

import msgspec

from meshpeer.config import MeshConfig
from meshpeer.core import link, restart, route, session
from meshpeer.core.delivery import Delivery
from meshpeer.core.forward import MARK
from meshpeer.core.link import Link
from meshpeer.core.mesh import Mesh
from meshpeer.core.messages import (
    Ack,
    Candidates,
    Forwarded,
    Goodbye,
    IceCandidate,
    LinkReport,
    Member,
    MemberLeft,
    MemberUpdated,
    Offer,
    Refused,
    encode,
)
from meshpeer.core.node import Node
from meshpeer.core.reports import Reports
from meshpeer.core.restart import Restart
from meshpeer.core.route import Route
from meshpeer.core.session import Session
from meshpeer.core.timing import Backoff, Deadlines
from meshpeer.core.trickle import Trickle
from meshpeer.errors import MeshError, UnexpectedInput
from tests.core import test_link, test_restart, test_session
from tests.core import test_session_properties as two_sessions
from tests.sim import pair
from tests.sim.test_promises import FAULTS, HEALED, KINDS, RELAY_AFTER, Fault
from tests.sim.world import World

__all__ = ["CLASSES", "Recorder", "main", "record"]


class _Spec(NamedTuple):
    """What of a class is recorded."""

    cls: type[Any]
    reads: tuple[str, ...]
    """What can be read at any time."""
    writes: tuple[str, ...] = ()
    """What others write."""
    leaves: tuple[str, ...] = ()
    """Methods that are not recorded."""


CLASSES: Mapping[str, _Spec] = {
    "deadlines": _Spec(Deadlines, ("next",)),
    "backoff": _Spec(Backoff, ("attempts",)),
    "session": _Spec(Session, ("state", "last_failure", "pending", "next_deadline")),
    "mesh": _Spec(Mesh, ("next_deadline",)),
    "route": _Spec(Route, ("state", "reason", "rtt", "next_deadline")),
    "reports": _Spec(Reports, ("next_deadline",)),
    "trickle": _Spec(Trickle, ("complete_at",)),
    "restart": _Spec(
        Restart,
        ("state", "generation", "carrying", "reason", "given_up", "next_deadline"),
        writes=("given_up",),
    ),
    "link": _Spec(
        Link,
        (
            *("state", "peer_state", "alive", "failures", "epoch", "generation", "pair", "rtt"),
            *("reachable", "carried", "history", "next_deadline"),
        ),
        writes=("carried", "history"),
    ),
    "delivery": _Spec(
        Delivery,
        (
            *("out", "inbound", "answering", "due", "unsent", "unacknowledged", "unread", "half"),
            *("messages_sent", "messages_direct", "messages_received"),
            *("bytes_sent", "bytes_received", "next_deadline"),
        ),
    ),
    "node": _Spec(
        Node,
        ("next_deadline", "_peers"),
        leaves=("link", "delivery", "state_of", "path_of", "rtt_of", "ice_state_of"),
    ),
}
"""By the name of its file. `Deadlines` and `Backoff` only where they are walked by themselves."""

TABLES: Mapping[str, frozenset[Any]] = {
    "link": frozenset(link.TABLE),
    "restart": frozenset(restart.TABLE),
    "route": frozenset(route.TABLE),
    "session": frozenset(
        (state, on, after)
        for state, inputs in session.TABLE.items()
        for on, states in inputs.items()
        for after in states
    ),
}
"""The rows that are to be taken."""


# --- values --------------------------------------------------------------------------------------

_REPEATS = re.compile(rb"(.)\1{63,}", re.DOTALL)


@functools.cache
def camel(name: str) -> str:
    """A name as JavaScript has it."""
    first, *more = name.split("_")
    return first + "".join(word[:1].upper() + word[1:] for word in more)


@functools.cache
def _fields(kind: Any) -> tuple[tuple[str, str], ...] | None:
    """The fields of a value's class: as they are here, and there."""
    if issubclass(kind, msgspec.Struct):
        names = kind.__struct_fields__
    elif dataclasses.is_dataclass(kind):
        names = tuple(field.name for field in dataclasses.fields(kind))
    elif issubclass(kind, tuple) and hasattr(kind, "_fields"):
        names = kind._fields
    else:
        return None
    return tuple((name, "valueKind" if name == "kind" else camel(name)) for name in names)


def _bytes(data: bytes) -> dict[str, Any]:
    runs: list[Any] = []
    end = 0
    for match in _REPEATS.finditer(data):
        if match.start() > end:
            runs.append(b64encode(data[end : match.start()]).decode())
        runs.append([data[match.start()], match.end() - match.start()])
        end = match.end()
    if not runs:
        return {"$bytes": b64encode(data).decode()}
    if end < len(data):
        runs.append(b64encode(data[end:]).decode())
    return {"$runs": runs}


def _error(error: BaseException) -> dict[str, Any]:
    out: dict[str, Any] = {"$raised": type(error).__name__, "text": str(error)}
    for name in ("code", "field", "reason", "retry_after", "messages"):
        if hasattr(error, name):
            out[camel(name)] = _value(getattr(error, name))
    return out


def _message(data: bytes) -> dict[str, Any]:
    """A message of the signalling service: text, unless it can't be."""
    if data[:1] != MARK:
        with suppress(UnicodeDecodeError):
            return {"$text": data.decode()}
    return _bytes(data)


def _value(value: Any) -> Any:
    match value:
        case None | bool():
            return value
        case Enum():
            return value.value
        case int() | float() | str():
            return value
        case bytes():
            return _bytes(value)
        case msgspec.Raw():
            return {"$raw": bytes(value).decode()}
        case session.Transmit(data):
            return {"kind": "Transmit", "data": _message(data)}
        case BaseException():
            return _error(value)
        case dict():
            return {str(_value(name)): _value(each) for name, each in value.items()}
        case set() | frozenset():
            return {"$set": [_value(each) for each in value]}
    kind: Any = type(value)
    fields = _fields(kind)
    if fields is not None:
        out = {"kind": kind.__name__}
        for name, there in fields:
            out[there] = _value(getattr(value, name))
        return out
    if isinstance(value, (list, tuple)) or hasattr(value, "popleft"):
        return [_value(each) for each in value]
    raise TypeError(f"no trace of {type(value).__name__}: {value!r}")


# --- the recorder --------------------------------------------------------------------------------


class _Log:
    """What is recorded of one object."""

    def __init__(self, number: int, name: str, thing: Any, where: str) -> None:
        self.number = number
        self.name = name
        self.spec = CLASSES[name]
        self.thing = thing
        self.where = where
        self.owner: _Log | None = None
        self.made: dict[str, Any] = {}
        self.after: dict[str, Any] = {}
        self.calls: list[msgspec.Raw] = []
        self.drew: list[Any] = []
        self.busy = False

    def read(self, name: str) -> Any:
        value = getattr(self.thing, name)
        if name == "_peers":
            return {peer_id: _peer(self.thing, peer_id) for peer_id in value}
        return _value(value() if callable(value) else value)

    def changes(self, names: Sequence[str]) -> dict[str, Any]:
        """What can be read and is new."""
        out: dict[str, Any] = {}
        for name in names:
            there = "peers" if name == "_peers" else camel(name)
            value = self.read(name)
            if there not in self.after or self.after[there] != value:
                self.after[there] = out[there] = value
        return out

    def add(self, call: list[Any]) -> None:
        while len(call) > 4 and call[-1] in (None, {}):
            call.pop()
        self.calls.append(msgspec.Raw(msgspec.json.encode(call)))


def _peer(node: Node, peer_id: str) -> list[Any]:
    of = node.link(peer_id)
    return [
        *(node.state_of(peer_id), node.path_of(peer_id), node.rtt_of(peer_id)),
        *(node.ice_state_of(peer_id), of.state, of.epoch, node.delivery(peer_id).out),
    ]


class Recorder:
    """Writes into ``out`` what happens to objects of `CLASSES` that are made in `scenario`."""

    def __init__(self, out: Path, seed: int) -> None:
        self.reached: dict[str, set[Any]] = {name: set() for name in TABLES}
        self._rows = self.reached
        self.written: dict[str, int] = dict.fromkeys(CLASSES, 0)
        out.mkdir(parents=True, exist_ok=True)
        self._files = {name: (out / f"{name}.jsonl").open("wb") for name in CLASSES}
        for name, spec in CLASSES.items():
            self._write(name, {"class": spec.cls.__name__, "seed": seed})
        self._configs: dict[str, dict[bytes, int]] = {name: {} for name in CLASSES}
        self._names: frozenset[str] = frozenset()
        self._where = ""
        self._logs: dict[int, _Log] = {}
        self._active: list[_Log] = []
        self._number = 0
        self._undo: list[tuple[type[Any], str, Any]] = []

    def __enter__(self) -> Self:
        for name, spec in CLASSES.items():
            self._patch(spec.cls, "__init__", self._making(name, spec.cls.__init__))
            for method, function in list(vars(spec.cls).items()):
                if (
                    inspect.isfunction(function)
                    and not method.startswith("_")
                    and method not in spec.reads + spec.leaves
                ):
                    self._patch(spec.cls, method, self._calling(method, function))
        for name in ("link", "restart", "route"):
            cls = CLASSES[name].cls
            self._patch(cls, "_set_state", self._taking(name, cls._set_state))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for cls, name, function in reversed(self._undo):
            setattr(cls, name, function)
        for file in self._files.values():
            file.close()

    @contextmanager
    def scenario(self, where: str, *names: str) -> Iterator[None]:
        """Record objects of these classes; all but those of `timing` when none is named."""
        self._names = frozenset(names or CLASSES.keys() - {"deadlines", "backoff"})
        self._where = where
        self._rows = self.reached
        try:
            yield
        finally:
            self._names = frozenset()
            self._rows = {name: set() for name in TABLES}
            for log in self._logs.values():
                self._finish(log)
            self._logs.clear()

    def is_new(self, play: Callable[[], object]) -> bool:
        """Whether this takes a row that was not taken yet. It is not recorded."""
        self._rows = {name: set() for name in TABLES}
        play()
        return any(rows - self.reached[name] for name, rows in self._rows.items())

    @property
    def missing(self) -> dict[str, frozenset[Any]]:
        """The rows that were not taken."""
        return {
            name: rows - self.reached[name]
            for name, rows in TABLES.items()
            if rows - self.reached[name]
        }

    # --- into the files ---

    def _write(self, name: str, line: object) -> None:
        data = msgspec.json.encode(line) + b"\n"
        self.written[name] += len(data)
        self._files[name].write(data)

    def _finish(self, log: _Log) -> None:
        if log.calls:
            self._write(log.name, log.made | {"calls": log.calls})

    def _config(self, name: str, config: MeshConfig) -> dict[str, Any]:
        known = self._configs[name]
        value = _value(config)
        key = msgspec.json.encode(value)
        if key not in known:
            self._write(name, {"config": len(known), "value": value})
            known[key] = len(known)
        return {"$config": known[key]}

    # --- around the methods ---

    def _patch(self, cls: type[Any], name: str, function: Any) -> None:
        self._undo.append((cls, name, vars(cls)[name]))
        setattr(cls, name, function)

    def _making(self, name: str, init: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(init)

        @functools.wraps(init)
        def make(thing: Any, *args: Any, **kwargs: Any) -> None:
            if name not in self._names:
                init(thing, *args, **kwargs)
                return
            self._number += 1
            log = self._logs[id(thing)] = _Log(self._number, name, thing, self._where)
            nodes = [each for each in self._active if each.name == "node"]
            log.owner = nodes[-1] if nodes else None
            bound = signature.bind(thing, *args, **kwargs)
            bound.apply_defaults()
            for key, value in bound.arguments.items():
                if callable(value) and key != "self":
                    bound.arguments[key] = self._drawing(log, key, value)
            given, named = self._arguments(name, bound)
            init(*bound.args, **bound.kwargs)
            log.made = {
                "number": log.number,
                "from": log.where,
                "args": given,
                "kwargs": named,
                "after": log.changes(log.spec.reads),
            }

        return make

    def _calling(self, method: str, function: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(function)
        there = camel(method)

        @functools.wraps(function)
        def call(thing: Any, *args: Any, **kwargs: Any) -> Any:
            log = self._logs.get(id(thing))
            if log is None or log.busy or log.thing is not thing:
                return function(thing, *args, **kwargs)
            bound = signature.bind(thing, *args, **kwargs)
            bound.apply_defaults()
            for key, value in bound.arguments.items():
                if inspect.isroutine(value):
                    bound.arguments[key] = self._drawing(log, key, value)
            more: dict[str, Any] = {}
            if before := log.changes(log.spec.writes):
                more["before"] = before
            given, named = self._arguments(log.name, bound)
            via = self._via(log)
            lists = [
                (place, value)
                for place, value in enumerate(bound.args[1:])
                if isinstance(value, list) and len(value) == 0
            ]
            state = getattr(thing, "_state", None)
            log.busy = True
            self._active.append(log)
            raised: BaseException | None = None
            result: Any = None
            try:
                result = function(*bound.args, **bound.kwargs)
            except Exception as exc:
                raised = exc
                raise
            finally:
                self._active.pop()
                log.busy = False
                if log.name == "session" and raised is None:
                    self._rows["session"].add((state, thing._input, thing._state))
                if log.drew:
                    more["drew"], log.drew = log.drew, []
                if filled := {str(place): _value(value) for place, value in lists if value}:
                    more["filled"] = filled
                said = [
                    there,
                    given,
                    named,
                    _value(result),
                    None if raised is None else _error(raised),
                ]
                log.add([*said, log.changes(log.spec.reads), more])
                if via is not None and log.owner is not None:
                    changed = log.owner.changes(log.owner.spec.reads)
                    log.owner.add([*said, changed, more | {"via": via}])
            return result

        return call

    def _taking(self, name: str, function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def take(thing: Any, row: Any, now: float) -> None:
            self._rows[name].add(row)
            function(thing, row, now)

        return take

    def _drawing(self, log: _Log, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function that an object was given, with a note of each call."""

        def draw(*args: Any) -> Any:
            result = function(*args)
            log.drew.append([camel(name), [_value(each) for each in args], _value(result)])
            return result

        return draw

    def _via(self, log: _Log) -> list[Any] | None:
        """How somebody outside of its node got at a delivery."""
        if self._active or log.owner is None or log.name != "delivery":
            return None
        for peer_id, peer in log.owner.thing._peers.items():
            if peer.delivery is log.thing:
                return ["delivery", [peer_id]]
        return None

    def _arguments(
        self, name: str, bound: inspect.BoundArguments
    ) -> tuple[list[Any], dict[str, Any]]:
        given: list[Any] = []
        named: dict[str, Any] = {}
        for key, value in list(bound.arguments.items())[1:]:
            there: Any
            if isinstance(value, MeshConfig):
                there = self._config(name, value)
            elif name == "session" and key == "data" and isinstance(value, bytes):
                there = _message(value)
            elif name == "reports" and key == "peers":
                there = {"$set": list(value)}
            elif inspect.isroutine(value):
                there = {"$function": camel(key)}
            else:
                there = _value(value)
            if bound.signature.parameters[key].kind is inspect.Parameter.KEYWORD_ONLY:
                named[camel(key)] = there
            else:
                given.append(there)
        return given, named


# --- the simulation ------------------------------------------------------------------------------


def _world(recorder: Recorder, seed: int) -> None:
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


def _pair(recorder: Recorder, seed: int) -> None:
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
    with recorder.scenario(f"pair {seed}", "delivery"), mock.patch.object(pair, "_NOISE", _STRIPES):
        both = pair.Pair(*configs)
        both.run(
            pair.Step(
                rng.choice(pair.OPS), rng.randrange(2), rng.randrange(1000), rng.randrange(1000)
            )
            for _ in range(rng.randrange(10, 150))
        )
        both.settle()


def _two_sessions(recorder: Recorder, seed: int) -> None:
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


def _link(recorder: Recorder, seed: int) -> None:
    with recorder.scenario(f"link {seed}", "link", "restart", "trickle"):
        _walk(seed)


def _walk(seed: int) -> None:
    for _ in test_link.walk(seed, seed % 100):
        pass


def _waits_again() -> Link:
    """One whose first attempt was lost."""
    it = test_link.make(dials=False)
    it.start(0.0)
    it.message(5, Offer("o"), 0.0)
    it.lost(5, "lost", 0.0)
    return it


def _link_cases(recorder: Recorder) -> None:
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


def _restart(recorder: Recorder, seed: int) -> None:
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


def _restart_cases(recorder: Recorder) -> None:
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


def _route(recorder: Recorder, seed: int) -> None:
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


def _session(recorder: Recorder, seed: int) -> None:
    """Any call and any message in any state."""
    rng = Random(seed)
    config = MeshConfig(signaling_retry_first=0.5, signaling_retry_max=4.0, max_pending_signals=100)
    messages = [*test_session.MESSAGES.values(), b"{", b"", b"\x01", b"\xff", b"[]"]
    messages += [
        Ack(received=1),
        Ack(received=3),
        Forwarded(to="bob", size=20),
        Forwarded(to="bob", size=100_000),
        *(Goodbye(reason=reason) for reason in ("replaced", "removed", "why_not")),
        *(Goodbye(reason="shutdown", retry_after=after) for after in (0.0, 0.5, 3600.0)),
        *(Refused(code=code, text="no") for code in ("forbidden", "peer_id_taken", "something")),
        *(
            Refused(code=code, text="later", retry_after=after, field="$.peer_id")
            for code in ("peer_id_taken", "rate_limited", "unavailable", "room_full")
            for after in (0.0, 0.3, 60.0)
        ),
        *(
            test_session.replaced(test_session.WELCOME, **changes)
            for changes in (
                *({"resumed": True}, {"resumed": True, "received": 2}, {"received": 1}),
                *({"version": 2}, {"room": "other"}, {"peer_id": "other"}, {"session": None}),
                *({"forward_window": 0}, {"report_interval": 0.0}, {"forward_window": 1000}),
                {"members": [test_session.BOB], "seat_timeout": 12.5},
            )
        ),
    ]
    welcomes = messages[-12:]
    with recorder.scenario(f"session {seed}", "session"):
        it = Session(config, random=rng.random, service="the relay at the corner")
        now = rng.uniform(0.0, 1000.0)
        join = test_session.replaced(
            test_session.JOIN, on_conflict=rng.choice(("reject", "takeover", "rename"))
        )
        signal = test_session.signal

        def hears(message: Any) -> object:
            return it.received(message if isinstance(message, bytes) else encode(message), now)

        def report(count: int) -> object:
            reason = rng.choice(("", "x" * 200))
            return it.report(
                [
                    LinkReport(f"p{n}", "incarnation", "new", "new", rtt=0.5, reason=reason)
                    for n in range(count)
                ]
            )

        calls: list[tuple[float, Callable[[], object]]] = [
            (2, lambda: it.open(join, now)),
            (6, lambda: it.connected(now, rng.choice((None, None, "a.b.c", "not printable: ä")))),
            (2, lambda: it.connection_failed("no way", now)),
            (1, lambda: it.dropped("cut", now)),
            (5, lambda: it.send(signal(rng.randrange(100)))),
            (1, lambda: it.send(test_session.replaced(signal(), to=" "))),
            (1, lambda: it.send(test_session.replaced(signal(), body=msgspec.Raw('"é"'.encode())))),
            (1, lambda: [it.send(signal(n)) for n in range(30)]),
            (2, lambda: it.update(rng.choice((None, "Anna")), rng.choice((None, {"mood": 1})))),
            (1, lambda: it.update("\n", None)),
            (3, lambda: it.forward("bob", "bob-one-1", bytes(rng.choice((0, 1, 40_000, 65_537))))),
            (2, lambda: it.forward_room("bob")),
            (2, lambda: report(rng.choice((0, 1, 1, 2, 2, 101)))),
            (1, lambda: it.hurry(now)),
            (0.1, lambda: it.close(now)),
            (6, lambda: it.tick(now)),
            (12, lambda: hears(rng.choice(messages))),
            (12, lambda: hears(test_session.SIGNAL_IN)),
            (6, lambda: hears(test_session.WELCOME)),
            (2, lambda: hears(rng.choice(welcomes))),
        ]
        functions, weights = [f for _, f in calls], [weight for weight, _ in calls]
        for _ in range(150):
            if rng.random() < 0.1 and (at := it.next_deadline()) is not None:
                now = max(now, at)
            else:
                now += rng.choice((0.0, 0.01, 0.3))
            with suppress(MeshError):
                if it.state is session.State.NEW and rng.random() < 0.8:
                    it.close(now) if rng.random() < 0.05 else it.open(join, now)
                elif it.state is session.State.WAITING and rng.random() < 0.5:
                    now += 1.0
                    it.tick(now)
                else:
                    rng.choices(functions, weights)[0]()
        with suppress(MeshError):
            it.close(now)
        with suppress(MeshError):
            it.hurry(now)


def _session_cases(recorder: Recorder) -> None:
    """Every input in every state."""
    for state in session.State:
        for name, call in test_session.CALLS.items():
            with recorder.scenario(f"{state}, {name}", "session"), suppress(UnexpectedInput):
                call(test_session.Ann().reach(state))
    for state in (session.State.JOINING, session.State.SEATED):
        for name, message in test_session.MESSAGES.items():
            with recorder.scenario(f"{state}, {name}", "session"):
                test_session.Ann().reach(state).hears(message)


def _mesh(recorder: Recorder, seed: int) -> None:
    rng = Random(seed)
    names = ["a", "b", "c", "ä", "\uffee", "\U0001f600", "B"]
    own = rng.choice(names)

    def member() -> Member:
        name = rng.choice((None, None, "Ann"))
        return Member(rng.choice(names), rng.choice(("first-one", "second-one")), name)

    with recorder.scenario(f"mesh {seed}", "mesh"):
        it = Mesh(own, "this-one-")
        now = 0.0
        there: set[str] = set()

        def say(outputs: Sequence[Any]) -> None:
            for output in outputs:
                if type(output).__name__ == "OpenLink":
                    there.add(output.member.peer_id)
                elif type(output).__name__ == "CloseLink":
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
                    data = {"mood": rng.randrange(3)}
                    say(it.updated(MemberUpdated(one.peer_id, one.incarnation, "Bob", data)))
                case 9 if there:
                    say(it.link_alive(rng.choice(sorted(there)), rng.random() < 0.6))
                case 10:
                    say(it.departed(one.peer_id, one.incarnation))
                case _:
                    say(it.tick(now))
        say(it.close())


def _reports(recorder: Recorder, seed: int) -> None:
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
                    it.wanted(rng.choice((0.0, 5.0, 15.0, 15.0)), now)
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


def _trickle(recorder: Recorder, seed: int) -> None:
    rng = Random(seed)
    sdp = "v=0\r\n" + "a=candidate:1 1 udp 1 192.0.2.1 9 typ host\r\n" * rng.choice((0, 1, 40))
    with recorder.scenario(f"trickle {seed}", "trickle"):
        it = Trickle(rng.randrange(5), rng.randrange(3), 5.0)
        now = 0.0
        for _ in range(40):
            now += rng.random()
            some = [
                IceCandidate(f"candidate:{n} 1 udp 1 192.0.2.1 9 typ host", "0", 0)
                for n in range(rng.choice((0, 1, 1, 2, 30, 60)))
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
                        it.received(Candidates(some).candidates, end=end, now=now)
                case _:
                    if it.complete_at is not None and it.complete_at <= now:
                        it.complete()


def _timing(recorder: Recorder, seed: int) -> None:
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


# --- all of it -----------------------------------------------------------------------------------

WORLDS = 7
_MOST_WALKS = 5000


def record(out: Path, seed: int = 0, worlds: int = WORLDS) -> Recorder:
    """Record the default scenarios into ``out``; what was reached is in the recorder."""
    with Recorder(out, seed) as recorder:
        first = seed * 1000
        for number in range(worlds):
            _world(recorder, first + number)
        for number in range(20):
            _pair(recorder, first + number)
        for number in range(20):
            _two_sessions(recorder, first + number)
            _session(recorder, 2 * first + number)
            _session(recorder, 2 * first + 20 + number)
            _restart(recorder, first + number)
            _route(recorder, first + number)
            _mesh(recorder, first + number)
            _reports(recorder, first + number)
            _trickle(recorder, first + number)
            _timing(recorder, first + number)
        _session_cases(recorder)
        _restart_cases(recorder)
        _link_cases(recorder)
        for number in range(40, _MOST_WALKS // 10):
            if not recorder.missing.keys() & {"session", "route"}:
                break
            _session(recorder, 2 * first + number)
            _route(recorder, first + number)
        for number in range(_MOST_WALKS):
            if number < 40 or recorder.is_new(functools.partial(_walk, first + number)):
                _link(recorder, first + number)
            if number >= 40 and "link" not in recorder.missing:
                break
    return recorder


def main() -> None:
    """Record, and say what is in the recordings."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worlds", type=int, default=WORLDS, help="runs of the simulation")
    parser.add_argument("--out", type=Path, required=True, help="the directory to write into")
    given = parser.parse_args()
    recorder = record(given.out, given.seed, given.worlds)
    for name, size in recorder.written.items():
        rows = ""
        if name in TABLES:
            rows = f", {len(recorder.reached[name] & TABLES[name])} of {len(TABLES[name])} rows"
        print(f"{name}.jsonl: {size / 1e6:.1f} MB{rows}")
    if missing := recorder.missing:
        sys.exit(f"not reached: {missing}")


if __name__ == "__main__":
    main()
