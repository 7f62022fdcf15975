"""Limits from runs that went well: above everything seen, by the margin, and no more than that."""

import math

import numpy as np
import pytest
from backtest_cases import LAYERS, course, save
from hypothesis import example, given
from hypothesis import strategies as st

from snc_service.backtest.files import read_run
from snc_service.backtest.margins import (
    Observed,
    as_toml,
    literal,
    pattern_of,
    policy_from,
    round_up,
    rules_from,
)
from snc_service.backtest.replay import replay
from snc_service.cli.commands.alerts import read_document
from snc_service.wire import PolicyEntry, RuleSettings


@given(st.floats(1e-20, 1e20))
def test_rounding_goes_up_to_two_digits_and_by_a_tenth_at_most(value):
    rounded = round_up(value)
    assert value * (1 - 1e-6) <= rounded <= value * 1.1 * (1 + 1e-6)
    assert float(f"{rounded:.1e}") == rounded


@pytest.mark.parametrize(
    ("layer", "pattern"),
    [
        ("blocks.0.attn.query.weight", "blocks.*.attn.query.weight"),
        ("fc1.weight", "fc1.weight"),
        ("0.weight", "*.weight"),
        ("stack[3]", "stack[[]*]"),
        ("attn.in_proj_weight[q]", "attn.in_proj_weight[[]q]"),
        ("a*b?.weight", "a[*]b[?].weight"),
    ],
)
def test_whole_numbers_in_names_become_stars_and_what_globs_read_is_escaped(layer, pattern):
    assert pattern_of(layer) == pattern
    assert PolicyEntry(pattern, None).matches(layer)


NAMES = st.lists(
    st.text(st.sampled_from("ab.01[]*?"), min_size=1, max_size=8),
    min_size=1,
    max_size=30,
    unique=True,
)


@example(["a", "a[0]"], [2.0, 1.0])
@given(NAMES, st.lists(st.floats(0.01, 100), min_size=30, max_size=30))
def test_every_layer_has_its_margin_under_the_first_entry_that_matches_it(names, sigmas):
    observed = Observed(sigma=dict(zip(names, sigmas, strict=False)))
    policy = policy_from(observed, 1.5, "observe")
    for name, sigma in observed.sigma.items():
        threshold = policy.entry(name).threshold
        assert threshold >= 1.5 * sigma * (1 - 1e-6)
        assert threshold <= 2 * 1.5 * 1.1 * sigma * (1 + 1e-6)


def test_a_name_as_a_pattern_matches_only_itself():
    assert PolicyEntry(literal("a[q]*"), None).matches("a[q]*")
    assert not PolicyEntry(literal("a[q]*"), None).matches("aqb")


def test_blocks_that_are_alike_share_an_entry_and_others_have_their_own():
    sigma = {"blocks.0.fc": 1.0, "blocks.1.fc": 1.8, "blocks.0.up": 1.0, "blocks.1.up": 2.1,
             "head": 3.0, "zero": 0.0}  # fmt: skip
    policy = policy_from(Observed(sigma=sigma), 2.0, "rescale")
    assert {e.pattern: e.threshold for e in policy.entries} == {
        "blocks.*.fc": 3.6, "blocks.0.up": 2.0, "blocks.1.up": 4.2, "head": 6.0,
    }  # fmt: skip
    assert policy.entries[0].pattern == "blocks.*.fc"
    assert {e.action for e in policy.entries} == {"rescale"}


def observed_in(tmp_path, *runs) -> Observed:
    found = Observed()
    for number, (metrics, scalars) in enumerate(runs):
        save(tmp_path / f"{number}.npz", metrics, scalars)
        found.add(read_run(tmp_path / f"{number}.npz", 64))
    return found


def test_the_largest_sigma_of_all_runs_counts_and_what_is_not_finite_does_not(tmp_path):
    first, second = course(60, 0), course(60, 1)
    first[0]["sigma"][30, 0] = 7.5
    second[0]["sigma"][31, 1] = np.nan
    second[0]["sigma"][32, 1] = np.inf
    found = observed_in(tmp_path, first, second)
    finite = [np.nan_to_num(m["sigma"], nan=0, posinf=0).max(axis=0) for m, _ in (first, second)]
    assert [found.sigma[layer] for layer in LAYERS] == np.maximum(*finite).tolist()
    assert found.num_rows == 120
    assert "0" in found.critical or "1" in found.critical


def test_a_calm_run_raises_no_limit(tmp_path):
    found = observed_in(tmp_path, course(200))
    assert found.critical == {}
    assert rules_from(found, 1.5) == RuleSettings()


def shaken(num_rows: int = 200):
    """Return a training whose layers are used to moving by 20 % in a step."""
    metrics, scalars = course(num_rows)
    metrics["sigma"][50::20, 0] *= 1.2
    return metrics, scalars


def test_what_runs_are_used_to_fires_no_more_under_the_limits_suggested(tmp_path):
    found = observed_in(tmp_path, shaken())
    suggested = rules_from(found, 1.5)
    assert suggested["sigma_jump"].limit == pytest.approx(1.5 * math.log(1.2), rel=0.15)
    (shipped, changed) = replay(read_run(tmp_path / "0.npz"), [None, suggested])
    assert {event.rule for event in shipped.events} == {"sigma_jump"}
    assert changed.events == []


def test_a_value_must_last_as_long_as_the_rule_waits(tmp_path):
    metrics, scalars = course(100)
    metrics["update_norm"][40, 0] = 0.9 * metrics["frobenius"][40, 0]  # one row; the rule wants two
    found = observed_in(tmp_path, (metrics, scalars))
    assert found.values["update_ratio"] < 0.05
    metrics["update_norm"][63:65, 0] = 0.5 * metrics["frobenius"][63:65, 0]  # over a piece's end
    found = observed_in(tmp_path, (metrics, scalars))
    assert found.values["update_ratio"] == pytest.approx(0.5, rel=1e-5)


def test_the_toml_reads_back_as_the_same_settings(tmp_path):
    suggested = rules_from(observed_in(tmp_path, shaken()), 1.5)
    (tmp_path / "rules.toml").write_text(as_toml(suggested, ["why"]))
    document = read_document(str(tmp_path / "rules.toml"))
    assert set(document["rules"]["sigma_jump"]) == {"limit"}
    assert RuleSettings.parse(document) == suggested
