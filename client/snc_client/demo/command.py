"""Arguments, progress bars and the closing summary of ``snc demo``."""

from __future__ import annotations

import argparse
import signal
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor

from snc_client import Action
from snc_client.demo.faults import FAULTS
from snc_client.demo.service import ServiceFailed, free_port, serving
from snc_client.demo.text import encode, standard_library_text
from snc_client.demo.training import THRESHOLD, Recipe, Trained, train

LINES = 10  # of progress in a pipe, for each run
ACTIONS: dict[str, Action] = {"observed": "observe", "constrained": "rescale"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; return the process's exit status."""
    options = _parser().parse_args(argv)
    # A shell makes jobs in the background ignore Ctrl-C; the demo ends by it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    console = Console(highlight=False)
    recipe = Recipe(steps=options.steps, fault_step=options.steps // 3, fault=options.fault)
    try:
        with tempfile.TemporaryDirectory(prefix="snc-demo-") as folder:
            store = options.store or Path(folder) / "demo.db"
            with serving(store, free_port(options.port)) as url:
                _run(console, recipe, url)
                if not options.exit:
                    _serve_until_interrupted(console, url)
    except ServiceFailed as error:
        console.print(f"[red]{error}[/red]")
        return 1
    except KeyboardInterrupt:
        console.print("\nstopped")
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="snc demo",
        description="Train a character transformer twice from one seed with one fault: once "
        "observed, once constrained; then serve both on the page until Ctrl-C.",
    )
    parser.add_argument("--exit", action="store_true", help="end after the training")
    parser.add_argument("--port", type=int, default=8470, help="default 8470, else a free one")
    parser.add_argument("--steps", type=_steps, default=Recipe.steps, help="steps of each run")
    parser.add_argument(
        "--fault",
        choices=FAULTS,
        default=Recipe.fault,
        help="; ".join(f"{name}: {fault.summary}" for name, fault in FAULTS.items())
        + f" (default: {Recipe.fault})",
    )
    parser.add_argument("--store", type=Path, help="keep the history in this file")
    return parser


def _steps(text: str) -> int:
    steps = int(text)
    if not 30 <= steps <= 100_000:
        raise argparse.ArgumentTypeError(f"must be 30 to 100000, got {steps}")
    return steps


def _run(console: Console, recipe: Recipe, url: str) -> None:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    runs = {label: f"{label}-{stamp}" for label in ACTIONS}
    page = f"{url}/#/compare/{runs['observed']}/{runs['constrained']}"
    console.print(f"[bold]page[/bold]   {page}", soft_wrap=True)
    console.print(
        f"[bold]fault[/bold]  from step {recipe.fault_step} on, {FAULTS[recipe.fault].summary}",
        soft_wrap=True,
    )
    thresholds = ", ".join(f"{pattern} {value}" for pattern, value in THRESHOLD.items())
    console.print(
        f"[bold]held[/bold]   the constrained run, under {thresholds}",
        soft_wrap=True,
    )
    tokens = encode(standard_library_text())
    trained = _train_both(console, recipe, tokens, url, runs)
    _print_summary(console, recipe, trained, url)
    console.print("\nWhat to look at, on the page below:")
    console.print("1. the loss of both runs, from the fault on", soft_wrap=True)
    console.print(
        f"2. the heatmap of the observed run: {FAULTS[recipe.fault].signs}", soft_wrap=True
    )
    console.print("3. the same rows of the constrained run, held under 1", soft_wrap=True)
    console.print('4. "which layer went first", on the page of either run', soft_wrap=True)
    console.print(f"\n[bold]page[/bold]   {page}", soft_wrap=True)
    console.print(f"[bold]curl[/bold]   {_curl(url, runs['constrained'])}", soft_wrap=True)


def _train_both(
    console: Console, recipe: Recipe, tokens: Tensor, url: str, runs: dict[str, str]
) -> dict[str, Trained]:
    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeElapsedColumn(),
    )
    trained: dict[str, Trained] = {}
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        for label, action in ACTIONS.items():
            task = progress.add_task(label, total=recipe.steps, loss=float("nan"))

            def advance(step: int, loss: float, task: Any = task, label: str = label) -> None:
                progress.update(task, completed=step, loss=loss)
                # A bar is drawn once in a pipe, at the end: print lines instead.
                if not console.is_terminal and step % max(1, recipe.steps // LINES) == 0:
                    console.print(f"{label}: step {step} of {recipe.steps}, loss {loss:.3f}")

            trained[label] = train(
                recipe, tokens, action=action, url=url, run=runs[label], progress=advance
            )
    return trained


def _print_summary(console: Console, recipe: Recipe, trained: dict[str, Trained], url: str) -> None:
    table = Table("", *trained, title=f"\n{recipe.steps} steps of each run", title_justify="left")
    stored = {label: _stored(url, end.run) for label, end in trained.items()}

    def row(name: str, values: Sequence[object]) -> None:
        table.add_row(name, *(str(value) for value in values))

    row("loss before the fault", [f"{end.loss_before_fault:.3f}" for end in trained.values()])
    row("loss at the end", [f"{end.loss:.3f}" for end in trained.values()])
    row("largest sigma / threshold", [f"{end.worst_ratio:.4f}" for end in trained.values()])
    row("overhead, % of step time", [f"{100 * end.overhead:.1f}" for end in trained.values()])
    row("layers", [end.layers for end in trained.values()])
    for counter in ("last_step", "breaches", "rescales", "events"):
        row(counter.replace("_", " "), [stored[label][counter] for label in trained])
    row("values dropped", [end.dropped_values for end in trained.values()])
    console.print(table)
    console.print(
        "losses: means of 30 steps\n"
        "largest sigma / threshold: float64 SVD of the weights after the action, every 25 steps",
        style="dim",
    )


def _stored(url: str, run: str) -> dict[str, Any]:
    """Return the service's record of a run, with the number of its events."""
    with httpx.Client(base_url=f"{url}/api/v1", timeout=10.0, trust_env=False) as client:
        record: dict[str, Any] = client.get(f"/runs/{run}").raise_for_status().json()
        events = client.get(f"/runs/{run}/events", params={"limit": 500}).raise_for_status()
        return record | {"events": len(events.json()["items"])}


def _curl(url: str, run: str) -> str:
    layer = quote("blocks.0.query.weight")
    return f"curl '{url}/api/v1/runs/{run}/layers/{layer}/history?metric=sigma&points=20'"


def _serve_until_interrupted(console: Console, url: str) -> None:
    try:
        console.print(f"\nmetrics for Prometheus: {url}/metrics", soft_wrap=True)
        console.print("serving until Ctrl-C")
        threading.Event().wait()
    except KeyboardInterrupt:
        console.print("\nstopped")
