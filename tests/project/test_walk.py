"""The whole walk in real processes: weights to REST and metrics, and a policy back again."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families
from torch import Tensor, nn

from snc_client import SNCallback


def matrix_with(singular_values: list[float], rows: int, columns: int, seed: int) -> Tensor:
    """Return a float32 matrix [rows, columns] with these singular values and random vectors."""
    rng = np.random.default_rng(seed)
    k = len(singular_values)
    u = np.linalg.qr(rng.standard_normal((rows, k)))[0]
    v = np.linalg.qr(rng.standard_normal((columns, k)))[0]
    return torch.tensor((u * singular_values) @ v.T, dtype=torch.float32)


def planted_model() -> tuple[nn.Module, dict[str, float]]:
    model = nn.Sequential(nn.Linear(24, 32, bias=False), nn.Linear(32, 16, bias=False))
    planted = {"0.weight": [5.25, 2.0, 1.0], "1.weight": [0.75, 0.5, 0.125]}
    for i, (name, values) in enumerate(planted.items()):
        layer = model[i]
        layer.weight.data.copy_(matrix_with(values, *layer.weight.shape, seed=i))
        assert name == f"{i}.weight"
    return model, {name: values[0] for name, values in planted.items()}


def spectral_norm(layer: nn.Linear) -> float:
    return float(torch.linalg.matrix_norm(layer.weight.detach().double(), 2))


def samples(url: str, family: str) -> dict[str, float]:
    """Return {layer: value} of one family, parsed by the official parser."""
    text = httpx.get(f"{url}/metrics").raise_for_status().text
    return {
        sample.labels["layer"]: sample.value
        for metric in text_string_to_metric_families(text)
        for sample in metric.samples
        if sample.name == family
    }


def newest(url: str, run: str) -> dict[str, dict]:
    items = httpx.get(f"{url}/api/v1/runs/{run}/layers").raise_for_status().json()["items"]
    return {item["layer"]: item for item in items}


def test_planted_singular_values_are_found_on_metrics_and_in_rest(service_url):
    model, planted = planted_model()
    with SNCallback(model, threshold=10.0, action="observe", url=service_url, run="planted") as c:
        for _ in range(10):
            c.step()
    exact = {f"{i}.weight": spectral_norm(layer) for i, layer in enumerate(model)}
    assert exact == pytest.approx(planted, rel=1e-6)
    assert samples(service_url, "snc_sigma") == pytest.approx(exact, rel=1e-5)
    assert samples(service_url, "snc_threshold") == {"0.weight": 10.0, "1.weight": 10.0}
    rest = newest(service_url, "planted")
    assert {name: item["sigma"] for name, item in rest.items()} == pytest.approx(exact, rel=1e-5)
    history = httpx.get(
        f"{service_url}/api/v1/runs/planted/layers/0.weight/history", params={"metric": "sigma"}
    ).json()
    assert history["bucket_steps"] == 1
    assert history["max"] == pytest.approx([5.25] * len(history["steps"]), rel=1e-3)


def wait_for(condition, seconds: float = 20.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    pytest.fail(f"{condition} did not come true within {seconds} s")


def test_a_threshold_changed_on_the_service_is_enforced_by_the_running_job(service_url):
    torch.manual_seed(0)
    model, planted = planted_model()
    policy_url = f"{service_url}/api/v1/runs/obeys/policy"
    with SNCallback(model, threshold=100.0, url=service_url, run="obeys") as callback:
        for _ in range(5):
            callback.step()
        wait_for(lambda: httpx.get(policy_url).status_code == 200)
        assert spectral_norm(model[0]) == pytest.approx(5.25)
        entries = [
            {"pattern": "0.*", "threshold": 2.0, "action": "rescale"},
            {"pattern": "*", "threshold": 100.0, "action": "observe"},
        ]
        answer = httpx.put(policy_url, json={"entries": entries})
        assert answer.status_code == 200, answer.text

        def obeyed() -> bool:
            callback.step()
            return spectral_norm(model[0]) <= 2.0

        wait_for(obeyed)
    assert spectral_norm(model[1]) == pytest.approx(planted["1.weight"])
    assert newest(service_url, "obeys")["0.weight"]["threshold"] == 2.0
    events = httpx.get(f"{service_url}/api/v1/runs/obeys/events").json()["items"]
    assert {"run_started", "policy_changed", "breach", "run_finished"} <= {
        event["rule"] for event in events
    }


@pytest.fixture
def demo() -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(
        [sys.executable, "-m", "snc_service.cli", "demo", "--steps", "30", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    yield process
    if process.poll() is None:
        process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.timeout(180)
def test_the_demo_serves_what_it_prints_until_it_is_interrupted(demo):
    said = ""
    for line in demo.stdout:
        said += line
        if "until Ctrl-C" in line:
            break
    command = shlex.split(re.search(r"curl\s+(curl .*)", said)[1])
    history = httpx.get(command[1]).raise_for_status().json()
    assert history["metric"] == "sigma"
    assert all(value > 0 for value in history["max"])
    url = re.search(r"http://127\.0\.0\.1:\d+", said)[0]
    assert len(samples(url, "snc_sigma")) > 10
    assert httpx.get(url).status_code == 200
    runs = httpx.get(f"{url}/api/v1/runs").json()["items"]
    assert {run["state"] for run in runs} == {"finished"}
    demo.send_signal(signal.SIGINT)
    assert demo.wait(timeout=60) == 0


def test_the_smallest_example_is_small_and_runs(service_url, tmp_path):
    source = Path(__file__).resolve().parents[2] / "examples" / "minimal.py"
    code = source.read_text().split('"""')[2].strip().splitlines()
    assert len(code) < 30
    done = subprocess.run(
        [sys.executable, str(source)],
        capture_output=True,
        text=True,
        timeout=110,
        env=os.environ | {"SNC_URL": service_url, "SNC_RUN": "example"},
    )
    assert done.returncode == 0, done.stderr
    assert "0.weight" in done.stdout
    assert set(newest(service_url, "example")) == {"0.weight", "2.weight"}
