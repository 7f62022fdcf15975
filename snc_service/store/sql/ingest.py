"""Ingest: submissions of many runs in one transaction, each stored once or refused alone."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from snc_service.store.protocol import (
    Advance,
    Event,
    LayerTableMismatch,
    Outcome,
    Rows,
    RunUnknown,
    StoredEvent,
    StoreError,
    Submission,
)
from snc_service.store.sql import commands, events, newest, policies, runs, writers
from snc_service.store.sql.attempts import Attempts
from snc_service.store.sql.database import Connection, savepoint
from snc_service.store.sql.layers import Indexes, KnownTable, LayerBook
from snc_service.store.sql.tail import pack_steps
from snc_service.wire import Batch, absent

MOST = 2**53 - 1  # counters stop here rather than overflow what engines and JSON keep exact


@dataclass
class RunAtWork:
    """One run while a group of its batches is stored: read once, written once."""

    run_id: int
    run: str
    state: str
    updated_at: float
    last_step: int | None
    num_layers: int
    breaches: int
    rescales: int
    guard_vetoes: int
    dropped_values: int
    overhead: float | None
    next_event: int
    next_tail: int
    policy_version: int
    attempts: Attempts
    rule_state: bytes | None
    latest: dict[int, tuple[Indexes, newest.Newest]]
    touched: frozenset[int] = frozenset()  # layer tables with newer values
    changed: bool = False
    state_changed: bool = False


def ingest(
    connection: Connection, book: LayerBook, items: Sequence[Submission], advance: Advance
) -> list[Outcome]:
    """Store ``items`` inside the caller's transaction; outcomes are in the order of the items.

    Runs are locked in the order of their numbers, so that two processes cannot wait for each other
    in a circle.
    """
    outcomes: dict[int, Outcome] = {}
    by_run: dict[str, list[int]] = {}
    for place, item in enumerate(items):
        by_run.setdefault(item.run, []).append(place)
    groups: dict[int, list[int]] = {}
    for run, places in by_run.items():
        try:
            groups[runs.number(connection, run)] = places
        except RunUnknown as error:
            outcomes |= dict.fromkeys(places, Outcome(error=error))
    for run_id in sorted(groups):
        try:
            at_work = _load(connection, run_id)
        except RunUnknown as error:
            outcomes |= dict.fromkeys(groups[run_id], Outcome(error=error))
            continue
        for place in groups[run_id]:
            at_work, outcomes[place] = _item(connection, book, at_work, items[place], advance)
        if at_work.changed:
            _save(connection, at_work)
        _hand_over_commands(connection, run_id, {p: items[p] for p in groups[run_id]}, outcomes)
    return [outcomes[place] for place in range(len(items))]


def _hand_over_commands(
    connection: Connection,
    run_id: int,
    items: Mapping[int, Submission],
    outcomes: dict[int, Outcome],
) -> None:
    """Put the commands that wait into the outcomes, less those that the job says it has."""
    waiting = commands.waiting(connection, run_id)
    if not waiting:
        return
    has = max(item.commands_seen for item in items.values())
    if has >= waiting[0].id:
        now = max(item.received_at for item in items.values())
        commands.seen(connection, run_id, has, now)
    left = tuple(command for command in waiting if command.id > has)
    for place in items:
        outcomes[place] = dataclasses.replace(outcomes[place], commands=left)


def _item(
    connection: Connection,
    book: LayerBook,
    before: RunAtWork,
    item: Submission,
    advance: Advance,
) -> tuple[RunAtWork, Outcome]:
    """Store one submission, or leave everything as it was before it."""
    after = copy.copy(before)
    after.attempts = before.attempts.copy()
    after.latest = dict(before.latest)
    try:
        with savepoint(connection):
            outcome = _store(connection, book, after, item, advance)
    except StoreError as error:
        return before, Outcome(error=error, policy_version=before.policy_version)
    return after, outcome


def _store(
    connection: Connection, book: LayerBook, work: RunAtWork, item: Submission, advance: Advance
) -> Outcome:
    batch = item.batch
    writer = writers.load(connection, work.run_id, batch.writer)
    if writer.has_stored(batch, item.crc):
        return Outcome(duplicate=True, policy_version=work.policy_version)
    table = book.table(connection, work.run_id, batch.layers)
    if batch.metrics and batch.num_layers != len(table.layers):
        raise LayerTableMismatch(
            f"values must cover the {len(table.layers)} layers of table {batch.layers}, "
            f"got {batch.num_layers}"
        )
    attempt, new_attempt = work.attempts.place(connection, batch, writer, item.received_at)
    happened = _own_events(work, batch, attempt, new_attempt)
    writers.save(connection, work.run_id, writer.after(batch, item.crc, attempt))
    _append(connection, book, work, table, item, attempt)
    rows = Rows(work.run, batch, table.table.names, attempt, new_attempt)
    work.rule_state, found, work.state_changed = _judged(advance, work, rows)
    stored = _append_events(connection, work, happened + found, item.received_at)
    _count(work, batch)
    _renew(work, table, batch, attempt)
    work.updated_at = item.received_at  # also where a clock that was set right went back
    work.state = "active" if work.state == "silent" else work.state
    work.changed = True
    return Outcome(events=tuple(stored), policy_version=work.policy_version)


def _own_events(work: RunAtWork, batch: Batch, attempt: int, new_attempt: bool) -> list[Event]:
    """Return what the store itself has to say about a batch."""
    happened = []
    first = batch.steps[0]
    if new_attempt and work.last_step is not None and first <= work.last_step:
        message = f"steps went back from {work.last_step} to {first}: attempt {attempt} starts"
        happened.append(
            Event(
                first, "rewound", "info", message, value=float(first), limit=float(work.last_step)
            )
        )
    if batch.dropped:
        message = f"writer {batch.writer} lost {batch.dropped} values before step {first}"
        happened.append(Event(first, "dropped", "warning", message, value=float(batch.dropped)))
    return happened


def _append(
    connection: Connection,
    book: LayerBook,
    work: RunAtWork,
    table: KnownTable,
    item: Submission,
    attempt: int,
) -> None:
    """Append the batch to the tail: its columns one after the other, time the fast axis."""
    batch = item.batch
    layout = book.layout_number(connection, work.run_id, table.number, batch)
    columns = batch.values.transpose(0, 2, 1).astype("<f4").tobytes()
    scalars = batch.scalar_values.astype("<f4").tobytes() if batch.scalars else b""
    connection.execute(
        "insert into tail (run_id, id, attempt, layout, step0, step1, n, steps, received_at, "
        "size, v) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            work.run_id,
            work.next_tail,
            attempt,
            layout,
            batch.steps[0],
            batch.steps[-1],
            len(batch.steps),
            pack_steps(np.array(batch.steps, np.int64)),
            item.received_at,
            len(columns) + len(scalars),
            columns + scalars,
        ),
    )
    work.next_tail += 1


def _judged(
    advance: Advance, work: RunAtWork, rows: Rows
) -> tuple[bytes | None, list[Event], bool]:
    """Run the rules over the new rows; whatever goes wrong there refuses this batch only."""
    try:
        state, found = advance(work.rule_state, rows)
    except Exception as error:  # the other 63 batches of the group must not fail with it
        raise StoreError(f"detection failed on run {rows.run}: {error!r}") from error
    return state, list(found), work.state_changed or state != work.rule_state


def _append_events(
    connection: Connection, work: RunAtWork, new: list[Event], at: float
) -> list[StoredEvent]:
    if not new:
        return []
    stored = events.append(connection, work.run_id, work.run, new, at, work.next_event)
    work.next_event += len(new)
    return stored


def _count(work: RunAtWork, batch: Batch) -> None:
    """Add the batch to the run's counters. Comparisons with NaN are false, so ABSENT counts not."""
    sigma, threshold, scale = (batch.metric(m) for m in ("sigma", "threshold", "scale"))
    if sigma is not None and threshold is not None:
        work.breaches += int(np.count_nonzero(sigma > threshold))
    if scale is not None:
        work.rescales += int(np.count_nonzero(scale < 1))
    vetoes = batch.scalar("guard_vetoes")
    if vetoes is not None:
        work.guard_vetoes += int(np.clip(vetoes[np.isfinite(vetoes)], 0, 2**31).sum())
    work.dropped_values = min(work.dropped_values + batch.dropped, MOST)
    work.last_step = max(batch.steps[-1], -1 if work.last_step is None else work.last_step)
    work.overhead = _overhead(batch, work.overhead)


