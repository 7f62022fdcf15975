"""Tokens: never deleted, so a name in the audit log always means the same token."""

from __future__ import annotations

import dataclasses

from snc_service.store.sql.database.dialect import Connection, Row
from snc_service.store.sql.records import audit
from snc_service.store.types import QuotaExceeded, ServiceFull, TokenExists, TokenUnknown
from snc_service.store.types.records import Token

_SELECT = (
    "select id, name, digest, scopes, project, author, created_at, expires_at, revoked_at "
    "from token"
)


def add(connection: Connection, token: Token, most: int) -> None:
    """Store a new token; there are at most ``most``. Raises `TokenExists`, `ServiceFull`."""
    (count,) = connection.execute("select count(*) from token").fetchone()
    if count >= most:
        raise ServiceFull("tokens, revoked ones included,", "tokens", most, field="name")
    added = connection.execute(
        "insert into token (id, name, digest, scopes, project, author, created_at, expires_at, "
        "revoked_at) values (?, ?, ?, ?, ?, ?, ?, ?, ?) on conflict (name) do nothing",
        (
            token.id,
            token.name,
            token.digest,
            " ".join(token.scopes),
            token.project,
            token.author,
            token.created_at,
            token.expires_at,
            token.revoked_at,
        ),
    ).rowcount
    if not added:
        raise TokenExists(f"there is, or was, a token named {token.name!r}: take another name")
    detail = f"scopes {', '.join(token.scopes)}; project {token.project or 'any'}"
    audit.append(
        connection,
        "token_created",
        token.name,
        author=token.author,
        now=token.created_at,
        detail=detail,
    )


def every(connection: Connection) -> list[Token]:
    """Return every token, the oldest first."""
    return [_token(row) for row in connection.execute(f"{_SELECT} order by created_at, name")]


def revoke(connection: Connection, name: str, *, author: str, now: float) -> Token:
    """Revoke a token, once. Raises `TokenUnknown`."""
    row = connection.execute(f"{_SELECT} where name = ?", (name,)).fetchone()
    if row is None:
        raise TokenUnknown(f"there is no token named {name!r}")
    token = _token(row)
    if token.revoked_at is not None:
        return token
    revoked = connection.execute(
        "update token set revoked_at = ? where name = ? and revoked_at is null", (now, name)
    ).rowcount
    if not revoked:  # another process was faster
        return revoke(connection, name, author=author, now=now)
    audit.append(connection, "token_revoked", name, author=author, now=now)
    return dataclasses.replace(token, revoked_at=now)


def claim_run(connection: Connection, run_id: int, author: str, quota: int | None) -> None:
    """Record the creator of a run. Raises `QuotaExceeded` above ``quota`` runs of that author."""
    if quota is not None:
        # The lock counts concurrent creations under one token one at a time.
        connection.execute(
            f"select id from token where name = ?{connection.for_update}", (author,)
        ).fetchone()
        (runs,) = connection.execute(
            "select count(*) from run_author where author = ?", (author,)
        ).fetchone()
        if runs >= quota:
            raise QuotaExceeded(
                f"runs created by {author!r} must be at most {quota}: delete some first"
            )
    connection.execute("insert into run_author (run_id, author) values (?, ?)", (run_id, author))


def _token(row: Row) -> Token:
    id_, name, digest, scopes, *rest = row
    return Token(id_, name, digest, tuple(scopes.split()), *rest)
