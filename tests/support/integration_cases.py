"""What the tests of all adapters ask of a model and of the service."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import torch
from torch import Tensor, nn

from snc_client import SNCallback
from snc_client.layers import find_layers

ADAPTERS = Path(__file__).parents[1] / "integrations"


def worst_excess(model: nn.Module, callback: SNCallback) -> float:
    """Return the largest spectral norm / threshold of the weights as they are, by float64 SVD."""
    thresholds = {
        name: reading["threshold"]
        for name, reading in callback.latest.items()
        if reading["threshold"] is not None
    }
    assert thresholds, "no layer has a threshold"
    weights = {layer.name: layer.weight() for layer in find_layers(model).layers}
    return max(spectral_norm(weights[name]) / threshold for name, threshold in thresholds.items())


def spectral_norm(weight: Tensor) -> float:
    matrix = weight.detach().double().flatten(1)
    return torch.linalg.matrix_norm(matrix, 2).item()


def started(folder: Path, url: str, code: str, **environment: str) -> subprocess.Popen[bytes]:
    """Run ``code`` in a process of its own, which finds the adapters' tests and ``folder``."""
    code = f"from pathlib import Path\nfolder = Path({str(folder)!r})\n{code}"
    paths = [str(ADAPTERS), str(Path(__file__).parent), *sys.path]
    environment |= {"SNC_URL": url, "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.Popen([sys.executable, "-c", code], env={**os.environ, **environment})


class Rest:
    """The service's answers, by path below /api/v1."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **query: Any) -> Mapping[str, Any]:
        answer = httpx.get(f"{self.url}/api/v1{path}", params=query)
        answer.raise_for_status()
        return answer.json()

    def only_run(self) -> Mapping[str, Any]:
        """Return the one run that there is."""
        (run,) = self.get("/runs")["items"]
        return self.get(f"/runs/{run['run']}")

    def steps(self, run: str, layer: str) -> list[int]:
        """Return the steps at which sigma of a layer is stored."""
        return self.get(f"/runs/{run}/layers/{layer}/history", points=10_000)["steps"]

    def left(self, run: str, layer: str) -> tuple[int, float]:
        """Return the newest step of a layer, and the norm that the step left: sigma x scale."""
        newest = {row["layer"]: row for row in self.get(f"/runs/{run}/layers", limit=100)["items"]}
        return newest[layer]["step"], newest[layer]["sigma"] * newest[layer]["scale"]

    def scalar(self, run: str, name: str) -> Mapping[int, float]:
        """Return step -> value of a scalar."""
        found = self.get(f"/runs/{run}/scalars/{name}/history", points=10_000)
        return dict(zip(found["steps"], found["mean"], strict=True))

    def worst_ratios(self, run: str) -> dict[int, float]:
        """Return step -> largest sigma / threshold of all layers."""
        worst: dict[int, float] = {}
        for layer in self.get(f"/runs/{run}/layers", limit=100)["items"]:
            path = f"/runs/{run}/layers/{layer['layer']}/history"
            sigma, threshold = (
                self.get(path, metric=name, points=10_000) for name in ("sigma", "threshold")
            )
            limits = dict(zip(threshold["steps"], threshold["mean"], strict=True))
            for step, value in zip(sigma["steps"], sigma["mean"], strict=True):
                if limits.get(step):
                    worst[step] = max(worst.get(step, 0.0), value / limits[step])
        return worst

    def command(self, run: str, action: str, seconds: float = 30.0) -> None:
        """Ask a run for something as soon as the service knows it."""
        path = f"{self.url}/api/v1/runs/{run}/commands"
        deadline = time.monotonic() + seconds
        while True:
            answer = httpx.post(path, json={"action": action, "reason": "a test"})
            if answer.status_code != 404 or time.monotonic() > deadline:
                answer.raise_for_status()
                return
            time.sleep(0.1)
