"""OptimizerSteps: tells a call of step() after an optimizer's step from one without it."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

from snc_client.callback.model.learning_rate import learning_rate
from snc_client.callback.model.live_parameters import Slots
from snc_client.callback.model.optimizers import has_hooks, mark_as_reader, outside_graphs

log = logging.getLogger("snc")

PATIENCE = 64  # calls: a minibatch in more parts is rare

_version: Callable[[Tensor], int] = attrgetter("_version")


class OptimizerSteps:
    """Whether an optimizer has stepped a weight of ``model`` between two calls of step().

    Two things show a step: torch calls a hook after the step of every optimizer, and in-place
    writes raise the version counter of a parameter. A loop that writes its weights itself, through
    ``.data``, shows neither. Their absence therefore means "no step" only if an
    optimizer of torch is known to hold weights of the model: one that was seen to step, or one that
    is found when a first call sees no step: one pass over the objects of the process, 0.1 s for a
    million. If that one is never seen to step in `PATIENCE` calls, every call counts from then on.

    ``skipped`` counts steps that a loss scaler left out: calls without a step after which the
    gradients were discarded. Gradients that are kept are those of a minibatch in parts.

    With ``optimizers`` the callback has hooks of its own, which call `note_step`: nothing else
    counts.
    """

    def __init__(self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer] = ()) -> None:
        self.skipped = 0
        self._optimizers = tuple(optimizers)
        self._known = bool(optimizers)
        self._stepped = self._searched = self._seen = False
        self._unmoved = 0
        self._waiting: tuple[Tensor, Tensor] | None = None
        self._hook: RemovableHandle | None = None
        self.relist(model)
        if len(self._optimizers) > 1:
            kind = type(self._optimizers[0]).__name__
            log.info("snc: the first of %d optimizers, %s, counts steps", len(optimizers), kind)
        if not optimizers:
            hook = mark_as_reader(outside_graphs(_noting(self)))
            self._hook = register_optimizer_step_post_hook(hook)
            weakref.finalize(self, self._hook.remove)

    def relist(self, model: nn.Module) -> None:
        """Look at the parameters that ``model`` has now."""
        self._slots = Slots(model)
        self._ids = {id(p) for p in self._slots.parameters()}
        self.note()

    def note(self) -> None:
        """Remember the parameters as they are after a measurement and its action."""
        self._parameters, self._versions = self._counters()

    def note_step(self) -> None:
        """Remember that an optimizer with weights of the model has stepped."""
        self._stepped = self._known = self._seen = True

    def moved(self) -> bool:
        """Return whether a step was made since `note`. To be called once in each step()."""
        stepped = self._stepped or not (self._optimizers or self._still())
        self._stepped = False
        self._judge(stepped)
        return stepped

    def learning_rate(self) -> dict[str, Any]:
        """Return {"lr": that of the first optimizer given}, empty where there is none."""
        rate = learning_rate(self._optimizers[0]) if self._optimizers else None
        return {} if rate is None else {"lr": rate}

    def groups(self) -> list[int]:
        """Return the size of each parameter group of the optimizers given."""
        return [len(group["params"]) for each in self._optimizers for group in each.param_groups]

    def written(self, parameter: Tensor) -> bool:
        """Return whether the parameter was written since `note`, as far as counters show."""
        noted = zip(self._parameters, self._versions, strict=False)
        return any(p is parameter and p._version != version for p, version in noted)

    def close(self) -> None:
        """Remove the hook."""
        if self._hook is not None:
            self._hook.remove()

    def _counters(self) -> tuple[Sequence[nn.Parameter], list[int]]:
        """Return the parameters that have a version counter, and the counters."""
        parameters = self._slots.parameters()
        try:
            return parameters, [*map(_version, parameters)]
        except RuntimeError:  # inference tensors have none
            counted = [p for p in parameters if not p.is_inference()]
            return counted, [*map(_version, counted)]

    def _still(self) -> bool:
        if self._counters()[1] != self._versions:
            return False
        if not self._known and not self._searched:
            self._searched = True
            self._known = self._exists()
        self._unmoved += 1
        if self._known and not self._seen and self._unmoved > PATIENCE:
            self._known = False
            log.warning(
                "snc: no optimizer step was seen in %d calls of step(): from now on every call "
                "counts as one",
                PATIENCE,
            )
        return self._known

    def _judge(self, stepped: bool) -> None:
        """Count the call before as a skipped step if its gradients are gone, or this one."""
        if self._waiting is not None:
            parameter, gradient = self._waiting
            self.skipped += parameter.grad is not gradient and parameter.grad is not None
            self._waiting = None
        if stepped:
            return
        filled = [p for p in self._slots.parameters() if p.grad is not None]
        if filled:
            smallest = min(filled, key=torch.numel)
            assert smallest.grad is not None, "just filtered"
            self._waiting = smallest, smallest.grad
        else:
            self.skipped += 1

    def _exists(self) -> bool:
        """Return whether the process holds an optimizer with a weight of the model."""
        # By type: isinstance() would run the code of proxies that pretend to have a class.
        return any(
            issubclass(type(x), torch.optim.Optimizer) and has_hooks(x) and self._holds(x)
            for x in gc.get_objects()
        )

    def _holds(self, optimizer: Any) -> bool:
        groups = getattr(optimizer, "param_groups", ())
        return any(id(p) in self._ids for group in groups for p in group.get("params", ()))


def _noting(steps: OptimizerSteps) -> Callable[..., None]:
    """Return a hook for every optimizer of the process. It does not keep ``steps`` alive."""
    found = weakref.ref(steps)

    def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        known = found()
        # What is no usual optimizer must not fail here, in the training's own step.
        if known is not None and known._holds(optimizer):
            known.note_step()

    return note
