"""RollCall: before each sum, the ranks find out whether all of them have come to it.

A sum that a rank does not come to never returns, and cannot be taken back. So no rank begins one
before all have said, in the key-value store of torch.distributed, that they begin the same one.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from typing import Final, TypeAlias

from snc_client.callback.interruption import insisted
from snc_client.callback.model.distributed import shared_store

Members: TypeAlias = tuple[int, ...]
"""The global ranks of a process group, in order."""

# For the last rank to come. The others stand still, once; NCCL's own limit is 600 seconds.
SECONDS: Final = 300.0
_FIRST_LOOK, _LAST_LOOK = 1e-4, 0.02  # seconds between two looks into the store, doubling
_COUNT = 20  # binary digits of the number of ranks that have come; the sum of texts is above them

_COME, _DIFFERENT, _LEFT, _LATE, _TIRED = "come", "different", "left", "late", "tired"
_WHY: Final = {
    _DIFFERENT: "the ranks do not make the same steps",
    _LEFT: "a rank has closed its callback",
    _LATE: "a rank has not come to its step in time",
    _TIRED: "a rank was interrupted twice while it waited",
}


class RollCall:
    """The calls of one callback's sums; ``ranks`` is how many have sharded layers.

    Each costs every rank two requests to the store at least, and the host waits for the last rank.
    """

    def __init__(self, key: str, rank: int, ranks: int) -> None:
        self._key, self._rank, self._ranks = f"{key}/call", rank, ranks
        self._store = shared_store()
        self._next = 0

    def answered(self, told: Mapping[Members, str]) -> str | None:
        """Return why there is no sum, None if all ranks have come; it is the same on all of them.

        ``told`` must be equal on all ranks of a group: what is summed over it. After a reason there
        must be no further call.
        """
        if self._store is None or self._ranks < 2:
            return None
        here = f"{self._key}/{self._next}"
        try:
            total = self._store.add(here, 1 + (self._signed(told) << _COUNT))
            if total % (1 << _COUNT) == self._ranks:
                said = self._decided(here, _DIFFERENT if total >> _COUNT else _COME)
                if self._next:  # all ranks have read what was decided there
                    before = f"{self._key}/{self._next - 1}"
                    self._store.delete_key(before)
                    self._store.delete_key(f"{before}/end")
            else:
                said = self._awaited(here)
        except RuntimeError as error:  # of the store: its host is gone
            return f"the ranks do not reach each other: {error}"
        self._next += 1
        return _WHY.get(said)

    def break_off(self) -> None:
        """Let the others not wait for a sum that this rank has begun and given up."""
        if self._store is not None and self._ranks > 1:
            try:
                self._store.set(f"{self._key}/broken", "")
            except RuntimeError:  # the host of the store is gone
                pass

    def broken(self) -> str | None:
        """Return why a sum that has begun will not end, None if nobody has said so."""
        if self._store is None:
            return None
        if insisted():
            return _WHY[_TIRED]
        try:
            return (
                "a rank has given up a sum" if self._store.check([f"{self._key}/broken"]) else None
            )
        except RuntimeError as error:
            return f"the ranks do not reach each other: {error}"

    def leave(self) -> None:
        """Let the others not wait for this rank any more."""
        if self._store is not None and self._ranks > 1:
            try:
                self._decided(f"{self._key}/{self._next}", _LEFT)
            except RuntimeError:  # the host of the store is gone, and nobody reads it
                pass

    def _awaited(self, here: str) -> str:
        deadline, look = time.monotonic() + SECONDS, _FIRST_LOOK
        while not self._store.check([f"{here}/end"]):
            if time.monotonic() > deadline:
                return self._decided(here, _LATE)
            if insisted():
                return self._decided(here, _TIRED)
            time.sleep(look)
            look = min(2 * look, _LAST_LOOK)
        return bytes(self._store.get(f"{here}/end")).decode()

    def _decided(self, here: str, what: str) -> str:
        """Return what all ranks read; the first to write it decides."""
        return bytes(self._store.compare_set(f"{here}/end", "", what)).decode()

    def _signed(self, told: Mapping[Members, str]) -> int:
        """Return this rank's share of a sum that is 0 if, and nearly only if, the texts agree."""
        total = 0
        for group, text in told.items():
            code = int(hashlib.sha256(f"{group} {text}".encode()).hexdigest()[:6], 16)
            total += code * (len(group) - 1 if self._rank == group[0] else -1)
        return total
