"""Attempts: each begins where a job resumes at an older step; history shows the newest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from snc_service.store.sql.database.dialect import Connection, Row
from snc_service.store.sql.ingest.writers import Writer
from snc_service.wire import MAX_STEP, Batch


@dataclass(frozen=True)
class AttemptSegment:
    """The steps ``low <= step < high`` of one attempt."""

    attempt: int
    low: int
    high: int


class Placed(NamedTuple):
    """The place of a batch: its attempt, and that attempt's first step including the batch."""

    attempt: int
    first_step: int
    is_new: bool
    is_moved: bool  # the attempt is new, or begins earlier than stored


@dataclass
class Attempts:
    """A run's attempts and the first step of each."""

    SELECT: ClassVar = "select attempt, first_step from attempt where run_id = ?"
    UPSERT: ClassVar = (
        "insert into attempt (run_id, attempt, first_step, started_at) "
        "values (?, ?, ?, ?) on conflict (run_id, attempt) do update "
        "set first_step = excluded.first_step"
    )

    run_id: int
    first_steps: dict[int, int]

    @classmethod
    def load(cls, connection: Connection, run_id: int) -> Attempts:
        """Read them."""
        return cls(run_id, dict(connection.execute(cls.SELECT, (run_id,)).fetchall()))

    def rows(self, moved: Mapping[int, float]) -> list[Row]:
        """Return the rows of attempts that are new or begin earlier than stored."""
        return [(self.run_id, a, self.first_steps[a], at) for a, at in sorted(moved.items())]

    @property
    def newest(self) -> int:
        """Return the newest attempt's number, 0 before the first batch."""
        return max(self.first_steps, default=0)

    def placed(self, batch: Batch, writer: Writer) -> Placed:
        """Return the attempt of a batch, without changing anything.

        An attempt named by the batch is used as given. Otherwise a writer stays in its attempt.
        When its own steps go back, it joins the newest attempt, or begins one if it is in the
        newest already.
        """
        first = batch.steps[0]
        if batch.attempt is not None:
            attempt = batch.attempt
        elif writer.attempt is None:
            attempt = self.newest
        elif first > writer.last_step:
            attempt = writer.attempt
        else:
            attempt = self.newest + (writer.attempt == self.newest)
        known = self.first_steps.get(attempt)
        if known is None:
            return Placed(attempt, first, is_new=True, is_moved=True)
        return Placed(attempt, min(first, known), is_new=False, is_moved=first < known)

    def view(
        self, attempt: int | None, from_step: int, to_step: int | None
    ) -> list[AttemptSegment]:
        """Return the steps to read from each attempt, in the order of steps.

        By default each step comes from the newest attempt that had begun at or before it.
        """
        end = MAX_STEP + 1 if to_step is None else to_step + 1
        if attempt is not None:
            return [AttemptSegment(attempt, from_step, end)] if from_step < end else []
        segments: list[AttemptSegment] = []
        high = end
        for number in sorted(self.first_steps, reverse=True):
            low = max(self.first_steps[number], from_step)
            if low < high:
                segments.append(AttemptSegment(number, low, high))
                high = low
        return segments[::-1]
