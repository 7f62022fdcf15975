"""Attentions whose projections and heads are known by the class of the module.

Listed are classes whose logits are (Wq x + b)'(Wk y + c) / sqrt(size): nothing rotates q and k
(rotary embeddings) or normalises them in between.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from torch import nn

from snc_client.layers.fused import class_names


@dataclass(frozen=True)
class Projections:
    """The parameters of q and k below the module, and the attribute with the number of heads."""

    q: str
    k: str
    heads: str = "num_heads"

    @property
    def fused(self) -> bool:
        """Return whether one weight holds q, k and v, in this order."""
        return self.q == self.k


_PROJ: Final = Projections("q_proj.weight", "k_proj.weight")
_BERT: Final = Projections("query.weight", "key.weight", "num_attention_heads")
_QKV: Final = Projections("qkv.weight", "qkv.weight")

_KNOWN: Final[dict[str, Projections]] = {
    "torch.MultiheadAttention": Projections("in_proj_weight", "in_proj_weight"),
    "transformers.GPT2Attention": Projections("c_attn.weight", "c_attn.weight"),
    "transformers.BertSelfAttention": _BERT,
    "transformers.RobertaSelfAttention": _BERT,
    "transformers.XLMRobertaSelfAttention": _BERT,
    "transformers.ElectraSelfAttention": _BERT,
    "transformers.CamembertSelfAttention": _BERT,
    "transformers.ViTSelfAttention": _BERT,
    "transformers.DeiTSelfAttention": _BERT,
    "transformers.BartAttention": _PROJ,
    "transformers.MBartAttention": _PROJ,
    "transformers.OPTAttention": _PROJ,
    "transformers.CLIPAttention": _PROJ,
    "transformers.SiglipAttention": _PROJ,
    "transformers.WhisperAttention": _PROJ,
    "diffusers.Attention": Projections("to_q.weight", "to_k.weight", "heads"),
    "timm.layers.attention.Attention": _QKV,
    "timm.models.vision_transformer.Attention": _QKV,
}
# Children that change q or k after their projection.
_BETWEEN: Final = (
    "q_norm", "k_norm", "norm_q", "norm_k", "q_layernorm", "k_layernorm", "rotary_emb", "rope",
)  # fmt: skip


def attentions(model: nn.Module) -> Iterator[tuple[str, nn.Module, Projections, int]]:
    """Yield path, module, projections and heads of each attention of a known class."""
    for path, module in model.named_modules():
        known = next((_KNOWN[x] for x in class_names(module) if x in _KNOWN), None)
        if known is None or any(map(_changes, _children(module))):
            continue
        if not _same_width(module):  # q, k and v of other widths are stored apart
            known = Projections("q_proj_weight", "k_proj_weight")
        heads: Any = getattr(module, known.heads, None)
        if isinstance(heads, int) and heads > 0 and not _relative(module):
            yield path, module, known, heads


def scaled_as_usual(module: nn.Module, size: int) -> bool:
    """Return whether the factor of the logits is 1/sqrt(size), where it is an attribute."""
    given = [getattr(module, name, None) for name in ("scale", "scaling")]
    factors = [x for x in given if isinstance(x, float)]
    usual = all(math.isclose(x, size**-0.5, rel_tol=1e-6) for x in factors)
    return usual and getattr(module, "scale_attn_weights", True) is True


def _children(module: nn.Module) -> list[Any]:
    return [getattr(module, name, None) for name in _BETWEEN]


def _changes(child: Any) -> bool:
    return child is not None and not isinstance(child, nn.Identity)


def _same_width(module: nn.Module) -> bool:
    return not isinstance(module, nn.MultiheadAttention) or module._qkv_same_embed_dim


def _relative(module: nn.Module) -> bool:
    """Return whether logits get a part that depends on positions, or k comes from elsewhere."""
    kind = getattr(module, "position_embedding_type", "absolute")
    return kind not in (None, "absolute") or getattr(module, "is_cross_attention", False) is True
