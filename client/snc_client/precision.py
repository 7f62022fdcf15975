"""Numbers as they are stored, and products in float32, whatever the training job has allowed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

SMALLEST_NORMAL = 2.0**-126  # of float32 and bfloat16
# Where subnormal numbers count as zeros, an entry loses less than 2^-126 (float64: 2^-1022). Beside
# a largest entry above these limits that is 2^-66, which the slack of a certificate pays for. A
# weight whose entries are all below is converted by its bits.
_SMALL = {torch.float32: 2.0**-60, torch.bfloat16: 2.0**-60, torch.float64: 2.0**-956}
_LEAST, _ONE = 5e-324, 1.0


def finite(x: Tensor) -> Tensor:
    """Return where ``x`` is finite, bool: `torch.isfinite` with two small calls less."""
    found: Tensor = x - x == 0
    return found


def flushes() -> bool:
    """Return whether this thread takes subnormal numbers for zeros.

    `torch.set_flush_denormal` switches that on, and so do libraries built with -ffast-math.
    """
    return _LEAST * _ONE == 0.0


def in_float64(weight: Tensor) -> tuple[Tensor, int]:
    """Return a float64 copy of ``weight`` times 2^shift, and the shift.

    Exact, also where a CPU flushes subnormal numbers: integer arithmetic converts what may hold
    some, whatever the flag says, because it differs between the threads of a process. No flag of
    the host changes what another device does.
    """
    wide = weight.to(torch.float64, copy=True)
    if weight.device.type != "cpu" or weight.dtype not in _SMALL or weight.numel() == 0:
        return wide, 0
    low, high = torch.stack(torch.aminmax(wide)).tolist()
    if not max(-low, high) < _SMALL[weight.dtype]:  # NaN is converted as usual
        return wide, 0
    return _by_bits(weight)


def _by_bits(weight: Tensor) -> tuple[Tensor, int]:
    """Convert finite numbers of less than one: mantissa, exponent and sign as integers."""
    if weight.dtype == torch.float64:
        bits, digits, least, shift = weight.contiguous().view(torch.int64), 52, -1074, 600
    else:
        upper = weight.dtype == torch.bfloat16  # the upper half of a float32
        stored = weight.contiguous().view(torch.int16 if upper else torch.int32).to(torch.int64)
        bits, digits, least, shift = (stored << 16 if upper else stored), 23, -149, 0
    size = bits & ((1 << (digits + (11 if digits == 52 else 8))) - 1)
    exponent = size >> digits
    mantissa = (size & ((1 << digits) - 1)) | ((exponent > 0).to(torch.int64) << digits)
    power = exponent.clamp(min=1) - 1 + least + shift + 1023
    found = mantissa.double() * (power << 52).view(torch.float64)
    return torch.where(bits < 0, -found, found), shift


def library_may_round() -> bool:
    """Return whether the environment lets oneDNN round float32 products, which no flag undoes."""
    names = ("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE")
    return any(os.environ.get(name, "STRICT").upper() != "STRICT" for name in names)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Switch TF32, bfloat16 products and autocast off on ``device``, and back on at the end.

    TF32 alone would put an error of 4e-4 into sigma, bfloat16 products 5e-3. Host flags only:
    nothing waits for the device. The flags are global to the process, so another thread that
    multiplies meanwhile gets full precision too.
    """
    kind = device.type
    casts = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    with torch.autocast(kind, enabled=False) if casts else nullcontext(), _ieee_products(device):
        yield


@contextmanager
def _ieee_products(device: torch.device) -> Iterator[None]:
    matrices = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    # cuDNN allows TF32 in convolutions by default.
    convolutions = torch.backends.cudnn if device.type == "cuda" else torch.backends.mkldnn
    # Before torch 2.9 the flag was one for all products, and mkldnn had no such names.
    if not hasattr(getattr(matrices, "matmul", None), "fp32_precision"):
        with _one_flag_for_all():
            yield
        return
    # The older getters raise where a job uses the newer ones, so the newer ones are used.
    products: list[Any] = [matrices.matmul, convolutions.conv]
    lowered = [(x, x.fp32_precision) for x in products if x.fp32_precision not in ("none", "ieee")]
    for product, _ in lowered:
        product.fp32_precision = "ieee"
    try:
        yield
    finally:
        for product, before in lowered:
            product.fp32_precision = before


@contextmanager
def _one_flag_for_all() -> Iterator[None]:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
