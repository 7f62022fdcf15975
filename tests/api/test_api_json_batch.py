"""The JSON form says the same as the binary one, and lets nothing pass by accident."""

import json

import numpy as np
import pytest
from api_cases import RUN, assert_problem, serving_app, settings_in
from hypothesis import given, settings
from hypothesis import strategies as st

from snc_service.api.ingest.json_batch import decode_json
from snc_service.problems import Problem
from snc_service.wire import ABSENT, Batch, LayerTable, WireError, absent, decode, encode

FORM = {
    "writer": "curl",
    "seq": 0,
    "steps": [100, 101],
    "layers": ["fc1.weight", "fc2.weight"],
    "metrics": {"sigma": [[1.1, 2.0], [1.2, 2.1]], "threshold": [[2.0, 2.0], [2.0, 2.0]]},
    "scalars": {"loss": [0.71, 0.70], "lr": [0.001, 0.001]},
    "times": [1763800000.1, 1763800000.3],
}


@pytest.fixture
def api(tmp_path):
    with serving_app(settings_in(tmp_path)) as opened:
        opened.post("/api/v1/runs", json={"run": "r"})
        yield opened


def post(api, body):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return api.post(f"{RUN}/batches", content=content, headers={"Content-Type": "application/json"})


def test_the_example_of_the_contract_is_stored_and_read_back(api):
    assert post(api, FORM).json() == {"accepted": 12, "duplicate": False, "policy_version": 0}
    told = api.get(f"{RUN}/layers/fc2.weight/history").json()
    assert (told["steps"], told["mean"], told["bucket_steps"]) == ([100, 101], [2.0, 2.1], 1)
    assert api.get(f"{RUN}/scalars/lr/history").json()["mean"] == [0.001, 0.001]


def test_the_same_body_again_is_a_duplicate(api):
    post(api, FORM)
    assert post(api, FORM).json()["duplicate"] is True


def test_layers_and_metrics_may_differ_from_batch_to_batch(api):
    post(api, FORM)
    later = FORM | {
        "seq": 1,
        "steps": [102],
        "layers": ["fc3.weight"],
        "metrics": {"frobenius": [[9]]},
        "scalars": {},
        "times": None,
    }
    assert post(api, later).status_code == 200
    names = [item["layer"] for item in api.get(f"{RUN}/layers?sort=model").json()["items"]]
    assert names == ["fc1.weight", "fc2.weight", "fc3.weight"]


def test_scalars_alone_make_a_batch(api):
    assert post(api, {"writer": "w", "seq": 0, "steps": [1], "scalars": {"loss": [2]}}).is_success
    assert api.get(f"{RUN}/scalars/loss/history").json()["mean"] == [2]


def test_null_is_not_measured_and_words_are_not_finite(api):
    sigma = [["NaN", None], ["Infinity", "-Infinity"]]
    post(api, FORM | {"metrics": {"sigma": sigma}, "scalars": {"loss": [None, "NaN"]}})
    first = api.get(f"{RUN}/layers/fc1.weight/history").json()
    assert (first["steps"], first["mean"], first["nonfinite"]) == ([100, 101], [None, None], [1, 1])
    second = api.get(f"{RUN}/layers/fc2.weight/history").json()
    assert (second["steps"], second["mean"], second["nonfinite"]) == ([101], [None], [1])
    loss = api.get(f"{RUN}/scalars/loss/history").json()
    assert (loss["steps"], loss["mean"], loss["nonfinite"]) == ([101], [None], [1])


def test_a_number_just_below_the_float32_limit_is_stored_as_it_is():
    batch, _ = decode_json(
        json.dumps(FORM | {"scalars": {"loss": [3.4028234e38, -1e-46]}}).encode()
    )
    assert batch.scalar("loss").tolist() == [float(np.finfo(np.float32).max), 0.0]


