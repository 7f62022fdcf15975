"""Tokens themselves: random, kept as digests, compared in constant time, revoked everywhere."""

import asyncio
import dataclasses

import pytest
from api_cases import START

from snc_service import auth
from snc_service.auth import (
    ANYBODY,
    SECRET,
    TokenCache,
    access_of,
    digest,
    hide_secrets,
    make_token,
)
from snc_service.store.types.records import Token


def new_token():
    return make_token("n", ["read"], project=None, author="x", now=0.0, expires_at=None)


def test_a_secret_is_192_random_bits_and_only_its_digest_is_kept():
    given = {"project": None, "author": "root", "now": START, "expires_at": None}
    made = [make_token("n", ["read"], **given) for _ in range(100)]
    assert len({secret for _, secret in made}) == 100
    for token, secret in made:
        assert SECRET.fullmatch(secret)
        assert token.digest == digest(secret)
        assert secret[17:] not in str(dataclasses.asdict(token))
        assert token.digest not in repr(token)


def test_a_digest_is_sha_256():
    assert digest("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_digests_are_compared_in_constant_time(monkeypatch):
    token, secret = new_token()
    tokens = TokenCache(lambda: [token], lambda: 0.0)
    asyncio.run(tokens.refresh())
    seen = []
    real = auth.hmac.compare_digest
    monkeypatch.setattr(auth.hmac, "compare_digest", lambda a, b: seen.append((a, b)) or real(a, b))
    tokens.find(secret)
    assert seen == [(digest(secret),) * 2]


def test_no_secret_survives_in_a_log_line():
    _, secret = new_token()
    hidden = hide_secrets(f"GET /x?token={secret}&b=1 {secret}")
    assert secret[17:] not in hidden
    assert hidden.count(secret[:16]) == 2


@pytest.mark.anyio
async def test_what_another_process_revoked_is_noticed_within_a_second(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(auth.time, "monotonic", lambda: now[0])
    token, secret = new_token()
    kept: list[Token] = [token]
    tokens = TokenCache(lambda: list(kept), lambda: 0.0)
    await tokens.refresh()
    assert tokens.find(secret) == token
    kept[0] = dataclasses.replace(token, revoked_at=1.0)
    now[0] += 0.5
    await tokens.refresh()
    assert tokens.find(secret) == token
    now[0] += 0.6
    await tokens.refresh()
    with pytest.raises(auth.TokenRefused, match="revoked"):
        tokens.find(secret)
    assert tokens.required


@pytest.mark.anyio
async def test_what_was_granted_lasts_until_the_token_is_revoked_expires_or_is_gone():
    now = [0.0]
    token = dataclasses.replace(new_token()[0], expires_at=10.0)
    kept: list[Token] = []
    tokens = TokenCache(lambda: list(kept), lambda: now[0])
    assert tokens.counts(ANYBODY)
    kept.append(token)
    await tokens.refresh(now=True)
    assert not tokens.counts(ANYBODY), "with the first token everybody needs one"
    assert tokens.counts(access_of(token))
    now[0] = 9.9
    assert tokens.counts(access_of(token))
    now[0] = 10.0
    assert not tokens.counts(access_of(token))
    now[0] = 0.0
    kept[0] = dataclasses.replace(token, revoked_at=1.0)
    await tokens.refresh(now=True)
    assert not tokens.counts(access_of(token))
    kept[0] = new_token()[0]
    await tokens.refresh(now=True)
    assert not tokens.counts(access_of(token))


@pytest.fixture
def anyio_backend():
    return "asyncio"
