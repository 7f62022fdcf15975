"""Ingest over HTTP: stored once, acknowledged when durable, and each refusal as documented."""

import gzip
import json

import numpy as np
import pytest
from api_cases import (
    RUN,
    assert_problem,
    batch_of,
    register,
    serving_app,
    settings_in,
    table_of,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snc_service.api.ingest.batches import fingerprint
from snc_service.store.types import StoreUnavailable
from snc_service.wire import ABSENT, JSON_MEDIA_TYPE, MEDIA_TYPE, LayerTable, decode, encode

TABLE = table_of("a", "b")
POLICY = {"entries": [{"pattern": "*", "threshold": 2.0, "action": "rescale"}]}
BINARY = {"Content-Type": MEDIA_TYPE}
JSON = {"Content-Type": JSON_MEDIA_TYPE}


@pytest.fixture
def api(tmp_path):
    with serving_app(settings_in(tmp_path)) as opened:
        yield opened


@pytest.fixture
def run(api):
    register(api, TABLE)
    return api


def history(api, layer="a", **params):
    return api.get(f"{RUN}/layers/{layer}/history", params=params).json()


def two_steps(seq=0):
    return batch_of(TABLE, seq, (5, 6), sigma=[[1.5, 2.5], [1.25, 3.5]], scalars={"loss": [4, 5]})


def test_a_batch_is_counted_and_read_back(run):
    told = run.send(two_steps())
    assert told.status_code == 200
    assert told.json() == {"accepted": 6, "duplicate": False, "policy_version": 0}
    assert history(run)["mean"] == [1.5, 1.25]
    assert history(run)["steps"] == [5, 6]
    assert run.get(f"{RUN}/scalars/loss/history").json()["mean"] == [4, 5]


def test_the_same_batch_again_is_acknowledged_and_stored_once(run):
    run.send(two_steps())
    before = run.get(RUN).json()
    told = run.send(two_steps()).json()
    assert told == {"accepted": 6, "duplicate": True, "policy_version": 0}
    assert history(run)["steps"] == [5, 6]
    assert run.get(RUN).json() == before
    assert "\nsnc_ingest_values_total 6.0\n" in run.get("/metrics").text


def test_a_gap_says_which_number_is_expected_and_may_be_declared(run):
    run.send(two_steps())
    gap = batch_of(TABLE, 3, (9,), sigma=[[1, 1]])
    problem = assert_problem(run.send(gap), 409, "sequence-gap", "seq")
    assert problem["expected"] == 1
    declared = batch_of(TABLE, 3, (9,), sigma=[[1, 1]], skipped=2, dropped=8)
    assert run.send(declared).status_code == 200
    assert run.get(RUN).json()["dropped_values"] == 8


def test_a_number_that_comes_again_with_other_content_is_a_conflict(run):
    run.send(two_steps())
    other = batch_of(TABLE, 0, (5, 6), sigma=[[1.5, 2.5], [1.25, 99]], scalars={"loss": [4, 5]})
    assert_problem(run.send(other), 409, "sequence-conflict")
    assert history(run, "b")["max"] == [2.5, 3.5]


def test_an_unknown_layer_table_is_409_until_it_is_put(run):
    table = table_of("c", "d", "e")
    batch = batch_of(table, sigma=[[1, 2, 3]])
    assert_problem(run.send(batch), 409, "layer-table-unknown")
    register(run, table)
    assert run.send(batch).status_code == 200


def test_a_batch_for_no_run_is_404(run):
    assert_problem(run.send(two_steps(), run="nobody"), 404, "run-unknown")


def test_a_batch_with_another_number_of_layers_than_its_table_is_422(run):
    assert_problem(run.send(batch_of(TABLE, sigma=[[1, 2, 3]])), 422, "invalid", "layers")


def test_the_policy_rides_along_until_the_client_has_its_version(run):
    run.put(f"{RUN}/policy", json=POLICY)
    told = run.send(two_steps(0)).json()
    assert (told["policy_version"], told["policy"]) == (1, POLICY)
    told = run.send(two_steps(1), **{"SNC-Policy-Version": "1"}).json()
    assert told["policy_version"] == 1
    assert "policy" not in told
    run.put(f"{RUN}/policy", json={"entries": []})
    told = run.send(two_steps(2), **{"SNC-Policy-Version": "1"}).json()
    assert (told["policy_version"], told["policy"]) == (2, {"entries": []})


def test_a_duplicate_brings_the_policy_too(run):
    run.send(two_steps())
    run.put(f"{RUN}/policy", json=POLICY)
    told = run.send(two_steps()).json()
    assert (told["duplicate"], told["policy_version"], told["policy"]) == (True, 1, POLICY)


@pytest.mark.parametrize("version", ["-1", "x", "1.5", "9" * 30])
def test_a_policy_version_that_is_no_number_is_422(run, version):
    told = run.send(two_steps(), **{"SNC-Policy-Version": version})
    assert_problem(told, 422, "invalid", "snc-policy-version")


def test_many_writers_at_once_are_all_stored(run):
    writers = [f"w{i}" for i in range(40)]
    waiting = [
        run.start(
            "POST",
            f"{RUN}/batches",
            content=encode(batch_of(TABLE, 0, (i,), writer=writer, sigma=[[i, i]])),
            headers=BINARY,
        )
        for i, writer in enumerate(writers)
    ]
    assert {each.result(60).status_code for each in waiting} == {200}
    assert history(run)["steps"] == list(range(40))


# Layer tables.
def test_putting_a_table_again_changes_nothing(run):
    before = run.get(f"{RUN}/layers").json()
    register(run, TABLE)
    assert run.get(f"{RUN}/layers").json() == before
    assert before["total"] == 2


def test_a_table_under_another_hash_is_422(run):
    told = run.put(f"{RUN}/layer-tables/{'0' * 32}", content=TABLE.body, headers=JSON)
    problem = assert_problem(told, 422, "invalid", "table_hash")
    assert TABLE.hash in problem["detail"]


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        (b"", 400, "layer table"),
        (b"[1]", 400, "layer table"),
        (b'{"layers": NaN}', 400, "layer table"),
        (b'{"layers": 7}', 422, "layers"),
        (b'{"layers": [{"name": ""}]}', 422, "layers.name"),
        (b'{"layers": [{"name": "a\\u0007"}]}', 422, "layers.name"),
        (b'{"layers": [{"name": "a", "shape": [-1]}]}', 422, "layers.shape"),
        (b'{"layers": [{"name": "a"}, {"name": "a"}]}', 422, "layers"),
    ],
)
def test_a_broken_table_names_what_is_wrong(run, body, status, field):
    told = run.put(f"{RUN}/layer-tables/{'0' * 32}", content=body, headers=JSON)
    assert_problem(told, status, "body-malformed" if status == 400 else "invalid", field)


