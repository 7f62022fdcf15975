"""CRC-32C (Castagnoli) of many records at once, by numpy.

A CRC is linear: zero bytes in front of a message whose initial state is zero change nothing. So
records of different lengths become rows of one matrix, right-aligned, and all rows advance
together, a column at a time. Long records are rows themselves, joined by the operator "append m
zero bytes".
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

POLYNOMIAL: Final = 0x82F63B78  # reflected
ROW: Final = 4_096  # bytes; longer records are cut
_ONES: Final = 0xFFFFFFFF

Words = npt.NDArray[np.uint32]


def _table() -> Words:
    words: Words = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        words = (words >> np.uint32(1)) ^ ((words & np.uint32(1)) * np.uint32(POLYNOMIAL))
    return words


TABLE: Final = _table()
_PLAIN: Final = TABLE.tolist()


def of_one(record: bytes) -> int:
    """Return the CRC-32C of a short record, byte by byte."""
    state = _ONES
    for byte in record:
        state = _PLAIN[(state ^ byte) & 0xFF] ^ (state >> 8)
    return state ^ _ONES


def of_many(records: Sequence[bytes]) -> list[int]:
    """Return the CRC-32C of each record. Memory: the longest below `ROW` times their number."""
    short = [record for record in records if len(record) <= ROW]
    found = iter(_of_rows(short))
    return [next(found) if len(record) <= ROW else _of_long(record) for record in records]


def _of_rows(records: Sequence[bytes]) -> list[int]:
    width = max((len(record) for record in records), default=0)
    rows = np.zeros((len(records), max(width, 4)), np.uint8)
    tiny = {at: of_one(record) for at, record in enumerate(records) if len(record) < 4}
    for at, record in enumerate(records):
        if at not in tiny:
            first = rows.shape[1] - len(record)
            rows[at, first:] = np.frombuffer(record, np.uint8)
            rows[at, first : first + 4] ^= 0xFF  # the initial state of all ones
    states = (_advanced(np.zeros(len(records), np.uint32), rows) ^ np.uint32(_ONES)).tolist()
    return [tiny.get(at, state) for at, state in enumerate(states)]


def _of_long(record: bytes) -> int:
    data = np.frombuffer(record, np.uint8).copy()
    data[:4] ^= 0xFF
    front = len(data) % ROW
    state = int(_advanced(np.zeros(1, np.uint32), data[None, :front])[0]) if front else 0
    for part in _advanced(
        np.zeros(len(data) // ROW, np.uint32), data[front:].reshape(-1, ROW)
    ).tolist():
        state = _apply(_zeros(), state) ^ part
    return state ^ _ONES


def _advanced(states: Words, rows: npt.NDArray[np.uint8]) -> Words:
    for column in np.ascontiguousarray(rows.T):
        states = TABLE[(states ^ column) & 0xFF] ^ (states >> np.uint32(8))
    return states


@lru_cache(maxsize=1)
def _zeros() -> tuple[int, ...]:
    """Return what `ROW` zero bytes make of each bit of a state."""
    bits = np.uint32(1) << np.arange(32, dtype=np.uint32)
    return tuple(_advanced(bits, np.zeros((32, ROW), np.uint8)).tolist())


def _apply(operator: tuple[int, ...], state: int) -> int:
    result = 0
    for bit, image in enumerate(operator):
        if state >> bit & 1:
            result ^= image
    return result
