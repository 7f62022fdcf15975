"""The memory of ingest: runs as the last transactions left them, and their newest values."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

from snc_service.store.sql.database.dialect import Mark
from snc_service.store.sql.ingest.run_cache import RunAtWork
from snc_service.store.sql.series.latest_values import Newest
from snc_service.store.sql.series.layouts import Indexes

# Remembered, over all runs: 200 MB at most. Runs report in turn, so the least recently used is the
# next: where they do not all fit, each batch reads its run again, at 4 to 7 times its cost. These
# are 1,000 runs of 200 layers, as many as there may be connections.
MOST_LAYERS = 1_000_000


class PublishedValues(NamedTuple):
    """The newest values of the layer tables of a run, in their order, at a version of the run."""

    run_id: int
    version: int
    parts: tuple[tuple[Indexes, Newest], ...]


class RunMemory:
    """Runs as the last transactions left them; the least recently used are dropped first.

    Some engines can tell by marks that only ingest wrote. Then an era lasts until another write,
    and a row read in the current era is not read again.
    """

    def __init__(self, most_layers: int = MOST_LAYERS) -> None:
        self._most_layers = most_layers
        self._layers = 0
        self._era = 0
        self._expected: Mark | None = None
        self._runs: OrderedDict[str, tuple[RunAtWork, int]] = OrderedDict()
        self._newest: dict[str, PublishedValues] = {}
        self._lock = threading.Lock()

    def take(self, runs: Iterable[str]) -> dict[str, RunAtWork]:
        """Remove runs from the cache and return them."""
        with self._lock:
            taken = {run: self._runs.pop(run) for run in runs if run in self._runs}
            self._layers -= sum(cost for _, cost in taken.values())
        return {run: work for run, (work, _) in taken.items()}

    def let_go(self, runs: Iterable[str]) -> None:
        """Forget the newest values of runs that were taken and not kept, as deleted runs are."""
        with self._lock:
            for run in runs:
                if run not in self._runs:
                    self._newest.pop(run, None)

    def know_table(self, run: str, version: int) -> None:
        """Note that a layer table was added to a run of this version, and nothing else: what is
        remembered of it stays true.
        """
        with self._lock:
            if run in self._runs and self._runs[run][0].version == version:
                self._runs[run][0].version += 1
                self._show(self._runs[run][0])

    def runs(self) -> list[str]:
        """Return the names of the cached runs."""
        with self._lock:
            return list(self._runs)

    def newest(self, run: str, run_id: int, version: int) -> PublishedValues | None:
        """Return the newest values of a cached run, None if it has another version."""
        found = self._newest.get(run)
        is_it = found is not None and (found.run_id, found.version) == (run_id, version)
        return found if is_it else None

    def _show(self, work: RunAtWork) -> None:
        """Let readers see the newest values: they never change in place."""
        latest = work.derived.latest
        parts = tuple(latest[number] for number in sorted(latest))
        self._newest[work.run] = PublishedValues(
            work.run_id, -1 if work.derived.forgotten else work.version, parts
        )

    def era(self, mark: Mark | None) -> int:
        """Return the number of the era; a new one begins unless the mark is the expected one."""
        with self._lock:
            if mark is None or mark != self._expected:
                self._era += 1
            return self._era

    def keep(self, works: Iterable[RunAtWork], mark: Mark | None) -> None:
        """Cache runs whose transaction, begun at ``mark``, was committed."""
        with self._lock:
            self._expected = None if mark is None else Mark(mark.own + 1, mark.others)
            for work in works:
                if work.run in self._runs:  # another thread was faster; its entry is newer
                    self._layers -= self._runs.pop(work.run)[1]
                cost = work.cost
                self._runs[work.run] = (work, cost)
                self._show(work)
                self._layers += cost
            while self._layers > self._most_layers and len(self._runs) > 1:
                run, (_, cost) = self._runs.popitem(last=False)
                self._layers -= cost
                del self._newest[run]
