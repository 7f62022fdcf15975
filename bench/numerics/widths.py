"""How well thresholds are held at widths 64, 256 and 768: every layer, every step, every action.

    OMP_NUM_THREADS=1 python bench/numerics/widths.py [WIDTH,STEPS ...] [--actions rescale ...]
        [--optimizers AdamW Muon-like] [--thresholds "1.0x init" "1.1x init"]

The model of action_cost.py with one block; all Linears start at sigma = 1. AdamW at 1e-3, or the
Muon-like optimizer of character_model.py at 0.02, without a warm-up, so that the first steps are
the hardest. After each step the largest eigenvalue of W'W in float64 is compared with the
threshold.
"""

from __future__ import annotations

import argparse
import copy
import logging
import platform
import sys

import torch
import torch.nn.functional as F
from action_cost import ACTIONS, CONTEXT, VOCABULARY, Model
from character_model import MuonLike
from torch import Tensor, nn

from snc_client import SNCallback

SIZES = ("64,60", "256,60", "768,60")


def norm(weight: Tensor) -> float:
    wide = weight.detach().double()
    tall = wide if wide.shape[0] >= wide.shape[1] else wide.mT
    return float(torch.linalg.eigvalsh(tall.mT @ tall)[-1].sqrt())


def linears(model: nn.Module) -> dict[str, nn.Parameter]:
    return {f"{x}.weight": m.weight for x, m in model.named_modules() if isinstance(m, nn.Linear)}


def optimizer_of(name: str, model: nn.Module) -> torch.optim.Optimizer:
    if name == "AdamW":
        return torch.optim.AdamW(model.parameters(), lr=1e-3)
    matrices = [w for name, w in linears(model).items() if not name.startswith("head")]
    known = set(map(id, matrices))
    return MuonLike(matrices, [w for w in model.parameters() if id(w) not in known])


def ratios(
    first: Model, action: str, steps: int, optimizer_name: str, limit: str
) -> tuple[list[float], int]:
    """Return norm / threshold of every Linear after every step; how many certificates were made."""
    model = copy.deepcopy(first)
    optimizer = optimizer_of(optimizer_name, model)
    weights = linears(model)
    limits = {name: float(limit.split("x")[0]) * norm(w) for name, w in weights.items()}
    generator, found, certified = torch.Generator().manual_seed(1), list[float](), 0
    threshold = {"embedding.*": None, "*": limit}
    with SNCallback(model, threshold=threshold, **ACTIONS[action]) as callback:
        for _ in range(steps):
            tokens = torch.randint(0, VOCABULARY, (2, CONTEXT + 1), generator=generator)
            logits = model(tokens[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            callback.step(loss=loss)
            ages = (callback.latest[name].get("certified_age") for name in weights)
            certified += sum(age == 0 for age in ages)
            found += [norm(w) / limits[name] for name, w in weights.items()]
        assert callback.errors == 0
    return found, certified


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sizes", nargs="*", default=list(SIZES))
    parser.add_argument("--actions", nargs="+", default=list(ACTIONS))
    parser.add_argument("--optimizers", nargs="+", default=["AdamW"])
    parser.add_argument("--thresholds", nargs="+", default=["1.0x init"])
    given = parser.parse_args()
    logging.getLogger("snc").setLevel(logging.ERROR)
    print(f"python bench/numerics/widths.py {' '.join(sys.argv[1:])}".rstrip())
    print(
        f"{platform.machine()}, {torch.get_num_threads()} thread, torch {torch.__version__}, ",
        end="",
    )
    print(f"Python {platform.python_version()}; the machine was shared with other work", flush=True)
    for size in given.sizes:
        width, steps = map(int, size.split(","))
        torch.manual_seed(0)
        first = Model(width, 1)
        with torch.no_grad():
            for weight in linears(first).values():
                weight.div_(norm(weight))
        variants = [
            (optimizer, limit, action)
            for optimizer in given.optimizers
            for limit in given.thresholds
            for action in given.actions
        ]
        for optimizer, limit, action in variants:
            found, certified = ratios(first, action, steps, optimizer, limit)
            over = sum(x > 1 + 1e-3 for x in found)
            print(f"width {width}, {steps} steps, {optimizer:9}, {limit}, {action:9}: "
                  f"norm / threshold at most {max(found):.6f}, at least {min(found):.6f}, "
                  f"above 1 + 1e-3 in {over} of {len(found)} layer-steps, "
                  f"{certified} certificates", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
