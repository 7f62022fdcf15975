"""The heatmap: the largest value of each layer and bucket, and sigma over its threshold."""

import numpy as np
import pytest
from api_cases import RUN, assert_problem, batch_of, register, serving_app, settings_in, table_of

from snc_service.wire import ABSENT

TABLE = table_of("a", "b", "c", "d", "e")


@pytest.fixture
def api(tmp_path):
    with serving_app(settings_in(tmp_path)) as opened:
        register(opened, TABLE)
        yield opened


def heatmap(api, **params):
    told = api.get(f"{RUN}/heatmap", params=params)
    assert told.status_code == 200, told.text
    return told.json()


def test_rows_are_layers_in_model_order_and_columns_are_steps(api):
    sigma = [[1, 2, 3, 4, 5], [6, 7, np.nan, 9, ABSENT]]
    api.send(batch_of(TABLE, steps=(10, 11), sigma=sigma))
    assert heatmap(api) == {
        "run": "r",
        "metric": "sigma",
        "layers": ["a", "b", "c", "d", "e"],
        "rows": [
            {"first": i, "last": i, "layers": 1, "worst": name} for i, name in enumerate("abcde")
        ],
        "total": 5,
        "total_rows": 5,
        "bucket_steps": 1,
        "steps": [10, 11],
        "max": [[1, 6], [2, 7], [3, None], [4, 9], [5, None]],
        "nonfinite": [[0, 0], [0, 0], [0, 1], [0, 0], [0, 0]],
    }


def test_a_bucket_shows_its_largest_value(api):
    rng = np.random.default_rng(0)
    sigma = rng.uniform(1, 2, (100, 5)).astype(np.float32)
    sigma[63, 2] = 40
    api.send(batch_of(TABLE, steps=tuple(range(100)), sigma=sigma.tolist()))
    told = heatmap(api, points=10)
    assert len(told["steps"]) <= 10
    width = told["bucket_steps"]
    expected = [[sigma[s : s + width, i].max() for s in told["steps"]] for i in range(5)]
    np.testing.assert_allclose(np.array(told["max"]), np.array(expected), rtol=5e-7)


def test_layers_beyond_the_rows_share_them_and_none_is_lost(api):
    api.send(batch_of(TABLE, sigma=[[1, 9, 3, 4, 5]]))
    told = heatmap(api, layers=2)
    assert len(told["layers"]) == 2
    assert [row[0] for row in told["max"]] == [9, 5]


def test_a_shared_row_names_its_worst_layer_and_expands_to_its_own_rows(api):
    api.send(batch_of(TABLE, sigma=[[1, 9, 3, np.nan, 50]]))
    told = heatmap(api, layers=2)
    assert (told["total"], told["total_rows"]) == (5, 5)
    assert [row["worst"] for row in told["rows"]] == ["b", "d"]  # d is not finite: worse than 50
    _, second = told["rows"]
    assert (second["first"], second["last"], second["layers"]) == (3, 4, 2)
    inside = heatmap(api, layers=2, from_row=second["first"], to_row=second["last"])
    assert inside["layers"] == ["d", "e"]
    assert inside["max"] == [[None], [50]]
    assert inside["total"] == 5


def test_a_pattern_or_a_part_of_the_name_chooses_the_layers(api):
    table = table_of("attn.qkv", "attn.out", "MLP.up")
    register(api, table, run="m")
    api.send(batch_of(table, sigma=[[1, 2, 3]]), run="m")

    def layers(match):
        told = api.get("/api/v1/runs/m/heatmap", params={"match": match}).json()
        listed = api.get("/api/v1/runs/m/layers", params={"match": match, "sort": "model"}).json()
        assert [item["layer"] for item in listed["items"]] == told["layers"]
        assert listed["total"] == told["total"] == len(told["layers"])
        return told["layers"]

    assert layers("attn.*") == ["attn.qkv", "attn.out"]
    assert layers("mlp") == ["MLP.up"]
    assert layers("*[qk]kv") == ["attn.qkv"]
    assert layers("nothing") == []
    assert_problem(api.get(f"{RUN}/heatmap?match={'*a' * 9}"), 422, "invalid", "match")


def test_experts_share_a_row_of_the_same_layer(api):
    names = [f"l.{n}.{part}" for n in ("experts.0", "experts.1", "experts.12") for part in "ab"]
    table = table_of("l.gate", *names)
    register(api, table, run="moe")
    api.send(batch_of(table, sigma=[[7, 1, 2, 9, 4, 5, 6]]), run="moe")
    told = api.get("/api/v1/runs/moe/heatmap", params={"experts": True}).json()
    assert told["layers"] == ["l.gate", "l.experts.*.a", "l.experts.*.b"]
    assert told["max"] == [[7], [9], [6]]
    assert [row["worst"] for row in told["rows"]] == ["l.gate", "l.experts.1.a", "l.experts.12.b"]
    assert (told["total"], told["total_rows"]) == (7, 3)
    # The label is the pattern that finds the experts.
    match = {"match": told["layers"][1]}
    assert api.get("/api/v1/runs/moe/heatmap", params=match).json()["layers"] == names[::2]


