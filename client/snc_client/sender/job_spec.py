"""Job: the body of `POST /runs`, and the fields that all batches of a job have in common."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from snc_service.wire import MAX_COLUMNS, METRIC_NAME, RUN_NAME, LayerTable, Policy

MAX_ROW_BYTES = 8 * 2**20 - 128 * 1024  # the wire's 8 MiB less the largest header


@dataclass(frozen=True)
class Job:
    """A job that reports: the body of ``POST /runs``, and the fields that its batches share."""

    url: str  # without secrets, for logs
    run: str
    writer: str
    table: LayerTable
    metrics: tuple[str, ...]
    request: Mapping[str, Any]

    @property
    def shape(self) -> tuple[int, int]:
        """Return [M, L], the shape of one row."""
        return len(self.metrics), len(self.table.layers)


def described(
    url: str,
    *,
    table: LayerTable,
    metrics: tuple[str, ...],
    run: str | None,
    name: str | None,
    project: str | None,
    config: Mapping[str, Any] | None,
    policy: Policy | None,
) -> Job:
    """Return the job, under a new writer, and a new run if ``run`` is None.

    Raises `ValueError` for arguments that cannot be sent.
    """
    run = run if run is not None else _drawn_run()
    _check(url, run, metrics, table)
    request = {
        "run": run,
        "name": name,
        "project": project,
        "config": None if config is None else _jsonable(config),
        "policy": None if policy is None else policy.as_dict(),
    }
    return Job(
        url=shown_url(url),
        run=run,
        writer=secrets.token_hex(16),
        table=table,
        metrics=metrics,
        request={key: value for key, value in request.items() if value is not None},
    )


def check_token(token: str | None) -> None:
    """Raise `ValueError` for a token that no header can carry; the message does not show it."""
    if token is not None and not (token.isascii() and token.isprintable() and token.strip()):
        raise ValueError("token must be printable ASCII without line ends: it was cut or mistyped")


def check_url(url: str) -> None:
    """Raise `ValueError` unless ``url`` is an HTTP address with a host."""
    try:
        parts = urlsplit(url)
        right = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        right = False
    if not right:
        raise ValueError(f"url must be http://host[:port] or https://host[:port], got {url!r}")


def _check(url: str, run: str, metrics: tuple[str, ...], table: LayerTable) -> None:
    check_url(url)
    if not RUN_NAME.fullmatch(run):
        raise ValueError(f"run must match {RUN_NAME.pattern}, got {run!r}")
    if not all(METRIC_NAME.fullmatch(name) for name in metrics):
        raise ValueError(f"metrics must match {METRIC_NAME.pattern}, got {metrics!r}")
    if len(metrics) > MAX_COLUMNS:
        raise ValueError(f"metrics must be at most {MAX_COLUMNS}, got {len(metrics)}")
    if 4 * len(metrics) * len(table.layers) > MAX_ROW_BYTES:
        raise ValueError(
            f"metrics x layers must fit in {MAX_ROW_BYTES} bytes of float32, "
            f"got {len(metrics)} x {len(table.layers)}: report fewer metrics"
        )


def _drawn_run() -> str:
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"


def shown_url(url: str) -> str:
    """Return the address for logs: without user, password and query."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    return f"{parts.scheme}://{host}:{parts.port}" if parts.port else f"{parts.scheme}://{host}"


def _jsonable(value: Any) -> Any:
    """Return a job's configuration as JSON values; values of other types become text."""
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    return str(value)
