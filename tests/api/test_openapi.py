"""The schema: valid, whole, true. Every example is sent, and every answer is what is described."""

import json
import re
import time
from urllib.parse import quote

import httpx
import pytest
from api_cases import serving_app, settings_in
from fastapi.routing import APIRoute
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from snc_service.app import ROUTERS
from snc_service.problems import KINDS, PROBLEM_MEDIA_TYPE
from snc_service.wire import LayerTable

ROUTES = [
    route
    for router in ROUTERS
    for route in router.routes
    if isinstance(route, APIRoute) and route.include_in_schema
]
JSON = "application/json"
NEEDED = {  # parameters that have no default
    "get_layers_history": {"layer": "fc1.weight"},
    "compare_runs": {"layer": "fc1.weight", "run": "gpt-small-1"},
}


@pytest.fixture
def api(tmp_path):
    with serving_app(settings_in(tmp_path)) as opened:
        yield opened


@pytest.fixture
def schema(api):
    return api.get("/openapi.json").json()


def operations(schema):
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def every(value, key):
    """Yield what stands under ``key`` anywhere in a JSON value."""
    if isinstance(value, dict):
        if key in value:
            yield value[key]
        for below in value.values():
            yield from every(below, key)
    elif isinstance(value, list):
        for below in value:
            yield from every(below, key)


def test_the_schema_is_openapi_3_1_with_every_route(schema):
    assert schema["openapi"].startswith("3.1")
    shown = {(method.upper(), path) for method, path, _ in operations(schema)}
    assert shown == {(method, route.path_format) for route in ROUTES for method in route.methods}


def test_every_reference_leads_somewhere(schema):
    references = [ref for ref in every(schema, "$ref") if isinstance(ref, str)]
    assert references
    for reference in references:
        part = schema
        for name in reference.removeprefix("#/").split("/"):
            part = part[name]


def test_every_operation_has_a_name_of_its_own_a_sentence_and_its_path_parameters(schema):
    names = [operation["operationId"] for _, _, operation in operations(schema)]
    assert len(set(names)) == len(names)
    for method, path, operation in operations(schema):
        assert operation["description"].endswith("."), (method, path)
        declared = {
            each["name"] for each in operation.get("parameters", []) if each["in"] == "path"
        }
        assert declared == set(re.findall(r"\{(\w+)\}", path)), (method, path)


def test_every_operation_shows_an_example_of_success_and_of_what_it_takes(schema):
    for method, path, operation in operations(schema):
        (success,) = [s for s in operation["responses"] if s in ("200", "201", "204")][:1]
        if success != "204":
            content = operation["responses"][success]["content"]
            assert any("example" in told for told in content.values()), (method, path)
        if method in ("post", "put"):
            assert operation["requestBody"]["content"][JSON]["example"], (method, path)


def test_every_refusal_is_described_as_a_problem_of_a_known_type(schema):
    for method, path, operation in operations(schema):
        refusals = {s: told for s, told in operation["responses"].items() if s >= "4"}
        assert refusals, (method, path)
        too_long = refusals.pop("431", None)  # the connection's own, before there is a route
        lists = [each for each in operation.get("parameters", ()) if "items" in each["schema"]]
        assert (too_long is not None) == bool(lists)
        for status, told in refusals.items():
            (media_type,) = told["content"]
            assert media_type == PROBLEM_MEDIA_TYPE, (method, path, status)
            for kind, example in told["content"][media_type]["examples"].items():
                assert KINDS[kind].status == example["value"]["status"] == int(status)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
def test_an_example_of_success_fits_its_model(route):
    if route.response_model is None:
        return
    content = route.responses[route.status_code or 200]["content"]
    example = content[JSON]["example"]
    model = TypeAdapter(route.response_model)
    back = model.dump_python(model.validate_python(example), mode="json")
    if route.name != "post_batch":  # its policy is left out where the client has it
        assert keys(back) == keys(example)


def keys(value):
    """Return the shape of a JSON value: its keys, without its values."""
    if isinstance(value, dict):
        return {name: keys(below) for name, below in value.items()}
    if isinstance(value, list):
        return [keys(below) for below in value[:1]]
    return None


