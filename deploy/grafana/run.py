"""One run: which layers grow, what is near its threshold, and what happened when."""

from __future__ import annotations

from boards import Marks, board, choice, with_row
from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.builders.dashboard import Dashboard
from grafana_foundation_sdk.models.dashboard import DashboardLinkType
from parts import ANY_IS_BAD, NEAR_AND_ABOVE, ORANGE, RED, cells, lines, number, rows
from promql import WINDOW, fresh, growth_of_step

RUN = 'run="$run"'
LAYERS = 'run="$run", layer=~"$layer"'
DRAWN = 10  # lines in a graph of layers
ROWS = 300  # of a heatmap


def newest(metric: str, selector: str = RUN, by: str = "run") -> str:
    """Return one value per ``by``, also where several Prometheus jobs scrape the run."""
    return f"max by ({by}) ({metric}{{{selector}}})"


def layers(metric: str) -> str:
    """Return one value per chosen layer."""
    return newest(metric, LAYERS, by="layer")


def peak(metric: str) -> str:
    """Return the largest value per chosen layer within each interval: no spike is lost."""
    return f"max by (layer) (max_over_time({metric}{{{LAYERS}}}[{WINDOW}]))"


def worst(count: int, metric: str = "snc_threshold_ratio") -> str:
    """Return the layers with the largest values in the whole range, the same at all its times."""
    return f"topk({count}, max by (layer) (max_over_time({metric}{{{LAYERS}}}[$__range] @ end())))"


def run() -> Dashboard:
    """Return the dashboard."""
    made = board("snc-run", "snc / Run", "One run's layers, thresholds and events.", since="now-3h")
    made = made.with_variable(choice("run", "Run", "label_values(snc_run_info, run)"))
    made = made.with_variable(
        choice("layer", "Layer", 'label_values(snc_sigma{run="$run"}, layer)', several=True)
    )
    made = made.with_variable(
        dashboard.TextBoxVariable("service")
        .label("Service")
        .description("Where a browser reaches the service's own page.")
        .default_value("http://127.0.0.1:8470")
    )
    page = dashboard.DashboardLink("Open this run on the service's page")
    made = made.link(page.type(DashboardLinkType.LINK).url("${service}/#/runs/${run}"))
    for mark in _marks():
        made = made.annotation(mark)
    for panel in _numbers():
        made = made.with_panel(panel)
    made = with_row(made, "Layers against their thresholds", _thresholds())
    made = with_row(made, "Growth of sigma, with or without thresholds", _growth())
    return with_row(made, "Progress and events", _progress())


def _marks() -> list[Marks]:
    def events(severity: str) -> str:
        counted = f'snc_events_total{{{RUN}, severity="{severity}"}}'
        # An event is marked where it appears, whatever the window of a graph is.
        grown = fresh(counted, "run, rule, severity").replace(WINDOW, "$__interval")
        return f"({grown}) > 0"

    colors = {"critical": "red", "warning": "orange", "info": "blue"}
    return [
        Marks(
            f"Events: {severity}",
            events(severity),
            title="{{rule}}",
            text="severity {{severity}}; snc events {{run}} tells the layer and the step",
            color=color,
        )
        for severity, color in colors.items()
    ]


def _numbers() -> list:
    return [
        number("Step", newest("snc_run_last_step"), "Newest step that was reported.", width=3),
        number(
            "Worst ratio",
            newest("snc_run_worst_ratio"),
            "Largest newest sigma / threshold; above 1 is a breach.",
            width=3,
            unit="none",
            bounds=NEAR_AND_ABOVE,
        ),
        number(
            "Layers above",
            newest("snc_run_layers_breaching"),
            "Layers whose newest sigma is above its threshold.",
            width=3,
            bounds=ANY_IS_BAD,
        ),
        number(
            "Layers not finite",
            newest("snc_run_layers_nonfinite"),
            "Layers whose newest sigma is NaN or infinite.",
            width=3,
            bounds=ANY_IS_BAD,
        ),
        number("Layers", newest("snc_run_layers"), "Measured layers.", width=3),
        number(
            "Last report",
            f"time() - {newest('snc_run_last_report_timestamp_seconds')}",
            "Age of the newest report or change of state.",
            width=3,
            unit="s",
            bounds=((120, ORANGE), (600, RED)),
        ),
        number(
            "Overhead",
            newest("snc_run_overhead_ratio"),
            "Share of the step time spent in the callback, as the job measured it.",
            width=3,
            unit="percentunit",
            bounds=((0.05, ORANGE),),
        ),
        number(
            "Values lost",
            newest("snc_dropped_values_total"),
            "Values the client gave up because it could not send them.",
            width=3,
            bounds=((1, ORANGE),),
        ),
    ]


