"""``/metrics`` for Prometheus: the relay's figures and the mesh's, read when they are asked for.

docs/operations/metrics.md says what each is. No label has a room's or a peer's name: strangers
choose those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    SummaryMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from meshpeer.core.rooms import Rooms
from meshpeer.relay.figures import RelayFigures

__all__ = ["Exposition"]


class Exposition:
    """The text that Prometheus reads. ``pages`` tells how many dashboards are open."""

    content_type: Final = CONTENT_TYPE_LATEST

    def __init__(
        self, rooms: Rooms, figures: Callable[[], RelayFigures], pages: Callable[[], int]
    ) -> None:
        # Of its own: the program that the relay is embedded in may have one too.
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Figures(rooms, figures, pages))

    def text(self) -> bytes:
        """All figures, in the text format. Costs O(rooms)."""
        return generate_latest(self._registry)


class _Figures(Collector):
    def __init__(
        self, rooms: Rooms, figures: Callable[[], RelayFigures], pages: Callable[[], int]
    ) -> None:
        self._rooms = rooms
        self._figures = figures
        self._pages = pages

    def collect(self) -> Iterator[Metric]:
        yield from self._relay()
        yield from self._mesh()

    def _relay(self) -> Iterator[Metric]:
        figures = self._figures()
        yield InfoMetricFamily(
            "meshpeer_relay", "The relay that runs.", value={"version": figures.version}
        )
        yield _gauge("relay_uptime_seconds", "Since the relay started.", figures.uptime)
        yield _gauge("relay_connections", "Sockets that are open.", figures.connections)
        yield _counter(
            "relay_accepted_connections", "Sockets that were accepted.", figures.accepted
        )
        yield _counters(
            "relay_refused_connections", "Sockets that were refused.", "reason", figures.refused
        )
        yield _counter(
            "relay_cut_off", "Sockets that were cut off: they did not read.", figures.cut_off
        )
        yield _counter("relay_received_messages", "Messages from clients.", figures.messages_in)
        yield _counter("relay_sent_messages", "Messages to clients.", figures.messages_out)
        yield _counter("relay_received_bytes", "Bytes of messages from clients.", figures.bytes_in)
        yield _counter("relay_sent_bytes", "Bytes of messages to clients.", figures.bytes_out)
        yield _counters(
            "relay_refused",
            "Joins, messages and connections that were refused.",
            "code",
            self._rooms.tracking.refusals,
        )
        yield _gauge("relay_dashboards", "Dashboards that are open.", self._pages())

    def _mesh(self) -> Iterator[Metric]:
        tracking = self._rooms.tracking
        sums = tracking.sums()
        members = GaugeMetricFamily(
            "meshpeer_mesh_members", "Members of all rooms.", labels=["presence"]
        )
        members.add_metric(["present"], sums.members - sums.away)
        members.add_metric(["away"], sums.away)
        yield _gauge("mesh_rooms", "Rooms with a member.", sums.rooms)
        yield members
        pairs = GaugeMetricFamily(
            "meshpeer_mesh_pairs", "Pairs of members, by how they are connected.", labels=["path"]
        )
        pairs.add_metric(["direct"], sums.direct)
        pairs.add_metric(["turn"], sums.turn)
        pairs.add_metric(["relay"], sums.relay)
        pairs.add_metric(["none"], sums.unconnected)
        yield pairs

        metrics = tracking.metrics()
        yield _gauge(
            "mesh_upgrade_ratio",
            "Of the pairs that could talk, the share on a direct path or TURN.",
            metrics.mesh_upgrade_rate,
        )
        yield _counter("mesh_attempts", "Attempts to connect.", metrics.total_p2p_attempts)
        yield _counter(
            "mesh_successes", "Attempts that connected.", metrics.successful_p2p_connections
        )
        yield _counter("mesh_failures", "Attempts that failed.", metrics.failed_p2p_connections)
        seconds, count = tracking.connection_times
        yield SummaryMetricFamily(
            "meshpeer_mesh_connection_seconds",
            "How long the attempts that connected took.",
            count_value=count,
            sum_value=seconds,
        )
        yield _counter(
            "mesh_messages", "Messages over a direct path or TURN.", metrics.p2p_message_count
        )
        yield _counter(
            "mesh_fallbacks", "Times that data went to the relay.", metrics.fallback_count
        )
        yield _gauge(
            "mesh_rtt_seconds",
            "Median round trip, of the latest sample.",
            next((sample.rtt for sample in reversed(tracking.history(0.0))), None),
        )


def _gauge(name: str, text: str, value: float | None) -> Metric:
    """None: there is no line with it."""
    return GaugeMetricFamily(f"meshpeer_{name}", text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"meshpeer_{name}", text, value=value)


def _counters(name: str, text: str, label: str, values: dict[str, int]) -> Metric:
    family = CounterMetricFamily(f"meshpeer_{name}", text, labels=[label])
    for key, value in sorted(values.items()):
        family.add_metric([key], value)
    return family
