"""The house style of our dashboards: one function per kind of panel, queries in PromQL only.

Three mistakes are kept out of all of them: a legend that names the run where there is a line per
layer; ``topk`` in a graph over time without ``@ end()`` (its members flicker); ``rate`` of the
step, which is a gauge and goes back when a job resumes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard, heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

Panel: TypeAlias = stat.Panel | table.Panel | timeseries.Panel | heatmap.Panel
Lines: TypeAlias = Mapping[str, str]  # legend -> expression

SOURCE: Final = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
HEIGHT: Final = 8
GREEN, ORANGE, RED = "green", "orange", "red"


def alarm(*bounds: tuple[float, str]) -> dashboard.ThresholdsConfig:
    """Return colors by value: green, and from each bound on the color beside it."""
    steps = [models.Threshold(value=None, color=GREEN)]
    steps += [models.Threshold(value=value, color=color) for value, color in bounds]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps)


ANY_IS_BAD: Final = ((1.0, RED),)
NEAR_AND_ABOVE: Final = ((0.9, ORANGE), (1.0, RED))


def query(
    expr: str, legend: str = "", *, ref: str = "A", instant: bool = False, cells: bool = False
) -> prometheus.Dataquery:
    """Return one query; ``instant``: at the end of the range only, ``cells``: of a histogram."""
    built = prometheus.Dataquery().datasource(SOURCE).expr(expr).ref_id(ref)
    built = built.legend_format(legend or "__auto")
    if cells:
        return built.range().format(PromQueryFormat.HEATMAP)
    if instant:
        return built.instant().format(PromQueryFormat.TABLE)
    return built.range().format(PromQueryFormat.TIME_SERIES)


def number(
    title: str,
    expr: str,
    text: str,
    *,
    width: int = 4,
    unit: str = "short",
    bounds: Sequence[tuple[float, str]] = (),
    name: str = "",
) -> stat.Panel:
    """Return one big number; ``name`` (a legend) is shown instead where the value says nothing."""
    panel = stat.Panel().title(title).description(text).datasource(SOURCE)
    panel = panel.height(4).span(width).unit(unit).thresholds(alarm(*bounds))
    panel = panel.color_mode(common.BigValueColorMode.VALUE).graph_mode(
        common.BigValueGraphMode.NONE
    )
    if name:
        panel = panel.text_mode(common.BigValueTextMode.NAME)
    return panel.reduce_options(
        common_builders.ReduceDataOptions().calcs(["lastNotNull"]).values(False)
    ).with_target(query(expr, name))


def lines(
    title: str,
    drawn: Lines,
    text: str,
    *,
    width: int = 12,
    unit: str = "short",
    bounds: Sequence[tuple[float, str]] = (),
    bars: bool = False,
) -> timeseries.Panel:
    """Return a graph over time; ``bars`` stacks, for what is counted per interval."""
    panel = timeseries.Panel().title(title).description(text).datasource(SOURCE)
    panel = panel.height(HEIGHT).span(width).unit(unit).fill_opacity(0).line_width(1)
    panel = panel.legend(
        common_builders.VizLegendOptions()
        .show_legend(True)
        .display_mode(common.LegendDisplayMode.LIST)
        .placement(common.LegendPlacement.BOTTOM)
    ).tooltip(
        common_builders.VizTooltipOptions()
        .mode(common.TooltipDisplayMode.MULTI)
        .sort(common.SortOrder.DESCENDING)
    )
    if bounds:
        style = common_builders.GraphThresholdsStyleConfig()
        panel = panel.thresholds(alarm(*bounds)).thresholds_style(
            style.mode(common.GraphThresholdsStyleMode.LINE)
        )
    if bars:
        panel = panel.draw_style(common.GraphDrawStyle.BARS).fill_opacity(60)
        panel = panel.stacking(
            common_builders.StackingConfig().mode(common.StackingMode.NORMAL).group("A")
        )
    for ref, (legend, expr) in zip("ABCDEFGH", drawn.items(), strict=False):
        panel = panel.with_target(query(expr, legend, ref=ref))
    return panel


def rows(
    title: str,
    key: str,
    columns: Lines,
    text: str,
    *,
    width: int = 24,
    height: int = HEIGHT,
    hidden: Sequence[str] = (),
    sort: str | None = None,
    units: Mapping[str, str] | None = None,
    bounds: Mapping[str, Sequence[tuple[float, str]]] | None = None,
    links: Mapping[str, str] | None = None,
) -> table.Panel:
    """Return a table: one row per value of the label ``key``, one column per expression.

    Every expression is asked for at the end of the range. ``links`` gives the address behind a
    column's cells.
    """
    panel = table.Panel().title(title).description(text).datasource(SOURCE)
    panel = panel.height(height).span(width).filterable(True)
    refs = dict(zip("ABCDEFGHIJKL", columns, strict=False))
    for ref, column in refs.items():
        panel = panel.with_target(query(columns[column], ref=ref, instant=True))
    names = {f"Value #{ref}": column for ref, column in refs.items()}
    if len(refs) == 1:
        names["Value"] = next(iter(columns))
    drop = dict.fromkeys((*(f"Time {place}" for place in range(1, len(refs) + 1)), "Time"), True)
    drop |= dict.fromkeys((name for name, column in names.items() if column in hidden), True)
    if len(refs) > 1:
        panel = panel.with_transformation(
            models.DataTransformerConfig("joinByField", options={"byField": key, "mode": "outer"})
        )
    panel = panel.with_transformation(
        models.DataTransformerConfig(
            "organize", options={"excludeByName": drop, "renameByName": names}
        )
    )
    if sort is not None:
        order = common_builders.TableSortByFieldState().display_name(sort).desc(True)
        panel = panel.sort_by([order])
    return _styled(panel, units or {}, bounds or {}, links or {})


def _styled(
    panel: table.Panel,
    units: Mapping[str, str],
    bounds: Mapping[str, Sequence[tuple[float, str]]],
    links: Mapping[str, str],
) -> table.Panel:
    for column in {**units, **bounds, **links}:
        properties = []
        if column in units:
            properties.append(models.DynamicConfigValue("unit", units[column]))
        if column in bounds:
            colored = {"type": "color-text"}
            properties.append(models.DynamicConfigValue("custom.cellOptions", colored))
            properties.append(
                models.DynamicConfigValue("thresholds", alarm(*bounds[column]).build())
            )
        if column in links:
            link = {"title": "Open", "url": links[column]}
            properties.append(models.DynamicConfigValue("links", [link]))
        panel = panel.override_by_name(column, properties)
    return panel


def cells(
    title: str,
    expr: str,
    text: str,
    *,
    legend: str = "",
    width: int = 24,
    height: int = 12,
    most: float | None = None,
    unit: str = "short",
) -> heatmap.Panel:
    """Return a heatmap: a row per series named by ``legend``, or, without one, per histogram cell.

    ``most`` is the value at which the colors end.
    """
    color = heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Cividis").steps(64)
    color = color.fill("dark-orange").exponent(0.5)
    if most is not None:
        color = color.min(0).max(most)
    axis = heatmap.YAxisConfig().axis_placement(common.AxisPlacement.LEFT).reverse(bool(legend))
    panel = heatmap.Panel().title(title).description(text).datasource(SOURCE)
    panel = panel.height(height).span(width).calculate(False).color(color).y_axis(axis)
    panel = panel.cell_values(heatmap.CellValues().unit(unit)).cell_gap(0)
    panel = panel.mode(common.TooltipDisplayMode.SINGLE).show_color_scale(True)
    return panel.max_data_points(200).with_target(query(expr, legend, cells=not legend))
