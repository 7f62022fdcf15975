"""The service's own health: does it answer, how fast, and how much does it hold."""

from __future__ import annotations

from boards import board, choice, with_row
from grafana_foundation_sdk.builders.dashboard import Dashboard
from parts import ORANGE, RED, cells, lines, number
from promql import WINDOW

LATENCY = f"sum by (le) (rate(snc_ingest_seconds_bucket[{WINDOW}]))"


def service() -> Dashboard:
    """Return the dashboard."""
    made = board("snc-service", "snc / Service", "Ingest, store and process of the service itself.")
    made = made.with_variable(choice("job", "Job", "label_values(snc_build_info, job)"))
    for panel in _numbers():
        made = made.with_panel(panel)
    made = with_row(made, "Ingest", _ingest())
    return with_row(made, "Requests, store and process", _process())


def _numbers() -> list:
    return [
        number(
            "Answers Prometheus",
            'min(up{job="$job"})',
            "1 while the newest scrape succeeded.",
            bounds=((0, RED), (1, "green")),
        ),
        number(
            "Version",
            "max by (version) (snc_build_info)",
            "Of the service.",
            name="{{version}}",
        ),
        number(
            "Batches per second",
            f"sum(rate(snc_ingest_batches_total[{WINDOW}]))",
            "Whatever became of them.",
            unit="reqps",
        ),
        number(
            "99 % answered within",
            f"histogram_quantile(0.99, {LATENCY})",
            "From a batch's arrival to its answer; durable by then.",
            unit="s",
            bounds=((0.02, ORANGE), (0.5, RED)),
        ),
        number(
            "Refused",
            f'sum(rate(snc_ingest_batches_total{{outcome="refused"}}[{WINDOW}]))'
            f" / (sum(rate(snc_ingest_batches_total[{WINDOW}])) > 0)",
            "Share of the batches that were refused.",
            unit="percentunit",
            bounds=((0.01, RED),),
        ),
        number("Store", "max(snc_store_bytes)", "Bytes at rest in the store.", unit="bytes"),
    ]


def _ingest() -> list:
    return [
        lines(
            "Batches",
            {"{{outcome}}": f"sum by (outcome) (rate(snc_ingest_batches_total[{WINDOW}]))"},
            "A duplicate is a batch sent again whose first answer was lost: stored once.",
            unit="reqps",
            bars=True,
        ),
        lines(
            "Values stored",
            {"values": f"sum(rate(snc_ingest_values_total[{WINDOW}]))"},
            "Per second.",
        ),
        lines(
            "Time to the answer",
            {
                f"{share} %": f"histogram_quantile({share / 100}, {LATENCY})"
                for share in (50, 95, 99)
            },
            "From a batch's arrival to its answer. The target for 99 % is 20 ms.",
            unit="s",
            bounds=((0.02, ORANGE),),
        ),
        cells(
            "Time to the answer, all of it",
            LATENCY,
            "Batches per second by how long they took.",
            width=12,
            height=8,
            unit="reqps",
        ),
        lines(
            "Bytes received",
            {"bytes": f"sum(rate(snc_ingest_bytes_total[{WINDOW}]))"},
            "Bodies of batches, per second.",
            unit="Bps",
        ),
        lines(
            "Bytes per value",
            {
                "bytes": f"sum(rate(snc_ingest_bytes_total[{WINDOW}]))"
                f" / (sum(rate(snc_ingest_values_total[{WINDOW}])) > 0)"
            },
            "About 4 in the binary form, several times as much in JSON.",
        ),
    ]


def _process() -> list:
    return [
        lines(
            "Requests",
            {"{{code}}": f"sum by (code) (rate(snc_http_requests_total[{WINDOW}]))"},
            "By status of the answer. 429 and 503 ask a client to come back; nothing is lost then.",
            unit="reqps",
            bars=True,
        ),
        lines(
            "The event loop comes late by",
            {
                f"{share} %": f"histogram_quantile({share / 100}, sum by (le) "
                f"(rate(snc_event_loop_lag_seconds_bucket[{WINDOW}])))"
                for share in (50, 99)
            },
            "Whoever waits for an answer waits as long in addition.",
            unit="s",
            bounds=((0.02, ORANGE), (0.2, RED)),
        ),
        lines(
            "Waiting and open",
            {
                "batches that wait": "sum(snc_ingest_queue_batches)",
                "open streams": "sum(snc_stream_clients)",
            },
            "Batches that wait for their transaction, and pages that follow a run.",
        ),
        lines(
            "Bodies held",
            {"bytes": "sum(snc_ingest_inflight_bytes)"},
            "Beyond SNC_MAX_INFLIGHT_BYTES more bodies are refused with 503.",
            unit="bytes",
        ),
        lines(
            "Deliveries of alerts",
            {"{{outcome}}": f"sum by (outcome) (rate(snc_alert_deliveries_total[{WINDOW}]))"},
            "Attempts to tell a receiver of an incident, by what became of them.",
            bars=True,
        ),
        lines(
            "Store",
            {"bytes": "max(snc_store_bytes)"},
            "Bytes at rest. Old batches are folded into tiles in the background: it goes down too.",
            unit="bytes",
        ),
        lines(
            "Per-layer series left out",
            {"series": "sum(max by (run) (snc_series_omitted))"},
            "What the cap (SNC_METRICS_SERIES) keeps off /metrics: the layers farthest from "
            "trouble.",
        ),
        lines(
            "Memory",
            {"resident": 'max(process_resident_memory_bytes{job="$job"})'},
            "Of the service's process.",
            unit="bytes",
        ),
        lines(
            "Processor",
            {"cores": f'max(rate(process_cpu_seconds_total{{job="$job"}}[{WINDOW}]))'},
            "Cores in use: one process never needs much more than one.",
        ),
        lines(
            "Open files and connections",
            {
                "open": 'max(process_open_fds{job="$job"})',
                "limit": 'max(process_max_fds{job="$job"})',
            },
            "Every stream and kept-alive connection is one.",
        ),
        lines(
            "Scrape",
            {
                "seconds": 'max(scrape_duration_seconds{job="$job"})',
            },
            "How long Prometheus waits for /metrics. The limit is the scrape_timeout.",
            unit="s",
        ),
    ]
