"""`Exposition`: the content of ``/metrics``, ``/metrics/runs/{run}`` and ``/prometheus/sd``."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final, TypeAlias

from snc_service.exposition import families
from snc_service.exposition.families import LAYER_FAMILIES, RUN_FAMILIES, Family, Part
from snc_service.exposition.process import ProcessMetrics
from snc_service.exposition.run_text import Counts, NewestOfRun, RunText
from snc_service.exposition.text import CONTENT_TYPE, OPENMETRICS_TYPE
from snc_service.store import Store
from snc_service.store.types import END_STATES, Run, RunState, RunUnknown, StoreDamaged

# How long a run's series outlast its last report or its end, in seconds.
CLOSED_SECONDS: Final = 300.0
SILENT_LAYERS_SECONDS: Final = 900.0
# A run that dies keeps its own series this long, or the alert on silence would resolve itself.
SILENT_RUN_SECONDS: Final = 86_400.0
PAGE: Final = 500
SINGLE_SERIES: Final = 100_000  # of one run's own endpoint
SCALARS: Final = 16  # of a run
PARTS: Final[tuple[Part, ...]] = ("process", "runs", "layers")

Text: TypeAlias = tuple[bytes, str]


class Exposition:
    """A view of ``store`` in Prometheus text, safe to call from any thread.

    ``/metrics`` has at most ``max_series`` per-layer series, shared fairly among runs. A run that
    exceeds its share shows its worst layers and the number of omitted series. Text is cached by
    `Run.version`: a scrape of unchanged runs formats nothing. ``clock`` is Unix time.
    """

    def __init__(
        self,
        store: Store,
        *,
        max_series: int = 10_000,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._max_series = max_series
        self._clock = clock
        self._process = ProcessMetrics(
            {
                families.STORE_BYTES: store.size_bytes,
                families.STORE_LOG_BYTES: store.log_bytes,
                families.STORE_DAMAGED: store.damages.count,
            }
        )
        self._lock = threading.Lock()
        self._shared: dict[str, RunText] = {}
        self._single: dict[str, RunText] = {}

    def observe_batch(self, outcome: str, values: int, num_bytes: int, seconds: float) -> None:
        """Count a batch: ``outcome`` is accepted, duplicate or refused; ``values`` were stored."""
        self._process.observe_batch(outcome, values, num_bytes, seconds)

    def observe_request(self, route: str, method: str, status: int) -> None:
        """Count a request; ``route`` is a template of the app, never a path."""
        self._process.observe_request(route, method, status)

    def observe_delivery(self, outcome: str) -> None:
        """Count an attempt to deliver an alert: delivered, failed, refused or abandoned."""
        self._process.observe_delivery(outcome)

    def observe_lag(self, seconds: float) -> None:
        """Count one measured delay of the event loop."""
        self._process.observe_lag(seconds)

    def watch(
        self,
        queue: Callable[[], int],
        inflight_bytes: Callable[[], int],
        streams: Callable[[], int],
    ) -> None:
        """Read these at each scrape: waiting batches, bytes of bodies held, open streams."""
        self._process.watch(queue, inflight_bytes, streams)

    def metrics(self, collect: Collection[Part] = PARTS, *, openmetrics: bool = False) -> Text:
        """Return the body and content type of ``/metrics``, or of some of its parts.

        Raises the errors of the store.
        """
        body = b""
        if "runs" in collect or "layers" in collect:
            with self._lock:
                body = self._runs_text(collect, openmetrics)
        if "process" in collect:
            body += self._process.render(openmetrics=openmetrics)
        return _finished(body, openmetrics)

    def run_metrics(self, run: str, *, openmetrics: bool = False) -> Text:
        """Return one run's series, in full up to 100,000 per-layer series. Raises `RunUnknown`."""
        with self._lock:
            found = self._store.runs.get(run)
            text = self._single.pop(run, None) or RunText(run)
            self._single[run] = text  # the newest last: the oldest is dropped
            if len(self._single) > PAGE:
                self._single.pop(next(iter(self._single)))
            now = self._clock()
            text.read(found, self._newest(found, now))
            text.choose(SINGLE_SERIES, now)
            wanted = (*LAYER_FAMILIES, *RUN_FAMILIES)
            body = _joined([text], self._counts(), wanted, openmetrics)
        return _finished(body, openmetrics)

    def service_discovery(self, host: str) -> list[dict[str, Any]]:
        """Return the document of Prometheus' HTTP service discovery: one target per listed run.

        Targets that differ only in their path would share one ``instance`` and overwrite each
        other's ``up``, so each has its own ``instance``.
        """
        now = self._clock()
        with self._lock:
            runs = [run.run for run in self._listed(now) if _shows_layers(run, now)]
        return [
            {
                "targets": [host],
                "labels": {"__metrics_path__": f"/metrics/runs/{run}", "instance": f"{host}/{run}"},
            }
            for run in runs
        ]

    def _runs_text(self, collect: Collection[Part], openmetrics: bool) -> bytes:
        now = self._clock()
        runs = self._listed(now)
        texts = {run.run: self._shared.get(run.run) or RunText(run.run) for run in runs}
        for run in runs:
            texts[run.run].read(run, self._newest(run, now))
        shares = fair_shares({name: text.series for name, text in texts.items()}, self._max_series)
        for name, text in texts.items():
            text.choose(shares[name], now)
        self._shared = texts
        wanted = [family for family in families.FAMILIES if family.part in collect]
        return _joined(texts.values(), self._counts(), wanted, openmetrics)

    def _newest(self, run: Run, now: float) -> NewestOfRun | None:
        """Return the queries of a run's newest values, None if they are no longer shown."""
        if not _shows_layers(run, now):
            return None
        return NewestOfRun(
            layers=lambda: self._store.histories.latest(run.run),
            scalars=lambda step: self._scalars(run.run, step),
        )

    def _scalars(self, run: str, step: int) -> Mapping[str, float]:
        """Return the newest scalars, none if they are damaged: others must be scraped."""
        try:
            return self._store.histories.latest_scalars(run, step, SCALARS)
        except StoreDamaged:  # the store has said so
            return {}

    def _listed(self, now: float) -> list[Run]:
        """Return the runs that have series, by name."""
        found = {run.run: run for run in self._open()}
        for state in ("silent", "finished", "failed"):
            # Closed runs accumulate: read the newest ones and those shown before.
            page = self._store.runs.page(project=None, state=state, limit=PAGE, after=None)
            found.update((run.run, run) for run in page.items)
        for name in self._shared.keys() - found.keys():
            try:
                found[name] = self._store.runs.get(name)
            except RunUnknown:  # deleted since
                continue
        return [found[name] for name in sorted(found) if _is_listed(found[name], now)]

    def _open(self) -> Iterable[Run]:
        state: RunState = "active"
        after: tuple[Any, ...] | None = None
        while True:
            page = self._store.runs.page(project=None, state=state, limit=PAGE, after=after)
            yield from page.items
            after = page.next
            if after is None:
                return

    def _counts(self) -> Counts:
        counts: dict[str, list[tuple[str, str, int]]] = {}
        for (run, rule, severity), count in sorted(self._store.events.counts().items()):
            counts.setdefault(run, []).append((rule, severity, count))
        return counts


