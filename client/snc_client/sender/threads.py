"""The threads of a sender, and its end: by the job's wish, its disappearance or the exit."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
from collections.abc import Callable, Sequence

from snc_client.sender.backoff import EndState, Patience
from snc_client.sender.delivery import Delivery
from snc_client.sender.http import THREAD_NAME

CLOSE_SECONDS = 5.0

_log = logging.getLogger("snc")


class Lifetime:
    """Starts the threads and ends them. In a forked child it does nothing at all.

    The sender thread does what is ``before``, then ``delivery``; what is ``beside`` has threads of
    its own. All are daemons: none outlives the interpreter, none holds it up beyond `end`.
    """

    def __init__(
        self,
        delivery: Delivery,
        patience: Patience,
        *,
        before: Sequence[Callable[[], object]] = (),
        beside: Sequence[Callable[[], object]] = (),
    ) -> None:
        self._pid = os.getpid()
        self._delivery = delivery
        self._patience = patience
        self._threads = [
            threading.Thread(target=self._guarded, args=work, name=THREAD_NAME, daemon=True)
            for work in ((*before, delivery.run), *((one,) for one in beside))
        ]

    def start(self) -> None:
        """Start the threads; from here on the exit of the interpreter ends them."""
        atexit.register(self._at_exit)
        # The sender thread last: its import of httpx would compete with the other starts.
        for thread in reversed(self._threads):
            thread.start()

    def ask(self, timeout: float, state: EndState) -> None:
        """Let the threads flush and end, and return at once."""
        if os.getpid() == self._pid:
            self._patience.end(timeout, state)

    def end(self, timeout: float, state: EndState) -> None:
        """Flush for at most ``timeout`` seconds and say once what was lost; once only."""
        if os.getpid() != self._pid or self._delivery.state == "closed":
            return
        self._patience.end(timeout, state)
        self._threads[0].join(timeout)
        atexit.unregister(self._at_exit)
        self._patience.give_up()
        self._delivery.abandon()
        self._say()

    def _guarded(self, *work: Callable[[], object]) -> None:
        for part in work:
            try:
                part()
            except Exception as error:  # the top of a thread: logged and counted
                self._delivery.troubles.say(
                    f"part {part!r}", "a part of the sender failed on its own: %r", error
                )

    def _say(self) -> None:
        delivery = self._delivery
        if delivery.dropped_values:
            _log.warning(
                "snc: %d values reached the service, %d are lost (last trouble: %s)",
                delivery.sent_values,
                delivery.dropped_values,
                delivery.troubles.last_error,
            )
        if delivery.kept_values:
            _log.warning(
                "snc: %d values wait in the spool for the next job or `snc replay`",
                delivery.kept_values,
            )

    def _at_exit(self) -> None:
        # Set by the interpreter when an exception ends the program.
        self.end(CLOSE_SECONDS, "failed" if getattr(sys, "last_value", None) else "finished")
