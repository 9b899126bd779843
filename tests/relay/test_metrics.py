"""``/metrics``: what Prometheus reads, what docs/operations/metrics.md says of it, and Grafana."""

from __future__ import annotations

import inspect
import itertools
import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from meshpeer.core.rooms import Rooms
from meshpeer.relay import admin, server
from meshpeer.relay.metrics import Exposition
from tests.docs.generate import DOCS
from tests.relay.board import FIGURES, Board, meet

PAGE = (DOCS / "operations" / "metrics.md").read_text(encoding="utf-8")
GRAFANA = json.loads((DOCS / "operations" / "grafana.json").read_text(encoding="utf-8"))
_ROW = re.compile(
    r"^\| `(?P<name>meshpeer_\w+)` \| (?P<kind>\w+) \| (?P<labels>[^|]*)\|", re.MULTILINE
)
_NAME = re.compile(r"\bmeshpeer_\w+")


class Metric(NamedTuple):
    name: str
    kind: str
    labels: tuple[str, ...]


def read(board: Board, pages: int = 1) -> Exposition:
    return Exposition(cast(Rooms, board), lambda: FIGURES, lambda: pages)


def known_mesh() -> Board:
    """Six members in two rooms: pairs of every kind, and one member away."""
    board = Board()
    board.now = 0.0
    for peer_id in ("ann", "bob", "cid", "dan"):
        board.join("lobby", peer_id)
    board.join('a "hall"\n{}', "ann")
    board.join('a "hall"\n{}', "<b>bob</b>")
    counts = {"attempts": 2, "successes": 1, "failures": 1, "connect_time": 0.75, "messages": 5}
    meet(board.tracking, "lobby", "ann", "bob", 1.0, rtt=0.25, **counts)
    meet(board.tracking, "lobby", "ann", "cid", 1.0, path="turn", rtt=0.25, **counts)
    meet(board.tracking, "lobby", "bob", "cid", 1.0, path="relay", fallbacks=3, attempts=1)
    board.tracking.dropped("lobby", "dan", 2.0)
    board.tracking.refused("room_full", "no", 3.0)
    board.tracking.refused("room_full", "no", 3.0)
    board.tracking.refused("malformed", "no", 3.0)
    board.tracking.tick(10.0)
    return board


def samples(exposition: Exposition) -> dict[str, float]:
    """Every line of the text, as it is written."""
    found = {}
    for family in text_string_to_metric_families(exposition.text().decode()):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def exposed() -> set[Metric]:
    return {
        Metric(sample.name, family.type, tuple(sorted(sample.labels)))
        for family in text_string_to_metric_families(read(known_mesh()).text().decode())
        for sample in family.samples
    }


def documented() -> set[Metric]:
    return {
        Metric(row["name"], row["kind"], tuple(sorted(re.findall(r"`(\w+)`", row["labels"]))))
        for row in _ROW.finditer(PAGE)
    }


# --- the figures ---------------------------------------------------------------------------------
def test_every_number_of_a_known_mesh() -> None:
    assert samples(read(known_mesh(), pages=4)) == {
        "meshpeer_relay_info{version=1.2.3}": 1,
        "meshpeer_relay_uptime_seconds": 12.5,
        "meshpeer_relay_connections": 3,
        "meshpeer_relay_accepted_connections_total": 5,
        "meshpeer_relay_refused_connections_total{reason=too_many}": 2,
        "meshpeer_relay_cut_off_total": 1,
        "meshpeer_relay_received_messages_total": 10,
        "meshpeer_relay_sent_messages_total": 20,
        "meshpeer_relay_received_bytes_total": 1000,
        "meshpeer_relay_sent_bytes_total": 2000,
        "meshpeer_relay_refused_total{code=malformed}": 1,
        "meshpeer_relay_refused_total{code=room_full}": 2,
        "meshpeer_relay_dashboards": 4,
        "meshpeer_mesh_rooms": 2,
        "meshpeer_mesh_members{presence=present}": 5,
        "meshpeer_mesh_members{presence=away}": 1,
        "meshpeer_mesh_pairs{path=direct}": 1,
        "meshpeer_mesh_pairs{path=turn}": 1,
        "meshpeer_mesh_pairs{path=relay}": 1,
        "meshpeer_mesh_pairs{path=none}": 1,
        "meshpeer_mesh_upgrade_ratio": 0.5,
        "meshpeer_mesh_attempts_total": 5,
        "meshpeer_mesh_successes_total": 2,
        "meshpeer_mesh_failures_total": 2,
        "meshpeer_mesh_connection_seconds_sum": 1.5,
        "meshpeer_mesh_connection_seconds_count": 2,
        "meshpeer_mesh_messages_total": 20,
        "meshpeer_mesh_fallbacks_total": 3,
        "meshpeer_mesh_rtt_seconds": 0.25,
    }


