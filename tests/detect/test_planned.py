"""Planned changes: what an annotation mutes, for how long, and what it never mutes."""

import dataclasses

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from snc_service.detect.planned import RELATIVE
from snc_service.detect.rules import LOOKS, advance
from snc_service.store.types import Event, RunRows
from snc_service.store.types.annotations import Annotation
from snc_service.wire import Batch, LayerTable

LAYERS = ("fc1", "fc2", "fc3")
METRICS = ("sigma", "frobenius", "grad_norm", "update_norm", "threshold")
SCALARS = ("loss", "lr", "grad_norm")
CHANGE = 100


def columns(num_rows: int = 300) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shape = (num_rows, len(LAYERS))
    return {
        "sigma": 2 + 0.01 * rng.standard_normal(shape),
        "frobenius": np.full(shape, 6.0),
        "grad_norm": np.exp(0.1 * rng.standard_normal(shape)),
        "update_norm": np.full(shape, 0.06),
        "threshold": np.full(shape, 9.0),
        "loss": 1 + 0.02 * rng.standard_normal(num_rows),
        "lr": np.full(num_rows, 0.01),
        "ggrad": np.exp(0.1 * rng.standard_normal(num_rows)),
    }


def rows(given: dict[str, np.ndarray], annotations=(), part=slice(None)) -> RunRows:
    steps = tuple(range(len(given["loss"])))[part]
    values = np.stack([given[name][part] for name in METRICS]).astype(np.float32)
    scalars = np.stack([given[name][part] for name in ("loss", "lr", "ggrad")]).astype(np.float32)
    batch = Batch(
        "w", 0, LayerTable.of_names(LAYERS).hash, steps, METRICS, values, SCALARS, scalars
    )
    return RunRows("r", batch, LAYERS, 0, False, annotations=tuple(annotations))


def marked(step: int, quiet_steps: int, id: int = 1) -> Annotation:
    return Annotation(id, step, quiet_steps, "planned", "ann", 0.0)


def events(given, *annotations: Annotation) -> list[Event]:
    return advance(None, rows(given, annotations))[1]


def new_task(given: dict[str, np.ndarray], at: int = CHANGE) -> None:
    """Switch to other data: the loss and the gradients leap, and stay where they are."""
    given["loss"][at:] += 3.0
    given["ggrad"][at:] *= 60
    given["grad_norm"][at:] *= 1e-3
    given["sigma"][at:] *= 1.3
    given["lr"][at:] *= 10


def test_a_change_that_nobody_announced_is_told():
    given = columns()
    new_task(given)
    told = {event.rule for event in events(given)}
    assert {"loss_divergence", "grad_spike", "grad_vanish", "sigma_jump", "lr_jump"} <= told


def test_an_announced_one_is_not_and_what_follows_is_measured_against_the_new_ways():
    given = columns()
    new_task(given)
    assert events(given, marked(CHANGE, 30)) == []
    given["loss"][200:] += 3.0
    (event,) = events(given, marked(CHANGE, 30))
    assert (event.rule, event.step) == ("loss_divergence", 202)


def test_relative_rules_arm_themselves_anew_however_short_the_quiet():
    given = columns()
    new_task(given)
    told = {event.rule for event in events(given, marked(CHANGE, 1))}
    assert "loss_divergence" not in told


def test_what_is_wrong_whatever_was_planned_is_told_all_the_same():
    given = columns()
    given["sigma"][CHANGE + 3, 1] = np.nan
    given["sigma"][CHANGE + 6 :, 1] += 7.5
    given["update_norm"][CHANGE + 9 :, 2] = 3.0
    told = [event.rule for event in events(given, marked(CHANGE, 100))]
    assert told == ["nonfinite", "breach", "update_ratio"]


def test_the_rules_that_are_muted_are_rules():
    assert set(LOOKS) > RELATIVE


def test_a_step_between_two_rows_counts_from_the_next_one_on():
    given = columns()
    new_task(given)
    sparse = rows(given, [marked(CHANGE - 5, 60)])
    batch = dataclasses.replace(sparse.batch, steps=tuple(range(0, 10 * 300, 10)))
    _, told = advance(None, dataclasses.replace(sparse, batch=batch))
    assert told  # the change comes ten times as late as announced
    _, told = advance(
        None, dataclasses.replace(sparse, batch=batch, annotations=(marked(995, 300),))
    )
    assert told == []


def test_one_that_came_late_counts_from_the_next_batch_on():
    given = columns()
    state, before = advance(None, rows(given, part=slice(0, 150)))
    given["loss"][160:] += 3.0
    late = marked(140, 60)
    _, after = advance(state, rows(given, [late], part=slice(150, None)))
    assert (before, after) == ([], [])


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_events_do_not_depend_on_how_rows_are_cut(data):
    given = columns()
    new_task(given, data.draw(st.integers(20, 280)))
    given["sigma"][data.draw(st.integers(0, 299))] = np.nan
    annotations = [
        marked(data.draw(st.integers(0, 299)), data.draw(st.integers(0, 60)), id)
        for id in range(1, 4)
    ]
    state, expected = advance(None, rows(given, annotations))
    size = data.draw(st.integers(5, 120))
    memory, found = None, []
    for start in range(0, 300, size):
        memory, some = advance(memory, rows(given, annotations, slice(start, start + size)))
        found += some
    assert found == expected
    assert memory == state
