"""Redraws the parts of docs/*.md that are made from the code (``make docs``).

A part stands between ``<!-- generated: NAME -->`` and ``<!-- end -->``; `PARTS` says what makes
it. tests/docs/test_generate.py fails when a file is not what this would write.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path

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
from meshpeer.core import link, messages

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
    if isinstance(value, ast.Call):  # field(default=…, repr=False)
        value = next(keyword.value for keyword in value.keywords if keyword.arg == "default")
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
            return f"number, {of.ge:g} to {of.le:g}"
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
    return f"{text}\n\n{_table(('field', 'type', 'default'), rows)}" if rows else text


def signaling_messages() -> str:
    """Every message of `meshpeer.core.messages` with its fields, in three groups."""
    groups = (
        ("From the client to the relay", messages.ClientMessage.__args__),
        ("From the relay to the client", (*messages.RelayMessage.__args__, messages.Member)),
        ("From peer to peer", (*messages.LinkMessage.__args__, messages.IceCandidate)),
    )
    return "\n\n".join(
        f"### {title}\n\n" + "\n\n".join(map(_struct, structs)) for title, structs in groups
    )


def link_table() -> str:
    """The transitions of a link; rows that differ in their state alone are one."""
    merged: dict[tuple[str, ...], list[str]] = {}
    for row in link.TABLE:
        stays = row.next is row.state
        key = (
            row.input,
            row.condition or "-",
            "as it was" if stays else f"`{row.next}`",
            ", ".join(f"`{action}`" for action in row.actions) or "-",
            row.reason.replace("{}", "…"),
        )
        merged.setdefault(key, []).append(f"`{row.state}`")
    return _table(
        ("in", "on", "if", "then", "doing", "because"),
        ((", ".join(states), *key) for key, states in merged.items()),
    )


def link_diagram() -> str:
    """The states of a link and what leads from one to another."""
    arrows: dict[tuple[str, str], list[str]] = {}
    for row in link.TABLE:
        if row.next is not row.state:
            inputs = arrows.setdefault((row.state, row.next), [])
            if row.input not in inputs:
                inputs.append(row.input)
    lines = ["stateDiagram-v2", f"    [*] --> {link.LinkState.NEW}"]
    lines += [f"    {state} --> {to}: {', '.join(on)}" for (state, to), on in arrows.items()]
    lines.append(f"    {link.LinkState.CLOSED} --> [*]")
    return "```mermaid\n" + "\n".join(lines) + "\n```"


PARTS: dict[str, Callable[[], str]] = {
    "config": settings,
    "errors": error_tree,
    "link-diagram": link_diagram,
    "link-table": link_table,
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
