"""Every rule, made to fire by the fault it is for, says so in one sentence."""

import numpy as np
import pytest

from snc_service.detect.rules import LOOKS, advance
from snc_service.detect.running import SkippedShare
from snc_service.store.types import Event, RunRows
from snc_service.wire import ABSENT, Batch, LayerTable, RuleSettings

LAYERS = ("fc1.weight", "fc2.weight", "fc3.weight", "fc4.weight")
CALM = 160  # rows of healthy training, enough to arm every rule


def train(change=None, num_rows: int = CALM + 20, every: int = 1) -> list[Event]:
    """Return the events of a healthy training that ``change(columns, row)`` spoils after CALM."""
    rng = np.random.default_rng(0)
    columns = {
        "sigma": 2 + 0.01 * rng.standard_normal((num_rows, len(LAYERS))),
        "frobenius": np.full((num_rows, len(LAYERS)), 6.0),
        "grad_norm": np.exp(0.1 * rng.standard_normal((num_rows, len(LAYERS)))),
        "update_norm": np.full((num_rows, len(LAYERS)), 0.06),
        "loss": 1 + 0.02 * rng.standard_normal(num_rows),
        "lr": np.full(num_rows, 0.01),
        "ggrad": np.exp(0.1 * rng.standard_normal(num_rows)),
    }
    if change is not None:
        change(columns, slice(CALM, None))
    scalars = {"loss": "loss", "lr": "lr", "grad_norm": "ggrad", "skipped_steps": "skipped"}
    scalars = {name: key for name, key in scalars.items() if key in columns}
    metrics = ("sigma", "frobenius", "grad_norm", "update_norm")
    batch = Batch(
        "w",
        0,
        LayerTable.of_names(LAYERS).hash,
        tuple(range(0, num_rows * every, every)),
        metrics,
        np.stack([columns[name] for name in metrics]).astype(np.float32),
        tuple(scalars),
        np.stack([columns[key] for key in scalars.values()]).astype(np.float32),
    )
    return advance(None, RunRows("r", batch, LAYERS, 0, False))[1]


def only(rule: str, events: list[Event]) -> Event:
    (event,) = [event for event in events if event.rule == rule]
    return event


def test_a_healthy_training_raises_nothing():
    assert train() == []


def test_a_learning_rate_far_above_all_before_is_told():
    def change(columns, after):
        columns["lr"][after] = 0.6

    event = only("lr_jump", train(change))
    assert (event.step, event.layer, event.severity) == (CALM, None, "warning")
    assert event.message == "the learning rate is 60.0 times its largest value so far (limit 5.00)"


def test_a_warm_up_from_zero_is_no_jump():
    def change(columns, after):
        columns["lr"][:] = np.linspace(0, 0.01, len(columns["lr"]))

    assert train(change) == []


def test_an_update_too_large_for_its_weight_is_told_at_its_second_row():
    def change(columns, after):
        columns["update_norm"][after, 1] = 1.2

    event = only("update_ratio", train(change))
    assert (event.step, event.layer, event.layers) == (CALM + 1, "fc2.weight", 1)
    assert event.message == (
        "fc2.weight: one step moved the weight by 20.0 % of its norm (limit 6.00 %)"
    )
    assert (event.value, event.limit) == (pytest.approx(0.2), 0.06)


def test_a_jump_of_sigma_is_critical_and_names_the_layer_that_jumped_most():
    def change(columns, after):
        columns["sigma"][after, 0] *= 1.2
        columns["sigma"][after, 2] *= 1.5

    event = only("sigma_jump", train(change))
    assert (event.step, event.layer, event.layers) == (CALM, "fc3.weight", 2)
    assert event.severity == "critical"
    assert event.message.startswith("fc3.weight: sigma changed by a factor of 1.")
    assert event.message.endswith("in one step (limit 1.11) (2 layers)")


def grow(columns, after):
    columns["sigma"][after, 1] *= np.exp(0.06 * np.arange(len(columns["sigma"][after])))


