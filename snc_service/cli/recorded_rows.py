"""Rows of runs that other tools recorded, as the rules read them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from snc_service.backtest.columns import rows
from snc_service.cli.failure import Failure
from snc_service.cli.output import clean
from snc_service.importing.columns import RecordedColumns
from snc_service.importing.name_map import NameEntry, entries, mapped
from snc_service.importing.recording import Recording
from snc_service.importing.sources import find
from snc_service.store.types import RunRows
from snc_service.wire import WireError


def recorded_runs(
    path: Path, own: Sequence[str], step_name: str | None
) -> Iterator[tuple[str, Iterator[RunRows]]]:
    """Yield the runs that a path holds, each as its name and its rows.

    What is left out of a run is said on stderr. Raises `Failure`.
    """
    try:
        chosen, sources = entries(own), find(path)
    except WireError as error:
        if error.field == "map":
            raise Failure(str(error)) from None
        what = "must hold .npz files of runs, got none; or what snc import reads, got none"
        raise Failure(f"{path} {what}") from None
    is_folder, num = path.is_dir(), 0
    for source in sources:
        try:
            for recording in source.read(step_name):
                yield recording.id, _judged(recording, chosen)
                num += 1
        except (WireError, OSError) as error:
            if not is_folder:
                raise Failure(str(error)) from None
            print(clean(f"snc: {source.shown_as} is left out: {error}"), file=sys.stderr)
    if not num:
        raise Failure(f"{path} must hold runs that can be read, got none")


def _judged(recording: Recording, own: Sequence[NameEntry]) -> Iterator[RunRows]:
    names = mapped(recording, own)
    for note in (*recording.remarks(), *names.notes):
        print(clean(f"snc: {recording.source}: {note}"), file=sys.stderr)
    yield from _rows(recording, RecordedColumns(recording, names))


def _rows(recording: Recording, columns: RecordedColumns) -> Iterator[RunRows]:
    for piece in columns.pieces():
        yield from rows(
            recording.id,
            columns.layers if piece.metrics else (),
            piece.steps,
            piece.metrics,
            piece.scalars,
            attempt=piece.attempt,
            new_attempt=piece.opens,
        )