def _overhead(batch: Batch, before: float | None) -> float | None:
    ours, whole = batch.scalar("callback_seconds"), batch.scalar("step_seconds")
    if ours is None or whole is None:
        return before
    usable = np.isfinite(ours) & np.isfinite(whole) & (whole > 0)
    if not usable.any():
        return before
    last = int(np.flatnonzero(usable)[-1])
    return float(ours[last]) / float(whole[last])


def _renew(work: RunAtWork, table: KnownTable, batch: Batch, attempt: int) -> None:
    if not batch.metrics or not batch.num_layers:
        return
    _, old = work.latest.get(table.number, (None, newest.Newest.empty(len(table.layers))))
    new = old.overlaid(newest.of_batch(batch, attempt), slice(None))
    work.latest[table.number] = (table.layers, new)
    work.touched |= {table.number}


def _load(connection: Connection, run_id: int) -> RunAtWork:
    """Lock a run and read what its batches change. Raises `RunUnknown`."""
    row = connection.execute(
        "select run, state, updated_at, last_step, layers, breaches, rescales, guard_vetoes, "
        "dropped_values, overhead, next_event, next_tail from run where run_id = ?"
        f"{connection.for_update}",
        (run_id,),
    ).fetchone()
    if row is None:
        raise RunUnknown("the run was deleted")
    state = connection.execute("select v from rule_state where run_id = ?", (run_id,)).fetchone()
    fields = [
        run_id,
        *row,
        policies.version_of_run(connection, run_id),
        Attempts.load(connection, run_id),
        None if state is None else bytes(state[0]),
        newest.load(connection, run_id),
    ]
    return RunAtWork(*fields)


