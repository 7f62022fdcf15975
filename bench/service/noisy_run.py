"""One hostile run beside twenty good ones: what the good ones notice, and what it costs in memory.

    python bench/service/noisy_run.py [--seconds 6] [--rounds 3] [--kinds names reads ...]

A real `snc serve` on a new SQLite file asks for tokens. Twenty runs with a token of their own send
four batches a second each, 1 step x 100 layers x 5 metrics, at planned times (open loop); a batch
counts from its planned time to its acknowledgement. Phases without and with the hostile run
alternate, and in each of the latter it does one kind of thing with its own token as fast as it
can. Ratios compare a phase with the quiet one just before it. The hostile client runs at the lowest
priority: it stands for other machines.

Targets: p99 of the good runs at most 1.5 times that of the quiet phases, all phases together; the
service's memory at most 50 MB larger at the end than after the first quiet phase.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import itertools
import os
import platform
import random
import re
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import httpx
import numpy as np

from snc_service.auth import make_token
from snc_service.store import open_store
from snc_service.wire import MEDIA_TYPE, Batch, LayerTable, encode

GOOD, PER_SECOND, LAYERS = 20, 4, 100
METRICS = ("sigma", "sigma_upper", "threshold", "scale", "residual")
TABLE = LayerTable.of_names([f"blocks.{i}.weight" for i in range(LAYERS)])
BINARY, JSON = {"Content-Type": MEDIA_TYPE}, {"Content-Type": "application/json"}
TARGET_RATIO, TARGET_BYTES = 1.5, 50 * 2**20
AT_ONCE = 8  # requests of the hostile client
SNC = (sys.executable, "-m", "snc_service.cli")


def batch(
    seq: int,
    step: int,
    writer: str,
    *,
    dropped: int = 0,
    table: LayerTable = TABLE,
    extra: str = "",
) -> bytes:
    metrics = METRICS if not extra else (*METRICS, *(f"{extra}{i}" for i in range(20)))
    values = np.random.default_rng(seq).random((len(metrics), 1, len(table.layers)), np.float32)
    return encode(Batch(writer, seq, table.hash, (step,), metrics, values, dropped=dropped))


async def put_table(http: httpx.AsyncClient, run: str, table: LayerTable = TABLE) -> None:
    path = f"/api/v1/runs/{run}/layer-tables/{table.hash}"
    (await http.put(path, content=table.body, headers=JSON)).raise_for_status()


class Hostile:
    """One token and one run; each method is one kind of thing, done once per call."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http, self.numbers = http, itertools.count()
        self.path = "/api/v1/runs/hostile"

    async def begin(self) -> None:
        (await self.http.post("/api/v1/runs", json={"run": "hostile"})).raise_for_status()
        await put_table(self.http, "hostile")
        rng = np.random.default_rng(0)
        for seq in range(40):  # a history that is dear to read
            values = rng.random((5, 250, LAYERS), np.float32)
            steps = tuple(range(250 * seq, 250 * seq + 250))
            content = encode(Batch("past", seq, TABLE.hash, steps, METRICS, values))
            await self._send(content)

    async def _send(self, content: bytes) -> int:
        path = f"{self.path}/batches"
        return (await self.http.post(path, content=content, headers=BINARY)).status_code

    async def names(self) -> None:
        """New names of metrics with every batch."""
        n = next(self.numbers)
        await self._send(batch(0, 10**9 + n, f"n{n}", extra=f"m{n}_"))

    async def writers(self) -> None:
        """A new writer and a new attempt with every batch."""
        n = next(self.numbers)
        await self._send(batch(0, 10**9 - n, f"w{n}"))

    async def tables(self) -> None:
        """A new layer table with every batch."""
        n = next(self.numbers)
        table = LayerTable.of_names([f"t{n}.{i}" for i in range(300)])
        path = f"{self.path}/layer-tables/{table.hash}"
        told = await self.http.put(path, content=table.body, headers=JSON)
        if told.is_success:
            await self._send(batch(0, n, f"t{n}", table=table))

    async def storm(self) -> None:
        """An incident with every batch."""
        n = next(self.numbers)
        await self._send(batch(0, 10**10 + 1_000 * n, f"s{n}", dropped=1))

    async def states(self) -> None:
        """The run ends and begins again."""
        await self.http.post(f"{self.path}/finish", json={"state": "failed"})
        await self.http.post("/api/v1/runs", json={"run": "hostile"})

    async def reads(self) -> None:
        """Heatmaps and histories of everything."""
        what = random.choice(("heatmap?points=500&layers=500", "heatmap?metric=ratio", "layers"))
        await self.http.get(f"{self.path}/{what}&limit=500" if "?" not in what else
                            f"{self.path}/{what}")  # fmt: skip

    async def metrics(self) -> None:
        """Its exposition, again and again."""
        await self.http.get(f"/metrics/runs/hostile?{next(self.numbers)}")
        await self.http.get("/metrics/runs/hostile")

    async def exports(self) -> None:
        """Exports that are dropped in the middle."""
        async with self.http.stream("GET", f"{self.path}/export") as told:
            async for _ in told.aiter_raw():
                break

    async def streams(self) -> None:
        """As many streams as there are, opened and dropped."""
        async with self.http.stream("GET", f"{self.path}/stream") as told:
            if told.is_success:
                async for _ in told.aiter_raw():
                    break

    async def bombs(self) -> None:
        """Bodies that inflate beyond the limit, and senseless JSON."""
        packed = {**BINARY, "Content-Encoding": "gzip"}
        await self.http.post(f"{self.path}/batches", content=BOMB, headers=packed)
        await self.http.post(f"{self.path}/batches", content=DEEP, headers=JSON)


