"""Several models of one run, such as a generator and a critic, seen as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn


class Models(nn.Module):
    """Modules under their prefixes. None of them learns of it."""

    def __init__(self, models: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self._modules.update(models)


def as_one(model: nn.Module | Mapping[str, nn.Module]) -> nn.Module:
    """Return ``model``, or one module that holds {prefix: module}.

    Raises ValueError for a mapping that is empty, or holds what is no prefix and module.
    """
    if isinstance(model, nn.Module) or not isinstance(model, Mapping):
        return model
    if not model:
        raise ValueError("model must hold at least one {prefix: module}, got an empty mapping")
    for prefix, module in model.items():
        if not isinstance(prefix, str) or not prefix or not isinstance(module, nn.Module):
            raise ValueError(
                f"model must map prefixes to modules, got {prefix!r}: {type(module).__name__}"
            )
    return Models(model)


def parts(model: nn.Module) -> Sequence[nn.Module]:
    """Return the modules that were given to `as_one`."""
    return [*model.children()] if isinstance(model, Models) else [model]
