"""WriteTracker: detects writes to a parameter other than the optimizer's step."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import optimizer as shared

from snc_client.callback.model.optimizers import is_reader
from snc_client.constraint import FULL
from snc_client.layers import Layer

MOST_WRITES = 2  # by one step of SGD, Adam or AdamW to a parameter: decay, then the step itself


class _Noted(NamedTuple):
    parameter: weakref.ref[Tensor]
    place: int
    version: int

    def untouched(self) -> bool:
        parameter = self.parameter()
        return parameter is not None and (parameter.data_ptr(), parameter._version) == self[1:]


class WriteTracker:
    """Watches parameters from the end of one measurement to the next, by torch's version counters.

    Counters are read at `note`, right before the optimizer's step (its pre-step hook) and at
    `moved`. Loading a checkpoint, clipping a weight and a second callback's action are detected.
    **Writes through** ``.data`` **are not**: the result holds for loops without them. Other step
    hooks of the optimizer might write within the step: with any of them `moved` returns False.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._noted: dict[int, _Noted] = {}
        self._clean: dict[int, _Noted] = {}
        self._hook = optimizer.register_step_pre_hook(self._before)

    def note(self, parameters: Iterable[Tensor | None]) -> None:
        """Record the parameters after a measurement and its actions."""
        found = {id(p): p for p in parameters if p is not None and not p.is_inference()}
        self._noted = {
            key: _Noted(weakref.ref(p), p.data_ptr(), p._version) for key, p in found.items()
        }

    def moved(self, parameter: Tensor | None) -> bool:
        """Return whether just one step of the optimizer has written ``parameter`` since `note`.

        False also where the step's rounding would make a carried bound useless, as in bfloat16.
        """
        noted = self._clean.get(id(parameter))
        if parameter is None or noted is None or noted.parameter() is not parameter:
            return False
        if parameter.dtype not in FULL or not self._alone() or not self._known():
            return False
        writes = parameter._version - noted.version  # fused steps do not increment it
        return parameter.data_ptr() == noted.place and writes <= MOST_WRITES

    def norms(self, layers: Sequence[Layer], norms: Mapping[str, Tensor]) -> dict[int, Tensor]:
        """Return the norms of the optimizer's step for ``layers`` that nothing else has written.

        ``norms`` has them by name; the result is by place among the layers.
        """
        known = {k: norms[x.name] for k, x in enumerate(layers) if x.name in norms}
        return {k: norm for k, norm in known.items() if self.moved(layers[k].parameter())}

    def close(self) -> None:
        """Remove the hook from the optimizer."""
        self._hook.remove()

    def _before(self, *_: Any) -> None:
        self._clean = {key: noted for key, noted in self._noted.items() if noted.untouched()}
        self._noted = {}

    def _known(self) -> bool:
        """Return whether the computed norm of a step is exact up to a few roundings.

        Nesterov's two terms may cancel, and so may a decay that removes most of a weight at once.
        """
        for group in self._optimizer.param_groups:
            decay, lr = group["weight_decay"], group["lr"]
            if group.get("nesterov") or (decay and (isinstance(lr, Tensor) or lr * decay > 0.5)):
                return False
        return True

    def _alone(self) -> bool:
        """Return whether no hook but the callback's two may write within a step."""
        hooks = (
            getattr(self._optimizer, "_optimizer_step_pre_hooks", None),
            getattr(self._optimizer, "_optimizer_step_post_hooks", None),
        )
        everywhere = (
            getattr(shared, "_global_optimizer_pre_hooks", None),
            getattr(shared, "_global_optimizer_post_hooks", None),
        )
        own = all(x is not None and len(x) == 1 for x in hooks)
        return own and all(x is not None and all(map(is_reader, x.values())) for x in everywhere)
