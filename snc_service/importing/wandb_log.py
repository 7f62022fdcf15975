"""W&B offline runs: ``run-ID.wandb``, a record log in blocks as LevelDB writes it, of messages.

A file begins with ``:W&B``, a magic number and a version. Blocks of 32 KiB hold fragments: CRC-32,
length, kind (whole, first, middle, last), data. The CRC covers kind and data. A record whose CRC is
wrong is left out; after two in a row their lengths are not trusted, and the rest of the block is.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Final

import numpy as np

from snc_service.importing.points import Points
from snc_service.importing.protobuf import (
    Malformed,
    double,
    fields,
    last,
    message,
    signed,
    text,
    zigzag,
)
from snc_service.importing.recording import Recording, SeriesKey, small_config
from snc_service.importing.times import unix_seconds
from snc_service.wire import MAX_STEP, WireError

KIND: Final = "wandb"
BLOCK: Final = 32_768
HEADER: Final = struct.Struct("<IHB")
START: Final = struct.Struct("<4sHB")
IDENTITY: Final = (b":W&B", 0xBEE1, 0)
DAMAGED, WHOLE, FIRST, LAST = 0, 1, 2, 4  # 3: in the middle
MOST_RECORD_BYTES: Final = 64 * 2**20
MOST_JSON: Final = 65_536  # letters of a config value
# Steps of the training, if every row has one; its own `_step` counts calls of `log`.
CALLS: Final = "_step"
TIME: Final = "_timestamp"
STEPS: Final = ("trainer/global_step", "train/global_step", "global_step")
RECORD_HISTORY, RECORD_CONFIG, RECORD_RUN, RECORD_EXIT = 2, 5, 17, 18

Row = dict[str, float]


class RecordLog:
    """The records of one file; ``damage`` is filled while they are read."""

    def __init__(self, file: IO[bytes], where: str) -> None:
        self._file = file
        self._where = where
        self.damage: list[str] = []

    def __iter__(self) -> Iterator[bytes]:
        """Yield the records whose CRC is right. Raises `WireError` if this is no such file."""
        parts: list[bytes] = []
        is_open, size = False, 0
        for kind, data in self._fragments():
            if kind in (WHOLE, FIRST):
                parts, size, is_open = [], 0, True
            elif kind == DAMAGED:
                is_open = False
            if not is_open:
                continue  # the rest of a record whose beginning is lost
            size += len(data)
            parts.append(data)
            if size > MOST_RECORD_BYTES:
                self.damage.append(f"{self._where} has a record above 64 MiB: it is left out")
                is_open = False
            elif kind in (WHOLE, LAST):
                yield b"".join(parts)
                is_open = False
        if is_open:
            self.damage.append(f"{self._where} ends within a record: it is left out")

    def _fragments(self) -> Iterator[tuple[int, bytes]]:
        """Yield kind and data of each fragment; `DAMAGED` in place of a fragment that is."""
        block, start = self._file.read(BLOCK), 0
        if len(block) < START.size or START.unpack_from(block) != IDENTITY:
            raise WireError(self._where, "must begin as a W&B log does, with :W&B and version 0")
        at, wrong = START.size, 0
        while block:
            while at + HEADER.size <= len(block):
                crc, length, kind = HEADER.unpack_from(block, at)
                data = block[at + HEADER.size : at + HEADER.size + length]
                if len(data) < length and len(block) < BLOCK:
                    self.damage.append(
                        f"{self._where} ends within a record at byte {start + at}: the rows before "
                        "it are imported"
                    )
                    return
                is_right = (
                    len(data) == length
                    and WHOLE <= kind <= LAST
                    and zlib.crc32(data, zlib.crc32(bytes([kind]))) == crc
                )
                wrong = 0 if is_right else wrong + 1
                if is_right:
                    yield kind, data
                else:
                    yield DAMAGED, b""
                    what = "a damaged record" if wrong == 1 else "damage to the end of the block"
                    self.damage.append(f"{self._where} has {what} at byte {start + at}: left out")
                    if wrong > 1 or len(data) < length:
                        break
                at += HEADER.size + length
            start += BLOCK
            block, at = self._file.read(BLOCK), 0


def read(paths: list[Path], shown_as: str, step_name: str | None = None) -> Recording:
    """Read the files of one run, the oldest first; a resumed run has several.

    Raises `WireError` if a file is no W&B log or has no row, OSError if it cannot be read.
    """
    recording = Recording("", KIND, shown_as)
    num_rows, ended = 0, False
    for path in paths:
        with path.open("rb") as file:
            log = RecordLog(file, path.name)
            for data in log:
                try:
                    rows, is_end = _take(data, recording)
                    for row in rows:
                        _add(row, num_rows, recording)
                        num_rows += 1
                    ended |= is_end
                except Malformed as error:
                    log.damage.append(f"{path.name} has a record that is no message: {error}")
                if len(log.damage) > 20:
                    raise WireError(path.name, "must be whole, got damage in over 20 places")
        recording.notes += log.damage
    if not ended:
        recording.notes.append("the run has no end: it was killed, or is still going on")
    _place(recording, num_rows, step_name)
    return recording


def _take(data: bytes, recording: Recording) -> tuple[list[Row], bool]:
    """Read one record; return its rows, and whether it says that the run ended."""
    rows: list[Row] = []
    ended = False
    for number, value in fields(data):
        if number == RECORD_HISTORY:
            rows.append(_row(message(value), recording))
        elif number == RECORD_CONFIG:
            _configure(message(value), recording)
        elif number == RECORD_RUN:
            _describe(message(value), recording)
        elif number == RECORD_EXIT:
            recording.end = "failed" if last(message(value), 1) else "finished"
            ended = True
    return rows, ended


def _describe(data: bytes, recording: Recording) -> None:
    recording.tags = []
    for number, value in fields(data):
        if number == 1:
            recording.id = text(value)
        elif number == 3:
            recording.project = text(value)
        elif number == 4:
            _configure(message(value), recording)
        elif number == 8:
            recording.name = text(value)
        elif number == 10:
            recording.tags.append(text(value))


def _configure(data: bytes, recording: Recording) -> None:
    found = dict(recording.config)
    for number, value in fields(data):
        if number == 1:
            name, json_text, _ = _item(message(value))
            if name != "_wandb" and len(json_text) <= MOST_JSON:
                found[name] = _parsed(json_text)
    recording.config = small_config(found)


def _parsed(json_text: str) -> Any:
    try:
        return json.loads(json_text)
    except (ValueError, RecursionError):
        return json_text[:80]


def _row(data: bytes, recording: Recording) -> Row:
    row: Row = {}
    for number, value in fields(data):
        if number == 1:
            name, json_text, direct = _item(message(value))
            number_there = direct if direct is not None else _number(json_text)
            if number_there is None:
                recording.leave_out("values that are no numbers", name)
            else:
                row[name] = number_there
        elif number == 2:
            row[CALLS] = float(signed(last(message(value), 1) or 0))
    return row


def _item(data: bytes) -> tuple[str, str, float | None]:
    """Return the name of an item, its JSON, and its number if it is stored as one."""
    name, nested, json_text = "", [], ""
    direct: float | None = None
    for number, value in fields(data):
        if number == 1:
            name = text(value)
        elif number == 2:
            nested.append(text(value))
        elif number == 5:
            direct = float(zigzag(value))
        elif number == 6:
            direct = double(value)
        elif number in (8, 16):
            json_text = text(value)
    return name or ".".join(nested), json_text, direct


_NOT_FINITE: Final = {
    "NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf"),
}  # fmt: skip


def _number(json_text: str) -> float | None:
    bare = json_text.strip('"')
    if bare in _NOT_FINITE:
        return _NOT_FINITE[bare]
    if json_text[:1].isdigit() or json_text[:1] == "-":
        try:
            return float(json_text)
        except ValueError:
            return None
    return None


def _add(row: Row, number: int, recording: Recording) -> None:
    """Add a row by its number: which of its values is the step is known when all rows are."""
    recording.times.add(0, number, unix_seconds(row.get(TIME)))
    for name, value in row.items():
        if name == CALLS or not name.startswith("_"):
            recording.add(SeriesKey(0, name), number, value)


def _place(recording: Recording, num_rows: int, step_name: str | None) -> None:
    """Lead the values from the numbers of their rows to the steps of their rows."""
    series = recording.series
    if step_name is None:
        everywhere = (n for n in STEPS if len(_points(series, n).steps) == num_rows > 0)
        step_name = next(everywhere, CALLS)
    steps = np.full(num_rows, -1, np.int64)
    rows, values = _points(series, step_name).ordered()
    with np.errstate(invalid="ignore"):
        is_step = (values >= 0) & (values <= MAX_STEP) & (values == np.floor(values))
    steps[rows[is_step]] = values[is_step].astype(np.int64)
    missing = int(np.count_nonzero(steps < 0))
    if missing:
        recording.leave_out(f"rows without a whole number {step_name}", count=missing)
    recording.series, recording.num_points = {}, 0
    recording.times = recording.times.placed(steps)
    for key, points in series.items():
        at = steps[np.frombuffer(points.steps, np.int64)]
        if key.name not in (CALLS, step_name) and (at >= 0).any():
            recording.extend(key, at[at >= 0], np.frombuffer(points.values)[at >= 0])
    if num_rows and step_name != CALLS:
        recording.notes.append(f"steps are the values of {step_name}")
    project = f"{recording.project}-" if recording.project else ""
    recording.id = f"{project}{recording.id or Path(recording.source).stem}"


def _points(series: Mapping[SeriesKey, Points], name: str) -> Points:
    return series.get(SeriesKey(0, name)) or Points()
