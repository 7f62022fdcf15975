"""Reads and copies for which the host does not wait for a device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


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
