"""MLflow stores: a folder of text files (``mlruns``), or an SQLite database (``mlflow.db``).

In a folder, ``EXPERIMENT/RUN/metrics/NAME`` has a line "milliseconds value step" per value.
"""

from __future__ import annotations

import math
import os
import re
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from snc_service.importing.recording import End, Recording, SeriesKey, small_config
from snc_service.importing.times import unix_seconds
from snc_service.wire import WireError
from snc_service.wire.checks import shown

KIND: Final = "mlflow"
META: Final = "meta.yaml"
MOST_META_BYTES: Final = 65_536
MOST_LINE: Final = 200
MOST_PARAMS: Final = 2_000
MOST_RUNS: Final = 100_000
DEEPEST: Final = 12  # names of metrics may have slashes
FAILED: Final = ("FAILED", "KILLED", "4", "5")
TABLES: Final = ("experiments", "runs", "metrics", "params", "tags")
BUSIEST: Final = 2_000_000_000  # steps of SQLite's machine for one statement
_PLAIN_LINE: Final = re.compile(r"([A-Za-z_]+):[ ]?(.*)")


def is_run_folder(folder: Path) -> bool:
    """Return whether a folder is a run of a folder store."""
    return (folder / META).is_file() and (folder / "metrics").is_dir()


def read_folder(folder: Path, shown_as: str) -> Recording:
    """Read one run of a folder store. Raises `WireError`, and OSError if it cannot be read."""
    meta = _meta(folder / META)
    above = folder.parent / META
    experiment = _meta(above) if above.is_file() and not above.is_symlink() else {}
    recording = _recording(
        meta.get("run_id") or folder.name,
        shown_as,
        meta.get("run_name", ""),
        experiment.get("name", ""),
        meta.get("status", ""),
    )
    texts = {part: _small_files(folder / part) for part in ("params", "tags")}
    _describe(recording, texts["params"], texts["tags"])
    for path, name in _files(folder / "metrics"):
        with path.open(encoding="utf-8", errors="replace") as lines:
            while line := lines.readline(MOST_LINE):
                _line(line, name, recording)
    return recording


def _line(line: str, name: str, recording: Recording) -> None:
    try:
        at, value, *rest = line.split()
        step = int(rest[0]) if rest else 0
        recording.add(SeriesKey(0, name), step, float(value))
        recording.times.add(0, step, unix_seconds(at))
    except (ValueError, OverflowError):
        recording.leave_out("lines that are not: milliseconds, value, step", name)


def _files(folder: Path, prefix: str = "", depth: int = 0) -> Iterator[tuple[Path, str]]:
    """Yield the files below a folder with their names; links are not followed."""
    if depth > DEEPEST or not folder.is_dir():
        return
    for entry in sorted(os.scandir(folder), key=lambda each: each.name):
        if entry.is_file(follow_symlinks=False):
            yield Path(entry.path), prefix + entry.name
        elif entry.is_dir(follow_symlinks=False):
            yield from _files(Path(entry.path), f"{prefix}{entry.name}/", depth + 1)


def _small_files(folder: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for path, name in _files(folder):
        if len(found) >= MOST_PARAMS:
            break
        with path.open(encoding="utf-8", errors="replace") as file:
            found[name] = file.read(1_000)
    return found


def _meta(path: Path) -> dict[str, str]:
    """Read the plain lines ``name: value`` of a meta.yaml; quoted texts lose their quotes."""
    with path.open("rb") as file:
        data = file.read(MOST_META_BYTES)
    found = {}
    for line in data.decode("utf-8", "replace").splitlines():
        match = _PLAIN_LINE.fullmatch(line)
        if match:
            found[match[1]] = match[2].strip().strip("'\"")
    return found


def read_database(path: Path, shown_as: str) -> Iterator[Recording]:
    """Yield the runs of an MLflow database that are not deleted; it is opened for reading only.

    Raises `WireError` if it is none.
    """
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as base:
            _guard(base)
            _check_tables(base, path.name)
            statement = (
                "select r.run_uuid, r.name, r.status, e.name from runs r left join experiments e "
                "on e.experiment_id = r.experiment_id where r.lifecycle_stage = 'active' "
                "order by r.start_time, r.run_uuid limit ?"
            )
            for run, name, status, experiment in base.execute(statement, (MOST_RUNS,)).fetchall():
                recording = _recording(
                    str(run), f"{shown_as}: {str(run)[:64]}", str(name or ""),
                    str(experiment or ""), str(status),
                )  # fmt: skip
                _fill(base, run, recording)
                yield recording
    except WireError:
        raise
    except (sqlite3.Error, OverflowError, ValueError) as error:  # its messages may be no UTF-8
        raise WireError(path.name, f"must be an MLflow database: {shown(str(error))}") from None


def _guard(base: sqlite3.Connection) -> None:
    """Let a hostile file run no functions, and no statement without end."""
    base.execute("pragma trusted_schema = off")
    base.execute("pragma cell_size_check = on")
    base.text_factory = lambda data: data.decode("utf-8", "replace")
    if sys.version_info >= (3, 11):
        base.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 2**20)
    ticks = iter(range(BUSIEST // 100_000))
    base.set_progress_handler(lambda: next(ticks, None) is None, 100_000)


def _check_tables(base: sqlite3.Connection, where: str) -> None:
    found = dict(base.execute("select name, type from sqlite_master where name in (?,?,?,?,?)",
                              TABLES).fetchall())  # fmt: skip
    wrong = [name for name in TABLES if found.get(name) != "table"]
    if wrong:
        raise WireError(where, f"must have MLflow's tables, got no table {', '.join(wrong)}")


def _fill(base: sqlite3.Connection, run: Any, recording: Recording) -> None:
    described = {
        table: {
            str(name): str(value)
            for name, value in base.execute(
                f"select key, value from {table} where run_uuid = ? order by key limit ?",
                (run, MOST_PARAMS),
            )
        }
        for table in ("params", "tags")
    }
    _describe(recording, described["params"], described["tags"])
    statement = (
        "select key, step, value, is_nan, timestamp from metrics where run_uuid = ? "
        "order by key, step, timestamp"
    )
    for name, step, value, is_nan, at in base.execute(statement, (run,)):
        if not isinstance(step, int) or not isinstance(value, int | float):
            recording.leave_out("values that are no numbers", str(name))
            continue
        recording.add(SeriesKey(0, str(name)), step, math.nan if is_nan else _infinite(value))
        recording.times.add(0, step, unix_seconds(at))


def _infinite(value: float) -> float:
    """Return infinity for the largest double: databases of MLflow hold it in its place."""
    return math.copysign(math.inf, value) if abs(value) >= sys.float_info.max else float(value)


def _recording(run: str, shown_as: str, name: str, experiment: str, status: str) -> Recording:
    end: End = "failed" if status in FAILED else "finished"
    recording = Recording(run, KIND, shown_as, name, experiment or None, end=end)
    if status in ("RUNNING", "SCHEDULED", "1", "2"):
        recording.notes.append("the run has no end: it was killed, or is still going on")
    return recording


def _describe(recording: Recording, params: dict[str, str], tags: dict[str, str]) -> None:
    recording.config = small_config(params)
    recording.name = recording.name or tags.get("mlflow.runName", "")
    recording.tags = [
        f"{name}={value}" for name, value in tags.items() if not name.startswith("mlflow.")
    ]
