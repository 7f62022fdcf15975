"""Policies: versions, scopes, and nobody's change is overwritten unseen."""

import pytest
from store_cases import NOW, batch, new_run, stored, table

from snc_service.store import open_store
from snc_service.store.types import EventQuery, VersionConflict
from snc_service.wire import Policy, PolicyEntry

LAYERS = table("a", "b")
TIGHT = Policy((PolicyEntry("*", 1.5, "rescale"),))
LOOSE = Policy((PolicyEntry("head.*", None, "observe"), PolicyEntry("*", "3x init")))


@pytest.fixture
def store(store_url):
    store = open_store(store_url)
    new_run(store)
    store.batches.put_layer_table("r1", LAYERS)
    yield store
    store.close()


def put(store, policy, version=None, author="ann"):
    return store.policies.put_for_run("r1", policy, author=author, now=NOW, if_version=version)


def test_without_any_policy_version_0_is_empty(store):
    assert (store.policies.of_run("r1").version, store.policies.of_run("r1").scope) == (0, "none")
    assert store.policies.of_run("r1").content == Policy()
    assert store.policies.of_project("p").version == 0
    assert store.policies.versions_of_run("r1") == []


def test_each_change_is_a_version_with_its_author(store):
    put(store, LOOSE)
    second = put(store, TIGHT, version=1, author="bob")
    assert second == store.policies.of_run("r1")
    assert (second.version, second.scope, second.author, second.at) == (2, "run", "bob", NOW)
    versions = store.policies.versions_of_run("r1")
    assert [(v.version, v.content, v.author) for v in versions] == [
        (2, TIGHT, "bob"),
        (1, LOOSE, "ann"),
    ]
    changes = store.events.page(EventQuery(run="r1", rule="policy_changed")).items
    assert [e.event.value for e in changes] == [2.0, 1.0]


def test_a_change_of_something_else_than_the_policy_in_force_is_refused(store):
    put(store, LOOSE)
    with pytest.raises(VersionConflict) as caught:
        put(store, TIGHT, version=0)
    assert caught.value.current == 1
    assert store.policies.of_run("r1").content == LOOSE
    with pytest.raises(VersionConflict):
        store.policies.put_for_project("p", TIGHT, author="", now=NOW, if_version=3)


def test_the_projects_policy_holds_until_the_run_has_its_own(store):
    store.policies.put_for_project("p", LOOSE, author="lead", now=NOW, if_version=0)
    store.policies.put_for_project("p", TIGHT, author="lead", now=NOW, if_version=1)
    assert (store.policies.of_run("r1").version, store.policies.of_run("r1").scope) == (
        2,
        "project",
    )
    assert [v.version for v in store.policies.versions_of_project("p")] == [2, 1]
    own = put(store, LOOSE, version=2)
    assert (own.version, own.scope) == (3, "run")
    store.policies.put_for_project("p", TIGHT, author="lead", now=NOW, if_version=2)
    assert store.policies.of_run("r1") == own


def test_every_acknowledgement_names_the_version_in_force(store):
    (first,) = stored(store, batch(LAYERS, 0, [0], {"sigma": [[1, 1]]}))
    assert first.policy_version == 0
    store.policies.put_for_project("p", LOOSE, author="", now=NOW, if_version=None)
    (second,) = stored(store, batch(LAYERS, 1, [1], {"sigma": [[1, 1]]}))
    assert second.policy_version == 1
    put(store, TIGHT)
    (again,) = stored(store, batch(LAYERS, 1, [1], {"sigma": [[1, 1]]}))
    assert (again.duplicate, again.policy_version) == (True, 2)


def test_a_runs_first_policy_comes_with_its_creation_unless_there_is_one(store):
    new_run(store, "r2", policy=TIGHT)
    assert (store.policies.of_run("r2").version, store.policies.of_run("r2").content) == (1, TIGHT)
    new_run(store, "r2", policy=LOOSE)
    assert store.policies.of_run("r2").content == TIGHT
    store.policies.put_for_project("q", LOOSE, author="", now=NOW, if_version=None)
    new_run(store, "r3", project="q", policy=TIGHT)
    assert store.policies.of_run("r3").content == LOOSE
    assert store.policies.versions_of_run("r3") == []


def test_a_changed_policy_changes_the_runs_version(store):
    before = store.runs.get("r1").version
    put(store, TIGHT)
    assert store.runs.get("r1").version > before
