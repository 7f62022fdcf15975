"""A real Prometheus scrapes a real service with the shipped configuration."""

import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import yaml
from torch import nn

from snc_client import SNCallback
from snc_service.exposition import FAMILIES
from snc_service.wire import ABSENT, MEDIA_TYPE, Batch, LayerSpec, LayerTable, encode

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
SHIPPED = DEPLOY / "prometheus.yml"
DEFAULT_TARGET = "127.0.0.1:8470"

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="a real Prometheus is missing: install the Debian package prometheus (apt-get install "
    "prometheus), which brings promtool",
)
pytestmark = needs_prometheus


def check(*arguments: str, stdin: str | None = None) -> str:
    """Run promtool; return what it said if it was content."""
    done = subprocess.run(
        ["promtool", *arguments], input=stdin, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_shipped_configuration_is_valid():
    assert "SUCCESS" in check("check", "config", str(SHIPPED))


def test_every_alert_fires_stays_quiet_and_resolves():
    assert "SUCCESS" in check("test", "rules", str(DEPLOY / "alerts.test.yml"))


def test_alerts_speak_of_families_that_exist_and_each_has_its_own_test():
    text, tests = (DEPLOY / "alerts.yml").read_text(), (DEPLOY / "alerts.test.yml").read_text()
    named = set(re.findall(r"\bsnc_[a-z_]+", text))
    assert named
    assert named <= {family.name for family in FAMILIES}
    alerts = re.findall(r"- alert: (\w+)", text)
    assert alerts
    assert all(f"alertname: {alert}\n" in tests for alert in alerts)


@contextmanager
def scraping(folder: Path, configuration: str) -> Iterator[str]:
    """Run Prometheus on a free port; yield its URL once it is ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    (folder / "prometheus.yml").write_text(configuration)
    shutil.copy(DEPLOY / "alerts.yml", folder)
    with (
        (folder / "prometheus.log").open("wb") as log,
        subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={address}",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        try:
            url = f"http://{address}"
            eventually(lambda: process.poll() is None and answers(f"{url}/-/ready"))
            yield url
        finally:
            process.terminate()
            process.wait(timeout=30)


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def eventually(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Return the first truthy value of ``condition``."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.1)
    pytest.fail(f"{condition} did not come true within {seconds} s")


def query(url: str, expression: str) -> dict[tuple[str, ...], float]:
    """Return {label values without name, instance and job: value} of an instant query."""
    answer = httpx.get(f"{url}/api/v1/query", params={"query": expression}).raise_for_status()
    hidden = ("__name__", "instance", "job")
    return {
        tuple(v for k, v in sorted(r["metric"].items()) if k not in hidden): float(r["value"][1])
        for r in answer.json()["data"]["result"]
    }


def health_of_rules(url: str) -> set[str]:
    groups = httpx.get(f"{url}/api/v1/rules").raise_for_status().json()["data"]["groups"]
    return {rule["health"] for group in groups for rule in group["rules"]}


def shipped(url: str, **changes: str) -> str:
    """Return the shipped configuration with a fast interval, pointed at ``url``."""
    text = SHIPPED.read_text()
    for old, new in {
        DEFAULT_TARGET: url.removeprefix("http://"),
        "scrape_interval: 15s": "scrape_interval: 1s",
        "scrape_timeout: 10s": "scrape_timeout: 1s",
        "evaluation_interval: 15s": "evaluation_interval: 1s",
        **changes,
    }.items():
        assert old in text
        text = text.replace(old, new)
    return text


def post(url: str, run: str, layers: dict[str, tuple[float, float]], step: int) -> None:
    """Report one row {layer: (sigma, threshold)} of a run over HTTP, in the binary form."""
    httpx.post(f"{url}/api/v1/runs", json={"run": run, "project": "p"}).raise_for_status()
    table = LayerTable(tuple(LayerSpec(name, "linear", (4, 4)) for name in layers))
    httpx.put(
        f"{url}/api/v1/runs/{run}/layer-tables/{table.hash}",
        content=table.body,
        headers={"Content-Type": "application/json"},
    ).raise_for_status()
    values = np.array([[list(column)] for column in zip(*layers.values(), strict=True)], np.float32)
    batch = Batch("w", 0, table.hash, (step,), ("sigma", "threshold"), values)
    httpx.post(
        f"{url}/api/v1/runs/{run}/batches",
        content=encode(batch),
        headers={"Content-Type": MEDIA_TYPE},
    ).raise_for_status()


PLANTED = {
    "blocks.0.attn.weight": (3.25, 3.0),
    "blocks.0.mlp.weight": (0.0078125, 2.0),
    'odd "name" 100%/\\': (1.5, float(ABSENT)),
    "broken.weight": (float("nan"), 2.0),
    "n" * 256: (0.5, 2.0),  # the longest name there is: a label too long would fail the scrape
}


def test_prometheus_stores_the_sigma_of_every_layer(service_url, tmp_path):
    post(service_url, "planted", PLANTED, step=41)
    with scraping(tmp_path, shipped(service_url)) as prometheus:
        found = eventually(lambda: query(prometheus, "snc_sigma"))
        assert found.keys() == {(layer, "planted") for layer in PLANTED}
        for layer, (sigma, _) in PLANTED.items():
            np.testing.assert_equal(found[layer, "planted"], sigma)
        assert query(prometheus, "snc_threshold").keys() == {
            (layer, "planted") for layer in PLANTED if not layer.startswith("odd")
        }
        assert query(prometheus, "snc_threshold_ratio > 1") == {
            ("blocks.0.attn.weight", "planted"): pytest.approx(3.25 / 3.0, rel=1e-6)
        }
        run = query(prometheus, '{__name__=~"snc_run_.*|snc_.*_total", run="planted"}')
        assert run
        assert query(prometheus, "snc_run_last_step") == {("planted",): 41}
        # NaN > 1 never fires: what is broken must be countable.
        assert query(prometheus, "snc_run_layers_nonfinite > 0") == {("planted",): 1}
        assert query(prometheus, "snc_breaches_total") == {("planted",): 1}
        assert query(prometheus, 'snc_events_total{rule="breach"}') == {
            ("breach", "planted", "warning"): 1
        }
        assert query(prometheus, 'snc_ingest_batches_total{outcome="accepted"}') == {
            ("accepted",): 1
        }
        assert query(prometheus, "up") == {(): 1}
        firing = 'ALERTS{alertstate="firing", alertname="SncNonFinite", run="planted"}'
        assert eventually(lambda: query(prometheus, firing))
        assert eventually(lambda: health_of_rules(prometheus) == {"ok"})


def test_prometheus_follows_a_real_training(service_url, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with scraping(tmp_path, shipped(service_url)) as prometheus:
        with SNCallback(model, threshold="2x init", url=service_url, run="trained") as callback:
            for _ in range(40):
                x = torch.randn(16, 8)
                loss = (model(x) - x[:, :4]).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                callback.step(loss=loss)
            weights = {n: p for n, p in model.state_dict().items() if p.ndim == 2}
        exact = {
            (name, "trained"): float(torch.linalg.matrix_norm(weight.double(), 2))
            for name, weight in weights.items()
        }
        last_step = httpx.get(f"{service_url}/api/v1/runs/trained").json()["last_step"]
        eventually(lambda: query(prometheus, "snc_run_last_step") == {("trained",): last_step})
        assert query(prometheus, "snc_sigma") == pytest.approx(exact, rel=1e-3)
        ratios = query(prometheus, "snc_threshold_ratio")
        assert ratios.keys() == exact.keys()
        assert all(0 < ratio < 1 for ratio in ratios.values())


def test_a_service_that_asks_for_tokens_is_scraped_with_one_from_a_file(service_url, tmp_path):
    post(service_url, "closed", {"a": (1.5, 2.0)}, step=1)
    secret = ""
    for scope in ("admin", "read"):  # the first token must be able to make others
        answer = httpx.post(
            f"{service_url}/api/v1/tokens",
            json={"name": scope, "scopes": [scope]},
            headers={"Authorization": f"Bearer {secret}"} if secret else {},
        )
        secret = answer.raise_for_status().json()["token"]
    (tmp_path / "snc-token").write_text(f"{secret}\n")
    assert httpx.get(f"{service_url}/metrics").status_code == 401
    # The lines are in the shipped file, as a comment: without a token they would be in the way.
    asking = shipped(service_url).replace("# authorization:", "authorization:", 1)
    asking = asking.replace("#   credentials_file: snc-token", "  credentials_file: snc-token", 1)
    (job,) = yaml.safe_load(asking)["scrape_configs"]
    assert job["authorization"] == {"credentials_file": "snc-token"}
    with scraping(tmp_path, asking) as prometheus:
        assert eventually(lambda: query(prometheus, "snc_sigma")) == {("a", "closed"): 1.5}
        assert query(prometheus, "up") == {(): 1}


def test_service_discovery_gives_every_run_its_own_up(service_url, tmp_path):
    host = service_url.removeprefix("http://")
    configuration = f"""
scrape_configs:
  - job_name: snc-runs
    scrape_interval: 1s
    scrape_timeout: 1s
    http_sd_configs:
      - url: {service_url}/prometheus/sd
        refresh_interval: 1s
"""
    runs = [f"run-{i}" for i in range(3)]
    for run in runs:
        post(service_url, run, {"a": (1.0, 2.0)}, step=0)
    with scraping(tmp_path, configuration) as prometheus:
        eventually(lambda: len(query(prometheus, "snc_sigma")) == 3)
        assert eventually(lambda: query(prometheus, "count(up == 1)") == {(): 3})
        answer = httpx.get(f"{prometheus}/api/v1/query", params={"query": "up"}).json()
        instances = {result["metric"]["instance"] for result in answer["data"]["result"]}
        assert instances == {f"{host}/{run}" for run in runs}


def test_what_the_service_exposes_passes_the_metrics_linter(service_url):
    post(service_url, "planted", PLANTED, step=1)
    body = httpx.get(f"{service_url}/metrics").text
    # promtool warns of standard names of the client library; ours must be without a word.
    ours = "".join(
        line + "\n"
        for line in body.splitlines()
        if line.startswith(("snc_", "# HELP snc_", "# TYPE snc_"))
    )
    assert check("check", "metrics", stdin=ours) == ""
