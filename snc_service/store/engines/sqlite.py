"""The embedded engine: one SQLite file, WAL, every commit synced, one writer and many readers."""

from __future__ import annotations

import logging
import os
import queue
import shutil
import sqlite3
import stat
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final, TypeVar

from snc_service.store.engines import write_ahead_log
from snc_service.store.engines.reserve import SHORT_BYTES, Reserve
from snc_service.store.engines.sqlite_connection import SqliteConnection, SqliteReader
from snc_service.store.engines.sqlite_file import APPLICATION_ID, keep_private
from snc_service.store.sql.database import pulses, run_terms, schema
from snc_service.store.types import StoreFull, StoreUnavailable

BUSY_SECONDS = 10.0  # the longest another process (a backup, a shell) may hold the write lock
IDLE_READERS = 8
# What a connection keeps of the file, also while it is idle. The system has it in memory anyway.
WRITER_CACHE_KB, READER_CACHE_KB = 16_000, 2_000
PAGE_BYTES = 2_048  # of new files: rows waste half a page each, and larger pages waste 5 % more
RECLAIM_BYTES = 16 * 2**20  # per call
LEAST_RECLAIM_BYTES = 2 * 2**20  # smaller free space will soon be reused by new batches
MOST_LOG_BYTES = 64 * 2**20  # log size at which a commit checkpoints, and kept after it
STATEMENTS = 256  # prepared statements kept per connection
CHECKPOINT_BYTES = 4 * 2**20
LEAST_FREE_BYTES = 64 * 2**10  # with less the log's index cannot grow: SQLite says "I/O error"
WORDS: Final = {
    "serial": "integer primary key autoincrement",  # never reuses a number
    "text": "text",
    "blob": "blob",
    "real": "real",
    "clustered": " without rowid",
}
# Programming errors propagate; only errors of the disk and of other processes are mapped.
_BUGS = (sqlite3.IntegrityError, sqlite3.InterfaceError, sqlite3.DataError)


C = TypeVar("C", bound="SqliteConnection")
log = logging.getLogger(__name__)


