"""The optimizer that steps, inside what a framework wraps around it."""

from __future__ import annotations

from typing import Any

import torch

WRAPPED_AS = ("optimizer", "base_optimizer", "_optimizer")


def unwrapped(optimizer: Any) -> Any:
    """Return the `torch.optim.Optimizer` with step hooks inside ``optimizer``.

    accelerate, Lightning and DeepSpeed hand out wrappers that forward ``step`` to an inner
    optimizer; some are torch optimizers by class but never call its constructor, so that they have
    no hooks. The first object in the chain that has hooks is returned. Where none has,
    ``optimizer`` itself is returned, and the caller's type check names it.
    """
    inner, seen = optimizer, set[int]()
    while inner is not None and id(inner) not in seen:
        if isinstance(inner, torch.optim.Optimizer) and _has_hooks(inner):
            return inner
        seen.add(id(inner))
        held = _attributes(inner)
        inner = next((held[name] for name in WRAPPED_AS if name in held), None)
    return optimizer


def _attributes(wrapper: object) -> dict[str, Any]:
    """Return the instance attributes of ``wrapper``; a property or ``__getattr__`` is not run."""
    return getattr(wrapper, "__dict__", {})


def _has_hooks(optimizer: torch.optim.Optimizer) -> bool:
    return "_optimizer_step_post_hooks" in _attributes(optimizer)
