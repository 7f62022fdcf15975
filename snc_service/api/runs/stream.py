"""Server-Sent Events: a run's newest values and events, sent when they are stored.

Nothing is queued: each message is read from the store when its client is ready. So a slow reader
gets fewer messages but no old ones, and holds no memory. Writes of other processes are seen in the
same way.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends
from fastapi.responses import StreamingResponse
from fastapi.sse import format_sse_event
from pydantic_core import to_json
from starlette.concurrency import run_in_threadpool

from snc_service.api.conventions.parameters import RunName
from snc_service.api.history import layers
from snc_service.api.runs import events, runs
from snc_service.api.state import InAccess, InService, Service
from snc_service.api.system.openapi import responses
from snc_service.auth import Access
from snc_service.problems import Problem
from snc_service.store.types import EventQuery, Run, RunUnknown, StoreError

PAUSE_SECONDS: Final = 0.5  # between two reads: at most 2 messages a second
PING_SECONDS: Final = 15.0
WORST_LAYERS: Final = 50
MAX_EVENTS: Final = 100  # in one message; the list of events is complete
HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}

router = APIRouter(prefix="/api/v1", tags=["stream"])
EXAMPLE = (
    'event: update\nid: 131\ndata: {"run":{"run":"gpt-small-1","last_step":1200},'
    '"layers":[{"layer":"fc1.weight","sigma":1.2}],"events":[]}\n\n'
)


async def _place(service: InService, access: InAccess) -> AsyncIterator[None]:
    """Hold one of the places for streams until the answer is over.

    It is taken before anything is awaited: a thousand requests at once get no more than there are.
    """
    if service.draining:
        raise Problem("draining", "the service is stopping")
    if service.streams >= service.limits.streams:
        raise Problem("overloaded", f"{service.limits.streams} streams are open already")
    share = service.shares.of(access)
    if share is not None:
        share.check_streams()
        share.streams += 1
    service.streams += 1
    try:
        yield
    finally:
        service.streams -= 1
        if share is not None:
            share.streams -= 1


async def _existing(service: InService, run: RunName, _: Annotated[None, Depends(_place)]) -> Run:
    return await run_in_threadpool(service.store.runs.get, run)


@router.get(
    "/runs/{run}/stream",
    response_class=StreamingResponse,
    responses=responses(
        "run-unknown",
        "invalid",
        "overloaded",
        "draining",
        "store-unavailable",
        example=EXAMPLE,
        media_type="text/event-stream",
    ),
)
async def stream_run(
    service: InService, access: InAccess, found: Annotated[Run, Depends(_existing)]
) -> StreamingResponse:
    """Follow a run: one `update` now and one after every change; its `id` is the run's version.

    An update holds the run, its worst layers and the events since the last update. Nothing is
    replayed: after a broken connection, read the missed events from their list. The stream ends
    when the run is deleted, the service stops, or the token is no longer valid.
    """
    return StreamingResponse(
        _updates(service, access, found.run), media_type="text/event-stream", headers=HEADERS
    )


async def _updates(service: Service, access: Access, run: str) -> AsyncIterator[bytes]:
    version, last_event = -1, None
    spoke = time.monotonic()
    try:
        while not service.draining and service.tokens.counts(access):
            found = await run_in_threadpool(service.store.runs.get, run)
            if found.version != version:
                update = await run_in_threadpool(_update, service, found, last_event)
                version, last_event, spoke = found.version, update.pop("seen"), time.monotonic()
                yield format_sse_event(
                    data_str=to_json(update, inf_nan_mode="null").decode(),
                    event="update",
                    id=str(version),
                )
            elif time.monotonic() - spoke > PING_SECONDS:
                spoke = time.monotonic()
                yield format_sse_event(comment="ping")
            await asyncio.sleep(PAUSE_SECONDS)
            await service.tokens.refresh()
    except RunUnknown:
        yield format_sse_event(data_str="{}", event="deleted")
    except StoreError:
        return  # the client reconnects and gets the reason


def _update(service: Service, run: Run, last_event: int | None) -> dict[str, Any]:
    """Return the message; ``seen`` in it is the id of the newest event in the store."""
    latest = service.store.histories.latest(run.run)
    worst = layers.worst_first(service, run, latest)[:WORST_LAYERS]
    page = service.store.events.page(EventQuery(run=run.run, limit=MAX_EVENTS))
    newest = max((stored.id for stored in page.items), default=0)
    # The first message is the current state; earlier events are in the list of events.
    since = newest if last_event is None else last_event
    return {
        "run": runs.as_item(run),
        "layers": layers.as_items(latest, worst),
        "events": [events.as_item(stored) for stored in page.items if stored.id > since],
        "seen": max(newest, since),
    }
