"""``snc alerts``: routing, incidents, acknowledgements and silences."""

from __future__ import annotations

import re
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from snc_service.cli.failure import Failure
from snc_service.cli.output import local_time, print_json, print_table
from snc_service.cli.service import ServiceClient
from snc_service.wire import WireError
from snc_service.wire.checks import json_object

_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_NOT_DELIVERED = 1


def get(arguments: Namespace) -> int:
    """Show the routing in force; as JSON it can be changed and given to ``set``."""
    with ServiceClient.of(arguments) as service:
        answer = service.get("alerting")
        if arguments.json:
            print_json(answer["alerting"])
            return 0
        return _show(answer, service.get("alerting", "receivers")["items"])


def put(arguments: Namespace) -> int:
    """Set the routing from a JSON or TOML file, and show the routing then in force."""
    document = read_document(arguments.file)
    version = arguments.if_version
    headers = {} if version is None else {"If-Match": f'"{version}"'}
    with ServiceClient.of(arguments) as service:
        answer = service.put("alerting", body=document, headers=headers)
        if arguments.json:
            print_json(answer["alerting"])
            return 0
        return _show(answer, service.get("alerting", "receivers")["items"])


def test(arguments: Namespace) -> int:
    """Send receivers a test message; the exit status is 1 if one of them failed."""
    with ServiceClient.of(arguments) as service:
        names = arguments.receivers or list(service.get("alerting")["alerting"]["receivers"])
        if not names:
            raise Failure("there is no receiver to test: give some with `snc alerts set`")
        tested = [service.post("alerting", "test", body={"receiver": name}) for name in names]
    if arguments.json:
        print_json({"items": tested})
    else:
        rows = [(each["receiver"], each["outcome"], each["detail"]) for each in tested]
        print_table("", ("receiver", "outcome", "detail"), rows)
    return 0 if all(each["outcome"] == "delivered" for each in tested) else _NOT_DELIVERED


def incidents(arguments: Namespace) -> int:
    """List incidents, the newest or the most severe first."""
    named = ("run", "project", "state", "severity", "sort")
    filters = {name: getattr(arguments, name) for name in named}
    with ServiceClient.of(arguments) as service:
        found = list(service.items("incidents", limit=arguments.limit, **filters))
    if arguments.json:
        print_json({"items": found})
        return 0
    columns = ("incident", "state", "severity", "run", "step", "first", "layer", "events", "since",
               "looked after by")  # fmt: skip
    print_table(f"Incidents: {len(found)}", columns, [_row(each) for each in found])
    return 0


def acknowledge(arguments: Namespace) -> int:
    """Acknowledge an incident."""
    with ServiceClient.of(arguments) as service:
        body = {"comment": arguments.comment}
        known = service.post("incidents", str(arguments.incident), "acknowledge", body=body)
    if arguments.json:
        print_json(known)
    elif known["state"] != "open":
        print(f"Incident {known['incident']} is over.")
    else:
        print(f"Incident {known['incident']} is looked after by {known['acknowledged_by']}.")
    return 0


def silence(arguments: Namespace) -> int:
    """Silence matching events for a while."""
    body: dict[str, Any] = {"seconds": duration(arguments.duration), "comment": arguments.comment}
    globs = {name: getattr(arguments, name) for name in ("project", "run", "rule", "layer")}
    body.update({name: glob for name, glob in globs.items() if glob is not None})
    with ServiceClient.of(arguments) as service:
        made = service.post("silences", body=body)
    if arguments.json:
        print_json(made)
    else:
        print(f"Silence {made['silence']} holds until {local_time(made['until'])}.")
    return 0


def silences(arguments: Namespace) -> int:
    """List the silences in force."""
    with ServiceClient.of(arguments) as service:
        found = service.get("silences")["items"]
    if arguments.json:
        print_json({"items": found})
        return 0
    columns = ("silence", "project", "run", "rule", "layer", "until", "author", "comment")
    rows = [
        [{**each, "until": local_time(each["until"])}[name] for name in columns] for each in found
    ]
    print_table(f"Silences: {len(found)}", columns, rows)
    return 0


def unsilence(arguments: Namespace) -> int:
    """End a silence."""
    with ServiceClient.of(arguments) as service:
        service.delete("silences", str(arguments.silence))
    return 0


def read_document(path: str) -> dict[str, Any]:
    """Return the document in a file: TOML by its suffix, else JSON. Raises `Failure`.

    What comes from stdin (``-``) is JSON if it begins with a brace, else TOML.
    """
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise Failure(f"cannot read {path}: {error.strerror or error}") from None
    is_toml = Path(path).suffix.lower() == ".toml"
    if is_toml or (path == "-" and data.strip() and not data.lstrip().startswith(b"{")):
        return _toml(data, path)
    try:
        return json_object(data, path)
    except WireError as error:
        raise Failure(str(error)) from None


def duration(text: str) -> float:
    """Return the seconds of ``90m``, ``2h``, ``1d``. Raises `Failure`."""
    match = re.fullmatch(r"([0-9]{1,6})([smhd])", text)
    if match is None:
        raise Failure(f"--for must be a time such as 90m, 2h or 1d, got {text[:40]!r}")
    return float(int(match[1]) * _UNITS[match[2]])


def _toml(data: bytes, path: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        document: dict[str, Any] = tomllib.loads(data.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Failure(f"{path} must be TOML in UTF-8: {error}") from None
    return document


def _show(answer: dict[str, Any], health: list[dict[str, Any]]) -> int:
    title = f"Routing version {answer['alerting_version']}"
    if answer["author"]:
        title += f", set by {answer['author']} {local_time(answer['at'])}"
    rows = [
        (each["receiver"], each["type"], each["place"], each["waiting"], each["error"])
        for each in health
    ]
    print_table(title, ("receiver", "type", "place", "waiting", "trouble"), rows)
    routes = [
        (
            each["project"],
            each["severity"],
            ", ".join(each["rules"]),
            ", ".join(each["receivers"]),
            "never" if each["repeat_seconds"] is None else f"{each['repeat_seconds']:g} s",
        )
        for each in answer["alerting"]["routes"]
    ]
    print_table("", ("project", "severity", "rules", "receivers", "repeated after"), routes)
    return 0


def _row(incident: dict[str, Any]) -> tuple[Any, ...]:
    return (
        incident["incident"],
        incident["state"],
        incident["severity"],
        incident["run"],
        incident["step"],
        incident["rule"],
        incident["layer"],
        len(incident["events"]) + incident["omitted"],
        local_time(incident["opened_at"]),
        incident["acknowledged_by"],
    )
