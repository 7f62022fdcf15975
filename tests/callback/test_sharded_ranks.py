"""Kinds of shards that are not known are listed with the reason, and the rest is right.

A number from a shard would be a wrong one: sigma of some rows of a matrix is not sigma of it.
"""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.distributed.fsdp
import torch.multiprocessing as mp
from small_loops import spectral_norm
from torch import nn

from snc_client import SNCallback
from snc_client.layers import find_layers

pytestmark = pytest.mark.skipif(
    not hasattr(torch.distributed.fsdp, "fully_shard"), reason="needs torch >= 2.6"
)
RANKS = 2


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.whole = nn.Linear(12, 7)
        # The last one has a single row: one rank holds it, the other has nothing.
        self.shared = nn.Sequential(nn.Linear(7, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.shared(self.whole(x))


def flat(model: Model) -> nn.Module:
    from torch.distributed.fsdp import FullyShardedDataParallel as FSDP

    model.shared = FSDP(model.shared, device_id=torch.device("cpu"))
    return model


def flat_with_names(model: Model) -> nn.Module:
    from torch.distributed.fsdp import FullyShardedDataParallel as FSDP

    model.shared = FSDP(model.shared, device_id=torch.device("cpu"), use_orig_params=True)
    return model


WAYS = {
    "FSDP1": flat,
    "FSDP1, use_orig_params": flat_with_names,
}


def each_way(rank: int, folder: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS
    )
    torch.set_num_threads(1)
    torch.save({way: trained(WAYS[way](Model())) for way in WAYS}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def trained(model: nn.Module) -> dict[str, object]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    callback = SNCallback(model, threshold="1.01x init", certify_every=1)
    exact = 0.0
    for _ in range(4):
        loss = model(torch.ones(5, 12)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        exact, before = spectral_norm(model.whole.weight), exact
        callback.step()
    reading = callback.latest["whole.weight"]  # of the step before
    callback.close()
    return {
        "layers": [layer.name for layer in callback.layers.layers],
        "sigma": reading["sigma"],
        "upper": reading["sigma_upper"],
        "exact": before,
        "errors": callback.errors,
    }


@pytest.mark.timeout(120)
def test_whole_weights_beside_flat_memory_are_held(tmp_path):
    mp.spawn(each_way, args=(str(tmp_path),), nprocs=RANKS)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]
    for found in (rank[way] for way in WAYS for rank in ranks):
        assert set(found["layers"]) == {"whole.weight", "shared.0.weight", "shared.2.weight"}
        assert found["errors"] == 0
        assert found["sigma"] <= found["exact"] * (1 + 2e-6)
        assert found["exact"] <= found["upper"] <= found["exact"] * (1 + 2e-3)


def test_a_partition_of_zero_is_known_by_its_mark():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    with torch.no_grad():
        model[1].weight.set_(torch.empty(0))
    model[1].weight.ds_id = 1
    (left,) = find_layers(model).layers
    assert left.name == "0.weight"
    assert "sharded" in {x.name: x.reason for x in find_layers(model).skipped}["1.weight"]
