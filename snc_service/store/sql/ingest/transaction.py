"""Ingest: submissions of many runs in one transaction, each stored once or refused alone.

All checks that may refuse a batch come before any change for it, so a refusal leaves no trace.
Changes are collected in memory and written at the end for all runs together.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from snc_service.store.sql.database.dialect import Connection, Mark
from snc_service.store.sql.ingest import run_cache, writers
from snc_service.store.sql.ingest.run_cache import RunAtWork
from snc_service.store.sql.ingest.run_memory import RunMemory
from snc_service.store.sql.ingest.writers import Writer
from snc_service.store.sql.records import commands, events
from snc_service.store.sql.series import checksums
from snc_service.store.sql.series.attempts import Placed
from snc_service.store.sql.series.checksums import BatchPlace
from snc_service.store.sql.series.layouts import KnownTable, LayerBook
from snc_service.store.sql.series.tail import pack_steps
from snc_service.store.types import (
    Detection,
    Event,
    LayerTableMismatch,
    Outcome,
    RunFull,
    RunRows,
    StoredEvent,
    StoreError,
    Submission,
    Together,
)
from snc_service.wire import Batch, absent
from snc_service.wire.checks import MAX_WHOLE

log = logging.getLogger(__name__)


def ingest(
    connection: Connection,
    book: LayerBook,
    memory: RunMemory,
    items: Mapping[int, Submission],
    rules: tuple[Detection, Together],
    refused: dict[int, StoreError],
) -> tuple[dict[int, Outcome], list[RunAtWork], Mark | None]:
    """Store ``items`` by their places inside the caller's transaction, except those ``refused``.

    Returns the outcomes, and the entries for ``memory`` to keep after the commit. Where the rules
    fail on a batch, it is added to ``refused`` and nothing of its run is stored: those items have
    no outcome, and need another transaction. After `RunGone` the caller must undo all and start
    again.
    """
    by_run: dict[str, list[int]] = {}
    for place, item in items.items():
        by_run.setdefault(item.run, []).append(place)
    mark = connection.mark()
    known, era = memory.take(by_run), memory.era(mark)
    works = run_cache.locked(connection, book, known, era, by_run, rules[0])
    locked = set(works)
    outcomes: dict[int, Outcome] = {}
    for run, places in by_run.items():
        if run not in works:
            outcomes |= dict.fromkeys(places, Outcome(error=run_cache.unknown(run)))
    for wave in _waves([by_run[run] for run in works]):
        of_wave = {place: items[place] for place in wave if items[place].run in works}
        outcomes |= _store(connection, book, works, of_wave, rules, refused)
    for run in locked - works.keys():  # the rules have failed on it
        for place in by_run[run]:
            outcomes.pop(place, None)
    run_cache.save(connection, works.values())
    for run, work in works.items():
        if work.commands_wait:
            _hand_over_commands(connection, work, {p: items[p] for p in by_run[run]}, outcomes)
        work.settled()
    return outcomes, list(works.values()), mark


def _hand_over_commands(
    connection: Connection,
    work: RunAtWork,
    items: Mapping[int, Submission],
    outcomes: dict[int, Outcome],
) -> None:
    """Add the waiting commands to the outcomes, except those that the job has received."""
    waiting = commands.waiting(connection, work.run_id)
    has = max(item.commands_seen for item in items.values())
    if waiting and has >= waiting[0].id:
        now = max(item.received_at for item in items.values())
        commands.seen(connection, work.run_id, has, now)
    left = tuple(command for command in waiting if command.id > has)
    work.commands_wait = bool(left)
    for place in items if left else ():
        outcomes[place] = dataclasses.replace(outcomes[place], commands=left)


def _waves(places: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Yield the places in turns: the first one of each run, then the second ones, and so on."""
    for turn in range(max(map(len, places), default=0)):
        yield [of_run[turn] for of_run in places if turn < len(of_run)]


@dataclass(frozen=True, eq=False)
class _Accepted:
    """A submission that cannot be refused any more; the rules have not seen it yet."""

    place: int
    item: Submission
    work: RunAtWork
    writer: Writer
    table: KnownTable
    placed: Placed
    layout: int
    rows: RunRows


