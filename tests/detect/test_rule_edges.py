"""The edges of each rule: the last row, step or value that is quiet, and the first that fires."""

import math

import numpy as np
import pytest

from snc_service.detect.findings import medians
from snc_service.detect.memory import Memory
from snc_service.detect.rules import advance, judge
from snc_service.store.types import RunRows
from snc_service.store.types.annotations import Annotation
from snc_service.wire import Batch, LayerTable, RuleSettings

LAYERS = ("fc1", "fc2", "fc3")


def rows(metrics=None, scalars=None, gap=1, annotations=()) -> RunRows:
    """Return rows that are ``gap`` steps apart; a metric of one number per row is of all layers."""
    metrics, scalars = metrics or {}, scalars or {}
    num_rows = len(next(iter([*metrics.values(), *scalars.values()])))
    values = np.empty((len(metrics), num_rows, len(LAYERS)), np.float32)
    for into, column in zip(values, metrics.values(), strict=True):
        column = np.asarray(column, np.float32)
        into[...] = column if column.ndim == 2 else column[:, None]
    batch = Batch(
        writer="w",
        seq=0,
        layers=LayerTable.of_names(LAYERS).hash,
        steps=tuple(range(0, gap * num_rows, gap)),
        metrics=tuple(metrics),
        values=values,
        scalars=tuple(scalars),
        scalar_values=np.array(list(scalars.values()), np.float32).reshape(-1, num_rows),
    )
    return RunRows("r", batch, LAYERS, 0, False, annotations=tuple(annotations))


def setting(**rules) -> RuleSettings:
    return RuleSettings.parse({"rules": rules})


def found(rule: str, given: RunRows, settings: RuleSettings | None = None) -> list[int]:
    """Return the rows at which an event of a rule starts."""
    _, events = advance(None, given, settings)
    return [given.batch.steps.index(event.step) for event in events if event.rule == rule]


def breaching(pattern: str, gap: int = 1) -> RunRows:
    sigma = [3.0 if each == "x" else 1.0 for each in pattern]
    return rows({"sigma": sigma, "threshold": [2.0] * len(pattern)}, gap=gap)


def test_a_rule_that_is_off_neither_fires_nor_speaks():
    off = judge(Memory(), breaching("..xx"), setting(breach={"on": False}))
    assert (off.events, dict(off.firing)) == ([], {})
    assert "breach" not in off.findings
    assert judge(Memory(), breaching("..xx")).firing["breach"] == (2, 3)


@pytest.mark.parametrize(("gap", "row"), [(1, 6), (2, 5), (3, 4)])
def test_the_rows_of_a_rule_are_counted_in_steps_rounded_up(gap, row):
    assert found("breach", breaching("....xxxx", gap), setting(breach={"for_rows": 3})) == [row]


@pytest.mark.parametrize(("quiet", "events"), [(5, 1), (6, 2)])
def test_however_sparse_the_rows_an_incident_ends_after_more_than_five_quiet_ones(quiet, events):
    assert len(found("breach", breaching("x" + quiet * "." + "x", 1000))) == events


@pytest.mark.parametrize(("at", "events"), [(2, []), (3, [3])])
def test_however_sparse_the_rows_a_rule_that_compares_waits_for_three(at, events):
    rate = np.where(np.arange(8) >= at, 10.0, 1.0)
    assert found("lr_jump", rows(None, {"lr": rate}, gap=1000)) == events


def test_an_update_that_is_not_finite_is_named():
    update = np.ones((2, 3))
    update[1, 1] = np.nan
    (event,) = advance(None, rows({"update_norm": update}))[1]
    assert (event.rule, event.message) == ("nonfinite", "fc2: update_norm is NaN")


@pytest.mark.parametrize(("log", "events"), [(0.25, [30]), (0.19, [])])
def test_over_four_steps_a_layer_may_jump_twice_as_far_as_over_one(log, events):
    sigma = np.where(np.arange(40) >= 30, math.exp(log), 1.0)
    assert found("sigma_jump", rows({"sigma": sigma}, {"loss": np.ones(40)}, gap=4)) == events


def test_a_jump_of_the_norm_counts_where_sigma_has_not_moved_yet():
    norm = np.full((40, 3), 2.0)
    norm[30:, 1] *= 1.3
    given = rows({"sigma": np.ones(40), "frobenius": norm}, {"loss": np.ones(40)})
    (event,) = [event for event in advance(None, given)[1] if event.rule == "sigma_jump"]
    assert (event.step, event.layer, event.layers) == (30, "fc2", 1)
    assert "the Frobenius norm changed by a factor of 1.3" in event.message
    assert event.value == pytest.approx(math.log(1.3), rel=1e-5)


def test_gradients_vanish_where_all_layers_fell_not_where_one_did():
    gradient = np.ones((60, 3))
    gradient[50:, :2] = 1e-3
    assert found("grad_vanish", rows({"grad_norm": gradient})) == []
    gradient[50:, 2] = 1e-3
    assert found("grad_vanish", rows({"grad_norm": gradient})) == [52]  # the third row in a row


@pytest.mark.parametrize(("ratio", "events"), [(0.9e-8, [32]), (1.1e-8, [])])
def test_a_gradient_is_almost_nothing_below_a_seventh_decimal_and_the_limit(ratio, events):
    gradient = np.full((60, 3), ratio)
    gradient[:30] = 1e-3
    gradient[:, 1:] = 1e-3  # two layers keep theirs, so not all of them fell
    given = rows({"grad_norm": gradient, "frobenius": np.ones(60)})
    assert found("grad_vanish", given, setting(grad_vanish={"limit": 1.0})) == events


@pytest.mark.parametrize(("at", "events"), [(129, []), (130, [130])])
def test_an_annotation_of_thirty_steps_ends_before_the_thirtieth_after_it(at, events):
    rate = np.where(np.arange(200) >= at, 10.0, 1.0)
    note = Annotation(1, 100, 30, "planned", "ann", 0.0)
    assert found("lr_jump", rows(None, {"lr": rate}, annotations=[note])) == events


def test_an_annotation_mutes_its_own_step_also_for_a_rule_that_needs_no_past():
    rate = np.where(np.arange(200) >= 100, 10.0, 1.0)
    note = Annotation(1, 100, 30, "planned", "ann", 0.0)
    ready = setting(lr_jump={"armed": 0})
    assert found("lr_jump", rows(None, {"lr": rate}), ready) == [100]
    assert found("lr_jump", rows(None, {"lr": rate}, annotations=[note]), ready) == []


@pytest.mark.parametrize("share_nan", [0.0, 0.3])
@pytest.mark.parametrize("num_rows", [0, 1, 2, 7])
@pytest.mark.parametrize("num_layers", [1, 2, 5, 100, 600])
def test_medians_are_those_of_numpy_for_any_number_of_rows(num_rows, num_layers, share_nan):
    random = np.random.default_rng(num_rows)
    values = random.normal(size=(num_rows, num_layers)).astype(np.float32)
    values[random.random(values.shape) < share_nan] = np.nan
    found = medians(values)
    assert found.shape == (num_rows,)
    for row, median in zip(values, found, strict=True):
        known = row[~np.isnan(row)]
        assert median == (np.median(known) if known.size else -np.inf)
