"""Several ranks: each holds its replica alike, one of them reports."""

from __future__ import annotations

import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from snc_client import SNCallback

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
