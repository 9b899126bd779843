"""The fenced code blocks of a page of docs/, for the tests that run them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tests.docs.generate import DOCS

__all__ = ["Block", "blocks"]

_FENCED = re.compile(r"^```(?P<kind>.*)\n(?P<text>(?s:.*?))^```$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One block. ``kind`` is what follows the fence; ``line`` is the number of its first line."""

    path: Path
    line: int
    kind: str
    text: str
    output: str | None
    """The ``text`` block that follows with nothing but an empty line between."""


def blocks(page: str) -> list[Block]:
    """Every block of docs/``page``, in order."""
    path = DOCS / page
    source = path.read_text(encoding="utf-8")
    matches = list(_FENCED.finditer(source))
    found = []
    for match, after in zip(matches, [*matches[1:], None][: len(matches)], strict=True):
        follows = (
            after is not None
            and after["kind"] == "text"
            and not source[match.end() : after.start()].strip()
        )
        found.append(
            Block(
                path=path,
                line=source.count("\n", 0, match.start()) + 2,
                kind=match["kind"],
                text=match["text"],
                output=after["text"] if after is not None and follows else None,
            )
        )
    return found
