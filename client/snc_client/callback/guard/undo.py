"""The guard's copies of optimizer state and older weights, and its detection of other writes."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from snc_client.callback.model.master_weights import KEYS
from snc_client.operators.sharded import local_part

log = logging.getLogger("snc")

FIRST = 3  # calls that learn the usual writes, whenever copies start anew
HABIT, SPAN = 3, 50  # more unexpected writes than HABIT in SPAN steps count as usual


@dataclass
class _Kept:
    """The copy of one tensor of a state, and the address of that tensor."""

    copy: Tensor
    place: int


class KeptState:
    """The state of an optimizer after the last accepted step, on the device.

    Only tensors on the device of the verdict are kept: to undo others the host would have to wait.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._kept: dict[tuple[int, str], _Kept] = {}

    def accept(self) -> None:
        """Copy the present state."""
        for value, kept in self._pairs():
            kept.copy.copy_(value)

    def settle(self, rejected: Tensor, restored: Tensor, cleared: Tensor) -> None:
        """Restore the kept state, clear the state, or keep the present one; 0-d bool each."""
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
                        here = local_part(value)
                        yield here, self._of(id(parameter), name, here)

    def _of(self, parameter: int, name: str, value: Tensor) -> _Kept:
        kept = self._kept.get((parameter, name))
        # Another tensor replaced it, from a loaded state: that must not be overwritten.
        if kept is None or kept.place != value.data_ptr() or kept.copy.shape != value.shape:
            kept = self._kept[parameter, name] = _Kept(value.clone(), value.data_ptr())
        return kept


class Snapshots:
    """Two older copies of the weights, each with the sigmas of the layers at that step."""

    def __init__(self) -> None:
        self._taken: list[list[Tensor]] = []  # oldest first

    def clear(self) -> None:
        """Drop the copies."""
        self._taken.clear()

    def take(self, unless: Tensor, values: Sequence[Tensor], sigma: Tensor) -> None:
        """Make the newer copy the older one and copy anew; do nothing if ``unless`` (0-d bool)."""
        now = [*values, sigma]
        if len(self._taken) < 2:
            self._taken.append([value.clone() for value in now])
            return
        older, newer = self._taken
        for old, new, value in zip(older, newer, now, strict=True):
            torch.where(unless, old, new, out=old)
            torch.where(unless, new, value, out=new)

    def renew(self, where: Tensor, values: Sequence[Tensor], sigma: Tensor) -> None:
        """Replace the copies by these values if ``where`` (0-d bool) is True."""
        for taken in self._taken:
            for old, value in zip(taken, [*values, sigma], strict=True):
                torch.where(where, value, old, out=old)

    def restore(self, back: Tensor, values: Sequence[Tensor], sigma: Tensor) -> Tensor:
        """Write the oldest copy if ``back`` (0-d bool) is True; return the sigmas likewise.

        The newer copy led to the roll-back, so the oldest one replaces it.
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
    """Distinguishes a step from other changes of the parameters, by version counter and address.

    An optimizer writes each parameter equally often at every step; the counts of the first steps
    are the usual ones. Loading a checkpoint adds writes or moves the parameters. Changes that occur
    more than 3 times in 50 steps count as usual from then on.
    """

    def __init__(self) -> None:
        self._last: list[tuple[int, int]] = []
        self._usual: list[int] = []
        self._places_matter = True
        self._unexpected: list[int] = []
        self._looks = 0

    def note(self, parameters: Sequence[Tensor]) -> None:
        """Record counters and addresses of the parameters after a step."""
        self._last = [(p.data_ptr(), p._version) for p in parameters]

    def changed(self, parameters: Sequence[Tensor], *, learn: bool) -> bool:
        """Return whether anything but a step changed the parameters since `note`."""
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
