"""What becomes of the figures: lines of a table, between the markers of a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.network import __main__ as program
from tests.network.case import Case, Outcome


async def _never(swapped: bool) -> Outcome:
    raise AssertionError("message 5 was lost")


def _row(name: str, *seconds: float, limit: float = 1, beside: str | None = None) -> program.Row:
    case = Case(name=name, run=_never, limit=limit, of="median", beside=beside)
    return program.Row(case, [Outcome(each, "direct") for each in seconds])


def test_a_line_has_the_figures_and_whether_they_are_met() -> None:
    row = _row("LAN", 0.1, 0.3, 0.2)
    assert row.line({}) == "| LAN | direct | 3 of 3 | 0.20 s | 0.30 s | median ≤ 1 s | yes |"
    assert _row("LAN", 1.5).line({}).endswith("| **no** |")


def test_a_limit_may_be_for_the_difference_to_another_case() -> None:
    rows = {"LAN": _row("LAN", 2.0)}
    must = "| median ≤ 1 s more than LAN |"
    assert _row("dead", 2.9, beside="LAN").line(rows).endswith(f"{must} yes |")
    assert _row("dead", 3.1, beside="LAN").line(rows).endswith(f"{must} **no** |")


async def test_a_run_that_fails_is_counted_and_not_met() -> None:
    row = _row("LAN", 0.1)
    assert "message 5 was lost" in await row.run(False)
    assert row.line({}).startswith("| LAN | failed 1 times | 1 of 2 |")
    assert row.line({}).endswith("| **no** |")


def test_only_what_is_between_the_markers_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "recovery.md"
    monkeypatch.setattr(program, "_FILE", file)
    file.write_text("# Recovery\n\nThe ladder.\n")
    program._write("first\n")
    file.write_text(file.read_text() + "\nThe end.\n")
    program._write("second\n")
    assert file.read_text() == (
        "# Recovery\n\nThe ladder.\n\n## On real networks\n\n"
        "<!-- network:begin -->\nsecond\n<!-- network:end -->\n\nThe end.\n"
    )
