"""The audit log of a store."""

from __future__ import annotations

from snc_service.store.sql.database.dialect import Database
from snc_service.store.sql.records import (
    audit,
)
from snc_service.store.types.records import AuditAction, AuditEntry


class AuditLog:
    """Audit entries: the author of each change, written with it. Each method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def page(
        self,
        *,
        author: str | None = None,
        action: AuditAction | None = None,
        subject: str | None = None,
        limit: int = 100,
        after: int | None = None,
    ) -> tuple[list[AuditEntry], int | None]:
        """Return entries, newest first, and the id to continue ``after``, None at the end."""
        with self._database.read() as connection:
            return audit.page(
                connection, author=author, action=action, subject=subject, limit=limit, after=after
            )
