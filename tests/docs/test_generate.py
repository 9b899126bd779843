"""What docs/ says about the code is what the code says."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest

from meshpeer import errors
from meshpeer.config import IceServer, MeshConfig, RelayConfig
from meshpeer.core import link, messages, restart, route
from tests.docs import generate

_FILES = sorted(generate.DOCS.rglob("*.md"))


@pytest.mark.parametrize("path", _FILES, ids=lambda path: path.name)
def test_the_generated_parts_are_up_to_date(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert generate.render(text) == text, "run `make docs`"


def test_files_with_generated_parts_exist() -> None:
    names = {path.name for path in _FILES if "<!-- generated:" in path.read_text(encoding="utf-8")}
    assert names >= {"configuration.md", "errors.md"}


def test_rendering_replaces_only_what_is_between_the_marks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(generate, "PARTS", {"a": lambda: r"A \1", "b": lambda: "B"})
    text = (
        "before\n<!-- generated: a -->\nold\n\nold\n<!-- end -->\nbetween\n"
        "<!-- generated: b -->\n<!-- end -->\nafter\n"
    )
    new = generate.render(text)
    assert new == (
        "before\n<!-- generated: a -->\n\nA \\1\n\n<!-- end -->\nbetween\n"
        "<!-- generated: b -->\n\nB\n\n<!-- end -->\nafter\n"
    )
    assert generate.render(new) == new


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("<!-- generated: no-such -->\n<!-- end -->\n", "nothing makes the part 'no-such'"),
        ("<!-- generated: errors -->\n", "has no counterpart"),
        ("one\n<!-- end -->\n", "line 2.* has no counterpart"),
        ("<!-- generated errors -->\n<!-- end -->\n", "has no counterpart"),
        (
            "<!-- generated: errors -->\n<!-- generated: config -->\n<!-- end -->\n",
            "the part 'errors' has no <!-- end --> of its own",
        ),
    ],
)
def test_a_wrong_mark_is_an_error(text: str, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        generate.render(text)


def test_only_files_that_changed_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generate, "DOCS", tmp_path)
    (tmp_path / "a.md").write_text("<!-- generated: errors -->\n<!-- end -->\n")
    (tmp_path / "b.md").write_text("nothing generated\n")
    generate.main()
    assert "a.md" in capsys.readouterr().out
    assert "MeshError" in (tmp_path / "a.md").read_text()
    generate.main()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("owner", [MeshConfig, RelayConfig, IceServer])
def test_every_setting_has_its_row_and_its_meaning(owner: type) -> None:
    rows = generate._settings(owner).splitlines()
    for field in dataclasses.fields(owner):
        row = next(row for row in rows if row.startswith(f"| `{field.name}` |"))
        assert not row.endswith("|  |")


def test_every_error_is_in_the_tree() -> None:
    tree = generate.error_tree()
    assert [name for name in errors.__all__ if name not in tree] == []


@pytest.mark.parametrize("cls", messages.Message.__args__)
def test_every_message_has_its_fields(cls: type[msgspec.Struct]) -> None:
    # Two messages are called signal, one in each direction: one of the parts must be this one.
    tag = cls.__struct_config__.tag
    parts = generate.signaling_messages().split(f"#### `{tag}`\n")[1:]
    fields = [
        [line.split("`")[1] for line in part.split("\n#")[0].splitlines() if line.startswith("| `")]
        for part in parts
    ]
    assert list(cls.__struct_encode_fields__) in fields


@pytest.mark.parametrize(
    ("rows", "diagram", "table"),
    [
        (link.TABLE, generate.link_diagram, generate.link_table),
        (restart.TABLE, generate.restart_diagram, generate.restart_table),
        (route.TABLE, generate.route_diagram, generate.route_table),
    ],
)
def test_every_transition_is_drawn(
    rows: Sequence[link.Row | restart.Row | route.Row],
    diagram: Callable[[], str],
    table: Callable[[], str],
) -> None:
    drawn = diagram().splitlines()
    for row in rows:
        if row.next is row.state:
            continue
        (line,) = (x for x in drawn if x.startswith(f"    {row.state} --> {row.next}: "))
        assert row.input in line.partition(": ")[2].split(", ")
    text = table()
    assert all(row.reason.replace("{}", "…") in text for row in rows)


def test_the_ladder_has_every_setting_of_recovery_with_its_default() -> None:
    table = generate.ladder_table()
    names = (
        "candidates_timeout connect_timeout disconnected_timeout ping_interval restart_timeout "
        "retry_first retry_max silence_timeout stable_after upgrade_first upgrade_max"
    )
    for name in names.split():
        (line, *_) = (line for line in table.splitlines() if f"`{name}`" in line)
        assert generate._seconds(name) in line
    assert "{" not in table + generate.ladder_diagram()


def test_a_rung_that_the_table_does_not_have_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    rung = generate.Rung("when", "what", ("connected", "silence", "never"))
    monkeypatch.setattr(generate, "LADDER", (rung,))
    with pytest.raises(ValueError, match="no row"):
        generate.ladder_table()
