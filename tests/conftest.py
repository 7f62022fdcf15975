"""Fixtures that several tests need: a service process, a PostgreSQL, stores of both engines."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import sharding
from chromium import browser, opened, page_service, pair, planted  # noqa: F401  (fixtures)
from citus_cluster import ABSENT, VARIABLE, CitusCluster
from postgres_server import PostgresServer, running_postgres
from sandbox import ROOT, Sandbox, Stage
from sending import dead_port, ledger  # noqa: F401  (fixtures)

from snc_client.demo.service import free_port, serving
from snc_service.store import Store, open_store
from snc_service.store.engines import postgres as engine_module


@pytest.fixture
def service_url(tmp_path) -> Iterator[str]:
    """Yield the URL of a real ``snc serve`` process with an empty store."""
    with serving(tmp_path / "snc.db", free_port(0)) as url:
        yield url


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """Yield a PostgreSQL that all tests share; each takes a database of its own.

    What any of them asks it is looked at by `fit_for_shards`.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_module, "translated", sharding.recorded)
        with running_postgres() as server:
            yield server


_looked_at: set[str] = set()


@pytest.fixture(autouse=True)
def fit_for_shards() -> Iterator[None]:
    """Fail after a test whose store asks PostgreSQL what a cluster sharded by run cannot route."""
    yield
    new = sharding.asked - _looked_at
    _looked_at.update(new)
    found = {sql: table for sql in new if (table := sharding.misfit(sql)) is not None}
    assert not found, "bind run_id for the table, or give a reason in CROSS_SHARD"


@pytest.fixture(scope="session", params=["sqlite", "postgres"])
def engine(request) -> str:
    """Return the name of an engine; whoever asks for it runs once per engine."""
    return request.param


@pytest.fixture
def postgres_url(postgres) -> Iterator[str]:
    """Yield the URL of a new database on PostgreSQL."""
    url = postgres.new_url()
    yield url
    postgres.drop(url)


@pytest.fixture(scope="session")
def citus() -> CitusCluster:
    """Return the cluster that the environment names."""
    if VARIABLE not in os.environ:
        pytest.skip(ABSENT)
    return CitusCluster(os.environ[VARIABLE])


@pytest.fixture
def citus_url(citus) -> Iterator[str]:
    """Yield the URL of a new store on the cluster."""
    url = citus.new_url()
    yield url
    citus.drop(url)


@pytest.fixture
def store_url(engine, request, tmp_path) -> str:
    """Return the URL of a new store."""
    if engine == "sqlite":
        return f"sqlite:///{tmp_path}/snc.db"
    return request.getfixturevalue(f"{engine}_url")


@pytest.fixture(scope="session")
def shared_store(engine, request, tmp_path_factory) -> Iterator[Store]:
    """Yield a store for many short stories, each about a run of its own: see `new_name`."""
    if engine == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('shared')}/snc.db"
    else:
        url = request.getfixturevalue(engine).new_url()
    with closing(open_store(url)) as store:
        yield store


@pytest.fixture(scope="session")
def image() -> Iterator[tuple[Sandbox, Stage]]:
    """Yield what the Dockerfile makes, in a folder, and its last stage."""
    # Not below pytest's own folder, which only root may enter.
    with tempfile.TemporaryDirectory(prefix="snc-image-") as folder:
        sandbox = Sandbox(Path(folder))
        yield sandbox, sandbox.build(ROOT / "deploy" / "Dockerfile")
