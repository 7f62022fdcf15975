"""Common parameters of routes: run, range of steps, number of items."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import Path
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from snc_service.store.types import Window
from snc_service.wire import MAX_STEP, METRIC_NAME, RUN_NAME
from snc_service.wire.checks import printable

NAME_PATTERN: Final = f"^{RUN_NAME.pattern}$"
METRIC_PATTERN: Final = f"^{METRIC_NAME.pattern}$"

# The id of a run or a project, or the name of a token.
Identifier = Annotated[str, Field(pattern=NAME_PATTERN)]
RunName = Annotated[
    str,
    Path(
        pattern=NAME_PATTERN,
        description="The run's id.",
        examples=["gpt-small-1"],
    ),
]
ProjectName = Annotated[
    str,
    Path(
        pattern=NAME_PATTERN,
        description="The project's id.",
        examples=["default"],
    ),
]
# The wire checks exact byte limits and control characters; this bounds the lookup.
Name = Annotated[str, Field(min_length=1, max_length=256)]
MetricName = Annotated[str, Field(pattern=METRIC_PATTERN)]
Step = Annotated[int, Field(ge=0, le=MAX_STEP)]
Cursor = Annotated[str | None, Field(max_length=1024, description="`next` of the page before.")]


def _comment(value: str) -> str:
    return printable(value, "comment", max_bytes=256) if value else value


Comment = Annotated[str, AfterValidator(_comment)]  # for the audit log


class Query(BaseModel):
    """Query parameters: an unknown one is an error, so that a typo is not ignored."""

    model_config = ConfigDict(extra="forbid")


class ListQuery(Query):
    """A page of a list."""

    limit: int = Field(100, ge=1, le=500)
    cursor: Cursor = None


class WindowQuery(Query):
    """A range of history."""

    from_step: Step = 0
    to_step: Step | None = None
    attempt: int | None = Field(
        None, ge=0, le=2**31 - 1, description="An older attempt instead of the newest."
    )

    @field_validator("to_step")
    @classmethod
    def _in_order(cls, to_step: int | None, before: ValidationInfo) -> int | None:
        from_step = before.data.get("from_step", 0)
        if to_step is not None and to_step < from_step:
            raise ValueError(f"must be at least from_step ({from_step}), got {to_step}")
        return to_step

    def window(self, points: int) -> Window:
        """Return the `Window` of the store."""
        return Window(self.from_step, self.to_step, points, self.attempt)
