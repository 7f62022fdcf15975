"""The output of the audit: JSON for programs, a table for people."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from snc_client.audit.findings import Finding, Findings
from snc_client.audit.formats.stored import Weights, shown

PIPED_WIDTH = 200  # columns of a table that does not go to a terminal
NAMES_SHOWN = 3


def as_json(
    file: Path, weights: Weights, found: Findings, layers: Sequence[Finding], *, proof: bool
) -> str:
    """Return the report as JSON; numbers that are not finite are null."""
    report = {
        "file": str(file),
        "format": weights.format,
        "certified": proof,
        "layers": [_layer(layer) for layer in layers],
        "skipped": [
            {"name": x.name, "shape": list(x.shape), "dtype": x.dtype, "reason": x.reason}
            for x in found.skipped
        ],
        "left_out": list(weights.left_out),
        "summary": {
            "layers": len(found.layers),
            "skipped": len(found.skipped),
            "breaches": found.count("breach"),
            "unproven": found.count("unproven"),
            "not_finite": sum(x.weighed.not_finite > 0 for x in found.layers),
            "unsettled": sum(not x.weighed.settled for x in found.layers),
            "worst_ratio": _finite(worst_ratio(found)),
        },
    }
    return json.dumps(report, indent=2, allow_nan=False)


def worst_ratio(found: Findings) -> float | None:
    """Return the largest sigma / threshold, None without any."""
    ratios = [x.ratio for x in found.layers if x.ratio is not None and math.isfinite(x.ratio)]
    return max(ratios, default=None)


def _layer(x: Finding) -> dict[str, Any]:
    w = x.weighed
    return {
        "layer": x.part.name,
        "names": list(x.names),
        "kind": x.part.kind,
        "shape": [x.part.rows, x.part.columns],
        "dtype": x.dtype,
        "sigma": _finite(w.sigma),
        "sigma_upper": _finite(w.sigma_upper),
        "residual": _finite(w.residual),
        "settled": w.settled,
        "stable_rank": _finite(w.stable_rank),
        "frobenius": _finite(w.frobenius),
        "not_finite": w.not_finite,
        "threshold": x.threshold,
        "ratio": _finite(x.ratio),
        "verdict": x.verdict,
        "note": x.part.note,
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


@dataclass(frozen=True)
class _Column:
    head: str
    cell: Callable[[Finding], str]
    right: bool = True


_NAME = _Column("layer", lambda x: _name(x), right=False)
_MEASURED = (
    _Column("kind", lambda x: x.part.kind, right=False),
    _Column("shape", lambda x: f"{x.part.rows}x{x.part.columns}"),
    _Column("dtype", lambda x: x.dtype, right=False),
    _Column("sigma", lambda x: _number(x.weighed.sigma)),
)
_CERTIFIED = (_Column("sigma_upper", lambda x: _number(x.weighed.sigma_upper)),)
_DERIVED = (
    _Column("stable rank", lambda x: _number(x.weighed.stable_rank)),
    _Column("frobenius", lambda x: _number(x.weighed.frobenius)),
)
_JUDGED = (
    _Column("threshold", lambda x: _number(x.threshold)),
    _Column("ratio", lambda x: _number(x.ratio)),
    _Column("verdict", lambda x: x.verdict or "-", right=False),
)
# Last, so that aligning it adds no spaces.
_NOTE = _Column("note", lambda x: _remark(x), right=False)


def print_report(
    file: Path, weights: Weights, found: Findings, layers: Sequence[Finding], *, proof: bool
) -> None:
    """Print the table, the skipped tensors with their reasons, and one closing line."""
    judged = any(x.threshold is not None for x in found.layers)
    columns = [
        _NAME,
        *_MEASURED,
        *(_CERTIFIED if proof else ()),
        *_DERIVED,
        *(_JUDGED if judged else ()),
        _NOTE,
    ]
    if layers:
        _print_table(columns, layers)
    print("\n".join(_closing(file, weights, found, len(layers), proof)))


def _name(x: Finding) -> str:
    if len(x.names) == 1:
        return shown(x.part.name)
    more = f" and {len(x.names) - 2} more" if len(x.names) > 2 else ""
    return f"{shown(x.part.name)} = {shown(x.names[1])}{more}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.5g}"


def _remark(x: Finding) -> str:
    said = [x.part.note] if x.part.note else []
    if x.weighed.not_finite:
        said.append(f"{x.weighed.not_finite} entries are not finite")
    if not x.weighed.settled:
        said.append("sigma has not settled: it may be low")
    return "; ".join(said)


def _closing(
    file: Path, weights: Weights, found: Findings, num_shown: int, proof: bool
) -> list[str]:
    lines = []
    if num_shown < len(found.layers):
        lines.append(f"not shown: {_matrices(len(found.layers) - num_shown)}")
    reasons: dict[str, list[str]] = {}
    for x in found.skipped:
        reasons.setdefault(x.reason, []).append(x.name)
    lines += [f"skipped {len(n)}: {why} ({_some(n)})" for why, n in reasons.items()]
    if weights.left_out:
        lines.append(f"not looked at: {_some(weights.left_out)}")
    bound = (
        "sigma_upper is certified" if proof else "sigma is an estimate from below, not certified"
    )
    said = f"{shown(file)} ({weights.format}): {_matrices(len(found.layers))}, {bound}"
    judged = [x for x in found.layers if x.verdict]
    if judged:
        counts = [f"{n} {v}" for v in ("within", "breach", "unproven") if (n := found.count(v))]
        said += f"; thresholds: {', '.join(counts)}"
    return [*lines, said]


def _matrices(count: int) -> str:
    return f"{count} {'matrix' if count == 1 else 'matrices'}"


def _some(names: Sequence[str]) -> str:
    more = f", ... {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(shown(name) for name in names[:NAMES_SHOWN]) + more


def _print_table(columns: Sequence[_Column], layers: Sequence[Finding]) -> None:
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ModuleNotFoundError:
        print(_aligned(columns, layers))
        return
    table = Table(pad_edge=False)
    for column in columns:
        justify: Literal["left", "right"] = "right" if column.right else "left"
        table.add_column(column.head, justify=justify, overflow="fold")
    for layer in layers:
        style = {"breach": "bold red", "unproven": "yellow"}.get(layer.verdict or "", "")
        # Text, and no markup: a name may hold brackets.
        table.add_row(*(Text(column.cell(layer)) for column in columns), style=style)
    width = None if sys.stdout.isatty() else PIPED_WIDTH
    Console(width=width, highlight=False).print(table)


def _aligned(columns: Sequence[_Column], layers: Sequence[Finding]) -> str:
    filled = []
    for column in columns:
        cells = [column.head, *(column.cell(layer) for layer in layers)]
        width = max(map(len, cells))
        filled.append([cell.rjust(width) if column.right else cell.ljust(width) for cell in cells])
    return "\n".join("  ".join(row).rstrip() for row in zip(*filled, strict=True))
