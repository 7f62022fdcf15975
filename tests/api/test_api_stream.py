"""The stream of a run: what is there now, then each change, and an end with the run and service."""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import as_completed
from dataclasses import replace
from itertools import islice

import httpx
import pytest
from api_cases import RUN, assert_problem, serving_app, settings_in

from snc_service import app
from snc_service.api.runs import stream


@pytest.fixture
def api(tmp_path):
    with serving_app(settings_in(tmp_path)) as opened:
        opened.post("/api/v1/runs", json={"run": "r"})
        yield opened


def messages(lines: Iterator[str]) -> Iterator[tuple[str, str | None, dict]]:
    """Yield (event, id, data) as they arrive, comments left out."""
    told: dict[str, str] = {}
    for line in lines:
        if line.startswith(":"):
            continue
        if line:
            name, _, value = line.partition(": ")
            told[name] = value
        elif told:
            yield told["event"], told.get("id"), json.loads(told["data"])
            told = {}


def report(url, seq, sigma, run="r"):
    body = {
        "writer": "w", "seq": seq, "steps": [seq], "layers": ["a<b>", "b"],
        "metrics": {"sigma": [sigma], "threshold": [[2, 2]]},
    }  # fmt: skip
    httpx.post(f"{url}/api/v1/runs/{run}/batches", json=body).raise_for_status()


def test_a_stream_tells_what_is_there_and_then_each_change(service_url):
    httpx.post(f"{service_url}/api/v1/runs", json={"run": "r"}).raise_for_status()
    report(service_url, 0, [1, 3])
    with httpx.stream("GET", f"{service_url}{RUN}/stream", timeout=20) as told:
        assert told.status_code == 200
        assert told.headers["Content-Type"].startswith("text/event-stream")
        assert told.headers["Cache-Control"] == "no-store"
        following = messages(told.iter_lines())
        event, first_id, data = next(following)
        assert event == "update"
        assert (data["run"]["last_step"], data["events"]) == (0, [])
        assert [(each["layer"], each["ratio"]) for each in data["layers"]] == [
            ("b", 1.5),
            ("a<b>", 0.5),
        ]
        report(service_url, 1, ["NaN", 1])
        event, second_id, data = next(following)
        assert event == "update"
        assert int(second_id) > int(first_id)
        assert data["run"]["last_step"] == 1
        assert data["layers"][0]["layer"] == "a<b>"
        assert data["layers"][0]["nonfinite"] == ["sigma"]
        assert [each["rule"] for each in data["events"]] == ["nonfinite"]
        httpx.delete(f"{service_url}{RUN}").raise_for_status()
        assert [event for event, _, _ in following] == ["deleted"]


def test_a_burst_of_batches_is_a_few_messages_and_the_last_has_the_newest_values(service_url):
    httpx.post(f"{service_url}/api/v1/runs", json={"run": "r"}).raise_for_status()
    with httpx.stream("GET", f"{service_url}{RUN}/stream", timeout=20) as told:
        following = messages(told.iter_lines())
        next(following)
        start = time.monotonic()
        for seq in range(50):
            report(service_url, seq, [1, 1])
        seen = []
        while not seen or seen[-1] < 49:
            seen.append(next(following)[2]["run"]["last_step"])
        elapsed = time.monotonic() - start
    assert seen == sorted(seen)
    assert len(seen) <= 2 + elapsed / stream.PAUSE_SECONDS


def test_an_unknown_run_has_no_stream(api):
    assert_problem(api.get("/api/v1/runs/none/stream"), 404, "run-unknown")
    assert_problem(api.get("/api/v1/runs/..%00/stream"), 422, "invalid", "run")


def test_there_is_a_bound_on_open_streams(api):
    api.service.streams = api.service.limits.streams
    assert_problem(api.get(f"{RUN}/stream"), 503, "overloaded")
    api.service.streams = 0


def test_streams_that_are_asked_for_at_once_are_no_more_than_the_bound(api, monkeypatch):
    """Each waits for the store before it begins: it must have its place by then."""
    monkeypatch.setattr(api.service, "limits", replace(api.service.limits, streams=3))
    go_on, real = threading.Event(), api.service.store.runs.get

    def get(run):
        assert go_on.wait(20)
        return real(run)

    monkeypatch.setattr(api.service.store.runs, "get", get)
    asked = [api.start("GET", f"{RUN}/stream") for _ in range(5)]
    for told in islice(as_completed(asked, 20), 2):
        assert_problem(told.result(), 503, "overloaded")
    assert api.service.streams == 3
    app.drain(api.app)
    go_on.set()
    assert sorted(told.result(20).status_code for told in asked) == [200, 200, 200, 503, 503]
    assert api.service.streams == 0


def test_a_stream_of_an_unknown_run_gives_its_place_back(api):
    api.get("/api/v1/runs/none/stream")
    assert api.service.streams == 0


def test_streams_end_when_the_service_is_about_to_stop(api, monkeypatch):
    begun, real = threading.Event(), api.service.store.histories.latest

    def latest(run):
        begun.set()
        return real(run)

    monkeypatch.setattr(api.service.store.histories, "latest", latest)
    waiting = api.start("GET", f"{RUN}/stream")
    assert begun.wait(20)
    app.drain(api.app)
    told = waiting.result(20)
    assert [event for event, _, _ in messages(iter(told.text.splitlines()))] == ["update"]
    assert api.service.streams == 0
    assert_problem(api.get(f"{RUN}/stream"), 503, "draining")
