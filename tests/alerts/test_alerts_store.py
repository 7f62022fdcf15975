"""Incidents in the store: every event comes by once, and all of it goes with its run."""

import sqlite3
from dataclasses import replace

import pytest
from alert_cases import entry, incident
from store_cases import NOW, batch, new_run, stored, submit, table

from snc_service.store import open_store
from snc_service.store.engines import sqlite
from snc_service.store.sql.database import schema
from snc_service.store.types import Event, VersionConflict
from snc_service.store.types.incidents import AlertDelivery, IncidentChange, Silence

LAYERS = table("fc1.weight")
DOCUMENT = {"receivers": {}, "routes": []}


@pytest.fixture
def store(store_url):
    opened = open_store(store_url)
    yield opened
    opened.close()


def speaking(*rules):
    """Rules that raise one event each at the first step of every batch."""

    def advance(state, rows):
        step = rows.batch.steps[0]
        found = [
            Event(step, rule, "warning", f"{rule} at {step}", "fc1.weight", 1) for rule in rules
        ]
        return b"remembered", found

    return advance


def run_with_events(store, run="r1", rules=("breach",)):
    new_run(store, run)
    store.batches.put_layer_table(run, LAYERS)
    stored(store, batch(LAYERS, 0, [5], {"sigma": [[1.0]]}), run=run, advance=speaking(*rules))


def due(store, receiver, now):
    """Return what is due to a receiver of the first run, None if nothing is of any."""
    runs = sorted(each.run for each in store.deliveries.waiting(receiver, now))
    found = store.deliveries.due(receiver, runs[0], now) if runs else []
    return found[0] if found else None


def gathered(store, limit=100):
    """Take events out of the outbox; return what the deciding function saw."""
    seen = []

    def gather(facts, open_one, entries):
        seen.append((facts, open_one, list(entries)))
        return []

    store.incidents.gather(gather, now=NOW, limit=limit)
    return seen


def opening(*receivers):
    """Make one incident of whatever comes, for these receivers."""

    def gather(facts, open_one, entries):
        made = replace(incident(*entries), id=0, run=facts.run)
        return [IncidentChange(made, receivers, wake=True)]

    return gather


def with_incident(store, *receivers):
    run_with_events(store)
    store.incidents.gather(opening(*receivers), now=NOW, limit=100)
    (made,), _ = store.incidents.page()
    return made


def test_every_event_comes_by_exactly_once_in_order(store):
    run_with_events(store, "r1", ["breach", "sigma_jump"])
    run_with_events(store, "r2", ["breach"])
    assert store.incidents.work(NOW).outbox
    (first, none, ones), (second, _, twos) = gathered(store)
    assert (first.run, first.project, first.state, none) == ("r1", "p", "active", None)
    assert first.pulse == b"remembered"
    assert [each.rule for each in ones] == ["run_started", "breach", "sigma_jump"]
    assert [each.id for each in ones] == [1, 2, 3]
    assert ones[1].message == "breach at 5"
    assert (second.run, [each.rule for each in twos]) == ("r2", ["run_started", "breach"])
    assert gathered(store) == []
    assert not store.incidents.work(NOW).outbox


def test_a_limit_takes_the_oldest_of_a_run_first(store):
    run_with_events(store, "r1", ["breach", "sigma_jump"])
    ids = [[each.id for each in entries] for _ in range(3) for *_, entries in gathered(store, 1)]
    assert ids == [[1], [2], [3]]


def test_what_goes_wrong_while_gathering_loses_no_event(store):
    run_with_events(store)

    def broken(facts, open_one, entries):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        store.incidents.gather(broken, now=NOW, limit=100)
    assert len(gathered(store)) == 1


def test_an_event_whose_batch_is_refused_never_comes_by(store):
    run_with_events(store)
    gathered(store)

    def broken(state, rows):
        raise RuntimeError("no")

    (outcome,) = submit(store, [batch(LAYERS, 1, [6], {"sigma": [[1.0]]})], advance=broken)
    assert outcome.error is not None
    assert gathered(store) == []


def test_an_incident_is_stored_with_who_is_to_be_told(store):
    made = with_incident(store, "chat", "pager")
    assert (made.run, made.project, made.state) == ("r1", "p", "open")
    assert [each.rule for each in made.entries] == ["run_started", "breach"]
    assert store.incidents.get(made.id) == made
    assert store.incidents.work(NOW).due == ("chat", "pager")
    assert store.incidents.work(NOW - 1).due == ()
    delivery, found = due(store, "chat", NOW)
    assert delivery == AlertDelivery(made.id, "chat", NOW)
    assert found == made
    assert due(store, "nobody", NOW) is None
    ((open_one, facts),) = store.incidents.open()
    assert (open_one, facts.run, facts.pulse) == (made, "r1", b"remembered")


def test_the_open_incident_is_there_when_more_events_come(store):
    made = with_incident(store)
    more = batch(LAYERS, 1, [9], {"sigma": [[1.0]]})
    stored(store, more, advance=speaking("sigma_jump"))
    ((_, open_one, entries),) = gathered(store)
    assert open_one == made
    assert [each.rule for each in entries] == ["sigma_jump"]


