"""The routes of Prometheus: what is served, in which type, and under which host."""

import time

import pytest
from api_cases import assert_problem, batch_of, register, serving_app, settings_in, table_of
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families

from snc_service.api.system.prometheus import prefers_openmetrics

TABLE = table_of("a", 'b"\\')


@pytest.fixture
def api(tmp_path):
    with serving_app(settings_in(tmp_path)) as opened:
        register(opened, TABLE)
        opened.send(batch_of(TABLE, sigma=[[1.5, 2.5]], threshold=[[2, 2]]))
        yield opened


def samples(text):
    """Return {(name, sorted labels): value}, parsed by the official parser."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.mark.parametrize("path", ["/metrics", "/metrics/runs/r"])
def test_a_batch_is_on_the_metrics(api, path):
    told = api.get(path)
    assert told.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    found = samples(told.text)
    for layer, sigma in zip(TABLE.names, (1.5, 2.5), strict=True):
        assert found["snc_sigma", (("layer", layer), ("run", "r"))] == sigma


def test_every_outcome_of_a_batch_is_counted(api):
    batch = batch_of(TABLE, 0, sigma=[[1.5, 2.5]], threshold=[[2, 2]])
    api.send(batch)
    api.send(batch_of(TABLE, 7, sigma=[[1, 1]]))
    api.post("/api/v1/runs/r/batches", json={"writer": 7})
    found = samples(api.get("/metrics", params={"collect": "process"}).text)
    counts = {
        dict(labels)["outcome"]: value
        for (name, labels), value in found.items()
        if name == "snc_ingest_batches_total"
    }
    assert counts == {"accepted": 1, "duplicate": 1, "refused": 2}
    assert found["snc_ingest_values_total", ()] == 4
    assert found["snc_ingest_seconds_count", ()] == 4


def test_parts_can_be_asked_for(api):
    names = {name for name, _ in samples(api.get("/metrics?collect=runs").text)}
    assert "snc_run_last_step" in names
    assert "snc_sigma" not in names
    both = {name for name, _ in samples(api.get("/metrics?collect=runs&collect=layers").text)}
    assert {"snc_run_last_step", "snc_sigma"} <= both
    assert_problem(api.get("/metrics?collect=everything"), 422, "invalid", "collect.0")
    assert_problem(api.get("/metrics?run=r"), 422, "invalid", "run")


def test_the_text_is_compressed_for_those_who_read_gzip(api):
    packed = api.get("/metrics", headers={"Accept-Encoding": "gzip"})
    assert packed.headers["Content-Encoding"] == "gzip"
    assert "snc_sigma" in packed.text


def test_service_discovery_names_the_host_that_was_asked(api):
    told = api.get("/prometheus/sd", headers={"Host": "localhost:9999"})
    assert told.headers["Content-Type"] == "application/json"
    assert told.json() == [
        {
            "targets": ["localhost:9999"],
            "labels": {"__metrics_path__": "/metrics/runs/r", "instance": "localhost:9999/r"},
        }
    ]


def test_service_discovery_names_the_public_host_if_one_is_set(tmp_path):
    with serving_app(settings_in(tmp_path, public_host="snc.example:80")) as api:
        assert api.get("/prometheus/sd").json() == []
        register(api, TABLE)
        api.send(batch_of(TABLE, sigma=[[1, 1]]))
        assert api.get("/prometheus/sd").json()[0]["targets"] == ["snc.example:80"]


OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
# What Prometheus 2 and 3 send.
PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1"
    ";q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.1"
)


@pytest.mark.parametrize("accept", [PROMETHEUS_2, PROMETHEUS_3, "application/openmetrics-text"])
@pytest.mark.parametrize("path", ["/metrics", "/metrics/runs/r", "/metrics?collect=process"])
def test_openmetrics_has_the_same_samples(api, path, accept):
    api.get(path)  # from the first answer on, the route is counted
    told = api.get(path, headers={"Accept": accept})
    assert told.headers["Content-Type"] == OPENMETRICS
    assert told.headers["Vary"] == "Accept, Accept-Encoding"
    found = {
        (sample.name, tuple(sorted(sample.labels.items())))
        for family in parse_openmetrics(told.text)
        for sample in family.samples
    }
    plain = samples(api.get(path).text).keys()
    ours = {key for key in plain if key[0].startswith("snc_")}
    assert ours
    assert {key for key in found if key[0].startswith("snc_")} == ours


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("", False),
        ("*/*", False),
        ("text/html,application/xhtml+xml,*/*;q=0.8", False),
        ("text/plain", False),
        ("text/plain, application/openmetrics-text;q=0.9", False),
        ("text/plain;q=0.3, application/openmetrics-text;q=0.9", True),
        ("APPLICATION/OPENMETRICS-TEXT ; VERSION=0.0.1", True),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;version=9.0", False),
        ("application/openmetrics-text;q=nan", False),
        ("application/openmetrics-text;q=1e9;;,=", False),
    ],
)
def test_text_is_what_is_not_asked_for_otherwise(accept, wanted):
    assert prefers_openmetrics(accept) is wanted


def test_how_the_service_does_is_on_the_metrics(api):
    deadline = time.monotonic() + 30
    while True:
        found = samples(api.get("/metrics?collect=process").text)
        if found["snc_event_loop_lag_seconds_count", ()] >= 2:
            break
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for name in ("snc_ingest_queue_batches", "snc_ingest_inflight_bytes", "snc_stream_clients"):
        assert found[name, ()] == 0
    service = api.service
    service.budget.take(1_000)
    service.streams += 2
    found = samples(api.get("/metrics?collect=process").text)
    assert found["snc_ingest_inflight_bytes", ()] == 1_000
    assert found["snc_stream_clients", ()] == 2
    service.budget.give_back(1_000)
    service.streams -= 2