def fair_shares(needs: Mapping[str, int], budget: int) -> dict[str, int]:
    """Divide ``budget`` series; what a run with a small need leaves is shared by the others."""
    shares = {}
    left = budget
    for place, name in enumerate(sorted(needs, key=lambda name: (needs[name], name))):
        shares[name] = min(needs[name], left // (len(needs) - place))
        left -= shares[name]
    return shares


def _is_closed(run: Run) -> bool:
    return run.state in END_STATES


def _is_listed(run: Run, now: float) -> bool:
    return now - run.updated_at <= (CLOSED_SECONDS if _is_closed(run) else SILENT_RUN_SECONDS)


def _shows_layers(run: Run, now: float) -> bool:
    return now - run.updated_at <= (CLOSED_SECONDS if _is_closed(run) else SILENT_LAYERS_SECONDS)


def _joined(
    texts: Collection[RunText], counts: Counts, wanted: Iterable[Family], openmetrics: bool
) -> bytes:
    """Return one group per family, each with its head; families without samples are left out."""
    parts: list[bytes] = []
    for family in wanted:
        lines = b"".join([text.lines(family, counts) for text in texts])
        if lines:
            parts += (family.open_head if openmetrics else family.head, lines)
    return b"".join(parts)


def _finished(body: bytes, openmetrics: bool) -> Text:
    return (body + b"# EOF\n", OPENMETRICS_TYPE) if openmetrics else (body, CONTENT_TYPE)
