"""Which process of a job this is."""

from __future__ import annotations

import torch


def ranks() -> tuple[int, int]:
    """Return this process's rank and the number of ranks; (0, 1) where nothing is distributed."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def several_ranks() -> bool:
    """Return whether other processes hold replicas of the model, or may."""
    return ranks()[1] > 1
