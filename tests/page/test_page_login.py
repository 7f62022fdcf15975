"""The login of the page in a real Chromium, on a service that asks for tokens."""

import httpx
import pytest
from chromium import needs_chromium
from playwright.sync_api import expect

from snc_client.demo.service import free_port, serving
from snc_service.auth import make_token
from snc_service.store import open_store

pytestmark = needs_chromium
REFUSED = "401"  # the browser says so of every answer of that status


@pytest.fixture
def closed(tmp_path):
    """Yield the URL of a service that has a token, and that token."""
    path = tmp_path / "snc.db"
    token, secret = make_token(
        "anna", ["read", "ingest"], project=None, author="x", now=0.0, expires_at=None
    )
    store = open_store(f"sqlite:///{path}")
    store.tokens.add(token)
    store.close()
    with serving(path, free_port(0)) as url:
        headers = {"Authorization": f"Bearer {secret}"}
        body = {"run": "r", "name": "planted run"}
        httpx.post(f"{url}/api/v1/runs", json=body, headers=headers).raise_for_status()
        yield url, secret


def test_a_token_lets_in_and_signing_out_shuts_again(opened, closed):
    url, secret = closed
    with opened(url, "", complaints=REFUSED) as page:
        field = page.get_by_label("Token", exact=True)
        expect(field).to_be_focused()
        assert "planted run" not in page.content()
        expect(page.locator("#connection")).to_have_text("signed out")
        page.keyboard.press("Escape")
        expect(field).to_be_visible()
        field.fill("snc_wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("not one of this service")
        field.fill(f"  {secret} ")
        page.keyboard.press("Enter")
        expect(page.get_by_text("planted run")).to_be_visible()
        expect(field).to_be_hidden()
        assert page.evaluate("document.cookie") == ""
        (cookie,) = page.context.cookies()
        assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, "Strict", "/")
        assert secret not in page.content()
        page.get_by_role("button", name="Sign out anna").click()
        expect(page.get_by_label("Token", exact=True)).to_be_visible()
        assert page.context.cookies() == []


def test_without_any_token_in_the_service_nobody_is_asked(opened, service_url):
    with opened(service_url, "") as page:
        expect(page.locator("#connection")).to_have_text("live")
        expect(page.locator("#login")).to_be_hidden()
        expect(page.locator("#sign-out")).to_be_hidden()


def test_the_snippets_of_a_closed_service_have_a_place_for_the_token(opened, closed):
    url, secret = closed
    headers = {"Authorization": f"Bearer {secret}"}
    with opened(url, "", complaints=REFUSED) as page:
        page.get_by_label("Token", exact=True).fill(secret)
        page.keyboard.press("Enter")
        expect(page.get_by_text("planted run")).to_be_visible()
        # The token cannot delete; a store without runs is another one.
        page.route(
            "**/api/v1/runs?*", lambda route: route.fulfill(json={"items": [], "next": None})
        )
        summary = {"total": 0, "states": {}, "projects": [], "tags": [], "config": []}
        page.route("**/api/v1/run-summary*", lambda route: route.fulfill(json=summary))
        page.reload()
        expect(page.get_by_role("heading", name="No runs yet")).to_be_visible()
        before, _, shell = (page.locator("pre code").nth(i) for i in range(3))
        expect(before).to_contain_text('token=os.environ["SNC_TOKEN"]')
        assert shell.inner_text().count('-H "Authorization: Bearer $SNC_TOKEN"') == 2
        assert secret not in page.content()
    assert httpx.get(f"{url}/api/v1/runs", headers=headers).json()["items"]
