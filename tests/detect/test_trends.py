"""Trends against the formulas, written out layer by layer in float64."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snc_service.detect.batch_columns import BatchColumns
from snc_service.detect.memory import Memory
from snc_service.detect.trends import follow
from snc_service.store.types import RunRows
from snc_service.wire import ABSENT, Batch, LayerTable


def rows_of(metrics: dict[str, np.ndarray], scalars: dict | None = None, first: int = 0) -> RunRows:
    scalars = {name: np.asarray(v, np.float32) for name, v in (scalars or {}).items()}
    values = np.stack([np.asarray(v, np.float32) for v in metrics.values()])
    names = tuple(f"l{i}" for i in range(values.shape[2]))
    batch = Batch(
        "w",
        0,
        LayerTable.of_names(names).hash,
        tuple(range(first, first + values.shape[1])),
        tuple(metrics),
        values,
        tuple(scalars),
        np.stack(list(scalars.values())) if scalars else np.empty((0, 0), np.float32),
    )
    return RunRows("r", batch, names, 0, False)


def trends_of(rows: RunRows, memory: Memory | None = None):
    memory = Memory() if memory is None else memory
    begins = memory.step is None
    memory.gaps(rows.batch.steps)
    finite = np.isfinite(rows.batch.metric("sigma")).all(axis=1)
    finite |= np.isnan(rows.batch.metric("sigma")).any(axis=1)  # ABSENT only, in these tests
    return follow(BatchColumns(rows), memory, finite, np.zeros_like(finite), begins=begins)


def attach(sigma: list[float]) -> RunRows:
    return rows_of({"sigma": np.array([sigma])})


def training(seed: int, num_rows: int, num_layers: int) -> dict[str, np.ndarray]:
    """Return a random but plausible training, the last layer born at zero."""
    rng = np.random.default_rng(seed)
    steps = rng.normal(0.002, 0.03, (num_rows, num_layers)).cumsum(axis=0)
    sigma = rng.uniform(0.5, 2, num_layers) * np.exp(steps)
    sigma[:, -1] = 1e-4 * np.arange(1, num_rows + 1)
    norm = sigma * rng.uniform(2, 4, num_layers)
    return {
        "sigma": sigma,
        "frobenius": norm,
        "update_norm": norm * rng.uniform(0, 0.1, sigma.shape),
        "grad_norm": np.exp(rng.normal(-3, 1, sigma.shape)),
    }


def by_the_formulas(
    registered: list[float], metrics: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return the same quantities with plain loops, from the definitions."""
    metrics = {n: np.asarray(v, np.float32).astype(float) for n, v in metrics.items()}
    sigma, norm = metrics["sigma"], metrics["frobenius"]
    num_rows, num_layers = sigma.shape
    s0 = [max(float(np.float32(s)), 1e-3) for s in registered]
    median, median_norm = float(np.median(s0)), float(np.median(norm[0]))
    names = ("jump", "growth", "since_start", "update_ratio", "gradient_drop", "gradient_ratio",
             "long_growth", "norm_jump")  # fmt: skip
    found = {name: np.empty((num_rows, num_layers)) for name in names}
    for layer in range(num_layers):
        born_at_zero = s0[layer] < 0.02 * median
        floor, norm_floor = (0.5 * median, 0.5 * median_norm) if born_at_zero else (0.0, 0.0)
        start = newest = math.log(s0[layer] + floor)
        mean = long_mean = gradient_mean = None
        newest_norm = math.nan
        for t in range(num_rows):
            now = math.log(max(sigma[t, layer] + floor, 1e-6))
            gradient = max(metrics["grad_norm"][t, layer], 1e-20)
            mean = now if mean is None else mean
            long_mean = now if long_mean is None else long_mean
            now_norm = math.log(norm[t, layer] + norm_floor)
            found["long_growth"][t, layer] = now - long_mean
            found["norm_jump"][t, layer] = abs(now_norm - newest_norm)
            newest_norm = now_norm
            long_mean += (1 / (t + 1) if t <= 200 else 0.005) * (now - long_mean)
            gradient_mean = math.log(gradient) if gradient_mean is None else gradient_mean
            found["jump"][t, layer] = abs(now - newest)
            found["growth"][t, layer] = now - mean
            found["since_start"][t, layer] = now - start
            found["update_ratio"][t, layer] = metrics["update_norm"][t, layer] / max(
                norm[t, layer] + norm_floor, 1e-9
            )
            found["gradient_drop"][t, layer] = gradient_mean - math.log(gradient)
            found["gradient_ratio"][t, layer] = gradient / max(norm[t, layer], 1e-9)
            newest = now
            mean += (1 / (t + 1) if t <= 50 else 0.02) * (now - mean)
            gradient_mean = 0.98 * gradient_mean + 0.02 * math.log(gradient)
    return found


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 240), st.integers(3, 6), st.integers(1, 40))
def test_trends_follow_the_formulas_however_rows_are_cut(seed, num_rows, num_layers, size):
    metrics = training(seed, num_rows, num_layers)
    registered = [*(1.1 * metrics["sigma"][0, :-1]).tolist(), 0.0]
    expected = by_the_formulas(registered, metrics)
    memory = Memory()
    first = trends_of(attach(registered), memory)
    assert not first.judged.any()  # it registers, and is no training row
    for start in range(0, num_rows, size):
        part = {name: column[start : start + size] for name, column in metrics.items()}
        loss = {"loss": np.ones(len(part["sigma"]))}
        trends = trends_of(rows_of(part, loss, first=1 + start), memory)
        assert trends.trained.tolist() == list(range(start, start + len(part["sigma"])))
        for name, column in expected.items():
            found = getattr(trends, name)
            np.testing.assert_allclose(found, column[start : start + size], rtol=2e-4, atol=2e-5)
        memory = Memory.load(memory.dump())


