"""What ingest remembers of runs is what is stored, whoever else has written meanwhile."""

from __future__ import annotations

from contextlib import closing

import pytest
from store_cases import NOW, batch, breach_once, new_run, quiet, stored, submit, table

from snc_service.detect.rules import RunRules
from snc_service.store import open_store
from snc_service.store.sql.database.dialect import Mark
from snc_service.store.sql.ingest.run_cache import LEAST_LAYERS, RunAtWork
from snc_service.store.sql.ingest.run_memory import MOST_LAYERS, RunMemory
from snc_service.store.types import RunUnknown, StoreUnavailable, Submission, Window
from snc_service.wire import Policy, PolicyEntry

LAYERS = table("a", "b")


@pytest.fixture
def two(store_url):
    """Two stores over one database, as two processes have them."""
    opened = open_store(store_url), open_store(store_url)
    new_run(opened[0])
    opened[0].batches.put_layer_table("r1", LAYERS)
    yield opened
    for store in opened:
        store.close()


def sigma(seq, *steps, value=1.0, **header):
    return batch(LAYERS, seq, steps, {"sigma": [[value, value]] * len(steps)}, **header)


def steps(store):
    return store.histories.of_layers("r1", "sigma", ["a"], Window()).steps.tolist()


def test_what_another_process_stored_is_known_at_once(two):
    one, other = two
    for seq in range(6):
        stored(two[seq % 2], sigma(seq, seq))
    assert [o.duplicate for o in submit(one, [sigma(5, 5)])] == [True]
    assert [o.duplicate for o in submit(other, [sigma(4, 4)])] == [True]
    assert steps(one) == list(range(6))
    assert one.runs.get("r1").last_step == 5


def test_rules_go_on_from_what_they_remembered_elsewhere(two):
    one, other = two
    (first,) = stored(one, sigma(0, 0), advance=breach_once)
    found = [stored(two[seq % 2], sigma(seq, seq), advance=breach_once) for seq in range(1, 5)]
    assert len(first.events) == 1
    assert [len(outcome.events) for (outcome,) in found] == [0] * 4
    assert other.events.counts()["r1", "breach", "warning"] == 1


def test_a_name_that_stands_for_a_new_run_is_the_new_run(two):
    one, other = two
    stored(one, sigma(0, 0))
    other.runs.delete("r1")
    for _ in range(2):
        (outcome,) = submit(one, [sigma(1, 1)])
        assert isinstance(outcome.error, RunUnknown)
    new_run(other)
    other.batches.put_layer_table("r1", LAYERS)
    stored(one, sigma(0, 7))
    assert steps(other) == [7]


def test_a_run_made_anew_between_two_batches_is_found(two):
    one, other = two
    stored(one, sigma(0, 0))
    other.runs.delete("r1")
    new_run(other)
    other.batches.put_layer_table("r1", LAYERS)
    stored(one, sigma(0, 3))
    assert steps(one) == [3]


def test_what_is_stored_while_a_checkpoint_waits_for_its_turn_is_not_forgotten(two, monkeypatch):
    """Folding writes checkpoints beside ingest, and either may have to wait for the other."""
    one, database = two[0], two[0].batches._database
    stored(one, sigma(0, 0))
    write, late = database.write, sigma(1, 1, value=2.0, dropped=3)

    def behind_a_batch():
        monkeypatch.setattr(database, "write", write)
        stored(one, late)
        return write()

    monkeypatch.setattr(database, "write", behind_a_batch)
    one.batches.settle(["r1"])
    assert [outcome.error for outcome in submit(one, [sigma(2, 2)])] == [None]
    assert [outcome.duplicate for outcome in submit(one, [late])] == [True]
    assert steps(one) == [0, 1, 2]
    assert one.runs.get("r1").dropped_values == 3


@pytest.mark.parametrize("deletes", [0, 1])
def test_nothing_is_remembered_of_a_deleted_run_that_goes_on_sending(two, deletes):
    one = two[0]
    stored(one, sigma(0, 0))
    two[deletes].runs.delete("r1", author="ann", now=NOW)
    (outcome,) = submit(one, [sigma(1, 1)])
    assert isinstance(outcome.error, RunUnknown)
    memory = one.batches._memory
    assert (memory.runs(), memory._newest) == ([], {})


