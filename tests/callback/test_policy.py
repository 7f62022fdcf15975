"""From constructor arguments to one threshold and action per layer."""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from snc_client.policy import AUTO_MULTIPLES, LayerPolicy, make_policy, resolve
from snc_service.wire import Policy, PolicyEntry


@dataclass
class Weight:
    """What a policy sees of a layer."""

    name: str
    tied: tuple[str, ...] = ()
    writable: bool = True
    cappable: bool = True
    linear: bool = True
    kind: str = "linear"
    names: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.names = (self.name, *self.tied)


def resolved(threshold, *layers, action="rescale"):
    return resolve(make_policy(threshold, action), layers)


@pytest.mark.parametrize(
    ("threshold", "factor", "unit"),
    [
        (2, 2.0, "absolute"),
        (0.5, 0.5, "absolute"),
        (np.float32(1.5), 1.5, "absolute"),
        (np.int64(3), 3.0, "absolute"),
        ("3x init", 3.0, "init"),
        ("1.5x rms", 1.5, "rms"),
    ],
)
def test_a_threshold_for_all_layers(threshold, factor, unit):
    expected = LayerPolicy(factor, unit, "rescale")
    assert resolved(threshold, Weight("a.weight"), Weight("b.weight")).layers == (expected,) * 2


def test_auto_is_a_multiple_of_init_by_kind():
    found = resolved({"*": "auto"}, Weight("a"), Weight("b", kind="conv"), Weight("c", kind="odd"))
    assert [(x.factor, x.unit) for x in found.layers] == [
        (AUTO_MULTIPLES["linear"], "init"),
        (AUTO_MULTIPLES["conv"], "init"),
        (max(AUTO_MULTIPLES.values()), "init"),
    ]


def test_the_page_has_the_multiples_of_auto():
    page = (Path(__file__).resolve().parents[2] / "docs" / "layers.md").read_text()
    shown = re.findall(r"^\| ([a-z]+) \| ([0-9]+)x init \|", page, re.M)
    assert {kind: float(multiple) for kind, multiple in shown} == dict(AUTO_MULTIPLES)


def test_nothing_given_means_observe():
    policy = make_policy()
    assert policy == Policy()
    assert resolve(policy, [Weight("a")]).layers == (LayerPolicy(math.inf, "absolute", "observe"),)


def test_the_first_pattern_that_matches_wins():
    found = resolved({"head.*": 1.0, "*": "3x init"}, Weight("head.weight"), Weight("fc.weight"))
    assert [x.factor for x in found.layers] == [1.0, 3.0]
    other = resolved({"*": "3x init", "head.*": 1.0}, Weight("head.weight"))
    assert other.layers[0].factor == 3.0


def test_none_takes_a_layer_out():
    found = resolved({"head.*": None, "*": 2}, Weight("head.weight"), Weight("fc.weight"))
    assert found.layers[0] == LayerPolicy()
    assert found.layers[1].factor == 2.0


def test_a_layer_without_an_entry_is_observed():
    assert resolved({"fc.*": 2}, Weight("fc.weight"), Weight("b")).layers[1].action == "observe"


def test_a_slice_is_matched_by_its_weight_and_by_its_own_name():
    q, k = Weight("attn.in_proj_weight[q]"), Weight("attn.in_proj_weight[k]")
    assert [x.factor for x in resolved({"attn.in_proj_weight": 2}, q, k).layers] == [2.0, 2.0]
    own = resolved({"*[[]q]": 1, "*": 2}, q, k)
    assert [x.factor for x in own.layers] == [1.0, 2.0]


def test_a_tied_weight_answers_to_all_its_names():
    layer = Weight("wte.weight", tied=("lm_head.weight",))
    found = resolved({"lm_head.*": 5}, layer)
    assert found.layers[0].factor == 5.0
    assert found.unmatched == ()


@pytest.mark.parametrize("action", ["rescale", "cap", "normalize"])
def test_what_must_not_be_written_is_observed_under_its_threshold(action):
    found = resolved(2, Weight("a", writable=False, cappable=False), action=action)
    assert found.layers[0] == LayerPolicy(2.0, "absolute", "observe")


def test_stop_also_holds_for_what_must_not_be_written():
    assert resolved(2, Weight("a", writable=False), action="stop").layers[0].action == "stop"


def test_a_layer_that_cannot_be_capped_is_rescaled():
    found = resolved(2, Weight("a", cappable=False), Weight("b"), action="cap")
    assert [x.action for x in found.layers] == ["rescale", "cap"]


def test_a_pattern_that_matches_nothing_is_named():
    found = resolved({"fc.*": 2, "hed.*": 1}, Weight("fc.weight"))
    assert found.unmatched == ("hed.*",)


def test_a_pattern_behind_a_broader_one_still_matches():
    assert resolved({"*": 2, "fc.*": 1}, Weight("fc.weight")).unmatched == ()


NONE_OF_THEM = [
    *(0, -1, -0.0, math.nan, math.inf, 1e31, 10**400, True, 2j, np.float32("nan"), np.bool_(True)),
    *("", "3x", "3 x foo", "-3x init", "0x rms", "nanx init", "3x init; 4", b"2", [2.0]),
]


@pytest.mark.parametrize("threshold", NONE_OF_THEM, ids=lambda value: repr(value)[:20])
def test_a_threshold_that_is_none_is_refused(threshold):
    with pytest.raises(ValueError, match=r"^threshold must be a number > 0"):
        make_policy(threshold)
    with pytest.raises(ValueError, match=r"^threshold of 'fc\.\*' must be a number > 0"):
        make_policy({"head.*": 1.0, "fc.*": threshold})


def test_an_unknown_action_is_refused():
    for threshold in (None, 2.0, {"*": 2.0}):
        with pytest.raises(ValueError, match=r"action must be one of observe, .*got 'clip'"):
            make_policy(threshold, "clip")


@pytest.mark.parametrize("pattern", ["", 3, None, "a\nb"])
def test_a_pattern_that_is_none_is_refused(pattern):
    with pytest.raises(ValueError, match="pattern must"):
        make_policy({pattern: 2.0})


def test_an_empty_mapping_is_refused():
    with pytest.raises(ValueError, match="at least one pattern"):
        make_policy({})


def test_threshold_and_policy_exclude_each_other():
    with pytest.raises(ValueError, match="threshold and policy must not both be given"):
        make_policy(2.0, "rescale", Policy())


def test_a_policy_is_taken_as_it_is_or_from_its_json():
    policy = Policy((PolicyEntry("fc.*", "3x rms", "stop"), PolicyEntry("*", None)))
    assert make_policy(policy=policy) is policy
    assert make_policy(policy=policy.as_dict()) == policy
    with pytest.raises(ValueError, match="threshold of 'fc' must be"):
        make_policy(policy={"entries": [{"pattern": "fc", "threshold": -1}]})
    with pytest.raises(ValueError, match="policy must be"):
        make_policy(policy=[1, 2])


def test_an_entry_for_all_layers_speaks_of_known_linear_maps_only():
    table = Weight("bias_table", linear=False)
    assert resolved(2, table).layers == (LayerPolicy(),)
    assert resolved({"**": 2}, table).layers == (LayerPolicy(),)
    assert resolved({"*": 2, "*table": 1}, table).layers == (LayerPolicy(1.0, action="rescale"),)
    assert resolved(2, table).unmatched == (), "the entry is no mistake"
