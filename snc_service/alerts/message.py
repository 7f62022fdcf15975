"""The content of a message: a title, a line per event, and the JSON of webhooks."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any, Literal, TypeAlias
from urllib.parse import quote

from snc_service.alerts.naming import confidence, head, worst_entry
from snc_service.store.types.incidents import Entry, Incident

Status: TypeAlias = Literal["firing", "resolved", "notice", "test"]
VERSION = 1  # of the JSON form: fields are added, never renamed


@dataclass(frozen=True)
class Message:
    """One incident for one receiver. ``service_url`` is the public URL of the page.

    A message with ``others``, incidents of the same run, is a digest.
    """

    status: Status
    incident: Incident
    service_url: str | None = None
    others: tuple[Incident, ...] = ()

    @property
    def key(self) -> str:
        """Return the key of the message; a retry has the same key."""
        return f"{self.incident.id}-{self.incident.revision}-{self.status}"

    @property
    def title(self) -> str:
        """Return one line: the severity, the run, the head's rule and layer, and the worst rule."""
        incident, named, worst = self.incident, head(self.incident), worst_entry(self.incident)
        word = incident.severity if self.status == "firing" else self.status
        where = f" in {named.layer}" if named.layer else ""
        title = f"[{word}] {incident.run}: {named.rule}{where} at step {named.step}"
        told = 1
        if worst is not named:
            title += f", then {worst.rule} at step {worst.step}"
            told = 2
        more = len(incident.entries) + incident.omitted - told
        title += f", and {more} more" if more else ""
        if self.others:
            title += f", and {len(self.others)} more incidents of this run"
        return one_line(title)

    @property
    def lines(self) -> list[str]:
        """Return a line per event, in the order of arrival, and one about what they are worth."""
        told = [_line(entry) for entry in self.incident.entries]
        if self.incident.omitted:
            told.append(f"and {self.incident.omitted} more")
        return [*told, self.confidence] if self.confidence else told

    @property
    def confidence(self) -> str | None:
        """Return how often events like these were right; None where nothing is known."""
        return confidence(self.incident)

    @property
    def link(self) -> str | None:
        """Return the URL of the run's page, None without ``service_url``."""
        if self.service_url is None:
            return None
        return f"{self.service_url}/#/runs/{quote(self.incident.run, safe='')}"

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        incident, named = self.incident, head(self.incident)
        return {
            "version": VERSION,
            "status": self.status,
            "title": self.title,
            "incident": incident.id,
            "revision": incident.revision,
            "run": incident.run,
            "project": incident.project,
            "severity": incident.severity,
            "rule": named.rule,
            "layer": named.layer,
            "step": named.step,
            "opened_at": rfc3339(incident.opened_at),
            "resolved_at": None if incident.resolved_at is None else rfc3339(incident.resolved_at),
            "acknowledged_by": incident.acknowledged_by or None,
            "confidence": self.confidence,
            "events": [_event(entry) for entry in incident.entries],
            "omitted": incident.omitted,
            "more_incidents": [other.id for other in self.others],
            "link": self.link,
        }


def test_message(service_url: str | None, now: float) -> Message:
    """Return the message of ``snc alerts test``; its text states that it is a test."""
    text = "this is a test of the alerts of snc: nothing happened"
    entry = Entry(id=0, at=now, step=0, rule="test", severity="info", message=text)
    incident = Incident(0, "test", "test", "notice", "info", (entry,), now, now, revision=int(now))
    return Message("test", incident, service_url)


def one_line(text: str) -> str:
    """Return ``text`` without what ends a line or turns it around: separators, controls, marks."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def rfc3339(seconds: float) -> str:
    """Return Unix seconds as UTC with milliseconds."""
    at = datetime.fromtimestamp(seconds, timezone.utc)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _line(entry: Entry) -> str:
    return one_line(f"step {entry.step}, {entry.rule} ({entry.severity}): {entry.message}")


def _event(entry: Entry) -> dict[str, Any]:
    return {**asdict(entry), "at": rfc3339(entry.at)}
