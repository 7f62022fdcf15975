"""Tables of values: CSV and Parquet, with a row per step (wide) or per value (long).

A long table has the columns ``step``, ``value`` and one of ``metric``, ``name``, ``tag`` or
``key``, and may have ``run``, ``attempt`` and ``layer``: the export of this project is one. Without
a column of names, its values are those of the file's name. A wide table has a column of steps;
every other column of numbers is a series, an empty cell was not measured. A column of times says in
both when the steps were written.
"""

from __future__ import annotations

import csv
import hashlib
import math
import os
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Final

from snc_service.importing.recording import Recording, SeriesKey
from snc_service.importing.times import unix_seconds
from snc_service.wire import MAX_STEP, WireError
from snc_service.wire.checks import shown

KINDS: Final = {".csv": "csv", ".parquet": "parquet"}
EXPORT: Final = ("run", "attempt", "metric", "layer", "step", "value")
STEP_COLUMNS: Final = ("step", "_step", "global_step", "trainer/global_step", "train/global_step",
                       "iteration", "iter")  # fmt: skip
NAME_COLUMNS: Final = ("metric", "name", "tag", "key")
RUN_COLUMNS: Final = ("run", "run_id", "run_uuid")
TIME_COLUMNS: Final = (
    "_timestamp",
    "timestamp",
    "wall_time",
    "wall time",
    "time",
    "datetime",
    "date",
)
NO_SERIES: Final = (*TIME_COLUMNS, "_runtime")
MOST_COLUMNS: Final = 100_000
MOST_RUNS: Final = 10_000
MOST_ATTEMPT: Final = 10_000
CELLS_AT_ONCE: Final = 2**20  # of Parquet
# Apostrophes that keep spreadsheets from running a name are no part of it.
_MARK: Final = re.compile("(^|[,;|:\\t\u2028\u2029])'")

Row = Sequence[Any]


def unmarked(name: str) -> str:
    """Return a name of a CSV export without the apostrophes that protect spreadsheets."""
    return _MARK.sub(r"\1", name)


def read(path: Path, shown_as: str, step_name: str | None = None) -> list[Recording]:
    """Read the runs of one file.

    Raises `WireError` if it is no table of values or Parquet cannot be read, OSError if the file
    cannot be read.
    """
    is_csv = path.suffix.lower() == ".csv"
    rows = _csv_rows(path) if is_csv else _parquet_rows(path)
    try:
        header = tuple(str(name) for name in next(rows, ()))
        if not 2 <= len(header) <= MOST_COLUMNS:
            raise WireError(path.name, f"must have 2 to {MOST_COLUMNS} columns, got {len(header)}")
        first = next(rows, None)
        if first is None:
            raise WireError(path.name, "must have rows, got a header alone")
        table = _ValueTable(path, shown_as, header, first, step_name)
        for row in chain([first], rows):
            table.take(row)
    except csv.Error as error:
        raise WireError(path.name, f"must be CSV: {shown(str(error))}") from None
    except UnicodeDecodeError:
        raise WireError(path.name, "must be CSV in UTF-8") from None
    return table.recordings(is_cut=is_csv and not _ends_with_a_line(path))


