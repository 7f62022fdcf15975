"""Replay: brings what follows from the rows of a run up to the newest row of its tail."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

import numpy as np

from snc_service.store.sql.database.dialect import Connection, Row
from snc_service.store.sql.ingest.derived import Derived, JudgedBy
from snc_service.store.sql.series import latest_values
from snc_service.store.sql.series.checksums import BLOCK_BYTES, BatchPlace, broken_blocks
from snc_service.store.sql.series.latest_values import Newest
from snc_service.store.sql.series.layouts import Indexes, LayerBook, StoredColumns
from snc_service.store.sql.series.tail import UnreadableSteps, unpack_steps
from snc_service.store.types import Detection, RunRows
from snc_service.wire import ABSENT, Batch

log = logging.getLogger(__name__)

# Parameters: the run, and the last row that is not read.
TAIL: Final = (
    "select id, attempt, layout, step0, step1, n, steps, crcs, v from tail "
    "where run_id = ? and id > ? order by id"
)


def replay(
    connection: Connection,
    book: LayerBook,
    derived: Derived,
    run: tuple[int, str, int],
    rows: Sequence[Row],
    detection: Detection | None,
) -> None:
    """Take in the ``rows`` of `TAIL` of a run (number, name, layers).

    Without ``detection`` only the newest values. A damaged value counts as not measured: the run
    must go on, and a read or a verification tells of the damage.
    """
    run_id, name, num_layers = run
    for row in rows:
        place, columns = BatchPlace(run_id, *row[:6]), book.columns(connection, run_id, row[2])
        batch = _as_sent(place, columns, *row[6:])
        if batch is not None and detection is not None and derived.terms is not None:
            if derived.rules is None:
                derived.rules = detection(None)
            terms, names = derived.terms, columns.table.table.names
            # An attempt begins at a checkpoint, so none of these rows is its first.
            found = RunRows(
                name, batch, names, place.attempt, False, terms.settings, terms.annotations
            )
            try:
                derived.rules.advance(found)
            except Exception:
                log.exception("the rules of run %s begin anew after batch %d", name, place.id)
                _begin_anew(derived, detection)
        if batch is not None:
            table = columns.table
            derived.renew(connection, run_id, num_layers, table, batch, place.attempt)
        derived.upto = place.id


def resume(derived: Derived, detection: Detection, state: bytes, run: str) -> None:
    """Let the rules go on from a stored state, or begin anew if it cannot be read.

    Whatever broke it, the run must go on, and so must the runs whose batches are stored with its.
    """
    try:
        derived.rules = detection(state)
    except Exception:
        log.exception("the rules of run %s begin anew: their state is damaged", run)
        _begin_anew(derived, detection)


def resume_terms(derived: Derived, settings: str, number: int, now: JudgedBy, run: str) -> None:
    """Let rows be judged by the terms of a checkpoint, or by those of ``now`` if it is damaged."""
    try:
        derived.terms = JudgedBy.stored(settings, number, now.annotations)
    except ValueError:  # or of a rule that a release no longer has
        log.exception("rows of run %s are judged again by newer rule settings", run)
        derived.terms, derived.is_due = now, True


def _begin_anew(derived: Derived, detection: Detection) -> None:
    derived.rules = detection(None)
    derived.is_due = True  # the next reader finds a state again


def _as_sent(
    place: BatchPlace, columns: StoredColumns, packed: bytes | None, crcs: bytes | None, data: bytes
) -> Batch | None:
    """Return the batch that is stored in a row, as far as the rules see it; None: unreadable."""
    num_metrics, num_layers = len(columns.metrics), len(columns.table.layers)
    num_scalars, n = len(columns.scalars), place.n
    width = num_metrics * num_layers + num_scalars
    try:
        steps = unpack_steps(place.step0, place.step1, n, packed)
    except UnreadableSteps:
        log.exception("batch %d of run number %d is skipped", place.id, place.run_id)
        return None
    if len(data) != 4 * width * n:
        log.error("batch %d of run number %d is skipped: it is damaged", place.id, place.run_id)
        return None
    values = np.frombuffer(data, "<f4")
    count = -(-len(data) // BLOCK_BYTES)
    broken = [] if crcs is None else broken_blocks(place, packed, 0, data, crcs, count)
    if broken:
        values = values.copy()
        for block in broken:
            values[block * BLOCK_BYTES // 4 : (block + 1) * BLOCK_BYTES // 4] = ABSENT
    size = num_metrics * num_layers * n
    by_layer = values[:size].reshape(num_metrics, num_layers, n)
    return Batch(
        writer="replay",
        seq=0,
        layers=columns.table.table.hash,
        steps=tuple(steps.tolist()),
        metrics=columns.metrics,
        values=np.ascontiguousarray(by_layer.transpose(0, 2, 1)),
        scalars=columns.scalars,
        scalar_values=values[size:].reshape(num_scalars, n),
    )


def newest_values(
    connection: Connection, book: LayerBook, run_id: int, num_layers: int
) -> list[tuple[Indexes, Newest]]:
    """Return the newest values of every layer table that has some, in the order of the tables."""
    row = connection.execute("select upto from checkpoint where run_id = ?", (run_id,)).fetchone()
    if row is None:
        return []
    derived = Derived(upto=row[0], latest=latest_values.load(connection, run_id))
    rows = connection.execute(TAIL, (run_id, derived.upto)).fetchall()
    replay(connection, book, derived, (run_id, "", num_layers), rows, None)
    return [derived.latest[number] for number in sorted(derived.latest)]
