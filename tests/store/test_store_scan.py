"""A scan brings everything that was stored, bit for bit, each value once, whatever goes on."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_cases import NOW, batch, bits, new_name, new_run, stored, table
from test_store_history import NAMES, SENT, Story, small_tiles

from snc_service.store import open_store
from snc_service.store.sql.queries import export_scan as module
from snc_service.store.types import Extent, LayerUnknown, RunUnknown
from snc_service.wire import ABSENT, absent

LAYERS = table("a", "b")


def cells(pieces) -> dict[tuple, int]:
    """Return (attempt, metric, layer, step) -> bits, insisting that nothing comes twice."""
    found: dict[tuple, int] = {}
    for piece in pieces:
        assert piece.values.shape == (len(piece.layers or (None,)), len(piece.steps))
        assert (np.diff(piece.steps) > 0).all()
        words, there = bits(piece.values), ~absent(piece.values)
        for row, layer in enumerate(piece.layers or (None,)):
            for column, step in enumerate(piece.steps.tolist()):
                if there[row, column]:
                    key = (piece.attempt, piece.metric, layer, step)
                    assert key not in found
                    found[key] = int(words[row, column])
    return found


def wanted(story: Story) -> dict[tuple, int]:
    """Return the same of what a story sent."""
    rows = [("sigma", name, story.sigma[name]) for name in NAMES] + [("loss", None, story.loss)]
    return {
        (attempt, metric, layer, step): int(bits(np.array([value]))[0])
        for metric, layer, oracle in rows
        for (attempt, step), cell in oracle.cells.items()
        for value in cell.values()
    }


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(
    sends=st.lists(st.tuples(SENT, st.booleans()), min_size=1, max_size=10),
    most_steps=st.sampled_from([1, 64, 2**20]),
)
def test_any_scan_brings_everything_once(shared_store, sends, most_steps):
    with small_tiles(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MOST_STEPS", most_steps)
        patch.setattr(module, "LAYERS_AT_ONCE", 16)
        story = Story(shared_store)
        for sent, fold in sends:
            story.send(sent)
            if fold:
                shared_store.fold(60, now=NOW + 3_600)
        whole = wanted(story)
        assert cells(shared_store.histories.scan(story.run, Extent())) == whole
        extent = Extent(
            metrics=("sigma",), layers=("l19", "l2"), from_step=5, to_step=40, attempt=0
        )
        part = {
            key: word
            for key, word in whole.items()
            if key[0] == 0 and key[1] == "sigma" and key[2] in ("l2", "l19") and 5 <= key[3] <= 40
        }
        assert cells(shared_store.histories.scan(story.run, extent)) == part


@pytest.fixture
def store(store_url):
    with closing(open_store(store_url)) as opened:
        yield opened


def keep(store, run, seq, steps, **header):
    values = np.arange(2 * len(steps), dtype=np.float32).reshape(-1, 2) + 100 * seq
    loss = {"loss": [float(step) for step in steps]}
    stored(store, batch(LAYERS, seq, steps, {"sigma": values}, loss, **header), run=run)


def new(store) -> str:
    run = new_name()
    new_run(store, run)
    store.batches.put_layer_table(run, LAYERS)
    return run


def test_ingest_and_folding_between_the_pieces_change_nothing_of_what_was_there(store):
    run = new(store)
    with small_tiles():
        keep(store, run, 0, range(0, 100))
        whole = cells(store.histories.scan(run, Extent()))
        found, seq = [], 1
        for piece in store.histories.scan(run, Extent()):
            found.append(piece)
            keep(store, run, seq, range(100 * seq, 100 * seq + 30))
            store.fold(60, now=NOW + 3_600)
            seq += 1
    assert seq > 2
    assert cells(found) == whole  # what came later lies beyond the end that the scan began with


def test_steps_that_lie_far_apart_are_found_without_visiting_what_is_between(store):
    run = new(store)
    keep(store, run, 0, [0, 3, 2**52])
    assert {key[-1] for key in cells(store.histories.scan(run, Extent()))} == {0, 3, 2**52}
    store.fold(60, now=NOW + 3_600)
    assert {key[-1] for key in cells(store.histories.scan(run, Extent()))} == {0, 3, 2**52}


def test_every_bit_pattern_comes_back_and_absent_does_not(store):
    run = new(store)
    words = np.array([0x7FC00000, 0x7F800001, 0xFFC00003, 0x7F800000, 0x80000000, 1], np.uint32)
    values = np.stack([words.view(np.float32), np.full(6, ABSENT)], axis=1)
    stored(store, batch(LAYERS, 0, range(6), {"sigma": values}), run=run)
    for _ in range(2):
        got = cells(store.histories.scan(run, Extent()))
        assert got == {(0, "sigma", "a", i): int(word) for i, word in enumerate(words)}
        store.fold(60, now=NOW + 3_600)


def test_a_deleted_run_ends_the_scan_with_an_error_instead_of_a_gap(store):
    run = new(store)
    keep(store, run, 0, range(10))
    pieces = store.histories.scan(run, Extent())
    next(pieces)
    store.runs.delete(run)
    with pytest.raises(RunUnknown):
        list(pieces)


def test_what_is_not_there_is_said_at_once(store):
    run = new(store)
    assert list(store.histories.scan(run, Extent())) == []
    with pytest.raises(RunUnknown):
        store.histories.scan("nobody", Extent())
    with pytest.raises(LayerUnknown):
        store.histories.scan(run, Extent(layers=("c",)))
    keep(store, run, 0, range(3))
    assert list(store.histories.scan(run, Extent(metrics=("grad_norm",)))) == []
    assert list(store.histories.scan(run, Extent(attempt=7))) == []
