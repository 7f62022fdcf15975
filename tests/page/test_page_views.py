"""Moving about on the page: comparing, zooming, by keyboard, on a phone, in either theme."""

import re

import pytest
from chromium import (
    eventually,
    heatmap_point,
    marks,
    needs_chromium,
    traces,
    wait_for_heatmap,
)
from feed import Feed
from playwright.sync_api import expect

pytestmark = needs_chromium


def test_selected_runs_are_compared_side_by_side(opened, page_service, pair):
    with opened(page_service, "#/") as page:
        compare = page.locator("a.primary")
        expect(compare).to_be_hidden()
        for run in pair:
            page.get_by_label(f"Select {run}").check()
        expect(compare).to_have_text("Compare 2")
        compare.click()
        wait_for_heatmap(page, 2)
        assert page.url.endswith("#/compare/free/held")
        boxes = [box.bounding_box() for box in page.locator(".picture").all()]
        assert boxes[0]["y"] == boxes[1]["y"]
        assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]
        ranges = page.evaluate(
            "[...document.querySelectorAll('.plot')].map(p => p.figure.layout.xaxis.range.join())"
        )
        assert len(ranges) == 4
        assert len(set(ranges)) == 1
        # What the model goes on with: the one run far above its threshold, the other held at it.
        chosen = page.get_by_role("group", name="What the colors show")
        expect(chosen.locator("[aria-pressed=true]")).to_have_text("after the action")
        assert {"triangle-up"} == marks(page, ".picture:nth-child(1) .plot")
        assert {"diamond"} == marks(page, ".picture:nth-child(2) .plot")
        largest = page.locator(".versus tbody tr").filter(has_text="after the action")
        expect(largest.locator("td")).to_have_text(["3.66", "1.00"])
        loss = [t for t in traces(page, ".area-loss .plot") if t["mode"] == "lines"]
        assert [t["y"][-1] for t in loss] == [pytest.approx(3.99), pytest.approx(1.005)]
        numbers = page.locator(".versus tbody tr")
        expect(numbers.filter(has_text="Rescales").locator("td").first).to_have_text("0")
        expect(numbers.filter(has_text="Loss, newest").locator("td")).to_have_text(
            ["3.990", "1.005"]
        )
        page.get_by_label("Layer", exact=True).select_option("key.weight")
        expect(page.locator(".area-layer .readout")).to_contain_text("held: 2.020")


def test_a_comparison_waits_for_a_run_that_has_not_begun(opened, page_service):
    Feed(page_service, "early", ["fc.weight"]).send([1, 2], sigma=1.0, scalars={"loss": 1.0})
    with opened(page_service, "#/compare/early/late", complaints="404") as page:
        wait_for_heatmap(page)
        expect(page.locator(".picture").nth(1)).to_contain_text("This run is not here")
        Feed(page_service, "late", ["fc.weight"]).send([1, 2], sigma=2.0, scalars={"loss": 0.5})
        wait_for_heatmap(page, 2)
        expect(page.locator(".area-loss .readout")).to_contain_text("early: 1.000 · late: 0.5000")


# Moving about


def test_views_and_zooms_are_addresses_that_back_comes_back_from(opened, page_service, planted):
    with opened(page_service, "#/?q=planted") as page:
        page.get_by_role("link", name="planted values").click()
        wait_for_heatmap(page)
        page.get_by_label("First step shown").fill("10")
        page.get_by_label("Last step shown").fill("19")
        page.keyboard.press("Enter")
        expect(page.locator(".heatmap .readout")).to_contain_text("10 columns")
        assert page.url.endswith("#/runs/planted?from=10&to=19")
        zoomed = page.url
        page.keyboard.press("Escape")
        page.keyboard.press("Escape")
        expect(page.locator(".heatmap .readout")).to_contain_text("40 columns")
        page.go_back()
        expect(page.locator(".heatmap .readout")).to_contain_text("10 columns")
        assert page.url == zoomed
        page.go_back()
        page.go_back()
        expect(page.locator("#filter")).to_have_value("planted")


