"""``snc layers``, ``history``, ``events``: data of a running service as tables."""

from __future__ import annotations

import time
from argparse import Namespace
from typing import Any

from snc_service.cli.output import Ratio, clean, local_time, print_json, print_table, sparkline
from snc_service.cli.service import ServiceClient

POLL_SECONDS = 1.0


def layers(arguments: Namespace) -> int:
    """List the layers of a run, with the forecast of when each reaches its threshold."""
    with ServiceClient.of(arguments) as service:
        soon = service.get("runs", arguments.run, "forecast", limit=500)["items"]
        items = list(
            service.items(
                "runs", arguments.run, "layers", limit=arguments.limit, sort=arguments.sort
            )
        )
    left = {each["layer"]: each["steps"] for each in soon}
    for item in items:
        item["steps_to_threshold"] = left.get(item["layer"])
        upper, age = item["sigma_upper"], item["metrics"].get("bound_age")
        if upper is not None and age and not arguments.json:  # it may be below sigma by now
            item["sigma_upper"] = f"{upper:.4g} aged"
    columns = ("layer", "kind", "shape", "step", "sigma", "sigma_upper", "threshold", "ratio")
    shown = (*columns, "scale", "steps_to_threshold")
    return _list(arguments, f"Layers of {arguments.run}", shown, items)


def history(arguments: Namespace) -> int:
    """Show the history of one layer: a sparkline, and a row per bucket of steps."""
    with ServiceClient.of(arguments) as service:
        answer = service.get(
            *("runs", arguments.run, "layers", arguments.layer, "history"),
            metric=arguments.metric,
            from_step=arguments.from_step,
            to_step=arguments.to_step,
            points=arguments.points,
        )
    if arguments.json:
        print_json(answer)
        return 0
    exact = answer["bucket_steps"] == 1
    shown = ("mean",) if exact else ("mean", "min", "max")
    rows = zip(answer["steps"], *(answer[name] for name in shown), strict=True)
    title = f"{answer['layer']}: {answer['metric']} of {answer['run']}"
    if not exact:
        title += f", {answer['bucket_steps']} steps a row"
    print(clean(title))
    print(sparkline(answer["max"]))
    print_table("", ("step", *(("value",) if exact else shown)), rows)
    return 0


def worst(arguments: Namespace) -> int:
    """List the layers with the largest single values."""
    with ServiceClient.of(arguments) as service:
        answer = service.get(
            *("runs", arguments.run, "worst"),
            metric=arguments.metric,
            from_step=arguments.from_step,
            to_step=arguments.to_step,
            k=arguments.limit,
        )
    columns = ("layer", "value", "step", "nonfinite")
    title = f"Worst layers of {arguments.run} by {arguments.metric}"
    return _list(arguments, title, columns, answer["items"])


def compare(arguments: Namespace) -> int:
    """Show one layer in several runs: a sparkline and the extremes of each."""
    with ServiceClient.of(arguments) as service:
        answer = service.get(
            "compare",
            run=arguments.runs,
            layer=arguments.layer,
            metric=arguments.metric,
            from_step=arguments.from_step,
            to_step=arguments.to_step,
            points=arguments.points,
        )
    if arguments.json:
        print_json(answer)
        return 0
    rows = [_summary(run) for run in answer["runs"]]
    columns = ("run", "first step", "last step", "smallest", "largest", "newest", "history")
    print_table(f"{arguments.layer}: {arguments.metric}", columns, rows)
    if answer["without"]:
        print(clean(f"Without such a layer: {', '.join(answer['without'])}"))
    return 0


def _summary(run: dict[str, Any]) -> tuple[Any, ...]:
    lows, highs = ([v for v in run[name] if v is not None] for name in ("min", "max"))
    ends = (run["steps"][0], run["steps"][-1]) if run["steps"] else (None, None)
    newest = run["mean"][-1] if run["mean"] else None
    extremes = (min(lows, default=None), max(highs, default=None))
    return (run["run"], *ends, *extremes, newest, sparkline(run["max"]))


def events(arguments: Namespace) -> int:
    """List the events of a run, oldest first; with ``--follow`` until the run closes."""
    with ServiceClient.of(arguments) as service:
        path = ("runs", arguments.run, "events")
        query = {"rule": arguments.rule, "severity": arguments.severity}
        found = list(service.items(*path, limit=arguments.limit, **query))[::-1]
        if not arguments.follow:
            columns = ("at", "step", "severity", "rule", "layer", "message")
            return _list(arguments, f"Events of {arguments.run}", columns, found)
        seen = -1
        while True:
            # The state is read first, so the list after it has the last events of a closing run.
            is_open = service.get("runs", arguments.run)["state"] in ("active", "silent")
            for event in _newer(service, path, query, seen, found):
                _print_event(arguments, event)
                seen = event["id"]
            if not is_open:
                return 0
            found = []
            time.sleep(POLL_SECONDS)


def _newer(
    service: ServiceClient,
    path: tuple[str, ...],
    query: dict[str, Any],
    seen: int,
    found: list[Any],
) -> list[Any]:
    """Return the events after ``seen``, oldest first, including those in ``found``."""
    seen = max([seen, *(event["id"] for event in found)])
    fresh = []
    for event in service.items(*path, limit=10_000, **query):  # newest first
        if event["id"] <= seen:
            break
        fresh.append(event)
    return [*found, *fresh[::-1]]


def _print_event(arguments: Namespace, event: dict[str, Any]) -> None:
    if arguments.json:
        print_json(event, indent=None)
        return
    words = (local_time(event["at"]), f"step {event['step']}", event["severity"], event["rule"])
    print(clean("  ".join((*words, str(event["message"])))), flush=True)


def _list(
    arguments: Namespace, title: str, columns: tuple[str, ...], items: list[dict[str, Any]]
) -> int:
    if arguments.json:
        print_json({"items": items, "next": None})
        return 0
    rows = [[_shown(name, item.get(name)) for name in columns] for item in items]
    print_table(f"{title}: {len(items)}", columns, rows)
    return 0


def _shown(column: str, value: Any) -> Any:
    if column in ("ratio", "worst_ratio"):
        return Ratio(value)
    if column.endswith("_at") or column == "at":
        return local_time(value)
    if isinstance(value, list):
        return " x ".join(map(str, value))
    return value
