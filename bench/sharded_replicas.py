"""Whether replicas of HSDP stay equal to the last bit through a thousand held steps.

    OMP_NUM_THREADS=1 python bench/sharded_replicas.py [--steps 1000]

Four gloo ranks: two halves of a small model, twice. Every rank trains on tokens of its own, FSDP2
reduces the gradients, SNCallback holds both weights. At the end each rank compares its shards with
those of its replica. It fails if one bit differs, or if fewer than half of the measurements held.
"""

from __future__ import annotations

import argparse
import platform
import tempfile

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from snc_client import SNCallback

RANKS = 4


def rank(index: int, folder: str, steps: int) -> None:
    """Train on one rank; rank 0 prints what all have found."""
    store = dist.FileStore(f"{folder}/store", RANKS)
    dist.init_process_group("gloo", store=store, rank=index, world_size=RANKS)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 48), nn.Tanh(), nn.Linear(48, 7))
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicas", "shards"))
    fully_shard(model, mesh=mesh)
    adam = torch.optim.AdamW(model.parameters(), lr=3e-3)
    drawn = torch.Generator().manual_seed(index)
    held = 0
    with SNCallback(model, threshold="1.01x init", optimizer=adam, idle_every=1) as callback:
        for _ in range(steps):
            adam.zero_grad()
            (model(torch.randn(8, 24, generator=drawn)) - 3).square().mean().backward()
            adam.step()
            held += sum((reading["scale"] or 1) < 1 for reading in callback.latest.values())
    different = torch.zeros(1)
    for parameter in model.parameters():
        bits = parameter.to_local().detach().view(torch.int32)  # type: ignore[attr-defined]
        replicas = [torch.empty_like(bits) for _ in range(2)]
        dist.all_gather(replicas, bits, group=mesh.get_group("replicas"))
        different += (replicas[0] != replicas[1]).sum()
    dist.all_reduce(different)
    if index == 0:
        print(f"{steps} steps, {held} measurements of {2 * steps} held, {callback.errors} errors")
        print(f"{int(different)} entries of a shard differ from those of its replica")
    dist.destroy_process_group()
    if different or held < steps:
        raise SystemExit(1)


def main() -> None:
    """Run the four ranks."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=1000)
    steps = parser.parse_args().steps
    print(f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(rank, args=(folder, steps), nprocs=RANKS)


if __name__ == "__main__":
    main()