def test_dragging_over_the_heatmap_zooms_every_chart_of_the_run(opened, page_service, planted):
    with opened(page_service, "#/runs/planted") as page:
        wait_for_heatmap(page)
        page.mouse.move(*heatmap_point(page, 1, 10.2))
        page.mouse.down()
        page.mouse.move(*heatmap_point(page, 1, 15.0), steps=3)
        page.mouse.move(*heatmap_point(page, 1, 20.2), steps=3)
        page.mouse.up()
        expect(page.locator(".heatmap .readout")).to_contain_text("columns")
        expect(page).to_have_url(re.compile(r"from=10&to=21$"))
        ranges = "[...document.querySelectorAll('.plot')].map(p => p.figure.layout.xaxis.range)"
        eventually(page, ranges, [[10, 21], [10, 21]])


VIEWS = ("#/", "#/runs/planted", "#/compare/free/held")


@pytest.mark.parametrize("address", VIEWS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_every_view_without_scrolling_sideways(
    opened, page_service, planted, pair, address, scheme
):
    options = {"viewport": {"width": 360, "height": 740}, "color_scheme": scheme}
    with opened(page_service, address, **options) as page:
        expect(page.locator("tbody tr").first).to_be_visible()
        if address != "#/":
            wait_for_heatmap(page, address.count("/") - 1)
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == {"light": "rgb(245, 246, 248)", "dark": "rgb(14, 17, 22)"}[scheme]


def test_the_theme_can_be_chosen_and_stays(opened, page_service, planted):
    with opened(page_service, "#/runs/planted", color_scheme="light") as page:
        wait_for_heatmap(page)
        picture = "document.querySelector('.plot canvas').toDataURL()"
        light = page.evaluate(picture)
        button = page.get_by_role("button", name="Theme")
        button.click()
        button.click()
        expect(button).to_have_text("Theme: dark")
        eventually(page, f"{picture} === '{light}'", False)
        page.reload()
        expect(button).to_have_text("Theme: dark")


def test_without_thresholds_the_layer_that_grew_most_is_drawn(opened, page_service):
    feed = Feed(page_service, "grown", ["a", "b", "c", "d", "e"])
    feed.send([1, 2, 3], sigma=[[9, 5, 1, 1, 2], [9, 5, 1, 2, 2], [9, 5, 1.5, 4, 2.2]])
    with opened(page_service, "#/runs/grown", complaints="404") as page:
        wait_for_heatmap(page)
        expect(page.locator(".area-layers .hint")).to_have_text(re.compile("grew most"))
        expect(page.locator(".layers tbody .layer-name").first).to_have_text("d")
        expect(page.locator(".legend-name")).to_have_text(["d", "c", "e"])
        page.goto(f"{page_service}/#/compare/grown/grown2")
        expect(page.locator(".heatmap .scale").first).to_be_visible()
        expect(page.get_by_text("This run is not here")).to_be_visible()
        expect(page.locator(".heatmap .scale").nth(1)).to_be_hidden()
        expect(page.get_by_label("Layer", exact=True)).to_have_value("d")
    feed.send([4], sigma=[[9, 5, 1.5, 4, 2.2]], threshold=10.0)
    with opened(page_service, "#/runs/grown") as page:
        wait_for_heatmap(page)
        expect(page.locator(".layers tbody .layer-name").first).to_have_text("a")
        expect(page.locator(".area-layers .hint")).to_be_hidden()


def test_a_run_without_sigma_shows_its_frobenius_norms_and_says_so(opened, page_service):
    feed = Feed(page_service, "norms", ["a", "b"])
    feed.send([1, 2, 3], frobenius=[[9, 1], [9, 2], [9, 4]])
    with opened(page_service, "#/runs/norms") as page:
        wait_for_heatmap(page)
        note = page.get_by_text("stands for the Frobenius norm")
        expect(note).to_be_visible()
        expect(page.locator(".layers tbody .layer-name")).to_have_text(["b", "a"])
        expect(page.locator(".layers tbody td[data-key=sigma]")).to_have_text(["4.000", "9.000"])
        lines = [t for t in traces(page, ".area-history .plot") if t["mode"] == "lines"]
        assert [4.0, 9.0] == [t["y"][-1] for t in lines]
        page.goto(f"{page_service}/#/compare/norms")
        wait_for_heatmap(page)
        expect(page.get_by_text("stands for the Frobenius norm")).to_be_visible()
        expect(page.get_by_label("Layer", exact=True)).to_have_value("b")
    feed.send([4], sigma=1.0, frobenius=2.0)
    with opened(page_service, "#/runs/norms") as page:
        wait_for_heatmap(page)
        expect(page.get_by_text("stands for the Frobenius norm")).to_be_hidden()
