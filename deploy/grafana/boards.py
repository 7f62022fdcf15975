"""What all our dashboards share: identity, data source, variables, links and annotations."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog import builder
from grafana_foundation_sdk.models import dashboard as models
from parts import SOURCE, Panel

TAG: Final = "snc"
ALL: Final = models.VariableOption(selected=True, text="All", value="$__all")


def board(uid: str, title: str, text: str, *, since: str = "now-6h") -> dashboard.Dashboard:
    """Return an empty dashboard with the choice of a data source and links to the others."""
    others = dashboard.DashboardLink("snc").type(models.DashboardLinkType.DASHBOARDS)
    return (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(text)
        .tags([TAG])
        .readonly()
        .timezone("browser")
        .time(since, "now")
        .refresh("30s")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .with_variable(
            dashboard.DatasourceVariable("datasource").label("Source").type("prometheus")
        )
        .link(others.tags([TAG]).as_dropdown(False).keep_time(True))
    )


def choice(name: str, label: str, query: str, *, several: bool = False) -> dashboard.QueryVariable:
    """Return a variable filled by ``query``; ``several`` allows many values and starts with all."""
    variable = (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(SOURCE)
        .query({"query": query, "refId": name})
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
    )
    # Spelled out, "all" would be an address as long as the list of a model's layers.
    return (
        variable.multi(True).include_all(True).all_value(".*").current(ALL) if several else variable
    )


def with_row(
    made: dashboard.Dashboard, title: str, panels: Iterable[Panel], *, closed: bool = False
) -> dashboard.Dashboard:
    """Append a row of panels; a ``closed`` one asks nothing of Prometheus until it is opened."""
    row = dashboard.Row(title).collapsed(closed)
    if closed:
        for panel in panels:
            row = row.with_panel(panel)
        return made.with_row(row)
    made = made.with_row(row)
    for panel in panels:
        made = made.with_panel(panel)
    return made


class Marks(builder.Builder[models.AnnotationQuery]):
    """Annotations where ``expr`` has a value; ``title`` and ``text`` may name its labels."""

    def __init__(self, name: str, expr: str, *, title: str, text: str, color: str) -> None:
        self._query = _Marks(
            name=name, datasource=SOURCE, enable=True, icon_color=color, expr=expr, hide=False
        )
        self._query.formats = {"titleFormat": title, "textFormat": text, "step": "15s"}

    def build(self) -> models.AnnotationQuery:
        """Return the query."""
        return self._query


class _Marks(models.AnnotationQuery):
    """The model knows the expression, but not how its labels become a text."""

    formats: dict[str, object]

    def to_json(self) -> dict[str, object]:
        return super().to_json() | self.formats
