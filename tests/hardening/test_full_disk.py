"""A disk that is full: deleting works, what was said is true, and the service starts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from small_disk import small_disk
from store_cases import NOW, as_sent, batch, new_run, stored, submit, table

from snc_service.store import open_store
from snc_service.store.engines.reserve import RESERVE_BYTES, Reserve
from snc_service.store.types import RunUnknown, StoreFull

LAYERS = table(*(f"l{i}" for i in range(1_000)))
MEGABYTES = 24
STRIDE = 70  # `make chaos` kills at every statement


def big(seq: int):
    values = np.random.default_rng(seq).random((50, 1_000), np.float32)
    return batch(LAYERS, seq, range(50 * seq, 50 * seq + 50), {"sigma": values})


def filled(store, run: str, most: int = 10**6) -> int:
    """Store batches until the disk is full; return how many."""
    for seq in range(most):
        try:
            submit(store, [big(seq)], run=run)
        except StoreFull:
            return seq
    return most


def test_runs_are_deleted_on_a_full_disk_and_then_there_is_room(tmp_path):
    with small_disk(tmp_path / "disk", MEGABYTES) as disk:
        url = f"sqlite:///{disk.folder}/snc.db"
        with closing(open_store(url)) as store:
            for run in ("big", "other"):
                new_run(store, run)
                store.batches.put_layer_table(run, LAYERS)
            assert filled(store, "other", most=5) == 5
            store._database.checkpoint()
            assert filled(store, "big") > 10
            disk.fill()
            store.runs.delete("big")
            with pytest.raises(RunUnknown):
                store.runs.get("big")
            assert shutil.disk_usage(disk.folder).free > 8 * 2**20
            stored(store, big(5), run="other")
        with closing(open_store(url)) as store:
            assert as_sent(store, "other", "sigma", LAYERS.names)[0].tolist() == list(range(300))
            assert (disk.folder / "snc.db-reserve").stat().st_size == RESERVE_BYTES


def test_what_is_left_of_a_full_disk_is_for_deleting_alone(tmp_path):
    with (
        small_disk(tmp_path / "disk", MEGABYTES) as disk,
        closing(open_store(f"sqlite:///{disk.folder}/snc.db")) as store,
    ):
        for run in ("small", "other"):
            new_run(store, run)
            store.batches.put_layer_table(run, LAYERS)
        stored(store, big(0), run="other")
        disk.fill()
        store.runs.delete("small")
        with pytest.raises(StoreFull, match="kept for deleting"):
            submit(store, [big(1)], run="other")
        assert as_sent(store, "other", "sigma", LAYERS.names)[0].tolist() == list(range(50))
        (disk.folder / "filler").unlink()
        stored(store, big(1), run="other")


def test_a_deletion_that_cannot_go_on_is_done_and_resumed_later(tmp_path, monkeypatch, caplog):
    url = f"sqlite:///{tmp_path}/snc.db"
    with closing(open_store(url)) as store:
        new_run(store)
        store.batches.put_layer_table("r1", LAYERS)
        stored(store, big(0))

    def full(*_):
        raise StoreFull("no room")

    with monkeypatch.context() as patch:
        patch.setattr("snc_service.store.sql.records.deletion._delete_slice", full)
        with closing(open_store(url)) as store:
            store.runs.delete("r1")
            with pytest.raises(RunUnknown):
                store.runs.get("r1")
        with closing(open_store(url)) as store:  # the start goes on, too
            with pytest.raises(StoreFull):
                store.fold(0, now=NOW)
    assert caplog.text.count("deleted runs still take space: no room") == 2
    with closing(open_store(url)) as store, store._database.read() as connection:
        assert connection.execute("select count(*) from tail").fetchone() == (0,)


def test_where_there_is_no_room_there_is_no_reserve_and_nothing_is_held_back(tmp_path):
    with small_disk(tmp_path / "disk", 8) as disk:
        reserve = Reserve(disk.folder / "r")
        assert not (disk.folder / "r").exists()
        reserve.spend()
        assert not reserve.is_spent
        disk.grow(MEGABYTES)
        reserve.look()
        assert (disk.folder / "r").stat().st_size == RESERVE_BYTES
        reserve.spend()  # there is room enough
        assert not reserve.is_spent
        disk.fill()
        reserve.spend()
        assert reserve.is_spent
        assert Reserve(disk.folder / "r").is_spent
        disk.grow(2 * MEGABYTES)
        reserve.look()
        assert not reserve.is_spent
        assert (disk.folder / "r").stat().st_mode & 0o777 == 0o600


@pytest.mark.timeout(240)
def test_every_kind_of_work_killed_on_a_full_disk_is_done_or_not_done(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("a disk that fills needs the right to mount: run as root")
    script = Path(__file__).resolve().parents[1] / "support" / "full_disk.py"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), str(STRIDE)], capture_output=True, text=True
    )
    if "permission denied" in done.stderr:
        pytest.skip("a disk that fills needs the right to mount")
    assert done.returncode == 0, done.stderr[-2_000:]
    told = dict(line.split(":", 1) for line in done.stdout.splitlines())
    assert told.keys() >= {"delete", "retention", "thinning", "folding", "alerts", "a token"}
    assert "done" in told["delete"]
    assert "killed" in told["delete"]
