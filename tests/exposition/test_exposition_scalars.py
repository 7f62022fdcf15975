"""Scalars on /metrics: the newest value of each, a bounded number of names, gone with the run."""

import numpy as np
import pytest
from test_exposition import Clock, reporter, samples

from snc_service.detect.rules import RunRules
from snc_service.exposition import Exposition
from snc_service.store import open_store


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(tmp_path):
    opened = open_store(f"sqlite:///{tmp_path / 'snc.db'}")
    opened.batches.judge_with(RunRules)
    yield opened
    opened.close()


@pytest.fixture
def report(store, clock):
    return reporter(store, clock)


@pytest.fixture
def exposition(store, clock):
    return Exposition(store, clock=clock)


def test_the_newest_scalars_stand_beside_the_layers(report, exposition):
    report("r", ["a"], sigma=[1.0], scalars={"loss": 0.75, "lr": np.nan})
    report("r", ["a"], sigma=[1.0], scalars={"loss": 0.5})
    report("other", ["a"], sigma=[1.0], scalars={"loss": np.inf})
    for answer in (exposition.metrics(), exposition.metrics(["runs"])):
        found = {k: v for k, v in samples(answer).items() if k[0] == "snc_scalar"}
        assert found["snc_scalar", "r", "loss"] == 0.5
        assert np.isnan(found["snc_scalar", "r", "lr"])  # long ago, and still the newest
        assert found["snc_scalar", "other", "loss"] == np.inf
        assert len(found) == 3
    assert b'snc_scalar{run="r",name="loss"} 0.5\n' in exposition.run_metrics("r")[0]


def test_a_scalar_that_one_writer_reports_late_is_not_lost(report, exposition):
    report("r", ["a"], step=500, sigma=[1.0], scalars={"loss": 1.0})
    exposition.metrics()
    report("r", ["a"], step=490, sigma=[1.0], scalars={"vetoes": 1.0}, writer="late")
    assert samples(exposition.metrics())["snc_scalar", "r", "vetoes"] == 1


def test_a_run_that_was_resumed_forgets_the_scalars_of_the_attempt_before(report, exposition):
    report("r", ["a"], step=100, sigma=[1.0], scalars={"loss": 1.0, "gone": 1.0})
    assert samples(exposition.metrics())["snc_scalar", "r", "gone"] == 1
    report("r", ["a"], step=0, sigma=[1.0], scalars={"loss": 3.0})
    found = samples(exposition.metrics())
    assert found["snc_scalar", "r", "loss"] == 3
    assert ("snc_scalar", "r", "gone") not in found


def test_sixteen_scalars_of_a_run_are_shown_and_none_once_it_is_silent(report, exposition, clock):
    report("r", ["a"], sigma=[1.0], scalars={f"s{i:02}": i for i in range(20)})
    found = [key for key in samples(exposition.metrics()) if key[0] == "snc_scalar"]
    assert [key[2] for key in found] == [f"s{i:02}" for i in range(16)]
    clock.now += 901
    assert not [key for key in samples(exposition.metrics()) if key[0] == "snc_scalar"]
