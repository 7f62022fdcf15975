"""The page of the docs about each command, for the end of its help."""

from __future__ import annotations

from typing import Final

GUIDES: Final = {
    "serve": "docs/operations.md",
    "runs": "docs/queries.md",
    "top": "docs/queries.md",
    "layers": "docs/queries.md",
    "history": "docs/queries.md",
    "worst": "docs/queries.md",
    "compare": "docs/queries.md",
    "export": "docs/queries.md",
    "import": "docs/import.md",
    "events": "docs/queries.md",
    "onset": "docs/rules.md",
    "annotate": "docs/rules.md",
    "rules": "docs/rules.md",
    "backtest": "docs/backtest.md",
    "suggest": "docs/backtest.md",
    "policy": "docs/uses.md",
    "alerts": "docs/alerts.md",
    "token": "docs/deployment.md",
    "db": "docs/operations.md",
    "completion": "docs/queries.md",
}


def guide(command: str) -> str:
    """Return the sentence that leads from the help of a command to its page."""
    return f"Guide: {GUIDES[command]} of the project."
