"""By how much the event loop of a service comes late under ingest, scrapes and heatmaps together.

    python bench/service/loop_lag.py [--seconds 20] [--engines sqlite postgres] [--rate 400]

A real `snc serve` takes small batches (100 writers, 100 layers x 1 step x 5 metrics, open loop,
``--rate`` a second in all) while one client scrapes `/metrics` and one asks for heatmaps (500 x 500
of 1,000 layers x 2,000 steps) and histories, each again as soon as it has its answer, after a pause
of 0.2 seconds. The service measures itself as it always does, but 200 times a second instead of 4,
and keeps each figure; beside them are what other threads were about whenever it came late. The same
service without any load says what the machine itself adds. Target: p99 at most 10 ms.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1]))

from ingest import Case, measure, stores

from snc_service.cli.main import main as snc
from snc_service.wire import MEDIA_TYPE, encode

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests" / "support"))

from service_process import Service, create
from store import Walk, table

TARGET_SECONDS = 0.010
LOOK_SECONDS = 0.005
PROBE = "--probe"
WRITERS, LAYERS = 100, 100
HELD_LAYERS, HELD_STEPS = 1_000, 2_000
SCRAPE, HEATMAP, HISTORY = (
    "/metrics",
    "/api/v1/runs/held/heatmap?points=500&layers=500",
    "/api/v1/runs/held/layers/l3/history?points=1000",
)


def probe(told: Path, arguments: list[str]) -> int:
    """Be the service, and write each delay and what ran meanwhile to a file at the end."""
    from snc_service import background_tasks
    from snc_service.exposition import Exposition

    found: list[tuple[float, float]] = []
    meanwhile: Counter[str] = Counter()

    def observe(self: Exposition, seconds: float) -> None:
        found.append((time.time(), seconds))
        if seconds > TARGET_SECONDS:
            mine = threading.get_ident()
            for thread, frame in sys._current_frames().items():
                if thread != mine:
                    (place,) = traceback.extract_stack(frame, limit=1)
                    meanwhile[f"{Path(place.filename).name}:{place.name}:{place.lineno}"] += 1

    # The server raises the signal that ended it once more, for whoever was there before.
    signal.signal(signal.SIGTERM, lambda sig, frame: sys.exit(0))
    background_tasks.LAG_PAUSE_SECONDS = LOOK_SECONDS
    Exposition.observe_lag = observe
    try:
        return snc(arguments)
    finally:
        told.write_text(json.dumps({"delays": found, "meanwhile": meanwhile.most_common(25)}))


@contextmanager
def probed(store: str, folder: Path):
    told = folder / "told"
    command = (sys.executable, __file__, PROBE, str(told))
    service = Service(store, folder / "log", command=command)
    try:
        yield service, told
    finally:
        service.stop()


def hold(url: str) -> None:
    """Store the run of which heatmaps are asked for."""
    layers = table(HELD_LAYERS)
    create(url, layers, "held")
    walk = Walk("w", layers)
    with httpx.Client(timeout=60) as http:
        for _ in range(HELD_STEPS // 100):
            http.post(
                f"{url}/api/v1/runs/held/batches",
                content=encode(walk.batch(100)),
                headers={"Content-Type": MEDIA_TYPE},
            ).raise_for_status()


class Asker(threading.Thread):
    """Ask for some paths in turn, with pauses; ``times`` are the seconds of each answer."""

    def __init__(self, url: str, *paths: str) -> None:
        super().__init__()
        self.url, self.paths = url, paths
        self.times: list[float] = []
        self.stop = threading.Event()

    def run(self) -> None:
        with httpx.Client(base_url=self.url, timeout=60) as http:
            while not self.stop.is_set():
                began = time.perf_counter()
                path = self.paths[len(self.times) % len(self.paths)]
                # Unread: what a client does with it is not measured here.
                with http.stream("GET", path, headers={"Accept-Encoding": "gzip"}) as answer:
                    answer.raise_for_status()
                    size = len(gzip.decompress(b"".join(answer.iter_raw())))
                assert size > 1_000
                self.times.append(time.perf_counter() - began)
                self.stop.wait(0.2)


def figures(name: str, delays: np.ndarray) -> float:
    p50, p99 = np.quantile(delays, 0.5), np.quantile(delays, 0.99)
    print(
        f"  {name}: {len(delays)} looks, p50 {p50 * 1e3:.2f} ms, p99 {p99 * 1e3:.2f} ms, "
        f"longest {delays.max() * 1e3:.1f} ms, above 10 ms {np.mean(delays > 0.01):.2%}",
        flush=True,
    )
    return float(p99)


def loaded(engine: str, seconds: float, rate: float) -> None:
    with (
        tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name,
        stores(engine, Path(name)) as store,
    ):
        with probed(store, Path(name)) as (service, told):
            hold(service.url)
            time.sleep(2)
            quiet = (time.time(), time.sleep(3), time.time())
            askers = [Asker(service.url, SCRAPE), Asker(service.url, HEATMAP, HISTORY)]
            began = time.time()
            for asker in askers:
                asker.start()
            try:
                case = Case("lag", WRITERS, LAYERS, 1, rate)
                measure(service.url, service.process.pid, case, seconds)
            finally:
                busy = (began, time.time())
                for asker in askers:
                    asker.stop.set()
                for asker in askers:
                    asker.join()
            for asker in askers:
                print(f"    {len(asker.times)} x {asker.paths[0]}: p50 "
                      f"{1e3 * np.median(asker.times):.0f} ms")  # fmt: skip
        found = json.loads(told.read_text())
        delays = np.array(found["delays"])
        at, late = delays[:, 0], delays[:, 1]
        figures("without load", late[(at > quiet[0]) & (at < quiet[2])])
        p99 = figures("under load", late[(at > busy[0] + 1) & (at < busy[1])])
        is_met = p99 <= TARGET_SECONDS
        print(f"  target p99 <= {TARGET_SECONDS * 1e3:.0f} ms: {'met' if is_met else 'missed'}")
        print("  whenever it came late, other threads were at:")
        for place, count in found["meanwhile"][:12]:
            print(f"    {count:5d} {place}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--engines", nargs="+", default=["sqlite", "postgres"])
    parser.add_argument("--rate", type=float, default=400, help="batches a second, all together")
    asked = parser.parse_args()
    print(f"$ python bench/service/loop_lag.py {' '.join(sys.argv[1:])}")
    print(
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} cores, load "
        f"{os.getloadavg()[0]:.1f}, Python {platform.python_version()}, numpy {np.__version__}"
    )
    for engine in asked.engines:
        print(f"{engine}:", flush=True)
        loaded(engine, asked.seconds, asked.rate)


if __name__ == "__main__":
    if PROBE in sys.argv:
        at = sys.argv.index(PROBE)
        sys.exit(probe(Path(sys.argv[at + 1]), sys.argv[at + 2 :]))
    main()
