"""Imports run one way (docs/architecture.md), read from the source of every module.

`RULES` is the whole of it. A module that no rule places fails: put it where it belongs.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import pytest

import meshpeer

ROOT = Path(meshpeer.__file__).parent
WEBRTC = {"aiortc", "aioice", "av"}
IMPURE = {
    "asyncio",
    "concurrent",
    "logging",
    "multiprocessing",
    "os",
    "random",
    "secrets",
    "select",
    "socket",
    "structlog",
    "subprocess",
    "threading",
    "time",
    "uuid",
}
_CORE = "config errors core.messages core.timing core.events"
_SHELL = f"{_CORE} log streams alarm"


class Rule(NamedTuple):
    """What the modules that match ``module`` may import: of meshpeer, and of other packages."""

    module: str
    ours: str = ""
    others: str = ""
    pure: bool = False
    """No I/O, no clock, no event loop, no randomness."""
    lazily: str = ""
    """What of meshpeer may be imported besides, but only inside a function."""


# The first that matches counts.
RULES = [
    Rule("errors", pure=True),
    Rule("config", "errors", pure=True),
    Rule("core.messages", "errors", "msgspec", pure=True),
    Rule("core.timing", "", pure=True),
    Rule("core.events", "errors", pure=True),
    Rule("core.forward", "errors core.messages", "msgspec", pure=True),
    Rule("core.values", "errors", "msgspec", pure=True),
    Rule("core.frames", "errors core.values", "msgspec", pure=True),
    # One pair, one node, the relay, and the client's seat there: they never import each other.
    Rule("core.operations", "errors core.messages", pure=True),
    Rule("core.trickle", "core.messages core.operations", pure=True),
    Rule("core.restart", f"{_CORE} core.operations core.trickle", pure=True),
    Rule("core.link", f"{_CORE} core.operations core.trickle core.restart", "msgspec", pure=True),
    Rule("core.delivery", f"{_CORE} core.frames core.values", "msgspec", pure=True),
    Rule("core.route", _CORE, pure=True),
    Rule("core.mesh", _CORE, "msgspec", pure=True),
    Rule("core.reports", "core.messages", pure=True),
    Rule("core.limits", "", pure=True),
    Rule("core.tracking", "core.limits core.messages", "msgspec", pure=True),
    Rule("core.rooms", f"{_CORE} core.forward core.limits core.tracking", "msgspec", pure=True),
    Rule("core.session", f"{_CORE} core.forward", "msgspec", pure=True),
    # What a node is made of.
    Rule(
        "core.node",
        f"{_CORE} core.link core.mesh core.frames core.delivery core.route core.reports",
        "msgspec",
        pure=True,
    ),
    # What shells share.
    Rule("log", "", "structlog"),
    Rule("streams"),
    Rule("alarm"),
    Rule("thin"),
    Rule("signaling.base", "core.messages core.forward errors"),
    Rule("signaling.client", f"{_SHELL} core.forward core.session signaling.base", "msgspec"),
    # The relay's own rooms without sockets: so it can't behave differently.
    Rule(
        "signaling.memory",
        f"{_SHELL} core.session core.rooms signaling.base signaling.client",
        "msgspec",
    ),
    Rule(
        "signaling.*",
        f"{_SHELL} thin core.forward core.session signaling.base signaling.client",
        "msgspec websockets",
    ),
    # What manager and peer ask of a connection: a fake satisfies it too.
    Rule("rtc.base", "core.events errors config"),
    Rule("rtc.interfaces", "config", "ifaddr"),
    Rule("rtc.*", "core.events errors config log streams rtc.*", "aiortc aioice av OpenSSL"),
    # The public faces and the shell behind them: core objects inside, WebRTC only by `rtc.base`,
    # and a default for it that is imported when a connection is first made.
    Rule("peer", f"{_SHELL} core.frames core.values core.delivery rtc.base files", "msgspec"),
    Rule("announcer", f"{_SHELL}"),
    Rule("files", "errors streams peer", "msgspec"),
    Rule("inbox", f"{_SHELL} core.delivery peer", "msgspec"),
    Rule(
        "shell",
        f"{_SHELL} core.node core.link core.mesh core.frames core.values core.delivery"
        " signaling.base rtc.base peer files inbox announcer",
        "msgspec",
    ),
    Rule(
        "manager",
        f"{_SHELL} core.node signaling.base signaling.client signaling.websocket rtc.base peer"
        " files shell announcer",
        "msgspec",
        lazily="rtc.connection rtc.interfaces",
    ),
    Rule(
        "relay.*",
        "config errors log alarm thin core.rooms core.messages core.forward core.limits"
        " core.tracking relay.*",
        "websockets msgspec jwt cryptography prometheus_client segno",
    ),
    Rule("testing.*", "*", "pytest pytest_asyncio msgspec"),
    Rule("__main__", "cli"),
    Rule("cli.*", "*", "typer rich structlog uvloop msgspec click cryptography"),
    # The public names, each imported when it is first asked for.
    Rule("__init__", "errors config core.events manager peer files relay signaling.* rtc.base"),
    # A package's __init__ says what the package is.
    Rule("*.__init__"),
]


def _modules() -> dict[str, Path]:
    """Each module's name below ``meshpeer.``, packages as ``name.__init__``, with its file."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path
        for path in sorted(ROOT.rglob("*.py"))
    }


