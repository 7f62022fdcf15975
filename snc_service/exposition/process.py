"""Metrics of the service itself, the only ones that prometheus_client counts and renders."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping
from typing import Final

import prometheus_client
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    ProcessCollector,
)
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics_text

from snc_service import __version__
from snc_service.exposition.families import (
    ALERT_DELIVERIES,
    BUILD_INFO,
    HTTP_REQUESTS,
    INGEST_BATCHES,
    INGEST_BYTES,
    INGEST_INFLIGHT,
    INGEST_QUEUE,
    INGEST_SECONDS,
    INGEST_VALUES,
    LOOP_LAG,
    STREAM_CLIENTS,
    Family,
)
from snc_service.store.types.incidents import DELIVERY_OUTCOMES

OUTCOMES: Final = ("accepted", "duplicate", "refused")
# Seconds; the targets, such as 20 ms for an acknowledgement, are bucket bounds.
BOUNDS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)


class ProcessMetrics:
    """Counters of one service process, in a registry of their own."""

    def __init__(self, of_store: Mapping[Family, Callable[[], int]]) -> None:
        self.registry = registry = CollectorRegistry()
        self._batches = Counter(*_named(INGEST_BATCHES), registry=registry)
        self._by_outcome = {outcome: self._batches.labels(outcome) for outcome in OUTCOMES}
        self._values = Counter(*_named(INGEST_VALUES), registry=registry)
        self._bytes = Counter(*_named(INGEST_BYTES), registry=registry)
        self._seconds = Histogram(*_named(INGEST_SECONDS), buckets=BOUNDS, registry=registry)
        self._lag = Histogram(*_named(LOOP_LAG), buckets=BOUNDS, registry=registry)
        self._requests = Counter(*_named(HTTP_REQUESTS), registry=registry)
        self._deliveries = Counter(*_named(ALERT_DELIVERIES), registry=registry)
        for outcome in DELIVERY_OUTCOMES:
            self._deliveries.labels(outcome)
        self._gauges = {
            family: Gauge(*_named(family), registry=registry)
            for family in (INGEST_QUEUE, INGEST_INFLIGHT, STREAM_CLIENTS, *of_store)
        }
        for family, read in of_store.items():
            self._gauges[family].set_function(read)
        build = Gauge(*_named(BUILD_INFO), registry=registry)
        build.labels(__version__, platform.python_version()).set(1)
        ProcessCollector(registry=registry)

    def observe_batch(self, outcome: str, values: int, num_bytes: int, seconds: float) -> None:
        """Count one answered batch."""
        self._by_outcome[outcome if outcome in OUTCOMES else "refused"].inc()
        self._values.inc(values)
        self._bytes.inc(num_bytes)
        self._seconds.observe(seconds)

    def observe_request(self, route: str, method: str, status: int) -> None:
        """Count one answered request."""
        self._requests.labels(route, method, str(status)).inc()

    def observe_delivery(self, outcome: str) -> None:
        """Count one attempt to notify a receiver of an incident."""
        self._deliveries.labels(outcome).inc()

    def observe_lag(self, seconds: float) -> None:
        """Count one measured delay of the event loop."""
        self._lag.observe(seconds)

    def watch(
        self,
        queue: Callable[[], int],
        inflight_bytes: Callable[[], int],
        streams: Callable[[], int],
    ) -> None:
        """Show the results of these functions at each scrape."""
        shown = {INGEST_QUEUE: queue, INGEST_INFLIGHT: inflight_bytes, STREAM_CLIENTS: streams}
        for family, read in shown.items():
            self._gauges[family].set_function(read)

    def render(self, *, openmetrics: bool = False) -> bytes:
        """Return the text of the whole registry, without the end marker of OpenMetrics."""
        shown = _WithoutCreated(self.registry)
        if not openmetrics:
            return prometheus_client.generate_latest(shown)
        text: bytes = openmetrics_text(shown)  # type: ignore[no-untyped-call]
        return text.removesuffix(b"# EOF\n")


class _WithoutCreated:
    """A view of a registry without the ``_created`` series.

    prometheus_client can switch them off only for the whole process and all its registries.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        """Yield the families of the registry without their hidden samples."""
        for family in self._registry.collect():
            family.samples = [s for s in family.samples if not s.name.endswith("_created")]
            yield family


def _named(family: Family) -> tuple[str, str, tuple[str, ...]]:
    return family.name, family.help, family.labels
