"""One run along its steps, over REST: the axis that Prometheus does not have.

Needs the data source Infinity (yesoreyeram-infinity-datasource, with its parser jq) with the
address of the service among its allowed hosts, and a token where the service asks for one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from boards import TAG
from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard, table, trend
from grafana_foundation_sdk.cog import builder, variants
from grafana_foundation_sdk.models import dashboard as models

PLUGIN: Final = "yesoreyeram-infinity-datasource"
INFINITY: Final = models.DataSourceRef(type_val=PLUGIN, uid="${infinity}")
POINTS: Final = 1_000
RUN: Final = "${service}/api/v1/runs/${run:percentencode}"
LAYER: Final = f"{RUN}/layers/${{layer:percentencode}}/history?points={POINTS}&metric="


class Rest(builder.Builder[variants.Dataquery], variants.Dataquery):
    """One GET; ``columns`` are the fields of its rows, by selector, with the type of each."""

    def __init__(self, url: str, columns: Mapping[str, str], rows: str, ref: str = "A") -> None:
        self.ref_id = ref
        self._url = url
        self._columns = columns
        self._rows = rows

    def build(self) -> Rest:
        """Return the query."""
        return self

    def to_json(self) -> dict[str, object]:
        """Return it as Infinity reads it."""
        return {
            "columns": [
                {"selector": name, "text": name, "type": kind}
                for name, kind in self._columns.items()
            ],
            "datasource": {"type": PLUGIN, "uid": "${infinity}"},
            "format": "table",
            "parser": "jq-backend",
            "refId": self.ref_id,
            "root_selector": self._rows,
            "source": "url",
            "type": "json",
            "url": self._url,
            "url_options": {"data": "", "method": "GET"},
        }


def steps() -> dashboard.Dashboard:
    """Return the dashboard."""
    made = (
        dashboard.Dashboard("snc / Steps")
        .uid("snc-steps")
        .description("One run along its training steps, from the REST interface.")
        .tags([TAG])
        .readonly()
        .timezone("browser")
        .refresh("30s")
        .with_variable(dashboard.DatasourceVariable("infinity").label("Source").type(PLUGIN))
        .with_variable(
            dashboard.TextBoxVariable("service")
            .label("Service")
            .description("The address of the service, as Grafana reaches it.")
            .default_value("http://127.0.0.1:8470")
        )
        .with_variable(_choice("run", "Run", "${service}/api/v1/runs?limit=500", "run"))
        .with_variable(_choice("layer", "Layer", f"{RUN}/layers?sort=-ratio&limit=500", "layer"))
    )
    for panel in (
        _along("Sigma of the layer", {m: f"{LAYER}{m}" for m in ("sigma", "threshold")},
               "The largest value of each bucket of steps, and the threshold."),
        _along("Loss", {"loss": f"{RUN}/scalars/loss/history?points={POINTS}"},
               "As the job reported it."),
        _table("Layers, the worst first", f"{RUN}/layers?sort=-ratio&limit=100",
               {"layer": "string", "step": "number", "sigma": "number", "threshold": "number",
                "ratio": "number"}, "The newest values."),
        _table("Events", f"{RUN}/events?limit=200",
               {"step": "number", "rule": "string", "severity": "string", "layer": "string",
                "message": "string"}, "What the rules raised, the newest first."),
    ):  # fmt: skip
        made = made.with_panel(panel)
    return made


def _choice(name: str, label: str, url: str, column: str) -> dashboard.QueryVariable:
    query = Rest(url, {column: "string"}, ".items", name).to_json()
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(INFINITY)
        .query({"infinityQuery": query, "queryType": "infinity", "refId": name})
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
    )


def _along(title: str, urls: Mapping[str, str], text: str) -> trend.Panel:
    """Return lines over steps: one frame for each address, joined by the step."""
    panel = trend.Panel().title(title).description(text).datasource(INFINITY)
    panel = panel.height(10).span(12).x_field("step").fill_opacity(0).line_width(1)
    panel = panel.legend(common_builders.VizLegendOptions().show_legend(True))
    for name, url in urls.items():
        # A history is columns; a frame is rows.
        rows = f"[.steps, .max] | transpose | map({{step: .[0], {name}: .[1]}})"
        panel = panel.with_target(Rest(url, {"step": "number", name: "number"}, rows, name))
    if len(urls) > 1:
        join = {"byField": "step", "mode": "outer"}
        panel = panel.with_transformation(models.DataTransformerConfig("joinByField", options=join))
    return panel


def _table(title: str, url: str, columns: Mapping[str, str], text: str) -> table.Panel:
    panel = table.Panel().title(title).description(text).datasource(INFINITY)
    return panel.height(12).span(12).filterable(True).with_target(Rest(url, columns, ".items"))
