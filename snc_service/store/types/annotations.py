"""Annotations: planned changes of a run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Annotation:
    """A planned change at ``step``, after which rules stop comparing with earlier rows.

    Rules that compare with the past are muted for ``quiet_steps`` steps. Their running means
    restart at the first row at or after ``step``. ``id`` grows by one per run.
    """

    id: int
    step: int
    quiet_steps: int
    text: str
    author: str
    at: float
