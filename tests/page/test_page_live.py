"""The page stays current: runs go on or are deleted, a service goes away and comes back."""

import httpx
from chromium import layer_row, needs_chromium, wait_for_heatmap
from feed import Feed
from playwright.sync_api import Page, expect

from snc_client.demo.service import free_port, serving

pytestmark = needs_chromium


def test_a_run_goes_on_before_the_eyes(opened, page_service):
    feed = Feed(page_service, "live", ["fc.weight"])
    feed.send([1, 2], sigma=1.0, threshold=2.0, scalars={"loss": 1.0})
    with opened(page_service, "#/runs/live") as page:
        wait_for_heatmap(page)
        page.evaluate("window.neverReloaded = true")
        feed.send([3, 4], sigma=[[1.5], [2.5]], threshold=2.0, scalars={"loss": 0.5})
        expect(layer_row(page, "fc.weight").locator(".ratio-number")).to_have_text("▲ 1.25")
        expect(page.locator(".facts")).to_contain_text("Step4")
        expect(page.locator(".events .event-rule").first).to_have_text("breach")
        expect(page.locator("#announcer")).to_have_text("This run: first breach.")
        expect(page.locator(".heatmap .readout")).to_contain_text("4 columns")
        feed.finish()
        expect(page.locator(".view-head .badge")).to_have_text("✓finished")
        expect(page.locator("#announcer")).to_have_text("This run is finished.")
        assert page.evaluate("window.neverReloaded")


def test_a_hidden_tab_asks_nothing_and_catches_up_when_seen_again(opened, page_service, planted):
    with opened(page_service, "#/runs/planted") as page:
        wait_for_heatmap(page)
        set_hidden(page, True)
        expect(page.locator("#connection")).to_have_text("paused while hidden")
        page.wait_for_load_state("networkidle")
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.wait_for_timeout(2_500)  # more than two rounds of asking
        assert asked == []
        set_hidden(page, False)
        expect(page.locator("#connection")).to_have_text("live")
        assert asked


def set_hidden(page: Page, hidden: bool) -> None:
    page.evaluate(
        """hidden => {
            Object.defineProperty(document, 'hidden', { configurable: true, get: () => hidden });
            document.dispatchEvent(new Event('visibilitychange'));
        }""",
        hidden,
    )


def test_a_service_that_goes_away_is_seen_and_so_is_its_return(opened, tmp_path):
    store, port = tmp_path / "away.db", free_port(0)
    with serving(store, port) as url:
        Feed(url, "r", ["fc.weight"]).send([1], sigma=1.0)
        manager = opened(url, "#/runs/r", complaints="Failed to load resource")
        page = manager.__enter__()
        wait_for_heatmap(page)
    expect(page.locator("#connection")).to_contain_text("service not reached since", timeout=45_000)
    expect(page.locator("#announcer")).to_contain_text("may be old")
    expect(layer_row(page, "fc.weight")).to_be_visible()
    with serving(store, port):
        expect(page.locator("#connection")).to_have_text("live", timeout=45_000)
        expect(page.locator("#announcer")).to_have_text("The service is reached again.")
        expect(page.locator(".notice")).to_be_hidden()
        manager.__exit__(None, None, None)


def test_a_run_that_is_deleted_while_shown_leaves_a_sentence(opened, page_service):
    Feed(page_service, "doomed", ["fc.weight"]).send([1], sigma=1.0)
    with opened(page_service, "#/runs/doomed", complaints="404") as page:
        wait_for_heatmap(page)
        httpx.delete(f"{page_service}/api/v1/runs/doomed").raise_for_status()
        expect(page.locator(".state h1")).to_have_text("The run doomed is not here")
