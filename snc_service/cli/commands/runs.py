"""``snc runs`` and its verbs: find runs, and rename, tag, note, archive, delete or finish them."""

from __future__ import annotations

import sys
from argparse import Namespace
from typing import Any

from snc_service.cli.failure import Failure
from snc_service.cli.output import Ratio, clean, local_time, print_json, print_table
from snc_service.cli.service import ServiceClient

COLUMNS = ("run", "name", "project", "state", "last_step", "loss", "worst_ratio", "incidents",
           "breaches", "updated_at")  # fmt: skip
SHOWN: dict[str, Any] = {"worst_ratio": Ratio, "updated_at": local_time}


def list_runs(arguments: Namespace) -> int:
    """List runs."""
    asked = {
        "project": arguments.project,
        "state": arguments.state,
        "q": arguments.query,
        "sort": arguments.sort,
    }
    with ServiceClient.of(arguments) as service:
        items = list(service.items("runs", limit=arguments.limit, **asked))
    if arguments.json:
        print_json({"items": items, "next": None})
        return 0
    rows = [[SHOWN.get(name, _same)(item[name]) for name in COLUMNS] for item in items]
    print_table(f"Runs: {len(items)}", COLUMNS, rows)
    return 0


def rename(arguments: Namespace) -> int:
    """Give a run another name."""
    return _edited(arguments, [arguments.run], name=arguments.name)


def note(arguments: Namespace) -> int:
    """Set the note of a run."""
    text = sys.stdin.read() if arguments.text == "-" else arguments.text
    return _edited(arguments, [arguments.run], note=text)


def archive(arguments: Namespace) -> int:
    """Move runs to the archive, or back."""
    return _edited(arguments, arguments.runs, archived=not arguments.undo)


def tag(arguments: Namespace) -> int:
    """Add tags to runs or take them off."""
    if not arguments.add and not arguments.remove:
        raise Failure("tag must be given --add TAG or --remove TAG")
    with ServiceClient.of(arguments) as service:
        items = []
        for run in arguments.runs:
            before = service.get("runs", run)["tags"]
            kept = [one for one in before if one not in arguments.remove]
            tags = list(dict.fromkeys([*kept, *arguments.add]))
            items.append(service.patch("runs", run, body={"tags": tags}))
    return _said(arguments, items)


def finish(arguments: Namespace) -> int:
    """Close runs."""
    state = "failed" if arguments.failed else "finished"
    with ServiceClient.of(arguments) as service:
        items = [
            service.post("runs", run, "finish", body={"state": state}) for run in arguments.runs
        ]
    return _said(arguments, items)


def delete(arguments: Namespace) -> int:
    """Delete runs, after a question that names them."""
    with ServiceClient.of(arguments) as service:
        items = [service.get("runs", run) for run in arguments.runs]  # each exists, or none goes
        if not arguments.yes:
            _ask(items)
        for run in arguments.runs:
            service.delete("runs", run)
    if arguments.json:
        print_json({"deleted": arguments.runs})
    else:
        print(clean(f"Deleted: {', '.join(arguments.runs)}"))
    return 0


def _ask(items: list[dict[str, Any]]) -> None:
    if not sys.stdin.isatty():
        raise Failure("delete must be confirmed: add --yes where nobody can be asked")
    for item in items:
        step = "no step" if item["last_step"] is None else f"step {item['last_step']}"
        print(clean(f"{item['run']}  {item['name']}  {item['state']}  {step}"))
    answer = input(f"Delete {len(items)} for good? Type yes: ")
    if answer.strip().lower() != "yes":
        raise Failure("nothing was deleted")


def _edited(arguments: Namespace, runs: list[str], **change: object) -> int:
    with ServiceClient.of(arguments) as service:
        items = [service.patch("runs", run, body=change) for run in runs]
    return _said(arguments, items)


def _said(arguments: Namespace, items: list[dict[str, Any]]) -> int:
    if arguments.json:
        print_json({"items": items})
        return 0
    for item in items:
        tags = f"  tags: {', '.join(item['tags'])}" if item["tags"] else ""
        archived = "  archived" if item["archived"] else ""
        print(clean(f"{item['run']}  {item['name']}  {item['state']}{archived}{tags}"))
    return 0


def _same(value: object) -> object:
    return value
