"""Faults, each injected where it happens in real life: data, gradients, learning rate, memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

FOREVER = 10**9


@dataclass(frozen=True)
class Fault:
    """What goes wrong in the rows from ``start`` on, for ``rows`` of them; ``size`` is how much.

    Kinds: ``lr_spike`` (rate x size), ``bad_batch`` (inputs, or rewards, x size), ``label_burst``
    (random targets), ``nan_gradient`` (one NaN), ``gradient_scale`` (x size), ``bit_flip`` (one
    weight + size), ``dead_relu`` (biases - size), ``decay_sign`` (decoupled decay of -size),
    ``no_zero_grad`` (gradients add up), ``off_policy`` (next states x size), ``clear_state`` (the
    optimizer forgets; harmless), ``none``.
    """

    kind: str = "none"
    start: int = 0
    rows: int = FOREVER
    size: float = 1.0

    def on(self, kind: str, step: int) -> bool:
        return self.kind == kind and self.start <= step < self.start + self.rows

    def inputs(self, step: int, x: Tensor) -> Tensor:
        return self.size * x if self.scales_inputs(step) else x

    def scales_inputs(self, step: int) -> bool:
        return self.on("bad_batch", step)

    def next_states(self, step: int, x: Tensor) -> Tensor:
        return self.size * x if self.on("off_policy", step) else x

    def targets(self, step: int, y: Tensor, classes: int, noise: torch.Generator) -> Tensor:
        if not self.on("label_burst", step):
            return y
        return torch.randint(classes, y.shape, generator=noise)

    def rate(self, step: int) -> float:
        return self.size if self.on("lr_spike", step) else 1.0

    def keeps_gradients(self, step: int) -> bool:
        return self.on("no_zero_grad", step)

    @torch.no_grad()
    def spoil_gradients(self, step: int, model: nn.Module) -> None:
        if self.on("nan_gradient", step):
            middle(model).grad.view(-1)[0] = torch.nan
        if self.on("gradient_scale", step):
            for parameter in model.parameters():
                parameter.grad.mul_(self.size)

    @torch.no_grad()
    def spoil_weights(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Change what lies in memory before the step is made, past autograd's own bookkeeping."""
        if self.on("bit_flip", step):
            middle(model).data.view(-1)[7] += self.size
        if self.on("dead_relu", step):
            for layer in list(linears(model))[:-1]:
                layer.bias.data -= self.size
        if self.on("clear_state", step):
            optimizer.state.clear()
        for group in optimizer.param_groups if self.on("decay_sign", step) else ():
            group["weight_decay"] = -self.size


def linears(model: nn.Module) -> Iterable[nn.Linear]:
    return (module for module in model.modules() if isinstance(module, nn.Linear))


def middle(model: nn.Module) -> nn.Parameter:
    """Return the weight in the middle of the model."""
    weights = [p for p in model.parameters() if p.ndim >= 2]
    return weights[len(weights) // 2]
