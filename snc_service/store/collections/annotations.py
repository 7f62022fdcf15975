"""Annotations of a store: planned changes of a run."""

from __future__ import annotations

from snc_service.store.sql.database.dialect import Database
from snc_service.store.sql.records import (
    runs,
)
from snc_service.store.sql.records.annotations import annotations_of
from snc_service.store.types import RunBounds, RunFull
from snc_service.store.types.annotations import Annotation


class Annotations:
    """Annotations by run. Each method is one transaction."""

    def __init__(self, database: Database, bounds: RunBounds) -> None:
        self._database = database
        self._most = bounds.annotations

    def add(
        self, run: str, step: int, text: str, quiet_steps: int, *, author: str, now: float
    ) -> Annotation:
        """Mark a planned change (event ``annotation``). Raises `RunUnknown`, `RunFull`.

        For a step in the past it takes effect from the next batch on.
        """
        with self._database.write() as connection:
            run_id = runs.lock(connection, run)
            number = len(annotations_of(connection, run_id)) + 1
            if number > self._most:
                raise RunFull("annotations", "annotations", self._most, field="step")
            made = Annotation(number, step, quiet_steps, text, author, now)
            connection.execute(
                "insert into annotation (run_id, id, step, quiet_steps, text, author, at) "
                "values (?, ?, ?, ?, ?, ?, ?)",
                (run_id, number, step, quiet_steps, text, author, now),
            )
            runs.append_event(
                connection, run_id, run, "annotation", text, float(quiet_steps), now, step
            )
            return made

    def of_run(self, run: str) -> list[Annotation]:
        """Return every annotation of a run, the oldest first. Raises `RunUnknown`."""
        with self._database.read() as connection:
            return annotations_of(connection, runs.number(connection, run))
