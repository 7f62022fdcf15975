"""The thread that looks for alerts: it rests while nothing happens, and misses nothing by it."""

from __future__ import annotations

import time
from contextlib import closing

import pytest
from alert_cases import entry, incident, memory
from service_process import until
from store_cases import NOW, batch, new_run, stored, table

from snc_service.alerts import Alerts, incidents, worker
from snc_service.store import open_store
from snc_service.store.types import Event, RunShare
from snc_service.store.types.incidents import IncidentChange

LAYERS = table("a")


@pytest.fixture
def store(store_url):
    with closing(open_store(store_url)) as opened:
        new_run(opened)
        opened.batches.put_layer_table("r1", LAYERS)
        opened.incidents.gather(lambda *_: [], now=NOW, limit=100)
        yield opened


def breached(state, rows):
    """A rule that speaks at step 0."""
    step = rows.batch.steps[0]
    said = [Event(0, "breach", "warning", "seen", "a", 1, 2.0, 1.0)] if step == 0 else []
    return memory(step, {"breach": 3}), said


def row(store, seq):
    stored(store, batch(LAYERS, seq, [seq], {"sigma": [[1.0]]}), advance=breached)


def test_events_of_this_process_end_the_longest_pause(store, monkeypatch):
    monkeypatch.setattr(worker, "PAUSE_SECONDS", 3_600.0)
    alerts = Alerts(store, clock=lambda: NOW)
    alerts.start()
    try:
        row(store, 0)
        until(lambda: not store.incidents.work(NOW).outbox, seconds=20)
        until(lambda: store.incidents.marks(), seconds=20)
    finally:
        began = time.monotonic()
        alerts.close()
    assert time.monotonic() - began < 60  # nor does it wait for the pause to end


def test_a_transaction_that_is_rolled_back_announces_nothing(store):
    database = store._database
    database.announced.clear()

    def fails():
        with database.write() as connection:
            connection.announce()
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    with database.write() as connection:
        connection.execute("select 1")
    assert not database.announced.is_set()
    row(store, 0)
    assert database.announced.is_set()


@pytest.fixture
def sweep(store, monkeypatch):
    """Open an incident; return a function that looks at open ones, and says which were read."""

    def gather(facts, open_one, entries):
        return [IncidentChange(incident(entry(0), id=0), ())]

    row(store, 0)
    store.incidents.gather(gather, now=NOW, limit=100)
    assert len(store.incidents.marks()) == 1
    clock, read = [NOW], []
    alerts = Alerts(store, clock=lambda: clock[0])
    real = store.incidents.open
    monkeypatch.setattr(
        store.incidents, "open", lambda chosen=None: read.extend(chosen) or real(chosen)
    )

    def look(at=NOW):
        read.clear()
        clock[0] = at
        alerts._sweep(alerts._alerting(), everything=False)
        return len(read)

    return look


def test_an_open_incident_is_read_once_and_again_after_a_change_of_its_run(store, sweep):
    assert sweep() == 1
    assert sweep() == 0
    row(store, 1)
    assert sweep() == 1
    assert sweep() == 0
    assert sweep(NOW + worker.LOOKED_SECONDS) == 1


def test_an_incident_of_a_run_that_ended_is_read_when_its_time_has_come(store, sweep):
    assert sweep() == 1
    store.runs.finish("r1", "finished", NOW)
    assert sweep(NOW + incidents.CLOSED_SECONDS - 1) == 0
    assert sweep(NOW + incidents.CLOSED_SECONDS) == 1
    assert store.incidents.marks() == []


def test_incidents_of_the_runs_of_others_are_left_to_them(store, sweep, monkeypatch):
    (mark,) = store.incidents.marks()
    monkeypatch.setattr(store.replicas, "share", lambda: RunShare(1 - mark.run_id % 2, 2))
    assert sweep() == 0
    monkeypatch.setattr(store.replicas, "share", lambda: RunShare(mark.run_id % 2, 2))
    assert sweep() == 1
