"""A chunk of the tail, divided into pieces that fit into a slice, and read piece by piece."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from snc_service.store import tiles
from snc_service.store.sql.compaction.due_chunks import Chunk
from snc_service.store.sql.compaction.rollups import TilePlace
from snc_service.store.sql.database.dialect import Connection
from snc_service.store.sql.series import tail
from snc_service.store.sql.series.attempts import AttemptSegment
from snc_service.store.sql.series.layouts import LayerBook, Layout, metric_numbers
from snc_service.store.sql.series.selection import Picked
from snc_service.store.sql.series.tail import Cut, distinct, lay_over, unpack_steps
from snc_service.store.types import Floats, Steps
from snc_service.wire import ABSENT

SLICE_BYTES = 2 * 2**20  # of values: 0.1 s of encoding, 10 ms of writing


@dataclass(frozen=True)
class TailBatch:
    """One batch of the tail with steps in a chunk, without its columns."""

    id: int
    layout: Layout
    steps: Steps

    @property
    def num_bytes(self) -> int:
        """Return the size of its columns."""
        layout = self.layout
        columns = len(layout.metrics) * len(layout.layers) + len(layout.scalars)
        return 4 * columns * len(self.steps)


@dataclass(frozen=True)
class ColumnSpan:
    """A span of columns [C, n] of such a batch, starting at column ``first``."""

    id: int
    layout: Layout
    steps: Steps
    first: int
    columns: Floats


@dataclass(frozen=True)
class ChunkPiece:
    """One scalar, or one metric of the layers ``low <= index < high``."""

    kind: str
    name: str
    metric: int
    low: int
    high: int


def heads_of(connection: Connection, book: LayerBook, chunk: Chunk) -> list[TailBatch]:
    """Return the batches that have steps in a chunk, in the order of their arrival."""
    layouts = {layout.number: layout for layout in book.layouts(connection, chunk.run_id)}
    rows = connection.execute(
        "select id, layout, step0, step1, n, steps from tail "
        "where run_id = ? and attempt = ? and step0 < ? and step1 >= ?",
        (chunk.run_id, chunk.attempt, chunk.high, chunk.low),
    )
    found = [TailBatch(id_, layouts[layout], unpack_steps(*place)) for id_, layout, *place in rows]
    return sorted(found, key=lambda head: head.id)


def cut_up(
    connection: Connection, chunk: Chunk, heads: Sequence[TailBatch]
) -> Iterator[ChunkPiece]:
    """Yield every metric and scalar of some batches, in pieces that fit into a slice."""
    width = width_of(len(steps_of(heads, chunk)))
    layouts = {head.layout.number: head.layout for head in heads}.values()
    for (kind, name), metric in metric_numbers(connection, chunk.run_id).items():
        tops = [
            1 if kind == "run" else int(layout.layers.max(initial=-1)) + 1
            for layout in layouts
            if name in (layout.scalars if kind == "run" else layout.metrics)
        ]
        top = max(tops, default=0)
        for low in range(0, top, width):
            yield ChunkPiece(kind, name, metric, low, min(low + width, top))


def width_of(num_steps: int) -> int:
    """Return the number of layers of one metric per slice: whole blocks, at least one."""
    return max(1, SLICE_BYTES // (4 * num_steps) // tiles.BLOCK_LAYERS) * tiles.BLOCK_LAYERS


def picked_of(layout: Layout, piece: ChunkPiece) -> Picked | None:
    """Return the columns of a piece in a layout; the rows are the run's layers."""
    if piece.kind == "run" and piece.name in layout.scalars:
        zero = np.zeros(1, np.intp)
        return Picked(layout, zero + layout.scalar_column(piece.name), zero)
    if piece.kind == "layer" and piece.name in layout.metrics:
        (places,) = np.nonzero((layout.layers >= piece.low) & (layout.layers < piece.high))
        first = layout.columns(piece.name).start
        rows = layout.layers[places].astype(np.intp)
        return Picked(layout, first + places, rows) if len(places) else None
    return None


