"""Each script of examples/ for a framework runs as it stands, against the real service."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from integration_cases import Rest

ROOT = Path(__file__).parents[2]
STEPS = {
    "transformers_trainer": 40,
    "lightning_trainer": 64,
    "accelerate_loop": 48,
    "ignite_engine": 64,
    "fastai_learner": 56,
    "stable_baselines3_ppo": 32,
}


@pytest.mark.parametrize("script", STEPS)
def test_an_example_trains_under_its_thresholds_and_reports_each_step(rest: Rest, tmp_path, script):
    package = script.rpartition("_")[0]
    if find_spec(package) is None:
        pytest.skip(f"{package} is missing: install the extra [frameworks]")
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / f"{script}.py"],
        cwd=tmp_path,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert "sigma" in done.stdout
    run = rest.only_run()
    assert (run["state"], run["last_step"]) == ("finished", STEPS[script])
    assert run["rescales"] > 0
    for layer in rest.get(f"/runs/{run['run']}/layers", limit=100)["items"]:
        assert layer["threshold"] is None or layer["sigma"] * layer["scale"] <= (
            1.001 * layer["threshold"]
        )
