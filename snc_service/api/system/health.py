"""Routes for liveness, readiness and capabilities of the service."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from snc_service import __version__
from snc_service.api.conventions.answers import answer
from snc_service.api.state import InService
from snc_service.api.system.openapi import responses
from snc_service.problems import KINDS, TYPE_PREFIX, Problem
from snc_service.wire import JSON_MEDIA_TYPE, MEDIA_TYPE
from snc_service.wire.checks import MAX_COLUMNS, MAX_LAYERS, MAX_STEPS

router = APIRouter(tags=["service"])


class Health(BaseModel):
    """The healthy state."""

    status: Literal["ok"]


class Ready(Health):
    """The ready state; ``away`` is the number of nodes of a cluster that cannot be reached."""

    away: int


class About(BaseModel):
    """The formats and limits of the service."""

    version: str
    media_types: list[str]
    encodings: list[str]
    limits: dict[str, float]
    problems: dict[str, str]


@router.get("/healthz", response_model=Health, responses=responses(example={"status": "ok"}))
async def get_health() -> dict[str, str]:
    """Return that the process answers. Touches nothing."""
    return {"status": "ok"}


@router.get(
    "/readyz",
    response_model=Ready,
    responses=responses("draining", "store-unavailable", example={"status": "ok", "away": 0}),
)
async def get_readiness(service: InService) -> dict[str, Any]:
    """Say that the store can be read and written and the service is not about to stop.

    Of a Citus cluster `away` counts workers that cannot be reached; the log names them. Their runs,
    and the creation and the list of runs, answer 503 until they are back. All other runs go on, so
    the service is ready.
    """
    if service.draining:
        raise Problem("draining", "the service is stopping")
    return {"status": "ok", "away": await service.readiness.check()}


_ABOUT_EXAMPLE: dict[str, Any] = {
    "version": __version__,
    "media_types": [MEDIA_TYPE, JSON_MEDIA_TYPE],
    "encodings": ["gzip", "identity"],
    "limits": {"body_bytes": 8_388_608, "json_bytes": 2_097_152, "steps": MAX_STEPS},
    "problems": {"/problems/run-unknown": "The run does not exist"},
}


@router.get("/api/v1", response_model=About, responses=responses(example=_ABOUT_EXAMPLE))
def get_about(request: Request, service: InService) -> Response:
    """Return the media types, limits and problem types of this service."""
    limits = {
        **dataclasses.asdict(service.limits),
        **{
            f"{of}_{name}": limit
            for of, bounds in dataclasses.asdict(service.store.bounds).items()
            for name, limit in bounds.items()
        },
        "steps": MAX_STEPS,
        "layers": MAX_LAYERS,
        "metrics_and_scalars": MAX_COLUMNS,
    }
    problems = {f"{TYPE_PREFIX}{name}": kind.title for name, kind in KINDS.items()}
    return answer(request, _ABOUT_EXAMPLE | {"limits": limits, "problems": problems})
