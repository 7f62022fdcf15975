"""``snc policy get``, ``set`` and ``recipe``: thresholds in force, and some to begin with."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any, Final

from snc_service.cli.commands.alerts import read_document
from snc_service.cli.failure import Failure
from snc_service.cli.output import clean, local_time, print_json, print_table
from snc_service.cli.service import ServiceClient
from snc_service.wire import Policy, WireError

RECIPES: Final = Path(__file__).resolve().parents[1] / "recipes"


def get(arguments: Namespace) -> int:
    """Show the policy in force."""
    with ServiceClient.of(arguments) as service:
        return _show(arguments, service.get(*_path(arguments)))


def put(arguments: Namespace) -> int:
    """Set the policy from ``--entry`` options or a file, and show the policy then in force."""
    policy = _given(arguments)
    version = arguments.if_version
    headers = {} if version is None else {"If-Match": f'"{version}"'}
    with ServiceClient.of(arguments) as service:
        answer = service.put(*_path(arguments), body=policy.as_dict(), headers=headers)
        return _show(arguments, answer)


def recipe(arguments: Namespace) -> int:
    """Print the policy file of a use, TOML with comments."""
    sys.stdout.write((RECIPES / f"{arguments.use}.toml").read_text(encoding="utf-8"))
    return 0


def policy_in(path: str) -> Policy:
    """Return the policy in a file, TOML or JSON. Raises `Failure`."""
    try:
        return Policy.parse(read_document(path))
    except WireError as error:
        raise Failure(str(error)) from None


def _path(arguments: Namespace) -> tuple[str, str, str]:
    if arguments.project is not None:
        return "projects", arguments.project, "policy"
    return "runs", arguments.run, "policy"


def _given(arguments: Namespace) -> Policy:
    if (arguments.entries is None) == (arguments.file is None):
        raise Failure("give the policy either with --entry (repeatable) or with --file")
    if arguments.file is not None:
        return policy_in(arguments.file)
    try:
        return Policy.parse({"entries": [_entry(text) for text in arguments.entries]})
    except WireError as error:
        raise Failure(str(error)) from None


def _entry(text: str) -> dict[str, Any]:
    """Read ``PATTERN=THRESHOLD[:ACTION]``; the last = separates; a pattern may contain others."""
    pattern, equals, rest = text.rpartition("=")
    if not equals:
        raise Failure(f"an entry must be PATTERN=THRESHOLD[:ACTION], got {text!r}")
    threshold, colon, action = rest.partition(":")
    entry: dict[str, Any] = {"pattern": pattern, "threshold": _threshold(threshold.strip())}
    return {**entry, "action": action.strip()} if colon else entry


def _threshold(text: str) -> float | str | None:
    if text == "none":
        return None
    try:
        return float(text)
    except ValueError:
        return text  # "3x init"; the wire checks its form


def _show(arguments: Namespace, answer: dict[str, Any]) -> int:
    if arguments.json:
        print_json(answer)
        return 0
    entries = answer["policy"]["entries"]
    title = f"Policy version {answer['policy_version']}"
    if answer.get("author"):
        title += f", set by {answer['author']} {local_time(answer.get('at'))}"
    rows = [
        (e["pattern"], "none" if e["threshold"] is None else e["threshold"], e["action"])
        for e in entries
    ]
    print_table(clean(title), ("pattern", "threshold", "action"), rows)
    if not entries:
        print("No entry: every layer is observed only.")
    return 0
