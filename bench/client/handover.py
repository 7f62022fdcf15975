"""What a step costs the training thread when it hands its row to the sender.

    python bench/client/handover.py

For 100 and 1,000 layers x 5 metrics and 3 scalars: CPU of the training thread and wall time of
`Sender.put`, median and 99th percentile, at a real `snc serve` process on this machine, at a
service that is switched off, at one that accepts and never answers, and with a spool on local disk.
Between two steps the loop multiplies matrices for about 2 ms, as a training would. The floor is the
copy of the same array. Also: how long the constructor takes, and what the sender's own thread costs
per value. Targets: CPU p50 at most 20 us at 100 layers and 50 us at 1,000; a constructor without a
service in at most 50 ms.
"""

from __future__ import annotations

import argparse
import os
import platform
import socket
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from snc_client.demo.service import free_port, serving
from snc_client.sender import Sender
from snc_service.wire import LayerTable

METRICS = ("sigma", "sigma_upper", "threshold", "scale", "residual")
SCALARS = {"loss": 0.5, "lr": 1e-3, "step_seconds": 0.01}
TARGETS = {100: 20.0, 1_000: 50.0}  # CPU p50 of a hand-over, microseconds
BUILT_TARGET = 50_000.0  # of the constructor, microseconds
STEPS = 1_500
WARM_UP = 100


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    print(f"# {time.strftime('%Y-%m-%d')} python bench/client/handover.py")
    print(
        f"# {platform.processor() or platform.machine()}, {os.cpu_count()} cores, loaded:", end=""
    )
    print(f" {os.getloadavg()[0]:.1f}; Python {platform.python_version()}, numpy {np.__version__}")
    print(f"# float32, {len(METRICS)} metrics, {len(SCALARS)} scalars, {STEPS} steps; microseconds")
    row(
        "layers",
        "service",
        "CPU p50",
        "CPU p99",
        "wall p50",
        "wall p99",
        "built in",
        "thread/value",
        "targets",
    )
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        live = stack.enter_context(serving(folder / "snc.db", free_port(0)))
        silent = stack.enter_context(socket.socket())
        silent.bind(("127.0.0.1", 0))
        silent.listen(100)  # connections are accepted by the system, and nobody reads
        places = {
            "live": (live, None),
            "live, spool": (live, folder / "spool"),
            "switched off": (f"http://127.0.0.1:{free_port(0)}", None),
            "off, spool": (f"http://127.0.0.1:{free_port(0)}", folder / "spool-off"),
            "never answers": (f"http://127.0.0.1:{silent.getsockname()[1]}", None),
        }
        for num_layers in (100, 1_000):
            floor(num_layers)
            for name, (url, spool) in places.items():
                handed_over(num_layers, name, url, spool)


def handed_over(num_layers: int, name: str, url: str, spool: Path | None) -> None:
    table = LayerTable.of_names(f"blocks.{i}.weight" for i in range(num_layers))
    start = time.perf_counter()
    out = Sender(url, table=table, metrics=METRICS, spool=spool)
    built = time.perf_counter() - start
    values = np.random.default_rng(0).random((len(METRICS), num_layers), np.float32)

    def put(step: int) -> None:
        out.put(step, values, SCALARS, 1_763_800_000.0 + step)

    own = time.process_time()
    cpu, wall, ours = timed(put)
    threads = time.process_time() - own - ours
    out.close(30 if name.startswith("live") else 0.1)
    if name.startswith("live"):
        assert out.dropped_values == 0, out.last_error
    per_value = threads / (STEPS + WARM_UP) / values.size
    row(
        *(num_layers, name, *spread(cpu), *spread(wall)),
        *(f"{built * 1e6:.0f}", f"{per_value * 1e6:.3f}"),
        met(np.median(cpu) / 1e3 <= TARGETS[num_layers] and built * 1e6 <= BUILT_TARGET),
    )


def met(reached: bool) -> str:
    return "met" if reached else "missed"


def floor(num_layers: int) -> None:
    values = np.random.default_rng(0).random((len(METRICS), num_layers), np.float32)
    kept: list[np.ndarray] = []
    cpu, wall, _ = timed(lambda step: kept.append(values.copy()))
    row(num_layers, "floor: copy", *spread(cpu), *spread(wall), "", "")


def timed(act: Callable[[int], None]) -> tuple[np.ndarray, np.ndarray, float]:
    """Return CPU and wall seconds of ``act`` by step, and the CPU of the whole thread."""
    work = np.random.default_rng(1).random((256, 256), np.float32)
    cpu, wall = np.empty(STEPS), np.empty(STEPS)
    thread = time.thread_time()
    for step in range(-WARM_UP, STEPS):
        work @ work
        work @ work
        time.sleep(5e-4)
        began, cpu_began = time.perf_counter_ns(), time.thread_time_ns()
        act(step + WARM_UP)
        cpu_ended, ended = time.thread_time_ns(), time.perf_counter_ns()
        if step >= 0:
            cpu[step], wall[step] = cpu_ended - cpu_began, ended - began
    return cpu, wall, time.thread_time() - thread


def spread(nanoseconds: np.ndarray) -> tuple[str, str]:
    return tuple(f"{np.percentile(nanoseconds, q) / 1e3:.1f}" for q in (50, 99))


def row(*cells: object) -> None:
    print("".join(f"{cell!s:>14}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
