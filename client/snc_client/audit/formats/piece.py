"""Read one piece of a weight out of a ``.distcp`` file: a torch archive at an offset of it."""

from __future__ import annotations

import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from snc_client.audit.formats.pickled import Bad, Made, Name, Reference, inert
from snc_client.audit.formats.stored import Unreadable, reason_of, shown, size_of
from snc_client.audit.formats.window import ZIP_ERRORS, FileWindow

MAX_PICKLE_BYTES = 64 << 10  # one tensor takes some 200
MOST_STEPS = 1_000
LOCAL_HEADER_BYTES = 30


@dataclass(frozen=True)
class StoredPiece:
    """Where a piece lies: ``length`` bytes of a file from ``first``; ``packed``: compressed."""

    file: str
    first: int
    length: int
    packed: bool


def read_piece(
    path: Path,
    piece: StoredPiece,
    sizes: tuple[int, ...],
    dtype: torch.dtype,
    first: int,
    last: int,
    name: str,
) -> Tensor:
    """Return rows first:last of a piece of shape ``sizes``; reads only them if they lie together.

    Raises `Unreadable` unless the archive holds exactly one dense tensor of that shape and dtype.
    """
    if piece.packed:
        raise _bad(path, name, "it is compressed: save without transforms")
    if min(piece.first, piece.length) < 0 or piece.first + piece.length > size_of(path):
        raise _bad(path, name, "it ends after the file: is the file cut off?")
    try:
        with path.open("rb") as file:
            return _read(file, path, piece, sizes, dtype, first, last, name)
    except Bad as error:
        raise _bad(path, name, f"of its pickle, {error}") from None
    except OSError as error:
        raise Unreadable(f"cannot read {shown(path)}: {reason_of(error)}") from None


def _read(
    file: BinaryIO,
    path: Path,
    piece: StoredPiece,
    sizes: tuple[int, ...],
    dtype: torch.dtype,
    first: int,
    last: int,
    name: str,
) -> Tensor:
    try:
        raw, data = _entries(file, piece)
    except ZIP_ERRORS as error:
        raise _bad(path, name, f"it is no torch archive ({shown(error)})") from None
    offset, shape, strides, key, named = _tensor(inert(raw, most=MOST_STEPS)[0])
    if shape != sizes or named != _storage_name(dtype):
        raise _bad(path, name, f"it is a {shown(named)} of shape {shown(shape)}, not as announced")
    if key not in data:
        raise _bad(path, name, "its archive has no numbers for it")
    begin, length = data[key]
    item = dtype.itemsize
    reach = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) + 1
    # Beyond its numbers the entry would lie in that of another: nothing but a lie does that.
    if reach * item > length or math.prod(shape) * item > length:
        raise _bad(path, name, "it claims more bytes than its archive holds")
    if strides == _contiguous(shape):
        row = math.prod(shape[1:]) * item
        start = begin + offset * item + first * row
        rows = _bytes(file, path, start, (last - first) * row).view(dtype)
        return rows.view(last - first, *shape[1:])
    whole = _bytes(file, path, begin + offset * item, (reach - offset) * item).view(dtype)
    return whole.as_strided(shape, strides)[first:last]


def _entries(file: BinaryIO, piece: StoredPiece) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """Return the pickle of the archive, and the place and length of each entry of numbers."""
    raw: bytes | None = None
    data: dict[str, tuple[int, int]] = {}
    with zipfile.ZipFile(FileWindow(file, piece.first, piece.length)) as archive:
        for entry in archive.infolist():
            _, _, inside = entry.filename.partition("/")
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > piece.length:
                raise ValueError("an entry is compressed, or longer than the archive")
            if inside == "data.pkl":
                if entry.file_size > MAX_PICKLE_BYTES:
                    raise ValueError("its pickle is longer than that of a tensor")
                raw = archive.read(entry)
            elif inside.startswith("data/"):
                data[inside.removeprefix("data/")] = _place(file, piece, entry)
    if raw is None:
        raise ValueError("it has no data.pkl")
    return raw, data


def _place(file: BinaryIO, piece: StoredPiece, entry: zipfile.ZipInfo) -> tuple[int, int]:
    # The lengths of name and extra field in the entry's own header differ from the directory's.
    file.seek(piece.first + entry.header_offset)
    header = file.read(LOCAL_HEADER_BYTES)
    if len(header) < LOCAL_HEADER_BYTES or not header.startswith(b"PK\x03\x04"):
        raise ValueError("an entry has no header")
    skipped = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    begin = entry.header_offset + LOCAL_HEADER_BYTES + skipped
    if begin + entry.file_size > piece.length:
        raise ValueError("an entry ends after the archive")
    return piece.first + begin, entry.file_size


def _tensor(value: Any) -> tuple[int, tuple[int, ...], tuple[int, ...], str, str]:
    """Return offset, shape, strides, key of the storage and its class, of one pickled tensor."""
    match value:
        case Made(
            Name("torch._utils", "_rebuild_tensor_v2"),
            (
                Reference(("storage", Name("torch", kind), str(key), _, _)),
                int(offset),
                tuple(shape),
                tuple(strides),
                *_,
            ),
        ):
            pass
        case Made(
            Name("torch._utils", "_rebuild_tensor_v3"),
            (
                Reference(("storage", _, str(key), _, _)),
                int(offset),
                tuple(shape),
                tuple(strides),
                _,
                _,
                Name("torch", kind),
                *_,
            ),
        ):
            pass
        case _:
            raise Bad("it is no plain tensor")
    numbers = (offset, *shape, *strides)
    if len(shape) != len(strides) or len(numbers) > 129:
        raise Bad("it is a tensor of shape and strides that do not fit")
    if not all(type(number) is int and 0 <= number < 2**40 for number in numbers):
        raise Bad("it is a tensor of senseless shape or strides")
    return offset, shape, strides, key, kind


def _storage_name(dtype: torch.dtype) -> str:
    return {
        torch.float64: "DoubleStorage",
        torch.float32: "FloatStorage",
        torch.float16: "HalfStorage",
        torch.bfloat16: "BFloat16Storage",
    }.get(dtype, str(dtype))


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _bytes(file: BinaryIO, path: Path, start: int, count: int) -> Tensor:
    raw = torch.empty(count, dtype=torch.uint8)
    left = raw.numpy().data
    file.seek(start)
    while left and (got := file.readinto(left)):  # type: ignore[attr-defined]
        left = left[got:]
    if left:
        raise Unreadable(f"{shown(path)} became shorter while it was read")
    return raw


def _bad(path: Path, name: str, what: str) -> Unreadable:
    return Unreadable(f"the piece of {name} in {shown(path)} cannot be read: {what}")
