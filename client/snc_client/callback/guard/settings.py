"""GuardSettings: the options of the guard. GuardStopped: raised when it cannot help."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from snc_client.errors import SNCError

MOST_ROLLBACKS, CALM = 3, 50


class GuardStopped(SNCError):
    """Raised in the training loop at the third roll-back without 50 good steps in between."""

    def __init__(self, step: int) -> None:
        super().__init__(
            f"the guard must find {CALM} good steps between two roll-backs, got {MOST_ROLLBACKS} "
            f"roll-backs without them by step {step}: the fault lies in what every step does, such "
            "as the learning rate, the data or the loss"
        )
        self.step = step


@dataclass(frozen=True)
class GuardSettings:
    """Options of the guard: ``max_rejections`` steps in a row may be undone; then ``at_limit``.

    ``"clip"`` makes finite steps in part from the sixth rejection in a row on, and rolls back
    where steps stay not finite. ``"roll back"`` restores weights 25 to 50 steps old. ``"accept"``
    keeps the step, unless a weight is not finite; it needs no older copies, and gives no protection
    where a fault lasts.
    """

    max_rejections: int = 20
    at_limit: Literal["clip", "roll back", "accept"] = "clip"

    def __post_init__(self) -> None:
        most = self.max_rejections
        if isinstance(most, bool) or not isinstance(most, int) or most < 1:
            raise ValueError(f"max_rejections must be an integer of at least 1, got {most!r}")
        if self.at_limit not in ("clip", "roll back", "accept"):
            raise ValueError(
                f"at_limit must be 'clip', 'roll back' or 'accept', got {self.at_limit!r}"
            )
