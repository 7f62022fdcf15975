"""Train, watch and label small real trainings, healthy and faulty; score the shipped rules on them.

    OMP_NUM_THREADS=1 python bench/instability/run.py [--corpus FOLDER] [--keep FOLDER] [--quick]

Every training is watched by the real SNCallback, so sigma is an estimate and gradient and update
norms are what the callback reports. Labels follow the protocol of `snc_service.backtest.score`; the
symptom is found from the loss alone (labelling.py). CORPUS is another folder of labelled runs, to
be scored by the same code. KEEP gets the recordings: what snc backtest reads, with its labels.csv.
"""

from __future__ import annotations

import argparse
import csv
import fnmatch
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "detection"))

from kind_scenarios import SCENARIOS
from kinds import KINDS
from labelling import symptom
from rules import TARGETS, report, table
from scenarios import Scenario
from training import Trained, train

from snc_client.callback.monitor.norms import DEFAULT_SIGNALS

COLUMNS = ("id", "task", "scenario", "healthy", "kind", "cause", "symptom", "steps", "layers",
           "excluded")  # fmt: skip


def label(scenario: Scenario, seed: int, trained: Trained, base: list[float]) -> dict[str, object]:
    """Return the row of labels.csv."""
    fault = scenario.fault(seed) if scenario.fault else None
    row = {
        "id": name(scenario, seed), "task": scenario.task, "scenario": scenario.name,
        "healthy": int(not scenario.is_faulty), "kind": "healthy", "cause": "", "symptom": "",
        "steps": len(trained.losses), "layers": len(trained.arrays["names"]), "excluded": "",
    }  # fmt: skip
    if scenario.is_faulty:
        cause = fault.start if fault else 0
        found = symptom(
            trained.losses, cause, base, moving=getattr(KINDS[scenario.task], "moving", False),
            ramp=scenario.schedule == "ramp",
        )  # fmt: skip
        shown = "" if found.row is None else found.row
        row.update(kind=found.kind, cause=found.cause, symptom=shown)
    return row


def name(scenario: Scenario, seed: int) -> str:
    return f"{'U' if scenario.is_faulty else 'H'}_{scenario.task}_{scenario.name}_s{seed}"


def generate(folder: Path, chosen: list[Scenario], seeds: range) -> Iterator[str]:
    """Write one file per run and labels.csv; yield a line about each run."""
    base: dict[str, list[float]] = {}
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for scenario in chosen:
            for seed in seeds:
                begin = time.process_time()
                trained = train(scenario, seed)
                took = time.process_time() - begin
                if scenario.name == "base":
                    base.setdefault(scenario.task, trained.losses)
                row = label(scenario, seed, trained, base[scenario.task])
                np.savez_compressed(folder / f"{row['id']}.npz", **trained.arrays)
                writer.writerow(row)
                file.flush()  # what is there can be scored while the rest trains
                yield (
                    f"{row['id']:28} {row['kind']:10} cause {row['cause']!s:>3} symptom "
                    f"{row['symptom']!s:>3} end loss {trained.end:10.4g} {took:5.1f} s"
                )


def score(folder: Path, what: str) -> None:
    print(f"\n== {what}")
    print(table(report(folder, 10)))
    if "update_norm" not in DEFAULT_SIGNALS:
        print("-- the same without update_norm, which signals= leaves out by default")
        print(table(report(folder, 10, without=("update_norm",))))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, help="labelled runs to be scored first")
    parser.add_argument("--keep", type=Path, help="a folder for the recordings")
    parser.add_argument("--only", default="*", help="glob over TASK_SCENARIO; base runs always")
    parser.add_argument("--seeds", type=int, default=2, choices=range(1, 9))
    parser.add_argument(
        "--first-seed", type=int, default=2, choices=range(100), metavar="SEED",
        help="default 2: a limit was looked at on the runs of 0 and 1",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="one seed, mlp alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}, ",
        end="",
    )
    print(f"numpy {np.__version__}, 1 thread; {' '.join(sys.argv)}")
    print(TARGETS)
    if options.corpus:
        score(options.corpus, "labelled corpus, exact sigma")
    chosen = [
        scenario
        for scenario in SCENARIOS
        if scenario.name == "base"
        or fnmatch.fnmatch(f"{scenario.task}_{scenario.name}", options.only)
    ]
    if options.quick:
        chosen = [scenario for scenario in chosen if scenario.task == "mlp"]
    with ExitStack() as stack:
        folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        begin = time.process_time()
        print()
        first = options.first_seed
        seeds = range(first, first + (1 if options.quick else options.seeds))
        for line in generate(folder, chosen, seeds):
            print(line, flush=True)
        print(f"{time.process_time() - begin:.0f} s of one core")
        score(folder, "generated runs, watched by SNCallback")
    return 0


if __name__ == "__main__":
    sys.exit(main())
