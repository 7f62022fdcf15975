"""The weights of a file, in any format: names and shapes at once, numbers tensor by tensor."""

from __future__ import annotations

import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor


class Unreadable(Exception):
    """The file, or the request, cannot be used; the text is one sentence for stderr."""


@dataclass(frozen=True)
class Stored:
    """One tensor of a file. ``read(first, last)`` returns its slices first:last along dimension 0,
    shape (last - first, *shape[1:]), and raises `Unreadable`; a scalar is never read.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    """Torch's name, without ``torch.``."""
    read: Callable[[int, int], Tensor]
    unreadable: str | None = None
    """Why its numbers cannot be used, where dtype and shape do not show it."""
    alias_of: str | None = None
    """The tensor that holds its numbers, where the file stores a tied weight once."""


@dataclass(frozen=True)
class Weights:
    """All tensors of a file, in its order, and the names of other values, which are not read."""

    format: str
    tensors: tuple[Stored, ...]
    left_out: tuple[str, ...] = ()


def size_of(path: Path) -> int:
    """Return the size in bytes of a regular file; refuse others: they may block or never end."""
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise Unreadable(f"cannot read {shown(path)}: {reason_of(error)}") from None
    if stat.S_ISDIR(status.st_mode):
        raise Unreadable(
            f"{shown(path)} is a folder: name a .safetensors, .index.json or torch file in it"
        )
    if not stat.S_ISREG(status.st_mode):
        raise Unreadable(f"{shown(path)} must be a regular file: it is read in pieces")
    return status.st_size


def beside(index: Path, name: str) -> Path:
    """Return the path of a file that an index names; raise `Unreadable` for one elsewhere.

    Every writer puts a plain file name there: anything else could lead to another folder. A
    symbolic link in the folder is followed, as hubs keep their files that way.
    """
    if not name or name in (".", "..") or any(c in name for c in "/\\:\0"):
        raise Unreadable(
            f"{shown(index)} names the shard {shown(name)}: a shard must lie beside its index"
        )
    return index.parent / name


def reason_of(error: Exception) -> str:
    """Return the system's message, without the path that it repeats."""
    return getattr(error, "strerror", None) or clean(str(error))


def shown(value: object, most: int = 120) -> str:
    """Return text for one line of a terminal: a name in a file must neither control nor flood it.

    Long text loses its middle: both ends identify a name.
    """
    text = str(value)
    if len(text) > most:
        text = f"{text[: most // 2]}...{text[-most // 3 :]}"
    return clean(text)


def clean(text: str) -> str:
    """Return ``text`` with every control character and lone surrogate replaced."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
