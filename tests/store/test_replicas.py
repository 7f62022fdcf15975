"""Two real services over one PostgreSQL act as one, whoever of the three is killed with -9."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import httpx
import numpy as np
import pytest
from postgres_server import running_postgres
from service_process import Service, create, post, services, until
from store_cases import batch, table
from store_victim import LAYERS, WRITERS, batch_number
from test_store_kill import check

from snc_service.store import open_store

RUN = "/api/v1/runs/r1"


class Writer(threading.Thread):
    """Sends its batches to all services in turn, each until some service acknowledges it."""

    def __init__(self, name: str, urls: list[str], stop: threading.Event) -> None:
        super().__init__()
        self.writer, self.urls, self.stop = name, urls, stop
        self.acknowledged = -1
        self.refused: list[int | str] = []
        self.wrong: list[str] = []

    def run(self) -> None:
        turn = itertools.cycle(self.urls)
        with httpx.Client(timeout=30) as client:
            while not self.stop.is_set() and not self.wrong:
                try:
                    answer = post(client, next(turn), batch_number(self.writer, self._next))
                except httpx.TransportError as error:
                    self.refused.append(type(error).__name__)
                    continue
                if answer.status_code == 503:
                    self.refused.append(503)
                    time.sleep(0.02)
                elif answer.status_code == 200:
                    self.acknowledged += 1
                    # Again, elsewhere: a client that missed the answer does the same.
                    self._repeat(client, next(turn))
                else:
                    self.wrong.append(answer.text)

    @property
    def _next(self) -> int:
        return self.acknowledged + 1

    def _repeat(self, client: httpx.Client, url: str) -> None:
        if self.acknowledged % 5:
            return
        try:
            answer = post(client, url, batch_number(self.writer, self.acknowledged))
        except httpx.TransportError:
            return
        if answer.status_code != 503 and not answer.json().get("duplicate"):
            self.wrong.append(answer.text)


@contextmanager
def writing(urls: list[str]) -> Iterator[list[Writer]]:
    """Let all writers write while the block lasts."""
    stop = threading.Event()
    writers = [Writer(name, urls, stop) for name in WRITERS]
    for writer in writers:
        writer.start()
    try:
        yield writers
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert [writer.wrong for writer in writers] == [[]] * len(writers)


def grown(writers: list[Writer], by: int, said) -> None:
    before = [writer.acknowledged for writer in writers]
    pairs = list(zip(writers, before, strict=True))
    until(lambda: all(w.acknowledged >= b + by or w.wrong for w, b in pairs), said)


@pytest.mark.timeout(240)
def test_one_of_two_services_is_killed_and_nothing_is_lost_or_doubled(postgres, tmp_path):
    url = postgres.new_url()
    with services(url, tmp_path, 2) as (one, other):
        create(one.url, LAYERS)
        with writing([one.url, other.url]) as writers:
            for victim in (one, other, one):
                grown(writers, 12, other.said)
                victim.kill()
                grown(writers, 12, other.said)
                victim.start()
            grown(writers, 6, other.said)
        assert any(writer.refused for writer in writers)
        with closing(open_store(url)) as store:
            check(store, {w.writer: w.acknowledged for w in writers})
        for path in ("", "/layers", "/events?limit=500", "/history?metric=sigma&layer=l3&points=7",
                     "/heatmap?metric=sigma&points=9", "/scalars/loss/history"):  # fmt: skip
            answers = [httpx.get(f"{s.url}{RUN}{path}") for s in (one, other)]
            assert answers[0].status_code == 200, answers[0].text
            assert answers[0].json() == answers[1].json()
        ids = [e["id"] for e in answered(one, "/events?limit=500")["items"]]
        assert ids == list(range(len(ids), 0, -1))
    postgres.drop(url)


def answered(service: Service, path: str):
    answer = httpx.get(f"{service.url}{RUN}{path}")
    assert answer.status_code == 200, answer.text
    return answer.json()


def trouble(seq: int):
    """Return a batch of a run in which much goes wrong: every rule has something to remember."""
    rng = np.random.default_rng(seq)
    sigma = 1 + rng.random((2, 4)) * 0.1
    sigma[:, 0] *= 1.0 + 0.02 * seq
    sigma[:, 1] *= 9 if seq % 10 == 6 else 1
    sigma[1, 2] = np.nan if seq == 17 else sigma[1, 2]
    values = {"sigma": sigma, "threshold": np.full((2, 4), 1.6)}
    step = 2 * seq if seq < 25 else 2 * seq - 20
    return batch(FOUR, seq, [step, step + 1], values, {"loss": [1.0, 40.0 if seq == 20 else 1.0]})


FOUR = table("a", "b", "c", "d")


@pytest.mark.timeout(240)
def test_rules_remember_across_services_what_one_service_would(postgres, tmp_path):
    url = postgres.new_url()
    told = []
    (tmp_path / "alone").mkdir()
    with (
        services(url, tmp_path, 2) as pair,
        services(f"sqlite:///{tmp_path}/alone.db", tmp_path / "alone", 1) as alone,
    ):
        for group in (pair, alone):
            create(group[0].url, FOUR)
            with httpx.Client(timeout=30) as client:
                for seq in range(40):
                    answer = post(client, group[seq % len(group)].url, trouble(seq))
                    assert answer.status_code == 200, answer.text
                    assert not answer.json()["duplicate"]
            for service in group:
                told.append([
                    {k: v for k, v in event.items() if k != "at"}
                    for event in answered(service, "/events?limit=500")["items"]
                ])  # fmt: skip
        runs = [answered(group[-1], "") for group in (pair, alone)]
    rules = {event["rule"] for event in told[0]}
    assert {"breach", "nonfinite", "rewound", "run_started"} < rules, rules
    assert told[0] == told[1] == told[2]
    for field in ("breaches", "last_step", "attempt", "worst_ratio", "worst_layer"):
        assert runs[0].get(field) == runs[1].get(field), field
    postgres.drop(url)


@pytest.mark.timeout(240)
def test_a_killed_postgresql_is_503_until_it_is_back_and_nothing_acknowledged_is_lost(tmp_path):
    with running_postgres(("fsync=on",)) as server:
        url = server.new_url()
        with services(url, tmp_path, 1) as (one,):
            create(one.url, LAYERS)
            with writing([one.url]) as writers:
                for _ in range(2):
                    grown(writers, 8, one.said)
                    server.kill()
                    until(lambda: one.status("/readyz") == 503)
                    assert one.status("/healthz") == 200
                    answer = httpx.get(one.url + RUN)
                    assert answer.status_code == 503
                    assert answer.json()["type"].endswith("store-unavailable")
                    assert answer.headers["retry-after"]
                    with httpx.Client(timeout=30) as client:
                        answer = post(client, one.url, batch_number("one", 0))
                    assert answer.json()["type"].endswith("store-unavailable")
                    server.start()
                    until(lambda: one.status("/readyz") == 200, one.said)
                grown(writers, 4, one.said)
            assert all(503 in writer.refused for writer in writers)
            with closing(open_store(url)) as store:
                check(store, {w.writer: w.acknowledged for w in writers})
