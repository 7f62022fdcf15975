"""Scales and zero points that lie beside a quantised weight: no matrices of their own."""

from __future__ import annotations

import re
from collections.abc import Collection

# How the formats in use name them: weight_scale(_inv), scales, qzeros, absmax, quant_map, SCB, ...
_COMPANION = re.compile(
    r"^(?P<stem>.+?)[._]_?(?:nested_)?"
    r"(?:q?scales?(?:_inv|_2)?|q?zeros?(?:_points?)?|absmax|quant_map|SCB|meta)$"
)
_WEIGHT = ("", "_packed", "_blocks", "_quantized", "._data", ".qweight", ".W_q", ".weight")


def quantised_weight_of(name: str, quantised: Collection[str]) -> str | None:
    """Return the weight whose scales or zero points the tensor ``name`` holds, None if none.

    ``quantised`` has the names of the tensors that are integers or in less than 16 bits: a
    parameter called ``scale`` beside none of these is what its module says.
    """
    found = _COMPANION.match(name)
    if found is None:
        return None
    return next((x for end in _WEIGHT if (x := found["stem"] + end) in quantised), None)
