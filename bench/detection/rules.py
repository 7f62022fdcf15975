"""Score the shipped rules on a folder of labelled runs: recall, lead, false alarms, cost.

    OMP_NUM_THREADS=1 python bench/detection/rules.py FOLDER [--batch ROWS]

FOLDER holds labels.csv and one <id>.npz per run, as docs/backtest.md describes them; the protocol
is that of `snc_service.backtest.score`. An alarm counts as active in every row in which a rule
fires, not only where an event starts.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path

from snc_service.backtest.files import read_run
from snc_service.backtest.labels import read_labels
from snc_service.backtest.replay import Replay, replay
from snc_service.backtest.score import Score

TARGETS = """\
targets: recall >= .90, gradual with lead >= 5 >= .85, median lead >= 50, \
false alarms <= 1 per 10k, <= .3 from row 150"""


def timed(rows: Iterable) -> tuple[Replay, float]:
    """Replay rows that are ready; return what was found and the seconds it took."""
    ready = list(rows)
    begin = time.perf_counter()
    (found,) = replay(ready, [None])
    return found, time.perf_counter() - begin


def table(score: Score) -> str:
    """Return the protocol's figures as lines."""
    return "\n".join(
        (
            f"false alarms {score.false_alarms} in {score.healthy_rows} healthy rows: "
            f"{score.false_rate:.2f} per 10k",
            f"  from row 150: {score.late_false_alarms} in {score.late_healthy_rows}: "
            f"{score.late_false_rate:.2f} per 10k",
            f"recall {len(score.leads)} / {score.symptoms} = {score.recall:.3f}",
            f"gradual recall {len(score.gradual_leads)} / {score.gradual} = "
            f"{score.gradual_recall:.3f}",
            f"gradual, lead >= 5: {score.lead_share(5):.3f}; lead >= 20: "
            f"{score.lead_share(20):.3f}; median lead {score.median_lead:.0f}",
            f"missed: {', '.join(score.missed) or 'none'}",
            f"false alarms in: {dict(score.noisy) or 'none'}",
        )
    )


def report(folder: Path, batch: int, without: Collection[str] = ()) -> Score:
    """Score a folder and print what the protocol's figures do not hold."""
    with (folder / "labels.csv").open(newline="") as lines:
        labels = read_labels(lines)
    score, events = Score(), Counter[str]()
    seconds, rows = 0.0, 0
    for label in labels.values():
        found, took = timed(read_run(folder / f"{label.run}.npz", batch, without=without))
        per_rule = Counter(event.rule for event in found.events)
        if label.excluded:
            print(f"excluded {label.run} ({label.excluded}): {dict(per_rule)}")
        events += per_rule
        seconds, rows = seconds + took, rows + found.last_step
        score.add(label, found.active, found.last_step)
    print(f"{len(labels)} runs, {rows} rows; events per rule: {dict(events)}")
    print(f"cost {1e6 * seconds / rows:.0f} us a row in batches of {batch}")
    return score


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--batch", type=int, default=10, help="rows per batch (default 10)")
    options = parser.parse_args()
    print(table(report(options.folder, options.batch)))
    print(TARGETS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
