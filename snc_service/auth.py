"""Bearer tokens: what one looks like, what it allows, and whether a text is one of ours.

A secret is ``snc_<id>_<192 random bits>``. The store keeps its SHA-256, which needs no salt and no
slow hash: nobody can guess 192 bits. The id only finds the row; what decides is a comparison in
constant time.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final, get_args

from starlette.concurrency import run_in_threadpool

from snc_service.store.types.records import Scope, Token

SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)
SECRET: Final = re.compile(r"snc_([0-9a-f]{12})_[0-9a-f]{48}")
# Authors that are no tokens: a token of that name would let one pass for the other.
RESERVED: Final = frozenset(("anonymous", "client", "operator", "retention"))
FRESH_SECONDS: Final = 1.0  # how long a token made or revoked by another process may go unnoticed


class TokenRefused(Exception):
    """A text that is no token in force; the message says why, and what to do."""


@dataclass(frozen=True)
class Access:
    """Who asks, and what that one may do. ``token`` None: the service asks nobody for one."""

    name: str
    scopes: frozenset[Scope]
    project: str | None = None
    token: Token | None = None

    def allows(self, scope: Scope) -> bool:
        """Return whether ``scope`` is granted; admin grants the others."""
        return scope in self.scopes or "admin" in self.scopes

    def reaches(self, project: str) -> bool:
        """Return whether what belongs to ``project`` may be seen."""
        return self.project is None or self.project == project


ANYBODY: Final = Access("anonymous", frozenset(SCOPES))


def access_of(token: Token) -> Access:
    """Return what a token in force allows."""
    return Access(token.name, frozenset(token.scopes), token.project, token)


def make_token(
    name: str,
    scopes: Collection[Scope],
    *,
    project: str | None,
    author: str,
    now: float,
    expires_at: float | None,
) -> tuple[Token, str]:
    """Return a new token and its secret, which exists nowhere else."""
    token_id = secrets.token_hex(6)
    secret = f"snc_{token_id}_{secrets.token_hex(24)}"
    ordered = tuple(scope for scope in SCOPES if scope in scopes)
    return (
        Token(token_id, name, digest(secret), ordered, project, author, now, expires_at),
        secret,
    )


def digest(secret: str) -> str:
    """Return what is kept of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def hide_secrets(text: str) -> str:
    """Return ``text`` with every secret in it cut to its public part."""
    return SECRET.sub(lambda match: f"snc_{match[1]}_...", text)


class TokenCache:
    """The store's tokens as they were at most `FRESH_SECONDS` ago. For one event loop.

    Once a token was made the service asks everybody for one, for ever: revoking or outliving the
    last must not open what was closed.
    """

    def __init__(self, read: Callable[[], list[Token]], clock: Callable[[], float]) -> None:
        self._read = read
        self._clock = clock
        self._by_id: Mapping[str, Token] = {}
        self._read_at = -FRESH_SECONDS
        self._reading = asyncio.Lock()

    @property
    def required(self) -> bool:
        """Return whether there is a token, so that everybody needs one."""
        return bool(self._by_id)

    async def refresh(self, *, now: bool = False) -> None:
        """Read the store unless that was done just now. Raises what the store raises."""
        if not now and time.monotonic() - self._read_at < FRESH_SECONDS:
            return
        async with self._reading:
            asked_at = time.monotonic()
            if now or asked_at - self._read_at >= FRESH_SECONDS:
                found = await run_in_threadpool(self._read)
                self._by_id = {token.id: token for token in found}
                self._read_at = asked_at

    def find(self, secret: str) -> Token:
        """Return the token whose secret this is. Raises `TokenRefused`."""
        match = SECRET.fullmatch(secret)
        token = self._by_id.get(match[1]) if match else None
        if token is None or not hmac.compare_digest(token.digest, digest(secret)):
            raise TokenRefused("the token is not one of this service: it was cut or mistyped")
        if token.revoked_at is not None:
            raise TokenRefused("the token was revoked: ask for a new one")
        if not self._lasts(token):
            raise TokenRefused("the token has expired: ask for a new one")
        return token

    def counts(self, access: Access) -> bool:
        """Return whether what was granted before still is."""
        if access.token is None:
            return not self.required
        token = self._by_id.get(access.token.id)
        return token is not None and token.revoked_at is None and self._lasts(token)

    def _lasts(self, token: Token) -> bool:
        return token.expires_at is None or self._clock() < token.expires_at
