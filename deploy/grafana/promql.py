"""Expressions that several panels need."""

from __future__ import annotations

WINDOW = "$__rate_interval"


def fresh(metric: str, by: str, *, known: str | None = None) -> str:
    """Return by how much a counter grew within the window, its first appearance included.

    ``increase`` misses the first event of a rule: that series begins at 1, not at 0. ``known`` is a
    series that was there if the run was scraped a window ago: without it, a gap in the scrapes
    would look as if all that a run ever counted had happened at its end.
    """
    now, before = f"max by ({by}) ({metric})", f"max by ({by}) ({metric} offset {WINDOW})"
    nothing = f"0 * {now}"
    if known is not None:
        nothing = f"({nothing} and on (run) {known} offset {WINDOW})"
    return f"{now} - ({before} or {nothing})"


def growth_of_step(selector: str) -> str:
    """Return steps per second. The step is a gauge that goes back on resume: never its rate."""
    return f"clamp_min(max by (run) (deriv(snc_run_last_step{{{selector}}}[{WINDOW}])), 0)"
