"""Open incidents: a look at all of them by an index, and the whole of some."""

from __future__ import annotations

from collections.abc import Sequence

from snc_service.store.sql.database.dialect import Connection
from snc_service.store.sql.records import incidents
from snc_service.store.types.incidents import Incident, OpenIncident, RunFacts

# What the index of open incidents holds, and the row of the run.
_MARKS = (
    "select incident.id, incident.revision, incident.run_id, run.state, run.updated_at, "
    "run.version from incident join run on run.run_id = incident.run_id "
    "where incident.state = 'open'"
)


def marks(connection: Connection) -> list[OpenIncident]:
    """Return what tells whether an open incident must be looked at, by id, without reading any."""
    # Sorted here: an engine that sorts would go through all incidents by their ids.
    return sorted(OpenIncident(*row) for row in connection.execute(_MARKS).fetchall())


def load(connection: Connection, chosen: Sequence[OpenIncident]) -> list[tuple[Incident, RunFacts]]:
    """Return open incidents with their runs, in the given order, in two statements.

    Those that are closed by now are left out.
    """
    found = connection.fetch_each(
        f"{incidents.SELECT} where incident.id = ? and incident.state = 'open'",
        [(each.id,) for each in chosen],
    )
    facts = connection.fetch_each(
        f"{incidents.FACTS} where run.run_id = ?", [(each.run_id,) for each in chosen]
    )
    return [
        (incidents.of_row(one[0]), incidents.facts_of(run[0]))
        for one, run in zip(found, facts, strict=True)
        if one and run
    ]
