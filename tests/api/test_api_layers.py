"""The newest values of all layers: exact, in any order, page by page, worst never hidden."""

import numpy as np
import pytest
from api_cases import RUN, assert_problem, batch_of, register, serving_app, settings_in, table_of

from snc_service.wire import ABSENT

# Ratios: a 0.5, b none (no threshold), c not finite, d 1.5, e never measured, f 0.25.
TABLE = table_of("a", "b", "c", "d", "e", "f/g")
SIGMA = [[1.0, 9.0, np.nan, 3.0, ABSENT, 0.5]]
THRESHOLD = [[2.0, ABSENT, 2.0, 2.0, 2.0, 2.0]]


@pytest.fixture
def api(tmp_path):
    with serving_app(settings_in(tmp_path)) as opened:
        register(opened, TABLE)
        opened.send(batch_of(TABLE, steps=(7,), sigma=SIGMA, threshold=THRESHOLD))
        yield opened


def order(api, sort):
    told = api.get(f"{RUN}/layers", params={"sort": sort}).json()
    return [item["layer"] for item in told["items"]]


def test_the_worst_ratio_comes_first_and_what_is_not_finite_before_it(api):
    assert order(api, "-ratio") == ["c", "d", "a", "f/g", "b", "e"]
    assert [item["layer"] for item in api.get(f"{RUN}/layers").json()["items"]] == order(
        api, "-ratio"
    )


def test_every_other_order_can_be_asked_for(api):
    assert order(api, "ratio") == ["f/g", "a", "d", "c", "b", "e"]
    assert order(api, "-sigma") == ["c", "b", "d", "a", "f/g", "e"]
    assert order(api, "sigma") == ["f/g", "a", "d", "b", "c", "e"]
    assert order(api, "model") == ["a", "b", "c", "d", "e", "f/g"]


def test_an_item_has_all_that_is_known_of_a_layer(api):
    told = api.get(f"{RUN}/layers", params={"sort": "model"}).json()
    assert told["total"] == 6
    a, b, c, _, e, _ = told["items"]
    assert a == {
        "layer": "a",
        "kind": "linear",
        "shape": [4, 3],
        "step": 7,
        "sigma": 1.0,
        "sigma_upper": None,
        "threshold": 2.0,
        "scale": None,
        "residual": None,
        "frobenius": None,
        "stable_rank": None,
        "grad_norm": None,
        "update_norm": None,
        "ratio": 0.5,
        "nonfinite": [],
        "metrics": {},
    }
    assert (b["threshold"], b["ratio"], b["nonfinite"]) == (None, None, [])
    assert (c["sigma"], c["ratio"], c["nonfinite"]) == (None, None, ["sigma"])
    assert (e["sigma"], e["ratio"], e["nonfinite"]) == (None, None, [])


def test_numbers_come_back_as_they_were_sent(api):
    sent = [1.1, 0.001, 123456.7, 3.4e38, 1e-38, 16777216.0]
    api.send(batch_of(TABLE, 1, (8,), sigma=[sent]))
    told = api.get(f"{RUN}/layers", params={"sort": "model"}).json()
    assert [item["sigma"] for item in told["items"]] == sent


def test_metrics_of_the_users_own_are_shown_apart(api):
    api.send(batch_of(TABLE, 1, (8,), layer=[[1, 2, 3, 4, 5, ABSENT]], stable_rank=[[2] * 6]))
    told = api.get(f"{RUN}/layers", params={"sort": "model"}).json()["items"]
    assert (told[0]["layer"], told[0]["metrics"], told[0]["stable_rank"]) == ("a", {"layer": 1}, 2)
    assert told[5]["metrics"] == {}


@pytest.mark.parametrize("sort", ["-ratio", "ratio", "-sigma", "sigma", "model"])
@pytest.mark.parametrize("limit", [1, 2, 5, 6])
def test_pages_together_are_the_whole_list(api, sort, limit):
    seen, cursor = [], None
    for _ in range(7):
        params = {"sort": sort, "limit": limit} | ({"cursor": cursor} if cursor else {})
        page = api.get(f"{RUN}/layers", params=params).json()
        assert len(page["items"]) <= limit
        seen += [item["layer"] for item in page["items"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert seen == order(api, sort)


def test_values_that_change_between_two_pages_never_break_the_list(api):
    page = api.get(f"{RUN}/layers", params={"limit": 2}).json()
    api.send(batch_of(TABLE, 1, (8,), sigma=[[1, 1, 1, 1, 1, 1]], threshold=[[2] * 6]))
    told = api.get(f"{RUN}/layers", params={"limit": 500, "cursor": page["next"]})
    assert told.status_code == 200
    assert told.json()["next"] is None


def test_unchanged_values_are_304(api):
    tag = api.get(f"{RUN}/layers").headers["ETag"]
    assert api.get(f"{RUN}/layers", headers={"If-None-Match": tag}).status_code == 304
    told = api.get(f"{RUN}/layers?sort=model", headers={"If-None-Match": tag})
    assert told.status_code == 200


def test_a_run_without_a_batch_has_an_empty_list(api):
    api.post("/api/v1/runs", json={"run": "new"})
    told = api.get("/api/v1/runs/new/layers").json()
    assert told == {"items": [], "next": None, "total": 0}


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("sort=step", "sort"),
        ("limit=0", "limit"),
        ("limit=501", "limit"),
        ("cursor=WyJhIl0", "cursor"),
        ("cursor=W251bGwsMSwyXQ", "cursor"),
        ("order=up", "order"),
    ],
)
def test_a_question_that_is_not_valid_is_422(api, query, field):
    assert_problem(api.get(f"{RUN}/layers?{query}"), 422, "invalid", field)


def test_without_thresholds_the_layer_that_grew_most_comes_first(tmp_path):
    table = table_of("a", "b", "c", "d", "e")
    with serving_app(settings_in(tmp_path)) as opened:
        register(opened, table)
        # d breaks, c has no sigma but a norm, e starts at zero; b is largest, and grew least.
        sigma = [[2.0, 9.0, ABSENT, 1.0, 0.0], [4.0, 9.0, ABSENT, np.inf, 0.5]]
        norm = [[3.0, 9.0, 1.0, 2.0, 0.0], [3.0, 9.0, 3.0, 2.0, 1.0]]
        opened.send(batch_of(table, steps=(1, 2), sigma=sigma, frobenius=norm))
        assert order(opened, "-ratio") == ["d", "c", "a", "b", "e"]
        # A layer that is measured for the first time has a first value from then on.
        later = [[8.0, 18.0, ABSENT, 1.0, 5.0]]
        opened.send(batch_of(table, 1, (3,), sigma=later, frobenius=[[3.0, 9.0, np.nan, 2, 1]]))
        assert order(opened, "-ratio") == ["c", "e", "a", "b", "d"]
        page, rest = {"sort": "-ratio", "limit": 2}, []
        while page.get("cursor", "") is not None:
            told = opened.get(f"{RUN}/layers", params=page).json()
            rest += [item["layer"] for item in told["items"]]
            page["cursor"] = told["next"]
        assert rest == ["c", "e", "a", "b", "d"]
