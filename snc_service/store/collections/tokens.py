"""Tokens of a store: who may write, read and administer."""

from __future__ import annotations

from snc_service.store.sql.database.dialect import Database
from snc_service.store.sql.records import (
    tokens,
)
from snc_service.store.types import StoreBounds
from snc_service.store.types.records import Token


class Tokens:
    """Tokens by name; of a secret only the SHA-256 is stored. Each method is one transaction."""

    def __init__(self, database: Database, bounds: StoreBounds) -> None:
        self._database = database
        self._most = bounds.tokens

    def add(self, token: Token) -> None:
        """Store a new token (audit ``token_created``). Raises `TokenExists`, `ServiceFull`."""
        with self._database.write() as connection:
            tokens.add(connection, token, self._most)

    def all(self) -> list[Token]:
        """Return every token, including revoked ones, the oldest first."""
        with self._database.read() as connection:
            return tokens.every(connection)

    def revoke(self, name: str, *, author: str, now: float) -> Token:
        """Revoke a token (audit ``token_revoked``), once. Raises `TokenUnknown`."""
        with self._database.write() as connection:
            return tokens.revoke(connection, name, author=author, now=now)
