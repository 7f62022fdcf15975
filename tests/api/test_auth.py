"""Who may do what: every route x every kind of token, against one table."""

import re
import time

import pytest
from api_cases import START, Clock, assert_problem, batch_of, serving_app, settings_in, table_of

from snc_service.api.security import authorization
from snc_service.auth import digest, make_token
from snc_service.store.types.incidents import Silence
from snc_service.wire import MEDIA_TYPE, encode

TABLE = table_of("fc1.weight")
HOUR = 3600.0
OWN, FOREIGN = "own", "foreign"

# The documented answers. Scope: what a token must have; None: any token, "open": none at all.
# For a token of another project, all scopes granted: "run" hides the run (404), "project" refuses
# the name of another one (403), "all" refuses because the answer is about every project (403),
# "list" shows and "count" counts its own part only, "record" hides what is of others (404), "-"
# does not care.
TABLE_OF_ROUTES = {
    ("GET", "/"): ("open", "-"),
    ("GET", "/ui/{path:path}"): ("open", "-"),
    ("GET", "/healthz"): ("open", "-"),
    ("GET", "/readyz"): ("open", "-"),
    ("GET", "/problems/{kind}"): ("open", "-"),
    ("POST", "/api/v1/session"): ("open", "-"),
    ("DELETE", "/api/v1/session"): ("open", "-"),
    ("GET", "/api/v1/session"): (None, "-"),
    ("GET", "/api/v1"): (None, "-"),
    ("GET", "/docs"): (None, "-"),
    ("GET", "/openapi.json"): (None, "-"),
    ("POST", "/api/v1/runs"): ("ingest", "project"),
    ("PUT", "/api/v1/runs/{run}/layer-tables/{table_hash}"): ("ingest", "run"),
    ("POST", "/api/v1/runs/{run}/batches"): ("ingest", "run"),
    ("POST", "/api/v1/runs/{run}/finish"): ("ingest", "run"),
    ("GET", "/api/v1/runs"): ("read", "list"),
    ("GET", "/api/v1/run-summary"): ("read", "count"),
    ("GET", "/api/v1/runs/{run}"): ("read", "run"),
    ("GET", "/api/v1/runs/{run}/layers"): ("read", "run"),
    ("GET", "/api/v1/runs/{run}/layers/{layer:path}/history"): ("read", "run"),
    ("GET", "/api/v1/runs/{run}/history"): ("read", "run"),
    ("GET", "/api/v1/runs/{run}/scalars/{scalar}/history"): ("read", "run"),
    ("GET", "/api/v1/runs/{run}/heatmap"): ("read", "run"),
    ("GET", "/api/v1/runs/{run}/worst"): ("read", "run"),
    ("GET", "/api/v1/runs/{run}/export"): ("read", "run"),
    ("GET", "/api/v1/compare"): ("read", "record"),
    ("GET", "/api/v1/runs/{run}/events"): ("read", "run"),
    ("GET", "/api/v1/events"): ("read", "list"),
    ("GET", "/api/v1/runs/{run}/onset"): ("read", "run"),
    ("GET", "/api/v1/runs/{run}/forecast"): ("read", "run"),
    ("GET", "/api/v1/runs/{run}/rules"): ("read", "run"),
    ("GET", "/api/v1/runs/{run}/rules/versions"): ("read", "run"),
    ("GET", "/api/v1/projects/{project}/rules"): ("read", "project"),
    ("GET", "/api/v1/projects/{project}/rules/versions"): ("read", "project"),
    ("GET", "/api/v1/runs/{run}/annotations"): ("read", "run"),
    ("POST", "/api/v1/runs/{run}/annotations"): ("ingest", "run"),
    ("PUT", "/api/v1/runs/{run}/rules"): ("admin", "run"),
    ("PUT", "/api/v1/projects/{project}/rules"): ("admin", "project"),
    ("GET", "/api/v1/runs/{run}/policy"): ("read", "run"),
    ("GET", "/api/v1/runs/{run}/policy/versions"): ("read", "run"),
    ("GET", "/api/v1/projects/{project}/policy"): ("read", "project"),
    ("GET", "/api/v1/projects/{project}/policy/versions"): ("read", "project"),
    ("GET", "/api/v1/runs/{run}/commands"): ("read", "run"),
    ("GET", "/api/v1/runs/{run}/stream"): ("read", "run"),
    ("GET", "/metrics"): ("read", "all"),
    ("GET", "/metrics/runs/{run}"): ("read", "run"),
    ("GET", "/prometheus/sd"): ("read", "all"),
    ("PUT", "/api/v1/runs/{run}/policy"): ("admin", "run"),
    ("PUT", "/api/v1/projects/{project}/policy"): ("admin", "project"),
    ("PATCH", "/api/v1/runs/{run}"): ("admin", "run"),
    ("POST", "/api/v1/runs/{run}/acknowledge"): ("admin", "run"),
    ("DELETE", "/api/v1/runs/{run}"): ("admin", "run"),
    ("POST", "/api/v1/runs/{run}/commands"): ("admin", "run"),
    ("GET", "/api/v1/alerting"): ("admin", "all"),
    ("PUT", "/api/v1/alerting"): ("admin", "all"),
    ("GET", "/api/v1/alerting/versions"): ("admin", "all"),
    ("GET", "/api/v1/alerting/receivers"): ("admin", "all"),
    ("POST", "/api/v1/alerting/test"): ("admin", "all"),
    ("GET", "/api/v1/incidents"): ("read", "list"),
    ("GET", "/api/v1/incidents/{incident}"): ("read", "record"),
    ("POST", "/api/v1/incidents/{incident}/acknowledge"): ("admin", "record"),
    ("GET", "/api/v1/silences"): ("read", "list"),
    ("POST", "/api/v1/silences"): ("admin", "-"),
    ("DELETE", "/api/v1/silences/{silence}"): ("admin", "record"),
    ("POST", "/api/v1/tokens"): ("admin", "all"),
    ("GET", "/api/v1/tokens"): ("admin", "all"),
    ("DELETE", "/api/v1/tokens/{name}"): ("admin", "all"),
    ("GET", "/api/v1/audit"): ("admin", "all"),
}
BODIES = {
    ("POST", "/api/v1/runs"): {"run": "r", "project": "own"},
    ("POST", "/api/v1/runs/{run}/finish"): {"state": "finished"},
    ("PATCH", "/api/v1/runs/{run}"): {"note": "seen"},
    ("POST", "/api/v1/runs/{run}/acknowledge"): {},
    ("PUT", "/api/v1/runs/{run}/policy"): {"entries": []},
    ("PUT", "/api/v1/runs/{run}/rules"): {"rules": {}},
    ("PUT", "/api/v1/projects/{project}/rules"): {"rules": {}},
    ("POST", "/api/v1/runs/{run}/annotations"): {"step": 1, "text": "new data"},
    ("PUT", "/api/v1/projects/{project}/policy"): {"entries": []},
    ("POST", "/api/v1/runs/{run}/commands"): {"action": "stop"},
    ("POST", "/api/v1/session"): {"token": "snc_0"},
    ("PUT", "/api/v1/alerting"): {"receivers": {}, "routes": []},
    ("POST", "/api/v1/incidents/{incident}/acknowledge"): {},
    ("POST", "/api/v1/silences"): {"seconds": 60},
    ("POST", "/api/v1/alerting/test"): {"receiver": "nobody"},
}
QUERIES = {
    ("GET", "/api/v1/runs/{run}/history"): {"layer": "fc1.weight"},
    ("GET", "/api/v1/compare"): {"run": "r", "layer": "fc1.weight"},
}
# A right answer that is no success: the login of the table is given a token that is none.
OTHER_SUCCESS = {
    ("POST", "/api/v1/alerting/test"): 422,
    ("POST", "/api/v1/session"): 401,
    ("GET", "/ui/{path:path}"): 404,
}
STREAM = ("GET", "/api/v1/runs/{run}/stream")


