"""``snc serve --workers``: real processes that share a port over one PostgreSQL."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import httpx
import pytest
from service_process import SERVE, Service, create, post, services, until
from store_cases import as_sent, batch, table

from snc_service.store import open_store

LAYERS = table("a", "b")


def workers_of(service: Service) -> list[int]:
    """Return the processes that a service has started and that serve."""
    pid = service.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    found = []
    for child in children:
        with suppress(OSError):
            if b"multiprocessing.spawn" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(int(child))
    return found


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def sockets(service: Service, state: str) -> dict[int, int]:
    """Return how many sockets of the port in a state (0A: listening, 01: open) each worker has."""
    inodes = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[1].rpartition(":")[2], 16) == service.port and fields[3] == state:
            inodes.add(f"socket:[{fields[9]}]")
    found = {}
    for pid in workers_of(service):
        held = 0
        for file in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                held += os.readlink(file) in inodes
        found[pid] = held
    return found


def both_listen(service: Service) -> bool:
    return sorted(sockets(service, "0A").values()) == [1, 1]


@pytest.mark.timeout(120)
def test_two_workers_share_the_port_and_one_that_is_killed_is_replaced(postgres_url, tmp_path):
    with services(postgres_url, tmp_path, 1, SNC_WORKERS="2") as (one,):
        until(lambda: both_listen(one), one.said)
        asked = set()
        with ExitStack() as stack:  # an idle connection stays open for some seconds only
            for _ in range(30):
                client = stack.enter_context(httpx.Client(timeout=30))
                assert client.get(one.url + "/healthz").status_code == 200
                asked |= {worker for worker, number in sockets(one, "01").items() if number}
        assert asked == set(workers_of(one))  # all on one of two: once in 2**29 runs
        create(one.url, LAYERS)
        before = workers_of(one)
        assert len(before) == 2
        with closing(open_store(postgres_url)) as store:
            for seq in range(40):
                if seq == 20:
                    os.kill(before[0], signal.SIGKILL)
                acknowledged(one, batch(LAYERS, seq, [seq], {"sigma": [[seq, 1.0]]}))
            steps, _ = as_sent(store, "r1", "sigma", ["a", "b"])
        assert steps.tolist() == list(range(40))
        until(lambda: len(workers_of(one)) == 2 and before[0] not in workers_of(one), one.said)
        assert before[1] in workers_of(one)
        until(lambda: both_listen(one), one.said)
        said = said_by("--workers", "2", f"--port={one.port}", f"--store={postgres_url}")
        assert f"cannot listen on 127.0.0.1:{one.port}" in said
        assert "a worker ended with status -9" in one.said()
        workers = workers_of(one)
        one.process.terminate()
        assert one.process.wait(30) == 0
        assert not any(map(is_alive, workers))


def acknowledged(service: Service, one) -> None:
    """Send a batch, each time on a new connection, until it is acknowledged."""
    for _ in itertools.count():
        with suppress(httpx.TransportError), httpx.Client(timeout=30) as client:
            answer = post(client, service.url, one)
            assert answer.status_code in (200, 503), answer.text
            if answer.status_code == 200:
                return


@pytest.mark.timeout(120)
def test_all_end_when_the_first_process_is_killed(postgres_url, tmp_path):
    service = Service(postgres_url, tmp_path / "log", SNC_WORKERS="2")
    try:
        until(lambda: both_listen(service), service.said)
        workers = workers_of(service)
        service.kill()
        until(lambda: not any(map(is_alive, workers)))
    finally:
        if service.process.poll() is None:
            service.kill()


def said_by(*arguments: str) -> str:
    done = subprocess.run([*SERVE, "serve", *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    return done.stderr


def test_an_embedded_store_is_served_by_one_process(tmp_path):
    said = said_by("--workers", "2", f"--store=sqlite:///{tmp_path}/snc.db")
    assert "SNC_WORKERS must be 1 with this store, got 2" in said
    assert not (tmp_path / "snc.db").exists()