@pytest.mark.parametrize(
    "cell",
    ["true", '"1.5"', '"nan"', '"inf"', "1e999", "NaN", "Infinity", "3.5e38", "-1e39", "[1]", "{}",
     "1" + "0" * 400],
)  # fmt: skip
def test_a_cell_that_is_no_float32_number_is_refused(api, cell):
    for field, sent in (
        ("metrics.sigma", '"metrics": {"sigma": [[1, %s], [1, 1]]}, "scalars": {}'),
        ("scalars.loss", '"metrics": {}, "scalars": {"loss": [1, %s]}'),
    ):
        body = (
            '{"writer": "w", "seq": 0, "steps": [1, 2], "layers": ["a", "b"], ' + sent % cell + "}"
        )
        told = post(api, body.encode())
        # Bare NaN and endless digits are no JSON to some readers: both refusals are right.
        assert told.status_code in (400, 422)
        if told.status_code == 422:
            assert_problem(told, 422, "invalid", field)
    assert api.get(RUN).json()["last_step"] is None


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"writer": None}, "writer"),
        ({"writer": 7}, "writer"),
        ({"writer": "a\tb"}, "writer"),
        ({"seq": "0"}, "seq"),
        ({"seq": 1.0}, "seq"),
        ({"seq": True}, "seq"),
        ({"seq": -1}, "seq"),
        ({"seq": 2**53}, "seq"),
        ({"steps": []}, "steps"),
        ({"steps": [101, 100]}, "steps"),
        ({"steps": [100, 100]}, "steps"),
        ({"steps": [1.5, 2]}, "steps.0"),
        ({"steps": list(range(1025))}, "steps"),
        ({"layers": ["a", "a"]}, "layers"),
        ({"layers": ["", "b"]}, "layers.name"),
        ({"layers": ["x" * 257, "b"]}, "layers.name"),
        ({"layers": "ab"}, "layers"),
        ({"metrics": {"sigma": [[1, 2]]}}, "metrics.sigma"),
        ({"metrics": {"sigma": [[1, 2], [1]]}}, "metrics.sigma"),
        ({"metrics": {"sigma": [[1, 2], 3]}}, "metrics.sigma.1"),
        ({"metrics": {"Sigma": [[1, 2], [1, 2]]}}, "metrics"),
        ({"metrics": {"s" * 64: [[1, 2], [1, 2]]}}, "metrics"),
        ({"metrics": [[1, 2], [1, 2]]}, "metrics"),
        ({"scalars": {"loss": [1]}}, "scalars.loss"),
        ({"scalars": {f"s{i}": [1, 2] for i in range(33)}}, "metrics"),
        ({"metrics": {}, "scalars": {}}, "metrics"),
        ({"times": [1.0]}, "times"),
        ({"times": [1.0, 1e300]}, "times"),
        ({"times": [1.0, -5]}, "times"),
        ({"times": [1.0, "2"]}, "times.1"),
        ({"attempt": 2**40}, "attempt"),
        ({"skipped": -1}, "skipped"),
        ({"sigma": [[1, 2]]}, "sigma"),
    ],
)
def test_what_is_not_valid_is_422_naming_the_field(api, change, field):
    assert_problem(post(api, FORM | change), 422, "invalid", field)
    assert api.get(RUN).json()["last_step"] is None


@pytest.mark.parametrize("missing", ["writer", "seq", "steps"])
def test_what_is_missing_is_422_naming_the_field(api, missing):
    body = {name: value for name, value in FORM.items() if name != missing}
    assert_problem(post(api, body), 422, "invalid", missing)


@pytest.mark.parametrize("body", [b"", b"null}", b"[" * 100_000, b'{"a":' * 100_000, b'"\xc3"'])
def test_what_is_no_json_is_400(api, body):
    assert_problem(post(api, body), 400, "body-malformed", "body")


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
cells = st.one_of(finite, st.none(), st.sampled_from(["NaN", "Infinity", "-Infinity"]))


@st.composite
def forms(draw):
    steps = draw(st.lists(st.integers(0, 2**53 - 1), min_size=1, max_size=4, unique=True))
    layers = draw(st.lists(st.sampled_from("abcdef"), max_size=3, unique=True))
    names = draw(st.lists(st.sampled_from(["sigma", "scale", "x"]), max_size=2, unique=True))
    row = st.lists(cells, min_size=len(layers), max_size=len(layers))
    rows = st.lists(row, min_size=len(steps), max_size=len(steps))
    column = st.lists(cells, min_size=len(steps), max_size=len(steps))
    return {
        "writer": draw(st.sampled_from(["w", "ü"])),
        "seq": draw(st.integers(0, 2**53 - 1)),
        "steps": sorted(steps),
        "layers": layers,
        "metrics": {name: draw(rows) for name in names},
        "scalars": {"loss": draw(column)},
        "skipped": draw(st.integers(0, 5)),
    }


def as_float(cell):
    if cell is None:
        return ABSENT
    return np.float32(float(cell))


@settings(max_examples=100, deadline=None)
@given(forms())
def test_both_forms_of_a_batch_decode_to_the_same(form):
    batch, table = decode_json(json.dumps(form).encode())
    num_layers = len(form["layers"])
    values = [[[as_float(c) for c in row] for row in rows] for rows in form["metrics"].values()]
    binary = decode(
        encode(
            Batch(
                writer=form["writer"],
                seq=form["seq"],
                layers=LayerTable.of_names(form["layers"]).hash,
                steps=tuple(form["steps"]),
                metrics=tuple(form["metrics"]),
                values=np.array(values, np.float32).reshape(
                    len(form["metrics"]), len(form["steps"]), num_layers
                ),
                scalars=("loss",),
                scalar_values=np.array(
                    [[as_float(c) for c in form["scalars"]["loss"]]], np.float32
                ),
                skipped=form["skipped"],
            )
        )
    )
    assert table.names == tuple(form["layers"])
    for name in ("writer", "seq", "layers", "steps", "metrics", "scalars", "skipped", "times"):
        assert getattr(batch, name) == getattr(binary, name)
    for ours, theirs in (
        (batch.values, binary.values),
        (batch.scalar_values, binary.scalar_values),
    ):
        np.testing.assert_array_equal(absent(ours), absent(theirs))
        np.testing.assert_array_equal(ours, theirs)


@settings(max_examples=200, deadline=None)
@given(st.recursive(cells | st.booleans() | st.text(max_size=3), st.lists, max_leaves=8))
def test_whatever_stands_in_a_field_only_typed_errors_come_out(value):
    for field in FORM:
        for inside in (value, {"sigma": value}):
            try:
                decode_json(json.dumps(FORM | {field: inside}).encode())
            except (Problem, WireError):
                pass
