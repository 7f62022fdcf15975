"""The routes of a versioned document that runs and projects have: a policy, rule settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Generic, TypeVar

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel

from snc_service.api.conventions.parameters import ProjectName, RunName
from snc_service.api.conventions.versions import (
    CHANGING,
    IfMatch,
    VersionQuery,
    listed,
    origin,
    seen,
    versioned,
)
from snc_service.api.ingest.body import JsonBody
from snc_service.api.state import InAccess, InService
from snc_service.api.system.openapi import responses
from snc_service.problems import from_wire
from snc_service.store import Store
from snc_service.store.collections.documents import Documents
from snc_service.store.types import VersionedDocument
from snc_service.wire import WireError

T = TypeVar("T")


@dataclass(frozen=True)
class DocumentKind(Generic[T]):
    """What differs from one kind of document to the next.

    ``noun`` ends the path and names the routes, ``singular`` those that list versions. An answer
    holds the version under ``NOUN_version``. ``descriptions`` are the routes' texts by name.
    """

    noun: str
    singular: str
    documents: Callable[[Store], Documents[T]]
    parse: Callable[[Any], T]
    as_dict: Callable[[T], dict[str, Any]]  # the members of an answer that hold the document
    body_model: type[BaseModel]
    answer_model: type[BaseModel]
    versions_model: type[BaseModel]
    example: Mapping[str, Any]  # a body
    descriptions: Mapping[str, str]

    def parsed(self, body: BaseModel) -> T:
        """Return the document that a body holds. Raises `Problem` (422) that names the key."""
        try:
            return self.parse(body.model_dump())
        except WireError as error:
            raise from_wire(error) from None

    def as_answer(self, stored: VersionedDocument[T]) -> dict[str, Any]:
        """Return the JSON form of a version."""
        return {
            **self.as_dict(stored.content),
            f"{self.noun}_version": stored.version,
            **origin(stored),
        }

    def shown(self, request: Request, stored: VersionedDocument[T]) -> Response:
        """Answer with one version, or 304."""
        return versioned(request, stored.version, self.as_answer(stored))

    def listed(
        self, request: Request, query: VersionQuery, read: Callable[..., list[VersionedDocument[T]]]
    ) -> Response:
        """Answer with a page of versions, read with one more than it may have."""
        return listed(request, query, read, lambda each: each.version, self.as_answer)

    def route_of_one(self, name: str, *problems: str) -> dict[str, Any]:
        """Return how OpenAPI describes a route that answers with one version."""
        return self._route(name, self.answer_model, self._answer_example(), *problems)

    def route_of_all(self, name: str, *problems: str) -> dict[str, Any]:
        """Return how OpenAPI describes a route that answers with every version."""
        example = {"items": [self._answer_example()], "next": None}
        return self._route(name, self.versions_model, example, *problems)

    def _route(
        self, name: str, model: type[BaseModel], example: dict[str, Any], *problems: str
    ) -> dict[str, Any]:
        return {
            "name": name,
            "description": self.descriptions[name],
            "response_model": model,
            "responses": responses(*problems, "invalid", "store-unavailable", example=example),
        }

    def _answer_example(self) -> dict[str, Any]:
        at = 1_772_357_400.0  # 2026-03-01T09:30:00Z
        content = self.parse(self.example)
        return self.as_answer(VersionedDocument(content, 2, "run", "anna", at))


def document_router(kind: DocumentKind[T]) -> APIRouter:
    """Return the six routes of one kind of document."""
    noun, singular = kind.noun, kind.singular
    router = APIRouter(prefix="/api/v1", tags=[noun])
    reading = Depends(JsonBody(kind.body_model, kind.example))
    of_run, of_project = f"/runs/{{run}}/{noun}", f"/projects/{{project}}/{noun}"

    @router.get(of_run, **kind.route_of_one(f"get_{noun}", "run-unknown"))
    def get_of_run(request: Request, service: InService, run: RunName) -> Response:
        return kind.shown(request, kind.documents(service.store).of_run(run))

    @router.put(of_run, **kind.route_of_one(f"put_{noun}", "run-unknown", "run-full", *CHANGING))
    def put_for_run(
        request: Request,
        service: InService,
        access: InAccess,
        run: RunName,
        body: BaseModel = reading,
        if_match: IfMatch = None,
    ) -> Response:
        stored = kind.documents(service.store).put_for_run(
            run,
            kind.parsed(body),
            author=access.name,
            now=service.clock(),
            if_version=seen(if_match),
        )
        return kind.shown(request, stored)

    @router.get(
        f"{of_run}/versions", **kind.route_of_all(f"list_{singular}_versions", "run-unknown")
    )
    def list_of_run(
        request: Request,
        service: InService,
        run: RunName,
        query: Annotated[VersionQuery, Query()],
    ) -> Response:
        read = partial(kind.documents(service.store).versions_of_run, run)
        return kind.listed(request, query, read)

    @router.get(of_project, **kind.route_of_one(f"get_project_{noun}"))
    def get_of_project(request: Request, service: InService, project: ProjectName) -> Response:
        return kind.shown(request, kind.documents(service.store).of_project(project))

    @router.put(
        of_project,
        **kind.route_of_one(f"put_project_{noun}", "run-full", "service-full", *CHANGING),
    )
    def put_for_project(
        request: Request,
        service: InService,
        access: InAccess,
        project: ProjectName,
        body: BaseModel = reading,
        if_match: IfMatch = None,
    ) -> Response:
        stored = kind.documents(service.store).put_for_project(
            project,
            kind.parsed(body),
            author=access.name,
            now=service.clock(),
            if_version=seen(if_match),
        )
        return kind.shown(request, stored)

    @router.get(f"{of_project}/versions", **kind.route_of_all(f"list_project_{singular}_versions"))
    def list_of_project(
        request: Request,
        service: InService,
        project: ProjectName,
        query: Annotated[VersionQuery, Query()],
    ) -> Response:
        read = partial(kind.documents(service.store).versions_of_project, project)
        return kind.listed(request, query, read)

    return router
