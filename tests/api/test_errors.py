"""Errors: one shape for all, whoever raises them, and nothing of our inside in them."""

import asyncio

import httpx
import pytest
from api_cases import PROBLEM, assert_problem, serving_app, settings_in
from fastapi import FastAPI

from snc_service import problems
from snc_service.problems import KINDS, Problem, from_store, from_wire
from snc_service.store import types
from snc_service.store.collections.histories import Histories
from snc_service.wire import WireError

DAMAGE = ("r1", "tile 0/1/0/2/0", ("sigma",), ("l32", "l47"), 16, (0, 1023))


@pytest.fixture
def api(tmp_path):
    with serving_app(settings_in(tmp_path)) as opened:
        yield opened


@pytest.mark.parametrize("path", ["/nothing", "/api/v1/", "/api/v1/runs/", "/api/v2/runs", "/UI"])
def test_an_unknown_url_is_404_as_a_problem(api, path):
    assert_problem(api.get(path), 404, "not-found")


@pytest.mark.parametrize("method", ["PATCH", "PUT", "DELETE", "TRACE"])
def test_a_method_that_is_not_there_is_405_and_says_which_are(api, method):
    told = api.request(method, "/api/v1/runs")
    assert_problem(told, 405, "method-not-allowed")
    assert told.headers["Allow"] == "GET, HEAD, POST"


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (types.RunUnknown("no run"), 404, "run-unknown"),
        (types.LayerUnknown("no layer"), 404, "layer-unknown"),
        (types.LayerTableUnknown("no table"), 409, "layer-table-unknown"),
        (types.LayerTableMismatch("3 not 2"), 422, "invalid"),
        (types.SequenceGap(3, 7), 409, "sequence-gap"),
        (types.SequenceConflict("other content"), 409, "sequence-conflict"),
        (types.VersionConflict("policy", 4), 412, "precondition-failed"),
        (types.StoreUnavailable("locked"), 503, "store-unavailable"),
        (types.StoreFull("no room"), 503, "storage-full"),
        (types.RunFull("layers", "run_layers", 3, "layers"), 422, "run-full"),
        (types.StoreDamaged(*DAMAGE), 500, "store-damaged"),
        (types.StoreError("what?"), 500, "internal"),
    ],
)
def test_every_refusal_of_the_store_has_its_status(error, status, kind):
    problem = from_store(error)
    assert (problem.status_code, problem.kind) == (status, kind)


def test_every_error_of_the_store_is_known():
    def below(kind):
        return {kind}.union(*(below(sub) for sub in kind.__subclasses__()))

    made = {
        types.SequenceGap: (1, 2),
        types.VersionConflict: ("policy", 1),
        types.BoundReached: ("layers", "run_layers", 3, "layers"),
        types.ServiceFull: ("tokens", "tokens", 3, "name"),
        types.RunFull: ("layers", "run_layers", 3, "layers"),
        types.StoreDamaged: DAMAGE,
    }
    for kind in below(types.StoreError) - {types.StoreError}:
        error = kind(*made.get(kind, ("told",)))
        assert from_store(error).kind != "internal", kind


@pytest.mark.parametrize("field", ["body", "header"])
def test_broken_framing_is_400_and_all_else_422(field):
    assert from_wire(WireError(field, "must be otherwise")).status_code == 400
    assert from_wire(WireError("steps", "must be otherwise")).status_code == 422


def test_a_defect_is_500_and_tells_nothing_of_itself():
    app = FastAPI()
    problems.install(app)

    @app.get("/")
    def broken() -> None:
        raise KeyError("secret detail")

    async def ask():
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.get("/")

    told = asyncio.run(ask())
    assert_problem(told, 500, "internal")
    assert "secret" not in told.text


def test_what_is_to_be_tried_again_says_when():
    for kind, (status, _, _) in KINDS.items():
        headers = Problem(kind, "told").response().headers
        assert ("Retry-After" in headers) is (status in (429, 503)), kind


def test_a_detail_is_shortened_whatever_is_sent(api):
    told = api.get("/api/v1/runs", params={"state": "x" * 5000})
    assert_problem(told, 422, "invalid", "state")
    assert len(told.content) < 1000
    told = api.get("/" + "x" * 5000)
    assert len(told.content) < 1000


def test_markup_in_a_request_stays_text(api):
    told = api.get("/<script>alert(1)</script>")
    assert told.headers["Content-Type"] == PROBLEM
    assert told.headers["X-Content-Type-Options"] == "nosniff"


def test_the_type_of_a_problem_leads_to_its_meaning(api):
    for kind, (status, title, meaning) in KINDS.items():
        told = api.get(f"/problems/{kind}").json()
        assert told == {
            "type": f"/problems/{kind}",
            "title": title,
            "status": status,
            "meaning": meaning,
        }
    assert_problem(api.get("/problems/none"), 404, "not-found")


@pytest.mark.parametrize(
    ("method", "path", "body", "detail"),
    [
        (
            "GET",
            "/api/v1/runs?limit=501",
            None,
            "limit must be less than or equal to 500, got '501'",
        ),
        ("GET", "/api/v1/runs?page=2", None, "page is not known here: leave it out"),
        ("GET", "/api/v1/runs/r/history", None, "layer must be given"),
        (
            "GET",
            "/api/v1/runs/r/heatmap?from_step=5&to_step=3",
            None,
            "to_step must be at least from_step (5), got 3",
        ),
        (
            "POST",
            "/api/v1/runs",
            b'{"config": {"a": NaN}}',
            "config must be JSON with finite numbers",
        ),
        (
            "POST",
            "/api/v1/runs",
            b'{"name": "a\\u0007"}',
            r"name must not contain control characters, got 'a\x07'",
        ),
        ("POST", "/api/v1/runs", b"[1]", "body must be an object, got [1]"),
        (
            "POST",
            "/api/v1/runs/r/batches",
            b'{"writer": "w", "seq": "0", "steps": [1]}',
            "seq must be a valid integer, got '0'",
        ),
    ],
)
def test_a_refusal_is_one_sentence_of_what_must_be_and_what_was(api, method, path, body, detail):
    options = {"content": body, "headers": {"Content-Type": "application/json"}} if body else {}
    told = api.request(method, path, **options)
    assert (told.status_code, told.json()["detail"]) == (422, detail)


def test_a_problem_of_damage_says_where(api, monkeypatch):
    def damaged(*_, **__):
        raise types.StoreDamaged(*DAMAGE)

    monkeypatch.setattr(Histories, "of_layers", damaged)
    body = {"run": "r1"}
    assert api.post("/api/v1/runs", json=body).status_code == 201
    told = assert_problem(
        api.get("/api/v1/runs/r1/layers/l40/history", params={"metric": "sigma"}),
        500,
        "store-damaged",
    )
    assert (told["run"], told["layers"], told["steps"], told["metrics"]) == (
        "r1", ["l32", "l47"], [0, 1023], ["sigma"]
    )  # fmt: skip
    assert "snc db verify" in told["detail"]
