"""Score the shipped rules on a folder of labelled runs: recall, lead, false alarms, cost.

    OMP_NUM_THREADS=1 python bench/rules.py FOLDER [--batch ROWS]

FOLDER holds labels.csv and one <id>.npz per run, as its README describes; so is the protocol.
An alarm counts as active in every row in which a rule fires, not only where an event starts.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections import Counter
from pathlib import Path
from statistics import median

import numpy as np

from snc_service.detect.rules import judge
from snc_service.store.protocol import Rows
from snc_service.wire import ABSENT, Batch, LayerTable

QUIET = 50
METRICS = {"sigma": "sigma", "frobenius": "fro", "grad_norm": "gnorm", "update_norm": "unorm"}
SCALARS = {"loss": "loss", "grad_norm": "ggrad", "lr": "lr"}


def batches(run, size: int):
    """Yield the run as a client reports it: sigma alone at attach, then `size` rows a batch."""
    names = tuple(str(name) for name in run["names"])
    table = LayerTable.of_names(names).hash
    first = np.asarray(run["s0"], np.float32)[None, None]
    nothing = np.full((len(SCALARS), 1), ABSENT, np.float32)
    yield Rows(
        "r", Batch("w", 0, table, (0,), ("sigma",), first, tuple(SCALARS), nothing), names, 0, False
    )
    for start in range(0, len(run["loss"]), size):
        part = slice(start, start + size)
        values = np.stack([run[key][part] for key in METRICS.values()]).astype(np.float32)
        scalars = np.stack([run[key][part] for key in SCALARS.values()]).astype(np.float32)
        steps = tuple(range(start + 1, start + 1 + values.shape[1]))
        yield Rows(
            "r",
            Batch("w", 0, table, steps, tuple(METRICS), values, tuple(SCALARS), scalars),
            names,
            0,
            False,
        )


def replay(run, size: int) -> tuple[np.ndarray, Counter, float]:
    """Return which rows are active [T], the events per rule, and the seconds it took."""
    active = np.zeros(len(run["loss"]), bool)
    events: Counter[str] = Counter()
    state = None
    seconds = 0.0
    for rows in batches(run, size):
        begin = time.perf_counter()
        verdict = judge(state, rows)
        seconds += time.perf_counter() - begin
        state = verdict.state
        for steps in verdict.firing.values():
            active[np.array(steps) - 1] = True  # step 0 is the row at attach
        events.update(event.rule for event in verdict.events)
    return active, events, seconds


def episodes(active: np.ndarray) -> list[int]:
    """Return the rows at which an episode opens."""
    opened, before = [], -(10**9)
    for row in np.flatnonzero(active):
        if row - before > QUIET:
            opened.append(int(row))
        before = row
    return opened


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--batch", type=int, default=10, help="rows per batch (default 10)")
    options = parser.parse_args()
    labels = list(csv.DictReader((options.folder / "labels.csv").open()))
    false, false_late, healthy, healthy_late = 0, 0, 0, 0
    detected, symptoms, gradual, gradual_detected, leads, gradual_leads = 0, 0, 0, 0, [], []
    events, noisy = Counter(), Counter()
    seconds = rows = 0
    for label in labels:
        run = np.load(options.folder / f"{label['id']}.npz", allow_pickle=False)
        active, per_rule, took = replay(run, options.batch)
        events += per_rule
        seconds, rows = seconds + took, rows + len(active)
        is_healthy = label["healthy"] == "1"
        cause = len(active) if is_healthy else int(label["cause"])
        if label["excluded"] not in ("", "0"):
            print(f"excluded {label['id']} ({label['excluded']}): {dict(per_rule)}")
            continue
        alarms = [row for row in episodes(active) if row < cause]
        if alarms:
            noisy[label["id"]] = len(alarms)
        false, healthy = false + len(alarms), healthy + cause
        false_late += sum(row >= 150 for row in alarms)
        healthy_late += max(0, cause - 150)
        if is_healthy or not label["symptom"]:
            continue
        symptom = int(label["symptom"])
        hits = np.flatnonzero(active[cause : symptom + 6])
        symptoms += 1
        is_gradual = symptom - cause >= 20
        gradual += is_gradual
        if hits.size:
            lead = symptom - (cause + int(hits[0]))
            detected += 1
            leads.append(lead)
            if is_gradual:
                gradual_detected += 1
                gradual_leads.append(lead)
    print(f"events per rule: {dict(events)}")
    print(f"false alarms in: {dict(noisy)}")
    print(f"false alarms {false} in {healthy} healthy rows: {1e4 * false / healthy:.2f} per 10k")
    print(f"  from step 150: {false_late} in {healthy_late}: {1e4 * false_late / healthy_late:.2f}")
    print(f"recall {detected} / {symptoms} = {detected / symptoms:.3f}")
    print(f"lead >= 1: {sum(lead >= 1 for lead in leads) / symptoms:.3f}")
    print(f"gradual recall {gradual_detected} / {gradual} = {gradual_detected / gradual:.3f}")
    for least in (5, 20):
        share = sum(lead >= least for lead in gradual_leads) / gradual
        print(f"gradual, lead >= {least}: {share:.3f}")
    print(f"median lead, gradual: {median(gradual_leads):.0f}")
    print(f"cost {1e6 * seconds / rows:.0f} us a row in batches of {options.batch}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
