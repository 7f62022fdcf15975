"""Reads about one run: from a standby that has all that the primary has of it, else from there."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from snc_service.store.sql.database.dialect import Connection, Database
from snc_service.store.sql.records import runs
from snc_service.store.types import RunUnknown, StoreUnavailable

AWAY_SECONDS: Final = 10.0  # for which a standby is not asked that could not be reached

log = logging.getLogger(__name__)


class RunReads:
    """What reads the history of a run asks this. Without a standby all goes to the primary.

    An answer of the standby is never older than what the primary had when it was asked: batches,
    events and folding change the numbers that are compared.
    """

    def __init__(self, primary: Database, standby: Database | None) -> None:
        self._primary = primary
        self._standby = standby
        self._away_until = 0.0

    @contextmanager
    def of(self, run: str) -> Iterator[Connection]:
        """Lend a connection inside a transaction with one snapshot, good for this run."""
        with ExitStack() as stack:
            connection = self._of_standby(stack, run)
            if connection is None:
                yield stack.enter_context(self._primary.read())
                return
            try:
                yield connection
            except StoreUnavailable as error:
                self._miss(error)
                raise

    def close(self) -> None:
        """Close the standby's connections."""
        if self._standby is not None:
            self._standby.close()

    def _of_standby(self, stack: ExitStack, run: str) -> Connection | None:
        if self._standby is None or time.monotonic() < self._away_until:
            return None
        with self._primary.read() as connection:
            wanted = _state(connection, run)
        try:
            with ExitStack() as ours:
                connection = ours.enter_context(self._standby.read())
                there = _state(connection, run)
                if there[:2] == wanted[:2] and there[2] >= wanted[2] and there[3] >= wanted[3]:
                    stack.push(ours.pop_all())
                    return connection
        except RunUnknown:
            pass
        except StoreUnavailable as error:
            self._miss(error)
        return None

    def _miss(self, error: StoreUnavailable) -> None:
        self._away_until = time.monotonic() + AWAY_SECONDS
        log.warning("the standby is not asked for %.0f seconds: %s", AWAY_SECONDS, error)


def _state(connection: Connection, run: str) -> tuple[int, float, int, int]:
    """Return number, time of creation, version and epoch. Raises `RunUnknown`."""
    run_id = runs.number(connection, run)
    row = connection.execute(
        "select created_at, version, fold_epoch from run where run_id = ?", (run_id,)
    ).fetchone()
    if row is None:
        raise RunUnknown(f"there is no run {run!r}")
    return (run_id, *row)
