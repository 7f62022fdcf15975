"""Alive, ready, and what the service says of itself."""

import pytest
from api_cases import assert_problem, serving_app, settings_in

from snc_service import app
from snc_service.api import state
from snc_service.api.state import Readiness
from snc_service.store.types import StoreUnavailable


@pytest.fixture
def api(tmp_path):
    with serving_app(settings_in(tmp_path, max_json_bytes=4096)) as opened:
        yield opened


def test_a_service_that_runs_is_alive_and_ready(api):
    for path, rest in (("/healthz", {}), ("/readyz", {"away": 0})):
        told = api.get(path)
        assert (told.status_code, told.json()) == (200, {"status": "ok", **rest})


def test_a_node_that_is_away_is_counted_by_a_service_that_stays_ready(api, caplog):
    """A balancer that took it out would stop the runs on all other nodes."""
    api.service.readiness = Readiness(lambda: ["worker-2:5432"])
    told = api.get("/readyz")
    assert (told.status_code, told.json()["away"]) == (200, 1)
    assert "worker-2:5432" in caplog.text
    assert "worker-2" not in told.text


def test_without_its_store_the_service_is_alive_but_not_ready(api):
    asked = []

    def gone():
        asked.append(1)
        raise StoreUnavailable("the disk is gone")

    api.service.readiness = Readiness(gone)
    assert api.get("/healthz").status_code == 200
    problem = assert_problem(api.get("/readyz"), 503, "store-unavailable")
    assert problem["detail"] == "the disk is gone"
    assert_problem(api.get("/readyz"), 503, "store-unavailable")
    assert len(asked) == 1  # a second is not over: whoever asks without a token costs little


def test_a_store_that_can_be_written_again_is_ready_again(api, monkeypatch):
    monkeypatch.setattr(state, "READY_SECONDS", 0.0)
    answers = iter([StoreUnavailable("read-only"), None])

    def check():
        if error := next(answers):
            raise error
        return []

    api.service.readiness = Readiness(check)
    assert [api.get("/readyz").status_code for _ in range(2)] == [503, 200]


@pytest.mark.parametrize("change", ["deleted", "replaced", "read-only", "its log deleted"])
def test_a_file_that_is_not_the_one_that_was_opened_takes_nothing_and_is_not_ready(
    tmp_path, monkeypatch, change
):
    monkeypatch.setattr(state, "READY_SECONDS", 0.0)
    file, log = tmp_path / "snc.db", tmp_path / "snc.db-wal"
    with serving_app(settings_in(tmp_path)) as api:
        api.post("/api/v1/runs", json={"run": "r"})
        body = {"writer": "w", "seq": 0, "steps": [1], "scalars": {"loss": [1]}}
        assert api.post("/api/v1/runs/r/batches", json=body).status_code == 200
        assert api.get("/readyz").status_code == 200
        if change == "read-only":
            file.chmod(0o400)
        elif change == "its log deleted":
            log.unlink()
        else:
            content = file.read_bytes()
            file.unlink()
            if change == "replaced":
                file.write_bytes(content)
        told = api.post("/api/v1/runs/r/batches", json=body | {"seq": 1, "steps": [2]})
        assert_problem(told, 503, "store-unavailable")
        told = api.get("/readyz")
        assert_problem(told, 503, "store-unavailable")
        assert str(file) in told.json()["detail"]
        assert file.exists() == (change != "deleted")
        if change == "read-only":
            file.chmod(0o600)
            assert api.get("/readyz").status_code == 200
            told = api.post("/api/v1/runs/r/batches", json=body | {"seq": 1, "steps": [2]})
            assert told.status_code == 200


def test_a_service_that_is_about_to_stop_is_not_ready_and_takes_no_batches(api):
    api.post("/api/v1/runs", json={"run": "r"})
    app.drain(api.app)
    assert api.get("/healthz").status_code == 200
    assert_problem(api.get("/readyz"), 503, "draining")
    body = {"writer": "w", "seq": 0, "steps": [1], "scalars": {"loss": [1]}}
    assert_problem(api.post("/api/v1/runs/r/batches", json=body), 503, "draining")
    assert api.get("/api/v1/runs/r").json()["last_step"] is None


def test_the_service_tells_its_types_and_limits(api):
    told = api.get("/api/v1").json()
    assert told["media_types"] == ["application/vnd.snc.batch.v1", "application/json"]
    assert told["limits"] == {
        "body_bytes": 8 * 1024 * 1024,
        "json_bytes": 4096,
        "inflight_bytes": 64 * 1024 * 1024,
        "body_deadline_seconds": 30,
        "token_inflight_bytes": 16 * 1024 * 1024,
        "token_requests_per_second": 1000,
        "token_requests_at_once": 128,
        "token_runs": 1000,
        "run_metrics": 64,
        "run_scalars": 512,
        "run_layers": 65_536,
        "run_table_layers": 1_000_000,
        "run_layouts": 4096,
        "run_writers": 10_000,
        "run_attempts": 10_000,
        "run_annotations": 1_000,
        "run_commands": 10_000,
        "run_versions": 10_000,
        "run_events": 100_000,
        "run_incidents": 1_000,
        "store_tokens": 10_000,
        "store_projects": 10_000,
        "store_silences": 1_000,
        "store_routings": 10_000,
        "streams": 200,
        "steps": 1024,
        "layers": 65_536,
        "metrics_and_scalars": 32,
    }
    assert told["problems"]["/problems/run-unknown"]
