"""A CUDA graph for the CPU: record operations with their tensors, replay them on the same ones.

What a graph cannot follow, a tape cannot either: a choice of the host, a tensor bound to a name
anew, a new address. So recorded work that stays right on a tape reads and writes what it should.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map


class Tape(TorchDispatchMode):
    """Records every operation inside; `replay` writes results where they were written then."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = aliased((args, kwargs or {}))
        result = func(*args, **(kwargs or {}))
        self._calls.append((func, *before, aliased(result)))
        return result

    def replay(self) -> None:
        with torch.no_grad():
            for func, args, kwargs, results in self._calls:
                again = func(*aliased(args), **aliased(kwargs))
                for old, new in zip(tree_leaves(results), tree_leaves(again), strict=True):
                    # Views and results in place share their memory: they are up to date.
                    if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)


def aliased(tree: Any) -> Any:
    """Return the same memory under shapes of its own: `squeeze_` and its like change a shape."""
    return tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, tree)


def record(work: Callable[[], None], device: torch.device) -> Callable[[], None]:
    with Tape() as tape:
        work()
    return tape.replay