def test_only_one_of_two_who_claim_a_delivery_has_it(store):
    with_incident(store, "chat")
    delivery, _ = due(store, "chat", NOW)
    assert store.deliveries.claim([delivery], now=NOW, until=NOW + 15) == [True]
    assert store.deliveries.claim([delivery], now=NOW, until=NOW + 15) == [False]
    assert due(store, "chat", NOW) is None
    assert store.incidents.work(NOW).due == ()
    assert due(store, "chat", NOW + 15) is not None  # the first died on the way


def test_a_change_does_not_break_a_claim_and_is_due_once_that_is_over(store):
    made = with_incident(store, "chat")
    delivery, _ = due(store, "chat", NOW)
    store.deliveries.claim([delivery], now=NOW, until=NOW + 15)
    worse = replace(made, severity="critical", revision=made.revision + 1)
    store.incidents.change([IncidentChange(worse, wake=True)], now=NOW + 1)
    assert due(store, "chat", NOW + 1) is None
    after = replace(delivery, told="firing", told_at=NOW, next_at=NOW + 600)
    store.deliveries.save([(after, made.revision)], now=NOW + 2)
    assert due(store, "chat", NOW + 2) is not None


def test_who_read_a_delivery_before_somebody_else_made_it_cannot_claim_it(store):
    made = with_incident(store, "chat")
    read, _ = due(store, "chat", NOW)
    store.deliveries.claim([read], now=NOW, until=NOW + 15)
    after = replace(read, told="firing", told_at=NOW, next_at=NOW + 600)
    store.deliveries.save([(after, made.revision)], now=NOW)
    assert store.deliveries.claim([read], now=NOW, until=NOW + 15) == [False]


def test_what_became_of_a_delivery_is_kept(store):
    made = with_incident(store, "chat")
    after = AlertDelivery(made.id, "chat", NOW + 60, "firing", NOW, "warning")
    store.deliveries.save([(after, made.revision)], now=NOW)
    assert due(store, "chat", NOW + 59) is None
    assert due(store, "chat", NOW + 60)[0] == after


def test_what_changed_while_it_was_told_is_told_again(store):
    made = with_incident(store, "chat")
    worse = replace(made, severity="critical", revision=made.revision + 1)
    assert store.incidents.change([IncidentChange(worse, wake=True)], now=NOW + 1) == 1
    after = AlertDelivery(made.id, "chat", NOW + 600, "firing", NOW, "warning")
    store.deliveries.save([(after, made.revision)], now=NOW + 2)
    delivery, found = due(store, "chat", NOW + 2)
    assert (delivery.told, found.severity) == ("firing", "critical")


def test_a_change_of_what_has_changed_since_is_refused(store):
    made = with_incident(store)
    newer = replace(made, revision=made.revision + 1)
    assert store.incidents.change([IncidentChange(newer)], now=NOW) == 1
    newest = replace(newer, revision=newer.revision + 1)
    ghost = replace(made, id=99)
    assert (
        store.incidents.change(
            [IncidentChange(newest), IncidentChange(newer), IncidentChange(ghost)], now=NOW
        )
        == 1
    )
    assert store.incidents.get(made.id) == newest


def test_an_outage_puts_off_everything_else_that_is_due_to_its_receiver(store):
    run_with_events(store, "r1")
    run_with_events(store, "r2")
    store.incidents.gather(opening("chat", "pager"), now=NOW, limit=100)
    delivery, found = due(store, "chat", NOW)
    failed = replace(delivery, next_at=NOW + 8, failures=1, failing_since=NOW, error="down")
    store.deliveries.save([(failed, found.revision)], now=NOW, hold_until=NOW + 8)
    assert store.incidents.work(NOW + 7).due == ("pager",)
    assert store.incidents.work(NOW + 8).due == ("chat", "pager")
    chat, pager = store.deliveries.health()
    assert (chat.receiver, chat.waiting, chat.failures, chat.error) == ("chat", 2, 1, "down")
    assert (pager.waiting, pager.failures, pager.error, pager.told_at) == (2, 0, "", None)


def test_incidents_are_listed_newest_first_by_pages_and_filters(store):
    for run, project in (("r1", "p"), ("r2", "q"), ("r3", "p")):
        new_run(store, run, project)
    store.incidents.gather(opening(), now=NOW, limit=100)
    runs = [each.run for each in store.incidents.page()[0]]
    assert runs == ["r3", "r2", "r1"]
    assert [each.run for each in store.incidents.page(project="p")[0]] == ["r3", "r1"]
    assert [each.run for each in store.incidents.page(run="r2")[0]] == ["r2"]
    assert store.incidents.page(state="resolved") == ([], None)
    page, following = store.incidents.page(limit=2)
    assert [each.run for each in page] == ["r3", "r2"]
    rest, end = store.incidents.page(limit=2, after=following)
    assert ([each.run for each in rest], end) == (["r1"], None)


