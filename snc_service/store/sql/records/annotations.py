"""Annotations as rows: planned changes of a run, numbered per run."""

from __future__ import annotations

from snc_service.store.sql.database.dialect import Connection
from snc_service.store.types.annotations import Annotation

ANNOTATIONS = (
    "select id, step, quiet_steps, text, author, at from annotation where run_id = ? order by id"
)


def annotations_of(connection: Connection, run_id: int) -> list[Annotation]:
    """Return a run's annotations, the oldest first."""
    return [Annotation(*row) for row in connection.execute(ANNOTATIONS, (run_id,))]