class Door:
    """A service with a run of project ``own``, and a token of every kind."""

    def __init__(self, api, clock):
        self.api, self.clock = api, clock
        self.secrets = {
            "root": self.token("root", "admin"),
            "ingest": self.token("i", "ingest"),
            "read": self.token("rd", "read"),
            "admin": self.token("a", "admin"),
            "own": self.token("o", "ingest", "read", "admin", project="own"),
            "foreign": self.token("f", "ingest", "read", "admin", project="foreign"),
            "expired": self.token("e", "admin", expires_at=START + HOUR),
            "revoked": self.token("rv", "admin"),
        }
        api.service.store.tokens.revoke("rv", author="root", now=START)
        clock.now += 2 * HOUR
        api._portal.call(lambda: api.service.tokens.refresh(now=True))
        self.names = iter(range(10_000))
        self.incident = self.new_incident()

    def token(self, name, *scopes, project=None, expires_at=None):
        given = {"project": project, "author": "test", "now": START, "expires_at": expires_at}
        token, secret = make_token(name, scopes, **given)
        self.api.service.store.tokens.add(token)
        return secret

    def new_incident(self):
        """Return the incident of a failed run of project ``own``."""
        store = self.api.service.store
        given = {"config": {}, "tags": (), "policy": None, "now": START}
        store.runs.create("failed", name="failed", project="own", **given)
        store.runs.finish("failed", "failed", START)
        deadline = time.monotonic() + 30
        while not (found := store.incidents.page(run="failed")[0]):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return found[0].id

    def prepare(self):
        """Make again what an allowed request has taken away."""
        store = self.api.service.store
        given = {"config": {}, "tags": (), "policy": None, "now": START}
        store.runs.create("r", name="r", project="own", **given)
        store.batches.put_layer_table("r", TABLE)
        store.tokens.add(make_token(f"t{next(self.names)}", ["read"], project=None, author="x",
                                   now=START, expires_at=None)[0])  # fmt: skip
        silence = Silence(0, "own", "*", "*", "*", self.clock.now + HOUR, "", "test", START)
        self.silence = store.silences.add(silence).id

    def ask(self, route, secret=None, *, headers=None):
        self.prepare()
        method, path = route
        name = f"t{next(self.names) - 1}" if method == "DELETE" else ""
        places = {"run": "r", "project": "own", "layer:path": "fc1.weight", "scalar": "loss",
                  "kind": "invalid", "path:path": "x", "name": name,
                  "incident": str(self.incident), "silence": str(self.silence),
                  "table_hash": TABLE.hash}  # fmt: skip
        path = re.sub(r"\{([^}]+)\}", lambda match: places[match[1]], path)
        sent = dict(headers or {})
        if secret is not None:
            sent["Authorization"] = f"Bearer {secret}"
        asked = "GET" if method == "HEAD" else method
        options = {"headers": sent, "params": QUERIES.get((asked, route[1]))}
        if route in BODIES:
            options["json"] = BODIES[route]
        elif route == ("POST", "/api/v1/tokens"):
            options["json"] = {"name": f"n{next(self.names)}", "scopes": ["read"]}
        elif path.endswith("/batches"):
            options["content"] = encode(batch_of(TABLE, sigma=[[1.0]]))
            sent["Content-Type"] = MEDIA_TYPE
        elif "layer-tables" in path:
            options["content"] = TABLE.body
            sent["Content-Type"] = "application/json"
        return self.api.request(method, path, **options)


