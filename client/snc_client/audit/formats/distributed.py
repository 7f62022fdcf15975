"""Read a folder of torch.distributed.checkpoint: ``.metadata`` and the ``.distcp`` files it names.

Both hold pickles. They are read as inert data, with the few names that such a file has, and never
by torch: a piece of a weight is copied from where its archive keeps the bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snc_client.audit.formats.model_keys import model_of
from snc_client.audit.formats.pickled import Bad, Made, Name, Table, inert
from snc_client.audit.formats.piece import StoredPiece, read_piece
from snc_client.audit.formats.stored import (
    Stored,
    Unreadable,
    Weights,
    beside,
    reason_of,
    shown,
    size_of,
)

METADATA = ".metadata"
MAX_METADATA_BYTES = 256 << 20
MOST_STEPS = 32_000_000  # 68 for each piece of a weight: 7B with AdamW on 512 ranks; under a minute
_OF = "torch.distributed.checkpoint."
_NAMES = frozenset(
    f"{_OF}metadata.{name}"
    for name in (
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    )
) | {
    f"{_OF}filesystem._StorageInfo",
    "collections.OrderedDict",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "pathlib._local.PosixPath",
    "torch.Size",
    "torch.serialization._get_layout",
}
Box = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class _Weight:
    """A tensor as the metadata describe it."""

    shape: tuple[int, ...]
    dtype: str
    pieces: Mapping[str, Box]
    """By the text of their offsets: a file could choose tuples with equal hashes."""


def read_distributed(folder: Path) -> Weights:
    """Return the tensors of a folder, in its order, without those of an optimizer.

    Only ``.metadata`` is read here. Raises `Unreadable`, also later, where pieces of a weight
    overlap, leave a hole, or are no plain tensors.
    """
    path = folder / METADATA
    found = _attributes(path, _parsed(path), "Metadata")
    planned = _pairs(path, found.get("planner_data") or Table([]))
    nested = {key: value for key, value in planned if isinstance(key, str)}
    weights: dict[str, _Weight] = {}
    others: list[str] = []
    for name, value in _pairs(path, found.get("state_dict_metadata")):
        if not isinstance(name, str) or name in weights:
            raise _bad(path, f"a name must be a text and stand once, got {_text(name)}")
        if _made(value) == "TensorStorageMetadata":
            weights[name] = _weight(path, name, _attributes(path, value, "TensorStorageMetadata"))
        else:
            others.append(name)
    homes = _homes(path, found.get("storage_data"))
    paths = {name: _keys(nested.get(name), name) for name in (*weights, *others)}
    chosen, left_out = model_of(paths, weights)
    tensors = tuple(
        Stored(
            shown_as,
            weights[name].shape,
            weights[name].dtype,
            partial(_read, folder, name, weights[name], homes.get(name, {})),
        )
        for name, shown_as in chosen.items()
        if name in weights
    )
    if not tensors:
        raise _bad(path, f"it holds no tensors, only {shown(', '.join(left_out) or 'nothing')}")
    if len({tensor.name for tensor in tensors}) < len(tensors):
        raise _bad(path, "two of its tensors have the same name")
    values = [shown_as for name, shown_as in chosen.items() if name not in weights]
    return Weights("torch.distributed.checkpoint", tensors, (*left_out, *values))


def _keys(planned: Any, name: str) -> tuple[str, ...]:
    """Return the keys that lead to an entry; a list of layers counts them."""
    if isinstance(planned, tuple) and all(isinstance(key, str | int) for key in planned):
        return tuple(map(str, planned)) or (name,)
    return (name,)


def _parsed(path: Path) -> Any:
    size = size_of(path)
    if size > MAX_METADATA_BYTES:
        raise _bad(path, f"it takes {size} bytes, more than {MAX_METADATA_BYTES}")
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise Unreadable(f"cannot read {shown(path)}: {reason_of(error)}") from None
    try:
        return inert(raw, most=MOST_STEPS, names=_require_known)[0]
    except Bad as error:
        raise _bad(path, f"of its pickle, {error}") from None


def _require_known(name: Name) -> None:
    if str(name) not in _NAMES and not _is_dtype(name):
        raise Bad(f"the name {shown(name)} belongs to no checkpoint, and loading it could run code")


def _is_dtype(name: Name) -> bool:
    # Not getattr, which would import some modules of torch by their names.
    return name.module == "torch" and isinstance(vars(torch).get(name.name), torch.dtype)


def _text(value: Any) -> str:
    # Never the repr of another value: a few shared tuples can have one of any length.
    return shown(value) if isinstance(value, str) else f"a {type(value).__name__}"


def _made(value: Any) -> str:
    known = isinstance(value, Made) and isinstance(value.function, Name)
    return value.function.name if known else type(value).__name__


def _attributes(path: Path, value: Any, kind: str) -> dict[str, Any]:
    if _made(value) != kind or not isinstance(value.state, Table):
        raise _bad(path, f"it holds a {shown(_made(value))} where a {kind} is expected")
    return {key: item for key, item in value.state.pairs if isinstance(key, str)}


def _pairs(path: Path, value: Any) -> Sequence[tuple[Any, Any]]:
    if not isinstance(value, Table | Made):
        raise _bad(path, f"it holds a {shown(_made(value))} where a dict is expected")
    return value.pairs


def _weight(path: Path, name: str, found: Mapping[str, Any]) -> _Weight:
    shape = _size(path, found.get("size"))
    properties, chunks = found.get("properties"), found.get("chunks")
    state = properties.state if isinstance(properties, Made) else None
    dtype = state[0] if isinstance(state, tuple) and state else None
    if not (isinstance(dtype, Name) and _is_dtype(dtype) and isinstance(chunks, list)):
        raise _bad(path, f"{shown(name)} must have a dtype of torch and a list of chunks")
    pieces: dict[str, Box] = {}
    for chunk in chunks:
        box = _attributes(path, chunk, "ChunkStorageMetadata")
        offsets, sizes = _size(path, box.get("offsets")), _size(path, box.get("sizes"))
        inside = len(offsets) == len(sizes) == len(shape) and all(
            first + count <= size for first, count, size in zip(offsets, sizes, shape, strict=True)
        )
        if not inside:
            raise _bad(path, f"{shown(name)} of shape {shown(shape)} has a piece outside of it")
        # Ranks without rows leave empty pieces, at offsets that others may share.
        if math.prod(sizes):
            pieces[str(offsets)] = (offsets, sizes)
    covered = sum(math.prod(sizes) for _, sizes in pieces.values())
    if covered != math.prod(shape):
        raise _bad(
            path, f"the pieces of {shown(name)} have {covered} of its {math.prod(shape)} numbers"
        )
    return _Weight(shape, dtype.name, pieces)


def _size(path: Path, value: Any) -> tuple[int, ...]:
    """Return a torch.Size; its bounds keep every product short."""
    sizes = value.arguments if _made(value) == "Size" else None
    match sizes:
        case (tuple(numbers),) if len(numbers) <= 64 and all(
            type(number) is int and 0 <= number < 2**40 for number in numbers
        ):
            return numbers
    raise _bad(path, "a size in it must be a torch.Size of whole numbers")


def _homes(path: Path, value: Any) -> dict[str, dict[str, StoredPiece]]:
    """Return where the pieces lie: by the name of the tensor and the text of their offsets."""
    homes: dict[str, dict[str, StoredPiece]] = {}
    for key, info in _pairs(path, value):
        index = _attributes(path, key, "MetadataIndex")
        stored = _attributes(path, info, "_StorageInfo")
        offsets = _size(path, index["offset"]) if index.get("offset") is not None else ()
        match index.get("fqn"), stored:
            case str(name), {"relative_path": str(file), "offset": int(first), "length": int(size)}:
                packed = bool(stored.get("transform_descriptors"))
                homes.setdefault(name, {})[str(offsets)] = StoredPiece(file, first, size, packed)
            case name, _:
                raise _bad(
                    path, f"the place of {_text(name)} must be a file, an offset and a length"
                )
    return homes


def _read(
    folder: Path,
    name: str,
    weight: _Weight,
    homes: Mapping[str, StoredPiece],
    first: int,
    last: int,
) -> Tensor:
    """Return rows first:last of a weight, put together from the pieces that hold them."""
    shape = (last - first, *weight.shape[1:])
    dtype: torch.dtype = getattr(torch, weight.dtype)
    rows, filled = torch.empty(shape, dtype=dtype), torch.zeros(shape, dtype=torch.bool)
    for offsets, sizes, begin, end in _overlapping(weight, first, last):
        home = homes.get(str(offsets))
        if home is None:
            raise _bad(folder / METADATA, f"it has no place for a piece of {shown(name)}")
        path = beside(folder / METADATA, home.file)
        piece = read_piece(
            path, home, sizes, dtype, begin - offsets[0], end - offsets[0], shown(name)
        )
        across = zip(offsets[1:], sizes[1:], strict=True)
        at = (slice(begin - first, end - first), *(slice(at, at + size) for at, size in across))
        if filled[at].any():
            raise _bad(folder / METADATA, f"pieces of {shown(name)} overlap")
        rows[at], filled[at] = piece, True
    if not filled.all():
        raise _bad(folder / METADATA, f"the pieces of {shown(name)} leave a hole")
    return rows


def _overlapping(
    weight: _Weight, first: int, last: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], int, int]]:
    for offsets, sizes in weight.pieces.values():
        begin, end = max(first, offsets[0]), min(last, offsets[0] + sizes[0])
        if begin < end:
            yield offsets, sizes, begin, end


def _bad(path: Path, what: str) -> Unreadable:
    return Unreadable(f"{shown(path)} is no sound metadata of a distributed checkpoint: {what}")
