"""The summary of a run's tail in its own row: always true, and all that a look for work reads."""

from __future__ import annotations

import random
from contextlib import closing

import pytest
from store_cases import NOW, batch, new_run, stored, table

from snc_service.store import open_store
from snc_service.store.sql.compaction import compact, due_chunks
from snc_service.store.sql.compaction.due_chunks import DueChunks
from snc_service.store.types import EVERYTHING, RunShare

LAYERS = table("a", "b")
LATER = NOW + 3_600


@pytest.fixture
def store(store_url):
    with closing(open_store(store_url)) as opened:
        yield opened


def begun(store, run="r1"):
    new_run(store, run)
    store.batches.put_layer_table(run, LAYERS)


def put(store, seq, *steps, run="r1"):
    stored(store, batch(LAYERS, seq, steps, {"sigma": [[1.0, 2.0]] * len(steps)}), run=run)


def summaries(store):
    """Return what the rows of the runs say of their tails, and what the tails say."""
    with store._database.read() as connection:
        said = connection.execute(
            "select run_id, tail_first, tail_steps, tail_bytes from run order by run_id"
        ).fetchall()
        true = []
        for run_id, *_ in said:
            row = connection.execute(
                "select min(step0), coalesce(sum(n), 0), coalesce(sum(size), 0) from tail "
                "where run_id = ?",
                (run_id,),
            ).fetchone()
            true.append((run_id, row[0], int(row[1]), int(row[2])))
    return [tuple(row) for row in said], true


def change(store, statement, *parameters):
    with store._database.write() as connection:
        connection.execute(statement, parameters)


@pytest.mark.parametrize("seed", [1, 2])
def test_it_is_true_after_whatever_adds_or_takes_rows(store, monkeypatch, seed):
    """Batches forwards and backwards, two runs, folding of chunks and of all, in small portions."""
    monkeypatch.setattr(compact, "LEAVING_BYTES", 4_000)
    monkeypatch.setattr(due_chunks, "AGAIN_SECONDS", 0.0)
    dice = random.Random(seed)
    step = {"r1": 0, "r2": 500}
    seqs = dict.fromkeys(step, 0)
    for run in step:
        begun(store, run)
    for _ in range(60):
        run = dice.choice(sorted(step))
        if dice.random() < 0.1:
            step[run] = dice.randrange(step[run] + 1)
        width = dice.randrange(1, 120)
        put(store, seqs[run], *range(step[run], step[run] + width), run=run)
        step[run] += width
        seqs[run] += 1
        said, true = summaries(store)
        assert said == true
        if dice.random() < 0.3:
            store.fold(60, now=dice.choice([NOW, LATER]))
            said, true = summaries(store)
            assert said == true
    store.fold(60, now=LATER)
    said, true = summaries(store)
    assert said == true
    assert [row[1:] for row in said] == [(None, 0, 0)] * 2


def test_a_look_in_vain_reads_no_tail_and_a_summary_is_enough(store):
    begun(store)
    put(store, 0, *range(1_000))
    read = []

    class Connection:
        def __init__(self, connection):
            self.connection = connection

        def execute(self, statement, parameters=()):
            read.append(statement)
            return self.connection.execute(statement, parameters)

    with store._database.read() as connection:
        chunks = DueChunks()
        assert chunks.look(Connection(connection), NOW, EVERYTHING) == ([], [])
    assert len(read) == 1
    assert " tail " not in read[0]


@pytest.mark.parametrize("shift", [0, 5, 6, 10])
def test_a_tail_shorter_than_its_chunk_is_left_out_by_the_statement_however_sparse(store, shift):
    """PostgreSQL shifts a number of two bytes within two bytes."""
    begun(store)
    put(store, 0, 0)
    change(store, "update run set interval_shift = ?", shift)
    found = []

    class Connection:
        def __init__(self, connection):
            self.connection = connection

        def execute(self, statement, parameters=()):
            found.append(self.connection.execute(statement, parameters).fetchall())
            return found[-1] if len(found) == 1 else self.connection.execute(statement, parameters)

    for last, is_there in ((1_151, False), (1_152, True)):
        put(store, last - 1_150, last << shift)
        found.clear()
        with store._database.read() as connection:
            DueChunks().look(Connection(connection), NOW, EVERYTHING)
        assert bool(found[0]) == is_there


def test_what_was_read_in_vain_is_read_again_when_there_is_more_or_time_has_passed(store):
    begun(store)
    put(store, 0, 0, 1, 2)  # of a chunk that is complete, but few
    put(store, 1, *range(1_200, 1_300))
    looks = []

    class Connection:
        def __init__(self, connection):
            self.connection = connection

        def execute(self, statement, parameters=()):
            looks.append("from tail" in statement)
            return self.connection.execute(statement, parameters)

    chunks = DueChunks()

    def look(at):
        looks.clear()
        with store._database.read() as connection:
            chunks.look(Connection(connection), at, EVERYTHING)
        return any(looks)

    assert look(NOW)
    assert not look(NOW + 1)
    put(store, 2, *range(1_300, 1_310))
    assert not look(NOW + 2)
    put(store, 3, *range(1_310, 1_310 + due_chunks.NEW_STEPS))
    assert look(NOW + 3)
    assert not look(NOW + 4)
    assert look(NOW + 3 + due_chunks.AGAIN_SECONDS)


def test_a_tail_without_a_summary_is_found_and_summed_up(store):
    begun(store)
    put(store, 0, *range(50))
    change(store, "update run set tail_first = null, tail_steps = 0, tail_bytes = 0")
    assert store.fold(60, now=LATER) == 50 * 2
    said, true = summaries(store)
    assert said == true


def test_a_summary_of_rows_that_are_gone_is_put_right(store):
    begun(store)
    change(store, "update run set tail_first = 7, tail_steps = 9, tail_bytes = 99")
    assert store.fold(60, now=LATER) == 0
    said, true = summaries(store)
    assert said == true


def test_only_the_runs_of_a_share_are_folded(store):
    for run in ("r1", "r2", "r3", "r4"):
        begun(store, run)
        put(store, 0, *range(10), run=run)
    for place in (0, 1):
        assert store.fold(60, now=LATER, share=RunShare(place, 2)) == 2 * 10 * 2
    assert store.fold(60, now=LATER) == 0
