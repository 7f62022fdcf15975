"""Every view of the page, each with what is worth looking at in it, over one filled service."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from chromium import wait_for_heatmap
from feed import Feed
from playwright.sync_api import Page, expect

STEPS = np.arange(60)
MANY = tuple(f"view-{number}" for number in range(7))  # more than are drawn large


def fill(url: str) -> None:
    """Send two runs, one of which goes wrong in every way, and more to compare."""
    for run, grows in (("view-bad", 0.03), ("view-fine", 0.0), *((each, 0.01) for each in MANY)):
        config = {"lr": 0.1, "model": {"width": 128}, "data": "source of Python's library"}
        layers = ["blocks.0.attention.query.weight", "blocks.0.attention.key.weight"]
        feed = Feed(url, run, layers, name=f"name of {run}", config=config, tags=["t"])
        sigma = np.stack([np.exp(grows * STEPS), np.ones(60)], 1)
        if run == "view-bad":
            sigma[50:, 1] = np.nan
        loss = {"loss": 1 + 1 / (1 + STEPS), "step_seconds": 0.2}
        feed.send(STEPS.tolist(), sigma=sigma, threshold=2.0, scalars=loss)
        feed.finish("failed" if run == "view-bad" else "finished")


def _runs(page: Page) -> None:
    expect(page.locator("tbody tr")).to_have_count(2 + len(MANY))


def _selection(page: Page) -> None:
    _runs(page)
    for run in ("view-bad", "view-fine"):
        page.get_by_label(f"Select name of {run}").check()
    page.locator("summary", has_text="Syntax").click()


def _run(page: Page) -> None:
    wait_for_heatmap(page)
    expect(page.locator(".layers tbody tr")).to_have_count(2)
    expect(page.locator(".events > li, .event").first).to_be_visible()


def _dialog(page: Page) -> None:
    _run(page)
    page.get_by_role("button", name="Delete").click()
    expect(page.get_by_role("dialog")).to_be_visible()


# The address of each view below the service's, and what brings it to the state to look at.
VIEWS: dict[str, tuple[str, Callable[[Page], None]]] = {
    "runs": ("#/?column=config.lr", _runs),
    "selection": ("#/", _selection),
    "run": ("#/runs/view-bad", _run),
    "dialog": ("#/runs/view-bad", _dialog),
    "compare": ("#/compare/view-bad/view-fine", lambda page: wait_for_heatmap(page, 2)),
    "compare-many": (f"#/compare/{'/'.join(MANY)}", lambda page: wait_for_heatmap(page, len(MANY))),
    "not-begun": ("#/compare/view-fine/nowhere", lambda page: wait_for_heatmap(page, 1)),
    "no-run": ("#/runs/nowhere", lambda page: None),
    "unknown": ("#/nowhere", lambda page: None),
}
SIZES = {"phone": (390, 844), "tablet": (768, 1024), "wide": (1440, 900)}
