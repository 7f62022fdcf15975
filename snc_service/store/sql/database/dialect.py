"""What the statements need of an engine: connections, transactions, and a few words of dialect.

A dialect implements `Database`; everything above it is written once. Statements use ``?`` for
parameters, contain no other ``?`` and no ``%``, and stay within what SQLite 3.35 and PostgreSQL 14
both accept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol, TypeAlias

Row: TypeAlias = tuple[Any, ...]


class Mark(NamedTuple):
    """Where a database stands: if both numbers are as they were, nobody has written in between."""

    own: int  # writing transactions of this process
    others: int  # changes with each of another


class Cursor(Protocol):
    """The part of a DB-API cursor that is used."""

    @property
    def rowcount(self) -> int:
        """Return the number of rows that the last statement changed."""

    def fetchone(self) -> Any:
        """Return the next row or None."""

    def fetchall(self) -> list[Any]:
        """Return all rows left."""

    def __iter__(self) -> Iterator[Any]: ...


class Connection(Protocol):
    """One connection inside a transaction."""

    @property
    def for_update(self) -> str:
        """Return what a select ends with that locks its rows until the end of the transaction.

        The lock is waited for, and the row is read as it is then: whoever changes something of a
        run locks the run's row first, of several runs in the order of their numbers.
        """

    @property
    def skip_locked(self) -> str:
        """Return the same for a select that leaves out the rows that others have locked."""

    def execute(self, sql: str, parameters: Sequence[Any] = (), /) -> Cursor:
        """Run one statement."""

    def executemany(self, sql: str, parameters: Iterable[Sequence[Any]], /) -> Cursor:
        """Run one statement for many rows."""

    def fetch_each(self, sql: str, parameters: Sequence[Sequence[Any]], /) -> list[list[Row]]:
        """Run one select for many parameters, in their order; return the rows of each.

        Where a server is asked, it is asked once and answers them all.
        """

    def mark(self) -> Mark | None:
        """Return what others' writing changes, None where nobody can tell: see `Mark`."""

    def together(self) -> AbstractContextManager[Any]:
        """Send what `executemany` runs inside without waiting for each; errors come at the end."""


class Database(Protocol):
    """An engine. Its contexts turn the driver's errors into `StoreUnavailable`.

    Opening it creates the tables, or leads them to our version; ``found_version`` is the version
    that was there, 0 for none.
    """

    found_version: int

    def read(self) -> AbstractContextManager[Connection]:
        """Open a transaction that sees one snapshot; many may run at once."""

    def write(self) -> AbstractContextManager[Connection]:
        """Open a writing transaction; durable when the context ends, undone by an error.

        Each of its statements sees what was committed before it. Several may run at once, here or
        in other processes.
        """

    def check_writable(self) -> None:
        """Raise `StoreUnavailable` if a write would; cheap, and waits for no other write."""

    def reclaim(self) -> None:
        """Give space that deletes left back to the file system, a bounded piece at a time."""

    def checkpoint(self) -> None:
        """Do what the engine would otherwise make some commit wait for."""

    def size_bytes(self) -> int:
        """Return the bytes at rest."""

    def close(self) -> None:
        """Close every connection."""
