"""Connections to an SQLite file: one writes, many read."""

from __future__ import annotations

import math
import sqlite3
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from snc_service.store.engines.many_rows import for_many
from snc_service.store.sql.database.dialect import Mark, Row
from snc_service.store.types import StoreUnavailable

MOST_ROWS = 64  # per statement
MOST_SNAPSHOT_SECONDS = 60.0  # of a read
PROGRESS_STEPS = 1_000_000  # of SQLite's machine, 10 ms, between looks at the time


class SqliteConnection(sqlite3.Connection):
    """A connection; there is one writer, so rows need no locks."""

    for_update = ""
    skip_locked = ""
    writes = 0
    has_news = False

    def executemany(  # type: ignore[override] # sqlite3 also accepts mappings; no caller passes any
        self, sql: str, parameters: Iterable[Sequence[Any]], /
    ) -> sqlite3.Cursor:
        """Run one statement for many rows, up to 64 at a time where the statement allows it.

        Each step of a statement releases the interpreter lock and may wait to get it back. With one
        step per row, a busy service would wait most of the time.
        """
        rows, cursor = list(parameters), self.cursor()
        start = 0
        while start < len(rows):
            # Powers of two: few distinct statements, each prepared once.
            size = min(MOST_ROWS, 1 << (len(rows) - start).bit_length() - 1)
            together = for_many(sql, size)
            if together is None:
                return cursor.executemany(sql, rows[start:])
            some = rows[start : start + size]
            cursor.execute(together, [value for row in some for value in row])
            start += size
        return cursor

    def mark(self) -> Mark:
        """Return the current state of the file: own writes and those of others."""
        (others,) = self.execute("pragma data_version").fetchone()
        return Mark(self.writes, others)

    def fetch_each(self, sql: str, parameters: Sequence[Sequence[Any]], /) -> list[list[Row]]:
        """Run one select for many parameters."""
        return [self.execute(sql, each).fetchall() for each in parameters]

    def announce(self) -> None:
        """Let the database say after the commit that there are events."""
        self.has_news = True

    def together(self) -> AbstractContextManager[None]:
        """Do nothing: there is no server to wait for."""
        return nullcontext()


class SqliteReader(SqliteConnection):
    """A connection whose snapshots are of bounded age: while there is an old one, the log grows."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._until = math.inf
        # Called within long statements; the others look before they begin.
        self.set_progress_handler(lambda: time.monotonic() > self._until, PROGRESS_STEPS)

    def begin(self) -> None:
        """Begin a transaction; its time begins, too."""
        self._until = time.monotonic() + MOST_SNAPSHOT_SECONDS
        self.execute("begin")

    def end(self) -> None:
        """End a transaction, if there is one."""
        self._until = math.inf
        if self.in_transaction:
            self.execute("rollback")

    def execute(self, sql: str, parameters: Sequence[Any] = (), /) -> sqlite3.Cursor:  # type: ignore[override] # sqlite3 also accepts mappings; no caller passes any
        """Run one statement. Raises `StoreUnavailable` in an old transaction."""
        try:
            if time.monotonic() <= self._until:
                return super().execute(sql, parameters)
        except sqlite3.OperationalError:
            if time.monotonic() <= self._until:
                raise
        raise StoreUnavailable(
            f"a read of the store must end within {MOST_SNAPSHOT_SECONDS:.0f} seconds: ask for "
            "fewer steps or layers at once"
        )
