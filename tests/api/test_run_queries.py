"""The query language of the list of runs: what is read, and what is refused."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snc_service.api.runs.query_language import (
    MOST_CHARACTERS,
    MOST_CONDITIONS,
    MOST_WILDCARDS,
    RunWords,
    read,
)
from snc_service.store.types.run_search import (
    NUMBER_FIELDS,
    TEXT_FIELDS,
    NumberCondition,
    TextCondition,
)

TEXT, NUMBER = TextCondition, NumberCondition


@pytest.mark.parametrize(
    ("text", "conditions"),
    [
        ("", ()),
        ("   ", ()),
        ("head", (TEXT("any", "*head*"),)),
        ("he*d", (TEXT("any", "*he*d*"),)),
        ("project:gpt", (TEXT("project", "gpt"),)),
        ("project=gpt", (TEXT("project", "gpt"),)),
        ("project!=gpt", (TEXT("project", "gpt", True),)),
        ("-tag:base*", (TEXT("tag", "base*", True),)),
        ("-project!=gpt", (TEXT("project", "gpt", False),)),
        ('name:"GPT small"', (TEXT("name", "GPT small"),)),
        ('"project:gpt"', (TEXT("any", "*project:gpt*"),)),
        ('name:"open', (TEXT("name", "open"),)),
        ("layer:*qkv*", (TEXT("layer", "*qkv*"),)),
        ("layer:a***b", (TEXT("layer", "a*b"),)),
        ("loss<2", (NUMBER("loss", "<", 2.0),)),
        ("loss:2", (NUMBER("loss", "=", 2.0),)),
        ("-ratio>=1.5e0", (NUMBER("ratio", ">=", 1.5, True),)),
        ("duration>2h", (NUMBER("duration", ">", 7_200.0),)),
        ("config.lr=0.01", (NUMBER("config.lr", "=", 0.01),)),
        ("config.lr:0.0*", (TEXT("config.lr", "0.0*"),)),
        ("config.optimizer.name=adamw", (TEXT("config.optimizer.name", "adamw"),)),
        ("a  b", (TEXT("any", "*a*"), TEXT("any", "*b*"))),
        ("-", (TEXT("any", "*-*"),)),
    ],
)
def test_a_query_says_what_its_words_say(text, conditions):
    assert read(text).conditions == conditions


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("colour:red", "'colour'"),
        ("loss<nan", "finite number"),
        ("loss<1e999", "finite number"),
        ("loss<inf", "finite number"),
        ("project<3", "pattern"),
        ("state:broken", "active, silent, finished, failed"),
        ("ended:well", "nonfinite, breach"),
        ("tag:", "a value"),
        ("archived:maybe", "no, yes, any"),
        ("-archived:yes", "no, yes, any"),
        ("x" * (MOST_CHARACTERS + 1), str(MOST_CHARACTERS)),
        ("a " * (MOST_CONDITIONS + 1), str(MOST_CONDITIONS)),
        ("tag:" + "*a" * (MOST_WILDCARDS + 1), str(MOST_WILDCARDS)),
        ("name:" + "x" * 300, "256"),
        ("a\0b", "control"),
        ("a\ud800b", "control"),
    ],
)
def test_a_query_that_means_nothing_is_refused_with_its_reason(text, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        read(text)


def test_archived_runs_are_left_out_unless_asked_for():
    assert read("a").archived == "no"
    assert read("archived:yes a").archived == "yes"
    assert read("a archived=any").archived == "any"


WITHIN_QUOTES = st.characters(codec="utf-8", exclude_categories=["C"], exclude_characters='"*?')
LETTERS = st.characters(codec="utf-8") | st.sampled_from('":=!<>*?-. config.lrstate9e')


def read_or_refused(text: str) -> tuple[RunWords | None, str]:
    try:
        return read(text), ""
    except ValueError as error:
        return None, str(error)


@given(st.text(LETTERS, max_size=1_200) | st.text(max_size=50))
def test_any_text_is_read_or_refused_and_what_is_read_is_bounded(text):
    query, said = read_or_refused(text)
    if query is None:
        assert "must" in said
        assert len(said) < 600
        return
    assert len(query.conditions) <= MOST_CONDITIONS
    for condition in query.conditions:
        if isinstance(condition, NumberCondition):
            assert condition.field in NUMBER_FIELDS or condition.field.startswith("config.")
            assert abs(condition.value) < float("inf")
        else:
            assert condition.field in TEXT_FIELDS or condition.field.startswith("config.")
            assert 0 < len(condition.pattern) <= 258
            assert condition.pattern.count("*") <= MOST_WILDCARDS + 2
            assert "\0" not in condition.pattern


@given(
    st.sampled_from(["run", "name", "project", "tag", "layer", "worst", "note"]),
    st.text(WITHIN_QUOTES, min_size=1, max_size=60),
    st.booleans(),
)
def test_a_quoted_value_is_found_again_as_it_is(field, value, negated):
    sign = "-" if negated else ""
    assert read(f'{sign}{field}:"{value}"').conditions == (TEXT(field, value, negated),)


@given(st.sampled_from(NUMBER_FIELDS), st.floats(-1e15, 1e15).map(lambda x: round(x, 6)))
def test_a_number_is_compared_as_it_was_written(field, value):
    assert read(f"{field}<={value!r}").conditions == (NUMBER(field, "<=", value),)
