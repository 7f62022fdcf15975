"""The store: one class over two engines; the URL selects the engine."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from snc_service.store.engines.sqlite import SqliteDatabase
from snc_service.store.engines.sqlite_file import back_up
from snc_service.store.sql.database import citus, schema
from snc_service.store.sql.database.dialect import Database
from snc_service.store.store import Store
from snc_service.store.types import Bounds, StoreUnavailable

__all__ = ["Store", "back_up_store", "distribute_store", "open_store", "upgrade_store"]

_SQLITE, _POSTGRES = "sqlite:///", ("postgresql://", "postgres://")


def open_store(
    url: str,
    bounds: Bounds | None = None,
    *,
    connections: int | None = None,
    read_url: str | None = None,
) -> Store:
    """Open the store at ``url`` and create its tables in an empty database.

    ``bounds`` limit what a run may name, and what is kept, in all that is stored through it.

    ``sqlite:///snc.db`` is relative to the working directory, ``sqlite:////var/lib/snc.db`` is
    absolute. ``postgresql://user:password@host:5432/snc`` has the form of libpq; ``postgres://`` is
    the same. There, ``connections`` are the most that are open, by default 16, and ``read_url`` is
    a standby that answers for a run whenever it has all that the store has of it. A standby has as
    many connections of its own. Raises `ValueError` for any other URL, and `StoreUnavailable` (one
    sentence) if the database cannot be opened or written, is no store, or was written by a newer
    release; not if the standby cannot be reached.
    """
    standby = None
    if read_url:
        if not (url.startswith(_POSTGRES) and read_url.startswith(_POSTGRES)):
            raise ValueError("a store to read from needs PostgreSQL, as has the store itself")
        standby = _postgres(read_url, connections, is_standby=True)
    return Store(_database(url, connections), bounds, standby)


def upgrade_store(url: str) -> tuple[int, int]:
    """Open and close a store; return the version of its tables before (0: none) and after.

    Opening a store upgrades it. Raises the errors of `open_store`.
    """
    with closing(_database(url)) as database:
        return database.found_version, schema.VERSION


def distribute_store(url: str, *, apply: bool) -> list[str]:
    """Return the statements that a store on a Citus cluster lacks; run them if told to ``apply``.

    Raises `ValueError` if the store is not on such a cluster, and the errors of `open_store`.
    """
    with closing(_database(url)) as database:
        if not database.is_sharded:
            raise ValueError(
                "the store must be a database with the extension citus: create it on the "
                "coordinator (create extension citus), and add the workers"
            )
        with database.write() as connection:
            return citus.distribute(connection) if apply else citus.missing(connection)


def back_up_store(url: str, target: Path) -> None:
    """Copy an embedded store to a new file while it is in use.

    Raises `ValueError` for a PostgreSQL store, which has its own tools, and `StoreUnavailable` if
    the file exists or cannot be written.
    """
    if url.startswith(_POSTGRES):
        raise ValueError(
            "a PostgreSQL store is backed up by PostgreSQL: pg_dump --format=custom --compress=1 "
            f"--file={target} and the store's URL (history is compressed already, but pg_dump "
            "writes two digits for each byte), and pg_restore --dbname with an empty database "
            "brings it back"
        )
    back_up(_path(url), target)


def _database(url: str, connections: int | None = None) -> Database:
    if url.startswith(_POSTGRES):
        return _postgres(url, connections)
    return SqliteDatabase(_path(url))


def _postgres(url: str, connections: int | None, *, is_standby: bool = False) -> Database:
    try:
        from snc_service.store.engines.postgres import CONNECTIONS, PostgresDatabase
    except ImportError as error:
        raise StoreUnavailable(
            f"PostgreSQL needs its driver ({error}): "
            "pip install 'spectral-norm-constraint[postgres]'"
        ) from None
    return PostgresDatabase(url, connections=connections or CONNECTIONS, is_standby=is_standby)


def _path(url: str) -> Path:
    if url.startswith(_SQLITE) and url != _SQLITE:
        return Path(url.removeprefix(_SQLITE))
    # The rest of the URL may contain a password.
    got = url.partition("://")[0][:40]
    raise ValueError(f"store must be sqlite:///PATH or {_POSTGRES[0]}..., got {got!r}")
