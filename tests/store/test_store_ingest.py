"""Ingest: exactly once, attempts, counters, events with their batch."""

from contextlib import closing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_cases import NOW, batch, breach_once, judge, new_name, new_run, stored, submit, table

from snc_service.store import open_store
from snc_service.store.types import (
    EventQuery,
    LayerTableMismatch,
    LayerTableUnknown,
    RunFull,
    RunUnknown,
    SequenceConflict,
    SequenceGap,
    StoreError,
    Submission,
    Window,
)
from snc_service.wire import ABSENT, LayerSpec, LayerTable

LAYERS = table("a", "b")


@pytest.fixture
def store(store_url):
    store = open_store(store_url)
    new_run(store)
    store.batches.put_layer_table("r1", LAYERS)
    yield store
    store.close()


def sigma(seq, *steps, value=1.0, **header):
    return batch(LAYERS, seq, steps, {"sigma": [[value, value]] * len(steps)}, **header)


def test_the_same_batch_again_is_acknowledged_and_stored_once(store):
    first = sigma(0, 0, 1)
    stored(store, first)
    (again,) = stored(store, first)
    assert again.duplicate
    assert len(store.histories.of_layers("r1", "sigma", ["a"], Window()).steps) == 2
    (twice_in_one_group, other) = stored(store, sigma(1, 2), sigma(1, 2))
    assert (twice_in_one_group.duplicate, other.duplicate) == (False, True)


def test_other_content_under_a_stored_seq_is_a_conflict(store):
    stored(store, sigma(0, 0))
    (outcome,) = submit(store, [sigma(0, 0, value=2.0)])
    assert isinstance(outcome.error, SequenceConflict)
    assert store.histories.of_layers("r1", "sigma", ["a"], Window()).mean.tolist() == [[1.0]]


def test_content_is_told_apart_for_64_batches(store):
    stored(store, *(sigma(seq, seq) for seq in range(70)))
    changed = [sigma(seq, seq, value=2.0) for seq in (5, 6, 69)]
    outcomes = submit(store, changed)
    assert [o.duplicate for o in outcomes] == [True, False, False]
    assert isinstance(outcomes[1].error, SequenceConflict)


def test_a_gap_names_the_seq_that_is_expected(store):
    stored(store, sigma(0, 0))
    (outcome,) = submit(store, [sigma(2, 2)])
    assert isinstance(outcome.error, SequenceGap)
    assert (outcome.error.expected, outcome.error.got) == (1, 2)
    (new_writer,) = submit(store, [sigma(3, 3, writer="other")])
    assert new_writer.error.expected == 0


def test_given_up_seqs_close_the_gap(store):
    stored(store, sigma(2, 2, skipped=2), sigma(5, 5, skipped=2))
    assert submit(store, [sigma(4, 4)])[0].duplicate
    (outcome,) = submit(store, [sigma(9, 9, skipped=2)])
    assert outcome.error.expected == 6


def test_seqs_given_up_that_were_stored_after_all_are_no_gap(store):
    stored(store, sigma(0, 0), sigma(1, 1))
    stored(store, sigma(3, 3, skipped=2))
    assert store.histories.of_layers("r1", "sigma", ["a"], Window()).steps.tolist() == [0, 1, 3]


def test_one_bad_submission_does_not_fail_the_others(store):
    stranger = table("x")
    store.batches.put_layer_table("r1", table("a", "b", "c"))
    narrow = batch(table("a", "b", "c"), 0, [0], {"sigma": [[1, 1, 1]]}, writer="v")
    narrow = narrow.__class__(**{**narrow.__dict__, "values": narrow.values[:, :, :2]})
    outcomes = submit(
        store,
        [
            sigma(0, 0),
            batch(stranger, 1, [1], {"sigma": [[1]]}),
            narrow,
            sigma(7, 7),
            sigma(1, 1),
        ],
    )
    kinds = [type(o.error) for o in outcomes]
    none = type(None)
    assert kinds == [none, LayerTableUnknown, LayerTableMismatch, SequenceGap, none]
    assert store.histories.of_layers("r1", "sigma", ["a"], Window()).steps.tolist() == [0, 1]
    (unknown,) = submit(store, [sigma(0, 0)], run="nobody")
    assert isinstance(unknown.error, RunUnknown)


