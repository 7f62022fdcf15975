"""RankRelay: one policy, one set of commands and one run for all ranks of a job.

The ranks meet in the key-value store of their process group. No collective is needed, so a rank
without a callback, or one that ends early, makes nobody wait.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from snc_client.callback.model.distributed import ranks, shared_store
from snc_service.wire import Command, Policy

log = logging.getLogger("snc")

PERIOD = 10  # steps between two looks into the store; what is said at one is obeyed at the next

T = TypeVar("T")

_made = itertools.count()


@dataclass(frozen=True)
class News:
    """What the service has sent since the last look."""

    policy: tuple[int, Policy] | None = None
    commands: Sequence[Command] = ()

    def __bool__(self) -> bool:
        return self.policy is not None or bool(self.commands)


@dataclass(frozen=True)
class RankPart:
    """Whether a rank reports, into which run, and the names of the layers that rank 0 reports."""

    reports: bool
    run: str
    others: frozenset[str]


class RankRelay:
    """Carries news from rank 0 to all ranks, to be obeyed at one and the same step of all.

    The ranks are told apart by the order in which their callbacks were made, and steps by how often
    `at_step` was called: both must be the same on all ranks. Cost: one request to the store in
    `PERIOD` steps, 0.1 ms, and two at the first step.
    """

    def __init__(self) -> None:
        self._key = f"snc/{next(_made)}"
        self._calls = 0
        self._counted = False
        self._pending = News()
        self._published: News | None = None
        self._said = False

    def at_step(self, take: Callable[[], News]) -> News:
        """Return what every rank must obey from this step on; ``take`` gives rank 0 its news."""
        self._calls += 1
        if ranks()[0] and not self._counted:
            self._counted = bool(self._asked(lambda store: store.add(f"{self._key}/callbacks", 1)))
        if self._calls % PERIOD:
            return News()
        period = self._calls // PERIOD
        if ranks()[0]:
            return self._received(period - 1)
        due, self._published = self._published, None
        self._publish(period, take())
        return due or News()

    def announce(self, run: str | None, names: Iterable[str]) -> None:
        """Tell the other ranks which run and which layers rank 0 reports."""
        text = json.dumps({"run": run, "layers": sorted(names)})
        self._asked(lambda store: store.set(f"{self._key}/job", text))

    def part(self, names: Sequence[str]) -> RankPart | None:
        """Return what this rank, whose layers are ``names``, has to report.

        None while rank 0 has not yet announced its own layers. A rank whose layers rank 0 has too
        is a replica. Of several ranks with the same other layers, the first one that asks reports
        them.
        """
        text = self._asked(lambda store: _value(store, f"{self._key}/job"))
        if text is None:
            return None
        job = json.loads(text)
        others = frozenset(job["layers"])
        if job["run"] is None or others.issuperset(names):
            return RankPart(False, "", others)
        rank = str(ranks()[0])
        digest = hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:16]
        key = f"{self._key}/part/{digest}"
        first = self._asked(lambda store: bytes(store.compare_set(key, "", rank)).decode())
        return None if first is None else RankPart(first == rank, job["run"], others)

    def _publish(self, period: int, news: News) -> None:
        pending = News(
            news.policy or self._pending.policy, (*self._pending.commands, *news.commands)
        )
        self._pending = pending
        if not pending or not self._all_there():
            return
        policy = pending.policy and (pending.policy[0], pending.policy[1].as_dict())
        text = json.dumps({"policy": policy, "commands": [x.as_dict() for x in pending.commands]})
        if self._asked(lambda store: (store.set(f"{self._key}/{period}", text), True)[1]):
            self._pending, self._published = News(), pending

    def _received(self, period: int) -> News:
        text = self._asked(lambda store: _value(store, f"{self._key}/{period}"))
        if text is None:
            return News()
        told = json.loads(text)
        policy = told["policy"] and (told["policy"][0], Policy.parse(told["policy"][1]))
        return News(policy, Command.parse_all(told["commands"]))

    def _all_there(self) -> bool:
        """Return whether every other rank has a callback that obeys."""
        others = ranks()[1] - 1
        found = self._asked(lambda store: store.add(f"{self._key}/callbacks", 0))
        if found == others:
            return True
        if not self._said:
            self._said = True
            log.warning(
                "snc: policies and commands of the service wait: a callback that counts steps is "
                "needed on all %d ranks, %s others have one",
                others + 1,
                "no" if found is None else found,
            )
        return False

    def _asked(self, ask: Callable[[Any], T]) -> T | None:
        """Return the answer of the store; None if there is none, or it failed."""
        store = shared_store()
        try:
            return None if store is None else ask(store)
        except RuntimeError as error:  # of the store: its host is gone, or a wait took too long
            if not self._said:
                self._said = True
                log.warning("snc: the ranks do not reach each other: %s", error)
            return None


def _value(store: Any, key: str) -> str | None:
    """Return the value of a key, without a wait for it."""
    return bytes(store.get(key)).decode() if store.check([key]) else None
