"""Chunks due for folding: complete chunks, tails that grow too large, idle runs."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

import numpy as np

from snc_service.store import tiles
from snc_service.store.sql.database.dialect import Connection, Row
from snc_service.store.sql.series import tail_summary
from snc_service.store.sql.series.tail import UnreadableSteps, unpack_steps
from snc_service.store.types import RunShare, Steps

log = logging.getLogger(__name__)

IDLE_SECONDS = 60.0  # a run without new batches for this long is folded completely
MOST_TAIL_BYTES = 32 * 2**20  # of one run, complete chunk or not; more for very wide runs
MANY_STEPS = 256  # steps of a complete chunk to fold at once; fewer wait for more
MOST_SHIFT = 10
NEW_STEPS, AGAIN_SECONDS = 64, 10.0  # after which a tail is read again in which nothing was due
ENOUGH = 64  # chunks of one look: more than are folded before the next
MEND_SECONDS = 3_600.0  # between looks for tails without a summary

# The one statement of a look. Every condition is about the row of the run.
_CANDIDATES = (
    "select run_id, interval_shift, tail_first, tail_steps, tail_bytes, last_step, "
    "case when state = 'active' and updated_at > ? then 0 else 1 end "
    "from run where tail_first is not null and (state <> 'active' or updated_at <= ? "
    "or tail_bytes > ? "  # a small number would be shifted within two bytes
    "or last_step - tail_first >= (cast(? as bigint) << coalesce(interval_shift, 0))) "
    "order by run_id"
)


@dataclass(frozen=True)
class Chunk:
    """The steps ``low <= step < high`` of one attempt, with batches in the tail."""

    run_id: int
    attempt: int
    shift: int
    low: int

    @property
    def high(self) -> int:
        """Return the step after the last."""
        return self.low + (tiles.TILE_STEPS << self.shift)


class DueChunks:
    """Looks for due chunks. It goes by the summaries of tails, and reads a tail where one is due.

    A look costs a row per run that may have something due. What it read of a tail in vain it reads
    again only after `NEW_STEPS` or `AGAIN_SECONDS`. For one thread at a time.
    """

    def __init__(self) -> None:
        self._in_vain: dict[int, _Candidate] = {}
        self._mends_at = -math.inf

    def look(
        self,
        connection: Connection,
        now: float,
        share: RunShare,
        after: int = 0,
        is_sound: Callable[[Chunk], bool] = lambda chunk: True,
    ) -> tuple[list[Chunk], list[int]]:
        """Return due chunks of this replica's runs, and runs whose summary is not true.

        The runs in a circle that begins behind number ``after``, until there are `ENOUGH` chunks.
        What is not sound does not count, or damaged chunks would keep others from their turn.
        """
        rows = connection.execute(
            _CANDIDATES,
            (now - IDLE_SECONDS, now - IDLE_SECONDS, MOST_TAIL_BYTES, _overdue(tiles.TILE_STEPS)),
        )
        candidates = [
            each
            for each in (_Candidate(now, *row) for row in rows)
            if share.has(each.run_id) and (each.is_everything or each.is_long)
        ]
        before, self._in_vain = self._in_vain, {}
        due: list[Chunk] = []
        untrue = []
        for each in sorted(candidates, key=lambda each: (each.run_id <= after, each.run_id)):
            known = before.get(each.run_id)
            if known is not None and (len(due) >= ENOUGH or each.is_like(known)):
                self._in_vain[each.run_id] = known
            elif len(due) < ENOUGH:
                found = _due_of(connection, each)
                sound = list(filter(is_sound, found or []))
                due += sound
                if found is None:
                    untrue.append(each.run_id)
                elif not sound:
                    self._in_vain[each.run_id] = each
        return due, untrue

    def unknown(self, connection: Connection, share: RunShare) -> list[int]:
        """Return runs without a summary that need one, at the first call and once an hour."""
        if time.monotonic() < self._mends_at + MEND_SECONDS:
            return []
        self._mends_at = time.monotonic()
        return [run_id for run_id in tail_summary.unknown(connection) if share.has(run_id)]


class _Candidate(NamedTuple):
    """A run that may have something due, with the summary of its tail at a look."""

    at: float  # of the look
    run_id: int
    shift: int | None
    first: int
    steps: int
    num_bytes: int
    last_step: int | None
    is_quiet: int

    @property
    def is_everything(self) -> bool:
        return bool(self.is_quiet) or _too_large(self.num_bytes, self.steps)

    @property
    def is_long(self) -> bool:
        width = tiles.TILE_STEPS << (self.shift or 0)
        return self.last_step is not None and self.last_step - self.first >= _overdue(width)

    def is_like(self, before: _Candidate) -> bool:
        """Return whether little came since a look, so that another would find as little."""
        return (
            self.is_everything == before.is_everything
            and self.first == before.first
            and before.steps <= self.steps < before.steps + NEW_STEPS
            and 0 <= self.at - before.at < AGAIN_SECONDS
        )


def _due_of(connection: Connection, run: _Candidate) -> list[Chunk] | None:
    """Return the due chunks of all attempts of a run; None: its tail is empty."""
    rows = connection.execute(
        "select attempt, step0, step1, n, steps, received_at from tail "
        "where run_id = ? order by attempt, id",
        (run.run_id,),
    ).fetchall()
    due: list[Chunk] = []
    for attempt, some in groupby(rows, key=itemgetter(0)):
        shift = due[0].shift if due else run.shift
        try:
            due += _due_chunks(run, attempt, shift, [row[1:] for row in some])
        except UnreadableSteps as error:  # until it is repaired; all others are folded
            log.error("an attempt of run number %d cannot be folded: %s", run.run_id, error)
    return due if rows else None


def _due_chunks(
    run: _Candidate, attempt: int, shift: int | None, rows: Sequence[Row]
) -> list[Chunk]:
    pieces = [unpack_steps(*row[:4]) for row in rows]
    shift = _interval_shift(pieces) if shift is None else shift
    width = tiles.TILE_STEPS << shift
    newest = max(int(steps[-1]) for steps in pieces)
    waiting: Counter[int] = Counter()
    since: dict[int, float] = {}
    for steps, row in zip(pieces, rows, strict=True):
        for number, count in zip(*np.unique(steps // width, return_counts=True), strict=True):
            waiting[int(number)] += int(count)
            since.setdefault(int(number), row[4])
    return [
        Chunk(run.run_id, attempt, shift, number * width)
        for number in sorted(waiting)
        if run.is_everything
        or (
            newest - number * width >= _overdue(width)
            and (waiting[number] >= MANY_STEPS or since[number] <= run.at - IDLE_SECONDS)
        )
    ]


def _overdue(width: int) -> int:
    """Return the steps from a chunk's start after which no more of it is expected.

    An eighth more than the chunk: other writers of the run may be slightly behind.
    """
    return width + width // 8


def _too_large(num_bytes: int, num_steps: int) -> bool:
    """Return whether a tail is above its bound, and above an eighth of a very wide chunk."""
    a_chunk = num_bytes * tiles.TILE_STEPS // num_steps
    return num_bytes > max(MOST_TAIL_BYTES, a_chunk // 8)


def _interval_shift(pieces: Sequence[Steps]) -> int:
    """Return the exponent of the largest power of two not above the usual step distance."""
    distances = np.diff(np.unique(np.concatenate(pieces)))
    usual = int(np.median(distances)) if len(distances) else 1
    return min(max(usual, 1).bit_length() - 1, MOST_SHIFT)
