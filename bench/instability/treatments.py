"""What jobs do against bad steps without this project: clipping, ZClip, skipping and AGC.

A treatment sees the gradients as the loss left them, before the training's own clipping. It
returns whether the step is to be made. Each is made anew for a training, with its published or
usual settings; none was fitted to these trainings.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

Treatment = Callable[[nn.Module], bool]
WINDOW, DEVIATIONS, FIRST = 128, 6.0, 20  # of skipping: the loss rule of bench/detection


def untreated(model: nn.Module) -> bool:
    return True


def clip(model: nn.Module) -> bool:
    """Clip the norm of all gradients to 1."""
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    return True


class ZClip:
    """Clip at z 2.5 of running moments, to mean + 2.5^2 / z deviations (arXiv:2504.02507).

    A norm that is not finite passes, and is not learnt, as nothing published says otherwise.
    """

    WARM_UP, KEPT, LIMIT = 25, 0.97, 2.5

    def __init__(self) -> None:
        self._first: list[float] = []
        self._mean = self._variance = 0.0

    def __call__(self, model: nn.Module) -> bool:
        norm = norm_of(model)
        if not math.isfinite(norm):
            return True
        if len(self._first) < self.WARM_UP:
            self._begin(norm)
            return True
        deviation = math.sqrt(self._variance) + 1e-6
        z = (norm - self._mean) / deviation
        if z > self.LIMIT:
            kept = self._mean + self.LIMIT**2 / z * deviation
            scale_(model, kept / norm)
            norm = kept
        self._mean = self.KEPT * self._mean + (1 - self.KEPT) * norm
        self._variance = self.KEPT * self._variance + (1 - self.KEPT) * (norm - self._mean) ** 2
        return True

    def _begin(self, norm: float) -> None:
        self._first.append(norm)
        self._mean = sum(self._first) / len(self._first)
        self._variance = sum((x - self._mean) ** 2 for x in self._first) / len(self._first)


class Skip:
    """Make no step whose gradient is not finite, or 6 deviations above the last 128 made."""

    def __init__(self) -> None:
        self._past: deque[float] = deque(maxlen=WINDOW)

    def __call__(self, model: nn.Module) -> bool:
        norm = norm_of(model)
        if not math.isfinite(norm):
            return False
        if len(self._past) >= FIRST:
            past = torch.tensor(self._past, dtype=torch.float64)
            if norm > float(past.mean() + DEVIATIONS * past.std(correction=0)):
                return False
        self._past.append(norm)
        return True


def adaptive_clip(model: nn.Module) -> bool:
    """Clip each unit's gradient to .01 of its weight, the last matrix apart (arXiv:2102.06171)."""
    trained = [p for p in model.parameters() if p.grad is not None]
    last = next((p for p in reversed(trained) if p.ndim >= 2), None)
    for parameter in (p for p in trained if p is not last):
        most = 0.01 * unit_norm(parameter.detach()).clamp(min=1e-3)
        norm = unit_norm(parameter.grad)
        scale = torch.where(norm > most, most / norm.clamp(min=1e-6), torch.ones_like(norm))
        parameter.grad.mul_(scale)
    return True


def unit_norm(values: Tensor) -> Tensor:
    """Return the norm of each row of a matrix, or filter; of a vector as a whole."""
    if values.ndim < 2:
        return values.norm()
    return values.flatten(1).norm(dim=1).view(-1, *[1] * (values.ndim - 1))


def norm_of(model: nn.Module) -> float:
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return float(nn.utils.get_total_norm(gradients))


def scale_(model: nn.Module, factor: float) -> None:
    for parameter in (p for p in model.parameters() if p.grad is not None):
        parameter.grad.mul_(factor)


TREATMENTS: Mapping[str, Callable[[], Treatment]] = {
    "clip 1.0": lambda: clip, "ZClip": ZClip, "skip": Skip, "AGC": lambda: adaptive_clip,
}  # fmt: skip