def test_what_nobody_measured_is_absent() -> None:
    board = Board()
    empty = samples(read(board))
    assert "meshpeer_mesh_upgrade_ratio" not in empty
    assert "meshpeer_mesh_rtt_seconds" not in empty
    assert empty["meshpeer_mesh_connection_seconds_sum"] == 0
    assert empty["meshpeer_mesh_connection_seconds_count"] == 0
    board.join("lobby", "ann")
    board.tracking.tick(1010.0)
    alone = samples(read(board))
    assert "meshpeer_mesh_upgrade_ratio" not in alone
    assert "meshpeer_mesh_rtt_seconds" not in alone


def test_no_name_of_a_room_or_a_peer_is_in_it() -> None:
    text = read(known_mesh()).text().decode()
    for name in ("ann", "bob", "lobby", "hall"):
        assert not re.search(rf"\b{name}\b", text)


def test_it_is_read_anew_each_time() -> None:
    board = known_mesh()
    exposition = read(board)
    before = samples(exposition)
    board.tracking.left("lobby", "dan", "timeout", 15.0)
    meet(board.tracking, "lobby", "ann", "bob", 16.0, rtt=0.5)
    meet(board.tracking, "lobby", "ann", "cid", 16.0, path="turn", rtt=0.5)
    board.tracking.tick(20.0)
    after = samples(exposition)
    assert {name: after[name] for name in before if before[name] != after[name]} == {
        "meshpeer_mesh_members{presence=away}": 0,
        "meshpeer_mesh_rtt_seconds": 0.5,
    }


def test_two_relays_in_one_program_do_not_meet() -> None:
    first, second = read(known_mesh()), read(Board())
    assert samples(first)["meshpeer_mesh_rooms"] == 2
    assert samples(second)["meshpeer_mesh_rooms"] == 0
    assert not [m for m in REGISTRY.collect() if m.name.startswith("meshpeer")]


def test_names_are_as_prometheus_wants_them() -> None:
    for metric in exposed():
        counts = metric.name.endswith(("_total", "_sum", "_count"))
        assert counts == (metric.kind in ("counter", "summary")), metric
        assert not re.search(r"milli|_ms\b|_kb\b|percent|minutes", metric.name), metric


# --- what is said of them ------------------------------------------------------------------------
def test_the_page_names_every_metric_and_no_other() -> None:
    # The parser knows the line of an info only as a gauge, which it is.
    assert documented() == exposed()
    assert len(documented()) == len(_ROW.findall(PAGE)) > 20


def test_the_page_asks_only_for_what_is_there() -> None:
    asked = set(_NAME.findall(PAGE))
    assert asked == {metric.name for metric in exposed()}


def test_the_page_names_every_reason() -> None:
    source = inspect.getsource(server)
    known = re.findall(r'_refuse\("(\w+)"|return "(max_\w+)"', source)
    table = PAGE.split("\n| `reason` |")[1].split("\n\n")[0]
    named = set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
    assert named == {first or second for first, second in known}
    assert named


def test_the_page_names_the_codes_that_the_protocol_does_not() -> None:
    known = set(re.findall(r'_count\("(\w+)"', inspect.getsource(admin)))
    assert known == set(re.findall(r"`(admin_\w+)`", PAGE))
    assert len(known) == 2


