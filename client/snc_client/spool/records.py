"""Records of a spool's segment; a checksum reveals torn and altered ones.

::

    u32  length of the payload      u32  CRC-32 of kind, weight and payload
    u8   kind                       u32  weight (counted when the entry is dropped)
    payload

Kinds: H opens a segment (index of its first entry), E is an entry, N a note.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from typing import Final, NamedTuple

HEADER, ENTRY, NOTE = b"HEN"
INDEX: Final = struct.Struct("<Q")
_HEAD: Final = struct.Struct("<IIBI")


class Record(NamedTuple):
    """One checked record; ``end`` is the offset behind it."""

    kind: int
    weight: int
    payload: bytes
    end: int


def packed(kind: int, payload: bytes, weight: int = 0) -> bytes:
    """Return the bytes of one record."""
    return _HEAD.pack(len(payload), _crc(kind, weight, payload), kind, weight) + payload


def _crc(kind: int, weight: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(struct.pack("<BI", kind, weight)))


def record_at(file: int, offset: int, end: int) -> Record | None:
    """Return the record at ``offset``; None if there is no valid one within ``end`` bytes."""
    head = os.pread(file, _HEAD.size, offset)
    if len(head) < _HEAD.size:
        return None
    length, crc, kind, weight = _HEAD.unpack(head)
    behind = offset + _HEAD.size + length
    if behind > end or kind not in b"HEN":
        return None
    payload = os.pread(file, length, offset + _HEAD.size)
    if len(payload) < length or _crc(kind, weight, payload) != crc:
        return None
    if kind == HEADER and length != INDEX.size:
        return None
    return Record(kind, weight, payload, behind)


def records(file: int, end: int) -> Iterator[Record]:
    """Yield the records from the start of a file up to the first invalid one."""
    offset = 0
    while (record := record_at(file, offset, end)) is not None:
        yield record
        offset = record.end
