"""A part of a file as a file of its own, for zip archives inside larger files."""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from typing import BinaryIO

# The directory of a zip archive is read at once: 70 bytes an entry, two entries a tensor.
MAX_READ_BYTES = 256 << 20
ZIP_ERRORS = (
    zipfile.BadZipFile,
    NotImplementedError,
    ValueError,
    OSError,
    EOFError,
    RuntimeError,
    zlib.error,
)


class FileWindow(io.RawIOBase):
    """``length`` bytes of ``file`` from ``start``; refuses (OSError) to read very much at once."""

    def __init__(self, file: BinaryIO, start: int, length: int) -> None:
        self._file, self._start, self._length = file, start, length
        self._at = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position, from the start of the window."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move as in a file; refuse (OSError) places before the window."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._length}[whence]
        if base + offset < 0:
            raise OSError("a place before the archive")
        self._at = base + offset
        return self._at

    def read(self, size: int = -1) -> bytes:
        """Return up to ``size`` bytes, -1: up to the end."""
        left = max(0, self._length - self._at)
        count = left if size < 0 else min(size, left)
        if count > MAX_READ_BYTES:
            raise OSError(f"{count} bytes at once")
        self._file.seek(self._start + self._at)
        found = self._file.read(count)
        self._at += len(found)
        return found
