"""Products of float32 in float32, for any precision that the job allows for its own products."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Switch TF32, bfloat16 products and autocast off on ``device``, and back on at the end.

    TF32 alone would put an error of 4e-4 into sigma, bfloat16 products 5e-3. Host flags only:
    nothing waits for the device. The flags are global to the process, so another thread that
    multiplies meanwhile gets full precision too.
    """
    with ExitStack() as stack:
        if torch.amp.is_autocast_available(device.type):
            stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(_ieee_products(device))
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
