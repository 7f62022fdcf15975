"""What goes on beside the requests: silent runs, folding, and what need not be kept.

A clock that somebody sets, or that was wrong, leaps. What is decided here must not follow it: a run
that reported a moment ago is not silent, and one that ended today is not a month old.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable

from starlette.concurrency import run_in_threadpool

from snc_service.api.state import Service
from snc_service.settings import Settings
from snc_service.store.types import StoreError

# How often silence is looked for, as a part of the time that makes a run silent; seconds bound it.
SWEEPS = 10
MIN_SWEEP_SECONDS, MAX_SWEEP_SECONDS = 0.05, 15.0
# Folding takes a fifth of one core while there is something to fold.
FOLD_SECONDS, FOLD_PAUSE_SECONDS = 0.25, 1.0
KEEP_PAUSE_SECONDS = 300.0  # between looks at what is too old or too much
LAG_PAUSE_SECONDS = 0.25
LEAP_SECONDS = 2.0  # between two looks; a clock that is merely adjusted drifts by milliseconds

log = logging.getLogger(__name__)


def steady_seconds() -> float:
    """Return seconds that pass evenly whatever the clock is set to, a suspended machine's too."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


class Leaps:
    """How far ``clock`` (Unix time) has leapt against ``steady`` since this was made."""

    def __init__(self, clock: Callable[[], float], steady: Callable[[], float]) -> None:
        self._clock, self._steady = clock, steady
        self._ahead = self._last_at = math.nan
        self.total = 0.0
        self.look()
        self._last_at = steady()

    def look(self) -> float:
        """Return the Unix time, after taking note of a leap."""
        now, steady = self._clock(), self._steady()
        ahead = now - steady
        if abs(ahead - self._ahead) > LEAP_SECONDS:
            self.total += ahead - self._ahead
            self._last_at = steady
            log.warning("the clock leapt by %.0f seconds", ahead - self._ahead)
        self._ahead = ahead
        return now

    @property
    def quiet_seconds(self) -> float:
        """Return the steady seconds since the last leap, or since the start."""
        return self._steady() - self._last_at


def start_chores(
    service: Service, settings: Settings, steady: Callable[[], float]
) -> list[asyncio.Task[None]]:
    """Start what goes on until the tasks are cancelled."""
    silent_seconds = settings.silent_seconds
    heard, kept = Leaps(service.clock, steady), Leaps(service.clock, steady)

    def sweep() -> None:
        now = heard.look()
        # After a leap every run gets the time to report anew; after a start too, for while there
        # was no service none of them could.
        if heard.quiet_seconds >= silent_seconds:
            service.store.runs.mark_silent(now - silent_seconds, now)

    def fold() -> None:
        service.store.fold(FOLD_SECONDS, now=service.clock())

    def keep() -> None:
        deleted = []
        now = kept.look() - max(kept.total, 0.0)
        if settings.keep_days:
            deleted += service.store.runs.prune(now - settings.keep_days * 86_400)
        if settings.keep_bytes:
            deleted += service.store.runs.shrink(settings.keep_bytes)
        if settings.thin_days:
            for run in service.store.runs.thin(now - settings.thin_days * 86_400, service.clock()):
                log.info("run %r was thinned: SNC_THIN_DAYS says so", run)
        for run in deleted:
            log.info("run %r was deleted: SNC_KEEP_DAYS and SNC_KEEP_BYTES say so", run)

    pause = min(max(silent_seconds / SWEEPS, MIN_SWEEP_SECONDS), MAX_SWEEP_SECONDS)
    return [
        asyncio.create_task(_repeat(sweep, pause, "silent runs could not be looked for")),
        asyncio.create_task(_repeat(fold, FOLD_PAUSE_SECONDS, "history could not be folded")),
        asyncio.create_task(_repeat(keep, KEEP_PAUSE_SECONDS, "old runs could not be deleted")),
        asyncio.create_task(_watch_loop(service.exposition.observe_lag)),
    ]


async def _watch_loop(observe: Callable[[float], None]) -> None:
    """Measure by how much the event loop comes late: everything that it serves waits as long."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + LAG_PAUSE_SECONDS
        await asyncio.sleep(LAG_PAUSE_SECONDS)
        observe(max(0.0, loop.time() - due))


async def _repeat(chore: Callable[[], None], pause_seconds: float, failure: str) -> None:
    said = ""
    while True:
        await asyncio.sleep(pause_seconds)
        try:
            await run_in_threadpool(chore)
            said = ""
        except StoreError as error:
            if str(error) != said:  # a full disk is not filled further with what is known
                log.warning("%s: %s", failure, error)
            said = str(error)
        except Exception:  # a task's top: one defect must not end the chore for good
            log.exception(failure)
