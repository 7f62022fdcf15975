"""How the tables lie on a Citus cluster: a run's rows on one node, the rest on every node.

Nothing of the service changes with it: every statement about a run names the run, so that one node
answers it. What lists or counts over runs asks all of them.
"""

from __future__ import annotations

from typing import Final

from snc_service.store.sql.database import schema

KEY: Final = "run_id"
# Whole on every node: what has to be unique over all runs, what runs have in common, and what few
# rows say about many of them.
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
        "run_author",
        "run_name",
        "silence",
        "token",
    )
)
FIRST: Final = "run"  # the shards of all others lie where its shards do


def distributed() -> list[str]:
    """Return the tables that are sharded by `KEY`, `FIRST` first."""
    return [FIRST, *sorted(schema.table_names() - REFERENCE - {FIRST})]


def statements() -> list[str]:
    """Return what distributes the tables of a store, to be run once on the coordinator."""
    return [
        *(f"select create_reference_table('{table}')" for table in sorted(REFERENCE)),
        *(
            f"select create_distributed_table('{table}', '{KEY}'"
            + (")" if table == FIRST else f", colocate_with => '{FIRST}')")
            for table in distributed()
        ),
    ]
