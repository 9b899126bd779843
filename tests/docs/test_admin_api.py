"""docs/admin-api.md has the fields that the admin API answers with, and no others."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
from msgspec.inspect import (
    BoolType,
    FloatType,
    IntType,
    ListType,
    LiteralType,
    NoneType,
    StrType,
    StructType,
    Type,
    UnionType,
    type_info,
)

from meshpeer.core import tracking
from meshpeer.relay import admin
from tests.docs.generate import DOCS

PAGE: Path = DOCS / "admin-api.md"
TEXT = PAGE.read_text(encoding="utf-8")
STRUCTS = {
    name: thing
    for name in tracking.__all__
    if isinstance(thing := getattr(tracking, name), type) and issubclass(thing, msgspec.Struct)
}


def _section(title: str) -> str:
    match = re.search(rf"^### `{title}`$(.*?)(?=^##|\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert match, f"no section for {title}"
    return match[1]


def _rows(text: str, head: str) -> list[list[str]]:
    """The cells of the table that begins with ``head``."""
    _, found, rest = text.partition(f"| {head} |")
    assert found, f"no table with {head}"
    lines = rest.partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def _type(of: Type) -> str:
    match of:
        case StrType():
            return "text"
        case IntType():
            return "whole number"
        case FloatType():
            return "number"
        case BoolType():
            return "true or false"
        case LiteralType():
            *most, last = (f"`{value}`" for value in of.values)
            return f"{', '.join(most)} or {last}"
        case ListType():
            return f"list of {_type(of.item_type)}"
        case StructType():
            return f"`{of.cls.__name__}`"
        case UnionType():
            rest = [each for each in of.types if not isinstance(each, NoneType)]
            assert len(rest) == len(of.types) - 1 == 1
            comma = "," if isinstance(rest[0], LiteralType) else ""
            return f"{_type(rest[0])}{comma} or null"
    raise NotImplementedError(of)


def test_what_is_answered_with_has_a_section() -> None:
    assert set(re.findall(r"^### `(\w+)`$", TEXT, re.MULTILINE)) == set(STRUCTS)


def _order(name: str) -> list[str]:
    # As they are worth reading, the values of a Literal come sorted from msgspec.
    return sorted(re.findall(r"`\w+`", name))


@pytest.mark.parametrize("name", STRUCTS)
def test_the_fields_are_those_of_the_structure(name: str) -> None:
    of = type_info(STRUCTS[name])
    assert isinstance(of, StructType)
    rows = _rows(_section(name), "field | type | meaning")
    assert [row[0] for row in rows] == [f"`{field.encode_name}`" for field in of.fields]
    for row, field in zip(rows, of.fields, strict=True):
        expected = _type(field.type)
        assert re.sub(r"`\w+`", "", row[1]) == re.sub(r"`\w+`", "", expected), row[0]
        assert _order(row[1]) == _order(expected), row[0]


def test_the_kinds_of_activity_are_those_that_there_are() -> None:
    node = (tracking.Activity.__doc__, Path(tracking.__file__).read_text(encoding="utf-8"))
    _, _, after = node[1].partition("    kind: str\n")
    docstring = after.partition('"""')[2].partition('"""')[0]
    kinds = re.findall(r"``(\w+)``", docstring)
    assert len(kinds) > 5
    rows = _rows(_section("Activity"), "`kind` | what happened | `text`")
    assert sorted(row[0] for row in rows) == sorted(f"`{kind}`" for kind in kinds)


def test_the_limits_are_those_that_hold() -> None:
    text = " ".join(TEXT.split())
    assert f"a round trip of {tracking.POOR_RTT} s or more" in text
    assert f"one of {tracking.FAIR_RTT} s or more" in text
    assert f"The last {tracking.MAX_ACTIVITY} are kept" in text
    assert tracking.SAMPLE_INTERVAL == 10
    assert tracking.MAX_SAMPLES * tracking.SAMPLE_INTERVAL == 3600


def test_the_paths_are_those_that_are_answered() -> None:
    described = set(re.findall(r"``(/api/admin/[\w-]+)``", admin.__doc__ or ""))
    assert described == set(re.findall(r"`(/api/admin/[\w-]+)`", TEXT)) - {admin.LIVE_PATH}
