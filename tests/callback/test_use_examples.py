"""The example of each use trains, writes its picture and names its runs, on a real service."""

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[2]
STEPS = {"gan": 80, "robust": 60, "rl": 300, "transformer": 30}


@pytest.mark.parametrize("use", STEPS)
def test_the_example_of_a_use_holds_its_layers_and_ends_with_picture_and_runs(
    service_url, tmp_path, use
):
    if use == "robust" and find_spec("sklearn") is None:
        pytest.skip("scikit-learn is missing: install the extra [test]")
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / f"{use}.py", "--short"],
        cwd=tmp_path,
        env={**os.environ, "SNC_URL": service_url},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    names = names_in_legend((tmp_path / f"{use}.html").read_text(encoding="utf-8"))
    assert len(names) == len(set(names)) == 2
    address = re.search(rf"^runs: {re.escape(service_url)}/#/compare/(\S+)$", done.stdout, re.M)
    free, held = (
        httpx.get(f"{service_url}/api/v1/runs/{run}").json() for run in address[1].split("/")
    )
    assert (free["state"], free["rescales"]) == ("finished", 0)
    assert (held["state"], held["last_step"]) == ("finished", STEPS[use])
    assert held["rescales"] > 0
    layers = httpx.get(f"{service_url}/api/v1/runs/{held['run']}/layers").json()["items"]
    limited = [layer for layer in layers if layer["threshold"] is not None]
    assert limited
    for layer in limited:
        assert layer["sigma"] * layer["scale"] <= 1.001 * layer["threshold"]


def names_in_legend(page: str) -> list[str]:
    *_, drawn = re.finditer(r'Plotly\.newPlot\(\s*"[^"]+",\s*', page)
    traces, _ = json.JSONDecoder().raw_decode(page, drawn.end())
    return [trace["name"] for trace in traces if trace.get("showlegend", True)]


def test_an_example_of_a_use_is_short():
    for use in STEPS:
        assert len((ROOT / "examples" / f"{use}.py").read_text().splitlines()) < 120
