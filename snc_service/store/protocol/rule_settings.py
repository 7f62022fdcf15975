"""What rules are set to, and what people say of a run's steps: the store's side of detection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from snc_service.wire import RuleSettings

MAX_ANNOTATIONS = 1_000  # of one run: detection reads them all when one is added


@dataclass(frozen=True)
class StoredRules:
    """Rule settings and where they came from; version 0 are the shipped ones that nobody set."""

    settings: RuleSettings
    version: int
    scope: Literal["run", "project", "none"]
    author: str
    at: float


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


class RuleStore(Protocol):
    """The part of the store that detection obeys; every change writes its audit entry with it."""

    def rules(self, run: str) -> StoredRules:
        """Return the settings in force: the run's own, else its project's, else the shipped."""

    def put_rules(
        self, run: str, settings: RuleSettings, *, author: str, now: float, if_version: int | None
    ) -> StoredRules:
        """Store a new version of a run's own settings (event and audit ``rules_changed``).

        Its version is one above the version in force; the next batch obeys it, whoever stores it.
        Raises `RunUnknown`, `RulesConflict`.
        """

    def rule_versions(self, run: str) -> list[StoredRules]:
        """Return every version of the run's own settings, newest first."""

    def project_rules(self, project: str) -> StoredRules:
        """Return a project's settings (version 0 if none)."""

    def put_project_rules(
        self,
        project: str,
        settings: RuleSettings,
        *,
        author: str,
        now: float,
        if_version: int | None,
    ) -> StoredRules:
        """Store a new version of a project's settings. Raises `RulesConflict`."""

    def project_rule_versions(self, project: str) -> list[StoredRules]:
        """Return every version of a project's settings, newest first."""

    def annotate(
        self, run: str, step: int, text: str, quiet_steps: int, *, author: str, now: float
    ) -> Annotation:
        """Mark a planned change (event ``annotation``). Raises `RunUnknown`, `TooManyAnnotations`.

        A step that has passed already counts from the next batch on.
        """

    def annotations(self, run: str) -> list[Annotation]:
        """Return every annotation of a run, the oldest first. Raises `RunUnknown`."""

    def rule_state(self, run: str) -> bytes | None:
        """Return detection's state after the run's newest batch. Raises `RunUnknown`."""
