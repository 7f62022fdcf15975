"""The scale-out engine: opening it, its settings, its errors, and life after its server's death."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import psycopg
import pytest
from postgres_server import running_postgres
from psycopg.conninfo import conninfo_to_dict
from store_cases import NOW, batch, breach_once, judge, new_run, stored, submit, table
from store_victim import LAYERS as WIDE
from store_victim import submission
from test_store_kill import check

from snc_service.store import open_store
from snc_service.store.engines import connection_pool
from snc_service.store.engines.postgres import shown
from snc_service.store.sql.compaction import slices
from snc_service.store.sql.database import schema
from snc_service.store.types import EventQuery, RunUnknown, StoreUnavailable, Submission, Window
from snc_service.wire import LayerSpec, LayerTable, Policy

LAYERS = table("a", "b")


@pytest.fixture
def two(postgres_url):
    """Yield two stores over one database, as two services have them."""
    with closing(open_store(postgres_url)) as one, closing(open_store(postgres_url)) as other:
        new_run(one)
        one.batches.put_layer_table("r1", LAYERS)
        yield one, other


def ask(url, statement):
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else None


def sigma(seq, *steps, value=1.0, **header):
    return batch(LAYERS, seq, steps, {"sigma": [[value, value]] * len(steps)}, **header)


def at_once(*calls):
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


def test_the_password_is_never_shown():
    assert shown("postgresql://ann:secret@db:5433/snc") == "postgresql://db:5433/snc"
    assert shown("postgresql:///snc?password=secret") == "postgresql://localhost:5432/snc"
    with pytest.raises(ValueError, match="USER@HOST") as raised:
        shown("postgresql://ann:secret@db/snc?nonsense=1")
    assert "secret" not in str(raised.value)


def test_a_server_that_is_not_there_gets_one_sentence():
    with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1:9/snc cannot be used") as raised:
        open_store("postgresql://ann:secret@127.0.0.1:9/snc")
    assert "secret" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_database_that_is_not_there_gets_one_sentence(postgres):
    with pytest.raises(StoreUnavailable, match="does not exist"):
        open_store(postgres.url("nobody_made_it"))


def test_tables_of_others_are_left_alone(postgres_url):
    ask(postgres_url, "create table event (id int)")
    with pytest.raises(StoreUnavailable, match="has a table 'event', but is not a store of snc"):
        open_store(postgres_url)
    tables = (
        "select relname from pg_class where relkind = 'r' and relnamespace = 'public'::regnamespace"
    )
    assert ask(postgres_url, tables) == [("event",)]


def test_a_store_of_a_newer_release_asks_for_an_upgrade(postgres_url):
    open_store(postgres_url).close()
    ask(postgres_url, "update schema_version set version = version + 1")
    with pytest.raises(StoreUnavailable, match="upgrade snc"):
        open_store(postgres_url)


def test_a_database_in_another_encoding_is_refused(postgres):
    postgres.execute("create database latin template template0 encoding 'LATIN1' locale 'C'")
    with pytest.raises(StoreUnavailable, match="must be a database in UTF8, got LATIN1"):
        open_store(postgres.url("latin"))


def test_someone_who_may_not_create_tables_gets_one_sentence(postgres, postgres_url):
    postgres.execute("create role guest login")
    with pytest.raises(StoreUnavailable, match="permission denied"):
        open_store(postgres_url.replace("snc@", "guest@"))


def test_a_schema_of_its_own_can_be_named_in_the_url(postgres_url):
    ask(postgres_url, "create schema mine")
    ask(postgres_url, "create table event (id int)")
    with closing(open_store(f"{postgres_url}?options=-csearch_path%3Dmine")) as store:
        new_run(store)
    assert ask(postgres_url, "select run from mine.run") == [("r1",)]


def test_services_that_start_together_make_the_tables_once(postgres_url):
    stores = at_once(*[lambda: open_store(postgres_url)] * 4)
    new_run(stores[0])
    assert stores[3].runs.get("r1").run == "r1"
    for store in stores:
        store.close()
    assert ask(postgres_url, "select version from schema_version") == [(schema.VERSION,)]


def test_commits_wait_for_the_disk_whatever_the_server_prefers(postgres, postgres_url):
    for preferred, used in (("off", "on"), ("local", "on"), ("remote_apply", "remote_apply")):
        database = postgres_url.rpartition("/")[2]
        postgres.execute(f"alter database {database} set synchronous_commit = {preferred}")
        with closing(open_store(postgres_url)) as store, store._database.write() as connection:
            assert connection.execute("show synchronous_commit").fetchone() == (used,)


def test_tiles_are_not_compressed_again_and_text_sorts_by_its_bytes(postgres_url):
    open_store(postgres_url).close()
    columns = (
        "select c.relname, a.attname, a.attstorage, l.collname from pg_attribute a "
        "join pg_class c on c.oid = a.attrelid "
        "left join pg_collation l on l.oid = a.attcollation "
        "where c.relnamespace = 'public'::regnamespace and c.relkind = 'r' and a.attnum > 0"
    )
    blobs = ask(postgres_url, f"{columns} and a.atttypid = 'bytea'::regtype")
    assert len(blobs) > 8
    assert {storage for _, _, storage, _ in blobs} == {"e"}
    texts = ask(postgres_url, f"{columns} and a.atttypid = 'text'::regtype")
    assert len(texts) > 20
    assert {collation for _, _, _, collation in texts} == {"C"}


def test_names_of_any_script_and_hostile_ones_come_back_as_they_were(postgres_url):
    names = [
        "Zoë.重み",
        "a'; drop table run; --",
        "100%",
        "%s",
        "?",
        "\\x00",
        "{run}",
        '"',
        "z" * 256,
    ]
    layers = LayerTable(tuple(LayerSpec(name, "linear", (4,)) for name in names))
    with closing(open_store(postgres_url)) as store:
        new_run(store, "r?%s", config={"nul": "\0", "?": "%"})
        store.batches.put_layer_table("r?%s", layers)
        stored(store, batch(layers, 0, [0], {"sigma": [[1] * len(names)]}), run="r?%s")
        assert [layer.name for layer in store.histories.latest("r?%s").layers] == names
        assert store.runs.get("r?%s").config == {"nul": "\0", "?": "%"}


def test_a_batch_on_its_way_elsewhere_is_waited_for_and_then_a_duplicate(two):
    one, other = two
    inside, go_on = threading.Event(), threading.Event()

    def slow(state, rows):
        inside.set()
        assert go_on.wait(30)
        return breach_once(state, rows)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(submit, one, [sigma(0, 0)], advance=slow)
        assert inside.wait(30)
        again = pool.submit(submit, other, [sigma(0, 0)], advance=breach_once)
        time.sleep(0.2)
        assert not again.done()
        go_on.set()
        (outcome,) = first.result()
        (repeated,) = again.result()
    assert (outcome.duplicate, repeated.duplicate) == (False, True)
    assert len(outcome.events) == 1
    assert repeated.events == ()
    assert [e.event.rule for e in one.events.page(EventQuery(run="r1")).items] == [
        "breach",
        "run_started",
    ]


def test_two_that_write_many_runs_in_any_order_never_wait_in_a_circle(two):
    one, other = two
    runs = [f"x{i}" for i in range(12)]
    for run in runs:
        new_run(one, run)
        one.batches.put_layer_table(run, LAYERS)

    def send(store, writer, order):
        for seq in range(15):
            group = [submit_of(run, sigma(seq, seq, writer=writer)) for run in order]
            outcomes = judge(store, breach_once).batches.ingest(group)
            assert [o.error for o in outcomes] == [None] * len(order)

    at_once(lambda: send(one, "v", runs), lambda: send(other, "w", runs[::-1]))
    for run in runs:
        events = one.events.page(EventQuery(run=run)).items
        assert [e.id for e in events] == [2, 1]
        assert one.runs.get(run).last_step == 14


def submit_of(run, one):
    return Submission(run, one, one.seq, NOW)


def test_ids_of_events_versions_of_policies_and_attempts_are_given_once(two):
    def act(store, writer):
        for i in range(12):
            store.policies.put_for_run("r1", Policy(), author=writer, now=NOW, if_version=None)
            store.policies.put_for_project("p", Policy(), author=writer, now=NOW, if_version=None)
            stored(store, sigma(i, 100 - i, writer=writer))

    at_once(*(lambda s=s, w=w: act(s, w) for s, w in zip(two, "vw", strict=True)))
    one, other = two
    assert [v.version for v in one.policies.versions_of_run("r1")] == list(range(24, 0, -1))
    assert [v.version for v in other.policies.versions_of_project("p")] == list(range(24, 0, -1))
    events = one.events.page(EventQuery(run="r1", limit=500)).items
    assert [e.id for e in events] == list(range(len(events), 0, -1))
    assert len([e for e in events if e.event.rule == "policy_changed"]) == 24
    rewound = [e for e in events if e.event.rule == "rewound"]
    assert one.runs.get("r1").attempt == len(rewound)


def test_one_run_is_created_once_whoever_asks(two):
    answers = at_once(*(
        lambda store=store, name=f"n{i % 5}": store.runs.create(
            name, name=name, project="p", config={}, tags=(), policy=None, now=NOW
        )
        for i in range(20)
        for store in two
    ))  # fmt: skip
    assert sum(new for _, new in answers) == 5
    for i in range(5):
        rules = [e.event.rule for e in two[0].events.page(EventQuery(run=f"n{i}")).items]
        assert rules == ["run_started"]


def test_of_two_that_look_for_silence_one_finds_it(two):
    for i in range(10):
        new_run(two[0], f"q{i}")
    found = at_once(*(lambda s=s: s.runs.mark_silent(NOW + 50, NOW + 60) for s in two))
    assert sorted(e.run for events in found for e in events) == sorted(
        ["r1", *(f"q{i}" for i in range(10))]
    )


def test_of_two_that_delete_a_run_one_does_and_nothing_is_left(two, monkeypatch):
    monkeypatch.setattr("snc_service.store.sql.records.deletion.SLICE_ROWS", 3)
    for seq in range(40):
        stored(two[0], sigma(seq, seq))

    def delete(store):
        try:
            store.runs.delete("r1")
        except RunUnknown:
            return False
        return True

    assert sorted(at_once(*(lambda s=s: delete(s) for s in two))) == [False, True]
    with two[0]._database.read() as connection:
        for name in ("tail", "event", "writer", "deleted_run", "run_config"):
            assert connection.execute(f"select count(*) from {name}").fetchone() == (0,), name


def test_a_run_that_is_deleted_while_batches_arrive_leaves_nothing(two):
    one, other = two

    def send():
        for seq in range(200):
            (outcome,) = submit(one, [sigma(seq, seq)])
            if outcome.error is not None:
                return outcome.error
        return None

    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(send)
        time.sleep(0.05)
        other.runs.delete("r1")
        assert isinstance(sent.result(), RunUnknown)
    with one._database.read() as connection:
        for name in ("tail", "event", "writer", "latest", "layout", "metric", "attempt"):
            assert connection.execute(f"select count(*) from {name}").fetchone() == (0,), name


def test_two_fold_different_runs_at_once_and_every_value_stays(two):
    one, other = two
    for i in range(6):
        new_run(one, f"f{i}")
        one.batches.put_layer_table(f"f{i}", LAYERS)
        stored(one, sigma(0, *range(500), value=i), run=f"f{i}")
    folded = at_once(*(lambda s=s: s.fold(60, now=NOW + 3_600) for s in two))
    assert sum(folded) + one.fold(60, now=NOW + 3_600) == 6 * 500 * 2
    for i in range(6):
        got = other.histories.of_layers(f"f{i}", "sigma", ["a", "b"], Window())
        assert got.steps.tolist() == list(range(500))
        assert (got.max == i).all()


def test_a_run_being_folded_does_not_keep_batches_waiting(two, monkeypatch):
    one, other = two
    stored(one, sigma(0, *range(100)))
    real, seen = slices.blocks, []

    def meanwhile(*arguments):
        found = list(real(*arguments))
        seen.append(stored(other, sigma(1, 200)))
        return iter(found)

    monkeypatch.setattr(slices, "blocks", meanwhile)
    assert one.fold(60, now=NOW + 3_600) > 0
    assert len(seen) == 1


def test_who_waits_too_long_for_a_connection_is_told(two, monkeypatch):
    monkeypatch.setattr(connection_pool, "WAIT_SECONDS", 0.1)
    one, _ = two
    held = [one._database.write() for _ in range(4)]
    for context in held:
        context.__enter__()
    with pytest.raises(StoreUnavailable, match="all connections were in use"):
        new_run(one, "more")
    for context in held:
        context.__exit__(None, None, None)
    new_run(one, "more")


def test_a_service_that_hangs_with_a_run_locked_does_not_stop_the_others(two):
    one, other = two
    with one._database.write() as connection:
        connection.execute("select run_id from run where run = 'r1' for update")
        with other._database.write() as waiting:
            waiting.execute("set local lock_timeout = '100ms'")
            with pytest.raises(psycopg.errors.LockNotAvailable):
                waiting.execute("select run_id from run for update")
            waiting.execute("rollback")
    with one._database.write() as connection:
        for setting in ("lock_timeout", "idle_in_transaction_session_timeout"):
            (value,) = connection.execute(f"show {setting}").fetchone()
            assert value not in ("0", ""), setting


def test_a_database_that_turns_read_only_is_noticed_and_so_is_its_return(postgres_url):
    name = conninfo_to_dict(postgres_url)["dbname"]

    def turn(state, *more):
        with psycopg.connect(postgres_url, autocommit=True) as other:
            other.execute("set default_transaction_read_only = off")
            other.execute(f'alter database "{name}" set default_transaction_read_only = {state}')
            for statement in more:
                other.execute(statement)

    with closing(open_store(postgres_url)) as store:
        store.ping()
        turn(
            "on",
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where datname = current_database() and pid <> pg_backend_pid()",
        )
        with pytest.raises(StoreUnavailable, match="read-only"):
            store.ping()
        with pytest.raises(StoreUnavailable):
            new_run(store)
        turn("off")  # and nobody is cut off
        store.ping()
        new_run(store)


@pytest.mark.timeout(300)
def test_what_was_acknowledged_survives_kill_9_of_the_server_and_the_store_recovers():
    """Kill postmaster and children in the middle of ingest and folding, several times."""
    with running_postgres(("fsync=on",)) as server:
        store = open_store(server.new_url())
        new_run(store)
        store.batches.put_layer_table("r1", WIDE)
        sure = {"one": -1, "two": -1}
        stop = threading.Event()
        failed: list[str] = []

        def write(writer):
            while not stop.is_set():
                seq = sure[writer] + 1
                try:
                    (outcome,) = judge(store).batches.ingest([submission(writer, seq)])
                except StoreUnavailable as error:
                    failed.append(str(error))
                    time.sleep(0.01)
                    continue
                assert outcome.error is None
                sure[writer] = seq

        def fold():
            while not stop.is_set():
                try:
                    store.fold(0.05, now=NOW + 3_600)
                except StoreUnavailable:
                    time.sleep(0.01)

        threads = [threading.Thread(target=write, args=(w,)) for w in sure]
        threads.append(threading.Thread(target=fold))
        for thread in threads:
            thread.start()
        for _ in range(4):
            before = dict(sure)
            until(lambda before=before: all(sure[w] > before[w] + 3 for w in sure))
            server.kill()
            with pytest.raises(StoreUnavailable):
                store.ping()
            server.start()
        before = dict(sure)
        until(lambda: all(sure[w] > before[w] for w in sure))
        stop.set()
        for thread in threads:
            thread.join()
        assert failed
        check(store, sure)
        store.close()


def until(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