def test_without_a_row_at_attach_the_first_training_row_registers():
    trends = trends_of(rows_of({"sigma": [[1.0, 2.0], [1.5, 2.0]]}, {"loss": [1, 1]}))
    assert trends.trained.tolist() == [0, 1]
    assert trends.jump[:, 0].tolist() == pytest.approx([0.0, math.log(1.5)], abs=1e-6)


def test_a_layer_born_at_zero_moves_against_a_floor_of_half_the_median():
    trends = trends_of(rows_of({"sigma": [[2.0, 2.0, 0.0], [2.0, 2.0, 0.1]]}, {"loss": [1, 1]}))
    floor = 0.5 * 2.0
    assert trends.jump[1, 2] == pytest.approx(math.log(0.1 + floor) - math.log(floor), abs=1e-6)


def test_a_rescale_of_ours_is_no_jump():
    sigma = [[2.0, 2.0], [4.0, 2.0], [2.0, 2.0]]
    scale = [[1.0, 1.0], [0.5, 1.0], [1.0, 1.0]]
    trends = trends_of(rows_of({"sigma": sigma, "scale": scale}, {"loss": [1, 1, 1]}))
    assert trends.jump[:, 0].tolist() == pytest.approx([0, math.log(2), 0], abs=1e-6)
    without = trends_of(rows_of({"sigma": sigma}, {"loss": [1, 1, 1]}))
    assert without.jump[2, 0] == pytest.approx(math.log(2), abs=1e-6)


def test_a_weight_that_is_brought_up_to_its_threshold_is_no_jump():
    sigma = [[1.0, 2.0], [1.0, 2.0], [4.0, 2.0]]
    scale = [[1.0, 1.0], [4.0, 1.0], [1.0, 1.0]]
    trends = trends_of(rows_of({"sigma": sigma, "scale": scale}, {"loss": [1, 1, 1]}))
    assert trends.jump[:, 0].tolist() == pytest.approx([0, 0, 0], abs=1e-6)


def test_a_layer_that_was_not_measured_keeps_its_past_and_spreads_its_jump():
    sigma = [[1.0, 1.0], [ABSENT, 1.0], [ABSENT, 1.0], [8.0, 1.0]]
    trends = trends_of(rows_of({"sigma": sigma}, {"loss": [1] * 4}))
    assert np.isnan(trends.jump[1:3, 0]).all()
    assert trends.jump[3, 0] == pytest.approx(math.log(8) / 3, rel=1e-6)


