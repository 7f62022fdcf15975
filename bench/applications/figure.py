"""One figure per study: bars with intervals, and the largest sigma over steps."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import plotly.graph_objects as go
from harness import Outcome, Study, interval
from playwright.sync_api import sync_playwright
from plotly.subplots import make_subplots

INK = {
    "none": "#3d4652",
    "torch": "#c2500b",
    "ours": "#0b62b0",
    "clipping": "#8a6a00",
    "decay": "#a63a86",
    "other": "#0b7d5c",
}
WIDTH, ROW, HEAD = 1100, 19, 110
WIDE = 100  # times the least value: a panel gets a logarithmic axis


def draw(study: Study, outcomes: Sequence[Outcome], path: Path) -> None:
    """Write a PNG: a panel for each of the study's drawn columns, one for sigma."""
    chosen = [next(c for c in study.columns if c.key == key) for key in study.drawn]
    titles = [*(column.title for column in chosen), "largest held sigma over steps"]
    figure = make_subplots(1, len(titles), subplot_titles=titles, horizontal_spacing=0.04)
    names = [outcome.variant for outcome in outcomes]
    inks = [INK[outcome.kind] for outcome in outcomes]
    for place, column in enumerate(chosen, 1):
        pairs = [interval(outcome.values[column.key]) for outcome in outcomes]
        finite = [mean for mean, _ in pairs if math.isfinite(mean)]
        figure.add_bar(
            x=[mean if math.isfinite(mean) else None for mean, _ in pairs],
            y=names,
            orientation="h",
            marker_color=inks,
            error_x=None
            if column.share
            else {"array": [half for _, half in pairs], "thickness": 1},
            row=1,
            col=place,
        )
        for name, (mean, _) in zip(names, pairs, strict=True):
            if not math.isfinite(mean):
                text = "none yet" if math.isnan(mean) else "not finite"
                figure.add_annotation(x=0, y=name, text=text, showarrow=False, font_size=9,
                                      xanchor="left", row=1, col=place)  # fmt: skip
        if finite and min(finite) > 0 and max(finite) > WIDE * min(finite):
            figure.update_xaxes(type="log", exponentformat="power", row=1, col=place)
        figure.update_yaxes(autorange="reversed", showticklabels=place == 1, row=1, col=place)
    for outcome, ink in zip(outcomes, inks, strict=True):
        middle = [statistics.median(each) for each in zip(*outcome.sigma, strict=True)]
        figure.add_scatter(x=outcome.steps, y=middle, mode="lines", line_color=ink, line_width=1.3,
                           row=1, col=len(titles))  # fmt: skip
    seen = [sigma for outcome in outcomes for each in outcome.sigma for sigma in each]
    figure.update_yaxes(
        type="log", exponentformat="power", side="right", row=1, col=len(titles),
        dtick="D2" if max(seen) < WIDE * min(seen) else None,  # labels at 1, 2 and 5
    )  # fmt: skip
    figure.update_layout(
        title=study.title, template="plotly_white", showlegend=False, bargap=0.3,
        width=WIDTH, height=HEAD + ROW * len(outcomes), margin={"t": 70, "b": 30, "l": 10, "r": 10},
        font_size=12,
    )  # fmt: skip
    path.write_bytes(pixels(figure))


def pixels(figure: go.Figure) -> bytes:
    """Return the figure as a PNG, drawn by Chromium."""
    width, height = figure.layout.width, figure.layout.height
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium())
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_content(figure.to_html(include_plotlyjs=True, config={"displayModeBar": False},
                                        default_width=width, default_height=height))  # fmt: skip
        page.wait_for_selector(".main-svg")
        image = page.screenshot(clip={"x": 0, "y": 0, "width": width, "height": height})
        browser.close()
    return image


def chromium() -> str | None:
    """Return Debian's browser; None: the one that Playwright has installed."""
    path = Path("/usr/bin/chromium")
    return str(path) if path.exists() else None
