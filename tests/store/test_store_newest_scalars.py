"""The newest scalars: exact wherever they lie, bounded in number, from a step on."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_cases import NOW, batch, new_name, new_run, stored, table

from snc_service.store.types import RunUnknown
from snc_service.wire import ABSENT

LAYERS = table("a")


@pytest.fixture
def run(shared_store):
    name = new_name()
    new_run(shared_store, name)
    shared_store.batches.put_layer_table(name, LAYERS)
    return name


def report(store, run, seq, steps, **scalars):
    columns = {name: np.broadcast_to(value, len(steps)) for name, value in scalars.items()}
    stored(store, batch(LAYERS, seq, steps, {"sigma": [[1.0]] * len(steps)}, columns), run=run)


def folded(store):
    while store.fold(1.0, now=NOW + 1e6):
        pass


def test_a_run_without_scalars_has_none(shared_store, run):
    assert shared_store.histories.latest_scalars(run, 0, 16) == {}
    report(shared_store, run, 0, [1])
    assert shared_store.histories.latest_scalars(run, 0, 16) == {}
    with pytest.raises(RunUnknown):
        shared_store.histories.latest_scalars(new_name(), 0, 16)


def test_the_last_value_of_each_is_returned_whichever_batch_it_came_in(shared_store, run):
    report(shared_store, run, 0, [0, 1, 2], loss=[3.0, 2.0, 1.0], lr=0.5)
    report(shared_store, run, 1, [3, 4], loss=[0.75, ABSENT])
    assert shared_store.histories.latest_scalars(run, 0, 16) == {"loss": 0.75, "lr": 0.5}
    assert shared_store.histories.latest_scalars(run, 3, 16) == {"loss": 0.75}
    assert shared_store.histories.latest_scalars(run, 5, 16) == {}


def test_a_value_that_is_not_finite_is_the_newest(shared_store, run):
    report(shared_store, run, 0, [0, 1], loss=[1.0, math.nan], lr=[1.0, math.inf])
    found = shared_store.histories.latest_scalars(run, 0, 16)
    assert math.isnan(found["loss"])
    assert found["lr"] == math.inf


def test_the_first_that_were_reported_stay_when_there_are_too_many(shared_store, run):
    report(shared_store, run, 0, [0], zeta=1.0, beta=2.0)
    report(shared_store, run, 1, [1], alpha=3.0, zeta=4.0)
    assert shared_store.histories.latest_scalars(run, 0, 2) == {"zeta": 4.0, "beta": 2.0}


def test_what_is_folded_or_long_ago_is_found_exactly(shared_store, run):
    report(shared_store, run, 0, list(range(1_000)), loss=np.arange(1_000.0), rare=[7.0] * 1_000)
    report(shared_store, run, 1, list(range(1_000, 2_000)), loss=np.arange(1_000.0))
    report(shared_store, run, 2, [10**9], loss=0.25)
    for _ in range(2):
        assert shared_store.histories.latest_scalars(run, 0, 16) == {"loss": 0.25, "rare": 7.0}
        folded(shared_store)


def test_after_a_resume_what_the_new_attempt_says_is_newest(shared_store, run):
    report(shared_store, run, 0, [0, 50, 100], loss=[3.0, 2.0, 1.0])
    report(shared_store, run, 1, [50], loss=9.0)
    assert shared_store.histories.latest_scalars(run, 0, 16) == {"loss": 9.0}


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_it_is_what_a_walk_over_all_steps_finds(shared_store, data):
    run = new_name()
    new_run(shared_store, run)
    shared_store.batches.put_layer_table(run, LAYERS)
    newest, step = {}, 0
    for seq in range(data.draw(st.integers(1, 4))):
        size = data.draw(st.integers(1, 300))
        steps = [step + 3 * i for i in range(size)]
        step = steps[-1] + data.draw(st.integers(1, 5_000))
        columns = {}
        for name in data.draw(st.sets(st.sampled_from("pqr"), max_size=3)):
            column = np.full(size, ABSENT, np.float32)
            for place in data.draw(st.sets(st.integers(0, size - 1), max_size=4)):
                column[place] = seq + place / 1024
            columns[name] = column
            known = column[~np.isnan(column)]
            newest |= {name: float(known[-1])} if len(known) else {}
        report(shared_store, run, seq, steps, **columns)
        if data.draw(st.booleans()):
            folded(shared_store)
    assert shared_store.histories.latest_scalars(run, 0, 16) == newest
