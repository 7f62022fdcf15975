"""Prometheus text: any name is one label, any number is what it was to seven digits."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from snc_service.exposition.families import SIGMA
from snc_service.exposition.text import MANY, Template, number, numbers

HOSTILE = (
    '"} 1\nsnc_sigma{run="forged',
    "100%.7g %s %%",
    "back\\slash\\n",
    '" %.7g',
    "<script>alert(1)</script>",
    "{}{{run}}",
    "лес/слой",
    "trailing\\",
)


def test_a_hostile_name_stays_one_label():
    for values in (np.arange(8.0), np.array([*range(7), np.nan])):
        body = SIGMA.head.decode() + Template(SIGMA, "r%s", HOSTILE).fill(values).decode()
        (family,) = text_string_to_metric_families(body)
        assert [s.labels["layer"] for s in family.samples] == list(HOSTILE)
        assert {s.labels["run"] for s in family.samples} == {"r%s"}
        assert np.array_equal([s.value for s in family.samples], values, equal_nan=True)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text(st.characters(exclude_categories=("Cs",))), min_size=1, unique=True),
    st.data(),
)
def test_any_text_survives_as_a_label_value(names, data):
    values = data.draw(
        st.lists(
            st.floats(width=32, allow_subnormal=False), min_size=len(names), max_size=len(names)
        )
    )
    body = (
        SIGMA.head.decode()
        + Template(SIGMA, "r", names).fill(np.array(values, np.float32)).decode()
    )
    (family,) = text_string_to_metric_families(body)
    assert [s.labels["layer"] for s in family.samples] == names
    # Seven digits: half a unit in the seventh.
    np.testing.assert_allclose([s.value for s in family.samples], values, rtol=1e-6)


def test_a_counter_is_written_in_full_above_ten_million():
    assert number(12_345_678) == "12345678"
    assert number(2**53 - 1) == "9007199254740991"
    assert [number(v) for v in (np.nan, np.inf, -np.inf)] == ["NaN", "+Inf", "-Inf"]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_many_numbers_at_once_are_each_right_to_seven_digits(values):
    texts = numbers(np.array(values, np.float32))
    assert len(texts) == len(values)
    for text, value in zip(texts, values, strict=True):
        assert abs(float(text) - value) <= 5.001e-7 * abs(value)
        if 1e-5 <= abs(value) < 1e7:
            digits = text.lower().partition(b"e")[0].strip(b"-").replace(b".", b"").strip(b"0")
            assert len(digits) <= 7
        else:
            assert np.float32(float(text)) == np.float32(value)


def test_powers_of_ten_and_their_neighbours_are_right():
    tens = np.float32(10.0) ** np.arange(-12, 13, dtype=np.float32)
    values = np.concatenate([tens, np.nextafter(tens, np.float32(0)), -tens, [0.0, -0.0]])
    for text, value in zip(numbers(values), values.tolist(), strict=True):
        assert math.isclose(float(text), value, rel_tol=5.1e-7, abs_tol=0)


def test_a_template_reads_the_same_whether_it_is_filled_one_by_one_or_at_once():
    rng = np.random.default_rng(0)
    values = np.float32(10.0 ** rng.uniform(-4, 5, 2 * MANY))
    names = [f"l{i}" for i in range(len(values))]
    whole = Template(SIGMA, "r", names).fill(values)
    cuts = (slice(0, MANY - 1), slice(MANY - 1, MANY), slice(MANY, 2 * MANY))
    halves = [Template(SIGMA, "r", names[cut]).fill(values[cut]) for cut in cuts]
    assert read(whole) == read(b"".join(halves))
    assert whole.endswith(b"\n")
    assert Template(SIGMA, "r", []).fill(np.empty(0, np.float32)) == b""


def read(body: bytes) -> dict[str, float]:
    (family,) = text_string_to_metric_families(SIGMA.head.decode() + body.decode())
    return {sample.labels["layer"]: sample.value for sample in family.samples}
