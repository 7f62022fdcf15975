"""Weights that hold several matrices, known by the class of the module that uses them.

A library that computes several projections in one product stores them in one weight: q, k and v,
or a gate and the projection that it opens. The norm of the whole is that of its largest part, so
a smaller one grows unseen. Which classes do so, and in which order, is written here. A fused
weight of any other class stays whole until ``split`` cuts it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from torch import nn

from snc_client.layers.view import Parts

_Told: TypeAlias = Parts | Callable[[Any], Parts]

_GATE_UP: Final = ("gate", "up")
_UP_GATE: Final = ("up", "gate")


def _gpt2(attention: Any) -> Parts:
    return "kv" if attention.is_cross_attention else "qkv"


def _phi3(attention: Any) -> Parts:
    """Return the sizes: several heads of q share one of k and of v."""
    shared = attention.num_key_value_heads * attention.head_dim
    return {"q": shared * attention.num_key_value_groups, "k": shared, "v": shared}


def _glu(mlp: Any) -> Parts:
    return _UP_GATE if mlp.gate_last else _GATE_UP


# The gate is the part that goes through the activation, whatever its library calls it.
# Library and class -> the child whose weight is fused, or the parameter -> its parts in their
# order. timm has several classes of one name, which differ in the order: these have their module.
_KNOWN: Final[dict[str, dict[str, _Told]]] = {
    "transformers.GPT2Attention": {"c_attn": _gpt2},
    "transformers.ModernBertAttention": {"Wqkv": "qkv"},
    "transformers.Phi3Attention": {"qkv_proj": _phi3},
    "transformers.Glm4MLP": {"gate_up_proj": _GATE_UP},
    "transformers.GlmMLP": {"gate_up_proj": _GATE_UP},
    "transformers.JetMoeMoE": {"input_linear": _GATE_UP},
    "transformers.Llama4TextExperts": {"gate_up_proj": _GATE_UP},
    "transformers.MambaMixer": {"in_proj": _UP_GATE},
    "transformers.ModernBertMLP": {"Wi": _GATE_UP},
    "transformers.Phi3MLP": {"gate_up_proj": _GATE_UP},
    "diffusers.GEGLU": {"proj": _UP_GATE},
    "diffusers.SwiGLU": {"proj": _UP_GATE},
    "timm.layers.mlp.GluMlp": {"fc1": _glu},
    "timm.layers.attention.Attention": {"qkv": "qkv"},
    "timm.models.beit.Attention": {"qkv": "qkv"},
    "timm.models.cait.TalkingHeadAttn": {"qkv": "qkv"},
    "timm.models.davit.WindowAttention": {"qkv": "qkv"},
    "timm.models.edgenext.CrossCovarianceAttn": {"qkv": "qkv"},
    "timm.models.eva.EvaAttention": {"qkv": "qkv"},
    "timm.models.swin_transformer.WindowAttention": {"qkv": "qkv"},
    "timm.models.swin_transformer_v2.WindowAttention": {"qkv": "qkv"},
    "timm.models.vision_transformer_relpos.RelPosAttention": {"qkv": "qkv"},
    "timm.models.xcit.XCA": {"qkv": "qkv"},
}
# Stacks of experts stored experts x in x out. Others of transformers say so by an attribute.
_IN_BY_OUT: Final = "transformers.Llama4TextExperts"


@dataclass(frozen=True)
class Fused:
    """What a weight holds: parts along its outputs, one after the other or taking turns."""

    owner: str
    parts: Parts
    in_turns: bool = False

    @property
    def note(self) -> str:
        """Return what the coverage says of each part."""
        return f"a part of {', '.join(self.parts)}, which {self.owner} stores in one weight"


def fused(module: nn.Module, key: str, parent: nn.Module | None, child: str) -> Fused | None:
    """Return what the parameter ``key`` of ``module`` holds, None where that is not known.

    ``parent`` is the module that has ``module`` as its ``child``: a fused weight belongs to a
    plain Linear, and only the class around it knows what its outputs are.
    """
    owner, what = (parent, child) if key == "weight" else (module, key)
    if owner is None:
        return None
    told = next((_KNOWN[name].get(what) for name in class_names(owner) if name in _KNOWN), None)
    if told is None and what == "gate_up_proj" and getattr(owner, "has_gate", False) is True:
        told = _GATE_UP  # experts of transformers
    if told is None:
        return None
    in_turns = getattr(owner, "is_concatenated", True) is False
    return Fused(type(owner).__name__, told(owner) if callable(told) else told, in_turns)


def is_in_by_out(module: nn.Module) -> bool:
    """Return whether a stack of experts is stored experts x in x out."""
    return getattr(module, "is_transposed", False) is True or _IN_BY_OUT in class_names(module)


def class_names(module: nn.Module) -> list[str]:
    """Return the names of its class and of that class's bases: wrappers such as FSDP2 subclass."""
    found: list[str] = []
    for base in type(module).__mro__:
        library = base.__module__.partition(".")[0]
        found += [f"{library}.{base.__name__}", f"{base.__module__}.{base.__name__}"]
    return found
