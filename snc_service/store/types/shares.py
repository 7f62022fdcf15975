"""The share of background work that one of several services on one store does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class RunShare:
    """The runs whose numbers leave the remainder ``place`` when divided by ``of``.

    It says who does work first, not who may: all of it is safe if two do it at once.
    """

    place: int
    of: int

    def has(self, run_id: int) -> bool:
        """Return whether a run is in this share."""
        return run_id % self.of == self.place


EVERYTHING: Final = RunShare(0, 1)
