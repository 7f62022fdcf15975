"""Incidents as lists: by age, by severity, of what is open, and of what waits to be told."""

from contextlib import closing
from dataclasses import replace

import pytest
from alert_cases import entry, incident
from store_cases import NOW
from test_alerts_store import run_with_events

from snc_service.store import open_store
from snc_service.store.sql.records import open_incidents
from snc_service.store.types.incidents import DueRun, IncidentChange


@pytest.fixture
def store(store_url):
    with closing(open_store(store_url)) as opened:
        yield opened


def many(store, severities):
    """Open one incident per run, the first one of each list the oldest; return their ids."""
    ids = []
    for number, severity in enumerate(severities):
        run = f"many-{number}"
        run_with_events(store, run)

        def gather(facts, open_one, entries, severity=severity):
            made = incident(entry(5, severity=severity), id=0)
            return [IncidentChange(replace(made, run=facts.run), ())]

        store.incidents.gather(gather, now=NOW, limit=100)
        (made,), _ = store.incidents.page(run=run)
        ids.append(made.id)
    return ids


def listed(store, limit=2, **query):
    """Read a list page by page."""
    found, after = [], None
    while True:
        shown, after = store.incidents.page(limit=limit, after=after, **query)
        found += [each.id for each in shown]
        if after is None:
            return found


def test_incidents_are_listed_by_age_or_by_severity_page_by_page(store):
    severities = ["critical", "warning", "info", "critical", "warning"]
    ids = many(store, severities)
    assert listed(store) == ids[::-1]
    by_severity = [ids[3], ids[0], ids[4], ids[1], ids[2]]
    for limit in (1, 2, 3, 5):
        assert listed(store, limit, sort="severity") == by_severity
    assert listed(store, severity="critical") == [ids[3], ids[0]]
    assert listed(store, severity="critical", sort="severity", run="many-0") == [ids[0]]


class Counted:
    """A connection that counts its statements, and the rows that it was asked for."""

    def __init__(self, connection):
        self.connection, self.statements, self.rows = connection, 0, 0

    def execute(self, *arguments):
        self.statements += 1
        return self.connection.execute(*arguments)

    def fetch_each(self, statement, parameters):
        self.statements += 1
        self.rows += len(parameters)
        return self.connection.fetch_each(statement, parameters)


@pytest.mark.parametrize("number", [1, 7])
def test_a_look_at_open_incidents_takes_one_statement_and_reads_the_chosen_ones(store, number):
    many(store, ["warning"] * number)
    with store._database.read() as connection:
        counted = Counted(connection)
        marks = open_incidents.marks(counted)
        assert (counted.statements, len(marks)) == (1, number)
        found = open_incidents.load(counted, marks[:2])
    chosen = min(2, number)
    assert (counted.statements, counted.rows, len(found)) == (3, 2 * chosen, chosen)
    assert all(each.run == facts.run for each, facts in found)
    assert all(facts.pulse == b"remembered" for _, facts in found)
    assert [each.id for each, _ in store.incidents.open()] == [mark.id for mark in marks]


def test_a_look_at_open_incidents_reads_no_row_of_an_incident(tmp_path):
    """What SQLite goes through is the index: the bodies of incidents may be long."""
    with closing(open_store(f"sqlite:///{tmp_path}/snc.db")) as store:
        many(store, ["warning"])
        with store._database.read() as connection:
            plan = connection.execute(f"explain query plan {open_incidents._MARKS}").fetchall()
    (scanned,) = [row[3] for row in plan if "incident" in row[3]]
    assert "COVERING INDEX incident_open" in scanned


def test_what_waits_is_told_by_run_with_its_most_severe_incident(store):
    severities = {"r1": ["info", "critical"], "r2": ["warning"], "r3": []}
    for run in severities:
        run_with_events(store, run)

    def gather(facts, open_one, entries):
        kinds = severities[facts.run]
        made = [incident(entry(5, severity=each), id=0, state="resolved") for each in kinds]
        return [IncidentChange(replace(each, run=facts.run), ("chat",)) for each in made]

    store.incidents.gather(gather, now=NOW, limit=100)
    waiting = sorted(store.deliveries.waiting("chat", NOW), key=lambda each: each.run)
    assert waiting == [
        DueRun("r1", "p", "critical", NOW),
        DueRun("r2", "p", "warning", NOW),
    ]
    ((delivery, found),) = store.deliveries.due("chat", "r1", NOW)
    assert found.severity == "critical"
    assert store.deliveries.claim([delivery], now=NOW, until=NOW + 15) == [True]
    assert store.deliveries.due("chat", "r1", NOW)[0][1].severity == "info"
    assert store.deliveries.due("chat", "r3", NOW) == []
    assert store.deliveries.waiting("mail", NOW) == []
