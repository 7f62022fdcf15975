"""Common arguments of the commands: service, run or project, and numbers."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

DEFAULT_URL = "http://127.0.0.1:8470"
USES = ("gan", "robust", "rl", "transformer")  # each has a recipe: recipes/USE.toml


def reader(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str
) -> argparse.ArgumentParser:
    """Add a command that queries a running service."""
    parser = commands.add_parser(name, help=text, description=text)
    parser.add_argument(
        "--url",
        default=os.environ.get("SNC_URL") or DEFAULT_URL,
        help=f"the service (default: SNC_URL or {DEFAULT_URL})",
    )
    parser.add_argument(
        "--token", default=os.environ.get("SNC_TOKEN"), help="bearer token (default: SNC_TOKEN)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def steps(parser: argparse.ArgumentParser) -> None:
    """Add the options that bound steps."""
    parser.add_argument("--from-step", type=step, metavar="STEP")
    parser.add_argument("--to-step", type=step, metavar="STEP")


def naming(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what names in files of other tools mean."""
    parser.add_argument(
        "--map",
        action="append",
        default=[],
        metavar="PATTERN=TARGET",
        help='such as "w/{layer}/l2=frobenius", "train/nll=loss" or "debug/*=-", which leaves it '
        "out; may be repeated, the first match wins",
    )
    parser.add_argument("--step", metavar="NAME", help="the column or name that holds the steps")


def of_run_or_project(parser: argparse.ArgumentParser, what: str = "policy") -> None:
    """Add RUN, or --project instead of it; ``what`` names the queried thing in the help."""
    whose = parser.add_mutually_exclusive_group(required=True)
    whose.add_argument("run", metavar="RUN", nargs="?")
    whose.add_argument("--project", help=f"the {what} of a project instead of a run's")


def later(module: str, function: str) -> Callable[[argparse.Namespace], int]:
    """Return a command whose module is imported when it runs, so that ``snc --help`` is fast."""

    def command(arguments: argparse.Namespace) -> int:
        from importlib import import_module

        run: Callable[[argparse.Namespace], int] = getattr(
            import_module(f"snc_service.cli.commands.{module}"), function
        )
        return run(arguments)

    return command


def whole(text: str, least: int, most: int, what: str) -> int:
    """Return a whole number within bounds; ``what`` names them in the error."""
    if not text.isascii() or not text.isdigit() or not least <= int(text[:20]) <= most:
        raise argparse.ArgumentTypeError(f"must be {what}, got {text[:40]!r}")
    return int(text)


def port(text: str) -> int:
    """Return a port."""
    return whole(text, 0, 65_535, "a port from 0 to 65535")


def count(text: str) -> int:
    """Return a maximum number of items."""
    return whole(text, 1, 1_000_000, "a number from 1 to 1000000")


def step(text: str) -> int:
    """Return a step."""
    return whole(text, 0, 2**53 - 1, "a whole number >= 0")
