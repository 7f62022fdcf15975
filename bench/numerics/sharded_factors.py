"""Why factors of a sharded layer differ from those of the whole one: the first measurement.

    OMP_NUM_THREADS=1 python bench/numerics/sharded_factors.py [--calls 25 8]

One process, float32: a matrix that grows by 0.2 % a step, with noise, held at 1.001 times its first
sigma. It is measured as a whole weight, and as a DTensor on a mesh of one. Both get equal weights
at each step. A whole weight's first measurement makes 15 iterations and one for each of its calls,
25 in the client; that of a shard makes 40, as many. Exact is a float64 SVD at every step.
"""

from __future__ import annotations

import argparse
import platform
import tempfile

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from snc_client import SNCallback
from snc_client.callback.monitor import device_group

SHAPES = ((64, 2048), (2048, 64), (256, 1024))
STEPS = 12


def trained(shape: tuple[int, int], *, sharded: bool) -> dict[str, list[float]]:
    """Return sigma over the exact norm, the factor, and the threshold, of each step."""
    torch.manual_seed(0)
    weight = torch.randn(shape) / shape[1] ** 0.5
    model = nn.Linear(shape[1], shape[0], bias=False)
    kept = distribute_tensor(weight, init_device_mesh("cpu", (1,)), [Shard(0)])
    model.weight = nn.Parameter(kept if sharded else weight)
    found: dict[str, list[float]] = {"sigma": [], "scale": [], "threshold": []}
    exact: list[float] = []
    signals = ("frobenius",)
    callback = SNCallback(model, threshold="1.001x init", idle_every=1, signals=signals)
    for step in range(STEPS):
        exact.append(grow(model.weight, step))
        callback.step()
        if step:
            note(callback, found)
    callback.close()
    note(callback, found)
    found["sigma"] = [a / b for a, b in zip(found["sigma"], exact, strict=True)]
    return found


def note(callback: SNCallback, found: dict[str, list[float]]) -> None:
    """Add what has arrived: the row of the step before."""
    for name, values in found.items():
        value = callback.latest["weight"][name]
        assert value is not None, "measured at every step"
        values.append(value)


@torch.no_grad()
def grow(weight: Tensor, step: int) -> float:
    """Let the weight grow; return its spectral norm."""
    here = getattr(weight, "_local_tensor", weight)
    noise = torch.randn(here.shape, generator=torch.Generator().manual_seed(step))
    here.mul_(1.002).add_(noise, alpha=1e-4)
    return float(torch.linalg.matrix_norm(here.double(), 2))


def compare(calls: int) -> None:
    """Print how far the two ways err, and how far they are apart."""
    device_group.REGISTER_CALLS = calls
    for shape in SHAPES:
        whole, shards = (trained(shape, sharded=sharded) for sharded in (False, True))
        errors = [max(abs(x - 1) for x in each["sigma"]) for each in (whole, shards)]
        pairs = zip(whole["scale"], shards["scale"], strict=True)
        factors = max(abs(a - b) for a, b in pairs)
        thresholds = abs(whole["threshold"][-1] / shards["threshold"][-1] - 1)
        size = f"{shape[0]} x {shape[1]}"
        print(
            f"{calls:5d}  {size:>11s}  {errors[0]:11.1e}  {errors[1]:11.1e}"
            f"  {factors:11.1e}  {thresholds:11.1e}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, nargs="+", default=[25, 8])
    arguments = parser.parse_args()
    print(f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}")
    print("calls        shape  whole errs   shard errs      factors   thresholds")
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/at", rank=0, world_size=1)
        for calls in arguments.calls:
            compare(calls)
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
