"""Proofs, from the forward of a module, that the parts of a fused weight are what they are called.

With other rows in a part, or with two parts exchanged, none of these equations holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from snc_client.layers import find_layers

Parts = dict[str, list[Tensor]]


def prepared(model: nn.Module) -> nn.Module:
    """Draw every weight, and let nothing be added to a product."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.zero_() if "bias" in name else parameter.normal_(std=0.3)
    return model.eval()


def fused_modules(model: nn.Module, **inputs: Any) -> Iterator[tuple[Parts, Callable[[], Tensor]]]:
    """Yield the parts of each fused weight, and what its module answers in a forward of the model.

    All experts of a module are taken together. A module that the forward leaves out is left out.
    """
    found: dict[str, Parts] = {}
    for layer in find_layers(model).layers:
        if layer.note and "stores in one weight" in layer.note:
            key, _, rest = layer.name.partition("[")
            owner, which = key.rpartition(".")[0], rest.rstrip("]").rpartition("[")[2]
            if key.endswith(".weight"):
                owner = owner.rpartition(".")[0]
            found.setdefault(owner, {}).setdefault(which, []).append(layer.weight())
    asked: dict[str, tuple[Any, Any]] = {}
    hooks = [
        model.get_submodule(owner).register_forward_pre_hook(
            _recorder(asked, owner), with_kwargs=True
        )
        for owner in found
    ]
    with torch.no_grad():
        model(**inputs)
    for hook in hooks:
        hook.remove()
    assert asked
    for owner, parts in ((owner, found[owner]) for owner in asked):
        yield parts, _again(model.get_submodule(owner), *asked[owner])


@torch.no_grad()
def assert_gated(parts: Parts, ask: Callable[[], Tensor], *, linear: bool = True) -> None:
    """Nothing passes a closed gate, and what passes an open one is linear in the other part."""
    before = ask()
    kept = [gate.clone() for gate in parts["gate"]]
    for gate in parts["gate"]:
        gate.zero_()
    assert before.abs().max() > 0
    assert ask().abs().max() == 0
    for gate, value in zip(parts["gate"], kept, strict=True):
        gate.copy_(value)
    if linear:
        for up in parts["up"]:
            up.mul_(2)
        torch.testing.assert_close(ask(), 2 * before)


@torch.no_grad()
def assert_attention(parts: Parts, ask: Callable[[], Tensor]) -> None:
    """Logits are products of q and k, and the output is linear in v."""
    (q,), (k,), (v,) = parts["q"], parts["k"], parts["v"]
    before = ask()
    assert before.abs().max() > 0
    q.mul_(4)
    k.mul_(0.25)
    torch.testing.assert_close(ask(), before)
    v.mul_(2)
    torch.testing.assert_close(ask(), 2 * before)


def _recorder(asked: dict[str, tuple[Any, Any]], owner: str) -> Callable[..., None]:
    def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        asked[owner] = (args, kwargs)

    return record


def _again(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Callable[[], Tensor]:
    def ask() -> Tensor:
        answer = module(*args, **kwargs)
        return answer if isinstance(answer, Tensor) else answer[0]

    return ask