@pytest.fixture(scope="module")
def door(tmp_path_factory):
    clock = Clock()
    # Every request of the table makes a token and a silence.
    settings = settings_in(
        tmp_path_factory.mktemp("door"),
        token_requests_per_second=1e6,
        store_tokens=100_000,
        store_silences=100_000,
    )
    with serving_app(settings, clock=clock) as api:
        yield Door(api, clock)


def every_route(app):
    """Yield (method, path) of whatever the app answers, however deep its router."""

    def below(routes):
        for route in routes:
            inner = getattr(route, "original_router", None)
            if inner is not None:
                yield from below(inner.routes)
            else:
                yield from ((method, route.path) for method in route.methods - {"HEAD"})

    return set(below(app.routes))


def test_every_route_has_an_entry_in_the_table(door):
    assert every_route(door.api.app) == set(TABLE_OF_ROUTES)


def test_the_service_does_not_start_with_a_route_that_nobody_decided_about(monkeypatch, tmp_path):
    needs = {name: need for name, need in authorization.NEEDS.items() if name != "get_heatmap"}
    monkeypatch.setattr(authorization, "NEEDS", needs)
    with pytest.raises(LookupError, match="get_heatmap"), serving_app(settings_in(tmp_path)):
        pass


ROUTES = sorted(TABLE_OF_ROUTES)
ids = {"ids": lambda route: " ".join(route)}
closed = pytest.mark.parametrize(
    "route", [route for route in ROUTES if TABLE_OF_ROUTES[route][0] != "open"], **ids
)


