"""Recognizes parameters that are linear maps, by the module that owns them and their name.

A parameter with two dimensions need not multiply anything: decay rates of a state-space block,
tables of position biases and stacks of biases are added, exponentiated or looked up. Scaling one
changes its meaning, so a policy for all layers is enforced on known linear maps only.
"""

from __future__ import annotations

import re
from typing import Final

from torch import Tensor, nn

NOT_KNOWN: Final = "not known to be a linear map: written only where a policy names it"
# Attributes in which modules store the number of their outputs and inputs.
_SIZES: Final = (
    ("out_features", "in_features"),
    ("output_size", "input_size"),
    ("out_channels", "in_channels"),
    ("out_dim", "in_dim"),
    ("num_experts", "hidden_size"),
    ("num_experts", "hidden_dim"),
    ("n_routed_experts", "hidden_size"),
)
# Classes whose ``weight`` is multiplied: Linear8bit, ColumnParallelLinear, TopKRouter, LMHead, ...
_MULTIPLIES: Final = re.compile(r"Linear|Dense|Proj|Router|Gate|Head|Conv1D|Perceptron|Classifier")
_NOT_A_MAP: Final = re.compile(r"Norm|Bias|Position|PosEmb|RelPos|Scale|Rotary", re.IGNORECASE)
_EXPERTS: Final = re.compile(r"Expert|MoE", re.IGNORECASE)
# Names of parameters that stack experts x out x in.
_EXPERT_KEYS: Final = re.compile(
    r"((gate_up|gate|up|down|input|output|in|out)_(proj|linear)|w(1|2|3)?|wi(_0|_1)?|wo"
    r"|weight(1|2)?|v1|fc1|fc2)(_weight)?"
)

# Convolutions that multiply with their weight only after they have standardised it.
_STANDARDISED: Final = re.compile(r"StdConv|WeightStandardi[sz]edConv")
# Tables of positions: looked up, then added to what the network computes or to its logits.
_ADDED: Final = re.compile(r"(^|_)(wpe|rel|relative|pos|position|positions|positional|bias)(_|$)")
_ADDED_CLASS: Final = re.compile(r"Position|RelPos|Bias")


def is_standardised(module: nn.Module) -> bool:
    """Return whether a convolution standardises its weight at each forward.

    To scale such a weight changes nothing of what it does.
    """
    return _STANDARDISED.search(type(module).__name__) is not None


def is_added_table(module: nn.Module, name: str) -> bool:
    """Return whether an Embedding called ``name`` is a table of positions or biases.

    Its rows are added, not what a token is mapped to: `is_linear_map` says no of the same tables
    where they are plain parameters.
    """
    owner = name.rpartition(".")[0].rpartition(".")[2].lower()
    return bool(_ADDED.search(owner) or _ADDED_CLASS.search(type(module).__name__))


def is_linear_map(module: nn.Module, key: str, weight: Tensor) -> bool:
    """Return whether the parameter ``key`` of a module that torch does not define is a linear map.

    True only on evidence: the name of the class, matching sizes, a stack in an experts' module, or
    a name such as ``in_proj_weight``. Cheap, and no library is imported.
    """
    name = type(module).__name__
    if "bias" in key:
        return False
    if weight.ndim == 3 and _EXPERTS.search(name):
        return _EXPERT_KEYS.fullmatch(key) is not None
    if weight.ndim != 2:
        return False
    if key.endswith("proj_weight") or (key == "weight" and _sizes_match(module, weight)):
        return True
    return key == "weight" and bool(_MULTIPLIES.search(name)) and not _NOT_A_MAP.search(name)


def _sizes_match(module: nn.Module, weight: Tensor) -> bool:
    """Return whether the module names its outputs and inputs, and the weight has these sizes."""
    for outputs, inputs in _SIZES:
        sizes = (getattr(module, outputs, None), getattr(module, inputs, None))
        if sizes in (tuple(weight.shape), tuple(weight.shape[::-1])):
            return True
    return False
