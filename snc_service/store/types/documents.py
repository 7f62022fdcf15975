"""Versioned documents: policies, rule settings and the routing of alerts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, Literal, TypeAlias, TypeVar

T = TypeVar("T")
DocumentScope: TypeAlias = Literal["run", "project", "none"]


@dataclass(frozen=True)
class VersionedDocument(Generic[T]):
    """One version of a document and its origin. Version 0 is the default."""

    content: T = field(repr=False)  # the routing of alerts holds secrets
    version: int
    scope: DocumentScope
    author: str
    at: float
