"""History against a dictionary that forgets nothing: every bucket, attempt and kind of number."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_cases import NOW, Oracle, assert_same, batch, bits, new_name, new_run, stored, table

from snc_service.store import downsampling, open_store, tiles
from snc_service.store.sql.queries import history
from snc_service.store.types import LayerUnknown, Window
from snc_service.wire import ABSENT, absent

LAYERS = table("a", "b")
TABLES = (table("l0", "l1", "l2"), table("l2", "l3"), table(*(f"l{i}" for i in range(20))))
NAMES = tuple(f"l{i}" for i in range(20))
SPECIAL = (np.float32(np.nan), np.float32(np.inf), np.float32(-np.inf), ABSENT, np.float32(-0.0))


@pytest.fixture
def store(store_url):
    store = open_store(store_url)
    new_run(store)
    store.batches.put_layer_table("r1", LAYERS)
    yield store
    store.close()


def keep(store, steps, values, seq=0, **header):
    rows = [[v, v] for v in values]
    stored(store, batch(LAYERS, seq, steps, {"sigma": rows}, **header))


def test_values_are_exact_while_they_fit(store):
    values = np.array([1.0, np.pi, 1e-40, 3e38], np.float32)
    keep(store, [0, 8, 16, 24], values)
    got = store.histories.of_layers("r1", "sigma", ["b"], Window(points=4))
    assert got.bucket_steps == 1
    assert got.steps.tolist() == [0, 8, 16, 24]
    for plane in (got.mean, got.min, got.max):
        np.testing.assert_array_equal(bits(plane[0]), bits(values))


def test_one_value_too_many_makes_aligned_buckets_that_keep_the_spike(store):
    keep(store, range(3, 12), [1, 1, 1, 50, 1, 1, 1, 1, 1])
    got = store.histories.of_layers("r1", "sigma", ["a"], Window(points=5))
    assert got.bucket_steps == 2
    assert got.steps.tolist() == [2, 4, 6, 8, 10]
    assert got.max.tolist() == [[1, 1, 50, 1, 1]]
    assert got.min.tolist() == [[1, 1, 1, 1, 1]]
    assert got.mean.tolist() == [[1, 1, 25.5, 1, 1]]


def test_sparse_measuring_leaves_no_empty_bucket(store):
    keep(store, range(0, 8 * 400, 8), np.arange(400))
    got = store.histories.of_layers("r1", "sigma", ["a"], Window(points=400))
    assert (got.bucket_steps, len(got.steps)) == (1, 400)
    got = store.histories.of_layers("r1", "sigma", ["a"], Window(points=200))
    assert (got.bucket_steps, len(got.steps)) == (16, 200)
    assert not absent(got.mean).any()


def test_not_finite_is_visible_and_not_measured_is_not(store):
    keep(store, range(6), [1, np.nan, np.inf, np.nan, ABSENT, ABSENT])
    exact = store.histories.of_layers("r1", "sigma", ["a"], Window())
    assert exact.steps.tolist() == [0, 1, 2, 3]
    assert exact.nonfinite.tolist() == [[0, 1, 1, 1]]
    assert np.isnan(exact.max[0, 1:]).all()
    assert not absent(exact.max).any()
    pairs = store.histories.of_layers("r1", "sigma", ["a"], Window(points=3))
    assert pairs.steps.tolist() == [0, 2]
    assert pairs.nonfinite.tolist() == [[1, 2]]
    assert pairs.mean[0, 0] == 1
    assert np.isnan(pairs.mean[0, 1])


def test_a_window_cuts_at_its_steps_inclusive(store):
    keep(store, range(10), np.arange(10))
    got = store.histories.of_layers("r1", "sigma", ["a"], Window(from_step=3, to_step=5))
    assert got.steps.tolist() == [3, 4, 5]
    assert (
        store.histories.of_layers("r1", "sigma", ["a"], Window(from_step=20)).steps.tolist() == []
    )
    assert store.histories.of_layers(
        "r1", "sigma", ["a"], Window(from_step=5, to_step=4)
    ).mean.shape == (1, 0)


def test_steps_as_far_apart_as_steps_can_be(store):
    keep(store, [0, 1, 2**53 - 1], [1, 2, 3])
    got = store.histories.of_layers("r1", "sigma", ["a"], Window(points=2))
    assert got.bucket_steps == 2**52
    assert got.steps.tolist() == [0, 2**52]
    assert got.mean.tolist() == [[1.5, 3]]


def test_old_buckets_stay_while_the_run_grows(store):
    keep(store, range(100), np.arange(100))
    before = store.histories.of_layers("r1", "sigma", ["a"], Window(points=30))
    keep(store, range(100, 120), np.arange(20), seq=1)
    after = store.histories.of_layers("r1", "sigma", ["a"], Window(points=30))
    assert before.bucket_steps == after.bucket_steps == 4
    np.testing.assert_array_equal(after.mean[:, :25], before.mean)


def test_an_unknown_layer_is_named_and_an_unreported_metric_is_empty(store):
    keep(store, [0], [1])
    with pytest.raises(LayerUnknown, match="'x'"):
        store.histories.of_layers("r1", "sigma", ["a", "x"], Window())
    got = store.histories.of_layers("r1", "never", ["a", "b"], Window())
    assert (got.rows, got.mean.shape) == (("a", "b"), (2, 0))
    assert store.histories.of_scalar("r1", "never", Window()).mean.shape == (1, 0)


def test_a_repeated_layer_gets_a_row_each_time(store):
    keep(store, [0, 1], [1, 2])
    got = store.histories.of_layers("r1", "sigma", ["b", "a", "b"], Window())
    assert got.mean.tolist() == [[1, 2]] * 3


def test_layers_of_several_tables_stand_in_the_order_asked(store):
    keep(store, [0, 1], [1, 2])
    wide = table("c", "a")
    store.batches.put_layer_table("r1", wide)
    stored(store, batch(wide, 0, [1], {"sigma": [[7, 8]]}, writer="v"))
    got = store.histories.of_layers("r1", "sigma", ["a", "b", "c"], Window())
    assert got.rows == ("a", "b", "c")
    np.testing.assert_array_equal(
        bits(got.max), bits(np.array([[1, 8], [1, 2], [ABSENT, 7]], np.float32))
    )


@pytest.mark.parametrize("points", [1_000, 3])
def test_many_layers_are_read_a_few_at_a_time_with_the_same_answer(store, monkeypatch, points):
    wide = table(*(f"l{i}" for i in range(9)))
    store.batches.put_layer_table("r1", wide)
    values = np.random.default_rng(0).random((12, 9), np.float32)
    values[3, 4], values[7] = np.nan, np.inf
    for seq, steps in enumerate((range(5), range(5, 12))):
        stored(store, batch(wide, seq, steps, {"sigma": values[list(steps)]}))
    late = table("l8", "l2")
    store.batches.put_layer_table("r1", late)
    stored(store, batch(late, 0, [20], {"sigma": [[7, 8]]}, writer="v"))
    names = [f"l{i}" for i in (8, 0, 3, 3, 1, 2, 4, 5, 6, 7)]
    whole = store.histories.of_layers("r1", "sigma", names, Window(points=points))
    monkeypatch.setattr(history, "LAYERS_AT_ONCE", 2)
    monkeypatch.setattr(downsampling, "VALUES_AT_ONCE", 12)
    parts = store.histories.of_layers("r1", "sigma", names, Window(points=points))
    assert (parts.rows, parts.bucket_steps) == (whole.rows, whole.bucket_steps)
    assert parts.steps.tolist() == whole.steps.tolist()
    for column in ("min", "max", "mean", "nonfinite"):
        np.testing.assert_array_equal(bits(getattr(parts, column)), bits(getattr(whole, column)))


def test_several_batches_and_layouts_are_read_in_the_order_of_their_arrival(store):
    keep(store, [0, 1, 2], [1, 1, 1])
    stored(
        store,
        batch(
            LAYERS, 0, [1, 2], {"residual": [[5, 5]] * 2, "sigma": [[2, ABSENT]] * 2}, writer="v"
        ),
    )
    keep(store, [2], [3], writer="u")
    got = store.histories.of_layers("r1", "sigma", ["a", "b"], Window())
    assert got.mean.tolist() == [[1, 2, 3], [1, 1, 3]]


@dataclass(frozen=True)
class Sent:
    """One generated batch: which table, where it starts, how it is spaced, what it holds."""

    table: int
    start: int
    gaps: tuple[int, ...]
    seed: int
    specials: int
    with_loss: bool
    attempt: int | None


SENT = st.builds(
    Sent,
    table=st.integers(0, 2),
    start=st.integers(0, 60),
    gaps=st.lists(st.sampled_from([1, 1, 1, 2, 8, 40]), max_size=12).map(tuple),
    seed=st.integers(0, 2**31),
    specials=st.integers(0, 20),
    with_loss=st.booleans(),
    attempt=st.sampled_from([None, None, None, 0, 1, 2]),
)
WINDOWS = st.builds(
    Window,
    from_step=st.sampled_from([0, 0, 5, 33]),
    to_step=st.sampled_from([None, None, 40, 90]),
    points=st.sampled_from([1, 2, 3, 7, 20, 500]),
    attempt=st.sampled_from([None, None, 0, 1]),
)


@contextmanager
def small_tiles():
    """Shrink tiles to 16 steps and the rollups' fan-out to 4, so that stories reach every level."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "TILE_STEPS", 16)
        patch.setattr(tiles, "FANOUT", 4)
        yield


