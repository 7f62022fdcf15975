"""A real training with an active threshold, judged by float64 SVD after every step."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snc_client import SNCallback
from snc_client.demo.model import CharTransformer
from snc_client.demo.text import VOCABULARY, encode, minibatches, standard_library_text

STEPS = 50
CONTEXT, WIDTH = 32, 48


class Orthogonalised(torch.optim.Optimizer):
    """Momentum whose matrix updates are orthogonalised, as Muon does; here by an exact SVD."""

    def __init__(self, parameters: list[Tensor], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                momentum = self.state[weight].setdefault("m", torch.zeros_like(weight))
                momentum.mul_(0.9).add_(weight.grad)
                u, _, vh = torch.linalg.svd(momentum.reshape(len(weight), -1), full_matrices=False)
                weight.sub_((u @ vh).reshape(weight.shape), alpha=group["lr"])


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=5e-3)


def muon(model: nn.Module) -> torch.optim.Optimizer:
    return Orthogonalised([w for w in model.parameters() if w.ndim >= 2], lr=0.03)


def spectral_norms(callback: SNCallback) -> dict[str, float]:
    """Return the spectral norms of the weights as they are now, by float64 SVD."""
    return {
        layer.name: float(torch.linalg.matrix_norm(layer.weight().double(), 2))
        for layer in callback.layers.layers
    }


def train(
    make: Callable[[nn.Module], torch.optim.Optimizer],
    dtype: torch.dtype,
    *,
    threshold: str,
    **keywords: object,
) -> tuple[list[float], list[float], SNCallback]:
    """Return per step the largest spectral norm / threshold and the loss; and the callback."""
    torch.manual_seed(0)
    model = CharTransformer(VOCABULARY, CONTEXT, WIDTH, heads=4, depth=2).to(dtype)
    optimizer = make(model)
    tokens = encode(standard_library_text(200_000))
    norms, losses = [], []
    # A table of positions is held where it is named.
    limits = dict.fromkeys(("positions.weight", "*"), threshold)
    with SNCallback(model, threshold=limits, **keywords) as callback:
        data = minibatches(tokens, batch_size=8, context=CONTEXT, seed=1)
        for _ in range(STEPS):
            inputs, targets = next(data)
            loss = F.cross_entropy(model(inputs).flatten(0, 1).float(), targets.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            callback.step(loss=loss)
            losses.append(loss.item())
            norms.append(spectral_norms(callback))
    assert callback.errors == 0
    thresholds = {name: reading["threshold"] for name, reading in callback.latest.items()}
    ratios = [max(step[name] / thresholds[name] for name in step) for step in norms]
    return ratios, losses, callback


@pytest.mark.parametrize("make", [adamw, muon])
def test_no_layer_is_above_its_threshold_after_a_constrained_step(make):
    ratios, losses, callback = train(make, torch.float32, threshold="1.1x init")
    scaled = callback.latest.row("scale") < 1
    assert scaled.mean() > 0.5, "the threshold must be active, or this proves nothing"
    assert max(ratios) <= 1.001
    assert losses[-1] < losses[0] - 0.3


@pytest.mark.parametrize("make", [adamw, muon])
def test_the_same_training_without_the_action_leaves_the_thresholds_far_behind(make):
    ratios, _, _ = train(make, torch.float32, threshold="1.1x init", action="observe")
    assert ratios[-1] > 1.2


@pytest.mark.parametrize("make", [adamw, muon])
def test_strict_holds_every_layer_at_every_step(make):
    ratios, _, callback = train(make, torch.float32, threshold="1.1x init", strict=True)
    assert all(reading["sigma_upper"] is not None for reading in callback.latest.values())
    assert max(ratios) <= 1 + 1e-6


def test_cap_holds_every_layer_too():
    ratios, losses, _ = train(adamw, torch.float32, threshold="1.1x init", action="cap")
    assert max(ratios) <= 1.001
    assert losses[-1] < losses[0] - 0.3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("action", ["cap", "normalize"])
def test_strict_holds_with_every_action_in_float32_and_bfloat16(action, dtype):
    ratios, losses, _ = train(adamw, dtype, threshold="1.1x init", action=action, strict=True)
    assert max(ratios) <= 1 + 1e-6
    assert losses[-1] < losses[0] - 0.3


def test_bfloat16_weights_land_under_the_threshold_after_rounding():
    ratios, _, _ = train(adamw, torch.bfloat16, threshold="1.1x init", strict=True)
    assert max(ratios) <= 1.001


def test_a_threshold_every_other_step_leaves_growth_in_between():
    """What ``every`` warns of: the limit holds where the callback acted, not in between."""
    ratios, _, _ = train(adamw, torch.float32, threshold="1.1x init", every=2)
    assert max(ratios[1::2]) <= 1.001  # steps 2, 4, ...
    assert max(ratios[0::2]) > 1.001