def assert_allowed(route, told):
    assert told.status_code == OTHER_SUCCESS.get(route, told.status_code)
    if route not in OTHER_SUCCESS:
        assert told.is_success, told.text


@closed
def test_without_a_token_it_is_401_with_a_challenge(door, route):
    for headers in ({}, {"Authorization": "Basic cm9vdDpyb290"}, {"Authorization": "Bearer"},
                    {"Authorization": ""}, {"Cookie": "other=1"}):  # fmt: skip
        told = door.ask(route, headers=headers)
        assert_problem(told, 401, "token-missing")
        assert told.headers["WWW-Authenticate"] == 'Bearer realm="snc"'


@closed
def test_a_token_that_does_not_count_is_401(door, route):
    ours = door.secrets["root"]
    wrong_end = ours[:-1] + ("0" if ours[-1] != "0" else "1")
    unknown = "snc_" + 12 * "0" + ours[16:]
    for secret in (wrong_end, unknown, ours[:-1], ours + "0", ours.upper(), "x", digest(ours),
                   door.secrets["expired"], door.secrets["revoked"]):  # fmt: skip
        told = door.ask(route, secret)
        assert_problem(told, 401, "token-invalid")
        assert 'error="invalid_token"' in told.headers["WWW-Authenticate"]
        assert secret not in told.text


@pytest.mark.parametrize(
    "route", [("HEAD", path) for method, path in ROUTES if method == "GET"], **ids
)
def test_a_head_asks_for_the_same_token_as_a_get(door, route):
    scope, _ = TABLE_OF_ROUTES["GET", route[1]]
    read_as_get = ("GET", route[1])
    told = door.ask(route)
    assert (told.status_code == 401) == (scope != "open")
    for who in ("read", "foreign"):
        if read_as_get != STREAM:
            told = door.ask(read_as_get, door.secrets[who])
            assert door.ask(route, door.secrets[who]).status_code == told.status_code


@closed
def test_a_token_in_a_url_is_no_token(door, route):
    root = door.secrets["root"]
    for query in ({"token": root}, {"access_token": root}, {"Authorization": f"Bearer {root}"}):
        assert door.api.request(route[0], "/api/v1/runs", params=query).status_code == 401


@pytest.mark.parametrize("route", [route for route in ROUTES if route != STREAM], **ids)
@pytest.mark.parametrize("scope", ["ingest", "read", "admin"])
def test_each_scope_reaches_what_it_is_for_and_admin_everything(door, route, scope):
    wanted, _ = TABLE_OF_ROUTES[route]
    told = door.ask(route, door.secrets[scope])
    if wanted in ("open", None, scope) or scope == "admin":
        assert_allowed(route, told)
    else:
        assert assert_problem(told, 403, "scope-missing")["scope"] == wanted
        assert f'scope="{wanted}"' in told.headers["WWW-Authenticate"]


