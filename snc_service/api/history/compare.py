"""Routes that compare runs: one metric of one layer in each run, with the layer found by name."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field

from snc_service.api.conventions.answers import answer, etag, is_unchanged, unchanged
from snc_service.api.conventions.parameters import Identifier, MetricName, Name, WindowQuery
from snc_service.api.history.history import Columns, along, columns
from snc_service.api.state import InAccess, InService
from snc_service.api.system.openapi import responses
from snc_service.store.types import LayerUnknown, Run, RunUnknown

router = APIRouter(prefix="/api/v1", tags=["history"])


class CompareQuery(WindowQuery):
    """The runs (`run` repeated), the layer and the metric."""

    run: list[Identifier] = Field(min_length=1, max_length=20)
    layer: Name
    metric: MetricName = "sigma"
    points: int = Field(200, ge=1, le=2_000, description="The most buckets of each run.")


class RunColumns(Columns):
    """The history of one run; its buckets are its own, because runs differ in length."""

    run: str
    bucket_steps: int
    steps: list[int]


class Comparison(BaseModel):
    """One layer in several runs, in the requested order; ``without`` lists runs that lack it."""

    layer: str
    metric: str
    runs: list[RunColumns]
    without: list[str]


EXAMPLE: dict[str, Any] = {
    "layer": "fc1.weight",
    "metric": "sigma",
    "runs": [
        {
            "run": "gpt-small-1",
            "bucket_steps": 1,
            "steps": [100, 101],
            "mean": [1.1, 1.2],
            "min": [1.1, 1.2],
            "max": [1.1, 1.2],
            "nonfinite": [0, 0],
        }
    ],
    "without": ["gpt-tiny-7"],
}


@router.get(
    "/compare",
    response_model=Comparison,
    responses=responses(
        "run-unknown",
        "layer-unknown",
        "invalid",
        "store-damaged",
        "store-unavailable",
        example=EXAMPLE,
    ),
)
def compare_runs(
    request: Request, service: InService, access: InAccess, query: Annotated[CompareQuery, Query()]
) -> Response:
    """Return one metric of one layer, found by name, in several runs (`run` repeated).

    Runs without a layer of that name are listed in `without`; if no run has it, the answer is 404.
    """
    found = [service.store.runs.get(run) for run in dict.fromkeys(query.run)]
    for run in found:
        if not access.reaches(run.project):
            raise RunUnknown(f"there is no run {run.run!r}")
    tag = _tag(found, request)
    if is_unchanged(request, tag):
        return unchanged(tag)
    parts, without = [], []
    for run in found:
        try:
            history = service.store.histories.of_layers(
                run.run, query.metric, [query.layer], query.window(query.points)
            )
        except LayerUnknown:
            without.append(run.run)
        else:
            parts.append({"run": run.run} | along(history) | columns(history)[0])
    if not parts:
        raise LayerUnknown(f"none of the runs has a layer {query.layer!r}")
    content = {"layer": query.layer, "metric": query.metric, "runs": parts, "without": without}
    return answer(request, content, tag=tag)


def _tag(runs: list[Run], request: Request) -> str:
    """Return an ETag that changes with each of the runs."""
    return 'W/"' + "-".join(etag(run, request)[3:-1] for run in runs) + '"'
