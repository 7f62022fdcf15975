"""A row as the spool keeps it: whole, or only its scalars and its active layers.

Step, time and the bytes of the scalars; the scalars in JSON; the values, float32 [M, L]. A thinned
entry has the high bit of that length set, and for [M, L] the number n of layers kept, their
indices and their values [M, n].
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from snc_client.sender.queue.row import Floats, Row
from snc_service.wire import ABSENT, absent

# A layer whose sigma reached this share of its threshold may breach at the next step; the callback
# measures by the same.
ACTIVE: Final = 0.9

_HEAD = struct.Struct("<qdI")
_COUNT = struct.Struct("<I")
_THIN: Final = 1 << 31


def packed(row: Row) -> bytes:
    """Return the entry of a whole row."""
    scalars = json.dumps(dict(row.scalars)).encode()
    return _HEAD.pack(row.step, row.time, len(scalars)) + scalars + row.values.tobytes()


def unpacked(entry: bytes, shape: tuple[int, int]) -> Row:
    """Return the row of an entry whose checksum was right; layers not kept are ABSENT."""
    step, time, length = _HEAD.unpack_from(entry)
    start = _HEAD.size + (length & ~_THIN)
    scalars = json.loads(entry[_HEAD.size : start])
    if not length & _THIN:
        return Row(step, np.frombuffer(entry, "<f4", offset=start).reshape(shape), scalars, time)
    (count,) = _COUNT.unpack_from(entry, start)
    start += _COUNT.size
    kept = np.frombuffer(entry, "<u4", count, start)
    values = np.full(shape, ABSENT, np.float32)
    values[:, kept] = np.frombuffer(entry, "<f4", offset=start + kept.nbytes).reshape(-1, count)
    return Row(step, values, scalars, time, spared=shape[0] * (shape[1] - count))


def thinned(
    entry: bytes, weight: int, *, shape: tuple[int, int], metrics: Sequence[str]
) -> tuple[bytes, int]:
    """Return an entry without its inactive layers, and how many values it still has."""
    step, time, length = _HEAD.unpack_from(entry)
    if length & _THIN:
        return entry, weight
    row = unpacked(entry, shape)
    kept = np.flatnonzero(active(row.values, metrics)).astype("<u4")
    body = entry[_HEAD.size : _HEAD.size + length] + _COUNT.pack(len(kept)) + kept.tobytes()
    body += np.ascontiguousarray(row.values[:, kept]).tobytes()
    spared = shape[0] * (shape[1] - len(kept))
    return _HEAD.pack(step, time, length | _THIN) + body, weight - spared


def active(values: Floats, metrics: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Return which layers of a row [M, L] matter most, [L] bool.

    Those whose sigma is not finite or reached 0.9 of the threshold, and those that were rescaled.
    """
    sigma, threshold, scale = (
        values[metrics.index(name)] if name in metrics else np.full_like(values[0], ABSENT)
        for name in ("sigma", "threshold", "scale")
    )
    broken = ~np.isfinite(sigma) & ~absent(sigma)
    with np.errstate(invalid="ignore"):
        kept: npt.NDArray[np.bool_] = (sigma >= ACTIVE * threshold) | (scale < 1) | broken
    return kept
