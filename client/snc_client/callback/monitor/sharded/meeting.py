"""Meeting: before the first sum, all processes of a group find out whether all of them are there.

They meet in the key-value store of torch.distributed, where nobody waits without a limit of time.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Mapping
from typing import Any, Final

from snc_client.callback.model.distributed import ranks, shared_store
from snc_client.callback.monitor.sharded.roll_call import Members, RollCall

SECONDS: Final = 60.0  # for the last process to come: importing and building models takes long
_LOOK = 0.01  # seconds between two looks into the store

_made = itertools.count()


class Meeting:
    """One meeting of the processes of a job that build their callbacks, each with its own.

    Processes are told apart by the order in which their callbacks are made, which must be the same
    in all of them.
    """

    def __init__(self) -> None:
        self._key = f"snc/sharded/{next(_made)}"

    def passed(self) -> None:
        """Let the others not wait for this process, which has no part of a sharded weight."""
        store = shared_store()
        if store is not None:
            store.add(f"{self._key}/came", 1)
            store.add(f"{self._key}/looked", 1)

    def held(
        self, told: Mapping[Members, Mapping[str, str]], seconds: float | None = None
    ) -> str | None:
        """Return why there is no agreement, None if all processes of the job agree.

        ``told`` are texts that must be equal in all processes of a group, by the name that a
        sentence uses. All processes find the same. It waits for ``seconds`` at most (`SECONDS`);
        one that comes later than that finds that the others have gone.
        """
        store, (rank, world) = shared_store(), ranks()
        if store is None:
            return "there is no process group"
        deadline = time.monotonic() + (SECONDS if seconds is None else seconds)
        try:
            store.add(f"{self._key}/held", 1)
            for group, texts in told.items():
                for name, text in texts.items():
                    store.add(self._place(group, name, text), 1)
            if (came := self._all(store, "came", world, deadline)) < world:
                return f"a callback must be made on all {world} ranks, {came} have made one"
            different = [
                name
                for group, texts in told.items()
                for name, text in texts.items()
                if store.add(self._place(group, name, text), 0) != len(group)
            ]
            store.add(f"{self._key}/differ", len(different))
            if self._all(store, "looked", world, deadline) < world:
                return "a rank has left while the others compared their settings"
            if different:
                what = " and ".join(dict.fromkeys(different))
                return f"all ranks must have the same {what}, those of rank {rank} differ"
            if store.add(f"{self._key}/differ", 0):
                return "all ranks must have the same settings, those of others differ"
        except RuntimeError as error:  # of the store: its host is gone
            return f"the ranks do not reach each other: {error}"
        return None

    def roll_call(self) -> RollCall:
        """Return the calls before the sums of those that have agreed in `held`."""
        return RollCall(self._key, ranks()[0], shared_store().add(f"{self._key}/held", 0))

    def _all(self, store: Any, what: str, world: int, deadline: float) -> int:
        """Count this process; return how many have come when all have, or it is too late."""
        key = f"{self._key}/{what}"
        came: int = store.add(key, 1)
        while came < world and time.monotonic() < deadline and not store.check([f"{key}/end"]):
            time.sleep(_LOOK)
            came = store.add(key, 0)
        # The first to write it decides, for those that come too late as well.
        told = bytes(store.compare_set(f"{key}/end", "", str(came))).decode()
        return world if int(told) == world else min(came, world - 1)

    def _place(self, group: Members, name: str, text: str) -> str:
        return f"{self._key}/{_short(str(group))}/{name}/{_short(text)}"


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
