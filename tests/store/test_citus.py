"""Sharding by run: every table has its place, every key names the run, every statement one run."""

from __future__ import annotations

import re
from contextlib import closing

import psycopg
import pytest
import sharding
from sharding import misfit
from store_cases import NOW, batch, breach_once, new_run, stored, table

from snc_service.cli.main import main
from snc_service.store import open_store
from snc_service.store.engines.postgres import WORDS
from snc_service.store.sql.database import citus, schema
from snc_service.store.types import EventQuery
from snc_service.store.types.incidents import Incident, IncidentChange
from snc_service.store.types.run_search import RunSearch

LAYERS = table("a")


def test_every_table_is_either_sharded_by_run_or_whole_on_every_node(capsys):
    assert main(["db", "citus"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert all(line.endswith(";") for line in told)
    placed = [re.search(r"_table\('(\w+)'", line)[1] for line in told]
    assert sorted(placed) == sorted(schema.table_names())
    # What tables are laid beside must be there before them.
    assert placed.index("run") == min(placed.index(table) for table in citus.distributed())


def test_sharded_tables_have_the_run_in_every_key(postgres):
    url = postgres.new_url()
    open_store(url).close()
    with psycopg.connect(url) as connection:
        keys = connection.execute(
            "select i.indrelid::regclass::text, i.indexrelid::regclass::text, "
            "array_agg(a.attname::text) from pg_index i join pg_attribute a "
            "on a.attrelid = i.indrelid and a.attnum = any(i.indkey) "
            "where i.indisunique and i.indrelid::regclass::text = any(%s) group by 1, 2",
            (citus.distributed(),),
        ).fetchall()
        assert {table for table, _, _ in keys} == set(citus.distributed())
        for _, index, columns in keys:
            assert "run_id" in columns, index
        types = connection.execute(
            "select distinct data_type from information_schema.columns "
            "where column_name = 'run_id' and table_name = any(%s)",
            (citus.distributed(),),
        ).fetchall()
        assert types == [("integer",)]  # shards lie together only if their keys are of one type
        foreign = connection.execute("select count(*) from pg_constraint where contype = 'f'")
        assert foreign.fetchone() == (0,)
    postgres.drop(url)


def test_only_tables_that_are_whole_count_up_by_themselves():
    for name in citus.distributed():
        (body,) = re.findall(rf"create table {name} \((.*?)\);", text(), re.S)
        assert WORDS["serial"] not in body


def text() -> str:
    return "".join(schema.UPGRADES.values()).format(**WORDS) + ";"


@pytest.mark.parametrize(
    "statement",
    [
        "select v from checkpoint where run_id = %s",
        "insert into tail (run_id, id) values (%s, %s)",
        "insert into deleted_run (run_id) values (%s)",
        "insert into alert_outbox (run_id, id) values (%s, %s)",
        "insert into layout (run_id, layout) select %s, count(*) from layout where run_id = %s",
        "delete from tile where run_id = %s and (a, b) in (select a, b from tile "
        "where run_id = %s)",
        "select 1 from latest join layer_table on layer_table.run_id = latest.run_id "
        "where latest.run_id = %s",
        "select run_id from run_name where run = %s for update",
    ],
)
def test_statements_about_one_run_fit(statement):
    assert misfit(statement) is None


@pytest.mark.parametrize(
    ("statement", "missing"),
    [
        ("select v from checkpoint", "checkpoint"),
        ("delete from tail where id = %s", "tail"),
        ("update run set state = %s", "run"),
        ("insert into tail (id, run_id) values (%s, %s)", "tail"),
        ("select 1 from latest join layer_table on layer_table.table_id = latest.table_id "
         "where latest.run_id = %s", "layer_table"),
        ("delete from tile where run_id = %s and a in (select a from tile)", "tile"),
        ("select max(version) from run_policy where run_id in (select run_id from run_author)",
         "run_policy"),
    ],
)  # fmt: skip
def test_statements_that_would_ask_every_node_do_not(statement, missing):
    assert misfit(statement) == missing


def test_what_may_ask_every_node_is_asked_and_nothing_else_is_allowed_to(postgres, monkeypatch):
    """An exception that no statement needs any more would hide the next one that does."""
    monkeypatch.setattr(sharding, "asked", set())
    url = postgres.new_url()
    with closing(open_store(url)) as store:
        new_run(store)
        store.batches.put_layer_table("r1", LAYERS)
        stored(store, batch(LAYERS, 0, [0], {"sigma": [[1]]}), advance=breach_once)
        store.runs.page(project=None, state=None, limit=1, after=None)
        store.runs.summary(RunSearch())
        store.events.page(EventQuery())
        store.events.counts()
        store.incidents.work(NOW)
        assert store.incidents.gather(as_incident, now=NOW, limit=10) == 2
        assert len(store.incidents.open()) == 1
        assert [each.run for each in store.deliveries.waiting("mail", NOW)] == ["r1"]
        assert store.deliveries.due("mail", "r1", NOW)
        store.fold(1, now=NOW + 3_600)
        store.runs.mark_silent(NOW + 1, NOW + 2)
        store.runs.shrink(10**9)
        assert store.damages.verify().damaged == ()
        assert store.damages.count() == 0
        store.events.forget()
        store.incidents.forget()
        store.runs.prune(NOW + 3)
    statements = [" ".join(statement.split()) for statement in sharding.asked]
    for pattern, reason in sharding.CROSS_SHARD.items():
        assert any(re.match(pattern, statement) for statement in statements), reason
    postgres.drop(url)


def as_incident(facts, incident, entries):
    if incident is not None:
        return []
    new = Incident(0, facts.run, facts.project, "open", "warning", tuple(entries), NOW, NOW)
    return [IncidentChange(new, ("mail",))]
