"""What is done to a network while it trains: one way to build each variant, for all studies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from snc_client import SNCallback

Kind = Literal["none", "ours", "torch", "clipping", "decay", "other"]


@dataclass(frozen=True)
class Variant:
    """One column of a comparison. ``kind`` groups the values of one knob."""

    name: str
    kind: Kind
    hold: Mapping[str, Any] = field(default_factory=dict)  # threshold and action of SNCallback
    clip: float | None = None  # norm of all gradients of the network
    decay: float = 0.0  # decoupled, as AdamW's
    extra: str = ""  # what only one study knows, such as "layer norm"
    strength: float = 0.0  # of ``extra``


NONE = Variant("none", "none")
TORCH = Variant("torch spectral_norm", "torch")


def ours(threshold: float | str, action: str = "rescale", **more: Any) -> Variant:
    name = ", ".join([f"{action} {threshold}", *(f"{key} {value}" for key, value in more.items())])
    return Variant(name, "ours", {"threshold": threshold, "action": action, **more})


def clipping(*norms: float) -> tuple[Variant, ...]:
    return tuple(Variant(f"clipping {norm:g}", "clipping", clip=norm) for norm in norms)


def decays(*values: float) -> tuple[Variant, ...]:
    return tuple(Variant(f"decay {value:g}", "decay", decay=value) for value in values)


def other(extra: str, *strengths: float) -> tuple[Variant, ...]:
    if not strengths:
        return (Variant(extra, "other", extra=extra),)
    return tuple(Variant(f"{extra} {s:g}", "other", extra=extra, strength=s) for s in strengths)


def prepared(network: nn.Module, variant: Variant, only: str = "") -> nn.Module:
    """Return ``network`` with torch's parametrization where the variant is torch's.

    Call it before the optimizer is made. ``only``: a part of the names of the modules.
    """
    if variant.kind == "torch":
        for name, module in list(network.named_modules()):
            if isinstance(module, nn.Linear | nn.Conv2d) and only in name:
                nn.utils.parametrizations.spectral_norm(module)
    return network


def adam(network: nn.Module, variant: Variant, lr: float, **more: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(network.parameters(), lr, weight_decay=variant.decay, **more)


def held(
    model: nn.Module | Mapping[str, nn.Module],
    optimizer: Any,
    variant: Variant,
    pattern: str = "*",
    **more: Any,
) -> SNCallback | None:
    """Return the callback of a variant of ours, which acts after each step of its optimizer."""
    if variant.kind != "ours":
        return None
    hold = dict(variant.hold)
    threshold = {pattern: hold.pop("threshold")}
    return SNCallback(model, optimizer=optimizer, threshold=threshold, **hold, **more)


def descend(network: nn.Module, optimizer: Any, loss: torch.Tensor, variant: Variant) -> None:
    """Take one step of the optimizer, clipped where the variant clips."""
    optimizer.zero_grad()
    loss.backward()
    if variant.clip is not None:
        nn.utils.clip_grad_norm_(network.parameters(), variant.clip)
    optimizer.step()


def largest_sigma(network: nn.Module, only: str = "") -> float:
    """Return the largest spectral norm of the weights as the forward pass uses them, by SVD."""
    norms = [
        float(torch.linalg.matrix_norm(module.weight.detach().flatten(1).double(), 2))
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
        and only in name
        and bool(torch.isfinite(module.weight).all())
    ]
    return max(norms, default=float("inf"))
