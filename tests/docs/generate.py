"""Redraws the parts of docs/*.md that are made from the code, and the test vectors that are
(``make docs``).

A part stands between ``<!-- generated: NAME -->`` and ``<!-- end -->``; `PARTS` says what makes
it. tests/docs/test_generate.py fails when a file is not what this would write.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec.inspect import (
    AnyType,
    BoolType,
    DictType,
    FloatType,
    IntType,
    ListType,
    LiteralType,
    NoneType,
    RawType,
    StrType,
    StructType,
    Type,
    UnionType,
    type_info,
)

from meshpeer import config, errors
from meshpeer.core import link, messages, restart, route
from tests.docs import vectors

__all__ = ["PARTS", "main", "render"]

DOCS = Path(__file__).parent.parent.parent / "docs"
_PART = re.compile(
    r"^<!-- generated: (?P<name>[\w-]+) -->$(?P<body>.*?)^<!-- end -->$", re.MULTILINE | re.DOTALL
)
_MARK = re.compile(r"^<!-- (generated\b|end\b)", re.MULTILINE)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def _prose(docstring: str) -> str:
    """A docstring as one line of Markdown."""
    return " ".join(inspect.cleandoc(docstring).split()).replace("``", "`")


def error_tree() -> str:
    """The tree, from the docstring of `meshpeer.errors`."""
    _, _, tree = inspect.cleandoc(errors.__doc__ or "").partition("::\n\n")
    return f"```text\n{textwrap.dedent(tree).rstrip()}\n```"


def _settings(owner: type) -> str:
    """Field, default and meaning, as the source of a class of `meshpeer.config` has them."""
    node = ast.parse(inspect.getsource(owner)).body[0]
    assert isinstance(node, ast.ClassDef)
    rows = []
    for field, after in zip(node.body, node.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            meaning = ""
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                meaning = _prose(str(after.value.value))
            rows.append((f"`{field.target.id}`", f"`{_default(field.value)}`", meaning))
    return f"### {owner.__name__}\n\n{_prose(owner.__doc__ or '')}\n\n" + _table(
        ("field", "default", "meaning"), rows
    )


def _default(value: ast.expr | None) -> str:
    if value is None:
        return "required"
    if isinstance(value, ast.Call):  # field(default=…, repr=False), field(default_factory=…)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in value.keywords}
        return given.get("default") or f"{given['default_factory']}()"
    return ast.unparse(value)


def settings() -> str:
    """All the classes of `meshpeer.config`."""
    owners = (config.MeshConfig, config.IceServer, config.RelayConfig)
    return "\n\n".join(map(_settings, owners))


def _type(of: Type) -> str:
    match of:
        case StrType():
            if of.pattern is not None:
                words = messages._PATTERNS[of.pattern]
                long = f", at most {of.max_length} characters" if of.max_length else ""
                return f"text {words}{long}"
            return f"text, at most {of.max_length} characters" if of.max_length else "text"
        case IntType():
            return f"whole number, {of.ge} to {of.le}"
        case FloatType():
            return f"number, {of.ge:g} " + ("or more" if of.le is None else f"to {of.le:g}")
        case BoolType():
            return "true or false"
        case DictType():
            return "object"
        case ListType():
            most = f", at most {of.max_length}" if of.max_length else ""
            return f"list of {_type(of.item_type)}{most}"
        case LiteralType():
            return " or ".join(f'`"{value}"`' for value in of.values)
        case UnionType():
            return " or ".join(_type(each) for each in of.types)
        case NoneType():
            return "null"
        case RawType() | AnyType():
            return "anything"
        case StructType():
            return f"`{of.cls.__name__}`"
    raise NotImplementedError(of)


def _struct(cls: type[msgspec.Struct]) -> str:
    of = type_info(cls)
    assert isinstance(of, StructType)
    title = f"`{of.tag}`" if of.tag else f"`{cls.__name__}`"
    rows = []
    for field in of.fields:
        if field.required:
            default = "required"
        elif field.default_factory is not msgspec.NODEFAULT:
            default = f"`{msgspec.json.encode(field.default_factory()).decode()}`"
        else:
            default = f"`{msgspec.json.encode(field.default).decode()}`"
        rows.append((f"`{field.encode_name}`", _type(field.type), default))
    text = f"#### {title}\n\n{_prose(cls.__doc__ or '')}"
    if of.array_like:
        text += " These are its places, in this order; the last ones may be absent."
    return f"{text}\n\n{_table(('field', 'type', 'default'), rows)}" if rows else text


def signaling_messages() -> str:
    """Every message of `meshpeer.core.messages` with its fields, in three groups."""
    groups = (
        ("From the client to the relay", (*messages.ClientMessage.__args__, messages.LinkReport)),
        (
            "From the relay to the client",
            (*messages.RelayMessage.__args__, messages.Member, messages.IceServerInfo),
        ),
        ("From peer to peer", (*messages.LinkMessage.__args__, messages.IceCandidate)),
    )
    return "\n\n".join(
        f"### {title}\n\n" + "\n\n".join(map(_struct, structs)) for title, structs in groups
    )


def _rows(table: Sequence[link.Row | restart.Row | route.Row]) -> str:
    """The transitions of a table; rows that differ in their state alone are one."""
    merged: dict[tuple[str, ...], list[str]] = {}
    for row in table:
        stays = row.next is row.state
        key = (
            row.input,
            getattr(row, "condition", "") or "-",
            "as it was" if stays else f"`{row.next}`",
            ", ".join(f"`{action}`" for action in row.actions) or "-",
            row.reason.replace("{}", "…"),
        )
        merged.setdefault(key, []).append(f"`{row.state}`")
    return _table(
        ("in", "on", "if", "then", "doing", "because"),
        ((", ".join(states), *key) for key, states in merged.items()),
    )


def _diagram(
    table: Sequence[link.Row | restart.Row | route.Row], first: StrEnum, last: StrEnum | None
) -> str:
    """The states of a table and what leads from one to another."""
    arrows: dict[tuple[str, str], list[str]] = {}
    for row in table:
        if row.next is not row.state:
            inputs = arrows.setdefault((row.state, row.next), [])
            if row.input not in inputs:
                inputs.append(row.input)
    lines = ["stateDiagram-v2", f"    [*] --> {first}"]
    lines += [f"    {state} --> {to}: {', '.join(on)}" for (state, to), on in arrows.items()]
    if last is not None:
        lines.append(f"    {last} --> [*]")
    return "```mermaid\n" + "\n".join(lines) + "\n```"


def link_table() -> str:
    """The transitions of a link."""
    return _rows(link.TABLE)


def link_diagram() -> str:
    """The states of a link."""
    return _diagram(link.TABLE, link.LinkState.NEW, link.LinkState.CLOSED)


def restart_table() -> str:
    """The transitions of an ICE restart."""
    return _rows(restart.TABLE)


def restart_diagram() -> str:
    """The states of an ICE restart."""
    return _diagram(restart.TABLE, restart.RestartState.IDLE, None)


def route_table() -> str:
    """The transitions of a route."""
    return _rows(route.TABLE)


def route_diagram() -> str:
    """The states of a route."""
    return _diagram(route.TABLE, route.RouteState.NONE, None)


class Rung(NamedTuple):
    """A step of the recovery ladder. ``{setting}`` in its texts stands for a default."""

    when: str
    what: str
    row: tuple[str, str, str] | None = None
    """State, input and condition of the row of a table that says so."""
    of: Sequence[link.Row] | Sequence[restart.Row] = link.TABLE


LADDER = (
    Rung("a local candidate is found", "it is sent at once: no server delays the offer"),
    Rung(
        "no more candidates of the other side, and no end of them, for {candidates_timeout}",
        "they are taken to be all",
    ),
    Rung(
        "not connected {connect_timeout} after the attempt began",
        "ICE restart, by the side that dials",
        ("checking", "deadline", "dials, not restarted"),
    ),
    Rung(
        "not connected {connect_timeout} later",
        "new connection (the next epoch)",
        ("checking", "deadline", "dials, first"),
    ),
    Rung(
        "and that one is not connected either",
        "`failed`; tried again after {retry_first}, doubling to {retry_max}, with jitter",
        ("checking", "deadline", "dials, again"),
    ),
    Rung(
        "nothing heard for {silence_timeout}, in spite of a check every {ping_interval}",
        "`disconnected`, and an ICE restart at once, by each side that hears nothing",
        ("connected", "silence", ""),
    ),
    Rung(
        "what the path went over has ended, such as a TURN server's connection",
        "`disconnected`, and an ICE restart at once",
        ("connected", "path lost", "current"),
    ),
    Rung(
        "the local addresses changed",
        "ICE restart at once, in place of one that is under way",
        ("connected", "restart", ""),
    ),
    Rung(
        "a restart is not answered within {restart_timeout}",
        "another one, as long as the peer is `disconnected`",
        ("offered", "deadline", "current"),
        restart.TABLE,
    ),
    Rung(
        "a restart was answered, and found no path within {connect_timeout}",
        "another one, as long as the peer is `disconnected`",
        ("checking", "deadline", "current"),
        restart.TABLE,
    ),
    Rung(
        "the peer is heard again, over whatever path",
        "`connected`",
        ("disconnected", "heard", "current"),
    ),
    Rung(
        "not heard again {disconnected_timeout} after it was `disconnected`; a restart that was "
        "answered late has the time for its checks",
        "new connection",
        ("disconnected", "deadline", "dials, first"),
    ),
    Rung(
        "the other side knows nothing of the connection any more",
        "it says so, and there is a new connection at once",
        ("waiting", "restart offer", "waits, newer"),
    ),
    Rung(
        "signalling is back, and a restart was due meanwhile",
        "ICE restart",
        ("disconnected", "reachable", "dials"),
    ),
    Rung(
        "there was no direct path, and none over TURN, for {relay_after}",
        "data flows over the relay until there is one; after an attempt that failed, the next "
        "follows after {upgrade_first}, doubling to {upgrade_max}",
    ),
    Rung(
        "the path goes over TURN",
        "ICE restart after {upgrade_first}, doubling to {upgrade_max}, to look for a direct one",
    ),
    Rung(
        "the relay gives new TURN credentials",
        "ICE restart of what goes over TURN, before the old ones expire",
    ),
    Rung(
        "a connection has held for {stable_after}",
        "failures are forgotten, and waits begin at the first again",
    ),
)
_NAMED = re.compile(r"\{(\w+)\}")


def _seconds(name: str) -> str:
    value = getattr(config.MeshConfig(), name)
    return f"{value / 60:g} min" if value >= 120 else f"{value:g} s"


def _filled(text: str) -> str:
    return _NAMED.sub(lambda match: _seconds(match[1]), text)


def ladder_table() -> str:
    """The rungs, each with the settings that it goes by."""
    rows = []
    for rung in LADDER:
        if rung.row is not None and not any(row[:3] == rung.row for row in rung.of):
            raise ValueError(f"no row {rung.row}: the ladder says what the table does not")
        names = dict.fromkeys(_NAMED.findall(rung.when + rung.what))
        settings = ", ".join(f"`{name}`" for name in names) or "-"
        rows.append((_filled(rung.when), _filled(rung.what), settings))
    return _table(("when", "what", "settings"), rows)


def ladder_diagram() -> str:
    """The way down the rungs, and up again."""
    arrows = (
        ("connecting", "open", "connected"),
        ("connecting", "{connect_timeout}", "restart1[ICE restart]"),
        ("restart1", "open", "connected"),
        ("restart1", "{connect_timeout} more", "second[new connection]"),
        (
            "connected",
            "nothing heard for {silence_timeout},<br>or the path is lost",
            "disconnected",
        ),
        ("connected", "addresses changed", "restart2[ICE restart,<br>not noticed]"),
        ("restart2", "took over", "connected"),
        ("disconnected", "at once", "restart3[ICE restart]"),
        (
            "restart3",
            "unanswered for {restart_timeout},<br>or no path in {connect_timeout}",
            "restart3",
        ),
        ("restart3", "heard again", "connected"),
        ("restart3", "{disconnected_timeout},<br>or it knows nothing of us", "second"),
        ("second", "open", "connected"),
        ("second", "ICE restart as well,<br>then no more", "failed"),
        ("failed", "{retry_first} doubling to {retry_max}", "connecting"),
    )
    lines = ["flowchart TD"]
    lines += [f'    {one} -- "{_filled(label)}" --> {other}' for one, label, other in arrows]
    return "```mermaid\n" + "\n".join(lines) + "\n```"


PARTS: dict[str, Callable[[], str]] = {
    "config": settings,
    "errors": error_tree,
    "ladder-diagram": ladder_diagram,
    "ladder-table": ladder_table,
    "link-diagram": link_diagram,
    "link-table": link_table,
    "restart-diagram": restart_diagram,
    "restart-table": restart_table,
    "route-diagram": route_diagram,
    "route-table": route_table,
    "signaling-messages": signaling_messages,
}


def render(text: str) -> str:
    """``text`` with its generated parts made anew. Raises ValueError for a mark that is wrong."""

    def part(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in PARTS:
            raise ValueError(f"nothing makes the part {name!r}; there are {', '.join(PARTS)}")
        if _MARK.search(match["body"]):
            raise ValueError(f"the part {name!r} has no <!-- end --> of its own")
        return f"<!-- generated: {name} -->\n\n{PARTS[name]()}\n\n<!-- end -->"

    if stray := _MARK.search(_PART.sub("", text)):
        line = text[: text.find(stray.group())].count("\n") + 1
        raise ValueError(f"{stray.group()!r} (first at line {line}) has no counterpart")
    return _PART.sub(part, text)


def main() -> None:
    """Write every file of docs/ that is not as it should be."""
    for path in sorted(DOCS.rglob("*.md")):
        old = path.read_text(encoding="utf-8")
        new = render(old)
        if new != old:
            path.write_text(new, encoding="utf-8")
            print(path.relative_to(DOCS.parent))


if __name__ == "__main__":
    main()
    vectors.main()
