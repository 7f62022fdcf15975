"""The store: one protocol, an engine per database, chosen by the URL and nothing else."""

from __future__ import annotations

from pathlib import Path

from snc_service.store.protocol import Store
from snc_service.store.sql import SqlStore
from snc_service.store.sqlite import SqliteDatabase

__all__ = ["open_store"]

_SQLITE = "sqlite:///"


def open_store(url: str) -> Store:
    """Open the store that ``url`` names, creating its tables in an empty database.

    ``sqlite:///snc.db`` is relative to the working directory, ``sqlite:////var/lib/snc.db`` is
    absolute. Raises `ValueError` for any other URL and `StoreUnavailable` (one sentence) if the
    database cannot be opened or written, is no store, or was written by a newer release.
    """
    path = url.removeprefix(_SQLITE)
    if path == url or not path:
        raise ValueError(f"store must be sqlite:///PATH, got {url!r}")
    return SqlStore(SqliteDatabase(Path(path)))