# --- Grafana -------------------------------------------------------------------------------------
def panels() -> list[dict[str, Any]]:
    return cast(list[dict[str, Any]], GRAFANA["panels"])


def expressions() -> Iterator[str]:
    for panel in panels():
        for target in panel.get("targets", []):
            yield target["expr"]
    for annotation in GRAFANA["annotations"]["list"]:
        if "expr" in annotation:
            yield annotation["expr"]


def test_grafana_asks_for_every_metric_and_no_other() -> None:
    asked = {name for expression in expressions() for name in _NAME.findall(expression)}
    assert asked == {metric.name for metric in exposed()}
    variables = GRAFANA["templating"]["list"]
    assert {name for v in variables for name in _NAME.findall(v["definition"])} <= asked
    assert all(v["query"]["query"] == v["definition"] for v in variables)


def test_grafana_asks_with_labels_that_are_there() -> None:
    labels = {metric.name: set(metric.labels) for metric in exposed()}
    for expression in expressions():
        names = set()
        for name, matchers in re.findall(r"(meshpeer_\w+)\{([^}]*)\}", expression):
            asked = set(re.findall(r"(\w+)=~?\"", matchers))
            assert "instance" in asked, expression
            assert asked - {"instance"} <= labels[name], expression
            names.add(name)
        assert names == set(_NAME.findall(expression)), expression
        for by in re.findall(r"by \((\w+)\)", expression):
            assert all(by in labels[name] for name in names), expression


def test_what_counts_is_asked_for_as_a_rate() -> None:
    for expression in expressions():
        for name in _NAME.findall(expression):
            rated = f"rate({name}{{" in expression
            assert rated == name.endswith(("_total", "_sum", "_count")), expression
        assert expression.count("(") == expression.count(")")
        assert expression.count("{") == expression.count("}")
        for window in re.findall(r"\[([^]]*)\]", expression):
            assert window in ("$__rate_interval", "1m")


def test_what_a_legend_shows_is_a_label() -> None:
    for panel in panels():
        for target in panel.get("targets", []):
            for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                by = re.findall(r"by \((\w+)\)", target["expr"])
                assert label in (by or ["instance"]), target


def test_grafana_asks_the_prometheus_that_was_chosen() -> None:
    (source,) = GRAFANA["__inputs"]
    assert (source["name"], source["pluginId"]) == ("DS_PROMETHEUS", "prometheus")
    chosen = {"type": "prometheus", "uid": "${DS_PROMETHEUS}"}
    for panel in panels():
        if panel["type"] != "row":
            assert panel["datasource"] == chosen
            assert all(target["datasource"] == chosen for target in panel["targets"])
            assert panel["description"]
    assert all(v["datasource"] == chosen for v in GRAFANA["templating"]["list"])


def test_grafana_can_read_it() -> None:
    assert GRAFANA["schemaVersion"] >= 38  # Grafana 10
    assert GRAFANA["id"] is None  # or importing it would replace another
    ids = [panel["id"] for panel in panels()]
    assert len(set(ids)) == len(ids)
    used = {panel["type"] for panel in panels()} - {"row"}
    required = {r["id"] for r in GRAFANA["__requires"] if r["type"] == "panel"}
    assert used == required
    for panel in panels():
        references = [target["refId"] for target in panel.get("targets", [])]
        assert len(set(references)) == len(references)


def test_no_panel_covers_another() -> None:
    for panel in panels():
        place = panel["gridPos"]
        assert 0 <= place["x"] < place["x"] + place["w"] <= 24
    for one, other in itertools.combinations([panel["gridPos"] for panel in panels()], 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart, (one, other)


@pytest.mark.parametrize("junk", ['"', "\\", "\n", "{}", "x" * 1000, "é", "\x00", "a b"])
def test_a_code_of_any_kind_can_be_read(junk: str) -> None:
    board = Board()
    board.tracking.refused(junk, "no", 0.0)
    assert samples(read(board))[f"meshpeer_relay_refused_total{{code={junk}}}"] == 1
