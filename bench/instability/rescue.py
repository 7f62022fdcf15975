"""What the guard saves beside what jobs do anyway: each faulty training again, under each of them.

    OMP_NUM_THREADS=1 python bench/instability/rescue.py [--seeds 2] [--only GLOB]

Tried are the faults that reach the weights through the steps of a running job, of each kind whose
loss tells how well it trains. Loss is the mean of the last 30 rows; infinite where it is not finite
or the guard has ended the job. The twin is the same training without its fault. Worse: more than
10 % above the twin. Rescued: worse when nothing is done, and not worse under a treatment. A
treatment comes on top of what the training does itself, such as its own clipping. Healthy cost: by
how much the loss of a healthy run rises. Intervals are Wilson's, of 90 %.
"""

from __future__ import annotations

import argparse
import fnmatch
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial

import torch
from kind_scenarios import SCENARIOS
from kinds import KINDS
from scenarios import Scenario
from training import Trained, train, train_alone
from treatments import TREATMENTS

GUARD = "guard"
NEAR, WORST_COST = 0.10, 0.005
DEVIATIONS = 1.645  # of a 90 % interval
THROUGH_STEPS = frozenset((
    "lr_spike", "bad_batch", "ascent", "label_burst", "bit_flip", "nan_gradient", "noise",
    "doubling", "gradient_scale", "no_zero_grad",
))  # fmt: skip
HEALTHY_NAMES = frozenset(("base", "sgd", "cleared", "restart"))
Costs = dict[str, list[tuple[float, str]]]
Rescued = dict[str, dict[str, bool]]


def interventions() -> dict[str, Callable[[Scenario, int], Trained]]:
    """Return what is compared; each makes a treatment of its own for a training."""

    def treated(name: str, scenario: Scenario, seed: int) -> Trained:
        return train_alone(scenario, seed, TREATMENTS[name]())

    return {
        **{name: partial(treated, name) for name in TREATMENTS},
        GUARD: lambda scenario, seed: train(scenario, seed, guard=True),
    }


INTERVENTIONS = interventions()


def is_near(loss: float, good: float) -> bool:
    return loss <= good + NEAR * abs(good)


def rescues(chosen: Iterable[Scenario], seeds: range) -> Rescued:
    """Return run -> intervention -> whether it was rescued, of the runs that end worse."""
    found: Rescued = {}
    print(f"{'run':26}{'twin':>9}{'alone':>9}" + "".join(f"{name:>14}" for name in INTERVENTIONS))
    for scenario in chosen:
        for seed in seeds:
            name = f"{scenario.task} {scenario.name} s{seed}"
            good = train_alone(scenario.twin(), seed).end
            alone = train_alone(scenario, seed).end
            line = f"{name:26}{good:9.3g}{alone:9.3g}"
            if is_near(alone, good):
                print(f"{line}  no worse than its twin", flush=True)
                continue
            ended = {key: run(scenario, seed) for key, run in INTERVENTIONS.items()}
            found[name] = {key: is_near(run.end, good) for key, run in ended.items()}
            print(line + "".join(f"{shown(run, good):>14}" for run in ended.values()), flush=True)
    return found


def shown(run: Trained, good: float) -> str:
    """Return the loss, starred if it is near the twin's, and how many steps were undone."""
    loss = "stopped" if run.stopped else f"{run.end:.3g}"
    undone = f" -{run.vetoes}" if run.vetoes else ""
    return f"{loss}{undone}{'*' if is_near(run.end, good) else ' '}"


def costs(chosen: Iterable[Scenario], seeds: range) -> Costs:
    """Return intervention -> (share by which a healthy run's loss rose, run)."""
    found: Costs = {key: [] for key in INTERVENTIONS}
    for scenario in chosen:
        for seed in seeds:
            name = f"{scenario.task} {scenario.name} s{seed}"
            alone = train_alone(scenario, seed).end
            for key, run in INTERVENTIONS.items():
                cost = (run(scenario, seed).end - alone) / abs(alone)
                found[key].append((cost, name))
            line = "".join(f"{found[key][-1][0]:>+14.2%}" for key in INTERVENTIONS)
            print(f"{name:26}{'':9}{alone:9.3g}{line}", flush=True)
    return found


def interval(count: int, of: int) -> str:
    """Return the share and its interval."""
    square = DEVIATIONS**2
    middle = (count + square / 2) / (of + square)
    half = DEVIATIONS / (of + square) * math.sqrt(count * (of - count) / of + square / 4)
    return f"{count / of:.2f} [{middle - half:.2f}, {middle + half:.2f}]"


def summary(rescued: Rescued, paid: Costs) -> None:
    """Print the table, and whether the targets are met."""
    kinds = {name.split()[0] for name in rescued}
    print(f"\n{len(rescued)} runs of {len(kinds)} kinds end worse than their twin")
    counts = {key: sum(by[key] for by in rescued.values()) for key in INTERVENTIONS}
    for key, count in counts.items():
        worst, where = max(paid[key])
        mean = statistics.mean(cost for cost, _ in paid[key])
        print(
            f"{key:9} rescued {count:3} = {interval(count, len(rescued))}; healthy loss of "
            f"{len(paid[key])} runs: mean {mean:+.2%}, worst {worst:+.2%} ({where})"
        )
    missed = [n for n, by in rescued.items() if any(by.values()) and not by[GUARD]]
    print(f"rescued by another, but not by the guard: {', '.join(missed) or 'none'}")
    is_best = counts[GUARD] == max(counts.values())
    is_cheap = max(paid[GUARD])[0] <= WORST_COST
    print(f"target: the guard rescues most: {'met' if is_best else 'missed'}; ", end="")
    print(f"worst healthy cost <= {WORST_COST:.1%}: {'met' if is_cheap else 'missed'}")


def is_tried(scenario: Scenario, seed: int) -> bool:
    fault = scenario.fault(seed) if scenario.fault and scenario.is_faulty else None
    return fault is not None and fault.kind in THROUGH_STEPS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="*", help="glob over TASK_SCENARIO")
    parser.add_argument("--seeds", type=int, default=1, choices=range(1, 9))
    parser.add_argument(
        "--first-seed", type=int, default=3, choices=range(100), metavar="SEED",
        help="default 3: the guard was looked at on the runs of 0 and 2",
    )  # fmt: skip
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}, ",
        end="",
    )
    print(f"1 thread; {' '.join(sys.argv)}; * within 10 % of the twin; -n: n steps undone")
    begin = time.process_time()
    told = [  # of a moving target the loss does not tell how well it trains
        s
        for s in sorted(SCENARIOS, key=lambda s: s.task == "tf")  # the slow ones last
        if fnmatch.fnmatch(f"{s.task}_{s.name}", options.only)
        and not getattr(KINDS[s.task], "moving", False)
    ]
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    rescued = rescues([s for s in told if is_tried(s, seeds[0])], seeds)
    healthy = [s for s in told if not s.is_faulty and s.name in HEALTHY_NAMES]
    summary(rescued, costs(healthy, seeds))
    print(f"{time.process_time() - begin:.0f} s of one core")
    return 0


if __name__ == "__main__":
    sys.exit(main())
