"""The output of the commands: tables by rich, JSON, and sparklines."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from snc_service.cli.failure import Failure

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

BLOCKS = "▁▂▃▄▅▆▇█"
BROKEN = "x"  # in place of a non-finite value


def print_json(value: object, *, indent: int | None = 2) -> None:
    """Print JSON in ASCII, for any terminal."""
    print(json.dumps(value, indent=indent), flush=True)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table; numbers are right-aligned, and names are text, never markup."""
    console().print(table(title, columns, rows))


def console() -> Console:
    """Return the console of standard output. Raises `Failure` without rich."""
    try:
        from rich.console import Console
    except ModuleNotFoundError:
        raise Failure(
            "tables need rich: pip install 'spectral-norm-constraint[service]', or add --json"
        ) from None
    # Piped into a file, a table must not be wrapped to the width of a terminal.
    return Console(width=None if sys.stdout.isatty() else 200, highlight=False)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """Return a table as `print_table` prints it; needs rich."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    heading = Text(clean(title)) if title else None
    made = Table(title=heading, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    cells = [[_cell(value) for value in row] for row in rows]
    for index, name in enumerate(columns):
        numeric = any(cell[1] for row in cells for cell in [row[index]])
        made.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        made.add_row(*(Text(text, style=style) for text, _, style in row))
    return made


def _cell(value: Any) -> tuple[str, bool, str]:
    """Return the text, whether it is a number, and its style."""
    if isinstance(value, Ratio):
        return value.text, True, value.style
    if value is None:
        return "-", False, "dim"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return clean(str(value)), False, ""
    return (f"{value}" if isinstance(value, int) else f"{value:.4g}"), True, ""


class Ratio:
    """sigma / threshold, coloured by its distance to 1."""

    def __init__(self, value: float | None) -> None:
        self.text = "-" if value is None else f"{value:.3f}"
        near = value is not None and value > 0.9
        over = value is not None and value > 1
        self.style = "bold red" if over else "yellow" if near else ""


def clean(text: str) -> str:
    """Return ``text`` without control characters, so that a name cannot control the terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def sparkline(values: Sequence[float | None], nonfinite: Sequence[int] | None = None) -> str:
    """Return one block per value, scaled from smallest to largest; x for non-finite values.

    With ``nonfinite``, their number at each place, a place without any value is a space.
    """
    finite = [v for v in values if v is not None and math.isfinite(v)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    span = (high - low) or 1.0
    broken = [1] * len(values) if nonfinite is None else nonfinite
    return "".join(
        (BROKEN if num else " ")
        if value is None or not math.isfinite(value)
        else BLOCKS[min(len(BLOCKS) - 1, int((value - low) / span * len(BLOCKS)))]
        for value, num in zip(values, broken, strict=True)
    )


def local_time(text: object) -> str:
    """Return an RFC 3339 time in the local time zone."""
    try:
        at = datetime.fromisoformat(str(text).replace("Z", "+00:00"))
    except ValueError:
        return str(text)
    return at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
