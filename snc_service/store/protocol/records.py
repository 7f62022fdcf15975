"""Who may do what, what was asked of a running job, and who changed what: the store's side of it.

Times are Unix seconds. Nothing here holds a secret: of a token's, only the SHA-256 is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

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
    "run_thinned",
    "alerting_changed",
    "incident_acknowledged",
    "silence_added",
    "silence_deleted",
]
MAX_WAITING_COMMANDS = 16  # of one run: each acknowledgement carries them all


@dataclass(frozen=True)
class Token:
    """A token as it is kept. ``id`` is public and part of the secret's text; names are unique."""

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
    """What somebody asks of a run's job; ``seen_at`` is None until the job has it."""

    id: int  # grows by one per run
    action: CommandAction
    reason: str
    author: str
    at: float
    seen_at: float | None = None


@dataclass(frozen=True)
class AuditEntry:
    """Something that a person or a token changed: ``subject`` is the run, project or token."""

    id: int
    at: float
    author: str
    action: AuditAction
    subject: str
    detail: str


class Records(Protocol):
    """The part of the store that is about people; every change writes its audit entry with it."""

    def add_token(self, token: Token) -> None:
        """Keep a new token (audit ``token_created``). Raises `TokenExists`."""

    def tokens(self) -> list[Token]:
        """Return every token there ever was, the oldest first."""

    def revoke_token(self, name: str, *, author: str, now: float) -> Token:
        """Revoke a token (audit ``token_revoked``), once. Raises `TokenUnknown`."""

    def project_of(self, run: str) -> str:
        """Return a run's project. Raises `RunUnknown`."""

    def add_command(
        self, run: str, action: CommandAction, reason: str, *, author: str, now: float
    ) -> StoredCommand:
        """Leave a command for a run's job (event ``command``, audit ``command_sent``).

        Raises `RunUnknown`, `RunClosed`, and `CommandsWaiting` past `MAX_WAITING_COMMANDS`.
        """

    def commands(self, run: str) -> list[StoredCommand]:
        """Return every command of a run, newest first. Raises `RunUnknown`."""

    def audit(
        self,
        *,
        author: str | None,
        action: AuditAction | None,
        subject: str | None,
        limit: int,
        after: int | None,
    ) -> tuple[Sequence[AuditEntry], int | None]:
        """Return entries, newest first, and the id to continue ``after``, None at the end."""
