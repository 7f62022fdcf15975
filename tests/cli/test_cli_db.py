"""``snc db``: every earlier schema becomes ours, and a copy taken during ingest is whole."""

from __future__ import annotations

import json
import re
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import numpy as np
import psycopg
import pytest
from store_cases import NOW, batch, judge, new_run, table
from store_victim import LAYERS, next_seq, submission
from test_store_kill import check

from snc_service.cli.main import main
from snc_service.detect.memory import quiet_steps
from snc_service.detect.rules import RunRules
from snc_service.store import open_store
from snc_service.store.engines.postgres import WORDS
from snc_service.store.sql.database import schema
from snc_service.store.types import (
    EventQuery,
    SequenceConflict,
    StoreUnavailable,
    Submission,
    Window,
)

# A store as each earlier schema version left it lies beside this file.
EARLIER = tuple(range(1, schema.VERSION))


def fixture_of(version: int) -> str:
    return (Path(__file__).resolve().parents[1] / "support" / f"store_v{version}.sql").read_text()


def in_sqlite(path: Path, version: int) -> str:
    with closing(sqlite3.connect(path)) as file:
        file.executescript(fixture_of(version))
    return f"sqlite:///{path}"


def in_postgres(url: str, version: int) -> str:
    """Lay out what the fixture holds as this engine would have at its version."""
    rows = re.findall(r"^insert into .*;$", fixture_of(version), re.M)
    with psycopg.connect(url, autocommit=True) as connection:
        for number in range(1, version + 1):
            for statement in schema.UPGRADES[number].format(**WORDS).split(";")[:-1]:
                connection.execute(statement)
        for row in rows:
            blobs = re.sub(r"X'([0-9A-F]*)'", r"'\\x\1'", row)
            connection.execute(blobs.removesuffix(";") + " on conflict do nothing")
        connection.execute("select setval(pg_get_serial_sequence('run_name', 'run_id'), 2)")
        if version > 1:
            connection.execute("select setval(pg_get_serial_sequence('audit', 'id'), 3)")
        connection.execute("create table schema_version (version integer not null)")
        connection.execute("insert into schema_version (version) values (%s)", (version,))
    return url


@pytest.fixture(params=EARLIER)
def version(request):
    """Return each earlier schema version."""
    return request.param


@pytest.fixture
def earlier(engine, store_url, tmp_path, version):
    """Return the URL of a store at an earlier schema version."""
    if engine == "sqlite":
        return in_sqlite(tmp_path / "snc.db", version)
    return in_postgres(store_url, version)


