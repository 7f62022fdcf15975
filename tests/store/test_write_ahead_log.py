"""A changed bit in the log of a killed service is said, and the log is kept."""

from __future__ import annotations

import random
import shutil
import sqlite3
from contextlib import closing

import pytest
from store_cases import batch, new_run, stored, table

from snc_service.store import open_store
from snc_service.store.engines.write_ahead_log import damage_of
from snc_service.store.types import Window

COMMITS = 80


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Return a database and its log as a killed process leaves them, with a row per commit."""
    folder = tmp_path_factory.mktemp("killed")
    chance = random.Random(0)
    with closing(sqlite3.connect(folder / "here.db", isolation_level=None)) as file:
        file.execute("pragma page_size = 1024")
        file.execute("pragma journal_mode = wal")
        file.execute("pragma wal_autocheckpoint = 0")
        file.execute("create table t (a, b)")
        file.execute("pragma wal_checkpoint(truncate)")
        for number in range(COMMITS):
            file.execute("insert into t values (?, ?)", (number, chance.randbytes(1_500)))
        shutil.copy(folder / "here.db", folder / "killed.db")
        shutil.copy(folder / "here.db-wal", folder / "killed.db-wal")
    return folder / "killed.db"


def rows_after(killed, folder, log: bytes) -> int:
    """Return how many of the commits SQLite recovers with another log."""
    for end in ("", "-wal", "-shm"):
        (folder / f"copy.db{end}").unlink(missing_ok=True)
    shutil.copy(killed, folder / "copy.db")
    (folder / "copy.db-wal").write_bytes(log)
    with closing(sqlite3.connect(folder / "copy.db")) as file:
        (count,) = file.execute("select count(*) from t").fetchone()
    return count


def test_of_a_flipped_bit_is_told_how_many_commits_are_lost_with_it(killed, tmp_path):
    whole = (killed.parent / "killed.db-wal").read_bytes()
    assert rows_after(killed, tmp_path, whole) == COMMITS
    chance, seen = random.Random(1), 0
    for _ in range(60):
        log = bytearray(whole)
        log[chance.randrange(len(log))] ^= 1 << chance.randrange(8)
        (tmp_path / "log").write_bytes(log)
        damage = damage_of(tmp_path / "log")
        lost = COMMITS - rows_after(killed, tmp_path, bytes(log))
        if damage is None:
            assert lost <= 1  # of the last one nobody knows whether its sync had returned
        else:
            assert abs(damage.commits - lost) <= 1  # the bit may be what marks a commit
            seen += 1
    assert seen > 50


def test_a_log_that_was_torn_or_begun_anew_is_not_damaged(killed, tmp_path):
    log = tmp_path / "log"
    whole = (killed.parent / "killed.db-wal").read_bytes()
    assert damage_of(log) is None
    for size in (0, 5, 32, 40, 5_000, len(whole) - 1_000, len(whole) - 1, len(whole)):
        log.write_bytes(whole[:size])
        assert damage_of(log) is None, size
    shutil.copy(killed, tmp_path / "on.db")
    shutil.copy(killed.parent / "killed.db-wal", tmp_path / "on.db-wal")
    with closing(sqlite3.connect(tmp_path / "on.db", isolation_level=None)) as file:
        file.execute("pragma wal_checkpoint(passive)")
        file.execute("insert into t values (1, 2)")  # over the first frames; the old ones follow
        assert damage_of(tmp_path / "on.db-wal") is None


def test_a_store_with_a_damaged_log_starts_and_says_what_it_lost(tmp_path, caplog):
    layers, left = table("a"), tmp_path / "left"
    left.mkdir()
    with closing(open_store(f"sqlite:///{tmp_path}/snc.db")) as store:
        new_run(store)
        store.batches.put_layer_table("r1", layers)
        for seq in range(20):
            stored(store, batch(layers, seq, [seq], {"sigma": [[seq]]}))
        for end in ("", "-wal"):
            shutil.copy(tmp_path / f"snc.db{end}", left / f"snc.db{end}")
    log = bytearray((left / "snc.db-wal").read_bytes())
    log[len(log) // 2] ^= 16
    (left / "snc.db-wal").write_bytes(log)
    with closing(open_store(f"sqlite:///{left}/snc.db")) as store:
        assert "commits are lost" in caplog.text
        kept = store.histories.of_layers("r1", "sigma", ["a"], Window()).max[0].tolist()
        assert kept == list(range(len(kept)))
        assert 0 < len(kept) < 20
        assert store.damages.count() == 1
        (told,) = store.damages.verify().engine
        assert "snc.db-wal-damaged" in told
        assert (left / "snc.db-wal-damaged").read_bytes() == log
        (left / "snc.db-wal-damaged").unlink()
        assert store.damages.verify().engine == ()
        assert store.damages.count() == 0
