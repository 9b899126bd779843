"""docs/guide.md and docs/delivery.md are run from top to bottom: every piece of Python in them does
what the page says.

A piece that calls ``asyncio.run`` is a program, a piece with a test in it is a file for pytest, and
all the others are one session, as at the prompt of ``python -m asyncio``. What a ``text`` block
says behind a piece is what that piece prints.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import io
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from meshpeer import Relay
from tests.docs.blocks import Block, blocks

_URL = "ws://localhost:3001"
_PYTHON = [block for block in blocks("guide.md") if block.kind == "python"]
_PROGRAMS = [block for block in _PYTHON if "asyncio.run(" in block.text]
_TESTS = [block for block in _PYTHON if "def test_" in block.text]
_SESSION = [block for block in _PYTHON if block not in _PROGRAMS + _TESTS]
_DELIVERY = [block for block in blocks("delivery.md") if block.kind == "python"]


async def _run(block: Block, url: str, names: dict[str, Any]) -> None:
    # Empty lines before it make every traceback show the line of the page.
    source = "\n" * (block.line - 1) + block.text.replace(_URL, url)
    code = compile(source, str(block.path), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        result = eval(code, names)
        if inspect.isawaitable(result):
            await result
    assert printed.getvalue() == (block.output or ""), f"line {block.line}"


@pytest.mark.parametrize("session", [_SESSION, _DELIVERY], ids=["guide", "delivery"])
async def test_the_session(relay: Relay, session: list[Block]) -> None:
    names: dict[str, Any] = {}
    async with asyncio.timeout(100):
        for block in session:
            await _run(block, relay.url, names)


@asynccontextmanager
async def _started(block: Block, url: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", block.text.replace(_URL, url), stdout=asyncio.subprocess.PIPE
    )
    try:
        yield process
    finally:
        ended = process.returncode is not None
        if not ended:
            process.kill()
        await process.communicate()
        assert not ended or process.returncode == 0, f"the program of line {block.line} failed"


async def test_the_programs(relay: Relay) -> None:
    # Those that print nothing go on for ever; they are there for the others to talk to.
    async with AsyncExitStack() as stack, asyncio.timeout(100):
        started = [
            (block, await stack.enter_async_context(_started(block, relay.url)))
            for block in _PROGRAMS
        ]
        for block, process in started:
            if block.output is not None:
                stdout, _ = await process.communicate()
                assert stdout.decode() == block.output, f"line {block.line}"


@pytest.mark.parametrize("block", _TESTS, ids=lambda block: f"line {block.line}")
def test_the_tests(block: Block, pytester: pytest.Pytester) -> None:
    pytester.makepyfile(block.text)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=block.text.count("def test_"))


def test_the_page_has_all_three() -> None:
    assert _SESSION
    assert _DELIVERY
    assert _PROGRAMS
    assert _TESTS
