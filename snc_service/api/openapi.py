"""The OpenAPI schema: every route with its example, every error that it can answer with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel

from snc_service.api.body import JsonBody
from snc_service.errors import KINDS, PROBLEM_MEDIA_TYPE, TYPE_PREFIX

_SCHEMAS = "#/components/schemas/"
Responses = dict[int | str, dict[str, Any]]


class ProblemAnswer(BaseModel):
    """An error, RFC 9457. Further members depend on the type."""

    type: str
    title: str
    status: int
    detail: str
    field: str | None = None


def responses(
    *kinds: str, example: Any = None, status: int = 200, media_type: str = "application/json"
) -> Responses:
    """Return what a route answers: an example of success, and the kinds of problem it knows."""
    told: Responses = {}
    if example is not None:
        told[status] = {"content": {media_type: {"example": example}}}
    for kind in (*kinds, "host-refused"):
        _add(told, kind)
    return told


def _add(told: Responses, kind: str) -> None:
    status, title, meaning = KINDS[kind]
    known = told.setdefault(
        status,
        {
            "description": "",
            "content": {
                PROBLEM_MEDIA_TYPE: {"schema": {"$ref": f"{_SCHEMAS}ProblemAnswer"}, "examples": {}}
            },
        },
    )
    known["description"] = " ".join(filter(None, (known["description"], f"`{kind}`: {title}.")))
    value = {"type": f"{TYPE_PREFIX}{kind}", "title": title, "status": status, "detail": meaning}
    known["content"][PROBLEM_MEDIA_TYPE]["examples"][kind] = {"value": value}


def build(app: FastAPI) -> dict[str, Any]:
    """Return the schema of ``app``."""
    schema = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    components = schema.setdefault("components", {}).setdefault("schemas", {})
    _define(components, ProblemAnswer)
    for route, body in _bodies(app):
        _define(components, body.model)
        for method in route.methods or ():
            schema["paths"][route.path_format][method.lower()]["requestBody"] = {
                "required": True,
                "content": {
                    "application/json": {
                        "schema": {"$ref": f"{_SCHEMAS}{body.model.__name__}"},
                        "example": body.example,
                    }
                },
            }
    return schema


def _define(components: dict[str, Any], model: type[BaseModel]) -> None:
    schema = model.model_json_schema(ref_template=f"{_SCHEMAS}{{model}}")
    components.update(schema.pop("$defs", {}))
    components[model.__name__] = schema


def _bodies(app: FastAPI) -> Iterator[tuple[APIRoute, JsonBody[Any]]]:
    for route in app.routes:
        if isinstance(route, APIRoute) and route.include_in_schema:
            for dependant in _all(route.dependant):
                if isinstance(dependant.call, JsonBody):
                    yield route, dependant.call


def _all(dependant: Dependant) -> Iterator[Dependant]:
    yield dependant
    for below in dependant.dependencies:
        yield from _all(below)
