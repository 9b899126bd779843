"""``python -m tests.browser.join``: puts the parts of the browser's client together into the one
module that pages import, meshpeer/relay/web/meshpeer.js. `make client` is the same.

The parts, meshpeer/relay/web/client/*.js, are the twins of Python's modules, and are what is read,
changed and checked for its types. No two of them define the same name, so that to put them together
is to leave out what they import and export of each other.
"""

from __future__ import annotations

import re
import sys
from graphlib import TopologicalSorter
from pathlib import Path

__all__ = ["MODULE", "PARTS", "PUBLIC", "joined"]

_WEB = Path(__file__).parents[2] / "meshpeer" / "relay" / "web"
MODULE = _WEB / "meshpeer.js"
PARTS = _WEB / "client"
PUBLIC = PARTS / "public.js"
"""What the module exports, as exports of the parts."""

_IMPORT = re.compile(r'^import \{[\w\s,]*\} from "\./(\w+)\.js";\n', re.MULTILINE)
_ALIAS = re.compile(r"^import \{[^}]*\bas\b.*", re.MULTILINE)
_TYPES = re.compile(r"^/\*\* @import [^\n]* \*/\n", re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:function|class|const|let)\b)", re.MULTILINE)
_PUBLIC = re.compile(r'^export \{([^}]*)\} from "\./(\w+)\.js";\n', re.MULTILINE)
_LEFT = re.compile(r"^(?:import|export)\b.*", re.MULTILINE)
_WIDTH = 100
_NOTE = """\
//
// This file is made of client/*.js: change those, then run `make client`.
"""


def _part(name: str) -> tuple[str, set[str]]:
    """The text of a part without its imports and exports, and the parts that it needs."""
    text = (PARTS / f"{name}.js").read_text(encoding="utf-8")
    alias = _ALIAS.search(text)
    needs = set(_IMPORT.findall(text))
    text = _EXPORT.sub("", _TYPES.sub("", _IMPORT.sub("", text)))
    if left := alias or _LEFT.search(text):
        raise ValueError(f"client/{name}.js: can't be put together with others: {left[0]}")
    return text, needs


def joined() -> str:
    """The text of the module."""
    public = PUBLIC.read_text(encoding="utf-8")
    parts = {path.stem: _part(path.stem) for path in PARTS.glob("*.js") if path != PUBLIC}
    graph = {name: sorted(needs) for name, (_, needs) in sorted(parts.items())}
    texts = []
    for name in TopologicalSorter(graph).static_order():
        head = f"// --- {name}.js "
        text = re.sub(r"\n{3,}", "\n\n", parts[name][0]).strip()
        texts.append(f"{head}{'-' * (_WIDTH - len(head))}\n\n{text}\n")
    names = sorted(
        name.strip()
        for names, _ in _PUBLIC.findall(public)
        for name in names.split(",")
        if name.strip()
    )
    exports = "".join(f"  {name},\n" for name in names)
    head = public.partition("\nexport ")[0].rstrip()
    body = "\n".join(texts)
    return f"{head}\n{_NOTE}\n{body}\nexport {{\n{exports}}};\n"


def main() -> int:
    """Write the module; returns the exit status."""
    MODULE.write_text(joined(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
