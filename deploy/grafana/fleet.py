"""All runs at a glance: which is in trouble, and which has gone quiet."""

from __future__ import annotations

from boards import board, choice, with_row
from grafana_foundation_sdk.builders.dashboard import Dashboard
from parts import ANY_IS_BAD, NEAR_AND_ABOVE, ORANGE, RED, lines, number, rows
from promql import fresh, growth_of_step

OPEN_RUN = "/d/snc-run?var-run=${__value.text}&${datasource:queryparam}"


def chosen(expr: str) -> str:
    """Return ``expr``, which has the label run, of the projects that are chosen."""
    return f'(({expr}) and on (run) snc_run_info{{project=~"$project"}})'


def per_run(metric: str) -> str:
    """Return one value per chosen run, also where several Prometheus jobs scrape it."""
    return chosen(f"max by (run) ({metric})")


def fleet() -> Dashboard:
    """Return the dashboard."""
    made = board(
        "snc-fleet", "snc / Fleet", "All runs that report, by how near they are to trouble."
    )
    made = made.with_variable(
        choice("project", "Project", "label_values(snc_run_info, project)", several=True)
    )
    for panel in _numbers():
        made = made.with_panel(panel)
    made = made.with_panel(_runs())
    made = with_row(made, "Along time", _graphs())
    return with_row(made, "What fires", [_alerts()])


def _numbers() -> list:
    return [
        number(
            "Open runs",
            f"count({per_run('snc_run_active')} == 1) or vector(0)",
            "Runs that are not finished, also those that went silent.",
        ),
        number(
            "Silent runs",
            f"count({per_run('snc_run_silent')} == 1) or vector(0)",
            "Open runs that have stopped reporting.",
            bounds=((1, ORANGE),),
        ),
        number(
            "Runs above a threshold",
            f"count({per_run('snc_run_worst_ratio')} > 1) or vector(0)",
            "Runs whose worst layer is above its threshold now.",
            bounds=ANY_IS_BAD,
        ),
        number(
            "Layers not finite",
            f"sum({per_run('snc_run_layers_nonfinite')}) or vector(0)",
            "Layers whose newest sigma is NaN or infinite. No comparison ever sees them.",
            bounds=ANY_IS_BAD,
        ),
        number(
            "Values lost",
            f"sum({per_run('snc_dropped_values_total')}) or vector(0)",
            "Values that clients gave up because they could not send them, since the runs began.",
            bounds=((1, ORANGE),),
        ),
        number(
            "Newest report",
            f"time() - max({per_run('snc_run_last_report_timestamp_seconds')})",
            "Age of the newest report of any run.",
            unit="s",
            bounds=((120, ORANGE), (600, RED)),
        ),
    ]


def _runs() -> object:
    info = 'max by (run, name, project) (snc_run_info{project=~"$project"})'
    return rows(
        "Runs",
        "run",
        {
            "known": info,
            "Worst ratio": per_run("snc_run_worst_ratio"),
            "Above": per_run("snc_run_layers_breaching"),
            "Not finite": per_run("snc_run_layers_nonfinite"),
            "Layers": per_run("snc_run_layers"),
            "Step": per_run("snc_run_last_step"),
            "Breaches": per_run("snc_breaches_total"),
            "Rescales": per_run("snc_rescales_total"),
            "Lost values": per_run("snc_dropped_values_total"),
            "Open": per_run("snc_run_active"),
            "Last report": chosen("time() - max by (run) (snc_run_last_report_timestamp_seconds)"),
        },
        "One row per run; a run leaves 5 minutes after its end. The name opens the run.",
        height=10,
        hidden=("known",),
        sort="Worst ratio",
        units={"Last report": "s", "Worst ratio": "none"},
        bounds={"Worst ratio": NEAR_AND_ABOVE, "Above": ANY_IS_BAD, "Not finite": ANY_IS_BAD},
        links={"run": OPEN_RUN},
    )


def _graphs() -> list:
    events = fresh("snc_events_total", "run, rule, severity", known="snc_run_layers")
    return [
        lines(
            "Worst layer of each run: sigma / threshold",
            {"{{run}}": per_run("snc_run_worst_ratio")},
            "Above 1 is a breach.",
            unit="none",
            bounds=NEAR_AND_ABOVE,
        ),
        lines(
            "New events by rule",
            {"{{rule}}": f"sum by (rule) ({chosen(events)}) > 0"},
            "What detection noticed, per interval. The first event of a rule counts too.",
            bars=True,
        ),
        lines(
            "Steps per second",
            {"{{run}}": chosen(growth_of_step(""))},
            "From the step each run reported last.",
        ),
        lines(
            "Layers above their threshold",
            {"{{run}}": per_run("snc_run_layers_breaching")},
            "Layers whose newest sigma is above its threshold.",
        ),
    ]


def _alerts() -> object:
    return rows(
        "Alerts that fire",
        "alertname",
        {"firing": 'max by (alertname, severity, run) (ALERTS{alertstate="firing"})'},
        "Of the rules in deploy/alerts.yml, from Prometheus itself.",
        hidden=("firing",),
    )
