"""What one run may name is bounded, and no batch is dearer for what its run has named before."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest
from store_cases import NOW, batch, new_run, stored, submit, table

from snc_service.store import open_store
from snc_service.store.sql.ingest import run_cache
from snc_service.store.sql.series import layouts
from snc_service.store.types import Bounds, RunBounds, RunFull
from snc_service.wire import LayerSpec, LayerTable, RuleSettings

ONE = table("a")
BOUNDS = Bounds(RunBounds(metrics=3, scalars=2, layers=4, table_layers=3_000, layouts=5, writers=2))


@pytest.fixture
def store(store_url):
    with closing(open_store(store_url, BOUNDS)) as store:
        new_run(store)
        store.batches.put_layer_table("r1", ONE)
        yield store


def names(seq, *metrics, scalars=(), writer="w"):
    values = {name: [[1.0]] for name in metrics}
    return batch(ONE, seq, [seq], values, {name: [1.0] for name in scalars}, writer=writer)


def refusal(store, one) -> RunFull:
    """Send a batch that is refused and leaves no trace: the same writer goes on with its seq."""
    before = store.runs.get("r1")
    (outcome,) = submit(store, [one])
    assert isinstance(outcome.error, RunFull)
    assert f"SNC_{outcome.error.bound.upper()}" in str(outcome.error)
    assert store.runs.get("r1") == before
    return outcome.error


def test_names_of_metrics_are_bounded_and_those_that_are_known_go_on(store):
    stored(store, names(0, "m1", "m2"))
    error = refusal(store, names(1, "m3", "m4"))
    assert (error.bound, error.limit, error.field) == ("run_metrics", 3, "metrics")
    stored(store, names(1, "m2", "m3"))
    refusal(store, names(2, "m4"))
    stored(store, names(2, "m3"))


def test_names_of_scalars_are_bounded(store):
    stored(store, names(0, "m1", scalars=("s1", "s2")))
    assert refusal(store, names(1, "m1", scalars=("s3",))).bound == "run_scalars"
    stored(store, names(1, "m1", scalars=("s2",)))


def test_combinations_are_bounded(store):
    for seq, metrics in enumerate((("m1",), ("m2",), ("m3",), ("m1", "m2"), ("m2", "m1"))):
        stored(store, names(seq, *metrics))
    assert refusal(store, names(5, "m1", "m3")).bound == "run_layouts"
    stored(store, names(5, "m2", "m1"))


def test_writers_are_bounded_and_those_that_are_known_go_on(store):
    stored(store, names(0, "m1", writer="one"))
    stored(store, names(0, "m1", writer="two"))
    assert refusal(store, names(0, "m1", writer="three")).bound == "run_writers"
    stored(store, names(1, "m1", writer="one"))


def test_layers_over_all_tables_are_bounded(store):
    store.batches.put_layer_table("r1", table("b", "c", "d"))
    with pytest.raises(RunFull) as refused:
        store.batches.put_layer_table("r1", table("e"))
    assert (refused.value.bound, refused.value.field) == ("run_layers", "layers")
    assert store.runs.get("r1").layers == 4


def test_layer_tables_are_bounded_by_their_layers_and_by_their_number(store):
    for shape in (1, 2):
        store.batches.put_layer_table("r1", LayerTable((LayerSpec("a", "linear", (shape,)),)))
    with pytest.raises(RunFull) as refused:
        store.batches.put_layer_table("r1", LayerTable((LayerSpec("a", "linear", (3,)),)))
    assert refused.value.bound == "run_table_layers"
    store.batches.put_layer_table("r1", ONE)  # a known one is no new one


def test_what_a_run_has_beyond_a_bound_that_was_lowered_it_keeps(store_url):
    with closing(open_store(store_url)) as before:
        new_run(before)
        before.batches.put_layer_table("r1", table(*"abcdefgh"))
        before.batches.put_layer_table("r1", ONE)
        stored(before, names(0, *(f"m{i}" for i in range(9))))
    with closing(open_store(store_url, BOUNDS)) as store:
        stored(store, names(1, *(f"m{i}" for i in range(9))))
        assert refusal(store, names(2, "new")).bound == "run_metrics"


def shaped(k):
    return LayerTable(tuple(LayerSpec(f"l{i}", "m", (k,)) for i in range(10)))


def test_older_tables_are_forgotten_and_the_run_stands_where_it_stood(store_url, monkeypatch):
    """The worst layer over all tables is that of a store that forgets nothing."""
    tables = [shaped(k) for k in range(6)]
    rng = np.random.default_rng(0)
    order = [int(k) for k in rng.integers(0, 6, 60)]
    rows = rng.uniform(0.1, 9.0, (60, 10)).astype(np.float32)
    rows[rng.random((60, 10)) < 0.2] = np.nan
    told = []
    for most in (run_cache.MOST_OF_ONE_RUN, 100):
        monkeypatch.setattr(run_cache, "MOST_OF_ONE_RUN", most)
        with closing(open_store(store_url)) as store:
            run = f"r{most}"
            new_run(store, run)
            for each in tables:
                store.batches.put_layer_table(run, each)
            seen = []
            for seq, (k, row) in enumerate(zip(order, rows, strict=True)):
                values = {"sigma": [row], "threshold": [np.full(10, 2.0)]}
                stored(store, batch(tables[k], seq, [seq], values), run=run)
                found = store.runs.get(run)
                seen.append((found.worst_ratio, found.worst_layer, found.nonfinite_layers))
            told.append(seen)
            latest = store.histories.latest(run)
            assert (latest.steps == 59).all()
            (kept,) = store.batches._memory.take([run]).values()
            assert len(kept.derived.latest) == (6 if most > 100 else 1)
            assert kept.cost <= max(most, 200)
    assert told[0] == told[1]
    finite = rows[-1][np.isfinite(rows[-1])]
    assert told[0][-1][0] == pytest.approx(float(finite.max()) / 2.0)
    assert told[0][-1][2] == 10 - finite.size


def test_the_worst_layer_is_that_over_all_tables_whatever_layers_they_have(store_url):
    rng = np.random.default_rng(1)
    tables = [table(*"ab"), table(*"ba"), table(*"bc"), table("d"), table(*"dca"), table(*"ef")]
    with closing(open_store(store_url)) as store:
        new_run(store)
        for seq in range(30):
            layers = tables[int(rng.integers(0, 1 + min(seq // 4, 5)))]
            store.batches.put_layer_table("r1", layers)
            ratio = rng.uniform(0.1, 9.0, len(layers.layers))
            values = {"sigma": [2 * ratio], "threshold": [np.full(len(ratio), 2.0)]}
            stored(store, batch(layers, seq, [seq], values))
            latest = store.histories.latest("r1")
            newest = latest.metric("sigma") / latest.metric("threshold")
            found = store.runs.get("r1")
            worst = int(np.nanargmax(newest))
            assert found.worst_layer == latest.layers[worst].name
            assert found.worst_ratio == pytest.approx(float(newest[worst]), rel=1e-6)


def test_a_new_table_does_not_let_a_run_be_read_anew(store_url, monkeypatch):
    with closing(open_store(store_url)) as store:
        new_run(store)
        read = []
        original = run_cache._load

        def load(connection, book, works, detection):
            read.extend(works)
            original(connection, book, works, detection)

        monkeypatch.setattr(run_cache, "_load", load)
        for k in range(5):
            store.batches.put_layer_table("r1", shaped(k))
            values = {"sigma": [np.full(10, k)], "threshold": [np.ones(10)]}
            stored(store, batch(shaped(k), k, [k], values))
        assert len(read) == 1
        store.rule_settings.put_for_run("r1", RuleSettings(), author="x", now=NOW, if_version=None)
        stored(store, batch(shaped(0), 5, [5], {"sigma": [np.full(10, 9.0)]}))
        assert len(read) == 2  # what others change counts


def test_small_things_have_a_price_in_memory_too():
    memory: layouts.Remembered[int] = layouts.Remembered(10 * layouts.LEAST_LAYERS)
    for key in range(100):
        memory.keep(key, key, 0)
    assert sum(memory.get(key) is not None for key in range(100)) == 10


def test_the_rules_are_not_asked_to_forget_a_batch_that_is_refused(store):
    asked = []

    def advance(state, rows):
        asked.append(state)
        return b"seen " + str(len(asked)).encode(), []

    stored(store, names(0, "m1", "m2", "m3"), advance=advance)
    submit(store, [names(1, "m4")], advance=advance)
    stored(store, names(1, "m1"), advance=advance)
    assert asked[-1] == b"seen 1"
