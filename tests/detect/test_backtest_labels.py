"""Labels out of CSV: what is read, and what is refused with the line and the column."""

import pytest

from snc_service.backtest.labels import Label, read_labels
from snc_service.wire import WireError

HEAD = "id,healthy,cause,symptom,excluded\n"


def read(text: str) -> dict[str, Label]:
    return read_labels(text.splitlines(keepends=True))


def test_labels_are_read_by_the_names_of_their_columns():
    text = "kind,symptom,id,healthy,cause\nx,128,a,0,100\nx,,b,1,0\nx,,c,0,7\n"
    assert read(text) == {
        "a": Label("a", False, 100, 128),
        "b": Label("b", True),
        "c": Label("c", False, 7, None),
    }


def test_a_healthy_run_has_neither_cause_nor_symptom_whatever_its_line_says():
    assert read(HEAD + "a,1,250,251,regime_change\n")["a"] == Label(
        "a", True, excluded="regime_change"
    )


@pytest.mark.parametrize(("cell", "why"), [("", ""), ("0", ""), ("unsteady", "unsteady")])
def test_0_and_nothing_mean_that_a_run_counts(cell, why):
    assert read(f"{HEAD}a,0,1,2,{cell}\n")["a"].excluded == why


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,healthy\na,1\n", "must have the columns id, healthy, cause, symptom"),
        ("", "must have the columns"),
        (HEAD + "a,yes,0,,\n", "line 2: healthy must be 0 or 1, got 'yes'"),
        (HEAD + "a,0,-1,,\n", "line 2: cause must be a row counted from 0"),
        (HEAD + "a,0,1e3,,\n", "line 2: cause must be a row"),
        (HEAD + "a,0,0,٣,\n", "line 2: symptom must be a row"),
        (HEAD + f"a,0,0,{'9' * 5_000},\n", "line 2: symptom must be a row"),
        (HEAD + "a,0,10,9,\n", "line 2: symptom must not come before cause 10, got 9"),
        (HEAD + "a,0,1,2,\na,0,1,2,\n", "line 3 must not repeat 'a'"),
        (HEAD + ",0,1,2,\n", "line 2: id must be a non-empty string"),
        (HEAD + "a\n", "line 2: healthy must be 0 or 1, got None"),
        (HEAD + "\x1b[2J,0,1,2,\n", "line 2: id must not contain control characters"),
        (HEAD + "a" * 200_000 + ",0,1,2,\n", "must be CSV"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_place(text, message):
    with pytest.raises(WireError, match=message):
        read(text)


@pytest.mark.parametrize(("symptom", "is_gradual"), [(119, False), (120, True), (None, False)])
def test_gradual_is_20_rows_from_cause_to_symptom(symptom, is_gradual):
    assert Label("a", False, 100, symptom).is_gradual == is_gradual
