"""HEAD: what GET would answer, without the body, on every route."""

import re

import httpx
import pytest
from api_cases import assert_problem, batch_of, register, serving_app, settings_in, table_of
from test_auth import TABLE_OF_ROUTES
from test_cli import serving

TABLE = table_of("fc1.weight")
PLACES = {"run": "r", "project": "p", "layer:path": "fc1.weight", "scalar": "loss",
          "kind": "invalid", "path:path": "x", "incident": "1"}  # fmt: skip
READ = sorted(path for method, path in TABLE_OF_ROUTES if method == "GET")


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    with serving_app(settings_in(tmp_path_factory.mktemp("head"))) as opened:
        register(opened, TABLE)
        opened.send(batch_of(TABLE, sigma=[[1.5]]))
        yield opened


@pytest.mark.parametrize("path", [path for path in READ if not path.endswith("/stream")])
def test_head_is_get_without_a_body(api, path):
    path = re.sub(r"\{([^}]+)\}", lambda match: PLACES[match[1]], path)
    got, told = api.get(path), api.request("HEAD", path)
    assert told.status_code == got.status_code
    assert told.content == b""
    own = {"x-request-id", "content-length"}
    assert {k: v for k, v in told.headers.items() if k not in own} == {
        k: v for k, v in got.headers.items() if k not in own
    }


def test_head_of_what_cannot_be_read_says_what_can_be_done(api):
    told = api.request("HEAD", "/api/v1/runs/r/batches")
    assert (told.status_code, told.headers["Allow"]) == (405, "POST")
    refused = api.request("PATCH", "/api/v1/runs")
    assert_problem(refused, 405, "method-not-allowed")
    assert refused.headers["Allow"] == "GET, HEAD, POST"


def test_head_is_counted_as_head_and_by_its_route(api):
    api.request("HEAD", "/api/v1/runs/r")
    text = api.get("/metrics?collect=process").text
    assert re.search(
        r'snc_http_requests_total\{code="200",method="HEAD",route="/api/v1/runs/\{run\}"\} [1-9]',
        text,
    )


def test_head_of_a_stream_ends_and_the_connection_goes_on(tmp_path):
    with serving(tmp_path / "snc.db") as url, httpx.Client(base_url=url, timeout=10) as http:
        http.post("/api/v1/runs", json={"run": "r"})
        for _ in range(2):
            told = http.head("/api/v1/runs/r/stream")
            assert told.status_code == 200
            assert told.headers["Content-Type"].startswith("text/event-stream")
        assert http.get("/healthz").json() == {"status": "ok"}
        assert "snc_stream_clients 0.0" in http.get("/metrics").text
