"""Requests of one token under way: bounded, streams included, and nobody else's business."""

import threading

import httpx
import pytest
from api_cases import START, assert_problem, serving_app, settings_in
from test_cli import snc
from test_prometheus import eventually

from snc_client.demo.service import free_port, serving
from snc_service.api.ingest.body import _Loan
from snc_service.api.security.rate_limit import Share, ShareLimits, Shares
from snc_service.api.state import Budget
from snc_service.auth import ANYBODY, access_of, make_token
from snc_service.problems import Problem

LIMITS = ShareLimits(1e6, 100, 2, reads=2, streams=1)


def bearer(secret):
    return {"Authorization": f"Bearer {secret}"}


def test_a_share_holds_as_many_bytes_as_its_limit_and_no_more():
    share = Share(LIMITS, lambda: 0.0)
    share.take(60)
    share.take(40)
    with pytest.raises(Problem, match="at most 100 bytes"):
        share.take(1)
    assert share.held == 100
    share.give_back(40)
    share.take(40)


def test_bytes_that_the_service_has_no_room_for_are_not_charged_to_the_token_either():
    share, budget = Share(LIMITS, lambda: 0.0), Budget(50)
    loan = _Loan(budget, share)
    loan.take(30)
    with pytest.raises(Problem, match="already being read"):
        loan.take(30)
    assert (share.held, budget.held) == (30, 30)
    loan.give_back()
    assert (share.held, budget.held) == (0, 0)


def test_a_share_counts_what_is_under_way_and_forgets_what_is_over():
    share = Share(LIMITS, lambda: 0.0)
    with share.answering():
        with share.answering(), pytest.raises(Problem) as refused, share.answering():
            pass
        assert refused.value.status_code == 429
        assert share.under_way == 1
    with pytest.raises(ZeroDivisionError), share.answering():
        raise ZeroDivisionError
    assert share.under_way == 0


def test_where_nobody_is_asked_nobody_is_limited():
    assert Shares(ShareLimits(1.0, 1, 1)).of(ANYBODY) is None


def test_a_refused_request_is_not_under_way(tmp_path):
    with serving_app(settings_in(tmp_path, token_requests_at_once=1)) as api:
        given = {"project": None, "author": "x", "now": START, "expires_at": None}
        token, secret = make_token("a", ["read"], **given)
        api.service.store.tokens.add(token)
        api._portal.call(lambda: api.service.tokens.refresh(now=True))
        for _ in range(5):  # one after the other is one at once, also if it is refused
            assert api.get("/api/v1/runs", headers=bearer(secret)).status_code == 200
            assert api.post("/api/v1/runs", headers=bearer(secret)).status_code == 403
            assert api.get("/nothing", headers=bearer(secret)).status_code == 404
        share = api.service.shares.of(access_of(api.service.tokens.find(secret)))
        with share.answering():
            told = api.get("/api/v1/runs", headers=bearer(secret))
            assert "at most 1" in assert_problem(told, 429, "rate-limited")["detail"]
            assert int(told.headers["Retry-After"]) >= 1
        assert api.get("/api/v1/runs", headers=bearer(secret)).status_code == 200


def test_streams_of_one_token_leave_room_for_the_others(tmp_path, monkeypatch):
    monkeypatch.setenv("SNC_TOKEN_REQUESTS_AT_ONCE", "3")
    store = f"sqlite:///{tmp_path / 'snc.db'}"
    secrets = [
        snc("token", "create", name, "--scope=admin", "--store", store).stdout.strip()
        for name in ("greedy", "modest")
    ]
    with serving(tmp_path / "snc.db", free_port(0)) as url:
        greedy, modest = (
            httpx.Client(base_url=url, headers=bearer(secret), timeout=20) for secret in secrets
        )
        with greedy, modest:
            assert greedy.post("/api/v1/runs", json={"run": "r"}).status_code == 201
            streams = [
                greedy.send(greedy.build_request("GET", "/api/v1/runs/r/stream"), stream=True)
                for _ in range(4)
            ]
            assert [told.status_code for told in streams] == [200, 200, 200, 429]
            assert greedy.get("/api/v1/runs").status_code == 429
            assert modest.get("/api/v1/runs").status_code == 200
            for told in streams:
                told.close()
            eventually(lambda: greedy.get("/api/v1/runs").status_code == 200)


@pytest.fixture
def readers(tmp_path, monkeypatch):
    """A service whose heatmaps take as long as a test says, and the secrets of two tokens."""
    settings = settings_in(tmp_path, reads_at_once=3, token_reads_at_once=2)
    with serving_app(settings) as api:
        secrets = []
        for name in ("greedy", "modest"):
            given = {"project": None, "author": "x", "now": START, "expires_at": None}
            token, secret = make_token(name, ["admin"], **given)
            api.service.store.tokens.add(token)
            secrets.append(secret)
        api.wait_for(api.service.tokens.refresh, now=True)
        api.post("/api/v1/runs", json={"run": "r"}, headers=bearer(secrets[0]))
        go_on, reading = threading.Event(), []
        original = api.service.store.histories.latest

        def slow(run):
            reading.append(run)
            assert go_on.wait(30)
            return original(run)

        monkeypatch.setattr(api.service.store.histories, "latest", slow)
        yield api, secrets, reading, go_on


def test_reads_of_one_token_wait_for_each_other_and_for_nobody_else(readers):
    api, (greedy, modest), reading, go_on = readers
    path = "/api/v1/runs/r/heatmap"
    first = [api.start("GET", path, headers=bearer(greedy)) for _ in range(20)]
    eventually(lambda: len(reading) == 2)
    # What reads little goes on, for both; a read of the other token has a place.
    assert api.get("/api/v1/runs", headers=bearer(greedy)).status_code == 200
    told = api.post("/api/v1/runs", json={"run": "s"}, headers=bearer(modest))
    assert told.status_code == 201
    second = [api.start("GET", path, headers=bearer(modest)) for _ in range(2)]
    eventually(lambda: len(reading) == 3)  # of all of them so many
    assert api.service.reading.borrowed_tokens == 3
    go_on.set()
    assert {each.result(30).status_code for each in first + second} == {200}
    assert len(reading) == 22
    assert api.service.reading.borrowed_tokens == 0


def test_a_read_that_is_refused_or_fails_gives_its_place_back(readers):
    api, (greedy, _), _, go_on = readers
    go_on.set()
    for path in ("/api/v1/runs/none/heatmap", "/api/v1/runs/r/heatmap?points=0"):
        for _ in range(5):
            assert api.get(path, headers=bearer(greedy)).status_code in (404, 422)
    assert api.service.reading.borrowed_tokens == 0


def test_streams_of_one_token_are_bounded_apart_from_its_requests():
    share = Share(LIMITS, lambda: 0.0)
    share.check_streams()
    share.streams = 1
    with pytest.raises(Problem, match="at most 1") as refused:
        share.check_streams()
    assert refused.value.status_code == 429
