"""History: exact while it fits, buckets that hide no spike, any layer name, unchanged is 304."""

from urllib.parse import quote

import numpy as np
import pytest
from api_cases import RUN, assert_problem, batch_of, register, serving_app, settings_in, table_of

from snc_service.wire import ABSENT

NAMES = ("a/b", "x/history", "history", "ü space", 'quote"<b>&', "100%", "a%2Fb", "..", "q?x#y")
TABLE = table_of(*NAMES)


@pytest.fixture
def api(tmp_path):
    with serving_app(settings_in(tmp_path)) as opened:
        register(opened, TABLE)
        yield opened


def values(steps):
    """Return [steps][layers]: layer i has i + step / 8, exact in float32 and short in decimals."""
    return [[i + step / 8 for i in range(len(NAMES))] for step in steps]


@pytest.mark.parametrize("name", NAMES)
def test_a_layer_is_found_whatever_its_name(api, name):
    api.send(batch_of(TABLE, steps=(1, 2), sigma=values((1, 2))))
    told = api.get(f"{RUN}/history", params={"layer": name}).json()
    i = NAMES.index(name)
    assert [each["layer"] for each in told["layers"]] == [name]
    assert told["layers"][0]["mean"] == [i + 1 / 8, i + 2 / 8]
    if name != "..":  # a path segment that URL libraries take away: hence the form above
        told = api.get(f"{RUN}/layers/{quote(name, safe='')}/history").json()
        assert (told["layer"], told["mean"]) == (name, [i + 1 / 8, i + 2 / 8])


def test_a_slash_in_a_name_may_be_escaped_or_not(api):
    api.send(batch_of(TABLE, sigma=values((0,))))
    escaped = api.get(f"{RUN}/layers/x%2Fhistory/history").json()
    assert escaped == api.get(f"{RUN}/layers/x/history/history").json()
    assert escaped["layer"] == "x/history"


def test_values_are_exact_while_they_fit_and_bucketed_beyond(api):
    steps = tuple(range(0, 100))
    sigma = np.ones((100, len(NAMES)), np.float32)
    sigma[37, 0] = 50  # a spike of one step
    api.send(batch_of(TABLE, steps=steps, sigma=sigma.tolist()))
    path = f"{RUN}/layers/{quote(NAMES[0], safe='')}/history"
    exact = api.get(path, params={"points": 100}).json()
    assert (exact["bucket_steps"], exact["steps"]) == (1, list(steps))
    assert exact["mean"] == exact["min"] == exact["max"] == sigma[:, 0].tolist()
    coarse = api.get(path, params={"points": 10}).json()
    assert coarse["bucket_steps"] >= 10
    assert len(coarse["steps"]) <= 10
    assert max(coarse["max"]) == 50
    assert set(coarse["min"]) == {1}
    assert all(step % coarse["bucket_steps"] == 0 for step in coarse["steps"])


def test_a_window_of_steps_can_be_asked_for(api):
    api.send(batch_of(TABLE, steps=tuple(range(20)), sigma=values(range(20))))
    told = api.get(
        f"{RUN}/history", params={"layer": "history", "from_step": 5, "to_step": 8}
    ).json()
    assert told["steps"] == [5, 6, 7, 8]


def test_several_layers_share_their_steps_in_the_order_asked_for(api):
    sigma = values((1, 2))
    sigma[0][2] = ABSENT
    sigma[1][0] = np.inf
    api.send(batch_of(TABLE, steps=(1, 2), sigma=sigma))
    told = api.get(f"{RUN}/history?layer=history&layer=a/b&layer=history").json()
    assert told["steps"] == [1, 2]
    assert told["layers"] == [
        {
            "layer": "history",
            "mean": [None, 2 + 2 / 8],
            "min": [None, 2 + 2 / 8],
            "max": [None, 2 + 2 / 8],
            "nonfinite": [0, 0],
        },
        {
            "layer": "a/b",
            "mean": [1 / 8, None],
            "min": [1 / 8, None],
            "max": [1 / 8, None],
            "nonfinite": [0, 1],
        },
    ]


def test_a_scalar_has_a_history_of_its_own(api):
    scalars = {"loss": [0.5, np.nan], "lr": [0.1, 0.1]}
    api.send(batch_of(TABLE, steps=(1, 2), sigma=values((1, 2)), scalars=scalars))
    told = api.get(f"{RUN}/scalars/loss/history").json()
    assert told == {
        "run": "r",
        "scalar": "loss",
        "bucket_steps": 1,
        "steps": [1, 2],
        "mean": [0.5, None],
        "min": [0.5, None],
        "max": [0.5, None],
        "nonfinite": [0, 1],
    }
    assert api.get(f"{RUN}/scalars/lr/history").json()["mean"] == [0.1, 0.1]


