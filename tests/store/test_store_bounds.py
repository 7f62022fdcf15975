"""What is noted, named and made beside values is bounded: refused by name, or the oldest goes."""

from __future__ import annotations

from contextlib import closing
from dataclasses import fields, replace

import pytest
from store_cases import NOW, Told, batch, new_run, stored, submit, table

from snc_service.auth import make_token
from snc_service.settings import Settings
from snc_service.store import open_store
from snc_service.store.sql.ingest import run_cache
from snc_service.store.sql.records import events as records
from snc_service.store.types import (
    BoundReached,
    Bounds,
    Event,
    EventQuery,
    RunBounds,
    RunFull,
    ServiceFull,
    StoreBounds,
    VersionConflict,
)
from snc_service.store.types.incidents import (
    Entry,
    Incident,
    IncidentChange,
    Silence,
)
from snc_service.wire import Policy, PolicyEntry, RuleSettings

ONE = table("a")
BOUNDS = Bounds(
    RunBounds(attempts=3, annotations=2, commands=3, versions=2, events=4, incidents=2),
    StoreBounds(tokens=2, projects=2, silences=2, routings=2),
)
POLICY = Policy((PolicyEntry("*", 1.0),))
BY = {"author": "ann", "now": NOW}


@pytest.fixture
def store(store_url):
    with closing(open_store(store_url, BOUNDS)) as store:
        new_run(store)
        store.batches.put_layer_table("r1", ONE)
        yield store


def refused(error: pytest.ExceptionInfo[BoundReached], bound: str, limit: int) -> None:
    assert (error.value.bound, error.value.limit) == (bound, limit)
    assert f"SNC_{bound.upper()}" in str(error.value)


def test_every_bound_has_a_setting_of_its_name_and_value():
    for of, prefix in ((RunBounds, "run"), (StoreBounds, "store")):
        for each in fields(of):
            assert getattr(Settings(), f"{prefix}_{each.name}") == each.default, each.name


def row(seq, step, **header):
    return batch(ONE, seq, [step], {"sigma": [[1.0]]}, **header)


def test_attempts_are_bounded_and_those_that_are_known_go_on(store):
    stored(store, row(0, 9), row(1, 5), row(2, 5))
    for more in (row(3, 2), row(3, 7, attempt=2_000_000)):
        (outcome,) = submit(store, [more])
        assert isinstance(outcome.error, RunFull)
        assert (outcome.error.bound, outcome.error.field) == ("run_attempts", "steps")
    stored(store, row(3, 6), row(4, 1, attempt=0))
    assert store.runs.get("r1").attempt == 2


def test_annotations_and_commands_are_bounded(store):
    for number in range(2):
        store.annotations.add("r1", number, "so", 0, **BY)
    with pytest.raises(RunFull) as error:
        store.annotations.add("r1", 9, "so", 0, **BY)
    refused(error, "run_annotations", 2)
    for _ in range(3):
        store.commands.add("r1", "pause", "", **BY)
    with pytest.raises(RunFull) as error:
        store.commands.add("r1", "resume", "", **BY)
    refused(error, "run_commands", 3)
    assert [each.id for each in store.commands.page("r1", limit=2)] == [3, 2]
    assert [each.id for each in store.commands.page("r1", limit=2, below=2)] == [1]
    assert [each.id for each in store.commands.waiting("r1")] == [1, 2, 3]


@pytest.mark.parametrize("kind", ["policies", "rule_settings"])
def test_versions_of_a_run_and_of_a_project_are_bounded(store, kind):
    documents = getattr(store, kind)
    content = POLICY if kind == "policies" else RuleSettings()
    for put, listed, whose in (
        (documents.put_for_run, documents.versions_of_run, "r1"),
        (documents.put_for_project, documents.versions_of_project, "p"),
    ):
        for _ in range(2):
            put(whose, content, if_version=None, **BY)
        with pytest.raises(RunFull) as error:
            put(whose, content, if_version=None, **BY)
        refused(error, "run_versions", 2)
        assert [each.version for each in listed(whose)] == [2, 1]
        assert [each.version for each in listed(whose, limit=1)] == [2]
        assert [each.version for each in listed(whose, below=2)] == [1]
    new_run(store, "r2")
    documents.put_for_run("r2", content, if_version=None, **BY)  # each run has its own
    assert documents.of_run("r2").version == 3


