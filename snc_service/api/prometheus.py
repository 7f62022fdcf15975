"""What Prometheus asks for: metrics of everything, of one run, and where to find those."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field

from snc_service.api import queries
from snc_service.api.answers import answer, text_answer
from snc_service.api.openapi import responses
from snc_service.api.queries import RunName
from snc_service.api.state import InService
from snc_service.exposition import CONTENT_TYPE

router = APIRouter(tags=["prometheus"])
Part = Literal["process", "runs", "layers"]
TEXT_EXAMPLE = '# TYPE snc_sigma gauge\nsnc_sigma{run="gpt-small-1",layer="fc1.weight"} 1.2\n'
SD_EXAMPLE: list[dict[str, Any]] = [
    {
        "targets": ["127.0.0.1:8470"],
        "labels": {
            "__metrics_path__": "/metrics/runs/gpt-small-1",
            "instance": "127.0.0.1:8470/gpt-small-1",
        },
    }
]


class MetricsQuery(queries.Query):
    """Which parts, all of them by default."""

    collect: list[Part] = Field(default_factory=list, max_length=3)


@router.get(
    "/metrics",
    response_class=Response,
    responses=responses(
        "invalid", "store-unavailable", example=TEXT_EXAMPLE, media_type=CONTENT_TYPE
    ),
)
def get_metrics(
    request: Request, service: InService, query: Annotated[MetricsQuery, Query()]
) -> Response:
    """Return all metrics in the Prometheus text format, per-layer series up to a bound."""
    wanted = query.collect or ["process", "runs", "layers"]
    return text_answer(request, *service.exposition.metrics(wanted))


@router.get(
    "/metrics/runs/{run}",
    response_class=Response,
    responses=responses(
        "run-unknown", "invalid", "store-unavailable", example=TEXT_EXAMPLE, media_type=CONTENT_TYPE
    ),
)
def get_run_metrics(request: Request, service: InService, run: RunName) -> Response:
    """Return one run's metrics, with all its layers."""
    return text_answer(request, *service.exposition.run_metrics(run))


@router.get(
    "/prometheus/sd",
    response_model=list[dict[str, Any]],
    responses=responses("store-unavailable", example=SD_EXAMPLE),
)
def get_service_discovery(request: Request, service: InService) -> Response:
    """Return one target per run that reports, for `http_sd_configs`."""
    host = service.public_host or request.headers.get("host", "localhost")
    return answer(request, service.exposition.service_discovery(host))
