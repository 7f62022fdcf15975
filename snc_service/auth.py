"""Bearer tokens: their form, their rights, and their check.

A secret is ``snc_<id>_<192 random bits>``. The store keeps its SHA-256. It needs no salt and no
slow hash, because 192 bits cannot be guessed. The id finds the row; the secret is compared in
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
# Authors that are not tokens: a token of that name could be mistaken for one.
RESERVED: Final = frozenset(("anonymous", "client", "operator", "retention"))
FRESH_SECONDS: Final = 1.0  # how long a change by another process may go unnoticed


class TokenRefused(Exception):
    """A text that is no valid token; the message states the reason and the cure."""


@dataclass(frozen=True)
class Access:
    """The identity of a client and its rights. ``token`` None: the service requires none."""

    name: str
    scopes: frozenset[Scope]
    project: str | None = None
    token: Token | None = None

    def allows(self, scope: Scope) -> bool:
        """Return whether ``scope`` is granted; admin grants the others."""
        return scope in self.scopes or "admin" in self.scopes

    def reaches(self, project: str) -> bool:
        """Return whether data of ``project`` may be read."""
        return self.project is None or self.project == project


ANYBODY: Final = Access("anonymous", frozenset(SCOPES))


def access_of(token: Token) -> Access:
    """Return the access that a valid token gives."""
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
    """Return a new token and its secret, which is stored nowhere."""
    token_id = secrets.token_hex(6)
    secret = f"snc_{token_id}_{secrets.token_hex(24)}"
    ordered = tuple(scope for scope in SCOPES if scope in scopes)
    return (
        Token(token_id, name, digest(secret), ordered, project, author, now, expires_at),
        secret,
    )


def digest(secret: str) -> str:
    """Return the stored form of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def hide_secrets(text: str) -> str:
    """Return ``text`` with every secret in it shortened to its public part."""
    return SECRET.sub(lambda match: f"snc_{match[1]}_...", text)


class TokenCache:
    """The store's tokens, at most `FRESH_SECONDS` old. For one event loop.

    After the first token was made the service requires one forever: the end of the last token must
    not open the service again.
    """

    def __init__(self, read: Callable[[], list[Token]], clock: Callable[[], float]) -> None:
        self._read = read
        self._clock = clock
        self._by_id: Mapping[str, Token] = {}
        self._read_at = -FRESH_SECONDS
        self._reading = asyncio.Lock()

    @property
    def required(self) -> bool:
        """Return whether there is a token, so that every client needs one."""
        return bool(self._by_id)

    async def refresh(self, *, now: bool = False) -> None:
        """Read the store unless the copy is fresh. Raises the errors of the store."""
        if not now and time.monotonic() - self._read_at < FRESH_SECONDS:
            return
        async with self._reading:
            asked_at = time.monotonic()
            if now or asked_at - self._read_at >= FRESH_SECONDS:
                found = await run_in_threadpool(self._read)
                self._by_id = {token.id: token for token in found}
                self._read_at = asked_at

    def find(self, secret: str) -> Token:
        """Return the token of ``secret``. Raises `TokenRefused`."""
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
        """Return whether an earlier access is still valid."""
        if access.token is None:
            return not self.required
        token = self._by_id.get(access.token.id)
        return token is not None and token.revoked_at is None and self._lasts(token)

    def _lasts(self, token: Token) -> bool:
        return token.expires_at is None or self._clock() < token.expires_at
