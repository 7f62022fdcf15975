"""Versioned documents (policy, rule settings, routing): the common parts of their routes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final, TypeVar

from fastapi import Header, Request, Response
from pydantic import Field

from snc_service.api.conventions import cursors
from snc_service.api.conventions.answers import answer, is_unchanged, rfc3339, unchanged
from snc_service.api.conventions.parameters import Cursor, Query
from snc_service.problems import Problem
from snc_service.store.types import VersionedDocument

T = TypeVar("T")

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


class VersionQuery(Query):
    """A page of a list that is numbered, the newest first."""

    limit: int = Field(20, ge=1, le=100)
    cursor: Cursor = None


def listed(
    request: Request,
    query: VersionQuery,
    read: Callable[..., Sequence[T]],
    number: Callable[[T], int],
    as_item: Callable[[T], dict[str, Any]],
) -> Response:
    """Answer with a page of what ``read(limit=, below=)`` returns, the newest first."""
    key = cursors.load(query.cursor, int)
    found = read(limit=query.limit + 1, **({} if key is None else {"below": key[0]}))
    shown = found[: query.limit]
    last = (number(shown[-1]),) if len(found) > query.limit else None
    items = [as_item(each) for each in shown]
    return answer(request, {"items": items, "next": cursors.dump(last)})


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