KINDS = [
    name for name, each in vars(Hostile).items()
    if asyncio.iscoroutinefunction(each) and name not in ("begin", "_send")
]  # fmt: skip
BROKEN: Counter[str] = Counter()  # connections that ended under a batch of a good run
BOMB = gzip.compress(bytes(64 * 2**20), 9)
DEEP = b'{"writer":"w","seq":0,"steps":[0],"scalars":{"a":' + b"[" * 200_000


async def sent_until_answered(http: httpx.AsyncClient, run: str, content: bytes) -> httpx.Response:
    """Send a batch again if its connection ended, as the sender of a job does; it counts once."""
    while True:
        try:
            path = f"/api/v1/runs/{run}/batches"
            return await http.post(path, content=content, headers=BINARY)
        except httpx.TransportError:
            BROKEN[run] += 1
            assert BROKEN[run] <= 20, f"the service ends every connection of {run}"


async def good(
    http: httpx.AsyncClient, run: str, seqs: itertools.count[int], until: float, told: list[float]
) -> None:
    """Send batches at planned times; an answer other than 200 is an error of the service."""
    due = time.perf_counter() + random.random() / PER_SECOND
    while due < until:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        seq = next(seqs)
        answer = await sent_until_answered(http, run, batch(seq, seq, "w"))
        assert answer.status_code == 200, answer.text
        told.append(time.perf_counter() - due)
        due += random.expovariate(PER_SECOND)


def p(values: list[float], quantile: float) -> float:
    return sorted(values)[int(quantile * (len(values) - 1))] * 1e3


def memory(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024


async def hostile_client(url: str, token: str, kind: str, seconds: float) -> None:
    """Do one kind of thing for a time: the work of a process of its own."""
    headers = {"Authorization": f"Bearer {token}"}
    limits = httpx.Limits(max_connections=AT_ONCE)
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60, limits=limits) as http:
        one = Hostile(http)
        one.numbers = itertools.count(int(time.time() * 1e3) % 10**8)
        work: Callable[[], Awaitable[None]] = getattr(one, kind)
        until, done = time.perf_counter() + seconds, 0

        async def again() -> None:
            nonlocal done
            while time.perf_counter() < until:
                try:
                    await work()
                    done += 1
                except httpx.HTTPError:
                    await asyncio.sleep(0.05)

        await asyncio.gather(*(again() for _ in range(AT_ONCE)))
        print(done)


