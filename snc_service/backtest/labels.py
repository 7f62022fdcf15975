"""Labels of runs: healthy or faulty, and the rows of the cause and its symptom."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from snc_service.wire import MAX_STEP, WireError
from snc_service.wire.checks import printable, shown

MOST_LABELS = 100_000
COLUMNS = ("id", "healthy", "cause", "symptom")  # others are optional or ignored


@dataclass(frozen=True)
class Label:
    """One run. Rows count training steps from 0: row t is step t + 1 of a run of the client.

    ``cause`` is the first row of the fault, 0 for a fault of the configuration. ``symptom`` is the
    first row in which the loss shows it, None if none does. ``excluded`` is the reason why a run
    does not count, empty if it does.
    """

    run: str
    healthy: bool
    cause: int = 0
    symptom: int | None = None
    excluded: str = ""

    @property
    def is_gradual(self) -> bool:
        """Return whether there are 20 rows or more between cause and symptom."""
        return self.symptom is not None and self.symptom - self.cause >= 20


def read_labels(lines: Iterable[str]) -> dict[str, Label]:
    """Read the CSV of labels: ``id,healthy,cause,symptom`` and optionally ``excluded``.

    Raises `WireError` naming the line and the column.
    """
    reader = csv.DictReader(lines)
    found: dict[str, Label] = {}
    try:
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise WireError("labels", f"must have the columns {', '.join(COLUMNS)}, got no "
                            f"{', '.join(missing)}")  # fmt: skip
        for row in reader:
            label = _label(row, f"line {reader.line_num}")
            if label.run in found:
                raise WireError(f"line {reader.line_num}", f"must not repeat {shown(label.run)}")
            found[label.run] = label
            if len(found) > MOST_LABELS:
                raise WireError("labels", f"must be at most {MOST_LABELS}")
    except csv.Error as error:
        raise WireError(f"line {reader.line_num}", f"must be CSV: {error}") from None
    return found


def _label(row: Mapping[str | None, str | None], where: str) -> Label:
    run = printable(row["id"], f"{where}: id", max_bytes=256)
    if row["healthy"] not in ("0", "1"):
        raise WireError(f"{where}: healthy", f"must be 0 or 1, got {shown(row['healthy'])}")
    cause = _row_number(row["cause"], f"{where}: cause")
    symptom = _row_number(row["symptom"], f"{where}: symptom")
    healthy = row["healthy"] == "1"
    if healthy:
        cause = symptom = None
    if symptom is not None and symptom < (cause or 0):
        raise WireError(f"{where}: symptom", f"must not come before cause {cause}, got {symptom}")
    excluded = row.get("excluded") or ""
    return Label(run, healthy, cause or 0, symptom, "" if excluded == "0" else excluded)


def _row_number(text: str | None, where: str) -> int | None:
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 16 or int(text) > MAX_STEP:
        raise WireError(where, f"must be a row counted from 0, or empty, got {shown(text)}")
    return int(text)
