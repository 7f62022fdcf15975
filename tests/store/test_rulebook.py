"""Rule settings and annotations in the store: versions, scopes, and what the next batch obeys."""

import pytest
from store_cases import NOW, batch, judge, new_run, stored, table

from snc_service.detect.rules import advance
from snc_service.store import open_store
from snc_service.store.types import EventQuery, RunUnknown, VersionConflict
from snc_service.wire import RuleSettings

LAYERS = table("a", "b")
QUIET = RuleSettings.parse({"rules": {"breach": {"on": False}}})
LOUD = RuleSettings.parse({"rules": {"breach": {"severity": "critical"}}})


@pytest.fixture
def store(store_url):
    store = judge(open_store(store_url))
    new_run(store)
    store.batches.put_layer_table("r1", LAYERS)
    yield store
    store.close()


def put(store, settings, version=None, author="ann"):
    return store.rule_settings.put_for_run(
        "r1", settings, author=author, now=NOW, if_version=version
    )


def breaching(seq):
    """Return a batch that breaches, long enough after the one before to be told again."""
    step = 200 * seq
    quiet = {"sigma": [[1, 1]], "threshold": [[2, 2]]}
    steps = list(range(step, step + 60))
    columns = {name: [row[0]] * 60 for name, row in quiet.items()}
    columns["sigma"][-1] = [3, 1]
    return batch(LAYERS, seq, steps, columns)


def breaches(store, seq):
    (outcome,) = stored(store, breaching(seq), advance=advance)
    return [event.event for event in outcome.events if event.event.rule == "breach"]


def test_without_any_settings_version_0_is_as_shipped(store):
    assert (store.rule_settings.of_run("r1").version, store.rule_settings.of_run("r1").scope) == (
        0,
        "none",
    )
    assert store.rule_settings.of_run("r1").content == RuleSettings()
    assert store.rule_settings.of_project("p").version == 0
    assert store.rule_settings.versions_of_run("r1") == []


def test_the_next_batch_obeys_and_its_events_name_the_version(store):
    (first,) = breaches(store, 0)
    assert (first.severity, first.rules_version) == ("warning", 0)
    put(store, LOUD)
    (second,) = breaches(store, 1)
    assert (second.severity, second.rules_version) == ("critical", 1)
    put(store, QUIET)
    assert breaches(store, 2) == []
    listed = store.events.page(EventQuery(run="r1", rule="breach")).items
    assert [item.event.rules_version for item in listed] == [1, 0]


def test_the_projects_settings_hold_until_the_run_has_its_own(store):
    breaches(store, 0)
    store.rule_settings.put_for_project("p", QUIET, author="lead", now=NOW, if_version=0)
    assert breaches(store, 1) == []
    assert store.rule_settings.of_run("r1").scope == "project"
    put(store, LOUD, version=1)
    assert (store.rule_settings.of_run("r1").scope, store.rule_settings.of_run("r1").version) == (
        "run",
        2,
    )
    store.rule_settings.put_for_project("p", QUIET, author="lead", now=NOW, if_version=1)
    (event,) = breaches(store, 2)
    assert (event.severity, event.rules_version) == ("critical", 2)
    versions = store.rule_settings.versions_of_project("p")
    assert [each.version for each in versions] == [2, 1]


def test_any_replica_obeys_what_another_was_told(store, store_url):
    other = open_store(store_url)
    breaches(store, 0)
    put(other, QUIET)
    assert breaches(store, 1) == []
    other.rule_settings.put_for_project("p", LOUD, author="", now=NOW, if_version=None)
    assert breaches(other, 2) == []
    other.close()


def test_each_change_is_a_version_with_its_author_an_event_and_an_audit_entry(store):
    put(store, LOUD)
    second = put(store, QUIET, version=1, author="bob")
    assert second == store.rule_settings.of_run("r1")
    assert (second.version, second.scope, second.author, second.at) == (2, "run", "bob", NOW)
    assert [
        (v.version, v.content, v.author) for v in store.rule_settings.versions_of_run("r1")
    ] == [
        (2, QUIET, "bob"),
        (1, LOUD, "ann"),
    ]
    changes = store.events.page(EventQuery(run="r1", rule="rules_changed")).items
    assert [(e.event.value, e.event.severity) for e in changes] == [(2.0, "info"), (1.0, "info")]
    store.rule_settings.put_for_project("p", LOUD, author="lead", now=NOW, if_version=None)
    entries, _ = store.audit.page(limit=3)
    assert [(e.action, e.subject, e.author, e.detail) for e in entries] == [
        ("project_rules_changed", "p", "lead", "version 1"),
        ("run_rules_changed", "r1", "bob", "version 2"),
        ("run_rules_changed", "r1", "ann", "version 1"),
    ]


def test_a_change_of_something_else_than_what_is_in_force_is_refused(store):
    put(store, LOUD)
    with pytest.raises(VersionConflict) as caught:
        put(store, QUIET, version=0)
    assert caught.value.current == 1
    assert store.rule_settings.of_run("r1").content == LOUD
    with pytest.raises(VersionConflict):
        store.rule_settings.put_for_project("p", QUIET, author="", now=NOW, if_version=3)


def test_an_annotation_is_numbered_told_and_seen_by_the_next_batch(store):
    seen = []

    def watching(state, rows):
        seen.append([each.text for each in rows.annotations])
        return advance(state, rows)

    stored(store, breaching(0), advance=watching)
    made = store.annotations.add("r1", 300, "new data", 40, author="ann", now=NOW)
    assert (made.id, made.step, made.quiet_steps, made.author) == (1, 300, 40, "ann")
    stored(store, breaching(1), advance=watching)
    assert seen == [[], ["new data"]]
    assert store.annotations.of_run("r1") == [made]
    (event,) = [
        item.event for item in store.events.page(EventQuery(run="r1", rule="annotation")).items
    ]
    assert (event.step, event.message, event.value) == (300, "new data", 40.0)


def test_the_state_of_detection_is_read_as_the_newest_batch_left_it(store):
    assert store.batches.rule_state("r1") is None
    stored(store, breaching(0), advance=lambda state, rows: (b"left", []))
    assert store.batches.rule_state("r1") == b"left"


def test_a_run_that_there_is_not_has_neither(store):
    for ask in (
        store.rule_settings.of_run,
        store.rule_settings.versions_of_run,
        store.annotations.of_run,
        store.batches.rule_state,
    ):
        with pytest.raises(RunUnknown):
            ask("gone")


def test_everything_of_a_deleted_run_is_gone(store):
    put(store, LOUD)
    store.annotations.add("r1", 1, "so", 0, author="", now=NOW)
    store.runs.delete("r1")
    new_run(store)
    assert store.rule_settings.of_run("r1").version == 0
    assert store.annotations.of_run("r1") == []
