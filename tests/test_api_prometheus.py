"""The routes of Prometheus: what is served, in which type, and under which host."""

import pytest
from api_cases import assert_problem, batch_of, register, serving_app, settings_in, table_of
from prometheus_client.parser import text_string_to_metric_families

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
