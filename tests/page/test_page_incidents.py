"""Trouble on the page: incidents, which layer went first, which is next at its threshold."""

import httpx
import numpy as np
import pytest
from chromium import needs_chromium
from feed import Feed
from playwright.sync_api import expect

from snc_service.detect.track_record import sentence
from snc_service.wire import ABSENT

pytestmark = needs_chromium

LAYERS = ("blocks.0.query.weight", "blocks.0.key.weight")


@pytest.fixture(scope="module")
def troubled(page_service) -> str:
    """Return a run whose second layer breaches at step 40 and leaps at step 60."""
    sigma = np.ones((80, 2))
    sigma[40:, 1] = 1.05
    sigma[60:, 1] = 2.0
    Feed(page_service, "troubled", LAYERS).send(list(range(80)), sigma=sigma, threshold=1.04)
    return "troubled"


def incidents(url: str) -> list[dict]:
    return httpx.get(f"{url}/api/v1/incidents", params={"run": "troubled"}).json()["items"]


def test_the_list_of_runs_leads_to_the_open_incident(opened, page_service, troubled):
    Feed(page_service, "calm", LAYERS).send(list(range(80)), sigma=1.0, threshold=2.0)
    with opened(page_service, "") as page:
        box = page.locator(".open-incidents")
        expect(box).to_contain_text("1 open incident")
        text = "\u25cf troubled: breach, blocks.0.key.weight, then sigma jump"
        expect(box.get_by_role("link")).to_have_text(text)
        box.get_by_role("link").click()
        expect(page.get_by_role("heading", name="Incidents")).to_be_visible()
        page.goto(f"{page_service}/#/runs/calm")
        expect(page.get_by_role("heading", name="Worst layers")).to_be_visible()
        expect(page.get_by_role("heading", name="Incidents")).to_be_hidden()


def test_each_open_incident_has_the_color_of_its_own_severity(opened, page_service, troubled):
    sigma = np.ones((400, 2))
    sigma[300:, 0] = np.exp(0.03 * np.arange(100))
    Feed(page_service, "warned", LAYERS).send(list(range(400)), sigma=sigma, scalars={"loss": 1.0})
    with opened(page_service, "") as page:
        links = page.locator(".open-incidents a")
        expect(links.filter(has_text="warned")).to_be_visible()
        color = "link => getComputedStyle(link.querySelector('.event-glyph')).color"
        colors = {link.get_attribute("data-severity"): link.evaluate(color) for link in links.all()}
        assert len(set(colors.values())) == len(colors) == 2


def test_an_incident_says_what_came_first_and_what_followed(opened, page_service, troubled):
    with opened(page_service, f"#/runs/{troubled}?none=1") as page:
        entry = page.locator(".incidents li")
        expect(entry).to_have_count(1)
        expect(entry.locator(".event-rule")).to_have_text("breach")
        expect(entry.locator(".event-severity")).to_have_text("critical \u00b7 open")
        expect(entry.locator(".event-step")).to_have_text("from step 40")
        expect(entry.locator(".event-message")).to_contain_text("exceeds its threshold 1.04")
        expect(entry.locator(".event-then")).to_have_text("then sigma jump at 60")
        # It leads to its layer and its step.
        entry.get_by_role("button", name="breach").click()
        expect(page.locator(".legend-name")).to_have_text("blocks.0.key.weight")
        expect(page.locator(".legend-step")).to_have_text("step 40")


def test_incident_and_onset_say_one_step_and_one_list_of_layers(opened, page_service):
    steps = np.arange(400)
    sigma = np.ones((400, 2))
    sigma[300:, 0] = np.exp(0.03 * np.arange(100))
    sigma[302:, 1] = np.exp(0.03 * np.arange(98))
    scalars = {"loss": 1.0}
    Feed(page_service, "traced", LAYERS).send(steps.tolist(), sigma=sigma, scalars=scalars)
    with opened(page_service, "#/runs/traced") as page:
        first = page.locator(".area-onset li").first
        expect(first.locator(".order-layer")).to_have_text(LAYERS[0])
        expect(first.locator(".order-value")).to_have_text("step 301")
        entry = page.locator(".incidents li").first
        expect(entry.locator(".event-step")).to_contain_text("from step 301, alarm at 3")
        expect(entry.locator(".event-layer")).to_have_text(f"{LAYERS[0]} and 1 more")
        entry.locator(".event").click()
        expect(page.locator(".legend-step")).to_contain_text("step 301")


