"""Annotations: planned changes of a run, for which relative rules are muted."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from snc_service.api.conventions.answers import answer, rfc3339
from snc_service.api.conventions.parameters import RunName, Step
from snc_service.api.ingest.body import JsonBody
from snc_service.api.state import InAccess, InService
from snc_service.api.system.openapi import responses
from snc_service.store.types.annotations import Annotation
from snc_service.wire.checks import printable

router = APIRouter(prefix="/api/v1", tags=["annotations"])

MAX_QUIET_STEPS = 1_000_000


class AnnotationRequest(BaseModel):
    """A planned change at ``step``, after which relative rules are muted for ``quiet_steps``."""

    model_config = ConfigDict(extra="forbid")
    step: Step
    text: Annotated[str, AfterValidator(lambda text: printable(text, "text", max_bytes=256))]
    quiet_steps: int = Field(50, ge=0, le=MAX_QUIET_STEPS)


class AnnotationItem(BaseModel):
    """A planned change of a run; ids grow by one."""

    id: int
    step: int
    text: str
    quiet_steps: int
    author: str
    at: str


class AnnotationList(BaseModel):
    """Every annotation of a run, the oldest first."""

    items: list[AnnotationItem]
    next: None


REQUEST_EXAMPLE = {"step": 12_000, "text": "second half of the data", "quiet_steps": 100}
ITEM_EXAMPLE: dict[str, Any] = {
    "id": 1,
    **REQUEST_EXAMPLE,
    "author": "anna",
    "at": "2026-03-01T09:41:07.250Z",
}


@router.post(
    "/runs/{run}/annotations",
    status_code=201,
    response_model=AnnotationItem,
    responses=responses(
        "body-malformed",
        "body-slow",
        "body-too-large",
        "media-type",
        "run-unknown",
        "run-full",
        "invalid",
        "overloaded",
        "store-unavailable",
        example=ITEM_EXAMPLE,
        status=201,
    ),
)
def add_annotation(
    request: Request,
    service: InService,
    access: InAccess,
    run: RunName,
    wanted: Annotated[AnnotationRequest, Depends(JsonBody(AnnotationRequest, REQUEST_EXAMPLE))],
) -> Response:
    """Mark a planned change.

    From that step on running means restart, and rules that compare with the past are muted for
    ``quiet_steps`` steps. A step in the past takes effect from the next batch on.
    """
    made = service.store.annotations.add(
        run,
        wanted.step,
        wanted.text,
        wanted.quiet_steps,
        author=access.name,
        now=service.clock(),
    )
    return answer(request, _as_item(made), status_code=201)


@router.get(
    "/runs/{run}/annotations",
    response_model=AnnotationList,
    responses=responses(
        "run-unknown",
        "invalid",
        "store-unavailable",
        example={"items": [ITEM_EXAMPLE], "next": None},
    ),
)
def list_annotations(request: Request, service: InService, run: RunName) -> Response:
    """List a run's annotations."""
    items = [_as_item(each) for each in service.store.annotations.of_run(run)]
    return answer(request, {"items": items, "next": None})


def _as_item(made: Annotation) -> dict[str, Any]:
    return {
        "id": made.id,
        "step": made.step,
        "text": made.text,
        "quiet_steps": made.quiet_steps,
        "author": made.author,
        "at": rfc3339(made.at),
    }
