"""Annotations: what people say of a run's steps."""

from __future__ import annotations

from dataclasses import dataclass

MAX_ANNOTATIONS = 1_000  # of one run: detection reads them all when one is added


@dataclass(frozen=True)
class Annotation:
    """A planned change at ``step``: rules that compare with the past begin anew and keep quiet.

    They say nothing for ``quiet_steps`` steps, and their running means start with the first row at
    or after ``step``. ``id`` grows by one per run.
    """

    id: int
    step: int
    quiet_steps: int
    text: str
    author: str
    at: float
