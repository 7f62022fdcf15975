"""Rounds of kill -9 under load and a bad network, per engine; after each, every bit is compared.

A round starts two writers that post batches and a job that reports through a `Sender` with a spool,
all through proxies that delay, cut and repeat requests. In the midst of it one or two of these are
killed with -9 and started again: the service (of two on PostgreSQL: one), PostgreSQL with all its
processes, the job, whose spool may also lose the end of its last record. Then:

* every batch that was acknowledged to a writer is stored once, bit for bit, and nothing else is;
* every row acknowledged to the job is, too; of the others, the last ones may be missing if the job
  was killed (they were not in its spool yet), and the round says how many;
* counters of breaches are exact, so nothing was taken in twice;
* the events of a run have all numbers, none twice, and have passed the outbox; each incident was
  delivered to a receiver at least once;
* a run that was deleted meanwhile is gone with all its rows, and so is one that ended long ago:
  retention is on, and looks once a second;
* whatever was killed served again by itself.

SQLite lies on a small disk, where mounting is allowed, and one of the victims is that disk: it is
full for a while.

After the last round all rounds are compared once more.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx
import pytest
from chaos_job import Job
from listeners import Listener, listening
from postgres_server import PostgresServer, running_postgres
from service_process import Service, create, post, services, until
from small_disk import SmallDisk, small_disk
from store_cases import NOW, judge, new_run
from store_victim import LAYERS, WRITERS, batch_number, submission
from test_store_kill import check
from unkind_proxy import UnkindProxy, unkind

from snc_service.store import Store, open_store

Victim = str  # service, postgres, disk or job
FAULT_RATE = 0.2  # of requests
DISK_MEGABYTES = 96
# A service that lives for seconds never comes to deletions that wait for five minutes.
SERVE = (
    sys.executable,
    "-c",
    "from snc_service import background_tasks; background_tasks.KEEP_PAUSE_SECONDS = 1.0; "
    "from snc_service.cli.main import main; main()",
)


@dataclass
class World:
    """What is started once for all rounds of an engine."""

    folder: Path
    store_url: str
    services: list[Service]
    proxies: list[UnkindProxy]
    server: PostgresServer | None
    disk: SmallDisk | None
    listener: Listener

    @property
    def victims(self) -> list[Victim]:
        others = {"postgres": self.server, "disk": self.disk}
        return ["service", "job"] + [name for name, there in others.items() if there is not None]

    def said(self) -> str:
        return "\n".join(service.said() for service in self.services)


@contextmanager
def world(engine: str, folder: Path, seed: int) -> Iterator[World]:
    """Start a store with one service (SQLite) or two (PostgreSQL), each behind a proxy."""
    with ExitStack() as stack:
        server, disk, number = None, None, 1
        if engine == "sqlite":
            with suppress(pytest.skip.Exception):  # without the right to mount
                disk = stack.enter_context(small_disk(folder / "disk", DISK_MEGABYTES))
        url = f"sqlite:///{folder if disk is None else disk.folder}/snc.db"
        if engine == "postgres":
            server = stack.enter_context(running_postgres())
            url, number = server.new_url(), 2
        listener = stack.enter_context(listening())
        settings = {"SNC_ALERT_NETWORKS": "127.0.0.0/8", "SNC_KEEP_DAYS": "1"}
        started = stack.enter_context(services(url, folder, number, command=SERVE, **settings))
        routing = {
            "receivers": {"pager": {"type": "webhook", "url": listener.url, "secret": "x" * 16}},
            "routes": [{"receivers": ["pager"]}],
        }
        httpx.put(f"{started[0].url}/api/v1/alerting", json=routing).raise_for_status()
        proxies = [stack.enter_context(unkind(one.url, seed + i)) for i, one in enumerate(started)]
        yield World(folder, url, started, proxies, server, disk, listener)


class Writer(threading.Thread):
    """Post batches to all services in turn, each until it is acknowledged."""

    def __init__(self, name: str, run: str, urls: list[str]) -> None:
        super().__init__()
        self.writer, self.run_name, self.urls = name, run, urls
        self.stop = threading.Event()
        self.abandoned = False  # the round has failed: a batch need not arrive any more
        self.acknowledged = -1
        self.wrong = ""

    def run(self) -> None:
        turn = 0
        with httpx.Client(timeout=30) as client:
            while not self.stop.is_set() and not self.wrong:
                one = batch_number(self.writer, self.acknowledged + 1)
                while not self._acknowledged(client, self.urls[turn % len(self.urls)], one):
                    if self.abandoned:
                        return
                    turn += 1
                    time.sleep(0.01)
                self.acknowledged += 1
                turn += 1

    def _acknowledged(self, client: httpx.Client, url: str, one) -> bool:
        try:
            answer = post(client, url, one, self.run_name)
        except httpx.TransportError:
            return False
        if answer.status_code not in (200, 503):
            self.wrong = answer.text
        return answer.status_code != 503


class Deleter(threading.Thread):
    """Delete a run through all services in turn, until one says that it is gone."""

    def __init__(self, run: str, urls: list[str]) -> None:
        super().__init__()
        self.run_name, self.urls, self.is_done = run, urls, False
        create(urls[0], LAYERS, run)
        with httpx.Client(timeout=30) as client:
            for seq in range(3):
                assert post(client, urls[0], batch_number("one", seq), run).status_code == 200

    def run(self) -> None:
        for turn in range(3_000):
            try:
                url = f"{self.urls[turn % len(self.urls)]}/api/v1/runs/{self.run_name}"
                status = httpx.delete(url, timeout=30).status_code
            except httpx.TransportError:
                status = 503
            if status in (204, 404):
                self.is_done = True
                return
            assert status == 503, status
            time.sleep(0.01)


def _end_long_ago(store_url: str, run: str) -> None:
    """Store a run that ended at `NOW`, which retention has to delete."""
    with closing(judge(open_store(store_url))) as store:
        new_run(store, run)
        store.batches.put_layer_table(run, LAYERS)
        aged = [replace(submission("one", seq), run=run) for seq in range(3)]
        assert all(outcome.error is None for outcome in store.batches.ingest(aged))
        store.runs.finish(run, "finished", NOW)


def _run_ids(store: Store, table: str) -> list[tuple[int]]:
    with store._database.read() as connection:
        return connection.execute(f"select run_id from {table}").fetchall()


def _names(store: Store) -> set[str]:
    with store._database.read() as connection:
        return {run for (run,) in connection.execute("select run from run_name").fetchall()}


@dataclass
class Round:
    """One round, and what came of it."""

    number: int
    seed: int
    killed: list[Victim] = field(default_factory=list)
    slowest_start: float = 0.0
    lost_rows: int = 0
    events: int = 0

    def play(self, world: World) -> None:
        """Let everybody write, kill, start again, let them end, and compare."""
        rng = random.Random(self.seed)
        direct = f"direct{self.number}"
        create(world.services[0].url, LAYERS, direct)
        self.aged = f"aged{self.number}"
        _end_long_ago(world.store_url, self.aged)
        self.deleter = Deleter(f"old{self.number}", [one.url for one in world.services])
        for proxy in world.proxies:
            proxy.rate = FAULT_RATE
        urls = [proxy.url for proxy in world.proxies]
        self.writers = [Writer(name, direct, urls) for name in WRITERS]
        for thread in (*self.writers, self.deleter):
            thread.start()
        self.job = Job(rng.choice(urls), f"job{self.number}", world.folder)
        try:
            for victim in self._plan(world, rng):
                self._grown(world, 3)
                time.sleep(rng.uniform(0, 0.3))
                self._kill(world, victim, rng)
                self.killed.append(victim)
            self._grown(world, 3)
        except BaseException:
            self.job.process.kill()
            for writer in self.writers:
                writer.abandoned = True
            raise
        finally:
            for proxy in world.proxies:
                proxy.rate = 0.0
            for writer in self.writers:
                writer.stop.set()
            for thread in (*self.writers, self.deleter):
                thread.join()
        self.job.finish()
        until(lambda: self._told(world), world.said)
        self._check_events(world)
        self.check(world)

    def _told(self, world: World) -> bool:
        """Return whether every incident of the writers' run was delivered, and there is one."""
        incidents = httpx.get(
            f"{world.services[0].url}/api/v1/incidents",
            params={"run": f"direct{self.number}", "limit": 100},
            timeout=30,
        )
        if incidents.status_code != 200:
            return False
        wanted = {item["incident"] for item in incidents.json()["items"]}
        heard = {request.json()["incident"] for request in list(world.listener.heard)}
        return bool(wanted) and wanted <= heard

    def _check_events(self, world: World) -> None:
        for run in (f"direct{self.number}", f"job{self.number}"):
            items, cursor = [], None
            while True:
                params = {"limit": 100} | ({"cursor": cursor} if cursor else {})
                page = httpx.get(
                    f"{world.services[0].url}/api/v1/runs/{run}/events", params=params, timeout=30
                ).json()
                items += page["items"]
                cursor = page["next"]
                if cursor is None:
                    break
            numbers = sorted(item["id"] for item in items)
            assert numbers == list(range(1, len(numbers) + 1)), (run, numbers)
            self.events += len(numbers)

    def check(self, world: World) -> None:
        """Compare everything of this round with what the store has."""
        with closing(open_store(world.store_url)) as store:
            assert self.deleter.is_done
            until(lambda: self.aged not in _names(store), world.said)
            for table in ("deleted_run", "alert_outbox"):
                # The last events of the job were stored a moment ago; alerts take them by seconds.
                until(lambda table=table: not _run_ids(store, table), lambda table=table: table)
            assert self.deleter.run_name not in _names(store)
            acknowledged = {writer.writer: writer.acknowledged for writer in self.writers}
            check(store, acknowledged, f"direct{self.number}")
            self.lost_rows = self.job.check(store)

    def _plan(self, world: World, rng: random.Random) -> list[Victim]:
        """Return one or two victims; over the rounds each has its turn."""
        turn = world.victims[self.number % len(world.victims)]
        return [turn] + ([rng.choice(world.victims)] if rng.random() < 0.4 else [])

    def _grown(self, world: World, by: int) -> None:
        """Wait until all writers and the job have got further."""
        wanted = [writer.acknowledged + by for writer in self.writers]
        step = self.job.handed + by
        pairs = list(zip(self.writers, wanted, strict=True))

        def grown() -> bool:
            for writer in self.writers:
                assert not writer.wrong, writer.wrong
            assert self.job.process.poll() is None, self.job.process.stderr.read()
            return self.job.handed >= step and all(w.acknowledged >= n for w, n in pairs)

        until(grown, world.said)

    def _kill(self, world: World, victim: Victim, rng: random.Random) -> None:
        down = rng.uniform(0, 0.3)
        if victim == "service":
            service = rng.choice(world.services)
            service.kill()
            time.sleep(down)
            self.slowest_start = max(self.slowest_start, service.start())
        elif victim == "disk":
            world.disk.fill()
            time.sleep(down)
            world.disk.release()
        elif victim == "postgres":
            world.server.kill()
            time.sleep(down)
            world.server.start()
            until(lambda: all(one.status("/readyz") == 200 for one in world.services), world.said)
        else:
            self.job.kill(rng)
            time.sleep(down)
            self.job.start()

    def told(self) -> str:
        """Return one line."""
        batches = sum(writer.acknowledged + 1 for writer in self.writers)
        torn = ", a torn record" * self.job.torn
        return (
            f"round {self.number}: killed {' and '.join(self.killed)}{torn}; {batches} batches "
            f"and {self.job.handed + 1 - self.lost_rows} rows of the job stored, "
            f"{self.lost_rows} rows never in a spool; {self.events} events; "
            f"slowest start {self.slowest_start:.1f} s"
        )


def play(engine: str, rounds: int, folder: Path, seed: int) -> Iterator[str]:
    """Play an engine's rounds and yield a line on each, and two on all of them.

    Raises `AssertionError` at the first that loses something.
    """
    with world(engine, folder, seed) as started:
        played = []
        for number in range(rounds):
            played.append(Round(number, seed + number))
            played[-1].play(started)
            yield played[-1].told()
        for one in played:
            one.check(started)
        killed = Counter(victim for one in played for victim in one.killed)
        met = sum((proxy.met for proxy in started.proxies), Counter())
        yield f"kills: {dict(killed)}; requests that met a fault: {dict(met)}"
        yield f"{rounds} rounds: nothing acknowledged was lost, torn or doubled"