def test_what_people_change_counts_for_the_next_batch(two):
    one, other = two
    stored(one, sigma(0, 0))
    policy = Policy((PolicyEntry("*", 2.0, "observe"),))
    for store in two:
        store.policies.put_for_run("r1", policy, author="x", now=NOW, if_version=None)
        seq = store.policies.of_run("r1").version
        (outcome,) = stored(one, sigma(seq, seq))
        assert outcome.policy_version == seq
    other.commands.add("r1", "stop", "", author="x", now=NOW)
    (outcome,) = stored(one, sigma(3, 3))
    assert [command.action for command in outcome.commands] == ["stop"]
    (again,) = stored(one, sigma(4, 4))
    assert again.commands == outcome.commands


def test_a_transaction_that_was_undone_is_not_remembered(two, monkeypatch):
    one, _ = two
    stored(one, sigma(0, 0))
    connection = type(one._database).write

    def full(self):
        raise StoreUnavailable("disk full")

    monkeypatch.setattr(type(one._database), "write", full)
    with pytest.raises(StoreUnavailable):
        submit(one, [sigma(1, 1)])
    monkeypatch.setattr(type(one._database), "write", connection)

    def broken(self, *arguments):
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr("snc_service.store.sql.ingest.run_cache.save", broken)
        with pytest.raises(ZeroDivisionError):
            submit(one, [sigma(1, 1)])
    assert steps(one) == [0]
    stored(one, sigma(1, 1), sigma(2, 2))
    assert steps(one) == [0, 1, 2]


def test_a_run_that_sends_scalars_and_wide_tables_in_turn_keeps_all(two):
    one, _ = two
    wide = table("a", "b", "c")
    one.batches.put_layer_table("r1", wide)
    for seq in range(0, 6, 2):
        stored(one, sigma(seq, seq, value=float(seq)))
        stored(one, batch(wide, seq + 1, [seq + 1], {"sigma": [[9, 9, seq]]}))
    now = one.histories.latest("r1")
    assert now.metric("sigma").tolist() == [9, 9, 4]
    assert now.steps.tolist() == [5, 5, 5]


def remembered(run: str, version: int = 1) -> RunAtWork:
    return RunAtWork(1, run=run, version=version)


def test_the_memory_is_bounded_and_forgets_what_was_used_longest_ago():
    memory = RunMemory(most_layers=3 * LEAST_LAYERS)
    for run in "abcd":
        memory.keep([remembered(run)], None)
    assert memory.take("abcd").keys() == {"b", "c", "d"}
    assert memory.take("abcd") == {}


def test_a_run_that_is_taken_and_kept_again_and_again_counts_once():
    memory = RunMemory(most_layers=2 * LEAST_LAYERS)
    memory.keep([remembered("a"), remembered("b")], None)
    for _ in range(5):
        memory.keep(memory.take("a").values(), None)
    assert memory.take("ab").keys() == {"a", "b"}


def test_an_era_ends_when_somebody_else_has_written():
    memory = RunMemory()
    first = memory.era(Mark(7, 1))
    memory.keep([], Mark(7, 1))
    assert memory.era(Mark(8, 1)) == first
    memory.keep([], Mark(8, 1))
    after_fold = memory.era(Mark(10, 1))
    assert after_fold != first
    memory.keep([], Mark(10, 1))
    assert memory.era(Mark(11, 2)) != after_fold
    assert len({memory.era(None) for _ in range(3)}) == 3


def test_batches_after_a_fold_and_without_one_are_told_alike(two):
    one, _ = two
    for seq in range(4):
        stored(one, sigma(seq, seq), advance=quiet)
        one.fold(0, now=NOW + 3_600)
    stored(one, sigma(4, 4), sigma(5, 5))
    assert steps(one) == list(range(6))


def test_a_thousand_runs_of_200_layers_are_remembered_at_once(tmp_path):
    """Runs that report in turn would push each other out, and each batch would read its run."""
    names = [f"blocks.{i}.weight" for i in range(200)]
    metrics = ("sigma", "sigma_upper", "threshold", "scale", "residual")
    with closing(open_store(f"sqlite:///{tmp_path}/snc.db")) as store:
        store.batches.judge_with(RunRules, RunRules.advance_together)
        new_run(store)
        layers = table(*names)
        store.batches.put_layer_table("r1", layers)
        for seq in range(3):
            one = batch(layers, seq, [seq], {metric: [[1.0] * 200] for metric in metrics})
            (outcome,) = store.batches.ingest([Submission("r1", one, seq, NOW)])
            assert outcome.error is None
        assert 1_000 * store.batches._memory._layers <= MOST_LAYERS
