"""Slices of a chunk: every one invisible in the answers, and none in the way of other runs."""

from __future__ import annotations

import numpy as np
import pytest
from store_cases import batch, new_run, stored
from test_store_fold import LATER, LAYERS, Run, in_tail, small, store

from snc_service.store import open_store
from snc_service.store.sql.compaction import compact, slices
from snc_service.store.types import Window

__all__ = ["small", "store"]  # fixtures
WINDOW = Window(points=5)


@pytest.fixture
def narrow(small, monkeypatch):
    """Slices of one block of one metric: three per chunk of 16 steps."""
    monkeypatch.setattr(slices, "SLICE_BYTES", 1)


def num_tiles(store, run: str) -> int:
    with store._database.read() as connection:
        return connection.execute(
            "select count(*) from tile where level = 0 and run_id = "
            "(select run_id from run_name where run = ?)",
            (run,),
        ).fetchone()[0]


@pytest.mark.usefixtures("narrow")
def test_a_chunk_folds_in_slices_and_every_answer_stays(store):
    run = Run(store)
    run.send(range(16), seed=1)
    folded = []
    while in_tail(store):
        folded.append(store.fold(0, now=LATER))
        run.check_all_layers(WINDOW)
    assert folded == [16 * 16, 16 * 4, 16]  # two blocks of sigma, the loss
    assert store.fold(0, now=LATER) == 0
    run.check()


@pytest.mark.usefixtures("narrow")
def test_a_batch_that_lands_between_two_slices_stays_and_lies_over_them(store):
    run = Run(store)
    run.send(range(16), seed=1)
    store.fold(0, now=LATER)
    run.send([3, 4], seed=2)
    while store.fold(0, now=LATER) and in_tail(store) > 1:
        run.check_all_layers(WINDOW)
    while store.fold(60, now=LATER):
        pass
    assert in_tail(store) == 0
    run.check()


@pytest.mark.usefixtures("narrow")
def test_a_process_that_ends_between_two_slices_leaves_work_but_no_harm(store, store_url):
    run = Run(store)
    run.send(range(100), seed=1)
    for _ in range(5):
        store.fold(0, now=LATER)
    with_nothing_in_mind = open_store(store_url)
    run.check_all_layers(WINDOW)
    while with_nothing_in_mind.fold(60, now=LATER):
        pass
    assert in_tail(store) == 0
    # The first is overtaken: what it began must not come over what the other wrote.
    assert store.fold(60, now=LATER) == 0
    run.check()
    with_nothing_in_mind.close()


@pytest.mark.usefixtures("narrow")
def test_runs_take_turns_slice_by_slice(store):
    new_run(store, "r2")
    store.batches.put_layer_table("r2", LAYERS)
    run, other = Run(store), batch(LAYERS, 0, range(100), {"sigma": np.ones((100, 20))})
    run.send(range(100), seed=1)
    stored(store, other, run="r2")
    for _ in range(2):
        store.fold(0, now=LATER)
    assert (num_tiles(store, "r1"), num_tiles(store, "r2")) == (1, 1)


def test_a_wide_run_is_cut_at_whole_blocks():
    """50,000 layers x 128 steps are 26 MB of one metric."""
    assert slices.width_of(128) == 4_096
    assert slices.width_of(10**9) == 16


@pytest.mark.usefixtures("narrow")
def test_batches_leave_the_tail_in_portions_and_every_answer_stays(store, monkeypatch):
    monkeypatch.setattr(compact, "LEAVING_BYTES", 1)
    run = Run(store)
    for seed, steps in enumerate((range(10), range(10, 16), range(4, 30))):
        run.send(steps, seed=seed)
    seen = []
    real = compact._write

    def watched(*arguments):
        done = real(*arguments)
        seen.append(in_tail(store))
        run.check_all_layers(WINDOW)
        return done

    monkeypatch.setattr(compact, "_write", watched)
    while store.fold(60, now=LATER):
        pass
    assert seen == [3, 3, 2, 1, 1, 1, 1, 0]  # three slices of one chunk, then of the other
    run.check()
