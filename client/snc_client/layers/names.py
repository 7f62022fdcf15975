"""Canonical layer names: those of the model itself, without the parts that wrappers add."""

from __future__ import annotations

from typing import Final

from torch import nn

# Parts that torch.compile, FSDP1 and activation checkpointing add to a path. No user chooses these.
_ALWAYS: Final = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
# The name of the wrapped model in DistributedDataParallel, DataParallel and many engines.
_WRAPPED: Final = "module"


def canonical(name: str) -> str:
    """Return ``name`` without any part that a wrapper may have added.

    For names of a saved state without its model: every part ``module`` is dropped, so two names of
    one state may become equal. With the model, `is_wrapper` is exact.
    """
    kept = [part for part in name.split(".") if part not in _ALWAYS and part != _WRAPPED]
    return ".".join(kept)


def is_wrapper(parent: nn.Module, child: str) -> bool:
    """Return whether ``parent`` only wraps its submodule ``child`` and is no part of the model.

    ``module`` counts where it is the only submodule and the parent has no parameters of its own.
    """
    if child in _ALWAYS:
        return True
    alone = len(parent._modules) == 1 and not parent._parameters
    return child == _WRAPPED and alone


def canonical_paths(model: nn.Module) -> dict[str, str]:
    """Return the canonical path of every submodule, by the path that ``named_modules`` gives it."""
    modules = dict(model.named_modules(remove_duplicate=False))
    paths: dict[str, str] = {}
    for path in modules:
        parent, _, child = path.rpartition(".")
        if not path:
            paths[path] = ""
        elif is_wrapper(modules[parent], child):
            paths[path] = paths[parent]
        else:
            paths[path] = f"{paths[parent]}.{child}".lstrip(".")
    return paths
