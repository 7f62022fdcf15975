"""A reserve on the disk of an embedded store, given up so that deleting works when it is full.

A file of zeros beside the store. Deleting writes to the log before it frees anything, so on a full
disk it would be impossible. While the reserve is given up, only what frees space is written;
batches would fill it at once. An empty file stands for a reserve that was given up, also after a
restart.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Final

RESERVE_BYTES: Final = 4 * 2**20  # as much as the log has before it is written back
SHORT_BYTES: Final = 2**20  # with less free space than this, freeing takes the reserve


class Reserve:
    """The reserve at ``path``. Without room for one there is none, and nothing is held back."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.is_spent = False
        self.look()

    def look(self) -> None:
        """Make a reserve, or make it whole again, if there is room."""
        with suppress(OSError):
            size = self._path.stat().st_size if self._path.exists() else None
            self.is_spent = size is not None and size < RESERVE_BYTES
            if size is not None and not self.is_spent:
                return
            room = RESERVE_BYTES + SHORT_BYTES if self.is_spent else 4 * RESERVE_BYTES
            if shutil.disk_usage(self._path.parent).free < room:
                return
            self._fill()
            self.is_spent = False

    def spend(self) -> None:
        """Give the reserve up, if there is one and the disk is short of space."""
        with suppress(OSError):
            if shutil.disk_usage(self._path.parent).free >= SHORT_BYTES:
                return
            if self._path.exists():
                os.truncate(self._path, 0)
                self.is_spent = True

    def _fill(self) -> None:
        file = os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            # Written, not only made longer: a hole takes no space.
            for _ in range(RESERVE_BYTES // 2**20):
                os.write(file, bytes(2**20))
            os.fsync(file)
        except OSError:
            os.truncate(file, 0)
            raise
        finally:
            os.close(file)
