"""The transition tables and the defaults of the browser's client, written from those of Python.

::

    .venv/bin/python -m tests.browser.tables            write them
    .venv/bin/python -m tests.browser.tables --check    say which are out of date

Each stands in its JavaScript file between ``// <generated: NAME>`` and ``// </generated>``, one row
a line: state, input, condition, next state, actions, reason, as far as the table has them. Actions
are named as the methods are there, so ``reply_stale`` is ``replyStale``.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Protocol

from meshpeer.config import MeshConfig
from meshpeer.core import link, restart, route, session

CLIENT = Path(__file__).parents[2] / "meshpeer" / "relay" / "web" / "client"


class Row(Protocol):
    """What the rows of all tables have in common."""

    @property
    def state(self) -> str: ...
    @property
    def input(self) -> str: ...
    @property
    def condition(self) -> str: ...
    @property
    def next(self) -> str: ...
    @property
    def actions(self) -> tuple[str, ...]: ...
    @property
    def reason(self) -> str: ...


def camel(name: str) -> str:
    """``snake_case`` as JavaScript writes it."""
    return re.sub(r"_(\w)", lambda match: match[1].upper(), name)


def line(values: list[object]) -> str:
    """One row."""
    return json.dumps(values, ensure_ascii=False) + ","


def rows(table: Iterable[Row]) -> Iterator[str]:
    """The lines of one table."""
    for row in table:
        actions = [camel(action) for action in row.actions]
        yield line([row.state, row.input, row.condition, row.next, actions, row.reason])


def link_table() -> Iterator[str]:
    return rows(link.TABLE)


def restart_table() -> Iterator[str]:
    return rows(restart.TABLE)


def route_table() -> Iterator[str]:
    """Without conditions."""
    for row in route.TABLE:
        actions = [camel(action) for action in row.actions]
        yield line([row.state, row.input, row.next, actions, row.reason])


def session_table() -> Iterator[str]:
    """State, input, and the states that may follow."""
    for state, inputs in session.TABLE.items():
        for on, after in inputs.items():
            yield line([state, on, [each for each in session.State if each in after]])


NO_SETTINGS = ("ice_server_timeout", "interfaces", "address_families", "port_range")
"""What of `MeshConfig` a page has no say in."""


def config() -> Iterator[str]:
    """The default of each setting, one a line."""
    defaults = MeshConfig()
    for each in fields(MeshConfig):
        if each.name not in NO_SETTINGS:
            value = getattr(defaults, each.name)
            if isinstance(value, float) and value.is_integer():
                value = int(value)
            text = dict(value) if isinstance(value, Mapping) else value
            yield f"{camel(each.name)}: {json.dumps(text)},"


TABLES: dict[str, tuple[str, Callable[[], Iterator[str]]]] = {
    # The name at the markers: the file, and what gives the lines.
    "link-table": ("link.js", link_table),
    "restart-table": ("restart.js", restart_table),
    "route-table": ("route.js", route_table),
    "session-table": ("session.js", session_table),
    "config": ("config.js", config),
}


def written(text: str, name: str, lines: Iterable[str]) -> str:
    """``text`` with these lines between the markers of ``name``, indented as those are."""
    begin, end = f"// <generated: {name}>\n", "// </generated>"
    pattern = re.compile(
        f"^([ \\t]*){re.escape(begin)}.*?^[ \\t]*{re.escape(end)}", re.MULTILINE | re.DOTALL
    )
    match = pattern.search(text)
    if match is None:
        raise SystemExit(f"there are no markers of {name}")
    indent = match[1]
    body = "".join(f"{indent}{line}\n" for line in lines)
    return f"{text[: match.start()]}{indent}{begin}{body}{indent}{end}{text[match.end() :]}"


def stale() -> dict[Path, str]:
    """The files whose tables are out of date, and what they should say."""
    now: dict[Path, str] = {}
    for name, (file, lines) in TABLES.items():
        path = CLIENT / file
        now[path] = written(now.get(path) or path.read_text(encoding="utf-8"), name, lines())
    return {path: text for path, text in now.items() if text != path.read_text(encoding="utf-8")}


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the transition tables of the client.")
    parser.add_argument("--check", action="store_true", help="write nothing")
    check: bool = parser.parse_args().check
    changed = stale()
    for path, text in changed.items():
        print(f"{path.name}: {'out of date' if check else 'written'}")
        if not check:
            path.write_text(text, encoding="utf-8")
    return 1 if check and changed else 0


if __name__ == "__main__":
    sys.exit(main())
