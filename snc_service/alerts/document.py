"""The routing document: receivers by name, and routes that send incidents to them.

It has the same form in JSON and TOML. Errors name the wrong key. Output masks the secrets, and a
masked value in a new document keeps the stored secret, so a document can be read, changed and put.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import Any

from snc_service.alerts.checks import choice, glob, known_keys, link, names, seconds, table
from snc_service.alerts.receivers import MASK, TYPES, Receiver, address, masked_url
from snc_service.store.types.incidents import Entry, Incident
from snc_service.wire import SEVERITIES, Severity, WireError
from snc_service.wire.checks import switch

MAX_RECEIVERS = 32
MAX_ROUTES = 128
REPEAT_SECONDS = 4 * 3_600.0
MIN_REPEAT_SECONDS = 60.0


@dataclass(frozen=True)
class Route:
    """Receivers for incidents of matching projects, from a severity on, with a matching rule.

    ``repeat_seconds`` None: notified once. Several routes may match; each adds its receivers.
    """

    receivers: tuple[str, ...]
    project: str = "*"
    severity: Severity = "warning"
    rules: tuple[str, ...] = ("*",)
    repeat_seconds: float | None = REPEAT_SECONDS
    resolved: bool = True

    def matches(self, incident: Incident) -> bool:
        """Return whether the route matches an incident."""
        return (
            rank(incident.severity) >= rank(self.severity)
            and fnmatchcase(incident.project, self.project)
            and any(self._names(entry) for entry in incident.entries)
        )

    def _names(self, entry: Entry) -> bool:
        return any(fnmatchcase(entry.rule, rule) for rule in self.rules)


@dataclass(frozen=True)
class Terms:
    """How one receiver is notified of one incident: the most frequent of the matching routes."""

    repeat_seconds: float | None
    resolved: bool


@dataclass(frozen=True)
class Alerting:
    """A whole document. ``service_url`` is the public URL of the page, for links in alerts."""

    receivers: Mapping[str, Receiver]
    routes: tuple[Route, ...] = ()
    service_url: str | None = None

    @classmethod
    def parse(cls, value: object, before: Mapping[str, Any] | None = None) -> Alerting:
        """Read a document; masked secrets are taken from ``before``. Raises `WireError`."""
        value = table(value, "alerting")
        known_keys(value, "", ("receivers", "routes", "service_url"))
        given = table(value.get("receivers", {}), "receivers")
        if len(given) > MAX_RECEIVERS:
            raise WireError("receivers", f"must be at most {MAX_RECEIVERS}, got {len(given)}")
        old = {} if before is None else before.get("receivers", {})
        receivers = {name: _receiver(name, each, old.get(name)) for name, each in given.items()}
        routes = value.get("routes", [])
        if not isinstance(routes, list) or len(routes) > MAX_ROUTES:
            raise WireError("routes", f"must be a list of at most {MAX_ROUTES} routes")
        url = value.get("service_url")
        return cls(
            receivers,
            tuple(_route(f"routes.{i}", each, receivers) for i, each in enumerate(routes)),
            None if url is None else link(url, "service_url").rstrip("/"),
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the plain form with secrets, for the store only."""
        routes = [
            {
                "project": each.project,
                "severity": each.severity,
                "rules": list(each.rules),
                "receivers": list(each.receivers),
                "repeat_seconds": each.repeat_seconds,
                "resolved": each.resolved,
            }
            for each in self.routes
        ]
        told = {name: _as_dict(receiver) for name, receiver in self.receivers.items()}
        return {"receivers": told, "routes": routes, "service_url": self.service_url}

    def masked(self) -> dict[str, Any]:
        """Return the form with masked secrets, for API and command line."""
        shown = self.as_dict()
        for name, receiver in self.receivers.items():
            told = shown["receivers"][name]
            told.update({key: MASK for key in receiver.SECRETS if told.get(key) is not None})
            if "url" in told:
                told["url"] = masked_url(receiver.TYPE, told["url"])
        return shown

    def told(self, incident: Incident) -> tuple[str, ...]:
        """Return the receivers of an incident."""
        found = [
            name for route in self.routes if route.matches(incident) for name in route.receivers
        ]
        return tuple(dict.fromkeys(found))

    def terms(self, receiver: str, incident: Incident) -> Terms | None:
        """Return the terms for a receiver and an incident, None if no route leads there now."""
        routes = [r for r in self.routes if receiver in r.receivers and r.matches(incident)]
        if not routes or receiver not in self.receivers:
            return None
        repeats = [r.repeat_seconds for r in routes if r.repeat_seconds is not None]
        return Terms(min(repeats, default=None), any(r.resolved for r in routes))


def rank(severity: str) -> int:
    """Return 0 for info, 1 for warning, 2 for critical."""
    return SEVERITIES.index(severity)


def _receiver(name: object, value: object, before: Mapping[str, Any] | None) -> Receiver:
    names([name], "receivers")
    where = f"receivers.{name}"
    value = dict(table(value, where))
    kind = choice(value.pop("type", None), f"{where}.type", tuple(TYPES))
    return TYPES[kind].parse(str(name), _unmasked(value, where, kind, before), where)


def _unmasked(
    value: dict[str, Any], where: str, kind: str, before: Mapping[str, Any] | None
) -> Mapping[str, Any]:
    """Restore masked secrets; a secret is restored only for the address it was given for."""
    old = before if before is not None and before.get("type") == kind else {}
    if old.get("url") is not None and value.get("url") == masked_url(kind, old["url"]):
        value["url"] = old["url"]
    for key in TYPES[kind].SECRETS:
        if value.get(key) != MASK:
            continue
        if old.get(key) is None:
            raise WireError(f"{where}.{key}", "must be given: nothing is stored that it could keep")
        if address(value) != address(old):
            raise WireError(
                f"{where}.{key}", "must be given again: the address it was given for has changed"
            )
        value[key] = old[key]
    if MASK in str(value.get("url")):
        raise WireError(f"{where}.url", "must be given in full: it is not the one that is stored")
    return value


def _route(where: str, value: object, receivers: Mapping[str, Receiver]) -> Route:
    value = table(value, where)
    known_keys(value, where, [each.name for each in fields(Route)])
    told = names(value.get("receivers"), f"{where}.receivers")
    unknown = [name for name in told if name not in receivers]
    if unknown or not told:
        raise WireError(
            f"{where}.receivers",
            f"must name at least one of the receivers {', '.join(receivers) or '(none)'}, "
            f"got {', '.join(told) or 'none'}",
        )
    rules = value.get("rules", ["*"])
    if not isinstance(rules, list) or not rules:
        raise WireError(f"{where}.rules", "must be a list of globs over rules")
    repeat = value.get("repeat_seconds", REPEAT_SECONDS)
    return Route(
        receivers=told,
        project=glob(value.get("project", "*"), f"{where}.project"),
        severity=choice(value.get("severity", "warning"), f"{where}.severity", SEVERITIES),  # type: ignore[arg-type] # one of the three
        rules=tuple(glob(rule, f"{where}.rules") for rule in rules),
        repeat_seconds=None
        if repeat is None
        else seconds(repeat, f"{where}.repeat_seconds", MIN_REPEAT_SECONDS),
        resolved=switch(value.get("resolved", True), f"{where}.resolved"),
    )


def _as_dict(receiver: Receiver) -> dict[str, Any]:
    shown: dict[str, Any] = {"type": receiver.TYPE}
    for each in fields(receiver):
        value = getattr(receiver, each.name)
        if each.name != "name" and value is not None:
            shown[each.name.rstrip("_")] = list(value) if isinstance(value, tuple) else value
    return shown
