"""The learning rate of a step, as its optimizer holds it."""

from __future__ import annotations

import torch
from torch import Tensor


def learning_rate(optimizer: torch.optim.Optimizer) -> float | Tensor | None:
    """Return the largest learning rate of the groups; a tensor, not read, where one is a tensor.

    None where no group has one, as in an optimizer that a job has written around others.
    """
    rates = [group["lr"] for group in optimizer.param_groups if "lr" in group]
    if not rates:
        return None
    tensors = [rate for rate in rates if isinstance(rate, Tensor)]
    if not tensors:
        return float(max(rates))
    on = tensors[0].device
    same = [r if isinstance(r, Tensor) else torch.full((), r, device=on) for r in rates]
    return torch.stack([rate.detach().reshape(()).float() for rate in same]).amax()
