"""The browser's client, in Chromium: it reads, writes and answers as Python does."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import pytest_asyncio

from tests.browser import tables
from tests.browser.mutants import mutants
from tests.browser.needs import chromium_here
from tests.browser.traces import CLASSES, TABLES, record

if TYPE_CHECKING:
    from playwright.async_api import Page

pytestmark = pytest.mark.asyncio(loop_scope="module")

_ROOT = Path(__file__).parents[2]
_WEB = _ROOT / "meshpeer" / "relay" / "web"
_PAGE = _ROOT / "tests" / "browser" / "page"
_CLIENT = sorted((_WEB / "client").glob("*.js"))
"""The parts that the module is made of."""
_SCRIPTS = sorted({*_WEB.rglob("*.js"), *_PAGE.glob("*.js")})
_MUTANTS = 3_000
_GIVEN = re.compile(
    r"^(?:export )?(?:async )?(?:function\*?|class|const|let|var) +(\w+)"
    r"|@(?:typedef|callback)(?: \{[^@]*\})? (\w+)",
    re.MULTILINE,
)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _in_page(path: Path) -> str:
    """Where `page` has it."""
    return f"/{path.relative_to(_ROOT).as_posix()}"


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def page(recordings: str) -> AsyncIterator[Page]:
    """A page of the repository, which has the client's names as ``client``."""
    async with chromium_here() as chromium:
        from tests.browser.page import page_server

        with page_server("127.0.0.1", _ROOT) as origin:
            page = await chromium.new_page()
            await page.goto(f"{origin}/tests/browser/page/index.html")
            await page.evaluate(
                """async (paths) => {
                  const parts = await Promise.all(paths.map((path) => import(path)));
                  window.client = Object.assign({}, ...parts);
                }""",
                [_in_page(path) for path in _CLIENT],
            )
            yield page


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where what `tests.browser.traces` recorded is served."""
    from tests.browser.page import page_server

    folder = tmp_path_factory.mktemp("recordings")
    assert not record(folder).missing
    with page_server("127.0.0.1", folder) as origin:
        yield origin


async def test_it_says_what_the_vectors_say(page: Page) -> None:
    vectors = {
        name: json.loads((_ROOT / "tests" / "vectors" / f"{name}.json").read_text())
        for name in ("signaling", "frames", "forward")
    }
    found: dict[str, Any] = await page.evaluate(
        """async (vectors) => {
          const { checkVectors } = await import("/tests/browser/page/vectors.js");
          return checkVectors(vectors);
        }""",
        vectors,
    )
    assert found["failures"] == []
    assert found["checked"] > 200


async def test_it_says_of_what_is_damaged_what_python_says(page: Page) -> None:
    lines = [msgspec.json.encode(each).decode() for each in mutants(1, _MUTANTS)]
    wrong: list[str] = await page.evaluate(
        """async (lines) => {
          const { checkMutant } = await import("/tests/browser/page/mutants.js");
          return lines.map(checkMutant).filter((said) => said !== null);
        }""",
        lines,
    )
    assert wrong[:3] == []


@pytest.mark.parametrize("name", CLASSES)
async def test_it_answers_as_was_recorded(page: Page, recordings: str, name: str) -> None:
    found: dict[str, Any] = await page.evaluate(
        """async (url) => {
          const { replay } = await import("/tests/browser/page/replay.js");
          return replay(await (await fetch(url)).text(), client);
        }""",
        f"{recordings}/{name}.jsonl",
    )
    assert found["differences"][:3] == []
    assert found["calls"] > 0


@pytest.mark.parametrize("script", _SCRIPTS, ids=lambda path: path.relative_to(_ROOT).as_posix())
async def test_scripts_are_javascript(page: Page, script: Path) -> None:
    # It is parsed, and then not run: there is no module of that name.
    said = await page.evaluate(
        """async (text) => {
          const type = "text/javascript";
          const url = URL.createObjectURL(new Blob([`import "nothing"; ${text}`], { type }));
          return String(await import(url).catch((error) => error));
        }""",
        _text(script),
    )
    assert said.startswith("TypeError: Failed to resolve module specifier"), said


async def test_tables_are_those_of_python() -> None:
    assert tables.stale() == {}, "run .venv/bin/python -m tests.browser.tables"
    assert set(TABLES) <= {name.removesuffix("-table") for name in tables.TABLES}


async def test_no_name_is_given_twice() -> None:
    # The parts become one module.
    names = Counter(
        code or type_ for path in _CLIENT for code, type_ in _GIVEN.findall(_text(path))
    )
    assert [name for name, count in names.items() if count > 1] == []
    assert len(names) > 100
