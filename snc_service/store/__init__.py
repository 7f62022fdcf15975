"""The store: one protocol, an engine per database, chosen by the URL and nothing else."""

from __future__ import annotations

from pathlib import Path

from snc_service.store.protocol import Store, StoreUnavailable
from snc_service.store.sql import SqlStore
from snc_service.store.sql.database import Database
from snc_service.store.sqlite import SqliteDatabase

__all__ = ["open_store"]

_SQLITE, _POSTGRES = "sqlite:///", "postgresql://"


def open_store(url: str) -> Store:
    """Open the store that ``url`` names, creating its tables in an empty database.

    ``sqlite:///snc.db`` is relative to the working directory, ``sqlite:////var/lib/snc.db`` is
    absolute; ``postgresql://user:password@host:5432/snc`` is what libpq takes. Raises `ValueError`
    for any other URL and `StoreUnavailable` (one sentence) if the database cannot be opened or
    written, is no store, or was written by a newer release.
    """
    return SqlStore(_database(url))


def _database(url: str) -> Database:
    if url.startswith(_SQLITE) and url != _SQLITE:
        return SqliteDatabase(Path(url.removeprefix(_SQLITE)))
    if url.startswith(_POSTGRES):
        try:
            from snc_service.store.postgres import PostgresDatabase
        except ImportError as error:
            raise StoreUnavailable(
                f"PostgreSQL needs its driver ({error}): pip install 'snc[postgres]'"
            ) from None
        return PostgresDatabase(url)
    # The rest of what was given may be a password.
    got = url.partition("://")[0][:40]
    raise ValueError(f"store must be sqlite:///PATH or {_POSTGRES}..., got {got!r}")
