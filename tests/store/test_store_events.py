"""Events: ids per run, pages newest first, filters, counts."""

import numpy as np
import pytest
from store_cases import NOW, batch, new_run, stored, table

from snc_service.store import open_store
from snc_service.store.types import Event, EventQuery

LAYERS = table("a", "b")
RULES = [("breach", "warning", "a"), ("nonfinite", "critical", "b"), ("breach", "info", None)]


@pytest.fixture
def store(store_url):
    store = open_store(store_url)
    for i, run in enumerate(("r1", "r2")):
        new_run(store, run)
        store.batches.put_layer_table(run, LAYERS)
        for seq in range(6):
            rule, severity, layer = RULES[seq % 3]

            def advance(state, rows, what=(rule, severity, layer), step=seq):
                found = Event(step, what[0], what[1], "it happened", what[2], 1, step / 2, 0.5)
                return state, [found]

            one = batch(LAYERS, seq, [seq], {"sigma": [[1, 1]]})
            stored(store, one, run=run, advance=advance, at=NOW + 10 * seq + i)
    yield store
    store.close()


def everything(store, **filters):
    items, after = [], None
    while True:
        page = store.events.page(EventQuery(limit=2, after=after, **filters))
        items += page.items
        assert len(page.items) <= 2
        after = page.next
        if after is None:
            return items


def test_ids_grow_by_one_per_run_and_lists_are_newest_first(store):
    assert [e.id for e in everything(store, run="r1")] == [7, 6, 5, 4, 3, 2, 1]
    first = everything(store, run="r1")[-1]
    assert (first.event.rule, first.run, first.at) == ("run_started", "r1", NOW)


def test_events_of_all_runs_are_in_the_order_of_time(store):
    found = everything(store)
    assert len(found) == 14
    assert [e.at for e in found] == sorted((e.at for e in found), reverse=True)
    assert len({(e.run, e.id) for e in found}) == 14


def test_filters_hold_together(store):
    found = everything(store, run="r2", rule="breach", from_step=2)
    assert [(e.event.step, e.event.severity) for e in found] == [
        (5, "info"),
        (3, "warning"),
        (2, "info"),
    ]
    assert [e.event.step for e in everything(store, run="r2", layer="b")] == [4, 1]
    assert [e.run for e in everything(store, severity="critical")] == ["r2", "r1", "r2", "r1"]


def test_an_event_comes_back_as_it_was(store):
    stored_event = everything(store, run="r1", rule="nonfinite")[0]
    judged_by = 0  # the shipped settings
    assert stored_event.event == Event(
        4, "nonfinite", "critical", "it happened", "b", 1, 2.0, 0.5, judged_by
    )


def test_counts_are_by_run_rule_and_severity(store):
    counts = store.events.counts()
    assert counts["r1", "breach", "warning"] == 2
    assert counts["r1", "breach", "info"] == 2
    assert counts["r2", "nonfinite", "critical"] == 2
    assert counts["r2", "run_started", "info"] == 1
    store.runs.delete("r1")
    assert {run for run, _, _ in store.events.counts()} == {"r2"}


def test_a_value_that_is_no_number_is_stored_as_none(store):
    def advance(state, rows):
        return state, [Event(9, "nonfinite", "critical", "NaN", "a", 1, np.nan, np.inf)]

    (outcome,) = stored(store, batch(LAYERS, 6, [9], {"sigma": [[1, 1]]}), advance=advance)
    assert np.isnan(outcome.events[0].event.value)
    newest = store.events.page(EventQuery(run="r1", limit=1)).items[0]
    assert (newest.event.value, newest.event.limit) == (None, None)
