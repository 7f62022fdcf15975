"""The API reference at ``/docs``: a plain page from the schema, without scripts or foreign URLs."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256
from html import escape
from typing import Any

from fastapi import APIRouter, Request, Response

from snc_service.api.system.openapi import responses
from snc_service.problems import KINDS, TYPE_PREFIX, Problem

router = APIRouter()

STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin-top: 2.5rem; font-size: 1.1rem; border-top: 1px solid #8884; padding-top: 1rem; }
h2 code { font-size: 1rem; overflow-wrap: anywhere; }
pre { background: #8881; padding: .6rem .8rem; overflow-x: auto; font-size: .85rem; }
th, td { text-align: left; vertical-align: top; padding: .15rem 1rem .15rem 0; }
"""
_STYLE_HASH = b64encode(sha256(STYLE.encode()).digest()).decode()
HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; frame-ancestors 'none'; "
        f"base-uri 'none'; form-action 'none'"
    ),
    "Referrer-Policy": "no-referrer",
}


@router.get("/docs", include_in_schema=False)
def get_docs(request: Request) -> Response:
    """Return the reference as a page."""
    schema = request.app.openapi()
    body = "".join((*_head(schema), *_operations(schema), *_problems(), "</main></body></html>"))
    return Response(body, media_type="text/html; charset=utf-8", headers=HEADERS)


@router.get(
    "/problems/{kind}",
    tags=["service"],
    response_model=dict[str, Any],
    responses=responses(
        "not-found",
        "invalid",
        example={"type": "/problems/run-unknown", "title": KINDS["run-unknown"].title},
    ),
)
async def get_problem(kind: str) -> dict[str, Any]:
    """Explain a type of problem; the type's URI is this route."""
    if kind not in KINDS:
        raise Problem("not-found", f"there is no type of problem {kind[:80]!r}")
    status, title, meaning = KINDS[kind]
    return {"type": f"{TYPE_PREFIX}{kind}", "title": title, "status": status, "meaning": meaning}


def _head(schema: dict[str, Any]) -> Iterator[str]:
    yield '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>snc: reference</title><style>{STYLE}</style></head><body><main>"
    yield f"<h1>snc {escape(schema['info']['version'])}: reference</h1>"
    yield '<p>The same as a schema: <a href="openapi.json">openapi.json</a>. '
    yield 'The page: <a href="./">dashboard</a>.</p>'


def _operations(schema: dict[str, Any]) -> Iterator[str]:
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            yield f"<h2><code>{method.upper()} {escape(path)}</code></h2>"
            yield f"<p>{escape(operation.get('description', ''))}</p>"
            yield from _parameters(operation.get("parameters", []))
            body = operation.get("requestBody", {}).get("content", {})
            yield from _examples("Body", body)
            for status, response in operation["responses"].items():
                if status.startswith("2"):
                    yield from _examples(f"Answer {status}", response.get("content", {}))
            refused = sorted(status for status in operation["responses"] if status >= "3")
            yield f"<p>Errors: {escape(', '.join(refused))}</p>"


def _parameters(parameters: list[dict[str, Any]]) -> Iterator[str]:
    if not parameters:
        return
    yield "<table><thead><tr><th>Parameter<th>In<th>Meaning</tr></thead><tbody>"
    for each in parameters:
        schema = each.get("schema", {})
        parts = (each.get("description", schema.get("description")), *_bounds(schema))
        text = " ".join(part for part in parts if part)
        yield f"<tr><td><code>{escape(each['name'])}</code><td>{each['in']}<td>{escape(text)}</tr>"
    yield "</tbody></table>"


def _bounds(schema: dict[str, Any]) -> Iterator[str]:
    if "enum" in schema:
        yield f"One of {', '.join(schema['enum'])}."
    if "minimum" in schema:
        yield f"{schema['minimum']} to {schema['maximum']}."
    if schema.get("default") is not None:
        yield f"Default: {schema['default']}."


def _examples(title: str, content: dict[str, Any]) -> Iterator[str]:
    for media_type, told in content.items():
        yield f"<p>{title}: <code>{escape(media_type)}</code></p>"
        if "example" in told:
            example = told["example"]
            text = example if isinstance(example, str) else json.dumps(example, indent=1)
            yield f"<pre>{escape(text)}</pre>"


def _problems() -> Iterator[str]:
    yield "<h2>Types of problem</h2><table><thead><tr><th>Type<th>Status<th>Meaning</tr></thead>"
    yield "<tbody>"
    for name, (status, title, meaning) in KINDS.items():
        yield f"<tr><td><code>{TYPE_PREFIX}{name}</code><td>{status}"
        yield f"<td>{escape(title)}. {escape(meaning)}</tr>"
    yield "</tbody></table>"