async def measure(
    url: str, tokens: list[str], pid: int, seconds: float, rounds: int, kinds: list[str]
) -> None:
    clients = [
        httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {t}"}, timeout=60)
        for t in tokens
    ]
    seqs = [itertools.count() for _ in range(GOOD)]
    for i in range(GOOD):
        (await clients[i].post("/api/v1/runs", json={"run": f"good{i}"})).raise_for_status()
        await put_table(clients[i], f"good{i}")
    await Hostile(clients[GOOD]).begin()

    async def phase() -> list[float]:
        told: list[float] = []
        until = time.perf_counter() + seconds
        await asyncio.gather(
            *(good(clients[i], f"good{i}", seqs[i], until, told) for i in range(GOOD))
        )
        return told

    await phase()
    begun = memory(pid)
    quiet: list[float] = []
    loud: list[float] = []
    by_kind: dict[str, list[tuple[float, float, int]]] = {kind: [] for kind in kinds}
    held: dict[str, list[int]] = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind in kinds:
            before = await phase()
            command = [sys.executable, __file__, "--as", kind, "--url", url]
            process = subprocess.Popen(
                ["nice", "-n", "19", *command, "--seconds", str(seconds)],
                stdout=subprocess.PIPE, text=True, env={**os.environ, "HOSTILE": tokens[GOOD]},
            )  # fmt: skip
            during = await phase()
            done = int((await asyncio.to_thread(process.communicate))[0] or 0)
            quiet += before
            loud += during
            by_kind[kind].append((p(before, 0.99), p(during, 0.99), done))
            held[kind].append(memory(pid) - begun)
            print(f"  {kind}: {done:,} done", file=sys.stderr, flush=True)
    grown = memory(pid) - begun
    for kind, seen in by_kind.items():
        ratio = statistics.median(during / before for before, during, _ in seen)
        done = sum(number for *_, number in seen)
        shown = ", ".join(f"{before:.0f} -> {during:.0f}" for before, during, _ in seen)
        after = ", ".join(f"{each / 2**20:+.0f}" for each in held[kind])
        print(
            f"  {kind:8} {done:7,} done; p99 in ms {shown}; median ratio {ratio:.2f}; "
            f"memory in MB {after}"
        )
    ratio = p(loud, 0.99) / p(quiet, 0.99)
    print(f"quiet: {len(quiet):,} batches, p50 {p(quiet, 0.5):.1f} ms, p99 {p(quiet, 0.99):.1f} ms")
    print(f"loud:  {len(loud):,} batches, p50 {p(loud, 0.5):.1f} ms, p99 {p(loud, 0.99):.1f} ms")
    print(f"p99 ratio {ratio:.2f} (target {TARGET_RATIO}): {'met' if ratio <= 1.5 else 'missed'}")
    print(f"connections that ended under a batch: {BROKEN.total()}")
    verdict = "met" if grown <= TARGET_BYTES else "missed"
    print(f"memory +{grown / 2**20:.0f} MB (target 50): {verdict}")
    for each in clients:
        await each.aclose()


def tokens_in(url: str) -> list[str]:
    """Return the secrets of the good runs and of the hostile one, which is the last."""
    secrets = []
    with closing(open_store(url)) as store:
        for i in range(GOOD + 1):
            token, secret = make_token(
                f"t{i}", ("ingest", "read"), project=None, author="bench", now=0, expires_at=None
            )
            store.tokens.add(token)
            secrets.append(secret)
    return secrets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=6.0, help="of a phase")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--as", dest="kind", help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.kind:
        asyncio.run(hostile_client(asked.url, os.environ["HOSTILE"], asked.kind, asked.seconds))
        return
    print(
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} cores, load "
        f"{os.getloadavg()[0]:.1f}, Python {platform.python_version()}, numpy {np.__version__}, "
        f"SQLite {sqlite3.sqlite_version}",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        store = f"sqlite:///{folder}/snc.db"
        made = tokens_in(store)
        process = subprocess.Popen(
            [*SNC, "serve", "--port=0", "--store", store],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        try:
            url = process.stdout.readline().split("serves ")[1].split("/ ")[0]
            work = measure(url, made, process.pid, asked.seconds, asked.rounds, asked.kinds)
            asyncio.run(work)
        finally:
            process.terminate()
            process.wait(30)


if __name__ == "__main__":
    main()
