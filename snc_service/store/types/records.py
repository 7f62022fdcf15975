"""Tokens, commands and audit entries: the types of the store for access control.

Times are Unix seconds. Nothing here holds a secret: of a token only the SHA-256 is stored.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from snc_service.wire import CommandAction

Scope: TypeAlias = Literal["ingest", "read", "admin"]
AuditAction: TypeAlias = Literal[
    "run_policy_changed",
    "project_policy_changed",
    "run_rules_changed",
    "project_rules_changed",
    "token_created",
    "token_revoked",
    "command_sent",
    "run_deleted",
    "run_changed",
    "run_acknowledged",
    "run_thinned",
    "run_repaired",
    "alerting_changed",
    "incident_acknowledged",
    "silence_added",
    "silence_deleted",
]
MAX_WAITING_COMMANDS = 16  # of one run: each acknowledgement carries them all


@dataclass(frozen=True)
class Token:
    """A stored token. ``id`` is public and part of the secret's text; names are unique."""

    id: str
    name: str
    digest: str = field(repr=False)  # hex SHA-256 of the whole secret
    scopes: tuple[Scope, ...]
    project: str | None  # None: every project
    author: str
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None


@dataclass(frozen=True)
class StoredCommand:
    """A stored command; ``seen_at`` is None until the job has received it."""

    id: int  # grows by one per run
    action: CommandAction
    reason: str
    author: str
    at: float
    seen_at: float | None = None


@dataclass(frozen=True)
class AuditEntry:
    """A change by a user or a token: ``subject`` is the run, project or token."""

    id: int
    at: float
    author: str
    action: AuditAction
    subject: str
    detail: str
