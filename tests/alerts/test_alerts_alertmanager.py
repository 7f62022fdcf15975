"""The real Alertmanager gets a real alert from a real training, and hears that it is over."""

import json
import shutil
import subprocess
from contextlib import contextmanager
from http.client import HTTPConnection

import httpx
import pytest
import torch
import torch.nn.functional as F
from listeners import listening, until
from torch import nn

from snc_client import SNCallback
from snc_client.demo.service import free_port, serving

ALERTMANAGER = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
pytestmark = pytest.mark.skipif(
    ALERTMANAGER is None,
    reason="needs Alertmanager: apt-get install prometheus-alertmanager",
)


@contextmanager
def alertmanager(folder, webhook):
    """Run Alertmanager, which passes on what it gets to ``webhook``; yield its URL."""
    config = {
        "route": {"receiver": "hook", "group_by": ["run"], "group_wait": "10ms",
                  "group_interval": "1s"},
        "receivers": [{"name": "hook", "webhook_configs": [
            {"url": webhook, "send_resolved": True}]}],
    }  # fmt: skip
    (folder / "am.yml").write_text(json.dumps(config))  # JSON is YAML
    port = free_port(0)
    command = [ALERTMANAGER, f"--config.file={folder / 'am.yml'}",
               f"--storage.path={folder / 'am'}", "--cluster.listen-address=",
               f"--web.listen-address=127.0.0.1:{port}"]  # fmt: skip
    with (folder / "am.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        until(lambda: is_ready(process, port))
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=20)


def is_ready(process, port) -> bool:
    assert process.poll() is None
    connection = HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/-/ready")
        return connection.getresponse().status == 200
    except (TimeoutError, OSError):
        return False
    finally:
        connection.close()


def train(url, model, steps, lr, *, run="real"):
    """Train for real, watched, with a threshold that only observes."""
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    inputs, targets = torch.randn(64, 8), torch.randint(0, 3, (64,))
    with SNCallback(model, threshold="1.5x init", action="observe", url=url, run=run,
                    project="llm") as callback:  # fmt: skip
        for _ in range(steps):
            loss = F.cross_entropy(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            callback.step(loss=loss)


@pytest.mark.timeout(180)
def test_alertmanager_receives_a_real_alert_from_a_real_training(tmp_path, monkeypatch):
    monkeypatch.setenv("SNC_ALERT_NETWORKS", "127.0.0.0/8")
    with (
        listening() as people,
        alertmanager(tmp_path, people.url) as am,
        serving(tmp_path / "snc.db", free_port(0)) as url,
        httpx.Client(base_url=f"{url}/api/v1") as rest,
    ):
        document = {
            "receivers": {"am": {"type": "alertmanager", "url": am}},
            "routes": [{"project": "llm", "receivers": ["am"]}],
            "service_url": "https://snc.example",
        }
        rest.put("/alerting", json=document).raise_for_status()
        assert rest.post("/alerting/test", json={"receiver": "am"}).json()["outcome"] == "delivered"

        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
        train(url, model, 60, lr=3.0)

        event = rest.get("/runs/real/events", params={"rule": "breach"}).json()["items"][-1]

        def agreed():
            """Return alert and incident once both are as severe: the incident gets worse."""
            alert = of_run(am, "real")
            if alert is None:
                return None
            incident = rest.get(f"/incidents/{alert['labels']['incident']}").json()
            same = alert["labels"]["severity"] == incident["severity"]
            return (alert, incident) if same else None

        alert, incident = until(agreed)
        labels = alert["labels"]
        assert labels["source"] == "snc"
        assert (labels["run"], labels["project"]) == ("real", "llm")
        assert (labels["rule"], labels.get("layer")) == (incident["rule"], incident["layer"])
        assert alert["status"]["state"] == "active"
        assert event["message"] in alert["annotations"]["description"]
        assert alert["generatorURL"] == "https://snc.example/#/runs/real"

        # And from there to people.
        passed_on = until(lambda: [a for a in alerts_heard(people) if a["labels"]["run"] == "real"])
        assert passed_on[0]["status"] == "firing"


def of_run(am, run):
    """Return the run's alert that stands, the worst if there are several."""
    told = httpx.get(f"{am}/api/v2/alerts", params={"filter": f'run="{run}"'}).json()
    severities = ("info", "warning", "critical")
    return max(told, key=lambda a: severities.index(a["labels"]["severity"]), default=None)


def alerts_heard(people):
    return [alert for request in people.heard for alert in request.json()["alerts"]]


@pytest.mark.timeout(180)
def test_alertmanager_hears_that_it_is_over(tmp_path, monkeypatch):
    monkeypatch.setenv("SNC_ALERT_NETWORKS", "127.0.0.0/8")
    with (
        listening() as people,
        alertmanager(tmp_path, people.url) as am,
        serving(tmp_path / "snc.db", free_port(0)) as url,
        httpx.Client(base_url=f"{url}/api/v1") as rest,
    ):
        document = {"receivers": {"am": {"type": "alertmanager", "url": am}},
                    "routes": [{"receivers": ["am"]}]}  # fmt: skip
        rest.put("/alerting", json=document).raise_for_status()
        rest.post("/runs", json={"run": "r"}).raise_for_status()
        send(rest, 0, [1], 3.0)
        until(lambda: of_run(am, "r"))
        until(lambda: [a for a in alerts_heard(people) if a["status"] == "firing"])
        send(rest, 1, range(2, 60), 1.0)
        until(lambda: of_run(am, "r") is None)
        until(lambda: [a for a in alerts_heard(people) if a["status"] == "resolved"])


def send(rest, seq, steps, sigma):
    steps = list(steps)
    batch = {"writer": "w", "seq": seq, "steps": steps, "layers": ["fc1.weight"],
             "metrics": {"sigma": [[sigma]] * len(steps),
                         "threshold": [[2.0]] * len(steps)}}  # fmt: skip
    rest.post("/runs/r/batches", json=batch).raise_for_status()
