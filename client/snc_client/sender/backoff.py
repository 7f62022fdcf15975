"""Backoff: when the sender thread waits, for how long, and when it gives up."""

from __future__ import annotations

import math
import queue
import random
import time
from dataclasses import dataclass
from typing import Literal, TypeAlias

EndState: TypeAlias = Literal["finished", "failed", "continued"]
"""``continued``: the sender delivers its rows and closes nothing, the run goes on without it."""

GONE_SECONDS = 1.0  # without an answer before the end: the service counts as unreachable


@dataclass(frozen=True)
class Pace:
    """When to send and how long to wait. A value waits half a second, because the page is live."""

    linger_seconds: float = 0.5
    batch_steps: int = 64  # rows that are sent before ``linger_seconds`` have passed
    batch_bytes: int = 4 * 2**20  # the wire takes 8 MiB; halved whenever a service answers 413
    first_backoff_seconds: float = 0.5
    max_backoff_seconds: float = 30.0
    paused_seconds: float = 2.0  # between two polls for commands while the job is paused
    slow_retry_seconds: float = 30.0  # after a refusal that needs a change by a person


class Backoff:
    """Waits of one delivery: exponential with jitter, and cut short by a due row or by the end.

    `wake` and `end` may be called from any thread, even from a finalizer.
    """

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        # SimpleQueue.put is reentrant: a finalizer may interrupt another call of this queue.
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()
        # A generator of its own: the random numbers of the job must not change.
        self._jitter = random.Random()
        self._ended_at: float | None = None
        self._deadline = float("inf")
        # Until its first answer the service counts as unreachable.
        self._failing_since: float | None = float("-inf")
        self.failures_in_a_row = 0
        self.ending: EndState | None = None
        self.gave_up = False

    def wake(self) -> None:
        """Wake the thread because there is work."""
        self._bell.put(None)

    def end(self, timeout: float, state: EndState) -> None:
        """Ask the thread to flush and end within ``timeout`` seconds; a later call may hurry it."""
        now = time.monotonic()
        self.ending = self.ending or state
        if timeout < math.inf:
            self._ended_at = self._ended_at or now
        self._deadline = min(self._deadline, now + timeout)
        self.wake()

    def give_up(self) -> None:
        """Stop all attempts and wake the thread."""
        self.gave_up = True
        self.wake()

    def seconds_left(self, most: float) -> float:
        """Return the timeout of one request: ``most``, or less near the end, at least 0.1 s."""
        return min(most, max(self._deadline - time.monotonic(), 0.1))

    def wait(self, seconds: float | None) -> None:
        """Wait for `wake`, at most ``seconds`` (None: without a limit)."""
        try:
            self._bell.get(timeout=seconds)
            while True:
                self._bell.get_nowait()
        except queue.Empty:
            pass

    def succeeded(self) -> None:
        """Reset the count of failures in a row."""
        self.failures_in_a_row = 0
        self._failing_since = None

    def back_off(self, retry_after: float | None, *, answered: bool) -> None:
        """Wait ``retry_after`` seconds plus a backoff with full jitter.

        After `end`, give up at the deadline; give up at once if the service does not answer and
        had not answered for `GONE_SECONDS` before `end`. A job must not hang at its end because
        the service is switched off, but a bad network gets the time until the deadline.
        """
        now = time.monotonic()
        self.failures_in_a_row += 1
        self._failing_since = self._failing_since or now
        if self._ended_at is not None:
            gone = not answered and self._failing_since < self._ended_at - GONE_SECONDS
            self.gave_up = self.gave_up or gone or now >= self._deadline
        doubled = self._pace.first_backoff_seconds * 2.0 ** min(self.failures_in_a_row - 1, 16)
        bound = min(doubled, self._pace.max_backoff_seconds)
        self._sleep((retry_after or 0.0) + self._jitter.uniform(0.0, bound))

    def ask_slowly(self) -> None:
        """Wait long, because only a person can fix the cause; after `end` give up instead."""
        self.failures_in_a_row += 1
        self.gave_up = self.gave_up or self._ended_at is not None
        self._sleep(self._pace.slow_retry_seconds * self._jitter.uniform(0.5, 1.0))

    def _sleep(self, seconds: float) -> None:
        """Wait ``seconds``, or less if `end` is called meanwhile; new rows do not shorten it."""
        ending = self.ending
        until = min(time.monotonic() + seconds, self._deadline)
        while not self.gave_up and self.ending is ending and (left := until - time.monotonic()) > 0:
            self.wait(left)
