"""The worst layers of a window against brute force, in the tail, folded and both."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_cases import NOW, batch, new_name, new_run, stored, table
from test_store_history import small_tiles

from snc_service.store import open_store
from snc_service.store.sql.queries import worst as module
from snc_service.store.types import RunUnknown, Window
from snc_service.wire import ABSENT, absent

NUM = 40
LAYERS = table(*(f"l{i}" for i in range(NUM)))


def keep(store, run, sigma, threshold=None, *, first=0, seq=0, **header):
    """Store [S, NUM] values at steps ``first``, ``first`` + 1, ..."""
    metrics = {"sigma": sigma} | ({} if threshold is None else {"threshold": threshold})
    steps = range(first, first + len(sigma))
    stored(store, batch(LAYERS, seq, steps, metrics, **header), run=run)


def new(store) -> str:
    run = new_name()
    new_run(store, run)
    store.batches.put_layer_table(run, LAYERS)
    return run


def brute(values: np.ndarray, sigma: np.ndarray, most: int) -> list[tuple[str, float | None, int]]:
    """Return (layer, largest finite value, non-finite sigmas) of [S, NUM], the worst first."""
    broken = (~np.isfinite(sigma) & ~absent(sigma)).sum(axis=0)
    largest = np.where(np.isfinite(values), values, -np.inf).max(axis=0)
    order = sorted(range(NUM), key=lambda i: (broken[i] == 0, -largest[i], i))
    order = [i for i in order if broken[i] or largest[i] > -np.inf]
    return [
        (f"l{i}", float(largest[i]) if largest[i] > -np.inf else None, int(broken[i]))
        for i in order[:most]
    ]


def divided(sigma: np.ndarray, threshold: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return np.where(absent(threshold), np.nan, sigma.astype(np.float64) / threshold)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**31),
    num_steps=st.integers(1, 90),
    specials=st.integers(0, 30),
    most=st.integers(1, NUM + 5),
    window=st.sampled_from([(0, None), (5, 40), (17, 17), (64, 80), (200, None)]),
    folded=st.sampled_from(["nothing", "half", "all"]),
    bounds=st.sampled_from([40, 200, 100_000]),
)
def test_the_worst_are_those_that_brute_force_finds(
    shared_store, seed, num_steps, specials, most, window, folded, bounds
):
    rng = np.random.default_rng(seed)
    sigma = rng.standard_normal((num_steps, NUM)).astype(np.float32)
    threshold = rng.choice([1.0, 1.5, 2.0, 0.0, -1.0], (num_steps, NUM)).astype(np.float32)
    for values in (sigma, threshold):
        for _ in range(specials):
            at = tuple(rng.integers(0, n) for n in values.shape)
            values[at] = [np.nan, np.inf, -np.inf, ABSENT][rng.integers(4)]
    with small_tiles(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MOST_BOUNDS", bounds)
        run, half = new(shared_store), max(1, num_steps // 2)
        keep(shared_store, run, sigma[:half], threshold[:half])
        if folded != "nothing":
            shared_store.fold(60, now=NOW + 3_600)
        if num_steps > half:
            keep(shared_store, run, sigma[half:], threshold[half:], first=half, seq=1)
        if folded == "all":
            shared_store.fold(60, now=NOW + 3_600)
        low, high = window
        end = num_steps if high is None else high + 1
        asked = Window(from_step=low, to_step=high)
        got = shared_store.histories.worst(run, "sigma", asked, most, below="threshold")
        ratio = divided(sigma, threshold)
        check(got, ratio[low:end], sigma[low:end], most, low)
        got = shared_store.histories.worst(run, "sigma", asked, most)
        check(got, sigma.astype(np.float64)[low:end], sigma[low:end], most, low)


def check(got, values: np.ndarray, sigma: np.ndarray, most: int, low: int) -> None:
    wanted = brute(values, sigma, most) if len(values) else []
    assert [(w.value, w.nonfinite > 0) for w in got] == [(v, n > 0) for _, v, n in wanted]
    assert len({w.layer for w in got}) == len(got)
    counts = {layer: n for layer, _, n in brute(values, sigma, NUM)} if len(values) else {}
    for worst in got:
        assert worst.nonfinite == counts[worst.layer]
        column = int(worst.layer[1:])
        if worst.step is not None:
            assert values[worst.step - low, column] == worst.value
        else:
            assert worst.value is None


def test_the_newest_attempt_counts_unless_another_is_asked_for(store_url):
    with closing(open_store(store_url)) as store:
        run = new(store)
        keep(store, run, np.full((10, NUM), 9, np.float32))
        low = np.full((5, NUM), 1, np.float32)
        keep(store, run, low, first=5, attempt=1, writer="v")
        late = Window(from_step=5)
        assert store.histories.worst(run, "sigma", late, 1)[0].value == 1
        assert store.histories.worst(run, "sigma", Window(from_step=5, attempt=0), 1)[0].value == 9
        assert store.histories.worst(run, "sigma", Window(), 1)[0].step == 0


def test_a_ratio_of_rollups_would_name_the_wrong_layer(store_url):
    """The first layer's sigma and threshold move together: no ratio of its is above 1."""
    with small_tiles(), closing(open_store(store_url)) as store:
        run = new(store)
        sigma, threshold = np.full((64, NUM), 0.5, np.float32), np.ones((64, NUM), np.float32)
        sigma[::2, 0] = threshold[::2, 0] = 8
        sigma[5, 7] = 1.25
        keep(store, run, sigma, threshold)
        store.fold(60, now=NOW + 3_600)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "MOST_BOUNDS", NUM * 4)
            first, second = store.histories.worst(run, "sigma", Window(), 2, below="threshold")
        assert (first.layer, first.value, first.step) == ("l7", 1.25, 5)
        assert (second.layer, second.value) == ("l0", 1.0)


def test_what_was_never_reported_has_no_worst(store_url):
    with closing(open_store(store_url)) as store:
        run = new(store)
        assert store.histories.worst(run, "sigma", Window(), 5) == []
        keep(store, run, np.ones((3, NUM), np.float32))
        assert store.histories.worst(run, "sigma", Window(), 5, below="threshold") == []
        assert store.histories.worst(run, "grad_norm", Window(), 5) == []
        with pytest.raises(RunUnknown):
            store.histories.worst("nobody", "sigma", Window(), 5)