def test_rows_that_are_not_finite_change_no_trend_but_count_as_training():
    memory = Memory()
    trends = trends_of(rows_of({"sigma": [[1.0], [np.inf], [2.0]]}, {"loss": [1, 1, 1]}), memory)
    assert trends.judged.tolist() == [True, False, True]
    assert trends.trained.tolist() == [0, 1, 2]
    assert trends.jump[2, 0] == pytest.approx(math.log(2), rel=1e-6)


def test_a_row_with_a_value_that_is_not_finite_compares_nothing_of_any_layer():
    memory, ones = Memory(), np.ones((3, 2))
    sigma = np.array([[1.0, 1.0], [np.inf, 3.0], [2.0, 1.0]])
    metrics = {"sigma": sigma, "frobenius": ones, "grad_norm": ones, "update_norm": ones}
    trends = trends_of(rows_of(metrics, {"loss": [1, 1, 1]}), memory)
    columns = ("jump", "norm_jump", "growth", "long_growth", "since_start", "update_ratio",
               "gradient_drop", "gradient_ratio")  # fmt: skip
    for name in columns:
        assert np.isnan(getattr(trends, name)[1]).all(), name
        assert np.isfinite(getattr(trends, name)[0]).all() or name == "norm_jump", name


def test_a_small_layer_that_was_not_born_at_zero_gets_no_floor():
    sigma = [[2.0, 2.0, 0.1], [2.0, 2.0, 0.2]]  # 5 % of the median
    trends = trends_of(rows_of({"sigma": sigma}, {"loss": [1, 1]}))
    assert trends.jump[1, 2] == pytest.approx(math.log(2), abs=1e-6)


def test_a_scale_that_no_action_can_have_is_not_taken_for_one():
    sigma = [[2.0, 2.0], [2.0, 2.0], [2.0, 2.0]]
    scale = [[0.0, -1.0], [1.0, np.inf], [1.0, 1.0]]
    trends = trends_of(rows_of({"sigma": sigma, "scale": scale}, {"loss": [1, 1, 1]}))
    assert trends.jump.tolist() == [[0.0, 0.0]] * 3


def test_what_is_not_reported_has_no_trend():
    trends = trends_of(rows_of({"sigma": [[1.0]]}, {"loss": [1]}))
    assert trends.update_ratio is None
    assert trends.gradient_drop is None
    only_updates = rows_of({"update_norm": [[1.0]], "frobenius": [[2.0]]})
    found = follow(
        BatchColumns(only_updates), Memory(), np.array([True]), np.array([False]), begins=True
    )
    assert found.jump is None
    assert found.update_ratio.tolist() == [[0.5]]


def test_extreme_values_neither_warn_nor_turn_into_nonsense():
    extreme = np.array([[0.0, 1e-45, 3.4e38, -1.0]])
    metrics = {name: extreme for name in ("sigma", "frobenius", "update_norm", "grad_norm")}
    trends = trends_of(rows_of(metrics))
    for name in ("jump", "growth", "since_start", "update_ratio"):
        assert np.isfinite(getattr(trends, name)).all()
    # One gradient of four is exactly zero: that layer is idle and is not compared.
    assert np.isfinite(trends.gradient_drop).tolist() == [[False, True, True, True]]


def test_a_layer_that_waits_for_its_turn_keeps_its_sigma_and_one_that_is_gone_does_not():
    """Else a rule about all layers would judge the few that happen to be in a row."""
    memory = Memory()
    trends_of(attach([1.0, 1.0]), memory)
    sigma = np.full((60, 2), 1.0)
    sigma[:, 0] = 3.0
    sigma[3:5, 1] = sigma[6:, 1] = ABSENT
    found = trends_of(rows_of({"sigma": sigma}, {"loss": np.ones(60)}, first=1), memory)
    assert found.since_start[:56, 1] == pytest.approx(0.0)
    assert np.isnan(found.since_start[56:, 1]).all()
    assert np.fmin.reduce(found.long_growth, axis=1)[:56] == pytest.approx(0.0)
    assert np.isnan(found.jump[3:5, 1]).all(), "what was not measured has not jumped"
