"""Newest values: carried forward value by value, merged over layer tables, new with an attempt."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_cases import batch, bits, new_name, new_run, stored, table

from snc_service.store import open_store
from snc_service.wire import ABSENT

LAYERS = table("a", "b")


@pytest.fixture
def store(store_url):
    store = open_store(store_url)
    new_run(store)
    store.batches.put_layer_table("r1", LAYERS)
    yield store
    store.close()


def newest(store, metric):
    values = store.histories.latest("r1").metric(metric)
    return None if values is None else [None if np.isnan(v) else float(v) for v in values]


def test_a_run_without_values_has_layers_and_no_metrics(store):
    now = store.histories.latest("r1")
    assert [layer.name for layer in now.layers] == ["a", "b"]
    assert now.steps.tolist() == [-1, -1]
    assert (now.metrics, now.values.shape) == ((), (0, 2))
    assert now.metric("sigma") is None


def test_a_value_not_measured_again_keeps_its_last(store):
    rows = {"sigma": [[1, 2], [3, ABSENT]], "residual": [[5, ABSENT], [ABSENT, ABSENT]]}
    stored(store, batch(LAYERS, 0, [0, 1], rows))
    assert newest(store, "sigma") == [3, 2]
    np.testing.assert_array_equal(
        bits(store.histories.latest("r1").metric("residual")),
        bits(np.array([5, ABSENT], np.float32)),
    )
    assert store.histories.latest("r1").steps.tolist() == [1, 0]
    stored(store, batch(LAYERS, 1, [2], {"threshold": [[7, 8]]}))
    assert newest(store, "sigma") == [3, 2]
    assert newest(store, "threshold") == [7, 8]
    assert store.histories.latest("r1").steps.tolist() == [2, 2]


def test_a_newer_nan_replaces_a_number(store):
    stored(store, batch(LAYERS, 0, [0, 1], {"sigma": [[1, 2], [np.nan, 4]]}))
    assert newest(store, "sigma") == [None, 4]
    assert store.runs.get("r1").nonfinite_layers == 1


def test_a_late_batch_of_older_steps_only_fills_holes(store):
    stored(store, batch(LAYERS, 0, [10], {"sigma": [[1, ABSENT]]}))
    stored(store, batch(LAYERS, 0, [5], {"sigma": [[8, 9]], "scale": [[1, 1]]}, writer="late"))
    assert newest(store, "sigma") == [1, 9]
    assert newest(store, "scale") == [1, 1]
    assert store.histories.latest("r1").steps.tolist() == [10, 5]


def test_a_new_attempt_forgets_what_the_old_one_carried(store):
    stored(store, batch(LAYERS, 0, [0, 1], {"sigma": [[1, 2]] * 2, "residual": [[3, 4]] * 2}))
    stored(store, batch(LAYERS, 1, [0], {"sigma": [[5, ABSENT]]}))
    assert newest(store, "sigma") == [5, 2]
    assert np.isnan(store.histories.latest("r1").metric("residual")[0])
    assert store.histories.latest("r1").steps.tolist() == [0, 1]
    stored(store, batch(LAYERS, 2, [9], {"sigma": [[0, 0]]}, attempt=0))
    assert newest(store, "sigma") == [5, 0]


def test_tables_are_merged_layer_by_layer(store):
    other = table("b", "c")
    store.batches.put_layer_table("r1", other)
    stored(store, batch(LAYERS, 0, [4], {"sigma": [[1, 2]], "threshold": [[2, 1]]}))
    stored(store, batch(other, 0, [3], {"sigma": [[8, 9]], "scale": [[1, 1]]}, writer="v"))
    assert newest(store, "sigma") == [1, 2, 9]
    assert newest(store, "scale") == [None, 1, 1]
    assert store.histories.latest("r1").steps.tolist() == [4, 4, 3]
    assert (store.runs.get("r1").worst_layer, store.runs.get("r1").worst_ratio) == ("b", 2.0)


def test_what_was_never_measured_is_not_counted_among_what_is_not_finite(store):
    stored(store, batch(LAYERS, 0, [0], {"sigma": [[ABSENT, np.nan]]}))
    assert store.runs.get("r1").nonfinite_layers == 1


def test_the_worst_layer_is_named_also_where_its_place_in_the_table_is_another(store):
    other = table("b", "c")  # layers 1 and 2 of the run
    store.batches.put_layer_table("r1", other)
    stored(store, batch(other, 0, [0], {"sigma": [[4, 1]], "threshold": [[2, 2]]}))
    assert (store.runs.get("r1").worst_layer, store.runs.get("r1").worst_ratio) == ("b", 2.0)


def test_the_worst_ratio_is_over_finite_numbers_and_real_thresholds(store):
    five = table(*"abcde")
    store.batches.put_layer_table("r1", five)
    rows = {
        "sigma": [[np.inf, np.nan, 9, 1, 3]],
        "threshold": [[1, 1, 0, 2, ABSENT]],
    }
    stored(store, batch(five, 0, [0], rows))
    run = store.runs.get("r1")
    assert (run.worst_layer, run.worst_ratio, run.nonfinite_layers) == ("d", 0.5, 2)
    stored(store, batch(five, 1, [1], {"sigma": [[1, 1, 1, np.nan, 1]]}))
    assert (store.runs.get("r1").worst_layer, store.runs.get("r1").worst_ratio) == ("a", 1.0)
    stored(store, batch(five, 2, [2], {"threshold": [[np.nan] * 5]}))
    assert (store.runs.get("r1").worst_layer, store.runs.get("r1").worst_ratio) == (None, None)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 2**32), st.integers(1, 4)), min_size=1, max_size=6))
def test_newest_values_equal_those_of_a_dictionary(shared_store, sends):
    store, run = shared_store, new_name()
    new_run(store, run)
    store.batches.put_layer_table(run, LAYERS)
    known: dict[tuple[str, int], np.float32] = {}
    step = 0
    for seq, (seed, n) in enumerate(sends):
        rng = np.random.default_rng(seed)
        names = [m for m in ("sigma", "residual", "scale") if rng.random() < 0.7] or ["sigma"]
        values = rng.choice(np.array([1, 2, np.inf, ABSENT], np.float32), (len(names), n, 2))
        steps = range(step, step + n)
        step += n
        sent = batch(LAYERS, seq, steps, dict(zip(names, values, strict=True)))
        stored(store, sent, run=run)
        for m, name in enumerate(names):
            for s in range(n):
                for layer in range(2):
                    if values[m, s, layer] in (1, 2, np.inf):
                        known[name, layer] = values[m, s, layer]
                    elif name == "scale" and "sigma" in names:  # it holds at its sigma's step only
                        if values[names.index("sigma"), s, layer] in (1, 2, np.inf):
                            known[name, layer] = ABSENT
    now = store.histories.latest(run)
    for m, name in enumerate(now.metrics):
        wanted = np.array([known.get((name, layer), ABSENT) for layer in range(2)], np.float32)
        np.testing.assert_array_equal(bits(now.values[m]), bits(wanted))


def test_a_threshold_does_not_outlive_its_policy(store):
    held = {"sigma": [[1, 2]], "threshold": [[3, 3]], "scale": [[0.5, 1]], "residual": [[5, 6]]}
    stored(store, batch(LAYERS, 0, [0], held))
    freed = {"sigma": [[2, 2]], "threshold": [[ABSENT, 3]], "scale": [[ABSENT, 1]]}
    stored(store, batch(LAYERS, 1, [1], freed | {"residual": [[ABSENT, ABSENT]]}))
    assert newest(store, "threshold") == [None, 3]
    assert newest(store, "scale") == [None, 1]
    assert newest(store, "residual") == [5, 6]


def test_a_threshold_that_ends_within_a_batch_is_gone_after_it(store):
    rows = {"sigma": [[1, 2], [2, ABSENT]], "threshold": [[3, 3], [ABSENT, ABSENT]]}
    stored(store, batch(LAYERS, 0, [0, 1], rows))
    assert newest(store, "threshold") == [None, 3]
