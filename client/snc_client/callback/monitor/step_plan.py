"""StepPlan: the operations on each layer at one step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from snc_client.layer_row import Mask


@dataclass(frozen=True, eq=False, kw_only=True)
class StepPlan:
    """The operations on L layers at one step, bool [L] each; the host plans them before it."""

    measured: Mask
    """Sigma is estimated; the rest of the plan concerns these layers only."""
    certified: Mask
    """A certificate is computed."""
    capped: Mask
    """A layer with the action ``cap`` is capped; the others with that action are rescaled."""
    pressing: Mask
    """The carried bound may exceed the threshold at this step, by the rows on the host."""
    idle: Mask
    """Far below the threshold and not measured at every step: sigma may err by more."""
    written: Mask
    """The optimizer that has just stepped owns the layer, so it may be rescaled or capped."""
    all_gradients: bool
    """Whether the norm of all gradients together is measured."""

    def of(self, layers: Sequence[int]) -> StepPlan:
        """Return the plan of some layers, by their indices among all, in ascending order."""
        at = layers if len(layers) < len(self.measured) else slice(None)
        measured = self.measured[at]
        return StepPlan(
            measured=measured,
            certified=self.certified[at] & measured,
            capped=self.capped[at] & measured,
            pressing=self.pressing[at] & measured,
            idle=self.idle[at] & measured,
            written=self.written[at] & measured,
            all_gradients=self.all_gradients,
        )


def indices(mask: Mask) -> list[int]:
    """Return where a mask is True."""
    found: list[int] = mask.nonzero()[0].tolist()
    return found
