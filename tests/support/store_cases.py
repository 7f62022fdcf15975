"""Builders of batches for the store's tests, and the oracle: a dictionary that forgets nothing."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import count

import numpy as np

from snc_service.store import Store
from snc_service.store.types import Buckets, Event, Extent, Outcome, Submission, Window
from snc_service.wire import ABSENT, Batch, LayerSpec, LayerTable, absent, encode

NOW = 1_763_800_000.0
_numbers = count()


def new_name() -> str:
    """Return a name that no run has had."""
    return f"run{next(_numbers)}"


def table(*names: str) -> LayerTable:
    return LayerTable(tuple(LayerSpec(name, "linear", (4, 2)) for name in names))


def quiet(state, rows):
    """Rules that never speak and remember nothing."""
    return b"", []


class Told:
    """Rules as a function ``(state, rows) -> (state, events)``: that of the last `judge`."""

    by = staticmethod(quiet)

    def __init__(self, state):
        self.state = state

    def advance(self, rows):
        self.state, events = Told.by(self.state, rows)
        return events

    def dump(self):
        return self.state or b""

    pulse = dump

    @property
    def num_bytes(self):
        return len(self.dump())


def judge(store: Store, advance=quiet) -> Store:
    """Let a function judge what is stored from now on."""
    Told.by = staticmethod(advance)
    store.batches.judge_with(Told)
    return store


def new_run(store: Store, run: str = "r1", project: str = "p", **changes) -> None:
    given = {"name": run, "project": project, "config": {}, "tags": (), "policy": None, "now": NOW}
    store.runs.create(run, **(given | changes))


def batch(
    layers: LayerTable,
    seq: int,
    steps: Sequence[int],
    metrics: Mapping[str, object] | None = None,
    scalars: Mapping[str, Sequence[float]] | None = None,
    *,
    writer: str = "w",
    **header,
) -> Batch:
    """Build a batch from ``{metric: [steps][layers]}`` and ``{scalar: [steps]}``."""
    metrics, scalars = metrics or {}, scalars or {}
    shape = (len(metrics), len(steps), len(layers.layers))
    values = np.array(list(metrics.values()), np.float32) if metrics else np.empty(shape)
    return Batch(
        writer=writer,
        seq=seq,
        layers=layers.hash,
        steps=tuple(steps),
        metrics=tuple(metrics),
        values=np.asarray(values, np.float32).reshape(shape),
        scalars=tuple(scalars),
        scalar_values=np.array(list(scalars.values()), np.float32).reshape(-1, len(steps)),
        **header,
    )


def submit(
    store: Store, batches: Iterable[Batch], run: str = "r1", advance=quiet, at: float = NOW
) -> list[Outcome]:
    items = [Submission(run, b, zlib.crc32(encode(b)), at) for b in batches]
    return judge(store, advance).batches.ingest(items)


def stored(store: Store, *batches: Batch, **how) -> list[Outcome]:
    """Submit and insist that every batch was taken."""
    outcomes = submit(store, batches, **how)
    assert [o.error for o in outcomes] == [None] * len(batches)
    return outcomes


class Oracle:
    """History as a dictionary (attempt, step) -> {row: float32}, answered by brute force."""

    def __init__(self) -> None:
        self.cells: dict[tuple[int, int], dict[str, np.float32]] = {}
        self.firsts: dict[int, int] = {}

    def add(self, attempt: int, steps: Sequence[int], rows: Mapping[str, np.ndarray]) -> None:
        """Add values per row [steps]; every step counts as measured, also if all is absent."""
        self.firsts[attempt] = min(steps[0], self.firsts.get(attempt, steps[0]))
        for place, step in enumerate(steps):
            cell = self.cells.setdefault((attempt, step), {})
            for row, values in rows.items():
                if not absent(values[place : place + 1])[0]:
                    cell[row] = values[place]

    def attempt_of(self, step: int) -> int:
        return max(a for a, first in self.firsts.items() if first <= step)

    def answer(self, rows: Sequence[str], window: Window) -> Buckets:
        end = 2**60 if window.to_step is None else window.to_step
        cells = {
            step: cell
            for (attempt, step), cell in self.cells.items()
            if window.from_step <= step <= end
            and attempt == (self.attempt_of(step) if window.attempt is None else window.attempt)
        }
        width = 1
        if len(cells) > window.points:
            while max(cells) // width - min(cells) // width + 1 > window.points:
                width *= 2
        groups: dict[int, list[dict[str, np.float32]]] = {}
        for step in sorted(cells):
            groups.setdefault(step // width * width, []).append(cells[step])
        groups = {k: g for k, g in groups.items() if any(row in c for c in g for row in rows)}
        shape = (len(rows), len(groups))
        mean, low, high = (np.full(shape, ABSENT, np.float32) for _ in range(3))
        nonfinite = np.zeros(shape, np.int32)
        for b, group in enumerate(groups.values()):
            for r, row in enumerate(rows):
                values = np.array([c[row] for c in group if row in c], np.float32)
                finite = values[np.isfinite(values)].astype(np.float64)
                nonfinite[r, b] = len(values) - len(finite)
                if len(values):
                    mean[r, b], low[r, b], high[r, b] = (
                        (finite.mean(), finite.min(), finite.max()) if len(finite) else [np.nan] * 3
                    )
        steps = np.array(list(groups), np.int64)
        return Buckets(tuple(rows), steps, mean, low, high, nonfinite, width)


def assert_same(got: Buckets, wanted: Buckets) -> None:
    """Compare bit by bit, the mean within float32 rounding."""
    assert got.rows == wanted.rows
    assert got.bucket_steps == wanted.bucket_steps
    np.testing.assert_array_equal(got.steps, wanted.steps)
    np.testing.assert_array_equal(got.nonfinite, wanted.nonfinite)
    for name in ("min", "max"):
        a, b = getattr(got, name), getattr(wanted, name)
        np.testing.assert_array_equal(bits(a), bits(b), err_msg=name)
    np.testing.assert_array_equal(absent(got.mean), absent(wanted.mean))
    # A mean of means is rounded to float32 twice, whatever cancels between them.
    largest = np.fmax(np.abs(wanted.min.astype(np.float64)), np.abs(wanted.max))
    off = np.abs(got.mean.astype(np.float64) - wanted.mean)
    assert (np.isnan(off) == np.isnan(wanted.mean)).all()
    assert not (off > 2.0**-22 * largest + 1e-44).any()


def as_sent(
    store: Store, run: str, metric: str, layers: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps [N] of a run and the bits [L, N] of a metric, as they were sent."""
    pieces = [
        piece for piece in store.histories.scan(run, Extent(metrics=(metric,))) if len(piece.steps)
    ]
    steps = np.unique(np.concatenate([piece.steps for piece in pieces]))
    found = np.full((len(layers), len(steps)), ABSENT, np.float32)
    for piece in pieces:
        rows = [layers.index(name) for name in piece.layers or ()]
        found[np.ix_(rows, np.searchsorted(steps, piece.steps))] = piece.values
    return steps, bits(found)


def bits(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, "<f4").view("<u4")


def breach_once(state: bytes | None, rows):
    """A rule with memory: one event at its first row, the number of batches seen as state."""
    seen = int(state or b"0") + 1
    first = [Event(rows.batch.steps[0], "breach", "warning", "seen", rows.layers[0], 1, 2.0, 1.0)]
    return str(seen).encode(), first if seen == 1 else []
