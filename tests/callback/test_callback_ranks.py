"""Several ranks: each holds its replica alike, one of them reports."""

from __future__ import annotations

import random
import socket

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from snc_client import SNCallback
from snc_client.callback.readback.pinned_buffers import Readback

RANKS = 2


def train(rank: int, service: str, folder: str) -> None:
    """Train a replica on data of its own; leave weights, rows and run behind."""
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=RANKS)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(16, 24), nn.Linear(24, 8)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    data = torch.Generator().manual_seed(rank)
    callback = SNCallback(model, threshold="1.05x init", url=service, run="ranks")
    scales = []
    for _ in range(25):
        loss = (model(torch.randn(32, 16, generator=data)) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        callback.step(loss=loss)
        scales += [reading["scale"] for reading in callback.latest.values()]
    with pytest.raises(ValueError, match="several ranks"):
        SNCallback(model, max_overhead=0.1)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    callback.close(timeout=0.1)
    found = {"weights": weights, "scales": scales, "run": callback.run, "errors": callback.errors}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.timeout(120)
def test_replicas_stay_equal_to_the_last_bit_and_rank_0_reports(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        mp.spawn(train, args=(url, str(tmp_path)), nprocs=RANKS)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for name, weight in first["weights"].items():
        assert torch.equal(weight, second["weights"][name])
    assert first["scales"] == second["scales"]
    assert min(scale for scale in first["scales"] if scale is not None) < 1
    assert (first["run"], second["run"]) == ("ranks", None)
    assert first["errors"] == second["errors"] == 0


class Late:
    """Values of a device that lags: they arrive when they like, on each rank at another time."""

    def __init__(self, values: torch.Tensor, clock: random.Random) -> None:
        self._values, self._clock = values.numpy(), clock

    def ready(self) -> bool:
        return self._clock.random() < 0.3

    def wait(self) -> None:
        pass

    def take(self) -> np.ndarray:
        return self._values

    def device_seconds(self) -> float:
        return 0.0


def replica(clock: random.Random, monkeypatch) -> tuple[list[torch.Tensor], list[int]]:
    """Train one rank's replica; the same numbers in, whenever they are seen."""
    monkeypatch.setattr(Readback, "send", lambda self, values: Late(values.clone(), clock))
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(12, 12) for _ in range(5)))
    policy = {"entries": [{"pattern": "*", "threshold": "1.2x init", "action": "cap"}]}
    callback = SNCallback(model, policy=policy, certify_every=7, idle_every=2)
    seen = []
    for _ in range(40):
        with torch.no_grad():
            for layer in model:
                layer.weight.add_(0.02 * torch.randn(12, 12))
        callback.step()
        seen.append(callback.latest.step)
    callback.close()
    assert callback.latest.step == 40, "the last rows are taken in the end"
    assert callback.errors == 0
    return [layer.weight.detach() for layer in model], seen


def test_replicas_stay_equal_whenever_their_rows_arrive(monkeypatch):
    for module in ("device_group", "layer_monitor", "step_planner"):
        monkeypatch.setattr(
            f"snc_client.callback.monitor.{module}.reading_is_free", lambda device: False
        )
    monkeypatch.setattr("snc_client.callback.monitor.layer_monitor.several_ranks", lambda: True)
    first, seen = replica(random.Random(1), monkeypatch)
    second, seen_too = replica(random.Random(2), monkeypatch)
    assert seen == seen_too
    assert seen[5:] == list(range(3, 38)), "a row is taken when three are on their way"
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