def test_what_was_never_reported_is_empty(api):
    api.send(batch_of(TABLE, sigma=values((0,))))
    assert api.get(f"{RUN}/scalars/nothing/history").json()["steps"] == []
    told = api.get(f"{RUN}/history", params={"layer": "history", "metric": "nothing"}).json()
    assert told["steps"] == []


def test_an_older_attempt_stays_readable(api):
    api.send(batch_of(TABLE, 0, (10, 11), sigma=values((10, 11))))
    api.send(batch_of(TABLE, 1, (10,), sigma=values((500,))))
    params = {"layer": "history"}
    newest = api.get(f"{RUN}/history", params=params).json()
    assert newest["layers"][0]["mean"] == [2 + 500 / 8]
    older = api.get(f"{RUN}/history", params=params | {"attempt": 0}).json()
    assert (older["steps"], older["layers"][0]["mean"]) == (
        [10, 11],
        [2 + 10 / 8, 2 + 11 / 8],
    )
    assert "rewound" in [each["rule"] for each in api.get(f"{RUN}/events").json()["items"]]


@pytest.mark.parametrize(
    "path", ["/history?layer=a/b", "/scalars/loss/history", "/layers/history/history"]
)
def test_unchanged_history_is_304_until_a_batch_lands(api, path):
    tag = api.get(RUN + path).headers["ETag"]
    assert tag.startswith('W/"')
    told = api.get(RUN + path, headers={"If-None-Match": f'"other", {tag}'})
    assert (told.status_code, told.content) == (304, b"")
    api.send(batch_of(TABLE, sigma=values((0,)), scalars={"loss": [1]}))
    told = api.get(RUN + path, headers={"If-None-Match": tag})
    assert told.status_code == 200
    assert told.headers["ETag"] != tag


def test_a_long_answer_is_compressed_for_those_who_read_gzip(api):
    api.send(batch_of(TABLE, steps=tuple(range(500)), sigma=values(range(500))))
    path = f"{RUN}/layers/history/history"
    plain = api.get(path, headers={"Accept-Encoding": "identity"})
    packed = api.get(path, headers={"Accept-Encoding": "gzip"})
    refused = api.get(path, headers={"Accept-Encoding": "gzip;q=0"})
    assert "Content-Encoding" not in plain.headers
    assert packed.headers["Content-Encoding"] == "gzip"
    assert "Content-Encoding" not in refused.headers
    assert plain.json() == packed.json() == refused.json()
    assert "Accept-Encoding" in packed.headers["Vary"]


@pytest.mark.parametrize("layer", ["nobody", "a", "ü", "x" * 200])
def test_an_unknown_layer_is_404(api, layer):
    api.send(batch_of(TABLE, sigma=values((0,))))
    path = f"{RUN}/layers/{quote(layer, safe='')}/history"
    assert_problem(api.get(path), 404, "layer-unknown")
    told = api.get(f"{RUN}/history", params={"layer": [layer, "history"]}).json()
    assert ([one["layer"] for one in told["layers"]], told["without"]) == (["history"], [layer])
    assert_problem(api.get(f"{RUN}/history", params={"layer": [layer]}), 404, "layer-unknown")


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/layers/a/history?points=0", "points"),
        ("/layers/a/history?points=10001", "points"),
        ("/layers/a/history?points=1e3", "points"),
        ("/layers/a/history?from_step=-1", "from_step"),
        ("/layers/a/history?from_step=9007199254740992", "from_step"),
        ("/layers/a/history?to_step=" + "9" * 50, "to_step"),
        ("/layers/a/history?from_step=5&to_step=4", "to_step"),
        ("/layers/a/history?metric=Sigma", "metric"),
        ("/layers/a/history?metric=", "metric"),
        ("/layers/a/history?attempt=-1", "attempt"),
        ("/layers/a/history?attempt=2147483648", "attempt"),
        ("/layers/a/history?step=1", "step"),
        ("/layers//history", "layer"),
        ("/layers/" + "x" * 257 + "/history", "layer"),
        ("/history", "layer"),
        ("/history?layer=", "layer.0"),
        ("/history?" + "&".join(f"layer=l{i}" for i in range(51)), "layer"),
        ("/history?layer=a&points=2001", "points"),
        ("/scalars/Loss/history", "scalar"),
        ("/scalars/loss/history?metric=sigma", "metric"),
    ],
)
def test_a_question_that_is_not_valid_is_422(api, path, field):
    assert_problem(api.get(RUN + path), 422, "invalid", field)