def _thresholds() -> list:
    return [
        cells(
            "sigma / threshold",
            f"{peak('snc_threshold_ratio')} and on (layer) {worst(ROWS)}",
            f"The largest value of each interval, for the {ROWS} layers that came nearest to their "
            "thresholds. The colors end at 1.2; above 1 is a breach. A hole is a value that is not "
            "finite, or no report.",
            legend="{{layer}}",
            most=1.2,
            unit="none",
        ),
        rows(
            "Worst layers now",
            "layer",
            {
                "sigma / threshold": f"topk(20, {layers('snc_threshold_ratio')})",
                "sigma": layers("snc_sigma"),
                "sigma_upper": layers("snc_sigma_upper"),
                "threshold": layers("snc_threshold"),
            },
            "The 20 layers nearest to their thresholds come first.",
            width=16,
            sort="sigma / threshold",
            bounds={"sigma / threshold": NEAR_AND_ABOVE},
        ),
        rows(
            "Layers not finite",
            "layer",
            {
                "broken": f"count by (layer) (snc_sigma{{{LAYERS}}} != snc_sigma{{{LAYERS}}}"
                f" or abs(snc_sigma{{{LAYERS}}}) == Inf)"
            },
            "Layers whose newest sigma is NaN or infinite: they appear in no graph.",
            width=8,
            hidden=("broken",),
        ),
        lines(
            f"The {DRAWN} layers that came nearest: sigma / threshold",
            {"{{layer}}": f"{peak('snc_threshold_ratio')} and on (layer) {worst(DRAWN)}"},
            "Chosen over the whole range, so that no line comes and goes.",
            unit="none",
            bounds=NEAR_AND_ABOVE,
        ),
        lines(
            "The layer that came nearest: sigma, its bound and its threshold",
            {
                f"{name} {{{{layer}}}}": f"{layers(metric)} and on (layer) {worst(1)}"
                for name, metric in {
                    "sigma": "snc_sigma",
                    "sigma_upper": "snc_sigma_upper",
                    "threshold": "snc_threshold",
                }.items()
            },
            "sigma is an estimate from below, sigma_upper a bound from above, where certified.",
        ),
    ]


def _growth() -> list:
    least = f"max by (layer) (min_over_time(snc_sigma{{{LAYERS}}}[$__range] @ end()) > 0)"
    grown = f"{peak('snc_sigma')} / on (layer) {least}"
    return [
        cells(
            "sigma / its least value in the range",
            f"({grown}) and on (layer) {worst(ROWS, 'snc_sigma')}",
            "How much each layer grew, also where it has no threshold.",
            legend="{{layer}}",
            unit="none",
        ),
        lines(
            f"The {DRAWN} largest layers: sigma",
            {"{{layer}}": f"{peak('snc_sigma')} and on (layer) {worst(DRAWN, 'snc_sigma')}"},
            "Chosen over the whole range, so that no line comes and goes.",
            width=24,
        ),
    ]


def _progress() -> list:
    counted = {"breaches": "snc_breaches_total", "rescales": "snc_rescales_total"}
    counted["vetoes of the guard"] = "snc_guard_vetoes_total"
    events = fresh(f"snc_events_total{{{RUN}}}", "run, rule, severity", known="snc_run_layers")
    loss = newest("snc_scalar", f'{RUN}, name="loss"')
    return [
        lines("Loss", {"loss": loss}, "Newest value at each scrape; a gap is one not finite."),
        lines(
            "Other scalars",
            {"{{name}}": newest("snc_scalar", f'{RUN}, name!="loss"', by="name")},
            "What else the run reports once a step, its first 16 names.",
        ),
        lines("Step", {"step": newest("snc_run_last_step")}, "It goes back when a job resumes."),
        lines("Steps per second", {"steps": growth_of_step(RUN)}, "While the job reports."),
        lines(
            "Breaches and actions",
            {
                name: f"max by (run) (rate({metric}{{{RUN}}}[{WINDOW}]))"
                for name, metric in counted.items()
            },
            "Layer-steps per second with sigma above its threshold, and with a rescaled weight.",
        ),
        lines(
            "New events by rule",
            {"{{rule}} ({{severity}})": f"sum by (rule, severity) ({events}) > 0"},
            "What detection noticed, per interval.",
            bars=True,
        ),
    ]
