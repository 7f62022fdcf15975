"""Build the dashboards: ``python deploy/grafana/build.py [FOLDER]`` writes one JSON file for each.

Needs ``pip install 'spectral-norm-constraint[dashboards]'``, which pins the builders to the oldest
Grafana that is supported.
The JSON is sorted and holds no time or version of its own: the same code gives the same bytes.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fleet import fleet
from grafana_foundation_sdk.builders.dashboard import Dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from run import run
from service import service

BOARDS = {"fleet": fleet, "run": run, "service": service}


def main(folder: Path) -> None:
    """Write every dashboard into ``folder``."""
    for name, make in BOARDS.items():
        (folder / f"{name}.json").write_text(text(make()), encoding="utf-8")


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
    main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "dashboards"))
