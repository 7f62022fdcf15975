"""A calm row of one run: what it needs of the memory, and all of it but the layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

from snc_service.detect import scalar_rules
from snc_service.detect.memory import Memory
from snc_service.detect.running import LEAST_REST
from snc_service.store.types import RunRows
from snc_service.wire.rule_settings import SHIPPED

PLACE: Final = {name: place for place, name in enumerate(SHIPPED)}
# What a rule reads: without these columns it has nothing to say.
_METRICS: Final[Mapping[str, frozenset[str]]] = {
    "breach": frozenset(("threshold",)),
    "breach_far": frozenset(("threshold",)),
    "update_ratio": frozenset(("frobenius", "update_norm")),
    "grad_vanish": frozenset(("grad_norm",)),
    "unchanged": frozenset(("frobenius", "grad_norm")),
}
_OF_VECTORS: Final = "gain_growth"  # of layers without sigma: none of these rows has one
_SCALARS: Final[Mapping[str, str]] = {
    "breach_far": "loss",
    "guard": "guard_vetoes",
    "guard_rollback": "guard_rollbacks",
    "lr_jump": "lr",
    "grad_spike": "grad_norm",
    "loss_divergence": "loss",
    "loss_trend": "loss",
    "loss_regain": "loss",
    "skipped_steps": "skipped_steps",
}
# What the memory must hold of every layer, by metric.
_NEEDED: Final = (
    ("sigma", frozenset(("start", "floor", "newest", "mean", "long_mean"))),
    ("frobenius", frozenset(("norm_floor", "newest_norm"))),
    ("grad_norm", frozenset(("gradient",))),
)
_NOT_OF_A_MOVING_TARGET: Final = frozenset(("loss_divergence", "loss_regain"))


_SAVED: Final = ("step", "gap", "trained", "largest_lr", "moving", "skipped_in_row")


@dataclass(eq=False)
class CalmRow:
    """A row that may be calm, and what its scalars have changed in the memory so far."""

    place: int
    memory: Memory
    rows: RunRows
    # One for each rule, NaN where it has none.
    values: list[float] = field(default_factory=lambda: [math.nan] * len(SHIPPED))
    gap: int = 1
    rise: float = math.nan
    fall: float = 0.0

    def __post_init__(self) -> None:
        it = self.memory
        parts = (it.loss, it.gradient, it.rise, it.regain, it.fall, it.skips)
        self._before: list[tuple[object, dict[str, Any]]] = [
            (each, dict(vars(each))) for each in parts
        ]
        self._before.append((it, {name: getattr(it, name) for name in _SAVED}))

    def undo(self) -> None:
        """Set back what the scalars have changed."""
        for each, state in self._before:
            each.__dict__.update(state)
        self.values[:] = [math.nan] * len(SHIPPED)
        self.rise, self.fall = math.nan, 0.0

    def advance(self) -> None:
        """Advance all but the layers of the memory by one row."""
        batch, memory, values = self.rows.batch, self.memory, self.values
        scalars: Mapping[str, float] = (
            dict(zip(batch.scalars, batch.scalar_values[:, 0].tolist(), strict=True))
            if batch.scalars
            else {}
        )
        self.gap, _ = memory.advance_step(batch.steps[0])
        values[PLACE["nonfinite"]] = values[PLACE["unchanged"]] = 0.0
        for rule, scalar in (("guard", "guard_vetoes"), ("guard_rollback", "guard_rollbacks")):
            if scalar in scalars:
                values[PLACE[rule]] = scalars[scalar]
        if (count := scalars.get("skipped_steps")) is not None:
            share = memory.skips.advance(count, self.gap, self.gap * memory.trained)
            values[PLACE["skipped_steps"]] = share
        if (loss := scalars.get("loss")) is not None:
            score, self.rise, regain, self.fall = scalar_rules.advance_loss(memory, loss)
            values[PLACE["loss_divergence"]], values[PLACE["loss_regain"]] = score, regain
        if (norm := scalars.get("grad_norm")) is not None:
            (values[PLACE["grad_spike"]],) = scalar_rules.advance_gradient(memory, norm)
        if (rate := scalars.get("lr")) is not None:
            (values[PLACE["lr_jump"]],) = scalar_rules.advance_lr(memory, rate)
        memory.moving = memory.moving or scalars.get("moving_target", 0.0) > 0
        if memory.moving:
            for rule in _NOT_OF_A_MOVING_TARGET:
                values[PLACE[rule]] = math.nan
        memory.trained += 1
        memory.skipped_in_row = 0


def may_be_calm(memory: Memory, rows: RunRows) -> bool:
    """Return whether the row need not be left to `rules.judge` for its form."""
    batch = rows.batch
    if len(batch.steps) > 1 or rows.new_attempt or memory.step is None or not batch.num_layers:
        return False
    if "sigma" not in batch.metrics or not memory.covers(rows.layers):
        return False
    known = memory.keep_together()
    if any(metric in batch.metrics and not known >= needed for metric, needed in _NEEDED):
        return False
    if rows.annotations and any(
        each.step <= batch.steps[0] and each.id not in memory.annotated for each in rows.annotations
    ):
        return False
    return all(map(math.isfinite, batch.scalar_values[:, 0].tolist())) if batch.scalars else True


def goes_on(row: CalmRow) -> bool:
    """Return whether a breach fires as it did a few rows before, which is no event.

    Sparse rows need fewer rows for the same: such a breach may be left to `rules.judge`.
    """
    setting, firing = row.rows.settings["breach"], row.memory.firing.get("breach")
    return (
        firing is not None
        and firing.streak + 1 >= setting.for_rows
        and firing.quiet <= LEAST_REST
        and row.memory.trained > setting.armed
    )


def count(row: CalmRow, *, is_over: bool) -> None:
    """Count a quiet row for every rule that has judged it, but for a breach that goes on."""
    batch, settings, memory = row.rows.batch, row.rows.settings, row.memory
    for name in _rules_of(batch.metrics, batch.scalars, settings.switched_on):
        firing = memory.of_rule(name)  # for every rule: fixes their order in the state
        if is_over and name == "breach":
            firing.go_on()
        elif not (memory.moving and name in _NOT_OF_A_MOVING_TARGET):
            firing.pass_over(1)


@lru_cache(maxsize=64)
def _rules_of(
    metrics: tuple[str, ...], scalars: tuple[str, ...], on: frozenset[str]
) -> tuple[str, ...]:
    """Return the rules that have something to say of these columns, in the order of events."""
    return tuple(
        name
        for name in SHIPPED
        if name in on
        and name != _OF_VECTORS
        and _METRICS.get(name, frozenset()).issubset(metrics)
        and (name not in _SCALARS or _SCALARS[name] in scalars)
    )
