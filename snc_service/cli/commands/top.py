"""``snc top``: the worst layers, the loss and the open incidents, drawn again every few seconds."""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from snc_service.cli.failure import Failure
from snc_service.cli.output import (
    Ratio,
    clean,
    console,
    local_time,
    print_json,
    sparkline,
    table,
)
from snc_service.cli.service import ServiceClient

if TYPE_CHECKING:
    from rich.console import RenderableType

LAYERS = 15
RUNS = 30
INCIDENTS = 5
SPARKS = 24  # buckets of a sparkline
STYLES = {"info": "dim", "warning": "yellow", "critical": "bold red"}


def top(arguments: Namespace) -> int:
    """Show a run, or all active runs, until Ctrl-C; in a pipe or with --once, show it once."""
    with ServiceClient.of(arguments) as service:
        if arguments.json:
            print_json(_of_run(service, arguments.run) if arguments.run else _of_all(service))
            return 0
        if arguments.once or not sys.stdout.isatty():
            console().print(_frame(service, arguments.run))
            return 0
        return _live(service, arguments)


def _live(service: ServiceClient, arguments: Namespace) -> int:
    from rich.live import Live
    from rich.text import Text

    frame = _frame(service, arguments.run)
    try:
        with Live(frame, console=console(), screen=True, auto_refresh=False) as live:
            while True:
                live.update(frame, refresh=True)
                time.sleep(arguments.every)
                try:
                    frame = _frame(service, arguments.run)
                except Failure as failure:
                    # A service that restarts is no reason to end; the last frame says nothing new.
                    frame = Text(f"{failure}; asking again every {arguments.every} s", "red")
    except KeyboardInterrupt:
        return 0


def _frame(service: ServiceClient, run: str | None) -> RenderableType:
    return _run_frame(_of_run(service, run)) if run else _runs_frame(_of_all(service))


def _of_run(service: ServiceClient, run: str) -> dict[str, Any]:
    """Return what is shown of a run, as the service answers it."""
    record = service.get("runs", run)
    layers = list(service.items("runs", run, "layers", limit=LAYERS, sort="-ratio"))
    names = [layer["layer"] for layer in layers]
    answer = service.get("runs", run, "history", layer=names, points=SPARKS) if names else {}
    loss = service.get("runs", run, "scalars", "loss", "history", points=SPARKS)
    incidents = service.items("incidents", limit=INCIDENTS, run=run, state="open", sort="severity")
    histories = {each["layer"]: each for each in answer.get("layers", ())}
    nothing: dict[str, Any] = {"max": [], "nonfinite": []}
    return {
        "run": record,
        "loss": loss,
        "layers": [
            layer
            | {
                "history": histories.get(layer["layer"], nothing)["max"],
                "history_nonfinite": histories.get(layer["layer"], nothing)["nonfinite"],
            }
            for layer in layers
        ],
        "incidents": list(incidents),
    }


def _of_all(service: ServiceClient) -> dict[str, Any]:
    """Return the active and silent runs, the worst ratio first, and the open incidents."""
    runs = [
        run
        for state in ("active", "silent")
        for run in service.items("runs", limit=RUNS, state=state)
    ]
    runs.sort(key=lambda run: -(run["worst_ratio"] or 0.0))
    incidents = service.items("incidents", limit=INCIDENTS, state="open", sort="severity")
    return {"runs": runs[:RUNS], "incidents": list(incidents)}


def _run_frame(seen: dict[str, Any]) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    run, loss = seen["run"], seen["loss"]
    newest = next((v for v in reversed(loss["mean"]) if v is not None), None)
    head = [
        f"{run['run']}  {run['state']}  step {run['last_step']}  {run['layers']} layers",
        f"breaches {run['breaches']}  rescales {run['rescales']}",
    ]
    if newest is not None:
        head.append(f"loss {newest:.4g}  {sparkline(loss['mean'])}")
    rows = [
        (
            layer["layer"],
            Ratio(layer["ratio"]),
            layer["sigma"],
            layer["threshold"],
            layer["step"],
            sparkline(layer["history"], layer["history_nonfinite"]),
        )
        for layer in seen["layers"]
    ]
    columns = ("layer", "ratio", "sigma", "threshold", "step", "history")
    worst = table(f"Worst {len(rows)} of {run['layers']} layers", columns, rows)
    return Group(Text(clean("   ".join(head)), "bold"), worst, _incidents(seen["incidents"]))


def _runs_frame(seen: dict[str, Any]) -> RenderableType:
    from rich.console import Group

    rows = [
        (
            run["run"],
            run["state"],
            run["last_step"],
            Ratio(run["worst_ratio"]),
            run["worst_layer"],
            run["breaches"],
            local_time(run["updated_at"]),
        )
        for run in seen["runs"]
    ]
    columns = ("run", "state", "step", "worst ratio", "worst layer", "breaches", "updated")
    return Group(table(f"Runs at work: {len(rows)}", columns, rows), _incidents(seen["incidents"]))


def _incidents(incidents: list[dict[str, Any]]) -> RenderableType:
    from rich.text import Text

    text = Text("Open incidents, the worst first" if incidents else "No open incident")
    for each in incidents:
        # The newest event, with the step at which it came: the incident's own is that of the first.
        step, message = each["step"], each["rule"]
        if each["events"]:
            step, message = (each["events"][-1][name] for name in ("step", "message"))
        line = f"{each['severity']}  {each['run']}  step {step}  {message}"
        text.append(f"\n  {clean(line)}", STYLES.get(each["severity"], ""))
    return text
