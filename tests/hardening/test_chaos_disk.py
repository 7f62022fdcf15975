"""A disk that fills, under the service and under the spool: nothing breaks, and writing resumes."""

from __future__ import annotations

import subprocess
from contextlib import closing

import httpx
import numpy as np
import psycopg
import pytest
from ledger import Ledger, Reply, serving
from service_process import SERVE, Service, create, post, services, until
from small_disk import small_disk
from store_cases import batch, new_run, stored, submit, table

from snc_client.sender import Pace, Sender
from snc_service.store import open_store
from snc_service.store.types import StoreFull
from snc_service.wire import LayerTable

WIDE = table(*(f"l{i}" for i in range(1_000)))
STEPS = 20
MEGABYTES = 16
POINTS = 4_000  # of a history; with more steps it would be one of buckets


def big(seq: int):
    """Return batch ``seq``: 80 KB that no codec makes smaller."""
    rng = np.random.default_rng(seq)
    sigma = rng.integers(0, 2**31 - 2**24, (STEPS, 1_000), dtype=np.uint32).view(np.float32)
    sigma = np.where(np.isfinite(sigma), sigma, np.float32(1))
    return batch(WIDE, seq, range(STEPS * seq, STEPS * (seq + 1)), {"sigma": sigma})


def refused(answer: httpx.Response) -> None:
    assert answer.status_code == 503, answer.text
    assert answer.json()["type"] == "/problems/storage-full", answer.text
    assert int(answer.headers["Retry-After"]) >= 1


def filled(client: httpx.Client, service: Service, seq: int) -> int:
    """Post batches from ``seq`` on until the disk is full; return the seq that was refused."""
    while (answer := post(client, service.url, big(seq))).status_code == 200:
        seq += 1
        assert seq < 100 * MEGABYTES, "the disk never filled"
    refused(answer)
    return seq


def check(service: Service, batches: int) -> None:
    """Compare three layers of everything that was acknowledged."""
    wanted = np.concatenate([one.values[0] for one in map(big, range(batches))])
    for layer in (0, 500, 999):
        path = f"{service.url}/api/v1/runs/r1/layers/l{layer}/history"
        for first in range(0, len(wanted), POINTS):
            some = wanted[first : first + POINTS, layer]
            window = {"from_step": first, "to_step": first + len(some) - 1, "points": POINTS}
            got = httpx.get(path, params={"metric": "sigma"} | window, timeout=30).json()
            assert got["steps"] == list(range(first, first + len(some)))
            np.testing.assert_array_equal(np.array(got["mean"], np.float32), some)


@pytest.mark.timeout(240)
def test_a_full_disk_is_503_storage_full_reads_go_on_and_writing_resumes(tmp_path):
    with (
        small_disk(tmp_path / "disk", MEGABYTES) as disk,
        services(f"sqlite:///{disk.folder}/snc.db", tmp_path, 1) as (service,),
        httpx.Client(timeout=30) as client,
    ):
        create(service.url, WIDE)
        seq = filled(client, service, 0)
        assert seq > 20
        assert service.status("/healthz") == service.status("/readyz") == 200
        check(service, seq)
        refused(post(client, service.url, big(seq)))
        # A process that dies now starts on the full disk, and serves what it has.
        disk.fill()
        service.kill()
        service.start()
        check(service, seq)
        refused(post(client, service.url, big(seq)))
        disk.grow(2 * MEGABYTES)
        assert post(client, service.url, big(seq - 1)).json()["duplicate"]
        again = filled(client, service, seq)
        assert again > seq
        check(service, again)
        disk.grow(4 * MEGABYTES)
        assert post(client, service.url, big(again)).json()["duplicate"] is False
        check(service, again + 1)


@pytest.mark.timeout(120)
def test_a_full_disk_under_the_spool_costs_nothing_while_memory_lasts(tmp_path, caplog):
    layers = LayerTable.of_names([f"l{i}" for i in range(2_000)])
    pace = Pace(linger_seconds=0.01, first_backoff_seconds=0.01, max_backoff_seconds=0.05)

    def row(step: int) -> np.ndarray:
        return np.random.default_rng(step).random((1, 2_000), np.float32)

    with small_disk(tmp_path / "disk", 1) as disk, serving(Ledger()) as ledger:
        ledger.before = lambda _: Reply(503, b"{}")
        out = Sender(
            ledger.url, table=layers, metrics=("sigma",), run="r", spool=disk.folder, pace=pace
        )
        for step in range(300):  # 2.4 MB
            out.put(step, row(step), {}, 1.0)
        until(lambda: "No space left on device" in caplog.text)
        ledger.before = lambda _: None
        out.close(60)
    assert out.dropped_values == 0
    rows = ledger.rows("r")
    assert [step for _, step in rows] == list(range(300))
    assert all(got.tobytes() == row(step).tobytes() for (_, step), (got, _) in rows.items())


def test_a_full_disk_of_postgresql_is_told_from_a_server_that_is_away(postgres):
    url = postgres.new_url()
    with closing(open_store(url)) as store:
        new_run(store)
        store.batches.put_layer_table("r1", WIDE)
        with psycopg.connect(url, autocommit=True) as connection:
            # What the server says itself when it cannot extend a file.
            connection.execute(
                "create function full_disk() returns trigger language plpgsql as "
                "$$ begin raise exception 'could not extend file' using errcode = '53100'; end $$"
            )
            connection.execute(
                "create trigger full_disk before insert on tail for each row "
                "execute function full_disk()"
            )
            with pytest.raises(StoreFull, match="could not extend file"):
                submit(store, [big(0)])
            assert store.runs.get("r1").last_step is None
            connection.execute("drop trigger full_disk on tail")
        stored(store, big(0))
    postgres.drop(url)


@pytest.mark.parametrize("there", [False, True], ids=["new", "of an earlier start"])
def test_a_disk_that_cannot_be_written_gets_one_sentence(tmp_path, there):
    with small_disk(tmp_path / "disk", 2) as disk:
        if there:
            open_store(f"sqlite:///{disk.folder}/snc.db").close()
        disk.protect()
        done = subprocess.run(
            [*SERVE, "serve", "--port=0", f"--store=sqlite:///{disk.folder}/snc.db"],
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 1
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("snc: ")]
    assert "snc.db cannot be used" in said
    assert "Traceback" not in done.stderr
