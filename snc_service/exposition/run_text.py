"""The lines of one run, cached by its version."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from snc_service.exposition import families
from snc_service.exposition.families import LAYER_FAMILIES, RUN, Family
from snc_service.exposition.layers import LayerText, LayerValues, Mask, Selection
from snc_service.exposition.text import escaped, line, number
from snc_service.store.types import END_STATES, LatestValues, Run

# Prometheus rejects a whole scrape for one label above its limit (512 bytes in our configuration).
LABEL_CHARS = 128
# A scalar of one writer may be behind the newest step of another writer.
LAG_STEPS = 1_000
# run -> (rule, severity, count)
Counts: TypeAlias = Mapping[str, Sequence[tuple[str, str, int]]]


class NewestOfRun(NamedTuple):
    """The queries of a run's newest values."""

    layers: Callable[[], LatestValues]
    scalars: Callable[[int], Mapping[str, float]]  # at or after a step


class RunText:
    """The lines of one run in each family. Call `read`, then `choose`, then `lines`."""

    def __init__(self, run: str) -> None:
        self.run = run
        self._label = f'{{run="{escaped(run)}"}}'
        self.series = 0  # per-layer series before the cap
        self._seen: tuple[int, bool] | None = None  # version, and whether its layers were read
        self._values: LayerValues | None = None
        self._selection = Selection()
        self._layer_text = LayerText(run)
        self._lines: dict[Family, bytes] = {}
        self._scalars: dict[str, float] = {}
        self._scalars_at = (0, 0)  # attempt and step of the last read
        self._chosen: tuple[int, Mask] | None = None  # the budget, and the layers chosen for it

    def read(self, run: Run, newest: NewestOfRun | None) -> None:
        """Read the run's current values; ``newest`` None: they are no longer shown."""
        if self._seen == (run.version, newest is not None):
            return
        self._seen = None  # until all of it is read: the store may fail in between
        self._values = LayerValues(newest.layers(), self._values) if newest else None
        self.series = int(self._values.series.sum()) if self._values else 0
        self._chosen = None
        self._lines = {
            family: f"{family.name}{self._label} {value}\n".encode()
            for family, value in _samples(run, self._values).items()
        }
        info = {
            "run": run.run,
            "name": run.name[:LABEL_CHARS],
            "project": run.project[:LABEL_CHARS],
        }
        self._lines[families.RUN_INFO] = line(families.RUN_INFO, info, "1")
        if newest is not None:
            self._lines[families.SCALAR] = self._scalar_lines(run, newest)
        self._seen = run.version, newest is not None

    def _scalar_lines(self, run: Run, newest: NewestOfRun) -> bytes:
        attempt, step = self._scalars_at
        if attempt != run.attempt:
            self._scalars, step = {}, 0
        self._scalars |= newest.scalars(max(0, step - LAG_STEPS))
        self._scalars_at = run.attempt, run.last_step or 0
        return b"".join(
            line(families.SCALAR, {"run": run.run, "name": name}, number(value))
            for name, value in self._scalars.items()
        )

    def choose(self, budget: int, now: float) -> None:
        """Render the layers that fit into ``budget`` series, unless nothing changed."""
        if self._values is None or (self._chosen is not None and self._chosen[0] == budget):
            return
        before = None if self._chosen is None else self._chosen[1]
        chosen = self._selection.choose(self._values, budget, now)
        self._chosen = budget, chosen
        if before is None or not np.array_equal(before, chosen):
            self._lines.update(self._layer_text.render(self._values, chosen))
        omitted = self.series - int(self._values.series[chosen].sum())
        self._lines[families.OMITTED] = line(families.OMITTED, {"run": self.run}, number(omitted))

    def lines(self, family: Family, counts: Counts) -> bytes:
        """Return the run's lines of one family, empty if it has none."""
        if family is not families.EVENTS:
            return self._lines.get(family, b"")
        return b"".join(
            line(family, {"run": self.run, "rule": rule, "severity": severity}, number(n))
            for rule, severity, n in counts.get(self.run, ())
        )


def _samples(run: Run, values: LayerValues | None) -> dict[Family, str]:
    is_open = run.state not in END_STATES
    samples: dict[Family, int | float | None] = {
        families.RUN_ACTIVE: int(is_open),
        families.RUN_SILENT: int(run.state == "silent"),
        families.RUN_LAST_STEP: run.last_step,
        families.RUN_LAYERS: run.layers,
        families.RUN_LAYERS_NONFINITE: run.nonfinite_layers,
        families.RUN_LAYERS_BREACHING: None if values is None else int(values.breaching.sum()),
        families.RUN_WORST_RATIO: run.worst_ratio,
        families.RUN_OVERHEAD: run.overhead,
        families.BREACHES: run.breaches,
        families.RESCALES: run.rescales,
        families.GUARD_VETOES: run.guard_vetoes,
        families.DROPPED: run.dropped_values,
    }
    texts = {family: number(value) for family, value in samples.items() if value is not None}
    # Seven digits of a Unix time would have a resolution of a quarter of an hour.
    texts[families.RUN_LAST_REPORT] = f"{run.updated_at:.3f}"
    assert all(family.labels == RUN and family not in LAYER_FAMILIES for family in texts)
    return texts
