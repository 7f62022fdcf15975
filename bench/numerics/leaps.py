"""How often a leap in a direction that the warm block has not met is held at once.

    OMP_NUM_THREADS=1 python bench/numerics/leaps.py [--trials 1000] [--seed 0]

Each trial is one layer that drifts under a threshold of 1.05 times its first norm for some steps.
Then a direction of 1.25 to 6 times its norm appears, from its least singular vectors, or, in every
other trial, from random ones that are orthogonal to all vectors of its block. Judged is the
same measurement: the norm after the action by float64 SVD, and sigma beside the norm before it.
"""

from __future__ import annotations

import argparse
import logging
import platform
import random
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from snc_client import SNCallback

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "support"))
from spectra import norm

SHAPES = [(96, 96), (128, 128), (160, 96), (64, 192)]
LAYERS = 20  # trials per training
HELD, RIGHT = 1e-3, 1e-2
TARGET = 0.99


def steep(shape: tuple[int, int], kind: int) -> Tensor:
    """Return a weight: Gaussian, with a power law, nearly orthogonal, or with a gap."""
    u, s, vh = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    place = torch.arange(1, len(s) + 1)
    s = [s / s[0], place**-0.5, torch.linspace(1.0, 0.7, len(s)), torch.where(place > 3, 0.4, 1.0)][
        kind % 4
    ]
    return (u * s) @ vh


def leap(weight: Tensor, block: Tensor, times: float, *, least: bool) -> None:
    """Add ``times`` the norm in a direction that is orthogonal to the block."""
    u, s, vh = torch.linalg.svd(weight.double(), full_matrices=False)
    left, right = u[:, -1], vh[-1]
    if not least:
        tall = weight.shape[0] >= weight.shape[1]
        other = torch.randn(block.shape[1], dtype=torch.float64)
        q = torch.linalg.qr(block.double().mT).Q
        other -= q @ (q.mT @ other)
        other /= torch.linalg.vector_norm(other)
        left, right = (left, other) if tall else (other, right)
    weight.add_((times * s[0] * torch.outer(left, right)).float())


@torch.no_grad()
def trials(seed: int) -> list[tuple[float, float, float]]:
    """Return for each layer: times, norm / threshold afterwards, sigma / norm before - 1."""
    torch.manual_seed(seed)
    chance = random.Random(seed)
    layers = [
        nn.Linear(n, m, bias=False) for m, n in (chance.choice(SHAPES) for _ in range(LAYERS))
    ]
    for i, layer in enumerate(layers):
        layer.weight.copy_(steep(tuple(layer.weight.shape), i))
    logging.getLogger("snc").setLevel(logging.ERROR)  # there are no gradients to report
    model = nn.Sequential(*layers)
    limits = [1.05 * norm(layer.weight) for layer in layers]
    names = [f"{i}.weight" for i in range(LAYERS)]
    threshold = dict(zip(names, limits, strict=True))
    callback = SNCallback(model, threshold=threshold, idle_every=1, certify_every=None)
    for _ in range(chance.randrange(3, 19)):  # any phase of the explorer
        for layer in layers:
            layer.weight.add_(torch.randn_like(layer.weight), alpha=3e-4)
        callback.step()
    power = callback._monitor._groups[0].power
    found, before = [chance.uniform(1.25, 6.0) for _ in layers], []
    for i, (layer, times) in enumerate(zip(layers, found, strict=True)):
        leap(layer.weight, power.vectors(i), times, least=bool((i // 4) % 2))
        before.append(norm(layer.weight))
    callback.step()
    after = [norm(layer.weight) / limit for layer, limit in zip(layers, limits, strict=True)]
    callback.step()  # the row of the leap arrives
    sigma = [callback.latest[name]["sigma"] for name in names]
    callback.close()
    assert callback.errors == 0
    told = [a / b - 1 for a, b in zip(sigma, before, strict=True)]
    return list(zip(found, after, told, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(f"python bench/numerics/leaps.py {' '.join(sys.argv[1:])}".rstrip())
    print(
        f"{platform.machine()}, {torch.get_num_threads()} thread, torch {torch.__version__}, ",
        end="",
    )
    print(f"Python {platform.python_version()}; the machine was shared with other work")
    start, rows = time.process_time(), []
    while len(rows) < given.trials:
        rows += trials(given.seed + len(rows))
    held = [after <= 1 + HELD for _, after, _ in rows]
    right = [abs(told) <= RIGHT for _, _, told in rows]
    print(f"{len(rows)} trials, {time.process_time() - start:.0f} s of CPU time")
    for low, high in ((1.25, 1.5), (1.5, 2.5), (2.5, 6.0), (1.25, 6.0)):
        here = [i for i, (times, _, _) in enumerate(rows) if low <= times <= high]
        ok, close = (sum(x[i] for i in here) / len(here) for x in (held, right))
        worst = max(rows[i][1] for i in here)
        off = max(abs(rows[i][2]) for i in here)
        print(
            f"{low:.2f} to {high:.2f} sigma: {len(here)} trials, held at once {100 * ok:.2f} % "
            f"(worst {worst:.4f}), sigma right to 1 % in {100 * close:.2f} % (worst {off:.1e})"
        )
    both = sum(a and b for a, b in zip(held, right, strict=True)) / len(rows)
    verdict = "met" if both >= TARGET else "missed"
    print(f"both: {100 * both:.2f} %, target {100 * TARGET:.0f} %: {verdict}")


if __name__ == "__main__":
    main()
