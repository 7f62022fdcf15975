"""A whole app in this process, asked through its ASGI interface, and small batches to feed it."""

import functools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
from anyio.from_thread import BlockingPortal, start_blocking_portal
from fastapi import FastAPI

from snc_service.app import create_app
from snc_service.settings import Settings
from snc_service.store import Store
from snc_service.wire import MEDIA_TYPE, Batch, LayerSpec, LayerTable, encode

PROBLEM = "application/problem+json"
START = 1_763_800_000.0
RUN = "/api/v1/runs/r"


class Clock:
    """The service's time, in the test's hands."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


class Api:
    """A client of one app whose lifespan has started."""

    def __init__(self, app: FastAPI, portal: BlockingPortal, client: httpx.AsyncClient) -> None:
        self.app = app
        self._portal = portal
        self._client = client

    @property
    def service(self) -> Any:
        return self.app.state.service

    def start(self, method: str, path: str, **options: Any) -> "Future[httpx.Response]":
        """Send a request without waiting for its answer."""

        async def send() -> httpx.Response:
            return await self._client.request(method, path, **options)

        return self._portal.start_task_soon(send)

    def wait_for(self, work: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Run a coroutine function on the app's event loop."""
        return self._portal.call(functools.partial(work, *arguments, **options))

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self.start(method, path, **options).result(timeout=60)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.request("GET", path, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self.request("POST", path, **options)

    def put(self, path: str, **options: Any) -> httpx.Response:
        return self.request("PUT", path, **options)

    def delete(self, path: str, **options: Any) -> httpx.Response:
        return self.request("DELETE", path, **options)

    def send(self, batch: Batch, *, run: str = "r", **headers: str) -> httpx.Response:
        """Post a batch in the binary form."""
        return self.post(
            f"/api/v1/runs/{run}/batches",
            content=encode(batch),
            headers={"Content-Type": MEDIA_TYPE, **headers},
        )


@contextmanager
def serving_app(
    settings: Settings,
    *,
    store: Store | None = None,
    clock: Callable[[], float] = time.time,
    steady: Callable[[], float] | None = None,  # as the clock goes
    raise_app_exceptions: bool = True,
) -> Iterator[Api]:
    """Start an app in an event loop of its own thread; stop it gracefully at the end."""
    app = create_app(settings, store=store, clock=clock, steady=steady or clock)
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=raise_app_exceptions)

    async def client() -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8470")

    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(app.router.lifespan_context(app)),
        portal.wrap_async_context_manager(portal.call(client)) as opened,
    ):
        yield Api(app, portal, opened)


def settings_in(tmp_path: Any, **changes: Any) -> Settings:
    return Settings(store=f"sqlite:///{tmp_path / 'snc.db'}", **changes)


def table_of(*names: str) -> LayerTable:
    return LayerTable(tuple(LayerSpec(name, "linear", (4, 3)) for name in names))


def batch_of(
    layers: LayerTable,
    seq: int = 0,
    steps: tuple[int, ...] = (0,),
    *,
    writer: str = "w",
    scalars: dict[str, list[float]] | None = None,
    skipped: int = 0,
    dropped: int = 0,
    **metrics: Any,
) -> Batch:
    """Return a batch; each metric is [steps][layers]."""
    scalars = scalars or {}
    values = np.array(list(metrics.values()), np.float32)
    return Batch(
        writer=writer,
        seq=seq,
        layers=layers.hash,
        steps=steps,
        metrics=tuple(metrics),
        values=values.reshape(len(metrics), len(steps), -1),
        scalars=tuple(scalars),
        scalar_values=np.array(list(scalars.values()), np.float32).reshape(-1, len(steps)),
        skipped=skipped,
        dropped=dropped,
    )


def register(api: Api, table: LayerTable, run: str = "r") -> None:
    """Create the run if need be, and put its layer table."""
    api.post("/api/v1/runs", json={"run": run})
    path = f"/api/v1/runs/{run}/layer-tables/{table.hash}"
    told = api.put(path, content=table.body, headers={"Content-Type": "application/json"})
    assert told.status_code == 204, told.text


def assert_problem(
    told: httpx.Response, status: int, kind: str, field: str | None = None
) -> dict[str, Any]:
    """Check an answer that refuses; return its body."""
    assert told.status_code == status, told.text
    assert told.headers["Content-Type"] == PROBLEM
    problem: dict[str, Any] = told.json()
    assert problem["type"] == f"/problems/{kind}"
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]
    if field is not None:
        assert problem["field"] == field
    if status == 503:
        assert int(told.headers["Retry-After"]) >= 1
    return problem
