"""The optimizer that steps, inside what a framework wraps around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

CONTAINED_AS = ("optimizers", "chained_optimizers")
_READER = "snc_reads_only"
WRAPPED_AS = ("optimizer", "base_optimizer", "_optimizer")


def outside_graphs(hook: Callable[..., None]) -> Callable[..., None]:
    """Return ``hook`` such that a compiled optimizer step calls it and does not trace into it."""
    excluded: Callable[..., Callable[..., None]] = getattr(torch, "_disable_dynamo", _same)
    return excluded(hook)


def mark_as_reader(hook: Callable[..., None]) -> Callable[..., None]:
    """Mark a hook of this package that reads and writes no weight; see `is_reader`."""
    setattr(hook, _READER, True)
    return hook


def is_reader(hook: object) -> bool:
    """Return whether a hook is one that `mark_as_reader` has marked."""
    return getattr(hook, _READER, False) is True


def _same(hook: Callable[..., None]) -> Callable[..., None]:
    return hook


def unwrapped_all(optimizer: Any) -> tuple[Any, ...]:
    """Return the optimizers inside ``optimizer``: one, a sequence, or a container with several."""
    if optimizer is None:
        return ()
    if isinstance(optimizer, list | tuple):
        return tuple(inner for each in optimizer for inner in unwrapped_all(each))
    several = next((_attributes(optimizer).get(name) for name in CONTAINED_AS), None)
    inner = unwrapped(optimizer)
    if isinstance(inner, torch.optim.Optimizer) or not isinstance(several, list | tuple):
        return (inner,)
    return unwrapped_all(several)


def unwrapped(optimizer: Any) -> Any:
    """Return the `torch.optim.Optimizer` with step hooks inside ``optimizer``.

    accelerate, Lightning and DeepSpeed hand out wrappers that forward ``step`` to an inner
    optimizer; some are torch optimizers by class but never call its constructor, so that they have
    no hooks. The first object in the chain that has hooks is returned. Where none has,
    ``optimizer`` itself is returned, and the caller's type check names it.
    """
    inner, seen = optimizer, set[int]()
    while inner is not None and id(inner) not in seen:
        if isinstance(inner, torch.optim.Optimizer) and has_hooks(inner) and not _is_sam(inner):
            return inner
        seen.add(id(inner))
        held = _attributes(inner)
        inner = next((held[name] for name in WRAPPED_AS if name in held), None)
    return optimizer


def _attributes(wrapper: object) -> dict[str, Any]:
    """Return the instance attributes of ``wrapper``; a property or ``__getattr__`` is not run."""
    return getattr(wrapper, "__dict__", {})


def has_hooks(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether torch calls hooks after its step: not without torch's own constructor."""
    return "_optimizer_step_post_hooks" in _attributes(optimizer)


def _is_sam(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether loops call its two half steps, and only the inner optimizer steps."""
    return all(callable(getattr(optimizer, name, None)) for name in ("first_step", "second_step"))
