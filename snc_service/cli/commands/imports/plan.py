"""What an import will do with one recording: its id, its names, its record."""

from __future__ import annotations

import hashlib
import re
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from snc_service.importing.columns import RecordedColumns
from snc_service.importing.name_map import MappedNames, NameEntry, mapped
from snc_service.importing.recording import STEP_SECONDS, End, Recording, small_config
from snc_service.importing.times import as_text
from snc_service.wire import RUN_NAME, WireError
from snc_service.wire.checks import printable

MOST_TAGS: Final = 64
MARK: Final = "imported"  # the entry of a run's config that says that it was imported


@dataclass(frozen=True)
class ImportPlan:
    """One run to import."""

    run: str
    recording: Recording
    names: MappedNames
    columns: RecordedColumns
    digest: str
    body: dict[str, Any]  # what creates the run

    @property
    def end(self) -> End:
        """Return how the run ended."""
        return self.recording.end

    @property
    def remarks(self) -> list[str]:
        """Return the sentences about what is left out."""
        return [*self.recording.remarks(), *self.names.notes]


def plan(recording: Recording, own: tuple[NameEntry, ...], arguments: Namespace) -> ImportPlan:
    """Decide. Raises `WireError` for a recording without values."""
    if recording.series and not any(entry.target == STEP_SECONDS for entry in own):
        recording.add_step_seconds()
    names = mapped(recording, own)
    if not names.series:
        left = "; ".join([*recording.remarks(), *names.notes])
        raise WireError(
            recording.source, f"must hold numbers at steps, got none{left and ': '}{left}"
        )
    columns = RecordedColumns(recording, names)
    digest = columns.digest()
    mark: dict[str, Any] = {
        "kind": recording.kind,
        "source": recording.source[:1_000],
        "digest": digest,
    }
    if (span := recording.times.span()) is not None:
        mark |= {"started_at": as_text(span[0]), "seconds": round(span[1] - span[0], 3)}
    project = arguments.project or (fitted(recording.project) if recording.project else None)
    tags = [*arguments.tag, *(tag for tag in recording.tags if _is_label(tag))]
    body = {
        "name": arguments.name or _label(recording.name or recording.id),
        "config": {MARK: mark, **_others(recording.config)},
        "tags": list(dict.fromkeys(tags))[:MOST_TAGS],
    }
    run = fitted(f"{recording.kind}-{recording.id}")
    return ImportPlan(
        run, recording, names, columns, digest, body | ({"project": project} if project else {})
    )


def _others(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config without an entry in the place of the mark."""
    return {name: value for name, value in small_config(config).items() if name != MARK}


def fitted(name: str) -> str:
    """Return a name in the form of ids; one that had to be changed gets a hash of itself."""
    if RUN_NAME.fullmatch(name):
        return name
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip("._-") or "run"
    mark = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{plain[:55]}-{mark}"


def _label(text: str) -> str:
    """Return a text that can be the name of a run."""
    kept = "".join(letter for letter in text if letter.isprintable())[:60]
    return kept if _is_label(kept) else "imported"


def _is_label(text: str) -> bool:
    try:
        printable(text, "text", max_bytes=256)
    except WireError:
        return False
    return True
