"""Read a torch checkpoint without ever running code that its pickle names."""

from __future__ import annotations

import gc
import re
import tarfile
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snc_client.audit.formats.harmless import require_harmless
from snc_client.audit.formats.model_keys import MAX_NESTING, MODEL_KEYS, is_optimizer
from snc_client.audit.formats.pickled import Bad
from snc_client.audit.formats.stored import Stored, Unreadable, Weights, shown, size_of
from snc_client.audit.formats.window import ZIP_ERRORS, FileWindow
from snc_client.layers.reasons import no_numbers

ZIP_MAGIC = b"PK\x03\x04"
# protocol 2, the long 0x1950a86a20f9469cfc6c, stop: the start of torch.save files before torch 1.6.
LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
MAX_PICKLE_BYTES = 256 << 20
# Messages of torch 2.4 and later for a pickle that names more than tensors.
REFUSED = r"unsupported (?:global: GLOBAL|GLOBAL|class) ([^\s`']+)"
# Pages of a mapped file stay in memory until it is unmapped: that happens after so many bytes.
LET_GO_BYTES = 64 << 20


class Mapped:
    """Keeps at most one checkpoint open, and maps it anew after LET_GO_BYTES were read of it."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._tensors: dict[str, Tensor] = {}
        self._left_out: tuple[str, ...] = ()
        self._legacy = False
        self._touched = 0

    def weights(self, path: Path) -> Weights:
        """Return the tensors of a checkpoint, in its order. Raises `Unreadable`.

        A zip file is mapped; a legacy one is read whole, as torch offers nothing else.
        """
        self._open(path)
        tensors = tuple(
            Stored(
                name,
                tuple(tensor.shape),
                str(tensor.dtype).removeprefix("torch."),
                partial(self._read, path, name, tuple(tensor.shape)),
                no_numbers(tensor) or _repeats(tensor),
            )
            for name, tensor in self._tensors.items()
        )
        return Weights("torch legacy" if self._legacy else "torch", tensors, self._left_out)

    def _open(self, path: Path) -> None:
        if self._path is not None:
            self._path, self._tensors, self._touched = None, {}, 0
            gc.collect()  # the unpickler leaves a cycle that holds the mapping
        records = _records(path)
        self._legacy = records is None
        self._tensors, self._left_out = _state(path, _load(path, mmap=not self._legacy))
        if records is not None:
            _check_storages(path, self._tensors, records)
        self._path = path

    def _read(self, path: Path, name: str, shape: tuple[int, ...], first: int, last: int) -> Tensor:
        if path != self._path or (self._touched > LET_GO_BYTES and not self._legacy):
            self._open(path)
        tensor = self._tensors.get(name)
        if tensor is None or tuple(tensor.shape) != shape:
            raise Unreadable(f"{shown(path)} changed while it was read")
        part = tensor[first:last]
        self._touched += part.numel() * part.itemsize
        return part


def _records(path: Path) -> set[int] | None:
    """Return the sizes of a zip file's entries, None for the format before torch 1.6.

    Refuses files that torch must not load. TorchScript archives carry code by design, and tar files
    take another path through torch.load: both ran code before torch 2.6 in spite of weights_only
    (CVE-2025-32434). A compressed entry could unpack to any size. `require_harmless` has the rest.
    """
    size = size_of(path)
    if tarfile.is_tarfile(path):
        raise _bad(path, "it is also a tar file, which no torch since 0.1 writes")
    with path.open("rb") as file:
        if file.read(len(LEGACY_MAGIC)) == LEGACY_MAGIC:
            _check_legacy(path, LEGACY_MAGIC + file.read(MAX_PICKLE_BYTES))
            return None
        try:
            with zipfile.ZipFile(FileWindow(file, 0, size)) as archive:
                entries = archive.infolist()
                _check_entries(path, size, entries)
                for entry in entries:
                    if entry.filename.endswith(".pkl"):
                        require_harmless(archive.read(entry))
        except Bad as error:
            raise _bad(path, f"of its pickle, {error}") from None
        except ZIP_ERRORS as error:
            raise _bad(
                path, f"its zip directory cannot be read ({shown(error)}): is it cut off?"
            ) from None
    return {entry.file_size for entry in entries}


def _check_legacy(path: Path, raw: bytes) -> None:
    end = 0
    try:
        # Magic number, version, machine, object, keys of the storages that follow.
        for _ in range(5):
            end = require_harmless(raw, end)
    except Bad as error:
        raise _bad(path, f"of its pickles, {error}") from None


def _check_entries(path: Path, size: int, entries: Iterable[zipfile.ZipInfo]) -> None:
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        raise _bad(path, "it is a TorchScript archive, which carries code: save a state_dict")
    for entry in entries:
        pickled = entry.filename.endswith(".pkl")
        if entry.compress_type != zipfile.ZIP_STORED:
            raise _bad(path, f"{shown(entry.filename)} is compressed, which torch never does")
        if entry.file_size > (MAX_PICKLE_BYTES if pickled else size):
            raise _bad(path, f"{shown(entry.filename)} claims {entry.file_size} bytes")


def _load(path: Path, *, mmap: bool) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a file must not choose what is printed
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # hostile bytes can make an unpickler raise anything
        said = str(error).partition("WeightsUnpickler error: ")[2] or str(error)
        named = re.search(REFUSED, str(error), re.IGNORECASE)
        if named:
            raise Unreadable(
                f"{shown(path)} is refused: besides tensors its pickle names {shown(named[1])}, "
                "and loading that could run code; save model.state_dict() alone"
            ) from None
        first = (said.strip().splitlines() or ["it does not say why"])[0]
        raise _bad(path, f"torch cannot load it ({type(error).__name__}: {shown(first)})") from None


def _check_storages(path: Path, tensors: Mapping[str, Tensor], records: set[int]) -> None:
    """Refuse a storage without a record of its size: a mapped tensor could read past its record."""
    for name, tensor in tensors.items():
        if no_numbers(tensor) is None and tensor.untyped_storage().nbytes() not in records:
            raise _bad(path, f"{shown(name)} claims other bytes than the file holds for it")


def _state(path: Path, loaded: Any) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the tensors of the model by name, and the names of all other values."""
    if isinstance(loaded, Tensor):
        return {"tensor": loaded}, ()
    if not isinstance(loaded, Mapping):
        raise _bad(path, f"it holds a {type(loaded).__name__} and no state dict")
    left_out: list[str] = []
    for _ in range(MAX_NESTING):
        if any(isinstance(value, Tensor) for value in loaded.values()):
            break
        key = next((k for k in MODEL_KEYS if isinstance(loaded.get(k), Mapping)), None)
        if key is None:
            break
        left_out += [str(other) for other in loaded if other != key]
        loaded = loaded[key]
    tensors: dict[str, Tensor] = {}
    for name, value in _leaves(loaded):
        if not isinstance(value, Tensor):
            left_out.append(name)
        elif name in tensors:
            raise _bad(path, f"two tensors have the name {shown(name)}")
        else:
            tensors[name] = value
    if not tensors:
        raise _bad(path, f"it holds no tensors, only {shown(', '.join(left_out) or 'nothing')}")
    return tensors, tuple(left_out)


def _leaves(root: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the values of nested mappings, names joined by dots; an optimizer stays one leaf.

    Each mapping is entered once: a pickle can contain itself.
    """
    seen: set[int] = set()
    waiting: list[tuple[str, Any]] = [("", root)]
    while waiting:
        name, value = waiting.pop()
        optimizer = is_optimizer(name.rpartition(".")[2])
        if not isinstance(value, Mapping) or optimizer or id(value) in seen:
            yield name, value
            continue
        seen.add(id(value))
        inside = [(f"{name}.{key}" if name else str(key), item) for key, item in value.items()]
        waiting.extend(reversed(inside))


def _repeats(tensor: Tensor) -> str | None:
    if tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
        return "an expanded view: it repeats the numbers that the file holds"
    return None


def _bad(path: Path, what: str) -> Unreadable:
    return Unreadable(f"{shown(path)} is no sound torch checkpoint: {what}")
