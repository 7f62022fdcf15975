"""The same rows raise the same events, however they are cut into batches."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from test_trends import rows_of

from snc_service.detect.memory import MOST_HASHED, Memory
from snc_service.detect.rules import advance
from snc_service.wire import ABSENT

LAYERS = 3


def training(rng: np.random.Generator, num_rows: int) -> dict[str, np.ndarray]:
    """Return some metrics of a training whose layers come late, pause and break."""
    shape = (num_rows, LAYERS)
    sigma = np.exp(rng.normal(0, rng.choice([0.05, 0.3]), shape).cumsum(axis=0))
    if rng.random() < 0.4:  # born at zero
        sigma[:, 2] = 1e-4 * np.arange(1, num_rows + 1)
    metrics = {
        "sigma": sigma,
        "frobenius": sigma * rng.uniform(2, 4, LAYERS),
        "update_norm": sigma * rng.uniform(0, 0.3, shape),
        "grad_norm": np.exp(rng.normal(-3, 1, shape)),
    }
    metrics = {name: np.float32(column) for name, column in metrics.items() if rng.random() < 0.8}
    metrics = metrics or {"frobenius": np.float32(sigma)}
    share = rng.choice([0, 0.1, 0.5])
    first = rng.integers(0, num_rows, LAYERS) * (rng.random(LAYERS) < 0.6)
    for column in metrics.values():
        first = first if rng.random() < 0.7 else rng.integers(0, num_rows, LAYERS)
        column[np.arange(num_rows)[:, None] < first] = ABSENT
        column[rng.random(shape) < share] = ABSENT
        column[rng.random(shape) < rng.choice([0, 0.03])] = np.nan
    return metrics


def judged(metrics: dict[str, np.ndarray], loss: np.ndarray, ends: list[int]) -> tuple:
    """Return the state and the events of rows whose batches end before these rows."""
    state, events, start = None, [], 0
    for stop in ends:
        part = {name: column[start:stop] for name, column in metrics.items()}
        rows = rows_of(part, {"loss": loss[start:stop]}, first=start)
        state, found = advance(state, rows)
        events, start = events + found, stop
    return state, events


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 60))
def test_layers_first_measured_within_a_batch_are_judged_as_at_its_begin(seed, num_rows):
    rng = np.random.default_rng(seed)
    metrics, loss = training(rng, num_rows), np.exp(rng.normal(0, 0.1, num_rows))
    cuts = np.unique(rng.integers(1, num_rows, rng.integers(1, 8))).tolist()
    assert judged(metrics, loss, [*cuts, num_rows]) == judged(metrics, loss, [num_rows])


def test_rows_before_a_layer_is_known_say_nothing_of_it():
    """Taken in as a whole, they had its first sigma, and so filled the running mean."""
    sigma = np.full((40, LAYERS), 1.0, np.float32)
    sigma[:10, 1] = ABSENT
    sigma[10:, 1] = np.geomspace(1, 6, 30)
    loss = np.ones(40)
    whole = judged({"sigma": sigma}, loss, [40])
    assert whole == judged({"sigma": sigma}, loss, [10, 40])
    assert [event.layer for event in whole[1] if event.rule == "sigma_growth"] == ["l1"]


def test_tables_that_take_turns_are_hashed_once_and_only_the_last_few(monkeypatch):
    hashed = []
    real = Memory.places.__globals__["_hashes"]
    monkeypatch.setitem(
        Memory.places.__globals__, "_hashes", lambda names: hashed.append(names) or real(names)
    )
    memory, tables = Memory(), [(f"a{i}", f"b{i}") for i in range(MOST_HASHED)]
    for names in tables:
        memory.places(names)
    before = memory.num_bytes
    for _ in range(3):
        for names in tables:
            assert not memory.covers(names)
            memory.places(names)
    assert hashed == tables
    assert memory.num_bytes == before
    memory.places(("a0", "b1"))
    assert len(memory.hashed) == MOST_HASHED
