"""The layout on a Citus cluster: the rows of a run on one node, all other tables on every node.

The service needs no change: every statement about a run names the run, so one node answers it.
Lists and counts over runs query all nodes.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from snc_service.store.sql.database import schema
from snc_service.store.sql.database.dialect import Connection

KEY: Final = "run_id"
# Copied to every node: values unique over all runs, values that runs share, and small tables about
# many runs.
REFERENCE: Final = frozenset(
    (
        "alert_lock",
        "alerting",
        "audit",
        "deleted_run",
        "delivery",
        "incident",
        "project_policy",
        "project_rules",
        "replica",
        "run_author",
        "run_name",
        "silence",
        "token",
    )
)
FIRST: Final = "run"  # the shards of all other tables are colocated with its shards


def distributed() -> list[str]:
    """Return the tables that are sharded by `KEY`, `FIRST` first."""
    return [FIRST, *sorted(schema.table_names() - REFERENCE - {FIRST})]


def statements(there: Collection[str] = ()) -> list[str]:
    """Return the statements that distribute a store, but those for tables that are ``there``.

    To be run on the coordinator, after the first start and after each upgrade.
    """
    return [
        *(
            f"select create_reference_table('{table}')"
            for table in sorted(REFERENCE)
            if table not in there
        ),
        *(
            f"select create_distributed_table('{table}', '{KEY}'"
            + (")" if table == FIRST else f", colocate_with => '{FIRST}')")
            for table in distributed()
            if table not in there
        ),
    ]


def missing(connection: Connection) -> list[str]:
    """Return the statements for tables that are not distributed yet."""
    rows = connection.execute("select logicalrelid::regclass::text from pg_dist_partition")
    return statements({str(name).rpartition(".")[2] for (name,) in rows})


def distribute(connection: Connection) -> list[str]:
    """Run the statements for tables that are not distributed yet, and return them."""
    todo = missing(connection)
    for statement in todo:
        connection.execute(statement)
    return todo
