"""What follows from the rows of a run: whoever derives it, and from wherever, has the same bits."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import zlib
from contextlib import closing
from pathlib import Path

import pytest
from derived_victim import BATCHES, EVERY, LAYERS, begin, plainly, prepared, send
from store_cases import NOW, bits, new_run

from snc_service.detect.rules import RunRules
from snc_service.store import Store, open_store
from snc_service.store.sql.ingest import derived
from snc_service.store.types import EventQuery, Outcome, Submission
from snc_service.wire import encode


def opened(url: str) -> Store:
    store = open_store(url)
    store.batches.judge_with(RunRules)
    return store


def pulse(store: Store) -> bytes:
    with store._database.read() as connection:
        (found,) = connection.execute("select pulse from run where run = ?", ("r1",)).fetchone()
    return bytes(found)


def newest(store: Store) -> tuple:
    now = store.histories.latest("r1")
    return now.metrics, now.steps.tolist(), bits(now.values).tolist()


def standing(store: Store) -> tuple:
    run = store.runs.get("r1")
    return run.worst_ratio, run.worst_layer, run.nonfinite_layers, run.breaches, run.attempt


def everything(store: Store) -> tuple:
    events = [item.event for item in store.events.page(EventQuery(run="r1", limit=500)).items]
    state = store.batches.rule_state("r1")
    return newest(store), state, pulse(store), standing(store), events


def checkpoint(store: Store) -> int:
    with store._database.read() as connection:
        row = connection.execute("select upto from checkpoint where run_id = 1").fetchone()
    return -1 if row is None else int(row[0])


def both(store: Store, seq: int) -> list[Outcome]:
    """Send a batch to two runs in one transaction."""
    one = plainly(seq)
    items = [Submission(run, one, zlib.crc32(encode(one)), NOW) for run in ("r1", "r2")]
    return store.batches.ingest(items)


@pytest.fixture
def often(monkeypatch):
    """Write checkpoints often enough for a short test."""
    monkeypatch.setattr(derived, "MOST_BATCHES", EVERY)


@pytest.fixture(scope="module")
def wanted(tmp_path_factory):
    """Return everything after each batch, of a service that writes a checkpoint with each."""
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(derived, "MOST_BATCHES", 1)
        path = tmp_path_factory.mktemp("wanted") / "snc.db"
        with closing(opened(f"sqlite:///{path}")) as store:
            begin(store)
            for seq in range(BATCHES):
                prepared(store, seq)
                send(store, seq)
                assert checkpoint(store) == seq + 1
                found.append(everything(store))
    return found


def test_the_batches_of_these_tests_trouble_the_rules(wanted):
    rules = {event.rule for event in wanted[-1][-1]}
    assert {"breach", "nonfinite", "sigma_jump", "loss_divergence", "rewound"} <= rules
    assert {"annotation", "rules_changed"} <= rules
    assert len({state for _, state, *_ in wanted}) == BATCHES


def test_two_services_that_take_turns_batch_by_batch_are_one(store_url, wanted, often):
    with closing(opened(store_url)) as one, closing(opened(store_url)) as other:
        begin(one)
        turns = itertools.cycle((one, other))
        for seq in range(BATCHES):
            mine, others = next(turns), next(turns)
            prepared(others, seq)
            send(mine, seq)
            assert newest(mine) == newest(others) == wanted[seq][0]
            assert pulse(others) == wanted[seq][2]
            next(turns)
        assert everything(one) == everything(other) == wanted[-1]


def test_a_service_that_takes_over_at_any_batch_goes_on_alike(store_url, wanted, often):
    """Nothing is closed: the one before was killed."""
    store = opened(store_url)
    begin(store)
    rng, left = random.Random(7), []
    for seq in range(BATCHES):
        if rng.random() < 0.3:
            left.append(store)
            store = opened(store_url)
            if seq:
                assert everything(store) == wanted[seq - 1]
        prepared(store, seq)
        send(store, seq)
    assert everything(store) == wanted[-1]
    assert len(left) > 12
    for each in (store, *left):
        each.close()


def test_folding_and_draining_change_no_answer(store_url, wanted, often):
    store = opened(store_url)
    begin(store)
    for seq in range(BATCHES):
        prepared(store, seq)
        send(store, seq)
        if seq % 9 == 8:
            while store.fold(60, now=NOW + 3_600):
                pass
            assert everything(store) == wanted[seq]
            store.close()
            store = opened(store_url)
        elif seq % 9 == 4:
            store.batches.settle()
            assert checkpoint(store) == seq + 1
    assert everything(store) == wanted[-1]
    store.close()


def test_most_batches_write_no_checkpoint_and_none_is_far_behind(store_url, often):
    with closing(opened(store_url)) as store:
        begin(store)
        written, last = 0, -1
        for seq in range(100):
            send(store, seq, plain=True)
            now = checkpoint(store)
            written, last = written + (now != last), now
            assert seq + 1 - now < derived.MOST_BATCHES
        assert written <= 1 + 100 // derived.MOST_BATCHES + 1


def test_large_batches_write_one_before_much_has_to_be_read_again(store_url, monkeypatch):
    monkeypatch.setattr(derived, "MOST_BYTES", 4 * 9 * 5)  # of five of these batches
    monkeypatch.setattr(derived, "TIMES_ITSELF", 0)
    with closing(opened(store_url)) as store:
        begin(store)
        behind = []
        for seq in range(14):
            send(store, seq, plain=True)
            behind.append(seq + 1 - checkpoint(store))
        assert behind == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5, 0, 1]


def test_a_run_that_is_forgotten_again_and_again_has_little_to_replay(store_url, monkeypatch):
    with closing(opened(store_url)) as store:
        begin(store)
        behind = []
        for seq in range(60):
            send(store, seq, plain=True)
            store.batches._memory.take(["r1"])
            behind.append(seq + 1 - checkpoint(store))
        assert max(behind) <= derived.COLD_BATCHES


def test_without_rules_no_row_behind_the_checkpoint_is_folded(store_url, wanted):
    with closing(opened(store_url)) as store:
        begin(store)
        for seq in range(20):
            prepared(store, seq)
            send(store, seq)
        behind = 20 - checkpoint(store)
    assert behind > 3
    with closing(open_store(store_url)) as store:
        while store.fold(60, now=NOW + 3_600):
            pass
        with store._database.read() as connection:
            left = connection.execute("select id from tail where run_id = 1 order by id").fetchall()
        assert [id_ for (id_,) in left] == list(range(21 - behind, 21))
        with pytest.raises(RuntimeError, match="judge_with"):
            send(store, 20)
    with closing(opened(store_url)) as store:
        assert everything(store) == wanted[19]


def test_a_damaged_value_behind_the_checkpoint_counts_as_not_measured(store_url):
    with closing(opened(store_url)) as store:
        begin(store)
        for seq in range(5):
            send(store, seq, plain=True)
        before = newest(store)
        with store._database.write() as connection:
            (data,) = connection.execute(
                "select v from tail where run_id = 1 and id = ?", (5,)
            ).fetchone()
            flipped = bytes([data[0] ^ 1]) + bytes(data[1:])
            connection.execute("update tail set v = ? where run_id = 1 and id = ?", (flipped, 5))
    with closing(opened(store_url)) as other:
        metrics, steps, _ = newest(other)
        assert metrics == before[0]
        assert max(steps) == max(before[1]) - 1  # one block has all of the batch
        (outcome,) = send(other, 5, plain=True)
        assert outcome.error is None
        assert newest(other)[1] == [max(before[1]) + 1] * len(LAYERS.names) + [-1] * 2


@pytest.mark.parametrize("settings", ["\\x7b{}", '{"rules":{"breagh":{}}}'])
def test_rows_behind_damaged_rule_settings_are_judged_by_those_in_force(store_url, settings):
    with closing(opened(store_url)) as store:
        begin(store)
        for seq in range(4):
            send(store, seq, plain=True)
        found = store.batches.rule_state("r1")
        with store._database.write() as connection:
            connection.execute("update checkpoint set settings = ? where run_id = 1", (settings,))
    with closing(opened(store_url)) as other:
        assert other.batches.rule_state("r1") == found
        (outcome,) = send(other, 4, plain=True)
        assert outcome.error is None
        assert checkpoint(other) == 5


@pytest.mark.parametrize("damage", ["flipped", "cut"])
def test_rules_whose_state_is_damaged_begin_anew_and_no_other_run_notices(store_url, damage):
    with closing(opened(store_url)) as store:
        begin(store)
        new_run(store, "r2")
        store.batches.put_layer_table("r2", LAYERS)
        for seq in range(3):
            both(store, seq)
        kept = store.batches.rule_state("r2")
        with store._database.write() as connection:
            (state,) = connection.execute("select v from checkpoint where run_id = 1").fetchone()
            state = bytes(state)
            broken = bytes([state[0] ^ 0x80]) + state[1:] if damage == "flipped" else state[:-3]
            connection.execute("update checkpoint set v = ? where run_id = 1", (broken,))
    with closing(opened(store_url)) as other:
        assert other.batches.rule_state("r2") == kept
        assert [outcome.error for outcome in both(other, 3)] == [None, None]
        assert checkpoint(other) == 4  # the damaged state is replaced at once
        other.batches.settle()
        state = other.batches.rule_state("r1")
    with closing(opened(store_url)) as third:
        assert third.batches.rule_state("r1") == state
        while third.fold(60, now=NOW + 3_600):
            pass


@pytest.mark.parametrize("column", ["metrics", "steps", "v"])
def test_newest_values_of_a_wrong_length_begin_anew_and_no_other_run_notices(store_url, column):
    with closing(opened(store_url)) as store:
        begin(store)
        new_run(store, "r2")
        store.batches.put_layer_table("r2", LAYERS)
        for seq in range(3):
            both(store, seq)
        store.batches.settle()
        kept = bits(store.histories.latest("r2").values)
        broken = '["sigma"' if column == "metrics" else b"\1\2\3"
        with store._database.write() as connection:
            connection.execute(f"update latest set {column} = ? where run_id = 1", (broken,))
    with closing(opened(store_url)) as other:
        assert (other.histories.latest("r1").steps == -1).all()
        assert (bits(other.histories.latest("r2").values) == kept).all()
        assert [outcome.error for outcome in both(other, 3)] == [None, None]
        other.batches.settle()
    with closing(opened(store_url)) as third:
        width = len(LAYERS.names)
        again = bits(third.histories.latest("r1").values)[:, :width]
        assert again.tolist() == bits(third.histories.latest("r2").values).tolist()


def test_rows_on_which_rules_fail_in_a_replay_do_not_stop_the_run(store_url):
    """Those of a new release may fail on what the release before has judged."""
    with closing(opened(store_url)) as store:
        begin(store)
        for seq in range(4):
            send(store, seq, plain=True)

    class Failing(RunRules):
        def advance(self, rows):
            if rows.batch.steps == (2,):
                raise ValueError("this row")
            return super().advance(rows)

    with closing(open_store(store_url)) as other:
        other.batches.judge_with(Failing)
        (outcome,) = send(other, 4, plain=True)
        assert outcome.error is None
        assert checkpoint(other) == 5


KILLS = 4


def of_the_job(found: tuple) -> tuple:
    """Return everything but what people did: they may have done it for the next batch."""
    *derived_, events = found
    ours = [e for e in events if e.rule not in ("annotation", "rules_changed")]
    return (*derived_, ours)


@pytest.mark.timeout(120)
def test_kill_9_at_any_statement_neither_loses_nor_doubles_an_event(store_url, wanted, tmp_path):
    acks, seed = tmp_path / "acks", int.from_bytes(os.urandom(2), "little")
    rng = random.Random(seed)
    with closing(opened(store_url)) as store:
        begin(store)
    victim = Path(__file__).resolve().parents[1] / "support" / "derived_victim.py"
    for _ in range(KILLS):
        ran = subprocess.run(
            [sys.executable, str(victim), store_url, str(acks), str(rng.randrange(1, 200))],
            stderr=subprocess.PIPE,
            check=False,
            timeout=60,
        )
        assert ran.returncode == -signal.SIGKILL, (seed, ran.stderr.decode())
        sure = int(acks.read_text().split()[-1]) if acks.exists() and acks.read_text() else -1
        with closing(opened(store_url)) as store:
            (probe,) = send(store, 10**6)
            last = probe.error.expected - 1
            assert last >= sure, seed
            if last >= 0:
                assert of_the_job(everything(store)) == of_the_job(wanted[last]), (seed, last)
    with closing(opened(store_url)) as store:
        for seq in range(last + 1, BATCHES):
            prepared(store, seq)
            send(store, seq)
        assert everything(store) == wanted[-1], seed
