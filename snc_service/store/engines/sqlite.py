"""The embedded engine: one SQLite file, WAL, every commit synced, one writer and many readers."""

from __future__ import annotations

import os
import queue
import re
import shutil
import sqlite3
import stat
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any, Final

from snc_service.store.sql.database import schema
from snc_service.store.sql.database.dialect import Mark, Row
from snc_service.store.types import StoreFull, StoreUnavailable

APPLICATION_ID: Final = 0x534E4331  # "SNC1": distinguishes stores from other SQLite files
BUSY_SECONDS = 10.0  # the longest another process (a backup, a shell) may hold the write lock
IDLE_READERS = 8
PAGE_BYTES = 2_048  # of new files: rows waste half a page each, and larger pages waste 5 % more
RECLAIM_BYTES = 16 * 2**20  # per call
LEAST_RECLAIM_BYTES = 2 * 2**20  # smaller free space will soon be reused by new batches
MOST_LOG_BYTES = 64 * 2**20  # log size at which a commit checkpoints, and kept after it
MOST_ROWS = 64  # per statement
STATEMENTS = 256  # prepared statements kept per connection
CHECKPOINT_BYTES = 4 * 2**20
LEAST_FREE_BYTES = 64 * 2**10  # with less the log's index cannot grow: SQLite says "I/O error"
BACKUP_PAGES = 8_192  # per step: 16 MB (64 in older files), between which Ctrl-C takes effect
WORDS: Final = {
    "serial": "integer primary key autoincrement",  # never reuses a number
    "text": "text",
    "blob": "blob",
    "real": "real",
    "clustered": " without rowid",
}
_INSERT: Final = re.compile(r"(insert into .* values )(\([?, ]+\))( on conflict .*)?")
_UPDATE: Final = re.compile(r"update (\w+) set (.*) where (.*)")
# Programming errors propagate; only errors of the disk and of other processes are mapped.
_BUGS = (sqlite3.IntegrityError, sqlite3.InterfaceError, sqlite3.DataError)


class SqliteConnection(sqlite3.Connection):
    """A connection; there is one writer, so rows need no locks."""

    for_update = ""
    skip_locked = ""
    writes = 0

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

    def together(self) -> AbstractContextManager[None]:
        """Do nothing: there is no server to wait for."""
        return nullcontext()


@lru_cache(maxsize=1_024)
def for_many(sql: str, num_rows: int) -> str | None:
    """Return the many-row form of ``sql``, None for statements without one."""
    if insert := _INSERT.fullmatch(sql):
        before, row, after = insert.groups()
        return f"{before}{', '.join([row] * num_rows)}{after or ''}"
    if update := _UPDATE.fullmatch(sql):
        table, changes, condition = update.groups()
        number = count(1)
        changes, condition = (
            re.sub(r"\?", lambda _: f"new.column{next(number)}", part)
            for part in (changes, condition)
        )
        row = f"({', '.join('?' * (next(number) - 1))})"
        rows = ", ".join([row] * num_rows)
        return f"update {table} set {changes} from (values {rows}) as new where {condition}"
    return None


def back_up(source: Path, target: Path) -> None:
    """Copy the current state of a store to the new file ``target``, and sync it.

    Ingest continues but does not enter the copy; the log of ``source`` grows until the copy is
    complete. Only then ``target`` appears. Raises `StoreUnavailable`.
    """
    if target.exists():
        raise StoreUnavailable(f"{target} exists already: back up to a new file")
    part = target.with_name(target.name + ".part")
    try:
        part.unlink(missing_ok=True)  # of a copy that was killed, perhaps open to others
        _keep_private(part)
        with (
            closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=rw", uri=True)) as store,
            closing(sqlite3.connect(part)) as copy,
        ):
            store.execute("begin")  # within it, commits of others do not restart the copy
            if store.execute("pragma application_id").fetchone() != (APPLICATION_ID,):
                raise StoreUnavailable(f"{source} is not a store of snc")
            store.execute("select count(*) from sqlite_master").fetchone()
            store.backup(copy, pages=BACKUP_PAGES)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(target)
    except (sqlite3.Error, OSError) as error:
        raise StoreUnavailable(f"{source} cannot be copied to {target}: {error}") from error
    finally:
        part.unlink(missing_ok=True)