def test_a_rule_that_breaks_refuses_its_batch_only(store):
    def advance(state, rows):
        if rows.batch.seq == 1:
            raise ZeroDivisionError
        return breach_once(state, rows)

    good, bad, after = submit(
        store, [sigma(0, 0), sigma(1, 1), sigma(0, 5, writer="v")], advance=advance
    )
    assert (good.error, after.error) == (None, None)
    assert isinstance(bad.error, StoreError)
    assert store.histories.of_layers("r1", "sigma", ["a"], Window()).steps.tolist() == [0, 5]
    stored(store, sigma(1, 1))


def test_a_rule_that_breaks_on_one_run_does_not_undo_what_is_stored_of_others(store):
    seen = []

    def advance(state, rows):
        seen.append((rows.run, rows.batch.seq))
        if rows.run == "r2" and rows.batch.seq == 1:
            raise OverflowError
        return b"%d" % rows.batch.seq, []

    judge(store, advance)
    for run in ("r2", "r3"):
        new_run(store, run)
        store.batches.put_layer_table(run, LAYERS)
    group = [(run, seq) for seq in (0, 1) for run in ("r1", "r2", "r3")]
    found = store.batches.ingest([Submission(run, sigma(n, n), n, NOW) for run, n in group])
    assert [type(one.error) for one in found] == [type(None)] * 4 + [StoreError, type(None)]
    assert [seen.count((run, seq)) for run in ("r1", "r3") for seq in (0, 1)] == [1] * 4
    for run, last in (("r1", b"1"), ("r2", b"0"), ("r3", b"1")):
        assert store.batches.rule_state(run) == last
    judge(store)
    (outcome,) = store.batches.ingest([Submission("r2", sigma(1, 1), 1, NOW)])
    assert (outcome.error, outcome.duplicate) == (None, False)


def test_rules_see_each_batch_once_and_their_state_is_kept(store):
    (first, second) = stored(store, sigma(0, 0), sigma(1, 1), advance=breach_once)
    assert [e.event.rule for e in first.events] == ["breach"]
    assert second.events == ()
    stored(store, sigma(1, 1), advance=breach_once)
    seen = []

    def advance(state, rows):
        seen.append((state, rows))
        return state, []

    stored(store, sigma(2, 2), advance=advance)
    ((state, rows),) = seen
    assert state == b"2"
    assert (rows.run, rows.layers, rows.attempt, rows.new_attempt) == ("r1", ("a", "b"), 0, False)
    assert rows.batch.steps == (2,)


def test_events_and_state_of_a_refused_batch_are_not_kept(store):
    stored(store, sigma(0, 0), advance=breach_once)
    submit(store, [sigma(0, 0, value=3.0), sigma(5, 5)], advance=breach_once)
    events = store.events.page(EventQuery(run="r1", rule="breach")).items
    assert [e.id for e in events] == [2]
    assert store.events.counts()["r1", "breach", "warning"] == 1


def test_lost_values_are_counted_and_told(store):
    (outcome,) = stored(store, sigma(3, 9, skipped=3, dropped=40))
    assert [(e.event.rule, e.event.value) for e in outcome.events] == [("dropped", 40.0)]
    stored(store, sigma(4, 10, dropped=2))
    assert store.runs.get("r1").dropped_values == 42
    stored(store, sigma(5, 11, dropped=2**53 - 1), sigma(6, 12, dropped=2**53 - 1))
    assert store.runs.get("r1").dropped_values == 2**53 - 1


def test_steps_that_go_back_start_an_attempt_and_an_event_says_so(store):
    stored(store, sigma(0, 0, 1, 2), sigma(1, 3, 4))
    (outcome,) = stored(store, sigma(2, 2, 3, value=9.0))
    (event,) = outcome.events
    assert (event.event.rule, event.event.value, event.event.limit) == ("rewound", 2.0, 4.0)
    assert "from 4 to 2" in event.event.message
    assert store.runs.get("r1").attempt == 1
    shown = store.histories.of_layers("r1", "sigma", ["a"], Window())
    assert dict(zip(shown.steps.tolist(), shown.mean[0].tolist(), strict=True)) == {
        0: 1.0,
        1: 1.0,
        2: 9.0,
        3: 9.0,
    }
    older = store.histories.of_layers("r1", "sigma", ["a"], Window(attempt=0))
    assert older.steps.tolist() == [0, 1, 2, 3, 4]
    assert (older.mean == 1).all()
    assert store.histories.of_layers("r1", "sigma", ["a"], Window(attempt=7)).steps.tolist() == []


