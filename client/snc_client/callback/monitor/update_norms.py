"""The optimizer's last step of each parameter, from the optimizer's state: no copy of weights.

`moves` yields it, and `UpdateSigma` measures its spectral norm.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from snc_client.callback.chunks import chunks
from snc_client.estimator import BlockPower
from snc_client.layers import Layer
from snc_client.operators import Matrix

# The exact step of these classes is known; a subclass may take another one.
SUPPORTED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
TURNS = 8  # of `UpdateSigma`: an update's sigma is measured once in so many measurements
BLOCK = 8  # vectors kept of each update


class Move(NamedTuple):
    """The last step of one parameter is ``factor * direction``, up to its sign."""

    parameter: Tensor
    direction: Tensor
    factor: float | Tensor


def supported(optimizer: torch.optim.Optimizer | None) -> bool:
    """Return whether `moves` supports this optimizer."""
    return type(optimizer) in SUPPORTED


@torch.no_grad()
def moves(optimizer: torch.optim.Optimizer, wanted: set[int]) -> Iterator[Move]:
    """Yield the last step of the parameters with these ids that had a gradient.

    To be called right after the step: gradients and learning rates must be those of the step. Exact
    up to rounding for SGD (momentum, Nesterov, dampening, weight decay), Adam and AdamW (amsgrad
    too); weights may not have been written since. Temporaries hold at most about three times 2^24
    numbers or one parameter, whichever is more.
    """
    for group in optimizer.param_groups:
        stepped = [p for p in group["params"] if id(p) in wanted and p.grad is not None]
        for parameters in chunks(stepped, Tensor.numel):
            if isinstance(optimizer, torch.optim.SGD):
                yield from _sgd(parameters, group, optimizer.state)
            else:
                decoupled = isinstance(optimizer, torch.optim.AdamW) or group.get(
                    "decoupled_weight_decay", False
                )
                yield from _adam(parameters, group, optimizer.state, decoupled)


def _sgd(
    parameters: Sequence[Tensor], group: Mapping[str, Any], state: Mapping[Tensor, Any]
) -> Iterator[Move]:
    lr, decay, momentum = group["lr"], group["weight_decay"], group["momentum"]
    buffers = [state[p].get("momentum_buffer") for p in parameters] if momentum else []
    if momentum and not group["nesterov"]:  # the buffer is the step, decay included
        yield from (Move(p, buffer, lr) for p, buffer in zip(parameters, buffers, strict=True))
        return
    sign = -1.0 if group["maximize"] else 1.0
    for i, p in enumerate(parameters):
        assert p.grad is not None
        direction = p.grad.detach()
        if momentum:
            direction = torch.add(direction, buffers[i], alpha=sign * momentum)
        if decay:  # of the old weight, which is the new one plus the step
            direction = torch.add(direction, p, alpha=sign * decay)
        yield Move(p, direction, lr / (1 - lr * decay))


def _adam(
    parameters: Sequence[Tensor],
    group: Mapping[str, Any],
    state: Mapping[Tensor, Any],
    decoupled: bool,
) -> Iterator[Move]:
    lr, decay = group["lr"], group["weight_decay"] if decoupled else 0.0
    beta_1, beta_2 = group["betas"]
    states = [state[p] for p in parameters]
    square = "max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"
    steps = torch.stack([torch.as_tensor(s["step"]) for s in states]).float()
    bias_1, bias_2 = _bias(beta_1, steps), _bias(beta_2, steps).sqrt()
    size = torch._foreach_sqrt([s[square] for s in states])
    torch._foreach_div_(size, _each(bias_2))
    torch._foreach_add_(size, group["eps"])
    direction = torch._foreach_div([s["exp_avg"] for s in states], size)
    torch._foreach_div_(direction, _each(bias_1))
    if decay:  # of the old weight, as above
        torch._foreach_add_(direction, [p.detach() for p in parameters], alpha=decay)
    factor = lr / (1 - lr * decay)
    yield from (Move(p, d, factor) for p, d in zip(parameters, direction, strict=True))


def _bias(beta: float | Tensor, steps: Tensor) -> Tensor:
    """Return 1 - beta^step without the cancellation of a large beta."""
    if isinstance(beta, Tensor):
        return -torch.expm1(steps * beta.to(steps).log())
    return -torch.expm1(steps * math.log(beta)) if beta > 0 else torch.ones_like(steps)


def _each(values: Tensor) -> Any:
    """Return one factor per parameter: numbers from a CPU, else tensors, which are not read."""
    return values.tolist() if values.device.type == "cpu" else list(values.unbind())


class UpdateSigma:
    """Sigma of the optimizer's updates, from warm blocks, a part of the layers in each turn.

    An update is measured as the matrix that its layer is: a layer whose operator is no single
    matrix, or another one than its parameter laid out as outputs x rest, has none. Two products of
    8 columns with each update of the turn, four times where it has changed much.
    """

    def __init__(self) -> None:
        self._powers: dict[str, tuple[tuple[int, int], BlockPower]] = {}
        self._turn = 0

    def chosen(self, layers: Sequence[Layer]) -> list[Layer]:
        """Return the layers of the next turn."""
        turns = min(TURNS, max(len(layers), 1))
        self._turn += 1
        return [x for i, x in enumerate(layers) if i % turns == self._turn % turns]

    def measure(self, layer: Layer, direction: Tensor, factor: float | Tensor) -> Tensor | None:
        """Return sigma of ``factor`` * ``direction``, 0-d; None where the layer has none.

        ``direction`` is shaped like the layer's parameter.
        """
        update, operator = layer.part(direction), layer.operator()
        if update.ndim < 2 or not isinstance(operator, Matrix):
            return None
        matrix = Matrix(update.flatten(1))
        if matrix.shape not in (operator.shape, operator.shape[::-1]) or min(matrix.shape) < 1:
            return None
        known = self._powers.get(layer.name)
        if known is None or known[0] != matrix.shape:
            made = BlockPower([matrix.shape], device=update.device, block=BLOCK)
            known = self._powers[layer.name] = matrix.shape, made
        found: Tensor = known[1].step_([matrix]).sigma[0]
        return found * abs(factor) if isinstance(factor, float) else found * factor.abs()
