"""Batches that trouble the rules, and a process that is killed at a statement while it stores them.

``python derived_victim.py URL ACKS K``: its K-th statement that writes is its last.
"""

from __future__ import annotations

import os
import signal
import sys
import zlib

import numpy as np
from store_cases import NOW, batch, new_run, table

from snc_service.detect.rules import RunRules
from snc_service.store import Store, open_store
from snc_service.store.engines.sqlite_connection import SqliteConnection
from snc_service.store.sql.ingest import derived
from snc_service.store.types import Outcome, Submission
from snc_service.wire import ABSENT, Batch, RuleSettings, encode

LAYERS = table("a", "b", "c", "d")
OTHERS = table("d", "e", "f")
BATCHES = 72
EVERY = 8  # batches between two checkpoints
ANNOTATED, RULED, REWOUND = 38, (26, 47), (44, 60)


def trouble(seq: int) -> Batch:
    """Return a batch of a run in which much goes wrong: every rule has something to remember."""
    rng = np.random.default_rng(seq)
    layers = OTHERS if seq % 7 == 5 else LAYERS
    n, width = 1 + seq % 3, len(layers.names)
    sigma = 1 + rng.random((n, width)) * 0.05
    sigma[:, 0] *= 1.0 + 0.004 * seq
    if seq % 20 == 16:
        sigma[-1, 1] *= 9
    if seq % 30 == 17:
        sigma[0, 2] = np.nan
    if seq % 4 == 2:
        sigma[:, 1] = ABSENT
    values = {"sigma": sigma, "threshold": np.full((n, width), 1.3)}
    if seq % 5:
        values["frobenius"] = sigma * 3
        values["grad_norm"] = 0.1 + rng.random((n, width))
    if seq % 11 == 3:
        values["update_norm"] = sigma * 0.7
    step = 3 * seq - sum(30 for at in REWOUND if seq >= at)
    loss = [40.0 if seq % 33 == 32 else 1.0 + 0.01 * (seq % 5)] * n
    return batch(layers, seq, range(step, step + n), values, {"loss": loss, "lr": [1e-3] * n})


def prepared(store: Store, seq: int) -> None:
    """Do what people do before a batch: at most once, whoever was killed in between."""
    if seq == ANNOTATED and not store.annotations.of_run("r1"):
        store.annotations.add("r1", 3 * seq, "new data", 20, author="ann", now=NOW)
    if seq in RULED:
        settings = RuleSettings.parse({"rules": {"breach": {"on": seq == RULED[1]}}})
        version = 1 + RULED.index(seq)
        if store.rule_settings.of_run("r1").version < version:
            store.rule_settings.put_for_run(
                "r1", settings, author="ann", now=NOW, if_version=version - 1
            )


def plainly(seq: int) -> Batch:
    """Return a batch without trouble."""
    metrics = {"sigma": [[1.0, 1.1, 1.2, 1.3]], "threshold": [[2.0] * 4]}
    return batch(LAYERS, seq, [seq], metrics, {"loss": [1.0]})


def send(store: Store, seq: int, *, plain: bool = False) -> list[Outcome]:
    one = plainly(seq) if plain else trouble(seq)
    return store.batches.ingest([Submission("r1", one, zlib.crc32(encode(one)), NOW)])


def begin(store: Store) -> None:
    new_run(store)
    store.batches.put_layer_table("r1", LAYERS)
    store.batches.put_layer_table("r1", OTHERS)


class Fuse:
    """Kills this process at a statement that writes."""

    def __init__(self, statements: int) -> None:
        self.left = statements

    def burn(self, sql: str) -> None:
        if sql.startswith(("insert", "update", "delete", "commit")):
            self.left -= 1
            if self.left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def guard(self, kind: type) -> None:
        """Let it burn with all that connections of a kind execute."""
        for name in ("execute", "executemany"):
            if hasattr(kind, name):
                setattr(kind, name, self._guarded(getattr(kind, name)))

    def _guarded(self, real):
        def guarded(connection, sql, *rest):
            self.burn(sql)
            return real(connection, sql, *rest)

        return guarded


def main() -> None:
    url, acks, statements = sys.argv[1], sys.argv[2], int(sys.argv[3])
    derived.MOST_BATCHES = EVERY
    store = open_store(url)
    store.batches.judge_with(RunRules)
    (probe,) = send(store, 10**6)
    fuse = Fuse(statements)
    fuse.guard(SqliteConnection)
    if url.startswith("postgresql"):
        import psycopg

        from snc_service.store.engines.postgres import PostgresConnection

        fuse.guard(PostgresConnection)
        fuse.guard(psycopg.Connection)  # which commits
    seq = int(probe.error.expected)
    with open(acks, "a") as said:
        while seq < BATCHES:
            prepared(store, seq)
            (outcome,) = send(store, seq)
            assert outcome.error is None, outcome
            said.write(f"{seq}\n")
            said.flush()
            if seq % 5 == 4:
                store.fold(60, now=NOW + 3_600)
            seq += 1
        while True:  # whatever is left to be written
            store.fold(60, now=NOW + 3_600)
            fuse.burn("commit")


if __name__ == "__main__":
    main()
