"""SenderThreads: start the threads of a sender, and end them at `close` or at interpreter exit."""

from __future__ import annotations

import atexit
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence

from snc_client.sender.backoff import Backoff, EndState
from snc_client.sender.delivery import Delivery
from snc_client.sender.http import THREAD_NAME

CLOSE_SECONDS = 5.0

_log = logging.getLogger("snc")


class SenderThreads:
    """Starts and ends the threads. In a forked child every method does nothing.

    The sender thread runs ``before`` in order, then ``delivery``; each of ``beside`` runs in a
    thread of its own, once the threads of ``after`` have delivered. All are daemon threads: the
    interpreter does not wait for them beyond `end`.
    """

    def __init__(
        self,
        delivery: Delivery,
        backoff: Backoff,
        *,
        before: Sequence[Callable[[], object]] = (),
        beside: Sequence[Callable[[], object]] = (),
        after: SenderThreads | None = None,
    ) -> None:
        self._pid = os.getpid()
        self._started = False
        self._delivery = delivery
        self._backoff = backoff
        self._after = after
        if after is not None:
            before = (after.join, *before)
        self._threads = [
            threading.Thread(target=self._guarded, args=work, name=THREAD_NAME, daemon=True)
            for work in ((*before, delivery.run), *((one,) for one in beside))
        ]

    def start(self, *, at_exit: bool = True) -> None:
        """Start the threads; ``at_exit``: register their end at interpreter exit."""
        self._started = True
        if at_exit:
            atexit.register(self._at_exit)
        # The sender thread starts last: its import of httpx would delay the others.
        for thread in reversed(self._threads):
            thread.start()

    def join(self) -> None:
        """Wait until the sender thread has ended."""
        self._threads[0].join()

    def request_end(self, timeout: float, state: EndState) -> None:
        """Ask the threads to flush and end; return at once."""
        if os.getpid() == self._pid:
            self._backoff.end(timeout, state)
            if self._after is not None and timeout < math.inf:
                self._after.request_end(timeout, "continued")

    def end(self, timeout: float, state: EndState) -> None:
        """Flush for at most ``timeout`` seconds and log the losses; later calls do nothing."""
        if os.getpid() != self._pid or self._delivery.state == "closed":
            return
        self._backoff.end(timeout, state)
        deadline = time.monotonic() + timeout
        if self._after is not None:
            self._after.end(timeout / 2, "continued")
        if self._started:
            self._threads[0].join(max(deadline - time.monotonic(), 0.0))
        atexit.unregister(self._at_exit)
        self._backoff.give_up()
        self._delivery.abandon()
        self._log_losses()

    def _guarded(self, *work: Callable[[], object]) -> None:
        for part in work:
            try:
                part()
            except Exception as error:  # top of the thread: logged and counted
                self._delivery.failures.record(
                    f"part {part!r}", "a part of the sender failed on its own: %r", error
                )

    def _log_losses(self) -> None:
        delivery = self._delivery
        if delivery.dropped_values:
            _log.warning(
                "snc: %d values reached the service, %d are lost (last trouble: %s)",
                delivery.sent_values,
                delivery.dropped_values,
                delivery.failures.last_error,
            )
        if delivery.kept_values:
            _log.warning(
                "snc: %d values wait in the spool for the next job or `snc replay`",
                delivery.kept_values,
            )

    def _at_exit(self) -> None:
        # The interpreter sets last_value when an exception ends the program.
        self.end(CLOSE_SECONDS, "failed" if getattr(sys, "last_value", None) else "finished")
