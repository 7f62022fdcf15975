"""Group commit: one thread writes the batches of many requests, several per transaction.

There is no linger: a batch that arrives during a transaction is in the next one. A single client
waits for no other, and a hundred clients share the cost of a sync to disk.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from snc_service.store import Store
from snc_service.store.types import Outcome, StoreError, StoreUnavailable, Submission

MAX_ITEMS = 64  # per transaction
MAX_BYTES = 16 * 1024 * 1024  # of values, per transaction
MAX_WAITING = 1_024  # submissions; the budget of request bodies bounds their bytes

log = logging.getLogger(__name__)


class QueueFull(Exception):
    """The queue of waiting submissions is full."""


class Closed(Exception):
    """The service is stopping and accepts no submissions."""


@dataclass(eq=False)
class _Waiting:
    submission: Submission
    num_bytes: int
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Outcome]  # changed only by the thread of its loop


class GroupCommit:
    """The only caller of ``store.batches.ingest``: a bounded queue and one thread.

    After `close` everything submitted is stored or refused, and the thread has ended.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="snc-commit", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Return the number of submissions waiting for a transaction."""
        return len(self._waiting)

    async def submit(self, submission: Submission, num_bytes: int) -> Outcome:
        """Return the outcome of a submission once it is durable.

        Raises `QueueFull`, `Closed`, or the store's error for the whole transaction. A refusal of
        this one submission is in the outcome.
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
        """Stop accepting, store what waits and what follows from it, and return after that."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        try:
            self._store.batches.settle()
        except StoreError as error:  # the next service replays the rows
            log.warning("no checkpoint was written: %s", error)

    def _run(self) -> None:
        while items := self._next():
            self._store_together(items)

    def _next(self) -> list[_Waiting]:
        """Wait for work and return the items of one transaction; empty: closed and nothing left."""
        items: list[_Waiting] = []
        while not items:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return []
                num_bytes = 0
                while self._waiting and len(items) < MAX_ITEMS and num_bytes < MAX_BYTES:
                    item = self._waiting.popleft()
                    # A client that has disconnected is skipped; its batch was not acknowledged.
                    if not item.future.cancelled():
                        items.append(item)
                        num_bytes += item.num_bytes
        return items

    def _store_together(self, items: list[_Waiting]) -> None:
        try:
            outcomes = self._store.batches.ingest([item.submission for item in items])
        except StoreUnavailable as error:
            _tell(items, [error] * len(items))
        except Exception as error:  # a thread's top: one bad batch must not stop the service
            self._apart(items, error)
        else:
            _tell(items, outcomes)

    def _apart(self, items: list[_Waiting], error: Exception) -> None:
        """Store each item alone, so that only the one that breaks the transaction is refused."""
        if len(items) > 1:
            for item in items:
                self._store_together([item])
            return
        if not isinstance(error, StoreError):
            run = items[0].submission.run
            log.error("a batch of run %r could not be stored", run, exc_info=error)
        _tell(items, [error])


def _tell(items: Sequence[_Waiting], told: Sequence[Outcome | Exception]) -> None:
    """Resolve the futures of the items; each event loop is woken once for all of its items."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Waiting, Outcome | Exception]]] = {}
    for pair in zip(items, told, strict=True):
        by_loop.setdefault(pair[0].loop, []).append(pair)
    for loop, pairs in by_loop.items():
        try:
            loop.call_soon_threadsafe(_settle, pairs)
        except RuntimeError:  # the loop has ended, with all of its waiting requests
            continue


def _settle(pairs: Sequence[tuple[_Waiting, Outcome | Exception]]) -> None:
    for item, told in pairs:
        if item.future.done():  # its client disconnected in between
            continue
        if isinstance(told, Exception):
            item.future.set_exception(told)
        else:
            item.future.set_result(told)
