"""OptimizerHooks: calls the callback after each step of its optimizers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from snc_client.callback.model.optimizers import outside_graphs


class OptimizerHooks:
    """Post-step hooks on ``optimizers``; ``stepped`` is called with the place of the one."""

    def __init__(
        self, optimizers: Sequence[torch.optim.Optimizer], stepped: Callable[[int], None]
    ) -> None:
        self._stepped = stepped
        self._inside = False
        # Compiled optimizers must not trace into a hook: it reads counters and writes weights.
        self._hooks = [
            each.register_step_post_hook(outside_graphs(partial(self._call, place)))
            for place, each in enumerate(optimizers)
        ]

    def __len__(self) -> int:
        return len(self._hooks)

    def remove(self) -> None:
        """Remove the hooks, unless one of them is running: torch iterates over them then."""
        if not self._inside:
            for hook in self._hooks:
                hook.remove()

    def _call(self, place: int, *_: object) -> None:
        self._inside = True
        try:
            self._stepped(place)
        finally:
            self._inside = False
