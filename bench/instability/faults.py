"""Faults, each injected where it happens in real life: data, gradients, learning rate, memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

FOREVER = 10**9


@dataclass(frozen=True)
class Fault:
    """What goes wrong in the rows from ``start`` on, for ``rows`` of them; ``size`` is how much.

    Kinds: ``lr_spike`` (rate x size), ``bad_batch`` (inputs, or rewards, x size), ``label_burst``
    (random targets), ``nan_gradient`` (one NaN), ``gradient_scale`` (x size), ``bit_flip`` (one
    weight + size), ``dead_relu`` (biases - size), ``decay_sign`` (decoupled decay of -size),
    ``no_zero_grad`` (gradients add up), ``off_policy`` (next states x size), ``none``.

    Data: ``corrupt`` (a share of the inputs is noise), ``input_ramp`` (x size a row), ``dark``
    (inputs fade out in size rows), ``wrong_targets`` (a share of them is another's).
    Weights: ``shrink`` (matrices x (1 - size) a row), ``gains`` (1-d parameters x (1 + size) a
    row), ``silent`` (size random weights of one matrix change sign in each row), ``frozen`` (one
    matrix is no longer trained). Outputs: ``temperature`` (x size a row). Gradients: ``stale``
    (those of size rows before), ``doubling`` (x 2 every size rows), ``ascent`` (sign turned),
    ``noise`` (as much noise as size times the gradient). Schedules: ``rate_growth`` (x size a row).

    Harmless: ``clear_state`` (the optimizer forgets), ``freeze`` (the first matrix is left alone),
    ``skip`` (a loss scaler skips every size-th step: gradients infinite, weights untouched),
    ``decay_switch`` (weight decay of size from here on).
    """

    kind: str = "none"
    start: int = 0
    rows: int = FOREVER
    size: float = 1.0
    past: list[list[Tensor]] = field(default_factory=list, compare=False)  # gradients

    def skips(self, step: int) -> bool:
        return self.on("skip", step) and self.since(step) % int(self.size) == 0

    def on(self, kind: str, step: int) -> bool:
        return self.kind == kind and self.start <= step < self.start + self.rows

    def since(self, step: int) -> int:
        return step - self.start + 1

    def inputs(self, step: int, x: Tensor) -> Tensor:
        if self.on("input_ramp", step):
            return x * min(self.size ** self.since(step), 1e4)
        if self.on("dark", step):
            return x * max(0.0, 1 - self.since(step) / self.size)
        if self.on("corrupt", step):
            spoilt = torch.rand(len(x), *[1] * (x.ndim - 1)) < self.size
            return torch.where(spoilt, x.std() * 2 * torch.randn_like(x), x)
        return self.size * x if self.scales_inputs(step) else x

    def logits(self, step: int, x: Tensor) -> Tensor:
        """Return the outputs, or what else a task has that a temperature scales."""
        factor = min(self.size ** self.since(step), 1e4) if self.on("temperature", step) else 1.0
        return factor * x

    def values(self, step: int, y: Tensor, noise: torch.Generator) -> Tensor:
        """Return real-valued targets."""
        if self.on("label_burst", step):
            return 3 * y.std() * torch.randn(y.shape, generator=noise)
        if self.on("wrong_targets", step):
            return torch.where(torch.rand(y.shape, generator=noise) < self.size, y.flip(0), y)
        return y

    def scales_inputs(self, step: int) -> bool:
        return self.on("bad_batch", step)

    def next_states(self, step: int, x: Tensor) -> Tensor:
        return self.size * x if self.on("off_policy", step) else x

    def targets(self, step: int, y: Tensor, classes: int, noise: torch.Generator) -> Tensor:
        share = 1.0 if self.on("label_burst", step) else 0.0
        share = self.size if self.on("wrong_targets", step) else share
        if not share:
            return y
        anew = torch.randint(classes, y.shape, generator=noise)
        return torch.where(torch.rand(y.shape, generator=noise) < share, anew, y)

    def rate(self, step: int) -> float:
        if self.on("rate_growth", step):
            return self.size ** self.since(step)
        return self.size if self.on("lr_spike", step) else 1.0

    def keeps_gradients(self, step: int) -> bool:
        return self.on("no_zero_grad", step)

    @torch.no_grad()
    def spoil_gradients(self, step: int, model: nn.Module) -> None:
        if self.on("nan_gradient", step):
            middle(model).grad.view(-1)[0] = torch.nan
        if self.on("gradient_scale", step):
            for parameter in (p for p in model.parameters() if p.grad is not None):
                parameter.grad.mul_(self.size)
        with_gradient = [p for p in model.parameters() if p.grad is not None]
        if self.on("doubling", step):
            for parameter in with_gradient:
                parameter.grad.mul_(2.0 ** (self.since(step) // self.size))
        if self.on("ascent", step):
            for parameter in with_gradient:
                parameter.grad.neg_()
        if self.on("noise", step):
            for parameter in with_gradient:
                size = self.size * parameter.grad.norm() / parameter.numel() ** 0.5
                parameter.grad.add_(size * torch.randn_like(parameter))
        if self.on("frozen", step):
            middle(model).grad = None
        if self.on("freeze", step):
            next(p for p in model.parameters() if p.ndim >= 2 and p.requires_grad).grad = None
        if self.on("stale", step):
            self._stale(with_gradient)

    def _stale(self, parameters: list[nn.Parameter]) -> None:
        self.past.append([p.grad.clone() for p in parameters])
        if len(self.past) > self.size:
            for parameter, old in zip(parameters, self.past.pop(0), strict=True):
                parameter.grad.copy_(old)

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
        for group in optimizer.param_groups if self.on("decay_switch", step) else ():
            group["weight_decay"] = self.size
        trained = [p for p in model.parameters() if p.requires_grad]
        if self.on("shrink", step):
            torch._foreach_mul_([p.data for p in trained if p.ndim >= 2], 1 - self.size)
        if self.on("gains", step):
            torch._foreach_mul_([p.data for p in trained if p.ndim == 1], 1 + self.size)
        if self.on("silent", step):
            flat = middle(model).data.view(-1)
            flat[torch.randint(len(flat), (int(self.size),))] *= -3


def linears(model: nn.Module) -> Iterable[nn.Linear]:
    return (module for module in model.modules() if isinstance(module, nn.Linear))


def middle(model: nn.Module) -> nn.Parameter:
    """Return the weight in the middle of the model."""
    weights = [p for p in model.parameters() if p.ndim >= 2 and p.requires_grad]
    return weights[len(weights) // 2]
