"""A bound of a convolution by its absolute values: |A| p compared with p, at any size.

||A|| <= || |A| ||, and for B = |A|' |A| and any p > 0 the largest eigenvalue of B is at most
max((B p) / p) (Collatz, 1942; Wielandt, 1950). Exact for kernels without a negative entry; for the
others it can be far above the norm, where `snc_client.convolution_bounds.torus` is close.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from snc_client.operators import Convolution
from snc_client.precision import in_float64

MOST_WORK = 1e10  # multiply-adds, about a second on one core
LEAST, MOST = 2, 24  # rounds of two convolutions
FLOOR = 1e-6  # of p: keeps the ratio of an entry that nothing reaches finite
UNIT = 2.0**-53


def absolute_bound(convolution: Convolution) -> Tensor | None:
    """Return a certified bound, 0-d float64; None where it would take more than a second.

    The rounding of a sum of k terms >= 0 is at most k units of the sum; three more cover the
    quotient and the root. Not finite where the kernel is not.
    """
    geometry = convolution.geometry
    kernel, shift = in_float64(convolution.tensors[0].detach())
    terms = math.prod(kernel.shape[1:])
    work = 2.0 * terms * convolution.shape[0]
    rounds = int(min(MOST, MOST_WORK / max(work, 1.0)))
    if rounds < LEAST:
        return None
    peak = kernel.abs().amax()
    unit = torch.where(peak > 0, torch.frexp(peak).mantissa / peak, 1.0)  # a power of two
    scaled = Convolution(kernel.abs() * unit, geometry)
    outputs = terms * kernel.shape[0] // max(kernel.shape[1], 1) // geometry.groups
    copies = math.prod(a + b + 1 if geometry.mode != "zeros" else 1 for a, b in geometry.pads)
    lost = 4 * (terms + outputs * copies + 16) * UNIT
    p = torch.ones(scaled.shape[1], 1, dtype=torch.float64, device=kernel.device)
    best = torch.full((), math.inf, dtype=torch.float64, device=kernel.device)
    with torch.backends.cudnn.flags(enabled=False):  # its convolutions may not sum term by term
        for _ in range(rounds):
            q = scaled.rmatmul(scaled.matmul(p))
            best = torch.fmin(best, (q / p).amax())
            p = (q / torch.where(q.amax() > 0, q.amax(), 1.0)).clamp(min=FLOOR)
    found: Tensor = (best * (1 + lost)).sqrt() * (1 + 4 * UNIT) / unit * 2.0**-shift
    return torch.where(peak.isfinite(), found, math.inf)
