"""Group commit: one thread writes what many requests bring, several batches per transaction.

There is no linger: whoever comes while a transaction runs is in the next one, so one client alone
waits for nobody and a hundred share the cost of reaching the disk.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from snc_service.store import Store
from snc_service.store.types import Advance, Outcome, StoreError, StoreUnavailable, Submission

MAX_ITEMS = 64  # per transaction
MAX_BYTES = 16 * 1024 * 1024  # of values, per transaction
MAX_WAITING = 1_024  # submissions; their bytes are bounded by the budget of those who submit

log = logging.getLogger(__name__)


class QueueFull(Exception):
    """Too many submissions wait already."""


class Closed(Exception):
    """The service is stopping: nothing more is taken."""


@dataclass(eq=False)
class _Waiting:
    submission: Submission
    num_bytes: int
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Outcome]  # changed by its loop's thread alone


class GroupCommit:
    """The only way into ``store.ingest``: a bounded queue and one thread.

    After `close` everything submitted is stored or refused, and the thread has ended.
    """

    def __init__(self, store: Store, advance: Advance) -> None:
        self._store = store
        self._advance = advance
        self._waiting: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="snc-commit", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Return how many submissions wait for their transaction."""
        return len(self._waiting)

    async def submit(self, submission: Submission, num_bytes: int) -> Outcome:
        """Return what became of a submission, once that is durable.

        Raises `QueueFull`, `Closed`, or what the store raised for its whole transaction. Refusals
        of this one submission are in the outcome.
        """
        loop = asyncio.get_running_loop()
        item = _Waiting(submission, num_bytes, loop, loop.create_future())
        with self._changed:
            if self._closed:
                raise Closed
            if len(self._waiting) >= MAX_WAITING:
                raise QueueFull
            self._waiting.append(item)
            self._changed.notify()
        return await item.future

    def close(self) -> None:
        """Take nothing more, store what waits, and return when that is done."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while items := self._next():
            self._commit(items)

    def _next(self) -> list[_Waiting]:
        """Wait for work and return one transaction's worth; empty: closed and nothing left."""
        items: list[_Waiting] = []
        while not items:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return []
                num_bytes = 0
                while self._waiting and len(items) < MAX_ITEMS and num_bytes < MAX_BYTES:
                    item = self._waiting.popleft()
                    # A client that has hung up need not be served; its batch was not acknowledged.
                    if not item.future.cancelled():
                        items.append(item)
                        num_bytes += item.num_bytes
        return items

    def _commit(self, items: list[_Waiting]) -> None:
        try:
            outcomes = self._store.batches.ingest(
                [item.submission for item in items], self._advance
            )
        except StoreUnavailable as error:
            _tell(items, [error] * len(items))
        except Exception as error:  # a thread's top: one bad batch must not stop the service
            self._apart(items, error)
        else:
            _tell(items, outcomes)

    def _apart(self, items: list[_Waiting], error: Exception) -> None:
        """Store each alone, so that only the one that breaks the transaction is refused."""
        if len(items) > 1:
            for item in items:
                self._commit([item])
            return
        if not isinstance(error, StoreError):
            run = items[0].submission.run
            log.error("a batch of run %r could not be stored", run, exc_info=error)
        _tell(items, [error])


def _tell(items: Sequence[_Waiting], told: Sequence[Outcome | Exception]) -> None:
    """Let those who wait go on: their loop is woken once for all of them."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Waiting, Outcome | Exception]]] = {}
    for pair in zip(items, told, strict=True):
        by_loop.setdefault(pair[0].loop, []).append(pair)
    for loop, pairs in by_loop.items():
        try:
            loop.call_soon_threadsafe(_settle, pairs)
        except RuntimeError:  # the loop has ended, and with it whoever waited
            continue


def _settle(pairs: Sequence[tuple[_Waiting, Outcome | Exception]]) -> None:
    for item, told in pairs:
        if item.future.done():  # its client has hung up meanwhile
            continue
        if isinstance(told, Exception):
            item.future.set_exception(told)
        else:
            item.future.set_result(told)
