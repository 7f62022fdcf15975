"""Power losses and full disks under an embedded store: `make chaos` runs it.

    python bench/service/power.py [--instants 200] [--stride 1] [--seed N]

Power loss: strace records what a service's store writes and syncs; at random instants the unsynced
part is dropped, shuffled or torn, and what is left is opened and compared. Full disk: each kind of
work on a disk with 8 KB left, killed at each statement; needs the right to mount. The rules of both
are in tests/support/power_loss.py and full_disk.py. Ends with an error at the first value lost.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests" / "support"))
sys.path.append(str(Path(__file__).resolve().parents[2] / "tests" / "store"))
sys.path.append(str(Path(__file__).resolve().parents[2] / "tests" / "hardening"))

from full_disk import __file__ as full_disk
from power_loss import recorded
from test_power_loss import lost_power

from snc_service.store import tiles

GROUPS = 120


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--instants", type=int, default=200)
    parser.add_argument("--stride", type=int, default=1, help="kill at every n-th statement")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    asked = parser.parse_args()
    print(
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} cores, load "
        f"{os.getloadavg()[0]:.1f}, Python {platform.python_version()}, "
        f"SQLite {sqlite3.sqlite_version}, seed {asked.seed}"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        power_losses(folder, asked.instants, random.Random(asked.seed))
        (folder / "full").mkdir()
        script = [sys.executable, str(full_disk), str(folder / "full")]
        print("full disk, killed at each statement:", flush=True)
        subprocess.run([*script, str(asked.stride)], check=True)


def power_losses(folder: Path, instants: int, chance: random.Random) -> None:
    """Lose power at random instants of one recording."""
    (folder / "traced").mkdir()
    trace = recorded(folder / "traced", GROUPS)
    synced = sum(isinstance(each, str) for each in trace.happened)
    early = trace.unsynced_acknowledgements()
    print(
        f"power loss: {GROUPS} acknowledgements, {synced} syncs, {len(trace.happened)} records; "
        f"acknowledged before the sync returned: {len(early)}"
    )
    assert not early
    tiles.TILE_STEPS, tiles.FANOUT = 64, 8  # as the recorded process has them
    for number in range(instants):
        there = folder / f"loss{number}"
        there.mkdir()
        lost_power(trace, chance.randrange(len(trace.happened)), there, chance.randrange(2**31))
    print(f"  {instants} instants: 0 acknowledged lost, doubled or torn", flush=True)


if __name__ == "__main__":
    main()
