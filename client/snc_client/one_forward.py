"""One forward pass that leaves nothing behind: no hook, no gradient, no changed buffer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

Example: TypeAlias = Tensor | Sequence[Any]
"""The argument of a forward pass, or several in their order."""


def run_once(module: nn.Module, example: Example) -> None:
    """Run ``module(*example)`` without gradients, in the mode in which the module is.

    Buffers and the random states of torch are put back. Raises what the forward pass raises.
    """
    with torch.no_grad(), _put_back(module):
        module(*((example,) if isinstance(example, Tensor) else example))


@contextmanager
def _put_back(module: nn.Module) -> Iterator[None]:
    buffers = [(x, x.clone()) for x in module.buffers()]
    try:
        with torch.random.fork_rng():
            yield
    finally:
        for buffer, before in buffers:
            buffer.copy_(before)
