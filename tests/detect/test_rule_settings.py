"""Rule settings: what is left out is as shipped, and what is wrong is named."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snc_service.wire import RuleSetting, RuleSettings, WireError
from snc_service.wire.rule_settings import SHIPPED

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads TOML with tomli")


def test_nothing_said_is_as_shipped():
    for value in ({}, {"rules": {}}, {"rules": {"sigma_jump": {}}}):
        assert RuleSettings.parse(value) == RuleSettings()
    assert RuleSettings().changes() == {"rules": {}}


def test_one_key_changes_one_setting_and_leaves_the_rest():
    settings = RuleSettings.parse({"rules": {"sigma_growth": {"limit": 1, "for_rows": 4}}})
    before = SHIPPED["sigma_growth"]
    assert settings["sigma_growth"] == RuleSetting(1.0, 4, before.armed, before.severity, before.on)
    assert {n: s for n, s in settings.rules.items() if n != "sigma_growth"} == {
        n: s for n, s in SHIPPED.items() if n != "sigma_growth"
    }
    assert settings.changes() == {"rules": {"sigma_growth": {"limit": 1.0, "for_rows": 4}}}


def test_what_is_shown_can_be_given_again():
    given = {"rules": {"lr_jump": {"on": False}, "grad_spike": {"severity": "info", "armed": 0}}}
    settings = RuleSettings.parse(given)
    for form in (settings.as_dict(), settings.changes()):
        assert RuleSettings.parse(json.loads(json.dumps(form))) == settings
    assert settings.changes() == given


def test_toml_says_the_same_as_json():
    text = '[rules.sigma_jump]\nlimit = 0.2\nseverity = "warning"\n[rules.breach]\non = false\n'
    assert RuleSettings.parse(tomllib.loads(text)).changes() == {
        "rules": {"breach": {"on": False}, "sigma_jump": {"limit": 0.2, "severity": "warning"}}
    }


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ([], "rules document must be an object (JSON) or a table (TOML), got []"),
        ({"rule": {}}, "rule is not known here: use rules"),
        ({"rules": 3}, "rules must be an object (JSON) or a table (TOML), got 3"),
        ({"rules": {"sigma_jump": 0.1}}, "rules.sigma_jump must be an object"),
        ({"rules": {"sigma_jmp": {}}}, "rules.sigma_jmp is not known here: use nonfinite, breach,"),
        (
            {"rules": {"breach": {"limits": 1}}},
            "rules.breach.limits is not known here: use limit, for_rows, armed, severity, on",
        ),
        (
            {"rules": {"sigma_jump": {"limit": -0.1}}},
            "rules.sigma_jump.limit must be a number from 0 to 1e+09, got -0.1",
        ),
        ({"rules": {"sigma_jump": {"limit": "0.1"}}}, "rules.sigma_jump.limit must be a number"),
        ({"rules": {"sigma_jump": {"limit": True}}}, "rules.sigma_jump.limit must be a number"),
        ({"rules": {"sigma_jump": {"limit": math.nan}}}, "rules.sigma_jump.limit must be a number"),
        ({"rules": {"sigma_jump": {"limit": 10**400}}}, "rules.sigma_jump.limit must be a number"),
        ({"rules": {"breach": {"for_rows": 0}}}, "rules.breach.for_rows must be an integer from 1"),
        ({"rules": {"breach": {"armed": 1.5}}}, "rules.breach.armed must be an integer from 0"),
        (
            {"rules": {"breach": {"severity": "fatal"}}},
            "rules.breach.severity must be one of info, warning, critical, got 'fatal'",
        ),
        ({"rules": {"breach": {"on": 1}}}, "rules.breach.on must be true or false, got 1"),
    ],
)
def test_the_key_that_is_wrong_is_named_in_one_sentence(value, sentence):
    with pytest.raises(WireError) as raised:
        RuleSettings.parse(value)
    assert str(raised.value).startswith(sentence)
    assert raised.value.field == sentence.split(" must ")[0].split(" is not ")[0]
    assert len(str(raised.value)) < 400


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["rules", "breach", "limit", "on", "for_rows"]) | st.text(max_size=3),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)


@given(JSON)
def test_whatever_is_given_is_read_or_refused(value):
    try:
        settings = RuleSettings.parse(value)
    except WireError:
        return
    assert RuleSettings.parse(settings.as_dict()) == settings
