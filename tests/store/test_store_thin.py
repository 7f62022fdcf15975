"""Thinning: exact values of old runs go, what rollups tell of them stays what it was."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_cases import NOW, assert_same, batch, new_name, new_run, stored, table
from test_store_history import SPECIAL, small_tiles

from snc_service.store import open_store
from snc_service.store.sql.compaction import thinning
from snc_service.store.types import Extent, HistoryThinned, Window
from snc_service.wire import ABSENT

LAYERS = table(*(f"l{i}" for i in range(20)))
LATER = NOW + 10**6


@pytest.fixture
def store(store_url):
    with small_tiles(), closing(open_store(store_url)) as opened:
        yield opened


def keep(store, run, steps, values, seq=0, **header):
    steps = list(steps)
    loss = {"loss": [float(row[0]) for row in values]}
    stored(store, batch(LAYERS, seq, steps, {"sigma": values}, loss, **header), run=run)


def ended(store, num_steps=100, *, stride=1, specials=0, seed=0) -> str:
    """Return a run that is over and folded."""
    run, rng = new_name(), np.random.default_rng(seed)
    new_run(store, run)
    store.batches.put_layer_table(run, LAYERS)
    values = rng.standard_normal((num_steps, 20)).astype(np.float32)
    for _ in range(specials):
        at = tuple(rng.integers(0, n) for n in values.shape)
        values[at] = SPECIAL[rng.integers(len(SPECIAL))]
    keep(store, run, range(0, num_steps * stride, stride), values)
    store.runs.finish(run, "finished", NOW)
    while store.fold(60, now=LATER):
        pass
    return run


def exact_tiles(store, run) -> int:
    with store._database.read() as connection:
        (count,) = connection.execute(
            "select count(*) from tile where level = 0 and run_id = "
            "(select run_id from run where run = ?)",
            (run,),
        ).fetchone()
        return count


def answers(store, run, windows):
    """Return histories of some layers, of all, and scalars: what a page asks for."""
    for window in windows:
        yield store.histories.of_layers(run, "sigma", ["l0", "l19"], window)
        yield store.histories.of_scalar(run, "loss", window)
        yield store.histories.of_layers(run, "sigma", LAYERS.names, window)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(
    num_steps=st.integers(5, 400),
    stride=st.sampled_from([1, 1, 2, 8]),
    specials=st.integers(0, 60),
    seed=st.integers(0, 2**31),
)
def test_what_buckets_told_before_they_tell_afterwards(
    shared_store, num_steps, stride, specials, seed
):
    with small_tiles():
        run = ended(shared_store, num_steps, stride=stride, specials=specials, seed=seed)
        chunk = 16 * stride
        windows = [Window(points=1), Window(points=2), Window(points=3, from_step=chunk)]
        before = list(answers(shared_store, run, windows))
        assert run in shared_store.runs.thin(NOW + 1, LATER)
        assert exact_tiles(shared_store, run) == 0
        least = 4 * stride  # of the smallest rollup
        for was, now in zip(before, answers(shared_store, run, windows), strict=True):
            if was.bucket_steps >= least and was.bucket_steps == now.bucket_steps:
                assert_same(now, was)
            elif was.nonfinite.size:
                assert now.bucket_steps >= least
                assert np.fmax.reduce(now.max, axis=None) == np.fmax.reduce(was.max, axis=None)
                assert now.nonfinite.sum() == was.nonfinite.sum()


def test_what_was_exact_is_told_by_rollups_of_four(store):
    run = ended(store, 64)
    exact = store.histories.of_layers(run, "sigma", ["l3"], Window())
    store.runs.thin(NOW + 1, LATER)
    got = store.histories.of_layers(run, "sigma", ["l3"], Window())
    assert (exact.bucket_steps, got.bucket_steps) == (1, 4)
    assert got.steps.tolist() == list(range(0, 64, 4))
    np.testing.assert_array_equal(got.max[0], exact.max[0].reshape(-1, 4).max(axis=1))
    np.testing.assert_array_equal(got.min[0], exact.min[0].reshape(-1, 4).min(axis=1))
    part = store.histories.of_layers(run, "sigma", ["l3"], Window(from_step=17, to_step=30))
    assert part.steps.tolist() == [16, 20, 24, 28]
    np.testing.assert_array_equal(part.max, got.max[:, 4:8])


def test_only_runs_that_ended_before_are_thinned_and_only_once(store):
    run = ended(store)
    store.runs.create("busy", name="b", project="p", config={}, tags=(), policy=None, now=NOW)
    version = store.runs.get(run).version
    assert store.runs.thin(NOW, LATER) == []
    assert store.runs.thin(NOW + 1, LATER) == [run]
    assert store.runs.get(run).version > version  # what caches hold is not true any more
    assert store.runs.thin(NOW + 1, LATER) == []
    entries, _ = store.audit.page(
        author=None, action="run_thinned", subject=None, limit=10, after=None
    )
    assert [(entry.subject, entry.author) for entry in entries] == [(run, "retention")]


def test_a_crash_in_between_shows_nothing_and_the_next_call_goes_on(store, monkeypatch):
    run = ended(store, 200)
    monkeypatch.setattr(thinning, "SLICE_ROWS", 3)
    drop = thinning._drop_slice

    def crash(database, run_id):
        drop(database, run_id)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(thinning, "_drop_slice", crash)
        with pytest.raises(KeyboardInterrupt):
            store.runs.thin(NOW + 1, LATER)
    assert exact_tiles(store, run) > 0
    halfway = list(answers(store, run, [Window()]))
    assert store.runs.thin(NOW + 1, LATER) == [run]
    assert exact_tiles(store, run) == 0
    for was, now in zip(halfway, answers(store, run, [Window()]), strict=True):
        assert_same(now, was)


def test_a_run_that_goes_on_is_exact_from_there_on(store):
    run = ended(store, 40)
    before = store.histories.of_layers(run, "sigma", ["l1"], Window(points=12))
    store.runs.thin(NOW + 1, LATER)
    new = np.arange(20 * 60, dtype=np.float32).reshape(60, 20)
    keep(store, run, range(40, 100), new, seq=1)
    for _ in range(2):  # in the tail, then folded: the chunk of 40 had been thinned in part
        late = store.histories.of_layers(run, "sigma", ["l1"], Window(from_step=48))
        assert late.bucket_steps == 1
        np.testing.assert_array_equal(late.max[0], new[8:, 1])
        whole = store.histories.of_layers(run, "sigma", ["l1"], Window(points=50))
        assert whole.bucket_steps == 4
        np.testing.assert_array_equal(whole.max[0, :10], before.max[0])
        np.testing.assert_array_equal(whole.max[0, 10:], new[:, 1].reshape(-1, 4).max(axis=1))
        assert whole.nonfinite.sum() == 0
        store.fold(60, now=LATER)
    store.runs.finish(run, "failed", NOW)
    assert store.runs.thin(NOW + 1, LATER) == [run]
    assert_same(store.histories.of_layers(run, "sigma", ["l1"], Window(points=50)), whole)


def test_a_late_value_is_added_to_what_the_rollups_tell(store):
    run = ended(store, 40)
    store.runs.thin(NOW + 1, LATER)
    before = store.histories.of_layers(run, "sigma", ["l1", "l2"], Window())
    late = np.full((1, 20), ABSENT, np.float32)
    late[0, 1] = 99
    keep(store, run, [5], late, attempt=0, writer="v")
    for _ in range(2):
        got = store.histories.of_layers(run, "sigma", ["l1", "l2"], Window())
        assert got.max[0].tolist() == [before.max[0, 0], 99, *before.max[0, 2:].tolist()]
        np.testing.assert_array_equal(got.max[1], before.max[1])
        np.testing.assert_array_equal(got.min, before.min)
        store.fold(60, now=LATER)


def test_exact_questions_say_from_where_they_can_be_answered(store):
    run = ended(store, 40)
    store.runs.thin(NOW + 1, LATER)
    with pytest.raises(HistoryThinned, match="from_step=48"):
        store.histories.worst(run, "sigma", Window(), 3)
    with pytest.raises(HistoryThinned, match="from_step=48") as caught:
        store.histories.scan(run, Extent())
    assert caught.value.below == 48
    keep(store, run, range(48, 60), np.ones((12, 20), np.float32), seq=1)
    assert store.histories.worst(run, "sigma", Window(from_step=48), 1)[0].value == 1
    pieces = list(store.histories.scan(run, Extent(from_step=48, metrics=("sigma",))))
    assert {int(step) for piece in pieces for step in piece.steps} == set(range(48, 60))


def test_a_deleted_run_takes_its_mark_along(store):
    run = ended(store, 40)
    store.runs.thin(NOW + 1, LATER)
    store.runs.delete(run)
    with store._database.read() as connection:
        assert connection.execute("select count(*) from thinned").fetchone() == (0,)


def test_thinning_gives_most_of_the_space_back(tmp_path):
    with closing(open_store(f"sqlite:///{tmp_path}/snc.db")) as store:
        run = new_name()
        new_run(store, run)
        store.batches.put_layer_table(run, LAYERS)
        rng = np.random.default_rng(0)
        for seq in range(20):
            values = rng.standard_normal((1_000, 20)).astype(np.float32)
            keep(store, run, range(seq * 1_000, (seq + 1) * 1_000), values, seq=seq)
        store.runs.finish(run, "finished", NOW)
        while store.fold(60, now=LATER):
            pass

        def history_bytes() -> int:
            with store._database.read() as connection:
                return connection.execute("select sum(length(v)) from tile").fetchone()[0]

        before = history_bytes()
        store.runs.thin(NOW + 1, LATER)
        assert history_bytes() < before / 5
