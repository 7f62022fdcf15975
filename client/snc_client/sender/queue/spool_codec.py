"""Entries of the spool: a whole row, or only its scalars and its active layers.

An entry has step, time and length of the scalars; the scalars in JSON; the values, float32 [M, L].
A thinned entry has the high bit of that length set, and instead of [M, L] the number n of layers
kept, their indices and their values [M, n].
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Final

import numpy as np

from snc_client.layer_row import ACTIVE, LayerRow, Mask
from snc_service.wire import ABSENT, absent

_HEAD = struct.Struct("<qdI")
_COUNT = struct.Struct("<I")
_THIN: Final = 1 << 31


def packed(row: LayerRow) -> bytes:
    """Return the entry of a whole row."""
    scalars = json.dumps(dict(row.scalars)).encode()
    return _HEAD.pack(row.step, row.time, len(scalars)) + scalars + row.values.tobytes()


def unpacked(entry: bytes, metrics: Sequence[str], num_layers: int) -> LayerRow:
    """Return the row of an entry whose checksum is right; layers not kept are ABSENT."""
    shape = (len(metrics), num_layers)
    step, time, length = _HEAD.unpack_from(entry)
    start = _HEAD.size + (length & ~_THIN)
    scalars = json.loads(entry[_HEAD.size : start])
    if not length & _THIN:
        whole = np.frombuffer(entry, "<f4", offset=start).reshape(shape)
        return LayerRow(step, metrics, whole, scalars, time)
    (count,) = _COUNT.unpack_from(entry, start)
    start += _COUNT.size
    kept = np.frombuffer(entry, "<u4", count, start)
    values = np.full(shape, ABSENT, np.float32)
    values[:, kept] = np.frombuffer(entry, "<f4", offset=start + kept.nbytes).reshape(-1, count)
    return LayerRow(step, metrics, values, scalars, time, spared=shape[0] * (shape[1] - count))


def thinned(
    entry: bytes, weight: int, *, shape: tuple[int, int], metrics: Sequence[str]
) -> tuple[bytes, int]:
    """Return an entry without its inactive layers, and the number of its remaining values."""
    step, time, length = _HEAD.unpack_from(entry)
    if length & _THIN:
        return entry, weight
    row = unpacked(entry, metrics, shape[1])
    kept = np.flatnonzero(active(row)).astype("<u4")
    body = entry[_HEAD.size : _HEAD.size + length] + _COUNT.pack(len(kept)) + kept.tobytes()
    body += np.ascontiguousarray(row.values[:, kept]).tobytes()
    spared = shape[0] * (shape[1] - len(kept))
    return _HEAD.pack(step, time, length | _THIN) + body, weight - spared


def active(row: LayerRow) -> Mask:
    """Return the layers that a thinned row keeps, bool [L].

    Those whose sigma is not finite or reached 0.9 of the threshold, and those that were written.
    """
    sigma, threshold, scale = (
        row.metric(name) if name in row.metrics else np.full_like(row.values[0], ABSENT)
        for name in ("sigma", "threshold", "scale")
    )
    acted = (scale != 1) & np.isfinite(scale)
    broken = ~np.isfinite(sigma) & ~absent(sigma)
    with np.errstate(invalid="ignore"):
        kept: Mask = (sigma >= ACTIVE * threshold) | acted | broken
    return kept
