"""Folding: due when it should be, invisible in every answer, safe against crashes and company."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
from store_cases import NOW, Oracle, assert_same, batch, bits, new_run, stored, table

from snc_service.store import downsampling, open_store, tiles
from snc_service.store.sql.compaction import due_chunks, slices
from snc_service.store.types import Window
from snc_service.wire import ABSENT

LATER = NOW + 3_600
LAYERS = table(*(f"l{i}" for i in range(20)))
NAMES = ("l0", "l7", "l19")
WINDOWS = [Window(points=p) for p in (1, 2, 3, 5, 9, 20, 40, 100, 1_000)]
WINDOWS += [Window(from_step=37, to_step=251, points=p) for p in (2, 6, 13, 60, 500)]


@pytest.fixture
def store(store_url):
    store = open_store(store_url)
    new_run(store)
    store.batches.put_layer_table("r1", LAYERS)
    yield store
    store.close()


@pytest.fixture
def small(monkeypatch):
    """Tiles of 16 steps, fan-out 4: 300 steps fill every level."""
    monkeypatch.setattr(tiles, "TILE_STEPS", 16)
    monkeypatch.setattr(tiles, "FANOUT", 4)


class Run:
    """A run whose every value is known, sent in batches of a few steps."""

    def __init__(self, store) -> None:
        self.store, self.oracle, self.seq = store, Oracle(), 0

    def send(self, steps, seed: int, attempt: int = 0) -> None:
        steps = list(steps)
        values = np.random.default_rng(seed).standard_normal((len(steps), 20)).astype(np.float32)
        values[::7, 0], values[3::11, 7], values[1::5, 19] = np.nan, np.inf, ABSENT
        one = batch(
            LAYERS, self.seq, steps, {"sigma": values}, {"loss": values[:, 3]}, attempt=attempt
        )
        self.seq += 1
        stored(self.store, one)
        self.oracle.add(attempt, steps, dict(zip(LAYERS.names, values.T, strict=True)))

    def check(self) -> None:
        for window in WINDOWS:
            for names in (NAMES, LAYERS.names[:1]):
                got = self.store.histories.of_layers("r1", "sigma", names, window)
                assert_same(got, self.oracle.answer(names, window))
            loss = self.store.histories.of_scalar("r1", "loss", window)
            as_layer = self.store.histories.of_layers("r1", "sigma", ["l3"], window)
            np.testing.assert_array_equal(bits(loss.max), bits(as_layer.max))
            self.check_all_layers(window)

    def check_all_layers(self, window: Window) -> None:
        got = self.store.histories.of_layers("r1", "sigma", LAYERS.names, window)
        assert_same(got, self.oracle.answer(LAYERS.names, window))


def rows_by_level(store, metric: int = 0) -> dict[int, list[int]]:
    with store._database.read() as connection:
        rows = connection.execute(
            "select level, n from tile where metric = ? and block = 0 and attempt = 0 "
            "order by level, step0",
            (metric,),
        ).fetchall()
    found: dict[int, list[int]] = {}
    for level, n in rows:
        found.setdefault(level, []).append(n)
    return found


def in_tail(store) -> int:
    with store._database.read() as connection:
        return connection.execute("select count(*) from tail").fetchone()[0]


@pytest.mark.usefixtures("small")
def test_every_level_answers_as_the_values_themselves_would(store):
    run = Run(store)
    for start in range(0, 300, 10):
        run.send(range(start, start + 10), seed=start)
        if start % 50 == 0:
            store.fold(60, now=LATER)
    run.check()
    store.fold(60, now=LATER)
    assert in_tail(store) == 0
    run.check()
    # 18 whole chunks of 16 and one of 12; 4 chunks make a tile of level 1 and a piece of level 2.
    assert rows_by_level(store) == {
        0: [16] * 18 + [12],
        1: [16] * 4 + [4] * 3,
        2: [16],
    }


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("late", [[5], [100, 101], [63, 64], range(0, 300, 40), [255, 256, 290]])
def test_late_values_reach_every_level(store, late):
    run = Run(store)
    run.send(range(300), seed=1)
    store.fold(60, now=LATER)
    run.send(late, seed=2)
    run.check()
    store.fold(60, now=LATER)
    assert in_tail(store) == 0
    run.check()


@pytest.mark.usefixtures("small")
def test_a_step_between_the_old_ones_enters_its_tile(store):
    run = Run(store)
    run.send(range(0, 600, 2), seed=1)
    store.fold(60, now=LATER)
    run.send([7, 9, 11, 301], seed=2)
    store.fold(60, now=LATER)
    run.check()


@pytest.mark.usefixtures("small")
def test_layers_that_join_a_block_later_leave_the_old_tiles_valid(store):
    few, many = table("a", "b"), table("b", "c")
    new_run(store, "r2")
    store.batches.put_layer_table("r2", few)
    stored(store, batch(few, 0, range(70), {"sigma": [[1, 2]] * 70}), run="r2")
    store.fold(60, now=LATER)
    store.batches.put_layer_table("r2", many)
    stored(store, batch(many, 1, range(70, 140), {"sigma": [[3, 4]] * 70}), run="r2")
    stored(store, batch(many, 0, [3], {"sigma": [[5, 6]]}, writer="late"), run="r2")
    for _ in range(2):
        got = store.histories.of_layers("r2", "sigma", ["a", "b", "c"], Window(points=3))
        assert got.steps.tolist() == [0, 64, 128]
        wanted = np.array([[1, 1, ABSENT], [5, 3, 3], [6, 4, 4]], np.float32)
        np.testing.assert_array_equal(bits(got.max), bits(wanted))
        store.fold(60, now=LATER)


@pytest.mark.usefixtures("small")
def test_attempts_stay_apart_in_tiles(store):
    run = Run(store)
    run.send(range(200), seed=1)
    store.fold(60, now=LATER)
    run.send(range(90, 150), seed=2, attempt=1)
    run.check()
    store.fold(60, now=LATER)
    run.check()
    for attempt in (0, 1):
        window = Window(points=7, attempt=attempt)
        got = store.histories.of_layers("r1", "sigma", NAMES, window)
        assert_same(got, run.oracle.answer(NAMES, window))


@pytest.mark.usefixtures("small")
def test_a_batch_that_lands_while_a_chunk_is_encoded_stays(store, monkeypatch):
    run = Run(store)
    run.send(range(100), seed=1)
    real = slices.blocks

    def arriving(*arguments):
        monkeypatch.setattr(slices, "blocks", real)
        found = list(real(*arguments))
        run.send([3, 4, 200], seed=9)
        return iter(found)

    monkeypatch.setattr(slices, "blocks", arriving)
    store.fold(60, now=LATER)
    assert in_tail(store) == 1
    run.check()
    store.fold(60, now=LATER)
    run.check()


@pytest.mark.usefixtures("small")
def test_of_two_that_fold_one_run_one_starts_again(store, store_url, monkeypatch):
    run, other = Run(store), open_store(store_url)
    run.send(range(100), seed=1)
    real, folded = slices.blocks, []

    def overtaken(*arguments):
        monkeypatch.setattr(slices, "blocks", real)
        found = list(real(*arguments))
        folded.append(other.fold(60, now=LATER))
        return iter(found)

    monkeypatch.setattr(slices, "blocks", overtaken)
    folded.append(store.fold(0, now=LATER))
    # SQLite: the other one has done everything. PostgreSQL: it has kept out of the way.
    assert folded in ([100 * 21, 0], [0, 16 * 21])
    run.check()
    store.fold(60, now=LATER)
    assert in_tail(store) == 0
    run.check()
    other.close()


@pytest.mark.usefixtures("small")
def test_a_crash_at_any_statement_of_a_fold_changes_nothing(store):
    """Stop the write transaction before its n-th statement, for every n, and look."""
    run = Run(store)
    run.send(range(40), seed=1)
    store.fold(60, now=LATER)
    run.send(range(20, 60), seed=2)
    database, survived = store._database, 0
    write = database.write

    class Crash(Exception):
        pass

    class Fragile:
        def __init__(self, writer, most: int) -> None:
            self.writer, self.left = writer, most

        def __getattr__(self, name):
            return getattr(self.writer, name)

        def spend(self) -> None:
            self.left -= 1
            if self.left < 0:
                raise Crash

        def execute(self, sql, *parameters):
            if sql.startswith(("update", "delete", "insert")):
                self.spend()
            return self.writer.execute(sql, *parameters)

        def executemany(self, sql, parameters):
            self.spend()
            return self.writer.executemany(sql, parameters)

    @contextmanager
    def fragile_write(most: int):
        with write() as writer:
            fragile = Fragile(writer, most)
            yield fragile
            fragile.spend()  # before the commit

    for most in range(100):
        database.write = partial(fragile_write, most)
        try:
            store.fold(0, now=LATER)
        except Crash:
            survived += 1
        else:
            break
        finally:
            database.write = write
        if most % 2 == 0:
            run.check()
    assert survived >= 4
    run.check()


def test_a_chunk_is_due_when_it_is_complete_and_a_little_more(store):
    run = Run(store)
    for start in range(0, 1_100, 100):
        run.send(range(start, start + 100), seed=start)
    assert store.fold(60, now=NOW) == 0
    run.send(range(1_100, 1_200), seed=1)
    assert store.fold(60, now=NOW) == 1_024 * 21
    assert rows_by_level(store)[0] == [1_024]
    assert in_tail(store) == 2


def test_a_quiet_or_closed_run_is_folded_as_far_as_it_is(store):
    run = Run(store)
    run.send(range(50), seed=1)
    assert store.fold(60, now=NOW + 30) == 0
    assert store.fold(60, now=NOW + 61) == 50 * 21
    run.send(range(50, 60), seed=1)
    store.runs.finish("r1", "finished", NOW)
    assert store.fold(60, now=NOW) == 10 * 21
    run.check()


def test_a_tail_that_grows_too_large_is_folded_before_its_chunk_is_complete(store, monkeypatch):
    monkeypatch.setattr(due_chunks, "MOST_TAIL_BYTES", 10_000)
    run = Run(store)
    run.send(range(100), seed=1)
    assert store.fold(60, now=NOW) == 0  # an eighth of a chunk is allowed in any case
    run.send(range(100, 200), seed=2)
    assert store.fold(60, now=NOW) == 200 * 21
    run.check()


def test_a_few_late_values_wait_for_company(store):
    run = Run(store)
    run.send(range(0, 1_024), seed=1)
    run.send(range(1_024, 1_400), seed=2)
    assert store.fold(60, now=NOW) > 0
    run.send([5, 6], seed=3)
    assert store.fold(60, now=NOW + 1) == 0
    run.check()


def test_sparse_measuring_fills_its_tiles(store):
    run = Run(store)
    for start in range(0, 8 * 2_048, 8 * 512):
        run.send(range(start, start + 8 * 512, 8), seed=start)
    store.fold(60, now=LATER)
    assert rows_by_level(store)[0] == [1_024, 1_024]
    run.check()


def test_folding_shrinks_the_history_and_ends(store):
    steps, wide = 1_024, table(*(f"x{i}" for i in range(64)))
    new_run(store, "r2")
    store.batches.put_layer_table("r2", wide)
    walk = 1 + np.cumsum(np.random.default_rng(0).standard_normal((steps, 64)) * 2e-3, axis=0)
    stored(store, batch(wide, 0, range(steps), {"sigma": walk}), run="r2")
    assert store.fold(60, now=LATER) == steps * 64
    assert store.fold(60, now=LATER) == 0
    with store._database.read() as connection:
        (size,) = connection.execute("select sum(length(v)) from tile").fetchone()
    assert size / (steps * 64) < 2.7
    got = store.histories.of_layers("r2", "sigma", wide.names, Window(points=steps))
    np.testing.assert_array_equal(got.max, walk.T.astype(np.float32))


def test_a_deleted_run_is_not_folded(store, store_url, monkeypatch):
    run, other = Run(store), open_store(store_url)
    run.send(range(100), seed=1)
    real = slices.blocks

    def deleted(*arguments):
        found = list(real(*arguments))
        other.runs.delete("r1")
        return iter(found)

    monkeypatch.setattr(slices, "blocks", deleted)
    assert store.fold(60, now=LATER) == 0
    with store._database.read() as connection:
        assert connection.execute("select count(*) from tile").fetchone() == (0,)
    other.close()


@pytest.mark.usefixtures("small")
def test_rollups_equal_a_recomputation_from_the_tiles(store):
    run = Run(store)
    run.send(range(300), seed=1)
    store.fold(60, now=LATER)
    run.send(range(10, 200, 30), seed=2)
    store.fold(60, now=LATER)
    with store._database.read() as connection:
        rows = connection.execute(
            "select metric, level, block, step0, n, v from tile where level > 0"
        ).fetchall()
        assert len(rows) > 20
        for metric, level, block, step0, n, v in rows:
            entry = 4**level
            keys = step0 + entry * np.arange(n)
            got = tiles.decode_rollup(v, keys)
            parts = connection.execute(
                "select step0, n, enc, v from tile where level = 0 and metric = ? and block = ? "
                "and step0 >= ? and step0 < ? order by step0",
                (metric, block, step0, step0 + n * entry),
            ).fetchall()
            steps = np.concatenate([p[0] + np.arange(p[1]) for p in parts])
            values = np.concatenate([tiles.decode(p[2], p[3], p[1]) for p in parts], axis=1)
            wanted = downsampling.Partial.of_values(steps, values).grouped(steps // entry * entry)
            known = np.isin(keys, wanted.keys)
            for name in ("low", "high", "finite", "nonfinite"):
                np.testing.assert_array_equal(getattr(got, name)[:, known], getattr(wanted, name))
                assert not (getattr(got, name)[:, ~known] == 1).any()
            np.testing.assert_allclose(got.total[:, known], wanted.total, rtol=1e-6, atol=1e-5)
