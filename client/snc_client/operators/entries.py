"""What operators read off the entries of a weight: the largest one, norms of rows, bounds."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from snc_client.precision import SMALLEST_NORMAL, flushes


def row_norms(weight: Tensor) -> Tensor:
    """Return the norm of each row, float32 [m], at any scale of the weight."""
    mantissa, exponent = torch.frexp(largest(weight))
    exponent = torch.where(mantissa.isfinite(), exponent, 0).clamp(-120, 120)
    one = torch.ones_like(mantissa)
    scaled = weight.float() * torch.ldexp(one, -exponent)
    norms: Tensor = torch.linalg.vector_norm(scaled, dim=-1) * torch.ldexp(one, exponent)
    return norms


def upper_of(norm: Tensor, entries: int = 1) -> Tensor:
    """Return a float32 norm of some entries as a bound: inf for NaN, more where zeros may be none.

    A CPU that flushes takes each entry below 2^-126 for zero.
    """
    if norm.device.type == "cpu" and flushes():
        norm = norm + math.sqrt(entries) * 2 * SMALLEST_NORMAL
    return torch.where(norm.isnan(), math.inf, norm)


def plain(weight: Tensor) -> Tensor:
    """Return the weight without its gradient history."""
    return weight.detach() if weight.requires_grad else weight


def largest(weight: Tensor) -> Tensor:
    """Return max |w| without a copy of the weight; `aminmax` passes NaN on."""
    low, high = torch.aminmax(weight)
    return torch.maximum(-low, high).float()
