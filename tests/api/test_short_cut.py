"""The short cut of binary batches: the framework's answers, without the framework."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
from api_cases import START, batch_of, register, serving_app, settings_in, table_of

from snc_service.api.ingest import fast_path
from snc_service.api.ingest.batches import fingerprint
from snc_service.auth import make_token
from snc_service.wire import MAX_STEP, MEDIA_TYPE, encode

TABLE = table_of("a", "b")
PATH = "/api/v1/runs/r/batches"
BATCH = batch_of(TABLE, sigma=[[1.0, 2.0]])
LONG_WAY = f"{MEDIA_TYPE}; way=long"  # the same type, spelt as the framework alone understands it


@pytest.fixture
def api(tmp_path):
    with serving_app(settings_in(tmp_path), raise_app_exceptions=False) as opened:
        register(opened, TABLE)
        yield opened


@pytest.fixture
def taken(monkeypatch):
    """Whether each request that was acknowledged took the short cut."""
    found = []
    real = fast_path.acknowledged

    async def noted(*arguments, **options):
        found.append(True)
        return await real(*arguments, **options)

    monkeypatch.setattr(fast_path, "acknowledged", noted)
    return found


def both_ways(api, body, path=PATH, **headers):
    """Send twice; return status, headers and body of both answers, as far as they may agree."""
    found = []
    for kind in (MEDIA_TYPE, LONG_WAY):
        told = api.post(path, content=body, headers={"Content-Type": kind, **headers})
        shown = {name: value for name, value in told.headers.items() if name != "x-request-id"}
        assert told.headers["X-Request-ID"]
        found.append((told.status_code, shown, told.content))
    return found


def secret(api, *scopes, project=None):
    token, text = make_token(
        f"t{len(api.service.store.tokens.all())}",
        scopes,
        project=project,
        author="x",
        now=START,
        expires_at=None,
    )
    api.service.store.tokens.add(token)
    return f"Bearer {text}"


@pytest.mark.parametrize(
    ("body", "path", "status"),
    [
        (encode(BATCH), PATH, 200),  # a duplicate, either way
        (encode(batch_of(TABLE, seq=7, sigma=[[1, 2]])), PATH, 409),
        (encode(batch_of(TABLE, sigma=[[3, 4]])), PATH, 409),
        (encode(batch_of(table_of("x"), seq=1, sigma=[[1]])), PATH, 409),
        (encode(BATCH), "/api/v1/runs/nobody/batches", 404),
        (b"no batch", PATH, 400),
        (b"", PATH, 400),
        (encode(BATCH)[:-1], PATH, 400),
    ],
)
def test_both_ways_give_the_same_answer(api, taken, body, path, status):
    api.send(BATCH)
    taken.clear()
    short, long = both_ways(api, body, path)
    assert short == long
    assert short[0] == status
    assert taken == [True]


@pytest.mark.parametrize(
    ("scopes", "project", "status"),
    [(("ingest",), None, 200), (("ingest",), "default", 200), (("read",), None, 403),
     (("ingest",), "other", 404)],
)  # fmt: skip
def test_the_same_tokens_may_pass(api, scopes, project, status):
    api.send(BATCH)
    bearer = secret(api, *scopes, project=project)
    api._portal.call(lambda: api.service.tokens.refresh(now=True))
    short, long = both_ways(api, encode(BATCH), Authorization=bearer)
    assert short == long
    assert short[0] == status
    missing, also_missing = both_ways(api, encode(BATCH))
    assert missing == also_missing
    assert missing[0] == 401


def test_what_a_client_says_of_itself_counts_on_both(api):
    policy = {"entries": [{"pattern": "*", "threshold": 2.0, "action": "observe"}]}
    assert api.put("/api/v1/runs/r/policy", json=policy).status_code == 200
    api.send(BATCH)
    short, long = both_ways(api, encode(BATCH), **{"SNC-Policy-Version": "0"})
    assert short == long
    assert b'"entries"' in short[2]
    short, long = both_ways(api, encode(BATCH), **{"SNC-Policy-Version": "1"})
    assert short == long
    assert b'"entries"' not in short[2]


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        (f"{PATH}?x=1", {}),
        (PATH, {"SNC-Policy-Version": "-1"}),
        (PATH, {"SNC-Policy-Version": str(MAX_STEP + 1)}),
        (PATH, {"SNC-Commands-Seen": "one"}),
        (PATH, {"Content-Type": "text/plain"}),
        (PATH, {"Content-Encoding": "gzip"}),
        ("/api/v1/runs/-r/batches", {}),
        ("/api/v1/runs/r%0A/batches", {}),
        (f"{PATH}/", {}),
    ],
)
def test_what_is_unusual_goes_the_long_way(api, taken, path, headers):
    told = api.post(path, content=encode(BATCH), headers={"Content-Type": MEDIA_TYPE, **headers})
    assert 200 <= told.status_code < 500
    assert taken == []


@pytest.mark.parametrize(
    "twice",
    [("Content-Type", MEDIA_TYPE), ("SNC-Policy-Version", "1"), ("SNC-Commands-Seen", "1")],
)
def test_a_header_that_comes_twice_goes_the_long_way(api, taken, twice):
    headers = dict([("Content-Type", MEDIA_TYPE), twice])
    assert api.post(PATH, content=encode(BATCH), headers=headers).status_code == 200
    assert taken == [True]
    told = api.post(PATH, content=encode(BATCH), headers=[*headers.items(), twice])
    assert 200 <= told.status_code < 500
    assert taken == [True]


def test_a_batch_on_the_short_cut_is_logged_and_counted_under_its_route(api, caplog):
    caplog.set_level(logging.INFO, "snc.access")
    assert api.send(BATCH).status_code == 200
    (line,) = (record.request for record in caplog.records if record.name == "snc.access")
    assert (line["route"], line["status"]) == ("/api/v1/runs/{run}/batches", 200)
    metrics = api.get("/metrics").text
    assert 'route="/api/v1/runs/{run}/batches"' in metrics
    assert 'snc_ingest_batches_total{outcome="accepted"} 1.0' in metrics


def test_a_draining_service_takes_no_batch_on_either_way(api):
    api.service.draining = True
    short, long = both_ways(api, encode(BATCH))
    assert short == long
    assert short[0] == 503


def test_a_path_below_a_root_is_no_path_of_the_fast_path():
    scope = {
        "type": "http",
        "path": PATH,
        "query_string": b"",
        "headers": [(b"content-type", fast_path._TYPE)],
    }
    assert fast_path._plain(scope) is not None
    assert fast_path._plain(scope | {"root_path": ""}) is not None
    assert fast_path._plain(scope | {"root_path": "/snc"}) is None


def test_batches_that_differ_in_anything_but_counts_have_other_fingerprints():
    batch = replace(
        BATCH, times=(1.0,), scalars=("loss",), scalar_values=np.ones((1, 1), np.float32)
    )
    known = fingerprint(batch)
    changes = {
        "layers": table_of("a", "c").hash,
        "steps": (batch.steps[0] + 1,),
        "metrics": ("threshold",),
        "scalars": ("lr",),
        "times": (1.5,),
        "attempt": 1,
        "values": batch.values + 1,
        "scalar_values": batch.scalar_values + 1,
    }
    for name, value in changes.items():
        assert fingerprint(replace(batch, **{name: value})) != known, name
    assert fingerprint(replace(batch, skipped=1, dropped=1)) == known
