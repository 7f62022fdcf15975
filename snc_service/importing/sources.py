"""What a path holds: files of runs in every form that can be imported."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from snc_service.importing import event_files, mlflow_store, tables, wandb_log
from snc_service.importing.recording import Recording
from snc_service.wire import WireError

MOST_ENTRIES: Final = 1_000_000  # files and folders looked at
DEEPEST: Final = 24
DATABASES: Final = (".db", ".sqlite", ".sqlite3")
SQLITE: Final = b"SQLite format 3\0"

Form = Literal["wandb", "tensorboard", "mlflow", "table"]


@dataclass(frozen=True)
class FoundSource:
    """Files that hold one run, or several in a table or database."""

    form: Form
    paths: tuple[Path, ...]  # of one run, the oldest first; or the folder of an MLflow run
    shown_as: str  # relative to what was asked for

    def read(self, step_name: str | None = None) -> Iterator[Recording]:
        """Yield its runs. Raises `WireError` and OSError; runs before the fault are yielded."""
        first = self.paths[0]
        if self.form == "wandb":
            yield wandb_log.read(list(self.paths), self.shown_as, step_name)
        elif self.form == "tensorboard":
            yield event_files.read(list(self.paths), self.shown_as, first.parent.name or "run")
        elif self.form == "table":
            yield from tables.read(first, self.shown_as, step_name)
        elif first.is_dir():
            yield mlflow_store.read_folder(first, self.shown_as)
        else:
            yield from mlflow_store.read_database(first, self.shown_as)


def find(path: Path) -> list[FoundSource]:
    """Return the sources that a file is, or that a folder and the folders in it hold.

    Links inside of folders are not followed. Raises `WireError` if nothing can be imported.
    """
    if path.is_dir():
        found = _merged(_in_folder(path, path))
    else:
        form = _form_of(path)
        found = [] if form is None else [FoundSource(form, (path,), path.name)]
    if not found:
        raise WireError(
            str(path),
            "must be or hold W&B logs (run-*.wandb), TensorBoard event files (*.tfevents.*), an "
            "MLflow store (mlruns, mlflow.db), CSV or Parquet, got none of them",
        )
    return found


def is_recorded(path: Path) -> bool:
    """Return whether a file has the form of one that can be imported."""
    return path.is_file() and _form_of(path) is not None


def _form_of(path: Path) -> Form | None:
    if path.suffix == ".wandb":
        return "wandb"
    if event_files.MARK in path.name:
        return "tensorboard"
    if path.suffix.lower() in tables.KINDS:
        return "table"
    return "mlflow" if path.suffix.lower() in DATABASES and _is_sqlite(path) else None


def _is_sqlite(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(SQLITE)) == SQLITE


def _in_folder(folder: Path, top: Path) -> Iterator[FoundSource]:
    waiting, seen = [(folder, 0)], 0
    while waiting:
        here, depth = waiting.pop()
        if mlflow_store.is_run_folder(here):
            yield FoundSource("mlflow", (here,), _shown(here, top))
            continue
        events: list[Path] = []
        below: list[Path] = []
        for entry in sorted(os.scandir(here), key=lambda each: each.name):
            seen += 1
            if seen > MOST_ENTRIES:
                raise WireError(str(top), f"must hold at most {MOST_ENTRIES} files and folders")
            path = Path(entry.path)
            if entry.is_dir(follow_symlinks=False) and depth < DEEPEST:
                below.append(path)
            elif not entry.is_file(follow_symlinks=False):
                continue
            elif event_files.MARK in entry.name:
                events.append(path)
            elif (form := _form_of(path)) is not None:
                yield FoundSource(form, (path,), _shown(path, top))
        if events:
            yield FoundSource("tensorboard", tuple(events), _shown(here, top))
        waiting += [(path, depth + 1) for path in reversed(below)]


def _merged(found: Iterator[FoundSource]) -> list[FoundSource]:
    """Join the W&B logs of one run: a resumed run has a folder for each of its processes."""
    joined: dict[object, FoundSource] = {}
    for source in found:
        key: object = source.paths
        if source.form == "wandb":
            key = (source.paths[0].parent.parent, source.paths[0].name)
        before = joined.get(key)
        if before is None:
            joined[key] = source
        else:
            paths = sorted(before.paths + source.paths, key=_begun)
            joined[key] = FoundSource("wandb", tuple(paths), before.shown_as)
    return list(joined.values())


def _begun(path: Path) -> str:
    """Return what sorts W&B's folders by time: run-DATE-ID, offline-run-DATE-ID."""
    return path.parent.name.removeprefix("offline-")


def _shown(path: Path, top: Path) -> str:
    return top.name if path == top else path.relative_to(top).as_posix()
