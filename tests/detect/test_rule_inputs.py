"""Runs a rule was not made on: parts missing, few or many layers, sparse rows, old settings."""

import numpy as np
import pytest

from snc_service.backtest.columns import rows
from snc_service.detect.memory import Memory
from snc_service.detect.rules import judge
from snc_service.store.types import Event
from snc_service.wire import RuleSettings


def columns(num_rows: int = 300, num_layers: int = 4) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shape = (num_rows, num_layers)
    walk = np.exp(1e-3 * rng.standard_normal(shape).cumsum(axis=0))
    return {
        "sigma": 2 * walk,
        "frobenius": 6 * walk,
        "grad_norm": np.exp(0.1 * rng.standard_normal(shape)),
        "loss": 1 + np.exp(-np.arange(num_rows) / 30) + 0.02 * rng.standard_normal(num_rows),
    }


def events(
    given: dict[str, np.ndarray], *, first: int = 0, every: int = 1, size: int = 64, **scalars
) -> list[Event]:
    layers = [f"fc{i}" for i in range(given["sigma"].shape[1])]
    metrics = {name: values for name, values in given.items() if values.ndim == 2}
    known = {name: values for name, values in given.items() if values.ndim == 1}
    steps = range(first, first + every * len(given["sigma"]), every)
    memory, found = Memory(), []
    for part in rows("r", layers, steps, metrics, {**known, **scalars}, size=size):
        found += judge(memory, part).events
    return found


@pytest.mark.parametrize("every", [1, 50])
@pytest.mark.parametrize("first", [0, 123_456])
def test_a_healthy_run_raises_nothing_wherever_it_begins_and_however_sparse_it_is(first, every):
    assert events(columns(), first=first, every=every) == []


@pytest.mark.parametrize("name", ["loss", "frobenius", "grad_norm"])
def test_what_a_run_lacks_raises_nothing(name):
    given = columns()
    del given[name]
    assert events(given) == []


def test_a_run_of_one_layer_never_grows_or_stands_in_company():
    given = columns(num_layers=1)
    given["sigma"][150:, 0] *= np.exp(np.minimum(0.004 * np.arange(150), 0.45))
    given["frobenius"][150:] = given["frobenius"][150]
    assert {event.rule for event in events(given)} <= {"sigma_growth"}


def test_fifty_thousand_layers_are_judged_in_one_pass():
    given = columns(3, 50_000)
    given["sigma"][2, 49_999] *= 3
    assert [event.layer for event in events(given, first=500)] == []  # nothing is armed yet


def test_gradients_of_exactly_zero_for_a_while_are_an_idle_layer():
    given = columns()
    given["grad_norm"][100:180, 2] = 0.0
    assert events(given) == []


def test_a_declared_moving_target_silences_the_rules_of_the_loss_and_no_other():
    given = columns()
    given["loss"][200:] += 3.0
    given["sigma"][250:, 1] *= 1.5
    told = {event.rule for event in events(given)}
    moving = {event.rule for event in events(given, moving_target=np.ones(300))}
    assert {"loss_divergence", "loss_regain", "sigma_jump"} <= told
    assert moving == told - {"loss_divergence", "loss_regain"}


@pytest.mark.parametrize("size", [1, 7, 300])
def test_events_do_not_depend_on_how_rows_are_batched(size):
    given = columns()
    given["loss"][200:] += 0.2
    given["sigma"][150:] *= np.exp(-0.01 * np.arange(150))[:, None]
    whole = events(given, size=128)
    assert {"shrink", "loss_regain"} <= {event.rule for event in whole}
    assert events(given, size=size) == whole


def test_a_rule_file_of_the_release_before_is_valid_and_new_rules_have_their_defaults():
    old = {
        "rules": {
            "sigma_growth": {"limit": 0.5, "for_rows": 3, "severity": "critical"},
            "coherent_growth": {"limit": 0.3, "for_rows": 3, "armed": 100},
            "lr_jump": {"on": False},
        }
    }
    settings = RuleSettings.parse(old)
    assert settings["sigma_growth"].limit == 0.5
    assert settings["coherent_growth"].armed == 100
    for name in ("shrink", "loss_regain", "gain_growth", "unchanged", "breach_far"):
        assert settings[name] == RuleSettings()[name]
