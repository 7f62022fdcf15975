"""The JSON records of the REST interface that `Api` returns, as typed dictionaries."""

from __future__ import annotations

from typing import Any, TypedDict


class RunRecord(TypedDict):
    """A run: its state, counters and newest values. Times are RFC 3339 in UTC."""

    run: str
    name: str
    project: str
    state: str
    created_at: str
    updated_at: str
    started_at: str
    duration: float | None
    last_step: int | None
    layers: int
    breaches: int
    rescales: int
    worst_ratio: float | None
    worst_layer: str | None
    tags: list[str]


class RunDescription(RunRecord):
    """A run with its config and the names of its metrics and scalars."""

    config: dict[str, Any]
    metrics: list[str]
    scalars: list[str]


class LayerRecord(TypedDict):
    """The newest values of a layer; None where a value was not measured or is not finite."""

    layer: str
    kind: str
    shape: list[int]
    step: int | None
    sigma: float | None
    sigma_upper: float | None
    threshold: float | None
    ratio: float | None
    scale: float | None
    nonfinite: list[str]
    metrics: dict[str, float | None]


class EventRecord(TypedDict):
    """Something that happened once; ``layer`` is the worst of ``layers``, a count."""

    run: str
    id: int
    step: int
    rule: str
    severity: str
    layer: str | None
    layers: int
    value: float | None
    limit: float | None
    message: str
    at: str


class IncidentRecord(TypedDict):
    """Related events of a run; ``rule``, ``layer`` and ``step`` are of the one that names it."""

    incident: int
    run: str
    project: str
    state: str
    severity: str
    rule: str
    layer: str | None
    step: int
    opened_at: str
    acknowledged_by: str | None
    confidence: str | None
    events: list[dict[str, Any]]


class OnsetRecord(TypedDict):
    """A layer that left its healthy band at ``step``; its rule first fired at ``alarm_step``."""

    layer: str
    step: int
    alarm_step: int
    rule: str
    times_limit: float
