"""``snc rules``, ``onset``, ``annotate``: rule settings, the onset, and planned changes."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from snc_service.cli.commands.alerts import read_document
from snc_service.cli.failure import Failure
from snc_service.cli.output import clean, local_time, print_json, print_table
from snc_service.cli.service import ServiceClient
from snc_service.wire import RuleSettings, WireError
from snc_service.wire.rule_settings import SHIPPED

_COLUMNS = ("limit", "for_rows", "armed", "severity", "on")


def get(arguments: Namespace) -> int:
    """Show the settings in force; as JSON they can be changed and given to ``set``."""
    with ServiceClient.of(arguments) as service:
        return _show(arguments, service.get(*_path(arguments)))


def put(arguments: Namespace) -> int:
    """Set the rules from a TOML or JSON file, and show the settings then in force."""
    settings = _given(arguments.file)
    version = arguments.if_version
    headers = {} if version is None else {"If-Match": f'"{version}"'}
    with ServiceClient.of(arguments) as service:
        answer = service.put(*_path(arguments), body=settings.changes(), headers=headers)
        return _show(arguments, answer)


def check(arguments: Namespace) -> int:
    """Show the differences of a file from the shipped rules, or its first wrong key."""
    changes = _given(arguments.file).changes()
    if arguments.json:
        print_json(changes)
        return 0
    rows = [
        (rule, key, getattr(SHIPPED[rule], key), value)
        for rule, changed in changes["rules"].items()
        for key, value in changed.items()
    ]
    print_table(f"Changes of the shipped rules: {len(rows)}", ("rule", "key", "was", "is"),
                [tuple(map(_word, row)) for row in rows])  # fmt: skip
    return 0


def onset(arguments: Namespace) -> int:
    """List the layers that left their healthy band, in the order in which they left it."""
    with ServiceClient.of(arguments) as service:
        answer = service.get("runs", arguments.run, "onset", limit=min(arguments.limit, 500))
    if arguments.json:
        print_json(answer)
        return 0
    if answer["step"] is None:
        print(clean(f"No layer of {arguments.run} has left its band."))
        return 0
    rows = [
        (place, *(each[key] for key in ("layer", "step", "alarm_step", "rule", "times_limit")))
        for place, each in enumerate(answer["items"], 1)
    ]
    total, first = answer["total"], answer["step"]
    title = f"Layers of {answer['run']} that left their band, from step {first}: {total}"
    print_table(clean(title), ("", "layer", "step", "alarm", "rule", "times its limit"), rows)
    return 0


def annotate(arguments: Namespace) -> int:
    """Mark a planned change."""
    body = {
        "step": arguments.step,
        "text": arguments.text,
        "quiet_steps": arguments.quiet_steps,
    }
    with ServiceClient.of(arguments) as service:
        made = service.post("runs", arguments.run, "annotations", body=body)
    if arguments.json:
        print_json(made)
    else:
        print(clean(f"Annotation {made['id']} at step {made['step']}: {made['text']}"))
    return 0


def _path(arguments: Namespace) -> tuple[str, str, str]:
    if arguments.project is not None:
        return "projects", arguments.project, "rules"
    return "runs", arguments.run, "rules"


def _given(path: str) -> RuleSettings:
    """Return the settings in a file, which may be the output of ``get --json``."""
    document = read_document(path)
    if "rules_version" in document:
        document = {"rules": document.get("rules")}
    try:
        return RuleSettings.parse(document)
    except WireError as error:
        raise Failure(str(error)) from None


def _show(arguments: Namespace, answer: dict[str, Any]) -> int:
    if arguments.json:
        print_json(answer)
        return 0
    title = f"Rules version {answer['rules_version']}"
    if answer.get("author"):
        title += f", set by {answer['author']} {local_time(answer.get('at'))}"
    rows = [
        (name, *(_word(rule[key]) for key in _COLUMNS), _changed(name, rule))
        for name, rule in answer["rules"].items()
    ]
    print_table(clean(title), ("rule", *_COLUMNS, "differs from shipped"), rows)
    return 0


def _changed(name: str, rule: dict[str, Any]) -> str:
    """Return the keys that differ from the shipped ones of this release."""
    shipped = SHIPPED.get(name)
    if shipped is None:
        return ""
    return ", ".join(key for key in _COLUMNS if rule[key] != getattr(shipped, key))


def _word(value: Any) -> Any:
    return ("on" if value else "off") if isinstance(value, bool) else value