@pytest.mark.parametrize("table_hash", ["x" * 32, "0" * 31, "0" * 33, "A" * 32])
def test_a_hash_is_32_hex_digits(run, table_hash):
    told = run.put(f"{RUN}/layer-tables/{table_hash}", content=TABLE.body, headers=JSON)
    assert_problem(told, 422, "invalid", "table_hash")


def test_a_table_for_no_run_is_404(run):
    path = f"/api/v1/runs/nobody/layer-tables/{TABLE.hash}"
    assert_problem(run.put(path, content=TABLE.body, headers=JSON), 404, "run-unknown")


# Bodies.
@pytest.mark.parametrize("kind", ["text/plain", "", "application/octet-stream", "text/json"])
def test_another_media_type_is_415_and_the_answer_lists_ours(run, kind):
    told = run.post(f"{RUN}/batches", content=encode(two_steps()), headers={"Content-Type": kind})
    assert assert_problem(told, 415, "media-type")["accepted"] == [MEDIA_TYPE, JSON_MEDIA_TYPE]


@pytest.mark.parametrize("encoding", ["br", "deflate", "gzip, gzip", "zstd"])
def test_another_encoding_is_415(run, encoding):
    headers = BINARY | {"Content-Encoding": encoding}
    told = run.post(f"{RUN}/batches", content=encode(two_steps()), headers=headers)
    assert_problem(told, 415, "media-type", "Content-Encoding")


def test_gzip_is_read(run):
    headers = BINARY | {"Content-Encoding": "gzip"}
    told = run.post(f"{RUN}/batches", content=gzip.compress(encode(two_steps())), headers=headers)
    assert told.json()["accepted"] == 6


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"SNC1",
        b"SNC2" + bytes(20),
        encode(two_steps())[:-1],
        encode(two_steps()) + b"\0\0\0\0",
        b"SNC1" + (2**32 - 1).to_bytes(4, "little") + bytes(100),
        b"SNC1\x08\0\0\0[1, 2, ]",
        b"SNC1\x08\0\0\0{\"a\":NaN}"[:16],
    ],
)  # fmt: skip
def test_broken_framing_is_400(run, body):
    assert_problem(run.post(f"{RUN}/batches", content=body, headers=BINARY), 400, "body-malformed")


def framed(**changes):
    """Return a frame with a changed header and zeros for values: 2 steps, 1 metric, 2 layers."""
    header = {
        "layers": TABLE.hash, "metrics": ["sigma"], "scalars": [], "seq": 0, "steps": [1, 2],
        "writer": "w",
    } | changes  # fmt: skip
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 8)
    return b"SNC1" + len(text).to_bytes(4, "little") + text + bytes(16)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"seq": -1}, "seq"),
        ({"seq": 2**70}, "seq"),
        ({"seq": True}, "seq"),
        ({"steps": [2, 1]}, "steps"),
        ({"steps": []}, "steps"),
        ({"steps": [1, 2**53]}, "steps"),
        ({"steps": "12"}, "steps"),
        ({"writer": ""}, "writer"),
        ({"writer": "a\nb"}, "writer"),
        ({"writer": "\ud800"}, "writer"),
        ({"layers": "nope"}, "layers"),
        ({"metrics": ["Sigma"]}, "metrics"),
        ({"metrics": ["sigma", "sigma"]}, "metrics"),
        ({"times": [1, "x"]}, "times"),
        ({"times": [1]}, "times"),
        ({"dtype": "f8"}, "dtype"),
        ({"attempt": -1}, "attempt"),
        ({"dropped": 1.5}, "dropped"),
    ],
)
def test_an_invalid_header_is_422_naming_its_key(run, changes, field):
    told = run.post(f"{RUN}/batches", content=framed(**changes), headers=BINARY)
    assert_problem(told, 422, "invalid", field)


