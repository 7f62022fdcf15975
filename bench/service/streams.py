"""A thousand event streams asked for at once: how many open, and what the others notice.

    python bench/service/streams.py [--streams 1000] [--tokens 20]

A real `snc serve` on a new SQLite file asks for tokens. Its bounds are the defaults: 64 streams of
a token, 200 in all. Every token asks for its part of the streams of one run, over connections of
their own that are kept open whatever the answer. Of each answer the first line is read and nothing
after it. Meanwhile one run sends a batch every quarter of a second. Printed are the answers, the
times to the acknowledgement before and during, the memory of the service, and whether streams open
again once all connections have ended.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import platform
import resource
import sqlite3
import subprocess
import tempfile
import time
from collections import Counter
from contextlib import closing
from urllib.parse import urlsplit

import httpx
from noisy_run import BINARY, SNC, batch, memory, p, put_table

from snc_service.auth import make_token
from snc_service.store import open_store

SECONDS = 15.0
Opened = tuple[int, asyncio.StreamWriter | None]


def tokens_in(url: str, count: int) -> list[str]:
    secrets = []
    with closing(open_store(url)) as store:
        for i in range(count):
            token, secret = make_token(
                f"t{i}", ("ingest", "read"), project=None, author="bench", now=0, expires_at=None
            )
            store.tokens.add(token)
            secrets.append(secret)
    return secrets


async def opened(port: int, secret: str) -> Opened:
    """Ask for a stream; return the status (0: no answer) and the connection, which stays open."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"Host: 127.0.0.1\r\nAuthorization: Bearer {secret}\r\n\r\n"
        writer.write(f"GET /api/v1/runs/r/stream HTTP/1.1\r\n{head}".encode())
        line = await asyncio.wait_for(reader.readline(), 30)
        return (int(line.split()[1]) if line else 0), writer
    except (OSError, TimeoutError):
        return 0, None


async def acknowledged(http: httpx.AsyncClient, seqs: itertools.count[int]) -> list[float]:
    told = []
    until = time.perf_counter() + SECONDS
    while time.perf_counter() < until:
        begun, seq = time.perf_counter(), next(seqs)
        answer = await http.post(
            "/api/v1/runs/r/batches", content=batch(seq, seq, "w"), headers=BINARY
        )
        assert answer.status_code == 200, answer.text
        told.append(time.perf_counter() - begun)
        await asyncio.sleep(0.25)
    return told


async def measure(url: str, secrets: list[str], count: int, pid: int) -> None:
    port, seqs = urlsplit(url).port or 0, itertools.count()
    headers = {"Authorization": f"Bearer {secrets[-1]}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as http:
        (await http.post("/api/v1/runs", json={"run": "r"})).raise_for_status()
        await put_table(http, "r")
        quiet = await acknowledged(http, seqs)
        before = memory(pid)
        begun = time.perf_counter()
        asked = [opened(port, secrets[i % (len(secrets) - 1)]) for i in range(count)]
        streams = await asyncio.gather(*asked)
        seconds = time.perf_counter() - begun
        told = Counter(status for status, _ in streams)
        answers = ", ".join(f"{number:,} x {status}" for status, number in sorted(told.items()))
        print(f"{count:,} streams of {len(secrets) - 1} tokens in {seconds:.1f} s: {answers}")
        loud = await acknowledged(http, seqs)
        for name, times in (("before", quiet), ("with them", loud)):
            print(f"  {name}: {len(times)} batches, p50 {p(times, 0.5):.1f} ms, "
                  f"slowest {1e3 * max(times):.1f} ms")  # fmt: skip
        print(f"  memory +{(memory(pid) - before) / 2**20:.1f} MB")
        for _, writer in streams:
            if writer is not None:
                writer.close()
        begun = time.perf_counter()
        while (again := await opened(port, secrets[0]))[0] != 200:
            assert time.perf_counter() < begun + 60, again
            await asyncio.sleep(0.1)
        print(f"  a stream opens again {time.perf_counter() - begun:.1f} s after they have ended")
        assert again[1] is not None, "it was answered"
        again[1].close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=1_000)
    parser.add_argument("--tokens", type=int, default=20)
    asked = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 65_536), most))
    print(
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} cores, load "
        f"{os.getloadavg()[0]:.1f}, Python {platform.python_version()}, "
        f"SQLite {sqlite3.sqlite_version}",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        store = f"sqlite:///{folder}/snc.db"
        secrets = tokens_in(store, asked.tokens + 1)
        process = subprocess.Popen(
            [*SNC, "serve", "--port=0", "--store", store],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        try:
            url = process.stdout.readline().split("serves ")[1].split("/ ")[0]
            asyncio.run(measure(url, secrets, asked.streams, process.pid))
        finally:
            process.terminate()
            process.wait(30)


if __name__ == "__main__":
    main()
