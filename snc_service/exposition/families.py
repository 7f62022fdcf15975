"""The table of all Prometheus families of the service: name, type, help, labels.

The step is a gauge, never a label, and no sample has a timestamp. The series cap bounds part
``layers``, the listing time of runs bounds ``runs``, and this table bounds ``process``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

Type: TypeAlias = Literal["gauge", "counter", "histogram"]
Part: TypeAlias = Literal["process", "runs", "layers"]

RUN: Final = ("run",)
LAYER: Final = ("run", "layer")


@dataclass(frozen=True, eq=False)  # each is in the table once and equals only itself
class Family:
    """One family of series, and the part of ``/metrics`` it belongs to."""

    name: str
    type: Type
    help: str
    labels: tuple[str, ...]
    part: Part

    @property
    def head(self) -> bytes:
        """Return its HELP and TYPE lines."""
        return _head(self.name, self.type, self.help)

    @property
    def open_head(self) -> bytes:
        """Return the same in OpenMetrics, where the head of a counter has no ``_total``."""
        return _head(self.name.removesuffix("_total"), self.type, self.help)


def _head(name: str, type: str, text: str) -> bytes:
    return f"# HELP {name} {text}\n# TYPE {name} {type}\n".encode()


def _layer(name: str, text: str) -> Family:
    return Family(name, "gauge", text, LAYER, "layers")


def _run(name: str, text: str, *, labels: tuple[str, ...] = RUN) -> Family:
    return Family(name, "counter" if name.endswith("_total") else "gauge", text, labels, "runs")


def _process(name: str, text: str, labels: tuple[str, ...] = (), type: Type = "gauge") -> Family:
    return Family(name, "counter" if name.endswith("_total") else type, text, labels, "process")


SIGMA = _layer("snc_sigma", "Newest estimate of the largest singular value, from below.")
SIGMA_UPPER = _layer(
    "snc_sigma_upper", "Newest bound of sigma from above; its bound_age (REST) is 0 while it holds."
)
THRESHOLD = _layer("snc_threshold", "Upper limit for sigma in force; absent where there is none.")
RATIO = _layer("snc_threshold_ratio", "sigma / threshold: above 1 is a breach.")

RUN_INFO = _run("snc_run_info", "Name and project of a run.", labels=("run", "name", "project"))
RUN_ACTIVE = _run("snc_run_active", "1 while a run is open, also if it went silent; 0 once closed.")
RUN_SILENT = _run("snc_run_silent", "1 while an open run has not reported for too long.")
RUN_LAST_STEP = _run("snc_run_last_step", "Newest step that was reported.")
RUN_LAST_REPORT = _run(
    "snc_run_last_report_timestamp_seconds", "Unix time of the newest report or change of state."
)
RUN_LAYERS = _run("snc_run_layers", "Measured layers.")
RUN_LAYERS_BREACHING = _run(
    "snc_run_layers_breaching", "Layers whose newest sigma exceeds its threshold."
)
RUN_LAYERS_NONFINITE = _run(
    "snc_run_layers_nonfinite", "Layers whose newest sigma is NaN or infinite."
)
RUN_WORST_RATIO = _run(
    "snc_run_worst_ratio", "Largest newest sigma / threshold; finite values only."
)
RUN_OVERHEAD = _run("snc_run_overhead_ratio", "Share of the step time spent in the callback.")
SCALAR = _run(
    "snc_scalar",
    "Newest value of a scalar such as loss, of the first 16 that the run reported.",
    labels=("run", "name"),
)
BREACHES = _run("snc_breaches_total", "Layer-steps with sigma above its threshold.")
RESCALES = _run("snc_rescales_total", "Layer-steps in which an action brought a weight down.")
GUARD_VETOES = _run("snc_guard_vetoes_total", "Steps that the guard undid.")
DROPPED = _run("snc_dropped_values_total", "Values the client gave up because it could not send.")
EVENTS = _run("snc_events_total", "Events by rule.", labels=("run", "rule", "severity"))
OMITTED = _run("snc_series_omitted", "Per-layer series left out by the cap on series.")

INGEST_BATCHES = _process(
    "snc_ingest_batches_total", "Batches by what became of them.", ("outcome",)
)
INGEST_VALUES = _process("snc_ingest_values_total", "Values stored.")
INGEST_BYTES = _process("snc_ingest_bytes_total", "Bytes of batch bodies received.")
INGEST_SECONDS = _process(
    "snc_ingest_seconds", "Time from a batch's arrival to its answer.", type="histogram"
)
INGEST_QUEUE = _process("snc_ingest_queue_batches", "Batches that wait for their transaction.")
INGEST_INFLIGHT = _process("snc_ingest_inflight_bytes", "Bytes of request bodies held right now.")
STREAM_CLIENTS = _process("snc_stream_clients", "Open event streams.")
LOOP_LAG = _process(
    "snc_event_loop_lag_seconds",
    "By how much the event loop came late, four times a second.",
    type="histogram",
)
HTTP_REQUESTS = _process(
    "snc_http_requests_total",
    "Requests by route template, method and status.",
    ("route", "method", "code"),
)
ALERT_DELIVERIES = _process(
    "snc_alert_deliveries_total", "Attempts to tell a receiver of an incident.", ("outcome",)
)
STORE_BYTES = _process("snc_store_bytes", "Bytes at rest in the store.")
STORE_LOG_BYTES = _process(
    "snc_store_log_bytes", "Bytes in the log of the embedded store; 0 on PostgreSQL."
)
STORE_DAMAGED = _process(
    "snc_store_damaged", "Places where stored values are known to be damaged and not repaired."
)
BUILD_INFO = _process("snc_build_info", "Version of the service.", ("version", "python"))

LAYER_FAMILIES: Final = (SIGMA, SIGMA_UPPER, THRESHOLD, RATIO)
RUN_FAMILIES: Final = (
    RUN_INFO,
    RUN_ACTIVE,
    RUN_SILENT,
    RUN_LAST_STEP,
    RUN_LAST_REPORT,
    RUN_LAYERS,
    RUN_LAYERS_BREACHING,
    RUN_LAYERS_NONFINITE,
    RUN_WORST_RATIO,
    RUN_OVERHEAD,
    SCALAR,
    BREACHES,
    RESCALES,
    GUARD_VETOES,
    DROPPED,
    EVENTS,
    OMITTED,
)
PROCESS_FAMILIES: Final = (
    INGEST_BATCHES,
    INGEST_VALUES,
    INGEST_BYTES,
    INGEST_SECONDS,
    INGEST_QUEUE,
    INGEST_INFLIGHT,
    STREAM_CLIENTS,
    LOOP_LAG,
    HTTP_REQUESTS,
    ALERT_DELIVERIES,
    STORE_BYTES,
    STORE_LOG_BYTES,
    STORE_DAMAGED,
    BUILD_INFO,
)
FAMILIES: Final = (*LAYER_FAMILIES, *RUN_FAMILIES, *PROCESS_FAMILIES)
