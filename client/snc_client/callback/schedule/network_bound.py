"""NetworkBound: the certified Lipschitz constant of the models, every so many steps."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import nn

from snc_client.callback.interruption import is_from_signal_handler
from snc_client.callback.model.distributed import ranks
from snc_client.lipschitz import LipschitzBound, lipschitz_bound
from snc_client.one_forward import Example

log = logging.getLogger("snc")

SHARE = 0.01  # of the training's time, at most, from the second bound on
LEAST_STEPS = 100  # between two bounds


class NetworkBound:
    """Computes the scalar ``lipschitz`` of each model, of the function in evaluation mode.

    At the first step, and again when a hundredth of the time since then pays for it, at least 100
    steps later. The training waits for it. ``examples`` maps the name of a scalar to a model and an
    input of its shape. Only rank 0 computes; where the network has no bound, that is logged once.
    """

    def __init__(self, examples: Mapping[str, tuple[nn.Module, Example]]) -> None:
        self._examples = dict(examples)
        self._said: set[str] = set()
        self._next_step, self._next_time = 0, 0.0

    def at(self, step: int) -> dict[str, float]:
        """Return the scalars of ``step``; none where it is not due."""
        now = time.perf_counter()
        due = step >= self._next_step and now >= self._next_time
        if not self._examples or not due or ranks()[0]:
            return {}
        found = {name: self._bound(name, *x) for name, x in self._examples.items()}
        ended = time.perf_counter()
        self._next_step, self._next_time = step + LEAST_STEPS, ended + (ended - now) / SHARE
        return {name: bound for name, bound in found.items() if bound is not None}

    def _bound(self, name: str, model: nn.Module, example: Example) -> float | None:
        try:
            with _evaluating(model):
                found = lipschitz_bound(model, example)
        except Exception as error:  # an outer edge: a signal that fails must not stop the training
            if is_from_signal_handler(error):
                raise
            self._say(name, repr(error))
            return None
        if not found.certified:
            self._say(name, _why(found))
            return None
        return found.bound

    def _say(self, name: str, why: str) -> None:
        if name not in self._said:
            self._said.add(name)
            log.warning("snc: %s is not reported, the network has no bound: %s", name, why)


def _why(found: LipschitzBound) -> str:
    told = [f"{x.module or 'it'}: {x.operation}, {x.reason}" for x in found.refused[:3]]
    more = f"; and {len(found.refused) - 3} more" if len(found.refused) > 3 else ""
    return ("; ".join(told) or "a weight is not finite") + more


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and each of its modules back into its own."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training