def _save(connection: Connection, work: RunAtWork) -> None:
    for table_id in sorted(work.touched):
        newest.save(connection, work.run_id, table_id, work.latest[table_id][1])
    if work.state_changed:
        connection.execute(
            "insert into rule_state (run_id, v) values (?, ?) "
            "on conflict (run_id) do update set v = excluded.v",
            (work.run_id, work.rule_state),
        )
    worst_ratio, worst_layer, nonfinite_layers = _worst(connection, work)
    connection.execute(
        "update run set state = ?, updated_at = ?, last_step = ?, breaches = ?, rescales = ?, "
        "guard_vetoes = ?, dropped_values = ?, overhead = ?, next_event = ?, next_tail = ?, "
        "attempt = ?, worst_ratio = ?, worst_layer = ?, nonfinite_layers = ?, "
        "version = version + 1 where run_id = ?",
        (
            work.state,
            work.updated_at,
            work.last_step,
            work.breaches,
            work.rescales,
            work.guard_vetoes,
            work.dropped_values,
            work.overhead,
            work.next_event,
            work.next_tail,
            work.attempts.newest,
            worst_ratio,
            worst_layer,
            nonfinite_layers,
            work.run_id,
        ),
    )


def _worst(connection: Connection, work: RunAtWork) -> tuple[float | None, str | None, int]:
    """Return the largest newest ratio, its layer, and how many layers' sigma is not finite."""
    now = newest.merged(work.num_layers, work.latest.values())
    sigma, threshold = now.row("sigma"), now.row("threshold")
    if sigma is None:
        return None, None, 0
    num_nonfinite = int(np.count_nonzero(~np.isfinite(sigma) & ~absent(sigma)))
    if threshold is None:
        return None, None, num_nonfinite
    usable = np.isfinite(sigma) & np.isfinite(threshold) & (threshold > 0)
    if not usable.any():
        return None, None, num_nonfinite
    ratio = np.full(len(sigma), -np.inf)
    np.divide(sigma, threshold, out=ratio, where=usable, dtype=np.float64)
    worst = int(np.argmax(ratio))
    (layer,) = connection.execute(
        "select name from layer where run_id = ? and layer = ?", (work.run_id, worst)
    ).fetchone()
    return float(ratio[worst]), str(layer), num_nonfinite
