"""Requests of one token under way: bounded, streams included, and nobody else's business."""

import httpx
import pytest
from api_cases import START, assert_problem, serving_app, settings_in
from test_cli import snc
from test_prometheus import eventually

from snc_client.demo.service import free_port, serving
from snc_service.api.ingest.body import _Loan
from snc_service.api.security.rate_limit import Share, Shares
from snc_service.api.state import Budget
from snc_service.auth import ANYBODY, access_of, make_token
from snc_service.problems import Problem


def bearer(secret):
    return {"Authorization": f"Bearer {secret}"}


def test_a_share_holds_as_many_bytes_as_its_limit_and_no_more():
    share = Share(1e6, 100, 2, lambda: 0.0)
    share.take(60)
    share.take(40)
    with pytest.raises(Problem, match="at most 100 bytes"):
        share.take(1)
    assert share.held == 100
    share.give_back(40)
    share.take(40)


def test_bytes_that_the_service_has_no_room_for_are_not_charged_to_the_token_either():
    share, budget = Share(1e6, 100, 2, lambda: 0.0), Budget(50)
    loan = _Loan(budget, share)
    loan.take(30)
    with pytest.raises(Problem, match="already being read"):
        loan.take(30)
    assert (share.held, budget.held) == (30, 30)
    loan.give_back()
    assert (share.held, budget.held) == (0, 0)


def test_a_share_counts_what_is_under_way_and_forgets_what_is_over():
    share = Share(1e6, 100, 2, lambda: 0.0)
    with share.answering():
        with share.answering(), pytest.raises(Problem) as refused, share.answering():
            pass
        assert refused.value.status_code == 429
        assert share.under_way == 1
    with pytest.raises(ZeroDivisionError), share.answering():
        raise ZeroDivisionError
    assert share.under_way == 0


def test_where_nobody_is_asked_nobody_is_limited():
    assert Shares(1.0, 1, 1).of(ANYBODY) is None


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