def tables_of(url: str) -> list[tuple[str, str]]:
    """Return every column of every table, however they came to be."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as file:
            return file.execute(
                'select m.name, c.name, c.type, c."notnull", c.pk, c.dflt_value '
                "from sqlite_master m join pragma_table_info(m.name) c order by 1, 2"
            ).fetchall()
    with psycopg.connect(url) as connection:
        return connection.execute(
            "select c.table_name, column_name, data_type, is_nullable, column_default, "
            "collation_name, attstorage from information_schema.columns c join pg_attribute a "
            "on a.attrelid = c.table_name::regclass and a.attname = c.column_name "
            "where table_schema = 'public' order by 1, 2"
        ).fetchall()


def test_a_store_of_any_earlier_version_is_upgraded_with_all_that_it_holds(
    earlier, version, capsys
):
    assert main(["db", "upgrade", "--store", earlier]) == 0
    assert f"at version {version} and is at version {schema.VERSION} now" in capsys.readouterr().out
    with closing(judge(open_store(earlier))) as store:
        run = store.runs.get("old")
        assert (run.name, run.config, run.last_step, run.breaches) == (
            "the old one", {"lr": 0.1}, 8, 4
        )  # fmt: skip
        for _ in range(2):
            got = store.histories.of_layers("old", "sigma", ["fc1.weight", "fc2.weight"], Window())
            assert got.max.tolist() == [[k / 4 for k in range(9)], [k / 2 for k in range(9)]]
            loss = store.histories.of_scalar("old", "loss", Window())
            np.testing.assert_array_equal(loss.max[0], (1 / np.arange(1, 10)).astype(np.float32))
            store.fold(60, now=NOW + 3_600)
        rules = [e.event.rule for e in store.events.page(EventQuery(run="old")).items]
        assert [rule for rule in rules if rule in ("breach", "run_started")] == [
            "breach", "run_started"
        ]  # fmt: skip
        assert store.policies.of_run("old").content.entries[0].threshold == 2.0
        assert store.policies.of_project("p").version == 1
        assert store.runs.get("gone").state == "failed"
        new_run(store, "new")
        assert [token.name for token in store.tokens.all()] == ["grafana"] * (version > 1)
        waiting = [command.reason for command in store.commands.page("old")]
        assert waiting == ["before the move"] * (version > 1)
        assert store.incidents.open() == []


def test_what_rules_remember_of_a_store_of_the_release_before_goes_on(engine, store_url, tmp_path):
    """The run was above its threshold at its last step: it still is, and that is no new event."""
    url = in_sqlite(tmp_path / "snc.db", 6) if engine == "sqlite" else in_postgres(store_url, 6)
    with closing(open_store(url)) as store:
        store.batches.judge_with(RunRules)
        assert [rule for rule, rows in pulse_of(store, "old").rules.items() if rows == 0] == [
            "breach"
        ]
        before = store.histories.latest("old")
        assert (before.steps.tolist(), before.metric("sigma").tolist()) == ([8, 8], [2.0, 4.0])
        assert store.batches.rule_state("old") is not None
        for seq in (2, 3):
            above = {"sigma": [[2.0, 5.0]], "threshold": [[2.0, 2.0]]}
            one = batch(table("fc1.weight", "fc2.weight"), seq, [7 + seq], above, {"loss": [0.1]})
            (outcome,) = store.batches.ingest([Submission("old", one, seq, NOW)])
            assert (outcome.error, outcome.events) == (None, ())
        assert pulse_of(store, "old").step == 10
        assert store.histories.latest("old").metric("sigma").tolist() == [2.0, 5.0]


def test_a_service_of_the_release_before_can_neither_write_nor_fold_beside_this_one(earlier):
    """It would take rows that a takeover has to replay."""
    with closing(open_store(earlier)) as store:
        for statement in (
            "insert into rule_state (run_id, v) values (1, '')",
            "update run set epoch = epoch + 1, interval_shift = 0 where run_id = 1",
        ):
            with pytest.raises((sqlite3.Error, psycopg.Error, StoreUnavailable)):
                with store._database.write() as connection:
                    connection.execute(statement)


def pulse_of(store, run):
    with store._database.read() as connection:
        (found,) = connection.execute("select pulse from run where run = ?", (run,)).fetchone()
    return quiet_steps(bytes(found))


def test_an_upgraded_store_has_the_tables_of_a_new_one(engine, earlier, tmp_path, postgres):
    open_store(earlier).close()
    new = f"sqlite:///{tmp_path}/new.db" if engine == "sqlite" else postgres.new_url()
    open_store(new).close()
    assert tables_of(earlier) == tables_of(new)


def test_every_version_is_a_step_from_the_one_before_and_has_a_store_to_prove_it():
    assert all(fixture_of(version) for version in EARLIER)
    assert sorted(schema.UPGRADES) == list(range(1, schema.VERSION + 1))


def test_an_upgrade_that_fails_leaves_the_store_as_it_was(earlier, monkeypatch, capsys):
    before = tables_of(earlier)
    broken = {**schema.UPGRADES, schema.VERSION: "create table half (a integer); create nonsense;"}
    monkeypatch.setattr(schema, "UPGRADES", broken)
    with pytest.raises(Exception, match="nonsense"):
        open_store(earlier).close()
    assert tables_of(earlier) == before


def test_upgrading_says_what_there_was_to_do(store_url, capsys):
    assert main(["db", "upgrade", "--store", store_url]) == 0
    assert "an empty one is there now" in capsys.readouterr().out
    assert main(["db", "upgrade", "--store", store_url]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert main(["db", "upgrade", "--store", store_url, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"before": schema.VERSION, "now": schema.VERSION}


def test_a_newer_store_is_one_sentence(tmp_path, capsys):
    path = tmp_path / "snc.db"
    open_store(f"sqlite:///{path}").close()
    with closing(sqlite3.connect(path)) as file:
        file.execute(f"pragma user_version = {schema.VERSION + 1}")
    assert main(["db", "upgrade", "--store", f"sqlite:///{path}"]) == 1
    said = capsys.readouterr().err
    assert "upgrade snc" in said
    assert said.count("\n") == 1


def test_a_backup_taken_during_ingest_is_a_whole_store(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("snc_service.store.engines.sqlite_file.BACKUP_PAGES", 5)
    url = f"sqlite:///{tmp_path}/snc.db"
    stop = threading.Event()
    with closing(open_store(url)) as store:
        new_run(store)
        store.batches.put_layer_table("r1", LAYERS)
        enough = threading.Event()

        def write() -> None:
            seq = 0
            while not stop.is_set():
                judge(store).batches.ingest([submission("one", seq)])
                seq += 1
                if seq == 50:
                    enough.set()
                if seq % 20 == 0:
                    store.fold(0.01, now=NOW + 3_600)

        writer = threading.Thread(target=write)
        writer.start()
        assert enough.wait(60)
        assert main(["db", "backup", str(tmp_path / "copy.db"), "--store", url, "--json"]) == 0
        stop.set()
        writer.join()
        told = json.loads(capsys.readouterr().out)
        assert told["bytes"] == (tmp_path / "copy.db").stat().st_size
        whole = next_seq(store, "one")
    with closing(open_store(f"sqlite:///{tmp_path}/copy.db")) as copy:
        last = next_seq(copy, "one") - 1
        assert 49 <= last <= whole
        check(copy, {"one": last, "two": -1})
    assert not list(tmp_path.glob("*.part*"))


def test_a_backup_replaces_nothing(tmp_path, capsys):
    url = f"sqlite:///{tmp_path}/snc.db"
    open_store(url).close()
    (tmp_path / "precious").write_text("mine")
    assert main(["db", "backup", str(tmp_path / "precious"), "--store", url]) == 1
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "precious").read_text() == "mine"


@pytest.mark.parametrize("what", ["missing", "noise"])
def test_a_backup_of_no_store_is_one_sentence_and_makes_no_file(tmp_path, capsys, what):
    if what == "noise":
        (tmp_path / "snc.db").write_bytes(b"noise" * 1_000)
    url = f"sqlite:///{tmp_path}/snc.db"
    assert main(["db", "backup", str(tmp_path / "copy.db"), "--store", url]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == (["snc.db"] if what == "noise" else [])


def test_a_postgresql_store_is_left_to_pg_dump(capsys):
    url = "postgresql://ann:secret@db/snc"
    assert main(["db", "backup", "copy.dump", "--store", url]) == 1
    said = capsys.readouterr().err
    assert "pg_dump --format=custom --compress=1 --file=copy.dump" in said
    assert "secret" not in said


def test_a_batch_that_the_release_before_stored_is_known_by_its_content(earlier):
    """Its checksums of contents are in another form."""
    with closing(judge(open_store(earlier))) as store:
        one = batch(table("fc1.weight", "fc2.weight"), 1, [9], {"sigma": [[1, 1]]})
        with store._database.read() as connection:
            (stored,) = connection.execute(
                "select crcs from writer where run_id = 1 and writer = ?", ("w",)
            ).fetchone()
        crc = int.from_bytes(bytes(stored)[24:28], "little")
        found = store.batches.ingest(
            [Submission("old", one, crc, NOW), Submission("old", one, crc ^ 1, NOW)]
        )
        assert found[0].duplicate
        assert isinstance(found[1].error, SequenceConflict)
