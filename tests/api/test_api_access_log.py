"""One line and one count per request, an id that is passed on, and no secret anywhere."""

import json
import logging
import re
import subprocess
import sys

import httpx
import pytest
from api_cases import assert_problem, register, serving_app, settings_in, table_of
from test_cli import environment

from snc_service.auth import make_token
from snc_service.cli.server.logs import JsonLines
from snc_service.store import open_store

TABLE = table_of("a")


@pytest.fixture
def api(tmp_path, caplog):
    caplog.set_level(logging.INFO, "snc.access")
    with serving_app(settings_in(tmp_path), raise_app_exceptions=False) as opened:
        yield opened


def lines(caplog):
    return [record.request for record in caplog.records if record.name == "snc.access"]


@pytest.mark.parametrize("given", ["a", "A-1", "0" * 64])
def test_a_harmless_id_of_the_client_is_kept(api, caplog, given):
    told = api.get("/api/v1/runs", headers={"X-Request-ID": given})
    assert told.headers["X-Request-ID"] == given
    assert lines(caplog)[0]["request_id"] == given


@pytest.mark.parametrize("given", ["", "a b", "0" * 65, "a_b", "<b>", "a;b", "é".encode()])
def test_any_other_id_is_replaced(api, given):
    told = api.get("/api/v1/runs", headers={"X-Request-ID": given})
    assert re.fullmatch(r"[0-9a-f]{16}", told.headers["X-Request-ID"])


def test_a_line_says_who_asked_what_and_what_became_of_it(api, caplog):
    register(api, TABLE)
    caplog.clear()
    api.get("/api/v1/runs/r?x=1")
    api.get("/api/v1/runs/other/layers?limit=5")
    api.get("/nothing/here")
    api.request("BREW", "/healthz")
    found = [(x["method"], x["route"], x["path"], x["status"]) for x in lines(caplog)]
    assert found == [
        ("GET", "/api/v1/runs/{run}", "/api/v1/runs/r", 200),
        ("GET", "/api/v1/runs/{run}/layers", "/api/v1/runs/other/layers", 404),
        ("GET", "unmatched", "/nothing/here", 404),
        ("other", "/healthz", "/healthz", 405),
    ]
    first = lines(caplog)[0]
    assert first["token"] == "anonymous"
    assert first["client"] == "127.0.0.1"
    assert first["bytes"] > 0
    assert first["seconds"] > 0


def test_a_refusal_at_the_door_has_its_line_too(api, caplog):
    told = api.get("/api/v1/runs", headers={"Host": "evil.example", "X-Request-ID": "x1"})
    assert_problem(told, 403, "host-refused")
    assert told.headers["X-Request-ID"] == "x1"
    assert lines(caplog)[0] | {"status": 403, "request_id": "x1"} == lines(caplog)[0]


def test_a_defect_is_logged_as_500(api, caplog):
    def fail(*_, **__):
        raise ZeroDivisionError

    api.service.store.runs.search = fail
    told = api.get("/api/v1/runs", headers={"X-Request-ID": "mine-1"})
    problem = assert_problem(told, 500, "internal")
    # Whoever reports it can name the line in the log.
    assert problem["request_id"] == told.headers["X-Request-ID"] == "mine-1"
    assert told.headers["X-Content-Type-Options"] == "nosniff"
    assert lines(caplog)[0] | {"status": 500, "request_id": "mine-1"} == lines(caplog)[0]


def test_requests_are_counted_by_template_never_by_path(api):
    register(api, TABLE)
    for run in ("r", "r", "a", "b"):
        api.get(f"/api/v1/runs/{run}")
    for i in range(20):
        api.get(f"/random/{i}")
        api.request(f"M{i}", "/healthz")
    text = api.get("/metrics?collect=process").text
    samples = dict(re.findall(r"^snc_http_requests_total(\{.*\}) (\S+)$", text, re.M))
    template = 'route="/api/v1/runs/{run}"'
    assert samples[f'{{code="200",method="GET",{template}}}'] == "2.0"
    assert samples[f'{{code="404",method="GET",{template}}}'] == "2.0"
    assert samples['{code="404",method="GET",route="unmatched"}'] == "20.0"
    assert samples['{code="405",method="other",route="/healthz"}'] == "20.0"
    assert len(samples) <= 6


def record(message, **extra):
    made = logging.makeLogRecord({"name": "x", "levelname": "INFO", "msg": message} | extra)
    return json.loads(JsonLines().format(made))


def test_a_log_line_is_one_json_object_whatever_is_in_it():
    text = 'a\nb\r"c" \x1b[2J \u2028 é \udcff'
    line = JsonLines().format(logging.makeLogRecord({"msg": text}))
    assert "\n" not in line
    assert line.isascii()
    assert json.loads(line)["message"] == text
    assert record("x", request={"path": "/a"})["path"] == "/a"


def test_no_token_gets_into_any_log_of_a_real_service(tmp_path):
    """Whatever way a secret comes in, right or wrong place, it is not in the log."""
    token, secret = make_token("anna", ["admin"], project=None, author="x", now=0, expires_at=None)
    store = open_store(f"sqlite:///{tmp_path / 'snc.db'}")
    store.tokens.add(token)
    store.close()
    log = tmp_path / "log"
    command = [sys.executable, "-m", "snc_service.cli", "serve", "--port=0",
               f"--store=sqlite:///{tmp_path / 'snc.db'}"]  # fmt: skip
    with (
        log.open("wb") as stderr,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment()
        ) as served,
    ):
        try:
            url = served.stdout.readline().split("serves ")[1].split("/ ")[0]
            other = use(url, secret)
        finally:
            served.terminate()
            served.wait(20)
    said = log.read_text()
    told = [json.loads(line) for line in said.splitlines()]
    assert len(told) >= 8
    assert {"anna"} < {line.get("token") for line in told} | {None}
    assert secret[17:] not in said
    assert other[17:] not in said
    assert token.digest not in said


def use(url, secret):
    """Send a secret in every way there is; return the one that the service made meanwhile."""
    bearer = {"Authorization": f"Bearer {secret}"}
    made = httpx.post(
        f"{url}/api/v1/tokens", json={"name": "b", "scopes": ["read"]}, headers=bearer
    )
    assert made.status_code == 201
    assert httpx.get(f"{url}/api/v1/runs", headers=bearer).status_code == 200
    with httpx.Client(base_url=url) as browser:
        browser.post("/api/v1/session", json={"token": secret})
        assert browser.get("/api/v1/runs").status_code == 200
    for path in (f"/api/v1/runs?token={secret}", f"/{secret}", f"/api/v1/runs/{secret}/layers"):
        httpx.get(url + path)
        httpx.get(url + path, headers=bearer)
    httpx.get(f"{url}/api/v1/runs", headers={"X-Request-ID": secret, **bearer})
    httpx.get(f"{url}/api/v1/runs", headers={"Host": secret, "Authorization": secret})
    httpx.post(f"{url}/api/v1/runs", json={"run": secret, "x": secret}, headers=bearer)
    return made.json()["token"]
