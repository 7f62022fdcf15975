"""Lossless compression of float32 columns and of their rollups.

The number of a form is stored beside the bytes and is never reused; readers support all forms. New
tiles are written with pcodec if it is installed, else with zlib.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Collection
from itertools import accumulate, pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from snc_service.store.downsampling import PLANES, Partial
from snc_service.store.types import Floats

try:
    import pcodec
except ImportError:  # no wheel on this platform: the zlib form takes 4 % more bytes
    pcodec = None

RAW: Final = 0
PCODEC: Final = 1
ZLIB: Final = 2
ROLLUP: Final = 4  # planes behind a header, each in its own form
FORMS: Final = (RAW, PCODEC, ZLIB)

BLOCK_LAYERS = 16  # layers of a tile
TILE_STEPS = 1_024  # most measured steps of a tile, entries of a rollup tile
LEAST_JUDGED = 4_096  # smallest tile for which differences are chosen
FANOUT = 32  # entries of a level per entry of the next; FANOUT ** 2 == TILE_STEPS
_HEAD = struct.Struct("<5B5I")


class FormUnknown(ValueError):
    """A tile has a form that this release, or its environment, cannot read."""


def encode(values: Floats, form: int | None = None) -> tuple[int, bytes]:
    """Return (form, bytes) of float32 [rows, n] with time as the fast axis.

    The default is the best available form, or `RAW` if that is no larger. Cost: 0.1-0.5 ms per
    16 x 1024 values.
    """
    wanted = (ZLIB if pcodec is None else PCODEC) if form is None else form
    packed = np.ascontiguousarray(values, "<f4")
    if wanted == RAW or packed.size == 0:
        return RAW, packed.tobytes()
    data = _to_pcodec(packed) if wanted == PCODEC else _to_zlib(packed)
    if form is None and len(data) >= packed.nbytes:
        return RAW, packed.tobytes()
    return wanted, data


def decode(form: int, data: bytes, n: int) -> Floats:
    """Return float32 [rows, n]. Raises `FormUnknown`, and errors of decoders for other bytes."""
    if form == RAW:
        flat = np.frombuffer(data, "<f4")
    elif form == PCODEC and pcodec is not None:
        flat = np.asarray(pcodec.standalone.simple_decompress(data), np.float32)
    elif form == ZLIB:
        return _from_zlib(data, n)
    else:
        needs = "the pcodec package" if form == PCODEC else "a newer release of snc"
        raise FormUnknown(f"a tile of form {form} needs {needs} to be read")
    return flat.reshape(-1, n)


def encode_rollup(partial: Partial) -> bytes:
    """Return the bytes of [rows, n] entries: smallest, largest, mean, and the two counts."""
    mean = (partial.total / np.maximum(partial.finite, 1)).astype(np.float32)
    planes = [encode(plane) for plane in (partial.low, partial.high, mean)]
    planes += [(ZLIB, _to_counts(plane)) for plane in (partial.finite, partial.nonfinite)]
    forms, frames = [form for form, _ in planes], [data for _, data in planes]
    return _HEAD.pack(*forms, *map(len, frames)) + b"".join(frames)


def decode_rollup(
    data: bytes, keys: npt.NDArray[np.int64], planes: Collection[str] = PLANES
) -> Partial:
    """Return the entries under ``keys`` [n]; sums are means times counts.

    Decodes only ``planes``: the counts and at least one other.
    """
    head = _HEAD.unpack_from(data)
    ends = list(accumulate(head[5:], initial=_HEAD.size))
    frames = [data[start:end] for start, end in pairwise(ends)]
    made: dict[str, npt.NDArray[Any]] = {
        name: decode(head[i], frames[i], len(keys))
        for i, name in enumerate(PLANES[:3])
        if name in planes
    }
    shape = next(iter(made.values())).shape
    made["finite"], made["nonfinite"] = (_from_counts(frames[i], shape) for i in (3, 4))
    if "total" in made:
        made["total"] = made["total"].astype(np.float64) * made["finite"]
    return Partial(keys, made)


def _to_pcodec(values: Floats) -> bytes:
    # Level 8 with mode and delta given; the automatic choice would halve the speed.
    config: Any = pcodec.ChunkConfig(
        compression_level=8,
        mode_spec=pcodec.ModeSpec.classic(),
        delta_spec=pcodec.DeltaSpec.try_consecutive(_order(values)),
    )
    return bytes(pcodec.standalone.simple_compress(values.ravel(), config))


def _order(values: Floats) -> int:
    """Return the order 0, 1 or 2 of the shortest differences along time, judged by a sample.

    A smooth schedule takes half the bytes in second differences, a constant with a few exceptions
    in none. A random walk and noise need first differences; the others must be clearly shorter.
    """
    if values.size < LEAST_JUDGED:
        return 1
    words = values[::4, :256].view("<i4").astype(np.float64)
    words -= words[:, :1]
    sizes = []
    for _ in range(3):
        sizes.append(float(np.log2(1 + np.abs(words)).mean()))
        words = words[:, 1:] - words[:, :-1]
    best = int(np.argmin(sizes))
    return best if sizes[best] < 0.9 * sizes[1] else 1


def _to_zlib(values: Floats) -> bytes:
    """Return deflated byte planes of differences of the bit patterns along time, sign bit last."""
    words = values.view("<u4").copy()
    words[:, 1:] -= words[:, :-1].copy()
    signed = words.view("<i4")
    zigzag = ((signed << 1) ^ (signed >> 31)).view("<u4")
    planes = zigzag.view(np.uint8).reshape(-1, 4).T
    return zlib.compress(planes.tobytes(), 1)


def _from_zlib(data: bytes, n: int) -> Floats:
    planes = np.frombuffer(zlib.decompress(data), np.uint8).reshape(4, -1)
    zigzag = np.ascontiguousarray(planes.T).view("<u4").reshape(-1, n)
    words = (zigzag >> 1) ^ (-(zigzag & 1).astype("<i4")).view("<u4")
    return np.cumsum(words, axis=1, dtype=np.uint32).view(np.float32)


def _to_counts(counts: npt.NDArray[np.int32]) -> bytes:
    """Return one number if all are equal, the usual case where nothing is missing."""
    packed = np.ascontiguousarray(counts, "<i4")
    if packed.size and (packed == packed.flat[0]).all():
        return packed.ravel()[:1].tobytes()
    return zlib.compress(packed.tobytes(), 1)


def _from_counts(data: bytes, shape: tuple[int, ...]) -> npt.NDArray[np.int32]:
    if len(data) == 4:  # no deflated stream is that short
        return np.full(shape, np.frombuffer(data, "<i4")[0], np.int32)
    return np.frombuffer(zlib.decompress(data), "<i4").reshape(shape)
