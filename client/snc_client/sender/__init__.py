"""The way out of the training job: rows in, batches to the service, policies back.

`Sender.put` costs microseconds and never waits, fails or grows without bound; a daemon thread does
the rest. Losing values is possible (a bounded memory, a service that stays away) and always
counted: ``sent_values``, ``dropped_values``.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import secrets
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np

from snc_client.sender.connection import THREAD_NAME, Connection, hold_forks_while_importing
from snc_client.sender.delivery import Delivery, Job, State
from snc_client.sender.packing import MAX_COLUMNS
from snc_client.sender.patience import EndState, Pace, Patience
from snc_client.sender.rows import Floats, Row, RowQueue
from snc_service.wire import MAX_STEP, METRIC_NAME, RUN_NAME, LayerTable, Policy

if TYPE_CHECKING:
    import httpx

__all__ = ["Pace", "Sender"]

_log = logging.getLogger("snc")

CLOSE_SECONDS = 5.0
QUEUE_BYTES = 64 * 2**20  # 3,000 steps of 1,000 layers x 5 metrics
MAX_ROW_BYTES = 8 * 2**20 - 128 * 1024  # the wire's 8 MiB less the largest header


class Sender:
    """Report rows of one layer table to the service at ``url``; built at once, waits for nobody.

    ``policy`` is what the job was built with: the service adopts it if neither run nor project has
    one. ``run`` is drawn here when none is given, so it is known before the service answers.
    ``queue_bytes`` bounds the memory of waiting values; past it the oldest step is dropped and
    counted. In a forked child every method does nothing. `put`, `take_policy` and `close` are for
    one thread at a time. Raises `ValueError` for what could never be sent.
    """

    def __init__(
        self,
        url: str,
        *,
        table: LayerTable,
        metrics: tuple[str, ...],
        run: str | None = None,
        name: str | None = None,
        project: str | None = None,
        token: str | None = None,
        config: Mapping[str, Any] | None = None,
        policy: Policy | None = None,
        transport: httpx.BaseTransport | None = None,
        queue_bytes: int = QUEUE_BYTES,
        pace: Pace | None = None,
    ) -> None:
        self.run = run if run is not None else _drawn_run()
        _check(url, token, self.run, metrics, table)
        self._pid = os.getpid()
        self._shape = (len(metrics), len(table.layers))
        self._pace = pace or Pace()
        request = {
            "run": self.run,
            "name": name,
            "project": project,
            "config": None if config is None else _jsonable(config),
            "policy": None if policy is None else policy.as_dict(),
        }
        job = Job(
            url=_shown_url(url),
            run=self.run,
            writer=secrets.token_hex(16),
            table=table,
            metrics=metrics,
            request={key: value for key, value in request.items() if value is not None},
        )
        self._rows = RowQueue(queue_bytes)
        self._patience = Patience(self._pace)
        self._delivery = Delivery(
            job,
            self._rows,
            self._pace,
            self._patience,
            lambda: Connection(url, token, transport),
        )
        self._ending = _Ending(self._delivery, self._patience)
        hold_forks_while_importing()
        self._ending.thread.start()
        # A sender that is dropped without `close` still delivers what it was given.
        weakref.finalize(self, self._ending.ask, CLOSE_SECONDS, "finished").atexit = False

    def put(self, step: int, values: Floats, scalars: Mapping[str, float], time: float) -> None:
        """Hand over one step: ``values`` float32 [M, L] (copied), Unix seconds in ``time``.

        NaN and infinities are measurements; `snc_service.wire.ABSENT` is "not measured". A row that
        the wire could not carry (another shape, a negative step) is dropped and counted.
        """
        if os.getpid() != self._pid:
            return
        if values.shape != self._shape or not 0 <= step <= MAX_STEP or not 0 <= time < 1e10:
            self._rows.refuse(values.size + len(scalars))
            return
        row = Row(int(step), values.astype(np.float32), dict(scalars), float(time))
        waiting = self._rows.put(row)
        if waiting == 1 or waiting == self._pace.batch_steps:
            self._patience.ring()

    def take_policy(self) -> tuple[int, Policy] | None:
        """Return (version, policy) of the newest policy the service sent, once; else None."""
        return self._delivery.take_policy()

    @property
    def sent_values(self) -> int:
        """Return how many values the service has acknowledged."""
        return self._delivery.sent_values

    @property
    def dropped_values(self) -> int:
        """Return how many values are lost: pushed out of memory, refused, or too late."""
        return self._delivery.dropped_values

    @property
    def errors(self) -> int:
        """Return how many tries failed."""
        return self._delivery.errors

    @property
    def last_error(self) -> str | None:
        """Return one sentence on the newest failure."""
        return self._delivery.last_error

    @property
    def state(self) -> State:
        """Return ``starting``, ``sending``, ``waiting`` (for the service) or ``closed``."""
        return self._delivery.state

    def close(self, timeout: float = CLOSE_SECONDS, state: EndState = "finished") -> None:
        """Flush and finish the run, for at most ``timeout`` seconds; say once what was lost.

        A service that was gone before is tried once more only. Happens by itself at the exit of the
        interpreter; the second call does nothing.
        """
        self._ending.reach(timeout, state)


class _Ending:
    """The end of a sender: asked for by the job, by its disappearance, or by the exit."""

    def __init__(self, delivery: Delivery, patience: Patience) -> None:
        self._pid = os.getpid()
        self._delivery = delivery
        self._patience = patience
        self.thread = threading.Thread(target=delivery.run, name=THREAD_NAME, daemon=True)
        atexit.register(self._at_exit)

    def ask(self, timeout: float, state: EndState) -> None:
        if os.getpid() == self._pid:
            self._patience.end(timeout, state)

    def reach(self, timeout: float, state: EndState) -> None:
        if os.getpid() != self._pid or self._delivery.state == "closed":
            return
        self._patience.end(timeout, state)
        self.thread.join(timeout)
        atexit.unregister(self._at_exit)
        self._delivery.abandon()
        if self._delivery.dropped_values:
            _log.warning(
                "snc: %d values reached the service, %d are lost (last trouble: %s)",
                self._delivery.sent_values,
                self._delivery.dropped_values,
                self._delivery.last_error,
            )

    def _at_exit(self) -> None:
        # Set by the interpreter when an exception ends the program.
        self.reach(CLOSE_SECONDS, "failed" if getattr(sys, "last_value", None) else "finished")


def _check(
    url: str, token: str | None, run: str, metrics: tuple[str, ...], table: LayerTable
) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"url must be http://host[:port] or https://host[:port], got {url!r}")
    if token is not None and not (token.isascii() and token.isprintable() and token.strip()):
        raise ValueError("token must be printable ASCII without line ends: it was cut or mistyped")
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


def _shown_url(url: str) -> str:
    """Return the address as logs may carry it: without user, password and query."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    return f"{parts.scheme}://{host}:{parts.port}" if parts.port else f"{parts.scheme}://{host}"


def _jsonable(value: Any) -> Any:
    """Return what JSON can carry of a job's configuration: the rest by its text."""
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    return str(value)
