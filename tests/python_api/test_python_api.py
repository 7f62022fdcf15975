"""`Api` against a real service: what it returns is what was sent."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
from feed import Feed
from service_process import services

from snc_client import Api, ApiError
from snc_client.api import figures

ROOT = Path(__file__).resolve().parents[2]
STEPS = 600
LAYERS = ("fc1.weight", "fc2.weight", "a/b <i>%2F?x=1")
RISING = np.linspace(1.0, 4.0, STEPS)[:, None] * np.array([1.0, 0.5, 0.1])
SIGMA = RISING.astype(np.float32)


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("python_api")
    with services(f"sqlite:///{folder}/snc.db", folder, 1) as (service,):
        loss = np.linspace(3.0, 1.0, STEPS)
        loss[7] = np.nan
        feed = Feed(service.url, "alpha", LAYERS, project="p", tags=["a", "b"], config={"lr": 0.01})
        feed.send(range(STEPS), sigma=SIGMA, threshold=2.0, scalars={"loss": loss})
        Feed(service.url, "beta", LAYERS[:1], project="p", tags=["b"]).send(range(4), sigma=1.0)
        yield service.url


@pytest.fixture
def api(url) -> Iterator[Api]:
    with Api(url) as api:
        yield api


def test_a_run_is_described_as_it_was_created(api):
    run = api.run("alpha")
    assert (run.id, run.project, run.state, run.last_step) == ("alpha", "p", "active", STEPS - 1)
    assert run.describe()["config"] == {"lr": 0.01}
    assert run.describe()["scalars"] == ["loss"]
    assert repr(run) == f"RemoteRun('alpha', state='active', last_step={STEPS - 1})"
    assert run.worst_ratio == pytest.approx(2.0)


def test_runs_are_filtered_by_project_state_and_every_tag(api):
    assert [run.id for run in api.runs(project="p")] == ["beta", "alpha"]
    assert [run.id for run in api.runs(tags=["b"])] == ["beta", "alpha"]
    assert [run.id for run in api.runs(tags=["a", "b"])] == ["alpha"]
    assert list(api.runs(state="failed")) == []


def test_a_history_that_fits_has_every_bit(api):
    history = api.run("alpha").history("fc2.weight")
    assert history.bucket_steps == 1
    assert history.steps.tolist() == list(range(STEPS))
    assert np.array_equal(history.mean.astype(np.float32), SIGMA[:, 1])
    assert len(history) == STEPS


def test_a_longer_history_has_the_extremes_of_its_buckets(api):
    history = api.run("alpha").history("fc1.weight", points=50)
    length = history.bucket_steps
    assert length > 1
    assert len(history) <= 50
    for step, low, high in zip(history.steps, history.min, history.max, strict=True):
        bucket = SIGMA[step : step + length, 0]
        assert np.float32(low) == bucket.min()
        assert np.float32(high) == bucket.max()


def test_a_hostile_layer_name_is_one_segment_of_the_path(api):
    history = api.run("alpha").history(LAYERS[2], from_step=5, to_step=6)
    assert np.array_equal(history.mean.astype(np.float32), SIGMA[5:7, 2])


def test_a_value_that_is_not_finite_is_nan_and_counted(api):
    loss = api.run("alpha").scalars("loss")
    assert np.flatnonzero(np.isnan(loss.mean)).tolist() == [7]
    assert loss.nonfinite.sum() == loss.nonfinite[7] == 1
    assert len(api.run("alpha").scalars("never_reported")) == 0


def test_several_layers_need_one_request_per_fifty(api):
    found = api.run("alpha").histories(LAYERS)
    assert tuple(found) == LAYERS
    for i, layer in enumerate(LAYERS):
        assert np.array_equal(found[layer].mean.astype(np.float32), SIGMA[:, i])


def test_a_heatmap_has_the_largest_value_of_each_cell(api):
    heatmap = api.run("alpha").heatmap(metric="sigma", points=10)
    assert heatmap.layers == LAYERS
    assert heatmap.values.shape == (3, len(heatmap.steps))
    for column, step in enumerate(heatmap.steps):
        truth = SIGMA[step : step + heatmap.bucket_steps].max(axis=0)
        assert np.allclose(heatmap.values[:, column], truth, rtol=1e-6)
    assert not heatmap.nonfinite.any()


def test_layers_events_incidents_and_onset_are_lists_of_records(api):
    run = api.run("alpha")
    assert [layer["layer"] for layer in run.layers()] == list(LAYERS)
    assert {event["rule"] for event in run.events()} >= {"breach", "run_started"}
    assert all(event["run"] in ("alpha", "beta") for event in api.events())
    assert {each["run"] for each in api.incidents(project="p")} == {"alpha"}
    assert run.incidents()[0]["severity"] in ("warning", "critical")
    assert [each["layer"] for each in run.onset()][:1] in ([], ["fc1.weight"])


def test_one_layer_is_compared_over_runs(api):
    found = api.compare([api.run("alpha"), "beta"], "fc2.weight")
    assert list(found) == ["alpha"]
    both = api.compare(["alpha", "beta"], "fc1.weight")
    assert {run: len(history) > 0 for run, history in both.items()} == {"alpha": 1, "beta": 1}


@pytest.mark.parametrize("library", ["pandas", "polars", "arrow"])
def test_a_history_is_a_table_of_each_library(api, library):
    history = api.run("beta").history("fc1.weight")
    table = getattr(history, f"to_{library}")()
    columns = table.column_names if library == "arrow" else list(table.columns)
    assert columns == ["step", "mean", "min", "max", "nonfinite"]
    assert list(table["step"]) == [0, 1, 2, 3] or table["step"].to_pylist() == [0, 1, 2, 3]


def test_a_heatmap_is_a_table_of_layers_and_steps(api):
    table = api.run("beta").heatmap().to_pandas()
    assert table.loc["fc1.weight", 3] == 1.0
    assert (table.index.name, table.columns.name) == ("layer", "step")


def test_an_export_is_the_whole_run_and_appears_when_it_is_complete(api, tmp_path):
    path = api.run("alpha").export(tmp_path / "run.parquet", metrics=["sigma"])
    assert pq.read_table(path).num_rows == STEPS * len(LAYERS)
    with pytest.raises(ValueError, match="format must be parquet or csv, got 'json'"):
        api.run("alpha").export(tmp_path / "run.json")
    with pytest.raises(ApiError, match="zzz"):
        api.run("alpha").export(tmp_path / "run.csv", layers=["zzz"])
    assert [file.name for file in tmp_path.iterdir()] == ["run.parquet"]


def test_a_refusal_is_one_sentence_with_its_status(api, url):
    with pytest.raises(ApiError, match="nobody") as refused:
        api.run("nobody")
    assert refused.value.status == 404
    with pytest.raises(ApiError, match="metric") as refused:
        api.run("alpha").history("fc1.weight", metric="No Metric")
    assert refused.value.status == 422
    for wrong in ("", "ftp://host", "http://", "no url"):
        if wrong:
            with pytest.raises(ValueError, match="url must be http"):
                Api(wrong)


def test_figures_have_the_values_and_the_colors_of_the_page(api):
    run = api.run("alpha")
    ratio = run.heatmap(metric="ratio").values
    (drawn,) = run.plot_heatmap().data
    assert np.allclose(drawn.customdata, ratio)
    assert (drawn.z[ratio <= 1] < 0.5).all()
    assert (drawn.z[ratio > 1] > 0.5).all()
    lines = {line.name: line for line in run.plot_history("fc1.weight").data}
    assert np.array_equal(np.float32(lines["fc1.weight"].y), SIGMA[:, 0])
    assert set(lines["fc1.weight: threshold"].y) == {2.0}
    assert len(run.plot_history().data) == 6  # the three worst layers and their thresholds
    assert run.plot_scalar("loss").data[0].name == "loss"
    assert "&lt;i&gt;" in run.plot_history(LAYERS[2]).data[0].name
    first = {point for trace in run.plot_onset().data for point in trace.y}
    assert first == {each["layer"] for each in run.onset()}
    for figure in (run.plot_heatmap(), run.plot_onset()):
        assert json.loads(figure.to_json())["layout"]["xaxis"]["title"]["text"] == "step"


def test_a_heatmap_without_thresholds_shows_sigma(api):
    (drawn,) = api.run("beta").plot_heatmap().data
    assert drawn.customdata.tolist() == [[1.0] * 4]


def test_the_colors_are_those_of_the_page():
    static = ROOT / "snc_service" / "ui" / "static"
    paint = (static / "charts" / "paint.js").read_text()
    for name in ("CIVIDIS", "BREACH"):
        listed = re.search(rf"const {name} = (\[[^]]+\])", paint)[1]
        assert tuple(ast.literal_eval(listed)) == getattr(figures, name)
    assert "value * 0.4999 : Math.min(0.5001 + (value - 1) / 2, 1)" in paint
    styles = (static / "styles" / "base.css").read_text()
    assert tuple(re.findall(r"--series-\d: (#\w+)", styles)[:8]) == figures.SERIES
    assert re.search(r"--nonfinite: (#\w+)", styles)[1] == figures.NONFINITE


def test_neither_torch_nor_a_table_library_is_imported(url):
    heavy = ("torch", "pandas", "polars", "pyarrow", "plotly", "fastapi", "pydantic")
    code = (
        "import sys\nfrom snc_client import Api\n"
        f"run = Api({url!r}).run('alpha')\nrun.history('fc1.weight')\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr


def test_a_deleted_run_is_a_404_of_its_next_request(api, url):
    Feed(url, "gone", LAYERS[:1]).send(range(2), sigma=1.0)
    run = api.run("gone")
    httpx.delete(f"{url}/api/v1/runs/gone").raise_for_status()
    with pytest.raises(ApiError, match="gone") as refused:
        run.layers()
    assert refused.value.status == 404


def test_the_blocks_of_the_documentation_run(url, tmp_path):
    text = (ROOT / "docs" / "python.md").read_text()
    code = "\n".join(re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    code = code.replace("RUN", "alpha").replace("0.weight", "fc1.weight")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env={**os.environ, "SNC_URL": url},
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run.parquet").exists()
