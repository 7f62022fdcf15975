"""The faults that ``snc demo --fault`` puts into a training, each one line in a real program."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch

LEARNING_RATE: Final = 3e-3
HOT_FACTOR: Final = 100.0
DECAY: Final = -5.0
RESTORED_FACTOR: Final = 100.0
DEFAULT_FAULT: Final = "hot-attention"


@dataclass(frozen=True)
class Fault:
    """What goes wrong from ``Recipe.fault_step`` on.

    ``start`` is called once, before the first faulty step, with the model and an optimizer whose
    second group has query and key. ``signs`` says where the damage is seen first.
    """

    summary: str
    start: Callable[[torch.nn.Module, torch.optim.Optimizer], None]
    signs: str


def _hot_attention(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.param_groups[1]["lr"] = LEARNING_RATE * HOT_FACTOR


def _decay_sign(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.param_groups[1]["weight_decay"] = DECAY


@torch.no_grad()
def _bad_restore(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model.get_parameter("blocks.1.out.weight").mul_(RESTORED_FACTOR)


FAULTS: Final = {
    # A multiplier typed into a parameter group, or a schedule that forgets one of two groups.
    DEFAULT_FAULT: Fault(
        f"query and key learn {HOT_FACTOR:g} times too fast",
        _hot_attention,
        "query and key of all blocks pass their thresholds within a few steps",
    ),
    # A sign typed into a parameter group: its weights grow by a small factor at every step.
    "decay-sign": Fault(
        f"the weight decay of query and key has the wrong sign ({DECAY:g})",
        _decay_sign,
        "query and key of all blocks grow together, long before the loss shows it",
    ),
    # A checkpoint whose scale was stored apart and applied twice.
    "bad-restore": Fault(
        f"one weight of block 1 is restored {RESTORED_FACTOR:g} times too large",
        _bad_restore,
        "blocks.1.out.weight jumps at one step, and no other layer does",
    ),
}