class _ValueTable:
    """Reads rows into recordings, by the columns that the header names."""

    def __init__(
        self, path: Path, shown_as: str, header: tuple[str, ...], first: Row, step_name: str | None
    ) -> None:
        self._path, self._shown_as = path, shown_as
        lower = [name.strip().lower() for name in header]
        self._kind = KINDS[path.suffix.lower()]
        self._exact = header == EXPORT
        self._marked = self._exact and self._kind == "csv"
        self._found: dict[str, Recording] = {}
        self._last: tuple[Any, ...] = ()
        self._key = SeriesKey(0, "")
        self._recording: Recording | None = None
        step = _column(header, lower, (step_name,) if step_name else STEP_COLUMNS)
        if step is None:
            wanted = step_name or ", ".join(STEP_COLUMNS)
            raise WireError(
                path.name, f"must have a column of steps ({wanted}), got "
                f"{shown(', '.join(header[:20]))}: name it with --step"
            )  # fmt: skip
        self._step = step
        self._value = lower.index("value") if "value" in lower else None
        self._names = _column(header, lower, NAME_COLUMNS) if self._value is not None else None
        self._run = _column(header, lower, RUN_COLUMNS)
        self._layer = lower.index("layer") if "layer" in lower else None
        self._attempt = lower.index("attempt") if "attempt" in lower else None
        self._time = _column(header, lower, TIME_COLUMNS)
        named = (self._step, self._value, self._names, self._run, self._layer, self._attempt)
        is_long = self._value is not None
        self._longest = max(at for at in named if at is not None) if is_long else len(header) - 1
        own = {self._step, self._run}
        self._wide = {
            at: SeriesKey(0, name)
            for at, name in enumerate(header)
            if at not in own
            and lower[at] not in NO_SERIES
            and not name.endswith(("__MIN", "__MAX"))  # of W&B's downloads
        }
        # Two runs of the same file name are told apart by how their tables begin.
        beginning = "\n".join((*header, *(str(cell) for cell in first)))
        self._mark = hashlib.sha256(beginning.encode("utf-8", "replace")).hexdigest()[:8]

    def take(self, row: Row) -> None:
        """Read one row."""
        if not row:
            return
        try:
            step = _whole(row[self._step])
            number = _whole(row[self._attempt]) if self._attempt is not None else 0
            row[self._longest]  # in a row that was cut, cells are missing
        except (IndexError, ValueError, TypeError, OverflowError):
            recording = self._recording or self._of(())
            recording.leave_out("rows that have no step or miss cells")
            return
        if self._value is not None:
            self._long(row, step, number)
            self._timed(row, step, number)
            return
        recording = self._recording = self._of(row)
        self._timed(row, step, 0)
        for at, key in self._wide.items():
            self._cell(recording, key, step, row[at])

    def _timed(self, row: Row, step: int, attempt: int) -> None:
        if self._time is not None and self._recording is not None and len(row) > self._time:
            self._recording.times.add(attempt, step, unix_seconds(row[self._time]))

    def _cell(self, recording: Recording, key: SeriesKey, step: int, cell: Any) -> None:
        if cell is None or cell == "":
            return
        try:
            value = float(cell)
        except (ValueError, TypeError):
            recording.leave_out("cells that are no numbers", key.name)
            return
        recording.add(key, step, value)

    def _long(self, row: Row, step: int, attempt: int) -> None:
        # Rows of one series follow each other in most files: its key is made once.
        parts = tuple(
            row[at] if at is not None else None
            for at in (self._run, self._attempt, self._names, self._layer)
        )
        if self._recording is None or parts != self._last:
            name, layer = parts[2:]
            self._recording, self._last = self._of(row), parts
            if attempt > MOST_ATTEMPT:
                raise WireError(self._path.name, f"must have attempts to {MOST_ATTEMPT}")
            name = str(name) if name is not None else self._path.stem
            layer = str(layer) if layer else None
            if self._marked:
                name, layer = unmarked(name), layer and unmarked(layer)
            self._key = SeriesKey(attempt, name, layer)
        assert self._value is not None
        self._cell(self._recording, self._key, step, row[self._value])

    def _of(self, row: Row) -> Recording:
        name = str(row[self._run]) if row and self._run is not None else ""
        if self._marked:
            name = unmarked(name)
        recording = self._found.get(name)
        if recording is None:
            if len(self._found) >= MOST_RUNS:
                raise WireError(self._path.name, f"must have at most {MOST_RUNS} runs")
            shown_as = f"{self._shown_as}: {name[:64]}" if name else self._shown_as
            id_ = name if self._exact else "-".join(filter(None, (self._path.stem, name)))
            recording = Recording(
                f"{id_}-{self._mark}", self._kind, shown_as, name or self._path.stem,
                exact=self._exact,
            )  # fmt: skip
            self._found[name] = recording
        return recording

    def recordings(self, *, is_cut: bool) -> list[Recording]:
        """Return the runs that have values, or the single one with what was wrong in it."""
        found = list(self._found.values())
        if is_cut and self._recording is not None:
            self._recording.notes.append(
                f"{self._path.name} has no line end behind its last row: it may have been cut"
            )
        return [each for each in found if each.series] or found[:1]


def _column(
    header: Sequence[str], lower: Sequence[str], wanted: Sequence[str | None]
) -> int | None:
    for name in wanted:
        if name in header:
            return header.index(name)
        if name in lower:
            return lower.index(name)
    return None


def _whole(cell: Any) -> int:
    """Return a cell as a step. Raises ValueError."""
    number = float(cell) if not isinstance(cell, int) else cell
    if not math.isfinite(number) or number != int(number) or not 0 <= number <= MAX_STEP:
        raise ValueError("no step")
    return int(cell) if isinstance(cell, str) and cell.isdigit() else int(number)


def _csv_rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        yield from csv.reader(_bounded(lines, path.name))


def _ends_with_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() in (b"\n", b"\r")


def _bounded(lines: Any, where: str) -> Iterator[str]:
    most = MOST_COLUMNS * 64
    while line := lines.readline(most):
        if len(line) == most:
            raise WireError(where, f"must have lines of less than {most} letters")
        yield line


def _parquet_rows(path: Path) -> Iterator[Row]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise WireError(
            path.name, "needs pyarrow: pip install 'spectral-norm-constraint[parquet]'"
        ) from None
    try:
        with parquet.ParquetFile(path) as file:
            names = tuple(file.schema_arrow.names)
            yield names
            for batch in file.iter_batches(max(1, CELLS_AT_ONCE // max(1, len(names)))):
                columns = [column.to_pylist() for column in batch.columns]
                yield from zip(*columns, strict=True)
    except (pa.ArrowException, OSError, ValueError, TypeError, OverflowError) as error:
        if isinstance(error, WireError | FileNotFoundError | PermissionError):
            raise
        raise WireError(path.name, f"must be Parquet: {shown(str(error))}") from None
