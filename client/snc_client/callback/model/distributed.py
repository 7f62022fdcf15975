"""Which process of a job this is, and what the processes know of each other."""

from __future__ import annotations

import multiprocessing
import os
from typing import Any

import torch

_last: tuple[int, int] | None = None

LAUNCHERS = ("SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK")


def ranks() -> tuple[int, int]:
    """Return this process's rank and the number of ranks; (0, 1) where nothing is distributed.

    Asked anew at each use, because a callback may be made before the process group. Until then the
    variables count that torchrun sets.
    """
    global _last
    if joined():
        _last = torch.distributed.get_rank(), torch.distributed.get_world_size()
        return _last
    if _last is not None:
        return _last  # the group is gone: this process is still the rank that it was
    rank, world = _whole("RANK"), _whole("WORLD_SIZE")
    return (rank, world) if rank is not None and world is not None and rank < world else (0, 1)


def several_ranks() -> bool:
    """Return whether other processes hold replicas of the model, or may."""
    return ranks()[1] > 1


def joined() -> bool:
    """Return whether the default process group exists."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def may_join() -> bool:
    """Return whether this process, alone so far, may turn out to be a rank of a job."""
    if joined() or several_ranks():
        return False
    launched = any(name in os.environ for name in LAUNCHERS)
    return launched or multiprocessing.parent_process() is not None


def shared_store() -> Any:
    """Return the key-value store of the default process group, None where there is none."""
    if not joined():
        return None
    # Torch has no public name for it; without it ranks report and obey as if they were alone.
    found = getattr(torch.distributed.distributed_c10d, "_get_default_store", None)
    return None if found is None else found()


def _whole(name: str) -> int | None:
    text = os.environ.get(name, "")
    return int(text) if text.isascii() and text.isdigit() else None
