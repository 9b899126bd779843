"""Eight processes talk for a minute while everything breaks: nothing lost, repeated, reordered."""

from __future__ import annotations

from typing import Any

import pytest

from tests.network.needs import require_lab
from tests.soak.__main__ import show
from tests.soak.run import RATE, Report, judge, names, soak
from tests.soak.schedule import schedule

_SEED = 1
_MINUTE = 60.0


@pytest.mark.timeout(300)
async def test_soak() -> None:
    require_lab()
    faults = schedule(_SEED, _MINUTE, names)
    report = await soak(faults, _MINUTE, RATE, print)
    assert report.good, f"seed {_SEED}:\n{show(report, faults)}"
    assert len(report.pairs) == len(names) * (len(names) - 1)
    # Else nothing was shown of moving from one path to another.
    assert all("direct" in pair.paths for pair in report.pairs)
    assert any("relay" in pair.paths for pair in report.pairs)


def _told(received: int, highest: int, **more: Any) -> dict[str, Any]:
    nothing = {"repeated": 0, "reordered": 0, "damaged": 0, "missing": []}
    return {"received": received, "highest": highest, **nothing, **more}


def _result(peer: str, sent: int, got: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "sent": {peer: {"default": sent}},
        "got": {} if got is None else {peer: {"default": got}},
        "paths": {peer: {"direct": 3}},
        "pauses": {peer: 0.5},
    }


@pytest.mark.parametrize(
    ("got", "wrong"),
    [
        (_told(3, 3), ""),
        (None, "default: 3 lost"),
        (_told(2, 2), "default: 1 lost"),
        (_told(2, 3, missing=[2]), "default: 1 lost"),
        (_told(4, 3, repeated=1), "default: 1 repeated"),
        (_told(3, 3, reordered=1), "default: 1 out of order"),
        (_told(3, 3, damaged=1), "default: 1 damaged"),
    ],
)
def test_a_stream_that_is_not_as_it_was_sent_is_a_failure(got: Any, wrong: str) -> None:
    results = {"a": _result("b", 3, _told(2, 2)), "b": _result("a", 2, got)}
    to_b, to_a = judge(results)
    assert (to_b.sender, to_b.receiver, to_b.sent, to_b.wrong) == ("a", "b", 3, wrong)
    assert (to_a.received, to_a.wrong) == (2, "")
    report = Report(pairs=[to_b, to_a], wrong=[], log=[])
    assert report.good == (not wrong)
    assert ("FAILED" in show(report, [])) == bool(wrong)


def test_what_must_not_happen_is_a_failure() -> None:
    results = {"a": _result("b", 2, _told(2, 2)), "b": _result("a", 2, _told(2, 2))}
    report = Report(pairs=judge(results), wrong=["a: b was taken for gone: timeout"], log=[])
    assert not report.good
    assert "WRONG: a: b was taken for gone" in show(report, [])


def test_a_stream_that_never_began_is_a_failure() -> None:
    results = {"a": _result("b", 0, None), "b": _result("a", 0, None)}
    results["a"]["sent"] = {}
    to_b, _ = judge(results)
    assert to_b.wrong == "nothing was sent"
