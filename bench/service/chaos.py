"""kill -9 under load and a bad network, many rounds per engine: `make chaos`.

    python bench/service/chaos.py [--rounds 100] [--engines sqlite postgres] [--seed N]

Prints a line per round; tests/support/kill_rounds.py says what a round is and what is compared
after it. Rules, alerts and retention are on. Ends with an error at the first bit that is lost, torn
or doubled. A seed repeats the moments of the kills, as far as processes keep time. Target: 100
rounds per engine without an error.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import sqlite3
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests" / "support"))
sys.path.append(str(Path(__file__).resolve().parents[2] / "tests" / "store"))

from kill_rounds import play

TARGET_ROUNDS = 100  # per engine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100, help="per engine")
    parser.add_argument("--engines", nargs="+", default=["sqlite", "postgres"])
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    asked = parser.parse_args()
    print(
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} cores, load "
        f"{os.getloadavg()[0]:.1f}, Python {platform.python_version()}, "
        f"SQLite {sqlite3.sqlite_version}, seed {asked.seed}"
    )
    for engine in asked.engines:
        print(f"{engine}:", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            for line in play(engine, asked.rounds, Path(folder), asked.seed):
                print(f"  {line}", flush=True)
        reached = "met" if asked.rounds >= TARGET_ROUNDS else f"not tried, {asked.rounds} asked for"
        print(f"  target {TARGET_ROUNDS} rounds: {reached}", flush=True)


if __name__ == "__main__":
    main()
