"""Authorization: one table with the needs of all routes. A route outside it fails at startup.

Every route below a run or a project checks, before a body is read, that the token reaches it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, Literal, NamedTuple, TypeAlias

from fastapi import APIRouter, Request
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool

from snc_service.api.state import InService, Service, access_of
from snc_service.auth import Access
from snc_service.problems import Problem
from snc_service.store.types import RunUnknown
from snc_service.store.types.records import Scope

# Where the project is checked: in the run or project of the path; nowhere; in the route itself (a
# list shows only the token's project); or `all`, where the answer covers every project and is
# refused to a token for one.
Bound: TypeAlias = Literal["path", "route", "all", "none"]


class Need(NamedTuple):
    """The needs of a route. ``scope`` None: any token; `OPEN`: no token."""

    scope: Scope | None
    bound: Bound = "path"


OPEN: Final = Need(None, "none")
NEEDS: Final[Mapping[str, Need]] = {
    # ingest: routes for training jobs
    "create_run": Need("ingest", "route"),
    "put_layer_table": Need("ingest"),
    "post_batch": Need("ingest"),
    "finish_run": Need("ingest"),
    "add_annotation": Need("ingest"),
    # read: routes for users and Prometheus
    "list_runs": Need("read", "route"),
    "summarize_runs": Need("read", "route"),
    "get_run": Need("read"),
    "list_layers": Need("read"),
    "get_layer_history": Need("read"),
    "get_layers_history": Need("read"),
    "get_scalar_history": Need("read"),
    "get_heatmap": Need("read"),
    "list_worst": Need("read"),
    "compare_runs": Need("read", "route"),
    "export_run": Need("read"),
    "get_onset": Need("read"),
    "get_forecast": Need("read"),
    "list_run_events": Need("read"),
    "list_events": Need("read", "route"),
    "get_policy": Need("read"),
    "list_policy_versions": Need("read"),
    "get_project_policy": Need("read"),
    "list_project_policy_versions": Need("read"),
    "get_rules": Need("read"),
    "list_rule_versions": Need("read"),
    "get_project_rules": Need("read"),
    "list_project_rule_versions": Need("read"),
    "list_annotations": Need("read"),
    "list_commands": Need("read"),
    "list_incidents": Need("read", "route"),
    "get_incident": Need("read", "route"),
    "list_silences": Need("read", "route"),
    "stream_run": Need("read"),
    "get_metrics": Need("read", "all"),
    "get_run_metrics": Need("read"),
    "get_service_discovery": Need("read", "all"),
    # admin: changes that affect the training of others
    "put_policy": Need("admin"),
    "put_project_policy": Need("admin"),
    "put_rules": Need("admin"),
    "put_project_rules": Need("admin"),
    "delete_run": Need("admin"),
    "edit_run": Need("admin"),
    "acknowledge_run": Need("admin"),
    "send_command": Need("admin"),
    "acknowledge_incident": Need("admin", "route"),
    "add_silence": Need("admin", "route"),
    "delete_silence": Need("admin", "route"),
    "get_alerting": Need("admin", "all"),
    "put_alerting": Need("admin", "all"),
    "list_alerting_versions": Need("admin", "all"),
    "list_receivers": Need("admin", "all"),
    "test_receiver": Need("admin", "all"),
    "create_token": Need("admin", "all"),
    "list_tokens": Need("admin", "all"),
    "revoke_token": Need("admin", "all"),
    "list_audit": Need("admin", "all"),
    # any token
    "get_about": Need(None, "none"),
    "get_docs": Need(None, "none"),
    # no token: see `is_open`
    "get_health": OPEN,
    "get_readiness": OPEN,
    "get_problem": OPEN,
    "get_session": OPEN,
    "open_session": OPEN,
    "close_session": OPEN,
}
SESSION_PATH: Final = "/api/v1/session"
OPEN_PATHS: Final = frozenset(("/", "/healthz", "/readyz", SESSION_PATH))
OPEN_BELOW: Final = ("/ui/", "/problems/")


def is_open(path: str) -> bool:
    """Return whether ``path`` is public: probes, the page's files, the login."""
    return path in OPEN_PATHS or path.startswith(OPEN_BELOW)


def refusals(name: str) -> tuple[str, ...]:
    """Return the kinds of problem that may be answered before the route is reached."""
    need = NEEDS[name]
    if need is OPEN:
        return ("host-refused",)
    kinds = ["token-missing", "token-invalid", "host-refused", "rate-limited", "store-unavailable"]
    if need.scope is not None:
        kinds.append("scope-missing")
    if need.bound != "none":
        kinds.append("project-refused")
    return tuple(kinds)


def check_complete(routers: Iterable[APIRouter]) -> None:
    """Raise `LookupError` for a route without an entry in `NEEDS`."""
    names = {getattr(route, "name", "") for router in routers for route in router.routes}
    if names != set(NEEDS):
        raise LookupError(f"NEEDS must name every route once, differs in {names ^ set(NEEDS)}")


async def authorised(request: Request, service: InService) -> None:
    """Let a request pass to its route, or raise `Problem` 403 or 404. Reads no body."""
    route: APIRoute = request.scope["route"]
    need, access = NEEDS[route.name], access_of(request)
    if need.scope is not None and not access.allows(need.scope):
        raise Problem(
            "scope-missing",
            f"the token's scopes must include {need.scope}, got {', '.join(sorted(access.scopes))}",
            headers={
                "WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{need.scope}"'
            },
            scope=need.scope,
        )
    if access.project is not None:
        await _check_project(request, service, need.bound, access)


async def _check_project(request: Request, service: Service, bound: Bound, access: Access) -> None:
    if bound == "all":
        raise Problem(
            "project-refused",
            f"the token must be for all projects, it is for {access.project!r} only",
        )
    if bound != "path":
        return
    run, project = request.path_params.get("run"), request.path_params.get("project")
    if project is not None:
        check_project(access, project)
    if run is not None and not access.reaches(await run_in_threadpool(_project_of, service, run)):
        # Same text as for a missing run: a token must not reveal runs of other projects.
        raise RunUnknown(f"there is no run {run!r}")


def _project_of(service: Service, run: str) -> str:
    return service.store.runs.project_of(run)


def check_project(access: Access, project: str) -> None:
    """Raise `Problem` (403) if a request names a project other than the token's."""
    if not access.reaches(project):
        raise Problem(
            "project-refused",
            f"project must be {access.project!r}, that of the token, got {project[:80]!r}",
            field="project",
        )