class SqliteDatabase:
    """A database file. ``path`` is created with its tables if it does not exist.

    It is readable by its owner alone from then on. Once it is gone, another one, or read-only,
    nothing more is written.

    Raises `StoreUnavailable` if the file cannot be opened or written, is no store, or comes from a
    newer release.
    """

    is_shared = False
    is_sharded = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self.announced = threading.Event()
        self._log = path.with_name(path.name + "-wal")
        self._lost_log = path.with_name(path.name + "-wal-damaged")
        self._reserve = Reserve(path.with_name(path.name + "-reserve"))
        self._lock = threading.Lock()
        self._idle: queue.LifoQueue[SqliteReader] = queue.LifoQueue(IDLE_READERS)
        self._closed = False
        self._is_log_long = False
        self._files: dict[Path, tuple[int, int]] = {}
        try:
            self._open()
        except StoreFull:  # even the index of the log needs some space
            self._reserve.spend()
            if not self._reserve.is_spent:
                raise
            self._open()

    def _open(self) -> None:
        path = self.path
        with self._named_errors():
            for end in ("", "-wal", "-shm", "-reserve"):
                file = path.with_name(path.name + end)
                if not end or file.exists():
                    keep_private(file)
            self._check_files(path)
            self._verify_log()
            self._writer = self._connect(SqliteConnection)
            try:
                self._prepare()
            except BaseException:
                self._writer.close()
                raise

    @contextmanager
    def read(self) -> Iterator[SqliteReader]:
        """Lend a connection inside a read transaction: one snapshot from its first statement.

        Statements raise `StoreUnavailable` once it is `MOST_SNAPSHOT_SECONDS` old.
        """
        with self._named_errors():
            connection = self._reader()
            try:
                connection.begin()
                yield connection
            finally:
                self._give_back(connection)

    @contextmanager
    def write(self, *, frees: bool = False) -> Iterator[SqliteConnection]:
        """Lend the writer inside ``begin immediate``; synced to disk when the context ends."""
        with self._lock, self._named_errors():
            if self._closed:
                raise StoreUnavailable(f"store {self.path} is closed")
            self._make_room(frees)
            # A deferred transaction that becomes a writer gets "busy" without waiting.
            self._writer.execute("begin immediate")
            self._writer.has_news = False
            try:
                yield self._writer
                self._writer.execute("commit")
                self._writer.writes += 1
                if self._writer.has_news:
                    self.announced.set()
                self._check_files(self.path, self._log)
            except BaseException:
                # After "disk full" SQLite may have rolled back already.
                if self._writer.in_transaction:
                    self._writer.execute("rollback")
                raise

    def _verify_log(self) -> None:
        """Say what SQLite is about to lose of a damaged log, and keep the log.

        Not if this store is open elsewhere: then nothing is recovered now.
        """
        damage = write_ahead_log.damage_of(self._log)
        if damage is not None:
            write_ahead_log.set_aside(self._log, self._lost_log)
            log.error(
                "the log of %s is damaged at frame %d of %d: %d commits are lost",
                *(self.path, damage.frame + 1, damage.frames, damage.commits),
            )

    def lost(self) -> str | None:
        """Return what is known to be lost, for as long as the damaged log is kept."""
        if not self._lost_log.exists():
            return None
        return (
            f"commits in the log of {self.path} were lost, for it was damaged: {self._lost_log} is "
            "that log; delete it to confirm this"
        )

    def _make_room(self, frees: bool) -> None:
        """Give the reserve up for what frees space; while it is, raise `StoreFull` for the rest."""
        if frees:
            self._reserve.spend()
            if self._reserve.is_spent:
                self._shorten_log()
        elif self._reserve.is_spent:
            self._reserve.look()
            if self._reserve.is_spent:
                raise StoreFull(
                    f"store {self.path} cannot be used: the disk is full, and what is left of it "
                    "is kept for deleting"
                )

    def _shorten_log(self) -> None:
        """Write the log back and cut it off, if no reader is in its way and the disk allows.

        A try that fails would take the space that is left: the file grows first.
        """
        (pages,) = self._writer.execute("pragma page_count").fetchone()
        (size,) = self._writer.execute("pragma page_size").fetchone()
        growth = pages * size - self.path.stat().st_size
        if growth > 0 and growth + SHORT_BYTES > shutil.disk_usage(self.path.parent).free:
            return
        with suppress(sqlite3.Error):
            self._writer.execute("pragma busy_timeout = 0")
            self._writer.execute("pragma wal_checkpoint(truncate)").fetchall()
        self._writer.execute(f"pragma busy_timeout = {int(1_000 * BUSY_SECONDS)}")

    def check_writable(self) -> None:
        """Raise `StoreUnavailable` if a write would be: waits for nobody who writes."""
        with self._named_errors():
            self._check_files(*self._files)
            if not os.access(self.path, os.W_OK):
                raise StoreUnavailable(f"store {self.path} cannot be used: it is read-only")

    def away(self) -> list[str]:
        """Return nothing: a file has no nodes."""
        return []

    def problems(self) -> list[str]:
        """Return what SQLite finds wrong with the structure of the file, at most 20 sentences."""
        try:
            with self._named_errors(), closing(self._connect(SqliteConnection)) as connection:
                rows = connection.execute("pragma integrity_check(20)").fetchall()
        except StoreUnavailable as error:
            return [str(error)]
        lost = self.lost()
        found = [" ".join(text.split()) for (text,) in rows if text != "ok"]
        return found + ([lost] if lost else [])

    def mend(self) -> None:
        """Make the indexes anew, if they do not fit the tables."""
        if any("index" in problem for problem in self.problems()):
            with self.write() as connection:
                connection.execute("reindex")

    def reclaim(self, *, idle: bool = True) -> None:
        """Return up to `RECLAIM_BYTES` of free pages, unless new batches will soon reuse them."""
        with self._lock, self._named_errors():
            if self._closed or not (idle or self._reserve.is_spent):
                return
            (free,) = self._writer.execute("pragma freelist_count").fetchone()
            (pages,) = self._writer.execute("pragma page_count").fetchone()
            (size,) = self._writer.execute("pragma page_size").fetchone()
            if self._reserve.is_spent:
                # In steps that fit into the reserve, each of which is then out of the log.
                for _ in range(0, min(free * size, RECLAIM_BYTES), SHORT_BYTES // 2):
                    self._vacuum(SHORT_BYTES // 2 // size)
                    self._shorten_log()
            elif free > max(LEAST_RECLAIM_BYTES // size, pages // 32):
                self._vacuum(RECLAIM_BYTES // size)

    def _vacuum(self, pages: int) -> None:
        # The pragma frees one page per step, and ``execute`` takes a single step.
        self._writer.executescript(f"pragma incremental_vacuum({pages})")

    def checkpoint(self) -> None:
        """Write the log back into the file beside the writer, so that no commit waits for it."""
        self._reserve.look()
        with self._named_errors():
            if not self._log.exists() or self._log.stat().st_size < CHECKPOINT_BYTES:
                return
        with self._named_errors(), closing(self._connect(SqliteConnection)) as connection:
            connection.execute("pragma wal_checkpoint(passive)").fetchall()
            size = self._log.stat().st_size
        if (size > 2 * MOST_LOG_BYTES) != self._is_log_long:
            self._is_log_long = not self._is_log_long
            log.warning(
                "the log beside the store has %d MiB; it grows %s",
                size >> 20,
                "while another program reads the file in one transaction: end that"
                if self._is_log_long
                else "no more",
            )

    def size_bytes(self) -> int:
        """Return the size of the file and its log."""
        with self._named_errors():
            files = [file for file in (self.path, self._log) if file.exists()]
            return sum(file.stat().st_size for file in files)

    def log_bytes(self) -> int:
        """Return the size of the log beside the file."""
        with self._named_errors():
            return self._log.stat().st_size if self._log.exists() else 0

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

    def _connect(self, kind: type[C]) -> C:
        connection = sqlite3.connect(
            f"{self.path.absolute().as_uri()}?mode=rw",  # a file that is gone is not made anew
            uri=True,
            factory=kind,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=STATEMENTS,
        )
        connection.execute("pragma synchronous = full")  # an acknowledged batch is on the disk
        cache_kb = READER_CACHE_KB if kind is SqliteReader else WRITER_CACHE_KB
        connection.execute(f"pragma cache_size = -{cache_kb}")
        # As most builds do: zeros over what is deleted would need as much log as it has bytes.
        connection.execute("pragma secure_delete = fast")
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
        if version < run_terms.SINCE:
            before = self._writer.execute(run_terms.BEFORE).fetchall()
            self._writer.executemany(run_terms.INSERT, run_terms.rows(before))
        if version < pulses.SINCE:
            states = self._writer.execute(pulses.BEFORE).fetchall()
            self._writer.executemany(pulses.UPDATE, pulses.rows(states))
        self._writer.execute(f"pragma application_id = {APPLICATION_ID}")
        self._writer.execute(f"pragma user_version = {schema.VERSION}")

    def _reader(self) -> SqliteReader:
        if self._closed:
            raise StoreUnavailable(f"store {self.path} is closed")
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            return self._connect(SqliteReader)

    def _give_back(self, connection: SqliteReader) -> None:
        connection.end()
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
