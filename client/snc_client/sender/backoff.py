"""When the sender thread waits, for how long, and when it stops hoping."""

from __future__ import annotations

import queue
import random
import time
from dataclasses import dataclass
from typing import Literal, TypeAlias

EndState: TypeAlias = Literal["finished", "failed"]


GONE_SECONDS = 1.0  # without an answer, before the end: the service counts as switched off


@dataclass(frozen=True)
class Pace:
    """When to send and how long to wait; the page is live, so a value waits half a second."""

    linger_seconds: float = 0.5
    batch_steps: int = 64  # waiting rows that go out before the linger is over
    batch_bytes: int = 4 * 2**20  # the wire takes 8 MiB; halved whenever a service says 413
    first_backoff_seconds: float = 0.5
    max_backoff_seconds: float = 30.0
    paused_seconds: float = 2.0  # between two questions whether a paused job may go on
    slow_retry_seconds: float = 30.0  # after a refusal that only a person can lift


class Patience:
    """The thread's clock: it sleeps here, and is woken by a row that is due or by the end.

    `ring` and `end` may be called from any thread, even from a finalizer.
    """

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        # A SimpleQueue may be rung while one of its own calls is interrupted by a finalizer.
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()
        # Not the global generator: the job's own random numbers stay as they are.
        self._jitter = random.Random()
        self._ended_at: float | None = None
        self._deadline = float("inf")
        # Until it has answered once, the service counts as away.
        self._failing_since: float | None = float("-inf")
        self.failures = 0  # in a row
        self.ending: EndState | None = None
        self.gave_up = False

    def ring(self) -> None:
        """Wake the thread: there is work."""
        self._bell.put(None)

    def end(self, timeout: float, state: EndState) -> None:
        """Ask the thread to flush and end within ``timeout`` seconds; the first call counts."""
        if self.ending is None:
            self._ended_at = time.monotonic()
            self._deadline = self._ended_at + timeout
            self.ending = state
            self.ring()

    def give_up(self) -> None:
        """Try nothing any more."""
        self.gave_up = True
        self.ring()

    def seconds_left(self, most: float) -> float:
        """Return how long one request may take: ``most``, less near the end, never nothing."""
        return min(most, max(self._deadline - time.monotonic(), 0.1))

    def wait(self, seconds: float | None) -> None:
        """Wait until the bell rings, at most ``seconds`` (None: for ever)."""
        try:
            self._bell.get(timeout=seconds)
            while True:
                self._bell.get_nowait()
        except queue.Empty:
            pass

    def succeeded(self) -> None:
        """Forget the failures so far."""
        self.failures = 0
        self._failing_since = None

    def back_off(self, retry_after: float | None, *, answered: bool) -> None:
        """Wait with full jitter on top of what was asked for.

        At the end, hope ends too: at the deadline, or at once for a service that does not answer
        and did not for a while before. (A job must not hang at its end because a service is
        switched off; one behind a bad network gets the time that there is.)
        """
        now = time.monotonic()
        self.failures += 1
        self._failing_since = self._failing_since or now
        if self._ended_at is not None:
            gone = not answered and self._failing_since < self._ended_at - GONE_SECONDS
            self.gave_up = self.gave_up or gone or now >= self._deadline
        doubled = self._pace.first_backoff_seconds * 2.0 ** min(self.failures - 1, 16)
        bound = min(doubled, self._pace.max_backoff_seconds)
        self._sleep((retry_after or 0.0) + self._jitter.uniform(0.0, bound))

    def ask_slowly(self) -> None:
        """Wait for a person to change something; at the end nobody will."""
        self.failures += 1
        self.gave_up = self.gave_up or self.ending is not None
        self._sleep(self._pace.slow_retry_seconds * self._jitter.uniform(0.5, 1.0))

    def _sleep(self, seconds: float) -> None:
        """Wait, less if the end comes meanwhile; new rows do not cut it short."""
        ending = self.ending
        until = min(time.monotonic() + seconds, self._deadline)
        while not self.gave_up and self.ending is ending and (left := until - time.monotonic()) > 0:
            self.wait(left)