MODULES = _modules()


def _rule(module: str) -> Rule | None:
    return next(
        (rule for rule in RULES if fnmatchcase(module, rule.module)),
        None,
    )


class Import(NamedTuple):
    name: str
    """Absolute, of the module that is imported."""
    line: int
    in_function: bool


def _imports(source: str) -> Iterator[Import]:
    def walk(node: ast.AST, in_function: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(alias.name, child.lineno, in_function)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"line {child.lineno}: imports are absolute"
                for alias in child.names:
                    # `from meshpeer.core import link` imports a module, not a name in one.
                    whole = f"{child.module}.{alias.name}"
                    name = whole if _is_ours(whole) else child.module or ""
                    yield Import(name, child.lineno, in_function)
            else:
                inner = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from walk(child, in_function or inner)

    yield from walk(ast.parse(source), False)


def _is_ours(name: str) -> bool:
    below = name.removeprefix("meshpeer.")
    return name != below and (below in MODULES or f"{below}.__init__" in MODULES)


def _offences(module: str, source: str) -> list[str]:
    """What in ``source``, as the text of ``module``, runs against `RULES`."""
    rule = _rule(module)
    if rule is None:
        return [f"{module} is in no rule of tests/test_imports.py"]
    found = []
    for name, line, in_function in _imports(source):
        top = name.partition(".")[0]
        if top == "meshpeer":
            below = name.removeprefix("meshpeer").removeprefix(".") or "__init__"
            allowed = rule.ours.split() + (rule.lazily.split() if in_function else [])
            fine = any(fnmatchcase(below, p) or fnmatchcase(f"{below}.", p) for p in allowed)
        elif top in sys.stdlib_module_names:
            fine = not (rule.pure and top in IMPURE)
        else:
            fine = top in rule.others.split()
        if not fine:
            found.append(f"{module}, line {line}: imports {name}")
    return found


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module: str) -> None:
    assert _offences(module, MODULES[module].read_text()) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("core.link", "import asyncio"),
        ("core.link", "import os.path"),
        ("core.link", "def f():\n    from time import monotonic"),
        ("core.link", "from meshpeer.core import mesh"),
        ("core.link", "from meshpeer.core.mesh import Mesh"),
        ("core.link", "import meshpeer.core.rooms"),
        ("core.rooms", "from meshpeer.core.link import Link"),
        ("core.mesh", "import structlog"),
        ("core.mesh", "from meshpeer import PeerManager"),
        ("config", "from meshpeer.core.events import Event"),
        ("errors", "from meshpeer.config import MeshConfig"),
        ("manager", "import aiortc"),
        ("manager", "def f():\n    import aiortc"),
        ("manager", "from meshpeer.rtc.connection import connect"),
        ("manager", "from meshpeer.rtc import base, connection"),
        ("relay.server", "from meshpeer.core.link import Link"),
        ("relay.server", "def f():\n    from meshpeer.manager import PeerManager"),
        ("rtc.base", "import aiortc"),
        ("signaling.websocket", "from meshpeer.core.rooms import Rooms"),
        ("signaling.base", "import websockets"),
        ("somewhere", ""),
    ],
)
def test_the_rules_refuse(module: str, source: str) -> None:
    assert len(_offences(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("manager", "def f():\n    from meshpeer.rtc.connection import connect"),
        ("rtc.connection", "import aiortc"),
        ("core.node", "from meshpeer.core.link import Link"),
        ("signaling.memory", "from meshpeer.core.rooms import Rooms"),
        ("relay.server", "from meshpeer.core.rooms import Rooms"),
        ("cli.chat", "from meshpeer import PeerManager"),
    ],
)
def test_the_rules_allow(module: str, source: str) -> None:
    known = {"rtc.connection": ROOT, "relay.server": ROOT, **MODULES}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[__name__], "MODULES", known)
        assert _offences(module, source) == []


@pytest.mark.parametrize(
    "name",
    [
        "meshpeer",
        "meshpeer.relay",
        "meshpeer.signaling.websocket",
        "meshpeer.testing.plugin",
    ],
)
def test_webrtc_is_not_imported_before_it_is_needed(name: str) -> None:
    code = f"import json, sys, {name}; print(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert WEBRTC.isdisjoint(json.loads(done.stdout))


@pytest.mark.parametrize("module", MODULES)
def test_what_a_module_offers_exists_and_is_described(module: str) -> None:
    source = MODULES[module].read_text()
    if not source:
        return  # the __init__ of a package that offers nothing by itself
    assert ast.get_docstring(ast.parse(source)), "the module has no docstring"
    if module.rpartition(".")[2] == "__main__":
        return  # it runs when it is imported
    loaded = importlib.import_module(f"meshpeer.{module}".removesuffix(".__init__"))
    assert isinstance(loaded.__all__, list)
    assert len(set(loaded.__all__)) == len(loaded.__all__)
    for name in loaded.__all__:
        thing = getattr(loaded, name)
        if inspect.isclass(thing) or inspect.isroutine(thing):
            text = thing.__doc__
            assert text, f"{name} has no docstring"
            assert not text.startswith(f"{name}("), f"{name} has only the docstring made for it"
