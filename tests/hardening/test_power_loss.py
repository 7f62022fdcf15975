"""Nothing is acknowledged before its sync returned, and a power loss loses nothing acknowledged."""

from __future__ import annotations

import random
import shutil
from contextlib import closing

import pytest
from power_loss import fail, recorded
from store_victim import next_seq
from test_store_kill import check

from snc_service.store import open_store, tiles

GROUPS = 60
INSTANTS = 12


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    if shutil.which("strace") is None:
        pytest.skip("what a process syncs is seen by strace: apt-get install strace")
    return recorded(tmp_path_factory.mktemp("traced"), GROUPS)


def test_nothing_is_acknowledged_before_its_sync_returned(trace):
    acknowledged = [each for each in trace.happened if isinstance(each, int)]
    assert len(acknowledged) == GROUPS
    assert trace.happened.count("snc.db-wal") >= GROUPS
    assert trace.happened.count("snc.db") > 0  # the log was written back meanwhile
    assert trace.unsynced_acknowledgements() == []


def lost_power(trace, instant, folder, seed):
    """Open what is left after a power loss, and compare it with what was acknowledged."""
    fail(trace, instant, folder, random.Random(seed))
    sure = trace.acknowledged(instant)
    with closing(open_store(f"sqlite:///{folder}/snc.db")) as store:
        assert store.damages.count() == 0  # what is torn is not taken for damage
        if sure < 0:
            return
        stored = next_seq(store, "one") - 1
        assert stored >= sure
        check(store, {"one": stored, "two": -1})
        found = store.damages.verify()
        assert (found.damaged, found.engine) == ((), ())


def test_a_power_loss_at_any_instant_loses_nothing_acknowledged(trace, tmp_path, monkeypatch):
    monkeypatch.setattr(tiles, "TILE_STEPS", 64)
    monkeypatch.setattr(tiles, "FANOUT", 8)
    chance = random.Random()
    for number in range(INSTANTS):
        folder, seed = tmp_path / str(number), chance.randrange(2**31)
        folder.mkdir()
        instant = chance.randrange(len(trace.happened))
        try:
            lost_power(trace, instant, folder, seed)
        except Exception as error:
            raise AssertionError(f"instant {instant}, seed {seed}") from error
