"""The three benches of the hot paths, a release beside this checkout, interleaved.

    python bench/before_after.py RELEASE_CHECKOUT [--rounds 16]

RELEASE_CHECKOUT is a folder with another commit, as ``git worktree add`` makes it. Both run with
this interpreter. Some six minutes; nothing else should run meanwhile.

* The step of `SNCallback` (bench/overhead.py): a process for each checkout, which take turns of one
  training step for each variant. CPU time behind ``optimizer.step()``; the ratio is the median over
  rounds of (this / release) in the same round.
* bench/exposition.py and bench/ingest.py run whole in each checkout, in the order release, this,
  this, release; the ratio is that of the smaller of the two results each.

A ratio within 3 % counts as equal.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent
LIMIT = 1.03
MANY, WIDTH, STEPS, WARM_UP = 100, 64, 8, 24  # layers of the small model; its steps in a round
WHOLE = {
    "exposition": ["bench/exposition.py", "--rounds", "15"],
    "ingest": ["bench/ingest.py", "--seconds", "2", "--engines", "sqlite"],
}


def step_worker() -> None:
    """Answer each line of stdin with {variant: CPU seconds behind the optimizer's step}."""
    import overhead  # the bench beside this file, in both checkouts
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    made = {
        "observe, sigma alone": overhead.with_callback(overhead.Transformer(), signals=("loss",)),
        "observe": overhead.with_callback(overhead.Transformer()),
        "rescale at 1.1x init": overhead.with_callback(
            overhead.Transformer(), threshold="1.1x init"
        ),
        "strict at 1.1x init": overhead.with_callback(
            overhead.Transformer(), threshold="1.1x init", strict=True
        ),
    }
    many = torch.nn.Sequential(*(torch.nn.Linear(WIDTH, WIDTH) for _ in range(MANY)))
    small = overhead.with_callback(many, threshold="3x init")
    generator = torch.Generator().manual_seed(1)
    for parameter in many.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)

    def step_many() -> float:
        small.optimizer.step()
        loss, began = torch.zeros(()), time.process_time()
        small.after(many, loss)
        return time.process_time() - began

    def round_() -> dict[str, float]:
        shape = (overhead.BATCH, overhead.CONTEXT + 1)
        tokens = torch.randint(overhead.VOCABULARY, shape, generator=generator)
        for variant in made.values():
            variant.step(tokens, timed=True)
        found = {name: variant.after_seconds[-1] for name, variant in made.items()}
        return {**found, f"{MANY} layers {WIDTH} x {WIDTH}": min(step_many() for _ in range(STEPS))}

    for _ in range(WARM_UP):
        round_()
    for _ in sys.stdin:
        print(json.dumps(round_()), flush=True)


def environment(checkout: Path) -> dict[str, str]:
    paths = [checkout, checkout / "client", HERE / "bench"]
    kept = {key: value for key, value in os.environ.items() if not key.startswith("SNC_")}
    return {**kept, "PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1"}


def steps(release: Path, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Return for each variant the (release, this) seconds of every round."""
    command = [sys.executable, str(Path(__file__).resolve()), "--step-worker"]
    workers = [
        subprocess.Popen(
            command,
            env=environment(checkout),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for checkout in (release, HERE)
    ]
    found: dict[str, list[tuple[float, float]]] = {}
    for k in range(rounds):
        answers: list[Any] = [None, None]
        for i in (0, 1) if k % 2 else (1, 0):
            to, back = workers[i].stdin, workers[i].stdout
            assert to is not None
            assert back is not None
            print("go", file=to, flush=True)
            answers[i] = json.loads(back.readline())
        for name in answers[0]:
            found.setdefault(name, []).append((answers[0][name], answers[1][name]))
    for worker in workers:
        worker.communicate()
    return found


def rendered(output: str) -> Iterator[tuple[str, float]]:
    """Yield the milliseconds of each case of bench/exposition.py: the whole, and its rendering.

    Rendering is the whole less the reads, timed apart: it looks dearer where reads grow cheaper.
    """
    for line in output.splitlines():
        if (found := re.match(r" *(\d+) +(\d+) +([\d.]+) +([\d.]+) ", line)) is not None:
            series, runs, read, render = found.groups()
            case = f"{series} series of {runs} runs, ms"
            yield f"exposition, {case}", float(read) + float(render)
            yield f"  of it rendering, {case}", float(render)


def ingested(output: str) -> Iterator[tuple[str, float]]:
    """Yield the CPU microseconds of a batch in each case of bench/ingest.py."""
    rules = ""
    for line in output.splitlines():
        if (found := re.match(r" +detection (on|off):", line)) is not None:
            rules = found[1]
        elif (found := re.match(r" +(\w+): .*per batch (\d+) us CPU", line)) is not None:
            yield f"ingest, {found[1]} batch, rules {rules}, us CPU", float(found[2])


def whole(release: Path) -> dict[str, tuple[float, float]]:
    """Return for each case of both benches the smaller result of (release, this)."""
    results: tuple[dict[str, float], dict[str, float]] = ({}, {})
    for i in (0, 1, 1, 0):
        checkout = HERE if i else release
        for bench, arguments in WHOLE.items():
            ran = subprocess.run(
                [sys.executable, *arguments],
                cwd=checkout,
                env=environment(checkout),
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            cases = rendered(ran.stdout) if bench == "exposition" else ingested(ran.stdout)
            for name, value in cases:
                results[i][name] = min(value, results[i].get(name, value))
    return {name: (results[0][name], results[1][name]) for name in results[0]}


def commit_of(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def verdict(ratio: float) -> str:
    return f"{ratio:.3f}  {'met' if ratio <= LIMIT else 'missed'}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("release", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--step-worker", action="store_true")
    given = parser.parse_args()
    if given.step_worker:
        step_worker()
        return
    if given.release is None or not (given.release / "client").is_dir():
        parser.error(f"release must be the folder of a checkout, got {given.release}")
    release = given.release.resolve()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"release {commit_of(release)}, this {commit_of(HERE)}; ratio: this / release")
    print(f"\nstep of SNCallback, CPU ms, {given.rounds} rounds")
    for name, pairs in steps(release, given.rounds).items():
        before, after = (1e3 * statistics.median(side) for side in zip(*pairs, strict=True))
        low, ratio, high = statistics.quantiles([new / old for old, new in pairs], n=4)
        print(f"{name:48} {before:8.2f} {after:8.2f}   {verdict(ratio)} ({low:.3f}, {high:.3f})")
    print("\nwhole benches, the better of two runs each", flush=True)
    for name, (before, after) in whole(release).items():
        print(f"{name:48} {before:8.2f} {after:8.2f}   {verdict(after / before)}")


if __name__ == "__main__":
    main()
