"""Build the dashboards: ``python deploy/grafana/build.py [FOLDER]`` writes two JSON files for each.

Those in ``dashboards`` are provisioned. Those in ``import`` are for Grafana's page *Import
dashboard*, which asks for the sources that ``__inputs`` names; the board over REST is only there.

Needs ``pip install 'spectral-norm-constraint[dashboards]'``, which pins the builders to the oldest
Grafana that is supported.
The JSON is sorted and holds no time or version of its own: the same code gives the same bytes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

from fleet import fleet
from grafana_foundation_sdk.builders.dashboard import Dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from run import run
from service import service
from steps import PLUGIN, steps

BOARDS = {"fleet": fleet, "run": run, "service": service}


# Plugin -> the name of the input, of the variable that it fills, and what Grafana calls the plugin.
SOURCES: Final = {
    "prometheus": ("DS_PROMETHEUS", "datasource", "Prometheus"),
    PLUGIN: ("DS_INFINITY", "infinity", "Infinity"),
}


def main(folder: Path) -> None:
    """Write every dashboard into the two folders in ``folder``."""
    for part in ("dashboards", "import"):
        (folder / part).mkdir(exist_ok=True)
    for name, make in BOARDS.items():
        made = text(make())
        (folder / "dashboards" / f"{name}.json").write_text(made, encoding="utf-8")
        imported = importable(made, "prometheus")
        (folder / "import" / f"{name}.json").write_text(imported, encoding="utf-8")
    imported = importable(text(steps()), PLUGIN)
    (folder / "import" / "steps.json").write_text(imported, encoding="utf-8")


def importable(made: str, plugin: str) -> str:
    """Return a dashboard that asks for its data source when it is imported."""
    board: dict[str, Any] = json.loads(made)
    name, variable, label = SOURCES[plugin]
    source = {"label": label, "name": name, "pluginId": plugin, "pluginName": label}
    board["__inputs"] = [source | {"description": "", "type": "datasource"}]
    kinds = sorted({panel["type"] for panel in board["panels"] if panel["type"] != "row"})
    board["__requires"] = [
        {"type": "grafana", "id": "grafana", "name": "Grafana", "version": "11.6.0"},
        {"type": "datasource", "id": plugin, "name": label, "version": "1.0.0"},
        *({"type": "panel", "id": kind, "name": kind, "version": ""} for kind in kinds),
    ]
    for each in board["templating"]["list"]:
        if each["name"] == variable:
            each["current"] = {"selected": True, "text": label, "value": f"${{{name}}}"}
    return json.dumps(board, sort_keys=True, indent=2) + "\n"


def text(made: Dashboard) -> str:
    """Return a dashboard as JSON; panels are numbered in the order of the page."""
    built = made.build()
    place = 0
    for panel in built.panels or []:
        for each in (panel, *(getattr(panel, "panels", None) or ())):
            place += 1
            each.id_val = place
    return JSONEncoder(sort_keys=True, indent=2).encode(built) + "\n"


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent))
