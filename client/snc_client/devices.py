"""What devices can do: reads and copies for which the host does not wait, fast float64."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FAST_DOUBLE = {(6, 0), (7, 0), (8, 0), (9, 0), (10, 0)}  # capability: float64 >= 1/4 of float32


def reading_is_free(device: torch.device) -> bool:
    """Return whether the host can read a value of ``device`` without waiting for it."""
    return device.type == "cpu"


def to_device(values: Sequence[float], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return host numbers as a tensor on ``device``; on CUDA from pinned memory, without a wait.

    The CPU is named because the job may have set another default device in torch.
    """
    tensor = torch.tensor(values, dtype=dtype, device="cpu")
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def float64_is_fast(device: torch.device) -> bool:
    """Return whether float64 runs at a quarter of float32's speed or more."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) in FAST_DOUBLE
    return device.type != "mps"
