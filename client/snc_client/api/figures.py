"""Figures for notebooks, in the colors and scales of the page. Needs plotly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from snc_client.api.arrays import Doubles, HeatmapArrays, History
from snc_client.api.records import OnsetRecord

# The same numbers as in the page's charts/paint.js and styles/base.css; a test compares them.
# Cividis: Nunez, Anderton, Renslow, "Optimizing colormaps with consideration for color vision
# deficiency to enable accurate interpretation of scientific data", PLoS ONE 13(7), 2018.
CIVIDIS = (
    *("#00224e", "#123570", "#3b496c", "#575d6d", "#707173"),
    *("#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838"),
)
BREACH = ("#f59331", "#d9480f", "#8f1d14")
NONFINITE = "#9128b8"
SERIES = (
    *("#0b62b0", "#c2500b", "#0b7d5c", "#a63a86"),
    *("#6a4fc4", "#8a6a00", "#0a7c91", "#3d4652"),
)
RATIOS = ("ratio", "ratio_after")
ROW_PIXELS, LEAST_PIXELS, MOST_PIXELS = 18, 96, 900


def heatmap_figure(heatmap: HeatmapArrays) -> go.Figure:
    """Return a heatmap, layers in model order from the top.

    A ratio has the colors of Cividis up to 1 and red beyond. Another metric has Cividis from its
    smallest to its largest value, by powers where they differ by more than tenfold. Violet:
    only values that are not finite.
    """
    ratio = heatmap.metric in RATIOS
    places = _ratio_places(heatmap.values) if ratio else _span_places(heatmap.values)
    colors = [*_spread(CIVIDIS, 0, 0.5), *_spread(BREACH, 0.5, 1)] if ratio else _spread(CIVIDIS)
    names = [_escaped(name) for name in heatmap.layers]
    span = f"steps from %{{x}}, {heatmap.bucket_steps} each" if heatmap.bucket_steps > 1 else ""
    figure = go.Figure(
        go.Heatmap(
            x=heatmap.steps,
            y=names,
            z=places,
            zmin=0,
            zmax=1,
            customdata=heatmap.values,
            colorscale=colors,
            showscale=False,
            hovertemplate=f"%{{y}}<br>{span or 'step %{x}'}<br>"
            f"{heatmap.metric} %{{customdata:.4g}}<extra></extra>",
        )
    )
    broken = np.isnan(heatmap.values) & (heatmap.nonfinite > 0)
    if broken.any():
        figure.add_heatmap(
            x=heatmap.steps,
            y=names,
            z=np.where(broken, 1.0, np.nan),
            colorscale=[(0, NONFINITE), (1, NONFINITE)],
            showscale=False,
            hovertemplate="%{y}<br>step %{x}<br>not finite<extra></extra>",
        )
    height = min(max(ROW_PIXELS * len(names), LEAST_PIXELS), MOST_PIXELS)
    figure.update_layout(
        title=_escaped(f"{heatmap.metric} of {heatmap.run}"),
        height=height + 120,
        template="plotly_white",
        xaxis_title="step",
    )
    figure.update_yaxes(autorange="reversed", type="category")
    return figure


def history_figure(
    histories: Mapping[str, History], thresholds: Mapping[str, History]
) -> go.Figure:
    """Return lines of means with bands from min to max; thresholds are dashed in their color."""
    figure = go.Figure()
    for index, (name, history) in enumerate(histories.items()):
        ink, label = SERIES[index % len(SERIES)], _escaped(name)
        if history.bucket_steps > 1:
            edge = {"x": history.steps, "mode": "lines", "line_width": 0, "showlegend": False}
            figure.add_scatter(y=history.min, hoverinfo="skip", legendgroup=label, **edge)
            figure.add_scatter(
                y=history.max,
                fill="tonexty",
                fillcolor=_faint(ink),
                hoverinfo="skip",
                legendgroup=label,
                **edge,
            )
        figure.add_scatter(
            x=history.steps, y=history.mean, name=label, line_color=ink, legendgroup=label
        )
        threshold = thresholds.get(name)
        if threshold is not None and len(threshold):
            figure.add_scatter(
                x=threshold.steps,
                y=threshold.min,
                line={"color": ink, "dash": "dash", "width": 1.2, "shape": "hv"},
                name=f"{label}: threshold",
                legendgroup=label,
                showlegend=False,
            )
    first = next(iter(histories.values()), None)
    figure.update_layout(
        title=None if first is None else _escaped(f"{first.metric} of {first.run}"),
        template="plotly_white",
        xaxis_title="step",
        yaxis_title=None if first is None else _escaped(first.metric),
        yaxis_rangemode="tozero",
    )
    return figure


def onset_figure(run: str, left: Sequence[OnsetRecord]) -> go.Figure:
    """Return the step at which each layer left its band; the size grows with times_limit."""
    figure = go.Figure()
    for index, rule in enumerate(dict.fromkeys(each["rule"] for each in left)):
        of_rule = [each for each in left if each["rule"] == rule]
        times = np.array([each["times_limit"] for each in of_rule], np.float64)
        figure.add_scatter(
            x=[each["step"] for each in of_rule],
            y=[_escaped(each["layer"]) for each in of_rule],
            mode="markers",
            name=_escaped(rule),
            customdata=times,
            marker={
                "color": SERIES[index % len(SERIES)],
                "size": 8 + 4 * np.log2(np.clip(times, 1, 16)),
            },
            hovertemplate="%{y}<br>step %{x}<br>%{customdata:.3g} times the limit<extra></extra>",
        )
    figure.update_layout(
        title=_escaped(f"layers of {run} that left their band, the first at the top"),
        template="plotly_white",
        xaxis_title="step",
        height=min(max(ROW_PIXELS * len(left), LEAST_PIXELS), MOST_PIXELS) + 120,
    )
    order = [_escaped(each["layer"]) for each in left]
    figure.update_yaxes(autorange="reversed", categoryorder="array", categoryarray=order)
    return figure


def _ratio_places(values: Doubles) -> Doubles:
    """Return the place of ratios from 0 to 1: up to 1 the lower half, 2 the upper end."""
    below = values * 0.4999
    return np.where(values <= 1, below, np.minimum(0.5001 + (values - 1) / 2, 1))


def _span_places(values: Doubles) -> Doubles:
    """Return the place of values between their smallest and largest."""
    finite = values[np.isfinite(values)]
    if not finite.size or finite.min() == finite.max():
        return np.where(np.isnan(values), np.nan, 0.5)
    low, high = float(finite.min()), float(finite.max())
    if low > 0 and high / low > 10:
        values, low, high = np.log(values), float(np.log(low)), float(np.log(high))
    return np.clip((values - low) / (high - low), 0, 1)


def _spread(inks: Sequence[str], low: float = 0, high: float = 1) -> list[tuple[float, str]]:
    return [(low + (high - low) * i / (len(inks) - 1), ink) for i, ink in enumerate(inks)]


def _faint(ink: str) -> str:
    red, green, blue = (int(ink[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, 0.15)"


def _escaped(text: str) -> str:
    """Return a name as text: plotly reads some HTML tags in labels."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