def test_what_became_critical_long_after_a_warning_names_the_incident(opened, page_service):
    sigma = np.ones((400, 2))
    sigma[100:, 0] = 1.06
    sigma[300:, 1] = 2.0
    feed = Feed(page_service, "lingers", LAYERS)
    feed.send(list(range(200)), sigma=sigma[:200], threshold=[1.04, 9.0])
    with opened(page_service, "#/runs/lingers?none=1") as page:
        entry = page.locator(".incidents li")
        expect(entry.locator(".event-rule")).to_have_text("breach")
        expect(entry.locator(".event-confidence")).to_have_text("")
        feed.send(list(range(200, 400)), sigma=sigma[200:], threshold=[1.04, 9.0])
        expect(entry.locator(".event-rule")).to_have_text("sigma jump", timeout=60_000)
        expect(entry.locator(".event-step")).to_have_text("from step 300")
        expect(entry.locator(".event-then")).to_have_text("after breach at 100")
        expect(entry.locator(".event-confidence")).to_have_text(sentence("sigma_jump"))


def test_whoever_looks_after_an_incident_is_told_at_once(opened, page_service, troubled):
    with opened(page_service, f"#/runs/{troubled}") as page:
        button = page.get_by_role("button", name="Acknowledge")
        button.click()
        expect(page.locator(".event-owner")).to_contain_text("acknowledged")
        expect(button).to_be_hidden()
        (incident,) = incidents(page_service)
        assert incident["acknowledged_at"] is not None
        page.reload()
        expect(page.locator(".event-owner")).to_contain_text("acknowledged")


def test_the_page_says_which_layer_went_first(opened, page_service):
    sigma = np.ones((80, 2))
    sigma[60:, 0] = 1.5
    sigma[64:, 1] = 1.3
    Feed(page_service, "order", LAYERS).send(list(range(80)), sigma=sigma, threshold=4.0)
    with opened(page_service, "#/runs/order?none=1") as page:
        box = page.locator(".area-onset")
        expect(box.locator(".order-layer")).to_have_text(LAYERS)
        expect(box.locator(".order-value")).to_have_text(["step 60", "+4"])
        # A jump by 1.5 is log(1.5) = 0.405, four times the limit of 0.1.
        expect(box.locator(".order-detail").first).to_have_text("sigma jump, 4.05 \u00d7 its limit")
        box.get_by_role("button", name=LAYERS[1]).click()
        expect(page.locator(".legend-name")).to_have_text(LAYERS[1])
        expect(page.locator(".legend-step")).to_have_text("step 64")


def test_the_page_says_which_layer_reaches_its_threshold_next(opened, page_service):
    """Sigma grows by 0.2 % a step: from 1.17 to 2 that takes log(2 / 1.17) / 0.002 steps."""
    steps = np.arange(80)
    sigma = np.stack([np.exp(0.002 * steps), np.full(80, 1.0)], 1)
    feed = Feed(page_service, "ahead", LAYERS)
    feed.send(steps.tolist(), sigma=sigma, threshold=2.0)
    wanted = round(float(np.log(2.0 / sigma[-1, 0]) / 0.002))
    with opened(page_service, "#/runs/ahead") as page:
        box = page.locator(".area-forecast")
        expect(box.locator(".order-layer")).to_have_text([LAYERS[0]])
        expect(box.locator(".order-value")).to_have_text(f"in about {wanted} steps")
        feed.finish()
        expect(box).to_be_hidden()
        expect(page.locator(".area-onset")).to_be_hidden()


def test_the_table_says_what_a_bound_is_worth(opened, page_service):
    feed = Feed(page_service, "bounds", ("new.weight", "carried.weight", "old.weight"))
    feed.send([1], sigma=1.0, sigma_upper=1.1, certified_age=[0, 3, 9], bound_age=[0, 0, 4])
    with opened(page_service, "#/runs/bounds") as page:
        cells = page.locator(".layers td[data-key=sigma_upper]")
        expect(cells).to_have_count(3)
        titles = [cell.get_attribute("title") for cell in cells.all()]
        assert titles == [
            "A bound, certified at this step",
            "A bound, carried from a certificate 3 steps ago",
            "A bound 4 steps ago; the weight has moved since",
        ]
        assert page.locator(".layers .is-old").count() == 1


def test_the_table_shows_the_size_of_steps_where_a_job_reports_it(opened, page_service):
    measured = {"update_sigma_ratio": np.array([0.01, ABSENT], np.float32)}
    for run, ratios in (("with-steps", measured), ("plain", {})):
        Feed(page_service, run, ("a.weight", "b.weight")).send([1], sigma=1.0, **ratios)
    column = "step / \N{GREEK SMALL LETTER SIGMA}"
    with opened(page_service, "#/runs/plain") as page:
        expect(page.locator(".layers tbody tr")).to_have_count(2)
        expect(page.get_by_role("columnheader", name=column)).to_be_hidden()
    with opened(page_service, "#/runs/with-steps") as page:
        expect(page.get_by_role("columnheader", name=column)).to_be_visible()
        cells = page.locator(".layers td[data-key=update_sigma_ratio]")
        expect(cells).to_have_text(["0.01000", "\N{EN DASH}"])