def in_tail(store) -> int:
    with store._database.read() as connection:
        return connection.execute("select count(*) from tail").fetchone()[0]


class Story:
    """A run and its oracle, fed with the same batches."""

    def __init__(self, store) -> None:
        self.store = store
        self.sigma: dict[str, Oracle] = {name: Oracle() for name in NAMES}
        self.loss = Oracle()
        self.firsts: dict[int, int] = {}
        self.writers: dict[str, tuple[int, int, int]] = {}
        self.run = new_name()
        new_run(store, self.run)
        for one in TABLES:
            store.batches.put_layer_table(self.run, one)

    def send(self, sent: Sent) -> None:
        layers = TABLES[sent.table]
        writer = f"w{sent.table}"
        steps = (sent.start + np.cumsum([0, *sent.gaps])).tolist()
        rng = np.random.default_rng(sent.seed)
        values = rng.standard_normal((len(steps), len(layers.layers))).astype(np.float32)
        for _ in range(sent.specials):
            at = tuple(rng.integers(0, n) for n in values.shape)
            values[at] = SPECIAL[rng.integers(len(SPECIAL))]
        losses = rng.standard_normal(len(steps)).astype(np.float32)
        seq, last, own = self.writers.get(writer, (-1, -1, -1))
        newest = max(self.firsts, default=0)
        if sent.attempt is not None:
            attempt = sent.attempt
        elif own < 0:
            attempt = newest
        elif steps[0] > last:
            attempt = own
        else:
            attempt = newest + (own == newest)
        self.writers[writer] = (seq + 1, steps[-1], attempt)
        self.firsts[attempt] = min(steps[0], self.firsts.get(attempt, steps[0]))
        scalars = {"loss": losses} if sent.with_loss else {}
        one = batch(
            layers,
            seq + 1,
            steps,
            {"sigma": values},
            scalars,
            writer=writer,
            attempt=sent.attempt,
        )
        stored(self.store, one, run=self.run)
        if sent.with_loss:
            self.loss.add(attempt, steps, {"loss": losses})
        for name, column in zip(layers.names, values.T, strict=True):
            self.sigma[name].add(attempt, steps, {name: column})

    def oracle(self, names) -> Oracle:
        """Return one over the layers: a step counts if a batch has it for a layer of a block."""
        whole = Oracle()
        whole.firsts = dict(self.firsts)
        blocks = {NAMES.index(name) // 16 for name in names}
        for index, name in enumerate(NAMES):
            if index // 16 in blocks:
                for place, cell in self.sigma[name].cells.items():
                    whole.cells.setdefault(place, {}).update(cell)
        return whole

    def check(self, window: Window) -> None:
        for names in (["l0"], ["l3", "l1", "l2"], ["l19", "l2"]):
            got = self.store.histories.of_layers(self.run, "sigma", names, window)
            assert_same(got, self.oracle(names).answer(names, window))
        self.loss.firsts = dict(self.firsts)
        loss = self.store.histories.of_scalar(self.run, "loss", window)
        assert_same(loss, self.loss.answer(["loss"], window))


@settings(deadline=None, max_examples=60)
@given(sends=st.lists(SENT, min_size=1, max_size=8), window=WINDOWS)
def test_any_history_equals_the_oracles(shared_store, sends, window):
    story = Story(shared_store)
    for sent in sends:
        story.send(sent)
    story.check(window)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    sends=st.lists(st.tuples(SENT, st.sampled_from([True, False])), min_size=1, max_size=10),
    windows=st.lists(WINDOWS, min_size=1, max_size=3),
)
def test_any_history_stays_the_oracles_while_it_is_folded(shared_store, sends, windows):
    with small_tiles():
        story = Story(shared_store)
        for sent, fold in sends:
            story.send(sent)
            if fold:
                assert shared_store.fold(60, now=NOW + 3600) > 0
                while shared_store.fold(60, now=NOW + 3600):  # a call looks at some chunks
                    pass
                assert in_tail(shared_store) == 0
            for window in windows:
                story.check(window)