def _store(
    connection: Connection,
    book: LayerBook,
    works: dict[str, RunAtWork],
    items: Mapping[int, Submission],
    rules: tuple[Detection, Together],
    refused: dict[int, StoreError],
) -> dict[int, Outcome]:
    """Store submissions by their places, of each run at most one; return their outcomes.

    A run whose rules fail is taken out of ``works``, and its submission is added to ``refused``.
    """
    outcomes: dict[int, Outcome] = {}
    accepted: list[_Accepted] = []
    for place, item in items.items():
        work = works[item.run]
        try:
            if place in refused:
                raise refused[place]
            found = _checked(connection, book, work, item, place)
        except StoreError as error:
            outcomes[place] = Outcome(error=error, policy_version=work.policy_version)
            continue
        if found is None:
            outcomes[place] = Outcome(duplicate=True, policy_version=work.policy_version)
        else:
            accepted.append(found)
    for each, events_ in zip(accepted, _judged(rules, accepted), strict=True):
        if isinstance(events_, Exception):  # what the rules remember of the run is unknown
            refused[each.place] = _failed(each, events_)
            del works[each.item.run]
        else:
            outcomes[each.place] = _stored(connection, each, events_)
    return outcomes


def _checked(
    connection: Connection, book: LayerBook, work: RunAtWork, item: Submission, place: int
) -> _Accepted | None:
    """Return a submission that can be stored, None if it is stored already.

    Raises `StoreError`: nothing was changed then.
    """
    batch = item.batch
    writer = work.writer(connection, batch.writer)
    if writer.has_stored(batch, item.crc):
        return None
    if writer.is_new:
        writers.check_room(connection, work.run_id, book.bounds.writers)
    table = work.table(connection, book, batch.layers)
    if batch.metrics and batch.num_layers != len(table.layers):
        raise LayerTableMismatch(
            f"values must cover the {len(table.layers)} layers of table {batch.layers}, "
            f"got {batch.num_layers}"
        )
    placed = work.attempts.placed(batch, writer)
    if placed.is_new and len(work.attempts.first_steps) >= book.bounds.attempts:
        raise RunFull("attempts", "attempts", book.bounds.attempts, field="steps")
    rows = RunRows(
        work.run,
        batch,
        table.table.names,
        placed.attempt,
        placed.is_new,
        work.rules.content,
        work.terms.annotations,
    )
    layout = work.layout(connection, book, table.number, batch)
    return _Accepted(place, item, work, writer, table, placed, layout, rows)


def _stored(connection: Connection, accepted: _Accepted, found: Sequence[Event]) -> Outcome:
    """Store a submission in which the rules have ``found`` these events."""
    item, work, placed = accepted.item, accepted.work, accepted.placed
    batch, table = item.batch, accepted.table
    version = work.rules_version
    happened = _own_events(work, batch, placed)
    overlap = work.overlap.event(
        connection, work.run_id, batch.writer, table.table.names, batch.steps[0]
    )
    happened += [] if overlap is None else [overlap]
    happened += [dataclasses.replace(event, rules_version=version) for event in found]
    work.attempts.first_steps[placed.attempt] = placed.first_step
    if placed.is_moved:
        work.moved_attempts.setdefault(placed.attempt, item.received_at)
    work.writers[batch.writer] = accepted.writer.after(batch, item.crc, placed.attempt)
    work.moved_writers.add(batch.writer)
    work.derived.is_due |= placed.is_new  # replay begins no attempt
    _append(work, accepted.layout, item, placed.attempt)
    stored = _numbered(work, happened, item.received_at)
    _count(work, batch)
    work.derived.renew(connection, work.run_id, work.layers, table, batch, placed.attempt)
    work.updated_at = item.received_at  # also backwards, after a clock was corrected
    work.state = "active" if work.state == "silent" else work.state
    return Outcome(events=tuple(stored), policy_version=work.policy_version)


def _own_events(work: RunAtWork, batch: Batch, placed: Placed) -> list[Event]:
    """Return the store's own events about a batch."""
    happened = []
    first = batch.steps[0]
    if placed.is_new and work.last_step is not None and first <= work.last_step:
        message = (
            f"steps went back from {work.last_step} to {first}: attempt {placed.attempt} starts"
        )
        happened.append(
            Event(
                first, "rewound", "info", message, value=float(first), limit=float(work.last_step)
            )
        )
    if batch.dropped:
        message = f"writer {batch.writer} lost {batch.dropped} values before step {first}"
        happened.append(Event(first, "dropped", "warning", message, value=float(batch.dropped)))
    return happened


