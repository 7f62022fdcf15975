"""The demo's own service: a real ``snc serve`` process on the embedded store."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

START_SECONDS = 30.0


class ServiceFailed(Exception):
    """The service did not start; the text contains its output."""


def free_port(preferred: int) -> int:
    """Return ``preferred`` if nothing listens there, else a port the system picks."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            # The service itself binds with this option, so a port in TIME_WAIT counts as free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return int(probe.getsockname()[1])
    raise ServiceFailed("no free port on 127.0.0.1")


@contextlib.contextmanager
def serving(store: Path, port: int) -> Iterator[str]:
    """Run ``snc serve`` while the block lasts; yield its URL once it answers /readyz."""
    url = f"http://127.0.0.1:{port}"
    log_path = store.with_suffix(".log")
    options = ["--host=127.0.0.1", f"--port={port}", f"--store=sqlite:///{store}"]
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "snc_service.cli", "serve", *options],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_until_ready(process, url, log_path)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log_path: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with contextlib.suppress(httpx.HTTPError):
            # A proxy of the environment does not reach this machine.
            if httpx.get(f"{url}/readyz", timeout=1.0, trust_env=False).status_code == 200:
                return
        time.sleep(0.1)
    said = log_path.read_text(errors="replace").strip()[-2_000:]
    raise ServiceFailed(f"the service did not start at {url}: {said or 'it printed nothing'}")
