"""Incidents on the page: which runs have one, what it is, and that somebody looks after it."""

import httpx
import numpy as np
import pytest
from chromium import needs_chromium
from feed import Feed
from playwright.sync_api import expect

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
        expect(box.get_by_role("link")).to_have_text("\u25cf troubled: breach, blocks.0.key.weight")
        box.get_by_role("link").click()
        expect(page.get_by_role("heading", name="Incidents")).to_be_visible()
        page.goto(f"{page_service}/#/runs/calm")
        expect(page.get_by_role("heading", name="Worst layers")).to_be_visible()
        expect(page.get_by_role("heading", name="Incidents")).to_be_hidden()


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