def test_the_first_who_acknowledges_is_kept_and_in_the_audit_log(store):
    made = with_incident(store)
    known = store.incidents.acknowledge(made.id, author="anna", now=NOW + 5, comment="on it")
    assert (known.acknowledged_by, known.acknowledged_at) == ("anna", NOW + 5)
    assert known.revision == made.revision + 1
    assert store.incidents.acknowledge(made.id, author="ben", now=NOW + 9) == known
    assert store.incidents.acknowledge(99, author="ben", now=NOW) is None
    (audited,), _ = store.audit.page(author=None, action=None, subject=None, limit=5, after=None)
    assert (audited.action, audited.author, audited.detail) == (
        "incident_acknowledged",
        "anna",
        "on it",
    )


def test_a_silence_lasts_until_it_ends_and_what_it_held_is_due_again(store):
    made = with_incident(store, "chat")
    silence = store.silences.add(Silence(0, "*", "r1", "*", "*", NOW + 60, "", "anna", NOW))
    assert silence.id > 0
    assert store.silences.active(NOW + 59) == [silence]
    assert store.silences.active(NOW + 60) == []
    held = AlertDelivery(made.id, "chat", NOW + 60, silenced=True)
    store.deliveries.save([(held, made.revision)], now=NOW)
    assert store.incidents.work(NOW + 1).due == ()
    assert store.silences.delete(silence.id, author="ben", now=NOW + 1)
    assert store.incidents.work(NOW + 1).due == ("chat",)
    assert not store.silences.delete(silence.id, author="ben", now=NOW + 1)
    entries, _ = store.audit.page(author=None, action=None, subject=None, limit=5, after=None)
    assert [each.action for each in entries] == ["silence_deleted", "silence_added"]


def test_every_change_lets_a_silenced_delivery_be_looked_at_again(store):
    made = with_incident(store, "chat", "pager")
    held = AlertDelivery(made.id, "chat", NOW + 60, silenced=True)
    store.deliveries.save([(held, made.revision)], now=NOW)
    told = AlertDelivery(made.id, "pager", NOW + 60, "firing", NOW, "warning")
    store.deliveries.save([(told, made.revision)], now=NOW)
    joined = replace(made, entries=(*made.entries, entry(9)), revision=made.revision + 1)
    store.incidents.change([IncidentChange(joined)], now=NOW + 1)
    assert store.incidents.work(NOW + 1).due == ("chat",)


def test_routing_has_versions_and_of_two_who_change_one_the_second_is_told(store):
    assert (store.alert_routing.current().version, store.alert_routing.current().content) == (
        0,
        DOCUMENT,
    )
    first = store.alert_routing.put({"routes": [1]}, author="anna", now=NOW, if_version=0)
    assert (first.version, store.alert_routing.current()) == (1, first)
    with pytest.raises(VersionConflict) as error:
        store.alert_routing.put(DOCUMENT, author="ben", now=NOW, if_version=0)
    assert error.value.current == 1
    second = store.alert_routing.put(DOCUMENT, author="ben", now=NOW + 1, if_version=None)
    assert store.alert_routing.versions() == [second, first]
    assert store.incidents.work(NOW).version == 2
    assert "routes" not in repr(second)  # it may hold secrets


def test_a_run_takes_its_incidents_and_events_along(store):
    made = with_incident(store, "chat")
    run_with_events(store, "r2")
    stored(store, batch(LAYERS, 1, [9], {"sigma": [[1.0]]}), advance=speaking("sigma_jump"))
    store.runs.delete("r1")
    assert store.incidents.get(made.id) is None
    assert due(store, "chat", NOW) is None
    assert store.incidents.open() == []
    assert [facts.run for facts, *_ in gathered(store)] == ["r2"]
    assert store.deliveries.health() == []


def test_a_store_of_before_alerts_is_upgraded_and_its_old_events_tell_nobody(tmp_path):
    path = tmp_path / "old.db"
    file = sqlite3.connect(path)
    for version in (1, 2):
        file.executescript(schema.UPGRADES[version].format(**sqlite.WORDS))
    file.execute(f"pragma application_id = {sqlite.APPLICATION_ID}")
    file.execute("pragma user_version = 2")
    file.execute("insert into run_name (run_id, run) values (1, 'r1')")
    file.execute(
        "insert into run (run_id, run, name, project, state, created_at, updated_at, next_event) "
        "values (1, 'r1', 'r1', 'p', 'active', 0, 0, 2)"
    )
    file.execute("insert into run_config (run_id, config, tags) values (1, '{}', '[]')")
    file.execute("insert into event values (1, 1, 0, 0, 'breach', 'warning', 'a', 1, 2, 1, 'old')")
    file.commit()
    file.close()
    upgraded = open_store(f"sqlite:///{path}")
    assert not upgraded.incidents.work(NOW).outbox
    upgraded.batches.put_layer_table("r1", LAYERS)
    stored(upgraded, batch(LAYERS, 0, [9], {"sigma": [[1.0]]}), advance=speaking("sigma_jump"))
    ((_, _, entries),) = gathered(upgraded)
    assert [(each.id, each.rule) for each in entries] == [(2, "sigma_jump")]
    upgraded.close()