def untouched(api):
    told = api.get(RUN).json()
    return told["last_step"] is None and history(api)["steps"] == []


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.binary(max_size=300))
def test_random_bytes_are_refused_and_leave_no_trace(run, body):
    for headers in (BINARY, JSON, BINARY | {"Content-Encoding": "gzip"}):
        told = run.post(f"{RUN}/batches", content=body, headers=headers)
        assert told.status_code in (400, 422)
        assert told.headers["Content-Type"] == "application/problem+json"
    assert untouched(run)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(0, 191), st.integers(0, 255), st.integers(0, 200))
def test_a_damaged_batch_is_refused_or_read_as_what_it_says(run, place, byte, cut):
    body = bytearray(encode(two_steps()))
    body[place % len(body)] = byte
    told = run.post(f"{RUN}/batches", content=bytes(body[: len(body) - cut]), headers=BINARY)
    assert told.status_code in (200, 400, 409, 422)
    if told.status_code != 200:
        assert told.json()["type"].startswith("/problems/")


def test_the_fingerprint_is_of_what_is_said_not_of_how(run):
    batch = two_steps()
    assert fingerprint(decode(encode(batch))) == fingerprint(batch)
    again = batch_of(
        TABLE, 0, (5, 6), sigma=[[1.5, 2.5], [1.25, 3.5]], scalars={"loss": [4, 5]}, skipped=3
    )
    assert fingerprint(again) == fingerprint(batch)
    nan = batch_of(TABLE, sigma=[[np.nan, 1]])
    missing = batch_of(TABLE, sigma=[[ABSENT, 1]])
    assert fingerprint(nan) != fingerprint(missing)


def test_the_ack_comes_only_after_the_store_has_it(tmp_path):
    """Break the store under a running service: no acknowledgement, and nothing half stored."""
    with serving_app(settings_in(tmp_path)) as api:
        register(api, TABLE)
        store = api.service.store
        real = store.batches.ingest

        def fail(items):
            raise StoreUnavailable("the disk is full")

        api.service.commits._store.batches.ingest = fail
        assert_problem(api.send(two_steps()), 503, "store-unavailable")
        assert untouched(api)
        api.service.commits._store.batches.ingest = real
        assert api.send(two_steps()).status_code == 200


def test_the_golden_table_of_the_wire_note_is_accepted(run):
    body = (
        b'{"layers":[{"kind":"linear","name":"fc1.weight","shape":[64,32]},'
        b'{"kind":"linear","name":"fc2.weight","shape":[10,64]}]}'
    )
    assert LayerTable.parse(body).hash == "372f338c57a4c0c8b8577e5c66c60493"
    path = f"{RUN}/layer-tables/372f338c57a4c0c8b8577e5c66c60493"
    assert run.put(path, content=body, headers=JSON).status_code == 204


def test_a_job_that_names_too_much_is_refused_with_the_bound_and_its_setting(tmp_path):
    with serving_app(settings_in(tmp_path, run_layers=3, run_metrics=2)) as api:
        api.post("/api/v1/runs", json={"run": "r"})

        def send(seq, layers, metrics):
            body = {
                "writer": "w",
                "seq": seq,
                "steps": [seq],
                "layers": layers,
                "metrics": {name: [[1.0] * len(layers)] for name in metrics},
            }
            return api.post("/api/v1/runs/r/batches", json=body)

        assert send(0, ["a", "b"], ["sigma"]).status_code == 200
        problem = assert_problem(send(1, ["c", "d"], ["sigma"]), 422, "run-full", "layers")
        assert (problem["bound"], problem["limit"]) == ("run_layers", 3)
        assert "SNC_RUN_LAYERS" in problem["detail"]
        problem = assert_problem(send(1, ["a", "b"], ["x", "y"]), 422, "run-full", "metrics")
        assert problem["bound"] == "run_metrics"
        path = f"/api/v1/runs/r/layer-tables/{table_of('e', 'f').hash}"
        headers = {"Content-Type": "application/json"}
        told = api.put(path, content=table_of("e", "f").body, headers=headers)
        assert_problem(told, 422, "run-full", "layers")
        assert send(1, ["a", "b"], ["sigma", "x"]).status_code == 200
