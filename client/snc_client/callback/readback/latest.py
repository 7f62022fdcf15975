"""Latest: the newest measurement of each layer on the host, as a `Reading` per layer."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias, TypedDict

import numpy as np
import numpy.typing as npt

from snc_client.callback.readback.metrics import METRICS
from snc_client.errors import SNCError
from snc_client.layer_row import Floats, LayerRow, Mask
from snc_service.wire import ABSENT, absent


class ThresholdBreached(SNCError):
    """Raised in the training loop for a layer whose action is ``stop``.

    ``sigma`` was measured after optimizer step ``step``. The host reads it one measurement later,
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

    ``sigma`` and ``sigma_upper`` are from before the action; ``scale`` is the factor that the
    action applied; ``ratio`` is sigma / threshold. ``sigma_upper_from`` is ``certified`` for a
    certificate of this step, ``carried`` for one of ``certified_age`` steps ago plus what the
    weight has moved since (a bound too, but a looser one), and ``aged`` for a bound of the weight
    ``bound_age`` steps ago, which is no bound of the weight at this step. ``frobenius`` to
    ``update_sigma_rms`` are described at `NormSignals`. ``guard`` is the step's length relative to
    what the guard allows: above 1 it is undone.
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
    update_sigma: float | None
    update_sigma_ratio: float | None
    update_sigma_rms: float | None
    guard: float | None
    certified_age: float | None
    bound_age: float | None


@dataclass(frozen=True, eq=False)
class Latest(Mapping[str, Reading]):
    """The newest measurement of each layer that has arrived on the host: layer name -> `Reading`.

    ``step`` is that of the newest row, -1 before the first one. ``steps`` (int64 [L]) are the steps
    at which each layer was measured: idle layers are measured in turns. ``columns`` is float32
    [M, L] in the order of ``metrics``. ``certified`` is bool [L]: sigma_upper is a certificate of
    that step; for the other layers `Reading` shows whether it is a bound.
    """

    names: Sequence[str] = ()
    step: int = -1
    columns: Floats = field(default_factory=lambda: np.empty((len(METRICS), 0), np.float32))
    scalars: Mapping[str, float] = field(default_factory=dict)
    metrics: Sequence[str] = METRICS
    certified: Mask = field(default_factory=lambda: np.empty(0, np.bool_))
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
            update_sigma=values.get("update_sigma"),
            update_sigma_ratio=values.get("update_sigma_ratio"),
            update_sigma_rms=values.get("update_sigma_rms"),
            guard=values.get("guard"),
            certified_age=values.get("certified_age"),
            bound_age=values.get("bound_age"),
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self.names if self.columns.shape[1] else ())

    def __len__(self) -> int:
        return int(self.columns.shape[1])

    def wider(self, names: Sequence[str]) -> Latest:
        """Return these values under ``names``; the layers added at its end have none yet."""
        more = len(names) - self.columns.shape[1] if self.columns.shape[1] else 0
        columns = np.pad(self.columns, ((0, 0), (0, more)), constant_values=ABSENT)
        certified = np.pad(self.certified, (0, more))
        steps = np.pad(self.steps, (0, more), constant_values=-1)
        return replace(self, names=list(names), columns=columns, certified=certified, steps=steps)

    def then(self, row: LayerRow, gone: Collection[int] = ()) -> Latest:
        """Return the newest values after ``row``; layers that it did not measure keep theirs.

        The values of the layers at the indices ``gone`` are dropped.
        """
        new = ~absent(row.metric("sigma"))
        new[list(gone)] = True
        steps = np.where(new, row.step, self.steps if len(self.steps) else -1)
        columns, certified = row.values, row.certified
        assert certified is not None, "a row from a device says which layers were certified"
        if len(self.steps) and not new.all():
            columns = np.where(new, columns, self.columns)
            certified = np.where(new, certified, self.certified)
        return replace(
            self,
            step=row.step,
            columns=columns,
            scalars=row.scalars,
            certified=certified,
            steps=steps,
        )

    def row(self, metric: str) -> Floats:
        """Return one metric of every layer, float32 [L]."""
        row: Floats = self.columns[self.metrics.index(metric)]
        return row


def _origin(certified_age: float | None, bound_age: float | None) -> Origin | None:
    if bound_age is None:
        return None
    return "aged" if bound_age > 0 else "carried" if certified_age else "certified"
