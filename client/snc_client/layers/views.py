"""Which matrices a weight holds: one rule per kind of module, chosen by owner and shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from torch import Tensor, nn

from snc_client.operators import BlockDiagonal, Matrix, Operator

Parts: TypeAlias = Sequence[str] | Mapping[str, int]

CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
CONV_TRANSPOSE = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# The order in which torch stacks the gates, and the names its documentation gives them.
_GATES = {"LSTM": "ifgo", "LSTMCell": "ifgo", "GRU": "rzn", "GRUCell": "rzn"}
_FUSED = ("qkv", "c_attn", "query_key_value")


def _same(part: Tensor) -> Tensor:
    return part


@dataclass(frozen=True)
class View:
    """One matrix of a weight: ``pick`` selects a slice, ``lay`` views it, ``operator`` maps it.

    ``lay`` gives what enforcement multiplies: always a view, 2-d where the memory allows it.
    """

    kind: str
    suffix: str = ""
    pick: Any = ...
    lay: Callable[[Tensor], Tensor] = _same
    operator: Callable[[Tensor], Operator] = Matrix
    note: str | None = None
    cappable: bool = True

    def part(self, weight: Tensor) -> Tensor:
        """Return this view's slice of the weight, in the parameter's own layout."""
        return weight[self.pick]


def views(module: nn.Module, name: str, weight: Tensor) -> tuple[View, ...]:
    """Return the matrices that the weight called ``name`` holds for ``module``, in order.

    The weight of an unknown module is a matrix if it has 2 dimensions, a stack of experts
    (experts x out x in) if it has 3, and out x rest if it has more.
    """
    key = name.rpartition(".")[2]
    if isinstance(module, nn.MultiheadAttention) and key == "in_proj_weight":
        return cut(View("attention"), weight, "qkv")
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        # The recurrent projection of an LSTM (weight_hr) has no gates.
        gates = "" if key.startswith("weight_hr") else _GATES.get(_family(module), "")
        return cut(View("recurrent"), weight, gates)
    if isinstance(module, CONV_TRANSPOSE):
        operator = _conv_transpose(module.groups)
        return (View("conv_transpose", operator=operator, cappable=False),)
    if isinstance(module, CONV):
        return (_conv(module.groups),)
    if isinstance(module, nn.Bilinear):
        note = "out x (in1*in2): an upper bound of what the bilinear map can do"
        return (View("bilinear", lay=flat, operator=_flattened, note=note),)
    if isinstance(module, nn.Linear) or _is_hf_conv1d(module, weight):
        lay = _same if isinstance(module, nn.Linear) else Tensor.t
        return (View("linear", lay=lay, note=_fused(name)),)
    return _by_shape(module, weight)


def cut(view: View, weight: Tensor, parts: Parts) -> tuple[View, ...]:
    """Cut a 2-d view along its outputs into named parts, of equal size or of the sizes given.

    Raises ValueError where the sizes do not add up to the number of outputs.
    """
    if not parts:
        return (view,)
    axis = 1 if view.lay is Tensor.t else 0
    outputs = weight.shape[axis]
    even = dict.fromkeys(parts, outputs // len(parts))
    sizes = dict(parts) if isinstance(parts, Mapping) else even
    if sum(sizes.values()) != outputs or min(sizes.values()) < 1 or len(sizes) != len(parts):
        raise ValueError(f"parts must add up to {outputs} outputs, got {sizes}")
    pieces, start = [], 0
    for part, size in sizes.items():
        span = slice(start, start + size)
        pick = (slice(None), span) if axis else span
        pieces.append(replace(view, suffix=f"[{part}]", pick=pick, note=None))
        start += size
    return tuple(pieces)


def flat(weight: Tensor) -> Tensor:
    """Return out x rest as a view where memory allows it (channels_last too), else the weight.

    The order of the columns follows memory; singular values do not depend on it.
    """
    order = sorted(range(1, weight.ndim), key=weight.stride, reverse=True)
    try:
        return weight.permute(0, *order).view(weight.shape[0], -1)
    except RuntimeError:
        return weight


def _flattened(weight: Tensor) -> Matrix:
    return Matrix(weight.flatten(1))


def _conv(groups: int) -> View:
    """View a convolution's kernel as out x (in*kernel): not the norm of the convolution itself."""
    if groups == 1:
        return View("conv", lay=flat, operator=_flattened)
    return View(
        "conv",
        operator=lambda weight: BlockDiagonal(_groups(flat(weight).flatten(1), groups)),
        cappable=False,
    )


def _conv_transpose(groups: int) -> Callable[[Tensor], Operator]:
    """Return the map of (in, out/groups, *kernel): in is cut into groups, each one transposed.

    Costs a copy: the sides cannot be exchanged in place.
    """

    def operator(weight: Tensor) -> Operator:
        blocks = _groups(weight, groups).transpose(1, 2).flatten(2)
        return Matrix(blocks[0]) if groups == 1 else BlockDiagonal(blocks)

    return operator


def _groups(weight: Tensor, groups: int) -> Tensor:
    return weight.view(groups, -1, *weight.shape[1:])


def _by_shape(module: nn.Module, weight: Tensor) -> tuple[View, ...]:
    if weight.ndim == 2:
        kinds = {nn.Embedding: "embedding", nn.EmbeddingBag: "embedding"}
        known = [name for kind, name in kinds.items() if isinstance(module, kind)]
        attention = isinstance(module, nn.MultiheadAttention)
        return (View(known[0] if known else "attention" if attention else "matrix"),)
    if weight.ndim == 3 and weight.shape[0] == 1:
        return (View("matrix", pick=0),)
    if weight.ndim == 3:
        return tuple(View("expert", f"[{e}]", pick=e) for e in range(weight.shape[0]))
    note = f"viewed as out x rest: no rule knows {type(module).__name__}"
    return (View("tensor", lay=flat, operator=_flattened, note=note),)


def _family(module: nn.Module) -> str:
    """Return the torch class whose gates this module has: it may be a subclass."""
    return next((base.__name__ for base in type(module).__mro__ if base.__name__ in _GATES), "")


def _is_hf_conv1d(module: nn.Module, weight: Tensor) -> bool:
    """Return whether this is the Conv1D of Hugging Face: a linear layer stored in x out."""
    named = type(module).__name__ == "Conv1D" and weight.ndim == 2
    return named and getattr(module, "nf", None) == weight.shape[1]


def _fused(name: str) -> str | None:
    owner = name.rpartition(".")[0].rpartition(".")[2].lower()
    if any(word in owner for word in _FUSED):
        return "fused q, k, v measured as a whole; split= measures each"
    return None
