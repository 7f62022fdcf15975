"""Resident memory along a long training, for each way to hold its weights.

    OMP_NUM_THREADS=1 python bench/numerics/memory.py [--steps 20000]

A net of three Linears, 32 wide, with AdamW; each way in a process of its own. It prints the
resident memory after a tenth of the steps, when caches are full, and at the end.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import platform
import resource
from typing import Any

import torch
from torch import nn

from snc_client import SNCallback

WAYS: dict[str, dict[str, Any]] = {
    "no callback": {},
    "observe": {"signals": ("loss", "grad_norm", "frobenius", "stable_rank", "gains")},
    "rescale": {"threshold": "1x init"},
    "strict": {"threshold": "1x init", "strict": True},
    "cap": {"threshold": "1x init", "action": "cap"},
    "guard": {"threshold": "1x init", "guard": True},
    "update_norm": {"signals": ("loss", "update_norm", "update_sigma")},
}
TARGET = 2.0  # MB


def resident() -> float:
    """Return the resident memory of this process in MB."""
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def train(way: str, steps: int) -> tuple[float, float]:
    """Return the resident memory after a tenth of the steps, and after all of them."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 32), nn.Linear(32, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    settings = dict(WAYS[way])
    callback = None
    if settings:
        callback = SNCallback(model, optimizer=optimizer, **settings)
    early = 0.0
    for step in range(1, steps + 1):
        x = torch.randn(8, 16)
        loss = (model(x).squeeze(1) - x.sum(1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step == steps // 10:
            early = resident()
    late = resident()
    if callback is not None:
        callback.close()
    return early, late


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20_000)
    steps = parser.parse_args().steps
    print(f"{platform.machine()}, torch {torch.__version__}, Python {platform.python_version()}")
    context = multiprocessing.get_context("spawn")
    for way in WAYS:
        with context.Pool(1) as pool:
            early, late = pool.apply(train, (way, steps))
        grown = late - early
        verdict = "met" if grown <= TARGET else "missed"
        print(
            f"{way:12} {early:7.1f} MB after {steps // 10:,} steps, {late:7.1f} after {steps:,}: "
            f"{grown:+.1f} (target {TARGET:.0f}) {verdict}",
            flush=True,
        )


if __name__ == "__main__":
    main()