def test_growth_is_told_before_and_beside_the_distance_from_the_start():
    events = train(grow, num_rows=CALM + 40)
    growth, since = only("sigma_growth", events), only("sigma_vs_init", events)
    assert growth.layer == since.layer == "fc2.weight"
    assert growth.step < since.step
    assert "times its recent mean (limit 2.12)" in growth.message
    assert "times its value at the start (limit 5.47)" in since.message
    assert "sigma_jump" not in {event.rule for event in events}


def test_a_spike_of_the_gradient_norm_is_told_in_deviations():
    def change(columns, after):
        columns["ggrad"][CALM] = 500.0

    event = only("grad_spike", train(change))
    assert event.step == CALM
    assert event.message.startswith("the gradient norm 500 is ")
    assert event.message.endswith(" deviations above its recent mean (limit 8.00)")


def test_a_diverging_loss_is_critical_at_its_third_row():
    def change(columns, after):
        columns["loss"][after] = 5.0

    event = only("loss_divergence", train(change))
    assert (event.step, event.severity, event.layer) == (CALM + 2, "critical", None)
    assert event.message.startswith("loss 5.00 is ")


def test_gradients_that_vanish_everywhere_are_told():
    def change(columns, after):
        columns["grad_norm"][after] *= 1e-3

    event = only("grad_vanish", train(change))
    assert (event.step, event.layers) == (CALM + 2, 4)
    assert "the gradients of all layers fell below 1/" in event.message


def test_one_layer_whose_gradient_is_nothing_beside_its_weight_is_told():
    def change(columns, after):
        columns["grad_norm"][after, 2] = 6e-11

    event = only("grad_vanish", train(change))
    assert (event.layer, event.layers) == ("fc3.weight", 1)
    assert event.message == "fc3.weight: the gradient is 1e-11 of the weight's norm"


def test_a_gradient_of_exactly_zero_is_a_finite_number():
    def change(columns, after):
        columns["grad_norm"][after, :2] = 0.0

    event = only("grad_vanish", train(change))
    assert event.layer == "fc1.weight"
    assert np.isfinite(event.value)


def test_a_run_that_reports_no_loss_is_judged_by_what_it_reports():
    def change(columns, after):
        columns["loss"][:] = ABSENT
        grow(columns, after)

    rules = {event.rule for event in train(change, num_rows=CALM + 40)}
    assert {"sigma_growth", "sigma_vs_init"} <= rules
    assert "loss_divergence" not in rules


def test_after_a_value_that_is_not_finite_only_that_is_told():
    def change(columns, after):
        columns["sigma"][after, 0] = np.nan
        columns["loss"][after] = 1e9

    assert [event.rule for event in train(change)] == ["nonfinite"]


def test_rules_count_in_steps_when_rows_are_ten_steps_apart():
    def change(columns, after):
        columns["loss"][CALM] = 5.0  # one row is ten steps: three of them have passed

    assert only("loss_divergence", train(change, every=10)).step == 10 * CALM
    assert train(change) == []


def test_a_random_walk_over_ten_steps_is_no_jump():
    def change(columns, after):
        columns["sigma"][after, 0] *= 1.2

    assert "sigma_jump" in {event.rule for event in train(change)}
    assert "sigma_jump" not in {event.rule for event in train(change, every=10)}


def test_the_table_holds_every_rule():
    assert set(RuleSettings().rules) == set(LOOKS)
    assert set(LOOKS) == {
        *("breach", "nonfinite", "lr_jump", "update_ratio", "sigma_jump", "sigma_growth"),
        *("sigma_vs_init", "grad_spike", "grad_vanish", "loss_divergence"),
        *("coherent_growth", "loss_trend", "skipped_steps", "breach_far", "loss_regain"),
        *("shrink", "gain_growth", "unchanged"),
        *("guard", "guard_rollback"),
    }


def test_growth_of_every_layer_is_told_while_each_alone_would_not_be():
    def change(columns, after):
        columns["sigma"][after] *= np.exp(0.01 * np.arange(len(columns["sigma"][after])))[:, None]

    event = only("coherent_growth", train(change, num_rows=CALM + 120))
    assert (event.severity, event.layers) == ("warning", 4)
    assert 0.3 < event.value < 0.34
    assert (
        f"every sigma is at least {np.exp(event.value):.2f} times its mean of some 200 rows "
        "(limit 1.35)"
    ) in event.message
    assert "sigma_jump" not in {e.rule for e in train(change, num_rows=CALM + 120)}


