"""Real ``snc serve`` processes: started on a store, asked over HTTP, killed, started again."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx

from snc_client.demo.service import free_port
from snc_service.wire import JSON_MEDIA_TYPE, MEDIA_TYPE, Batch, LayerTable, encode

SERVE = (sys.executable, "-m", "snc_service.cli")


class Service:
    """One process on ``store``, at a port it keeps; ``command`` is what ``serve`` is told to."""

    def __init__(
        self, store: str, log: Path, *, command: Sequence[str] = SERVE, **env: str
    ) -> None:
        self.port, self.log = free_port(0), log
        self.url = f"http://127.0.0.1:{self.port}"
        self._command = [*command, "serve", f"--port={self.port}", f"--store={store}"]
        self._env = {**os.environ, "OMP_NUM_THREADS": "1", "SNC_ACCESS_LOG": "0", **env}
        self.start()

    def start(self) -> float:
        """Return once it serves, and how many seconds that took."""
        began = time.monotonic()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log, env=self._env)
        until(lambda: self.status("/readyz") == 200, self.said)
        return time.monotonic() - began

    def status(self, path: str) -> int | None:
        try:
            return httpx.get(self.url + path, timeout=10).status_code
        except httpx.TransportError:
            assert self.process.poll() is None, self.said()
            return None

    def said(self) -> str:
        return self.log.read_text()[-3_000:]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()
            raise


def until(
    condition: Callable[[], Any], said: Callable[[], str] = lambda: "", seconds: float = 60.0
) -> None:
    """Wait for what other processes bring about."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, said()
        time.sleep(0.02)


@contextmanager
def services(
    store: str, folder: Path, number: int, *, command: Sequence[str] = SERVE, **env: str
) -> Iterator[list[Service]]:
    """Run so many services on one store while the block lasts."""
    with ExitStack() as stack:
        started = []
        for i in range(number):
            started.append(Service(store, folder / f"service{i}.log", command=command, **env))
            stack.callback(started[-1].stop)
        yield started


def create(url: str, layers: LayerTable, run: str = "r1") -> None:
    """Create a run that knows ``layers``."""
    assert httpx.post(f"{url}/api/v1/runs", json={"run": run}).status_code in (200, 201)
    path = f"{url}/api/v1/runs/{run}/layer-tables/{layers.hash}"
    headers = {"Content-Type": JSON_MEDIA_TYPE}
    assert httpx.put(path, content=layers.body, headers=headers).status_code == 204


def post(client: httpx.Client, url: str, one: Batch, run: str = "r1") -> httpx.Response:
    """Send a batch once."""
    path, headers = f"{url}/api/v1/runs/{run}/batches", {"Content-Type": MEDIA_TYPE}
    return client.post(path, content=encode(one), headers=headers)
