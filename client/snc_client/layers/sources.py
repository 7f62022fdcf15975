"""Sources of a weight: a stored parameter, or a computation from others at each forward pass.

The weight that the forward pass uses is measured, and only a tensor that scales it is written: the
next forward pass would silently undo an in-place change of a computed weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from snc_client.operators.sharded import FlatPlace, is_whole, local_part


@dataclass(frozen=True)
class Source:
    """The source of the weight ``key`` of a module.

    ``read`` returns the weight that the forward pass uses; ``written`` the tensor whose factor is
    also that of the weight (None: there is none). Both take the module, and change nothing in it.
    """

    key: str
    parameters: tuple[nn.Parameter, ...]
    read: Callable[[nn.Module], Tensor]
    written: Callable[[nn.Module], Tensor] | None
    note: str | None = None
    direct: bool = False
    """Whether ``written`` is the weight itself."""
    flat: FlatPlace | None = None
    """Where it lies, in the flat memory of FSDP1."""


def sources(module: nn.Module) -> Iterator[Source]:
    """Yield every weight of this module (not of its children), each parameter in one of them."""
    computed = [*_parametrized(module), *_hooked(module), *_pruned(module)]
    yield from computed
    taken = {id(parameter) for source in computed for parameter in source.parameters}
    for key, parameter in module._parameters.items():
        if parameter is not None and id(parameter) not in taken:
            yield Source(key, (parameter,), _stored(key), _stored(key), direct=True)


def _stored(key: str) -> Callable[[nn.Module], Tensor]:
    # getattr would also find it after it has become a computed weight.
    def read(module: nn.Module) -> Tensor:
        parameter = cast(Tensor, module._parameters[key])
        return local_part(parameter) if is_whole(parameter) else parameter.detach()

    return read


def _parametrized(module: nn.Module) -> Iterator[Source]:
    if not parametrize.is_parametrized(module):
        return
    for key, steps in cast(nn.ModuleDict, module.parametrizations).items():
        chain = cast(parametrize.ParametrizationList, steps)
        what = " and ".join(type(step).__name__.lstrip("_") for step in chain)
        scale = _scale(key) if len(chain) == 1 and isinstance(chain[0], _WeightNorm) else None
        yield Source(
            key,
            tuple(chain.parameters()),
            _evaluated(key),
            scale,
            "weight_norm: enforced through its scale (original0)"
            if scale
            else f"computed by the parametrization {what}: measured, never written",
        )


def _scale(key: str) -> Callable[[nn.Module], Tensor]:
    return lambda module: cast(Tensor, _chain(module, key).original0).detach()


def _chain(module: nn.Module, key: str) -> nn.Module:
    return cast(nn.ModuleDict, module.parametrizations)[key]


def _evaluated(key: str) -> Callable[[nn.Module], Tensor]:
    return lambda module: _in_eval(_chain(module, key))


@torch.no_grad()
def _in_eval(chain: nn.Module) -> Tensor:
    """Compute a parametrized weight in eval mode: in training mode spectral_norm changes u, v."""
    training = [part for part in chain.modules() if part.training]
    try:
        for part in training:
            part.training = False
        return cast(Tensor, chain()).detach()
    finally:
        for part in training:
            part.training = True


def _hooked(module: nn.Module) -> Iterator[Source]:
    """Yield weights of the older hooks: ``nn.utils.weight_norm`` and ``nn.utils.spectral_norm``.

    Their ``module.weight`` is that of the last forward pass, so it is computed here from the parts.
    """
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            name = hook.name
            yield Source(
                name,
                (module._parameters[f"{name}_g"], module._parameters[f"{name}_v"]),  # type: ignore[arg-type]
                _of_weight_norm(name),
                _stored(f"{name}_g"),
                f"weight_norm: enforced through its scale ({name}_g)",
            )
        elif isinstance(hook, SpectralNorm):
            name = hook.name
            yield Source(
                name,
                (module._parameters[f"{name}_orig"],),  # type: ignore[arg-type]
                _of_spectral_norm(name),
                None,
                "computed by spectral_norm: measured, never written",
            )


def _hook(module: nn.Module, kind: type, name: str) -> object:
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, kind) and getattr(hook, "name", None) == name:
            return hook
    raise AttributeError(f"{kind.__name__} of {name}")


def _of_weight_norm(name: str) -> Callable[[nn.Module], Tensor]:
    @torch.no_grad()
    def read(module: nn.Module) -> Tensor:
        hook = cast(WeightNorm, _hook(module, WeightNorm, name))
        weight: Tensor = hook.compute_weight(module)
        return weight.detach()

    return read


def _of_spectral_norm(name: str) -> Callable[[nn.Module], Tensor]:
    @torch.no_grad()
    def read(module: nn.Module) -> Tensor:
        hook = cast(SpectralNorm, _hook(module, SpectralNorm, name))
        weight = hook.compute_weight(module, do_power_iteration=False)
        return weight.detach()

    return read


def _pruned(module: nn.Module) -> Iterator[Source]:
    """Yield weights of ``nn.utils.prune``: the original times a mask of zeros and ones."""
    for key, parameter in module._parameters.items():
        name = key.removesuffix("_orig")
        if parameter is not None and name != key and f"{name}_mask" in module._buffers:
            yield Source(
                name, (parameter,), _masked(name), _stored(key), f"pruned: enforced through {key}"
            )


def _masked(name: str) -> Callable[[nn.Module], Tensor]:
    def read(module: nn.Module) -> Tensor:
        original = cast(Tensor, getattr(module, f"{name}_orig")).detach()
        return original * cast(Tensor, getattr(module, f"{name}_mask"))

    return read
