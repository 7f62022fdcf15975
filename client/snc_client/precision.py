"""Products of float32 in float32, whatever the training job has allowed for its own products."""

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
        stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(_ieee_products(device))
        yield


@contextmanager
def _ieee_products(device: torch.device) -> Iterator[None]:
    matmul: Any = (torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn).matmul
    if not hasattr(matmul, "fp32_precision"):  # before torch 2.9: one flag for all backends
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)
        return
    # The older getters raise where a job uses the newer ones, so the newer it is.
    before = matmul.fp32_precision
    lowered = before not in ("none", "ieee")
    if lowered:
        matmul.fp32_precision = "ieee"
    try:
        yield
    finally:
        if lowered:
            matmul.fp32_precision = before
