"""The interface of an engine: connections, transactions and the differences in SQL.

An engine implements `Database`; all statements above it are written once. Statements use ``?`` for
parameters, contain no other ``?`` and no ``%``, and use only SQL that both SQLite 3.35 and
PostgreSQL 14 accept.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol, TypeAlias

Row: TypeAlias = tuple[Any, ...]


class Mark(NamedTuple):
    """The write state of a database: two equal marks mean that there was no write in between."""

    own: int  # writing transactions of this process
    others: int  # a number that changes with each write of another process


class Cursor(Protocol):
    """The used part of a DB-API cursor."""

    @property
    def rowcount(self) -> int:
        """Return the number of rows that the last statement changed."""

    def fetchone(self) -> Any:
        """Return the next row or None."""

    def fetchall(self) -> list[Any]:
        """Return all remaining rows."""

    def __iter__(self) -> Iterator[Any]: ...


class Connection(Protocol):
    """One connection inside a transaction."""

    @property
    def for_update(self) -> str:
        """Return the suffix of a select that locks its rows until the end of the transaction.

        It waits for the lock and reads the row after that. A change to a run locks the run's row
        first; a change to several runs locks them in the order of their numbers.
        """

    @property
    def skip_locked(self) -> str:
        """Return the suffix of a locking select that skips rows locked by others."""

    def execute(self, sql: str, parameters: Sequence[Any] = (), /) -> Cursor:
        """Run one statement."""

    def executemany(self, sql: str, parameters: Iterable[Sequence[Any]], /) -> Cursor:
        """Run one statement for many rows."""

    def fetch_each(self, sql: str, parameters: Sequence[Sequence[Any]], /) -> list[list[Row]]:
        """Run one select for many parameters, in their order; return the rows of each.

        A server answers all of them in one round trip.
        """

    def mark(self) -> Mark | None:
        """Return the write state, None if the engine cannot detect writes of others: see `Mark`."""

    def announce(self) -> None:
        """Set `Database.announced` once the transaction is committed: it stores events."""

    def together(self) -> AbstractContextManager[Any]:
        """Pipeline the enclosed `executemany` calls; their errors are raised at the end."""


class Database(Protocol):
    """An engine. Its contexts turn the driver's errors into `StoreUnavailable`.

    Opening it creates the tables or upgrades them to this version. ``found_version`` is the version
    before, 0 for none.
    """

    found_version: int
    is_shared: bool  # by several services as a rule: they divide what runs in the background
    is_sharded: bool  # by run, over nodes: a transaction writes one run, so that it needs one node
    announced: threading.Event  # this process has stored events: it looks after them first

    def read(self) -> AbstractContextManager[Connection]:
        """Open a transaction that sees one snapshot; many may run at once."""

    def write(self, *, frees: bool = False) -> AbstractContextManager[Connection]:
        """Open a writing transaction; durable when the context ends, rolled back by an error.

        One that ``frees`` space may use what is kept for it on a full disk.

        Each statement sees what was committed before it. Several transactions may run at once, in
        this or other processes.
        """

    def check_writable(self) -> None:
        """Raise `StoreUnavailable` if a write would; cheap, and waits for no other write."""

    def away(self) -> list[str]:
        """Return the nodes that cannot be reached, while all others work: host and port."""

    def problems(self) -> list[str]:
        """Return what the engine itself finds wrong with its files, in sentences; may take long."""

    def lost(self) -> str | None:
        """Return a sentence about commits that are known to be lost; None: none are. Cheap."""

    def mend(self) -> None:
        """Make anew what the engine can derive from the rows: indexes."""

    def reclaim(self, *, idle: bool = True) -> None:
        """Return space freed by deletes to the file system, in pieces of bounded size.

        Not ``idle``: only if the disk is full.
        """

    def checkpoint(self) -> None:
        """Checkpoint now, so that no commit has to wait for it."""

    def size_bytes(self) -> int:
        """Return the size on disk."""

    def log_bytes(self) -> int:
        """Return the size of a log that grows while a snapshot is old, 0 if there is none."""

    def close(self) -> None:
        """Close every connection."""
