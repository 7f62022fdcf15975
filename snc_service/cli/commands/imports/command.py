"""``snc import``: reads what paths hold, run by run, and sends it, or only says what it would."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from snc_service.cli.commands.imports.delivery import Delivered, deliver
from snc_service.cli.commands.imports.plan import ImportPlan, plan
from snc_service.cli.failure import Failure
from snc_service.cli.output import clean, print_json, print_table
from snc_service.cli.service import ServiceClient
from snc_service.importing.name_map import NameEntry, entries
from snc_service.importing.recording import Recording
from snc_service.importing.sources import FoundSource, find
from snc_service.wire import RUN_NAME, WireError

Told = Callable[[int], object]


@dataclass
class ImportReport:
    """What was imported, and what could not be."""

    items: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)


def import_runs(arguments: Namespace) -> int:
    """Import everything; a source that cannot be read does not keep the others from it."""
    try:
        own = entries(arguments.map)
        sources = [source for path in arguments.paths for source in find(Path(path))]
    except WireError as error:
        raise Failure(str(error)) from None
    except OSError as error:
        raise Failure(f"cannot read {error.filename}: {error.strerror or error}") from None
    if arguments.name and len(sources) > 1:
        raise Failure(f"--name must be for one run, got {len(sources)} sources")
    if arguments.project and not RUN_NAME.fullmatch(arguments.project):
        raise Failure(f"--project must match {RUN_NAME.pattern}, got {arguments.project[:80]!r}")
    report = ImportReport()
    if arguments.dry_run:
        _import_all(sources, own, arguments, report, None)
    else:
        with ServiceClient.of(arguments) as service:
            _import_all(sources, own, arguments, report, service)
    if arguments.json:
        print_json({"items": report.items, "failed": report.failed})
    else:
        _print(report, dry=arguments.dry_run)
    return 1 if report.failed else 0


def _import_all(
    sources: list[FoundSource],
    own: tuple[NameEntry, ...],
    arguments: Namespace,
    report: ImportReport,
    service: ServiceClient | None,
) -> None:
    for source in sources:
        try:
            runs: Iterable[Recording] = source.read(arguments.step)
            if arguments.name:
                runs = [*runs]  # before anything is sent
                if len(runs) > 1:
                    raise Failure(f"--name must be for one run, got several in {source.shown_as}")
            for recording in runs:
                _import_one(recording, own, arguments, report, service)
        except WireError as error:
            report.failed.append(_failure(source.shown_as, error))
        except OSError as error:
            text = f"cannot be read: {error.strerror or error}"
            report.failed.append({"source": source.shown_as, "error": text})


def _failure(source: str, error: WireError) -> dict[str, str]:
    """Return what is reported of a source; a problem of the whole file does not name it again."""
    is_whole = error.field == Path(source).name
    return {"source": source, "error": error.message if is_whole else str(error)}


def _import_one(
    recording: Recording,
    own: tuple[NameEntry, ...],
    arguments: Namespace,
    report: ImportReport,
    service: ServiceClient | None,
) -> None:
    try:
        planned = plan(recording, own, arguments)
    except WireError as error:
        report.failed.append(_failure(recording.source, error))
        return
    delivered = None
    if service is not None:
        with _progress(planned) as told:
            delivered = deliver(service, planned, told)
    report.items.append(_item(planned, delivered))


def _item(planned: ImportPlan, delivered: Delivered | None) -> dict[str, Any]:
    columns, names = planned.columns, planned.names
    of = {metric: 0 for metric in columns.metrics}
    for key in set(names.series.values()):
        if key.layer is not None:
            of[key.name] += 1
    return {
        "run": planned.run,
        "source": planned.recording.source,
        "kind": planned.recording.kind,
        "state": None if delivered is None else delivered.state,
        "end": planned.end,
        "steps": columns.num_steps,
        "layers": len(columns.layers),
        "values": columns.num_values,
        "sent_values": 0 if delivered is None else delivered.sent_values,
        "metrics": of,
        "scalars": {name: names.renamed.get(name, name) for name in columns.scalars},
        "notes": planned.remarks,
    }


_SAID = {
    "new": "imported",
    "continued": "continued",
    "there": "already there",
    "kept": "other values are there, and no later steps: kept",
    None: "not sent",
}


def _print(report: ImportReport, *, dry: bool) -> None:
    if report.items:
        print_table(
            "Would be imported:" if dry else "Imported:",
            ("run", "from", "state", "steps", "layers", "values", "sent"),
            [
                (i["run"], i["source"], _SAID[i["state"]], i["steps"], i["layers"], i["values"],
                 i["sent_values"])
                for i in report.items
            ],
        )  # fmt: skip
    for item in report.items:
        if dry:
            of = ", ".join(f"{name} of {count}" for name, count in item["metrics"].items())
            print(clean(f"{item['run']}: layers: {of or 'none'}"))
            pairs = (n if n == s else f"{n} ({s})" for n, s in item["scalars"].items())
            print(clean(f"{item['run']}: scalars: {', '.join(pairs) or 'none'}"))
        for note in item["notes"]:
            print(clean(f"{item['run']}: {note}"))
    for failure in report.failed:
        print(clean(f"snc: {failure['source']}: {failure['error']}"), file=sys.stderr)


def _progress(planned: ImportPlan) -> AbstractContextManager[Told]:
    """Show how many of the values are sent, on a terminal."""
    return _bar(planned) if sys.stderr.isatty() else nullcontext(lambda count: None)


@contextmanager
def _bar(planned: ImportPlan) -> Iterator[Told]:
    try:
        from rich import progress
        from rich.console import Console
        from rich.text import Text
    except ModuleNotFoundError:
        yield lambda count: None
        return
    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.TaskProgressColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True)) as bar:
        name = Text(clean(planned.run)).markup
        task = bar.add_task(name, total=planned.columns.num_values)
        yield lambda count: bar.advance(task, count)
