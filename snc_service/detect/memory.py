"""What detection remembers of a run between two batches, and its bytes in the store."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

VERSION = 1
REST_ROWS = 50  # quiet rows after which a rule may speak again
NEVER = 1_000_000_000  # quiet for ever: the rule has not fired yet

Rows: TypeAlias = npt.NDArray[np.int64]


@dataclass
class Firing:
    """One rule's hysteresis: rows in a row above its limit, and rows since it last fired."""

    streak: int = 0
    quiet: int = NEVER

    def edges(self, above: npt.NDArray[np.bool_], hold: Rows, rest: Rows) -> list[int]:
        """Return the rows of ``above`` [S] at which an event starts, and remember the rest.

        A rule fires at the ``hold``-th row above its limit; it starts an event if more than
        ``rest`` rows went by in which it did not fire.
        """
        if not above.any():
            self.streak, self.quiet = 0, min(NEVER, self.quiet + len(above))
            return []
        found = []
        for row, is_above in enumerate(above.tolist()):
            self.streak = self.streak + 1 if is_above else 0
            if self.streak >= hold[row] and is_above:
                if self.quiet > rest[row]:
                    found.append(row)
                self.quiet = 0
            else:
                self.quiet = min(NEVER, self.quiet + 1)
        return found


@dataclass
class Memory:
    """The state of a run: a pure function of its rows, whatever batches they came in."""

    step: int | None = None  # of the newest row
    gap: int | None = None  # steps between the two newest rows
    firing: dict[str, Firing] = field(default_factory=dict)

    @classmethod
    def load(cls, state: bytes | None) -> Memory:
        """Read a state. One of another version is not understood: detection starts anew."""
        values: dict[str, Any] = json.loads(state) if state else {}
        if values.get("version") != VERSION:
            return cls()
        firing = {rule: Firing(*pair) for rule, pair in values["firing"].items()}
        return cls(values["step"], values["gap"], firing)

    def dump(self) -> bytes:
        """Return the state as JSON: a few hundred bytes, whatever the number of layers."""
        firing = {rule: [it.streak, it.quiet] for rule, it in self.firing.items()}
        values = {"version": VERSION, "step": self.step, "gap": self.gap, "firing": firing}
        return json.dumps(values, separators=(",", ":")).encode()

    def restart(self) -> None:
        """Forget everything that a new attempt must not inherit."""
        self.step = self.gap = None
        self.firing.clear()

    def stride(self, steps: tuple[int, ...]) -> Rows:
        """Return how many steps apart the rows are, [S] >= 1; the newest rows are remembered.

        The smaller of the last two gaps counts, so that one lost batch does not make rows that are
        a step apart look sparse. Rows of another writer may go back: they say nothing of gaps.
        """
        found = []
        for step in steps:
            gap = None if self.step is None else step - self.step
            before, self.gap = self.gap, gap if gap and gap > 0 else self.gap
            found.append(min(before or self.gap or 1, self.gap or 1))
            self.step = step
        return np.array(found, np.int64)
