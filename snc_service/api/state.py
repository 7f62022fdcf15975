"""The state that the routes of one app share: its parts and limits, without module globals."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Annotated

from anyio import CapacityLimiter
from fastapi import Depends, Request
from starlette.concurrency import run_in_threadpool

from snc_service.alerts import Alerts
from snc_service.api.growth import Growth
from snc_service.api.security.rate_limit import Shares
from snc_service.auth import Access, TokenCache
from snc_service.exposition import Exposition
from snc_service.group_commit import GroupCommit
from snc_service.problems import Problem
from snc_service.store import Store
from snc_service.store.types import StoreError

log = logging.getLogger(__name__)

INFLATING = 2
READY_SECONDS = 1.0
ACCESS = "snc.access"  # where the ASGI scope of a request holds its `Access`


@dataclass(frozen=True)
class Limits:
    """The most that one request, and all of them together, may send."""

    body_bytes: int
    json_bytes: int
    inflight_bytes: int
    body_deadline_seconds: float
    token_inflight_bytes: int
    token_requests_per_second: float
    token_requests_at_once: int
    token_runs: int
    streams: int


class Budget:
    """Bytes of request bodies held at once, charged on arrival. For the event loop's thread."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0

    def take(self, num_bytes: int) -> None:
        """Charge bytes. Raises `Problem` (503) if the limit would be exceeded."""
        if self.held + num_bytes > self.limit:
            raise Problem("overloaded", f"{self.limit} bytes of bodies are already being read")
        self.held += num_bytes

    def give_back(self, num_bytes: int) -> None:
        """Release charged bytes."""
        self.held -= num_bytes


class Readiness:
    """Whether the store can be written, as it was at most `READY_SECONDS` ago. For one event loop.

    Everybody may ask: the store is asked once a second, whoever waits for that holds no thread.
    """

    def __init__(self, check: Callable[[], list[str]]) -> None:
        self._check = check
        self._away: list[str] = []
        self._error: StoreError | None = None
        self._checked_at = -READY_SECONDS
        self._checking = asyncio.Lock()

    async def check(self) -> int:
        """Return the number of nodes that are away; raise what the store raised."""
        async with self._checking:
            if time.monotonic() - self._checked_at >= READY_SECONDS:
                try:
                    self._tell(await run_in_threadpool(self._check))
                    self._error = None
                except StoreError as error:
                    self._error = error
                self._checked_at = time.monotonic()
        if self._error is not None:
            raise self._error
        return len(self._away)

    def _tell(self, away: list[str]) -> None:
        """Name in the log what is away, once for each change: whoever asks may be a stranger."""
        if away != self._away:
            log.warning("nodes of the cluster that cannot be reached: %s", away or "none")
        self._away = away


@dataclass
class Service:
    """The parts of one app, complete once its lifespan has started."""

    store: Store
    commits: GroupCommit
    exposition: Exposition
    alerts: Alerts
    limits: Limits
    budget: Budget
    tokens: TokenCache
    shares: Shares
    readiness: Readiness
    # Reads of much history at once. Ingest, too, needs threads, connections and processor time.
    reading: CapacityLimiter
    clock: Callable[[], float]  # Unix seconds
    public_host: str | None = None
    growth: Growth = field(default_factory=Growth)
    # Bodies inflated at once: cores are few, and a body that waits holds no memory.
    inflating: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(INFLATING))
    draining: bool = False
    streams: int = 0
    exports: int = 0
    # One piece of an export is made at a time: the others wait and hold little memory.
    exporting: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(1))


async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


InService = Annotated[Service, Depends(_service)]


def access_of(request: Request) -> Access:
    """Return the access that authentication stored; every route has one."""
    access: Access = request.scope[ACCESS]
    return access


async def _access(request: Request) -> Access:
    return access_of(request)


InAccess = Annotated[Access, Depends(_access)]


async def read_place(service: InService, access: InAccess) -> AsyncIterator[None]:
    """Hold a place for a read of much history; one that finds none waits.

    The places of one token are taken first, so that its reads do not wait in those of all.
    """
    share = service.shares.of(access)
    async with share.reading if share is not None else nullcontext(), service.reading:
        yield