def test_ranks_that_overlap_share_an_attempt(store):
    stored(store, sigma(0, 0, 1, 2), sigma(0, 1, 2, 3, writer="rank1"))
    assert store.runs.get("r1").attempt == 0
    assert store.events.counts().get(("r1", "rewound", "info")) is None


def test_ranks_that_go_back_together_begin_one_attempt(store):
    stored(store, sigma(0, 5, 6), sigma(0, 5, 6, writer="v"))
    stored(store, sigma(1, 2, 3), sigma(1, 2, 3, writer="v"))
    assert store.runs.get("r1").attempt == 1
    stored(store, sigma(2, 1), sigma(2, 4, writer="v"))
    assert store.runs.get("r1").attempt == 2
    assert store.histories.of_layers("r1", "sigma", ["a"], Window(attempt=1)).steps.tolist() == [
        2,
        3,
        4,
    ]


def test_a_batch_that_names_its_attempt_is_taken_at_its_word(store):
    stored(store, sigma(0, 0, 1, 2))
    (first, second) = stored(
        store,
        sigma(0, 1, attempt=3, writer="resumed", value=5.0),
        sigma(1, 0, attempt=0, writer="resumed", value=7.0),
    )
    assert [e.event.rule for e in first.events] == ["rewound"]
    assert second.events == ()
    assert store.runs.get("r1").attempt == 3
    shown = store.histories.of_layers("r1", "sigma", ["a"], Window())
    assert shown.mean.tolist() == [[7.0, 5.0]]


def test_the_largest_attempt_number_has_no_successor_that_breaks(store):
    stored(store, sigma(0, 5, attempt=2**31 - 1), sigma(1, 4))
    assert store.runs.get("r1").attempt == 2**31


def test_breaches_and_rescales_are_counted_by_layer_and_step(store):
    nan, inf = np.nan, np.inf
    stored(
        store,
        batch(
            LAYERS,
            0,
            [0, 1, 2],
            {
                "sigma": [[3, 1], [nan, inf], [ABSENT, 2]],
                "threshold": [[2, 2], [2, 2], [2, ABSENT]],
                "scale": [[0.5, 1], [nan, 0.9], [ABSENT, 1]],
            },
            {"guard_vetoes": [0, 2, nan]},
        ),
    )
    run = store.runs.get("r1")
    assert (run.breaches, run.rescales, run.guard_vetoes) == (2, 2, 2)


def test_a_sigma_at_its_threshold_is_no_breach(store):
    equal = {"sigma": [[2, 3]], "threshold": [[2, 2]]}
    stored(store, batch(LAYERS, 0, [0], equal))
    assert store.runs.get("r1").breaches == 1


def test_counts_of_vetoes_that_no_guard_can_have_add_up_to_no_more_than_a_number_holds(store):
    stored(store, batch(LAYERS, 0, [0, 1], scalars={"guard_vetoes": [-5, 3e38]}))
    assert store.runs.get("r1").guard_vetoes == 2**31


def test_each_value_is_kept_under_its_layer_and_step(store):
    values = np.arange(6, dtype=np.float32).reshape(3, 2)
    both = {"sigma": values, "threshold": 10 + values}
    stored(store, batch(LAYERS, 0, [3, 4, 7], both))
    for metric, expected in both.items():
        shown = store.histories.of_layers("r1", metric, ["a", "b"], Window())
        assert shown.steps.tolist() == [3, 4, 7]
        assert shown.mean.tolist() == expected.T.tolist()


def test_a_writer_that_is_behind_does_not_take_back_the_last_step(store):
    stored(store, sigma(0, *range(6)), sigma(0, 0, 1, writer="slow"))
    assert store.runs.get("r1").last_step == 5


def test_a_step_that_comes_again_is_a_step_back(store):
    stored(store, sigma(0, 0, 1, 2))
    (outcome,) = stored(store, sigma(1, 2, 3))
    (event,) = outcome.events
    assert (event.event.rule, event.event.value, event.event.limit) == ("rewound", 2.0, 2.0)
    assert store.runs.get("r1").attempt == 1


def test_steps_within_those_of_the_batch_before_are_a_step_back(store):
    stored(store, sigma(0, 0, 1, 2, 3), sigma(1, 2))
    assert store.runs.get("r1").attempt == 1


