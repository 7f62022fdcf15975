"""Recognizes calls of step() before which no optimizer has stepped."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from torch import Tensor

log = logging.getLogger("snc")

LOOKS = 50


class UnmovedCalls:
    """Compares version counters of parameters at a call of step() with those of the call before.

    Only the first calls are looked at: a loop that calls too often does so from the start, and
    walking all parameters costs more than the rest of a call.
    A fused optimizer does not raise them. Therefore an equal count means nothing until it has been
    seen to rise, and a caller is warned, not overruled.
    """

    def __init__(self) -> None:
        self._versions: list[int] = []
        self._left = LOOKS
        self._rises = False

    def note(self, parameters: Iterable[Tensor]) -> None:
        """Remember the counters as they are after a measurement and its action."""
        if self._left:
            self._versions = [p._version for p in parameters]

    def look(self, parameters: Iterable[Tensor]) -> None:
        """Warn, once, if no weight has changed since `note`."""
        if not self._left:
            return
        self._left -= 1
        if self._unmoved(list(parameters)):
            self._left = 0
            log.warning(
                "snc: step() was called although no weight has changed since the call before, and "
                "counts as a step: call it after optimizer.step() only, or give optimizer="
            )

    def _unmoved(self, parameters: list[Tensor]) -> bool:
        """Return whether no counter has risen since `note`, while gradients wait for a step."""
        if len(parameters) != len(self._versions):
            return False
        if any(p._version != v for p, v in zip(parameters, self._versions, strict=True)):
            self._rises = True
            return False
        return self._rises and any(p.grad is not None for p in parameters)
