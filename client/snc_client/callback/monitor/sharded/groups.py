"""Groups: the process groups of sharded layers, and sums over them."""

from __future__ import annotations

import math
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any, Final, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from snc_client.callback.monitor.sharded.roll_call import Members, RollCall
from snc_client.operators.sharded import Group, members

Owed: TypeAlias = tuple[Members, int, torch.dtype]
"""A sum over these ranks, of so many numbers."""

SECONDS: Final = 300.0  # for a sum that all ranks have begun
_LOOK: Final = timedelta(seconds=0.5)  # between two looks whether another rank has given it up


class SumLost(Exception):
    """A sum did not come about, and there must be no further one; the message says why."""


def weakly(group: Group) -> Callable[[], Group | None]:
    """Return a reference to a group that torch alone keeps alive, until it is destroyed.

    One kept longer is freed at the exit of the interpreter, where its threads abort the process.
    """
    return (lambda: group) if isinstance(group, tuple) else weakref.ref(group)


class Groups:
    """One process group for each set of ranks that layers are summed over.

    Groups that no library has made are made here, by their ranks alone: others need not take part.
    To be made where all ranks are known to have come, as torch's own groups are.
    """

    def __init__(self, groups: Iterable[Group], roll_call: RollCall | None) -> None:
        self._roll_call = roll_call
        self._owed: deque[deque[Owed]] = deque()  # of each round
        self._of: dict[Members, Callable[[], Any]] = {}
        groups = list(groups)
        for group in groups:
            if not isinstance(group, tuple):
                self._of.setdefault(members(group), weakly(group))
        for ranks in sorted({group for group in groups if isinstance(group, tuple)}):
            if ranks not in self._of:
                made = dist.new_group(list(ranks), use_local_synchronization=True)
                self._of[ranks] = weakly(made)

    def owe(self, rounds: Iterable[Iterable[Owed]], device: torch.device) -> None:
        """Note the sums that this process has promised to the others, in their order."""
        self._owed, self._device = deque(map(deque, rounds)), device

    def sum_(self, parts: Mapping[Members, Tensor]) -> None:
        """Sum each vector over its group, in place: one collective a group, in one order.

        Groups may overlap; because every process takes them in the same order, none waits for one
        that waits for it. Raises `SumLost` where a rank is gone.
        """
        for ranks in sorted(parts):
            part = parts[ranks]
            assert (ranks, part.numel(), part.dtype) == self._owed[0][0], "as it was promised"
            self._sum(part)

    def end_round(self) -> bool:
        """Make what is left of the sums of a round, without a number: the others wait for them.

        Returns whether there was any. Raises as `sum_` does.
        """
        owed = bool(self._owed and self._owed[0])
        while self._owed and self._owed[0]:
            _, size, dtype = self._owed[0][0]
            self._sum(torch.full((size,), math.nan, dtype=dtype, device=self._device))
        if self._owed:
            self._owed.popleft()
        return owed

    def end(self) -> None:
        """Make all sums that are left, as `end_round` does."""
        while self._owed:
            self.end_round()

    def _sum(self, part: Tensor) -> None:
        """Make the next of the sums that are owed. What fails in it ends all, on all ranks."""
        group = self._of[self._owed[0][0][0]]()
        try:
            if group is None:
                raise SumLost("the process group is gone")
            if part.device.type == "cpu":
                _finished(dist.all_reduce(part, group=group, async_op=True), self._broken)
            else:  # the host does not wait, and a device cannot be asked
                dist.all_reduce(part, group=group)
            self._owed[0].popleft()
        except BaseException as error:
            self._owed.clear()
            if self._roll_call is not None:
                self._roll_call.break_off()
            if isinstance(error, RuntimeError):  # of the backend: a rank has died
                raise SumLost(f"a rank has gone in the middle of a sum: {error}") from error
            raise

    def _broken(self) -> str | None:
        return None if self._roll_call is None else self._roll_call.broken()


def _finished(work: Any, broken: Callable[[], str | None]) -> None:
    """Wait for a sum; raise `SumLost` where another rank has given it up, or it lasts too long."""
    deadline = time.monotonic() + SECONDS
    while True:
        if work.is_completed():
            work.wait()  # raises what the backend has met
            return
        try:
            work.wait(_LOOK)
            return
        except RuntimeError:
            if work.is_completed():
                continue  # perhaps it was too late by a moment only
            if (why := broken()) is not None:
                raise SumLost(why) from None
            if time.monotonic() > deadline:
                raise SumLost("a rank has not come to a sum in time") from None
