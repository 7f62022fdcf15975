"""Tokens over REST, the session of the page, and what one token may take of the service."""

import gzip

import pytest
from api_cases import (
    RUN,
    START,
    Clock,
    assert_problem,
    batch_of,
    register,
    serving_app,
    settings_in,
    table_of,
)

from snc_service.api.security.rate_limit import Share, ShareLimits
from snc_service.auth import SECRET, access_of, make_token
from snc_service.problems import Problem
from snc_service.wire import MEDIA_TYPE, encode

TABLE = table_of("a")
TOKENS, SESSION = "/api/v1/tokens", "/api/v1/session"
ROOT = {"name": "root", "scopes": ["admin"]}


def bearer(secret):
    return {"Authorization": f"Bearer {secret}"}


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def api(tmp_path, clock):
    settings = settings_in(tmp_path, max_body_bytes=4096, token_inflight_bytes=8192, token_runs=2)
    with serving_app(settings, clock=clock) as opened:
        yield opened


@pytest.fixture
def root(api):
    """Close the service with its first token; return the header of that."""
    return bearer(api.post(TOKENS, json=ROOT).json()["token"])


def made(api, root, name="ci", **wanted):
    told = api.post(TOKENS, json={"name": name, "scopes": ["ingest"]} | wanted, headers=root)
    assert told.status_code == 201, told.text
    return told.json()


def test_a_secret_is_in_the_answer_that_makes_it_and_nowhere_else(api, root):
    told = api.post(TOKENS, json={"name": "ci", "scopes": ["ingest"]}, headers=root)
    secret = told.json()["token"]
    assert SECRET.fullmatch(secret)
    assert told.headers["Cache-Control"] == "no-store"
    listed = api.get(TOKENS, headers=root)
    assert {each["name"] for each in listed.json()["items"]} == {"root", "ci"}
    for answer in (listed, api.get("/api/v1/audit", headers=root)):
        assert secret[17:] not in answer.text


def test_the_first_token_must_be_able_to_make_others(api):
    for wanted in ({"scopes": ["read", "ingest"]}, {"scopes": ["admin"], "project": "p"}):
        told = api.post(TOKENS, json={"name": "x"} | wanted)
        assert "admin" in assert_problem(told, 422, "invalid", "scopes")["detail"]
    assert api.get("/api/v1/runs").status_code == 200
    assert api.post(TOKENS, json=ROOT).status_code == 201
    assert_problem(api.get("/api/v1/runs"), 401, "token-missing")


def test_revoking_the_last_token_does_not_open_the_service(api, root):
    assert api.delete(f"{TOKENS}/root", headers=root).status_code == 204
    assert_problem(api.get("/api/v1/runs", headers=root), 401, "token-invalid")
    assert_problem(api.get("/api/v1/runs"), 401, "token-missing")


def test_a_token_ends_with_its_time(api, root, clock):
    told = made(api, root, scopes=["read"], expires_at="2025-11-22T09:26:40Z")  # in one hour
    assert told["expires_at"] == "2025-11-22T09:26:40.000Z"
    assert api.get("/api/v1/runs", headers=bearer(told["token"])).status_code == 200
    clock.now += 3600
    refused = api.get("/api/v1/runs", headers=bearer(told["token"]))
    assert "expired" in assert_problem(refused, 401, "token-invalid")["detail"]


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "a b"}, "name"),
        ({"name": "<b>"}, "name"),
        ({"name": "x" * 65}, "name"),
        ({"name": "anonymous"}, "name"),
        ({"scopes": []}, "scopes"),
        ({"scopes": ["root"]}, "scopes.0"),
        ({"project": "../x"}, "project"),
        ({"expires_at": "tomorrow"}, "expires_at"),
        ({"expires_at": "2025-11-22T08:26:40Z"}, "expires_at"),
        ({"expires_at": "2030-01-01T00:00:00"}, "expires_at"),
        ({"expires_at": "9999-12-31T23:59:59-23:59"}, "expires_at"),
        ({"expires_at": "9999-12-31T23:59:59.999999Z"}, "expires_at"),  # rounds to the year 10000
        ({"expires_at": 1e30}, "expires_at"),
        ({"digest": "0"}, "digest"),
    ],
)
def test_a_wish_without_sense_is_422_and_makes_nothing(api, root, wanted, field):
    body = {"name": "ci", "scopes": ["ingest"]} | wanted
    assert_problem(api.post(TOKENS, json=body, headers=root), 422, "invalid", field)
    assert len(api.get(TOKENS, headers=root).json()["items"]) == 1


