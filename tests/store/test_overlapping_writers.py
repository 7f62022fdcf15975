"""Two client processes that report layers of the same names into one run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from store_cases import batch, new_run, stored, table

from snc_service.store import Store, open_store
from snc_service.store.types import StoredEvent

RULE = "overlapping_writers"


@pytest.fixture
def store(store_url) -> Iterator[Store]:
    store = open_store(store_url)
    new_run(store)
    for names in ("ab", "cd", "bc"):
        store.batches.put_layer_table("r1", table(*names))
    yield store
    store.close()


def turns(store: Store, writers: str, *, others: str = "ab") -> list[tuple[int, StoredEvent]]:
    """Store one batch of each writer, in this order; return the events and their places."""
    seqs = dict.fromkeys(writers, 0)
    raised = []
    for place, writer in enumerate(writers):
        layers = table(*("ab" if writer == "v" else others))
        sigma = {"sigma": [[1.0, 2.0]]}
        (outcome,) = stored(store, batch(layers, seqs[writer], [place], sigma, writer=writer))
        seqs[writer] += 1
        raised += [(place, each) for each in outcome.events if each.event.rule == RULE]
    return raised


def test_the_third_turn_of_known_writers_raises_it_once(store):
    assert [place for place, _ in turns(store, "vwvwvwvwvw")] == [4]


def test_one_shared_layer_is_enough_and_is_named(store):
    ((place, stored_event),) = turns(store, "vwvwv", others="bc")
    event = stored_event.event
    assert (place, event.severity, event.layer, event.layers) == (4, "warning", "b", 1)
    assert "in turns: b. Their histories are mixed" in event.message


@pytest.mark.parametrize("order", ["vvvvvv", "vvvwww", "vvvwvwww"])
def test_one_writer_and_its_successor_are_healthy(order, store):
    assert turns(store, order) == []


def test_parts_of_one_model_are_healthy(store):
    assert turns(store, "vwvwvwvwvw", others="cd") == []


def test_a_service_that_starts_anew_does_not_raise_it_again(store, store_url):
    assert turns(store, "vwvwvw")
    with_seqs = {"v": 3, "w": 3}
    again = open_store(store_url)
    try:
        for place, writer in enumerate("vwvwvwvw", start=10):
            sigma = {"sigma": [[1.0, 2.0]]}
            seq = with_seqs[writer]
            (outcome,) = stored(again, batch(table("a", "b"), seq, [place], sigma, writer=writer))
            with_seqs[writer] += 1
            assert [e for e in outcome.events if e.event.rule == RULE] == []
    finally:
        again.close()
