"""What only a real cluster can show; skipped without one. The store suite runs there as well."""

from __future__ import annotations

import os
from contextlib import closing

import pytest
from citus_cluster import ABSENT, VARIABLE
from store_cases import batch, new_run, stored, table

from snc_service.cli.main import main
from snc_service.store import open_store

pytestmark = pytest.mark.skipif(VARIABLE not in os.environ, reason=ABSENT)
LAYERS = table("a")
RUNS = 64  # enough that every node has one


def fill(store):
    for number in range(RUNS):
        new_run(store, f"r{number}")
        store.batches.put_layer_table(f"r{number}", LAYERS)
        stored(store, batch(LAYERS, 0, [0], {"sigma": [[1.0]]}), run=f"r{number}")


def test_settings_of_a_transaction_reach_every_worker(citus_url):
    with closing(open_store(citus_url)) as store:
        fill(store)
        for context in (store._database.read, store._database.write):
            with context() as connection:
                told = connection.execute(
                    "select distinct current_setting('lock_timeout'), "
                    "current_setting('synchronous_commit'), inet_server_port() from run"
                ).fetchall()
                assert {row[:2] for row in told} == {("10s", "on")}


def test_nothing_is_missing_and_no_worker_away(citus_url, capsys):
    assert main(["db", "citus", "--store", citus_url]) == 0
    assert capsys.readouterr().out == "Nothing is missing.\n"
    with closing(open_store(citus_url)) as store:
        assert store.ping() == []


def test_sizes_grow_with_what_is_stored(citus_url):
    with closing(open_store(citus_url)) as store:
        before = store.size_bytes()
        fill(store)
        assert store.size_bytes() > before
