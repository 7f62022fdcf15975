"""Overlap: two client processes that report layers of the same names into one run, in turns."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from snc_service.store.sql.database.dialect import Connection
from snc_service.store.types import Event

RULE = "overlapping_writers"
# A writer that takes the place of another one may arrive before the last batches of the former.
TURNS = 3
MOST_WRITERS = 8  # remembered; of more, only neighbours are compared


@dataclass(eq=False)
class Overlap:
    """The writers of a run in the order of their batches, as far as they were seen here.

    It is not stored: a service that starts anew needs `TURNS` turns again. The event is raised once
    per run.
    """

    newest: str | None = None
    turns: int = 0
    raised: bool = False
    layers: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def event(
        self, connection: Connection, run_id: int, writer: str, layers: tuple[str, ...], step: int
    ) -> Event | None:
        """Note a batch; return the event if its writer and the one before take turns."""
        before, self.newest = self.newest, writer
        known = self.layers.pop(writer, None)
        self.layers[writer] = layers
        while len(self.layers) > MOST_WRITERS:
            del self.layers[next(iter(self.layers))]
        if before in (None, writer) or known is None or self.raised:
            return None
        both = _both(layers, self.layers.get(before or "", ()))
        if not both:
            return None
        self.turns += 1
        if self.turns < TURNS:
            return None
        self.raised = True
        found = connection.execute(
            "select 1 from event_count where run_id = ? and rule = ? limit 1", (run_id, RULE)
        ).fetchone()
        if found is not None:
            return None
        shown = ", ".join(both[:3]) + (f" and {len(both) - 3} more" if len(both) > 3 else "")
        message = (
            f"two writers report the same layers in turns: {shown}. Their histories are mixed: "
            "give each job a run of its own, or each model a prefix"
        )
        return Event(step, RULE, "warning", message, both[0], len(both))


def _both(layers: tuple[str, ...], others: Collection[str]) -> list[str]:
    if layers is others:
        return list(layers)
    known = set(others)
    return [name for name in layers if name in known]
