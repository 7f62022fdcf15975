"""What a measurement looks like on the host: a reading per layer, the newest of all, the breach."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal, TypeAlias, TypedDict

import numpy as np
import numpy.typing as npt

from snc_service.wire import ABSENT, absent

# The rows of a measurement, in the order in which the device writes them.
METRICS: Final = ("sigma", "threshold", "scale", "residual", "sigma_upper")
# They may follow, in this order. On the device -1 says "not measured": NaN would be a measurement.
EXTRA_METRICS: Final = ("frobenius", "stable_rank", "grad_norm", "update_norm", "guard")
NOT_MEASURED: Final = -1.0
# Last, in steps, and known to the host alone: see `bound_provenance.Origins`.
ORIGIN_METRICS: Final = ("certified_age", "bound_age")


class ThresholdBreached(RuntimeError):
    """Raised in the training loop for a layer whose action is ``stop``.

    ``sigma`` was measured after optimizer step ``step``; the host sees it one measurement later,
    because the loop never waits for the device.
    """

    def __init__(self, layer: str, step: int, sigma: float, threshold: float) -> None:
        super().__init__(
            f"sigma of {layer} must be at most {threshold:.6g}, got {sigma:.6g} at step {step}: "
            "the action of this layer is stop"
        )
        self.layer = layer
        self.step = step
        self.sigma = sigma
        self.threshold = threshold


Origin: TypeAlias = Literal["certified", "carried", "aged"]


class Reading(TypedDict):
    """One layer at one step. None: not measured, never certified, or no threshold.

    ``sigma`` and ``sigma_upper`` are from before the action, ``scale`` is what the action did;
    ``ratio`` is sigma / threshold. ``sigma_upper_from`` says what sigma_upper is worth:
    ``certified`` at this step; ``carried`` to it from the certificate of ``certified_age`` steps
    ago by what the weight has moved, a bound too, but a looser one; ``aged``: it was a bound
    ``bound_age`` steps ago, and is none of this weight. ``frobenius`` to ``update_norm``: see
    `NormSignals`; ``guard``: how far the step went of what the guard allows, 1 being its limit.
    """

    sigma: float | None
    threshold: float | None
    scale: float | None
    residual: float | None
    sigma_upper: float | None
    sigma_upper_from: Origin | None
    ratio: float | None
    frobenius: float | None
    stable_rank: float | None
    grad_norm: float | None
    update_norm: float | None
    guard: float | None
    certified_age: float | None
    bound_age: float | None


@dataclass(frozen=True, eq=False)
class Latest(Mapping[str, Reading]):
    """The newest measurement of each layer that has arrived on the host: layer name -> `Reading`.

    ``step`` is that of the newest row, -1 before the first one, and ``steps`` (int64 [L]) are those
    at which the layers were measured: idle layers are measured in turns. ``columns`` is float32
    [M, L], rows as in ``metrics``.
    ``certified`` is bool [L]: sigma_upper was certified at this very step; of the others the
    reading's ``sigma_upper_from`` says whether it is a bound of the weight at this step.
    """

    names: Sequence[str] = ()
    step: int = -1
    columns: npt.NDArray[np.float32] = field(
        default_factory=lambda: np.empty((len(METRICS), 0), np.float32)
    )
    scalars: Mapping[str, float] = field(default_factory=dict)
    metrics: Sequence[str] = METRICS
    certified: npt.NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, np.bool_))
    steps: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    def __getitem__(self, layer: str) -> Reading:
        try:
            column = self.columns[:, self.names.index(layer)]
        except ValueError:
            raise KeyError(layer) from None
        gone = absent(column)
        values = {
            name: None if gone[m] else float(column[m]) for m, name in enumerate(self.metrics)
        }
        sigma, threshold = values["sigma"], values["threshold"]
        ratio = None if sigma is None or threshold is None else sigma / threshold
        return Reading(
            sigma=sigma,
            threshold=threshold,
            scale=values["scale"],
            residual=values["residual"],
            sigma_upper=values["sigma_upper"],
            sigma_upper_from=_origin(values.get("certified_age"), values.get("bound_age")),
            ratio=ratio,
            frobenius=values.get("frobenius"),
            stable_rank=values.get("stable_rank"),
            grad_norm=values.get("grad_norm"),
            update_norm=values.get("update_norm"),
            guard=values.get("guard"),
            certified_age=values.get("certified_age"),
            bound_age=values.get("bound_age"),
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self.names if self.columns.shape[1] else ())

    def __len__(self) -> int:
        return int(self.columns.shape[1])

    def wider(self, names: Sequence[str]) -> Latest:
        """Return this measurement with layers that follow in ``names``, of which it knows nothing.

        Before the first measurement there is nothing to widen but the names.
        """
        more = len(names) - self.columns.shape[1] if self.columns.shape[1] else 0
        columns = np.pad(self.columns, ((0, 0), (0, more)), constant_values=ABSENT)
        certified = np.pad(self.certified, (0, more))
        steps = np.pad(self.steps, (0, more), constant_values=-1)
        return replace(self, names=list(names), columns=columns, certified=certified, steps=steps)

    def then(self, newer: Latest, gone: Collection[int] = ()) -> Latest:
        """Return ``newer`` with what is known of the layers that it has not measured.

        Of the layers at the places ``gone`` nothing is known any more.
        """
        new = ~absent(newer.row("sigma"))
        new[list(gone)] = True
        steps = np.where(new, newer.step, self.steps if len(self.steps) else -1)
        if new.all() or not len(self.steps):
            return replace(newer, steps=steps)
        columns = np.where(new, newer.columns, self.columns)
        certified = np.where(new, newer.certified, self.certified)
        return replace(newer, columns=columns, certified=certified, steps=steps)

    def row(self, metric: str) -> npt.NDArray[np.float32]:
        """Return one metric of every layer, float32 [L]."""
        row: npt.NDArray[np.float32] = self.columns[self.metrics.index(metric)]
        return row


def _origin(certified_age: float | None, bound_age: float | None) -> Origin | None:
    if bound_age is None:
        return None
    return "aged" if bound_age > 0 else "carried" if certified_age else "certified"


def mark_absent(values: npt.NDArray[np.float32]) -> None:
    """Write ABSENT where the device says "none": an infinite threshold, a NaN bound, a -1."""
    threshold = values[METRICS.index("threshold")]
    threshold[np.isinf(threshold)] = ABSENT
    for metric in ("scale", "sigma_upper"):
        row = values[METRICS.index(metric)]
        row[np.isnan(row)] = ABSENT
    extra = values[len(METRICS) :]
    extra[extra < 0] = ABSENT
