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
- ``{"$times": [count, value]}``: a list of the same value so many times;
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
from types import TracebackType
from typing import Any, NamedTuple, Self

import msgspec

from meshpeer.config import MeshConfig
from meshpeer.core import link, restart, route, session
from meshpeer.core.delivery import Delivery
from meshpeer.core.forward import MARK
from meshpeer.core.link import Link
from meshpeer.core.mesh import Mesh
from meshpeer.core.node import Node
from meshpeer.core.reports import Reports
from meshpeer.core.restart import Restart
from meshpeer.core.route import Route
from meshpeer.core.session import Session
from meshpeer.core.timing import Backoff, Deadlines
from meshpeer.core.trickle import Trickle
from tests.browser.walks import WORLDS, record_all

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
    asks: tuple[str, ...] = ()
    """Methods that change nothing and are called again and again: every fourth call is recorded."""


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
        asks=("arrived", "has_room"),
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
        if len(value) > 8 and all(each is value[0] for each in value):
            return {"$times": [len(value), _value(value[0])]}
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
        self.asked = 0

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

    def skips(self, method: str) -> bool:
        """Whether this call is not recorded."""
        if method not in self.spec.asks:
            return False
        self.asked += 1
        return self.asked % 4 > 0

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
            if log is None or log.busy or log.thing is not thing or log.skips(method):
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


# --- all of it -----------------------------------------------------------------------------------


def record(out: Path, seed: int = 0, worlds: int = WORLDS) -> Recorder:
    """Record all into ``out``; what was reached is in the recorder."""
    with Recorder(out, seed) as recorder:
        record_all(recorder, seed, worlds)
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
