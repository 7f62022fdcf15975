"""Damage: which run, layers and steps stored values are of that do not match their checksum."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from snc_service.store import tiles
from snc_service.store.sql.database.dialect import Connection
from snc_service.store.sql.series.checksums import BLOCK_BYTES, BatchPlace, TileKey
from snc_service.store.sql.series.layouts import Layout
from snc_service.store.types import StoreDamaged


def of_tile(connection: Connection, key: TileKey, step0: int, step1: int) -> StoreDamaged:
    """Return the error about a tile or rollup."""
    run_id, attempt, metric, level, block = key
    row = connection.execute(
        "select kind, name from metric where run_id = ? and metric = ?", (run_id, metric)
    ).fetchone()
    kind, name = row or ("layer", f"metric {metric}")
    low = block * tiles.BLOCK_LAYERS if isinstance(block, int) else 0
    ends = range(low, low + tiles.BLOCK_LAYERS) if kind == "layer" else range(0)
    layers = _layers(connection, run_id, ends)
    return StoreDamaged(
        run=_run(connection, run_id),
        place=f"tile {attempt}/{metric}/{level}/{block}/{step0}",
        metrics=(name,),
        layers=_ends(layers),
        num_layers=len(layers),
        steps=whole_steps(step0, step1),
        rollup=bool(level),
    )


def of_steps(run: str, steps: tuple[int, int]) -> StoreDamaged:
    """Return the error about a row whose steps cannot be read; only a verification says which."""
    return StoreDamaged(
        run=run,
        place=f"steps {steps[0]} to {steps[1]}",
        metrics=(),
        layers=(),
        num_layers=0,
        steps=steps,
    )


def of_batch(
    connection: Connection, place: BatchPlace, layout: Layout | None, blocks: Collection[int]
) -> StoreDamaged:
    """Return the error about blocks of a batch in the tail; ``layout`` None: it has none."""
    names, indexes = (
        _columns(layout, place.n, blocks)
        if layout and isinstance(place.n, int) and place.n > 0
        else ([], set())
    )
    layers = _layers(connection, place.run_id, indexes)
    return StoreDamaged(
        run=_run(connection, place.run_id),
        place=f"batch {place.id}",
        metrics=tuple(names),
        layers=_ends(layers),
        num_layers=len(layers),
        steps=whole_steps(place.step0, place.step1),
    )


def _columns(layout: Layout, n: int, blocks: Collection[int]) -> tuple[list[str], set[int]]:
    """Return the metrics and scalars, and the run's indexes of the layers, in some blocks."""
    wide, num_columns = len(layout.layers), len(layout.metrics) * len(layout.layers)
    names: dict[str, None] = {}
    indexes: set[int] = set()
    for block in blocks:
        first = block * BLOCK_BYTES // (4 * n)
        end = -(-(block + 1) * BLOCK_BYTES // (4 * n))
        for column in range(first, min(end, num_columns + len(layout.scalars))):
            if column < num_columns:
                names[layout.metrics[column // wide]] = None
                indexes.add(int(layout.layers[column % wide]))
            else:
                names[layout.scalars[column - num_columns]] = None
    return list(names), indexes


def whole_steps(first: Any, last: Any) -> tuple[int, int]:
    """Return steps that can be shown, 0 for what is none: SQLite stores the types of a row too."""
    return (first if isinstance(first, int) else 0, last if isinstance(last, int) else 0)


def _run(connection: Connection, run_id: int) -> str:
    row = connection.execute("select run from run where run_id = ?", (run_id,)).fetchone()
    return f"number {run_id}" if row is None else str(row[0])


def _layers(connection: Connection, run_id: int, indexes: Collection[int]) -> list[str]:
    """Return the names of all layers from the first to the last of some, in model order."""
    if not indexes:
        return []
    rows = connection.execute(
        "select name from layer where run_id = ? and layer >= ? and layer <= ? order by layer",
        (run_id, min(indexes), max(indexes)),
    ).fetchall()
    return [name for (name,) in rows]


def _ends(names: list[str]) -> tuple[str, ...]:
    return (names[0], names[-1]) if names else ()
