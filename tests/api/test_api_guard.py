"""The open mode: no foreign host name, no change from another origin, headers on all answers."""

import pytest
from api_cases import assert_problem, serving_app, settings_in

from snc_service.api.security.authentication import _is_own, host_name

ORIGIN = "http://127.0.0.1:8470"


@pytest.fixture
def api(tmp_path):
    with serving_app(settings_in(tmp_path, allowed_hosts=("snc.example",))) as opened:
        yield opened


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8470", "127.0.0.1", "localhost:1", "LOCALHOST", "[::1]:8470", "snc.example"]
)
def test_loopback_and_allowed_names_are_served(api, host):
    assert api.get("/api/v1/runs", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example:8470", "localhost.evil", "10.0.0.1", "", "[::2]"],
)
@pytest.mark.parametrize("path", ["/api/v1/runs", "/", "/metrics", "/openapi.json", "/nothing"])
def test_another_name_is_refused_everywhere(api, host, path):
    problem = assert_problem(api.get(path, headers={"Host": host}), 403, "host-refused", "Host")
    assert "SNC_ALLOWED_HOSTS" in problem["detail"]


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "null",
        "http://127.0.0.1:9999",
        "https://127.0.0.1.evil:8470",
        "x",
        "//[",
    ],
)
def test_a_change_from_another_origin_is_refused(api, origin):
    headers = {"Origin": origin}
    assert_problem(api.post("/api/v1/runs", json={}, headers=headers), 403, "cross-origin")
    assert_problem(api.delete("/api/v1/runs/r", headers=headers), 403, "cross-origin")
    assert api.get("/api/v1/runs").json()["items"] == []


def test_a_change_from_the_own_page_is_taken(api):
    told = api.post("/api/v1/runs", json={"run": "r"}, headers={"Origin": ORIGIN})
    assert told.status_code == 201


def test_no_answer_invites_another_origin(api):
    told = api.get("/api/v1/runs", headers={"Origin": "http://evil.example"})
    assert not [name for name in told.headers if name.startswith("access-control")]
    told = api.request("OPTIONS", "/api/v1/runs", headers={"Origin": "http://evil.example"})
    assert told.status_code == 405
    assert not [name for name in told.headers if name.startswith("access-control")]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", None])
def test_a_type_that_a_form_can_send_changes_nothing(api, kind):
    headers = {"Content-Type": kind} if kind else {}
    told = api.post("/api/v1/runs", content=b"{}", headers=headers)
    assert_problem(told, 415, "media-type", "Content-Type")


@pytest.mark.parametrize("path", ["/", "/api/v1/runs", "/metrics", "/docs", "/nothing", "/healthz"])
def test_no_browser_may_guess_a_type(api, path):
    assert api.get(path).headers["X-Content-Type-Options"] == "nosniff"


def test_the_page_and_the_reference_forbid_whatever_they_do_not_need(api):
    for path in ("/", "/docs"):
        policy = api.get(path).headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy


def test_whoever_says_insecure_serves_any_name(tmp_path):
    settings = settings_in(tmp_path, insecure=True, host="0.0.0.0")
    with serving_app(settings) as api:
        assert api.get("/healthz", headers={"Host": "anything.example"}).status_code == 200


@pytest.mark.parametrize("origin", ["null", "", "file://", "http://"])
def test_an_origin_without_a_name_is_nobodys_own_where_no_host_is_sent_either(origin):
    # HTTP/1.0 has no Host header, and a sandboxed page sends "null".
    assert not _is_own(origin, "")


@pytest.mark.parametrize(
    ("host", "name"),
    [("a:1", "a"), ("A.b", "a.b"), ("[::1]:80", "::1"), ("[::1]", "::1"), ("", ""), (":80", "")],
)
def test_the_name_in_a_host_header_has_no_port(host, name):
    assert host_name(host) == name
