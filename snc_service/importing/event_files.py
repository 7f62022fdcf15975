"""TensorBoard event files: records of length, CRC, an `Event` message and its CRC.

A folder with event files is one run. Files are read in the order of their names, which begin with
the time of their creation; a later file replaces what an earlier one says of the same step.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

import numpy as np

from snc_service.importing import crc32c
from snc_service.importing.protobuf import (
    Malformed,
    double,
    fields,
    last,
    message,
    signed,
    single,
    text,
)
from snc_service.importing.recording import Recording, SeriesKey
from snc_service.wire import WireError

KIND: Final = "tensorboard"
MARK: Final = ".tfevents."
LENGTH: Final = struct.Struct("<QI")
CRC: Final = struct.Struct("<I")
MOST_RECORD_BYTES: Final = 64 * 2**20
CHECKED_TOGETHER: Final = 4_096  # records
CHECKED_BYTES: Final = 16 * 2**20
EVENT_TIME, EVENT_STEP, EVENT_SUMMARY = 1, 2, 5
VALUE_TAG, VALUE_NUMBER, VALUE_TENSOR = 1, 2, 8
# TensorProto.dtype -> how one number of its content is packed
CONTENT: Final = {1: "<f4", 2: "<f8", 3: "<i4", 9: "<i8", 19: "<f2"}
NO_SCALAR: Final = "values that are no scalars (histograms, images, texts)"

Record = tuple[bytes, int, bytes, int]  # head, its CRC, data, its CRC


class EventLog:
    """The messages of one file; ``damage`` is filled while they are read."""

    def __init__(self, file: IO[bytes], where: str) -> None:
        self._file = file
        self._where = where
        self.damage: list[str] = []

    def __iter__(self) -> Iterator[bytes]:
        """Yield the messages whose CRC is right, up to the first wrong length."""
        waiting: list[Record] = []
        size = 0
        for record in self._records():
            waiting.append(record)
            size += len(record[2])
            if len(waiting) >= CHECKED_TOGETHER or size >= CHECKED_BYTES:
                yield from self._checked(waiting)
                waiting, size = [], 0
        yield from self._checked(waiting)

    def _records(self) -> Iterator[Record]:
        at = 0
        while head := self._file.read(LENGTH.size):
            if len(head) < LENGTH.size:
                self.damage.append(self._ends(at))
                return
            length, crc = LENGTH.unpack(head)
            if length > MOST_RECORD_BYTES or masked(crc32c.of_one(head[:8])) != crc:
                self.damage.append(
                    f"{self._where} is damaged at byte {at}: what follows is left out"
                )
                return
            data, tail = self._file.read(length), self._file.read(CRC.size)
            if len(data) < length or len(tail) < CRC.size:
                self.damage.append(self._ends(at))
                return
            yield head[:8], at, data, CRC.unpack(tail)[0]
            at += LENGTH.size + length + CRC.size

    def _ends(self, at: int) -> str:
        return f"{self._where} ends within a record at byte {at}: the values before it are imported"

    def _checked(self, records: list[Record]) -> Iterator[bytes]:
        found = crc32c.of_many([data for _, _, data, _ in records])
        for crc, (_, at, data, stored) in zip(found, records, strict=True):
            if masked(crc) == stored:
                yield data
            else:
                self.damage.append(f"{self._where} has a damaged record at byte {at}: left out")


def masked(crc: int) -> int:
    """Return a CRC as event files store it."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read(paths: list[Path], shown_as: str, name: str) -> Recording:
    """Read the event files of one folder as one run.

    Raises `WireError` if a file has too much damage, OSError if it cannot be read.
    """
    # The name of the first file has time, host and process: it tells runs in equal folders apart.
    mark = hashlib.sha256(paths[0].name.encode()).hexdigest()[:8]
    recording = Recording(f"{name}-{mark}", KIND, shown_as, name)
    for path in paths:
        with path.open("rb") as file:
            log = EventLog(file, path.name)
            for data in log:
                try:
                    _take(data, recording)
                except Malformed as error:
                    log.damage.append(f"{path.name} has a record that is no event: {error}")
                if len(log.damage) > 20:
                    raise WireError(path.name, "must be whole, got damage in over 20 places")
        recording.notes += log.damage
    return recording


def _take(data: bytes, recording: Recording) -> None:
    step, seconds = 0, 0.0
    summaries = []
    for number, value in fields(data):
        if number == EVENT_TIME:
            seconds = double(value)
        elif number == EVENT_STEP:
            step = signed(value)
        elif number == EVENT_SUMMARY:
            summaries.append(message(value))
    if summaries:
        recording.times.add(0, step, seconds)
    for summary in summaries:
        for number, value in fields(summary):
            if number == 1:
                _value(message(value), step, recording)


def _value(data: bytes, step: int, recording: Recording) -> None:
    tag, found = "", None
    for number, value in fields(data):
        if number == VALUE_TAG:
            tag = text(value)
        elif number == VALUE_NUMBER:
            found = single(value)
        elif number == VALUE_TENSOR:
            found = _of_tensor(message(value))
    if not tag:
        return
    if found is None:
        recording.leave_out(NO_SCALAR, tag)
    else:
        recording.add(SeriesKey(0, tag), step, found)


def _of_tensor(data: bytes) -> float | None:
    """Return the number of a tensor without dimensions, None for any other tensor."""
    dtype = last(data, 1) or 0
    for number, value in fields(data):
        if number == 2 and last(message(value), 2) is not None:
            return None  # it has dimensions
    if not isinstance(dtype, int) or dtype not in CONTENT:
        return None
    form = CONTENT[dtype]
    content = last(data, 4)
    if content is None:
        content = last(data, {1: 5, 2: 6}.get(dtype, 0))  # float_val, double_val
        if isinstance(content, int):
            size = np.dtype(form).itemsize
            content = (content & (2 ** (8 * size) - 1)).to_bytes(size, "little")
    if not isinstance(content, bytes) or len(content) != np.dtype(form).itemsize:
        return None
    return float(np.frombuffer(content, form)[0])
