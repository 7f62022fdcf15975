"""The embedded engine: its file, its settings, its full disk."""

import os
import sqlite3
from contextlib import closing

import numpy as np
import pytest
from store_cases import NOW, batch, new_run, stored, table

from snc_service.store import back_up_store, open_store
from snc_service.store.engines import sqlite, sqlite_connection
from snc_service.store.engines.many_rows import for_many
from snc_service.store.sql.database import schema
from snc_service.store.types import StoreFull, StoreUnavailable, Window

LAYERS = table("a", "b")


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/snc.db"


@pytest.fixture
def store(url):
    store = open_store(url)
    yield store
    store.close()


def test_a_relative_url_is_relative_to_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    open_store("sqlite:///here.db").close()
    assert (tmp_path / "here.db").exists()


def test_a_directory_that_is_missing_gets_one_sentence(tmp_path):
    with pytest.raises(StoreUnavailable, match="cannot be used"):
        open_store(f"sqlite:///{tmp_path}/no/such/snc.db")


def test_a_directory_in_place_of_the_file_gets_one_sentence(tmp_path):
    with pytest.raises(StoreUnavailable, match="cannot be used"):
        open_store(f"sqlite:///{tmp_path}")


def test_a_file_of_noise_is_no_store(tmp_path):
    (tmp_path / "noise.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(StoreUnavailable, match="not a database"):
        open_store(f"sqlite:///{tmp_path}/noise.db")


def test_another_programs_database_is_left_alone(tmp_path):
    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("create table run (id)")
    other.commit()
    other.close()
    before = (tmp_path / "other.db").read_bytes()
    with pytest.raises(StoreUnavailable, match="not a store of snc"):
        open_store(f"sqlite:///{tmp_path}/other.db")
    assert (tmp_path / "other.db").read_bytes() == before


def test_a_store_of_a_newer_release_asks_for_an_upgrade(url, tmp_path):
    open_store(url).close()
    file = sqlite3.connect(tmp_path / "snc.db")
    file.execute(f"pragma user_version = {schema.VERSION + 1}")
    file.close()
    with pytest.raises(StoreUnavailable, match="upgrade snc"):
        open_store(url)


def test_every_commit_is_synced_and_logged_ahead(store, tmp_path):
    with store._database.write() as connection:
        assert connection.execute("pragma synchronous").fetchone() == (2,)
        assert connection.execute("pragma journal_mode").fetchone() == ("wal",)


def test_the_space_of_a_deleted_run_goes_back_to_the_file_system(store, tmp_path):
    wide = table(*(f"l{i}" for i in range(3_000)))
    rng = np.random.default_rng(0)
    for run in ("r1", "r2"):
        new_run(store, run)
        store.batches.put_layer_table(run, wide)
        for seq in range(30):
            steps = range(100 * seq, 100 * seq + 100)
            one = batch(wide, seq, steps, {"sigma": rng.random((100, 3_000))})
            stored(store, one, run=run)
    store._database.checkpoint()
    before = (tmp_path / "snc.db").stat().st_size
    store.runs.delete("r1")
    store.fold(0, now=NOW)
    store._database.checkpoint()
    assert (tmp_path / "snc.db").stat().st_size < 0.7 * before
    assert (
        len(store.histories.of_layers("r2", "sigma", ["l7"], Window(points=3_000)).steps) == 3_000
    )


def test_a_full_disk_refuses_the_group_and_keeps_what_is_stored(store):
    new_run(store)
    store.batches.put_layer_table("r1", LAYERS)
    stored(store, batch(LAYERS, 0, [0], {"sigma": [[1, 2]]}))
    with store._database.write() as connection:
        (pages,) = connection.execute("pragma page_count").fetchone()
    store._database._writer.execute(f"pragma max_page_count = {pages}")
    wide = table(*(f"l{i}" for i in range(3_000)))
    with pytest.raises(StoreFull, match="full"):
        store.batches.put_layer_table("r1", wide)
    store._database._writer.execute("pragma max_page_count = 1000000")
    stored(store, batch(LAYERS, 1, [1], {"sigma": [[1, 2]]}))
    assert store.runs.get("r1").layers == 2
    assert store.histories.of_layers("r1", "sigma", ["a"], Window()).steps.tolist() == [0, 1]


@pytest.mark.parametrize("num_rows", [0, 1, 2, 63, 64, 65, 130])
def test_many_rows_in_few_statements_are_what_they_are_one_by_one(store, num_rows):
    def written(many):
        with store._database.write() as connection:
            for statement, rows in (
                ("insert into run_author (run_id, author) values (?, ?)", first),
                (
                    "insert into run_author (run_id, author) values (?, ?) "
                    "on conflict (run_id) do update set author = excluded.author",
                    second,
                ),
                ("update run_author set author = ? where run_id = ?", third),
            ):
                if many:
                    connection.executemany(statement, rows)
                else:
                    for row in rows:
                        connection.execute(statement, row)
            found = connection.execute("select * from run_author order by run_id").fetchall()
            connection.executemany(
                "delete from run_author where run_id = ?", [(n,) for n, _ in found]
            )
            assert connection.execute("select count(*) from run_author").fetchone() == (0,)
            return found

    first = [(n, b"a%d" % n) for n in range(num_rows)]
    second = [(n, b"b%d" % n) for n in range(num_rows // 2, num_rows + 3)]
    third = [(b"c%d" % n, n) for n in range(0, num_rows, 3)]
    assert written(many=True) == written(many=False)


def test_statements_for_many_rows_say_the_same():
    assert for_many("insert into t (a, b) values (?, ?)", 2) == (
        "insert into t (a, b) values (?, ?), (?, ?)"
    )
    assert for_many("update t set a = ?, b = b + 1 where c = ? and d = ?", 2) == (
        "update t set a = new.column1, b = b + 1 from (values (?, ?, ?), (?, ?, ?)) as new "
        "where c = new.column2 and d = new.column3"
    )
    assert for_many("delete from t where a = ?", 2) is None
    assert for_many("insert into t (a) select ?, count(*) from t", 2) is None


@pytest.fixture
def open_to_all():
    before = os.umask(0o000)
    yield
    os.umask(before)


def modes(folder):
    return {each.name: oct(each.stat().st_mode & 0o777) for each in folder.iterdir()}


def test_a_store_its_log_and_its_copies_are_their_owners_alone(tmp_path, open_to_all):
    url = f"sqlite:///{tmp_path / 'snc.db'}"
    store = open_store(url)
    new_run(store)
    (tmp_path / "copy.db.part").touch()  # of a copy that was killed
    back_up_store(url, tmp_path / "copy.db")
    assert modes(tmp_path) == dict.fromkeys(
        ["snc.db", "snc.db-wal", "snc.db-shm", "snc.db-reserve", "copy.db"], "0o600"
    )
    store.close()


def test_a_store_of_an_older_release_becomes_its_owners_alone(tmp_path):
    url = f"sqlite:///{tmp_path / 'snc.db'}"
    store = open_store(url)
    new_run(store)
    for each in tmp_path.iterdir():
        each.chmod(0o644)
    open_store(url).close()  # beside the first, whose log it finds
    assert set(modes(tmp_path).values()) == {"0o600"}
    store.close()


def test_a_snapshot_gets_no_older_than_its_bound(store, monkeypatch):
    new_run(store)
    monkeypatch.setattr(sqlite_connection, "MOST_SNAPSHOT_SECONDS", -1.0)
    with pytest.raises(StoreUnavailable, match="must end within -1 seconds"):
        store.runs.get("r1")
    monkeypatch.undo()
    assert store.runs.get("r1").run == "r1"


def test_a_long_statement_is_cut_off_too(store, monkeypatch):
    monkeypatch.setattr(sqlite_connection, "MOST_SNAPSHOT_SECONDS", 0.1)
    count = "with recursive c(x) as (select 1 union all select x + 1 from c) select count(*) from c"
    with (
        store._database.read() as connection,
        pytest.raises(StoreUnavailable, match="must end within 0 seconds"),
    ):
        connection.execute(count).fetchall()


def test_a_log_that_a_foreign_reader_keeps_long_is_said_once(store, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(sqlite, "MOST_LOG_BYTES", 100_000)
    monkeypatch.setattr(sqlite, "CHECKPOINT_BYTES", 1)
    new_run(store)
    store.batches.put_layer_table("r1", LAYERS)
    reader = sqlite3.connect(tmp_path / "snc.db", isolation_level=None)
    reader.execute("begin")
    reader.execute("select count(*) from run").fetchall()
    for seq in range(60):
        stored(store, batch(LAYERS, seq, [seq], {"sigma": [[1, 2]]}))
        store._database.checkpoint()
    assert store.log_bytes() > 200_000
    assert caplog.text.count("another program reads the file in one transaction") == 1
    reader.close()
    store._database.checkpoint()
    stored(store, batch(LAYERS, 60, [60], {"sigma": [[1, 2]]}))
    with store._database.write() as connection:
        connection.execute("pragma journal_size_limit = 0")
    store._database._shorten_log()
    store._database.checkpoint()
    stored(store, batch(LAYERS, 61, [61], {"sigma": [[1, 2]]}))
    store._database.checkpoint()
    assert "it grows no more" in caplog.text


def test_a_damaged_index_is_found_and_made_anew(store, tmp_path):
    new_run(store)
    store.batches.put_layer_table("r1", LAYERS)
    stored(store, *(batch(LAYERS, seq, [seq], {"sigma": [[1, 2]]}) for seq in range(5)))
    with store._database.write() as connection:
        (sql,) = connection.execute(
            "select sql from sqlite_master where name = 'tail_by_step'"
        ).fetchone()
        # An index without the row of step 3, as a flipped bit in its key makes it.
        connection.execute("pragma writable_schema = on")
        connection.execute(
            "update sqlite_master set sql = sql || ' where step0 <> 3' where name = 'tail_by_step'"
        )
    store.close()
    with open_again(tmp_path) as file:
        file.execute("reindex tail_by_step")
        file.execute("pragma writable_schema = on")
        file.execute("update sqlite_master set sql = ? where name = 'tail_by_step'", (sql,))
        file.commit()
    again = open_store(f"sqlite:///{tmp_path}/snc.db")
    steps = again.histories.of_layers("r1", "sigma", ["a"], Window()).steps.tolist()
    assert steps == [0, 1, 2, 4]  # nothing tells of it while reading
    assert "missing from index tail_by_step" in again.damages.verify().engine[0]
    assert again.damages.count() > 0
    assert list(again.damages.repair(now=NOW)) == []
    assert again.damages.verify().engine == ()
    assert len(again.histories.of_layers("r1", "sigma", ["a"], Window()).steps) == 5
    again.close()


def open_again(folder):
    return closing(sqlite3.connect(folder / "snc.db"))
