"""`create_app` assembles the service from its parts."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import fields
from functools import cache
from typing import Final

from anyio import CapacityLimiter
from fastapi import Depends, FastAPI
from starlette.concurrency import run_in_threadpool

from snc_service import __version__, problems, ui
from snc_service.alerts import Alerts
from snc_service.alerts.address import networks
from snc_service.api.alerting import incidents, routing, silences
from snc_service.api.conventions.head import HeadRequests
from snc_service.api.history import compare, export, heatmap, history, layers, onset, worst
from snc_service.api.ingest import batches
from snc_service.api.ingest.fast_path import ShortCut
from snc_service.api.runs import (
    annotation,
    commands,
    events,
    policies,
    rule_settings,
    run_changes,
    run_creation,
    runs,
    stream,
)
from snc_service.api.security import audit, authorization, session, tokens
from snc_service.api.security.access_log import AccessLog
from snc_service.api.security.authentication import AuthenticationMiddleware
from snc_service.api.security.rate_limit import ShareLimits, Shares
from snc_service.api.state import Budget, Limits, Readiness, Service, read_place
from snc_service.api.system import docs, health, openapi, prometheus
from snc_service.auth import TokenCache
from snc_service.background_tasks import start_chores, steady_seconds
from snc_service.detect.rules import RunRules
from snc_service.exposition import Exposition
from snc_service.group_commit import GroupCommit
from snc_service.settings import LOOPBACK_NAMES, Settings
from snc_service.store import Store, open_store
from snc_service.store.types import Bounds, RunBounds, StoreBounds

# In the order of the API reference.
ROUTERS: Final = tuple(
    part.router
    for part in (
        run_creation,
        runs,
        run_changes,
        batches,
        layers,
        onset,
        worst,
        history,
        compare,
        heatmap,
        export,
        events,
        policies,
        rule_settings,
        annotation,
        commands,
        incidents,
        silences,
        routing,
        stream,
        prometheus,
        tokens,
        audit,
        session,
        health,
        docs,
    )
)

# Their answers are made of much that is stored, or of what all runs have.
HEAVY: Final = tuple(
    part.router for part in (layers, onset, worst, history, compare, heatmap, prometheus)
)


def create_app(
    settings: Settings | None = None,
    *,
    store: Store | None = None,
    clock: Callable[[], float] = time.time,
    steady: Callable[[], float] = steady_seconds,
) -> FastAPI:
    """Return a service with ``settings``, by default from the environment.

    ``store`` replaces the store of the settings; the caller closes it. ``clock`` is Unix time,
    which may leap; ``steady`` counts elapsed seconds. Nothing is opened before the app's
    lifespan starts, and two apps in one process share nothing. Raises `SettingsError`. The start
    raises `StoreUnavailable`, and `SettingsError` if a service without any token would be reachable
    from outside.
    """
    settings = Settings.from_env(os.environ) if settings is None else settings

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        opened = store
        if opened is None:
            opened = await run_in_threadpool(
                open_store,
                settings.store,
                _bounds(settings),
                connections=settings.store_connections,
                read_url=settings.store_read,
            )
        service = app.state.service = _join(settings, opened, clock)
        chores: list[asyncio.Task[None]] = []
        try:
            await service.tokens.refresh()
            settings.check_exposure(service.tokens.required)
            chores = start_chores(service, settings, steady)
            service.alerts.start()
            yield
        finally:
            service.draining = True
            for chore in chores:
                chore.cancel()
            await asyncio.gather(*chores, return_exceptions=True)
            await run_in_threadpool(service.commits.close)
            await run_in_threadpool(service.alerts.close)
            if store is None:
                await run_in_threadpool(opened.close)

    app = FastAPI(
        title="snc",
        version=__version__,
        description="Stores, serves, exposes and shows the sigma of every layer while it trains.",
        lifespan=lifespan,
        docs_url=None,  # the page of FastAPI loads external scripts; ours: api/system/docs.py
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
    )
    problems.install(app)
    authorization.check_complete(ROUTERS)
    for router in ROUTERS:
        needs = [Depends(authorization.authorised)]
        if router in HEAVY:  # the place is free again before the answer is sent
            needs.append(Depends(read_place, scope="function"))
        app.include_router(router, dependencies=needs)
    ui.mount(app)
    app.add_middleware(ShortCut)
    app.add_middleware(HeadRequests)
    app.add_middleware(AuthenticationMiddleware, hosts=_served_hosts(settings))
    app.add_middleware(AccessLog)  # the last added is the outermost: it also sees refusals
    schema = cache(lambda: openapi.build(app, ROUTERS))
    app.openapi = schema  # type: ignore[method-assign]
    return app


def drain(app: FastAPI) -> None:
    """Prepare the stop of the process: not ready, no new batches, streams end.

    For a signal handler, because a server waits for open streams before it ends the lifespan. Does
    nothing before the lifespan has started.
    """
    service: Service | None = getattr(app.state, "service", None)
    if service is not None:
        service.draining = True


def _join(settings: Settings, store: Store, clock: Callable[[], float]) -> Service:
    store.batches.judge_with(RunRules, RunRules.advance_together)
    exposition = Exposition(store, max_series=settings.metrics_series, clock=clock)
    service = Service(
        store=store,
        commits=GroupCommit(store),
        exposition=exposition,
        alerts=Alerts(
            store,
            allowed=networks(settings.alert_networks),
            most_a_minute=settings.alert_messages_per_minute,
            observe=exposition.observe_delivery,
            clock=clock,
        ),
        limits=Limits(
            settings.max_body_bytes,
            settings.max_json_bytes,
            settings.max_inflight_bytes,
            settings.body_deadline_seconds,
            settings.token_inflight_bytes,
            settings.token_requests_per_second,
            settings.token_requests_at_once,
            settings.token_runs,
            settings.streams,
        ),
        budget=Budget(settings.max_inflight_bytes),
        tokens=TokenCache(store.tokens.all, clock),
        readiness=Readiness(store.ping),
        shares=Shares(
            ShareLimits(
                settings.token_requests_per_second,
                settings.token_inflight_bytes,
                settings.token_requests_at_once,
                settings.token_reads_at_once,
                settings.token_streams,
            )
        ),
        reading=CapacityLimiter(settings.reads_at_once),
        clock=clock,
        public_host=settings.public_host,
    )
    exposition.watch(
        queue=lambda: service.commits.waiting,
        inflight_bytes=lambda: service.budget.held,
        streams=lambda: service.streams,
    )
    return service


def _bounds(settings: Settings) -> Bounds:
    """Return the bounds of the store: each has a setting of its name."""

    def read(of: type[RunBounds | StoreBounds], prefix: str) -> dict[str, int]:
        return {each.name: getattr(settings, f"{prefix}_{each.name}") for each in fields(of)}

    return Bounds(RunBounds(**read(RunBounds, "run")), StoreBounds(**read(StoreBounds, "store")))


def _served_hosts(settings: Settings) -> tuple[str, ...]:
    if settings.insecure:
        return settings.allowed_hosts
    return (*LOOPBACK_NAMES, settings.host, *settings.allowed_hosts)
