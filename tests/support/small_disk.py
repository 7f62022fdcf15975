"""A file system of a few megabytes, so that a full disk is a real one."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest


class SmallDisk:
    """A tmpfs mounted at ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def grow(self, megabytes: int) -> None:
        """Give it room while it is in use."""
        self._mount(f"remount,size={megabytes}m")

    def fill(self) -> None:
        """Take what room there is left, to the last byte."""
        with (self.folder / "filler").open("ab", buffering=0) as file, suppress(OSError):
            while file.write(b"x" * 4_096):
                pass

    def release(self) -> None:
        """Give back what `fill` took."""
        (self.folder / "filler").unlink()

    def protect(self) -> None:
        """Let nothing be written to it any more."""
        self._mount("remount,ro")

    def _mount(self, options: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.folder)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"a disk that fills needs the right to mount: run as root ({done.stderr})")


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[SmallDisk]:
    """Mount one at ``folder`` while the block lasts; skip the test where that is not allowed."""
    folder.mkdir()
    disk = SmallDisk(folder)
    disk._mount(f"size={megabytes}m")
    try:
        yield disk
    finally:
        # Lazily: a process that has just been killed may still hold a file.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
