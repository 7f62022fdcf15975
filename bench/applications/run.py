"""Three uses of spectral norms, and a fourth, each variant on the same seeds and steps.

    OMP_NUM_THREADS=1 python bench/applications/run.py [--short] [--only GLOB] [--figures docs]

Needs the extra [bench]. All variants of a study have the same seeds, steps, data and learning rate;
nothing is chosen afterwards. Each kind of variant gets a few values of its one knob, and all of
them are printed: mean over seeds ± half of the 95 % interval (Student's t). CPU is the CPU time of
a step over that of the first variant: means, one thread, steps of all variants in shuffled turns.
Binds: the share of measurements at which the tightest layer was written.
"""

from __future__ import annotations

import argparse
import fnmatch
import logging
import os
import platform
import shlex
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import gan
import harness
import rl
import robust
import torch
import transformer
from figure import draw

STUDIES = (*gan.STUDIES, *robust.STUDIES, *rl.STUDIES, *transformer.STUDIES)
OPTIONAL = ("deel", "gymnasium", "stable_baselines3")  # of the extra [bench]
SHORT, SHORT_SEEDS, SEEDS = 0.05, 2, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help=f"{SHORT:.0%} of the steps, 2 seeds")
    parser.add_argument("--share", type=float, default=1.0, help="of the full steps")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--only", default="*", help="glob over names of studies")
    parser.add_argument("--variants", nargs="+", default=["*"], help="globs over their names")
    parser.add_argument("--keep", type=Path, help="a folder for all values, as JSON")
    parser.add_argument("--kept", type=Path, help="such a folder: print and draw, train nothing")
    parser.add_argument("--project", action="store_true", help="say how long it would take")
    parser.add_argument("--figures", type=Path, help="a folder for one figure per study")
    given = parser.parse_args()
    if given.short:
        given.share, given.seeds = SHORT, SHORT_SEEDS
    logging.getLogger("snc").setLevel(logging.ERROR)
    print(f"python bench/applications/run.py {shlex.join(sys.argv[1:])}".rstrip())
    print(f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}, "
          f"{given.jobs} processes of 1 thread; {given.seeds} seeds, {given.share:.2f} of the full "
          "steps; the machine was shared with other work", flush=True)  # fmt: skip
    for package in filter(lambda name: find_spec(name) is None, OPTIONAL):
        print(f"{package} is not installed: what needs it is left out")
    studies = [s for s in STUDIES if fnmatch.fnmatch(s.name, given.only)]
    if given.project:
        project(studies, given)
        return
    for study in studies:
        run(chosen(study, given.variants), given)


def project(studies: list[harness.Study], given: argparse.Namespace) -> None:
    """Print how long the studies would take on quiet cores, at the speed of this moment."""
    total = 0.0
    for study in studies:
        alone, shared = harness.projected(study, steps_of(study, given.share), given.seeds)
        total += alone + shared / given.jobs
        print(f"{study.name:20s}{alone + shared:9.0f} s of CPU", flush=True)
    print(f"all, on {given.jobs} cores of their own: {total / 60:.0f} minutes")


def steps_of(study: harness.Study, share: float) -> int:
    return study.first + max(20, round(share * study.steps))


def run(study: harness.Study, given: argparse.Namespace) -> None:
    start, spent, took = time.monotonic(), cpu_seconds(), ""
    steps = steps_of(study, given.share)
    if given.kept:
        outcomes = harness.load(given.kept, study)
        steps = outcomes[0].steps[-1]
    else:
        seconds = harness.step_seconds(study)
        outcomes = []
        for outcome in harness.trained(study, range(given.seeds), steps, given.jobs):
            outcome.cost = seconds[outcome.variant] / seconds[study.variants[0].name]
            outcomes.append(outcome)
            if given.keep:
                harness.save(given.keep, study, outcomes)
        took = f", {time.monotonic() - start:.0f} s, {cpu_seconds() - spent:.0f} s of CPU"
    print(f"\n{study.name}: {study.title}; {steps} steps{took}")
    print(harness.table(study, outcomes), flush=True)
    if given.figures:
        draw(study, outcomes, given.figures / f"uses-{study.name}.png")


def chosen(study: harness.Study, globs: list[str]) -> harness.Study:
    """Return the study with the variants that any of the globs names."""
    named = [v for v in study.variants if any(fnmatch.fnmatch(v.name, glob) for glob in globs)]
    return replace(study, variants=tuple(named))


def cpu_seconds() -> float:
    """Return the CPU time of this process and of its children that have ended."""
    return sum(os.times()[:4])


if __name__ == "__main__":
    main()
