"""Group commit: who waits shares the next transaction, and nobody is acknowledged too early."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from api_cases import START, batch_of, table_of

from snc_service import group_commit
from snc_service.detect.rules import RunRules
from snc_service.group_commit import Closed, GroupCommit, QueueFull
from snc_service.store import open_store
from snc_service.store.types import RunUnknown, StoreUnavailable, Submission, Window

TABLE = table_of("a")


class Gate:
    """A real store whose transactions a test can hold up, look at, and break."""

    def __init__(self, store):
        self._store = store
        self.sizes = []
        self.entered = threading.Semaphore(0)
        self.open = threading.Event()
        self.open.set()
        self.broken = None
        self.batches = self  # where a commit stores

    def settle(self):
        self._store.batches.settle()

    def ingest(self, items):
        self.sizes.append(len(items))
        self.entered.release()
        assert self.open.wait(30)
        if self.broken is not None:
            self.broken(items)
        return self._store.batches.ingest(items)


@pytest.fixture
def store(tmp_path):
    opened = open_store(f"sqlite:///{tmp_path / 'snc.db'}")
    opened.batches.judge_with(RunRules)
    opened.runs.create("r", name="r", project="p", config={}, tags=(), policy=None, now=START)
    opened.batches.put_layer_table("r", TABLE)
    yield opened
    opened.close()


@pytest.fixture
def gate(store):
    return Gate(store)


@pytest.fixture
def commits(gate):
    made = GroupCommit(gate)
    yield made
    gate.open.set()
    made.close()


def submission(i, run="r"):
    """Return the first batch of writer i."""
    batch = batch_of(TABLE, writer=f"w{i}", steps=(i,), sigma=[[1.0 + i]])
    return Submission(run, batch, crc=i, received_at=START + i)


def submit(commits, *submissions, num_bytes=100):
    """Submit all at once; return outcomes and exceptions in their order."""

    async def all_of_them():
        waiting = [commits.submit(each, num_bytes) for each in submissions]
        return await asyncio.gather(*waiting, return_exceptions=True)

    return asyncio.run(all_of_them())


def submit_behind_a_running_transaction(commits, gate, *submissions, num_bytes=100):
    """Hold up the transaction of the first while the others queue; return all outcomes."""
    gate.open.clear()
    with ThreadPoolExecutor() as pool:
        first = pool.submit(submit, commits, submissions[0], num_bytes=num_bytes)
        assert gate.entered.acquire(timeout=30)
        others = pool.submit(submit, commits, *submissions[1:], num_bytes=num_bytes)
        while commits.waiting < len(submissions) - 1:
            threading.Event().wait(0.005)
        gate.open.set()
        return first.result(30) + others.result(30)


def steps_of(store):
    return store.histories.of_layers("r", "sigma", ["a"], Window()).steps.tolist()


def test_a_batch_alone_is_stored_at_once_and_then_acknowledged(commits, gate, store):
    (outcome,) = submit(commits, submission(3))
    assert not outcome.duplicate
    assert gate.sizes == [1]
    assert steps_of(store) == [3]


def test_batches_that_wait_share_one_transaction(commits, gate, store):
    outcomes = submit_behind_a_running_transaction(commits, gate, *map(submission, range(10)))
    assert [outcome.error for outcome in outcomes] == [None] * 10
    assert gate.sizes == [1, 9]
    assert steps_of(store) == list(range(10))


def test_a_transaction_takes_at_most_64_batches(commits, gate):
    submit_behind_a_running_transaction(commits, gate, *map(submission, range(100)))
    assert gate.sizes == [1, 64, 35]


def test_a_transaction_takes_at_most_16_mib(commits, gate):
    submit_behind_a_running_transaction(
        commits, gate, *map(submission, range(6)), num_bytes=8 * 1024 * 1024
    )
    assert gate.sizes == [1, 2, 2, 1]


def test_a_refused_batch_does_not_harm_its_neighbours(commits, gate, store):
    outcomes = submit_behind_a_running_transaction(
        commits, gate, submission(0), submission(1, run="nobody"), submission(2)
    )
    assert [type(outcome.error) for outcome in outcomes] == [type(None), RunUnknown, type(None)]
    assert steps_of(store) == [0, 2]


def test_a_batch_that_breaks_its_transaction_is_refused_alone(commits, gate, store, caplog):
    def break_on_step_1(items):
        if any(item.batch.steps == (1,) for item in items):
            raise ZeroDivisionError("a defect")

    gate.broken = break_on_step_1
    outcomes = submit_behind_a_running_transaction(commits, gate, *map(submission, range(3)))
    assert isinstance(outcomes[1], ZeroDivisionError)
    assert steps_of(store) == [0, 2]
    assert "a batch of run 'r' could not be stored" in caplog.text


def test_while_the_store_is_unavailable_all_are_refused_and_later_ones_are_stored(
    commits, gate, store
):
    def fail(items):
        raise StoreUnavailable("disk full")

    gate.broken = fail
    assert all(isinstance(told, StoreUnavailable) for told in submit(commits, submission(0)))
    assert steps_of(store) == []
    gate.broken = None
    (outcome,) = submit(commits, submission(0))
    assert not outcome.duplicate
    assert steps_of(store) == [0]


def test_a_full_queue_refuses_more(commits, gate, monkeypatch):
    monkeypatch.setattr(group_commit, "MAX_WAITING", 2)
    gate.open.clear()
    with ThreadPoolExecutor() as pool:
        first = pool.submit(submit, commits, submission(0))
        assert gate.entered.acquire(timeout=30)
        others = pool.submit(submit, commits, *map(submission, range(1, 5)))
        while commits.waiting < 2:
            threading.Event().wait(0.005)
        gate.open.set()
        told = first.result(30) + others.result(30)
    assert [isinstance(each, QueueFull) for each in told] == [False, False, False, True, True]


def test_closing_stores_what_waits_and_refuses_what_comes_later(gate, store):
    commits = GroupCommit(gate)
    gate.open.clear()
    with ThreadPoolExecutor() as pool:
        first = pool.submit(submit, commits, submission(0))
        assert gate.entered.acquire(timeout=30)
        others = pool.submit(submit, commits, *map(submission, range(1, 5)))
        while commits.waiting < 4:
            threading.Event().wait(0.005)
        closing = pool.submit(commits.close)
        while not commits._closed:
            threading.Event().wait(0.005)
        gate.open.set()
        closing.result(30)
        assert [outcome.error for outcome in first.result(30) + others.result(30)] == [None] * 5
    assert steps_of(store) == list(range(5))
    assert isinstance(submit(commits, submission(9))[0], Closed)


def test_a_batch_whose_client_has_hung_up_before_its_turn_is_not_stored(commits, gate, store):
    async def hang_up():
        first = asyncio.ensure_future(commits.submit(submission(0), 100))
        await asyncio.to_thread(gate.entered.acquire)
        second = asyncio.ensure_future(commits.submit(submission(1), 100))
        await asyncio.sleep(0)
        second.cancel()
        gate.open.set()
        await first
        await commits.submit(submission(2), 100)

    gate.open.clear()
    asyncio.run(hang_up())
    assert steps_of(store) == [0, 2]
