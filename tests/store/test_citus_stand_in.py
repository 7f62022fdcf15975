"""What a store does on a cluster, on one PostgreSQL with stand-ins for the functions of Citus.

They keep book of which tables are distributed. What a real cluster does is not shown here.
"""

from __future__ import annotations

from contextlib import closing

import psycopg
import pytest
from store_cases import NOW, batch, new_run, stored, submit, table

from snc_service.cli.main import main
from snc_service.store import open_store
from snc_service.store.sql.database import citus, schema
from snc_service.store.types import StoreUnavailable, Submission

LAYERS = table("a")
STAND_INS = """
create table pg_dist_partition (logicalrelid regclass primary key);
create function create_reference_table(text) returns void language sql as
  'insert into pg_dist_partition values ($1::regclass)';
create function create_distributed_table(text, text, colocate_with text default '')
  returns void language sql as 'insert into pg_dist_partition values ($1::regclass)';
create table node (nodename text, nodeport int, success bool);
insert into node values ('one', 5432, true), ('two', 5433, true);
create function run_command_on_workers(text)
  returns table (nodename text, nodeport int, success bool, result text) language sql as
  $$ select nodename, nodeport, success, '1' from node where $1 = 'select 1' $$;
create function citus_total_relation_size(regclass) returns bigint language sql as
  'select 1000000::bigint';
"""


def ask(url, statement):
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else None


@pytest.fixture
def url(postgres):
    url = postgres.new_url()
    ask(url, STAND_INS)
    yield url
    postgres.drop(url)


def told(capsys, *arguments):
    assert main(["db", "citus", *arguments]) == 0
    return capsys.readouterr().out.splitlines()


def test_what_is_missing_is_printed_or_run_and_nothing_twice(url, capsys):
    everything = [f"{statement};" for statement in citus.statements()]
    assert told(capsys, "--store", url) == everything
    assert told(capsys, "--store", url, "--apply") == everything
    assert told(capsys, "--store", url, "--apply") == ["Nothing is missing."]
    rows = ask(url, "select logicalrelid::text from pg_dist_partition")
    assert {name for (name,) in rows} == schema.table_names()
    ask(url, "delete from pg_dist_partition where logicalrelid = 'run_term'::regclass")
    one = ["select create_distributed_table('run_term', 'run_id', colocate_with => 'run');"]
    assert told(capsys, "--store", url) == one  # as after an upgrade that adds a table
    assert told(capsys, "--store", url, "--apply") == one
    assert told(capsys, "--store", url) == ["Nothing is missing."]


def test_a_store_on_one_server_is_refused_in_a_sentence(postgres, capsys):
    plain = postgres.new_url()
    assert main(["db", "citus", "--store", plain, "--apply"]) != 0
    assert "must be a database with the extension citus" in capsys.readouterr().err
    postgres.drop(plain)


def test_sizes_count_what_is_in_shards(url, capsys):
    told(capsys, "--store", url, "--apply")
    with closing(open_store(url)) as store:
        assert store.size_bytes() > 1_000_000 * len(schema.table_names())


def test_workers_that_cannot_be_asked_are_named(url):
    with closing(open_store(url)) as store:
        assert store.ping() == []
        ask(url, "update node set success = false where nodename = 'two'")
        assert store.ping() == ["two:5433"]


def test_settings_are_made_in_each_transaction_with_leave_to_reach_the_workers(url):
    with closing(open_store(url)) as store:
        for context in (store._database.read, store._database.write):
            with context() as connection:
                row = connection.execute(
                    "select current_setting('citus.propagate_set_commands'), "
                    "current_setting('lock_timeout'), "
                    "current_setting('idle_in_transaction_session_timeout'), "
                    "current_setting('synchronous_commit')"
                ).fetchone()
                assert row == ("local", "10s", "2min", "on")
        (session, *_) = store._database._writers._idle
        assert session.execute("show lock_timeout").fetchone() == ("0",)


def test_a_run_that_cannot_be_written_refuses_its_own_batches_only(url):
    with closing(open_store(url)) as store:
        for run in ("r1", "r2", "r3"):
            new_run(store, run)
            store.batches.put_layer_table(run, LAYERS)
        stored(store, batch(LAYERS, 0, [0], {"sigma": [[1.0]]}), run="r1")
        ask(
            url,
            "create function away() returns trigger language plpgsql as $$ begin "
            "raise exception 'a node is away' using errcode = '58000'; end $$; "
            "create trigger away before insert on tail for each row when (new.run_id = 2) "
            "execute function away()",
        )
        transactions = ask(url, "select count(distinct xmin::text) from tail")[0][0]
        items = [
            Submission(run, batch(LAYERS, seq, [seq], {"sigma": [[1.0]]}), seq, NOW)
            for run, seq in (("r3", 0), ("r2", 0), ("r1", 1), ("r3", 1))
        ]
        submit(store, [])  # the rules are known
        outcomes = store.batches.ingest(items)
        refused = [outcome.error for outcome in outcomes]
        assert isinstance(refused[1], StoreUnavailable)
        assert [refused[0], *refused[2:]] == [None] * 3
        assert [store.runs.get(run).last_step for run in ("r1", "r2", "r3")] == [1, None, 1]
        after = ask(url, "select count(distinct xmin::text) from tail")[0][0]
        assert after - transactions == 2  # one per run
