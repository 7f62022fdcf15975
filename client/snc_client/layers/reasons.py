"""Reasons why a tensor is not measured, one sentence each: none is skipped silently."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from snc_client.layers.coverage import Skipped
from snc_client.operators.sharded import is_dtensor, is_whole

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
GAINS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)
SHARDED = (
    "a {}: sharded, no rank holds the matrix, and sigma of a shard is not its own; audit a "
    "gathered checkpoint"
)
COMPANION = "scales of the quantised weight {}: no matrix of their own; dequantise that first"
_DENSE = (nn.Linear, nn.Embedding, nn.EmbeddingBag, nn.Bilinear, nn.modules.conv._ConvNd)


def reason(
    module: nn.Module, weight: Tensor, parameters: Sequence[nn.Parameter] = ()
) -> str | None:
    """Return why this weight of ``module`` cannot be measured, None if it can.

    ``parameters`` are those that it is computed from: marks of other libraries show sharded ones.
    """
    if any(map(is_sharded, parameters)):
        return SHARDED.format(type(parameters[0]).__name__)
    if isinstance(module, GAINS):
        return "gain or bias of a normalisation: diagonal, no matrix; maps= measures a gain"
    return no_numbers(weight) or no_matrix(module, weight)


def no_matrix(module: nn.Module, weight: Tensor) -> str | None:
    """Return why a weight of this shape is no matrix, None if it may be one."""
    if weight.ndim < 2:
        return "a vector: no singular values to hold"
    if weight.numel() == 0:
        return "empty"
    if not isinstance(module, _DENSE) and weight.numel() == max(weight.shape):
        return "a vector in the shape of a matrix"
    return None


def no_numbers(weight: Tensor) -> str | None:
    """Return why the entries of a tensor cannot be multiplied as they are, None if they can."""
    if is_lazy(weight):
        return "not initialised yet: run a forward, then look again"
    plain = weight.detach()
    if is_sharded(weight):
        return SHARDED.format(type(plain).__name__)
    if type(plain) is not Tensor:
        return f"a {type(plain).__name__}: quantised and other special tensors are not supported"
    if plain.is_meta:
        return "on the meta device: it holds no numbers"
    if plain.layout != torch.strided:
        return f"of layout {plain.layout}: only dense weights are supported"
    if plain.dtype not in _FLOATS:
        return f"of dtype {plain.dtype}: complex, integer and quantised weights are not supported"
    return None


def is_sharded(weight: Tensor) -> bool:
    """Return whether other ranks hold a part of it: DTensor, FSDP's flat memory, ZeRO's partition.

    Detected by names and marks, so that none of these libraries is imported. FSDP1 replaces weights
    by vectors and empty tensors, whose shapes show nothing.
    """
    flat = getattr(weight, "_fsdp_flattened", False) or type(weight).__name__ == "FlatParameter"
    dtensor = is_dtensor(weight) and not is_whole(weight)
    # Megatron's mark on plain tensors that hold some rows or columns of a weight.
    marked = getattr(weight, "tensor_model_parallel", False) is True
    return flat or dtensor or marked or hasattr(weight, "ds_id")


def packed(model: nn.Module) -> Iterator[Skipped]:
    """Yield quantised weights, which torch and other libraries do not keep as parameters."""
    for path, module in model.named_modules():
        for key in ("_packed_params", "_all_weight_values", "qweight"):
            holder = getattr(module, key, None)
            outer = not path.endswith(("_packed_params", "_all_weight_values"))
            if holder is not None and not isinstance(holder, nn.Parameter) and outer:
                shape = tuple(holder.shape) if isinstance(holder, Tensor) else ()
                yield Skipped(f"{path}.{key}".lstrip("."), shape, "quantised: not supported")


def nothing(model: nn.Module, skipped: list[Skipped]) -> str:
    """Return the sentence for a model without any matrix."""
    why = "; ".join(f"{x.name}: {x.reason}" for x in skipped[:3])
    more = f"; and {len(skipped) - 3} more" if len(skipped) > 3 else ""
    return (
        "model must hold at least one weight that can be seen as a matrix: a dense floating-point "
        f"parameter with two or more dimensions, got {type(model).__name__} with "
        + (f"{len(skipped)} tensors ({why}{more})" if skipped else "no parameter at all")
    )
