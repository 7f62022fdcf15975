"""Claim: locks a spool's folder for one process at a time."""

from __future__ import annotations

import fcntl
import os
import weakref
from pathlib import Path


class SpoolBusy(Exception):
    """Another process (or another part of this one) uses the folder."""


class Claim:
    """An exclusive lock on a folder, released when the process that holds it ends."""

    def __init__(self, path: Path) -> None:
        self._file: int | None = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._file)
            raise SpoolBusy(f"{path.parent} is in use") from None
        # A forked worker shares the lock; it must not keep it after its parent's end.
        ref = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _release(ref()))

    def release(self) -> None:
        """Release the lock."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _release(claim: Claim | None) -> None:
    if claim is not None:
        claim.release()