def test_a_silent_run_that_is_heard_of_is_active(store):
    stored(store, sigma(0, 0))
    store.runs.mark_silent(NOW + 1, NOW + 1)
    assert store.runs.get("r1").state == "silent"
    stored(store, sigma(1, 1))
    assert store.runs.get("r1").state == "active"


def test_a_state_that_one_batch_of_a_transaction_changed_is_kept(store, store_url):
    def advance(state, rows):
        return (b"changed" if rows.batch.seq == 0 else state), []

    stored(store, sigma(0, 0), sigma(1, 1), advance=advance)
    seen = []
    with closing(open_store(store_url)) as other:
        stored(other, sigma(2, 2), advance=lambda state, rows: seen.append(state) or (state, []))
    assert seen == [b"changed"]


def test_of_several_batches_the_newest_command_that_any_has_counts(store):
    for action in ("pause", "resume", "stop"):
        store.commands.add("r1", action, "", author="x", now=NOW)
    items = [
        Submission("r1", sigma(seq, seq), seq, NOW, commands_seen=seen)
        for seq, seen in enumerate((0, 2, 1))
    ]
    outcomes = judge(store).batches.ingest(items)
    assert [[each.id for each in outcome.commands] for outcome in outcomes] == [[3]] * 3


def test_overhead_is_the_newest_share_of_step_time(store):
    stored(
        store,
        batch(LAYERS, 0, [0, 1], scalars={"callback_seconds": [1, 2], "step_seconds": [10, 4]}),
    )
    assert store.runs.get("r1").overhead == 0.5
    stored(store, batch(LAYERS, 1, [2], scalars={"callback_seconds": [1], "step_seconds": [0]}))
    stored(store, batch(LAYERS, 2, [3], scalars={"loss": [1]}))
    assert store.runs.get("r1").overhead == 0.5


def test_a_batch_of_scalars_alone_is_stored(store):
    stored(store, batch(LAYERS, 0, [4, 5], scalars={"loss": [0.5, np.nan], "lr": [1, 2]}))
    assert store.histories.metrics("r1") == ((), ("loss", "lr"))
    loss = store.histories.of_scalar("r1", "loss", Window())
    assert loss.steps.tolist() == [4, 5]
    assert loss.nonfinite.tolist() == [[0, 1]]


def test_layer_tables_join_by_name(store):
    other = LayerTable((LayerSpec("b", "linear", (4, 2)), LayerSpec("c", "conv", (3,))))
    store.batches.put_layer_table("r1", other)
    store.batches.put_layer_table("r1", other)
    assert store.batches.layer_table("r1", other.hash) == other
    assert store.runs.get("r1").layers == 3
    stored(store, batch(other, 0, [0], {"sigma": [[5, 6]]}))
    now = store.histories.latest("r1")
    assert [layer.name for layer in now.layers] == ["a", "b", "c"]
    assert now.layers[2] == LayerSpec("c", "conv", (3,))
    assert now.steps.tolist() == [-1, 0, 0]


def test_a_run_has_at_most_65536_layers_over_all_tables(store):
    store.batches.put_layer_table("r1", table(*(f"l{i}" for i in range(65_534))))
    with pytest.raises(RunFull, match="65,536"):
        store.batches.put_layer_table("r1", table("one more"))


def test_the_clock_may_jump_back(store):
    stored(store, sigma(0, 0), at=NOW + 10)
    stored(store, sigma(1, 1), at=NOW - 1000)
    # Else a job that ends soon would count as heard of until the clock has caught up.
    assert store.runs.get("r1").updated_at == NOW - 1000


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3)), max_size=30))
def test_any_order_of_sends_stores_a_prefix_without_holes(shared_store, sends):
    run = new_name()
    new_run(shared_store, run)
    shared_store.batches.put_layer_table(run, LAYERS)
    last = -1
    for seq, skipped in sends:
        (outcome,) = submit(shared_store, [sigma(seq, seq, skipped=skipped)], run)
        if seq <= last:
            assert outcome.duplicate or isinstance(outcome.error, SequenceConflict)
        elif seq - skipped <= last + 1:
            assert outcome.error is None
            assert not outcome.duplicate
            last = seq
        else:
            assert outcome.error.expected == last + 1
    assert shared_store.runs.get(run).last_step == (None if last < 0 else last)