def _keep_private(path: Path) -> None:
    """Make a file, or take what is there away from everybody but its owner.

    A store holds hashes of tokens and secrets of receivers. Its log gets the mode of the file.
    """
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    if path.stat().st_mode & 0o077:
        with suppress(PermissionError):  # another user's, who let us write it
            path.chmod(0o600)


class SqliteDatabase:
    """A database file. ``path`` is created with its tables if it does not exist.

    It is readable by its owner alone from then on. Once it is gone, another one, or read-only,
    nothing more is written.

    Raises `StoreUnavailable` if the file cannot be opened or written, is no store, or comes from a
    newer release.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._log = path.with_name(path.name + "-wal")
        self._lock = threading.Lock()
        self._idle: queue.LifoQueue[SqliteConnection] = queue.LifoQueue(IDLE_READERS)
        self._closed = False
        self._files: dict[Path, tuple[int, int]] = {}
        with self._named_errors():
            for file in (path, self._log, path.with_name(path.name + "-shm")):
                if file == path or file.exists():
                    _keep_private(file)
            self._check_files(path)
            self._writer = self._connect()
            try:
                self._prepare()
            except BaseException:
                self._writer.close()
                raise

    @contextmanager
    def read(self) -> Iterator[SqliteConnection]:
        """Lend a connection inside a read transaction: one snapshot from its first statement."""
        with self._named_errors():
            connection = self._reader()
            try:
                connection.execute("begin")
                yield connection
            finally:
                self._give_back(connection)

    @contextmanager
    def write(self) -> Iterator[SqliteConnection]:
        """Lend the writer inside ``begin immediate``; synced to disk when the context ends."""
        with self._lock, self._named_errors():
            if self._closed:
                raise StoreUnavailable(f"store {self.path} is closed")
            # A deferred transaction that becomes a writer gets "busy" without waiting.
            self._writer.execute("begin immediate")
            try:
                yield self._writer
                self._writer.execute("commit")
                self._writer.writes += 1
                self._check_files(self.path, self._log)
            except BaseException:
                # After "disk full" SQLite may have rolled back already.
                if self._writer.in_transaction:
                    self._writer.execute("rollback")
                raise

    def check_writable(self) -> None:
        """Raise `StoreUnavailable` if a write would be: waits for nobody who writes."""
        with self._named_errors():
            self._check_files(*self._files)
            if not os.access(self.path, os.W_OK):
                raise StoreUnavailable(f"store {self.path} cannot be used: it is read-only")

    def reclaim(self) -> None:
        """Return up to `RECLAIM_BYTES` of free pages, unless new batches will soon reuse them."""
        with self._lock, self._named_errors():
            if self._closed:
                return
            (free,) = self._writer.execute("pragma freelist_count").fetchone()
            (pages,) = self._writer.execute("pragma page_count").fetchone()
            (size,) = self._writer.execute("pragma page_size").fetchone()
            if free > max(LEAST_RECLAIM_BYTES // size, pages // 32):
                # The pragma frees one page per step, and ``execute`` takes a single step.
                self._writer.executescript(f"pragma incremental_vacuum({RECLAIM_BYTES // size})")

    def checkpoint(self) -> None:
        """Write the log back into the file beside the writer, so that no commit waits for it."""
        with self._named_errors():
            if not self._log.exists() or self._log.stat().st_size < CHECKPOINT_BYTES:
                return
        with self._named_errors(), closing(self._connect()) as connection:
            connection.execute("pragma wal_checkpoint(passive)").fetchall()

    def size_bytes(self) -> int:
        """Return the size of the file and its log."""
        with self._named_errors():
            files = [file for file in (self.path, self._log) if file.exists()]
            return sum(file.stat().st_size for file in files)

    def close(self) -> None:
        """Close all idle connections; readers still lent out close when they are returned."""
        with self._lock:
            self._closed = True
            while not self._idle.empty():
                self._idle.get_nowait().close()
            self._writer.close()

    def _check_files(self, *paths: Path) -> None:
        """Raise `StoreUnavailable` unless these are the files that were opened, and writable.

        What was deleted or replaced can be written for as long as it is open, and is gone then.
        """
        for path in paths:
            try:
                found = path.stat()
            except FileNotFoundError:
                raise StoreUnavailable(
                    f"store {self.path} cannot be used: {path.name} was deleted while it was open"
                ) from None
            place = (found.st_dev, found.st_ino)
            if self._files.setdefault(path, place) != place:
                raise StoreUnavailable(
                    f"store {self.path} cannot be used: {path.name} was replaced while it was "
                    "open; restart the service"
                )
            if not found.st_mode & stat.S_IWUSR:
                raise StoreUnavailable(f"store {self.path} cannot be used: it is read-only")

    def _connect(self) -> SqliteConnection:
        connection = SqliteConnection(
            f"{self.path.absolute().as_uri()}?mode=rw",  # a file that is gone is not made anew
            uri=True,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=STATEMENTS,
        )
        connection.execute("pragma synchronous = full")  # an acknowledged batch is on the disk
        connection.execute("pragma cache_size = -16000")
        # `checkpoint` keeps the log short; a commit writes it back only as a last resort.
        (size,) = connection.execute("pragma page_size").fetchone()
        connection.execute(f"pragma wal_autocheckpoint = {MOST_LOG_BYTES // size}")
        return connection

    def _prepare(self) -> None:
        """Create the tables, or check that the file is a store that this release can read."""
        (tables,) = self._writer.execute("select count(*) from sqlite_master").fetchone()
        (application,) = self._writer.execute("pragma application_id").fetchone()
        if tables and application != APPLICATION_ID:
            raise StoreUnavailable(f"{self.path} is an SQLite file, but not a store of snc")
        if not tables:
            # Both take effect only before the first table.
            self._writer.execute(f"pragma page_size = {PAGE_BYTES}")
            self._writer.execute("pragma auto_vacuum = incremental")
        self._writer.execute("pragma journal_mode = wal")
        self._writer.execute(f"pragma journal_size_limit = {MOST_LOG_BYTES}")
        self._writer.execute("begin immediate")
        try:
            self._upgrade()
            self._writer.execute("commit")
        finally:
            if self._writer.in_transaction:
                self._writer.execute("rollback")

    def _upgrade(self) -> None:
        # Read inside the transaction: another process may have created the tables in between.
        (version,) = self._writer.execute("pragma user_version").fetchone()
        self.found_version: int = version
        if version > schema.VERSION:
            raise StoreUnavailable(
                f"{self.path} has schema version {version}, this release knows up to "
                f"{schema.VERSION}: upgrade snc"
            )
        if version == schema.VERSION:
            return  # without a write, so a service starts on a full disk and serves what is stored
        for statement in schema.statements(version, **WORDS):
            self._writer.execute(statement)
        self._writer.execute(f"pragma application_id = {APPLICATION_ID}")
        self._writer.execute(f"pragma user_version = {schema.VERSION}")

    def _reader(self) -> SqliteConnection:
        if self._closed:
            raise StoreUnavailable(f"store {self.path} is closed")
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            return self._connect()

    def _give_back(self, connection: SqliteConnection) -> None:
        if connection.in_transaction:
            connection.execute("rollback")
        if not self._closed:
            try:
                self._idle.put_nowait(connection)
                return
            except queue.Full:
                pass
        connection.close()

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except _BUGS:
            raise
        except (sqlite3.Error, OSError) as error:
            kind = StoreFull if self._is_full(error) else StoreUnavailable
            raise kind(f"store {self.path} cannot be used: {error}") from error

    def _is_full(self, error: Exception) -> bool:
        if "disk is full" in str(error):  # errors have a code only from Python 3.11 on
            return True
        try:
            short = shutil.disk_usage(self.path.parent).free < LEAST_FREE_BYTES
        except OSError:
            return False
        return short and "disk I/O" in str(error)
