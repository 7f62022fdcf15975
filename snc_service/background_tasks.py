"""Background tasks: silent runs, folding, deletion, thinning, verification, giving memory back.

A clock leaps when it is set or corrected. These tasks must not follow it: a run that just reported
is not silent, and one that ended today is not a month old.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import math
import sys
import time
from collections import deque
from collections.abc import Callable

from starlette.concurrency import run_in_threadpool

from snc_service.api.state import Service
from snc_service.settings import Settings
from snc_service.store.types import StoreError

# Checks for silence per ``silent_seconds``; their interval is bounded by the seconds below.
SWEEPS = 10
MIN_SWEEP_SECONDS, MAX_SWEEP_SECONDS = 0.05, 15.0
# Folding takes a fifth of one core while there is something to fold. The pause doubles while there
# is nothing.
FOLD_SECONDS, FOLD_PAUSE_SECONDS, FOLD_IDLE_SECONDS = 0.25, 1.0, 8.0
VERIFY_PAUSE_SECONDS = 86_400.0  # between verifications of all that is stored
KEEP_PAUSE_SECONDS = 300.0  # between checks of age and size of history, and of events
TRIM_PAUSE_SECONDS = 30.0
LAG_PAUSE_SECONDS = 0.25
LEAP_SECONDS = 2.0  # between two readings; an adjusted clock drifts only by milliseconds

log = logging.getLogger(__name__)


def steady_seconds() -> float:
    """Return seconds of a clock that never leaps and, where possible, counts suspended time."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


class Leaps:
    """The leaps of ``clock`` (Unix time) against ``steady`` since the object was made."""

    def __init__(self, clock: Callable[[], float], steady: Callable[[], float]) -> None:
        self._clock, self._steady = clock, steady
        self._ahead = self._last_at = math.nan
        self.total = 0.0
        self.look()
        self._last_at = steady()

    def look(self) -> float:
        """Return the Unix time, after recording a leap."""
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


class Stops:
    """The times in which this process did not run: stopped, suspended, or starved of its processor.

    Nobody could be heard then. ``pause_seconds`` lie between two looks of one that runs.
    """

    def __init__(self, pause_seconds: float, steady: Callable[[], float] = steady_seconds) -> None:
        self._pause, self._steady = pause_seconds, steady
        self._last = steady()
        self._stops: deque[tuple[float, float]] = deque()  # (its end, its seconds)

    def heard_since(self, seconds: float) -> float:
        """Return how far back ``seconds`` reach in which this process ran. Call it at each look."""
        now = self._steady()
        if now - self._last > 2 * self._pause:
            self._stops.append((now, now - self._last - self._pause))
        self._last = now
        back = seconds
        for end, lost in reversed(self._stops):
            if now - end < back:
                back += lost
        while self._stops and now - self._stops[0][0] > back:
            self._stops.popleft()
        return back


def give_memory_back() -> None:
    """Return freed memory to the system, where that can be asked for.

    glibc keeps what large reads have freed: 70 MB after six of them at once. Other threads of
    Python run meanwhile.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def start_chores(
    service: Service, settings: Settings, steady: Callable[[], float]
) -> list[asyncio.Task[None]]:
    """Start the background tasks; they run until they are cancelled."""
    silent_seconds = settings.silent_seconds
    pause = min(max(silent_seconds / SWEEPS, MIN_SWEEP_SECONDS), MAX_SWEEP_SECONDS)
    heard, kept = Leaps(service.clock, steady), Leaps(service.clock, steady)
    stops = Stops(pause)

    def sweep() -> None:
        now = heard.look()
        # After a leap or a start every run gets the full time to report again: while there was no
        # service none of them could.
        back = stops.heard_since(silent_seconds)
        if heard.quiet_seconds >= silent_seconds:
            service.store.runs.mark_silent(now - back, now)

    def fold() -> bool:
        share = service.store.replicas.share()
        return service.store.fold(FOLD_SECONDS, now=service.clock(), share=share) > 0

    def keep() -> None:
        service.store.events.forget()
        service.store.incidents.forget()
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

    def verify() -> None:
        service.store.damages.verify()

    return [
        asyncio.create_task(_repeat(sweep, pause, "silent runs could not be looked for")),
        asyncio.create_task(
            _repeat(fold, FOLD_PAUSE_SECONDS, "history could not be folded", FOLD_IDLE_SECONDS)
        ),
        asyncio.create_task(_repeat(keep, KEEP_PAUSE_SECONDS, "old runs could not be deleted")),
        asyncio.create_task(
            _repeat(verify, VERIFY_PAUSE_SECONDS, "the store could not be verified")
        ),
        asyncio.create_task(
            _repeat(give_memory_back, TRIM_PAUSE_SECONDS, "memory could not be given back")
        ),
        asyncio.create_task(_watch_loop(service.exposition.observe_lag)),
    ]


async def _watch_loop(observe: Callable[[float], None]) -> None:
    """Measure the delay of the event loop, which delays every request as long."""
    while True:  # the clock of a loop may stand still while it works
        due = time.monotonic() + LAG_PAUSE_SECONDS
        await asyncio.sleep(LAG_PAUSE_SECONDS)
        observe(max(0.0, time.monotonic() - due))


async def _repeat(
    chore: Callable[[], bool | None],
    pause_seconds: float,
    failure: str,
    idle_seconds: float | None = None,
) -> None:
    """Repeat a chore; with ``idle_seconds`` the pause doubles up to them while it does nothing."""
    said = ""
    pause = pause_seconds
    while True:
        await asyncio.sleep(pause)
        pause = pause_seconds if idle_seconds is None else min(2 * pause, idle_seconds)
        try:
            if await run_in_threadpool(chore):
                pause = pause_seconds
            said = ""
        except StoreError as error:
            if str(error) != said:  # once per error: the log must not fill a full disk
                log.warning("%s: %s", failure, error)
            said = str(error)
        except Exception:  # a task's top: one defect must not end the task for good
            log.exception(failure)
