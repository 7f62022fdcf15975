"""Two real PostgreSQL servers: a standby that reads, and one that takes over; and a dump."""

from __future__ import annotations

import subprocess
from contextlib import closing

import numpy as np
import psycopg
import pytest
from postgres_server import running_postgres
from service_process import create, services, until
from store_cases import NOW, as_sent, batch, new_run, stored, table
from store_victim import LAYERS
from test_replicas import grown, writing
from test_store_kill import check

from snc_service.store import open_store
from snc_service.store import standby as standby_module
from snc_service.store.types import Window

TWO = table("a", "b")


def ask(url, statement):
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(statement).fetchall()


@pytest.mark.timeout(240)
def test_a_synchronous_standby_that_is_promoted_under_load_has_all_that_was_acknowledged(tmp_path):
    with running_postgres() as primary:
        name = primary.new_url().rpartition("/")[2]
        with running_postgres(of=primary) as standby:
            primary.execute("alter system set synchronous_standby_names = '*'")
            primary.execute("select pg_reload_conf()")
            hosts = f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}"
            url = f"postgresql://snc@{hosts}/{name}?target_session_attrs=read-write"
            with services(url, tmp_path, 1) as (one,):
                create(one.url, LAYERS)
                with writing([one.url]) as writers:
                    grown(writers, 8, one.said)
                    primary.kill()
                    until(lambda: one.status("/readyz") == 503)
                    ask(standby.url(name), "select pg_promote()")
                    until(lambda: one.status("/readyz") == 200, one.said)
                    grown(writers, 8, one.said)
                assert all(503 in writer.refused for writer in writers)
            with closing(open_store(standby.url(name))) as store:
                check(store, {w.writer: w.acknowledged for w in writers})
            primary.start()  # so that it can be stopped


@pytest.mark.timeout(120)
def test_a_standby_answers_where_it_has_everything_and_never_an_old_answer(monkeypatch):
    monkeypatch.setattr(standby_module, "AWAY_SECONDS", 0.0)
    with running_postgres() as primary:
        url = primary.new_url()
        open_store(url).close()
        with running_postgres(of=primary) as standby:
            there = standby.url(url.rpartition("/")[2])
            with closing(open_store(url, read_url=there)) as store:
                begun(store)
                until(lambda: from_standby(store))
                check_history(store, 1)
                ask(there, "select pg_wal_replay_pause()")
                put(store, 1)
                assert not from_standby(store)
                check_history(store, 2)
                ask(there, "select pg_wal_replay_resume()")
                until(lambda: from_standby(store))
                check_history(store, 2)
                store.fold(60, now=NOW + 3_600)  # no batch, and other rows
                check_history(store, 2)
                until(lambda: from_standby(store))
                standby.stop()
                check_history(store, 2)
                put(store, 2)
                check_history(store, 3)
                assert not from_standby(store)


def test_a_standby_that_is_not_there_at_the_start_is_done_without(postgres):
    url = postgres.new_url()
    with closing(open_store(url, read_url="postgresql://snc@127.0.0.1:9/snc")) as store:
        begun(store)
        check_history(store, 1)
    postgres.drop(url)


def test_another_store_is_not_taken_for_a_standby(postgres):
    url, other = postgres.new_url(), postgres.new_url()
    with closing(open_store(other)) as wrong:
        new_run(wrong, now=NOW + 1)
        wrong.batches.put_layer_table("r1", TWO)
        for seq in range(9):
            put(wrong, seq)
    with closing(open_store(url, read_url=other)) as store:
        begun(store)
        check_history(store, 1)
    for each in (url, other):
        postgres.drop(each)


def begun(store):
    new_run(store)
    store.batches.put_layer_table("r1", TWO)
    put(store, 0)


def put(store, seq):
    stored(store, batch(TWO, seq, [seq], {"sigma": [[seq, 2.0]]}))


def from_standby(store) -> bool:
    with store._reads.of("r1") as connection:
        return connection.execute("select pg_is_in_recovery()").fetchone()[0]


def check_history(store, steps):
    got = store.histories.of_layers("r1", "sigma", ["a"], Window())
    assert got.max.tolist() == [list(range(steps))]
    found, _ = as_sent(store, "r1", "sigma", ["a", "b"])
    assert found.tolist() == list(range(steps))


def test_a_dump_brings_every_value_back_and_is_not_larger_than_what_it_holds(postgres, tmp_path):
    url, new = postgres.new_url(), postgres.new_url()
    tmp_path.chmod(0o755)
    names = [f"l{i}" for i in range(64)]
    layers = table(*names)
    with closing(open_store(url)) as store:
        new_run(store)
        store.batches.put_layer_table("r1", layers)
        for seq in range(8):
            values = noise(seq, 256, len(names))
            steps = range(256 * seq, 256 * (seq + 1))
            stored(store, batch(layers, seq, steps, {"sigma": values}))
        store.fold(60, now=NOW + 3_600)
        before = as_sent(store, "r1", "sigma", names)
    sizes = {}
    for level in (0, 1):
        file = tmp_path / f"dump{level}"
        arguments = ["--format=custom", f"--compress={level}", f"--file={file}", url]
        subprocess.run([postgres.program("pg_dump"), *arguments], check=True)
        sizes[level] = file.stat().st_size
    (history,) = ask(url, "select sum(length(v)) from tile")[0]
    assert sizes[0] > 1.9 * history  # two digits for each byte
    assert sizes[1] < 1.3 * history
    subprocess.run([postgres.program("pg_restore"), f"--dbname={new}", file], check=True)
    with closing(open_store(new)) as store:
        after = as_sent(store, "r1", "sigma", names)
        assert store.damages.verify().damaged == ()
    for one, other in zip(before, after, strict=True):
        assert (one == other).all()
    for each in (url, new):
        postgres.drop(each)


def noise(seed, steps, layers):
    return np.random.default_rng(seed).normal(1, 0.1, (steps, layers))
