"""PostgreSQL as people have it: few connections, a pooler in between, a URL of another spelling."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import psycopg
import pytest
from postgres_server import NOBODY
from service_process import create, post, services, until
from store_cases import NOW, batch, new_run, stored, table

from snc_client.demo.service import free_port
from snc_service.store import open_store
from snc_service.store.engines import postgres as engine
from snc_service.store.types import Window

LAYERS = table("a", "b")


def sigma(seq, **header):
    return batch(LAYERS, seq, [seq], {"sigma": [[1.0, 2.0]]}, **header)


def ask(url, statement):
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(statement).fetchall()


def busy(store, *runs):
    """Ingest into runs, query them and fold, all at once."""
    for run in runs:
        new_run(store, run)
        store.batches.put_layer_table(run, LAYERS)

    def work(run):
        for seq in range(20):
            stored(store, sigma(seq), run=run)
            got = store.histories.of_layers(run, "sigma", ["a"], Window())
            assert got.steps.tolist() == list(range(seq + 1))
            store.fold(0.0, now=NOW + 3_600)

    with ThreadPoolExecutor(len(runs)) as pool:
        list(pool.map(work, runs))


def most_sessions(url, work) -> int:
    """Return the most sessions of the store that were seen while ``work`` ran."""
    seen, over = [0], threading.Event()
    name = url.rpartition("/")[2]

    def watch():
        with psycopg.connect(url.replace(name, "postgres"), autocommit=True) as connection:
            while not over.is_set():
                row = connection.execute(
                    "select count(*) from pg_stat_activity where datname = %s "
                    "and application_name = 'snc'",
                    (name,),
                ).fetchone()
                seen.append(row[0])

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        over.set()
        watcher.join()
    return max(seen)


def test_the_short_spelling_of_the_scheme_is_the_same(postgres_url):
    with closing(open_store(postgres_url.replace("postgresql://", "postgres://"))) as store:
        new_run(store)
    assert ask(postgres_url, "select run from run") == [("r1",)]


@pytest.mark.parametrize("most", [2, 5])
def test_no_more_connections_are_open_than_were_asked_for(postgres_url, most):
    with closing(open_store(postgres_url, connections=most)) as store:
        found = most_sessions(postgres_url, lambda: busy(store, "x", "y", "z", "u", "v", "w"))
        assert 2 <= found <= most


def test_a_role_that_may_have_three_connections_serves(postgres, postgres_url, tmp_path):
    """It is not told about the limit: whoever gives a role one need not know of the setting."""
    database = postgres_url.rpartition("/")[2]
    postgres.execute("create role few login connection limit 3")
    postgres.execute(f"alter database {database} owner to few")
    own = postgres_url.replace("snc@", "few@")
    with services(own, tmp_path, 1) as (one,), httpx.Client(timeout=60) as client:
        create(one.url, LAYERS)

        def work(writer):
            codes = []
            for seq in range(10):
                codes.append(post(client, one.url, sigma(seq, writer=f"w{writer}")).status_code)
                for path in ("", "/layers", "/history?metric=sigma&layer=a", "/events"):
                    codes.append(client.get(f"{one.url}/api/v1/runs/r1{path}").status_code)
            return codes

        with ThreadPoolExecutor(8) as pool:
            codes = [code for some in pool.map(work, range(8)) for code in some]
    assert set(codes) == {200}, one.said()


@pytest.fixture
def pooled(monkeypatch):
    """Let every session be taken for one of a pooler: it tells the service nothing of itself."""
    monkeypatch.setattr(engine, "_DIRECT", "")


def test_behind_a_pooler_nothing_is_kept_in_a_session(postgres_url, pooled):
    """What is set lasts for a transaction, and nothing is prepared, however often it is asked."""
    with closing(open_store(postgres_url, connections=2)) as store:
        busy(store, "x", "y")
        for context in (store._database.read, store._database.write):
            with context() as connection:
                row = connection.execute(
                    "select current_setting('lock_timeout'), "
                    "current_setting('idle_in_transaction_session_timeout'), "
                    "(select count(*) from pg_prepared_statements)"
                ).fetchone()
                assert row == ("10s", "2min", 0)
        (session,) = store._database._writers._idle
        assert session.execute("show lock_timeout").fetchone() == ("0",)
        held = session.execute("select count(*) from pg_locks where locktype = 'advisory'")
        assert held.fetchone() == (0,)


def test_behind_a_pooler_commits_wait_for_the_disk(postgres, postgres_url, pooled):
    database = postgres_url.rpartition("/")[2]
    for preferred, used in (("off", "on"), ("remote_apply", "remote_apply")):
        postgres.execute(f"alter database {database} set synchronous_commit = {preferred}")
        with closing(open_store(postgres_url)) as store, store._database.write() as connection:
            assert connection.execute("show synchronous_commit").fetchone() == (used,)


POOLER = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")


@contextmanager
def pgbouncer(folder: Path, server_port: int, database: str, *more: str) -> Iterator[str]:
    """Run PgBouncer in transaction mode, with fewer sessions than a service has connections."""
    assert POOLER is not None
    port = free_port(0)
    lines = [
        "[databases]",
        f"snc = host=127.0.0.1 port={server_port} dbname={database} user=snc",
        "[pgbouncer]",
        "listen_addr = 127.0.0.1",
        f"listen_port = {port}",
        "unix_socket_dir =",
        "auth_type = any",
        "pool_mode = transaction",
        "default_pool_size = 4",
        *more,
    ]
    (folder / "pgbouncer.ini").write_text("\n".join(lines) + "\n")
    folder.chmod(0o755)
    who = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
    command = [POOLER, "-q", "/dev/stdin"]
    with (folder / "pgbouncer.ini").open() as settings:
        process = subprocess.Popen(command, stdin=settings, stderr=subprocess.DEVNULL, **who)
    try:
        url = f"postgresql://snc@127.0.0.1:{port}/snc"
        until(lambda: answers(url, process))
        yield url
    finally:
        process.terminate()
        process.wait()


def answers(url: str, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None
    try:
        return ask(url, "select 1") == [(1,)]
    except psycopg.OperationalError:
        return False


@pytest.mark.skipif(POOLER is None, reason="pgbouncer is not installed: apt-get install pgbouncer")
@pytest.mark.parametrize("more", [(), ("ignore_startup_parameters = options",)])
def test_pgbouncer_in_transaction_mode_serves(postgres, postgres_url, tmp_path, more):
    with (
        pgbouncer(tmp_path, postgres.port, postgres_url.rpartition("/")[2], *more) as pooled_url,
        services(pooled_url, tmp_path, 1) as (one,),
        httpx.Client(timeout=60) as client,
    ):

        def job(number):
            run = f"r{number}"
            create(one.url, LAYERS, run)
            codes = []
            for seq in range(12):
                codes.append(post(client, one.url, sigma(seq), run=run).status_code)
                path = f"/api/v1/runs/{run}/history?metric=sigma&layer=a"
                codes.append(client.get(one.url + path).status_code)
            return codes

        with ThreadPoolExecutor(8) as pool:
            codes = [code for some in pool.map(job, range(8)) for code in some]
    assert set(codes) == {200}, one.said()
