"""How well thresholds are held at widths 64, 256 and 768: every layer, every step, every action.

    OMP_NUM_THREADS=1 python bench/numerics/widths.py [WIDTH,STEPS ...]

The model of action_cost.py with one block; all Linears start at sigma = 1, the threshold. AdamW at
1e-3 without a warm-up, so that the first steps are the hardest. After each step the largest
eigenvalue of W'W in float64 is compared with the threshold.
"""

from __future__ import annotations

import copy
import logging
import platform
import sys

import torch
import torch.nn.functional as F
from action_cost import ACTIONS, CONTEXT, VOCABULARY, Model
from torch import Tensor, nn

from snc_client import SNCallback

SIZES = ("64,200", "256,60", "768,12")


def norm(weight: Tensor) -> float:
    wide = weight.detach().double()
    tall = wide if wide.shape[0] >= wide.shape[1] else wide.mT
    return float(torch.linalg.eigvalsh(tall.mT @ tall)[-1].sqrt())


def ratios(first: Model, action: str, steps: int) -> list[float]:
    """Return norm / threshold of every Linear after every step."""
    model = copy.deepcopy(first)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    threshold = {"embedding.*": None, "*": 1.0}
    generator, found = torch.Generator().manual_seed(1), []
    with SNCallback(model, threshold=threshold, **ACTIONS[action]) as callback:
        for _ in range(steps):
            tokens = torch.randint(0, VOCABULARY, (2, CONTEXT + 1), generator=generator)
            logits = model(tokens[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            callback.step(loss=loss)
            found += [norm(m.weight) for m in model.modules() if isinstance(m, nn.Linear)]
        assert callback.errors == 0
    return found


def main() -> None:
    logging.getLogger("snc").setLevel(logging.ERROR)
    print(f"python bench/numerics/widths.py {' '.join(sys.argv[1:])}".rstrip())
    print(
        f"{platform.machine()}, {torch.get_num_threads()} thread, torch {torch.__version__}, ",
        end="",
    )
    print(f"Python {platform.python_version()}; the machine was shared with other work", flush=True)
    for size in sys.argv[1:] or SIZES:
        width, steps = map(int, size.split(","))
        torch.manual_seed(0)
        first = Model(width, 1)
        with torch.no_grad():
            for module in first.modules():
                if isinstance(module, nn.Linear):
                    module.weight.div_(norm(module.weight))
        for action in ACTIONS:
            found = ratios(first, action, steps)
            over = sum(x > 1 + 1e-3 for x in found)
            print(f"width {width}, {steps} steps, {action:9}: norm / threshold at most "
                  f"{max(found):.6f}, at least {min(found):.6f}, above 1 + 1e-3 in {over} of "
                  f"{len(found)} layer-steps", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
