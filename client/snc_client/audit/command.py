"""Arguments, progress bar and exit status of ``snc audit``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from snc_client.audit.findings import COLUMNS, audit, ordered
from snc_client.audit.formats.files import read_weights
from snc_client.audit.formats.stored import Unreadable, clean
from snc_client.audit.limits import policy_of
from snc_client.audit.report import as_json, print_report

SORTS = tuple(sign + name for name in COLUMNS for sign in ("", "-"))


class _Parser(argparse.ArgumentParser):
    """Reports an error in one sentence, without a page of usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {clean(message)} ({self.prog} --help says more)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Audit a file; return 0, 1 if a threshold is or may be exceeded, 2 if it cannot be audited."""
    options = _parser().parse_args(argv)
    try:
        policy = policy_of(options.threshold or [], options.policy)
        weights = read_weights(options.file)
        with _progress() as progress:
            found = audit(weights, policy, proof=options.certify, progress=progress)
    except Unreadable as error:
        print(f"snc audit: {error}", file=sys.stderr)
        return 2
    sort = options.sort or ("-ratio" if policy.entries else None)
    layers = ordered(found.layers, sort)[: options.top]
    if options.json:
        print(as_json(options.file, weights, found, layers, proof=options.certify))
    else:
        print_report(options.file, weights, found, layers, proof=options.certify)
    sys.stdout.flush()
    return 0 if found.holds else 1


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="snc audit",
        description="Measure every weight of a .safetensors file, an index of shards, a torch "
        "checkpoint or a folder of torch.distributed.checkpoint (pickled code is never run), one "
        "matrix in memory at a time.",
        epilog="Exit status: 0; 1 if a weight exceeds its threshold or might; 2 for wrong usage or "
        "a file that cannot be read.",
    )
    parser.add_argument("file", metavar="FILE", type=Path)
    limits = parser.add_mutually_exclusive_group()
    limits.add_argument(
        "--threshold",
        action="append",
        metavar="[PATTERN=]LIMIT",
        help='upper limit for sigma: a number, "3x rms" or none; may be repeated with patterns '
        "over names, the first match wins",
    )
    limits.add_argument(
        "--policy", metavar="PATH", type=Path, help='{"entries": [...]} as JSON, as for snc policy'
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--sort",
        type=_sort,
        metavar="[-]COLUMN",
        help=f"{', '.join(COLUMNS)}; --sort=-sigma: descending (default: as in the file, with "
        "thresholds the worst ratio first)",
    )
    parser.add_argument("--top", type=_count, metavar="N", help="show only the first N")
    parser.add_argument(
        "--no-certify",
        dest="certify",
        action="store_false",
        help="sigma from below only: no proof, and half the work at 2048 x 2048",
    )
    return parser


def _sort(text: str) -> str:
    if text not in SORTS:
        raise argparse.ArgumentTypeError(
            f"must be one of {', '.join(COLUMNS)}, with - for descending, got {text[:40]!r}"
        )
    return text


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:12]) < 10**9):
        raise argparse.ArgumentTypeError(f"must be a whole number >= 1, got {text[:40]!r}")
    return int(text[:12])


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """Yield a function that shows progress on stderr, if it is a terminal and rich is there."""
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ModuleNotFoundError:
        yield lambda done, total: None
        return
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("auditing", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
