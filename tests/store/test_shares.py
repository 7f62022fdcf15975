"""Services on one PostgreSQL divide their background work by who is alive."""

from __future__ import annotations

from contextlib import ExitStack, closing

import pytest

from snc_service.store import open_store, replicas
from snc_service.store.types import EVERYTHING


@pytest.fixture
def clock(monkeypatch):
    """Return a clock that stands still unless it is set: ``clock[0]`` is its seconds."""
    now = [1_000.0]
    monkeypatch.setattr(replicas.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def three(postgres, clock):
    url = postgres.new_url()
    with ExitStack() as stack:
        yield [stack.enter_context(closing(open_store(url))) for _ in range(3)]
    postgres.drop(url)


def beat(clock, *stores):
    """Let so many services beat, often enough that each has seen the others."""
    for _ in range(2):
        clock[0] += replicas.BEAT_SECONDS
        shares = [store.replicas.share() for store in stores]
    return shares


def owners(shares, runs=range(60)):
    return [[share.has(run) for share in shares].count(True) for run in runs]


def test_a_service_alone_does_everything_and_each_more_takes_its_part(three, clock):
    one, two, _ = three
    assert beat(clock, one) == [EVERYTHING]
    shares = beat(clock, one, two)
    assert {share.of for share in shares} == {2}
    assert owners(shares) == [1] * 60
    shares = beat(clock, *three)
    assert {share.of for share in shares} == {3}
    assert owners(shares) == [1] * 60


def test_what_a_service_leaves_is_taken_over_at_the_next_beat(three, clock):
    one, two, other = three
    beat(clock, *three)
    other.close()
    clock[0] += replicas.BEAT_SECONDS
    shares = [one.replicas.share(), two.replicas.share()]
    assert owners(shares) == [1] * 60


def outlived(clock, *stores):
    """Let some services beat for as long as those that do not are believed; return the shares."""
    end = clock[0] + replicas.LEASE_SECONDS + replicas.BEAT_SECONDS
    while clock[0] < end:
        shares = beat(clock, *stores)
    return shares


def test_a_service_that_was_killed_or_hangs_is_left_out_after_its_lease_and_forgotten(three, clock):
    one, two, _ = three
    beat(clock, *three)
    assert {share.of for share in beat(clock, one, two)} == {3}
    shares = outlived(clock, one, two)
    assert {share.of for share in shares} == {2}
    assert owners(shares) == [1] * 60
    clock[0] += replicas.FORGET_SECONDS
    beat(clock, one, two)
    with one._database.read() as connection:
        assert connection.execute("select count(*) from replica").fetchone() == (2,)


def test_one_that_comes_back_has_its_part_again(three, clock):
    one, two, other = three
    beat(clock, *three)
    outlived(clock, one, two)
    shares = beat(clock, one, two, other)
    assert {share.of for share in shares} == {3}
    assert owners(shares) == [1] * 60


def test_an_embedded_store_is_never_shared_and_writes_no_beats(tmp_path, clock):
    with closing(open_store(f"sqlite:///{tmp_path}/snc.db")) as store:
        assert store.replicas.share() == EVERYTHING
        with store._database.read() as connection:
            assert connection.execute("select count(*) from replica").fetchone() == (0,)


def test_a_service_that_others_forgot_while_it_was_stopped_begins_again(three, clock):
    """Its first beat after that has the number that its last one had."""
    one, two, _ = three
    one.replicas.share()
    for _ in range(9):
        clock[0] += replicas.FORGET_SECONDS / 6
        two.replicas.share()
    assert two.replicas.share() == EVERYTHING
    assert one.replicas.share().of == 2
    assert owners(beat(clock, one, two)) == [1] * 60