def _waiting(
    connection: Connection, chunk: Chunk, heads: Sequence[TailBatch], some: Sequence[ChunkPiece]
) -> list[ColumnSpan]:
    """Read from each batch the span of columns that contains its part of a slice."""
    by_layout: dict[int, list[TailBatch]] = {}
    for head in heads:
        by_layout.setdefault(head.layout.number, []).append(head)
    found = []
    for ones in by_layout.values():
        picked = [p for piece in some if (p := picked_of(ones[0].layout, piece)) is not None]
        if not picked:
            continue
        first = min(one.first for one in picked)
        span = max(one.first + one.span for one in picked) - first
        segment = AttemptSegment(chunk.attempt, chunk.low, chunk.high)
        layout = ones[0].layout
        rows = tail.read_columns(connection, chunk.run_id, segment, layout, first, span)
        read = {id_: data for id_, _, data in rows}
        found += [
            ColumnSpan(head.id, layout, head.steps, first, _columns(read[head.id], span))
            for head in ones
        ]
    return sorted(found, key=lambda waiting: waiting.id)


def _columns(data: memoryview, span: int) -> Floats:
    return np.frombuffer(data, "<f4").reshape(span, -1)


def inside(steps: Steps, chunk: Chunk) -> npt.NDArray[np.bool_]:
    """Return which steps are in a chunk."""
    return (steps >= chunk.low) & (steps < chunk.high)


def blocks(
    connection: Connection, chunk: Chunk, heads: Sequence[TailBatch], some: Sequence[ChunkPiece]
) -> Iterator[tuple[TilePlace, Steps, Floats]]:
    """Yield the place, measured steps and new values of every block of every piece."""
    waiting = _waiting(connection, chunk, heads, some)
    for piece in some:
        layouts = {w.layout.number: w.layout for w in waiting}
        picked = {
            number: one
            for number, layout in layouts.items()
            if (one := picked_of(layout, piece)) is not None
        }
        if not picked:
            continue
        values, steps = _matrix(picked, waiting, chunk, piece)
        for block, known in _measured(picked, waiting, chunk):
            start = block * tiles.BLOCK_LAYERS - piece.low
            place = TilePlace(chunk.run_id, chunk.attempt, piece.metric, block, chunk.shift)
            lanes = values[start : start + tiles.BLOCK_LAYERS]
            yield place, known, lanes[:, np.searchsorted(steps, known)]


def _measured(
    picked: dict[int, Picked], waiting: Sequence[ColumnSpan], chunk: Chunk
) -> Iterator[tuple[int, Steps]]:
    """Yield each block that a layout contains, and the steps of the batches with such a layout."""
    blocks = {number: one.rows // tiles.BLOCK_LAYERS for number, one in picked.items()}
    known: dict[frozenset[int], Steps] = {}
    for block in np.unique(np.concatenate(list(blocks.values()))).tolist():
        touching = frozenset(number for number, some in blocks.items() if (some == block).any())
        if touching not in known:
            known[touching] = steps_of([w for w in waiting if w.layout.number in touching], chunk)
        if len(known[touching]):
            yield block, known[touching]


def _matrix(
    picked: dict[int, Picked], waiting: Sequence[ColumnSpan], chunk: Chunk, piece: ChunkPiece
) -> tuple[Floats, Steps]:
    """Return the layers of a piece [L, N], later batches on top, and the steps [N]."""
    some = [w for w in waiting if w.layout.number in picked]
    steps = steps_of(some, chunk)
    num_rows = max(int(one.rows.max()) for one in picked.values()) + 1 - piece.low
    values = np.full((num_rows, len(steps)), ABSENT, np.float32)
    here = {n: Picked(p.layout, p.columns, p.rows - piece.low) for n, p in picked.items()}
    cuts = []
    for w in some:
        one = here[w.layout.number]
        start = one.first - w.first
        data = np.ascontiguousarray(w.columns[start : start + one.span])
        cuts.append(Cut(w.id, one, w.steps, data))
    lay_over(sorted(cuts, key=lambda cut: (cut.picked.layout.number, cut.id)), steps, values)
    return values, steps


def steps_of(waiting: Sequence[TailBatch | ColumnSpan], chunk: Chunk) -> Steps:
    """Return the distinct steps of a chunk that some batches have."""
    return distinct([w.steps for w in waiting], chunk.low, chunk.high)