def incident_of(api) -> int:
    """Return the incident that a failed run makes, once it is there."""
    api.post("/api/v1/runs", json={"run": "failed"})
    api.post("/api/v1/runs/failed/finish", json={"state": "failed"})
    deadline = time.monotonic() + 30
    while not (found := api.get("/api/v1/incidents", params={"run": "failed"}).json()["items"]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found[0]["incident"]


def walk(api, schema) -> dict[str, httpx.Response]:
    """Send every example of a body in a sensible order, then ask every GET about that run."""
    told = {}
    places = {"run": "gpt-small-1", "project": "default", "layer": "fc1.weight", "scalar": "loss",
              "kind": "invalid", "name": "grafana"}  # fmt: skip

    def send(name, **options):
        method, path, operation = next(
            (m, p, o) for m, p, o in operations(schema) if o["operationId"] == name
        )
        if "requestBody" in operation:
            options["json"] = operation["requestBody"]["content"][JSON]["example"]
        told[name] = api.request(method.upper(), path.format(**places), **options)

    send("create_run")
    table = next(o for _, _, o in operations(schema) if o["operationId"] == "put_layer_table")
    example = table["requestBody"]["content"][JSON]["example"]
    places["table_hash"] = LayerTable.parse(json.dumps(example).encode()).hash
    for name in ("put_layer_table", "post_batch", "put_policy", "put_project_policy"):
        send(name)
    for name in ("put_rules", "put_project_rules", "add_annotation"):
        send(name)
    for name in ("put_alerting", "test_receiver", "add_silence"):
        send(name)
    places["silence"] = told["add_silence"].json()["silence"]
    places["incident"] = incident_of(api)
    for method, _, operation in operations(schema):
        name = operation["operationId"]
        if method == "get" and name != "stream_run":
            send(name, params=NEEDED.get(name, {}))
    for name in (
        "acknowledge_incident",
        "delete_silence",
        "send_command",
        "finish_run",
        "edit_run",
        "acknowledge_run",
        "delete_run",
        "open_session",
        "close_session",
    ):
        send(name)
    send("create_token")  # the first one: from here on everybody needs one
    send(
        "revoke_token", headers={"Authorization": f"Bearer {told['create_token'].json()['token']}"}
    )
    return told


def test_every_example_is_taken_and_every_answer_is_what_is_described(api, schema):
    told = walk(api, schema)
    described = {operation["operationId"]: operation for _, _, operation in operations(schema)}
    assert set(told) == set(described) - {"stream_run"}
    models = {route.name: route.response_model for route in ROUTES}
    for name, answer in told.items():
        assert answer.is_success, (name, answer.text)
        assert str(answer.status_code) in described[name]["responses"], name
        if models[name] is not None:
            model = TypeAdapter(models[name])
            back = model.dump_python(model.validate_json(answer.content), mode="json")
            if name != "post_batch":
                assert keys(back) == keys(answer.json()), name


def test_json_bodies_are_described_by_what_reads_them(schema):
    batch = schema["paths"]["/api/v1/runs/{run}/batches"]["post"]["requestBody"]["content"]
    assert set(batch) == {JSON, "application/vnd.snc.batch.v1"}
    assert set(batch[JSON]["schema"]["required"]) == {"writer", "seq", "steps"}
    run = schema["components"]["schemas"]["RunRequest"]
    assert run["additionalProperties"] is False
    assert set(run["properties"]) == {"run", "name", "project", "config", "tags", "policy"}


WORDS = st.sampled_from(
    [
        "", "0", "1", "-1", "a", "r", "sigma", "ratio", "loss", "breach", "..", "%", "*", "+", "é",
        "9007199254740991", "9007199254740992", "9" * 30, "1e999", "NaN", "null", "true", "[]",
        "\x00", "\n", "\udcff", "a/b", "'", '"', "<b>", "x" * 300, "W10", "WzFd",
        "WzEsMiwzXQ", "0x10",
    ]
)  # fmt: skip


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_whatever_is_asked_the_answer_is_one_that_is_described(api, schema, data):
    """A schema fuzzer of our own: any words for parameters and bodies, any operation."""
    asked = [each for each in operations(schema) if each[2]["operationId"] != "stream_run"]
    method, path, operation = data.draw(st.sampled_from(asked))
    query = []
    for each in operation.get("parameters", []):
        word = quote(data.draw(WORDS), safe="", errors="surrogateescape")
        if each["in"] == "path":
            path = path.replace(f"{{{each['name']}}}", word)
        elif each["in"] == "query" and data.draw(st.booleans()):
            query.append(f"{each['name']}={word}")
    options = {}
    if "requestBody" in operation:
        content_type = data.draw(st.sampled_from(list(operation["requestBody"]["content"])))
        body = data.draw(st.binary(max_size=20) | BODIES)
        options = {"content": body, "headers": {"Content-Type": content_type}}
    told = api.request(method.upper(), f"{path}?{'&'.join(query)}", **options)
    # A word that empties or splits a path makes it another URL.
    assert str(told.status_code) in {*operation["responses"], "404", "405"}, told.text
    assert told.status_code < 500
    if told.status_code >= 400:
        assert told.headers["Content-Type"] == PROBLEM_MEDIA_TYPE
        assert told.json()["detail"]


BODIES = st.sampled_from(
    [
        b"{}", b"[]", b"null", b'{"run": "r"}', b'{"name": "\\ud800"}', b'{"config": {"a": NaN}}',
        b'{"config": {"\\ud800": 1}}', b'{"config": {"a": ' + b"9" * 5000 + b"}}",
        b'{"entries": []}', b'{"entries": [{"pattern": "*", "threshold": 1e400}]}',
        b'{"state": "failed"}', b'{"layers": [{"name": "a"}]}',
        b'{"layers": [{"name": "\\ud800"}]}',
        b'{"writer": "w", "seq": 0, "steps": [0], "scalars": {"loss": [1]}}',
    ]
)  # fmt: skip
