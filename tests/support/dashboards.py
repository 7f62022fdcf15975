"""What our dashboards ask: every query of every panel, variable and annotation, and its metrics."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GRAFANA = Path(__file__).resolve().parents[2] / "deploy" / "grafana"

_KEYWORDS = set("and or unless by without on ignoring group_left group_right offset bool".split())
_KEYWORDS |= {"inf", "nan"}


@dataclass(frozen=True)
class Query:
    """One PromQL expression; ``kind`` is the panel's type, ``variable`` or ``annotation``."""

    board: str
    panel: str
    kind: str
    expr: str
    legend: str = ""
    instant: bool = False

    def __str__(self) -> str:
        return f"{self.board} / {self.panel}: {self.expr}"


def boards() -> dict[str, dict[str, Any]]:
    found = sorted((GRAFANA / "dashboards").glob("*.json"))
    return {path.stem: json.loads(path.read_text()) for path in found}


def panels(board: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield every panel, also those inside rows."""
    for panel in board.get("panels") or ():
        yield panel
        yield from panels(panel)


def queries(name: str, board: dict[str, Any]) -> Iterator[Query]:
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            yield Query(name, variable["name"], "variable", variable["query"]["query"])
    for annotation in board["annotations"].get("list", ()):
        yield Query(name, annotation["name"], "annotation", annotation["expr"])
    for panel in panels(board):
        for target in panel.get("targets") or ():
            yield Query(
                name,
                panel["title"],
                panel["type"],
                target["expr"],
                target["legendFormat"],
                target.get("instant", False),
            )


def every_query() -> list[Query]:
    return [query for name, board in boards().items() for query in queries(name, board)]


def metrics_of(expr: str) -> set[str]:
    """Return the names of the metrics in an expression, or in ``label_values(metric, label)``."""
    expr = re.sub(r"label_values\((.*),\s*\w+\)", r"(\1)", expr)
    expr = re.sub(r'"[^"]*"', "", expr)
    expr = re.sub(r"\{[^}]*\}|\[[^]]*\]", " ", expr)
    expr = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", expr)
    expr = re.sub(r"offset\s+\S+", " ", expr)
    words = re.findall(r"[a-zA-Z_:][a-zA-Z0-9_:]*(?!\w|:)(?!\s*\()", expr)
    return {word for word in words if word.lower() not in _KEYWORDS}