def test_a_name_is_taken_for_good(api, root):
    made(api, root)
    api.delete(f"{TOKENS}/ci", headers=root)
    told = api.post(TOKENS, json={"name": "ci", "scopes": ["read"]}, headers=root)
    assert_problem(told, 409, "token-exists")
    assert_problem(api.delete(f"{TOKENS}/nobody", headers=root), 404, "token-unknown")


def test_the_audit_log_names_the_token_that_changed_something(api, root):
    job = bearer(made(api, root)["token"])
    api.post("/api/v1/runs", json={"run": "r"}, headers=job)
    for path in (f"{RUN}/policy", "/api/v1/projects/p/policy"):
        assert api.put(path, json={"entries": []}, headers=root).status_code == 200
    api.post(f"{RUN}/commands", json={"action": "stop", "reason": "why"}, headers=root)
    api.delete(RUN, headers=root)
    api.delete(f"{TOKENS}/ci", headers=root)
    told = api.get("/api/v1/audit", headers=root).json()["items"]
    assert [(each["author"], each["action"], each["subject"]) for each in told] == [
        ("root", "token_revoked", "ci"),
        ("root", "run_deleted", "r"),
        ("root", "command_sent", "r"),
        ("root", "project_policy_changed", "p"),
        ("root", "run_policy_changed", "r"),
        ("root", "token_created", "ci"),
        ("anonymous", "token_created", "root"),
    ]
    page = api.get("/api/v1/audit", params={"limit": 3}, headers=root).json()
    more = api.get("/api/v1/audit", params={"cursor": page["next"]}, headers=root).json()
    assert page["items"] + more["items"] == told
    only = api.get("/api/v1/audit", params={"action": "run_deleted"}, headers=root).json()
    assert [each["subject"] for each in only["items"]] == ["r"]


def test_a_first_policy_is_signed_by_the_token_of_its_job(api, root):
    job = bearer(made(api, root)["token"])
    api.post("/api/v1/runs", json={"run": "r", "policy": {"entries": []}}, headers=job)
    assert api.get(f"{RUN}/policy", headers=root).json()["author"] == "ci"


def test_a_token_creates_so_many_runs_and_deleting_makes_room(api, root):
    job = bearer(made(api, root)["token"])
    for run in ("r", "r2", "r2"):
        api.post("/api/v1/runs", json={"run": run}, headers=job)
    told = api.post("/api/v1/runs", json={"run": "r3"}, headers=job)
    assert "at most 2" in assert_problem(told, 403, "quota-exceeded")["detail"]
    api.delete(RUN, headers=root)
    assert api.post("/api/v1/runs", json={"run": "r3"}, headers=job).status_code == 201


# The session


def test_a_session_is_a_cookie_that_no_script_and_no_other_site_can_use(api, root):
    secret = made(api, root, scopes=["read"])["token"]
    told = api.post(SESSION, json={"token": f" {secret}\n"})
    assert told.json() == {
        "name": "ci", "scopes": ["read"], "project": None, "expires_at": None, "token_needed": True,
    }  # fmt: skip
    cookie = told.headers["Set-Cookie"]
    assert cookie.startswith(f"snc_session={secret};")
    words = {word.strip() for word in cookie.split(";")[1:]}
    assert {"HttpOnly", "SameSite=strict", "Path=/", "Max-Age=604800"} == words
    assert secret not in told.text
    assert api.get("/api/v1/runs").status_code == 200  # this client keeps cookies, as browsers do
    assert api.get(SESSION).json()["name"] == "ci"
    assert_problem(api.post("/api/v1/runs", json={}), 403, "scope-missing")
    assert api.delete(SESSION).status_code == 204
    assert_problem(api.get(SESSION), 401, "token-missing")


def test_a_cookie_behind_tls_is_for_tls_only(api, root):
    secret = made(api, root)["token"]
    told = api.post("https://127.0.0.1:8470" + SESSION, json={"token": secret})
    assert "Secure" in told.headers["Set-Cookie"]


def test_a_session_ends_with_its_token(api, root):
    told = made(api, root, scopes=["read"], expires_at="2025-11-22T09:26:40Z")
    cookie = api.post(SESSION, json={"token": told["token"]}).headers["Set-Cookie"]
    assert "Max-Age=3600;" in cookie
    api.delete(f"{TOKENS}/ci", headers=root)
    assert_problem(api.get("/api/v1/runs"), 401, "token-invalid")


def test_a_request_with_two_tokens_is_refused_also_if_both_are_good(api, root):
    two = [("Authorization", root["Authorization"])] * 2
    assert_problem(api.get("/api/v1/runs", headers=two), 401, "token-missing")


