"""The audit log: written together with each change, append-only, listed newest first."""

from __future__ import annotations

from typing import Any

from snc_service.store.sql.database.dialect import Connection
from snc_service.store.types.records import AuditAction, AuditEntry


def append(
    connection: Connection,
    action: AuditAction,
    subject: str,
    *,
    author: str,
    now: float,
    detail: str = "",
) -> None:
    """Append an entry inside the caller's transaction."""
    connection.execute(
        "insert into audit (at, author, action, subject, detail) values (?, ?, ?, ?, ?)",
        (now, author, action, subject, detail),
    )


def page(
    connection: Connection,
    *,
    author: str | None,
    action: AuditAction | None,
    subject: str | None,
    limit: int,
    after: int | None,
) -> tuple[list[AuditEntry], int | None]:
    """Return entries, newest first, and the key of the next page."""
    given: list[tuple[str, Any]] = [
        ("author = ?", author),
        ("action = ?", action),
        ("subject = ?", subject),
        ("id < ?", after),
    ]
    filters = [(text, value) for text, value in given if value is not None]
    where = " and ".join(text for text, _ in filters) or "1 = 1"
    rows = connection.execute(
        "select id, at, author, action, subject, detail from audit "
        f"where {where} order by id desc limit ?",
        (*(value for _, value in filters), limit + 1),
    ).fetchall()
    entries = [AuditEntry(*row) for row in rows[:limit]]
    return entries, entries[-1].id if len(rows) > limit else None
