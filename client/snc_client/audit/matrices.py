"""Finds the matrices in a stored tensor, guessed from its name and shape, without a model.

The guesses are right for the usual architectures; each is named in the result as ``kind``, with a
note where the number is not the norm of the layer's map.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from snc_client.audit.formats.stored import Stored, shown
from snc_client.layers.companions import quantised_weight_of
from snc_client.layers.reasons import COMPANION

FLOATS = ("float64", "float32", "float16", "bfloat16")
MAX_KERNEL = 9  # a third dimension up to this is a kernel's; an expert has more inputs

_EMBEDDING = re.compile(r"(^|[._])(wte|wpe|tok_embd|\w*embed\w*|emb)([._]|$)", re.I)
_CONV, _EXPERT = re.compile(r"conv", re.I), re.compile(r"expert|moe", re.I)
_RECURRENT = re.compile(r"(^|\.)weight_[ih]h(_l\d+)?(_reverse)?$")
_LORA = re.compile(r"lora_(a|b|embedding_a|embedding_b)([._]|$)", re.I)
_FUSED = re.compile(r"(^|\.)(qkv|qkv_proj|c_attn|query_key_value|Wqkv)\.weight$")


@dataclass(frozen=True)
class Part:
    """One matrix of a stored tensor: slices first:last along dimension 0, seen as rows x columns.

    ``fan_out`` and ``fan_in`` are those of the map: swapped where the tensor is stored in x out.
    """

    name: str
    kind: str
    first: int
    last: int
    rows: int
    columns: int
    note: str | None = None
    turned: bool = False

    @property
    def fan_out(self) -> int:
        """Return the outputs of the map."""
        return self.columns if self.turned else self.rows

    @property
    def fan_in(self) -> int:
        """Return the inputs of the map."""
        return self.rows if self.turned else self.columns


def quantised(tensors: Iterable[Stored]) -> frozenset[str]:
    """Return the names of the tensors whose numbers mean nothing without scales."""
    return frozenset(t.name for t in tensors if t.dtype not in FLOATS)


def reason(stored: Stored, quantised: Collection[str] = ()) -> str | None:
    """Return why a tensor is not measured, None if it is; ``quantised`` are those beside it."""
    if stored.dtype.startswith(("float8_", "float6_", "float4_")):
        return f"of dtype {stored.dtype}: its scales lie in another tensor; dequantise it first"
    if stored.dtype not in FLOATS:
        return f"of dtype {stored.dtype}: complex, integer and quantised weights are not supported"
    if stored.unreadable:
        return stored.unreadable
    if weight := quantised_weight_of(stored.name, quantised):
        return COMPANION.format(shown(weight))
    if len(stored.shape) < 2:
        return "a vector: no singular values to hold"
    if 0 in stored.shape:
        return "empty"
    if len(stored.shape) > 2 and max(stored.shape) == _numel(stored.shape):
        return "a vector in the shape of a matrix"
    if len(stored.shape) > 3 and stored.shape[:2] == (1, 1):
        return "a table or mask of one channel: no matrix"
    return None


def parts(stored: Stored) -> tuple[Part, ...]:
    """Return the matrices of a tensor that has no `reason`, in the order of dimension 0."""
    name, shape = stored.name, stored.shape
    outputs = shape[0]
    whole = Part(name, "matrix", 0, outputs, outputs, _numel(shape[1:]))
    if len(shape) == 3 and outputs == 1:
        return (replace(whole, rows=shape[1], columns=shape[2]),)
    if len(shape) == 3 and _is_stack(name, shape):
        note = "one matrix per slice, as stored"
        return tuple(
            Part(f"{name}[{e}]", "expert", e, e + 1, shape[1], shape[2], note)
            for e in range(outputs)
        )
    if len(shape) > 2:
        return (replace(whole, kind="conv", note="kernel as out x rest, not the convolution"),)
    return _matrix(whole)


def _matrix(whole: Part) -> tuple[Part, ...]:
    name, key = whole.name, whole.name.rpartition(".")[2]
    if key == "in_proj_weight" and whole.rows == 3 * whole.columns:
        return tuple(
            Part(f"{name}[{part}]", "attention", i * size, (i + 1) * size, size, whole.columns)
            for size in (whole.rows // 3,)
            for i, part in enumerate("qkv")
        )
    if _RECURRENT.search(name):
        return (replace(whole, kind="recurrent", note="all gates as one matrix"),)
    if _LORA.search(name):
        return (replace(whole, kind="lora", note="one factor of the map B A"),)
    if _EMBEDDING.search(name):
        return (replace(whole, kind="embedding"),)
    if key != "weight":
        return (whole,)
    note = "fused q, k, v as one matrix" if _FUSED.search(name) else None
    return (replace(whole, kind="linear", note=note, turned=_in_by_out(whole)),)


def _is_stack(name: str, shape: Sequence[int]) -> bool:
    if _EXPERT.search(name):
        return True
    return not _CONV.search(name) and not (shape[2] <= MAX_KERNEL and shape[2] < shape[1])


def _in_by_out(whole: Part) -> bool:
    """Return whether this is a GPT-2 weight as Hugging Face stores it: inputs x outputs.

    Others store out x in under the same names, but c_attn and c_fc widen, an MLP's c_proj narrows.
    """
    owner = whole.name.rpartition(".")[0]
    if owner.endswith((".c_attn", ".c_fc")):
        return whole.columns > whole.rows
    return owner.endswith("mlp.c_proj") and whole.rows > whole.columns


def _numel(shape: Sequence[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