@pytest.mark.parametrize("route", [route for route in ROUTES if route != STREAM], **ids)
def test_a_token_of_another_project_sees_nothing_of_this_one(door, route):
    _, bound = TABLE_OF_ROUTES[route]
    told = door.ask(route, door.secrets["foreign"])
    if bound == "run":
        detail = assert_problem(told, 404, "run-unknown")["detail"]
        assert detail == "there is no run 'r'"
    elif bound == "record":
        assert told.status_code == 404, told.text
    elif bound in ("project", "all"):
        assert_problem(told, 403, "project-refused")
    else:
        assert_allowed(route, told)
    if bound == "list":
        assert told.json()["items"] == []
    if bound == "count":
        seen = told.json()
        assert (seen["total"], seen["projects"], seen["tags"], seen["config"]) == (0, [], [], [])


@pytest.mark.parametrize("route", [route for route in ROUTES if route != STREAM], **ids)
def test_a_token_of_the_project_reaches_it(door, route):
    _, bound = TABLE_OF_ROUTES[route]
    told = door.ask(route, door.secrets["own"])
    if bound == "all":
        assert_problem(told, 403, "project-refused")
    else:
        assert_allowed(route, told)
    if bound == "list":
        assert told.json()["items"]
    if bound == "count":
        assert told.json()["total"] > 0


@pytest.mark.parametrize("secret", ["ingest", "foreign"])
def test_a_stream_is_refused_like_any_other_read(door, secret):
    told = door.ask(STREAM, door.secrets[secret])
    assert told.status_code == {"ingest": 403, "foreign": 404}[secret]


@pytest.mark.parametrize("route", sorted(r for r in ROUTES if r[0] in ("POST", "PUT")), **ids)
@pytest.mark.parametrize("who", [None, "read", "foreign", "revoked"])
def test_who_is_refused_is_refused_before_a_byte_of_the_body_is_read(door, route, who):
    scope, _ = TABLE_OF_ROUTES[route]
    in_body = (("POST", "/api/v1/runs"), ("POST", "/api/v1/silences"))
    if scope == "open" or (who == "foreign" and route in in_body):
        return  # the project stands in the body
    door.prepare()
    path = route[1].format(run="r", project="own", table_hash=TABLE.hash, incident=door.incident)
    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
    if who is not None:
        headers.append((b"authorization", f"Bearer {door.secrets[who]}".encode()))
    told = []

    async def never():
        raise AssertionError("the body was read")

    async def send(message):
        told.append(message)

    asgi = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http",
            "method": route[0], "path": path, "raw_path": path.encode(), "query_string": b"",
            "root_path": "", "headers": headers, "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80)}  # fmt: skip
    door.api._portal.call(door.api.app, asgi, never, send)
    assert told[0]["status"] in (401, 403, 404)


def test_an_open_door_stays_open_for_a_token_that_does_not_count(door):
    headers = {"Authorization": "Bearer nonsense"}
    for path in ("/healthz", "/readyz", "/", "/problems/invalid"):
        assert door.api.get(path, headers=headers).status_code == 200


def test_a_service_that_asks_for_tokens_may_be_reached_under_any_name(door):
    headers = {"Host": "snc.example", "Authorization": f"Bearer {door.secrets['read']}"}
    assert door.api.get("/api/v1/runs", headers=headers).status_code == 200


def test_a_run_that_another_project_has_is_not_resumed(door):
    door.prepare()
    headers = {"Authorization": f"Bearer {door.secrets['foreign']}"}
    told = door.api.post("/api/v1/runs", json={"run": "r"}, headers=headers)
    assert_problem(told, 403, "project-refused", "run")
    told = door.api.post("/api/v1/runs", json={"run": "mine"}, headers=headers)
    assert told.status_code == 201
    assert door.api.service.store.runs.get("mine").project == "foreign"


def test_whoever_changes_something_is_named(door):
    door.prepare()
    headers = {"Authorization": f"Bearer {door.secrets['own']}"}
    told = door.api.put("/api/v1/runs/r/policy", json={"entries": []}, headers=headers)
    assert told.json()["author"] == "o"