def test_a_header_wins_over_the_cookie(api, root):
    api.post(SESSION, json={"token": made(api, root, scopes=["read"])["token"]})
    assert_problem(api.get("/api/v1/runs", headers=bearer("x")), 401, "token-invalid")


@pytest.mark.parametrize("body", [{}, {"token": ""}, {"token": 7}, {"token": "x" * 257}])
def test_a_login_without_a_token_is_422(api, root, body):
    assert_problem(api.post(SESSION, json=body), 422, "invalid")


def test_a_login_with_a_wrong_token_sets_no_cookie(api, root):
    told = api.post(SESSION, json={"token": "snc_0"})
    assert_problem(told, 401, "token-invalid")
    assert "Set-Cookie" not in told.headers


def test_a_login_is_read_up_to_a_few_bytes_only(api, root):
    assert_problem(api.post(SESSION, json={"token": "x" * 9000}), 413, "body-too-large")


def test_without_any_token_everybody_is_anonymous_and_may_all(api):
    assert api.get(SESSION).json() == {
        "name": "anonymous", "scopes": ["admin", "ingest", "read"], "project": None,
        "expires_at": None, "token_needed": False,
    }  # fmt: skip
    assert "Set-Cookie" not in api.post(SESSION, json={"token": "x"}).headers


def test_a_change_by_cookie_from_another_site_is_refused(api, root):
    api.post(SESSION, json={"token": made(api, root)["token"]})
    told = api.post("/api/v1/runs", json={}, headers={"Origin": "http://evil.example"})
    assert_problem(told, 403, "cross-origin")


# Shares


def test_a_share_lets_a_burst_through_and_then_its_rate():
    now = [0.0]
    share = Share(ShareLimits(2.0, 100, 5), lambda: now[0])
    share.ask()
    share.ask()
    with pytest.raises(Problem, match="2 per second") as refused:
        share.ask()
    assert (refused.value.status_code, refused.value.headers["Retry-After"]) == (429, "1")
    now[0] = 0.5
    share.ask()
    with pytest.raises(Problem):
        share.ask()
    now[0] = 1e9
    share.ask()
    share.ask()
    with pytest.raises(Problem):
        share.ask()


def test_a_slow_rate_says_how_long_to_wait():
    share = Share(ShareLimits(0.1, 100, 5), lambda: 0.0)
    share.ask()
    with pytest.raises(Problem) as refused:
        share.ask()
    assert refused.value.headers["Retry-After"] == "10"


def test_one_token_over_its_rate_leaves_the_others_alone(tmp_path):
    settings = settings_in(tmp_path, token_requests_per_second=0.5)
    with serving_app(settings) as api:
        store = api.service.store
        secrets = []
        for name in ("a", "b"):
            token, secret = make_token(
                name, ["read"], project=None, author="x", now=START, expires_at=None
            )
            store.tokens.add(token)
            secrets.append(secret)
        api._portal.call(lambda: api.service.tokens.refresh(now=True))
        assert api.get("/api/v1/runs", headers=bearer(secrets[0])).status_code == 200
        told = api.get("/api/v1/runs", headers=bearer(secrets[0]))
        assert_problem(told, 429, "rate-limited")
        assert int(told.headers["Retry-After"]) >= 1
        assert api.get("/api/v1/runs", headers=bearer(secrets[1])).status_code == 200
        assert api.get("/healthz").status_code == 200


def test_bytes_of_one_token_are_counted_while_they_are_read_and_given_back(api, root):
    job = bearer(made(api, root)["token"])
    api.post("/api/v1/runs", json={"run": "r"}, headers=job)
    path = f"{RUN}/layer-tables/{TABLE.hash}"
    json_type = {"Content-Type": "application/json", **job}
    assert api.put(path, content=TABLE.body, headers=json_type).status_code == 204
    # Inflating reserves the largest body: two of these fit in the share, three do not.
    share = api.service.shares.of(access_of(api.service.tokens.find(job["Authorization"][7:])))
    share.take(5000)
    packed = {**job, "Content-Encoding": "gzip", "Content-Type": MEDIA_TYPE}
    body = gzip.compress(encode(batch_of(TABLE, sigma=[[1.0]])))
    told = api.post(f"{RUN}/batches", content=body, headers=packed)
    assert "8192" in assert_problem(told, 429, "rate-limited")["detail"]
    share.give_back(5000)
    assert api.post(f"{RUN}/batches", content=body, headers=packed).status_code == 200
    assert (share.held, api.service.budget.held) == (0, 0)


def test_nobody_is_limited_while_nobody_is_asked(api):
    register(api, TABLE)
    for seq in range(5):
        assert api.send(batch_of(TABLE, seq, (seq,), sigma=[[1.0]])).status_code == 200
