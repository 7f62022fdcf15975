"""axe-core, which checks for accessibility, finds nothing: any view, theme and width."""

from pathlib import Path

import numpy as np
import pytest
from chromium import needs_chromium, wait_for_heatmap
from feed import Feed
from playwright.sync_api import Page, expect

AXE = Path(__file__).parents[2] / "node_modules" / "axe-core" / "axe.min.js"
pytestmark = [
    needs_chromium,
    pytest.mark.skipif(not AXE.exists(), reason="needs axe-core: npm ci"),
]
ADDRESSES = {
    "runs": "#/?column=config.lr",
    "selection": "#/",
    "run": "#/runs/axe-bad",
    "compare": "#/compare/axe-bad/axe-fine",
    "unknown": "#/nowhere",
}
SIZES = {"phone": (390, 844), "tablet": (768, 1024), "wide": (1440, 900)}


@pytest.fixture(scope="module")
def two_runs(page_service) -> None:
    steps = np.arange(60)
    for run, grows in (("axe-bad", 0.03), ("axe-fine", 0.0)):
        feed = Feed(page_service, run, ["a.weight", "b.weight"], config={"lr": 0.1}, tags=["t"])
        sigma = np.stack([np.exp(grows * steps), np.ones(60)], 1)
        if grows:
            sigma[50:, 1] = np.nan
        feed.send(steps.tolist(), sigma=sigma, threshold=2.0, scalars={"loss": 1 + 1 / (1 + steps)})
        feed.finish("failed" if grows else "finished")


def violations(page: Page) -> list[str]:
    """Return what axe-core reports, as rule and place."""
    page.evaluate(AXE.read_text())
    found = page.evaluate(
        "async () => (await axe.run(document)).violations.flatMap(({ id, nodes }) =>"
        " nodes.map(({ target, failureSummary }) => `${id}: ${target} ${failureSummary}`))"
    )
    return list(found)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_on_any_view(opened, page_service, two_runs, scheme, size):
    width, height = SIZES[size]
    options = {"viewport": {"width": width, "height": height}, "color_scheme": scheme}
    found = {}
    with opened(page_service, ADDRESSES["runs"], complaints="404", **options) as page:
        for view, address in ADDRESSES.items():
            page.goto(f"{page_service}/{address}")
            if view in ("run", "compare"):
                wait_for_heatmap(page, 2 if view == "compare" else 1)
            if view == "selection":
                for run in ("axe-bad", "axe-fine"):
                    page.get_by_label(f"Select {run}").check()
                page.locator("summary", has_text="Syntax").click()
            expect(page.locator("main h1")).to_be_visible()
            found[view] = violations(page)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, view
    assert found == {view: [] for view in ADDRESSES}
