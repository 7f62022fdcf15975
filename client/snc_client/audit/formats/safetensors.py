"""Read a .safetensors file: 8 bytes of length, a JSON header, the data; every value is checked.

Own code and not the package of that name, for three reasons: an audit must run in any image that
has torch; one tensor (or one expert of a stack) at a time must be in memory, where a mapping of the
file would grow to its size; and each invalid header must be reported in one sentence.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snc_client.audit.formats.stored import Stored, Unreadable, Weights, reason_of, shown, size_of

LENGTH_BYTES = 8
# A name takes some 150 bytes: room for 200,000 tensors, and a gigabyte at most once parsed.
MAX_HEADER_BYTES = 32 << 20

_READ = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
# Torch's name, and bits per number.
_DTYPES: dict[str, tuple[str, int]] = {
    "F64": ("float64", 64),
    "F32": ("float32", 32),
    "F16": ("float16", 16),
    "BF16": ("bfloat16", 16),
    **{f"I{bits}": (f"int{bits}", bits) for bits in (8, 16, 32, 64)},
    **{f"U{bits}": (f"uint{bits}", bits) for bits in (8, 16, 32, 64)},
    "BOOL": ("bool", 8),
    "C64": ("complex64", 64),
    "F8_E4M3": ("float8_e4m3fn", 8),
    "F8_E5M2": ("float8_e5m2", 8),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", 8),
    "F8_E5M2FNUZ": ("float8_e5m2fnuz", 8),
    "F8_E8M0": ("float8_e8m0fnu", 8),
    "F6_E2M3": ("float6_e2m3", 6),
    "F6_E3M2": ("float6_e3m2", 6),
    "F4": ("float4_e2m1", 4),
}


def read_safetensors(path: Path) -> Weights:
    """Return the tensors of a file, by name with numbers in numeric order; raise `Unreadable`.

    Only the header is read. The format requires that the tensors lie one after the other and fill
    the file: an overlap, a hole or an early end is refused, with the tensor's name.
    """
    size = size_of(path)
    header, start = _header(path, size)
    entries = {k: _entry(path, k, v) for k, v in header.items() if k != "__metadata__"}
    _check_layout(path, entries, size - start)
    aliases = _aliases(header.get("__metadata__"), entries)
    homes = {name: name for name in entries} | aliases
    tensors = (
        replace(_stored(path, name, *entries[homes[name]], start), alias_of=aliases.get(name))
        for name in sorted(homes, key=_by_number)
    )
    return Weights("safetensors", tuple(tensors))


def _aliases(metadata: Any, entries: Mapping[str, Any]) -> dict[str, str]:
    """Return the other names of tied weights: writers store a tensor once and note them here."""
    noted = metadata.items() if isinstance(metadata, dict) else ()
    return {
        name: home
        for name, home in noted
        if isinstance(home, str) and home in entries and name not in entries and name != "format"
    }


def _header(path: Path, size: int) -> tuple[dict[str, Any], int]:
    """Return the parsed header and the offset of the data."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            if length > size - LENGTH_BYTES:  # of an empty file too
                raise _bad(path, f"its header should take {length} bytes, it has {size} in all")
            if length > MAX_HEADER_BYTES:
                raise _bad(path, f"its header takes {length} bytes, more than {MAX_HEADER_BYTES}")
            raw = file.read(length)
    except OSError as error:
        raise Unreadable(f"cannot read {shown(path)}: {reason_of(error)}") from None
    try:
        header = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_without_repeats, parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as error:
        raise _bad(path, f"its header is not JSON ({shown(error)})") from None
    if not isinstance(header, dict):
        raise _bad(path, "its header is not a JSON object")
    return header, LENGTH_BYTES + length


def _without_repeats(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} twice")
        found[key] = value
    return found


def _no_constant(text: str) -> None:
    raise ValueError(f"bare {text}")


def _entry(path: Path, name: str, value: Any) -> tuple[str, tuple[int, ...], int, int]:
    """Return dtype code, shape, first and last byte of an entry, each of the right type."""
    match value:
        case {"dtype": str(code), "shape": list(shape), "data_offsets": [first, last], **others}:
            sound = not others and _whole(shape) and _whole([first, last]) and first <= last
        case _:
            sound = False
    if not sound:
        raise _bad(path, f"its entry {shown(name)} must hold dtype, shape and two data_offsets")
    if code not in _DTYPES:
        raise _bad(path, f"{shown(name)} is of dtype {shown(code, 30)}, which the format has not")
    bits = math.prod(shape) * _DTYPES[code][1]
    if bits != 8 * (last - first):
        raise _bad(
            path,
            f"{shown(name)} has {8 * (last - first)} bits where {code} of shape "
            f"{shown(list(shape))} has {shown(bits)}",
        )
    return code, tuple(shape), first, last


def _whole(values: list[Any]) -> bool:
    # 2^63 bounds the size of a file; numbers of thousands of digits would only cost time. No
    # library has more than 64 dimensions, and the product of more could be as long.
    return len(values) <= 64 and all(type(x) is int and 0 <= x < 2**63 for x in values)


def _check_layout(
    path: Path, entries: Mapping[str, tuple[str, tuple[int, ...], int, int]], size: int
) -> None:
    end = 0
    for name, (_, _, first, last) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if first != end:
            what = "overlaps the tensor before it" if first < end else "leaves a hole before it"
            raise _bad(path, f"{shown(name)} {what} (starts at {first}, expected {end})")
        if last > size:
            raise _bad(path, f"{shown(name)} ends at byte {last} of {size}: the file is cut off")
        end = last
    if end != size:
        raise _bad(path, f"{size - end} bytes of data belong to no tensor")


def _stored(
    path: Path, name: str, code: str, shape: tuple[int, ...], first: int, last: int, start: int
) -> Stored:
    return Stored(name, shape, _DTYPES[code][0], partial(_read, path, start + first, code, shape))


def _read(
    path: Path, offset: int, code: str, shape: tuple[int, ...], first: int, last: int
) -> Tensor:
    dtype, rest = _READ[code], shape[1:]
    slice_bytes = math.prod(rest) * dtype.itemsize
    raw = torch.empty((last - first) * slice_bytes, dtype=torch.uint8)
    left = raw.numpy().data
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(offset + first * slice_bytes)
            while left and (got := file.readinto(left)):
                left = left[got:]
    except OSError as error:
        raise Unreadable(f"cannot read {shown(path)}: {reason_of(error)}") from None
    if left:
        raise Unreadable(f"{shown(path)} became shorter while it was read")
    return raw.view(dtype).view(last - first, *rest)


def _by_number(name: str) -> list[tuple[int, str]]:
    """Order layers.2 before layers.10: the header's own order is by dtype and letter."""
    return [
        (len(part.lstrip("0")) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", name)
    ]


def _bad(path: Path, what: str) -> Unreadable:
    return Unreadable(f"{shown(path)} is no sound safetensors file: {what}")
