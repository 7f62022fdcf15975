"""What a guard keeps beside the weights: an optimizer's state, and who wrote the parameters."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from snc_client.callback.model.master_weights import KEYS

log = logging.getLogger("snc")

FIRST = 3  # looks that show what is usual, whenever copies start anew
HABIT, SPAN = 3, 50  # so many unexpected writes in so many steps are what this training does


@dataclass
class _Kept:
    """The copy of one tensor of a state, and where that tensor was."""

    copy: Tensor
    place: int


class KeptState:
    """The state of an optimizer after the last accepted step, on the device.

    Only tensors on the device of the verdict are kept: others cannot follow it without a wait.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._kept: dict[tuple[int, str], _Kept] = {}

    def accept(self) -> None:
        """Keep the state as it is now."""
        for value, kept in self._pairs():
            kept.copy.copy_(value)

    def settle(self, rejected: Tensor, restored: Tensor, cleared: Tensor) -> None:
        """Put the kept state back, or zeros, or keep the present one; 0-d bool each."""
        for value, kept in self._pairs():
            torch.where(restored, kept.copy, value, out=value)
            value.masked_fill_(cleared, 0)
            torch.where(rejected, kept.copy, value, out=kept.copy)

    def _pairs(self) -> Iterator[tuple[Tensor, _Kept]]:
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                for name, value in self._optimizer.state.get(parameter, {}).items():
                    ours = isinstance(value, Tensor) and value.device == parameter.device
                    if ours and name not in KEYS:  # masters are weights
                        yield value, self._of(id(parameter), name, value)

    def _of(self, parameter: int, name: str, value: Tensor) -> _Kept:
        kept = self._kept.get((parameter, name))
        # Another tensor in its place: loaded by somebody, and not ours to put back.
        if kept is None or kept.place != value.data_ptr() or kept.copy.shape != value.shape:
            kept = self._kept[parameter, name] = _Kept(value.clone(), value.data_ptr())
        return kept


class Snapshots:
    """Two older copies of the weights, each with the sigmas of the layers then."""

    def __init__(self) -> None:
        self._taken: list[list[Tensor]] = []  # oldest first

    def clear(self) -> None:
        """Forget them."""
        self._taken.clear()

    def take(self, unless: Tensor, values: Sequence[Tensor], sigma: Tensor) -> None:
        """Let the newest copy be the older one, and copy anew; do nothing ``unless`` (0-d bool)."""
        now = [*values, sigma]
        if len(self._taken) < 2:
            self._taken.append([value.clone() for value in now])
            return
        older, newer = self._taken
        for old, new, value in zip(older, newer, now, strict=True):
            torch.where(unless, old, new, out=old)
            torch.where(unless, new, value, out=new)

    def restore(self, back: Tensor, values: Sequence[Tensor], sigma: Tensor) -> Tensor:
        """Write the oldest copy where ``back`` (0-d bool) is True; return the sigmas likewise.

        What was copied later led to the trouble, so it is forgotten.
        """
        if not self._taken:
            return sigma
        oldest = self._taken[0]
        for later in self._taken[1:]:
            for new, old in zip(later, oldest, strict=True):
                torch.where(back, old, new, out=new)
        for value, old in zip(values, oldest, strict=False):
            torch.where(back, old, value, out=value)
        return torch.where(back, oldest[-1], sigma)


class Versions:
    """Tells a step from another change of the parameters, by their version counters and places.

    An optimizer writes each parameter equally often at every step; what the first steps show counts
    as usual. A checkpoint that is loaded adds writes or moves the parameters. What happens more
    than 3 times in 50 steps is this training's habit, and counts as usual from then on.
    """

    def __init__(self) -> None:
        self._last: list[tuple[int, int]] = []
        self._usual: list[int] = []
        self._places_matter = True
        self._unexpected: list[int] = []
        self._looks = 0

    def note(self, parameters: Sequence[Tensor]) -> None:
        """Remember the parameters as they are after a step."""
        self._last = [(p.data_ptr(), p._version) for p in parameters]

    def changed(self, parameters: Sequence[Tensor], *, learn: bool) -> bool:
        """Return whether more than a step happened to the parameters since `note`."""
        self._looks += 1
        learn = learn or self._looks <= FIRST
        if len(self._last) != len(parameters):
            self._usual = [0] * len(parameters)
            return False
        now = [(p.data_ptr(), p._version) for p in parameters]
        writes = [new[1] - old[1] for new, old in zip(now, self._last, strict=True)]
        moved = any(new[0] != old[0] for new, old in zip(now, self._last, strict=True))
        more = any(here > usual for here, usual in zip(writes, self._usual, strict=True))
        if moved and self._places_matter:
            return learn or self._surprised(writes, moved)
        if not more or learn:
            self._usual = [max(pair) for pair in zip(self._usual, writes, strict=True)]
            return False
        return self._surprised(writes, moved)

    def _surprised(self, writes: Sequence[int], moved: bool) -> bool:
        self._unexpected = [at for at in self._unexpected if self._looks - at < SPAN]
        self._unexpected.append(self._looks)
        if len(self._unexpected) > HABIT:
            log.info("snc: the guard takes frequent writes to the weights between steps as usual")
            self._usual = [max(pair) for pair in zip(self._usual, writes, strict=True)]
            self._places_matter = self._places_matter and not moved
        return True
