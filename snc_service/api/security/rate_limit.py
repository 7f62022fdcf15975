"""Limits per token: requests per second, concurrent requests, reads and streams, bytes held."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from anyio import CapacityLimiter

from snc_service.auth import Access
from snc_service.problems import Problem


@dataclass(frozen=True)
class ShareLimits:
    """The most that one token may have."""

    requests_per_second: float
    inflight_bytes: int
    at_once: int
    reads: int = 4  # of much history; more of them wait
    streams: int = 64


class Share:
    """One token's part. A bucket holds one second's requests and fills at that rate.

    ``exports`` and ``streams`` are those of its requests that hold a place of the few there are;
    ``reading`` has the places of its reads of much history.
    """

    def __init__(self, limits: ShareLimits, clock: Callable[[], float]) -> None:
        self._rate = limits.requests_per_second
        self._burst = max(self._rate, 1.0)
        self._left = self._burst
        self._limit = limits.inflight_bytes
        self._most = limits.at_once
        self._most_streams = limits.streams
        self.reading = CapacityLimiter(limits.reads)
        self._clock = clock
        self._at = clock()
        self.held = 0
        self.under_way = 0
        self.exports = 0
        self.streams = 0

    def check_streams(self) -> None:
        """Raise `Problem` (429) if the token has as many streams as one may have."""
        if self.streams >= self._most_streams:
            raise Problem(
                "rate-limited", f"streams of one token must be at most {self._most_streams}"
            )

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Count a request while it lasts. Raises `Problem` (429) if there are too many."""
        if self.under_way >= self._most:
            raise Problem(
                "rate-limited",
                f"requests of one token under way must be at most {self._most}, streams included",
            )
        self.under_way += 1
        try:
            yield
        finally:
            self.under_way -= 1

    def ask(self) -> None:
        """Count a request. Raises `Problem` (429) with the time until the next one is allowed."""
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1:
            seconds = math.ceil((1 - self._left) / self._rate)
            raise Problem(
                "rate-limited",
                f"requests of one token must be at most {self._rate:g} per second",
                headers={"Retry-After": str(seconds)},
            )
        self._left -= 1

    def take(self, num_bytes: int) -> None:
        """Charge bytes. Raises `Problem` (429) if the limit would be exceeded."""
        if self.held + num_bytes > self._limit:
            raise Problem(
                "rate-limited",
                f"bodies of one token that are read at once must be at most {self._limit} bytes",
            )
        self.held += num_bytes

    def give_back(self, num_bytes: int) -> None:
        """Release charged bytes."""
        self.held -= num_bytes


class Shares:
    """The shares of all tokens, created at first use. For the event loop's thread."""

    def __init__(self, limits: ShareLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._of: dict[str, Share] = {}

    def of(self, access: Access) -> Share | None:
        """Return the share of a client; None without a token, when there is no limit."""
        if access.token is None:
            return None
        if access.token.id not in self._of:
            self._of[access.token.id] = Share(self._limits, self._clock)
        return self._of[access.token.id]
