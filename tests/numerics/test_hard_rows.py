"""Rows that no well-behaved job sends: detection judges what it can, and nothing breaks."""

import warnings

import numpy as np
import pytest

from snc_service.detect import onset
from snc_service.detect.memory import Memory
from snc_service.detect.rules import advance, judge
from snc_service.store.types import Event, RunRows
from snc_service.wire import ABSENT, Batch, LayerTable

METRICS = ("sigma", "frobenius", "grad_norm", "update_norm", "threshold", "scale")


def rows(
    metrics: dict[str, np.ndarray],
    scalars: dict[str, np.ndarray] | None = None,
    *,
    steps=None,
    layers=None,
    new_attempt: bool = False,
) -> RunRows:
    values = np.stack([np.asarray(v, np.float32) for v in metrics.values()])
    names = tuple(layers or (f"l{i}" for i in range(values.shape[2])))
    scalars = {name: np.asarray(v, np.float32) for name, v in (scalars or {}).items()}
    batch = Batch(
        "w",
        0,
        LayerTable.of_names(names).hash,
        tuple(range(values.shape[1])) if steps is None else tuple(int(step) for step in steps),
        tuple(metrics),
        values,
        tuple(scalars),
        np.stack(list(scalars.values())) if scalars else np.empty((0, 0), np.float32),
    )
    return RunRows("r", batch, names, int(new_attempt), new_attempt)


def healthy(num_rows: int, num_layers: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shape = (num_rows, num_layers)
    return {
        "sigma": 2 + 0.01 * rng.standard_normal(shape),
        "frobenius": np.full(shape, 6.0),
        "grad_norm": np.exp(0.1 * rng.standard_normal(shape)),
        "update_norm": np.full(shape, 0.06),
        "threshold": np.full(shape, 900.0),
        "scale": np.ones(shape),
    }


def events(given: RunRows, state: bytes | None = None) -> list[Event]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return advance(state, given)[1]


def test_a_run_that_never_reports_a_loss_is_judged_by_its_layers():
    quiet, loud = healthy(120, 3), healthy(120, 3)
    loud["sigma"][80:, 1] *= 1.5
    assert events(rows(quiet)) == []
    (event,) = [e for e in events(rows(loud)) if e.rule == "sigma_jump"]
    assert (event.step, event.layer) == (80, "l1")


@pytest.mark.parametrize("layers", [1, 3, 4])
def test_a_run_of_one_layer_has_every_rule_but_that_of_growth_of_all(layers):
    given = healthy(250, layers)
    given["sigma"][180:] *= np.exp(0.06 * np.arange(70))[:, None]
    told = {event.rule for event in events(rows(given))}
    assert {"sigma_growth", "sigma_vs_init"} <= told
    assert ("coherent_growth" in told) == (layers >= 4)


def test_layers_that_come_and_go_keep_their_own_past():
    state, found = None, []
    for wave in range(30):
        names = [f"l{i}" for i in range(wave % 3, 5 + wave % 4)]
        columns = healthy(10, len(names), seed=wave)
        level = np.array([1.0 + int(name[1:]) for name in names])  # each has its own size
        columns["sigma"] *= level
        columns["frobenius"] *= level
        given = rows(columns, steps=range(10 * wave, 10 * wave + 10), layers=names)
        state, some = advance(state, given)
        found += some
    assert found == []


def test_a_layer_that_joins_late_is_registered_where_it_joins():
    state, _ = advance(None, rows(healthy(60, 2), layers=("a", "b")))
    columns = healthy(60, 3)
    columns["sigma"][:, 2] *= 40
    columns["frobenius"][:, 2] *= 40
    given = rows(columns, steps=range(60, 120), layers=("a", "b", "c"))
    assert events(given, state) == []


def test_one_layer_measured_now_and_then_is_no_jump():
    given = healthy(200, 3)
    given["sigma"][:, 1] *= np.exp(0.004 * np.arange(200))
    given["sigma"][np.arange(200) % 25 != 0, 1] = ABSENT
    assert "sigma_jump" not in {event.rule for event in events(rows(given))}


def test_steps_that_leap_are_one_gap_and_not_a_new_life():
    given = healthy(200, 3)
    steps = [*range(100), *range(1_000_000, 1_000_100)]
    assert events(rows(given, steps=steps)) == []
    given["sigma"][150:, 0] *= 1.5
    told = {event.step for event in events(rows(given, steps=steps))}
    assert 1_000_050 in told


def test_steps_that_go_back_within_an_attempt_are_another_writers_and_change_no_gap():
    state, _ = advance(None, rows(healthy(100, 3)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state, found = advance(state, rows(healthy(50, 3, seed=1), steps=range(40, 90)))
        state, more = advance(state, rows(healthy(50, 3, seed=2), steps=range(100, 150)))
    assert (found, more) == ([], [])


def test_a_rewound_run_starts_its_rules_anew_against_the_same_start():
    given = healthy(100, 3)
    given["sigma"][60:] *= 3
    state, found = advance(None, rows(given))
    assert found
    state, found = advance(state, rows(healthy(60, 3), steps=range(60), new_attempt=True))
    assert found == []
    grown = healthy(60, 3)
    grown["sigma"] *= 7  # of what it was at its very start
    told = {event.rule for event in events(rows(grown, steps=range(60, 120)), state)}
    assert "sigma_vs_init" in told


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_when_nothing_is_finite_that_is_one_event_and_nothing_else(value):
    given = {name: np.full((120, 4), value) for name in METRICS}
    told = events(rows(given, {"loss": np.full(120, value), "lr": np.full(120, value)}))
    assert [event.rule for event in told if event.rule != "breach"] == ["nonfinite"]
    assert told[0].layers == 4


def test_after_rows_that_are_not_finite_the_rest_goes_on_from_before():
    given = healthy(160, 3)
    for name in ("sigma", "grad_norm"):
        given[name][80:90] = np.nan
    assert [event.rule for event in events(rows(given))] == ["nonfinite"]


def test_when_nothing_was_measured_there_is_nothing_to_say():
    given = {name: np.full((60, 3), ABSENT) for name in METRICS}
    assert events(rows(given, {"loss": np.full(60, ABSENT)})) == []


@pytest.mark.parametrize("value", [0.0, -1.0, 1e-45, 3.4e38, -3.4e38])
def test_numbers_at_the_edge_of_float32_neither_warn_nor_raise(value):
    given = healthy(60, 3)
    for name in METRICS:
        given[name][30:40, 1] = value
    scalars = {name: np.r_[np.ones(30), np.full(10, value), np.ones(20)] for name in
               ("loss", "lr", "grad_norm")}  # fmt: skip
    for event in events(rows(given, scalars)):
        assert event.value is None or np.isfinite(event.value)
        assert event.message


def test_fifty_thousand_layers_are_judged_and_their_order_is_known():
    names = tuple(f"blocks.{i}.weight" for i in range(50_000))
    given = healthy(40, 50_000)
    given["sigma"][30:, 40_000:] *= 1.5
    given["sigma"][30:, 49_999] *= 2.0
    memory = Memory()
    verdict = judge(memory, rows(given, {"loss": np.ones(40)}, layers=names))
    jump, growth = verdict.events
    assert (jump.rule, jump.layer, jump.layers) == ("sigma_jump", names[-1], 10_000)
    assert (growth.rule, growth.layer, growth.layers) == ("sigma_growth", names[-1], 1)
    assert len(memory.dump()) < 50_000 * 57
    left = onset.order(memory.dump(), names)
    assert len(left) == 10_000
    assert left[0].layer == names[-1]
