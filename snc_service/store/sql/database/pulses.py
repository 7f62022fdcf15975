"""Pulses of runs that an earlier release wrote: the first line of what their rules remember."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

SINCE: Final = 7  # the version of the tables that have them
LINE_BYTES: Final = 65_536  # at most; the layers after the line may be megabytes
# What earlier stores hold.
BEFORE: Final = f"select run_id, substr(v, 1, {LINE_BYTES}) from checkpoint order by run_id"
UPDATE: Final = "update run set pulse = ? where run_id = ?"


def rows(states: Iterable[Sequence[Any]]) -> Iterator[tuple[bytes, int]]:
    """Return the parameters of `UPDATE`, for rows of `BEFORE`."""
    for run_id, state in states:
        yield bytes(state).partition(b"\n")[0], run_id
