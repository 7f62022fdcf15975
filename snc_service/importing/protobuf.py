"""Protocol buffers without their library: the fields of one message, read with bounds.

A field is its number and a value: an int for varints and fixed integers (unsigned), bytes for text,
messages and packed numbers. Which of these it means is the caller's knowledge.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
MOST_FIELDS: Final = 2**20  # of one message
_FIXED64 = struct.Struct("<Q")
_FIXED32 = struct.Struct("<I")


class Malformed(ValueError):
    """Bytes that are no message."""


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield number and value of each field. Raises `Malformed`."""
    at, end, count = 0, len(data), 0
    while at < end:
        tag, at = _varint(data, at)
        count += 1
        if count > MOST_FIELDS:
            raise Malformed(f"more than {MOST_FIELDS} fields")
        kind = tag & 7
        if kind == VARINT:
            value, at = _varint(data, at)
            yield tag >> 3, value
        elif kind == BYTES:
            size, at = _varint(data, at)
            if size > end - at:
                raise Malformed(f"a field of {size} bytes in a message of {end}")
            yield tag >> 3, data[at : at + size]
            at += size
        elif kind in (FIXED64, FIXED32):
            form = _FIXED64 if kind == FIXED64 else _FIXED32
            if form.size > end - at:
                raise Malformed("a number that ends after its message")
            yield tag >> 3, form.unpack_from(data, at)[0]
            at += form.size
        else:
            raise Malformed(f"wire type {kind}")


def last(data: bytes, number: int) -> int | bytes | None:
    """Return the value of a field, the last one if it is repeated, None if it is absent."""
    found = None
    for each, value in fields(data):
        if each == number:
            found = value
    return found


def text(value: int | bytes | None) -> str:
    """Return a text field; bytes that are no UTF-8 are replaced. "" if it is absent."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else ""


def message(value: int | bytes | None) -> bytes:
    """Return the bytes of a message field. Raises `Malformed` for a number."""
    if not isinstance(value, bytes):
        raise Malformed("a number where a message is expected")
    return value


def signed(value: int | bytes | None) -> int:
    """Return an int64 field. Raises `Malformed` for bytes."""
    if not isinstance(value, int):
        raise Malformed("bytes where a number is expected")
    return value - 2**64 if value >= 2**63 else value


def zigzag(value: int | bytes | None) -> int:
    """Return an sint64 field. Raises `Malformed` for bytes."""
    number = signed(value) & (2**64 - 1)
    return (number >> 1) ^ -(number & 1)


def double(value: int | bytes | None) -> float:
    """Return a double field. Raises `Malformed` for bytes."""
    found: float = struct.unpack("<d", _FIXED64.pack(signed(value) & (2**64 - 1)))[0]
    return found


def single(value: int | bytes | None) -> float:
    """Return a float field. Raises `Malformed` for bytes and numbers of 64 bits."""
    number = signed(value)
    if not 0 <= number < 2**32:
        raise Malformed("a number of 64 bits where one of 32 is expected")
    found: float = struct.unpack("<f", _FIXED32.pack(number))[0]
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise Malformed("a number that does not end")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (2**64 - 1), at
        shift += 7
