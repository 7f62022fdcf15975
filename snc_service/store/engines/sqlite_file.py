"""The file of an embedded store: its mode, and a copy of it while it is in use."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

from snc_service.store.types import StoreUnavailable

APPLICATION_ID: Final = 0x534E4331  # "SNC1": distinguishes stores from other SQLite files
BACKUP_PAGES = 8_192  # per step: 16 MB (64 in older files), between which Ctrl-C takes effect


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
        keep_private(part)
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


def keep_private(path: Path) -> None:
    """Make a file, or take what is there away from everybody but its owner.

    A store holds hashes of tokens and secrets of receivers. Its log gets the mode of the file.
    """
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    if path.stat().st_mode & 0o077:
        with suppress(PermissionError):  # another user's, who let us write it
            path.chmod(0o600)
