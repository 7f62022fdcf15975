"""A step that a loss scaler skipped is no fault; one that breaks the weights is."""

import numpy as np
import pytest

from snc_service.backtest.columns import rows
from snc_service.detect.memory import Memory
from snc_service.detect.rules import RunRules, judge
from snc_service.store.types import Event, RunRows
from snc_service.wire import Batch, LayerTable

LAYERS = ("fc1", "fc2", "fc3")


def columns(num_rows: int = 120) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    moving = 1 + 1e-3 * rng.standard_normal((num_rows, 3)).cumsum(axis=0)
    return {
        "sigma": 2 * moving,
        "frobenius": 6 * moving,
        "grad_norm": np.exp(0.1 * rng.standard_normal((num_rows, 3))),
        "loss": 1 + 0.02 * rng.standard_normal(num_rows),
    }


def skip(given: dict[str, np.ndarray], first: int, count: int) -> None:
    """Leave the weights of some rows as they were, with what an overflow makes of the rest."""
    for row in range(first, first + count):
        given["grad_norm"][row], given["loss"][row] = np.inf, np.nan
        for name in ("sigma", "frobenius"):
            given[name][row] = given[name][first - 1]


def events(given: dict[str, np.ndarray], size: int) -> list[Event]:
    metrics = {name: given[name] for name in ("sigma", "frobenius", "grad_norm") if name in given}
    scalars = {"loss": given["loss"]}
    memory, found = Memory(), []
    for part in rows("r", LAYERS, range(len(given["loss"])), metrics, scalars, size=size):
        found += judge(memory, part).events
    return found


@pytest.mark.parametrize("size", [1, 7, 120])
def test_steps_that_a_scaler_skipped_are_no_fault_however_rows_are_batched(size):
    given = columns()
    skip(given, 40, 1)
    skip(given, 60, 20)
    assert events(given, size) == []


@pytest.mark.parametrize("size", [1, 7, 120])
def test_what_goes_on_to_overflow_is_told(size):
    given = columns()
    skip(given, 40, 21)
    (event,) = events(given, size)
    assert (event.rule, event.step) == ("nonfinite", 60)


@pytest.mark.parametrize("size", [1, 7, 120])
def test_a_broken_gradient_beside_weights_that_moved_is_told(size):
    given = columns()
    given["grad_norm"][50, 1] = np.inf
    (event,) = events(given, size)
    assert (event.rule, event.step, event.layer) == ("nonfinite", 50, "fc2")


def test_a_sigma_that_is_not_finite_is_never_a_skipped_step():
    given = columns()
    skip(given, 50, 1)
    given["sigma"][50, 2] = np.nan
    assert [(e.rule, e.step) for e in events(given, 10)] == [("nonfinite", 50)]


def test_without_norms_nothing_shows_that_weights_stood_still():
    given = columns()
    skip(given, 50, 1)
    del given["frobenius"]
    assert [(e.rule, e.step) for e in events(given, 10)] == [("nonfinite", 50)]


def of_counts(counts: list[int], attempts: tuple[int, ...] = ()) -> list[int]:
    """Return the rows of events of `skipped_steps`; a client reports no count of zero."""
    rules, found = RunRules(None), []
    layers, nothing = LayerTable.of_names(("a",)), np.empty((0, 1, 0), np.float32)
    for row, count in enumerate(counts):
        scalars = {"loss": 1.0} | ({"skipped_steps": count} if count else {})
        values = np.array([[value] for value in scalars.values()], np.float32)
        batch = Batch("w", row, layers.hash, (row,), (), nothing, tuple(scalars), values)
        told = rules.advance(RunRows("r", batch, ("a",), 0, row in attempts))
        found += [event.step for event in told if event.rule == "skipped_steps"]
    return found


def test_the_first_steps_that_are_skipped_late_are_few_among_all_before():
    assert of_counts([0] * 500 + [2] * 200) == []
    assert of_counts([0] * 500 + [8] * 200) == []
    assert of_counts([0] * 500 + list(range(1, 60))) == [519]  # one for each counted one


@pytest.mark.parametrize("again", [[40], [0], [1]])
def test_a_count_that_goes_on_or_begins_anew_with_an_attempt_skips_nothing(again):
    assert of_counts([1] * 100 + [40] * 300 + again * 300, attempts=(400,)) == [109]


def test_what_was_counted_before_the_first_row_is_no_share_of_the_rows():
    assert of_counts([40] * 300) == []
