"""What users say about a run: its name, tags and note, its archive, and that they saw its end."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from snc_service.api.conventions.answers import answer
from snc_service.api.conventions.parameters import Comment, RunName
from snc_service.api.ingest.body import BODY_PROBLEMS, JsonBody
from snc_service.api.runs.run_creation import Label
from snc_service.api.runs.runs import ITEM_EXAMPLE, RunItem, as_item
from snc_service.api.state import InAccess, InService
from snc_service.api.system.openapi import responses
from snc_service.store.types.run_search import RunChange

MAX_NOTE_BYTES = 16 * 1024

router = APIRouter(prefix="/api/v1", tags=["runs"])


def _note(text: str) -> str:
    """Refuse control characters other than line breaks and tabs."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise ValueError("must be valid Unicode") from None
    if size > MAX_NOTE_BYTES:
        raise ValueError(f"must be at most {MAX_NOTE_BYTES} bytes, got {size}")
    if any((ord(c) < 0x20 and c not in "\n\t") or 0x7F <= ord(c) < 0xA0 for c in text):
        raise ValueError("must not contain control characters other than line breaks and tabs")
    return text


class RunEdit(BaseModel):
    """What to change; what is left out stays. ``tags`` replaces all tags."""

    model_config = ConfigDict(extra="forbid")
    name: Label | None = None
    tags: list[Label] | None = Field(None, max_length=64)
    note: Annotated[str, AfterValidator(_note)] | None = None
    archived: bool | None = None


class RunSeen(BaseModel):
    """The acknowledgement of a run: the token gives the author, the comment is for audit."""

    model_config = ConfigDict(extra="forbid")
    comment: Comment = ""


SEEN_EXAMPLE = {"comment": "lowering the learning rate"}
EDIT_EXAMPLE: dict[str, Any] = {"tags": ["baseline"], "note": "the one to beat"}


@router.patch(
    "/runs/{run}",
    response_model=RunItem,
    responses=responses(
        *BODY_PROBLEMS, "run-unknown", "invalid", "store-unavailable", example=ITEM_EXAMPLE
    ),
)
def edit_run(
    request: Request,
    service: InService,
    access: InAccess,
    run: RunName,
    wanted: Annotated[RunEdit, Depends(JsonBody(RunEdit, EDIT_EXAMPLE))],
) -> Response:
    """Rename a run, tag it, note something about it, or move it to the archive and back.

    An archived run keeps all of its data and takes batches; lists leave it out.
    """
    tags = None if wanted.tags is None else tuple(dict.fromkeys(wanted.tags))
    change = RunChange(wanted.name, tags, wanted.note, wanted.archived)
    done = service.store.runs.change(run, change, author=access.name, now=service.clock())
    return answer(request, as_item(done))


@router.post(
    "/runs/{run}/acknowledge",
    response_model=RunItem,
    responses=responses(
        *BODY_PROBLEMS, "run-unknown", "invalid", "store-unavailable", example=ITEM_EXAMPLE
    ),
)
def acknowledge_run(
    request: Request,
    service: InService,
    access: InAccess,
    run: RunName,
    seen: Annotated[RunSeen, Depends(JsonBody(RunSeen, SEEN_EXAMPLE))],
) -> Response:
    """Acknowledge how a run stands, and its open incidents: it no longer asks for attention.

    It does again if it reports once more.
    """
    done = service.store.runs.acknowledge(
        run, author=access.name, now=service.clock(), comment=seen.comment
    )
    return answer(request, as_item(done))
