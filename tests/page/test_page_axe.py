"""axe-core, which checks for accessibility, finds nothing: any view, theme and width."""

from pathlib import Path

import pytest
from chromium import needs_chromium
from page_views import SIZES, VIEWS, fill
from playwright.sync_api import Page, expect

AXE = Path(__file__).parents[2] / "node_modules" / "axe-core" / "axe.min.js"
pytestmark = [
    needs_chromium,
    pytest.mark.skipif(not AXE.exists(), reason="needs axe-core: npm ci"),
]


@pytest.fixture(scope="module")
def filled(page_service) -> str:
    fill(page_service)
    return page_service


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
def test_axe_finds_nothing_on_any_view(opened, filled, empty_service, closed_service, scheme, size):
    width, height = SIZES[size]
    options = {"viewport": {"width": width, "height": height}, "color_scheme": scheme}
    found = {}
    with opened(filled, "#/", complaints="404", **options) as page:
        for view, (address, ready) in VIEWS.items():
            page.goto("about:blank")  # an address that differs behind the # alone is no new page
            page.goto(f"{filled}/{address}")
            expect(page.locator("main h1, main h2").first).to_be_visible()
            ready(page)
            found[view] = violations(page)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, view
    for view, url, complaints in (
        ("welcome", empty_service, ""),
        ("login", closed_service, "401"),
    ):
        with opened(url, "#/", complaints=complaints, **options) as page:
            expect(page.locator("main h1, main h2").first).to_be_visible()
            found[view] = violations(page)
    assert found == {view: [] for view in (*VIEWS, "welcome", "login")}