def test_projects_with_documents_of_their_own_are_bounded(store):
    for project in ("p", "q", "p"):
        store.policies.put_for_project(project, POLICY, if_version=None, **BY)
    with pytest.raises(ServiceFull) as error:
        store.policies.put_for_project("s", POLICY, if_version=None, **BY)
    refused(error, "store_projects", 2)
    with pytest.raises(VersionConflict):  # a known one is answered as before
        store.policies.put_for_project("q", POLICY, if_version=9, **BY)


def token(name):
    return make_token(name, ("read",), project=None, author="x", now=NOW, expires_at=None)[0]


def test_tokens_are_bounded_and_revoking_makes_no_room(store):
    for name in ("one", "two"):
        store.tokens.add(token(name))
    store.tokens.revoke("one", author="x", now=NOW)
    with pytest.raises(ServiceFull) as error:
        store.tokens.add(token("three"))
    refused(error, "store_tokens", 2)


def silence(until, at=NOW):
    return Silence(0, "*", "*", "*", "*", until, "", "ann", at)


def test_silences_are_bounded_and_those_that_ended_make_room(store):
    first = store.silences.add(silence(NOW + 60))
    store.silences.add(silence(NOW + 90_000))
    with pytest.raises(ServiceFull) as error:
        store.silences.add(silence(NOW + 60))
    refused(error, "store_silences", 2)
    later = NOW + 61 + 86_400
    store.silences.add(silence(later + 60, at=later))
    assert first.id not in [each.id for each in store.silences.active(NOW)]
    for each in store.silences.active(NOW):
        assert store.silences.delete(each.id, **BY)
    store.silences.add(silence(later + 60, at=later))


def test_versions_of_the_routing_are_bounded(store):
    for _ in range(2):
        store.alert_routing.put({"receivers": {}}, if_version=None, **BY)
    with pytest.raises(ServiceFull) as error:
        store.alert_routing.put({"receivers": {}}, if_version=None, **BY)
    refused(error, "store_routings", 2)
    assert [each.version for each in store.alert_routing.versions(below=2)] == [1]


def speaking(state, rows):
    return b"", [Event(rows.batch.steps[0], "breach", "warning", "said", "a", 1, 2.0, 1.0)]


def ids_of(store, run="r1"):
    return [each.id for each in store.events.page(EventQuery(run=run)).items]


def test_the_oldest_events_give_way_and_their_counts_stay(store, monkeypatch):
    monkeypatch.setattr(records, "FORGOTTEN_AT_ONCE", 2)
    for step in range(8):  # and one that says that the run started
        stored(store, row(step, step), advance=speaking)
    new_run(store, "r2")
    assert store.events.forget() == 5
    assert ids_of(store) == [9, 8, 7, 6]
    assert ids_of(store, "r2") == [1]
    assert store.events.counts()["r1", "breach", "warning"] == 8
    assert store.events.forget() == 0
    stored(store, row(8, 8), advance=speaking)
    assert ids_of(store)[0] == 10
    with store._database.read() as connection:
        waiting = connection.execute(
            "select id from alert_outbox where run_id = 1 order by id"
        ).fetchall()
    assert [number for (number,) in waiting] == [6, 7, 8, 9, 10]


def test_incidents_that_are_over_give_way_to_newer_ones_and_the_open_one_stays(store):
    stored(store, row(0, 0), advance=speaking)
    entry = Entry(1, NOW, 0, "breach", "warning", "said", "a", 1, 2.0, 1.0)
    made = Incident(0, "r1", "p", "open", "warning", (entry,), NOW, NOW)
    states = ("open", "resolved", "notice", "resolved", "resolved")

    def decide(facts, incident, entries):
        return [IncidentChange(replace(made, state=each), ("hook",)) for each in states]

    store.incidents.gather(decide, now=NOW, limit=10)
    assert store.incidents.forget() == 2
    left, _ = store.incidents.page(run="r1")
    assert [each.state for each in left] == ["resolved", "resolved", "open"]
    due = []
    for delivery, found in store.deliveries.due("hook", "r1", NOW, limit=9):
        due.append(found.id)
        told = replace(delivery, next_at=None)
        store.deliveries.save([(told, found.revision)], now=NOW)
    assert sorted(due) == sorted(each.id for each in left)
    assert store.incidents.forget() == 0


def test_what_a_run_keeps_in_memory_beside_layers_has_a_price():
    small = run_cache.RunAtWork(1)
    large = run_cache.RunAtWork(2)
    large.derived.rules = Told(bytes(run_cache.LAYER_BYTES * 500))
    large.attempts.first_steps.update({number: 0 for number in range(1_000)})
    large.overlap.layers = {"w": ("a",) * 8_000, "v": ("a",) * 8_000}
    assert large.cost - small.cost == 500 + 1_000 + 2_000
