"""Services that the page shows nothing of yet: one without runs, one that asks for a token."""

from collections.abc import Iterator

import pytest

from snc_client.demo.service import free_port, serving
from snc_service.auth import make_token
from snc_service.store import open_store


@pytest.fixture(scope="module")
def empty_service(tmp_path_factory) -> Iterator[str]:
    """Return the URL of a service without runs."""
    with serving(tmp_path_factory.mktemp("empty") / "snc.db", free_port(0)) as url:
        yield url


@pytest.fixture(scope="module")
def closed_service(tmp_path_factory) -> Iterator[str]:
    """Return the URL of a service that asks for a token."""
    path = tmp_path_factory.mktemp("closed") / "snc.db"
    token, _ = make_token("a", ["read"], project=None, author="x", now=0.0, expires_at=None)
    store = open_store(f"sqlite:///{path}")
    store.tokens.add(token)
    store.close()
    with serving(path, free_port(0)) as url:
        yield url
