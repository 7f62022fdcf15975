"""Finds the matrices in a weight: one rule per kind of module, chosen by owner and shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, TypeAlias

from torch import Tensor, nn

from snc_client.layers.conv import is_convolution, reshaped, true_operator
from snc_client.layers.fused import is_in_by_out
from snc_client.layers.linear_maps import NOT_KNOWN, is_added_table, is_linear_map, is_standardised
from snc_client.layers.view import View, cut, flat, flattened

Conv: TypeAlias = Literal["reshape", "operator"]

# The order in which torch stacks the gates, and the names its documentation gives them.
_GATES = {"LSTM": "ifgo", "LSTMCell": "ifgo", "GRU": "rzn", "GRUCell": "rzn"}
_FUSED = ("qkv", "c_attn", "query_key_value")


def views(
    module: nn.Module, name: str, weight: Tensor, conv: Conv, grid: Sequence[int] | None
) -> tuple[View, ...]:
    """Return the matrices that the weight called ``name`` holds for ``module``, in order.

    The weight of an unknown module is a matrix if it has 2 dimensions, a stack of experts
    (experts x out x in) if it has 3, and out x rest if it has more.
    """
    key = name.rpartition(".")[2]
    if isinstance(module, nn.MultiheadAttention):
        # Without this layout q, k and v have a weight each; bias_k and bias_v are vectors.
        return cut(View("attention"), weight, "qkv" if key == "in_proj_weight" else "")
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        # The recurrent projection of an LSTM (weight_hr) has no gates.
        gates = "" if key.startswith("weight_hr") else _GATES.get(_family(module), "")
        return cut(View("recurrent"), weight, gates)
    if key != "weight":
        return _by_shape(module, key, weight)
    if is_convolution(module):
        if is_standardised(module):
            return (replace(reshaped(module), note=NOT_KNOWN, linear=False),)
        return (reshaped(module) if conv == "reshape" else true_operator(module, grid),)
    if isinstance(module, nn.Bilinear):
        note = "out x (in1*in2): an upper bound of what the bilinear map can do"
        return (View("bilinear", lay=flat, operator=flattened, note=note),)
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        added = is_added_table(module, name)
        return (View("embedding", note=NOT_KNOWN if added else None, linear=not added),)
    if isinstance(module, nn.Linear):
        return (View("linear", note=_fused(name)),)
    if is_hf_conv1d(module, weight):
        return (View("linear", lay=Tensor.t, note=_fused(name)),)
    return _by_shape(module, key, weight)


def _by_shape(module: nn.Module, key: str, weight: Tensor) -> tuple[View, ...]:
    linear = is_linear_map(module, key, weight)
    note = None if linear else NOT_KNOWN
    if weight.ndim == 2:
        return (View("matrix", note=note, linear=linear),)
    if weight.ndim == 3 and weight.shape[0] == 1:
        return (View("matrix", pick=0, note=note, linear=linear),)
    if weight.ndim == 3:
        view = View("expert", note=note, linear=linear)
        view = replace(view, lay=Tensor.t) if is_in_by_out(module) else view
        return tuple(replace(view, suffix=f"[{e}]", pick=e) for e in range(weight.shape[0]))
    note = f"{NOT_KNOWN}; seen as out x rest: no rule knows {type(module).__name__}"
    return (View("tensor", lay=flat, operator=flattened, note=note, linear=False),)


def _family(module: nn.Module) -> str:
    """Return the name of the torch class whose gates this module has, for subclasses too."""
    return next((base.__name__ for base in type(module).__mro__ if base.__name__ in _GATES), "")


def is_hf_conv1d(module: nn.Module, weight: Tensor) -> bool:
    """Return whether this is the Conv1D of Hugging Face: a linear layer stored in x out."""
    named = type(module).__name__ == "Conv1D" and weight.ndim == 2
    return named and getattr(module, "nf", None) == weight.shape[1]


def _fused(name: str) -> str | None:
    owner = name.rpartition(".")[0].rpartition(".")[2].lower()
    if any(word in owner for word in _FUSED):
        return "fused q, k, v measured as a whole; split= measures each"
    return None