def _append(work: RunAtWork, layout: int, item: Submission, attempt: int) -> None:
    """Append the batch to the tail: one column after the other, with steps contiguous."""
    batch = item.batch
    num_steps, data = len(batch.steps), _columns(batch)
    ends, steps = (batch.steps[0], batch.steps[-1], num_steps), pack_steps(batch.steps)
    place = BatchPlace(work.run_id, work.next_tail, attempt, layout, *ends)
    crcs = checksums.of_batch(place, steps, data)
    work.tail.append((*place, steps, item.received_at, 4 * batch.num_values, data, crcs))
    work.derived.upto = work.next_tail
    work.next_tail += 1


def _columns(batch: Batch) -> bytes | memoryview:
    """Return the values as the tail has them, float32 [columns, steps]."""
    scalars = batch.scalar_values if batch.scalars else np.empty(0, np.float32)
    if len(batch.steps) == 1:  # in that order already
        return batch.values.astype("<f4", copy=False).tobytes() + scalars.tobytes()
    columns, size = np.empty(batch.num_values, "<f4"), batch.values.size
    by_layer = batch.values.transpose(0, 2, 1)
    columns[:size].reshape(by_layer.shape)[...] = by_layer
    columns[size:] = scalars.ravel()
    return columns.data


def _judged(
    rules: tuple[Detection, Together], accepted: Sequence[_Accepted]
) -> Sequence[list[Event] | Exception]:
    """Run the rules over the new rows of all runs; return their events, or why they failed."""
    detection, together = rules
    for each in accepted:
        if each.work.derived.rules is None:
            each.work.derived.rules = detection(None)
    return together([(each.work.derived.rules, each.rows) for each in accepted])


def _failed(accepted: _Accepted, error: Exception) -> StoreError:
    """Return the refusal of a batch on which the rules failed."""
    refusal = StoreError(f"detection failed on run {accepted.rows.run}: {error!r}")
    log.error("%s", refusal, exc_info=error)
    return refusal


def _numbered(work: RunAtWork, new: Sequence[Event], at: float) -> list[StoredEvent]:
    stored = events.numbered(work.run, new, at, work.next_event)
    work.next_event += len(stored)
    work.events += stored
    return stored


def _count(work: RunAtWork, batch: Batch) -> None:
    """Add the batch to the run's counters. Comparisons with NaN are false, so ABSENT is skipped."""
    sigma, threshold, scale = (batch.metric(m) for m in ("sigma", "threshold", "scale"))
    if sigma is not None and threshold is not None:
        work.breaches += int(np.count_nonzero(sigma > threshold))
    if scale is not None:
        work.rescales += int(np.count_nonzero(scale < 1))
    vetoes = batch.scalar("guard_vetoes")
    if vetoes is not None:
        work.guard_vetoes += int(np.clip(vetoes[np.isfinite(vetoes)], 0, 2**31).sum())
    # What engines and JSON keep exact: a counter stops there and does not overflow.
    work.dropped_values = min(work.dropped_values + batch.dropped, MAX_WHOLE)
    work.last_step = max(batch.steps[-1], -1 if work.last_step is None else work.last_step)
    work.overhead = _overhead(batch, work.overhead)
    _note_loss(work, batch)


def _note_loss(work: RunAtWork, batch: Batch) -> None:
    """Keep the newest loss that the batch reports."""
    loss = batch.scalar("loss")
    if loss is None:
        return
    reported = loss[~absent(loss)]
    if not len(reported):
        return
    newest = float(reported[-1])
    finite = math.isfinite(newest)
    work.loss, work.nonfinite_loss = (newest, 0) if finite else (None, 1)


def _overhead(batch: Batch, before: float | None) -> float | None:
    ours, whole = batch.scalar("callback_seconds"), batch.scalar("step_seconds")
    if ours is None or whole is None:
        return before
    usable = np.isfinite(ours) & np.isfinite(whole) & (whole > 0)
    if not usable.any():
        return before
    last = int(np.flatnonzero(usable)[-1])
    return float(ours[last]) / float(whole[last])
