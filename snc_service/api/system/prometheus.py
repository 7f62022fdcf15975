"""Routes for Prometheus: metrics of all runs, of one run, and service discovery."""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field

from snc_service.api.conventions import parameters
from snc_service.api.conventions.answers import answer, text_answer
from snc_service.api.conventions.parameters import RunName
from snc_service.api.state import InService
from snc_service.api.system.openapi import Responses, responses
from snc_service.exposition import CONTENT_TYPE, OPENMETRICS_TYPE
from snc_service.exposition.families import Part

router = APIRouter(tags=["prometheus"])
OPENMETRICS, TEXT = "application/openmetrics-text", "text/plain"
_WEIGHT = re.compile(r"[01](\.[0-9]{0,3})?")
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


def _text_responses(*kinds: str) -> Responses:
    others = {OPENMETRICS_TYPE: {"example": f"{TEXT_EXAMPLE}# EOF\n"}}
    return responses(*kinds, example=TEXT_EXAMPLE, media_type=CONTENT_TYPE, others=others)


def prefers_openmetrics(accept: str) -> bool:
    """Return whether an Accept header names OpenMetrics and no other text format before it."""
    best = {OPENMETRICS: 0.0, TEXT: 0.0}
    for part in accept.split(","):
        name, *parameters = (word.strip().lower() for word in part.split(";"))
        given = dict(parameter.partition("=")[::2] for parameter in parameters)
        if name == OPENMETRICS and given.get("version", "1.0.0") not in ("0.0.1", "1.0.0"):
            continue
        if name in best:
            best[name] = max(best[name], _weight(given.get("q", "1")))
    return best[OPENMETRICS] > 0 and best[OPENMETRICS] >= best[TEXT]


def _weight(text: str) -> float:
    return float(text) if _WEIGHT.fullmatch(text) else 0.0


class MetricsQuery(parameters.Query):
    """The parts of the metrics, all of them by default."""

    collect: list[Part] = Field(default_factory=list, max_length=3)


@router.get(
    "/metrics",
    response_class=Response,
    responses=_text_responses("invalid", "store-unavailable"),
)
def get_metrics(
    request: Request, service: InService, query: Annotated[MetricsQuery, Query()]
) -> Response:
    """Return all metrics, with per-layer series up to a limit; as OpenMetrics if preferred."""
    wanted = query.collect or ["process", "runs", "layers"]
    openmetrics = prefers_openmetrics(request.headers.get("accept", ""))
    return text_answer(request, *service.exposition.metrics(wanted, openmetrics=openmetrics))


@router.get(
    "/metrics/runs/{run}",
    response_class=Response,
    responses=_text_responses("run-unknown", "invalid", "store-unavailable"),
)
def get_run_metrics(request: Request, service: InService, run: RunName) -> Response:
    """Return one run's metrics, with all its layers."""
    openmetrics = prefers_openmetrics(request.headers.get("accept", ""))
    return text_answer(request, *service.exposition.run_metrics(run, openmetrics=openmetrics))


@router.get(
    "/prometheus/sd",
    response_model=list[dict[str, Any]],
    responses=responses("store-unavailable", example=SD_EXAMPLE),
)
def get_service_discovery(request: Request, service: InService) -> Response:
    """Return one target per run that reports, for `http_sd_configs`."""
    host = service.public_host or request.headers.get("host", "localhost")
    return answer(request, service.exposition.service_discovery(host))
