"""Versioned documents (policy, rule settings, routing): the common parts of their routes."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

from fastapi import Header, Request, Response

from snc_service.api.conventions.answers import answer, is_unchanged, rfc3339, unchanged
from snc_service.problems import Problem
from snc_service.store.types import VersionedDocument

# Problems of a change, beyond those of a read.
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
    """Return the origin of a version: scope, author and time; version 0 has no time."""
    at = rfc3339(stored.at) if stored.version else None
    return {"scope": stored.scope, "author": stored.author, "at": at}


def versioned(request: Request, version: int, content: dict[str, Any]) -> Response:
    """Answer with ``content`` under the ETag of its version, or 304."""
    tag = f'"{version}"'
    if request.method == "GET" and is_unchanged(request, tag):
        return unchanged(tag)
    return answer(request, content, tag=tag)


def seen(if_match: str | None) -> int | None:
    """Return the version in If-Match, None if any version is accepted."""
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
