"""axe-core, which checks for accessibility, finds nothing: any view, theme and width."""

from pathlib import Path

import pytest
from chromium import needs_chromium
from page_views import SIZES, VIEWS
from playwright.sync_api import Page

AXE = Path(__file__).parents[2] / "node_modules" / "axe-core" / "axe.min.js"
pytestmark = [
    needs_chromium,
    pytest.mark.skipif(not AXE.exists(), reason="needs axe-core: npm ci"),
]


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
def test_axe_finds_nothing_on_any_view(each_view, scheme, size):
    width, height = SIZES[size]
    found, wide = {}, {}
    for view, page in each_view(viewport={"width": width, "height": height}, color_scheme=scheme):
        found[view] = violations(page)
        wide[view] = page.evaluate("document.documentElement.scrollWidth") > width
    assert len(found) == len(VIEWS) + 2  # and the two services without a run to show
    assert {view: wrong for view, wrong in found.items() if wrong} == {}
    assert {view for view, is_wide in wide.items() if is_wide} == set()
