"""What is changed version by version, a policy, rules or routing: the parts their routes share."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

from fastapi import Header, Request, Response

from snc_service.api.conventions.answers import answer, is_unchanged, rfc3339, unchanged
from snc_service.problems import Problem
from snc_service.store.types import VersionedDocument

# What a change may be answered with beside what reading may.
CHANGING: Final = (
    "body-malformed",
    "body-slow",
    "precondition-failed",
    "body-too-large",
    "media-type",
    "overloaded",
)
IfMatch = Annotated[
    str | None,
    Header(max_length=256, description="The ETag of what this one replaces."),
]


def origin(stored: VersionedDocument[Any]) -> dict[str, Any]:
    """Return where a version of a run or a project came from; 0 is what nobody set."""
    at = rfc3339(stored.at) if stored.version else None
    return {"scope": stored.scope, "author": stored.author, "at": at}


def versioned(request: Request, version: int, content: dict[str, Any]) -> Response:
    """Answer with ``content`` under the ETag of its version, or 304."""
    tag = f'"{version}"'
    if request.method == "GET" and is_unchanged(request, tag):
        return unchanged(tag)
    return answer(request, content, tag=tag)


def seen(if_match: str | None) -> int | None:
    """Return the version that If-Match names, None if any will do."""
    if if_match is None or if_match.strip() == "*":
        return None
    match = re.fullmatch(r'\s*"([0-9]{1,15})"\s*', if_match)
    if match is None:
        raise Problem(
            "precondition-failed",
            f"If-Match must be the ETag of what is in force, got {if_match[:80]!r}",
            field="If-Match",
        )
    return int(match[1])
