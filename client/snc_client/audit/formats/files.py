"""Read the tensors of a path: the content shows the format, an index names its shards."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from snc_client.audit.formats.checkpoint import LEGACY_MAGIC, ZIP_MAGIC, Mapped
from snc_client.audit.formats.distributed import METADATA, read_distributed
from snc_client.audit.formats.safetensors import read_safetensors
from snc_client.audit.formats.stored import (
    Stored,
    Unreadable,
    Weights,
    beside,
    reason_of,
    shown,
    size_of,
)

MAX_INDEX_BYTES = 32 << 20
MAX_FILES = 100_000


def read_weights(path: Path) -> Weights:
    """Return the tensors of a safetensors file, a torch checkpoint or an index of either's shards.

    Of a folder it reads what ``torch.distributed.checkpoint`` wrote, else its only index, else its
    only safetensors file. Of safetensors files only headers are read here. Raises `Unreadable`.
    """
    if path.name == METADATA:
        return read_distributed(path.parent)
    if path.is_dir():
        if (path / METADATA).exists():
            return read_distributed(path)
        path = _only_file(path)
    mapped, start = Mapped(), _start(path)
    # The header length of a safetensors file has zero bytes, text has none.
    if start.lstrip().startswith(b"{") and b"\0" not in start and path.suffix != ".safetensors":
        return _shards(path, mapped)
    return _one(path, start, mapped)


def _only_file(folder: Path) -> Path:
    """Return the file of a folder that stands for all: its index, else its safetensors file."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in itertools.islice(entries, MAX_FILES)]
    except OSError as error:
        raise Unreadable(f"cannot read {shown(folder)}: {reason_of(error)}") from None
    for suffix in (".safetensors.index.json", ".index.json", ".safetensors"):
        found = sorted(name for name in names if name.endswith(suffix))
        if len(found) == 1:
            return folder / found[0]
        if found:
            raise Unreadable(
                f"{shown(folder)} has {len(found)} files *{suffix}, such as {shown(found[0])}: "
                "name one of them"
            )
    raise Unreadable(
        f"{shown(folder)} is a folder without {METADATA}, *.index.json or *.safetensors: name a "
        "file of weights"
    )


def _one(path: Path, start: bytes, mapped: Mapped) -> Weights:
    # Torch, too, recognizes this one suffix.
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if start.startswith((ZIP_MAGIC, LEGACY_MAGIC)):
        return mapped.weights(path)
    if b"\0" in start[:8]:
        return read_safetensors(path)
    raise Unreadable(
        f"{shown(path)} is neither a safetensors file, an index of shards nor a torch checkpoint"
    )


def _start(path: Path) -> bytes:
    size_of(path)
    try:
        with path.open("rb") as file:
            return file.read(len(LEGACY_MAGIC))
    except OSError as error:
        raise Unreadable(f"cannot read {shown(path)}: {reason_of(error)}") from None


def _shards(path: Path, mapped: Mapped) -> Weights:
    """Return the tensors that an index names, shard by shard.

    Tensors of a shard that the index does not name are left out: a loader would not use them.
    """
    shards: dict[str, set[str]] = {}
    for name, shard in _weight_map(path).items():
        shards.setdefault(shard, set()).add(name)
    tensors: list[Stored] = []
    left_out: list[str] = []
    for shard, named in shards.items():
        home = beside(path, shard)
        found = {tensor.name: tensor for tensor in _one(home, _start(home), mapped).tensors}
        if missing := sorted(named - set(found)):
            raise Unreadable(
                f"{shown(path)} names {shown(missing[0])} in {shown(shard)}, which does not hold it"
            )
        used = {name for name, x in found.items() if name in named or x.alias_of in named}
        tensors += [tensor for name, tensor in found.items() if name in used]
        left_out += [f"{name} (in {shard}, not in the index)" for name in found if name not in used]
    count = len(shards)
    return Weights(f"index of {count} shard{'s'[: count > 1]}", tuple(tensors), tuple(left_out))


def _weight_map(path: Path) -> Mapping[str, str]:
    size = size_of(path)
    if size > MAX_INDEX_BYTES:
        raise _bad(path, f"it takes {size} bytes, more than {MAX_INDEX_BYTES}")
    try:
        index: Any = json.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise Unreadable(f"cannot read {shown(path)}: {reason_of(error)}") from None
    except (ValueError, RecursionError) as error:
        raise _bad(path, f"it is not JSON ({shown(error)})") from None
    homes = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(homes, dict) or not homes:
        raise _bad(path, 'it must hold {"weight_map": {tensor: shard}}')
    if not all(isinstance(home, str) for home in homes.values()):
        raise _bad(path, "its weight_map must lead to file names")
    return homes


def _bad(path: Path, what: str) -> Unreadable:
    return Unreadable(f"{shown(path)} is no index of shards: {what}")
