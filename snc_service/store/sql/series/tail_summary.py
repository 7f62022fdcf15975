"""The summary of a run's tail in the run's own row: nobody has to go through a tail to judge it.

``tail_first`` is the first step of any row in the tail, null for an empty tail; ``tail_steps`` and
``tail_bytes`` are sums over its rows. Who adds or takes rows changes them in the same transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from snc_service.store.sql.database.dialect import Connection, Row

# Relative to what is stored: others may have folded in between. See `growth` for the parameters.
GROWS: Final = (
    "tail_first = case when tail_first < ? then tail_first else ? end, "
    "tail_steps = tail_steps + ?, tail_bytes = tail_bytes + ?"
)
# A tail that its summary does not mention would never be folded, whatever went wrong.
_UNKNOWN: Final = (
    "select run_id from run where tail_first is null and next_tail > 1 "
    "and exists (select 1 from tail where tail.run_id = run.run_id)"
)


def growth(rows: Sequence[Row]) -> tuple[int, int, int, int]:
    """Return the parameters of `GROWS` for new rows of the tail, at least one."""
    first = min(int(row[4]) for row in rows)
    return first, first, sum(int(row[6]) for row in rows), sum(int(row[9]) for row in rows)


def summarise(connection: Connection, run_id: int) -> None:
    """Summarise a tail anew, after rows left it; the caller holds the lock of the run."""
    first, steps, size = connection.execute(
        "select min(step0), coalesce(sum(n), 0), coalesce(sum(size), 0) from tail where run_id = ?",
        (run_id,),
    ).fetchone()
    connection.execute(
        "update run set tail_first = ?, tail_steps = ?, tail_bytes = ? where run_id = ?",
        (first, int(steps), int(size), run_id),
    )


def unknown(connection: Connection) -> list[int]:
    """Return the runs with a tail and no summary. Cost: one look at an index per run without."""
    return [int(run_id) for (run_id,) in connection.execute(_UNKNOWN)]