def test_growth_of_all_layers_but_one_is_not_coherent():
    def change(columns, after):
        growth = np.exp(0.01 * np.arange(len(columns["sigma"][after])))
        columns["sigma"][after, :2] *= growth[:, None]

    assert "coherent_growth" not in {e.rule for e in train(change, num_rows=CALM + 120)}


def rising(grows: bool, rises: bool):
    """Return a change in which half of the layers grow, the loss rises, or both, slowly."""

    def change(columns, after):
        num_rows = len(columns["loss"][after])
        if grows:
            growth = np.exp(np.minimum(0.006 * np.arange(num_rows), 1.2))
            columns["sigma"][after, :3] *= growth[:, None]
        if rises:
            columns["loss"][after] *= np.exp(0.004 * np.arange(num_rows))

    return change


def test_growth_while_the_loss_rises_is_told_and_neither_alone_is():
    event = only("loss_trend", train(rising(True, True), num_rows=CALM + 200))
    assert (event.severity, event.layers) == ("warning", 3)
    assert event.layer in LAYERS[:3]
    assert 0.4 < event.value < 0.43
    assert (
        f" % of its size while half of the layers are at least {np.exp(event.value):.2f} times "
        "their mean"
    ) in event.message
    for grows, rises in ((True, False), (False, True)):
        events = train(rising(grows, rises), num_rows=CALM + 200)
        assert "loss_trend" not in {event.rule for event in events}


def test_a_loss_below_zero_can_rise_too():
    def change(columns, after):
        rising(True, False)(columns, after)
        num_rows = len(columns["loss"])
        columns["loss"][:] = -3 + 0.02 * np.random.default_rng(1).standard_normal(num_rows)
        columns["loss"][after] += 0.01 * np.arange(len(columns["loss"][after]))

    assert only("loss_trend", train(change, num_rows=CALM + 200))


def test_a_jump_of_the_frobenius_norm_is_a_jump_before_sigma_shows_it():
    def change(columns, after):
        columns["frobenius"][after, 2] *= 1.3

    event = only("sigma_jump", train(change))
    assert (event.step, event.layer) == (CALM, "fc3.weight")
    assert event.message == (
        "fc3.weight: the Frobenius norm changed by a factor of 1.30 in one step (limit 1.11)"
    )


def skipping(count: np.ndarray):
    def change(columns, after):
        columns["skipped"] = count

    return change


def test_a_scaler_that_skips_its_first_steps_and_one_in_fifty_later_is_healthy():
    rows = np.arange(CALM + 300)
    assert train(skipping(np.minimum(rows + 1, 10) + rows // 50), num_rows=len(rows)) == []


def test_a_scaler_that_goes_on_skipping_is_told_with_its_share():
    rows = np.arange(250)
    count = np.maximum(rows - 120, 0)  # from there on one skipped step for each counted one
    event = only("skipped_steps", train(skipping(count), num_rows=len(rows)))
    shares = [share_of(count[: row + 1]) for row in rows]
    first = next(row for row in rows if share_of(count[: row + 1]) > 0.10)
    assert event.severity == "warning"
    assert event.step == first + 9, "ten rows in a row"
    assert event.value == pytest.approx(shares[event.step], rel=1e-6)
    assert "% of the recent steps were skipped (limit 10.0 %)" in event.message


def share_of(count: np.ndarray) -> float:
    """Return the share of skipped steps by its definition: 0.99 to the power of a step's age."""
    skipped = total = age = 0.0
    for row in range(len(count) - 1, -1, -1):
        new = count[row] - (count[row - 1] if row else 0)
        skipped += new * 0.99**age
        total += (new + 1) * 0.99**age
        age += new + 1
    return skipped / total


def test_a_job_that_starts_again_counts_its_skipped_steps_anew():
    share = SkippedShare()
    share.advance(8, 1, 20)
    before = share.skipped
    assert share.advance(0, 1) < 1
    assert share.skipped < before
