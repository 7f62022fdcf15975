"""The OpenAPI schema: every route with its example, and every error that it may return."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel

from snc_service.api.ingest.body import JsonBody
from snc_service.api.security import authorization
from snc_service.problems import KINDS, PROBLEM_MEDIA_TYPE, TYPE_PREFIX

_SCHEMAS = "#/components/schemas/"
# The empty alternative: a service without any token requires none.
SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "`snc token create` makes one."},
    "session": {
        "type": "apiKey",
        "in": "cookie",
        "name": "snc_session",
        "description": "For the page: POST /api/v1/session sets it.",
    },
}
Responses = dict[int | str, dict[str, Any]]


class ProblemAnswer(BaseModel):
    """An error, RFC 9457. Further members depend on the type."""

    type: str
    title: str
    status: int
    detail: str
    field: str | None = None


def responses(
    *kinds: str,
    example: Any = None,
    status: int = 200,
    media_type: str = "application/json",
    others: Mapping[str, Any] | None = None,
) -> Responses:
    """Return the answers of a route: an example of success, and its kinds of problem.

    ``others`` describes media types of success besides ``media_type``.
    """
    told: Responses = {}
    if example is not None:
        told[status] = {"content": {media_type: {"example": example}, **(others or {})}}
    for kind in kinds:
        _add(told, KINDS[kind].status, kind)
        if kind == "store-unavailable":  # includes a full disk, which has its own type
            _add(told, KINDS["storage-full"].status, "storage-full")
    return told


def _add(told: Responses, key: int | str, kind: str) -> None:
    status, title, meaning = KINDS[kind]
    known = told.setdefault(
        key,
        {
            "description": "",
            "content": {
                PROBLEM_MEDIA_TYPE: {"schema": {"$ref": f"{_SCHEMAS}ProblemAnswer"}, "examples": {}}
            },
        },
    )
    if kind in known["content"][PROBLEM_MEDIA_TYPE]["examples"]:
        return
    known["description"] = " ".join(filter(None, (known["description"], f"`{kind}`: {title}.")))
    value = {"type": f"{TYPE_PREFIX}{kind}", "title": title, "status": status, "detail": meaning}
    known["content"][PROBLEM_MEDIA_TYPE]["examples"][kind] = {"value": value}


def build(app: FastAPI, routers: Sequence[APIRouter]) -> dict[str, Any]:
    """Return the schema of ``app``, which has included ``routers``."""
    schema = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    components = schema.setdefault("components", {}).setdefault("schemas", {})
    _define(components, ProblemAnswer)
    schema["components"]["securitySchemes"] = SECURITY
    for route in _shown(routers):
        for method in route.methods or ():
            operation = schema["paths"][route.path_format][method.lower()]
            _restore_examples(operation, route)
            _say_who_may(operation, route)
            _say_how_long(operation)
            for body in _bodies(route.dependant):
                _define(components, body.model)
                operation["requestBody"] = _request_body(body)
    return schema


def _shown(routers: Sequence[APIRouter]) -> Iterator[APIRoute]:
    for router in routers:
        for route in router.routes:
            if isinstance(route, APIRoute) and route.include_in_schema:
                yield route


def _say_who_may(operation: dict[str, Any], route: APIRoute) -> None:
    """Describe the needs of a route in `authorization.NEEDS`, and its refusals."""
    for kind in authorization.refusals(route.name):
        _add(operation["responses"], str(KINDS[kind].status), kind)
    need = authorization.NEEDS[route.name]
    if need is authorization.OPEN:
        operation["security"] = []
        return
    operation["security"] = [{}, {"bearer": []}, {"session": []}]
    scope = f"the scope `{need.scope}`" if need.scope else "any scope"
    operation["description"] = f"{operation['description']} Needs a token with {scope}."


def _say_how_long(operation: dict[str, Any]) -> None:
    """Describe the answer to an overlong query: see cli/server/bounded_connection.py."""
    if any(each["schema"].get("type") == "array" for each in operation.get("parameters", ())):
        operation["responses"]["431"] = {
            "description": "The URL and the headers are longer than 64 KiB together; no body."
        }


def _restore_examples(operation: dict[str, Any], route: APIRoute) -> None:
    """Restore the examples: FastAPI drops every null from a schema."""
    for status, told in route.responses.items():
        for media_type, content in told.get("content", {}).items():
            if "example" in content:
                shown = operation["responses"][str(status)]["content"][media_type]
                shown["example"] = content["example"]


def _request_body(body: JsonBody[Any]) -> dict[str, Any]:
    schema = {"$ref": f"{_SCHEMAS}{body.model.__name__}"}
    content = {"application/json": {"schema": schema, "example": body.example}}
    return {"required": True, "content": content}


def _define(components: dict[str, Any], model: type[BaseModel]) -> None:
    schema = model.model_json_schema(ref_template=f"{_SCHEMAS}{{model}}")
    components.update(schema.pop("$defs", {}))
    components[model.__name__] = schema


def _bodies(dependant: Dependant) -> Iterator[JsonBody[Any]]:
    if isinstance(dependant.call, JsonBody):
        yield dependant.call
    for below in dependant.dependencies:
        yield from _bodies(below)
