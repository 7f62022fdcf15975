"""By how much sigma of healthy trainings grows over its start, by kind of layer.

    OMP_NUM_THREADS=1 python bench/instability/growth.py [--seeds 1] [--only GLOB]

Growth: the largest sigma of a layer over its first one, at the end of a healthy training. Layers
born below 1e-6 are left out. A threshold of this many times the start writes no healthy weight.
"""

from __future__ import annotations

import argparse
import fnmatch
import platform
import sys
import time
from collections import defaultdict

import numpy as np
import torch
from kind_scenarios import SCENARIOS
from scenarios import Scenario
from training import train

QUANTILES = (0.5, 0.9, 0.99, 1.0)
LEAST = 1e-6


def growth(scenario: Scenario, seed: int) -> dict[str, tuple[str, float]]:
    """Return layer -> its kind and its growth."""
    trained = train(scenario, seed)
    first = np.asarray(trained.arrays["s0"], np.float64)
    most = np.asarray(trained.arrays["sigma"], np.float64).max(axis=0)
    return {
        name: (trained.kinds[name], float(largest / start))
        for name, start, largest in zip(trained.arrays["names"].tolist(), first, most, strict=True)
        if start > LEAST
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="*", help="glob over TASK_SCENARIO")
    parser.add_argument("--seeds", type=int, default=1, choices=range(1, 9))
    parser.add_argument("--first-seed", type=int, default=2, choices=range(100), metavar="SEED")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}, "
        f"1 thread; {' '.join(sys.argv)}"
    )
    begin = time.process_time()
    found: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for scenario in SCENARIOS:
        name = f"{scenario.task}_{scenario.name}"
        if scenario.is_faulty or not fnmatch.fnmatch(name, options.only):
            continue
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            for layer, (kind, grown) in growth(scenario, seed).items():
                found[kind].append((grown, f"{name}_s{seed} {layer}"))
    print(f"{'kind':14}{'layers':>8}" + "".join(f"{f'q{q:g}':>9}" for q in QUANTILES))
    for kind, values in sorted(found.items()):
        at = np.quantile([grown for grown, _ in values], QUANTILES)
        shown = "".join(f"{value:9.2f}" for value in at)
        print(f"{kind:14}{len(values):8}{shown}  {', '.join(w for _, w in sorted(values)[-3:])}")
    print(f"{time.process_time() - begin:.0f} s of one core")
    return 0


if __name__ == "__main__":
    sys.exit(main())
