"""The one module of the client is what its parts say, and gives away nothing but the interface."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.browser import join


def test_the_module_is_made_of_its_parts() -> None:
    assert join.MODULE.read_text(encoding="utf-8") == join.joined(), "run `make client`"


def test_it_needs_no_other_file() -> None:
    assert not re.findall(r"^(?:import\b|export .* from|\} from) .*", join.joined(), re.MULTILINE)


def test_it_exports_what_is_public_and_nothing_else() -> None:
    text = join.joined()
    [exports] = re.findall(r"^export \{([^}]*)\};$", text, re.MULTILINE)
    assert len(re.findall(r"^export\b", text, re.MULTILINE)) == 1
    named = re.findall(r"\w+", exports)
    assert {"PeerManager", "Peer", "Message", "Channel", "MeshConfig", "MeshError"} <= set(named)
    for name in named:
        assert re.search(rf"^class {name}\b", text, re.MULTILINE), name


@pytest.mark.parametrize(
    "line",
    [
        'import { repr as shown } from "./codec.js";',
        'import * as codec from "./codec.js";',
        'import "./codec.js";',
        'import { x } from "elsewhere";',
        "export default function first() {}",
        'export * from "./codec.js";',
        "export { repr };",
    ],
)
def test_what_can_not_be_put_together_is_refused(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(join, "PARTS", tmp_path)
    monkeypatch.setattr(join, "PUBLIC", tmp_path / "public.js")
    (tmp_path / "public.js").write_text("// words\n\nexport {};\n")
    (tmp_path / "one.js").write_text(f"// one\n\n{line}\n")
    with pytest.raises(ValueError, match=r"client/one\.js: can't be put together"):
        join.joined()
