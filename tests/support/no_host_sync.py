"""A dispatch mode that refuses what would make the host wait for a GPU, even on a CPU."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
# Their results are host values, or tensors whose shape depends on values.
WAITING = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._linalg_eigh.default,
}


class HostSync(AssertionError):
    """An operation inside the mode reads a device value on the host."""


class NoHostSync(TorchDispatchMode):
    """Fail on ``.item()``, ``bool(tensor)``, ``nonzero``; count operations.

    It cannot see ``.tolist()`` or ``.numpy()`` of a CPU tensor. ``on_cpu`` names operations that
    wait on CUDA only, and that the code under test uses for CPU tensors only.
    """

    def __init__(self, *, on_cpu: frozenset[Any] = frozenset({aten._linalg_eigh.default})) -> None:
        super().__init__()
        self.on_cpu = on_cpu
        self.operations: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations[str(func)] += 1
        if func in WAITING and func not in self.on_cpu:
            raise HostSync(f"{func} makes the host wait for the device")
        return func(*args, **(kwargs or {}))
