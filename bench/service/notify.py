"""What `notify` in the transaction of a batch would cost on PostgreSQL.

    python bench/service/notify.py [--seconds 3] [--rounds 2]

Sessions insert 2,000 bytes per transaction, with fsync, into a real PostgreSQL of this machine;
the same transactions with a `notify` alternate with those without. Nobody listens. The reason for
the difference is the server's: transactions that notify commit one after the other, so they do not
share a sync to disk.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import threading
import time
from pathlib import Path

import psycopg

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests" / "support"))

from postgres_server import running_postgres

SESSIONS = (1, 4, 16)
PAYLOAD = b"\xab" * 2_000


def commits(url: str, sessions: int, seconds: float, *, notify: bool) -> float:
    """Return the commits per second of so many sessions together."""
    counts, start = [0] * sessions, threading.Barrier(sessions + 1)

    def write(number: int) -> None:
        with psycopg.connect(url) as connection:
            start.wait()
            while time.perf_counter() < end:
                connection.execute("insert into written (v) values (%s)", (PAYLOAD,))
                if notify:
                    connection.execute("notify snc, 'r1'")
                connection.commit()
                counts[number] += 1

    threads = [threading.Thread(target=write, args=(i,)) for i in range(sessions)]
    end = time.perf_counter() + 3_600
    for thread in threads:
        thread.start()
    start.wait()
    began = time.perf_counter()
    end = began + seconds
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    asked = parser.parse_args()
    print(f"$ python bench/service/notify.py {' '.join(sys.argv[1:])}")
    with running_postgres(("fsync=on", "max_wal_size=4GB")) as server:
        url = server.new_url()
        with psycopg.connect(url, autocommit=True) as connection:
            (version,) = connection.execute("show server_version").fetchone()
            connection.execute(
                "create table written (id int generated always as identity primary key, v bytea)"
            )
        print(
            f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} cores, load "
            f"{os.getloadavg()[0]:.1f}, Python {platform.python_version()}, PostgreSQL {version}"
        )
        for sessions in SESSIONS:
            for _ in range(asked.rounds):
                plain = commits(url, sessions, asked.seconds, notify=False)
                told = commits(url, sessions, asked.seconds, notify=True)
                print(
                    f"{sessions:2d} sessions: {plain:.0f} commits/s, with notify {told:.0f} "
                    f"({told / plain:.2f})",
                    flush=True,
                )


if __name__ == "__main__":
    main()
