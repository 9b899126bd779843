"""docs/transports.md: its example is a transport, and the suite passes on it."""

from __future__ import annotations

import pytest

from meshpeer.testing.conformance import TransportConformance
from tests.docs.blocks import blocks


def test_the_example_passes_the_suite(pytester: pytest.Pytester) -> None:
    files = [block for block in blocks("transports.md") if block.kind == "python"]
    for block in files:
        name = block.text.partition("\n")[0].removeprefix("# ")
        (pytester.path / name).write_text(block.text, encoding="utf-8")
    in_suite = [name for name in dir(TransportConformance) if name.startswith("test_")]
    result = pytester.runpytest_subprocess("-x", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=len(in_suite) + 1)