def test_the_ratio_divides_by_the_threshold_in_force(api):
    sigma = [[1, 2, 3, np.nan, ABSENT], [2, 2, 3, 4, 5]]
    threshold = [[2, ABSENT, 2, 2, 2], [4, ABSENT, 2, 2, 2]]
    api.send(batch_of(TABLE, steps=(0, 1), sigma=sigma, threshold=threshold))
    told = heatmap(api, metric="ratio")
    assert told["layers"] == ["a", "b", "c", "d", "e"]
    assert told["max"] == [[0.5, 0.5], [None, None], [1.5, 1.5], [None, 2], [None, 2.5]]
    assert told["nonfinite"] == [[0, 0], [0, 0], [0, 0], [1, 0], [0, 0]]


def test_a_threshold_reported_now_and_then_holds_until_the_next(api):
    api.send(batch_of(TABLE, 0, (0,), sigma=[[1] * 5], threshold=[[2] * 5]))
    api.send(batch_of(TABLE, 1, (1, 2), sigma=[[3] * 5, [4] * 5]))
    api.send(batch_of(TABLE, 2, (3,), sigma=[[4] * 5], threshold=[[8] * 5]))
    assert heatmap(api, metric="ratio")["max"][0] == [0.5, 1.5, 2, 0.5]


def test_layers_that_share_a_row_show_their_largest_ratio(api):
    """Not the largest sigma over the smallest threshold: those belong to different layers."""
    api.send(batch_of(TABLE, sigma=[[100, 1, 3, 1, 1]], threshold=[[200, 2, 2, 2, 4]]))
    told = heatmap(api, metric="ratio", layers=3)
    assert told["max"] == [[0.5], [1.5], [0.25]]
    assert told["layers"] == heatmap(api, layers=3)["layers"]


def test_the_ratio_of_a_run_without_thresholds_is_empty_of_values(api):
    api.send(batch_of(TABLE, sigma=[[1] * 5]))
    assert heatmap(api, metric="ratio")["max"] == [[None]] * 5


def test_the_ratio_after_is_what_a_rescale_left(api):
    sigma = [[1, 4, 4, np.nan, 4], [6, 1, 3, 4, 4]]
    scale = [[1, 0.5, ABSENT, 1, 1], [0.25, 1, ABSENT, 0.5, ABSENT]]
    api.send(batch_of(TABLE, steps=(0, 1), sigma=sigma, threshold=[[2] * 5] * 2, scale=scale))
    assert heatmap(api, metric="ratio_after")["max"] == [
        [0.5, 0.75],
        [1, 0.5],
        [2, 1.5],  # never rescaled: observed only
        [None, 1],
        [2, 2],
    ]


def test_a_bucket_with_a_rescale_in_it_is_held_and_one_without_is_not(api):
    steps = 100
    sigma = np.tile([4, 4, 1, 4, 1], (steps, 1)).astype(float)
    scale = np.ones((steps, 5))
    sigma[::7, 2], scale[::7, 2] = 4, 0.5
    scale[:, 3] = 0.25
    api.send(
        batch_of(
            TABLE,
            steps=tuple(range(steps)),
            sigma=sigma.tolist(),
            threshold=[[2] * 5] * steps,
            scale=scale.tolist(),
        )
    )
    told = heatmap(api, metric="ratio_after", points=10)
    assert told["bucket_steps"] > 7
    assert [set(row) for row in told["max"]] == [{2}, {2}, {1}, {0.5}, {0.5}]


def test_a_run_without_a_batch_is_empty(api):
    for metric in ("sigma", "ratio", "ratio_after", "residual"):
        told = heatmap(api, metric=metric)
        assert (told["layers"], told["steps"], told["max"]) == ([], [], [])


def test_an_unchanged_heatmap_is_304(api):
    api.send(batch_of(TABLE, sigma=[[1] * 5]))
    tag = api.get(f"{RUN}/heatmap").headers["ETag"]
    assert api.get(f"{RUN}/heatmap", headers={"If-None-Match": tag}).status_code == 304


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("points=0", "points"),
        ("points=1001", "points"),
        ("points=-5", "points"),
        ("layers=0", "layers"),
        ("layers=1001", "layers"),
        ("layers=abc", "layers"),
        ("metric=1", "metric"),
        ("cols=3", "cols"),
    ],
)
def test_a_question_that_is_not_valid_is_422(api, query, field):
    assert_problem(api.get(f"{RUN}/heatmap?{query}"), 422, "invalid", field)
